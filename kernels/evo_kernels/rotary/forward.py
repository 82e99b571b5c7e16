"""Kernel of the rotary embedding; its backward is the same rotation by the opposite angles."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.rotary.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select


@triton.jit
def _rotary(
    q_ptr, k_ptr, cos_ptr, sin_ptr, q_out_ptr, k_out_ptr, L,
    q_row, q_position, k_row, k_position, table_row,
    H: tl.constexpr, HALF: tl.constexpr, HEADS: tl.constexpr, BLOCK: tl.constexpr,
    OPPOSITE: tl.constexpr,
):  # fmt: skip
    """All heads of one position of the queries (axis 1 is 0) or the keys (axis 1 is 1)."""
    position = tl.program_id(0) % L
    row = (tl.program_id(0) // L).to(tl.int64)
    head = tl.arange(0, HEADS)[:, None]
    pair = tl.arange(0, BLOCK)[None, :]
    keep = (head < H) & (pair < HALF)
    angle = row * table_row + position.to(tl.int64) * HALF + pair
    cos = tl.load(cos_ptr + angle, mask=pair < HALF, other=0.0)
    sin = tl.load(sin_ptr + angle, mask=pair < HALF, other=0.0)
    if OPPOSITE:
        sin = -sin
    channel = head * (2 * HALF) + pair
    to = (row * L + position) * (2 * H * HALF) + channel
    if tl.program_id(1) == 0:
        at = row * q_row + position.to(tl.int64) * q_position + channel
        first = tl.load(q_ptr + at, mask=keep, other=0.0).to(tl.float32)
        second = tl.load(q_ptr + at + HALF, mask=keep, other=0.0).to(tl.float32)
        out_ptr = q_out_ptr
    else:
        at = row * k_row + position.to(tl.int64) * k_position + channel
        first = tl.load(k_ptr + at, mask=keep, other=0.0).to(tl.float32)
        second = tl.load(k_ptr + at + HALF, mask=keep, other=0.0).to(tl.float32)
        out_ptr = k_out_ptr
    out = out_ptr.dtype.element_ty
    tl.store(out_ptr + to, (first * cos - second * sin).to(out), mask=keep)
    tl.store(out_ptr + to + HALF, (first * sin + second * cos).to(out), mask=keep)


def dense_heads(x: Tensor) -> Tensor:
    """`x` if its heads of one position lie in one piece, else a copy."""
    return x if x.stride(3) == 1 and x.stride(2) == x.shape[3] else x.contiguous()


@on_its_device
def rotary_forward(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, opposite: bool
) -> tuple[Tensor, Tensor]:
    """Rotate queries and keys, by the opposite angles for the backward.

    Args:
        q, k: `[B, L, H, E]`, any stride between positions and rows.
        cos, sin: `[L, E/2]` or `[B, L, E/2]` float32, contiguous.

    Returns:
        Two contiguous `[B, L, H, E]`.
    """
    B, L, H, E = q.shape
    q, k = dense_heads(q), dense_heads(k)
    q_out, k_out = q.new_empty(q.shape), k.new_empty(k.shape)
    if q.numel():
        _rotary[(B * L, 2)](
            q, k, cos, sin, q_out, k_out, L, q.stride(0), q.stride(1), k.stride(0), k.stride(1),
            cos.stride(0) if cos.dim() == 3 else 0,
            H=H, HALF=E // 2, HEADS=triton.next_power_of_2(H),
            BLOCK=triton.next_power_of_2(E // 2), OPPOSITE=opposite,
            **select("rotary", q.device).launch_arguments(),
        )  # fmt: skip
    return q_out, k_out
