"""Transcripts of GFF3 and GTF files, whoever wrote them, and the dialect that bcftools csq reads.

Read: NCBI (with or without transcripts between gene and CDS), Bakta and Prokka (FASTA at the end
included), GENCODE and Ensembl GFF3 and GTF, and GFF3 without any Parent. Coordinates inside are
0-based half-open, forward strand.

Left out, and counted by reason, is what bcftools csq would translate wrongly: parts on both
strands or out of order (trans-splicing, a gene across the origin), parts that overlap or nearly
touch (a programmed frameshift), and genes of contigs that the genome does not have.
"""

from __future__ import annotations

import gzip
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import unquote

from evo_data.errors import EvoDataError

_ATTRIBUTE = re.compile(r'\s*([^\s;=]+)\s+"([^"]*)"\s*;?|\s*([^\s;]+)\s+([^\s;"]+)\s*;?')
_PARTS = frozenset(
    [
        "exon",
        "five_prime_UTR",
        "three_prime_UTR",
        "UTR",
        "intron",
        "start_codon",
        "stop_codon",
        "Selenocysteine",
        "signal_peptide",
        "sig_peptide",
        "mat_peptide",
        "transit_peptide",
        "polyA_site",
        "codon",
        "sequence_feature",
        "region",
        "promoter",
        "regulatory",
    ]
)
# Non-coding types, as bcftools names their biotypes.
_NON_CODING = {
    "tRNA": "tRNA", "rRNA": "rRNA", "ncRNA": "misc_RNA", "tmRNA": "misc_RNA", "snRNA": "snRNA",
    "snoRNA": "snoRNA", "miRNA": "miRNA", "lnc_RNA": "lincRNA", "lncRNA": "lincRNA",
    "antisense_RNA": "misc_RNA", "SRP_RNA": "misc_RNA", "RNase_P_RNA": "misc_RNA",
    "RNase_MRP_RNA": "misc_RNA", "telomerase_RNA": "misc_RNA", "pre_miRNA": "miRNA",
    "riboswitch": "misc_RNA", "scRNA": "scRNA", "Y_RNA": "misc_RNA",
}  # fmt: skip
_CODING = re.compile(r"protein_coding|nonsense_mediated_decay|non_stop_decay|(IG|TR)_[A-Z]+_gene")
_BIOTYPES = ("transcript_biotype", "transcript_type", "biotype", "gene_biotype", "gene_type")
# Nobody's spliceosome cuts so little out; ribosomes that slip and sequencing errors do.
_SHORTEST_INTRON = 10


@dataclass(slots=True)
class Transcript:
    """One transcript.

    Attributes:
        name: Its identifier.
        gene: Identifier of its gene.
        gene_name: What people call the gene.
        contig: As the file names it.
        strand: "+" or "-".
        biotype: As bcftools names them.
        exons: 0-based half-open, ascending.
        cds: The coding parts; empty for non-coding transcripts.
        phase: Bases before the first whole codon, 0 to 2.
    """

    name: str
    gene: str
    gene_name: str
    contig: str
    strand: str
    biotype: str
    exons: list[tuple[int, int]]
    cds: list[tuple[int, int]] = field(default_factory=list)
    phase: int = 0


@dataclass(slots=True)
class _Row:
    kind: str
    contig: str
    start: int
    end: int
    strand: str
    phase: int
    attributes: dict[str, str]


@dataclass(slots=True)
class GeneModels:
    """The transcripts of a file, and how many were left out by reason."""

    transcripts: list[Transcript]
    left_out: Counter[str]


def read_gene_models(
    path: Path | str, contigs: Mapping[str, str], lengths: Mapping[str, int]
) -> GeneModels:
    """Return the transcripts of a GFF3 or GTF file, plain or gzip.

    Args:
        path: The file.
        contigs: The genome's name for each contig name of the file.
        lengths: Length of each contig of the genome, in bases.

    Raises:
        EvoDataError: if the file cannot be read, is neither, or has no transcript that can be used.
    """
    rows, is_gtf = _read(Path(path))
    found = list(_gtf_transcripts(rows) if is_gtf else _gff_transcripts(rows))
    models = GeneModels([], Counter())
    for transcript, order in found:
        contig = contigs.get(transcript.contig)
        reason = _trouble(transcript, order, None if contig is None else lengths[contig])
        if reason is not None or contig is None:
            models.left_out[reason or ""] += 1
            continue
        transcript.contig = contig
        models.transcripts.append(transcript)
    if not models.transcripts:
        reasons = ", ".join(f"{n} {reason}" for reason, n in models.left_out.items())
        raise EvoDataError(
            f"{path}: no gene that can be used ({reasons or 'no CDS and no RNA'}); give the GFF3 or GTF of this genome"
        )
    return models


