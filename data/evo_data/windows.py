"""The two windows, with and without a variant, that a model compares on each strand.

Strand, window centre, reverse complement and the index at which the alleles part are decided here
and nowhere else. Everything is stated in *reading direction*: the direction in which the model
reads, which on "-" is the reverse complement of the genome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import reverse_complement
from evo_data.errors import ContigError, EvoDataError
from evo_data.variant import Edit, Fetch, left_align, right_align

MINIMUM_BASES = 32
"""A contig with fewer usable bases than this (or than the window, if that is shorter) is refused."""

_STRANDS = {"both": ("+", "-"), "+": ("+",), "-": ("-",)}


@dataclass(frozen=True, slots=True)
class StrandWindow:
    """Reference and alternate window of one variant on one strand, of equal length W.

    Attributes:
        strand: "+" or "-".
        start: First base of the reference window, 0-based, forward strand.
        end: One past its last base, 0-based, forward strand.
        ref: Tokens in reading direction, uint8 `[W]`.
        alt: Tokens in reading direction, uint8 `[W]`.
        fork: First index at which `ref` and `alt` differ; W when they are equal.
        ref_allele: Half-open index range of the replaced bases in `ref`; may be empty.
        alt_allele: Half-open index range of the replacing bases in `alt`; may be empty.
    """

    strand: str
    start: int
    end: int
    ref: NDArray[np.uint8]
    alt: NDArray[np.uint8]
    fork: int
    ref_allele: tuple[int, int]
    alt_allele: tuple[int, int]


def variant_windows(
    fetch: Fetch,
    contig_length: int,
    edit: Edit,
    window: int,
    strands: str = "both",
    *,
    step: int = 1,
) -> tuple[list[StrandWindow], frozenset[str]]:
    """Return the windows of an edit, one per strand, and flags about them.

    On either strand the edit, moved as far upstream in reading direction as the genome allows,
    begins at index `window // 2` (with `step` 1): so many bases of context stand before it. Hence a variant on
    the reverse-complemented genome gives the same windows with the strands exchanged. Both
    alleles have the same length: what an indel removes or adds is made up at the 3' end in
    reading direction with the genome's own bases, so that the alleles share everything before the
    edit. At the end of a contig the window is shifted inwards.

    Args:
        fetch: Reads the contig, `fetch(start, end)`, 0-based half-open, upper-case bases.
        contig_length: Length of the contig, in bases.
        edit: The normalised change (`edit_of(normalise(...))`).
        window: Number of bases wanted, W.
        strands: "both", "+" or "-".
        step: Windows begin at multiples of this in reading direction, so that near variants share
            one: up to `step - 1` bases more stand before the edit, and as many fewer behind it.

    Returns:
        The windows ("+" first), and the flags: `window_shifted` (a contig end is near),
        `window_clipped` (the contig with either allele is shorter than `window`; the windows are
        as long as the shorter of the two), `n_in_window` (a reference window holds an N).

    Raises:
        ContigError: if fewer than 32 bases are usable.
        EvoDataError: if `window` is below 2, `strands` is not known or the edit lies outside.
    """
    _check(contig_length, edit, window, strands, step)
    usable = _usable(contig_length, edit.growth, window)
    width = min(window, usable)
    flags = {"window_clipped"} if width < window else set()
    windows = []
    for strand in _STRANDS[strands]:
        built, wanted = _strand_window(
            fetch, contig_length, edit, width, usable, window, strand, step
        )
        if width == window and built.start != wanted:
            flags.add("window_shifted")
        if (built.ref == ord("N")).any():
            flags.add("n_in_window")
        windows.append(built)
    return windows, frozenset(flags)


def haplotype_windows(
    fetch: Fetch,
    contig_length: int,
    edits: Sequence[Edit],
    window: int,
    strands: str = "both",
    *,
    step: int = 1,
) -> tuple[list[list[StrandWindow]], frozenset[str]]:
    """Return the windows of several changes of the same bases, beside one reference window.

    As `variant_windows`, with the replaced bases, not the changed ones, at index `window // 2`, so
    that changes of different places in them are compared with the same reference window.

    Args:
        edits: Over the same bases (`evo_data.haplotypes.joined_edits`).

    Returns:
        For each strand ("+" first) the windows of every edit, and the flags.

    Raises:
        ContigError: if fewer than 32 bases are usable.
        EvoDataError: as `variant_windows`, or if the edits replace different bases.
    """
    if len({(edit.start, edit.end) for edit in edits}) != 1:
        raise EvoDataError("these edits do not replace the same bases, so they share no window")
    _check(contig_length, edits[0], window, strands, step)
    usable = _usable(contig_length, min(edit.growth for edit in edits), window)
    width = min(window, usable)
    flags = {"window_clipped"} if width < window else set()
    found = []
    for strand in _STRANDS[strands]:
        built = [
            _strand_window(
                fetch, contig_length, edit, width, usable, window, strand, step, align=False
            )
            for edit in edits
        ]
        if width == window and built[0][0].start != built[0][1]:
            flags.add("window_shifted")
        if (built[0][0].ref == ord("N")).any():
            flags.add("n_in_window")
        found.append([one for one, _ in built])
    return found, frozenset(flags)


def _check(contig_length: int, edit: Edit, window: int, strands: str, step: int) -> None:
    if window < 2:
        raise EvoDataError(f"window {window} is too small; at least 2 bases are needed")
    if not 1 <= step <= window // 2:
        raise EvoDataError(f"step {step} must be 1 to half the window of {window} bases")
    if strands not in _STRANDS:
        raise EvoDataError(f"strands {strands!r} is not known; use 'both', '+' or '-'")
    if not 0 <= edit.start <= edit.end <= contig_length:
        raise EvoDataError(
            f"edit [{edit.start}, {edit.end}) lies outside of a contig of {contig_length} bases"
        )


def _usable(contig_length: int, growth: int, window: int) -> int:
    """Bases of a contig that both alleles have."""
    usable = contig_length + min(0, growth)
    if usable < min(MINIMUM_BASES, window):
        raise ContigError(
            f"contig of {contig_length} bases leaves {usable} for a window; "
            f"at least {MINIMUM_BASES} are needed"
        )
    return usable


def _strand_window(
    fetch: Fetch,
    contig_length: int,
    edit: Edit,
    width: int,
    usable: int,
    window: int,
    strand: str,
    step: int,
    *,
    align: bool = True,
) -> tuple[StrandWindow, int]:
    """Return the windows of one strand, and where the reference window would start if it could."""
    growth = edit.growth
    # Coordinates in reading direction: 0 is the first base that the strand's reader meets.
    if strand == "+":
        edit = left_align(edit, fetch) if align else edit
        edit_first = edit.start
    else:
        edit = right_align(edit, fetch, contig_length) if align else edit
        edit_first = contig_length - edit.end
    wanted = edit_first - window // 2
    wanted -= wanted % step
    first = max(0, min(wanted, usable - width))
    # Whichever allele is shorter by a deletion needs that many more bases behind the window.
    last = min(contig_length, first + width + max(0, -growth))
    if strand == "+":
        low, bases, alternate = first, fetch(first, last), edit.alt
    else:
        low = contig_length - last
        bases = reverse_complement(fetch(low, contig_length - first))
        alternate = reverse_complement(edit.alt)
        wanted = contig_length - wanted - width
    at = edit_first - first
    size = edit.end - edit.start
    # Copies, because arrays over bytes are read-only, which torch warns about.
    ref = np.frombuffer(bases, dtype=np.uint8, count=width).copy()
    changed = bases[:at] + alternate + bases[at + size :]
    alt = np.frombuffer(changed, dtype=np.uint8, count=width).copy()
    different = ref != alt
    fork = int(different.argmax()) if different.any() else width
    start = first if strand == "+" else contig_length - first - width
    at = min(at, width)
    return StrandWindow(
        strand=strand,
        start=start,
        end=start + width,
        ref=ref,
        alt=alt,
        fork=fork,
        ref_allele=(at, min(at + size, width)),
        alt_allele=(at, min(at + len(alternate), width)),
    ), wanted
