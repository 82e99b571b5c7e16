"""Variant files: every line passes through, damage is never silent, outputs are whole."""

import gzip
import io
import os
import random
import re
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pysam
import pysam.bcftools
import pytest

from evo_data.errors import EvoDataError, OutputExistsError, VcfError
from evo_data.variant import classify_allele
from evo_data.vcf import VariantReader, VcfRecord, VcfWriter, annotate

HEADER = (
    b"##fileformat=VCFv4.2\n"
    b"##contig=<ID=1,length=1000>\n"
    b'##contig=<assembly="a,b",ID=HLA-A*01:01:01:01,length=3503>\n'
    b"##contig=<ID=2>\n"
    b'##INFO=<ID=AF,Number=A,Type=Float,Description="length=9, ID=no">\n'
    b'##INFO=<ID=DB,Number=0,Type=Flag,Description="x">\n'
    b'##FORMAT=<ID=GT,Number=1,Type=String,Description="x">\n'
    b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1\tS2\n"
)
SITES = b"##fileformat=VCFv4.2\n#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n"
BODY = (
    b"1\t10\trs1\tA\tC,<DEL>\t29.50\tPASS\tAF=0.50,1e-05;DB\tGT:XX\t0|1:0.10\t./.\n"
    b"1\t20\t.\tAC\tA\t.\tq10;s50\t.\tGT\t0/0\t0/1\n"
    b"2\t5\ta;b\tn\t.\t.\t.\tUNDECLARED\tGT\t.\t.\n"
)


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _records(path: Path | str) -> list[VcfRecord]:
    with VariantReader(path) as reader:
        return list(reader)


def _text_of(path: Path | str) -> bytes:
    """Header and records put together again."""
    with VariantReader(path) as reader:
        lines = list(reader.header.lines)
        return b"".join(lines + [record.line + record.terminator for record in reader])


