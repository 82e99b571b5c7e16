"""Which parts of a corpus train, validate and test.

A split lists segments of records for each part; no base is in two of them. Both strands of a base
are in the same part, because a window read in reverse comes from the same segment.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from evo_data.bed import read_bed
from evo_data.corpus import Corpus
from evo_data.errors import EvoDataError
from evo_data.permutation import permute

PARTS = ("train", "val", "test")

BLOCK = 65_536
"""Length of the stretches that `split_by_blocks` holds out, in bases."""

# What a keyed choice is for; part of the key, and so never to be changed.
_BY_CLUSTER, _BY_BLOCK = 11, 12
_SCAN = 1 << 24
# What a prepared corpus has for everything that is no base. Tags of documents are no gaps.
_IS_KNOWN = np.ones(256, bool)
_IS_KNOWN[[*b"Nn"]] = False


class SplitError(EvoDataError):
    """A split that cannot be made, read, or used with this corpus."""


class Segment(NamedTuple):
    """Part of a record: its index in `Corpus.records`, and bases `[start, stop)`, 0-based."""

    record: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Segments of each part, in the order of the corpus.

    Attributes:
        train, val, test: Disjoint segments; bases in none of them are used for nothing.
        method: How it was made, plain values, for the manifest.
    """

    train: tuple[Segment, ...]
    val: tuple[Segment, ...] = ()
    test: tuple[Segment, ...] = ()
    method: Mapping[str, Any] = field(default_factory=dict)

    def parts(self) -> dict[str, tuple[Segment, ...]]:
        """The segments by name of the part, empty ones included."""
        return {"train": self.train, "val": self.val, "test": self.test}


def whole_records(corpus: Corpus) -> list[Segment]:
    """Return every record of a corpus as a segment."""
    return [Segment(at, 0, record.length) for at, record in enumerate(corpus.records)]


def num_bases(segments: Iterable[Segment]) -> int:
    """Total length of segments, in bases."""
    return sum(segment.stop - segment.start for segment in segments)


def without_gaps(
    corpus: Corpus, segments: Iterable[Segment] | None = None, *, longest_gap: int = 100
) -> list[Segment]:
    """Cut segments at long runs of N.

    Such gaps of a scaffold can be neither learned from nor scored. Reads every segment once.

    Args:
        segments: None means every record.
        longest_gap: Runs of up to so many N stay within a segment.

    Returns:
        What is left of the segments, in their order; an N at an end of one is cut off too.
    """
    kept = []
    for record, start, stop in whole_records(corpus) if segments is None else segments:
        ends: list[int] = []  # of the runs of bases found so far: start, stop, start, stop, ...
        for low in range(start, stop, _SCAN):
            known = _IS_KNOWN[corpus.read(record, low, min(stop, low + _SCAN))]
            edges = low + np.flatnonzero(np.diff(known, prepend=False, append=False))
            for first, last in edges.reshape(-1, 2).tolist():
                if ends and first - ends[-1] <= longest_gap:
                    ends[-1] = last
                else:
                    ends += [first, last]
        kept += [Segment(record, *ends[at : at + 2]) for at in range(0, len(ends), 2)]
    return kept


def split_by_contigs(corpus: Corpus, *, val: Sequence[str], test: Sequence[str] = ()) -> Split:
    """Hold out records whose name is given, or matches a pattern such as `chr2*`.

    Args:
        val, test: Names or patterns (`*`, `?`, `[...]`) of records; `genome/record` where records of
            several genomes have the same name.

    Raises:
        SplitError: if a name matches nothing, or what it matches is held out twice.
    """
    names = [(record.name, f"{corpus.genomes[record.genome].name}/{record.name}") for record in corpus.records]  # fmt: skip
    part_of = _choose(names, val, test, "record")
    return _of_records(corpus, part_of, {"by": "contig", "val": list(val), "test": list(test)})


def split_by_genomes(corpus: Corpus, *, val: Sequence[str], test: Sequence[str] = ()) -> Split:
    """Hold out genomes whose name or group is given, or matches a pattern.

    Raises:
        SplitError: if a name matches nothing, or what it matches is held out twice.
    """
    names = [(genome.name, genome.group) for genome in corpus.genomes]
    part_of = _choose(names, val, test, "genome or group")
    by_record = [part_of[record.genome] for record in corpus.records]
    return _of_records(corpus, by_record, {"by": "genome", "val": list(val), "test": list(test)})


