"""The commands `models` and `convert`."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from evo_toolkit.checkpoint import hub, load, opening
from evo_toolkit.checkpoint.format import save_pretrained
from evo_toolkit.cli import models as models_module
from evo_toolkit.cli.convert import convert
from evo_toolkit.cli.models import models
from evo_toolkit.inference import machine
from evo_toolkit.model.config import Evidence, StripedHyena2Config
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2


@pytest.fixture(autouse=True)
def nothing_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_here", lambda name: False)


def run(*arguments: str | Path) -> Result:
    command = {"models": models, "convert": convert}[str(arguments[0])]
    return CliRunner().invoke(command, [str(a) for a in arguments[1:]])


def failed(result: Result, code: int) -> str:
    assert result.exit_code == code, result.output
    assert len(result.stderr.strip().splitlines()) == 1
    assert result.stderr.startswith("Error: ")
    return result.stderr


def test_importing_the_commands_imports_nothing_heavy() -> None:
    code = (
        "import sys, evo_toolkit.cli.models, evo_toolkit.cli.convert;"
        "print([m for m in ('torch', 'numpy', 'safetensors', 'huggingface_hub', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def pretend_memory(monkeypatch: pytest.MonkeyPatch, size: int, dtype: torch.dtype) -> None:
    """Let this machine have `size` bytes and compute in `dtype`."""
    policy = PrecisionPolicy(name="default", compute_dtype=dtype)
    monkeypatch.setattr(models_module, "_place", lambda: (torch.device("cpu"), policy))
    monkeypatch.setattr(machine, "total_memory", lambda device: size)
    monkeypatch.setattr(load, "total_memory", lambda device: size)


def test_list_says_what_is_right_and_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_memory(monkeypatch, 80_000_000_000, torch.bfloat16)
    result = run("models", "list")
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line for line in result.stdout.splitlines() if line.startswith("evo")}
    assert set(rows) == {"evo-mini", *MODELS}
    assert " right " in rows["evo2_7b"]
    assert " yes " in rows["evo2_7b"]
    assert "6.58 B" in rows["evo2_7b"]
    assert "1,048,576" in rows["evo2_7b"]
    assert "download, 13.2 GB" in rows["evo2_7b"]
    assert " inaccurate " in rows["evo2_1b_base"]
    assert " no " in rows["evo2_40b"]
    assert "cpu, 80.0 GB, weights in bfloat16" in result.stdout
    # 6.58 B parameters of four bytes.
    pretend_memory(monkeypatch, 26_000_000_000, torch.float32)
    rows = {line.split()[0]: line for line in run("models", "list").stdout.splitlines() if line}
    assert " no " in rows["evo2_7b"]


def test_list_says_what_is_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "is_here", lambda name: name == "evo2_7b")
    rows = {line.split()[0]: line for line in run("models", "list").stdout.splitlines() if line}
    assert " downloaded " in rows["evo2_7b"]
    assert " download, " in rows["evo2_20b"]


def test_info_of_a_released_model_that_is_not_here() -> None:
    result = run("models", "info", "evo2_40b")
    assert result.exit_code == 0, result.output
    for part in (
        "41,117,574,144",
        "1.700 nats",
        "viruses of eukaryotes",
        "models download evo2_40b",
    ):
        assert part in result.stdout
    assert "models download evo2_40b" in failed(run("models", "info", "evo2_40b", "--verify"), 1)


def test_info_says_what_layers_are_made_of_and_which_look_ahead(tmp_path: Path) -> None:
    config = StripedHyena2Config(
        name="toy", pattern="L3*", width=16, num_heads=2, mlp_width=24, filter_groups=4,
        context_length=8, vocab_size=256, long_length=8, long_butterfly="free", h3_head_width=4,
    )  # fmt: skip
    state = StripedHyena2(config, generator_seed=0).state_dict()
    path = save_pretrained(state, config, tmp_path / "m", provenance={"source": "test"})
    shown = run("models", "info", path).stdout
    assert "H3                h3_shift_length 64, h3_head_width 4, ssm_order 32" in shown
    assert "long convolution  long_length 8, long_init geometric" in shown
    assert "looks ahead       long convolution: long_butterfly is free: no scores" in shown
    # A short input is no longer than what the layers take.
    copied = run("convert", path, tmp_path / "copy", "--verify")
    assert copied.exit_code == 0, copied.output


def test_info_of_a_folder_prints_provenance_and_evidence(
    tmp_path: Path, tiny_state: dict[str, Tensor], tiny_config: StripedHyena2Config
) -> None:
    config = tiny_config.replace(
        domains=("bacteria", "phages"), not_for=("human",),
        evidence=(Evidence(metric="bits per base", value="1.9", command="evo-toolkit eval"),),
    )  # fmt: skip
    provenance = {"source": "trained here", "training": {"steps": 12}}
    path = save_pretrained(tiny_state, config, tmp_path / "m", provenance=provenance)
    result = run("models", "info", path)
    assert result.exit_code == 0, result.output
    for part in ("bacteria; phages", "human", "bits per base: 1.9", "measured by       evo-toolkit eval", "trained here", "training.steps", "as recorded"):  # fmt: skip
        assert part in result.stdout
    assert "(verified)" in run("models", "info", path, "--verify").stdout
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert "changed or damaged" in failed(run("models", "info", path, "--verify"), 1)


def test_info_verifies_a_file_of_the_hubs_cache_by_its_name(
    tmp_path: Path, tiny_file: Path
) -> None:
    config = tiny_file.with_name("tiny_noscale.config.json")
    assert "nothing to compare with" in run("models", "info", tiny_file, "--verify").stdout
    digest = hashlib.sha256(tiny_file.read_bytes()).hexdigest()
    for name, verdict in ((digest, "as on the hub"), ("0" * 64, "is damaged")):
        blob = shutil.copy(tiny_file, tmp_path / name)
        link = tmp_path / "m.pt"
        link.unlink(missing_ok=True)
        link.symlink_to(blob)
        result = run("models", "info", link, "--config", config, "--verify")
        assert verdict in result.stdout + result.stderr
        assert result.exit_code == (0 if name == digest else 1)


def test_info_of_what_does_not_exist(tmp_path: Path) -> None:
    assert "known are evo-mini" in failed(run("models", "info", "evo3"), 2)
    assert "does not exist" in failed(run("models", "info", tmp_path / "x.pt"), 1)


def test_download_prints_where_it_is_and_warns_of_what_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "download", lambda name, force: tmp_path / f"{name}.pt")
    result = run("models", "download", "evo2_7b")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'evo2_7b.pt'}\n"
    assert result.stderr == ""
    assert "--allow-inaccurate" in run("models", "download", "evo2_20b").stderr
    assert "known are" in failed(run("models", "download", "evo3"), 2)
    assert "bundled" in failed(run("models", "download", "evo-mini"), 2)


def test_convert_says_what_it_did(tmp_path: Path, tiny_file: Path) -> None:
    result = run("convert", tiny_file, tmp_path / "ours", "--verify")
    assert result.exit_code == 0, result.output
    assert "(vortex to ours)" in result.stdout
    assert result.stdout.rstrip().endswith(f"{tmp_path / 'ours'}: 0")
    assert "--force" in failed(run("convert", tiny_file, tmp_path / "ours"), 1)
    assert run("convert", tiny_file, tmp_path / "ours", "--force").exit_code == 0
    assert run("convert", tmp_path / "ours", tmp_path / "v.pt").exit_code == 0
    assert json.loads((tmp_path / "v.config.json").read_text())["hidden_size"] == 64


def test_convert_takes_a_configuration(tmp_path: Path, tiny_file: Path) -> None:
    alone = tmp_path / "alone.pt"
    shutil.copy(tiny_file, alone)
    assert "no configuration" in failed(run("convert", alone, tmp_path / "a"), 1)
    config = tiny_file.with_name("tiny_noscale.config.json")
    assert run("convert", alone, tmp_path / "a", "--config", config).exit_code == 0
    assert "does not end in .pt" in failed(
        run("convert", tiny_file, tmp_path / "b", "--to", "vortex"), 2
    )
    assert run("convert", tiny_file, tmp_path / "b", "--to", "nemo").exit_code == 2


def test_bundled_model_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "bundled_directory", lambda name: tmp_path / name)
    assert "not in this installation" in run("models", "list").stdout
    assert "reinstall" in failed(run("models", "info", "evo-mini"), 1)
