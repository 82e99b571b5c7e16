"""`load_model`: a model from a name or a path, on a device, at a precision."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from evo_toolkit.checkpoint.adapter import AdaptedSource, adapted_digest
from evo_toolkit.checkpoint.cache import cached_sha256
from evo_toolkit.checkpoint.names import rounded_when_released, weight_bytes
from evo_toolkit.checkpoint.opening import Opened, open_source, refuse_inaccurate
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.device import resolve_device as resolve_device
from evo_toolkit.model.precision import PrecisionPolicy, resolve_precision
from evo_toolkit.model.striped_hyena import StripedHyena2

if TYPE_CHECKING:
    from evo_kernels.backend import Backend

_log = logging.getLogger("evo_toolkit")


def load_model(
    source: str | Path,
    *,
    config: StripedHyena2Config | Path | str | None = None,
    device: str | torch.device = "auto",
    precision: str = "default",
    backend: Backend = "auto",
    allow_inaccurate: bool = False,
) -> StripedHyena2:
    """Load a model for inference.

    Weights are read through a memory map, one tensor at a time, straight to their place and dtype.

    Args:
        source: "evo-mini" (bundled), the name of a released model that has been downloaded, our
            folder, or a released or training `.pt`, whole or in pieces; with "+FILE.safetensors"
            for the model with an adapter.
        config: Configuration of a `.pt` when it is not beside it, or the file that holds it.
        device: "auto" (the first GPU, else the CPU), or a torch device.
        precision: "default", "exact" or "vortex".
        backend: Operators: "auto", "triton" or "reference".
        allow_inaccurate: Run weights whose FP8 projections cannot run as trained; the model's
            `notes`, which every output carries, then say what that costs.

    Returns:
        The model in evaluation mode, with `source`, `sha256` (of the weights' file; computed once
        for a `.pt` and remembered in the cache folder) and `notes` set.

    Raises:
        CheckpointError: if the weights are absent, damaged, do not fit the configuration, or do not
            fit into the device's memory.
        InaccurateModelError: if the weights would give wrong numbers here and that is not allowed.
        UsageError: for a device or precision that does not exist.
    """
    opened = open_source(source, config=config, allow_inaccurate=allow_inaccurate)
    return load_opened(
        opened,
        device=device,
        precision=precision,
        backend=backend,
        allow_inaccurate=allow_inaccurate,
    )


def load_opened(
    opened: Opened,
    *,
    device: str | torch.device = "auto",
    precision: str = "default",
    backend: Backend = "auto",
    allow_inaccurate: bool = False,
) -> StripedHyena2:
    """`load_model` for weights that are open already; arguments and errors as there."""
    notes = refuse_inaccurate(opened.source.config, opened.name, allow=allow_inaccurate)
    place = resolve_device(device)
    policy = resolve_precision(precision, place, backend)
    model = build_model(opened, place, policy)
    model.sha256 = opened_digest(opened)
    model.notes = notes
    for note in notes:
        _log.warning("%s", note)
    return model


def opened_digest(opened: Opened) -> str:
    """SHA-256 of the weights' file, compared with the recorded one where there is one.

    Raises:
        CheckpointError: if they differ: outputs name this digest, so it must be the file's.
    """
    source = opened.source
    if isinstance(source, AdaptedSource):
        base = opened_digest(Opened(source=source.base, name=opened.name))
        return adapted_digest(base, source.adapter.digest)
    origin = source.origin()
    found = cached_sha256(origin.path)
    if origin.recorded is not None and found != origin.recorded:
        raise CheckpointError(
            f"{origin.path} has sha256 {found}, on record is {origin.recorded}: it was changed or damaged; get it again"
        )
    return found


def build_model(opened: Opened, device: torch.device, policy: PrecisionPolicy) -> StripedHyena2:
    """Fill a model with the weights of an opened source, without ever holding them twice."""
    weights = opened.source
    with torch.device("meta"):
        model = StripedHyena2(weights.config, policy=policy)
    _require_memory(model, device)
    tensors = {}
    for name, tensor in weights.iter_tensors(dtype=model.storage_dtype, device=device):
        if policy.rounding is not None and rounded_when_released(name):
            tensors[name] = tensor.to(policy.rounding).to(tensor.dtype)
        else:
            tensors[name] = tensor
    model.load_state_dict(tensors, strict=True, assign=True)
    left = [name for name, t in [*model.named_parameters(), *model.named_buffers()] if t.is_meta]
    assert not left, left
    model.source = opened.name
    return model.eval()


def total_memory(device: torch.device) -> int:
    """Bytes of memory of a device; for the CPU, of the machine or of this process's control group."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="utf-8").strip()
    except OSError:
        return total
    return min(total, int(limit)) if limit.isdigit() else total


def _require_memory(model: StripedHyena2, device: torch.device) -> None:
    needed = weight_bytes(model.config, model.policy.compute_dtype.itemsize)
    there = total_memory(device)
    if needed > there:
        raise CheckpointError(
            f"{model.config.name} needs {needed / 1e9:.1f} GB for its weights in {model.policy.describe()}; {device} has {there / 1e9:.1f} GB: use a smaller model or a larger device"
        )
