"""Context parallelism through Lightning: one sequence on several ranks, weights divided over all."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch.strategies import StrategyRegistry
from torch import Tensor
from torch.distributed.constants import default_pg_timeout
from torch.distributed.device_mesh import init_device_mesh

from evo_toolkit.errors import UsageError
from evo_toolkit.parallel import ContextParallel, context_parallel
from evo_toolkit.parallel.context import (
    AttentionStrategy,
    ExplicitStrategy,
    ImplicitStrategy,
    LongStrategy,
)
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.strategy import ShardedStrategy


class ContextParallelStrategy(ShardedStrategy):
    """Every sequence lies on `context_parallel_size` ranks, which hold a contiguous part each.

    Ranks form a table: neighbours share a sequence (`context_parallel`), and ranks of different
    sequences (`data_parallel`) read different samples. Weights, gradients and optimizer state are
    divided over all ranks, as by `ShardedStrategy`, whose checkpoints these are: any number of ranks
    goes on from them, divided in either way. Parts may differ by one position, so any length goes.

    The update is that of one process up to rounding: a rank's gradient is that of its own targets,
    and the sum over all ranks is divided by the weight of the whole global batch.
    """

    def __init__(
        self,
        context_parallel_size: int | None = None,
        explicit: ExplicitStrategy = "halo",
        implicit: ImplicitStrategy = "states",
        long: LongStrategy = "all-to-all",
        attention: AttentionStrategy = "auto",
        failure_timeout: float = 120.0,
        process_group_backend: str | None = None,
        timeout: timedelta = default_pg_timeout,
    ) -> None:
        """Choose how many ranks share a sequence.

        Args:
            context_parallel_size: Ranks of one sequence; by default all of the run.
            explicit, implicit, long, attention: How layers of each kind continue over ranks, as of
                `ContextParallel`.
            failure_timeout, process_group_backend, timeout: As of `ShardedStrategy`.
        """
        super().__init__(failure_timeout, process_group_backend, timeout)
        self.context_parallel_size = context_parallel_size
        self._ways: dict[str, Any] = {
            "explicit": explicit, "implicit": implicit, "long": long, "attention": attention,
        }  # fmt: skip
        self._objective: NextTokenObjective | None = None
        self._context: ContextParallel | None = None
        self._divided = ExitStack()

    def _check_arguments(self) -> None:
        super()._check_arguments()
        if self.context_parallel_size is not None and self.context_parallel_size < 1:
            raise UsageError(
                f"context_parallel_size is {self.context_parallel_size}; it must be at least 1"
            )

    def setup_environment(self) -> None:
        self._check_arguments()
        ranks = self.num_nodes * self.num_processes
        size = self.context_parallel_size or ranks
        if ranks % size:
            raise UsageError(
                f"context_parallel_size {size} does not divide the {ranks} processes of the run; give a divisor, or another trainer.devices"
            )
        self._data_parallel_size, self._tensor_parallel_size = ranks // size, size
        self._setup_distributed()
        self._device_mesh = init_device_mesh(
            self.root_device.type,
            (ranks // size, size),
            mesh_dim_names=("data_parallel", "context_parallel"),
        )
        assert self.lightning_module is not None
        self.lightning_module._device_mesh = self._device_mesh

    @property
    def context_group(self) -> dist.ProcessGroup:
        """The ranks that share a sequence with this one."""
        return self.device_mesh.get_group("context_parallel")

    def shard_model(self, objective: NextTokenObjective) -> None:
        # Another objective may ask for single positions, which only one rank has.
        if type(objective) is not NextTokenObjective:
            raise UsageError(
                f"{type(objective).__name__} needs whole sequences, which context parallelism divides; use strategy fsdp2 or ddp"
            )
        super().shard_model(objective)
        self._objective = objective

    def part_of(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """This rank's positions of a batch that all ranks of a sequence read alike.

        From here on the model takes such parts, in the backward pass too, until a batch of another
        length comes.

        Args:
            batch: Tensors `[B, L]`, which are cut, and others, which are not.
        """
        length = batch["input_ids"].shape[1]
        context = self._of_length(length)
        return {
            name: context.part_of(x) if x.dim() > 1 and x.shape[1] == length else x
            for name, x in batch.items()
        }

    def _of_length(self, length: int) -> ContextParallel:
        if self._context is None or sum(self._context.lengths) != length:
            assert self._objective is not None
            self._divided.close()
            self._context = ContextParallel.of_length(length, self.context_group, **self._ways)
            self._divided.enter_context(context_parallel(self._objective.model, self._context))
        return self._context

    def teardown(self) -> None:
        self._divided.close()
        self._context = None
        super().teardown()


def register_strategies() -> None:
    """Let `--trainer.strategy` name our strategies: `fsdp2` and `context_parallel`."""
    for name, strategy, description in (
        ("fsdp2", ShardedStrategy, "Weights divided over all ranks (FSDP2)"),
        (
            "context_parallel",
            ContextParallelStrategy,
            "The same, and every sequence over all ranks",
        ),
    ):
        if name not in StrategyRegistry:
            StrategyRegistry.register(name, strategy, description=description)
