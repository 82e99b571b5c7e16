"""Halos: explicit filters reach a few positions back, which come from the left neighbour.

One message of `[B, reach, 3D]` a rank: 8 positions for Hyena-SE and 129 for Hyena-MR in released models.
Where a part is shorter than the reach, the ranks before it send as well.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from evo_toolkit.model.mixer import Convolution
from evo_toolkit.parallel.layout import Lengths, begin_halo, halo


def reach_of(mixer: Convolution) -> int:
    """How many positions before a chunk its outputs depend on."""
    featurizer, h, *_ = mixer.filters()
    return featurizer.shape[1] - 1 + h.shape[1] - 1


def _halo_length(reach: int, lengths: Lengths) -> int:
    """No position lies further back than the first of all is from the last part."""
    return min(reach, sum(lengths[:-1]))


def convolution_by_halo(
    mixer: Convolution, qkv: Tensor, lengths: Lengths, group: dist.ProcessGroup
) -> Tensor:
    """Wait for the halo, then mix."""
    size = _halo_length(reach_of(mixer), lengths)
    if not size:
        return mixer.mix(qkv)[0]
    qkv, before = halo(qkv, size, lengths, group)
    # What mixing the halo leaves behind is the state: no position before it counts any more.
    _, state = mixer.mix(before, return_state=True)
    return mixer.mix(qkv, state)[0]


def convolution_by_overlapped_halo(
    mixer: Convolution, qkv: Tensor, lengths: Lengths, group: dist.ProcessGroup
) -> Tensor:
    """Mix what needs no halo while it travels, then the first positions.

    Source: StripedHyena 2 paper, appendix A.2 (overlapped point-to-point), which adds to the first
    outputs what they lack; here they are computed when all that they need is there.
    """
    reach = reach_of(mixer)
    size = _halo_length(reach, lengths)
    if not size:
        return mixer.mix(qkv)[0]
    qkv, arriving = begin_halo(qkv, size, lengths, group)
    cut = min(reach, qkv.shape[1])
    first, rest = qkv.split([cut, qkv.shape[1] - cut], 1)
    later = []
    if rest.shape[1]:
        # The state after `reach` positions: nothing before them counts.
        _, state = mixer.mix(first, return_state=True)
        later.append(mixer.mix(rest, state)[0])
    _, before = mixer.mix(arriving(), return_state=True)
    return torch.cat([mixer.mix(first, before)[0], *later], 1)
