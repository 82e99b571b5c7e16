"""A training corpus on disk, and reading from it.

A corpus is a folder:

    manifest.json    what is in it and where it came from; a folder without one is no corpus
    records.tsv      name, genome, offset, length, sha256 of the upper-case sequence
    sequence.bin     all records back to back: a byte a base ("bytes"), or 2 bits ("packed")
    intervals.npz    with "packed" only: see `evo_data.corpus.packed`

Soft-masked bases are lower-case letters. Offsets and lengths are in bases; a record's position 0 is
its first base, and every range is 0-based and half-open. Records of one genome stand together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from evo_data.corpus.manifest import INTERVALS, MANIFEST, RECORDS, SEQUENCE, Genome, Manifest
from evo_data.corpus.packed import Bytes, PackedSequence
from evo_data.errors import CorpusError
from evo_data.files import sha256_file

WORK = ".preparing"
"""Folder within the corpus where it is made; gone when it is finished."""
RECORD_COLUMNS = ("name", "genome", "offset", "length", "sha256")


class Record(NamedTuple):
    """A contiguous sequence of the corpus.

    Attributes:
        name: Its name in the source file; unique within its genome.
        genome: Index of its genome in `Corpus.genomes`.
        offset: Corpus position of its first base.
        length: Its length in bases.
        sha256: Of its upper-case sequence; empty where it was never computed.
    """

    name: str
    genome: int
    offset: int
    length: int
    sha256: str = ""


class StoredSequence(Protocol):
    """Where the bases lie."""

    def read(self, start: int, stop: int) -> Bytes: ...


class ByteSequence:
    """Random access to a sequence of a byte a base; the file is mapped at the first read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._map: NDArray[np.uint8] | None = None

    def read(self, start: int, stop: int) -> Bytes:
        """Return the ASCII bytes at corpus positions `[start, stop)`, a new array."""
        if self._map is None:
            self._map = np.memmap(self._path, np.uint8, "r")
        return np.array(self._map[start:stop])


class Corpus:
    """Random access to the records of a corpus.

    Opening reads the manifest and the table of records; the bases are mapped when a process reads
    first, so a corpus may cross a fork, and a pickled one opens anew where it is unpickled.

    Attributes:
        path: The folder (for a Megatron corpus, the prefix), absolute.
        encoding: "bytes", "packed" or "megatron".
        genomes: The genomes, in the order of their records.
        records: The records, in the order of their offsets.
        offsets, lengths: Of the records, int64 `[R]`, in bases.
        record_genomes: Index of each record's genome, int64 `[R]`.
        num_bases: Sum of the lengths.
        manifest: The manifest; None for a Megatron corpus.
        digest: SHA-256 of what training reads: sequences, records, genomes with their groups,
            clusters and weights; not of where they came from. (Of a Megatron corpus, of the .idx
            and the size of the .bin.)
    """

    def __init__(
        self,
        path: Path,
        *,
        encoding: str,
        genomes: Sequence[Genome],
        records: Sequence[Record],
        sequence: StoredSequence,
        digest: str,
        manifest: Manifest | None = None,
    ) -> None:
        self.path = path.absolute()
        self.encoding = encoding
        self.genomes = list(genomes)
        self.records = list(records)
        self.manifest = manifest
        self.digest = digest
        self.offsets = np.array([record.offset for record in self.records], np.int64)
        self.lengths = np.array([record.length for record in self.records], np.int64)
        self.record_genomes = np.array([record.genome for record in self.records], np.int64)
        self.num_bases = int(self.lengths.sum())
        self._sequence = sequence

    @classmethod
    def open(cls, path: Path | str) -> Corpus:
        """Open a corpus folder, or a Megatron corpus by its prefix, .bin or .idx, where it lies.

        Raises:
            CorpusError: if there is none, or its files do not belong together.
        """
        from evo_data.corpus.megatron import megatron_prefix, open_megatron

        path = Path(path)
        prefix = megatron_prefix(path)
        if prefix is not None:
            return open_megatron(prefix)
        manifest_path = path / MANIFEST
        try:
            text = manifest_path.read_bytes()
        except OSError as error:
            raise CorpusError(_why_no_corpus(path, error)) from None
        manifest = Manifest.loads(text, manifest_path)
        for name, entry in manifest.files.items():
            _check_size(path / name, entry.bytes)
        sequence: StoredSequence
        if manifest.encoding == "packed":
            sequence = PackedSequence(path / SEQUENCE, path / INTERVALS)
        else:
            sequence = ByteSequence(path / SEQUENCE)
        corpus = cls(
            path,
            encoding=manifest.encoding,
            genomes=manifest.genomes,
            records=read_records(path / RECORDS),
            sequence=sequence,
            digest=_digest(manifest),
            manifest=manifest,
        )
        corpus._check(manifest)
        return corpus

    def read(self, record: int, start: int, stop: int) -> Bytes:
        """Return the bases `[start, stop)` of a record, forward strand, as ASCII with their case.

        Soft-masked bases are lower-case; what was no A, C, G, T or U in a genome is N (or n). The
        documents of a Megatron corpus come as they are, tags included.

        Args:
            record: Index in `records`.
            start, stop: 0-based half-open, within the record.

        Returns:
            A new uint8 array `[stop - start]`.

        Raises:
            CorpusError: if the range reaches outside of the record, or there is no such record.
        """
        if not 0 <= record < len(self.records):
            raise CorpusError(
                f"{self.path}: no record {record}; there are {len(self.records)}, from 0"
            )
        length = int(self.lengths[record])
        if not 0 <= start <= stop <= length:
            name = self.records[record].name
            raise CorpusError(
                f"{self.path}: [{start}, {stop}) is not within record {record} ({name}) of "
                f"{length} bases"
            )
        offset = int(self.offsets[record])
        if start == stop:
            return np.empty(0, np.uint8)
        try:
            return self._sequence.read(offset + start, offset + stop)
        except OSError as error:
            raise CorpusError(
                f"{self.path}: cannot be read ({error}); was it moved or deleted?"
            ) from error

    def records_of(self, genome: int) -> range:
        """Return the indices of a genome's records."""
        first = self.genomes[genome].first_record
        return range(first, first + self.genomes[genome].num_records)

    @cached_property
    def groups(self) -> list[str]:
        """The groups of the genomes, in alphabetical order."""
        return sorted({genome.group for genome in self.genomes})

    def verify(self) -> None:
        """Compute the checksum of every file and compare it with the manifest's.

        Raises:
            CorpusError: naming the first file that is not as it was written.
        """
        if self.manifest is None:
            raise CorpusError(f"{self.path}: a Megatron corpus carries no checksums; prepare it")
        for name, entry in self.manifest.files.items():
            if sha256_file(self.path / name) != entry.sha256:
                raise CorpusError(
                    f"{self.path / name} is not as it was written; copy the corpus again, or "
                    "prepare it anew"
                )

    def _check(self, manifest: Manifest) -> None:
        """Raise unless records, genomes and totals agree."""
        ends = np.concatenate(([0], self.offsets + self.lengths))
        counts = np.bincount(self.record_genomes, minlength=len(self.genomes)).tolist()
        if (
            not self.records
            or (ends[:-1] != self.offsets).any()
            or (self.lengths <= 0).any()
            or (np.diff(self.record_genomes) < 0).any()
            or counts != [genome.num_records for genome in self.genomes]
            or self.num_bases != manifest.totals.get("bases")
            or stored_size(manifest.encoding, self.num_bases) != manifest.files[SEQUENCE].bytes
        ):
            raise CorpusError(
                f"{self.path / RECORDS}: does not fit {MANIFEST}; prepare the corpus anew"
            )

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "digest": self.digest}

    def __setstate__(self, state: dict[str, Any]) -> None:
        opened = Corpus.open(state["path"])
        if opened.digest != state["digest"]:
            raise CorpusError(
                f"{state['path']}: the corpus was replaced by another while it was in use"
            )
        self.__dict__.update(opened.__dict__)

    def __repr__(self) -> str:
        return (
            f"Corpus({str(self.path)!r}, {len(self.genomes)} genomes, {len(self.records)} records, "
            f"{self.num_bases} bases, {self.encoding})"
        )


