"""What the parts of a split share: near copies of held-out sequence in what a model has seen."""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

from evo_data.corpus import Corpus
from evo_data.kmers import K, corpus_sequences, shared_kmers_each
from evo_data.splits import Segment, Split, num_bases


class Leakage(NamedTuple):
    """How much of a held-out part stands in another part too.

    Attributes:
        part: "val" or "test".
        against: The part it is compared with.
        genome: Name of the genome whose share it is, or None for the whole part.
        num_bases: Length of what is held out, in bases.
        shared: Share of its distinct k-mers (either strand) that occur in `against`, 0 to 1.
    """

    part: str
    against: str
    genome: str | None
    num_bases: int
    shared: float


def leakage_report(corpus: Corpus, split: Split, *, k: int = K, scale: int = 1) -> list[Leakage]:
    """Return what validation and test share with the parts before them, as a whole and by genome.

    A 31-mer that occurs in both by chance is rare (one in 10^9 for two bacteria), so a share is
    close to the part of the sequence that has a near copy there: a repeat, a strain, a plasmid.

    Args:
        k: Length of the k-mers, 1 to 32.
        scale: 1 counts every k-mer (16 bytes of memory each); more, one in so many.

    Returns:
        For each of (val, train), (test, train), (test, val) that is not empty: the whole first,
        then its genomes, those that share most first.
    """
    rows = []
    for part, against in (("val", "train"), ("test", "train"), ("test", "val")):
        held, other = split.parts()[part], split.parts()[against]
        if not held or not other:
            continue
        by_genome: dict[int, list[Segment]] = defaultdict(list)
        for segment in held:
            by_genome[corpus.records[segment.record].genome].append(segment)
        queries = [held, *by_genome.values()]
        shares = shared_kmers_each(
            [corpus_sequences(corpus, segments, k) for segments in queries],
            corpus_sequences(corpus, other, k),
            k,
            scale,
        )
        names = [None, *(corpus.genomes[genome].name for genome in by_genome)]
        of_part = [
            Leakage(part, against, name, num_bases(segments), share)
            for name, segments, share in zip(names, queries, shares, strict=True)
        ]
        rows += [of_part[0], *sorted(of_part[1:], key=lambda row: (-row.shared, row.genome or ""))]
    return rows
