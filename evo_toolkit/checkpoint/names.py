"""Names and shapes of a model's tensors, in memory and in our files (`format_version: 1`).

Shapes: V vocabulary, D width, F inner width of the MLP. Those of mixers stand in `model.layers`.
"""

from __future__ import annotations

import math
import re

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import LAYER_KINDS

_MIXER_FLOAT32 = re.compile(r"\.mixer\.(log_poles|residues|inv_freq)$")


def tensor_shapes(config: StripedHyena2Config) -> dict[str, tuple[int, ...]]:
    """Name to shape of every tensor of a model, in the order of its layers."""
    D, F, V = config.width, config.mlp_width, config.vocab_size
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (V, D)}
    for index, symbol in enumerate(config.pattern):
        block, kind = f"blocks.{index}", LAYER_KINDS[symbol]
        shapes[f"{block}.pre_norm.scale"] = (D,)
        shapes[f"{block}.projections.weight"] = (kind.streams * D, D)
        for name, shape in kind.tensors(config).items():
            shapes[f"{block}.mixer.{name}"] = shape
        shapes[f"{block}.out_projection.weight"] = (D, D)
        shapes[f"{block}.out_projection.bias"] = (D,)
        shapes[f"{block}.post_norm.scale"] = (D,)
        shapes[f"{block}.mlp.l1.weight"] = (F, D)
        shapes[f"{block}.mlp.l2.weight"] = (F, D)
        shapes[f"{block}.mlp.l3.weight"] = (D, F)
    shapes["norm.scale"] = (D,)
    if not config.tie_embeddings:
        shapes["unembedding.weight"] = (V, D)
    return shapes


def weight_bytes(config: StripedHyena2Config, compute_bytes: int) -> int:
    """Bytes of a model in memory: `compute_bytes` an element, four for those of the mixers."""
    return sum(
        math.prod(shape) * (4 if ".mixer." in name else compute_bytes)
        for name, shape in tensor_shapes(config).items()
    )


def rounded_when_released(name: str) -> bool:
    """Whether the released implementation rounds this tensor to bfloat16 when it loads it.

    Poles, residues and rotary frequencies stay float32.
    """
    return _MIXER_FLOAT32.search(name) is None
