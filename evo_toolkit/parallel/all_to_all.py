"""All-to-all: every rank takes some channels of the whole sequence, and gives their results back.

For convolutions whole filter groups, for attention whole heads. Contiguous parts keep attention's causal
work equal. Shapes: B batch, L positions of this rank, D channels, R ranks.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from evo_toolkit.model.attention import Attention
from evo_toolkit.model.mixer import Convolution
from evo_toolkit.parallel.layout import Lengths, begin_from_heads, begin_to_heads

PIECES = 4
"""Pieces of the channels that "all-to-all-pipelined" moves one after the other."""


def convolution_by_channels(
    mixer: Convolution,
    qkv: Tensor,
    lengths: Lengths,
    group: dist.ProcessGroup,
    *,
    pieces: int = 1,
) -> Tensor:
    """Convolve some channels of the whole sequence: 4 tensors of a part's size go and come.

    With more pieces than one their exchanges overlap with the convolutions of the ones before,
    forward and backward.

    Source: StripedHyena 2 paper, appendix A.2 (all-to-all, and its channel-pipelined form).
    """
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    G, filters = mixer.num_groups, mixer.filters()
    x = qkv.unflatten(2, (3, G, -1))
    step = -(-G // pieces)
    cuts = [(a, min(a + step, G)) for a in range(0, G, step)]
    overlap = len(cuts) > 1
    arriving = [begin_to_heads(x[:, :, :, a:b], lengths, group, overlap=overlap) for a, b in cuts]
    leaving = []
    for (a, b), arrived in zip(cuts, arriving, strict=True):
        own = [
            _of_rank(f, G, (a, b), 3 if i == 0 else 1, rank, size) for i, f in enumerate(filters)
        ]
        whole = arrived()  # [B, sum of L, 3, own groups, D / G]
        y, _ = mixer.with_filters(whole.flatten(2), tuple(own))
        y = y.unflatten(2, whole.shape[3:])
        leaving.append(begin_from_heads(y, b - a, lengths, group, overlap=overlap))
    return torch.cat([left() for left in leaving], 2).flatten(2)


def _of_rank(
    x: Tensor, num_groups: int, cut: tuple[int, int], blocks: int, rank: int, size: int
) -> Tensor:
    """A rank's share of what belongs to the groups of a cut, filled up with zeros.

    Args:
        x: `[blocks * D or blocks * num_groups, ...]`.
    """
    x = x.unflatten(0, (blocks, num_groups, -1))[:, cut[0] : cut[1]]
    own = -(-x.shape[1] // size)
    x = F.pad(x, (0, 0) * (x.dim() - 2) + (0, own * size - x.shape[1]))
    return x[:, rank * own : (rank + 1) * own].flatten(0, 2)


def attention_by_heads(
    mixer: Attention, qkv: Tensor, lengths: Lengths, group: dist.ProcessGroup
) -> Tensor:
    """Attend with some heads to the whole sequence. More ranks than heads leave some ranks idle."""
    first = sum(lengths[: dist.get_rank(group)])
    # Nothing is kept under a name that the next line does not need: these are the largest tensors.
    qkv = torch.stack(mixer.heads(qkv, first), 2)
    qkv = begin_to_heads(qkv, lengths, group, overlap=False)()
    y = mixer.attend(*qkv.unbind(2))
    return begin_from_heads(y, mixer.num_heads, lengths, group, overlap=False)().flatten(2)
