"""What an output says about the run that made it, in its header or in a file beside it."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pysam
import torch

from evo_data.fasta import Fasta
from evo_data.files import atomic_output, file_digest
from evo_toolkit._version import __version__
from evo_toolkit.checkpoint.cache import cached_md5, cached_sha256
from evo_toolkit.variants.run import genome_digest
from evo_toolkit.variants.scores import RunInfo
from evo_toolkit.variants.summary import Summary

if TYPE_CHECKING:
    from evo_toolkit.checkpoint.opening import Opened
    from evo_toolkit.model.striped_hyena import StripedHyena2


def describe_run(
    model: StripedHyena2, genome: Fasta, *, note: str | None = None, **options: object
) -> dict[str, object]:
    """Version, model, genome, and the options that are not None, as plain JSON values.

    Args:
        note: A remark that readers of the output must see, beside the model's own.
    """
    notes = [*model.notes, *([note] if note else [])]
    found: dict[str, object] = {
        "version": __version__,
        "model": model.config.name,
        "model_sha256": model.sha256,
        "precision": model.policy.describe(),
        "device": str(model.device),
        "genome": str(genome.path),
        "genome_contigs_sha256": genome_digest(genome),
        **options,
        "notes": notes or None,
    }
    return {key: value for key, value in found.items() if value is not None}


# Smaller files are read faster than their checksum is looked up.
_REMEMBERED = 64 << 20


def manifest_path(output: Path | str) -> Path:
    """Where the manifest of an output lies."""
    target = Path(os.path.realpath(output))
    return target.with_name(target.name + ".manifest.json")


def file_entry(path: Path | str) -> dict[str, str]:
    """Name and sha256 of a file."""
    large = Path(path).stat().st_size > _REMEMBERED
    digest = cached_sha256(Path(path)) if large else file_digest(path, "sha256")
    return {"file": os.fspath(path), "sha256": digest}


def genome_entry(genome: Fasta) -> dict[str, str]:
    """Name and MD5 of a genome's file, and the digest of its contigs."""
    large = genome.path.stat().st_size > _REMEMBERED
    digest = cached_md5(genome.path) if large else file_digest(genome.path, "md5")
    return {
        "file": os.fspath(genome.path),
        "md5": digest,
        "contigs_sha256": genome_digest(genome),
    }


def options_entry(options: Mapping[str, object]) -> dict[str, Any]:
    """Options as plain JSON values; the names of files with their digests.

    Args:
        options: By the name that the user knows.
    """
    return {name: _option(value) for name, value in sorted(options.items())}


def _option(value: object) -> Any:
    if isinstance(value, list | tuple):
        return [_option(item) for item in value]
    if isinstance(value, str | Path) and Path(value).is_file():
        return file_entry(value)
    return os.fspath(value) if isinstance(value, Path) else value


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    return {
        "evo_toolkit": __version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        **({} if torch.version.cuda is None else {"cuda": torch.version.cuda}),
        "triton": _version_of("triton"),
        "numpy": _version_of("numpy"),
        "pysam": pysam.__version__,
        "htslib": pysam.version.__htslib_version__,
    }


def _version_of(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def device_name(device: str) -> str:
    """The kind of a device: "cpu", or what its maker calls the GPU."""
    from evo_toolkit.checkpoint.load import resolve_device

    place = resolve_device(device)
    return torch.cuda.get_device_name(place) if place.type == "cuda" else place.type


def run_identity(
    opened: Opened,
    genome: Fasta,
    variants: str | Path | None,
    *,
    device: str,
    options: Mapping[str, object],
    shard: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """What decides the scores of a run, as plain JSON values.

    Args:
        opened: The weights.
        variants: The file, "-" for stdin; None for variants that are among the options.
        device: As for `evo_toolkit.load_model`.
        options: As for `options_entry`.
        shard: Number and parts of the input, if only one of them is scored.
    """
    from evo_toolkit.checkpoint.load import opened_digest

    source: Any = None
    if variants is not None:
        # A stream is compared record by record, where chunks are taken from an earlier run.
        source = file_entry(variants) if Path(variants).is_file() else "a stream"
    return {
        "versions": versions(),
        "variants": source,
        "genome": genome_entry(genome),
        "model": {"file": opened.name, "sha256": opened_digest(opened)},
        "device": device_name(device),
        "options": options_entry(options),
        "shard": None if shard is None else f"{shard[0]}/{shard[1]}",
    }


def write_manifest(
    output: Path | str,
    identity: Mapping[str, Any],
    info: RunInfo,
    summary: Summary,
    *,
    format: str,
    force: bool,
    more: Mapping[str, Any],
) -> Path:
    """Write what an output's reader may want to know, and what merging shards needs, beside it.

    Args:
        output: The finished output.
        identity: As `run_identity` gives.
        format: Of the output.
        force: Whether an older manifest may be replaced.
        more: Further items.

    Returns:
        The manifest's path.
    """
    path = manifest_path(output)
    content = {
        **identity,
        "command": info.command,
        "run": {
            key: value for key, value in dataclasses.asdict(info).items() if key != "command"
        },
        "output": {**file_entry(output), "format": format},
        "counts": {
            "records": summary.num_records,
            "filtered": summary.num_filtered,
            "alleles": summary.num_alleles,
            "by_status": {str(status): n for status, n in sorted(summary.by_status.items())},
            "by_flag": dict(sorted(summary.by_flag.items())),
        },
        **more,
    }  # fmt: skip
    with atomic_output(path, force=force) as temporary:
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return path
