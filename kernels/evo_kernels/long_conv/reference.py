"""Plain PyTorch twin of the long convolution: block-Toeplitz products, FFT, or butterfly.

All three take a chunk with its left context and give the same sums in another order, so that any
split of a sequence is exact. FFT and butterfly work through long chunks in segments that overlap by
the filter's reach (overlap-save), which bounds their memory.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_kernels.butterfly.reference import (
    block_sizes,
    butterfly,
    dft_matrix,
    inverse_butterfly,
)
from evo_kernels.fir import accumulation_dtype, fir_by_shifts, round_through
from evo_kernels.short_conv.reference import short_conv_reference

Algorithm = Literal["auto", "toeplitz", "fft", "butterfly"]

# Chunks up to this long are direct sums over the taps.
_SMALL_CHUNK = 4
# Taps that a direct sum takes at a time: they stay in a processor's cache.
_PIECE = 128
# With fewer rows than this in a Toeplitz product, a tap is one multiply-add instead: libraries treat the
# last rows of small products differently, and a sequence should not feel where it stands in a batch.
_MIN_ROWS = 16
# Positions per block of the Toeplitz products.
_BLOCK = 64
TOEPLITZ_TAPS = 128
"""Up to so many taps "auto" takes block-Toeplitz products; more go through the FFT.

