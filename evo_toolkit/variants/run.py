"""One scoring run from files to scored records: what is checked before the model loads, and after."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from evo_data.annotations import with_carried
from evo_data.contigs import ContigAliases
from evo_data.csq import ConsequenceCaller, with_bcsq
from evo_data.fasta import Fasta
from evo_data.preflight import CHECKED_RECORDS, check_build, ref_differs
from evo_data.variant import AlleleStatus, classify_allele
from evo_data.variant_sources import VariantSource
from evo_data.vcf import VariantReader, VcfHeader, VcfRecord
from evo_toolkit._version import __version__
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.inference.domain import OUT_OF_DOMAIN_FLAG, check_domain
from evo_toolkit.variants.allele_methods import AlleleMethods, MethodOptions
from evo_toolkit.variants.reading import LOG_PROBS
from evo_toolkit.variants.reuse import window_runner
from evo_toolkit.variants.score import DEFAULT_MAX_ALLELE, ReferenceBits, VariantScorer
from evo_toolkit.variants.scores import RunInfo, ScoredRecord
from evo_toolkit.variants.suffix import Suffix

if TYPE_CHECKING:
    from evo_toolkit.model.config import StripedHyena2Config
    from evo_toolkit.model.striped_hyena import StripedHyena2
    from evo_toolkit.variants.window_runner import WindowRunner

UNINFORMATIVE_BITS = 1.95
"""Reference bits per base above which a model predicts a sequence no better than its composition:
four equally frequent bases take 2 bits."""

CHECK_REF = {"e": "stop", "w": "score the others", "x": "leave the record out"}
"""What becomes of a record whose REF is not the genome's; letters as in `bcftools norm -c`."""

_MOST_NAMES = 8


@dataclass
class Places:
    """How many places of a genome records have, and how many stretches of one length hold them.

    Right for records in the order of the genome; others are counted more than once.
    """

    by_bits: list[int] = field(default_factory=lambda: [0] * 33)
    """By how many bits of the position are not those of the place before; 32 on a new contig."""

    _last: tuple[str, int] | None = field(default=None, repr=False)

    def add(self, contig: str, position: int) -> None:
        last = self._last
        known = last is not None and last[0] == contig
        changed = min(32, (position ^ last[1]).bit_length()) if known and last else 32
        self.by_bits[changed] += 1
        self._last = (contig, position)

    def number(self, step: int = 1) -> int:
        """Stretches that hold a place, each so many bases long, or the next power of two below."""
        return sum(self.by_bits[step.bit_length() :])

    def part(self, share: float) -> Places:
        """As many as so large a part of the records has."""
        return Places([round(number * share) for number in self.by_bits])


