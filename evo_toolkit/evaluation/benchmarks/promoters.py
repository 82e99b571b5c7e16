"""Promoters against other sequence, and promoter activity.

Case is dropped when sequences are read: in the RegulonDB set every promoter is lower-case and no
negative is. Promoters are rich in A and T (content alone reaches an AUROC of 0.83 there), so
negatives are drawn to the composition of the promoters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_data.files import read_text
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.benchmarks.fasta_text import read_fasta
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.finetuning.examples import RawExample, examples_of
from evo_toolkit.finetuning.splits import cluster_sequences

_COMPUTATIONAL = "[ICWHO|"
"""RegulonDB's evidence code for what a program found and nobody looked at."""


def load_promoters(paths: Sequence[Path | str]) -> LabelledTask:
    """Promoters and other sequence, two FASTA files; groups are clusters of shared 31-mers.

    Promoters that RegulonDB took from a program alone or among others (ICWHO) are left out, since a
    classifier would be asked to find out what that program looks for. Negatives are then matched:
    as many of each content of G and C as there are promoters of it, or all of both that there are.
    """
    positives, negatives = paths
    rows: list[RawExample] = []
    computational = 0
    for path, label in ((positives, "1"), (negatives, "0")):
        for entry in read_fasta(path):
            if label == "1" and _COMPUTATIONAL in entry.header:
                computational += 1
                continue
            name = f"{'promoter' if label == '1' else 'other'}_{len(rows)}"
            rows.append(RawExample(id=name, sequence=entry.sequence, labels=(label,), place=entry.place))  # fmt: skip
    examples = examples_of(rows, "binary", classes=("0", "1"), source=str(positives))
    task = LabelledTask(examples=replace(examples, label_names=("other", "promoter")))
    task = drop_repeats(task)
    task = replace(task, left_out={**task.left_out, "computational promoters": computational})
    kept = matched(gc_content(task.examples.sequences), task.targets, seed=0)
    return clustered(task.subset(kept, "composition without a counterpart"))


def load_activity(paths: Sequence[Path | str]) -> LabelledTask:
    """Sequence and measured activity on each line, a massively parallel reporter assay.

    The target is asinh of the activity: values span four orders of magnitude, and those below the
    background that was subtracted are negative. Ranks stay those of the activity. Groups are clusters of shared 31-mers: the assay
    tiles genes, so that neighbours overlap.
    """
    (path,) = paths
    rows = list(_pairs(path))
    examples = examples_of(rows, "regression", source=str(path))
    values = np.arcsinh(np.asarray(examples.targets))
    return clustered(drop_repeats(LabelledTask(examples=replace(examples, targets=values))))


def _pairs(path: Path | str) -> Iterator[RawExample]:
    for number, line in enumerate(read_text(path).splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
        place = f"{path}, line {number}"
        if len(fields) != 2:
            raise EvoError(
                f"{place}: {len(fields)} columns; a sequence and its activity are expected"
            )
        yield RawExample(id=f"line_{number}", sequence=fields[0], labels=(fields[1],), place=place)


def gc_content(sequences: Sequence[str]) -> NDArray[np.float64]:
    """Share of G and C of each sequence, `[n]`."""
    return np.array([(s.count("G") + s.count("C")) / max(1, len(s)) for s in sequences])


def matched(
    values: NDArray[np.float64], positive: NDArray[np.integer], *, seed: int
) -> NDArray[np.bool_]:
    """Which examples to keep so that both classes have the same distribution of a value.

    Of each value (exactly equal ones) as many of one class are kept as of the other, drawn.
    """
    random = np.random.default_rng(seed)
    keep = np.zeros(values.size, np.bool_)
    for value in np.unique(values):
        sides = [np.flatnonzero((values == value) & (positive == label)) for label in (0, 1)]
        count = min(side.size for side in sides)
        for side in sides:
            keep[random.permutation(side)[:count]] = True
    return keep


def drop_repeats(task: LabelledTask) -> LabelledTask:
    """One of each sequence, the first; none of a sequence that has two labels (or values)."""
    first: dict[str, int] = {}
    keep = np.ones(len(task), np.bool_)
    for index, sequence in enumerate(task.examples.sequences):
        before = first.setdefault(sequence, index)
        if before != index:
            keep[index] = False
            if task.targets[before] != task.targets[index]:
                keep[before] = False
    return task.subset(keep, "repeated sequences")


def clustered(task: LabelledTask) -> LabelledTask:
    """Groups are what chains of sequences with a common 31-mer connect, either strand.

    Two sequences with a common 40-mer have a common 31-mer, so neither are torn apart.
    """
    return task.with_groups(cluster_sequences(task.examples.sequences).tolist())
