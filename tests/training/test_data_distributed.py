"""Genomes dealt to two processes are the genomes that one would read."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

DEMO = Path(__file__).resolve().parents[2] / "data" / "evo_data" / "demo" / "NC_000932.fa"


@pytest.mark.slow
def test_two_processes_then_one_is_one(
    fit: Callable[..., Path],
    start: Callable[..., subprocess.Popen[str]],
    checkpoint_of: Callable[[Path, int], dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(tmp_path / "cache"))
    recipe = tmp_path / "data.yaml"
    recipe.write_text(
        f"data: {{class_path: evo_toolkit.training.GenomeDataModule, init_args: {{genomes: {DEMO}, "
        "context_length: 32, batch_size: 4, val_fraction: 0.05, strands: random}}\n"
    )
    options = ("--config", recipe, "--model.total_steps", 6, "--trainer.limit_val_batches", 0)
    process = start(
        tmp_path / "two", *options, "--data.batch_size", 2, "--data.num_workers", 1,
        "--trainer.devices", 2, "--trainer.strategy", "ddp", "--trainer.max_steps", 4,
    )  # fmt: skip
    fit(tmp_path / "one", *options)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    fit(tmp_path / "two", *options, "--ckpt_path", "last")
    one, two = checkpoint_of(tmp_path / "one", 6), checkpoint_of(tmp_path / "two", 6)
    assert one["GenomeDataModule"] == two["GenomeDataModule"]
    assert one["GenomeDataModule"]["consumed"] == 24
    for name, value in one["state_dict"].items():
        # Sums in another order; Adam's first steps magnify them where gradients are tiny.
        torch.testing.assert_close(value, two["state_dict"][name], rtol=1e-4, atol=2e-5, msg=name)
