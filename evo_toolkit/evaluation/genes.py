"""Protein-coding genes of a genome: called by Pyrodigal, or read from GFF3; genetic code 11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import OTHER
from evo_data.gff import CdsLine, read_cds
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genomes import Bytes, Genome, reverse_complement, tokens

CODE_11 = "KNKNTTTTRSRSIIMIQHQHPPPPRRRRLLLLEDEDAAAAGGGGVVVV*Y*YSSSS*CWCLFLF"
"""Amino acids of AAA, AAC, AAG, AAT, ACA, ... TTT; `*` is a stop."""

AMINO_ACIDS = np.frombuffer(CODE_11.encode(), np.uint8)
STOPS = ("TAA", "TAG", "TGA")
STARTS = ("ATG", "GTG", "TTG")

_SHORT_RECORD = 20_000  # Prodigal cannot be trained on less


@dataclass(frozen=True)
class Gene:
    """A complete gene.

    Attributes:
        name: Its identifier.
        record: Index of its record.
        start, stop: 0-based half-open, forward strand, stop codon included.
        strand: "+" or "-".
    """

    name: str
    record: int
    start: int
    stop: int
    strand: str


def coding_sequence(genome: Genome, gene: Gene) -> Bytes:
    """Codes of the gene from start to stop codon, in reading direction."""
    codes = genome.records[gene.record][gene.start : gene.stop]
    return codes if gene.strand == "+" else reverse_complement(codes)


def codons(codes: Bytes) -> NDArray[np.int64]:
    """Number of each codon (AAA 0 ... TTT 63) of a coding sequence of ACGT."""
    wide = codes[: codes.size // 3 * 3].astype(np.int64).reshape(-1, 3)
    return wide @ np.array([16, 4, 1])


def is_complete(codes: Bytes) -> bool:
    """Whether codes are whole codons of ACGT from a start to the only stop, of 30 codons or more."""
    if codes.size < 90 or codes.size % 3 or (codes >= OTHER).any():
        return False
    protein = AMINO_ACIDS[codons(codes)]
    stop = np.flatnonzero(protein == ord("*"))
    start = tokens(codes[:3]).tobytes().decode()
    return start in STARTS and stop.size == 1 and int(stop[0]) == protein.size - 1


def complete_genes(genome: Genome, genes: Sequence[Gene]) -> list[Gene]:
    """Those genes whose sequence is a complete reading frame (`is_complete`)."""
    return [gene for gene in genes if is_complete(coding_sequence(genome, gene))]


def call_genes(genome: Genome) -> list[Gene]:
    """Complete genes that Pyrodigal finds, trained on the genome itself.

    Records below 20,000 bases are searched with Pyrodigal's models of metagenomes.

    Raises:
        EvoError: if Pyrodigal is not installed, or finds none.
    """
    try:
        import pyrodigal
    except ImportError:
        raise EvoError(
            "Pyrodigal is not installed; run pip install 'evo-toolkit[eval]', or give the genes with --genes FILE.gff3"
        ) from None
    texts = [tokens(record).tobytes() for record in genome.records]
    finder = pyrodigal.GeneFinder(closed=True)
    long_texts = [text for text in texts if len(text) >= _SHORT_RECORD]
    if long_texts:
        finder.train(*long_texts, translation_table=11)
    meta = pyrodigal.GeneFinder(meta=True, closed=True)
    genes = []
    for record, text in enumerate(texts):
        found = (finder if len(text) >= _SHORT_RECORD else meta).find_genes(text)
        for number, gene in enumerate(found, start=1):
            strand = "+" if gene.strand == 1 else "-"
            name = f"{genome.names[record]}_{number}"
            genes.append(Gene(name, record, gene.begin - 1, gene.end, strand))
    return _some(complete_genes(genome, genes), genome.name)


def read_gff(path: Path | str, genome: Genome) -> list[Gene]:
    """Complete genes of the CDS features of a GFF3 file, plain or gzip.

    CDS of several parts, pseudogenes and those that are no complete reading frame of genetic
    code 11 are left out.

    Raises:
        EvoDataError: if the file cannot be read, or a CDS line is wrong.
        EvoError: if it holds no gene of this genome.
    """
    index = {name: record for record, name in enumerate(genome.names)}
    parts: dict[str, list[CdsLine]] = {}
    for cds in read_cds(path):
        is_known = cds.contig in index and cds.strand in ("+", "-")
        if is_known and cds.attributes.get("pseudo") != "true":
            parts.setdefault(cds.attributes.get("ID", cds.where), []).append(cds)
    whole = []
    for identifier, (cds, *more) in parts.items():
        if not more:
            name = cds.attributes.get("locus_tag") or cds.attributes.get("gene") or identifier
            whole.append(Gene(name, index[cds.contig], cds.start, cds.stop, cds.strand))
    return _some(complete_genes(genome, whole), f"{path} for {genome.name}")


def _some(genes: list[Gene], where: str) -> list[Gene]:
    if not genes:
        raise EvoError(
            f"{where} has no complete gene of genetic code 11; give a bacterial or archaeal genome, and GFF3 with its names"
        )
    return genes
