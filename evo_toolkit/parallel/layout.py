"""Moves of a sequence that lies on several ranks: halos, whole sequences of some channels, other cuts.

Shapes: B batch, L positions of this rank, S streams, H heads or filter groups, E channels of each.
Every move may be begun, and finished when its result is needed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from evo_toolkit.parallel.communication import begin_exchange, counts_of, exchange, pack, place

Lengths = tuple[int, ...]


def starts_of(lengths: Lengths) -> list[int]:
    """The first position of every rank's part."""
    return [0, *accumulate(lengths)][:-1]


def _begin(
    x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup, overlap: bool
) -> Callable[[], Tensor]:
    if overlap:
        return begin_exchange(x, sent, received, group)
    out = exchange(x, sent, received, group)
    return lambda: out


class _Tail(torch.autograd.Function):
    """A part and its last n positions, whose gradient is added in place to that of the part.

    A slice would give the part a second gradient of its whole size, nearly all of it zeros.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, n: int) -> tuple[Tensor, Tensor]:
        ctx.n = n
        return x.view_as(x), x[:, x.shape[1] - n :].clone()

    @staticmethod
    def backward(ctx: Any, dx: Tensor, d_tail: Tensor) -> tuple[Tensor, None]:
        if 0 in dx.stride():  # expanded: its elements share memory
            dx = dx.clone()
        dx[:, dx.shape[1] - ctx.n :] += d_tail
        return dx, None


def _move(
    x: Tensor,
    first: int,
    lengths: Lengths,
    wanted: list[tuple[int, int]],
    size: int,
    group: dist.ProcessGroup,
    overlap: bool,
) -> Callable[[], Tensor]:
    """Give every rank the positions that it wants, from wherever they lie.

    Args:
        x: `[B, n, C]`, this rank's part, or its last positions where others want no more.
        first: The position of the first one of `x`.
        wanted: First and last position (exclusive) for each rank; before the sequence's start and
            behind its end there are zeros.
        size: How many positions this rank wants.

    Returns:
        What waits and gives `[B, size, C]`.
    """
    rank = dist.get_rank(group)
    held = [(a, a + n) for a, n in zip(starts_of(lengths), lengths, strict=True)]

    def common(one: tuple[int, int], other: tuple[int, int], origin: int) -> tuple[int, int]:
        a, b = max(one[0], other[0]), min(one[1], other[1])
        return (a - origin, b - origin) if a < b else (0, 0)

    going = [i for w in wanted for i in common(held[rank], w, first)]
    coming = [i for h in held for i in common(h, wanted[rank], wanted[rank][0])]
    if not overlap:
        placed = place(x, going, coming, size, group)
        return lambda: placed
    received = counts_of(x, coming)
    finish = begin_exchange(pack(x, going), counts_of(x, going), received, group)

    def arrived() -> Tensor:
        B, _, C = x.shape
        positions = torch.cat([part.view(B, -1, C) for part in finish().split(received)], 1)
        firsts = [a for a, b in zip(coming[::2], coming[1::2], strict=True) if a < b]
        before = firsts[0] if firsts else 0
        return F.pad(positions, (0, 0, before, size - before - positions.shape[1]))

    return arrived


def begin_halo(
    x: Tensor, reach: int, lengths: Lengths, group: dist.ProcessGroup, *, overlap: bool = True
) -> tuple[Tensor, Callable[[], Tensor]]:
    """The last `reach` positions before this rank's part, zeros before the sequence's start.

    From the left neighbour alone, unless its part is shorter than the reach.

    Args:
        x: `[B, L, C]`.

    Returns:
        `x` as it is, to go on with, and what waits and gives `[B, reach, C]`.
    """
    starts = starts_of(lengths)
    wanted = [(start - reach, start) for start in starts]
    rank, n = dist.get_rank(group), min(reach, x.shape[1])
    x, tail = _Tail.apply(x, n)
    first = starts[rank] + x.shape[1] - n
    return x, _move(tail, first, lengths, wanted, reach, group, overlap)


def halo(
    x: Tensor, reach: int, lengths: Lengths, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor]:
    """`begin_halo`, waited for."""
    x, arrived = begin_halo(x, reach, lengths, group, overlap=False)
    return x, arrived()


def recut(x: Tensor, lengths: Lengths, new: Lengths, group: dist.ProcessGroup) -> Tensor:
    """Cut the sequence otherwise: `[B, lengths[rank], C]` to `[B, new[rank], C]`.

    Either cut may be longer than the other; there are zeros behind the end.
    """
    if lengths == new:
        return x
    wanted = [(a, a + n) for a, n in zip(starts_of(new), new, strict=True)]
    rank = dist.get_rank(group)
    return _move(x, starts_of(lengths)[rank], lengths, wanted, new[rank], group, False)()


def begin_to_heads(
    x: Tensor, lengths: Lengths, group: dist.ProcessGroup, *, overlap: bool = True
) -> Callable[[], Tensor]:
    """From all heads of a part to some heads of the whole sequence.

    Heads that do not divide by the ranks are filled up with zeros: rank r has heads `r * own` to
    `(r + 1) * own` of the filled ones.

    Args:
        x: `[B, L, S, H, E]`.

    Returns:
        What waits and gives `[B, sum(lengths), S, own, E]`.
    """
    size = dist.get_world_size(group)
    B, L, S, H, E = x.shape
    own = -(-H // size)
    if own * size != H:  # padding by nothing would be a copy
        x = F.pad(x, (0, 0, 0, own * size - H))
    row = B * S * own * E
    received = [row * n for n in lengths]
    flat = x.unflatten(3, (size, own)).movedim(3, 0).flatten()
    finish = _begin(flat, [row * L] * size, received, group, overlap)

    def heads() -> Tensor:
        if B == 1:  # the parts lie one after the other
            return finish().view(1, -1, S, own, E)
        return torch.cat([p.view(B, -1, S, own, E) for p in finish().split(received)], 1)

    return heads


def begin_from_heads(
    y: Tensor, num_heads: int, lengths: Lengths, group: dist.ProcessGroup, *, overlap: bool = True
) -> Callable[[], Tensor]:
    """Back from some heads of the whole sequence: `[B, sum(lengths), own, E]` to `[B, L, H, E]`."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    B, _, own, E = y.shape
    L, row = lengths[rank], B * own * E
    flat = (
        torch.cat([part.flatten() for part in y.split(list(lengths), 1)]) if B > 1 else y.flatten()
    )
    finish = _begin(flat, [row * n for n in lengths], [row * L] * size, group, overlap)

    def positions() -> Tensor:
        heads = finish().view(size, B, L, own, E).movedim(0, 2).flatten(2, 3)
        return heads[:, :, :num_heads]

    return positions