def _refusal(path: Path) -> str:
    with pytest.raises(VcfError) as caught:
        _records(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def _bgzip(content: bytes, folder: Path) -> bytes:
    path = folder / "for_bgzip"
    with pysam.BGZFile(str(path), "wb") as output:
        output.write(content)
    return path.read_bytes()


# --- reading ----------------------------------------------------------------------------------------


def test_the_parts_of_header_and_records(tmp_path: Path) -> None:
    with VariantReader(_write(tmp_path / "x.vcf", HEADER + BODY)) as reader:
        header = reader.header
        first, second, third = reader
    assert not reader.is_bcf
    assert b"".join(header.lines) == HEADER
    assert header.contigs == {"1": 1000, "HLA-A*01:01:01:01": 3503, "2": None}
    assert header.info_ids == {"AF", "DB"}
    assert header.samples == ("S1", "S2")
    assert (first.contig, first.pos, first.id, first.ref) == ("1", 10, "rs1", "A")
    assert (first.alts, first.filters) == (("C", "<DEL>"), ("PASS",))
    assert first.info == b"AF=0.50,1e-05;DB"
    assert (first.number, second.number, third.number) == (9, 10, 11)
    assert second.filters == ("q10", "s50")
    assert (third.ref, third.alts, third.filters) == ("n", (), ())
    assert [record.line + record.terminator for record in (first, second, third)] == (
        BODY.splitlines(keepends=True)
    )


ENDINGS = {
    "as it is": HEADER + BODY,
    "CR LF": (HEADER + BODY).replace(b"\n", b"\r\n"),
    "no final newline": (HEADER + BODY)[:-1],
    "no final newline, CR LF": (HEADER + BODY).replace(b"\n", b"\r\n")[:-2],
    "header alone": HEADER,
    "header alone without newline": HEADER[:-1],
    "blank lines at the end": HEADER + BODY + b"\n\r\n\n",
    "blank lines all over": HEADER + b"\n\n" + BODY.replace(b"\n", b"\n\n"),
    "blank lines and no records": HEADER + b"\n\n",
    "latin-1": HEADER + BODY.replace(b"rs1", b"caf\xe9"),
    "white space in INFO": HEADER + BODY.replace(b"DB", b"DB yes; ;=;"),
    "POS 0": HEADER + BODY.replace(b"\t10\t", b"\t0\t"),
    "out of order": HEADER + b"".join(reversed(BODY.splitlines(keepends=True))),
    "version 4.5": (HEADER + BODY).replace(b"VCFv4.2", b"VCFv4.5"),
    "broken meta lines": HEADER.replace(b"##INFO=<ID=DB", b"##x\n##=\n##INFO=<ID=,\n##INFO=<")
    + BODY,
}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("packing", ["plain", "gzip", "members", "bgzip"])
def test_every_byte_comes_back(tmp_path: Path, ending: str, packing: str) -> None:
    content = ENDINGS[ending]
    packed = {
        "plain": lambda: content,
        "gzip": lambda: gzip.compress(content),
        "members": lambda: (
            b"".join(gzip.compress(content[at : at + 37]) for at in range(0, len(content), 37))
            + bytes(512)
        ),
        "bgzip": lambda: _bgzip(content, tmp_path),
    }[packing]()
    assert _text_of(_write(tmp_path / "whatever.name", packed)) == content


def test_line_numbers_count_blank_lines(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.vcf", SITES + b"\n1\t5\t.\tA\tC\t.\t.\t.\n\n1\t6\t.\tA\tC\t.\t.\n")
    assert f"{path}:6: 7 tab-separated columns where the header has 8" in _refusal(path)


def test_the_records_are_read_once(tmp_path: Path) -> None:
    with VariantReader(_write(tmp_path / "x.vcf", HEADER + BODY)) as reader:
        assert len(list(reader)) == 3
        with pytest.raises(VcfError, match="already"):
            list(reader)


def test_without_with_the_header_opens_the_file(tmp_path: Path) -> None:
    reader = VariantReader(_write(tmp_path / "x.vcf", HEADER + BODY))
    assert reader.header.samples == ("S1", "S2")
    assert len(list(reader)) == 3
    reader.close()


def test_a_line_longer_than_any_buffer(tmp_path: Path) -> None:
    line = b"1\t5\t.\tA\t" + b"ACGT" * 300_000 + b"\t.\t.\t.\n"
    path = _write(tmp_path / "x.vcf", SITES + line + line)
    assert _text_of(path) == SITES + line + line


# --- BCF ----------------------------------------------------------------------------------------------


@pytest.fixture
def bcf(tmp_path: Path) -> Path:
    text = _write(tmp_path / "for_bcf.vcf", DECLARED + BODY)
    path = tmp_path / "x.bcf"
    pysam.bcftools.view("--no-version", "-Ob", "-o", str(path), str(text), catch_stdout=False)
    return path


DECLARED = HEADER.replace(
    b"#CHROM",
    b'##INFO=<ID=UNDECLARED,Number=0,Type=Flag,Description="x">\n'
    b'##FORMAT=<ID=XX,Number=1,Type=Float,Description="x">\n'
    b'##FILTER=<ID=q10,Description="x">\n##FILTER=<ID=s50,Description="x">\n#CHROM',
)


def test_bcf_is_read_as_the_text_of_htslib(bcf: Path) -> None:
    with VariantReader(bcf) as reader:
        assert reader.is_bcf
        assert reader.header.contigs == {"1": 1000, "HLA-A*01:01:01:01": 3503, "2": None}
        assert reader.header.info_ids == {"AF", "DB", "UNDECLARED"}
        assert reader.header.samples == ("S1", "S2")
        records = list(reader)
    assert [record.number for record in records] == [1, 2, 3]
    assert [record.alts for record in records] == [("C", "<DEL>"), ("A",), ()]
    expected = pysam.bcftools.view("--no-version", "-H", str(bcf)).encode()
    assert b"".join(record.line + record.terminator for record in records) == expected


def test_bcf_without_compression(bcf: Path, tmp_path: Path) -> None:
    path = tmp_path / "u.bcf"
    pysam.bcftools.view("--no-version", "-Ou", "-o", str(path), str(bcf), catch_stdout=False)
    assert _text_of(path) == _text_of(bcf)


def test_htslib_is_silent_and_its_verbosity_restored(
    bcf: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = pysam.get_verbosity()
    _refusal(_write(tmp_path / "y.bcf", gzip.decompress(bcf.read_bytes())[:-20]))
    _refusal(_write(tmp_path / "z.bcf", gzip.decompress(bcf.read_bytes())[:200]))
    with VcfWriter(tmp_path / "o.bcf", format="bcf", header_lines=[SITES]) as writer:
        writer.write(b"undeclared\t5\t.\tA\tC\t.\tq\tX=1\n")
    assert pysam.get_verbosity() == before
    assert capfd.readouterr() == ("", "")


# --- stdin and pipes --------------------------------------------------------------------------------

READ = """
import sys
from evo_data.vcf import VariantReader
try:
    with VariantReader("-") as reader:
        for line in reader.header.lines:
            sys.stdout.buffer.write(line)
        for record in reader:
            sys.stdout.buffer.write(record.line + record.terminator)
except ValueError as error:
    print(error)
"""


def _through_stdin(content: bytes) -> bytes:
    return subprocess.run(
        [sys.executable, "-c", READ], input=content, capture_output=True, check=True
    ).stdout


@pytest.mark.parametrize("packing", ["plain", "gzip", "bgzip", "empty block first"])
def test_stdin_is_recognised_by_its_bytes(tmp_path: Path, packing: str) -> None:
    content = HEADER + BODY * 3000
    packed = {
        "plain": content,
        "gzip": gzip.compress(content),
        "bgzip": _bgzip(content, tmp_path),
        "empty block first": gzip.compress(b"") + gzip.compress(content),
    }[packing]
    assert _through_stdin(packed) == content


def test_bcf_through_stdin(bcf: Path) -> None:
    assert _through_stdin(bcf.read_bytes()) == _text_of(bcf)
    assert _through_stdin(gzip.decompress(bcf.read_bytes())) == _text_of(bcf)


def test_damage_on_stdin(bcf: Path, tmp_path: Path) -> None:
    packed = _bgzip(HEADER + BODY, tmp_path)
    assert b"stdin: the bgzip end-of-file block is missing" in _through_stdin(packed[:-28])
    assert b"stdin: the bgzip end-of-file block is missing" in _through_stdin(
        bcf.read_bytes()[:-28]
    )
    assert b"stdin: the file is empty" in _through_stdin(b"")


@pytest.mark.parametrize("packing", ["text", "bcf"])
def test_a_named_pipe(tmp_path: Path, bcf: Path, packing: str) -> None:
    content = HEADER + BODY if packing == "text" else bcf.read_bytes()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    feeder = threading.Thread(target=pipe.write_bytes, args=(content,))
    feeder.start()
    text = _text_of(pipe)
    feeder.join()
    assert text == (content if packing == "text" else _text_of(bcf))


# --- what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"\n", "neither VCF nor BCF"),
        (b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n", "neither VCF nor BCF"),
        (b"##fileformat=\n#CHROM\n", "neither VCF nor BCF"),
        (b"##fileformat=VCF v4.3\n#CHROM\n", ":1: the first line must be"),
        (b"\xef\xbb\xbf" + SITES, "byte order mark"),
        (SITES.decode().encode("utf-16"), "neither VCF nor BCF"),
        (b">chr1\nACGT\n", "looks like FASTA"),
        (b"BZh91AY", "compressed by bzip2"),
        (b"\x28\xb5\x2f\xfd...", "compressed by zstd"),
        (b"CRAM\3\0", "neither VCF nor BCF"),
        (b"BCF\2\2", "cannot be read as BCF"),
        (SITES.replace(b"\n", b"\r"), "carriage return alone"),
        (gzip.compress(b"BCF\2\2" + bytes(50), mtime=0), "BCF compressed by gzip"),
        (b"##fileformat=VCFv4.2\n", "ends before the #CHROM line"),
        (b"##fileformat=VCFv4.2\n1\t5\t.\tA\tC\t.\t.\t.\n", ":2: expected a ## line"),
        (b"##fileformat=VCFv4.2\n\n" + SITES[21:], ":2: expected a ## line"),
        (SITES.replace(b"\t", b"  "), ":2: the #CHROM line must have the tab-separated"),
        (SITES.replace(b"POS", b"POSITION"), ":2: the #CHROM line must have"),
        (SITES.replace(b"\tINFO", b""), ":2: the #CHROM line must have"),
        (SITES.replace(b"INFO", b"INFO\tS1"), ":2: the #CHROM line must have"),
    ],
)
def test_headers_that_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    assert message in _refusal(_write(tmp_path / "x.vcf", content))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"1\t5\t.\tA\tC\t.\t.", "7 tab-separated columns where the header has 8"),
        (b"1\t5\t.\tA\tC\t.\t.\t.\tGT", "9 tab-separated columns where the header has 8"),
        (b"1\t5\t.\tA\tC\t.\t.\t.\t", "9 tab-separated columns where the header has 8"),
        (b"1 5 . A C . . .", "1 tab-separated columns"),
        (b"##fileformat=VCFv4.2", "a header line among the records"),
        (SITES.splitlines()[1], "POS 'POS' is not"),
        (b"\t5\t.\tA\tC\t.\t.\t.", "CHROM '' is empty"),
        (b"chr 1\t5\t.\tA\tC\t.\t.\t.", "CHROM 'chr 1' is empty or has white space"),
        (b"1\t\t.\tA\tC\t.\t.\t.", "POS '' is not"),
        (b"1\t.\t.\tA\tC\t.\t.\t.", "POS '.' is not"),
        (b"1\t-5\t.\tA\tC\t.\t.\t.", "POS '-5' is not"),
        (b"1\t+5\t.\tA\tC\t.\t.\t.", "POS '+5' is not"),
        (b"1\t5.0\t.\tA\tC\t.\t.\t.", "POS '5.0' is not"),
        (b"1\t1_0\t.\tA\tC\t.\t.\t.", "POS '1_0' is not"),
        (b"1\t\xd9\xa3\t.\tA\tC\t.\t.\t.", "POS"),
        (b"1\t" + b"9" * 5000 + b"\t.\tA\tC\t.\t.\t.", "POS"),
        (b"1\t5\t.\t\tC\t.\t.\t.", "REF is empty"),
        (b"1\t5\t.\tA\t\t.\t.\t.", "ALT is empty"),
        (b"1\t5\t.\tA\tC\t.\t.\tX=\0", "NUL byte"),
    ],
)
def test_records_that_are_refused(tmp_path: Path, line: bytes, message: str) -> None:
    good = b"1\t4\t.\tA\tC\t.\t.\t.\n"
    path = _write(tmp_path / "x.vcf", SITES + good + line + b"\n" + good)
    refusal = _refusal(path)
    assert f"{path}:4: " in refusal
    assert message in refusal
    with VariantReader(path) as reader:
        assert next(iter(reader)).pos == 4


