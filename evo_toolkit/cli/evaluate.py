"""`evo-toolkit eval`: figures of a model beside the baselines that they must be read against."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from evo_toolkit.cli import evaluate_tables as tables
from evo_toolkit.cli.common import user_errors
from evo_toolkit.cli.evaluate_benchmarks import add_benchmarks
from evo_toolkit.cli.evaluate_layers import layers_command
from evo_toolkit.cli.evaluate_run import (
    Run,
    refuse_settled,
    seed_option,
    shared_options,
    train_option,
    window_option,
)
from evo_toolkit.cli.evaluate_suffix import suffix_command
from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from evo_toolkit.evaluation.prepared import Prepared


@click.group("eval")
def evaluate() -> None:
    """Measure a model: bits per base, variants, labelled benchmarks.

    Each command prints a table and writes JSON with -o. Intervals are of 95 %, resampling genomes,
    genes or exons, never bases. `--train` names the training genomes: the baselines are made of
    them, and the share of the test genome's 31-mers that they hold stands beside the figures.

    `eval list` describes the benchmarks: where their files come from, and what others report.

    A command reads its files here with --prepare FILE.npz and runs elsewhere with --from FILE.npz:
    there it needs neither the genomes nor the tools that read them.
    """


evaluate.add_command(suffix_command)
evaluate.add_command(layers_command)
add_benchmarks(evaluate)


@evaluate.command()
@click.argument("genomes", nargs=-1, type=click.Path(), metavar="[GENOMES]...")
@train_option
@click.option("--context-length", type=click.IntRange(32, 32_768), default=8192, show_default=True, metavar="BASES", help="Length of the windows.")  # fmt: skip
@click.option("--windows-per-genome", type=click.IntRange(1), metavar="N", help="Draw so many windows of each genome; default: all.")  # fmt: skip
@click.option("--order", type=click.IntRange(0, 12), metavar="K", help="Of the Markov chain; default: the best up to --max-order on training genomes held out of it.")  # fmt: skip
@click.option("--max-order", type=click.IntRange(0, 12), default=12, show_default=True, metavar="K", help="The largest order; 12 needs 4 GB of memory.")  # fmt: skip
@click.option("--fit-windows", type=click.IntRange(1), default=256, show_default=True, metavar="N", help="Windows of held-out training genomes that the mixture is fitted on.")  # fmt: skip
@seed_option
@shared_options
@user_errors
def bits(
    genomes: tuple[str, ...],
    train: tuple[str, ...],
    context_length: int,
    windows_per_genome: int | None,
    order: int | None,
    max_order: int,
    fit_windows: int,
    seed: int,
    **shared: Any,
) -> None:
    """Bits per base of GENOMES: a model, two baselines.

    GENOMES are files (FASTA, GenBank), folders of them, or a corpus. With --train: an interpolated Markov
    chain (Witten-Bell; both strands; near-identical genomes count as one), and the same chain mixed
    with what the window itself has shown so far (contexts of 1 to 16 bases, both strands; weights
    fitted on training genomes held out of the chain). Lower is better; a gain is baseline minus
    model, its interval over genomes.
    """
    from evo_toolkit.evaluation import tasks

    run = Run("bits", shared)

    def prepare() -> Prepared:
        return tasks.prepare_bits(
            genomes, train=train, context_length=context_length, per_genome=windows_per_genome,
            order=order, max_order=max_order, num_windows=fit_windows, seed=seed, say=run.say,
            progress=run.progress("baselines", "bases"),
        )  # fmt: skip

    if shared["source"]:
        refuse_settled("context_length", "windows_per_genome", "order", "max_order", "fit_windows", "seed")  # fmt: skip
    prepared = run.prepared(prepare, given=(*genomes, *train))
    model = run.model(prepared, optional=bool(prepared.meta.get("predictors")))
    run.finish(
        tasks.run_bits(prepared, model, progress=run.progress("model", "bases")), tables.bits_table
    )


@evaluate.command(short_help="Nonsense and missense SNVs against synonymous ones, within strata.")
@click.argument("genome", required=False, type=click.Path())
@click.option("--genes", type=click.Path(), metavar="GFF3", help="Its genes; default: called with Pyrodigal (pip install 'evo-toolkit[eval]').")  # fmt: skip
@train_option
@click.option("--num-snvs", type=click.IntRange(3), default=20_000, show_default=True, metavar="N", help="Substitutions, a third of each class; with --from, as many of the prepared ones.")  # fmt: skip
@click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, metavar="N", help="Of the bootstrap.")  # fmt: skip
@seed_option
@window_option
@shared_options
@user_errors
def snv(
    genome: str | None,
    genes: str | None,
    train: tuple[str, ...],
    num_snvs: int,
    resamples: int,
    seed: int,
    window: int | None,
    **shared: Any,
) -> None:
    """Nonsense and missense against synonymous substitutions in the genes of GENOME.

    AUROC within strata of equal substitution and equal neighbours (coding strand), since those
    alone nearly separate nonsense from synonymous; the raw AUROC, and that of a table of
    substitution and neighbours, stand beside it. Genetic code 11. Intervals over genes.
    """
    from evo_toolkit.evaluation import tasks

    run = Run("snv", shared)
    prepared = run.prepared(
        lambda: tasks.prepare_snv(
            run.required(genome, "GENOME"), genes=genes, train=train, count=num_snvs, seed=seed,
            say=run.say,
        ),
        given=(genome, genes, *train),
    )  # fmt: skip
    model = run.model(prepared, optional="markov" in prepared.arrays)
    progress = run.progress("substitutions", "SNVs")
    result = tasks.run_snv(
        prepared, model, window=window, count=num_snvs, resamples=resamples, progress=progress
    )
    run.finish(result, tables.snv_table)


@evaluate.command(short_help="Essential genes by stop insertion.")
@click.argument("genome", required=False, type=click.Path())
@click.argument("labels", required=False, type=click.Path())
@click.option("--label-column", default="essential", show_default=True, metavar="NAME", help="Column of LABELS with True or False.")  # fmt: skip
@train_option
@click.option("--sites", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Insertions per gene, each on its own; their mean counts.")  # fmt: skip
@click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, metavar="N", help="Of the bootstrap.")  # fmt: skip
@window_option
@shared_options
@user_errors
def essentiality(
    genome: str | None,
    labels: str | None,
    label_column: str,
    train: tuple[str, ...],
    sites: int,
    resamples: int,
    window: int | None,
    **shared: Any,
) -> None:
    """Essential genes of GENOME by inserting stop codons near their start.

    LABELS is a table (tab-separated, also gzip) with the columns start, end (1-based, closed),
    strand and the one of --label-column. Length, GC and, with --train, conservation stand beside
    the model, whole and within fifths of equal length. Intervals over genes.
    """
    from evo_toolkit.evaluation import tasks

    run = Run("essentiality", shared)
    prepared = run.prepared(
        lambda: tasks.prepare_essentiality(
            run.required(genome, "GENOME"), run.required(labels, "LABELS"), column=label_column,
            train=train, say=run.say,
        ),
        given=(genome, labels, *train),
    )  # fmt: skip
    model = run.model(prepared, optional=True)
    result = tasks.run_essentiality(
        prepared, model, window=window, sites=sites, resamples=resamples,
        progress=run.progress("insertions", "insertions"),
    )  # fmt: skip
    run.finish(result, tables.essentiality_table)


@evaluate.command(short_help="Loss of function in BRCA1 (Findlay 2018).")
@click.argument("genome", required=False, type=click.Path())
@click.argument("vcf", required=False, type=click.Path())
@train_option
@click.option("--resamples", type=click.IntRange(0), default=1000, show_default=True, metavar="N", help="Of the bootstrap.")  # fmt: skip
@window_option
@shared_options
@user_errors
def brca1(
    genome: str | None,
    vcf: str | None,
    train: tuple[str, ...],
    resamples: int,
    window: int | None,
    **shared: Any,
) -> None:
    """Loss of function in BRCA1 (saturation genome editing, Findlay 2018).

    GENOME is a FASTA with the chromosome of VCF, whose INFO has FCLASS (LOF, INT, FUNC) and EXPT.
    A model of bacteria is expected near 0.5. Intervals over the assay's exons.
    """
    from evo_toolkit.evaluation import tasks

    run = Run("brca1", shared)
    prepared = run.prepared(
        lambda: tasks.prepare_brca1(
            run.required(genome, "GENOME"), run.required(vcf, "VCF"), train=train, say=run.say
        ),
        given=(genome, vcf, *train),
    )
    model = run.needed_model(prepared)
    domains = ", ".join(model.config.domains)
    if "vertebrate" in model.config.forbidden_genomes:
        click.echo(
            f"Warning: {model.config.name} was trained on {domains}; near 0.5 is what to expect on a human gene",
            err=True,
        )
    progress = run.progress("variants", "SNVs")
    result = tasks.run_brca1(prepared, model, window=window, resamples=resamples, progress=progress)
    run.finish(result, tables.brca1_table)


@evaluate.command(
    "default-window", short_help="The smallest window that ranks SNVs as the largest does."
)
@click.argument("genome", required=False, type=click.Path())
@click.option("--genes", type=click.Path(), metavar="GFF3", help="Its genes; default: called with Pyrodigal.")  # fmt: skip
@click.option("--num-snvs", type=click.IntRange(3), default=2000, show_default=True, metavar="N", help="Substitutions that are scored.")  # fmt: skip
@click.option("--windows", default="512,1024,2048,4096,8192", show_default=True, metavar="LIST", help="Windows in bases.")  # fmt: skip
@seed_option
@shared_options
@user_errors
def default_window(
    genome: str | None,
    genes: str | None,
    num_snvs: int,
    windows: str,
    seed: int,
    **shared: Any,
) -> None:
    """The smallest window whose scores rank substitutions as those of the largest do.

    It is the first with a rank correlation (Spearman) of 0.99 or more. --from also takes a file
    that `eval snv --prepare` wrote.
    """
    from evo_toolkit.evaluation import tasks

    run = Run("snv", shared)
    try:
        sizes = sorted({int(text) for text in windows.split(",")})
    except ValueError:
        raise UsageError(f"--windows {windows!r} is no list of numbers such as 512,8192") from None
    if len(sizes) < 2 or sizes[0] < 16:
        raise UsageError(f"--windows {windows!r}: give two windows or more, of at least 16 bases")
    prepared = run.prepared(
        lambda: tasks.prepare_snv(
            run.required(genome, "GENOME"), genes=genes, count=num_snvs, seed=seed, say=run.say
        ),
        given=(genome, genes),
    )
    model = run.needed_model(prepared)
    result = tasks.run_default_window(
        prepared, model, windows=sizes, count=num_snvs, progress=run.progress("windows", "SNVs")
    )
    run.finish(result, tables.window_table)
