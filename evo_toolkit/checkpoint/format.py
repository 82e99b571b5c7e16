"""Our own checkpoints: a folder of `model.safetensors`, `config.json` and `provenance.json`.

`format_version: 1`, kept in `config.json`, stands for the names and layouts of `names.py`. One
safetensors file holds a model of any size; the format's limit is 2^63 bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from evo_data.files import sha256_file, sync
from evo_toolkit._version import __version__
from evo_toolkit.checkpoint.names import tensor_shapes
from evo_toolkit.checkpoint.source import (
    WEIGHT_DTYPES,
    MappedFile,
    Origin,
    Spec,
    StateDictSource,
    WeightSource,
    owned,
    require_fit,
)
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config, read_config

FORMAT_VERSION = 1
WEIGHTS, CONFIG, PROVENANCE = "model.safetensors", "config.json", "provenance.json"

_DTYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
}
_DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


class Checkpoint(WeightSource):
    """An opened folder; weights stay on disk, memory-mapped, until they are asked for.

    Attributes:
        directory: The folder.
        provenance: Content of `provenance.json`: source, sha256, evo_toolkit, date, training, notes.
    """

    format = "ours"

    def __init__(
        self, directory: Path, config: StripedHyena2Config, provenance: dict[str, Any]
    ) -> None:
        self.directory = directory
        self.path = directory
        self.config = config
        self.provenance = provenance
        weights = directory / WEIGHTS
        try:
            self._file = safetensors.safe_open(str(weights), framework="pt", device="cpu")
            slices = {name: self._file.get_slice(name) for name in self._file.keys()}  # noqa: SIM118 - not a dict
            found = {k: (s.get_dtype(), tuple(s.get_shape())) for k, s in slices.items()}
        except Exception as error:  # noqa: BLE001 - a damaged file can fail the parser anywhere
            raise CheckpointError(
                f"{weights} cannot be read ({error}); it is truncated or damaged: copy or download it again"
            ) from None
        self._mapping = MappedFile(weights)
        self._specs = self._check(found)

    def _check(self, found: dict[str, tuple[str, tuple[int, ...]]]) -> dict[str, Spec]:
        wanted = tensor_shapes(self.config)
        missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in found]
        wrong = []
        for name, (dtype, shape) in found.items():
            if name not in wanted:
                wrong.append(f"{name} is not a tensor of this model")
            elif dtype not in _DTYPES:
                wrong.append(f"{name} is {dtype}, wanted {', '.join(_DTYPES)}")
            elif shape != wanted[name]:
                wrong.append(f"{name} is {list(shape)}, wanted {list(wanted[name])}")
        require_fit(missing, wrong, path=self.directory / WEIGHTS, config=self.config)
        return {name: Spec(_DTYPES[found[name][0]], found[name][1]) for name in wanted}

    def specs(self) -> dict[str, Spec]:
        return dict(self._specs)

    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        mapped = self._file.get_tensor(name)
        result = owned(mapped, dtype, device, (mapped,))
        self._mapping.release(mapped)
        return result

    def origin(self) -> Origin:
        """The weights' file with the SHA-256 recorded when it was written; `verify` computes it."""
        return Origin(self.directory / WEIGHTS, str(self.provenance["sha256"]))

    def verify(self) -> None:
        """Compare the weights' checksum with the recorded one.

        Raises:
            CheckpointError: if they differ.
        """
        origin = self.origin()
        found = sha256_file(origin.path)
        if found != origin.recorded:
            raise CheckpointError(
                f"{origin.path} has sha256 {found}, {PROVENANCE} says {origin.recorded}: it was changed or damaged; get it again"
            )


def is_checkpoint_directory(directory: Path) -> bool:
    """Whether the folder holds the two files that make one of our checkpoints."""
    return (directory / CONFIG).is_file() and (directory / WEIGHTS).is_file()


def open_checkpoint(directory: Path | str, *, verify: bool = False) -> Checkpoint:
    """Open one of our folders; weights are read when asked for.

    Args:
        verify: Also compute the checksum of the weights, which reads the whole file.

    Raises:
        CheckpointError: if files are missing or damaged, the format is newer than this version, or
            the tensors do not fit the configuration.
        ConfigError: if `config.json` is not a valid configuration.
    """
    directory = Path(directory)
    for name in (CONFIG, WEIGHTS, PROVENANCE):
        if not (directory / name).is_file():
            raise CheckpointError(
                f"{directory} has no {name}; a checkpoint folder holds {WEIGHTS}, {CONFIG} and {PROVENANCE}"
            )
    version = _read_json(directory / CONFIG).get("format_version")
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{directory / CONFIG} has format_version {version!r}; this evo_toolkit {__version__} reads {FORMAT_VERSION}: upgrade evo_toolkit, or convert the original again"
        )
    provenance = _read_json(directory / PROVENANCE)
    digest = provenance.get("sha256")
    if not (isinstance(digest, str) and len(digest) == 64):
        raise CheckpointError(
            f"{directory / PROVENANCE} has no sha256 of the weights; get it again"
        )
    checkpoint = Checkpoint(directory, read_config(directory / CONFIG), provenance)
    if verify:
        checkpoint.verify()
    return checkpoint


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"cannot read {path}: {error}") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} holds a {type(values).__name__}, not keys and values")
    return values


