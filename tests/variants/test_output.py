"""Writers of scored records: what stands in the files, and that they stand there whole or not at all."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pysam
import pysam.bcftools
import pytest

from evo_data.errors import EvoDataError, OutputExistsError
from evo_data.variant import AlleleStatus, Variant
from evo_data.vcf import VariantReader, VcfHeader, VcfRecord
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.variants import tables
from evo_toolkit.variants.output import (
    OUTPUT_FORMATS,
    check_output,
    check_prefix_free,
    metadata_lines,
    open_writer,
)
from evo_toolkit.variants.scores import (
    INFO_FIELDS,
    TABLE_COLUMNS,
    AlleleScore,
    RunInfo,
    ScoredRecord,
)

RUN = RunInfo(
    version="1.2.3",
    command="evo-toolkit score in.vcf genome.fa",
    model="evo2_7b",
    model_sha256="ab" * 32,
    precision="default (bfloat16 blocks, float32 head)",
    device="cuda:0",
    window=8192,
    strands="both",
    shapes=((8, 8192), (2, 4096)),
    genome="/data/my genomes/GRCh38.fa",
    genome_contigs_sha256="cd" * 32,
    notes=('said "so" \\ here',),
)

# QUAL and FORMAT floats and an undeclared INFO key that htslib would rewrite; a record without ALT,
# one with three kinds of ALT, INFO "." and no samples' trouble.
VCF = """\
##fileformat=VCFv4.2
##contig=<ID=chr1,length=1000>
##contig=<ID=chr2,length=1000>
##INFO=<ID=DP,Number=1,Type=Integer,Description="Depth">
##FORMAT=<ID=GT,Number=1,Type=String,Description="Genotype">
#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\tFORMAT\tS1
chr1\t10\trs1\tA\tC\t29.0000001\tPASS\tDP=14;ODD=0.50\tGT\t0/1
chr1\t20\t.\tG\t<DEL>,T,*\t.\t.\t.\tGT\t1/2
chr1\t30\t.\tG\t.\t.\t.\tDP=3\tGT\t0/0
chr2\t5\t.\tTA\tT\t.\tq10;q20\tFLAG\tGT\t0/1
"""

DECLARATIONS = """\
##INFO=<ID=ODD,Number=1,Type=Float,Description="Odd">
##INFO=<ID=FLAG,Number=0,Type=Flag,Description="Flag">
##FILTER=<ID=q10,Description="q10">
##FILTER=<ID=q20,Description="q20">
"""

SNV = AlleleScore(
    status=AlleleStatus.OK,
    alt="C",
    flags=("n_in_window", "window_shifted"),
    normalised=Variant("chr1", 10, "A", "C"),
    key="chr1-10-A-C",
    hgvs_g="chr1:g.10A>C",
    kind="snv",
    indel_len=0,
    dll=-1.23456789,
    dll_fwd=-1.0,
    dll_rc=-1.46913578,
    dmean=-1.5e-05,
    llr=0.25,
    dll_allele=-1.0,
    dll_flank=-0.23456789,
    ll_ref=-11000.123456789,
    ll_alt=-11001.358024679,
    window=8192,
    window_start=0,
    window_end=8192,
    n_in_window=3,
)
PLAIN = AlleleScore(status=AlleleStatus.OK, alt="T", dll=2.0, dll_fwd=2.0, dll_rc=2.0, dmean=0.0)
DELETION = AlleleScore(status=AlleleStatus.NOT_FINITE, alt="T")


def unscored(status: AlleleStatus, alt: str) -> AlleleScore:
    return AlleleScore(status=status, alt=alt)


ALLELES = (
    (SNV,),
    (unscored(AlleleStatus.SYMBOLIC, "<DEL>"), PLAIN, unscored(AlleleStatus.STAR, "*")),
    (unscored(AlleleStatus.MISSING_ALT, "."),),
    (DELETION,),
)


def read(path: Path) -> tuple[VcfHeader, list[VcfRecord]]:
    with VariantReader(path) as reader:
        return reader.header, list(reader)


@pytest.fixture
def variants(tmp_path: Path) -> tuple[VcfHeader, list[ScoredRecord]]:
    path = tmp_path / "input.vcf"
    path.write_text(VCF)
    header, records = read(path)
    return header, [ScoredRecord(r, a) for r, a in zip(records, ALLELES, strict=True)]


@pytest.fixture
def write(tmp_path: Path, variants: tuple[VcfHeader, list[ScoredRecord]]) -> Callable[..., Path]:
    def run(name: str, *, records: list[ScoredRecord] | None = None, **options: object) -> Path:
        path = tmp_path / name
        arguments = {"format": None, "header": variants[0], "run": RUN, **options}
        with open_writer(path, **arguments) as writer:  # type: ignore[arg-type]
            for scored in variants[1] if records is None else records:
                writer.write(scored)
        run.notes = writer.notes  # type: ignore[attr-defined]
        return path

    return run


# --- VCF


def test_vcf_without_our_lines_and_keys_is_the_input(write: Callable[..., Path]) -> None:
    text = write("out.vcf").read_text()
    lines = [
        line for line in text.splitlines(True) if not re.match(r"##(INFO=<ID=EVO_|evo_)", line)
    ]
    stripped = re.sub(
        r"\t(?:([^\t\n]*);)?EVO_DLL=[^\t\n]*", lambda m: f"\t{m[1] or '.'}", "".join(lines)
    )
    assert stripped == VCF
    added = [
        i for i, line in enumerate(text.splitlines()) if re.match(r"##(INFO=<ID=EVO_|evo_)", line)
    ]
    chrom = next(i for i, line in enumerate(text.splitlines()) if line.startswith("#CHROM"))
    assert added == list(range(chrom - len(added), chrom))


def test_info_values_of_each_record(write: Callable[..., Path]) -> None:
    rows = [
        line.split("\t")[7] for line in write("out.vcf").read_text().splitlines() if line[0] != "#"
    ]
    assert rows == [
        "DP=14;ODD=0.50;EVO_DLL=-1.23457;EVO_DLL_FWD=-1;EVO_DLL_RC=-1.46914;EVO_DMEAN=-1.5e-05;"
        "EVO_LLR=0.25;EVO_ST=ok;EVO_FLAG=n_in_window|window_shifted",
        "EVO_DLL=.,2,.;EVO_DLL_FWD=.,2,.;EVO_DLL_RC=.,2,.;EVO_DMEAN=.,0,.;EVO_LLR=.,.,.;"
        "EVO_ST=symbolic,ok,star;EVO_FLAG=.,.,.",
        "DP=3;EVO_DLL=.;EVO_DLL_FWD=.;EVO_DLL_RC=.;EVO_DMEAN=.;EVO_LLR=.;EVO_ST=missing_alt;EVO_FLAG=.",
        "FLAG;EVO_DLL=.;EVO_DLL_FWD=.;EVO_DLL_RC=.;EVO_DMEAN=.;EVO_LLR=.;EVO_ST=not_finite;EVO_FLAG=.",
    ]


def test_header_lines(write: Callable[..., Path]) -> None:
    lines = write("out.vcf").read_text().splitlines()
    ours = [line for line in lines if line.startswith("##evo_")]
    assert ours == [
        "##evo_toolkitVersion=1.2.3",
        "##evo_toolkitCommand=evo-toolkit score in.vcf genome.fa",
        f'##evo_toolkitModel=<ID=evo2_7b,SHA256={"ab" * 32},Precision="default (bfloat16 blocks, float32 head)",'
        'Device="cuda:0",Window=8192,WindowMode=exact,Strands=both,Shapes="8x8192,2x4096",InfoPrefix=EVO>',
        f'##evo_toolkitGenome=<ID=GRCh38.fa,Name="/data/my genomes/GRCh38.fa",ContigsSHA256={"cd" * 32}>',
        '##evo_toolkitNote="said \\"so\\" \\\\ here"',
    ]
    declared = [line for line in lines if line.startswith("##INFO=<ID=EVO_")]
    assert [line.split(",")[0] for line in declared] == [
        f"##INFO=<ID=EVO_{f.suffix}" for f in INFO_FIELDS
    ]
    assert all(",Number=A," in line for line in declared)
    assert all(line.endswith(',Source="evo_toolkit",Version="1.2.3">') for line in declared)
    assert "positive means the alternate is MORE likely" in declared[0]


def test_command_line_can_be_left_out() -> None:
    import dataclasses

    lines = metadata_lines(dataclasses.replace(RUN, command=None))
    assert not [line for line in lines if "Command" in line]


def test_multi_line_text_stays_on_one_header_line() -> None:
    import dataclasses

    lines = metadata_lines(dataclasses.replace(RUN, command="a\nb", notes=("c\r\nd",)))
    assert "##evo_toolkitCommand=a b" in lines
    assert '##evo_toolkitNote="c d"' in lines


@pytest.mark.parametrize("name", ["out.vcf", "out.vcf.gz", "out.bcf"])
def test_htslib_reads_it(write: Callable[..., Path], name: str) -> None:
    with pysam.VariantFile(str(write(name))) as file:
        records = list(file)
        assert file.header.info["EVO_DLL"].number == "A"
        assert file.header.info["EVO_DLL"].type == "Float"
    assert records[0].info["EVO_DLL"] == pytest.approx((-1.23457,), rel=1e-6)
    assert records[1].info["EVO_ST"] == ("symbolic", "ok", "star")
    assert records[1].info["EVO_DLL"] == (None, 2.0, None)
    assert records[2].info["EVO_ST"] == ("missing_alt",)
    assert records[0].info["EVO_FLAG"] == ("n_in_window|window_shifted",)


def test_bcftools_splits_joins_and_merges_it(write: Callable[..., Path], tmp_path: Path) -> None:
    # bcftools norm fails on any key or filter that the header does not declare.
    declared = write("out.vcf").read_text().replace("##contig", DECLARATIONS + "##contig", 1)
    path = str(tmp_path / "declared.vcf")
    Path(path).write_text(declared)
    path = pysam.tabix_index(path, preset="vcf")
    split = pysam.bcftools.norm("-m", "-any", path)
    values = re.findall(r"EVO_DLL=([^;]+);.*EVO_ST=([^;]+)", split)
    assert values == [("-1.23457", "ok"), (".", "symbolic"), ("2", "ok"), (".", "star"), (".", "missing_alt"), (".", "not_finite")]  # fmt: skip
    joined = pysam.bcftools.norm("-m", "+any", path)
    assert "EVO_ST=symbolic,ok,star" in joined
    merged = pysam.bcftools.merge("--force-samples", path, path)
    rows = [line.split("\t") for line in merged.splitlines() if line[0] != "#"]
    assert [row[1] for row in rows] == ["10", "20", "30", "5"]
    assert "EVO_ST=symbolic,ok,star" in rows[1][7]
    text = pysam.bcftools.query("-f", "%POS %INFO/EVO_ST\n", path)
    assert text.split("\n")[2] == "30 missing_alt"


def test_compressed_vcf_has_an_index(write: Callable[..., Path]) -> None:
    path = write("out.vcf.gz")
    with pysam.VariantFile(str(path)) as file:
        assert [r.pos for r in file.fetch("chr1", 15, 25)] == [20]


def test_genotypes_are_dropped(write: Callable[..., Path]) -> None:
    lines = write("out.vcf", drop_genotypes=True).read_text().splitlines()
    assert {line.count("\t") for line in lines if not line.startswith("##")} == {7}


def test_another_prefix(write: Callable[..., Path]) -> None:
    text = write("out.vcf", info_prefix="SEVEN_B").read_text()
    assert "SEVEN_B_DLL=-1.23457" in text and "EVO_DLL" not in text
    assert "InfoPrefix=SEVEN_B>" in text


def test_scoring_twice_with_two_prefixes(write: Callable[..., Path], tmp_path: Path) -> None:
    first = write("first.vcf")
    header, records = read(first)
    scored = [ScoredRecord(r, a) for r, a in zip(records, ALLELES, strict=True)]
    second = write("second.vcf", header=header, records=scored, info_prefix="EVO2")
    with pysam.VariantFile(str(second)) as file:
        record = next(file)
    assert record.info["EVO_DLL"] == record.info["EVO2_DLL"]


def test_taken_prefix_is_refused(
    write: Callable[..., Path], variants: tuple[VcfHeader, list[ScoredRecord]], tmp_path: Path
) -> None:
    header, _ = read(write("first.vcf"))
    with pytest.raises(EvoError, match=r"EVO_DLL, EVO_DLL_FWD.*--info-prefix"):
        check_prefix_free(header, "EVO")
    check_prefix_free(header, "EV")
    check_prefix_free(header, "EVO2")
    with (
        pytest.raises(EvoError, match="--info-prefix"),
        open_writer(tmp_path / "no.vcf", format=None, header=header, run=RUN),
    ):
        pass
    # An undeclared key in a record, whose declaration no header shows.
    for info in (b"EVO_DLL=1", b"DP=1;EVO_X"):
        variants[1][3].record.info = info
        with pytest.raises(EvoError, match=r"line 10 .*--info-prefix"):
            write("no.vcf")
    variants[1][3].record.info = b"MYEVO_DLL=1;X=EVO_"
    write("yes.vcf")
    assert not (tmp_path / "no.vcf").exists()


@pytest.mark.parametrize("prefix", ["", "1EVO", "E VO", "E;", "É"])
def test_illegal_prefix_is_refused(
    variants: tuple[VcfHeader, list[ScoredRecord]], prefix: str
) -> None:
    with pytest.raises(UsageError, match="--info-prefix"):
        check_prefix_free(variants[0], prefix)


def test_vcf_needs_a_header(tmp_path: Path) -> None:
    with pytest.raises(EvoError, match="needs a VCF"):
        open_writer(tmp_path / "out.vcf", format=None, header=None, run=RUN)


# --- TSV


def test_tsv(write: Callable[..., Path]) -> None:
    lines = write("out.tsv").read_text().splitlines()
    head = [line for line in lines if line.startswith("##")]
    assert head == metadata_lines(RUN)
    assert lines[len(head)] == "#" + "\t".join(TABLE_COLUMNS)
    rows = [line.split("\t") for line in lines[len(head) + 1 :]]
    assert {len(row) for row in rows} == {len(TABLE_COLUMNS)}
    assert rows[0] == [
        "chr1", "10", "rs1", "A", "C", "chr1-10-A-C", "chr1:g.10A>C", "snv", "0", "ok",
        "n_in_window|window_shifted", "-1.23456789", "-1", "-1.46913578", "-1.5e-05", "0.25", "-1",
        "-0.23456789", "-11000.1235", "-11001.358", "10", "A", "C", "8192", "0", "8192", "3",
        ".", ".", ".", ".",
    ]  # fmt: skip
    assert [row[:5] for row in rows[1:]] == [
        ["chr1", "20", ".", "G", "<DEL>"],
        ["chr1", "20", ".", "G", "T"],
        ["chr1", "20", ".", "G", "*"],
        ["chr1", "30", ".", "G", "."],
        ["chr2", "5", ".", "TA", "T"],
    ]
    assert [row[9] for row in rows] == ["ok", "symbolic", "ok", "star", "missing_alt", "not_finite"]
    assert rows[2][14] == "0" and rows[5][11:16] == ["."] * 5


def test_compressed_tsv_is_indexed_for_tabix(write: Callable[..., Path]) -> None:
    path = write("out.tsv.gz")
    with pysam.TabixFile(str(path)) as file:
        assert file.contigs == ["chr1", "chr2"]
        assert [row.split("\t")[4] for row in file.fetch("chr1", 19, 20)] == ["<DEL>", "T", "*"]
        assert [row.split("\t")[1] for row in file.fetch("chr2")] == ["5"]
    assert write.notes == ()  # type: ignore[attr-defined]
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "input.vcf",
        "out.tsv.gz",
        "out.tsv.gz.tbi",
    ]


@pytest.mark.parametrize(
    ("order", "reason"), [((1, 0), "sorted by position"), ((0, 3, 1), "in one piece")]
)
def test_unsorted_tsv_has_no_index_and_says_so(
    write: Callable[..., Path],
    variants: tuple[VcfHeader, list[ScoredRecord]],
    order: tuple[int, ...],
    reason: str,
) -> None:
    write("out.tsv.gz")
    path = write("out.tsv.gz", records=[variants[1][i] for i in order], force=True)
    assert not Path(f"{path}.tbi").exists(), "the index of the file before must not stay"
    (note,) = write.notes  # type: ignore[attr-defined]
    assert reason in note
    with pysam.BGZFile(str(path)) as file:
        assert file.read().decode().splitlines()[-1].split("\t")[1] == str(
            variants[1][order[-1]].record.pos
        )


def test_position_0_has_no_place_in_an_index(
    write: Callable[..., Path], variants: tuple[VcfHeader, list[ScoredRecord]]
) -> None:
    variants[1][0].record.pos = 0
    path = write("out.tsv.gz")
    assert "position 0" in write.notes[0]  # type: ignore[attr-defined]
    assert not Path(f"{path}.tbi").exists()


def test_far_positions_get_a_csi_index(
    write: Callable[..., Path], variants: tuple[VcfHeader, list[ScoredRecord]]
) -> None:
    variants[1][2].record.pos = (1 << 29) + 10
    path = write("out.tsv.gz")
    assert not Path(f"{path}.tbi").exists()
    with pysam.TabixFile(str(path), index=f"{path}.csi") as file:
        assert len(list(file.fetch("chr1", 1 << 29, (1 << 29) + 20))) == 1


def test_scores_outlive_an_index_that_cannot_be_made(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("building of index failed")

    monkeypatch.setattr(pysam, "tabix_index", fail)
    path = write("out.tsv.gz")
    assert "building of index failed" in write.notes[0]  # type: ignore[attr-defined]
    with pysam.BGZFile(str(path)) as file:
        assert file.read().count(b"\nchr") == 6
    assert sorted(p.name for p in path.parent.iterdir()) == ["input.vcf", "out.tsv.gz"]


def test_empty_compressed_tsv(write: Callable[..., Path]) -> None:
    path = write("out.tsv.gz", records=[])
    with pysam.TabixFile(str(path)) as file:
        assert list(file.fetch()) == []


def test_tsv_to_stdout(
    variants: tuple[VcfHeader, list[ScoredRecord]], capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    with open_writer("-", format="t", header=None, run=RUN) as writer:
        writer.write(variants[1][0])
    out = capfdbinary.readouterr().out
    assert out.startswith(b"##evo_toolkitVersion=1.2.3\n") and out.count(b"\nchr1\t10\t") == 1


# --- Parquet


def test_parquet(write: Callable[..., Path]) -> None:
    path = write("out.parquet")
    frame = pd.read_parquet(path)
    assert list(frame.columns) == list(TABLE_COLUMNS)
    assert frame["status"].tolist() == ["ok", "symbolic", "ok", "star", "missing_alt", "not_finite"]
    assert frame["dll"][0] == -1.23456789 and frame["ll_ref"][0] == -11000.123456789
    assert frame["dll"].isna().tolist() == [False, True, False, True, True, True]
    assert frame["pos"].tolist() == [10, 20, 20, 20, 30, 5]
    schema = pq.read_schema(path)
    assert str(schema.field("dll").type) == "double"
    assert str(schema.field("pos").type) == "int64"
    assert all(
        "dictionary" in str(schema.field(n).type) for n in ("chrom", "kind", "status", "flags")
    )
    manifest = json.loads(schema.metadata[b"evo_toolkit"])
    assert manifest["model_sha256"] == RUN.model_sha256 and manifest["shapes"] == [
        [8, 8192],
        [2, 4096],
    ]


def test_every_column_has_a_type() -> None:
    assert set(tables.COLUMN_TYPES) == set(TABLE_COLUMNS)


def test_parquet_rows_leave_in_groups(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "_ROWS_PER_GROUP", 4)
    file = pq.ParquetFile(write("out.parquet"))
    assert [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)] == [4, 2]
    monkeypatch.setattr(tables, "_CHARACTERS_PER_GROUP", 1)
    file = pq.ParquetFile(write("other.parquet"))
    assert file.num_row_groups == 6


FULL_DISK = """
import resource, signal, sys
from evo_data.variant import AlleleStatus
from evo_data.vcf import VcfRecord
from evo_toolkit.errors import EvoError
from evo_toolkit.variants.output import open_writer
from evo_toolkit.variants.scores import AlleleScore, RunInfo, ScoredRecord

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run = RunInfo("1", None, "m", "a", "p", "cpu", 64, "both", ((1, 64),), "g", "h")
try:
    with open_writer(sys.argv[1], format=None, header=None, run=run) as writer:
        for pos in range(1, 9000):
            record = VcfRecord(b"", b"", pos, "1", pos, ".", "A", ("C",), (), b".")
            allele = AlleleScore(status=AlleleStatus.OK, alt="C", dll=pos / 7)
            writer.write(ScoredRecord(record, (allele,)))
