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
    dense = 2 * (4 * D * D + 3 * D * F)  # projections in and out, gated MLP
    featurizer = 2 * config.featurizer_length * 3 * D
    mixers = {
        "S": L * (featurizer + 2 * config.se_length * D),
        "D": L * (featurizer + 2 * config.mr_length * D),
        # The state of every pole: decay, add; the output: weigh, add.
        "H": L * (featurizer + 4 * config.li_order * D),
        # Scores and weighted values over the L (L + 1) / 2 causal pairs.
        "*": 2 * 2 * D * (L * (L + 1) // 2),
    }
    head = 2 * D * config.vocab_size * L
    return head + sum(dense * L + mixers[symbol] for symbol in config.pattern)


def training_flops(config: StripedHyena2Config, length: int) -> int:
    """Operations of one forward and backward pass over one sequence: three times the forward.

    What activation checkpointing computes again is not counted.
    """
    return 3 * forward_flops(config, length)


def peak_flops(device_name: str) -> float | None:
    """Dense bfloat16 operations per second of a GPU by its name, or None for an unknown one."""
    found = (peak for name, peak in _PEAKS.items() if re.search(rf"\b{name}\b", device_name))
    return next(found, None)
