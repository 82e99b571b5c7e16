"""Tracks along a genome: how likely each base is to a model, and how undecided the model is there.

The value of base i is about base i, on either strand: on "+" it is predicted from the bases before
it, on "-" its complement from the complements of the bases after it. Nats throughout.

    loglik  = log p(base i | context), over the full vocabulary
    entropy = -sum_b q(b) log q(b), q the four bases' probabilities divided by their sum

Contexts come from a grid that starts where a strand's reader does, so that a value does not depend on
which regions are asked for. In reading direction tile 0 is `[0, W)`, tile k is `[k*S, k*S + W)` with
window W and stride S, and each base takes its value from the first tile that holds it: every base is
predicted from at least W - S bases, but for those within W - S of the reader's start, which are
predicted from all there are. A window as long as the contig is one tile, and then the sum of the
track of a strand is the log-likelihood of the sequence in that direction.

The first base of each strand's reading has no prediction there; averages over both strands take the
other strand's value alone. Bases other than A, C, G and T have no value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import BASES, reverse_complement
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.runner import default_rows
from evo_toolkit.variants.methods import entropy as base_entropy
from evo_toolkit.variants.positions import PositionModel, Positions
from evo_toolkit.variants.score import STRANDS

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

QUANTITIES = ("loglik", "entropy")

# Bases per block of results, and tiles that wait for each other's company in a forward.
_BLOCK = 1 << 18
_MOST_TILES = 1024
# Forwards between two reports of progress.
_FORWARDS_PER_CALL = 4
_NAN = np.float32("nan")


@dataclass(frozen=True, slots=True)
class Tile:
    """A window in reading direction, `[start, end)`, of which `[keep, end)` is used."""

    start: int
    end: int
    keep: int


_Key = tuple[str, str, Tile]  # contig, strand, tile


def tiles(length: int, window: int, stride: int, first: int, last: int) -> list[Tile]:
    """Return the tiles of a sequence whose used parts meet `[first, last)`, in order.

    All numbers in bases, in reading direction.

    Args:
        length: Of the whole sequence.
        window: Longest tile, W.
        stride: Distance between the starts of tiles, S, from 1 to W.
    """
    if not 0 <= first < last <= length:
        return []

    def tile_of(position: int) -> int:
        return 0 if position < window else (position - window) // stride + 1

    found = []
    for index in range(tile_of(first), tile_of(last - 1) + 1):
        start = index * stride
        end = min(start + window, length)
        found.append(Tile(start, end, start + window - stride if index else 0))
    return found


@dataclass(frozen=True, slots=True)
class TrackBlock:
    """Values of consecutive bases of one contig.

    Attributes:
        interval: Where; 0-based half-open, forward strand.
        sequence: The bases there, forward strand, upper-case.
        loglik: `[n]` float32 per strand ("+", "-"), nats; NaN where there is no value.
        entropy: The same, nats.
        bases: `[n, 4]` float32 per strand: log-probability of A, C, G, T *of the forward strand* at
            each base, nats.
    """

    interval: Interval
    sequence: bytes
    loglik: dict[str, NDArray[np.float32]]
    entropy: dict[str, NDArray[np.float32]]
    bases: dict[str, NDArray[np.float32]]

    def mean(self, quantity: str) -> NDArray[np.float32]:
        """`[n]` mean of the strands that have a value, in nats; NaN where neither has."""
        return mean_of_strands(list(self.strands(quantity).values()))

    def strands(self, quantity: str) -> dict[str, NDArray[np.float32]]:
        """The values of "loglik" or "entropy", per strand."""
        found: dict[str, NDArray[np.float32]] = getattr(self, quantity)
        return found


def mean_of_strands(values: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Element-wise mean of what is not NaN; NaN where nothing is."""
    if len(values) == 1:
        return values[0]
    first, second = values
    mean = (first.astype(np.float64) + second) / 2
    mean = np.where(np.isnan(first), second, np.where(np.isnan(second), first, mean))
    return mean.astype(np.float32)


