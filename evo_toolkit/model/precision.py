"""The precision argument: what `default`, `exact` and `vortex` mean on a device, resolved in one place."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from evo_kernels.backend import Backend
from evo_toolkit.errors import UsageError

Precision = Literal["default", "exact", "vortex"]
PRECISIONS: tuple[Precision, ...] = ("default", "exact", "vortex")

_log = logging.getLogger("evo_toolkit")


@dataclass(frozen=True, slots=True, kw_only=True)
class PrecisionPolicy:
    """How numbers are represented in one model.

    Attributes:
        name: What was asked for.
        compute_dtype: Dtype of the residual stream and of every projection. The operators
            accumulate in float32; final norm, head and log-softmax are float32 except in `vortex`.
        rounding: Dtype through which operators, norms and logits round where the released
            implementation does, or None.
        full_float32: Forbid reduced-precision float32 matrix products (TF32).
        backend: Which operators run.
    """

    name: Precision
    compute_dtype: torch.dtype
    rounding: torch.dtype | None = None
    full_float32: bool = False
    backend: Backend = "auto"

    def describe(self) -> str:
        """For logs and manifests, e.g. `default (bfloat16 blocks, float32 head)`."""
        dtype = str(self.compute_dtype).removeprefix("torch.")
        head = dtype if self.rounding is not None else "float32"
        return f"{self.name} ({dtype} blocks, {head} head)"


def _cpu_has_bf16_matrix_units() -> bool:
    try:
        return " amx_bf16" in Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return False


def resolve_precision(
    precision: str, device: torch.device, backend: Backend = "auto"
) -> PrecisionPolicy:
    """Turn the precision argument into a policy for a device.

    `default` is bfloat16 blocks on GPUs of compute capability 8.0 or later and on CPUs with bf16
    matrix units, float32 elsewhere; `exact` is float32 with the reference operators everywhere;
    `vortex` reproduces the rounding points of the released implementation in bfloat16.

    Raises:
        UsageError: for another name.
    """
    if precision == "exact":
        policy = PrecisionPolicy(
            name="exact", compute_dtype=torch.float32, full_float32=True, backend="reference"
        )
    elif precision == "vortex":
        policy = PrecisionPolicy(
            name="vortex",
            compute_dtype=torch.bfloat16,
            rounding=torch.bfloat16,
            full_float32=True,
            backend="reference",
        )
    elif precision == "default":
        if device.type == "cuda":
            bf16 = torch.cuda.get_device_capability(device) >= (8, 0)
        else:
            bf16 = device.type == "cpu" and _cpu_has_bf16_matrix_units()
        policy = PrecisionPolicy(
            name="default",
            compute_dtype=torch.bfloat16 if bf16 else torch.float32,
            backend=backend,
        )
    else:
        raise UsageError(f"precision {precision!r} is unknown; use one of {', '.join(PRECISIONS)}")
    _log.debug("precision on %s: %s", device, policy.describe())
    return policy


@contextmanager
def products_as_released(policy: PrecisionPolicy, device: torch.device) -> Iterator[None]:
    """Matrix products as the policy wants them inside the block.

    Under a rounding policy the CPU uses torch's native bfloat16 product instead of oneDNN's, whose
    other order of summation flips roundings that the released implementation does not.
    """
    with float32_products(policy.full_float32):
        if policy.rounding is None or device.type != "cpu":
            yield
            return
        with warnings.catch_warnings():
            # Setting oneDNN's flags warns about Intel GPUs.
            warnings.filterwarnings("ignore", message="TF32 acceleration")
            flags = torch.backends.mkldnn.flags(enabled=False)
            with flags:
                yield


@contextmanager
def float32_products(full: bool) -> Iterator[None]:
    """Keep float32 matrix products in float32 (no TF32) inside the block when `full`."""
    matmul = torch.backends.cuda.matmul
    before = matmul.fp32_precision
    if not full or before == "ieee":
        yield
        return
    matmul.fp32_precision = "ieee"
    try:
        yield
    finally:
        matmul.fp32_precision = before
