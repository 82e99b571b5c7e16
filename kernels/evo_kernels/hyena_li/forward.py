"""Forward kernels of Hyena-LI: featurizers, gate, chunked modal convolution, skip and output gate in one pass.

With chunks of C positions and the arrays of `tiles.py`, chunk m of a channel gives

    y[m] = z[m] T + S[m] W + skip * z[m],    S[m + 1] = lambda**C * S[m] + z[m] V

where z = k * v after the featurizers and S[m] is the state entering the chunk. T, V, W, S and z enter
the dots as pairs of bfloat16 (value and remainder); everything else is float32.

One program walks over one channel of one sequence, so a GPU is full from about 500 channels times
sequences on; below, what is left idle is a limit of this version.

Legend: B batch, L positions, D channels, N poles (padded to `NP`), M chunks of C positions per tile.
"""

from __future__ import annotations

import logging

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.backend import interpreting
from evo_kernels.hyena_li import configs as _configs  # noqa: F401  (registers them)
from evo_kernels.hyena_li.layout import num_tiles, padded_length, padded_poles
from evo_kernels.hyena_li.tiles import (
    CHUNK,
    CHUNKS_PER_TILE,
    chunk_decays,
    chunk_states,
    filter_head,
    fir8,
    high_low,
    high_low_by_bits,
    into_state,
    join8,
    load_before,
    load_poles,
    load_taps,
    load_tile,
    out_of_state,
    split8,
    state_at_end,
    toeplitz,
)
from evo_kernels.launch import on_its_device, select

_log = logging.getLogger("evo_kernels")
_said_copy = False


