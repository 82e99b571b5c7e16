"""`evo-toolkit demo`: score made variants of a real chloroplast with the bundled model, on any machine, in under two minutes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import user_errors

if TYPE_CHECKING:
    from evo_toolkit.variants.scores import ScoredRecord

MODEL = "evo-mini"
WINDOW = 1024
_FILES = ("scored.vcf", "scores.png")


@click.command()
@click.option(
    "-o",
    "--output",
    default="evo-demo",
    show_default=True,
    metavar="FOLDER",
    help="Where scored.vcf and scores.png go.",
)
@click.option(
    "--window",
    type=click.IntRange(32),
    default=WINDOW,
    show_default=True,
    metavar="BASES",
    help="Bases per window.",
)
@click.option("--force", is_flag=True, help="Replace the files of an earlier demo.")
@user_errors
def demo(output: str, window: int, force: bool) -> None:
    """Score variants of a chloroplast with the bundled model.

    The input ships with the toolkit: the chloroplast genome of Arabidopsis thaliana (NC_000932.1)
    and variants made in its genes rbcL and psbA, with their coding consequences.
    """
    from evo_data.demo_data import demo_file
    from evo_data.fasta import Fasta
    from evo_data.files import atomic_output, check_output
    from evo_toolkit.checkpoint.load import load_model
    from evo_toolkit.variants.output import open_writer
    from evo_toolkit.variants.run import ScoringRun, open_variants
    from evo_toolkit.variants.summary import Summary

    started = time.monotonic()
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    scored_path, plot_path = (folder / name for name in _FILES)
    for path in (scored_path, plot_path):
        check_output(path, force=force)
    variants_path, genome_path = demo_file("rbcL_psbA.vcf"), demo_file("NC_000932.fa")
    model = load_model(MODEL, device="auto")
    with Fasta(genome_path) as genome:
        variants = open_variants(variants_path, genome)
        run = ScoringRun(model, genome, variants, window=window)
        click.echo(
            f"{MODEL} ({model.config.parameter_count():,} parameters, {run.info.precision}, {run.info.device}), "
            f"window {window} bases, both strands, {variants.num_alleles} alleles; about {run.estimate() or 0:.0f} s"
        )
        summary, records = Summary(), []
        with open_writer(
            scored_path, format=None, header=variants.header, run=run.info, force=force
        ) as writer:
            for scored in run.records():
                writer.write(scored)
                summary.add(scored)
                records.append(scored)
    by_consequence = group_by_consequence(records)
    _print_table(by_consequence)
    with atomic_output(plot_path, force=force, suffix=".png") as path:
        _plot(by_consequence, path, window)
    click.echo(summary.text())
    click.echo(run.bits_line() or "")
    click.echo(
        f"Chloroplasts are outside what {MODEL} was trained on ({', '.join(model.config.domains)}): "
        "the demo shows that the path works, not what the model can do."
    )
    click.echo(f"wrote {scored_path} and {plot_path} in {time.monotonic() - started:.0f} s")


def group_by_consequence(records: list[ScoredRecord]) -> dict[str, list[float]]:
    """EVO_DLL of every scored allele under its CONSEQUENCE, most alleles first."""
    groups: dict[str, list[float]] = {}
    for scored in records:
        fields = dict(
            item.split("=", 1) for item in scored.record.info.decode().split(";") if "=" in item
        )
        names = fields.get("CONSEQUENCE", "unknown").split(",")
        for name, allele in zip(names, scored.alleles, strict=True):
            if allele.dll is not None:
                groups.setdefault(name, []).append(allele.dll)
    return dict(sorted(groups.items(), key=lambda item: (-len(item[1]), item[0])))


def _print_table(groups: dict[str, list[float]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="EVO_DLL by consequence, nats; positive: alternate more likely")
    table.add_column("consequence")
    for heading in ("alleles", "mean", "median", "lowest", "highest"):
        table.add_column(heading, justify="right")
    for name, values in groups.items():
        numbers = (statistics.fmean(values), statistics.median(values), min(values), max(values))
        table.add_row(name, str(len(values)), *(f"{number:+.2f}" for number in numbers))
    Console().print(table)


def _plot(groups: dict[str, list[float]], path: Path, window: int) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 0.45 * len(groups) + 1.8), layout="constrained")
    for row, values in enumerate(groups.values()):
        # Spread by rank, so that equal scores stay apart and the picture is the same every time.
        offsets = [((i * 0.618) % 1 - 0.5) * 0.5 for i in range(len(values))]
        axes.scatter(values, [row + o for o in offsets], s=18, alpha=0.7, edgecolors="none")
        axes.plot([statistics.median(values)] * 2, [row - 0.35, row + 0.35], color="black", lw=1.5)
    axes.axvline(0, color="grey", lw=0.8, ls="--")
    axes.set_yticks(range(len(groups)), [f"{name} ({len(v)})" for name, v in groups.items()])
    axes.invert_yaxis()
    axes.set_xlabel("EVO_DLL (nats); right of 0 the alternate is more likely to the model")
    axes.set_title(f"{MODEL} on rbcL and psbA of NC_000932.1, window {window}; bar: median")
    figure.savefig(path, dpi=150, format="png")
    plt.close(figure)
