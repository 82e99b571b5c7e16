"""Released checkpoints: every layout by hand, fit, extra keys, and the way back."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.checkpoint.names import tensor_shapes
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.checkpoint.rules import (
    ForeignSource,
    blocks_to_heads,
    deinterleave,
    heads_to_blocks,
    interleave,
)
from evo_toolkit.checkpoint.vortex import to_vortex, vortex_config, vortex_rules, vortex_source
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config, config_from_vortex
from evo_toolkit.model.registry import MODELS

SMALL = StripedHyena2Config(
    name="small", pattern="SDH*", width=4, num_heads=2, mlp_width=6, filter_groups=2,
    context_length=64, se_length=3, mr_length=5, li_order=2, vocab_size=256,
)  # fmt: skip


def numbered(shape: tuple[int, ...]) -> Tensor:
    """0, 1, 2, ... so that each element tells where it came from."""
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float32).reshape(shape)


def small_weights() -> dict[str, Any]:
    content: dict[str, Any] = {}
    for rule in vortex_rules(SMALL):
        (wanted,) = rule.inputs
        content[wanted.keys[0]] = numbered(wanted.shape)
    content["blocks.3.inner_mha_cls.rotary_emb.inv_freq"] = torch.ones(1)  # base ** 0
    return content


def read(content: dict[str, Any], config: StripedHyena2Config = SMALL) -> ForeignSource:
    return vortex_source(Path("small.pt"), content, config)


def test_hyena_rows_are_taken_apart_by_role() -> None:
    q, k, v = read(small_weights()).tensor("blocks.0.projections.weight").chunk(3)
    # Released rows 3c, 3c+1, 3c+2 are q, k, v of channel c; each row holds 4 numbers.
    assert q[:, 0].tolist() == [0, 12, 24, 36]
    assert k[:, 0].tolist() == [4, 16, 28, 40]
    assert v[:, 0].tolist() == [8, 20, 32, 44]


def test_attention_rows_are_taken_apart_by_head() -> None:
    q, k, v = read(small_weights()).tensor("blocks.3.projections.weight").chunk(3)
    # Two heads of width 2: rows q0 q0 k0 k0 v0 v0 q1 q1 k1 k1 v1 v1 of 4 numbers each.
    assert q[:, 0].tolist() == [0, 4, 24, 28]
    assert k[:, 0].tolist() == [8, 12, 32, 36]
    assert v[:, 0].tolist() == [16, 20, 40, 44]


def test_taps_become_lag_zero_first() -> None:
    source = read(small_weights())
    # Hyena-SE and the featurizer are stored with the current position last, Hyena-MR with it first.
    assert source.tensor("blocks.0.mixer.h").tolist() == [[2, 1, 0], [5, 4, 3]]
    assert source.tensor("blocks.1.mixer.h").tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    featurizer = source.tensor("blocks.0.mixer.featurizer")
    assert featurizer[0].tolist() == [2, 1, 0]  # q of channel 0: released row 0
    assert featurizer[1].tolist() == [11, 10, 9]  # q of channel 1: released row 3
    assert featurizer[4].tolist() == [5, 4, 3]  # k of channel 0: released row 1
    assert featurizer[8].tolist() == [8, 7, 6]  # v of channel 0: released row 2


def test_modal_parameters_lose_only_their_last_axis() -> None:
    source = read(small_weights())
    assert source.tensor("blocks.2.mixer.log_poles").tolist() == numbered((4, 2)).tolist()
    assert source.tensor("blocks.2.mixer.residues").tolist() == numbered((4, 2)).tolist()
    assert source.tensor("blocks.2.mixer.D").tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("name", ["evo2_1b_base", "evo2_7b", "evo2_20b", "evo2_40b"])
def test_rules_cover_every_tensor_of_a_released_model(name: str) -> None:
    config = MODELS[name].config
    shapes = tensor_shapes(config)
    rules = vortex_rules(config)
    assert sorted(rule.name for rule in rules) == sorted(shapes)
    total = sum(torch.Size(shapes[n]).numel() for n in shapes if not n.endswith("inv_freq"))
    assert total == config.parameter_count()


def test_layout_changes_undo_each_other() -> None:
    x = numbered((12, 5))
    assert torch.equal(interleave(deinterleave(x)), x)
    assert torch.equal(blocks_to_heads(heads_to_blocks(x, 2), 2), x)
    assert not torch.equal(heads_to_blocks(x, 2), deinterleave(x))


def test_round_trip_is_bit_exact(tiny_file: Path, tiny_weights: dict[str, Any]) -> None:
    back = to_vortex(open_source(tiny_file).source)
    expected = {k: v for k, v in tiny_weights.items() if v is not None}
    assert set(back) == set(expected) | {"unembed.weight"}
    for key, tensor in expected.items():
        assert back[key].dtype == tensor.dtype, key
        assert torch.equal(back[key], tensor), key
    assert back["unembed.weight"].data_ptr() == back["embedding_layer.weight"].data_ptr()


@pytest.mark.parametrize("name", ["tiny_noscale", "tiny_interp128"])
def test_round_trip_of_the_full_recordings(shared_dir: Path, name: str) -> None:
    path = shared_dir / "fixtures" / "evo2" / f"{name}.pt"
    back = to_vortex(open_source(path).source)
    content = torch.load(path, weights_only=True)
    expected = {k: v for k, v in content.items() if v is not None}
    assert set(back) == set(expected)
    assert all(torch.equal(back[key], expected[key]) for key in expected)


def test_tensors_own_their_memory(tiny_file: Path) -> None:
    before = tiny_file.read_bytes()
    for _, tensor in open_source(tiny_file).source.iter_tensors():
        tensor.fill_(7)
    assert tiny_file.read_bytes() == before
    again = open_source(tiny_file).source
    assert not (again.tensor("norm.scale") == 7).any()


def test_all_missing_keys_are_one_error_that_names_the_first() -> None:
    content = small_weights()
    for key in ("norm.scale", "blocks.0.filter.h", "blocks.1.filter.D", "blocks.2.filter.D"):
        del content[key]
    with pytest.raises(CheckpointError) as error:
        read(content)
    message = str(error.value)
    assert "\n" not in message
    assert "blocks.0.filter.h [2, 1, 3]" in message
    assert "and 1 more" in message


def test_wrong_shape_dtype_or_kind_is_named() -> None:
    for value, reason in (
        (torch.zeros(3, 1, 3), "blocks.0.filter.h is [3, 1, 3], wanted [2, 1, 3]"),
        (torch.zeros(2, 1, 3, dtype=torch.int64), "blocks.0.filter.h is torch.int64"),
        (io.BytesIO(b"x"), "blocks.0.filter.h is a BytesIO"),
        (torch.zeros(2, 1, 3).to_sparse(), "blocks.0.filter.h is a Tensor"),
    ):
        with pytest.raises(CheckpointError, match="does not fit") as error:
            read({**small_weights(), "blocks.0.filter.h": value})
        assert reason in str(error.value)


def test_a_configuration_with_fewer_layers_does_not_fit() -> None:
    with pytest.raises(CheckpointError, match="layer that the configuration does not have"):
        read(small_weights(), SMALL.replace(pattern="SDH"))


def test_a_configuration_with_other_layers_does_not_fit() -> None:
    with pytest.raises(CheckpointError, match=r"missing: blocks\.0\.inner_mha_cls"):
        read(small_weights(), SMALL.replace(pattern="*DH*"))


def test_layers_that_no_released_model_has_are_refused_in_their_formats() -> None:
    config = SMALL.replace(pattern="SD3*")
    with pytest.raises(CheckpointError, match=r"a vortex checkpoint, which has no 3 \(H3\) layers"):
        read(small_weights(), config)
    with pytest.raises(CheckpointError, match=r"no 3 \(H3\) layers; keep our format"):
        vortex_config(config)


def test_extra_keys_are_tolerated_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    content = small_weights()
    content["unembed.weight"] = content["embedding_layer.weight"].clone()
    content["blocks.3.mixer.dense._extra_state"] = None
    content["blocks.0.projections._extra_state"] = io.BytesIO(b"scales")
    content["blocks.2.mixer.mixer.filter.t"] = torch.zeros(3)
    with caplog.at_level(logging.INFO, "evo_toolkit"):
        source = read(content)
    assert [r.levelname for r in caplog.records] == ["INFO"]
    assert "4 extra keys" in caplog.text
    assert source.has_fp8_scales
    caplog.clear()
    content["something.else"] = torch.zeros(1)
    with caplog.at_level(logging.INFO, "evo_toolkit"):
        list(read(content).iter_tensors())
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert "1 keys are not part of the model and were left out: something.else" in caplog.text


def test_empty_fp8_payloads_are_no_scales() -> None:
    assert not read(small_weights()).has_fp8_scales
    for empty in (None, io.BytesIO(b""), b""):
        content = {**small_weights(), "blocks.0.projections._extra_state": empty}
        assert not read(content).has_fp8_scales


def test_tied_configuration_needs_equal_matrices() -> None:
    content = {**small_weights(), "unembed.weight": torch.zeros(256, 4)}
    with pytest.raises(CheckpointError, match="ties them"):
        read(content)
    untied = read(content, SMALL.replace(tie_embeddings=False))
    assert not untied.tensor("unembedding.weight").any()


def test_rotary_frequencies_of_the_file_count(caplog: pytest.LogCaptureFixture) -> None:
    content = small_weights()
    content["blocks.3.inner_mha_cls.rotary_emb.inv_freq"] = torch.tensor([0.25])
    with caplog.at_level(logging.WARNING, "evo_toolkit"):
        source = read(content)
    assert "not those of rotary_base 10000" in caplog.text
    assert source.tensor("blocks.3.mixer.inv_freq").tolist() == [0.25]


def test_absent_rotary_frequencies_follow_from_the_configuration(
    tiny_file: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    key = "blocks.3.inner_mha_cls.rotary_emb.inv_freq"
    recorded = tiny_weights.pop(key)
    source = vortex_source(tiny_file, tiny_weights, tiny_config)
    assert torch.equal(source.tensor("blocks.3.mixer.inv_freq"), recorded)
    assert source.specs()["blocks.3.mixer.inv_freq"].shape == tuple(recorded.shape)


@pytest.mark.parametrize("name", list(MODELS))
def test_released_configurations_survive_the_way_to_vortex(name: str) -> None:
    config = MODELS[name].config
    back = config_from_vortex(vortex_config(config))
    same = ("name", "pattern", "width", "num_heads", "mlp_width", "filter_groups", "context_length",
            "rotary_base", "rotary_interpolation", "gelu_layers", "tie_embeddings", "norm_eps", "li_order")  # fmt: skip
    assert {k: getattr(back, k) for k in same} == {k: getattr(config, k) for k in same}


def test_what_vortex_cannot_say_is_refused() -> None:
    with pytest.raises(CheckpointError, match="gelu_layers"):
        vortex_config(SMALL.replace(gelu_layers=(1,)))
    with pytest.raises(CheckpointError, match="rotary"):
        vortex_config(SMALL.replace(rotary_bf16_frequencies=False))
