"""Checkpoints in pieces `<name>.pt.part0`, `.part1`, ...: found in order, joined once in the cache."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
from hashlib import sha256
from pathlib import Path

from evo_toolkit.checkpoint.cache import cache_dir
from evo_toolkit.errors import CheckpointError

_log = logging.getLogger("evo_toolkit")

_PIECE = re.compile(r"\.part(\d+)$")
_ZIP_END = b"PK\x05\x06"
_COPY_BYTES = 8 << 20


def find_pieces(path: Path) -> list[Path]:
    """Pieces `<name>.part0`, `.part1`, ... of a checkpoint in numeric order; empty if there are none.

    Args:
        path: Any of the pieces, or the name that the whole file would have.

    Raises:
        CheckpointError: if the numbering does not run from 0 without a gap.
    """
    base = path.with_name(_PIECE.sub("", path.name))
    numbered: dict[int, Path] = {}
    if base.parent.is_dir():
        for candidate in base.parent.iterdir():
            match = _PIECE.search(candidate.name)
            if match and candidate.name[: match.start()] == base.name:
                numbered[int(match.group(1))] = candidate
    missing = [i for i in range(max(numbered, default=-1) + 1) if i not in numbered]
    if missing:
        raise CheckpointError(
            f"pieces of {base} are missing: found {sorted(numbered)}, no {base.name}.part{missing[0]}; download the rest"
        )
    return [numbered[i] for i in sorted(numbered)]


def merge_pieces(pieces: list[Path], cache: Path | None = None) -> Path:
    """Join pieces into one file in the cache, once, and return it; the pieces are kept.

    The name holds a digest of the pieces' paths, sizes and times, so that other pieces give
    another file. Two processes at once join only once.

    Args:
        pieces: In order, as `find_pieces` gives them.
        cache: Folder of the result; defaults to `merged/` in the toolkit's cache.

    Raises:
        CheckpointError: if a piece is missing at the end, or the disk lacks room.
    """
    folder = cache or cache_dir() / "merged"
    stats = [piece.stat() for piece in pieces]
    identity = [
        (str(piece.resolve()), s.st_size, s.st_mtime_ns)
        for piece, s in zip(pieces, stats, strict=True)
    ]
    digest = sha256(repr(identity).encode()).hexdigest()[:12]
    stem = Path(_PIECE.sub("", pieces[0].name)).stem
    target = folder / f"{stem}-{digest}.pt"
    if target.exists():
        return target
    if not ends_a_zip(pieces[-1]):
        raise CheckpointError(
            f"{pieces[-1]} is not the last piece of a checkpoint, or is truncated; download the rest"
        )
    total = sum(s.st_size for s in stats)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f".{target.name}.tmp"
        with partial.open("ab") as handle:
            # A fixed name under a lock: what a killed process left is overwritten, not collected.
            fcntl.flock(handle, fcntl.LOCK_EX)
            if target.exists():
                partial.unlink(missing_ok=True)
                return target
            handle.truncate(0)
            require_space(folder, total, f"joining the pieces of {stem}")
            _log.info("joining %d pieces of %s into %s", len(pieces), stem, target)
            for piece in pieces:
                with piece.open("rb") as source:
                    shutil.copyfileobj(source, handle, _COPY_BYTES)
            handle.flush()
            os.fsync(handle.fileno())
            partial.replace(target)
    except OSError as error:
        raise CheckpointError(
            f"cannot join {pieces[0]} and its pieces in {folder}: {error.strerror}; set EVO_TOOLKIT_CACHE to another folder"
        ) from None
    return target


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise CheckpointError unless `folder`'s disk has `needed` bytes free, and 64 MiB to spare."""
    free = shutil.disk_usage(folder).free
    if free < needed + (64 << 20):
        raise CheckpointError(
            f"{purpose} needs {needed / 1e9:.1f} GB in {folder}, which has {free / 1e9:.1f} GB free; free some or set EVO_TOOLKIT_CACHE to another disk"
        )


def ends_a_zip(path: Path) -> bool:
    """Whether the end-of-archive record, which a truncated file lacks, is in the last 64 KiB."""
    with path.open("rb") as handle:
        size = handle.seek(0, os.SEEK_END)
        handle.seek(max(0, size - (1 << 16)))
        return _ZIP_END in handle.read()
