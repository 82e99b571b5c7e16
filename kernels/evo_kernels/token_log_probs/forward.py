"""Float32 logits from bfloat16 tensor-core products, and log-softmax with its gather in one pass.

The norm's scale goes into the weight and its root mean square behind the product:
`logits = (hidden @ (weight * scale)^T) / (rms(hidden) + eps)`. The hidden rows are bfloat16 as they
are, and a float32 weight is the exact sum of three bfloat16 parts (8 bits each of its 24), so that
every elementary product is exact. Tensor cores truncate as they sum, which over a whole row would
lose more than a float32 product does; the large part is therefore summed in pieces of PIECE
channels, whose float32 sums are added with rounding.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from evo_kernels.launch import on_its_device, select
from evo_kernels.token_log_probs.configs import SLICE_ROWS

# Most channels that tensor cores sum without a float32 rounding between.
PIECE = 128

# Smallest normal float32, as in the twin of the norm.
TINY = tl.constexpr(1.1754943508222875e-38)


def three_parts(weight: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """`weight * scale` as bfloat16: its large part `[V, D]`, and middle and small part `[2V, D]`."""
    parts = []
    rest = weight.to(torch.float32) * scale.to(torch.float32)
    for _ in range(3):
        part = rest.to(torch.bfloat16)
        parts.append(part)
        rest = rest - part.to(torch.float32)
    return parts[0], torch.cat(parts[1:])


def pieces_of(width: int) -> int:
    """Into how many equal pieces of at most PIECE channels, whole vectors of 8, a row is cut."""
    vectors = width // 8
    return next(n for n in range(triton.cdiv(width, PIECE), vectors + 1) if vectors % n == 0)


@triton.jit
def _log_softmax_gather(
    hidden_ptr, pieces_ptr, rest_ptr, targets_ptr, out_ptr, eps, rows,
    D: tl.constexpr, V: tl.constexpr, PIECES: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_V: tl.constexpr,
):  # fmt: skip
    """Log-probability of one row's target from its hidden state and its products.

    Pieces of the large part's product are `[PIECES, rows, V]`, the rest's `[rows, 2V]`.
    """
    row = tl.program_id(0).to(tl.int64)
    c = tl.arange(0, BLOCK_D)
    x = tl.load(hidden_ptr + row * D + c, mask=c < D, other=0.0).to(tl.float32)
    rms = tl.sqrt_rn(tl.maximum(tl.sum(x * x, 0) / D, TINY))
    v = tl.arange(0, BLOCK_V)
    rest = rest_ptr + row * (2 * V)
    logits = tl.load(rest + v + V, mask=v < V, other=0.0)
    logits += tl.load(rest + v, mask=v < V, other=0.0)
    for piece in tl.static_range(PIECES):
        at = (piece * rows + row) * V  # row is 64 bits wide
        logits += tl.load(pieces_ptr + at + v, mask=v < V, other=0.0)
    logits = tl.where(v < V, logits / (rms + eps), float("-inf"))
    top = tl.max(logits, 0)
    normaliser = top + tl.log(tl.sum(tl.exp(logits - top), 0))
    target = tl.load(targets_ptr + row)
    wanted = tl.sum(tl.where(v == target, logits, 0.0), 0)
    known = (target >= 0) & (target < V)
    tl.store(out_ptr + row, tl.where(known, wanted - normaliser, float("nan")))


def _products(rows: Tensor, large: Tensor, rest: Tensor) -> tuple[Tensor, Tensor]:
    """`rows @ large^T` in pieces, `[D / PIECE, R, V]`, and `rows @ rest^T`, float32."""
    R, D = rows.shape
    pieces = pieces_of(D)
    left = rows.view(R, pieces, D // pieces).transpose(0, 1)
    right = large.view(large.shape[0], pieces, D // pieces).permute(1, 2, 0)
    if rows.device.type == "cpu":  # the interpreter
        return left.float() @ right.float(), rows.float() @ rest.float().t()
    return (
        torch.bmm(left, right, out_dtype=torch.float32),
        torch.mm(rows, rest.t(), out_dtype=torch.float32),
    )


@on_its_device
def token_log_probs_forward(
    hidden: Tensor, scale: Tensor, eps: float, weight: Tensor, targets: Tensor
) -> Tensor:
    """Return `[R]` float32 log-probabilities of `targets` `[R]` from contiguous `hidden` `[R, D]`."""
    R, D = hidden.shape
    V = weight.shape[0]
    large, rest = three_parts(weight, scale)
    out = torch.empty(R, dtype=torch.float32, device=hidden.device)
    for start in range(0, R, SLICE_ROWS):
        # The last slice begins early enough to be whole: products of fewer rows may sum in another
        # order, and a row must not depend on its place.
        start = max(min(start, R - SLICE_ROWS), 0)
        rows = hidden[start : start + SLICE_ROWS]
        large_products, rest_products = _products(rows, large, rest)
        _log_softmax_gather[(rows.shape[0],)](
            rows, large_products, rest_products, targets[start : start + SLICE_ROWS],
            out[start : start + SLICE_ROWS], eps, rows.shape[0], D=D, V=V,
            PIECES=large_products.shape[0], BLOCK_D=triton.next_power_of_2(D),
            BLOCK_V=triton.next_power_of_2(V),
            **select("token_log_probs", hidden.device).launch_arguments(),
        )  # fmt: skip
    return out
