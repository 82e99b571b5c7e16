"""Launch configurations: one checked-in table per device class, no tuning at run time.

A kernel is registered with a `default`, chosen on an H200, and with a configuration for every device
class that was measured to want another one: none so far. Nothing is timed while a user waits, so every
rank, run and resume launches the same code and results do not depend on what else a GPU was doing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import torch

from evo_kernels.errors import KernelError

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class KernelConfig:
    """How one kernel is launched.

    Attributes:
        constants: Compile-time sizes of the kernel, by the names of its parameters.
        num_warps: Warps per program.
        num_stages: Depth of software pipelining; 1 means none.
        max_registers: Of a thread, so that more programs share a multiprocessor; None leaves it to
            the compiler.
    """

    constants: Mapping[str, int] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 1
    max_registers: int | None = None

    def launch_arguments(self) -> dict[str, Any]:
        """Keyword arguments for a Triton launch."""
        limit = {} if self.max_registers is None else {"maxnreg": self.max_registers}
        return {
            **self.constants,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            **limit,
        }


def on_its_device(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function that launches kernels with its first argument's GPU as the current one.

    Triton launches on the current device, whatever its arguments' is.
    """

    @functools.wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        first = args[0]
        assert isinstance(first, torch.Tensor)
        with torch.cuda.device_of(first):
            return function(*args, **kwargs)

    return wrapped


def on_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the CPU on another device, by a copy that waits for nothing."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


_TABLE: dict[str, dict[str, KernelConfig]] = {}
_OVERRIDES: dict[str, KernelConfig] = {}


def register(kernel: str, by_device_class: Mapping[str, KernelConfig]) -> None:
    """Add a kernel to the table.

    Args:
        kernel: Name, such as `hyena_se_forward`.
        by_device_class: Configurations by device class (`sm_90`); must hold `default`.
    """
    if "default" not in by_device_class:
        raise KernelError(f"{kernel} has no default configuration; register one")
    _TABLE[kernel] = dict(by_device_class)


@functools.cache
def _class_of(index: int) -> str:
    major, minor = torch.cuda.get_device_capability(index)
    return f"sm_{major}{minor}"


def device_class(device: torch.device) -> str:
    """`sm_90` and the like for CUDA devices, `default` for others."""
    if device.type != "cuda":
        return "default"
    return _class_of(torch.cuda.current_device() if device.index is None else device.index)


def select(kernel: str, device: torch.device) -> KernelConfig:
    """The configuration with which `kernel` runs on `device`."""
    if kernel in _OVERRIDES:
        return _OVERRIDES[kernel]
    table = _TABLE[kernel]
    return table.get(device_class(device), table["default"])


def registered() -> dict[str, dict[str, KernelConfig]]:
    """A copy of the whole table: kernel name to device class to configuration."""
    return {kernel: dict(configs) for kernel, configs in _TABLE.items()}


@contextmanager
def override(kernel: str, config: KernelConfig) -> Iterator[None]:
    """Launch `kernel` with another configuration inside the block (tests, benchmarks)."""
    if kernel not in _TABLE:
        raise KernelError(f"no kernel is called {kernel!r}; there are {', '.join(sorted(_TABLE))}")
    before = _OVERRIDES.get(kernel)
    _OVERRIDES[kernel] = config
    try:
        yield
    finally:
        if before is None:
            del _OVERRIDES[kernel]
        else:
            _OVERRIDES[kernel] = before
