"""Speed and error of the ways to make a long convolution, on this machine's CPU or GPU.

    python kernels/benchmarks/long_convolutions.py [--device cuda] [--length 4096] [--width 256] [--taps 128 512 2048]

Prints a Markdown table: for every number of taps the median time in ms of a forward and backward pass
of the convolution alone (float32, gradients of input and filters, after a warm-up), and the relative
error of its forward against float64. "auto" takes the first column's way up to
`TOEPLITZ_TAPS` taps and the second's above. On a CPU give OMP_NUM_THREADS to fix the threads.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch import Tensor

from evo_kernels.long_conv.reference import TOEPLITZ_TAPS, Algorithm, long_fir

WAYS: tuple[tuple[Algorithm, int], ...] = (
    ("toeplitz", 1),
    ("fft", 1),
    ("butterfly", 2),
    ("butterfly", 3),
)


def seconds(device: torch.device, x: Tensor, h: Tensor, length: int, way: Algorithm, order: int) -> float:  # fmt: skip
    """Median time of a forward and backward pass."""
    times: list[float] = []
    for _ in range(6):
        start = time.perf_counter()
        y = long_fir(x, h, length, way, order)
        torch.autograd.grad(y.sum(), (x, h))
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times[1:])


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=4096)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--taps", type=int, nargs="+", default=[64, 128, 256, 512, 1024, 2048])
    options = parser.parse_args(words)
    device, L, D = torch.device(options.device), options.length, options.width
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    threads = "" if device.type == "cuda" else f", {torch.get_num_threads()} threads"
    print(f"{name}{threads}, torch {torch.__version__}, B={options.batch}, L={L}, D={D}, float32")
    print(f'"auto": Toeplitz up to {TOEPLITZ_TAPS} taps\n')
    titles = [f"{way} {order}" if way == "butterfly" else way for way, order in WAYS]
    print("| taps | " + " | ".join(titles) + " |")
    print("|" + "---|" * (len(titles) + 1))
    generator = torch.Generator().manual_seed(0)
    for K in options.taps:
        x = torch.randn(options.batch, K - 1 + L, D, generator=generator).to(device)
        h = torch.randn(D, K, generator=generator).to(device)
        exact = long_fir(x.double(), h.double(), L, "fft")
        x, h = x.requires_grad_(), h.requires_grad_()
        cells = []
        for way, order in WAYS:
            with torch.no_grad():
                found = long_fir(x, h, L, way, order)
            error = float((found - exact).norm() / exact.norm())
            cells.append(f"{1e3 * seconds(device, x, h, L, way, order):.1f} ({error:.0e})")
        print(f"| {K} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