class Track:
    """Computes tracks of regions of a genome with one model.

    Attributes:
        window: Longest context plus one, in bases; None is each contig whole.
        stride: Distance between tiles, in bases.
        strands: "+", "-" or both.
        positions: The runner, which counts the tokens.
    """

    def __init__(
        self,
        model: StripedHyena2,
        genome: Fasta,
        *,
        window: int | None = None,
        stride: int | None = None,
        whole: bool = False,
        strands: str = "both",
        positions: PositionModel | None = None,
    ) -> None:
        """Prepare.

        Args:
            window: Bases per window; None is the model's `default_window`.
            stride: Bases from a window to the next; None is half a window.
            whole: Read every contig as one sequence, whatever its length; excludes window and
                stride.
            strands: "both", "fwd" or "rc".
            positions: What runs the windows, with the bases' log-probabilities; by default the model
                in this process.

        Raises:
            UsageError: for numbers that do not fit together, or unknown strands.
        """
        if strands not in STRANDS:
            raise UsageError(f"strands {strands!r} is not known; use one of {', '.join(STRANDS)}")
        if whole and not (window is None and stride is None):
            raise UsageError("a whole contig is one window; leave window and stride out")
        self.genome = genome
        self.window = None if whole else (window or model.config.default_window)
        if self.window is not None and self.window < 2:
            raise UsageError(f"window {self.window} is too small; use at least 2 bases")
        if self.window is not None and stride is not None and not 1 <= stride <= self.window:
            raise UsageError(
                f"stride {stride} does not fit window {self.window}; use 1 to {self.window} bases"
            )
        self.stride = stride or max(1, (self.window or 2) // 2)
        self.strands = ("+", "-") if strands == "both" else (STRANDS[strands],)
        self.positions = positions or PositionModel(model, bases=True)
        self.model = model

    def num_tokens(self, regions: Sequence[Interval]) -> int:
        """Tokens that the regions take, padding left out."""
        keys = {key: None for region in regions for key in self._tiles(region)}
        return sum(tile.end - tile.start for _, _, tile in keys)

    def blocks(
        self, regions: Sequence[Interval], advance: Callable[[int], None] | None = None
    ) -> Iterator[TrackBlock]:
        """Yield the track of the regions, in their order, in blocks of bounded size.

        A tile that neighbouring regions share is run once.

        Args:
            regions: Regions of the genome, none empty.
            advance: Called with the number of tokens that were run since the last call.
        """
        known: dict[_Key, Positions] = {}
        waiting: list[Interval] = []
        wanted: dict[_Key, None] = {}
        num_bases = 0
        for block in _blocks(regions):
            waiting.append(block)
            wanted.update(dict.fromkeys(self._tiles(block)))
            num_bases += block.length
            if num_bases >= _BLOCK or len(wanted) >= _MOST_TILES:
                known = self._run(wanted, known, advance)
                yield from (self._block(block, known) for block in waiting)
                waiting, wanted, num_bases = [], {}, 0
        known = self._run(wanted, known, advance)
        yield from (self._block(block, known) for block in waiting)

    def _tiles(self, region: Interval) -> list[_Key]:
        length = self.genome.lengths[region.contig]
        window = self.window or length
        return [
            (region.contig, strand, tile)
            for strand in self.strands
            for tile in tiles(length, window, self.stride, *self._range(region, strand))
        ]

    def _range(self, region: Interval, strand: str) -> tuple[int, int]:
        """First and one past the last base of a region in a strand's reading direction."""
        if strand == "+":
            return region.start, region.end
        length = self.genome.lengths[region.contig]
        return length - region.end, length - region.start

    def _run(
        self,
        wanted: Iterable[_Key],
        known: Mapping[_Key, Positions],
        advance: Callable[[int], None] | None,
    ) -> dict[_Key, Positions]:
        """What the model says about each tile, as far as it is not known already."""
        found = {key: known[key] for key in wanted if key in known}
        missing = [key for key in wanted if key not in known]
        size = 1
        if self.window is not None:
            size = default_rows(self.window, self.model.device) * _FORWARDS_PER_CALL
        for begin in range(0, len(missing), size):
            group = missing[begin : begin + size]
            rows = [self._tokens(*key) for key in group]
            found.update(zip(group, self.positions(rows), strict=True))
            if advance is not None:
                advance(sum(len(row) for row in rows))
        return found

    def _block(self, region: Interval, known: Mapping[_Key, Positions]) -> TrackBlock:
        sequence = self.genome.fetch(region.contig, region.start, region.end)
        judged = np.isin(np.frombuffer(sequence, np.uint8), np.frombuffer(BASES.encode(), np.uint8))
        block = TrackBlock(region, sequence, {}, {}, {})
        for strand in self.strands:
            log_probs, bases = self._strand(region, strand, known)
            if strand == "-":
                # A base's complement is predicted there: columns of T, G, C, A for A, C, G, T.
                log_probs, bases = log_probs[::-1], bases[::-1, ::-1]
            block.loglik[strand] = np.where(judged, log_probs, _NAN)
            block.entropy[strand] = np.where(judged, base_entropy(bases).astype(np.float32), _NAN)
            block.bases[strand] = np.where(judged[:, None], bases, _NAN)
        return block

    def _strand(
        self, region: Interval, strand: str, known: Mapping[_Key, Positions]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Values of one strand in reading direction: `[n]` and `[n, 4]`."""
        first, last = self._range(region, strand)
        log_probs = np.full(region.length, np.nan, dtype=np.float32)
        bases = np.full((region.length, len(BASES)), np.nan, dtype=np.float32)
        for key in self._tiles(region):
            if key[1] != strand:
                continue
            tile, row = key[2], known[key]
            low, high = max(tile.keep, first), min(tile.end, last)
            here = slice(low - tile.start, high - tile.start)
            there = slice(low - first, high - first)
            assert row.bases is not None
            log_probs[there], bases[there] = row.log_probs[here], row.bases[here]
        return log_probs, bases

    def _tokens(self, contig: str, strand: str, tile: Tile) -> NDArray[np.uint8]:
        if strand == "+":
            text = self.genome.fetch(contig, tile.start, tile.end)
        else:
            length = self.genome.lengths[contig]
            text = self.genome.fetch(contig, length - tile.end, length - tile.start)
            text = reverse_complement(text)
        return ByteTokenizer().encode(text)


def _blocks(regions: Sequence[Interval]) -> Iterator[Interval]:
    for region in regions:
        for start in range(region.start, region.end, _BLOCK):
            yield Interval(region.contig, start, min(start + _BLOCK, region.end))
