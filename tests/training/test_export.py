"""From a run to a model that the other commands take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from evo_data.files import sha256_file
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import CheckpointError
from evo_toolkit.training.export import export_checkpoint

DEMO = Path(__file__).resolve().parents[2] / "data" / "evo_data" / "demo"


@pytest.fixture
def finished(fit: Callable[..., Path], tmp_path: Path) -> Path:
    return fit(tmp_path / "run", "--trainer.max_steps", 3)


def test_an_exported_model_is_the_trained_one(finished: Path, tmp_path: Path) -> None:
    checkpoint = finished / "checkpoints" / "step-00000003.ckpt"
    export_checkpoint(finished, tmp_path / "model", float32=True, name="mine")
    model = load_model(tmp_path / "model", device="cpu")
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert model.config.name == "mine"
    found = model.state_dict()
    assert len(found) == len(state)
    for key, value in state.items():
        name = key.removeprefix("objective.model.")
        if name.endswith("parametrizations.log_poles.original"):
            name, value = "blocks.2.mixer.log_poles", -value.exp()
        assert torch.equal(found[name], value), name
    provenance = json.loads((tmp_path / "model" / "provenance.json").read_text())
    training = provenance["training"]
    assert training["steps"] == 3
    assert training["tokens"] == 3 * 4 * 32
    assert training["checkpoint_sha256"] == sha256_file(checkpoint)
    assert training["started_from"] == "random weights (seed 0)"
    assert training["data"]["context_length"] == 32
    assert training["optimizer"]["learning_rate"] == 3e-3


def test_filters_stay_float32_and_the_rest_is_bfloat16(finished: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    export_checkpoint(finished, tmp_path / "model")
    for name, tensor in load_file(tmp_path / "model" / "model.safetensors").items():
        wanted = torch.float32 if ".mixer." in name else torch.bfloat16
        assert tensor.dtype == wanted, name


def test_the_command_exports_and_score_takes_the_model(finished: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    model = tmp_path / "model"
    done = runner.invoke(cli, ["train", "export", str(finished), "-o", str(model)])
    assert done.exit_code == 0, done.output
    again = runner.invoke(cli, ["train", "export", str(finished), "-o", str(model)])
    assert again.exit_code == 1 and "--force" in again.output
    scored = runner.invoke(cli, ["score", str(DEMO / "rbcL_psbA.vcf"), str(DEMO / "NC_000932.fa"), "-m", str(model), "-o", str(tmp_path / "scores.tsv")])  # fmt: skip
    assert scored.exit_code == 0, scored.output
    assert len((tmp_path / "scores.tsv").read_text().splitlines()) > 40


@pytest.mark.parametrize("what", ["absent", "empty", "other"])
def test_what_is_no_checkpoint_is_one_line(tmp_path: Path, what: str) -> None:
    path = tmp_path / "given"
    if what == "empty":
        path.mkdir()
    if what == "other":
        torch.save({"state_dict": {}}, path)
    with pytest.raises(CheckpointError) as error:
        export_checkpoint(path, tmp_path / "model")
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "model").exists()