def test_a_header_with_format_but_no_sample(tmp_path: Path) -> None:
    content = SITES.replace(b"INFO", b"INFO\tFORMAT") + (
        b"1\t5\t.\tA\tC\t.\t.\t.\n1\t6\t.\tA\tC\t.\t.\t.\tGT\n"
    )
    assert _text_of(_write(tmp_path / "x.vcf", content)) == content


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    assert "no such file" in _refusal(tmp_path / "absent.vcf")
    assert "is a folder" in _refusal(tmp_path)


@pytest.mark.parametrize("packing", ["gzip", "bgzip", "bcf"])
def test_no_truncation_is_silent(tmp_path: Path, bcf: Path, packing: str) -> None:
    if packing == "bcf":
        content = bcf.read_bytes()
    else:
        rng = random.Random(0)
        body = b"".join(
            b"1\t%d\t.\tA\tC\t.\t.\tX=%d\n" % (at, rng.randrange(1 << 60)) for at in range(1, 9000)
        )
        content = (
            gzip.compress(SITES + body) if packing == "gzip" else _bgzip(SITES + body, tmp_path)
        )
    rng = random.Random(1)
    cuts = {1, 2, 10, 18, 40, len(content) - 1, len(content) - 8, len(content) - 28}
    cuts |= {rng.randrange(1, len(content)) for _ in range(30)}
    for cut in cuts:
        assert _refusal(_write(tmp_path / "cut", content[:cut]))
    assert _records(_write(tmp_path / "whole", content))


