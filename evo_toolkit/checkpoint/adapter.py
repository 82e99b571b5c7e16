"""Adapters: low-rank changes of a model's matrices in a file of their own, and models read with them.

For a matrix W of `[out, in]` an adapter holds A `[r, in]` and B `[out, r]`; the adapted model has

    W' = W + (alpha / r) B A

(LoRA, Hu et al., arXiv 2106.09685). It may replace further tensors whole, such as filters, and carry
the head that was trained with it.

A file is safetensors with `NAME.lora_A` and `NAME.lora_B` for the matrix `NAME.weight` of the model,
`full.NAME` for a tensor that is replaced, and `head.NAME` of a head, all float32; its metadata are
strings:

    format, format_version   evo_toolkit.adapter, 1
    name                     letters, digits, ., _ and -; follows a + in the adapted model's name
    rank, alpha              numbers
    model, model_sha256      the model that it belongs to, and the digest of its weights
    head, training           JSON objects of the head, {} for none, and of what was trained on

"evo-mini+FILE.safetensors" is a model's name wherever a name is taken. Products are made in float32
and rounded once, to the dtype in which the model computes: merged and adapted models are equal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_data.files import atomic_output, sha256_file
from evo_toolkit.checkpoint.ordered import in_order
from evo_toolkit.checkpoint.source import Origin, Spec, WeightSource, owned
from evo_toolkit.errors import CheckpointError

FORMAT, FORMAT_VERSION = "evo_toolkit.adapter", "1"
SEPARATOR, SUFFIX = "+", ".safetensors"

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_FULL, _HEAD = "full.", "head."
_MOST = torch.finfo(torch.float32).max


@dataclass(frozen=True, eq=False, kw_only=True)
class Adapter:
    """What fine-tuning changed of one model.

    Attributes:
        name: Follows the model's name in outputs.
        rank: r.
        alpha: Changes count `alpha / rank`.
        model: What the model is called that it belongs to.
        model_sha256: Digest of that model's weights.
        factors: A and B by the name of the module, `blocks.0.projections`.
        full: Tensors that replace the model's, by their names.
        head: Tensors of the head that was trained with it.
        head_about: What the head is.
        training: What it was trained on and how.
        digest: sha256 of its file; "" if it comes from none.

    Raises:
        CheckpointError: if shapes or numbers do not go together.
    """

    name: str
    rank: int
    alpha: float
    model: str
    model_sha256: str
    factors: Mapping[str, tuple[Tensor, Tensor]]
    full: Mapping[str, Tensor] = field(default_factory=dict)
    head: Mapping[str, Tensor] = field(default_factory=dict)
    head_about: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    digest: str = ""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise CheckpointError(
                f"adapter name {self.name!r} is not made of letters, digits, ., _ and -; choose another"
            )
        if self.rank < 1 or not 0 < self.alpha < float("inf"):
            raise CheckpointError(
                f"adapter {self.name} has rank {self.rank} and alpha {self.alpha}; they must be at least 1 and above 0"
            )
        for module, (a, b) in self.factors.items():
            if a.dim() != 2 or b.dim() != 2 or len(a) != self.rank or b.shape[1] != self.rank:
                raise CheckpointError(
                    f"adapter {self.name}: {module} has factors of {list(a.shape)} and {list(b.shape)}, which are not of rank {self.rank}"
                )
        if self.alpha / self.rank > _MOST:
            raise CheckpointError(
                f"adapter {self.name} has alpha {self.alpha:g}, which no matrix can hold; copy the file again"
            )
        for name, tensor in self.tensors().items():
            if not tensor.is_floating_point():
                raise CheckpointError(
                    f"adapter {self.name}: {name} holds {tensor.dtype}, and adapters are float32"
                )
            if not tensor.isfinite().all():
                raise CheckpointError(
                    f"adapter {self.name}: {name} holds numbers that are not finite"
                )

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor by its name in the file."""
        found = {}
        for module, (a, b) in self.factors.items():
            found[f"{module}.lora_A"], found[f"{module}.lora_B"] = a, b
        found |= {_FULL + name: tensor for name, tensor in self.full.items()}
        return found | {_HEAD + name: tensor for name, tensor in self.head.items()}

    def changed(self) -> dict[str, str]:
        """Module with factors, or "", by the name of each of the model's tensors that changes."""
        found = {f"{module}.weight": module for module in self.factors}
        return found | dict.fromkeys(self.full, "")

    def apply(self, name: str, tensor: Tensor) -> Tensor:
        """The adapted tensor of a name, in float32 or wider, on the CPU."""
        module = self.changed().get(name)
        if module is None:
            return tensor
        wide = torch.promote_types(tensor.dtype, torch.float32)
        if not module:
            return self.full[name].to(wide)
        a, b = (factor.to(wide) for factor in self.factors[module])
        found = torch.addmm(tensor.to(wide), b, a, alpha=self.alpha / self.rank)
        if not found.isfinite().all():
            raise CheckpointError(
                f"adapter {self.name} makes {name} larger than any number; it was not trained on this model, or is damaged"
            )
        return found

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the file, whole or not at all.

        Raises:
            EvoDataError: if the file exists, or cannot be written.
        """
        from safetensors.torch import save

        metadata = {
            "format": FORMAT, "format_version": FORMAT_VERSION, "name": self.name,
            "rank": str(self.rank), "alpha": repr(float(self.alpha)), "model": self.model,
            "model_sha256": self.model_sha256, "head": json.dumps(dict(self.head_about)),
            "training": json.dumps(dict(self.training)),
        }  # fmt: skip
        tensors = {
            # Clones: safetensors refuses tensors that share memory.
            key: tensor.detach().to("cpu", torch.float32).contiguous().clone()
            for key, tensor in self.tensors().items()
        }
        with atomic_output(path, force=force) as temporary:
            # Not by save_file, whose files nobody else may read.
            temporary.write_bytes(in_order(save(tensors, metadata)))


def read_adapter(path: Path | str) -> Adapter:
    """Read an adapter's file.

    Raises:
        CheckpointError: if it is absent, damaged, none, or of a later version.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    try:
        with path.open("rb"), safe_open(path, "pt") as file:
            about = file.metadata() or {}
            # Read, not mapped: the file may be replaced while the model is in use.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
    except OSError as error:
        raise CheckpointError(
            f"adapter {path} cannot be read ({error.strerror or error}); give a file that finetune or train export --adapter wrote"
        ) from None
    except SafetensorError as error:
        raise CheckpointError(
            f"adapter {path} is no safetensors file, or damaged ({error}); copy it again"
        ) from None
    if about.get("format") != FORMAT:
        said = f"says that it is a {about['format']}" if "format" in about else "does not say so"
        raise CheckpointError(f"{path} is no adapter: it {said}; give a file of format {FORMAT}")
    if about.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"adapter {path} has format version {about.get('format_version')}; this program reads {FORMAT_VERSION}, a newer one may read it"
        )
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    full, head = {}, {}
    try:
        for key, tensor in tensors.items():
            module = key.removesuffix(".lora_A")
            if key.startswith(_FULL):
                full[key.removeprefix(_FULL)] = tensor
            elif key.startswith(_HEAD):
                head[key.removeprefix(_HEAD)] = tensor
            elif module != key:
                factors[module] = tensor, tensors[f"{module}.lora_B"]
            elif (
                f"{key.removesuffix('.lora_B')}.lora_A" not in tensors or key == module + ".lora_A"
            ):
                raise ValueError(f"{key} belongs to nothing")
        head_about, training = (json.loads(about[key]) for key in ("head", "training"))
        if not (isinstance(head_about, dict) and isinstance(training, dict)):
            raise ValueError("head or training is no JSON object")
        return Adapter(
            name=about["name"], rank=int(about["rank"]), alpha=float(about["alpha"]),
            model=about["model"], model_sha256=about["model_sha256"], factors=factors, full=full,
            head=head, head_about=head_about, training=training, digest=sha256_file(path),
        )  # fmt: skip
    except RecursionError:
        raise CheckpointError(
            f"adapter {path} has JSON that is nested too deeply; copy it again"
        ) from None
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"adapter {path} is incomplete ({error}); copy it again") from None


