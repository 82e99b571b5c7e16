"""The stretches of a genome that a command is asked for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from evo_data.bed import read_bed
from evo_data.contigs import ContigAliases
from evo_data.errors import EvoDataError
from evo_data.interval import Interval
from evo_toolkit.errors import EvoError, UsageError


def read_regions(
    texts: Sequence[str], bed: Path | str | None, lengths: Mapping[str, int]
) -> list[Interval]:
    """Return the regions in the order of the genome, overlapping and touching ones merged.

    Args:
        texts: `contig:first-last`, 1-based and inclusive, or the name of a whole contig.
        bed: A BED file, 0-based half-open; the first three columns are read.
        lengths: Length of each contig of the genome. With neither texts nor a BED file every
            contig is taken whole.

    Raises:
        UsageError: for a region that is not understood, or lies outside of its contig.
        EvoError, EvoDataError: for a BED file of which that is true, naming the line, or when no
            base is left.
    """
    contigs = ContigAliases(lengths)
    found = [_from_text(text, contigs, lengths) for text in texts]
    if bed is not None:
        found.extend(_from_bed(bed, contigs, lengths))
    elif not texts:
        found = [Interval(name, 0, length) for name, length in lengths.items()]
    regions = merged(found, lengths)
    if not regions:
        where = str(bed) if bed is not None else ", ".join(texts) or "the genome"
        raise EvoError(f"{where}: no region with a base in it; give one of at least one base")
    return regions


def merged(regions: Iterable[Interval], lengths: Mapping[str, int]) -> list[Interval]:
    """Return the regions sorted by contig (in the genome's order) and start, none overlapping."""
    order = {name: index for index, name in enumerate(lengths)}
    result: list[Interval] = []
    for region in sorted(regions, key=lambda r: (order[r.contig], r.start, r.end)):
        if not region.length:
            continue
        last = result[-1] if result else None
        if last is not None and last.contig == region.contig and region.start <= last.end:
            result[-1] = Interval(last.contig, last.start, max(last.end, region.end))
        else:
            result.append(Interval(region.contig, region.start, region.end))
    return result


def _from_text(text: str, contigs: ContigAliases, lengths: Mapping[str, int]) -> Interval:
    if text in contigs:
        name = contigs[text]
        return Interval(name, 0, lengths[name])
    try:
        region = Interval.from_region(text)
    except EvoDataError as error:
        raise UsageError(f"{error}, or the name of a contig: {_listed(lengths)}") from error
    if region.contig not in contigs:
        raise UsageError(
            f"region {text!r}: the genome has no contig {region.contig!r}; it has {_listed(lengths)}"
        )
    name = contigs[region.contig]
    if region.end > lengths[name]:
        raise UsageError(f"region {text!r} reaches past the end of {name}, {lengths[name]:,} bases")
    return Interval(name, region.start, region.end)


def _from_bed(
    path: Path | str, contigs: ContigAliases, lengths: Mapping[str, int]
) -> list[Interval]:
    found = []
    for line in read_bed(path):
        if line.contig not in contigs:
            raise EvoError(
                f"{line.place}: the genome has no contig {line.contig!r}; it has {_listed(lengths)}"
            )
        name = contigs[line.contig]
        if line.end > lengths[name]:
            raise EvoError(
                f"{line.place}: [{line.start}, {line.end}) is not within {name}, {lengths[name]:,} bases (0-based, half-open)"
            )
        found.append(Interval(name, line.start, line.end))
    return found


def _listed(lengths: Mapping[str, int], most: int = 8) -> str:
    names = list(lengths)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
