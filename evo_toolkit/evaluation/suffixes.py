"""How far scores with cut suffixes are from those with full ones, on a user's own variants.

A model that reads in one direction says the same of the bases that it has read, whatever follows. So
one run with full suffixes holds the scores of every shorter one: their sums end earlier.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.fasta import Fasta
from evo_data.vcf import VcfRecord
from evo_data.windows import StrandWindow
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.statistics import spearman
from evo_toolkit.variants.reading import Tokens
from evo_toolkit.variants.reuse import ReusedPrefixes, window_runner
from evo_toolkit.variants.score import VariantScorer
from evo_toolkit.variants.scores import AlleleScore, strand_score
from evo_toolkit.variants.suffix import Adaptive, Suffix
from evo_toolkit.variants.window_runner import LogProbPair, TokenCount, WindowGroup, change_of

FULL = "full"
_FEWEST = 3


class _Shortened:
    """What a runner with a shorter suffix would have given, and the tokens that it would take."""

    def __init__(self, full: ReusedPrefixes, suffix: Suffix) -> None:
        self.suffix = suffix
        self.runner = ReusedPrefixes(full.model, full.window, step=full.step, suffix=suffix)
        self.count = TokenCount()

    def lengths(
        self, groups: Sequence[WindowGroup], pairs: Sequence[Sequence[LogProbPair]]
    ) -> list[list[int]]:
        """How far each allele is read."""
        found = []
        for group, of_group in zip(groups, pairs, strict=True):
            found.append(
                [
                    self._length(alt, fork, pair)
                    for (alt, fork), pair in zip(group.alts, of_group, strict=True)
                ]
            )
        if not isinstance(self.suffix, Adaptive):
            self.count.add(self.runner.plan(groups))
        else:
            self.count.add(TokenCount(self._tokens(groups, found), 0, 0))
        return found

    def _length(self, alt: Tokens, fork: int, pair: LogProbPair) -> int:
        if not isinstance(self.suffix, Adaptive):
            return self.runner.splits.stop(fork, len(alt))
        position, piece = self.runner.splits.position(fork, len(alt)), self.runner.splits.piece
        changes: list[float] = []
        for start in range(position, len(alt) if position else 0, piece):
            stop = start + piece
            changes.append(change_of(pair.alt[start:stop], pair.ref[start:stop]))
            if self.suffix.is_enough(changes, fork - position, piece):
                return min(stop, len(alt))
        return len(alt)

    def _tokens(self, groups: Sequence[WindowGroup], lengths: Sequence[Sequence[int]]) -> int:
        """Tokens of prefixes once, and of every distinct suffix as far as it is read."""
        total = 0
        for group, stops in zip(groups, lengths, strict=True):
            suffixes: dict[tuple[int, bytes], int] = {}
            for (alt, fork), stop in zip(group.alts, stops, strict=True):
                position = self.runner.splits.position(fork, len(alt))
                for tokens in (group.ref, alt):
                    key = position, tokens[position:].tobytes()
                    suffixes[key] = max(suffixes.get(key, 0), stop - position)
            total += max((position for position, _ in suffixes), default=0)
            total += sum(suffixes.values())
        return total


class _Comparison(VariantScorer):
    """Scores alleles with full suffixes, and leaves `dll` with every shorter one in `values`."""

    def __init__(
        self,
        runner: ReusedPrefixes,
        genome: Fasta,
        contigs: Mapping[str, str],
        shortened: Mapping[str, _Shortened],
        *,
        strands: str,
        circular: Collection[str],
    ) -> None:
        self._full = runner
        self._shortened = shortened
        self._lengths: dict[str, list[list[int]]] = {}
        super().__init__(
            _Watched(self, runner), genome, contigs, strands=strands, circular=circular
        )

    def watch(self, groups: Sequence[WindowGroup], pairs: Sequence[Sequence[LogProbPair]]) -> None:
        """Note how far each allele of a call would be read."""
        self._lengths = {name: s.lengths(groups, pairs) for name, s in self._shortened.items()}

    def _close_job(self, job: Any, found: list[list[LogProbPair]]) -> AlleleScore:
        score = super()._close_job(job, found)
        if score.dll is None:
            return score
        values: dict[str, float | None] = {}
        for name, lengths in self._lengths.items():
            strands = [
                _shortened_dll(window, found[group][alt], lengths[group][alt])
                for window, (group, alt) in zip(job.windows, job.places, strict=True)
            ]
            values[name] = sum(strands) / len(strands)
        return replace(score, values=values)


class _Watched:
    """A runner whose results are looked at on their way."""

    def __init__(self, comparison: _Comparison, runner: ReusedPrefixes) -> None:
        self._comparison = comparison
        self._runner = runner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def __call__(self, groups: Sequence[WindowGroup]) -> list[list[LogProbPair]]:
        pairs = self._runner(groups)
        self._comparison.watch(groups, pairs)
        return pairs


def _shortened_dll(window: StrandWindow, pair: LogProbPair, stop: int) -> float:
    return strand_score(window, pair.ref[:stop], pair.alt[:stop]).dll


def compare_suffixes(
    model: StripedHyena2,
    genome: Fasta,
    contigs: Mapping[str, str],
    records: Iterable[VcfRecord],
    suffixes: Mapping[str, Suffix],
    *,
    window: int | None = None,
    window_mode: str = "exact",
    strands: str = "both",
    circular: Collection[str] = (),
    advance: Callable[[int], None] | None = None,
) -> dict[str, Any]:
    """Score variants with full suffixes and say what shorter ones would change.

    Args:
        contigs: The genome's name for each contig name of the variants.
        suffixes: By name; None among them is left out, since it is what they are compared with.
        window: Bases per window; None is the model's own.
        window_mode: "exact" or "shared".
        advance: Called with the alleles that were finished since the last call.

    Returns:
        JSON: alleles and tokens with full suffixes, and for each shorter one the rank correlation
        of `dll` with that of full suffixes, the largest, the mean and the median difference in nats,
        tokens, and how many times fewer these are; of all alleles, and of those of the reference's
        length and of others apart.

    Raises:
        UsageError: for a window mode without suffixes.
        EvoError: if fewer than three alleles have a score.
    """
    if model.policy.rounding is not None:
        raise UsageError(
            f"precision {model.policy.name} reads windows whole, so it has no suffixes; use another precision"
        )
    runner = window_runner(model, window or model.config.default_window, window_mode)
    if not isinstance(runner, ReusedPrefixes):
        raise UsageError(
            f"window mode {window_mode} reads windows whole, so it has no suffixes; use exact or shared"
        )
    shortened = {
        name: _Shortened(runner, suffix) for name, suffix in suffixes.items() if suffix is not None
    }
    scorer = _Comparison(runner, genome, contigs, shortened, strands=strands, circular=circular)
    rows: list[tuple[bool, float, list[float | None]]] = []
    for scored in scorer.score(records):
        for allele in scored.alleles:
            if allele.dll is not None:
                short = [allele.values[name] for name in shortened]
                rows.append((allele.indel_len == 0, allele.dll, short))
        if advance is not None:
            advance(len(scored.alleles))
    if len(rows) < _FEWEST:
        raise EvoError(
            f"{len(rows)} alleles have a score; a rank correlation needs {_FEWEST} at least"
        )
    same = np.array([row[0] for row in rows])
    full = np.array([row[1] for row in rows])
    shorter = np.array([row[2] for row in rows], dtype=np.float64)
    tokens = runner.count.tokens
    return {
        "alleles": len(rows),
        "window": runner.window,
        "window_mode": runner.mode,
        "strands": strands,
        "piece_of_adaptive": runner.splits.piece,
        "tokens": tokens,
        "suffixes": {
            name: {
                "tokens": one.count.tokens,
                "times_fewer_tokens": tokens / one.count.tokens,
                **_differences(full, shorter[:, index]),
                "same_length": _differences(full[same], shorter[same, index]),
                "other_length": _differences(full[~same], shorter[~same, index]),
            }
            for index, (name, one) in enumerate(shortened.items())
        },
    }


def _differences(full: NDArray[np.float64], short: NDArray[np.float64]) -> dict[str, Any]:
    """Rank correlation and differences in nats; None where there are too few for them."""
    apart = np.abs(short - full)
    few = full.size < _FEWEST
    return {
        "alleles": int(full.size),
        "spearman": None if few else _or_none(spearman(full, short)),
        "max_difference": float(apart.max()) if full.size else None,
        "mean_difference": float(apart.mean()) if full.size else None,
        "median_difference": float(np.median(apart)) if full.size else None,
    }


def _or_none(value: float) -> float | None:
    """None for a correlation of what does not vary."""
    return value if np.isfinite(value) else None
