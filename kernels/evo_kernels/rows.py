"""Channel-last tiles for the FIR kernels: a thread owns consecutive rows ("polyphase").

A tile of `I * U` rows is held as U separate `[I, BD]` tiles: phase u holds rows `U * i + u`. A
thread's rows are neighbours in time, so a FIR is register arithmetic between phases. The rows before
and after a thread's own ("halo") are loaded again by it, from L1, instead of being handed over: no
shared memory, no shuffles, and nothing rotates through a loop.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_mask(t, L, c, WIDTH: tl.constexpr):
    """Whether row t exists (0 <= t < L, one unsigned comparison) and channel c does."""
    mask = t.to(tl.uint32) < (t * 0 + L).to(tl.uint32)
    # In the interpreter a shape is a constexpr and WIDTH an int, which knows no such `%`.
    if (c.shape[1] * 0 + WIDTH) % c.shape[1] != 0:
        mask = mask & (c < WIDTH)
    return mask


@triton.jit
def load_rows(x, row, c, L, FIRST: tl.constexpr, LAST: tl.constexpr, STRIDE: tl.constexpr,
              WIDTH: tl.constexpr):  # fmt: skip
    """Phases FIRST ... LAST - 1 of a channel-last block, as a tuple of `[I, BD]` tiles.

    Args:
        x: Pointers to phase 0, `[I, BD]`.
        row: Row index of phase 0, `[I, 1]`.
        c: Channels, `[1, BD]`.
        L: Rows that exist; others read as zero.
    """
    rows = ()
    for u in tl.static_range(0, LAST - FIRST):
        inside = row_mask(row + (u + FIRST), L, c, WIDTH)
        rows = rows + (tl.load(x + (u + FIRST) * STRIDE, mask=inside, other=0.0),)
    return rows


@triton.jit
def replace_early_rows(rows, tail, row, c, FIRST: tl.constexpr, COUNT: tl.constexpr,
                       TAIL: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Put the state in place of rows -TAIL ... -1: phases FIRST ... FIRST + COUNT - 1 of `rows`.

    Args:
        tail: Pointer to the `TAIL` rows before row 0, `[TAIL, STRIDE]`.
    """
    out = ()
    for u in tl.static_range(0, COUNT):
        t = row + (u + FIRST)
        early = (t < 0) & (t >= -TAIL) & (c < WIDTH)
        value = tl.load(tail + (t + TAIL) * STRIDE + c, mask=early, other=0.0)
        out = out + (tl.where(early, value.to(rows[u].dtype), rows[u]),)
    return out


@triton.jit
def load_taps(taps, index, valid, K: tl.constexpr):
    """The K taps of the channels (or groups) `index`, lag 0 first, each float32 and shaped as `index`."""
    out = ()
    for j in tl.static_range(0, K):
        out = out + (tl.load(taps + index * K + j, mask=valid, other=0.0).to(tl.float32),)
    return out


@triton.jit
def fir(rows, taps, FIRST: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr):
    """`sum_j taps[j] * rows[i - j]` in float32 for i = FIRST ... FIRST + COUNT - 1."""
    out = ()
    for u in tl.static_range(0, COUNT):
        value = taps[0] * rows[FIRST + u].to(tl.float32)
        for j in tl.static_range(1, K):
            value += taps[j] * rows[FIRST + u - j].to(tl.float32)
        out = out + (value,)
    return out


@triton.jit
def fir_transposed(rows, taps, FIRST: tl.constexpr, COUNT: tl.constexpr, K: tl.constexpr):
    """`sum_j taps[j] * rows[i + j]` in float32 for i = FIRST ... FIRST + COUNT - 1."""
    out = ()
    for u in tl.static_range(0, COUNT):
        value = taps[0] * rows[FIRST + u].to(tl.float32)
        for j in tl.static_range(1, K):
            value += taps[j] * rows[FIRST + u + j].to(tl.float32)
        out = out + (value,)
    return out


@triton.jit
def multiply(a, b, A_FIRST: tl.constexpr, B_FIRST: tl.constexpr, COUNT: tl.constexpr):
    """Products of two tuples of tiles, phase by phase, in float32."""
    out = ()
    for u in tl.static_range(0, COUNT):
        out = out + (a[A_FIRST + u].to(tl.float32) * b[B_FIRST + u].to(tl.float32),)
    return out