except EvoError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files as Linux does")
@pytest.mark.parametrize("name", ["o.tsv", "o.tsv.gz", "o.parquet"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path, name: str) -> None:
    arguments = [sys.executable, "-c", FULL_DISK, str(tmp_path / name)]
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=60)
    assert done.stdout.count("\n") == 1 and "is there space left?" in done.stdout, done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_empty_parquet(write: Callable[..., Path]) -> None:
    frame = pd.read_parquet(write("out.parquet", records=[]))
    assert list(frame.columns) == list(TABLE_COLUMNS) and len(frame) == 0


def test_tsv_and_parquet_agree(write: Callable[..., Path]) -> None:
    parquet = pd.read_parquet(write("out.parquet"))
    skip = len(metadata_lines(RUN))
    tsv = pd.read_csv(
        write("out.tsv"), sep="\t", skiprows=skip, na_values=".", keep_default_na=False
    )
    tsv.columns = tsv.columns.str.lstrip("#")
    numbers = parquet.select_dtypes("number").columns
    pd.testing.assert_frame_equal(parquet[numbers], tsv[numbers], check_dtype=False, rtol=1e-8)


# --- all of them


@pytest.mark.parametrize("name", ["o.vcf", "o.vcf.gz", "o.bcf", "o.tsv", "o.tsv.gz", "o.parquet"])
def test_a_run_that_fails_leaves_nothing(
    variants: tuple[VcfHeader, list[ScoredRecord]], tmp_path: Path, name: str
) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        open_writer(tmp_path / name, format=None, header=variants[0], run=RUN) as writer,
    ):
        writer.write(variants[1][0])
        raise KeyboardInterrupt
    assert [p.name for p in tmp_path.iterdir()] == ["input.vcf"]


