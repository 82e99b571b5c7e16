"""What ranks say to each other, with gradients: all-to-all, at once or begun and finished, and gather.

The operators are named by their process group, so that torch.compile takes them as they are and
activation checkpointing repeats them. All ranks of a group call them in the same order, also in the
backward pass, whether a rank has anything to say or not. An operator's result is never empty, since a
compiler leaves out what nobody reads, and others wait for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


@dataclass
class Traffic:
    """Bytes that this rank sent to others."""

    bytes: int = 0


_listeners: list[Traffic] = []


@contextmanager
def counted() -> Iterator[Traffic]:
    """Count what this rank sends within, in forward and backward passes; not in compiled graphs."""
    traffic = Traffic()
    _listeners.append(traffic)
    try:
        yield traffic
    finally:
        _listeners.remove(traffic)


def _count(x: Tensor, numbers: int) -> None:
    for traffic in _listeners:
        traffic.bytes += numbers * x.element_size()


def group_of(name: str) -> dist.ProcessGroup:
    """The process group of a name."""
    # The only way from a name, which an operator can take, to a group; torch's own operators use it.
    resolve: Any = dist.distributed_c10d.__dict__["_resolve_process_group"]
    group: dist.ProcessGroup = resolve(name)
    return group


@torch.library.custom_op("evo_toolkit::exchange", mutates_args=())
def _exchange(x: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    peers = group_of(group)
    _count(x, sum(sent) - sent[dist.get_rank(peers)])
    out = x.new_empty(sum(received))
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=peers)
    return out


@_exchange.register_fake
def _(x: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    return x.new_empty(sum(received))


def _remember_exchange(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.sent, ctx.received, ctx.group = inputs


def _exchange_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
    return _exchange(grad, ctx.received, ctx.sent, ctx.group), None, None, None


_exchange.register_autograd(_exchange_back, setup_context=_remember_exchange)


def exchange(x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup) -> Tensor:
    """All-to-all: `sent[r]` numbers of the flat `x` go to rank r, `received[r]` come from it.

    Args:
        x: `[sum(sent)]`, the parts one after the other.

    Returns:
        `[sum(received)]`, the parts in the order of ranks.
    """
    out: Tensor = _exchange(x, sent, received, group.group_name)
    return out


def pack(x: Tensor, spans: list[int]) -> Tensor:
    """Positions `spans[2r]` to `spans[2r + 1]` of `[B, L, C]` for every rank r, one after the other, flat."""
    ends = zip(spans[::2], spans[1::2], strict=True)
    return torch.cat([x[:, a:b].flatten() for a, b in ends])


def counts_of(x: Tensor, spans: list[int]) -> list[int]:
    """How many numbers of `[B, L, C]` each span is."""
    ends = zip(spans[::2], spans[1::2], strict=True)
    return [x.shape[0] * (b - a) * x.shape[2] for a, b in ends]


@torch.library.custom_op("evo_toolkit::place", mutates_args=())
def _place(x: Tensor, going: list[int], coming: list[int], size: int, group: str) -> Tensor:
    B, _, C = x.shape
    received = counts_of(x, coming)
    flat = _exchange(pack(x, going), counts_of(x, going), received, group)
    out = x.new_zeros((B, size, C))
    for a, part in zip(coming[::2], flat.split(received), strict=True):
        part = part.view(B, -1, C)
        out[:, a : a + part.shape[1]] += part
    return out


@_place.register_fake
def _(x: Tensor, going: list[int], coming: list[int], size: int, group: str) -> Tensor:
    return x.new_empty((x.shape[0], size, x.shape[2]))


def _remember_place(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, ctx.going, ctx.coming, _, ctx.group = inputs
    ctx.positions = x.shape[1]


def _place_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None, None]:
    return _place(grad, ctx.coming, ctx.going, ctx.positions, ctx.group), None, None, None, None


_place.register_autograd(_place_back, setup_context=_remember_place)


def place(
    x: Tensor, going: list[int], coming: list[int], size: int, group: dist.ProcessGroup
) -> Tensor:
    """Send positions to other ranks, and put those that arrive where they belong, among zeros.

    Args:
        x: `[B, L, C]`; positions `going[2r]` to `going[2r + 1]` go to rank r.
        coming: Positions `coming[2r]` to `coming[2r + 1]` of the result come from rank r.

    Returns:
        `[B, size, C]`.
    """
    out: Tensor = _place(x, going, coming, size, group.group_name)
    return out


def start(x: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    """Start an all-to-all, without a gradient; the result is not to be read before `wait`."""
    if not torch.compiler.is_compiling():
        _count(x, sum(sent) - sent[dist.get_rank(group_of(group))])
    # Torch's operator keeps its input alive.
    out: Tensor = torch.ops._c10d_functional.all_to_all_single(
        x.contiguous(), received, sent, group
    )
    return out


def wait(x: Tensor) -> Tensor:
    """Wait for what `start` returned, without a gradient."""
    out: Tensor = torch.ops._c10d_functional.wait_tensor(x)
    return out


class _Begin(torch.autograd.Function):
    """Sends; gives what arrives, and a ticket of the size of what was sent, which carries gradients.

    Its backward waits for the gradient that `_Finish` has sent.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, sent: list[int], received: list[int], group: str
    ) -> tuple[Tensor, Tensor]:
        arriving = start(x, sent, received, group)
        ctx.mark_non_differentiable(arriving)
        return arriving, x.new_empty(1).expand(x.shape)

    @staticmethod
    def backward(ctx: Any, _: Tensor, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return wait(grad), None, None, None


class _Finish(torch.autograd.Function):
    """Waits; its backward sends the gradient back, so that what is computed before `_Begin` hides it."""

    @staticmethod
    def forward(
        ctx: Any, arriving: Tensor, ticket: Tensor, sent: list[int], received: list[int], group: str
    ) -> Tensor:
        ctx.arguments = received, sent, group
        return wait(arriving)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None, None, None]:
        return None, start(grad, *ctx.arguments), None, None, None


def begin_exchange(
    x: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup
) -> Callable[[], Tensor]:
    """`exchange` that goes on while other things are computed, forward and backward.

    Returns:
        A function that waits and returns the result; to be called once.
    """
    name = group.group_name
    arriving, ticket = _Begin.apply(x, sent, received, name)

    def finish() -> Tensor:
        out: Tensor = _Finish.apply(arriving, ticket, sent, received, name)
        return out

    return finish


# Renamed in torch 2.13, which warns of the old name.
_all_gather: Any = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


@torch.library.custom_op("evo_toolkit::gather", mutates_args=())
def _gather(x: Tensor, size: int, group: str) -> Tensor:
    _count(x, (size - 1) * x.numel())
    out = x.new_empty(size * x.numel())
    _all_gather(out, x.flatten(), group=group_of(group))
    return out.view(size, *x.shape)


@_gather.register_fake
def _(x: Tensor, size: int, group: str) -> Tensor:
    return x.new_empty((size, *x.shape))


def _remember_gather(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.size, ctx.group = inputs


def _gather_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    # Everyone's gradient of this rank's part, added in the order of ranks on every run.
    each = [grad[0].numel()] * ctx.size
    return _exchange(grad.flatten(), each, each, ctx.group).view_as(grad).sum(0), None, None


_gather.register_autograd(_gather_back, setup_context=_remember_gather)


def gather(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The `x` of every rank, `[ranks, *x.shape]`. One shape on all ranks."""
    out: Tensor = _gather(x, dist.get_world_size(group), group.group_name)
    return out
