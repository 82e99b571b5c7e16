"""Backward of Hyena-LI in one pass over the sequence, from the last tile to the first.

A program owns one channel of one sequence, as in the forward. Nothing but the inputs and the states
that enter the tiles was saved: features, gate and states are made again. With S_c the state that
enters chunk c and A_c the adjoint of the state that leaves it,

    g = dy * q_f                       z = k_f * v_f
    S_{c+1} = lambda^C S_c + z_c V     A_{c-1} = lambda^C A_c + g_c W'
    dq_f = dy * (z T + S W)            dz = g T' + A V'

and `dk_f = dz * v_f`, `dv_f = dz * k_f`; the skip is part of T's diagonal. The transposed featurizer
then needs `d_f` up to two positions ahead: in registers, except for the first two of the next group of
eight. Gradients of the filter never exist at the sequence's length: `sum z' g` over chunks holds the
gradients of the first 64 lags as its diagonals, and what passes through states is

    dR_n       = sum_l dh[l] lambda^l + sum_c S_c (g_c P')
    dlambda_n  = R sum_l dh[l] l lambda^l + sum_c [R S_c (g_c Q') + A_c (z_c U) + C lambda^C A_c S_c]

with `P[i] = lambda^(i+1)`, `Q[i] = (i+1) lambda^(i+1)`, `U[j] = (C-1-j) lambda^(C-1-j)`, all for
`d log lambda`.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.backend import interpreting
from evo_kernels.hyena_li.backward_configs import BACKWARD
from evo_kernels.hyena_li.forward import channel_first
from evo_kernels.hyena_li.layout import TILE, num_tiles, padded_length
from evo_kernels.hyena_li.tiles import (
    CHUNK,
    CHUNKS_PER_TILE,
    chunk_decays,
    chunk_states,
    dot_operand,
    filter_head,
    high_low,
    into_state,
    join8,
    load_poles,
    load_taps,
    out_of_state,
    split8,
    toeplitz,
)
from evo_kernels.launch import on_its_device, select


@triton.jit
def _halves(words):
    """The two bfloat16 of each 32-bit word, as fp32."""
    low = (words << 16).to(tl.float32, bitcast=True)
    high = (words & -65536).to(tl.float32, bitcast=True)
    return low, high


@triton.jit
def _load8(row, t0, L, M: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr):
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
        phases = _halves(x01) + _halves(x23) + _halves(x45) + _halves(x67)
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
def _load_before(
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
        xm2, xm1 = _halves(x)
    else:
        x = tl.load(row + t0 - 2 + group + pair % 2, mask=inside, other=0.0).to(tl.float32)
        xm2, xm1 = tl.split(tl.reshape(x, (M, C // 8, 2)))
    if HAS_TAIL:
        at_start = tl.arange(0, M)[:, None] * C + tl.arange(0, C // 8)[None, :] + t0 == 0
        xm2 = tl.where(at_start, tl.load(tail).to(tl.float32), xm2)
        xm1 = tl.where(at_start, tl.load(tail + tail_stride).to(tl.float32), xm1)
    return xm2, xm1


@triton.jit
def _fir(x, before, w):
    """Causal 3-tap FIR of eight phases, given the two positions before each group; w is lag 0 first."""
    padded = before + x
    y = ()
    for p in tl.static_range(8):
        y = y + (w[0] * padded[p + 2] + w[1] * padded[p + 1] + w[2] * padded[p],)
    return y


@triton.jit
def _times(x, y):
    """Products of eight phases."""
    product = ()
    for p in tl.static_range(8):
        product = product + (x[p] * y[p],)
    return product


@triton.jit
def _join(x):
    return join8(x[0], x[1], x[2], x[3], x[4], x[5], x[6], x[7])


@triton.jit
def _here(x, UPCAST: tl.constexpr):
    """x, computed at this place: else the compiler moves a loop's sums to its end, and all they need along."""
    if UPCAST:
        return x
    else:
        return tl.inline_asm_elementwise(
            "mov.b32 $0, $1;", "=r,r", [x], dtype=tl.float32, is_pure=False, pack=1
        )


