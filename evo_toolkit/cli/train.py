"""`evo-toolkit train`: hands its arguments to LightningCLI; `train export` is click's."""

from __future__ import annotations

from pathlib import Path

import click

from evo_toolkit.cli.common import PROGRAM


@click.command(
    add_help_option=False,
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    help="Train a model on genomes (fit, validate; export its weights).",
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@click.pass_context
def train(ctx: click.Context, args: tuple[str, ...]) -> None:
    if args and args[0] == "export":
        # As its own program: errors and help then name the command as it was typed.
        export.main(list(args[1:]), prog_name=f"{PROGRAM} train export", standalone_mode=False)
        return
    from evo_toolkit.training.cli import run  # takes seconds: Lightning

    run(args)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER", help="Folder to write.")  # fmt: skip
@click.option("--name", help="What outputs call the model; by default as in the recipe.")
@click.option("--float32", is_flag=True, help="Keep projections in float32 instead of bfloat16.")
@click.option("--notes", help="A remark to keep in the provenance.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing model.")
def export(
    checkpoint: Path, output: Path, name: str | None, float32: bool, notes: str | None, force: bool
) -> None:
    """Write the weights of a training CHECKPOINT (step-N.ckpt, or a run's folder for its last one)
    as a model folder that every other command takes with -m FOLDER."""
    from evo_toolkit.training.export import export_checkpoint

    config = export_checkpoint(
        checkpoint, output, name=name, float32=float32, notes=notes, force=force
    )
    click.echo(
        f"wrote {output}: {config.name}, {config.parameter_count():,} parameters; use it with -m {output}",
        err=True,
    )
