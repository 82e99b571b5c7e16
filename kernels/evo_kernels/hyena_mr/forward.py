"""Hyena-MR forward: 3-tap featurizers, k * v, block-Toeplitz FIR on tensor cores, skip, gate.

With blocks of 64 rows, `A_b[i, j] = h[64 b + i - j]` and z = k * v (after the featurizers),

    y_i = A_0 z_i + A_1 z_{i-1} + A_2 z_{i-2}        (three blocks hold every filter of K <= 129)

Two kernels. The gating kernel reads wide rows and writes z in bfloat16 into planes `[P, L, CB]`, one
for the CB channels of a filter group: a tile of one group then is contiguous, where rows of 16
channels taken straight from `[B, L, 3D]` would use 32 bytes of every memory line. The convolution
kernel marches over its rows and scatters: z_i feeds three dots whose sums for later blocks are
carried as float32 accumulators. Taps enter the dots as pairs of bfloat16 (value and remainder), z as
one bfloat16; everything else is float32.

The columns of a tile are J segments of the sequence times the CB channels of one plane, so that a dot
is wide enough for the tensor cores although a group may have few channels. A thread owns U
consecutive rows of a column (its phases): a featurizer then is arithmetic between registers, and
U + 2 loads serve U rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_mr.configs  # noqa: F401  (fills the launch table)
from evo_kernels.backend import interpreting
from evo_kernels.launch import select

BLOCK = 64


class Planes(NamedTuple):
    """How channels lie in planes: `blocks` planes of `width` channels for each filter group."""

    groups: int
    group_size: int
    width: int
    blocks: int

    @property
    def total(self) -> int:
        """Planes of all groups."""
        return self.groups * self.blocks


def planes_of(D: int, G: int, widest: int) -> Planes:
    """Planes of at most `widest` channels, a power of two."""
    width = min(triton.next_power_of_2(D // G), widest)
    return Planes(G, D // G, width, triton.cdiv(D // G, width))


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
def in_planes(c, L, GS: tl.constexpr, CB: tl.constexpr):
    """Offset of row 0 of channels c in planes `[P, L, CB]`."""
    if CB >= GS:
        return (c // GS).to(tl.int64) * (L * CB) + c % GS
    else:
        plane = c // GS * ((GS + CB - 1) // CB) + c % GS // CB
        return plane.to(tl.int64) * (L * CB) + c % GS % CB


@triton.jit
def hyena_mr_gate_kernel(
    qkv,
    dy,
    featurizer,
    tail,
    z,
    g,
    L,
    D: tl.constexpr,
    GS: tl.constexpr,
    CB: tl.constexpr,
    P: tl.constexpr,
    I: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    TILES: tl.constexpr,
    WITH_G: tl.constexpr,
    HAS_STATE: tl.constexpr,
):
    """z = k * v and, for the backward, g = dy * q (after the featurizers) into planes.

    Grid: (blocks of BD channels, sets of TILES tiles of I * U rows, batch).
    """
    b = tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * BD + tl.arange(0, BD)
    okc = c < D
    ok = okc[None, :]
    row = tl.program_id(1) * (TILES * I * U) + U * tl.arange(0, I)[:, None] + 0 * c[None, :]
    at = row.to(tl.int64)
    p = qkv + b * L * 3 * D + at * (3 * D) + c[None, :]
    pdy = dy + b * L * D + at * D + c[None, :]
    ptail = tail + b * 2 * 3 * D + c[None, :]
    to = b * P * L * CB + at * CB + in_planes(c, L, GS, CB)[None, :]
    pz = z + to
    pg = g + to
    wk = fir_taps(featurizer, c + D, okc)
    wv = fir_taps(featurizer, c + 2 * D, okc)
    if WITH_G:
        wq = fir_taps(featurizer, c, okc)
    for t in range(TILES):
        r = row + t * (I * U)
        k = load_phases(p + D, ptail + D, r, L, ok, D, U, HAS_STATE)
        v = load_phases(p + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE)
        if WITH_G:
            q = load_phases(p, ptail, r, L, ok, D, U, HAS_STATE)
            e = load_own(pdy, r, L, ok, D, 0, U)
        for u in tl.static_range(U):
            inside = (r + u < L) & ok
            product = fir3(k, wk, u) * fir3(v, wv, u)
            tl.store(pz + u * CB, product.to(z.dtype.element_ty), mask=inside)
            if WITH_G:
                product = e[u] * fir3(q, wq, u)
                tl.store(pg + u * CB, product.to(g.dtype.element_ty), mask=inside)
        p += I * U * 3 * D
        pdy += I * U * D
        pz += I * U * CB
        pg += I * U * CB


@triton.jit
def load_own(p, row, L, ok, STRIDE: tl.constexpr, FIRST: tl.constexpr, END: tl.constexpr):
    """Phases FIRST .. END-1 of a tile without rows before the chunk, in float32."""
    phases = ()
    for u in tl.static_range(FIRST, END):
        x = tl.load(p + u * STRIDE, mask=(row + u < L) & ok, other=0.0)
        phases = phases + (x.to(tl.float32),)
    return phases


@triton.jit
def load_tile(x, row, L, ok, CB: tl.constexpr, REVERSE: tl.constexpr, UPCAST: tl.constexpr):
    """Rows of a plane, or of the reversed plane; zero outside the chunk."""
    inside = (row >= 0) & (row < L) & ok
    if REVERSE:
        row = L - 1 - row
    tile = tl.load(x + row.to(tl.int64) * CB, mask=inside, other=0.0)
    if UPCAST:
        tile = tile.to(tl.float32)
    return tile


@triton.jit
def hyena_mr_conv_kernel(
    x,
    blocks,
    y,
    qkv,
    featurizer,
    skip,
    tail,
    gated,
    L,
    SEG,
    D: tl.constexpr,
    K: tl.constexpr,
    GS: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
    U: tl.constexpr,
    GATE: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_STATE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`y = q * (conv(h, x) + skip * x)` into `[B, L, D]` (GATE), or `conv(h, x)` into planes.

    REVERSE filters the reversed sequence: the transposed filter. Grid: (planes, sets of N / CB
    segments of SEG rows, batch).
    """
    BT: tl.constexpr = 64
    I: tl.constexpr = BT // U
    BLOCKS: tl.constexpr = (GS + CB - 1) // CB
    plane = tl.program_id(0)
    group = plane // BLOCKS
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    in_group = (plane % BLOCKS) * CB + n % CB
    c = group * GS + in_group
    okc = in_group < GS
    ok = okc[None, :]
    start = ((tl.program_id(1) * (N // CB) + n // CB) * SEG)[None, :]
    # Every row twice, for the pairs of taps.
    double = start + (tl.arange(0, 2 * BT) // 2)[:, None]
    x += (b * tl.num_programs(0) + plane) * L * CB
    px = x + (n % CB)[None, :]

    blocks += group.to(tl.int64) * (3 * 2 * BT * BT)
    a0 = load_toeplitz(blocks, 0, UPCAST)
    a1 = load_toeplitz(blocks, 1, UPCAST)
    a2 = load_toeplitz(blocks, 2, UPCAST)
    next1 = tl.zeros((BT, N), tl.float32)
    next2 = tl.zeros((BT, N), tl.float32)
    # The two blocks before the segment, for what they leave to the first two.
    for t in range(-2, 0):
        r = double + t * BT
        z = load_tile(px, r, L, ok, CB, REVERSE, UPCAST)
        if HAS_STATE:
            before = (r < 0) & (r > -K) & ok
            past = gated + (b * (K - 1) + r + (K - 1)) * D + c[None, :]
            z += tl.load(past, mask=before, other=0.0).to(z.dtype)
        next1 = tl.dot(a1, z, acc=next2)
        next2 = tl.dot(a2, z)

    if GATE:
        row = start + U * tl.arange(0, I)[:, None]
        at = row.to(tl.int64)
        pq = qkv + b * L * 3 * D + at * (3 * D) + c[None, :]
        py = y + b * L * D + at * D + c[None, :]
        ptail = tail + b * 2 * 3 * D + c[None, :]
        wq = fir_taps(featurizer, c, okc)
        skips = tl.load(skip + c, mask=okc, other=0.0).to(tl.float32)[None, :]
        pz = px + at * CB
    else:
        row = start + tl.arange(0, BT)[:, None]
        py = y + (b * tl.num_programs(0) + plane) * L * CB + (n % CB)[None, :]
    for t in range(0, SEG // BT):
        z = load_tile(px, double + t * BT, L, ok, CB, REVERSE, UPCAST)
        s = tl.dot(a0, z, acc=next1)
        next1 = tl.dot(a1, z, acc=next2)
        next2 = tl.dot(a2, z)
        r = row + t * BT
        if GATE:
            q = load_phases(pq, ptail, r, L, ok, D, U, HAS_STATE)
            zs = load_own(pz, r, L, ok, CB, 0, U)
            sums = deinterleave(s, U, I, N)
            for u in tl.static_range(U):
                out = fir3(q, wq, u) * (sums[u] + skips * zs[u])
                tl.store(py + u * D, out.to(y.dtype.element_ty), mask=(r + u < L) & ok)
            pq += BT * 3 * D
            pz += BT * CB
            py += BT * D
        else:
            inside = (r < L) & ok
            if REVERSE:
                r = L - 1 - r
            tl.store(py + r.to(tl.int64) * CB, s.to(y.dtype.element_ty), mask=inside)


def toeplitz_blocks(h: Tensor, transpose: bool = False) -> Tensor:
    """The three blocks of every filter, `[G, 3, 64, 128]` in bfloat16 pairs."""
    G, K = h.shape
    blocks = torch.empty(G, 3, BLOCK, 2 * BLOCK, dtype=torch.bfloat16, device=h.device)
    toeplitz_kernel[(G, 3)](h, blocks, K=K, TRANSPOSE=transpose)
    return blocks


def plane_buffer(qkv: Tensor, planes: Planes) -> Tensor:
    """Memory for one value per batch, position and channel: `[B, P, L, CB]` in bfloat16."""
    B, L, _ = qkv.shape
    return torch.empty(B, planes.total, L, planes.width, dtype=torch.bfloat16, device=qkv.device)


def launch_gate(
    qkv: Tensor,
    featurizer: Tensor,
    tail: Tensor | None,
    planes: Planes,
    dy: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """z in planes and, given dy, g = dy * q in planes."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    config = select("hyena_mr_gate", qkv.device)
    tile = config.constants["I"] * config.constants["U"] * config.constants["TILES"]
    z = plane_buffer(qkv, planes)
    g = z if dy is None else plane_buffer(qkv, planes)
    hyena_mr_gate_kernel[(triton.cdiv(D, config.constants["BD"]), triton.cdiv(L, tile), B)](
        qkv,
        qkv if dy is None else dy,
        featurizer,
        qkv if tail is None else tail,
        z,
        g,
        L,
        D=D,
        GS=planes.group_size,
        CB=planes.width,
        P=planes.total,
        WITH_G=dy is not None,
        HAS_STATE=tail is not None,
        **config.launch_arguments(),
    )
    return z, g


def launch_conv(
    x: Tensor,
    blocks: Tensor,
    K: int,
    planes: Planes,
    *,
    qkv: Tensor,
    gated: Tensor | None = None,
    gate: tuple[Tensor, Tensor, Tensor | None] | None = None,
    reverse: bool = False,
    segment: int | None = None,
) -> Tensor:
    """Filter planes; with `gate` (featurizer, skip, tail) the whole output `[B, L, D]`."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    config = select("hyena_mr_conv", qkv.device)
    N = config.constants["N"]
    rows = segment or segment_rows(B, L, planes.total, N // planes.width)
    if gate is None:
        y = plane_buffer(qkv, planes)
        featurizer = skip = tail = x
    else:
        y = torch.empty(B, L, D, dtype=qkv.dtype, device=qkv.device)
        featurizer, skip = gate[:2]
        tail = qkv if gate[2] is None else gate[2]
    hyena_mr_conv_kernel[(planes.total, triton.cdiv(L, rows * (N // planes.width)), B)](
        x,
        blocks,
        y,
        qkv,
        featurizer,
        skip,
        tail,
        x if gated is None else gated,
        L,
        rows,
        D=D,
        K=K,
        GS=planes.group_size,
        CB=planes.width,
        GATE=gate is not None,
        REVERSE=reverse,
        HAS_STATE=gated is not None,
        UPCAST=interpreting(),
        **config.launch_arguments(),
    )
    return y


def widest_plane(device: torch.device) -> int:
    """Channels that a tile of the convolution has room for."""
    return select("hyena_mr_conv", device).constants["N"]


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
    """Run the forward kernels: y `[B, L, D]`, and the new gated state if asked for."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    G, K = h.shape
    planes = planes_of(D, G, widest_plane(qkv.device))
    z, _ = launch_gate(qkv, featurizer, tail, planes)
    y = launch_conv(
        z,
        toeplitz_blocks(h),
        K,
        planes,
        qkv=qkv,
        gated=gated,
        gate=(featurizer, skip, tail),
        segment=segment,
    )
    if not keep_state:
        return y, None
    kept = z[:, :, -(K - 1) :].float()  # [B, P, min(L, K - 1), CB]
    kept = kept.view(B, G, planes.blocks, -1, planes.width).permute(0, 3, 1, 2, 4)
    kept = kept.reshape(B, -1, G, planes.blocks * planes.width)[..., : planes.group_size]
    kept = kept.reshape(B, -1, D)
    if L < K - 1:
        before = kept.new_zeros(B, K - 1 - L, D) if gated is None else gated[:, L:]
        kept = torch.cat([before, kept], dim=1)
    return y, kept


def segment_rows(B: int, L: int, planes: int, segments: int, wanted: int = 2112) -> int:
    """Rows per segment: long enough to hide the two blocks of warm-up, short enough for a full GPU.

    A pure function of the sizes, so that every run launches the same work.
    """
    rows = L * B * planes // (wanted * segments)
    rows = triton.next_power_of_2(min(max(rows, 512), 2048))
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
