"""FSDP2 through Lightning's ModelParallelStrategy."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from evo_toolkit.model.block import Block
from evo_toolkit.training.loss import NextTokenObjective


class ShardedStrategy(ModelParallelStrategy):
    """Weights, gradients and optimizer state divided over all ranks (FSDP2).

    Every mixer, every block and the rest are gathered in turn, in float32: the projections cast
    their weights themselves, and poles, residues and filters are never rounded. Gradients are summed
    in float32. A checkpoint is one file of whole tensors, which any number of ranks, sharded or
    not, can resume from.
    """

    def __init__(self, **kwargs: Any) -> None:
        """Take the arguments of ModelParallelStrategy; by default all ranks hold different data."""
        kwargs.setdefault("tensor_parallel_size", 1)
        kwargs.setdefault("save_distributed_checkpoint", False)
        self._all_ranks = "data_parallel_size" not in kwargs
        super().__init__(**kwargs)

    def setup_environment(self) -> None:
        if self._all_ranks:
            self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

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