def split_by_clusters(
    corpus: Corpus, *, val_fraction: float, test_fraction: float = 0.0, seed: int = 0
) -> Split:
    """Hold out whole clusters of near-identical genomes until they make up a share of the bases.

    Clusters are taken in a keyed order; one that would overshoot the share by more than half of it
    is passed over unless every cluster is as large.

    Raises:
        SplitError: if the shares are out of range, or there are too few clusters.
    """
    _check_fractions(val_fraction, test_fraction)
    sizes: dict[int, int] = defaultdict(int)
    for genome in corpus.genomes:
        sizes[genome.cluster] += genome.num_bases
    clusters = sorted(sizes)
    wanted = {"val": val_fraction, "test": test_fraction}
    wanted = {part: share * corpus.num_bases for part, share in wanted.items() if share}
    if len(clusters) <= len(wanted):
        raise SplitError(
            f"the corpus has {len(clusters)} cluster(s) of genomes, too few for "
            f"{len(wanted) + 1} parts; split it by contig or by blocks"
        )
    ranks = permute(np.arange(len(clusters)), len(clusters), (seed, _BY_CLUSTER))
    order = [clusters[rank] for rank in ranks]
    part_of_cluster: dict[int, str] = {}
    for part, bases in wanted.items():
        left = [cluster for cluster in order if cluster not in part_of_cluster]
        taken = 0
        for cluster in left[:-1]:
            if taken < bases and taken + sizes[cluster] <= 1.5 * bases:
                part_of_cluster[cluster] = part
                taken += sizes[cluster]
        if not taken:
            part_of_cluster[min(left, key=lambda cluster: (sizes[cluster], cluster))] = part
    by_record = [
        part_of_cluster.get(corpus.genomes[record.genome].cluster, "train")
        for record in corpus.records
    ]
    method = {
        "by": "cluster",
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "seed": seed,
    }
    return _of_records(corpus, by_record, method)


