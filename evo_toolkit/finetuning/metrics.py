"""How good predictions for held-out examples are, with intervals over groups; curves to draw.

Outputs that are judged, by problem: binary the probability of the positive class `[n]`; multiclass and
multilabel probabilities `[n, K]`; regression values `[n]`. Predictions of different folds come from
different fits, so ranks are compared within a fold alone: an AUROC counts pairs of one fold, AUPRC
and rank correlation are means over folds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.statistics import (
    RESAMPLES,
    Estimate,
    Floats,
    Statistic,
    StratifiedAuroc,
    StratifiedAveragePrecision,
    bootstrap,
    difference,
    f1_by_class,
    matthews,
    mean_of_known,
    spearman,
    stratified_correlation,
)

Problem = Literal["binary", "multiclass", "multilabel", "regression"]
Indices = NDArray[np.int64]

PRIMARY: Mapping[Problem, str] = {
    "binary": "auroc", "multiclass": "mcc", "multilabel": "mean_auroc", "regression": "spearman",
}  # fmt: skip
"""The figure that comes first in reports."""

SELECTION: Mapping[Problem, str] = {
    "binary": "log_loss", "multiclass": "log_loss", "multilabel": "log_loss", "regression": "spearman",
}  # fmt: skip
"""The figure by which settings are chosen: log-loss tells finer than ranks or classes, and keeps probabilities honest."""

METRIC_NAMES: Mapping[str, str] = {
    "auroc": "AUROC", "auprc": "AUPRC (average precision)", "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy", "mcc": "Matthews' correlation", "f1": "F1 of the positive class",
    "macro_f1": "F1, mean of the classes", "log_loss": "Log-loss, nats", "brier": "Brier score",
    "mean_auroc": "AUROC, mean of the labels", "mean_auprc": "AUPRC, mean of the labels",
    "spearman": "Spearman's rho", "pearson": "Pearson's r", "r2": "R squared", "rmse": "Root mean squared error",
    "mae": "Mean absolute error",
}  # fmt: skip
LOWER_IS_BETTER = frozenset({"log_loss", "brier", "rmse", "mae"})

_SMALLEST = 1e-12
_NUM_BINS = 10
_CURVE_POINTS = 200
_SCATTER_POINTS = 2000


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What is to be predicted.

    Attributes:
        problem: What kind of prediction it is.
        targets: int64 [n] of classes, bool [n, K], or float64 [n].
        names: Of the classes or labels; empty for numbers.
    """

    problem: Problem
    targets: NDArray[Any]
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.targets)

    @property
    def num_outputs(self) -> int:
        """Columns of the outputs: 1 for binary and regression."""
        return len(self.names) if self.problem in ("multiclass", "multilabel") else 1

    def part(self, indices: Indices) -> Outcome:
        """Of some examples."""
        return Outcome(problem=self.problem, targets=self.targets[indices], names=self.names)


def outcome_of(examples: Examples) -> Outcome:
    """What is to be predicted of whole sequences or variants.

    Raises:
        ValueError: for targets of every base.
    """
    if isinstance(examples.targets, tuple):
        raise ValueError(f"task {examples.kind} has targets for every base, not one a sequence")
    problem: Problem
    if examples.kind == "multilabel":
        problem = "multilabel"
    elif not examples.is_classification:
        problem = "regression"
    else:
        problem = "binary" if len(examples.label_names) == 2 else "multiclass"
    return Outcome(problem=problem, targets=examples.targets, names=examples.label_names)


def statistics(outcome: Outcome, outputs: Floats, folds: Indices) -> dict[str, Statistic]:
    """Each figure as a function of multiplicities of the examples, the primary one first.

    Args:
        outputs: By problem; see the module's text.
        folds: Of each example, `[n]`.
    """
    targets = outcome.targets
    if outcome.problem == "regression":
        return _of_numbers(targets, outputs, folds)
    if outcome.problem == "multilabel":
        auprcs = [
            StratifiedAveragePrecision(p, y, folds)
            for p, y in zip(outputs.T, targets.T, strict=True)
        ]
        losses = _log_losses(np.stack([1 - outputs, outputs], -1), targets.astype(np.int64)).mean(1)
        right = ((outputs >= 0.5) == targets).mean(axis=1)
        return {
            "mean_auroc": _mean_auroc(targets, outputs, folds),
            "mean_auprc": lambda w: mean_of_known([one(w) for one in auprcs]),
            "accuracy": _weighted_mean(right),
            "log_loss": _weighted_mean(losses),
        }
    shares = outputs if outputs.ndim == 2 else np.stack([1 - outputs, outputs], axis=1)
    classes = shares.shape[1]
    said = shares.argmax(axis=1) if outcome.problem == "multiclass" else (outputs >= 0.5).astype(np.int64)  # fmt: skip

    def of_table(value: Callable[[Floats], float]) -> Statistic:
        return _of_table(targets, said, classes, value)

    found: dict[str, Statistic] = {}
    if outcome.problem == "binary":
        found |= {
            "auroc": StratifiedAuroc(outputs, targets == 1, folds),
            "auprc": StratifiedAveragePrecision(outputs, targets == 1, folds),
        }
    found |= {
        "mcc": of_table(matthews),
        "balanced_accuracy": of_table(
            lambda t: mean_of_known((np.diag(t) / _or_nan(t.sum(1))).tolist())
        ),
        "accuracy": of_table(lambda t: float(np.trace(t) / _or_nan(t.sum()))),
    }
    if outcome.problem == "binary":
        found["f1"] = of_table(lambda t: f1_by_class(t)[1])
        found["brier"] = _weighted_mean((outputs - targets) ** 2)
    else:
        found["macro_f1"] = of_table(lambda t: mean_of_known(f1_by_class(t)))
    found["log_loss"] = _weighted_mean(_log_losses(shares, targets))
    return found