@pytest.mark.parametrize("packing", ["gzip", "bgzip", "bcf"])
def test_no_flipped_bit_changes_what_is_read(tmp_path: Path, bcf: Path, packing: str) -> None:
    content = {
        "gzip": gzip.compress(HEADER + BODY),
        "bgzip": _bgzip(HEADER + BODY, tmp_path),
        "bcf": bcf.read_bytes(),
    }[packing]
    expected = _text_of(_write(tmp_path / "whole", content))
    num_refused = 0
    for at in range(len(content)):
        flipped = bytearray(content)
        flipped[at] ^= 1 << (at % 8)
        path = _write(tmp_path / "flipped", bytes(flipped))
        try:
            assert _text_of(path) == expected
        except VcfError as error:
            assert "\n" not in str(error)
            num_refused += 1
    assert num_refused > 0.9 * len(content)


def test_rubbish_behind_the_gzip_data_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.vcf.gz", gzip.compress(HEADER + BODY) + b"rubbish")
    assert "damaged gzip data" in _refusal(path)


# --- adding keys ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("info", "added", "expected"),
    [
        (b".", b"EVO_X=1", b"EVO_X=1"),
        (b"", b"EVO_X=1", b"EVO_X=1"),
        (b"AF=0.50", b"EVO_X=1;EVO_Y=a", b"AF=0.50;EVO_X=1;EVO_Y=a"),
        (b"AF=0.50;", b"EVO_X=1", b"AF=0.50;EVO_X=1"),
        (b"AF=0.50", b"", b"AF=0.50"),
        (b".", b"", b"."),
    ],
)
@pytest.mark.parametrize("rest", [b"", b"\tGT:DP\t0|1:3\t./."])
@pytest.mark.parametrize("terminator", [b"\n", b"\r\n", b""])
def test_annotate(
    tmp_path: Path, info: bytes, added: bytes, expected: bytes, rest: bytes, terminator: bytes
) -> None:
    start = b"1\t5\trs1\ta\tC\t1e2\tPASS\t"
    header = HEADER if rest else SITES
    path = _write(tmp_path / "x.vcf", header + start + info + rest + terminator)
    (record,) = _records(path)
    assert annotate(record, added) == start + expected + rest + terminator
    assert annotate(record, added, drop_genotypes=True) == start + expected + terminator


