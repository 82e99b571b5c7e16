"""Plain PyTorch twin of root-mean-square normalisation."""

from __future__ import annotations

import torch
from torch import Tensor

from evo_kernels.fir import accumulation_dtype


def rms_norm_reference(x: Tensor, scale: Tensor, eps: float) -> Tensor:
    """Return `scale * x / (rms(x) + eps)` over the last axis, rounded once."""
    acc = accumulation_dtype(x)
    wide = x.to(acc)
    # The root's slope at 0 is infinite; a row of zeros stays zero and gets a finite gradient.
    mean_square = wide.square().mean(-1, keepdim=True)
    rms = mean_square.clamp(min=torch.finfo(acc).tiny).sqrt()
    return (scale.to(acc) * (wide / (rms + eps))).to(x.dtype)
