"""Memory and time of fine-tuning steps of a named model's shape on one device: LoRA and everything.

    python kernels/benchmarks/finetune_memory.py --model evo2_7b_base --length 8192

Random weights in the dtypes that `evo-toolkit finetune` keeps them in (of `full` float32 masters, of
`lora` and `head` what the blocks compute in), a binary head on the last layer, AdamW, activations kept
between blocks alone (`--checkpoint-blocks 1`), no compilation. A step is forward, backward and update of
one batch; the peak is that of the allocator over all steps, weights, gradients, moments and
activations together. On a CPU there is no peak, and a toy shape tries the script.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.finetuning.adapters import AdapterConfig, add_adapter
from evo_toolkit.finetuning.network_tasks import NetworkConfig, Task, task_loss
from evo_toolkit.finetuning.networks import TaskHead
from evo_toolkit.model.config import StripedHyena2Config, read_config
from evo_toolkit.model.precision import resolve_precision
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.training.finetune import METHODS, TaskObjective
from evo_toolkit.training.loss import NextTokenObjective
from evo_toolkit.training.optim import (
    OptimizerConfig,
    ParameterGroup,
    build_optimizer,
    parameter_groups,
    train_by_log_rate,
)


def random_model(
    config: StripedHyena2Config, device: torch.device, *, masters: bool
) -> StripedHyena2:
    """A model with random weights, of `masters` float32, else in the dtypes of inference."""
    policy = resolve_precision("default", device)
    with torch.device("meta"):
        model = StripedHyena2(config, policy=policy)
    generator = torch.Generator(device=device).manual_seed(0)
    tensors: dict[str, Tensor] = {}
    for key, meta in model.state_dict().items():
        values = torch.randn(meta.shape, generator=generator, device=device) * 0.02
        if key.endswith("log_poles"):
            values = -values.abs() - 1e-3
        if key.endswith("scale"):
            values = values + 1
        tensors[key] = values.to(torch.float32 if masters else model.storage_dtype(key))
    model.load_state_dict(tensors, assign=True)
    return model


def prepared(
    config: StripedHyena2Config, method: str, options: argparse.Namespace
) -> tuple[Callable[[], Tensor], torch.optim.Optimizer, int]:
    """What makes the loss of a batch, the optimizer, and how many parameters it moves."""
    device = torch.device(options.device)
    model = random_model(config, device, masters=method == "full")
    for parameter in model.parameters():
        parameter.requires_grad_(method == "full")
    if method == "lora":
        add_adapter(model, AdapterConfig(rank=options.rank))
        model.to(device)
    train_by_log_rate(model)
    generator = torch.Generator().manual_seed(0)
    shape = (options.rows, options.length + 1)
    tokens = torch.tensor(list(b"ACGT"))[torch.randint(4, shape, generator=generator)].to(device)
    settings = OptimizerConfig(learning_rate=1e-5)
    groups = parameter_groups(model, settings)
    if options.task == "language":
        objective = NextTokenObjective(model, checkpoint_blocks=options.checkpoint_blocks)
        weights = torch.ones(options.rows, options.length, device=device)

        def loss() -> Tensor:
            total, weight = objective(tokens[:, :-1], tokens[:, 1:], weights)
            return total / weight

    else:
        task = Task(kind="binary", label_names=("no", "yes"), loss="binary")
        network = NetworkConfig(strands=options.strands)
        head = TaskHead(task, network, config.width).to(device)
        labelled = TaskObjective(model, head, checkpoint_blocks=options.checkpoint_blocks)
        groups.append(ParameterGroup("head", dict(head.named_parameters()), 1e-5, 0.0))
        rows = torch.ones(options.rows, device=device)
        batch = {
            "input_ids": tokens[:, :-1], "weights": rows,
            "lengths": torch.full((options.rows,), options.length, device=device),
            "targets": torch.arange(options.rows, device=device) % 2,
        }  # fmt: skip

        def loss() -> Tensor:
            total, weight = task_loss(task, labelled(batch), batch["targets"], rows)
            return total / weight

    trained = sum(p.numel() for group in groups for p in group.parameters.values())
    return loss, build_optimizer(groups, settings), trained


def measure(
    config: StripedHyena2Config, method: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Seconds of a step (median after one that is not counted), and bytes."""
    cuda = options.device.startswith("cuda")
    if cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    loss, optimizer, trained = prepared(config, method, options)
    seconds, values = [], []
    for _ in range(options.steps + 1):
        start = time.perf_counter()
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if cuda:
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        values.append(float(value.detach()))
    found = {
        "method": method, "task": options.task, "rows": options.rows, "length": options.length,
        "trained_parameters": trained, "seconds": statistics.median(seconds[1:]),
        "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if cuda else None,
        "first_loss": values[0], "last_loss": values[-1],
    }  # fmt: skip
    del loss, optimizer
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--model", default="evo2_7b_base", help="a name, or a configuration's file")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=["head", "lora", "full"])
    parser.add_argument("--task", choices=["labels", "language"], default="labels")
    parser.add_argument("--strands", choices=["fwd", "both"], default="fwd", help="both doubles the rows")  # fmt: skip
    parser.add_argument("--length", type=int, default=8192)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--checkpoint-blocks", type=int, default=1)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if options.model in MODELS:
        config = MODELS[options.model].config
    elif options.model.endswith(".json"):
        config = read_config(options.model)
    else:
        config = open_source(options.model).source.config
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else platform.machine()
    total = config.parameter_count()
    print(f"{config.name}: {total:,} parameters; {name}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}")  # fmt: skip
    print("method  rows x length  trained parameters  s/step  peak GiB  loss first, last")
    every = []
    for method in options.methods:
        try:
            found = measure(config, method, options)
        except torch.OutOfMemoryError:
            print(f"{method:6}  {options.rows} x {options.length:,}  does not fit")
            continue
        every.append(found)
        peak = "" if found["peak_gib"] is None else f"{found['peak_gib']:.1f}"
        print(
            f"{method:6}  {options.rows} x {options.length:,}  {found['trained_parameters']:,}  {found['seconds']:.2f}  {peak}  {found['first_loss']:.4f}, {found['last_loss']:.4f}"
        )
    if options.json is not None:
        options.json.write_text(json.dumps({"model": config.name, "parameters": total, "device": name, "torch": torch.__version__, "figures": every}, indent=1) + "\n")  # fmt: skip


if __name__ == "__main__":
    main()