def csq_lines(models: GeneModels) -> Iterator[str]:
    """Yield the lines of a GFF3 file as `bcftools csq` wants it, with line feeds."""
    yield "##gff-version 3\n"
    genes: dict[tuple[str, str], list[Transcript]] = {}
    for transcript in models.transcripts:
        genes.setdefault((transcript.contig, transcript.gene), []).append(transcript)
    genes_seen: Counter[str] = Counter()
    transcripts_seen: Counter[str] = Counter()
    for (contig, gene), transcripts in genes.items():
        first = transcripts[0]
        start = min(t.exons[0][0] for t in transcripts)
        end = max(t.exons[-1][1] for t in transcripts)
        gene_id = _unique(gene, genes_seen)
        head = f"{contig}\tevo_toolkit\t"

        def line(
            kind: str,
            start: int,
            end: int,
            strand: str,
            rest: str,
            phase: str = ".",
            head: str = head,
        ) -> str:
            return f"{head}{kind}\t{start + 1}\t{end}\t.\t{strand}\t{phase}\t{rest}\n"

        yield line(
            "gene", start, end, first.strand,
            f"ID=gene:{gene_id};Name={_plain(first.gene_name)};biotype={first.biotype}",
        )  # fmt: skip
        for transcript in transcripts:
            name = _unique(transcript.name, transcripts_seen)
            strand = transcript.strand
            yield line(
                "transcript", transcript.exons[0][0], transcript.exons[-1][1], strand,
                f"ID=transcript:{name};Parent=gene:{gene_id};biotype={transcript.biotype}",
            )  # fmt: skip
            parent = f"Parent=transcript:{name}"
            for kind, first_base, last in _features(transcript):
                yield line(kind, first_base, last, strand, parent)
            phases = _phases(transcript)
            for (first_base, last), phase in zip(transcript.cds, phases, strict=True):
                yield line("CDS", first_base, last, strand, parent, str(phase))


def _features(transcript: Transcript) -> Iterator[tuple[str, int, int]]:
    """Exons and untranslated regions."""
    for start, end in transcript.exons:
        yield "exon", start, end
    if not transcript.cds:
        return
    first, last = transcript.cds[0][0], transcript.cds[-1][1]
    low, high = "five_prime_UTR", "three_prime_UTR"
    if transcript.strand == "-":
        low, high = high, low
    for start, end in transcript.exons:
        if start < first:
            yield low, start, min(end, first)
        if end > last:
            yield high, max(start, last), end


def _phases(transcript: Transcript) -> list[int]:
    """Phase of each coding part, in ascending order of position."""
    parts = transcript.cds if transcript.strand == "+" else transcript.cds[::-1]
    phases = [transcript.phase] if parts else []
    for start, end in parts[:-1]:
        phases.append((phases[-1] - (end - start)) % 3)
    return phases if transcript.strand == "+" else phases[::-1]


def _trouble(transcript: Transcript, order: list[_Row], length: int | None) -> str | None:
    """Why a transcript cannot be used; None if it can."""
    if length is None:
        return "on contigs that the genome does not have"
    if len({(row.contig, row.strand) for row in order}) > 1 or transcript.strand not in "+-":
        return "in parts on both strands or of unknown strand"
    if transcript.exons[-1][1] > length or transcript.exons[0][0] < 0:
        return "across the origin or the end of a contig"
    starts = [row.start for row in order]
    descending = starts == sorted(starts, reverse=True) and transcript.strand == "-"
    if starts != sorted(starts) and not descending:
        return "in parts out of order"
    for (_, end), (start, _) in zip(transcript.cds, transcript.cds[1:], strict=False):
        if start - end < _SHORTEST_INTRON:
            return "with a programmed frameshift"
        if start - end > 0.9 * length:
            return "across the origin or the end of a contig"
    return None


def _read(path: Path) -> tuple[list[_Row], bool]:
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == b"\x1f\x8b"
        with (
            gzip.open(path, "rt", encoding="utf-8")
            if compressed
            else path.open(encoding="utf-8") as lines
        ):
            return _rows(lines, path)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise EvoDataError(f"{path}: cannot be read: {error}") from error


