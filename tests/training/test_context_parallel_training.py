"""Context parallelism in training: other divisions go on, resume is exact, failures end all ranks.

That two processes train as one is in test_distributed.py.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_distributed import assert_close, finish

from evo_toolkit.errors import UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.context import ContextParallelStrategy
from evo_toolkit.training.loss import NextTokenObjective

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "data" / "evo_data" / "demo" / "NC_000932.fa"

Fit = Callable[..., Path]
Start = Callable[..., "subprocess.Popen[str]"]
Load = Callable[[Path, int], dict[str, Any]]

# Parts of 19 and 18 positions, both longer than the reach of 17 of the toy's filters.
_RUN = ("--data.context_length", 37, "--model.total_steps", 6, "--model.optimizer.learning_rate", 1e-3)  # fmt: skip
_TWO = ("--trainer.devices", 2, "--trainer.strategy", "context_parallel")
_TABLE = (
    "--trainer.devices", 4, "--trainer.strategy", "evo_toolkit.training.ContextParallelStrategy",
    "--trainer.strategy.context_parallel_size", 2,
)  # fmt: skip


def steps(number: int) -> tuple[object, ...]:
    return ("--trainer.max_steps", number, "--checkpoint.keep", 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("context_parallel_size", 0, "context_parallel_size is 0; it must be at least 1"),
        ("failure_timeout", -1, "failure_timeout is -1.0; it must be at least 0"),
    ],
)
def test_arguments_that_cannot_be(
    fit: Fit, tmp_path: Path, name: str, value: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        fit(tmp_path, *_TABLE, "--trainer.devices", 1, f"--trainer.strategy.{name}", value)


def test_an_objective_that_asks_for_single_positions_is_refused() -> None:
    config = StripedHyena2Config(
        name="toy", pattern="S", width=8, num_heads=2, mlp_width=8, filter_groups=2,
        gelu_layers=(0,), context_length=32,
    )  # fmt: skip
    objective = type("OtherObjective", (NextTokenObjective,), {})(StripedHyena2(config))
    with pytest.raises(UsageError, match="OtherObjective needs whole sequences"):
        ContextParallelStrategy().shard_model(objective)


@pytest.mark.slow
def test_a_size_that_does_not_divide_the_processes_is_one_line(
    start: Start, tmp_path: Path
) -> None:
    process = start(tmp_path, *_RUN, *_TABLE, "--trainer.devices", 3)
    _, said = process.communicate(timeout=240)
    assert process.returncode == 2
    assert "context_parallel_size 2 does not divide the 3 processes of the run" in said
    assert "Traceback" not in said


def test_the_script_for_slurm_starts_the_recipe_on_two_processes(
    tmp_path: Path, toy_model_dir: Path, checkpoint_of: Load
) -> None:
    (tmp_path / "genomes").mkdir()
    shutil.copy(DEMO, tmp_path / "genomes")
    program = tmp_path / "bin" / "evo-toolkit"
    program.parent.mkdir()
    program.write_text(f'#!/bin/bash\nexec {sys.executable} -m evo_toolkit "$@"\n')
    # What srun does: the same words for every task, which learns from its environment who it is.
    srun = program.with_name("srun")
    srun.write_text(
        """#!/bin/bash
        [ "$1" = --kill-on-bad-exit=1 ] || exit 99
        SLURM_PROCID=1 SLURM_LOCALID=1 "${@:2}" & SLURM_PROCID=0 SLURM_LOCALID=0 "${@:2}"
        first=$?; wait $! && exit $first"""
    )
    for path in (program, srun):
        path.chmod(0o755)
    toy = (
        "--trainer.accelerator=cpu", "--trainer.max_steps=2", "--trainer.accumulate_grad_batches=1",
        "--trainer.val_check_interval=2", "--trainer.limit_val_batches=1", "--data.num_workers=0",
        "--data.context_length=301", f"--model.init_from={toy_model_dir}",
    )  # fmt: skip
    done = subprocess.run(
        ["bash", ROOT / "recipes" / "extend" / "context_1m.sbatch", "genomes", "run", *toy],
        cwd=tmp_path, capture_output=True, text=True, timeout=240,
        env={
            **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(str(ROOT / name) for name in (".", "kernels", "data")),
            "EVO_TOOLKIT_CACHE": str(tmp_path / "cache"),
            "SLURM_JOB_NUM_NODES": "1", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NTASKS": "2",
            "SLURM_JOB_NAME": "context-1m", "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_NODEID": "0", "SLURM_NODELIST": "127.0.0.1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "step 2  validation" in done.stderr
    state = checkpoint_of(tmp_path / "run", 2)["evo_toolkit"]
    assert state["tokens"] == 2 * 301 and state["hardware"].startswith("2 x")


@pytest.mark.slow
def test_a_table_of_four_goes_on_as_one_and_then_as_two(
    fit: Fit, start: Start, tmp_path: Path, checkpoint_of: Load
) -> None:
    process = start(
        tmp_path / "many", *_RUN, *_TABLE, *steps(2), "--data.batch_size", 4,
        "--model.checkpoint_blocks", 1, "--model.mlp_chunk", 8,
    )  # fmt: skip
    fit(tmp_path / "one", *_RUN, *steps(6), "--data.batch_size", 8)
    finish(process)
    assert_close(checkpoint_of(tmp_path / "one", 2), checkpoint_of(tmp_path / "many", 2))
    on = ("--data.batch_size", 8, "--ckpt_path", "last")
    fit(tmp_path / "many", *_RUN, *steps(4), *on)
    finish(start(tmp_path / "many", *_RUN, *_TWO, *steps(6), *on))
    for step in (4, 6):
        assert_close(checkpoint_of(tmp_path / "one", step), checkpoint_of(tmp_path / "many", step))


@pytest.mark.slow
def test_a_resumed_run_has_the_same_bits(
    start: Start, tmp_path: Path, checkpoint_of: Load, same_state: Callable[..., None]
) -> None:
    whole = start(tmp_path / "whole", *_RUN, *_TWO, *steps(4))
    finish(start(tmp_path / "parts", *_RUN, *_TWO, *steps(2)))
    finish(whole)
    finish(start(tmp_path / "parts", *_RUN, *_TWO, *steps(4), "--ckpt_path", "last"))
    one, other = (checkpoint_of(tmp_path / name, 4) for name in ("whole", "parts"))
    for key in ("state_dict", "optimizer_states", "evo_toolkit", "ToyData", "global_step"):
        same_state(one[key], other[key], key)


@pytest.mark.slow
def test_torchrun_starts_the_processes(
    fit: Fit, start: Start, tmp_path: Path, checkpoint_of: Load
) -> None:
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    process = start(tmp_path / "two", *_RUN, *_TWO, *steps(2), by=torchrun)
    fit(tmp_path / "one", *_RUN, *steps(2))
    finish(process)
    assert_close(checkpoint_of(tmp_path / "one", 2), checkpoint_of(tmp_path / "two", 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "who", "code", "message"),
    [
        ("raises", 0, 1, "rank 0 failed and ended the run: OSError: the disk is gone"),
        ("raises", 1, 1, "rank 1 failed and ended the run: OSError: the disk is gone"),
        ("killed", 1, 1, "rank 1 failed and ended the run: its process ended without a word"),
        ("told", 1, 143, "rank 1 failed and ended the run: it was told to end"),
    ],
)
def test_a_failing_rank_ends_the_run_with_its_message(
    start: Start, tmp_path: Path, how: str, who: int, code: int, message: str
) -> None:
    process = start(
        tmp_path, *_RUN, *_TWO, *steps(4),
        "--data", "failing_data.FailingData", "--data.how", how, "--data.who", who,
    )  # fmt: skip
    _, said = process.communicate(timeout=240)
    assert process.returncode == code
    assert message in said
    assert "Traceback" not in said
