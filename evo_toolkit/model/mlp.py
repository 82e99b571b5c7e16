"""The gated MLP of every block."""

from __future__ import annotations

from torch import Tensor, nn

from evo_kernels.backend import Backend
from evo_kernels.gated_product import gated_product
from evo_toolkit.model.projection import Projection


class GatedMLP(nn.Module):
    """`l3(act(l1(x)) * l2(x))`; `act` is the exact GELU or the identity.

    The released models have the GELU in block 0 alone: a slip of their training code made every
    later MLP bilinear, and the weights depend on it.
    """

    def __init__(self, width: int, inner: int, *, gelu: bool, backend: Backend = "auto") -> None:
        super().__init__()
        self.gelu = gelu
        self.backend: Backend = backend
        self.l1 = Projection(width, inner, bias=False)
        self.l2 = Projection(width, inner, bias=False)
        self.l3 = Projection(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        gated = gated_product(self.l1(x), self.l2(x), gelu=self.gelu, backend=self.backend)
        return self.l3(gated)
