"""Plain PyTorch twin of Hyena-SE."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.fir import accumulation_dtype, fir_by_shifts, round_through, with_left_context
from evo_kernels.short_conv.reference import short_conv_reference


class SEState(NamedTuple):
    """What earlier positions leave to Hyena-SE.

    Attributes:
        featurizer: Last inputs of the featurizer, `[B, 2, 3D]`, dtype of the inputs.
        gated: Last gated inputs k * v, `[B, K - 1, D]`, accumulation dtype.
    """

    featurizer: Tensor
    gated: Tensor


def hyena_se_reference(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    state: SEState | None,
    rounding: torch.dtype | None,
) -> tuple[Tensor, SEState]:
    """Return `q * causal_conv(h, k * v)` after the featurizers; arguments as in `hyena_se`."""
    features, tail = short_conv_reference(qkv, featurizer, state.featurizer if state else None)
    q, k, v = round_through(features, rounding).chunk(3, dim=-1)
    gated = round_through(k * v, rounding)
    K = h.shape[1]
    padded, gated_tail = with_left_context(gated, state.gated if state else None, K - 1)
    taps = h.to(accumulation_dtype(qkv)).repeat_interleave(gated.shape[-1] // h.shape[0], dim=0)
    y = round_through(fir_by_shifts(padded, taps, qkv.shape[1]), rounding)
    return (q * y).to(qkv.dtype), SEState(tail, gated_tail)
