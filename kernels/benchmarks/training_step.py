"""Forward and backward of a named model's shape beside a Transformer of the same shape, in one run.

    python kernels/benchmarks/training_step.py --model evo2_7b_base

The Transformer has attention in every layer and is the same otherwise: width, MLP, norms, rotary
positions, attention kernel, compiled blocks, and activations kept between blocks alone
(`checkpoint_blocks=1`). Both have random weights in bfloat16 and the training loss; no optimizer. The
Transformer is timed with our kernels for norms and gates and with plain operators that torch.compile
fuses, and the faster counts. Where a whole Transformer would take minutes (`--partial`), two and four
of its layers are timed and the rest is added in proportion, and the line says so.
"""

from __future__ import annotations

import argparse
import dataclasses
import platform
import statistics
import time

import torch
from torch import Tensor

from evo_kernels.backend import Backend
from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.loss import NextTokenObjective


@dataclasses.dataclass(frozen=True)
class Step:
    """Seconds of one forward and backward, and the peak of device memory in bytes."""

    seconds: float
    peak: int


def objective(
    config: StripedHyena2Config,
    device: torch.device,
    backend: Backend,
    compiled: bool,
    precision: str = "default",
) -> NextTokenObjective:
    """A model with random weights and its training loss, in the dtypes of inference."""
    policy = resolve_precision(precision, device, backend)
    with torch.device("meta"):
        model = StripedHyena2(config, policy=policy)
    generator = torch.Generator(device=device).manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for key, meta in model.state_dict().items():
        values = torch.randn(meta.shape, generator=generator, device=device) * 0.02
        if key.endswith("log_poles"):
            values = -values.abs() - 1e-3
        tensors[key] = values.to(model.storage_dtype(key))
    model.load_state_dict(tensors, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    if compiled:
        torch._dynamo.reset()
        torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 64)
        for block in model.blocks:
            block.compile(dynamic=False)
    return NextTokenObjective(model, checkpoint_blocks=1)


def time_step(trained: NextTokenObjective, rows: int, length: int, repeats: int) -> Step:
    """Median of `repeats` steps after one that is not counted."""
    device = trained.model.device
    cuda = device.type == "cuda"
    tokens = torch.randint(65, 85, (rows, length + 1), device=device)
    weights = torch.ones(rows, length, device=device)
    seconds = []
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(repeats + 1):
        trained.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        start = time.perf_counter()
        loss, weight = trained(tokens[:, :-1], tokens[:, 1:], weights)
        (loss / weight).backward()
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    peak = torch.cuda.max_memory_allocated() if cuda else 0
    return Step(statistics.median(seconds[1:]), peak)


def time_config(
    config: StripedHyena2Config,
    options: argparse.Namespace,
    backend: Backend,
    rows: int,
    length: int,
) -> Step:
    """Build, time and forget one model."""
    trained = objective(config, torch.device(options.device), backend, not options.no_compile)
    try:
        return time_step(trained, rows, length, options.repeats)
    finally:
        del trained
        if options.device == "cuda":
            torch.cuda.empty_cache()


def transformer(config: StripedHyena2Config, layers: int) -> StripedHyena2Config:
    """The same shape with attention in every layer."""
    return config.replace(name=f"transformer-{layers}", pattern="*" * layers, gelu_layers=(0,))


def time_transformer(
    config: StripedHyena2Config,
    options: argparse.Namespace,
    backend: Backend,
    rows: int,
    length: int,
) -> Step:
    """A Transformer of the model's depth, whole or in proportion to two and four layers."""
    layers = config.num_layers
    if length not in options.partial:
        return time_config(transformer(config, layers), options, backend, rows, length)
    two, four = (
        time_config(transformer(config, n), options, backend, rows, length) for n in (2, 4)
    )
    each = (four.seconds - two.seconds) / 2
    return Step(two.seconds + each * (layers - 2), 0)


def _shape(text: str) -> tuple[int, int]:
    rows, length = text.split("x")
    return int(rows), int(length)


def _line(name: str, tokens: int, step: Step, ratio: float | None, note: str = "") -> str:
    peak = f"{step.peak / 2**30:6.1f} GiB" if step.peak else " " * 10
    beside = "" if ratio is None else f"{ratio:6.2f}x"
    return f"  {name:<34}{tokens / step.seconds:10,.0f} tokens/s {step.seconds * 1e3:10.1f} ms {peak} {beside} {note}".rstrip()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", default="evo2_7b_base", help="a released model's name, evo-mini, or a folder"
    )
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="ROWSxLENGTH",
        default=[(1, 8192), (1, 32768), (1, 131072)],
    )  # fmt: skip
    parser.add_argument("--partial", nargs="*", type=int, default=[131072], metavar="LENGTH")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-compile", action="store_true")
    options = parser.parse_args()
    if options.model in MODELS:
        config = MODELS[options.model].config
    else:
        config = open_source(options.model).source.config
    where = torch.cuda.get_device_name() if options.device == "cuda" else platform.machine()
    print(
        f"{options.model}, forward and backward, activations kept between blocks alone, random weights, on {where}, torch {torch.__version__}; medians of {options.repeats}"
    )
    for rows, length in options.shapes:
        tokens = rows * length
        print(f"{rows} x {length}")
        backends: tuple[Backend, ...] = ("auto", "reference")
        peers = {b: time_transformer(config, options, b, rows, length) for b in backends}
        best = min(peers.values(), key=lambda step: step.seconds)
        note = "in proportion to 2 and 4 layers" if length in options.partial else ""
        for backend, step in peers.items():
            kernels = "our kernels" if backend == "auto" else "plain operators"
            print(_line(f"Transformer, {kernels}", tokens, step, None, note), flush=True)
        step = time_config(config, options, "auto", rows, length)
        print(_line("StripedHyena 2", tokens, step, best.seconds / step.seconds), flush=True)


if __name__ == "__main__":
    main()
