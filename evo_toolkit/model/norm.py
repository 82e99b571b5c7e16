"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evo_toolkit.model.precision import PrecisionPolicy


class RMSNorm(nn.Module):
    """`scale * x / (rms(x) + eps)`: eps stands outside the root, as in the released models.

    Computed in float32 and rounded once, or, under a rounding policy, rounded after every step as
    the released implementation does.
    """

    def __init__(self, width: int, eps: float, policy: PrecisionPolicy) -> None:
        super().__init__()
        self.eps = eps
        self.policy = policy
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """`[..., D]` to `[..., D]` in the dtype of `x`."""
        rounding = self.policy.rounding
        if rounding is not None:
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
            rms = norm.to(rounding) * (x.shape[-1] ** -0.5)
            return self.scale.to(rounding) * (x.to(rounding) / (rms + self.eps))
        acc = torch.promote_types(x.dtype, torch.float32)
        wide = x.to(acc)
        # The root's slope at 0 is infinite; a row of zeros stays zero and gets a finite gradient.
        mean_square = wide.square().mean(-1, keepdim=True)
        rms = mean_square.clamp(min=torch.finfo(acc).tiny).sqrt()
        return (self.scale.to(acc) * (wide / (rms + self.eps))).to(x.dtype)
