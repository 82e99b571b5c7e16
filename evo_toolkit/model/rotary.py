"""Rotary position embedding with linear interpolation."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.rotary import rotate_pairs


def rotary_frequencies(head_width: int, base: float, *, through_bf16: bool) -> Tensor:
    """Inverse frequencies `base ** (-2i / head_width)`, `[head_width / 2]`, float32.

    Args:
        through_bf16: Round them to bfloat16 and come back. Every released checkpoint stores such
            values; fresh float32 ones differ by up to 0.4 percent.
    """
    exponents = torch.arange(0, head_width, 2, dtype=torch.float32, device="cpu") / head_width
    frequencies = 1.0 / (base**exponents)
    return frequencies.to(torch.bfloat16).to(torch.float32) if through_bf16 else frequencies


def rotary_table(
    positions: Tensor,
    frequencies: Tensor,
    interpolation: float,
    rounding: torch.dtype | None,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Cosine and sine of `position / interpolation * frequency_i`.

    Args:
        positions: `[..., L]`, 0 for the first base of the sequence.
        frequencies: `[E / 2]`.
        rounding: Round both to this dtype, as the released implementation does.
        dtype: Of the result.

    Returns:
        Two `[..., L, E / 2]`.
    """
    angles = (positions.to(dtype) / interpolation)[..., None] * frequencies.to(dtype)
    cos, sin = angles.cos(), angles.sin()
    if rounding is not None:
        cos, sin = cos.to(rounding).to(dtype), sin.to(rounding).to(dtype)
    return cos, sin


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
        positions, frequencies, interpolation, rounding: As in `rotary_table`.

    Returns:
        `[B, L, H, E]` in the dtype of `x`; computed in float32 (float64 for float64).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    return rotate_pairs(x, *rotary_table(positions, frequencies, interpolation, rounding, dtype))
