"""The gated MLP of every block."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from evo_kernels.backend import Backend
from evo_kernels.gated_product import gated_product
from evo_toolkit.model.plain import is_plain
from evo_toolkit.model.projection import Projection


class GatedMLP(nn.Module):
    """`l3(act(l1(x)) * l2(x))`; `act` is the exact GELU or the identity.

    The released models have the GELU in block 0 alone: a slip of their training code made every
    later MLP bilinear, and the weights depend on it.

    Attributes:
        chunk: Positions at a time, 0 for all: what is as wide as the inner layer then exists for so
            many alone, which a very long sequence needs. With gradients each chunk is computed again
            in the backward pass.
    """

    chunk: int = 0

    def __init__(self, width: int, inner: int, *, gelu: bool, backend: Backend = "auto") -> None:
        super().__init__()
        self.gelu = gelu
        self.backend: Backend = backend
        self.l1 = Projection(width, inner, bias=False)
        self.l2 = Projection(width, inner, bias=False)
        self.l3 = Projection(inner, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, L, D]` to `[B, L, D]`."""
        if 0 < self.chunk < x.shape[1]:
            pieces = x.split(self.chunk, 1)
            if torch.is_grad_enabled():
                return torch.cat([_again(self._whole, piece) for piece in pieces], 1)
            return torch.cat([self._whole(piece) for piece in pieces], 1)
        return self._whole(x)

    def _whole(self, x: Tensor) -> Tensor:
        return self.l3(self._gated(x))

    def add_to(self, residual: Tensor, x: Tensor) -> Tensor:
        """Return `forward(x) + residual`, which may be overwritten."""
        if (
            self.backend != "reference"
            and not 0 < self.chunk < x.shape[1]
            and is_plain(self, GatedMLP)
            and is_plain(self.l3, Projection)
        ):
            return self.l3.add_to(residual, self._gated(x))
        return self(x) + residual

    def _gated(self, x: Tensor) -> Tensor:
        return gated_product(self.l1(x), self.l2(x), gelu=self.gelu, backend=self.backend)


def _again(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    y: Tensor = checkpoint(function, x, use_reentrant=False, preserve_rng_state=False)
    return y
