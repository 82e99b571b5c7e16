"""Inputs, outputs and corpora that cannot be used are told in one line, and harm nothing."""

from __future__ import annotations

import gzip
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pysam
import pytest
from corpus_files import content_of, files_in, names_in, random_bases, refusal, write_fasta

from evo_data.corpus import Corpus, prepare
from evo_data.corpus import draft as draft_module
from evo_data.corpus import sources as sources_module
from evo_data.corpus.format import WORK
from evo_data.corpus.manifest import INTERVALS, MANIFEST, RECORDS, SEQUENCE
from evo_data.errors import CorpusError, OutputExistsError


def _bgzip_without_end(path: Path) -> None:
    write_fasta(path.with_suffix(".txt"), {"r": "ACGT" * 50_000})
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
    "junk.fa": (bytes(range(256)) * 9, "not a genome"),
    "junk2.fa": (b">" + bytes(range(256)) * 9, "no sequence can be used"),
    "zeros.fa": (b"\0" * 5000, "not a genome"),
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
    "text.fa": (b"hello\n", "not a genome"),
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
        message = refusal(path, output=tmp_path / "c")
        assert complaint in message
        assert str(path) in message
        return
    good = write_fasta(tmp_path / "in" / "a_good.fa", {"r": "ACGT" * 30})
    write_fasta(tmp_path / "in" / "z_good.fa", {"r": "ACCT" * 30})
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
    found = content_of(Corpus.open(tmp_path / "c"))
    assert found == {"a_good/r": "ACGT" * 30, "z_good/r": "ACCT" * 30}


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_what_a_damaged_file_held_is_forgotten(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(9)
    good, shared = random_bases(rng, 1001, "ACGTNn"), random_bases(rng, 2003, "ACGTacgtN")
    write_fasta(tmp_path / "in" / "a.fa", {"r": good})
    damaged = {"s": shared, "t": random_bases(rng, 3001), "u": random_bases(rng, 200_000)}
    text = write_fasta(tmp_path / "b", damaged).read_bytes()
    (tmp_path / "in" / "b.fa.gz").write_bytes(gzip.compress(text)[:-30])
    write_fasta(tmp_path / "in" / "c.fa", {"s": shared, "u": random_bases(rng, 70)})
    # So that the first record was written when the damage shows.
    monkeypatch.setattr(sources_module, "_CHUNK", 1000)
    monkeypatch.setattr(draft_module, "_PIECE", 500)
    prepare([tmp_path / "in"], tmp_path / "with", encoding=encoding, skip_unusable=True)  # type: ignore[arg-type]
    (tmp_path / "in" / "b.fa.gz").unlink()
    prepare([tmp_path / "in"], tmp_path / "without", encoding=encoding)  # type: ignore[arg-type]
    found, expected = files_in(tmp_path / "with"), files_in(tmp_path / "without")
    manifests = [json.loads(files.pop(MANIFEST)) for files in (found, expected)]
    assert found == expected
    for name in ("duplicates", "genomes", "totals", "files"):
        assert manifests[0][name] == manifests[1][name]


def test_taking_a_bad_file_away_keeps_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(5)
    for name in "acd":
        write_fasta(tmp_path / "in" / f"{name}.fa", {"r": random_bases(rng, 1001)})
    (tmp_path / "in" / "b.fa").write_bytes(b"")
    refusal(tmp_path / "in", output=tmp_path / "c", encoding="packed")
    (tmp_path / "in" / "b.fa").unlink()
    read = []
    original = draft_module.read_source
    monkeypatch.setattr(draft_module, "read_source", lambda p, *a: (read.append(p), original(p, *a))[1])  # fmt: skip
    prepare([tmp_path / "in"], tmp_path / "c", encoding="packed")
    assert read == []
    prepare([tmp_path / "in"], tmp_path / "fresh", encoding="packed")
    assert files_in(tmp_path / "c") == files_in(tmp_path / "fresh")


def test_what_is_not_there(tmp_path: Path) -> None:
    output = tmp_path / "c"
    assert "no such file or folder" in refusal(tmp_path / "x.fa", output=output)
    assert "both .bin and .idx" in refusal(tmp_path / "x.bin", output=output)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "readme.txt").write_text("x")
    assert "holds no genome" in refusal(tmp_path / "in", output=output)
    assert "no genomes given" in refusal(output=output)
    prepare([write_fasta(tmp_path / "a.fa", {"r": "ACGT"})], tmp_path / "made")
    assert "is a corpus already" in refusal(tmp_path / "made", output=output)
    os.mkfifo(tmp_path / "pipe.fa")
    assert "pipe or device" in refusal(tmp_path / "pipe.fa", output=output)
    assert not output.exists()


def test_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_fasta(tmp_path / "a.fa", {"r": "ACGT"})
    original = Path.open

    def refuse(self: Path, *args: object, **options: object) -> object:
        if self == path:
            raise PermissionError(13, "Permission denied", str(path))
        return original(self, *args, **options)  # type: ignore[call-overload]

    monkeypatch.setattr(Path, "open", refuse)
    assert "Permission denied" in refusal(path, output=tmp_path / "c")


def test_a_file_that_changes_while_it_is_read(tmp_path: Path) -> None:
    path = write_fasta(tmp_path / "a.fa", {"r": "ACGT" * 9, "s": "GGA"})

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
    with pytest.raises(CorpusError, match="not the manifest of a corpus"):
        prepare([genomes], folder, force=True)
    with pytest.raises(CorpusError, match="is a file"):
        prepare([genomes], folder / "thesis.tex")
    assert names_in(folder) == [MANIFEST, "thesis.tex"]


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
    assert names_in(output) == sorted([MANIFEST, RECORDS, SEQUENCE])
    assert [g.weight for g in Corpus.open(output).genomes] == [1, 1, 1]
    write_fasta(genomes / "fungi" / "c.fa", {"chr1": "ACGT" * 9})
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
        (write_fasta(tmp_path / "a.fa", {"r": "A"}), "is a file"),
    ):
        with pytest.raises(CorpusError, match=complaint):
            Corpus.open(path)
