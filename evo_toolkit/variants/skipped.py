"""A list of the alleles without a score, each with its reason in words."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from evo_data.files import atomic_output
from evo_data.variant import AlleleStatus
from evo_toolkit.variants.scores import ScoredRecord

REASONS: dict[AlleleStatus, str] = {
    AlleleStatus.REF_MISMATCH: "REF is not what the genome holds there, and neither is ALT",
    AlleleStatus.SWAPPED: "the genome holds ALT there, so REF and ALT are swapped",
    AlleleStatus.SYMBOLIC: "no sequence is given, and END or SVLEN do not tell it",
    AlleleStatus.BREAKEND: "a breakend: the other side is elsewhere",
    AlleleStatus.STAR: "the base is missing because of a deletion further up",
    AlleleStatus.MISSING_ALT: "there is no alternate allele",
    AlleleStatus.NON_ACGTN: "an ambiguity code other than N",
    AlleleStatus.TOO_LONG: "longer than --max-allele, or than half a window",
    AlleleStatus.CONTIG_UNKNOWN: "the genome has no such contig, or one of another length",
    AlleleStatus.CONTIG_SHORT: "the contig is too short for a window",
    AlleleStatus.OUT_OF_RANGE: "POS is 0, or REF reaches past the end of the contig",
    AlleleStatus.NOT_FINITE: "the model gave no finite number; its weights may be damaged",
    AlleleStatus.MALFORMED: "REF or ALT is no allele that VCF knows",
}
"""Why an allele has no score."""

COLUMNS = ("chrom", "pos", "id", "ref", "alt", "status", "reason")
"""Of the file: TSV, one row for each allele without a score; `pos` is 1-based as in VCF."""


class SkippedWriter:
    """Writes the file of skipped alleles, whole or not at all; a context manager.

    Attributes:
        count: Alleles written.
    """

    def __init__(self, path: Path | str, *, force: bool = False) -> None:
        self.count = 0
        with ExitStack() as opening:
            temporary = opening.enter_context(atomic_output(path, force=force))
            self._out = opening.enter_context(temporary.open("wb"))
            self._out.write(("#" + "\t".join(COLUMNS) + "\n").encode())
            self._stack = opening.pop_all()

    def add(self, scored: ScoredRecord) -> None:
        """Write those of a record's alleles that have no score."""
        record = scored.record
        for allele in scored.alleles:
            if allele.status is not AlleleStatus.OK:
                row = (
                    record.contig, str(record.pos), record.id, record.ref, allele.alt,
                    allele.status.value, REASONS[allele.status],
                )  # fmt: skip
                self._out.write(("\t".join(row) + "\n").encode())
                self.count += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stack.__exit__(kind, error, trace)
