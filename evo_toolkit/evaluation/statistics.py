"""AUROC, plain and within strata, rank correlation and bootstrap intervals; numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

RESAMPLES = 1000


def ranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing the mean of theirs."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    first = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    group = np.cumsum(first) - 1
    size = np.bincount(group)
    mean = np.cumsum(size) - (size - 1) / 2
    result = np.empty(values.size)
    result[order] = mean[group]
    return result


def spearman(left: Floats, right: Floats) -> float:
    """Rank correlation; NaN when either is constant."""
    a, b = ranks(np.asarray(left, float)), ranks(np.asarray(right, float))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


class StratifiedAuroc:
    """AUROC over the pairs (positive, negative) that lie in the same stratum.

    It is the share of those pairs in which the positive has the higher score, ties counting half:
    each stratum's AUROC weighted by its number of pairs. With one stratum it is the plain AUROC.
    Weights of the items (multiplicities in a bootstrap) multiply the pairs.

    Args:
        scores: `[n]`, higher means positive.
        positive: `[n]`.
        strata: `[n]` integers, or None for one stratum.
    """

    def __init__(
        self,
        scores: NDArray[np.floating],
        positive: NDArray[np.bool_],
        strata: NDArray[np.integer] | None = None,
    ) -> None:
        scores = np.asarray(scores, np.float64)
        if not np.isfinite(scores).all():
            raise ValueError("scores hold NaN or infinity; leave those items out")
        groups = np.zeros(scores.size, np.int64) if strata is None else np.asarray(strata, np.int64)
        self._order = np.lexsort((scores, groups))
        ordered, stratum = scores[self._order], groups[self._order]
        new_stratum = np.concatenate(([True], stratum[1:] != stratum[:-1]))[: scores.size]
        new_tie = new_stratum | np.concatenate(([True], ordered[1:] != ordered[:-1]))[: scores.size]
        self._positive = np.asarray(positive, bool)[self._order]
        starts = np.flatnonzero(new_stratum)
        ties = np.flatnonzero(new_tie)
        self._stratum_start = np.repeat(starts, np.diff(np.append(starts, scores.size)))
        self._stratum_stop = np.repeat(
            np.append(starts, scores.size)[1:], np.diff(np.append(starts, scores.size))
        )
        self._tie_start = np.repeat(ties, np.diff(np.append(ties, scores.size)))
        self._tie_stop = np.repeat(
            np.append(ties, scores.size)[1:], np.diff(np.append(ties, scores.size))
        )

    def __call__(self, weights: Floats | None = None) -> float:
        """The AUROC; NaN without a pair."""
        won, pairs = self.pairs(weights)
        return won / pairs if pairs > 0 else float("nan")

    def pairs(self, weights: Floats | None = None) -> tuple[float, float]:
        """Pairs won (ties half) and all pairs."""
        size = self._order.size
        weight = np.ones(size) if weights is None else np.asarray(weights, float)[self._order]
        below = np.concatenate(([0.0], np.cumsum(weight * ~self._positive)))
        own = weight * self._positive
        start = below[self._stratum_start]
        lower = below[self._tie_start] - start
        tied = below[self._tie_stop] - below[self._tie_start]
        every = below[self._stratum_stop] - start
        return float(own @ (lower + tied / 2)), float(own @ every)


@dataclass(frozen=True)
class Estimate:
    """A figure with the 95 % interval of its bootstrap.

    Attributes:
        value: From all data.
        low, high: 2.5 and 97.5 percentiles over the resamples; NaN when none could be computed.
    """

    value: float
    low: float
    high: float

    def json(self) -> dict[str, float | None]:
        """As `value`, `low`, `high`; None in place of NaN."""
        return {
            name: None if np.isnan(number) else round(float(number), 6)
            for name, number in (("value", self.value), ("low", self.low), ("high", self.high))
        }

    def text(self, digits: int = 3) -> str:
        """`0.812 [0.790, 0.834]`."""
        if np.isnan(self.value):
            return "-"
        return f"{self.value:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]"


def bootstrap(
    statistic: Callable[[Floats], float],
    units: NDArray[np.integer],
    *,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Estimate:
    """Value and interval of a statistic, resampling units (genes, genomes) with replacement.

    Args:
        statistic: Of the multiplicities of the items, `[n]`; ones for the value itself.
        units: The unit of each item, `[n]`: items of a unit are drawn together.
        resamples: How often.
        seed: Of the draws.
    """
    _, index = np.unique(units, return_inverse=True)
    count = int(index.max()) + 1 if index.size else 0
    value = statistic(np.ones(index.size))
    random = np.random.default_rng(seed)
    found = []
    for _ in range(resamples if count else 0):
        times = np.bincount(random.integers(0, count, count), minlength=count)
        found.append(statistic(times[index].astype(float)))
    kept = np.array([x for x in found if not np.isnan(x)])
    if not kept.size:
        return Estimate(value, float("nan"), float("nan"))
    low, high = np.percentile(kept, [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def auroc(
    scores: NDArray[np.floating],
    positive: NDArray[np.bool_],
    units: NDArray[np.integer],
    strata: NDArray[np.integer] | None = None,
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """AUROC (within strata when given) with the interval over units; see `StratifiedAuroc`."""
    return bootstrap(StratifiedAuroc(scores, positive, strata), units, resamples=resamples)
