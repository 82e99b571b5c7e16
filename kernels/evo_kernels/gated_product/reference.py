"""Plain PyTorch twin of the gated product."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def gated_product_reference(gate: Tensor, value: Tensor, gelu: bool) -> Tensor:
    """Return `act(gate) * value`; `act` is the exact GELU or the identity."""
    return (F.gelu(gate) if gelu else gate) * value
