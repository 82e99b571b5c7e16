"""Bits per base: windows, strands, positions, and the model's own figure."""

from __future__ import annotations

import numpy as np
import pytest

from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.bits import (
    WindowBits,
    composition_bits,
    measure,
    model_score,
    per_genome,
    report,
)
from evo_toolkit.evaluation.genomes import Genome, encode, reverse_complement, tokens
from evo_toolkit.evaluation.windows import sample_windows, tile_windows
from evo_toolkit.inference.likelihood import token_log_probs
from evo_toolkit.model.striped_hyena import StripedHyena2


def genomes_of(*lengths: tuple[int, ...]) -> list[Genome]:
    random = np.random.default_rng(0)
    made = []
    for index, own in enumerate(lengths):
        records = tuple(random.integers(0, 4, n).astype(np.uint8) for n in own)
        names = tuple(f"r{i}" for i in range(len(own)))
        made.append(Genome(name=f"g{index}", group="x", names=names, records=records))
    return made


def test_tiles_cover_every_record_once() -> None:
    genomes = genomes_of((250, 31), (100, 140))
    windows = tile_windows(genomes, 100)
    rows = list(
        zip(
            *(getattr(windows, n).tolist() for n in ("genome", "record", "start", "stop")),
            strict=True,
        )
    )
    assert rows == [
        (0, 0, 0, 100), (0, 0, 100, 200), (0, 0, 200, 250),
        (1, 0, 0, 100), (1, 1, 0, 100), (1, 1, 100, 140),
    ]  # fmt: skip
    codes = windows.codes(genomes, slice(2, 3), "-")[0]
    assert (codes[:50] == reverse_complement(genomes[0].records[0][200:])).all()
    assert (codes[50:] == 4).all()
    few = tile_windows(genomes, 100, per_genome=2)
    assert few.genome.tolist() == [0, 0, 1, 1]
    # What is drawn of a genome does not depend on the others.
    alone = tile_windows(genomes[1:], 100, per_genome=2)
    assert alone.start.tolist() == few.start[2:].tolist()
    with pytest.raises(EvoError, match="at least 32"):
        tile_windows(genomes, 16)
    with pytest.raises(EvoError, match="g0"):
        tile_windows(genomes_of((20,)), 100)


def test_windows_are_drawn_by_weight_on_both_strands() -> None:
    genomes = genomes_of((4000,), (4000,))
    genomes[0].records[0][:] = 0  # A, and T on the other strand
    genomes[1].records[0][:] = 1
    drawn = sample_windows([(genomes[0], 3.0), (genomes[1], 1.0)], 50, 400, seed=1)
    share = {base: float((drawn[:, 0] == base).mean()) for base in range(4)}
    assert share[0] + share[3] == pytest.approx(0.75, abs=0.07)
    assert share[0] == pytest.approx(share[3], abs=0.1) and share[1] == pytest.approx(
        share[2], abs=0.1
    )
    short = sample_windows([(genomes_of((40,))[0], 1.0)], 64, 3, seed=0)
    assert (short[:, :40] < 4).all() and (short[:, 40:] == 4).all()


def test_model_bits_are_its_log_probabilities(toy_model: StripedHyena2) -> None:
    genomes = genomes_of((130, 64), (90,))
    genomes[0].records[0][70] = 4  # an N: read, not judged
    windows = tile_windows(genomes, 64)
    found = measure(genomes, windows, model_score(toy_model, 64), batch_tokens=128)["model"]
    totals = np.zeros((2, 2))
    counts = np.zeros((2, 2), int)
    by_position = np.zeros(64)
    for index in range(len(windows)):
        genome, record = windows.genome[index], windows.record[index]
        part = genomes[genome].records[record][windows.start[index] : windows.stop[index]]
        for column, codes in enumerate((part, reverse_complement(part))):
            log_probs = token_log_probs(toy_model, [tokens(codes)])[0]
            judged = np.flatnonzero((codes < 4) & (np.arange(codes.size) > 0))
            bits = -log_probs[judged] / np.log(2)
            assert found.sums[index, column] == pytest.approx(bits.sum(), rel=1e-5)
            assert found.counts[index, column] == judged.size
            totals[genome, column] += bits.sum()
            counts[genome, column] += judged.size
            by_position[judged] += bits
    assert per_genome(found, windows) == pytest.approx(totals.sum(1) / counts.sum(1), rel=1e-5)
    assert per_genome(found, windows, 1) == pytest.approx(totals[:, 1] / counts[:, 1], rel=1e-5)
    assert found.position_sums.sum(axis=0) == pytest.approx(by_position, rel=1e-4)
    assert found.position_counts.sum() == counts.sum() and not found.position_counts[:, 0].any()
    again = WindowBits.of_arrays(found.arrays("model"), "model")
    assert (again.sums == found.sums).all()


def test_report_sets_model_beside_baselines() -> None:
    genomes = genomes_of((300,), (600,), (900,))
    windows = tile_windows(genomes, 100)
    level = {"model": 1.8, "mixture": 1.9, "markov": 2.0, "order 1": 2.1}

    def score(codes: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.full(codes.shape, bits, np.float32) for name, bits in level.items()}

    figures = report(genomes, windows, measure(genomes, windows, score))
    assert figures["predictors"]["model"]["mean"]["value"] == pytest.approx(1.8, abs=1e-5)
    assert figures["predictors"]["model"]["strand"] == pytest.approx({"+": 1.8, "-": 1.8})
    gain = figures["gain"]["mixture"]
    assert gain["value"] == pytest.approx(0.1, abs=1e-5) == gain["low"] == gain["high"]
    assert (gain["genomes_won"], gain["genomes"]) == (3, 3)
    assert figures["gain_of_mixture_over_markov"]["value"] == pytest.approx(0.1, abs=1e-5)
    assert figures["markov_by_order"] == pytest.approx({"1": 2.1})
    assert set(figures["predictors"]) == {"model", "mixture", "markov"}
    assert figures["bases"] == 2 * (18 * 99)
    positions = figures["predictors"]["markov"]["by_position"]
    assert [row[:2] for row in positions] == [[1, 16], [16, 64], [64, 100]]


def test_means_count_genomes_not_bases() -> None:
    genomes = genomes_of((100,), (900,))
    windows = tile_windows(genomes, 100)

    def score(codes: np.ndarray) -> dict[str, np.ndarray]:
        return {"model": np.zeros(codes.shape, np.float32)}

    found = measure(genomes, windows, score)["model"]
    found.sums[1:] = found.counts[1:]  # 1 bit per base in the larger genome, 0 in the smaller
    figures = report(genomes, windows, {"model": found})
    assert figures["predictors"]["model"]["mean"]["value"] == pytest.approx(0.5)


def test_composition_is_the_entropy_over_both_strands() -> None:
    genome = Genome(name="g", group="x", names=("r",), records=(encode(b"AAAAGGGGGGGGGGGGN"),))
    share = 0.75
    expected = -(share * np.log2(share / 2) + (1 - share) * np.log2((1 - share) / 2))
    assert composition_bits([genome]) == pytest.approx([expected])
    only = Genome(name="g", group="x", names=("r",), records=(encode(b"AAAA"),))
    assert composition_bits([only]) == pytest.approx([1.0])
