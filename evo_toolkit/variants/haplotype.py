"""Variants that lie on one chromosome, scored together and apart.

With the variants v_1 ... v_n of a haplotype within a window,

    joint       = dll of all of them at once
    sum         = dll(v_1) + ... + dll(v_n), each alone
    interaction = joint - sum                                  nats

All are compared with one reference window, in which the first changed base (on the reverse strand the
last) stands at the middle; so `dll(v_i)` differs a little from that of the variant's own window, and
the difference between windows is no part of the interaction. A positive interaction means that
together they are MORE likely to the model than the variants apart let expect.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import pysam

from evo_data.circular import rotate
from evo_data.errors import ContigError
from evo_data.fasta import Fasta
from evo_data.files import atomic_output
from evo_data.haplotypes import (
    Carried,
    Carrier,
    HaplotypeFinder,
    calls_of,
    joined_edits,
    text_of,
)
from evo_data.tabix import index_tabix
from evo_data.variant import (
    AlleleStatus,
    Edit,
    Fetch,
    Variant,
    check_reference,
    classify_allele,
    edit_of,
    normalise,
)
from evo_data.vcf import VcfRecord
from evo_data.windows import StrandWindow, haplotype_windows
from evo_toolkit.errors import UsageError
from evo_toolkit.variants.output import metadata_lines
from evo_toolkit.variants.scores import RunInfo, strand_score
from evo_toolkit.variants.tables import MISSING
from evo_toolkit.variants.window_runner import WindowGroup, WindowRunner

COLUMNS = (
    "chrom", "start", "end", "num_variants", "variants", "num_carriers", "carriers", "joint", "sum",
    "interaction", "joint_fwd", "joint_rc", "each", "flags",
)  # fmt: skip
"""`start` and `end` are 1-based and inclusive, from the first changed base to the last. A carrier is
sample:chromosomes or sample:chromosomes:phase_set."""

_MOST_CARRIERS = 20


@dataclass(frozen=True, slots=True)
class Haplotype:
    """Variants that a chromosome carries together, and their scores.

    Attributes:
        contig: As the variants call it.
        start, end: From the first changed base to the last, 0-based half-open.
        variants: Keys, in the order of the genome.
        carriers: Who has it.
        joint: All of them against the reference, nats, mean of the scored strands.
        each: Each alone.
        joint_fwd, joint_rc: Of each strand; None where it was not scored.
        flags: Remarks about the windows.
    """

    contig: str
    start: int
    end: int
    variants: tuple[str, ...]
    carriers: tuple[Carrier, ...]
    joint: float
    each: tuple[float, ...]
    joint_fwd: float | None
    joint_rc: float | None
    flags: tuple[str, ...] = ()

    @property
    def sum(self) -> float:
        """What the variants alone let expect, nats."""
        return sum(self.each)

    @property
    def interaction(self) -> float:
        """`joint` minus `sum`, nats."""
        return self.joint - self.sum


@dataclass
class HaplotypeScorer:
    """Finds haplotypes among records and scores them.

    Attributes:
        runner: Runs the model, as for the variants one by one.
        strands: "both", "+" or "-".
        reach: Most bases from the first changed one to the last.
        left_out: Alleles that are in no haplotype though a sample carries them, by reason.
        num_found: Haplotypes scored so far.
    """

    runner: WindowRunner
    genome: Fasta
    contigs: Mapping[str, str]
    strands: str
    reach: int
    circular: Collection[str] = ()
    flags: tuple[str, ...] = ()
    left_out: Counter[str] = field(default_factory=Counter)
    num_found: int = 0

    def score(self, records: Iterator[VcfRecord]) -> Iterator[Haplotype]:
        """Yield the haplotypes of records, contig by contig, in the order of the genome.

        A contig's calls are held until the next contig begins.

        Raises:
            UsageError: if the records of a contig are not in one piece.
        """
        finder = HaplotypeFinder(self.reach)
        contig: str | None = None
        finished: set[str] = set()
        for record in records:
            if record.contig != contig:
                if contig is not None:
                    finished.add(contig)
                    yield from self._scored(finder, contig)
                if record.contig in finished:
                    raise UsageError(
                        f"the records of {record.contig} are not in one piece; sort the file (bcftools sort) to have haplotypes"
                    )
                contig = record.contig
            self._take(record, finder)
        if contig is not None:
            yield from self._scored(finder, contig)

    def _take(self, record: VcfRecord, finder: HaplotypeFinder) -> None:
        known: dict[int, Carried | None] = {}
        for sample, call in calls_of(record):
            if call is None:
                self.left_out["heterozygous and not phased"] += 1
                continue
            if call.number not in known:
                known[call.number] = self._carried(record, call.number)
            carried = known[call.number]
            if carried is None:
                self.left_out["has no sequence here"] += 1
            else:
                finder.add(sample, carried, call)

    def _carried(self, record: VcfRecord, number: int) -> Carried | None:
        """An allele's normalised change, or None where it cannot be scored."""
        contig, alt = self.contigs.get(record.contig), record.alts[number]
        if contig is None or record.pos < 1:
            return None
        if classify_allele(record.ref, alt) is not AlleleStatus.OK:
            return None

        def fetch(start: int, end: int) -> bytes:
            return self.genome.fetch(contig, start, end)

        variant = Variant(record.contig, record.pos, record.ref, alt)
        if check_reference(variant, fetch, self.genome.lengths[contig]) is not AlleleStatus.OK:
            return None
        normalised = normalise(variant, fetch)
        edit = edit_of(normalised)
        too_long = max(edit.end - edit.start, len(edit.alt)) > self.reach
        if normalised.ref == normalised.alt or too_long:
            return None
        return Carried(record.contig, normalised.key, edit)

    def _scored(self, finder: HaplotypeFinder, contig: str) -> Iterator[Haplotype]:
        found = list(finder.finish().items())
        self.left_out.update(finder.counts)
        finder.counts.clear()
        # As many as fill the runner's calls: a reference, the haplotype, and its variants each.
        batch: list[tuple[tuple[Carried, ...], list[Carrier]]] = []
        windows = 0
        for one in found:
            batch.append(one)
            windows += 2 * (2 + len(one[0]))
            if windows >= self.runner.windows_per_call:
                yield from self._batch(contig, batch)
                batch, windows = [], 0
        if batch:
            yield from self._batch(contig, batch)

    def _batch(
        self, contig: str, batch: Sequence[tuple[tuple[Carried, ...], list[Carrier]]]
    ) -> Iterator[Haplotype]:
        prepared = []
        groups: list[WindowGroup] = []
        for variants, carriers in batch:
            made = self._windows(contig, variants)
            if made is None:
                self.left_out["on a contig too short for a window"] += len(variants)
                continue
            strands, flags = made
            first = len(groups)
            groups += [
                WindowGroup(members[0].ref, [(w.alt, w.fork) for w in members])
                for members in strands
            ]
            prepared.append((variants, carriers, strands, flags, first))
        pairs = self.runner(groups) if groups else []
        for variants, carriers, strands, flags, first in prepared:
            dlls = [
                [
                    strand_score(window, pair.ref, pair.alt).dll
                    for window, pair in zip(members, pairs[first + index], strict=True)
                ]
                for index, members in enumerate(strands)
            ]
            by_strand = {m[0].strand: row[0] for m, row in zip(strands, dlls, strict=True)}
            means = [sum(values) / len(values) for values in zip(*dlls, strict=True)]
            self.num_found += 1
            yield Haplotype(
                contig=contig, start=variants[0].edit.start, end=variants[-1].edit.end,
                variants=tuple(v.key for v in variants), carriers=tuple(carriers), joint=means[0],
                each=tuple(means[1:]), joint_fwd=by_strand.get("+"), joint_rc=by_strand.get("-"),
                flags=(*self.flags, *sorted(flags)),
            )  # fmt: skip

    def _windows(
        self, contig: str, variants: Sequence[Carried]
    ) -> tuple[list[list[StrandWindow]], frozenset[str]] | None:
        """For each strand the windows of the haplotype and of each variant alone."""
        name = self.contigs[contig]
        length = self.genome.lengths[name]

        def fetch(start: int, end: int) -> bytes:
            return self.genome.fetch(name, start, end)

        first, last = variants[0].edit.start, variants[-1].edit.end
        joint, alone = joined_edits(variants, fetch(first, last))
        edits = [joint, *alone]
        read: Fetch = fetch
        if name in self.circular:
            turned = rotate(fetch, length, joint, self.runner.window)
            read = turned.fetch
            edits = [Edit(turned.edit.start, turned.edit.end, edit.alt) for edit in edits]
        try:
            strands, flags = haplotype_windows(
                read, length, edits, self.runner.window, self.strands, step=self.runner.step
            )
        except ContigError:
            return None
        # At the end of a contig one strand may hold nothing of the haplotype.
        telling = [members for members in strands if members[0].fork < len(members[0].ref)]
        if telling and len(telling) < len(strands):
            strands, flags = telling, flags | {"one_strand"}
        return strands, flags


