"""Variants: their kinds, their normal form, their names, and whether an allele can be scored.

`Variant` is 1-based, as in VCF. `Edit` is the same change as an interbase replacement, 0-based and
half-open. The conversion between the two happens in this module alone.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

from evo_data.alphabet import is_acgtn, is_iupac
from evo_data.errors import EvoDataError

Fetch = Callable[[int, int], bytes]
"""Returns the bases of one contig, 0-based half-open, upper-case, forward strand."""

_SYMBOLIC = re.compile(r"<[^<>\s,]+>")
_MATE = r"[^\s\[\]]+:\d+"
_BREAKEND = re.compile(
    rf"[ACGTN.]+(\[{_MATE}\[|\]{_MATE}\])"  # t[p[ and t]p]
    rf"|(\[{_MATE}\[|\]{_MATE}\])[ACGTN.]+"  # [p[t and ]p]t
    r"|\.[ACGTN]+|[ACGTN]+\.",  # a breakend whose mate is not known
    re.IGNORECASE,
)
# Left- and right-alignment compare this many bases first, then ever more: nearly every variant
# stops within a few bases, and a run of a million Ns still takes only a few comparisons.
_FIRST_CHUNK = 64
_LARGEST_CHUNK = 1 << 20


class AlleleStatus(StrEnum):
    """What becomes of one allele of a record; exactly one holds (`EVO_ST`)."""

    OK = "ok"
    REF_MISMATCH = "ref_mismatch"
    """REF is not what the genome holds there, and neither is ALT."""
    SWAPPED = "swapped"
    """The genome holds ALT where the record says REF: never scored with the sign turned."""
    SYMBOLIC = "symbolic"
    """`<DEL>`, `<NON_REF>`, `<*>` and the like: no sequence is given."""
    BREAKEND = "breakend"
    STAR = "star"
    """`*`: the base is missing because of a deletion further up."""
    MISSING_ALT = "missing_alt"
    """`.`, or no alternate at all."""
    NON_ACGTN = "non_acgtn"
    """An ambiguity code other than N."""
    TOO_LONG = "too_long"
    CONTIG_UNKNOWN = "contig_unknown"
    CONTIG_SHORT = "contig_short"
    OUT_OF_RANGE = "out_of_range"
    """POS is 0, or REF reaches past the end of the contig."""
    NOT_FINITE = "not_finite"
    """The model gave no finite number; its weights may be damaged."""
    MALFORMED = "malformed"
    """REF or ALT is no allele that VCF knows."""


@dataclass(frozen=True, slots=True)
class Variant:
    """One alternate allele at one place, as VCF writes it.

    Attributes:
        contig: Name of the contig.
        pos: Position of the first base of `ref`, 1-based.
        ref: Reference bases, upper-cased here; not empty.
        alt: Alternate bases, upper-cased here; not empty.

    Raises:
        EvoDataError: if `pos` is below 1 or an allele is not of A, C, G, T and N.
    """

    contig: str
    pos: int
    ref: str
    alt: str

    def __post_init__(self) -> None:
        if self.pos < 1:
            raise EvoDataError(f"position {self.pos} of {self.contig}: positions start at 1")
        for name, allele in (("ref", self.ref), ("alt", self.alt)):
            if not is_acgtn(allele):
                raise EvoDataError(
                    f"{name} allele {allele!r} at {self.contig}:{self.pos} is not made of "
                    "A, C, G, T and N; use classify_allele before building a Variant"
                )
            if not allele.isupper():
                object.__setattr__(self, name, allele.upper())

    @property
    def start(self) -> int:
        """First reference base, 0-based."""
        return self.pos - 1

    @property
    def end(self) -> int:
        """One past the last reference base, 0-based."""
        return self.pos - 1 + len(self.ref)

    @property
    def indel_len(self) -> int:
        """Bases gained (positive) or lost (negative)."""
        return len(self.alt) - len(self.ref)

    @property
    def kind(self) -> str:
        """`snv`, `mnv`, `ins`, `del` or `delins`, of the alleles with shared ends trimmed."""
        edit = edit_of(self)
        num_ref = edit.end - edit.start
        if num_ref == len(edit.alt):
            return "snv" if num_ref == 1 else "mnv"
        if num_ref == 0:
            return "ins"
        return "delins" if edit.alt else "del"

    @property
    def key(self) -> str:
        """The variant as gnomAD writes it: `contig-pos-ref-alt`, 1-based, the contig without chr."""
        contig = self.contig[3:] if re.match(r"chr([0-9]+|[XYM]|MT)$", self.contig) else self.contig
        return f"{'M' if contig == 'MT' else contig}-{self.pos}-{self.ref}-{self.alt}"

    @property
    def hgvs_g(self) -> str:
        """Genomic HGVS description of the trimmed alleles, not shifted: see `hgvs_g`."""
        return hgvs_g(self)


@dataclass(frozen=True, slots=True)
class Edit:
    """The change itself: `genome[start:end]` becomes `alt`. 0-based, half-open, no anchor base.

    An insertion has `start == end`, a deletion an empty `alt`.
    """

    start: int
    end: int
    alt: bytes

    @property
    def growth(self) -> int:
        """Bases gained (positive) or lost (negative)."""
        return len(self.alt) - (self.end - self.start)


def classify_allele(ref: str, alt: str | None, *, max_allele: int | None = None) -> AlleleStatus:
    """Return what kind of allele this is, from its text alone; `ok` means that it has a sequence.

    Case does not matter. A malformed REF makes every allele of the record malformed; otherwise
    the kind of ALT decides, then ambiguity codes in REF, then the length.

    Args:
        ref: REF of the record.
        alt: One element of its ALT; None, an empty list's stand-in, counts as missing.
        max_allele: The largest number of bases that REF or ALT may have as written; None leaves
            the length to whoever has trimmed the alleles.
    """
    if not is_iupac(ref):
        return AlleleStatus.MALFORMED
    if alt is None or alt == ".":
        return AlleleStatus.MISSING_ALT
    if alt == "*":
        return AlleleStatus.STAR
    if not is_acgtn(alt):
        if is_iupac(alt):
            return AlleleStatus.NON_ACGTN
        if _SYMBOLIC.fullmatch(alt):
            return AlleleStatus.SYMBOLIC
        return AlleleStatus.BREAKEND if _BREAKEND.fullmatch(alt) else AlleleStatus.MALFORMED
    if not is_acgtn(ref):
        return AlleleStatus.NON_ACGTN
    too_long = max_allele is not None and max(len(ref), len(alt)) > max_allele
    return AlleleStatus.TOO_LONG if too_long else AlleleStatus.OK


def check_reference(variant: Variant, fetch: Fetch, contig_length: int) -> AlleleStatus:
    """Return whether the genome holds REF: `ok`, `out_of_range`, `swapped` or `ref_mismatch`.

    `swapped` means that the genome holds ALT there instead.
    """
    if variant.end > contig_length:
        return AlleleStatus.OUT_OF_RANGE
    if fetch(variant.start, variant.end) == variant.ref.encode():
        return AlleleStatus.OK
    alt_end = variant.start + len(variant.alt)
    if alt_end <= contig_length and fetch(variant.start, alt_end) == variant.alt.encode():
        return AlleleStatus.SWAPPED
    return AlleleStatus.REF_MISMATCH


def edit_of(variant: Variant) -> Edit:
    """Return the variant without the bases that its alleles share: the suffix first, then prefix.

    Of a normalised variant the edit is left-aligned too. Equal alleles stay as they are: bases
    replaced by themselves.
    """
    ref, alt = variant.ref, variant.alt
    if ref == alt:
        return Edit(variant.start, variant.end, alt.encode())
    shortest = min(len(ref), len(alt))
    suffix = 0
    while suffix < shortest and ref[-1 - suffix] == alt[-1 - suffix]:
        suffix += 1
    shortest -= suffix
    prefix = 0
    while prefix < shortest and ref[prefix] == alt[prefix]:
        prefix += 1
    return Edit(
        variant.start + prefix, variant.end - suffix, alt[prefix : len(alt) - suffix].encode()
    )


def left_align(edit: Edit, fetch: Fetch) -> Edit:
    """Return the leftmost spelling of a trimmed edit; only pure insertions and deletions move."""
    if not _is_pure_indel(edit):
        return edit
    start = edit.start
    unit = edit.alt or fetch(start, edit.end)
    chunk = _FIRST_CHUNK
    while start > 0:
        reach = min(chunk, start)
        # Moving left by one is allowed as long as the base before equals the last one of the unit;
        # over a whole chunk that is comparing the text with itself, moved by the unit's length.
        text = fetch(start - reach, start) + unit
        shift = _common_suffix(text[:reach], text[len(unit) : len(unit) + reach])
        unit = text[reach - shift : reach - shift + len(unit)]
        start -= shift
        if shift < reach:
            break
        chunk = min(4 * chunk, _LARGEST_CHUNK)
    return _moved(edit, start - edit.start, unit)


def right_align(edit: Edit, fetch: Fetch, contig_length: int) -> Edit:
    """Return the rightmost spelling of a trimmed edit; only pure insertions and deletions move."""
    if not _is_pure_indel(edit):
        return edit
    end = edit.end
    unit = edit.alt or fetch(edit.start, end)
    chunk = _FIRST_CHUNK
    while end < contig_length:
        reach = min(chunk, contig_length - end)
        text = unit + fetch(end, end + reach)
        shift = _common_prefix(text[:reach], text[len(unit) : len(unit) + reach])
        unit = text[shift : shift + len(unit)]
        end += shift
        if shift < reach:
            break
        chunk = min(4 * chunk, _LARGEST_CHUNK)
    return _moved(edit, end - edit.end, unit)


def normalise(variant: Variant, fetch: Fetch) -> Variant:
    """Return the shortest, leftmost spelling of a variant, as `bcftools norm` writes it.

    Shared ends are trimmed, indels moved as far left as the genome allows, and an indel keeps the
    base before it; at the start of a contig, where there is none, the base after it.

    Args:
        variant: A variant whose REF agrees with the genome (`check_reference`).
        fetch: Reads the contig, `fetch(start, end)`, 0-based half-open.
    """
    if len(variant.ref) == 1 == len(variant.alt):
        return variant
    if variant.ref == variant.alt:
        return Variant(variant.contig, variant.pos, variant.ref[0], variant.alt[0])
    edit = left_align(edit_of(variant), fetch)
    ref, alt = fetch(edit.start, edit.end), edit.alt
    start = edit.start
    if not (ref and alt):
        if start > 0:
            start -= 1
            anchor = fetch(start, start + 1)
            ref, alt = anchor + ref, anchor + alt
        else:
            anchor = fetch(edit.end, edit.end + 1)
            ref, alt = ref + anchor, alt + anchor
    return Variant(variant.contig, start + 1, ref.decode("ascii"), alt.decode("ascii"))


def hgvs_g(variant: Variant, fetch: Fetch | None = None, contig_length: int | None = None) -> str:
    """Return the genomic HGVS description, for example `chr1:g.123_125del`, 1-based.

    With `fetch` an indel is moved as far 3' (to higher positions) as the genome allows, which
    HGVS demands, and an insertion that repeats what stands before it becomes a `dup`. Without,
    the alleles are trimmed and left where they are. Substitution, del, dup, ins and delins are
    written; an inversion comes out as delins. The contig keeps the name that the variant gives
    it; HGVS itself asks for an accession with version, such as NC_000001.11.

    Raises:
        EvoDataError: if only one of `fetch` and `contig_length` is given.
    """
    if (fetch is None) != (contig_length is None):
        raise EvoDataError("hgvs_g needs fetch and contig_length together, or neither")
    edit = edit_of(variant)
    if fetch is not None and contig_length is not None:
        edit = right_align(edit, fetch, contig_length)
    where = f"{variant.contig}:g."
    first, last = edit.start + 1, edit.end
    if variant.ref == variant.alt:
        return f"{where}{_span(variant.pos, variant.end)}="
    if not edit.alt:
        return f"{where}{_span(first, last)}del"
    bases = edit.alt.decode("ascii")
    if first <= last:
        if first == last and len(bases) == 1:
            # REF of the record, so that no genome is needed for a substitution.
            return f"{where}{first}{variant.ref[edit.start - variant.start]}>{bases}"
        return f"{where}{_span(first, last)}delins{bases}"
    size = len(bases)
    if fetch and edit.start >= size and fetch(edit.start - size, edit.start) == edit.alt:
        return f"{where}{_span(edit.start - size + 1, edit.start)}dup"
    # HGVS has no name for the place before the first base or behind the last one.
    if edit.start == 0:
        following = fetch(0, 1).decode("ascii") if fetch is not None else variant.ref[0]
        return f"{where}1delins{bases}{following}"
    if edit.start == contig_length and fetch is not None:
        before = fetch(edit.start - 1, edit.start).decode("ascii")
        return f"{where}{edit.start}delins{before}{bases}"
    return f"{where}{edit.start}_{edit.start + 1}ins{bases}"


def _span(first: int, last: int) -> str:
    return str(first) if first == last else f"{first}_{last}"


def _is_pure_indel(edit: Edit) -> bool:
    return (edit.start == edit.end) != (not edit.alt)


def _moved(edit: Edit, offset: int, unit: bytes) -> Edit:
    return Edit(edit.start + offset, edit.end + offset, unit if edit.alt else b"")


def _common_prefix(left: bytes, right: bytes) -> int:
    """Return how many leading bytes of two equally long strings agree."""
    if left == right:
        return len(left)
    low, high = 0, len(left) - 1  # the first difference lies in [low, high]
    while low < high:
        middle = (low + high) // 2
        if left[low : middle + 1] == right[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


def _common_suffix(left: bytes, right: bytes) -> int:
    """Return how many trailing bytes of two equally long strings agree."""
    return _common_prefix(left[::-1], right[::-1])
