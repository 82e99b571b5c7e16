"""How one sequence lies on several ranks, and the mixers' part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch.distributed as dist
from torch import Tensor, nn

from evo_toolkit.errors import UsageError
from evo_toolkit.model.attention import Attention
from evo_toolkit.model.block import Block
from evo_toolkit.model.hyena import HyenaLI, HyenaMR, HyenaSE
from evo_toolkit.model.mixer import Mixer
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel.mixers import attention_by_heads, hyena_by_halo, hyena_by_states


@dataclass(frozen=True)
class ContextParallel:
    """A sequence in contiguous parts, rank after rank.

    Attributes:
        group: The ranks that share the sequence.
        lengths: Positions of each rank's part, at least one each.
    """

    group: dist.ProcessGroup
    lengths: tuple[int, ...]

    def __post_init__(self) -> None:
        size = dist.get_world_size(self.group)
        if len(self.lengths) != size or min(self.lengths) < 1:
            raise UsageError(
                f"lengths {self.lengths} do not divide a sequence over {size} ranks; give each at least one position"
            )

    @classmethod
    def of_length(cls, length: int, group: dist.ProcessGroup) -> ContextParallel:
        """Parts of about equal length; the first ranks take the positions that are left over."""
        size = dist.get_world_size(group)
        return cls(group, tuple((length + size - 1 - rank) // size for rank in range(size)))

    @property
    def rank(self) -> int:
        return dist.get_rank(self.group)

    @property
    def start(self) -> int:
        """Position of this rank's first token in the sequence."""
        return sum(self.lengths[: self.rank])

    def part_of(self, x: Tensor, dim: int = 1) -> Tensor:
        """This rank's positions of a whole sequence."""
        return x.narrow(dim, self.start, self.lengths[self.rank])

    def mix(self, mixer: Mixer, qkv: Tensor) -> Tensor:
        """What the mixer makes of this rank's part, given what stands before it: `[B, L, D]`.

        Args:
            qkv: `[B, L, 3D]`, L this rank's length.

        Raises:
            UsageError: if the kind of mixer, or so short a part, cannot be divided.
        """
        if qkv.shape[1] != self.lengths[self.rank]:
            raise UsageError(
                f"rank {self.rank} was given {qkv.shape[1]} positions; its part of the sequence has {self.lengths[self.rank]}"
            )
        if isinstance(mixer, HyenaSE | HyenaMR):
            reach = mixer.featurizer.shape[1] - 1 + mixer.h.shape[1] - 1
            return hyena_by_halo(mixer, reach, qkv, self.lengths, self.group)
        if isinstance(mixer, HyenaLI):
            return hyena_by_states(mixer, qkv, self.lengths, self.group)
        if isinstance(mixer, Attention):
            return attention_by_heads(mixer, qkv, self.lengths, self.group)
        raise _undivided(mixer)


def _undivided(mixer: nn.Module) -> UsageError:
    return UsageError(
        f"{type(mixer).__name__} is not divided over ranks; Hyena-SE, -MR, -LI and attention are"
    )


@contextmanager
def context_parallel(model: StripedHyena2, context: ContextParallel) -> Iterator[None]:
    """Within it, the model takes this rank's part of every sequence and gives its part of the result.

    All ranks call the model alike. Gradients of parameters are those of this rank's part: their sum
    over the group is the gradient.
    """
    mixers = []
    for block in model.blocks:
        assert isinstance(block, Block)
        if not isinstance(block.mixer, Mixer):
            raise _undivided(block.mixer)
        mixers.append(block.mixer)
    for mixer in mixers:
        mixer.parallel = context
    try:
        yield
    finally:
        for mixer in mixers:
            mixer.parallel = None
