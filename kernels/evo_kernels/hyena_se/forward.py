"""Triton kernel of Hyena-SE, forward: featurizers, gate, short filter and post-gate in one pass.

Memory traffic is one read of q, k, v and one write of y; see `evo_kernels.rows` for the tiles.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_se.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select
from evo_kernels.rows import (
    fir,
    load_rows,
    load_taps,
    multiply,
    replace_early_rows,
    store_last_rows,
    store_rows,
)


@triton.jit(do_not_specialize=["L"])
def hyena_se_forward_kernel(
    qkv, featurizer, h, feature_tail, gated_tail, y, feature_end, gated_end, L,
    D: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, KF: tl.constexpr, HAS_STATE: tl.constexpr,
    RETURN_STATE: tl.constexpr, I: tl.constexpr, U: tl.constexpr, BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """`y = q * fir(h, k * v)` of the featurized q, k, v.

    Args:
        qkv: `[B, L, 3D]`.
        featurizer: `[3D, KF]`.
        h: `[D / GROUP, K]`.
        feature_tail, gated_tail: State before row 0, `[B, KF - 1, 3D]` and `[B, K - 1, D]`.
        y: `[B, L, D]`.
        feature_end, gated_end: State after row L - 1, shaped as the tails.
        TILES: Tiles of I * U rows and BD channels that a program works through.
    """
    HALO: tl.constexpr = K - 1 + KF - 1
    c = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    b = tl.program_id(2).to(tl.int64)
    taps_q = load_taps(featurizer, c, c < D, KF)
    taps_k = load_taps(featurizer, c + D, c < D, KF)
    taps_v = load_taps(featurizer, c + 2 * D, c < D, KF)
    taps_h = load_taps(h, c // GROUP, c < D, K)
    qkv += b * L * 3 * D
    y += b * L * D
    feature_tail += b * (KF - 1) * 3 * D
    feature_end += b * (KF - 1) * 3 * D
    gated_tail += b * (K - 1) * D
    gated_end += b * (K - 1) * D
    for i in range(TILES):
        row = (tl.program_id(1) * TILES + i) * (I * U) + U * tl.arange(0, I)[:, None]
        x = qkv + row.to(tl.int64) * (3 * D) + c
        raw_k = load_rows(x + D, row, c, L, -HALO, U, 3 * D, D)
        raw_v = load_rows(x + 2 * D, row, c, L, -HALO, U, 3 * D, D)
        raw_q = load_rows(x, row, c, L, 1 - KF, U, 3 * D, D)
        if HAS_STATE:
            raw_k = replace_early_rows(
                raw_k, feature_tail + D, row, c, -HALO, HALO + U, KF - 1, 3 * D, D
            )
            raw_v = replace_early_rows(
                raw_v, feature_tail + 2 * D, row, c, -HALO, HALO + U, KF - 1, 3 * D, D
            )
            raw_q = replace_early_rows(
                raw_q, feature_tail, row, c, 1 - KF, KF - 1 + U, KF - 1, 3 * D, D
            )
        k = fir(raw_k, taps_k, KF - 1, K - 1 + U, KF)
        v = fir(raw_v, taps_v, KF - 1, K - 1 + U, KF)
        gated = multiply(k, v, 0, 0, K - 1 + U)
        if HAS_STATE:
            # Before row 0 the gated inputs are the state's, not what the taps make of its raw rows.
            gated = replace_early_rows(gated, gated_tail, row, c, 1 - K, K - 1 + U, K - 1, D, D)
        inner = fir(gated, taps_h, K - 1, U, K)
        q = fir(raw_q, taps_q, KF - 1, U, KF)
        out = multiply(q, inner, 0, 0, U)
        store_rows(y + row.to(tl.int64) * D + c, out, row, c, L, 0, U, D, D)
        if RETURN_STATE:
            store_last_rows(gated_end, gated, row, c, L, 1 - K, K - 1 + U, K - 1, D, D)
            store_last_rows(feature_end, raw_q, row, c, L, 1 - KF, KF - 1 + U, KF - 1, 3 * D, D)
            store_last_rows(feature_end + D, raw_k, row, c, L, -HALO, HALO + U, KF - 1, 3 * D, D)
            store_last_rows(
                feature_end + 2 * D, raw_v, row, c, L, -HALO, HALO + U, KF - 1, 3 * D, D
            )


@on_its_device
def launch_forward(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernel on contiguous inputs; arguments as in `hyena_se`.

    Returns:
        y, and the new state's feature and gated tails (empty unless asked for).
    """
    B, L, width = qkv.shape
    D = width // 3
    K, KF = h.shape[1], featurizer.shape[1]
    y = qkv.new_empty(B, L, D)
    feature_end = qkv.new_empty((B, KF - 1, width) if return_state else (0,))
    gated_end = qkv.new_empty((B, K - 1, D) if return_state else (0,), dtype=torch.float32)
    config = select("hyena_se_forward" if L > 16 else "hyena_se_step_forward", qkv.device)
    size = config.constants
    rows = size["I"] * size["U"] * size["TILES"]
    grid = (triton.cdiv(D, size["BD"]), triton.cdiv(L, rows), B)
    hyena_se_forward_kernel[grid](
        qkv, featurizer, h, qkv if feature_tail is None else feature_tail,
        qkv if gated_tail is None else gated_tail, y, feature_end, gated_end, L,
        D=D, GROUP=D // h.shape[0], K=K, KF=KF, HAS_STATE=feature_tail is not None,
        RETURN_STATE=return_state, **config.launch_arguments(),
    )  # fmt: skip
    return y, feature_end, gated_end
