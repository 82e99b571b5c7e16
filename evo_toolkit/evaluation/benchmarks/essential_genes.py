"""Essential genes of a bacterium, from the beginning of their coding sequence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_data.files import read_text
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.baseline import training_genomes
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.evaluation.essentiality import conservation, read_labels
from evo_toolkit.evaluation.genes import AMINO_ACIDS, Gene, coding_sequence, codons
from evo_toolkit.evaluation.genomes import Genome, GenomeFile, find_genomes, tokens
from evo_toolkit.finetuning.examples import RawExample, examples_of
from evo_toolkit.finetuning.splits import join_groups

LENGTH = 256
"""Bases of each gene that are read, from its start codon on."""

NEGATIVES_PER_POSITIVE = 2
COLUMNS = ("keio_essential", "essential")
_WORD = 8


def load_essential(paths: Sequence[Path | str]) -> LabelledTask:
    """Essential genes and twice as many others, drawn; groups are families of proteins.

    Two genes are of one family if their proteins share eight amino acids in a row. The label is
    the column keio_essential or else essential.
    """
    genome, genes, essential = _genes(paths)
    positive = np.flatnonzero(essential)
    others = np.flatnonzero(~essential)
    count = min(others.size, NEGATIVES_PER_POSITIVE * positive.size)
    drawn = np.random.default_rng(0).permutation(others)[:count]
    kept = np.sort(np.concatenate([positive, drawn]))
    texts = [coding_sequence(genome, genes[i]) for i in kept]
    rows = [
        RawExample(
            id=f"{genes[i].name}_{genes[i].start}",
            sequence=tokens(text[:LENGTH]).tobytes().decode(),
            labels=(str(int(essential[i])),),
            place=f"{paths[1]}, gene {genes[i].name}",
        )
        for i, text in zip(kept.tolist(), texts, strict=True)
    ]
    examples = examples_of(rows, "binary", classes=("0", "1"), source=str(paths[1]))
    task = LabelledTask(
        examples=replace(examples, label_names=("other", "essential")),
        columns={
            "feature.length": np.log2([text.size for text in texts]),
            "gene": kept,
        },
        left_out={"other genes, not drawn": int(others.size - count)},
    )
    return task.with_groups(_families([AMINO_ACIDS[codons(text)].tobytes() for text in texts]).tolist())  # fmt: skip


def with_conservation(
    task: LabelledTask, paths: Sequence[Path | str], train: Sequence[GenomeFile]
) -> LabelledTask:
    """The task with `feature.conservation`: in how many training genomes each protein occurs."""
    genome, genes, _ = _genes(paths)
    chosen = [genes[i] for i in task.columns["gene"].tolist()]
    weights = training_genomes(train).weights
    pairs = [(file.read, weight) for file, weight in zip(train, weights, strict=True)]
    values = conservation(genome, chosen, pairs)
    return replace(task, columns={**task.columns, "feature.conservation": values})


def _genes(paths: Sequence[Path | str]) -> tuple[Genome, list[Gene], NDArray[np.bool_]]:
    found = find_genomes([paths[0]])
    if len(found) != 1:
        raise EvoError(f"{paths[0]} holds {len(found)} genomes; give one")
    genome = found[0].read()
    header = read_text(paths[1]).split("\n", 1)[0].split("\t")
    column = next((name for name in COLUMNS if name in header), COLUMNS[0])
    genes, essential, _ = read_labels(paths[1], column, genome)
    return genome, genes, essential


def _families(proteins: Sequence[bytes]) -> NDArray[np.int64]:
    first: dict[bytes, int] = {}
    family = list(range(len(proteins)))
    pairs = []
    for index, protein in enumerate(proteins):
        for start in range(len(protein) - _WORD + 1):
            before = first.setdefault(protein[start : start + _WORD], index)
            if before != index:
                pairs.append((before, index))
    # Labellings by each shared word would be as many as words; chains of pairs say the same.
    for one, two in pairs:
        a, b = _root(family, one), _root(family, two)
        family[max(a, b)] = min(a, b)
    return join_groups([_root(family, index) for index in range(len(proteins))])


def _root(family: list[int], index: int) -> int:
    while family[index] != index:
        family[index] = family[family[index]]
        index = family[index]
    return index
