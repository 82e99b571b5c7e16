"""A hybrid of H3, S4D and the released kinds trains, resumes, is exported, and generates."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import assert_close, finish

from evo_data.tokenizer import ByteTokenizer
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.inference.generate import generate
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.export import export_checkpoint
from evo_toolkit.training.module import ContinuedEvoModule
from evo_toolkit.training.optim import OptimizerConfig, parameter_groups, train_by_log_rate

Fit = Callable[..., Path]
Load = Callable[[Path, int], dict[str, Any]]

HYBRID = (
    "--model.config.pattern", "3*4H", "--model.config.h3_head_width", 4,
    "--model.config.h3_shift_length", 8, "--model.config.ssm_order", 4,
)  # fmt: skip


def test_a_hybrid_trains_resumes_and_is_exported(
    fit: Fit, tmp_path: Path, checkpoint_of: Load, same_state: Callable[..., None]
) -> None:
    options = (*HYBRID, "--model.total_steps", 4)
    fit(tmp_path / "whole", *options, "--trainer.max_steps", 4)
    for stop in (2, 4):
        fit(tmp_path / "parts", *options, "--trainer.max_steps", stop, "--ckpt_path", "last")
    whole, parts = (checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts"))
    for key in ("state_dict", "optimizer_states", "evo_toolkit"):
        same_state(whole[key], parts[key], key)
    first = checkpoint_of(tmp_path / "parts", 2)["state_dict"]
    still = {key for key, value in first.items() if torch.equal(value, whole["state_dict"][key])}
    assert still <= {"objective.model.blocks.1.mixer.inv_freq"}  # everything learns

    export_checkpoint(tmp_path / "whole", tmp_path / "model")
    model = load_model(tmp_path / "model", device="cpu")
    assert model.config.pattern == "3*4H" and model.config.h3_head_width == 4
    for key, value in model.state_dict().items():
        trained = whole["state_dict"].get(f"objective.model.{key}")
        if trained is not None and ".mixer." in key:
            assert value.dtype == torch.float32 and torch.equal(value, trained), key

    continued = ContinuedEvoModule(str(tmp_path / "model"), 64)
    continued.configure_model()
    for key, value in continued.model.blocks[0].mixer.state_dict().items():
        assert torch.equal(value, model.blocks[0].mixer.state_dict()[key]), key  # type: ignore[union-attr]

    # Step by step from the states, and the whole sequence again for every base.
    prompt, made = "ACGTTGCA", generate(model, "ACGTTGCA", max_new_tokens=12, temperature=0)
    tokenizer = ByteTokenizer()
    for index, base in enumerate(made):
        ids = torch.from_numpy(tokenizer.encode(prompt + made[:index]).astype("int64"))[None]
        with torch.no_grad():
            assert int(model(ids)[0, -1].argmax()) == tokenizer.encode(base)[0]


@pytest.mark.slow
def test_two_sharded_processes_train_a_hybrid_as_one(
    fit: Fit, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, checkpoint_of: Load
) -> None:
    options = (*HYBRID, "--model.total_steps", 2, "--trainer.max_steps", 2)
    options += ("--model.optimizer.learning_rate", 1e-3)
    process = start(
        tmp_path / "two", *options, "--data.batch_size", 2, "--trainer.devices", 2,
        "--trainer.strategy", "fsdp2",
    )  # fmt: skip
    fit(tmp_path / "one", *options, "--data.batch_size", 4)
    finish(process)
    assert_close(checkpoint_of(tmp_path / "one", 2), checkpoint_of(tmp_path / "two", 2))


@pytest.mark.parametrize("pattern", ["3", "4"])
def test_poles_and_residues_are_filters_without_decay(pattern: str) -> None:
    config = StripedHyena2Config(
        name="toy", pattern=pattern, width=16, num_heads=2, mlp_width=32, filter_groups=2,
        context_length=32, vocab_size=256,
    )  # fmt: skip
    model = StripedHyena2(config)
    train_by_log_rate(model)  # of Hyena-LI alone: these rates are logarithms already
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.3, filter_learning_rate=1e-4))
    by_name = {name: group for group in groups for name in group.parameters}
    mixer = {name for name in by_name if ".mixer." in name}
    assert {f"blocks.0.mixer.{name}" for name in ("log_rates", "frequencies", "C", "log_step", "D")} <= mixer  # fmt: skip
    assert {(by_name[name].weight_decay, by_name[name].learning_rate) for name in mixer} == {(0.0, 1e-4)}  # fmt: skip
    assert {model.storage_dtype(name) for name in mixer} == {torch.float32}
