"""`evo_toolkit.statistics`, which fine-tuning uses too, under the name that evaluations know it by."""

from evo_toolkit.statistics import (
    RESAMPLES,
    Estimate,
    Floats,
    StratifiedAuroc,
    auroc,
    bootstrap,
    ranks,
    spearman,
)

__all__ = [
    "RESAMPLES",
    "Estimate",
    "Floats",
    "StratifiedAuroc",
    "auroc",
    "bootstrap",
    "ranks",
    "spearman",
]
