"""What networks learn: the task, its loss, and what their logits answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.examples import UNLABELLED, Examples, TaskKind
from evo_toolkit.inference.embed import resolve_layer
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.head import FEATURES

Pool = Literal["mean", "max", "last", "center"]
Strands = Literal["fwd", "both", "concat"]
Loss = Literal["binary", "classes", "labels", "squares", "poisson"]

PER_POSITION = ("per_base", "track")


# Without slots: jsonargparse reads defaults with vars().
@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """What a head reads, and how large it is.

    Attributes:
        layer: `norm` or `blocks.K`; blocks behind it are not run.
        pool: Over the positions of a sequence.
        strands: `fwd`, `both` (mean) or `concat`; per-base tasks read `both` as `concat`.
        hidden: Width of a hidden layer; 0 for none.
        dropout: Share of features, and of hidden units, left out in training.
        bin_size: Positions to a value of a track.
        features: Of variants: any of ref, alt, difference.
        track_loss: `squares` or `poisson` (tracks of counts).
    """

    layer: str = "norm"
    pool: Pool = "mean"
    strands: Strands = "both"
    hidden: int = 0
    dropout: float = 0.0
    bin_size: int = 1
    features: tuple[str, ...] = ("ref", "difference")
    track_loss: Literal["squares", "poisson"] = "squares"

    def __post_init__(self) -> None:
        if self.hidden < 0:
            raise UsageError(f"network.hidden is {self.hidden}; it must be at least 0")
        if not 0 <= self.dropout < 1:
            raise UsageError(f"network.dropout is {self.dropout}; it lies from 0 to below 1")
        if self.bin_size < 1:
            raise UsageError(f"network.bin_size is {self.bin_size}; it must be at least 1")
        odd = [name for name in self.features if name not in FEATURES]
        if odd or not self.features:
            raise UsageError(
                f"network.features has {odd[0] if odd else 'nothing'!r}; use some of {', '.join(FEATURES)}"
            )

    def num_blocks(self, model: StripedHyena2) -> int:
        """Blocks that run.

        Raises:
            UsageError: for a layer that does not exist or is inside a block.
        """
        try:
            name = resolve_layer(model, self.layer)
        except ValueError as error:
            raise UsageError(str(error)) from None
        if name == "norm":
            return len(model.blocks)
        stem, _, number = name.partition(".")
        if stem != "blocks" or not number.isdigit():
            raise UsageError(
                f"network.layer {self.layer!r} cannot be trained through; use norm, or a whole block such as blocks.{len(model.blocks) // 2}"
            )
        return int(number) + 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a network learns, as far as its shape and loss depend on it.

    Attributes:
        kind: Of the examples.
        label_names: Of the classes, labels or tracks.
        loss: What is minimised.
        class_weights: Weight of each class's examples (of `labels`: of those with the label).
        target_mean, target_scale: Numbers are trained as (x - mean) / scale.
    """

    kind: TaskKind
    label_names: tuple[str, ...]
    loss: Loss
    class_weights: tuple[float, ...] = ()
    target_mean: tuple[float, ...] = (0.0,)
    target_scale: tuple[float, ...] = (1.0,)

    @property
    def num_outputs(self) -> int:
        """K."""
        if self.loss == "binary":
            return 1
        return max(1, len(self.label_names))

    @property
    def per_position(self) -> bool:
        return self.kind in PER_POSITION


def task_of(examples: Examples, config: NetworkConfig, *, balanced: bool) -> Task:
    """The task of training examples.

    Args:
        balanced: Weigh classes by one over their share, so that all count the same.

    Raises:
        ExamplesError: if there is nothing to learn: one class alone, or one value.
        UsageError: for a Poisson loss of values below 0.
    """
    examples.require_classes(least=1)
    names = examples.label_names
    if examples.kind == "track" or not names:
        return _task_of_numbers(examples, config)
    if examples.kind == "multilabel":
        share = np.asarray(examples.targets).mean(axis=0)
        weights = tuple(((1 - share) / share).tolist()) if balanced else ()
        return Task(kind=examples.kind, label_names=names, loss="labels", class_weights=weights)
    parts = examples.targets if isinstance(examples.targets, tuple) else (examples.targets,)
    labels = np.concatenate(parts)
    counts = np.bincount(labels[labels != UNLABELLED], minlength=len(names))
    weights = tuple((counts.sum() / (np.count_nonzero(counts) * np.maximum(counts, 1))).tolist())
    binary = len(names) == 2 and examples.kind != "per_base"
    return Task(
        kind=examples.kind, label_names=names, loss="binary" if binary else "classes",
        class_weights=weights if balanced else (),
    )  # fmt: skip


