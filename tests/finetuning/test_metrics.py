"""Figures of predictions against scikit-learn and by hand, and what is drawn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as sklearn_metrics

from evo_toolkit.finetuning.metrics import (
    Outcome,
    calibration,
    calibration_error,
    confusion,
    curves,
    figures,
    lead,
    selection,
    statistics,
)

ONE_FOLD = np.zeros(200, np.int64)


def drawn(classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Classes and probabilities that know something of them; with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, classes, 200)
    scores = rng.normal(size=(200, classes)).round(1) + 1.2 * np.eye(classes)[truth]
    odds = np.exp(scores)
    return truth, odds / odds.sum(axis=1, keepdims=True)


def value(
    outcome: Outcome, outputs: np.ndarray, name: str, weights: np.ndarray | None = None
) -> float:
    ones = np.ones(len(outcome)) if weights is None else weights
    return statistics(outcome, outputs, np.zeros(len(outcome), np.int64))[name](ones)


@pytest.mark.parametrize("weighted", [False, True])
def test_binary_figures_are_those_of_scikit_learn(weighted: bool) -> None:
    truth, shares = drawn(2)
    p = shares[:, 1].round(2)
    w = np.random.default_rng(1).integers(0, 4, 200).astype(float) if weighted else np.ones(200)
    outcome = Outcome(problem="binary", targets=truth, names=("no", "yes"))
    said = p >= 0.5
    expected = {
        "auroc": sklearn_metrics.roc_auc_score(truth, p, sample_weight=w),
        "auprc": sklearn_metrics.average_precision_score(truth, p, sample_weight=w),
        "accuracy": sklearn_metrics.accuracy_score(truth, said, sample_weight=w),
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, said, sample_weight=w),
        "mcc": sklearn_metrics.matthews_corrcoef(truth, said, sample_weight=w),
        "f1": sklearn_metrics.f1_score(truth, said, sample_weight=w),
        "brier": np.average((p - truth) ** 2, weights=w),
        "log_loss": sklearn_metrics.log_loss(truth, np.clip(p, 1e-12, 1 - 1e-12), sample_weight=w),
    }
    found = {name: value(outcome, p, name, w) for name in expected}
    assert found == pytest.approx(expected)


def test_several_classes_and_labels_as_scikit_learn_has_them() -> None:
    truth, shares = drawn(3)
    outcome = Outcome(problem="multiclass", targets=truth, names=("a", "b", "c"))
    said = shares.argmax(axis=1)
    assert value(outcome, shares, "mcc") == pytest.approx(
        sklearn_metrics.matthews_corrcoef(truth, said)
    )
    assert value(outcome, shares, "macro_f1") == pytest.approx(
        sklearn_metrics.f1_score(truth, said, average="macro")
    )
    assert value(outcome, shares, "log_loss") == pytest.approx(
        sklearn_metrics.log_loss(truth, shares)
    )
    assert confusion(outcome, shares) == sklearn_metrics.confusion_matrix(truth, said).tolist()
    labels = np.random.default_rng(3).random((200, 3)) < 0.4
    many = Outcome(problem="multilabel", targets=labels, names=("a", "b", "c"))
    assert value(many, shares, "mean_auroc") == pytest.approx(
        sklearn_metrics.roc_auc_score(labels, shares, average="macro")
    )
    assert value(many, shares, "mean_auprc") == pytest.approx(
        sklearn_metrics.average_precision_score(labels, shares, average="macro")
    )
    assert np.sum(confusion(many, shares)) == 600


def test_ranks_are_compared_within_folds_alone() -> None:
    """A fold whose scores all lie higher would otherwise decide."""
    truth = np.array([0, 1, 0, 1])
    folds = np.array([0, 0, 1, 1])
    outcome = Outcome(problem="binary", targets=truth, names=("no", "yes"))
    scores = np.array([0.8, 0.9, 0.1, 0.2])
    assert statistics(outcome, scores, folds)["auroc"](np.ones(4)) == 1.0
    assert statistics(outcome, scores, folds)["auprc"](np.ones(4)) == 1.0
    assert statistics(outcome, scores, np.zeros(4, int))["auroc"](np.ones(4)) == 0.75
    numbers = Outcome(problem="regression", targets=np.array([1.0, 2.0, 3.0, 1.0, 2.0, 3.0]))
    shifted = np.array([1.0, 2.0, 3.0, 11.0, 12.0, 13.0])
    six = np.array([0, 0, 0, 1, 1, 1])
    assert statistics(numbers, shifted, six)["spearman"](np.ones(6)) == pytest.approx(1.0)
    assert statistics(numbers, shifted, six)["r2"](np.ones(6)) < 0


def test_intervals_resample_groups_together() -> None:
    truth, shares = drawn(2)
    outcome = Outcome(problem="binary", targets=truth, names=("no", "yes"))
    alone = figures(outcome, shares[:, 1], ONE_FOLD, np.arange(200), resamples=200)["auroc"]
    twenty = figures(outcome, shares[:, 1], ONE_FOLD, np.arange(200) // 10, resamples=200)["auroc"]
    one = figures(outcome, shares[:, 1], ONE_FOLD, np.zeros(200, int), resamples=200)["auroc"]
    assert alone.value == twenty.value and alone.low < alone.value < alone.high
    assert one.low == one.high == one.value
    ahead = lead(outcome, shares[:, 1], shares[:, 0], ONE_FOLD, np.arange(200), resamples=200)
    assert ahead.value == pytest.approx(2 * alone.value - 1, abs=1e-3) and ahead.low > 0
    none = lead(outcome, shares[:, 1], shares[:, 1], ONE_FOLD, np.arange(200), resamples=50)
    assert (none.low, none.high) == (0.0, 0.0)


def test_calibration_tells_honest_probabilities_from_exaggerated_ones() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(4000)
    truth = (rng.random(4000) < p).astype(np.int64)
    outcome = Outcome(problem="binary", targets=truth, names=("no", "yes"))
    honest = calibration(outcome, p)
    assert sum(one["count"] for one in honest) == 4000 and len(honest) == 10
    assert sum(one["low"] <= one["predicted"] <= one["high"] for one in honest) >= 8
    loud = calibration(outcome, np.where(p > 0.5, 0.99, 0.01))
    assert calibration_error(honest) < 0.03 < 0.2 < calibration_error(loud)


def test_curves_start_and_end_where_they_must() -> None:
    truth, shares = drawn(2)
    found = curves(Outcome(problem="binary", targets=truth, names=("no", "yes")), shares[:, 1])
    roc = np.array(found["roc yes"])
    assert roc[0].tolist() == [0, 0] and roc[-1].tolist() == [1, 1]
    assert (np.diff(roc, axis=0) >= 0).all()
    assert np.trapezoid(roc[:, 1], roc[:, 0]) == pytest.approx(sklearn_metrics.roc_auc_score(truth, shares[:, 1]))  # fmt: skip


def test_settings_are_chosen_by_a_figure_that_rises() -> None:
    truth = np.array([0, 0, 0, 1])
    outcome = Outcome(problem="binary", targets=truth, names=("no", "yes"))
    good, bad = np.array([0.1, 0.1, 0.1, 0.9]), np.array([0.1, 0.1, 0.1, 0.1])
    folds = np.zeros(4, np.int64)
    assert selection(outcome, good, folds) > selection(outcome, bad, folds)
    # Balanced, the one positive counts as much as three negatives.
    rare, common = np.array([0.3, 0.3, 0.3, 0.6]), np.array([0.05, 0.05, 0.05, 0.2])
    assert selection(outcome, rare, folds, balanced=True) > selection(outcome, common, folds, balanced=True)  # fmt: skip
    numbers = Outcome(problem="regression", targets=np.arange(4.0))
    assert (
        selection(numbers, np.arange(4.0), folds) == 1 > selection(numbers, -np.arange(4.0), folds)
    )
