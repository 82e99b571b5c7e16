"""The finaliser of SplitMix64: a one-to-one map of 64-bit numbers, every bit moving every other.

Source: Steele et al. 2014.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

GOLDEN = 0x9E3779B97F4A7C15
"""2^64 over the golden ratio, odd: steps of it spread evenly over the 64-bit numbers."""

MASK = 2**64 - 1

_FIRST, _SECOND = 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def mix(x: int) -> int:
    """Return the image of one number, 0 to 2^64 - 1."""
    x = (x ^ (x >> 30)) * _FIRST & MASK
    x = (x ^ (x >> 27)) * _SECOND & MASK
    return x ^ (x >> 31)


def mix_in_place(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Replace every number of an array by its image, and return the array."""
    x ^= x >> np.uint64(30)
    x *= np.uint64(_FIRST)
    x ^= x >> np.uint64(27)
    x *= np.uint64(_SECOND)
    x ^= x >> np.uint64(31)
    return x
