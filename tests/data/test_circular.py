"""A circle has no ends: windows near the origin are those of any other place."""

from __future__ import annotations

import random

import numpy as np
import pytest

from evo_data.circular import rotate
from evo_data.variant import Edit, Fetch
from evo_data.windows import StrandWindow, variant_windows

LENGTH = 300
CIRCLE = "".join(random.Random(7).choices("ACGT", k=LENGTH - 5)) + "AAAAA"
# A run of ten across the origin.
CIRCLE = "AAAAA" + CIRCLE[5:]


def reader(text: str) -> Fetch:
    def fetch(start: int, end: int) -> bytes:
        assert 0 <= start <= end <= len(text)
        return text[start:end].encode()

    return fetch


def windows(text: str, edit: Edit, window: int) -> tuple[list[StrandWindow], frozenset[str], list[int]]:  # fmt: skip
    turned = rotate(reader(text), len(text), edit, window)
    found, flags = variant_windows(turned.fetch, turned.length, turned.edit, window)
    return found, flags, [turned.position(w.start) for w in found]


@pytest.mark.parametrize("window", [16, 31, 32, 100, 300])
@pytest.mark.parametrize("alt", [b"G", b"", b"GTTTC"])
def test_the_origin_does_not_matter(window: int, alt: bytes) -> None:
    rng = random.Random(1)
    for position in (0, 1, 3, 8, 40, 149, 150, 151, 250, 292, 297, 299):
        size = 1 if position == 299 else rng.choice([0, 1]) if alt else 1
        edit = Edit(position, position + size, alt)
        if CIRCLE[position : position + size].encode() == alt:
            continue
        found, flags, starts = windows(CIRCLE, edit, window)
        shift = 137
        turned = CIRCLE[shift:] + CIRCLE[:shift]
        at = (position - shift) % LENGTH
        others, other_flags, other_starts = windows(turned, Edit(at, at + size, alt), window)
        assert flags == other_flags
        if window <= LENGTH - 5:
            assert not flags
        for ours, theirs, a, b in zip(found, others, starts, other_starts, strict=True):
            assert np.array_equal(ours.ref, theirs.ref) and np.array_equal(ours.alt, theirs.alt)
            assert (a - shift) % LENGTH == b
            bases = (CIRCLE * 2)[a : a + len(ours.ref)]
            if ours.strand == "-":
                bases = bases[::-1].translate(str.maketrans("ACGT", "TGCA"))
            assert ours.ref.tobytes() == bases.encode()


def test_spellings_of_an_indel_across_the_origin_agree() -> None:
    first, *others = (windows(CIRCLE, Edit(p, p + 1, b""), 32)[0] for p in (0, 2, 4, 295, 297, 299))
    for other in others:
        for ours, theirs in zip(first, other, strict=True):
            assert np.array_equal(ours.ref, theirs.ref) and np.array_equal(ours.alt, theirs.alt)


def test_far_from_the_ends_nothing_is_turned() -> None:
    assert rotate(reader(CIRCLE), LENGTH, Edit(150, 151, b"G"), 32).origin == 0
    assert {rotate(reader(CIRCLE), LENGTH, Edit(p, p, b"G"), 32).origin for p in (0, 5, 299)} == {150}  # fmt: skip
