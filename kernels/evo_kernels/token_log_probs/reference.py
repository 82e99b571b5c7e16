"""Plain PyTorch twin of the log-probabilities of tokens."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_kernels.fir import accumulation_dtype
from evo_kernels.rms_norm.reference import rms_norm_reference
from evo_kernels.token_log_probs.configs import SLICE_ROWS


def token_log_probs_reference(
    hidden: Tensor, scale: Tensor, eps: float, weight: Tensor, targets: Tensor
) -> Tensor:
    """Return `log_softmax(weight @ rms_norm(hidden))[target]` of every row, in slices of rows."""
    acc = accumulation_dtype(hidden)
    slices = [hidden.new_empty(0, dtype=acc)]
    for start in range(0, hidden.shape[0], SLICE_ROWS):
        rows = hidden[start : start + SLICE_ROWS].to(acc)
        logits = F.linear(rms_norm_reference(rows, scale, eps), weight.to(acc))
        wanted = targets[start : start + SLICE_ROWS, None].to(torch.int64)
        slices.append(logits.gather(-1, wanted)[:, 0] - logits.logsumexp(-1))
    return torch.cat(slices)
