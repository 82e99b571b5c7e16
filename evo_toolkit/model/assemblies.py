"""Which vertebrate assembly a FASTA is, judged by the names and lengths of its contigs.

A chromosome's name together with its exact length identifies an assembly, so that a genome outside
a model's domain is recognised before anything is scored, without reading a base of it.

`_assemblies.tsv` lists the chromosomes of 21 assemblies: assembly, species, name (without `chr`;
the mitochondrion is `M`), length in bases, and the RefSeq accession with its version where it is
known (`.` elsewhere). Scaffolds that are not chromosomes are left out. Every length of a nuclear
chromosome agrees between two published tables: those that UCSC, Ensembl or NCBI release, as carried
by bioframe 0.8.0, pybedtools 0.12.1, negspy 0.3.2, bioutils 0.6.2, stdpopsim 0.3.0, the
`genomes/sizes` of IGV and the genome definitions of the WashU Epigenome Browser; where only one of
these has an assembly (canFam4, panTro6, rn6, rn7, galGal6, xenTro10), the second is a list in
published analysis code or documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_TABLE = Path(__file__).with_name("_assemblies.tsv")


@dataclass(frozen=True, slots=True)
class Chromosome:
    """One chromosome of the table.

    Attributes:
        assembly: Name of the assembly, `GRC/UCSC` where both exist ("GRCh38/hg38").
        species: Binomial name.
        name: Name without `chr`; the mitochondrion is `M`.
        length: Bases.
        refseq: RefSeq accession with version, or None.
    """

    assembly: str
    species: str
    name: str
    length: int
    refseq: str | None


@dataclass(frozen=True, slots=True)
class AssemblyMatch:
    """The assembly that a set of contigs agrees with.

    Attributes:
        assembly: Name of the assembly, as in `Chromosome.assembly`.
        species: Binomial name.
        num_matched: How many contigs agree in name and length, at least 1.
        contig: The longest of them, by the name that the caller gave.
    """

    assembly: str
    species: str
    num_matched: int
    contig: str


@cache
def load_assemblies() -> tuple[Chromosome, ...]:
    """Return every chromosome of the shipped table, in file order (newest human assembly first)."""
    rows = _TABLE.read_text(encoding="ascii").splitlines()[1:]
    return tuple(
        Chromosome(assembly, species, name, int(length), None if refseq == "." else refseq)
        for assembly, species, name, length, refseq in (row.split("\t") for row in rows)
    )


def match_assembly(
    lengths: Mapping[str, int], *, minimum_length: int = 1_000_000
) -> AssemblyMatch | None:
    """Return the vertebrate assembly that the contigs belong to, or None.

    The assembly is the one with which most contigs of at least `minimum_length` bases agree in
    length and in name, and one such contig is enough: a file of a single chromosome is recognised.
    A `chr` prefix is ignored in any case, `MT` is `M`, and a RefSeq accession with its version is
    as good as a name. Between assemblies with equally many, the first of the table wins.

    Args:
        lengths: Length in bases of each contig by name, as in a .fai.
        minimum_length: Shorter contigs are not looked at; they could agree by chance.

    Returns:
        The match, or None where no contig agrees with any assembly.
    """
    index = _index()
    matched: dict[str, list[str]] = {}
    for contig, length in lengths.items():
        if length < minimum_length:
            continue
        for assembly in index.get((_plain_name(contig), length), ()):
            matched.setdefault(assembly, []).append(contig)
    if not matched:
        return None
    species = {row.assembly: row.species for row in load_assemblies()}  # in file order
    assembly = max((a for a in species if a in matched), key=lambda a: len(matched[a]))
    return AssemblyMatch(
        assembly=assembly,
        species=species[assembly],
        num_matched=len(matched[assembly]),
        contig=max(matched[assembly], key=lambda contig: lengths[contig]),
    )


@cache
def _index() -> dict[tuple[str, int], tuple[str, ...]]:
    """Return the assemblies by (plain name or accession, length)."""
    index: dict[tuple[str, int], tuple[str, ...]] = {}
    for row in load_assemblies():
        for name in (row.name, row.refseq):
            if name is not None:
                key = (_plain_name(name), row.length)
                index[key] = (*index.get(key, ()), row.assembly)
    return index


def _plain_name(name: str) -> str:
    """Return a contig's name in upper case, without `chr`, the mitochondrion as M."""
    plain = name.upper().removeprefix("CHR")
    return "M" if plain == "MT" else plain
