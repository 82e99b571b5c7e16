"""An interrupted run is the uninterrupted one, bit for bit; a killed one leaves whole files."""

from __future__ import annotations

import errno
import fcntl
import os
import random
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from toy_data import ToyData

from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.training.checkpointing import (
    AtomicCheckpointIO,
    Checkpoints,
    find_checkpoints,
    read_training_checkpoint,
)
from evo_toolkit.training.module import EvoModule
from evo_toolkit.training.schedules import ScheduleConfig

DEMO = Path(__file__).resolve().parents[2] / "data" / "evo_data" / "demo" / "NC_000932.fa"
CONFIG = StripedHyena2Config(
    name="toy", pattern="SDH*", width=16, num_heads=2, mlp_width=32, filter_groups=2,
    context_length=32, vocab_size=256, mr_length=16,
)  # fmt: skip

Fit = Callable[..., Path]
Load = Callable[[Path, int], dict[str, Any]]
Same = Callable[..., None]

# What a run is, without when it was.
_TRAINING = ("state_dict", "optimizer_states", "global_step", "ToyData", "evo_toolkit", "lr_schedulers")  # fmt: skip


def compare(one: dict[str, Any], other: dict[str, Any], same_state: Same) -> None:
    for key in _TRAINING:
        same_state(one[key], other[key], key)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_interrupted_is_uninterrupted(
    fit: Fit, tmp_path: Path, checkpoint_of: Load, same_state: Same, accumulate: int
) -> None:
    options = ("--trainer.accumulate_grad_batches", accumulate, "--model.total_steps", 6)
    options = (
        *options,
        "--trainer.limit_val_batches",
        2,
        "--trainer.val_check_interval",
        3,
        "--checkpoint.keep",
        0,
    )
    fit(tmp_path / "whole", *options)
    for stop in (2, 3, 6):
        fit(tmp_path / "parts", *options, "--trainer.max_steps", stop, "--ckpt_path", "last")
    for step in (2, 4, 6):
        # A file written within an accumulation would count part of it.
        whole = checkpoint_of(tmp_path / "whole", step)
        assert whole["ToyData"]["consumed"] == step * accumulate * 4
        compare(
            whole,
            checkpoint_of(tmp_path / "parts", step),
            same_state,
        )
    curves = [
        [
            line.split(",")[header.index("train/loss")]
            for path in sorted((tmp_path / name).glob("csv/*/metrics.csv"))
            for header in [path.read_text().splitlines()[0].split(",")]
            for line in path.read_text().splitlines()[1:]
            if line.split(",")[header.index("train/loss")]
        ]
        for name in ("whole", "parts")
    ]
    assert len(curves[0]) == 6
    assert curves[0] == curves[1]


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_run_on_genomes_resumes_within_and_across_epochs(
    fit: Fit,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    checkpoint_of: Load,
    same_state: Same,
    workers: int,
) -> None:
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(tmp_path / "cache"))
    genome = tmp_path / "short.fa"
    # 13 windows of 32: an epoch of 7 batches of 2, and so of 4 updates of 2 batches each.
    text = "".join(random.Random(1).choices("ACGTacgtN", k=400))
    genome.write_text(f">one\n{text[:150]}\n>two\n{text[150:]}\n")
    options = (
        "--data", "evo_toolkit.training.GenomeDataModule", "--data.genomes", genome,
        "--data.context_length", 32, "--data.batch_size", 2, "--data.val_fraction", 0.1,
        "--data.num_workers", workers, "--trainer.accumulate_grad_batches", 2,
        "--trainer.limit_val_batches", 1, "--trainer.val_check_interval", 4,
        "--model.total_steps", 11,
    )  # fmt: skip
    fit(tmp_path / "whole", *options, "--trainer.max_steps", 11)
    for stop in (3, 5, 11):
        fit(tmp_path / "parts", *options, "--trainer.max_steps", stop, "--ckpt_path", "last")
    whole, parts = checkpoint_of(tmp_path / "whole", 11), checkpoint_of(tmp_path / "parts", 11)
    assert whole["GenomeDataModule"]["consumed"] == 11 * 2 * 2
    for key in ("state_dict", "optimizer_states", "GenomeDataModule", "evo_toolkit"):
        same_state(whole[key], parts[key], key)


