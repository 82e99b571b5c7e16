"""Whether a position lies in an exon, in genomes of eight species (Evo 2's exon classifier)."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from evo_data.alphabet import reverse_complement
from evo_data.files import read_text
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.finetuning.examples import RawExample, clean_sequence, examples_of

FLANK = 248
"""Bases kept on either side of the position."""

_COLUMNS = ("organism", "gene_name", "label", "forward_seq", "reverse_seq")


def load_exons(paths: Sequence[Path | str]) -> LabelledTask:
    """Positions of a table, 248 bases on either side; groups are species.

    `forward_seq` ends with the position, and so does `reverse_seq`, which is read from the other
    strand. The middle of the window is right behind the position.
    """
    (path,) = paths
    lines = read_text(path).splitlines()
    reader = csv.DictReader(lines, delimiter="\t", restval="")
    missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
    if missing:
        raise EvoError(f"{path} has no column {', '.join(missing)}; give the table of the exon classifier")  # fmt: skip
    rows = []
    for number, row in enumerate(reader, 2):
        place = f"{path}, line {number}"
        left = clean_sequence(row["forward_seq"], place)
        right = reverse_complement(clean_sequence(row["reverse_seq"], place).encode()).decode()
        if left[-1] != right[0]:
            raise EvoError(f"{place}: forward_seq and reverse_seq do not end with the same base; give the table of the exon classifier")  # fmt: skip
        if row["label"] not in ("0", "1", "0.0", "1.0"):
            raise EvoError(f"{place}: label {row['label'][:20]!r} is not 0 or 1")
        rows.append(
            RawExample(
                id=f"{row['organism']}_{row['gene_name']}_{number}",
                sequence=left[-FLANK:] + right[1 : FLANK + 1],
                labels=(row["label"][0],),
                group=row["organism"],
                place=place,
            )
        )
    examples = examples_of(rows, "binary", classes=("0", "1"), source=str(path))
    return LabelledTask(examples=replace(examples, label_names=("other", "exon")))
