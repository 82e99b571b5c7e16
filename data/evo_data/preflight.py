"""Is this the genome that the variants were called on? Asked before anything expensive.

Two figures tell: the contig lengths that the variant file declares against those of the genome,
and how often REF of the first records is what the genome holds there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from evo_data.builds import build_named, build_of_length, build_of_lengths
from evo_data.contigs import ContigAliases
from evo_data.errors import ContigError
from evo_data.fasta import Fasta
from evo_data.variant import AlleleStatus, classify_allele
from evo_data.vcf import VcfHeader, VcfRecord

CHECKED_RECORDS = 1000
"""So many records, from the first, have their REF looked up."""

MAX_REF_MISMATCH = 0.05
"""The largest share of them that may differ from the genome."""

# Odd records in a short list are odd records, and each gets its status; of another build three in
# four differ.
_SHORT_LIST = 20
_SHORT_LIST_LIMIT = 0.5
_FEWEST_MISMATCHES = 3


@dataclass
class RefCheck:
    """REF of the first records against the genome.

    Attributes:
        checked: Records with a REF of A, C, G, T and N on a known contig.
        mismatched: Those whose REF is not what the genome holds there.
        swapped: Mismatched ones of which the genome holds ALT.
        unknown: Mismatched ones where the genome holds only N.
        outside: Mismatched ones that lie behind the end of the contig.
        example: The first of the mismatched, for people.
    """

    checked: int = 0
    mismatched: int = 0
    swapped: int = 0
    unknown: int = 0
    outside: int = 0
    example: str = ""
    contigs: set[str] = field(default_factory=set)

    @property
    def share(self) -> float:
        """Mismatched records among those checked, 0 to 1."""
        return self.mismatched / self.checked if self.checked else 0.0


def ref_differs(record: VcfRecord, genome: Fasta, contig: str) -> bool | None:
    """Return whether REF is something else than what the genome holds; None if it has no bases.

    REF that reaches behind the end of the contig, or POS 0 with a base, differs. REF `N` of a
    record whose alternates are all symbolic says nothing, and so agrees.

    Args:
        contig: The genome's name for the record's contig.
    """
    if classify_allele(record.ref, record.ref) is not AlleleStatus.OK:
        return None
    ref = record.ref.upper()
    if not ref.strip("N") and all(alt.startswith("<") for alt in record.alts):
        return None
    if record.pos == 0 or record.pos - 1 + len(ref) > genome.lengths[contig]:
        return True
    return genome.fetch(contig, record.pos - 1, record.pos - 1 + len(ref)) != ref.encode()


def check_refs(records: Iterable[VcfRecord], genome: Fasta, contigs: Mapping[str, str]) -> RefCheck:
    """Count how often REF of some records differs from the genome."""
    found = RefCheck()
    for record in records:
        found.contigs.add(record.contig)
        contig = contigs.get(record.contig)
        differs = None if contig is None else ref_differs(record, genome, contig)
        if contig is None or differs is None:
            continue
        found.checked += 1
        if not differs:
            continue
        found.mismatched += 1
        start, length = record.pos - 1, genome.lengths[contig]
        end = start + len(record.ref)
        there = genome.fetch(contig, max(0, min(start, length)), min(end, length))
        if start < 0 or end > length:
            found.outside += 1
        elif not there.strip(b"N"):
            found.unknown += 1
        else:
            found.swapped += any(
                start + len(alt) <= length
                and genome.fetch(contig, start, start + len(alt)) == alt.upper().encode()
                for alt in record.alts
                if classify_allele(alt, alt) is AlleleStatus.OK
            )
        if not found.example:
            shown = there[:20].decode() or "nothing"
            found.example = (
                f"{record.contig}:{record.pos} has REF {record.ref[:20]}, the genome {shown}"
            )
    return found


def check_build(
    header: VcfHeader,
    first: Iterable[VcfRecord],
    names: Iterable[str],
    genome: Fasta,
    contigs: ContigAliases,
    *,
    max_ref_mismatch: float | None = None,
) -> list[str]:
    """Refuse variants of another build than the genome's.

    Args:
        header: Of the variants.
        first: Their first records (`CHECKED_RECORDS`).
        names: Contigs that have records; only these need the genome's length.
        genome: The reference.
        contigs: The genome's name for each contig name of the variants.
        max_ref_mismatch: Largest share of records whose REF may differ, 0 to 1. None: 0.05 (0.5 of
            fewer than 20 records, and three at least), and declared lengths must be the genome's;
            a number takes the user's word for the lengths.

    Returns:
        What to warn of: lengths that differ although the user wants to go on.

    Raises:
        ContigError: with the figures and the likely builds.
    """
    warnings = []
    differing = [(name, found) for name in names if (found := contigs.disagreement(name))]
    if differing:
        text = _lengths_text(differing, header, genome)
        if max_ref_mismatch is None:
            raise ContigError(
                f"{text}; score against the genome the variants were called on, or accept it with "
                "--max-ref-mismatch"
            )
        warnings.append(text)
    refs = check_refs(first, genome, contigs)
    limit = max_ref_mismatch
    if limit is None:
        limit = _SHORT_LIST_LIMIT if refs.checked < _SHORT_LIST else MAX_REF_MISMATCH
    enough = max_ref_mismatch is not None or refs.mismatched >= _FEWEST_MISMATCHES
    if refs.share > limit and enough:
        raise ContigError(_refs_text(refs, limit, header, genome))
    return warnings


def _lengths_text(
    differing: list[tuple[str, tuple[str, int, int]]], header: VcfHeader, genome: Fasta
) -> str:
    name, (contig, declared, length) = differing[0]
    more = f" (and {len(differing) - 1} more contigs differ)" if len(differing) > 1 else ""
    return (
        f"contig {name} has {declared:,} bases in the header of the variants, {contig} has "
        f"{length:,} in {genome.path.name}{more}: the variants look like "
        f"{build_of_length(name, declared) or _build_of_header(header) or 'an unknown build'}, the "
        f"genome like {build_of_length(contig, length) or _build_of_genome(genome) or 'an unknown build'}"
    )


def _refs_text(found: RefCheck, limit: float, header: VcfHeader, genome: Fasta) -> str:
    remarks = [
        f"{count:,} {what}"
        for count, what in (
            (found.swapped, "hold ALT there (REF and ALT exchanged?)"),
            (found.unknown, "lie where the genome has only N"),
            (found.outside, "lie outside of the contig"),
        )
        if count
    ]
    return (
        f"REF differs from {genome.path.name} at {found.mismatched:,} of the first {found.checked:,} "
        f"records ({found.share:.1%}, limit {limit:.1%})"
        + (f", of which {', '.join(remarks)}" if remarks else "")
        + f"; for example {found.example}; wrong build? The variants look like "
        f"{_build_of_header(header) or 'an unknown build'}, the genome like "
        f"{_build_of_genome(genome) or 'an unknown build'}; score against the genome the variants "
        "were called on, or allow more with --max-ref-mismatch"
    )


def _build_of_header(header: VcfHeader) -> str | None:
    by_length = build_of_lengths(header.contigs)
    if by_length:
        return by_length
    for line in header.lines[:-1]:
        if line.startswith((b"##reference", b"##assembly", b"##contig")):
            named = build_named(line.decode("utf-8", "replace"))
            if named:
                return named
    return None


def _build_of_genome(genome: Fasta) -> str | None:
    return build_of_lengths(genome.lengths) or build_named(Path(genome.path).name)
