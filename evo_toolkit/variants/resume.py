"""What an interrupted run leaves behind, so that the same command goes on where it stopped.

Beside the output stands a folder `<output>.partial` with a file for each finished chunk and a manifest
of what decides the scores: input, options, model, genome, versions, shapes. Every file appears whole
or not at all. Whoever continues reads the input again, takes the chunks that are there and scores
the others; the output is then written in one go, as if nothing had happened.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from evo_data.files import atomic_output
from evo_toolkit.errors import EvoError
from evo_toolkit.variants.chunks import Chunk, ChunkScores

_FORMAT = 1
_MANIFEST, _LOCK, _FINISHING = "manifest.json", "lock", "finishing"
_MOST_CHANGES = 4


class ResumeError(EvoError):
    """The run cannot go on from what an earlier one left."""


def partial_folder(output: Path | str) -> Path:
    """Where the chunks of an output lie until it is whole."""
    target = Path(os.path.realpath(output))
    return target.with_name(target.name + ".partial")


def was_finishing(output: Path | str) -> bool:
    """Whether a run was interrupted while it gave the output its name.

    What stands under that name is then that run's own, and may be replaced by it.
    """
    return (partial_folder(output) / _FINISHING).is_file()


class ChunkStore:
    """The finished chunks of one run.

    As a context manager it keeps other runs out; after an error the chunks stay for the next try.

    Attributes:
        folder: Where they are.
        num_found: Chunks that an earlier run left.
        shapes: Those of its forwards, or None for a new run.
        num_windows: As for `evo_toolkit.variants.chunks.cut`, of the earlier run; None for a new one.
    """

    def __init__(
        self, output: Path | str, identity: Mapping[str, Any], *, restart: bool = False
    ) -> None:
        """Open or make the folder.

        Args:
            output: Of the run.
            identity: What decides the scores, as plain JSON values.
            restart: Whether to throw away what an earlier run left.

        Raises:
            ResumeError: if what it left was made of something else, or it is still running.
        """
        self._output = Path(os.path.realpath(output))
        self.folder = partial_folder(output)
        self._identity = json.loads(json.dumps(identity))
        self.folder.mkdir(exist_ok=True)
        self._lock: IO[bytes] | None = (self.folder / _LOCK).open("ab")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ResumeError(
                f"{self.folder}: another run is writing {output}; wait for it, or choose another output"
            ) from None
        except OSError:
            pass  # a file system without locks
        try:
            self._manifest = self._compared(output, restart=restart)
        except BaseException:
            self.release()
            raise
        self.num_found = self.num_kept()
        shapes = self._manifest.get("shapes")
        self.shapes = None if shapes is None else tuple((rows, length) for rows, length in shapes)
        self.num_windows: int | None = self._manifest.get("num_windows")

    def _compared(self, output: Path | str, *, restart: bool) -> dict[str, Any]:
        self._remove_temporaries()
        path = self.folder / _MANIFEST
        if restart or not path.is_file():
            # Chunks without a manifest are nobody's: it is written first.
            self._clear()
            return {"format": _FORMAT, "identity": self._identity}
        try:
            manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            changes = (
                differences(manifest["identity"], self._identity)
                if manifest["format"] == _FORMAT
                else [f"its format was {manifest['format']}, is {_FORMAT}"]
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ResumeError(
                f"{path} cannot be read ({error}); start anew with --restart"
            ) from error
        if changes:
            more = (
                f", and {len(changes) - _MOST_CHANGES} more" if len(changes) > _MOST_CHANGES else ""
            )
            raise ResumeError(
                f"an interrupted run of {output} was another one: {'; '.join(changes[:_MOST_CHANGES])}{more}; "
                "repeat its command to go on, or give --restart to throw its scores away"
            )
        return manifest

    def _clear(self) -> None:
        for path in self.folder.iterdir():
            if path.name != _LOCK:
                path.unlink()

    def _remove_temporaries(self) -> None:
        """Remove what a killed run could not: half an output, half a chunk, chunks of a whole one."""
        name = re.escape(self._output.name)
        hidden = rf"\.{name}(\.tbi|\.csi|\.manifest\.json|\.partial)?\.[0-9a-f]{{12}}\.tmp.*"
        for folder, pattern in ((self._output.parent, hidden), (self.folder, r"\..*\.tmp")):
            for path in folder.iterdir():
                if re.fullmatch(pattern, path.name):
                    if path.is_dir():
                        shutil.rmtree(path, ignore_errors=True)
                    else:
                        path.unlink(missing_ok=True)

    def begin(self, shapes: tuple[tuple[int, int], ...], num_windows: int) -> None:
        """Write the manifest of a new run.

        Args:
            shapes: (rows, length) of its forwards.
            num_windows: Of its chunks.
        """
        if self.shapes is None:
            self.shapes, self.num_windows = shapes, num_windows
            self._manifest |= {"shapes": shapes, "num_windows": num_windows}
            with atomic_output(self.folder / _MANIFEST, force=True) as temporary:
                temporary.write_text(json.dumps(self._manifest, indent=1), encoding="utf-8")

    def _path(self, number: int) -> Path:
        return self.folder / f"chunk-{number:08d}.json.gz"

    def load(self, chunk: Chunk) -> ChunkScores | None:
        """Return a chunk's scores if they are there.

        Raises:
            ResumeError: if they are of other records: the input has changed.
        """
        try:
            data = self._path(chunk.number).read_bytes()
        except FileNotFoundError:
            return None
        try:
            found = ChunkScores.decoded(data)
        except ValueError:
            return None  # damaged by something else than an interruption: scored again
        if found.digest != chunk.digest() or len(found.scores) != len(chunk.records):
            first = chunk.records[0]
            raise ResumeError(
                f"the input is another one than that of the interrupted run, from record {first.contig}:{first.pos} on; "
                "give the same input to go on, or --restart to throw its scores away"
            )
        return found

    def save(self, scores: ChunkScores) -> None:
        """Keep a chunk's scores."""
        with atomic_output(self._path(scores.number), force=True) as temporary:
            temporary.write_bytes(scores.encoded())

    def finishing(self) -> None:
        """Note that the output now gets its name."""
        with atomic_output(self.folder / _FINISHING, force=True):
            pass

    def remove(self) -> None:
        """Throw the chunks away, since the output is whole."""
        # First the name, all at once: half a folder would be taken for an interrupted run.
        gone = self.folder.with_name(f".{self.folder.name}.{secrets.token_hex(6)}.tmp")
        self.folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
        self.release()

    def release(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None and not self.num_kept():
            with suppress(OSError):
                self.remove()
        self.release()

    def num_kept(self) -> int:
        """Finished chunks that are there."""
        return sum(1 for _ in self.folder.glob("chunk-*.json.gz"))


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What is not the same in two descriptions of a run, one phrase for each item.

    A file is the same if its content is, whatever its name.
    """
    changes = []
    for key in [*before, *(key for key in now if key not in before)]:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict) and "file" not in old:
            changes.extend(differences(old, new))
        elif _content(old) != _content(new):
            changes.append(_change(key, old, new))
    return changes


def _content(value: Any) -> Any:
    if isinstance(value, dict) and "file" in value:
        return {key: item for key, item in value.items() if key != "file"}
    if isinstance(value, list):
        return [_content(item) for item in value]
    return value


def _change(key: str, old: Any, new: Any) -> str:
    if isinstance(old, dict) and isinstance(new, dict) and old.get("file") == new.get("file"):
        return f"the content of {key} {new.get('file')} has changed"
    return f"{key} was {_shown(old)}, is {_shown(new)}"


def _shown(value: Any) -> str:
    if value is None or value == [] or value is False:
        return "not given"
    if isinstance(value, dict) and "file" in value:
        return str(value["file"])
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    return "given" if value is True else str(value)
