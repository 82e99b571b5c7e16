"""Gene essentiality by stop insertion, beside what needs no model: length, GC, conservation.

Five stop codons in a row, in frame, are inserted near the start of each gene; the more the model
minds, the more essential the gene is taken to be. Longer genes and genes that are found in many
genomes are essential more often too, so those figures stand beside, and the model's also within
fifths of equal length.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.files import read_text
from evo_data.kmers import Hashes, Lookup, kmer_codes, union
from evo_data.mixing import mix_in_place
from evo_data.variant import Edit
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.edits import Place
from evo_toolkit.evaluation.genes import AMINO_ACIDS, Gene, coding_sequence, codons, is_complete
from evo_toolkit.evaluation.genomes import Genome, reverse_complement
from evo_toolkit.statistics import RESAMPLES, auroc

INSERTED = "TAATAATAATAGTGA"
"""Five stop codons, 15 bases: what follows stays in frame (Evo 2 paper, gene essentiality)."""

FIRST_SITE = 12
"""Bases of the gene before the first insertion: start codon and three more."""

_WORD = 8  # amino acids: one in 25 billion words, so few are shared by chance
_LEAST_WORDS = 3
_TRUE = frozenset({"true", "1", "e", "essential", "yes"})
_FALSE = frozenset({"false", "0", "n", "nonessential", "non-essential", "no"})
_INVERT = str.maketrans("ACGT", "TGCA")


def read_labels(
    path: Path | str, column: str, genome: Genome
) -> tuple[list[Gene], NDArray[np.bool_], int]:
    """Genes with labels from a table with the columns start, end (1-based, closed) and strand.

    Args:
        path: Tab-separated with a header line, plain or gzip.
        column: Holds True or False, 1 or 0, E or N; rows with anything else are left out.
        genome: Its first record is what the coordinates lie in.

    Returns:
        The genes that are complete reading frames, whether each is essential, and how many rows
        were left out.

    Raises:
        EvoDataError: if the file cannot be read.
        EvoError: if it lacks a column, or labels of both kinds.
    """
    lines = read_text(path).splitlines()
    rows = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE, restval="")
    header = rows.fieldnames or []
    missing = [name for name in ("start", "end", "strand", column) if name not in header]
    if missing:
        raise EvoError(
            f"{path} has no column {', '.join(missing)}; its columns are {', '.join(header)}"
        )
    genes, labels, left_out = [], [], 0
    for row in rows:
        try:
            start, stop = int(row["start"]) - 1, int(row["end"])
        except ValueError:
            raise EvoError(f"{path}, line {rows.line_num}: start and end are not numbers") from None
        names = [row[name] for name in ("locus_tag", "gene", "name") if row.get(name)]
        gene = Gene((names or [f"line {rows.line_num}"])[0], 0, start, stop, row["strand"])
        label = row[column].strip().lower()
        known = label in _TRUE | _FALSE and 0 <= start < stop <= genome.records[0].size
        if known and is_complete(coding_sequence(genome, gene)):
            genes.append(gene)
            labels.append(label in _TRUE)
        else:
            left_out += 1
    if not any(labels) or all(labels):
        raise EvoError(
            f"{path}: column {column} gives no complete genes of both kinds in {genome.name}; is it the genome of the table?"
        )
    return genes, np.array(labels), left_out


def insertions(genes: Sequence[Gene], sites: int) -> list[Place]:
    """`sites` insertions for each gene: after 12 bases, then evenly spread over the gene."""
    found: list[Place] = []
    for gene in genes:
        length = gene.stop - gene.start
        for site in range(sites):
            offset = FIRST_SITE + (length - 2 * FIRST_SITE) * site // sites // 3 * 3
            if gene.strand == "+":
                at, text = gene.start + offset, INSERTED
            else:
                at, text = gene.stop - offset, INSERTED.translate(_INVERT)[::-1]
            found.append((0, gene.record, Edit(at, at, text.encode())))
    return found


def gc_content(genome: Genome, genes: Sequence[Gene]) -> NDArray[np.float64]:
    """Share of G and C of each gene."""
    codes = [coding_sequence(genome, gene) for gene in genes]
    return np.array([float(((own == 1) | (own == 2)).mean()) for own in codes])


def conservation(
    genome: Genome,
    genes: Sequence[Gene],
    others: Sequence[tuple[Callable[[], Genome], float]],
) -> NDArray[np.float64]:
    """In how many other genomes, weighted, each gene's protein leaves a trace.

    A trace is at least three of its words of eight amino acids in a genome's six frames.

    Args:
        genome: Of the genes.
        genes: The genes.
        others: Functions that read a genome, with its weight (1 / size of its cluster).
    """
    own = [union([_words(AMINO_ACIDS[codons(coding_sequence(genome, gene))])]) for gene in genes]
    lookup = Lookup(union(own))
    word = lookup.positions(np.concatenate(own))
    gene_of = np.repeat(np.arange(len(genes)), [words.size for words in own])
    result = np.zeros(len(genes))
    for read, weight in others:
        seen = np.zeros(lookup.wanted.size, bool)
        for record in read().records:
            for codes in (record, reverse_complement(record)):
                # Codons with other letters count as any: they are rare.
                amino_acid_at_each = AMINO_ACIDS[kmer_codes(codes, 3)[0]]
                for frame in range(3):
                    words = lookup.candidates(_words(amino_acid_at_each[frame::3]))
                    seen[lookup.positions(words)] = True
        hits = np.bincount(gene_of[seen[word]], minlength=len(genes))
        result += weight * (hits >= _LEAST_WORDS)
    return result


def _words(protein: NDArray[np.uint8]) -> Hashes:
    """Hashes of the words of eight amino acids without a stop."""
    size = max(protein.size - _WORD + 1, 0)
    letters = protein.astype(np.uint64) & np.uint64(31)
    words = np.zeros(size, np.uint64)
    whole = np.ones(size, bool)
    for place in range(_WORD):
        words = (words << np.uint64(5)) | letters[place : place + size]
        whole &= protein[place : place + size] != ord("*")
    return mix_in_place(words[whole])


def report(
    essential: NDArray[np.bool_],
    scores: Mapping[str, NDArray[np.floating]],
    *,
    resamples: int = RESAMPLES,
) -> dict[str, Any]:
    """AUROC for essential of each score, whole and within fifths of equal length.

    Args:
        essential: `[n]`.
        scores: By name, `[n]` each, higher is more essential: the model's (the log-likelihood that
            an insertion costs) and features such as GC. `length` must be among them.
        resamples: Of the bootstrap over genes.
    """
    genes = np.arange(essential.size)
    length = scores["length"]
    fifths = np.searchsorted(np.quantile(length, [0.2, 0.4, 0.6, 0.8]), length)
    figures: dict[str, Any] = {
        "num_genes": int(essential.size),
        "num_essential": int(essential.sum()),
    }
    for title, strata in (("auroc", None), ("auroc_within_fifths_of_length", fifths)):
        figures[title] = {
            name: auroc(values, essential, genes, strata, resamples=resamples).json()
            for name, values in scores.items()
        }
    return figures
