"""`evo-toolkit train`: hands its arguments to LightningCLI; help and `train export` are click's."""

from __future__ import annotations

from pathlib import Path

import click

from evo_toolkit.cli.common import PROGRAM, OneLineUsageError

_ACTIONS = ("fit", "validate")


# Help is asked of us alone as `train --help`; `train fit --help` is the parser's.
@click.command(
    context_settings={
        "ignore_unknown_options": True,
        "allow_interspersed_args": False,
        "help_option_names": ["-h", "--help"],
    },
    options_metavar="",
    epilog="A run keeps its checkpoints, logs and configuration in --trainer.default_root_dir (runs/default).",
)
@click.argument("args", nargs=-1, type=click.UNPROCESSED, metavar="ACTION [OPTIONS]...")
def train(args: tuple[str, ...]) -> None:
    """Train a model on genomes.

    \b
    fit       train:        evo-toolkit train fit --config RECIPE.yaml --data.genomes FOLDER
              go on:        the same with --ckpt_path last
    validate  bits per base of a checkpoint: --config RECIPE.yaml --ckpt_path FILE
    export    write a checkpoint's weights as a model for the other commands

    `train fit --help` lists every option of trainer, model and data; a model or data module named
    by a recipe has its own: `train fit --model.help evo_toolkit.training.EvoModule`.
    """
    if args and args[0] == "export":
        # As its own program: errors and help then name the command as it was typed.
        export.main(list(args[1:]), prog_name=f"{PROGRAM} train export", standalone_mode=False)
        return
    if not args or args[0] not in _ACTIONS:
        given = f"{args[0]!r} is not an action of train" if args else "train needs an action"
        raise OneLineUsageError(
            f"{given}; the actions are {', '.join(_ACTIONS)} and export, and evo-toolkit train --help describes them"
        )
    from evo_toolkit.training.cli import run  # takes seconds: Lightning

    run(args)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("checkpoint", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, metavar="FOLDER|FILE", help="Folder to write; of an adapter FILE.safetensors.")  # fmt: skip
@click.option("--name", help="What outputs call the model; by default as in the recipe.")
@click.option("--float32", is_flag=True, help="Keep projections in float32 instead of bfloat16.")
@click.option("--notes", help="A remark to keep in the provenance.")
@click.option("-f", "--force", is_flag=True, help="Replace an existing model.")
def export(
    checkpoint: Path, output: Path, name: str | None, float32: bool, notes: str | None, force: bool
) -> None:
    """Write the weights of a training CHECKPOINT (step-N.ckpt, or a run's folder for its last one)
    as a model folder that every other command takes with -m FOLDER; of a run that trained an adapter,
    the adapter, which they take with --adapter FILE."""
    from evo_toolkit.training.export import export_checkpoint

    config = export_checkpoint(
        checkpoint, output, name=name, float32=float32, notes=notes, force=force
    )
    if output.suffix == ".safetensors":
        click.echo(f"wrote {output}: an adapter; use it with --adapter {output}", err=True)
        return
    click.echo(
        f"wrote {output}: {config.name}, {config.parameter_count():,} parameters; use it with -m {output}",
        err=True,
    )
