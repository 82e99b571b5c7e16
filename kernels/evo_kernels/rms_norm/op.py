"""Public functions of root-mean-square normalisation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_kernels.autograd import gradients_through_twin
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_shape
from evo_kernels.errors import KernelError
from evo_kernels.rms_norm.reference import rms_norm_reference

# One program holds a row in registers.
_MAX_WIDTH = 16384


@torch.library.custom_op("evo_kernels::rms_norm", mutates_args=())
def _rms_norm(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    from evo_kernels.rms_norm.forward import rms_norm_forward

    return rms_norm_forward(x.contiguous(), None, scale.contiguous(), eps)[0]


@torch.library.custom_op("evo_kernels::add_rms_norm", mutates_args=())
def _add_rms_norm(x: Tensor, added: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    from evo_kernels.rms_norm.forward import rms_norm_forward

    y, total = rms_norm_forward(x.contiguous(), added.contiguous(), scale.contiguous(), eps)
    assert total is not None
    return total, y


@torch.library.custom_op("evo_kernels::rms_norm_backward", mutates_args=())
def _rms_norm_backward(
    x: Tensor, scale: Tensor, grad_y: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    from evo_kernels.rms_norm.backward import rms_norm_backward

    other = None if grad_total is None else grad_total.contiguous()
    return rms_norm_backward(x.contiguous(), scale.contiguous(), grad_y.contiguous(), other, eps)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_rms_norm.register_fake
def _(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    return _like(x)


@_add_rms_norm.register_fake
def _(x: Tensor, added: Tensor, scale: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    return _like(x), _like(x)


@_rms_norm_backward.register_fake
def _(
    x: Tensor, scale: Tensor, grad_y: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    return _like(x), _like(scale)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, scale, ctx.eps = inputs
    ctx.save_for_backward(x, scale)


def _through_twin(ctx: Any, grads: tuple[Tensor, ...]) -> list[Tensor | None]:
    return gradients_through_twin(
        lambda x, scale: (rms_norm_reference(x, scale, ctx.eps),), ctx.saved_tensors, grads
    )


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        return (*_through_twin(ctx, (grad_y,)), None)
    grad_x, grad_scale = _rms_norm_backward(*ctx.saved_tensors, grad_y, None, ctx.eps)
    return grad_x, grad_scale, None


def _setup_add(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, scale, ctx.eps = inputs
    ctx.save_for_backward(output[0], scale)


def _backward_add(ctx: Any, grad_total: Tensor, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        of_sum, grad_scale = _through_twin(ctx, (grad_y,))
        grad_sum = grad_total if of_sum is None else of_sum + grad_total
        return grad_sum, grad_sum, grad_scale, None
    grad_x, grad_scale = _rms_norm_backward(*ctx.saved_tensors, grad_y, grad_total, ctx.eps)
    return grad_x, grad_x, grad_scale, None


_rms_norm.register_autograd(_backward, setup_context=_setup)
_add_rms_norm.register_autograd(_backward_add, setup_context=_setup_add)


def _unsupported(x: Tensor, scale: Tensor) -> str:
    check_shape("scale", scale, (x.shape[-1],))
    return "" if x.shape[-1] <= _MAX_WIDTH else f"a row is wider than {_MAX_WIDTH} channels"


def rms_norm(x: Tensor, scale: Tensor, eps: float, *, backend: Backend = "auto") -> Tensor:
    """Return `scale * x / (rms(x) + eps)` over the last axis: eps stands outside the root.

    Args:
        x: `[..., D]`.
        scale: `[D]`.
        backend: "triton", "reference", or "auto" (Triton where the device allows).

    Returns:
        The shape and dtype of `x`; computed in float32 (float64 for float64), rounded once.

    Raises:
        KernelError: if shapes disagree.
    """
    if resolve("rms_norm", backend, x, unsupported=_unsupported(x, scale)) == "reference":
        return rms_norm_reference(x, scale, eps)
    y: Tensor = _rms_norm(x, scale, eps)
    return y


def add_rms_norm(
    x: Tensor, added: Tensor, scale: Tensor, eps: float, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Return `x + added` and its `rms_norm`, reading and writing each row once.

    Args:
        x, added: `[..., D]`, one dtype.
        scale: `[D]`.

    Returns:
        The sum in the dtype of `x`, and that (rounded) sum normalised.

    Raises:
        KernelError: if shapes or dtypes disagree.
    """
    check_shape("added", added, tuple(x.shape))
    if added.dtype != x.dtype:
        raise KernelError(f"added is {added.dtype}, x is {x.dtype}; give both one dtype")
    if resolve("add_rms_norm", backend, x, unsupported=_unsupported(x, scale)) == "reference":
        total = added + x
        return total, rms_norm_reference(total, scale, eps)
    total, y = _add_rms_norm(x, added, scale, eps)
    return total, y
