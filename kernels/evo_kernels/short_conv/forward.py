"""Triton kernel of the featurizer, forward; see `evo_kernels.rows` for the tiles."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.short_conv.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select
from evo_kernels.rows import (
    fir,
    load_rows,
    load_taps,
    replace_early_rows,
    store_last_rows,
    store_rows,
)


@triton.jit(do_not_specialize=["L"])
def short_conv_forward_kernel(
    x, taps, tail, y, end, L,
    C: tl.constexpr, K: tl.constexpr, HAS_STATE: tl.constexpr, RETURN_STATE: tl.constexpr,
    I: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """`y[t] = sum_j taps[:, j] * x[t - j]`.

    Args:
        x, y: `[B, L, C]`.
        taps: `[C, K]`.
        tail, end: State before and after the chunk, `[B, K - 1, C]`.
        TILES: Tiles of I * U rows and BD channels that a program works through.
    """
    c = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    b = tl.program_id(2).to(tl.int64)
    w = load_taps(taps, c, c < C, K)
    x += b * L * C
    y += b * L * C
    tail += b * (K - 1) * C
    end += b * (K - 1) * C
    for i in range(TILES):
        row = (tl.program_id(1) * TILES + i) * (I * U) + U * tl.arange(0, I)[:, None]
        at = row.to(tl.int64) * C + c
        raw = load_rows(x + at, row, c, L, 1 - K, U, C, C)
        if HAS_STATE:
            raw = replace_early_rows(raw, tail, row, c, 1 - K, K - 1 + U, K - 1, C, C)
        store_rows(y + at, fir(raw, w, K - 1, U, K), row, c, L, 0, U, C, C)
        if RETURN_STATE:
            store_last_rows(end, raw, row, c, L, 1 - K, K - 1 + U, K - 1, C, C)


@on_its_device
def launch_forward(
    x: Tensor, taps: Tensor, tail: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor]:
    """Run the kernel on contiguous inputs: y, and the new state (empty unless asked for)."""
    B, L, C = x.shape
    K = taps.shape[1]
    y = x.new_empty(B, L, C)
    end = x.new_empty((B, K - 1, C) if return_state else (0,))
    config = select("short_conv_forward" if L > 16 else "short_conv_step_forward", x.device)
    size = config.constants
    rows = size["I"] * size["U"] * size["TILES"]
    short_conv_forward_kernel[(triton.cdiv(C, size["BD"]), triton.cdiv(L, rows), B)](
        x, taps, x if tail is None else tail, y, end, L,
        C=C, K=K, HAS_STATE=tail is not None, RETURN_STATE=return_state, **config.launch_arguments(),
    )  # fmt: skip
    return y, end
