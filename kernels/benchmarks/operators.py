"""Speed of the operators, of the copy of the same memory, and of other projects' operators, in one run.

    python kernels/benchmarks/operators.py [--lengths 8192 131072] [--peers] [--json FILE]

Prints a Markdown table. Times are medians in ms on random bfloat16 data, B = 1, caches flushed
before every repetition: by replay of a CUDA graph, and as eager PyTorch calls. "ps/elt" is the time
per batch row, position and channel of the operator's width. "Of copy" is the time that a device
copy needs for the bytes that must be moved (forward: read the inputs, write the outputs; backward:
read inputs and the output's gradient, write the inputs' gradients) over the time taken. An operator
that does not agree with its float64 twin is not timed, and the command fails.
"""

from __future__ import annotations

import argparse
import functools
import importlib.util
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from evo_kernels import testing
from evo_kernels.testing import OPERATORS, Case

Function = Callable[..., Tensor]
GROUP = 16
HEAD = 128


@dataclass
class Row:
    """One line of the table; times in ms."""

    operator: str
    length: int
    forward: float | None = None
    forward_eager: float | None = None
    both: float | None = None
    both_eager: float | None = None
    forward_bytes: int = 0
    both_bytes: int = 0
    note: str = ""


@functools.cache
def _flush() -> Tensor:
    return torch.empty(2**26, dtype=torch.int32, device="cuda")


def median_ms(function: Callable[[], object], budget_ms: float = 60.0) -> float:
    """Median time of one call, after a warm-up, with cold caches."""
    function()
    times: list[float] = []
    while len(times) < 3 or (sum(times) < budget_ms and len(times) < 50):
        _flush().zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        function()
        stop.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(stop))
        if times[-1] > budget_ms and len(times) >= 2:
            break
    return statistics.median(times)


