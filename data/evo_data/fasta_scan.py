"""Finding where the sequences of a FASTA file stand, and what is wrong with it, in one pass."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from evo_data.errors import FastaError

_LINE_FEED = ord("\n")
_CARRIAGE_RETURN = ord("\r")
_HEADER = ord(">")
_BLANK = ord(" ")

FaiEntry = tuple[str, int, int, int, int]
"""Name, length, byte of the first base, bases a line, bytes a line: a line of a .fai."""


def header_name(line: bytes) -> str | None:
    """Return the name in a header line ("" if it has none), or None if it is not a header."""
    if not line.startswith(b">"):
        return None
    if line[1:2].isspace():
        return ""
    return (line[1:].split(maxsplit=1) or [b""])[0].decode("utf-8", "replace")


class FastaScanner:
    """Takes the bytes of a FASTA file in pieces of any size and gives its index.

    A sequence can be addressed only if its lines are equally long, but for the last one; blank
    lines may follow that.

    Raises:
        FastaError: from `feed` or `finish`, naming file and line: lines of unequal length, white
            space within a sequence, a name that is absent or stands there twice.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._unfinished: list[bytes] = []
        self._position = 0
        self._num_lines = 0
        self._entries: list[list[int]] = []
        self._names: dict[str, int] = {}
        self._ended = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the file."""
        whole, feed, rest = data.rpartition(b"\n")
        if not feed:
            self._unfinished.append(data)
            return
        self._lines(b"".join(self._unfinished) + whole + feed)
        self._unfinished = [rest]

    def finish(self) -> list[FaiEntry]:
        """Return the index, once every byte was fed."""
        last = b"".join(self._unfinished)
        if last:
            self._lines(last + b"\n")
        return [
            (name, length, offset, line_bases, line_bytes)
            for name, (length, offset, line_bases, line_bytes) in zip(
                self._names, self._entries, strict=True
            )
        ]

    def _lines(self, text: bytes) -> None:
        """Take whole lines."""
        data = np.frombuffer(text, dtype=np.uint8)
        low = np.flatnonzero(data <= _BLANK)
        low_bytes = data[low]
        ends = low[low_bytes == _LINE_FEED]
        starts = np.concatenate(([0], ends[:-1] + 1))
        returns = (data[np.maximum(ends - 1, 0)] == _CARRIAGE_RETURN) & (ends > starts)
        num_bases = ends - starts - returns
        is_header = data[starts] == _HEADER
        self._refuse_blanks(low, low_bytes, ends, returns, is_header)
        headers = np.flatnonzero(is_header)
        bounds = [*headers.tolist(), len(starts)]
        if bounds[0] > 0:
            self._sequence(starts, ends, num_bases, 0, bounds[0])
        for first, following in pairwise(bounds):
            self._header(text[starts[first] : ends[first]], first, int(ends[first]) + 1)
            if following > first + 1:
                self._sequence(starts, ends, num_bases, first + 1, following)
        self._position += len(text)
        self._num_lines += len(starts)

    def _refuse_blanks(
        self,
        low: NDArray[np.intp],
        low_bytes: NDArray[np.uint8],
        ends: NDArray[np.intp],
        returns: NDArray[np.bool_],
        is_header: NDArray[np.bool_],
    ) -> None:
        """Raise at white space or control bytes in a sequence line, its terminator apart."""
        blanks = low[low_bytes != _LINE_FEED]
        lines = np.searchsorted(ends, blanks)
        allowed = is_header[lines] | (returns[lines] & (blanks == ends[lines] - 1))
        if not allowed.all():
            line = int(lines[~allowed][0])
            raise FastaError(
                f"{self._path}:{self._num_lines + line + 1}: white space within a sequence; "
                "remove it"
            )

    def _header(self, line: bytes, index: int, offset: int) -> None:
        name = header_name(line)
        number = self._num_lines + index + 1
        if not name:
            raise FastaError(f"{self._path}:{number}: a sequence without name; write it after >")
        if b"\r" in line.rstrip(b"\r"):
            raise FastaError(
                f"{self._path}:{number}: lines end with a carriage return alone; convert them, "
                "for example by tr '\\r' '\\n'"
            )
        if name in self._names:
            raise FastaError(
                f"{self._path}:{number}: sequence name {name!r} stands there twice, in line "
                f"{self._names[name]} too; give each sequence a name of its own"
            )
        self._names[name] = number
        self._entries.append([0, self._position + offset, 0, 0])
        self._ended = False

    def _sequence(
        self,
        starts: NDArray[np.intp],
        ends: NDArray[np.intp],
        num_bases: NDArray[np.intp],
        first: int,
        following: int,
    ) -> None:
        """Take the lines `[first, following)`, which belong to the last header seen."""
        bases = num_bases[first:following]
        if not self._entries:
            if bases.any():
                raise FastaError(f"{self._path}: the first line must begin with >")
            return
        entry = self._entries[-1]
        widths = ends[first:following] - starts[first:following] + 1
        if entry[3] == 0 and not self._ended and bases[0]:
            entry[2:] = [int(bases[0]), int(widths[0])]
        full = (bases == entry[2]) & (widths == entry[3])
        if self._ended:
            full[:] = False
        num_full = len(full) if full.all() else int(full.argmin())
        entry[0] += int(bases[:num_full].sum())
        if num_full == len(full):
            return
        short = first + num_full
        tail = bases[num_full:]
        if not self._ended and tail[0] <= entry[2]:
            # The last line of a sequence: shorter, or as long with another terminator.
            entry[0] += int(tail[0])
            tail = tail[1:]
            short += 1
        self._ended = True
        if tail.any():
            line = short + int((tail > 0).argmax())
            raise FastaError(
                f"{self._path}:{self._num_lines + line + 1}: the lines of a sequence differ in "
                "length, or a blank line stands between them; wrap them alike, for example by "
                "seqkit seq -w 60"
            )
