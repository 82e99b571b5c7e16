"""Fixtures of training: one run in this process, one in a program of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "data" / "evo_data" / "demo" / "NC_000932.fa"

# The toy data module is named in configurations, which import it.
sys.path.insert(0, str(Path(__file__).parent))

TOY = f"""
model:
  class_path: evo_toolkit.training.EvoModule
  init_args:
    config:
      name: toy
      pattern: SDH*
      width: 16
      num_heads: 2
      mlp_width: 32
      filter_groups: 2
      vocab_size: 256
      mr_length: 16
      gelu_layers: [0, 1, 2, 3]
      default_window: 64
    schedule: {{warmup_steps: 2}}
data:
  class_path: toy_data.ToyData
  init_args: {{genomes: {DEMO}, context_length: 32, batch_size: 4}}
trainer: {{accelerator: cpu, max_steps: 6, log_every_n_steps: 1, limit_val_batches: 0}}
checkpoint: {{every_n_steps: 2}}
"""

_OF_A_RANK = (
    "LOCAL_RANK",
    "NODE_RANK",
    "GLOBAL_RANK",
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)


@pytest.fixture(scope="session")
def toy_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe of a model with one layer of each kind on the toy data, 6 updates."""
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(TOY)
    return path


@pytest.fixture
def fit(toy_recipe: Path) -> Callable[..., Path]:
    """`fit(folder, *options)` trains the toy recipe here and returns the folder."""

    def run_fit(folder: Path, *options: object) -> Path:
        from evo_toolkit.training.cli import run

        words = ["fit", "--config", str(toy_recipe), "--trainer.default_root_dir", str(folder)]
        run([*words, *map(str, options)])
        return folder

    return run_fit


@pytest.fixture
def start(toy_recipe: Path) -> Callable[..., subprocess.Popen[str]]:
    """`start(folder, *options)` starts `evo-toolkit train fit` of the toy recipe as a program.

    `by` are words before `-m evo_toolkit`, of a program that starts the processes.
    """

    def start_fit(
        folder: Path, *options: object, by: tuple[str, ...] = ()
    ) -> subprocess.Popen[str]:
        paths = [str(ROOT), str(ROOT / "kernels"), str(ROOT / "data"), str(Path(__file__).parent)]
        # What a run in this process left there would tell the program that it is one rank of many.
        ours = {k: v for k, v in os.environ.items() if k not in _OF_A_RANK}
        environment = {
            **ours,
            "PYTHONPATH": os.pathsep.join(paths),
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
        }
        words = ["fit", "--config", str(toy_recipe), "--trainer.default_root_dir", str(folder)]
        return subprocess.Popen(
            [sys.executable, *by, "-m", "evo_toolkit", "train", *words, *map(str, options)],
            env=environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )

    return start_fit


def load(folder: Path, step: int) -> dict[str, Any]:
    """Checkpoint of a run after so many updates."""
    path = folder / "checkpoints" / f"step-{step:08d}.ckpt"
    return dict(torch.load(path, weights_only=True))


def assert_same_state(one: dict[str, Any], other: dict[str, Any], path: str = "") -> None:
    """Everything that a checkpoint holds is equal, bit for bit."""
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same_state(one[key], other[key], f"{path}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), path
        for index, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same_state(a, b, f"{path}/{index}")  # type: ignore[arg-type]
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), path
    else:
        assert one == other, path


@pytest.fixture(scope="session")
def checkpoint_of() -> Callable[[Path, int], dict[str, Any]]:
    return load


@pytest.fixture(scope="session")
def same_state() -> Callable[..., None]:
    return assert_same_state
