"""Train the provisional `evo-mini`: a StripedHyena 2 of under 2 million parameters, in minutes on one GPU.

    python recipes/pretrain/evo_mini_provisional.py --train PACKED_DIR --val PACKED_DIR -o OUT_DIR --minutes 6

The folders come from `pack_genomes.py` (training: bacteria, archaea and phages). A plain loop, to be
read in one sitting: random windows of the packed genomes, both strands, AdamW, a learning rate that
follows the clock. Afterwards the model is scored on the validation genomes as it was saved, beside
base composition and an interpolated Markov chain, and the figures go into its configuration.

Windows are drawn on the host from (seed, step), so every device sees the same ones, and gathered on
the device, where the corpus stays. Nothing in the loop waits for the device but the line printed
every few seconds. With `--minutes` the learning rate depends on the machine's speed, so two runs
agree only with `--steps`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import platform
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from genome_windows import (
    UPPER,
    WindowSampler,
    build_stream,
    byte_table,
    complement_table,
    gather_bytes,
)
from markov_baseline import baseline
from pack_genomes import PackedGenomes, read_packed
from torch import Tensor, nn
from torch.nn.utils import parametrize

from evo_toolkit.checkpoint.format import save_pretrained
from evo_toolkit.model.config import Evidence, StripedHyena2Config
from evo_toolkit.model.hyena import HyenaLI
from evo_toolkit.model.precision import PrecisionPolicy
from evo_toolkit.model.striped_hyena import StripedHyena2

MAX_PARAMETERS = 2_000_000
_SHORTEST_SCORED = 32

BF16 = PrecisionPolicy(name="default", compute_dtype=torch.bfloat16)
FP32 = PrecisionPolicy(name="default", compute_dtype=torch.float32)


class TrainingError(ValueError):
    """Training cannot start or cannot go on; one line."""


def evo_mini_config(options: argparse.Namespace) -> StripedHyena2Config:
    """The model's shape. Every MLP has its GELU: no released weights depend on their absence here."""
    return StripedHyena2Config(
        name="evo-mini",
        pattern=options.pattern,
        width=options.width,
        num_heads=options.num_heads,
        mlp_width=options.mlp_width,
        filter_groups=options.filter_groups,
        context_length=options.context,
        gelu_layers=tuple(range(len(options.pattern))),
        default_window=2048,  # provisional: long enough for most of the gain, short enough for a laptop
        domains=("bacteria", "archaea", "phages"),
        not_for=(
            "human and other vertebrate genomes",
            "eukaryotes",
            "viruses of eukaryotes (left out of the training data by choice)",
        ),
        forbidden_genomes=("vertebrate",),
    )


class NegativeExponential(nn.Module):
    """Trains `log(-log_pole)` in place of `log_pole`.

    Rates span two orders of magnitude, from 0.004 per base up: a step of Adam is about one learning
    rate, which would throw a slow pole across zero, where the filter grows without bound. In the
    logarithm a step is a few per mille of any rate and the pole stays negative.
    """

    def forward(self, log_rate: Tensor) -> Tensor:
        return -log_rate.exp()

    def right_inverse(self, log_poles: Tensor) -> Tensor:
        return (-log_poles).log()


@contextmanager
def trained_by_log_rate(model: nn.Module) -> Iterator[None]:
    """Within the block the poles of `model` are trained through `NegativeExponential`."""
    mixers = [module for module in model.modules() if isinstance(module, HyenaLI)]
    for mixer in mixers:
        parametrize.register_parametrization(mixer, "log_poles", NegativeExponential())
    try:
        yield
    finally:
        for mixer in mixers:
            parametrize.remove_parametrizations(mixer, "log_poles", leave_parametrized=True)


