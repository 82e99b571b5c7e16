"""Make the demo input (FASTA with index, GFF3, VCF) from a GenBank record of a chloroplast.

    python data/scripts/make_demo.py --genbank NC_000932.gb --out data/evo_data/demo

Everything is derived from the record and from the constants below; nothing is random, so that the
same record gives the same bytes. Coordinates in this file are 0-based half-open unless a name says
`pos` (1-based, as in VCF and GFF3). The consequence of an allele is what Biopython's translation
table 11 says of the edited coding sequence.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from Bio import SeqIO
from Bio.Data import CodonTable
from Bio.Seq import Seq
from Bio.SeqFeature import SeqFeature, SimpleLocation
from Bio.SeqRecord import SeqRecord

TABLE = 11  # bacterial, archaeal and plant plastid code
LINE_BASES = 60
FLANK_BASES = 200  # this close to a gene, an allele is upstream or downstream of it
FLANK_INDEL_DISTANCE = 50  # where the indels beside a gene are made
SITES_PER_GENE = 15
GENES = ("rbcL", "psbA")  # the first on the plus strand of the record, the second on the minus

# What the sites of a gene are chosen for, in turn: the positions in the codon (1 to 3) to try, and
# the consequence that at least one alternate must have. Taken blindly, hardly any allele would be
# nonsense.
SITE_CYCLE = (
    ((3,), "synonymous"),
    ((1,), "nonsense"),
    ((2,), "missense"),
    ((3,), "synonymous"),
    ((2, 3, 1), "nonsense"),
    ((1,), "missense"),
)


@dataclass(frozen=True)
class IndelPlan:
    """An indel to make: `length` bases put in (positive) or taken out (negative).

    Attributes:
        gene: The gene in or beside which it lies.
        place: "codon N" (before that 1-based codon), "homopolymer" (at the longest run of the
            coding sequence), "upstream", "downstream", or "intergenic" (half way to the gene that
            precedes it in the record).
        lengths: One number per alternate allele of the record. What is inserted repeats the bases
            that follow it on the plus strand.
    """

    gene: str
    place: str
    lengths: tuple[int, ...]


INDELS = (
    IndelPlan("rbcL", "homopolymer", (-1, 1)),
    IndelPlan("rbcL", "codon 90", (-3,)),
    IndelPlan("rbcL", "codon 210", (3,)),
    IndelPlan("rbcL", "codon 330", (-4,)),
    IndelPlan("rbcL", "upstream", (-2,)),
    IndelPlan("rbcL", "intergenic", (5,)),
    IndelPlan("psbA", "homopolymer", (-1,)),
    IndelPlan("psbA", "codon 120", (-6,)),
    IndelPlan("psbA", "codon 240", (2,)),
    IndelPlan("psbA", "downstream", (4,)),
)


@dataclass(frozen=True)
class Site:
    """One VCF record. `pos` is 1-based; the tuples hold one entry per alternate allele."""

    pos: int
    name: str
    ref: str
    alts: tuple[str, ...]
    gene: str | None
    consequences: tuple[str, ...]
    proteins: tuple[str, ...]
    codon_position: int | None


def write_fasta(record: SeqRecord, path: Path) -> None:
    """Write the record as FASTA, 60 bases a line, and its samtools index beside it as `.fai`."""
    sequence = str(record.seq)
    title = f">{record.id} {record.description.rstrip('.')}\n"
    lines = [sequence[start : start + LINE_BASES] for start in range(0, len(sequence), LINE_BASES)]
    path.write_text(title + "\n".join(lines) + "\n", encoding="ascii", newline="\n")
    index = (record.id, len(sequence), len(title), LINE_BASES, LINE_BASES + 1)
    fai = path.with_name(path.name + ".fai")
    fai.write_text("\t".join(map(str, index)) + "\n", encoding="ascii", newline="\n")


def write_gff3(record: SeqRecord, path: Path) -> None:
    """Write genes, CDS with phase, tRNA and rRNA (each with its exons) of the record as GFF3.

    Lines are sorted by position, a parent before its children.
    """
    header = ["##gff-version 3", f"##sequence-region {record.id} 1 {len(record.seq)}"]
    lines = [line for feature in record.features for line in gff3_lines(str(record.id), feature)]
    lines.sort(key=_start_then_longest)
    path.write_text("\n".join(header + lines) + "\n", encoding="ascii", newline="\n")


def _start_then_longest(line: str) -> tuple[int, int]:
    start, end = line.split("\t")[3:5]
    return int(start), -int(end)


def gff3_lines(contig: str, feature: SeqFeature) -> list[str]:
    """Return the GFF3 lines of one feature.

    A CDS has one line per exon under one ID, in the order of translation. So has a trans-spliced
    gene, whose pieces lie far apart and may be on both strands: its lines and those of its CDS are
    numbered by `part` in that order, and each carries its own strand. An RNA is one line over its
    whole extent, with one `exon` per piece.
    """
    qualifiers = feature.qualifiers
    parts = list(feature.location.parts)  # in the order of transcription, on either strand
    attributes: dict[str, Sequence[str]] = {}
    if feature.type == "source":
        attributes = {
            "ID": [contig],
            "Dbxref": qualifiers["db_xref"],
            "Is_circular": ["true"],
            "Note": [f"{qualifiers['organism'][0]} {qualifiers['organelle'][0]}"],
        }
        return [_gff3_line(contig, "region", parts[0], "+", ".", attributes)]

    tag = qualifiers["locus_tag"][0]
    trans_spliced = "trans_splicing" in qualifiers
    gene_id = f"gene-{tag}"
    feature_id = {
        "gene": gene_id,
        "CDS": f"cds-{qualifiers.get('protein_id', [tag])[0]}",
    }.get(feature.type, f"rna-{tag}")
    attributes["ID"] = [feature_id]
    if feature.type != "gene":
        attributes["Parent"] = [gene_id]
    attributes["Dbxref"] = qualifiers["db_xref"]
    attributes["Name"] = qualifiers.get("gene", [tag])
    if "gene" in qualifiers:
        attributes["gene"] = qualifiers["gene"]
    attributes["locus_tag"] = [tag]
    if "product" in qualifiers:
        attributes["product"] = qualifiers["product"]
    if "protein_id" in qualifiers:
        attributes["protein_id"] = qualifiers["protein_id"]
        attributes["transl_table"] = qualifiers["transl_table"]
    if trans_spliced:
        attributes["exception"] = ["trans-splicing"]
    elif "exception" in qualifiers:
        attributes["exception"] = qualifiers["exception"]

    if feature.type == "CDS" or (feature.type == "gene" and trans_spliced):
        lines = []
        before = -(int(qualifiers.get("codon_start", ["1"])[0]) - 1)
        for number, part in enumerate(parts, start=1):
            phase = str(-before % 3) if feature.type == "CDS" else "."
            numbered = {**attributes, "part": [str(number)]} if trans_spliced else attributes
            lines.append(_gff3_line(contig, feature.type, part, _strand(part), phase, numbered))
            before += len(part)
        return lines

    whole = SimpleLocation(min(p.start for p in parts), max(p.end for p in parts))
    lines = [_gff3_line(contig, feature.type, whole, _strand(parts[0]), ".", attributes)]
    if feature.type != "gene":
        for number, part in enumerate(parts, start=1):
            exon = {"ID": [f"exon-{tag}-{number}"], "Parent": [feature_id], "locus_tag": [tag]}
            lines.append(_gff3_line(contig, "exon", part, _strand(part), ".", exon))
    return lines


def _gff3_line(
    contig: str,
    kind: str,
    part: SimpleLocation,
    strand: str,
    phase: str,
    attributes: Mapping[str, Sequence[str]],
) -> str:
    text = ";".join(
        f"{key}={','.join(_percent_encode(value) for value in values)}"
        for key, values in attributes.items()
    )
    span = (str(int(part.start) + 1), str(int(part.end)))
    return "\t".join((contig, "RefSeq", kind, *span, ".", strand, phase, text))


def _percent_encode(text: str) -> str:
    """Return text with the characters that GFF3 reserves in column 9 encoded."""
    return "".join(f"%{ord(c):02X}" if c in "%;=&,\t\n\r" else c for c in text)


def _strand(part: SimpleLocation) -> str:
    return "-" if part.strand == -1 else "+"


def find_cds(record: SeqRecord, gene: str) -> SeqFeature:
    """Return the CDS of a gene; it must be one piece and translate to what the record says."""
    (cds,) = (f for f in record.features if f.type == "CDS" and f.qualifiers.get("gene") == [gene])
    if len(cds.location.parts) != 1:
        raise ValueError(f"{gene} has introns; choose a gene whose CDS is one piece")
    protein = str(cds.extract(record.seq).translate(table=TABLE, cds=True))
    if protein != cds.qualifiers["translation"][0]:
        raise ValueError(f"{gene} does not translate to the protein that the record gives")
    return cds


def consequence(sequence: Seq, cds: SeqFeature, start: int, end: int, alt: str) -> tuple[str, str]:
    """Return what replacing `sequence[start:end]` by `alt` does to a coding sequence, and to it.

    Args:
        sequence: The plus strand of the contig.
        cds: A CDS of one piece that contains [start, end).
        start: First replaced base, 0-based.
        end: End of the replaced bases; equal to `start` for an insertion.
        alt: What stands there instead, plus strand.

    Returns:
        The consequence, and for a substitution the change of the protein such as `K14N`, `K14*`
        or `K14K` (`.` otherwise).
    """
    location = cds.location
    edited = sequence[:start] + alt + sequence[end:]
    moved = SimpleLocation(
        location.start, location.end + len(alt) - (end - start), strand=location.strand
    )
    ref_cds = cds.extract(sequence)
    alt_cds = moved.extract(edited)
    if (len(alt_cds) - len(ref_cds)) % 3:
        return "frameshift", "."
    if str(alt_cds[:3]) not in CodonTable.unambiguous_dna_by_id[TABLE].start_codons:
        return "start_lost", "."
    ref_protein = str(ref_cds.translate(table=TABLE))
    alt_protein = str(alt_cds.translate(table=TABLE))
    if "*" not in alt_protein:
        return "stop_lost", "."
    if len(alt_protein) != len(ref_protein):
        if alt_protein.index("*") < len(alt_protein) - 1:
            return "nonsense", "."
        kind = "inframe_insertion" if len(alt) > end - start else "inframe_deletion"
        return kind, "."
    codon = _codon(cds, start)
    change = f"{ref_protein[codon]}{codon + 1}{alt_protein[codon]}"
    if alt_protein == ref_protein:
        return "synonymous", change
    if alt_protein.index("*") < ref_protein.index("*"):
        return "nonsense", change
    return "missense", change


def _codon(cds: SeqFeature, index: int) -> int:
    """Return the 0-based codon that a base of the contig lies in."""
    location = cds.location
    offset = index - location.start if location.strand == 1 else location.end - 1 - index
    return int(offset) // 3


def _index_in_contig(cds: SeqFeature, offset: int) -> int:
    """Return the contig index of the base at `offset` in a CDS of one piece."""
    location = cds.location
    return int(location.start + offset if location.strand == 1 else location.end - 1 - offset)


def coding_sites(record: SeqRecord, gene: str) -> Iterator[Site]:
    """Yield sites with all three alternates: the start codon of rbcL, then evenly over a gene."""
    cds = find_cds(record, gene)
    num_codons = len(cds) // 3 - 1  # without the stop codon
    if gene == GENES[0]:
        yield _substitutions(record, cds, gene, offset=1)
    for number in range(SITES_PER_GENE - (gene == GENES[0])):
        positions, kind = SITE_CYCLE[number % len(SITE_CYCLE)]
        low = 1 + number * (num_codons - 1) // SITES_PER_GENE
        high = 1 + (number + 1) * (num_codons - 1) // SITES_PER_GENE
        codons = sorted(range(low, high), key=lambda c: (abs(2 * c - low - high), c))
        yield next(
            site
            for position in positions
            for codon in codons
            if kind
            in (site := _substitutions(record, cds, gene, 3 * codon + position - 1)).consequences
        )


def _substitutions(record: SeqRecord, cds: SeqFeature, gene: str, offset: int) -> Site:
    """Return the site at a base of a CDS with its three alternates, in alphabetical order."""
    index = _index_in_contig(cds, offset)
    ref = str(record.seq[index])
    alts = tuple(base for base in "ACGT" if base != ref)
    found = [consequence(record.seq, cds, index, index + 1, alt) for alt in alts]
    return Site(
        pos=index + 1,
        name=f"{gene}_{offset + 1}",
        ref=ref,
        alts=alts,
        gene=gene,
        consequences=tuple(kind for kind, _ in found),
        proteins=tuple(change for _, change in found),
        codon_position=offset % 3 + 1,
    )


def indel_site(record: SeqRecord, plan: IndelPlan) -> Site:
    """Return the record of a planned indel, left-aligned, with one anchor base before it."""
    sequence = str(record.seq)
    cds = find_cds(record, plan.gene)
    index = _indel_index(record, cds, plan.place)
    edits = [left_align(sequence, *_edit(sequence, index, length)) for length in plan.lengths]
    anchor = edits[0][0] - 1
    if any(start - 1 != anchor for start, _, _ in edits):
        raise ValueError(f"the alleles of {plan} do not share an anchor base")
    last = max(end for _, end, _ in edits)
    alts = tuple(sequence[anchor] + alt + sequence[end:last] for _, end, alt in edits)
    found = [_place_or_consequence(record, plan.gene, *edit) for edit in edits]
    intergenic = plan.place == "intergenic"
    return Site(
        pos=anchor + 1,
        name="intergenic" if intergenic else f"{plan.gene}_{plan.place.replace(' ', '_')}",
        ref=sequence[anchor:last],
        alts=alts,
        gene=None if intergenic else plan.gene,
        consequences=tuple(found),
        proteins=(".",) * len(alts),
        codon_position=None,
    )


def _indel_index(record: SeqRecord, cds: SeqFeature, place: str) -> int:
    """Return the contig index at which a planned indel is made."""
    location = cds.location
    plus = location.strand == 1
    if place == "homopolymer":
        start, _ = longest_run(str(record.seq[location.start : location.end]))
        return int(location.start) + start
    if place in ("upstream", "downstream"):
        before = plus == (place == "upstream")
        if before:
            return int(location.start) - FLANK_INDEL_DISTANCE
        return int(location.end) + FLANK_INDEL_DISTANCE
    if place == "intergenic":
        ends = [int(f.location.end) for f in record.features if f.type == "gene"]
        previous = max(end for end in ends if end <= location.start)
        return (previous + int(location.start)) // 2
    codon = int(place.removeprefix("codon ")) - 1
    return min(_index_in_contig(cds, 3 * codon), _index_in_contig(cds, 3 * codon + 2))


def _edit(sequence: str, index: int, length: int) -> tuple[int, int, str]:
    """Return (start, end, alt) of an indel at an index; an insertion repeats what follows."""
    if length < 0:
        return index, index - length, ""
    return index, index, sequence[index : index + length]


def longest_run(sequence: str) -> tuple[int, int]:
    """Return start and length of the first longest run of one base."""
    best = (0, 0)
    start = 0
    for index in range(1, len(sequence) + 1):
        if index == len(sequence) or sequence[index] != sequence[start]:
            if index - start > best[1]:
                best = (start, index - start)
            start = index
    return best


def left_align(sequence: str, start: int, end: int, alt: str) -> tuple[int, int, str]:
    """Return a pure insertion or deletion moved to the lowest coordinate that it can have."""
    allele = alt or sequence[start:end]
    size = end - start
    while start > 1 and sequence[start - 1] == allele[-1]:
        allele = sequence[start - 1] + allele[:-1]
        start -= 1
    return start, start + size, allele if alt else ""


def _place_or_consequence(record: SeqRecord, gene: str, start: int, end: int, alt: str) -> str:
    """Return the coding consequence of an edit, or where it lies when it is outside every gene."""
    cds = find_cds(record, gene)
    low, high = int(cds.location.start), int(cds.location.end)
    if low < start and end < high:
        return consequence(record.seq, cds, start, end, alt)[0]
    for feature in record.features:
        if feature.type == "gene" and any(
            start <= part.end and end >= part.start for part in feature.location.parts
        ):
            raise ValueError(f"the edit at {start} touches {feature.qualifiers['locus_tag'][0]}")
    before = end <= low and low - end < FLANK_BASES
    after = start >= high and start - high < FLANK_BASES
    if not (before or after):
        return "intergenic"
    return "upstream" if before == (cds.location.strand == 1) else "downstream"


def write_vcf(record: SeqRecord, sites: Sequence[Site], path: Path) -> None:
    """Write the sites as VCFv4.3, sorted by position."""
    kinds = ", ".join(sorted({kind for site in sites for kind in site.consequences}))
    organism = record.annotations["organism"]
    lines = [
        "##fileformat=VCFv4.3",
        "##source=make_demo.py",
        "##reference=NC_000932.fa",
        f'##contig=<ID={record.id},length={len(record.seq)},species="{organism}">',
        '##INFO=<ID=GENE,Number=1,Type=String,Description="Gene that the site lies in or beside">',
        '##INFO=<ID=CONSEQUENCE,Number=A,Type=String,Description="Consequence of each alternate'
        f" allele by translation table {TABLE} from the CDS of the GenBank record, or its place"
        f' within {FLANK_BASES} bases of the gene. One of: {kinds}">',
        '##INFO=<ID=PROTEIN,Number=A,Type=String,Description="Amino acid of the reference, its'
        ' 1-based number, amino acid of the alternate (* is stop)">',
        '##INFO=<ID=CODON_POSITION,Number=1,Type=Integer,Description="Position of the site in its'
        ' codon, 1 to 3">',
        "#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO",
    ]
    for site in sorted(sites, key=lambda site: site.pos):
        info = [f"GENE={site.gene}"] if site.gene else []
        info.append(f"CONSEQUENCE={','.join(site.consequences)}")
        if site.codon_position is not None:
            if any(change != "." for change in site.proteins):
                info.append(f"PROTEIN={','.join(site.proteins)}")
            info.append(f"CODON_POSITION={site.codon_position}")
        columns = (record.id, site.pos, site.name, site.ref, ",".join(site.alts), ".", ".")
        lines.append("\t".join((*map(str, columns), ";".join(info))))
    path.write_text("\n".join(lines) + "\n", encoding="ascii", newline="\n")


def make_demo(genbank: Path, out: Path) -> None:
    """Write the four demo files for a GenBank record into the folder `out`, replacing them."""
    record = SeqIO.read(genbank, "genbank")
    sites = [site for gene in GENES for site in coding_sites(record, gene)]
    sites += [indel_site(record, plan) for plan in INDELS]
    out.mkdir(parents=True, exist_ok=True)
    write_fasta(record, out / "NC_000932.fa")
    write_gff3(record, out / "NC_000932.gff3")
    write_vcf(record, sites, out / "rbcL_psbA.vcf")


def main() -> None:
    """Read the command line and make the files."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--genbank", type=Path, required=True, help="NC_000932.gb")
    parser.add_argument("--out", type=Path, required=True, help="folder for the files")
    arguments = parser.parse_args()
    make_demo(arguments.genbank, arguments.out)


if __name__ == "__main__":
    main()
