"""Nested cross-validation over whole groups, its metrics, and the baselines trained on sequences."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import matthews_corrcoef, roc_auc_score

from evo_toolkit.errors import UsageError
from evo_toolkit.evaluation.cnn import CnnPredictor
from evo_toolkit.evaluation.sequence_baselines import one_hot
from evo_toolkit.evaluation.supervised import (
    AsIs,
    LinearGrid,
    Outcome,
    Round,
    compare,
    compare_rounds,
    cross_validate,
    fold_numbers,
    measure,
)
from evo_toolkit.finetuning.metrics import Indices
from evo_toolkit.statistics import Floats


def binary(n: int, seed: int = 0, groups: int | None = None) -> Outcome:
    random = np.random.default_rng(seed)
    return Outcome("binary", random.integers(0, 2, n), random.integers(0, groups or n, n))


class Spy:
    """Notes what it was trained and asked on; scores are the indices."""

    def __init__(self) -> None:
        self.calls: list[tuple[Indices, Indices]] = []

    def __call__(self, outcome: Outcome, train: Indices, test: Indices) -> Floats:
        self.calls.append((train, test))
        return test.astype(float)


def test_folds_hold_whole_groups_and_hold_out_each_example_once() -> None:
    outcome = binary(200, groups=23)
    folds = fold_numbers(outcome, 5, 0)
    spy = Spy()
    scores = cross_validate(outcome, {"spy": spy}, folds)["spy"]
    assert np.array_equal(np.sort(np.concatenate([test for _, test in spy.calls])), np.arange(200))
    for train, test in spy.calls:
        assert not set(outcome.groups[train]) & set(outcome.groups[test])
    assert np.array_equal(scores, np.arange(200))
    assert np.bincount(folds).min() > 25
    with pytest.raises(UsageError, match="3 groups cannot be spread over 5 folds"):
        fold_numbers(Outcome("binary", np.arange(6) % 2, np.arange(6) % 3), 5, 0)


def test_a_published_split_is_trained_on_and_judged_as_published() -> None:
    outcome, spy = binary(50), Spy()
    folds = np.where(np.arange(50) < 30, -1, 0)
    scores = cross_validate(outcome, {"spy": spy}, folds)["spy"]
    ((train, test),) = spy.calls
    assert train.tolist() == list(range(30))
    assert test.tolist() == list(range(30, 50))
    assert np.isnan(scores[:30]).all()
    assert compare(outcome, {"spy": scores}, folds, resamples=0)["num_examples"] == 20


def test_choices_are_made_without_the_examples_held_out() -> None:
    """Neither features that agree with the labels of the held-out fold alone are chosen, nor ones so
    many that they fit whatever they are fitted on."""
    outcome = binary(240, seed=3)
    folds = fold_numbers(outcome, 3, 0)
    random = np.random.default_rng(1)
    useful = (outcome.targets + random.normal(0, 1.0, 240))[:, None]
    many = random.normal(size=(240, 150))
    for held in range(3):
        leaking = random.normal(0, 1, (240, 1))
        leaking[folds == held, 0] = 10 * outcome.targets[folds == held]
        grid = LinearGrid({"leaking": leaking, "many": many, "useful": useful})
        train, test = np.flatnonzero(folds != held), np.flatnonzero(folds == held)
        grid(outcome, train, test)
        assert grid.chosen[0][0] == "useful"


def test_labels_without_relation_are_not_predicted() -> None:
    outcome = binary(400, seed=5)
    noise = np.random.default_rng(0).normal(size=(400, 60))
    folds = fold_numbers(outcome, 5, 0)
    scores = cross_validate(outcome, {"model": LinearGrid({"a": noise})}, folds)
    figure = compare(outcome, scores, folds, resamples=100)["figures"]["model"]
    assert figure["low"] < 0.5 < figure["high"]


def test_auroc_compares_within_folds_alone() -> None:
    outcome = Outcome("binary", np.array([0, 1, 0, 1]), np.arange(4))
    # The second fold's scores lie higher as a whole, which says nothing.
    scores, folds = np.array([0.1, 0.2, 5.1, 5.2]), np.array([0, 0, 1, 1])
    assert measure(outcome, scores, folds)(np.ones(4)) == 1.0
    assert roc_auc_score(outcome.targets, scores) == 0.75


def test_matthews_is_that_of_scikit_learn_with_multiplicities() -> None:
    random = np.random.default_rng(0)
    truth, said = random.integers(0, 4, 100), random.integers(0, 4, 100)
    said[:60] = truth[:60]
    times = random.integers(0, 3, 100)
    expected = matthews_corrcoef(np.repeat(truth, times), np.repeat(said, times))
    outcome, folds = Outcome("multiclass", truth, np.arange(100)), np.zeros(100, np.int64)
    found = measure(outcome, np.eye(4)[said], folds)
    assert found(times.astype(float)) == pytest.approx(expected)
    assert measure(outcome, np.eye(4)[np.zeros(100, int)], folds)(np.ones(100)) == 0.0


def test_rank_correlation_is_the_mean_over_folds_with_multiplicities() -> None:
    outcome = Outcome("regression", np.array([1.0, 2, 3, 1, 2, 3]), np.arange(6))
    scores, folds = np.array([1.0, 2, 3, 13, 12, 11]), np.array([0, 0, 0, 1, 1, 1])
    rho = measure(outcome, scores, folds)
    assert rho(np.ones(6)) == 0.0
    assert rho(np.array([1.0, 1, 1, 0, 0, 0])) == 1.0
    assert measure(outcome, np.zeros(6), folds)(np.ones(6)) == 0.0


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "regression"])
def test_every_kind_is_learned_where_there_is_something_to_learn(kind: str) -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(300, 6))
    targets = {
        "binary": (x[:, 0] > 0).astype(int),
        "multiclass": np.argmax(x[:, :3], axis=1),
        "multilabel": x[:, :2] > 0,
        "regression": x[:, 0] - x[:, 1],
    }[kind]
    outcome = Outcome(kind, targets, np.arange(300))  # type: ignore[arg-type]
    folds = fold_numbers(outcome, 3, 0)
    predictors = {"model": LinearGrid({"x": x}), "other": LinearGrid({"noise": x[:, 5:]})}
    scores = cross_validate(outcome, predictors, folds)
    found = compare(outcome, scores, folds, against=["other"], resamples=50)
    assert found["figures"]["model"]["value"] > 0.85
    assert found["model_minus"]["other"]["low"] > 0.3


def test_a_difference_is_of_the_same_resamples() -> None:
    """Of two predictors that are nearly the same the difference is known better than either."""
    outcome = binary(300, seed=2)
    scores = outcome.targets + np.random.default_rng(0).normal(0, 1, 300)
    folds = np.zeros(300, np.int64)
    near = AsIs(scores + np.random.default_rng(1).normal(0, 0.01, 300))
    found = cross_validate(outcome, {"model": AsIs(scores), "near": near}, folds)
    result = compare(outcome, found, folds, against=["near"], resamples=100)
    width = {name: x["high"] - x["low"] for name, x in result["figures"].items()}
    ahead = result["model_minus"]["near"]
    assert ahead["high"] - ahead["low"] < width["near"] / 5


def test_a_figure_is_the_mean_over_rounds() -> None:
    outcome = Outcome("binary", np.array([0, 1, 0, 1]), np.arange(4))
    folds = np.zeros(4, np.int64)
    good, bad = np.array([0.0, 1, 0, 1]), np.array([1.0, 0, 1, 0])
    found = compare_rounds(
        outcome, [Round({"model": x}, folds) for x in (good, good, bad)], resamples=0
    )
    assert found["figures"]["model"]["value"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["rounds"] == 3


def test_groups_that_repeat_widen_the_interval() -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, 2, 40)
    scores = targets + random.normal(0, 1, 40)
    widths = []
    for groups in (np.arange(400), np.tile(np.arange(40), 10)):
        outcome = Outcome("binary", np.tile(targets, 10), groups)
        folds = np.zeros(400, np.int64)
        figure = compare(outcome, {"model": np.tile(scores, 10)}, folds, resamples=200)
        low_high = figure["figures"]["model"]
        widths.append(low_high["high"] - low_high["low"])
    assert widths[1] > 2 * widths[0]


def test_bases_by_position() -> None:
    hot = one_hot(["AN", "CT"])
    assert hot is not None
    assert hot.tolist() == [[1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0, 0, 1]]
    assert one_hot(["A", "AC"]) is None


def test_the_small_network_finds_a_motif_and_repeats_itself() -> None:
    random = np.random.default_rng(0)
    texts = ["".join(random.choice(list("ACGT"), 40)) for _ in range(400)]
    targets = np.arange(400) % 2
    # Anywhere in the sequence: neither composition nor one position tells.
    for index in np.flatnonzero(targets):
        at = int(random.integers(0, 30))
        texts[index] = texts[index][:at] + "TGACTCACGT" + texts[index][at + 10 :]
    outcome = Outcome("binary", targets, np.arange(400))
    train, test = np.arange(300), np.arange(300, 400)
    scores = [CnnPredictor(texts, epochs=12, seed=1)(outcome, train, test) for _ in range(2)]
    assert np.array_equal(scores[0], scores[1])
    assert roc_auc_score(targets[test], scores[0]) > 0.9


def test_the_small_network_needs_no_more_groups_than_there_are() -> None:
    texts = ["ACGT" * 10, "TTTTAAAA" * 5] * 10
    outcome = Outcome("binary", np.arange(20) % 2, np.arange(20) // 7)
    train, test = np.flatnonzero(outcome.groups < 2), np.flatnonzero(outcome.groups == 2)
    assert CnnPredictor(texts, epochs=1)(outcome, train, test).shape == (6,)
