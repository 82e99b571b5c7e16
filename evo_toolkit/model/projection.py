"""A linear layer that computes in the dtype of its input."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class Projection(nn.Linear):
    """`nn.Linear` whose float32 master weights serve bfloat16 activations without autocast.

    Attributes:
        round_before_bias: Round the product before the bias is added, as the released
            implementation does after its Hyena layers.
    """

    round_before_bias: bool = False

    def forward(self, x: Tensor) -> Tensor:
        """`[..., in]` to `[..., out]` in the dtype of `x`."""
        weight = self.weight.to(x.dtype)
        if self.bias is None:
            return F.linear(x, weight)
        if self.round_before_bias:
            return F.linear(x, weight) + self.bias.to(x.dtype)
        return F.linear(x, weight, self.bias.to(x.dtype))
