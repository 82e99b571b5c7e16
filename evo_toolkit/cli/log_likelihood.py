"""`evo-toolkit log-likelihood`: how likely the model finds each sequence of a FASTA."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import click

from evo_toolkit.cli.common import (
    allow_out_of_domain_option,
    load_for_genome,
    model_options,
    quiet_option,
    refuse_input_as_output,
    require_model,
    user_errors,
)

_RECORDS_PER_GROUP = 1000
_BASES_PER_GROUP = 16_000_000


def _groups(lengths: Mapping[str, int]) -> Iterator[list[tuple[str, int]]]:
    """Records in groups that fill batches and fit the memory, in order."""
    group: list[tuple[str, int]] = []
    for item in lengths.items():
        if group and (
            len(group) == _RECORDS_PER_GROUP
            or sum(length for _, length in group) + item[1] > _BASES_PER_GROUP
        ):
            yield group
            group = []
        group.append(item)
    if group:
        yield group


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
    from evo_toolkit.inference.likelihood import log_likelihood as run

    name = require_model(model)
    if output != "-":
        refuse_input_as_output(output, fasta)
        check_output(output, force=force)
    with Fasta(fasta) as sequences:
        loaded, note = load_for_genome(
            name, sequences.lengths, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate, allow_out_of_domain=allow_out_of_domain,
        )  # fmt: skip
        notes = (*loaded.notes, *((note,) if note else ()))
        lines = [
            f"##evo_toolkitModel={loaded.config.name} sha256={loaded.sha256} {loaded.policy.describe()}"
        ]
        lines += [f"##evo_toolkitNote={text}" for text in notes]
        lines.append("#id\tlength\tlog_likelihood\tmean\tbits_per_base")
        for group in _groups(sequences.lengths):
            texts = [sequences.fetch(name, 0, length) for name, length in group if length]
            totals = iter(run(loaded, texts).tolist())
            for name, length in group:
                total = next(totals) if length else math.nan
                mean = total / (length - 1) if length > 1 else math.nan
                values = (f"{total:.9g}", f"{mean:.9g}", f"{-mean / math.log(2):.6g}")
                cells = values if math.isfinite(mean) else (".",) * 3
                lines.append("\t".join((name, str(length), *cells)))
    text = "\n".join(lines) + "\n"
    if output == "-":
        click.echo(text, nl=False)
    else:
        with atomic_output(output, force=force) as path:
            path.write_text(text, encoding="utf-8")
    if not quiet:
        click.echo(f"{len(sequences.lengths):,} sequences", err=True)
    if note:
        click.echo(f"Warning: {note}", err=True)
