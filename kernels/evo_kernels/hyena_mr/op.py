"""Public function of Hyena-MR, and the operators of torch behind its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_kernels.autograd import gradients_through_twin
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_groups, check_qkv, check_shape
from evo_kernels.fir import fir_by_shifts
from evo_kernels.hyena_mr.reference import MRState, hyena_mr_reference

# Three blocks of 64 rows hold this many taps.
_MAX_TAPS = 129
# Chunks up to this long are direct sums: a tile of the kernel would be mostly padding.
_SMALL_CHUNK = 16


def hyena_mr(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    state: MRState | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, MRState | None]:
    """Return `q * (causal_conv(h, k * v) + skip * k * v)` after the 3-tap featurizers.

    Shapes: B batch, L positions in this chunk, D channels, G filter groups, K filter length.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`.
        featurizer: Depthwise taps, lag 0 first, `[3D, 3]`.
        h: Grouped taps, lag 0 first, `[G, K]`; channel c uses group `c // (D / G)`.
        skip: One weight per channel, `[D]`.
        state: What the positions before this chunk left; None means zeros.
        backend: "triton" (never falls back), "reference", or "auto" (Triton for bfloat16 and float16
            inputs on CUDA GPUs of compute capability 8.0 or later, the twin elsewhere). The kernels
            have float32 sums; products with h take k * v rounded to bfloat16, for float16 inputs
            too, which is what the state then holds.
        rounding: Round to this dtype where the released implementation does (after the
            featurizer, the gate, and the convolution with its skip); None keeps float32.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree or G does not divide D.
        KernelUnavailableError: for "triton" where the kernel cannot run.

    Source: StripedHyena 2 paper, section 2.
    """
    B, _, D = check_qkv(qkv, featurizer)
    check_groups(h, D)
    check_shape("skip", skip, (D,))
    if state is not None:
        check_shape("state.featurizer", state.featurizer, (B, featurizer.shape[1] - 1, 3 * D))
        check_shape("state.gated", state.gated, (B, h.shape[1] - 1, D))
    chosen = resolve(
        "hyena_mr", backend, qkv, unsupported=_unsupported(featurizer, h), rounding=rounding
    )
    if chosen == "reference":
        y, new_state = hyena_mr_reference(qkv, featurizer, h, skip, state, rounding)
        return y, new_state if return_state else None
    y, tail, gated = _hyena_mr(
        qkv,
        featurizer,
        h,
        skip,
        None if state is None else state.featurizer,
        None if state is None else state.gated,
        return_state,
    )
    return y, MRState(tail, gated) if return_state else None


def _unsupported(featurizer: Tensor, h: Tensor) -> str:
    if featurizer.shape[1] != 3:
        return f"its featurizers have 3 taps, not {featurizer.shape[1]}"
    if not 2 <= h.shape[1] <= _MAX_TAPS:
        return f"its filters have 2 to {_MAX_TAPS} taps, not {h.shape[1]}"
    return ""


@torch.library.custom_op("evo_kernels::hyena_mr", mutates_args=())
def _hyena_mr(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    keep_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the new tail and gated state (empty unless `keep_state`)."""
    from evo_kernels.hyena_mr.forward import launch_forward
    from evo_kernels.hyena_mr.step import launch_step_forward

    qkv, featurizer, h, skip = (x.contiguous() for x in (qkv, featurizer, h, skip))
    if tail is not None and gated is not None:
        tail, gated = tail.to(qkv.dtype).contiguous(), gated.float().contiguous()
    if qkv.shape[1] <= _SMALL_CHUNK:
        y, new_tail, new_gated = launch_step_forward(
            qkv, featurizer, h, skip, tail, gated, keep_state
        )
    else:
        y, new_gated = launch_forward(qkv, featurizer, h, skip, tail, gated, keep_state)
        new_tail = qkv[:, -2:].clone() if keep_state else None
    if new_tail is None or new_gated is None:
        return y, qkv.new_empty(0), qkv.new_empty(0, dtype=torch.float32)
    return y, new_tail, new_gated


