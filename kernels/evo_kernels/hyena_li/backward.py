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
from evo_kernels.hyena_li.tiles import (
    CHUNK,
    CHUNKS_PER_TILE,
    TILE,
    chunk_decays,
    chunk_states,
    dot_operand,
    filter_head,
    fir8,
    high_low,
    into_state,
    join8,
    load_before,
    load_poles,
    load_taps,
    load_tile,
    split8,
    toeplitz,
)
from evo_kernels.launch import select


@triton.jit
def _load_raw(row, tail, t0, L, tail_stride, M: tl.constexpr, C: tl.constexpr, HAS_TAIL: tl.constexpr,
              RAGGED: tl.constexpr):
    """A tile of raw inputs `[M, C]` and the two positions before each group of eight."""
    x = load_tile(row, t0, L, M, C)
    xm2, xm1 = load_before(row, tail, t0, L, tail_stride, M, C, HAS_TAIL)
    if RAGGED:
        # The padding of a row may hold anything.
        position = t0 + tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        x = tl.where(position < L, x, tl.zeros_like(x))
    return x, xm2, xm1


@triton.jit
def _load_dy(row, t0, L, M: tl.constexpr, C: tl.constexpr, RAGGED: tl.constexpr):
    """A tile of the outputs' gradient, zero from position L on."""
    x = load_tile(row, t0, L, M, C)
    if RAGGED:
        position = t0 + tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        x = tl.where(position < L, x, tl.zeros_like(x))
    return x


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
def _next_group2(x0, x1, edges, has_right, M: tl.constexpr, C: tl.constexpr):
    """Phases 0 and 1 of the next group of eight.

    The first group leaves its own in `edges[0:2]`; after the last group come `edges[8:10]`, which the
    tile to the right has left there.
    """
    G: tl.constexpr = M * C // 8
    pairs = tl.join(tl.reshape(x0, (G,)), tl.reshape(x1, (G,)))
    i = tl.arange(0, G)[:, None]
    pair = tl.arange(0, 2)[None, :]
    tl.store(edges + pair + 0 * i, pairs, mask=(i == 0) & (pair < 2))
    beyond = tl.load(edges + 8 + pair, mask=has_right & (pair < 2), other=0.0)
    following = tl.broadcast_to(tl.minimum(i + 1, G - 1), (G, 2))
    y = tl.where(i == G - 1, beyond, tl.gather(pairs, following, 0))
    y0, y1 = tl.split(y)
    return tl.reshape(y0, (M, C // 8)), tl.reshape(y1, (M, C // 8))


@triton.jit
def _featurizer_adjoint(d, x_row, tail, w, acc, edges, dx, t0, L, tail_stride, has_right, M: tl.constexpr,
                        C: tl.constexpr, HAS_TAIL: tl.constexpr, RAGGED: tl.constexpr, NEED_INPUT: tl.constexpr,
                        NEED_WEIGHTS: tl.constexpr):
    """Store `dx[t] = sum_j w[j] d[t + j]` of a tile and add `sum_t d[t] x[t - j]` to the taps' sums.

    The raw inputs are loaded here once more, from a cache, because there are no registers to keep them.

    Args:
        d: Gradient of the features, eight phases.
        x_row, tail: Raw inputs of the channel, and the two before them.
        w, acc: Three taps, and the sums that belong to them.
        edges: Where tiles leave `d` of their first two positions for the tile to their left.
        dx: Row of gradients.
        has_right: Whether there is a tile to the right.
    """
    d0, d1, d2, d3, d4, d5, d6, d7 = d
    w0, w1, w2 = w
    a0, a1, a2 = acc
    d8, d9 = _next_group2(d0, d1, edges, has_right, M, C)
    if NEED_INPUT:
        y = join8(
            w0 * d0 + w1 * d1 + w2 * d2,
            w0 * d1 + w1 * d2 + w2 * d3,
            w0 * d2 + w1 * d3 + w2 * d4,
            w0 * d3 + w1 * d4 + w2 * d5,
            w0 * d4 + w1 * d5 + w2 * d6,
            w0 * d5 + w1 * d6 + w2 * d7,
            w0 * d6 + w1 * d7 + w2 * d8,
            w0 * d7 + w1 * d8 + w2 * d9,
        )
        position = t0 + tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        tl.store(dx + position, y.to(dx.dtype.element_ty), mask=position // 8 * 8 < L)
    if NEED_WEIGHTS:
        x, xm2, xm1 = _load_raw(x_row, tail, t0, L, tail_stride, M, C, HAS_TAIL, RAGGED)
        x0, x1, x2, x3, x4, x5, x6, x7 = split8(x.to(tl.float32))
        s0 = d0 * x0 + d1 * x1 + d2 * x2 + d3 * x3 + d4 * x4 + d5 * x5 + d6 * x6 + d7 * x7
        s1 = d0 * xm1 + d1 * x0 + d2 * x1 + d3 * x2 + d4 * x3 + d5 * x4 + d6 * x5 + d7 * x6
        s2 = d0 * xm2 + d1 * xm1 + d2 * x0 + d3 * x1 + d4 * x2 + d5 * x3 + d6 * x4 + d7 * x5
        # Rows 16 apart belong to one thread.
        a0 += tl.sum(tl.reshape(s0, (M // 16, 16, C // 8)), 0)
        a1 += tl.sum(tl.reshape(s1, (M // 16, 16, C // 8)), 0)
        a2 += tl.sum(tl.reshape(s2, (M // 16, 16, C // 8)), 0)
    return a0, a1, a2


@triton.jit(do_not_specialize=[
    "L", "num_tiles", "dy_batch", "dy_channel", "qkv_batch", "qkv_channel", "dqkv_channel",
])  # fmt: skip
def hyena_li_backward_kernel(
    dy, qkv, featurizer, log_poles, residues, skip, tile_states, tail, d_modal_end,
    dqkv, edges, d_modal, last_state, dfeaturizer, dlog_poles, dresidues, dskip,
    L, num_tiles, dy_batch, dy_channel, qkv_batch, qkv_channel, dqkv_channel,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, C: tl.constexpr, M: tl.constexpr,
    HAS_TAIL: tl.constexpr, HAS_END: tl.constexpr, RAGGED: tl.constexpr,
    NEED_INPUT: tl.constexpr, NEED_WEIGHTS: tl.constexpr, UPCAST: tl.constexpr,
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
    edge = edges + pair * num_tiles * 8  # two edges of q, k and v a tile, in three planes
    plane = tl.num_programs(1).to(tl.int64) * D * num_tiles * 8

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
    steps = (j + 1).to(tl.float32)
    P = tl.exp(log_pole[:, None] * steps[None, :])
    Ph, Pl = _operands(P, UPCAST)
    Q = _operand(P * steps[None, :], UPCAST)
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
    if NEED_WEIGHTS:
        dT = tl.zeros((C, C), tl.float32)
        through_R = tl.zeros((M, NP), tl.float32)
        through_pole = tl.zeros((M, NP), tl.float32)
    nothing = tl.zeros((16, C // 8), tl.float32)
    aq = (nothing, nothing, nothing)
    ak = (nothing, nothing, nothing)
    av = (nothing, nothing, nothing)

    for step in range(0, num_tiles):
        tile = num_tiles - 1 - step
        t0 = tile * (M * C)
        # The adjoint side first: k and v then have their features once, for the gate and for its gradient.
        q, qm2, qm1 = _load_raw(q_row, q_tail, t0, L, D * 3, M, C, HAS_TAIL, RAGGED)
        dy0, dy1, dy2, dy3, dy4, dy5, dy6, dy7 = split8(_load_dy(dy_row, t0, L, M, C, RAGGED).to(tl.float32))
        k, km2, km1 = _load_raw(k_row, k_tail, t0, L, D * 3, M, C, HAS_TAIL, RAGGED)
        v, vm2, vm1 = _load_raw(v_row, v_tail, t0, L, D * 3, M, C, HAS_TAIL, RAGGED)
        q0, q1, q2, q3, q4, q5, q6, q7 = fir8(q, qm2, qm1, wq[0], wq[1], wq[2])
        g = _operand(join8(dy0 * q0, dy1 * q1, dy2 * q2, dy3 * q3, dy4 * q4, dy5 * q5, dy6 * q6, dy7 * q7), UPCAST)
        e_unit = tl.dot(g, tl.trans(Pl), acc=tl.dot(g, tl.trans(Ph)))
        e = e_unit * residue[None, :]
        if HAS_END:
            in_last = tile * M + m == last_chunk
            e = tl.where(in_last[:, None], e + e_end[None, :], e)
        A, carry = chunk_states(e, carry, decay1, decay8, decay64, from_right, REVERSE=True)
        Ah, Al = _operands(A, UPCAST)
        dz = tl.dot(g, tl.trans(Tl), acc=tl.dot(g, tl.trans(Th)))
        dz = tl.dot(Ah, tl.trans(Vh), acc=dz)
        dz = tl.dot(Al, tl.trans(Vh), acc=dz)
        dz = tl.dot(Ah, tl.trans(Vl), acc=dz)
        if HAS_END:
            dz = tl.where(in_last[:, None], dz + dz_end[None, :], dz)
        z0, z1, z2, z3, z4, z5, z6, z7 = split8(dz)
        k0, k1, k2, k3, k4, k5, k6, k7 = fir8(k, km2, km1, wk[0], wk[1], wk[2])
        v0, v1, v2, v3, v4, v5, v6, v7 = fir8(v, vm2, vm1, wv[0], wv[1], wv[2])
        z = _operand(join8(k0 * v0, k1 * v1, k2 * v2, k3 * v3, k4 * v4, k5 * v5, k6 * v6, k7 * v7), UPCAST)
        dk = (z0 * v0, z1 * v1, z2 * v2, z3 * v3, z4 * v4, z5 * v5, z6 * v6, z7 * v7)
        dv = (z0 * k0, z1 * k1, z2 * k2, z3 * k3, z4 * k4, z5 * k5, z6 * k6, z7 * k7)
        ak = _featurizer_adjoint(dk, k_row, k_tail, wk, ak, edge + plane + tile * 8, dk_row, t0, L, D * 3, step > 0,
                                 M, C, HAS_TAIL, RAGGED, NEED_INPUT, NEED_WEIGHTS)
        av = _featurizer_adjoint(dv, v_row, v_tail, wv, av, edge + 2 * plane + tile * 8, dv_row, t0, L, D * 3, step > 0,
                                 M, C, HAS_TAIL, RAGGED, NEED_INPUT, NEED_WEIGHTS)

        u = tl.dot(z, Vl, acc=tl.dot(z, Vh))
        entering = tl.load(tile_state + tile * NP + n)
        S, _ = chunk_states(u, tl.broadcast_to(entering[None, :], (8, NP)), decay1, decay8, decay64, from_left)
        SR = S * residue[None, :]
        if NEED_WEIGHTS:
            if HAS_END:
                tl.store(last_state + pair * NP + n[None, :] + tl.zeros((M, NP), tl.int32), S, mask=in_last[:, None])
            dT = tl.dot(tl.trans(z), g, acc=dT)
            through_R += S * e_unit
            through_pole += SR * tl.dot(g, tl.trans(Q)) + A * (tl.dot(z, U) + across[None, :] * S)
        Sh, Sl = _operands(SR, UPCAST)
        y = tl.dot(z, Tl, acc=tl.dot(z, Th))
        y = tl.dot(Sh, Ph, acc=y)
        y = tl.dot(Sl, Ph, acc=y)
        y = tl.dot(Sh, Pl, acc=y)
        y0, y1, y2, y3, y4, y5, y6, y7 = split8(y)
        dy0, dy1, dy2, dy3, dy4, dy5, dy6, dy7 = split8(_load_dy(dy_row, t0, L, M, C, RAGGED).to(tl.float32))
        dq = (dy0 * y0, dy1 * y1, dy2 * y2, dy3 * y3, dy4 * y4, dy5 * y5, dy6 * y6, dy7 * y7)
        aq = _featurizer_adjoint(dq, q_row, q_tail, wq, aq, edge + tile * 8, dq_row, t0, L, D * 3, step > 0,
                                 M, C, HAS_TAIL, RAGGED, NEED_INPUT, NEED_WEIGHTS)
        # The edges written by this tile are read by the next.
        tl.debug_barrier()

    rows = tl.arange(0, 8)[:, None] + 0 * n[None, :]
    tl.store(d_modal + pair * N + n[None, :] + 0 * rows, carry, mask=(rows == 0) & (n[None, :] < N))
    if NEED_WEIGHTS:
        taps = dfeaturizer + (b * 3 * D + c) * 3
        for block in tl.static_range(3):
            acc = (aq, ak, av)[block]
            for lag in tl.static_range(3):
                tl.store(taps + block * D * 3 + lag, tl.sum(tl.sum(acc[lag], 1), 0))
        # Diagonal l of dT becomes column l.
        ahead = j[:, None] + j[None, :]
        skewed = tl.gather(dT, ahead & (C - 1), 1)
        dh = tl.sum(tl.where(ahead < C, skewed, 0.0), 0)
        tl.store(dskip + pair, tl.sum(tl.where(j == 0, dh, 0.0), 0))
        lag_f = j.to(tl.float32)
        powers = tl.exp(lag_f[:, None] * log_pole[None, :]) * dh[:, None]
        dR = tl.sum(powers, 0) + tl.sum(through_R, 0)
        d_pole = residue * tl.sum(powers * lag_f[:, None], 0) + tl.sum(through_pole, 0)
        tl.store(dresidues + pair * N + n, dR, mask=n < N)
        tl.store(dlog_poles + pair * N + n, d_pole, mask=n < N)


def _rows_of_eight(x: Tensor) -> tuple[Tensor, int, int]:
    """`[B, L, W]` as rows along positions that start at multiples of eight, and their two strides in eights.

    Copies when x is laid out otherwise.
    """
    B, L, W = x.shape
    batch, position, row = x.stride()
    aligned = (
        (position == 1 or L == 1)
        and row >= L
        and row % 8 == 0
        and (B == 1 or batch % 8 == 0)
        and x.data_ptr() % 16 == 0
    )
    if aligned:
        return x, batch // 8, row // 8
    padded = x.new_zeros(B, W, (L + 7) // 8 * 8)
    padded[:, :, :L].copy_(x.transpose(1, 2))
    return padded, padded.stride(0) // 8, padded.stride(1) // 8


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
    features = sum(taps[:, lag] * raw[:, 2 - lag : 2 - lag + length] for lag in range(3))
    _, k, v = features.chunk(3, dim=-1)
    left = torch.arange(length - 1, -1, -1, device=qkv.device, dtype=torch.float32)
    weights = left * torch.exp(log_poles[..., None].float() * left)  # [D, N, r]
    within = torch.einsum("brd,dnr->bdn", k * v, weights)
    return d_end * (length * torch.exp(log_poles.float() * length) * entering + within)


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
    tiles = triton.cdiv(L, TILE)
    NP = tile_states.shape[3]
    f32 = {"dtype": torch.float32, "device": qkv.device}
    padded_length = (L + 7) // 8 * 8
    dqkv = qkv.new_empty((B, W, padded_length) if needs_input else (0,))
    edges = torch.empty(3, B, D, tiles, 8, **f32)
    d_modal = torch.empty(B, D, N, **f32)
    last_state = torch.empty((B, D, NP) if d_modal_end is not None and needs_weights else (0,), **f32)
    d_featurizer = torch.empty((B, W, 3) if needs_weights else (0,), **f32)
    d_log_poles = torch.empty((B, D, N) if needs_weights else (0,), **f32)
    d_residues = torch.empty((B, D, N) if needs_weights else (0,), **f32)
    d_skip = torch.empty((B, D) if needs_weights else (0,), **f32)
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
        L, tiles, dy_batch, dy_row, qkv_batch, qkv_row, padded_length // 8,
        D=D, N=N, NP=NP, C=CHUNK, M=CHUNKS_PER_TILE, HAS_TAIL=tail is not None, HAS_END=d_end is not None,
        RAGGED=L % 8 != 0, NEED_INPUT=needs_input, NEED_WEIGHTS=needs_weights, **arguments,
    )  # fmt: skip
    d_tail = qkv.new_empty(0)
    if feature_tail is not None:
        first = edges[:, :, :, 0, :2].permute(1, 0, 2, 3).reshape(B, W, 2)
        w1, w2 = featurizer[:, 1].float(), featurizer[:, 2].float()
        d_tail = torch.stack([w2 * first[..., 0], w1 * first[..., 0] + w2 * first[..., 1]], 1)
        d_tail = d_tail.to(feature_tail.dtype)
    if needs_input:
        dqkv = dqkv[:, :, :L].transpose(1, 2)
    if needs_weights:
        if d_end is not None:
            d_log_poles += _end_pole_gradient(qkv, featurizer, feature_tail, log_poles, d_end, last_state[..., :N])
        d_featurizer, d_log_poles, d_residues, d_skip = (
            x[0] if B == 1 else x.sum(0) for x in (d_featurizer, d_log_poles, d_residues, d_skip)
        )
    return dqkv, d_featurizer, d_log_poles, d_residues, d_skip, d_tail, d_modal
