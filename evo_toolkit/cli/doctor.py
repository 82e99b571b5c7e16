"""`evo-toolkit doctor`: what this machine can run, and whether released weights are right on it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from evo_toolkit.cli.common import EXIT_ERROR, model_options, user_errors

if TYPE_CHECKING:
    from evo_toolkit.inference.machine import Machine, ModelFit
    from evo_toolkit.inference.released_check import ForwardTest
    from evo_toolkit.model.config import StripedHyena2Config

FIRST_TESTER = "No released weights have been run by the project: you are the first tester."
SPEED_BASIS = (
    "speed: not measured on this machine. The bound is the rate of matrix products measured just now "
    "on {device} ({rate:.3g} TFLOP/s), at 2 operations per parameter and base; an SNV takes 4 windows."
)


@click.command()
@model_options
@click.option(
    "--prompts", type=click.Path(path_type=Path), metavar="FILE",
    help="With -m: the released prompts.csv, for the forward test (evo2/test/data/prompts.csv in the evo2 repository; it is not shipped here).",
)  # fmt: skip
@click.option(
    "--as", "released_name", metavar="NAME",
    help="With --prompts: the released model whose figures these weights must give, when their configuration does not say.",
)  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
@user_errors
def doctor(
    ctx: click.Context,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    prompts: Path | None,
    released_name: str | None,
    as_json: bool,
) -> None:
    """Say what this machine can run, and check released weights.

    Without -m: versions, hardware, and for each released model whether it fits into the memory,
    whether its numbers are right here, and how fast it can be at most.

    With -m and --prompts the released forward test: four sequences through the model, the mean loss
    against the published one. Exit code 1 when they differ by 0.001 or more.
    """
    from evo_toolkit.inference.released_check import PROMPTS_HOME, expected_of, read_prompts
    from evo_toolkit.model.registry import BUNDLED

    if prompts is not None and model is None:
        raise click.UsageError("--prompts needs the model to check: -m NAME or -m PATH")
    if released_name is not None and prompts is None:
        raise click.UsageError(f"--as needs the prompts: --prompts FILE ({PROMPTS_HOME})")
    texts = None
    if prompts is not None:
        if released_name is not None:
            expected_of(released_name)
        texts = read_prompts(prompts)
    report = _report(model, device, precision)
    if not as_json:
        click.echo(_machine_text(report["machine"], report["runs_on"]))
        click.echo()
        click.echo(_models_text(report["models"], report["runs_on"], report["tflops"]))
        click.echo()
        if model not in BUNDLED:
            click.echo(FIRST_TESTER)
    test = None
    if model is not None and texts is not None:
        test = _forward_test(
            model, texts, released_name, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate,
        )  # fmt: skip
    if as_json:
        click.echo(json.dumps(_plain(report, model, test), indent=2))
    elif test is not None:
        click.echo()
        click.echo(_test_text(test))
    elif model is not None:
        click.echo(_no_test_text(model, report["models"][0].name))
    else:
        click.echo(f"Check weights with: evo-toolkit doctor -m evo2_7b --prompts prompts.csv ({PROMPTS_HOME})")  # fmt: skip
    if test is not None and not test.passed:
        ctx.exit(EXIT_ERROR)


def _report(model: str | None, device: str, precision: str) -> dict[str, Any]:
    from evo_toolkit.checkpoint.load import resolve_device
    from evo_toolkit.inference.machine import fit_model, matmul_rate, probe_machine
    from evo_toolkit.model.precision import resolve_precision
    from evo_toolkit.model.registry import MODELS

    place = resolve_device(device)
    policy = resolve_precision(precision, place)
    configs = [e.config for e in MODELS.values()] if model is None else [_config(model)]
    flops = matmul_rate(place, policy.compute_dtype)
    return {
        "machine": probe_machine(),
        "runs_on": {"device": str(place), "precision": policy.describe()},
        "tflops": flops / 1e12,
        "models": [fit_model(config, place, policy, flops) for config in configs],
    }


def _config(model: str) -> StripedHyena2Config:
    from evo_toolkit.checkpoint.opening import open_source
    from evo_toolkit.model.registry import MODELS

    # A released model is known without its weights, which may not have been downloaded yet.
    return MODELS[model].config if model in MODELS else open_source(model).source.config


def _forward_test(
    model: str, prompts: tuple[str, ...], released_name: str | None, *, device: str, precision: str,
    allow_inaccurate: bool,
) -> ForwardTest:  # fmt: skip
    from evo_toolkit.checkpoint.load import load_model
    from evo_toolkit.inference.released_check import expected_of, run_forward_test

    name = released_name or _config(model).name
    expected = expected_of(name)
    loaded = load_model(
        model, device=device, precision=precision, allow_inaccurate=allow_inaccurate
    )
    return run_forward_test(loaded, prompts, expected, name=name)


def _no_test_text(model: str, name: str) -> str:
    from evo_toolkit.inference.released_check import EXPECTED, PROMPTS_HOME

    known = name in EXPECTED
    which = (
        ""
        if known
        else f"; it has figures for {', '.join(EXPECTED)}, not for {name} (--as NAME if these weights are one of them)"
    )
    return f"The released forward test of {model} was not made: it needs --prompts FILE ({PROMPTS_HOME}){which}."


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 5e8 else f"{num_bytes / 1e6:.1f} MB"


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _machine_text(machine: Machine, runs_on: dict[str, str]) -> str:
    cuda = f"CUDA {machine.torch_cuda}" if machine.torch_cuda else "without CUDA"
    available = machine.memory_available
    rows = [
        ("evo_toolkit", machine.evo_toolkit),
        ("python", f"{machine.python} on {machine.system}"),
        ("torch", f"{machine.torch} ({cuda})"),
        ("triton", machine.triton or "not installed"),
        ("pysam", f"{machine.pysam} (htslib {machine.htslib})"),
        ("NVIDIA driver", machine.driver or "none found"),
    ]
    for index, gpu in enumerate(machine.gpus):
        rows.append((f"GPU {index}", f"{gpu.name}, sm_{gpu.compute_capability.replace('.', '')}, {_gb(gpu.memory)} ({_gb(gpu.memory_free)} free), bfloat16 {_yes(gpu.bf16)}, FP8 {_yes(gpu.fp8)}"))  # fmt: skip
    if not machine.gpus:
        rows.append(
            ("GPU", f"none usable: {machine.gpu_problem}" if machine.gpu_problem else "none")
        )
    free = "" if available is None else f" ({_gb(available)} available)"
    rows += [
        ("CPU", f"{machine.cores} cores, bfloat16 matrix units: {_yes(machine.cpu_bf16)}"),
        ("memory", _gb(machine.memory) + free),
        ("cache", f"{machine.cache} ({_gb(machine.cache_free)} free)"),
        ("runs on", f"{runs_on['device']}, precision {runs_on['precision']}"),
    ]
    return "\n".join(f"{name:<14} {value}" for name, value in rows)


def _models_text(models: list[ModelFit], runs_on: dict[str, str], tflops: float) -> str:
    header = ("model", "weights + working", "fits", "right", "speed")
    rows = [header]
    notes = {}
    for fit in models:
        if fit.inaccurate is not None:
            notes[fit.name] = fit.inaccurate
        bound = fit.most_bases_per_second
        if not fit.fits or bound is None:
            speed = "-"
        else:
            speed = f"at most {bound:,.0f} bases/s, {_variants(bound / (4 * fit.window))}"
        rows.append((
            fit.name, f"{_gb(fit.weights)} + {_gb(fit.working)}", _yes(fit.fits),
            _yes(fit.inaccurate is None), speed,
        ))  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]  # fmt: skip
    window = models[0].window if len({fit.window for fit in models}) == 1 else None
    of = f"of {window:,} bases" if window else "of the model's default size"
    lines.append("")
    lines.append(f"fits: into the {_gb(models[0].memory)} of {runs_on['device']}; working memory is an estimate for one window {of}.")  # fmt: skip
    if notes:
        lines.append("right: no for weights that were trained with FP8 projections, which cannot run as trained yet; they are refused without --allow-inaccurate:")  # fmt: skip
        lines += [f"  {name}: {cost}" for name, cost in notes.items()]
    lines.append(SPEED_BASIS.format(device=runs_on["device"], rate=tflops))
    return "\n".join(lines)


def _variants(per_second: float) -> str:
    if per_second >= 0.1:
        return f"{per_second:,.1f} SNVs/s"
    return f"{3600 * per_second:,.1f} SNVs/h"


def _test_text(test: ForwardTest) -> str:
    lines = [
        f"Released forward test of {test.model}: loss in nats per base, accuracy of the likeliest next base",
        f"{'sequence':<10} {'bases':>6} {'loss':>9} {'bf16 loss':>10} {'accuracy %':>11}",
    ]
    for number, one in enumerate(test.sequences, start=1):
        lines.append(f"{number:<10} {one.length:>6} {one.loss:>9.5f} {one.loss_bfloat16:>10.5f} {one.accuracy:>11.3f}")  # fmt: skip
    lines.append(f"{'mean':<10} {'':>6} {test.loss:>9.5f} {test.loss_bfloat16:>10.5f} {test.accuracy:>11.3f}")  # fmt: skip
    lines.append(f"{'published':<10} {'':>6} {'':>9} {test.expected.loss:>10.5f} {test.expected.accuracy:>11.3f}")  # fmt: skip
    difference = test.loss - test.expected.loss
    lines.append("")
    verdict = "PASSED: " if test.passed else "FAILED: "
    end = "within 0.001 of the published one" if test.passed else "0.001 or more away from the published one; please report this, with the output of evo-toolkit doctor"  # fmt: skip
    lines.append(f"{verdict}the mean loss differs by {difference:+.5f}, {end}")
    return "\n".join(lines)


def _plain(report: dict[str, Any], model: str | None, test: ForwardTest | None) -> dict[str, Any]:
    from evo_toolkit.inference.released_check import PROMPTS_HOME, TOLERANCE

    check: dict[str, Any] = {"made": False, "model": model, "prompts": PROMPTS_HOME}
    if test is not None:
        check = {
            "made": True,
            "passed": test.passed,
            "tolerance": TOLERANCE,
            "loss": test.loss,
            "loss_bfloat16": test.loss_bfloat16,
            "accuracy": test.accuracy,
            **dataclasses.asdict(test),
        }
    return {
        **report,
        "machine": dataclasses.asdict(report["machine"]),
        "models": [dataclasses.asdict(fit) for fit in report["models"]],
        "forward_test": check,
        "note": FIRST_TESTER,
    }
