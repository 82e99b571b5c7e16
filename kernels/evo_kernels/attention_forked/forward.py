"""Attention over forked prefixes: what all rows have, what some have more, and their own keys.

The first positions, as many in every prefix, are brought together and read by one fused call, the own
keys by a second one; both return the logarithm of their softmax normaliser. A kernel reads what is left
of each row's prefix from the address in the table and goes on from there to the sum of all three.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.attention_forked.configs  # noqa: F401  (fills the launch table)
from evo_kernels.attention_two_segment.forward import attend
from evo_kernels.launch import on_its_device, select
from evo_kernels.rotary.forward import dense_heads


@triton.jit
def _over_keys(
    q, y, largest, total, k_ptr, v_ptr, position, start, stop, end, scale,
    E: tl.constexpr, CHANNELS: tl.constexpr, KEYS: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Keys `start` to `stop`, in tiles; where masked, only those before `end`.

    `largest` is of the scores before `scale`, the factor to base 2.
    """
    channel = tl.arange(0, CHANNELS)[None, :]
    in_tile = tl.arange(0, KEYS)
    # The same for every tile, so that a tile costs one addition to each address.
    k_tile = k_ptr + (in_tile[:, None] * position + channel)
    v_tile = v_ptr + (in_tile[:, None] * position + channel)
    for first in range(start, stop, KEYS):
        at = tl.cast(first, tl.int64) * position
        key = first + in_tile
        keep = (key[:, None] < (end if MASKED else stop)) & (channel < E)
        k = tl.load(k_tile + at, mask=keep, other=0.0)
        v = tl.load(v_tile + at, mask=keep, other=0.0)
        scores = tl.dot(q, tl.trans(k))
        if MASKED:
            scores = tl.where(key[None, :] < end, scores, float("-inf"))
        above = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2((scores - above[:, None]) * scale)
        kept = tl.exp2((largest - above) * scale)
        total = total * kept + tl.sum(weights, 1)
        y = tl.dot(weights.to(v.dtype), v, y * kept[:, None])
        largest = above
    return y, largest, total


@triton.jit
def _joined(y, largest, total, scale, part_ptr, at, keep, lse_ptr, at_lse, in_range):
    """Add a part that was read elsewhere, `[queries, channels]` and the logarithm of its normaliser."""
    part = tl.load(part_ptr + at, mask=keep, other=0.0).to(tl.float32)
    lse = tl.load(lse_ptr + at_lse, mask=in_range, other=0.0) * 1.4426950408889634 / scale
    above = tl.maximum(largest, lse)
    kept, share = tl.exp2((largest - above) * scale), tl.exp2((lse - above) * scale)
    return y * kept[:, None] + part * share[:, None], above, total * kept + share


@triton.jit
def _attention_forked(
    q_ptr, table_ptr, common_ptr, common_lse_ptr, own_ptr, own_lse_ptr, y_ptr, A, L,
    q_row, q_position, common, scale,
    H: tl.constexpr, E: tl.constexpr, CHANNELS: tl.constexpr, HAS_COMMON: tl.constexpr,
    QUERIES: tl.constexpr, KEYS: tl.constexpr,
):  # fmt: skip
    """One tile of queries of one head and row."""
    tile = tl.program_id(1)
    head = tl.program_id(0) % H
    row = tl.program_id(0) // H
    long_row = row.to(tl.int64)
    query = tile * QUERIES + tl.arange(0, QUERIES)
    channel = tl.arange(0, CHANNELS)
    in_range = query < L
    keep = in_range[:, None] & (channel[None, :] < E)
    long_query = query.to(tl.int64)[:, None]
    q = tl.load(
        q_ptr + long_row * q_row + head * E + long_query * q_position + channel[None, :],
        mask=keep, other=0.0,
    )  # fmt: skip
    y = tl.zeros([QUERIES, CHANNELS], tl.float32)
    largest = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)

    # Addresses of tensors: torch aligns them, and rows of a batch begin at whole positions.
    of_k = tl.multiple_of(tl.load(table_ptr + row), 16)
    of_v = tl.multiple_of(tl.load(table_ptr + A + row), 16)
    prefix = tl.load(table_ptr + 2 * A + row).to(tl.int32)
    prefix_k = of_k.to(q_ptr.dtype) + head * E
    prefix_v = of_v.to(q_ptr.dtype) + head * E
    whole = common + (prefix - common) // KEYS * KEYS
    y, largest, total = _over_keys(
        q, y, largest, total, prefix_k, prefix_v, H * E, common, whole, whole, scale,
        E, CHANNELS, KEYS, False,
    )  # fmt: skip
    y, largest, total = _over_keys(
        q, y, largest, total, prefix_k, prefix_v, H * E, whole, prefix, prefix, scale,
        E, CHANNELS, KEYS, True,
    )  # fmt: skip
    at = (long_row * L + long_query) * (H * E) + head * E + channel[None, :]
    at_lse = (long_row * H + head) * L + query
    if HAS_COMMON:
        y, largest, total = _joined(
            y, largest, total, scale, common_ptr, at, keep, common_lse_ptr, at_lse, in_range
        )
    y, largest, total = _joined(
        y, largest, total, scale, own_ptr, at, keep, own_lse_ptr, at_lse, in_range
    )
    y = y / total[:, None]
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=keep)


@triton.jit
def _gather_prefixes(
    table_ptr, k_ptr, v_ptr, A, size, BLOCK: tl.constexpr
):  # fmt: skip
    """The first `size` numbers of every prefix, one after the other; axis 2 is 0 for keys, 1 for values."""
    row = tl.program_id(1)
    what = tl.program_id(2)
    source = tl.multiple_of(tl.load(table_ptr + what * A + row), 16).to(k_ptr.dtype)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(source + at, mask=at < size)
    to = row.to(tl.int64) * size + at
    if what == 0:
        tl.store(k_ptr + to, values, mask=at < size)
    else:
        tl.store(v_ptr + to, values, mask=at < size)


@on_its_device
def attention_forked_forward(
    q: Tensor, table: Tensor, k: Tensor, v: Tensor, common: int = 0
) -> Tensor:
    """Run the calls and the kernel.

    Args:
        q: `[A, L, H, E]`.
        table: `[3, A]` int64, `evo_kernels.attention_forked.prefix_table`.
        k, v: `[A, S, H, E]`.
        common: Positions that every prefix has.

    Returns:
        `[A, L, H, E]`, contiguous.
    """
    A, L, H, E = q.shape
    y = q.new_empty(q.shape)
    if not q.numel():
        return y
    own, own_lse = attend(q, k, v, causal=True)
    first, first_lse = own, own_lse
    if common:
        keys, values = (q.new_empty((A, common, H, E)) for _ in range(2))
        block = 4096
        _gather_prefixes[(triton.cdiv(common * H * E, block), A, 2)](
            table, keys, values, A, common * H * E, BLOCK=block, num_warps=8
        )
        first, first_lse = attend(q, keys, values, causal=False)
        del keys, values
    q = dense_heads(q)
    config = select("attention_forked", q.device)
    _attention_forked[(A * H, triton.cdiv(L, config.constants["QUERIES"]))](
        q, table, first, first_lse, own, own_lse, y, A, L, q.stride(0), q.stride(1), common,
        # Of base 2, whose powers are one instruction.
        E**-0.5 * 1.4426950408889634,
        H=H, E=E, CHANNELS=max(16, triton.next_power_of_2(E)), HAS_COMMON=common > 0,
        **config.launch_arguments(),
    )  # fmt: skip
    return y
