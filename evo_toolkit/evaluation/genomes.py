"""Genomes as arrays of bases, from FASTA files, folders of them, or a prepared corpus."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError

Bytes = NDArray[np.uint8]

SUFFIXES = (".fna", ".fa", ".fasta")
OTHER = 4
"""Code of everything that is not A, C, G or T."""

_CODE = np.full(256, OTHER, np.uint8)
for _value, _letters in enumerate((b"Aa", b"Cc", b"Gg", b"Tt")):
    _CODE[list(_letters)] = _value
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
    return _CODE[sequence]


def tokens(codes: Bytes) -> Bytes:
    """The model's tokens (upper-case ASCII, N for `OTHER`) of codes."""
    return _TOKENS[codes]


def reverse_complement(codes: Bytes) -> Bytes:
    """Codes of the other strand, 5' to 3', along the last axis."""
    return _COMPLEMENT[codes[..., ::-1]]


def read_fasta(path: Path) -> list[tuple[str, Bytes]]:
    """(name, codes) of every record of a FASTA file, plain, gzip or bgzip.

    Raises:
        EvoError: if the file cannot be read or is not FASTA.
    """
    try:
        text = path.read_bytes()
        if text[:2] == b"\x1f\x8b":
            text = gzip.decompress(text)
    except (OSError, EOFError, zlib.error) as error:
        raise EvoError(f"cannot read {path}: {error}") from None
    if not text.startswith(b">"):
        raise EvoError(f"{path} does not begin with '>'; give FASTA files")
    records = []
    for block in (b"\n" + text).split(b"\n>")[1:]:
        header, _, body = block.partition(b"\n")
        name = (header.split() or [b""])[0].decode("utf-8", "replace")
        records.append((name, encode(body.translate(None, b"\r\n\t "))))
    return records


@dataclass(frozen=True)
class GenomeFile:
    """A genome that is read when asked for: a FASTA file, or one genome of a corpus folder."""

    name: str
    group: str
    path: Path
    corpus_index: int | None = None

    def read(self) -> Genome:
        """Read it."""
        if self.corpus_index is None:
            records = read_fasta(self.path)
        else:
            records = _corpus_records(self.path, self.corpus_index)
        return Genome(
            name=self.name,
            group=self.group,
            names=tuple(name for name, _ in records),
            records=tuple(codes for _, codes in records),
        )


def find_genomes(paths: Sequence[Path | str]) -> list[GenomeFile]:
    """The genomes of FASTA files, of folders (searched to any depth) and of corpus folders.

    Returns:
        In order of the arguments and, within a folder, of the path.

    Raises:
        EvoError: for a path that is absent or holds none, and when nothing was given.
    """
    found: list[GenomeFile] = []
    for given in paths:
        path = Path(given)
        if (path / "manifest.json").is_file():
            found += _corpus_genomes(path)
        elif path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and _stem(p) is not None)
            if not files:
                raise EvoError(
                    f"{path} holds no genome; give FASTA files ({', '.join(SUFFIXES)}, also .gz), folders of them, or a corpus of `evo-toolkit data prepare`"
                )
            found += [GenomeFile(_stem(p) or p.name, p.parent.name, p) for p in files]
        elif path.is_file():
            found.append(GenomeFile(_stem(path) or path.name, path.parent.name, path))
        else:
            raise EvoError(f"{path} does not exist; give FASTA files, folders of them, or a corpus")
    if not found:
        raise EvoError("no genomes were given; give FASTA files, folders of them, or a corpus")
    return found


def _stem(path: Path) -> str | None:
    """File name without `.fna` or `.fna.gz` and the like; None for other files."""
    name = path.name
    for packed in (".gz", ".bgz"):
        name = name.removesuffix(packed)
    for suffix in SUFFIXES:
        if name.endswith(suffix):
            return name.removesuffix(suffix)
    return None


def _corpus_genomes(path: Path) -> list[GenomeFile]:
    from evo_data.corpus import Corpus

    return [
        GenomeFile(genome.name, genome.group, path, index)
        for index, genome in enumerate(Corpus.open(path).genomes)
    ]


def _corpus_records(path: Path, genome: int) -> list[tuple[str, Bytes]]:
    from evo_data.corpus import Corpus

    corpus = Corpus.open(path)
    return [
        (corpus.records[i].name, encode(corpus.read(i, 0, corpus.records[i].length)))
        for i in corpus.records_of(genome)
    ]


def iterate(files: Sequence[GenomeFile]) -> Iterator[Genome]:
    """Read the genomes one after the other."""
    for file in files:
        yield file.read()
