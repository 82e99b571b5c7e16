"""Low-rank adapters (LoRA) on a model: put on for training, saved alone, loaded, merged.

The matrices of the blocks keep their values; beside each one that is named, peft trains two factors
whose product is added (`evo_toolkit.checkpoint.adapter` has the formula and the file). Embedding and
unembedding take none: the model reads their weights directly, around any wrapper.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evo_toolkit.checkpoint.adapter import Adapter, adapted_digest, read_adapter, require_shapes
from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.projection import Projection
from evo_toolkit.model.striped_hyena import StripedHyena2

TARGETS = ("projections", "out_projection", "mlp.l1", "mlp.l2", "mlp.l3")
"""Matrices of a block that can have an adapter."""

TRAINED_WHOLE = {"filters": r"\.mixer\.", "norms": r"norm\.scale$", "biases": r"\.bias$"}
"""What can be trained whole beside an adapter, with the tensors' names."""

_PEFT_NAME = "default"
_LOG_RATE = ".parametrizations.log_poles.original"
_FACTOR = re.compile(r"(.+)\.lora_([AB])\.default\.weight")


# Without slots: jsonargparse reads defaults with vars().
@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """Which matrices have an adapter, and how large it is.

    Attributes:
        rank: r of the factors.
        alpha: Changes count `alpha / rank`; None takes twice the rank.
        dropout: Share of an adapter's inputs that are left out in training.
        targets: Of `TARGETS`, in every block.
        blocks: Numbers of the blocks that have adapters; None for all.
        train_whole: Of `TRAINED_WHOLE`: what is trained itself beside the adapters. Filters are too
            narrow for factors.
    """

    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    blocks: tuple[int, ...] | None = None
    train_whole: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise UsageError(f"adapter.rank is {self.rank}; it must be at least 1")
        if self.alpha is not None and not 0 < self.alpha < float("inf"):
            raise UsageError(f"adapter.alpha is {self.alpha}; it must be above 0")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"adapter.dropout is {self.dropout}; it lies from 0 to below 1")
        for name, given, known in (
            ("targets", self.targets, TARGETS),
            ("train_whole", self.train_whole, tuple(TRAINED_WHOLE)),
        ):
            odd = [value for value in given if value not in known]
            if odd:
                raise UsageError(f"adapter.{name} has {odd[0]!r}; use {', '.join(known)}")
        if not self.targets:
            raise UsageError(f"adapter.targets is empty; use some of {', '.join(TARGETS)}")

    @property
    def scale(self) -> float:
        """`alpha / rank`."""
        return 2.0 if self.alpha is None else self.alpha / self.rank

    def modules(self, num_blocks: int) -> list[str]:
        """Names of the modules of a model of so many blocks that have an adapter.

        Raises:
            UsageError: for a block that the model does not have.
        """
        blocks = range(num_blocks) if self.blocks is None else self.blocks
        odd = [block for block in blocks if not 0 <= block < num_blocks]
        if odd:
            raise UsageError(f"adapter.blocks has {odd[0]}; blocks run from 0 to {num_blocks - 1}")
        return [f"blocks.{block}.{target}" for block in blocks for target in self.targets]


def add_adapter(
    model: StripedHyena2, config: AdapterConfig, *, seed: int = 0, num_blocks: int | None = None
) -> None:
    """Put an adapter on a model, in place, which changes nothing yet; all else is frozen.

    Args:
        seed: Of the first factors; the second are 0.
        num_blocks: Blocks that run; later ones get no adapter. Default all.

    Raises:
        UsageError: if peft is not installed, the model has an adapter, or a block does not exist.
    """
    if has_adapter(model):
        raise UsageError("the model has an adapter; merge it, or load the model anew")
    modules = config.modules(len(model.blocks) if num_blocks is None else num_blocks)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _inject(model, modules, config.rank, config.scale * config.rank, config.dropout)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if _FACTOR.fullmatch(name):
            # Factors are trained in float32 whatever the matrices are kept in.
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)
    patterns = [TRAINED_WHOLE[kind] for kind in config.train_whole]
    for name, parameter in model.named_parameters():
        if any(re.search(pattern, own_name(name)) for pattern in patterns):
            parameter.data = parameter.data.to(torch.float32)
            parameter.requires_grad_(True)


