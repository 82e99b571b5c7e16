"""The shipped demo files agree with one another and with what PROVENANCE.md says of them.

The consequences were computed from the GenBank record with Biopython. Here they are worked out again
from the FASTA and the GFF3 alone, with a genetic code written out by hand.
"""

import hashlib
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pysam
import pytest

from evo_data.demo_data import demo_file

CONTIG = "NC_000932.1"
LENGTH = 154_478
COMPLEMENT = str.maketrans("ACGT", "TGCA")

# Table 11, codons in the order TTT, TTC, TTA, TTG, TCT, ... (bases in the order T, C, A, G).
AMINO_ACIDS = "FFLLSSSSYY**CC*WLLLLPPPPHHQQRRRRIIIMTTTTNNKKSSRRVVVVAAAADDEEGGGG"
START_CODONS = {"TTG", "CTG", "ATT", "ATC", "ATA", "ATG", "GTG"}


@dataclass(frozen=True)
class Row:
    """One line of the GFF3: 1-based inclusive coordinates."""

    kind: str
    start: int
    end: int
    strand: str
    phase: str
    attributes: dict[str, str]


@pytest.fixture(scope="module")
def genome() -> str:
    """The contig, read without the index."""
    title, *lines = demo_file("NC_000932.fa").read_text().splitlines()
    assert title.split()[0] == f">{CONTIG}"
    assert {len(line) for line in lines[:-1]} == {60}
    return "".join(lines)


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    """The lines of the GFF3."""
    lines = demo_file("NC_000932.gff3").read_text().splitlines()
    assert lines[:2] == ["##gff-version 3", f"##sequence-region {CONTIG} 1 {LENGTH}"]
    found = []
    for line in lines[2:]:
        contig, source, kind, start, end, score, strand, phase, attributes = line.split("\t")
        assert (contig, source, score) == (CONTIG, "RefSeq", ".")
        pairs = dict(pair.split("=") for pair in attributes.split(";"))
        found.append(Row(kind, int(start), int(end), strand, phase, pairs))
    return found


@pytest.fixture(scope="module")
def records() -> list[pysam.VariantRecord]:
    """The records of the VCF, read by htslib."""
    with pysam.VariantFile(str(demo_file("rbcL_psbA.vcf"))) as handle:
        lengths = {name: contig.length for name, contig in handle.header.contigs.items()}
        assert lengths == {CONTIG: LENGTH}
        assert handle.header.version == "VCFv4.3"
        assert handle.header.info["CONSEQUENCE"].number == "A"
        return list(handle)


def translate(cds: str) -> str:
    """Translate up to the last whole codon, stops as `*`."""
    order = "TCAG"
    return "".join(
        AMINO_ACIDS[16 * order.index(a) + 4 * order.index(b) + order.index(c)]
        for a, b, c in zip(cds[0::3], cds[1::3], cds[2::3], strict=False)
    )


def gene_span(rows: list[Row], gene: str) -> Row:
    """Return the one CDS line of a gene."""
    (row,) = (r for r in rows if r.kind == "CDS" and r.attributes.get("gene") == gene)
    assert row.phase == "0"
    return row


def coding(genome: str, row: Row) -> str:
    """Return the coding strand of a span."""
    plus = genome[row.start - 1 : row.end]
    return plus if row.strand == "+" else plus.translate(COMPLEMENT)[::-1]


def expected_consequence(genome: str, cds: Row, pos: int, ref: str, alt: str) -> str:
    """Work out what an allele does to a CDS from the coordinates of the GFF3."""
    if len(ref) == len(alt) == 1:
        before = coding(genome, cds)
        offset = pos - cds.start if cds.strand == "+" else cds.end - pos
        base = alt if cds.strand == "+" else alt.translate(COMPLEMENT)
        codon = before[offset - offset % 3 : offset - offset % 3 + 3]
        new = codon[: offset % 3] + base + codon[offset % 3 + 1 :]
        if offset < 3 and new not in START_CODONS:
            return "start_lost"
        old_acid, new_acid = translate(codon), translate(new)
        if old_acid == new_acid:
            return "synonymous"
        return "nonsense" if new_acid == "*" else "missense"
    change = len(alt) - len(ref)
    if pos < cds.start or pos > cds.end:
        gap = cds.start - (pos + len(ref)) if pos < cds.start else pos - cds.end
        if gap >= 200:
            return "intergenic"
        return "upstream" if (pos < cds.start) == (cds.strand == "+") else "downstream"
    if change % 3:
        return "frameshift"
    edited = genome[: pos - 1] + alt + genome[pos - 1 + len(ref) :]
    moved = Row("CDS", cds.start, cds.end + change, cds.strand, "0", {})
    protein = translate(coding(edited, moved))
    assert protein.index("*") == len(protein) - 1, "a stop inside: not a plain in-frame indel"
    return "inframe_insertion" if change > 0 else "inframe_deletion"


