"""Bases at 2 bits each, with everything that is not one of the four as intervals beside them.

`sequence.bin` holds 4 bases a byte, A C G T = 0 1 2 3, the first base in the lowest bits; what is
not one of the four is stored as 0. `intervals.npz` holds, in corpus positions (0-based half-open),

    other_start, other_end, other_byte    runs of one byte that is not ACGT (letters in upper case)
    lower_start, lower_end                runs of lower-case letters (soft-masked bases)

so that reading gives back every byte that was written.
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import CODES, OTHER
from evo_data.errors import CorpusError

Bytes = NDArray[np.uint8]
Positions = NDArray[np.int64]

LOWER_BIT = np.uint8(0x20)
"""The bit that tells a lower-case ASCII letter from its upper case."""

_IS_LOWER = np.zeros(256, np.bool_)
_IS_LOWER[ord("a") : ord("z") + 1] = True

# The four bases of a packed byte as the four bytes of a 32-bit word, in the order of memory.
_QUADS = np.frombuffer(b"ACGT", np.uint8)[
    np.arange(256, dtype=np.uint8)[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3
]
_WORDS = np.ascontiguousarray(_QUADS).view(np.uint32).reshape(256)

# Decoding in blocks bounds the memory that positions of runs take (8 bytes a base).
_BLOCK = 1 << 22
# Up to so many runs a loop over them is faster than listing their positions.
_FEW_RUNS = 32


class Intervals(NamedTuple):
    """What 2 bits cannot say: runs in corpus positions, 0-based half-open, sorted, not overlapping.

    Attributes:
        other_start: First position of each run of a byte that is not ACGT, `[O]`.
        other_end: One past its last position, `[O]`.
        other_byte: That byte, letters in upper case, `[O]`.
        lower_start: First position of each run of lower-case letters, `[W]`.
        lower_end: One past its last position, `[W]`.
    """

    other_start: Positions
    other_end: Positions
    other_byte: Bytes
    lower_start: Positions
    lower_end: Positions

    @classmethod
    def of(cls, bases: Bytes, position: int = 0) -> Intervals:
        """Return the intervals of ASCII bytes `[n]` whose first one stands at `position`."""
        lower = _IS_LOWER[bases]
        lower_start, lower_end = _runs(lower)
        upper = bases & ~(lower * LOWER_BIT)
        # A run ends where the byte changes too: NNRR is two runs.
        other = CODES[bases] == OTHER
        key = np.where(other, upper.astype(np.int16), -1)
        edges = np.flatnonzero(np.diff(np.concatenate(([-1], key, [-1]))))
        starts, ends = edges[:-1], edges[1:]
        bytes_of = key[starts] if starts.size else key[:0]
        is_run = bytes_of >= 0
        return cls(
            starts[is_run].astype(np.int64) + position,
            ends[is_run].astype(np.int64) + position,
            bytes_of[is_run].astype(np.uint8),
            lower_start + position,
            lower_end + position,
        )

    @classmethod
    def load(cls, path: Path) -> Intervals:
        """Read `intervals.npz`.

        Raises:
            CorpusError: if it is absent or damaged.
        """
        try:
            with np.load(path, allow_pickle=False) as arrays:
                found = cls(**{name: arrays[name] for name in cls._fields})
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise CorpusError(
                f"{path}: absent or damaged ({error}); copy the corpus again, or prepare it anew"
            ) from error
        sizes = {array.shape for array in found[:3]}, {array.shape for array in found[3:]}
        if any(len(shapes) != 1 for shapes in sizes):
            raise CorpusError(f"{path}: its arrays disagree in length; prepare the corpus anew")
        return found

    def save(self, path: Path) -> None:
        """Write `intervals.npz` (not atomic: give the name of a temporary file)."""
        with path.open("wb") as handle:
            np.savez_compressed(handle, **self._asdict())


def pack(bases: Bytes) -> Bytes:
    """Return ASCII bytes `[n]` as `[(n + 3) // 4]` packed bytes; what is not ACGT becomes 0."""
    codes = np.zeros((bases.size + 3) // 4 * 4, np.uint8)
    codes[: bases.size] = CODES[bases] & 3
    quads = codes.reshape(-1, 4)
    packed = quads[:, 0].copy()
    for place in range(1, 4):
        packed |= quads[:, place] << np.uint8(2 * place)
    return packed


def unpack(packed: Bytes) -> Bytes:
    """Return packed bytes `[m]` as `[4 m]` letters A, C, G, T."""
    return _WORDS[packed].view(np.uint8)


class PackedSequence:
    """Random access to a packed sequence; the files are opened at the first read."""

    def __init__(self, sequence: Path, intervals: Path | Intervals) -> None:
        self._sequence = sequence
        self._intervals = intervals
        self._map: NDArray[np.uint8] | None = None

    def read(self, start: int, stop: int) -> Bytes:
        """Return the ASCII bytes at corpus positions `[start, stop)`, a new array."""
        if self._map is None:
            if isinstance(self._intervals, Path):
                self._intervals = Intervals.load(self._intervals)
            self._map = np.memmap(self._sequence, np.uint8, "r")
        bases = np.empty(stop - start, np.uint8)
        for first in range(start, stop, _BLOCK):
            last = min(first + _BLOCK, stop)
            self._read_block(first, last, bases[first - start : last - start])
        return bases

    def _read_block(self, start: int, stop: int, out: Bytes) -> None:
        assert self._map is not None and isinstance(self._intervals, Intervals)
        byte = start // 4
        letters = unpack(np.asarray(self._map[byte : (stop + 3) // 4]))
        out[:] = letters[start - 4 * byte : stop - 4 * byte]
        runs = self._intervals
        _fill(out, start, runs.other_start, runs.other_end, runs.other_byte)
        _fill(out, start, runs.lower_start, runs.lower_end, None)


def _fill(
    out: Bytes, position: int, starts: Positions, ends: Positions, values: Bytes | None
) -> None:
    """Write the bytes of the runs that reach into `out`, or make it lower-case there (None)."""
    first = int(np.searchsorted(ends, position, side="right"))
    last = int(np.searchsorted(starts, position + out.size, side="left"))
    if first >= last:
        return
    begin = np.maximum(starts[first:last] - position, 0)
    size = np.minimum(ends[first:last] - position, out.size) - begin
    if last - first <= _FEW_RUNS:
        for index, (at, length) in enumerate(zip(begin.tolist(), size.tolist(), strict=True)):
            if values is None:
                out[at : at + length] |= LOWER_BIT
            else:
                out[at : at + length] = values[first + index]
        return
    before = np.cumsum(size) - size
    where = np.arange(int(size.sum())) + np.repeat(begin - before, size)
    if values is None:
        out[where] |= LOWER_BIT
    else:
        out[where] = np.repeat(values[first:last], size)


def _runs(mask: NDArray[np.bool_]) -> tuple[Positions, Positions]:
    """Return where the runs of a mask start and end (half-open)."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return edges[::2].astype(np.int64), edges[1::2].astype(np.int64)
