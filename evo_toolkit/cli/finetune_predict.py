"""`evo-toolkit finetune predict`: what a fitted head says of sequences."""

from __future__ import annotations

from pathlib import Path

import click

from evo_toolkit.cli.common import (
    allow_out_of_domain_option,
    load_for_genome,
    model_options,
    quiet_option,
    refuse_input_as_output,
    user_errors,
)
from evo_toolkit.cli.progress import progress_bar

_AT_A_TIME = 256


@click.command("predict")
@click.argument("head", metavar="HEAD", type=click.Path(path_type=str))
@click.argument("sequences", metavar="SEQUENCES", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE.tsv",
    help="A row for each sequence; for heads of bases, for each base.",
)
@click.option(
    "--sequence",
    default="sequence",
    show_default=True,
    metavar="NAME",
    help="Column of the sequences, where SEQUENCES is a table.",
)
@model_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@allow_out_of_domain_option
@quiet_option
@user_errors
def predict(
    head: str,
    sequences: str,
    output: str,
    sequence: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    force: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Apply a head of `finetune` to the sequences of a FASTA or a table.

    Without -m the model is the one that the head names. Heads for variants are applied by
    `evo-toolkit score --head`.
    """
    import csv

    from evo_data.files import atomic_output, check_output
    from evo_toolkit.errors import UsageError
    from evo_toolkit.finetuning.heads import SAYS_CLASS, SequenceHead
    from evo_toolkit.finetuning.reading import read_unlabelled

    refuse_input_as_output(output, head, sequences)
    check_output(output, force=force)
    fitted = SequenceHead.load(head)
    ids, texts = read_unlabelled(sequences, sequence=sequence)
    named = model or fitted.run.get("model")
    if not isinstance(named, str):
        raise UsageError(f"{head} does not say which model it reads; give it with -m")
    if model is None and "+" in named and not Path(named).exists():
        base = named.partition("+")[0]
        raise UsageError(
            f"head {fitted.name} reads {named}, a model with an adapter; give both, as -m {base} --adapter FILE.safetensors"
        )
    loaded, _ = load_for_genome(
        named, dict(zip(ids, map(len, texts), strict=True)),
        device=device, precision=precision, allow_inaccurate=allow_inaccurate,
        allow_out_of_domain=allow_out_of_domain,
    )  # fmt: skip
    fitted.require_model(loaded)
    shortest, longest = fitted.window
    outside = sum(not shortest <= len(text) <= longest for text in texts)
    if outside:
        click.echo(
            f"Warning: {outside:,} of {len(texts):,} sequences are shorter or longer than what the head was fitted on ({shortest:,} to {longest:,} bases)",
            err=True,
        )
    by_base = fitted.pool == "none"
    names = fitted.outputs if fitted.kind in ("regression", "track") else tuple(f"p_{n}" for n in fitted.outputs)  # fmt: skip
    says_class = fitted.kind in SAYS_CLASS
    with (
        atomic_output(output, force=force) as path,
        Path(path).open("w", encoding="utf-8", newline="") as file,
        progress_bar("predicting", len(texts), "sequences", quiet=quiet) as advance,
    ):
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["id", *(("position",) if by_base else ()), *names, *(("label",) if says_class else ())])  # fmt: skip
        for start in range(0, len(texts), _AT_A_TIME):
            part = texts[start : start + _AT_A_TIME]
            for name, values in zip(ids[start:], fitted.predict(loaded, part), strict=False):
                for position, row in enumerate(values if by_base else [values]):
                    said = (fitted.label_of(row),) if says_class else ()
                    writer.writerow([name, *((position,) if by_base else ()), *(f"{v:.6g}" for v in row), *said])  # fmt: skip
            advance(len(part))
    if not quiet:
        click.echo(f"predicted {len(texts):,} sequences with head {fitted.name} ({fitted.kind})", err=True)  # fmt: skip
