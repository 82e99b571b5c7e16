"""The scoring engine: records in, records with scores out, in order and in bounded memory."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from evo_data.circular import rotate
from evo_data.errors import ContigError
from evo_data.fasta import Fasta
from evo_data.symbolic import resolve
from evo_data.variant import (
    AlleleStatus,
    Fetch,
    Variant,
    check_reference,
    classify_allele,
    edit_of,
    hgvs_g,
    normalise,
)
from evo_data.vcf import VcfRecord
from evo_data.windows import StrandWindow, variant_windows
from evo_toolkit.errors import UsageError
from evo_toolkit.variants.ahead import read_ahead
from evo_toolkit.variants.allele_methods import AlleleMethods
from evo_toolkit.variants.scores import (
    AlleleScore,
    ScoredRecord,
    StrandScore,
    combine_strands,
    strand_score,
)
from evo_toolkit.variants.window_runner import LogProbPair, WindowGroup, WindowRunner

STRANDS = {"both": "both", "fwd": "+", "rc": "-"}
"""What a user calls the strands, and what `evo_data.windows` does."""

DEFAULT_MAX_ALLELE = 1000

# Records that cannot be scored wait for their neighbours, but not without bound.
_RECORDS_PER_FLUSH = 4096
_N = ord("N")


@dataclass
class ReferenceBits:
    """How well the model predicts the reference of the windows it scored.

    Every distinct reference window of a flush counts once; N bases and first positions do not.
    """

    nats: float = 0.0
    bases: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(256, dtype=np.int64))

    def add(self, tokens: NDArray[np.uint8], log_probs: NDArray[np.float32]) -> None:
        known = tokens[1:] != _N
        self.nats -= float(log_probs[1:][known].astype(np.float64).sum())
        self.bases += int(known.sum())
        self.counts += np.bincount(tokens[1:][known], minlength=256)

    @property
    def composition_bits(self) -> float | None:
        """Bits per base of a model that knows only how often each base occurs in these windows."""
        if not self.bases:
            return None
        shares = self.counts[self.counts > 0] / self.bases
        return float(-(shares * np.log2(shares)).sum())

    @property
    def bits_per_base(self) -> float | None:
        return self.nats / self.bases / math.log(2) if self.bases else None


@dataclass(slots=True)
class _Job:
    """An allele that waits for its windows' log-probabilities."""

    score: AlleleScore
    windows: list[StrandWindow]
    places: list[tuple[int, int]] = field(default_factory=list)


class _Buffer:
    """Distinct windows that wait to be run, and the records that wait for them."""

    def __init__(self) -> None:
        self.records: list[tuple[VcfRecord, list[AlleleScore | _Job]]] = []
        self.num_windows = 0
        self._groups: dict[bytes, tuple[int, dict[bytes, int]]] = {}
        self._contents: list[tuple[NDArray[np.uint8], list[tuple[NDArray[np.uint8], int]]]] = []

    @property
    def groups(self) -> list[WindowGroup]:
        return [WindowGroup(ref, alts) for ref, alts in self._contents]

    def shares(self, alleles: list[AlleleScore | _Job]) -> bool:
        """Whether a reference window of these alleles is here already."""
        return any(window.ref.tobytes() in self._groups for window in _windows(alleles))

    def num_new(self, alleles: list[AlleleScore | _Job]) -> int:
        """How many windows these alleles bring, at most."""
        references = {window.ref.tobytes() for window in _windows(alleles)}
        return len(references - self._groups.keys()) + sum(1 for _ in _windows(alleles))

    def add(self, record: VcfRecord, alleles: list[AlleleScore | _Job]) -> None:
        for allele in alleles:
            if isinstance(allele, _Job):
                allele.places = [self._place(window) for window in allele.windows]
        self.records.append((record, alleles))

    def _place(self, window: StrandWindow) -> tuple[int, int]:
        """Group of a window and its alternate's number there."""
        key = window.ref.tobytes()
        if key not in self._groups:
            self._groups[key] = (len(self._groups), {})
            self._contents.append((window.ref, []))
            self.num_windows += 1
        group, known = self._groups[key]
        alt = window.alt.tobytes()
        if alt not in known:
            known[alt] = len(known)
            self._contents[group][1].append((window.alt, window.fork))
            self.num_windows += 1
        return group, known[alt]