def write_haplotypes(
    path: Path | str,
    haplotypes: Iterator[Haplotype],
    *,
    samples: Sequence[str],
    info: RunInfo,
    force: bool = False,
) -> str | None:
    """Write haplotypes as TSV, or as bgzip with a tabix index where the name ends in .gz.

    Returns:
        Why there is no index where there should be one.

    Raises:
        EvoDataError: if the file exists or cannot be written.
    """
    compressed = str(path).endswith(".gz")
    last = 0
    with atomic_output(path, force=force) as temporary:
        opened: IO[bytes] | Any = (
            pysam.BGZFile(str(temporary), "wb") if compressed else temporary.open("wb")
        )
        with opened as out:
            header = "#" + "\t".join(COLUMNS)
            # What the table of alleles says of itself, but for its own columns.
            for line in (*metadata_lines(replace(info, columns=())), header):
                out.write(f"{line}\n".encode())
            for one in haplotypes:
                last = max(last, one.end)
                out.write(("\t".join(_row(one, samples)) + "\n").encode())
    if not compressed:
        return None
    return index_tabix(path, start=1, end=2, last_position=last)


def _row(one: Haplotype, samples: Sequence[str]) -> list[str]:
    carriers = [text_of(carrier, samples) for carrier in one.carriers[:_MOST_CARRIERS]]
    carriers += ["..."] if len(one.carriers) > _MOST_CARRIERS else []
    return [
        one.contig, str(one.start + 1), str(one.end),
        str(len(one.variants)), ",".join(one.variants), str(len(one.carriers)), ",".join(carriers),
        *(MISSING if v is None else f"{v:.9g}" for v in (one.joint, one.sum, one.interaction, one.joint_fwd, one.joint_rc)),
        ",".join(f"{v:.9g}" for v in one.each), "|".join(one.flags) or MISSING,
    ]  # fmt: skip
