"""What a step over ranks costs: bytes by counting, seconds from measured rates of one kind of GPU.

A step is a forward and backward of one sequence with activations kept between blocks alone, so that every
block's forward is computed twice, exchanges included. Optimizer and the sum of gradients over ranks are not
in it; the bytes of the latter are told beside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from evo_toolkit.errors import UsageError
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.parallel.all_to_all import PIECES

DEFAULT_STRATEGY = MappingProxyType({"S": "halo", "D": "halo", "H": "states", "*": "heads"})
"""What `ContextParallel` takes by itself, by the symbol of the layer."""


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Rates that one GPU attains, each measured alone or, where it says so, assumed.

    Attributes:
        products: Operations per second of bfloat16 products of a 7B model's shapes.
        attention: Of causal attention's forward, by its pairs of a query and a key that it sees.
        attention_backward: The same for its backward, which has two and a half times the operations.
        head: Operations per second of float32 products.
        memory: Bytes per second of a copy, read and written.
        mixers: Seconds for an element (one channel of one position) of each Hyena mixer: forward, and
            forward with backward.
        link: Bytes per second that a GPU sends to others of its machine in an all-to-all.
        machine: GPUs of a machine.
        network: Bytes per second that a GPU sends to other machines.
        message: Seconds of the smallest message.
    """

    products: float
    attention: float
    attention_backward: float
    head: float
    memory: float
    mixers: Mapping[str, tuple[float, float]]
    link: float
    machine: int
    network: float
    message: float


H200 = Hardware(
    # docs/benchmarks.md: model_forward.py and operators.py on one H200, torch 2.11.0+cu130, 2026-11-22:
    # 2,484 ms of products and 1,234 ms of five layers' attention in a forward of 131,072 positions.
    products=684e12,
    attention=570e12,
    # A layer of attention with projections takes 280 and 997 ms at 131,072 positions, its projections
    # 25.3 and 73.9; the same day and device.
    attention_backward=527e12,
    head=50e12,  # the data sheet says 67; within a hundredth of a step
    memory=4.26e12,
    mixers=MappingProxyType(
        {"S": (2.00e-12, 7.61e-12), "D": (3.08e-12, 15.7e-12), "H": (2.46e-12, 12.9e-12)}
    ),
    # Two H200s of one machine: all-to-all at 512 MiB, and a message of 4 KiB, the same day.
    link=292e9,
    machine=8,
    network=50e9,  # assumed: one port of 400 Gbit/s a GPU
    message=80e-6,
)
"""One NVIDIA H200; what is assumed and not measured: `network`, `machine` and `head`."""


@dataclass(frozen=True)
class Sent:
    """Bytes that the rank that sends most sends to others for one layer, without what is computed again."""

    forward: int
    backward: int

    @property
    def both(self) -> int:
        return self.forward + self.backward


@dataclass(frozen=True)
class StepCost:
    """Seconds of a rank's step, and where they go.

    Attributes:
        products: Projections, MLPs and head.
        mixers: Hyena mixers and attention.
        elementwise: Norms, gates, residuals, and the copies of exchanges.
        passes: Hyena-LI's end states and their gradients.
        exchange: Messages and all-to-alls, none of them hidden.
        gradient_bytes: What a rank sends to sum the gradients over ranks, in float32, once a step.
    """

    products: float
    mixers: float
    elementwise: float
    passes: float
    exchange: float
    gradient_bytes: int

    @property
    def seconds(self) -> float:
        return self.products + self.mixers + self.elementwise + self.passes + self.exchange


