"""Files that grow at their ends only, so that a run that was stopped can cut them back and go on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO

_PIECE = 1 << 22


class GrowingFiles:
    """Several files of a folder, open for writing, with checksums of what is added to each.

    Attributes:
        names: Of the files.
    """

    def __init__(self, folder: Path, names: Iterable[str]) -> None:
        """Take the names; nothing is opened before `open`."""
        self.names = list(names)
        self._folder = folder
        self._handles: dict[str, IO[bytes]] = {}
        self._sums: dict[str, hashlib._Hash] = {}

    def open(self, ends: Mapping[str, int]) -> None:
        """Open the files, made if absent, and cut each back to a size in bytes."""
        for name in self.names:
            path = self._folder / name
            self._handles[name] = path.open("r+b" if path.exists() else "w+b")
        self.cut_back(ends)

    def cut_back(self, ends: Mapping[str, int]) -> None:
        """Cut the files back to the given sizes, and begin new checksums."""
        for name, handle in self._handles.items():
            handle.truncate(ends[name])
            handle.seek(ends[name])
        self.begin_sums()

    def begin_sums(self) -> None:
        """Begin new checksums."""
        self._sums = {name: hashlib.sha256() for name in self.names}

    @property
    def sums(self) -> dict[str, str]:
        """SHA-256 of what was appended to each file since the checksums were begun."""
        return {name: total.hexdigest() for name, total in self._sums.items()}

    @property
    def ends(self) -> dict[str, int]:
        """Size of each file in bytes."""
        return {name: handle.tell() for name, handle in self._handles.items()}

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Write at the end of a file."""
        self._handles[name].write(data)
        self._sums[name].update(data)

    def write_ahead(self, name: str, data: bytes | memoryview) -> None:
        """Write behind the end of a file, where the next `append` writes over it."""
        handle = self._handles[name]
        end = handle.tell()
        handle.write(data)
        handle.seek(end)

    def sync(self) -> None:
        """Bring everything to the disk."""
        for handle in self._handles.values():
            handle.flush()
            os.fsync(handle.fileno())

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            # After a full disk closing fails once more; the first error is the one to show.
            with suppress(OSError):
                handle.close()
        self._handles = {}

    def hold(
        self, start: Mapping[str, int], ends: Mapping[str, int], sums: Mapping[str, str]
    ) -> bool:
        """Return whether bytes `[start, end)` of each file are there with their checksums."""
        return set(ends) == set(self.names) and all(
            _sha256_part(self._folder / name, start[name], ends[name]) == sums.get(name)
            for name in self.names
        )


def _sha256_part(path: Path, start: int, end: int) -> str:
    """Return the checksum of bytes `[start, end)` of a file; "" if it is absent or too short."""
    whole = hashlib.sha256()
    try:
        handle = path.open("rb")
    except FileNotFoundError:
        return ""
    with handle:
        handle.seek(start)
        while start < end:
            piece = handle.read(min(_PIECE, end - start))
            if not piece:
                return ""
            whole.update(piece)
            start += len(piece)
    return whole.hexdigest()
