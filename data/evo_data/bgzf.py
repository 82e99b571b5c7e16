"""The parts of gzip and bgzip that must be known to tell whole files from damaged ones.

A bgzip file is a chain of gzip members ("blocks") of at most 64 KiB, each of which says its own
size, and ends with an empty block. A .gzi lists where the blocks start. Source: SAM format
specification, section 4.1, and the htslib manual page of bgzip.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

GZIP_START = b"\x1f\x8b"
BGZF_HEADER_SIZE = 18
# The empty block; htslib takes its absence for truncation, and so do we.
BGZF_END = bytes.fromhex("1f8b08040000000000ff0600424302001b0003000000000000000000")
GZIP_WINDOW = 31
"""What zlib wants to hear for "a gzip header and its checksum"."""

OTHER_COMPRESSION = {
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"PK\x03\x04": "zip",
}
"""First bytes of files in compressed formats that are not read here."""


def is_bgzf(start: bytes) -> bool:
    """Return whether a file that starts so (18 bytes are looked at) was compressed by bgzip."""
    return start[:4] == b"\x1f\x8b\x08\x04" and start[12:16] == b"BC\x02\x00"


def last_bytes(path: Path) -> bytes:
    """Return as many bytes of the end of a file as the empty block of bgzip has."""
    with path.open("rb") as handle:
        handle.seek(max(0, path.stat().st_size - len(BGZF_END)))
        return handle.read()


def read_block(handle: BinaryIO, address: int) -> tuple[bytes, int]:
    """Return a block's text, and the address of the next one; no text at the end of the file.

    Raises:
        ValueError: if no whole block stands there.
        zlib.error: if its data are damaged.
    """
    handle.seek(address)
    header = handle.read(BGZF_HEADER_SIZE)
    if not header:
        return b"", address
    if not is_bgzf(header.ljust(BGZF_HEADER_SIZE, b"\0")):
        raise ValueError(f"no bgzip block at byte {address}")
    size = struct.unpack_from("<H", header, 16)[0] + 1
    data = header + handle.read(size - BGZF_HEADER_SIZE)
    if len(data) < size:
        raise ValueError(f"the bgzip block at byte {address} is not whole")
    return zlib.decompress(data, GZIP_WINDOW), address + size


def iter_blocks(handle: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield the address and text of every block that has text."""
    address, size = 0, handle.seek(0, 2)
    while address < size:
        text, following = read_block(handle, address)
        if text:
            yield address, text
        address = following


class BgzfText:
    """The text of a bgzip file by position, through its .gzi.

    Raises:
        ValueError: if the .gzi is none; struct.error if it is cut off.
    """

    def __init__(self, handle: BinaryIO, gzi: Path) -> None:
        data = gzi.read_bytes()
        (num_blocks,) = struct.unpack_from("<Q", data)
        if len(data) != 8 + 16 * num_blocks:
            raise ValueError(f"{gzi.name} is not a .gzi; delete it and run again")
        numbers = struct.unpack_from(f"<{2 * num_blocks}Q", data, 8)
        self._handle = handle
        # The first block is not listed: it is at 0 in both senses.
        self._addresses = [0, *numbers[::2]]
        self._starts = [0, *numbers[1::2]]
        self._loaded = -1
        self._text = b""

    def read(self, start: int, end: int) -> bytes:
        """Return the text `[start, end)`, 0-based; less at the end of the file."""
        pieces = []
        index = max(0, bisect_right(self._starts, start) - 1)
        while start < end and index < len(self._starts):
            text = self._block(index)
            piece = text[start - self._starts[index] : end - self._starts[index]]
            pieces.append(piece)
            start += len(piece)
            index += 1
        return b"".join(pieces)

    def _block(self, index: int) -> bytes:
        if index != self._loaded:
            self._text, following = read_block(self._handle, self._addresses[index])
            self._loaded = index
            if index + 1 == len(self._starts) and self._text:
                # Whatever stands behind the last block listed counts as well.
                self._addresses.append(following)
                self._starts.append(self._starts[index] + len(self._text))
        return self._text


def write_gzi(path: Path, blocks: list[tuple[int, int]]) -> None:
    """Write a .gzi: address and text position of each block, the first one left out."""
    listed = [number for block in blocks[1:] for number in block]
    path.write_bytes(struct.pack(f"<{1 + len(listed)}Q", len(listed) // 2, *listed))
