"""AUROC within strata, ranks and bootstrap, against their definitions."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, matthews_corrcoef, roc_auc_score

from evo_toolkit.statistics import (
    StratifiedAuroc,
    StratifiedAveragePrecision,
    auroc,
    bootstrap,
    matthews,
    spearman,
    stratified_correlation,
)


def loop_auroc(scores, positive, strata, weights) -> float:  # type: ignore[no-untyped-def]
    won = pairs = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            if strata[i] == strata[j]:
                weight = weights[i] * weights[j]
                pairs += weight
                won += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return won / pairs


@pytest.mark.parametrize("seed", range(4))
def test_auroc_is_the_share_of_pairs_won_within_strata(seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.integers(0, 6, 60).astype(float)  # many ties
    positive = random.random(60) < 0.4
    strata = random.integers(0, 5, 60)
    weights = random.integers(0, 3, 60).astype(float)
    ones = np.ones(60)
    found = StratifiedAuroc(scores, positive, strata)
    assert found() == pytest.approx(loop_auroc(scores, positive, strata, ones))
    assert found(weights) == pytest.approx(loop_auroc(scores, positive, strata, weights))
    assert StratifiedAuroc(scores, positive)() == pytest.approx(roc_auc_score(positive, scores))


def test_a_stratum_that_explains_everything_leaves_nothing() -> None:
    strata = np.repeat([0, 1], 50)
    positive = np.concatenate([np.arange(50) < 45, np.arange(50) < 5])
    scores = -strata.astype(float)
    assert StratifiedAuroc(scores, positive)() == pytest.approx(0.9)
    assert StratifiedAuroc(scores, positive, strata)() == 0.5


def test_without_a_pair_there_is_no_auroc() -> None:
    assert np.isnan(StratifiedAuroc(np.arange(3.0), np.array([True, True, True]))())
    assert np.isnan(StratifiedAuroc(np.zeros(2), np.array([True, False]), np.array([0, 1]))())
    empty = auroc(np.zeros(0), np.zeros(0, bool), np.zeros(0, int))
    assert np.isnan(empty.value) and empty.json()["low"] is None
    with pytest.raises(ValueError, match="NaN"):
        StratifiedAuroc(np.array([1.0, np.nan]), np.array([True, False]))


def test_spearman_with_ties() -> None:
    random = np.random.default_rng(0)
    a, b = random.integers(0, 5, 40).astype(float), random.integers(0, 5, 40).astype(float)
    assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic)
    assert np.isnan(spearman(a, np.ones(40)))


def test_bootstrap_resamples_units_not_items() -> None:
    random = np.random.default_rng(0)
    units = np.repeat(np.arange(30), 40)
    values = np.repeat(random.normal(size=30), 40)  # all items of a unit agree

    def mean(times: np.ndarray) -> float:
        return float((values * times).sum() / times.sum())

    clustered = bootstrap(mean, units)
    alone = bootstrap(mean, np.arange(values.size))
    assert clustered.value == alone.value == pytest.approx(values.mean())
    # The standard error of 30 numbers, not of 1,200.
    width = (clustered.high - clustered.low) / (2 * 1.96)
    assert width == pytest.approx(values[::40].std() / np.sqrt(30), rel=0.15)
    assert alone.high - alone.low < 0.3 * (clustered.high - clustered.low)
    assert bootstrap(mean, units) == clustered  # the seed is fixed


def test_average_precision_is_that_of_scikit_learn_with_multiplicities() -> None:
    random = np.random.default_rng(0)
    positive = random.random(60) < 0.3
    scores = np.round(positive + random.normal(0, 1, 60), 1)  # with ties
    times = random.integers(0, 3, 60)
    expected = average_precision_score(np.repeat(positive, times), np.repeat(scores, times))
    found = StratifiedAveragePrecision(scores, positive)
    assert found(times.astype(float)) == pytest.approx(expected)
    assert np.isnan(found(np.where(positive, 0.0, 1.0)))


def test_average_precision_of_strata_is_their_mean_by_positives_or_items() -> None:
    random = np.random.default_rng(1)
    strata = np.repeat([0, 1, 2], [10, 20, 5])
    positive = (np.arange(35) % 3 == 0) & (strata < 2)  # the last has none
    scores = random.normal(size=35)
    parts = [average_precision_score(positive[strata == k], scores[strata == k]) for k in (0, 1)]
    positives = [positive[strata == k].sum() for k in (0, 1)]
    of = StratifiedAveragePrecision(scores, positive, strata)
    assert of() == pytest.approx(np.average(parts, weights=positives))
    of = StratifiedAveragePrecision(scores, positive, strata, by="items")
    assert of() == pytest.approx(np.average(parts, weights=[10, 20]))
    assert abs(np.average(parts, weights=[10, 20]) - np.average(parts, weights=positives)) > 1e-4


def test_matthews_is_that_of_scikit_learn() -> None:
    random = np.random.default_rng(0)
    truth, said = random.integers(0, 4, 100), random.integers(0, 4, 100)
    said[:60] = truth[:60]
    table = np.bincount(4 * truth + said, minlength=16).reshape(4, 4).astype(float)
    assert matthews(table) == pytest.approx(matthews_corrcoef(truth, said))
    assert matthews(np.diag([3.0, 0.0])) == 0.0


def test_correlation_within_strata_leaves_out_those_without_a_difference() -> None:
    truth = np.array([1.0, 2, 3, 5, 5, 5])
    scores, strata = np.array([1.0, 3, 2, 1, 2, 3]), np.array([0, 0, 0, 1, 1, 1])
    rho = stratified_correlation(spearman, truth, scores, strata)
    assert rho(np.ones(6)) == pytest.approx(0.5)
    assert np.isnan(rho(np.array([0.0, 0, 0, 1, 1, 1])))
