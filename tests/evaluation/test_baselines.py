"""Markov chain, in-window counts and their mixture, against loops that say the same plainly."""

from __future__ import annotations

import gzip
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from evo_data.errors import EvoDataError
from evo_data.kmers import kmer_codes
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.evaluation.adaptive import adaptive_counts
from evo_toolkit.evaluation.baseline import fit_baseline, held_out_families, training_genomes
from evo_toolkit.evaluation.genomes import Genome, encode, find_genomes, reverse_complement
from evo_toolkit.evaluation.markov import (
    MarkovChain,
    interpolated_log2,
    weighted_counts,
)
from evo_toolkit.evaluation.mixture import Mixture, _likelihood, best_order, experts, fit_weights

Codes = NDArray[np.uint8]


def random_codes(shape: int | tuple[int, ...], seed: int, others: float = 0.0) -> Codes:
    random = np.random.default_rng(seed)
    codes = random.integers(0, 4, shape).astype(np.uint8)
    codes[random.random(shape) < others] = 4
    return codes


def genome_of(*records: Codes, name: str = "g") -> Genome:
    names = tuple(f"{name}{i}" for i in range(len(records)))
    return Genome(name=name, group="x", names=names, records=records)


def loop_counts(genomes: list[tuple[Genome, float]], k: int) -> dict[tuple[int, ...], float]:
    counts: dict[tuple[int, ...], float] = defaultdict(float)
    for genome, weight in genomes:
        for record in genome.records:
            for strand in (record, reverse_complement(record)):
                for start in range(strand.size - k + 1):
                    word = tuple(strand[start : start + k].tolist())
                    if max(word) < 4:
                        counts[word] += weight
    return counts


def loop_probability(
    counts: dict[tuple[int, ...], float], context: tuple[int, ...], base: int, k: int
) -> float:
    """Witten-Bell, from the counts of (k + 1)-mers alone."""
    if len(context) == 0 and k < 0:
        return 0.25

    def total(word: tuple[int, ...]) -> float:
        size = len(word)
        return sum(c for key, c in counts.items() if key[len(key) - size :] == word)

    shorter = loop_probability(counts, context[1:], base, k - 1) if context else 0.25
    after = [total((*context, x)) for x in range(4)]
    kinds = sum(x > 0 for x in after)
    if kinds == 0:
        return shorter
    return (after[base] + kinds * shorter) / (sum(after) + kinds)


@pytest.mark.parametrize("k", [1, 2, 3, 5, 13])
def test_kmer_codes(k: int) -> None:
    codes = random_codes(60, k, others=0.05)
    found, good = kmer_codes(codes, k)
    assert found.size == good.size == 60 - k + 1
    for start in range(found.size):
        word = codes[start : start + k]
        assert good[start] == (word < 4).all()
        if good[start]:
            assert found[start] == int("".join(map(str, word.tolist())), 4)
    assert kmer_codes(codes[: k - 1], k)[0].size == 0


def test_counts_of_both_strands_with_weights_and_over_batches() -> None:
    genomes = [
        (genome_of(random_codes(80, 1, 0.02), random_codes(2, 5)), 1.0),
        (genome_of(random_codes(50, 2)), 0.25),
    ]
    expected = loop_counts(genomes, 3)
    for batch in (1, 60, 1 << 20):
        found = weighted_counts(genomes, 2, batch=batch).reshape(4, 4, 4)
        for word in np.ndindex(4, 4, 4):
            assert found[word] == pytest.approx(expected.get(word, 0.0)), (batch, word)


def test_interpolation_is_that_of_witten_and_bell() -> None:
    genomes = [(genome_of(random_codes(60, 3)), 1.0)]
    tables = interpolated_log2(weighted_counts(genomes, 2))
    counts = loop_counts(genomes, 3)
    for k, table in enumerate(tables):
        assert np.exp2(table).sum(axis=1) == pytest.approx(np.ones(4**k), abs=1e-6)
        for row, context in enumerate(np.ndindex(*(4,) * k)):
            for base in range(4):
                expected = loop_probability(counts, tuple(context), base, k)
                assert table[row, base] == pytest.approx(math.log2(expected), abs=1e-5)


