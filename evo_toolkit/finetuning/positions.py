"""How good predictions for every base are, beside what the bases around it say alone.

The baseline is a table: of each k-mer (here 7) the mean target of the base in its middle on the training
part, drawn towards the mean of all as by five more bases. Intervals resample groups of sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import CODES, OTHER
from evo_toolkit.finetuning.examples import UNLABELLED, Examples
from evo_toolkit.finetuning.network_batches import binned
from evo_toolkit.statistics import (
    RESAMPLES,
    Floats,
    Statistic,
    bootstrap,
    difference,
    f1_by_class,
    matthews,
    mean_of_known,
)

BASELINE_K = 7
_PRIOR_BASES = 5.0

Figure = Callable[[Floats], float]
"""Of counts, or of moments."""
Rows = Sequence[NDArray[np.floating]]


def centred_kmers(sequence: str, k: int = BASELINE_K) -> NDArray[np.int64]:
    """Number of the k-mer around each base, `[L]`, below 4^k; 4^k where it has an N or passes an end."""
    codes = CODES[np.frombuffer(sequence.encode(), np.uint8)].astype(np.int64)
    padded = np.pad(codes, k // 2, constant_values=OTHER)
    windows = np.lib.stride_tricks.sliding_window_view(padded, k)
    numbers: NDArray[np.int64] = windows @ 4 ** np.arange(k - 1, -1, -1)
    return np.where((windows < OTHER).all(axis=1), numbers, 4**k)


def kmer_baseline(train: Examples, test: Examples, *, bin_size: int = 1) -> list[Floats]:
    """What the k-mer around each base says of test examples: shares of classes, or values of tracks.

    Returns:
        For each example `[L, K]`, of tracks with bins `[bins, K]`.
    """
    sums, counts = (
        np.zeros((4**BASELINE_K + 1, len(train.label_names))),
        np.zeros(4**BASELINE_K + 1),
    )
    for sequence, target in zip(train.sequences, train.targets, strict=True):
        numbers, values = centred_kmers(sequence), _as_numbers(target, len(train.label_names))
        known = ~np.isnan(values).any(axis=1)
        np.add.at(sums, numbers[known], values[known])
        np.add.at(counts, numbers[known], 1)
    mean = sums.sum(axis=0) / max(counts.sum(), 1)
    table = (sums + _PRIOR_BASES * mean) / (counts + _PRIOR_BASES)[:, None]
    found = [table[centred_kmers(sequence)] for sequence in test.sequences]
    if bin_size == 1:
        return found
    return [binned(values, bin_size).astype(np.float64) for values in found]


def _as_numbers(target: NDArray[Any], classes: int) -> Floats:
    if target.ndim == 2:
        return np.asarray(target, np.float64)
    values = np.eye(classes)[np.maximum(target, 0)]
    values[target == UNLABELLED] = np.nan
    return values


def judged_positions(
    examples: Examples,
    outputs: Rows,
    units: NDArray[np.int64],
    *,
    bin_size: int = 1,
    baselines: Mapping[str, Rows] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Figures of predictions for every base, in the form of `results.judged`.

    Classes: Matthews' correlation, accuracy, the mean of the classes' F1, and in `by_name` each class's.
    Tracks: Pearson's r over the bins of all sequences, the mean of the tracks, and in `by_name` each track's.

    Args:
        outputs: Of each example `[L, K]` (probabilities), or `[bins, K]`.
        units: What is drawn together in the bootstrap, of each example.
        bin_size: Of tracks.
        baselines: Outputs of other predictors.
    """
    groups = np.unique(units, return_inverse=True)[1]
    if examples.kind == "track":
        makers, by_name = _of_tracks(examples.label_names)
        primary = "pearson"

        def table_of(rows: Rows) -> Floats:
            targets = [binned(t, bin_size) for t in examples.targets]
            return np.stack([_moments(y, p) for y, p in zip(targets, rows, strict=True)])
    else:
        makers, by_name = _of_classes(examples.label_names)
        primary = "mcc"

        def table_of(rows: Rows) -> Floats:
            K = len(examples.label_names)
            return np.stack(
                [_confusion(y, p, K) for y, p in zip(examples.targets, rows, strict=True)]
            )

    def by_group(rows: Rows) -> Floats:
        tables = table_of(rows)
        found = np.zeros((groups.max() + 1, *tables.shape[1:]))
        np.add.at(found, groups, tables)
        return found

    def figures(tables: Floats, made: Mapping[str, Figure]) -> dict[str, Any]:
        return {
            name: bootstrap(_weighted(make, tables), np.arange(len(tables)), resamples=resamples).json()
            for name, make in made.items()
        }  # fmt: skip

    own = by_group(outputs)
    found: dict[str, Any] = {
        "problem": "regression" if examples.kind == "track" else "multiclass",
        "primary": primary,
        "num_examples": len(examples),
        "num_groups": len(own),
        "num_folds": 1,
        "resamples": resamples,
        "metrics": figures(own, makers),
        "by_name": figures(own, by_name),
        "baselines": {},
        "lead": {},
        "by_fold": [],
        "curves": {},
    }
    for name, rows in (baselines or {}).items():
        other = by_group(rows)
        found["baselines"][name] = figures(other, makers)
        one, two = _weighted(makers[primary], own), _weighted(makers[primary], other)
        ahead = bootstrap(difference(one, two), np.arange(len(own)), resamples=resamples)
        found["lead"][name] = ahead.json()
    if examples.kind == "per_base":
        found["confusion"] = [[int(x) for x in row] for row in own.sum(axis=0)]
    return found


