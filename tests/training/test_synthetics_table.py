"""The table of synthetic tasks: resuming, refusing, printing; the same figures as the command line."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from evo_toolkit.errors import UsageError
from evo_toolkit.training import synthetics_table
from evo_toolkit.training.cli import run as run_cli
from evo_toolkit.training.synthetics_table import (
    carry_out,
    main,
    plan,
    read_lines,
    table,
    to_do,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--tasks", "compression", "--models", "attention", "Hyena-SE", "--seeds", "0", "--max-steps", "2"]  # fmt: skip


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, int]]:
    """Runs that answer at once; the list of those that were asked for."""
    asked: list[tuple[str, str, int]] = []

    def answer(run: synthetics_table.Run, device: str) -> dict[str, Any]:
        asked.append(run.key)
        return _line(task=run.task, model=run.model, seed=run.seed, settings=run.settings)

    monkeypatch.setattr(synthetics_table, "carry_out", answer)
    return asked


def _line(**changes: Any) -> dict[str, Any]:
    return {
        "task": "compression", "model": "attention", "pattern": "**", "seed": 0, "settings": "x",
        "parameters": 1000, "chance": 0.125, "status": "done", "steps": 2, "solved_at": None,
        "accuracy": 0.5, "sequence_accuracy": 0.1, "loss": 1.0, "curve": [[2, 0.5]],
        "seconds": 1.0, "core_seconds": 1.0,
    } | changes  # fmt: skip


def test_the_same_command_goes_on(
    tmp_path: Path, fast: list[tuple[str, str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.jsonl"
    assert main(["-o", str(path), *SMALL]) == 0
    assert [key[1] for key in fast] == ["attention", "Hyena-SE"]
    whole = path.read_bytes()
    # A process that was killed while it wrote leaves half a line.
    lines = whole.splitlines(keepends=True)
    path.write_bytes(lines[0] + lines[1][: len(lines[1]) // 2])
    fast.clear()
    assert main(["-o", str(path), *SMALL]) == 0
    assert [key[1] for key in fast] == ["Hyena-SE"]
    assert path.read_bytes() == whole
    fast.clear()
    capsys.readouterr()
    assert main(["-o", str(path), *SMALL]) == 0 and not fast
    assert "| attention | `**` |" in capsys.readouterr().out


def test_failed_runs_are_tried_again(tmp_path: Path, fast: list[tuple[str, str, int]]) -> None:
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps(_line(status="failed", error="not finite")) + "\n")
    assert main(["-o", str(path), *SMALL]) == 0
    assert ("compression", "attention", 0) in fast


def test_other_settings_are_refused(
    tmp_path: Path, fast: list[tuple[str, str, int]], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.jsonl"
    assert main(["-o", str(path), *SMALL]) == 0
    before = path.read_bytes()
    capsys.readouterr()
    assert main(["-o", str(path), *SMALL[:-1], "3"]) == 2
    said = capsys.readouterr().err
    assert "other settings" in said and said.count("\n") == 1
    assert path.read_bytes() == before


def test_other_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("mine\n")
    assert main(["-o", str(path), *SMALL]) == 2
    assert "line 1, is no run of this table" in capsys.readouterr().err
    assert path.read_text() == "mine\n"
    # No half line of ours either: it would be cut off.
    path.write_text("a line without an end")
    assert main(["-o", str(path), *SMALL]) == 2
    assert "the end of" in capsys.readouterr().err
    assert path.read_text() == "a line without an end"
    assert main(["-o", str(tmp_path), *SMALL]) == 2
    assert "is no file" in capsys.readouterr().err
    path.write_text("")
    assert main(["-o", str(path), "--table"]) == 2
    assert "holds no finished run" in capsys.readouterr().err
    assert main(["-o", str(tmp_path / "absent" / "t.jsonl"), *SMALL]) == 2
    assert main(["-o", str(tmp_path / "t.jsonl"), *SMALL, "--jobs", "0"]) == 2
    capsys.readouterr()
    assert main(["-o", str(tmp_path / "t.jsonl"), *SMALL, "--device", "abacus"]) == 2
    assert capsys.readouterr().err.startswith("Error: device 'abacus' is unknown; use ")
    assert main(["-o", str(tmp_path / "t.jsonl"), *SMALL[:-3], "-1"]) == 2


def test_settings_are_all_that_decides_a_run() -> None:
    runs = plan(["compression"], ["attention", "H3"], [0, 1])
    assert len({run.settings for run in runs}) == 4
    assert plan(["compression"], ["attention"], [0])[0].settings == runs[0].settings
    assert plan(["compression"], ["attention"], [0], 7)[0].settings != runs[0].settings
    trainer = plan(["compression"], ["attention"], [0], 300)[0].recipe["trainer"]
    assert trainer["max_steps"] == 300 and trainer["val_check_interval"] == 100
    with pytest.raises(UsageError, match="give 200 or 300"):
        plan(["compression"], ["attention"], [0], 250)
    with pytest.raises(UsageError, match="no recipe"):
        plan(["arithmetic"], ["attention"], [0])
    with pytest.raises(UsageError, match="the models are attention, "):
        plan(["compression"], ["perceptron"], [0])
    assert to_do(runs, [_line(settings=runs[0].settings)]) == runs[1:]


def test_the_table_shows_medians_ranges_and_updates() -> None:
    lines = [
        _line(seed=seed, accuracy=accuracy, solved_at=at)
        for seed, accuracy, at in ((0, 1.0, 300), (1, 0.99, 500), (2, 1.0, 400))
    ]
    lines += [_line(model="S4D", pattern="44", seed=s, accuracy=a) for s, a in ((0, 0.2), (1, 0.5))]
    lines += [_line(task="induction-head", chance=0.05), _line(seed=9, status="failed")]
    assert table(lines).splitlines() == [
        "| model | layers | parameters | induction-head | compression |",
        "|---|---|---|---|---|",
        "| attention | `**` | 1,000 | 50.0 | 100.0 (99.0 to 100.0), 400 updates |",
        "| S4D | `44` | 1,000 |  | 35.0 (20.0 to 50.0) |",
        "| guessing | | | 5.0 | 12.5 |",
    ]


def test_a_run_has_the_figures_of_the_command_line(tmp_path: Path) -> None:
    (described,) = plan(["compression"], ["Hyena-SE"], [1], 4)
    assert described.recipe["trainer"]["val_check_interval"] == 4  # the end is always validated
    described.recipe["trainer"]["val_check_interval"] = 2
    line = carry_out(described)
    assert line["status"] == "done" and line["steps"] == 4 and [x[0] for x in line["curve"]] == [2, 4]  # fmt: skip
    config = described.config
    run_cli([
        "fit", "--config", "recipes/synthetics/compression.yaml", "--model.config.pattern=SS",
        f"--model.config.mlp_width={config.mlp_width}", "--model.seed=1", "--data.seed=1",
        "--trainer.max_steps=4", "--trainer.val_check_interval=2", "--seed_everything=1",
        f"--trainer.default_root_dir={tmp_path}",
    ])  # fmt: skip
    (metrics,) = tmp_path.rglob("metrics.csv")
    with metrics.open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/accuracy"]]
    assert [round(float(row["val/accuracy"]), 6) for row in rows] == [x[1] for x in line["curve"]]
    assert float(rows[-1]["val/loss"]) == pytest.approx(line["loss"], abs=1e-6)
    assert 0 < line["accuracy"] < 1


def test_a_run_that_fails_is_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    (described,) = plan(["compression"], ["Hyena-SE"], [0], 4)
    described.recipe["model"]["init_args"]["optimizer"]["learning_rate"] = 1e30
    line = carry_out(described)
    assert line["status"] == "failed" and "not finite" in line["error"]
    assert "\n" not in json.dumps(line)


@pytest.mark.slow
def test_the_command_as_it_is_typed(tmp_path: Path) -> None:
    path = tmp_path / "table.jsonl"
    command = [sys.executable, "-m", "evo_toolkit.training.synthetics_table", "-o", str(path), *SMALL]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", "kernels", "data"])}
    options: dict[str, Any] = {
        "cwd": ROOT, "env": environment, "capture_output": True, "text": True, "check": True,
    }  # fmt: skip
    estimate = subprocess.run([*command, "--estimate"], **options)
    assert "core-minutes" in estimate.stdout and not path.exists()
    done = subprocess.run([*command, "--jobs", "2"], **options)
    assert "2/2" in done.stderr and "| Hyena-SE | `SS` |" in done.stdout
    # Runs do not depend on what runs beside them.
    (alone,) = [carry_out(run) for run in plan(["compression"], ["Hyena-SE"], [0], 2)]
    (line,) = [line for line in read_lines(path) if line["model"] == "Hyena-SE"]
    timed = {"seconds", "core_seconds"}
    assert {k: v for k, v in line.items() if k not in timed} == {k: v for k, v in json.loads(json.dumps(alone)).items() if k not in timed}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_table_that_is_stopped_leaves_nothing_running_and_goes_on(
    tmp_path: Path, how: signal.Signals
) -> None:
    path = tmp_path / "table.jsonl"
    command = [
        sys.executable, "-m", "evo_toolkit.training.synthetics_table", "-o", str(path), "--tasks",
        "compression", "--models", "attention", "--max-steps", "40", "--jobs", "2",
    ]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([".", "kernels", "data"])}
    started = subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )  # fmt: skip
    while started.poll() is None and not (path.exists() and path.read_bytes()):
        time.sleep(0.05)
    started.send_signal(how)
    # The pipe closes when the last process that could write to it has ended.
    said = started.communicate(timeout=180)[1]
    assert started.returncode == (130 if how == signal.SIGINT else -how)
    assert "Traceback" not in said
    before = read_lines(path)
    assert 0 < len(before) < 3
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
    )
    assert f"{len(before)} of 3 runs are done" in done.stderr
    after = read_lines(path)
    assert after[: len(before)] == before and {line["seed"] for line in after} == {0, 1, 2}
