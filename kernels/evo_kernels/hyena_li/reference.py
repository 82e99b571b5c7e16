"""Plain PyTorch twin of Hyena-LI: the chunked modal scan.

The filter of a channel is `h[t] = sum_n R_n * exp(lambda_n * t)`, so the convolution is a linear
recurrence with one state per pole, `s[t] = exp(lambda) * s[t-1] + z[t]`, `y[t] = sum_n R_n s_n[t]`.
Positions are cut into chunks of `CHUNK`; within a chunk the convolution is a product with a
triangular Toeplitz matrix of the first `CHUNK` filter values, and a chunk hands its state to the
next. Only non-negative powers of values in (0, 1) occur, so nothing overflows; underflow to zero is
right. No tensor of the filter's full length ever exists.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.fir import accumulation_dtype, round_through, whole_terms
from evo_kernels.short_conv.reference import short_conv_reference

CHUNK = 64
"""Positions per chunk."""
CHUNKS_PER_TILE = 64
"""Chunks that are processed together; bounds the memory of a long sequence."""


class LIState(NamedTuple):
    """What earlier positions leave to Hyena-LI.

    Attributes:
        featurizer: Last inputs of the featurizer, `[B, 2, 3D]`, dtype of the inputs.
        modal: `sum_{k <= t} exp(lambda * (t - k)) * z[k]` at the last position t, `[B, D, N]`,
            accumulation dtype.
    """

    featurizer: Tensor
    modal: Tensor


def tiles(length: int) -> Iterator[tuple[int, int, int]]:
    """The first position, number of chunks and positions per chunk of tiles that cover a sequence."""
    start = 0
    while start < length:
        chunk = min(CHUNK, length - start)
        num_chunks = min(CHUNKS_PER_TILE, (length - start) // chunk)
        yield start, num_chunks, chunk
        start += num_chunks * chunk


def _powers(log_poles: Tensor, exponents: Tensor) -> Tensor:
    """`exp(lambda * e)`: `[D, N]` and `[E]` to `[D, E, N]`."""
    return torch.exp(log_poles[:, None, :] * exponents[None, :, None])


def _tile(z: Tensor, carry: Tensor, log_poles: Tensor, residues: Tensor) -> tuple[Tensor, Tensor]:
    """Convolve m whole chunks of C positions.

    Args:
        z: `[D, B, m, C]`.
        carry: State before the first position, `[D, B, N]`.

    Returns:
        `[D, B, m, C]` and the state after the last position.
    """
    D, B, m, C = z.shape
    N = log_poles.shape[1]
    steps = torch.arange(C, device=z.device, dtype=z.dtype)
    rising = _powers(log_poles, steps)  # [D, C, N]: exp(lambda * l)
    h = (rising * residues[:, None, :]).sum(-1)  # [D, C]
    lag = torch.arange(C, device=z.device)[:, None] - torch.arange(C, device=z.device)[None, :]
    toeplitz = torch.where(lag >= 0, h[:, lag.clamp(min=0)], h.new_zeros(()))  # [D, C, C]
    rows = whole_terms(z.reshape(D, B * m, C))
    y = rows @ whole_terms(toeplitz).transpose(1, 2)
    # What each chunk adds to the state, as seen at its last position.
    into_state = torch.nn.functional.pad(rising.flip(1), (0, 0, 0, rows.shape[2] - C))
    added = (rows @ into_state).view(D, B, m, N)
    # Inclusive scan over chunks by doubling: log2(m) steps, all chunks at once.
    step = 1
    while step < m:
        decay = torch.exp(log_poles * (C * step))[:, None, None, :]
        shifted = torch.nn.functional.pad(added[:, :, :-step], (0, 0, step, 0))
        added = torch.addcmul(added, decay, shifted)
        step *= 2
    chunk_index = torch.arange(m + 1, device=z.device, dtype=z.dtype)
    carried = _powers(log_poles, chunk_index * C)[:, None] * carry[:, :, None, :]  # [D, B, m+1, N]
    entering = carried + torch.nn.functional.pad(added, (0, 0, 1, 0))
    outgoing = residues[:, None, :] * _powers(log_poles, steps + 1)  # [D, C, N]
    before = whole_terms(entering[:, :, :m].reshape(D, B * m, N))
    y = y + before @ whole_terms(outgoing).transpose(1, 2)
    # A copy: a view would keep every chunk's state alive with the last one.
    return y.view(D, B, m, C), entering[:, :, m].clone()


def modal_conv(
    z: Tensor, log_poles: Tensor, residues: Tensor, modal: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Causal convolution of every channel with its sum of exponentials.

    Args:
        z: `[B, L, D]`, accumulation dtype.
        log_poles: lambda, negative, `[D, N]`.
        residues: R, `[D, N]`.
        modal: State before the first position, `[B, D, N]`, or None for zeros.

    Returns:
        `[B, L, D]` and the state after the last position, `[B, D, N]`.
    """
    B, L, D = z.shape
    N = log_poles.shape[1]
    carry = z.new_zeros(D, B, N) if modal is None else modal.to(z.dtype).transpose(0, 1)
    channel_first = z.permute(2, 0, 1)  # [D, B, L]
    outputs = []
    for start, m, C in tiles(L):
        tile = channel_first[:, :, start : start + m * C].reshape(D, B, m, C)
        y, carry = _tile(tile, carry, log_poles, residues)
        outputs.append(y.reshape(D, B, m * C))
    joined = outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=2)
    return joined.permute(1, 2, 0), carry.transpose(0, 1)


def hyena_li_reference(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    state: LIState | None,
    rounding: torch.dtype | None,
) -> tuple[Tensor, LIState]:
    """Return `q * (causal_conv(h, k * v) + skip * k * v)`; arguments as in `hyena_li`."""
    acc = accumulation_dtype(qkv)
    features, tail = short_conv_reference(qkv, featurizer, state.featurizer if state else None)
    q, k, v = round_through(features, rounding).chunk(3, dim=-1)
    gated = round_through(k * v, rounding)
    y, modal = modal_conv(
        gated, log_poles.to(acc), residues.to(acc), state.modal if state else None
    )
    y = round_through(y, rounding) + round_through(skip.to(acc) * gated, rounding)
    return (q * round_through(y, rounding)).to(qkv.dtype), LIState(tail, modal)


def hyena_li_end_state_reference(
    qkv: Tensor, featurizer: Tensor, log_poles: Tensor, state: LIState | None
) -> Tensor:
    """Return the modal state after the last position, `[B, D, N]`; arguments as in `hyena_li`."""
    acc = accumulation_dtype(qkv)
    features, _ = short_conv_reference(qkv, featurizer, state.featurizer if state else None)
    _, k, v = features.chunk(3, dim=-1)
    poles = log_poles.to(acc)
    return modal_conv(k * v, poles, torch.ones_like(poles), state.modal if state else None)[1]


def hyena_li_adjoint_state_reference(
    dy: Tensor,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    feature_tail: Tensor | None,
) -> Tensor:
    """Return the gradient of the state before the first position; arguments as in `hyena_li_adjoint_state`."""
    acc = accumulation_dtype(qkv)
    D = log_poles.shape[0]
    tail = None if feature_tail is None else feature_tail[..., :D]
    q, _ = short_conv_reference(qkv[..., :D], featurizer[:D], tail)
    poles = log_poles.to(acc)
    # From right to left: sum_j exp(lambda j) g[j].
    behind = modal_conv((dy.to(acc) * q).flip(1), poles, torch.ones_like(poles), None)[1]
    return residues.to(acc) * torch.exp(poles) * behind
