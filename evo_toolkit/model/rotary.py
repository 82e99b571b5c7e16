"""Rotary position embedding with linear interpolation."""

from __future__ import annotations

import torch
from torch import Tensor


def rotary_frequencies(head_width: int, base: float, *, through_bf16: bool) -> Tensor:
    """Inverse frequencies `base ** (-2i / head_width)`, `[head_width / 2]`, float32.

    Args:
        through_bf16: Round them to bfloat16 and come back. Every released checkpoint stores such
            values; fresh float32 ones differ by up to 0.4 percent.
    """
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu") / head_width
    frequencies = 1.0 / (base**exponents)
    return frequencies.to(torch.bfloat16).to(torch.float32) if through_bf16 else frequencies


def rotate(
    x: Tensor,
    positions: Tensor,
    frequencies: Tensor,
    interpolation: float,
    rounding: torch.dtype | None,
) -> Tensor:
    """Rotate the pairs (i, i + E/2) of every head by `position / interpolation * frequency_i`.

    Args:
        x: `[B, L, H, E]`.
        positions: `[L]`, 0 for the first base of the sequence.
        frequencies: `[E / 2]`.
        rounding: Round cosine and sine to this dtype, as the released implementation does.

    Returns:
        `[B, L, H, E]` in the dtype of `x`; computed in float32 (float64 for float64).
    """
    acc = torch.promote_types(x.dtype, torch.float32)
    angles = (positions.to(acc) / interpolation)[:, None] * frequencies.to(acc)
    cos, sin = angles.cos()[:, None, :], angles.sin()[:, None, :]
    if rounding is not None:
        cos, sin = cos.to(rounding).to(acc), sin.to(rounding).to(acc)
    first, second = x.to(acc).chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1).to(x.dtype)
