"""Plain PyTorch twin of Hyena-MR: the FIR as block-Toeplitz matrix products, one per filter group."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.fir import accumulation_dtype, round_through, with_left_context
from evo_kernels.short_conv.reference import short_conv_reference

# Chunks up to this long go through a direct sum: a Toeplitz block would be mostly padding.
_SMALL_CHUNK = 16


class MRState(NamedTuple):
    """What earlier positions leave to Hyena-MR.

    Attributes:
        featurizer: Last inputs of the featurizer, `[B, 2, 3D]`, dtype of the inputs.
        gated: Last gated inputs k * v, `[B, K - 1, D]`, as fed to the convolution.
    """

    featurizer: Tensor
    gated: Tensor


def grouped_fir(padded: Tensor, h: Tensor, num_positions: int) -> Tensor:
    """Causal FIR with one filter per group of adjacent channels.

    Args:
        padded: `[B, K - 1 + L, D]`, left context included.
        h: `[G, K]`, lag 0 first.
        num_positions: L.

    Returns:
        `[B, L, D]`.
    """
    B, _, D = padded.shape
    G, K = h.shape
    if num_positions <= _SMALL_CHUNK:
        windows = padded.view(B, -1, G, D // G).unfold(1, K, 1)  # [B, L, G, D/G, K], oldest first
        return torch.einsum("blgdk,gk->blgd", windows, h.flip(1)).reshape(B, num_positions, D)
    # A block of `block` outputs needs block + K - 1 inputs: rows of T are shifted copies of h.
    block = max(K - 1, _SMALL_CHUNK)
    num_blocks = -(-num_positions // block)
    padded = torch.nn.functional.pad(padded, (0, 0, 0, num_blocks * block - num_positions))
    span = block + K - 1
    lag = (
        torch.arange(block, device=h.device)[:, None]
        + (K - 1)
        - torch.arange(span, device=h.device)
    )
    inside = (lag >= 0) & (lag < K)
    toeplitz = torch.where(inside, h[:, lag.clamp(0, K - 1)], h.new_zeros(()))  # [G, block, span]
    windows = padded.view(B, -1, G, D // G).unfold(1, span, block)  # [B, n, G, D/G, span]
    y = torch.einsum("bngds,gis->bnigd", windows, toeplitz)
    return y.reshape(B, num_blocks * block, D)[:, :num_positions]


def hyena_mr_reference(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    state: MRState | None,
    rounding: torch.dtype | None,
) -> tuple[Tensor, MRState]:
    """Return `q * (causal_conv(h, k * v) + skip * k * v)`; arguments as in `hyena_mr`."""
    acc = accumulation_dtype(qkv)
    features, tail = short_conv_reference(qkv, featurizer, state.featurizer if state else None)
    q, k, v = round_through(features, rounding).chunk(3, dim=-1)
    gated = round_through(k * v, rounding)
    K = h.shape[1]
    padded, gated_tail = with_left_context(gated, state.gated if state else None, K - 1)
    y = grouped_fir(padded, h.to(acc), qkv.shape[1]) + skip.to(acc) * gated
    y = round_through(y, rounding)
    return (q * y).to(qkv.dtype), MRState(tail, gated_tail)
