"""`evo-toolkit doctor`."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor

from evo_toolkit.checkpoint import load
from evo_toolkit.cli import doctor as doctor_module
from evo_toolkit.cli.doctor import doctor
from evo_toolkit.errors import InaccurateModelError
from evo_toolkit.inference import machine, released_check
from evo_toolkit.inference.machine import Gpu, probe_machine
from evo_toolkit.model.registry import MODELS

PROMPTS = (
    "Sequence\n" + "\n".join(("ACGTN" * 10, "GATTACA" * 9, "TTTTTTTTTT" * 5, "CGCG" * 20)) + "\n"
)


class Stub:
    """A model that gives each next token the probability `exp(-loss)`."""

    def __init__(self, loss: float, name: str) -> None:
        self.loss = loss
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(name=name)

    def __call__(self, ids: Tensor) -> Tensor:
        p = math.exp(-self.loss)
        logits = torch.zeros(*ids.shape, 512)
        return logits.scatter(-1, ids.roll(-1)[..., None], math.log(p * 511 / (1 - p)))


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EVO_TOOLKIT_MODEL", raising=False)
    monkeypatch.setattr(machine, "matmul_rate", lambda device, dtype: 1e12)


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that stands for the released one, which is not shipped."""
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    accept = functools.partial(released_check.read_prompts, sha256=digest, lengths=(50, 63, 50, 80))
    monkeypatch.setattr(released_check, "read_prompts", accept)
    return path


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What `load_model` is asked for, and (`loss`) what the model that it returns does."""
    state: dict[str, Any] = {"loss": 0.3476563}

    def load_model(source: str, **options: Any) -> Stub:
        state.update(source=source, **options)
        return Stub(state["loss"], source)

    monkeypatch.setattr(load, "load_model", load_model)
    return state


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(doctor, [str(a) for a in arguments])


def row(result: Result, name: str) -> str:
    (line,) = [x for x in result.stdout.splitlines() if x.split("  ")[0] == name]
    return line


def test_without_a_model() -> None:
    result = run()
    assert result.exit_code == 0 and result.stderr == ""
    for start in ("evo_toolkit ", "python ", f"torch          {torch.__version__}", "triton ", "pysam ", "NVIDIA driver ", "GPU", "CPU ", "memory ", "runs on "):  # fmt: skip
        assert any(line.startswith(start) for line in result.stdout.splitlines()), start
    for name in MODELS:
        row(result, name)
    assert (
        "No released weights have been run by the project: you are the first tester."
        in result.stdout
    )
    assert "not measured" in result.stdout and "--prompts" in result.stdout


def test_table_says_what_fits_what_is_right_and_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "total_memory", lambda device: 40_000_000_000)
    result = run("--device", "cpu", "--precision", "exact")
    # 10^12 operations per second at 2 * 6,581,722,880 per base are 76 bases per second; an SNV
    # takes 4 windows of 8,192 bases, so 8.3 in an hour.
    cells = re.split(r"  +", row(result, "evo2_7b"))
    assert cells[1:] == ["26.3 GB + 2.7 GB", "yes", "yes", "at most 76 bases/s, 8.3 SNVs/h"]
    cells = re.split(r"  +", row(result, "evo2_40b"))
    assert cells[1:] == ["164.5 GB + 5.4 GB", "no", "no", "-"]
    assert "evo2_40b: 1.700 nats per base in bf16 against 0.922 with FP8" in result.stdout
    assert "--allow-inaccurate" in result.stdout


def test_gpus_are_described(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = Gpu("NVIDIA H200", "9.0", 150_000_000_000, 149_000_000_000, bf16=True, fp8=True)
    found = dataclasses.replace(probe_machine(), gpus=(gpu,), driver="580.159", gpu_problem=None)
    monkeypatch.setattr(machine, "probe_machine", lambda: found)
    out = run().stdout
    assert (
        "GPU 0          NVIDIA H200, sm_90, 150.0 GB (149.0 GB free), bfloat16 yes, FP8 yes" in out
    )
    assert "NVIDIA driver  580.159" in out
    problem = dataclasses.replace(found, gpus=(), gpu_problem="torch was installed without CUDA")
    monkeypatch.setattr(machine, "probe_machine", lambda: problem)
    assert "GPU            none usable: torch was installed without CUDA" in run().stdout


def test_json() -> None:
    values = json.loads(run("--json").stdout)
    assert values["machine"]["torch"] == torch.__version__
    assert [m["name"] for m in values["models"]] == list(MODELS)
    assert values["forward_test"]["made"] is False
    assert "first tester" in values["note"]


def test_a_model_without_prompts_is_not_checked_and_that_is_said(loaded: dict[str, Any]) -> None:
    result = run("-m", "evo2_7b")
    assert result.exit_code == 0
    assert "source" not in loaded, "nothing is loaded"
    assert "The released forward test of evo2_7b was not made" in result.stdout
    assert "evo2/test/data/prompts.csv" in result.stdout
    row(result, "evo2_7b")
    assert "evo2_40b" not in result.stdout


def test_a_model_without_published_figures_is_told_so() -> None:
    result = run("-m", "evo-mini")
    assert result.exit_code == 0
    assert "not for evo-mini" in result.stdout and "first tester" not in result.stdout
    assert " MB + " in row(result, "evo-mini")


def test_right_weights_pass(loaded: dict[str, Any], prompts: Path) -> None:
    result = run("-m", "evo2_7b", "--prompts", prompts, "--device", "cpu", "--precision", "exact")
    assert result.exit_code == 0, result.output
    assert {k: loaded[k] for k in ("source", "device", "precision", "allow_inaccurate")} == {
        "source": "evo2_7b", "device": "cpu", "precision": "exact", "allow_inaccurate": False,
    }  # fmt: skip
    lines = result.stdout.splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith("Released forward test of evo2_7b")
    )
    assert [line.split()[:3] for line in lines[start + 2 : start + 6]] == [
        ["1", "50", "0.34766"], ["2", "63", "0.34766"], ["3", "50", "0.34766"], ["4", "80", "0.34766"],
    ]  # fmt: skip
    assert lines[start + 6].split()[:2] == ["mean", "0.34766"]
    assert lines[start + 7].split() == ["published", "0.34766", "86.346"]
    assert re.fullmatch(r"PASSED: the mean loss differs by [+-]0\.0000\d, within .*", lines[-1])
    assert "first tester" in result.stdout


def test_wrong_weights_exit_1(loaded: dict[str, Any], prompts: Path) -> None:
    loaded["loss"] = 0.3476563 + 0.0011
    result = run("-m", "evo2_7b", "--prompts", prompts)
    assert result.exit_code == 1
    assert result.stdout.splitlines()[-1].startswith("FAILED: the mean loss differs by +0.00110")


def test_check_in_json(loaded: dict[str, Any], prompts: Path) -> None:
    loaded["loss"] = 0.5
    result = run("-m", "evo2_7b", "--prompts", prompts, "--json")
    assert result.exit_code == 1
    check = json.loads(result.stdout)["forward_test"]
    assert check["made"] is True and check["passed"] is False
    assert check["loss"] == pytest.approx(0.5, abs=1e-5)
    assert check["expected"] == {"loss": 0.3476563, "accuracy": 86.346}
    assert len(check["sequences"]) == 4


def test_consent_reaches_the_loader(loaded: dict[str, Any], prompts: Path) -> None:
    run("-m", "evo2_40b", "--prompts", prompts, "--allow-inaccurate")
    assert loaded["allow_inaccurate"] is True


def test_an_inaccurate_model_is_refused(prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: str, **options: Any) -> None:
        raise InaccurateModelError("not right here")

    monkeypatch.setattr(load, "load_model", refuse)
    result = run("-m", "evo2_40b", "--prompts", prompts)
    assert (result.exit_code, result.stderr) == (2, "Error: not right here\n")


def test_wrong_prompts(loaded: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "prompts.csv"
    path.write_text(PROMPTS)
    result = run("-m", "evo2_7b", "--prompts", path)
    assert result.exit_code == 1 and result.stdout == ""
    assert "not the released prompts.csv" in result.stderr and result.stderr.count("\n") == 1
    result = run("-m", "evo2_7b", "--prompts", tmp_path / "absent")
    assert result.exit_code == 1 and "evo2/test/data/prompts.csv" in result.stderr
    assert "source" not in loaded


def test_a_path_can_be_said_to_be_a_released_model(
    loaded: dict[str, Any], prompts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = MODELS["evo2_7b"].config.replace(name="mine")
    monkeypatch.setattr(doctor_module, "_config", lambda model: config)
    result = run("-m", "mine.pt", "--prompts", prompts)
    assert result.exit_code == 2 and "'mine'" in result.stderr and "--as" in result.stderr
    assert "source" not in loaded
    result = run("-m", "mine.pt", "--prompts", prompts, "--as", "evo2_7b")
    assert result.exit_code == 0 and loaded["source"] == "mine.pt"
    assert run("-m", "mine.pt", "--prompts", prompts, "--as", "evo3").exit_code == 2


@pytest.mark.parametrize(
    "arguments", [["--prompts", "x"], ["-m", "evo2_7b", "--as", "evo2_7b"], ["--device", "tpu"]]
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert run(*arguments).exit_code == 2
