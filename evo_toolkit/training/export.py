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

    Args:
        checkpoint: A `step-N.ckpt`, or a run's folder for its last one.
        output: Folder to write, whole or not at all.
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
    state = model_state(values["state_dict"])
    stored = {
        key: tensor.to(torch.float32 if float32 or ".mixer." in key else torch.bfloat16)
        for key, tensor in state.items()
    }
    provenance: dict[str, Any] = {
        "source": "trained with evo-toolkit train",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "training": {
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
        },
    }
    if notes:
        provenance["notes"] = notes
    save_pretrained(stored, config, output, provenance=provenance, force=force)
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