@triton.jit
def _operand(x, UPCAST: tl.constexpr):
    """One dot operand; `UPCAST == 2` keeps fp32, for exact tests in the interpreter."""
    if UPCAST == 2:
        return x
    else:
        return dot_operand(x, UPCAST)


@triton.jit
def _operands(x, UPCAST: tl.constexpr):
    """Two dot operands whose sum is x."""
    if UPCAST == 2:
        return x, tl.zeros_like(x)
    else:
        return high_low(x, UPCAST)


@triton.jit
def _leave_edges(d, edges, M: tl.constexpr, C: tl.constexpr):
    """Write phases 0 and 1 of every 32nd group of eight: what `_next_group` cannot reach in its warp."""
    G: tl.constexpr = M * C // 8
    pairs = tl.join(tl.reshape(d[0], (G,)), tl.reshape(d[1], (G,)))
    i = tl.arange(0, G)[:, None]
    pair = tl.arange(0, 2)[None, :]
    tl.store(edges + i // 32 * 2 + pair, pairs, mask=(i % 32 == 0) & (pair < 2))


@triton.jit
def _next_group(d, edges, has_right, M: tl.constexpr, C: tl.constexpr):
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
def _featurizer_adjoint(
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
        edges: What `_leave_edges` has left of this tile.
        dx: Row of gradients.
        has_right: Whether there is a tile to the right.
    """
    if NEED_INPUT:
        ahead = d + _next_group(d, edges, has_right, M, C)
        y = ()
        for p in tl.static_range(8):
            y = y + (w[0] * ahead[p] + w[1] * ahead[p + 1] + w[2] * ahead[p + 2],)
        offset = tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        tl.store(dx + t0 + offset, _join(y).to(dx.dtype.element_ty), mask=offset // 8 * 8 < L - t0)
    a0, a1, a2 = acc
    if NEED_TAPS:
        before = _load_before(x_row, tail, t0, L, tail_stride, M, C, HAS_TAIL)
        x = before + _load8(x_row, t0, L, M, C, RAGGED)
        s0 = d[0] * x[2]
        s1 = d[0] * x[1]
        s2 = d[0] * x[0]
        for p in tl.static_range(1, 8):
            s0 += d[p] * x[p + 2]
            s1 += d[p] * x[p + 1]
            s2 += d[p] * x[p]
        # Rows 16 apart belong to one thread.
        a0 = _here(a0 + tl.sum(tl.reshape(s0, (M // 16, 16, C // 8)), 0), UPCAST)
        a1 = _here(a1 + tl.sum(tl.reshape(s1, (M // 16, 16, C // 8)), 0), UPCAST)
        a2 = _here(a2 + tl.sum(tl.reshape(s2, (M // 16, 16, C // 8)), 0), UPCAST)
    return a0, a1, a2


@triton.jit(do_not_specialize=[
    "L", "num_tiles", "dy_batch", "dy_channel", "qkv_batch", "qkv_channel", "dqkv_channel",
])  # fmt: skip
def hyena_li_backward_kernel(
    dy,
    qkv,
    featurizer,
    log_poles,
    residues,
    skip,
    tile_states,
    tail,
    d_modal_end,
    dqkv,
    edges,
    d_modal,
    last_state,
    dfeaturizer,
    dlog_poles,
    dresidues,
    dskip,
    L,
    num_tiles,
    dy_batch,
    dy_channel,
    qkv_batch,
    qkv_channel,
    dqkv_channel,
    D: tl.constexpr,
    N: tl.constexpr,
    NP: tl.constexpr,
    C: tl.constexpr,
    M: tl.constexpr,
    HAS_TAIL: tl.constexpr,
    HAS_END: tl.constexpr,
    RAGGED: tl.constexpr,
    NEED_INPUT: tl.constexpr,
    NEED_TAPS: tl.constexpr,
    NEED_FILTER: tl.constexpr,
    UPCAST: tl.constexpr,
    SPLIT_Z: tl.constexpr,
):
    """All gradients of one channel of one sequence; the strides of rows are in units of eight."""
    channel = tl.program_id(0)
    batch = tl.program_id(1)
    pair = (batch * D + channel).to(tl.int64)
    b = batch.to(tl.int64)
    c = channel.to(tl.int64)
    q_row = qkv + (b * qkv_batch + c * qkv_channel) * 8
    k_row = qkv + (b * qkv_batch + (c + D) * qkv_channel) * 8
    v_row = qkv + (b * qkv_batch + (c + 2 * D) * qkv_channel) * 8
    dy_row = dy + (b * dy_batch + c * dy_channel) * 8
    dq_row = dqkv + (b * 3 * D + c) * dqkv_channel * 8
    dk_row = dqkv + (b * 3 * D + c + D) * dqkv_channel * 8
    dv_row = dqkv + (b * 3 * D + c + 2 * D) * dqkv_channel * 8
    q_tail = tail + b * 6 * D + c
    k_tail = q_tail + D
    v_tail = q_tail + 2 * D
    tile_state = tile_states + pair * num_tiles * NP
    EDGES: tl.constexpr = M * C // 256 * 2
    q_edges = edges + pair * num_tiles * EDGES
    k_edges = q_edges + tl.num_programs(1).to(tl.int64) * D * num_tiles * EDGES
    v_edges = k_edges + tl.num_programs(1).to(tl.int64) * D * num_tiles * EDGES

    wq = load_taps(featurizer, c)
    wk = load_taps(featurizer, c + D)
    wv = load_taps(featurizer, c + 2 * D)
    log_pole, residue = load_poles(log_poles, residues, c, N, NP)
    m = tl.arange(0, M)
    j = tl.arange(0, C)
    n = tl.arange(0, NP)

    T = toeplitz(filter_head(log_pole, residue, C), C)
    T = tl.where(j[:, None] == j[None, :], T + tl.load(skip + c).to(tl.float32), T)
    Th, Tl = _operands(T, UPCAST)
    V = into_state(log_pole, C)
    Vh, Vl = _operands(V, UPCAST)
    U = _operand(V * (C - 1 - j).to(tl.float32)[:, None], UPCAST)
    Wh, Wl = _operands(out_of_state(log_pole, residue, C), UPCAST)
    decay1, decay8, decay64, from_left = chunk_decays(log_poles, c, C, N, NP)
    _, _, _, from_right = chunk_decays(log_poles, c, C, N, NP, REVERSE=True)
    across = C * tl.exp(log_pole * C)

    carry = tl.zeros((8, NP), tl.float32)
    if HAS_END:
        # The adjoint of the state after position L - 1 enters inside the last chunk.
        last_chunk = (L - 1) // C
        length = L - last_chunk * C
        d_end = tl.load(d_modal_end + pair * N + n, mask=n < N, other=0.0)
        to_end = length - 1 - j
        end_powers = tl.exp(tl.maximum(to_end, 0).to(tl.float32)[:, None] * log_pole[None, :])
        dz_end = tl.where(to_end >= 0, tl.sum(end_powers * d_end[None, :], 1), 0.0)
        e_end = d_end * tl.exp(log_pole * length)
    if NEED_FILTER:
        dT = tl.zeros((C, C), tl.float32)
        dW = tl.zeros((C, NP), tl.float32)
        through_state = tl.zeros((M // 16, 8, NP), tl.float32)
    nothing = tl.zeros((16, C // 8), tl.float32)
    aq = (nothing, nothing, nothing)
    ak = (nothing, nothing, nothing)
    av = (nothing, nothing, nothing)

    # Hoisted out of the loop, addresses and matrix descriptors would only be spilled.
    for step in tl.range(0, num_tiles, disable_licm=True):
        tile = num_tiles - 1 - step
        t0 = tile * (M * C)
        # The adjoint side first: k and v then have their features once, for the gate and for its gradient.
        q = _load8(q_row, t0, L, M, C, RAGGED)
        q_before = _load_before(q_row, q_tail, t0, L, D * 3, M, C, HAS_TAIL)
        dy8 = _load8(dy_row, t0, L, M, C, RAGGED)
        g = _operand(_join(_times(dy8, _fir(q, q_before, wq))), UPCAST)
        e = tl.dot(g, tl.trans(Wl), acc=tl.dot(g, tl.trans(Wh)))
        if HAS_END:
            in_last = tile * M + m == last_chunk
            e = tl.where(in_last[:, None], e + e_end[None, :], e)
        A, carry = chunk_states(e, carry, decay1, decay8, decay64, from_right, REVERSE=True)
        if NEED_INPUT or NEED_TAPS:
            Ah, Al = _operands(A, UPCAST)
            dz = tl.dot(g, tl.trans(Tl), acc=tl.dot(g, tl.trans(Th)))
            dz = tl.dot(Ah, tl.trans(Vh), acc=dz)
            dz = tl.dot(Al, tl.trans(Vh), acc=dz)
            dz = tl.dot(Ah, tl.trans(Vl), acc=dz)
            if HAS_END:
                dz = tl.where(in_last[:, None], dz + dz_end[None, :], dz)
        tl.debug_barrier()  # nothing below is loaded earlier
        k = _load8(k_row, t0, L, M, C, RAGGED)
        k = _fir(k, _load_before(k_row, k_tail, t0, L, D * 3, M, C, HAS_TAIL), wk)
        v = _load8(v_row, t0, L, M, C, RAGGED)
        v = _fir(v, _load_before(v_row, v_tail, t0, L, D * 3, M, C, HAS_TAIL), wv)
        z = _join(_times(k, v))
        if SPLIT_Z:
            z, z_low = _operands(z, UPCAST)
        else:
            z = _operand(z, UPCAST)
        if NEED_INPUT or NEED_TAPS:
            dz8 = split8(dz)
            dk = _times(dz8, v)
            dv = _times(dz8, k)
            _leave_edges(dk, k_edges + tile * EDGES, M, C)
            _leave_edges(dv, v_edges + tile * EDGES, M, C)
            tl.debug_barrier()
            ak = _featurizer_adjoint(
                dk,
                k_row,
                k_tail,
                wk,
                ak,
                k_edges + tile * EDGES,
                dk_row,
                t0,
                L,
                D * 3,
                step > 0,
                M,
                C,
                HAS_TAIL,
                RAGGED,
                NEED_INPUT,
                NEED_TAPS,
                UPCAST,
            )
            av = _featurizer_adjoint(
                dv,
                v_row,
                v_tail,
                wv,
                av,
                v_edges + tile * EDGES,
                dv_row,
                t0,
                L,
                D * 3,
                step > 0,
                M,
                C,
                HAS_TAIL,
                RAGGED,
                NEED_INPUT,
                NEED_TAPS,
                UPCAST,
            )

        u = tl.dot(z, Vl, acc=tl.dot(z, Vh))
        if SPLIT_Z:
            u = tl.dot(z_low, Vh, acc=u)
        entering = tl.load(tile_state + tile * NP + n)
        S, _ = chunk_states(
            u, tl.broadcast_to(entering[None, :], (8, NP)), decay1, decay8, decay64, from_left
        )
        Sh, Sl = _operands(S, UPCAST)
        if NEED_FILTER:
            if HAS_END:
                tl.store(
                    last_state + pair * NP + n[None, :] + tl.zeros((M, NP), tl.int32),
                    S,
                    mask=in_last[:, None],
                )
            # Not right after z, where it would free registers: ptxas 12.8 then loses the descriptor
            # of dW's product (test_hyena_li_backward_compiled.py looks for that).
            dT = tl.dot(tl.trans(g), z, acc=dT)
            if SPLIT_Z:
                dT = tl.dot(tl.trans(g), z_low, acc=dT)
            dW = tl.dot(tl.trans(g), Sh, acc=dW)
            dW = tl.dot(tl.trans(g), Sl, acc=dW)
            to_pole = A * (tl.dot(z, U) + across[None, :] * S)
            # Rows 8 apart belong to one thread.
            to_pole = tl.sum(tl.reshape(to_pole, (M // 16, 2, 8, NP)), 1)
            through_state = _here(through_state + to_pole, UPCAST)
        if NEED_INPUT or NEED_TAPS:
            y = tl.dot(z, Tl, acc=tl.dot(z, Th))
            y = tl.dot(Sh, Wh, acc=y)
            y = tl.dot(Sl, Wh, acc=y)
            y = tl.dot(Sh, Wl, acc=y)
            dq = _times(_load8(dy_row, t0, L, M, C, RAGGED), split8(y))
            _leave_edges(dq, q_edges + tile * EDGES, M, C)
            tl.debug_barrier()
            aq = _featurizer_adjoint(
                dq,
                q_row,
                q_tail,
                wq,
                aq,
                q_edges + tile * EDGES,
                dq_row,
                t0,
                L,
                D * 3,
                step > 0,
                M,
                C,
                HAS_TAIL,
                RAGGED,
                NEED_INPUT,
                NEED_TAPS,
                UPCAST,
            )

    rows = tl.arange(0, 8)[:, None] + 0 * n[None, :]
    tl.store(d_modal + pair * N + n[None, :] + 0 * rows, carry, mask=(rows == 0) & (n[None, :] < N))
    if NEED_TAPS:
        # Eight sums at once share their way through shared memory.
        eight = ()
        for p in tl.static_range(8):
            eight = eight + (tl.reshape((aq + ak + av)[p], (2 * C, 1)),)
        sums = tl.sum(_join(eight), 0)
        which = tl.arange(0, 8)
        taps = dfeaturizer + (b * 3 * D + c) * 3
        tl.store(taps + which // 3 * D * 3 + which % 3, sums)
        tl.store(taps + 2 * D * 3 + 2, tl.sum(tl.reshape(av[2], (2 * C,)), 0))
    if NEED_FILTER:
        # Diagonal l of dT, g's position minus z's, becomes column l.
        source = j[:, None] - j[None, :]
        skewed = tl.gather(dT, source & (C - 1), 1)
        dh = tl.sum(tl.where(source >= 0, skewed, 0.0), 0)
        tl.store(dskip + pair, tl.sum(tl.where(j == 0, dh, 0.0), 0))
        lag = j.to(tl.float32)[:, None]
        powers = tl.exp(lag * log_pole[None, :])
        d_tap = powers * dh[:, None]
        d_out = powers * tl.exp(log_pole)[None, :] * dW
        dR = tl.sum(d_tap + d_out, 0)
        d_pole = residue * tl.sum(d_tap * lag + d_out * (lag + 1), 0)
        d_pole += tl.sum(tl.reshape(through_state, (M // 2, NP)), 0)
        tl.store(dresidues + pair * N + n, dR, mask=n < N)
        tl.store(dlog_poles + pair * N + n, d_pole, mask=n < N)


def _rows_of_eight(x: Tensor) -> tuple[Tensor, int, int]:
    """`[B, L, W]` as rows along positions that start at multiples of eight, and their two strides in eights."""
    x = channel_first(x)
    return x, x.stride(0) // 8, x.stride(2) // 8


def _end_pole_gradient(
    qkv: Tensor, featurizer: Tensor, feature_tail: Tensor | None, log_poles: Tensor, d_end: Tensor,
    entering: Tensor,
) -> Tensor:  # fmt: skip
    """Gradient of the poles through the last chunk's part of the end state, `[B, D, N]` fp32.

    `S_end = lambda^r S + sum_j lambda^(r-1-j) z_j` for the r positions of the last chunk.
    """
    B, L, W = qkv.shape
    length = (L - 1) % CHUNK + 1
    start = L - length
    if start:
        context = qkv[:, start - 2 : start]
    else:
        context = qkv.new_zeros(B, 2, W) if feature_tail is None else feature_tail
    raw = torch.cat([context, qkv[:, start:]], 1).float()
    taps = featurizer.float()
    features = taps[:, 0] * raw[:, 2:] + taps[:, 1] * raw[:, 1:-1] + taps[:, 2] * raw[:, :-2]
    _, k, v = features.chunk(3, dim=-1)
    left = torch.arange(length - 1, -1, -1, device=qkv.device, dtype=torch.float32)
    weights = left * torch.exp(log_poles[..., None].float() * left)  # [D, N, r]
    within = torch.einsum("brd,dnr->bdn", k * v, weights)
    return d_end * (length * torch.exp(log_poles.float() * length) * entering + within)


@on_its_device
def launch_backward(
    dy: Tensor,
    d_modal_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    tile_states: Tensor,
    *,
    needs_input: bool,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Run the kernel.

    Args:
        dy: `[B, L, D]`; copied unless its rows along positions are contiguous and aligned.
        d_modal_end: Gradient of the state after the last position, `[B, D, N]`, or None.
        qkv: `[B, L, 3D]`, rows along positions contiguous.
        feature_tail: The two inputs before the chunk, `[B, 2, 3D]`, or None.
        tile_states: States that enter the tiles, `[B, D, tiles, NP]` fp32.

    Returns:
        Gradients of qkv, featurizer, log_poles, residues, skip, feature_tail, and of the modal state
        before the chunk; empty where not needed.
    """
    B, L, W = qkv.shape
    D, N = log_poles.shape
    tiles = num_tiles(L)
    NP = tile_states.shape[3]
    row = padded_length(L)

    def float32(*shape: int, needed: bool = True) -> Tensor:
        return torch.empty(shape if needed else (0,), dtype=torch.float32, device=qkv.device)

    dqkv = qkv.new_empty((B, W, row) if needs_input else (0,))
    edges = float32(3, B, D, tiles, TILE // 256, 2)
    d_modal = float32(B, D, N)
    last_state = float32(B, D, NP, needed=d_modal_end is not None and needs_weights)
    d_featurizer = float32(B, W, 3, needed=needs_weights)
    d_log_poles = float32(B, D, N, needed=needs_weights)
    d_residues = float32(B, D, N, needed=needs_weights)
    d_skip = float32(B, D, needed=needs_weights)
    featurizer, log_poles = featurizer.contiguous(), log_poles.contiguous()
    residues, skip = residues.contiguous(), skip.contiguous()
    rows, qkv_batch, qkv_row = _rows_of_eight(qkv)
    dy_rows, dy_batch, dy_row = _rows_of_eight(dy)
    d_end = None if d_modal_end is None else d_modal_end.float().contiguous()
    tail = None if feature_tail is None else feature_tail.contiguous()
    config = select(BACKWARD, qkv.device)
    arguments = {"UPCAST": int(interpreting())} | config.launch_arguments()
    hyena_li_backward_kernel[(D, B)](
        dy_rows, rows, featurizer, log_poles, residues, skip, tile_states,
        rows if tail is None else tail, tile_states if d_end is None else d_end,
        dqkv, edges, d_modal, last_state, d_featurizer, d_log_poles, d_residues, d_skip,
        L, tiles, dy_batch, dy_row, qkv_batch, qkv_row, row // 8,
        D=D, N=N, NP=NP, C=CHUNK, M=CHUNKS_PER_TILE, HAS_TAIL=tail is not None, HAS_END=d_end is not None,
        RAGGED=L % 8 != 0, NEED_INPUT=needs_input, NEED_TAPS=needs_weights, NEED_FILTER=needs_weights, **arguments,
    )  # fmt: skip
    d_tail = qkv.new_empty(0)
    if feature_tail is not None:
        first = edges[:, :, :, 0, 0].permute(1, 0, 2, 3).reshape(B, W, 2)
        w1, w2 = featurizer[:, 1].float(), featurizer[:, 2].float()
        d_tail = torch.stack([w2 * first[..., 0], w1 * first[..., 0] + w2 * first[..., 1]], 1)
        d_tail = d_tail.to(feature_tail.dtype)
    if needs_input:
        dqkv = dqkv[:, :, :L].transpose(1, 2)
    if needs_weights:
        if d_end is not None:
            d_log_poles += _end_pole_gradient(
                qkv, featurizer, feature_tail, log_poles, d_end, last_state[..., :N]
            )
        d_featurizer, d_log_poles, d_residues, d_skip = (
            x[0] if B == 1 else x.sum(0) for x in (d_featurizer, d_log_poles, d_residues, d_skip)
        )
    return dqkv, d_featurizer, d_log_poles, d_residues, d_skip, d_tail, d_modal
