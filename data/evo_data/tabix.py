"""Tabix indexes of tab-separated bgzip files."""

from __future__ import annotations

import os
from pathlib import Path

import pysam

from evo_data.files import atomic_output

INDEX_SUFFIXES = (".tbi", ".csi")

_TBI_END = 1 << 29
"""The first format of index (.tbi) ends here; .csi goes on."""


def index_tabix(
    path: Path | str,
    *,
    start: int,
    end: int,
    zero_based: bool = False,
    last_position: int = 0,
) -> str | None:
    """Make the index of a bgzip file whose first column is the contig; return why there is none.

    An older index of the file is removed first. The values are worth more than their index: what
    htslib refuses (rows out of order) is told, not raised.

    Args:
        path: Sorted by contig and position; lines that begin with # are passed over.
        start: Column of the first base, from 0.
        end: Column of the last base, from 0; may be the same.
        zero_based: Whether positions are 0-based half-open, as in BED.
        last_position: The largest position, which decides the format.
    """
    remove_indexes(path)
    csi = last_position > _TBI_END
    try:
        with atomic_output(f"{path}{'.csi' if csi else '.tbi'}") as index:
            pysam.tabix_index(
                os.fspath(path), seq_col=0, start_col=start, end_col=end, meta_char="#",
                zerobased=zero_based, force=True, csi=csi, index=os.fspath(index),
            )  # fmt: skip
    except (OSError, ValueError) as error:
        return f"htslib cannot make one ({error})"
    return None


def remove_indexes(path: Path | str) -> None:
    """Remove the indexes of an older file of this name."""
    for suffix in INDEX_SUFFIXES:
        Path(f"{path}{suffix}").unlink(missing_ok=True)
