"""Shuffling without an index: a keyed permutation of 0..n-1 of which any position can be asked for.

A Feistel network permutes the smallest power of two that holds n, and positions that fall outside
of 0..n-1 are sent through it again until they fall inside (cycle walking, fewer than two passes on
average). So 232 million windows are shuffled in no memory, in the same order on every machine, and
any rank can jump to any position.

What these functions return is stable for ever: a training run that resumes after an update of this
package must go on in the same order. Golden values in the tests hold it fixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import overload

import numpy as np
from numpy.typing import ArrayLike, NDArray

from evo_data.errors import EvoDataError
from evo_data.mixing import GOLDEN, MASK, mix, mix_in_place

_ROUNDS = 8
# Halves of one or two bits mix badly: with three bits some orders of five came up too often.
_LEAST_BITS = 6


def keyed_hash(key: Sequence[int]) -> int:
    """Return 64 well mixed bits that depend on every number of a key, and on how many there are.

    Args:
        key: Integers from -2^63 to 2^64 - 1.

    Raises:
        EvoDataError: if a number is outside of that range.
    """
    state = mix((len(key) + 1) * GOLDEN & MASK)
    for part in key:
        part = int(part)
        if not -(2**63) <= part < 2**64:
            raise EvoDataError(f"key {part} does not fit into 64 bits; give a smaller seed")
        state = mix((state ^ (part & MASK)) + GOLDEN & MASK)
    return state


@overload
def permute(k: int, n: int, key: Sequence[int]) -> int: ...
@overload
def permute(k: NDArray[np.int64], n: int, key: Sequence[int]) -> NDArray[np.int64]: ...
def permute(k: int | ArrayLike, n: int, key: Sequence[int]) -> int | NDArray[np.int64]:
    """Return what stands at position `k` of a keyed permutation of 0..n-1.

    Args:
        k: A position from 0 to n - 1, or an array of them.
        n: Number of positions, 1 to 2^62.
        key: Integers that choose the permutation, such as (seed, epoch).

    Returns:
        An int for an int, else an int64 array of the shape of `k`.

    Raises:
        EvoDataError: if `n` or a position is out of range.
    """
    if not 1 <= n <= 2**62:
        raise EvoDataError(f"a permutation of {n} positions is not possible; allowed are 1 to 2^62")
    seed = keyed_hash(key)
    keys = [mix((seed + i * GOLDEN) & MASK) for i in range(1, _ROUNDS + 1)]
    bits = max(_LEAST_BITS, (n - 1).bit_length())
    low_bits = bits // 2
    if isinstance(k, int | np.integer):
        k = int(k)
        if not 0 <= k < n:
            raise EvoDataError(f"position {k} is outside of 0 to {n - 1}")
        k = _feistel(k, bits - low_bits, low_bits, keys)
        while k >= n:
            k = _feistel(k, bits - low_bits, low_bits, keys)
        return k
    given = np.asarray(k)
    if given.size and not (given.min() >= 0 and given.max() < n):
        raise EvoDataError(f"a position is outside of 0 to {n - 1}")
    out = _feistel_array(given.astype(np.uint64).reshape(-1), bits - low_bits, low_bits, keys)
    outside = np.flatnonzero(out >= n)
    while outside.size:
        walked = _feistel_array(out[outside], bits - low_bits, low_bits, keys)
        out[outside] = walked
        outside = outside[walked >= n]
    return out.astype(np.int64).reshape(given.shape)


def _feistel(x: int, high_bits: int, low_bits: int, keys: list[int]) -> int:
    """One pass over a number of `high_bits + low_bits` bits; widths change sides every round."""
    high, low = x >> low_bits, x & ((1 << low_bits) - 1)
    for key in keys:
        high, low = low, high ^ (mix(low ^ key) >> (64 - high_bits))
        high_bits, low_bits = low_bits, high_bits
    return high << low_bits | low


def _feistel_array(
    x: NDArray[np.uint64], high_bits: int, low_bits: int, keys: list[int]
) -> NDArray[np.uint64]:
    u = np.uint64
    high, low = x >> u(low_bits), x & u((1 << low_bits) - 1)
    for key in keys:
        high, low = low, high ^ (mix_in_place(low ^ u(key)) >> u(64 - high_bits))
        high_bits, low_bits = low_bits, high_bits
    return high << u(low_bits) | low
