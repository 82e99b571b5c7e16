"""How each kind of mixer continues what lies on the ranks before: one function a strategy.

All rest on the mixers' contract, (chunk, state) to (chunk, state): a rank needs the state that the
ranks before it leave. Shapes: B batch, L positions of this rank, D channels, N poles, R ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from evo_kernels import LIState
from evo_toolkit.errors import UsageError
from evo_toolkit.model.attention import Attention
from evo_toolkit.model.hyena import HyenaLI
from evo_toolkit.model.mixer import Mixer
from evo_toolkit.parallel.communication import exchange, from_left, gather


def _tail(qkv: Tensor, length: int, lengths: tuple[int, ...]) -> Tensor:
    """The last positions of a part, which the next rank needs."""
    if min(lengths[:-1], default=length) < length:
        raise UsageError(
            f"a part of {min(lengths[:-1])} positions is shorter than the {length} that the next rank needs of it; use fewer ranks or longer sequences"
        )
    if qkv.shape[1] < length:  # the last rank, whose tail nobody takes
        return F.pad(qkv, (0, 0, length - qkv.shape[1], 0))
    return qkv[:, -length:]


def hyena_by_halo(
    mixer: Mixer, reach: int, qkv: Tensor, lengths: tuple[int, ...], group: dist.ProcessGroup
) -> Tensor:
    """Explicit filters reach a few positions back: those come from the left neighbour.

    One message of `[B, reach, 3D]` a rank: 8 positions for Hyena-SE and 129 for Hyena-MR in released
    models.

    Args:
        reach: How many positions before a chunk its outputs depend on.
    """
    halo = from_left(_tail(qkv, reach, lengths), group)
    # What mixing the halo leaves behind is the state: no position before it counts any more.
    _, state = mixer.mix(halo, return_state=True)
    return mixer.mix(qkv, state)[0]


def hyena_by_states(
    mixer: HyenaLI, qkv: Tensor, lengths: tuple[int, ...], group: dist.ProcessGroup
) -> Tensor:
    """Exchange modal states, `[B, D, N]` a rank, instead of positions.

    The state after a part is `poles^L` times the one before it, plus what the part leaves when it
    starts from zero. Every rank computes the latter, all see all, and each adds up those before it.
    """
    tail = from_left(_tail(qkv, mixer.featurizer.shape[1] - 1, lengths), group)
    poles = mixer.log_poles
    zero = poles.new_zeros((qkv.shape[0], *poles.shape))
    ends = gather(mixer.end_state(qkv, LIState(tail, zero)), group)
    rank = dist.get_rank(group)
    # Those of later ranks count nothing, but take part: in the backward pass all ranks must meet.
    decays = torch.stack(
        [
            torch.exp(poles * sum(lengths[r + 1 : rank])) if r < rank else torch.zeros_like(poles)
            for r in range(len(lengths))
        ]
    )
    before = (decays[:, None] * ends).sum(0)
    return mixer.mix(qkv, LIState(tail, before))[0]


def attention_by_heads(
    mixer: Attention, qkv: Tensor, lengths: tuple[int, ...], group: dist.ProcessGroup
) -> Tensor:
    """All-to-all: every rank takes some heads of the whole sequence, and gives them back.

    Heads that do not divide by the ranks are filled up with zeros. Contiguous parts keep the causal
    work of all ranks equal.
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    B, L, C = qkv.shape
    q, k, v = mixer.heads(qkv, sum(lengths[:rank]))
    E, own = q.shape[-1], -(-mixer.num_heads // size)

    # [B, L, H, E] of q, k and v to [R, B, L, 3, own heads, E], of which rank r takes row r.
    x = F.pad(torch.stack([q, k, v], 2), (0, 0, 0, own * size - mixer.num_heads))
    x = x.unflatten(3, (size, own)).movedim(3, 0)
    row = B * 3 * own * E
    of_each = [row * n for n in lengths]
    received = exchange(x.flatten(), [row * L] * size, of_each, group)
    parts = [part.view(B, -1, 3, own, E) for part in received.split(of_each)]
    y = mixer.attend(*torch.cat(parts, 1).unbind(2))

    row = B * own * E
    sent = torch.cat([part.flatten() for part in y.split(list(lengths), 1)])
    received = exchange(sent, [row * n for n in lengths], [row * L] * size, group)
    heads = received.view(size, B, L, own, E).movedim(0, 2).flatten(2, 3)
    return heads[:, :, : mixer.num_heads].reshape(B, L, C // 3)
