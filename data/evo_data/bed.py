"""BED files: intervals, 0-based and half-open."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from evo_data.errors import EvoDataError
from evo_data.variant_tables import text_lines

NO_DATA = ("#", "track", "browser")
"""How lines begin that hold no interval."""


@dataclass(frozen=True, slots=True)
class BedLine:
    """One interval of a BED file, as it stands there: nothing is known of its contig yet.

    Attributes:
        contig: First column.
        start: First base, 0-based, forward strand.
        end: One past the last base; at least `start`.
        more: Further columns: name, score, strand, ...
        place: File and line, for messages.
    """

    contig: str
    start: int
    end: int
    more: tuple[str, ...]
    place: str


def read_bed(path: Path | str) -> Iterator[BedLine]:
    """Yield the intervals of a BED file, plain, gzip or bgzip; separated by tabs, or else by blanks.

    Raises:
        EvoDataError: if the file cannot be read, or for a line that is no interval, naming it.
    """
    for number, line in enumerate(text_lines(Path(path)), start=1):
        if not line.strip() or line.startswith(NO_DATA):
            continue
        place = f"{path}: line {number}"
        columns = [c.strip() for c in (line.split("\t") if "\t" in line else line.split())]
        # int() would take signs, underscores and other alphabets' digits.
        if (
            len(columns) < 3
            or not columns[0]
            or not all(c.isascii() and c.isdecimal() for c in columns[1:3])
        ):
            raise EvoDataError(
                f"{place} is no BED line; contig, start and end are needed (0-based, half-open)"
            )
        start, end = int(columns[1]), int(columns[2])
        if start > end:
            raise EvoDataError(
                f"{place}: [{start}, {end}) is no interval: it ends before it begins"
            )
        yield BedLine(columns[0], start, end, tuple(columns[3:]), place)