@dataclass
class Variants:
    """A variant file after its pre-flight: header, contig names, counts, and its records.

    Attributes:
        source: Where they come from.
        header: Its header.
        contigs: The genome's contig names.
        genome: The reference.
        filters: FILTER values to keep; None keeps every record.
        check_ref: A letter of `CHECK_REF`.
        warnings: What the user should be told before scoring.
        num_records: Records that are wanted; None for stdin, which can be read only once.
        num_filtered: Records that the FILTER values leave out.
        num_ref_excluded: Records left out for their REF (`check_ref` "x"); of a stream so far.
        num_alleles: Alternate alleles of those that pass.
        num_candidates: Those that may be scored, as far as their text and contig tell.
        places: Of the candidates.
        part: First and last record (not included) of those that are wanted, from 0; None is all.
            The counts of alleles and sites are then estimates.
    """

    source: VariantSource
    header: VcfHeader
    contigs: ContigAliases
    genome: Fasta
    filters: frozenset[str] | None = None
    check_ref: str = "w"
    warnings: tuple[str, ...] = ()
    num_records: int | None = None
    num_filtered: int = 0
    num_ref_excluded: int = 0
    num_alleles: int = 0
    num_candidates: int = 0
    places: Places = field(default_factory=Places)
    part: tuple[int, int] | None = None
    _reader: VariantReader = field(kw_only=True, repr=False)
    _stream: Iterator[VcfRecord] | None = field(default=None, kw_only=True, repr=False)
    _first_differing: VcfRecord | None = field(default=None, kw_only=True, repr=False)
    _consequences: ConsequenceCaller | None = field(default=None, kw_only=True, repr=False)
    _write_bcsq: bool = field(default=False, kw_only=True, repr=False)

    def records(self) -> Iterator[VcfRecord]:
        """The wanted records, in the order of the file.

        Raises:
            EvoError: at a record whose REF is not the genome's, if `check_ref` is "e".
        """
        self.num_ref_excluded = 0
        if self._stream is not None:
            with self._reader:
                yield from self._annotated(self._wanted(self._stream))
            return
        first, last = self.part or (0, None)
        with self.source.open() as reader:
            yield from self._annotated(islice(self._wanted(reader), first, last))

    def take_part(self, number: int, parts: int) -> None:
        """Keep one of several parts of equal numbers of neighbouring records.

        Args:
            number: Of the part, from 1.
            parts: How many there are.

        Raises:
            UsageError: for stdin, whose records cannot be counted beforehand.
        """
        if self.num_records is None:
            raise UsageError(
                f"{self.source.name} cannot be counted, so it has no parts; --shard needs a file"
            )
        total = self.num_records
        first, last = (number - 1) * total // parts, number * total // parts
        self.part, self.num_records = (first, last), last - first
        share = (last - first) / max(1, total)
        for name in ("num_alleles", "num_candidates"):
            setattr(self, name, round(getattr(self, name) * share))
        self.places = self.places.part(share)

    def _annotated(self, records: Iterator[VcfRecord]) -> Iterator[VcfRecord]:
        if self._consequences is None:
            return with_carried(records, self.header)
        return self._consequences.annotated(records, self.contigs, write=self._write_bcsq)

    def _wanted(self, records: Iterable[VcfRecord]) -> Iterator[VcfRecord]:
        for record in records:
            if not passes(record, self.filters):
                continue
            if self.check_ref != "w" and self.differs(record):
                if self.check_ref == "e":
                    raise EvoError(self.complaint(record))
                self.num_ref_excluded += 1
                continue
            yield record

    def differs(self, record: VcfRecord) -> bool:
        """Whether REF is not what the genome holds; False where that cannot be said."""
        contig = self.contigs.get(record.contig)
        return contig is not None and bool(ref_differs(record, self.genome, contig))

    def complaint(self, record: VcfRecord) -> str:
        """What `--check-ref e` says of a record."""
        return (
            f"{self.source.name}: record {record.number}, {record.contig}:{record.pos}: REF {record.ref[:40]} is not what "
            f"{self.genome.path.name} holds there; --check-ref w gives it a status, x leaves it out"
        )


def passes(record: VcfRecord, filters: frozenset[str] | None) -> bool:
    """Whether one of the record's FILTER values was asked for; "." stands for none applied."""
    if filters is None:
        return True
    return any(value in filters for value in (record.filters or (".",)))


def open_variants(
    variants: VariantSource | Path | str,
    genome: Fasta,
    *,
    filters: frozenset[str] | None = None,
    info_prefix: str | None = None,
    check_ref: str = "w",
    max_ref_mismatch: float | None = None,
    synonyms: Sequence[frozenset[str]] = (),
    consequences: ConsequenceCaller | None = None,
) -> Variants:
    """Read a variant file once before anything expensive happens.

    Stdin and pipes can be read only once: of them only the header and the first records are looked
    at, and nothing is counted.

    Args:
        variants: What `evo_data.variant_sources.open_source` returns, or a VCF or BCF.
        filters: FILTER values to keep, as in `bcftools view -f`; None keeps every record.
        info_prefix: Refuse records that already carry INFO keys with this prefix.
        check_ref: What becomes of a record whose REF is not the genome's, a letter of `CHECK_REF`.
        max_ref_mismatch: As for `evo_data.preflight.check_build`.
        synonyms: Contig names of an alias file (`evo_data.contigs.read_alias_file`).
        consequences: Calls the consequences of every allele; INFO gets BCSQ unless it has it.

    Raises:
        VcfError: if the file cannot be read to its end.
        ContigError: if the genome is not the one that the variants were called on.
        EvoError: if no contig of the variants is in the genome, INFO keys would be doubled, or a
            REF is not the genome's and `check_ref` is "e".
    """
    if check_ref not in CHECK_REF:
        raise EvoError(f"check_ref {check_ref!r} is not known; use one of {', '.join(CHECK_REF)}")
    source = (
        variants if isinstance(variants, VariantSource) else VariantSource(variants, str(variants))
    )
    reader = source.open()
    contigs = ContigAliases(
        genome.lengths,
        reader.header.contigs,
        synonyms=synonyms,
        any_length=max_ref_mismatch is not None,
    )
    found = Variants(source, reader.header, contigs, genome, filters, check_ref, _reader=reader)
    names: dict[str, None] = {}
    if source.is_stream:
        records = iter(reader)
        first = list(islice(records, CHECKED_RECORDS))
        found._stream = chain(first, records)
        names = dict.fromkeys(record.contig for record in first)
    else:
        first = _scan(found, reader, names, info_prefix)
    found.warnings = tuple(
        check_build(found.header, first, names, genome, contigs, max_ref_mismatch=max_ref_mismatch)
    )
    _require_a_contig(list(names), contigs, genome)
    if check_ref == "e" and found._first_differing is not None:
        raise EvoError(found.complaint(found._first_differing))
    if consequences is not None:
        found._consequences = consequences
        found._write_bcsq = with_bcsq(found.header, consequences.header_line)
    return found


