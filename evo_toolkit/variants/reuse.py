"""Log-probabilities of alternates beside their reference, with the work on shared prefixes done once.

A reference window and its alternates agree up to the fork. Here the model reads what they share
once, keeps its state, and reads each allele's suffix from there, the reference's too: the two sides
of a score then come from the same forwards, and what the variant does not change cancels.

The split, where prefix ends and suffixes begin, depends on the fork alone. It lies at the middle of
the window, or up to a few chunks behind it in windows that many variants share; a fork further to
the left (at the start of a contig) shares nothing, and both windows are read whole. So every
forward has one of a few shapes [rows, length], short batches padded, and with given shapes a result
does not depend on batch-mates, order or the size of the input.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from evo_data.alphabet import BASES
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.runner import LogProbRunner, default_rows
from evo_toolkit.model.state import gather_forks, gather_rows
from evo_toolkit.variants.reading import (
    LOG_PROBS,
    Layers,
    LogProbs,
    Row,
    Tokens,
    Wanted,
    WindowReader,
)
from evo_toolkit.variants.suffix import QUIET_PIECES, Adaptive, Suffix

if TYPE_CHECKING:
    from evo_toolkit.model.state import ModelState
    from evo_toolkit.model.striped_hyena import StripedHyena2

_log = logging.getLogger("evo_toolkit")

WINDOW_MODES: dict[str, str] = {
    "exact": "a window for every place; what its alleles share is read once",
    "shared": "variants within 1/32 of a window share one",
    "full": "every window read whole",
}
"""How windows are placed and read."""

# Forwards over alternates per call: the last one of each shape is padded, and more of them dilute
# that; fewer hold less in memory.
_FORWARDS_PER_CALL = 32
# On a GPU, models at least this wide are busy with fewer rows, which leave less padding.
_WIDE, _WIDE_SHARE = 2048, 4
# Windows that variants share begin at multiples of this part of their length.
_SHARED_PART = 32
# There, one split per so many parts of the middle region.
_SPLITS_PER_STEP = 8
# Adaptive suffixes are read in pieces of this part of a window, in forwards with as many rows as
# for pieces so many times as long, at most so many (every row keeps the keys and values of a prefix),
# and so many forwards' worth of suffixes at a time.
_PIECES = 32
_ROWS_AS_OF = 4
_MOST_ROWS = 32
_SUFFIXES_PER_WAVE = 4


@dataclass(frozen=True, slots=True)
class WindowGroup:
    """A reference window and the alternates that are compared with it.

    Attributes:
        ref: Tokens in reading direction, `[n]`, n at most the window.
        alts: Tokens `[n]` of each alternate, and the first index at which they differ from `ref`
            (n when they are equal).
    """

    ref: Tokens
    alts: Sequence[tuple[Tokens, int]]


class LogProbPair(NamedTuple):
    """Log-probabilities of a reference and an alternate, nats; entry 0 is NaN.

    `[n]` each, or as far as the alleles were read where suffixes are cut short. An alternate that
    nobody asked for is empty, and its reference then reaches as far as the fork at least.

    Attributes:
        bases_ref, bases_alt: `[n, 4]` log-probabilities of A, C, G and T, if asked for.
        layers_ref, layers_alt: Mean outputs of layers from the fork on, `[C]`, if asked for.
    """

    ref: LogProbs
    alt: LogProbs
    bases_ref: LogProbs | None = None
    bases_alt: LogProbs | None = None
    layers_ref: Layers = MappingProxyType({})
    layers_alt: Layers = MappingProxyType({})


@dataclass
class TokenCount:
    """Tokens that went through the model.

    Attributes:
        tokens: Of windows, prefixes and suffixes.
        padding: Positions that only filled forwards up.
        whole: What reading every distinct window whole would have taken.
    """

    tokens: int = 0
    padding: int = 0
    whole: int = 0

    def add(self, other: TokenCount) -> None:
        self.tokens += other.tokens
        self.padding += other.padding
        self.whole += other.whole

    def text(self) -> str:
        """One line for a summary."""
        line = f"{self.tokens:,} tokens through the model"
        if self.tokens != self.whole:
            line += (
                f", {self.whole / self.tokens:.2f} times fewer than for these windows read whole"
            )
        return line


class WindowRunner(Protocol):
    """What the scoring engine needs of whatever runs the model.

    Attributes:
        mode: Its name among `WINDOW_MODES`.
        suffix: Bases that are read of each allele, `str` of an `Adaptive`, or None for all.
        window: Longest window, in bases.
        step: Where windows may begin (`evo_data.windows.variant_windows`).
        windows_per_call: How many windows a call should hold at most, for few rows of padding.
        count: Of all calls so far.
    """

    mode: str
    window: int
    step: int
    suffix: int | str | None
    count: TokenCount

    @property
    def windows_per_call(self) -> int: ...

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """(rows, length) of the forwards; a run that runs out of memory may change it."""

    def use_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        """Take the shapes of another runner of the same windows, so that results are the same bits."""

    def halve(self) -> None:
        """Use half the rows from now on, since memory does not suffice for as many."""

    def probe(self) -> None:
        """Find rows that fit into memory and measure; to be called before anything is written."""

    def estimate(self, num_references: int, num_alternates: int) -> float:
        """Seconds for so many windows, from the probe."""

    def plan(self, groups: Sequence[WindowGroup]) -> TokenCount:
        """Count what a call with these groups takes, without making it."""

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        """Run groups; a pair for every alternate of each."""


class WholeWindows:
    """Every distinct window read whole: the plain way, and the baseline of the others."""

    def __init__(self, runner: LogProbRunner, wanted: Wanted = LOG_PROBS) -> None:
        self.mode = "full"
        self.runner = runner
        self.wanted = wanted
        self._reader = WindowReader(runner.model, wanted)
        self.window = runner.shape[1]
        self.step = 1
        self.suffix: int | str | None = None
        self.count = TokenCount()
        self._seconds = 0.0

    @property
    def windows_per_call(self) -> int:
        return _FORWARDS_PER_CALL * self.runner.shape[0]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return (self.runner.shape,)

    def use_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        _require_lengths(self.shapes, shapes)
        (self.runner.shape,) = shapes

    def halve(self) -> None:
        before, (rows, length) = self.shapes, self.runner.shape
        self.runner.shape = (max(1, rows // 2), length)
        _tell_less_memory(before, self.shapes)

    def probe(self) -> None:
        self._seconds = self.runner.probe()

    def estimate(self, num_references: int, num_alternates: int) -> float:
        return -(-(num_references + num_alternates) // self.runner.shape[0]) * self._seconds

    def plan(self, groups: Sequence[WindowGroup]) -> TokenCount:
        """Count what a call with these groups takes."""
        lengths = [len(tokens) for tokens in _distinct_windows(groups, self.wanted)]
        forwards = -(-len(lengths) // self.runner.shape[0])
        total = sum(lengths)
        return TokenCount(total, forwards * self.runner.shape[0] * self.window - total, total)

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        rows: dict[bytes, Row] = {}
        alleles: list[list[_Allele]] = []
        for group in groups:
            alleles.append([])
            for alt, fork in group.alts:
                sides = [
                    rows.setdefault(tokens.tobytes(), Row(tokens))
                    for tokens in ((group.ref, alt) if self.wanted.alternate else (group.ref,))
                ]
                if self.wanted.layers:
                    for row in sides:
                        row.forks.add(fork)
                alleles[-1].append(_Allele(None, 0, fork, sides[0], sides[-1], self.wanted))
        self._reader.read_all(list(rows.values()), self.runner.shape)
        self.count.add(self.plan(groups))
        return [[allele.pair() for allele in group] for group in alleles]


def _distinct_windows(groups: Sequence[WindowGroup], wanted: Wanted = LOG_PROBS) -> list[Tokens]:
    windows: dict[bytes, Tokens] = {}
    for group in groups:
        alts = [alt for alt, _ in group.alts] if wanted.alternate else []
        for tokens in (group.ref, *alts):
            windows.setdefault(tokens.tobytes(), tokens)
    return list(windows.values())


@dataclass(slots=True)
class _Split:
    """Where suffixes leave a prefix, and those that do, by their bytes."""

    position: int
    suffixes: dict[bytes, Row] = field(default_factory=dict)
    alleles: list[_Allele] = field(default_factory=list)

    def add(self, tokens: Tokens, stop: int) -> Row:
        suffix = tokens[self.position : stop]
        return self.suffixes.setdefault(suffix.tobytes(), Row(suffix))


@dataclass(slots=True)
class _Prefix:
    """A reference window, read once up to its last split."""

    tokens: Tokens
    splits: dict[int, _Split] = field(default_factory=dict)
    log_probs: LogProbs | None = None
    bases: LogProbs | None = None
    """`[depth + 1, 4]`, if asked for: what comes after the prefix, too."""

    @property
    def depth(self) -> int:
        return max(self.splits)


@dataclass(slots=True)
class _Allele:
    """Where an alternate and its reference find their results; no prefix: both were read whole.

    Where the alternate is not wanted, `alt` is `ref`, and without a row the prefix says it all.

    Attributes:
        pieces: How many pieces of the rows count; None is all.
    """

    prefix: _Prefix | None
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
class _Plan:
    """What a call runs, each once, and what becomes of every alternate."""

    prefixes: dict[bytes, _Prefix] = field(default_factory=dict)
    whole: _Split = field(default_factory=lambda: _Split(0))
    alleles: list[list[_Allele]] = field(default_factory=list)


class _Waiting(NamedTuple):
    """A suffix whose prefix has been read: its row of a state, and what follows the prefix.

    The state lives as long as one of these does.
    """

    suffix: Row
    fork: tuple[ModelState, int]
    next_log_probs: Tensor


class ReusedPrefixes:
    """Prefixes once, suffixes of all alleles from the forked states.

    Attributes:
        window: Longest window, in bases; prefixes have half of it.
        chunk: Bases between two splits, and length of the forwards that lead from one to the next.
        num_splits: How many there are from the middle on.
    """

    def __init__(
        self,
        model: StripedHyena2,
        window: int,
        *,
        step: int = 1,
        suffix: Suffix = None,
        rows: int | None = None,
        wanted: Wanted = LOG_PROBS,
    ) -> None:
        """Prepare.

        Args:
            window: Longest window, in bases.
            step: Forks lie at `window // 2` and less than `step` behind it where windows are
                shared; 1 where every variant has its own.
            suffix: Read so many bases of each allele from its split on; None reads all.
            rows: Of every forward; None chooses by device and length.
            wanted: What is asked for beside log-probabilities.
        """
        self.model = model
        self.mode = "exact" if step == 1 else "shared"
        self.window = window
        self.step = step
        self.suffix = str(suffix) if isinstance(suffix, Adaptive) else suffix
        self.wanted = wanted
        self._reader = WindowReader(model, wanted)
        self._adaptive = suffix if isinstance(suffix, Adaptive) and wanted.alternate else None
        self._middle = window // 2
        self.chunk = max(1, step // _SPLITS_PER_STEP)
        self.num_splits = -(-step // self.chunk)
        self._whole = LogProbRunner(model, window, rows)
        self._prefix_shape = self._shape(self._middle, rows)
        self._cut = isinstance(suffix, int)
        self._suffix = min(suffix if isinstance(suffix, int) else window, window - self._middle)
        self._suffix_shape = self._shape(self._suffix, rows)
        if self._adaptive:
            # Rows as if the pieces were longer: every row has a prefix, whose state is kept.
            most = self._shape(_ROWS_AS_OF * self.piece, rows)[0]
            self._suffix_shape = min(most, _MOST_ROWS), self.piece
        self._positions_run = 0
        self.count = TokenCount()
        self._prefix_seconds = self._suffix_seconds = 0.0

    def _shape(self, length: int, rows: int | None) -> tuple[int, int]:
        if rows is None:
            device = self.model.device
            rows = default_rows(length, device)
            if device.type == "cuda" and self.model.config.width >= _WIDE:
                rows = max(1, rows // _WIDE_SHARE)
        return rows, length

    @property
    def windows_per_call(self) -> int:
        return _FORWARDS_PER_CALL * self._suffix_shape[0]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        chunks = ((self._prefix_shape[0], self.chunk),) if self.num_splits > 1 else ()
        return (self._prefix_shape, *chunks, self._suffix_shape, self._whole.shape)

    def split(self, fork: int, length: int) -> int:
        """Where an allele's suffix begins: a function of its fork and the window's length alone.

        0 means that both windows are read whole.
        """
        if fork < self._middle or length <= self._middle:
            return 0
        last = min(fork, length - 1)  # of equal windows, which fork at their end, too
        chunks = min((last - self._middle) // self.chunk, self.num_splits - 1)
        split = self._middle + chunks * self.chunk
        # Too far from the fork (in a repeat, near the end of a contig), a cut suffix misses it.
        missed = self._cut and fork < length and fork - split > self._suffix // 2
        return 0 if missed else split

    def stop(self, fork: int, length: int) -> int:
        """How far an allele is read, unless that is left to what is found."""
        if not self._cut:
            return length
        return min(length, (self.split(fork, length) or min(fork, length)) + self._suffix)

    @property
    def piece(self) -> int:
        """Bases of a piece of an adaptive suffix."""
        return max(1, self.window // _PIECES)

    def _plan(self, groups: Sequence[WindowGroup]) -> _Plan:
        plan = _Plan()
        for group in groups:
            key = group.ref.tobytes()
            alleles = []
            for alt, fork in group.alts:
                position = self.split(fork, len(alt))
                prefix, split = None, plan.whole
                stop = self.stop(fork, len(alt))
                if not self.wanted.alternate:
                    position, stop = self._reach(fork, len(alt)), min(fork + 1, len(alt))
                if position:
                    prefix = plan.prefixes.setdefault(key, _Prefix(group.ref))
                    split = prefix.splits.setdefault(position, _Split(position))
                ref = alt_row = None
                if self.wanted.alternate or position < fork < len(alt):
                    ref = alt_row = split.add(group.ref, stop)
                if self.wanted.alternate:
                    alt_row = split.add(alt, stop)
                if not position and ref is None:
                    ref = alt_row = split.add(group.ref, stop)
                allele = _Allele(prefix, position, fork, ref, alt_row, self.wanted)
                for row in (ref, alt_row):
                    if row is not None and self.wanted.layers:
                        row.forks.add(fork - position)
                split.alleles.append(allele)
                alleles.append(allele)
            plan.alleles.append(alleles)
        return plan

    def _reach(self, fork: int, length: int) -> int:
        """How far a prefix is read when only the base at the fork is asked for.

        To the fork, or to the end of the chunk it lies in: what follows a prefix is known, too. A
        fork behind the last of the splits is read to from there.
        """
        position = self.split(fork, length)
        if not position or fork >= length:
            return position
        beyond = min(-(-(fork - self._middle) // self.chunk), self.num_splits - 1)
        return min(self._middle + beyond * self.chunk, length)

    def plan(self, groups: Sequence[WindowGroup]) -> TokenCount:
        """Count what a call with these groups takes."""
        return self._counted(self._plan(groups), groups)

    def _counted(self, plan: _Plan, groups: Sequence[WindowGroup]) -> TokenCount:
        prefixes = list(plan.prefixes.values())
        splits = [split for prefix in prefixes for split in prefix.splits.values()]
        suffixes = [suffix for split in splits for suffix in split.suffixes.values()]
        whole = plan.whole.suffixes.values()
        tokens = sum(prefix.depth for prefix in prefixes)
        tokens += sum(row.num_read or len(row.tokens) for row in (*suffixes, *whole))
        rows = self._prefix_shape[0]
        run = sum(rows * max(p.depth for p in batch) for batch in _batches(prefixes, rows))
        for count, (rows, length) in (
            (len(suffixes), self._suffix_shape),
            (len(whole), self._whole.shape),
        ):
            run += -(-count // rows) * rows * length
        if self._adaptive:
            run = self._positions_run
        distinct = _distinct_windows(groups, self.wanted)
        return TokenCount(tokens, max(0, run - tokens), sum(map(len, distinct)))

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        """Run groups; out of memory, all of them again with half the rows.

        Raises:
            torch.OutOfMemoryError: when one row does not fit.
        """
        while not self._fits(plan := self._plan(groups)):
            self.halve()
        self.count.add(self._counted(plan, groups))
        return [[allele.pair() for allele in alleles] for alleles in plan.alleles]

    def _fits(self, plan: _Plan) -> bool:
        try:
            self._run(plan)
        except torch.OutOfMemoryError:
            if all(rows == 1 for rows, _ in self.shapes):
                raise
            return False
        return True

    def use_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        _require_lengths(self.shapes, shapes)
        self._prefix_shape, *_, self._suffix_shape, self._whole.shape = shapes

    def halve(self) -> None:
        before = self.shapes
        for name in ("_prefix_shape", "_suffix_shape"):
            rows, length = getattr(self, name)
            setattr(self, name, (max(1, rows // 2), length))
        rows, length = self._whole.shape
        self._whole.shape = (max(1, rows // 2), length)
        _tell_less_memory(before, self.shapes)

    def probe(self) -> None:
        """Find rows that fit, with as many states alive as a run ever holds, and measure."""
        rows = self._prefix_shape[0]
        ref = np.full(self.window, ord("A"), dtype=np.uint8)
        alt = ref.copy()
        alt[self._middle :] = ord("C")
        deepest = self._middle + (self.num_splits - 1) * self.chunk
        alts = [(alt, self._middle), (alt, min(deepest, self.window - 1))]
        # A CPU does not say that its memory is short, and forwards take long there.
        while self.model.device.type != "cpu":
            plan = _Plan(prefixes={bytes([i]): _Prefix(ref) for i in range(2 * rows)})
            for prefix in plan.prefixes.values():
                for tokens, fork in alts:
                    split = self.split(fork, len(tokens))
                    prefix.splits.setdefault(split, _Split(split)).add(tokens, split + self._suffix)
            if self._fits(plan):
                break
            self.halve()
            rows = self._prefix_shape[0]
        one = _Prefix(ref, {self._middle: _Split(self._middle)})
        one.splits[self._middle].add(alt, self._middle + self._suffix)
        start = time.perf_counter()
        with torch.inference_mode():
            waiting = self._read_prefixes([one])
            middle = time.perf_counter()
            self._read_suffixes(waiting)
        end = time.perf_counter()
        self._prefix_seconds, self._suffix_seconds = middle - start, end - middle
        if self._adaptive:  # at most: how far alleles are read is not known before
            self._suffix_seconds *= -(-self._suffix // self.piece)

    def estimate(self, num_references: int, num_alternates: int) -> float:
        prefixes = -(-num_references // self._prefix_shape[0])
        suffixes = -(-(num_references + num_alternates) // self._suffix_shape[0])
        if not self.wanted.alternate:  # nearly all forks lie where a prefix ends
            suffixes = 0
        return prefixes * self._prefix_seconds + suffixes * self._suffix_seconds

    @torch.inference_mode()
    def _run(self, plan: _Plan) -> None:
        self._positions_run = 0
        self._reader.read_all(list(plan.whole.suffixes.values()), self._whole.shape)
        if self._adaptive:
            self._run_adaptively(plan, self._adaptive)
            return
        rows = self._suffix_shape[0]
        waiting: deque[_Waiting] = deque()
        for batch in _batches(list(plan.prefixes.values()), self._prefix_shape[0]):
            waiting.extend(self._read_prefixes(batch))
            # What does not fill a forward waits for the next prefixes; their states stay alive.
            while len(waiting) >= rows:
                self._read_suffixes([waiting.popleft() for _ in range(rows)])
        if waiting:
            self._read_suffixes(list(waiting))

    def _run_adaptively(self, plan: _Plan, adaptive: Adaptive) -> None:
        """Read prefixes, and of every allele as many pieces as it takes."""
        waiting: list[_Waiting] = []
        splits: list[_Split] = []
        for batch in _batches(list(plan.prefixes.values()), self._prefix_shape[0]):
            waiting += self._read_prefixes(batch)
            splits += [split for prefix in batch for split in prefix.splits.values()]
            if len(waiting) >= _SUFFIXES_PER_WAVE * self._suffix_shape[0]:
                self._read_pieces(waiting, splits, adaptive)
                waiting, splits = [], []
        self._read_pieces(waiting, splits, adaptive)

    def _read_pieces(
        self, waiting: list[_Waiting], splits: Sequence[_Split], adaptive: Adaptive
    ) -> None:
        """Read suffixes piece after piece until no allele needs more of them."""
        rows, piece = self._suffix_shape
        deciding = [allele for split in splits for allele in split.alleles]
        # Rows that belong to no allele (of a probe) are read to their ends.
        free = {id(one.suffix) for one in waiting}
        free -= {id(row) for allele in deciding for row in (allele.ref, allele.alt)}
        begun = False
        while waiting:
            onward: list[_Waiting] = []
            for start in range(0, len(waiting), rows):
                batch = waiting[start : start + rows]
                state, following = self._read_suffixes(batch, begun=begun, onward=True)
                assert state is not None and following is not None
                onward += [
                    _Waiting(one.suffix, (state, row), following[row])
                    for row, one in enumerate(batch)
                ]
            begun = True
            for allele in deciding:
                changes = allele.changes(QUIET_PIECES)
                if adaptive.is_enough(changes, allele.fork - allele.position, piece):
                    allele.pieces = len(changes)
            deciding = [allele for allele in deciding if allele.pieces is None]
            needed = free | {id(row) for allele in deciding for row in (allele.ref, allele.alt)}
            waiting = [
                one
                for one in onward
                if id(one.suffix) in needed and one.suffix.num_read < len(one.suffix.tokens)
            ]

    def _read_prefixes(self, batch: Sequence[_Prefix]) -> list[_Waiting]:
        """Read prefixes up to their deepest split; the suffixes that may now be read."""
        reader = self._reader
        rows, position = self._prefix_shape
        ids = reader.ids([prefix.tokens[:position] for prefix in batch], self._prefix_shape)
        _, hidden, state = reader.hidden(ids, return_state=True)
        self._positions_run += ids.numel()
        unknown = hidden.new_full((rows, 1), float("nan"), dtype=torch.float32)
        parts = [unknown, self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float()]
        bases: list[Tensor] = []
        if self.wanted.bases:
            # Where only the fork is looked at, nothing in front of the middle is.
            whole = self.wanted.alternate
            bases.append(unknown[..., None].expand(rows, 1 if whole else position, len(BASES)))
            bases += [reader.bases(hidden[:, :-1])] if whole else []
        waiting: list[_Waiting] = []
        deepest = max(prefix.depth for prefix in batch)
        while True:
            assert state is not None
            following = reader.following(hidden)
            if self.wanted.bases:
                bases.append(reader.bases_following(following)[:, None])
            for row, prefix in enumerate(batch):
                if (split := prefix.splits.get(position)) is not None:
                    fork, after = (state, row), following[row]
                    waiting += [_Waiting(s, fork, after) for s in split.suffixes.values()]
            if position >= deepest:
                break
            end = position + self.chunk
            ids = reader.ids([p.tokens[position:end] for p in batch], (rows, self.chunk))
            _, hidden, state = reader.hidden(ids, state, return_state=True)
            self._positions_run += ids.numel()
            parts.append(following.gather(1, ids[:, :1]))
            parts.append(self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float())
            if self.wanted.bases:
                bases.append(reader.bases(hidden[:, :-1]))
            position = end
        found = torch.cat(parts, dim=1).cpu().numpy()
        of_bases = torch.cat(bases, dim=1).cpu().numpy() if bases else None
        for row, prefix in enumerate(batch):
            prefix.log_probs = found[row, : prefix.depth].copy()
            if of_bases is not None:
                prefix.bases = of_bases[row, : prefix.depth + 1].copy()
        return waiting

    def _read_suffixes(
        self, batch: Sequence[_Waiting], *, begun: bool = False, onward: bool = False
    ) -> tuple[ModelState | None, Tensor | None]:
        """Read suffixes, each from its prefix, or the next piece of suffixes that were `begun`.

        Returns:
            With `onward`, the state and what comes next.
        """
        filled = [*batch, *[batch[-1]] * (self._suffix_shape[0] - len(batch))]
        gather = gather_rows if begun else gather_forks
        self._positions_run += self._suffix_shape[0] * self._suffix_shape[1]
        return self._reader.read(
            [one.suffix for one in batch],
            self._suffix_shape,
            gather([one.fork for one in filled]),
            torch.stack([one.next_log_probs for one in filled]),
            return_state=onward,
        )


def change_of(alt: LogProbs, ref: LogProbs) -> float:
    """What a piece of an alternate and of its reference changes the score by, nats."""
    return float(alt.sum(dtype=np.float64) - ref.sum(dtype=np.float64))


def window_runner(
    model: StripedHyena2,
    window: int,
    mode: str | None = None,
    suffix: Suffix = None,
    *,
    wanted: Wanted = LOG_PROBS,
) -> WindowRunner:
    """What runs windows in one of `WINDOW_MODES`.

    Args:
        window: Longest window, in bases.
        mode: None is "exact", and "full" under a policy that rounds as the released implementation,
            whose forward with caches rounds otherwise than the one without.
        suffix: Bases to read of each allele, as many as it takes, or None for all; an approximation.
        wanted: What is asked for beside log-probabilities.

    Raises:
        UsageError: for an unknown mode, or one that does not go with the model's precision or with
            a suffix.
    """
    rounds = model.policy.rounding is not None
    if mode is None:
        mode = "full" if rounds else "exact"
    if mode not in WINDOW_MODES:
        raise UsageError(f"window mode {mode!r} is not known; use one of {', '.join(WINDOW_MODES)}")
    if suffix is not None and (mode == "full" or (isinstance(suffix, int) and suffix < 1)):
        raise UsageError(
            f"suffix {suffix} with window mode {mode!r} cannot be; give at least 1 base, with window mode exact or shared"
        )
    if mode == "full":
        return WholeWindows(LogProbRunner(model, window), wanted)
    if rounds:
        raise UsageError(
            f"window mode {mode!r} continues from states, which the released implementation rounds in another way; use --window-mode full with precision {model.policy.name}"
        )
    step = max(1, window // _SHARED_PART) if mode == "shared" else 1
    return ReusedPrefixes(model, window, step=step, suffix=suffix, wanted=wanted)


def _batches(prefixes: Sequence[_Prefix], rows: int) -> Iterator[Sequence[_Prefix]]:
    for start in range(0, len(prefixes), rows):
        yield prefixes[start : start + rows]


def _require_lengths(ours: Sequence[tuple[int, int]], given: Sequence[tuple[int, int]]) -> None:
    if [length for _, length in ours] != [length for _, length in given]:
        raise ValueError(
            f"forwards of {_listed(given)} do not fit these windows, which take {_listed(ours)}"
        )


def _tell_less_memory(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> None:
    # Only here, since the error's traceback held the tensors.
    torch.cuda.empty_cache()
    _log.warning("out of memory with forwards of %s; using %s", _listed(before), _listed(after))


def _listed(shapes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{rows} x {length}" for rows, length in shapes)
