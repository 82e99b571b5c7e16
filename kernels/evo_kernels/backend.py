"""Which implementation of an operator runs: one argument, resolved in one place, logged once."""

from __future__ import annotations

import functools
import logging
from typing import Literal

from evo_kernels.errors import KernelError, KernelUnavailableError

Backend = Literal["auto", "triton", "reference"]

_log = logging.getLogger("evo_kernels")


@functools.cache
def _say(operator: str, device: str, chosen: str) -> None:
    _log.info("%s on %s: %s", operator, device, chosen)


def resolve(operator: str, backend: Backend, device_type: str) -> Literal["reference"]:
    """Return the implementation to use.

    Args:
        operator: Name of the operator, for messages.
        backend: "reference", "triton", or "auto" (the fastest that exists for the device).
        device_type: Type of the inputs' device, such as "cpu" or "cuda".

    Raises:
        KernelUnavailableError: for "triton", which never falls back: no operator has a Triton
            kernel in this version.
        KernelError: for an unknown backend.
    """
    if backend == "triton":
        raise KernelUnavailableError(
            f'{operator} has no Triton kernel in this version; use backend="auto" or "reference"'
        )
    if backend not in ("auto", "reference"):
        raise KernelError(f'backend is {backend!r}; use "auto", "triton" or "reference"')
    _say(operator, device_type, "reference")
    return "reference"
