"""What all sequence mixers are: functions of (chunk, state) that may also continue other ranks."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor, nn


class SequenceAcrossRanks(Protocol):
    """A sequence that lies on several ranks (`evo_toolkit.parallel.ContextParallel`)."""

    def mix(self, mixer: Mixer, qkv: Tensor) -> Tensor:
        """What the mixer makes of this rank's part, given what stands before it."""


class Mixer(nn.Module):
    """A sequence mixer.

    Attributes:
        parallel: Set while sequences are divided over ranks. The exchange then takes place within
            `forward`, where sharded parameters are whole.
    """

    parallel: SequenceAcrossRanks | None = None

    def forward(
        self, qkv: Tensor, state: Any = None, *, return_state: bool = False
    ) -> tuple[Tensor, Any]:
        """`[B, L, 3D]` to `[B, L, D]`, and the new state if asked for."""
        if self.parallel is None:
            return self.mix(qkv, state, return_state=return_state)
        if state is not None or return_state:
            raise ValueError("a sequence that is divided over ranks takes and gives no state")
        return self.parallel.mix(self, qkv), None

    def mix(
        self, qkv: Tensor, state: Any = None, *, return_state: bool = False
    ) -> tuple[Tensor, Any]:
        """`forward` on this rank alone."""
        raise NotImplementedError
