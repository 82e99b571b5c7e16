"""`evo-toolkit data calibrate`: what scores of neutral substitutions look like."""

from __future__ import annotations

import click

from evo_toolkit.cli.common import quiet_option, refuse_input_as_output, user_errors


@click.command("calibrate")
@click.argument("genome", metavar="GENOME", type=click.Path(path_type=str))
@click.argument("tables", metavar="SCORED...", nargs=-1, required=True, type=click.Path(path_type=str))  # fmt: skip
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="The calibration, JSON."
)  # fmt: skip
@click.option(
    "--column", default="dll", show_default=True, metavar="NAME", help="Which score of the tables."
)
@click.option(
    "--strength", type=click.FloatRange(0), default=10.0, show_default=True, metavar="K",
    help="How strongly means of few substitutions are drawn towards those of less context; as if so many more had the wider mean.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace an existing output.")
@quiet_option
@user_errors
def calibrate_command(
    genome: str,
    tables: tuple[str, ...],
    output: str,
    column: str,
    strength: float,
    force: bool,
    quiet: bool,
) -> None:
    """Learn what scores of neutral substitutions look like.

    SCORED are tables (.tsv, .parquet) of `evo-toolkit score` for substitutions that you take to be neutral,
    GENOME the reference they were scored on. The calibration holds the mean score of every alternate
    between every four neighbours, and the distribution of the scores less these means.
    """
    from evo_data.fasta import Fasta
    from evo_data.files import check_output
    from evo_toolkit.variants.calibration import calibrate

    refuse_input_as_output(output, genome, *tables)
    check_output(output, force=force)
    with Fasta(genome) as reference:
        found = calibrate(tables, reference, column=column, strength=strength)
    found.save(output, force=force)
    if not quiet:
        kinds = 512 * 3 if found.folded else 1024 * 3
        seen = int((found.counts > 0).sum())
        click.echo(
            f"{found.num_scores:,} substitutions; {seen:,} of {kinds:,} kinds (five bases and alternate) seen, "
            f"half of them at most {_median(found.counts[found.counts > 0])} times",
            err=True,
        )


def _median(counts: object) -> int:
    import numpy as np

    return int(np.median(np.asarray(counts)))
