"""Windows read whole, each once: the plain way, and the baseline of the others."""

from __future__ import annotations

from collections.abc import Sequence

from evo_toolkit.inference.runner import LogProbRunner
from evo_toolkit.variants.read_plan import Allele
from evo_toolkit.variants.reading import LOG_PROBS, Row, Wanted, WindowReader
from evo_toolkit.variants.window_runner import (
    FORWARDS_PER_CALL,
    LogProbPair,
    TokenCount,
    WindowGroup,
    distinct_windows,
    require_lengths,
    tell_less_memory,
)


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
        return FORWARDS_PER_CALL * self.runner.shape[0]

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        return (self.runner.shape,)

    def use_shapes(self, shapes: Sequence[tuple[int, int]]) -> None:
        require_lengths(self.shapes, shapes)
        (self.runner.shape,) = shapes

    def halve(self) -> None:
        before, (rows, length) = self.shapes, self.runner.shape
        self.runner.shape = (max(1, rows // 2), length)
        tell_less_memory(before, self.shapes)

    def probe(self) -> None:
        self._seconds = self.runner.probe()

    def estimate(self, num_references: int, num_alternates: int) -> float:
        return -(-(num_references + num_alternates) // self.runner.shape[0]) * self._seconds

    def plan(self, groups: Sequence[WindowGroup]) -> TokenCount:
        """Count what a call with these groups takes."""
        lengths = [len(tokens) for tokens in distinct_windows(groups, self.wanted)]
        forwards = -(-len(lengths) // self.runner.shape[0])
        total = sum(lengths)
        return TokenCount(total, forwards * self.runner.shape[0] * self.window - total, total)

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        rows: dict[bytes, Row] = {}
        alleles: list[list[Allele]] = []
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
                alleles[-1].append(Allele(None, 0, fork, sides[0], sides[-1], self.wanted))
        self._reader.read_all(list(rows.values()), self.runner.shape)
        self.count.add(self.plan(groups))
        return [[allele.pair() for allele in group] for group in alleles]