def is_corpus(path: Path) -> bool:
    """Return whether a path is a corpus folder, or (by prefix, .bin or .idx) a Megatron corpus."""
    from evo_data.corpus.megatron import megatron_prefix

    return (path / MANIFEST).is_file() or megatron_prefix(path) is not None


def stored_size(encoding: str, num_bases: int) -> int:
    """Return how many bytes of `sequence.bin` so many bases take."""
    return (num_bases + 3) // 4 if encoding == "packed" else num_bases


def record_line(record: Record) -> str:
    """Return a record's line in `records.tsv`."""
    return "\t".join(map(str, record)) + "\n"


def parse_record(line: str) -> Record:
    """Return the record of a line of `records.tsv`.

    Raises:
        ValueError: if it is none.
    """
    name, genome, offset, length, digest = line.split("\t")
    return Record(name, int(genome), int(offset), int(length), digest)


def read_records(path: Path) -> list[Record]:
    """Read `records.tsv`.

    Raises:
        CorpusError: naming the line that cannot be read.
    """
    try:
        # Split at line feeds only: str.splitlines would also split at odd characters in names.
        lines = path.read_bytes().decode("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise CorpusError(f"{path}: cannot be read ({error}); prepare the corpus anew") from error
    if lines[0] != "\t".join(RECORD_COLUMNS) or lines[-1] != "":
        raise CorpusError(f"{path}: damaged (first or last line); prepare the corpus anew")
    records = []
    for number, line in enumerate(lines[1:-1], start=2):
        try:
            records.append(parse_record(line))
        except ValueError as error:
            raise CorpusError(f"{path}:{number}: damaged; prepare the corpus anew") from error
    return records


def _digest(manifest: Manifest) -> str:
    files = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    genomes = [(g.name, g.group, g.cluster, g.weight, g.num_records) for g in manifest.genomes]
    return hashlib.sha256(json.dumps([files, genomes]).encode()).hexdigest()


def _check_size(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except OSError as error:
        raise CorpusError(
            f"{path}: {error.strerror}, but {MANIFEST} lists it; copy the corpus again, or prepare "
            "it anew"
        ) from error
    if found != size:
        raise CorpusError(
            f"{path}: has {found:,} bytes, {MANIFEST} says {size:,}; copy the corpus again, or "
            "prepare it anew"
        )


def _why_no_corpus(path: Path, error: OSError) -> str:
    if not path.exists():
        return f"{path}: no such corpus; make one with evo-toolkit data prepare"
    if not path.is_dir():
        return f"{path}: is a file; give a corpus folder, or make one with evo-toolkit data prepare"
    if (path / WORK).is_dir():
        return f"{path}: preparing this corpus was not finished; run the same data prepare again"
    if isinstance(error, FileNotFoundError):
        return f"{path}: no corpus (it has no {MANIFEST}); make one with evo-toolkit data prepare"
    return f"{path / MANIFEST}: cannot be read: {error.strerror}"
