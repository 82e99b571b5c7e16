"""Checkpoints of a run: whole files at step boundaries, of tensors and plain containers alone."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from evo_data.files import atomic_output
from evo_toolkit.errors import CheckpointError, UsageError

_log = logging.getLogger("evo_toolkit")

_NAME = re.compile(r"step-(\d+)\.ckpt")
_FOREIGN = re.compile(r"Unsupported (?:global|operand|class)\S* (?:GLOBAL )?([\w.]+)")
_LEFT_OVER = re.compile(r"\..*\.ckpt\.[0-9a-f]+\.tmp")


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to disk, then renames: a name stands for a whole file.

    Files are read with `weights_only=True`: a checkpoint can hold no code.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_output(path, force=True) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:
            # Torch's writer hides what the system said behind an error of its own.
            reason = getattr(error, "strerror", None) or "is the disk full?"
            raise CheckpointError(
                f"{path} could not be written ({reason}); make room, or choose another folder with --checkpoint.directory; earlier checkpoints are whole"
            ) from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_training_checkpoint(path, map_location=map_location or "cpu")

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def read_training_checkpoint(path: str | Path, map_location: Any = "cpu") -> dict[str, Any]:
    """Read a checkpoint of a run, tensors on the CPU.

    Raises:
        CheckpointError: if it is absent, damaged, or holds anything but tensors and containers.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist or is no file; give a step-N.ckpt of a run, or last"
        )
    try:
        values = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # noqa: BLE001 - a damaged file can fail the reader anywhere
        raise CheckpointError(f"{path} {_unreadable(path, error)}") from None
    if not isinstance(values, dict) or "state_dict" not in values:
        raise CheckpointError(f"{path} is not a checkpoint of evo-toolkit train")
    return values


def _unreadable(path: Path, error: Exception) -> str:
    # The reader's own words recommend to read the file without its protection.
    with path.open("rb") as file:
        start = file.read(4)
    if not start.startswith(b"PK"):
        return "is no training checkpoint; give a step-N.ckpt of a run, or last"
    if not zipfile.is_zipfile(path):
        return "is cut off or damaged; use an earlier checkpoint"
    held = _FOREIGN.search(str(error))
    if held is not None:
        return f"holds {held[1]}, which is neither tensor nor plain value, and was not read; use a checkpoint of evo-toolkit train"
    detail = str(error).strip().splitlines() or [type(error).__name__]
    return f"cannot be read as a training checkpoint ({detail[0]}); use an earlier one"


