"""What all sequence mixers are: functions of (chunk, state) that may also continue other ranks."""

from __future__ import annotations

from typing import Any, Protocol

import torch.nn.functional as F
from torch import Tensor, nn

from evo_toolkit.model.precision import PrecisionPolicy


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


class Convolution(Mixer):
    """A gated convolution along the sequence: `q * (h * (k * v))` after featurizers.

    What it computes is a function of its filters, so that it can be computed for some channels alone.
    Channels of one group share a filter and are adjacent.

    Attributes:
        num_groups: Filter groups.
        policy: How numbers are represented.
    """

    num_groups: int
    policy: PrecisionPolicy

    def filters(self) -> tuple[Tensor, ...]:
        """The featurizer `[3D, taps]`, then whatever else there is of each group or channel."""
        raise NotImplementedError

    def with_filters(
        self,
        qkv: Tensor,
        filters: tuple[Tensor, ...],
        state: Any = None,
        *,
        return_state: bool = False,
    ) -> tuple[Tensor, Any]:
        """`mix` with other filters, as many as the channels of `qkv` need."""
        raise NotImplementedError

    def response(self, length: int) -> Tensor:
        """What an impulse gives at 0 to `length - 1` positions behind it, skip included: `[D, length]`.

        Of the convolution between the gates, in float32 or wider.
        """
        raise NotImplementedError

    def mix(
        self, qkv: Tensor, state: Any = None, *, return_state: bool = False
    ) -> tuple[Tensor, Any]:
        """`[B, L, 3D]` to `[B, L, D]`, and the new state if asked for."""
        return self.with_filters(qkv, self.filters(), state, return_state=return_state)


def padded_response(h: Tensor, skip: Tensor | None, width: int, length: int) -> Tensor:
    """Taps `[G, K]` and a skip `[D]` as `Convolution.response`."""
    taps = F.pad(h[:, :length], (0, max(0, length - h.shape[1])))
    taps = taps.repeat_interleave(width // h.shape[0], dim=0)
    return taps if skip is None else taps + F.pad(skip[:, None], (0, length - 1))