def primary_statistic(
    problem: Problem, targets: NDArray[Any], outputs: Floats, folds: Indices
) -> Statistic:
    """The figure of `PRIMARY` as a function of multiplicities; it asks for ranks alone.

    Args:
        problem: What kind of prediction it is.
        targets: As in `Outcome`.
        outputs: `[n]` or `[n, K]`, higher meaning more; no probabilities are needed.
        folds: Of each example, `[n]`.
    """
    if problem == "binary":
        return StratifiedAuroc(outputs, targets == 1, folds)
    if problem == "multilabel":
        return _mean_auroc(targets, outputs, folds)
    if problem == "multiclass":
        return _of_table(targets, outputs.argmax(axis=1), outputs.shape[1], matthews)
    return stratified_correlation(spearman, targets, outputs, folds)


def _mean_auroc(targets: NDArray[Any], outputs: Floats, folds: Indices) -> Statistic:
    each = [StratifiedAuroc(p, y, folds) for p, y in zip(outputs.T, targets.T, strict=True)]
    return lambda weights: mean_of_known([one(weights) for one in each])


def _of_table(
    truth: Indices, said: Indices, classes: int, value: Callable[[Floats], float]
) -> Statistic:
    """A value of the counts by truth and answer."""
    cells = truth * classes + said

    def statistic(weights: Floats) -> float:
        table = np.bincount(cells, weights, classes * classes).astype(np.float64)
        return value(table.reshape(classes, classes))

    return statistic


def _or_nan(values: Any) -> Any:
    return np.where(np.asarray(values) > 0, values, np.nan)


def _weighted_mean(values: Floats) -> Statistic:
    def statistic(weights: Floats) -> float:
        total = weights.sum()
        return float(weights @ values / total) if total else float("nan")

    return statistic


def _log_losses(shares: Floats, truth: Indices) -> Floats:
    chosen = np.take_along_axis(shares, truth[..., None], axis=-1)[..., 0]
    losses: Floats = -np.log(np.clip(chosen, _SMALLEST, 1.0))
    return losses


def _of_numbers(targets: Floats, outputs: Floats, folds: Indices) -> dict[str, Statistic]:
    def pearson(y: Floats, p: Floats) -> float:
        a, b = y - y.mean(), p - p.mean()
        norm = float(np.sqrt((a @ a) * (b @ b)))
        return float(a @ b) / norm if norm > 0 else float("nan")

    errors = (targets - outputs) ** 2

    def r2(weights: Floats) -> float:
        mean = weights @ targets / weights.sum()
        spread = float(weights @ (targets - mean) ** 2)
        return 1 - float(weights @ errors) / spread if spread > 0 else float("nan")

    mse = _weighted_mean(errors)
    return {
        "spearman": stratified_correlation(spearman, targets, outputs, folds),
        "pearson": stratified_correlation(pearson, targets, outputs, folds),
        "r2": r2,
        "rmse": lambda w: float(np.sqrt(mse(w))),
        "mae": _weighted_mean(np.abs(targets - outputs)),
    }


def primary(outcome: Outcome, outputs: Floats, folds: Indices) -> float:
    """The primary figure."""
    return primary_statistic(outcome.problem, outcome.targets, outputs, folds)(
        np.ones(len(outcome))
    )


def selection(
    outcome: Outcome, outputs: Floats, folds: Indices, *, balanced: bool = False
) -> float:
    """The figure of `SELECTION`, so turned that higher is better; -inf where there is none.

    Args:
        balanced: Whether classes count equally in it.
    """
    name = SELECTION[outcome.problem]
    weights = np.ones(len(outcome))
    if balanced and outcome.problem in ("binary", "multiclass"):
        weights = 1.0 / np.bincount(outcome.targets, minlength=len(outcome.names))[outcome.targets]
    value = statistics(outcome, outputs, folds)[name](weights)
    value = -value if name in LOWER_IS_BETTER else value
    return -np.inf if np.isnan(value) else value


