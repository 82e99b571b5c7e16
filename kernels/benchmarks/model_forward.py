"""Speed and memory of a scoring forward of a named model's shape, with random weights.

    python kernels/benchmarks/model_forward.py --model evo2_7b --length 8192 --rows 1

Prints bases per second and the peak of device memory: log-probabilities of every token, no state.
Random weights take the same time as trained ones.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time

import torch

from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2


def random_model(name: str, device: torch.device, precision: str) -> StripedHyena2:
    """The shape of a released model with random weights in the dtypes of inference."""
    policy = resolve_precision(precision, device)
    with torch.device("meta"):
        model = StripedHyena2(MODELS[name].config, policy=policy)
    generator = torch.Generator(device=device).manual_seed(0)
    tensors = {}
    for key, meta in model.state_dict().items():
        values = torch.randn(meta.shape, generator=generator, device=device, dtype=torch.float32)
        values = values.to(model.storage_dtype(key)) * 0.02
        if key.endswith("log_poles"):
            values = -values.abs() - 1e-3
        tensors[key] = values
    model.load_state_dict(tensors, assign=True)
    return model.eval()


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="evo2_7b", choices=sorted(MODELS))
    parser.add_argument("--length", type=int, default=8192, help="bases in a window")
    parser.add_argument("--rows", type=int, default=1, help="windows in a forward")
    parser.add_argument("--precision", default="default")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    device = torch.device(options.device)
    cuda = device.type == "cuda"
    model = random_model(options.model, device, options.precision)
    ids = torch.randint(65, 85, (options.rows, options.length), device=device)
    seconds = []
    with torch.inference_mode():
        model.token_log_probs(ids)
        for _ in range(options.repeats):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            model.token_log_probs(ids)
            if cuda:
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    memory = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else "not measured"
    where = (
        torch.cuda.get_device_name(device) if cuda else platform.processor() or platform.machine()
    )
    print(
        f"{options.model} {model.policy.describe()} on {where}, torch {torch.__version__}: "
        f"{options.rows} x {options.length}: {options.rows * options.length / median:,.0f} bases/s "
        f"(median of {options.repeats}, {median * 1e3:.1f} ms), peak memory {memory}"
    )


if __name__ == "__main__":
    main()