def test_header_lines_are_added_before_the_last(tmp_path: Path) -> None:
    added = [b"##INFO=<ID=EVO_X>", b"##evo=1"]
    with VariantReader(_write(tmp_path / "x.vcf", HEADER + BODY)) as reader:
        lines = reader.header.extended(added)
        assert lines[:-3] == reader.header.lines[:-1]
        assert lines[-3:] == [added[0] + b"\n", added[1] + b"\n", reader.header.lines[-1]]
        assert reader.header.extended([], drop_genotypes=True)[-1] == SITES.splitlines(True)[-1]
    with VariantReader(_write(tmp_path / "y.vcf", SITES[:-1].replace(b"\n", b"\r\n"))) as reader:
        assert reader.header.extended(added)[1:3] == [added[0] + b"\r\n", added[1] + b"\r\n"]
        assert not reader.header.extended(added)[-1].endswith(b"\n")


# --- writing ----------------------------------------------------------------------------------------


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _copy(source: Path, target: Path, *, format: str, force: bool = False) -> str:
    with (
        VariantReader(source) as reader,
        VcfWriter(target, format=format, header_lines=reader.header.lines, force=force) as writer,
    ):
        for record in reader:
            writer.write(annotate(record, b""))
    return writer.index_note


@pytest.fixture
def out(tmp_path: Path) -> Path:
    folder = tmp_path / "out"
    folder.mkdir()
    return folder


def test_text_is_written_as_it_is(tmp_path: Path, out: Path) -> None:
    source = _write(tmp_path / "x.vcf", ENDINGS["no final newline, CR LF"])
    assert _copy(source, out / "o.vcf", format="vcf") == ""
    assert (out / "o.vcf").read_bytes() == ENDINGS["no final newline, CR LF"]
    assert _names(out) == ["o.vcf"]


@pytest.mark.parametrize(("format", "kind"), [("vcf.gz", ".tbi"), ("bcf", ".csi")])
def test_compressed_output_has_an_index(tmp_path: Path, out: Path, format: str, kind: str) -> None:
    body = b"".join(
        b"%s\t%d\tr%d\tA\tC\t.\t.\t.\n" % (contig, at, at)
        for contig in (b"1", b"x")
        for at in range(1, 90_000, 7)
    )
    source = _write(tmp_path / "x.vcf", SITES + body)
    assert _copy(source, out / f"o.{format}", format=format) == ""
    assert _names(out) == [f"o.{format}", f"o.{format}{kind}"]
    with pysam.VariantFile(str(out / f"o.{format}")) as variants:
        assert [record.id for record in variants.fetch("x", 50_000, 50_020)] == [
            "r50002",
            "r50009",
            "r50016",
        ]
    if format == "vcf.gz":
        assert gzip.decompress((out / "o.vcf.gz").read_bytes()) == SITES + body
    assert len(_records(out / f"o.{format}")) == body.count(b"\n")


