"""Hyena-MR backward: two marches over the sequence, everything recomputed from the inputs.

With g = dy * q_f and z = k_f * v_f (f: after the featurizers), s = conv(h, z) + skip * z:

    dq_f = dy * s                    dh[j] = sum_t g[t] z[t - j]        dskip = sum_t g[t] z[t]
    dz = corr(h, g) + skip * g       dk_f = dz * v_f                    dv_f = dz * k_f

and each raw gradient is its featurizer transposed: dx[t] = w0 d[t] + w1 d[t + 1] + w2 d[t + 2].

The query kernel marches forwards as the forward kernel does and yields dq, dskip, dh and the taps'
gradients of q. The key-value kernel marches backwards with the transposed blocks: g_i feeds dz_i,
dz_{i-1} and dz_{i-2}. Rows that the transposed featurizer needs from a neighbouring thread come by
one gather a tile, those of the neighbouring tile by a carry; a program runs over one more tile than
it owns, for what its border rows need.

Parameter gradients leave the kernels as float32 sums per program and are added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.backend import interpreting
from evo_kernels.hyena_mr.forward import (
    deinterleave,
    doubled,
    fir3,
    fir_taps,
    gated_before,
    interleave,
    load_phases,
    load_toeplitz,
    segment_rows,
    toeplitz_blocks,
)
from evo_kernels.launch import select


@triton.jit
def load_own(p, row, L, ok, STRIDE: tl.constexpr, U: tl.constexpr):
    """Phases 0 .. U-1 of a tile, in float32."""
    phases = ()
    for u in tl.static_range(U):
        x = tl.load(p + u * STRIDE, mask=(row + u < L) & ok, other=0.0)
        phases = phases + (x.to(tl.float32),)
    return phases


@triton.jit
def diagonal_sums(x, BT: tl.constexpr):
    """Sums over `r - s = j` and over `r - s = j - BT` of a tile `[BT, BT]`, each `[BT]`."""
    r = tl.arange(0, BT)[:, None]
    j = tl.arange(0, BT)[None, :]
    skewed = tl.gather(x, (r - j + BT) % BT, 1)
    return tl.sum(tl.where(r >= j, skewed, 0.0), 0), tl.sum(tl.where(r < j, skewed, 0.0), 0)


@triton.jit
def hyena_mr_backward_query_kernel(
    qkv,
    dy,
    featurizer,
    blocks,
    skip,
    tail,
    gated,
    dqkv,
    dtail,
    dtaps,
    dskip,
    dh,
    L,
    SEG,
    D: tl.constexpr,
    K: tl.constexpr,
    GS: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
    U: tl.constexpr,
    DQ: tl.constexpr,
    DH: tl.constexpr,
    HAS_STATE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dq with its taps' gradients and dskip (DQ), and dh (DH).

    Grid: (filter groups x blocks of CB channels, sets of N / CB segments of SEG rows, batch).
    """
    BT: tl.constexpr = 64
    I: tl.constexpr = BT // U
    BLOCKS: tl.constexpr = (GS + CB - 1) // CB
    group = tl.program_id(0) // BLOCKS
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    i = tl.arange(0, I)[:, None]
    in_group = (tl.program_id(0) % BLOCKS) * CB + n % CB
    c = group * GS + in_group
    okc = in_group < GS
    ok = okc[None, :]
    segment = tl.program_id(1) * (N // CB) + n // CB
    start = (segment * SEG)[None, :]
    end = tl.minimum(start + SEG, L)
    row = start + U * i

    at = row.to(tl.int64)
    p = qkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pdq = dqkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pdy = dy + b * L * D + at * D + c[None, :]
    ptail = tail + b * 2 * 3 * D + c[None, :]
    pdtail = dtail + b * 2 * 3 * D + c[None, :]
    pgated = gated + b * (K - 1) * D + c[None, :]

    wq = fir_taps(featurizer, c, okc)
    wk = fir_taps(featurizer, c + D, okc)
    wv = fir_taps(featurizer, c + 2 * D, okc)
    skips = tl.load(skip + c, mask=okc, other=0.0).to(tl.float32)[None, :]
    blocks += group.to(tl.int64) * (3 * 2 * BT * BT)
    if DQ:
        a0 = load_toeplitz(blocks, 0, UPCAST)
        a1 = load_toeplitz(blocks, 1, UPCAST)
        a2 = load_toeplitz(blocks, 2, UPCAST)

    zero = tl.zeros((I, N), tl.float32)
    next1 = tl.zeros((BT, N), tl.float32)
    next2 = tl.zeros((BT, N), tl.float32)
    z1 = tl.zeros((BT, N), tl.bfloat16)
    z2 = tl.zeros((BT, N), tl.bfloat16)
    for t in range(-2, 0):
        pt = p + t * (BT * 3 * D)
        r = row + t * BT
        k = load_phases(pt + D, ptail + D, r, L, ok, D, U, HAS_STATE, True)
        v = load_phases(pt + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE, True)
        zs = ()
        for u in tl.static_range(U):
            z = tl.where(r + u >= 0, fir3(k, wk, u) * fir3(v, wv, u), 0.0)
            if HAS_STATE:
                z += gated_before(pgated, r + u, ok, D, K)
            zs = zs + (z.to(tl.bfloat16),)
        if DQ:
            zb = doubled(zs, U, I, N, UPCAST)
            next1 = tl.dot(a1, zb, acc=next2)
            next2 = tl.dot(a2, zb)
        if DH:
            z2 = z1
            z1 = interleave(zs, U, I, N)

    dw0 = zero
    dw1 = zero
    dw2 = zero
    ds = zero
    before2 = zero
    before1 = zero
    t0 = tl.zeros((BT, BT), tl.float32)
    t1 = tl.zeros((BT, BT), tl.float32)
    t2 = tl.zeros((BT, BT), tl.float32)
    tiles = SEG // BT
    for t in range(0, tiles + 1):
        r = row + t * BT
        # The last tile is there for the two rows before it: without q it adds to no sum.
        Lq = tl.where(t < tiles, L, -BT)
        k = load_phases(p + D, ptail + D, r, L, ok, D, U, HAS_STATE)
        v = load_phases(p + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE)
        q = load_phases(p, ptail, r, Lq, ok, D, U, HAS_STATE)
        e = load_own(pdy, r, L, ok, D, U)
        zs = ()
        zs16 = ()
        gs16 = ()
        for u in tl.static_range(U):
            z = fir3(k, wk, u) * fir3(v, wv, u)
            g = e[u] * fir3(q, wq, u)
            if DQ:
                ds += g * z
            zs = zs + (z,)
            zs16 = zs16 + (z.to(tl.bfloat16),)
            gs16 = gs16 + (g.to(tl.bfloat16),)
        if DQ:
            zb = doubled(zs16, U, I, N, UPCAST)
            s = tl.dot(a0, zb, acc=next1)
            next1 = tl.dot(a1, zb, acc=next2)
            next2 = tl.dot(a2, zb)
        if DH:
            z0 = interleave(zs16, U, I, N)
            gt = interleave(gs16, U, I, N)
            if UPCAST:
                gt = gt.to(tl.float32)
                t0 = tl.dot(gt, tl.trans(z0.to(tl.float32)), acc=t0)
                t1 = tl.dot(gt, tl.trans(z1.to(tl.float32)), acc=t1)
                t2 = tl.dot(gt, tl.trans(z2.to(tl.float32)), acc=t2)
            else:
                t0 = tl.dot(gt, tl.trans(z0), acc=t0)
                t1 = tl.dot(gt, tl.trans(z1), acc=t1)
                t2 = tl.dot(gt, tl.trans(z2), acc=t2)
            z2 = z1
            z1 = z0
        if DQ:
            sums = deinterleave(s, U, I, N)
            ds_f = ()
            for u in tl.static_range(U):
                d = e[u] * (sums[u] + skips * zs[u])
                dw0 += d * q[u + 2].to(tl.float32)
                dw1 += d * q[u + 1].to(tl.float32)
                dw2 += d * q[u].to(tl.float32)
                ds_f = ds_f + (d,)
            # Phases -2 and -1 are the last two of the thread before, or of the tile before.
            last = i == I - 1
            pair = tl.join(
                tl.where(last, before2, ds_f[U - 2]), tl.where(last, before1, ds_f[U - 1])
            )
            source = tl.broadcast_to(((i + I - 1) % I)[:, :, None], (I, N, 2))
            m2, m1 = tl.split(tl.gather(pair, source, 0))
            before2 = ds_f[U - 2]
            before1 = ds_f[U - 1]
            around = (m2, m1) + ds_f
            for u in tl.static_range(U):
                dx = wq[0] * around[u] + wq[1] * around[u + 1] + wq[2] * around[u + 2]
                at_row = r + (u - 2)
                inside = (at_row >= start) & (at_row < end) & ok
                tl.store(pdq + (u - 2) * 3 * D, dx.to(dqkv.dtype.element_ty), mask=inside)
                if HAS_STATE and u < 2:
                    tl.store(pdtail + (at_row + 2) * 3 * D, dx, mask=(at_row < 0) & ok)
        p += BT * 3 * D
        pdq += BT * 3 * D
        pdy += BT * D

    if DQ:
        part = b * tl.num_programs(1) * (N // CB) + segment
        pw = dtaps + part * 9 * D + c
        tl.store(pw, tl.sum(dw0, 0), mask=okc)
        tl.store(pw + D, tl.sum(dw1, 0), mask=okc)
        tl.store(pw + 2 * D, tl.sum(dw2, 0), mask=okc)
        tl.store(dskip + part * D + c, tl.sum(ds, 0), mask=okc)
    if DH:
        low0, _ = diagonal_sums(t0, BT)
        low1, high1 = diagonal_sums(t1, BT)
        low2, high2 = diagonal_sums(t2, BT)
        j = tl.arange(0, BT)
        ph = (
            dh
            + ((b * tl.num_programs(1) + tl.program_id(1)) * tl.num_programs(0) + tl.program_id(0))
            * K
        )
        tl.store(ph + j, low0 + high1, mask=j < K)
        tl.store(ph + BT + j, low1 + high2, mask=j + BT < K)
        tl.store(ph + 2 * BT + j, low2, mask=j + 2 * BT < K)


@triton.jit
def hyena_mr_backward_key_value_kernel(
    qkv,
    dy,
    featurizer,
    blocks,
    skip,
    tail,
    dgated,
    dqkv,
    dtail,
    dtaps,
    L,
    SEG,
    D: tl.constexpr,
    K: tl.constexpr,
    GS: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
    U: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_DGATED: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """dk and dv with their taps' gradients; `blocks` are the transposed ones, `dgated` `[B, K-1, D]`.

    Grid: (filter groups x blocks of CB channels, sets of N / CB segments of SEG rows, batch).
    """
    BT: tl.constexpr = 64
    I: tl.constexpr = BT // U
    BLOCKS: tl.constexpr = (GS + CB - 1) // CB
    group = tl.program_id(0) // BLOCKS
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    i = tl.arange(0, I)[:, None]
    in_group = (tl.program_id(0) % BLOCKS) * CB + n % CB
    c = group * GS + in_group
    okc = in_group < GS
    ok = okc[None, :]
    segment = tl.program_id(1) * (N // CB) + n // CB
    start = (segment * SEG)[None, :]
    end = tl.minimum(start + SEG, L)
    tiles = SEG // BT
    row = start + U * i

    at = row.to(tl.int64)
    p = qkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pd = dqkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pdy = dy + b * L * D + at * D + c[None, :]
    ptail = tail + b * 2 * 3 * D + c[None, :]
    pdtail = dtail + b * 2 * 3 * D + c[None, :]
    pdgated = dgated + b * (K - 1) * D + c[None, :]

    wq = fir_taps(featurizer, c, okc)
    wk = fir_taps(featurizer, c + D, okc)
    wv = fir_taps(featurizer, c + 2 * D, okc)
    skips = tl.load(skip + c, mask=okc, other=0.0).to(tl.float32)[None, :]
    blocks += group.to(tl.int64) * (3 * 2 * BT * BT)
    a0 = load_toeplitz(blocks, 0, UPCAST)
    a1 = load_toeplitz(blocks, 1, UPCAST)
    a2 = load_toeplitz(blocks, 2, UPCAST)

    next1 = tl.zeros((BT, N), tl.float32)
    next2 = tl.zeros((BT, N), tl.float32)
    # Two blocks above the border tile, which is itself above the segment.
    for t in range(0, 2):
        down = (tiles + 2 - t).to(tl.int64) * BT
        r = row + (tiles + 2 - t) * BT
        q = load_phases(p + down * 3 * D, ptail, r, L, ok, D, U, HAS_STATE)
        e = load_own(pdy + down * D, r, L, ok, D, U)
        gs16 = ()
        for u in tl.static_range(U):
            gs16 = gs16 + ((e[u] * fir3(q, wq, u)).to(tl.bfloat16),)
        gb = doubled(gs16, U, I, N, UPCAST)
        next1 = tl.dot(a1, gb, acc=next2)
        next2 = tl.dot(a2, gb)

    zero = tl.zeros((I, N), tl.float32)
    dk0 = zero
    dk1 = zero
    dk2 = zero
    dv0 = zero
    dv1 = zero
    dv2 = zero
    k_after0 = zero
    k_after1 = zero
    v_after0 = zero
    v_after1 = zero
    for t in range(0, tiles + 1):
        down = (tiles - t).to(tl.int64) * BT
        r = row + (tiles - t) * BT
        pt = p + down * 3 * D
        q = load_phases(pt, ptail, r, L, ok, D, U, HAS_STATE)
        e = load_own(pdy + down * D, r, L, ok, D, U)
        k = load_phases(pt + D, ptail + D, r, L, ok, D, U, HAS_STATE)
        v = load_phases(pt + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE)
        gs = ()
        gs16 = ()
        for u in tl.static_range(U):
            g = e[u] * fir3(q, wq, u)
            gs = gs + (g,)
            gs16 = gs16 + (g.to(tl.bfloat16),)
        gb = doubled(gs16, U, I, N, UPCAST)
        s = tl.dot(a0, gb, acc=next1)
        next1 = tl.dot(a1, gb, acc=next2)
        next2 = tl.dot(a2, gb)
        sums = deinterleave(s, U, I, N)
        dks = ()
        dvs = ()
        for u in tl.static_range(U):
            dz = sums[u] + skips * gs[u]
            if HAS_DGATED:
                index = r + u - (L - K + 1)
                kept = (index >= 0) & (r + u < L) & ok
                dz += tl.load(pdgated + index * D, mask=kept, other=0.0).to(tl.float32)
            d = dz * fir3(v, wv, u)
            dk0 += d * k[u + 2].to(tl.float32)
            dk1 += d * k[u + 1].to(tl.float32)
            dk2 += d * k[u].to(tl.float32)
            dks = dks + (d,)
            d = dz * fir3(k, wk, u)
            dv0 += d * v[u + 2].to(tl.float32)
            dv1 += d * v[u + 1].to(tl.float32)
            dv2 += d * v[u].to(tl.float32)
            dvs = dvs + (d,)
        # The border tile belongs to the next segment: its sums are dropped.
        keep = zero + t > 0
        dk0 = tl.where(keep, dk0, 0.0)
        dk1 = tl.where(keep, dk1, 0.0)
        dk2 = tl.where(keep, dk2, 0.0)
        dv0 = tl.where(keep, dv0, 0.0)
        dv1 = tl.where(keep, dv1, 0.0)
        dv2 = tl.where(keep, dv2, 0.0)
        # Phases U and U + 1 are the first two of the next thread, or of the tile after this one.
        first = i == 0
        source = tl.broadcast_to(((i + 1) % I)[:, :, None], (I, N, 2))
        pair = tl.join(tl.where(first, k_after0, dks[0]), tl.where(first, k_after1, dks[1]))
        nk0, nk1 = tl.split(tl.gather(pair, source, 0))
        pair = tl.join(tl.where(first, v_after0, dvs[0]), tl.where(first, v_after1, dvs[1]))
        nv0, nv1 = tl.split(tl.gather(pair, source, 0))
        k_after0 = dks[0]
        k_after1 = dks[1]
        v_after0 = dvs[0]
        v_after1 = dvs[1]
        dks = dks + (nk0, nk1)
        dvs = dvs + (nv0, nv1)
        po = pd + down * 3 * D
        for u in tl.static_range(U):
            inside = (r + u < end) & ok
            dx = wk[0] * dks[u] + wk[1] * dks[u + 1] + wk[2] * dks[u + 2]
            tl.store(po + u * 3 * D + D, dx.to(dqkv.dtype.element_ty), mask=inside)
            dx = wv[0] * dvs[u] + wv[1] * dvs[u + 1] + wv[2] * dvs[u + 2]
            tl.store(po + u * 3 * D + 2 * D, dx.to(dqkv.dtype.element_ty), mask=inside)

    if HAS_STATE:
        at_start = (start + U * i == 0) & ok
        pdtail += 0 * i
        tl.store(pdtail + D, wk[2] * k_after0, mask=at_start)
        tl.store(pdtail + 4 * D, wk[1] * k_after0 + wk[2] * k_after1, mask=at_start)
        tl.store(pdtail + 2 * D, wv[2] * v_after0, mask=at_start)
        tl.store(pdtail + 5 * D, wv[1] * v_after0 + wv[2] * v_after1, mask=at_start)
    part = b * tl.num_programs(1) * (N // CB) + segment
    pw = dtaps + part * 9 * D + c
    tl.store(pw + 3 * D, tl.sum(dk0, 0), mask=okc)
    tl.store(pw + 4 * D, tl.sum(dk1, 0), mask=okc)
    tl.store(pw + 5 * D, tl.sum(dk2, 0), mask=okc)
    tl.store(pw + 6 * D, tl.sum(dv0, 0), mask=okc)
    tl.store(pw + 7 * D, tl.sum(dv1, 0), mask=okc)
    tl.store(pw + 8 * D, tl.sum(dv2, 0), mask=okc)


def launch_backward(
    dy: Tensor,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    dgated: Tensor | None,
    with_filter: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernels.

    Args:
        dgated: Gradient of the new gated state, `[B, K - 1, D]` float32, or None.
        with_filter: Whether to compute the gradient of h; it is empty otherwise.

    Returns:
        Gradients of qkv, featurizer `[3D, 3]`, h, skip, and the incoming tail `[B, 2, 3D]` in
        float32 (zeros without a state).
    """
    B, L, D = dy.shape
    G, K = h.shape
    group_size = D // G
    dqkv = torch.empty_like(qkv)
    has_state = tail is not None
    dtail = qkv.new_zeros((B if has_state else 0, 2, 3 * D), dtype=torch.float32)
    shared = {
        "D": D,
        "K": K,
        "GS": group_size,
        "HAS_STATE": has_state,
        "UPCAST": interpreting(),
    }
    any_tail = qkv if tail is None else tail
    any_gated = skip if gated is None else gated

    def plan(kernel: str) -> tuple[dict[str, int], tuple[int, int, int], int, int]:
        config = select(kernel, qkv.device)
        N = config.constants["N"]
        CB = min(triton.next_power_of_2(group_size), N)
        blocks = G * triton.cdiv(group_size, CB)
        rows = segment or backward_segment_rows(B, L, blocks, N // CB)
        grid = (blocks, triton.cdiv(L, rows * (N // CB)), B)
        return {**config.launch_arguments(), "CB": CB}, grid, rows, N // CB

    arguments, grid, rows, segments = plan("hyena_mr_backward_query")
    parts = B * grid[1] * segments
    dtaps = qkv.new_zeros((parts, 3, 3, D), dtype=torch.float32)
    dskip = qkv.new_empty((parts, D), dtype=torch.float32)
    partial_filters = (B * grid[1], grid[0], K) if with_filter else (0,)
    dh = qkv.new_empty(partial_filters, dtype=torch.float32)
    hyena_mr_backward_query_kernel[grid](
        qkv,
        dy,
        featurizer,
        toeplitz_blocks(h),
        skip,
        any_tail,
        any_gated,
        dqkv,
        dtail,
        dtaps,
        dskip,
        dh,
        L,
        rows,
        DQ=True,
        DH=with_filter,
        **shared,
        **arguments,
    )
    arguments, grid, rows, segments = plan("hyena_mr_backward_key_value")
    hyena_mr_backward_key_value_kernel[grid](
        qkv,
        dy,
        featurizer,
        toeplitz_blocks(h, transpose=True),
        skip,
        any_tail,
        skip if dgated is None else dgated,
        dqkv,
        dtail,
        dtaps,
        L,
        rows,
        HAS_DGATED=dgated is not None,
        **shared,
        **arguments,
    )
    dfeaturizer = dtaps.sum(0).permute(0, 2, 1).reshape(3 * D, 3)
    if with_filter:
        dh = dh.view(len(dh), G, -1, K).sum((0, 2))
    return dqkv, dfeaturizer, dh, dskip.sum(0), dtail


def backward_segment_rows(B: int, L: int, blocks: int, segments: int) -> int:
    """Rows per segment of the backward kernels; a pure function of the sizes."""
    return segment_rows(B, L, blocks, segments)
