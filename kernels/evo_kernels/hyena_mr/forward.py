"""Hyena-MR forward in one pass: featurizers, gate, Toeplitz filter on tensor cores, skip, post-gate.

Cut into tiles of 16 rows, the filter of a group of channels is a band of 16 x 16 Toeplitz blocks

    y_i = sum_{delta = 0}^{8} T_delta z_{i - delta}        T_delta[a, b] = h[16 delta + a - b]

and nine of them hold every filter of at most 129 taps. One warp has one block of 16 channels, and a
program has four, side by side, because rows of 64 channels are whole lines of memory: rows of 16 reach
less than half of the copy bandwidth.

A program marches over its rows, 32 at a time, and scatters: z_i feeds the sums of the tiles i ... i + 8,
and the sums of the next eight tiles are carried on as float32. Taps enter the products as pairs of
bfloat16 (value and remainder), z as one bfloat16, which is what the state holds; the skip takes z in
float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_mr.configs  # noqa: F401  (fills the launch table)
from evo_kernels.backend import interpreting
from evo_kernels.hyena_mr.tiles import (
    add_toeplitz16,
    column_channels,
    exists,
    fir3,
    from_row_tiles,
    interleave,
    load_phases,
    load_toeplitz16,
    load_transposed_taps,
    phases_of,
    prefetch_rows,
    prepare_kernel,
    row_tiles,
)
from evo_kernels.launch import on_its_device, select


@triton.jit(do_not_specialize=["L", "SEG"])
def hyena_mr_forward_kernel(
    qkv, featurizer, blocks, skip, feature_tail, gated_tail, y, gated_end, L, SEG,
    D: tl.constexpr, K: tl.constexpr, GROUP: tl.constexpr, HAS_STATE: tl.constexpr,
    RETURN_STATE: tl.constexpr, UPCAST: tl.constexpr, E: tl.constexpr,
):  # fmt: skip
    """`y = q * (fir(h, k * v) + skip * k * v)` of the featurized q, k, v.

    Grid: (sets of E blocks of 16 channels, segments of SEG rows, batch). SEG is a multiple of 32.

    Args:
        qkv: `[B, L, 3D]`.
        featurizer: `[3, 3D]`, transposed, and
        blocks: the filters, `[D / GROUP, 9, 2, 16, 16]`, as `prepare_kernel` writes them.
        skip: `[D]`.
        feature_tail, gated_tail: State before row 0, `[B, 2, 3D]` and `[B, K - 1, D]`.
        y: `[B, L, D]`.
        gated_end: Gated inputs of the new state, `[B, K - 1, D]`; rows of this chunk are written.
    """
    N: tl.constexpr = 16 * E
    b = tl.program_id(2).to(tl.int64)
    c, ok = column_channels(tl.program_id(0), D, GROUP, E)
    group = (tl.program_id(0) * E + tl.arange(0, E)) // ((GROUP + 15) // 16)
    group = tl.minimum(group, D // GROUP - 1)
    high = load_toeplitz16(blocks, group, 0, UPCAST)
    low = load_toeplitz16(blocks, group, 1, UPCAST)
    qkv += b * L * 3 * D
    y += b * L * D
    feature_tail += b * 2 * 3 * D
    gated_tail += b * (K - 1) * D
    gated_end += b * (K - 1) * D
    zero = tl.zeros((E, 16, 16), tl.float32)
    c0, c1, c2, c3, c4, c5, c6, c7 = zero, zero, zero, zero, zero, zero, zero, zero
    # The 128 rows before the segment come first, for what they leave to its sums.
    for step in range(-4, SEG // 32):
        row = tl.program_id(1) * SEG + step * 32 + 8 * tl.arange(0, 4)[:, None]
        end = row * 0 + L
        own = tl.where(row - row + step >= 0, end, 0)
        at = row.to(tl.int64)
        if not UPCAST and GROUP % 16 == 0:
            # No registers are left to load a step ahead, but the cache can be.
            following = tl.program_id(1) * SEG + (step + 1) * 32
            prefetch_rows(qkv + tl.program_id(0) * N, following, L, 3 * D, D)
        x = qkv + at * (3 * D) + c
        raw_k = load_phases(x + D, feature_tail + D + c, row, end, ok, 3 * D, HAS_STATE)
        raw_v = load_phases(x + 2 * D, feature_tail + 2 * D + c, row, end, ok, 3 * D, HAS_STATE)
        raw_q = load_phases(x, feature_tail + c, row, own, ok, 3 * D, HAS_STATE)
        # Read again at every step, from L1: they would hold registers that a third program needs.
        wq = load_transposed_taps(featurizer, c, ok, 3 * D)
        wk = load_transposed_taps(featurizer, c + D, ok, 3 * D)
        wv = load_transposed_taps(featurizer, c + 2 * D, ok, 3 * D)
        skips = tl.load(skip + c, mask=ok, other=0.0).to(tl.float32)
        skipped = ()
        rounded = ()
        for u in tl.static_range(8):
            t = row + u
            z = fir3(raw_k, wk, u) * fir3(raw_v, wv, u)
            if HAS_STATE:
                # Before row 0 the gated inputs are the state's, not what the taps make of its raw rows.
                early = (t < 0) & (t > -K) & ok
                old = tl.load(gated_tail + (t + (K - 1)) * D + c, mask=early, other=0.0)
                z = tl.where(t < 0, old.to(tl.float32), z)
            if RETURN_STATE:
                last = exists(t, own) & (t > L - K) & ok
                kept = gated_end + (t - (L - K + 1)) * D + c
                tl.store(kept, z.to(tl.bfloat16).to(tl.float32), mask=last)
            skipped = skipped + (skips * z,)
            rounded = rounded + (z.to(tl.bfloat16),)
        z0, z1 = row_tiles(interleave(rounded, N), E, UPCAST)
        sums = (c0, c1, c2, c3, c4, c5, c6, c7, zero, zero)
        sums = add_toeplitz16(sums, z0, high, low, 0)
        sums = add_toeplitz16(sums, z1, high, low, 1)
        c0, c1, c2, c3 = sums[2], sums[3], sums[4], sums[5]
        c4, c5, c6, c7 = sums[6], sums[7], sums[8], sums[9]
        if step >= 0:
            inner = phases_of(from_row_tiles(sums[0], sums[1], E), N)
            to = y + at * D + c
            for u in tl.static_range(8):
                out = fir3(raw_q, wq, u) * (inner[u] + skipped[u])
                tl.store(to + u * D, out.to(y.dtype.element_ty), mask=exists(row + u, own) & ok)


# Programs that run at once: three on each of the 132 multiprocessors of an H100 or H200. Another GPU gets
# the same segments: a sum's order must not depend on the machine.
_AT_ONCE = 396
_LONGEST, _SHORTEST = 4096, 256


def segment_rows(B: int, L: int, sets: int) -> int:
    """Rows per program: many, to pay for the 128 rows before them, in whole waves of programs.

    A pure function of the sizes, so that every run launches the same work.
    """
    waves = triton.cdiv(B * L * sets, _AT_ONCE * _LONGEST)
    segments = max(waves * _AT_ONCE // max(B * sets, 1), 1)
    rows = triton.cdiv(triton.cdiv(L, segments), 32) * 32
    return max(min(rows, _LONGEST), min(_SHORTEST, triton.cdiv(L, 32) * 32))


@on_its_device
def launch_forward(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
    segment: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the kernel on contiguous inputs: y `[B, L, D]`, and the new gated state if asked for."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    G, K = h.shape
    config = select("hyena_mr_forward", qkv.device)
    sets = triton.cdiv(G * triton.cdiv(D // G, 16), config.constants["E"])
    segment = segment or segment_rows(B, L, sets)
    blocks = torch.empty((G, 9, 2, 16, 16), dtype=torch.bfloat16, device=h.device)
    taps = torch.empty((3, 3 * D), dtype=featurizer.dtype, device=h.device)
    width = triton.next_power_of_2(D // G)
    prepare_kernel[(G, 9)](
        h, featurizer, blocks, taps, K=K, D=D, GROUP=D // G, WIDTH=width, num_warps=1
    )
    y = qkv.new_empty(B, L, D)
    gated_end = None
    if return_state:
        gated_end = qkv.new_empty((B, K - 1, D), dtype=torch.float32)
        if L < K - 1:
            gated_end[:, : K - 1 - L] = 0.0 if gated_tail is None else gated_tail[:, L:]
    hyena_mr_forward_kernel[(sets, triton.cdiv(L, segment), B)](
        qkv, taps, blocks, skip,
        qkv if feature_tail is None else feature_tail, skip if gated_tail is None else gated_tail, y,
        skip if gated_end is None else gated_end, L, segment,
        D=D, K=K, GROUP=D // G, HAS_STATE=feature_tail is not None, RETURN_STATE=return_state,
        UPCAST=interpreting(), **config.launch_arguments(),
    )  # fmt: skip
    return y, gated_end
