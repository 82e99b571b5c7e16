"""The right sequences and names from every kind of file."""

from __future__ import annotations

import gzip
import os
import random
from pathlib import Path

import pysam
import pytest
from corpus_files import content_of, made, random_bases, refusal, write_fasta

from evo_data.corpus import Corpus, prepare, read_groups
from evo_data.corpus import sources as sources_module
from evo_data.corpus.sources import find_sources, read_source
from evo_data.errors import CorpusError, EvoDataError


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
    text = random_bases(random.Random(2), 200_000)
    plain = write_fasta(tmp_path / "plain.fa", {"r": text})
    (tmp_path / "zipped.fa.gz").write_bytes(gzip.compress(plain.read_bytes()))
    pysam.tabix_compress(str(plain), str(tmp_path / "blocked.fa.bgz"))
    for name in ("zipped.fa.gz", "blocked.fa.bgz"):
        assert made(tmp_path / name.split(".")[0], tmp_path / name) == {
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
    assert content_of(Corpus.open(tmp_path / "c")) == {"g/AB1.1": expected}
    assert [(r.record, r.reason) for r in manifest.left_out] == [("AB2.1", "no sequence")]
    assert made(tmp_path, tmp_path / "h.gbff.gz", force=True) == {"h/AB1.1": expected}
    cut = tmp_path / "cut.gbk"
    cut.write_text(good[: good.index("       61")])
    assert "damaged" in refusal(cut, output=tmp_path / "d")
    short = tmp_path / "short.gbk"
    short.write_text(good.replace(sequence[60:], sequence[60:-2]))
    assert "Expected sequence length" in refusal(short, output=tmp_path / "d")


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
    write_fasta(tmp_path / "a.fa", {"r": "ACGTA"})
    prepare(["."], "corpus", groups="parent")
    assert [genome.group for genome in Corpus.open("corpus").genomes] == [tmp_path.name]
    monkeypatch.chdir(tmp_path / "corpus")
    assert Corpus.open(".").num_bases == 5
    prepare([".."], ".", groups="parent")


@pytest.mark.parametrize("name", [b"bad\xff\xfename.fa", "é\u2028.fa".encode()])
def test_odd_file_names(name: bytes, tmp_path: Path) -> None:
    path = write_fasta(tmp_path / os.fsdecode(name), {"r": "ACGTA"})
    prepare([path], tmp_path / "c")
    assert Corpus.open(tmp_path / "c").genomes[0].file == str(path)


def test_genomes_of_one_name_are_told_apart(tmp_path: Path) -> None:
    rng = random.Random(3)
    for name in ("x/g.fa", "y/g.fna.gz", "y/g.fna", "z/h.fa"):
        path = write_fasta(tmp_path / name.removesuffix(".gz"), {"r": random_bases(rng, 50)})
        if name.endswith(".gz"):
            (tmp_path / name).write_bytes(gzip.compress(path.read_bytes()))
            write_fasta(path, {"r": random_bases(rng, 50)})
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
    assert "no group for a;" in refusal(genomes, output=tmp_path / "d", groups=groups)
    for text, complaint in (("a one\n", ":1: needs two columns"), ("a\tx\na\ty\n", ":2: a was in")):
        table.write_text(text)
        with pytest.raises(CorpusError, match=complaint):
            read_groups(table)
    with pytest.raises(EvoDataError, match="No such file"):
        read_groups(tmp_path / "absent.tsv")
