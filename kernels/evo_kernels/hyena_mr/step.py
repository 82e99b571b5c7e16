"""Hyena-MR forward of chunks of a few positions: direct sums over the state, no tiles."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_mr.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select
from evo_kernels.rows import load_taps


@triton.jit
def load_row(x, feature_tail, t, L, ok, D: tl.constexpr, HAS_STATE: tl.constexpr):
    """Raw inputs at rows t (a tile `[T, 1]`), from the state where t < 0."""
    value = tl.load(x + t * (3 * D), mask=(t >= 0) & (t < L) & ok, other=0.0).to(tl.float32)
    if HAS_STATE:
        before = (t < 0) & (t >= -2) & ok
        value += tl.load(feature_tail + (t + 2) * (3 * D), mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def row_fir3(x, feature_tail, w, t, L, ok, D: tl.constexpr, HAS_STATE: tl.constexpr):
    """Featurizer outputs at rows t."""
    return (
        w[0] * load_row(x, feature_tail, t, L, ok, D, HAS_STATE)
        + w[1] * load_row(x, feature_tail, t - 1, L, ok, D, HAS_STATE)
        + w[2] * load_row(x, feature_tail, t - 2, L, ok, D, HAS_STATE)
    )


@triton.jit(do_not_specialize=["L"])
def hyena_mr_step_forward_kernel(
    qkv,
    featurizer,
    h,
    skip,
    y,
    feature_tail,
    gated_tail,
    feature_end,
    gated_end,
    L,
    D: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    BD: tl.constexpr,
    HAS_STATE: tl.constexpr,
    RETURN_STATE: tl.constexpr,
):
    """The forward of a chunk of at most T rows as direct sums, with the new state.

    T and R are powers of two that hold L and K - 1. Grid: (blocks of BD channels, batch).
    """
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * BD + tl.arange(0, BD)
    okc = c < D
    ok = okc[None, :]
    t = tl.arange(0, T)[:, None]
    r = tl.arange(0, R)[:, None]
    x = qkv + b * L * 3 * D + c[None, :]
    px = feature_tail + b * 2 * 3 * D + c[None, :]
    pg = gated_tail + b * (K - 1) * D + c[None, :]
    taps = h + (c // GROUP * K)[None, :]
    k = row_fir3(x + D, px + D, load_taps(featurizer, c + D, okc, 3), t, L, ok, D, HAS_STATE)
    v = row_fir3(
        x + 2 * D, px + 2 * D, load_taps(featurizer, c + 2 * D, okc, 3), t, L, ok, D, HAS_STATE
    )
    q = row_fir3(x, px, load_taps(featurizer, c, okc, 3), t, L, ok, D, HAS_STATE)
    z = tl.where(t < L, k * v, 0.0)
    z16 = z.to(tl.bfloat16).to(tl.float32)
    sums = tl.load(skip + c, mask=okc, other=0.0).to(tl.float32)[None, :] * z
    if HAS_STATE:
        past = tl.load(pg + r * D, mask=(r < K - 1) & ok, other=0.0).to(tl.float32)
    for step in range(0, L):
        lag = step - t
        a = tl.load(taps + lag, mask=(lag >= 0) & (lag < K) & ok, other=0.0).to(tl.float32)
        s = tl.sum(a * z16, 0)
        if HAS_STATE:
            lag = step + (K - 1) - r
            inside = (lag < K) & (r < K - 1) & ok
            s += tl.sum(tl.load(taps + lag, mask=inside, other=0.0).to(tl.float32) * past, 0)
        sums += tl.where(t == step, s[None, :], 0.0)
    tl.store(
        y + b * L * D + t * D + c[None, :], (q * sums).to(y.dtype.element_ty), mask=(t < L) & ok
    )
    if RETURN_STATE:
        pn = gated_end + b * (K - 1) * D + c[None, :]
        moved = (r < K - 1 - L) & ok
        old = tl.zeros((R, BD), tl.float32)
        if HAS_STATE:
            old = tl.load(pg + (r + L) * D, mask=moved, other=0.0).to(tl.float32)
        tl.store(pn + r * D, old, mask=moved)
        to = t + (K - 1 - L)
        tl.store(pn + to * D, z16, mask=(t < L) & (to >= 0) & ok)
        two = tl.arange(0, 2)[:, None]
        for block in tl.static_range(3):
            raw = load_row(x + block * D, px + block * D, L - 2 + two, L, ok, D, HAS_STATE)
            pt = feature_end + b * 2 * 3 * D + c[None, :] + block * D + two * (3 * D)
            tl.store(pt, raw.to(feature_end.dtype.element_ty), mask=ok & (two >= 0))


@on_its_device
def launch_step_forward(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the kernel for short chunks: y, and the new feature_tail and gated state if asked for."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    G, K = h.shape
    config = select("hyena_mr_step_forward", qkv.device)
    y = torch.empty(B, L, D, dtype=qkv.dtype, device=qkv.device)
    feature_end = gated_end = None
    if return_state:
        feature_end = qkv.new_empty((B, 2, 3 * D))
        gated_end = qkv.new_empty((B, K - 1, D), dtype=torch.float32)
    grid = (triton.cdiv(D, config.constants["BD"]), B)
    hyena_mr_step_forward_kernel[grid](
        qkv,
        featurizer,
        h,
        skip,
        y,
        qkv if feature_tail is None else feature_tail,
        skip if gated_tail is None else gated_tail,
        qkv if feature_end is None else feature_end,
        skip if gated_end is None else gated_end,
        L,
        D=D,
        K=K,
        GROUP=D // G,
        T=triton.next_power_of_2(L),
        R=triton.next_power_of_2(max(K - 1, 1)),
        HAS_STATE=feature_tail is not None,
        RETURN_STATE=return_state,
        **config.launch_arguments(),
    )
    return y, feature_end, gated_end
