"""Training checkpoints against the released layout of the same weights, the relation written out here by hand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config

WITHIN_LAYER = {
    "pre_norm.scale": "input_layernorm.weight",
    "post_norm.scale": "pre_mlp_layernorm.scale",
    "mlp.l1.weight": "mlp.w1.weight",
    "mlp.l2.weight": "mlp.w2.weight",
    "mlp.l3.weight": "mlp.w3.weight",
    "projections.weight": "mixer.dense_projection.weight",
    "inner_mha_cls.Wqkv.weight": "mixer.dense_projection.weight",
    "out_filter_dense.weight": "mixer.dense.weight",
    "out_filter_dense.bias": "mixer.dense.bias",
    "inner_mha_cls.out_proj.weight": "mixer.dense.weight",
    "inner_mha_cls.out_proj.bias": "mixer.dense.bias",
    "inner_mha_cls.rotary_emb.inv_freq": "mixer.rotary_emb.inv_freq",
    "filter.D": "mixer.mixer.conv_bias",
    "filter.residues": "mixer.mixer.filter.R",
}


def as_training(
    released: dict[str, Any], *, prefix: str = "module.sequential.", norm_gap: int = 3
) -> dict[str, Tensor]:
    """The training layout of a released state dict, with windows and rates that are powers of two or e."""
    result: dict[str, Tensor] = {}
    layers = 1 + max(int(k.split(".")[1]) for k in released if k.startswith("blocks."))
    for key, value in released.items():
        if value is None or key == "unembed.weight":
            continue
        if key == "embedding_layer.weight":
            result[f"{prefix}0.word_embeddings.weight"] = value
            continue
        if key == "norm.scale":
            result[f"{prefix}{layers + norm_gap}.norm.weight"] = value
            continue
        _, index, suffix = key.split(".", 2)
        layer = f"{prefix}{int(index) + 2}."
        if suffix in WITHIN_LAYER:
            result[layer + WITHIN_LAYER[suffix]] = value
        elif suffix == "filter.short_filter_weight":
            result[layer + "mixer.hyena_proj_conv.short_conv_weight"] = value[:, 0]
        elif suffix == "filter.h" and value.shape[-1] == 7:
            result[layer + "mixer.mixer.short_conv.short_conv_weight"] = value
        elif suffix == "filter.h":
            # Stored as long as the training context; halved here and doubled by the window.
            longer = torch.nn.functional.pad(value[:, 0].float() / 2, (0, 72), value=9.0)
            result[layer + "mixer.mixer.filter.h"] = longer
            result[layer + "mixer.mixer.filter.decay"] = torch.full_like(longer, 2.0)
        elif suffix == "filter.log_poles":
            rate = -value[..., 0].double()
            result[layer + "mixer.mixer.filter.p"] = torch.full_like(rate, -1.0).float()
            result[layer + "mixer.mixer.filter.gamma"] = (rate.log() + 1.0).float()
        else:
            raise AssertionError(key)
    result[f"{prefix}2.post_attention_layernorm.weight"] = torch.ones(3)
    return result


def save(weights: dict[str, Tensor], path: Path, *, under_module: bool = True) -> Path:
    torch.save({"module": weights, "iteration": 7} if under_module else weights, path)
    return path


@pytest.mark.parametrize(
    ("prefix", "under_module", "norm_gap"),
    [("module.sequential.", True, 3), ("sequential.", True, 2), ("sequential.", False, 3)],
)
def test_equals_the_released_layout(
    tmp_path: Path,
    tiny_file: Path,
    tiny_weights: dict[str, Any],
    tiny_config: StripedHyena2Config,
    prefix: str,
    under_module: bool,
    norm_gap: int,
) -> None:
    weights = as_training(tiny_weights, prefix=prefix, norm_gap=norm_gap)
    path = save(weights, tmp_path / "training.pt", under_module=under_module)
    source = open_source(path, config=tiny_config).source
    assert source.format == "savanna"
    expected = dict(open_source(tiny_file).source.iter_tensors())
    found = dict(source.iter_tensors())
    assert set(found) == set(expected)
    for name, tensor in found.items():
        assert source.specs()[name] == (tensor.dtype, tuple(tensor.shape))
        if name.endswith("log_poles"):
            # exp and log in float32: a few units in the last place.
            torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=0)
        else:
            assert torch.equal(tensor.float(), expected[name].float()), name


def test_poles_by_hand(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    weights = as_training(tiny_weights)
    weights["module.sequential.4.mixer.mixer.filter.p"].fill_(math.log(0.5))
    weights["module.sequential.4.mixer.mixer.filter.gamma"].fill_(math.log(0.125))
    source = open_source(save(weights, tmp_path / "training.pt"), config=tiny_config).source
    poles = source.tensor("blocks.2.mixer.log_poles")
    assert poles.dtype == torch.float32
    torch.testing.assert_close(poles, torch.full_like(poles, -0.0625), rtol=1e-6, atol=0)


def test_filters_shorter_than_the_configured_ones_do_not_fit(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    weights = as_training(tiny_weights)
    key = "module.sequential.3.mixer.mixer.filter.decay"
    weights[key] = weights[key][:, :100].clone()
    with pytest.raises(CheckpointError, match=r"decay is \[4, 100\], wanted \[4, 128\]"):
        open_source(save(weights, tmp_path / "training.pt"), config=tiny_config)


def test_missing_norm_and_too_many_layers_are_named(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    weights = as_training(tiny_weights)
    path = save(weights, tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match="layer that the configuration does not have"):
        open_source(path, config=tiny_config.replace(pattern="SDH*"))
    del weights["module.sequential.11.norm.weight"]
    path = save(weights, tmp_path / "training2.pt")
    with pytest.raises(CheckpointError, match=r"missing: sequential\.11\.norm\.weight"):
        open_source(path, config=tiny_config)


def test_untied_configuration_is_refused(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    path = save(as_training(tiny_weights), tmp_path / "training.pt")
    with pytest.raises(CheckpointError, match="tied"):
        open_source(path, config=tiny_config.replace(tie_embeddings=False))
