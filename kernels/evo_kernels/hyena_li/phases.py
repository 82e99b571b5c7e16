"""Phases of a tile in the backward of Hyena-LI: loads, products, and the featurizer's adjoint.

A tile is eight phases `[M, C/8]` in float32 (phase p holds the positions 8 g + p), taken apart as it is
loaded. The transposed featurizer needs gradients up to two positions ahead: within a group of eight from
the next phases, beyond it from the neighbour in the warp or, between warps and tiles, from `edges`.
"""

# Kernels are written in Triton's language, whose values have no Python types.
# mypy: disallow-untyped-defs=False, disable-error-code="assignment"

from __future__ import annotations

import triton
import triton.language as tl

from evo_kernels.hyena_li.tiles import join8, split8


@triton.jit
def halves(words):
    """The two bfloat16 of each 32-bit word, as fp32."""
    low = (words << 16).to(tl.float32, bitcast=True)
    high = (words & -65536).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def load8(row, t0, L, M: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr):
    """Positions `t0 ...` of a row as eight phases `[M, C/8]` in fp32, zero from L on.

    The tile's start goes into the pointer, so that what remains are offsets known at compile time.
    """
    if row.dtype.element_ty == tl.bfloat16:
        # As words: two instructions take a pair apart.
        word = tl.arange(0, M)[:, None] * (C // 2) + tl.arange(0, C // 2)[None, :]
        start = (row + t0).to(tl.pointer_type(tl.int32), bitcast=True)
        x = tl.load(start + word, mask=word // 4 * 8 < L - t0, other=0)
        even, odd = tl.split(tl.reshape(x, (M, C // 8, 2, 2)))
        x01, x45 = tl.split(even)
        x23, x67 = tl.split(odd)
        phases = halves(x01) + halves(x23) + halves(x45) + halves(x67)
    else:
        offset = tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        x = tl.load(row + t0 + offset, mask=offset // 8 * 8 < L - t0, other=0.0)
        phases = split8(x.to(tl.float32))
    if RAGGED:
        # The padding of a row may hold anything.
        group = tl.arange(0, M)[:, None] * C + tl.arange(0, C // 8)[None, :] * 8
        inside = ()
        for p in tl.static_range(8):
            inside = inside + (tl.where(group + p < L - t0, phases[p], 0.0),)
        return inside
    else:
        return phases


@triton.jit
def load_before8(
    row, tail, t0, L, tail_stride, M: tl.constexpr, C: tl.constexpr, HAS_TAIL: tl.constexpr
):
    """The two positions before each group of eight, in fp32, each `[M, C/8]`.

    Positions before the chunk come from `tail` (two values, `tail_stride` apart) or are zero.
    """
    # Pairs contiguous in memory: their layout is then that of the tile's groups.
    pair = tl.arange(0, C // 4)[None, :]
    group = tl.arange(0, M)[:, None] * C + pair // 2 * 8
    inside = (group + t0 > 0) & (group < L - t0)
    if row.dtype.element_ty == tl.bfloat16:
        start = (row + t0 - 4).to(tl.pointer_type(tl.int32), bitcast=True)
        x = tl.load(start + group // 2 + pair % 2, mask=inside, other=0)
        _, x = tl.split(tl.reshape(x, (M, C // 8, 2)))
        xm2, xm1 = halves(x)
    else:
        x = tl.load(row + t0 - 2 + group + pair % 2, mask=inside, other=0.0).to(tl.float32)
        xm2, xm1 = tl.split(tl.reshape(x, (M, C // 8, 2)))
    if HAS_TAIL:
        at_start = tl.arange(0, M)[:, None] * C + tl.arange(0, C // 8)[None, :] + t0 == 0
        xm2 = tl.where(at_start, tl.load(tail).to(tl.float32), xm2)
        xm1 = tl.where(at_start, tl.load(tail + tail_stride).to(tl.float32), xm1)
    return xm2, xm1


@triton.jit
def fir_phases(x, before, w):
    """Causal 3-tap FIR of eight phases, given the two positions before each group; w is lag 0 first."""
    padded = before + x
    y = ()
    for p in tl.static_range(8):
        y = y + (w[0] * padded[p + 2] + w[1] * padded[p + 1] + w[2] * padded[p],)
    return y


@triton.jit
def times(x, y):
    """Products of eight phases."""
    product = ()
    for p in tl.static_range(8):
        product = product + (x[p] * y[p],)
    return product


@triton.jit
def join(x):
    """`[M, C]` from its eight phases."""
    return join8(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])


@triton.jit
def here(x, UPCAST: tl.constexpr):
    """x, computed at this place: else the compiler moves a loop's sums to its end, and all they need along."""
    if UPCAST:
        return x
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1
        )


@triton.jit
def leave_edges(d, edges, M: tl.constexpr, C: tl.constexpr):
    """Write phases 0 and 1 of every 32nd group of eight: what `next_group` cannot reach in its warp."""
    G: tl.constexpr = M * C // 8
    pairs = tl.join(tl.reshape(d[0], (G,)), tl.reshape(d[1], (G,)))
    i = tl.arange(0, G)[:, None]
    pair = tl.arange(0, 2)[None, :]
    tl.store(edges + i // 32 * 2 + pair, pairs, mask=(i % 32 == 0) & (pair < 2))


@triton.jit
def next_group(d, edges, has_right, M: tl.constexpr, C: tl.constexpr):
    """Phases 0 and 1 of the next group of eight: from the neighbour in the warp, or from the edges.

    The edges of the tile to the right follow those of this tile.
    """
    G: tl.constexpr = M * C // 8
    i = tl.arange(0, G)[:, None]
    pair = tl.arange(0, 2)[None, :]
    at_edge = i % 32 == 31
    outside = (i == G - 1) & (has_right == 0)
    beyond = tl.load(
        edges + i // 32 * 2 + 2 + pair, mask=at_edge & (outside == 0) & (pair < 2), other=0.0
    )
    following = tl.broadcast_to(((tl.arange(0, 32) + 1) % 32)[None, :], (G // 32, 32))
    y0 = tl.gather(tl.reshape(d[0], (G // 32, 32)), following, 1)
    y1 = tl.gather(tl.reshape(d[1], (G // 32, 32)), following, 1)
    y = tl.where(at_edge, beyond, tl.join(tl.reshape(y0, (G,)), tl.reshape(y1, (G,))))
    y0, y1 = tl.split(y)
    return tl.reshape(y0, (M, C // 8)), tl.reshape(y1, (M, C // 8))


@triton.jit
def featurizer_adjoint(
    d,
    x_row,
    tail,
    w,
    acc,
    edges,
    dx,
    t0,
    L,
    tail_stride,
    has_right,
    M: tl.constexpr,
    C: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    RAGGED: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    NEED_TAPS: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Store `dx[t] = sum_j w[j] d[t + j]` of a tile and add `sum_t d[t] x[t - j]` to the taps' sums.

    The raw inputs are loaded here once more, from a cache, because there are no registers to keep them.

    Args:
        d: Gradient of the features, eight phases.
        x_row, tail: Raw inputs of the channel, and the two before them.
        w, acc: Three taps, and the sums that belong to them.
        edges: What `leave_edges` has left of this tile.
        dx: Row of gradients.
        has_right: Whether there is a tile to the right.
    """
    if NEED_INPUT:
        ahead = d + next_group(d, edges, has_right, M, C)
        y = ()
        for p in tl.static_range(8):
            y = y + (w[0] * ahead[p] + w[1] * ahead[p + 1] + w[2] * ahead[p + 2],)
        offset = tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        tl.store(dx + t0 + offset, join(y).to(dx.dtype.element_ty), mask=offset // 8 * 8 < L - t0)
    a0, a1, a2 = acc
    if NEED_TAPS:
        before = load_before8(x_row, tail, t0, L, tail_stride, M, C, HAS_TAIL)
        x = before + load8(x_row, t0, L, M, C, RAGGED)
        s0 = d[0] * x[2]
        s1 = d[0] * x[1]
        s2 = d[0] * x[0]
        for p in tl.static_range(1, 8):
            s0 += d[p] * x[p + 2]
            s1 += d[p] * x[p + 1]
            s2 += d[p] * x[p]
        # Rows 16 apart belong to one thread.
        a0 = here(a0 + tl.sum(tl.reshape(s0, (M // 16, 16, C // 8)), 0), UPCAST)
        a1 = here(a1 + tl.sum(tl.reshape(s1, (M // 16, 16, C // 8)), 0), UPCAST)
        a2 = here(a2 + tl.sum(tl.reshape(s2, (M // 16, 16, C // 8)), 0), UPCAST)
    return a0, a1, a2
