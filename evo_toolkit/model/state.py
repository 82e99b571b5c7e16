"""What a prefix leaves to its continuation: one NamedTuple of tensors per layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evo_kernels.attention_forked import prefix_table
from evo_kernels.diagonal_ssm import DiagonalState
from evo_kernels.h3 import H3State
from evo_kernels.hyena_li import LIState
from evo_kernels.hyena_mr import MRState
from evo_kernels.hyena_se import SEState
from evo_kernels.launch import on_device
from evo_kernels.long_conv import LongConvState


class AttentionState(NamedTuple):
    """Rotated keys and values of the positions before a chunk.

    Attributes:
        prefix_k, prefix_v: Never written: `[1, P, H, E]` shared by all rows, or one such tensor for
            every row (of a length of its own; rows may share one), or None.
        k, v: Buffers of this sequence's own positions, `[B, capacity, H, E]`.
        length: How many positions of the buffers are filled, int64 scalar on the CPU, where reading
            it waits for nothing.
        claimed: How many positions of the buffers any continuation has written, int64 scalar on the
            CPU, shared by all states over one buffer. Without gradients a continuation appends in
            place when it is the first to continue from `length` (then `claimed == length`) and copies
            otherwise, so two continuations of one state never see each other.
        table: Where the prefixes of rows with one each lie (`evo_kernels.prefix_table`), on a GPU.
            The prefixes themselves may then be None, if somebody else keeps them alive.
        common: No prefix of these rows is shorter (`evo_kernels.attention_forked`).
    """

    prefix_k: Tensor | tuple[Tensor, ...] | None
    prefix_v: Tensor | tuple[Tensor, ...] | None
    k: Tensor
    v: Tensor
    length: Tensor
    claimed: Tensor
    table: Tensor | None = None
    common: int = 0


MixerState = SEState | MRState | LIState | H3State | DiagonalState | LongConvState | AttentionState
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


def _rows_of(
    layers: Sequence[tuple[MixerState, int]], order: tuple[list[int], Tensor]
) -> MixerState:
    """Rows of states of fixed size, as one state; `order` is `_by_state` of them."""
    first, index = order
    fields = zip(*(tuple(layers[i][0]) for i in first), strict=True)
    joined = (torch.cat(parts) if len(parts) > 1 else parts[0] for parts in fields)
    kind = type(layers[0][0])
    assert not issubclass(kind, AttentionState)
    return kind(*(x.index_select(0, index) for x in joined))


def _by_state(rows: Sequence[tuple[ModelState, int]]) -> tuple[list[int], Tensor]:
    """The first row of every distinct state, and where each row is when these follow one another."""
    first: list[int] = []
    begins: dict[int, int] = {}
    total, index = 0, []
    for at, (state, row) in enumerate(rows):
        if id(state) not in begins:
            begins[id(state)] = total
            first.append(at)
            total += _one_tensor(state).shape[0]
        index.append(begins[id(state)] + row)
    return first, on_device(torch.tensor(index), _one_tensor(rows[0][0]).device)


def _one_tensor(state: ModelState) -> Tensor:
    """A tensor of a state, for its batch size and its device."""
    layer = state[0]
    return layer.k if isinstance(layer, AttentionState) else layer[0]


def gather_forks(forks: Sequence[tuple[ModelState, int]], common: int = 0) -> ModelState:
    """The state of a batch of continuations, each of its own row of some state.

    Keys and values of the prefixes are shared, not copied; the small fixed-size states are copied.
    The states given stay valid and may be those of prefixes of different lengths.

    Args:
        forks: For every row of the batch, the state to continue and the row in it.
        common: No prefix is shorter; attention on a GPU is faster for knowing it.

    Raises:
        ValueError: if there are none, or one of the states is itself a fork.
    """
    if not forks:
        raise ValueError("gather_forks takes at least one fork")
    gathered: list[MixerState] = []
    order = _by_state(forks)
    for index, first in enumerate(forks[0][0]):
        layers = [(state[index], row) for state, row in forks]
        if not isinstance(first, AttentionState):
            gathered.append(_rows_of(layers, order))
            continue
        keys, values = [], []
        for layer, row in layers:
            assert isinstance(layer, AttentionState)
            if layer.prefix_k is not None:
                raise ValueError("gather_forks takes states that are not themselves forks")
            length = int(layer.length)
            keys.append(layer.k[row : row + 1, :length])
            values.append(layer.v[row : row + 1, :length])
        empty = first.k.new_empty((len(forks), 0, *first.k.shape[2:]))
        zero = torch.zeros((), dtype=torch.int64)
        table = prefix_table(keys, values) if first.k.is_cuda else None
        gathered.append(
            AttentionState(
                tuple(keys), tuple(values), empty, empty.clone(), zero, zero.clone(), table, common
            )
        )
    return tuple(gathered)


def gather_rows(rows: Sequence[tuple[ModelState, int]]) -> ModelState:
    """The state of a batch of continuations that are on their way, each a row of some state.

    Keys and values of the prefixes are shared; the sequences' own, and the small fixed-size states,
    are copied. The states given stay valid.

    Args:
        rows: For every row of the batch, the state to continue and the row in it. All are forks
            (`gather_forks`) that have read the same number of positions since.

    Raises:
        ValueError: if there are none, or they have not read the same number of positions.
    """
    if not rows:
        raise ValueError("gather_rows takes at least one row")
    gathered: list[MixerState] = []
    order = _by_state(rows)
    for index, first in enumerate(rows[0][0]):
        layers = [(state[index], row) for state, row in rows]
        if not isinstance(first, AttentionState):
            gathered.append(_rows_of(layers, order))
            continue
        prefix_keys, prefix_values, keys, values = [], [], [], []
        filled = int(first.length)
        for layer, row in layers:
            assert isinstance(layer, AttentionState)
            if not isinstance(layer.prefix_k, tuple) or not isinstance(layer.prefix_v, tuple):
                raise ValueError("gather_rows takes states that gather_forks began")
            if int(layer.length) != filled:
                raise ValueError(
                    f"gather_rows takes rows that have read as much; these have read {filled} and {int(layer.length)} positions"
                )
            prefix_keys.append(layer.prefix_k[row])
            prefix_values.append(layer.prefix_v[row])
            keys.append(layer.k[row : row + 1, :filled])
            values.append(layer.v[row : row + 1, :filled])
        length = torch.tensor(filled, dtype=torch.int64)
        table = prefix_table(prefix_keys, prefix_values) if first.k.is_cuda else None
        gathered.append(
            AttentionState(
                tuple(prefix_keys), tuple(prefix_values), torch.cat(keys), torch.cat(values),
                length, length.clone(), table, first.common,
            )
        )  # fmt: skip
    return tuple(gathered)
