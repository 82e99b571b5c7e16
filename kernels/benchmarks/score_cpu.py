"""Variant scoring on a CPU beside the matrix products that it is made of, in the same run.

    python kernels/benchmarks/score_cpu.py
    python kernels/benchmarks/score_cpu.py --window 2048 --rounds 8 --threads 2

On random bases, both strands. `exact`: SNVs that share no window, through the scoring engine, in turns
with the products of its forwards alone (the same shapes and numbers of `F.linear` on tensors that are
there already); prints the share of the products' rate that scoring reaches, the median over the
turns, so that what else runs on the machine slows both sides; and the same of processor time, which
waiting for a processor does not count in. `marginal`: SNVs of which every window
holds as many as asked for, first spread evenly and then all alternates of neighbouring bases; prints SNVs
a second.
"""

from __future__ import annotations

import argparse
import collections
import json
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from evo_data.alphabet import BASES
from evo_data.contigs import ContigAliases
from evo_data.fasta import Fasta
from evo_data.vcf import VcfRecord, parse_record
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.inference.allocation import keep_freed_memory
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.allele_methods import AlleleMethods, MethodOptions
from evo_toolkit.variants.reuse import window_runner
from evo_toolkit.variants.score import VariantScorer

CONTIG = "random"


class Products(TorchDispatchMode):
    """Counts the products of activations with weights by shape: (rows, terms, columns)."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: collections.Counter[tuple[int, int, int]] = collections.Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in ("mm", "addmm", "linear"):
            x, weight = (args[1], args[2]) if name == "addmm" else (args[0], args[1])
            columns = weight.shape[0] if name == "linear" else weight.shape[1]
            self.counts[x.numel() // x.shape[-1], x.shape[-1], columns] += 1
        return func(*args, **(kwargs or {}))


class ProductsAlone:
    """The same products on tensors of their own."""

    def __init__(self, counts: collections.Counter[tuple[int, int, int]]) -> None:
        self.counts = counts
        self._inputs: dict[tuple[int, int], Tensor] = {}
        self._weights: dict[tuple[int, int], Tensor] = {}
        for rows, terms, columns in counts:
            self._inputs[rows, terms] = torch.randn(rows, terms)
            self._weights[columns, terms] = torch.randn(columns, terms)

    @torch.inference_mode()
    def __call__(self) -> None:
        for (rows, terms, columns), number in self.counts.items():
            for _ in range(number):
                F.linear(self._inputs[rows, terms], self._weights[columns, terms])


class Took(NamedTuple):
    """Seconds by the clock, and those of them that this process had a processor; of all threads."""

    wall: float
    processor: float


def took(function: Callable[[], object]) -> Took:
    wall, processor = time.perf_counter(), time.process_time()
    function()
    return Took(time.perf_counter() - wall, time.process_time() - processor)


def snvs(bases: bytes, positions: Sequence[int], alternates: int) -> list[VcfRecord]:
    """Records of one base each.

    Args:
        bases: Of the contig.
        positions: 0-based.
        alternates: Of each place, at most 3.
    """
    records = []
    for number, position in enumerate(positions):
        ref = chr(bases[position])
        alts = [base for base in BASES if base != ref][:alternates]
        line = f"{CONTIG}\t{position + 1}\t.\t{ref}\t{','.join(alts)}\t.\t.\t."
        records.append(parse_record(line.encode(), number + 1, 8, CONTIG))
    return records


def engine(
    model: StripedHyena2,
    genome: Fasta,
    window: int,
    mode: str,
    method: str,
) -> VariantScorer:
    methods = AlleleMethods(MethodOptions(names=(method,)), model)
    runner = window_runner(model, window, mode, wanted=methods.wanted)
    return VariantScorer(runner, genome, ContigAliases(genome.lengths, {}), methods=methods)


def score(scorer: VariantScorer, records: Sequence[VcfRecord]) -> int:
    """Score records; how many alleles have a score."""
    found = [allele for scored in scorer.score(records) for allele in scored.alleles]
    return sum(bool(allele.values or allele.dll is not None) for allele in found)


def exact_share(
    model: StripedHyena2, genome: Fasta, bases: bytes, window: int, rounds: int
) -> dict[str, float]:
    """Rates of scoring and of its products alone, in turns."""
    scorer = engine(model, genome, window, "exact", "delta")
    # With both strands whole forwards: what remains of one would be padding in every turn.
    rows = scorer.runner.shapes[0][0]
    sites = range(window, window + -(-rows // 2) * window, window)
    records = snvs(bases, list(sites), 1)
    with Products() as products:
        score(scorer, records)
    alone = ProductsAlone(products.counts)
    alone()
    scorer.runner.count = type(scorer.runner.count)()
    turns = [(took(lambda: score(scorer, records)), took(alone)) for _ in range(rounds)]
    tokens = scorer.runner.count.tokens / rounds
    shares = [product.wall / whole.wall for whole, product in turns]
    return {
        "tokens": tokens,
        "tokens_per_second": tokens / statistics.median(whole.wall for whole, _ in turns),
        "products_alone_tokens_per_second": tokens / statistics.median(p.wall for _, p in turns),
        "share": statistics.median(shares),
        "lowest_share": min(shares),
        "highest_share": max(shares),
        "share_of_processor_time": statistics.median(p.processor / w.processor for w, p in turns),
    }


def marginal_rate(
    model: StripedHyena2,
    genome: Fasta,
    bases: bytes,
    window: int,
    mode: str,
    positions: Sequence[int],
    alternates: int,
    rounds: int,
) -> dict[str, float]:
    """SNVs a second of `marginal`, the median over rounds."""
    scorer = engine(model, genome, window, mode, "marginal")
    records = snvs(bases, positions, alternates)
    number = score(scorer, records)
    scorer.runner.count = type(scorer.runner.count)()
    turns = [took(lambda: score(scorer, records)) for _ in range(rounds)]
    count = scorer.runner.count
    return {
        "snvs": number,
        "snvs_per_second": number / statistics.median(turn.wall for turn in turns),
        "snvs_per_processor_second": number / statistics.median(turn.processor for turn in turns),
        "tokens_per_snv": count.tokens / rounds / number,
        "padding": count.padding / count.tokens,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="evo-mini", help="name or path")
    parser.add_argument("--window", type=int, default=2048)
    parser.add_argument("--snvs", type=int, default=260, help="that a window holds")
    parser.add_argument("--windows", type=int, default=2, help="so many windows of them")
    parser.add_argument("--modes", nargs="+", default=["tiled", "shared"], help="of marginal")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, help="of PyTorch; default: its own choice")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    given = parser.parse_args()
    keep_freed_memory()
    if given.threads:
        torch.set_num_threads(given.threads)
    model = load_model(given.model, device="cpu")
    window, length = given.window, (given.windows + 24) * given.window
    bases = bytes(np.random.default_rng(0).choice(np.frombuffer(BASES.encode(), np.uint8), length))
    print(f"{given.model}, {model.policy.describe()}, {platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}, window {window}, both strands", flush=True)  # fmt: skip
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.fa"
        path.write_bytes(b">" + CONTIG.encode() + b"\n" + bases + b"\n")
        with Fasta(path) as genome:
            found = results["exact"] = exact_share(model, genome, bases, window, given.rounds)
            print(f"exact: {found['tokens_per_second']:,.0f} tokens/s, {found['share']:.1%} ({found['lowest_share']:.1%} to {found['highest_share']:.1%}) of its products alone, {found['products_alone_tokens_per_second']:,.0f} tokens/s; of processor time {found['share_of_processor_time']:.1%}", flush=True)  # fmt: skip
            places = -(-given.snvs // 3)
            spread = np.linspace(window, window * (1 + given.windows), given.windows * given.snvs, endpoint=False)  # fmt: skip
            layouts = {
                f"{given.snvs} spread over each of {given.windows} windows": (spread.astype(int).tolist(), 1),
                f"all alternates of {places} neighbours": (list(range(2 * window, 2 * window + places)), 3),
            }  # fmt: skip
            for name, (positions, alternates) in layouts.items():
                for mode in given.modes:
                    found = marginal_rate(model, genome, bases, window, mode, positions, alternates, given.rounds)  # fmt: skip
                    results[f"marginal, {mode}, {name}"] = found
                    print(f"marginal, {mode}, {name}: {found['snvs_per_second']:,.0f} SNVs/s ({found['snvs_per_processor_second']:,.0f} a second of processor time), {found['tokens_per_snv']:.1f} tokens each +{found['padding']:.1%}", flush=True)  # fmt: skip
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
