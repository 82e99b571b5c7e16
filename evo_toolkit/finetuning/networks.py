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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.finetuning.examples import UNLABELLED, Examples, TaskKind
from evo_toolkit.inference.batching import bucket_length
from evo_toolkit.inference.embed import resolve_layer
from evo_toolkit.model.precision import float32_products
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.head import FEATURES, VariantHead

if TYPE_CHECKING:
    from evo_toolkit.finetuning.heads import Affine, SequenceHead

Pool = Literal["mean", "max", "last", "center"]
Strands = Literal["fwd", "both", "concat"]
Loss = Literal["binary", "classes", "labels", "squares", "poisson"]
Batch = Mapping[str, Tensor]

_PER_POSITION = ("per_base", "track")


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
        return self.kind in _PER_POSITION


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


# ---- batches -----------------------------------------------------------------------------------


def batch_of(
    examples: Examples, indices: Sequence[int], config: NetworkConfig
) -> dict[str, Tensor]:
    """A batch of examples; an index ~i is example i with no weight.

    Returns:
        `input_ids` `[R, L]` int64, padded on the right, and `lengths` `[R]`; of variants the windows of
        each example's strands follow each other, reference first, with `forks` `[R]`, and R is a
        multiple of n; otherwise R is n. `targets` by kind: `[n]`, `[n, K]`, `[n, L]` or
        `[n, bins, K]`; `weights` `[n]` float32.
    """
    chosen = [i if i >= 0 else ~i for i in indices]
    batch: dict[str, Tensor] = {
        "weights": torch.tensor([float(i >= 0) for i in indices]),
    }
    rows: list[NDArray[np.uint8]] = []
    if examples.kind == "variant":
        for i in chosen:
            for window in examples.windows[i]:
                rows += [window.ref, window.alt]
        forks = [w.fork for i in chosen for w in examples.windows[i] for _ in range(2)]
        batch["forks"] = torch.tensor(forks)
    else:
        rows = [np.frombuffer(examples.sequences[i].encode(), np.uint8) for i in chosen]
    lengths = [len(row) for row in rows]
    longest = bucket_length(max(lengths)) if len(set(lengths)) > 1 else max(lengths)
    ids = np.full((len(rows), longest), ByteTokenizer.pad_id, np.int64)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = row
    batch["input_ids"], batch["lengths"] = torch.from_numpy(ids), torch.tensor(lengths)
    batch["targets"] = _targets(examples, chosen, longest, config)
    return batch


def _targets(
    examples: Examples, chosen: Sequence[int], longest: int, config: NetworkConfig
) -> Tensor:
    if isinstance(examples.targets, np.ndarray):
        values = examples.targets[list(chosen)]
        kind = np.int64 if values.dtype.kind == "i" else np.float32
        return torch.from_numpy(values.astype(kind))
    if examples.kind == "per_base":
        labels = np.full((len(chosen), longest), UNLABELLED, np.int64)
        for at, i in enumerate(chosen):
            labels[at, : len(examples.targets[i])] = examples.targets[i]
        return torch.from_numpy(labels)
    tracks = examples.targets[0].shape[1]
    numbers = np.full((len(chosen), -(-longest // config.bin_size), tracks), np.nan, np.float32)
    for at, i in enumerate(chosen):
        found = binned(examples.targets[i], config.bin_size)
        numbers[at, : len(found)] = found
    return torch.from_numpy(numbers)


def binned(values: NDArray[np.floating], size: int) -> NDArray[np.float32]:
    """Means over bins of so many rows, NaN left out: `[L, K]` to `[ceil(L / size), K]`."""
    L, K = values.shape
    padded = np.full((-(-L // size) * size, K), np.nan)
    padded[:L] = values
    cells = padded.reshape(-1, size, K)
    there = ~np.isnan(cells)
    counts = there.sum(axis=1)
    sums = np.where(there, cells, 0.0).sum(axis=1)
    means: NDArray[np.float32] = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan).astype(
        np.float32
    )
    return means


def _complements() -> Tensor:
    table = torch.arange(256)
    for a, b in ("AT", "CG"):
        table[ord(a)], table[ord(b)] = ord(b), ord(a)
    return table


def other_strand(ids: Tensor, lengths: Tensor) -> Tensor:
    """Reverse complement of right-padded rows `[R, L]`, padded on the right again."""
    table = _complements().to(ids.device)
    return turned(table[ids], lengths, fill=ByteTokenizer.pad_id)


def turned(values: Tensor, lengths: Tensor, *, fill: float = 0) -> Tensor:
    """Rows `[R, L, ...]` with their first `lengths` positions in reverse order."""
    L = values.shape[1]
    at = torch.arange(L, device=values.device)
    source = lengths[:, None] - 1 - at
    inside = source >= 0
    index = source.clamp(min=0)
    shape = (*index.shape, *[1] * (values.dim() - 2))
    found = values.gather(1, index.view(shape).expand_as(values))
    return torch.where(inside.view(shape), found, torch.as_tensor(fill, dtype=values.dtype))


def model_rows(batch: Batch, config: NetworkConfig) -> Tensor:
    """What the model reads of a batch, `[rows, L]`: of sequences, their other strands at the end."""
    ids = batch["input_ids"]
    if "forks" in batch or config.strands == "fwd":
        return ids
    return torch.cat([ids, other_strand(ids, batch["lengths"])])


# ---- the head ----------------------------------------------------------------------------------


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


# ---- losses and answers --------------------------------------------------------------------------


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


def rows_of(
    values: Tensor, examples: Examples, indices: Sequence[int], config: NetworkConfig
) -> list[NDArray[np.float32]]:
    """The answers of a batch one by one, without what is only padding."""
    rows = []
    for row, i in zip(values.float().cpu().numpy(), indices, strict=True):
        if examples.kind in _PER_POSITION:
            size = config.bin_size if examples.kind == "track" else 1
            row = row[: -(-len(examples.sequences[i]) // size)]
        rows.append(np.asarray(row))
    return rows


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
