"""Speed, memory and profile of a scoring forward of a named model's shape, with random weights.

    python kernels/benchmarks/model_forward.py --model evo2_7b
    python kernels/benchmarks/model_forward.py --shapes 1x8192 --backends auto --no-layers

Log-probabilities of every token, no state. Prints bases per second and the peak of device memory for
the plain PyTorch operators and for the kernels in one run, the share of device time by kind of
kernel, and what a whole mixing layer takes beside its projections alone. Random weights take the
same time as trained ones.
"""

from __future__ import annotations

import argparse
import collections
import platform
import re
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from evo_kernels.backend import Backend
from evo_toolkit.model.block import Block
from evo_toolkit.model.layers import LAYER_KINDS
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2

# First pattern that a kernel's name matches. Plain PyTorch operators are made of many elementwise
# kernels, so only our own are told apart.
KINDS = {
    "attention": r"sdpa|flash|fmha|attention_merge",
    "Hyena": r"hyena|short_conv|modal",
    "norm": r"rms_norm",
    "head": r"log_softmax_gather|f32f32_f32f32",
    "rotary": r"rotary",
    "gate": r"gated_product",
    "product": r"nvjet|gemm|cutlass|cublas|splitk",
}
OTHER = "other elementwise"


def random_weights(name: str, device: torch.device, precision: str) -> dict[str, Tensor]:
    """Random tensors under the names of a model's parameters, in the dtypes of inference."""
    with torch.device("meta"):
        model = StripedHyena2(MODELS[name].config, policy=resolve_precision(precision, device))
    generator = torch.Generator(device=device).manual_seed(0)
    tensors = {}
    for key, meta in model.state_dict().items():
        values = torch.randn(meta.shape, generator=generator, device=device, dtype=torch.float32)
        values = values.to(model.storage_dtype(key)) * 0.02
        if key.endswith("log_poles"):
            values = -values.abs() - 1e-3
        tensors[key] = values
    return tensors


def model_with(
    tensors: dict[str, Tensor], name: str, device: torch.device, precision: str, backend: Backend
) -> StripedHyena2:
    """A model over the given tensors, which it shares."""
    policy = resolve_precision(precision, device, backend)
    with torch.device("meta"):
        model = StripedHyena2(MODELS[name].config, policy=policy)
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_per_forward(model: StripedHyena2, ids: Tensor, repeats: int) -> float:
    """Median wall time of a forward after one that is not counted."""
    model.token_log_probs(ids)
    seconds = []
    for _ in range(repeats):
        _synchronise(model.device)
        start = time.perf_counter()
        model.token_log_probs(ids)
        _synchronise(model.device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def print_speed(
    model: StripedHyena2, backend: str, shapes: list[tuple[int, int]], repeats: int
) -> None:
    """One line per shape: bases per second and peak memory."""
    cuda = model.device.type == "cuda"
    for rows, length in shapes:
        ids = torch.randint(65, 85, (rows, length), device=model.device)
        if cuda:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        try:
            median = seconds_per_forward(model, ids, repeats)
        except torch.OutOfMemoryError:
            print(f"{backend:>9}  {rows} x {length:<7}  out of memory", flush=True)
            continue
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:6.1f} GiB" if cuda else "not measured"
        print(
            f"{backend:>9}  {rows} x {length:<7}{rows * length / median:10,.0f} bases/s"
            f"{median * 1e3:10.1f} ms  {peak}",
            flush=True,
        )


def kind_of(kernel: str) -> str:
    """The kind that a kernel's time is booked under."""
    for kind, pattern in KINDS.items():
        if re.search(pattern, kernel, re.IGNORECASE):
            return kind
    return OTHER


def print_profile(model: StripedHyena2, backend: str, rows: int, length: int, names: int) -> None:
    """Device time of one forward by kind of kernel, and the longest kernels of each."""
    ids = torch.randint(65, 85, (rows, length), device=model.device)
    model.token_log_probs(ids)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CUDA], acc_events=True
    ) as profile:
        model.token_log_probs(ids)
        torch.cuda.synchronize()
    by_kind: collections.Counter[str] = collections.Counter()
    by_name: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for event in profile.events() or []:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            took = event.time_range.elapsed_us() / 1e3
            by_kind[kind_of(event.name)] += took
            by_name[kind_of(event.name)][event.name] += took
    total = sum(by_kind.values())
    print(f"{backend} at {rows} x {length}: {total:.1f} ms of device time")
    for kind, took in by_kind.most_common():
        longest = ", ".join(
            f"{name[:48]} {value:.1f}" for name, value in by_name[kind].most_common(names)
        )
        print(f"  {kind:<18}{took:9.2f} ms {took / total:7.2%}  {longest}", flush=True)


