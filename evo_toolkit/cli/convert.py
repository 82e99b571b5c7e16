"""`evo-toolkit convert`: weights from one checkpoint format to another."""

from __future__ import annotations

import click

from evo_toolkit.cli.common import adapted_model, user_errors


@click.command()
@click.argument("src", metavar="SRC")
@click.argument("dst", metavar="DST", type=click.Path())
@click.option(
    "--config", "config_file", type=click.Path(), metavar="FILE",
    help="Configuration of SRC, if it is not beside it as <stem>.config.json or .yml.",
)  # fmt: skip
@click.option(
    "--to", type=click.Choice(["ours", "vortex"]),
    help="Format of DST; by default vortex if it ends in .pt, else ours.",
)  # fmt: skip
@click.option(
    "--merge-adapter", type=click.Path(), metavar="FILE",
    help="Write SRC with the changes of an adapter (LoRA) in its weights; those matrices are then float32.",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Compare the logits of both on a short input first.")
@click.option("--force", is_flag=True, help="Replace a checkpoint at DST.")
@user_errors
def convert(
    src: str,
    dst: str,
    config_file: str | None,
    to: str | None,
    merge_adapter: str | None,
    verify: bool,
    force: bool,
) -> None:
    """Convert the weights of SRC and write them to DST.

    SRC is a released (vortex) or training (savanna) .pt, whole or in pieces, one of our folders, or
    the name of a model. DST is a folder for our format, or a .pt for the released one. Values and
    dtypes are kept bit for bit.
    """
    from evo_toolkit.checkpoint.convert import convert as run

    src = adapted_model(src, merge_adapter)
    done = run(src, dst, config=config_file, to=to, verify=verify, force=force)  # type: ignore[arg-type]
    click.echo(f"wrote {done.path} ({done.source_format} to {done.target_format})")
    for note in done.notes:
        click.echo(f"Note: {note}", err=True)
    if done.max_difference is not None:
        click.echo(f"largest difference of logits between {src} and {dst}: {done.max_difference:g}")
