"""From a training checkpoint to a model folder that every command takes."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_data.files import sha256_file
from evo_toolkit.checkpoint.format import save_pretrained
from evo_toolkit.errors import CheckpointError
from evo_toolkit.finetuning.adapters import adapter_from
from evo_toolkit.inference.head_files import fit_name
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.training.checkpointing import read_training_checkpoint, resolve_checkpoint

_PREFIX = "objective.model."
_LOG_RATE = ".parametrizations.log_poles.original"
# As module.STATE_KEY; that module imports Lightning's trainer, which an export has no need of.
_STATE_KEY = "evo_toolkit"


def export_checkpoint(
    checkpoint: Path | str,
    output: Path | str,
    *,
    name: str | None = None,
    float32: bool = False,
    notes: str | None = None,
    force: bool = False,
) -> StripedHyena2Config:
    """Write the weights of a training checkpoint in our format, with where they come from.

    Of a run that trained an adapter on a language model, the adapter.

    Args:
        checkpoint: A `step-N.ckpt`, or a run's folder for its last one.
        output: Folder to write, whole or not at all; an adapter's file, ending in .safetensors.
        name: What outputs call the model.
        float32: Keep all tensors in float32; else projections, embedding and norms are bfloat16 and
            what belongs to mixers float32.
        notes: A remark for the provenance.
        force: Replace a model that is there.

    Returns:
        The model's configuration.

    Raises:
        CheckpointError: if the checkpoint cannot be read, or the folder exists.
    """
    path = resolve_checkpoint(Path(checkpoint))
    values = read_training_checkpoint(path)
    own = values.get(_STATE_KEY)
    if not isinstance(own, dict) or "config" not in own:
        raise CheckpointError(f"{path} is not a checkpoint of evo-toolkit train")
    config = StripedHyena2Config.from_dict(own["config"])
    if name is not None:
        config = config.replace(name=name)
    finetune = own.get("finetune")
    if finetune is not None:
        return _export_adapter(path, values, finetune, config, Path(output), name, notes, force)
    state = model_state(values["state_dict"])
    stored = {
        key: tensor.to(torch.float32 if float32 or ".mixer." in key else torch.bfloat16)
        for key, tensor in state.items()
    }
    provenance: dict[str, Any] = {
        "source": "trained with evo-toolkit train",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": _training(path, values, own),
    }
    if notes:
        provenance["notes"] = notes
    save_pretrained(stored, config, output, provenance=provenance, force=force)
    return config


def _training(path: Path, values: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint says of its run."""
    return {
        "steps": values["global_step"],
        "tokens": own["tokens"],
        "seed": own["seed"],
        "precision": own["policy"],
        "started_from": own["started_from"],
        "checkpoint": path.name,
        "checkpoint_sha256": sha256_file(path),
        "trained_with_evo_toolkit": own["version"],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "data": own.get("data"),
        "hardware": own.get("hardware"),
        "optimizer": own.get("optimizer"),
        "schedule": own.get("schedule"),
    }


def _export_adapter(
    path: Path,
    values: dict[str, Any],
    finetune: dict[str, Any],
    config: StripedHyena2Config,
    output: Path,
    name: str | None,
    notes: str | None,
    force: bool,
) -> StripedHyena2Config:
    state = values["state_dict"]
    if finetune["method"] != "lora" or "network" in finetune:
        raise CheckpointError(
            f"{path} is of a run on labelled sequences, which writes head, adapter or model into its own folder when it ends; go on with --ckpt_path last until then"
        )
    if output.suffix != ".safetensors":
        raise CheckpointError(
            f"{path} is of a run that trained an adapter; give a file that ends in .safetensors, not {output}"
        )
    rank = int(finetune["adapter"]["rank"])
    alpha = finetune["adapter"]["alpha"]
    training = _training(path, values, values[_STATE_KEY])
    adapter_from(
        {key.removeprefix(_PREFIX): tensor for key, tensor in state.items()},
        name=fit_name(name or output.stem), rank=rank, alpha=2.0 * rank if alpha is None else alpha,
        base=(finetune["base"]["name"], finetune["base"]["sha256"]),
        training={**training, **({"notes": notes} if notes else {})},
    ).save(output, force=force)  # fmt: skip
    return config


def model_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of `StripedHyena2.state_dict()` from those of a run: poles from their log rates."""
    result = {}
    for key, tensor in state.items():
        if not key.startswith(_PREFIX):
            raise CheckpointError(f"the checkpoint holds {key}, which is no part of a model")
        name = key.removeprefix(_PREFIX)
        if name.endswith(_LOG_RATE):
            result[name.removesuffix(_LOG_RATE) + ".log_poles"] = -tensor.exp()
        else:
            result[name] = tensor
    return result
