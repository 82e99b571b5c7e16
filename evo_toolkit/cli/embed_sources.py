"""What `embed` can be asked to embed: records of a FASTA, regions of a genome, alleles of variants."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from evo_data.errors import ContigError
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.variant import (
    AlleleStatus,
    Variant,
    check_reference,
    classify_allele,
    edit_of,
    normalise,
)
from evo_data.vcf import VcfRecord
from evo_data.windows import StrandWindow, variant_windows
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.finetuning.reading_genome import Feature, fetch_read, read_features
from evo_toolkit.inference.batching import encode
from evo_toolkit.inference.readings import Reading, Strands, readings_of
from evo_toolkit.variants.regions import read_regions
from evo_toolkit.variants.run import Variants, open_variants
from evo_toolkit.variants.score import STRANDS as WINDOW_STRANDS

_VARIANTS = re.compile(r"\.(vcf(\.b?gz)?|bcf)$", re.IGNORECASE)
_GFF = re.compile(r"\.(gff3?|gtf)(\.b?gz)?$", re.IGNORECASE)
_PLACES = {"contig": "text", "start": "integer", "end": "integer", "strand": "text"}
_NAME_KEYS = ("ID", "Name", "gene_id", "name")


@dataclass(frozen=True, slots=True)
class Item:
    """A sequence with what the output says of it.

    Attributes:
        columns: `id` and further values, in the order of the source's columns.
        readings: What the model reads of it.
    """

    columns: tuple[str | int, ...]
    readings: tuple[Reading, ...]

    def add_to(self, digest: Any) -> None:
        """Add what its embedding depends on, and its columns, to a digest."""
        digest.update(repr((self.columns, [r.center for r in self.readings])).encode())
        for reading in self.readings:
            digest.update(reading.tokens.tobytes())


def digest_of(items: Sequence[Item]) -> str:
    """sha256 of items."""
    digest = hashlib.sha256()
    for item in items:
        item.add_to(digest)
    return digest.hexdigest()


@dataclass
class Source:
    """Sequences to be embedded.

    Attributes:
        columns: "text" or "integer" by name; `id` first.
        num_bases: About how many there are, for a progress bar; None if unknown.
        skipped: How many could not be embedded, by reason; filled by `items`.
        warnings: For the user.
    """

    columns: Mapping[str, str] = field(default_factory=lambda: {"id": "text"})
    num_bases: int | None = None
    skipped: Counter[str] = field(default_factory=Counter)
    warnings: tuple[str, ...] = ()

    def prepare(self, default_window: int) -> None:
        """Take the model's default window where none was given."""

    def items(self) -> Iterator[Item]:
        """What is to be embedded, in order; may be called again."""
        raise NotImplementedError


@dataclass
class Records(Source):
    """Every record of a FASTA that is not empty."""

    fasta: Fasta = field(kw_only=True)
    strands: Strands = field(kw_only=True)

    def __post_init__(self) -> None:
        self.num_bases = self.fasta.total_length

    def items(self) -> Iterator[Item]:
        self.skipped.clear()
        for name, length in self.fasta.lengths.items():
            if not length:
                self.skipped["empty"] += 1
                continue
            (tokens,) = encode([self.fasta.fetch(name, 0, length)])
            yield Item((name,), tuple(readings_of(tokens, None, self.strands)))


@dataclass
class Regions(Source):
    """Stretches of a genome, each read on its own strand."""

    genome: Fasta = field(kw_only=True)
    strands: Strands = field(kw_only=True)
    named: Sequence[tuple[str, Interval]] = field(kw_only=True)

    def __post_init__(self) -> None:
        self.columns = {"id": "text", **_PLACES}
        self.num_bases = sum(locus.length for _, locus in self.named)

    def items(self) -> Iterator[Item]:
        for name, locus in self.named:
            (tokens,) = encode([fetch_read(self.genome, locus)])
            columns = (name, locus.contig, locus.start, locus.end, locus.strand)
            yield Item(columns, tuple(readings_of(tokens, None, self.strands)))


