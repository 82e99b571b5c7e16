"""Where weights come from: one reader for every format, one tensor at a time.

A reader gives tensors under our names and layouts, each with its own memory, so that a model takes
them over while the file stays memory-mapped: the peak is the model and one tensor.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from evo_toolkit.checkpoint.cache import cached_sha256
from evo_toolkit.errors import CheckpointError
from evo_toolkit.model.config import StripedHyena2Config

# What a weight may be stored as.
WEIGHT_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

_MADV_DONTNEED = 4


class Spec(NamedTuple):
    """Dtype and shape of a tensor that has not been read yet."""

    dtype: torch.dtype
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Origin:
    """The file that weights came from.

    Attributes:
        path: The file.
        recorded: Its SHA-256 where a record of it came with the file.
    """

    path: Path
    recorded: str | None = None

    def sha256(self) -> str:
        """The recorded SHA-256, or else that of the file, computed once and remembered."""
        return self.recorded or cached_sha256(self.path)


class WeightSource(ABC):
    """Weights of one model under our names.

    Attributes:
        path: File or folder they were read from.
        format: "ours", "vortex", "savanna" or "memory".
        config: Configuration that they have been found to fit.
        has_fp8_scales: The file carries FP8 scales of the input projections, which are not read.
    """

    path: Path | None = None
    format: str = "memory"
    config: StripedHyena2Config
    has_fp8_scales: bool = False

    @abstractmethod
    def specs(self) -> dict[str, Spec]:
        """Name to dtype and shape, without reading the weights."""

    @abstractmethod
    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        """One tensor in memory of its own, converted to `dtype` and moved to `device`."""

    @abstractmethod
    def origin(self) -> Origin:
        """The weights' file and its checksum."""

    def iter_tensors(
        self,
        *,
        dtype: Callable[[str], torch.dtype] | None = None,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[str, Tensor]]:
        """Every name and tensor, one at a time; `dtype` gives the wanted dtype of a name."""
        for name in self.specs():
            yield (
                name,
                self.tensor(name, dtype=None if dtype is None else dtype(name), device=device),
            )


class StateDictSource(WeightSource):
    """A state dict in memory."""

    def __init__(self, state_dict: Mapping[str, Tensor], config: StripedHyena2Config) -> None:
        self.config = config
        self._tensors = dict(state_dict)

    def specs(self) -> dict[str, Spec]:
        return {k: Spec(t.dtype, tuple(t.shape)) for k, t in self._tensors.items()}

    def tensor(
        self, name: str, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> Tensor:
        return owned(self._tensors[name].detach(), dtype, device, ())

    def origin(self) -> Origin:
        raise CheckpointError("weights in memory come from no file; save them first")


def owned(
    tensor: Tensor,
    dtype: torch.dtype | None,
    device: torch.device | str,
    borrowed: Sequence[Tensor],
) -> Tensor:
    """Return `tensor` contiguous on `device` in `dtype`, sharing memory with none of `borrowed`."""
    result = tensor.to(device=device, dtype=dtype or tensor.dtype).contiguous()
    address = result.untyped_storage().data_ptr()
    shared = any(address == other.untyped_storage().data_ptr() for other in borrowed)
    return result.clone() if shared else result


class MappedFile:
    """The address ranges at which a file is memory-mapped, so that read pages can be given back.

    Without this, every page that was read counts as resident until memory runs short, and loading
    a model would appear to take twice its size. A system without `/proc` keeps the pages.
    """

    def __init__(self, path: Path) -> None:
        self._ranges: list[tuple[int, int]] = []
        self._madvise: Callable[[int, int, int], int] | None = None
        if not sys.platform.startswith("linux"):
            return
        real = str(path.resolve())
        try:
            lines = Path("/proc/self/maps").read_text(encoding="utf-8").splitlines()
        except OSError:
            return
        for line in lines:
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5] == real:
                start, stop = fields[0].split("-")
                self._ranges.append((int(start, 16), int(stop, 16)))
        madvise = ctypes.CDLL(None).madvise
        madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._madvise = madvise

    def release(self, tensor: Tensor) -> None:
        """Give back the pages of a tensor, if it is a view of this file and of nothing else.

        The tensor stays valid: its pages are read again when they are wanted.
        """
        if self._madvise is None or tensor.device.type != "cpu":
            return
        begin = tensor.data_ptr()
        end = begin + tensor.numel() * tensor.element_size()
        if any(start <= begin and end <= stop for start, stop in self._ranges):
            first, last = (
                -(-begin // mmap.PAGESIZE) * mmap.PAGESIZE,
                end // mmap.PAGESIZE * mmap.PAGESIZE,
            )
            if last > first:
                # MADV_DONTNEED would zero anonymous memory; the ranges are this file's alone.
                self._madvise(first, last - first, _MADV_DONTNEED)


def require_fit(
    problems_missing: Sequence[str],
    problems_shape: Sequence[str],
    *,
    path: Path,
    config: StripedHyena2Config,
) -> None:
    """Raise one CheckpointError that names the first few keys that do not fit.

    Args:
        problems_missing: For each missing tensor, its key and shape.
        problems_shape: For each tensor of a wrong shape or dtype, what it is and should be.
    """
    parts = []
    for problems, what in ((problems_missing, "missing"), (problems_shape, "wrong")):
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            parts.append(f"{what}: {', '.join(problems[:3])}{more}")
    if parts:
        raise CheckpointError(
            f"{path} does not fit the configuration {config.name} ({config.num_layers} layers "
            f"{config.pattern}, width {config.width}): {'; '.join(parts)}; give the configuration that belongs to this file"
        )
