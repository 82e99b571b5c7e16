"""Initial weights for training from scratch.

Projections follow GPT-NeoX's small and Wang initialisations, as the released models did; filters
are initialised by the mixers. Unlike the released training, skips start at one instead of
uninitialised memory.
"""

from __future__ import annotations

import math

from torch import nn

from evo_toolkit.model.config import StripedHyena2Config


def initialise(model: nn.Module, config: StripedHyena2Config) -> None:
    """Fill embedding and projections in place: std sqrt(2 / 5D), outputs 2 / (N sqrt(D))."""
    small = math.sqrt(2 / (5 * config.width))
    output = 2 / (config.num_layers * math.sqrt(config.width))
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=small)
        elif isinstance(module, nn.Linear):
            into_residual = name.endswith(("out_projection", "mlp.l3"))
            nn.init.normal_(module.weight, std=output if into_residual else small)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
