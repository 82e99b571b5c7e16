"""Released checkpoints on the Hugging Face hub: find them on this machine, or download them.

The hub's own client does the transfer: it continues after a dropped connection and checks sizes.
What it leaves in its cache is then compared with the SHA-256 that the hub states for the file. Its
cache is never altered here; pieces are joined in the toolkit's cache.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_toolkit.checkpoint.cache import cache_dir, cached_sha256, remembered_sha256
from evo_toolkit.checkpoint.pieces import find_pieces, merge_pieces, require_space
from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.registry import BUNDLED, MODELS, ModelEntry

_log = logging.getLogger("evo_toolkit")


@dataclass(frozen=True, slots=True, kw_only=True)
class RemoteFile:
    """One file of a repository: its name, size in bytes, and SHA-256 if the hub states one."""

    name: str
    size: int
    sha256: str | None


def released_entry(name: str) -> ModelEntry:
    """The registry's entry of a model that can be downloaded.

    Raises:
        UsageError: for any other name.
    """
    if name in BUNDLED:
        raise UsageError(f"{name} is bundled; there is nothing to download")
    entry = MODELS.get(name)
    if entry is None:
        raise UsageError(f"model {name!r} is unknown; known are {', '.join(MODELS)}")
    return entry


def find(name: str, *, cache: Path | None = None) -> Path | None:
    """The whole checkpoint of a released model on this machine, or None. Never touches the network.

    Looked for in the hub's cache, whole or as pieces (which are joined), and where the evo2 package
    leaves a joined file.

    Args:
        cache: The hub's cache folder when it is not the usual one.

    Raises:
        CheckpointError: if pieces are there but some are missing.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    entry = released_entry(name)
    folder = str(cache) if cache else None
    whole = try_to_load_from_cache(entry.repo, entry.filename, cache_dir=folder)
    if isinstance(whole, str):
        _refuse_known_damage(Path(whole), name)
        return Path(whole)
    joined_by_evo2 = Path(cache or constants.HF_HUB_CACHE).parent / entry.filename
    if joined_by_evo2.is_file():
        return joined_by_evo2
    first = try_to_load_from_cache(entry.repo, f"{entry.filename}.part0", cache_dir=folder)
    if isinstance(first, str):
        pieces = find_pieces(Path(first))
        for piece in pieces:
            _refuse_known_damage(piece, name)
        return merge_pieces(pieces)
    return None


def is_here(name: str) -> bool:
    """Whether a released model, or a piece of it, is on this machine; joins and reads nothing."""
    from huggingface_hub import constants, try_to_load_from_cache

    entry = released_entry(name)
    cached = (
        try_to_load_from_cache(entry.repo, file)
        for file in (entry.filename, f"{entry.filename}.part0")
    )
    return (
        any(isinstance(path, str) for path in cached)
        or (Path(constants.HF_HUB_CACHE).parent / entry.filename).is_file()
    )


def _refuse_known_damage(path: Path, name: str) -> None:
    """Raise CheckpointError if an earlier download found the file not to be what the hub states.

    The hub's cache names a large file by its SHA-256. Nothing is computed here.
    """
    stated, found = path.resolve().name, remembered_sha256(path)
    if re.fullmatch("[0-9a-f]{64}", stated) and found not in (None, stated):
        raise CheckpointError(_damaged(path, stated, name))


def verify_with_hub(path: Path, name: str) -> tuple[str, bool]:
    """Compute the SHA-256 of a file, and compare it with the one that the hub's cache names it by.

    Returns:
        The SHA-256, and whether there was one to compare with.

    Raises:
        CheckpointError: if the two differ.
    """
    digest, stated = cached_sha256(path, again=True), path.resolve().name
    if not re.fullmatch("[0-9a-f]{64}", stated):
        return digest, False
    if digest != stated:
        raise CheckpointError(_damaged(path, stated, name))
    return digest, True


def _damaged(path: Path, stated: str, name: str) -> str:
    return f"{path} is damaged: its sha256 is not the {stated[:12]}... that the hub states; get it again with: evo-toolkit models download {name} --force"


