"""What every rank of the tests of context parallelism runs: `python ranks.py RANK SIZE STORE OUT MODE,...`.

Rank 0 writes, as JSON by mode, the largest difference of every case from the same computation in one process,
or what else the mode says.
"""

from __future__ import annotations

import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from evo_toolkit.errors import UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel import ContextParallel, context_parallel
from evo_toolkit.parallel.communication import counted
from evo_toolkit.parallel.cost import sent
from evo_toolkit.training.loss import NextTokenObjective

# Three heads: two and four ranks have to fill up.
SHAPE: dict[str, Any] = {
    "name": "toy", "width": 12, "num_heads": 3, "mlp_width": 8, "filter_groups": 3,
    "context_length": 256, "mr_length": 9, "li_order": 4, "ssm_order": 4, "h3_head_width": 2,
    "h3_shift_length": 5, "long_length": 40,
}  # fmt: skip

# Pattern, field of ContextParallel and what it is there, where that is not chosen by itself.
STRATEGIES = (
    *(
        (pattern, "explicit", name)
        for pattern in ("S", "D")
        for name in ("halo-overlapped", "all-to-all", "all-to-all-pipelined", "fft")
    ),
    *(("H", "implicit", name) for name in ("all-to-all", "all-to-all-pipelined", "fft")),
    *(("L", "long", name) for name in ("all-to-all-pipelined", "halo", "halo-overlapped", "fft")),
    ("*", "attention", "ring"),
)


def build(pattern: str, **shape: Any) -> StripedHyena2:
    """A float64 model whose filters matter."""
    fields = SHAPE | shape
    config = StripedHyena2Config(pattern=pattern, gelu_layers=(0,), **fields)
    policy = PrecisionPolicy(name="exact", compute_dtype=torch.float64)
    model = StripedHyena2(config, policy=policy, generator_seed=0).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith((".h", ".residues", "featurizer")):
                parameter.copy_(torch.randn(parameter.shape, generator=generator).double() * 0.3)
    return model


