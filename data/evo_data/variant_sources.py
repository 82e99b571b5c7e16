"""Variants from anything that lists them: VCF, BCF, tables, text; and which of them are wanted.

Whatever is not VCF or BCF is first written to a temporary VCF, so that all that follows knows one
kind of input. `-i/-e` expressions and `-s` samples are those of bcftools and are worked out by
the bcftools that pysam carries; regions are found here, so that lines stay byte for byte.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pysam

from evo_data.bcftools import BcftoolsError, run_bcftools
from evo_data.bed import NO_DATA, read_bed
from evo_data.builds import chromosome
from evo_data.contigs import ContigAliases
from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.interval import Interval
from evo_data.variant_tables import Table, is_table, record_line, text_lines
from evo_data.variant_text import parse_variant
from evo_data.vcf import VariantReader, VcfRecord, parse_record
from evo_data.vcf_writer import quiet_htslib

_END = re.compile(rb"(?:^|;)END=(\d{1,15})(?=;|$)")


@dataclass(frozen=True, kw_only=True)
class Selection:
    """Which records are wanted; nothing given means all.

    Attributes:
        regions: Records that touch one of these, as with `bcftools view -r`.
        include: A bcftools expression that must hold.
        exclude: A bcftools expression that must not hold.
        samples: Comma-separated samples to keep, `^` before the list: all but these.
    """

    regions: tuple[Interval, ...] = ()
    include: str | None = None
    exclude: str | None = None
    samples: str | None = None

    @property
    def needs_bcftools(self) -> bool:
        return not (self.include is None and self.exclude is None and self.samples is None)


@dataclass
class VariantSource:
    """Variants that can be read as VCF.

    Attributes:
        path: What is read: the file as given, a temporary VCF made of it, or "-".
        name: What the user gave, for messages.
        regions: Records that touch one of these; none means all.
    """

    path: Path | str
    name: str
    regions: tuple[Interval, ...] = ()
    _folder: Any = field(default=None, repr=False)

    @property
    def is_stream(self) -> bool:
        """Whether it can be read only once."""
        return os.fspath(self.path) == "-" or not Path(self.path).is_file()

    def open(self) -> SelectedReader:
        """Open it; a stream once."""
        reader = SelectedReader(self.path, self.regions)
        reader.keeps = self._folder
        return reader


class SelectedReader(VariantReader):
    """A `VariantReader` whose records are those that touch a region; all, where none is given.

    Through an index (.tbi, .csi) only the regions are read, and then the number of a record
    counts records, not lines; without one the whole file is.
    """

    def __init__(self, path: Path | str, regions: tuple[Interval, ...] = ()) -> None:
        super().__init__(path)
        self._regions = _Regions(regions) if regions else None
        self.keeps: object = None  # a temporary folder, which goes when nobody holds it

    def __iter__(self) -> Iterator[VcfRecord]:
        if self._regions is None:
            return super().__iter__()
        index = _tabix(self._path)
        if index is None:
            return (r for r in super().__iter__() if self._regions.touch(r))
        return self._indexed(index, self._regions)

    def _indexed(self, index: Any, regions: _Regions) -> Iterator[VcfRecord]:
        width = self.header.lines[-1].count(b"\t") + 1
        number = 0
        with index:
            for contig in index.contigs:
                before = 0
                for start, end in regions.of(contig):
                    for line in index.fetch(contig, start, end):
                        number += 1
                        record = parse_record(
                            line.encode("latin-1") + b"\n", number, width, self._name
                        )
                        first, last = _extent(record)
                        # One that reaches in from the region before has been seen there.
                        if first < end and last > start and not (before and first < before):
                            yield record
                    before = end


class _Regions:
    """Regions by contig, merged; `1` and `chr1` are the same contig."""

    def __init__(self, regions: Sequence[Interval]) -> None:
        self._of: dict[str, list[tuple[int, int]]] = {}
        for region in sorted(regions, key=lambda r: (r.start, r.end)):
            merged = self._of.setdefault(chromosome(region.contig), [])
            if merged and region.start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], region.end))
            else:
                merged.append((region.start, region.end))
        self._starts = {name: [start for start, _ in merged] for name, merged in self._of.items()}

    def of(self, contig: str) -> list[tuple[int, int]]:
        return self._of.get(chromosome(contig), [])

    def touch(self, record: VcfRecord) -> bool:
        name = chromosome(record.contig)
        if name not in self._of:
            return False
        first, last = _extent(record)
        at = bisect_right(self._starts[name], last - 1)
        return at > 0 and self._of[name][at - 1][1] > first


def _extent(record: VcfRecord) -> tuple[int, int]:
    """The bases that a record covers, 0-based half-open, END included where there is one."""
    first = max(0, record.pos - 1)
    last = first + len(record.ref)
    end = _END.search(record.info)
    return first, max(last, int(end[1])) if end else last


def _tabix(path: Path | str) -> Any:
    """Return an open tabix index of a bgzipped VCF; None where there is none that is up to date."""
    for suffix in (".tbi", ".csi"):
        index = Path(f"{path}{suffix}")
        if not index.is_file() or index.stat().st_mtime < Path(path).stat().st_mtime:
            continue
        with suppress(OSError, ValueError), quiet_htslib():
            # Latin-1 gives every byte back.
            return pysam.TabixFile(os.fspath(path), index=os.fspath(index), encoding="latin-1")
    return None


def parse_regions(text: str, lengths: dict[str, int]) -> list[Interval]:
    """Return the regions of a comma-separated list: `chr`, `chr:pos`, `chr:from-to`, `chr:from-`.

    1-based and inclusive, as in bcftools. A contig whose name holds a colon may stand alone.

    Args:
        lengths: Length of each contig of the genome, where known; a region without end ends there.

    Raises:
        EvoDataError: if a region is not understood.
    """
    regions = []
    # A comma between digits is a thousands separator only if three digits follow.
    for part in re.split(r",(?!\d{3}(?:\D|$))", text):
        part = part.strip()
        match = re.fullmatch(r"(?P<contig>.+):(?P<first>[\d,]+)(?P<dash>-)?(?P<last>[\d,]+)?", part)
        if not part:
            raise EvoDataError(f"regions {text!r} have an empty element; write chr1:100-200,chr2")
        if part in lengths or match is None:
            if match is None and ":" in part and part not in lengths:
                raise EvoDataError(f"region {part!r} is not understood; write contig:first-last")
            regions.append(Interval(part, 0, 1 << 60))
            continue
        first = int(match["first"].replace(",", ""))
        last = int((match["last"] or "").replace(",", "") or (1 << 60 if match["dash"] else first))
        if not 1 <= first <= last:
            raise EvoDataError(
                f"region {part!r}: positions are 1-based and inclusive, first <= last"
            )
        regions.append(Interval(match["contig"], first - 1, last))
    return regions


def read_regions(path: Path | str) -> list[Interval]:
    """Return the regions of a file: BED (name ends in .bed, 0-based half-open), VCF, or text.

    Text has the columns contig, first, and last (1-based, inclusive; last may be absent), as
    `bcftools view -R` takes it. Lines that begin with #, `track` or `browser` are skipped.

    Raises:
        EvoDataError: if the file cannot be read or a line not understood.
    """
    name = os.fspath(path)
    if re.search(r"\.(vcf|bcf)(\.b?gz)?$", name):
        with VariantReader(path) as reader:
            return [Interval(record.contig, *_extent(record)) for record in reader]
    if re.search(r"\.bed(\.b?gz)?$", name):
        regions = [Interval(line.contig, line.start, line.end) for line in read_bed(path)]
    else:
        regions = list(_listed_regions(Path(path)))
    if not regions:
        raise EvoDataError(f"{path}: holds no region")
    return regions


def _listed_regions(path: Path) -> Iterator[Interval]:
    """Regions of a text file: contig, first and last, 1-based and inclusive."""
    for number, line in enumerate(text_lines(path), start=1):
        columns = line.split("\t") if "\t" in line else line.split()
        if not columns or line.startswith(NO_DATA):
            continue
        try:
            first = int(columns[1])
            last = int(columns[2]) if len(columns) > 2 else first
            yield Interval(columns[0], first - 1, last)
        except (IndexError, ValueError) as error:
            raise EvoDataError(
                f"{path}:{number}: not a region; a line has contig, first, last (1-based)"
            ) from error


def open_source(
    variants: Path | str | None,
    genome: Fasta,
    *,
    texts: Sequence[str] = (),
    contigs: ContigAliases | None = None,
    selection: Selection | None = None,
    zero_based: bool = False,
) -> VariantSource:
    """Return the variants of a file, or those given as text, as something that reads as VCF.

    Args:
        variants: VCF (plain, gzip, bgzip), BCF, `-` for either from stdin, or a table: TSV, CSV
            (gzip too) or Parquet with the columns of `variant_tables.COLUMN_NAMES`, or without a header and with
            the columns contig, position, reference, alternate. None: only `texts`.
        genome: The reference; for bases that a text leaves out.
        texts: Variants as text (`evo_data.variant_text`).
        contigs: The genome's name for each contig name; for texts.
        selection: Which records are wanted.
        zero_based: Positions of a table count from 0.

    Raises:
        EvoDataError: if a table or text is not understood, or bcftools refuses an expression.
    """
    selection = selection or Selection()
    contigs = contigs or ContigAliases(genome.lengths)
    if variants is None or texts:
        if variants is not None:
            raise EvoDataError("give a file of variants or --variant, not both")
        lines = _lines_of_texts(texts, genome, contigs)
        source = _written(lines, genome, "the variants given as text")
    elif is_table(variants):
        rows = Table(Path(variants), zero_based).lines(genome, contigs)
        source = _written(rows, genome, os.fspath(variants))
    else:
        source = VariantSource(
            variants, "stdin" if os.fspath(variants) == "-" else os.fspath(variants)
        )
        if zero_based:
            raise EvoDataError(f"{source.name} is no table; VCF positions are 1-based")
    if selection.needs_bcftools:
        source = _filtered(source, selection)
    source.regions = selection.regions
    return source


def spooled(source: VariantSource) -> VariantSource:
    """Return a source that can be read again: a stream is copied to a temporary file."""
    if not source.is_stream:
        return source
    folder = tempfile.TemporaryDirectory(prefix="evo_toolkit_")
    path = Path(folder.name) / "variants"
    with path.open("wb") as copy:
        if os.fspath(source.path) == "-":
            with open(sys.stdin.fileno(), "rb", closefd=False) as stream:
                shutil.copyfileobj(stream, copy)
        else:
            with Path(source.path).open("rb") as stream:
                shutil.copyfileobj(stream, copy)
    return VariantSource(path, source.name, source.regions, folder)


def _filtered(source: VariantSource, selection: Selection) -> VariantSource:
    """Return what `bcftools view` leaves: first the samples, then the expression."""
    source = spooled(source)
    with source.open() as reader:
        is_bcf = reader.is_bcf
        _ = reader.header
    folder = tempfile.TemporaryDirectory(prefix="evo_toolkit_")
    current = Path(source.path)
    steps: list[tuple[str, ...]] = []
    if selection.samples is not None:
        # Without --no-update AC and AN would be rewritten.
        steps.append(("--no-update", "-s", selection.samples))
    if selection.include is not None:
        steps.append(("-i", selection.include))
    if selection.exclude is not None:
        steps.append(("-e", selection.exclude))
    for number, step in enumerate(steps):
        target = Path(folder.name) / f"{number}.{'bcf' if is_bcf else 'vcf'}"
        arguments = ("--no-version", *step, "-Ob" if is_bcf else "-Ov", "-o", os.fspath(target))
        try:
            run_bcftools("view", (*arguments, os.fspath(current)))
        except BcftoolsError as error:
            raise EvoDataError(
                f"{source.name}: bcftools view {step[-2]} {step[-1]!r}: {error}"
            ) from error
        if not target.is_file():
            raise EvoDataError(
                f"{source.name}: bcftools view {step[-2]} {step[-1]!r} gave no output"
            )
        current = target
    return VariantSource(current, source.name, (), folder)


def _written(lines: Iterable[bytes], genome: Fasta, name: str) -> VariantSource:
    """Return lines of records as a temporary VCF, with the contigs that they name."""
    folder = tempfile.TemporaryDirectory(prefix="evo_toolkit_")
    body, path = Path(folder.name) / "records", Path(folder.name) / "variants.vcf"
    names: dict[bytes, None] = {}
    with body.open("wb") as out:
        for line in lines:
            names[line[: line.index(b"\t")]] = None
            out.write(line)
    with path.open("wb") as out, body.open("rb") as records:
        out.write(b"##fileformat=VCFv4.3\n")
        out.writelines(b"##contig=<ID=%b>\n" % contig for contig in names)
        out.write(b"#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO\n")
        shutil.copyfileobj(records, out)
    body.unlink()
    return VariantSource(path, name, (), folder)


def _lines_of_texts(texts: Sequence[str], genome: Fasta, contigs: ContigAliases) -> Iterator[bytes]:
    for text in texts:
        found = parse_variant(text, genome, contigs)
        yield record_line(found.contig, found.pos, text, found.ref, found.alt)
