"""Evo 2 training checkpoints (the layout of the `savanna` training code): reading only.

Only files whose Hyena projections are interleaved by channel, as all published ones are, can be
read; older internal files held them otherwise, which nothing in a file tells.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_toolkit.checkpoint.rules import (
    ForeignSource,
    Input,
    Rule,
    deinterleave,
    heads_to_blocks,
    rule,
)
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config

# Position 0 is the embedding and 1 a reshape without weights: layer i is position i + 2.
_FIRST_LAYER = 2
_LAYER = re.compile(r"^sequential\.(\d+)\.")
_FINAL_NORM = re.compile(r"^sequential\.\d+\.norm\.weight$")
_IGNORED = re.compile(r"\.(post_attention_layernorm|outer_mlp_layernorm)\.")
_FP8_SCALES = re.compile(r"\.mixer\.dense_projection\._extra_state$")


def savanna_weights(content: Mapping[str, Any]) -> dict[str, Any] | None:
    """The weights of a training checkpoint with keys `sequential.{j}. ...`, or None if it is not one."""
    weights = content.get("module", content)
    if not isinstance(weights, Mapping):
        return None
    weights = {
        key.removeprefix("module."): value for key, value in weights.items() if isinstance(key, str)
    }
    return weights if any(_LAYER.search(key) for key in weights) else None


def _norms(name: str, theirs: str, width: int) -> Rule:
    keys = (f"{theirs}.weight", f"{theirs}.scale")
    return Rule(name, (Input(keys, (width,)),), lambda x: x)


def savanna_rules(config: StripedHyena2Config, final_norm: str) -> list[Rule]:
    """One rule per tensor of the model; `final_norm` is the key found for it."""
    D, F, G, V = config.width, config.mlp_width, config.filter_groups, config.vocab_size
    heads = partial(heads_to_blocks, num_heads=config.num_heads)
    rules = [rule("embedding.weight", "sequential.0.word_embeddings.weight", (V, D))]
    for index, symbol in enumerate(config.pattern):
        block, theirs = f"blocks.{index}", f"sequential.{index + _FIRST_LAYER}"
        mixer, inner = f"{block}.mixer", f"{theirs}.mixer.mixer"
        rules += [
            _norms(f"{block}.pre_norm.scale", f"{theirs}.input_layernorm", D),
            _norms(f"{block}.post_norm.scale", f"{theirs}.pre_mlp_layernorm", D),
            rule(f"{block}.mlp.l1.weight", f"{theirs}.mlp.w1.weight", (F, D)),
            rule(f"{block}.mlp.l2.weight", f"{theirs}.mlp.w2.weight", (F, D)),
            rule(f"{block}.mlp.l3.weight", f"{theirs}.mlp.w3.weight", (D, F)),
            rule(f"{block}.out_projection.weight", f"{theirs}.mixer.dense.weight", (D, D)),
            rule(f"{block}.out_projection.bias", f"{theirs}.mixer.dense.bias", (D,)),
            rule(
                f"{block}.projections.weight", f"{theirs}.mixer.dense_projection.weight", (3 * D, D),
                heads if symbol == "*" else deinterleave,
            ),
        ]  # fmt: skip
        if symbol == "*":
            frequencies = f"{theirs}.mixer.rotary_emb.inv_freq"
            rules.append(rule(f"{mixer}.inv_freq", frequencies, (config.head_width // 2,)))
        else:
            taps = f"{theirs}.mixer.hyena_proj_conv.short_conv_weight"
            shape = (3 * D, config.featurizer_length)
            rules.append(rule(f"{mixer}.featurizer", taps, shape, _featurizer))
        if symbol == "S":
            key = f"{inner}.short_conv.short_conv_weight"
            rules.append(rule(f"{mixer}.h", key, (G, 1, config.se_length), _se_taps))
        elif symbol == "D":
            K = config.mr_length
            taps_and_window = tuple(
                # As long as the training context; only the first taps are used.
                Input((f"{inner}.filter.{part}",), (G, K), longer=True)
                for part in ("h", "decay")
            )
            rules.append(
                Rule(f"{mixer}.h", taps_and_window, partial(_windowed, K=K), torch.float32)
            )
        elif symbol == "H":
            N = config.li_order
            rates = tuple(Input((f"{inner}.filter.{part}",), (D, N)) for part in ("p", "gamma"))
            rules += [
                Rule(f"{mixer}.log_poles", rates, _log_poles, torch.float32),
                Rule(f"{mixer}.residues", (Input((f"{inner}.filter.R",), (D, N)),), _same, torch.float32),
            ]  # fmt: skip
        if symbol in "DH":
            rules.append(rule(f"{mixer}.D", f"{inner}.conv_bias", (D,)))
    rules.append(rule("norm.scale", final_norm, (D,)))
    return rules


def _same(x: Tensor) -> Tensor:
    return x


def _featurizer(x: Tensor) -> Tensor:
    return deinterleave(x.flip(-1))


def _se_taps(x: Tensor) -> Tensor:
    return x[:, 0].flip(-1)


def _windowed(h: Tensor, decay: Tensor, *, K: int) -> Tensor:
    return h[:, :K].float() * decay[:, :K].float()


def _log_poles(p: Tensor, gamma: Tensor) -> Tensor:
    return -torch.exp(p.float()) * torch.exp(gamma.float())


def savanna_source(
    path: Path, weights: Mapping[str, Any], config: StripedHyena2Config
) -> ForeignSource:
    """Read the weights of a training checkpoint under our names.

    Hyena-MR taps are the stored taps under their window, and poles are `-exp(p) exp(gamma)`, both in
    float32: not rounded to bfloat16, as the released conversion of the same weights is.

    Args:
        weights: As `savanna_weights` gives them.

    Raises:
        CheckpointError: if the configuration does not fit, or has an untied embedding, which the
            training code never writes.
    """
    if not config.tie_embeddings:
        raise CheckpointError(
            f"{path} is a training checkpoint, whose embedding is tied; {config.name} says tie_embeddings false"
        )
    norms = [key for key in weights if _FINAL_NORM.search(key)]
    final_norm = norms[0] if len(norms) == 1 else f"sequential.{config.num_layers + 3}.norm.weight"
    source = ForeignSource(
        path, config, weights, savanna_rules(config, final_norm), format="savanna",
        layer_of=_LAYER, first_layer=_FIRST_LAYER, ignored=_IGNORED, fp8_scales=_FP8_SCALES,
    )  # fmt: skip
    source.check_frequencies()
    return source
