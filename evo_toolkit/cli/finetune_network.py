"""`evo-toolkit finetune head`, `lora` and `full`: training through the network."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import click

from evo_toolkit.cli.common import (
    POOLS,
    allow_out_of_domain_option,
    model_options,
    quiet_option,
    refuse_input_as_output,
    require_model,
    user_errors,
)
from evo_toolkit.cli.finetune_inputs import FEATURES, Inputs, data_options
from evo_toolkit.cli.finetune_splits import Split, split_options

# As in evo_toolkit.finetuning.network_tasks and .adapters; a test keeps them equal.
STRANDS = ("fwd", "both", "concat")
TARGETS = ("projections", "out_projection", "mlp.l1", "mlp.l2", "mlp.l3")
TRAINED_WHOLE = ("filters", "norms", "biases")

_RATES = {"head": 1e-2, "lora": 1e-3, "full": 1e-4}


def _network_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add what the head reads and how it is trained."""
    for option in reversed(
        (
            click.option("-o", "--output", required=True, metavar="FOLDER", help="Folder of the run: checkpoints, head.safetensors, results.json, predictions and report.html."),
            click.option("-l", "--layer", default="norm", show_default=True, metavar="NAME", help="Layer that the head reads: norm, or blocks.K; blocks behind it are not run."),
            click.option("--pool", type=click.Choice(POOLS), default="mean", show_default=True, help="Over the positions of a sequence."),
            click.option("--strands", type=click.Choice(STRANDS), default="both", show_default=True, help="both: the mean of the two strands; concat: side by side, which per_base and track always do with both."),
            click.option("--feature", "features", multiple=True, type=click.Choice(FEATURES), help="Of variants; repeatable [default: ref, difference]."),
            click.option("--hidden", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Units of a hidden layer in the head; 0 for a linear head."),
            click.option("--dropout", type=click.FloatRange(0, 1, max_open=True), default=0.0, show_default=True, help="Share of features and hidden units left out in training."),
            click.option("--bin-size", type=click.IntRange(1), default=1, show_default=True, metavar="N", help="Of track: bases to a value."),
            click.option("--track-loss", type=click.Choice(["squares", "poisson"]), default="squares", show_default=True, help="Of track: poisson for counts."),
            click.option("--learning-rate", type=click.FloatRange(0, min_open=True), metavar="RATE", help=f"Peak rate [default: {_RATES['head']:g} head, {_RATES['lora']:g} lora, {_RATES['full']:g} full]."),
            click.option("--epochs", type=click.IntRange(1), default=20, show_default=True, metavar="N", help="Passes over the training part at most."),
            click.option("--patience", type=click.IntRange(1), default=5, show_default=True, metavar="N", help="Epochs without a better validation loss after which the run ends."),
            click.option("--batch-size", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="Examples of an update."),
            click.option("--checkpoint-blocks", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Keep activations between segments of N blocks alone, for less memory; 0 keeps all."),
            click.option("--balanced", is_flag=True, help="Let classes count equally however many examples each has."),
            click.option("--fold", type=click.IntRange(0), default=0, show_default=True, metavar="N", help="Fold that is tested on; the next one says when to stop."),
            click.option("--name", default="head", show_default=True, metavar="NAME", help="Of the head and the adapter."),
            click.option("--resume", is_flag=True, help="Go on from the last checkpoint in FOLDER."),
            click.option("--force", is_flag=True, help="Replace the outputs of an earlier run in FOLDER."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _adapter_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(
        (
            click.option("--rank", type=click.IntRange(1), default=16, show_default=True, metavar="N", help="Rank of the adapter's factors."),
            click.option("--alpha", type=click.FloatRange(0, min_open=True), metavar="X", help="Changes count alpha / rank [default: twice the rank]."),
            click.option("--adapter-dropout", type=click.FloatRange(0, 1, max_open=True), default=0.05, show_default=True, help="Share of the adapter's inputs left out in training."),
            click.option("--target", "targets", multiple=True, type=click.Choice(TARGETS), help="Matrices with an adapter, in every block; repeatable [default: all]."),
            click.option("--train-whole", multiple=True, type=click.Choice(TRAINED_WHOLE), help="Train these themselves beside the adapter; repeatable."),
        )
    ):  # fmt: skip
        command = option(command)
    return command


def _run(
    method: str, *, inputs: Inputs, split: Split, model: str | None, output: str, layer: str,
    pool: str, strands: str, features: tuple[str, ...], hidden: int, dropout: float, bin_size: int,
    track_loss: str, learning_rate: float | None, epochs: int, patience: int, batch_size: int,
    checkpoint_blocks: int, balanced: bool, fold: int, name: str, resume: bool, force: bool,
    device: str, precision: str, allow_inaccurate: bool, allow_out_of_domain: bool, quiet: bool,
    adapter: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    from evo_data.files import check_output
    from evo_toolkit.checkpoint.opening import open_source
    from evo_toolkit.errors import UsageError
    from evo_toolkit.finetuning.adapters import AdapterConfig
    from evo_toolkit.finetuning.network_tasks import NetworkConfig
    from evo_toolkit.finetuning.results import output_folder
    from evo_toolkit.inference.domain import check_domain

    chosen = require_model(model)
    if precision == "vortex":
        raise UsageError("precision vortex is not for training; use default or exact")
    if features and inputs.task != "variant":
        raise UsageError("--feature is for the task variant; sequences have --pool")
    network: dict[str, Any] = {
        "layer": layer, "pool": pool, "strands": strands, "hidden": hidden, "dropout": dropout,
        "bin_size": bin_size, "track_loss": track_loss,
    }  # fmt: skip
    if features:
        network["features"] = features
    config = NetworkConfig(**network)
    refuse_input_as_output(output, *inputs.sources)
    with output_folder(output, force=force) as folder:
        for file in ("adapter.safetensors", "predictions.parquet"):
            check_output(folder / file, force=force)
        opened = open_source(chosen, allow_inaccurate=allow_inaccurate)
        examples, test, lengths = inputs.read(strands="fwd" if strands == "fwd" else "both")
        note = check_domain(opened.source.config, lengths, allow=allow_out_of_domain)
        if note:
            click.echo(f"Warning: {note}", err=True)
        from evo_toolkit.training.finetune_run import NetworkRun, run_network  # seconds: Lightning

        run_network(
            NetworkRun(
                model=chosen, method=method, name=name, network=config,  # type: ignore[arg-type]
                adapter=AdapterConfig(**(adapter or {})), balanced=balanced,
                learning_rate=learning_rate or _RATES[method], epochs=epochs, patience=patience,
                batch_size=batch_size, split_by=split.by, folds=split.folds, fold=fold,  # type: ignore[arg-type]
                k=split.k, block=split.block, seed=split.seed, resamples=split.resamples,
                precision=precision, device=device, checkpoint_blocks=checkpoint_blocks,  # type: ignore[arg-type]
                trained_on=split.trained_on,
            ),
            examples, folder, test=test, sources=inputs.sources, warnings=[note] if note else [],
            command=" ".join(["evo-toolkit", *sys.argv[1:]]), resume=resume, force=force,
        )  # fmt: skip


def _command(method: str, text: str, *more: Callable[..., Any]) -> click.Command:
    def body(**options: Any) -> None:
        own = {}
        if more:
            keys = {"rank": "rank", "alpha": "alpha", "adapter_dropout": "dropout", "train_whole": "train_whole"}  # fmt: skip
            own = {field: options.pop(key) for key, field in keys.items()}
            targets = options.pop("targets")
            own |= {"targets": targets} if targets else {}
        _run(method, adapter=own, **options)

    body.__doc__ = text
    command: Any = user_errors(body)
    for decorate in (quiet_option, allow_out_of_domain_option, model_options, split_options, *more, _network_options, data_options):  # fmt: skip
        command = decorate(command)
    return click.command(method)(command)


_PARTS = """
    DATA is as for `finetune frozen`. One fold (--fold) is tested on, the next one says when to stop, the
    others are trained on; near copies never straddle them. Composition and 4-mers (of per-base tasks the
    7-mer around the base), fitted on the same part, stand beside every figure.
    """

head = _command(
    "head",
    f"""Train a head by gradient on a network that stays as it is.

    For per-base labels and tracks; whole sequences are better served by `finetune frozen`.
{_PARTS}""",
)

lora = _command(
    "lora",
    f"""Train a low-rank adapter and a head together.

    FOLDER gets adapter.safetensors: use it with --adapter in score, embed and the other commands, and
    head.safetensors with it; convert --merge-adapter makes one model of both.
{_PARTS}""",
    _adapter_options,
)

full = _command(
    "full",
    f"""Train all of the network and a head.

    FOLDER gets the new model in model/, and head.safetensors for it. Needs about 16 bytes a parameter.
{_PARTS}""",
)
