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
    y, feature_tail, gated_tail = _hyena_mr(
        qkv,
        featurizer,
        h,
        skip,
        None if state is None else state.featurizer,
        None if state is None else state.gated,
        return_state,
    )
    return y, MRState(feature_tail, gated_tail) if return_state else None


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
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the new state's two tails (empty unless `return_state`)."""
    from evo_kernels.hyena_mr.forward import launch_forward
    from evo_kernels.hyena_mr.step import launch_step_forward

    qkv, featurizer, h, skip = (x.contiguous() for x in (qkv, featurizer, h, skip))
    if feature_tail is not None and gated_tail is not None:
        feature_tail, gated_tail = (
            feature_tail.to(qkv.dtype).contiguous(),
            gated_tail.float().contiguous(),
        )
    if qkv.shape[1] <= _SMALL_CHUNK:
        y, feature_end, gated_end = launch_step_forward(
            qkv, featurizer, h, skip, feature_tail, gated_tail, return_state
        )
    else:
        y, gated_end = launch_forward(
            qkv, featurizer, h, skip, feature_tail, gated_tail, return_state
        )
        feature_end = qkv[:, -2:].clone() if return_state else None
    if feature_end is None or gated_end is None:
        return y, qkv.new_empty(0), qkv.new_empty(0, dtype=torch.float32)
    return y, feature_end, gated_end


@_hyena_mr.register_fake
def _(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, L, C = qkv.shape
    y = qkv.new_empty(B, L, C // 3)
    if not return_state:
        return y, qkv.new_empty(0), qkv.new_empty(0, dtype=torch.float32)
    kept = qkv.new_empty((B, h.shape[1] - 1, C // 3), dtype=torch.float32)
    return y, qkv.new_empty(B, 2, C), kept


@torch.library.custom_op("evo_kernels::hyena_mr_backward", mutates_args=())
def _hyena_mr_backward(
    dy: Tensor,
    d_feature_end: Tensor | None,
    d_gated_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    needs_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, featurizer, h (empty unless `needs_filter`), skip and the state's two tails."""
    from evo_kernels.hyena_mr.backward import launch_backward

    dy, qkv, featurizer, h, skip = (x.contiguous() for x in (dy, qkv, featurizer, h, skip))
    if feature_tail is not None and gated_tail is not None:
        feature_tail, gated_tail = (
            feature_tail.to(qkv.dtype).contiguous(),
            gated_tail.float().contiguous(),
        )
    if d_gated_end is not None:
        d_gated_end = d_gated_end.float().contiguous()
    dqkv, d_featurizer, d_h, d_skip, d_feature_tail = launch_backward(
        dy, qkv, featurizer, h, skip, feature_tail, gated_tail, d_gated_end, needs_filter
    )
    if d_feature_end is not None:
        length = min(2, qkv.shape[1])
        dqkv[:, -length:] += d_feature_end[:, -length:]
    if feature_tail is None:
        d_gated_tail = qkv.new_empty(0, dtype=torch.float32)
    else:
        d_gated_tail = _state_gradient(dy, qkv, featurizer, h, feature_tail)
        K, L = h.shape[1], qkv.shape[1]
        if d_gated_end is not None and L < K - 1:
            d_gated_tail[:, L:] += d_gated_end[:, : K - 1 - L]
        if d_feature_end is not None and L == 1:
            d_feature_tail[:, 1] += d_feature_end[:, 0]
    return dqkv, d_featurizer, d_h, d_skip, d_feature_tail, d_gated_tail


def _state_gradient(
    dy: Tensor, qkv: Tensor, featurizer: Tensor, h: Tensor, feature_tail: Tensor
) -> Tensor:
    """What the first K - 1 positions of this chunk send to the gated inputs before it, float32."""
    B, L, D = dy.shape
    G, K = h.shape
    n = min(L, K - 1)
    raw = torch.cat([feature_tail[:, :, :D], qkv[:, :n, :D]], dim=1).float()
    g = dy[:, :n].float() * fir_by_shifts(raw, featurizer[:D].float(), n)
    # Row r of the state lies K - 1 - r positions before the chunk.
    lag = torch.arange(n, device=h.device) + (K - 1 - torch.arange(K - 1, device=h.device)[:, None])
    taps = torch.where(lag < K, h[:, lag.clamp(max=K - 1)].float(), 0.0)  # [G, K - 1, n]
    past = torch.einsum("grt,btgd->brgd", taps, g.view(B, n, G, D // G))
    return past.reshape(B, K - 1, D).contiguous()


@_hyena_mr_backward.register_fake
def _(
    dy: Tensor,
    d_feature_end: Tensor | None,
    d_gated_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    needs_filter: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    def float32(*shape: int) -> Tensor:
        return qkv.new_empty(shape, dtype=torch.float32)

    B, _, D = dy.shape
    return (
        qkv.new_empty(qkv.shape),
        float32(3 * D, 3),
        float32(*h.shape) if needs_filter else float32(0),
        float32(D),
        float32(0 if feature_tail is None else B, 2, 3 * D),
        float32(0) if feature_tail is None else float32(B, h.shape[1] - 1, D),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.return_state = inputs[6]
    ctx.set_materialize_grads(False)


def _twin(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    skip: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    state = (
        None if feature_tail is None or gated_tail is None else MRState(feature_tail, gated_tail)
    )
    y, end = hyena_mr_reference(qkv, featurizer, h, skip, state, None)
    return y, end.featurizer, end.gated


def _backward(
    ctx: Any, dy: Tensor | None, d_feature_end: Tensor | None, d_gated_end: Tensor | None
) -> tuple[Tensor | None, ...]:
    qkv, featurizer, h, skip, feature_tail, gated_tail = ctx.saved_tensors
    if dy is None:
        dy = qkv.new_zeros(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)
    if not ctx.return_state:
        d_feature_end = d_gated_end = None
    if torch.is_grad_enabled():
        grads = (dy, d_feature_end, d_gated_end)
        return (*gradients_through_twin(_twin, ctx.saved_tensors, grads), None)
    need = ctx.needs_input_grad
    dqkv, d_featurizer, d_h, d_skip, d_feature_tail, d_gated_tail = _hyena_mr_backward(
        dy, d_feature_end, d_gated_end, qkv, featurizer, h, skip, feature_tail, gated_tail, need[2]
    )
    return (
        dqkv,
        d_featurizer.to(featurizer.dtype) if need[1] else None,
        d_h.to(h.dtype) if need[2] else None,
        d_skip.to(skip.dtype) if need[3] else None,
        d_feature_tail.to(feature_tail.dtype) if need[4] else None,
        d_gated_tail.to(gated_tail.dtype) if need[5] else None,
        None,
    )


_hyena_mr.register_autograd(_backward, setup_context=_setup_context)
