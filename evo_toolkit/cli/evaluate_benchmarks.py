"""The commands of `evo-toolkit eval` that are made of the registry of benchmarks."""

from __future__ import annotations

from typing import Any

import click

from evo_toolkit.cli import evaluate_tables as tables
from evo_toolkit.cli.common import user_errors
from evo_toolkit.cli.evaluate_run import (
    Run,
    refuse_settled,
    seed_option,
    shared_options,
    train_option,
)
from evo_toolkit.errors import UsageError
from evo_toolkit.evaluation.registry import BENCHMARKS, Benchmark, find


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
        if shared["source"]:
            refuse_settled("limit")
        elif not files:
            raise UsageError(
                f"{' and '.join(name for name, _ in benchmark.files)}: give the files, or --from FILE.npz; `evo-toolkit eval list {benchmark.name}` says where they come from"
            )
        prepared = run.prepared(
            lambda: labelled_tasks.prepare_labelled(
                benchmark, files, train=train, limit=limit, seed=seed, say=run.say
            ),
            given=(*files, *train),
        )
        made: FeatureFile | None = None
        if features is not None and Path(features).exists():
            made = FeatureFile.load(features, prepared.meta["digest"])
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


_COMMANDS = {"sequences": _sequence_command}
