"""What ranks say to each other: three operators, each with its gradient.

They are operators of torch, named by their process group, so that torch.compile takes them as they
are and activation checkpointing repeats them. All ranks of a group call them in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def _group(name: str) -> dist.ProcessGroup:
    # The only way from a name, which an operator can take, to a group; torch's own operators use it.
    resolve: Any = dist.distributed_c10d.__dict__["_resolve_process_group"]
    group: dist.ProcessGroup = resolve(name)
    return group


@torch.library.custom_op("evo_toolkit::shift", mutates_args=())
def _shift(x: Tensor, step: int, group: str) -> Tensor:
    peers = _group(group)
    rank, size = dist.get_rank(peers), dist.get_world_size(peers)
    sent, received = x.contiguous(), torch.zeros_like(x, memory_format=torch.contiguous_format)
    calls = []
    if 0 <= rank + step < size:
        calls.append(dist.P2POp(dist.isend, sent, group=peers, group_peer=rank + step))
    if 0 <= rank - step < size:
        calls.append(dist.P2POp(dist.irecv, received, group=peers, group_peer=rank - step))
    for work in dist.batch_isend_irecv(calls) if calls else ():
        work.wait()
    return received


@_shift.register_fake
def _(x: Tensor, step: int, group: str) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _remember_shift(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, ctx.step, ctx.group = inputs


def _shift_back(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return _shift(grad, -ctx.step, ctx.group), None, None


_shift.register_autograd(_shift_back, setup_context=_remember_shift)


def from_left(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The `x` of the rank before this one; zeros on the first rank. One shape on all ranks."""
    received: Tensor = _shift(x, 1, group.group_name)
    return received


@torch.library.custom_op("evo_toolkit::exchange", mutates_args=())
def _exchange(x: Tensor, sent: list[int], received: list[int], group: str) -> Tensor:
    out = x.new_empty(sum(received))
    dist.all_to_all_single(out, x.contiguous(), received, sent, group=_group(group))
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


@torch.library.custom_op("evo_toolkit::gather", mutates_args=())
def _gather(x: Tensor, size: int, group: str) -> Tensor:
    out = x.new_empty(size * x.numel())
    dist.all_gather_into_tensor(out, x.flatten(), group=_group(group))
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