def interleaved(functions: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median ms of each function as a CUDA graph, all in turn so that clocks treat them alike."""
    graphs = {}
    for name, function in functions.items():
        side = torch.cuda.Stream()
        with torch.cuda.stream(side):
            function()
        torch.cuda.current_stream().wait_stream(side)
        graphs[name] = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graphs[name]):
            for _ in range(4):
                function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for round_ in range(rounds + 2):
        for name, graph in graphs.items():
            start, stop = (torch.cuda.Event(enable_timing=True) for _ in "ab")
            start.record()
            graph.replay()
            stop.record()
            torch.cuda.synchronize()
            if round_ >= 2:
                times[name].append(start.elapsed_time(stop) / 4)
    return {name: statistics.median(values) for name, values in times.items()}


def print_layers(model: StripedHyena2, backend: str, rows: int, length: int, rounds: int) -> None:
    """Whole mixing layers (projections and mixer) beside their projections alone."""
    blocks: dict[str, Block] = {}
    for symbol, block in zip(model.config.pattern, model.blocks, strict=True):
        assert isinstance(block, Block)
        blocks.setdefault(symbol, block)
    x = torch.randn(
        rows, length, model.config.width, device=model.device, dtype=model.policy.compute_dtype
    )
    any_block = next(iter(blocks.values()))

    def alone() -> Tensor:
        F.linear(x, any_block.projections.weight)
        return F.linear(x, any_block.out_projection.weight, any_block.out_projection.bias)

    def layer(block: Block) -> Callable[[], object]:
        return lambda: block.out_projection(block.mixer(block.projections(x))[0])

    functions: dict[str, Callable[[], object]] = {"projections alone": alone}
    for symbol, block in blocks.items():
        functions[LAYER_KINDS[symbol].name] = layer(block)
    times = interleaved(functions, rounds)
    floor = times["projections alone"]
    print(f"{backend}: mixing layers with their projections, {rows} x {length}")
    for name, took in times.items():
        print(f"  {name:<18}{took:9.3f} ms {took / floor - 1:+8.1%}", flush=True)


def _shape(text: str) -> tuple[int, int]:
    rows, length = text.split("x")
    return int(rows), int(length)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="evo2_7b", choices=sorted(MODELS))
    parser.add_argument(
        "--shapes", nargs="+", type=_shape, metavar="ROWSxLENGTH",
        default=[(1, 8192), (4, 8192), (1, 32768), (1, 131072)],
    )  # fmt: skip
    parser.add_argument(
        "--backends", nargs="+", default=["reference", "auto"],
        choices=["reference", "auto", "triton"],
    )  # fmt: skip
    parser.add_argument("--precision", default="default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--profile", nargs="*", type=_shape, default=[(4, 8192)])
    parser.add_argument("--names", type=int, default=2, help="longest kernels to name per kind")
    parser.add_argument("--layers", type=_shape, default=(1, 8192))
    parser.add_argument("--no-layers", action="store_true", help="no comparison of layers")
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    where = torch.cuda.get_device_name(device) if cuda else platform.machine()
    print(
        f"{options.model}, {resolve_precision(options.precision, device).describe()}, random "
        f"weights, on {where}, torch {torch.__version__}; medians of {options.repeats}"
    )
    tensors = random_weights(options.model, device, options.precision)
    with torch.inference_mode():
        for backend in options.backends:
            model = model_with(tensors, options.model, device, options.precision, backend)
            print_speed(model, backend, options.shapes, options.repeats)
            if cuda:
                for rows, length in options.profile:
                    print_profile(model, backend, rows, length, options.names)
                if not options.no_layers:
                    print_layers(model, backend, *options.layers, rounds=20)


if __name__ == "__main__":
    main()
