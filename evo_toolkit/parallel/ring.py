"""Ring attention: keys and values travel from rank to rank, queries stay.

For more ranks than heads, where an all-to-all would leave ranks idle. With contiguous parts the last rank
attends to all parts and the first to its own alone, so that it takes up to twice as long as evenly divided
work; the next keys travel meanwhile. Shapes: B batch, H heads, L positions of this rank, E channels a head.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from evo_toolkit.model.attention import Attention
from evo_toolkit.parallel.communication import group_of, start, wait
from evo_toolkit.parallel.layout import Lengths

_aten = torch.ops.aten
# Queries whose scores exist at a time where no fused attention takes the inputs.
_QUERY_BLOCK = 512


def attention_by_ring(
    mixer: Attention, qkv: Tensor, lengths: Lengths, group: dist.ProcessGroup
) -> Tensor:
    """Attend to one part of the sequence after another, from the own one to the left.

    Source: Liu et al., "Ring Attention with Blockwise Transformers for Near-Infinite Context", 2023.
    """
    starts = sum(lengths[: dist.get_rank(group)])
    q, k, v = (x.transpose(1, 2).contiguous() for x in mixer.heads(qkv, starts))
    y, _ = _ring(q, k, v, list(lengths), group.group_name)
    out: Tensor = y.transpose(1, 2).flatten(2)
    return out


@torch.library.custom_op("evo_toolkit::ring_attention", mutates_args=())
def _ring(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], group: str) -> tuple[Tensor, Tensor]:
    """Blocks of attention, joined by the logarithms of their normalisers, which are returned too."""
    peers = group_of(group)
    held = torch.stack([k, v])
    total = normaliser = None
    for step in range(len(lengths)):
        arriving = _pass_on(held, step, lengths, peers)
        if step <= dist.get_rank(peers):
            y, lse = _attend(q, held[0], held[1], causal=step == 0)
            if total is None or normaliser is None:
                total, normaliser = y.to(lse.dtype), lse
            else:
                both = torch.logaddexp(normaliser, lse)
                total = total * torch.exp(normaliser - both)[..., None]
                total += torch.exp(lse - both)[..., None] * y
                normaliser = both
        held = arriving()
    assert total is not None and normaliser is not None
    return total.to(q.dtype, copy=True).contiguous(), normaliser.contiguous()


@_ring.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, lengths: list[int], group: str) -> tuple[Tensor, Tensor]:
    acc = torch.promote_types(q.dtype, torch.float32)
    return torch.empty_like(q), q.new_empty(q.shape[:3], dtype=acc)


@torch.library.custom_op("evo_toolkit::ring_attention_backward", mutates_args=())
def _ring_back(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lengths: list[int], group: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    peers = group_of(group)
    held = torch.stack([k, v])
    dq = torch.zeros_like(q, dtype=lse.dtype)
    d_own = torch.zeros_like(held, dtype=lse.dtype)
    returning: Callable[[], Tensor] | None = None
    for step in range(len(lengths)):
        arriving = _pass_on(held, step, lengths, peers)
        d_held = torch.zeros_like(held)
        if step <= dist.get_rank(peers):
            d_q, d_k, d_v = _attend_back(dy, q, held[0], held[1], out, lse, causal=step == 0)
            dq += d_q
            d_held = torch.stack([d_k, d_v])
        if returning is not None:
            d_own += _or_zero(returning(), d_own)
        # The gradient of a part goes straight to the rank whose part it is.
        returning = _send_home(d_held, step, lengths, peers)
        held = arriving()
    assert returning is not None
    d_own += _or_zero(returning(), d_own)
    return dq.to(q.dtype), d_own[0].to(k.dtype, copy=True), d_own[1].to(v.dtype, copy=True)


@_ring_back.register_fake
def _(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, lengths: list[int], group: str
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)


def _remember(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.lengths, ctx.group = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(q, k, v, *output)


@once_differentiable
def _gradients(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    return *_ring_back(dy.contiguous(), *ctx.saved_tensors, ctx.lengths, ctx.group), None, None


_ring.register_autograd(_gradients, setup_context=_remember)


def _or_zero(x: Tensor, like: Tensor) -> Tensor | int:
    return x.view_as(like) if x.numel() else 0


def _exchanged(
    x: Tensor, to: int, sent: int, source: int, received: int, group: dist.ProcessGroup
) -> Callable[[], Tensor]:
    """Send so many numbers to one rank and take so many from another; ranks may not exist."""
    size = dist.get_world_size(group)
    out = [sent if r == to else 0 for r in range(size)]
    into = [received if r == source else 0 for r in range(size)]
    arriving = start(x.flatten()[: sum(out)], out, into, group.group_name)
    return lambda: wait(arriving)


def _pass_on(
    held: Tensor, step: int, lengths: list[int], group: dist.ProcessGroup
) -> Callable[[], Tensor]:
    """Send the held keys and values, of rank `rank - step`, to the right; what waits gives the next."""
    rank, size = dist.get_rank(group), len(lengths)
    two, B, H, _, E = held.shape
    here, coming = rank - step, rank - step - 1
    if step == size - 1:
        return lambda: held
    received = two * B * H * E * lengths[coming] if coming >= 0 else 0
    arriving = _exchanged(
        held, rank + 1, held.numel() if here >= 0 else 0, rank - 1, received, group
    )
    return lambda: arriving().view(two, B, H, -1, E)


def _send_home(
    d_held: Tensor, step: int, lengths: list[int], group: dist.ProcessGroup
) -> Callable[[], Tensor]:
    """Send the gradient of rank `rank - step`'s keys and values there; what waits gives that of the own."""
    rank, size = dist.get_rank(group), len(lengths)
    two, B, H, _, E = d_held.shape
    sent = d_held.numel() if rank >= step else 0
    received = two * B * H * E * lengths[rank] if rank + step < size else 0
    return _exchanged(d_held, rank - step, sent, rank + step, received, group)


