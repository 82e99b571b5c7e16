"""Two processes against one: the same weights, and each other's checkpoints."""

from __future__ import annotations

import csv
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Fit = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
Load = Callable[[Path, int], dict[str, Any]]

_STEPS = ("--model.total_steps", 4, "--model.optimizer.learning_rate", 1e-3)


def finish(process: subprocess.Popen[str]) -> None:
    try:
        _, errors = process.communicate(timeout=300)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors[-3000:]


def assert_close(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["state_dict"].keys() == other["state_dict"].keys()
    for key, value in one["state_dict"].items():
        # Sums in another order; Adam's first steps magnify them where gradients are tiny.
        torch.testing.assert_close(value, other["state_dict"][key], rtol=1e-4, atol=2e-5, msg=key)
    ours, theirs = one["optimizer_states"][0]["state"], other["optimizer_states"][0]["state"]
    assert ours.keys() == theirs.keys()
    for key, state in ours.items():
        torch.testing.assert_close(state["exp_avg"], theirs[key]["exp_avg"], rtol=1e-3, atol=1e-5)
    assert one["evo_toolkit"]["tokens"] == other["evo_toolkit"]["tokens"]
    assert one["ToyData"] == other["ToyData"]


# An odd length: parts of a sequence differ. Two processes of context parallelism share every sample.
@pytest.mark.parametrize(
    ("strategy", "batch_size"), [("ddp", 2), ("fsdp2", 2), ("context_parallel", 4)]
)
def test_two_processes_train_as_one_and_one_goes_on_from_their_checkpoint(
    fit: Fit, start: Start, tmp_path: Path, checkpoint_of: Load, strategy: str, batch_size: int
) -> None:
    length = ("--data.context_length", 37, "--trainer.limit_val_batches", 2)
    parts = ("--data.batch_size", batch_size, "--trainer.accumulate_grad_batches", 2)
    process = start(
        tmp_path / "two", *_STEPS, *length, *parts, "--trainer.max_steps", 2, "--trainer.devices", 2,
        "--trainer.strategy", strategy, "--trainer.val_check_interval", 4,
    )  # fmt: skip
    fit(
        tmp_path / "one", *_STEPS, *length, "--data.batch_size", 8, "--trainer.max_steps", 4,
        "--checkpoint.keep", 0, "--trainer.val_check_interval", 2,
    )  # fmt: skip
    finish(process)
    assert validation(tmp_path / "one", 2)
    assert validation(tmp_path / "one", 2) == pytest.approx(
        validation(tmp_path / "two", 2), rel=1e-5
    )
    assert_close(checkpoint_of(tmp_path / "one", 2), checkpoint_of(tmp_path / "two", 2))
    # The learning of two ranks, continued by one.
    fit(
        tmp_path / "two", *_STEPS, *length, "--data.batch_size", 8, "--trainer.max_steps", 4,
        "--ckpt_path", "last", "--trainer.limit_val_batches", 0,
    )  # fmt: skip
    assert_close(checkpoint_of(tmp_path / "one", 4), checkpoint_of(tmp_path / "two", 4))


def validation(folder: Path, step: int) -> dict[str, float]:
    """Figures of the validation after so many updates."""
    rows = csv.DictReader((folder / "csv" / "version_0" / "metrics.csv").open())
    found = {k: float(v) for row in rows if row["step"] == str(step) for k, v in row.items() if v}
    return {name: value for name, value in found.items() if name.startswith("val/")}


@pytest.mark.slow
def test_two_sharded_processes_go_on_from_the_checkpoint_of_one(
    fit: Fit, start: Start, tmp_path: Path, checkpoint_of: Load
) -> None:
    fit(tmp_path / "one", *_STEPS, "--data.batch_size", 8, "--trainer.max_steps", 2)
    fit(tmp_path / "whole", *_STEPS, "--data.batch_size", 8, "--trainer.max_steps", 4)
    process = start(
        tmp_path / "one", *_STEPS, "--data.batch_size", 4, "--trainer.max_steps", 4,
        "--trainer.devices", 2, "--trainer.strategy", "fsdp2",
        "--model.checkpoint_blocks", 1, "--ckpt_path", "last",
    )  # fmt: skip
    finish(process)
    assert_close(checkpoint_of(tmp_path / "whole", 4), checkpoint_of(tmp_path / "one", 4))


@pytest.mark.slow
def test_muon_on_two_sharded_processes(
    fit: Fit, start: Start, tmp_path: Path, checkpoint_of: Load
) -> None:
    muon = ("--model.optimizer.name", "muon", "--trainer.max_steps", 2)
    process = start(
        tmp_path / "two", *_STEPS, *muon, "--data.batch_size", 4,
        "--trainer.devices", 2, "--trainer.strategy", "fsdp2",
    )  # fmt: skip
    fit(tmp_path / "one", *_STEPS, *muon, "--data.batch_size", 8)
    finish(process)
    one, two = (checkpoint_of(tmp_path / name, 2)["state_dict"] for name in ("one", "two"))
    for key, value in one.items():
        torch.testing.assert_close(value, two[key], rtol=1e-3, atol=1e-4, msg=key)
