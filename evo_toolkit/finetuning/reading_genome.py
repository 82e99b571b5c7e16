"""Labelled places of a genome: intervals, variants, bases in features, and signal tracks."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import reverse_complement
from evo_data.bed import BedLine, read_bed
from evo_data.contigs import ContigAliases
from evo_data.errors import ContigError, EvoDataError
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
from evo_data.variant_tables import Table, is_table, text_lines
from evo_data.vcf import VariantReader, VcfRecord, parse_record
from evo_data.windows import variant_windows
from evo_toolkit.finetuning.examples import (
    NO_CLASS,
    Examples,
    ExamplesError,
    RawExample,
    TaskKind,
    clean_sequence,
    examples_of,
)
from evo_toolkit.finetuning.reading import Row, group_of, read_rows, rows_by_name, value_of
from evo_toolkit.variants.score import STRANDS
from evo_toolkit.variants.track_files import load_bigwig

_GFF_SUFFIX = re.compile(r"\.(gff3?|gtf)(\.b?gz)?$", re.IGNORECASE)
_GTF_ATTRIBUTE = re.compile(r'([^\s;"=]+)\s+"([^"]*)"')


@dataclass(frozen=True, slots=True)
class Feature:
    """A line of a BED, GFF3 or GTF file.

    Attributes:
        locus: 0-based half-open; contig as the genome calls it; "+" where the file has no strand.
        stranded: Whether the file has a strand.
        values: By column: BED `name`, `score` and `column7` on; GFF `type`, `score`, `source` and attributes.
        place: File and line.
    """

    locus: Interval
    values: Mapping[str, str]
    place: str
    stranded: bool = True


def read_features(path: Path | str, genome: Fasta) -> Iterator[Feature]:
    """Yield the lines of a BED, GFF3 or GTF file (by its name), plain or gzip.

    Raises:
        ExamplesError: for a line that is none, or lies outside of the genome, naming it.
    """
    contigs = ContigAliases(genome.lengths)
    is_gff = _GFF_SUFFIX.search(str(path)) is not None
    for line in _gff_lines(Path(path)) if is_gff else map(_of_bed, read_bed(path)):
        if line.contig not in contigs:
            raise ExamplesError(f"{line.place}: {genome.path} has no contig {line.contig!r}")
        name = contigs[line.contig]
        if not 0 <= line.start < line.end <= genome.lengths[name]:
            raise ExamplesError(
                f"{line.place}: [{line.start}, {line.end}) is no stretch of {name}, {genome.lengths[name]:,} bases (0-based, half-open)"
            )
        locus = Interval(name, line.start, line.end, "-" if line.strand == "-" else "+")
        yield Feature(locus, line.values, line.place, line.strand in ("+", "-"))


class _Line(NamedTuple):
    """A line of either kind: 0-based half-open, contig and strand as they stand there."""

    contig: str
    start: int
    end: int
    strand: str
    values: dict[str, str]
    place: str


def _of_bed(line: BedLine) -> _Line:
    names = ("name", "score", "strand", *(f"column{i}" for i in range(7, len(line.more) + 4)))
    values = dict(zip(names, line.more, strict=False))
    return _Line(line.contig, line.start, line.end, values.pop("strand", "."), values, line.place)


def _gff_lines(path: Path) -> Iterator[_Line]:
    for number, line in enumerate(text_lines(path), start=1):
        place = f"{path}:{number}"
        if line.startswith(("##FASTA", ">")):
            return
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split("\t")
        try:
            start, end, text = int(columns[3]) - 1, int(columns[4]), columns[8]
        except (IndexError, ValueError):
            raise ExamplesError(f"{place}: not a line of GFF3 or GTF") from None
        pairs = _GTF_ATTRIBUTE.findall(text) or [
            pair.strip().partition("=")[::2] for pair in text.split(";") if "=" in pair
        ]
        values = {"type": columns[2], "source": columns[1], "score": columns[5]}
        for key, value in pairs:
            values.setdefault(key, value)
        yield _Line(columns[0], start, end, columns[6], values, place)


def read_intervals(
    path: Path | str,
    genome: Fasta,
    kind: TaskKind,
    *,
    labels: Sequence[str] | None = None,
    table: Path | str | None = None,
    window: int | None = None,
    types: Sequence[str] = (),
    id: str | None = None,
    group: str | None = None,
    classes: Sequence[str] = (),
) -> Examples:
    """Return intervals of a genome with their labels, each read on its strand.

    Args:
        path: BED, GFF3 or GTF.
        genome: The reference.
        kind: binary, multiclass, multilabel or regression.
        labels: Of BED a column (`name`, `score`, `column7`, ...; default `name`, of regression `score`), of GFF
            `type` (default), `score` or an attribute; with `table` its columns (default `label`).
        table: Labels by name instead: TSV, CSV or Parquet with a column `id`.
        window: Take so many bases around the middle of each interval, moved inwards at contig ends; None takes it as
            it is.
        types: Of GFF: only features of these types.
        id: What an interval is called: a column or attribute; default `name` or `ID`, else its place.
        group: A column or attribute of what must stay together; None means the contig.
        classes: Names and order of the classes.

    Raises:
        ExamplesError: naming file and line.
    """
    is_gff = _GFF_SUFFIX.search(str(path)) is not None
    columns = tuple(labels or ())
    if not columns:
        own = "type" if is_gff else "score" if kind == "regression" else "name"
        columns = ("label",) if table is not None else (own,)
    by_name = None if table is None else rows_by_name(table)
    keys = (id,) if id is not None else ("ID", "Name", "gene_id") if is_gff else ("name",)

    def rows() -> Iterator[RawExample]:
        taken: dict[str, int] = {}
        passed: set[str] = set()
        for feature in read_features(path, genome):
            if types and feature.values.get("type") not in types:
                passed.add(feature.values.get("type", "none"))
                continue
            name = next((feature.values[k] for k in keys if feature.values.get(k)), None)
            # A class in the name column is no name.
            if name is None or (by_name is None and not is_gff and id is None):
                name = f"{feature.locus.region}({feature.locus.strand})"
            if by_name is None:
                found = tuple(_of(feature, column) for column in columns)
            elif name in by_name:
                found = tuple(value_of(by_name[name], column) for column in columns)
            else:
                raise ExamplesError(f"{feature.place}: {name!r} has no label in {table}")
            # The parts of one feature on several lines share their ID in GFF3, and lines may repeat.
            taken[name] = taken.get(name, 0) + 1
            name = name if taken[name] == 1 or id is not None else f"{name}#{taken[name]}"
            locus = _around(feature, window, genome)
            yield RawExample(
                id=name,
                sequence=fetch_read(genome, locus),
                labels=found,
                group=locus.contig if group is None else _of(feature, group),
                place=feature.place,
                locus=locus,
            )
        if types and not taken:
            raise ExamplesError(
                f"{path}: no feature of type {' or '.join(types)}; it has {', '.join(sorted(passed)[:12])}"
            )

    return examples_of(rows(), kind, label_columns=columns, classes=classes, source=str(path))


def _of(feature: Feature, key: str) -> str:
    try:
        return feature.values[key]
    except KeyError:
        raise ExamplesError(
            f"{feature.place}: no {key!r} here; there is {', '.join(list(feature.values)[:12]) or 'no further column'}"
        ) from None


def fetch_read(genome: Fasta, locus: Interval) -> str:
    """Bases of an interval in the direction in which it is read."""
    bases = genome.fetch(locus.contig, locus.start, locus.end)
    return (bases if locus.strand == "+" else reverse_complement(bases)).decode()


def _around(feature: Feature, window: int | None, genome: Fasta) -> Interval:
    locus = feature.locus
    if window is None:
        return locus
    length = genome.lengths[locus.contig]
    if length < window:
        raise ExamplesError(
            f"{feature.place}: {locus.contig} has {length:,} bases, fewer than the window of {window:,}"
        )
    start = min(max(0, (locus.start + locus.end - window) // 2), length - window)
    return Interval(locus.contig, start, start + window, locus.strand)


def read_variants(
    path: Path | str,
    genome: Fasta,
    *,
    window: int,
    strands: str = "both",
    labels: Sequence[str] = ("label",),
    table: Path | str | None = None,
    group: str | None = None,
    classes: Sequence[str] = (),
) -> Examples:
    """Return variants with their labels, and their reference and alternate windows.

    The windows are those of `evo-toolkit score` (`evo_data.windows`). What cannot be scored is an
    error, for a label that is dropped in silence would change the figure.

    Args:
        path: VCF, BCF or a table (`evo_data.variant_sources`), whose own columns then hold the labels.
        genome: The reference.
        window: Bases of each window.
        strands: "both", "fwd" or "rc".
        labels: INFO key or column of the label: a class, or a number.
        table: Labels by the variant's ID or its key `contig-pos-ref-alt` (column `id`) instead.
        group: INFO key or column of what must stay together, such as a gene; None means the contig.
        classes: Names and order of the classes.

    Raises:
        ExamplesError: naming file and line.
    """
    by_name = None if table is None else rows_by_name(table)
    contigs = ContigAliases(genome.lengths)

    def rows() -> Iterator[RawExample]:
        taken: set[str] = set()
        for record, own in _records(path, genome, contigs):
            place = own.place
            if len(record.alts) != 1:
                raise ExamplesError(
                    f"{place}: {len(record.alts)} alternate alleles; a labelled record has one (bcftools norm -m- splits them)"
                )
            variant = _checked(record, genome, contigs, place)
            contig = contigs[record.contig]
            length = genome.lengths[contig]

            def fetch(start: int, end: int, contig: str = contig) -> bytes:
                return genome.fetch(contig, start, end)

            edit = edit_of(normalise(variant, fetch))
            if max(edit.end - edit.start, len(edit.alt)) > window // 2:
                raise ExamplesError(
                    f"{place}: an allele of {max(edit.end - edit.start, len(edit.alt)):,} bases is longer than half the window of {window:,}"
                )
            try:
                windows, _ = variant_windows(fetch, length, edit, window, STRANDS[strands])
            except ContigError as error:
                raise ExamplesError(f"{place}: {error}") from error
            labelled = own
            if by_name is not None:
                name = next((n for n in (record.id, variant.key) if n in by_name), None)
                if name is None:
                    raise ExamplesError(f"{place}: neither {record.id} nor {variant.key} has a label in {table}")  # fmt: skip
                labelled = by_name[name]
            name = variant.key
            if name in taken:
                raise ExamplesError(
                    f"{place}: variant {name} stands here for the second time; keep one"
                )
            taken.add(name)
            yield RawExample(
                id=name,
                sequence=windows[0].ref.tobytes().decode(),
                labels=tuple(value_of(labelled, label) for label in labels),
                group=group_of(own, group) or contig,
                place=place,
                locus=Interval(contig, edit.start, edit.end),
                windows=tuple(windows),
            )

    if strands not in STRANDS:
        raise ExamplesError(f"strands {strands!r} is not known; use {', '.join(STRANDS)}")
    return examples_of(rows(), "variant", label_columns=labels, classes=classes, source=str(path))


def _records(
    path: Path | str, genome: Fasta, contigs: ContigAliases
) -> Iterator[tuple[VcfRecord, Row]]:
    """Records with what stands beside them: INFO of a VCF, the columns of a table."""
    if is_table(path):
        lines = Table(Path(path), False).lines(genome, contigs)
        for row, line in zip(read_rows(path), lines, strict=True):
            yield parse_record(line, 1, 8, row.place), row
        return
    with VariantReader(path) as reader:
        keys = sorted(reader.header.info_ids)
        for record in reader:
            # A flag that stands there is 1, a declared key that does not is a missing label.
            values = dict.fromkeys(["ID", *keys], "")
            for pair in record.info.decode("utf-8", "replace").split(";"):
                key, equals, value = pair.partition("=")
                values[key] = value if equals else "1"
            values["ID"] = "" if record.id == "." else record.id
            yield record, Row(f"{path}:{record.number}", values)


def _checked(record: VcfRecord, genome: Fasta, contigs: ContigAliases, place: str) -> Variant:
    status = classify_allele(record.ref, record.alts[0])
    if status is AlleleStatus.OK and record.contig not in contigs:
        raise ExamplesError(f"{place}: {genome.path} has no contig {record.contig!r}")
    if status is AlleleStatus.OK:
        try:
            variant = Variant(record.contig, record.pos, record.ref, record.alts[0])
        except EvoDataError as error:
            raise ExamplesError(f"{place}: {error}") from error
        contig = contigs[record.contig]

        def fetch(start: int, end: int) -> bytes:
            return genome.fetch(contig, start, end)

        status = check_reference(variant, fetch, genome.lengths[contig])
        if status is AlleleStatus.OK:
            return variant
    raise ExamplesError(
        f"{place}: {record.contig}:{record.pos} {record.ref[:20]}>{record.alts[0][:20]} has no windows ({status.value}); leave it out, or give the genome that it was called on"
    )


def read_per_base(
    regions: Path | str,
    genome: Fasta,
    features: Path | str,
    *,
    classes: Sequence[str] = (),
    window: int | None = None,
) -> Examples:
    """Return regions of a genome with a class for every base: the feature that it lies in.

    Features count on the strand on which a region is read, those without a strand on both. Class 0 is `none`. Where features overlap, the class named last in `classes` counts.

    Args:
        regions: BED, GFF3 or GTF; each line is one example.
        genome: The reference.
        features: BED (class in `name`) or GFF3/GTF (class in `type`).
        classes: Classes of features that count, in rising order; none given means all, sorted.
        window: As for `read_intervals`.

    Raises:
        ExamplesError: naming file and line; if no feature of a class lies in any region.
    """
    key = "type" if _GFF_SUFFIX.search(str(features)) else "name"
    found = list(read_features(features, genome))
    names = tuple(classes) or tuple(sorted({_of(feature, key) for feature in found}))
    code = {name: index + 1 for index, name in enumerate(names)}
    by_contig: dict[tuple[str, str], list[tuple[int, int, int]]] = {}
    for feature in found:
        name = _of(feature, key)
        if name in code:
            locus = feature.locus
            for strand in (locus.strand,) if feature.stranded else "+-":
                by_contig.setdefault((locus.contig, strand), []).append(
                    (code[name], locus.start, locus.end)
                )
    sorted_features = {where: np.array(sorted(rows)) for where, rows in by_contig.items()}
    met: set[int] = set()

    def of(locus: Interval) -> NDArray[np.int64]:
        values = np.zeros(locus.length, np.int64)
        rows = sorted_features.get((locus.contig, locus.strand))
        if rows is not None:
            for number, start, end in rows[
                (rows[:, 1] < locus.end) & (rows[:, 2] > locus.start)
            ].tolist():
                values[max(0, start - locus.start) : end - locus.start] = number
                met.add(number)
        return values if locus.strand == "+" else values[::-1].copy()

    examples = _of_regions(regions, genome, window, "per_base", (NO_CLASS, *names), of)
    seen = np.bincount(np.concatenate(examples.targets), minlength=len(names) + 1)
    if not seen[1:].all():
        number = int(np.argmin(seen[1:] > 0)) + 1
        absent = names[number - 1]
        if number in met:
            raise ExamplesError(
                f"{features}: in {regions} every base of a feature {absent!r} lies in one of a later class too, which counts (classes, in rising order: {', '.join(names)}); name the classes to learn, such as --classes {absent}"
            )
        raise ExamplesError(
            f"{features}: no base of {regions} lies in a feature {absent!r} on its strand; are the regions and features of one genome?"
        )
    return examples


def read_tracks(
    regions: Path | str,
    genome: Fasta,
    tracks: Mapping[str, Path | str],
    *,
    window: int | None = None,
) -> Examples:
    """Return regions of a genome with the values of bigWig files at every base.

    A region on "-" has its values reversed. Bases without a value are NaN.

    Args:
        regions: BED, GFF3 or GTF; each line is one example.
        genome: The reference.
        tracks: bigWig by name of the track.
        window: As for `read_intervals`.

    Raises:
        ExamplesError: for a file that is no bigWig, or of another genome.
        UsageError: where pyBigWig is not installed.
    """
    module = load_bigwig()
    opened: list[tuple[str, Any]] = []
    try:
        for name, path in tracks.items():
            opened.append((name, _open_bigwig(module, path, genome)))

        def of(locus: Interval) -> NDArray[np.float32]:
            columns = [
                np.asarray(
                    file.values(locus.contig, locus.start, locus.end, numpy=True), np.float32
                )
                if locus.contig in file.chroms()
                else np.full(locus.length, np.nan, np.float32)
                for _, file in opened
            ]
            values = np.stack(columns, axis=1)
            return values if locus.strand == "+" else values[::-1].copy()

        examples = _of_regions(regions, genome, window, "track", tuple(tracks), of)
    finally:
        for _, file in opened:
            file.close()
    for place, values in zip(examples.places, examples.targets, strict=True):
        if np.isnan(values).all():
            raise ExamplesError(f"{place}: no track has a value here; leave the region out")
    return examples


def _open_bigwig(module: Any, path: Path | str, genome: Fasta) -> Any:
    with Path(path).open("rb"):  # whose errors name the file
        pass
    try:
        file = module.open(str(path))
    except RuntimeError as error:
        raise ExamplesError(f"{path}: not a bigWig file") from error
    if not file.isBigWig():
        raise ExamplesError(f"{path}: not a bigWig file")
    for contig, length in file.chroms().items():
        if contig in genome.lengths and genome.lengths[contig] != length:
            raise ExamplesError(
                f"{path}: {contig} has {length:,} bases there and {genome.lengths[contig]:,} in {genome.path}; is it of another build?"
            )
    if not file.chroms().keys() & genome.lengths.keys():
        raise ExamplesError(f"{path}: no contig of {genome.path} is in it")
    return file


def _of_regions(
    path: Path | str,
    genome: Fasta,
    window: int | None,
    kind: TaskKind,
    names: tuple[str, ...],
    targets_of: Callable[[Interval], NDArray[Any]],
) -> Examples:
    features = [
        replace(feature, locus=_around(feature, window, genome))
        for feature in read_features(path, genome)
    ]
    if not features:
        raise ExamplesError(f"{path}: no region in it")
    loci = tuple(feature.locus for feature in features)
    return Examples(
        kind=kind,
        ids=tuple(f"{locus.region}({locus.strand})" for locus in loci),
        sequences=tuple(
            clean_sequence(fetch_read(genome, feature.locus), feature.place) for feature in features
        ),
        targets=tuple(targets_of(locus) for locus in loci),
        label_names=names,
        groups=tuple(locus.contig for locus in loci),
        places=tuple(feature.place for feature in features),
        loci=loci,
    )
