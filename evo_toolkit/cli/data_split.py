"""`evo-toolkit data split`: which parts of a corpus train, validate and test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import quiet_option, user_errors
from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from evo_data.corpus import Corpus
    from evo_data.leakage import Leakage
    from evo_data.splits import Split

# Genomes that are named because they share most, and from which share on a part is worth a warning.
_SHOWN = 5
_NOTICEABLE = 0.10


@click.command("split")
@click.argument("corpus", metavar="CORPUS", type=click.Path())
@click.option(
    "-o", "--output", required=True, metavar="FILE", type=click.Path(),
    help="The split, JSON; `--data.split` of evo-toolkit train takes it.",
)  # fmt: skip
@click.option(
    "--by", required=True, type=click.Choice(["contig", "genome", "cluster", "blocks", "bed"]),
    help="What is held out: records by name; genomes or groups by name; whole clusters of near-identical genomes; stretches of every genome; intervals of a BED file.",
)  # fmt: skip
@click.option(
    "--val", multiple=True, metavar="NAME|BED",
    help="By contig and genome: a name or a pattern such as 'chr2*' (repeat it for more; genome/record where names recur). By bed: the file.",
)  # fmt: skip
@click.option("--test", multiple=True, metavar="NAME|BED", help="The same for testing.")
@click.option(
    "--val-fraction", type=float, metavar="SHARE",
    help="By cluster and blocks: share of the bases, 0 to 1.",
)  # fmt: skip
@click.option("--test-fraction", type=float, metavar="SHARE", help="The same for testing.")
@click.option("--seed", type=int, help="By cluster and blocks: chooses which. [default: 0]")
@click.option(
    "--block", type=int, metavar="BASES", help="By blocks: length of a stretch. [default: 65536]"
)
@click.option(
    "--margin", type=int, metavar="BASES",
    help="By bed: bases on either side of an interval that are used for nothing. [default: 0]",
)  # fmt: skip
@click.option("-k", type=click.IntRange(1, 32), default=31, show_default=True, help="Length of the k-mers compared.")  # fmt: skip
@click.option("--no-leakage", is_flag=True, help="Do not compare the parts.")
@click.option("--force", is_flag=True, help="Replace FILE.")
@quiet_option
@user_errors
def split_command(
    corpus: str,
    output: str,
    by: str,
    val: tuple[str, ...],
    test: tuple[str, ...],
    val_fraction: float | None,
    test_fraction: float | None,
    seed: int | None,
    block: int | None,
    margin: int | None,
    k: int,
    no_leakage: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Split CORPUS for training, validation and testing, and say what the parts share.

    Compared are the distinct k-mers of either strand: a validation sequence whose k-mers occur in
    the training part too is recognised, not predicted. The comparison reads the whole corpus (about
    15 seconds for 300 million bases).
    """
    from evo_data.corpus import Corpus
    from evo_data.files import check_output
    from evo_data.leakage import leakage_report
    from evo_data.split_manifest import write_split
    from evo_data.splits import (
        BLOCK,
        split_by_bed,
        split_by_blocks,
        split_by_clusters,
        split_by_contigs,
        split_by_genomes,
    )

    takes = {
        "contig": {"--val", "--test"},
        "genome": {"--val", "--test"},
        "cluster": {"--val-fraction", "--test-fraction", "--seed"},
        "blocks": {"--val-fraction", "--test-fraction", "--seed", "--block"},
        "bed": {"--val", "--test", "--margin"},
    }[by]
    given = {
        "--val": val or None, "--test": test or None, "--val-fraction": val_fraction,
        "--test-fraction": test_fraction, "--seed": seed, "--block": block, "--margin": margin,
    }  # fmt: skip
    for name, value in given.items():
        if value is not None and name not in takes:
            raise UsageError(
                f"{name} does not go with --by {by}, which takes {', '.join(sorted(takes))}"
            )
    wanted = sorted(takes & {"--val", "--test", "--val-fraction", "--test-fraction"}, reverse=True)
    if not any(given[name] for name in wanted):
        raise UsageError(f"--by {by} needs {' or '.join(wanted)}: there is nothing to hold out")
    check_output(output, force=force)
    opened = Corpus.open(corpus)
    fractions = {"val_fraction": val_fraction or 0.0, "test_fraction": test_fraction or 0.0}
    if by in ("contig", "genome"):
        function = split_by_contigs if by == "contig" else split_by_genomes
        split = function(opened, val=val, test=test)
    elif by == "cluster":
        split = split_by_clusters(opened, **fractions, seed=seed or 0)
    elif by == "blocks":
        length = BLOCK if block is None else block
        split = split_by_blocks(opened, **fractions, seed=seed or 0, block=length)
    else:
        if len(val) != 1 or len(test) > 1:
            raise UsageError("--by bed takes one file with --val, and one with --test if wanted")
        split = split_by_bed(opened, val=val[0], test=test[0] if test else None, margin=margin or 0)
    _report_parts(opened, split)
    leakage = [] if no_leakage else leakage_report(opened, split, k=k)
    _report_leakage(leakage, k)
    write_split(output, split, opened, leakage=leakage, force=force)
    if not quiet:
        click.echo(f"wrote {Path(output)}", err=True)


def _report_parts(corpus: Corpus, split: Split) -> None:
    from evo_data.splits import num_bases

    for part, segments in split.parts().items():
        if segments:
            bases = num_bases(segments)
            genomes = len({corpus.records[segment.record].genome for segment in segments})
            click.echo(
                f"{part:<5}  {bases:>14,} bases ({100 * bases / corpus.num_bases:.2f} %) in "
                f"{len(segments):,} stretches of {genomes:,} genomes"
            )


def _report_leakage(leakage: Sequence[Leakage], k: int) -> None:
    for whole in (row for row in leakage if row.genome is None):
        text = f"{100 * whole.shared:.2f} % of the {k}-mers of {whole.part} are in {whole.against}"
        own = [row for row in leakage if row.genome and row[:2] == whole[:2]]
        most = [row for row in own if row.shared >= _NOTICEABLE][:_SHOWN]
        if most and len(own) > 1:
            text += "; most of " + ", ".join(f"{row.genome} ({100 * row.shared:.1f} %)" for row in most)  # fmt: skip
        click.echo(text)
        if whole.shared >= _NOTICEABLE:
            click.echo(
                f"Warning: much of {whole.part} is also in {whole.against}, so results on it do not "
                "carry over to other genomes; hold out whole clusters, or more distant genomes",
                err=True,
            )
