"""Triton kernel of Hyena-SE, backward, in one pass over q, k, v and the output's gradient.

Everything the forward made is made again from its inputs: nothing is saved. With g = dy * q:

    dz[t] = sum_j h[j] g[t + j]      dq = dy * fir(h, z)      dk = dz * v      dv = dz * k

and every featurizer passes its gradient on with its taps transposed. A program keeps the taps'
gradients of its rows in registers and writes one float32 partial sum; the launch function adds the
partial sums in a fixed order, so two runs agree bit by bit.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_se.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select
from evo_kernels.rows import (
    add_last_rows,
    add_products,
    fir,
    fir_transposed,
    load_rows,
    load_taps,
    multiply,
    replace_early_rows,
    store_early_rows,
    store_rows,
    store_sums,
    zero_rows,
    zero_sums,
)


@triton.jit(do_not_specialize=["L"])
def hyena_se_backward_kernel(
    dy, d_feature_end, d_gated_end, qkv, featurizer, h, feature_tail, gated_tail, dqkv, d_feature_tail,
    d_gated_tail, d_featurizer, d_h, L,
    D: tl.constexpr, GROUP: tl.constexpr, K: tl.constexpr, KF: tl.constexpr, HAS_STATE: tl.constexpr,
    HAS_END: tl.constexpr, NEEDS_WEIGHTS: tl.constexpr, I: tl.constexpr, U: tl.constexpr,
    BD: tl.constexpr, TILES: tl.constexpr,
):  # fmt: skip
    """Gradients of `hyena_se_forward_kernel`.

    Args:
        dy: `[B, L, D]`.
        d_feature_end, d_gated_end: Gradients of the new state; read if HAS_END.
        dqkv: `[B, L, 3D]`.
        d_feature_tail, d_gated_tail: Gradients of the old state; written if HAS_STATE.
        d_featurizer: Partial sums, `[B, programs, KF, 3D]`; written if NEEDS_WEIGHTS.
        d_h: Partial sums by channel, `[B, programs, K, D]`.
    """
    HK: tl.constexpr = K - 1
    HF: tl.constexpr = KF - 1
    c = tl.program_id(0) * BD + tl.arange(0, BD)[None, :]
    b = tl.program_id(2).to(tl.int64)
    taps_q = load_taps(featurizer, c, c < D, KF)
    taps_k = load_taps(featurizer, c + D, c < D, KF)
    taps_v = load_taps(featurizer, c + 2 * D, c < D, KF)
    taps_h = load_taps(h, c // GROUP, c < D, K)
    qkv += b * L * 3 * D
    dqkv += b * L * 3 * D
    dy += b * L * D
    feature_tail += b * (KF - 1) * 3 * D
    d_feature_tail += b * (KF - 1) * 3 * D
    d_feature_end += b * (KF - 1) * 3 * D
    gated_tail += b * (K - 1) * D
    d_gated_tail += b * (K - 1) * D
    d_gated_end += b * (K - 1) * D
    part = b * tl.num_programs(1) + tl.program_id(1)
    d_featurizer += part * KF * 3 * D
    d_h += part * K * D
    sums_q = zero_sums(I, BD, KF)
    sums_k = zero_sums(I, BD, KF)
    sums_v = zero_sums(I, BD, KF)
    sums_h = zero_sums(I, BD, K)
    for i in range(TILES):
        row = (tl.program_id(1) * TILES + i) * (I * U) + U * tl.arange(0, I)[:, None]
        x = qkv + row.to(tl.int64) * (3 * D) + c
        raw_k = load_rows(x + D, row, c, L, -HK - HF, U + HF, 3 * D, D)
        raw_v = load_rows(x + 2 * D, row, c, L, -HK - HF, U + HF, 3 * D, D)
        raw_q = load_rows(x, row, c, L, -HF, U + HF + HK, 3 * D, D)
        grad = load_rows(dy + row.to(tl.int64) * D + c, row, c, L, 0, U + HF + HK, D, D)
        if HAS_STATE:
            raw_k = replace_early_rows(
                raw_k, feature_tail + D, row, c, -HK - HF, HK + HF + U + HF, HF, 3 * D, D
            )
            raw_v = replace_early_rows(
                raw_v, feature_tail + 2 * D, row, c, -HK - HF, HK + HF + U + HF, HF, 3 * D, D
            )
            raw_q = replace_early_rows(
                raw_q, feature_tail, row, c, -HF, HF + U + HF + HK, HF, 3 * D, D
            )
        k = fir(raw_k, taps_k, HF, HK + U + HF, KF)  # phases -HK ... U + HF - 1
        v = fir(raw_v, taps_v, HF, HK + U + HF, KF)
        gated = multiply(k, v, 0, 0, HK + U + HF)
        if HAS_STATE:
            # Before row 0 the gated inputs are the state's, not what the taps make of its raw rows.
            gated = replace_early_rows(gated, gated_tail, row, c, -HK, HK + U + HF, HK, D, D)
        q = fir(raw_q, taps_q, HF, U + HF + HK, KF)  # phases 0 ... U + HF + HK - 1
        g = multiply(grad, q, 0, 0, U + HF + HK)
        inner = fir(gated, taps_h, HK, U + HF, K)  # phases 0 ... U + HF - 1, as are the next four
        d_gated = fir_transposed(g, taps_h, 0, U + HF, K)
        if HAS_END:
            d_gated = add_last_rows(d_gated, d_gated_end, row, c, L, 0, U + HF, HK, D, D)
        d_q = multiply(grad, inner, 0, 0, U + HF)
        d_k = multiply(d_gated, v, 0, HK, U + HF)
        d_v = multiply(d_gated, k, 0, HK, U + HF)
        d_raw_q = fir_transposed(d_q, taps_q, 0, U, KF)
        d_raw_k = fir_transposed(d_k, taps_k, 0, U, KF)
        d_raw_v = fir_transposed(d_v, taps_v, 0, U, KF)
        if HAS_END:
            d_raw_q = add_last_rows(d_raw_q, d_feature_end, row, c, L, 0, U, HF, 3 * D, D)
            d_raw_k = add_last_rows(d_raw_k, d_feature_end + D, row, c, L, 0, U, HF, 3 * D, D)
            d_raw_v = add_last_rows(d_raw_v, d_feature_end + 2 * D, row, c, L, 0, U, HF, 3 * D, D)
        dx = dqkv + row.to(tl.int64) * (3 * D) + c
        store_rows(dx, d_raw_q, row, c, L, 0, U, 3 * D, D)
        store_rows(dx + D, d_raw_k, row, c, L, 0, U, 3 * D, D)
        store_rows(dx + 2 * D, d_raw_v, row, c, L, 0, U, 3 * D, D)
        if HAS_STATE:
            # What the rows before row 0 owe to the first rows: the same sums with phases below 0.
            d_early = fir_transposed(zero_rows(g[0], HK) + g, taps_h, 0, HK, K)
            e_q = fir_transposed(zero_rows(g[0], HF) + d_q, taps_q, 0, HF, KF)
            e_k = fir_transposed(zero_rows(g[0], HF) + d_k, taps_k, 0, HF, KF)
            e_v = fir_transposed(zero_rows(g[0], HF) + d_v, taps_v, 0, HF, KF)
            if HAS_END:
                d_early = add_last_rows(d_early, d_gated_end, row, c, L, -HK, HK, HK, D, D)
                e_q = add_last_rows(e_q, d_feature_end, row, c, L, -HF, HF, HF, 3 * D, D)
                e_k = add_last_rows(e_k, d_feature_end + D, row, c, L, -HF, HF, HF, 3 * D, D)
                e_v = add_last_rows(e_v, d_feature_end + 2 * D, row, c, L, -HF, HF, HF, 3 * D, D)
            store_early_rows(d_gated_tail, d_early, row, c, HK, D, D)
            store_early_rows(d_feature_tail, e_q, row, c, HF, 3 * D, D)
            store_early_rows(d_feature_tail + D, e_k, row, c, HF, 3 * D, D)
            store_early_rows(d_feature_tail + 2 * D, e_v, row, c, HF, 3 * D, D)
        if NEEDS_WEIGHTS:
            sums_q = add_products(sums_q, d_q, raw_q, 0, HF, U, KF)
            sums_k = add_products(sums_k, d_k, raw_k, 0, HK + HF, U, KF)
            sums_v = add_products(sums_v, d_v, raw_v, 0, HK + HF, U, KF)
            sums_h = add_products(sums_h, g, gated, 0, HK, U, K)
    if NEEDS_WEIGHTS:
        store_sums(d_featurizer, sums_q, c, KF, D, 3 * D)
        store_sums(d_featurizer + D, sums_k, c, KF, D, 3 * D)
        store_sums(d_featurizer + 2 * D, sums_v, c, KF, D, 3 * D)
        store_sums(d_h, sums_h, c, K, D, D)


@on_its_device
def launch_backward(
    dy: Tensor,
    d_feature_end: Tensor | None,
    d_gated_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the kernel on contiguous inputs.

    Returns:
        Gradients of qkv, featurizer, h, and of the old state's two tails; empty where there is no
        state or `needs_weights` is false.
    """
    B, L, width = qkv.shape
    D = width // 3
    G, K = h.shape
    KF = featurizer.shape[1]
    dqkv = torch.empty_like(qkv)
    d_feature_tail = qkv.new_empty((0,) if feature_tail is None else feature_tail.shape)
    d_gated_tail = dy.new_empty(
        (0,) if gated_tail is None else gated_tail.shape, dtype=torch.float32
    )
    config = select("hyena_se_backward", qkv.device)
    size = config.constants
    programs = triton.cdiv(L, size["I"] * size["U"] * size["TILES"])
    parts = B * programs
    featurizer_parts = qkv.new_empty(
        (parts, KF, width) if needs_weights else (0,), dtype=torch.float32
    )
    h_parts = qkv.new_empty((parts, K, D) if needs_weights else (0,), dtype=torch.float32)
    hyena_se_backward_kernel[(triton.cdiv(D, size["BD"]), programs, B)](
        dy, dy if d_feature_end is None else d_feature_end, dy if d_gated_end is None else d_gated_end,
        qkv, featurizer, h, qkv if feature_tail is None else feature_tail,
        qkv if gated_tail is None else gated_tail, dqkv, d_feature_tail, d_gated_tail,
        featurizer_parts, h_parts, L,
        D=D, GROUP=D // G, K=K, KF=KF, HAS_STATE=feature_tail is not None,
        HAS_END=d_feature_end is not None, NEEDS_WEIGHTS=needs_weights, **config.launch_arguments(),
    )  # fmt: skip
    if not needs_weights:
        return dqkv, featurizer_parts, h_parts, d_feature_tail, d_gated_tail
    d_featurizer = featurizer_parts.sum(0).t().contiguous()
    d_h = h_parts.sum(0).view(K, G, D // G).sum(2).t().contiguous()
    return dqkv, d_featurizer, d_h, d_feature_tail, d_gated_tail