def graph_ms(function: Callable[[], object]) -> float:
    """Median time of the replay of a CUDA graph of one call."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()
        function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        function()
    return median_ms(graph.replay)


def measure(row: Row, function: Function, inputs: list[Tensor]) -> Row:
    """Fill in the four times of a function of tensors; all inputs get gradients."""

    def forward() -> Tensor:
        with torch.no_grad():
            return function(*inputs)

    row.forward_eager = median_ms(forward)
    try:
        row.forward = graph_ms(forward)
    except Exception as error:  # noqa: BLE001 - a peer may synchronise; its eager time remains
        torch.cuda.synchronize()
        row.note = f"no graph: {str(error).splitlines()[0][:60]}"
    leaves = [value.detach().requires_grad_() for value in inputs]
    dy = torch.randn_like(forward())

    def both() -> object:
        return torch.autograd.grad(function(*leaves), leaves, dy)

    row.both_eager = median_ms(both)
    if not row.note:
        row.both = graph_ms(both)
    return row


# --- Ours -------------------------------------------------------------------------------------


def _channels(name: str, width: int) -> int:
    """Channels of an operator in a model of a width: the featurizer alone filters q, k and v."""
    return 3 * width if name == "short_conv" else width


def is_right(name: str, width: int) -> str:
    """ "" if the operator agrees with its float64 twin here, or what is wrong."""
    try:
        for length, prefix in ((1, 150), (129, 0), (1000, 150)):
            testing.check(Case(name, length, 1, _channels(name, width), GROUP, prefix), "cuda")
    except AssertionError as error:
        return str(error)
    return ""


def _our_function(name: str, length: int, width: int) -> tuple[Function, list[Tensor]]:
    """An operator as the model calls it, and its inputs: the main one and every parameter."""
    tensors = testing.make_inputs(Case(name, length, 1, _channels(name, width), GROUP), "cuda")
    function = OPERATORS[name].function
    return lambda x, *parameters: function(x, *parameters, backend="triton")[0], [
        tensors["x"], *(tensors[key] for key in OPERATORS[name].parameters),
    ]  # fmt: skip


def ours(name: str, length: int, width: int) -> Row:
    """Time one operator with gradients of all its inputs."""
    blocks = 1 if name == "short_conv" else 3
    elements = length * _channels(name, width)
    row = Row(
        name, length, forward_bytes=2 * elements * (blocks + 1),
        both_bytes=2 * elements * (blocks + 1 + 2 * blocks + 1),
    )  # fmt: skip
    return measure(row, *_our_function(name, length, width))


def run_once(name: str, length: int, width: int) -> None:
    """Forward and backward once, for a profiler."""
    function, inputs = _our_function(name, length, width)
    leaves = [value.detach().requires_grad_() for value in inputs]
    y = function(*leaves)
    torch.autograd.grad(y, leaves, torch.randn_like(y))
    torch.cuda.synchronize()


# --- Peers ------------------------------------------------------------------------------------


def _randn(*shape: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=dtype)


def _conv1d(length: int, width: int) -> tuple[Function, list[Tensor]]:
    def function(x: Tensor, taps: Tensor) -> Tensor:
        return F.conv1d(x, taps, groups=x.shape[1], padding=taps.shape[-1] - 1)[..., : x.shape[-1]]

    return function, [_randn(1, 3 * width, length), _randn(3 * width, 1, 3)]


def _fft(length: int, width: int) -> tuple[Function, list[Tensor]]:
    def function(z: Tensor, h: Tensor) -> Tensor:
        spectrum = torch.fft.rfft(z.float(), n=2 * length) * torch.fft.rfft(h, n=2 * length)
        return torch.fft.irfft(spectrum, n=2 * length)[..., :length].to(z.dtype)

    return function, [_randn(1, width, length), _randn(width, length, dtype=torch.float32)]


def _attention(backend: SDPBackend, length: int, width: int) -> tuple[Function, list[Tensor]]:
    def function(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    return function, [_randn(1, width // HEAD, length, HEAD) for _ in range(3)]


def _heads(length: int, width: int) -> list[Tensor]:
    return [_randn(1, length, width // HEAD, HEAD) for _ in range(3)]


def _gla(length: int, width: int) -> tuple[Function, list[Tensor]]:
    from fla.ops.gla import chunk_gla

    q, k, v = _heads(length, width)
    gate = F.logsigmoid(_randn(1, length, width // HEAD, HEAD)) / 16
    return lambda q, k, v, g: chunk_gla(q, k, v, g)[0], [q, k, v, gate]


def _delta(length: int, width: int) -> tuple[Function, list[Tensor]]:
    from fla.ops.delta_rule import chunk_delta_rule

    q, k, v = _heads(length, width)
    beta = _randn(1, length, width // HEAD).sigmoid()
    return lambda q, k, v, b: chunk_delta_rule(q, k, v, b, use_qk_l2norm_in_kernel=True)[0], [
        q, k, v, beta,
    ]  # fmt: skip


def _gated_delta(length: int, width: int) -> tuple[Function, list[Tensor]]:
    from fla.ops.gated_delta_rule import chunk_gated_delta_rule

    q, k, v = _heads(length, width)
    beta = _randn(1, length, width // HEAD).sigmoid()
    gate = F.logsigmoid(_randn(1, length, width // HEAD, dtype=torch.float32))
    return lambda q, k, v, g, b: chunk_gated_delta_rule(
        q, k, v, g, b, use_qk_l2norm_in_kernel=True
    )[0], [q, k, v, gate, beta]


def _causal_conv1d(length: int, width: int) -> tuple[Function, list[Tensor]]:
    from causal_conv1d import causal_conv1d_fn

    return causal_conv1d_fn, [
        _randn(1, length, 3 * width).transpose(1, 2), _randn(3 * width, 3, dtype=torch.float32),
    ]  # fmt: skip


def _mamba(length: int, width: int) -> tuple[Function, list[Tensor]]:
    # With step 1, B = 1 and constant A and C this is Hyena-LI's inner part.
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    delta = torch.ones(1, width, length, device="cuda", dtype=torch.bfloat16)
    ones = torch.ones(width, 16, device="cuda")
    return lambda z, A, C: selective_scan_fn(z, delta, A, ones, C), [
        _randn(1, width, length), -torch.rand(width, 16, device="cuda"),
        _randn(width, 16, dtype=torch.float32),
    ]  # fmt: skip


PEERS: dict[str, Callable[[int, int], tuple[Function, list[Tensor]]]] = {
    "torch conv1d, 3 taps on 3D channels": _conv1d,
    "causal-conv1d, 3 taps on 3D channels": _causal_conv1d,
    "torch FFT long convolution, inner part only": _fft,
    "mamba selective scan, 16 poles, inner part only": _mamba,
    "attention, SDPA cuDNN": functools.partial(_attention, SDPBackend.CUDNN_ATTENTION),
    "attention, SDPA flash": functools.partial(_attention, SDPBackend.FLASH_ATTENTION),
    "gated linear attention (fla)": _gla,
    "DeltaNet (fla)": _delta,
    "gated DeltaNet (fla)": _gated_delta,
}


def peer(name: str, length: int, width: int) -> Row:
    """Time another project's operator, or say why not."""
    row = Row(name, length)
    try:
        function, inputs = PEERS[name](length, width)
        return measure(row, function, inputs)
    except ImportError as error:
        row.note = f"not installed ({error.name})"
    except Exception as error:  # noqa: BLE001 - one peer's failure must not end the run
        row.note = (
            f"failed: {str(error).splitlines()[0][:80] if str(error) else type(error).__name__}"
        )
    return row