@pytest.mark.parametrize("when", ["within an accumulation", "after an update", "validation"])
def test_a_run_that_was_told_to_stop_goes_on_exactly(
    tmp_path: Path, checkpoint_of: Load, same_state: Same, when: str
) -> None:
    class Stop(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            batch = {"within an accumulation": 8, "after an update": 9}.get(when)
            if trainer.fit_loop.total_batch_idx + 1 == batch:
                trainer.should_stop = True

        def on_validation_end(self, trainer: Trainer, *_: Any) -> None:
            if when == "validation":
                trainer.should_stop = True

    def run(folder: Path, *callbacks: Callback) -> None:
        checkpoints = Checkpoints(every_n_steps=2, keep=0)
        trainer = Trainer(
            accelerator="cpu", max_steps=5, logger=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, limit_val_batches=1,
            val_check_interval=9, check_val_every_n_epoch=None, accumulate_grad_batches=3,
            num_sanity_val_steps=0, callbacks=[*callbacks, checkpoints],
        )  # fmt: skip
        data = ToyData(str(DEMO), context_length=32, batch_size=2)
        module = EvoModule(CONFIG, schedule=ScheduleConfig(warmup_steps=1), total_steps=5)
        trainer.fit(module, datamodule=data, ckpt_path="last")

    run(tmp_path / "parts", Stop())
    steps = [path.name for path in find_checkpoints(tmp_path / "parts" / "checkpoints")]
    last = {"within an accumulation": 2}.get(when, 3)
    assert steps[-1] == f"step-{last:08d}.ckpt"
    run(tmp_path / "parts")
    run(tmp_path / "whole")
    compare(checkpoint_of(tmp_path / "whole", 5), checkpoint_of(tmp_path / "parts", 5), same_state)


def test_muon_resumes_bit_for_bit(
    fit: Fit, tmp_path: Path, checkpoint_of: Load, same_state: Same
) -> None:
    options = ("--model.optimizer.name", "muon", "--model.total_steps", 4)
    fit(tmp_path / "whole", *options, "--trainer.max_steps", 4)
    fit(tmp_path / "parts", *options, "--trainer.max_steps", 2)
    fit(tmp_path / "parts", *options, "--trainer.max_steps", 4, "--ckpt_path", "last")
    compare(checkpoint_of(tmp_path / "whole", 4), checkpoint_of(tmp_path / "parts", 4), same_state)


def test_a_killed_run_leaves_whole_files_and_goes_on_as_if_nothing_had_been(
    fit: Fit,
    start: Callable[..., subprocess.Popen[str]],
    tmp_path: Path,
    checkpoint_of: Load,
    same_state: Same,
) -> None:
    options = ("--model.total_steps", 400, "--checkpoint.every_n_steps", 2, "--checkpoint.keep", 0)
    killed = tmp_path / "killed"
    process = start(killed, *options, "--trainer.max_steps", 400)
    wanted = random.Random().randint(5, 40)
    reached = 0
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(f"step {wanted}/"):
            # Amid a later update, or amid writing a file.
            os.kill(process.pid, signal.SIGKILL)
            reached = wanted
    assert process.wait() == -signal.SIGKILL, f"never reached {wanted}"
    found = find_checkpoints(killed / "checkpoints")
    steps = [read_training_checkpoint(path)["global_step"] for path in found]
    last = steps[-1]
    # Nothing but the updates since the last file is lost; that of the line printed comes after it.
    assert last >= reached - 2
    assert steps == list(range(2, last + 1, 2))
    curve = (killed / "csv" / "version_0" / "metrics.csv").read_text().splitlines()
    assert len(curve) > reached
    end = last + 5
    fit(killed, *options, "--trainer.max_steps", end, "--ckpt_path", "last")
    fit(tmp_path / "whole", *options, "--trainer.max_steps", end)
    compare(checkpoint_of(tmp_path / "whole", end), checkpoint_of(killed, end), same_state)
    assert not list((killed / "checkpoints").glob(".*"))


@pytest.mark.slow
def test_ctrl_c_ends_as_everywhere_and_last_goes_on(
    fit: Fit, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    process = start(tmp_path, "--model.total_steps", 9999, "--trainer.max_steps", 9999, "--checkpoint.every_n_steps", 3)  # fmt: skip
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 10/"):
            process.send_signal(signal.SIGINT)
            break
    rest = process.stderr.read()
    assert process.wait(timeout=180) == 130
    assert rest.splitlines()[-1] == "Error: interrupted"
    last = read_training_checkpoint(find_checkpoints(tmp_path / "checkpoints")[-1])["global_step"]
    fit(tmp_path, "--model.total_steps", 9999, "--trainer.max_steps", last + 1, "--ckpt_path", "last")  # fmt: skip


def test_a_failed_write_leaves_the_older_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "step-00000001.ckpt"
    AtomicCheckpointIO().save_checkpoint({"state_dict": {"a": torch.ones(3)}}, path)

    def half(value: Any, target: Path) -> None:
        Path(target).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(CheckpointError, match=r"No space left on device.*earlier checkpoints"):
        AtomicCheckpointIO().save_checkpoint({"state_dict": {}}, path)
    assert read_training_checkpoint(path)["state_dict"]["a"].tolist() == [1, 1, 1]
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_the_newest_files_are_kept_and_they_hold_plain_things_alone(
    fit: Fit, tmp_path: Path, checkpoint_of: Load
) -> None:
    fit(tmp_path, "--checkpoint.every_n_steps", 1, "--checkpoint.keep", 2)
    names = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert names == ["step-00000005.ckpt", "step-00000006.ckpt"]
    values = checkpoint_of(tmp_path, 6)
    assert "hyper_parameters" not in values
    assert "datamodule_hyper_parameters" not in values

    def plain(value: object) -> None:
        if isinstance(value, dict):
            for key, item in value.items():
                assert type(key) in (str, int)
                plain(item)
        elif isinstance(value, list | tuple):
            for item in value:
                plain(item)
        else:
            assert value is None or type(value) in (str, int, float, bool, torch.Tensor), value

    plain(values)


def test_a_run_is_never_mixed_with_another(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", 2)
    with pytest.raises(UsageError, match=r"--ckpt_path last.*default_root_dir"):
        fit(tmp_path, "--trainer.max_steps", 4)


def test_what_a_run_went_back_behind_is_not_found_as_the_last(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--checkpoint.keep", 0)
    folder = tmp_path / "checkpoints"
    fit(tmp_path, "--ckpt_path", folder / "step-00000002.ckpt", "--trainer.max_steps", 3)
    assert [path.name for path in find_checkpoints(folder)] == ["step-00000002.ckpt", "step-00000003.ckpt"]  # fmt: skip
    assert (folder / "abandoned-step-00000006.ckpt").is_file()


def test_two_runs_do_not_share_a_folder(fit: Fit, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    folder.mkdir()
    left_over = folder / ".step-00000001.ckpt.ab12.tmp"
    left_over.touch()
    other = os.open(folder, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(UsageError, match=r"another run is writing to .*checkpoints; wait until"):
        fit(tmp_path, "--trainer.max_steps", 1)
    # What the other run is writing stays, and nothing is added.
    assert list(folder.iterdir()) == [left_over] and not (tmp_path / "config.yaml").exists()
    os.close(other)
    fit(tmp_path, "--trainer.max_steps", 1)
    # The folder is free again after a run, and after one that failed.
    with pytest.raises(CheckpointError, match="width"):
        fit(tmp_path, "--ckpt_path", "last", "--model.config.width", 24)
    fit(tmp_path, "--trainer.max_steps", 2, "--ckpt_path", "last")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("[enforce fail] unexpected pos"),
    ],
)
def test_a_full_disk_is_one_line_and_leaves_whole_files(
    fit: Fit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    fit(tmp_path, "--trainer.max_steps", 1)

    def full(values: object, path: Path) -> None:
        Path(path).write_bytes(b"PK")
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(CheckpointError, match=r"could not be written .*make room") as told:
            fit(tmp_path, "--trainer.max_steps", 2, "--ckpt_path", "last")
    assert "\n" not in str(told.value)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000001.ckpt"]
    fit(tmp_path, "--trainer.max_steps", 2, "--ckpt_path", "last")


def test_last_of_nothing_starts_anew(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", 1, "--ckpt_path", "last")
    assert find_checkpoints(tmp_path / "checkpoints")


@pytest.mark.parametrize(
    ("content", "word"), [(b"", "is no training checkpoint"), (b"\x1f\x8bjunk", "is no training checkpoint"), (b"PK\x03\x04junk", "cut off or damaged"), (None, "does not exist")]
)  # fmt: skip
def test_damaged_checkpoints_are_one_line(
    fit: Fit, tmp_path: Path, content: bytes | None, word: str
) -> None:
    path = tmp_path / "step-00000004.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=word) as error:
        fit(tmp_path / "run", "--ckpt_path", path)
    assert "\n" not in str(error.value) and "weights_only" not in str(error.value)


def test_a_checkpoint_that_was_cut_off_is_one_line(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "run", "--trainer.max_steps", 1)
    whole = (tmp_path / "run" / "checkpoints" / "step-00000001.ckpt").read_bytes()
    path = tmp_path / "step-00000001.ckpt"
    for length in (5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="cut off or damaged"):
            read_training_checkpoint(path)


def test_a_checkpoint_with_code_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    torch.save({"state_dict": {}, "x": Path("a")}, path)
    # The reader's own words recommend to read it without protection.
    with pytest.raises(
        CheckpointError, match=r"holds pathlib\.\w+, which .* was not read"
    ) as error:
        read_training_checkpoint(path)
    assert "weights_only" not in str(error.value)
