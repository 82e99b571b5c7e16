"""A task with all its data in one file, to be run where the tools that made it are not installed.

An `.npz` without pickles: `meta` (JSON: the kind of task and whatever describes it), `sequence`
(codes of all records back to back) and the task's own arrays under `array.NAME`.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.files import atomic_output
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genomes import Genome

FORMAT_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What a task needs.

    Attributes:
        kind: Name of the task, such as "snv".
        genomes: The genomes, codes of the bases.
        arrays: The task's tables, by name.
        meta: JSON: sources, options, k-mer overlap with the training genomes.
    """

    kind: str
    genomes: tuple[Genome, ...]
    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any]

    def lengths(self) -> dict[str, int]:
        """Length of every record in bases, by name."""
        return {
            name: record.size
            for genome in self.genomes
            for name, record in zip(genome.names, genome.records, strict=True)
        }

    def save(self, path: Path | str, *, force: bool = False) -> None:
        """Write the file, whole or not at all."""
        records = [record for genome in self.genomes for record in genome.records]
        description = {
            "format_version": FORMAT_VERSION,
            "kind": self.kind,
            "genomes": [
                {
                    "name": genome.name,
                    "group": genome.group,
                    "records": [
                        [name, record.size]
                        for name, record in zip(genome.names, genome.records, strict=True)
                    ],
                }
                for genome in self.genomes
            ],
            "meta": dict(self.meta),
        }
        contents: dict[str, Any] = {
            "meta": np.frombuffer(json.dumps(description).encode(), np.uint8),
            "sequence": np.concatenate([np.zeros(0, np.uint8), *records]),
            **{f"array.{name}": value for name, value in self.arrays.items()},
        }
        with atomic_output(path, force=force) as temporary, temporary.open("wb") as handle:
            np.savez_compressed(handle, **contents)


def load_prepared(path: Path | str, kind: str) -> Prepared:
    """Read a file of `Prepared.save`.

    Raises:
        EvoError: for another file, another version, or a task of another kind.
    """
    try:
        with np.load(path, allow_pickle=False) as data:
            description = json.loads(data["meta"].tobytes())
            sequence = data["sequence"]
            arrays = {
                name.removeprefix("array."): data[name]
                for name in data.files
                if name.startswith("array.")
            }
    except FileNotFoundError:
        raise
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        # Of a file that is no archive the reader says how to read it without its protection.
        reason = error if zipfile.is_zipfile(path) else "no .npz file, or cut off"
        raise EvoError(
            f"{path} is not a prepared task ({reason}); make one with `evo-toolkit eval TASK --prepare`"
        ) from None
    if description.get("format_version") != FORMAT_VERSION:
        raise EvoError(
            f"{path} has version {description.get('format_version')}, not {FORMAT_VERSION}; prepare it again"
        )
    if description["kind"] != kind:
        raise EvoError(f"{path} holds the task {description['kind']!r}, not {kind!r}")
    genomes, offset = [], 0
    for entry in description["genomes"]:
        records = []
        for _, length in entry["records"]:
            records.append(sequence[offset : offset + length])
            offset += length
        genomes.append(
            Genome(
                name=entry["name"],
                group=entry["group"],
                names=tuple(name for name, _ in entry["records"]),
                records=tuple(records),
            )
        )
    return Prepared(kind=kind, genomes=tuple(genomes), arrays=arrays, meta=description["meta"])