def _scan(
    found: Variants, reader: VariantReader, names: dict[str, None], info_prefix: str | None
) -> list[VcfRecord]:
    """Count the records, note their contigs, and return the first of them."""
    found.num_records = 0
    taken = None
    if info_prefix is not None:
        taken = re.compile(rb"(?:^|;)" + re.escape(info_prefix.encode()) + rb"_[^=;]*")
    first: list[VcfRecord] = []
    with reader:
        for record in reader:
            if not passes(record, found.filters):
                found.num_filtered += 1
                continue
            names[record.contig] = None
            if len(first) < CHECKED_RECORDS:
                first.append(record)
            if found.check_ref != "w" and found.differs(record):
                found._first_differing = found._first_differing or record
                found.num_ref_excluded += 1
                continue
            found.num_records += 1
            found.num_alleles += len(record.alts)
            if taken is not None and (key := taken.search(record.info)):
                raise EvoError(
                    f"{found.source.name}: line {record.number} already has INFO key {key[0].lstrip(b';').decode(errors='replace')}; "
                    "choose another prefix with --info-prefix"
                )
            candidates = sum(
                classify_allele(record.ref, alt) is AlleleStatus.OK for alt in record.alts
            )
            if candidates and record.contig in found.contigs:
                found.num_candidates += candidates
                found.places.add(record.contig, record.pos)
    return first


def _require_a_contig(names: list[str], contigs: ContigAliases, genome: Fasta) -> None:
    if names and not any(name in contigs for name in names):
        raise EvoError(
            f"no contig of the variants is in the genome: the variants have {_listed(names)}, "
            f"{genome.path} has {_listed(list(genome.lengths))}; use the genome the variants were called on"
        )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return ", ".join(names[:_MOST_NAMES]) + more


def genome_digest(genome: Fasta) -> str:
    """sha256 over the names and lengths of the contigs, in file order, as `name<TAB>length` lines."""
    lines = "".join(f"{name}\t{length}\n" for name, length in genome.lengths.items())
    return hashlib.sha256(lines.encode()).hexdigest()