def test_fasta_is_the_whole_record(genome: str) -> None:
    assert len(genome) == LENGTH
    assert set(genome) == set("ACGT")


def test_index_is_what_htslib_builds(tmp_path: Path) -> None:
    copy = tmp_path / "copy.fa"
    copy.write_bytes(demo_file("NC_000932.fa").read_bytes())
    pysam.faidx(str(copy))
    built = copy.with_name("copy.fa.fai").read_text()
    assert demo_file("NC_000932.fa.fai").read_text() == built


def test_features_are_complete_and_linked(rows: list[Row]) -> None:
    ids = {row.attributes["ID"] for row in rows}
    assert all(row.attributes["Parent"] in ids for row in rows if "Parent" in row.attributes)
    distinct = Counter(kind for kind, _ in {(row.kind, row.attributes["ID"]) for row in rows})
    assert distinct == {"region": 1, "gene": 129, "CDS": 85, "tRNA": 37, "rRNA": 7, "exon": 52}
    assert all(1 <= row.start <= row.end <= LENGTH for row in rows)
    assert [row.start for row in rows] == sorted(row.start for row in rows)
    assert all((row.phase != ".") == (row.kind == "CDS") for row in rows)


def test_every_cds_of_the_gff3_translates(genome: str, rows: list[Row]) -> None:
    """Strand, order and phase of all exons: each protein starts with M and stops at its end."""
    exons: dict[str, list[Row]] = {}
    for row in rows:
        if row.kind == "CDS":
            exons.setdefault(row.attributes["ID"], []).append(row)
    edited_starts = []
    for parts in exons.values():
        if "part" in parts[0].attributes:
            parts.sort(key=lambda row: int(row.attributes["part"]))
        else:
            parts.sort(key=lambda row: row.start, reverse=parts[0].strand == "-")
        before = ""
        for part in parts:
            assert int(part.phase) == -len(before) % 3, part
            before += coding(genome, part)
        protein = translate(before)
        assert len(before) % 3 == 0
        assert protein.index("*") == len(protein) - 1, parts[0]
        if before[:3] not in START_CODONS:
            edited_starts.append((parts[0].attributes["gene"], before[:3]))
            assert parts[0].attributes["exception"] == "RNA editing"
    assert edited_starts == [("ndhD", "ACG")]


def test_trans_spliced_rps12_spans_both_strands(rows: list[Row]) -> None:
    cds = [row for row in rows if row.attributes["ID"] == "cds-NP_051038.1"]
    by_part = {row.attributes["part"]: (row.start, row.end, row.strand, row.phase) for row in cds}
    assert by_part == {
        "1": (69611, 69724, "-", "0"),
        "2": (139856, 140087, "+", "0"),
        "3": (140625, 140650, "+", "2"),
    }
    assert {row.attributes["exception"] for row in cds} == {"trans-splicing"}


def test_ref_alleles_agree_with_the_fasta(genome: str, records: list[pysam.VariantRecord]) -> None:
    for record in records:
        assert record.ref == genome[record.start : record.stop], record.pos
        assert record.alts is not None
        assert record.ref not in record.alts
        assert len(set(record.alts)) == len(record.alts)
    assert [record.pos for record in records] == sorted(record.pos for record in records)
    assert len({record.id for record in records}) == len(records)


