"""What became of the alleles of a run, counted."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from evo_data.variant import AlleleStatus
from evo_toolkit.variants.scores import ScoredRecord


@dataclass
class Summary:
    """Counts of one run.

    Attributes:
        num_records: Records seen.
        num_filtered: Records left out by a filter, not among `num_records`; set by the caller.
        by_status: Alleles by status; a record without an alternate counts as one allele.
        by_flag: Alleles by flag.
    """

    num_records: int = 0
    num_filtered: int = 0
    by_status: Counter[AlleleStatus] = field(default_factory=Counter)
    by_flag: Counter[str] = field(default_factory=Counter)

    @property
    def num_alleles(self) -> int:
        return self.by_status.total()

    @property
    def num_scored(self) -> int:
        return self.by_status[AlleleStatus.OK]

    @property
    def nothing_scored(self) -> bool:
        """Whether there were alleles and none has a score (exit code 3); an empty input is fine."""
        return self.num_alleles > 0 and self.num_scored == 0

    def add(self, scored: ScoredRecord) -> None:
        """Count one record."""
        self.num_records += 1
        for allele in scored.alleles:
            self.by_status[allele.status] += 1
            self.by_flag.update(allele.flags)

    def text(self, verb: str = "scored") -> str:
        """The counts line that ends a run."""
        parts = [f"{verb} {_number(self.num_scored, 'allele')} of {self.num_alleles:,} in {_number(self.num_records, 'record')}"]  # fmt: skip
        unscored = self.by_status.copy()
        del unscored[AlleleStatus.OK]
        if unscored:
            parts.append("not scored: " + _counts(unscored))
        if self.by_flag:
            parts.append("flags: " + _counts(self.by_flag))
        if self.num_filtered:
            parts.append(f"left out by the filter: {_number(self.num_filtered, 'record')}")
        return "; ".join(parts)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def _counts(counter: Counter[AlleleStatus] | Counter[str]) -> str:
    # Equal counts by name, so that the line does not depend on the order of the input.
    ordered = sorted(counter.items(), key=lambda item: (-item[1], str(item[0])))
    return ", ".join(f"{count:,} {name}" for name, count in ordered)
