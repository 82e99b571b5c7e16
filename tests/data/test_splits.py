"""Splits hold out what they say, never a base twice, and survive their file."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_data.alphabet import reverse_complement
from evo_data.corpus import Corpus
from evo_data.errors import EvoDataError, OutputExistsError
from evo_data.leakage import leakage_report
from evo_data.split_manifest import read_split, write_split
from evo_data.splits import (
    Segment,
    Split,
    SplitError,
    num_bases,
    split_by_bed,
    split_by_blocks,
    split_by_clusters,
    split_by_contigs,
    split_by_genomes,
    whole_records,
    without_gaps,
)


def random_bases(seed: int, length: int) -> bytes:
    return bytes(np.random.default_rng(seed).choice(np.frombuffer(b"ACGT", np.uint8), length))


@pytest.fixture
def corpus(make_corpus: Any) -> Corpus:
    made: Corpus = make_corpus(
        [random_bases(1, 300), random_bases(2, 50)],
        [random_bases(3, 200)],
        [random_bases(4, 100), b""],
        groups=["bacteria", "phage", "phage"],
    )
    return made


def check_disjoint(corpus: Corpus, split: Split, covered: int) -> None:
    marks = [np.zeros(record.length, int) for record in corpus.records]
    for segments in split.parts().values():
        for record, start, stop in segments:
            marks[record][start:stop] += 1
    assert max((int(mark.max()) for mark in marks if mark.size), default=0) == 1
    assert sum(int(mark.sum()) for mark in marks) == covered


def test_by_contigs(corpus: Corpus) -> None:
    split = split_by_contigs(corpus, val=["g0r1"], test=["g2/*"])
    assert split.val == (Segment(1, 0, 50),)
    assert split.test == (Segment(3, 0, 100), Segment(4, 0, 0))
    assert split.train == (Segment(0, 0, 300), Segment(2, 0, 200))
    with pytest.raises(SplitError, match="no record is called 'chr1'; there are g0r0, "):
        split_by_contigs(corpus, val=["chr1"])
    with pytest.raises(SplitError, match="g0r1 is in val and in test"):
        split_by_contigs(corpus, val=["g0r1"], test=["g0*"])
    with pytest.raises(SplitError, match="nothing to train on"):
        split_by_contigs(corpus, val=["*"])
    with pytest.raises(SplitError, match="nothing to validate on"):
        split_by_contigs(corpus, val=["g2r1"])  # a record without bases


def test_a_name_is_a_name_before_it_is_a_pattern(make_corpus: Any) -> None:
    corpus = make_corpus([b"ACGT", b"ACGT"])
    corpus.records[0] = corpus.records[0]._replace(name="chr[1]")
    corpus.records[1] = corpus.records[1]._replace(name="chr1")
    assert split_by_contigs(corpus, val=["chr[1]"]).val == (Segment(0, 0, 4),)


def test_by_genomes_and_groups(corpus: Corpus) -> None:
    assert {s.record for s in split_by_genomes(corpus, val=["g1"], test=["g2"]).val} == {2}
    assert {s.record for s in split_by_genomes(corpus, val=["phage"]).val} == {2, 3, 4}
    with pytest.raises(SplitError, match="no genome or group is called 'virus'"):
        split_by_genomes(corpus, val=["virus"])


def test_by_bed(corpus: Corpus, tmp_path: Path) -> None:
    val = tmp_path / "val.bed"
    val.write_text(
        "track name=x\n#c\ng0r0\t10\t20\tgene\ng0r0\t20\t30\ng0r0 15 18\n\ng1r0\t0\t200\n"
    )
    test = tmp_path / "test.bed.gz"
    test.write_bytes(gzip.compress(b"g0/g0r0\t100\t150\n"))
    split = split_by_bed(corpus, val=val, test=test, margin=5)
    assert split.val == (Segment(0, 10, 30), Segment(2, 0, 200))
    assert split.test == (Segment(0, 100, 150),)
    assert split.train == (
        Segment(0, 0, 5),
        Segment(0, 35, 95),
        Segment(0, 155, 300),
        Segment(1, 0, 50),
        Segment(3, 0, 100),
    )
    check_disjoint(corpus, split, 650 - 4 * 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no interval"),
        ("g0r0\t10\n", "line 1 is no BED line"),
        ("g0r0\tx\t10\n", "line 1 is no BED line"),
        ("\nchrM\t1\t2\n", "line 2: no record is called chrM"),
        ("g0r0\t10\t301\n", r"\[10, 301\) is not within g0r0 of 300 bases"),
        ("g0r0\t10\t10\n", r"\[10, 10\)"),
    ],
)
def test_bad_bed(corpus: Corpus, tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "x.bed"
    path.write_text(text)
    with pytest.raises(EvoDataError, match=message):
        split_by_bed(corpus, val=path)


def test_bed_names_that_recur_need_their_genome(make_corpus: Any, tmp_path: Path) -> None:
    corpus = make_corpus([b"ACGT" * 5], [b"ACGT" * 5])
    for at in (0, 1):
        corpus.records[at] = corpus.records[at]._replace(name="chr1")
    path = tmp_path / "x.bed"
    path.write_text("chr1\t0\t5\n")
    with pytest.raises(SplitError, match="2 records are called chr1; write genome/record"):
        split_by_bed(corpus, val=path)
    path.write_text("g1/chr1\t0\t5\n")
    assert split_by_bed(corpus, val=path).val == (Segment(1, 0, 5),)
    with pytest.raises(SplitError, match=r"base 0 is in (val|test) and again in (val|test)"):
        split_by_bed(corpus, val=path, test=path)


def test_by_clusters_keeps_them_whole(make_corpus: Any) -> None:
    rng = np.random.default_rng(0)
    for trial in range(30):
        count = int(rng.integers(3, 40))
        clusters = rng.integers(0, max(3, count // 2), count).tolist()
        if len(set(clusters)) < 4:
            continue
        corpus = make_corpus(*([b"A" * int(rng.integers(1, 100))] for _ in range(count)), clusters=clusters)  # fmt: skip
        split = split_by_clusters(corpus, val_fraction=0.2, test_fraction=0.1, seed=trial)
        check_disjoint(corpus, split, corpus.num_bases)
        of_part = [
            {corpus.genomes[corpus.records[s.record].genome].cluster for s in segments}
            for segments in split.parts().values()
        ]
        assert not of_part[0] & of_part[1] and not of_part[0] & of_part[2] and not of_part[1] & of_part[2]  # fmt: skip
        assert all(of_part)
    with pytest.raises(SplitError, match="1 cluster"):
        split_by_clusters(make_corpus([b"ACGT"]), val_fraction=0.1)


@pytest.mark.parametrize("lengths", [(1000,), (21,), (500, 30, 1, 0, 400), (20, 20, 20)])
@pytest.mark.parametrize(("val", "test"), [(0.1, 0.0), (0.3, 0.2), (0.0, 0.05)])
def test_by_blocks(make_corpus: Any, lengths: tuple[int, ...], val: float, test: float) -> None:
    corpus = make_corpus([b"A" * length for length in lengths])
    split = split_by_blocks(corpus, val_fraction=val, test_fraction=test, block=50, seed=3)
    check_disjoint(corpus, split, corpus.num_bases)
    for share, segments in ((val, split.val), (test, split.test)):
        assert share * 0.5 <= num_bases(segments) / corpus.num_bases <= share * 2 + 0.06
    again = split_by_blocks(corpus, val_fraction=val, test_fraction=test, block=50, seed=3)
    assert again == split


def test_shares_out_of_range(corpus: Corpus) -> None:
    for val, test in [(0, 0), (1, 0), (0.6, 0.5), (-0.1, 0.5), (float("nan"), 0)]:
        for function in (split_by_blocks, split_by_clusters):
            with pytest.raises(SplitError, match="give shares from 0 to 1"):
                function(corpus, val_fraction=val, test_fraction=test)
    with pytest.raises(SplitError, match="block 0"):
        split_by_blocks(corpus, val_fraction=0.1, block=0)


def test_too_short_to_split(make_corpus: Any) -> None:
    with pytest.raises(SplitError, match="only 1 block"):
        split_by_blocks(make_corpus([b"A"]), val_fraction=0.1)


def test_a_split_survives_its_file(corpus: Corpus, tmp_path: Path) -> None:
    split = split_by_blocks(corpus, val_fraction=0.2, test_fraction=0.2, block=30)
    path = tmp_path / "split.json"
    write_split(path, split, corpus, leakage=leakage_report(corpus, split, k=5))
    assert read_split(path, corpus) == split
    assert {row["part"] for row in json.loads(path.read_text())["leakage"]} == {"val", "test"}
    with pytest.raises(OutputExistsError):
        write_split(path, split, corpus)
    write_split(path, split, corpus, force=True)


def test_a_split_that_does_not_fit_is_refused(
    corpus: Corpus, make_corpus: Any, tmp_path: Path
) -> None:
    path = tmp_path / "split.json"
    write_split(path, split_by_contigs(corpus, val=["g1r0"]), corpus)
    with pytest.raises(SplitError, match="made for another corpus: record g0r0 of g0 with 300"):
        read_split(path, make_corpus([random_bases(1, 299)]))
    content = json.loads(path.read_text())

    def changed(**changes: Any) -> Path:
        path.write_text(json.dumps({**content, **changes}))
        return path

    twice = {**content["parts"], "test": content["parts"]["val"]}
    with pytest.raises(SplitError, match="base 0 is in"):
        read_split(changed(parts=twice), corpus)
    a_base = {"train": [["g1", "g1r0", 200, 0, 100]], "val": [["g1", "g1r0", 200, 99, 200]]}
    with pytest.raises(SplitError, match="base 99 is in train and again in val"):
        read_split(changed(parts={**a_base, "test": []}), corpus)
    outside = {**content["parts"], "val": [["g1", "g1r0", 200, 0, 201]]}
    with pytest.raises(SplitError, match=r"\[0, 201\)"):
        read_split(changed(parts=outside), corpus)
    for parts in ({}, {"train": 3}, {"train": [[1]]}, {**content["parts"], "val": [["g1", "g1r0", 200, "x", 2]]}):  # fmt: skip
        with pytest.raises(SplitError, match="damaged"):
            read_split(changed(parts=parts), corpus)
    with pytest.raises(SplitError, match="format version 9"):
        read_split(changed(format_version=9), corpus)
    with pytest.raises(SplitError, match="not the manifest of a split"):
        read_split(changed(format="x"), corpus)
    path.write_bytes(b"\xff{")
    with pytest.raises(SplitError, match="not the manifest of a split"):
        read_split(path, corpus)
    with pytest.raises(SplitError, match="cannot read"):
        read_split(tmp_path / "absent.json", corpus)


def test_leakage_counts_words_of_either_strand(make_corpus: Any) -> None:
    train = random_bases(1, 2000)
    copy = reverse_complement(train[500:700])
    corpus = make_corpus([train], [copy + random_bases(2, 200)], [random_bases(3, 300)])
    split = split_by_genomes(corpus, val=["g1", "g2"])
    whole, first, second = leakage_report(corpus, split)
    # 200 - 30 of the 400 - 30 words of g1 stand in train, on the other strand.
    assert (first.genome, first.shared) == ("g1", pytest.approx(170 / 370))
    assert (second.genome, second.shared) == ("g2", 0.0)
    assert (whole.genome, whole.num_bases) == (None, 700)
    assert whole.shared == pytest.approx(170 / (370 + 270))
    parts = split_by_genomes(corpus, val=["g1"], test=["g2"])
    assert {(row.part, row.against) for row in leakage_report(corpus, parts)} == {
        ("val", "train"),
        ("test", "train"),
        ("test", "val"),
    }


def test_gaps_against_a_plain_scan(make_corpus: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # Blocks of seven bases, so that gaps lie on their borders in every way.
    monkeypatch.setattr("evo_data.splits._SCAN", 7)
    rng = np.random.default_rng(4)
    for _ in range(200):
        sequence = bytes(rng.choice(np.frombuffer(b"AcNnN", np.uint8), int(rng.integers(0, 60))))
        corpus = make_corpus([sequence])
        longest = int(rng.integers(0, 5))
        known = [at for at, letter in enumerate(sequence) if letter in b"ACGTacgt"]
        expected: list[Segment] = []
        for at in known:
            if expected and at - expected[-1].stop <= longest:
                expected[-1] = expected[-1]._replace(stop=at + 1)
            else:
                expected.append(Segment(0, at, at + 1))
        assert without_gaps(corpus, longest_gap=longest) == expected
    tagged = b"|d__Bacteria;|ACNNGT"
    corpus = make_corpus([tagged])
    assert without_gaps(corpus) == whole_records(corpus)
    corpus = make_corpus([b"ACNNGT"])
    assert without_gaps(corpus, [Segment(0, 1, 5)], longest_gap=1) == [Segment(0, 1, 2), Segment(0, 4, 5)]  # fmt: skip
    assert whole_records(corpus) == [Segment(0, 0, 6)]


def test_errors_are_of_the_family() -> None:
    assert issubclass(SplitError, EvoDataError)
