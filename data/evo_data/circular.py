"""Circular contigs: windows that go on across the origin.

A window is cut from a rotation of the contig in which the edit lies far from either end, so that
nothing else has to know that the contig is a circle.
"""

from __future__ import annotations

from dataclasses import dataclass

from evo_data.variant import Edit, Fetch


@dataclass(frozen=True, slots=True)
class Rotation:
    """A circular contig read from another origin.

    Attributes:
        fetch: Reads it, 0-based half-open in rotated coordinates.
        edit: The edit in rotated coordinates.
        origin: The contig's position, 0-based, at which the rotation begins.
        length: Length of the contig, in bases.
    """

    fetch: Fetch
    edit: Edit
    origin: int
    length: int

    def position(self, rotated: int) -> int:
        """Return the contig's position of a rotated one, 0-based."""
        return (rotated + self.origin) % self.length


def rotate(fetch: Fetch, length: int, edit: Edit, window: int) -> Rotation:
    """Return the rotation of a circular contig in which a window around an edit is cut.

    The contig itself where the edit is far from its ends; else the one that begins half-way
    round, the same for all edits there; else, on a contig of few windows, one for this edit.

    Args:
        fetch: Reads the contig, `fetch(start, end)`, 0-based half-open.
        length: Length of the contig, in bases.
        edit: The change, in the contig's coordinates.
        window: Bases per window.
    """
    margin = 2 * window

    def is_inside(origin: int) -> bool:
        start = (edit.start - origin) % length
        return start >= margin and start + (edit.end - edit.start) + margin <= length

    own = (edit.start - (length - (edit.end - edit.start)) // 2) % length
    origin = next((x for x in (0, length // 2) if is_inside(x)), own)
    start = (edit.start - origin) % length

    def rotated(first: int, last: int) -> bytes:
        low = first + origin
        if low >= length:
            low -= length
        high = low + last - first
        if high <= length:
            return fetch(low, high)
        return fetch(low, length) + fetch(0, high - length)

    return Rotation(rotated, Edit(start, start + edit.end - edit.start, edit.alt), origin, length)