class ScoringRun:
    """A model, a genome and variants, ready to score.

    Attributes:
        info: What outputs must say about the run.
        scorer: The engine; its `reference_bits` fill while the records are read.
    """

    def __init__(
        self,
        model: StripedHyena2,
        genome: Fasta,
        variants: Variants | ContigAliases,
        *,
        window: int | None = None,
        window_mode: str | None = None,
        suffix: Suffix = None,
        strands: str = "both",
        max_allele: int = DEFAULT_MAX_ALLELE,
        allow_out_of_domain: bool = False,
        command: str | None = None,
        circular: Collection[str] = (),
        methods: MethodOptions | None = None,
        preset: str | None = None,
    ) -> None:
        """Check the domain, find a shape that fits the memory, measure one forward.

        Args:
            variants: What to score, or only its contig names where records come from elsewhere.
            window: Bases per window; None is the model's `default_window`.
            window_mode: One of `evo_toolkit.variants.window_runner.WINDOW_MODES`; None is "exact", and
                "full" for a model that reproduces the released rounding.
            suffix: Bases to read of each allele, as many as it takes, or None for all; the first
                two are approximations.
            strands: "both", "fwd" or "rc".
            max_allele: Longest allele that is scored, in bases.
            allow_out_of_domain: Consent to score a genome that the model was not trained for.
            command: The command line, for outputs; None leaves it out.
            circular: The genome's contigs whose ends are joined.
            methods: What is computed of each allele; None is `delta` alone.
            preset: Name of the preset that set the options, for outputs.

        Raises:
            OutOfDomainError: without that consent.
            UsageError: for an unknown strand or window mode, or a window too small or too large.
            EvoError: for a head or calibration that was made with something else.
        """
        domain_note = check_domain(model.config, genome.lengths, allow=allow_out_of_domain)
        self.domain_note = domain_note
        if window is not None:
            check_window(window, model.config, genome)
        prepared = None if methods is None else AlleleMethods(methods, model)
        runner = window_runner(
            model,
            model.config.default_window if window is None else window,
            window_mode,
            suffix,
            wanted=LOG_PROBS if prepared is None else prepared.wanted,
        )
        self.scorer = VariantScorer(
            runner,
            genome,
            variants.contigs if isinstance(variants, Variants) else variants,
            strands=strands,
            max_allele=max_allele,
            flags=(OUT_OF_DOMAIN_FLAG,) if domain_note else (),
            circular=circular,
            methods=prepared,
        )
        self._variants = variants
        runner.probe()
        notes = (*model.notes, *((domain_note,) if domain_note else ()))
        self.info = RunInfo(
            version=__version__,
            command=command,
            model=model.config.name,
            model_sha256=model.sha256,
            precision=model.policy.describe(),
            device=str(model.device),
            window=runner.window,
            window_mode=runner.mode,
            suffix=runner.suffix,
            strands=strands,
            shapes=runner.shapes,
            genome=str(genome.path),
            genome_contigs_sha256=genome_digest(genome),
            notes=notes,
            preset=preset,
        )
        if prepared is not None:
            self.info = replace(
                self.info,
                methods=prepared.names,
                columns=prepared.columns,
                calibration=prepared.calibration,
                heads=prepared.heads,
            )
            prepared.require_same_run(asdict(self.info))

    @property
    def variants(self) -> Variants:
        """What is scored."""
        assert isinstance(self._variants, Variants), "made for records from elsewhere"
        return self._variants

    def estimate(self) -> float | None:
        """Seconds that scoring will take, from the probe; None when the input cannot be counted.

        A place needs its reference and each of its alternates once on every strand.
        """
        work = workload(self.variants, self.info.strands)
        return None if work is None else work.seconds(self.scorer.runner)

    def records(self) -> Iterator[ScoredRecord]:
        """Score the variants, in order."""
        return self.scorer.score(self.variants.records())

    def bits_line(self) -> str | None:
        """How well the model predicts the reference of the scored windows; None if nothing was."""
        return bits_line(self.scorer.reference_bits)


def check_window(window: int, config: StripedHyena2Config, genome: Fasta) -> None:
    """Refuse windows that no contig fills and no model reads: forwards would be padding, or memory run out.

    Raises:
        UsageError: for a window that is longer than both.
    """
    longest = max(genome.lengths.values())
    if window > max(longest, config.context_length):
        raise UsageError(
            f"window {window:,} is longer than every contig of {genome.path.name} (at most {longest:,} bases) and than what {config.name} reads ({config.context_length:,}); use a smaller one"
        )


class Workload(NamedTuple):
    """What a run has to read, as far as a file's records tell before any window is placed."""

    places: Places
    num_alternates: int
    num_strands: int

    def seconds(self, runner: WindowRunner) -> float:
        """What a runner needs for it, by its probe."""
        return runner.estimate(
            self.places.number(runner.step) * self.num_strands,
            self.num_alternates * self.num_strands,
        )


def workload(variants: Variants, strands: str) -> Workload | None:
    """What a run has to read; None where the records cannot be counted."""
    if variants.num_records is None:
        return None
    return Workload(variants.places, variants.num_candidates, 2 if strands == "both" else 1)


def bits_line(reference_bits: ReferenceBits) -> str | None:
    """One line on how well a model predicts references; None where there are none."""
    bits = reference_bits.bits_per_base
    composition = reference_bits.composition_bits
    if bits is None or composition is None:
        return None
    line = f"reference of the scored windows: {bits:.3f} bits per base (their base composition alone: {composition:.3f})"
    if bits > min(UNINFORMATIVE_BITS, composition):
        line += f"; above {min(UNINFORMATIVE_BITS, composition):.2f} the model predicts this sequence no better than base composition, so its scores mean little here"
    return line
