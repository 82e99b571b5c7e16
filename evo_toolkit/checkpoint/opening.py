"""From a name or a path to an opened `WeightSource`: which format, which configuration, right here or not."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evo_toolkit.checkpoint import hub
from evo_toolkit.checkpoint.adapter import AdaptedSource, read_adapter, split_adapter
from evo_toolkit.checkpoint.format import CONFIG, is_checkpoint_directory, open_checkpoint
from evo_toolkit.checkpoint.pieces import find_pieces, merge_pieces
from evo_toolkit.checkpoint.savanna import savanna_source, savanna_weights
from evo_toolkit.checkpoint.source import WeightSource
from evo_toolkit.checkpoint.torchfile import read_torch_file
from evo_toolkit.checkpoint.vortex import looks_like_vortex, vortex_source
from evo_toolkit.errors import CheckpointError, InaccurateModelError, UsageError
from evo_toolkit.model.config import StripedHyena2Config, read_config
from evo_toolkit.model.registry import BUNDLED, FP8_COST, MODELS, ModelEntry

_log = logging.getLogger("evo_toolkit")

_CONFIG_SUFFIXES = (".config.json", ".config.yml", ".config.yaml", ".yml", ".yaml")


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A source of weights with what it is called.

    Attributes:
        source: Its tensors under our names; `source.config` has `fp8` filled in.
        name: The registered name or the path as given.
    """

    source: WeightSource
    name: str


def open_source(
    model: str | Path,
    *,
    config: StripedHyena2Config | Path | str | None = None,
    allow_inaccurate: bool | None = None,
) -> Opened:
    """Open weights by name or path without reading them.

    Args:
        model: "evo-mini", the name of a released model that has been downloaded, our folder, or a
            released or training checkpoint (`.pt`, whole or in pieces); any of these with
            "+FILE.safetensors" for the model with an adapter (`evo_toolkit.checkpoint.adapter`).
        config: Configuration of a `.pt`, or the file that holds it. By default it lies beside the
            weights as `<stem>.config.json` or `.yml`, or is known from the file's name.
        allow_inaccurate: False refuses weights that would give wrong numbers here, a released
            model already by its name, so that nobody downloads it first; None does not judge.

    Raises:
        CheckpointError: if the weights are absent, damaged, or do not fit.
        InaccurateModelError: with `allow_inaccurate=False`.
        UsageError: if the name is unknown, or a configuration is given for a model that has its own.
        ConfigError: if the configuration is not valid.
    """
    base, adapter = split_adapter(model) if isinstance(model, str) else (model, None)
    if adapter is not None:
        read = read_adapter(adapter)  # before a checksum is made of the weights
        opened = open_source(base, config=config, allow_inaccurate=allow_inaccurate)
        return Opened(source=AdaptedSource(opened.source, read), name=str(model))
    if allow_inaccurate is not None:
        if isinstance(model, str) and model in MODELS:
            refuse_inaccurate(MODELS[model].config, model, allow=allow_inaccurate)
        opened = open_source(model, config=config)
        refuse_inaccurate(opened.source.config, opened.name, allow=allow_inaccurate)
        return opened
    name = str(model)
    if not name:
        raise UsageError(
            "the model's name is empty; give a name (evo-toolkit models list) or a path"
        )
    if isinstance(model, str) and (model in MODELS or model in BUNDLED):
        if config is not None:
            raise UsageError(
                f"{model} has its own configuration; leave config out, or give a path to weights"
            )
        return Opened(source=_open_named(model), name=model)
    path = Path(model)
    if is_checkpoint_directory(path):
        if config is not None:
            raise UsageError(f"{path} has its own {CONFIG}; leave config out")
        return Opened(source=open_checkpoint(path), name=name)
    if path.is_dir():
        return Opened(source=open_checkpoint(path), name=name)  # raises: says what is absent
    pieces = [] if path.is_file() and ".part" not in path.suffix else find_pieces(path)
    if not pieces and not path.is_file():
        looks_like_path = "/" in name or path.suffix in (".pt", ".safetensors")
        if looks_like_path:
            raise CheckpointError(
                f"{name} does not exist; give the path of weights, or a name (evo-toolkit models list)"
            )
        known = name.partition("+")[0]
        if known != name and (known in MODELS or known in BUNDLED):
            raise UsageError(
                f"model {name!r} is {known} with an adapter; name the adapter's file: -m {known} --adapter FILE.safetensors"
            )
        raise UsageError(
            f"model {name!r} is no known name and no path; known are {', '.join([*BUNDLED, *MODELS])}"
        )
    if path.suffix == ".safetensors":
        raise CheckpointError(f"{path} is a file of one of our folders; give the folder")
    source = open_torch_checkpoint(
        merge_pieces(pieces) if pieces else path, config=config, beside=path
    )
    return Opened(source=source, name=name)


def bundled_directory(name: str) -> Path:
    """Where the weights of a bundled model lie, if they are part of this installation."""
    return Path(__file__).resolve().parents[1] / "_models" / name


