"""Linear heads on what a model makes of both alleles: a file format, and the method `head`.

On one strand, with e_r and e_a the mean outputs of a layer from the fork to the end of the reference
and of the alternate window (`evo_toolkit.variants.methods`), features are any of

    ref         e_r
    alt         e_a
    difference  e_a - e_r

of one or more layers, layer by layer, each layer's in the order given: x, `[F]`. A head is

    y = mean over the strands of W (x - mean) / scale + b,    `[K]`
    output = y, sigmoid(y) or softmax(y)

The file is that of `evo_toolkit.inference.head_files`, of kind `variant`, with

    features                 JSON list
    run                      JSON of what the head was fitted with: model, model_sha256, window,
                             strands, suffix; scores must be made with the same
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evo_data.files import sha256_file
from evo_toolkit.errors import EvoError
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
from evo_toolkit.variants.methods import Method, Values, WindowOutputs
from evo_toolkit.variants.scores import Column, require_same_run

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

FEATURES = ("ref", "alt", "difference")
MADE_WITH = ("model_sha256", "window", "strands", "suffix")
"""What scores must have in common with the data that a head was fitted on."""


@dataclass(frozen=True, eq=False, kw_only=True)
class VariantHead:
    """A linear head on layers' outputs for both alleles.

    Attributes:
        name: Begins the names of its columns.
        outputs: Names of the K outputs.
        layers: Layers that it reads (names as for `evo_toolkit.embed`).
        features: Of `FEATURES`, of every layer.
        activation: Of `ACTIVATIONS`.
        weight: `[K, F]`.
        bias: `[K]`.
        mean, scale: `[F]`, taken from features and divided by.
        run: What it was fitted with (`MADE_WITH`, and whatever else).
        about: Labels, estimator, metric with its interval, digest of the data, where they are known.
        digest: sha256 of its file; "" for a head that comes from none.

    Raises:
        EvoError: if shapes or names do not go together.
    """

    name: str
    outputs: tuple[str, ...]
    layers: tuple[str, ...]
    features: tuple[str, ...]
    activation: str
    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    mean: NDArray[np.float32] | None = None
    scale: NDArray[np.float32] | None = None
    run: Mapping[str, object]
    about: Mapping[str, object] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name) or not all(map(NAME.fullmatch, self.outputs)):
            raise EvoError(
                f"head {self.name!r} with outputs {', '.join(self.outputs)}: names are made of letters, digits, _ and -"
            )
        if not self.layers or not self.features or set(self.features) - set(FEATURES):
            raise EvoError(
                f"head {self.name}: features {', '.join(self.features) or 'none'} of layers {', '.join(self.layers) or 'none'} cannot be; features are {', '.join(FEATURES)}, of at least one layer"
            )
        if self.activation not in ACTIVATIONS:
            raise EvoError(
                f"head {self.name}: activation {self.activation!r} is not known; use {', '.join(ACTIVATIONS)}"
            )
        size = self.weight.shape[-1]
        shapes = {"weight": (len(self.outputs), size), "bias": (len(self.outputs),)}
        shapes |= {"mean": (size,), "scale": (size,)}
        for name, shape in shapes.items():
            values = getattr(self, name)
            if values is None:
                continue
            if values.shape != shape or not np.isfinite(values).all():
                raise EvoError(
                    f"head {self.name}: {name} has shape {values.shape} where {shape} of finite numbers are needed"
                )
        if self.scale is not None and not (self.scale > 0).all():
            raise EvoError(f"head {self.name}: scale must be above 0 everywhere")

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the head in the format of this module."""
        metadata = {
            "name": self.name, "outputs": self.outputs, "layers": self.layers, "features": self.features,
            "activation": self.activation, "run": dict(self.run), "about": dict(self.about),
        }  # fmt: skip
        tensors = {"weight": self.weight, "bias": self.bias, "mean": self.mean, "scale": self.scale}
        write_head_file(path, VARIANT, metadata, tensors, force=force)

    @classmethod
    def load(cls, path: Path | str) -> VariantHead:
        """Read a head.

        Raises:
            EvoError: if the file is none, is one for sequences, or of a later version.
            OSError: if it cannot be read.
        """
        file = read_head_file(path)
        metadata, tensors = file
        if file.kind != VARIANT:
            raise EvoError(
                f"{path} is a head for sequences ({file.kind}), not for variants; apply it with evo-toolkit finetune predict"
            )
        with whole_head(path):
            lists = {key: json_names(metadata[key]) for key in ("outputs", "layers", "features")}
            return cls(
                name=metadata["name"], activation=metadata["activation"], **lists,
                run=json_object(metadata["run"]), about=json_object(metadata.get("about", "{}")),
                weight=tensors["weight"], bias=tensors["bias"], mean=tensors.get("mean"),
                scale=tensors.get("scale"), digest=sha256_file(path),
            )  # fmt: skip

    def require_same_run(self, run: Mapping[str, object]) -> None:
        """Raise unless scores are made with the model and windows that the head was fitted on.

        Raises:
            EvoError: naming the first difference.
        """
        require_same_run(
            f"head {self.name} was fitted", self.run, run, MADE_WITH,
            "use the same, or a head that was fitted with them",
        )  # fmt: skip

    def features_of(self, outputs: WindowOutputs) -> NDArray[np.float64]:
        """`[F]` features of one strand; those of equal windows have a difference of 0."""
        parts = []
        for layer in self.layers:
            ref = np.asarray(outputs.layers_ref[layer], dtype=np.float64)
            alt = np.asarray(outputs.layers_alt[layer], dtype=np.float64)
            by_name = {"ref": ref, "alt": alt, "difference": alt - ref}
            parts += [by_name[feature] for feature in self.features]
        return np.concatenate(parts)

    def logits(self, features: NDArray[np.floating]) -> NDArray[np.float64]:
        """`[K]` y of one strand."""
        x = np.asarray(features, dtype=np.float64)
        if self.mean is not None:
            x = x - self.mean
        if self.scale is not None:
            x = x / self.scale
        found: NDArray[np.float64] = self.weight.astype(np.float64) @ x + self.bias
        return found

    def activated(self, logits: NDArray[np.floating]) -> NDArray[np.float64]:
        """`[K]` outputs."""
        return activated(logits, self.activation)

    @property
    def columns(self) -> tuple[Column, ...]:
        """One for each output."""
        layers = ", ".join(self.layers)
        stem = f"head_{self.name}"
        return tuple(
            Column(
                stem if len(self.outputs) == 1 else f"{stem}_{output}",
                f"Output {output} of the fitted head {self.name} on {layers} (activation {self.activation}), strands averaged before the activation; what it means is up to the data it was fitted on",
                "",
            )
            for output in self.outputs
        )