def _rows(lines: Iterable[str], path: Path) -> tuple[list[_Row], bool]:
    rows: list[_Row] = []
    is_gtf: bool | None = None
    for number, line in enumerate(lines, start=1):
        if line.startswith(("##FASTA", ">")):
            break
        if line.startswith("#") or not line.strip():
            continue
        columns = line.rstrip("\r\n").split("\t")
        try:
            start, end = int(columns[3]) - 1, int(columns[4])
            text, kind = columns[8], columns[2]
        except (IndexError, ValueError) as error:
            raise EvoDataError(f"{path}:{number}: not a line of GFF3 or GTF") from error
        if is_gtf is None:
            is_gtf = re.match(r'\s*[^\s;=]+\s+"', text) is not None
        phase = int(columns[7]) if columns[7] in ("0", "1", "2") else 0
        attributes = _gtf_attributes(text) if is_gtf else _gff_attributes(text)
        rows.append(_Row(kind, columns[0], start, end, columns[6], phase, attributes))
    return rows, bool(is_gtf)


def _gff_attributes(text: str) -> dict[str, str]:
    pairs = (pair.strip().partition("=") for pair in text.split(";"))
    # Parent and others may list several values, so commas are decoded later.
    return {key: value for key, _, value in pairs if key}


def _gtf_attributes(text: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for match in _ATTRIBUTE.finditer(text):
        key, value = (match[1], match[2]) if match[1] else (match[3], match[4])
        found.setdefault(key, value)
    return found


def _gtf_transcripts(rows: list[_Row]) -> Iterator[tuple[Transcript, list[_Row]]]:
    parts: dict[tuple[str, str], list[_Row]] = {}
    for row in rows:
        if row.kind in ("exon", "CDS", "start_codon", "stop_codon") and row.attributes.get(
            "transcript_id"
        ):
            parts.setdefault((row.contig, row.attributes["transcript_id"]), []).append(row)
    for (_, name), members in parts.items():
        a = members[0].attributes
        gene = a.get("gene_id") or name
        given = _given_biotype(a)
        coding = [row for row in members if row.kind == "CDS"]
        # In GTF the stop codon is no part of the CDS; in that of some it is, which does no harm.
        stop = [row for row in members if row.kind == "stop_codon"] if coding else []
        exons = [row for row in members if row.kind == "exon"] or coding
        if not exons:
            continue
        if not coding:
            coding = _between_codons(members)
        biotype = _coding_biotype(given) if coding else _NON_CODING.get(given, given)
        if biotype:
            yield _transcript(name, gene, a.get("gene_name") or gene, biotype, exons, coding, stop)


def _between_codons(members: list[_Row]) -> list[_Row]:
    """The coding parts of a transcript of which only exons, start and stop codon are given."""
    starts, stops = (
        [row for row in members if row.kind == f"{x}_codon"] for x in ("start", "stop")
    )
    if not (starts and stops):
        return []
    codons = starts + stops
    first, last = min(row.start for row in codons), max(row.end for row in codons)
    return [
        replace(row, kind="CDS", start=max(row.start, first), end=min(row.end, last), phase=0)
        for row in members
        if row.kind == "exon" and row.start < last and row.end > first
    ]


def _gff_transcripts(rows: list[_Row]) -> Iterator[tuple[Transcript, list[_Row]]]:
    by_id: dict[str, _Row] = {}
    for row in rows:
        if row.attributes.get("ID"):
            by_id.setdefault(row.attributes["ID"], row)
    coding: dict[str, list[_Row]] = {}
    exons: dict[str, list[_Row]] = {}
    stops: dict[str, list[_Row]] = {}
    for number, row in enumerate(rows):
        if row.kind not in ("CDS", "exon", "stop_codon"):
            continue
        parents = [p for p in row.attributes.get("Parent", "").split(",") if p in by_id]
        named = [p for p in parents if not _is_gene(by_id[p])]
        if row.kind == "CDS" and not named:
            # Without a transcript a CDS is one, all its lines together.
            named = [row.attributes.get("ID") or (parents[0] if parents else f"cds_{number}")]
        target = {"CDS": coding, "exon": exons, "stop_codon": stops}[row.kind]
        for name in named:
            target.setdefault(name, []).append(row)
    for name, parts in coding.items():
        head = by_id.get(name, parts[0])
        gene, gene_name, pseudo = _gene_of(head, parts[0], by_id)
        biotype = "pseudogene" if pseudo else _coding_biotype(_given_biotype(head.attributes))
        spans = exons.get(name) or parts
        yield _transcript(
            _label(name, head), gene, gene_name, biotype, spans, [] if pseudo else parts, stops.get(name, [])
        )  # fmt: skip
    for name, row in by_id.items():
        given = _given_biotype(row.attributes) if name in exons and not _is_gene(row) else ""
        biotype_of = _NON_CODING.get(row.kind) or _NON_CODING.get(given) or given or None
        if name in coding or row.kind in _PARTS or biotype_of is None:
            continue
        gene, gene_name, _ = _gene_of(row, row, by_id)
        yield _transcript(
            _label(name, row), gene, gene_name, biotype_of, exons.get(name) or [row], [], []
        )


def _transcript(
    name: str,
    gene: str,
    gene_name: str,
    biotype: str,
    exons: list[_Row],
    coding: list[_Row],
    stops: list[_Row],
) -> tuple[Transcript, list[_Row]]:
    """A transcript, and its parts as the file orders them."""
    order = coding or exons
    cds = _merged([(row.start, row.end) for row in coding], [(row.start, row.end) for row in stops])
    spans = _merged([(row.start, row.end) for row in exons], cds, touching=True)
    first = (
        min(coding, key=lambda row: row.start)
        if coding and order[0].strand != "-"
        else max(coding or exons, key=lambda row: row.end)
    )
    return Transcript(
        name=name, gene=gene, gene_name=gene_name, contig=order[0].contig, strand=order[0].strand,
        biotype=biotype, exons=spans, cds=cds, phase=first.phase if coding else 0,
    ), order  # fmt: skip


def _merged(
    spans: list[tuple[int, int]], more: list[tuple[int, int]], touching: bool = False
) -> list[tuple[int, int]]:
    """Ascending spans; `more` is joined to what it touches, and spans to each other if so wanted."""
    result = sorted(spans) if not touching else []
    for start, end in sorted(more) if not touching else sorted([*spans, *more]):
        for at, (first, last) in enumerate(result):
            if start <= last and end >= first:
                result[at] = (min(first, start), max(last, end))
                break
        else:
            result = sorted([*result, (start, end)])
    return result


def _given_biotype(attributes: Mapping[str, str]) -> str:
    return next((attributes[key] for key in _BIOTYPES if attributes.get(key)), "")


def _coding_biotype(given: str) -> str:
    return given if _CODING.fullmatch(given) else "protein_coding"


def _is_gene(row: _Row) -> bool:
    return row.kind.lower().endswith("gene") or row.kind == "gene_segment"


def _gene_of(row: _Row, part: _Row, by_id: Mapping[str, _Row]) -> tuple[str, str, bool]:
    """Identifier and name of the gene of a transcript, and whether it is a pseudogene."""
    chain = [part, row]
    while len(chain) < 8:
        parent = chain[-1].attributes.get("Parent", "").split(",")[0]
        if parent not in by_id or by_id[parent] in chain[1:]:
            break
        chain.append(by_id[parent])
    gene_row = next((r for r in chain if _is_gene(r)), None)
    known = [r.attributes for r in ([gene_row] if gene_row else []) + chain]

    def first(*keys: str) -> str:
        return next((a[key] for a in known for key in keys if a.get(key)), "")

    pseudo = any(
        r.attributes.get("pseudo") == "true"
        or r.kind == "pseudogene"
        or "pseudogene" in r.attributes
        for r in chain
    )
    name = first("gene", "gene_name") or (gene_row.attributes.get("Name", "") if gene_row else "") or first("locus_tag", "Name", "gene_id")  # fmt: skip
    identifier = first("locus_tag", "gene_id") or (gene_row.attributes.get("ID", "") if gene_row else "") or name  # fmt: skip
    identifier = re.sub(r"^gene[:-]", "", identifier) or "unnamed"
    return identifier, unquote(name or identifier), pseudo


def _label(name: str, row: _Row) -> str:
    """What a transcript is called in the output."""
    a = row.attributes
    # A CDS without a transcript is known by its locus, of which there is one; proteins repeat.
    given = a.get("transcript_id") or a.get("locus_tag") or a.get("protein_id") or name
    return re.sub(r"^(transcript|rna|cds)[:-]", "", unquote(given), flags=re.IGNORECASE)


def _plain(text: str) -> str:
    """A name without what has a meaning in GFF3, in VCF or in BCSQ."""
    return re.sub(r"[\s;=,&|%:]+", "_", text) or "_"


def _unique(name: str, seen: Counter[str]) -> str:
    name = _plain(name)
    seen[name] += 1
    return name if seen[name] == 1 else f"{name}.{seen[name]}"
