"""Pieces that the explicit-filter twins share: accumulation dtype, left context, FIR sums."""

from __future__ import annotations

import torch
from torch import Tensor

ALIGNED = 4
"""Scores must not depend on their batch. On CPUs, products of rows with a matrix whose summed index lies
adjacent in memory give a row the same bits beside any others when they sum over a multiple of so many terms;
zeros make up the number."""


def accumulation_dtype(x: Tensor) -> torch.dtype:
    """float32, or float64 for float64 inputs."""
    return torch.promote_types(x.dtype, torch.float32)


def with_left_context(x: Tensor, context: Tensor | None, length: int) -> tuple[Tensor, Tensor]:
    """Prepend the last `length` positions before this chunk; zeros at the start of the sequence.

    Args:
        x: `[B, L, C]`.
        context: `[B, length, C]` or None.

    Returns:
        `[B, length + L, C]`, and its last `length` positions: the context of the next chunk, in
        memory of its own, since a view would keep the whole chunk alive with the state.
    """
    if context is None:
        padded = torch.nn.functional.pad(x, (0, 0, length, 0))
    else:
        padded = torch.cat([context.to(x.dtype), x], dim=1)
    return padded, padded[:, x.shape[1] :].clone()


def fir_by_shifts(padded: Tensor, taps: Tensor, num_positions: int) -> Tensor:
    """Depthwise causal FIR as one multiply-add per tap; best for a handful of taps.

    Args:
        padded: `[B, K - 1 + L, C]`, left context included.
        taps: `[C, K]`, lag 0 first, in the dtype of `padded`.
        num_positions: L.

    Returns:
        `[B, L, C]`: `y[t] = sum_j taps[:, j] * x[t - j]`.
    """
    K = taps.shape[1]
    y = padded[:, K - 1 : K - 1 + num_positions] * taps[:, 0]
    for lag in range(1, K):
        start = K - 1 - lag
        y = torch.addcmul(y, padded[:, start : start + num_positions], taps[:, lag])
    return y


def whole_terms(x: Tensor) -> Tensor:
    """Zeros behind the last dimension, over which a product is about to sum, up to a whole `ALIGNED`.

    Contiguous; `x` itself where that holds already.
    """
    missing = -x.shape[-1] % ALIGNED
    return torch.nn.functional.pad(x, (0, missing)) if missing else x.contiguous()


def round_through(x: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Round `x` to `dtype` and come back, or return it untouched when `dtype` is None."""
    return x if dtype is None else x.to(dtype).to(x.dtype)
