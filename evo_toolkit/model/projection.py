"""A linear layer that computes in the dtype of its input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Linear):
    """`nn.Linear` whose float32 master weights serve bfloat16 activations without autocast."""

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]` in the dtype of `x`."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)
