"""Plain PyTorch twin of the rotary embedding."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.fir import accumulation_dtype


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + E/2) of every head.

    Args:
        x: `[B, L, H, E]`.
        cos, sin: `[L, E/2]` or `[B, L, E/2]`, accumulation dtype.

    Returns:
        `[B, L, H, E]` in the dtype of `x`, rounded once.
    """
    cos, sin = cos[..., None, :], sin[..., None, :]
    first, second = x.to(accumulation_dtype(x)).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