def figures(
    outcome: Outcome, outputs: Floats, folds: Indices, units: Indices, *, resamples: int = RESAMPLES
) -> dict[str, Estimate]:
    """Each figure with its interval over units.

    Args:
        units: What is drawn together in the bootstrap: the groups of the split, `[n]`.
    """
    return {
        name: bootstrap(statistic, units, resamples=resamples)
        for name, statistic in statistics(outcome, outputs, folds).items()
    }


def lead(
    outcome: Outcome,
    outputs: Floats,
    others: Floats,
    folds: Indices,
    units: Indices,
    *,
    resamples: int = RESAMPLES,
) -> Estimate:
    """How far the primary figure is above that of other outputs for the same examples, resampled together."""
    one, other = (
        primary_statistic(outcome.problem, outcome.targets, values, folds)
        for values in (outputs, others)
    )
    return bootstrap(difference(one, other), units, resamples=resamples)


# What is drawn


def confusion(outcome: Outcome, outputs: Floats) -> list[list[int]]:
    """Examples by true class (rows) and predicted class; of `multilabel` by label: neither, said, missed, both."""
    targets = outcome.targets
    if outcome.problem == "multilabel":
        said = outputs >= 0.5
        return [
            [int(x) for x in ((~y & ~s).sum(), (~y & s).sum(), (y & ~s).sum(), (y & s).sum())]
            for y, s in zip(targets.T, said.T, strict=True)
        ]
    classes = len(outcome.names)
    chosen = outputs.argmax(axis=1) if outputs.ndim == 2 else (outputs >= 0.5).astype(np.int64)
    table = np.bincount(targets * classes + chosen, minlength=classes * classes)
    return [[int(x) for x in row] for row in table.reshape(classes, classes)]


def calibration(outcome: Outcome, outputs: Floats, bins: int = _NUM_BINS) -> list[dict[str, float]]:
    """What share of predictions of about each probability came true.

    Binary: the probability of the positive class; multiclass: that of the class said; multilabel:
    those of all labels together. Bins hold equal numbers of predictions.

    Returns:
        Of each bin: `predicted` (mean), `observed` (share), `low` and `high` (Wilson 95 %), `count`.
    """
    if outcome.problem == "regression":
        return []
    if outcome.problem == "multiclass":
        p = outputs.max(axis=1)
        true = outputs.argmax(axis=1) == outcome.targets
    else:
        p, true = outputs.ravel(), np.asarray(outcome.targets).astype(bool).ravel()
    order = np.argsort(p, kind="stable")
    found = []
    for part in np.array_split(order, min(bins, len(order))):
        n, share = part.size, float(true[part].mean())
        low, high = _wilson(share, n)
        found.append({"predicted": float(p[part].mean()), "observed": share, "low": low, "high": high, "count": int(n)})  # fmt: skip
    return found


def calibration_error(bins: list[dict[str, float]]) -> float:
    """Mean distance of predicted and observed shares over bins, weighted by their counts."""
    total = sum(one["count"] for one in bins)
    return sum(abs(one["predicted"] - one["observed"]) * one["count"] for one in bins) / total


def _wilson(share: float, n: int, z: float = 1.96) -> tuple[float, float]:
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * float(np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)))
    return max(0.0, middle - half), min(1.0, middle + half)


def curves(outcome: Outcome, outputs: Floats) -> dict[str, list[list[float]]]:
    """ROC (false, true positive rate) and precision-recall (recall, precision) by class; of numbers, pairs (true, predicted).

    All folds together; at most 200 points a curve, 2,000 pairs.
    """
    if outcome.problem == "regression":
        keep = np.arange(len(outcome))
        if keep.size > _SCATTER_POINTS:
            keep = np.sort(np.random.default_rng(0).permutation(keep)[:_SCATTER_POINTS])
        return {"pairs": [[float(y), float(p)] for y, p in zip(outcome.targets[keep], outputs[keep], strict=True)]}  # fmt: skip
    if outcome.problem == "binary":
        sides = {outcome.names[1]: (outputs, outcome.targets == 1)}
    elif outcome.problem == "multiclass":
        sides = {n: (outputs[:, k], outcome.targets == k) for k, n in enumerate(outcome.names)}
    else:
        sides = {n: (outputs[:, k], outcome.targets[:, k]) for k, n in enumerate(outcome.names)}
    found: dict[str, list[list[float]]] = {}
    for name, (scores, positive) in sides.items():
        order = np.argsort(-scores, kind="stable")
        ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
        hits, misses = np.cumsum(positive[order])[ends], np.cumsum(~positive[order])[ends]
        if ends.size > _CURVE_POINTS:
            few = np.unique(np.linspace(0, ends.size - 1, _CURVE_POINTS).round().astype(int))
            hits, misses = hits[few], misses[few]
        if not hits[-1] or not misses[-1]:
            continue
        recall = hits / hits[-1]
        found[f"roc {name}"] = [[0.0, 0.0], *np.stack([misses / misses[-1], recall], 1).tolist()]
        found[f"pr {name}"] = np.stack([recall, hits / (hits + misses)], axis=1).tolist()
    return found
