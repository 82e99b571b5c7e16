"""The table of synthetic tasks: every task, kind of layers and seed, one line of JSON a run.

    python -m evo_toolkit.training.synthetics_table -o synthetics.jsonl --jobs 16

trains what the recipes of `recipes/synthetics` describe, with the layers of each model of `MODELS`
at equal numbers of parameters, and prints the table. Runs that the file holds are not repeated: the
same command goes on after an interruption. It needs torch and Lightning; every run is one process on
one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything

from evo_data.errors import EvoDataError
from evo_toolkit._version import __version__
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.device import resolve_device
from evo_toolkit.model.layers import LAYER_KINDS
from evo_toolkit.training.optim import OptimizerConfig
from evo_toolkit.training.recipe_files import packaged_recipe
from evo_toolkit.training.schedules import ScheduleConfig

TASKS = ("induction-head", "associative-recall", "multi-token-recall", "compression")

# Layers of each model, first layer first. The recipes' pattern has two; where a model has more, its
# MLPs are narrower.
MODELS = {
    "attention": "**",
    "S4D": "44",
    "H3": "33",
    "H3 + attention": "3*",
    "Hyena-SE": "SS",
    "Hyena-MR": "DD",
    "Hyena-LI": "HH",
    "Hyena-SE, LI": "SH",
    "Hyena-SE + attention": "S*",
    "Hyena-LI + attention": "H*",
    "Hyena-SE, MR, LI + attention": "SDH*",
    "long convolution": "LL",
}

# What every model is made equal to.
_REFERENCE = "**"
# How every line of the file begins.
_LINE_START = b'{"task": "'
# Steps that a probe times, after one that sets up.
_PROBE_STEPS = 5


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        task: Name of the recipe.
        model: Key of `MODELS`.
        seed: Of weights, sequences and whatever else is random.
        recipe: As parsed, model configuration of this run in place.
    """

    task: str
    model: str
    seed: int
    recipe: dict[str, Any]

    @property
    def key(self) -> tuple[str, str, int]:
        """What tells this run from the others of a table."""
        return self.task, self.model, self.seed

    @property
    def config(self) -> StripedHyena2Config:
        """The model, whose MLPs make up for what its mixers have more or less of."""
        return StripedHyena2Config.from_dict(self.recipe["model"]["init_args"]["config"])

    @property
    def settings(self) -> str:
        """Digest of all that decides the run's figures but the software."""
        text = json.dumps(self.recipe, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def read_recipe(task: str) -> dict[str, Any]:
    """The recipe of a task, as parsed.

    Raises:
        UsageError: if there is no such task.
    """
    path = packaged_recipe(f"recipes/synthetics/{task}.yaml")
    if path is None:
        raise UsageError(f"task {task!r} has no recipe; the tasks are {', '.join(TASKS)}")
    recipe: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return recipe


def equal_size(config: StripedHyena2Config, pattern: str) -> StripedHyena2Config:
    """The same model with other layers, its MLPs as wide as fits the parameters best.

    Returns:
        A model of the number of parameters that `config` has with attention in all of its layers, to
        within half a channel of every MLP.

    Raises:
        UsageError: if the mixers alone have more.
    """
    every = tuple(range(len(_REFERENCE)))
    target = config.replace(pattern=_REFERENCE, gelu_layers=every).parameter_count()
    layers = tuple(range(len(pattern)))
    narrow = config.replace(pattern=pattern, gelu_layers=layers, mlp_width=1)
    each = 3 * config.width * len(pattern)
    mlp_width = 1 + round((target - narrow.parameter_count()) / each)
    if mlp_width < 1:
        raise UsageError(
            f"the layers {pattern} have {narrow.parameter_count():,} parameters without MLPs, more than the {target:,} of all models; give the recipe a larger mlp_width"
        )
    return narrow.replace(mlp_width=mlp_width)


def plan(
    tasks: Sequence[str], models: Sequence[str], seeds: Sequence[int], max_steps: int | None = None
) -> list[Run]:
    """All runs of a table, the seeds of one kind together.

    Args:
        max_steps: Updates in place of the recipes' own.

    Raises:
        UsageError: for names that are not in the table, and for updates that no validation follows.
    """
    runs = []
    for task in tasks:
        text = json.dumps(read_recipe(task))
        for model in models:
            if model not in MODELS:
                raise UsageError(f"model {model!r} is unknown; the models are {', '.join(MODELS)}")
            for seed in seeds:
                recipe = json.loads(text)
                arguments, data = recipe["model"]["init_args"], recipe["data"]["init_args"]
                values = {**arguments["config"], "context_length": data["context_length"]}
                config = equal_size(StripedHyena2Config.from_dict(values), MODELS[model])
                arguments["config"] = {
                    **values,
                    "pattern": config.pattern,
                    "mlp_width": config.mlp_width,
                    "gelu_layers": list(config.gelu_layers),
                }
                arguments["seed"] = data["seed"] = seed
                if max_steps is not None:
                    _shorten(recipe["trainer"], max_steps)
                runs.append(Run(task, model, seed, recipe))
    return runs


def _shorten(trainer: dict[str, Any], max_steps: int) -> None:
    """Another number of updates, the last of them validated."""
    every = min(trainer["val_check_interval"], max_steps)
    if max_steps % every:
        raise UsageError(
            f"--max-steps {max_steps} is no multiple of the {every} updates between validations; give {max_steps - max_steps % every} or {max_steps + every - max_steps % every}"
        )
    trainer.update(max_steps=max_steps, val_check_interval=every)


class _Curve(Callback):
    """Keeps what every validation found."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        accuracy = float(trainer.callback_metrics["val/accuracy"])
        self.points.append((trainer.global_step, round(accuracy, 6)))


def _instantiated(described: dict[str, Any], **more: Any) -> Any:
    module, _, name = described["class_path"].rpartition(".")
    made = getattr(importlib.import_module(module), name)
    return made(**{**described.get("init_args", {}), **more})


def _prepared(run: Run, device: str, folder: str, **options: Any) -> tuple[Trainer, Any, Any, _Curve]:  # fmt: skip
    """Trainer, module, data and curve of a run, as the command line would make them."""
    seed_everything(run.seed, verbose=False)
    described = run.recipe["model"]
    arguments = described["init_args"]
    module = _instantiated(
        described,
        config=run.config,
        optimizer=OptimizerConfig(**arguments.get("optimizer", {})),
        schedule=ScheduleConfig(**arguments.get("schedule", {})),
    )
    data = _instantiated(run.recipe["data"])
    curve = _Curve()
    given = dict(run.recipe["trainer"])
    callbacks = [_instantiated(callback) for callback in given.pop("callbacks", ())]
    place = torch.device(device)
    given["accelerator"] = "gpu" if place.type == "cuda" else place.type
    given["devices"] = [place.index or 0] if place.type == "cuda" else 1
    given.update(
        default_root_dir=folder, callbacks=[curve, *callbacks], max_epochs=-1, logger=False,
        check_val_every_n_epoch=None, num_sanity_val_steps=0, gradient_clip_val=1.0,
        use_distributed_sampler=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, barebones=False,
    )  # fmt: skip
    return Trainer(**{**given, **options}), module, data, curve


def _set_up_worker(folder: str) -> None:
    # Temporary files of a run that is killed go with the parent's folder.
    tempfile.tempdir = folder
    # Ctrl-C reaches all processes of a terminal: this one has nothing to save.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_with, args=(parent.sentinel,), daemon=True).start()
    _set_up_process()


def _end_with(sentinel: int) -> None:
    """End this process when the one of `sentinel` is no more: nobody would take its result."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _set_up_process() -> None:
    torch.set_num_threads(1)
    for name in ("lightning.pytorch", "lightning.fabric", "evo_toolkit"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def carry_out(run: Run, device: str = "cpu") -> dict[str, Any]:
    """Train, and describe what came of it in plain values.

    Returns:
        The line of the table's file: `accuracy`, `sequence_accuracy` and `loss` (nats per answer) of
        the last validation, `curve` of `[updates, accuracy]`, `solved_at` (updates, or None).
    """
    began, used = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer, module, data, curve = _prepared(run, device, folder)
        line: dict[str, Any] = {
            "task": run.task, "model": run.model, "pattern": run.config.pattern, "seed": run.seed,
            "settings": run.settings, "parameters": run.config.parameter_count(),
            "mlp_width": run.config.mlp_width, "chance": data.chance, "device": device,
            "torch": torch.__version__, "evo_toolkit": __version__,
        }  # fmt: skip
        try:
            trainer.fit(module, datamodule=data)
        except (EvoError, RuntimeError) as error:
            message = str(error).splitlines()[0]
            return {**line, "status": "failed", "error": message, **_times(began, used)}
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    return {
        **line,
        "status": "done",
        "steps": trainer.global_step,
        "solved_at": trainer.global_step if trainer.should_stop else None,
        "accuracy": round(metrics["val/accuracy"], 6),
        "sequence_accuracy": round(metrics["val/sequence_accuracy"], 6),
        "loss": round(metrics["val/loss"], 6),
        "curve": curve.points,
        **_times(began, used),
    }


def _times(began: float, used: float) -> dict[str, float]:
    """Seconds since, by the clock and of this process on its core."""
    return {
        "seconds": round(time.perf_counter() - began, 2),
        "core_seconds": round(time.process_time() - used, 2),
    }


def _seconds_per_run(run: Run, device: str) -> float:
    """Core-seconds of a whole run that is never solved, from a few steps and one validation."""
    with tempfile.TemporaryDirectory() as folder:
        steps, every = run.recipe["trainer"]["max_steps"], run.recipe["trainer"]["val_check_interval"]  # fmt: skip
        times = []
        for options in ({"max_steps": 1}, {"max_steps": 1 + _PROBE_STEPS}):
            trainer, module, data, _ = _prepared(
                run, device, folder, limit_val_batches=0, **options
            )
            began = time.process_time()
            trainer.fit(module, datamodule=data)
            times.append(time.process_time() - began)
        began = time.process_time()
        trainer, module, data, _ = _prepared(run, device, folder)
        trainer.validate(module, datamodule=data, verbose=False)
        validation = time.process_time() - began
    step = max(times[1] - times[0], 0.0) / _PROBE_STEPS
    return times[0] + step * steps + validation * (steps // every)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The runs that a file holds; what a killed process left of its last line is passed over.

    Raises:
        UsageError: if the file holds something else.
    """
    if not path.exists():
        return []
    if not path.is_file():
        raise UsageError(f"{path} is no file; choose another name with -o")
    lines = []
    raw = path.read_bytes()
    whole, rest = raw[: raw.rfind(b"\n") + 1], raw[raw.rfind(b"\n") + 1 :]
    if rest[: len(_LINE_START)] != _LINE_START[: len(rest)]:  # would be cut off
        raise UsageError(f"the end of {path} is no run of this table; choose another file with -o")
    for number, text in enumerate(whole.splitlines(), 1):
        try:
            line = json.loads(text)
            _ = line["task"], line["model"], line["seed"], line["settings"], line["status"]
        except (ValueError, TypeError, KeyError):
            raise UsageError(
                f"{path}, line {number}, is no run of this table; choose another file with -o"
            ) from None
        lines.append(line)
    return lines


def to_do(runs: Iterable[Run], lines: Iterable[dict[str, Any]]) -> list[Run]:
    """The runs that are not done yet; failed ones are.

    Raises:
        UsageError: if a run was done with other settings.
    """
    done = {(x["task"], x["model"], x["seed"]): x for x in lines if x["status"] == "done"}
    left = []
    for run in runs:
        line = done.get(run.key)
        if line is None:
            left.append(run)
        elif line["settings"] != run.settings:
            raise UsageError(
                f"the file holds {run.task}, {run.model}, seed {run.seed} with other settings (recipe, model or --max-steps); choose another file with -o, or the settings of before"
            )
    return left


class _Appender:
    """Lines to the end of a file, each on the disk before the next."""

    def __init__(self, path: Path) -> None:
        if not path.parent.is_dir():
            raise UsageError(f"folder {path.parent} does not exist; create it first")
        self._file = path.open("ab")
        # What a killed process left behind the last whole line.
        end = path.read_bytes().rfind(b"\n") + 1
        self._file.truncate(end)

    def add(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        os.fsync(self._file.fileno())


def table(lines: Iterable[dict[str, Any]]) -> str:
    """Markdown of the median accuracy over seeds, its range, and the updates until solved."""
    cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for line in lines:
        if line["status"] == "done":
            cells.setdefault((line["model"], line["task"]), []).append(line)
    tasks = [task for task in TASKS if any(key[1] == task for key in cells)]
    rows = [f"| model | layers | parameters | {' | '.join(tasks)} |", "|---" * (3 + len(tasks)) + "|"]  # fmt: skip
    for model in MODELS:
        own = [line for task in tasks for line in cells.get((model, task), ())]
        if not own:
            continue
        sizes = sorted({line["parameters"] for line in own})
        size = f"{sizes[0]:,}" if len(sizes) == 1 else f"{sizes[0]:,} to {sizes[-1]:,}"
        texts = [_cell(cells.get((model, task), [])) for task in tasks]
        rows.append(f"| {model} | `{own[0]['pattern']}` | {size} | {' | '.join(texts)} |")
    chances = []
    for task in tasks:
        chance = next(line["chance"] for (_, t), own in cells.items() if t == task for line in own)
        chances.append(f"{100 * chance:.1f}")
    rows.append(f"| guessing | | | {' | '.join(chances)} |")
    return "\n".join(rows)


def _cell(lines: Sequence[dict[str, Any]]) -> str:
    if not lines:
        return ""
    shares = sorted(100 * line["accuracy"] for line in lines)
    text = f"{statistics.median(shares):.1f}"
    if len(shares) > 1 and shares[-1] - shares[0] >= 0.05:
        text += f" ({shares[0]:.1f} to {shares[-1]:.1f})"
    solved = [line["solved_at"] for line in lines if line["solved_at"] is not None]
    if len(solved) == len(lines):
        text += f", {int(statistics.median(solved))} updates"
    return text


def _map(function: Any, runs: Sequence[Run], device: str, jobs: int) -> Iterator[tuple[Run, Any]]:
    """Results as they come, of processes with one thread each."""
    # Read when a process loads torch.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = "1"
    if jobs == 1:
        _set_up_process()
        for run in runs:
            yield run, function(run, device)
        return
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(jobs, context, initializer=_set_up_worker, initargs=(folder,)) as pool,
    ):
        waiting = {pool.submit(function, run, device): run for run in runs}
        try:
            for future in as_completed(waiting):
                yield waiting[future], future.result()
        except BaseException as error:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.kill()  # Lightning would take its time to end well
            if isinstance(error, BrokenProcessPool):
                raise EvoError(
                    "a process of a run was killed (is memory short?); the same command goes on, with fewer --jobs"
                ) from None
            raise


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _parsed(args: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m evo_toolkit.training.synthetics_table",
        description="Train every model on every synthetic task and print the table.",
        allow_abbrev=False,
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.jsonl", help="one line a run; runs that it holds are not repeated")  # fmt: skip
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=TASKS)
    parser.add_argument("--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS), metavar="MODEL", help=", ".join(f'"{name}"' for name in MODELS))  # fmt: skip
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one thread each")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--max-steps", type=int, help="updates in place of the recipes'")
    parser.add_argument("--estimate", action="store_true", help="time a few steps of each kind of run, print core-minutes and end")  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print the table of the file and end")
    return parser.parse_args(args)


def main(args: Sequence[str] | None = None) -> int:
    """Run the table; returns the exit code: 0 done, 1 some runs failed, 2 wrong usage."""
    options = _parsed(args)
    try:
        return _run(options)
    except (EvoError, EvoDataError) as error:
        _say(f"Error: {error}")
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        _say("interrupted; the same command goes on")
        return 130


def _run(options: argparse.Namespace) -> int:
    if options.jobs < 1 or (options.max_steps is not None and options.max_steps < 1):
        raise UsageError("--jobs and --max-steps must be at least 1")
    if min(options.seeds) < 0:
        raise UsageError(f"seed {min(options.seeds)} must be 0 or more")
    resolve_device(options.device)
    lines = read_lines(options.output)
    if options.table:
        if not any(line["status"] == "done" for line in lines):
            raise UsageError(
                f"{options.output} holds no finished run; leave --table out to make some"
            )
        print(table(lines))
        return 0
    models = []
    for model in options.models:
        missing = sorted(set(MODELS[model]) - set(LAYER_KINDS))
        if missing:
            _say(f"{model} is left out: this version has no layers {', '.join(missing)}")
        else:
            models.append(model)
    runs = plan(options.tasks, models, options.seeds, options.max_steps)
    left = to_do(runs, lines)
    if options.estimate:
        return _estimate(left, options)
    appender = _Appender(options.output)
    _say(f"{len(runs) - len(left)} of {len(runs)} runs are done; {len(left)} to do, {options.jobs} at a time")  # fmt: skip
    began, failed, spent = time.perf_counter(), 0, 0.0
    for number, (run, line) in enumerate(_map(carry_out, left, options.device, options.jobs), 1):
        appender.add(line)
        lines.append(line)
        spent += line["core_seconds"]
        failed += line["status"] == "failed"
        ahead = (time.perf_counter() - began) / number * (len(left) - number)
        what = line["error"] if line["status"] == "failed" else f"{100 * line['accuracy']:5.1f} % after {line['steps']} updates"  # fmt: skip
        _say(f"{number}/{len(left)}  {run.task}, {run.model}, seed {run.seed}: {what}  ({line['seconds']:.0f} s; about {ahead / 60:.1f} min left)")  # fmt: skip
    _say(f"{spent / 60:.1f} core-minutes, {(time.perf_counter() - began) / 60:.1f} minutes")
    print(table(lines))
    if failed:
        _say(f"{failed} runs failed; their lines in {options.output} say why, and the same command tries them again")  # fmt: skip
    return 1 if failed else 0


def _estimate(runs: Sequence[Run], options: argparse.Namespace) -> int:
    """Print core-minutes of the runs that are to do, were none of them solved early."""
    kinds: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        kinds.setdefault((run.task, run.model), []).append(run)
    first = [own[0] for own in kinds.values()]
    total = 0.0
    for run, seconds in _map(_seconds_per_run, first, options.device, options.jobs):
        number = len(kinds[run.task, run.model])
        total += seconds * number
        _say(f"{run.task}, {run.model}: {number} runs of at most {seconds:.0f} s")
    print(
        f"{len(runs)} runs: at most {total / 60:.0f} core-minutes, {total / 60 / options.jobs:.1f} minutes with {options.jobs} jobs; runs that solve their task end sooner"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
