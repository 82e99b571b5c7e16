"""The commands of `evo-toolkit eval` that are made of the registry of benchmarks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evo_toolkit.cli import evaluate_tables as tables
from evo_toolkit.cli.common import user_errors
from evo_toolkit.cli.evaluate_run import (
    Run,
    require_files,
    seed_option,
    shared_options,
    train_option,
    window_option,
)
from evo_toolkit.errors import UsageError
from evo_toolkit.evaluation.registry import BENCHMARKS, Benchmark, find

if TYPE_CHECKING:
    from evo_toolkit.evaluation.prepared import Prepared


def add_benchmarks(group: click.Group) -> None:
    """Add a command for each benchmark, and `list`."""
    group.add_command(list_command)
    for benchmark in BENCHMARKS:
        group.add_command(_COMMANDS[benchmark.style](benchmark))


@click.command("list", short_help="The benchmarks: files, where to get them, what others report.")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@user_errors
def list_command(names: tuple[str, ...]) -> None:
    """List the benchmarks, or describe those named."""
    if not names:
        tables.print_table([["name", "kind", "what"], *([b.name, b.style, b.summary] for b in BENCHMARKS)])  # fmt: skip
        return
    for index, benchmark in enumerate(map(find, names)):
        if index:
            click.echo()
        click.echo(f"{benchmark.name}: {benchmark.summary}")
        for name, content in benchmark.files:
            click.echo(f"  {name}: {content}")
        click.echo(f"  data: {benchmark.data}")
        if benchmark.notes:
            click.echo(f"  notes: {benchmark.notes}")
        for one in benchmark.published:
            click.echo(f"  published, not measured here: {one.model} {one.figure} ({one.source})")


def _arguments(benchmark: Benchmark) -> click.Argument:
    names = " ".join(name for name, _ in benchmark.files)
    return click.Argument(["files"], nargs=-1, type=click.Path(), metavar=f"[{names}]")


def _help(benchmark: Benchmark, more: str) -> str:
    files = "; ".join(f"{name}: {content}" for name, content in benchmark.files)
    notes = f"{benchmark.notes}.\n\n" if benchmark.notes else ""
    return f"{benchmark.summary}\n\n{files}.\n\n{notes}{more}\n\nData: {benchmark.data}."


def _sequence_command(benchmark: Benchmark) -> click.Command:
    @train_option
    @click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many examples, whole groups drawn.")  # fmt: skip
    @click.option("--layers", metavar="LIST", help="Layers to choose from, such as blocks.1,blocks.4; default: four depths.")  # fmt: skip
    @click.option("--features", type=click.Path(), metavar="FILE.npz", help="Features of the networks: read if the file exists, else written.")  # fmt: skip
    @click.option("--folds", type=click.IntRange(2), default=5, show_default=True, metavar="N", help="Of the cross-validation.")  # fmt: skip
    @click.option("--rounds", type=click.IntRange(1), default=3, show_default=True, metavar="N", help="Cross-validations, each with other folds and seeds; figures are their means.")  # fmt: skip
    @click.option("--cnn/--no-cnn", default=True, show_default=True, help="Train the small convolutional network.")  # fmt: skip
    @click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, metavar="N", help="Of the bootstrap.")  # fmt: skip
    @seed_option
    @shared_options
    @user_errors
    def command(
        files: tuple[str, ...], train: tuple[str, ...], limit: int | None, layers: str | None,
        features: str | None, folds: int, rounds: int, cnn: bool, resamples: int, seed: int, **shared: Any,
    ) -> None:  # fmt: skip
        from pathlib import Path

        from evo_data.files import check_output
        from evo_toolkit.evaluation import labelled_tasks
        from evo_toolkit.evaluation.features import FeatureFile

        run = Run(benchmark.name, shared)
        require_files(benchmark, files, shared["source"])
        prepared = run.prepared(
            lambda: labelled_tasks.prepare_labelled(
                benchmark, files, train=train, limit=limit, seed=seed, say=run.say
            ),
            given=(*files, *train),
        )
        made: FeatureFile | None = None
        if features is not None and Path(features).exists():
            made = FeatureFile.load(features, prepared.meta["digest"])
            if shared["model"] not in (None, made.model["name"], made.model.get("source")):
                raise UsageError(
                    f"{features} holds features of {made.model['name']}, and -m is {shared['model']}; leave -m out to use them, or give another name for its features"
                )
            run.say(f"features of {made.model['name']} from {features}")
        elif shared["model"] is not None:
            if features is not None:
                check_output(features)
            model = run.needed_model(prepared)
            made = labelled_tasks.make_features(
                prepared, model, layers=[one.strip() for one in layers.split(",")] if layers else (),
                seed=seed, progress=run.progress("networks", "tokens"),
            )  # fmt: skip
            if features is not None:
                made.save(features)
                run.say(f"wrote {features}")
        elif shared["prepare"] is not None:
            return
        device = "cpu" if shared["device"] == "auto" else shared["device"]
        result = labelled_tasks.run_labelled(
            prepared, made, folds=folds, rounds=rounds, cnn=cnn, device=device, seed=seed, resamples=resamples,
            say=run.say,
        )  # fmt: skip
        run.finish(result, tables.labelled_table)

    made = click.command(
        benchmark.name,
        short_help=benchmark.summary,
        help=_help(
            benchmark,
            "A linear classifier (or ridge regression) on a network's outputs, in nested cross-validation over whole groups, beside composition, k-mers, base by position, a small convolutional network and the same network untrained, all on the same folds. Without -m: the baselines alone.",
        ),
    )(command)
    made.params.insert(0, _arguments(benchmark))
    return made


def _model_command(benchmark: Benchmark) -> click.Command:
    """Of the styles that run a model and train nothing."""
    completion = benchmark.style == "completion"

    @train_option
    @click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many genes (default 50), drawn." if completion else "At most so many examples, drawn.")  # fmt: skip
    @click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, metavar="N", help="Of the bootstrap.")  # fmt: skip
    @seed_option
    @window_option
    @shared_options
    @user_errors
    def command(
        files: tuple[str, ...], train: tuple[str, ...], limit: int | None, resamples: int, seed: int,
        window: int | None, **shared: Any,
    ) -> None:  # fmt: skip
        from evo_toolkit.evaluation import assay_tasks, completion_tasks, variant_tasks

        run = Run(benchmark.name, shared)
        require_files(benchmark, files, shared["source"])
        variants = benchmark.style == "variants"
        for name, given in (("--window", window), ("--train", train)):
            if given and not variants:
                raise UsageError(f"eval {benchmark.name} has no use for {name}; leave it out")

        def prepare() -> Prepared:
            if variants:
                return variant_tasks.prepare_variants(
                    benchmark, files, train=train, limit=limit, seed=seed, say=run.say
                )
            make = completion_tasks.prepare_completion if completion else assay_tasks.prepare_assay
            return make(benchmark, files, limit=limit, seed=seed)

        prepared = run.prepared(prepare, given=(*files, *train))
        model = run.needed_model(prepared)
        if variants:
            progress = run.progress("variants", "variants")
            result = variant_tasks.run_variants(
                prepared, model, window=window, resamples=resamples, progress=progress
            )
            run.finish(result, tables.variants_table)
        elif completion:
            progress = run.progress("genes", "bases")
            result = completion_tasks.run_completion(
                prepared, model, seed=seed, resamples=resamples, progress=progress
            )
            run.finish(result, tables.labelled_table)
        else:
            progress = run.progress("sequences", "tokens")
            result = assay_tasks.run_assay(prepared, model, resamples=resamples, progress=progress)
            run.finish(result, tables.labelled_table)

    made = click.command(
        benchmark.name,
        short_help=benchmark.summary,
        help=_help(benchmark, "Nothing is trained; intervals are of 95 %, as the notes say."),
    )(command)
    made.params.insert(0, _arguments(benchmark))
    return made


_COMMANDS = {
    "sequences": _sequence_command,
    "variants": _model_command,
    "assay": _model_command,
    "completion": _model_command,
}
