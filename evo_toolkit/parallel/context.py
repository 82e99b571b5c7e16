"""How one sequence lies on several ranks, and the mixers' part of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, get_args

import torch.distributed as dist
from torch import Tensor, nn

from evo_toolkit.errors import UsageError
from evo_toolkit.model.attention import Attention
from evo_toolkit.model.block import Block
from evo_toolkit.model.h3 import DiagonalModel
from evo_toolkit.model.hyena import HyenaLI, HyenaMR, HyenaSE
from evo_toolkit.model.long_convolution import LongConvolution
from evo_toolkit.model.mixer import Convolution, Mixer
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel.all_to_all import PIECES, attention_by_heads, convolution_by_channels
from evo_toolkit.parallel.fourier import convolution_by_fft
from evo_toolkit.parallel.halo import convolution_by_halo, convolution_by_overlapped_halo
from evo_toolkit.parallel.ring import attention_by_ring
from evo_toolkit.parallel.states import diagonal_by_states, li_by_states

ExplicitStrategy = Literal["halo", "halo-overlapped", "all-to-all", "all-to-all-pipelined", "fft"]
ImplicitStrategy = Literal["states", "all-to-all", "all-to-all-pipelined", "fft"]
LongStrategy = Literal["all-to-all", "all-to-all-pipelined", "halo", "halo-overlapped", "fft"]
AttentionStrategy = Literal["auto", "heads", "ring"]


@dataclass(frozen=True)
class ContextParallel:
    """A sequence in contiguous parts, rank after rank.

    Attributes:
        group: The ranks that share the sequence.
        lengths: Positions of each rank's part, at least one each.
        explicit: How Hyena-SE and -MR continue over ranks.
        implicit: How Hyena-LI does; H3 and S4D always pass states.
        long: How long convolutions do.
        attention: How attention does; "auto" takes heads, or the ring where ranks exceed them.
    """

    group: dist.ProcessGroup
    lengths: tuple[int, ...]
    explicit: ExplicitStrategy = "halo"
    implicit: ImplicitStrategy = "states"
    long: LongStrategy = "all-to-all"
    attention: AttentionStrategy = "auto"

    def __post_init__(self) -> None:
        size = dist.get_world_size(self.group)
        if len(self.lengths) != size or min(self.lengths) < 1:
            raise UsageError(
                f"lengths {self.lengths} do not divide a sequence over {size} ranks; give each at least one position"
            )
        for name, allowed in (
            ("explicit", ExplicitStrategy),
            ("implicit", ImplicitStrategy),
            ("long", LongStrategy),
            ("attention", AttentionStrategy),
        ):
            if getattr(self, name) not in get_args(allowed):
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; use {', '.join(get_args(allowed))}"
                )

    @classmethod
    def of_length(
        cls,
        length: int,
        group: dist.ProcessGroup,
        *,
        explicit: ExplicitStrategy = "halo",
        implicit: ImplicitStrategy = "states",
        long: LongStrategy = "all-to-all",
        attention: AttentionStrategy = "auto",
    ) -> ContextParallel:
        """Parts of about equal length; the first ranks take the positions that are left over."""
        size = dist.get_world_size(group)
        lengths = tuple((length + size - 1 - rank) // size for rank in range(size))
        return cls(group, lengths, explicit, implicit, long, attention)

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
            UsageError: if the kind of mixer cannot be divided so.
        """
        if qkv.shape[1] != self.lengths[self.rank]:
            raise UsageError(
                f"rank {self.rank} was given {qkv.shape[1]} positions; its part of the sequence has {self.lengths[self.rank]}"
            )
        if isinstance(mixer, Attention):
            ring = self.attention == "ring" or (
                self.attention == "auto" and len(self.lengths) > mixer.num_heads
            )
            attention = attention_by_ring if ring else attention_by_heads
            return attention(mixer, qkv, self.lengths, self.group)
        if isinstance(mixer, DiagonalModel):
            return diagonal_by_states(mixer, qkv, self.lengths, self.group)
        if isinstance(mixer, HyenaLI) and self.implicit == "states":
            return li_by_states(mixer, qkv, self.lengths, self.group)
        if isinstance(mixer, Convolution):
            return self._convolve(mixer, qkv)
        raise _undivided(type(mixer).__name__)

    def _convolve(self, mixer: Convolution, qkv: Tensor) -> Tensor:
        if isinstance(mixer, HyenaSE | HyenaMR):
            strategy: str = self.explicit
        else:
            strategy = self.implicit if isinstance(mixer, HyenaLI) else self.long
        if isinstance(mixer, LongConvolution):
            if mixer.input_factors is not None:
                raise _undivided("a long convolution with learned butterflies")
            if mixer.h_ahead is not None and not strategy.startswith("all-to-all"):
                raise _undivided(f"a bidirectional long convolution by {strategy}")
        if strategy == "halo":
            return convolution_by_halo(mixer, qkv, self.lengths, self.group)
        if strategy == "halo-overlapped":
            return convolution_by_overlapped_halo(mixer, qkv, self.lengths, self.group)
        if strategy == "fft":
            return convolution_by_fft(mixer, qkv, self.lengths, self.group)
        pieces = PIECES if strategy == "all-to-all-pipelined" else 1
        return convolution_by_channels(mixer, qkv, self.lengths, self.group, pieces=pieces)


def _undivided(what: str) -> UsageError:
    return UsageError(
        f"{what} is not divided over ranks; Hyena-SE, -MR, -LI, attention, H3, S4D and, all-to-all, long convolutions are"
    )


@contextmanager
def context_parallel(model: StripedHyena2, context: ContextParallel) -> Iterator[None]:
    """Within it, the model takes this rank's part of every sequence and gives its part of the result.

    All ranks call the model alike. Gradients of parameters are those of this rank's part: their sum
    over the group is the gradient.
    """
    mixers: list[Mixer] = []
    for block in model.blocks:
        assert isinstance(block, Block)
        mixer: nn.Module = block.mixer
        if not isinstance(mixer, Mixer):
            raise _undivided(type(mixer).__name__)
        mixers.append(mixer)
    for one in mixers:
        one.parallel = context
    try:
        yield
    finally:
        for one in mixers:
            one.parallel = None