In float32, without tensor cores, the FFT is as fast from about here on.
"""
# A segment of the FFT holds at least so many points, and four times the filter.
_SEGMENT = 8192


class LongConvState(NamedTuple):
    """What earlier positions leave to a long convolution.

    Attributes:
        featurizer: Last inputs of the featurizer, `[B, 2, 3D]`, dtype of the inputs.
        gated: Last gated inputs k * v, as far as the filter reaches, `[B, K - 1, D]`, accumulation
            dtype.
    """

    featurizer: Tensor
    gated: Tensor


def _direct(padded: Tensor, h: Tensor, num_positions: int) -> Tensor:
    """One weighted sum over the taps for each position, a piece of the taps at a time.

    Not a matrix product, which may add up the rows of a batch in different orders: a sequence has the
    same bits wherever it stands in a batch.
    """
    K = h.shape[1]
    taps = _per_channel(h, padded.shape[2]).flip(1).t().contiguous()
    positions = []
    for t in range(num_positions):
        pieces = [
            (padded[:, t + s : t + min(s + _PIECE, K)] * taps[s : s + _PIECE]).sum(1)
            for s in range(0, K, _PIECE)
        ]
        positions.append(sum(pieces[1:], pieces[0]))
    return torch.stack(positions, dim=1)


def _per_channel(h: Tensor, width: int) -> Tensor:
    return h if h.shape[0] == width else h.repeat_interleave(width // h.shape[0], dim=0)


def _toeplitz(padded: Tensor, h: Tensor, num_positions: int) -> Tensor:
    """Sum over block diagonals: output block i takes input block i - j times the Toeplitz block j."""
    B, _, D = padded.shape
    G, K = h.shape
    C = _BLOCK
    n = -(-num_positions // C)
    if n * B * (D // G) < _MIN_ROWS:
        return fir_by_shifts(padded, _per_channel(h, D), num_positions)
    m = -(-(K - 1) // C)  # blocks of context
    x = F.pad(padded, (0, 0, m * C - (K - 1), n * C - num_positions))
    # [G, m + n, rows, C]: a range of blocks is a view with one batch stride, no copy.
    x = x.view(B, m + n, C, G, D // G).permute(3, 1, 0, 4, 2).reshape(G, m + n, -1, C)
    # lags[:, s] = h[s - (C - 1) : s + 1], zero outside: the columns of every block.
    lags = F.pad(h, (C - 1, (m + 1) * C - K)).unfold(1, C, 1)
    y: Tensor | None = None
    for j in range(m + 1):
        block = lags[:, j * C : (j + 1) * C].flip(1)  # [G, C, C]: row b, column a is lag jC + a - b
        product = torch.bmm(x[:, m - j : m - j + n].reshape(G, -1, C), block)
        y = product if y is None else y + product
    assert y is not None
    y = y.view(G, n, B, D // G, C).permute(2, 1, 4, 0, 3).reshape(B, n * C, D)
    return y[:, :num_positions]


def _by_segments(
    padded: Tensor, h: Tensor, num_positions: int, size: int, convolve: Callable[[Tensor], Tensor]
) -> Tensor:
    """Circular convolutions of `size` points, of which the first K - 1 are wrong and left out."""
    B, _, D = padded.shape
    G, K = h.shape
    step = size - (K - 1)
    rows = padded.transpose(1, 2).reshape(B, G, D // G, -1)
    parts = []
    for start in range(0, num_positions, step):
        segment = rows[..., start : start + size]
        segment = F.pad(segment, (0, size - segment.shape[-1]))
        stop = min(start + step, num_positions)
        parts.append(convolve(segment)[..., K - 1 : K - 1 + stop - start])
    y = parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)
    return y.reshape(B, D, num_positions).transpose(1, 2)


def _power_of_two(at_least: int) -> int:
    return 1 << max(at_least - 1, 1).bit_length()


def _segment_size(taps: int, num_positions: int) -> int:
    """Points of a transform: the whole chunk, or a segment that keeps three quarters of its points."""
    return _power_of_two(min(taps - 1 + num_positions, max(_SEGMENT, 4 * taps)))


def _fft(padded: Tensor, h: Tensor, num_positions: int) -> Tensor:
    size = _segment_size(h.shape[1], num_positions)
    spectrum = torch.fft.rfft(h, n=size)[:, None]  # [G, 1, size / 2 + 1]

    def convolve(segment: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(segment) * spectrum, n=size)

    return _by_segments(padded, h, num_positions, size, convolve)


def _butterfly(padded: Tensor, h: Tensor, num_positions: int, order: int) -> Tensor:
    size = max(_segment_size(h.shape[1], num_positions), 1 << order)
    sizes = block_sizes(size, order)
    matrices = [dft_matrix(n, h.dtype.to_complex(), h.device) for n in sizes]
    spectrum = butterfly(F.pad(h, (0, size - h.shape[1]))[None, :, None], matrices)

    def convolve(segment: Tensor) -> Tensor:
        return inverse_butterfly(butterfly(segment, matrices) * spectrum, sizes).real

    return _by_segments(padded, h, num_positions, size, convolve)


def long_fir(
    padded: Tensor, h: Tensor, num_positions: int, algorithm: Algorithm = "auto", order: int = 2
) -> Tensor:
    """Causal FIR with one filter per group of adjacent channels.

    Args:
        padded: `[B, K - 1 + L, D]`, left context included.
        h: `[G, K]`, lag 0 first, in the dtype of `padded`.
        num_positions: L.
        algorithm: How the sums are made; "auto" takes block-Toeplitz products for filters of up to
            `TOEPLITZ_TAPS` taps and the FFT for longer ones.
        order: Passes of the butterfly.

    Returns:
        `[B, L, D]`: `y[t] = sum_j h[j] * x[t - j]`.
    """
    if num_positions <= _SMALL_CHUNK and algorithm != "butterfly":
        return _direct(padded, h, num_positions)
    if algorithm == "butterfly":
        return _butterfly(padded, h, num_positions, order)
    if algorithm == "toeplitz" or (algorithm == "auto" and h.shape[1] <= TOEPLITZ_TAPS):
        return _toeplitz(padded, h, num_positions)
    return _fft(padded, h, num_positions)


class Gated(NamedTuple):
    """A chunk after featurizers and gate: q and k * v, `[B, L, D]`, and the featurizer's new tail."""

    q: Tensor
    gated: Tensor
    tail: Tensor


