"""What a run would do: which alleles it can score, the tokens it takes, and how long that is here.

The tokens are counted by placing every window as the run would, without reading it; the time is that
of the first records, scored for some seconds and thrown away.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from evo_data.vcf import VcfRecord
from evo_toolkit.variants.run import ScoringRun
from evo_toolkit.variants.score import ReferenceBits
from evo_toolkit.variants.summary import Summary
from evo_toolkit.variants.window_runner import LogProbPair, TokenCount, WindowGroup, WindowRunner

PROBE_SECONDS = 10.0

# Placing windows takes a fraction of a millisecond for each: millions of records are extrapolated.
_PLACING_SECONDS = 60.0
_RECORDS_PROBED = 1024


class _Placing:
    """Stands in for a runner: counts what a call would take, and gives zeros."""

    def __init__(self, runner: WindowRunner) -> None:
        self._runner = runner
        self.window, self.step, self.mode, self.suffix = (
            runner.window, runner.step, runner.mode, runner.suffix,
        )  # fmt: skip
        self.windows_per_call = runner.windows_per_call
        self.count = TokenCount()
        self._zeros = np.zeros(runner.window, dtype=np.float32)

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        self.count.add(self._runner.plan(groups))
        return [
            [LogProbPair(self._zeros[: len(alt)], self._zeros[: len(alt)]) for alt, _ in group.alts]
            for group in groups
        ]


@dataclass
class Forecast:
    """What a run would do.

    Attributes:
        summary: Alleles by status.
        count: Tokens of the run; without a wait, as many as the placed records take.
        num_placed: Records whose windows have been placed.
        num_records: All records, or None where they could not be counted.
        rate: Tokens in a second, padding included, on this device; None if nothing can be scored.
    """

    summary: Summary
    count: TokenCount
    num_placed: int
    num_records: int | None
    rate: float | None

    @property
    def is_extrapolated(self) -> bool:
        return self.num_records is not None and self.num_placed < self.num_records

    @property
    def tokens(self) -> int:
        """Of the whole run, without padding."""
        return round(self.count.tokens * self._share())

    def seconds(self, num_devices: int = 1) -> float | None:
        """Of the whole run, on so many devices like this one."""
        if self.rate is None:
            return None
        total = (self.count.tokens + self.count.padding) * self._share()
        return total / self.rate / num_devices

    def _share(self) -> float:
        if not self.is_extrapolated:
            return 1.0
        assert self.num_records is not None
        return self.num_records / self.num_placed


def forecast(
    run: ScoringRun,
    records: Iterable[VcfRecord],
    num_records: int | None,
    *,
    seconds: float = PROBE_SECONDS,
) -> Forecast:
    """Place the windows of records, and score the first ones for some seconds.

    Args:
        num_records: How many there are; None where that is not known.
        seconds: Spent on scoring, if there are enough records.
    """
    scorer = copy.copy(run.scorer)
    placing = _Placing(run.scorer.runner)
    scorer.runner = placing  # type: ignore[assignment]
    scorer.methods, scorer.reference_bits = None, ReferenceBits()
    summary = Summary()
    source = iter(records)
    first = list(islice(source, _RECORDS_PROBED))
    deadline = time.monotonic() + _PLACING_SECONDS
    for scored in scorer.score(_until(deadline, first, source)):
        summary.add(scored)
    return Forecast(
        summary, placing.count, summary.num_records, num_records, _rate(run, first, seconds)
    )


def _until(
    deadline: float, first: Sequence[VcfRecord], others: Iterable[VcfRecord]
) -> Iterable[VcfRecord]:
    yield from first
    for record in others:
        if time.monotonic() > deadline:
            return
        yield record


def _rate(run: ScoringRun, records: Sequence[VcfRecord], seconds: float) -> float | None:
    """Tokens in a second, padding included: of the largest of growing numbers of records."""
    runner = run.scorer.runner
    rate, spent, number = None, 0.0, 1
    position = 0
    while position < len(records) and spent < seconds:
        runner.count = TokenCount()
        start = time.monotonic()
        for _ in run.scorer.score(records[position : position + number]):
            pass
        took = time.monotonic() - start
        done = runner.count.tokens + runner.count.padding
        if done:
            rate, spent = done / took, spent + took
        position, number = position + number, 2 * number
    return rate
