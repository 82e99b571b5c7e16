"""Conversions: bits kept, logits equal, nothing left behind when they are not."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evo_toolkit.checkpoint import convert as convert_module
from evo_toolkit.checkpoint.convert import convert
from evo_toolkit.checkpoint.format import open_checkpoint, save_pretrained
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.checkpoint.source import StateDictSource
from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.config import StripedHyena2Config, read_config


def test_released_to_ours_and_back_is_bit_exact(
    tmp_path: Path, tiny_file: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    first = convert(tiny_file, tmp_path / "ours", verify=True)
    assert (first.source_format, first.target_format) == ("vortex", "ours")
    assert first.max_difference == 0
    assert open_checkpoint(tmp_path / "ours", verify=True).config == tiny_config
    second = convert(tmp_path / "ours", tmp_path / "back.pt", verify=True)
    assert (second.source_format, second.target_format) == ("ours", "vortex")
    assert second.max_difference == 0
    back = torch.load(tmp_path / "back.pt", weights_only=True, mmap=True)
    for key, value in tiny_weights.items():
        if value is not None:
            assert torch.equal(back[key], value), key
            assert back[key].dtype == value.dtype
    assert torch.equal(back["unembed.weight"], tiny_weights["embedding_layer.weight"])
    # Tied matrices are stored once, and no file carries more than its tensors.
    size = sum(t.numel() * t.element_size() for k, t in back.items() if k != "unembed.weight")
    assert (tmp_path / "back.pt").stat().st_size < size + 40_000
    assert read_config(tmp_path / "back.config.json") == tiny_config
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "toolkit-cache") == [
        "back.config.json", "back.pt", "ours",
    ]  # fmt: skip


def test_provenance_follows(tmp_path: Path, tiny_file: Path) -> None:
    convert(tiny_file, tmp_path / "a")
    record = json.loads((tmp_path / "a" / "provenance.json").read_text())
    assert record["source"] == str(tiny_file)
    assert record["source_format"] == "vortex"
    assert record["source_sha256"] == load_model(tiny_file, device="cpu").sha256
    convert(tmp_path / "a", tmp_path / "b")
    copied = json.loads((tmp_path / "b" / "provenance.json").read_text())
    assert copied["source"] == str(tiny_file)
    assert copied["copied_from"] == str(tmp_path / "a")
    assert copied["sha256"] == record["sha256"]


def test_training_to_ours(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    spec = importlib.util.spec_from_file_location(
        "test_savanna_layout", Path(__file__).with_name("test_savanna.py")
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    path = module.save(module.as_training(tiny_weights), tmp_path / "training.pt")
    done = convert(path, tmp_path / "ours", config=tiny_config, verify=True)
    assert done.source_format == "savanna"
    assert done.max_difference == 0
    poles = open_checkpoint(tmp_path / "ours").specs()["blocks.2.mixer.log_poles"]
    assert poles == (torch.float32, (64, 16))


def test_verify_finds_a_difference_and_leaves_nothing(
    tmp_path: Path, tiny_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = convert_module.write_checkpoint

    def wrong(source: Any, directory: Path, provenance: Any) -> str:
        state = dict(source.iter_tensors())
        taps = state["blocks.5.mixer.h"]
        # One tap of the longest lag: only an input longer than the filter can tell.
        taps[0, 127] += 1
        return right(StateDictSource(state, source.config), directory, provenance)

    monkeypatch.setattr(convert_module, "write_checkpoint", wrong)
    with pytest.raises(CheckpointError, match="logits would differ"):
        convert(tiny_file, tmp_path / "ours", verify=True)
    assert [p.name for p in tmp_path.iterdir() if p.name != "toolkit-cache"] == []


def test_fp8_scales_are_said_to_be_lost(
    tmp_path: Path, tiny_weights: dict[str, Any], tiny_config: StripedHyena2Config
) -> None:
    path = tmp_path / "m.pt"
    torch.save(tiny_weights, path)
    assert convert(path, tmp_path / "a", config=tiny_config).notes == ()
    tiny_weights["blocks.0.projections._extra_state"] = torch.zeros(3, dtype=torch.uint8)
    torch.save(tiny_weights, path)
    (note,) = convert(path, tmp_path / "b", config=tiny_config).notes
    assert "FP8 scales" in note


def test_wrong_targets_are_refused_before_anything_is_read(tmp_path: Path, tiny_file: Path) -> None:
    with pytest.raises(UsageError, match="ours or vortex"):
        convert(tiny_file, tmp_path / "x", to="savanna")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"does not end in \.pt"):
        convert(tiny_file, tmp_path / "x", to="vortex")
    (tmp_path / "there.pt").write_text("mine")
    with pytest.raises(ValueError, match="exists"):
        convert(tiny_file, tmp_path / "there.pt")
    assert (tmp_path / "there.pt").read_text() == "mine"
    convert(tiny_file, tmp_path / "there.pt", force=True)
    assert open_source(tmp_path / "there.pt").source.format == "vortex"


def test_what_the_released_form_cannot_say_is_refused(
    tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    config = tiny_config.replace(gelu_layers=(2,))
    path = save_pretrained(tiny_state, config, tmp_path / "m", provenance={"source": "test"})
    with pytest.raises(CheckpointError, match="keep our format"):
        convert(path, tmp_path / "m.pt")
    assert not (tmp_path / "m.pt").exists()
