"""Heads on frozen features: the fits of scikit-learn, and cross-validation that sees nothing held out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from evo_data.files import sha256_file
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.finetuning.frozen import (
    PENALTIES,
    Fits,
    Settings,
    cross_validate,
    fit_affine,
    joined,
    outputs_of,
    parse_candidates,
    sequence_features,
)
from evo_toolkit.finetuning.heads import Affine, SequenceHead, load_head
from evo_toolkit.finetuning.metrics import Outcome, primary
from evo_toolkit.finetuning.plain_features import composition, kmer_features, kmer_shares
from evo_toolkit.finetuning.splits import grouped_folds
from evo_toolkit.inference.embed import embed
from evo_toolkit.variants.head import VariantHead

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 6)) * np.array([1, 10, 0.1, 5, 1, 0]) + np.array([0, 3, 1, -7, 0, 2])
LOGITS = X[:, 0] + 0.3 * X[:, 1] - X[:, 3]
BINARY = Outcome(
    problem="binary", targets=(np.median(LOGITS) < LOGITS).astype(np.int64), names=("n", "y")
)
CLASSES = Outcome(
    problem="multiclass",
    targets=np.digitize(LOGITS, np.quantile(LOGITS, [0.3, 0.8])).astype(np.int64),
    names=("a", "b", "c"),
)
LABELS = Outcome(
    problem="multilabel", targets=np.stack([X[:, 0] > 0, LOGITS > 4], 1), names=("p", "q")
)
NUMBERS = Outcome(problem="regression", targets=LOGITS + RNG.normal(size=120))


def standardised() -> np.ndarray:
    # The last column is constant and must not become noise.
    scale = X.std(axis=0)
    return (X - X.mean(axis=0)) / np.where(scale > 1e-6 * scale.max(), scale, scale.max())


@pytest.mark.parametrize("balanced", [False, True])
def test_logistic_heads_give_the_probabilities_of_scikit_learn(balanced: bool) -> None:
    from sklearn.linear_model import LogisticRegression

    weights = "balanced" if balanced else None
    for outcome in (BINARY, CLASSES):
        head = fit_affine(outcome, "logistic", X, 10.0, balanced=balanced, seed=0)
        model = LogisticRegression(C=0.1, max_iter=2000, class_weight=weights).fit(standardised(), outcome.targets)  # fmt: skip
        expected = model.predict_proba(standardised())
        found = head(X)
        np.testing.assert_allclose(
            found, expected[:, 1:] if found.shape[1] == 1 else expected, atol=1e-5
        )
    head = fit_affine(LABELS, "logistic", X, 10.0, balanced=balanced, seed=0)
    for column in range(2):
        model = LogisticRegression(C=0.1, max_iter=2000, class_weight=weights).fit(standardised(), LABELS.targets[:, column])  # fmt: skip
        np.testing.assert_allclose(
            head(X)[:, column], model.predict_proba(standardised())[:, 1], atol=1e-5
        )


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_ridge_and_perceptrons_give_what_scikit_learn_predicts() -> None:
    from sklearn.linear_model import Ridge
    from sklearn.neural_network import MLPClassifier, MLPRegressor

    head = fit_affine(NUMBERS, "ridge", X, 100.0, balanced=False, seed=0)
    model = Ridge(alpha=100.0).fit(standardised(), NUMBERS.targets)
    np.testing.assert_allclose(
        outputs_of(NUMBERS, head, X), model.predict(standardised()), atol=1e-4
    )
    common = {"hidden_layer_sizes": (64,), "alpha": 0.1, "max_iter": 300, "random_state": 3}
    for outcome in (BINARY, CLASSES, LABELS):
        head = fit_affine(outcome, "mlp", X, 0.1, balanced=False, seed=3)
        assert len(head.hidden) == 1
        expected = MLPClassifier(**common).fit(standardised(), outcome.targets).predict_proba(standardised())  # fmt: skip
        found = head(X)
        np.testing.assert_allclose(
            found, expected[:, 1:] if found.shape[1] == 1 else expected, atol=1e-2
        )
    head = fit_affine(NUMBERS, "mlp", X, 0.1, balanced=False, seed=3)
    middle, spread = NUMBERS.targets.mean(), NUMBERS.targets.std()
    model = MLPRegressor(**common).fit(standardised(), (NUMBERS.targets - middle) / spread)
    np.testing.assert_allclose(outputs_of(NUMBERS, head, X), model.predict(standardised()) * spread + middle, atol=0.1)  # fmt: skip


@pytest.mark.parametrize("estimator", ["logistic", "mlp"])
def test_classes_that_a_training_part_lacks_are_never_said(estimator: str) -> None:
    rows = np.flatnonzero(CLASSES.targets != 1)
    head = fit_affine(CLASSES.part(rows), estimator, X[rows], 1.0, balanced=False, seed=0)
    shares = head(X)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    assert shares.shape == (120, 3) and (shares[:, 1] < 1e-3).all()
    right = shares[rows].argmax(axis=1) == CLASSES.targets[rows]
    assert right.mean() > 0.9
    only = fit_affine(LABELS.part(np.flatnonzero(LABELS.targets[:, 0])), "logistic", X[LABELS.targets[:, 0]], 1.0, balanced=False, seed=0)  # fmt: skip
    assert (only(X)[:, 0] > 0.999).all()


def noise_fits(seed: int) -> tuple[Fits, np.ndarray, np.ndarray]:
    """Labels that nothing tells, in groups of four whose members are copies of each other."""
    rng = np.random.default_rng(seed)
    groups = np.repeat(np.arange(30), 4)
    targets = rng.integers(0, 2, 30)[groups]
    x = rng.normal(size=(30, 8))[groups] + 0.01 * rng.normal(size=(120, 8))
    outcome = Outcome(problem="binary", targets=targets, names=("n", "y"))
    settings = Settings(folds=5)
    return Fits(outcome=outcome, groups=groups, strata=targets, settings=settings, estimator="logistic"), x, groups  # fmt: skip


def test_copies_in_one_group_teach_nothing_about_each_other() -> None:
    """By groups noise stays noise; torn apart, the same copies look like knowledge."""
    grouped, torn = [], []
    for seed in range(4):
        fits, x, groups = noise_fits(seed)
        for by, found in ((groups, grouped), (np.arange(120), torn)):
            folds = grouped_folds(by, 5, strata=fits.strata, seed=seed)
            own = Fits(outcome=fits.outcome, groups=by, strata=fits.strata, settings=fits.settings, estimator="logistic")  # fmt: skip
            result = cross_validate(own, {"x": x}, folds)
            found.append(primary(fits.outcome, result.outputs, result.fold_of))
    assert np.mean(grouped) < 0.6 < 0.7 < np.mean(torn)


def test_choosing_among_many_layers_is_not_rewarded() -> None:
    """The best of several sets of noise is still noise to what is held out of the choice."""
    values = []
    for seed in range(3):
        fits, _, _ = noise_fits(seed)
        rng = np.random.default_rng(100 + seed)
        outcome = Outcome(problem="binary", targets=rng.integers(0, 2, 120), names=("n", "y"))
        fits = Fits(outcome=outcome, groups=np.arange(120), strata=outcome.targets, settings=Settings(folds=3), estimator="logistic")  # fmt: skip
        layers = {f"layer {i}": rng.normal(size=(120, 3)) for i in range(6)}
        folds = grouped_folds(np.arange(120), 3, strata=outcome.targets)
        result = cross_validate(fits, layers, folds)
        assert len(result.choices) == 3 and set(result.choices[0].by_candidate) == set(layers)
        values.append(primary(outcome, result.outputs, result.fold_of))
    assert 0.4 < np.mean(values) < 0.6


def test_the_layer_that_tells_is_the_one_chosen() -> None:
    rng = np.random.default_rng(5)
    candidates = {
        "noise": rng.normal(size=(120, 6)),
        "signal": X,
        "more noise": rng.normal(size=(120, 6)),
    }
    fits = Fits(outcome=BINARY, groups=np.arange(120), strata=BINARY.targets, settings=Settings(), estimator="logistic")  # fmt: skip
    choice = fits.choose(candidates, np.arange(120))
    assert choice.candidate == "signal" and choice.penalty in PENALTIES["logistic"]
    # Of equals the strongest penalty: nothing is to be learned from features that are constant.
    assert (
        fits.choose({"flat": np.ones((120, 2))}, np.arange(120)).penalty == PENALTIES["logistic"][0]
    )


def test_options_that_do_not_go_together_are_refused() -> None:
    for settings, problem, message in (
        (Settings(estimator="logistic"), "regression", "logistic predicts classes"),
        (Settings(estimator="ridge"), "binary", "ridge predicts numbers"),
        (Settings(estimator="mlp", balanced=True), "binary", "mlp takes no class weights"),
    ):
        with pytest.raises(UsageError, match=message):
            settings.resolve(problem)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="heads for variants are linear"):
        Settings(estimator="mlp").resolve("binary", variants=True)
    with pytest.raises(UsageError, match="1 folds cannot be"):
        Settings(folds=1)
    assert parse_candidates(["blocks.1", "blocks.0 + norm"]) == {"blocks.1": ("blocks.1",), "blocks.0 + norm": ("blocks.0", "norm")}  # fmt: skip
    with pytest.raises(UsageError, match="not understood"):
        parse_candidates(["blocks.1+"])


def test_features_keep_the_order_of_the_sequences(toy_model: object) -> None:
    rng = np.random.default_rng(2)
    texts = ["".join(rng.choice(list("ACGT"), n)) for n in (50, 20, 70, 20, 33)]
    found = sequence_features(toy_model, texts, ["blocks.1", "norm"], strands="concat")  # type: ignore[arg-type]
    for layer in ("blocks.1", "norm"):
        expected = np.concatenate([np.asarray(embed(toy_model, [text], layer, strands="concat")[layer]) for text in texts])  # type: ignore[arg-type] # fmt: skip
        np.testing.assert_allclose(found[layer], expected, rtol=1e-4, atol=1e-5)
    both = joined(found, {"one": ("norm",), "two": ("norm", "blocks.1")})
    assert both["two"].shape[1] == 2 * both["one"].shape[1]
    assert np.array_equal(both["two"][:, : both["one"].shape[1]], found["norm"])


def test_shares_of_kmers_by_hand() -> None:
    shares = kmer_shares("ACGNA", 2)
    assert shares[0 * 4 + 1] == shares[1 * 4 + 2] == 0.5 and shares.sum() == 1
    assert kmer_shares("AA", 2)[0] == 1 and kmer_shares("C", 2).sum() == 0
    # The two words AC and nothing over the N: roots of 1/3 and 2/3.
    np.testing.assert_allclose(kmer_features(["AACNAC"], 2)[0, :2] ** 2, [1 / 3, 2 / 3], rtol=1e-6)
    assert composition(["AACG", "TTTTTTTT"]).tolist() == [[0.5, 0.25, 0.25, 0, 2], [0, 0, 0, 1, 3]]
    assert composition(["NN"]).tolist() == [[0, 0, 0, 0, 1]] and composition([]).shape == (0, 5)


def head_of(affine: Affine, **changed: object) -> SequenceHead:
    values = {
        "kind": "binary", "name": "h", "outputs": ("y",), "layers": ("norm",), "pool": "mean", "strands": "both",
        "window": (10, 20), "affine": affine, "run": {"model": "toy", "model_sha256": "s"},
        "about": {"label_names": ["n", "y"], "metrics": {"auroc": {"value": 0.9, "low": 0.8, "high": 0.95}}, "data_digest": "d"},
    }  # fmt: skip
    return SequenceHead(**(values | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize("estimator", ["logistic", "mlp"])
def test_a_head_comes_back_from_its_file_as_it_was(tmp_path: Path, estimator: str) -> None:
    affine = fit_affine(BINARY, estimator, X, 1.0, balanced=False, seed=0)
    head = head_of(affine)
    head.save(tmp_path / "h.safetensors")
    found = load_head(tmp_path / "h.safetensors")
    assert isinstance(found, SequenceHead)
    np.testing.assert_array_equal(found.affine(X), affine(X))
    for name in ("kind", "name", "outputs", "layers", "pool", "strands", "window", "about", "run"):
        assert getattr(found, name) == getattr(head, name), name
    assert found.digest == sha256_file(tmp_path / "h.safetensors") and found.label_names == (
        "n",
        "y",
    )
    assert [found.label_of(np.array([p])) for p in (0.4, 0.6)] == ["n", "y"]
    assert b"pickle" not in (tmp_path / "h.safetensors").read_bytes()


def test_a_head_refuses_another_network(toy_model: object) -> None:
    affine = fit_affine(BINARY, "logistic", X, 1.0, balanced=False, seed=0)
    with pytest.raises(UsageError, match="head h was fitted on toy"):
        head_of(affine).predict(toy_model, ["ACGT"])  # type: ignore[arg-type]


def test_a_head_of_other_layers_than_it_was_fitted_on_says_so(toy_model: object) -> None:
    affine = fit_affine(BINARY, "logistic", X, 1.0, balanced=False, seed=0)
    head = head_of(affine, run={"model": "toy", "model_sha256": toy_model.sha256})  # type: ignore[attr-defined]
    with pytest.raises(
        EvoError, match=r"has weights for \d+ features, and norm of .* have \d+; fit"
    ):
        head.predict(toy_model, ["ACGT"])  # type: ignore[arg-type]


def test_wrong_head_files_are_told_in_one_line(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "h.safetensors"
    affine = fit_affine(BINARY, "logistic", X, 1.0, balanced=False, seed=0)
    head_of(affine).save(path)
    with pytest.raises(EvoError, match="is a head for sequences") as error:
        VariantHead.load(path)
    assert "\n" not in str(error.value)
    VariantHead(name="v", outputs=("y",), layers=("norm",), features=("ref",), activation="sigmoid", weight=np.ones((1, 6), np.float32), bias=np.zeros(1, np.float32), run={}).save(tmp_path / "v.safetensors")  # fmt: skip
    assert isinstance(load_head(tmp_path / "v.safetensors"), VariantHead)
    with pytest.raises(EvoError, match="is a head for variants"):
        SequenceHead.load(tmp_path / "v.safetensors")
    tensors = {
        name: np.ascontiguousarray(v) for name, v in affine.tensors().items() if v is not None
    }
    good = {
        "format": "evo_toolkit.head", "format_version": "2", "kind": "binary", "name": "h", "outputs": '["y"]',
        "layers": '["norm"]', "pool": "mean", "strands": "both", "window": "[1, 2]", "activation": "sigmoid",
        "run": "{}", "about": '{"label_names": ["n", "y"]}',
    }  # fmt: skip
    save_file(tensors, path, good)
    SequenceHead.load(path)
    for key, value, message in (
        ("format", "other", "does not say that it is"),
        ("format_version", "9", "has format version 9"),
        ("outputs", '["y", "z"]', "2 names for 1 outputs"),
        ("outputs", "y", "no complete head"),
        ("pool", "none", "pool none does not go with binary"),
        ("kind", "guess", "kind 'guess' is none"),
        ("activation", "tanh", "activation 'tanh' is not known"),
        ("window", "[1]", "no complete head"),
        ("window", "[5, -1]", "cannot have been fitted on 5 to -1 bases"),
        ("layers", "[" * 100_000, "nested too deeply"),
        ("about", "{}", "label_names must be 2 names"),
        ("about", '{"label_names": ["y"]}', "label_names must be 2 names"),
        ("about", '{"label_names": null}', "label_names must be 2 names"),
        ("about", '{"label_names": "ny"}', "label_names must be 2 names"),
        ("run", "[]", "no complete head"),
        (
            "about",
            '{"estimator": "forest"}',
            "estimator 'forest' is none of logistic, ridge, mlp, network",
        ),
    ):
        save_file(tensors, path, {**good, key: value})
        with pytest.raises(EvoError, match=message) as caught:
            SequenceHead.load(path)
        assert "\n" not in str(caught.value)
    save_file({**tensors, "mean": np.zeros(5, np.float32)}, path, good)
    with pytest.raises(EvoError, match=r"mean of the head has shape \(5,\)"):
        SequenceHead.load(path)
    for odd, message in (
        ({"meanx": np.zeros(6, np.float32)}, "has a tensor 'meanx', which no head of its kind has"),
        ({"bias": np.zeros(1, np.int32)}, "holds bias as int32, and heads are float32"),
    ):
        save_file({**tensors, **odd}, path, good)
        with pytest.raises(EvoError, match=message):
            load_head(path)
    path.write_bytes(json.dumps({"a": 1}).encode())
    with pytest.raises(EvoError, match="no safetensors file"):
        load_head(path)
