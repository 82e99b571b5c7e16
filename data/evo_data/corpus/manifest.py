"""The manifest of a corpus: what is in it, where it came from, and what was found on the way."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, NamedTuple

from evo_data.errors import CorpusError

FORMAT = "evo corpus"
FORMAT_VERSION = 1
MANIFEST, RECORDS, SEQUENCE, INTERVALS = (
    "manifest.json",
    "records.tsv",
    "sequence.bin",
    "intervals.npz",
)

Encoding = Literal["bytes", "packed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Genome:
    """What came from one source file.

    Attributes:
        name: The file's name without its endings, made unique within the corpus.
        group: What it counts as in per-group weights and results ("all" if nothing was said).
        file: The source as it was given.
        cluster: Number of its cluster of near-identical genomes.
        weight: One over the number of genomes in that cluster.
        num_bases: Total length of its records.
        acgt_bases: How many of them are A, C, G or T, masked ones included.
        soft_masked_bases: How many of them are lower-case.
        first_record: Index of its first record in `Corpus.records`; the others follow it.
        num_records: Number of its records.
    """

    name: str
    group: str
    file: str
    cluster: int
    weight: float
    num_bases: int
    acgt_bases: int
    soft_masked_bases: int
    first_record: int
    num_records: int

    @property
    def effective_bases(self) -> float:
        """A, C, G and T times the weight: what the genome adds to an epoch."""
        return self.acgt_bases * self.weight


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One input file.

    Attributes:
        file: The path as it was given (for a Megatron pair, the prefix).
        format: "fasta", "genbank", "embl" or "megatron".
        bytes: Size of the file (of both files of a pair).
        sha256: Of the file as it lies on disk (of a pair: of the .idx followed by the .bin).
        genome: Index of the genome that came from it; None if no record of it was kept.
    """

    file: str
    format: str
    bytes: int
    sha256: str
    genome: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Duplicate:
    """A record whose sequence stands in the corpus already.

    Attributes:
        file, record, length: The later one.
        same_as: Index in `Corpus.records` of the one that came first.
        strand: "-" if it is the reverse complement of that one.
        kept: Whether it is in the corpus nevertheless.
    """

    file: str
    record: str
    length: int
    same_as: int
    strand: str
    kept: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftOut:
    """A record that is not in the corpus, for another reason than being there already."""

    file: str
    record: str
    length: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Renamed:
    """A record whose name stood in its file before, with another sequence, or that had none."""

    file: str
    record: str
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """An input file of which nothing could be used, with consent (`skip_unusable`)."""

    file: str
    reason: str


class FileEntry(NamedTuple):
    """Size in bytes and SHA-256 of a file of the corpus."""

    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything about a corpus but its sequences and the names of its records.

    Attributes:
        encoding: "bytes" or "packed".
        settings: How it was prepared: duplicates, clusters (k, scale, threshold; None without).
        files: Each file of the corpus but the manifest.
        sources, genomes: In the order of the input.
        totals: genomes, clusters, records, bases, acgt_bases, soft_masked_bases, effective_bases.
        duplicates, left_out, renamed, unusable: What was found on the way.
    """

    encoding: Encoding
    settings: dict[str, Any]
    files: dict[str, FileEntry]
    sources: list[Source]
    genomes: list[Genome]
    totals: dict[str, float]
    duplicates: list[Duplicate] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)
    renamed: list[Renamed] = field(default_factory=list)
    unusable: list[Unusable] = field(default_factory=list)

    def dumps(self) -> str:
        """Return the text of `manifest.json`."""
        content = {"format": FORMAT, "format_version": FORMAT_VERSION, **asdict(self)}
        content["files"] = {name: entry._asdict() for name, entry in self.files.items()}
        return json.dumps(content, indent=1) + "\n"

    @classmethod
    def loads(cls, text: str | bytes, where: Path) -> Manifest:
        """Read the text of a `manifest.json` at `where`.

        Raises:
            CorpusError: if it is damaged, or of a version that this program does not know.
        """
        try:
            content = json.loads(text)
            if content.pop("format") != FORMAT:
                raise CorpusError(f"{where}: not the manifest of a corpus; prepare one")
            version = content.pop("format_version")
            if version != FORMAT_VERSION:
                raise CorpusError(
                    f"{where}: format version {version}, this program reads {FORMAT_VERSION}; "
                    "update evo-toolkit, or prepare the corpus anew"
                )
            # Keys that a later program may add are passed over.
            known = {name: content[name] for name in (f.name for f in fields(cls))}
            known["files"] = {name: FileEntry(**entry) for name, entry in known["files"].items()}
            for name, kind in _PARTS.items():
                known[name] = [
                    kind(**{f.name: entry[f.name] for f in fields(kind)}) for entry in known[name]
                ]
            if known["encoding"] not in ("bytes", "packed"):
                raise CorpusError(f"{where}: encoding {known['encoding']!r} is not known")
            return cls(**known)
        except (
            KeyError,
            TypeError,
            AttributeError,
            UnicodeDecodeError,
            json.JSONDecodeError,
        ) as error:
            raise CorpusError(
                f"{where}: damaged ({type(error).__name__}: {error}); prepare the corpus anew"
            ) from error


_PARTS: dict[str, Any] = {
    "sources": Source,
    "genomes": Genome,
    "duplicates": Duplicate,
    "left_out": LeftOut,
    "renamed": Renamed,
    "unusable": Unusable,
}
