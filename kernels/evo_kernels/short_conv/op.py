"""Public function of the featurizer, and the operators of torch behind its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_kernels.autograd import gradients_through_twin
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_chunk, check_shape
from evo_kernels.short_conv.reference import short_conv_reference

# A thread keeps the taps and their gradients in registers.
_MAX_TAPS = 8


def short_conv(
    x: Tensor,
    taps: Tensor,
    state: Tensor | None = None,
    *,
    return_state: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor | None]:
    """Return `y[t] = sum_j taps[:, j] * x[t - j]`, depthwise and causal.

    Shapes: B batch, L positions in this chunk, C channels, K taps.

    Args:
        x: `[B, L, C]`.
        taps: `[C, K]`, lag 0 first.
        state: The last K - 1 inputs before this chunk, `[B, K - 1, C]`; None means zeros.
        backend: "triton" (never falls back), "reference", or "auto" (Triton for bfloat16 and float16
            inputs on CUDA GPUs of compute capability 8.0 or later, the twin elsewhere).

    Returns:
        `[B, L, C]` in the dtype of `x` (sums are float32), and the new state if asked for.

    Raises:
        KernelError: if shapes disagree.
        KernelUnavailableError: for "triton" where the kernel cannot run.

    Source: StripedHyena 2 paper, section 2 (featurizer).
    """
    B, _, C = check_chunk("x", x)
    check_shape("taps", taps, (C, None))
    if state is not None:
        check_shape("state", state, (B, taps.shape[1] - 1, C))
    chosen = resolve("short_conv", backend, x, unsupported=_unsupported(C, taps.shape[1]))
    if chosen == "reference":
        y, new_state = short_conv_reference(x, taps, state)
        return y.to(x.dtype), new_state if return_state else None
    y, end = _short_conv(x, taps, state, return_state)
    return y, end if return_state else None


def _unsupported(C: int, K: int) -> str:
    if C % 16:
        return f"the number of channels is a multiple of 16, not {C}"
    if not 2 <= K <= _MAX_TAPS:
        return f"it has 2 to {_MAX_TAPS} taps, not {K}"
    return ""


@torch.library.custom_op("evo_kernels::short_conv", mutates_args=())
def _short_conv(
    x: Tensor, taps: Tensor, tail: Tensor | None, return_state: bool
) -> tuple[Tensor, Tensor]:
    """Output and the new state (empty unless asked for)."""
    from evo_kernels.short_conv.forward import launch_forward

    x, taps = x.contiguous(), taps.contiguous()
    return launch_forward(
        x, taps, None if tail is None else tail.to(x.dtype).contiguous(), return_state
    )


@_short_conv.register_fake
def _(x: Tensor, taps: Tensor, tail: Tensor | None, return_state: bool) -> tuple[Tensor, Tensor]:
    B, _, C = x.shape
    return x.new_empty(x.shape), x.new_empty((B, taps.shape[1] - 1, C) if return_state else (0,))


@torch.library.custom_op("evo_kernels::short_conv_backward", mutates_args=())
def _short_conv_backward(
    dy: Tensor, d_end: Tensor | None, x: Tensor, taps: Tensor, tail: Tensor | None, needs_taps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x, taps (empty unless `needs_taps`) and the old state."""
    from evo_kernels.short_conv.backward import launch_backward

    dy, x, taps = dy.contiguous(), x.contiguous(), taps.contiguous()
    tail = None if tail is None else tail.to(x.dtype).contiguous()
    d_end = None if d_end is None else d_end.contiguous()
    return launch_backward(dy, d_end, x, taps, tail, needs_taps)


@_short_conv_backward.register_fake
def _(
    dy: Tensor, d_end: Tensor | None, x: Tensor, taps: Tensor, tail: Tensor | None, needs_taps: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        x.new_empty(x.shape),
        x.new_empty(taps.shape if needs_taps else (0,), dtype=torch.float32),
        x.new_empty(0 if tail is None else tail.shape),
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:3])
    ctx.return_state = inputs[3]
    ctx.set_materialize_grads(False)


def _twin(x: Tensor, taps: Tensor, tail: Tensor | None) -> tuple[Tensor, Tensor]:
    y, end = short_conv_reference(x, taps, tail)
    return y.to(x.dtype), end


def _backward(ctx: Any, dy: Tensor | None, d_end: Tensor | None) -> tuple[Tensor | None, ...]:
    x, taps, tail = ctx.saved_tensors
    if dy is None:
        dy = torch.zeros_like(x)
    d_end = d_end if ctx.return_state else None
    if torch.is_grad_enabled():
        return (*gradients_through_twin(_twin, ctx.saved_tensors, (dy, d_end)), None)
    need = ctx.needs_input_grad
    dx, d_taps, d_tail = _short_conv_backward(dy, d_end, x, taps, tail, need[1])
    return (
        dx if need[0] else None,
        d_taps.to(taps.dtype) if need[1] else None,
        d_tail.to(tail.dtype) if need[2] else None,
        None,
    )


_short_conv.register_autograd(_backward, setup_context=_setup_context)