def test_consequences_from_the_gff3(
    genome: str, rows: list[Row], records: list[pysam.VariantRecord]
) -> None:
    for record in records:
        gene = record.info.get("GENE", "rbcL")  # the intergenic one lies before rbcL
        cds = gene_span(rows, gene)
        found = [
            expected_consequence(genome, cds, record.pos, record.ref, alt) for alt in record.alts
        ]
        assert list(record.info["CONSEQUENCE"]) == found, record.id
        if "PROTEIN" in record.info:
            protein = translate(coding(genome, cds))
            for change, kind in zip(
                record.info["PROTEIN"], record.info["CONSEQUENCE"], strict=True
            ):
                old, number, new = re.fullmatch(r"([A-Z])(\d+)([A-Z*])", change).groups()
                assert protein[int(number) - 1] == old
                assert (new == old, new == "*") == (kind == "synonymous", kind == "nonsense")


def test_alleles_outside_coding_sequence_touch_no_gene(
    rows: list[Row], records: list[pysam.VariantRecord]
) -> None:
    outside = [
        r for r in records if {"upstream", "downstream", "intergenic"} & {*r.info["CONSEQUENCE"]}
    ]
    assert len(outside) == 3
    for record in outside:
        for row in rows:
            apart = record.stop < row.start or record.pos > row.end
            assert apart or row.kind == "region", (record.id, row)


def test_composition_of_the_sites(rows: list[Row], records: list[pysam.VariantRecord]) -> None:
    snvs = [r for r in records if all(len(allele) == 1 for allele in r.alleles)]
    indels = [r for r in records if r not in snvs]
    assert (len(snvs), len(indels)) == (30, 10)
    assert all(len(record.alts) == 3 for record in snvs)
    assert Counter(record.info["GENE"] for record in snvs) == {"rbcL": 15, "psbA": 15}
    kinds = Counter(kind for record in records for kind in record.info["CONSEQUENCE"])
    assert sum(kinds.values()) == 101
    assert kinds["synonymous"] >= 8
    assert kinds["nonsense"] >= 6
    assert kinds["missense"] >= 30
    assert set(kinds) == {
        *("synonymous", "missense", "nonsense", "start_lost", "frameshift"),
        *("inframe_insertion", "inframe_deletion", "upstream", "downstream", "intergenic"),
    }
    positions: dict[int, int] = {1: 0, 2: 0, 3: 0}
    for record in snvs:
        cds = gene_span(rows, record.info["GENE"])
        offset = record.pos - cds.start if cds.strand == "+" else cds.end - record.pos
        assert record.info["CODON_POSITION"] == offset % 3 + 1
        positions[offset % 3 + 1] += 1
    assert min(positions.values()) >= 8


def test_indels_are_left_aligned_with_one_anchor(
    genome: str, records: list[pysam.VariantRecord]
) -> None:
    in_runs = 0
    for record in records:
        for alt in record.alts:
            if len(alt) == len(record.ref):
                continue
            shared = len(record.ref) - 1 if len(alt) > len(record.ref) else len(alt) - 1
            ref, new = record.ref, alt
            while shared and ref[-1] == new[-1]:  # the suffix that a multi-allelic record needs
                ref, new, shared = ref[:-1], new[:-1], shared - 1
            assert min(len(ref), len(new)) == 1, record.id
            assert ref[0] == new[0] == genome[record.start], record.id
            allele = max(ref, new, key=len)[1:]
            assert allele[-1] != ref[0], f"{record.id} can be moved to the left"
            in_runs += re.match(rf"{allele}{{4,}}", genome[record.start + 1 :]) is not None
    assert in_runs >= 2


def test_provenance_states_the_hashes_of_the_files() -> None:
    text = demo_file("PROVENANCE.md").read_text()
    for name in ("NC_000932.fa", "NC_000932.fa.fai", "NC_000932.gff3", "rbcL_psbA.vcf"):
        digest = hashlib.sha256(demo_file(name).read_bytes()).hexdigest()
        assert re.search(rf"^\| {re.escape(name)} \|.*\| {digest} \|$", text, re.MULTILINE), name


@pytest.mark.parametrize("name", ["missing.fa", "../demo_data.py", ""])
def test_unknown_demo_file_is_a_clear_error(name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"choose one of .*NC_000932.fa, "):
        demo_file(name)