def test_chain_uses_the_context_that_the_window_holds() -> None:
    chain = MarkovChain(
        interpolated_log2(weighted_counts([(genome_of(random_codes(900, 4)), 1)], 3))
    )
    codes = random_codes((2, 30), 5)
    codes[0, 10] = 4
    found = chain.log2_probs(codes, 3)
    for row in range(2):
        for at in range(30):
            context: list[int] = []
            for x in codes[row, max(0, at - 3) : at].tolist():
                context = [] if x == 4 else [*context, x]
            number = int("".join(map(str, context)) or "0", 4)
            assert (found[row, at] == chain.tables[len(context)][number]).all(), (row, at)


def test_orders_out_of_range_are_refused() -> None:
    with pytest.raises(UsageError, match="use 0 to 12"):
        weighted_counts([], 13)
    with pytest.raises(UsageError, match="use 1 to 16"):
        adaptive_counts(random_codes((1, 10), 0), 17)
    with pytest.raises(UsageError, match="32768"):
        adaptive_counts(np.zeros((1, 40_000), np.uint8), 2)


@pytest.mark.parametrize("order", [1, 2, 3, 16])
def test_adaptive_counts_know_the_past_of_both_strands_alone(order: int) -> None:
    codes = random_codes((3, 150), order, others=0.01)
    codes[1, 60:120] = codes[1, :60]  # a repeat
    codes[2, 80:140] = reverse_complement(codes[2, 10:70])  # and one on the other strand
    expected = np.zeros((3, 150, 4), int)
    for row in range(3):
        seen: dict[tuple[int, ...], list[int]] = defaultdict(lambda: [0] * 4)
        for at in range(order, 150):
            word = codes[row, at - order : at + 1]
            if (word[:-1] < 4).all():
                expected[row, at] = seen[tuple(word[:-1].tolist())]
                if word[-1] < 4:
                    seen[tuple(word[:-1].tolist())][word[-1]] += 1
                    other = reverse_complement(word)
                    seen[tuple(other[:-1].tolist())][other[-1]] += 1
    assert expected.sum() > 0
    assert (adaptive_counts(codes, order) == expected).all()


def test_adaptive_counts_do_not_overflow() -> None:
    counts = adaptive_counts(np.zeros((1, 32_768), np.uint8), 1)
    # All A: each further base adds AA on this strand and TT on the other.
    assert counts[0, -1].tolist() == [32_766, 0, 0, 0]


def test_likelihood_has_the_derivatives_it_states() -> None:
    random = np.random.default_rng(0)
    features = random.normal(size=(40, 3, 4)).astype(np.float32)
    observed = random.integers(0, 4, 40)
    weights = np.array([0.5, -0.2, 1.0])
    value, gradient, curvature = _likelihood(features, observed, weights)
    step = 1e-5
    for axis in range(3):
        move = step * np.eye(3)[axis]
        above, below = (_likelihood(features, observed, weights + s * move) for s in (1, -1))
        assert gradient[axis] == pytest.approx((above[0] - below[0]) / (2 * step), abs=1e-6)
        assert curvature[axis] == pytest.approx((above[1] - below[1]) / (2 * step), abs=1e-5)
    assert value == pytest.approx(
        -np.mean(
            [
                (weights @ f)[y] - np.log(np.exp(weights @ f).sum())
                for f, y in zip(features.astype(float), observed, strict=True)
            ]
        )
    )


def test_mixture_learns_repeats_within_the_window() -> None:
    chain = MarkovChain(
        interpolated_log2(weighted_counts([(genome_of(random_codes(5000, 6)), 1)], 2))
    )
    windows = random_codes((12, 400), 7)
    windows[:, 200:] = reverse_complement(windows[:, :200])
    weights = fit_weights(chain, 2, windows[:6])
    alone, mixed = Mixture(chain, 2, weights).bits(windows[6:])
    assert np.isnan(alone[:, 0]).all() and np.isfinite(alone[:, 1:]).all()
    assert np.nanmean(mixed[:, 1:200]) == pytest.approx(np.nanmean(alone[:, 1:200]), abs=0.1)
    assert np.nanmean(mixed[:, 200:]) < 0.5 < 1.9 < np.nanmean(alone[:, 200:])


