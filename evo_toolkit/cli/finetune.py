"""`evo-toolkit finetune`: learn from labelled sequences.

The methods are commands of one group. Each takes `data_options` (what is learned from) and
`split_options` (how it is judged) and adds its own; those that train the network itself live in
modules of their own, named in `_OTHERS` and imported when they are asked for.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import (
    EMBEDDED_STRANDS,
    POOLS,
    allow_out_of_domain_option,
    load_for_genome,
    model_options,
    quiet_option,
    refuse_input_as_output,
    require_model,
    user_errors,
)
from evo_toolkit.cli.finetune_inputs import FEATURES, Inputs, data_options
from evo_toolkit.cli.finetune_splits import Split, split_options
from evo_toolkit.cli.progress import progress_bar

if TYPE_CHECKING:
    from typing import Any

# Module, attribute and help of commands that other parts of the toolkit own.
_OTHERS: dict[str, tuple[str, str, str]] = {
    "head": ("evo_toolkit.cli.finetune_network", "head", "Train a head by gradient; per-base labels and tracks too."),
    "lora": ("evo_toolkit.cli.finetune_network", "lora", "Train a low-rank adapter and a head together."),
    "full": ("evo_toolkit.cli.finetune_network", "full", "Train all of the network and a head."),
    "predict": ("evo_toolkit.cli.finetune_predict", "predict", "Apply a fitted head to sequences."),
}  # fmt: skip

# As in evo_toolkit.finetuning.frozen; a test keeps them equal.
ESTIMATORS = ("auto", "logistic", "ridge", "mlp")


class _Methods(click.Group):
    """A group some of whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*super().list_commands(ctx), *_OTHERS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is not None or cmd_name not in _OTHERS:
            return found
        module, attribute, _ = _OTHERS[cmd_name]
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, command.get_short_help_str(200)) for name, command in self.commands.items()]
        rows += [(name, text) for name, (_, _, text) in _OTHERS.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


@click.group(cls=_Methods)
def finetune() -> None:
    """Learn from labelled sequences, variants or bases.

    Start with `frozen`: minutes on a CPU, honest figures, and a head that `predict` and
    `score --head` apply.
    """


@finetune.command("frozen")
@data_options
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FOLDER",
    help="Folder for head.safetensors, results.json, predictions.tsv and report.html.",
)
@click.option(
    "-l",
    "--layer",
    "layers",
    multiple=True,
    metavar="NAME[+NAME...]",
    help="A layer to choose among by inner folds, such as blocks.4; + puts several side by side; repeatable. Default: four depths.",
)
@click.option(
    "--pool",
    type=click.Choice(POOLS),
    default="mean",
    show_default=True,
    help="Over the positions of a sequence.",
)
@click.option(
    "--strands",
    type=click.Choice(EMBEDDED_STRANDS),
    default="both",
    show_default=True,
    help="both: the mean of the two strands; concat: side by side (not for variants).",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    type=click.Choice(FEATURES),
    help="Of variants, from the first differing base to the end of the window: the mean output with the reference, with the alternate, or their difference; repeatable [default: ref, difference].",
)
@click.option(
    "--estimator",
    type=click.Choice(ESTIMATORS),
    default="auto",
    show_default=True,
    help="auto: logistic for classes, ridge for numbers.",
)
@click.option(
    "--balanced",
    is_flag=True,
    help="Let classes count equally however many examples each has; probabilities are then those of a population in which all are equally common.",
)
@split_options
@click.option(
    "--name",
    default="head",
    show_default=True,
    metavar="NAME",
    help="Of the head; begins the columns that score --head writes.",
)
@model_options
@click.option("--force", is_flag=True, help="Replace existing files in FOLDER.")
@allow_out_of_domain_option
@quiet_option
@user_errors
def frozen(
    inputs: Inputs,
    output: str,
    layers: tuple[str, ...],
    pool: str,
    strands: str,
    features: tuple[str, ...],
    estimator: str,
    balanced: bool,
    split: Split,
    name: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    force: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Fit a small head on a frozen network's features, judged by nested cross-validation.

    DATA is a table with a column of sequences (TSV, CSV, Parquet), a FASTA with --labels, BED or GFF with
    --genome, or a VCF (or table of variants) with --genome and --task variant. Which layer is read and
    how strong the penalty is are chosen within the training folds; near copies (sequences that share a
    31-mer on either strand) never straddle folds. Composition and 4-mers, fitted on the same
    folds, stand beside every figure.
    """
    from evo_toolkit.errors import UsageError
    from evo_toolkit.finetuning.frozen import VARIANT_FEATURES, Settings, parse_candidates
    from evo_toolkit.finetuning.frozen_run import FrozenOptions, run_frozen
    from evo_toolkit.finetuning.results import about_data, output_folder, write_results

    chosen = require_model(model)
    if inputs.task in ("per_base", "track"):
        raise UsageError(
            f"task {inputs.task} has a target for every base; frozen features are of whole sequences: use evo-toolkit finetune head, lora or full"
        )
    is_variant = inputs.task == "variant"
    if is_variant and strands == "concat":
        raise UsageError("strands of variants are averaged; use both, fwd or rc")
    if features and not is_variant:
        raise UsageError("--feature is for the task variant; sequences have --pool")
    settings = Settings(
        estimator=estimator, balanced=balanced, folds=split.folds, inner_folds=split.inner_folds, seed=split.seed,  # type: ignore[arg-type]
    )  # fmt: skip
    options = FrozenOptions(
        name=name, layers=layers, pool=pool, strands=strands,  # type: ignore[arg-type]
        window=inputs.variant_window if is_variant else None,
        features=features or VARIANT_FEATURES, settings=settings, split_by=split.by,  # type: ignore[arg-type]
        k=split.k, block=split.block, resamples=split.resamples,
    )  # fmt: skip
    if layers:
        parse_candidates(layers)
    refuse_input_as_output(output, *inputs.sources)
    with output_folder(output, force=force) as folder:
        examples, test, lengths = inputs.read(strands=strands)
        _tell(quiet, _described(examples, test))
        loaded, note = load_for_genome(
            chosen, lengths, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate, allow_out_of_domain=allow_out_of_domain,
        )  # fmt: skip
        _check_layers(loaded, layers)
        total = len(examples) + (len(test) if test is not None else 0)
        with progress_bar("reading", total, "sequences", quiet=quiet) as advance:
            run = run_frozen(
                loaded, examples, options, test=test, trained_on=split.trained_on,
                report=advance,
            )  # fmt: skip
        results = {
            "command": " ".join(["evo-toolkit", *sys.argv[1:]]),
            "data": about_data(examples, inputs.sources),
            "test_data": None if test is None else about_data(test, inputs.sources),
            **run.results,
            "warnings": [*run.warnings, *([note] if note else [])],
        }
        write_results(folder, results, run.head, run.examples, run.outputs, run.folds, force=force)
    for warning in run.warnings:
        click.echo(f"Warning: {warning}", err=True)
    _tell(quiet, *_summary(results))
    _tell(quiet, f"wrote {folder}: head.safetensors, results.json, predictions.tsv, report.html")


def _tell(quiet: bool, *lines: str) -> None:
    if not quiet:
        for line in lines:
            click.echo(line, err=True)


def _described(examples: Any, test: Any) -> str:
    from evo_toolkit.finetuning.examples import class_counts

    counts = ", ".join(f"{count:,} {name}" for name, count in class_counts(examples).items())
    more = f"; {len(test):,} to test on" if test is not None else ""
    return f"{len(examples):,} examples{f' ({counts})' if counts else ''}{more}"


def _check_layers(model: Any, layers: tuple[str, ...]) -> None:
    from evo_toolkit.errors import UsageError
    from evo_toolkit.finetuning.frozen import parse_candidates
    from evo_toolkit.inference.embed import resolve_layer

    for names in parse_candidates(layers).values() if layers else ():
        for name in names:
            try:
                resolve_layer(model, name)
            except ValueError as error:
                raise UsageError(str(error)) from None


def _summary(results: dict[str, Any]) -> list[str]:
    from evo_toolkit.finetuning.metrics import METRIC_NAMES

    name = results["primary"]

    def shown(value: dict[str, float | None]) -> str:
        if value["value"] is None:
            return "none"
        around = "" if value["low"] is None else f" [{value['low']:.3f}, {value['high']:.3f}]"
        return f"{value['value']:.3f}{around}"

    split = results["split"]
    how = "test set" if split["test_set"] else f"{results['num_folds']} folds by {split['by']}"
    lines = [
        f"{METRIC_NAMES[name]} {shown(results['metrics'][name])} ({how}; intervals over {results['num_groups']:,} groups)"
    ]
    for other, metrics in results["baselines"].items():
        lines.append(
            f"  {other}: {shown(metrics[name])}; the network is ahead by {shown(results['lead'][other])}"
        )
    return lines
