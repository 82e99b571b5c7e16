"""What keeps explicit long filters from fitting noise: smoothing, and a soft threshold.

In training a filter passes `smooth`, `smooth_spectrum`, `squash` and dropout, in this order, on its
way to the convolution; the parameters themselves are left alone.

Source: Fu et al., "Simple Hardware-Efficient Long Convolutions for Sequence Modeling", 2023,
section 2.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_kernels.errors import KernelError


def _check_width(name: str, width: int) -> None:
    if width < 1 or width % 2 == 0:
        raise KernelError(f"{name} has a window of {width}; use an odd number from 1 (off) on")


def smooth(h: Tensor, width: int) -> Tensor:
    """Moving average over `width` lags, centred; what lies outside the filter counts as zero.

    Args:
        h: Filters, `[G, K]`.
        width: Odd; 1 leaves them as they are.

    Raises:
        KernelError: for an even width.
    """
    _check_width("smooth", width)
    return h if width == 1 else F.avg_pool1d(h, width, stride=1, padding=width // 2)


def smooth_spectrum(h: Tensor, width: int) -> Tensor:
    """Weighted sum over `width` neighbouring frequencies, with weights `exp(-i^2 / 2)` at distance i.

    The weights are not normalised, and frequencies below zero and above the highest count as zero.
    In time this is about a window that lets late lags fade.

    Args:
        h: Filters, `[G, K]`.
        width: Odd; 1 leaves them as they are.

    Raises:
        KernelError: for an even width.
    """
    _check_width("smooth_spectrum", width)
    if width == 1:
        return h
    K, half = h.shape[1], width // 2
    spectrum = torch.fft.rfft(h)
    parts = torch.stack([spectrum.real, spectrum.imag], dim=1).flatten(0, 1)[:, None]
    weights = [math.exp(-0.5 * (i - half) ** 2) for i in range(width)]
    parts = F.conv1d(parts, h.new_tensor(weights)[None, None], padding=half)
    real, imag = parts.view(h.shape[0], 2, -1).unbind(1)
    return torch.fft.irfft(torch.complex(real, imag), n=K)


def squash(h: Tensor, threshold: float) -> Tensor:
    """`sign(h) max(|h| - threshold, 0)`: small values become zero, large ones move towards it.

    Args:
        h: Filters, `[G, K]`.
        threshold: In units of the filters' values; 0 leaves them as they are.

    Raises:
        KernelError: for a threshold that is negative or not finite.
    """
    if not 0 <= threshold < math.inf:
        raise KernelError(
            f"squash has a threshold of {threshold}; it must be finite and at least 0"
        )
    return h if threshold == 0 else F.softshrink(h, threshold)
