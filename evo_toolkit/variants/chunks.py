"""Runs of neighbouring records that are scored together, kept on disk, and sent between processes.

A record's scores depend on the record, the genome, the model and the shapes of the forwards, and on
nothing else. So a run may be cut anywhere, its chunks scored in any order by any device, and put
together again: the result is the same to the last bit.
"""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evo_data.variant import AlleleStatus, Variant, classify_allele
from evo_data.vcf import VcfRecord
from evo_toolkit.variants.score import ReferenceBits
from evo_toolkit.variants.scores import AlleleScore, ScoredRecord
from evo_toolkit.variants.window_runner import TokenCount

# Records that need no forward still wait in memory.
_MOST_RECORDS = 4096


@dataclass(frozen=True)
class Chunk:
    """Neighbouring records of a run.

    Attributes:
        number: Of the chunk in its run, from 0.
        records: In the order of the input.
    """

    number: int
    records: tuple[VcfRecord, ...]

    def digest(self) -> str:
        """sha256 of the records' lines, each with a line feed."""
        digest = hashlib.sha256()
        for record in self.records:
            digest.update(record.line + b"\n")
        return digest.hexdigest()


@dataclass
class ChunkScores:
    """What became of a chunk.

    Attributes:
        number: Of the chunk.
        digest: Of its records.
        scores: Of each allele of each record.
        count: Tokens that it took.
        bits: How well the model predicts the reference of its windows.
        shapes: (rows, length) of the forwards.
        notes: What the user should know of how it was scored.
    """

    number: int
    digest: str
    scores: tuple[tuple[AlleleScore, ...], ...]
    count: TokenCount = field(default_factory=TokenCount)
    bits: ReferenceBits = field(default_factory=ReferenceBits)
    shapes: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()

    def scored(self, chunk: Chunk) -> Iterator[ScoredRecord]:
        """Yield the chunk's records with their scores."""
        for record, alleles in zip(chunk.records, self.scores, strict=True):
            yield ScoredRecord(record, alleles)

    def encoded(self) -> bytes:
        """The scores as gzip-compressed JSON; numbers are kept to the last bit."""
        content = {
            "number": self.number,
            "digest": self.digest,
            "shapes": self.shapes,
            "notes": self.notes,
            "count": dataclasses.asdict(self.count),
            "bits": {
                "nats": self.bits.nats,
                "bases": self.bits.bases,
                "counts": {str(i): int(self.bits.counts[i]) for i in np.flatnonzero(self.bits.counts)},
            },
            "scores": [[_allele_content(allele) for allele in row] for row in self.scores],
        }  # fmt: skip
        text = json.dumps(content, separators=(",", ":"))
        return gzip.compress(text.encode(), compresslevel=3, mtime=0)

    @classmethod
    def decoded(cls, data: bytes) -> ChunkScores:
        """Return what `encoded` was made of.

        Raises:
            ValueError: if the data is damaged.
        """
        try:
            content = json.loads(gzip.decompress(data))
            counts = np.zeros(256, dtype=np.int64)
            for token, number in content["bits"]["counts"].items():
                counts[int(token)] = number
            return cls(
                number=content["number"],
                digest=content["digest"],
                shapes=tuple((rows, length) for rows, length in content["shapes"]),
                notes=tuple(content["notes"]),
                count=TokenCount(**content["count"]),
                bits=ReferenceBits(content["bits"]["nats"], content["bits"]["bases"], counts),
                scores=tuple(tuple(map(_allele_of, row)) for row in content["scores"]),
            )
        except (OSError, EOFError, KeyError, TypeError, ValueError, zlib.error) as error:
            raise ValueError(f"no scores of a chunk: {error}") from error


_DEFAULTS = {
    f.name: f.default_factory() if f.default_factory is not dataclasses.MISSING else f.default
    for f in dataclasses.fields(AlleleScore)
}


def _allele_content(allele: AlleleScore) -> dict[str, Any]:
    """What of an allele's score is not as by default."""
    content: dict[str, Any] = {}
    for name, default in _DEFAULTS.items():
        value = getattr(allele, name)
        if value != default:
            content[name] = dataclasses.asdict(value) if isinstance(value, Variant) else value
    return content


def _allele_of(content: dict[str, Any]) -> AlleleScore:
    content["status"] = AlleleStatus(content["status"])
    if "normalised" in content:
        content["normalised"] = Variant(**content["normalised"])
    content["flags"] = tuple(content.get("flags", ()))
    return AlleleScore(**content)


def cut(records: Iterable[VcfRecord], num_windows: int) -> Iterator[Chunk]:
    """Cut records into chunks of at most so many windows, one record at least.

    Where the cuts fall depends on the records alone, so that an interrupted run finds its own.

    Args:
        num_windows: Counted as one reference and all alternates of a record, on one strand.
    """
    number, windows = 0, 0
    waiting: list[VcfRecord] = []
    for record in records:
        alleles = sum(classify_allele(record.ref, alt) is AlleleStatus.OK for alt in record.alts)
        more = alleles + 1 if alleles else 0
        if waiting and (windows + more > num_windows or len(waiting) >= _MOST_RECORDS):
            yield Chunk(number, tuple(waiting))
            number, windows, waiting = number + 1, 0, []
        waiting.append(record)
        windows += more
    if waiting:
        yield Chunk(number, tuple(waiting))
