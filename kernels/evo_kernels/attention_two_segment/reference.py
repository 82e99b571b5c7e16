"""Plain PyTorch twin of two-segment attention."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.fir import accumulation_dtype

# Queries per block: bounds the score matrix at [heads, block, keys].
_QUERY_BLOCK = 256


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """Softmax attention and the logarithm of its normaliser, in the accumulation dtype.

    Args:
        q: `[B, L, H, E]`.
        k, v: `[B, S, H, E]`.
        causal: Query i sees keys up to `S - L + i` (the last query sees all).

    Returns:
        `[B, L, H, E]` and `[B, L, H]`.
    """
    acc = accumulation_dtype(q)
    L, S = q.shape[1], k.shape[1]
    keys, values = k.to(acc).permute(0, 2, 3, 1), v.to(acc).permute(0, 2, 1, 3)
    outputs, normalisers = [], []
    for start in range(0, L, _QUERY_BLOCK):
        block = q[:, start : start + _QUERY_BLOCK].to(acc).permute(0, 2, 1, 3)
        scores = (block @ keys) * q.shape[-1] ** -0.5
        if causal:
            last_seen = torch.arange(start, start + block.shape[2], device=q.device) + (S - L)
            hidden = torch.arange(S, device=q.device)[None, :] > last_seen[:, None]
            scores = scores.masked_fill(hidden, float("-inf"))
        lse = scores.logsumexp(-1)
        outputs.append((torch.exp(scores - lse[..., None]) @ values).permute(0, 2, 1, 3))
        normalisers.append(lse.permute(0, 2, 1))
    return torch.cat(outputs, 1), torch.cat(normalisers, 1)


def attention_two_segment_reference(
    q: Tensor, prefix_k: Tensor, prefix_v: Tensor, k: Tensor, v: Tensor
) -> Tensor:
    """Merge attention over the shared prefix and over the own suffix by their normalisers."""
    A, L, H, E = q.shape
    # All continuations' queries folded together: one non-causal call over the prefix.
    over_prefix, lse_prefix = attention_with_lse(
        q.reshape(1, A * L, H, E), prefix_k, prefix_v, causal=False
    )
    over_own, lse_own = attention_with_lse(q, k, v, causal=True)
    lse_prefix = lse_prefix.view(A, L, H)
    lse = torch.logaddexp(lse_prefix, lse_own)
    merged = over_prefix.view(A, L, H, E) * torch.exp(lse_prefix - lse)[..., None]
    merged = merged + over_own * torch.exp(lse_own - lse)[..., None]
    return merged.to(q.dtype)
