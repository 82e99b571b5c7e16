"""Coding sequences of GFF3 annotations."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evo_data.errors import EvoDataError
from evo_data.files import read_text


class CdsLine(NamedTuple):
    """A CDS feature, or one part of it.

    Attributes:
        where: File and line, for messages.
        contig: Name of the sequence.
        start, stop: 0-based half-open, forward strand.
        strand: "+", "-", or what the file has for an unknown one.
        phase: Bases before the first whole codon, counted from where the gene is read first: 0 to 2.
        attributes: The last column, `key=value` pairs as they are written.
    """

    where: str
    contig: str
    start: int
    stop: int
    strand: str
    phase: int
    attributes: dict[str, str]


def read_cds(path: Path | str) -> Iterator[CdsLine]:
    """Yield the CDS lines of a GFF3 file, plain or gzip, in its order.

    Raises:
        EvoDataError: if the file cannot be read, or a CDS line is wrong.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.startswith("##FASTA"):
            break
        columns = line.split("\t")
        if line.startswith("#") or len(columns) < 8 or columns[2] != "CDS":
            continue
        where = f"{path}, line {number}"
        try:
            start, stop = int(columns[3]) - 1, int(columns[4])
            # A missing phase is that of a coding sequence in one piece.
            phase = 0 if columns[7] == "." else int(columns[7])
        except ValueError:
            start, stop, phase = 0, 0, 0
        if not 0 <= start < stop or phase not in (0, 1, 2):
            raise EvoDataError(
                f"{where}: not a CDS; needed are start and end (1-based) and a phase from 0 to 2"
            )
        pairs = columns[8].split(";") if len(columns) > 8 else []
        attributes = dict(pair.strip().partition("=")[::2] for pair in pairs)
        yield CdsLine(where, columns[0], start, stop, columns[6], phase, attributes)
