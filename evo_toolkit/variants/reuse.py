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

import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from evo_data.alphabet import BASES
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.runner import LogProbRunner, default_rows
from evo_toolkit.model.state import gather_forks, gather_rows
from evo_toolkit.variants.read_plan import Plan, Prefix, Split, Splits, batches
from evo_toolkit.variants.reading import LOG_PROBS, LogProbs, Row, Wanted, WindowReader
from evo_toolkit.variants.suffix import QUIET_PIECES, Adaptive, Suffix
from evo_toolkit.variants.whole_windows import WholeWindows
from evo_toolkit.variants.window_runner import (
    WINDOW_MODES,
    LogProbPair,
    TokenCount,
    WindowGroup,
    WindowRunner,
    distinct_windows,
    require_lengths,
    tell_less_memory,
    windows_per_call,
)

if TYPE_CHECKING:
    from evo_toolkit.model.state import ModelState
    from evo_toolkit.model.striped_hyena import StripedHyena2

# On a GPU, models at least this wide are busy with fewer rows, which leave less padding.
_WIDE, _WIDE_SHARE = 2048, 4
# Windows that variants share begin at multiples of this part of their length.
_SHARED_PART = 32
# There, the places of forks are read in so many chunks.
_PARTS = 8
# Those of reference windows alone begin further apart: half a window of context stands before every
# place, and the last eighth is left to alleles that part late. More is read at a time.
_TILED_STEP, _TILED_PARTS = 3 / 8, 2
# Adaptive suffixes are read in forwards with as many rows as for pieces so many times as long, at
# most so many (every row keeps the keys and values of a prefix), and so many forwards' worth of
# suffixes at a time.
_ROWS_AS_OF = 4
_MOST_ROWS = 32
_SUFFIXES_PER_WAVE = 4


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
        splits: Where suffixes leave prefixes.
    """

    def __init__(
        self,
        model: StripedHyena2,
        window: int,
        *,
        step: int = 1,
        mode: str | None = None,
        suffix: Suffix = None,
        rows: int | None = None,
        wanted: Wanted = LOG_PROBS,
    ) -> None:
        """Prepare.

        Args:
            window: Longest window, in bases.
            step: Forks lie at `window // 2` and less than `step` behind it where windows are
                shared; 1 where every variant has its own.
            mode: Its name among `WINDOW_MODES`; None is "exact" with a step of 1, else "shared".
            suffix: Read so many bases of each allele from its split on; None reads all.
            rows: Of every forward; None chooses by device and length.
            wanted: What is asked for beside log-probabilities.
        """
        self.model = model
        self.mode = mode or ("exact" if step == 1 else "shared")
        self.window = window
        self.step = step
        self.suffix = str(suffix) if isinstance(suffix, Adaptive) else suffix
        self.wanted = wanted
        self._reader = WindowReader(model, wanted)
        self._adaptive = suffix if isinstance(suffix, Adaptive) and wanted.alternate else None
        self.splits = Splits(
            window, step, suffix if isinstance(suffix, int) else None,
            parts=_TILED_PARTS if self.mode == "tiled" else _PARTS,
        )  # fmt: skip
        self._whole = LogProbRunner(model, window, rows)
        self._prefix_shape = self._shape(self.splits.middle, rows)
        self._suffix_shape = self._shape(self.splits.longest, rows)
        if self._adaptive:
            # Rows as if the pieces were longer: every row has a prefix, whose state is kept.
            most = self._shape(_ROWS_AS_OF * self.splits.piece, rows)[0]
            self._suffix_shape = min(most, _MOST_ROWS), self.splits.piece
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
        return windows_per_call(self._suffix_shape[0], self.window, self.wanted, self.step)

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        chunks = ((self._prefix_shape[0], self.splits.chunk),) if self.splits.number > 1 else ()
        return (self._prefix_shape, *chunks, self._suffix_shape, self._whole.shape)

    def plan(self, groups: Sequence[WindowGroup]) -> TokenCount:
        """Count what a call with these groups takes."""
        return self._counted(Plan.of(groups, self.splits, self.wanted), groups)

    def _counted(self, plan: Plan, groups: Sequence[WindowGroup]) -> TokenCount:
        tokens = plan.num_tokens
        prefixes, rows = list(plan.prefixes.values()), self._prefix_shape[0]
        run = sum(rows * max(p.depth for p in batch) for batch in batches(prefixes, rows))
        for count, (rows, length) in (
            (len(plan.suffixes), self._suffix_shape),
            (len(plan.whole.suffixes), self._whole.shape),
        ):
            run += -(-count // rows) * rows * length
        if self._adaptive:
            run = self._positions_run
        distinct = distinct_windows(groups, self.wanted)
        return TokenCount(tokens, max(0, run - tokens), sum(map(len, distinct)))

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        """Run groups; out of memory, all of them again with half the rows.

        Raises:
            torch.OutOfMemoryError: when one row does not fit.
        """
        while not self._fits(plan := Plan.of(groups, self.splits, self.wanted)):
            self.halve()
        self.count.add(self._counted(plan, groups))
        return plan.pairs()

    def _fits(self, plan: Plan) -> bool:
        try:
            self._run(plan)
        except torch.OutOfMemoryError:
            self._reader.forget()
            if all(rows == 1 for rows, _ in self.shapes):
                raise
            return False
        return True

    def use_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        require_lengths(self.shapes, shapes)
        self._prefix_shape, *_, self._suffix_shape, self._whole.shape = shapes

    def halve(self) -> None:
        before = self.shapes
        for name in ("_prefix_shape", "_suffix_shape"):
            rows, length = getattr(self, name)
            setattr(self, name, (max(1, rows // 2), length))
        rows, length = self._whole.shape
        self._whole.shape = (max(1, rows // 2), length)
        tell_less_memory(before, self.shapes)

    def probe(self) -> None:
        """Find rows that fit, with as many states alive as a run ever holds, and measure."""
        rows = self._prefix_shape[0]
        ref = np.full(self.window, ord("A"), dtype=np.uint8)
        alt = ref.copy()
        alt[self.splits.middle :] = ord("C")
        alts = [(alt, self.splits.middle), (alt, min(self.splits.deepest, self.window - 1))]
        # A CPU does not say that its memory is short, and forwards take long there.
        while self.model.device.type != "cpu":
            plan = Plan(prefixes={bytes([i]): Prefix(ref) for i in range(2 * rows)})
            for prefix in plan.prefixes.values():
                for tokens, fork in alts:
                    split = self.splits.position(fork, len(tokens))
                    prefix.splits.setdefault(split, Split(split)).add(
                        tokens, split + self.splits.longest
                    )
            if self._fits(plan):
                break
            self.halve()
            rows = self._prefix_shape[0]
        one = Prefix(ref, {self.splits.middle: Split(self.splits.middle)})
        # What many places share is read to the last of them.
        one.splits.setdefault(last := self.splits.last(self.wanted), Split(last))
        one.splits[self.splits.middle].add(alt, self.splits.middle + self.splits.longest)
        start = time.perf_counter()
        with torch.inference_mode():
            waiting = self._read_prefixes([one])
            self._reader.collect()
            middle = time.perf_counter()
            self._read_suffixes(waiting)
            self._reader.collect()
        end = time.perf_counter()
        self._prefix_seconds, self._suffix_seconds = middle - start, end - middle
        if self._adaptive:  # at most: how far alleles are read is not known before
            self._suffix_seconds *= -(-self.splits.longest // self.splits.piece)

    def estimate(self, num_references: int, num_alternates: int) -> float:
        prefixes = -(-num_references // self._prefix_shape[0])
        suffixes = -(-(num_references + num_alternates) // self._suffix_shape[0])
        if not self.wanted.alternate:  # nearly all forks lie where a prefix ends
            suffixes = 0
        return prefixes * self._prefix_seconds + suffixes * self._suffix_seconds

    @torch.inference_mode()
    def _run(self, plan: Plan) -> None:
        self._positions_run = 0
        self._reader.read_all(list(plan.whole.suffixes.values()), self._whole.shape)
        if self._adaptive:
            self._run_adaptively(plan, self._adaptive)
            return
        rows = self._suffix_shape[0]
        waiting: deque[_Waiting] = deque()
        for batch in batches(list(plan.prefixes.values()), self._prefix_shape[0]):
            waiting.extend(self._read_prefixes(batch))
            # What does not fill a forward waits for the next prefixes; their states stay alive.
            while len(waiting) >= rows:
                self._read_suffixes([waiting.popleft() for _ in range(rows)])
        if waiting:
            self._read_suffixes(list(waiting))
        self._reader.collect()

    def _run_adaptively(self, plan: Plan, adaptive: Adaptive) -> None:
        """Read prefixes, and of every allele as many pieces as it takes."""
        waiting: list[_Waiting] = []
        splits: list[Split] = []
        for batch in batches(list(plan.prefixes.values()), self._prefix_shape[0]):
            waiting += self._read_prefixes(batch)
            splits += [split for prefix in batch for split in prefix.splits.values()]
            if len(waiting) >= _SUFFIXES_PER_WAVE * self._suffix_shape[0]:
                self._read_pieces(waiting, splits, adaptive)
                waiting, splits = [], []
        self._read_pieces(waiting, splits, adaptive)
        self._reader.collect()

    def _read_pieces(
        self, waiting: list[_Waiting], splits: Sequence[Split], adaptive: Adaptive
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
            self._reader.collect()
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

    def _read_prefixes(self, batch: Sequence[Prefix]) -> list[_Waiting]:
        """Read prefixes up to their deepest split; the suffixes that may now be read."""
        rows, middle = self._prefix_shape
        chunks = (max(prefix.depth for prefix in batch) - middle) // self.splits.chunk
        length = middle + chunks * self.splits.chunk
        ids = self._reader.ids([prefix.tokens[:length] for prefix in batch], (rows, length))
        self._positions_run += ids.numel()
        log_probs, bases, reached = self._reader.graphs(
            ("prefixes", rows, length), self._prefixes, ids
        )
        waiting = [
            _Waiting(suffix, (state, row), following[row])
            for index, (state, following) in enumerate(reached)
            for row, prefix in enumerate(batch)
            if (split := prefix.splits.get(middle + index * self.splits.chunk)) is not None
            for suffix in split.suffixes.values()
        ]

        def keep(found: LogProbs) -> None:
            for row, prefix in enumerate(batch):
                prefix.log_probs = found[row, : prefix.depth].copy()

        def keep_bases(found: LogProbs) -> None:
            for row, prefix in enumerate(batch):
                prefix.bases = found[row, : prefix.depth + 1].copy()

        self._reader.later(log_probs, keep)
        if bases is not None:
            self._reader.later(bases, keep_bases)
        return waiting

    def _prefixes(
        self, ids: Tensor
    ) -> tuple[Tensor, Tensor | None, list[tuple[ModelState, Tensor]]]:
        """Read `[B, L]` tokens up to the middle, and from split to split to their end.

        Returns:
            Log-probabilities `[B, L]`; those of the bases and of what comes next, `[B, L + 1, 4]`, if
            wanted; for every split the state there and what follows, `[B, V]`.
        """
        reader, (rows, length) = self._reader, ids.shape
        position = self.splits.middle
        _, hidden, state = reader.hidden(ids[:, :position], return_state=True)
        unknown = hidden.new_full((rows, 1), float("nan"), dtype=torch.float32)
        parts = [unknown, self.model.gather_log_probs(hidden[:, :-1], ids[:, 1:position]).float()]
        bases: list[Tensor] = []
        if self.wanted.bases:
            # Where only the fork is looked at, nothing in front of the middle is.
            whole = self.wanted.alternate
            bases.append(unknown[..., None].expand(rows, 1 if whole else position, len(BASES)))
            bases += [reader.bases(hidden[:, :-1])] if whole else []
        reached: list[tuple[ModelState, Tensor]] = []
        while True:
            assert state is not None
            following = reader.following(hidden)
            reached.append((state, following))
            if self.wanted.bases:
                bases.append(reader.bases_following(following)[:, None])
            if position >= length:
                break
            start, position = position, position + self.splits.chunk
            piece = ids[:, start:position]
            _, hidden, state = reader.hidden(piece, state, return_state=True)
            parts.append(following.gather(1, piece[:, :1]))
            parts.append(self.model.gather_log_probs(hidden[:, :-1], piece[:, 1:]).float())
            if self.wanted.bases:
                bases.append(reader.bases(hidden[:, :-1]))
        return torch.cat(parts, dim=1), torch.cat(bases, dim=1) if bases else None, reached

    def _read_suffixes(
        self, batch: Sequence[_Waiting], *, begun: bool = False, onward: bool = False
    ) -> tuple[ModelState | None, Tensor | None]:
        """Read suffixes, each from its prefix, or the next piece of suffixes that were `begun`.

        Returns:
            With `onward`, the state and what comes next.
        """
        filled = [*batch, *[batch[-1]] * (self._suffix_shape[0] - len(batch))]
        forks = [one.fork for one in filled]
        self._positions_run += self._suffix_shape[0] * self._suffix_shape[1]
        return self._reader.read(
            [one.suffix for one in batch],
            self._suffix_shape,
            gather_rows(forks) if begun else gather_forks(forks, self.splits.middle),
            torch.stack([one.next_log_probs for one in filled]),
            return_state=onward,
        )


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
    if mode == "tiled" and wanted.alternate:
        raise UsageError(
            "window mode 'tiled' is for methods that read the reference alone; give only -M marginal or -M entropy, or another window mode"
        )
    if mode == "tiled" and suffix is not None:
        raise UsageError("window mode 'tiled' reads no suffixes; leave --suffix full")
    if mode == "full":
        return WholeWindows(LogProbRunner(model, window), wanted)
    if rounds:
        raise UsageError(
            f"window mode {mode!r} continues from states, which the released implementation rounds in another way; use --window-mode full with precision {model.policy.name}"
        )
    steps = {"shared": window // _SHARED_PART, "tiled": int(window * _TILED_STEP)}
    step = max(1, steps.get(mode, 1))
    return ReusedPrefixes(model, window, step=step, mode=mode, suffix=suffix, wanted=wanted)
