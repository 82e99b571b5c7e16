"""Backward kernel of root-mean-square normalisation: everything recomputed from the rows."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.launch import on_its_device, select
from evo_kernels.rms_norm.configs import BACKWARD_PROGRAMS, rows_per_tile
from evo_kernels.rms_norm.forward import TINY, row_tile


@triton.jit
def _rms_norm_backward(
    x_ptr, scale_ptr, grad_y_ptr, grad_total_ptr, grad_x_ptr, partial_ptr, eps, rows,
    rows_per_program, D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr,
    HAS_TOTAL: tl.constexpr,
):  # fmt: skip
    """Gradient of a run of rows, and the scale's gradient summed over them.

    With r = 1 / (rms + eps): `dx = r * s * g - x * r^2 * sum(g * s * x) / (D * rms)`.
    """
    program = tl.program_id(0)
    c = tl.arange(0, BLOCK)[None, :]
    scale = tl.load(scale_ptr + c, mask=c < D, other=0.0).to(tl.float32)
    grad_scale = tl.zeros((ROWS, BLOCK), tl.float32)
    begin = program * rows_per_program
    for first in range(begin, tl.minimum(begin + rows_per_program, rows), ROWS):
        at, mask = row_tile(first, rows, ROWS, D, BLOCK)
        x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
        g = tl.load(grad_y_ptr + at, mask=mask, other=0.0).to(tl.float32)
        mean_square = tl.sum(x * x, 1)[:, None] / D
        rms = tl.sqrt_rn(tl.maximum(mean_square, TINY))
        inverse = 1.0 / (rms + eps)
        weighted = g * scale
        slope = tl.sum(weighted * x, 1)[:, None] * inverse * inverse / (D * rms)
        grad_x = weighted * inverse - x * tl.where(mean_square < TINY, 0.0, slope)
        if HAS_TOTAL:
            grad_x += tl.load(grad_total_ptr + at, mask=mask, other=0.0).to(tl.float32)
        tl.store(grad_x_ptr + at, grad_x.to(grad_x_ptr.dtype.element_ty), mask=mask)
        grad_scale += g * x * inverse
    total = tl.sum(grad_scale, 0)[None, :]
    tl.store(partial_ptr + program.to(tl.int64) * D + c, total, mask=c < D)


@on_its_device
def rms_norm_backward(
    x: Tensor, scale: Tensor, grad_y: Tensor, grad_total: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Return the gradients of the rows and of the scale.

    Args:
        x: The rows that were normalised, `[..., D]`, contiguous.
        grad_y: Of the normalised rows, contiguous.
        grad_total: What reaches the rows on another way, contiguous, or None.
    """
    D = x.shape[-1]
    rows = x.numel() // D
    grad_x = torch.empty_like(x)
    if not rows:
        return grad_x, torch.zeros_like(scale)
    block = triton.next_power_of_2(D)
    tile = rows_per_tile(block)
    per_program = triton.cdiv(rows, BACKWARD_PROGRAMS * tile) * tile
    programs = triton.cdiv(rows, per_program)
    partial = torch.empty((programs, D), dtype=torch.float32, device=x.device)
    _rms_norm_backward[(programs,)](
        x, scale, grad_y, x if grad_total is None else grad_total, grad_x, partial, eps, rows,
        per_program, D=D, BLOCK=block, ROWS=tile, HAS_TOTAL=grad_total is not None,
        **select("rms_norm_backward", x.device).launch_arguments(),
    )  # fmt: skip
    return grad_x, partial.sum(0).to(scale.dtype)