def sent(
    config: StripedHyena2Config,
    symbol: str,
    strategy: str,
    length: int,
    ranks: int,
    *,
    batch: int = 1,
    width: int = 2,
    accumulated: int = 4,
) -> Sent:
    """Bytes of one layer over ranks with equal parts.

    Args:
        symbol: "S", "D", "H" or "*", as in a pattern.
        strategy: As in `ContextParallel`, "heads" and "ring" for attention.
        length: Positions of the whole sequence; the ranks divide it.
        width: Bytes of an activation.
        accumulated: Bytes of a state or of half a complex number.

    Raises:
        UsageError: for a strategy that this kind of layer does not have.
    """
    if ranks == 1:
        return Sent(0, 0)
    D, n, taps = config.width, length // ranks, config.featurizer_length
    reach = {"S": taps + config.se_length - 2, "D": taps + config.mr_length - 2}.get(
        symbol, taps - 1
    )

    def halo(positions: int) -> Sent:
        # Forward from all but the last rank, backward from all but the first; a rank between does both.
        one = batch * positions * 3 * D * width
        return Sent(one, one if ranks > 2 else 0)

    if strategy in ("halo", "halo-overlapped") and symbol in "SD":
        return halo(reach)
    if strategy == "states" and symbol == "H":
        states = batch * D * config.li_order * accumulated * (ranks - 1)
        edges = halo(reach)
        return Sent(edges.forward + states, edges.backward + states)
    if strategy in ("all-to-all", "all-to-all-pipelined", "heads"):
        groups = config.num_heads if symbol == "*" else D if symbol == "H" else config.filter_groups
        piece = -(-groups // (PIECES if strategy == "all-to-all-pipelined" else 1))
        cuts = [min(piece, groups - first) for first in range(0, groups, piece)]
        channels = D // groups * sum(-(-cut // ranks) for cut in cuts)  # of one rank, filled up
        one = 4 * batch * n * channels * width * (ranks - 1)
        return Sent(one, one)
    if strategy == "fft" and symbol in "SDH" and ranks & (ranks - 1) == 0:
        edges = halo(taps - 1)
        swaps = 2 * (ranks.bit_length() - 1) * batch * n * D * 2 * accumulated
        return Sent(edges.forward + swaps, edges.backward + swaps)
    if strategy == "ring" and symbol == "*":
        part = 2 * batch * n * D * width
        # Rank r passes on the parts of ranks 0 to r, and sends the gradients of all but its own home.
        passed = [r + 1 if r < ranks - 1 else 0 for r in range(ranks)]
        most = max(range(ranks), key=lambda r: 2 * passed[r] + r)
        return Sent(part * passed[most], part * (passed[most] + most))
    raise UsageError(
        f"layer {symbol!r} has no strategy {strategy!r} over {ranks} ranks; see docs/explanation/context_parallelism.md"
    )


def step_cost(
    config: StripedHyena2Config,
    length: int,
    ranks: int,
    *,
    strategies: Mapping[str, str] = DEFAULT_STRATEGY,
    hardware: Hardware = H200,
    backward: bool = True,
) -> StepCost:
    """Seconds of one sequence over ranks, batch 1.

    Args:
        length: Positions of the whole sequence.
        strategies: Strategy by symbol.
        backward: Forward twice and backward once; False: forward alone, without gradients.
    """
    D, F, h = config.width, config.mlp_width, hardware
    n = length / ranks
    again = 2 if backward else 1  # how often a forward is computed
    rate = h.link if ranks <= h.machine else h.network
    products = mixers = elementwise = passes = exchange = 0.0
    for symbol in config.pattern:
        strategy = strategies.get(symbol, "")
        if symbol not in DEFAULT_STRATEGY:
            raise UsageError(
                f"the rates of layers {symbol!r} have not been measured; S, D, H and * have"
            )
        layer_products = 2 * (4 * D * D + 3 * D * F) * n / h.products
        products += layer_products * (again + (2 if backward else 0))
        # Two norms with a residual and a gate forward; bytes of bfloat16 by reads and writes.
        forward_bytes = 2 * n * (2 * D + 4 * D + 3 * F + 3 * D * backward)
        backward_bytes = 2 * n * (3 * D + 4 * D + 5 * F + 4 * D)
        traffic = forward_bytes * again + backward_bytes * backward
        if symbol == "*":
            pairs = 4 * D * length * length / 2 / ranks
            if strategy == "ring":  # the last rank waits for nobody and does most
                pairs *= (2 * ranks - 1) / ranks
            else:  # heads are filled up to a multiple of the ranks
                pairs *= -(-config.num_heads // ranks) * ranks / config.num_heads
            mixers += pairs * again / h.attention
            mixers += backward * 2.5 * pairs / h.attention_backward
        else:
            forward, both = h.mixers[symbol]
            mixers += n * D * (forward * again + backward * (both - forward))
            if symbol == "H" and strategy == "states" and ranks > 1:
                # Over k and v forward, over q and the output's gradient backward.
                passes += n * D * forward * (again + backward) / 2
        message = sent(config, symbol, strategy, length, ranks)
        if strategy in ("heads", "ring", "all-to-all", "all-to-all-pipelined") and ranks > 1:
            # Packed and unpacked, q, k, v and what comes back: each copied twice at both ends.
            traffic += 2 * 2 * 4 * n * D * 2 * (again + backward)
        elementwise += traffic / h.memory
        if ranks > 1:
            moved = message.forward * again + message.backward * backward
            turns = 2 * (again + backward)
            exchange += moved / rate + turns * h.message * math.ceil(math.log2(ranks))
    products += 2 * D * config.vocab_size * n * (3 if backward else 1) / h.head
    gradients = 2 * (ranks - 1) / ranks * 4 * _parameters(config)
    return StepCost(products, mixers, elementwise, passes, exchange, int(gradients))


def _parameters(config: StripedHyena2Config) -> int:
    """Weights of the products alone, which are nearly all."""
    D, F = config.width, config.mlp_width
    return config.num_layers * (4 * D * D + 3 * D * F) + config.vocab_size * D