def check_features(head: VariantHead, model: StripedHyena2) -> None:
    """Raise unless a head has as many weights as the model's layers have outputs.

    Raises:
        EvoError: with both numbers.
        ValueError: for a layer that the model does not have.
    """
    from evo_toolkit.inference.embed import embed

    found = embed(model, ["AC"], list(dict.fromkeys(head.layers)))
    width = sum(np.asarray(found[layer]).shape[-1] for layer in head.layers)
    size = head.weight.shape[1]
    if size != width * len(head.features):
        raise EvoError(
            f"head {head.name} has weights for {size} features, and {', '.join(head.features)} of {', '.join(head.layers)} in {model.config.name} are {width * len(head.features)}; use the model that it was fitted on"
        )


def _logits(outputs: WindowOutputs, *, head: VariantHead) -> Values:
    if outputs.window.fork >= len(outputs.window.ref):
        return (None,) * len(head.outputs)
    return tuple(head.logits(head.features_of(outputs)).tolist())


def _finish(values: Values, *, head: VariantHead) -> Values:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return (None,) * len(values)
    return tuple(head.activated(np.array(known)).tolist())


def head_methods(heads: Sequence[VariantHead]) -> list[Method]:
    """The methods of heads.

    Raises:
        EvoError: if two have the same name.
    """
    names = [head.name for head in heads]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise EvoError(f"two heads are called {twice[0]}; save one of them under another name")
    return [
        Method(
            name="head",
            columns=head.columns,
            strand_values=partial(_logits, head=head),
            finish=partial(_finish, head=head),
            layers=head.layers,
        )
        for head in heads
    ]
