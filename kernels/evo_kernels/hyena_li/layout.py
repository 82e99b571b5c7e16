"""Sizes of what the Hyena-LI kernels read and write, without Triton: the fakes need them too."""

from __future__ import annotations

from evo_kernels.hyena_li.reference import CHUNK, CHUNKS_PER_TILE

TILE = CHUNK * CHUNKS_PER_TILE
"""Positions per tile, the spacing of the saved states."""


def padded_length(length: int) -> int:
    """Positions of an allocated row: rounded up to 8, so that every row starts on 16 bytes."""
    return -(-length // 8) * 8


def num_tiles(length: int) -> int:
    """Tiles of a sequence."""
    return -(-length // TILE)


def padded_poles(num_poles: int) -> int:
    """Poles that the kernels compute: a power of two, at least 16, as tensor cores want."""
    return max(16, 1 << (num_poles - 1).bit_length())
