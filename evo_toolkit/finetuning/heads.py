"""Heads on the outputs of layers for whole sequences, or for every base of one.

With x the pooled outputs of one or more layers side by side, `[F]` (of `per_base` and `track`: those at a base),

    z_0 = (x - mean) / scale
    z_i = max(0, W_i z_(i-1) + b_i)          for each hidden layer
    y   = W z + b,    `[K]`
    output = y, sigmoid(y) or softmax(y)

which holds logistic and ridge regressions, scikit-learn's multi-layer perceptrons and linear networks.

The file is that of `evo_toolkit.inference.head_files`, with

    pool       how outputs are pooled over positions, `none` for one value a base
    strands    fwd, rc, both (mean) or concat, as for `evo_toolkit.embed`
    window     bases of the sequences that it was fitted on: JSON [shortest, longest]
    run        model and model_sha256 of what it reads

A head for variants is a `VariantHead` (`evo_toolkit.variants.head`), for `evo-toolkit score --head`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_data.files import sha256_file
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.finetuning.examples import TASK_KINDS
from evo_toolkit.inference.head_files import (
    ACTIVATIONS,
    NAME,
    VARIANT,
    activated,
    json_names,
    json_object,
    read_head_file,
    whole_head,
    write_head_file,
)
from evo_toolkit.inference.readings import POOLS, STRANDS, Pool, Strands
from evo_toolkit.variants.head import VariantHead

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

Floats = NDArray[np.float64]
Layer = tuple[NDArray[np.float32], NDArray[np.float32]]

SAYS_CLASS = ("binary", "multiclass", "per_base")
"""Kinds of heads whose outputs say one class."""

ESTIMATORS = ("logistic", "ridge", "mlp", "network")
"""What heads are fitted by: scikit-learn's logistic and ridge regressions and multi-layer perceptrons, and torch."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Affine:
    """What a head computes of features; see the module's text.

    Attributes:
        weight, bias: `[K, H]` and `[K]`.
        hidden: Weight `[H_i, H_(i-1)]` and bias `[H_i]` of each hidden layer.
        mean, scale: `[F]`, or None.
        activation: none, sigmoid or softmax.

    Raises:
        EvoError: if shapes do not go together, or a number is not finite.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    hidden: tuple[Layer, ...] = ()
    mean: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    activation: str = "none"

    def __post_init__(self) -> None:
        if self.activation not in ACTIVATIONS:
            raise EvoError(
                f"activation {self.activation!r} is not known; use {', '.join(ACTIVATIONS)}"
            )
        size = self.num_features
        shapes: list[tuple[str, NDArray[Any] | None, tuple[int, ...]]] = [
            ("mean", self.mean, (size,)), ("scale", self.scale, (size,)),
        ]  # fmt: skip
        for number, (weight, bias) in enumerate([*self.hidden, (self.weight, self.bias)]):
            rows = weight.shape[0] if weight.ndim else 0
            shapes += [(f"weight {number}", weight, (rows, size)), (f"bias {number}", bias, (rows,))]  # fmt: skip
            size = rows
        for name, values, shape in shapes:
            if values is not None and (values.shape != shape or not np.isfinite(values).all()):
                raise EvoError(
                    f"{name} of the head has shape {values.shape} where {shape} of finite numbers are needed"
                )
        if self.scale is not None and not (self.scale > 0).all():
            raise EvoError("scale of the head must be above 0 everywhere")

    @property
    def num_features(self) -> int:
        """F."""
        first = self.hidden[0][0] if self.hidden else self.weight
        return int(first.shape[-1]) if first.ndim else 0

    @property
    def num_outputs(self) -> int:
        """K."""
        return len(self.bias)

    def logits(self, features: NDArray[np.floating]) -> Floats:
        """`[..., K]` y of `[..., F]`, in float64."""
        z = np.asarray(features, np.float64)
        if self.mean is not None:
            z = z - self.mean
        if self.scale is not None:
            z = z / self.scale
        for weight, bias in self.hidden:
            z = np.maximum(0.0, z @ weight.T.astype(np.float64) + bias)
        found: Floats = z @ self.weight.T.astype(np.float64) + self.bias
        return found

    def __call__(self, features: NDArray[np.floating]) -> Floats:
        """`[..., K]` outputs of `[..., F]`."""
        return activated(self.logits(features), self.activation)

    def tensors(self) -> dict[str, NDArray[Any] | None]:
        """By their names in the file."""
        found: dict[str, NDArray[Any] | None] = {
            "weight": self.weight, "bias": self.bias, "mean": self.mean, "scale": self.scale,
        }  # fmt: skip
        for number, (weight, bias) in enumerate(self.hidden):
            found |= {f"hidden.{number}.weight": weight, f"hidden.{number}.bias": bias}
        return found

    @classmethod
    def of_tensors(cls, tensors: Mapping[str, NDArray[Any]], activation: str) -> Affine:
        """The inverse of `tensors`.

        Raises:
            KeyError: if one is missing.
        """
        count = sum(name.startswith("hidden.") and name.endswith(".weight") for name in tensors)
        return cls(
            weight=tensors["weight"],
            bias=tensors["bias"],
            hidden=tuple(
                (tensors[f"hidden.{i}.weight"], tensors[f"hidden.{i}.bias"]) for i in range(count)
            ),
            mean=tensors.get("mean"),
            scale=tensors.get("scale"),
            activation=activation,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class SequenceHead:
    """A fitted head for sequences.

    Attributes:
        kind: What it says: binary, multiclass, multilabel, regression, per_base or track.
        name: Letters, digits, _ and -.
        outputs: Names of the K outputs; of `binary` the positive class alone.
        layers: Layers that it reads, side by side.
        pool, strands: As for `evo_toolkit.embed`.
        window: Shortest and longest sequence that it was fitted on, in bases.
        affine: What it computes.
        run: The model: `model`, `model_sha256`, `precision`.
        about: `label_names`, `estimator`, `metrics` with intervals, `data_digest` and whatever else.
        digest: sha256 of its file; "" for a head that comes from none.

    Raises:
        EvoError: if the parts do not go together.
    """

    kind: str
    name: str
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    pool: Pool
    strands: Strands
    window: tuple[int, int]
    affine: Affine
    run: Mapping[str, Any]
    about: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        if self.kind not in TASK_KINDS or self.kind == VARIANT:
            raise EvoError(f"head {self.name}: kind {self.kind!r} is none for sequences")
        if not NAME.fullmatch(self.name):
            raise EvoError(f"head {self.name!r}: names are made of letters, digits, _ and -")
        estimator = self.about.get("estimator", ESTIMATORS[0])
        if estimator not in ESTIMATORS:
            raise EvoError(
                f"head {self.name}: estimator {estimator!r} is none of {', '.join(ESTIMATORS)}, which this program can rebuild"
            )
        if len(self.outputs) != self.affine.num_outputs or not self.layers:
            raise EvoError(
                f"head {self.name}: {len(self.outputs)} names for {self.affine.num_outputs} outputs of {len(self.layers)} layers"
            )
        if self.pool not in POOLS or self.strands not in STRANDS:
            raise EvoError(
                f"head {self.name}: pool {self.pool!r} or strands {self.strands!r} is not known to this program"
            )
        if (self.pool == "none") != (self.kind in ("per_base", "track")):
            raise EvoError(f"head {self.name}: pool {self.pool} does not go with {self.kind}")
        if not 1 <= self.window[0] <= self.window[1]:
            raise EvoError(
                f"head {self.name}: it cannot have been fitted on {self.window[0]} to {self.window[1]} bases"
            )
        self._check_labels()

    def _check_labels(self) -> None:
        names = self.about.get("label_names", self.outputs)
        is_list = isinstance(names, list | tuple) and all(isinstance(x, str) for x in names)
        wanted = 2 if self.kind == "binary" else len(self.outputs)
        if not is_list or (self.kind in SAYS_CLASS and len(names) != wanted):
            raise EvoError(
                f"head {self.name}: label_names must be {wanted} names for a head of kind {self.kind}"
            )
        if self.kind == "binary" and len(self.outputs) != 1:
            raise EvoError(f"head {self.name}: {len(self.outputs)} outputs; a binary head has one")

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of all classes, of `binary` both."""
        return tuple(self.about.get("label_names", self.outputs))

    def label_of(self, outputs: Floats) -> str:
        """The class that outputs `[K]` of one sequence (or base) say: the most probable one."""
        names = self.label_names
        if len(outputs) == 1:
            return names[int(outputs[0] >= 0.5)]
        return names[int(np.argmax(outputs))]

    def predict(self, model: StripedHyena2, sequences: Sequence[str]) -> list[Floats]:
        """The outputs for sequences: `[K]` of each, or `[L, K]` of `per_base` and `track`.

        Raises:
            UsageError: if the model is not the one that the head was fitted on.
            ValueError: for a sequence that cannot be embedded.
        """
        from evo_toolkit.inference.embed import embed

        self.require_model(model)
        found = embed(
            model, list(sequences), list(self.layers), pool=self.pool, strands=self.strands
        )
        joined = [
            np.concatenate([np.asarray(found[layer][i]) for layer in self.layers], axis=-1)
            for i in range(len(sequences))
        ]
        width = joined[0].shape[-1] if joined else self.affine.num_features
        if width != self.affine.num_features:
            raise EvoError(
                f"head {self.name} has weights for {self.affine.num_features} features, and {', '.join(self.layers)} of {model.config.name} ({self.strands} strands) have {width}; fit it again with evo-toolkit finetune"
            )
        return [self.affine(x) for x in joined]

    def require_model(self, model: StripedHyena2) -> None:
        """Raise unless this is the model that the head was fitted on.

        Raises:
            UsageError: naming both.
        """
        wanted = self.run.get("model_sha256")
        if wanted != model.sha256:
            raise UsageError(
                f"head {self.name} was fitted on {self.run.get('model')} (sha256 {str(wanted)[:12]}), and this is {model.config.name} ({str(model.sha256)[:12]}); use that model, or fit a head on this one"
            )

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the head.

        Raises:
            EvoDataError: if the file exists and must not be replaced, or cannot be written.
        """
        metadata = {
            "name": self.name, "outputs": self.outputs, "layers": self.layers, "pool": self.pool,
            "strands": self.strands, "window": self.window, "activation": self.affine.activation,
            "run": dict(self.run), "about": dict(self.about),
        }  # fmt: skip
        write_head_file(path, self.kind, metadata, self.affine.tensors(), force=force)

    @classmethod
    def load(cls, path: Path | str) -> SequenceHead:
        """Read a head.

        Raises:
            EvoError: if the file is none, is one for variants, or of a later version.
            OSError: if it cannot be read.
        """
        file = read_head_file(path)
        metadata, tensors = file
        if file.kind == VARIANT:
            raise EvoError(f"{path} is a head for variants; apply it with evo-toolkit score --head")
        with whole_head(path):
            shortest, longest = (int(size) for size in json.loads(metadata["window"]))
            return cls(
                kind=file.kind, name=metadata["name"], outputs=json_names(metadata["outputs"]),
                layers=json_names(metadata["layers"]), pool=metadata["pool"],  # type: ignore[arg-type]
                strands=metadata["strands"], window=(shortest, longest),  # type: ignore[arg-type]
                affine=Affine.of_tensors(tensors, metadata["activation"]),
                run=json_object(metadata["run"]), about=json_object(metadata["about"]),
                digest=sha256_file(path),
            )  # fmt: skip


def load_head(path: Path | str) -> SequenceHead | VariantHead:
    """Read a head of any kind.

    Raises:
        EvoError: if the file is none.
        OSError: if it cannot be read.
    """
    if read_head_file(path).kind == VARIANT:
        return VariantHead.load(path)
    return SequenceHead.load(path)