def split_by_blocks(
    corpus: Corpus,
    *,
    val_fraction: float,
    test_fraction: float = 0.0,
    block: int = BLOCK,
    seed: int = 0,
) -> Split:
    """Hold out a keyed choice of stretches of every genome, for corpora of few records.

    Records are cut into equal blocks of about the given length (shorter where there would be fewer
    than 20 in all). Repeats and gene families of a genome are in every part then, so results on
    such a split say how well a model knows these genomes, not how it does on others.

    Args:
        val_fraction, test_fraction: Shares of the blocks, rounded up.
        block: Length of a block, in bases.

    Raises:
        SplitError: if the shares are out of range or the corpus is too short.
    """
    _check_fractions(val_fraction, test_fraction)
    if block < 1:
        raise SplitError(f"block {block} is too short; give a length in bases")
    method = {
        "by": "blocks",
        "val_fraction": val_fraction,
        "test_fraction": test_fraction,
        "block": block,
        "seed": seed,
    }
    block = max(1, min(block, corpus.num_bases // 20))
    blocks: list[Segment] = []
    for at, record in enumerate(corpus.records):
        count = max(1, round(record.length / block))
        edges = [record.length * i // count for i in range(count + 1)]
        blocks += [Segment(at, start, stop) for start, stop in pairwise(edges) if stop > start]
    num_val = math.ceil(val_fraction * len(blocks))
    num_test = math.ceil(test_fraction * len(blocks))
    if num_val + num_test >= len(blocks):
        raise SplitError(
            f"the corpus has only {len(blocks)} block(s) to split; give more genomes or smaller shares"
        )
    parts: dict[str, list[Segment]] = {part: [] for part in PARTS}
    ranks = permute(np.arange(len(blocks)), len(blocks), (seed, _BY_BLOCK))
    for rank, segment in zip(ranks, blocks, strict=True):
        part = "val" if rank < num_val else "test" if rank < num_val + num_test else "train"
        joined = parts[part]
        if joined and joined[-1].record == segment.record and joined[-1].stop == segment.start:
            joined[-1] = joined[-1]._replace(stop=segment.stop)
        else:
            joined.append(segment)
    return checked_split(corpus, parts, method)


def split_by_bed(
    corpus: Corpus, *, val: Path | str, test: Path | str | None = None, margin: int = 0
) -> Split:
    """Hold out the intervals of BED files; everything else trains.

    Args:
        val, test: BED files, plain or gzipped. The first column is the name of a record, or
            `genome/record` where records of several genomes have the same name.
        margin: Bases on either side of an interval that are used for nothing.

    Raises:
        EvoDataError: if a line cannot be read, names no record or reaches outside of one, or an
            interval is in both files.
    """
    if margin < 0:
        raise SplitError(f"margin {margin} is negative; give a number of bases")
    held = {"val": _read_bed(Path(val), corpus)}
    held["test"] = _read_bed(Path(test), corpus) if test is not None else []
    removed: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for segments in held.values():
        for record, start, stop in segments:
            removed[record].append((max(0, start - margin), stop + margin))
    train = []
    for at, whole in enumerate(corpus.records):
        position = 0
        for start, stop in sorted(removed.get(at, [])):
            if start > position:
                train.append(Segment(at, position, start))
            position = max(position, stop)
        if position < whole.length:
            train.append(Segment(at, position, whole.length))
    method = {
        "by": "bed",
        "val": str(val),
        "test": None if test is None else str(test),
        "margin": margin,
    }
    return checked_split(corpus, {"train": train, **held}, method)


def _check_fractions(val: float, test: float) -> None:
    if not (0 <= val < 1 and 0 <= test < 1 and 0 < val + test < 1):
        raise SplitError(
            f"shares of {val} for validation and {test} for testing; give shares from 0 to 1 that "
            "leave something to train on and something to hold out"
        )


def _choose(
    names: Sequence[tuple[str, str]], val: Sequence[str], test: Sequence[str], what: str
) -> list[str]:
    """Part of each of the things that go by two names."""
    part_of = ["train"] * len(names)
    for part, patterns in (("val", val), ("test", test)):
        for pattern in patterns:
            # A name is taken as it is before it is taken for a pattern: names may hold brackets.
            found = [at for at, both in enumerate(names) if pattern in both]
            found = found or [
                at for at, both in enumerate(names) if any(fnmatchcase(n, pattern) for n in both)
            ]
            if not found:
                some = ", ".join(sorted({name for name, _ in names})[:6])
                raise SplitError(f"no {what} is called {pattern!r}; there are {some}, ...")
            for at in found:
                if part_of[at] not in ("train", part):
                    raise SplitError(f"{names[at][0]} is in val and in test; name it once")
                part_of[at] = part
    return part_of


def _of_records(corpus: Corpus, part_of: Sequence[str], method: dict[str, Any]) -> Split:
    parts: dict[str, list[Segment]] = {part: [] for part in PARTS}
    for segment in whole_records(corpus):
        parts[part_of[segment.record]].append(segment)
    return checked_split(corpus, parts, method)


def checked_split(
    corpus: Corpus, parts: Mapping[str, list[Segment]], method: dict[str, Any]
) -> Split:
    """Return a split of segments by part.

    Raises:
        SplitError: if a segment is not within its record, a base is in two parts, or there is
            nothing to train on or nothing held out.
    """
    taken: dict[int, list[tuple[int, int, str]]] = defaultdict(list)
    for part, segments in parts.items():
        for record, start, stop in segments:
            length = corpus.records[record].length
            if not 0 <= start <= stop <= length:
                raise SplitError(
                    f"[{start}, {stop}) of {part} is not within record "
                    f"{corpus.records[record].name} of {length} bases"
                )
            if stop > start:
                taken[record].append((start, stop, part))
    for record, intervals in taken.items():
        intervals.sort()
        for (_, stop, part), (start, _, other) in pairwise(intervals):
            if start < stop:
                raise SplitError(
                    f"record {corpus.records[record].name}: base {start} is in {part} and again in "
                    f"{other}; name every base once"
                )
    for part, needed in (("train", "to train on"), ("val", "to validate on")):
        if not num_bases(parts[part]) and not (part == "val" and num_bases(parts["test"])):
            raise SplitError(f"the split leaves nothing {needed}; hold out another part")
    return Split(**{part: tuple(sorted(parts[part])) for part in PARTS}, method=method)


def _read_bed(path: Path, corpus: Corpus) -> list[Segment]:
    by_name: dict[str, list[int]] = defaultdict(list)
    for at, record in enumerate(corpus.records):
        by_name[record.name].append(at)
        by_name[f"{corpus.genomes[record.genome].name}/{record.name}"].append(at)
    segments = []
    for line in read_bed(path):
        where, name, start, stop = line.place, line.contig, line.start, line.end
        found = by_name.get(name, [])
        if len(found) != 1:
            how_many = "no record is" if not found else f"{len(found)} records are"
            raise SplitError(f"{where}: {how_many} called {name}; write genome/record")
        length = corpus.records[found[0]].length
        if not start < stop <= length:
            raise SplitError(
                f"{where}: [{start}, {stop}) is not within {name} of {length} bases (0-based, "
                "end not included)"
            )
        segments.append(Segment(found[0], start, stop))
    if not segments:
        raise SplitError(f"{path}: no interval; give a BED file")
    # Intervals of one file may overlap or touch.
    merged: list[Segment] = []
    for segment in sorted(segments):
        last = merged[-1] if merged else None
        if last and last.record == segment.record and segment.start <= last.stop:
            merged[-1] = last._replace(stop=max(last.stop, segment.stop))
        else:
            merged.append(segment)
    return merged
