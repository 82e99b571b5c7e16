"""Classifiers and regressions on features, judged on folds that no group straddles.

Cross-validation is nested: which features (layer, length of k-mers) and how strong a penalty is
chosen within the training folds alone, on inner folds that no group straddles either. A figure is
taken of the predictions for held-out examples, comparing only predictions of one fold with each
other; its interval resamples groups, and a difference of two predictors resamples them together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.finetuning.metrics import Indices, Problem, primary_statistic
from evo_toolkit.finetuning.splits import grouped_folds
from evo_toolkit.statistics import RESAMPLES, Estimate, Floats, Statistic, bootstrap, difference

FOLDS = 5
ROUNDS = 3
INNER_FOLDS = 3
INVERSE_PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
"""C of logistic regressions, on standardised features."""
RIDGE_PENALTIES = (1e0, 1e1, 1e2, 1e3, 1e4, 1e5)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What is to be predicted.

    Attributes:
        kind: binary [n] of 0 and 1; multiclass [n] of class numbers; multilabel [n, K] of bool;
            regression [n].
        targets: By kind.
        groups: Number of each example's group `[n]`.
    """

    kind: Problem
    targets: NDArray[Any]
    groups: Indices

    def __len__(self) -> int:
        return len(self.targets)


def part_of(outcome: Outcome, keep: NDArray[Any]) -> Outcome:
    """The outcome of some examples, by indices or a mask."""
    return Outcome(outcome.kind, outcome.targets[keep], outcome.groups[keep])


class Predictor(Protocol):
    """Learns from some examples to predict others."""

    def __call__(self, outcome: Outcome, train: Indices, test: Indices) -> NDArray[np.floating]:
        """Scores of `test`, `[m]` (higher means more, or positive), or `[m, K]` of classes."""


def fold_numbers(outcome: Outcome, count: int, seed: int) -> Indices:
    """The fold of each example, `[n]` from 0: groups whole, sizes and classes about even.

    Raises:
        UsageError: with fewer groups than folds.
    """
    strata = outcome.targets if outcome.kind in ("binary", "multiclass") else None
    found = np.empty(len(outcome), np.int64)
    folds = grouped_folds(outcome.groups, count, strata=strata, seed=seed)
    for number, fold in enumerate(folds):
        found[fold.test] = number
    return found


# Metrics: of predictions for held-out examples, with multiplicities of the examples.


def metric_name(kind: Problem) -> str:
    """What figures of a kind are called."""
    return {
        "binary": "AUROC", "multiclass": "MCC", "multilabel": "mean AUROC", "regression": "Spearman",
    }[kind]  # fmt: skip


def measure(outcome: Outcome, scores: NDArray[np.floating], folds: Indices) -> Statistic:
    """The metric of predictions as a function of multiplicities (ones: of the data as they are).

    AUROCs count pairs within a fold, rank correlations are means over folds by size, and Matthews'
    correlation coefficient is of all predictions.
    """
    return primary_statistic(outcome.kind, outcome.targets, np.asarray(scores, float), folds)


# Linear predictors


def fit_linear(
    kind: Problem, features: Floats, targets: NDArray[Any], penalties: Sequence[float]
) -> list[Callable[[Floats], Floats]]:
    """A logistic or ridge regression for each penalty; each function returned gives scores.

    Features are standardised, and classes count equally, however many examples each has.
    """
    mean, scale = features.mean(axis=0), features.std(axis=0)
    # A feature that hardly varies would make noise of its own rounding when scaled.
    scale = np.where(scale > 1e-6 * max(1e-12, float(scale.max(initial=0.0))), scale, np.inf)
    x = (features - mean) / scale

    def of_raw(fitted: Callable[[Floats], Floats]) -> Callable[[Floats], Floats]:
        return lambda new: fitted((new - mean) / scale)

    if kind == "regression":
        return [of_raw(one) for one in _ridges(x, np.asarray(targets, float), penalties)]
    return [of_raw(_logistic(kind, x, targets, penalty)) for penalty in penalties]