@triton.jit
def store_rows(x, rows, row, c, L, FIRST: tl.constexpr, COUNT: tl.constexpr, STRIDE: tl.constexpr,
               WIDTH: tl.constexpr):  # fmt: skip
    """Write phases 0 ... COUNT - 1, which are `rows[FIRST]` onwards, where the row exists."""
    for u in tl.static_range(0, COUNT):
        value = rows[FIRST + u].to(x.dtype.element_ty)
        tl.store(x + u * STRIDE, value, mask=row_mask(row + u, L, c, WIDTH))


@triton.jit
def store_last_rows(tail, rows, row, c, L, FIRST: tl.constexpr, COUNT: tl.constexpr,
                    TAIL: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Write the last TAIL rows of the chunk, rows before row 0 included, as the new state.

    `rows` are phases FIRST ... FIRST + COUNT - 1. A phase below 0 is another thread's own row, except
    before row 0, where it is the old state.
    """
    for u in tl.static_range(0, COUNT):
        t = row + (u + FIRST)
        last = (t >= L - TAIL) & (t < L) & (c < WIDTH)
        if u + FIRST < 0:
            last = last & (t < 0)
        tl.store(tail + (t - (L - TAIL)) * STRIDE + c, rows[u].to(tail.dtype.element_ty), mask=last)


@triton.jit
def add_products(sums, a, b, A_FIRST: tl.constexpr, B_FIRST: tl.constexpr, COUNT: tl.constexpr,
                 K: tl.constexpr):  # fmt: skip
    """`sums[j] + sum_u a[u] * b[u - j]`: a filter's gradient, kept per thread."""
    out = ()
    for j in tl.static_range(0, K):
        total = sums[j]
        for u in tl.static_range(0, COUNT):
            total += a[A_FIRST + u].to(tl.float32) * b[B_FIRST + u - j].to(tl.float32)
        out = out + (total,)
    return out


@triton.jit
def zero_sums(I: tl.constexpr, BD: tl.constexpr, K: tl.constexpr):
    """K accumulators of zeros, `[I, BD]`."""
    out = ()
    for _ in tl.static_range(0, K):
        out = out + (tl.zeros((I, BD), tl.float32),)
    return out


@triton.jit
def store_sums(out, sums, c, K: tl.constexpr, WIDTH: tl.constexpr, STRIDE: tl.constexpr):
    """Write the K sums over a program's rows as `out[K, STRIDE]`."""
    for j in tl.static_range(0, K):
        total = tl.sum(sums[j], 0)[None, :]
        tl.store(out + j * STRIDE + c, total, mask=c < WIDTH)


@triton.jit
def zero_rows(like, COUNT: tl.constexpr):
    """COUNT tiles of zeros, float32, in the shape of `like`."""
    out = ()
    for _ in tl.static_range(0, COUNT):
        out = out + (like.to(tl.float32) * 0.0,)
    return out


@triton.jit
def add_last_rows(rows, d_tail, row, c, L, FIRST: tl.constexpr, COUNT: tl.constexpr,
                  TAIL: tl.constexpr, STRIDE: tl.constexpr, WIDTH: tl.constexpr):  # fmt: skip
    """Add the gradient of the new state, `[TAIL, STRIDE]`, to the rows it was made of.

    `rows` are phases FIRST ... FIRST + COUNT - 1; rows below 0 that the new state took over from the
    old one are meant too.
    """
    out = ()
    for u in tl.static_range(0, COUNT):
        t = row + (u + FIRST)
        last = (t >= L - TAIL) & (t < L) & (c < WIDTH)
        value = tl.load(d_tail + (t - (L - TAIL)) * STRIDE + c, mask=last, other=0.0)
        out = out + (rows[u] + value.to(tl.float32),)
    return out


@triton.jit
def store_early_rows(d_tail, rows, row, c, TAIL: tl.constexpr, STRIDE: tl.constexpr,
                     WIDTH: tl.constexpr):  # fmt: skip
    """Write phases -TAIL ... -1 of the thread that owns row 0: the gradient of the old state."""
    for u in tl.static_range(0, TAIL):
        value = rows[u].to(d_tail.dtype.element_ty)
        tl.store(d_tail + (row + u) * STRIDE + c, value, mask=(row == 0) & (c < WIDTH))
