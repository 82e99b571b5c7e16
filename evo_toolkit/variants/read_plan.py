"""What a call over groups of windows reads, each once, and where every allele finds its part of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from evo_toolkit.variants.reading import Layers, LogProbs, Row, Tokens, Wanted
from evo_toolkit.variants.window_runner import LogProbPair, WindowGroup, change_of

# Adaptive suffixes are read in pieces of this part of a window.
_PIECES = 32


@dataclass(frozen=True, slots=True)
class Splits:
    """Where prefixes end and suffixes begin.

    Attributes:
        window: Longest window, in bases.
        step: Forks lie at `window // 2` and less than `step` behind it where windows are shared;
            1 where every variant has its own.
        suffix: Bases that are read of each allele from its split on; None is all of them.
        parts: Chunks that the places of forks are read in.
    """

    window: int
    step: int = 1
    suffix: int | None = None
    parts: int = 1

    @property
    def middle(self) -> int:
        """The first split, and the length of the prefix's first forward."""
        return self.window // 2

    @property
    def chunk(self) -> int:
        """Bases between two splits, and length of the forwards that lead from one to the next."""
        return max(1, self.step // self.parts)

    @property
    def number(self) -> int:
        """How many splits there are from the middle on."""
        return -(-self.step // self.chunk)

    @property
    def deepest(self) -> int:
        """The last split."""
        return self.middle + (self.number - 1) * self.chunk

    def last(self, wanted: Wanted) -> int:
        """How far prefixes are read at most: to the last split, or to the last place of a fork."""
        return (
            self.deepest
            if wanted.alternate
            else self.reach(self.middle + self.step - 1, self.window)
        )

    @property
    def longest(self) -> int:
        """Bases of the longest suffix."""
        behind = self.window - self.middle
        return behind if self.suffix is None else min(self.suffix, behind)

    @property
    def piece(self) -> int:
        """Bases of a piece of an adaptive suffix."""
        return max(1, self.window // _PIECES)

    def position(self, fork: int, length: int) -> int:
        """Where an allele's suffix begins: a function of its fork and the window's length alone.

        0 means that both windows are read whole.
        """
        if fork < self.middle or length <= self.middle:
            return 0
        last = min(fork, length - 1)  # of equal windows, which fork at their end, too
        chunks = min((last - self.middle) // self.chunk, self.number - 1)
        split = self.middle + chunks * self.chunk
        # Too far from the fork (in a repeat, near the end of a contig), a cut suffix misses it.
        missed = self.suffix is not None and fork < length and fork - split > self.longest // 2
        return 0 if missed else split

    def stop(self, fork: int, length: int) -> int:
        """How far an allele is read, unless that is left to what is found."""
        if self.suffix is None:
            return length
        return min(length, (self.position(fork, length) or min(fork, length)) + self.longest)

    def reach(self, fork: int, length: int) -> int:
        """How far a prefix is read when only the base at the fork is asked for.

        To the fork, or to the end of the chunk it lies in: what follows a prefix is known, too. A
        fork behind all chunks (in a repeat, near the end of a contig) is read to from there.
        """
        position = self.position(fork, length)
        if not position or fork >= length:
            return position
        beyond = -(-min(fork - self.middle, self.step - 1) // self.chunk)
        return min(self.middle + beyond * self.chunk, length)


@dataclass(slots=True)
class Split:
    """Where suffixes leave a prefix, and those that do, by their bytes."""

    position: int
    suffixes: dict[bytes, Row] = field(default_factory=dict)
    alleles: list[Allele] = field(default_factory=list)

    def add(self, tokens: Tokens, stop: int) -> Row:
        suffix = tokens[self.position : stop]
        return self.suffixes.setdefault(suffix.tobytes(), Row(suffix))


@dataclass(slots=True)
class Prefix:
    """A reference window, read once up to its last split."""

    tokens: Tokens
    splits: dict[int, Split] = field(default_factory=dict)
    log_probs: LogProbs | None = None
    bases: LogProbs | None = None
    """`[depth + 1, 4]`, if asked for: what comes after the prefix, too."""

    @property
    def depth(self) -> int:
        return max(self.splits)


@dataclass(slots=True)
class Allele:
    """Where an alternate and its reference find their results; no prefix: both were read whole.

    Where the alternate is not wanted, `alt` is `ref`, and without a row the prefix says it all.

    Attributes:
        pieces: How many pieces of the rows count; None is all.
    """

    prefix: Prefix | None
    position: int
    fork: int
    ref: Row | None
    alt: Row | None
    wanted: Wanted
    pieces: int | None = None

    def changes(self, last: int) -> list[float]:
        """What each piece read so far changes the score by, nats; only of the last ones."""
        assert self.ref is not None and self.alt is not None
        pieces = list(zip(self.alt.log_probs, self.ref.log_probs, strict=False))
        skipped = max(0, len(pieces) - last)
        return [0.0] * skipped + [change_of(*piece) for piece in pieces[skipped:]]

    def pair(self) -> LogProbPair:
        ref, bases_ref, layers_ref = self._side(self.ref)
        if not self.wanted.alternate:
            return LogProbPair(ref, ref[:0], bases_ref, None, layers_ref)
        alt, bases_alt, layers_alt = self._side(self.alt)
        return LogProbPair(ref, alt, bases_ref, bases_alt, layers_ref, layers_alt)

    def _side(self, row: Row | None) -> tuple[LogProbs, LogProbs | None, Layers]:
        log_probs: list[LogProbs] = []
        bases: list[LogProbs] = []
        layers: Layers = {}
        if self.prefix is not None:
            assert self.prefix.log_probs is not None
            end = self.position if row is not None else len(self.prefix.log_probs)
            log_probs.append(self.prefix.log_probs[:end])
            if self.prefix.bases is not None:
                bases.append(self.prefix.bases[: end + (row is None)])
        if row is not None:
            pieces = len(row.log_probs) if self.pieces is None else self.pieces
            log_probs += row.log_probs[:pieces]
            bases += row.bases[:pieces]
            if self.wanted.layers:
                layers = row.means(self.fork - self.position, pieces)
        return np.concatenate(log_probs), np.concatenate(bases) if bases else None, layers


@dataclass(slots=True)
class Plan:
    """What a call runs, each once, and what becomes of every alternate."""

    prefixes: dict[bytes, Prefix] = field(default_factory=dict)
    whole: Split = field(default_factory=lambda: Split(0))
    alleles: list[list[Allele]] = field(default_factory=list)

    @classmethod
    def of(cls, groups: Sequence[WindowGroup], splits: Splits, wanted: Wanted) -> Plan:
        """What these groups take, nothing of it read yet."""
        plan = cls()
        for group in groups:
            key = group.ref.tobytes()
            alleles = []
            for alt, fork in group.alts:
                position, stop = splits.position(fork, len(alt)), splits.stop(fork, len(alt))
                prefix, split = None, plan.whole
                if not wanted.alternate:
                    # Not to the fork: so its neighbours share the row, and padding would follow.
                    position = splits.reach(fork, len(alt))
                    stop = min(len(alt), position + splits.longest) if position else len(alt)
                if position:
                    prefix = plan.prefixes.setdefault(key, Prefix(group.ref))
                    split = prefix.splits.setdefault(position, Split(position))
                ref = alt_row = None
                if wanted.alternate or not position or position < fork < len(alt):
                    ref = alt_row = split.add(group.ref, stop)
                if wanted.alternate:
                    alt_row = split.add(alt, stop)
                allele = Allele(prefix, position, fork, ref, alt_row, wanted)
                for row in (ref, alt_row):
                    if row is not None and wanted.layers:
                        row.forks.add(fork - position)
                split.alleles.append(allele)
                alleles.append(allele)
            plan.alleles.append(alleles)
        return plan

    @property
    def suffixes(self) -> list[Row]:
        """What is read behind prefixes."""
        splits = [split for prefix in self.prefixes.values() for split in prefix.splits.values()]
        return [suffix for split in splits for suffix in split.suffixes.values()]

    @property
    def num_tokens(self) -> int:
        """Of prefixes, suffixes and whole windows; of pieces as far as they were read."""
        rows = (*self.suffixes, *self.whole.suffixes.values())
        prefixes = sum(prefix.depth for prefix in self.prefixes.values())
        return prefixes + sum(row.num_read or len(row.tokens) for row in rows)

    def pairs(self) -> list[list[LogProbPair]]:
        """What was found, of every alternate of each group."""
        return [[allele.pair() for allele in alleles] for alleles in self.alleles]


def batches(prefixes: Sequence[Prefix], rows: int) -> Iterator[Sequence[Prefix]]:
    """Prefixes, so many at a time."""
    for start in range(0, len(prefixes), rows):
        yield prefixes[start : start + rows]