def _windows(alleles: list[AlleleScore | _Job]) -> Iterator[StrandWindow]:
    for allele in alleles:
        if isinstance(allele, _Job):
            yield from allele.windows


class VariantScorer:
    """Scores records one after the other through one `WindowRunner`.

    Attributes:
        reference_bits: Filled while scoring.
    """

    def __init__(
        self,
        runner: WindowRunner,
        genome: Fasta,
        contigs: Mapping[str, str],
        *,
        strands: str = "both",
        max_allele: int = DEFAULT_MAX_ALLELE,
        flags: tuple[str, ...] = (),
        circular: Collection[str] = (),
        methods: AlleleMethods | None = None,
    ) -> None:
        """Prepare.

        Args:
            runner: Runs the model; its window and step are those of the scores.
            genome: The reference.
            contigs: The genome's name for each contig name of the variants.
            strands: "both", "fwd" or "rc".
            max_allele: Longest allele that is scored, in bases; alleles longer than half the
                window are too long as well.
            flags: Put on every allele.
            circular: The genome's contigs whose ends are joined.
            methods: What else is computed of each allele, or in place of the sums; the runner must
                read what they want.

        Raises:
            UsageError: for unknown strands, or a window too small to hold a variant.
        """
        if strands not in STRANDS:
            raise UsageError(f"strands {strands!r} is not known; use one of {', '.join(STRANDS)}")
        window = runner.window
        if window < 16:
            raise UsageError(f"window {window} is too small; use at least 16 bases")
        self.runner = runner
        self.genome = genome
        self.contigs = contigs
        self.strands = STRANDS[strands]
        self.window = window
        self.max_allele = min(max_allele, window // 2 - runner.step + 1)
        self.flags = flags
        self.circular = frozenset(circular)
        self.methods = methods
        self.reference_bits = ReferenceBits()

    def score(self, records: Iterable[VcfRecord]) -> Iterator[ScoredRecord]:
        """Yield every record with its alleles' scores, in the order of the input.

        Records are read, and their windows cut, by a thread while the model runs. No allele stops the run: what cannot be scored gets a status.
        """
        for buffer in read_ahead(self._buffers(records), 1):
            yield from self._flush(buffer)

    def _buffers(self, records: Iterable[VcfRecord]) -> Iterator[_Buffer]:
        """Records with their windows, as many as a call of the runner takes."""
        buffer = _Buffer()
        enough = self.runner.windows_per_call
        for record in records:
            alleles = self._prepare_record(record)
            # Not in the middle of what shares windows, unless that goes on and on.
            limit = 2 * enough if buffer.shares(alleles) else enough
            more = buffer.num_new(alleles)
            if buffer.num_windows + more > limit or len(buffer.records) >= _RECORDS_PER_FLUSH:
                yield buffer
                buffer = _Buffer()
            buffer.add(record, alleles)
        yield buffer

    def read(self, record: VcfRecord, number: int) -> list[tuple[StrandWindow, LogProbPair]]:
        """The windows of one alternate allele of a record, and what the model says of them.

        Returns:
            One pair for each strand that is scored; empty if the allele cannot be.
        """
        job = self._prepare_allele(record, number, self.contigs.get(record.contig))
        if not isinstance(job, _Job):
            return []
        groups = [WindowGroup(window.ref, [(window.alt, window.fork)]) for window in job.windows]
        pairs = [pairs[0] for pairs in self.runner(groups)]
        return list(zip(job.windows, pairs, strict=True))

    def _prepare_record(self, record: VcfRecord) -> list[AlleleScore | _Job]:
        if not record.alts:
            return [self._unscored(AlleleStatus.MISSING_ALT, ".")]
        contig = self.contigs.get(record.contig)
        return [self._prepare_allele(record, number, contig) for number in range(len(record.alts))]

    def _unscored(self, status: AlleleStatus, alt: str) -> AlleleScore:
        return AlleleScore(status=status, alt=alt, flags=self.flags)

    def _prepare_allele(
        self, record: VcfRecord, number: int, contig: str | None
    ) -> AlleleScore | _Job:
        alt = record.alts[number]
        status = classify_allele(record.ref, alt)
        if status is not AlleleStatus.OK and (
            status is not AlleleStatus.SYMBOLIC or contig is None
        ):
            return self._unscored(status, alt)
        if contig is None:
            return self._unscored(AlleleStatus.CONTIG_UNKNOWN, alt)
        if record.pos < 1:
            return self._unscored(AlleleStatus.OUT_OF_RANGE, alt)
        length = self.genome.lengths[contig]

        def fetch(start: int, end: int) -> bytes:
            return self.genome.fetch(contig, start, end)

        if status is AlleleStatus.SYMBOLIC:
            resolved = resolve(record, number, fetch, length, max_allele=self.max_allele)
            if isinstance(resolved, AlleleStatus):
                return self._unscored(resolved, alt)
            return self._open_job(resolved, alt, fetch, length)
        variant = Variant(record.contig, record.pos, record.ref, alt)
        status = check_reference(variant, fetch, length)
        if status is not AlleleStatus.OK:
            return self._unscored(status, alt)
        return self._open_job(variant, alt, fetch, length)

    def _open_job(
        self, variant: Variant, alt: str, fetch: Fetch, length: int
    ) -> AlleleScore | _Job:
        normalised = normalise(variant, fetch)
        edit = edit_of(normalised)
        named = AlleleScore(
            status=AlleleStatus.OK,
            alt=alt,
            normalised=normalised,
            key=normalised.key,
            hgvs_g=hgvs_g(normalised, fetch, length),
            kind=normalised.kind,
            indel_len=normalised.indel_len,
        )
        # Measured on the trimmed variant: padding and siblings must not cost an allele its score.
        if max(edit.end - edit.start, len(edit.alt)) > self.max_allele:
            return replace(named, status=AlleleStatus.TOO_LONG, flags=self.flags)
        turned = None
        if self.contigs[variant.contig] in self.circular:
            turned = rotate(fetch, length, edit, self.window)
            fetch, edit = turned.fetch, turned.edit
        try:
            windows, flags = variant_windows(
                fetch, length, edit, self.window, self.strands, step=self.runner.step
            )
        except ContigError:
            return replace(named, status=AlleleStatus.CONTIG_SHORT, flags=self.flags)
        first = windows[0]
        start = first.start if turned is None else turned.position(first.start)
        # At the end of a contig nothing may be left to compare on one strand: equal windows of
        # different alleles say nothing and would only halve the other strand's score.
        telling = [w for w in windows if w.fork < len(w.ref)]
        if normalised.ref != normalised.alt and telling and len(telling) < len(windows):
            windows, flags = telling, flags | {"one_strand"}
        return _Job(
            replace(
                named,
                flags=(*self.flags, *sorted(flags)),
                window=len(first.ref),
                window_start=start,
                window_end=start + len(first.ref),
                n_in_window=int((first.ref == _N).sum()),
            ),
            windows,
        )

    def _flush(self, buffer: _Buffer) -> Iterator[ScoredRecord]:
        groups = buffer.groups
        found = self.runner(groups)
        for group, pairs in zip(groups, found, strict=True):
            log_probs = pairs[0].ref
            self.reference_bits.add(group.ref[: len(log_probs)], log_probs)
        for record, alleles in buffer.records:
            yield ScoredRecord(
                record,
                tuple(
                    self._close_job(allele, found) if isinstance(allele, _Job) else allele
                    for allele in alleles
                ),
            )

    def _close_job(self, job: _Job, found: list[list[LogProbPair]]) -> AlleleScore:
        pairs = [found[group][alt] for group, alt in job.places]
        sums: dict[str, float | None] = {}
        if self.methods is None or self.methods.delta:
            strands: list[StrandScore] = [
                strand_score(window, pair.ref, pair.alt)
                for window, pair in zip(job.windows, pairs, strict=True)
            ]
            sums = combine_strands(strands)
        others: dict[str, float | None] = {}
        if self.methods is not None:
            assert job.score.normalised is not None
            others = self.methods.values(job.windows, pairs)
            others |= self.methods.calibrated(
                job.score.normalised, {**sums, **others}, self.genome, self.contigs
            )
        values = [*sums.values(), *others.values()]
        if not all(value is None or math.isfinite(value) for value in values):
            return replace(job.score, status=AlleleStatus.NOT_FINITE)
        return replace(job.score, values=others, **sums)  # type: ignore[arg-type]
