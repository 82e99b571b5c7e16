"""Variants written as text on the command line or in a column of a table.

Understood (1-based unless said otherwise; CONTIG may carry `chr` or not):

    chr17-43045711-G-A       gnomAD                  chr17:43045711:G>A    also with a blank or
    chr17_43045711_G_A_b38   GTEx, Open Targets      chr17:43045711G>A     nothing before the bases
    17:43045711:G:A          four fields by colons, of a contig that is no accession with version
    NC_000017.11:43045710:G:A    SPDI: 0-based, `accession.version:position:deleted:inserted`,
                                 the deleted bases as text, as their number, or empty
    chr17:g.43045711G>A      genomic HGVS of a contig or accession: substitution, del, dup, ins,
                             delins, inv and =, with m. for mitochondria

Not understood, since they need transcripts or a database: HGVS `c.`, `n.`, `r.`, `p.`, and rsIDs.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from evo_data.alphabet import reverse_complement
from evo_data.builds import accession, build_named, build_of_lengths
from evo_data.contigs import ContigAliases
from evo_data.errors import ContigError, EvoDataError
from evo_data.fasta import Fasta

EXAMPLES = (
    "chr17-43045711-G-A, chr17:43045711:G>A, NC_000017.11:g.43045711G>A or "
    "NC_000017.11:43045710:G:A (SPDI, 0-based)"
)

_BASES = "[ACGTUNacgtun]"
_ACCESSION = r"[A-Z]{1,6}_?[0-9]+\.[0-9]+"
_HGVS = re.compile(
    r"(?P<contig>\S+?):(?P<kind>[gm])\.(?P<first>\d+)(?:_(?P<last>\d+))?"
    rf"(?:(?P<sub>{_BASES}>{_BASES})"
    rf"|(?P<type>delins|del|dup|ins|inv|=)(?P<bases>{_BASES}*)(?:ins(?P<inserted>{_BASES}+))?)"
)
_OTHER_HGVS = re.compile(r"\S*:?[cnrp]\.\S+")
_SPDI = re.compile(
    rf"(?P<contig>{_ACCESSION}):(?P<pos>\d+):(?P<ref>{_BASES}*|\d+):(?P<alt>{_BASES}*)"
)
_PLAIN = (
    re.compile(rf"(?P<contig>\S+)-(?P<pos>[\d,]+)-(?P<ref>{_BASES}+)-(?P<alt>{_BASES}+)"),
    re.compile(
        rf"(?P<contig>\S+)_(?P<pos>[\d,]+)_(?P<ref>{_BASES}+)[_/](?P<alt>{_BASES}+)"
        r"(?:_(?P<build>b3[78]|hg19|hg38|GRCh37|GRCh38))?"
    ),
    re.compile(rf"(?P<contig>\S+):(?P<pos>[\d,]+)[:\s]*(?P<ref>{_BASES}+)[>/:|](?P<alt>{_BASES}+)"),
    re.compile(rf"(?P<contig>\S+)\s+(?P<pos>[\d,]+)\s+(?P<ref>{_BASES}+)[\s>/]+(?P<alt>{_BASES}+)"),
)


@dataclass(frozen=True, slots=True)
class TextVariant:
    """A variant as VCF would write it.

    Attributes:
        contig: The genome's name of the contig where it has one, else the name as given.
        pos: 1-based.
        ref: Reference bases; as the text gives them, not looked up.
        alt: Alternate bases.
    """

    contig: str
    pos: int
    ref: str
    alt: str


def parse_variant(text: str, genome: Fasta, contigs: ContigAliases) -> TextVariant:
    """Return the variant that a text describes.

    Bases that the text leaves out (those of a deletion, the base before an insertion) come from
    the genome. Those that it gives are not compared with the genome, except where SPDI and a
    1-based spelling could be taken for each other.

    Args:
        text: One variant; blanks around it do not matter.
        genome: The reference.
        contigs: The genome's name for each contig name.

    Raises:
        EvoDataError: if the text is not understood, or what it leaves out is not in the genome.
        ContigError: if it names a contig or build that is not the genome's.
    """
    text = text.strip()
    match = _HGVS.fullmatch(text)
    if match is not None:
        return _hgvs(match, text, genome, contigs)
    match = _SPDI.fullmatch(text)
    if match is not None:
        return _spdi(match, text, genome, contigs)
    if re.fullmatch(r"rs\d+", text):
        raise EvoDataError(
            f"variant {text!r}: an rsID needs a database to look it up; give {EXAMPLES}"
        )
    if _OTHER_HGVS.fullmatch(text):
        raise EvoDataError(
            f"variant {text!r}: of HGVS only genomic descriptions (g., m.) of substitution, del, dup, ins, "
            f"delins and inv are understood; give {EXAMPLES}"
        )
    for pattern in _PLAIN:
        match = pattern.fullmatch(text)
        if match is not None:
            _check_build(match.groupdict().get("build"), text, genome)
            contig = _known(match["contig"], genome, contigs, text, required=False)
            pos = int(match["pos"].replace(",", ""))
            if pos < 1:
                raise EvoDataError(f"variant {text!r}: positions start at 1")
            return TextVariant(contig, pos, _dna(match["ref"]), _dna(match["alt"]))
    if re.fullmatch(rf"\S+:([gm]\.)?\d+{_BASES}", text):
        raise EvoDataError(
            f"variant {text!r} ends before its alternate base; quote it, since > sends output to a file: "
            f"'{text}>A'"
        )
    if ":g." in text or ":m." in text:
        raise EvoDataError(
            f"variant {text!r}: this HGVS description is not understood; substitution, del, dup, ins with "
            "bases, delins, inv and = with known positions are"
        )
    raise EvoDataError(f"variant {text!r} is not understood; write {EXAMPLES}")


def _hgvs(match: re.Match[str], text: str, genome: Fasta, contigs: ContigAliases) -> TextVariant:
    contig = _known(match["contig"], genome, contigs, text, required=not match["sub"])
    first = int(match["first"])
    last = int(match["last"] or first)
    if first < 1 or last < first:
        raise EvoDataError(f"variant {text!r}: positions are 1-based, the lower one first")
    if match["sub"]:
        if match["last"]:
            raise EvoDataError(f"variant {text!r}: a substitution has one position; use delins")
        ref, alt = _dna(match["sub"]).split(">")
        return TextVariant(contig, first, ref, alt)
    if last > genome.lengths[contig]:
        raise EvoDataError(f"variant {text!r}: {contig} has only {genome.lengths[contig]:,} bases")
    there = genome.fetch(contig, first - 1, last).decode()
    given = _dna(match["bases"])
    inserted = _dna(match["inserted"] or "")
    kind = match["type"]
    if kind == "del" and inserted:  # delAinsG, the old spelling of delins
        kind, given, inserted = "delins", inserted, given
    elif kind == "delins":
        inserted = ""
    if kind == "ins":
        if not given or match["inserted"]:
            raise EvoDataError(f"variant {text!r}: ins needs the inserted bases, as in ins{'ACGT'}")
        if last != first + 1:
            raise EvoDataError(
                f"variant {text!r}: an insertion lies between two neighbours, as in 100_101insA"
            )
        return _anchored(genome, contig, first, "", given)
    stated = inserted if kind == "delins" else given
    if stated and kind != "=" and len(stated) != last - first + 1:
        raise EvoDataError(
            f"variant {text!r}: {len(stated)} bases are written for {last - first + 1} positions"
        )
    ref = stated or there
    if kind == "=":
        return TextVariant(contig, first, there, there)
    if kind == "delins":
        if not given:
            raise EvoDataError(f"variant {text!r}: delins needs the inserted bases")
        return TextVariant(contig, first, ref, given)
    if kind == "inv":
        return TextVariant(contig, first, ref, reverse_complement(ref.encode()).decode())
    if kind == "dup":
        if ref != there:
            raise EvoDataError(
                f"variant {text!r}: the genome has {there[:20]} there, not {ref[:20]}"
            )
        return _anchored(genome, contig, last, "", ref)
    return _anchored(genome, contig, first - 1, ref, "")


def _spdi(match: re.Match[str], text: str, genome: Fasta, contigs: ContigAliases) -> TextVariant:
    contig = _known(match["contig"], genome, contigs, text, required=True)
    start, deleted, alt = int(match["pos"]), match["ref"], _dna(match["alt"])
    length = genome.lengths[contig]
    size = int(deleted) if deleted.isdigit() else len(deleted)
    if start + size > length:
        raise EvoDataError(f"variant {text!r}: {contig} has only {length:,} bases")
    there = genome.fetch(contig, start, start + size).decode()
    ref = there if deleted.isdigit() else _dna(deleted)
    if (
        ref != there
        and start > 0
        and genome.fetch(contig, start - 1, start - 1 + size) == ref.encode()
    ):
        raise EvoDataError(
            f"variant {text!r} reads as SPDI, whose positions are 0-based, and the genome has {there} there, "
            f"not {ref}; counted from 1 it would fit: write {match['contig']}-{start}-{ref}-{alt or '...'}"
        )
    if ref and alt:
        return TextVariant(contig, start + 1, ref, alt)
    return _anchored(genome, contig, start, ref, alt)


def _anchored(genome: Fasta, contig: str, start: int, ref: str, alt: str) -> TextVariant:
    """Return the replacement of `ref`, 0-based at `start`, by `alt`, with the base that VCF wants."""
    if start > 0:
        anchor = genome.fetch(contig, start - 1, start).decode()
        return TextVariant(contig, start, anchor + ref, anchor + alt)
    after = start + len(ref)
    anchor = genome.fetch(contig, after, min(after + 1, genome.lengths[contig])).decode()
    if not anchor:
        raise EvoDataError(f"a deletion of the whole contig {contig} cannot be scored")
    return TextVariant(contig, start + 1, ref + anchor, alt + anchor)


def _known(
    name: str, genome: Fasta, contigs: Mapping[str, str], text: str, *, required: bool
) -> str:
    """Return the genome's name of a contig, or the name itself where it is not required."""
    found = contigs.get(name)
    if found is not None:
        return found
    known = accession(name)
    if known is not None:
        stem, length = known
        raise ContigError(
            f"variant {text!r}: {name} is a human chromosome {stem} of {length:,} bases, and {genome.path.name} "
            f"({build_of_lengths(genome.lengths) or 'of an unknown build'}) has none such"
        )
    if required:
        raise ContigError(
            f"variant {text!r}: {genome.path.name} has no contig {name!r}; it has "
            f"{', '.join(list(genome.lengths)[:8])}"
        )
    return name


def _check_build(given: str | None, text: str, genome: Fasta) -> None:
    if given is None:
        return
    wanted, is_one = build_named(given), build_of_lengths(genome.lengths)
    if is_one is not None and wanted != is_one:
        raise ContigError(
            f"variant {text!r} is on {wanted}, but {genome.path.name} has the contig lengths of {is_one}"
        )


def _dna(bases: str) -> str:
    return bases.upper().replace("U", "T")
