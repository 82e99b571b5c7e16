"""Random access to a genome in FASTA, upper-cased once and for all here."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from pathlib import Path
from types import TracebackType
from typing import Any

import pysam

from evo_data.errors import FastaError
from evo_data.fasta_index import ensure_index

# U is T (RNA genomes), an ambiguity code or any other letter is N.
_BASES = bytearray(b"N" * 256)
for _source, _target in zip(b"ACGTUacgtu", b"ACGTTACGTT", strict=True):
    _BASES[_source] = _target
_TO_ACGTN = bytes(_BASES)

_BLOCK = 1 << 16
_NUM_BLOCKS = 64


class Fasta:
    """A genome, read by contig and 0-based half-open coordinates, forward strand.

    Plain FASTA and bgzip-compressed FASTA (.gz); the indexes (.fai, .gzi) are built beside the
    file when absent, and checked against it when present. Every process opens its own handle (one
    that crosses a fork silently returns wrong bases), and a pickled `Fasta` opens anew where it
    is unpickled. Threads may share one. The last blocks read are kept (at most 4 MiB), so that
    sorted variants cost next to nothing.

    Attributes:
        path: The FASTA file.
        lengths: Length of each contig in bases, in the order of the file.
        total_length: Sum of the lengths.

    Raises:
        FastaError: if the file is absent or no FASTA, is compressed otherwise than by bgzip, holds
            no sequence, one name twice or proteins, or its index is absent and cannot be written,
            or does not belong to it.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.lengths: dict[str, int] = ensure_index(self.path)
        self.total_length = sum(self.lengths.values())
        self._handle: Any = None
        self._forget_process()

    def fetch(self, contig: str, start: int, end: int) -> bytes:
        """Return the bases `[start, end)` of a contig: upper-case A, C, G, T or N.

        Soft-masked (lower-case) bases are upper-cased, U is read as T, and everything else,
        ambiguity codes included, as N.

        Raises:
            FastaError: if the contig is unknown or the range reaches outside of it.
        """
        length = self.lengths.get(contig)
        if length is None:
            raise FastaError(f"{self.path}: no contig {contig!r}; it has {_listed(self.lengths)}")
        if not 0 <= start <= end <= length:
            raise FastaError(
                f"{self.path}: [{start}, {end}) is not within contig {contig} of {length} bases"
            )
        if self._pid != os.getpid():
            self._forget_process()
        first, last = start // _BLOCK, (end - 1) // _BLOCK
        if last - first >= _NUM_BLOCKS:
            return self._read(contig, start, end)
        with self._lock:
            if first == last:
                offset = first * _BLOCK
                return self._block(contig, first)[start - offset : end - offset]
            joined = b"".join(self._block(contig, index) for index in range(first, last + 1))
        offset = first * _BLOCK
        return joined[start - offset : end - offset]

    def close(self) -> None:
        """Close the handle; the next `fetch` would open it again."""
        with self._lock:
            self._blocks.clear()
            if self._handle is not None and self._pid == os.getpid():
                self._handle.close()
            self._handle = None

    def __enter__(self) -> Fasta:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("path", "lengths", "total_length")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_process()

    def _forget_process(self) -> None:
        """Start without handle, lock and blocks: those of another process must not be touched."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._handle = None
        self._blocks: OrderedDict[tuple[str, int], bytes] = OrderedDict()

    def _block(self, contig: str, index: int) -> bytes:
        key = (contig, index)
        block = self._blocks.get(key)
        if block is None:
            start = index * _BLOCK
            block = self._read(contig, start, min(start + _BLOCK, self.lengths[contig]))
            self._blocks[key] = block
            if len(self._blocks) > _NUM_BLOCKS:
                self._blocks.popitem(last=False)
        else:
            self._blocks.move_to_end(key)
        return block

    def _read(self, contig: str, start: int, end: int) -> bytes:
        with self._lock:
            try:
                if self._handle is None:
                    self._handle = pysam.FastaFile(os.fspath(self.path))
                text = self._handle.fetch(contig, start, end)
            except (OSError, ValueError, KeyError) as error:
                raise FastaError(
                    f"{self.path}: cannot read {contig} [{start}, {end}): {error}; "
                    "is the file damaged?"
                ) from error
        if len(text) != end - start:
            raise FastaError(
                f"{self.path}: {contig} [{start}, {end}) gave {len(text)} bases; the index does "
                "not belong to the file, or it is damaged: delete the .fai (and .gzi) and run again"
            )
        return text.encode("latin-1").translate(_TO_ACGTN)


def _listed(names: dict[str, int], most: int = 8) -> str:
    shown = ", ".join(list(names)[:most])
    return f"{shown} and {len(names) - most} more" if len(names) > most else shown