def download(name: str, *, cache: Path | None = None, force: bool = False) -> Path:
    """Download a released model, or return it at once when it is on this machine.

    Args:
        cache: The hub's cache folder when it is not the usual one.
        force: Download again even if it is there.

    Returns:
        The whole `.pt` file.

    Raises:
        UsageError: if the name is unknown.
        CheckpointError: if the hub cannot be reached, the disk lacks room, or what arrived is not
            what the hub states.
    """
    from huggingface_hub import constants

    entry = released_entry(name)
    if not force:
        present = _present(name, cache)
        if present is not None:
            return present
    folder = Path(cache or constants.HF_HUB_CACHE)
    revision, files = list_files(entry)
    _require_room(folder, files, _absent(entry, files, folder, force=force))
    paths = [_fetch(entry, file, folder, revision, force=force) for file in files]
    for file, path in zip(files, paths, strict=True):
        _verify(file, path, name)
    if len(paths) == 1:
        return paths[0]

    return merge_pieces(paths)


def _present(name: str, cache: Path | None) -> Path | None:
    try:
        return find(name, cache=cache)
    except CheckpointError as error:
        _log.info("%s", error)  # an incomplete set of pieces: the rest is downloaded
        return None


def list_files(entry: ModelEntry) -> tuple[str, list[RemoteFile]]:
    """The commit and the files that make up a checkpoint, as the hub states them; pieces in order.

    Raises:
        CheckpointError: if the hub cannot be reached or has no such file.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(entry.repo, files_metadata=True)
    except Exception as error:  # noqa: BLE001 - the client's errors differ between its versions
        raise CheckpointError(_explain(error, entry)) from None
    remote = {s.rfilename: s for s in info.siblings or []}

    def describe(sibling: Any) -> RemoteFile:
        digest = sibling.lfs.sha256 if sibling.lfs is not None else None
        return RemoteFile(name=sibling.rfilename, size=int(sibling.size or 0), sha256=digest)

    if entry.filename in remote:
        return str(info.sha), [describe(remote[entry.filename])]
    pattern = re.compile(re.escape(entry.filename) + r"\.part(\d+)$")
    pieces = {int(m.group(1)): remote[key] for key in remote if (m := pattern.fullmatch(key))}
    if not pieces or sorted(pieces) != list(range(len(pieces))):
        raise CheckpointError(
            f"{_page(entry)} has no {entry.filename}, whole or in pieces; it may have been renamed: download it by hand and give its path"
        )
    return str(info.sha), [describe(pieces[i]) for i in sorted(pieces)]


def _absent(entry: ModelEntry, files: list[RemoteFile], folder: Path, *, force: bool) -> int:
    """Bytes that are yet to be downloaded."""
    from huggingface_hub import try_to_load_from_cache

    return sum(
        file.size
        for file in files
        if force
        or not isinstance(try_to_load_from_cache(entry.repo, file.name, cache_dir=str(folder)), str)
    )


def _require_room(folder: Path, files: list[RemoteFile], absent: int) -> None:

    total = sum(f.size for f in files)
    folder.mkdir(parents=True, exist_ok=True)
    merged = cache_dir()
    if len(files) > 1:
        merged.mkdir(parents=True, exist_ok=True)
        same_disk = merged.stat().st_dev == folder.stat().st_dev
        require_space(
            folder, absent + (total if same_disk else 0), "the download and its joined copy"
        )
        if not same_disk:
            require_space(merged, total, "joining the pieces")
    else:
        require_space(folder, absent, "the download")


def _fetch(
    entry: ModelEntry, file: RemoteFile, folder: Path, revision: str, *, force: bool
) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(
            hf_hub_download(entry.repo, file.name, cache_dir=str(folder), force_download=force)
        )
    except Exception as error:  # noqa: BLE001 - the client's errors differ between its versions
        raise CheckpointError(_explain(error, entry)) from None
    if path.parent.name != revision:
        raise CheckpointError(f"{_page(entry)} changed during the download; run it again")
    return path


def _verify(file: RemoteFile, path: Path, name: str) -> None:
    """Compare size and SHA-256 with what the hub states."""
    size = path.stat().st_size
    if size != file.size:
        raise CheckpointError(
            f"{path} has {size} bytes, the hub states {file.size}; get it again with: evo-toolkit models download {name} --force"
        )
    if file.sha256 is not None and cached_sha256(path) != file.sha256:
        raise CheckpointError(_damaged(path, file.sha256, name))


def _explain(error: Exception, entry: ModelEntry) -> str:
    """One line for whatever the hub's client raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    detail = lines[0] if lines else type(error).__name__
    return f"cannot download from {_page(entry)}: {detail.rstrip('.')}; try again, or copy {entry.filename} here by other means and give its path"


def _page(entry: ModelEntry) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{entry.repo}"
