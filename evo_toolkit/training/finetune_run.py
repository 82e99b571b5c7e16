"""A fine-tuning run of examples in memory, for `evo-toolkit finetune head`, `lora` and `full`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.adapters import AdapterConfig
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.network_tasks import NetworkConfig
from evo_toolkit.finetuning.splits import SplitBy, corpus_leak_report, require_same_classes
from evo_toolkit.model.device import resolve_device
from evo_toolkit.training.callbacks import Monitor
from evo_toolkit.training.checkpointing import AtomicCheckpointIO, Checkpoints, find_checkpoints
from evo_toolkit.training.cli import TRAINER_DEFAULTS, default_loggers, quieten
from evo_toolkit.training.finetune import FinetuneModule, Method
from evo_toolkit.training.finetune_data import FinetuneData
from evo_toolkit.training.finetune_outputs import FinetuneOutputs, KeepBest
from evo_toolkit.training.optim import OptimizerConfig
from evo_toolkit.training.schedules import ScheduleConfig

# Updates between two lines of loss and speed.
_LOGGED_EVERY = 10


@dataclass(frozen=True, kw_only=True)
class NetworkRun:
    """What is trained, and for how long.

    Attributes:
        model: The model's name or path, with an adapter or without.
        method: head, lora or full.
        name: Of the head and the adapter.
        network, adapter: What the head reads; which matrices have an adapter.
        balanced: Whether all classes count the same in the loss.
        learning_rate: Peak rate of everything that is trained.
        epochs: Passes over the training part at most.
        patience: Epochs without a better validation loss after which the run ends.
        batch_size: Examples of an update.
        split_by, folds, fold, k, block, seed: Of the parts (`FinetuneData`).
        resamples: Of the bootstrap.
        precision, device: As for `evo_toolkit.load_model`.
        checkpoint_blocks: As of `EvoModule`.
        trained_on: The model's own training genomes, for the overlap with the tested sequences.
    """

    model: str
    method: Method
    name: str = "head"
    network: NetworkConfig = field(default_factory=NetworkConfig)
    adapter: AdapterConfig = field(default_factory=AdapterConfig)
    balanced: bool = False
    learning_rate: float = 1e-3
    epochs: int = 20
    patience: int = 5
    batch_size: int = 16
    split_by: SplitBy = "auto"
    folds: int = 5
    fold: int = 0
    k: int = 31
    block: int = 1000
    seed: int = 0
    resamples: int = 2000
    precision: Literal["default", "exact"] = "default"
    device: str = "auto"
    checkpoint_blocks: int = 0
    trained_on: tuple[str, ...] = ()


def run_network(
    run: NetworkRun,
    examples: Examples,
    folder: Path,
    *,
    test: Examples | None = None,
    sources: Sequence[str] = (),
    warnings: Sequence[str] = (),
    command: str | None = None,
    resume: bool = False,
    force: bool = False,
) -> None:
    """Train, and write everything into a folder.

    Args:
        examples: To train on, validated on one fold and tested on another.
        folder: Of the run; checkpoints go into `checkpoints` in it.
        test: To test on instead of a fold.
        sources: Files as the user named them.
        warnings: For the results.
        command: The user's.
        resume: Go on from the last checkpoint in the folder, if there is one.
        force: Replace the checkpoints (unless it is resumed) and the outputs of an earlier run.

    Raises:
        ExamplesError, UsageError: for data or options that cannot be.
        NonFiniteLossError: if the loss becomes infinite.
    """
    quieten()
    for name in ("epochs", "patience", "batch_size"):
        if getattr(run, name) < 1:
            raise UsageError(f"{name} is {getattr(run, name)}; it must be at least 1")
    options: dict[str, Any] = {
        "split_by": run.split_by, "folds": run.folds, "fold": run.fold, "kmer": run.k,
        "block": run.block, "seed": run.seed, "batch_size": run.batch_size,
    }  # fmt: skip
    data = FinetuneData.of(examples, **options)
    if test is not None:
        data = _with_test(data, examples, test, options)
    data.named_files = list(sources)
    data.notes += warnings
    data.setup("fit")
    if run.trained_on and len(data.parts["test"]):
        tested = data.examples.subset(data.parts["test"]).sequences
        leak = corpus_leak_report(tested, run.trained_on, k=min(run.k, 32))
        data.leaks.append(leak.json())
        if leak.found:
            data.notes.append(f"{leak}; figures are too good by as much as these are remembered")
    steps = math.ceil(len(data.parts["train"]) / run.batch_size)
    module = FinetuneModule(
        run.model, method=run.method, network=run.network, adapter=run.adapter,
        balanced=run.balanced, seed=run.seed, precision=run.precision,
        checkpoint_blocks=run.checkpoint_blocks,
        optimizer=OptimizerConfig(learning_rate=run.learning_rate, weight_decay=0.0),
        schedule=ScheduleConfig(shape="cosine", warmup_fraction=0.05, min_ratio=0.1),
    )  # fmt: skip
    place = resolve_device(run.device)
    checkpoints = Checkpoints(every_n_steps=steps, keep=2)
    trainer = Trainer(
        **{**TRAINER_DEFAULTS, "default_root_dir": str(folder), "log_every_n_steps": min(steps, _LOGGED_EVERY)},
        accelerator="gpu" if place.type == "cuda" else "cpu",
        devices=[place.index or 0] if place.type == "cuda" else 1,
        max_steps=run.epochs * steps,
        val_check_interval=steps,
        enable_progress_bar=False,
        logger=default_loggers(folder),
        plugins=[AtomicCheckpointIO()],
        callbacks=[
            checkpoints, Monitor(), KeepBest(patience=run.patience),
            FinetuneOutputs(run.name, resamples=run.resamples, force=force, command=command),
        ],
    )  # fmt: skip
    existing = find_checkpoints(folder / "checkpoints")
    if existing and not resume:
        if not force:
            raise UsageError(
                f"{existing[-1]} is of an earlier run; go on from it with --resume, replace the run with --force, or choose another folder"
            )
        for path in [*existing, *(folder / "checkpoints").glob("best-*.ckpt")]:
            path.unlink()
        existing = []
    trainer.fit(module, data, ckpt_path=str(existing[-1]) if existing else None)


def _with_test(
    data: FinetuneData, examples: Examples, test: Examples, options: dict[str, Any]
) -> FinetuneData:
    """Examples with a test set behind them, parts accordingly."""
    require_same_classes(examples, test)
    alone = FinetuneData.of(examples, **options, test=False)
    parts, why = alone.divided(examples)
    n = len(examples)
    tested: NDArray[np.int64] = np.arange(n, n + len(test))
    joined = FinetuneData.of(_joined(examples, test), {**parts, "test": tested}, **options)
    joined.split = f"{why}; tested on a set of its own"
    return joined


def _joined(one: Examples, other: Examples) -> Examples:
    """Two sets as one; an id that both have is `test:ID` in the second."""
    known = set(one.ids)

    def both(name: str) -> Any:
        a, b = getattr(one, name), getattr(other, name)
        return None if a is None or b is None else a + b

    targets: Any
    if isinstance(one.targets, np.ndarray):
        targets = np.concatenate([one.targets, np.asarray(other.targets)])
    else:
        targets = one.targets + tuple(other.targets)
    return replace(
        one,
        ids=one.ids + tuple(f"test:{name}" if name in known else name for name in other.ids),
        targets=targets,
        **{name: both(name) for name in ("sequences", "groups", "places", "loci", "windows", "notes")},
    )  # fmt: skip
