"""Building the index of a FASTA file, and checking that an index belongs to its file."""

from __future__ import annotations

import os
from pathlib import Path

import pysam

from evo_data.errors import FastaError


def ensure_index(path: Path) -> dict[str, int]:
    """Return the length of each contig of a FASTA file, in order, building its index if absent."""
    index = Path(f"{path}.fai")
    if not path.exists():
        raise FastaError(f"{path}: no such file")
    if not index.exists():
        pysam.faidx(os.fspath(path))
    lengths = {}
    for line in index.read_text().splitlines():
        name, length = line.split("\t")[:2]
        lengths[name] = int(length)
    return lengths
