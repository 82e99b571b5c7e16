"""Which variants lie on one chromosome: haplotypes from the phased genotypes of a VCF.

A heterozygous call is used only where it is phased (`|`); calls with one phase set (FORMAT/PS) belong
together, and so do calls without any on a contig. A homozygous or haploid alternate lies on every
haplotype whatever the phase, and joins all phase sets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from evo_data.variant import Edit
from evo_data.vcf import VcfRecord

_FREE = None
_FIRST_SAMPLE = 9


@dataclass(frozen=True, slots=True)
class Call:
    """An alternate allele as one sample carries it.

    Attributes:
        number: Of the allele among the record's alternates, from 0.
        haplotypes: On which of the sample's chromosomes, from 0; empty for all of them.
        phase_set: Value of PS; "" for none; None where phase does not matter.
        ploidy: Chromosomes that the call is about.
    """

    number: int
    haplotypes: frozenset[int]
    phase_set: str | None
    ploidy: int = 2


def calls_of(record: VcfRecord) -> Iterator[tuple[int, Call | None]]:
    """Yield sample (from 0) and allele of every alternate that a sample carries.

    None in place of the call where it is heterozygous and not phased.
    """
    columns = record.line.split(b"\t")
    if len(columns) <= _FIRST_SAMPLE:
        return
    keys = columns[_FIRST_SAMPLE - 1].decode("ascii", "replace").split(":")
    if "GT" not in keys:
        return
    genotype = keys.index("GT")
    phase = keys.index("PS") if "PS" in keys else None
    for sample, column in enumerate(columns[_FIRST_SAMPLE:]):
        values = column.decode("ascii", "replace").split(":")
        text = values[genotype] if genotype < len(values) else "."
        # VCF 4.4 allows a phasing mark in front of the first allele.
        alleles = re.split(r"[|/]", text.lstrip("|/"))
        carried = {a for a in alleles if a.isdecimal() and 0 < int(a) <= len(record.alts)}
        phase_set = values[phase] if phase is not None and phase < len(values) else "."
        for allele in sorted(carried, key=int):
            number = int(allele) - 1
            if all(a == allele for a in alleles):
                yield sample, Call(number, frozenset(), _FREE, len(alleles))
            elif "/" in text:
                yield sample, None
            else:
                where = frozenset(i for i, a in enumerate(alleles) if a == allele)
                found = "" if phase_set == "." else phase_set
                yield sample, Call(number, where, found, len(alleles))


@dataclass(frozen=True, slots=True)
class Carried:
    """A variant on a haplotype.

    Attributes:
        contig: As the variants call it.
        key: Names it, such as 1-100-A-C.
        edit: The normalised change.
    """

    contig: str
    key: str
    edit: Edit


@dataclass(frozen=True, slots=True)
class Carrier:
    """Who has a haplotype.

    Attributes:
        sample: From 0.
        chromosomes: From 0.
        phase_set: Value of PS, "" for none.
    """

    sample: int
    chromosomes: tuple[int, ...]
    phase_set: str


@dataclass
class HaplotypeFinder:
    """Gathers the calls of one contig and finds the variants that lie near each other on a chromosome.

    Attributes:
        reach: Most bases from the first changed one to the last of one haplotype.
        counts: What was left out, by reason.
    """

    reach: int
    counts: Counter[str] = field(default_factory=Counter)
    _carried: dict[int, list[tuple[Carried, Call]]] = field(default_factory=dict)

    def add(self, sample: int, carried: Carried, call: Call) -> None:
        """Take one allele that a sample carries; in any order."""
        self._carried.setdefault(sample, []).append((carried, call))

    def finish(self) -> dict[tuple[Carried, ...], list[Carrier]]:
        """Return every combination of two or more variants and who carries it; empties the finder.

        Variants are in the order of the genome; of two that change the same bases, or insert at the
        same place, the first is kept.
        """
        found: dict[tuple[Carried, ...], list[Carrier]] = {}
        for sample in sorted(self._carried):
            calls = sorted(
                self._carried[sample], key=lambda c: (c[0].edit.start, c[0].edit.end, c[0].key)
            )
            for cluster in self._clusters(calls):
                for variants, chromosomes, phase_set in self._haplotypes(cluster):
                    carriers = found.setdefault(variants, [])
                    carriers.append(Carrier(sample, chromosomes, phase_set))
        self._carried = {}
        return dict(sorted(found.items(), key=lambda x: [(c.edit.start, c.key) for c in x[0]]))

    def _clusters(
        self, calls: Sequence[tuple[Carried, Call]]
    ) -> Iterator[list[tuple[Carried, Call]]]:
        cluster: list[tuple[Carried, Call]] = []
        for one in calls:
            if cluster and one[0].edit.end - cluster[0][0].edit.start > self.reach:
                yield cluster
                cluster = []
            cluster.append(one)
        if cluster:
            yield cluster

    def _haplotypes(
        self, cluster: Sequence[tuple[Carried, Call]]
    ) -> Iterator[tuple[tuple[Carried, ...], tuple[int, ...], str]]:
        """The distinct haplotypes of one sample in a cluster, with the chromosomes that have them."""
        phased = dict.fromkeys(c.phase_set for _, c in cluster if c.phase_set is not None)
        for phase_set in phased or [""]:
            here = [(v, c) for v, c in cluster if c.phase_set in (phase_set, _FREE)]
            by_variants: dict[tuple[Carried, ...], list[int]] = {}
            for chromosome in range(max(c.ploidy for _, c in here)):
                variants = self._compatible(
                    [v for v, c in here if not c.haplotypes or chromosome in c.haplotypes]
                )
                if len(variants) > 1:
                    by_variants.setdefault(variants, []).append(chromosome)
            for variants, chromosomes in by_variants.items():
                yield variants, tuple(chromosomes), phase_set

    def _compatible(self, variants: Sequence[Carried]) -> tuple[Carried, ...]:
        kept: list[Carried] = []
        for variant in variants:
            if kept:
                last = kept[-1].edit
                if variant.edit.start < last.end or variant.edit.start == last.start:
                    self.counts["overlaps another of the same haplotype"] += 1
                    continue
            kept.append(variant)
        return tuple(kept)


def joined_edits(variants: Sequence[Carried], bases: bytes) -> tuple[Edit, list[Edit]]:
    """The change that a haplotype is, and each of its variants alone, over the same bases.

    Args:
        variants: In the order of the genome, none overlapping.
        bases: Of the genome, from the first variant's first changed base to the last one's last.
    """
    start, end = variants[0].edit.start, variants[-1].edit.end
    together = bases
    # From right to left, so that offsets hold.
    for variant in reversed(variants):
        together = _spliced(together, variant.edit, start)
    alone = [Edit(start, end, _spliced(bases, v.edit, start)) for v in variants]
    return Edit(start, end, together), alone


def _spliced(bases: bytes, edit: Edit, start: int) -> bytes:
    return bases[: edit.start - start] + edit.alt + bases[edit.end - start :]


def text_of(carrier: Carrier, samples: Sequence[str]) -> str:
    """A carrier for people: sample, its chromosomes from 1, and the phase set."""
    chromosomes = "+".join(str(c + 1) for c in carrier.chromosomes)
    phase_set = f":{carrier.phase_set}" if carrier.phase_set else ""
    return f"{samples[carrier.sample]}:{chromosomes}{phase_set}"
