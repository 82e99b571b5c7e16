"""Symbolic alleles as bases, where the record says enough: <DEL>, <DUP>, <INV> and <INS>.

POS is the base before the event, as VCF wants it for symbolic alleles; the event is POS+1 to END.
`<DUP>` and `<DUP:TANDEM>` put a second copy right behind the first (VCF 4.4, section 5.5);
`<INV>` is replaced by its reverse complement; `<INS>` needs its bases in INFO (SVINSSEQ, INSSEQ or
SEQ). Subtypes that name no sequence (`<DEL:ME:ALU>`) mean the same as the type, except for `<INS:...>`
and `<DUP:...>`. What stays unresolved, with status `symbolic`: `<NON_REF>`, `<*>`, `<CNV>`, any other
name, a record marked IMPRECISE, one without END and SVLEN, and one in which the two disagree.
"""

from __future__ import annotations

import re

from evo_data.alphabet import is_acgtn, reverse_complement
from evo_data.variant import AlleleStatus, Fetch, Variant
from evo_data.vcf import VcfRecord

_KIND = re.compile(r"<(?:(DEL|INV)(?::[^>]*)?|(DUP)(?::TANDEM)?|(INS))>", re.IGNORECASE)
_INSERTED = ("SVINSSEQ", "INSSEQ", "SEQ")


def resolve(
    record: VcfRecord, number: int, fetch: Fetch, contig_length: int, *, max_allele: int
) -> Variant | AlleleStatus:
    """Return a symbolic allele as bases, or why that cannot be done.

    Args:
        record: The record.
        number: Index of the allele in its ALT.
        fetch: Reads the contig, `fetch(start, end)`, 0-based half-open.
        contig_length: Length of the contig, in bases.
        max_allele: Longest event, in bases; a longer one is not fetched.

    Returns:
        The variant on the record's contig; else `symbolic`, `too_long`, `out_of_range`,
        `ref_mismatch` (REF, unless N, is not the base before the event), or `malformed`.
    """
    match = _KIND.fullmatch(record.alts[number])
    info = _info(record)
    if match is None or "IMPRECISE" in info:
        return AlleleStatus.SYMBOLIC
    kind = "".join(group or "" for group in match.groups()).upper()
    if record.pos < 1 or record.pos > contig_length:
        return AlleleStatus.OUT_OF_RANGE
    if kind == "INS":
        bases = next((info[key] for key in _INSERTED if info.get(key)), "")
        if not bases or not is_acgtn(bases) or len(record.alts) > 1:
            return AlleleStatus.SYMBOLIC
        size = 0
    else:
        found = _size(record, number, info)
        if found is None:
            return AlleleStatus.SYMBOLIC
        bases, size = "", found
    if max(size, len(bases)) > max_allele:
        return AlleleStatus.TOO_LONG
    if record.pos + size > contig_length:
        return AlleleStatus.OUT_OF_RANGE
    text = fetch(record.pos - 1, record.pos + size).decode()
    before, event = text[0], text[1:]
    if record.ref.upper()[0] not in (before, "N"):
        return AlleleStatus.REF_MISMATCH
    ref, alt = {
        "DEL": (text, before),
        "DUP": (before, text),
        "INV": (text, before + reverse_complement(event.encode()).decode()),
        "INS": (before, before + bases.upper()),
    }[kind]
    return Variant(record.contig, record.pos, ref, alt)


def _info(record: VcfRecord) -> dict[str, str]:
    pairs = record.info.decode("utf-8", "replace").split(";")
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


def _size(record: VcfRecord, number: int, info: dict[str, str]) -> int | None:
    """Return the length of the event; None where nothing or too much is said about it."""
    sizes: list[int] = []
    lengths = info.get("SVLEN", "").split(",")
    if number < len(lengths):
        length = lengths[number].lstrip("+-")
        # Some callers write 0 where they know no length, of an inversion for one.
        if length.isdecimal() and int(length) > 0:
            sizes.append(int(length))
    end = info.get("END", "")
    # END is that of the longest allele where there are several.
    if end.isdecimal() and (len(record.alts) == 1 or not sizes):
        if len(record.alts) > 1:
            return None
        sizes.append(int(end) - record.pos)
    if not sizes or sizes[0] < 1 or len(set(sizes)) > 1:
        return None
    return sizes[0]
