"""The gated MLP of every block."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from evo_toolkit.model.projection import Projection


class GatedMLP(nn.Module):
    """`l3(act(l1(x)) * l2(x))`; `act` is the exact GELU or the identity.

    The released models have the GELU in block 0 alone: a slip of their training code made every
    later MLP bilinear, and the weights depend on it.
    """

    def __init__(self, width: int, inner: int, *, gelu: bool) -> None:
        super().__init__()
        self.gelu = gelu
        self.l1 = Projection(width, inner, bias=False)
        self.l2 = Projection(width, inner, bias=False)
        self.l3 = Projection(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        gate = self.l1(x)
        if self.gelu:
            gate = F.gelu(gate)
        return self.l3(gate * self.l2(x))