@pytest.mark.parametrize("name", ["o.vcf", "o.vcf.gz", "o.bcf", "o.tsv", "o.tsv.gz", "o.parquet"])
def test_force_replaces_and_closing_twice_is_harmless(
    variants: tuple[VcfHeader, list[ScoredRecord]], tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_text("old")
    with pytest.raises(OutputExistsError, match="--force"):
        open_writer(path, format=None, header=variants[0], run=RUN)
    assert path.read_text() == "old"
    with open_writer(path, format=None, header=variants[0], run=RUN, force=True) as writer:
        assert path.read_text() == "old", "replaced before it was complete"
        for scored in variants[1]:
            writer.write(scored)
        writer.close()
    assert path.read_bytes() != b"old"
    assert not [p for p in tmp_path.iterdir() if "tmp" in p.name]


# --- formats


@pytest.mark.parametrize(
    ("path", "format", "expected"),
    [
        ("a.vcf", None, "vcf"), ("a.VCF.GZ", None, "vcf.gz"), ("a.vcf.bgz", None, "vcf.gz"),
        ("a.bcf", None, "bcf"), ("a.tsv", None, "tsv"), ("a.tsv.gz", None, "tsv.gz"),
        ("a.parquet", None, "parquet"), ("a.vcf", "z", "vcf.gz"), ("a", "p", "parquet"),
        ("a.tsv.gz", "t", "tsv.gz"), ("a.txt", "t", "tsv"), ("a.out", "tsv.gz", "tsv.gz"),
        ("-", None, "vcf"), ("-", "t", "tsv"), ("-", "v", "vcf"),
    ],
)  # fmt: skip
def test_format_by_letter_or_suffix(
    tmp_path: Path, path: str, format: str | None, expected: str
) -> None:
    assert check_output(path if path == "-" else tmp_path / path, format) == expected


@pytest.mark.parametrize(
    ("path", "format", "message"),
    [
        ("a.txt", None, r"\.vcf\.gz"),
        ("a.vcf", "x", r"v \(vcf\)"),
        ("-", "p", "stdout"),
        ("-", "z", "stdout"),
    ],
)
def test_format_that_is_not_known(
    tmp_path: Path, path: str, format: str | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        check_output(path if path == "-" else tmp_path / path, format)


def test_every_letter_is_a_format(tmp_path: Path) -> None:
    assert [check_output(tmp_path / "x", letter) for letter in "vzbtp"] == list(
        OUTPUT_FORMATS.values()
    )


def test_output_is_checked_before_anything_expensive(tmp_path: Path) -> None:
    there = tmp_path / "there.vcf"
    there.write_text("precious")
    link = tmp_path / "link.vcf"
    link.symlink_to(there)
    with pytest.raises(OutputExistsError, match="--force"):
        check_output(there)
    assert check_output(there, force=True) == "vcf"
    for output in (there, link, tmp_path / "." / "there.vcf"):
        with pytest.raises(UsageError, match="input"):
            check_output(output, force=True, inputs=["-", tmp_path / "absent", there])
    with pytest.raises(EvoDataError, match="does not exist"):
        check_output(tmp_path / "no" / "a.vcf")
    (tmp_path / "a.vcf.gz.csi").write_text("")
    with pytest.raises(OutputExistsError, match=r"a\.vcf\.gz\.csi"):
        check_output(tmp_path / "a.vcf.gz")
    assert there.read_text() == "precious"


def test_memory_does_not_grow_with_the_input(
    tmp_path: Path,
    variants: tuple[VcfHeader, list[ScoredRecord]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import tracemalloc

    monkeypatch.setattr(tables, "_ROWS_PER_GROUP", 1000)

    rng = random.Random(0)
    peaks = []
    for count in (3_000, 12_000):
        tracemalloc.start()
        with open_writer(
            tmp_path / f"{count}.parquet", format=None, header=None, run=RUN
        ) as writer:
            for _ in range(count):
                allele = AlleleScore(status=AlleleStatus.OK, alt="C", dll=rng.random())
                writer.write(ScoredRecord(variants[1][0].record, (allele,)))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]
