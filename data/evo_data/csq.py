"""Consequences of variants on genes, by the `bcftools csq` that pysam carries.

Every allele is looked at alone (`--local-csq`). The strings are those of bcftools, in its format
`consequence|gene|transcript|biotype|strand|amino_acid_change|dna_change`; none is made up here.

Source: Danecek and McCarthy, Bioinformatics 33:2037, 2017.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from evo_data.bcftools import BcftoolsError, run_bcftools
from evo_data.contigs import ContigAliases
from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.gene_models import csq_lines, read_gene_models
from evo_data.variant import AlleleStatus, Variant, check_reference, classify_allele
from evo_data.vcf import VcfHeader, VcfRecord, annotate

TAG = "BCSQ"
SEVERITY: tuple[str, ...] = (
    "splice_acceptor", "splice_donor", "stop_gained", "frameshift", "stop_lost", "start_lost",
    "inframe_altering", "inframe_insertion", "inframe_deletion", "missense", "splice_region",
    "start_retained", "stop_retained", "synonymous", "coding_sequence", "5_prime_utr", "3_prime_utr",
    "non_coding", "intron", "feature_elongation", "intergenic",
)  # fmt: skip
"""The terms of bcftools csq, worst first, in the order of Ensembl."""

_RANK = {term: rank for rank, term in enumerate(SEVERITY)}
# Each run reads the annotation anew: seconds for a vertebrate's.
_RECORDS_PER_RUN = 100_000
_BYTES_PER_RUN = 1 << 26
_MOST_CONSEQUENCES = "1000"
Key = tuple[str, int, str, str]


@dataclass(frozen=True, slots=True)
class WorstConsequence:
    """The most severe consequence of an allele.

    Attributes:
        gene: Name of the gene.
        transcript: The first transcript with this consequence.
        consequence: Its terms, joined by `&`.
        num_transcripts: Transcripts on which the allele has any consequence.
    """

    gene: str
    transcript: str
    consequence: str
    num_transcripts: int


def worst_consequence(entries: Iterable[str]) -> WorstConsequence | None:
    """Return the worst of an allele's BCSQ entries; None if there is none.

    A `*` before a term (downstream of a stop) is kept; entries that only point elsewhere (`@`) are
    passed over.
    """
    best: tuple[int, list[str]] | None = None
    transcripts = set()
    for entry in entries:
        if not entry or entry.startswith("@"):
            continue
        fields = entry.split("|") + [""] * 3
        transcripts.add(fields[2])
        rank = severity(fields[0])
        if best is None or rank < best[0]:
            best = rank, fields
    if best is None:
        return None
    fields = best[1]
    return WorstConsequence(fields[1], fields[2], fields[0], len(transcripts))


def severity(consequence: str) -> int:
    """Rank of the worst term of a consequence, 0 the worst; terms of VEP and SnpEff count as well.

    Their names are those of `SEVERITY` with `_variant` behind them; others come last.
    """
    terms = consequence.lstrip("*").split("&")
    return min(
        _RANK.get(term.lstrip("*").lower().removesuffix("_variant"), len(_RANK)) for term in terms
    )


class ConsequenceCaller:
    """Calls consequences with one annotation.

    Attributes:
        header_line: Declares BCSQ, as bcftools writes it, without line end.
        left_out: Transcripts that cannot be used, by reason.
        num_transcripts: Those that are used.
    """

    def __init__(
        self,
        gff: Path | str,
        genome: Fasta,
        *,
        contigs: ContigAliases | None = None,
        genetic_code: int = 1,
    ) -> None:
        """Read the annotation and try it.

        Args:
            gff: GFF3 or GTF (`evo_data.gene_models`).
            genome: The reference.
            contigs: The genome's name for each contig name of the annotation.
            genetic_code: NCBI's number of the translation table.

        Raises:
            EvoDataError: if the annotation has no usable gene, or bcftools knows no such code.
        """
        models = read_gene_models(gff, contigs or ContigAliases(genome.lengths), genome.lengths)
        self._genome = genome
        self._code = "0" if genetic_code == 1 else str(genetic_code)
        self._name = os.fspath(gff)
        self._folder = tempfile.TemporaryDirectory(prefix="evo_toolkit_")
        self._gff = Path(self._folder.name) / "genes.gff3"
        with self._gff.open("w", encoding="utf-8") as out:
            out.writelines(csq_lines(models))
        self.left_out = models.left_out
        self.num_transcripts = len(models.transcripts)
        self.header_line = b""
        contig = models.transcripts[0].contig
        start = models.transcripts[0].exons[0][0]
        base = genome.fetch(contig, start, start + 1).decode()
        self.call([(contig, start + 1, base, "A" if base != "A" else "C")])

    def call(self, alleles: Iterable[Key]) -> dict[Key, tuple[str, ...]]:
        """Return the BCSQ entries of each allele that has any.

        Args:
            alleles: The genome's name of the contig, POS (1-based), REF and ALT in upper case; REF
                must be what the genome holds.
        """
        order = {contig: rank for rank, contig in enumerate(self._genome.lengths)}
        sites, called = (Path(self._folder.name) / name for name in ("sites.vcf", "called.vcf"))
        with sites.open("w") as out:
            out.write("##fileformat=VCFv4.3\n")
            out.writelines(
                f"##contig=<ID={c},length={n}>\n" for c, n in self._genome.lengths.items()
            )
            out.write("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
            for contig, pos, ref, alt in sorted(set(alleles), key=lambda x: (order[x[0]], *x[1:])):
                out.write(f"{contig}\t{pos}\t.\t{ref}\t{alt}\t.\t.\t.\n")
        arguments = (
            "--local-csq", "--no-version", "--ncsq", _MOST_CONSEQUENCES, "-C", self._code, "-v", "0",
            "-f", os.fspath(self._genome.path), "-g", os.fspath(self._gff),
            "-Ov", "-o", os.fspath(called), os.fspath(sites),
        )  # fmt: skip
        _run_csq(arguments, self._name)
        found: dict[Key, tuple[str, ...]] = {}
        with called.open() as lines:
            for line in lines:
                if line.startswith(f"##INFO=<ID={TAG},"):
                    self.header_line = line.rstrip("\n").encode()
                elif not line.startswith("#"):
                    contig, place, _, ref, alt, _, _, info = line.rstrip("\n").split("\t")
                    if info.startswith(f"{TAG}="):
                        found[contig, int(place), ref, alt] = tuple(info[len(TAG) + 1 :].split(","))
        return found

    def annotated(
        self, records: Iterable[VcfRecord], contigs: ContigAliases, *, write: bool = True
    ) -> Iterator[VcfRecord]:
        """Yield the records with the consequences of their alleles, and BCSQ in INFO.

        Args:
            records: In any order; some thousands are held at a time.
            contigs: The genome's name for each contig name of the records.
            write: Whether INFO gets BCSQ; not where the input has it already.
        """
        for chunk in _chunks(records):
            keys = [self._keys(record, contigs.get(record.contig)) for record in chunk]
            wanted = {key for row in keys for key in row if key is not None}
            found = self.call(wanted) if wanted else {}
            for record, row in zip(chunk, keys, strict=True):
                record.consequences = tuple(
                    () if key is None else found.get(key, ()) for key in row
                )
                entries = dict.fromkeys(x for allele in record.consequences for x in allele)
                if write and entries:
                    text = f"{TAG}={','.join(entries)}".encode()
                    line = annotate(record, text)
                    record.line = line[: len(line) - len(record.terminator)]
                    record.info = text if record.info in (b".", b"") else record.info + b";" + text
                yield record

    def _keys(self, record: VcfRecord, contig: str | None) -> list[Key | None]:
        """What bcftools is asked for each allele; None where there are no bases to ask about."""
        keys: list[Key | None] = []
        for alt in record.alts:
            keys.append(None)
            if (
                contig is None
                or record.pos < 1
                or classify_allele(record.ref, alt) is not AlleleStatus.OK
            ):
                continue
            variant = Variant(contig, record.pos, record.ref, alt)
            length = self._genome.lengths[contig]

            def fetch(start: int, end: int, contig: str = contig) -> bytes:
                return self._genome.fetch(contig, start, end)

            if (
                variant.ref != variant.alt
                and check_reference(variant, fetch, length) is AlleleStatus.OK
            ):
                keys[-1] = (contig, record.pos, variant.ref, variant.alt)
        return keys


def _chunks(records: Iterable[VcfRecord]) -> Iterator[list[VcfRecord]]:
    """Lists of records, bounded in number and, since records may have thousands of samples, in bytes."""
    chunk: list[VcfRecord] = []
    size = 0
    for record in records:
        chunk.append(record)
        size += len(record.line)
        if len(chunk) >= _RECORDS_PER_RUN or size >= _BYTES_PER_RUN:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def with_bcsq(header: VcfHeader, line: bytes) -> bool:
    """Declare BCSQ in a header; False, and nothing done, if it is declared already."""
    if TAG in header.info_ids:
        return False
    ending = b"\r\n" if header.lines[0].endswith(b"\r\n") else b"\n"
    header.lines.insert(len(header.lines) - 1, line + ending)
    header.info_ids.add(TAG)
    return True


def _run_csq(arguments: tuple[str, ...], name: str) -> None:
    try:
        run_bcftools("csq", arguments)
    except BcftoolsError as error:
        raise EvoDataError(f"{name}: bcftools csq refuses it: {error}") from error
