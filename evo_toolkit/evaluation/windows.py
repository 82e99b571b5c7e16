"""The windows that bits per base are measured in: tiles of every record, on both strands."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import OTHER
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.genomes import Bytes, Genome, reverse_complement

SHORTEST = 32
"""Records and last tiles of fewer bases are left out."""


@dataclass(frozen=True, kw_only=True)
class WindowSet:
    """Tiles of genomes; every tile is read on both strands.

    Attributes:
        context_length: Length of a tile in bases; the last of a record may be shorter.
        genome, record: Index of the genome and of the record in it, `[W]`.
        start, stop: 0-based half-open, forward strand, `[W]`.
    """

    context_length: int
    genome: NDArray[np.int64]
    record: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]

    def __len__(self) -> int:
        return self.genome.size

    def codes(self, genomes: Sequence[Genome], rows: Sequence[int] | slice, strand: str) -> Bytes:
        """The windows in reading direction, `[n, context_length]`, filled up with `OTHER`."""
        index = np.arange(len(self))[rows]
        result = np.full((index.size, self.context_length), OTHER, np.uint8)
        for row, at in enumerate(index):
            sequence = genomes[self.genome[at]].records[self.record[at]]
            part = sequence[self.start[at] : self.stop[at]]
            result[row, : part.size] = part if strand == "+" else reverse_complement(part)
        return result

    def batches(self, tokens: int) -> Iterator[slice]:
        """Slices of the windows with at most so many tokens each (one window at least)."""
        step = max(1, tokens // self.context_length)
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))


def tile_windows(
    genomes: Sequence[Genome],
    context_length: int,
    *,
    per_genome: int | None = None,
    seed: int = 0,
) -> WindowSet:
    """Cut every record into tiles of `context_length` bases, end to end.

    Args:
        genomes: The genomes.
        context_length: Bases of a tile; the rest of a record is a tile if it has 32 bases.
        per_genome: Keep so many tiles of each genome, drawn without replacement; None keeps all.
        seed: Of that draw; the draw of one genome does not depend on the others.

    Raises:
        EvoError: for a context below 32 bases, or a genome without a record of 32 bases.
    """
    if context_length < SHORTEST:
        raise EvoError(f"context length {context_length} is too short; use at least {SHORTEST}")
    rows: list[tuple[int, int, int, int]] = []
    for index, genome in enumerate(genomes):
        own = [
            (index, record, start, min(start + context_length, sequence.size))
            for record, sequence in enumerate(genome.records)
            for start in range(0, sequence.size - SHORTEST + 1, context_length)
        ]
        if not own:
            raise EvoError(f"genome {genome.name} has no record of {SHORTEST} bases; leave it out")
        if per_genome is not None and per_genome < len(own):
            random = np.random.default_rng((seed, len(own)))
            own = [own[i] for i in np.sort(random.choice(len(own), per_genome, replace=False))]
        rows += own
    table = np.array(rows, np.int64)
    return WindowSet(
        context_length=context_length,
        genome=table[:, 0],
        record=table[:, 1],
        start=table[:, 2],
        stop=table[:, 3],
    )


def sample_windows(
    genomes: Sequence[tuple[Genome, float]], length: int, count: int, seed: int
) -> Bytes:
    """Random windows of weighted genomes, each on a random strand, `[count, length]`.

    Records shorter than the window are used whole, filled up with `OTHER`; positions of all
    genomes count by weight.

    Raises:
        EvoError: when the genomes hold no record of 32 bases.
    """
    records = [
        (record, weight)
        for genome, weight in genomes
        for record in genome.records
        if record.size >= SHORTEST
    ]
    if not records:
        raise EvoError("no record of 32 bases to draw windows from; give more genomes")
    random = np.random.default_rng(seed)
    mass = np.array([weight * record.size for record, weight in records])
    chosen = random.choice(len(records), count, p=mass / mass.sum())
    result = np.full((count, length), OTHER, np.uint8)
    for row, index in enumerate(chosen):
        record = records[index][0]
        start = int(random.integers(0, max(record.size - length, 0) + 1))
        part = record[start : start + length]
        result[row, : part.size] = reverse_complement(part) if random.random() < 0.5 else part
    return result