def loss_and_gradients(
    pattern: str,
    lengths: tuple[int, ...] | None,
    length: int,
    *,
    checkpointing: bool = False,
    rows: int = 2,
    strategies: dict[str, Any] | None = None,
    shape: dict[str, Any] | None = None,
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Logits, weighted loss and gradients; with `lengths`, of the parts and added over the ranks."""
    model = build(pattern, **(shape or {}))
    generator = torch.Generator().manual_seed(2)
    tokens = torch.randint(65, 85, (rows, length + 1), generator=generator)
    weights = torch.rand(rows, length, generator=generator, dtype=torch.float64)
    inputs, targets = tokens[:, :-1], tokens[:, 1:]

    def objective(inputs: Tensor, targets: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        if model.config.looks_ahead():  # such a model predicts no next base
            return (model(inputs).square().sum(-1) * weights).sum(), weights.sum()
        trained = NextTokenObjective(model, checkpoint_blocks=1 if checkpointing else 0)
        return trained(inputs, targets, weights)

    if lengths is None:
        loss, _ = objective(inputs, targets, weights)
        loss.backward()
        with torch.no_grad():
            logits = model(inputs)
        return logits, loss.detach(), gradients(model)
    group = dist.group.WORLD
    assert group is not None
    context = ContextParallel(group, lengths, **(strategies or {}))
    with context_parallel(model, context):
        loss, _ = objective(*(context.part_of(x) for x in (inputs, targets, weights)))
        loss.backward()
        with torch.no_grad():
            own = model(context.part_of(inputs))
    longest = max(lengths)
    parts = [torch.empty(rows, longest, own.shape[2], dtype=own.dtype) for _ in lengths]
    dist.all_gather(parts, F.pad(own, (0, 0, 0, longest - own.shape[1])))
    logits = torch.cat([part[:, :n] for part, n in zip(parts, lengths, strict=True)], 1)
    loss = loss.detach().clone()
    dist.all_reduce(loss)
    summed = gradients(model)
    for gradient in summed.values():
        dist.all_reduce(gradient)
    return logits, loss, summed


def gradients(model: StripedHyena2) -> dict[str, Tensor]:
    """Of every parameter, zero where there is none."""
    return {
        name: (torch.zeros_like(p) if p.grad is None else p.grad.clone())
        for name, p in model.named_parameters()
    }


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference, relative to the largest value."""
    return float((one - other).abs().max() / other.abs().max().clamp(min=1e-30))


def compare(pattern: str, lengths: tuple[int, ...], **options: Any) -> float:
    """The largest difference of logits, loss and any gradient between ranks and one process."""
    found = loss_and_gradients(pattern, lengths, sum(lengths), **options)
    same = {key: value for key, value in options.items() if key in ("shape", "rows")}
    wanted = loss_and_gradients(pattern, None, sum(lengths), **same)
    worst = max(difference(a, b) for a, b in zip(found[:2], wanted[:2], strict=True))
    return max(worst, *(difference(found[2][name], g) for name, g in wanted[2].items()))


def refusal(pattern: str, lengths: tuple[int, ...], **options: Any) -> str:
    """What is said of a division that cannot be."""
    try:
        loss_and_gradients(pattern, lengths, sum(lengths), **options)
    except UsageError as error:
        return str(error)
    return ""


def values(size: int) -> dict[str, Any]:
    """Every kind of layer by every strategy, against one process; and what is refused."""
    even = (24,) * size
    uneven = tuple(17 + 5 * i for i in range(size))
    short_last = (*(30,) * (size - 1), 1)
    results: dict[str, Any] = {
        f"{pattern} {name}": compare(pattern, lengths)
        for pattern in ("S", "D", "H", "*", "3", "4", "L", "SDH*")
        for name, lengths in (("even", even), ("uneven", uneven), ("short last", short_last))
    }
    for pattern, field, name in STRATEGIES:
        if name == "fft" and size == 3:
            continue
        results[f"{pattern} {field} {name}"] = max(
            compare(pattern, lengths, strategies={field: name}) for lengths in (even, uneven)
        )
    # Shorter than what the next rank needs: 10 positions.
    results["D short first"] = compare("D", (5, *even[1:]))
    results["SDH3 short"] = compare("SDH3", (*(2 + i for i in range(size - 1)), 30))
    results["L ahead"] = compare("L", uneven, shape={"long_bidirectional": True})
    channels = {"explicit": "all-to-all", "implicit": "all-to-all-pipelined"}
    results["SDH* one row"] = compare("SDH*", uneven, rows=1, strategies=channels)
    results["SDH* checkpointing"] = compare("SDH*", uneven, checkpointing=True)
    results["refused lengths"] = refusal("S", (24,) * (size + 1))
    results["refused strategy"] = refusal("S", even, strategies={"explicit": "states"})
    results["refused ahead"] = refusal(
        "L", even, strategies={"long": "halo"}, shape={"long_bidirectional": True}
    )
    results["refused learned"] = refusal(
        "L", even, shape={"long_butterfly": "free", "long_length": 256}
    )
    results["refused fft"] = refusal("D", even, strategies={"explicit": "fft"}) if size == 3 else ""
    return results


def operators(size: int) -> dict[str, Any]:
    """What `opcheck` says of every operator: "" if nothing."""
    rank = dist.get_rank()
    world = dist.group.WORLD
    assert world is not None
    generator = torch.Generator().manual_seed(rank)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    spans = [i for r in range(size) for i in (r, r + 2)]
    name, each = world.group_name, [2 * size + 2] * size
    q, k, v = (randn(2, 3, 7, 4) for _ in range(3))
    calls: dict[str, tuple[Any, ...]] = {
        "exchange": (randn(sum(each)), each, each, name),
        "place": (randn(2, 2 * size, 3), spans, [i for r in range(size) for i in (2 * r, 2 * r + 2)], 2 * size, name),
        "gather": (randn(3, 2), size, name),
        "ring_attention": (q, k, v, [7] * size, name),
    }  # fmt: skip
    said = {}
    for operator, arguments in calls.items():
        overload = getattr(torch.ops.evo_toolkit, operator).default
        found = torch.library.opcheck(overload, arguments, raise_exception=False)
        said[operator] = "; ".join(f"{k}: {v}" for k, v in found.items() if v != "SUCCESS")
    return said


def traffic(size: int) -> dict[str, Any]:
    """Bytes that the busiest rank sends for a layer, forward and with backward: counted, and foretold."""
    world = dist.group.WORLD
    assert world is not None
    results = {}
    for symbol, field, name in (
        ("S", "explicit", "halo"),
        ("H", "implicit", "states"),
        ("*", "attention", "heads"),
        *(case for case in STRATEGIES if case[0] in "SDH*" and (case[2] != "fft" or size != 3)),
    ):
        context = ContextParallel.of_length(24 * size, world, **{field: name})
        model = build(symbol)
        x = torch.ones(2, 24, 12, dtype=torch.float64, requires_grad=True)
        with context_parallel(model, context), counted() as so_far:
            y, _ = model.blocks[0](x)
            found = [so_far.bytes]
            y.sum().backward()
            found.append(so_far.bytes)
        most = torch.tensor(found)
        dist.all_reduce(most, dist.ReduceOp.MAX)
        foretold = sent(
            model.config, symbol, name, 24 * size, size, batch=2, width=8, accumulated=8
        )
        results[f"{symbol} {name}"] = [most.tolist(), [foretold.forward, foretold.both]]
    return results


def compiled(size: int) -> dict[str, Any]:
    """Blocks as whole graphs (`fullgraph=True`) against the same uncompiled: outputs and gradients."""
    # One of each way to communicate.
    ways = ("halo-overlapped", "all-to-all-pipelined", "fft", "ring")
    context_of: list[tuple[str, dict[str, Any]]] = [(p, {}) for p in "SH*34L"]
    context_of += [(p, {f: n}) for p, f, n in STRATEGIES if p in "S*" and n in ways]
    world = dist.group.WORLD
    assert world is not None
    torch._dynamo.config.recompile_limit = 100
    results = {}
    for pattern, strategies in context_of:
        context = ContextParallel(world, tuple(17 + 5 * i for i in range(size)), **strategies)
        model = build(pattern)
        block = model.blocks[0]
        found = []
        for call in (
            block,
            torch.compile(block, fullgraph=True, backend="aot_eager", dynamic=False),
        ):
            model.zero_grad()
            x = torch.randn(2, context.lengths[context.rank], 12, dtype=torch.float64)
            x = torch.sin(torch.arange(x.numel(), dtype=torch.float64)).view_as(x).requires_grad_()
            with context_parallel(model, context):
                y, _ = call(x)
                y.square().sum().backward()
            assert x.grad is not None
            found.append([y.detach(), x.grad, *gradients(model).values()])
        torch._dynamo.reset()
        name = f"{pattern} {' '.join(strategies.values())}".strip()
        results[name] = max(difference(a, b) for a, b in zip(*found, strict=True))
    return results


MODES = {"values": values, "operators": operators, "traffic": traffic, "compiled": compiled}


def main() -> None:
    rank, size = int(sys.argv[1]), int(sys.argv[2])
    store = dist.FileStore(sys.argv[3], size)
    dist.init_process_group(
        "gloo", store=store, rank=rank, world_size=size, timeout=datetime.timedelta(seconds=120)
    )
    results = {mode: MODES[mode](size) for mode in sys.argv[5].split(",")}
    if rank == 0:
        Path(sys.argv[4]).write_text(json.dumps(results))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
