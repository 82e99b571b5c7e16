"""Public function of the rotary embedding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from evo_kernels.backend import Backend, resolve
from evo_kernels.checks import check_shape
from evo_kernels.errors import KernelError
from evo_kernels.rotary.reference import rotate_pairs


@torch.library.custom_op("evo_kernels::rotary", mutates_args=())
def _rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, opposite: bool
) -> tuple[Tensor, Tensor]:
    from evo_kernels.rotary.forward import rotary_forward

    return rotary_forward(q, k, cos.contiguous(), sin.contiguous(), opposite=opposite)


@_rotary.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, opposite: bool) -> tuple[Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    _, _, cos, sin, ctx.opposite = inputs
    ctx.save_for_backward(cos, sin)


def _backward(ctx: Any, grad_q: Tensor, grad_k: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
    grad_q, grad_k = _rotary(grad_q, grad_k, *ctx.saved_tensors, not ctx.opposite)
    return grad_q, grad_k, None, None, None


_rotary.register_autograd(_backward, setup_context=_setup)


def rotary(
    q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, backend: Backend = "auto"
) -> tuple[Tensor, Tensor]:
    """Rotate the pairs (i, i + E/2) of every head of queries and keys.

    Shapes: B batch, L positions, H heads, E channels per head.

    Args:
        q, k: `[B, L, H, E]`.
        cos, sin: Of each position's angles, `[L, E/2]`, or `[B, L, E/2]` where rows begin at
            positions of their own; float32 (float64 for float64); constants to autograd.
        backend: "triton", "reference", or "auto" (Triton where the device allows).

    Returns:
        Rotated q and k in their dtype; computed in float32, rounded once.

    Raises:
        KernelError: if shapes disagree.
    """
    if q.dim() != 4 or q.shape[3] % 2:
        raise KernelError(
            f"q has shape {tuple(q.shape)}; it must be [batch, positions, heads, channels] with an even number of channels"
        )
    check_shape("k", k, tuple(q.shape))
    for name, table in (("cos", cos), ("sin", sin)):
        rows = (q.shape[0],) if table.dim() == 3 else ()
        check_shape(name, table, (*rows, q.shape[1], q.shape[3] // 2))
    check_shape("sin", sin, tuple(cos.shape))
    if resolve("rotary", backend, q) == "reference":
        return rotate_pairs(q, cos, sin), rotate_pairs(k, cos, sin)
    rotated_q, rotated_k = _rotary(q, k, cos, sin, False)
    return rotated_q, rotated_k