def test_positions_that_a_tbi_cannot_hold_get_a_csi(tmp_path: Path, out: Path) -> None:
    body = b"1\t5\t.\tA\tC\t.\t.\t.\n1\t600000000\tfar\tA\tC\t.\t.\t.\n"
    assert _copy(_write(tmp_path / "x.vcf", SITES + body), out / "o.vcf.gz", format="vcf.gz") == ""
    assert _names(out) == ["o.vcf.gz", "o.vcf.gz.csi"]
    with pysam.VariantFile(str(out / "o.vcf.gz")) as variants:
        assert [record.id for record in variants.fetch("1", 599_999_990, 600_000_010)] == ["far"]
    body = body.replace(b"600000000", b"6").replace(b"\t.\n", b"\tEND=600000000\n")
    _copy(_write(tmp_path / "y.vcf", SITES + body), out / "e.vcf.gz", format="vcf.gz")
    assert (out / "e.vcf.gz.csi").exists()


@pytest.mark.parametrize("format", ["vcf.gz", "bcf"])
@pytest.mark.parametrize(
    "order", [[(1, 9), (1, 5)], [(1, 5), (2, 5), (1, 9)]], ids=["position", "contig"]
)
def test_out_of_order_there_is_no_index(
    tmp_path: Path, out: Path, format: str, order: list[tuple[int, int]]
) -> None:
    body = b"".join(b"%d\t%d\t.\tA\tC\t.\t.\t.\n" % place for place in order)
    source = _write(tmp_path / "x.vcf", SITES + body)
    note = _copy(source, out / f"o.{format}", format=format)
    assert "not sorted" in note
    assert "\n" not in note
    assert _names(out) == [f"o.{format}"]
    assert [(int(r.contig), r.pos) for r in _records(out / f"o.{format}")] == order


def test_bcf_output_says_the_same_as_the_text(tmp_path: Path, out: Path) -> None:
    source = _write(tmp_path / "x.vcf", HEADER + BODY)
    _copy(source, out / "o.bcf", format="bcf")
    found = [record.line.split(b"\t") for record in _records(out / "o.bcf")]
    expected = [line.split(b"\t") for line in BODY.splitlines()]
    # QUAL and the samples are formatted anew.
    for line in (*found, *expected):
        line[5:6] = line[9:] = []
    expected[0][6] = b"AF=0.5,1e-05;DB"
    assert found == expected


def test_bcf_output_keeps_end(tmp_path: Path, out: Path) -> None:
    # pysam's own writer would add END to the first and take it from the second.
    body = (
        b"1\t5\t.\tA\t<*>\t.\t.\t.\n1\t6\t.\tA\tC\t.\t.\tEND=6\n1\t7\t.\tA\t<DEL>\t.\t.\tEND=20\n"
    )
    _copy(_write(tmp_path / "x.vcf", SITES + body), out / "o.bcf", format="bcf")
    assert b"".join(r.line + b"\n" for r in _records(out / "o.bcf")) == body


def test_text_that_cannot_be_bcf_is_one_line(tmp_path: Path, out: Path) -> None:
    source = _write(tmp_path / "x.vcf", SITES + b"<1\t5\t.\tA\tC\t.\t.\t.\n")
    with pytest.raises(VcfError, match=r"cannot turn the text into BCF .*; write VCF") as caught:
        _copy(source, out / "o.bcf", format="bcf")
    assert "\n" not in str(caught.value)
    assert _names(out) == []


@pytest.mark.parametrize("format", ["vcf", "vcf.gz", "bcf"])
def test_an_error_leaves_nothing_behind(out: Path, format: str) -> None:
    with (
        pytest.raises(RuntimeError),
        VcfWriter(out / "o", format=format, header_lines=[SITES]) as writer,
    ):
        writer.write(b"1\t5\t.\tA\tC\t.\t.\t.\n")
        raise RuntimeError
    assert _names(out) == []


@pytest.mark.parametrize("format", ["vcf", "vcf.gz", "bcf"])
def test_nothing_is_overwritten_without_force(tmp_path: Path, out: Path, format: str) -> None:
    source = _write(tmp_path / "x.vcf", SITES + b"1\t5\t.\tA\tC\t.\t.\t.\n")
    target = _write(out / f"o.{format}", b"old")
    with pytest.raises(OutputExistsError):
        _copy(source, target, format=format)
    assert target.read_bytes() == b"old"
    _copy(source, target, format=format, force=True)
    assert len(_records(target)) == 1
    if format != "vcf":
        target.unlink()
        with pytest.raises(OutputExistsError, match="index"):
            _copy(source, target, format=format)


