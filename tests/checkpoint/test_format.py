"""Our folders: bit-equal round trip, checksums, versions, and nothing half-written."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from evo_toolkit.checkpoint.format import open_checkpoint, save_pretrained, staged_directory
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config

ORIGIN = {"source": "random weights", "date": "2026-01-01", "training": {"steps": 3}}


@pytest.fixture
def saved(tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config) -> Path:
    return save_pretrained(tiny_state, tiny_config, tmp_path / "model", provenance=ORIGIN)


def test_round_trip_is_bit_equal(
    saved: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    checkpoint = open_checkpoint(saved, verify=True)
    assert checkpoint.config == tiny_config
    found = dict(checkpoint.iter_tensors())
    assert list(found) == list(checkpoint.specs())
    assert set(found) == set(tiny_state)
    for name, tensor in tiny_state.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def test_the_safetensors_library_reads_the_same(saved: Path, tiny_state: dict[str, Tensor]) -> None:
    found = safetensors.torch.load_file(saved / "model.safetensors")
    assert set(found) == set(tiny_state)
    assert all(torch.equal(found[name], tiny_state[name]) for name in found)
    assert {t.dtype for t in found.values()} == {torch.bfloat16, torch.float32}


def test_provenance_says_where_from(saved: Path) -> None:
    record = json.loads((saved / "provenance.json").read_text())
    digest = hashlib.sha256((saved / "model.safetensors").read_bytes()).hexdigest()
    assert record.items() >= {**ORIGIN, "sha256": digest}.items()
    assert record["evo_toolkit"]
    assert json.loads((saved / "config.json").read_text())["format_version"] == 1
    assert open_checkpoint(saved).origin().sha256() == digest


def test_provenance_needs_a_source(
    tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    with pytest.raises(CheckpointError, match="no source"):
        save_pretrained(tiny_state, tiny_config, tmp_path / "x", provenance={})
    assert list(tmp_path.iterdir()) == []


def test_a_changed_byte_is_found_only_when_asked(saved: Path) -> None:
    path = saved / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    open_checkpoint(saved)
    with pytest.raises(CheckpointError, match="changed or damaged"):
        open_checkpoint(saved, verify=True)


@pytest.mark.parametrize("version", [2, None, "1"])
def test_another_format_version_is_refused(saved: Path, version: object) -> None:
    path = saved / "config.json"
    values = json.loads(path.read_text())
    values["format_version"] = version
    path.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match="format_version"):
        open_checkpoint(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "provenance.json"])
def test_an_absent_or_broken_file_is_named(saved: Path, name: str) -> None:
    path = saved / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=name) as error:
        open_checkpoint(saved)
    assert "\n" not in str(error.value)
    path.unlink()
    with pytest.raises(CheckpointError, match=f"has no {name}"):
        open_checkpoint(saved)


@pytest.mark.parametrize("size", [0, 4, 100])
def test_truncated_weights_are_refused(saved: Path, size: int) -> None:
    path = saved / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        open_checkpoint(saved)


def test_weights_that_do_not_fit_are_refused_on_both_ways(
    tmp_path: Path, saved: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    tiny_state["norm.scale"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"norm.scale is \[3\]"):
        save_pretrained(tiny_state, tiny_config, tmp_path / "y", provenance=ORIGIN)
    del tiny_state["norm.scale"]
    with pytest.raises(CheckpointError, match=r"missing: norm\.scale"):
        save_pretrained(tiny_state, tiny_config, tmp_path / "y", provenance=ORIGIN)
    assert not (tmp_path / "y").exists()
    path = saved / "config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "mlp_width": 160}))
    with pytest.raises(CheckpointError, match=r"mlp.l1.weight is \[176, 64\], wanted \[160, 64\]"):
        open_checkpoint(saved)
    path.write_text(json.dumps({**values, "pattern": "SDH*SDH"}))
    with pytest.raises(CheckpointError, match="is not a tensor of this model"):
        open_checkpoint(saved)


def test_an_existing_checkpoint_needs_force(
    saved: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    before = (saved / "model.safetensors").read_bytes()
    tiny_state["norm.scale"] = tiny_state["norm.scale"] + 1
    with pytest.raises(CheckpointError, match="--force"):
        save_pretrained(tiny_state, tiny_config, saved, provenance=ORIGIN)
    assert (saved / "model.safetensors").read_bytes() == before
    save_pretrained(tiny_state, tiny_config, saved, provenance=ORIGIN, force=True)
    assert torch.equal(open_checkpoint(saved).tensor("norm.scale"), tiny_state["norm.scale"])
    assert [p.name for p in saved.parent.iterdir()] == ["model"]


def test_a_folder_with_anything_else_is_never_replaced(
    saved: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    (saved / "thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"thesis\.tex"):
        save_pretrained(tiny_state, tiny_config, saved, provenance=ORIGIN, force=True)
    assert (saved / "thesis.tex").read_text() == "years of work"
    file = saved.parent / "file"
    file.write_text("x")
    with pytest.raises(CheckpointError, match="not a folder"):
        save_pretrained(tiny_state, tiny_config, file, provenance=ORIGIN, force=True)


def test_a_failed_write_leaves_what_was_there(saved: Path) -> None:
    before = {p.name: p.read_bytes() for p in saved.iterdir()}
    with pytest.raises(RuntimeError), staged_directory(saved, force=True) as staging:
        (staging / "model.safetensors").write_bytes(b"half")
        raise RuntimeError
    assert {p.name: p.read_bytes() for p in saved.iterdir()} == before
    assert [p.name for p in saved.parent.iterdir()] == ["model"]
