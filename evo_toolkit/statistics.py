"""Figures of predictions, plain and within strata, and their bootstrap intervals; numpy alone.

A `Statistic` is a figure as a function of the multiplicities of the items, which a bootstrap draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], float]

RESAMPLES = 1000


def ranks(values: Floats) -> Floats:
    """Ranks from 1, ties sharing the mean of theirs."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    result: Floats = (np.cumsum(size) - (size - 1) / 2)[group]
    return result


def spearman(left: Floats, right: Floats) -> float:
    """Rank correlation; NaN when either is constant."""
    a, b = ranks(np.asarray(left, float)), ranks(np.asarray(right, float))
    a, b = a - a.mean(), b - b.mean()
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm > 0 else float("nan")


def stratified_correlation(
    correlation: Callable[[Floats, Floats], float],
    truth: NDArray[np.floating],
    scores: NDArray[np.floating],
    strata: NDArray[np.integer],
) -> Statistic:
    """Mean of a correlation over strata, weighted by their items.

    Strata in which the truth is constant count nothing; where the scores alone are, the correlation is 0.
    NaN if no stratum counts.

    Args:
        correlation: Of two arrays, such as `spearman`; NaN when one is constant.
        truth: `[n]`.
        scores: `[n]`.
        strata: `[n]`.
    """
    y, p = np.asarray(truth, np.float64), np.asarray(scores, np.float64)
    parts = [np.flatnonzero(strata == stratum) for stratum in np.unique(strata)]

    def statistic(weights: Floats) -> float:
        found, sizes = [], []
        for own in parts:
            times = np.repeat(own, weights[own].astype(np.int64))
            if times.size < 2 or np.ptp(y[times]) == 0:
                continue
            one = correlation(y[times], p[times])
            # Scores that are all the same rank nothing.
            found.append(0.0 if np.isnan(one) else one)
            sizes.append(times.size)
        return float(np.average(found, weights=sizes)) if found else float("nan")

    return statistic


def matthews(table: Floats) -> float:
    """Matthews' correlation coefficient of counts `[classes, classes]` by truth and answer; 0 if either is constant.

    Source: Gorodkin 2004, for several classes.
    """
    right, total = np.trace(table), table.sum()
    true, said = table.sum(axis=1), table.sum(axis=0)
    norm = (total**2 - said @ said) * (total**2 - true @ true)
    return float((right * total - true @ said) / np.sqrt(norm)) if norm > 0 else 0.0


def f1_by_class(table: Floats) -> list[float]:
    """F1 of each class from counts `[classes, classes]` by truth and answer; NaN of one that occurs in neither."""
    both = table.sum(axis=0) + table.sum(axis=1)
    return [
        float(2 * r / b) if b else float("nan") for r, b in zip(np.diag(table), both, strict=True)
    ]


def mean_of_known(values: Iterable[float]) -> float:
    """Mean of the values that are not NaN; NaN if none is left."""
    kept = [value for value in values if not np.isnan(value)]
    return float(np.mean(kept)) if kept else float("nan")


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
        self._positive = np.asarray(positive, bool)[self._order]
        is_new = np.diff(groups[self._order], prepend=np.nan) != 0
        self._strata = _runs(is_new)
        self._ties = _runs(is_new | (np.diff(scores[self._order], prepend=np.nan) != 0))

    def __call__(self, weights: Floats | None = None) -> float:
        """The AUROC; NaN without a pair."""
        size = self._order.size
        weight = np.ones(size) if weights is None else np.asarray(weights, float)[self._order]
        own = weight * self._positive
        # Negatives by weight: in all before each item, in its stratum, with its score.
        before = np.concatenate(([0.0], np.cumsum(weight * ~self._positive)))
        first, last = (before[edge] for edge in self._strata)
        first_tied, last_tied = (before[edge] for edge in self._ties)
        won = own @ (first_tied - first + (last_tied - first_tied) / 2)
        pairs = own @ (last - first)
        return float(won / pairs) if pairs > 0 else float("nan")


class StratifiedAveragePrecision:
    """Average precision: the area under the precision-recall curve as a sum of steps, ties one step.

    Of several strata it is the mean of theirs, those without a positive left out. Weights of the items
    (multiplicities in a bootstrap) are as if items were repeated.

    Args:
        scores: `[n]`, higher means positive.
        positive: `[n]`.
        strata: `[n]`, or None for one stratum.
        by: What a stratum counts by in the mean: its positives, or all its items.
    """

    def __init__(
        self,
        scores: NDArray[np.floating],
        positive: NDArray[np.bool_],
        strata: NDArray[np.integer] | None = None,
        *,
        by: Literal["positives", "items"] = "positives",
    ) -> None:
        self._by_items = by == "items"
        self._parts = []
        groups = np.zeros(len(scores), np.int64) if strata is None else strata
        for stratum in np.unique(groups):
            own = np.flatnonzero(groups == stratum)
            order = own[np.argsort(-scores[own], kind="stable")]
            # The last of each run of equal scores: a threshold lies between scores.
            ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
            self._parts.append((order, positive[order], ends))

    def __call__(self, weights: Floats | None = None) -> float:
        """The average precision; NaN without a positive."""
        total = found = 0.0
        for order, positive, ends in self._parts:
            weight = np.ones(order.size) if weights is None else weights[order]
            hits, taken = np.cumsum(weight * positive)[ends], np.cumsum(weight)[ends]
            if not hits.size or hits[-1] <= 0:
                continue
            # A step without weight has nothing in it, and no precision.
            precision = hits / np.where(taken > 0, taken, 1)
            area = float(precision @ np.diff(hits, prepend=0.0))
            share = taken[-1] / hits[-1] if self._by_items else 1.0
            found += area * share
            total += float(hits[-1]) * share
        return float(found / total) if total else float("nan")


def _runs(is_new: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Start and end (half-open) of the run that each item is in, from where the runs begin."""
    starts = np.flatnonzero(is_new)
    run = np.cumsum(is_new) - 1
    return starts[run], np.append(starts[1:], is_new.size)[run]


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


def difference(one: Statistic, other: Statistic) -> Statistic:
    """How far one figure is above another of the same items, which a bootstrap then resamples together."""
    return lambda weights: one(weights) - other(weights)


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