def test_an_old_index_does_not_outlive_its_file(tmp_path: Path, out: Path) -> None:
    _write(out / "o.vcf.gz", b"old")
    _write(out / "o.vcf.gz.tbi", b"old")
    _write(out / "o.vcf.gz.csi", b"old")
    body = b"1\t9\t.\tA\tC\t.\t.\t.\n1\t5\t.\tA\tC\t.\t.\t.\n"
    source = _write(tmp_path / "x.vcf", SITES + body)
    _copy(source, out / "o.vcf.gz", format="vcf.gz", force=True)
    assert _names(out) == ["o.vcf.gz"]


def test_input_may_be_output(tmp_path: Path) -> None:
    path = _write(tmp_path / "x.vcf", HEADER + BODY)
    _copy(path, path, format="vcf", force=True)
    assert path.read_bytes() == HEADER + BODY


def test_stdout_takes_text_alone(tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]) -> None:
    writer = VcfWriter("-", format="vcf", header_lines=[SITES])
    writer.write(b"1\t5\t.\tA\tC\t.\t.\t.\n")
    writer.close()
    assert capfdbinary.readouterr().out == SITES + b"1\t5\t.\tA\tC\t.\t.\t.\n"
    for format in ("vcf.gz", "bcf"):
        with pytest.raises(VcfError, match="stdout"):
            VcfWriter("-", format=format, header_lines=[SITES])
    with pytest.raises(VcfError, match=r"not known; use vcf, vcf\.gz, bcf"):
        VcfWriter(tmp_path / "x", format="vcf.bz2", header_lines=[SITES])


FULL = """
import resource, sys
from evo_data.vcf import VcfWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with VcfWriter(sys.argv[1], format=sys.argv[2], header_lines=[sys.argv[3].encode()]) as writer:
        for at in range(1, 200_000):
            writer.write(b"1\\t%d\\t.\\tA\\tC\\t.\\t.\\tX=%d\\n" % (at, at * at * 7919 % 1000003))
except ValueError as error:
    print(error)
"""


@pytest.mark.parametrize("format", ["vcf", "vcf.gz", "bcf"])
def test_a_full_disk_is_one_line_and_leaves_nothing(out: Path, format: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(out / "o"), format, SITES.decode()],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"{out / 'o'}: cannot be written")
    assert done.stdout.count("\n") == 1
    assert _names(out) == []


# --- files from other projects --------------------------------------------------------------------


def _torture_files(shared_dir: Path) -> Iterator[Path]:
    for folder in sorted((shared_dir / "data" / "torture").glob("vcf_*")):
        yield from sorted(folder.rglob("*.[vb]cf*"))


def _content(path: Path) -> bytes:
    with (gzip.open if path.suffix == ".gz" else io.open)(path, "rb") as handle:
        return handle.read()  # type: ignore[no-any-return]


KEY = b"EVO_TEST=0.25,."


def _without_key(line: bytes, original: bytes) -> bytes:
    """Take our key off INFO again, and put back the "." for which alone it may stand."""
    before, key, after = line.partition(KEY)
    assert key
    assert not after or after[:1] in b"\t\r\n"
    if before.endswith(b"\t"):
        assert original[len(before) :].startswith(b".") or original[len(before) :] == after
        return before + original[len(before) :][:1].strip(b"\t\r\n") + after
    return (before if original.startswith(before) else before.removesuffix(b";")) + after


