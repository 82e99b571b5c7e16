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
from evo_kernels.hyena_li.configs import BACKWARD
from evo_kernels.hyena_li.forward import channel_first
from evo_kernels.hyena_li.layout import TILE, num_tiles, padded_length
from evo_kernels.hyena_li.phases import (
    featurizer_adjoint,
    fir_phases,
    here,
    join,
    leave_edges,
    load8,
    load_before8,
    times,
)
from evo_kernels.hyena_li.tiles import (
    CHUNK,
    CHUNKS_PER_TILE,
    chunk_decays,
    chunk_states,
    dot_operand,
    filter_head,
    high_low,
    into_state,
    load_poles,
    load_taps,
    out_of_state,
    split8,
    toeplitz,
)
from evo_kernels.launch import on_its_device, select
from evo_kernels.short_conv.reference import short_conv_reference


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
    Th, Tl = high_low(T, UPCAST)
    V = into_state(log_pole, C)
    Vh, Vl = high_low(V, UPCAST)
    U = dot_operand(V * (C - 1 - j).to(tl.float32)[:, None], UPCAST)
    Wh, Wl = high_low(out_of_state(log_pole, residue, C), UPCAST)
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
        q = load8(q_row, t0, L, M, C, RAGGED)
        q_before = load_before8(q_row, q_tail, t0, L, D * 3, M, C, HAS_TAIL)
        dy8 = load8(dy_row, t0, L, M, C, RAGGED)
        g = dot_operand(join(times(dy8, fir_phases(q, q_before, wq))), UPCAST)
        e = tl.dot(g, tl.trans(Wl), acc=tl.dot(g, tl.trans(Wh)))
        if HAS_END:
            in_last = tile * M + m == last_chunk
            e = tl.where(in_last[:, None], e + e_end[None, :], e)
        A, carry = chunk_states(e, carry, decay1, decay8, decay64, from_right, REVERSE=True)
        if NEED_INPUT or NEED_TAPS:
            Ah, Al = high_low(A, UPCAST)
            dz = tl.dot(g, tl.trans(Tl), acc=tl.dot(g, tl.trans(Th)))
            dz = tl.dot(Ah, tl.trans(Vh), acc=dz)
            dz = tl.dot(Al, tl.trans(Vh), acc=dz)
            dz = tl.dot(Ah, tl.trans(Vl), acc=dz)
            if HAS_END:
                dz = tl.where(in_last[:, None], dz + dz_end[None, :], dz)
        tl.debug_barrier()  # nothing below is loaded earlier
        k = load8(k_row, t0, L, M, C, RAGGED)
        k = fir_phases(k, load_before8(k_row, k_tail, t0, L, D * 3, M, C, HAS_TAIL), wk)
        v = load8(v_row, t0, L, M, C, RAGGED)
        v = fir_phases(v, load_before8(v_row, v_tail, t0, L, D * 3, M, C, HAS_TAIL), wv)
        z = join(times(k, v))
        if SPLIT_Z:
            z, z_low = high_low(z, UPCAST)
        else:
            z = dot_operand(z, UPCAST)
        if NEED_INPUT or NEED_TAPS:
            dz8 = split8(dz)
            dk = times(dz8, v)
            dv = times(dz8, k)
            leave_edges(dk, k_edges + tile * EDGES, M, C)
            leave_edges(dv, v_edges + tile * EDGES, M, C)
            tl.debug_barrier()
            ak = featurizer_adjoint(
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
            av = featurizer_adjoint(
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
        Sh, Sl = high_low(S, UPCAST)
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
            through_state = here(through_state + to_pole, UPCAST)
        if NEED_INPUT or NEED_TAPS:
            y = tl.dot(z, Tl, acc=tl.dot(z, Th))
            y = tl.dot(Sh, Wh, acc=y)
            y = tl.dot(Sl, Wh, acc=y)
            y = tl.dot(Sh, Wl, acc=y)
            dq = times(load8(dy_row, t0, L, M, C, RAGGED), split8(y))
            leave_edges(dq, q_edges + tile * EDGES, M, C)
            tl.debug_barrier()
            aq = featurizer_adjoint(
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
        sums = tl.sum(join(eight), 0)
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
    L = qkv.shape[1]
    length = (L - 1) % CHUNK + 1
    start = L - length
    context = qkv[:, start - 2 : start] if start else feature_tail
    features, _ = short_conv_reference(qkv[:, start:], featurizer, context)
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
