"""What a fine-tuning run keeps: the best network so far, and at its end heads, adapters and figures."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from evo_data.files import atomic_output
from evo_toolkit.checkpoint.adapter import adapted_digest, read_adapter
from evo_toolkit.checkpoint.format import open_checkpoint, save_pretrained
from evo_toolkit.errors import UsageError
from evo_toolkit.finetuning.adapters import adapter_from, own_tensors
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.finetuning.network_batches import rows_of
from evo_toolkit.finetuning.network_tasks import answers
from evo_toolkit.finetuning.networks import TaskHead, head_from, saved_head
from evo_toolkit.finetuning.splits import strata_of
from evo_toolkit.inference.head_files import fit_name
from evo_toolkit.training.checkpointing import (
    Checkpoints,
    checkpoint_step,
    find_checkpoints,
    read_training_checkpoint,
)
from evo_toolkit.training.finetune import FinetuneModule, PartlyTrainedModule
from evo_toolkit.training.finetune_data import FinetuneData

_log = logging.getLogger("evo_toolkit")

ADAPTER, MODEL, POSITIONS = "adapter.safetensors", "model", "predictions.parquet"
"""Names in a run's folder, beside those of `evo_toolkit.finetuning.results`."""

_CHOSEN_BY = "judged on the validation part, which also chose the network: the figures are too good"

_BEST = re.compile(r"best-(\d+)\.ckpt")
_MODEL, _HEAD = "objective.model.", "objective.head."


