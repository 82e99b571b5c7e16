"""Which implementation of an operator runs: one argument, resolved in one place, logged once."""

from __future__ import annotations

import functools
import importlib.util
import logging
import os
from typing import Literal

import torch
from torch import Tensor

from evo_kernels.errors import KernelError, KernelUnavailableError

Backend = Literal["auto", "triton", "reference"]

# The second and third dimension of a grid of programs.
_MAX_SEQUENCES = 65535

_log = logging.getLogger("evo_kernels")


@functools.cache
def _say(operator: str, device: str, chosen: str, reason: str) -> None:
    _log.info("%s on %s: %s%s", operator, device, chosen, f" ({reason})" if reason else "")


def interpreting() -> bool:
    """Whether Triton kernels run in the interpreter (`TRITON_INTERPRET=1`), on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


# Once and here: a compiled graph cannot look for a package.
_HAS_TRITON = importlib.util.find_spec("triton") is not None


@functools.cache
def _capability(index: int) -> tuple[int, int]:
    return torch.cuda.get_device_capability(index)


def _why_no_triton(x: Tensor) -> str:
    """Why Triton kernels cannot run on this tensor's device, or ""."""
    if not _HAS_TRITON:
        return "triton is not installed"
    if interpreting():
        return "" if x.device.type == "cpu" else "TRITON_INTERPRET is set"
    if x.device.type != "cuda" or torch.version.hip is not None:
        return f"kernels need an NVIDIA GPU, not {x.device.type}"
    if x.shape[0] > _MAX_SEQUENCES and x.dim() > 2:
        return f"a batch of {x.shape[0]} is over {_MAX_SEQUENCES}"
    index = torch.cuda.current_device() if x.device.index is None else x.device.index
    if _capability(index) < (8, 0):
        return "kernels need compute capability 8.0 or later"
    return ""


def resolve(
    operator: str,
    backend: Backend,
    x: Tensor,
    *,
    unsupported: str = "",
    rounding: torch.dtype | None = None,
) -> Literal["triton", "reference"]:
    """Return the implementation to use.

    "auto" takes the Triton kernel for bfloat16 and float16 inputs on CUDA devices of compute
    capability 8.0 or later, and the twin elsewhere: float32 inputs ask for float32 products, which
    the kernels' tensor-core operands do not give.

    Args:
        operator: Name of the operator, for messages.
        backend: "reference", "triton" (never falls back), or "auto".
        x: The main input; its device and dtype decide.
        unsupported: Why the kernel cannot run these sizes, or "".
        rounding: A rounding dtype asks for the released rounding points: the twin has them.

    Raises:
        KernelUnavailableError: for "triton" where the kernel cannot run.
        KernelError: for an unknown backend.
    """
    if backend not in ("auto", "triton", "reference"):
        raise KernelError(f'backend is {backend!r}; use "auto", "triton" or "reference"')
    if backend == "reference" or (backend == "auto" and rounding is not None):
        return "reference"
    reason = unsupported or _why_no_triton(x)
    if not reason and x.dtype not in (torch.bfloat16, torch.float16, torch.float32):
        reason = f"{str(x.dtype).removeprefix('torch.')} inputs take the reference"
    if not reason and rounding is not None:
        reason = "the released rounding points exist in the reference alone"
    if backend == "triton":
        if reason:
            raise KernelUnavailableError(
                f'{operator} cannot run its Triton kernel: {reason}; use backend="auto" or "reference"'
            )
        return "triton"
    if not reason and x.dtype == torch.float32:
        reason = "float32 inputs"
    if not reason and interpreting():
        reason = "the interpreter is for tests"
    chosen: Literal["triton", "reference"] = "reference" if reason else "triton"
    if not torch.compiler.is_compiling():  # a log line would break the graph
        _say(operator, x.device.type, chosen, reason)
    return chosen
