"""The toolkit's cache folder, and checksums remembered in it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from hashlib import sha256
from pathlib import Path

from evo_data.errors import EvoDataError
from evo_data.files import atomic_output, file_digest

_log = logging.getLogger("evo_toolkit")

_LONG_WAIT = 1_000_000_000
"""Bytes of a file whose checksum takes long enough to be announced."""


def cache_dir() -> Path:
    """`EVO_TOOLKIT_CACHE`, or `~/.cache/evo_toolkit`; it may not exist yet.

    A user without a home folder (some containers) gets one in the folder for temporary files.
    """
    configured = os.environ.get("EVO_TOOLKIT_CACHE")
    if configured:
        return Path(configured)
    try:
        return Path.home() / ".cache" / "evo_toolkit"
    except RuntimeError:
        return Path(tempfile.gettempdir()) / f"evo_toolkit-{os.getuid()}"


def _identity(real: Path) -> dict[str, object]:
    stat = real.stat()
    return {"path": str(real), "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}


def _entry(real: Path, algorithm: str) -> Path:
    return cache_dir() / algorithm / f"{sha256(str(real).encode()).hexdigest()[:32]}.json"


def remembered_sha256(path: Path) -> str | None:
    """SHA-256 of a file if it has been computed since the file last changed, else None."""
    return _remembered(path, "sha256")


def _remembered(path: Path, algorithm: str) -> str | None:
    real = path.resolve()
    try:
        known = json.loads(_entry(real, algorithm).read_text(encoding="utf-8"))
        return str(known[algorithm]) if known.items() >= _identity(real).items() else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # never computed, or the entry is unreadable


def cached_sha256(path: Path, *, again: bool = False) -> str:
    """SHA-256 of a file, computed once for each path, size and modification time, or `again`."""
    return _cached(path, "sha256", again)


def cached_md5(path: Path) -> str:
    """MD5 of a file, by which genomes are known; computed once as `cached_sha256` is."""
    return _cached(path, "md5", False)


def _cached(path: Path, algorithm: str, again: bool) -> str:
    known = None if again else _remembered(path, algorithm)
    if known is not None:
        return known
    real = path.resolve()
    identity, entry = _identity(real), _entry(real, algorithm)
    if real.stat().st_size > _LONG_WAIT:
        _log.info("computing the checksum of %s, once", real)
    digest = file_digest(real, algorithm)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(entry, force=True) as temporary:
            temporary.write_text(json.dumps({**identity, algorithm: digest}), encoding="utf-8")
    except (OSError, EvoDataError) as error:
        _log.info("the checksum is not remembered: %s", error)
    return digest
