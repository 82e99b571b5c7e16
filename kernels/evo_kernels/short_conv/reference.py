"""Plain PyTorch twin of the featurizer."""

from __future__ import annotations

from torch import Tensor

from evo_kernels.fir import accumulation_dtype, fir_by_shifts, with_left_context


def short_conv_reference(x: Tensor, taps: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the filtered chunk in the accumulation dtype, and the last K - 1 inputs.

    Args:
        x: `[B, L, C]`.
        taps: `[C, K]`, lag 0 first.
        state: `[B, K - 1, C]` or None for zeros.
    """
    K = taps.shape[1]
    padded, tail = with_left_context(x, state, K - 1)
    acc = accumulation_dtype(x)
    y = fir_by_shifts(padded.to(acc), taps.to(acc), x.shape[1])
    return y, tail