def save_pretrained(
    state_dict: Mapping[str, Tensor],
    config: StripedHyena2Config,
    directory: Path | str,
    *,
    provenance: Mapping[str, Any],
    force: bool = False,
) -> Path:
    """Write a state dict as one of our folders, whole or not at all.

    Args:
        state_dict: As `StripedHyena2.state_dict()`; each tensor is stored in the dtype it has.
        provenance: At least `source`, where the weights come from; further `date`, `training`,
            `notes` or whatever should be kept. `sha256` and `evo_toolkit` are added.
        force: Replace a checkpoint that is there.

    Returns:
        The folder.

    Raises:
        CheckpointError: if tensors do not fit the configuration, or the folder exists.
    """
    source = StateDictSource(state_dict, config)
    with staged_directory(Path(directory), force=force) as staging:
        write_checkpoint(source, staging, provenance)
    return Path(directory)


def write_checkpoint(source: WeightSource, directory: Path, provenance: Mapping[str, Any]) -> str:
    """Write the three files into an existing folder, one tensor in memory at a time.

    Returns:
        The SHA-256 of the weights' file.
    """
    if not provenance.get("source"):
        raise CheckpointError("provenance has no source; say where the weights come from")
    digest = write_safetensors(source, directory / WEIGHTS)
    config = {"format_version": FORMAT_VERSION, **source.config.to_dict()}
    record = {**provenance, "sha256": digest, "evo_toolkit": __version__}
    for name, values in ((CONFIG, config), (PROVENANCE, record)):
        (directory / name).write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    return digest


def write_safetensors(source: WeightSource, path: Path) -> str:
    """Write all tensors to a safetensors file, streaming; return its SHA-256.

    Raises:
        CheckpointError: if the tensors do not fit the source's configuration.
    """
    specs = source.specs()
    wanted = tensor_shapes(source.config)
    missing = [f"{name} {list(shape)}" for name, shape in wanted.items() if name not in specs]
    wrong = [
        f"{name} is {list(spec.shape)} {spec.dtype}, wanted {list(wanted.get(name, ()))}"
        for name, spec in specs.items()
        if spec.shape != wanted.get(name) or spec.dtype not in WEIGHT_DTYPES
    ]
    require_fit(missing, wrong, path=source.path or path, config=source.config)
    # Wider dtypes first, so that every tensor is aligned to its own elements.
    order = sorted(specs, key=lambda name: (-specs[name].dtype.itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name in order:
        dtype, shape = specs[name]
        size = dtype.itemsize * torch.Size(shape).numel()
        header[name] = {
            "dtype": _DTYPE_NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as handle:

        def put(data: bytes | memoryview) -> None:
            handle.write(data)
            digest.update(data)

        put(len(text).to_bytes(8, "little") + text)
        for name in order:
            tensor = source.tensor(name)
            assert Spec(tensor.dtype, tuple(tensor.shape)) == specs[name], name
            put(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def staged_directory(directory: Path, *, force: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `directory` that takes its name when the block succeeds.

    Files are on disk before the name appears. With `force` an older checkpoint is replaced, but
    never a folder that holds anything else.

    Raises:
        CheckpointError: if the folder exists and may not be replaced, or cannot be written.
    """
    directory = Path(os.path.abspath(directory))  # noqa: PTH100 - a link stays a link
    _check_replaceable(directory, force)
    suffix = secrets.token_hex(6)
    staging = directory.with_name(f".{directory.name}.{suffix}.tmp")
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
    except OSError as error:
        raise CheckpointError(
            f"cannot write {directory}: {error.strerror}; choose another folder"
        ) from None
    try:
        yield staging
        for path in [*staging.iterdir(), staging]:
            sync(path)
        _check_replaceable(directory, force)
        if directory.exists():
            old = directory.with_name(f".{directory.name}.{suffix}.old")
            directory.rename(old)
            staging.rename(directory)
            shutil.rmtree(old)
        else:
            staging.rename(directory)
        sync(directory.parent)
    except OSError as error:
        raise CheckpointError(f"cannot write {directory}: {error.strerror or error}") from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _check_replaceable(directory: Path, force: bool) -> None:
    if not directory.exists() and not directory.is_symlink():
        return
    if not directory.is_dir() or directory.is_symlink():
        raise CheckpointError(f"{directory} exists and is not a folder; choose another name")
    foreign = sorted({p.name for p in directory.iterdir()} - {WEIGHTS, CONFIG, PROVENANCE})
    if foreign:
        raise CheckpointError(
            f"{directory} exists and holds {foreign[0]}, which is no part of a checkpoint; choose another name"
        )
    if not force and any(directory.iterdir()):
        raise CheckpointError(f"{directory} exists; choose another name or give --force")
