"""Forward kernel of root-mean-square normalisation: a few rows a program, one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.rms_norm.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select
from evo_kernels.rms_norm.configs import rows_per_tile

# Smallest normal float32, as in the twin.
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def row_tile(first, rows, ROWS: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr):
    """Offsets and mask of rows `first` ... `first + ROWS - 1`, each `[ROWS, BLOCK]`."""
    row = first + tl.arange(0, ROWS)[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    return row.to(tl.int64) * D + c, (row < rows) & (c < D)


@triton.jit
def _rms_norm_forward(
    x_ptr, added_ptr, scale_ptr, y_ptr, total_ptr, eps, rows,
    D: tl.constexpr, BLOCK: tl.constexpr, ROWS: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """`total = x + added; y = scale * total / (rms(total) + eps)` for ROWS rows of D channels."""
    at, mask = row_tile(tl.program_id(0) * ROWS, rows, ROWS, D, BLOCK)
    x = tl.load(x_ptr + at, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(added_ptr + at, mask=mask, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + at, total, mask=mask)
        x = total.to(tl.float32)  # what later layers will read
    rms = tl.sqrt_rn(tl.maximum(tl.sum(x * x, 1) / D, TINY))[:, None]
    c = tl.arange(0, BLOCK)[None, :]
    scale = tl.load(scale_ptr + c, mask=c < D, other=0.0).to(tl.float32)
    y = scale * (x * (1.0 / (rms + eps)))
    tl.store(y_ptr + at, y.to(y_ptr.dtype.element_ty), mask=mask)


@on_its_device
def rms_norm_forward(
    x: Tensor, added: Tensor | None, scale: Tensor, eps: float
) -> tuple[Tensor, Tensor | None]:
    """Return the normalised rows and, where `added` is given, the sums that they come from.

    Args:
        x, added: `[..., D]`, contiguous.
        scale: `[D]`.
    """
    D = x.shape[-1]
    y = torch.empty_like(x)
    total = None if added is None else torch.empty_like(x)
    rows = x.numel() // D
    if rows:
        block = triton.next_power_of_2(D)
        tile = rows_per_tile(block)
        _rms_norm_forward[(triton.cdiv(rows, tile),)](
            x, x if added is None else added, scale, y, y if total is None else total, eps, rows,
            D=D, BLOCK=block, ROWS=tile, ADD=added is not None,
            **select("rms_norm_forward", x.device).launch_arguments(),
        )  # fmt: skip
    return y, total
