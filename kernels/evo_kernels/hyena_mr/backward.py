"""Hyena-MR backward: everything recomputed from the inputs, in planes between two wide passes.

With g = dy * q_f and z = k_f * v_f (f: after the featurizers), s = conv(h, z) + skip * z:

    dq_f = dy * s                    d_h[j] = sum_t g[t] z[t - j]        d_skip = sum_t g[t] z[t]
    dz = corr(h, g) + skip * g       dk_f = dz * v_f                    dv_f = dz * k_f

and each raw gradient is its featurizer transposed: dx[t] = w0 d[t] + w1 d[t + 1] + w2 d[t + 2].

The gating kernel writes z and g into planes; the convolution kernel filters z, and g in reverse; the
filter kernel sums g z^T over tiles and adds up its diagonals; the input kernel reads wide rows again
and does the rest. What it needs of the two rows after its own, it recomputes.

Parameter gradients leave the kernels as float32 sums per program and are added up in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.backend import interpreting
from evo_kernels.hyena_mr.planes import (
    BLOCK,
    Planes,
    in_planes,
    launch_conv,
    launch_gate,
    load_gated,
    load_own,
    load_raw,
    load_tile,
    planes_of,
    segment_rows,
    toeplitz64,
    widest_plane,
)
from evo_kernels.hyena_mr.tiles import fir3
from evo_kernels.launch import on_its_device, select
from evo_kernels.rows import load_taps


@triton.jit
def diagonal_sums(x, BT: tl.constexpr):
    """Sums over `r - s = j` and over `r - s = j - BT` of a tile `[BT, BT]`, each `[BT]`."""
    r = tl.arange(0, BT)[:, None]
    j = tl.arange(0, BT)[None, :]
    skewed = tl.gather(x, (r - j + BT) % BT, 1)
    return tl.sum(tl.where(r >= j, skewed, 0.0), 0), tl.sum(tl.where(r < j, skewed, 0.0), 0)


@triton.jit(do_not_specialize=["L", "SEG"])
def hyena_mr_backward_filter_kernel(
    z,
    g,
    gated_tail,
    d_h,
    L,
    SEG,
    D: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
    TILES: tl.constexpr,
    HAS_STATE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Sums over a program's rows of `g[t] z[t - j]` into d_h `[programs, P, K]`.

    Grid: (planes, sets of N / CB segments of SEG rows, batch). SEG is a multiple of 64 TILES.
    """
    BT: tl.constexpr = 64
    BLOCKS: tl.constexpr = (GROUP + CB - 1) // CB
    plane = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    in_group = (plane % BLOCKS) * CB + n % CB
    ok = (in_group < GROUP)[None, :]
    segment = tl.program_id(1) * (N // CB) + n // CB
    row = (segment * SEG)[None, :] + tl.arange(0, BT)[:, None]
    at = (b * tl.num_programs(0) + plane) * L * CB
    pz = z + at + (n % CB)[None, :]
    pg = g + at + (n % CB)[None, :]
    pgated = gated_tail + b * (K - 1) * D + (plane // BLOCKS * GROUP + in_group)[None, :]
    t0 = tl.zeros((BT, BT), tl.float32)
    t1 = tl.zeros((BT, BT), tl.float32)
    t2 = tl.zeros((BT, BT), tl.float32)
    for t in range(0, SEG // (BT * TILES)):
        r = row + t * (BT * TILES)
        # z of the two tiles before these and of these; each g meets the last three of its own.
        zs = (
            load_gated(pz, pgated, r - 2 * BT, L, ok, D, K, CB, False, HAS_STATE, UPCAST),
            load_gated(pz, pgated, r - BT, L, ok, D, K, CB, False, HAS_STATE, UPCAST),
        )
        for i in tl.static_range(TILES):
            zs = zs + (load_tile(pz, r + i * BT, L, ok, CB, False, UPCAST),)
            gt = load_tile(pg, r + i * BT, L, ok, CB, False, UPCAST)
            t0 = tl.dot(gt, tl.trans(zs[i + 2]), acc=t0)
            t1 = tl.dot(gt, tl.trans(zs[i + 1]), acc=t1)
            t2 = tl.dot(gt, tl.trans(zs[i]), acc=t2)
    low0, _ = diagonal_sums(t0, BT)
    low1, high1 = diagonal_sums(t1, BT)
    low2, high2 = diagonal_sums(t2, BT)
    j = tl.arange(0, BT)
    part = b * tl.num_programs(1) + tl.program_id(1)
    out = d_h + (part * tl.num_programs(0) + plane) * K
    tl.store(out + j, low0 + high1, mask=j < K)
    tl.store(out + BT + j, low1 + high2, mask=j + BT < K)
    tl.store(out + 2 * BT + j, low2, mask=j + 2 * BT < K)


@triton.jit
def transposed_fir3(d, w, u: tl.constexpr):
    """Gradient of the raw input of phase u."""
    return w[0] * d[u] + w[1] * d[u + 1] + w[2] * d[u + 2]


@triton.jit
def store_before(p, d, w, first, D: tl.constexpr):
    """Gradients of the two rows before the chunk, where phase 0 is its first row."""
    tl.store(p, w[2] * d[0], mask=first)
    tl.store(p + 3 * D, w[1] * d[0] + w[2] * d[1], mask=first)


@triton.jit(do_not_specialize=["L"])
def hyena_mr_backward_inputs_kernel(
    qkv,
    dy,
    y,
    dz,
    featurizer,
    skip,
    feature_tail,
    d_gated_end,
    dqkv,
    d_feature_tail,
    sums,
    L,
    D: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    CB: tl.constexpr,
    P: tl.constexpr,
    I: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    TILES: tl.constexpr,
    HAS_STATE: tl.constexpr,
    HAS_END: tl.constexpr,
):
    """dqkv, and a program's sums for the nine featurizer taps and skip, `[programs, 10, D]`.

    `y` = conv(h, z) and `dz` = corr(h, g) are planes. Grid: (blocks of BD channels, sets of TILES
    tiles of I * U rows, batch).
    """
    b = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * BD + tl.arange(0, BD)
    okc = c < D
    ok = okc[None, :]
    row = tl.program_id(1) * (TILES * I * U) + U * tl.arange(0, I)[:, None] + 0 * c[None, :]
    at = row.to(tl.int64)
    p = qkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pd = dqkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pdy = dy + b * L * D + at * D + c[None, :]
    ptail = feature_tail + b * 2 * 3 * D + c[None, :]
    planes = b * P * L * CB + at * CB + in_planes(c, L, GROUP, CB)[None, :]
    py = y + planes
    pdz = dz + planes
    wq = load_taps(featurizer, c, okc, 3)
    wk = load_taps(featurizer, c + D, okc, 3)
    wv = load_taps(featurizer, c + 2 * D, okc, 3)
    skips = tl.load(skip + c, mask=okc, other=0.0).to(tl.float32)[None, :]
    zero = tl.zeros((I, BD), tl.float32)
    wsums = (zero, zero, zero, zero, zero, zero, zero, zero, zero)
    ssum = zero
    for t in range(TILES):
        r = row + t * (I * U)
        q = load_raw(p, ptail, r, L, ok, D, U + 2, HAS_STATE, True)
        k = load_raw(p + D, ptail + D, r, L, ok, D, U + 2, HAS_STATE, True)
        v = load_raw(p + 2 * D, ptail + 2 * D, r, L, ok, D, U + 2, HAS_STATE, True)
        e = load_own(pdy, r, L, ok, D, U + 2)
        ys = load_own(py, r, L, ok, CB, U + 2)
        dzs = load_own(pdz, r, L, ok, CB, U + 2)
        dqs = ()
        dks = ()
        dvs = ()
        for u in tl.static_range(U + 2):
            kf = fir3(k, wk, u)
            vf = fir3(v, wv, u)
            g = e[u] * fir3(q, wq, u)
            z = kf * vf
            d = dzs[u] + skips * g
            if HAS_END:
                index = r + u - (L - K + 1)
                kept = (index >= 0) & (r + u < L) & ok
                pg = d_gated_end + (b * (K - 1) + index) * D + c[None, :]
                d += tl.load(pg, mask=kept, other=0.0).to(tl.float32)
            dqs = dqs + (e[u] * (ys[u] + skips * z),)
            dks = dks + (d * vf,)
            dvs = dvs + (d * kf,)
            if u < U:
                ssum += g * z
        for u in tl.static_range(U):
            inside = (r + u < L) & ok
            to = pd + u * 3 * D
            tl.store(to, transposed_fir3(dqs, wq, u).to(dqkv.dtype.element_ty), mask=inside)
            tl.store(to + D, transposed_fir3(dks, wk, u).to(dqkv.dtype.element_ty), mask=inside)
            tl.store(to + 2 * D, transposed_fir3(dvs, wv, u).to(dqkv.dtype.element_ty), mask=inside)
            wsums = (
                wsums[0] + dqs[u] * q[u + 2],
                wsums[1] + dqs[u] * q[u + 1],
                wsums[2] + dqs[u] * q[u],
                wsums[3] + dks[u] * k[u + 2],
                wsums[4] + dks[u] * k[u + 1],
                wsums[5] + dks[u] * k[u],
                wsums[6] + dvs[u] * v[u + 2],
                wsums[7] + dvs[u] * v[u + 1],
                wsums[8] + dvs[u] * v[u],
            )
        if HAS_STATE:
            pt = d_feature_tail + b * 2 * 3 * D + c[None, :] + 0 * r
            first = (r == 0) & ok
            store_before(pt, dqs, wq, first, D)
            store_before(pt + D, dks, wk, first, D)
            store_before(pt + 2 * D, dvs, wv, first, D)
        p += I * U * 3 * D
        pd += I * U * 3 * D
        pdy += I * U * D
        py += I * U * CB
        pdz += I * U * CB
    part = b * tl.num_programs(1) + tl.program_id(1)
    for j in tl.static_range(9):
        tl.store(sums + (part * 10 + j) * D + c, tl.sum(wsums[j], 0), mask=okc)
    tl.store(sums + (part * 10 + 9) * D + c, tl.sum(ssum, 0), mask=okc)


def launch_filter_gradient(
    z: Tensor, g: Tensor, gated_tail: Tensor | None, D: int, K: int, planes: Planes
) -> Tensor:
    """Gradient of h `[G, K]` in float32."""
    B, _, L, _ = z.shape
    config = select("hyena_mr_backward_filter", z.device)
    N = config.constants["N"]
    step = BLOCK * config.constants["TILES"]
    rows = segment_rows(B, L, planes.total, N // planes.width, step)
    grid = (planes.total, triton.cdiv(L, rows * (N // planes.width)), B)
    d_h = z.new_empty((B * grid[1], planes.groups, planes.blocks, K), dtype=torch.float32)
    hyena_mr_backward_filter_kernel[grid](
        z,
        g,
        z if gated_tail is None else gated_tail,
        d_h,
        L,
        rows,
        D=D,
        K=K,
        GROUP=planes.group_size,
        CB=planes.width,
        HAS_STATE=gated_tail is not None,
        UPCAST=interpreting(),
        **config.launch_arguments(),
    )
    return d_h.sum((0, 2))


@on_its_device
def launch_backward(
    dy: Tensor,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    d_gated_end: Tensor | None,
    needs_filter: bool = True,
    segment: int | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the backward kernels.

    Args:
        d_gated_end: Gradient of the new gated state, `[B, K - 1, D]` float32, or None.
        needs_filter: Whether to compute the gradient of h; it is empty otherwise.
        segment: Rows per segment of the convolutions; None chooses.

    Returns:
        Gradients of qkv, featurizer `[3D, 3]`, h, skip, and the incoming tail `[B, 2, 3D]` in
        float32 (zeros without a state).
    """
    B, L, D = dy.shape
    G, K = h.shape
    planes = planes_of(D, G, widest_plane(qkv.device))
    blocks = toeplitz64(h)
    z, g = launch_gate(qkv, featurizer, feature_tail, planes, dy)
    y = launch_conv(z, blocks, K, planes, gated_tail, segment=segment)
    dz = launch_conv(g, blocks, K, planes, reverse=True, segment=segment)
    d_h = qkv.new_empty(0, dtype=torch.float32)
    if needs_filter:
        d_h = launch_filter_gradient(z, g, gated_tail, D, K, planes)
    del z, g
    config = select("hyena_mr_backward_inputs", qkv.device)
    tile = config.constants["I"] * config.constants["U"] * config.constants["TILES"]
    grid = (triton.cdiv(D, config.constants["BD"]), triton.cdiv(L, tile), B)
    dqkv = torch.empty_like(qkv)
    d_feature_tail = qkv.new_zeros(
        (0 if feature_tail is None else B, 2, 3 * D), dtype=torch.float32
    )
    sums = qkv.new_empty((B * grid[1], 10, D), dtype=torch.float32)
    hyena_mr_backward_inputs_kernel[grid](
        qkv,
        dy,
        y,
        dz,
        featurizer,
        skip,
        qkv if feature_tail is None else feature_tail,
        skip if d_gated_end is None else d_gated_end,
        dqkv,
        d_feature_tail,
        sums,
        L,
        D=D,
        K=K,
        GROUP=planes.group_size,
        CB=planes.width,
        P=planes.total,
        HAS_STATE=feature_tail is not None,
        HAS_END=d_gated_end is not None,
        **config.launch_arguments(),
    )
    total = sums.sum(0)
    d_featurizer = (
        total[:9].view(3, 3, D).permute(0, 2, 1).clone(memory_format=torch.contiguous_format)
    )
    return dqkv, d_featurizer.view(3 * D, 3), d_h, total[9].clone(), d_feature_tail
