"""Backward kernel of the gated product: both gradients in one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.gated_product.forward import SQRT_HALF
from evo_kernels.launch import on_its_device, select

SQRT_HALF_OVER_PI = tl.constexpr(0.3989422804014327)


@triton.jit
def _gated_product_backward(
    gate_ptr, value_ptr, grad_y_ptr, grad_gate_ptr, grad_value_ptr, size,
    GELU: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`dvalue = g * act(gate)`, `dgate = g * value * act'(gate)` for BLOCK elements."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    value = tl.load(value_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    g = tl.load(grad_y_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    active, slope = gate, 1.0
    if GELU:
        below = 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
        active = gate * below
        slope = below + gate * SQRT_HALF_OVER_PI * tl.exp(-0.5 * gate * gate)
    grad_gate = g * value * slope
    tl.store(grad_gate_ptr + i, grad_gate.to(grad_gate_ptr.dtype.element_ty), mask=i < size)
    grad_value = g * active
    tl.store(grad_value_ptr + i, grad_value.to(grad_value_ptr.dtype.element_ty), mask=i < size)


@on_its_device
def gated_product_backward(
    gate: Tensor, value: Tensor, grad_y: Tensor, gelu: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients of gate and value; all tensors contiguous."""
    grad_gate, grad_value = torch.empty_like(gate), torch.empty_like(value)
    config = select("gated_product_backward", gate.device)
    if gate.numel():
        _gated_product_backward[(triton.cdiv(gate.numel(), config.constants["BLOCK"]),)](
            gate, value, grad_y, grad_gate, grad_value, gate.numel(), GELU=gelu,
            **config.launch_arguments(),
        )  # fmt: skip
    return grad_gate, grad_value