def parameter_groups(model: nn.Module, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Projection matrices with weight decay; filters, poles, residues and skips with their own rate; the rest."""
    projections, filters, rest = [], [], []
    for name, parameter in model.named_parameters():
        if ".mixer." in name:
            filters.append(parameter)
        elif name.startswith("blocks.") and parameter.dim() == 2:
            projections.append(parameter)
        else:
            rest.append(parameter)
    return [
        {"params": projections, "peak": options.lr, "weight_decay": options.weight_decay},
        {"params": filters, "peak": min(options.filter_lr, options.lr), "weight_decay": 0.0},
        {"params": rest, "peak": options.lr, "weight_decay": 0.0},
    ]


def rate_factor(progress: float) -> float:
    """Share of the peak learning rate: 2 % warm-up, level up to 40 %, then straight down to zero."""
    return min(1.0, progress / 0.02, max(0.0, (1 - progress) / 0.6))


def weighted_loss(model: nn.Module, tokens: Tensor, weights: Tensor) -> Tensor:
    """Weighted mean cross-entropy in nats, float32, of `[B, L + 1]` tokens from `[B, L]` logits."""
    logits = model(tokens[:, :-1]).float()
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction="none")
    scored = weights[:, 1:].flatten()
    return (loss * scored).sum() / scored.sum().clamp(min=1e-6)


def lengths(options: argparse.Namespace, step: int) -> int:
    """Window length of a step: `--long-fraction` of the steps, evenly spread, use `--context`."""
    fraction = options.long_fraction
    is_long = math.floor((step + 1) * fraction) > math.floor(step * fraction)
    return int(options.context if is_long else options.short_context)


def train(
    model: StripedHyena2, sampler: WindowSampler, val: PackedGenomes, options: argparse.Namespace
) -> dict[str, Any]:
    """Train in place.

    Returns:
        steps, tokens, seconds, tokens_per_second, and `curve`: what was printed.

    Raises:
        TrainingError: when the loss is no longer finite.
    """
    device = sampler.device

    def rows(length: int) -> int:
        return max(1, options.tokens_per_step // length)

    def pass_(step: int, length: int) -> Tensor:
        tokens, weights = sampler.batch(step, rows(length), length + 1)
        loss = weighted_loss(model, tokens, weights)
        loss.backward()
        return loss.detach()

    def quick_validation() -> float:
        length = options.short_context
        share = max(1, rows(length) // len(val.genomes)) * length
        # Too little work, of other shapes, to be worth compiling.
        with torch.compiler.set_stance("force_eager"):
            return float(np.mean(evaluate(model, val, length, options.tokens_per_step, share)))

    def synchronise() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    model.train()
    if options.compile:
        # Every kind of layer is compiled once for each of the two lengths, all under one limit.
        torch._dynamo.config.recompile_limit = 64
        for block in model.blocks:
            block.compile(dynamic=False)
    with trained_by_log_rate(model):
        optimiser = torch.optim.AdamW(
            parameter_groups(model, options), lr=0.0, betas=(0.9, 0.95), eps=1e-8,
            fused=device.type == "cuda",
        )  # fmt: skip
        # One pass of each shape before the clock starts: memory, libraries, compilation.
        for length in sorted({options.short_context, options.context}):
            pass_(0, length)
        quick_validation()
        optimiser.zero_grad(set_to_none=True)
        synchronise()

        curve: list[dict[str, float]] = []
        loss_sum = torch.zeros((), device=device)
        started = logged = time.monotonic()
        step = tokens = pending = pending_tokens = 0
        progress = 0.0
        while progress < 1:
            factor = rate_factor(max(progress, 1e-3))
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * factor
            length = lengths(options, step)
            loss_sum += pass_(step, length)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            step += 1
            pending += 1
            pending_tokens += rows(length) * length
            now = time.monotonic()
            progress = (
                step / options.steps if options.steps else (now - started) / (60 * options.minutes)
            )
            if progress < 1 and now - logged < options.log_seconds:
                continue
            bits = loss_sum.item() / pending / math.log(2)
            if not math.isfinite(bits):
                raise TrainingError(
                    f"the loss is not finite within steps {step - pending + 1} to {step}; nothing was saved: try again with a lower --lr (now {options.lr}) or --filter-lr (now {options.filter_lr})"
                )
            now = time.monotonic()
            tokens += pending_tokens
            speed = pending_tokens / (now - logged)
            check = quick_validation()
            curve.append(
                {
                    "step": step, "tokens": tokens, "seconds": round(now - started, 1),
                    "train_bits": round(bits, 4), "val_bits": round(check, 4),
                    "lr": round(options.lr * factor, 6),
                }
            )  # fmt: skip
            print(
                f"{now - started:6.0f} s  step {step:6d}  {tokens / 1e6:8.1f}M tokens  {speed / 1e3:8.1f}k tokens/s  train {bits:.4f}  val part {check:.4f} bits/base  lr {options.lr * factor:.2e}",
                flush=True,
            )
            loss_sum.zero_()
            pending = pending_tokens = 0
            logged = time.monotonic()
        seconds = time.monotonic() - started
    model.eval()
    return {
        "steps": step,
        "tokens": tokens,
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
        "curve": curve,
    }


@torch.no_grad()
def evaluate(
    model: StripedHyena2,
    packed: PackedGenomes,
    window: int,
    tokens_per_step: int,
    max_bases: int | None = None,
) -> list[float]:
    """Bits per base of every genome over both strands.

    Records are cut into windows side by side; the first base of each window (of each strand) has no
    context and is not scored, nor is what is not ACGT.

    Args:
        window: Bases in a window; a record's last one may be shorter.
        max_bases: Of each genome take about so many, in windows evenly spread.
    """
    device = model.device
    text = torch.from_numpy(packed.sequence).to(device)
    complement, scored = complement_table().to(device), byte_table(1.0, 1.0).to(device)
    result = []
    for genome in range(len(packed.genomes)):
        cuts = [
            (record.offset + position, min(window, record.length - position))
            for record in packed.records
            if record.genome == genome
            for position in range(0, record.length, window)
            if record.length - position >= _SHORTEST_SCORED
        ]
        if max_bases is not None and len(cuts) * window > max_bases:
            wanted = max(1, max_bases // window)
            cuts = [cuts[i * len(cuts) // wanted] for i in range(wanted)]
        total = torch.zeros(2, dtype=torch.float64, device=device)
        rows = max(1, tokens_per_step // window)
        both = [(start, span, strand) for strand in (0, 1) for start, span in cuts]
        for first in range(0, len(both), rows):
            part = torch.tensor(both[first : first + rows], device=device)
            start, span, reverse = part.unbind(1)
            raw = gather_bytes(text, complement, start, reverse > 0, span, window)
            inside = torch.arange(window, device=device) < span[:, None]
            weight = scored[raw.int()] * inside
            weight[:, 0] = 0
            log_probs = model.token_log_probs((raw & UPPER).long())
            log_probs[:, 0] = 0
            total += torch.stack([(log_probs * weight).double().sum(), weight.double().sum()])
        summed, count = total.tolist()
        result.append(-summed / max(count, 1.0) / math.log(2))
    return result


def stored_state(model: StripedHyena2) -> dict[str, Tensor]:
    """The weights as they are saved: mixers in float32, the rest in bfloat16, on the CPU."""
    storage = StripedHyena2(model.config, policy=BF16).storage_dtype
    return {
        name: tensor.detach().cpu().to(storage(name)) for name, tensor in model.state_dict().items()
    }


def canonical_command(parser: argparse.ArgumentParser, options: argparse.Namespace) -> str:
    """The command that repeats the run, with the names of folders replaced."""
    words = ["python", "recipes/pretrain/evo_mini_provisional.py"]
    words += ["--train", "PACKED_TRAIN", "--val", "PACKED_VAL", "-o", "OUT_DIR"]
    words += (
        ["--steps", str(options.steps)] if options.steps else ["--minutes", f"{options.minutes:g}"]
    )
    words += ["--seed", str(options.seed)]
    skip = {"help", "train", "val", "output", "baseline", "force", "minutes", "steps", "seed"}
    for action in parser._actions:
        value = getattr(options, action.dest, None)
        if action.dest in skip or value is None or value == action.default:
            continue
        flag = action.option_strings[-1]
        words += [flag] if value is True else [flag, str(value)]
    return shlex.join(words)


def measured(
    config: StripedHyena2Config,
    bits: dict[int, list[float]],
    trivial: dict[str, Any],
    command: str,
    val_bases: int | None,
) -> StripedHyena2Config:
    """The configuration with the validation figures as its evidence, each beside the baselines."""
    genomes = len(next(iter(bits.values())))
    part = "" if val_bases is None else f", about {val_bases:,} bases of each"
    beside = f"each genome's own composition {trivial['composition']:.4f}, Markov chain of order {trivial['markov_order']} {trivial['markov']:.4f}"
    return config.replace(
        evidence=tuple(
            Evidence(
                metric=f"bits per base of validation genomes, windows of {window} bases, both strands, mean of {genomes} genomes of other genera{part}",
                value=f"{np.mean(values):.4f} ({beside})",
                command=command,
            )
            for window, values in bits.items()
        )
    )


def trivial_figures(
    path: Path, train_data: PackedGenomes, val: PackedGenomes, *, required: bool
) -> dict[str, Any]:
    """Baselines from a file of `markov_baseline.py` if it is about these packings, else computed."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if (values["train"], values["val"]) == (train_data.digest, val.digest):
            return dict(values)
        reason = "is about other packings"
    except (OSError, ValueError, KeyError) as error:
        reason = f"cannot be used ({error})"
    if required:
        raise TrainingError(f"{path} {reason}; make it with markov_baseline.py")
    print("computing the baselines on the CPU", flush=True)
    return baseline(train_data, val)


def run(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Train, evaluate, save."""
    config = evo_mini_config(options)
    if config.parameter_count() > MAX_PARAMETERS:
        raise TrainingError(
            f"this shape has {config.parameter_count():,} parameters; at most {MAX_PARAMETERS:,} are allowed: reduce --width, --mlp-width or --pattern"
        )
    if not 1 <= options.short_context <= options.context:
        raise TrainingError(
            f"--short-context {options.short_context} must lie between 1 and --context {options.context}"
        )
    windows = [int(word) for word in options.val_windows.split(",")]
    if not 2 <= min(windows) <= max(windows) <= options.context:
        raise TrainingError(
            f"--val-windows {options.val_windows} must lie between 2 and --context {options.context}"
        )
    if options.output.exists() and any(options.output.iterdir()) and not options.force:
        raise TrainingError(f"{options.output} exists; choose another folder or give --force")
    name = options.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    policy = BF16 if device.type == "cuda" else FP32

    train_data, val = read_packed(options.train), read_packed(options.val)
    if options.baseline is None:
        trivial = trivial_figures(options.val / "baseline.json", train_data, val, required=False)
    else:
        trivial = trivial_figures(options.baseline, train_data, val, required=True)
    sampler = WindowSampler(
        build_stream(train_data, options.context + 1), device, seed=options.seed
    )
    model = StripedHyena2(config, policy=policy, generator_seed=options.seed).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters == config.parameter_count()
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    print(
        f"{config.pattern}: {parameters:,} parameters on {hardware}, {policy.describe()}; {len(train_data.genomes)} genomes, {train_data.sequence.size:,} bases",
        flush=True,
    )
    history = train(model, sampler, val, options)

    state = stored_state(model)
    final = StripedHyena2(config, policy=policy).to(device).eval()
    final.load_state_dict({key: value.float() for key, value in state.items()})
    bits = {
        window: evaluate(final, val, window, options.tokens_per_step, options.val_bases)
        for window in windows
    }
    print(
        f"validation, bits per base: each genome's own composition {trivial['composition']:.4f}; Markov chain of order {trivial['markov_order']} {trivial['markov']:.4f}"
    )
    for window, values in bits.items():
        own = ", ".join(
            f"{genome.file} {value:.4f}" for genome, value in zip(val.genomes, values, strict=True)
        )
        print(f"evo-mini, windows of {window}: {np.mean(values):.4f} ({own})")
    command = canonical_command(parser, options)
    config = measured(config, bits, trivial, command, options.val_bases)
    names = [genome.file for genome in train_data.genomes]
    provenance = {
        "source": "trained from scratch by recipes/pretrain/evo_mini_provisional.py",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "notes": "provisional: trained for minutes, to be replaced",
        "training": {
            "command": command,
            "seed": options.seed,
            "hardware": hardware,
            "torch": torch.__version__,
            "precision": policy.describe(),
            "parameters": parameters,
            "peak_memory_bytes": torch.cuda.max_memory_allocated()
            if device.type == "cuda"
            else None,
            "train_data_sha256": train_data.digest,
            "val_data_sha256": val.digest,
            "genomes_sha256": hashlib.sha256("\n".join(names).encode()).hexdigest(),
            "genomes": names,
            **history,
        },
        "validation": {
            "bits_per_base": {
                str(window): {g.file: round(v, 5) for g, v in zip(val.genomes, values, strict=True)}
                for window, values in bits.items()
            },
            "bases_per_genome": options.val_bases,
            "baselines": trivial,
        },
    }
    save_pretrained(state, config, options.output, provenance=provenance, force=options.force)
    size = (options.output / "model.safetensors").stat().st_size
    print(
        f"{history['tokens']:,} tokens in {history['seconds']:.0f} s; saved {options.output} ({size / 1e6:.1f} MB)"
    )


def make_parser() -> argparse.ArgumentParser:
    """The command line; see the module's text."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--train", type=Path, required=True, metavar="PACKED_DIR")
    add("--val", type=Path, required=True, metavar="PACKED_DIR")
    add("-o", "--output", type=Path, required=True, metavar="OUT_DIR")
    add("--force", action="store_true", help="replace an existing checkpoint")
    add("--minutes", type=float, default=6.0, help="training time (default %(default)s), without loading, warm-up and the final validation")  # fmt: skip
    add("--steps", type=int, help="train for so many steps instead of --minutes")
    add("--seed", type=int, default=0)
    add("--device", default="auto", help="cuda or cpu (default: cuda where there is one)")
    add("--compile", action="store_true", help="torch.compile every block")
    add("--context", type=int, default=8192, help="longest window in bases (default %(default)s)")
    add("--short-context", type=int, default=2048, help="usual window in bases (default %(default)s)")  # fmt: skip
    add("--long-fraction", type=float, default=0.25, help="share of steps, and so of tokens, with the longest window (default %(default)s)")  # fmt: skip
    add("--tokens-per-step", type=int, default=131_072, help="default %(default)s")
    add("--lr", type=float, default=3e-3, help="peak learning rate (default %(default)s)")
    add("--filter-lr", type=float, default=1e-3, help="the same for filters, poles, residues and skips (default %(default)s)")  # fmt: skip
    add("--weight-decay", type=float, default=0.1, help="of projection matrices (default %(default)s)")  # fmt: skip
    add("--pattern", default="SDH*SDH*H", help="layers (default %(default)s)")
    add("--width", type=int, default=128)
    add("--num-heads", type=int, default=4)
    add("--mlp-width", type=int, default=352)
    add("--filter-groups", type=int, default=8)
    add("--val-windows", default="512,2048,8192", help="windows of the final validation (default %(default)s)")  # fmt: skip
    add("--val-bases", type=int, help="validate on about so many bases of each genome instead of all")  # fmt: skip
    add("--baseline", type=Path, metavar="FILE", help="output of markov_baseline.py (default: baseline.json of the validation folder, else computed)")  # fmt: skip
    add("--log-seconds", type=float, default=10.0, help="default %(default)s")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    try:
        run(parser, options)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
