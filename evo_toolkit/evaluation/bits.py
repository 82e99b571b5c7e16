"""Bits per base of models and baselines on the same windows of the same genomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import OTHER
from evo_toolkit.evaluation.genomes import Bytes, Genome, tokens
from evo_toolkit.evaluation.mixture import ORDER, scored
from evo_toolkit.evaluation.windows import WindowSet
from evo_toolkit.statistics import Estimate, bootstrap

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

STRANDS = ("+", "-")
POSITION_EDGES = (1, 16, 64, 256, 1024, 2048, 4096, 8192, 16_384, 32_768)
GENOME_RESAMPLES = 10_000

_BATCH_TOKENS = 1 << 20
_LN2 = float(np.log(2))

Score = Callable[[Bytes], Mapping[str, NDArray[np.float32]]]
"""From windows `[W, L]` to `-log2 p` of each base by predictor; NaN where it is not judged."""


@dataclass(frozen=True, kw_only=True)
class WindowBits:
    """Sums over the bases that are judged.

    Attributes:
        sums, counts: Bits and bases of every window by strand (+, -), `[W, 2]`.
        position_sums, position_counts: By genome and position in the window, both strands
            together, `[G, L]`.
    """

    sums: NDArray[np.float64]
    counts: NDArray[np.int64]
    position_sums: NDArray[np.float64]
    position_counts: NDArray[np.int64]

    def arrays(self, prefix: str) -> dict[str, NDArray[Any]]:
        """As arrays to be stored."""
        return {f"{prefix}.{name}": getattr(self, name) for name in self.__dataclass_fields__}

    @classmethod
    def of_arrays(cls, arrays: Mapping[str, NDArray[Any]], prefix: str) -> WindowBits:
        """The reverse of `arrays`."""
        return cls(**{name: arrays[f"{prefix}.{name}"] for name in cls.__dataclass_fields__})


def measure(
    genomes: Sequence[Genome],
    windows: WindowSet,
    score: Score,
    *,
    batch_tokens: int = _BATCH_TOKENS,
    progress: Callable[[int], None] = lambda bases: None,
) -> dict[str, WindowBits]:
    """Score every window on both strands.

    Args:
        genomes: That the windows lie in.
        windows: What to score.
        score: One or more predictors.
        batch_tokens: Tokens handed to `score` at a time.
        progress: Called with the bases done since the last call.

    Returns:
        By predictor.
    """
    shape = (len(genomes), windows.context_length)
    results: dict[str, WindowBits] = {}
    for rows in windows.batches(batch_tokens):
        for column, strand in enumerate(STRANDS):
            codes = windows.codes(genomes, rows, strand)
            for name, bits in score(codes).items():
                if name not in results:
                    results[name] = WindowBits(
                        sums=np.zeros((len(windows), 2)),
                        counts=np.zeros((len(windows), 2), np.int64),
                        position_sums=np.zeros(shape),
                        position_counts=np.zeros(shape, np.int64),
                    )
                _add(results[name], windows.genome[rows], rows, column, bits, scored(codes))
            progress(int((codes < OTHER).sum()))
    return results


def _add(
    result: WindowBits,
    genome: NDArray[np.int64],
    rows: slice,
    column: int,
    bits: NDArray[np.float32],
    judged: NDArray[np.bool_],
) -> None:
    wide = np.where(judged, bits, 0).astype(np.float64)
    result.sums[rows, column] = wide.sum(axis=1)
    result.counts[rows, column] = judged.sum(axis=1)
    for index in np.unique(genome):
        own = genome == index
        result.position_sums[index] += wide[own].sum(axis=0)
        result.position_counts[index] += judged[own].sum(axis=0)


def model_score(model: StripedHyena2, context_length: int, name: str = "model") -> Score:
    """A predictor that runs the model, all of its vocabulary in the softmax."""
    from evo_toolkit.inference.runner import LogProbRunner

    runner = LogProbRunner(model, context_length)
    runner.probe()

    def score(codes: Bytes) -> dict[str, NDArray[np.float32]]:
        found = np.stack(runner(list(tokens(codes))))
        return {name: np.where(scored(codes), -found / _LN2, np.nan).astype(np.float32)}

    return score


def composition_bits(genomes: Sequence[Genome]) -> NDArray[np.float64]:
    """Entropy in bits per base of each genome's own composition over both strands, `[G]`.

    A chain of order 0 could reach it only if it knew the genome.
    """
    result = []
    for genome in genomes:
        counts = np.zeros(5)
        for record in genome.records:
            counts += np.bincount(record, minlength=5)
        strong = counts[1:3].sum() / max(counts[:4].sum(), 1)
        shares = np.array([strong, strong, 1 - strong, 1 - strong]) / 2
        shares = shares[shares > 0]
        result.append(float(-(shares * np.log2(shares)).sum()))
    return np.array(result)


def per_genome(bits: WindowBits, windows: WindowSet, column: int | None = None) -> NDArray[Any]:
    """Mean bits per base of each genome, `[G]`: both strands, or one (0 is +, 1 is -)."""
    sums = bits.sums.sum(axis=1) if column is None else bits.sums[:, column]
    counts = bits.counts.sum(axis=1) if column is None else bits.counts[:, column]
    size = bits.position_sums.shape[0]
    total = np.bincount(windows.genome, sums, size)
    return total / np.maximum(np.bincount(windows.genome, counts, size), 1)


def by_position(bits: WindowBits) -> Iterator[tuple[int, int, float]]:
    """(start, stop, bits per base) of ranges of positions: mean over genomes, each counting once."""
    length = bits.position_sums.shape[1]
    edges = [edge for edge in POSITION_EDGES if edge < length] + [length]
    for start, stop in pairwise(edges):
        sums = bits.position_sums[:, start:stop].sum(axis=1)
        counts = bits.position_counts[:, start:stop].sum(axis=1)
        if (counts > 0).any():
            yield start, stop, float((sums[counts > 0] / counts[counts > 0]).mean())


def mean_over_genomes(values: NDArray[Any]) -> Estimate:
    """Mean of one figure per genome, resampling genomes."""
    return bootstrap(
        lambda times: float((values * times).sum() / times.sum()),
        np.arange(values.size),
        resamples=GENOME_RESAMPLES,
    )


def report(
    genomes: Sequence[Genome], windows: WindowSet, found: Mapping[str, WindowBits]
) -> dict[str, Any]:
    """Figures of every predictor and, for the model, of its gain over each baseline.

    Returns:
        JSON. `gain` is baseline minus model, in bits per base: above 0 where the model is better.
    """
    composition = composition_bits(genomes)
    orders = {name: bits for name, bits in found.items() if name.startswith(ORDER)}
    found = {name: bits for name, bits in found.items() if name not in orders}
    means = {name: per_genome(bits, windows) for name, bits in found.items()}
    result: dict[str, Any] = {
        "context_length": windows.context_length,
        "num_windows": len(windows),
        "bases": int(next(iter(found.values())).counts.sum()),
        "composition": {"mean": round(float(composition.mean()), 5)},
        "predictors": {},
        "per_genome": {
            genome.name: {
                "composition": round(float(composition[index]), 5),
                **{name: round(float(values[index]), 5) for name, values in means.items()},
            }
            for index, genome in enumerate(genomes)
        },
    }
    for name, bits in found.items():
        strands = [per_genome(bits, windows, column).mean() for column in range(2)]
        result["predictors"][name] = {
            "mean": mean_over_genomes(means[name]).json(),
            "strand": dict(zip(STRANDS, (round(float(x), 5) for x in strands), strict=True)),
            "by_position": [[a, b, round(x, 5)] for a, b, x in by_position(bits)],
        }
    if orders:
        result["markov_by_order"] = {
            name.removeprefix(ORDER): round(float(per_genome(bits, windows).mean()), 5)
            for name, bits in orders.items()
        }
    if "mixture" in means and "markov" in means:
        result["gain_of_mixture_over_markov"] = mean_over_genomes(
            means["markov"] - means["mixture"]
        ).json()
    if "model" in means:
        result["gain"] = {
            name: {
                **mean_over_genomes(means[name] - means["model"]).json(),
                "genomes_won": int((means[name] > means["model"]).sum()),
                "genomes": len(genomes),
            }
            for name in means
            if name != "model"
        }
    return result
