"""What a prefix leaves to its continuation: one NamedTuple of tensors per layer."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.hyena_li import LIState
from evo_kernels.hyena_mr import MRState
from evo_kernels.hyena_se import SEState


class AttentionState(NamedTuple):
    """Rotated keys and values of the positions before a chunk.

    Attributes:
        prefix_k, prefix_v: Shared by all rows and never written, `[1, P, H, E]`, or None.
        k, v: Buffers of this sequence's own positions, `[B, capacity, H, E]`.
        length: How many positions of the buffers are filled, int64 scalar.
        claimed: How many positions of the buffers any continuation has written, int64 scalar,
            shared by all states over one buffer. Without gradients a continuation appends in place
            when it is the first to continue from `length` (then `claimed == length`) and copies
            otherwise, so two continuations of one state never see each other.
    """

    prefix_k: Tensor | None
    prefix_v: Tensor | None
    k: Tensor
    v: Tensor
    length: Tensor
    claimed: Tensor


MixerState = SEState | MRState | LIState | AttentionState
ModelState = tuple[MixerState, ...]
"""One state per layer, in order."""


def fork_state(state: ModelState, rows: int) -> ModelState:
    """Let `rows` continuations start from one prefix.

    Keys and values of the prefix are shared, not copied; the small fixed-size states are expanded
    views. The state given stays valid.

    Args:
        state: Of a batch of one sequence.
        rows: Batch size of the continuations.

    Raises:
        ValueError: if the state holds several sequences, or is itself a fork.
    """
    forked: list[MixerState] = []
    for layer in state:
        if isinstance(layer, AttentionState):
            if layer.prefix_k is not None or layer.k.shape[0] != 1:
                raise ValueError(
                    f"fork_state takes the state of one sequence that is not itself a fork; this one has {layer.k.shape[0]} rows"
                )
            filled = int(layer.length)
            empty = layer.k.new_empty((rows, 0, *layer.k.shape[2:]))
            zero = torch.zeros_like(layer.length)
            forked.append(
                AttentionState(
                    layer.k[:, :filled],
                    layer.v[:, :filled],
                    empty,
                    empty.clone(),
                    zero,
                    zero.clone(),
                )
            )
            continue
        for x in layer:
            if x.shape[0] != 1:
                raise ValueError(
                    f"fork_state takes the state of one sequence; this one has {x.shape[0]}"
                )
        forked.append(type(layer)(*(x.expand(rows, *x.shape[1:]) for x in layer)))
    return tuple(forked)
