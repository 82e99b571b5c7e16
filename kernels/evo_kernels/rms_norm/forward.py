"""Forward kernel of root-mean-square normalisation: one program per row, one pass."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

import evo_kernels.rms_norm.configs  # noqa: F401  (fills the launch table)
from evo_kernels.launch import on_its_device, select

# Smallest normal float32, as in the twin.
TINY = tl.constexpr(1.1754943508222875e-38)


@triton.jit
def _rms_norm_forward(
    x_ptr, added_ptr, scale_ptr, y_ptr, total_ptr, eps,
    D: tl.constexpr, BLOCK: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """`total = x + added; y = scale * total / (rms(total) + eps)` for one row of D channels."""
    row = tl.program_id(0).to(tl.int64) * D
    c = tl.arange(0, BLOCK)
    x = tl.load(x_ptr + row + c, mask=c < D, other=0.0).to(tl.float32)
    if ADD:
        x += tl.load(added_ptr + row + c, mask=c < D, other=0.0).to(tl.float32)
        total = x.to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + row + c, total, mask=c < D)
        x = total.to(tl.float32)  # what later layers will read
    rms = tl.sqrt_rn(tl.maximum(tl.sum(x * x, 0) / D, TINY))
    scale = tl.load(scale_ptr + c, mask=c < D, other=0.0).to(tl.float32)
    y = scale * (x * (1.0 / (rms + eps)))
    tl.store(y_ptr + row + c, y.to(y_ptr.dtype.element_ty), mask=c < D)


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
        _rms_norm_forward[(rows,)](
            x, x if added is None else added, scale, y, y if total is None else total, eps,
            D=D, BLOCK=triton.next_power_of_2(D), ADD=added is not None,
            **select("rms_norm_forward", x.device).launch_arguments(),
        )  # fmt: skip
    return y, total
