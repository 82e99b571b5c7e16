"""The toolkit's cache folder, and checksums remembered in it."""

from __future__ import annotations

import json
import logging
import os
import tempfile
from hashlib import sha256
from pathlib import Path

from evo_data.errors import EvoDataError
from evo_data.files import atomic_output, sha256_file

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


def _entry(real: Path) -> Path:
    return cache_dir() / "sha256" / f"{sha256(str(real).encode()).hexdigest()[:32]}.json"


def remembered_sha256(path: Path) -> str | None:
    """SHA-256 of a file if it has been computed since the file last changed, else None."""
    real = path.resolve()
    try:
        known = json.loads(_entry(real).read_text(encoding="utf-8"))
        return str(known["sha256"]) if known.items() >= _identity(real).items() else None
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # never computed, or the entry is unreadable


def cached_sha256(path: Path, *, again: bool = False) -> str:
    """SHA-256 of a file, computed once for each path, size and modification time, or `again`."""
    known = None if again else remembered_sha256(path)
    if known is not None:
        return known
    real = path.resolve()
    identity, entry = _identity(real), _entry(real)
    if real.stat().st_size > _LONG_WAIT:
        _log.info("computing the checksum of %s, once", real)
    digest = sha256_file(real)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        with atomic_output(entry, force=True) as temporary:
            temporary.write_text(json.dumps({**identity, "sha256": digest}), encoding="utf-8")
    except (OSError, EvoDataError) as error:
        _log.info("the checksum is not remembered: %s", error)
    return digest
