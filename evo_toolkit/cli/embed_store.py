"""Groups of embeddings that are finished, so that an interrupted `embed` goes on where it stopped."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from evo_data.files import atomic_output
from evo_toolkit.inference.embed_files import EmbeddedGroup
from evo_toolkit.inference.readings import Values
from evo_toolkit.variants.resume import ChunkStore, ResumeError


class GroupStore(ChunkStore):
    """The folder of `evo_toolkit.variants.resume`, with an .npz for each group."""

    def _group_path(self, number: int) -> str:
        return str(self.folder / f"chunk-{number:08d}.npz")

    def num_kept(self) -> int:
        return sum(1 for _ in self.folder.glob("chunk-*.npz"))

    def has(self, number: int, digest: str) -> bool:
        """Whether a group is there.

        Raises:
            ResumeError: if it was made of other sequences.
        """
        try:
            with np.load(self._group_path(number), allow_pickle=False) as data:
                found = str(data["digest"])
        except FileNotFoundError:
            return False
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return False  # damaged by something else than an interruption: embedded again
        if found != digest:
            raise ResumeError(
                f"{self.folder}: the input is another one than that of the interrupted run; give the same input to go on, or --restart to throw its embeddings away"
            )
        return True

    def save_group(self, number: int, digest: str, group: EmbeddedGroup) -> None:
        """Keep a group."""
        arrays: dict[str, NDArray[np.generic]] = {
            "digest": np.array(digest),
            "columns": np.frombuffer(json.dumps(dict(group.columns)).encode(), np.uint8),
        }
        for layer, values in group.layers.items():
            arrays[f"values.{layer}"] = np.concatenate([np.atleast_2d(v) for v in values])
            if values[0].ndim == 2:
                arrays["lengths"] = np.array([len(v) for v in values])
        path = self._group_path(number)
        with atomic_output(path, force=True) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def groups(self, layers: Sequence[str]) -> Iterator[EmbeddedGroup]:
        """Read the groups, in order, with these of their layers."""
        for number in range(self.num_kept()):
            with np.load(self._group_path(number), allow_pickle=False) as data:
                columns: Mapping[str, Sequence[object]] = json.loads(data["columns"].tobytes())
                lengths = data["lengths"] if "lengths" in data.files else None
                yield EmbeddedGroup(
                    columns=columns,
                    layers={name: _split(data[f"values.{name}"], lengths) for name in layers},
                )


def _split(rows: Values, lengths: NDArray[np.int64] | None) -> list[Values]:
    if lengths is None:
        return list(rows)
    return np.split(rows, np.cumsum(lengths)[:-1].tolist())
