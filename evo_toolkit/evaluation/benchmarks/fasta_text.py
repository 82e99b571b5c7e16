"""Sequences of FASTA files whose whole header lines matter."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from evo_data.files import read_text
from evo_toolkit.errors import EvoError


class FastaEntry(NamedTuple):
    """A record: its header line without `>`, its letters as written, and where it begins."""

    header: str
    sequence: str
    place: str


def read_fasta(path: Path | str) -> Iterator[FastaEntry]:
    """Yield the records of a FASTA, plain or gzip; names may repeat or be empty.

    Raises:
        EvoDataError: if the file cannot be read.
        EvoError: for text before the first header, or a record without sequence.
    """
    header, place, letters = "", "", list[str]()
    for number, line in enumerate(read_text(path).splitlines(), 1):
        line = line.strip()
        if line.startswith(">"):
            if place:
                yield _entry(header, letters, place)
            header, place, letters = line[1:].strip(), f"{path}, line {number}", []
        elif line:
            if not place:
                raise EvoError(f"{path}, line {number}: no FASTA, it does not begin with a > line")
            letters.append(line)
    if not place:
        raise EvoError(f"{path} has no sequence; give a FASTA")
    yield _entry(header, letters, place)


def _entry(header: str, letters: list[str], place: str) -> FastaEntry:
    if not letters:
        raise EvoError(f"{place}: this record has no sequence; leave it out")
    return FastaEntry(header, "".join(letters), place)
