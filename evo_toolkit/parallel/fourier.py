"""Point-to-point FFT convolution: the Fourier transform's first stages are butterflies between ranks.

Decimation in frequency: with the sequence in R equal parts of m positions, log2 R stages pair ranks half
the remaining group apart, and then every rank has one residue class of frequencies, which it transforms
alone. The filter's spectrum is made in the same order, so nothing is sorted; the inverse runs the stages
backward. Shapes: B batch, D channels.

What would wrap around is kept apart without padding: positions are turned by `exp(i pi n / 2M)`, so that
the wrapped half comes out imaginary ("right-angle convolution"), and M positions suffice where zeros
would make them 2M.
"""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from evo_kernels import short_conv
from evo_toolkit.errors import UsageError
from evo_toolkit.model.mixer import Convolution
from evo_toolkit.parallel.communication import exchange
from evo_toolkit.parallel.layout import Lengths, halo, recut


def convolution_by_fft(
    mixer: Convolution, qkv: Tensor, lengths: Lengths, group: dist.ProcessGroup
) -> Tensor:
    """Featurizers by a halo, gates locally, the convolution between them by butterflies.

    Raises:
        UsageError: for a number of ranks that is not a power of two.

    Source: StripedHyena 2 paper, appendix A.3 (distributed FFT convolution).
    """
    size = dist.get_world_size(group)
    if size & (size - 1):
        raise UsageError(
            f"butterflies pair the ranks, and {size} is not a power of two; use 2 or 4 ranks, or another strategy than fft"
        )
    featurizer = mixer.filters()[0]
    acc = torch.promote_types(qkv.dtype, torch.float32)
    qkv, tail = halo(qkv, featurizer.shape[1] - 1, lengths, group)
    features, _ = short_conv(qkv, featurizer, tail, backend=mixer.policy.backend)
    q, k, v = features.to(acc).chunk(3, dim=-1)
    m = -(-sum(lengths) // size)
    level = (m,) * size
    z = recut(k * v, lengths, level, group)
    y = _convolve(z, mixer.response(m * size).to(acc).t(), group)
    y = recut(y, level, lengths, group)
    return (q * y).to(qkv.dtype)


def _turn(x: Tensor, first: int, turns_per_position: float) -> Tensor:
    """`x[..., n, :] * exp(2 pi i turns_per_position (first + n))` along the positions."""
    n = torch.arange(first, first + x.shape[-2], device=x.device, dtype=torch.float64)
    angle = 2 * math.pi * torch.remainder(n * turns_per_position, 1.0)
    wide = x.dtype in (torch.float64, torch.complex128)
    turned = torch.polar(torch.ones_like(angle), angle)
    return x * turned.to(torch.complex128 if wide else torch.complex64)[:, None]


def _convolve(z: Tensor, h: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Causal convolution of equal parts `[B, m, D]` with `[R m, D]`, which every rank holds whole."""
    rank, size = dist.get_rank(group), dist.get_world_size(group)
    m = z.shape[1]
    quarter = 1 / (4 * m * size)
    spectrum = _forward(_turn(z, rank * m, quarter), group)
    h = _turn(h, 0, quarter)
    for span in _spans(size):  # the stages of `_forward` on a sequence that lies here whole
        top, bottom = h.chunk(2)
        upper = rank % span < span // 2
        h = top + bottom if upper else _turn(top - bottom, 0, -1 / (span * m))
    y = _inverse(spectrum * torch.fft.fft(h, dim=0), group)
    return _turn(y, rank * m, -quarter).real


def _spans(size: int) -> list[int]:
    """Ranks of a group in each stage: all, half, ..., 2."""
    return [size >> stage for stage in range(size.bit_length() - 1)]


def _swap(x: Tensor, partner: int, group: dist.ProcessGroup) -> Tensor:
    counts = [x.numel() if r == partner else 0 for r in range(dist.get_world_size(group))]
    return exchange(x.flatten(), counts, counts, group).view_as(x)


def _forward(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Fourier transform of `[B, m, D]` in R parts; rank by rank in bit-reversed residue classes."""
    rank, m = dist.get_rank(group), x.shape[1]
    for span in _spans(dist.get_world_size(group)):
        place, half = rank % span, span // 2
        theirs = _swap(x, rank ^ half, group)
        if place < half:
            x = x + theirs
        else:
            x = _turn(theirs - x, (place - half) * m, -1 / (span * m))
    return torch.fft.fft(x, dim=1)


def _inverse(x: Tensor, group: dist.ProcessGroup) -> Tensor:
    """What `_forward` made it from."""
    rank, m = dist.get_rank(group), x.shape[1]
    x = torch.fft.ifft(x, dim=1)
    for span in reversed(_spans(dist.get_world_size(group))):
        place, half = rank % span, span // 2
        if place >= half:
            x = _turn(x, (place - half) * m, 1 / (span * m))
        theirs = _swap(x, rank ^ half, group)
        x = (x + theirs if place < half else theirs - x) / 2
    return x