def _in_processes(function: Callable[..., Any], names: list[str], *arguments: int) -> list[Any]:
    """`function(name, *arguments)` of every name at once: compiling one after the other takes minutes."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(names), mp_context=context) as pool:
        return list(pool.map(function, names, *([value] * len(names) for value in arguments)))


# --- Report -----------------------------------------------------------------------------------


def copy_bandwidth() -> float:
    """Bytes read and written per second by a device copy of 3.2 GB."""
    x = torch.randn(3 * 4096 * 131072, device="cuda", dtype=torch.bfloat16)
    y = torch.empty_like(x)
    return 2 * x.numel() * x.element_size() / (median_ms(lambda: y.copy_(x)) * 1e-3)


def _number(value: float | None, form: str = ".3g") -> str:
    return "" if value is None else format(value, form)


TABLE_HEAD = (
    "| operator | L | fwd, ms | fwd+bwd, ms | eager fwd | eager fwd+bwd | fwd, ps/elt "
    "| fwd+bwd, ps/elt | fwd, of copy | fwd+bwd, of copy | |\n"
    "|---|---|---|---|---|---|---|---|---|---|---|"
)


def table_line(row: Row, width: int, bandwidth: float) -> str:
    """One line of the Markdown table."""
    elements = row.length * width
    cells = [row.operator, str(row.length)]
    cells += [_number(x) for x in (row.forward, row.both, row.forward_eager, row.both_eager)]
    for ms in (row.forward, row.both):
        cells.append(_number(ms and ms * 1e9 / elements))
    for ms, moved in ((row.forward, row.forward_bytes), (row.both, row.both_bytes)):
        share = moved / bandwidth / (ms * 1e-3) if ms and moved else None
        cells.append(_number(share, ".0%"))
    return "| " + " | ".join([*cells, row.note]) + " |"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--operators", nargs="+", default=list(OPERATORS), choices=list(OPERATORS))
    parser.add_argument("--lengths", nargs="+", type=int, default=[2048, 8192, 32768, 131072])
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument(
        "--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER",
        help="which of: " + "; ".join(PEERS) + " (default: all; none given: none)",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, help="write the figures here too")
    parser.add_argument(
        "--once", action="store_true", help="time nothing: run each operator once, for a profiler"
    )
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("needs an NVIDIA GPU")
    if options.once:
        for name in options.operators:
            for length in options.lengths:
                run_once(name, length, options.width)
        return
    import triton

    bandwidth = copy_bandwidth()
    environment = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "triton": triton.__version__,
        "width": options.width,
        "copy_bytes_per_second": bandwidth,
    }
    print(
        f"{environment['date']}, {environment['gpu']}, torch {environment['torch']}, triton "
        f"{environment['triton']}; B=1, D={options.width}, bf16; device copy {bandwidth / 1e12:.2f} TB/s\n"
    )
    print(TABLE_HEAD)
    rows: list[Row] = []

    def add(row: Row) -> None:
        rows.append(row)
        print(table_line(row, options.width, bandwidth), flush=True)
        torch.cuda.empty_cache()

    red = dict(
        zip(
            options.operators,
            _in_processes(is_right, options.operators, options.width),
            strict=True,
        )
    )
    for name in options.operators:
        for length in options.lengths:
            wrong = Row(name, length, note="not timed: it is wrong here")
            add(wrong if red[name] else ours(name, length, options.width))
    tuned = [name for name in options.peers if name.endswith("(fla)")]
    if tuned and importlib.util.find_spec("fla"):
        _in_processes(peer, tuned, 2048, options.width)
    for name in options.peers:
        for length in options.lengths:
            add(peer(name, length, options.width))
            if rows[-1].note.startswith("not installed"):
                break
    if options.json:
        figures = {"environment": environment, "rows": [asdict(row) for row in rows]}
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, reason in red.items():
        if reason:
            print(f"{name} is wrong on this device: {reason}", file=sys.stderr)
    if any(red.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
