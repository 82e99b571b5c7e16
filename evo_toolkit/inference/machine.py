"""What this machine is, and what of the released models it can run."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pysam
import torch

from evo_toolkit._version import __version__
from evo_toolkit.checkpoint.cache import cache_dir
from evo_toolkit.checkpoint.load import total_memory
from evo_toolkit.checkpoint.names import weight_bytes
from evo_toolkit.checkpoint.opening import accuracy_note
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import PrecisionPolicy, resolve_precision

# Peak memory of a forward in values per position, measured on CPUs with the reference operators: a
# mixer holds 20 per channel, in float32 and in the compute dtype, half of each; the MLP three per
# inner and eight per outer channel in the compute dtype. The two are not alive at once.
_MIXER_VALUES = 20
_MLP_INNER_VALUES, _MLP_OUTER_VALUES = 3, 8

_PROC_DRIVER = Path("/proc/driver/nvidia/version")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU that torch can use; memory in bytes.

    Attributes:
        bf16: Has bfloat16 matrix units (compute capability 8.0 or later).
        fp8: Has FP8 matrix units (8.9 or later).
    """

    name: str
    compute_capability: str
    memory: int
    memory_free: int
    bf16: bool
    fp8: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """Versions and resources; memory in bytes.

    Attributes:
        torch_cuda: The CUDA version torch was built with, or None.
        driver: Version of the NVIDIA driver, or None where none is found.
        cores: CPU cores this process may use.
        cpu_bf16: Whether the CPU has bfloat16 matrix units.
        memory: Of the machine, or of this process's control group where that is less.
        memory_available: What of it is free now, or None where that is not known.
        cache: Folder of the toolkit's cache.
        cache_free: Free space there.
        gpus: Those that torch can use.
        gpu_problem: Why torch can use none although there is a driver, or None.
    """

    evo_toolkit: str
    python: str
    system: str
    torch: str
    torch_cuda: str | None
    triton: str | None
    driver: str | None
    pysam: str
    htslib: str
    cores: int
    cpu_bf16: bool
    memory: int
    memory_available: int | None
    cache: str
    cache_free: int
    gpus: tuple[Gpu, ...]
    gpu_problem: str | None


def probe_machine() -> Machine:
    """Look at this machine. Imports nothing that a run would not, and changes nothing."""
    gpus = (
        tuple(_gpu(i) for i in range(torch.cuda.device_count()))
        if torch.cuda.is_available()
        else ()
    )
    driver = _driver_version()
    cache = cache_dir()
    return Machine(
        evo_toolkit=__version__,
        python=platform.python_version(),
        system=platform.platform(),
        torch=str(torch.__version__),
        torch_cuda=torch.version.cuda,
        triton=_installed("triton"),
        driver=driver,
        pysam=pysam.__version__,
        htslib=pysam.version.__htslib_version__,
        cores=_cores(),
        cpu_bf16=resolve_precision("default", torch.device("cpu")).compute_dtype is torch.bfloat16,
        memory=total_memory(torch.device("cpu")),
        memory_available=_memory_available(),
        cache=str(cache),
        cache_free=_free_space(cache),
        gpus=gpus,
        gpu_problem=None if gpus or driver is None else _gpu_problem(),
    )


def _gpu(index: int) -> Gpu:
    properties = torch.cuda.get_device_properties(index)
    capability = (properties.major, properties.minor)
    free, total = torch.cuda.mem_get_info(index)
    return Gpu(
        name=properties.name,
        compute_capability=f"{capability[0]}.{capability[1]}",
        memory=total,
        memory_free=free,
        bf16=capability >= (8, 0),
        fp8=capability >= (8, 9),
    )


def _gpu_problem() -> str:
    if torch.version.cuda is None:
        return "torch was installed without CUDA; install a CUDA build of torch"
    return (
        f"torch, built for CUDA {torch.version.cuda}, cannot use it: the driver may be too old for that, or the "
        "GPU hidden (CUDA_VISIBLE_DEVICES)"
    )


def _driver_version() -> str | None:
    try:
        text = _PROC_DRIVER.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = _nvidia_smi()
    found = re.search(r"\b\d{3,4}\.\d+(?:\.\d+)?\b", text)
    return found[0] if found else None


def _nvidia_smi() -> str:
    program = shutil.which("nvidia-smi")
    if program is None:
        return ""
    try:
        done = subprocess.run(
            [program, "--query-gpu=driver_version", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=20, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


def _installed(package: str) -> str | None:
    if importlib.util.find_spec(package) is None:
        return None
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_available() -> int | None:
    try:
        text = Path("/proc/meminfo").read_text(encoding="utf-8")
    except OSError:
        return None
    found = re.search(r"^MemAvailable:\s+(\d+) kB", text, re.MULTILINE)
    return int(found[1]) * 1024 if found else None


def _free_space(folder: Path) -> int:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, slots=True)
class ModelFit:
    """What one model would need, and whether it would be right, on one device; sizes in bytes.

    Attributes:
        weights: Of the parameters as they are kept for inference.
        working: Estimate of what a forward over one default window needs beside them.
        fits: Whether both fit into the device's memory.
        inaccurate: Why its numbers would be wrong here, or None when they are right.
        most_bases_per_second: Upper bound of the speed of a forward, or None when not measured.
    """

    name: str
    weights: int
    working: int
    memory: int
    window: int
    fits: bool
    inaccurate: str | None
    most_bases_per_second: float | None


def fit_model(
    config: StripedHyena2Config,
    device: torch.device,
    policy: PrecisionPolicy,
    flops: float | None = None,
) -> ModelFit:
    """Compare a model with a device.

    Args:
        config: Of the model.
        device: Where it would run.
        policy: How its numbers would be represented.
        flops: Rate of matrix products on the device in operations per second (`matmul_rate`);
            gives the upper bound of the speed, at two operations per parameter and base.
    """
    weights = weight_bytes(config, policy.compute_dtype.itemsize)
    working = working_bytes(config, policy, config.default_window)
    memory = total_memory(device)
    return ModelFit(
        name=config.name,
        weights=weights,
        working=working,
        memory=memory,
        window=config.default_window,
        fits=weights + working <= memory,
        inaccurate=accuracy_note(config),
        most_bases_per_second=None if flops is None else flops / (2 * config.parameter_count()),
    )


def working_bytes(config: StripedHyena2Config, policy: PrecisionPolicy, positions: int) -> int:
    """Estimate of the memory of one forward beside the weights, for sequences that run at once."""
    size = policy.compute_dtype.itemsize
    mixer = _MIXER_VALUES * config.width * (4 + size) // 2
    mlp = size * (_MLP_INNER_VALUES * config.mlp_width + _MLP_OUTER_VALUES * config.width)
    return positions * max(mixer, mlp)


def matmul_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second that matrix products reach on a device, measured in under a second."""
    size, repeats = (4096, 20) if device.type == "cuda" else (1024, 5)
    generator = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(size, size, device=device, generator=generator).to(dtype) for _ in range(2))
    best = float("inf")
    for _ in range(3):
        _synchronise(device)
        start = time.perf_counter()
        for _ in range(repeats):
            torch.mm(a, b)
        _synchronise(device)
        best = min(best, (time.perf_counter() - start) / repeats)
    return 2.0 * size**3 / best


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
