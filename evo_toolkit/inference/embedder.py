"""`EvoEmbedder`: embeddings as a step of a scikit-learn pipeline."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.exceptions import NotFittedError

from evo_toolkit.errors import EvoError
from evo_toolkit.inference.batching import encode
from evo_toolkit.inference.embed import EmbeddingRunner, column_names
from evo_toolkit.inference.readings import Pool, Strands, readings_of

if TYPE_CHECKING:
    from pathlib import Path

    from evo_toolkit.model.striped_hyena import StripedHyena2

_Row = NDArray[np.float32]
_LoadKey = tuple[str, str, str, bool]


class _Kept:
    """What the estimators of a process share: the model loaded last, and embeddings of sequences.

    Cross-validation clones an estimator for every fold, and most sequences are in most folds.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._model: tuple[_LoadKey, StripedHyena2] | None = None
        self._rows: OrderedDict[bytes, _Row] = OrderedDict()
        self._bytes = 0
        self.channels: dict[str, dict[str, int]] = {}

    def model(self, key: _LoadKey) -> StripedHyena2:
        from evo_toolkit.checkpoint.load import load_model

        name, device, precision, allow_inaccurate = key
        with self._lock:
            if self._model is None or self._model[0] != key:
                self._model = None  # two large models may not fit
                loaded = load_model(
                    name, device=device, precision=precision, allow_inaccurate=allow_inaccurate
                )
                self._model = key, loaded
            return self._model[1]

    def row(self, key: bytes) -> _Row | None:
        with self._lock:
            found = self._rows.get(key)
            if found is not None:
                self._rows.move_to_end(key)
            return found

    def keep(self, key: bytes, row: _Row, most_bytes: int) -> None:
        with self._lock:
            if key not in self._rows:
                self._rows[key] = row
                self._bytes += row.nbytes
            while self._bytes > most_bytes and self._rows:
                self._bytes -= self._rows.popitem(last=False)[1].nbytes

    def forget(self) -> None:
        with self._lock:
            self._model = None
            self._rows.clear()
            self._bytes = 0
            self.channels.clear()


_KEPT = _Kept()


def forget_models() -> None:
    """Let go of the model and the embeddings that the estimators of this process share."""
    _KEPT.forget()


