"""State passing: what implicit filters leave behind a part is exchanged instead of positions.

The state after a part is the one before it, decayed over the part's length, plus what the part leaves when
it starts from zero. Every rank computes the latter, all see all, and each adds up those before it. The
gradients of states go the same way from the other end. Shapes: B batch, D channels, N poles, R ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from evo_kernels import DiagonalState, H3State, LIState, hyena_li_adjoint_state, hyena_li_end_state
from evo_kernels.backend import Backend
from evo_kernels.diagonal_ssm.modes import complex_product
from evo_toolkit.model.h3 import H3, DiagonalModel
from evo_toolkit.model.hyena import HyenaLI
from evo_toolkit.parallel.communication import _gather, gather
from evo_toolkit.parallel.layout import Lengths, halo


def _decayed_sum(log_poles: Tensor, states: Tensor, distances: list[int | None]) -> Tensor:
    """`sum_r exp(log_poles * distances[r]) * states[r]`: `[D, N]`, `[R, B, D, N]` to `[B, D, N]`.

    Ranks without a distance count nothing.
    """
    total = torch.zeros_like(states[0])
    for state, distance in zip(states, distances, strict=True):
        if distance is not None:
            total = total + torch.exp(log_poles * distance).to(state.dtype) * state
    return total


def li_by_states(mixer: HyenaLI, qkv: Tensor, lengths: Lengths, group: dist.ProcessGroup) -> Tensor:
    """Hyena-LI: `[B, D, N]` a rank is gathered, forward and backward, and two positions are sent.

    Each direction costs one pass more than without ranks, over k and v alone (forward) or over q and
    the output's gradient (backward).
    """
    featurizer, log_poles, residues, _ = mixer.filters()
    backend = mixer.policy.backend
    qkv, tail = halo(qkv, featurizer.shape[1] - 1, lengths, group)
    with torch.no_grad():
        zero = log_poles.new_zeros((qkv.shape[0], *log_poles.shape))
        end = hyena_li_end_state(qkv, featurizer, log_poles, LIState(tail, zero), backend=backend)
        rank = dist.get_rank(group)
        between = [sum(lengths[r + 1 : rank]) if r < rank else None for r in range(len(lengths))]
        before = _decayed_sum(log_poles, gather(end, group), between)
    if not torch.is_grad_enabled():
        return mixer.mix(qkv, LIState(tail, before))[0]
    y, after = mixer.mix(qkv, LIState(tail, before), return_state=True)
    assert after is not None
    out: Tensor = _GradientFromRight.apply(
        y, after.modal, qkv, tail, featurizer, log_poles, residues, lengths, group.group_name, rank, backend
    )  # fmt: skip
    return out


class _GradientFromRight(torch.autograd.Function):
    """The outputs as they are; in the backward pass the end state gets its gradient from later ranks.

    A state that came in is a constant to its rank: its gradient is handed over here, before the mixer's
    own backward needs the one of the end state, so that all ranks run theirs at once.
    """

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, end: Tensor, qkv: Tensor, tail: Tensor, featurizer: Tensor, log_poles: Tensor,
        residues: Tensor, lengths: Lengths, group: str, rank: int, backend: Backend,
    ) -> Tensor:  # fmt: skip
        ctx.save_for_backward(qkv, tail, featurizer, log_poles, residues)
        ctx.lengths, ctx.group, ctx.rank, ctx.backend = lengths, group, rank, backend
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        qkv, tail, featurizer, log_poles, residues = ctx.saved_tensors
        entering = hyena_li_adjoint_state(
            dy, qkv, featurizer, log_poles, residues, tail, backend=ctx.backend
        )
        size, rank = len(ctx.lengths), ctx.rank
        everyone: Tensor = _gather(entering, size, ctx.group)
        between = [sum(ctx.lengths[rank + 1 : r]) if r > rank else None for r in range(size)]
        return dy, _decayed_sum(log_poles, everyone, between), *(None,) * 9


def diagonal_by_states(
    mixer: DiagonalModel, x: Tensor, lengths: Lengths, group: dist.ProcessGroup
) -> Tensor:
    """S4D and H3: complex states, and the keys that H3's shift reaches back to.

    The part is mixed twice, once for the state that it leaves.
    """
    rank, B = dist.get_rank(group), x.shape[0]
    modes = mixer.modes()
    acc = torch.promote_types(x.dtype, torch.float32)
    G, N, _ = modes.log_poles.shape
    if isinstance(mixer, H3):
        D, E = mixer.shift_D.shape[0], mixer.shift_D.shape[0] // G
        _, keys = halo(x[..., D : 2 * D], mixer.shift_B.shape[1] - 1, lengths, group)
        zero: Any = H3State(keys.to(acc), x.new_zeros((B, D, E, N, 2), dtype=acc))
    else:
        zero = DiagonalState(x.new_zeros((B, x.shape[2], N, 2), dtype=acc))
    _, end = mixer.mix(x, zero, return_state=True)
    ends = gather(end.modal, group)
    # Those of later ranks count nothing, but take part: in the backward pass all ranks must meet.
    before = 0 * ends.sum(0)
    for r in range(rank):
        scaled = modes.log_poles * sum(lengths[r + 1 : rank])
        powers = scaled[..., :1].exp() * torch.cat(
            [scaled[..., 1:].cos(), scaled[..., 1:].sin()], -1
        )
        powers = powers.to(acc)
        if isinstance(mixer, H3):
            powers = powers.repeat_interleave(E, 0)[:, None]  # [D, 1, N, 2]
        before = before + complex_product(powers, ends[r])
    return mixer.mix(x, zero._replace(modal=before))[0]