class KeepBest(Callback):
    """Keeps the network of the best validation, ends a run that no longer improves, and goes back to it.

    A resumed run knows the best of before.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: str = "min",
        patience: int | None = 10,
        min_change: float = 0.0,
    ) -> None:
        """Say what best is.

        Args:
            monitor: A figure of validation.
            mode: `min` or `max`.
            patience: Validations without a better one after which a run ends; None never ends it.
            min_change: How much better counts.
        """
        if mode not in ("min", "max"):
            raise UsageError(f"mode is {mode!r}; use min or max")
        if patience is not None and patience < 1:
            raise UsageError(f"patience is {patience}; it must be at least 1, or null")
        self.monitor, self.mode = monitor, mode
        self.patience, self.min_change = patience, min_change
        self.value: float | None = None
        self.step: int | None = None
        self.without = 0

    @property
    def state_key(self) -> str:
        return type(self).__qualname__

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value, "step": self.step, "without": self.without}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.value, self.step = state_dict["value"], state_dict["step"]
        self.without = state_dict["without"]

    def _folder(self, trainer: Trainer) -> Path:
        return Path(trainer.default_root_dir) / "checkpoints"

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        found = trainer.callback_metrics.get(self.monitor)
        if found is None:
            known = ", ".join(sorted(trainer.callback_metrics)) or "none"
            raise UsageError(
                f"{self.monitor!r} is no figure of this run's validation; there are {known}"
            )
        value = float(found)
        change = 0.0 if self.value is None else value - self.value
        better = change < -self.min_change if self.mode == "min" else change > self.min_change
        if self.value is None or better:
            self.value, self.step, self.without = value, trainer.global_step, 0
            self._save(trainer)
        else:
            self.without += 1
        # A checkpoint of this step was written before its validation: it must know of it, too.
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints) and callback.saved_step == trainer.global_step:
                written = callback.folder(trainer) / f"step-{trainer.global_step:08d}.ckpt"
                trainer.save_checkpoint(written, weights_only=False)
        if self.patience is not None and self.without >= self.patience:
            if trainer.is_global_zero:
                _log.info(
                    "no better %s than %.4f (step %d) in %d validations: the run ends",
                    self.monitor, self.value, self.step, self.without,
                )  # fmt: skip
            trainer.should_stop = True

    def _save(self, trainer: Trainer) -> None:
        # A call of all ranks: divided tensors are gathered.
        state = trainer.strategy.lightning_module_state_dict()
        if not trainer.is_global_zero:
            return
        folder = self._folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_output(folder / f"best-{self.step:08d}.ckpt", force=True) as path:
            torch.save({"state_dict": {key: value.cpu() for key, value in state.items()}}, path)
        # An earlier one stays as long as a checkpoint might go on from before this one.
        kept = [checkpoint_step(path) or 0 for path in find_checkpoints(folder)]
        found = sorted(int(m[1]) for p in folder.iterdir() if (m := _BEST.fullmatch(p.name)))
        needed = {max((b for b in found if b <= step), default=None) for step in kept}
        for step in found:
            if step not in needed and step != self.step:
                (folder / f"best-{step:08d}.ckpt").unlink(missing_ok=True)

    def restore(self, trainer: Trainer) -> None:
        """Put the best network in place of the last, on every rank."""
        if self.step is None:
            return
        path = self._folder(trainer) / f"best-{self.step:08d}.ckpt"
        trainer.strategy.load_model_state_dict(read_training_checkpoint(path), strict=False)


class FinetuneOutputs(Callback):
    """At the end of a run: the best network's head, adapter or model, predictions, figures and a page.

    What is judged is the test part (without one, that of validation, which chose the network).
    """

    def __init__(
        self,
        name: str = "head",
        resamples: int = 2000,
        force: bool = False,
        command: str | None = None,
    ) -> None:
        """Say how to call it.

        Args:
            name: Of the head and of the adapter.
            resamples: Of the bootstrap.
            force: Replace files of an earlier end in the run's folder.
            command: For the page: what the user typed.
        """
        self.name, self.resamples, self.force = name, resamples, force
        self.command = command

    def finish(self, trainer: Trainer, module: FinetuneModule) -> None:
        """Write everything; the module calls it when its training and its last checkpoint are done."""
        best = keeper(trainer)
        if best is not None:
            best.restore(trainer)
        write_outputs(trainer, module, self)


def keeper(trainer: Trainer) -> KeepBest | None:
    """The callback that knows the best network, if the run has one."""
    every: list[Any] = trainer.callbacks
    return next((callback for callback in every if isinstance(callback, KeepBest)), None)


def write_outputs(trainer: Trainer, module: FinetuneModule, options: FinetuneOutputs) -> None:
    """Write everything; a call of all ranks."""
    from evo_toolkit.finetuning.metrics import METRIC_NAMES
    from evo_toolkit.finetuning.results import HEAD, RESULTS, about_data, write_results

    data: Any = trainer.datamodule
    folder = Path(trainer.default_root_dir)
    judged_on = "test" if len(data.parts["test"]) else "validation"
    indices = data.parts[judged_on]
    rows = predictions(module, data, indices)
    trained = trainer.strategy.lightning_module_state_dict()
    if not trainer.is_global_zero:
        return
    examples = data.examples.subset(indices)
    train = data.examples.subset(data.parts["train"])
    figures = _judged(module, data, train, examples, rows, indices, options.resamples)
    primary = figures["primary"]
    about = {
        "metrics": {primary: figures["metrics"][primary]},
        "metrics_of": f"the {judged_on} part, {len(examples)} examples",
        "data_digest": data.examples.digest,
        "num_examples": len(train),
        "method": module.method,
    }
    saved = save_trained(
        module, trained, folder, name=options.name, about=about, force=options.force
    )
    model = module.model
    model.sha256, model.config = saved["sha256"], model.config.replace(name=saved["name"])
    task_head = whole_head(module, trained)
    head = saved_head(task_head, model, train, name=options.name, about=about)
    if head is not None:
        head.save(folder / HEAD, force=options.force)
    best = keeper(trainer)
    results = {
        **({} if options.command is None else {"command": options.command}),
        "method": module.method,
        "task": examples.kind,
        "name": options.name,
        "data": about_data(data.examples, data.files),
        "model": {
            "model": saved["name"], "model_sha256": saved["sha256"], "base": module.described()["base"],
            "precision": model.policy.describe(), "device": str(module.device),
            "parameters": module.config.parameter_count(),
            "trained_parameters": sum(value.numel() for value in trained.values()),
            "notes": list(model.notes),
        },
        "settings": _settings(module, data),
        "split": {
            "by": data.split, "test_set": True, "judged_on": judged_on,
            "parts": {name: len(part) for name, part in data.parts.items()},
        },
        "leaks": data.leaks,
        "training": {
            "steps": trainer.global_step,
            "best_step": None if best is None else best.step,
            "best_value": None if best is None else best.value,
        },
        "warnings": [*data.notes, *([_CHOSEN_BY] if judged_on == "validation" else [])],
        **figures,
    }  # fmt: skip
    if module.task.per_position:
        write_position_results(folder, results, examples, rows, module, force=options.force)
    else:
        outputs = np.stack(rows).astype(np.float64)
        write_results(
            folder, results, None, examples, outputs, np.zeros(len(examples), np.int64),
            force=options.force,
        )  # fmt: skip
    name = METRIC_NAMES[primary]
    value, low, high = (figures["metrics"][primary][key] for key in ("value", "low", "high"))
    _log.info(
        "%s %s [%s, %s] on the %s part (%d examples, %d groups); wrote %s",
        name, _text(value), _text(low), _text(high), judged_on, len(examples),
        figures["num_groups"], folder / RESULTS,
    )  # fmt: skip
    for other, metrics in figures["baselines"].items():
        _log.info("  %s: %s", other, _text(metrics[primary]["value"]))


def _text(value: float | None) -> str:
    return "none" if value is None else f"{value:.3f}"


@torch.no_grad()
def predictions(
    module: FinetuneModule, data: FinetuneData, indices: NDArray[np.int64]
) -> list[NDArray[np.float32]]:
    """Answers for examples, by `network_batches.rows_of`; every rank gives all of them."""
    assert module.objective is not None
    was = module.training
    module.eval()
    found: list[NDArray[np.float32]] = []
    for start in range(0, len(indices), data.val_batch_size):
        places = list(range(start, min(start + data.val_batch_size, len(indices))))
        batch = {k: v.to(module.device) for k, v in data.batch(indices, places).items()}
        values = answers(module.task, module.objective(batch))
        own = [int(indices[place]) for place in places]
        found += rows_of(values, data.examples, own, module.network)
    module.train(was)
    return found


def whole_head(module: FinetuneModule, trained: dict[str, Tensor]) -> TaskHead:
    """The head on the CPU, of whole tensors."""
    tensors = {
        key.removeprefix(_HEAD): value.detach().cpu()
        for key, value in trained.items()
        if key.startswith(_HEAD)
    }
    return head_from(module.head.about(), tensors)


def save_trained(
    module: PartlyTrainedModule,
    trained: dict[str, Tensor],
    folder: Path,
    *,
    name: str,
    about: dict[str, Any],
    force: bool,
) -> dict[str, str]:
    """Write the adapter of a run, or of a full one the model.

    Args:
        trained: What `lightning_module_state_dict` gives.
        folder: Of the run.
        about: For the file.

    Returns:
        `name` and `sha256` of the model as it is now.
    """
    base = module.described()["base"]
    own = {
        key.removeprefix(_MODEL): value for key, value in trained.items() if key.startswith(_MODEL)
    }
    if module.method == "head":
        return {"name": base["name"], "sha256": base["sha256"]}
    if module.method == "lora":
        head: dict[str, Tensor] = {}
        head_about: dict[str, Any] = {}
        if isinstance(module, FinetuneModule):
            task_head = whole_head(module, trained)
            head, head_about = dict(task_head.state_dict()), task_head.about()
        adapter = adapter_from(
            own, name=fit_name(name), rank=module.adapter.rank,
            alpha=module.adapter.scale * module.adapter.rank, base=(base["name"], base["sha256"]),
            head=head, head_about=head_about, training=about,
        )  # fmt: skip
        adapter.save(folder / ADAPTER, force=force)
        digest = read_adapter(folder / ADAPTER).digest
        return {
            "name": f"{base['name']}+{adapter.name}",
            "sha256": adapted_digest(base["sha256"], digest),
        }
    config = module.config.replace(name=f"{base['name']}-{fit_name(name)}")
    state = dict(module._source.iter_tensors())
    bf16 = module.model.policy.compute_dtype == torch.bfloat16
    for key, tensor in own_tensors(own).items():
        # The blocks compute in this dtype, whatever the master weights are.
        small = bf16 and ".mixer." not in key
        state[key] = tensor.detach().to("cpu", torch.bfloat16 if small else torch.float32)
    provenance = {"source": "trained with evo-toolkit finetune", "base": base, "training": about}
    save_pretrained(state, config, folder / MODEL, provenance=provenance, force=force)
    digest = open_checkpoint(folder / MODEL).provenance["sha256"]
    return {"name": config.name, "sha256": str(digest)}


def _settings(module: FinetuneModule, data: FinetuneData) -> dict[str, Any]:
    """What the page lists: of the head what the task makes use of."""
    described, kind = module.described(), module.task.kind
    unused = {"variant": {"pool", "bin_size", "track_loss"}, "track": {"pool", "features"}}.get(
        kind, {"features", "bin_size", "track_loss"}
    )
    network = {k: v for k, v in described["network"].items() if k not in unused}
    if kind == "per_base":
        del network["pool"]
    adapter = described["adapter"] if module.method == "lora" else {}
    return {
        **network,
        "strands": module.head.strands,
        **{f"adapter_{key}": value for key, value in adapter.items() if value not in (None, [])},
        "balanced": module.balanced,
        "optimizer": module.optimizer_config.name,
        "learning_rate": module.optimizer_config.learning_rate,
        "batch_size": data.batch_size,
        "seed": module.seed,
    }


def _judged(
    module: FinetuneModule,
    data: FinetuneData,
    train: Examples,
    examples: Examples,
    rows: list[NDArray[np.float32]],
    indices: NDArray[np.int64],
    resamples: int,
) -> dict[str, Any]:
    """Figures with intervals over groups, beside baselines that were fitted on the same part."""
    from evo_toolkit.finetuning.frozen import Fits, Settings, baseline_outputs, linear_estimator
    from evo_toolkit.finetuning.metrics import outcome_of
    from evo_toolkit.finetuning.positions import BASELINE_K, judged_positions, kmer_baseline
    from evo_toolkit.finetuning.results import judged

    groups, _ = data.groups(data.examples)
    units = groups[indices]
    if module.task.per_position:
        size = module.network.bin_size if examples.kind == "track" else 1
        others = {
            f"{BASELINE_K}-mer around the base": kmer_baseline(train, examples, bin_size=size)
        }
        return judged_positions(
            examples, rows, units, bin_size=size, baselines=others, resamples=resamples
        )
    outcome = outcome_of(train)
    fits = Fits(
        outcome=outcome, groups=groups[data.parts["train"]], strata=strata_of(train),
        settings=Settings(seed=data.seed, balanced=module.balanced),
        estimator=linear_estimator(outcome.problem),
    )  # fmt: skip
    return judged(
        outcome_of(examples), np.stack(rows).astype(np.float64), np.zeros(len(examples), np.int64),
        units, baselines=baseline_outputs(fits, train, examples), resamples=resamples,
    )  # fmt: skip


def write_position_results(
    folder: Path,
    results: dict[str, Any],
    examples: Examples,
    rows: list[NDArray[np.float32]],
    module: FinetuneModule,
    *,
    force: bool,
) -> None:
    """Predictions for every base (`predictions.parquet`), the page, and the figures last.

    The table has the columns id, position (0-based, of a bin its first base, in reading direction) and
    one of each class's probability or track's value.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from evo_toolkit.finetuning.report import write_report
    from evo_toolkit.finetuning.results import REPORT, RESULTS, write_figures

    size = module.network.bin_size if examples.kind == "track" else 1
    prefix = "" if examples.kind == "track" else "p_"
    schema = pa.schema(
        [("id", pa.string()), ("position", pa.int64())]
        + [(f"{prefix}{name}", pa.float32()) for name in examples.label_names]
    )
    with atomic_output(folder / POSITIONS, force=force) as path, pq.ParquetWriter(path, schema) as file:  # fmt: skip
        for name, row in zip(examples.ids, rows, strict=True):
            columns = [[name] * len(row), np.arange(len(row)) * size, *row.T]
            file.write_table(pa.table(columns, schema=schema))
    write_report(folder / REPORT, results, force=force)
    write_figures(folder / RESULTS, results, force=force)
