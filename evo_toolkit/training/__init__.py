"""Training: the only part of the toolkit that imports Lightning. Names are imported on use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from evo_toolkit.training.context import ContextParallelStrategy
    from evo_toolkit.training.data import GenomeDataModule
    from evo_toolkit.training.finetune import AdaptedEvoModule, FinetuneModule
    from evo_toolkit.training.finetune_data import FinetuneData
    from evo_toolkit.training.finetune_outputs import FinetuneOutputs, KeepBest
    from evo_toolkit.training.module import ContinuedEvoModule, EvoModule
    from evo_toolkit.training.optim import OptimizerConfig
    from evo_toolkit.training.schedules import ScheduleConfig
    from evo_toolkit.training.strategy import ShardedStrategy

_PLACES = {
    "AdaptedEvoModule": "finetune",
    "ContextParallelStrategy": "context",
    "ContinuedEvoModule": "module",
    "EvoModule": "module",
    "FinetuneData": "finetune_data",
    "FinetuneModule": "finetune",
    "FinetuneOutputs": "finetune_outputs",
    "GenomeDataModule": "data",
    "KeepBest": "finetune_outputs",
    "OptimizerConfig": "optim",
    "ScheduleConfig": "schedules",
    "ShardedStrategy": "strategy",
}

__all__ = [
    "AdaptedEvoModule",
    "ContextParallelStrategy",
    "ContinuedEvoModule",
    "EvoModule",
    "FinetuneData",
    "FinetuneModule",
    "FinetuneOutputs",
    "GenomeDataModule",
    "KeepBest",
    "OptimizerConfig",
    "ScheduleConfig",
    "ShardedStrategy",
]


def __getattr__(name: str) -> Any:
    place = _PLACES.get(name)
    if place is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{place}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
