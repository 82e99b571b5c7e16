"""Making corpora: the right bases from every kind of file, and no way to end with half a corpus."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pysam
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_data.alphabet import reverse_complement
from evo_data.corpus import Corpus, Manifest, prepare, read_groups
from evo_data.corpus import draft as draft_module
from evo_data.corpus import sources as sources_module
from evo_data.corpus.format import WORK
from evo_data.corpus.growing import GrowingFiles
from evo_data.corpus.manifest import INTERVALS, MANIFEST, RECORDS, SEQUENCE
from evo_data.corpus.sources import find_sources, genome_name, read_source
from evo_data.errors import CorpusError, OutputExistsError


def _fasta(path: Path, records: dict[str, str], width: int = 60, end: str = "\n") -> Path:
    lines = []
    for name, sequence in records.items():
        lines.append(f">{name} some words")
        lines += [sequence[at : at + width] for at in range(0, len(sequence), width)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((end.join(lines) + end).encode())
    return path


def _random(rng: random.Random, n: int, letters: str = "ACGT") -> str:
    return "".join(rng.choices(letters, k=n))


def _content(corpus: Corpus) -> dict[str, str]:
    """Every record as genome/name and text."""
    return {
        f"{corpus.genomes[record.genome].name}/{record.name}": corpus.read(
            index, 0, record.length
        ).tobytes().decode()
        for index, record in enumerate(corpus.records)
    }  # fmt: skip


def _made(tmp_path: Path, *files: Path, **options: object) -> dict[str, str]:
    prepare(files, tmp_path / "corpus", **options)  # type: ignore[arg-type]
    return _content(Corpus.open(tmp_path / "corpus"))


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _message(*files: Path | str, output: Path, **options: object) -> str:
    with pytest.raises(CorpusError) as caught:
        prepare(files, output, **options)  # type: ignore[arg-type]
    assert not (output / MANIFEST).exists()
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.fixture
def genomes(tmp_path: Path) -> Path:
    """A folder with two groups, near strains, soft-masked bases, N runs and a duplicate."""
    rng = random.Random(0)
    folder = tmp_path / "genomes"
    strain = _random(rng, 5000)
    plasmid = _random(rng, 1001)
    near = list(strain)
    for at in rng.sample(range(5000), 10):
        near[at] = rng.choice("ACGT")
    _fasta(folder / "bacteria" / "a.fna", {"chr": strain, "plasmid": plasmid})
    _fasta(
        folder / "bacteria" / "b.fna",
        {"chr": "".join(near), "other": reverse_complement(plasmid.encode()).decode()},
    )
    masked = _random(rng, 300) + _random(rng, 45, "acgtn") + "NNNNNNN" + _random(rng, 648)
    _fasta(folder / "fungi" / "c.fa", {"chr1": masked, "chr2": _random(rng, 7)})
    return folder


# --- what is in a corpus ----------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_a_corpus(genomes: Path, tmp_path: Path, encoding: str) -> None:
    output = tmp_path / "corpus"
    manifest = prepare([genomes], output, encoding=encoding, groups="parent")  # type: ignore[arg-type]
    corpus = Corpus.open(output)
    assert _names(output) == sorted([MANIFEST, *manifest.files])
    assert (INTERVALS in manifest.files) == (encoding == "packed")
    corpus.verify()
    assert corpus.manifest == manifest
    texts = {
        f"{genome_name(path)}/{record.name}": record.letters.decode()
        for path in (genomes / "bacteria/a.fna", genomes / "bacteria/b.fna", genomes / "fungi/c.fa")
        for record in read_source(path, "fasta")
    }
    del texts["b/other"]
    assert _content(corpus) == texts
    for record in corpus.records:
        text = texts[f"{corpus.genomes[record.genome].name}/{record.name}"]
        assert record.sha256 == hashlib.sha256(text.upper().encode()).hexdigest()
    assert [(g.name, g.group, g.cluster, g.weight) for g in corpus.genomes] == [
        ("a", "bacteria", 0, 0.5),
        ("b", "bacteria", 0, 0.5),
        ("c", "fungi", 1, 1.0),
    ]
    fungus = corpus.genomes[2]
    masked = texts["c/chr1"]
    assert fungus.num_bases == 1007
    assert fungus.acgt_bases == 1007 - masked.upper().count("N")
    assert fungus.soft_masked_bases == 45
    assert list(corpus.records_of(2)) == [3, 4]
    assert corpus.groups == ["bacteria", "fungi"]
    assert corpus.num_bases == 5000 + 1001 + 5000 + 1007 == manifest.totals["bases"]
    assert manifest.totals["effective_bases"] == 5500.5 + fungus.acgt_bases
    (duplicate,) = manifest.duplicates
    assert (duplicate.record, duplicate.same_as, duplicate.strand, duplicate.kept) == (
        "other", 1, "-", False,
    )  # fmt: skip
    source = manifest.sources[2]
    assert source.sha256 == hashlib.sha256((genomes / "fungi/c.fa").read_bytes()).hexdigest()


@settings(max_examples=40, deadline=None)
@given(
    files=st.lists(
        st.lists(st.text("ACGTNacgtnUuRy", min_size=1, max_size=40), min_size=1, max_size=4),
        min_size=1,
        max_size=3,
    ),
    encoding=st.sampled_from(["bytes", "packed"]),
    width=st.integers(1, 50),
)
def test_any_bases_come_back(
    files: list[list[str]], encoding: str, width: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("any")
    expected = {}
    for f, sequences in enumerate(files):
        records = {f"r{i}": sequence for i, sequence in enumerate(sequences)}
        _fasta(folder / f"g{f}.fa", records, width)
        for name, sequence in records.items():
            if sum(c not in "Ry" for c in sequence) * 2 >= len(sequence):
                as_read = sequence.replace("U", "T").replace("u", "t")
                expected[f"g{f}/{name}"] = as_read.replace("R", "N").replace("y", "n")
    if not expected:
        return
    prepare([folder], folder / "c", encoding=encoding, duplicates="keep")  # type: ignore[arg-type]
    assert _content(Corpus.open(folder / "c")) == expected


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_reads_are_slices(genomes: Path, tmp_path: Path, encoding: str) -> None:
    prepare([genomes], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    corpus = Corpus.open(tmp_path / "c")
    rng = random.Random(1)
    for index, record in enumerate(corpus.records):
        whole = corpus.read(index, 0, record.length)
        for _ in range(30):
            start = rng.randrange(record.length + 1)
            stop = rng.randint(start, record.length)
            piece = corpus.read(index, start, stop)
            assert piece.tobytes() == whole[start:stop].tobytes()
            assert piece.flags.writeable and piece.flags.owndata
    for start, stop in ((-1, 3), (3, 2), (0, corpus.records[0].length + 1)):
        with pytest.raises(CorpusError, match="is not within record 0"):
            corpus.read(0, start, stop)
    with pytest.raises(CorpusError, match="no record 99"):
        corpus.read(99, 0, 1)


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_corpus_crosses_processes(
    genomes: Path, tmp_path: Path, encoding: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare([genomes], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    corpus = Corpus.open("c")
    expected = corpus.read(0, 10, 500).tobytes()
    monkeypatch.chdir("/")
    with get_context(method).Pool(2) as pool:
        found = pool.starmap(_read, [(corpus, 0, 10, 500)] * 4)
    assert found == [expected] * 4


def _read(corpus: Corpus, record: int, start: int, stop: int) -> bytes:
    return corpus.read(record, start, stop).tobytes()


def test_a_pickle_is_small_and_knows_its_corpus(genomes: Path, tmp_path: Path) -> None:
    prepare([genomes], tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    corpus.read(0, 0, 9)
    pickled = pickle.dumps(corpus)
    assert len(pickled) < 500
    assert pickle.loads(pickled).records == corpus.records
    prepare([genomes / "fungi"], tmp_path / "c", force=True)
    with pytest.raises(CorpusError, match="exchanged"):
        pickle.loads(pickled)


# --- kinds of files ---------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 23])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lenient_fasta(
    tmp_path: Path, chunk: int, end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources_module, "_CHUNK", chunk)
    lines = [
        "; a comment", "", ">one>two words > more", "ACGT", "", "AC GT\tA", ";>no name", "ac",
        ">empty", ">", "GGGG", "> no name either", "TTTA", "A" * 99, ">last", "T",
    ]  # fmt: skip
    for final in (end, ""):
        path = tmp_path / "a.fa"
        path.write_bytes((end.join(lines) + final).encode())
        assert [(r.name, r.letters.decode()) for r in read_source(path, "fasta")] == [
            ("one>two", "ACGTACGTAac"),
            ("empty", ""),
            ("", "GGGG"),
            ("", "TTTA" + "A" * 99),
            ("last", "T"),
        ]


def test_names_are_clean_and_unique(tmp_path: Path) -> None:
    path = tmp_path / "a.fa"
    path.write_bytes(b">x\x1c\x85y\nA\n>x\nACG\n>x\nGGT\n>x~2\nTTA\n>\nCCA\n> z\nAAG\n")
    manifest = prepare([path], tmp_path / "c")
    corpus = Corpus.open(tmp_path / "c")
    names = [record.name for record in corpus.records]
    assert names[1:] == ["x", "x~2", "x~2~2", "unnamed_5", "unnamed_6"]
    assert names[0].isprintable() and names[0].startswith("x_")
    assert [(r.record, r.name) for r in manifest.renamed] == [
        ("x", "x~2"), ("x~2", "x~2~2"), ("", "unnamed_5"), ("", "unnamed_6"),
    ]  # fmt: skip


def test_compressed_files(tmp_path: Path) -> None:
    text = _random(random.Random(2), 200_000)
    plain = _fasta(tmp_path / "plain.fa", {"r": text})
    (tmp_path / "zipped.fa.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pysam.tabix_compress(str(plain), str(tmp_path / "blocked.fa.bgz"))
    for name in ("zipped.fa.gz", "blocked.fa.bgz"):
        assert _made(tmp_path / name.split(".")[0], tmp_path / name) == {
            f"{name.split('.')[0]}/r": text
        }


def test_genbank_and_embl(project_root: Path, tmp_path: Path) -> None:
    sequence = "acgtnnryacgtacgtacgtacgtacgtacgtacgtacgtacgtacgtacgtacgtacgtacg"
    origin = f"        1 {' '.join(sequence[i : i + 10] for i in range(0, 60, 10))}\n       61 {sequence[60:]}\n"
    locus = "LOCUS       {0}                      {1} bp    DNA     linear   BCT 01-JAN-2000\nDEFINITION  d.\nACCESSION   {0}\nVERSION     {0}.1\nFEATURES             Location/Qualifiers\n     source          1..{1}\n"
    good = locus.format("AB1", len(sequence)) + f"ORIGIN\n{origin}//\n"
    contig = locus.format("AB2", 999) + "CONTIG      join(X:1..999)\n//\n"
    (tmp_path / "g.gbk").write_text(good + contig)
    (tmp_path / "h.gbff.gz").write_bytes(
        gzip.compress(("GBBCT1.SEQ  Genetic Sequence Data Bank\n\n" + good).encode())
    )
    expected = sequence.upper().translate(str.maketrans("RY", "NN"))
    manifest = prepare([tmp_path / "g.gbk"], tmp_path / "c")
    assert _content(Corpus.open(tmp_path / "c")) == {"g/AB1.1": expected}
    assert [(r.record, r.reason) for r in manifest.left_out] == [("AB2.1", "no sequence")]
    assert _made(tmp_path, tmp_path / "h.gbff.gz", force=True) == {"h/AB1.1": expected}
    cut = tmp_path / "cut.gbk"
    cut.write_text(good[: good.index("       61")])
    assert "damaged" in _message(cut, output=tmp_path / "d")
    short = tmp_path / "short.gbk"
    short.write_text(good.replace(sequence[60:], sequence[60:-2]))
    assert "Expected sequence length" in _message(short, output=tmp_path / "d")


def test_what_folders_are_searched_for(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("b.fa", "a.FNA.gz", "sub/c.gbk", ".hidden.fa", ".git/d.fa", "notes.md", "p.faa"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(">x\nA\n")
    (folder / "sub" / "up").symlink_to(folder)
    found = [item.path.relative_to(folder).as_posix() for item in find_sources([folder])]
    assert found == ["a.FNA.gz", "b.fa", "sub/c.gbk"]
    given = [folder / "b.fa", folder, folder / "sub" / ".." / "b.fa", folder / "notes.md"]
    found = [item.path.name for item in find_sources(given)]
    assert found == ["b.fa", "a.FNA.gz", "c.gbk", "notes.md"]


def test_the_folder_at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    _fasta(tmp_path / "a.fa", {"r": "ACGTA"})
    prepare(["."], "corpus", groups="parent")
    assert [genome.group for genome in Corpus.open("corpus").genomes] == [tmp_path.name]
    monkeypatch.chdir(tmp_path / "corpus")
    assert Corpus.open(".").num_bases == 5
    prepare([".."], ".", groups="parent")


@pytest.mark.parametrize("name", [b"bad\xff\xfename.fa", "é\u2028.fa".encode()])
def test_odd_file_names(name: bytes, tmp_path: Path) -> None:
    path = _fasta(tmp_path / os.fsdecode(name), {"r": "ACGTA"})
    prepare([path], tmp_path / "c")
    assert Corpus.open(tmp_path / "c").genomes[0].file == str(path)


def test_genomes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rng = random.Random(3)
    for name in ("x/g.fa", "y/g.fna.gz", "y/g.fna", "z/h.fa"):
        path = _fasta(tmp_path / name.removesuffix(".gz"), {"r": _random(rng, 50)})
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
            _fasta(path, {"r": _random(rng, 50)})
    prepare([tmp_path], tmp_path / "c")
    names = [genome.name for genome in Corpus.open(tmp_path / "c").genomes]
    assert names == ["x/g", "y/g", "y/g~2", "h"]


def test_groups_from_a_table(genomes: Path, tmp_path: Path) -> None:
    table = tmp_path / "groups.tsv"
    table.write_text(
        "# genome\tgroup\r\na\tone\r\nb.fna\ttwo words\r\n\r\nc\tone\r\nelse\tthree\r\n"
    )
    groups = read_groups(table)
    prepare([genomes], tmp_path / "c", groups=groups)
    assert [g.group for g in Corpus.open(tmp_path / "c").genomes] == ["one", "two words", "one"]
    del groups["a"]
    assert "no group for a;" in _message(genomes, output=tmp_path / "d", groups=groups)
    for text, complaint in (("a one\n", ":1: needs two columns"), ("a\tx\na\ty\n", ":2: a was in")):
        table.write_text(text)
        with pytest.raises(CorpusError, match=complaint):
            read_groups(table)
    with pytest.raises(CorpusError, match="No such file"):
        read_groups(tmp_path / "absent.tsv")


# --- duplicates -------------------------------------------------------------------------------------


def test_duplicates(tmp_path: Path) -> None:
    rng = random.Random(4)
    one, two = _random(rng, 100), _random(rng, 100)
    a = _fasta(tmp_path / "a.fa", {"one": one, "again": one.lower()})
    b = _fasta(tmp_path / "b.fa", {"turned": reverse_complement(one.encode()).decode()})
    c = _fasta(tmp_path / "c.fa", {"two": two, "part": two[:99]})
    manifest = prepare([a, b, c], tmp_path / "drop")
    corpus = Corpus.open(tmp_path / "drop")
    assert list(_content(corpus)) == ["a/one", "c/two", "c/part"]
    assert [source.genome for source in manifest.sources] == [0, None, 1]
    assert [(d.record, d.same_as, d.strand) for d in manifest.duplicates] == [
        ("again", 0, "+"),
        ("turned", 0, "-"),
    ]
    manifest = prepare([a, b, c], tmp_path / "keep", duplicates="keep")
    assert len(Corpus.open(tmp_path / "keep").records) == 5
    assert [d.kept for d in manifest.duplicates] == [True, True]
    message = _message(a, b, c, output=tmp_path / "error", duplicates="error")
    assert f"{a}: record 'again' is record 'one' of {a};" in message
    message = _message(b, a, output=tmp_path / "error2", duplicates="error")
    assert f"'one' is the reverse complement of record 'turned' of {b};" in message


def test_no_kmer_reaches_from_one_record_into_the_next(tmp_path: Path) -> None:
    rng = random.Random(10)
    records = [_random(rng, 35) for _ in range(2000)]
    for name in "ab":
        _fasta(tmp_path / f"{name}.fa", {f"r{i}": record for i, record in enumerate(records)})
        rng.shuffle(records)
    files = [tmp_path / "a.fa", tmp_path / "b.fa"]
    prepare(files, tmp_path / "c", duplicates="keep")
    assert [genome.weight for genome in Corpus.open(tmp_path / "c").genomes] == [0.5, 0.5]


# --- what cannot be used ----------------------------------------------------------------------------


def _bgzip_without_end(path: Path) -> None:
    _fasta(path.with_suffix(".txt"), {"r": "ACGT" * 50_000})
    pysam.tabix_compress(str(path.with_suffix(".txt")), str(path), force=True)
    path.write_bytes(path.read_bytes()[:-28])


_RAW = b">r\n" + b"ACGTTGCA" * 40_000
_ZIPPED = gzip.compress(np.random.default_rng(0).bytes(100_000).hex().encode())
BAD: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty.fa": (b"", "the file is empty"),
    "blank.fa": (b"\n\n  \r\n", "the file is empty"),
    "empty.fa.gz": (gzip.compress(b""), "the file is empty"),
    "names.fa": (b">a\n>b\n", "a: no sequence"),
    "cut.fa.gz": (gzip.compress(_RAW)[:-20], "truncated"),
    "damaged.fa.gz": (
        (zipped := gzip.compress(_RAW))[:-6] + bytes([zipped[-6] ^ 1]) + zipped[-5:],
        "damaged compressed data",
    ),
    "behind.fa.gz": (gzip.compress(_RAW) + b"junk", "damaged compressed data"),
    "cut.fa.bgz": (_bgzip_without_end, "end-of-file block is missing"),
    "stub.fa.gz": (b"\x1f\x8b", "truncated"),
    "junk.fa": (bytes(range(256)) * 9, "no genome"),
    "junk2.fa": (b">" + bytes(range(256)) * 9, "no sequence can be used"),
    "zeros.fa": (b"\0" * 5000, "no genome"),
    "nul.fa": (b">a\n" + b"\0" * 5000, "binary data"),
    "protein.fa": (b">p\nMSILFELQPEWLFIEQPLLKMDE\n", "not nucleotides"),
    "mild_protein.fa": (b">p\nMKTAYNRHDSSWKVYMMKSW\n", "a protein?"),
    "aligned.fa": (b">p\nACG----ACGT---\n", "'-'"),
    "reads.fa": (b"@r\nACGT\n+\nIIII\n", "looks like FASTQ"),
    "calls.fa": (b"##fileformat=VCFv4.2\n", "looks like VCF"),
    "page.fa": (b"<!DOCTYPE html>", "HTML"),
    "wide.fa": (">a\nACGT\n".encode("utf-16"), "UTF-16"),
    "lfs.fa": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "squeezed.fa": (b"BZh91AY", "bzip2"),
    "text.fa": (b"hello\n", "no genome"),
    "locus.gb": (b"LOCUS       X\n", "GenBank"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("others", [False, True])
def test_bad_files(name: str, others: bool, tmp_path: Path) -> None:
    content, complaint = BAD[name]
    path = tmp_path / "in" / name
    path.parent.mkdir()
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    if not others:
        message = _message(path, output=tmp_path / "c")
        assert complaint in message
        assert str(path) in message
        return
    good = _fasta(tmp_path / "in" / "a_good.fa", {"r": "ACGT" * 30})
    _fasta(tmp_path / "in" / "z_good.fa", {"r": "ACCT" * 30})
    files = [good, path, tmp_path / "in" / "z_good.fa"]
    try:
        manifest = prepare(files, tmp_path / "c")
    except CorpusError as error:
        assert str(error).startswith("1 of 3 files cannot be used")
        assert complaint in str(error)
        assert (tmp_path / "c" / WORK).is_dir()
        with pytest.raises(CorpusError, match="was not finished"):
            Corpus.open(tmp_path / "c")
        manifest = prepare(files, tmp_path / "c", skip_unusable=True)
        assert [u.file for u in manifest.unusable] == [str(path)]
        # The same again is done already; without consent it is an error still.
        assert prepare(files, tmp_path / "c", skip_unusable=True) == manifest
        with pytest.raises(OutputExistsError):
            prepare(files, tmp_path / "c")
    else:
        assert manifest.left_out[0].file == str(path)
    found = _content(Corpus.open(tmp_path / "c"))
    assert found == {"a_good/r": "ACGT" * 30, "z_good/r": "ACCT" * 30}


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_what_a_damaged_file_held_is_forgotten(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(9)
    good, shared = _random(rng, 1001, "ACGTNn"), _random(rng, 2003, "ACGTacgtN")
    _fasta(tmp_path / "in" / "a.fa", {"r": good})
    damaged = {"s": shared, "t": _random(rng, 3001), "u": _random(rng, 200_000)}
    text = _fasta(tmp_path / "b", damaged).read_bytes()
    (tmp_path / "in" / "b.fa.gz").write_bytes(gzip.compress(text)[:-30])
    _fasta(tmp_path / "in" / "c.fa", {"s": shared, "u": _random(rng, 70)})
    # So that the first record was written when the damage shows.
    monkeypatch.setattr(sources_module, "_CHUNK", 1000)
    monkeypatch.setattr(draft_module, "_PIECE", 500)
    prepare([tmp_path / "in"], tmp_path / "with", encoding=encoding, skip_unusable=True)  # type: ignore[arg-type]
    (tmp_path / "in" / "b.fa.gz").unlink()
    prepare([tmp_path / "in"], tmp_path / "without", encoding=encoding)  # type: ignore[arg-type]
    found, expected = _files(tmp_path / "with"), _files(tmp_path / "without")
    manifests = [json.loads(files.pop(MANIFEST)) for files in (found, expected)]
    assert found == expected
    for name in ("duplicates", "genomes", "totals", "files"):
        assert manifests[0][name] == manifests[1][name]


def test_taking_a_bad_file_away_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    for name in "acd":
        _fasta(tmp_path / "in" / f"{name}.fa", {"r": _random(rng, 1001)})
    (tmp_path / "in" / "b.fa").write_bytes(b"")
    _message(tmp_path / "in", output=tmp_path / "c", encoding="packed")
    (tmp_path / "in" / "b.fa").unlink()
    read = []
    original = draft_module.read_source
    monkeypatch.setattr(draft_module, "read_source", lambda p, *a: (read.append(p), original(p, *a))[1])  # fmt: skip
    prepare([tmp_path / "in"], tmp_path / "c", encoding="packed")
    assert read == []
    prepare([tmp_path / "in"], tmp_path / "fresh", encoding="packed")
    assert _files(tmp_path / "c") == _files(tmp_path / "fresh")


def test_what_is_not_there(tmp_path: Path) -> None:
    output = tmp_path / "c"
    assert "no such file or folder" in _message(tmp_path / "x.fa", output=output)
    assert "both .bin and .idx" in _message(tmp_path / "x.bin", output=output)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("x")
    assert "holds no genome" in _message(tmp_path / "in", output=output)
    assert "no genomes given" in _message(output=output)
    prepare([_fasta(tmp_path / "a.fa", {"r": "ACGT"})], tmp_path / "made")
    assert "is a corpus already" in _message(tmp_path / "made", output=output)
    os.mkfifo(tmp_path / "pipe.fa")
    assert "pipe or device" in _message(tmp_path / "pipe.fa", output=output)
    assert not output.exists()


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = _fasta(tmp_path / "a.fa", {"r": "ACGT"})
    original = Path.open

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return original(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in _message(path, output=tmp_path / "c")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = _fasta(tmp_path / "a.fa", {"r": "ACGT" * 9, "s": "GGA"})

    def grow(done: int, total: int, file: str) -> None:
        with path.open("a") as handle:
            handle.write("ACC\n")

    with pytest.raises(CorpusError, match="was changed while it was read"):
        prepare([path], tmp_path / "c", progress=grow)
    prepare([path], tmp_path / "c")


def test_outputs_that_are_something_else(genomes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "home"
    folder.mkdir()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(CorpusError, match="holds other files"):
        prepare([genomes], folder, force=True)
    (folder / MANIFEST).write_text('{"name": "a web app"}')
    with pytest.raises(CorpusError, match="is not that of a corpus"):
        prepare([genomes], folder, force=True)
    with pytest.raises(CorpusError, match="is a file"):
        prepare([genomes], folder / "thesis.tex")
    assert _names(folder) == [MANIFEST, "thesis.tex"]


def test_an_existing_corpus(genomes: Path, tmp_path: Path) -> None:
    output = tmp_path / "c"
    manifest = prepare([genomes], output)
    before = {path.name: path.stat().st_mtime_ns for path in output.iterdir()}
    assert prepare([genomes], output) == manifest
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    for options in ({"encoding": "packed"}, {"groups": "parent"}, {"duplicates": "keep"}, {"cluster": False}):  # fmt: skip
        with pytest.raises(OutputExistsError):
            prepare([genomes], output, **options)  # type: ignore[arg-type]
    with pytest.raises(OutputExistsError):
        prepare([genomes / "fungi"], output)
    assert {path.name: path.stat().st_mtime_ns for path in output.iterdir()} == before
    prepare([genomes], output, encoding="packed", force=True)
    assert (output / INTERVALS).exists()
    prepare([genomes], output, force=True, cluster=False)
    assert _names(output) == sorted([MANIFEST, RECORDS, SEQUENCE])
    assert [g.weight for g in Corpus.open(output).genomes] == [1, 1, 1]
    _fasta(genomes / "fungi" / "c.fa", {"chr1": "ACGT" * 9})
    with pytest.raises(OutputExistsError):
        prepare([genomes], output, cluster=False)


def test_a_finished_corpus_may_be_read_only(
    genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = prepare([genomes], tmp_path / "c")

    def refuse(self: Path, *args: object, **options: object) -> None:
        raise PermissionError(30, "Read-only file system", str(self))

    monkeypatch.setattr(Path, "mkdir", refuse)
    assert prepare([genomes], tmp_path / "c") == manifest
    with pytest.raises(OSError, match="Read-only"):
        prepare([genomes], tmp_path / "other")


def test_the_digest_is_of_the_content(genomes: Path, tmp_path: Path) -> None:
    def digest(folder: Path, **options: object) -> str:
        prepare([folder], tmp_path / "c", force=True, **options)  # type: ignore[arg-type]
        return Corpus.open(tmp_path / "c").digest

    first = digest(genomes, groups="parent")
    shutil.copytree(genomes, tmp_path / "moved")
    assert digest(tmp_path / "moved", groups="parent") == first
    others = [digest(genomes), digest(genomes, groups="parent", cluster=False)]
    path = tmp_path / "moved" / "fungi" / "c.fa"
    path.write_bytes(path.read_bytes().replace(b"NNN", b"nnn", 1))
    others.append(digest(tmp_path / "moved", groups="parent"))
    assert len({first, *others}) == 4


@pytest.mark.parametrize("name", [SEQUENCE, RECORDS, INTERVALS, MANIFEST])
@pytest.mark.parametrize("harm", ["cut", "gone", "flipped"])
def test_a_damaged_corpus(name: str, harm: str, genomes: Path, tmp_path: Path) -> None:
    output = tmp_path / "c"
    prepare([genomes], output, encoding="packed")
    path = output / name
    data = path.read_bytes()
    if harm == "gone":
        path.unlink()
    elif harm == "cut":
        path.write_bytes(data[:-1] if name != MANIFEST else data[: len(data) // 2])
    else:
        path.write_bytes(data[:50] + bytes([data[50] ^ 1]) + data[51:])
    with pytest.raises(CorpusError) as caught:
        corpus = Corpus.open(output)
        corpus.verify()
        assert name == MANIFEST  # nothing vouches for the manifest itself
        raise CorpusError(str(output))
    assert str(output) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_later_version_is_refused(genomes: Path, tmp_path: Path) -> None:
    prepare([genomes], tmp_path / "c")
    path = tmp_path / "c" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(CorpusError, match="format version 2, this program reads 1"):
        Corpus.open(tmp_path / "c")


def test_paths_that_are_no_corpus(tmp_path: Path) -> None:
    for path, complaint in (
        (tmp_path / "none", "no such corpus"),
        (tmp_path, "no corpus"),
        (_fasta(tmp_path / "a.fa", {"r": "A"}), "is a file"),
    ):
        with pytest.raises(CorpusError, match=complaint):
            Corpus.open(path)


# --- being stopped ----------------------------------------------------------------------------------


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _prepare_dying(
    genomes: Path, output: Path, encoding: str, at: int, force: bool, synced: bool
) -> None:
    """Prepare, but die as by kill -9 at the `at`th step that touches the disk."""
    left = at

    def step() -> None:
        nonlocal left
        left -= 1
        if left < 0:
            os._exit(9)

    def dying(function: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*args: object, **options: object) -> object:
            step()
            return function(*args, **options)

        return wrapped

    if synced:
        draft_module._SYNC_BYTES = 0
    GrowingFiles.append = dying(GrowingFiles.append)  # type: ignore[method-assign,assignment]
    os.fsync = dying(os.fsync)
    os.replace = dying(os.replace)
    Path.replace = dying(Path.replace)  # type: ignore[method-assign,assignment]
    os.unlink = dying(os.unlink)
    shutil.rmtree = dying(shutil.rmtree)  # type: ignore[assignment]
    prepare([genomes], output, encoding=encoding, force=force)  # type: ignore[arg-type]
    os._exit(0)


@pytest.mark.parametrize(
    ("encoding", "synced", "stride"),
    [
        ("packed", True, 5),
        ("bytes", False, 4),
        *(
            pytest.param(encoding, synced, 1, marks=pytest.mark.slow)
            for encoding in ("bytes", "packed")
            for synced in (False, True)
        ),
    ],
)
def test_killed_anywhere_it_goes_on_to_the_same_corpus(
    genomes: Path, tmp_path: Path, encoding: str, synced: bool, stride: int
) -> None:
    prepare([genomes], tmp_path / "whole", encoding=encoding)  # type: ignore[arg-type]
    expected = _files(tmp_path / "whole")
    at, code = 0, 9
    while code == 9:
        output = tmp_path / f"{at}"
        process = get_context("fork").Process(
            target=_prepare_dying, args=(genomes, output, encoding, at, False, synced)
        )
        process.start()
        process.join()
        code = process.exitcode
        if (output / MANIFEST).exists():
            assert _files_only(output) == expected
        elif output.exists():
            with pytest.raises(CorpusError):
                Corpus.open(output)
        prepare([genomes], output, encoding=encoding)  # type: ignore[arg-type]
        assert _files(output) == expected, at
        at += stride
    assert code == 0
    assert at > 20


def _files_only(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_killed_while_replacing_it_is_the_old_or_the_new_corpus_or_none(
    genomes: Path, tmp_path: Path
) -> None:
    prepare([genomes], tmp_path / "new", encoding="bytes")
    prepare([genomes / "fungi"], tmp_path / "old", encoding="packed")
    new, old = _files(tmp_path / "new"), _files(tmp_path / "old")
    seen = set()
    at, code = 0, 9
    while code == 9:
        # Most steps only add to the work folder; the last ones exchange the corpora.
        at += 1 if at >= 20 else 5
        output = tmp_path / f"{at}"
        shutil.copytree(tmp_path / "old", output)
        process = get_context("fork").Process(
            target=_prepare_dying, args=(genomes, output, "bytes", at, True, False)
        )
        process.start()
        process.join()
        code = process.exitcode
        if (output / MANIFEST).exists():
            found = _files_only(output)
            assert found in (old, new)
            seen.add("old" if found == old else "new")
            Corpus.open(output).verify()
        else:
            seen.add("none")
            with pytest.raises(CorpusError, match="was not finished"):
                Corpus.open(output)
        prepare([genomes], output, force=True)
        assert _files(output) == new
    assert seen == {"old", "new", "none"}


def test_finished_sources_are_not_read_again(
    genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "c"
    original = draft_module.read_source
    read: list[str] = []

    def recording(path: Path, *args: object) -> object:
        read.append(path.name)
        if path.name == stop_at:
            raise KeyboardInterrupt
        return original(path, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(draft_module, "read_source", recording)
    stop_at = "c.fa"
    with pytest.raises(KeyboardInterrupt):
        prepare([genomes], output)
    assert read == ["a.fna", "b.fna", "c.fa"]
    stop_at = ""
    read.clear()
    # A source that changed, and what stands behind it, is read again.
    b = genomes / "bacteria" / "b.fna"
    b.write_bytes(b.read_bytes().replace(b">chr", b">new"))
    prepare([genomes], output)
    assert read == ["b.fna", "c.fa"]
    prepare([genomes], tmp_path / "fresh")
    assert _files(output) == _files(tmp_path / "fresh")


@pytest.mark.parametrize("harm", ["flip", "cut", "journal", "records", "other settings"])
@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_a_damaged_beginning_is_made_again(
    harm: str, encoding: str, genomes: Path, tmp_path: Path
) -> None:
    output, work = tmp_path / "c", tmp_path / "c" / WORK
    bad = genomes / "fungi" / "d.fa"
    bad.write_bytes(b"")
    _message(genomes, output=output, encoding=encoding)
    bad.unlink()
    if harm == "flip":
        data = bytearray((work / SEQUENCE).read_bytes())
        data[1000] ^= 2
        (work / SEQUENCE).write_bytes(data)
    elif harm == "cut":
        (work / SEQUENCE).write_bytes((work / SEQUENCE).read_bytes()[:1501])
    elif harm == "journal":
        text = (work / "journal.jsonl").read_text()
        (work / "journal.jsonl").write_text(text[: len(text) // 2])
    elif harm == "records":
        (work / RECORDS).write_bytes(b"\xff\xfe")
    options = {"duplicates": "keep"} if harm == "other settings" else {}
    prepare([genomes], output, encoding=encoding, **options)  # type: ignore[arg-type]
    prepare([genomes], tmp_path / "fresh", encoding=encoding, **options)  # type: ignore[arg-type]
    assert _files(output) == _files(tmp_path / "fresh")


def test_two_at_once(genomes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "c"
    seen = []

    def meanwhile(done: int, total: int, file: str) -> None:
        if not seen:
            process = get_context("fork").Process(target=_second, args=(genomes, output))
            process.start()
            process.join()
            seen.append(process.exitcode)

    prepare([genomes], output, progress=meanwhile)
    assert seen == [7]
    Corpus.open(output).verify()


def _second(genomes: Path, output: Path) -> None:
    try:
        prepare([genomes], output)
    except CorpusError as error:
        os._exit(7 if "another process" in str(error) else 1)
    os._exit(0)


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_a_full_disk(encoding: str, genomes: Path, tmp_path: Path) -> None:
    process = get_context("fork").Process(
        target=_with_file_limit, args=(genomes, tmp_path / "c", encoding)
    )
    process.start()
    process.join()
    assert process.exitcode == 7
    prepare([genomes], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    prepare([genomes], tmp_path / "fresh", encoding=encoding)  # type: ignore[arg-type]
    assert _files(tmp_path / "c") == _files(tmp_path / "fresh")


def _with_file_limit(genomes: Path, output: Path, encoding: str) -> None:
    # A file that may not grow fails as one on a full disk does (EFBIG instead of ENOSPC).
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    try:
        prepare([genomes], output, encoding=encoding)  # type: ignore[arg-type]
    except OSError as error:
        os._exit(7 if error.filename == str(output) else 8)
    os._exit(0)


@pytest.mark.slow
def test_kill_minus_nine_at_random_times(tmp_path: Path) -> None:
    rng = random.Random(6)
    for index in range(12):
        masked = _random(rng, 1_000_001, "acgt") + "N" * 10
        text = _random(rng, 1_000_003) + masked
        _fasta(tmp_path / "in" / f"g{index:02d}.fa", {"r": text})
    prepare([tmp_path / "in"], tmp_path / "whole", encoding="packed")
    expected = _files(tmp_path / "whole")
    code = (
        "import sys; from evo_data.corpus import draft, prepare; draft._SYNC_BYTES = 1 << 22;"
        "prepare([sys.argv[1]], sys.argv[2], encoding='packed')"
    )
    output = tmp_path / "c"
    kills = 0
    while True:
        process = subprocess.Popen([sys.executable, "-c", code, tmp_path / "in", output])
        try:
            assert process.wait(0.1 + rng.uniform(0.03, 0.06) * kills) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            kills += 1
            with pytest.raises(CorpusError):
                Corpus.open(output)
            assert len(list(output.rglob("*.tmp"))) <= 1
    assert kills > 2
    assert _files(output) == expected


def test_progress_reaches_the_end(genomes: Path, tmp_path: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    prepare([genomes], tmp_path / "c", progress=lambda *state: seen.append(state))
    total = sum(path.stat().st_size for path in genomes.rglob("*.f*a"))
    assert {state[1] for state in seen} == {total}
    assert [state[0] for state in seen] == sorted(state[0] for state in seen)
    assert seen[-1][0] == total
    assert {state[2] for state in seen} == {"a.fna", "b.fna", "c.fa"}


def test_one_record_at_a_time_is_in_memory(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    path = tmp_path / "a.fa"
    with path.open("wb") as handle:
        for index in range(40):
            handle.write(b">r%d\n" % index)
            handle.write(np.frombuffer(b"ACGT", np.uint8)[rng.integers(0, 4, 1_000_000)].tobytes())
            handle.write(b"\n")
    code = (
        "import resource, sys; from evo_data.corpus import prepare;"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024;"
        "before = peak(); prepare([sys.argv[1]], sys.argv[2], encoding='packed'); print(peak() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, path, tmp_path / "c"], capture_output=True, text=True
    )
    # A record of 1 MB, chunks of 8 MiB, and blocks of the packing, which take 4 MiB several times.
    assert float(done.stdout) < 120, done


def test_time_of_many_records(tmp_path: Path) -> None:
    rng = random.Random(8)
    text = "".join(f">c{i}\n{_random(rng, 40)}\n" for i in range(5_000))
    (tmp_path / "a.fa").write_text(text)
    started = time.perf_counter()
    prepare([tmp_path / "a.fa"], tmp_path / "c", encoding="packed")
    assert len(Corpus.open(tmp_path / "c").records) == 5_000
    # Half a second here; a step that takes longer with every record would take many times that.
    assert time.perf_counter() - started < 10


def test_manifest_passes_over_unknown_keys(genomes: Path, tmp_path: Path) -> None:
    manifest = prepare([genomes], tmp_path / "c")
    content = json.loads(manifest.dumps())
    content["later"] = 1
    content["genomes"][0]["later"] = 1
    assert Manifest.loads(json.dumps(content), tmp_path) == manifest
