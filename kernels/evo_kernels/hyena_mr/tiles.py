"""Tiles of the Hyena-MR forward: columns of filter groups, phases of rows, 16 x 16 Toeplitz blocks.

Columns: a program holds E blocks of 16 channels; a filter group is one block or several, the last one
filled up with columns that do not exist. Rows: 32 at a time, as 8 phases of a `[4, 16 E]` tile (phase u
holds rows 8 i + u, so that a thread owns eight consecutive rows) or as two row tiles `[E, 16, 16]`
(block, channel, row) for the tensor cores.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def column_channels(pid, D: tl.constexpr, GROUP: tl.constexpr, E: tl.constexpr):
    """Channel of each of a program's columns, and whether it exists: `[1, 16 E]` both."""
    n = tl.arange(0, 16 * E)[None, :]
    BLOCKS: tl.constexpr = (GROUP + 15) // 16
    block = pid * E + n // 16
    in_group = block % BLOCKS * 16 + n % 16
    group = block // BLOCKS
    c = group * GROUP + in_group
    ok = (in_group < GROUP) & (group < D // GROUP)
    if GROUP % 16 == 0:
        # The same, in a form that shows the compiler whole lines of memory.
        c = pid * (16 * E) + n
        ok = c < D
    return c, ok


@triton.jit
def prepare_kernel(
    h, featurizer, blocks, taps,
    K: tl.constexpr, D: tl.constexpr, GROUP: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Write the filters as Toeplitz blocks of pairs of bfloat16, and the featurizers transposed.

    `blocks[g, delta, 0, a, b]` is `h[g, 16 delta + a - b]` rounded, `blocks[g, delta, 1]` what rounding
    left over; `taps` is `[3, 3D]`. Both in one launch, as they precede every forward. Grid: (groups, 9);
    WIDTH is GROUP rounded up to a power of two.
    """
    group = tl.program_id(0)
    delta = tl.program_id(1)
    a = tl.arange(0, 16)[:, None]
    b = tl.arange(0, 16)[None, :]
    lag = delta * 16 + a - b
    x = tl.load(h + group * K + lag, mask=(lag >= 0) & (lag < K), other=0.0).to(tl.float32)
    high = x.to(blocks.dtype.element_ty)
    to = blocks + (group * 9 + delta) * 512 + a * 16 + b
    tl.store(to, high)
    tl.store(to + 256, (x - high.to(tl.float32)).to(blocks.dtype.element_ty))
    # Nine programs for each group, three featurizers of three taps.
    n = tl.arange(0, WIDTH)
    c = delta // 3 * D + group * GROUP + n
    w = tl.load(featurizer + c * 3 + delta % 3, mask=n < GROUP, other=0.0)
    tl.store(taps + delta % 3 * 3 * D + c, w, mask=n < GROUP)


@triton.jit
def load_toeplitz16(blocks, group, PART: tl.constexpr, UPCAST: tl.constexpr):
    """The nine blocks of each of the groups, `[E, 16, 16]` (b, a): the rounded taps or what was left over.

    Loaded with b contiguous and transposed here: the other way round, every read of a block from shared
    memory meets a bank conflict, a tenth of the time of the kernel.
    """
    a = tl.arange(0, 16)[None, :, None]
    b = tl.arange(0, 16)[None, None, :]
    out = ()
    for delta in tl.static_range(9):
        at = blocks + (group[:, None, None] * 9 + delta) * 512 + PART * 256 + a * 16 + b
        taps = tl.load(at)
        if UPCAST:
            taps = taps.to(tl.float32)
        out = out + (tl.permute(taps, (0, 2, 1)),)
    return out


@triton.jit
def prefetch_rows(x, first, L, WIDTH: tl.constexpr, D: tl.constexpr):
    """Ask for 32 rows of q, k and v to come into the L2 cache: one line each, one instruction a thread.

    Args:
        x: The program's first channel of q in row 0.
        first: First of the 32 rows; rows from L on, and before 0, are left alone.
    """
    i = tl.arange(0, 128)
    row = first + i % 32
    at = (x + row.to(tl.int64) * WIDTH + i // 32 * D).to(tl.int64)
    wanted = ((row >= 0) & (row < L) & (i < 96)).to(tl.int32)
    tl.inline_asm_elementwise(
        "{ .reg .pred p; setp.ne.s32 p, $2, 0; @p prefetch.global.L2 [$1]; mov.b32 $0, 0; }",
        "=r,l,r", [at, wanted], dtype=tl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@triton.jit
def load_transposed_taps(w, c, ok, WIDTH: tl.constexpr):
    """The three featurizer taps of channels c from `[3, WIDTH]`, each `[1, N]`."""
    w0 = tl.load(w + c, mask=ok, other=0.0).to(tl.float32)
    w1 = tl.load(w + WIDTH + c, mask=ok, other=0.0).to(tl.float32)
    w2 = tl.load(w + 2 * WIDTH + c, mask=ok, other=0.0).to(tl.float32)
    return (w0, w1, w2)


@triton.jit
def exists(t, end):
    """Whether row t lies in 0 ... end - 1: one unsigned comparison."""
    return t.to(tl.uint32) < end.to(tl.uint32)


@triton.jit
def load_phases(x, tail, row, end, ok, WIDTH: tl.constexpr, HAS_STATE: tl.constexpr):
    """Raw inputs of phases -2 ... 7, as stored; rows outside 0 ... end - 1 are zero.

    Args:
        x: Pointers to phase 0, `[4, N]`.
        tail: Pointers to the first of the two rows before row 0, `[1, N]`; read if HAS_STATE.
        row: Row of phase 0, `[4, 1]`.
        end: As row, the same everywhere.
    """
    phases = ()
    for u in tl.static_range(-2, 8):
        t = row + u
        value = tl.load(x + u * WIDTH, mask=exists(t, end) & ok, other=0.0)
        if HAS_STATE:
            early = (t < 0) & (t >= -2) & ok
            value += tl.load(tail + (t + 2) * WIDTH, mask=early, other=0.0)
        phases = phases + (value,)
    return phases


@triton.jit
def fir3(x, w, u: tl.constexpr):
    """Featurizer output of phase u, from the raw phases -2 ... 7."""
    return (
        w[0] * x[u + 2].to(tl.float32) + w[1] * x[u + 1].to(tl.float32) + w[2] * x[u].to(tl.float32)
    )


@triton.jit
def interleave(p, N: tl.constexpr):
    """Join eight phases `[4, N]` into a tile `[32, N]` whose row 8 i + u is row i of phase u."""
    even = tl.join(tl.join(p[0], p[4]), tl.join(p[2], p[6]))
    odd = tl.join(tl.join(p[1], p[5]), tl.join(p[3], p[7]))
    x = tl.reshape(tl.join(even, odd), (4, N, 8))
    return tl.reshape(tl.permute(x, (0, 2, 1)), (32, N))


@triton.jit
def phases_of(x, N: tl.constexpr):
    """Take a tile `[32, N]` apart into its eight phases: the inverse of `interleave`."""
    x = tl.reshape(tl.permute(tl.reshape(x, (4, 8, N)), (0, 2, 1)), (4, N, 2, 2, 2))
    even, odd = tl.split(x)
    p04, p26 = tl.split(even)
    p15, p37 = tl.split(odd)
    p0, p4 = tl.split(p04)
    p2, p6 = tl.split(p26)
    p1, p5 = tl.split(p15)
    p3, p7 = tl.split(p37)
    return (p0, p1, p2, p3, p4, p5, p6, p7)


@triton.jit
def row_tiles(x, E: tl.constexpr, UPCAST: tl.constexpr):
    """Cut `[32, 16 E]` into its two row tiles `[E, 16, 16]` (block, channel, row)."""
    a, b = tl.split(tl.permute(tl.reshape(x, (2, 16, E, 16)), (2, 3, 1, 0)))
    if UPCAST:
        return a.to(tl.float32), b.to(tl.float32)
    return a, b


@triton.jit
def from_row_tiles(a, b, E: tl.constexpr):
    """Put two row tiles `[E, 16, 16]` together to `[32, 16 E]`."""
    return tl.reshape(tl.permute(tl.join(a, b), (3, 2, 0, 1)), (32, 16 * E))


@triton.jit
def add_toeplitz16(sums, z, high, low, tile: tl.constexpr):
    """Add what row tile `tile` (0 or 1) contributes to the sums of itself and the eight after it."""
    out = ()
    for j in tl.static_range(10):
        if (j >= tile) & (j - tile <= 8):
            partial = tl.dot(z, high[j - tile], acc=sums[j])
            out = out + (tl.dot(z, low[j - tile], acc=partial),)
        else:
            out = out + (sums[j],)
    return out
