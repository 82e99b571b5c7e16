"""Planes: one filter group after the other in memory, and the Toeplitz convolution over them.

The gating kernel reads wide rows of `[B, L, 3D]` and writes k * v and dy * q in bfloat16 into
planes `[P, L, CB]`, one for the CB channels of a filter group. A tile of one group then is contiguous,
where rows of 16 channels of `[B, L, D]` would use 32 bytes of every memory line, which costs more than
half of the bandwidth.

With blocks of 64 rows and `A_b[i, j] = h[64 b + i - j]`,

    y_i = A_0 x_i + A_1 x_{i-1} + A_2 x_{i-2}        (three blocks hold every filter of K <= 129)

The convolution kernel marches over its rows and scatters: x_i feeds three dots whose sums for later
blocks are carried as float32 accumulators. Taps enter as pairs of bfloat16 (value and remainder). The
columns of a tile are J segments of the sequence times the CB channels of one plane, so that a dot is
wide enough for the tensor cores although a group may have few channels.

In the gating kernel a thread owns U consecutive rows of a column (its phases): a featurizer then is
arithmetic between registers, and U + 2 loads serve U rows.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.hyena_mr.configs  # noqa: F401  (fills the launch table)
from evo_kernels.backend import interpreting
from evo_kernels.hyena_mr.tiles import fir3
from evo_kernels.launch import select
from evo_kernels.rows import load_taps

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
def toeplitz64_kernel(h, blocks, K: tl.constexpr):
    """Write block A_b of a filter as bfloat16 `[2, 64, 64]`: rounded taps, then what that left over.

    Grid: (groups, 3).
    """
    BT: tl.constexpr = 64
    i = tl.arange(0, BT)[:, None]
    j = tl.arange(0, BT)[None, :]
    lag = tl.program_id(1) * BT + i - j
    inside = (lag >= 0) & (lag < K)
    taps = tl.load(h + tl.program_id(0) * K + lag, mask=inside, other=0.0).to(tl.float32)
    high = taps.to(tl.bfloat16)
    to = blocks + (tl.program_id(0) * 3 + tl.program_id(1)).to(tl.int64) * (2 * BT * BT)
    to += i * BT + j
    tl.store(to, high)
    tl.store(to + BT * BT, (taps - high.to(tl.float32)).to(tl.bfloat16))


@triton.jit
def load_toeplitz64(blocks, b: tl.constexpr, UPCAST: tl.constexpr):
    """Block b of one group as `toeplitz64_kernel` wrote it: taps and remainders, each `[64, 64]`."""
    at = b * 8192 + tl.arange(0, 64)[:, None] * 64 + tl.arange(0, 64)[None, :]
    high = tl.load(blocks + at)
    low = tl.load(blocks + at + 4096)
    if UPCAST:
        high = high.to(tl.float32)
        low = low.to(tl.float32)
    return high, low


@triton.jit
def load_raw(
    p,
    feature_tail,
    row,
    L,
    ok,
    D: tl.constexpr,
    COUNT: tl.constexpr,
    HAS_STATE: tl.constexpr,
    FLOAT32: tl.constexpr = False,
):
    """Raw inputs of phases -2 .. COUNT-1, as stored or in float32; rows before 0 come from the state.

    Args:
        p: Pointers of phase 0, `[I, N]`.
        feature_tail: Pointers of row 0 of this block in the state, `[1, N]`.
        row: Row numbers of phase 0, `[I, N]`.
    """
    phases = ()
    for u in tl.static_range(-2, COUNT):
        inside = (row + u < L) & ok
        if u < 0:
            inside = inside & (row + u >= 0)
        x = tl.load(p + u * 3 * D, mask=inside, other=0.0)
        if HAS_STATE and u < 0:
            before = (row + u < 0) & ok
            x += tl.load(feature_tail + (row + u + 2) * 3 * D, mask=before, other=0.0)
        if FLOAT32:
            x = x.to(tl.float32)
        phases = phases + (x,)
    return phases


@triton.jit
def in_planes(c, L, GROUP: tl.constexpr, CB: tl.constexpr):
    """Offset of row 0 of channels c in planes `[P, L, CB]`."""
    if CB >= GROUP:
        return (c // GROUP).to(tl.int64) * (L * CB) + c % GROUP
    else:
        plane = c // GROUP * ((GROUP + CB - 1) // CB) + c % GROUP // CB
        return plane.to(tl.int64) * (L * CB) + c % GROUP % CB


@triton.jit(do_not_specialize=["L"])
def hyena_mr_gate_kernel(
    qkv,
    dy,
    featurizer,
    feature_tail,
    z,
    g,
    L,
    D: tl.constexpr,
    GROUP: tl.constexpr,
    CB: tl.constexpr,
    P: tl.constexpr,
    I: tl.constexpr,
    U: tl.constexpr,
    BD: tl.constexpr,
    TILES: tl.constexpr,
    HAS_STATE: tl.constexpr,
):
    """z = k * v and g = dy * q (after the featurizers) into planes.

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
    ptail = feature_tail + b * 2 * 3 * D + c[None, :]
    to = b * P * L * CB + at * CB + in_planes(c, L, GROUP, CB)[None, :]
    pz = z + to
    pg = g + to
    wk = load_taps(featurizer, c + D, okc, 3)
    wv = load_taps(featurizer, c + 2 * D, okc, 3)
    wq = load_taps(featurizer, c, okc, 3)
    for t in range(TILES):
        r = row + t * (I * U)
        k = load_raw(p + D, ptail + D, r, L, ok, D, U, HAS_STATE)
        v = load_raw(p + 2 * D, ptail + 2 * D, r, L, ok, D, U, HAS_STATE)
        q = load_raw(p, ptail, r, L, ok, D, U, HAS_STATE)
        e = load_own(pdy, r, L, ok, D, U)
        for u in tl.static_range(U):
            inside = (r + u < L) & ok
            product = fir3(k, wk, u) * fir3(v, wv, u)
            tl.store(pz + u * CB, product.to(z.dtype.element_ty), mask=inside)
            product = e[u] * fir3(q, wq, u)
            tl.store(pg + u * CB, product.to(g.dtype.element_ty), mask=inside)
        p += I * U * 3 * D
        pdy += I * U * D
        pz += I * U * CB
        pg += I * U * CB


