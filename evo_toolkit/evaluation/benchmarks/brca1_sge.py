"""BRCA1 saturation genome editing with classifiers trained on other exons of the gene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.evaluation.brca1 import LABELS, read_assay
from evo_toolkit.evaluation.genomes import tokens
from evo_toolkit.finetuning.examples import Examples

WINDOW = 112
"""Bases of the windows; the variant is base `WINDOW // 2`, 0-based."""

ALT = "alt"
"""The column with the alternate base (A 0, C 1, G 2, T 3) in the middle of each sequence."""


def load_brca1(paths: Sequence[Path | str]) -> LabelledTask:
    """Loss of function against the rest; sequences are reference windows, groups the assay's exons."""
    genome, arrays = read_assay(*paths)
    record, position = genome.records[0], arrays["position"]
    first = position - WINDOW // 2
    if first.min() < 0 or first.max() + WINDOW > record.size:
        raise EvoError(f"{paths[0]} ends less than {WINDOW // 2} bases from a variant; give more of the chromosome")  # fmt: skip
    text = tokens(record).tobytes().decode()
    sequences = tuple(text[start : start + WINDOW] for start in first.tolist())
    ref, alt = arrays["ref"].astype(np.int64), arrays["alt"].astype(np.int64)
    names = tuple(
        f"{at}_{'ACGT'[r]}_{'ACGT'[a]}"
        for at, r, a in zip(position.tolist(), ref.tolist(), alt.tolist(), strict=True)
    )
    examples = Examples(
        kind="binary",
        ids=names,
        sequences=sequences,
        targets=(arrays["label"] == LABELS.index("LOF")).astype(np.int64),
        label_names=("FUNC or INT", "LOF"),
        groups=tuple(map(str, arrays["exon"].tolist())),
        places=tuple(f"{paths[1]}, variant {name}" for name in names),
    )
    neighbours = np.stack([record[position - 1], record[position + 1]], axis=1)
    columns = {
        ALT: alt.astype(np.uint8),
        "feature.consequence": indicators(arrays["consequence"]),
        "feature.substitution": np.concatenate([indicators(4 * ref + alt), *(indicators(n) for n in neighbours.T)], axis=1),
        "score.CADD": np.nan_to_num(arrays["cadd"], nan=float(np.nanmedian(arrays["cadd"]))) if np.isfinite(arrays["cadd"]).any() else np.zeros(len(names)),
    }  # fmt: skip
    return LabelledTask(examples=examples, columns=columns)


def indicators(values: NDArray[np.generic]) -> NDArray[np.float64]:
    """`[n]` values to `[n, K]` ones and zeros, a column for each that occurs."""
    found, index = np.unique(values, return_inverse=True)
    result: NDArray[np.float64] = np.eye(found.size)[index]
    return result
