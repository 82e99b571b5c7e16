"""What scoring asks of whatever runs windows: groups in, pairs of log-probabilities out, tokens counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np
import torch

from evo_toolkit.variants.reading import LOG_PROBS, Layers, LogProbs, Tokens, Wanted

_log = logging.getLogger("evo_toolkit")

WINDOW_MODES: dict[str, str] = {
    "exact": "a window for every place; what its alleles share is read once",
    "shared": "variants within 1/32 of a window share one",
    "tiled": "windows follow each other by 3/8 of a window; for methods that read the reference alone",
    "full": "every window read whole",
}
"""How windows are placed and read."""

# Forwards over alternates per call: the last one of each shape is padded, and more of them dilute
# that; fewer hold less in memory.
FORWARDS_PER_CALL = 32
# Where alternates are not read they take no forward, only memory: so many bases of windows per call.
_BASES_PER_CALL = 1 << 25


def windows_per_call(rows: int, window: int, wanted: Wanted, step: int = 1) -> int:
    """How many windows a call should hold at most.

    Args:
        rows: Of the forwards over alternates.
        window: Bases of a window.
        step: As many places may share a window.
    """
    number = FORWARDS_PER_CALL * rows
    if wanted.alternate:
        return number
    return max(number, min(number * step, _BASES_PER_CALL // window))


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


def distinct_windows(groups: Sequence[WindowGroup], wanted: Wanted = LOG_PROBS) -> list[Tokens]:
    """The windows of groups that are read, each once."""
    windows: dict[bytes, Tokens] = {}
    for group in groups:
        alts = [alt for alt, _ in group.alts] if wanted.alternate else []
        for tokens in (group.ref, *alts):
            windows.setdefault(tokens.tobytes(), tokens)
    return list(windows.values())


def change_of(alt: LogProbs, ref: LogProbs) -> float:
    """What a piece of an alternate and of its reference changes the score by, nats."""
    return float(alt.sum(dtype=np.float64) - ref.sum(dtype=np.float64))


def require_lengths(ours: Sequence[tuple[int, int]], given: Sequence[tuple[int, int]]) -> None:
    """Raise unless given shapes are as long as ours; their rows may differ."""
    if [length for _, length in ours] != [length for _, length in given]:
        raise ValueError(
            f"forwards of {_listed(given)} do not fit these windows, which take {_listed(ours)}"
        )


def tell_less_memory(before: Sequence[tuple[int, int]], after: Sequence[tuple[int, int]]) -> None:
    """Free what a forward that ran out of memory left, and say which shapes follow."""
    # Only here, since the error's traceback held the tensors.
    torch.cuda.empty_cache()
    _log.warning("out of memory with forwards of %s; using %s", _listed(before), _listed(after))


def _listed(shapes: Sequence[tuple[int, int]]) -> str:
    return ", ".join(f"{rows} x {length}" for rows, length in shapes)
