"""Heads that train together with a model: from a layer's output to what a task asks for.

Shapes: n examples, L positions, D width of the model, F features, K outputs.

The output h of a layer (`blocks.K`, the residual stream after block K, or `norm`) is read on one
strand or both, and becomes features:

    sequences   h pooled over the positions: mean, max, last or center; `both` is the mean of the
                strands' features, `concat` one after the other
    per base    h at every position, the other strand's turned round so that both speak of one base;
                tracks take the mean over bins of `bin_size` positions
    variants    on each strand the means e_r and e_a over the positions from the fork to the end of the
                reference and of the alternate window, as `evo_toolkit.variants.head` has them: any of e_r,
                e_a and e_a - e_r; the mean over the strands

A causal model's h at a position knows nothing of what follows: for per-base tasks take both strands.
Features are standardised by what they are on training examples before training; then a linear map, or
one hidden layer of rectified units. All of the head is float32.

Logits become answers by the kind of task: a sigmoid for binary and multi-label ones, a softmax for
classes, and numbers times the training targets' deviation plus their mean. Tracks without values below 0 may be
trained by the Poisson likelihood; their answers are then exp(logit).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evo_toolkit.errors import EvoError
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.network_batches import Batch, batch_of, model_rows, rows_of, turned
from evo_toolkit.finetuning.network_tasks import NetworkConfig, Pool, Strands, Task, answers
from evo_toolkit.model.precision import float32_products
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.head import VariantHead

if TYPE_CHECKING:
    from evo_toolkit.finetuning.heads import Affine, SequenceHead


class TaskHead(nn.Module):
    """From a layer's output to the logits of a task.

    Attributes:
        task, config: As given.
        width: Channels of the layer.
        mean, scale: `[F]`, taken from features and divided by; see `standardise_by`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, task: Task, config: NetworkConfig, width: int, *, seed: int = 0) -> None:
        """Make a head that answers 0 to everything.

        Args:
            width: D.
            seed: Of a hidden layer's weights.
        """
        super().__init__()
        self.task, self.config, self.width = task, config, width
        size = self.num_features
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("scale", torch.ones(size))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.inner = nn.Linear(size, config.hidden) if config.hidden else None
            self.outer = nn.Linear(config.hidden or size, task.num_outputs)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)
        self.dropout = nn.Dropout(config.dropout)

    @property
    def num_features(self) -> int:
        """F."""
        if self.task.kind == "variant":
            return self.width * len(self.config.features)
        return self.width * (2 if self.strands == "concat" else 1)

    @property
    def strands(self) -> Strands:
        """Strands as they are read."""
        if self.task.per_position and self.config.strands == "both":
            return "concat"
        return self.config.strands

    def forward(self, hidden: Tensor, batch: Batch) -> Tensor:
        """`[rows, L, D]` to logits `[n, K]`, `[n, L, K]` or `[n, bins, K]`, float32."""
        return self.logits(self.features(hidden, batch))

    def logits(self, features: Tensor) -> Tensor:
        """`[..., F]` to `[..., K]`."""
        with float32_products(True):
            x = self.dropout((features - self.mean) / self.scale)
            if self.inner is not None:
                x = self.dropout(F.relu(self.inner(x)))
            found: Tensor = self.outer(x)
        return found

    def features(self, hidden: Tensor, batch: Batch) -> Tensor:
        """`[rows, L, D]` to `[n, F]`, or `[n, positions, F]` of a per-base task; float32."""
        hidden = hidden.float()
        if self.task.kind == "variant":
            return self._of_variants(hidden, batch)
        lengths = batch["lengths"]
        if self.strands == "fwd":
            strands = [self._of_strand(hidden, lengths, reverse=False)]
        else:
            forward, backward = hidden.chunk(2)
            strands = [
                self._of_strand(forward, lengths, reverse=False),
                self._of_strand(backward, lengths, reverse=True),
            ]
        if self.strands == "both":
            return (strands[0] + strands[1]) / 2
        return torch.cat(strands, dim=-1)

    def _of_strand(self, hidden: Tensor, lengths: Tensor, *, reverse: bool) -> Tensor:
        if not self.task.per_position:
            return pooled(hidden, torch.zeros_like(lengths), lengths, self.config.pool, reverse)
        if reverse:
            hidden = turned(hidden, lengths)
        size = self.config.bin_size if self.task.kind == "track" else 1
        if size == 1:
            return hidden
        spare = -hidden.shape[1] % size
        there = _inside(hidden, torch.zeros_like(lengths), lengths)[..., None]
        padded = F.pad(hidden * there, (0, 0, 0, spare)).unflatten(1, (-1, size))
        counts = F.pad(there.to(hidden.dtype), (0, 0, 0, spare)).unflatten(1, (-1, size)).sum(2)
        return padded.sum(2) / counts.clamp(min=1)

    def _of_variants(self, hidden: Tensor, batch: Batch) -> Tensor:
        means = pooled(hidden, batch["forks"], batch["lengths"], "mean", False)
        # Of each example the strands, of each strand the reference and the alternate.
        n = len(batch["weights"])
        ref, alt = means.view(n, -1, 2, means.shape[-1]).unbind(2)
        if self.config.strands == "fwd":
            ref, alt = ref[:, :1], alt[:, :1]
        by_name = {"ref": ref, "alt": alt, "difference": alt - ref}
        return torch.cat([by_name[name] for name in self.config.features], dim=-1).mean(1)

    @torch.no_grad()
    def standardise_by(self, features: Tensor) -> None:
        """Take mean and deviation of `[N, F]` for those of all features."""
        self.mean.copy_(features.mean(0))
        deviation = features.std(0, correction=0)
        # A channel that never moves says nothing; divided by a rounding error it would say a lot.
        floor = 1e-6 * features.abs().amax(0).clamp(min=1e-30)
        self.scale.copy_(torch.where(deviation > floor, deviation, torch.ones_like(deviation)))

    def about(self) -> dict[str, Any]:
        """What `head_from` needs beside the tensors, as plain JSON values."""
        return {"task": asdict(self.task), "network": asdict(self.config), "width": self.width}