def test_output_less_our_keys_is_the_input_on_every_readable_file(
    shared_dir: Path, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()
    added = b'##INFO=<ID=EVO_TEST,Number=A,Type=Float,Description="x">'
    for path in _torture_files(shared_dir):
        counts["files"] += 1
        target = tmp_path / "out.vcf"
        try:
            with (
                VariantReader(path) as reader,
                VcfWriter(
                    target, format="vcf", header_lines=reader.header.extended([added]), force=True
                ) as writer,
            ):
                for record in reader:
                    writer.write(annotate(record, KEY))
        except VcfError as error:
            assert "\n" not in str(error)
            assert str(path) in str(error)
            counts["refused"] += 1
            continue
        counts["bcf" if reader.is_bcf else "text"] += 1
        lines = target.read_bytes().splitlines(keepends=True)
        assert [line.strip() for line in lines].count(added) == 1
        lines = [line for line in lines if line.strip() != added]
        if reader.is_bcf:
            with pysam.VariantFile(str(path)) as variants:
                original = (str(variants.header) + "".join(map(str, variants))).encode()
        else:
            original = _content(path)
        originals = original.splitlines(keepends=True)
        restored = [
            line if line.startswith(b"#") or not line.strip() else _without_key(line, old)
            for line, old in zip(lines, originals, strict=True)
        ]
        assert b"".join(restored) == original, path
        counts["records"] += sum(
            bool(line.strip()) and not line.startswith(b"#") for line in originals
        )
    assert counts == {
        "files": 1265,
        "refused": 48,
        "bcf": 2,
        "text": 1215,
        "records": counts["records"],
    }
    assert counts["records"] > 10_000


def test_invalid_files_of_the_specification(shared_dir: Path) -> None:
    """607 files that break some rule of VCF; what the scores depend on is refused or unscored."""
    folder = shared_dir / "data" / "torture" / "vcf_hts-specs"
    num_refused = num_read = 0
    for path in sorted(folder.glob("*/failed/*.vcf")):
        try:
            records = _records(path)
        except VcfError:
            num_refused += 1
            continue
        num_read += 1
        for record in records:
            raw = record.line.split(b"\t")
            assert re.fullmatch(rb"[0-9]+", raw[1])
            assert record.alts == (() if raw[4] == b"." else tuple(raw[4].decode().split(",")))
            for alt in record.alts:
                if classify_allele(record.ref, alt, max_allele=1000) == "ok":
                    assert re.fullmatch(rb"[ACGTNacgtn]+", raw[3])
                    assert re.fullmatch("[ACGTNacgtn]+", alt)
    assert num_refused + num_read == 607
    # The others break rules about things that pass through untouched.
    assert num_refused == 32


@pytest.mark.parametrize(
    ("name", "statuses"),
    [
        ("body_alt_000", ["non_acgtn"]),  # R
        ("body_alt_001", ["malformed"]),  # A T
        ("body_alt_002", ["ok", "malformed", "ok"]),  # A,,T
        ("body_alt_003", ["malformed"]),  # <INS>BLAH>
        ("body_alt_005", ["malformed"]),  # [1:100[
        ("body_ref_000", ["malformed"]),  # C,A
        ("body_ref_001", ["non_acgtn"]),  # B
        ("body_ref_002", ["malformed"]),  # .
    ],
)
@pytest.mark.parametrize("version", ["4.1", "4.2", "4.3"])
def test_malformed_alleles_have_no_score(
    shared_dir: Path, version: str, name: str, statuses: list[str]
) -> None:
    folder = shared_dir / "data" / "torture" / "vcf_hts-specs" / version / "failed"
    (record,) = _records(folder / f"failed_{name}.vcf")
    assert [classify_allele(record.ref, alt, max_allele=1000) for alt in record.alts] == statuses


def test_valid_files_of_the_specification_are_read(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "torture" / "vcf_hts-specs"
    paths = sorted(folder.glob("*/passed/*"))
    assert len(paths) == 76
    for path in paths:
        _records(path)


@pytest.mark.slow
def test_every_readable_file_becomes_bgzip_and_bcf_or_one_line(
    shared_dir: Path, tmp_path: Path
) -> None:
    counts: Counter[str] = Counter()
    for path in _torture_files(shared_dir):
        for format in ("vcf.gz", "bcf"):
            target = tmp_path / f"o.{format}"
            try:
                note = _copy(path, target, format=format, force=True)
            except EvoDataError as error:
                assert "\n" not in str(error)
                counts[f"{format} refused"] += 1
                continue
            assert "\n" not in note
            assert len(_records(target)) == len(_records(path))
            counts[f"{format} written"] += 1
    assert counts["vcf.gz refused"] == 48
    assert counts["bcf refused"] <= 90
    assert not list(tmp_path.glob(".*"))


def test_speed_is_that_of_text(shared_dir: Path, tmp_path: Path) -> None:
    path = shared_dir / "data" / "variants" / "chr20_1mb_1kgp" / "z.vcf.gz"
    _copy(path, tmp_path / "o.vcf.gz", format="vcf.gz")
    assert gzip.decompress((tmp_path / "o.vcf.gz").read_bytes()) == _content(path)
    assert len(_records(path)) == 28_998
