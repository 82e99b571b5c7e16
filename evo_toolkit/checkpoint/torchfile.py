"""Safe, memory-mapped reading of `torch.save` files.

Nothing in a file is executed: torch's restricted unpickler builds tensors and plain containers, and
io.BytesIO, in which Transformer Engine keeps its FP8 state, is the only class let in besides.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from evo_toolkit.checkpoint.pieces import ends_a_zip
from evo_toolkit.errors import CheckpointError

_ZIP_START = b"PK\x03\x04"


def read_torch_file(path: Path) -> dict[str, Any]:
    """Return the dictionary that a `torch.save` file holds; tensors are views of the mapped file.

    Raises:
        CheckpointError: if the file is missing, truncated, not a torch file, holds no dictionary,
            or holds objects that only running code could build. Nothing in the file is executed.
    """
    try:
        with path.open("rb") as handle:
            start = handle.read(4)
    except OSError as error:
        raise CheckpointError(f"cannot read checkpoint {path}: {error.strerror}") from None
    if not start:
        raise CheckpointError(f"checkpoint {path} is empty; download or copy it again")
    if start != _ZIP_START:
        raise CheckpointError(
            f"{path} is not a checkpoint: a file written by torch.save (torch 1.6 or later) begins with a zip header"
        )
    if not ends_a_zip(path):
        raise CheckpointError(f"checkpoint {path} is truncated; download or copy it again")
    if _holds_a_program(path):
        raise CheckpointError(
            f"{path} is a TorchScript program, not weights; nothing was executed, and the file was refused"
        )
    try:
        with torch.serialization.safe_globals([io.BytesIO]):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # noqa: BLE001 - a damaged or hostile file can fail the parser anywhere
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"checkpoint {path} holds {refused.group(1)}, which is not weights and could run code; nothing was executed, and the file was refused"
            ) from None
        lines = str(error).strip().splitlines()
        detail = lines[0] if lines else type(error).__name__
        raise CheckpointError(f"checkpoint {path} cannot be read: {detail}") from None
    if not isinstance(content, dict):
        raise CheckpointError(
            f"checkpoint {path} holds a {type(content).__name__}, not a dictionary of tensors"
        )
    return content


def _holds_a_program(path: Path) -> bool:
    """Whether the archive is TorchScript; torch refuses it too, but warns in several lines."""
    try:
        with zipfile.ZipFile(path) as archive:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(
                    f"checkpoint {path} is compressed inside, which a memory map cannot read; save it with torch.save again"
                )
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, OSError) as error:
        raise CheckpointError(
            f"checkpoint {path} cannot be read ({error}); it is truncated or damaged: download or copy it again"
        ) from None