def _ridges(x: Floats, y: Floats, penalties: Sequence[float]) -> list[Callable[[Floats], Floats]]:
    """Ridge regressions on centred features `[n, F]`: one product of the features for all penalties."""
    n, width = x.shape
    offset = float(y.mean())
    dual = width > n
    gram = x @ x.T if dual else x.T @ x
    right = y - offset if dual else x.T @ (y - offset)
    found: list[Callable[[Floats], Floats]] = []
    for penalty in penalties:
        solved = np.linalg.solve(gram + penalty * np.eye(len(gram)), right)
        weight = x.T @ solved if dual else solved
        found.append(_affine(np.asarray(weight, float), offset))
    return found


def _affine(weight: Floats, offset: float) -> Callable[[Floats], Floats]:
    return lambda new: new @ weight + offset


def _logistic(
    kind: Problem, x: Floats, targets: NDArray[Any], penalty: float
) -> Callable[[Floats], Floats]:
    from sklearn.linear_model import LogisticRegression

    def fitted(y: NDArray[Any]) -> Any:
        if np.unique(y).size < 2:
            return None
        return LogisticRegression(C=penalty, max_iter=500, class_weight="balanced").fit(x, y)

    if kind == "multilabel":
        models = [fitted(targets[:, k]) for k in range(targets.shape[1])]
        return lambda new: np.stack(
            [np.zeros(len(new)) if m is None else m.decision_function(new) for m in models], axis=1
        )
    model = fitted(targets)
    if kind == "binary":
        if model is None:
            return lambda new: np.zeros(len(new))
        return lambda new: np.asarray(model.decision_function(new), float)

    def shares(new: Floats) -> Floats:
        result = np.zeros((len(new), int(targets.max()) + 1))
        if model is None:
            result[:, int(targets[0])] = 1
        else:
            result[:, model.classes_] = model.predict_proba(new)
        return result

    return shares


@dataclass(eq=False)
class LinearGrid:
    """A linear predictor on the best of several sets of features, chosen in inner folds.

    Attributes:
        candidates: `[n, F]` of all examples, by name.
        seed: Of the inner folds.
        chosen: Name and penalty that every call settled on, in order.
    """

    candidates: Mapping[str, NDArray[np.floating]]
    seed: int = 0
    chosen: list[tuple[str, float]] = field(default_factory=list)

    def __call__(self, outcome: Outcome, train: Indices, test: Indices) -> Floats:
        """Choose, fit on `train`, return the scores of `test`."""
        penalties = RIDGE_PENALTIES if outcome.kind == "regression" else INVERSE_PENALTIES
        inner = fold_numbers(part_of(outcome, train), INNER_FOLDS, self.seed)
        best: tuple[float, str, float] | None = None
        for name, matrix in self.candidates.items():
            values = self._inner_scores(outcome, train, inner, matrix, penalties)
            for penalty, value in zip(penalties, values, strict=True):
                if best is None or value > best[0]:
                    best = (value, name, penalty)
        assert best is not None
        _, name, penalty = best
        self.chosen.append((name, penalty))
        matrix = self.candidates[name]
        (fitted,) = fit_linear(
            outcome.kind, matrix[train].astype(float), outcome.targets[train], [penalty]
        )
        return _wide(fitted(matrix[test].astype(float)), outcome)

    def _inner_scores(
        self,
        outcome: Outcome,
        train: Indices,
        inner: Indices,
        matrix: NDArray[np.floating],
        penalties: Sequence[float],
    ) -> list[float]:
        """The metric of each penalty on the inner folds; -1 where it cannot be computed."""
        scores = np.zeros((len(penalties), *_shape(outcome, train.size)))
        for fold in range(INNER_FOLDS):
            rest, held = train[inner != fold], train[inner == fold]
            fitted = fit_linear(
                outcome.kind, matrix[rest].astype(float), outcome.targets[rest], penalties
            )
            new = matrix[held].astype(float)
            for one, predict in zip(scores, fitted, strict=True):
                one[inner == fold] = _wide(predict(new), outcome)
        part = part_of(outcome, train)
        values = [measure(part, one, inner)(np.ones(train.size)) for one in scores]
        return [-1.0 if np.isnan(value) else value for value in values]


@dataclass(frozen=True, eq=False)
class AsIs:
    """Values that are known without learning, higher meaning more: another tool's score, a length."""

    values: NDArray[np.floating]

    def __call__(self, outcome: Outcome, train: Indices, test: Indices) -> Floats:
        """The values of `test`."""
        return np.asarray(self.values, float)[test]