def _weighted(make: Figure, tables: Floats) -> Statistic:
    def figure(weights: Floats) -> float:
        total: Floats = np.tensordot(weights, tables, axes=1).astype(np.float64)
        return make(total)

    return figure


def _confusion(labels: NDArray[Any], shares: NDArray[Any], classes: int) -> Floats:
    """Bases by true and predicted class."""
    known = labels != UNLABELLED
    cells = labels[known] * classes + shares[known].argmax(axis=1)
    return np.bincount(cells, minlength=classes**2).reshape(classes, classes).astype(np.float64)


def _of_classes(names: Sequence[str]) -> tuple[dict[str, Figure], dict[str, Figure]]:
    def f1(table: Floats, k: int) -> float:
        return f1_by_class(table)[k]

    found: dict[str, Figure] = {
        "mcc": matthews,
        "accuracy": lambda t: float(np.trace(t) / t.sum()) if t.sum() else float("nan"),
        "macro_f1": lambda t: mean_of_known(f1_by_class(t)),
    }
    return found, {name: partial(f1, k=k) for k, name in enumerate(names)}


def _moments(values: NDArray[np.floating], said: NDArray[np.floating]) -> Floats:
    """Of each track n, sum y, sum p, sum yy, sum pp, sum yp: `[K, 6]`."""
    y, p = np.asarray(values, np.float64), np.asarray(said, np.float64)
    known = ~np.isnan(y)
    y, p = np.where(known, y, 0), np.where(known, p, 0)
    return np.stack([known.sum(0), y.sum(0), p.sum(0), (y * y).sum(0), (p * p).sum(0), (y * p).sum(0)], axis=1).astype(np.float64)  # fmt: skip


def _pearson(moments: Floats) -> float:
    n, y, p, yy, pp, yp = moments
    spread = (n * yy - y * y) * (n * pp - p * p)
    return float((n * yp - y * p) / np.sqrt(spread)) if spread > 0 else float("nan")


def _of_tracks(names: Sequence[str]) -> tuple[dict[str, Figure], dict[str, Figure]]:
    def mean(moments: Floats) -> float:
        return mean_of_known(map(_pearson, moments))

    def of(moments: Floats, k: int) -> float:
        return _pearson(moments[k])

    return {"pearson": mean}, {name: partial(of, k=k) for k, name in enumerate(names)}