def _open_named(name: str) -> WeightSource:
    if name in BUNDLED:
        directory = bundled_directory(name)
        if not is_checkpoint_directory(directory):
            raise CheckpointError(
                f"{name} is not part of this installation ({directory} is absent); reinstall evo-toolkit"
            )
        return open_checkpoint(directory)
    path = hub.find(name)
    if path is None:
        raise CheckpointError(
            f"{name} is not on this machine; get it with: evo-toolkit models download {name}"
        )
    return open_torch_checkpoint(path, config=MODELS[name].config, beside=path)


def open_torch_checkpoint(
    path: Path, *, config: StripedHyena2Config | Path | str | None, beside: Path
) -> WeightSource:
    """Open a `.pt` file of either foreign format.

    Args:
        path: The whole file.
        config: As in `open_source`.
        beside: Where a configuration may lie beside, when pieces were joined elsewhere.
    """
    content = read_torch_file(path)
    weights = savanna_weights(content)
    if weights is None and not looks_like_vortex(content):
        some = ", ".join(str(key) for key in list(content)[:3])
        raise CheckpointError(
            f"{path} is not an Evo 2 checkpoint, released or training: its first keys are {some or 'none'}"
        )
    resolved, declared = _configuration(config, beside)
    source = (
        vortex_source(path, content, resolved)
        if weights is None
        else savanna_source(path, weights, resolved)
    )
    source.config = with_fp8(resolved, declared=declared, scales=source.has_fp8_scales)
    return source


def _configuration(
    config: StripedHyena2Config | Path | str | None, beside: Path
) -> tuple[StripedHyena2Config, bool | None]:
    """The configuration, and whether it says that the input projections were trained in FP8."""
    if isinstance(config, StripedHyena2Config):
        return config, None
    if config is not None:
        return read_config(config), _declares_fp8(Path(config))
    stem = Path(re.sub(r"\.part\d+$", "", beside.name)).stem
    for suffix in _CONFIG_SUFFIXES:
        candidate = beside.with_name(stem + suffix)
        if candidate.is_file():
            return read_config(candidate), _declares_fp8(candidate)
    entry = MODELS.get(stem.removeprefix("savanna_"))
    if entry is not None:
        _log.info("%s: configuration of %s, by its file name", beside, entry.config.name)
        return entry.config, None
    raise CheckpointError(
        f"{beside} has no configuration; put it beside as {stem}.config.json or {stem}.config.yml, or give it (config=, --config)"
    )


def _declares_fp8(path: Path) -> bool | None:
    text = path.read_text(encoding="utf-8")
    values: Any
    if path.suffix in (".yml", ".yaml"):
        import yaml

        values = yaml.safe_load(text)
    else:
        values = json.loads(text)
    if "pattern" in values:
        return values["fp8"] != "none" if "fp8" in values else None
    declared = values.get("use_fp8_input_projections")
    return None if declared is None else bool(declared)


def released_twin(config: StripedHyena2Config) -> ModelEntry | None:
    """The released model of the same layers and widths that needs Hopper's FP8, if there is one."""
    for entry in MODELS.values():
        other = entry.config
        same = (other.pattern, other.width, other.mlp_width) == (
            config.pattern, config.width, config.mlp_width,
        )  # fmt: skip
        if same and other.fp8 == "hopper":
            return entry
    return None


def with_fp8(
    config: StripedHyena2Config, *, declared: bool | None, scales: bool
) -> StripedHyena2Config:
    """Fill in that weights of unknown origin need Hopper's FP8, as the released model of their shape does.

    Args:
        declared: What the configuration file says about FP8 projections, or None.
        scales: Whether the weights carry FP8 scales: then they were trained with FP8 projections,
            whatever is declared.
    """
    needs_fp8 = scales or bool(declared)
    if config.fp8 == "none" and needs_fp8 and released_twin(config) is not None:
        return config.replace(fp8="hopper")
    return config


def accuracy_note(config: StripedHyena2Config) -> str | None:
    """What it costs to run these weights without FP8, or None when they are right without it."""
    if config.fp8 != "hopper":
        return None
    twin = released_twin(config)
    cost = FP8_COST.get(config.name) or (FP8_COST.get(twin.config.name) if twin else None)
    return cost or "the cost has not been measured"


def refuse_inaccurate(config: StripedHyena2Config, name: str, *, allow: bool) -> tuple[str, ...]:
    """Refuse weights that would give wrong numbers; with consent, return the remark outputs must carry.

    Raises:
        InaccurateModelError: without consent.
    """
    cost = accuracy_note(config)
    if cost is None:
        return ()
    if not allow:
        raise InaccurateModelError(
            f"{name} was trained with FP8 projections that cannot run as trained yet: {cost}; use evo2_7b, which is right in bf16, or add --allow-inaccurate (allow_inaccurate=True)"
        )
    return (f"inaccurate: {name} runs without the FP8 projections it was trained with: {cost}",)
