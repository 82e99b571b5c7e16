"""K-mers against a reading of the definitions in plain Python."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_data import kmers
from evo_data.alphabet import reverse_complement
from evo_data.corpus import Corpus, prepare
from evo_data.errors import EvoDataError
from evo_data.kmers import (
    cluster_weights,
    clusters,
    corpus_sequences,
    kmer_hashes,
    shared_kmers,
    shared_kmers_each,
    sketch,
)


def _array(text: str | bytes) -> np.ndarray:
    return np.frombuffer(text.encode() if isinstance(text, str) else text, np.uint8)


def _canonical(text: str, k: int) -> list[str]:
    """The canonical k-mers of a text, in order: the smaller of each and its reverse complement."""
    text = text.upper()
    found = []
    for at in range(len(text) - k + 1):
        kmer = text[at : at + k]
        if set(kmer) <= set("ACGT"):
            found.append(min(kmer, reverse_complement(kmer.encode()).decode()))
    return found


def _random(rng: random.Random, n: int, letters: str = "ACGT") -> str:
    return "".join(rng.choices(letters, k=n))


def _mutated(rng: random.Random, text: str, rate: float) -> str:
    return "".join(rng.choice("ACGT") if rng.random() < rate else base for base in text)


@settings(max_examples=80, deadline=None)
@given(
    text=st.text("ACGTacgtN", max_size=120),
    k=st.integers(1, 32),
    block=st.sampled_from([1, 5, 1 << 17]),
)
def test_hashes_are_one_to_one_with_canonical_kmers(text: str, k: int, block: int) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(kmers, "_BLOCK", block)
    try:
        hashes = kmer_hashes(_array(text), k).tolist()
    finally:
        patch.undo()
    expected = _canonical(text, k)
    assert len(hashes) == len(expected)
    pairs = set(zip(expected, hashes, strict=True))
    assert len(pairs) == len(set(expected)) == len(set(hashes))


@pytest.mark.parametrize("k", [1, 2, 3, 15, 16, 17, 31, 32])
def test_the_other_strand_has_the_same_hashes(k: int) -> None:
    text = _random(random.Random(k), 500).encode()
    one = kmer_hashes(_array(text), k)
    other = kmer_hashes(_array(reverse_complement(text)), k)
    assert one.tolist() == other[::-1].tolist()
    assert one.size == 500 - k + 1


def test_known_hash() -> None:
    # AC and GT are one k-mer; the code of AC is 0 * 4 + 1. SplitMix64's finaliser of 1:
    value = 1
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value = ((value ^ (value >> shift)) * factor) % 2**64
    value ^= value >> 31
    assert kmer_hashes(_array("GT"), 2).tolist() == [value]


def test_a_sketch_is_the_small_hashes_each_once() -> None:
    text = _random(random.Random(1), 40_000) * 2
    everything = np.unique(kmer_hashes(_array(text)))
    assert sketch(_array(text), scale=1).tolist() == everything.tolist()
    kept = sketch([_array(text)], scale=50)
    assert kept.tolist() == [h for h in everything.tolist() if h < 2**64 // 50]
    assert 600 < kept.size < 1000


def test_sketching_merges_as_it_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kmers, "_BLOCK", 1 << 12)
    text = _random(random.Random(2), 3000)
    many = [_array(text)] * 2000  # 6 million k-mers, 3000 distinct ones
    assert sketch(many, 31, 1).tolist() == sketch(_array(text), 31, 1).tolist()


def test_clusters_join_strains_not_phages_or_strangers() -> None:
    rng = random.Random(3)
    ancestor, stranger, phage = _random(rng, 30_000), _random(rng, 30_000), _random(rng, 3_000)
    genomes = [
        ancestor,
        stranger + phage,
        _mutated(rng, ancestor, 0.005) + phage,  # 0.996^31 = 0.89 of its k-mers
        _mutated(rng, ancestor, 0.06),  # 0.955^31 = 0.24
        phage,
        reverse_complement(ancestor.encode()).decode(),
        "ACGT",
    ]
    sketches = [sketch(_array(genome), scale=5) for genome in genomes]
    assert clusters(sketches) == [0, 1, 0, 2, 3, 0, 4]
    # By the smaller one the phage ties its two hosts together.
    assert clusters(sketches, of="smaller") == [0, 0, 0, 1, 0, 0, 2]
    assert cluster_weights([0, 1, 0, 2, 3, 0, 4]) == [1 / 3, 1, 1 / 3, 1, 1, 1 / 3, 1]
    assert clusters([]) == []
    assert cluster_weights([]) == []


def test_clusters_are_chains_whatever_the_order() -> None:
    # 0-1 and 1-2 share half and more, 0-2 do not.
    sets = [np.arange(0, 10), np.arange(4, 14), np.arange(8, 18), np.arange(100, 104)]
    for order in ([0, 1, 2, 3], [2, 0, 3, 1], [3, 2, 1, 0]):
        labels = clusters([sets[i].astype(np.uint64) for i in order])
        of = dict(zip(order, labels, strict=True))
        assert of[0] == of[1] == of[2] != of[3]


def test_shared_kmers_is_the_share_of_distinct_ones() -> None:
    rng = random.Random(4)
    common, own, other = _random(rng, 5_000), _random(rng, 3_000), _random(rng, 9_000)
    query = [_array(common.lower()), _array(own), _array(common)]
    reference = [_array(other), _array(reverse_complement(common.encode()))]
    ours = set(_canonical(common, 31)) | set(_canonical(own, 31))
    expected = len(ours & set(_canonical(common, 31))) / len(ours)
    assert shared_kmers(query, reference) == pytest.approx(expected, abs=0)
    assert shared_kmers(query, reference, scale=5) == pytest.approx(expected, abs=0.06)
    assert shared_kmers(_array("ACGT"), reference) == 0
    each = shared_kmers_each([query, _array(other), _array(own), _array("A")], reference)
    assert each == [pytest.approx(expected), 1.0, 0.0, 0.0]


def test_the_reference_may_come_once_only() -> None:
    text = _random(random.Random(5), 500)
    assert shared_kmers(_array(text), iter([_array(text)])) == 1.0


@pytest.mark.parametrize("block", [1, 30, 100, 1 << 17])
def test_blocks_and_pieces_lose_no_kmer(
    block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = random.Random(6)
    texts = [_random(rng, 700), _random(rng, 31), _random(rng, 30), _random(rng, 65)]
    (tmp_path / "a.fa").write_text("".join(f">{i}\n{text}\n" for i, text in enumerate(texts)))
    prepare([tmp_path / "a.fa"], tmp_path / "corpus")
    corpus = Corpus.open(tmp_path / "corpus")
    whole = sketch([_array(text) for text in texts], 31, 1)
    assert whole.size == 670 + 1 + 35
    monkeypatch.setattr(kmers, "_BLOCK", block)
    monkeypatch.setattr(kmers, "_PIECE", block)
    monkeypatch.setattr(kmers, "_BATCH", block)
    pieces = list(corpus_sequences(corpus))
    assert sketch(pieces, 31, 1).tolist() == whole.tolist()
    assert sum(max(0, piece.size - 30) for piece in pieces) == whole.size
    part = list(corpus_sequences(corpus, [(0, 100, 200), (3, 5, 6)], 31))
    assert sketch(part, 31, 1).tolist() == sketch(_array(texts[0][100:200]), 31, 1).tolist()
    query = [_array(text) for text in texts]
    assert shared_kmers(query, corpus) == 1.0
    assert shared_kmers_each([query, _array(texts[3])], [_array(texts[3])]) == [35 / 706, 1.0]


def test_impossible_arguments() -> None:
    bases = _array("ACGT")
    for k in (0, 33):
        with pytest.raises(EvoDataError, match="give 1 to 32"):
            kmer_hashes(bases, k)
    with pytest.raises(EvoDataError, match="scale"):
        sketch(bases, scale=0)
    with pytest.raises(EvoDataError, match="threshold"):
        clusters([], 0)
