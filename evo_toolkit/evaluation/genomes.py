"""Genomes as arrays of bases, from files of sequences, folders of them, or a corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import CODES, OTHER
from evo_data.corpus import Corpus, is_corpus
from evo_data.corpus.sources import (
    detect_format,
    find_sources,
    folder_name,
    genome_name,
    read_source,
)
from evo_toolkit.errors import EvoError

Bytes = NDArray[np.uint8]

_COMPLEMENT = np.array([3, 2, 1, 0, OTHER], np.uint8)
_TOKENS = np.frombuffer(b"ACGTN", np.uint8)


@dataclass(frozen=True, kw_only=True)
class Genome:
    """One genome.

    Attributes:
        name: File name without its suffixes, or the name in the corpus.
        group: Folder that the file lies in, or the group in the corpus.
        names: Of the records.
        records: Codes of the bases, A 0, C 1, G 2, T 3, anything else `OTHER`; case is dropped.
    """

    name: str
    group: str
    names: tuple[str, ...]
    records: tuple[Bytes, ...]

    @property
    def num_bases(self) -> int:
        """Total length of the records."""
        return sum(record.size for record in self.records)


def encode(sequence: Bytes | bytes) -> Bytes:
    """Codes (A 0, C 1, G 2, T 3, else `OTHER`) of ASCII bases of either case."""
    if isinstance(sequence, bytes):
        sequence = np.frombuffer(sequence, np.uint8)
    return CODES[sequence]


def tokens(codes: Bytes) -> Bytes:
    """The model's tokens (upper-case ASCII, N for `OTHER`) of codes."""
    return _TOKENS[codes]


def reverse_complement(codes: Bytes) -> Bytes:
    """Codes of the other strand, 5' to 3', along the last axis."""
    return _COMPLEMENT[codes[..., ::-1]]


@dataclass(frozen=True)
class GenomeFile:
    """A genome that is read when asked for: a file of sequences, or one genome of a corpus.

    Attributes:
        name, group: Of the genome, as in `Genome`.
        path: The file, or the corpus.
        corpus: The corpus, if it is of one.
        corpus_index: Its index there.
    """

    name: str
    group: str
    path: Path
    corpus: Corpus | None = None
    corpus_index: int = 0

    def read(self) -> Genome:
        """Read it.

        Raises:
            EvoDataError: if it cannot be read, or is no genome.
        """
        corpus = self.corpus
        if corpus is None:
            raw = read_source(self.path, detect_format(self.path))
            records = [(record.name, encode(record.letters)) for record in raw]
        else:
            records = [
                (corpus.records[i].name, encode(corpus.read(i, 0, corpus.records[i].length)))
                for i in corpus.records_of(self.corpus_index)
            ]
        return Genome(
            name=self.name,
            group=self.group,
            names=tuple(name for name, _ in records),
            records=tuple(codes for _, codes in records),
        )


def find_genomes(paths: Sequence[Path | str]) -> list[GenomeFile]:
    """Return the genomes of files, of folders (searched to any depth) and of corpora.

    Files are FASTA, GenBank or EMBL, plain or compressed (`evo_data.corpus.sources`).

    Returns:
        In order of the arguments and, within a folder, of the path.

    Raises:
        EvoDataError: for a path that is absent or holds none.
        EvoError: when nothing was given.
    """
    if not paths:
        raise EvoError("no genomes were given; give files of them, folders, or a corpus")
    found: list[GenomeFile] = []
    for given in map(Path, paths):
        sources = [given] if is_corpus(given) else [item.path for item in find_sources([given])]
        for path in sources:
            if is_corpus(path):
                found += _corpus_genomes(path)
            else:
                found.append(GenomeFile(genome_name(path), folder_name(path), path))
    return found


def _corpus_genomes(path: Path) -> list[GenomeFile]:
    corpus = Corpus.open(path)
    return [
        GenomeFile(genome.name, genome.group, path, corpus, index)
        for index, genome in enumerate(corpus.genomes)
    ]
