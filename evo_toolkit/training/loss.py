"""The training objective: weighted next-token cross-entropy as two sums, without logits in memory.

A mean over a batch depends on how the batch is cut into ranks and micro-batches when bases have
unequal weights. So the objective returns a weighted sum and the sum of weights; the step divides
once, by the weights of the whole global batch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from evo_toolkit.model.precision import float32_products, products_as_released
from evo_toolkit.model.striped_hyena import StripedHyena2

# Rows of logits that exist at a time: 32 Mi float32 numbers with a vocabulary of 512, few enough
# for any GPU and enough to fill one.
_ROWS = 65_536
# On a CPU smaller slices stay in its caches.
_ROWS_CPU = 4_096


def _loss_and_gradient(logits: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted sum of the loss of a slice, and its gradient by the logits `[R, V]`."""
    log_probs = F.log_softmax(logits, dim=-1)
    # A comparison instead of gather and scatter: torch.compile makes one pass of all this.
    hit = torch.arange(logits.shape[1], device=logits.device) == targets[:, None]
    loss = (log_probs.masked_fill(~hit, 0.0).sum(-1) * -weights).sum()
    return loss, (log_probs.exp() - hit.to(logits.dtype)) * weights[:, None]


@functools.cache
def _compiled_loss_and_gradient() -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    return torch.compile(_loss_and_gradient)


class _WeightedNLL(torch.autograd.Function):
    """Sum of `weights * nll`; gradients are made slice by slice in the forward pass.

    Each slice of logits lives once: its softmax gives the loss and at once the gradients of rows and
    unembedding, so that the backward pass neither keeps nor repeats the head's product.
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, unembedding: Tensor, targets: Tensor, weights: Tensor, compiled: bool
    ) -> Tensor:  # fmt: skip
        total = torch.zeros((), dtype=torch.float64, device=rows.device)
        d_rows = torch.empty_like(rows)
        d_unembedding = torch.zeros_like(unembedding)
        step = _ROWS_CPU if rows.device.type == "cpu" else _ROWS
        fused = _compiled_loss_and_gradient() if compiled else _loss_and_gradient
        for start in range(0, rows.shape[0], step):
            x = rows[start : start + step]
            loss, d_logits = fused(
                F.linear(x, unembedding),
                targets[start : start + step],
                weights[start : start + step].to(rows.dtype),
            )
            total += loss.double()
            torch.mm(d_logits, unembedding, out=d_rows[start : start + step])
            d_unembedding.addmm_(d_logits.t(), x)
        ctx.save_for_backward(d_rows, d_unembedding)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        d_rows, d_unembedding = ctx.saved_tensors
        grad = grad.to(d_rows.dtype)
        return d_rows * grad, d_unembedding * grad, None, None, None


def weighted_nll(
    rows: Tensor, unembedding: Tensor, targets: Tensor, weights: Tensor, *, compiled: bool = False
) -> Tensor:
    """Return `sum(weights * -log_softmax(rows @ unembedding^T)[targets])` in nats, float64 scalar.

    Shapes: R rows, D channels, V vocabulary. Products and softmax have the dtype of `rows`; at most
    65,536 rows of logits exist at a time. Differentiable once, for `rows` and `unembedding`.

    Args:
        rows: Normalised residual stream, `[R, D]`.
        unembedding: `[V, D]`, of the same dtype.
        targets: `[R]` int64 below V.
        weights: `[R]`, at least 0; a target of weight 0 counts for nothing.
        compiled: Fuse the softmax, loss and gradient of a slice with torch.compile.
    """
    total: Tensor = _WeightedNLL.apply(rows, unembedding, targets, weights, compiled)
    return total


class NextTokenObjective(nn.Module):
    """A model with the loss it is trained by, in one `forward`.

    One forward, since FSDP gathers the tied embedding for the length of it, and both ends use it.

    Attributes:
        model: The StripedHyena 2.
        checkpoint_blocks: Keep activations only between segments of so many blocks and compute the
            rest again in the backward pass; 0 keeps all.
        compiled: Whether the loss is fused by torch.compile; not at first.
    """

    def __init__(self, model: StripedHyena2, *, checkpoint_blocks: int = 0) -> None:
        super().__init__()
        model.config.require_causal("be trained to predict the next base")
        self.compiled = False
        self.model = model
        self.checkpoint_blocks = checkpoint_blocks
        # Of long convolutions and of adapters: no other layer draws.
        self._random = "L" in model.config.pattern and model.config.long_dropout > 0
        self._random |= any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())

    def forward(
        self, input_ids: Tensor, targets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """Weighted sums over a batch, or with `weights` None the loss of every target.

        Args:
            input_ids: `[B, L]` int64 tokens.
            targets: `[B, L]` int64, the token after each.
            weights: `[B, L]` float32 or None.

        Returns:
            `(sum of weight * nll, sum of weight)` as float64 scalars, or nll `[B, L]` in nats.
        """
        return self.loss_of(self.hidden(input_ids), targets, weights)

    def loss_of(
        self, hidden: Tensor, targets: Tensor, weights: Tensor | None
    ) -> tuple[Tensor, Tensor] | Tensor:
        """As `forward`, from the residual stream `[B, L, D]` before the final norm."""
        model = self.model
        if weights is None:
            return -model.gather_log_probs(hidden, targets)
        with float32_products(True), products_as_released(model.policy, hidden.device):
            rows = model.norm(hidden.to(torch.promote_types(hidden.dtype, torch.float32)))
            unembedding = model._head_weight().to(rows.dtype)
            total = weighted_nll(
                rows.flatten(0, -2),
                unembedding,
                targets.flatten(),
                weights.flatten(),
                compiled=self.compiled,
            )
        return total, weights.sum(dtype=torch.float64)

    def hidden(self, input_ids: Tensor) -> Tensor:
        """The residual stream `[B, L, D]` that the targets are predicted from."""
        size = self.checkpoint_blocks
        if not size or not torch.is_grad_enabled():
            hidden: Tensor = self.model.hidden(input_ids)[0]
            return hidden
        model = self.model
        x = F.embedding(input_ids, model.embedding.weight).to(model.policy.compute_dtype)
        with products_as_released(model.policy, x.device):
            for first in range(0, len(model.blocks), size):
                blocks = model.blocks[first : first + size]
                # Dropout has to be drawn again as it was.
                x = checkpoint(
                    _run_blocks, blocks, x, use_reentrant=False, preserve_rng_state=self._random
                )
        return x


def _run_blocks(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x, _ = block(x)
    return x
