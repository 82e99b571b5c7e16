"""Plain PyTorch twin of attention over forked prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evo_kernels.attention_two_segment.reference import attention_two_segment_reference


def attention_forked_reference(
    q: Tensor, prefix_k: Sequence[Tensor], prefix_v: Sequence[Tensor], k: Tensor, v: Tensor
) -> Tensor:
    """Row by row: a call for all rows of one prefix would round by how many they are."""
    rows = zip(q.split(1), prefix_k, prefix_v, k.split(1), v.split(1), strict=True)
    return torch.cat([attention_two_segment_reference(*row) for row in rows])
