"""Opening a variant file by what its first bytes are, whatever its name, stdin included."""

from __future__ import annotations

import os
import sys
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from evo_data.bgzf import (
    BGZF_END,
    BGZF_HEADER_SIZE,
    GZIP_START,
    GZIP_WINDOW,
    OTHER_COMPRESSION,
    is_bgzf,
    last_bytes,
)
from evo_data.errors import VcfError

_CHUNK = 1 << 18
_BCF_START = b"BCF\x02"
_TEXT_START = b"##fileformat=VCF"


@dataclass(frozen=True, slots=True)
class VariantStream:
    """Either the lines of a text VCF, or the path of a BCF that can be sought."""

    lines: Iterator[bytes]
    bcf_path: Path | None


def open_stream(path: Path | str, name: str, closers: ExitStack) -> VariantStream:
    """Return what a variant file holds.

    Args:
        path: The file, or `-` for stdin.
        name: What errors call it.
        closers: Takes over what must be closed or removed in the end.

    Raises:
        VcfError: if it cannot be opened or is neither VCF nor BCF; when lines are read, if its
            compression is damaged.
    """
    raw = _open_raw(path, name, closers)
    is_file = os.fspath(path) != "-" and Path(path).is_file()
    source = _Source(raw, name)
    start = source.peek(len(_TEXT_START))
    compressed = start.startswith(GZIP_START)
    if compressed:
        source.is_bgzf = is_bgzf(source.peek(BGZF_HEADER_SIZE))
        if source.is_bgzf and is_file:
            # Told before hours of work on the rest of the file, not after.
            _check_bgzf_end(last_bytes(Path(path)), name)
        start = source.peek_decompressed(len(_TEXT_START))
    if start.startswith(_BCF_START):
        if compressed and not source.is_bgzf:
            raise VcfError(f"{name}: BCF compressed by gzip; decompress it, or use bgzip")
        bcf_path = Path(path) if is_file else _spooled(source, closers)
        return VariantStream(iter(()), bcf_path)
    _check_text(start, name)
    return VariantStream(_lines(source.decompressed() if compressed else source.chunks()), None)


class _Source:
    """Chunks of a file that may not be sought, with a look at its start."""

    def __init__(self, raw: BinaryIO, name: str) -> None:
        self.is_bgzf = False
        self._raw = raw
        self._name = name
        self._head = b""
        self._tail = b""

    def peek(self, size: int) -> bytes:
        """Return the first bytes: at least `size` of them if there are so many."""
        while len(self._head) < size and (data := self._read()):
            self._head += data
        return self._head

    def peek_decompressed(self, size: int) -> bytes:
        """Return the first bytes after decompression, at least `size` if there are so many."""
        while True:
            have = len(self._head)
            start = b""
            for piece in _inflate(iter([self._head]), self._name, complete=False):
                start += piece
                if len(start) >= size:
                    return start
            if len(self.peek(have + 1)) == have:
                return start

    def chunks(self) -> Iterator[bytes]:
        """Yield all bytes of the file."""
        if self._head:
            head, self._head = self._head, b""
            yield head
        while data := self._read():
            yield data
        if self.is_bgzf:
            _check_bgzf_end(self._tail, self._name)

    def decompressed(self) -> Iterator[bytes]:
        """Yield all bytes of the gzip file, decompressed."""
        return _inflate(self.chunks(), self._name, complete=True)

    def _read(self) -> bytes:
        try:
            data = self._raw.read(_CHUNK)
        except OSError as error:
            raise VcfError(f"{self._name}: cannot be read: {error.strerror}") from error
        self._tail = (self._tail + data)[-len(BGZF_END) :]
        return data


def _open_raw(path: Path | str, name: str, closers: ExitStack) -> BinaryIO:
    if os.fspath(path) == "-":
        # The descriptor itself: sys.stdin has a text layer and a buffer of its own.
        return closers.enter_context(open(sys.stdin.fileno(), "rb", 0, closefd=False))
    try:
        return closers.enter_context(Path(path).open("rb", buffering=0))
    except FileNotFoundError as error:
        raise VcfError(f"{name}: no such file") from error
    except IsADirectoryError as error:
        raise VcfError(f"{name}: is a folder; give a VCF or BCF file") from error
    except OSError as error:
        raise VcfError(f"{name}: cannot be opened: {error.strerror}") from error


def _check_bgzf_end(tail: bytes, name: str) -> None:
    if tail != BGZF_END:
        raise VcfError(
            f"{name}: the bgzip end-of-file block is missing, so the file is truncated; "
            "copy or make it again"
        )


def _check_text(start: bytes, name: str) -> None:
    if start.startswith(_TEXT_START):
        return
    if not start:
        raise VcfError(f"{name}: the file is empty; a VCF has at least a header")
    for magic, tool in OTHER_COMPRESSION.items():
        if start.startswith(magic):
            raise VcfError(f"{name}: compressed by {tool}; decompress it, or use gzip or bgzip")
    if start.startswith(b"\xef\xbb\xbf"):
        raise VcfError(f"{name}: begins with a byte order mark; remove these three bytes")
    if start.startswith(b">"):
        raise VcfError(f"{name}: looks like FASTA, not VCF; are the two files exchanged?")
    raise VcfError(
        f"{name}: neither VCF nor BCF: the first line must be ##fileformat=VCFv4.x, "
        f"it begins with {start[: len(_TEXT_START)].decode('utf-8', 'replace')!r}"
    )


def _inflate(chunks: Iterator[bytes], name: str, *, complete: bool) -> Iterator[bytes]:
    """Yield the decompressed bytes of gzip members one after another, checksums checked.

    Args:
        chunks: The compressed bytes.
        name: What errors call the file.
        complete: Whether the bytes are the whole file, so that a member without end is an error.
    """
    decoder = None
    for chunk in chunks:
        data = chunk
        while data:
            if decoder is None:
                # Zero bytes between or behind members are padding, of tapes for one.
                data = data.lstrip(b"\0")
                if not data:
                    break
                decoder = zlib.decompressobj(GZIP_WINDOW)
            try:
                text = decoder.decompress(data)
            except zlib.error as error:
                raise VcfError(
                    f"{name}: damaged gzip data ({error}); copy or make the file again"
                ) from error
            if text:
                yield text
            data = decoder.unused_data
            if decoder.eof:
                decoder = None
    if decoder is not None and complete:
        raise VcfError(f"{name}: the gzip data ends early, the file is truncated; copy it again")


def _lines(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Yield lines with their line feed; only the last one may lack it."""
    unfinished: list[bytes] = []
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        unfinished.append(first)
        if others:
            yield b"".join(unfinished) + b"\n"
            for line in others[:-1]:
                yield line + b"\n"
            unfinished = [others[-1]]
    last = b"".join(unfinished)
    if last:
        yield last


def _spooled(source: _Source, closers: ExitStack) -> Path:
    """Return a temporary copy of what cannot be sought, removed when `closers` close."""
    folder = closers.enter_context(tempfile.TemporaryDirectory())
    path = Path(folder) / "stdin.bcf"
    with path.open("wb") as spool:
        for chunk in source.chunks():
            spool.write(chunk)
    return path
