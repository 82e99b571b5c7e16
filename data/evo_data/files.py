"""Whole-or-nothing output files, checksums, and small text files."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
import secrets
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from evo_data.errors import EvoDataError, OutputExistsError


def check_output(path: Path | str, *, force: bool = False) -> Path:
    """Return the file that an output path stands for (links followed), checked to be writable.

    Args:
        path: Where the output is to go.
        force: Whether an existing regular file may be replaced.

    Raises:
        OutputExistsError: if the file exists and `force` is not given.
        EvoDataError: if the folder is absent, or the path is something else than a regular file
            (replacing a device such as /dev/null would harm the whole machine).
    """
    target = Path(os.path.realpath(path))
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if not target.parent.is_dir():
            raise EvoDataError(
                f"output folder {target.parent} does not exist; create it first"
            ) from None
        return target
    except OSError as error:
        raise EvoDataError(f"cannot write {path}: {error.strerror}; choose another name") from error
    if stat.S_ISDIR(mode):
        raise EvoDataError(f"output {path} is a folder; give the name of a file in it")
    if not stat.S_ISREG(mode):
        raise EvoDataError(
            f"output {path} is not a regular file; give a file name, or - for stdout"
        )
    if not force:
        raise OutputExistsError(f"output {path} exists; choose another name or give --force")
    return target


_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def atomic_output(path: Path | str, *, force: bool = False, suffix: str = "") -> Iterator[Path]:
    """Yield an empty temporary file beside `path` that becomes `path` when the block succeeds.

    The bytes are on disk (fsync of file and folder) before the name appears; if the block raises,
    the temporary file is removed and an older file at `path` stays as it was.

    Args:
        path: The final name; a symbolic link keeps pointing at the file, which is replaced.
        force: Whether an existing file may be replaced.
        suffix: Ending of the temporary name, for writers that choose a format by it.

    Raises:
        OutputExistsError: if `path` exists and `force` is not given.
        EvoDataError: if the folder is absent or cannot be written.
    """
    target = check_output(path, force=force)
    temporary = target.parent / f".{target.name}.{secrets.token_hex(6)}.tmp{suffix}"
    try:
        # 0o666 less the umask, as any other new file; mkstemp would leave it private.
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except OSError as error:
        raise EvoDataError(
            f"cannot write {path}: folder {target.parent}: {error.strerror}; choose another folder"
        ) from error
    try:
        yield temporary
        sync(temporary)
        check_output(path, force=force)
        os.replace(temporary, target)  # noqa: PTH105 (the atomic call is named as such)
        sync(target.parent)
    except OSError as error:
        # Only opening a file says which one it is, not writing to it.
        if error.filename is None and error.errno in _NO_ROOM:
            error.filename = str(path)
        raise
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes, as 64 lower-case hexadecimal digits."""
    return file_digest(path, "sha256")


def file_digest(path: Path | str, algorithm: str) -> str:
    """Return a digest of a file's bytes, named as in `hashlib`, as lower-case hexadecimal digits."""
    with Path(path).open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).hexdigest()


def read_text(path: Path | str) -> str:
    """Return a text file (UTF-8) whole, decompressed if it is gzip or bgzip.

    Raises:
        EvoDataError: if it cannot be read.
    """
    try:
        data = Path(path).read_bytes()
        if data.startswith(b"\x1f\x8b"):
            data = gzip.decompress(data)
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EvoDataError(f"cannot read {path}: not UTF-8 text") from error
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise EvoDataError(f"cannot read {path}: damaged gzip data; copy it again") from error
    except OSError as error:
        raise EvoDataError(f"cannot read {path}: {error.strerror or error}") from error


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
