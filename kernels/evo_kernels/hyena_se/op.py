"""Public function of Hyena-SE, and the operators of torch behind its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_kernels.autograd import gradients_through_twin
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_groups, check_qkv, check_shape
from evo_kernels.hyena_se.reference import SEState, hyena_se_reference

# A thread keeps a window of this many gated inputs, and as many taps, in registers.
_MAX_TAPS = 9


def hyena_se(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    state: SEState | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
    rounding: torch.dtype | None = None,
) -> tuple[Tensor, SEState | None]:
    """Return `q * causal_conv(h, k * v)` after the 3-tap featurizers: the whole Hyena-SE operator.

    Shapes: B batch, L positions in this chunk, D channels, G filter groups, K filter length.

    Args:
        qkv: Projected inputs in blocks [q | k | v], `[B, L, 3D]`.
        featurizer: Depthwise taps, lag 0 first, `[3D, 3]`.
        h: Grouped taps, lag 0 first, `[G, K]`; channel c uses group `c // (D / G)`.
        state: What the positions before this chunk left; None means zeros.
        backend: "triton" (never falls back), "reference", or "auto" (Triton for bfloat16 and float16
            inputs on CUDA GPUs of compute capability 8.0 or later, the twin elsewhere). The kernels
            sum in float32 and round once, at the output.
        rounding: Round to this dtype where the released implementation does (after the
            featurizer, the gate, the convolution); None keeps float32 throughout.

    Returns:
        `[B, L, D]` in the dtype of `qkv` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree or G does not divide D.
        KernelUnavailableError: for "triton" where the kernel cannot run.

    Source: StripedHyena 2 paper, section 2.
    """
    B, _, D = check_qkv(qkv, featurizer)
    check_groups(h, D)
    if state is not None:
        check_shape("state.featurizer", state.featurizer, (B, featurizer.shape[1] - 1, 3 * D))
        check_shape("state.gated", state.gated, (B, h.shape[1] - 1, D))
    chosen = resolve(
        "hyena_se", backend, qkv, unsupported=_unsupported(D, featurizer, h), rounding=rounding
    )
    if chosen == "reference":
        y, new_state = hyena_se_reference(qkv, featurizer, h, state, rounding)
        return y, new_state if return_state else None
    y, feature_end, gated_end = _hyena_se(
        qkv,
        featurizer,
        h,
        None if state is None else state.featurizer,
        None if state is None else state.gated,
        return_state,
    )
    return y, SEState(feature_end, gated_end) if return_state else None


def _unsupported(D: int, featurizer: Tensor, h: Tensor) -> str:
    if D % 16:
        return f"its width is a multiple of 16, not {D}"
    if featurizer.shape[1] != 3:
        return f"its featurizers have 3 taps, not {featurizer.shape[1]}"
    if not 2 <= h.shape[1] <= _MAX_TAPS:
        return f"its filters have 2 to {_MAX_TAPS} taps, not {h.shape[1]}"
    return ""


@torch.library.custom_op("evo_kernels::hyena_se", mutates_args=())
def _hyena_se(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the new state's two tails (empty unless asked for)."""
    from evo_kernels.hyena_se.forward import launch_forward

    qkv, featurizer, h = (x.contiguous() for x in (qkv, featurizer, h))
    if feature_tail is not None and gated_tail is not None:
        feature_tail = feature_tail.to(qkv.dtype).contiguous()
        gated_tail = gated_tail.float().contiguous()
    return launch_forward(qkv, featurizer, h, feature_tail, gated_tail, return_state)


@_hyena_se.register_fake
def _(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    return_state: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    B, L, C = qkv.shape
    y = qkv.new_empty(B, L, C // 3)
    if not return_state:
        return y, qkv.new_empty(0), qkv.new_empty(0, dtype=torch.float32)
    kept = qkv.new_empty((B, h.shape[1] - 1, C // 3), dtype=torch.float32)
    return y, qkv.new_empty(B, featurizer.shape[1] - 1, C), kept


@torch.library.custom_op("evo_kernels::hyena_se_backward", mutates_args=())
def _hyena_se_backward(
    dy: Tensor,
    d_feature_end: Tensor | None,
    d_gated_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, featurizer, h (empty unless `needs_weights`) and the state's two tails."""
    from evo_kernels.hyena_se.backward import launch_backward

    dy, qkv, featurizer, h = (x.contiguous() for x in (dy, qkv, featurizer, h))
    if feature_tail is not None and gated_tail is not None:
        feature_tail = feature_tail.to(qkv.dtype).contiguous()
        gated_tail = gated_tail.float().contiguous()
    if d_feature_end is not None or d_gated_end is not None:
        # The kernel takes both or none.
        B, _, C = qkv.shape
        if d_feature_end is None:
            d_feature_end = qkv.new_zeros(B, featurizer.shape[1] - 1, C)
        if d_gated_end is None:
            d_gated_end = dy.new_zeros((B, h.shape[1] - 1, C // 3), dtype=torch.float32)
        d_feature_end, d_gated_end = d_feature_end.contiguous(), d_gated_end.float().contiguous()
    return launch_backward(
        dy, d_feature_end, d_gated_end, qkv, featurizer, h, feature_tail, gated_tail, needs_weights
    )


@_hyena_se_backward.register_fake
def _(
    dy: Tensor,
    d_feature_end: Tensor | None,
    d_gated_end: Tensor | None,
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
    needs_weights: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    def float32(*shape: int) -> Tensor:
        return qkv.new_empty(shape, dtype=torch.float32)

    return (
        qkv.new_empty(qkv.shape),
        float32(*featurizer.shape) if needs_weights else float32(0),
        float32(*h.shape) if needs_weights else float32(0),
        qkv.new_empty(0 if feature_tail is None else feature_tail.shape),
        float32(0) if gated_tail is None else float32(*gated_tail.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:5])
    ctx.return_state = inputs[5]
    ctx.set_materialize_grads(False)


def _twin(
    qkv: Tensor,
    featurizer: Tensor,
    h: Tensor,
    feature_tail: Tensor | None,
    gated_tail: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    state = None
    if feature_tail is not None and gated_tail is not None:
        state = SEState(feature_tail, gated_tail)
    y, end = hyena_se_reference(qkv, featurizer, h, state, None)
    return y, end.featurizer, end.gated


def _backward(
    ctx: Any, dy: Tensor | None, d_feature_end: Tensor | None, d_gated_end: Tensor | None
) -> tuple[Tensor | None, ...]:
    qkv, featurizer, h, feature_tail, gated_tail = ctx.saved_tensors
    if dy is None:
        dy = qkv.new_zeros(qkv.shape[0], qkv.shape[1], qkv.shape[2] // 3)
    if not ctx.return_state:
        d_feature_end = d_gated_end = None
    if torch.is_grad_enabled():
        grads = (dy, d_feature_end, d_gated_end)
        return (*gradients_through_twin(_twin, ctx.saved_tensors, grads), None)
    need = ctx.needs_input_grad
    dqkv, d_featurizer, d_h, d_feature_tail, d_gated_tail = _hyena_se_backward(
        dy, d_feature_end, d_gated_end, qkv, featurizer, h, feature_tail, gated_tail, need[1] or need[2]
    )  # fmt: skip
    return (
        dqkv if need[0] else None,
        d_featurizer.to(featurizer.dtype) if need[1] else None,
        d_h.to(h.dtype) if need[2] else None,
        d_feature_tail.to(feature_tail.dtype) if need[3] else None,
        d_gated_tail.to(gated_tail.dtype) if need[4] else None,
        None,
    )


_hyena_se.register_autograd(_backward, setup_context=_setup_context)
