"""Conversion between checkpoint formats, with an optional comparison of the two models' logits."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch

from evo_data.files import atomic_output
from evo_toolkit.checkpoint.adapter import AdaptedSource
from evo_toolkit.checkpoint.format import Checkpoint, staged_directory, write_checkpoint
from evo_toolkit.checkpoint.load import build_model
from evo_toolkit.checkpoint.opening import Opened, open_source
from evo_toolkit.checkpoint.vortex import to_vortex, vortex_config
from evo_toolkit.errors import CheckpointError, UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import resolve_precision

_log = logging.getLogger("evo_toolkit")

Target = Literal["ours", "vortex"]

# Longer than the Hyena-MR filter (128 taps), so that a wrong tap anywhere shows.
_PROBE_LENGTH = 160


@dataclass(frozen=True, slots=True, kw_only=True)
class Converted:
    """What a conversion did.

    Attributes:
        path: The new checkpoint.
        source_format, target_format: "ours", "vortex" or "savanna".
        max_difference: Largest absolute difference of logits between source and result in float32,
            or None if it was not asked for. A conversion that is right gives exactly 0.
        notes: Remarks for the user.
    """

    path: Path
    source_format: str
    target_format: Target
    max_difference: float | None
    notes: tuple[str, ...]


def convert(
    src: str | Path,
    dst: Path | str,
    *,
    config: StripedHyena2Config | Path | str | None = None,
    to: Target | None = None,
    verify: bool = False,
    force: bool = False,
) -> Converted:
    """Write the weights of `src` in another format; values and dtypes are kept bit for bit.

    Matrices that an adapter changes are written in float32, in which they are what the adapted model
    computes with; the head that an adapter carries is left out.

    Args:
        src: A name or path as `load_model` takes it, with an adapter or without.
        dst: A folder for our format, a `.pt` for the released one, whose configuration is written
            beside it as `<stem>.config.json`.
        config: Configuration of `src`, if it does not lie beside it.
        to: "ours" or "vortex"; by default what the ending of `dst` says.
        verify: Compare the logits of both models on a short input before `dst` appears.
        force: Replace a checkpoint at `dst`.

    Raises:
        CheckpointError: if `src` cannot be read, `dst` exists, or the logits differ.
        UsageError: if `to` is unknown.
    """
    dst = Path(dst)
    target: str = to or ("vortex" if dst.suffix == ".pt" else "ours")
    if target not in ("ours", "vortex"):
        raise UsageError(f"format {target!r} cannot be written; use ours or vortex")
    if target == "vortex" and dst.suffix != ".pt":
        raise UsageError(
            f"{dst} does not end in .pt, as a released checkpoint does; choose another name"
        )
    opened = open_source(src, config=config)
    source = opened.source
    notes = []
    if source.has_fp8_scales:
        notes.append(
            "the FP8 scales of the input projections were not carried over; keep the original for FP8"
        )
    if isinstance(source, AdaptedSource):
        notes.append(
            f"{len(source.adapter.changed())} tensors that the adapter changes are float32, whatever they were"
        )
    writer = _write_ours if target == "ours" else _write_vortex
    difference = None
    with writer(opened, dst, force) as (written, written_config):
        if verify:
            difference = max_logit_difference(opened, open_source(written, config=written_config))
            if difference != 0:
                raise CheckpointError(
                    f"{dst} was not written: its logits would differ from those of {src} by up to {difference:.3g}; this is a defect of evo-toolkit, please report it"
                )
    return Converted(
        path=dst,
        source_format=source.format,
        target_format="ours" if target == "ours" else "vortex",
        max_difference=difference,
        notes=tuple(notes),
    )


# The new weights, and the file of their configuration if it is not beside them.
Written = tuple[Path, Path | None]


@contextmanager
def _write_ours(opened: Opened, dst: Path, force: bool) -> Iterator[Written]:
    source = opened.source
    record: dict[str, Any] = {"source": opened.name, "source_format": source.format}
    if isinstance(source, Checkpoint):
        record = {**source.provenance, "copied_from": opened.name}
    else:
        record |= {"source_sha256": source.origin().sha256(), "date": date.today().isoformat()}
    if isinstance(source, AdaptedSource):
        adapter = source.adapter
        record["adapter"] = {
            "name": adapter.name, "sha256": adapter.digest, "rank": adapter.rank,
            "alpha": adapter.alpha, "trained_on": adapter.model, "training": dict(adapter.training),
        }  # fmt: skip
    with staged_directory(dst, force=force) as staging:
        write_checkpoint(source, staging, record)
        yield staging, None


@contextmanager
def _write_vortex(opened: Opened, dst: Path, force: bool) -> Iterator[Written]:
    beside = dst.with_suffix(".config.json")
    values = vortex_config(opened.source.config)
    with (
        atomic_output(beside, force=force) as config_file,
        atomic_output(dst, force=force, suffix=".pt") as weights,
    ):
        config_file.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        torch.save(to_vortex(opened.source), weights)
        yield weights, config_file


def probe_input(config: StripedHyena2Config) -> torch.Tensor:
    """A fixed sequence of bases, `[1, 160]`, drawn with a seed of its own."""
    length = min(_PROBE_LENGTH, config.context_length)
    generator = torch.Generator().manual_seed(20_240_917)
    bases = torch.tensor(list(b"ACGT"))
    return bases[torch.randint(4, (1, length), generator=generator)]


def max_logit_difference(first: Opened, second: Opened) -> float:
    """Largest absolute difference of logits between two models, in exact precision on the CPU.

    The models are built one after the other; only one is in memory at a time.
    """
    ids = probe_input(first.source.config)
    return float((_logits(first, ids) - _logits(second, ids)).abs().max())


def _logits(opened: Opened, ids: torch.Tensor) -> torch.Tensor:
    device = torch.device("cpu")
    model = build_model(opened, device, resolve_precision("exact", device))
    with torch.no_grad():
        return model(ids)
