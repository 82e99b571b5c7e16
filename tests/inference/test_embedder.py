"""`EvoEmbedder` in scikit-learn's hands."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, GroupKFold, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import evo_toolkit as evo
from evo_toolkit.errors import EvoError
from evo_toolkit.inference import embedder as module
from evo_toolkit.inference.embed import EmbeddingRunner, embed
from evo_toolkit.inference.embedder import EvoEmbedder, forget_models
from evo_toolkit.model.striped_hyena import StripedHyena2


@pytest.fixture(autouse=True)
def nothing_kept() -> None:
    forget_models()


def made_task(size: int = 60) -> tuple[list[str], np.ndarray]:
    """Sequences rich in A against sequences rich in C."""
    rng = np.random.default_rng(0)
    labels = np.arange(size) % 2
    shares = {0: [0.4, 0.2, 0.2, 0.2], 1: [0.2, 0.4, 0.2, 0.2]}
    return ["".join(rng.choice(list("ACGT"), 50, p=shares[k])) for k in labels], labels


def test_rows_are_those_of_embed(toy_model_dir: Path, toy_model: StripedHyena2) -> None:
    sequences = ["ACGTAC", "GG", "ACGTAC", "TTTACG"]
    layers = ["blocks.1", "norm"]
    step = EvoEmbedder(toy_model_dir, layers, pool="max", strands="concat").fit(sequences)
    arrays = embed(toy_model, sequences, layers, pool="max", strands="concat")
    expected = np.concatenate([arrays[layer] for layer in layers], axis=1)
    np.testing.assert_array_equal(step.transform(sequences), expected)
    for given in (
        np.array(sequences),
        pd.Series(sequences, index=[9, 8, 7, 6]),
        pd.DataFrame({"s": sequences}),
        [s.lower() for s in sequences],
        [s.encode() for s in sequences],
    ):
        np.testing.assert_array_equal(step.transform(given), expected)
    assert step.get_feature_names_out()[[0, 16, 32]].tolist() == ["blocks.1_fwd_0", "blocks.1_rc_0", "norm_fwd_0"]  # fmt: skip
    assert step.transform([]).shape == (0, 64)
    table = step.set_output(transform="pandas").transform(sequences)
    assert table.columns.tolist() == step.get_feature_names_out().tolist()


def test_a_pipeline_under_cross_validation(
    toy_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences, labels = made_task()
    embedded: list[int] = []
    stream = EmbeddingRunner.stream

    def counted(self: EmbeddingRunner, readings: object) -> object:
        for group, found in stream(self, readings):  # type: ignore[arg-type]
            embedded.append(len(group))
            yield group, found

    monkeypatch.setattr(EmbeddingRunner, "stream", counted)
    loads: list[str] = []
    load = evo.load_model
    monkeypatch.setattr(
        "evo_toolkit.checkpoint.load.load_model", lambda *a, **k: (loads.append(str(a)), load(*a, **k))[1]
    )  # fmt: skip
    steps = make_pipeline(EvoEmbedder(toy_model_dir, "blocks.3"), StandardScaler(), LogisticRegression())  # fmt: skip
    groups = np.arange(len(labels)) // 4
    scores = cross_val_score(steps, sequences, labels, groups=groups, cv=GroupKFold(5), scoring="roc_auc")  # fmt: skip
    assert scores.mean() > 0.8  # composition is in any embedding
    # One load, and no sequence twice, in five folds of training and testing.
    assert len(loads) == 1 and sum(embedded) == len(sequences)
    search = GridSearchCV(
        steps, {"evoembedder__layers": ["embedding", "blocks.0"], "evoembedder__pool": ["mean"]}, cv=2
    )  # fmt: skip
    search.fit(sequences, labels)
    assert search.best_estimator_.predict(sequences[:3]).shape == (3,)


@pytest.mark.slow  # two processes import torch
def test_joblib_processes_give_the_same(toy_model_dir: Path) -> None:
    sequences, labels = made_task(24)
    steps = make_pipeline(EvoEmbedder(str(toy_model_dir), "blocks.1"), LogisticRegression())
    one = cross_val_score(steps, sequences, labels, cv=3)
    two = cross_val_score(steps, sequences, labels, cv=3, n_jobs=2)
    np.testing.assert_array_equal(one, two)


def test_a_pickle_holds_the_name_and_not_the_weights(
    toy_model_dir: Path, toy_model: StripedHyena2, tmp_path: Path
) -> None:
    sequences = ["ACGTACGT", "GGTAC"]
    copied = shutil.copytree(toy_model_dir, tmp_path / "copy")
    for given in (str(copied), evo.load_model(copied, device="cpu", precision="exact")):
        step = EvoEmbedder(given, "blocks.2", device="cpu").fit(sequences)
        expected = step.transform(sequences)
        text = pickle.dumps(step)
        assert len(text) < 3000 and b"torch" not in text and str(copied).encode() in text
        again = pickle.loads(text)
        assert isinstance(again.model, str)
        np.testing.assert_array_equal(again.transform(sequences), expected)
        assert again.precision == ("default" if isinstance(given, str) else "exact")
    forget_models()
    other = StripedHyena2(toy_model.config, generator_seed=5)
    from evo_toolkit.checkpoint.format import save_pretrained

    shutil.rmtree(copied)
    save_pretrained(other.state_dict(), toy_model.config, copied, provenance={"source": "random"})
    with pytest.raises(EvoError, match="was fitted with"):
        again.transform(sequences)
    with pytest.raises(EvoError, match="nowhere to find the weights"):
        pickle.dumps(EvoEmbedder(other, "blocks.2"))


def test_a_clone_shares_a_loaded_model(toy_model: StripedHyena2) -> None:
    step = EvoEmbedder(toy_model, ["blocks.2"], cache_mib=0).fit(["A"])
    twin = clone(step)
    assert twin.model is toy_model and not hasattr(twin, "model_sha256_")
    assert twin.get_params() == step.get_params()
    inside = clone(Pipeline([("embed", step)]))
    assert inside["embed"].model is toy_model and inside["embed"] is not step
    twin.set_params(pool="last", layers="norm")
    assert step.pool == "mean" and twin.transform(["ACG"]).shape == (1, 16)


def test_the_cache_is_bounded_and_knows_its_settings(
    toy_model_dir: Path, toy_model: StripedHyena2, monkeypatch: pytest.MonkeyPatch
) -> None:
    sequences = [f"ACGT{'A' * n}" for n in range(20)]
    settings = [
        {"layers": "blocks.0"}, {"layers": "blocks.1"}, {"layers": "blocks.1", "pool": "last"},
        {"layers": "blocks.1", "strands": "rc"}, {"layers": "blocks.1", "precision": "exact"},
    ]  # fmt: skip
    for setting in settings:
        found = EvoEmbedder(toy_model_dir, **setting).fit_transform(sequences)
        same = {key: value for key, value in setting.items() if key != "precision"}
        layer = same.pop("layers")
        np.testing.assert_allclose(
            found, embed(toy_model, sequences, layer, **same)[layer], rtol=1e-4, atol=1e-5
        )
    kept = module._KEPT
    assert kept._bytes == sum(row.nbytes for row in kept._rows.values()) == 5 * 20 * 16 * 4
    kept.keep(b"x", np.zeros(1 << 17, np.float32), 1 << 19)
    assert list(kept._rows) == [b"x"] and kept._bytes == 1 << 19
    # A model without a checksum cannot be told from another.
    nameless = StripedHyena2(toy_model.config, generator_seed=1).eval()
    EvoEmbedder(nameless, "blocks.0").fit_transform(sequences)
    assert list(kept._rows) == [b"x"]


def test_wrong_use_is_one_line(toy_model: StripedHyena2, toy_model_dir: Path) -> None:
    step = EvoEmbedder(toy_model, "blocks.0")
    with pytest.raises(NotFittedError, match="before its columns"):
        step.get_feature_names_out()
    for given, message in (
        ("ACGT", "one sequence"),
        (["A", 3], "sequence 1 of X is a int"),
        (pd.DataFrame({"a": ["A"], "b": ["C"]}), "2 columns"),
        (["A", ""], "sequence 1 is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            step.fit(given).transform(given)
    with pytest.raises(ValueError, match="rows of many lengths"):
        EvoEmbedder(toy_model, "blocks.0", pool="none").fit(["A"])
    with pytest.raises(ValueError, match="blocks run from 0 to 3"):
        EvoEmbedder(toy_model_dir, "blocks.7").fit(["A"])
