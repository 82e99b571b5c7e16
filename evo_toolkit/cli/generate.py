"""`evo-toolkit generate`: continue a sequence."""

from __future__ import annotations

import textwrap

import click

from evo_toolkit.cli.common import model_options, quiet_option, require_model, user_errors


@click.command()
@click.option(
    "-p", "--prompt", required=True, metavar="BASES", help="What to continue; at least one base."
)
@click.option(
    "-n",
    "--max-new-tokens",
    type=click.IntRange(1),
    default=500,
    show_default=True,
    metavar="BASES",
    help="How many bases to add at most.",
)
@click.option(
    "-t",
    "--temperature",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="Of the sampling; 0 takes the likeliest base.",
)
@click.option("--seed", type=int, help="Of the sampling; drawn, and printed, when not given.")
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where to write the FASTA; - is stdout.",
)
@model_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@quiet_option
@user_errors
def generate(
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int | None,
    output: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Continue a sequence.

    Writes prompt and continuation as one FASTA record. The prompt is used as given (models were
    trained on upper case).
    """
    import secrets

    from evo_data.files import atomic_output, check_output
    from evo_toolkit.checkpoint.load import load_model
    from evo_toolkit.errors import UsageError
    from evo_toolkit.inference.generate import generate as run

    name = require_model(model)
    if not prompt:
        raise UsageError("--prompt is empty; give at least one base to continue from")
    if output != "-":
        check_output(output, force=force)
    if seed is None:
        seed = secrets.randbelow(2**31)
    loaded = load_model(name, device=device, precision=precision, allow_inaccurate=allow_inaccurate)
    added = run(loaded, prompt, max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    title = f">generated model={loaded.config.name} prompt_length={len(prompt)} temperature={temperature:g} seed={seed}"
    if loaded.notes:
        title += " note=" + " ".join(loaded.notes)
    text = "\n".join(
        [
            title,
            *textwrap.wrap(prompt + added, 60, drop_whitespace=False, replace_whitespace=False),
            "",
        ]
    )
    if output == "-":
        click.echo(text, nl=False)
    else:
        with atomic_output(output, force=force) as path:
            path.write_text(text, encoding="utf-8")
    if not quiet:
        click.echo(f"added {len(added):,} bases", err=True)
