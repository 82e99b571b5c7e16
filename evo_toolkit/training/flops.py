"""Floating-point operations of a model, counted from its mathematics.

An operation that a kernel repeats (activation checkpointing, a block of Toeplitz tiles) or skips is
counted as the architecture states it, so that figures of different implementations compare: a
multiplication and an addition are two operations; causal attention counts the pairs it attends to;
a filter counts its taps; a Hyena-LI filter counts its recurrence. Element-wise work on the residual
stream (norms, gates, activations) counts nothing, as is usual.
"""

from __future__ import annotations

import re

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import LAYER_KINDS

# Dense bfloat16, without sparsity, of the makers' data sheets, in operations per second.
_PEAKS = {
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "GH200": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "A10": 125e12,
    "L40S": 362e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
}


def forward_flops(config: StripedHyena2Config, length: int) -> int:
    """Operations of one forward pass over one sequence of `length` bases, logits included."""
    D, F, L = config.width, config.mlp_width, length
    operations = 2 * D * config.vocab_size * L  # the head
    for symbol in config.pattern:
        kind = LAYER_KINDS[symbol]
        # Projections in and out, gated MLP.
        operations += 2 * ((kind.streams + 1) * D * D + 3 * D * F) * L
        operations += kind.operations(config, L)
    return operations


def training_flops(config: StripedHyena2Config, length: int) -> int:
    """Operations of one forward and backward pass over one sequence: three times the forward.

    What activation checkpointing computes again is not counted.
    """
    return 3 * forward_flops(config, length)


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 operations per second of a GPU by its name, or None for an unknown one."""
    found = (peak for name, peak in _PEAKS.items() if re.search(rf"\b{name}\b", device_name))
    return next(found, None)
