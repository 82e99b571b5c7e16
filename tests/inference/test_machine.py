"""What the machine is and what fits on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from evo_toolkit.inference import machine
from evo_toolkit.inference.machine import fit_model, matmul_rate, probe_machine
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import PrecisionPolicy, resolve_precision
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2

CPU = torch.device("cpu")
BF16 = PrecisionPolicy(name="default", compute_dtype=torch.bfloat16)
FP32 = resolve_precision("exact", CPU)
TINY = StripedHyena2Config(
    name="tiny", pattern="SDH*", width=32, num_heads=2, mlp_width=48, filter_groups=4,
    context_length=8192, tie_embeddings=False,
)  # fmt: skip


def test_probe() -> None:
    found = probe_machine()
    assert found.torch == torch.__version__
    assert found.torch_cuda == torch.version.cuda
    assert 1 <= found.cores <= (os.cpu_count() or 1)
    assert 2**28 < found.memory < 2**50
    assert found.memory_available is None or found.memory_available < 2**50
    assert len(found.gpus) == torch.cuda.device_count()


@pytest.mark.parametrize("policy", [BF16, FP32])
def test_weights_are_those_of_the_loaded_model(policy: PrecisionPolicy) -> None:
    with torch.device("meta"):
        model = StripedHyena2(TINY, policy=policy)
    num_bytes = sum(
        t.numel() * model.storage_dtype(k).itemsize for k, t in model.state_dict().items()
    )
    assert fit_model(TINY, CPU, policy).weights == num_bytes


def test_weights_of_a_released_model() -> None:
    # 6,581,722,880 parameters in bfloat16, the filters once more.
    num_bytes = fit_model(MODELS["evo2_7b"].config, CPU, BF16).weights
    assert 2 * 6_581_722_880 < num_bytes < 1.001 * 2 * 6_581_722_880


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_working_memory_is_about_what_a_forward_takes() -> None:
    # The mixers decide in the first, the MLP in the second, which needs more.
    configs = [TINY.replace(width=256, mlp_width=mlp) for mlp in (256, 2048)]
    code = f"""
import pathlib, re, torch
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
torch.set_num_threads(1)
models = [
    StripedHyena2(StripedHyena2Config.from_dict(c)).eval()
    for c in {[config.to_dict() for config in configs]!r}
]
def memory(key):
    text = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(key + r":\\s+(\\d+) kB", text)[1]) * 1024
with torch.inference_mode():
    models[0].token_log_probs(torch.full((1, 1024), 65))
    for model in models:
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        before = memory("VmRSS")
        model.token_log_probs(torch.full((1, 8192), 65))
        print(memory("VmHWM") - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        # Every tensor in a mapping of its own: a heap that grows in holes now and then doubles the peak.
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"},
    )
    for config, measured in zip(configs, map(int, done.stdout.split()), strict=True):
        # An estimate, not a promise.
        assert 0.6 < measured / machine.working_bytes(config, FP32, 8192) < 1.5


def test_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    config = MODELS["evo2_7b"].config
    fit = fit_model(config, CPU, BF16)
    needed = fit.weights + fit.working
    for memory, fits in ((needed, True), (needed - 1, False)):
        monkeypatch.setattr(machine, "total_memory", lambda _, m=memory: m)
        fit = fit_model(config, CPU, BF16)
        assert (fit.fits, fit.memory, fit.window) == (fits, memory, 8192)


def test_right_here_and_speed() -> None:
    right = fit_model(MODELS["evo2_7b"].config, CPU, BF16, flops=2 * 6_581_722_880 * 100.0)
    assert right.inaccurate is None
    assert right.most_bases_per_second == pytest.approx(100)
    wrong = fit_model(MODELS["evo2_40b"].config, CPU, BF16)
    assert wrong.inaccurate is not None and "FP8" in wrong.inaccurate
    assert wrong.most_bases_per_second is None


def test_matmul_rate_is_a_rate() -> None:
    assert 1e8 < matmul_rate(CPU, torch.float32) < 1e15


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.159.03  Release Build\nGCC version:  gcc version 12.3.0\n", "580.159.03"),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54  Tue Jun 6\n", "535.54"),
        ("", None),
    ],
)  # fmt: skip
def test_driver_version(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, version: str | None
) -> None:
    monkeypatch.setattr(machine, "_PROC_DRIVER", tmp_path / "version")
    monkeypatch.setattr(machine, "_nvidia_smi", lambda: text)
    assert machine._driver_version() == version
    (tmp_path / "version").write_text(text)
    monkeypatch.setattr(machine, "_nvidia_smi", lambda: "1234.5")
    assert machine._driver_version() == version


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is usable here")
def test_a_driver_without_a_usable_gpu_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_driver_version", lambda: "580.159")
    problem = probe_machine().gpu_problem
    assert problem is not None
    assert ("without CUDA" if torch.version.cuda is None else "driver") in problem
    monkeypatch.setattr(machine, "_driver_version", lambda: None)
    assert probe_machine().gpu_problem is None
