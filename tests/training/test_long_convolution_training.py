"""A hybrid with long convolutions trains, resumes, is exported, continued, and generates."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import assert_close, finish

from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.errors import UsageError
from evo_toolkit.inference.generate import generate
from evo_toolkit.training.export import export_checkpoint
from evo_toolkit.training.module import ContinuedEvoModule

Fit = Callable[..., Path]
Load = Callable[[Path, int], dict[str, Any]]

HYBRID = (
    "--model.config.pattern", "L3*L", "--model.config.long_length", 40,
    "--model.config.long_dropout", 0.1, "--model.config.long_smooth", 3,
    "--model.config.h3_shift_length", 8, "--model.config.ssm_order", 4,
)  # fmt: skip


def test_a_hybrid_trains_and_is_exported(fit: Fit, tmp_path: Path, checkpoint_of: Load) -> None:
    options = (*HYBRID, "--model.total_steps", 4, "--seed_everything", 5)
    fit(tmp_path / "whole", *options, "--trainer.max_steps", 4)
    whole = checkpoint_of(tmp_path / "whole", 4)["state_dict"]
    first = checkpoint_of(tmp_path / "whole", 2)["state_dict"]
    still = {key for key, value in first.items() if torch.equal(value, whole[key])}
    assert still <= {"objective.model.blocks.2.mixer.inv_freq"}  # everything learns

    export_checkpoint(tmp_path / "whole", tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    assert (model.config.pattern, model.config.long_length) == ("L3*L", 40)
    for name in ("blocks.0.mixer.h", "blocks.3.mixer.D", "blocks.0.mixer.featurizer"):
        value = model.state_dict()[name]
        assert value.dtype == torch.float32
        assert torch.equal(value, whole[f"objective.model.{name}"])
    continued = ContinuedEvoModule(str(tmp_path / "model"), 64).build_model(torch.device("cpu"))
    assert continued.config.context_length == 64 and continued.config.long_length == 40
    assert torch.equal(continued.state_dict()[name], value)
    assert continued.blocks[0].mixer.h.requires_grad  # type: ignore[union-attr]
    assert len(generate(model, "ACGTTGCA" * 8, max_new_tokens=5, temperature=1, seed=1)) <= 5


def test_without_dropout_a_resumed_run_is_the_whole_one_bit_for_bit(
    fit: Fit, tmp_path: Path, checkpoint_of: Load, same_state: Callable[..., None]
) -> None:
    options = (*HYBRID, "--model.config.long_dropout", 0, "--model.total_steps", 4)
    fit(tmp_path / "whole", *options, "--trainer.max_steps", 4)
    for stop in (2, 4):
        fit(tmp_path / "parts", *options, "--trainer.max_steps", stop, "--ckpt_path", "last")
    whole, parts = (checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts"))
    for key in ("state_dict", "optimizer_states"):
        same_state(whole[key], parts[key], key)


@pytest.mark.parametrize(
    "option", [("long_bidirectional", "true"), ("long_butterfly", "free")], ids=lambda o: o[0]
)
def test_models_that_look_ahead_are_refused_before_the_first_step(
    fit: Fit, tmp_path: Path, option: tuple[str, str]
) -> None:
    name, value = option
    with pytest.raises(UsageError, match=f"cannot be trained to predict the next base.*{name}"):
        fit(tmp_path / "run", *HYBRID, f"--model.config.{name}", value)
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_two_sharded_processes_train_a_hybrid_as_one(
    fit: Fit, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, checkpoint_of: Load
) -> None:
    options = (*HYBRID, "--model.config.long_dropout", 0, "--model.total_steps", 2)
    options += ("--trainer.max_steps", 2, "--model.optimizer.learning_rate", 1e-3)
    process = start(
        tmp_path / "two", *options, "--data.batch_size", 2, "--trainer.devices", 2,
        "--trainer.strategy", "fsdp2",
    )  # fmt: skip
    fit(tmp_path / "one", *options, "--data.batch_size", 4)
    finish(process)
    assert_close(checkpoint_of(tmp_path / "one", 2), checkpoint_of(tmp_path / "two", 2))