def head_from(about: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> TaskHead:
    """The head that `TaskHead.about` and its `state_dict` describe.

    Raises:
        EvoError: if they do not go together.
    """

    def tuples(values: Mapping[str, Any]) -> dict[str, Any]:
        return {k: tuple(v) if isinstance(v, list | tuple) else v for k, v in values.items()}

    try:
        head = TaskHead(
            Task(**tuples(about["task"])), NetworkConfig(**tuples(about["network"])), about["width"]
        )
        head.load_state_dict(dict(tensors))
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        detail = " ".join(str(error).split())
        raise EvoError(f"this is no complete head of a network ({detail}); fit it again") from None
    return head.eval()


def _inside(hidden: Tensor, first: Tensor, last: Tensor) -> Tensor:
    at = torch.arange(hidden.shape[1], device=hidden.device)
    return (at >= first[:, None]) & (at < last[:, None])


def pooled(hidden: Tensor, first: Tensor, last: Tensor, pool: Pool, reverse: bool) -> Tensor:
    """`[R, L, D]` over the positions from `first` up to `last` of each row: `[R, D]`.

    Args:
        reverse: Whether rows are the other strand, for the base that `center` is.
    """
    if pool in ("last", "center"):
        at = last - 1
        if pool == "center":
            middle = first + (last - first) // 2
            at = first + last - 1 - middle if reverse else middle
        return hidden[torch.arange(len(hidden), device=hidden.device), at.clamp(min=0)]
    inside = _inside(hidden, first, last)[..., None]
    if pool == "max":
        return hidden.masked_fill(~inside, float("-inf")).amax(1)
    counts = (last - first).clamp(min=1)[:, None]
    return torch.where(inside, hidden, 0.0).sum(1) / counts


@torch.inference_mode()
def predict(
    model: StripedHyena2, head: TaskHead, examples: Examples, *, batch_size: int = 8
) -> list[NDArray[np.float32]]:
    """What a head answers about examples, whose targets are not looked at.

    Args:
        model: The model that the head was trained with, its adapter in place.
        batch_size: Sequences of a forward.

    Returns:
        For each example `[K]`, of a binary task or a number `[]`, of per-base tasks a row for each
        base, of tracks for each bin.
    """
    num_blocks = head.config.num_blocks(model)
    head = head.to(model.device)
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(examples), batch_size):
        indices = range(start, min(start + batch_size, len(examples)))
        batch = batch_of(examples, indices, head.config)
        batch = {name: value.to(model.device) for name, value in batch.items()}
        hidden, _ = model.hidden(model_rows(batch, head.config), num_blocks=num_blocks)
        logits = head(layer_output(model, head.config, hidden), batch)
        found += rows_of(answers(head.task, logits), examples, indices, head.config)
    return found