@_hyena_mr.register_fake
def _(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    keep_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, L, C = qkv.shape
    y = qkv.new_empty(B, L, C // 3)
    if not keep_state:
        return y, qkv.new_empty(0), qkv.new_empty(0, dtype=torch.float32)
    kept = qkv.new_empty((B, h.shape[1] - 1, C // 3), dtype=torch.float32)
    return y, qkv.new_empty(B, 2, C), kept


@torch.library.custom_op("evo_kernels::hyena_mr_backward", mutates_args=())
def _hyena_mr_backward(
    dy: Tensor,
    dnew_tail: Tensor | None,
    dnew_gated: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    with_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, featurizer, h (empty unless `with_filter`), skip, tail and gated."""
    from evo_kernels.hyena_mr.backward import launch_backward

    dy, qkv, featurizer, h, skip = (x.contiguous() for x in (dy, qkv, featurizer, h, skip))
    if tail is not None and gated is not None:
        tail, gated = tail.to(qkv.dtype).contiguous(), gated.float().contiguous()
    if dnew_gated is not None:
        dnew_gated = dnew_gated.float().contiguous()
    dqkv, dfeaturizer, dh, dskip, dtail = launch_backward(
        dy, qkv, featurizer, h, skip, tail, gated, dnew_gated, with_filter
    )
    if dnew_tail is not None:
        length = min(2, qkv.shape[1])
        dqkv[:, -length:] += dnew_tail[:, -length:]
    if tail is None:
        dgated = qkv.new_empty(0, dtype=torch.float32)
    else:
        dgated = _state_gradient(dy, qkv, featurizer, h, tail)
        K, L = h.shape[1], qkv.shape[1]
        if dnew_gated is not None and L < K - 1:
            dgated[:, L:] += dnew_gated[:, : K - 1 - L]
        if dnew_tail is not None and L == 1:
            dtail[:, 1] += dnew_tail[:, 0]
    return dqkv, dfeaturizer, dh, dskip, dtail, dgated


def _state_gradient(dy: Tensor, qkv: Tensor, featurizer: Tensor, h: Tensor, tail: Tensor) -> Tensor:
    """What the first K - 1 positions of this chunk send to the gated inputs before it, float32."""
    B, L, D = dy.shape
    G, K = h.shape
    n = min(L, K - 1)
    raw = torch.cat([tail[:, :, :D], qkv[:, :n, :D]], dim=1).float()
    g = dy[:, :n].float() * fir_by_shifts(raw, featurizer[:D].float(), n)
    # Row r of the state lies K - 1 - r positions before the chunk.
    lag = torch.arange(n, device=h.device) + (K - 1 - torch.arange(K - 1, device=h.device)[:, None])
    taps = torch.where(lag < K, h[:, lag.clamp(max=K - 1)].float(), 0.0)  # [G, K - 1, n]
    past = torch.einsum("grt,btgd->brgd", taps, g.view(B, n, G, D // G))
    return past.reshape(B, K - 1, D).contiguous()


@_hyena_mr_backward.register_fake
def _(
    dy: Tensor,
    dnew_tail: Tensor | None,
    dnew_gated: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
    with_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def float32(*shape: int) -> Tensor:
        return qkv.new_empty(shape, dtype=torch.float32)

    B, _, D = dy.shape
    return (
        qkv.new_empty(qkv.shape),
        float32(3 * D, 3),
        float32(*h.shape) if with_filter else float32(0),
        float32(D),
        float32(0 if tail is None else B, 2, 3 * D),
        float32(0) if tail is None else float32(B, h.shape[1] - 1, D),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.keep_state = inputs[6]
    ctx.set_materialize_grads(False)


def _twin(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    tail: Tensor | None,
    gated: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    state = None if tail is None or gated is None else MRState(tail, gated)
    y, end = hyena_mr_reference(qkv, featurizer, h, skip, state, None)
    return y, end.featurizer, end.gated


def _backward(
    ctx: Any, dy: Tensor | None, dnew_tail: Tensor | None, dnew_gated: Tensor | None
) -> tuple[Tensor | None, ...]:
    qkv, featurizer, h, skip, tail, gated = ctx.saved_tensors
    if dy is None:
        dy = qkv.new_zeros(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)
    if not ctx.keep_state:
        dnew_tail = dnew_gated = None
    if torch.is_grad_enabled():
        grads = (dy, dnew_tail, dnew_gated)
        return (*gradients_through_twin(_twin, ctx.saved_tensors, grads), None)
    need = ctx.needs_input_grad
    dqkv, dfeaturizer, dh, dskip, dtail, dgated = _hyena_mr_backward(
        dy, dnew_tail, dnew_gated, qkv, featurizer, h, skip, tail, gated, need[2]
    )
    return (
        dqkv,
        dfeaturizer.to(featurizer.dtype) if need[1] else None,
        dh.to(h.dtype) if need[2] else None,
        dskip.to(skip.dtype) if need[3] else None,
        dtail.to(tail.dtype) if need[4] else None,
        dgated.to(gated.dtype) if need[5] else None,
        None,
    )


_hyena_mr.register_autograd(_backward, setup_context=_setup_context)
