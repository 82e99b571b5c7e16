"""Float32 logits from bfloat16 tensor-core products, and log-softmax with its gather in one pass.

The norm's scale goes into the weight and its root mean square behind the product:
`logits = (hidden @ (weight * scale)^T) / (rms(hidden) + eps)`. The hidden rows are bfloat16 as they
are, and a float32 weight is the exact sum of three bfloat16 parts (8 bits each of its 24), so that
every elementary product is exact and the sums are float32.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.launch import select
from evo_kernels.token_log_probs.configs import SLICE_ROWS

PARTS = 3

# Smallest normal float32, as in the twin of the norm.
TINY = tl.constexpr(1.1754943508222875e-38)


def three_parts(weight: Tensor, scale: Tensor) -> Tensor:
    """`weight * scale` as three bfloat16 matrices below each other, `[3V, D]`, largest first."""
    rest = weight.to(torch.float32) * scale.to(torch.float32)
    parts = []
    for _ in range(PARTS):
        part = rest.to(torch.bfloat16)
        parts.append(part)
        rest = rest - part.to(torch.float32)
    return torch.cat(parts)


@triton.jit
def _log_softmax_gather(
    hidden_ptr, products_ptr, targets_ptr, out_ptr, eps,
    D: tl.constexpr, V: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Log-probability of one row's target from its hidden state and its three products."""
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    x = tl.load(hidden_ptr + row * D + c, mask=c < D, other=0.0).to(tl.float32)
    rms = tl.sqrt_rn(tl.maximum(tl.sum(x * x, 0) / D, TINY))
    v = tl.arange(0, BLOCK_V)
    products = products_ptr + row * (3 * V)
    logits = tl.load(products + v + V, mask=v < V, other=0.0)
    logits += tl.load(products + v + 2 * V, mask=v < V, other=0.0)
    logits += tl.load(products + v, mask=v < V, other=0.0)
    logits = tl.where(v < V, logits / (rms + eps), float("-inf"))
    top = tl.max(logits, 0)
    normaliser = top + tl.log(tl.sum(tl.exp(logits - top), 0))
    target = tl.load(targets_ptr + row)
    wanted = tl.sum(tl.where(v == target, logits, 0.0), 0)
    known = (target >= 0) & (target < V)
    tl.store(out_ptr + row, tl.where(known, wanted - normaliser, float("nan")))


def token_log_probs_forward(
    hidden: Tensor, scale: Tensor, eps: float, weight: Tensor, targets: Tensor
) -> Tensor:
    """Return `[R]` float32 log-probabilities of `targets` `[R]` from contiguous `hidden` `[R, D]`."""
    R, D = hidden.shape
    V = weight.shape[0]
    parts = three_parts(weight, scale).t()
    if hidden.device.type == "cpu":  # the interpreter: float32 products of the same numbers
        parts = parts.to(torch.float32)
    out = torch.empty(R, dtype=torch.float32, device=hidden.device)
    for start in range(0, R, SLICE_ROWS):
        rows = hidden[start : start + SLICE_ROWS]
        if hidden.device.type == "cpu":
            products = rows.to(torch.float32) @ parts
        else:
            products = torch.mm(rows, parts, out_dtype=torch.float32)
        _log_softmax_gather[(rows.shape[0],)](
            rows, products, targets[start : start + SLICE_ROWS], out[start : start + SLICE_ROWS],
            eps, D=D, V=V, BLOCK_D=triton.next_power_of_2(D), BLOCK_V=triton.next_power_of_2(V),
            **select("token_log_probs", hidden.device).launch_arguments(),
        )  # fmt: skip
    return out
