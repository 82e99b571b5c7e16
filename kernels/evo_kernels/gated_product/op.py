"""Public function of the gated product."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from evo_kernels.autograd import gradients_through_twin
from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_shape
from evo_kernels.errors import KernelError
from evo_kernels.gated_product.reference import gated_product_reference


@torch.library.custom_op("evo_kernels::gated_product", mutates_args=())
def _gated_product(gate: Tensor, value: Tensor, gelu: bool) -> Tensor:
    from evo_kernels.gated_product.forward import gated_product_forward

    return gated_product_forward(gate.contiguous(), value.contiguous(), gelu)


@torch.library.custom_op("evo_kernels::gated_product_backward", mutates_args=())
def _gated_product_backward(
    gate: Tensor, value: Tensor, grad_y: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    from evo_kernels.gated_product.backward import gated_product_backward

    return gated_product_backward(gate.contiguous(), value.contiguous(), grad_y.contiguous(), gelu)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gated_product.register_fake
def _(gate: Tensor, value: Tensor, gelu: bool) -> Tensor:
    return _like(gate)


@_gated_product_backward.register_fake
def _(gate: Tensor, value: Tensor, grad_y: Tensor, gelu: bool) -> tuple[Tensor, Tensor]:
    return _like(gate), _like(value)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    gate, value, ctx.gelu = inputs
    ctx.save_for_backward(gate, value)


def _twin(gate: Tensor, value: Tensor, *, gelu: bool) -> tuple[Tensor]:
    return (gated_product_reference(gate, value, gelu),)


def _backward(ctx: Any, grad_y: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():
        twin = functools.partial(_twin, gelu=ctx.gelu)
        return (*gradients_through_twin(twin, ctx.saved_tensors, (grad_y,)), None)
    grad_gate, grad_value = _gated_product_backward(*ctx.saved_tensors, grad_y, ctx.gelu)
    return grad_gate, grad_value, None


_gated_product.register_autograd(_backward, setup_context=_setup)


def gated_product(gate: Tensor, value: Tensor, *, gelu: bool, backend: Backend = "auto") -> Tensor:
    """Return `act(gate) * value`; `act` is the exact GELU or the identity.

    Args:
        gate, value: One shape and dtype.
        backend: "triton", "reference", or "auto" (Triton where the device allows).

    Returns:
        The shape and dtype of `gate`; the kernel computes in float32 and rounds once.

    Raises:
        KernelError: if shapes or dtypes disagree.
    """
    check_shape("value", value, tuple(gate.shape))
    if gate.dtype != value.dtype:
        raise KernelError(f"value is {value.dtype}, gate is {gate.dtype}; give both one dtype")
    if resolve("gated_product", backend, gate) == "reference":
        return gated_product_reference(gate, value, gelu)
    y: Tensor = _gated_product(gate, value, gelu)
    return y
