"""In-silico mutagenesis: the score of every single-base substitution of a region.

    delta      score(i, b) = dll of the SNV at base i to b, exactly what `evo-toolkit score` gives it
    marginal   score(i, b) = log p(b | context) - log p(base i | context), mean of both strands, the
               contexts being those of a track (`track`): three substitutions cost no more than one base

Nats, alternate minus reference: negative means that the substitution is LESS likely to the model. The
reference base itself has 0. A base other than A, C, G and T has no scores.

    importance(i) = -mean of the three scores of base i

is positive where the model prefers the reference, and is what a logo draws.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import BASES
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.variant import AlleleStatus
from evo_data.vcf import VcfRecord
from evo_toolkit.errors import UsageError
from evo_toolkit.variants.methods import BASE_TOKENS
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.scores import AlleleScore
from evo_toolkit.variants.track import Track, mean_of_strands
from evo_toolkit.variants.window_runner import WindowRunner

ISM_METHODS = {"delta": "dll", "marginal": "marg"}
"""The methods, and what a table calls the score of each."""

REDUCTIONS = ("mean", "min", "max")

# Bases whose scores are held at once.
_BLOCK = 1 << 16


@dataclass(frozen=True, slots=True)
class IsmBlock:
    """Scores of the substitutions of consecutive bases of one contig.

    Attributes:
        interval: Where; 0-based half-open, forward strand.
        sequence: The bases there, forward strand, upper-case.
        scores: `[n, 4]` float32, nats, columns A, C, G, T of the forward strand, mean of the strands
            that have a value; 0 for the reference base, NaN where there is none.
        strands: The same per scored strand, "+" or "-".
    """

    interval: Interval
    sequence: bytes
    scores: NDArray[np.float32]
    strands: dict[str, NDArray[np.float32]]

    @property
    def reference(self) -> NDArray[np.int64]:
        """`[n]` column of each reference base; -1 for bases other than A, C, G and T."""
        return reference_columns(self.sequence)

    def reduced(self, how: str) -> NDArray[np.float32]:
        """`[n]` mean, min or max of the three substitutions' scores, nats; NaN where one is missing."""
        column = self.reference
        others = np.arange(len(BASES))[None, :] != column[:, None]
        found = np.full(len(column), np.nan, dtype=np.float32)
        known = column >= 0
        three = self.scores[known][others[known]].reshape(-1, len(BASES) - 1).astype(np.float64)
        if how == "mean":
            found[known] = three.mean(axis=1)
        elif how == "min":
            found[known] = three.min(axis=1)
        elif how == "max":
            found[known] = three.max(axis=1)
        else:
            raise UsageError(f"reduction {how!r} is not known; use {', '.join(REDUCTIONS)}")
        return found

    @property
    def importance(self) -> NDArray[np.float32]:
        """`[n]` how much the model prefers the reference base: minus the mean of the three scores."""
        importance: NDArray[np.float32] = -self.reduced("mean")
        return importance


def reference_columns(sequence: bytes) -> NDArray[np.int64]:
    """`[n]` index of each base in "ACGT", -1 for any other letter."""
    columns = np.full(256, -1, dtype=np.int64)
    columns[list(BASE_TOKENS)] = list(BASE_TOKENS.values())
    found: NDArray[np.int64] = columns[np.frombuffer(sequence, np.uint8)]
    return found


def substitutions(interval: Interval, sequence: bytes) -> Iterator[VcfRecord]:
    """One record for each base A, C, G or T of a stretch, with the three others as alternates."""
    for offset, base in enumerate(sequence.decode("ascii")):
        if base not in BASES:
            continue
        yield VcfRecord(
            line=b"", terminator=b"", number=offset, contig=interval.contig,
            pos=interval.start + offset + 1, id=".", ref=base,
            alts=tuple(other for other in BASES if other != base), filters=(), info=b"",
        )  # fmt: skip


def ism_delta(
    runner: WindowRunner,
    genome: Fasta,
    regions: Sequence[Interval],
    *,
    strands: str = "both",
    advance: Callable[[int], None] | None = None,
) -> Iterator[IsmBlock]:
    """Yield the `delta` scores of regions, in their order, in blocks of bounded size.

    Args:
        runner: Runs the model; its window is that of the scores.
        regions: Regions of the genome, none empty.
        strands: "both", "fwd" or "rc".
        advance: Called with the number of bases that were finished since the last call.
    """
    scorer = VariantScorer(runner, genome, {name: name for name in genome.lengths}, strands=strands)
    names = ("+", "-") if strands == "both" else (scorer.strands,)
    for block in _blocks(regions):
        sequence = genome.fetch(block.contig, block.start, block.end)
        shape = (block.length, len(BASES))
        mean = np.full(shape, np.nan, dtype=np.float32)
        by_strand = {name: np.full(shape, np.nan, dtype=np.float32) for name in names}
        for scored in scorer.score(substitutions(block, sequence)):
            offset = scored.record.pos - 1 - block.start
            row = BASE_TOKENS[ord(scored.record.ref)]
            for matrix in (mean, *by_strand.values()):
                matrix[offset, row] = 0.0
            for allele in scored.alleles:
                _enter(allele, offset, mean, by_strand)
            if advance is not None:
                advance(1)
        yield IsmBlock(block, sequence, mean, by_strand)


def _enter(
    allele: AlleleScore,
    offset: int,
    mean: NDArray[np.float32],
    by_strand: dict[str, NDArray[np.float32]],
) -> None:
    if allele.status is not AlleleStatus.OK:
        return
    column = BASE_TOKENS[ord(allele.alt)]
    mean[offset, column] = allele.dll
    for name, value in (("+", allele.dll_fwd), ("-", allele.dll_rc)):
        if value is not None:
            by_strand[name][offset, column] = value


def ism_marginal(
    track: Track,
    regions: Sequence[Interval],
    *,
    advance: Callable[[int], None] | None = None,
) -> Iterator[IsmBlock]:
    """Yield the `marginal` scores of regions, in their order, in blocks of bounded size.

    Args:
        track: Gives contexts and strands.
        regions: Regions of the genome, none empty.
        advance: Called with the number of tokens that were run since the last call.
    """
    for block in track.blocks(regions, advance):
        column = reference_columns(block.sequence)
        by_strand = {}
        for strand, bases in block.bases.items():
            own = np.take_along_axis(bases, np.maximum(column, 0)[:, None], axis=1)
            # Float64: the difference of two float32 numbers of like size would lose bits.
            by_strand[strand] = (bases.astype(np.float64) - own).astype(np.float32)
        mean = mean_of_strands(list(by_strand.values()))
        yield IsmBlock(block.interval, block.sequence, mean, by_strand)


def joined(blocks: Sequence[IsmBlock]) -> IsmBlock:
    """Consecutive blocks of one contig as one."""
    first, last = blocks[0].interval, blocks[-1].interval
    return IsmBlock(
        Interval(first.contig, first.start, last.end),
        b"".join(block.sequence for block in blocks),
        np.concatenate([block.scores for block in blocks]),
        {
            name: np.concatenate([block.strands[name] for block in blocks])
            for name in blocks[0].strands
        },
    )


def _blocks(regions: Sequence[Interval]) -> Iterator[Interval]:
    for region in regions:
        for start in range(region.start, region.end, _BLOCK):
            yield Interval(region.contig, start, min(start + _BLOCK, region.end))