@dataclass
class Alleles(Source):
    """The reference and the alternate window of every allele that has them, as `score` places them.

    "center" is where the replaced bases begin in reading direction, half a window from its start.
    """

    genome: Fasta = field(kw_only=True)
    strands: Strands = field(kw_only=True)
    window: int | None = field(kw_only=True)
    variants: Variants = field(kw_only=True)

    def __post_init__(self) -> None:
        self.columns = {"id": "text", **_PLACES, "variant": "text", "allele": "text"}
        self.warnings = self.variants.warnings

    def prepare(self, default_window: int) -> None:
        self.window = self.window or default_window
        self.num_bases = 2 * self.window * self.variants.num_candidates or None

    def items(self) -> Iterator[Item]:
        self.skipped.clear()
        taken: Counter[str] = Counter()
        for record in self.variants.records():
            contig = self.variants.contigs.get(record.contig)
            for alt in record.alts:
                found = self._windows(record, alt, contig)
                if isinstance(found, AlleleStatus):
                    self.skipped[found.value] += 1
                    continue
                key, windows = found
                name = _unique(key, taken)
                place = windows[0]
                strand = "-" if self.strands == "rc" else "+"
                for allele in ("ref", "alt"):
                    readings = tuple(_reading(window, allele) for window in windows)
                    assert contig is not None
                    columns = (f"{name}:{allele}", contig, place.start, place.end, strand, key, allele)  # fmt: skip
                    yield Item(columns, readings)

    def _windows(
        self, record: VcfRecord, alt: str, contig: str | None
    ) -> tuple[str, list[StrandWindow]] | AlleleStatus:
        assert self.window is not None, "prepare comes first"
        status = classify_allele(record.ref, alt, max_allele=self.window // 2)
        if status is not AlleleStatus.OK:
            return status
        if contig is None:
            return AlleleStatus.CONTIG_UNKNOWN
        if record.pos < 1:
            return AlleleStatus.OUT_OF_RANGE
        length = self.genome.lengths[contig]

        def fetch(start: int, end: int) -> bytes:
            return self.genome.fetch(contig, start, end)

        variant = Variant(record.contig, record.pos, record.ref, alt)
        status = check_reference(variant, fetch, length)
        if status is not AlleleStatus.OK:
            return status
        normalised = normalise(variant, fetch)
        wanted = WINDOW_STRANDS["both" if self.strands == "concat" else self.strands]
        try:
            windows, _ = variant_windows(fetch, length, edit_of(normalised), self.window, wanted)
        except ContigError:
            return AlleleStatus.CONTIG_SHORT
        return normalised.key, windows


def _reading(window: StrandWindow, allele: str) -> Reading:
    tokens = window.ref if allele == "ref" else window.alt
    return Reading(
        tokens=tokens,
        center=min(window.ref_allele[0], len(tokens) - 1),
        reverse=window.strand == "-",
    )


def open_embedded(
    fasta: Fasta,
    *,
    regions: Sequence[str],
    regions_file: str | None,
    features: Sequence[str],
    window: int | None,
    strands: Strands,
    pool: str,
) -> Source:
    """Return what the options ask for.

    Args:
        regions: `contig:first-last`, 1-based and inclusive.
        regions_file: BED, GFF3, GTF, VCF or BCF.
        features: Types of GFF features.
        window: Bases around the middle of a region, or of a variant's window.

    Raises:
        UsageError: for options that do not go together.
        EvoError, EvoDataError: for a file that cannot be understood.
    """
    is_gff = regions_file is not None and _GFF.search(regions_file) is not None
    if features and not is_gff:
        raise UsageError(
            "--feature chooses features of a GFF3 or GTF; give one with -R, or leave it out"
        )
    if regions_file is not None and _VARIANTS.search(regions_file):
        if regions:
            raise UsageError("-r and a file of variants exclude each other; give one of them")
        if pool == "none" and strands in ("both", "concat"):
            raise UsageError(
                f"--pool none with --strands {strands}: a variant's windows on the two strands hold other bases; use fwd or rc"
            )
        found = open_variants(regions_file, fasta)
        return Alleles(genome=fasta, strands=strands, window=window, variants=found)
    if regions_file is None and not regions:
        if window is not None:
            raise UsageError("--window is for regions (-r, -R); whole records have none")
        return Records(fasta=fasta, strands=strands)
    loci: list[tuple[str, Interval]] = []
    for text in regions:
        (locus,) = read_regions([text], None, fasta.lengths)
        loci.append((locus.region, locus))
    if regions_file is not None:
        loci += _of_file(regions_file, fasta, features, is_gff=is_gff)
    taken: Counter[str] = Counter()
    named = [(_unique(name, taken), _centred(locus, window, fasta)) for name, locus in loci]
    return Regions(genome=fasta, strands=strands, named=named)


def _of_file(
    path: str, fasta: Fasta, features: Sequence[str], *, is_gff: bool
) -> list[tuple[str, Interval]]:
    wanted = tuple(features) or (("gene",) if is_gff else ())
    types: Counter[str] = Counter()
    found = []
    for feature in read_features(path, fasta):
        types[feature.values.get("type", "")] += 1
        if not wanted or feature.values.get("type") in wanted:
            found.append((_name(feature), feature.locus))
    if not found and types:
        listed = ", ".join(name for name, _ in types.most_common(8))
        raise EvoError(
            f"{path} has no feature of type {', '.join(wanted)}; it has {listed}: choose with --feature"
        )
    if not found:
        raise EvoError(f"{path} holds no region; give one line at least")
    return found


def _name(feature: Feature) -> str:
    for key in _NAME_KEYS:
        name = feature.values.get(key, "").strip()
        if name and name != ".":
            return name
    return f"{feature.locus.region}({feature.locus.strand})"


def _unique(name: str, taken: Counter[str]) -> str:
    """The name, numbered from its second use on."""
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"


def _centred(locus: Interval, window: int | None, fasta: Fasta) -> Interval:
    """So many bases around the middle, moved inwards and clipped at the ends of the contig."""
    if window is None:
        return locus
    length = fasta.lengths[locus.contig]
    start = max(0, min((locus.start + locus.end - window) // 2, length - window))
    return Interval(locus.contig, start, min(length, start + window), locus.strand)