def gate_inputs(
    qkv: Tensor, featurizer: Tensor, state: LongConvState | None, rounding: torch.dtype | None
) -> Gated:
    """Featurizers and gate, in the accumulation dtype."""
    features, tail = short_conv_reference(qkv, featurizer, state.featurizer if state else None)
    q, k, v = round_through(features, rounding).chunk(3, dim=-1)
    return Gated(q, round_through(k * v, rounding), tail)


def gate_output(
    y: Tensor, inputs: Gated, skip: Tensor, dtype: torch.dtype, rounding: torch.dtype | None
) -> Tensor:
    """`q * (y + skip * k * v)` in `dtype`."""
    y = round_through(y + skip.to(y.dtype) * inputs.gated, rounding)
    return (inputs.q * y).to(dtype)


def long_conv_reference(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    h_ahead: Tensor | None,
    state: LongConvState | None,
    algorithm: Algorithm,
    order: int,
    return_state: bool,
    rounding: torch.dtype | None,
) -> tuple[Tensor, LongConvState | None]:
    """Return `q * (conv(h, k * v) + skip * k * v)`; arguments as in `long_conv`."""
    acc = accumulation_dtype(qkv)
    L, K = qkv.shape[1], h.shape[1]
    inputs = gate_inputs(qkv, featurizer, state, rounding)
    z = inputs.gated
    taps = h.to(acc)
    if state is None:
        taps = taps[:, :L]  # nothing lies further back
        before = z.new_zeros(z.shape[0], taps.shape[1] - 1, z.shape[2])
    else:
        before = state.gated.to(acc)
    padded = torch.cat([before, z], dim=1)
    if h_ahead is not None:
        # One filter with lags from -reach on, applied to the sequence that many positions ahead.
        ahead = h_ahead.to(acc)[:, : L - 1]
        taps = torch.cat([ahead.flip(1), taps], dim=1)
        padded = F.pad(padded, (0, 0, 0, ahead.shape[1]))
    y = gate_output(long_fir(padded, taps, L, algorithm, order), inputs, skip, qkv.dtype, rounding)
    if not return_state:
        return y, None
    missing = K - 1 - padded.shape[1]
    if missing > 0:
        return y, LongConvState(inputs.tail, F.pad(padded, (0, 0, missing, 0)))
    # In memory of its own: a view would keep the whole chunk alive with the state.
    return y, LongConvState(inputs.tail, padded[:, padded.shape[1] - (K - 1) :].clone())


def learned_long_conv_reference(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    input_matrices: list[Tensor],
    filter_matrices: list[Tensor],
    h_ahead: Tensor | None,
    rounding: torch.dtype | None,
) -> Tensor:
    """Return `q * (y + skip * k * v)`; arguments as in `learned_long_conv`, factors as matrices."""
    acc = accumulation_dtype(qkv)
    B, L, C = qkv.shape
    D, (G, K) = C // 3, h.shape
    heads = input_matrices[0].shape[0]
    sizes = [matrix.shape[-1] for matrix in input_matrices]
    size = 1
    for n in sizes:
        size *= n
    inputs = gate_inputs(qkv, featurizer, None, rounding)
    taps = F.pad(h.to(acc), (0, size - K))
    if h_ahead is not None:  # lag -1 - j stands at the circle's end
        taps = taps + F.pad(h_ahead.to(acc).flip(1), (size - h_ahead.shape[1], 0))
    spectrum = butterfly(taps.view(1, heads, G // heads, size), filter_matrices)
    spectrum = spectrum.repeat_interleave(D // G, dim=2)
    rows = F.pad(inputs.gated.transpose(1, 2), (0, size - L)).view(B, heads, D // heads, size)
    mixed = inverse_butterfly(butterfly(rows, input_matrices) * spectrum, sizes).real
    y = mixed[..., :L].reshape(B, D, L).transpose(1, 2)
    return gate_output(y, inputs, skip, qkv.dtype, rounding)
