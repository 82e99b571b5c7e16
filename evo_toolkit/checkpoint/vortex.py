"""Released Evo 2 checkpoints (the layout of the `vortex` inference code): reading and writing.

D width, F inner width of the MLP, G filter groups, V vocabulary. Layouts are as in `rules`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from evo_toolkit.checkpoint.rules import (
    ForeignSource,
    Rule,
    blocks_to_heads,
    deinterleave,
    heads_to_blocks,
    interleave,
    require_tied,
    rule,
)
from evo_toolkit.checkpoint.source import WeightSource
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import unreleased_layers

_LAYER = re.compile(r"^blocks\.(\d+)\.")
_NEVER = re.compile(r"(?!)")
_FP8_SCALES = re.compile(r"\.projections\._extra_state$")

# Our suffix within a layer to the released one, where nothing but the name differs.
_SAME_IN_LAYER = {
    "pre_norm.scale": "pre_norm.scale",
    "post_norm.scale": "post_norm.scale",
    "mlp.l1.weight": "mlp.l1.weight",
    "mlp.l2.weight": "mlp.l2.weight",
    "mlp.l3.weight": "mlp.l3.weight",
}


def looks_like_vortex(content: Mapping[str, Any]) -> bool:
    """Whether the keys are those of a released checkpoint."""
    return "embedding_layer.weight" in content and any(_LAYER.search(key) for key in content)


def vortex_rules(config: StripedHyena2Config) -> list[Rule]:
    """One rule per tensor of the model."""
    D, F, G, V = config.width, config.mlp_width, config.filter_groups, config.vocab_size
    heads = partial(heads_to_blocks, num_heads=config.num_heads)
    rules = [rule("embedding.weight", "embedding_layer.weight", (V, D))]
    for index, symbol in enumerate(config.pattern):
        block = f"blocks.{index}"
        mixer, released = f"{block}.mixer", f"{block}.filter"
        for ours, theirs in _SAME_IN_LAYER.items():
            shape = {"l1": (F, D), "l2": (F, D), "l3": (D, F)}.get(ours.split(".")[1], (D,))
            rules.append(rule(f"{block}.{ours}", f"{block}.{theirs}", shape))
        if symbol == "*":
            attention = f"{block}.inner_mha_cls"
            out = f"{attention}.out_proj"
            rules += [
                rule(f"{block}.projections.weight", f"{attention}.Wqkv.weight", (3 * D, D), heads),
                rule(f"{mixer}.inv_freq", f"{attention}.rotary_emb.inv_freq", (config.head_width // 2,)),
            ]  # fmt: skip
        else:
            out = f"{block}.out_filter_dense"
            K = config.featurizer_length
            rules += [
                rule(f"{block}.projections.weight", f"{block}.projections.weight", (3 * D, D), deinterleave),
                rule(f"{mixer}.featurizer", f"{released}.short_filter_weight", (3 * D, 1, K), _featurizer),
            ]  # fmt: skip
        if symbol == "S":
            rules.append(rule(f"{mixer}.h", f"{released}.h", (G, 1, config.se_length), _se_taps))
        elif symbol == "D":
            rules.append(rule(f"{mixer}.h", f"{released}.h", (G, 1, config.mr_length), _mr_taps))
        elif symbol == "H":
            N = config.li_order
            rules += [
                rule(f"{mixer}.log_poles", f"{released}.log_poles", (D, N, 1), _poles),
                rule(f"{mixer}.residues", f"{released}.residues", (D, N)),
            ]
        if symbol in "DH":
            rules.append(rule(f"{mixer}.D", f"{released}.D", (D,)))
        rules += [
            rule(f"{block}.out_projection.weight", f"{out}.weight", (D, D)),
            rule(f"{block}.out_projection.bias", f"{out}.bias", (D,)),
        ]
    rules.append(rule("norm.scale", "norm.scale", (D,)))
    if not config.tie_embeddings:
        rules.append(rule("unembedding.weight", "unembed.weight", (V, D)))
    return rules


def _featurizer(x: Tensor) -> Tensor:
    return deinterleave(x[:, 0].flip(-1))


def _se_taps(x: Tensor) -> Tensor:
    return x[:, 0].flip(-1)


def _mr_taps(x: Tensor) -> Tensor:
    return x[:, 0]


def _poles(x: Tensor) -> Tensor:
    return x[..., 0]


def vortex_source(
    path: Path, content: Mapping[str, Any], config: StripedHyena2Config
) -> ForeignSource:
    """Read a released checkpoint's dictionary under our names.

    Raises:
        CheckpointError: if keys are missing, shapes are wrong, or the file has more layers than the
            configuration; the message names the first few.
    """
    source = ForeignSource(
        path, config, content, vortex_rules(config), format="vortex", layer_of=_LAYER,
        first_layer=0, ignored=_NEVER, fp8_scales=_FP8_SCALES,
    )  # fmt: skip
    if config.tie_embeddings:
        require_tied(path, content, "embedding_layer.weight", "unembed.weight")
    source.check_frequencies()
    return source


def to_vortex(source: WeightSource) -> dict[str, Tensor]:
    """The released layout of a model's weights, bit for bit: the inverse of reading it.

    `unembed.weight` shares the embedding's memory when tied, as in published files. Dtypes are kept.
    FP8 scales are not made up: the released code then falls back to scale 1.
    """
    config = source.config
    inverse = {
        "embedding.weight": "embedding_layer.weight",
        "unembedding.weight": "unembed.weight",
        "norm.scale": "norm.scale",
    }
    result: dict[str, Tensor] = {}
    for name, tensor in source.iter_tensors():
        if name in inverse:
            result[inverse[name]] = tensor
        else:
            _, index, suffix = name.split(".", 2)
            key, value = _inverse_in_layer(suffix, tensor, config.pattern[int(index)], config)
            result[f"blocks.{index}.{key}"] = value.contiguous()
    if config.tie_embeddings:
        result["unembed.weight"] = result["embedding_layer.weight"]
    return result


def _inverse_in_layer(
    suffix: str, x: Tensor, symbol: str, config: StripedHyena2Config
) -> tuple[str, Tensor]:
    attention = symbol == "*"
    if suffix in _SAME_IN_LAYER:
        return _SAME_IN_LAYER[suffix], x
    if suffix == "projections.weight":
        if attention:
            return "inner_mha_cls.Wqkv.weight", blocks_to_heads(x, config.num_heads)
        return "projections.weight", interleave(x)
    if suffix.startswith("out_projection."):
        kind = suffix.rpartition(".")[2]
        return f"{'inner_mha_cls.out_proj' if attention else 'out_filter_dense'}.{kind}", x
    if suffix == "mixer.inv_freq":
        return "inner_mha_cls.rotary_emb.inv_freq", x
    if suffix == "mixer.featurizer":
        return "filter.short_filter_weight", interleave(x).flip(-1)[:, None]
    if suffix == "mixer.h":
        return "filter.h", (x.flip(-1) if symbol == "S" else x)[:, None]
    if suffix == "mixer.log_poles":
        return "filter.log_poles", x[..., None]
    if suffix in ("mixer.residues", "mixer.D"):
        return suffix.replace("mixer.", "filter."), x
    raise AssertionError(f"no released name for {suffix}")


def vortex_config(config: StripedHyena2Config) -> dict[str, Any]:
    """A configuration in the released form, from which `config_from_vortex` gives the function back.

    Raises:
        CheckpointError: for a configuration that the released form cannot express.
    """
    odd = unreleased_layers(config.pattern)
    if odd:
        raise CheckpointError(
            f"{config.name}: released models have no {odd} layers; keep our format"
        )
    if config.gelu_layers not in ((0,), tuple(range(config.num_layers))):
        raise CheckpointError(
            f"{config.name}: gelu_layers {list(config.gelu_layers)} cannot be said in a released configuration (layer 0 or all); keep our format"
        )
    if not config.rotary_bf16_frequencies:
        raise CheckpointError(
            f"{config.name}: unrounded rotary frequencies cannot be said in a released configuration; keep our format"
        )

    def layers(symbol: str) -> list[int]:
        return [i for i, s in enumerate(config.pattern) if s == symbol]

    values: dict[str, Any] = {
        "model_name": config.name,
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_filters": config.width,
        "num_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "inner_mlp_size": config.mlp_width,
        "inner_size_multiple_of": 16,
        "hcs_layer_idxs": layers("S"),
        "hcm_layer_idxs": layers("D"),
        "hcl_layer_idxs": layers("H"),
        "attn_layer_idxs": layers("*"),
        "hcs_filter_length": config.se_length,
        "hcm_filter_length": config.mr_length,
        "short_filter_length": config.featurizer_length,
        "hcs_filter_groups": config.filter_groups,
        "hcm_filter_groups": config.filter_groups,
        "hcl_filter_groups": config.width,
        "state_size": config.li_order,
        "max_seqlen": config.context_length,
        "rotary_emb_base": config.rotary_base,
        "eps": config.norm_eps,
        "tie_embeddings": config.tie_embeddings,
        "evo2_style_activations": config.gelu_layers == (0,),
        "use_fp8_input_projections": config.fp8 == "hopper",
        "mlp_activation": "gelu",
        "proj_groups": 1,
        "hyena_filter_groups": 1,
        "short_filter_bias": False,
        "qkv_proj_bias": False,
        "mha_out_proj_bias": True,
        "hyena_out_proj_bias": True,
        "hyena_flip_x1x2": False,
        "column_split": True,
        "column_split_hyena": False,
        "interleave": True,
        "final_norm": True,
        "prefill_style": "fft",
        "inference_mode": True,
        "use_flash_attn": True,
        "use_flash_rmsnorm": False,
        "use_flash_depthwise": False,
        "use_flashfft": False,
        "use_laughing_hyena": False,
        "model_parallel_size": 1,
        "pipe_parallel_size": 1,
        "make_vocab_size_divisible_by": 8,
        "max_batch_size": 1,
        "log_intermediate_values": False,
        "print_activations": False,
        "tokenizer_type": "CharLevelTokenizer",
        "mlp_init_method": "torch.nn.init.zeros_",
        "mlp_output_init_method": "torch.nn.init.zeros_",
    }
    if config.rotary_interpolation != 1:
        values["use_interpolated_rotary_pos_emb"] = True
        values["rotary_emb_scaling_factor"] = config.rotary_interpolation
    return values