@triton.jit
def gate_tile(
    k_row, v_row, k_taps, v_taps, k_tail, v_tail, tail_stride, t0, L,
    M: tl.constexpr, C: tl.constexpr, HAS_TAIL: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """`z = k * v` of a tile after the featurizers, zero from position L on; `[M, C]` fp32."""
    k = load_tile(k_row, t0, L, M, C, RAGGED)
    k6, k7 = load_before(k_row, k_tail, t0, L, tail_stride, M, C, HAS_TAIL, RAGGED)
    v = load_tile(v_row, t0, L, M, C, RAGGED)
    v6, v7 = load_before(v_row, v_tail, t0, L, tail_stride, M, C, HAS_TAIL, RAGGED)
    k0, k1, k2, k3, k4, k5, k6, k7 = fir8(k, k6, k7, k_taps[0], k_taps[1], k_taps[2])
    v0, v1, v2, v3, v4, v5, v6, v7 = fir8(v, v6, v7, v_taps[0], v_taps[1], v_taps[2])
    z = join8(k0 * v0, k1 * v1, k2 * v2, k3 * v3, k4 * v4, k5 * v5, k6 * v6, k7 * v7)
    if RAGGED:
        position = t0 + tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
        z = tl.where(position < L, z, 0.0)
    return z


@triton.jit
def added_to_states(z_high, z_low, v_high, v_low):
    """What each chunk adds to the state, as seen at its end: `z V`, `[M, NP]` fp32."""
    added = tl.dot(z_high, v_high)
    added = tl.dot(z_high, v_low, acc=added)
    return tl.dot(z_low, v_high, acc=added)


@triton.jit
def forward_tile(
    q_row, k_row, v_row, y_row, q_tail, q_taps, k_taps, v_taps, operands, decays, carry, t0, L,
    D: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    HAS_TAIL: tl.constexpr, UPCAST: tl.constexpr, RAGGED: tl.constexpr,
):  # fmt: skip
    """Compute and store one tile; returns z, the state entering each chunk, and the new carry."""
    t_high, t_low, v_high, v_low, w_high, w_low = operands
    z = gate_tile(
        k_row, v_row, k_taps, v_taps, q_tail + D, q_tail + 2 * D, 3 * D, t0, L, M, C, HAS_TAIL, RAGGED
    )  # fmt: skip
    q = load_tile(q_row, t0, L, M, C, RAGGED)
    q6, q7 = load_before(q_row, q_tail, t0, L, 3 * D, M, C, HAS_TAIL, RAGGED)
    z_high, z_low = high_low_by_bits(z, UPCAST)
    added = added_to_states(z_high, z_low, v_high, v_low)
    states, carry = chunk_states(added, carry, decays[0], decays[1], decays[2], decays[3])
    s_high, s_low = high_low(states, UPCAST)
    acc = tl.dot(z_high, t_high)
    acc = tl.dot(z_high, t_low, acc=acc)
    acc = tl.dot(z_low, t_high, acc=acc)
    acc = tl.dot(s_high, w_high, acc=acc)
    acc = tl.dot(s_low, w_high, acc=acc)
    acc = tl.dot(s_high, w_low, acc=acc)
    # In phases like q, so that the accumulator alone changes its layout.
    q0, q1, q2, q3, q4, q5, q6, q7 = fir8(q, q6, q7, q_taps[0], q_taps[1], q_taps[2])
    a0, a1, a2, a3, a4, a5, a6, a7 = split8(acc)
    y = join8(q0 * a0, q1 * a1, q2 * a2, q3 * a3, q4 * a4, q5 * a5, q6 * a6, q7 * a7)
    y = y.to(y_row.dtype.element_ty)
    position = t0 + tl.arange(0, M)[:, None] * C + tl.arange(0, C)[None, :]
    if RAGGED:
        tl.store(y_row + position, y, mask=position // 8 * 8 < L)
    else:
        tl.store(y_row + position, y)
    return z, states, carry


@triton.jit
def store_carry(to, carry, N: tl.constexpr, NP: tl.constexpr):
    """Store the N poles of a carry, of whose eight equal rows one is enough."""
    n = tl.arange(0, NP)[None, :]
    once = (tl.arange(0, 8)[:, None] == 0) & (n < N)
    tl.store(tl.broadcast_to(to + n, (8, NP)), carry, mask=once)


@triton.jit
def hyena_li_forward_kernel(
    qkv, featurizer, log_poles, residues, skip, tail, modal, y, tile_states, modal_end,
    L, stride_b, stride_c,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    HAS_TAIL: tl.constexpr, HAS_MODAL: tl.constexpr,
    SAVE_STATES: tl.constexpr, RETURN_MODAL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """One channel of one sequence, from its first position to its last.

    Args:
        qkv: Rows of channels, `stride_c` apart, positions contiguous; both strides are multiples of 8.
        tail: `[B, 2, 3D]`; modal: `[B, D, N]`; what earlier positions left.
        y: `[B, D, L rounded up to 8]`.
        tile_states: `[B, D, tiles, NP]`, the state entering each tile; modal_end: `[B, D, N]`.
    """
    d = tl.program_id(0)
    b = tl.program_id(1)
    bd = b.to(tl.int64) * D + d
    row = (stride_c // 8 * 8) * d.to(tl.int64)
    block = (stride_c // 8 * 8) * tl.full((), D, tl.int64)
    q_row = qkv + b.to(tl.int64) * (stride_b // 8 * 8) + row
    k_row = q_row + block
    v_row = k_row + block
    y_row = y + bd * (tl.cdiv(L, 8) * 8)
    q_tail = tail + b * 6 * D + d
    q_taps = load_taps(featurizer, d)
    k_taps = load_taps(featurizer, D + d)
    v_taps = load_taps(featurizer, 2 * D + d)
    skip_d = tl.load(skip + d).to(tl.float32)

    log_pole, residue = load_poles(log_poles, residues, d, N, NP)
    # The skip is one more tap at lag 0.
    h = filter_head(log_pole, residue, C) + tl.where(tl.arange(0, C) == 0, skip_d, 0.0)
    t_high, t_low = high_low(toeplitz(h, C), UPCAST)
    v_high, v_low = high_low(into_state(log_pole, C), UPCAST)
    w_high, w_low = high_low(out_of_state(log_pole, residue, C), UPCAST)
    operands = (t_high, t_low, v_high, v_low, w_high, w_low)
    decays = chunk_decays(log_poles, d, C, N, NP)

    n = tl.arange(0, NP)
    carry = tl.zeros((8, NP), tl.float32)
    if HAS_MODAL:
        carry += tl.load(modal + bd * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    states_row = tile_states + bd * tl.cdiv(L, M * C) * NP
    whole = L // (M * C) * (M * C)
    for t0 in range(0, whole, M * C):
        if SAVE_STATES:
            store_carry(states_row + t0 // (M * C) * NP, carry, NP, NP)
        _, _, carry = forward_tile(
            q_row, k_row, v_row, y_row, q_tail, q_taps, k_taps, v_taps, operands, decays, carry,
            t0, L, D, M, C, HAS_TAIL, UPCAST, RAGGED=False,
        )  # fmt: skip
    # Apart, so that neither masks nor the state inside a chunk burden the loop.
    if whole < L:
        if SAVE_STATES:
            store_carry(states_row + whole // (M * C) * NP, carry, NP, NP)
        z, states, _ = forward_tile(
            q_row, k_row, v_row, y_row, q_tail, q_taps, k_taps, v_taps, operands, decays, carry,
            whole, L, D, M, C, HAS_TAIL, UPCAST, RAGGED=True,
        )  # fmt: skip
        if RETURN_MODAL:
            end = state_at_end(states, z, log_pole, whole, L, M, C)
            tl.store(modal_end + bd * N + n, end, mask=n < N)
    elif RETURN_MODAL:
        store_carry(modal_end + bd * N, carry, N, NP)


@triton.jit
def hyena_li_end_state_kernel(
    qkv, featurizer, log_poles, tail, modal, modal_end, L, stride_b, stride_c,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, M: tl.constexpr, C: tl.constexpr,
    HAS_TAIL: tl.constexpr, HAS_MODAL: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """What the forward kernel leaves in `modal_end`, from k and v alone; arguments as there."""
    d = tl.program_id(0)
    b = tl.program_id(1)
    bd = b.to(tl.int64) * D + d
    block = (stride_c // 8 * 8) * tl.full((), D, tl.int64)
    row = (stride_c // 8 * 8) * d.to(tl.int64)
    k_row = qkv + b.to(tl.int64) * (stride_b // 8 * 8) + row + block
    v_row = k_row + block
    k_tail = tail + b * 6 * D + D + d
    v_tail = k_tail + D
    k_taps = load_taps(featurizer, D + d)
    v_taps = load_taps(featurizer, 2 * D + d)
    n = tl.arange(0, NP)
    log_pole = tl.load(log_poles + d * N + n, mask=n < N, other=-1.0).to(tl.float32)
    v_high, v_low = high_low(into_state(log_pole, C), UPCAST)
    decays = chunk_decays(log_poles, d, C, N, NP)
    carry = tl.zeros((8, NP), tl.float32)
    if HAS_MODAL:
        carry += tl.load(modal + bd * N + n, mask=n < N, other=0.0).to(tl.float32)[None, :]
    whole = L // (M * C) * (M * C)
    for t0 in range(0, whole, M * C):
        z = gate_tile(
            k_row, v_row, k_taps, v_taps, k_tail, v_tail, 3 * D, t0, L, M, C, HAS_TAIL, RAGGED=False
        )  # fmt: skip
        z_high, z_low = high_low_by_bits(z, UPCAST)
        added = added_to_states(z_high, z_low, v_high, v_low)
        _, carry = chunk_states(added, carry, decays[0], decays[1], decays[2], decays[3])
    if whole < L:
        z = gate_tile(
            k_row, v_row, k_taps, v_taps, k_tail, v_tail, 3 * D, whole, L, M, C, HAS_TAIL, RAGGED=True
        )  # fmt: skip
        z_high, z_low = high_low_by_bits(z, UPCAST)
        added = added_to_states(z_high, z_low, v_high, v_low)
        states, _ = chunk_states(added, carry, decays[0], decays[1], decays[2], decays[3])
        end = state_at_end(states, z, log_pole, whole, L, M, C)
        tl.store(modal_end + bd * N + n, end, mask=n < N)
    else:
        store_carry(modal_end + bd * N, carry, N, NP)


@triton.jit
def load_step(x, tail, t, stride_l, D: tl.constexpr, ok, HAS_STATE: tl.constexpr):
    """Position t (>= -2) of a block of channels, fp32; positions below 0 come from the tail."""
    value = tl.load(x + t * stride_l, mask=ok & (t >= 0 * tl.arange(0, 1)), other=0.0).to(
        tl.float32
    )
    if HAS_STATE:
        before = ok & (t < 0 * tl.arange(0, 1))
        value += tl.load(tail + (t + 2) * 3 * D, mask=before, other=0.0).to(tl.float32)
    return value


@triton.jit
def step_feature(x, tail, w, t, stride_l, D: tl.constexpr, ok, HAS_STATE: tl.constexpr):
    """Featurizer output at position t of a block of channels."""
    w0 = tl.load(w, mask=ok, other=0.0).to(tl.float32)
    w1 = tl.load(w + 1, mask=ok, other=0.0).to(tl.float32)
    w2 = tl.load(w + 2, mask=ok, other=0.0).to(tl.float32)
    return (
        w0 * load_step(x, tail, t, stride_l, D, ok, HAS_STATE)
        + w1 * load_step(x, tail, t - 1, stride_l, D, ok, HAS_STATE)
        + w2 * load_step(x, tail, t - 2, stride_l, D, ok, HAS_STATE)
    )


@triton.jit
def hyena_li_step_kernel(
    qkv, featurizer, log_poles, residues, skip, tail, modal, y, tail_end, modal_end,
    L, stride_b, stride_l, stride_c,
    D: tl.constexpr, N: tl.constexpr, NP: tl.constexpr, BD: tl.constexpr, HAS_STATE: tl.constexpr,
):  # fmt: skip
    """A few positions of a block of channels by the recurrence itself, all in fp32.

    Args:
        qkv: Any strides. tail, tail_end: `[B, 2, 3D]`; modal, modal_end: `[B, D, N]`; y: `[B, L, D]`.
    """
    d = tl.program_id(0) * BD + tl.arange(0, BD)
    b = tl.program_id(1).to(tl.int64)
    n = tl.arange(0, NP)
    ok = d < D
    poles_ok = ok[:, None] & (n < N)[None, :]
    block_stride = stride_c * tl.full((), D, tl.int64)
    q = qkv + b * stride_b + d.to(tl.int64) * stride_c
    k = q + block_stride
    v = k + block_stride
    q_tail = tail + b * 6 * D + d
    log_pole = tl.load(log_poles + d[:, None] * N + n[None, :], mask=poles_ok, other=0.0)
    residue = tl.load(residues + d[:, None] * N + n[None, :], mask=poles_ok, other=0.0)
    skip_d = tl.load(skip + d, mask=ok, other=0.0).to(tl.float32)
    decay = tl.exp(log_pole.to(tl.float32))
    state_at = (b * D + d[:, None]) * N + n[None, :]
    state = tl.zeros((BD, NP), tl.float32)
    if HAS_STATE:
        state += tl.load(modal + state_at, mask=poles_ok, other=0.0).to(tl.float32)
    for t in range(0, L):
        qt = step_feature(q, q_tail, featurizer + d * 3, t, stride_l, D, ok, HAS_STATE)
        kt = step_feature(k, q_tail + D, featurizer + (D + d) * 3, t, stride_l, D, ok, HAS_STATE)
        vt = step_feature(
            v, q_tail + 2 * D, featurizer + (2 * D + d) * 3, t, stride_l, D, ok, HAS_STATE
        )
        z = kt * vt
        state = decay * state + z[:, None]
        out = qt * (tl.sum(residue.to(tl.float32) * state, 1) + skip_d * z)
        tl.store(y + (b * L + t) * D + d, out.to(y.dtype.element_ty), mask=ok)
    tl.store(modal_end + state_at, state, mask=poles_ok)
    for block in tl.static_range(3):
        for i in tl.static_range(2):
            x = load_step(
                q + block * block_stride,
                q_tail + block * D,
                L - 2 + i,
                stride_l,
                D,
                ok,
                HAS_STATE,
            )
            at = tail_end + (b * 2 + i) * 3 * D + block * D + d
            tl.store(at, x.to(tail_end.dtype.element_ty), mask=ok)


def say_copy(x: Tensor) -> None:
    """Log, once, that an input is not read in place."""
    global _said_copy
    if not _said_copy:
        _said_copy = True
        _log.info(
            "hyena_li copies its input to channel-first rows padded to 8 positions; strides %s of a"
            " %s input do not allow to read it in place",
            x.stride(),
            tuple(x.shape),
        )


def channel_first(x: Tensor) -> Tensor:
    """`x` `[B, L, C]` itself if its memory is channel-first in aligned, padded rows, else such a copy."""
    B, L, C = x.shape
    padded = padded_length(L)
    last = x.storage_offset() + (B - 1) * x.stride(0) + (C - 1) * x.stride(2) + padded
    if (
        (x.stride(1) == 1 or L == 1)
        and x.stride(2) >= padded
        and x.stride(2) % 8 == 0
        and (B == 1 or x.stride(0) % 8 == 0)
        and x.data_ptr() % 16 == 0
        and last * x.element_size() <= x.untyped_storage().nbytes()
    ):
        return x
    say_copy(x)
    rows = x.new_zeros((B, C, padded))
    rows[:, :, :L] = x.transpose(1, 2)
    return rows[:, :, :L].transpose(1, 2)


@on_its_device
def launch_forward(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
    *,
    save_states: bool,
    return_modal: bool = True,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Run the forward kernel.

    Args:
        qkv: `[B, L, 3D]`, of any strides; read in place when `channel_first` allows.
        feature_tail: Last two inputs before this chunk, `[B, 2, 3D]`, or None for zeros.
        modal: State before this chunk, `[B, D, N]`, or None for zeros.
        save_states: Whether to return the state entering each tile.
        return_modal: Whether to return the state after the last position.

    Returns:
        `[B, L, D]` with contiguous positions; `[B, D, tiles, NP]` fp32 or None; `[B, D, N]` fp32 or None.
    """
    qkv = channel_first(qkv)
    B, L, channels = qkv.shape
    D, N = log_poles.shape
    assert channels == 3 * D
    rows = qkv.new_empty((B, D, padded_length(L)))
    tile_states, modal_end = None, None
    if save_states:
        shape = (B, D, num_tiles(L), padded_poles(N))
        tile_states = torch.empty(shape, dtype=torch.float32, device=qkv.device)
    if return_modal:
        modal_end = torch.empty((B, D, N), dtype=torch.float32, device=qkv.device)
    config = select("hyena_li_forward", qkv.device)
    hyena_li_forward_kernel[(D, B)](
        qkv,
        featurizer.contiguous(),
        log_poles.contiguous(),
        residues.contiguous(),
        skip.contiguous(),
        qkv if feature_tail is None else feature_tail.contiguous(),
        log_poles if modal is None else modal.contiguous(),
        rows,
        log_poles if tile_states is None else tile_states,
        log_poles if modal_end is None else modal_end,
        L,
        qkv.stride(0),
        qkv.stride(2),
        D=D,
        N=N,
        NP=padded_poles(N),
        M=CHUNKS_PER_TILE,
        C=CHUNK,
        HAS_TAIL=feature_tail is not None,
        HAS_MODAL=modal is not None,
        SAVE_STATES=save_states,
        RETURN_MODAL=return_modal,
        UPCAST=interpreting(),
        **config.launch_arguments(),
    )
    return rows[:, :, :L].transpose(1, 2), tile_states, modal_end


@on_its_device
def launch_end_state(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> Tensor:
    """State after the last position, `[B, D, N]` fp32, from k and v alone; as `launch_forward`."""
    qkv = channel_first(qkv)
    B, L, _ = qkv.shape
    D, N = log_poles.shape
    modal_end = torch.empty((B, D, N), dtype=torch.float32, device=qkv.device)
    config = select("hyena_li_end_state", qkv.device)
    hyena_li_end_state_kernel[(D, B)](
        qkv,
        featurizer.contiguous(),
        log_poles.contiguous(),
        qkv if feature_tail is None else feature_tail.contiguous(),
        log_poles if modal is None else modal.contiguous(),
        modal_end,
        L,
        qkv.stride(0),
        qkv.stride(2),
        D=D,
        N=N,
        NP=padded_poles(N),
        M=CHUNKS_PER_TILE,
        C=CHUNK,
        HAS_TAIL=feature_tail is not None,
        HAS_MODAL=modal is not None,
        UPCAST=interpreting(),
        **config.launch_arguments(),
    )
    return modal_end


@on_its_device
def launch_step(
    qkv: Tensor,
    featurizer: Tensor,
    log_poles: Tensor,
    residues: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    modal: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """A few positions by the recurrence; `[B, L, D]`, the feature tail and the modal state after them.

    `feature_tail` and `modal` are both given or both None (zeros); `qkv` may have any strides.
    """
    B, L, _ = qkv.shape
    D, N = log_poles.shape
    y = qkv.new_empty((B, L, D))
    tail_end = qkv.new_empty((B, 2, 3 * D))
    modal_end = torch.empty((B, D, N), dtype=torch.float32, device=qkv.device)
    config = select("hyena_li_step", qkv.device)
    hyena_li_step_kernel[(triton.cdiv(D, config.constants["BD"]), B)](
        qkv,
        featurizer.contiguous(),
        log_poles.contiguous(),
        residues.contiguous(),
        skip.contiguous(),
        qkv if feature_tail is None else feature_tail.contiguous(),
        log_poles if modal is None else modal.contiguous(),
        y,
        tail_end,
        modal_end,
        L,
        qkv.stride(0),
        qkv.stride(1),
        qkv.stride(2),
        D=D,
        N=N,
        NP=padded_poles(N),
        HAS_STATE=modal is not None,
        **config.launch_arguments(),
    )
    return y, tail_end, modal_end