def _task_of_numbers(examples: Examples, config: NetworkConfig) -> Task:
    parts = examples.targets if isinstance(examples.targets, tuple) else (examples.targets,)
    values = np.concatenate([np.asarray(part, np.float64).reshape(len(part), -1) for part in parts])
    if examples.kind == "track" and config.track_loss == "poisson":
        if np.nanmin(values) < 0:
            raise UsageError(
                f"network.track_loss poisson is for values of at least 0, and a track has {np.nanmin(values):g}; use squares"
            )
        return Task(kind=examples.kind, label_names=examples.label_names, loss="poisson")
    mean, scale = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    return Task(
        kind=examples.kind, label_names=examples.label_names, loss="squares",
        target_mean=tuple(mean.tolist()), target_scale=tuple(np.where(scale > 0, scale, 1.0).tolist()),
    )  # fmt: skip


def task_loss(
    task: Task, logits: Tensor, targets: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Weighted sums of the loss and of the weights, float64 scalars.

    Args:
        logits: `[n, K]` or `[n, positions, K]`.
        targets: As `batch_of` gives them.
        weights: `[n]`.

    Returns:
        Their quotient is the loss of an example, a base or a value, in nats but for squares; a class's
        weight multiplies both, a label's only those that have it.
    """
    logits = logits.float()
    rows = weights if logits.dim() == 2 else weights[:, None].expand(logits.shape[:2])
    names = torch.tensor(task.class_weights, device=logits.device)
    if task.loss == "binary":
        found = F.binary_cross_entropy_with_logits(
            logits[..., 0], targets.to(logits.dtype), reduction="none"
        )
        rows = rows * names[targets] if task.class_weights else rows
    elif task.loss == "classes":
        known = targets != UNLABELLED
        labels = targets.clamp(min=0)
        found = F.cross_entropy(logits.movedim(-1, 1), labels, reduction="none")
        rows = torch.where(known, rows * names[labels] if task.class_weights else rows, 0.0)
    elif task.loss == "labels":
        positive = names if task.class_weights else None
        found = F.binary_cross_entropy_with_logits(
            logits, targets.to(logits.dtype), pos_weight=positive, reduction="none"
        ).mean(-1)
    else:
        if targets.dim() < logits.dim():
            targets = targets[..., None]
        known = ~targets.isnan()
        values = torch.where(known, targets, 0.0)
        if task.loss == "poisson":
            each = logits.exp() - values * logits
        else:
            each = (logits - standardised(task, values)).square()
        per_row = known.sum(-1)
        found = torch.where(known, each, 0.0).sum(-1) / per_row.clamp(min=1)
        rows = torch.where(per_row > 0, rows, 0.0)
    return (found * rows).sum(dtype=torch.float64), rows.sum(dtype=torch.float64)


def standardised(task: Task, values: Tensor) -> Tensor:
    """Numbers `[..., K]` as they are trained."""
    mean = torch.tensor(task.target_mean, device=values.device)
    return (values - mean) / torch.tensor(task.target_scale, device=values.device)


def answers(task: Task, logits: Tensor) -> Tensor:
    """Probabilities or numbers: `[..., K]`, of a binary task that of the second class, `[...]`."""
    logits = logits.float()
    if task.loss == "binary":
        return logits[..., 0].sigmoid()
    if task.loss == "labels":
        return logits.sigmoid()
    if task.loss == "classes":
        return logits.softmax(-1)
    if task.loss == "poisson":
        return logits.exp()
    scale = torch.tensor(task.target_scale, device=logits.device)
    found = logits * scale + torch.tensor(task.target_mean, device=logits.device)
    return found[..., 0] if not task.label_names else found
