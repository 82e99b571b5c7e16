"""Deep mutational scans whose variants are whole nucleotide sequences (ProteinGym's format)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evo_data.files import read_text
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.finetuning.examples import RawExample, examples_of

SEQUENCE, SCORE = "mutated_sequence", "DMS_score"


def load_dms(paths: Sequence[Path | str]) -> LabelledTask:
    """A CSV with mutated_sequence (nucleotides) and DMS_score (higher is fitter).

    Groups are the first place at which a sequence differs from the most frequent base of each
    place, since the variants of one place are no independent evidence. `score.mutations` is minus the number of such
    places.

    Raises:
        EvoError: for a row that cannot be used, or sequences of amino acids.
    """
    (path,) = paths
    reader = csv.DictReader(read_text(path).splitlines(), restval="")
    missing = [name for name in (SEQUENCE, SCORE) if name not in (reader.fieldnames or ())]
    if missing:
        raise EvoError(f"{path} has no column {', '.join(missing)}; give an assay in ProteinGym's format, its sequences back-translated to nucleotides")  # fmt: skip
    rows = []
    for number, row in enumerate(reader, 2):
        place = f"{path}, line {number}"
        sequence = row[SEQUENCE].strip()
        if set(sequence.upper()) - set("ACGTUN"):
            raise EvoError(f"{place}: {SEQUENCE} holds other letters than A, C, G, T; give nucleotides, not amino acids")  # fmt: skip
        rows.append(RawExample(id=f"line_{number}", sequence=sequence, labels=(row[SCORE],), place=place))  # fmt: skip
    examples = examples_of(rows, "regression", label_columns=(SCORE,), source=str(path))
    longest = max(map(len, examples.sequences))
    letters = np.array([list(s.ljust(longest, "-")) for s in examples.sequences])
    consensus = []
    for column in letters.T:
        bases, counts = np.unique(column, return_counts=True)
        consensus.append(bases[counts.argmax()])
    differs = letters != np.array(consensus)
    first = np.where(differs.any(axis=1), differs.argmax(axis=1), longest)
    task = LabelledTask(
        examples=examples, columns={"score.mutations": -differs.sum(axis=1).astype(float)}
    )
    return task.with_groups(first.tolist())
