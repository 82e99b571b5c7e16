"""`evo-toolkit models`: what there is, what is right here, and how to get it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import click

from evo_toolkit.cli.common import user_errors

if TYPE_CHECKING:
    import torch

    from evo_toolkit.checkpoint.source import WeightSource
    from evo_toolkit.model.config import StripedHyena2Config
    from evo_toolkit.model.precision import PrecisionPolicy


# Column to justification; "here" is whether its numbers are right on this machine.
_COLUMNS: dict[str, Literal["left", "right"]] = {
    "model": "left",
    "parameters": "right",
    "context": "right",
    "weights": "right",
    "here": "left",
    "fits": "left",
    "present": "left",
    "what it is": "left",
}


@click.group()
def models() -> None:
    """List, describe and download models."""


@models.command("list")
@user_errors
def list_models() -> None:
    """List the known models: size, context, and whether each is right on this machine."""
    from rich.console import Console
    from rich.table import Table

    from evo_toolkit.checkpoint.opening import bundled_directory
    from evo_toolkit.model.config import read_config
    from evo_toolkit.model.registry import BUNDLED, MODELS

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in _COLUMNS.items():
        table.add_column(column, justify=justify, no_wrap=column != "what it is")
    for name in BUNDLED:
        directory = bundled_directory(name)
        if not directory.is_dir():
            table.add_row(name, *[""] * 5, "not in this installation")
            continue
        config = read_config(directory / "config.json")
        table.add_row(name, *_figures(config), "bundled", "; ".join(config.domains))
    for name, entry in MODELS.items():
        table.add_row(name, *_figures(entry.config), _presence(name, entry.download_gb), entry.note)
    console = Console()
    if not console.is_terminal:
        console = Console(width=max(console.width, 160))
    console.print(table)
    click.echo(f"\nhere: {_machine()}")


def _figures(config: StripedHyena2Config) -> tuple[str, ...]:
    from evo_toolkit.checkpoint.names import weight_bytes
    from evo_toolkit.inference.machine import fit_model

    fit = fit_model(config, *_place())
    return (
        _count(config.parameter_count()),
        f"{config.context_length:,}",
        f"{weight_bytes(config, 2) / 1e9:.3g} GB",
        "right" if fit.inaccurate is None else "inaccurate",
        "yes" if fit.fits else "no",
    )


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"


def _presence(name: str, download_gb: float) -> str:
    from evo_toolkit.checkpoint import hub

    return "downloaded" if hub.is_here(name) else f"download, {download_gb:g} GB"


def _place() -> tuple[torch.device, PrecisionPolicy]:
    """The device that `--device auto` means, and how numbers are represented on it by default."""
    from evo_toolkit.checkpoint.load import resolve_device
    from evo_toolkit.model.precision import resolve_precision

    device = resolve_device("auto")
    return device, resolve_precision("default", device)


def _machine() -> str:
    from evo_toolkit.checkpoint.load import total_memory

    device, policy = _place()
    memory = total_memory(device) / 1e9
    dtype = str(policy.compute_dtype).removeprefix("torch.")
    return f"{device}, {memory:.1f} GB, weights in {dtype}; evo-toolkit doctor says more"


@models.command("info")
@click.argument("model", metavar="NAME|PATH")
@click.option(
    "--config", "config_file", type=click.Path(), metavar="FILE",
    help="Configuration of a .pt, if it is not beside it.",
)  # fmt: skip
@click.option("--verify", is_flag=True, help="Compute the checksum of the weights and compare it.")
@user_errors
def info(model: str, config_file: str | None, verify: bool) -> None:
    """Describe a model: configuration, provenance, what it is for and the evidence."""
    from evo_toolkit.checkpoint import hub
    from evo_toolkit.checkpoint.opening import open_source
    from evo_toolkit.errors import CheckpointError
    from evo_toolkit.model.registry import MODELS

    if model in MODELS and not hub.is_here(model):
        if verify:
            raise CheckpointError(
                f"{model} is not on this machine; get it with: evo-toolkit models download {model}"
            )
        config = MODELS[model].config
        _print_config(config)
        _print("weights", f"not on this machine; evo-toolkit models download {model}")
    else:
        source = open_source(model, config=config_file).source
        _print_config(source.config)
        _print_weights(source, model, verify)
    entry = MODELS.get(model)
    if entry is not None:
        _print("repository", f"https://huggingface.co/{entry.repo}")


def _print(key: str, value: object) -> None:
    click.echo(f"{key:<17} {value}")


def _print_config(config: StripedHyena2Config) -> None:
    from evo_toolkit.checkpoint.opening import accuracy_note

    _print("name", config.name)
    _print("parameters", f"{config.parameter_count():,}")
    _print("layers", f"{config.num_layers}: {config.pattern}")
    _print("width", f"{config.width}, MLP {config.mlp_width}, {config.num_heads} heads")
    _print("filter groups", config.filter_groups)
    for kind in config.layer_kinds():
        if kind.fields:
            _print(kind.name, ", ".join(f"{name} {getattr(config, name)}" for name in kind.fields))
    if config.looks_ahead():
        _print("looks ahead", f"{config.looks_ahead()}: no scores, no generation")
    _print("context", f"{config.context_length:,} bases")
    rotary = f"base {config.rotary_base:g}"
    if config.rotary_interpolation != 1:
        rotary += f", positions / {config.rotary_interpolation:g}"
    _print("rotary", rotary)
    _print("default window", f"{config.default_window:,} bases")
    _print("trained on", "; ".join(config.domains) or "not stated")
    _print("not for", "; ".join(config.not_for) or "not stated")
    note = accuracy_note(config)
    _print("accuracy here", "right" if note is None else f"inaccurate: {note}")
    for evidence in config.evidence:
        _print("evidence", f"{evidence.metric}: {evidence.value}")
    for command in dict.fromkeys(evidence.command for evidence in config.evidence):
        _print("measured by", command)


def _print_weights(source: WeightSource, name: str, verify: bool) -> None:
    from evo_toolkit.checkpoint.format import Checkpoint

    words = {"ours": "evo_toolkit", "vortex": "released (vortex)", "savanna": "training (savanna)"}
    _print("weights", source.path)
    _print("format", words.get(source.format, source.format))
    origin = source.origin()
    if isinstance(source, Checkpoint):
        if verify:
            source.verify()
        _print("sha256", f"{origin.recorded} ({'verified' if verify else 'as recorded'})")
        for key, value in source.provenance.items():
            if key != "sha256":
                _print_nested(key, value)
    elif verify:
        from evo_toolkit.checkpoint.hub import verify_with_hub

        digest, stated = verify_with_hub(origin.path, name)
        _print("sha256", f"{digest} ({'as on the hub' if stated else 'nothing to compare with'})")


def _print_nested(key: str, value: Any) -> None:
    """One line per plain value; of long lists and tables only their length: the file has them."""
    if isinstance(value, dict):
        for inner, content in value.items():
            if isinstance(content, dict):
                _print(f"{key}.{inner}", f"{len(content)} entries, in provenance.json")
            else:
                _print_nested(f"{key}.{inner}", content)
    elif isinstance(value, list):
        _print(key, f"{len(value)} entries, in provenance.json")
    else:
        _print(key, value)


@models.command("download")
@click.argument("name")
@click.option("--force", is_flag=True, help="Download again even if it is there.")
@click.option("-q", "--quiet", is_flag=True, help="No progress bar.")
@user_errors
def download(name: str, force: bool, quiet: bool) -> None:
    """Download a released model from the Hugging Face hub and print where it is.

    Nothing is transferred when it is there. The cache is the hub's own (HF_HOME); checkpoints in
    pieces are joined in EVO_TOOLKIT_CACHE (~/.cache/evo_toolkit).
    """
    from evo_toolkit.checkpoint import hub
    from evo_toolkit.checkpoint.opening import accuracy_note

    entry = hub.released_entry(name)
    note = accuracy_note(entry.config)
    if note is not None:
        click.echo(f"Note: {name} runs only with --allow-inaccurate here: {note}", err=True)
    if quiet:
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()
    click.echo(hub.download(name, force=force))
