"""Where in its codon each base of a genome stands, from the CDS features of GFF3 annotations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.corpus import Corpus
from evo_data.errors import EvoDataError
from evo_data.gff import read_cds

OUTSIDE = -1
"""Outside of every coding sequence, or at different places of several that overlap."""

Positions = NDArray[np.int8]


class CodingRun(NamedTuple):
    """A CDS line: bases `[start, stop)`, 0-based, forward strand.

    Attributes:
        reverse: Whether the gene is read on the reverse strand.
        phase: Bases before the first whole codon, counted from where the gene is read first: 0 to 2.
    """

    start: int
    stop: int
    reverse: bool
    phase: int


class CodonPositions:
    """Codon positions of the records of a corpus.

    Attributes:
        num_runs: CDS lines that lie on records of the corpus.
    """

    def __init__(self, runs: Mapping[int, Sequence[CodingRun]]) -> None:
        """Take the runs of each record by its index in `Corpus.records`."""
        self.num_runs = sum(map(len, runs.values()))
        self._runs = {record: sorted(of_record) for record, of_record in runs.items()}
        self._starts = {
            record: np.array([run.start for run in of_record], np.int64)
            for record, of_record in self._runs.items()
        }
        self._longest = {
            record: max(run.stop - run.start for run in of_record)
            for record, of_record in self._runs.items()
        }

    def read(self, record: int, start: int, stop: int) -> Positions:
        """Return the positions of the bases `[start, stop)` of a record, 0-based half-open.

        Returns:
            int8 `[stop - start]`: 0, 1 or 2 on the gene's own strand, or `OUTSIDE`.
        """
        positions = np.full(stop - start, OUTSIDE, np.int8)
        runs = self._runs.get(record)
        if not runs:
            return positions
        starts = self._starts[record]
        # Every run that reaches into the range begins at most the longest run before it.
        first = int(np.searchsorted(starts, start - self._longest[record], side="right"))
        last = int(np.searchsorted(starts, stop, side="left"))
        seen = np.zeros(stop - start, bool)
        for run in runs[first:last]:
            low, high = max(run.start, start), min(run.stop, stop)
            if low >= high:
                continue
            at = np.arange(low, high)
            read = (run.stop - 1 - at if run.reverse else at - run.start) - run.phase
            own = (read % 3).astype(np.int8)
            here = slice(low - start, high - start)
            differs = seen[here] & (positions[here] != own)
            positions[here] = np.where(differs, OUTSIDE, own)
            seen[here] = True
        return positions


def read_codon_positions(paths: Sequence[Path | str], corpus: Corpus) -> CodonPositions:
    """Read GFF3 files, plain or gzipped; sequence names are those of the corpus's records.

    Where records of several genomes have the same name, the lines count for each of them.

    Raises:
        EvoDataError: if a file cannot be read, a CDS line is wrong, or no CDS lies on the corpus.
    """
    by_name: dict[str, list[int]] = defaultdict(list)
    for at, record in enumerate(corpus.records):
        by_name[record.name].append(at)
    runs: dict[int, set[CodingRun]] = defaultdict(set)
    for path in paths:
        for cds in read_cds(path):
            for at in by_name.get(cds.contig, ()):
                length = corpus.records[at].length
                if cds.strand not in ("+", "-"):
                    raise EvoDataError(f"{cds.where}: a CDS on strand {cds.strand}; use + or -")
                if cds.stop > length:
                    raise EvoDataError(
                        f"{cds.where}: ends at {cds.stop}, but {cds.contig} has {length} bases; "
                        "take the annotation of this genome"
                    )
                runs[at].add(CodingRun(cds.start, cds.stop, cds.strand == "-", cds.phase))
    if not runs:
        raise EvoDataError(
            f"{', '.join(map(str, paths))}: no CDS on any record of {corpus.path}; sequence names "
            "must be those of the genomes"
        )
    return CodonPositions({at: list(of_record) for at, of_record in runs.items()})
