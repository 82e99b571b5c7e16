"""Hyena-MR forward: 3-tap featurizers, k * v, block-Toeplitz FIR on tensor cores, skip, gate.

With blocks of 64 rows, `A_b[i, j] = h[64 b + i - j]` and z = k * v (after the featurizers),

    y_i = A_0 z_i + A_1 z_{i-1} + A_2 z_{i-2}        (three blocks hold every filter of K <= 129)

A program marches over its rows and scatters: z_i enters shared memory once and feeds three dots,
whose sums for later blocks are carried as float32 accumulators. Taps enter the dots as pairs of
bfloat16 (value and remainder), z as one bfloat16; everything else is float32.

The columns of a tile are J segments of the sequence times CB channels of one filter group, so that
a dot is wide enough for the tensor cores although a group may have few channels.

A thread owns U consecutive rows of a column (its phases): the featurizer then is arithmetic between
registers, and U + 2 loads serve U rows.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_mr.configs  # noqa: F401  (fills the launch table)
from evo_kernels.backend import interpreting
from evo_kernels.launch import select

BLOCK = 64
MAX_TAPS = 2 * BLOCK + 1


@triton.jit
def interleave(phases, U: tl.constexpr, I: tl.constexpr, N: tl.constexpr):
    """Join U phases `[I, N]` into a tile `[U * I, N]` whose row U * i + u is phase u of i."""
    if U == 2:
        x = tl.join(phases[0], phases[1])
    elif U == 4:
        x = tl.join(tl.join(phases[0], phases[2]), tl.join(phases[1], phases[3]))
    else:
        x = tl.join(
            tl.join(tl.join(phases[0], phases[4]), tl.join(phases[2], phases[6])),
            tl.join(tl.join(phases[1], phases[5]), tl.join(phases[3], phases[7])),
        )
    return tl.reshape(tl.permute(tl.reshape(x, (I, N, U)), (0, 2, 1)), (U * I, N))


@triton.jit
def doubled(phases, U: tl.constexpr, I: tl.constexpr, N: tl.constexpr, UPCAST: tl.constexpr):
    """Join U phases into `[2 U * I, N]` with every row twice: the right operand for `toeplitz`."""
    if U == 2:
        x = tl.join(phases[0], phases[1])
    elif U == 4:
        x = tl.join(tl.join(phases[0], phases[2]), tl.join(phases[1], phases[3]))
    else:
        x = tl.join(
            tl.join(tl.join(phases[0], phases[4]), tl.join(phases[2], phases[6])),
            tl.join(tl.join(phases[1], phases[5]), tl.join(phases[3], phases[7])),
        )
    x = tl.join(x, x)
    x = tl.reshape(tl.permute(tl.reshape(x, (I, N, 2 * U)), (0, 2, 1)), (2 * U * I, N))
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def deinterleave(x, U: tl.constexpr, I: tl.constexpr, N: tl.constexpr):
    """Take a tile `[U * I, N]` apart into its U phases: the inverse of `interleave`."""
    x = tl.permute(tl.reshape(x, (I, U, N)), (0, 2, 1))
    if U == 2:
        a, b = tl.split(x)
        return (a, b)
    elif U == 4:
        even, odd = tl.split(tl.reshape(x, (I, N, 2, 2)))
        a, c = tl.split(even)
        b, d = tl.split(odd)
        return (a, b, c, d)
    else:
        even, odd = tl.split(tl.reshape(x, (I, N, 2, 2, 2)))
        ae, co = tl.split(even)
        bf, dh = tl.split(odd)
        a, e = tl.split(ae)
        c, g = tl.split(co)
        b, f = tl.split(bf)
        d, h = tl.split(dh)
        return (a, b, c, d, e, f, g, h)


@triton.jit
def toeplitz_kernel(h, blocks, K: tl.constexpr, TRANSPOSE: tl.constexpr):
    """Write block A_b of a filter, or its transpose, as bfloat16 pairs `[64, 128]`.

    Even columns hold the rounded taps and odd ones what rounding left over: one dot with a tile whose
    rows are doubled multiplies by both. Grid: (groups, 3).
    """
    BT: tl.constexpr = 64
    i = tl.arange(0, BT)[:, None]
    j = tl.arange(0, 2 * BT)[None, :]
    lag = tl.program_id(1) * BT + (j // 2 - i if TRANSPOSE else i - j // 2)
    inside = (lag >= 0) & (lag < K)
    taps = tl.load(h + tl.program_id(0) * K + lag, mask=inside, other=0.0).to(tl.float32)
    high = taps.to(tl.bfloat16).to(tl.float32)
    pair = tl.where(j % 2 == 0, high, taps - high)
    to = blocks + (tl.program_id(0) * 3 + tl.program_id(1)).to(tl.int64) * (2 * BT * BT)
    tl.store(to + i * (2 * BT) + j, pair.to(blocks.dtype.element_ty))


@triton.jit
def load_toeplitz(blocks, b: tl.constexpr, UPCAST: tl.constexpr):
    """Block b of one group as `toeplitz_kernel` wrote it."""
    at = b * 8192 + tl.arange(0, 64)[:, None] * 128 + tl.arange(0, 128)[None, :]
    x = tl.load(blocks + at)
    if UPCAST:
        x = x.to(tl.float32)
    return x


@triton.jit
def fir_taps(w, c, ok):
    """The three featurizer taps of channels c, each `[1, N]`."""
    w0 = tl.load(w + c * 3, mask=ok, other=0.0).to(tl.float32)[None, :]
    w1 = tl.load(w + c * 3 + 1, mask=ok, other=0.0).to(tl.float32)[None, :]
    w2 = tl.load(w + c * 3 + 2, mask=ok, other=0.0).to(tl.float32)[None, :]
    return (w0, w1, w2)


@triton.jit
def load_phases(
    p,
    tail,
    row,
    L,
    ok,
    D: tl.constexpr,
    U: tl.constexpr,
    HAS_STATE: tl.constexpr,
    EARLY: tl.constexpr = False,
):
    """Raw inputs of phases -2 .. U-1, as stored; rows before 0 come from the tail of the state.

    Args:
        p: Pointers of phase 0, `[I, N]`.
        tail: Pointers of row 0 of this block in the state, `[1, N]`.
        row: Row numbers of phase 0, `[I, N]`.
        EARLY: Whether phase 0 may lie before the chunk.
    """
    phases = ()
    for u in tl.static_range(-2, U):
        inside = (row + u < L) & ok
        if u < 0 or EARLY:
            inside = inside & (row + u >= 0)
        x = tl.load(p + u * 3 * D, mask=inside, other=0.0)
        if HAS_STATE and u < 0:
            before = (row + u < 0) & (row + u >= -2) & ok
            x += tl.load(tail + (row + u + 2) * 3 * D, mask=before, other=0.0)
        phases = phases + (x,)
    return phases


@triton.jit
def fir3(x, w, u: tl.constexpr):
    """Featurizer output of phase u from the raw phases."""
    return (
        w[0] * x[u + 2].to(tl.float32) + w[1] * x[u + 1].to(tl.float32) + w[2] * x[u].to(tl.float32)
    )


@triton.jit
def gated_before(gated, row, ok, D: tl.constexpr, K: tl.constexpr):
    """z of rows before the chunk, from the state; zero before that."""
    before = (row < 0) & (row > -K) & ok
    return tl.load(gated + (row + (K - 1)) * D, mask=before, other=0.0).to(tl.float32)


@triton.jit
def hyena_mr_forward_kernel(
    qkv,
    featurizer,
    blocks,
    skip,
    y,
    tail,
    gated,
    new_gated,
    L,
    SEG,
    D: tl.constexpr,
    K: tl.constexpr,
    GS: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
    U: tl.constexpr,
    HAS_STATE: tl.constexpr,
    KEEP_STATE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`y = q * (conv(h, z) + skip * z)`.

    Grid: (filter groups x blocks of CB channels, sets of N / CB segments of SEG rows, batch).
    """
    BT: tl.constexpr = 64
    I: tl.constexpr = BT // U
    BLOCKS: tl.constexpr = (GS + CB - 1) // CB
    group = tl.program_id(0) // BLOCKS
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    in_group = (tl.program_id(0) % BLOCKS) * CB + n % CB
    c = group * GS + in_group
    okc = in_group < GS
    ok = okc[None, :]
    row = ((tl.program_id(1) * (N // CB) + n // CB) * SEG)[None, :] + U * tl.arange(0, I)[:, None]

    at = row.to(tl.int64)
    pq = qkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    py = y + b * L * D + at * D + c[None, :]
    ptail = tail + b * 2 * 3 * D + c[None, :]
    pgated = gated + b * (K - 1) * D + c[None, :]

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
    # The two blocks before the segment, for what they leave to the first two.
    for t in range(-2, 0):
        p = pq + t * (BT * 3 * D)
        r = row + t * BT
        k = load_phases(p + D, ptail + D, r, L, ok, D, U, HAS_STATE, True)
        v = load_phases(p + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE, True)
        zs = ()
        for u in tl.static_range(U):
            z = tl.where(r + u >= 0, fir3(k, wk, u) * fir3(v, wv, u), 0.0)
            if HAS_STATE:
                z += gated_before(pgated, r + u, ok, D, K)
            zs = zs + (z.to(tl.bfloat16),)
        zb = doubled(zs, U, I, N, UPCAST)
        next1 = tl.dot(a1, zb, acc=next2)
        next2 = tl.dot(a2, zb)

    p = pq
    po = py
    for t in range(0, SEG // BT):
        r = row + t * BT
        k = load_phases(p + D, ptail + D, r, L, ok, D, U, HAS_STATE)
        v = load_phases(p + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE)
        q = load_phases(p, ptail, r, L, ok, D, U, HAS_STATE)
        zs = ()
        zs16 = ()
        for u in tl.static_range(U):
            z = fir3(k, wk, u) * fir3(v, wv, u)
            zs = zs + (z,)
            zs16 = zs16 + (z.to(tl.bfloat16),)
            if KEEP_STATE:
                kept = (r + u < L) & (r + u > L - K) & ok
                pn = new_gated + b * (K - 1) * D + (r + u - (L - K + 1)) * D + c[None, :]
                tl.store(pn, z.to(tl.bfloat16).to(tl.float32), mask=kept)
        zb = doubled(zs16, U, I, N, UPCAST)
        s = tl.dot(a0, zb, acc=next1)
        next1 = tl.dot(a1, zb, acc=next2)
        next2 = tl.dot(a2, zb)
        sums = deinterleave(s, U, I, N)
        for u in tl.static_range(U):
            out = fir3(q, wq, u) * (sums[u] + skips * zs[u])
            tl.store(po + u * D, out.to(y.dtype.element_ty), mask=(r + u < L) & ok)
        p += BT * 3 * D
        po += BT * D


def toeplitz_blocks(h: Tensor, transpose: bool = False) -> Tensor:
    """The three blocks of every filter, `[G, 3, 64, 128]` in bfloat16 pairs."""
    G, K = h.shape
    blocks = torch.empty(G, 3, BLOCK, 2 * BLOCK, dtype=torch.bfloat16, device=h.device)
    toeplitz_kernel[(G, 3)](h, blocks, K=K, TRANSPOSE=transpose)
    return blocks


def launch_forward(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    keep_state: bool,
    segment: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Run the forward kernel: y `[B, L, D]`, and the new gated state if asked for."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    G, K = h.shape
    config = select("hyena_mr_forward", qkv.device)
    N = config.constants["N"]
    group_size = D // G
    CB = min(triton.next_power_of_2(group_size), N)
    blocks = G * triton.cdiv(group_size, CB)
    SEG = segment or segment_rows(B, L, blocks, N // CB)
    y = torch.empty(B, L, D, dtype=qkv.dtype, device=qkv.device)
    new_gated = None
    if keep_state:
        new_gated = qkv.new_empty((B, K - 1, D), dtype=torch.float32)
        if L < K - 1:
            new_gated[:, : K - 1 - L] = 0.0 if gated is None else gated[:, L:]
    grid = (blocks, triton.cdiv(L, SEG * (N // CB)), B)
    hyena_mr_forward_kernel[grid](
        qkv,
        featurizer,
        toeplitz_blocks(h),
        skip,
        y,
        qkv if tail is None else tail,
        skip if gated is None else gated,
        skip if new_gated is None else new_gated,
        L,
        SEG,
        D=D,
        K=K,
        GS=group_size,
        CB=CB,
        HAS_STATE=tail is not None,
        KEEP_STATE=keep_state,
        UPCAST=interpreting(),
        **config.launch_arguments(),
    )
    return y, new_gated


def segment_rows(B: int, L: int, blocks: int, segments: int, wanted: int = 4 * 528) -> int:
    """Rows per segment: long enough to hide the two blocks of warm-up, short enough for a full GPU.

    A pure function of the sizes, so that every run launches the same work.
    """
    rows = L * B * blocks // (wanted * segments)
    rows = min(max(rows, 512), 2048)
    rows = triton.next_power_of_2(rows)
    return min(rows, triton.cdiv(L, BLOCK * segments) * BLOCK)


@triton.jit
def load_row(x, tail, t, L, ok, D: tl.constexpr, HAS_STATE: tl.constexpr):
    """Raw inputs at rows t (a tile `[T, 1]`), from the state where t < 0."""
    value = tl.load(x + t * (3 * D), mask=(t >= 0) & (t < L) & ok, other=0.0).to(tl.float32)
    if HAS_STATE:
        before = (t < 0) & (t >= -2) & ok
        value += tl.load(tail + (t + 2) * (3 * D), mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def row_fir3(x, tail, w, t, L, ok, D: tl.constexpr, HAS_STATE: tl.constexpr):
    """Featurizer outputs at rows t."""
    return (
        w[0] * load_row(x, tail, t, L, ok, D, HAS_STATE)
        + w[1] * load_row(x, tail, t - 1, L, ok, D, HAS_STATE)
        + w[2] * load_row(x, tail, t - 2, L, ok, D, HAS_STATE)
    )


@triton.jit
def hyena_mr_step_forward_kernel(
    qkv,
    featurizer,
    h,
    skip,
    y,
    tail,
    gated,
    new_tail,
    new_gated,
    L,
    D: tl.constexpr,
    K: tl.constexpr,
    GS: tl.constexpr,
    T: tl.constexpr,
    R: tl.constexpr,
    BD: tl.constexpr,
    HAS_STATE: tl.constexpr,
    KEEP_STATE: tl.constexpr,
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
    px = tail + b * 2 * 3 * D + c[None, :]
    pg = gated + b * (K - 1) * D + c[None, :]
    taps = h + (c // GS * K)[None, :]
    k = row_fir3(x + D, px + D, fir_taps(featurizer, c + D, okc), t, L, ok, D, HAS_STATE)
    v = row_fir3(
        x + 2 * D, px + 2 * D, fir_taps(featurizer, c + 2 * D, okc), t, L, ok, D, HAS_STATE
    )
    q = row_fir3(x, px, fir_taps(featurizer, c, okc), t, L, ok, D, HAS_STATE)
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
    if KEEP_STATE:
        pn = new_gated + b * (K - 1) * D + c[None, :]
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
            pt = new_tail + b * 2 * 3 * D + c[None, :] + block * D + two * (3 * D)
            tl.store(pt, raw.to(new_tail.dtype.element_ty), mask=ok & (two >= 0))


def launch_step_forward(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    keep_state: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the kernel for short chunks: y, and the new tail and gated state if asked for."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    G, K = h.shape
    config = select("hyena_mr_step_forward", qkv.device)
    y = torch.empty(B, L, D, dtype=qkv.dtype, device=qkv.device)
    new_tail = new_gated = None
    if keep_state:
        new_tail = qkv.new_empty((B, 2, 3 * D))
        new_gated = qkv.new_empty((B, K - 1, D), dtype=torch.float32)
    grid = (triton.cdiv(D, config.constants["BD"]), B)
    hyena_mr_step_forward_kernel[grid](
        qkv,
        featurizer,
        h,
        skip,
        y,
        qkv if tail is None else tail,
        skip if gated is None else gated,
        qkv if new_tail is None else new_tail,
        skip if new_gated is None else new_gated,
        L,
        D=D,
        K=K,
        GS=D // G,
        T=triton.next_power_of_2(L),
        R=triton.next_power_of_2(max(K - 1, 1)),
        HAS_STATE=tail is not None,
        KEEP_STATE=keep_state,
        **config.launch_arguments(),
    )
    return y, new_tail, new_gated
