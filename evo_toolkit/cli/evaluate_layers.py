"""`evo-toolkit eval layers`: a benchmark's figure by layer, pool and strands."""

from __future__ import annotations

from typing import Any

import click

from evo_toolkit.cli.common import EMBEDDED_STRANDS, POOLS, user_errors
from evo_toolkit.cli.evaluate_run import (
    Run,
    require_files,
    seed_option,
    shared_options,
    train_option,
)
from evo_toolkit.cli.evaluate_tables import figure_text
from evo_toolkit.errors import UsageError


@click.command("layers", short_help="Which layer, pool and strands tell most of a benchmark.")
@click.argument("benchmark", metavar="BENCHMARK")
@click.argument("files", nargs=-1, type=click.Path(), metavar="[FILES]...")
@click.option("-l", "--layer", "layers", multiple=True, metavar="NAME", help="Layer by name; may be repeated. Default: all, the residual stream after every block, and norm.")  # fmt: skip
@click.option("--pool", "pools", multiple=True, type=click.Choice(POOLS), help="May be repeated; default: mean.")  # fmt: skip
@click.option("--strands", multiple=True, type=click.Choice(EMBEDDED_STRANDS), help="May be repeated; default: concat.")  # fmt: skip
@train_option
@click.option("--limit", type=click.IntRange(1), metavar="N", help="At most so many examples, whole groups drawn.")  # fmt: skip
@click.option("--folds", type=click.IntRange(2), default=5, show_default=True, metavar="N", help="Of the cross-validation.")  # fmt: skip
@click.option("--untrained/--no-untrained", default=True, show_default=True, help="Measure the same network with random weights too.")  # fmt: skip
@click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, metavar="N", help="Of the bootstrap.")  # fmt: skip
@seed_option
@shared_options
@user_errors
def layers_command(
    benchmark: str, files: tuple[str, ...], layers: tuple[str, ...], pools: tuple[str, ...],
    strands: tuple[str, ...], train: tuple[str, ...], limit: int | None, folds: int, untrained: bool,
    resamples: int, seed: int, **shared: Any,
) -> None:  # fmt: skip
    """Measure what each layer of a model tells of a benchmark of labelled sequences.

    BENCHMARK is the name of one (`evo-toolkit eval list`), FILES are its files. A linear classifier is
    fitted on each layer, pool and strands alone, on the same folds of whole groups, beside composition,
    k-mers and the same network untrained. The best of many flatters itself: this says where to look,
    and `eval BENCHMARK --layers` chooses within the training folds.
    """
    from evo_toolkit.evaluation.benchmarks.labelled import LabelledTask
    from evo_toolkit.evaluation.labelled_tasks import prepare_labelled
    from evo_toolkit.evaluation.layer_sweep import sweep_layers
    from evo_toolkit.evaluation.registry import find
    from evo_toolkit.inference import readings
    from evo_toolkit.inference.embed import expand_layers

    chosen = find(benchmark)
    if chosen.style != "sequences":
        raise UsageError(
            f"{benchmark} is no benchmark of labelled sequences; evo-toolkit eval list says which are"
        )
    run = Run(benchmark, shared)
    require_files(chosen, files, shared["source"])
    prepared = run.prepared(
        lambda: prepare_labelled(chosen, files, train=train, limit=limit, seed=seed, say=run.say),
        given=(*files, *train),
    )
    model = run.needed_model(prepared)
    wanted = list(layers) or ["all"]
    try:
        expand_layers(model, wanted)
    except ValueError as error:
        raise UsageError(str(error)) from None
    figures = sweep_layers(
        LabelledTask.of_prepared(prepared), model,
        layers=wanted,
        pools=[p for p in readings.POOLS if p in (pools or ("mean",))],
        strands=[s for s in readings.STRANDS if s in (strands or ("concat",))],
        folds=folds, seed=seed, with_untrained=untrained, resamples=resamples, say=run.say,
        progress=run.progress("networks", "tokens"),
    )  # fmt: skip
    result = {"task": benchmark, "model": figures.pop("model"), "data": dict(prepared.meta), "figures": figures}  # fmt: skip
    run.finish(result, _table)


def _table(figures: dict[str, Any]) -> list[list[str]]:
    """A row for each figure, in the order in which they were made."""
    title = f"{figures['metric']}, {figures['folds']} folds of whole groups"
    rows = [[title, "", "ahead of the last layer by"]]
    for name, figure in figures["figures"].items():
        ahead = figures["minus_last"].get(name)
        rows.append([name, figure_text(figure), "" if ahead is None else figure_text(ahead)])
    examples = f"{figures['num_examples']:,} examples in {figures['num_groups']:,} groups"
    return [*rows, [examples, "", ""]]