def checkpoint_step(path: Path) -> int | None:
    """Step of a checkpoint by its name, or None for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def find_checkpoints(directory: Path) -> list[Path]:
    """Checkpoints of a folder by rising step; of names that stand for whole files."""
    if not directory.is_dir():
        return []
    found = [(checkpoint_step(p), p) for p in directory.iterdir()]
    return [p for step, p in sorted((s, p) for s, p in found if s is not None)]


def resolve_checkpoint(path: Path) -> Path:
    """A file as it is; of a run's folder, or of its `checkpoints`, the last checkpoint.

    Raises:
        CheckpointError: for a folder that holds none.
    """
    if not path.is_dir():
        return path
    found = find_checkpoints(path) or find_checkpoints(path / "checkpoints")
    if not found:
        raise CheckpointError(f"{path} holds no step-N.ckpt; give a checkpoint or a run's folder")
    return found[-1]


class Checkpoints(ModelCheckpoint):
    """Saves `step-N.ckpt` after every so many updates, and after the last one.

    A file is written between two updates, never within an accumulation, so that what follows from
    it is exactly what followed without it. `--ckpt_path last` takes the highest step.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        keep: int = 2,
        directory: str | None = None,
    ) -> None:
        """Choose how often and where.

        Args:
            every_n_steps: Updates between two files.
            keep: Newest files to keep; older ones of this folder are removed. 0 keeps all.
            directory: Folder; by default `checkpoints` in the run's folder
                (`trainer.default_root_dir`).
        """
        if every_n_steps < 1 or keep < 0:
            raise UsageError(
                f"checkpoint.every_n_steps is {every_n_steps} and checkpoint.keep {keep}; they must be at least 1 and 0"
            )
        super().__init__(save_top_k=-1, every_n_train_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.directory = directory
        self._saved: int | None = None
        self._began = False
        self._claim: int | None = None

    def folder(self, trainer: Trainer) -> Path:
        """Where this run's checkpoints lie."""
        return Path(self.directory or Path(trainer.default_root_dir) / "checkpoints")

    @property
    def state_key(self) -> str:
        return type(self).__qualname__

    @property
    def saved_step(self) -> int | None:
        """The step of the file that was written last, or that the run went on from."""
        return self._saved

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        pass

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        folder = self.folder(trainer)
        self.dirpath = str(folder)
        if stage == "fit":
            self.claim(trainer)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = AtomicCheckpointIO()
        if stage == "fit" and trainer.is_global_zero and folder.is_dir():
            for path in folder.iterdir():
                if _LEFT_OVER.fullmatch(path.name):
                    path.unlink(missing_ok=True)

    def claim(self, trainer: Trainer) -> None:
        """Keep other runs out of this run's folder while it trains; the system ends it with the process.

        Raises:
            UsageError: if another run is writing there.
        """
        if self._claim is not None or not trainer.is_global_zero:
            return
        folder = self.folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise UsageError(
                f"another run is writing to {folder}; wait until it ends, or choose another folder with --trainer.default_root_dir"
            ) from None
        except OSError:  # a file system without locks
            os.close(descriptor)
            return
        self._claim = descriptor

    def _release(self) -> None:
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def refuse_to_mix(self, trainer: Trainer) -> None:
        """Raise if a run that starts anew would put its checkpoints among those of another.

        Raises:
            UsageError: with the two ways out.
        """
        existing = find_checkpoints(self.folder(trainer))
        if existing:
            raise UsageError(
                f"{existing[-1]} is of an earlier run; continue that with --ckpt_path last, or choose another folder with --trainer.default_root_dir"
            )

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._began and trainer.ckpt_path is not None and trainer.is_global_zero:
            _log.warning(
                "%s has %d updates, and trainer.max_steps is %d: there was nothing to do; give a larger --trainer.max_steps to go on",
                trainer.ckpt_path,
                trainer.global_step,
                trainer.max_steps,
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._began = True
        if trainer.ckpt_path is None:
            self.refuse_to_mix(trainer)
        elif trainer.is_global_zero:
            self._set_aside_later(trainer)
        self._saved = trainer.global_step if trainer.ckpt_path is not None else None

    def _set_aside_later(self, trainer: Trainer) -> None:
        """Rename files of later steps than the one resumed from: `last` must not find them again."""
        for path in find_checkpoints(self.folder(trainer)):
            if (checkpoint_step(path) or 0) > trainer.global_step:
                path.replace(path.with_name(f"abandoned-{path.name}"))
                _log.info("%s is not part of this run any more: abandoned-%s", path, path.name)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = step % self.every_n_steps == 0 or step == trainer.max_steps or trainer.should_stop
        # An end is saved here: when training is over, Lightning counts the epoch as over too.
        if step and due:
            self._save(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step and trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pass

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit" and trainer.should_stop and trainer.global_step:
            self._save(trainer, pl_module)

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._release()

    def _save(self, trainer: Trainer, pl_module: LightningModule) -> None:
        step = trainer.global_step
        # What follows from a file in the midst of an accumulation would lack a part of it.
        if step == self._saved or not getattr(pl_module, "between_updates", True):
            return
        check = getattr(pl_module, "raise_if_not_finite", None)
        if check is not None:
            check()
        self._saved = step
        folder = self.folder(trainer)
        trainer.save_checkpoint(folder / f"step-{step:08d}.ckpt", weights_only=False)
        if self.keep and trainer.is_global_zero:
            for old in find_checkpoints(folder)[: -self.keep]:
                trainer.strategy.remove_checkpoint(old)

    def _find_last_checkpoints(self, trainer: Trainer) -> set[str]:
        return {str(path) for path in find_checkpoints(self.folder(trainer))[-1:]}


def nonfinite_path(trainer: Trainer) -> Path:
    """Where the state is kept when the loss is no longer finite; `last` does not find it."""
    callback = next((c for c in trainer.callbacks if isinstance(c, Checkpoints)), None)
    folder = (
        callback.folder(trainer)
        if callback is not None
        else Path(trainer.default_root_dir) / "checkpoints"
    )
    return folder / f"nonfinite-step-{trainer.global_step:08d}.ckpt"