def test_experts_start_from_the_chain() -> None:
    chain = MarkovChain(
        interpolated_log2(weighted_counts([(genome_of(random_codes(500, 8)), 1)], 1))
    )
    windows = random_codes((2, 40), 9)
    found = experts(chain, 1, windows)
    assert found.shape == (2, 40, 17, 4)
    assert np.exp(found).sum(axis=-1) == pytest.approx(np.ones((2, 40, 17)), abs=1e-5)
    only_chain = Mixture(chain, 1, np.eye(17)[0])
    alone, mixed = only_chain.bits(windows)
    assert mixed[:, 1:] == pytest.approx(alone[:, 1:], abs=1e-5)


def test_order_is_chosen_on_held_out_families(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for number in range(4):
        # Each base alone, A and T more often: order 0 knows all, longer contexts only learn noise.
        text = random.choice(list(b"ACGT"), 20_000, p=[0.4, 0.1, 0.1, 0.4]).astype(np.uint8)
        text = text.tobytes()
        (tmp_path / f"g{number}.fa").write_bytes(b">r\n" + text + b"\n")
        if number == 0:
            (tmp_path / "strain.fa").write_bytes(b">r\n" + text[:-50] + b"\n")
    train = training_genomes(find_genomes([tmp_path]))
    weights = dict(zip((file.name for file in train.files), train.weights, strict=True))
    assert weights == {"g0": 0.5, "strain": 0.5, "g1": 1, "g2": 1, "g3": 1}
    mixture, record = fit_baseline(train, context_length=500, max_order=7, num_windows=20)
    assert mixture.order == record["order"] < 4
    assert record["held_out"] and len(record["held_out"]) < 5
    # Near strains are held out together.
    assert ("g0" in record["held_out"]) == ("strain" in record["held_out"])
    by_order = record["held_out_bits_by_order"]
    assert by_order[0] == pytest.approx(
        -2 * (0.4 * math.log2(0.4) + 0.1 * math.log2(0.1)), abs=0.02
    )
    assert by_order[7] > by_order[0] + 0.1
    # The final tables hold the held-out genomes too, each cluster once.
    whole = weighted_counts(
        ((f.read(), w) for f, w in zip(train.files, train.weights, strict=True)), 7
    )
    assert (mixture.chain.tables[7] == interpolated_log2(whole)[7]).all()
    forced, _ = fit_baseline(train, context_length=500, order=1, num_windows=5)
    assert forced.order == forced.chain.max_order == 1


def test_best_order_is_the_argument_of_the_fewest_bits() -> None:
    chain = MarkovChain(
        interpolated_log2(weighted_counts([(genome_of(random_codes(90, 1)), 1)], 4))
    )
    best, bits = best_order(chain, random_codes((2, 300), 2), range(5))
    assert best == int(np.argmin(bits)) < 4


def test_one_family_cannot_be_judged(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_bytes(b">r\n" + b"ACGT" * 500)
    train = training_genomes(find_genomes([tmp_path]))
    with pytest.raises(EvoError, match="at least two unlike genomes"):
        held_out_families(train, 0.1, 0)


def test_genomes_are_found_in_files_folders_and_gzip(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.fna.gz").write_bytes(gzip.compress(b">r1 x\nACGTN\nacgt\n>r2\n\n"))
    (tmp_path / "two.fa").write_bytes(b">s\r\nGG\r\n")
    found = [file.read() for file in find_genomes([tmp_path, tmp_path / "two.fa"])]
    assert [(g.name, g.names) for g in found] == [
        ("one", ("r1", "r2")),
        ("two", ("s",)),
        ("two", ("s",)),
    ]
    assert found[0].records[0].tolist() == encode(b"ACGTXACGT").tolist()
    assert found[0].group == "a" and found[0].num_bases == 9
    assert found[1].records[0].tolist() == [2, 2]
    for bad, text in (
        (tmp_path / "none", "no such file or folder"),
        (tmp_path / "empty", "the folder holds no genome"),
    ):
        if bad.name == "empty":
            bad.mkdir()
        with pytest.raises(EvoDataError, match=text):
            find_genomes([bad])
    (tmp_path / "bad.fa").write_bytes(b"ACGT")
    with pytest.raises(EvoDataError, match="not a genome: a FASTA file begins with >"):
        find_genomes([tmp_path / "bad.fa"])[0].read()
    (tmp_path / "cut.fa.gz").write_bytes(gzip.compress(b">r\nACGT")[:-6])
    with pytest.raises(EvoDataError, match="truncated"):
        find_genomes([tmp_path / "cut.fa.gz"])[0].read()
