"""A linear layer that computes in the dtype of its input, in either memory layout."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Rows of a channel-first tensor start at multiples of so many positions: products of other lengths
# are several times slower, and vector loads need it.
_ROW_MULTIPLE = 8
# Shorter chunks stay channel-last: Hyena-LI takes them position by position.
_CHANNEL_FIRST_POSITIONS = 17


class Projection(nn.Linear):
    """`nn.Linear` whose float32 master weights serve bfloat16 activations without autocast.

    Attributes:
        round_before_bias: Round the product before the bias is added, as the released
            implementation does after its Hyena layers.
        channel_first: On a GPU, lay the result of `[B, L, in]` out with positions innermost in
            memory (`stride(1) == 1`), as Hyena-LI reads it; its shape stays `[B, L, out]`.
        takes_channel_first: On a GPU, multiply inputs in that layout without a copy.
    """

    round_before_bias: bool = False
    channel_first: bool = False
    takes_channel_first: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]` in the dtype of `x`."""
        weight = self.weight.to(x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if x.is_cuda and x.dim() == 3 and x.shape[1] >= _CHANNEL_FIRST_POSITIONS:
            if self.channel_first and bias is None:
                return _to_channel_first(x, weight)
            if self.takes_channel_first and x.stride(1) == 1:
                return _from_channel_first(x, weight, bias)
        if bias is not None and self.round_before_bias:
            return F.linear(x, weight) + bias
        return F.linear(x, weight, bias)

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `forward(x) + residual`, for a projection without bias.

        In half precision on a GPU, without gradients, the sum is made inside the product: in the
        memory of `residual`, and rounded once instead of twice.
        """
        if (
            not (x.is_cuda and x.dtype in (torch.bfloat16, torch.float16))
            or torch.is_grad_enabled()
        ):
            return self(x) + residual
        total = residual.contiguous()
        flat = total.view(-1, total.shape[-1])
        flat.addmm_(x.reshape(-1, x.shape[-1]), self.weight.to(x.dtype).t())
        return total


class _IntoChannelFirst(torch.autograd.Function):
    """`[B, L, in]` and `[out, in]` to `[B, out, L]`; the gradient of x comes out as `[B, L, in]`.

    Autograd's own formulas give each gradient in the layout of the other side, which then costs a
    transposing copy. These may be differentiated again.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        # Not matmul, which copies to channel-last for a weight that requires a gradient.
        return torch.bmm(weight.expand(x.shape[0], -1, -1), x.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad
        grad_x = grad_weight = None
        if needs_x:
            grad_x = torch.bmm(grad.transpose(1, 2), weight.expand(x.shape[0], -1, -1))
        if needs_weight:
            grad_weight = torch.bmm(grad, x).sum(0)
        return grad_x, grad_weight


class _OutOfChannelFirst(torch.autograd.Function):
    """`[B, in, L]` and `[out, in]` to `[B, L, out]`; the gradient of x comes out as `[B, in, L]`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        into = weight.t().expand(x.shape[0], -1, -1)
        if bias is None:
            return torch.bmm(x.transpose(1, 2), into)
        return torch.baddbmm(bias, x.transpose(1, 2), into)  # rounded once

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        grad_x = grad_weight = None
        if needs_x:
            grad_x = torch.bmm(weight.t().expand(x.shape[0], -1, -1), grad.transpose(1, 2))
        if needs_weight:
            grad_weight = torch.bmm(grad.transpose(1, 2), x.transpose(1, 2)).sum(0)
        return grad_x, grad_weight, grad.sum((0, 1)) if needs_bias else None


def _to_channel_first(x: Tensor, weight: Tensor) -> Tensor:
    """`F.linear(x, weight)` as `[B, L, out]` with `stride(1) == 1` and padded rows."""
    L = x.shape[1]
    if L % _ROW_MULTIPLE:
        x = F.pad(x, (0, 0, 0, -L % _ROW_MULTIPLE))
    return _IntoChannelFirst.apply(x, weight)[:, :, :L].transpose(1, 2)


def _from_channel_first(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`F.linear(x, weight, bias)` of `[B, L, in]` with `stride(1) == 1`, without a copy of `x`."""
    L = x.shape[1]
    whole = _with_spare_positions(x)
    if whole is None:
        return F.linear(x.contiguous(), weight, bias)
    if torch.is_grad_enabled():
        return _OutOfChannelFirst.apply(whole.transpose(1, 2), weight, bias)
    if whole.shape[0] == 1:
        return F.linear(whole[0], weight, bias)[None, :L]
    # Row by row, since a batched product takes no bias along.
    y = x.new_empty((*whole.shape[:2], weight.shape[0]))
    for row, out in zip(whole, y, strict=True):
        if bias is None:
            torch.mm(row, weight.t(), out=out)
        else:
            torch.addmm(bias, row, weight.t(), out=out)
    return y[:, :L]


def _with_spare_positions(x: Tensor) -> Tensor | None:
    """`x` with its rows' unused ends as further positions, or None where it has none such.

    Nothing is known of the values there: a product keeps them in their own positions, the gradient of
    a weight would not.
    """
    B, L, C = x.shape
    spare = -L % _ROW_MULTIPLE
    if x.stride(2) % _ROW_MULTIPLE or x.stride(2) < L + spare:
        return None
    if not spare:
        return x
    end = x.storage_offset() + (B - 1) * x.stride(0) + (C - 1) * x.stride(2) + L + spare
    if torch.is_grad_enabled() or end * x.element_size() > x.untyped_storage().nbytes():
        return None
    return x.as_strided((B, L + spare, C), x.stride())
