"""How much of each allele is read: all of it, so many bases, or as many as it takes."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from evo_toolkit.errors import UsageError

QUIET_PIECES = 2
"""Pieces in a row that change little, behind which an adaptive suffix ends."""

DEFAULT_TOLERANCE = 0.02
"""Nats that a piece of an adaptive suffix may add and still be called quiet."""


@dataclass(frozen=True, slots=True)
class Adaptive:
    """Suffixes as long as it takes: alleles are read in pieces of 1/32 of a window.

    An allele is read no further when two pieces in a row, the one with the fork or later ones, have
    changed its score by less than `tolerance` each. Alleles of another length than the reference's
    hardly ever are that quiet, since pieces of theirs hold other bases: they are read to the end.

    Attributes:
        tolerance: In nats, on one strand.
    """

    tolerance: float = DEFAULT_TOLERANCE

    def __str__(self) -> str:
        return f"{ADAPTIVE}:{self.tolerance:g}"

    def is_enough(self, changes: Sequence[float], fork: int, piece: int) -> bool:
        """Whether the pieces read so far suffice.

        Args:
            changes: Of the score by each piece, nats.
            fork: Where the alleles part, from the first piece's begin.
            piece: Bases of a piece.
        """
        if len(changes) - QUIET_PIECES < fork // piece:
            return False
        return all(abs(change) < self.tolerance for change in changes[-QUIET_PIECES:])


ADAPTIVE = "adaptive"
Suffix = int | Adaptive | None
"""Bases to read of each allele, as many as it takes, or all."""


def parse_suffix(text: str) -> Suffix:
    """Read what a user says of suffixes: full, a number of bases, adaptive or adaptive:NATS.

    Raises:
        UsageError: for anything else.
    """
    if text == "full":
        return None
    if text.isdecimal():
        return int(text)
    name, colon, tolerance = text.partition(":")
    if name == ADAPTIVE and not colon:
        return Adaptive()
    with suppress(ValueError):
        if name == ADAPTIVE and 0 < float(tolerance) < float("inf"):
            return Adaptive(float(tolerance))
    raise UsageError(
        f"--suffix {text!r} is neither full, a number of bases, adaptive nor adaptive:NATS with more than 0"
    )