def layer_output(model: StripedHyena2, config: NetworkConfig, hidden: Tensor) -> Tensor:
    """The layer's output from the residual stream behind its block."""
    if config.layer != "norm":
        return hidden
    return model.norm(hidden.to(torch.promote_types(hidden.dtype, torch.float32)))


def affine_of(head: TaskHead) -> Affine:
    """What a head computes of features, as files of heads have it; of Poisson tracks the logarithm."""
    from evo_toolkit.finetuning.heads import Affine

    task = head.task
    weight, bias = (
        head.outer.weight.detach().double().cpu(),
        head.outer.bias.detach().double().cpu(),
    )
    if task.loss == "squares":
        scale = torch.tensor(task.target_scale, dtype=torch.float64)
        weight = weight * scale[:, None]
        bias = bias * scale + torch.tensor(task.target_mean, dtype=torch.float64)

    def array(values: Tensor) -> NDArray[np.float32]:
        found: NDArray[np.float32] = values.detach().cpu().numpy().astype(np.float32)
        return found

    inner = head.inner
    return Affine(
        weight=array(weight),
        bias=array(bias),
        hidden=() if inner is None else ((array(inner.weight), array(inner.bias)),),
        mean=array(head.mean),
        scale=array(head.scale),
        activation={"binary": "sigmoid", "labels": "sigmoid", "classes": "softmax"}.get(
            task.loss, "none"
        ),
    )


def saved_head(
    head: TaskHead,
    model: StripedHyena2,
    examples: Examples,
    *,
    name: str,
    about: Mapping[str, Any],
) -> SequenceHead | VariantHead | None:
    """The head as a file of its own, for the model as it was trained.

    Args:
        model: Whose `sha256` says which weights the head reads: adapter and all.
        examples: That it was trained on.
        name: Of the head.
        about: Labels, metric, digest of the data.

    Returns:
        None for heads with a hidden layer on variants, which `score --head` does not read.
    """
    from evo_toolkit.finetuning.frozen import sequence_head, variant_head

    config, affine = head.config, affine_of(head)
    if head.task.loss == "poisson":
        about = {**about, "outputs_are": "natural logarithms of the tracks"}
    if examples.kind == "variant":
        if affine.hidden:
            return None
        windows = examples.windows[0]
        own = "both" if config.strands != "fwd" and len(windows) == 2 else "fwd"
        return variant_head(
            examples, affine, model, name=name, layers=(config.layer,), features=config.features,
            window=len(windows[0].ref), strands=own, about={**about, "estimator": "network"},
        )  # fmt: skip
    return sequence_head(
        examples, affine, model, name=name, layers=(config.layer,),
        pool="none" if head.task.per_position else config.pool, strands=head.strands,
        about={**about, "estimator": "network", "bin_size": config.bin_size},
    )  # fmt: skip