class EvoEmbedder(TransformerMixin, BaseEstimator):
    """Turns sequences into the outputs of a model's layers, for scikit-learn.

    ```python
    classifier = make_pipeline(EvoEmbedder("evo-mini", "blocks.6"), StandardScaler(), LogisticRegression())
    cross_val_score(classifier, sequences, labels, groups=clusters, cv=GroupKFold(5))
    ```

    Nothing is learned by `fit`, which loads the model and notes its checksum. Estimators of one process share
    the model, and the embeddings of sequences they have seen: every fold after the first takes
    them from memory. A pickle, and with it joblib's processes, holds the name of the model, not its
    weights, and refuses other weights under that name.

    Attributes:
        model_sha256_: Checksum of the weights that it was fitted with.
        num_channels_: Columns of each layer.
    """

    def __init__(
        self,
        model: str | Path | StripedHyena2,
        layers: str | Sequence[str],
        *,
        pool: Pool = "mean",
        strands: Strands = "fwd",
        device: str = "auto",
        precision: str = "default",
        allow_inaccurate: bool = False,
        cache_mib: int = 512,
    ) -> None:
        """Note the parameters; they are judged by `fit` and `transform`.

        Args:
            model: Name or path (as for `evo_toolkit.load_model`), or a loaded model.
            layers: As for `evo_toolkit.embed`; the columns of several stand side by side, in this order.
            pool: As for `evo_toolkit.embed`, but for "none".
            strands: As for `evo_toolkit.embed`.
            device, precision, allow_inaccurate: As for `evo_toolkit.load_model`; without effect on a
                loaded model.
            cache_mib: Embeddings kept in memory by this process, in MiB; 0 keeps none.
        """
        self.model = model
        self.layers = layers
        self.pool = pool
        self.strands = strands
        self.device = device
        self.precision = precision
        self.allow_inaccurate = allow_inaccurate
        self.cache_mib = cache_mib

    def fit(self, X: Any, y: Any = None) -> EvoEmbedder:
        """Load the model and check the parameters; X is only looked at.

        Raises:
            ValueError: for sequences that are none, or parameters as `evo_toolkit.embed` refuses them.
            CheckpointError, UsageError: as `evo_toolkit.load_model`.
        """
        _texts(X)
        model = self._loaded()
        runner = self._runner(model)
        run = _described(runner)
        channels = _KEPT.channels.get(run)
        if channels is None:
            probe = runner.embed([readings_of(encode(["A"])[0], None, runner.strands)])
            channels = {layer: len(probe[layer][0]) for layer in runner.layers}
            if model.sha256:
                _KEPT.channels[run] = channels
        self.num_channels_ = dict(channels)
        self.model_sha256_ = model.sha256
        return self

    def transform(self, X: Any) -> NDArray[np.float32]:
        """`[n, C]` embeddings, layers side by side.

        Args:
            X: n sequences: a list, a 1-dimensional array, a Series, or a table of one column; they
                are upper-cased, as the models were trained.

        Raises:
            ValueError: as `fit`, or for an empty sequence.
            EvoError: if the weights under the model's name are not those that it was fitted with.
        """
        model = self._loaded()
        fitted = getattr(self, "model_sha256_", model.sha256)
        if fitted != model.sha256:
            raise EvoError(
                f"model {self.model} has sha256 {model.sha256}, and was fitted with {fitted}; give the same weights, or fit again"
            )
        runner = self._runner(model)
        tokens = encode([text.upper() for text in _texts(X)])
        # Of a model made by hand there is no checksum that tells it from another.
        keeps = bool(self.cache_mib and model.sha256)
        run = _described(runner)
        keys = [hashlib.blake2b(run.encode() + b"\0" + t.tobytes()).digest() for t in tokens]
        rows = {key: row for key in keys if keeps and (row := _KEPT.row(key)) is not None}
        missing = {key: t for key, t in zip(keys, tokens, strict=True) if key not in rows}
        waiting = iter(missing)
        for group, found in runner.stream(
            readings_of(t, None, runner.strands) for t in missing.values()
        ):
            for number in range(len(group)):
                row = np.concatenate([found[layer][number] for layer in runner.layers])
                key = next(waiting)
                rows[key] = row
                if keeps:
                    _KEPT.keep(key, row, self.cache_mib << 20)
        if not keys:
            return np.empty((0, len(self.get_feature_names_out())), np.float32)
        return np.stack([rows[key] for key in keys])

    def get_feature_names_out(self, input_features: Any = None) -> NDArray[Any]:
        """Names of the columns: `blocks.6_0` and so on.

        Raises:
            NotFittedError: before `fit`.
        """
        if not hasattr(self, "num_channels_"):
            raise NotFittedError("fit the EvoEmbedder before its columns have names")
        return np.array(
            [
                name
                for layer, channels in self.num_channels_.items()
                for name in column_names(layer, channels, self.strands)
            ],
            dtype=object,
        )

    def _loaded(self) -> StripedHyena2:
        from evo_toolkit.model.striped_hyena import StripedHyena2

        if isinstance(self.model, StripedHyena2):
            return self.model
        return _KEPT.model(
            (str(self.model), str(self.device), self.precision, self.allow_inaccurate)
        )

    def _runner(self, model: StripedHyena2) -> EmbeddingRunner:
        if self.pool == "none":
            raise ValueError(
                "pool is 'none', which gives rows of many lengths; use mean, max, last or center here, or evo_toolkit.embed"
            )
        return EmbeddingRunner(model, self.layers, pool=self.pool, strands=self.strands)

    def __sklearn_clone__(self) -> EvoEmbedder:
        # The usual clone would copy the weights of a loaded model.
        return type(self)(**self.get_params(deep=False))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        return tags

    def __getstate__(self) -> dict[str, Any]:
        from evo_toolkit.model.striped_hyena import StripedHyena2

        state = dict(super().__getstate__())
        model = self.model
        if isinstance(model, StripedHyena2):
            if not model.sha256:
                raise EvoError(
                    "this EvoEmbedder holds a model that was not loaded by a name or path, and a pickle of it would have nowhere to find the weights; save the model, and give EvoEmbedder its path"
                )
            state |= {
                "model": str(model.source),
                "precision": model.policy.name,
                "allow_inaccurate": bool(model.notes),
            }
            state.setdefault("model_sha256_", model.sha256)
        return state


def _described(runner: EmbeddingRunner) -> str:
    """What an embedding depends on besides its sequence."""
    model = runner.model
    return repr(
        (model.sha256, str(model.device), model.policy.describe(), runner.layers, runner.pool, runner.strands)
    )  # fmt: skip


def _texts(X: Any) -> list[str]:
    """Sequences of whatever scikit-learn hands on."""
    if isinstance(X, str | bytes):
        raise ValueError("X is one sequence; give a list of sequences, such as [sequence]")
    if getattr(X, "ndim", 1) == 2:
        if X.shape[1] != 1:
            raise ValueError(
                f"X has {X.shape[1]} columns; give sequences, or a table with one column of them"
            )
        X = X.iloc[:, 0] if hasattr(X, "iloc") else X[:, 0]
    texts = []
    for number, value in enumerate(X):
        if isinstance(value, bytes):
            value = value.decode("ascii", "replace")
        if not isinstance(value, str):
            raise ValueError(f"sequence {number} of X is a {type(value).__name__}; give text")
        texts.append(str(value))
    return texts