def split_adapter(model: str) -> tuple[str, str | None]:
    """A model's name and, if it has one after a +, the adapter's file."""
    base, plus, path = model.rpartition(SEPARATOR)
    if not plus or not base or not path.endswith(SUFFIX) or Path(model).exists():
        return model, None
    return base, path


def adapted_digest(model_sha256: str, adapter_sha256: str) -> str:
    """What stands for the weights of a model with an adapter, where a digest of weights does."""
    return sha256(f"{model_sha256}+{adapter_sha256}".encode()).hexdigest()


class AdaptedSource(WeightSource):
    """The weights of a model with an adapter's changes in them, one tensor at a time.

    Attributes:
        base: The model's own.
        adapter: What changes them.
    """

    def __init__(self, base: WeightSource, adapter: Adapter) -> None:
        """Put the two together.

        Raises:
            CheckpointError: if the adapter belongs to other weights, or does not fit.
        """
        digest = base.origin().sha256()
        if digest != adapter.model_sha256:
            raise CheckpointError(
                f"adapter {adapter.name} was trained on {adapter.model} (weights {adapter.model_sha256[:12]}), and this model is {base.config.name} (weights {digest[:12]}); use the model that it was trained on"
            )
        require_shapes(adapter, {k: spec.shape for k, spec in base.specs().items()})
        self.base, self.adapter = base, adapter
        self.path, self.format, self.has_fp8_scales = base.path, base.format, base.has_fp8_scales
        # What was measured with the model says nothing about the adapted one.
        name = f"{base.config.name}{SEPARATOR}{adapter.name}"
        self.config = base.config.replace(name=name, evidence=())
        self._changed = adapter.changed()

    def specs(self) -> dict[str, Spec]:
        return {
            name: Spec(torch.promote_types(spec.dtype, torch.float32), spec.shape)
            if name in self._changed
            else spec
            for name, spec in self.base.specs().items()
        }

    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        if name not in self._changed:
            return self.base.tensor(name, dtype=dtype, device=device)
        found = self.adapter.apply(name, self.base.tensor(name))
        return owned(found, dtype, device, tuple(self.adapter.full.values()))

    def origin(self) -> Origin:
        """The model's file; the checksum is of both."""
        base = self.base.origin()
        return Origin(base.path, adapted_digest(base.sha256(), self.adapter.digest))


def require_shapes(adapter: Adapter, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise unless every tensor that an adapter changes is there, in the shape that it takes.

    Raises:
        CheckpointError: naming the first that does not fit.
    """
    for name, module in adapter.changed().items():
        if module:
            a, b = adapter.factors[module]
            wanted: tuple[int, ...] = (b.shape[0], a.shape[1])
        else:
            wanted = tuple(adapter.full[name].shape)
        if shapes.get(name) != wanted:
            there = list(shapes[name]) if name in shapes else "no such tensor"
            raise CheckpointError(
                f"adapter {adapter.name} changes {name} of {list(wanted)}, and {adapter.model} has {there}: the file does not belong to this model"
            )
