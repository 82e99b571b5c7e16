"""Sets of labelled variants scored by a model, without training."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.errors import UsageError
from evo_toolkit.evaluation.baseline import Say, kmer_overlap
from evo_toolkit.evaluation.benchmarks.variant_sets import FLANK, VariantSet
from evo_toolkit.evaluation.edits import edit_scores
from evo_toolkit.evaluation.genomes import find_genomes
from evo_toolkit.evaluation.prepared import Prepared
from evo_toolkit.evaluation.registry import Benchmark
from evo_toolkit.evaluation.tasks import Progress, model_identity, quiet
from evo_toolkit.statistics import (
    RESAMPLES,
    Floats,
    Statistic,
    StratifiedAuroc,
    StratifiedAveragePrecision,
    bootstrap,
)

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

LEAST_OF_EACH = 10
"""Variants of either label that a consequence needs for a figure of its own."""


def prepare_variants(
    benchmark: Benchmark,
    paths: Sequence[Path | str],
    *,
    train: Sequence[Path | str] = (),
    limit: int | None = None,
    seed: int = 0,
    say: Say = quiet,
) -> Prepared:
    """The variants of a benchmark and the genome around them; arguments as of `prepare_labelled`."""
    found: VariantSet = benchmark.load(paths).limited(limit, seed)
    say(f"{len(found):,} variants, {int(found.positive.sum()):,} of them positive; left out: {dict(found.left_out) or 'none'}")  # fmt: skip
    meta: dict[str, Any] = {
        "benchmark": benchmark.name, "files": [Path(path).name for path in paths],
        "notes": benchmark.notes, "flank": FLANK,
    }  # fmt: skip
    if train:
        shares = kmer_overlap([found.genome], find_genomes(train))
        meta["kmer_overlap_with_train"] = {name: round(x, 6) for name, x in shares.items()}
    return found.prepared(benchmark.name, meta)


def run_variants(
    prepared: Prepared,
    model: StripedHyena2,
    *,
    window: int | None = None,
    resamples: int = RESAMPLES,
    progress: Progress = quiet,
) -> dict[str, Any]:
    """AUROC and AUPRC of minus the log-likelihood ratio, all and by consequence.

    Beside it the share of positives among variants of each consequence: what one reaches who looks at
    nothing else (in sample, so flattered). Chromosome-weighted: each chromosome's AUPRC, weighted by its variants.

    Raises:
        UsageError: for a window longer than what was kept around the variants.
    """
    task = VariantSet.of_prepared(prepared)
    window = window or model.config.default_window
    if window > 2 * prepared.meta["flank"]:
        raise UsageError(f"--window {window} is longer than the {2 * prepared.meta['flank']:,} bases that were kept around each variant; use a shorter one")  # fmt: skip
    change = edit_scores(model, prepared.genomes, task.places, window, progress=progress)
    scores = {"model": -change.mean(axis=1), "consequence": _rates(task)}
    figures: dict[str, Any] = {
        "window": window, "num_variants": len(task), "num_positive": int(task.positive.sum()),
        "all": {name: variant_figures(task, values, resamples) for name, values in scores.items()},
        "by_consequence": {},
    }  # fmt: skip
    for name in np.unique(task.consequences):
        own = task.consequences == name
        counts = np.bincount(task.positive[own].astype(int), minlength=2)
        if counts.min() >= LEAST_OF_EACH:
            figures["by_consequence"][str(name)] = {
                "num_variants": int(own.sum()), "num_positive": int(counts[1]),
                "model": variant_figures(task, scores["model"], resamples, own),
            }  # fmt: skip
    return {
        "task": prepared.kind,
        "model": model_identity(model),
        "data": dict(prepared.meta),
        "figures": figures,
    }


def _rates(task: VariantSet) -> Floats:
    """Of each variant the share of positives among those of its consequence."""
    _, index = np.unique(task.consequences, return_inverse=True)
    rates = np.bincount(index, task.positive) / np.bincount(index)
    found: Floats = rates[index]
    return found


def variant_figures(
    task: VariantSet, scores: Floats, resamples: int, keep: NDArray[np.bool_] | None = None
) -> dict[str, Any]:
    """AUROC, AUPRC and chromosome-weighted AUPRC with intervals over groups."""
    keep = np.ones(len(task), np.bool_) if keep is None else keep
    positive, values = task.positive[keep], scores[keep]
    groups = np.unique(task.groups[keep], return_inverse=True)[1]
    _, chromosome = np.unique(task.chromosomes[keep], return_inverse=True)
    statistics: dict[str, Statistic] = {
        "AUROC": StratifiedAuroc(values, positive),
        "AUPRC": StratifiedAveragePrecision(values, positive),
        "AUPRC by chromosome": StratifiedAveragePrecision(values, positive, chromosome, by="items"),
    }
    return {
        name: bootstrap(statistic, groups, resamples=resamples).json()
        for name, statistic in statistics.items()
    }