def _inject(
    model: StripedHyena2, modules: Sequence[str], rank: int, alpha: float, dropout: float
) -> None:
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UsageError(
            "adapters are trained with peft, which is not installed; pip install 'evo-toolkit[finetune]'"
        ) from None
    described = LoraConfig(
        # Full names, each of one module.
        r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none",
        target_modules="|".join(re.escape(name) for name in modules),
    )  # fmt: skip
    inject_adapter_in_model(described, model, adapter_name=_PEFT_NAME)


def has_adapter(model: nn.Module) -> bool:
    """Whether a model has an adapter that is not merged."""
    return next(_adapted(model), None) is not None


def _adapted(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Modules with an adapter, by name."""
    for name, module in model.named_modules():
        if hasattr(module, "lora_A") and hasattr(module, "base_layer"):
            yield name, module


def own_name(name: str) -> str:
    """The name that a tensor of the model has without an adapter and without parametrisation."""
    name = name.replace(".base_layer.", ".")
    return re.sub(r"\.parametrizations\.(\w+)\.original$", r".\1", name)


def own_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors under the names, and with the values, that they have in a model's own files."""
    return {
        # What `training.optim.NegativeExponential` makes of the rates that it trains.
        own_name(name): -tensor.exp() if name.endswith(_LOG_RATE) else tensor
        for name, tensor in tensors.items()
    }


def adapter_from(
    trained: Mapping[str, Tensor],
    *,
    name: str,
    rank: int,
    alpha: float,
    base: tuple[str, str],
    head: Mapping[str, Tensor] | None = None,
    head_about: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> Adapter:
    """An adapter from the parameters that were trained of a model.

    Args:
        trained: By their names in the adapted model, such as `blocks.0.mlp.l1.lora_A.default.weight`.
        base: Name of the model, and digest of its weights.
        rank, alpha, name, head, head_about, training: As `Adapter` has them.
    """
    pairs: dict[str, dict[str, Tensor]] = {}
    others = {}
    for key, tensor in trained.items():
        match = _FACTOR.fullmatch(key)
        if match:
            pairs.setdefault(match[1], {})[match[2]] = _plain(tensor)
        else:
            others[key] = _plain(tensor)
    return Adapter(
        name=name, rank=rank, alpha=alpha, model=base[0], model_sha256=base[1],
        factors={module: (pair["A"], pair["B"]) for module, pair in pairs.items()},
        full=own_tensors(others), head=head or {}, head_about=head_about or {},
        training=training or {},
    )  # fmt: skip


def adapter_of(model: StripedHyena2, *, name: str, **about: Any) -> Adapter:
    """What training changed of a model that has an adapter, on the CPU.

    Args:
        name: Of the adapter.
        about: `head`, `head_about` and `training`, as `Adapter` has them.

    Raises:
        UsageError: if the model has no adapter, or its weights come from no file.
    """
    first = next(_adapted(model), None)
    if first is None:
        raise UsageError("the model has no adapter; put one on with add_adapter or load_adapter")
    if not model.sha256:
        raise UsageError(
            "the model's weights come from no file, so nothing says what its adapter belongs to; save the model first"
        )
    rank, scale = first[1].r[_PEFT_NAME], first[1].scaling[_PEFT_NAME]
    trained = {key: p for key, p in model.named_parameters() if p.requires_grad}
    return adapter_from(
        trained, name=name, rank=rank, alpha=scale * rank,
        base=(model.config.name, model.sha256), **about,
    )  # fmt: skip


def _plain(tensor: Tensor) -> Tensor:
    """Whole, on the CPU, in memory of its own; of a divided tensor a call of all ranks."""
    tensor = tensor.detach()
    whole = getattr(tensor, "full_tensor", None)
    tensor = tensor if whole is None else whole()
    return tensor.to("cpu", torch.float32, copy=True)


def save_adapter(
    model: StripedHyena2, path: Path | str, *, force: bool = False, **about: Any
) -> Adapter:
    """Write the adapter of a model, and nothing else of it, to a file.

    Args:
        path: Ends in .safetensors.
        about: As for `adapter_of`; the name is by default that of the file.

    Raises:
        UsageError: as `adapter_of`, or for another ending.
        EvoDataError: if the file exists, or cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"adapter {path} does not end in .safetensors; choose such a name")
    adapter = adapter_of(model, **{"name": path.stem, **about})
    adapter.save(path, force=force)
    return adapter


def load_adapter(
    model: StripedHyena2, adapter: Adapter | Path | str, *, trainable: bool = False
) -> StripedHyena2:
    """Put a saved adapter on a loaded model, in place, and return the model.

    By default its changes are added to the weights, which costs nothing afterwards; on weights in
    bfloat16 `load_model("MODEL+FILE")` is better, which adds before it rounds. `trainable` keeps the
    factors apart, to be trained on.

    Returns:
        The model; its `sha256` and `source` say both.

    Raises:
        CheckpointError: if the file is no adapter, or belongs to another model.
        UsageError: with `trainable`, as `add_adapter`.
    """
    found = adapter if isinstance(adapter, Adapter) else read_adapter(adapter)
    if model.sha256 != found.model_sha256:
        raise CheckpointError(
            f"adapter {found.name} was trained on {found.model} (weights {found.model_sha256[:12]}), and this model is {model.config.name} (weights {model.sha256[:12] or 'of no file'}); use the model that it was trained on"
        )
    tensors = dict(model.named_parameters())
    require_shapes(found, {name: tuple(tensor.shape) for name, tensor in tensors.items()})
    if not trainable:
        with torch.no_grad():
            for name in found.changed():
                old = tensors[name]
                old.copy_(found.apply(name, old.detach().cpu()))
        model.sha256 = adapted_digest(found.model_sha256, found.digest)
        model.source = f"{model.source}+{found.name}"
        model.config = model.config.replace(name=f"{model.config.name}+{found.name}", evidence=())
        return model
    with torch.random.fork_rng(devices=[]):
        _inject(model, sorted(found.factors), found.rank, found.alpha, 0.0)
    modules = dict(_adapted(model))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    assert modules.keys() == found.factors.keys()
    with torch.no_grad():
        for name, (a, b) in found.factors.items():
            for own, value in ((modules[name].lora_A, a), (modules[name].lora_B, b)):
                weight = own[_PEFT_NAME].weight
                weight.data = value.to(weight.device, torch.float32, copy=True)
                weight.requires_grad_(True)
        for name, value in found.full.items():
            parameter = tensors[name]
            parameter.data = value.to(parameter.device, torch.float32, copy=True)
            parameter.requires_grad_(True)
    return model


def merge_adapter(model: StripedHyena2) -> StripedHyena2:
    """Add the factors of a model's adapter to its matrices and take them off, in place.

    What it computes stays the same, but for rounding to the dtype of the matrices.

    Raises:
        UsageError: if the model has none.
    """
    adapted = list(_adapted(model))
    if not adapted:
        raise UsageError("the model has no adapter to merge")
    for name, module in adapted:
        base: Projection = module.base_layer
        a, b = module.lora_A[_PEFT_NAME].weight, module.lora_B[_PEFT_NAME].weight
        with torch.no_grad():
            merged = torch.addmm(base.weight.float(), b, a, alpha=module.scaling[_PEFT_NAME])
            base.weight.copy_(merged)
        owner, _, attribute = name.rpartition(".")
        setattr(model.get_submodule(owner), attribute, base)
    # What peft leaves behind would let it refuse another adapter.
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model
