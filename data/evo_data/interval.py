"""Genomic intervals, 0-based and half-open."""

from __future__ import annotations

import re
from dataclasses import dataclass

from evo_data.errors import EvoDataError

_REGION = re.compile(r"(?P<contig>.+):(?P<first>[\d,]+)-(?P<last>[\d,]+)")


@dataclass(frozen=True, slots=True)
class Interval:
    """A stretch of a contig: 0-based, half-open, so that the length is `end - start`.

    Attributes:
        contig: Name of the contig.
        start: First base, counted from 0 on the forward strand.
        end: One past the last base, on the forward strand; at least `start`.
        strand: "+" or "-": the direction in which the stretch is read. Coordinates are always
            those of the forward strand.

    Raises:
        EvoDataError: if `start` is negative, `end` is below `start`, or the strand is neither.
    """

    contig: str
    start: int
    end: int
    strand: str = "+"

    def __post_init__(self) -> None:
        if self.start < 0 or self.end < self.start:
            raise EvoDataError(
                f"interval {self.contig} [{self.start}, {self.end}) is impossible: "
                "0 <= start <= end is needed (0-based, half-open)"
            )
        if self.strand not in ("+", "-"):
            raise EvoDataError(f"strand {self.strand!r} is not known; use '+' or '-'")

    @property
    def length(self) -> int:
        """Number of bases."""
        return self.end - self.start

    @property
    def region(self) -> str:
        """The interval as text, 1-based and inclusive: `chr1:1-10` for start 0, end 10."""
        return f"{self.contig}:{self.start + 1}-{self.end}"

    def reverse(self) -> Interval:
        """Return the same bases read on the other strand."""
        return Interval(self.contig, self.start, self.end, "-" if self.strand == "+" else "+")

    @classmethod
    def from_region(cls, text: str, strand: str = "+") -> Interval:
        """Return the interval of a region text such as `chr1:1-10`, 1-based and inclusive.

        The last colon separates, since contig names may hold colons (`HLA-A*01:01:01:01:1-50`);
        commas in the numbers are ignored.

        Raises:
            EvoDataError: if the text is not `contig:first-last` with 1 <= first <= last.
        """
        match = _REGION.fullmatch(text.strip())
        if match is None:
            raise EvoDataError(f"region {text!r} is not understood; write contig:first-last")
        first = int(match["first"].replace(",", "") or 0)
        last = int(match["last"].replace(",", "") or 0)
        if not 1 <= first <= last:
            raise EvoDataError(
                f"region {text!r}: positions are 1-based and inclusive, so 1 <= first <= last"
            )
        return cls(match["contig"], first - 1, last, strand)
