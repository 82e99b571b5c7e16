"""`evo-toolkit log-likelihood`: how likely the model finds each sequence of a FASTA."""

from __future__ import annotations

import math

import click

from evo_toolkit.cli.common import (
    allow_out_of_domain_option,
    model_options,
    quiet_option,
    require_model,
    user_errors,
)


@click.command("log-likelihood")
@click.argument("fasta", metavar="FASTA", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where to write the TSV; - is stdout.",
)
@model_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@allow_out_of_domain_option
@quiet_option
@user_errors
def log_likelihood(
    fasta: str,
    output: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    force: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Log-likelihood of each sequence of a FASTA.

    Every record is one sequence, upper-cased, read on its forward strand. The TSV has the columns
    id, length (bases), log_likelihood (nats, summed over all bases but the first, which has no
    prediction), mean (nats per base) and bits_per_base.
    """
    from evo_data.fasta import Fasta
    from evo_data.files import atomic_output, check_output
    from evo_toolkit.checkpoint.load import load_model
    from evo_toolkit.inference.domain import check_domain
    from evo_toolkit.inference.likelihood import log_likelihood as run

    name = require_model(model)
    if output != "-":
        check_output(output, force=force)
    with Fasta(fasta) as sequences:
        loaded = load_model(
            name, device=device, precision=precision, allow_inaccurate=allow_inaccurate
        )
        note = check_domain(loaded.config, sequences.lengths, allow=allow_out_of_domain)
        notes = (*loaded.notes, *((note,) if note else ()))
        if note:
            click.echo(f"Warning: {note}", err=True)
        lines = [
            f"##evo_toolkitModel={loaded.config.name} sha256={loaded.sha256} {loaded.policy.describe()}"
        ]
        lines += [f"##evo_toolkitNote={text}" for text in notes]
        lines.append("#id\tlength\tlog_likelihood\tmean\tbits_per_base")
        # One sequence at a time: a result does not depend on the others, and memory stays small.
        for contig, length in sequences.lengths.items():
            if length < 2:
                lines.append(f"{contig}\t{length}\t.\t.\t.")
                continue
            total = float(run(loaded, [sequences.fetch(contig, 0, length)])[0])
            mean = total / (length - 1)
            lines.append(f"{contig}\t{length}\t{total:.9g}\t{mean:.9g}\t{-mean / math.log(2):.6g}")
    text = "\n".join(lines) + "\n"
    if output == "-":
        click.echo(text, nl=False)
    else:
        with atomic_output(output, force=force) as path:
            path.write_text(text, encoding="utf-8")
    if not quiet:
        click.echo(f"{len(sequences.lengths):,} sequences", err=True)