def _shape(outcome: Outcome, rows: int) -> tuple[int, ...]:
    if outcome.kind == "multilabel":
        return (rows, outcome.targets.shape[1])
    if outcome.kind == "multiclass":
        return (rows, int(outcome.targets.max()) + 1)
    return (rows,)


def _wide(scores: Floats, outcome: Outcome) -> Floats:
    """Scores with a column for classes too that the training folds lacked."""
    shape = _shape(outcome, len(scores))
    if scores.shape == shape:
        return scores
    result = np.zeros(shape)
    result[:, : scores.shape[1]] = scores
    return result


# The whole


def cross_validate(
    outcome: Outcome,
    predictors: Mapping[str, Predictor],
    folds: Indices,
    *,
    say: Callable[[str], None] = lambda text: None,
) -> dict[str, Floats]:
    """Scores of held-out examples by each predictor.

    Args:
        outcome: What to predict.
        predictors: By name.
        folds: Of each example; every fold is held out once. -1 is always trained on, never judged,
            so a published split is -1 for its training part and 0 for its test part.
        say: Gets a line when a predictor is done.

    Returns:
        `[n]` or `[n, K]`, NaN for examples that are not judged.
    """
    found = {}
    for name, predictor in predictors.items():
        scores = np.full(_shape(outcome, len(outcome)), np.nan)
        for fold in np.unique(folds[folds >= 0]):
            train, test = np.flatnonzero(folds != fold), np.flatnonzero(folds == fold)
            scores[test] = predictor(outcome, train, test)
        found[name] = scores
        judged = folds >= 0
        value = measure(part_of(outcome, judged), scores[judged], folds[judged])(
            np.ones(judged.sum())
        )
        say(f"{name}: {metric_name(outcome.kind)} {value:.3f}")
    return found


class Round(NamedTuple):
    """One cross-validation: the scores of `cross_validate`, by predictor, and its folds."""

    scores: Mapping[str, NDArray[np.floating]]
    folds: Indices


def _mean_over(rounds: Sequence[Statistic]) -> Statistic:
    return lambda weights: float(np.mean([one(weights) for one in rounds]))


def compare(
    outcome: Outcome,
    scores: Mapping[str, NDArray[np.floating]],
    folds: Indices,
    *,
    against: Sequence[str] = (),
    of: str = "model",
    keep: NDArray[np.bool_] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """`compare_rounds` of one cross-validation."""
    return compare_rounds(
        outcome, [Round(scores, folds)], against=against, of=of, keep=keep, resamples=resamples
    )


def compare_rounds(
    outcome: Outcome,
    rounds: Sequence[Round],
    *,
    against: Sequence[str] = (),
    of: str = "model",
    keep: NDArray[np.bool_] | None = None,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """Figures of predictors with their intervals, and how far one is ahead of the others.

    Args:
        outcome: What was predicted.
        rounds: Cross-validations with other folds and seeds; figures are means over them, since one
            draw of folds moves a figure by about as much as the differences that matter.
        against: Predictors that `of` is compared with, where both are there.
        of: The predictor in question.
        keep: Judge only these examples (those without a near copy in the training genomes, say).
        resamples: Of the bootstrap over groups.
    """
    judged = rounds[0].folds >= 0
    if keep is not None:
        judged = judged & keep
    part = part_of(outcome, judged)
    metrics = {
        name: _mean_over(
            [measure(part, one.scores[name][judged], one.folds[judged]) for one in rounds]
        )
        for name in rounds[0].scores
    }

    def estimate(statistic: Statistic) -> Estimate:
        return bootstrap(statistic, part.groups, resamples=resamples)

    figures = {name: estimate(metric).json() for name, metric in metrics.items()}
    ahead = {}
    for other in against:
        if of in metrics and other in metrics and other != of:
            ahead[other] = estimate(difference(metrics[of], metrics[other])).json()
    return {
        "metric": metric_name(outcome.kind),
        "num_examples": int(judged.sum()),
        "num_groups": int(np.unique(part.groups).size),
        "rounds": len(rounds),
        "figures": figures,
        f"{of}_minus": ahead,
    }
