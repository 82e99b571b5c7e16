"""Root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from evo_kernels.rms_norm import add_rms_norm, rms_norm
from evo_toolkit.model.plain import is_plain
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
        return rms_norm(x, self.scale, self.eps, backend=self.policy.backend)

    def after_adding(self, x: Tensor, added: Tensor) -> tuple[Tensor, Tensor]:
        """Return `x + added` and that sum normalised, in one pass where a kernel can."""
        if self.policy.rounding is not None or not is_plain(self, RMSNorm):
            total = added + x
            return total, self(total)
        return add_rms_norm(x, added, self.scale, self.eps, backend=self.policy.backend)
