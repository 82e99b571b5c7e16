"""Forward kernel of the gated product: one pass over both factors."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.gated_product.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select

SQRT_HALF = tl.constexpr(0.7071067811865476)


@triton.jit
def _gated_product_forward(
    gate_ptr, value_ptr, y_ptr, size, GELU: tl.constexpr, BLOCK: tl.constexpr
):
    """`y = act(gate) * value` for BLOCK elements; GELU(x) = x * (1 + erf(x / sqrt 2)) / 2."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    gate = tl.load(gate_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    value = tl.load(value_ptr + i, mask=i < size, other=0.0).to(tl.float32)
    if GELU:
        gate = gate * 0.5 * (1.0 + tl.erf(gate * SQRT_HALF))
    tl.store(y_ptr + i, (gate * value).to(y_ptr.dtype.element_ty), mask=i < size)


@on_its_device
def gated_product_forward(gate: Tensor, value: Tensor, gelu: bool) -> Tensor:
    """Return `act(gate) * value` of contiguous tensors."""
    y = torch.empty_like(gate)
    config = select("gated_product_forward", gate.device)
    if gate.numel():
        _gated_product_forward[(triton.cdiv(gate.numel(), config.constants["BLOCK"]),)](
            gate, value, y, gate.numel(), GELU=gelu, **config.launch_arguments()
        )
    return y
