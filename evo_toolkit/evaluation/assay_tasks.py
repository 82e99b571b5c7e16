"""Assays of whole sequences: the rank correlation of what was measured with a model's log-likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evo_data.alphabet import reverse_complement
from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
from evo_toolkit.evaluation.prepared import Prepared
from evo_toolkit.evaluation.registry import Benchmark
from evo_toolkit.evaluation.supervised import Outcome, compare
from evo_toolkit.evaluation.tasks import Progress, model_identity, quiet
from evo_toolkit.statistics import RESAMPLES

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

_AT_A_TIME = 256


def prepare_assay(
    benchmark: Benchmark, paths: Sequence[Path | str], *, limit: int | None = None, seed: int = 0
) -> Prepared:
    """The sequences of an assay; arguments as of `prepare_labelled`."""
    task: LabelledTask = benchmark.load(paths).limited(limit, seed)
    meta = {"benchmark": benchmark.name, "files": [Path(path).name for path in paths], "notes": benchmark.notes}  # fmt: skip
    return task.prepared(benchmark.name, meta)


def run_assay(
    prepared: Prepared,
    model: StripedHyena2,
    *,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """Spearman's correlation of the measurement with the log-likelihood, mean over both strands.

    Beside it minus the number of mutations, where the assay has variants of several, and the
    content of G and C.
    """
    from evo_toolkit.inference.likelihood import log_likelihood

    task = LabelledTask.of_prepared(prepared)
    sequences = task.examples.sequences
    parts = []
    for start in range(0, len(sequences), _AT_A_TIME):
        part = sequences[start : start + _AT_A_TIME]
        turned = [reverse_complement(one.encode()) for one in part]
        parts.append((log_likelihood(model, part) + log_likelihood(model, turned)) / 2)
        progress(2 * sum(map(len, part)))
    gc = np.array([(s.count("G") + s.count("C")) / len(s) for s in sequences])
    scores = {"model": np.concatenate(parts), "gc": gc}
    mutations = task.columns["score.mutations"]
    if np.ptp(mutations) > 0:
        scores["mutations"] = mutations
    outcome = Outcome("regression", task.targets, task.groups)
    folds = np.zeros(len(task), np.int64)
    others = [name for name in scores if name != "model"]
    figures = {"split": "no training", **compare(outcome, scores, folds, against=others, resamples=resamples)}  # fmt: skip
    return {
        "task": prepared.kind,
        "model": model_identity(model),
        "data": dict(prepared.meta),
        "figures": figures,
    }
