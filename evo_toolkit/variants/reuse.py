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
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_toolkit.errors import UsageError
from evo_toolkit.inference.runner import LogProbRunner, default_rows, padded
from evo_toolkit.model.state import gather_forks

if TYPE_CHECKING:
    from evo_toolkit.model.state import ModelState
    from evo_toolkit.model.striped_hyena import StripedHyena2

_log = logging.getLogger("evo_toolkit")

Tokens = NDArray[np.uint8]
LogProbs = NDArray[np.float32]

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

    `[n]` each, or as far as the alleles were read where suffixes are cut short.
    """

    ref: LogProbs
    alt: LogProbs


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
        suffix: Bases that are read of each allele, or None for all.
        window: Longest window, in bases.
        step: Where windows may begin (`evo_data.windows.variant_windows`).
        windows_per_call: How many windows a call should hold at most, for few rows of padding.
        count: Of all calls so far.
    """

    mode: str
    window: int
    step: int
    suffix: int | None
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

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        """Run groups; a pair for every alternate of each."""


class WholeWindows:
    """Every distinct window read whole: the plain way, and the baseline of the others."""

    def __init__(self, runner: LogProbRunner) -> None:
        self.mode = "full"
        self.runner = runner
        self.window = runner.shape[1]
        self.step = 1
        self.suffix: int | None = None
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
        lengths = [len(tokens) for tokens in _distinct_windows(groups)]
        forwards = -(-len(lengths) // self.runner.shape[0])
        total = sum(lengths)
        return TokenCount(total, forwards * self.runner.shape[0] * self.window - total, total)

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        distinct = _distinct_windows(groups)
        keys = [tokens.tobytes() for tokens in distinct]
        found = dict(zip(keys, self.runner(distinct), strict=True))
        self.count.add(self.plan(groups))
        return [
            [LogProbPair(found[group.ref.tobytes()], found[alt.tobytes()]) for alt, _ in group.alts]
            for group in groups
        ]


def _distinct_windows(groups: Sequence[WindowGroup]) -> list[Tokens]:
    windows: dict[bytes, Tokens] = {}
    for group in groups:
        for tokens in (group.ref, *(alt for alt, _ in group.alts)):
            windows.setdefault(tokens.tobytes(), tokens)
    return list(windows.values())


@dataclass(slots=True)
class _Suffix:
    """One allele's tokens from a split on, and in the end their log-probabilities."""

    tokens: Tokens
    log_probs: LogProbs | None = None


@dataclass(slots=True)
class _Split:
    """Where suffixes leave a prefix, and those that do, by their bytes."""

    position: int
    suffixes: dict[bytes, _Suffix] = field(default_factory=dict)

    def add(self, tokens: Tokens, stop: int) -> _Suffix:
        suffix = tokens[self.position : stop]
        return self.suffixes.setdefault(suffix.tobytes(), _Suffix(suffix))


@dataclass(slots=True)
class _Prefix:
    """A reference window, read once up to its last split."""

    tokens: Tokens
    splits: dict[int, _Split] = field(default_factory=dict)
    log_probs: LogProbs | None = None

    @property
    def depth(self) -> int:
        return max(self.splits)


class _Allele(NamedTuple):
    """Where an alternate and its reference find their results; no prefix: both were read whole."""

    prefix: _Prefix | None
    position: int
    ref: _Suffix
    alt: _Suffix

    def pair(self) -> LogProbPair:
        assert self.ref.log_probs is not None and self.alt.log_probs is not None
        if self.prefix is None:
            return LogProbPair(self.ref.log_probs, self.alt.log_probs)
        assert self.prefix.log_probs is not None
        before = self.prefix.log_probs[: self.position]
        return LogProbPair(
            np.concatenate([before, self.ref.log_probs]),
            np.concatenate([before, self.alt.log_probs]),
        )


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

    suffix: _Suffix
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
        suffix: int | None = None,
        rows: int | None = None,
    ) -> None:
        """Prepare.

        Args:
            window: Longest window, in bases.
            step: Forks lie at `window // 2` and less than `step` behind it where windows are
                shared; 1 where every variant has its own.
            suffix: Read so many bases of each allele from its split on; None reads all.
            rows: Of every forward; None chooses by device and length.
        """
        self.model = model
        self.mode = "exact" if step == 1 else "shared"
        self.window = window
        self.step = step
        self.suffix = suffix
        self._middle = window // 2
        self.chunk = max(1, step // _SPLITS_PER_STEP)
        self.num_splits = -(-step // self.chunk)
        self._whole = LogProbRunner(model, window, rows)
        self._prefix_shape = self._shape(self._middle, rows)
        self._suffix = min(suffix or window, window - self._middle)
        self._cut = suffix is not None
        self._suffix_shape = self._shape(self._suffix, rows)
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

    def _plan(self, groups: Sequence[WindowGroup]) -> _Plan:
        plan = _Plan()
        for group in groups:
            key = group.ref.tobytes()
            alleles = []
            for alt, fork in group.alts:
                position = self.split(fork, len(alt))
                prefix, split = None, plan.whole
                stop = (position or min(fork, len(alt))) + self._suffix if self._cut else len(alt)
                if position:
                    prefix = plan.prefixes.setdefault(key, _Prefix(group.ref))
                    split = prefix.splits.setdefault(position, _Split(position))
                alleles.append(
                    _Allele(prefix, position, split.add(group.ref, stop), split.add(alt, stop))
                )
            plan.alleles.append(alleles)
        return plan

    def plan(self, groups: Sequence[WindowGroup]) -> TokenCount:
        """Count what a call with these groups takes."""
        return self._counted(self._plan(groups), groups)

    def _counted(self, plan: _Plan, groups: Sequence[WindowGroup]) -> TokenCount:
        prefixes = list(plan.prefixes.values())
        splits = [split for prefix in prefixes for split in prefix.splits.values()]
        suffixes = [suffix for split in splits for suffix in split.suffixes.values()]
        whole = plan.whole.suffixes.values()
        tokens = sum(prefix.depth for prefix in prefixes)
        tokens += sum(len(suffix.tokens) for suffix in (*suffixes, *whole))
        rows = self._prefix_shape[0]
        run = sum(rows * max(p.depth for p in batch) for batch in _batches(prefixes, rows))
        for count, (rows, length) in (
            (len(suffixes), self._suffix_shape),
            (len(whole), self._whole.shape),
        ):
            run += -(-count // rows) * rows * length
        return TokenCount(tokens, run - tokens, sum(map(len, _distinct_windows(groups))))

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

    def estimate(self, num_references: int, num_alternates: int) -> float:
        prefixes = -(-num_references // self._prefix_shape[0])
        suffixes = -(-(num_references + num_alternates) // self._suffix_shape[0])
        return prefixes * self._prefix_seconds + suffixes * self._suffix_seconds

    @torch.inference_mode()
    def _run(self, plan: _Plan) -> None:
        whole = list(plan.whole.suffixes.values())
        found = self._whole([suffix.tokens for suffix in whole])
        for suffix, log_probs in zip(whole, found, strict=True):
            suffix.log_probs = log_probs
        rows = self._suffix_shape[0]
        waiting: deque[_Waiting] = deque()
        for batch in _batches(list(plan.prefixes.values()), self._prefix_shape[0]):
            waiting.extend(self._read_prefixes(batch))
            # What does not fill a forward waits for the next prefixes; their states stay alive.
            while len(waiting) >= rows:
                self._read_suffixes([waiting.popleft() for _ in range(rows)])
        if waiting:
            self._read_suffixes(list(waiting))

    def _read_prefixes(self, batch: Sequence[_Prefix]) -> list[_Waiting]:
        """Read prefixes up to their deepest split; the suffixes that may now be read."""
        rows, position = self._prefix_shape
        ids = self._ids([prefix.tokens[:position] for prefix in batch], self._prefix_shape)
        hidden, state = self.model.hidden(ids, return_state=True)
        unknown = hidden.new_full((rows, 1), float("nan"), dtype=torch.float32)
        parts = [unknown, self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float()]
        waiting: list[_Waiting] = []
        deepest = max(prefix.depth for prefix in batch)
        while True:
            assert state is not None
            following = self._next_log_probs(hidden)
            for row, prefix in enumerate(batch):
                if (split := prefix.splits.get(position)) is not None:
                    fork, after = (state, row), following[row]
                    waiting += [_Waiting(s, fork, after) for s in split.suffixes.values()]
            if position >= deepest:
                break
            end = position + self.chunk
            ids = self._ids([p.tokens[position:end] for p in batch], (rows, self.chunk))
            hidden, state = self.model.hidden(ids, state, return_state=True)
            parts.append(following.gather(1, ids[:, :1]))
            parts.append(self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float())
            position = end
        found = torch.cat(parts, dim=1).cpu().numpy()
        for row, prefix in enumerate(batch):
            prefix.log_probs = found[row, : prefix.depth].copy()
        return waiting

    def _read_suffixes(self, batch: Sequence[_Waiting]) -> None:
        """Read suffixes, each from its prefix, and keep their log-probabilities."""
        filled = [*batch, *[batch[-1]] * (self._suffix_shape[0] - len(batch))]
        ids = self._ids([one.suffix.tokens for one in batch], self._suffix_shape)
        hidden, _ = self.model.hidden(ids, gather_forks([one.fork for one in filled]))
        first = torch.stack([one.next_log_probs for one in filled]).gather(1, ids[:, :1])
        rest = self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:]).float()
        found = torch.cat([first, rest], dim=1).cpu().numpy()
        for row, one in enumerate(batch):
            one.suffix.log_probs = found[row, : len(one.suffix.tokens)].copy()

    def _next_log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the token after the last position, `[B, V]` float32."""
        return self.model.head(hidden[:, -1:])[:, 0].float().log_softmax(-1)

    def _ids(self, tokens: Sequence[Tokens], shape: tuple[int, int]) -> Tensor:
        return torch.from_numpy(padded(tokens, shape)).to(self.model.device)


def window_runner(
    model: StripedHyena2, window: int, mode: str | None = None, suffix: int | None = None
) -> WindowRunner:
    """What runs windows in one of `WINDOW_MODES`.

    Args:
        window: Longest window, in bases.
        mode: None is "exact", and "full" under a policy that rounds as the released implementation,
            whose forward with caches rounds otherwise than the one without.
        suffix: Bases to read of each allele, or None for all; an approximation.

    Raises:
        UsageError: for an unknown mode, or one that does not go with the model's precision or with
            a suffix.
    """
    rounds = model.policy.rounding is not None
    if mode is None:
        mode = "full" if rounds else "exact"
    if mode not in WINDOW_MODES:
        raise UsageError(f"window mode {mode!r} is not known; use one of {', '.join(WINDOW_MODES)}")
    if suffix is not None and (suffix < 1 or mode == "full"):
        raise UsageError(
            f"suffix {suffix} with window mode {mode!r} cannot be; give at least 1 base, with window mode exact or shared"
        )
    if mode == "full":
        return WholeWindows(LogProbRunner(model, window))
    if rounds:
        raise UsageError(
            f"window mode {mode!r} continues from states, which the released implementation rounds in another way; use --window-mode full with precision {model.policy.name}"
        )
    step = max(1, window // _SHARED_PART) if mode == "shared" else 1
    return ReusedPrefixes(model, window, step=step, suffix=suffix)


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
