"""Which device a model runs on."""

from __future__ import annotations

import torch

from evo_toolkit.errors import UsageError


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn "auto", a device string or a device into a device that exists.

    Raises:
        UsageError: if it does not.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError):
        raise UsageError(f"device {device!r} is unknown; use auto, cpu, cuda or cuda:N") from None
    if place.type not in ("cpu", "cuda"):
        raise UsageError(f"device {str(device)!r} is not supported; use auto, cpu, cuda or cuda:N")
    if place.type == "cuda":
        if not torch.cuda.is_available():
            raise UsageError(
                f"device {str(device)!r}: no NVIDIA GPU is usable here; use cpu, or run evo-toolkit doctor"
            )
        count = torch.cuda.device_count()
        if place.index is not None and place.index >= count:
            raise UsageError(
                f"device {str(device)!r}: this machine has {count} GPUs, numbered from 0"
            )
    return place
