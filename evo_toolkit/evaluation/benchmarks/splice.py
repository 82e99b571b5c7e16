"""Splice sites against places of the same transcripts that have the same two bases.

The files have a junction on each line: 50 bases of exon, the intron, 50 bases of exon, how often
RNA was seen to be spliced there, the gene. A donor's decoy is another GT of the same line, an
acceptor's another AG, so the two bases themselves tell nothing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from evo_data.files import read_text
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.evaluation.benchmarks.promoters import drop_repeats
from evo_toolkit.finetuning.examples import RawExample, examples_of
from evo_toolkit.finetuning.splits import cluster_sequences, join_groups

FLANK = 40
"""Bases on either side of a site; exons of the files have 50."""

LEAST_COUNT = 10
"""Spliced reads from which on a junction is taken to be one."""


MOST_PER_GENE = 2
"""Junctions drawn of a gene: what more of them add is not independent."""


class Junction(NamedTuple):
    """One line: the transcript's piece in upper case, and where the intron lies in it (half-open)."""

    sequence: str
    intron: tuple[int, int]
    gene: str
    place: str


def read_junctions(path: Path | str) -> Iterator[Junction]:
    """Yield the junctions with at least 10 spliced reads, introns from GT to AG.

    Raises:
        EvoDataError: if the file cannot be read.
        EvoError: for a line of another format.
    """
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        place = f"{path}, line {number}"
        if len(fields) != 5 or not fields[3].isdigit():
            raise EvoError(f"{place}: not exon, intron, exon, number of reads and gene; give the junctions of KorfLab/genDL")  # fmt: skip
        left, intron, right = (text.upper() for text in fields[:3])
        start, stop = len(left), len(left) + len(intron)
        if int(fields[3]) >= LEAST_COUNT and intron[:2] == "GT" and intron[-2:] == "AG":
            yield Junction(left + intron + right, (start, stop), fields[4], place)


def load_donors(paths: Sequence[Path | str]) -> LabelledTask:
    """Donor sites: the middle of each window is the end of the exon, or where a decoy's would be."""
    return _load(paths, "GT", lambda junction: junction.intron[0], 0)


def load_acceptors(paths: Sequence[Path | str]) -> LabelledTask:
    """Acceptor sites: the middle of each window is the beginning of the exon."""
    return _load(paths, "AG", lambda junction: junction.intron[1], 2)


def _load(
    paths: Sequence[Path | str], motif: str, site_of: Callable[[Junction], int], offset: int
) -> LabelledTask:
    (path,) = paths
    every = list(read_junctions(path))
    random = np.random.default_rng(0)
    junctions, of_gene = [], Counter[str]()
    for index in random.permutation(len(every)).tolist():
        gene = every[index].gene
        if of_gene[gene] < MOST_PER_GENE:
            of_gene[gene] += 1
            junctions.append(every[index])
    sites = {_window(one, site_of(one)) for one in every}
    rows: list[RawExample] = []
    for index, one in enumerate(junctions):
        at, places = site_of(one), []
        found = one.sequence.find(motif, FLANK - offset)
        while found >= 0 and found + offset + FLANK <= len(one.sequence):
            # What is a site, here or in another transcript, is no decoy.
            if _window(one, found + offset) not in sites:
                places.append(found + offset)
            found = one.sequence.find(motif, found + 1)
        if not places:
            continue
        decoy = places[int(random.integers(len(places)))]
        for label, place in (("1", at), ("0", decoy)):
            rows.append(
                RawExample(
                    id=f"{'site' if label == '1' else 'decoy'}_{index}",
                    sequence=_window(one, place), labels=(label,), group=one.gene, place=one.place,
                )
            )  # fmt: skip
    examples = examples_of(rows, "binary", classes=("0", "1"), source=str(path))
    task = drop_repeats(LabelledTask(examples=replace(examples, label_names=("decoy", "site"))))
    genes = task.examples.groups
    assert genes is not None
    near = cluster_sequences(task.examples.sequences)
    return task.with_groups(join_groups(near, genes).tolist())


def _window(junction: Junction, site: int) -> str:
    return junction.sequence[site - FLANK : site + FLANK]