def _fused(q: Tensor) -> bool:
    half = q.dtype in (torch.bfloat16, torch.float16)
    return q.device.type == "cpu" or (half and q.shape[3] % 8 == 0 and q.shape[3] <= 256)


def _attend(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """`[B, H, L, E]` and the logarithms of the normalisers, `[B, H, L]` in float32 or wider."""
    if q.device.type == "cpu":
        y, lse = _aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, 0.0, causal)
        return y, lse
    if _fused(q):
        y, lse, *_ = _aten._scaled_dot_product_flash_attention(q, k, v, 0.0, causal)
        return y, lse
    outputs, normalisers = [], []
    for first, block in _blocks(q):
        scores = _scores(block, k, first, causal)
        normalisers.append(scores.logsumexp(-1))
        outputs.append(torch.exp(scores - normalisers[-1][..., None]) @ v)
    return torch.cat(outputs, 2), torch.cat(normalisers, 2)


def _attend_back(
    dy: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *, causal: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, k and v by one block, given the outputs and normalisers of all blocks."""
    if q.device.type == "cpu":
        found = _aten._scaled_dot_product_flash_attention_for_cpu_backward(
            dy, q, k, v, out, lse, 0.0, causal
        )
        return found[0], found[1], found[2]
    if _fused(q):
        random = torch.zeros(
            2, dtype=torch.uint64, device=q.device
        )  # of the dropout, which is none
        found = _aten._scaled_dot_product_flash_attention_backward(
            dy,
            q,
            k,
            v,
            out,
            lse,
            None,
            None,
            q.shape[2],
            k.shape[2],
            0.0,
            causal,
            random,
            random[0],
        )
        return found[0], found[1], found[2]
    scale = q.shape[3] ** -0.5
    dq, dk, dv = torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    for first, block in _blocks(q):
        here = slice(first, first + block.shape[2])
        weights = torch.exp(_scores(block, k, first, causal) - lse[:, :, here, None])
        dv += weights.transpose(2, 3) @ dy[:, :, here]
        delta = (dy[:, :, here] * out[:, :, here]).sum(-1, keepdim=True)
        d_scores = weights * (dy[:, :, here] @ v.transpose(2, 3) - delta) * scale
        dq[:, :, here] = d_scores @ k
        dk += d_scores.transpose(2, 3) @ block
    return dq, dk, dv


def _blocks(q: Tensor) -> list[tuple[int, Tensor]]:
    return [(i * _QUERY_BLOCK, block) for i, block in enumerate(q.split(_QUERY_BLOCK, 2))]


def _scores(q: Tensor, k: Tensor, first: int, causal: bool) -> Tensor:
    scores = q @ k.transpose(2, 3) * q.shape[3] ** -0.5
    if causal:
        rows = torch.arange(first, first + q.shape[2], device=q.device)
        hidden = torch.arange(k.shape[2], device=q.device)[None, :] > rows[:, None]
        scores = scores.masked_fill(hidden, float("-inf"))
    return scores
