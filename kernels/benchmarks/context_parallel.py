"""One sequence over several GPUs: is it right, what does each strategy cost, how fast, how long.

    python kernels/benchmarks/context_parallel.py                              # two GPUs, shape of evo2_7b
    python kernels/benchmarks/context_parallel.py --sections agreement step --lengths 131072

Every measurement runs in processes of its own, one per rank, so that one that runs out of memory costs no
other. Weights are random; a step is a forward and backward with the training loss, activations kept
between blocks alone, no optimizer unless said. Sections, in this order:

agreement   loss and gradients of a few layers, over ranks and on one GPU, beside what bfloat16 costs
layers      every mixer by every strategy: ms and bytes that a rank sends, beside one GPU
step        a whole step on one GPU and over the ranks
longest     the longest context that trains: bfloat16 weights and gradients, MLP in chunks of the sequence
adamw       the same with float32 weights and AdamW, divided over the ranks
forward     log-probabilities of a sequence of a million
large       attention on one GPU where a tensor has 2^31 elements, against rows computed one by one
foretold    no measurement: what `evo_toolkit.parallel.cost` says of steps over up to 64 GPUs

Under 10 minutes each on two H200s, by what the cost model says of the steps:

    ... --sections agreement layers forward large
    ... --sections step
    ... --sections longest adamw
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from training_step import objective

from evo_toolkit.checkpoint.opening import open_source
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.model.layers import LAYER_KINDS
from evo_toolkit.model.mixer import Mixer
from evo_toolkit.model.registry import MODELS
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel import ContextParallel, context_parallel
from evo_toolkit.parallel.communication import counted
from evo_toolkit.parallel.cost import step_cost
from evo_toolkit.training.loss import NextTokenObjective

SECTIONS = ("agreement", "layers", "step", "longest", "adamw", "forward", "large", "foretold")
# Field of ContextParallel and its values, for each kind of layer; what it takes by itself first.
STRATEGIES = {
    "S": ("explicit", ("halo", "halo-overlapped", "all-to-all", "all-to-all-pipelined", "fft")),
    "D": ("explicit", ("halo", "halo-overlapped", "all-to-all", "all-to-all-pipelined", "fft")),
    "H": ("implicit", ("states", "all-to-all", "all-to-all-pipelined", "fft")),
    "*": ("attention", ("heads", "ring")),
}
# Exit status of a rank that had too little memory.
_OUT_OF_MEMORY = 3

Task = dict[str, Any]
Say = Callable[[str], None]


# --- what a rank does -----------------------------------------------------------------------------


class Rank:
    """This process among the ranks of a measurement."""

    def __init__(self, task: Task, rank: int, folder: Path) -> None:
        self.task, self.rank, self.size = task, rank, int(task["ranks"])
        cuda = task["device"] == "cuda"
        self.device = torch.device(f"cuda:{rank}" if cuda else "cpu")
        if cuda:
            torch.cuda.set_device(self.device)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            store=dist.FileStore(str(folder / "store"), self.size),
            rank=rank,
            world_size=self.size,
            timeout=datetime.timedelta(seconds=task["limit"]),
            device_id=self.device if cuda else None,
        )
        group = dist.group.WORLD
        assert group is not None
        self.group = group
        self._lines = folder / "lines"

    def say(self, line: str) -> None:
        """A line of the report, from rank 0."""
        if self.rank == 0:
            with self._lines.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

    def synchronise(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def largest(self, value: float) -> float:
        """The largest of all ranks' values."""
        x = torch.tensor(value, dtype=torch.float64, device=self.device)
        dist.all_reduce(x, dist.ReduceOp.MAX)
        return float(x)

    def peak(self) -> str:
        """The largest memory that any rank has had in use since `reset_peak`."""
        if self.device.type != "cuda":
            return "memory not measured"
        return f"{self.largest(torch.cuda.max_memory_allocated()) / 2**30:.1f} GiB"

    def reset_peak(self) -> None:
        """Forget the memory used so far."""
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def seconds(self, function: Callable[[], object], repeats: int, warm_up: int = 1) -> float:
        """Median over repeats of the slowest rank's time."""
        times = []
        for i in range(warm_up + repeats):
            dist.barrier()
            self.synchronise()
            start = time.perf_counter()
            function()
            self.synchronise()
            if i >= warm_up:
                times.append(self.largest(time.perf_counter() - start))
        return statistics.median(times)

    def context(self, length: int, **strategies: Any) -> ContextParallel:
        """The sequence's division over all ranks."""
        return ContextParallel.of_length(length, self.group, **strategies)


