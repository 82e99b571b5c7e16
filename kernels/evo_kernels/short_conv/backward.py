"""Triton kernel of the featurizer, backward: one pass over the inputs and the output's gradient."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.short_conv.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select
from evo_kernels.rows import (
    add_last_rows,
    add_products,
    fir_transposed,
    load_rows,
    load_taps,
    replace_early_rows,
    store_early_rows,
    store_rows,
    store_sums,
    zero_rows,
    zero_sums,
)


@triton.jit(do_not_specialize=["L"])
def short_conv_backward_kernel(
    dy, d_end, x, taps, tail, dx, d_tail, d_taps, L,
    C: tl.constexpr, K: tl.constexpr, HAS_STATE: tl.constexpr, HAS_END: tl.constexpr,
    NEEDS_TAPS: tl.constexpr, I: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """`dx[t] = sum_j taps[:, j] * dy[t + j]` and `d_taps[j] = sum_t dy[t] * x[t - j]`.

    Args:
        dy, x, dx: `[B, L, C]`.
        d_end: Gradient of the new state, `[B, K - 1, C]`; read if HAS_END.
        d_tail: Gradient of the old state; written if HAS_STATE.
        d_taps: Partial sums, `[B, programs, K, C]`, float32; written if NEEDS_TAPS.
    """
    HALO: tl.constexpr = K - 1
    c = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    b = tl.program_id(2).to(tl.int64)
    w = load_taps(taps, c, c < C, K)
    x += b * L * C
    dx += b * L * C
    dy += b * L * C
    tail += b * HALO * C
    d_tail += b * HALO * C
    d_end += b * HALO * C
    sums = zero_sums(I, BD, K)
    for i in range(TILES):
        row = (tl.program_id(1) * TILES + i) * (I * U) + U * tl.arange(0, I)[:, None]
        at = row.to(tl.int64) * C + c
        grad = load_rows(dy + at, row, c, L, 0, U + HALO, C, C)
        if NEEDS_TAPS:
            raw = load_rows(x + at, row, c, L, -HALO, U, C, C)
            if HAS_STATE:
                raw = replace_early_rows(raw, tail, row, c, -HALO, HALO + U, HALO, C, C)
        d_raw = fir_transposed(grad, w, 0, U, K)
        if HAS_END:
            d_raw = add_last_rows(d_raw, d_end, row, c, L, 0, U, HALO, C, C)
        store_rows(dx + at, d_raw, row, c, L, 0, U, C, C)
        if HAS_STATE:
            early = fir_transposed(zero_rows(grad[0], HALO) + grad, w, 0, HALO, K)
            if HAS_END:
                early = add_last_rows(early, d_end, row, c, L, -HALO, HALO, HALO, C, C)
            store_early_rows(d_tail, early, row, c, HALO, C, C)
        if NEEDS_TAPS:
            sums = add_products(sums, grad, raw, 0, HALO, U, K)
    if NEEDS_TAPS:
        part = b * tl.num_programs(1) + tl.program_id(1)
        store_sums(d_taps + part * K * C, sums, c, K, C, C)


@on_its_device
def launch_backward(
    dy: Tensor, d_end: Tensor | None, x: Tensor, taps: Tensor, tail: Tensor | None, needs_taps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel on contiguous inputs.

    Returns:
        Gradients of x, taps (empty unless `needs_taps`) and the old state (empty if there is none).
    """
    B, L, C = x.shape
    K = taps.shape[1]
    dx = torch.empty_like(x)
    d_tail = x.new_empty((0,) if tail is None else tail.shape)
    config = select("short_conv_backward", x.device)
    size = config.constants
    programs = triton.cdiv(L, size["I"] * size["U"] * size["TILES"])
    parts = x.new_empty((B * programs, K, C) if needs_taps else (0,), dtype=torch.float32)
    short_conv_backward_kernel[(triton.cdiv(C, size["BD"]), programs, B)](
        dy, dy if d_end is None else d_end, x, taps, x if tail is None else tail, dx, d_tail, parts, L,
        C=C, K=K, HAS_STATE=tail is not None, HAS_END=d_end is not None, NEEDS_TAPS=needs_taps,
        **config.launch_arguments(),
    )  # fmt: skip
    return dx, parts.sum(0).t().contiguous() if needs_taps else parts, d_tail
