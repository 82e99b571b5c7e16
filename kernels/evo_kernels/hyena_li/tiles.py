"""Pieces of a tile that the forward and the backward kernels of Hyena-LI share.

A program owns one channel of one sequence and walks over tiles of `M = 64` chunks of `C = 64`
positions, memory `[.., L]` contiguous along positions. Two arrangements make neighbours meet in
registers instead of in shuffles:

* Along positions, a thread loads 16 bytes, eight neighbours. `split8` takes them apart into eight
  phases, so that a 3-tap FIR is arithmetic between phases; the two values before each group of
  eight are one more, narrow load (`load_before`).
* Along chunks, `chunk_states` gives each thread eight neighbouring chunks of one pole, and runs the
  recurrence of the states through them one after another, then over the eight groups of eight.

Legend: B batch, L positions, D channels, N poles (padded to `NP`), M chunks of C positions per tile.
"""

from __future__ import annotations

import triton
import triton.language as tl

from evo_kernels.hyena_li.reference import CHUNK as CHUNK
from evo_kernels.hyena_li.reference import CHUNKS_PER_TILE as CHUNKS_PER_TILE


@triton.jit
def split8(x):
    """Phases `x[:, 8 g + p]`, p = 0..7, of `[R, 8 G]`: eight tensors `[R, G]`."""
    R: tl.constexpr = x.shape[0]
    G: tl.constexpr = x.shape[1] // 8
    even, odd = tl.split(tl.reshape(x, (R, G, 2, 2, 2)))
    x04, x26 = tl.split(even)
    x15, x37 = tl.split(odd)
    x0, x4 = tl.split(x04)
    x2, x6 = tl.split(x26)
    x1, x5 = tl.split(x15)
    x3, x7 = tl.split(x37)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def join8(x0, x1, x2, x3, x4, x5, x6, x7):
    """`[R, 8 G]` from its eight phases `[R, G]`; undoes `split8`."""
    R: tl.constexpr = x0.shape[0]
    G: tl.constexpr = x0.shape[1]
    even = tl.join(tl.join(x0, x4), tl.join(x2, x6))
    odd = tl.join(tl.join(x1, x5), tl.join(x3, x7))
    return tl.reshape(tl.join(even, odd), (R, 8 * G))