def config_of(task: Task) -> StripedHyena2Config:
    """The named model's shape, or so many of its first layers."""
    name = task["model"]
    config = MODELS[name].config if name in MODELS else open_source(name).source.config
    pattern = task.get("pattern") or config.pattern[: task["layers"] or None]
    return _with_pattern(config, pattern)


def _with_pattern(config: StripedHyena2Config, pattern: str) -> StripedHyena2Config:
    gelu = tuple(index for index in config.gelu_layers if index < len(pattern))
    return config.replace(pattern=pattern, gelu_layers=gelu)


def tokens_of(length: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Random tokens, those after them, and weights: the same on all ranks."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(65, 85, (1, length + 1), generator=generator).to(device)
    return tokens[:, :-1], tokens[:, 1:], torch.ones(1, length, device=device)


def chunk_mlp(model: StripedHyena2, positions: int) -> None:
    """Let every MLP take so many positions at a time; 0 for all."""
    for block in model.blocks:
        block.mlp.chunk = positions


def step_over_ranks(rank: Rank, trained: NextTokenObjective, length: int) -> Callable[[], Tensor]:
    """A forward and backward of this rank's part; returns the part's loss, over all weights."""
    context = rank.context(length)
    parts = [context.part_of(x) for x in tokens_of(length, rank.device)]

    def step() -> Tensor:
        trained.zero_grad(set_to_none=True)
        with context_parallel(trained.model, context):
            loss, _ = trained(*parts)
            (loss / length).backward()
        return loss.detach() / length

    return step


def agreement(rank: Rank) -> None:
    """Loss and gradients over ranks, on one device, and on one device in float32."""
    task, length = rank.task, rank.task["length"]
    config = config_of(task)
    whole = tokens_of(length, rank.device)

    def gradients(trained: NextTokenObjective) -> dict[str, Tensor]:
        return {
            name: torch.zeros(p.shape, device=rank.device) if p.grad is None else p.grad.float()
            for name, p in trained.named_parameters()
        }

    def alone(
        precision: str, weights: dict[str, Tensor] | None
    ) -> tuple[NextTokenObjective, float, dict[str, Tensor]]:
        trained = objective(config, rank.device, "auto", False, precision)
        if weights is not None:
            trained.load_state_dict(weights)
        loss, _ = trained(*whole)
        (loss / length).backward()
        return trained, float(loss.detach()) / length, gradients(trained)

    trained, loss, wanted = alone("default", None)
    weights = {name: x.float() for name, x in trained.state_dict().items()}
    exact, exact_loss, exact_wanted = alone("exact", weights)
    del exact

    def compare(
        name: str,
        one_loss: float,
        one: dict[str, Tensor],
        other_loss: float,
        other: dict[str, Tensor],
    ) -> None:
        norms = {k: (float((one[k] - v).norm()), float(v.norm())) for k, v in other.items()}
        total = (
            sum(d**2 for d, _ in norms.values()) ** 0.5
            / sum(n**2 for _, n in norms.values()) ** 0.5
        )
        worst = max(norms, key=lambda k: norms[k][0] / max(norms[k][1], 1e-30))
        d, n = norms[worst]
        rank.say(
            f"  {name:<44} loss {one_loss - other_loss:+.2e} nats/base, gradients {total:.2e} (largest of a parameter {d / max(n, 1e-30):.2e}, {worst})"
        )

    rank.say(f"  loss on one device {loss:.6f} nats/base; differences, gradients relative (L2):")
    compare("one device, default precision against exact", loss, wanted, exact_loss, exact_wanted)
    for strategies in _combinations(config.pattern, rank.size):
        context = rank.context(length, **strategies)
        trained.zero_grad(set_to_none=True)
        with context_parallel(trained.model, context):
            part, _ = trained(*(context.part_of(x) for x in whole))
            (part / length).backward()
        summed = part.detach().clone()
        dist.all_reduce(summed)
        found = gradients(trained)
        for gradient in found.values():
            dist.all_reduce(gradient)
        name = ", ".join(strategies.values())
        compare(f"{rank.size} ranks ({name})", float(summed) / length, found, loss, wanted)
        compare("    against exact", float(summed) / length, found, exact_loss, exact_wanted)


def _combinations(pattern: str, size: int) -> list[dict[str, str]]:
    """Strategies for all layers of a pattern at once, the i-th of each kind together."""
    fields: dict[str, list[str]] = {}
    for symbol in dict.fromkeys(pattern):
        field, names = STRATEGIES[symbol]
        fields[field] = [n for n in names if n != "fft" or size & (size - 1) == 0]
    most = max(len(names) for names in fields.values())
    return [
        {field: names[min(i, len(names) - 1)] for field, names in fields.items()}
        for i in range(most)
    ]


def layers(rank: Rank) -> None:
    """Every kind of mixer by every strategy, beside the whole sequence on one device."""
    task, length = rank.task, rank.task["length"]
    config = config_of(task)
    kinds = "".join(symbol for symbol in STRATEGIES if symbol in config.pattern)
    trained = objective(_with_pattern(config, kinds), rank.device, "auto", False)
    dtype = trained.model.policy.compute_dtype
    rank.say(
        f"  {'':<12}{'':<22}{'forward':>12}{'+ backward':>12}   {'sent by a rank: forward, + backward':>36}  peak"
    )
    # What needs most memory goes last.
    work = [(kinds.index(s), s, name) for s in kinds for name in ("one device", *STRATEGIES[s][1])]
    work.sort(key=lambda item: (item[2] == "fft", item[0]))
    for index, symbol, name in work:
        if name == "fft" and rank.size & (rank.size - 1):
            continue
        mixer = trained.model.blocks[index].mixer
        assert isinstance(mixer, Mixer)
        whole = name == "one device"
        own = length if whole else rank.context(length).lengths[rank.rank]
        rank.reset_peak()
        try:
            # Hyena-LI's projections speak channel-first.
            x, dy = (
                _random(own, c * config.width, symbol == "H", rank.device, dtype) for c in (3, 1)
            )
            mixer.parallel = (
                None if whole else rank.context(length, **{STRATEGIES[symbol][0]: name})
            )
            line = _time_mixer(rank, mixer, x, dy)
        except torch.OutOfMemoryError:
            line = "out of memory"
        finally:
            mixer.parallel = None
        x = dy = None  # type: ignore[assignment]
        trained.zero_grad(set_to_none=True)
        rank.say(f"  {LAYER_KINDS[symbol].name:<12}{name:<22}{line}")


def _random(
    length: int, width: int, channel_first: bool, device: torch.device, dtype: torch.dtype
) -> Tensor:
    if channel_first:
        rows = torch.randn(1, width, -(-length // 8) * 8, device=device, dtype=dtype)
        return rows[:, :, :length].transpose(1, 2)
    return torch.randn(1, length, width, device=device, dtype=dtype)


def _time_mixer(rank: Rank, mixer: Mixer, x: Tensor, dy: Tensor) -> str:
    repeats = rank.task["repeats"]

    def forward() -> None:
        with torch.no_grad():
            mixer(x)

    def both() -> None:
        leaf = x.detach().requires_grad_()
        mixer(leaf)[0].backward(dy)

    with counted() as traffic:
        forward()
        sent = traffic.bytes
        both()
        sent_both = traffic.bytes - sent
    times = [rank.seconds(f, repeats) * 1e3 for f in (forward, both)]
    return f"{times[0]:9.3f} ms{times[1]:9.3f} ms   {_megabytes(rank.largest(sent)):>18}{_megabytes(rank.largest(sent_both)):>18}  {rank.peak()}"


def _megabytes(count: float) -> str:
    return f"{count / 1e6:,.3f} MB"


def step(rank: Rank) -> None:
    """A step of the whole model."""
    task, length = rank.task, rank.task["length"]
    trained = objective(config_of(task), rank.device, "auto", task["compile"])
    chunk_mlp(trained.model, task["mlp_chunk"])
    run = step_over_ranks(rank, trained, length)
    rank.reset_peak()
    seconds = rank.seconds(run, task["repeats"], task["warm_up"])
    rank.say(
        f"  {rank.size} x {rank.device.type}, {length:,} positions{_chunks(task)}: {seconds * 1e3:,.0f} ms, {length / seconds:,.0f} tokens/s, {rank.peak()} a rank"
    )
    rank.say(f"#seconds {seconds}")


def _chunks(task: Task) -> str:
    return f", MLP in chunks of {task['mlp_chunk']:,}" if task["mlp_chunk"] else ""


def adamw(rank: Rank) -> None:
    """Float32 weights, gradients and AdamW's moments, divided over the ranks, and one step of it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    task, length = rank.task, rank.task["length"]
    trained = objective(config_of(task), rank.device, "auto", False)
    chunk_mlp(trained.model, task["mlp_chunk"])
    mesh = init_device_mesh(rank.device.type, (rank.size,))
    policy = MixedPrecisionPolicy(cast_forward_inputs=False)
    for block in trained.model.blocks:
        block.float()
        if next(block.mixer.parameters(), None) is not None:
            fully_shard(block.mixer, mesh=mesh, mp_policy=policy)
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(trained.float(), mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(trained.parameters(), fused=rank.device.type == "cuda")
    run = step_over_ranks(rank, trained, length)

    def both() -> None:
        run()
        optimizer.step()

    rank.reset_peak()
    seconds = rank.seconds(both, task["repeats"], task["warm_up"])
    rank.say(
        f"  {rank.size} x {rank.device.type}, {length:,} positions{_chunks(task)}, AdamW: {seconds * 1e3:,.0f} ms, {rank.peak()} a rank"
    )


def forward(rank: Rank) -> None:
    """Log-probabilities of the tokens of one long sequence."""
    task, length = rank.task, rank.task["length"]
    model = objective(config_of(task), rank.device, "auto", False).model.eval()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    chunk_mlp(model, task["mlp_chunk"])
    context = rank.context(length)
    inputs, targets, _ = (context.part_of(x) for x in tokens_of(length, rank.device))

    def run() -> None:
        with torch.inference_mode(), context_parallel(model, context):
            hidden, _ = model.hidden(inputs)
            found = model.gather_log_probs(hidden, targets)
        assert found.isfinite().all()

    rank.reset_peak()
    seconds = rank.seconds(run, task["repeats"], task["warm_up"])
    rank.say(
        f"  {rank.size} x {rank.device.type}, {length:,} positions{_chunks(task)}: {seconds:,.1f} s, {length / seconds:,.0f} bases/s, {rank.peak()} a rank"
    )


def large(rank: Rank) -> None:
    """Attention of `[1, length, heads / 2, channels]` against single rows in float32."""
    task, length = rank.task, rank.task["length"]
    config = _with_pattern(config_of(task), "*")
    attention = objective(config, rank.device, "auto", False).model.blocks[0].mixer
    heads, width = max(1, config.num_heads // 2), config.head_width
    generator = torch.Generator(device=rank.device).manual_seed(2)
    q, k, v = (
        torch.randn(1, length, heads, width, generator=generator, device=rank.device)
        .to(attention.policy.compute_dtype)
        for _ in range(3)
    )  # fmt: skip
    with torch.inference_mode():
        y = attention.attend(q, k, v)
        worst = 0.0
        for row in sorted({0, 1, length // 3, length // 2 + 1, length - 2, length - 1}):
            keys, values = k[0, : row + 1].float(), v[0, : row + 1].float()
            scores = torch.einsum("he,she->hs", q[0, row].float(), keys) * width**-0.5
            wanted = torch.einsum("hs,she->he", scores.softmax(-1), values)
            error = (y[0, row].float() - wanted).norm() / wanted.norm()
            worst = max(worst, float(error))
    rank.say(
        f"  attention of [1, {heads}, {length:,}, {width}], {q.numel():,} elements: rows differ by {worst:.2e} at most (relative L2; bfloat16 rounds to 1.7e-03), {rank.peak()}"
    )


def work(task: Task, rank: int, folder: Path) -> int:
    """Run a task in this process; returns its exit status."""
    torch.set_num_threads(1 if task["device"] == "cpu" else torch.get_num_threads())
    try:
        place = Rank(task, rank, folder)
        functions = (agreement, layers, step, step, adamw, forward, large)
        dict(zip(SECTIONS, functions, strict=False))[task["section"]](place)
        dist.barrier()
    except torch.OutOfMemoryError as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return _OUT_OF_MEMORY
    dist.destroy_process_group()
    return 0


# --- what starts the ranks ------------------------------------------------------------------------


def launch(task: Task, say: Say) -> float | None:
    """Run a task on its ranks, printing their lines as they come; returns seconds if it names them."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        processes = []
        for rank in range(task["ranks"]):
            with (folder / f"errors{rank}").open("w") as errors:
                command = [sys.executable, __file__, "--worker", json.dumps(task), str(rank), name]
                processes.append(subprocess.Popen(command, stderr=errors, stdout=errors))
        deadline = time.monotonic() + task["limit"]
        shown, seconds = 0, None
        while True:
            states = [process.poll() for process in processes]
            over = (
                all(s is not None for s in states)
                or any(s for s in states)
                or time.monotonic() > deadline
            )
            lines = (
                (folder / "lines").read_text().splitlines() if (folder / "lines").exists() else []
            )
            for line in lines[shown:]:
                if line.startswith("#seconds "):
                    seconds = float(line.split()[1])
                else:
                    say(line)
            shown = len(lines)
            if over:
                break
            time.sleep(0.2)
        for process in processes:
            process.kill()
            process.wait()
        what = f"  {task['ranks']} x {task['device']}, {task['length']:,} positions{_chunks(task)}"
        if _OUT_OF_MEMORY in states:
            say(f"{what}: out of memory")
        elif any(states) or None in states:
            failed = next((i for i, s in enumerate(states) if s), 0)
            said = (folder / f"errors{failed}").read_text().strip().splitlines()[-8:]
            reason = (
                f"over the limit of {task['limit']} s"
                if None in states and not any(states)
                else "failed"
            )
            say(f"{what}: {reason}\n" + "\n".join(f"    {line}" for line in said))
        return seconds


def _compare_with_foretold(
    task: Task, length: int, found: dict[int, float | None], say: Say
) -> None:
    """What the cost model said of steps on an H200."""
    config = config_of(task)
    if task["device"] != "cuda" or set(config.pattern) - set(STRATEGIES):
        return
    for ranks, seconds in found.items():
        if seconds:
            cost = step_cost(config, length, ranks).seconds
            say(
                f"  foretold for {ranks}: {cost * 1e3:,.0f} ms ({cost / seconds - 1:+.1%}; MLPs in one piece)"
            )


def foretell(config: StripedHyena2Config, lengths: list[int], say: Say) -> None:
    """What the cost model says, for one GPU to 64."""
    say("foretold, H200s: seconds of a step (times as fast as one)")
    for length in (*lengths, 1048576):
        costs = {n: step_cost(config, length, n) for n in (1, 2, 4, 8, 16, 32, 64)}
        line = ", ".join(
            f"{n}: {cost.seconds:,.2f} ({costs[1].seconds / cost.seconds:.2f})"
            for n, cost in costs.items()
        )
        say(f"  {length:,} positions on {line}")


def _attempt(text: str) -> tuple[int, int]:
    ranks, length = text.split(":")
    return int(ranks), int(length)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    result.add_argument(
        "--model", default="evo2_7b", help="a released model's name, evo-mini, or a folder"
    )
    result.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    result.add_argument("--ranks", type=int, default=2)
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--layers", type=int, default=0, help="only so many of the first layers")
    result.add_argument("--lengths", nargs="+", type=int, default=[131072, 262144])
    result.add_argument("--agreement-length", type=int, default=8192)
    result.add_argument("--agreement-pattern", default="SDH*")
    result.add_argument(
        "--repeats", type=int, default=2, help="of steps; layers take five times as many"
    )
    result.add_argument("--compile", action="store_true", help="compile the blocks")
    result.add_argument("--mlp-chunk", type=int, default=16384, help="where the MLP goes in chunks")
    result.add_argument(
        "--longest", nargs="+", type=_attempt, metavar="RANKS:LENGTH",
        default=[(1, 262144), (2, 524288)],
    )  # fmt: skip
    result.add_argument(
        "--adamw", nargs="+", type=_attempt, metavar="RANKS:LENGTH",
        default=[(1, 65536), (2, 360448)],
    )  # fmt: skip
    result.add_argument("--forward", type=int, default=1048576, metavar="LENGTH")
    result.add_argument("--large", type=int, default=1048576, metavar="LENGTH")
    result.add_argument("--limit", type=int, default=540, help="seconds for one measurement")
    result.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    return result


def main() -> None:
    """Command line."""
    options = parser().parse_args()
    if options.worker:
        task, rank, folder = options.worker
        sys.exit(work(json.loads(task), int(rank), Path(folder)))
    cuda = options.device == "cuda"
    if cuda and torch.cuda.device_count() < options.ranks:
        raise SystemExit(
            f"{options.ranks} ranks need as many GPUs; this machine has {torch.cuda.device_count()}: give --ranks"
        )
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")

    def say(line: str) -> None:
        print(line, flush=True)

    where = torch.cuda.get_device_name() if cuda else platform.machine()
    say(
        f"{options.model}, random weights, {options.ranks} ranks, {where}, torch {torch.__version__}, {datetime.date.today()}; medians of {options.repeats}"
    )
    common: Task = {
        "model": options.model, "device": options.device, "ranks": options.ranks, "limit": options.limit,
        "layers": options.layers, "repeats": options.repeats, "warm_up": 1, "mlp_chunk": 0,
        "compile": options.compile,
    }  # fmt: skip
    once = {"repeats": 1, "warm_up": 0, "mlp_chunk": options.mlp_chunk}
    if "agreement" in options.sections:
        say(
            f"agreement: layers {options.agreement_pattern} of the shape, {options.agreement_length:,} positions"
        )
        pattern = {"pattern": options.agreement_pattern, "length": options.agreement_length}
        launch(common | pattern | {"section": "agreement"}, say)
    if "layers" in options.sections:
        for length in options.lengths:
            say(f"layers: {length:,} positions, whole sequence; mixers without their projections")
            task = {"section": "layers", "length": length, "repeats": 5 * options.repeats}
            launch(common | task, say)
    if "step" in options.sections:
        say("step: forward and backward of the whole model")
        for length in options.lengths:
            # In chunks on one GPU where it cannot hold the whole, and then over ranks too.
            for chunk in (0, options.mlp_chunk):
                task = {"section": "step", "length": length, "mlp_chunk": chunk}
                alone, together = (
                    launch(common | task | {"ranks": n}, say) for n in (1, options.ranks)
                )
                _compare_with_foretold(common, length, {1: alone, options.ranks: together}, say)
                if alone and together:
                    say(f"  {length:,} positions: {alone / together:.2f} times as fast")
                    break
    for section, attempts in (("longest", options.longest), ("adamw", options.adamw)):
        if section in options.sections:
            say(f"{section}: one step, without a warm-up")
            for ranks, length in attempts:
                launch(common | once | {"section": section, "ranks": ranks, "length": length}, say)
    if "forward" in options.sections:
        say("forward: log-probabilities of all tokens, once, without a warm-up")
        launch(common | once | {"section": "forward", "length": options.forward}, say)
    if "large" in options.sections:
        say("large: attention of half the heads")
        launch(common | {"section": "large", "ranks": 1, "length": options.large}, say)
    if "foretold" in options.sections:
        foretell(config_of(common), options.lengths, say)


if __name__ == "__main__":
    main()
