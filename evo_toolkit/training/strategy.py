"""FSDP2 through Lightning's ModelParallelStrategy."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.block import Block
from evo_toolkit.parallel.failure import RankWatch
from evo_toolkit.training.checkpointing import read_training_checkpoint
from evo_toolkit.training.loss import NextTokenObjective


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and optimizer state divided over all ranks (FSDP2).

    Every mixer, every block and the rest are gathered in turn, in float32: the projections cast
    their weights themselves, and poles, residues and filters are never rounded. Gradients are summed
    in float32. A checkpoint is one file of whole tensors, which any number of ranks, sharded or
    not, can resume from.
    """

    # No arguments of the base class pass through unseen: the command line would fill them with defaults.
    def __init__(
        self,
        failure_timeout: float = 120.0,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        """Watch over the ranks.

        Args:
            failure_timeout: Seconds without a sign of life after which a rank counts as ended, which
                ends the others; 0 watches over none. A failure with a message ends them at once.
            process_group_backend: As of torch.distributed; by default that of the devices.
            timeout: Of collectives.
        """
        super().__init__(
            data_parallel_size="auto",
            tensor_parallel_size=1,
            save_distributed_checkpoint=False,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )
        self.failure_timeout = failure_timeout
        self._rank_watch: RankWatch | None = None

    def _check_arguments(self) -> None:
        # Not when the strategy is made: LightningCLI would bury the message in one of its own.
        if self.failure_timeout < 0:
            raise UsageError(f"failure_timeout is {self.failure_timeout}; it must be at least 0")

    def setup_environment(self) -> None:
        self._check_arguments()
        # By default all ranks hold different data.
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def _setup_distributed(self) -> None:
        super()._setup_distributed()
        if self.failure_timeout and self.world_size > 1:
            assert self.cluster_environment is not None
            self._rank_watch = RankWatch(
                self.cluster_environment.main_address, timeout=self.failure_timeout
            )
            _retire_lightnings_observer()

    def setup(self, trainer: Trainer) -> None:
        super().setup(trainer)
        if self._rank_watch is not None:
            trainer._signal_connector._sigterm_notifier_fn = functools.partial(
                _note_the_signal, trainer
            )

    def on_exception(self, exception: BaseException) -> None:
        if self._rank_watch is not None:
            self._rank_watch.failed(exception)

    def teardown(self) -> None:
        super().teardown()
        if self._rank_watch is not None:
            self._rank_watch.stop()
            self._rank_watch = None

    def shard_model(self, objective: NextTokenObjective) -> None:
        """Divide the parameters of a built model; called once, by the module."""
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        policy = MixedPrecisionPolicy(cast_forward_inputs=False)
        for block in objective.model.blocks:
            assert isinstance(block, Block)
            if next(block.mixer.parameters(), None) is not None:
                fully_shard(block.mixer, mesh=mesh, mp_policy=policy)
            fully_shard(block, mesh=mesh, mp_policy=policy)
        fully_shard(objective, mesh=mesh, mp_policy=policy)

    # Checkpoints have the form that every other strategy writes. The stock code numbers optimizer
    # states by the order of the model's parameters, which is not that of parameter groups: moments
    # would go to other parameters of the same shape.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        assert self.lightning_module is not None
        return self._gathered(self.lightning_module.state_dict())

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        optimizer = getattr(optimizer, "_optimizer", optimizer)
        return self._gathered(optimizer.state_dict())

    def _gathered(self, value: Any) -> Any:
        """Whole tensors in place of divided ones, on the CPU of rank 0; a call of all ranks."""
        if isinstance(value, dict):
            return {key: self._gathered(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [self._gathered(item) for item in value]
        if isinstance(value, DTensor):
            value = value.full_tensor()
        if isinstance(value, Tensor):
            return value.cpu() if self.is_global_zero else None
        return value

    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_training_checkpoint(self.broadcast(checkpoint_path))

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        assert self.lightning_module is not None
        own, given = self.lightning_module.state_dict(), checkpoint["state_dict"]
        if strict and own.keys() != given.keys():
            odd = sorted(own.keys() ^ given.keys())
            raise CheckpointError(f"the checkpoint's tensors are of another model: {odd[0]}")
        with torch.no_grad():
            for name, tensor in own.items():
                if name in given:
                    tensor.copy_(_divided_like(tensor, given[name]))

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        for optimizer, given in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            state = {
                index: {
                    key: _divided_like(parameters[index], value)
                    if value.shape == parameters[index].shape
                    else value
                    for key, value in values.items()
                }
                for index, values in given["state"].items()
            }
            optimizer.load_state_dict({**given, "state": state})


def _retire_lightnings_observer() -> None:
    """Lightning kills the process that started the others when one of those fails, without a word."""
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._run = lambda: True  # type: ignore[attr-defined]


def _note_the_signal(trainer: Trainer, signum: int, frame: FrameType | None) -> None:
    """Leave the end to the program's own handler, or to Lightning after the batch at hand.

    Lightning's handler exchanges messages in the midst of whatever the rank is doing, and waits
    for ever where the others got no signal.
    """
    connector, launcher = trainer._signal_connector, trainer.strategy.launcher
    if not connector.received_sigterm and launcher is not None:
        launcher.kill(signum)
    connector.received_sigterm = True


def _divided_like(example: Tensor, whole: Tensor) -> Tensor:
    """This rank's part of a tensor that every rank has, divided as `example` is."""
    whole = whole.to(device=example.device, dtype=example.dtype)
    if not isinstance(example, DTensor):
        return whole
    return distribute_tensor(whole, example.device_mesh, example.placements, src_data_rank=None)