@triton.jit
def load_own(p, row, L, ok, STRIDE: tl.constexpr, COUNT: tl.constexpr):
    """Phases 0 .. COUNT-1 of a tile without rows before the chunk, in float32."""
    phases = ()
    for u in tl.static_range(COUNT):
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
def load_gated(x, gated_tail, row, L, ok, D: tl.constexpr, K: tl.constexpr, CB: tl.constexpr,
               REVERSE: tl.constexpr, HAS_STATE: tl.constexpr, UPCAST: tl.constexpr):  # fmt: skip
    """Rows of a plane, and of the state before the chunk."""
    tile = load_tile(x, row, L, ok, CB, REVERSE, UPCAST)
    if HAS_STATE:
        before = (row < 0) & (row > -K) & ok
        past = tl.load(gated_tail + (row + (K - 1)) * D, mask=before, other=0.0)
        tile += past.to(tile.dtype)
    return tile


@triton.jit(do_not_specialize=["L", "SEG"])
def hyena_mr_conv_kernel(
    x,
    blocks,
    gated_tail,
    y,
    L,
    SEG,
    D: tl.constexpr,
    K: tl.constexpr,
    GROUP: tl.constexpr,
    CB: tl.constexpr,
    N: tl.constexpr,
    REVERSE: tl.constexpr,
    HAS_STATE: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """`y = conv(h, x)` over planes; REVERSE filters the reversed sequence (the transposed filter).

    Grid: (planes, sets of N / CB segments of SEG rows, batch). `gated_tail` is x before row 0.
    """
    BT: tl.constexpr = 64
    BLOCKS: tl.constexpr = (GROUP + CB - 1) // CB
    plane = tl.program_id(0)
    b = tl.program_id(2).to(tl.int64)
    n = tl.arange(0, N)
    in_group = (plane % BLOCKS) * CB + n % CB
    ok = (in_group < GROUP)[None, :]
    segment = tl.program_id(1) * (N // CB) + n // CB
    rows = (segment * SEG)[None, :] + tl.arange(0, BT)[:, None]
    at = (b * tl.num_programs(0) + plane) * L * CB
    px = x + at + (n % CB)[None, :]
    py = y + at + (n % CB)[None, :]
    pgated = gated_tail + b * (K - 1) * D + (plane // BLOCKS * GROUP + in_group)[None, :]
    blocks += (plane // BLOCKS).to(tl.int64) * (3 * 2 * BT * BT)
    h0, l0 = load_toeplitz64(blocks, 0, UPCAST)
    h1, l1 = load_toeplitz64(blocks, 1, UPCAST)
    h2, l2 = load_toeplitz64(blocks, 2, UPCAST)
    next1 = tl.zeros((BT, N), tl.float32)
    next2 = tl.zeros((BT, N), tl.float32)
    # The two blocks before the segment, for what they leave to the first two.
    for t in range(-2, 0):
        tile = load_gated(px, pgated, rows + t * BT, L, ok, D, K, CB, REVERSE, HAS_STATE, UPCAST)
        next1 = tl.dot(l1, tile, acc=tl.dot(h1, tile, acc=next2))
        next2 = tl.dot(l2, tile, acc=tl.dot(h2, tile))
    for t in range(0, SEG // BT):
        r = rows + t * BT
        tile = load_tile(px, r, L, ok, CB, REVERSE, UPCAST)
        sums = tl.dot(l0, tile, acc=tl.dot(h0, tile, acc=next1))
        next1 = tl.dot(l1, tile, acc=tl.dot(h1, tile, acc=next2))
        next2 = tl.dot(l2, tile, acc=tl.dot(h2, tile))
        inside = (r < L) & ok
        if REVERSE:
            r = L - 1 - r
        tl.store(py + r.to(tl.int64) * CB, sums.to(y.dtype.element_ty), mask=inside)


def toeplitz64(h: Tensor) -> Tensor:
    """The three blocks of every filter in pairs of bfloat16, `[G, 3, 2, 64, 64]`."""
    G, K = h.shape
    blocks = torch.empty(G, 3, 2, BLOCK, BLOCK, dtype=torch.bfloat16, device=h.device)
    toeplitz64_kernel[(G, 3)](h, blocks, K=K)
    return blocks


def plane_buffer(qkv: Tensor, planes: Planes) -> Tensor:
    """Memory for one value per batch, position and channel: `[B, P, L, CB]` in bfloat16."""
    B, L, _ = qkv.shape
    return torch.empty(B, planes.total, L, planes.width, dtype=torch.bfloat16, device=qkv.device)


def launch_gate(
    qkv: Tensor,
    featurizer: Tensor,
    feature_tail: Tensor | None,
    planes: Planes,
    dy: Tensor,
) -> tuple[Tensor, Tensor]:
    """z = k * v and g = dy * q in planes."""
    B, L, D = qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3
    config = select("hyena_mr_gate", qkv.device)
    tile = config.constants["I"] * config.constants["U"] * config.constants["TILES"]
    z, g = plane_buffer(qkv, planes), plane_buffer(qkv, planes)
    hyena_mr_gate_kernel[(triton.cdiv(D, config.constants["BD"]), triton.cdiv(L, tile), B)](
        qkv,
        dy,
        featurizer,
        qkv if feature_tail is None else feature_tail,
        z,
        g,
        L,
        D=D,
        GROUP=planes.group_size,
        CB=planes.width,
        P=planes.total,
        HAS_STATE=feature_tail is not None,
        **config.launch_arguments(),
    )
    return z, g


def launch_conv(
    x: Tensor,
    blocks: Tensor,
    K: int,
    planes: Planes,
    gated_tail: Tensor | None = None,
    *,
    reverse: bool = False,
    segment: int | None = None,
) -> Tensor:
    """Filter planes `[B, P, L, CB]`, forwards or in reverse; `gated_tail` `[B, K - 1, D]` comes before."""
    B, _, L, _ = x.shape
    config = select("hyena_mr_conv", x.device)
    N = config.constants["N"]
    rows = segment or segment_rows(B, L, planes.total, N // planes.width)
    y = torch.empty_like(x)
    hyena_mr_conv_kernel[(planes.total, triton.cdiv(L, rows * (N // planes.width)), B)](
        x,
        blocks,
        x if gated_tail is None else gated_tail,
        y,
        L,
        rows,
        D=planes.groups * planes.group_size,
        K=K,
        GROUP=planes.group_size,
        CB=planes.width,
        REVERSE=reverse,
        HAS_STATE=gated_tail is not None,
        UPCAST=interpreting(),
        **config.launch_arguments(),
    )
    return y


def widest_plane(device: torch.device) -> int:
    """Channels that a tile of every kernel over planes has room for."""
    kernels = ("hyena_mr_conv", "hyena_mr_backward_filter")
    return min(select(kernel, device).constants["N"] for kernel in kernels)


# Programs that run at once: two on each of the 132 multiprocessors of an H100 or H200. Another GPU
# gets the same segments: a sum's order must not depend on the machine.
_AT_ONCE = 264
# What a program costs before its first tile, in tiles.
_START = 3


def segment_rows(B: int, L: int, planes: int, segments: int, step: int = BLOCK) -> int:
    """Rows per segment, a multiple of `step`: the fewest tiles one after the other.

    A pure function of the sizes, so that every run launches the same work.
    """

    def rows_of(sets: int) -> int:
        return triton.cdiv(triton.cdiv(L, sets * segments), step) * step

    def tiles_in_turn(sets: int) -> int:
        rows = rows_of(sets)
        programs = B * planes * triton.cdiv(L, rows * segments)
        return triton.cdiv(programs, _AT_ONCE) * (rows // BLOCK + _START)

    most = min(64, triton.cdiv(L, step * segments))
    return rows_of(min(range(1, most + 1), key=tiles_in_turn))
