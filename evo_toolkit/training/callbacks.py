"""What a run shows and logs: loss, throughput, share of the peak, memory."""

from __future__ import annotations

import logging
import resource
import sys
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from evo_toolkit.training.flops import peak_flops, training_flops

_log = logging.getLogger("evo_toolkit")


class Monitor(Callback):
    """Logs the figures of a run every `trainer.log_every_n_steps` updates.

    * `train/loss`, `train/bits_per_base`, `train/grad_norm`: of the last update, over the global
      batch;
    * `train/learning_rate`, `train/tokens`;
    * `speed/tokens_per_second`: since the figures before, validation left out;
    * `speed/mfu`: share of the GPUs' dense bfloat16 peak, with the operations of `flops.py`;
    * `memory/peak_gib`: of the device, or of the process on a CPU.

    Only these moments wait for the device.

    Attributes:
        latest: The figures last logged.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._step = -1
        self._tokens = 0
        self._since = 0.0
        self._paused: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._step = trainer.global_step
        self._restart(pl_module)

    def _restart(self, pl_module: LightningModule) -> None:
        self._tokens = pl_module.tokens
        self._since = time.monotonic()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.training or trainer.state.fn == "fit":
            # What is queued on the device belongs to the training before.
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)
            self._paused = time.monotonic()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._paused is not None:
            self._since += time.monotonic() - self._paused
            self._paused = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._step:
            return  # within an accumulation
        self._step = step
        if step % trainer.log_every_n_steps and step != trainer.max_steps:
            return
        pl_module.raise_if_not_finite()
        figures = pl_module.figures()
        elapsed = max(time.monotonic() - self._since, 1e-9)
        speed = (pl_module.tokens - self._tokens) / elapsed
        device = pl_module.device
        length = batch["input_ids"].shape[1]
        # Those of fine-tuning on labels have no bits.
        names = [n for n in ("loss", "bits_per_base", "grad_norm") if n in figures]
        self.latest = {
            **{f"train/{name}": figures[name] for name in names},
            "train/learning_rate": max(g["lr"] for g in trainer.optimizers[0].param_groups),
            "train/tokens": pl_module.tokens,
            "speed/tokens_per_second": speed,
            "memory/peak_gib": _peak_memory(device) / 2**30,
        }
        peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
        if peak is not None:
            flops = training_flops(pl_module.config, length) / length
            self.latest["speed/mfu"] = speed * flops / (peak * trainer.world_size)
        for logger in trainer.loggers:
            logger.log_metrics(self.latest, step=step)
        if trainer.progress_bar_callback is None and trainer.is_global_zero:
            _log.info("%s", self._line(step, trainer.max_steps))
        self._restart(pl_module)

    def _line(self, step: int, total: int) -> str:
        values = self.latest
        of = f"/{total}" if total > 0 else ""
        bits = values.get("train/bits_per_base")
        what = f"{values['train/loss']:.4f} loss" if bits is None else f"{bits:.4f} bits/base"
        line = f"step {step}{of}  {what}  lr {values['train/learning_rate']:.2e}  {values['speed/tokens_per_second']:,.0f} tokens/s"
        if "speed/mfu" in values:
            line += f"  MFU {values['speed/mfu']:.1%}"
        return line


class ValidationLine(Callback):
    """Says the validation's bits per base where there is no progress bar to show it."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.progress_bar_callback is not None or not trainer.is_global_zero:
            return
        values = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/")}
        total = values.pop("val/bits_per_base", None)
        if total is None:
            return
        parts = ", ".join(f"{k.rpartition('/')[2]} {v:.4f}" for k, v in values.items())
        _log.info(
            "step %d  validation %.4f bits/base%s",
            trainer.global_step,
            total,
            f" ({parts})" if parts else "",
        )


class ProgressBar(RichProgressBar):
    """Rich's bar over the whole run; its figures are those last logged, so it waits for nothing."""

    @property
    def total_train_batches(self) -> int | float:
        trainer = self.trainer
        if trainer.max_steps > 0:
            return trainer.max_steps * trainer.accumulate_grad_batches
        return super().total_train_batches

    def _get_train_description(self, current_epoch: int) -> str:
        return "Training"

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        monitor = next((c for c in trainer.callbacks if isinstance(c, Monitor)), None)
        values = monitor.latest if monitor is not None else {}
        shown: dict[str, Any] = {}
        if values:
            bits = values.get("train/bits_per_base")
            if bits is None:
                shown["loss"] = f"{values['train/loss']:.4f}"
            else:
                shown["bits/base"] = f"{bits:.4f}"
            shown["tokens/s"] = f"{values['speed/tokens_per_second']:,.0f}"
        if "speed/mfu" in values:
            shown["MFU"] = f"{values['speed/mfu']:.1%}"
        total = trainer.callback_metrics.get("val/bits_per_base")
        if total is not None:
            shown["validation"] = f"{float(total):.4f}"
        return shown


def _peak_memory(device: torch.device) -> int:
    """Most bytes in use so far: allocated on a GPU, resident in the process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return used if sys.platform == "darwin" else used * 1024