@triton.jit
def load_tile(row, t0, L, M: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr = True):
    """Positions `t0 ...` of a row as `[M, C]`, in its own dtype.

    In a ragged tile, whole groups of eight are loaded while their first position is below L: rows are
    padded to eight positions, and the caller masks what it makes of positions from L on.
    """
    position = t0 + tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
    if RAGGED:
        return tl.load(row + position, mask=position // 8 * 8 < L, other=0.0)
    else:
        return tl.load(row + position)


@triton.jit
def load_before(
    row, tail, t0, L, tail_stride, M: tl.constexpr, C: tl.constexpr, HAS_TAIL: tl.constexpr,
    RAGGED: tl.constexpr = True,
):  # fmt: skip
    """The two positions before each group of eight, in fp32: `x[8 g - 2]`, `x[8 g - 1]`, each `[M, C/8]`.

    Positions before the chunk come from `tail` (two values, `tail_stride` apart) or are zero.
    """
    pair = tl.arange(0, C // 4)[None, :]
    group = t0 + tl.arange(0, M)[:, None] * C + pair // 2 * 8
    inside = group > 0
    if RAGGED:
        inside = inside & (group < L)
    x = tl.load(row + group + pair % 2 - 2, mask=inside, other=0.0).to(tl.float32)
    if HAS_TAIL:
        if t0 == 0:
            ends = tl.load(tail + pair % 2 * tail_stride).to(tl.float32)
            x = tl.where(group == 0, ends, x)
    return tl.split(tl.reshape(x, (M, C // 8, 2)))


@triton.jit
def load_taps(featurizer, channel):
    """Three taps of a channel, lag 0 first, fp32."""
    w0 = tl.load(featurizer + channel * 3).to(tl.float32)
    w1 = tl.load(featurizer + channel * 3 + 1).to(tl.float32)
    w2 = tl.load(featurizer + channel * 3 + 2).to(tl.float32)
    return w0, w1, w2


@triton.jit
def fir8(x, xm2, xm1, w0, w1, w2):
    """Causal 3-tap FIR of a tile: eight phases `[M, C/8]` in fp32.

    Args:
        x: `[M, C]`; xm2, xm1: what `load_before` gives; w0, w1, w2: taps, lag 0 first.
    """
    x0, x1, x2, x3, x4, x5, x6, x7 = split8(x.to(tl.float32))
    y0 = w0 * x0 + w1 * xm1 + w2 * xm2
    y1 = w0 * x1 + w1 * x0 + w2 * xm1
    y2 = w0 * x2 + w1 * x1 + w2 * x0
    y3 = w0 * x3 + w1 * x2 + w2 * x1
    y4 = w0 * x4 + w1 * x3 + w2 * x2
    y5 = w0 * x5 + w1 * x4 + w2 * x3
    y6 = w0 * x6 + w1 * x5 + w2 * x4
    y7 = w0 * x7 + w1 * x6 + w2 * x5
    return y0, y1, y2, y3, y4, y5, y6, y7


@triton.jit
def high_low(x, UPCAST: tl.constexpr):
    """fp32 as the sum of two bf16 operands.

    `UPCAST` hands operands over as fp32, for the interpreter; 2 does not even round them, for exact tests.
    """
    if UPCAST == 2:
        return x, tl.zeros_like(x)
    high = x.to(tl.bfloat16)
    low = (x - high.to(tl.float32)).to(tl.bfloat16)
    if UPCAST:
        return high.to(tl.float32), low.to(tl.float32)
    else:
        return high, low


@triton.jit
def high_low_by_bits(x, UPCAST: tl.constexpr):
    """As `high_low`, with the high part cut off instead of rounded: one bit less, half the instructions."""
    high = (x.to(tl.int32, bitcast=True) & -65536).to(tl.float32, bitcast=True)
    low = (x - high).to(tl.bfloat16)
    if UPCAST:
        return high, low.to(tl.float32)
    else:
        return high.to(tl.bfloat16), low


@triton.jit
def dot_operand(x, UPCAST: tl.constexpr):
    """fp32 rounded to one bf16 operand; `UPCAST` as in `high_low`."""
    if UPCAST == 2:
        return x
    y = x.to(tl.bfloat16)
    if UPCAST:
        return y.to(tl.float32)
    else:
        return y


@triton.jit
def load_poles(log_poles, residues, channel, N: tl.constexpr, NP: tl.constexpr):
    """Logarithms and residues of a channel, `[NP]` fp32; padding decays and counts for nothing."""
    n = tl.arange(0, NP)
    log_pole = tl.load(log_poles + channel * N + n, mask=n < N, other=-1.0).to(tl.float32)
    residue = tl.load(residues + channel * N + n, mask=n < N, other=0.0).to(tl.float32)
    return log_pole, residue


@triton.jit
def filter_head(log_pole, residue, C: tl.constexpr):
    """`h[l] = sum_n R_n exp(l * log_pole_n)` for l < C, `[C]` fp32."""
    lag = tl.arange(0, C).to(tl.float32)
    return tl.sum(residue[None, :] * tl.exp(lag[:, None] * log_pole[None, :]), 1)


@triton.jit
def toeplitz(h, C: tl.constexpr):
    """`T[j, i] = h[i - j]` for i >= j, zero below: `z @ T` convolves each row; `[C, C]` fp32."""
    lag = tl.arange(0, C)[None, :] - tl.arange(0, C)[:, None]
    rows = tl.broadcast_to(h[None, :], (C, C))
    return tl.where(lag >= 0, tl.gather(rows, tl.maximum(lag, 0), 1), 0.0)


@triton.jit
def into_state(log_pole, C: tl.constexpr):
    """`V[j, n] = lambda_n ** (C - 1 - j)`: what position j of a chunk leaves at its end; `[C, NP]`."""
    left = (C - 1 - tl.arange(0, C)).to(tl.float32)
    return tl.exp(left[:, None] * log_pole[None, :])


@triton.jit
def out_of_state(log_pole, residue, C: tl.constexpr):
    """`W[n, i] = R_n lambda_n ** (i + 1)`: what an entering state adds to position i; `[NP, C]`."""
    steps = (tl.arange(0, C) + 1).to(tl.float32)
    return residue[:, None] * tl.exp(log_pole[:, None] * steps[None, :])


@triton.jit
def chunk_decays(
    log_poles,
    channel,
    C: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    REVERSE: tl.constexpr = False,
):
    """Decays for `chunk_states`: over 1, 8 and 64 chunks, and from the tile's border to each group.

    Each `[8, NP]`, a row per group of eight chunks. They are loaded in this shape because a load fixes
    a layout, one value a thread, which then holds for all of `chunk_states`; without it the compiler
    moves every phase through shared memory.
    """
    group = tl.arange(0, 8)[:, None]
    n = tl.broadcast_to(tl.arange(0, NP)[None, :], (8, NP))
    rate = tl.load(log_poles + channel * N + n, mask=n < N, other=-1.0).to(tl.float32)
    per_chunk = C * rate
    if REVERSE:
        group = 7 - group
    to_group = tl.exp(8.0 * group.to(tl.float32) * per_chunk)
    return tl.exp(per_chunk), tl.exp(8.0 * per_chunk), tl.exp(64.0 * per_chunk), to_group


@triton.jit
def chunk_states(added, carry, decay1, decay8, decay64, to_group, REVERSE: tl.constexpr = False):
    """State entering every chunk of a tile, and the state that leaves the tile.

    The recurrence `entering[m + 1] = decay1 * entering[m] + added[m]`, `entering[0] = carry`. With
    `REVERSE` it runs from the last chunk to the first (adjoints).

    Args:
        added: `[64, NP]`, what each chunk adds, as seen at its end.
        carry: State entering the tile, the same in all eight rows of `[8, NP]`.
        decay1, decay8, decay64, to_group: From `chunk_decays` with the same `REVERSE`.

    Returns:
        `[64, NP]` and the new carry `[8, NP]`.
    """
    NP: tl.constexpr = added.shape[1]
    by_group = tl.reshape(tl.permute(tl.reshape(added, (8, 8, NP)), (0, 2, 1)), (8 * NP, 8))
    u0, u1, u2, u3, u4, u5, u6, u7 = split8(by_group)
    u0, u1, u2, u3 = (
        tl.reshape(u0, (8, NP)),
        tl.reshape(u1, (8, NP)),
        tl.reshape(u2, (8, NP)),
        tl.reshape(u3, (8, NP)),
    )
    u4, u5, u6, u7 = (
        tl.reshape(u4, (8, NP)),
        tl.reshape(u5, (8, NP)),
        tl.reshape(u6, (8, NP)),
        tl.reshape(u7, (8, NP)),
    )
    if REVERSE:
        u0, u1, u2, u3, u4, u5, u6, u7 = u7, u6, u5, u4, u3, u2, u1, u0
    # What a group of eight chunks adds.
    total = decay1 * u0 + u1
    total = decay1 * total + u2
    total = decay1 * total + u3
    total = decay1 * total + u4
    total = decay1 * total + u5
    total = decay1 * total + u6
    total = decay1 * total + u7
    # Every thread runs through the eight groups of its pole and keeps the value before its own.
    source = tl.broadcast_to(tl.arange(0, 64)[:, None] // 8, (64, NP))
    everyone = tl.permute(tl.reshape(tl.gather(total, source, 0), (8, 8, NP)), (1, 2, 0))
    g0, g1, g2, g3, g4, g5, g6, g7 = split8(tl.reshape(everyone, (8 * NP, 8)))
    g0, g1, g2, g3 = (
        tl.reshape(g0, (8, NP)),
        tl.reshape(g1, (8, NP)),
        tl.reshape(g2, (8, NP)),
        tl.reshape(g3, (8, NP)),
    )
    g4, g5, g6, g7 = (
        tl.reshape(g4, (8, NP)),
        tl.reshape(g5, (8, NP)),
        tl.reshape(g6, (8, NP)),
        tl.reshape(g7, (8, NP)),
    )
    group = tl.arange(0, 8)[:, None]
    if REVERSE:
        g0, g1, g2, g3, g4, g5, g6, g7 = g7, g6, g5, g4, g3, g2, g1, g0
        group = 7 - group
    before = tl.where(group == 1, g0, 0.0)
    run = decay8 * g0 + g1
    before = tl.where(group == 2, run, before)
    run = decay8 * run + g2
    before = tl.where(group == 3, run, before)
    run = decay8 * run + g3
    before = tl.where(group == 4, run, before)
    run = decay8 * run + g4
    before = tl.where(group == 5, run, before)
    run = decay8 * run + g5
    before = tl.where(group == 6, run, before)
    run = decay8 * run + g6
    before = tl.where(group == 7, run, before)
    run = decay8 * run + g7
    # A pole above one may overflow its decay over a whole tile; of nothing nothing is left all the same.
    s0 = before + tl.where(carry == 0, 0.0, to_group * carry)
    s1 = decay1 * s0 + u0
    s2 = decay1 * s1 + u1
    s3 = decay1 * s2 + u2
    s4 = decay1 * s3 + u3
    s5 = decay1 * s4 + u4
    s6 = decay1 * s5 + u5
    s7 = decay1 * s6 + u6
    if REVERSE:
        s0, s1, s2, s3, s4, s5, s6, s7 = s7, s6, s5, s4, s3, s2, s1, s0
    even = tl.join(tl.join(s0, s4), tl.join(s2, s6))
    odd = tl.join(tl.join(s1, s5), tl.join(s3, s7))
    states = tl.reshape(tl.join(even, odd), (8, NP, 8))
    entering = tl.reshape(tl.permute(states, (0, 2, 1)), (64, NP))
    return entering, run + tl.where(carry == 0, 0.0, decay64 * carry)


@triton.jit
def state_at_end(entering, z, log_pole, t0, L, M: tl.constexpr, C: tl.constexpr):
    """State after position L - 1, which lies in the tile at `t0`; `[NP]` fp32.

    The end may lie inside a chunk: the state that entered it decays and what the chunk holds is
    added, with non-negative powers alone.

    Args:
        entering: `[M, NP]`, from `chunk_states`; z: `[M, C]`, zero from position L on.
    """
    chunk = (L - 1 - t0) // C
    held = L - t0 - chunk * C
    here = (tl.arange(0, M) == chunk)[:, None]
    left = tl.maximum(held - 1 - tl.arange(0, C), 0).to(tl.float32)
    z_here = tl.sum(tl.where(here, z, 0.0), 0)
    state = tl.sum(tl.exp(left[:, None] * log_pole[None, :]) * z_here[:, None], 0)
    entered = tl.sum(tl.where(here, entering, 0.0), 0)
    return state + tl.exp(held * 1.0 * log_pole) * entered
