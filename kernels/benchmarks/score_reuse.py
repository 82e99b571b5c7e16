"""Tokens and time of scoring variants in every window mode, on the same records.

    python kernels/benchmarks/score_reuse.py VARIANTS.vcf.gz GENOME.fa --model evo2_7b --limit 400
    python kernels/benchmarks/score_reuse.py VARIANTS.vcf.gz GENOME.fa --model evo-mini --thin 650

Prints for `full` (each distinct window whole, the baseline), `exact`, `shared` and shared windows with
cut suffixes: tokens through the model, padding, wall time after a probe that is not counted, alleles
an hour, both ratios to the baseline, and how far the scores are from the baseline's. Models other than evo-mini
have random weights of the named shape, which take the same time as trained ones.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from model_forward import model_with, random_weights

from evo_data.contigs import ContigAliases
from evo_data.fasta import Fasta
from evo_data.vcf import VariantReader, VcfRecord
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.variants.reuse import window_runner
from evo_toolkit.variants.score import VariantScorer

BASELINE = "full"
MODES = (BASELINE, "exact", "shared", "shared+1024")


def thinned(records: Iterable[VcfRecord], distance: int) -> Iterator[VcfRecord]:
    """The records of places at least `distance` bases behind the one before, on the same contig."""
    last: tuple[str, int] | None = None
    for record in records:
        place = (record.contig, record.pos)
        new = last is None or last[0] != place[0] or place[1] - last[1] >= distance
        if new or place == last:
            last = place
            yield record


def measured(
    model: StripedHyena2,
    genome: Fasta,
    contigs: ContigAliases,
    records: list[VcfRecord],
    mode: str,
    window: int,
    strands: str,
) -> tuple[dict[str, float], np.ndarray]:
    """Counts and seconds of one mode, and the scores, NaN where there is none."""
    name, _, suffix = mode.partition("+")
    runner = window_runner(model, window, name, int(suffix) if suffix else None)
    runner.probe()
    scorer = VariantScorer(runner, genome, contigs, strands=strands)
    start = time.perf_counter()
    found = [a.dll for scored in scorer.score(records) for a in scored.alleles]
    seconds = time.perf_counter() - start
    values = np.array([np.nan if dll is None else dll for dll in found])
    scored = int(np.isfinite(values).sum())
    return {
        "alleles": scored,
        "tokens": runner.count.tokens,
        "padding": runner.count.padding,
        "seconds": seconds,
        "alleles_per_hour": scored / seconds * 3600,
    }, values


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Rank correlation; ties, which summed log-probabilities hardly have, in the order given."""
    ranks = [values.argsort(kind="stable").argsort(kind="stable") for values in (x, y)]
    return float(np.corrcoef(*ranks)[0, 1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("variants", type=Path)
    parser.add_argument("genome", type=Path)
    parser.add_argument("--model", default="evo-mini", help="evo-mini, or a shape such as evo2_7b")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", default="default")
    parser.add_argument("--window", type=int, default=8192)
    parser.add_argument("--strands", default="both", choices=["both", "fwd", "rc"])
    parser.add_argument("--modes", nargs="+", default=list(MODES), help="mode or mode+suffix")
    parser.add_argument("--limit", type=int, help="only so many records")
    parser.add_argument("--thin", type=int, default=0, help="bases between places, at least")
    parser.add_argument("--json", type=Path, help="where to write the figures too")
    given = parser.parse_args()

    if given.model == "evo-mini":
        model = load_model("evo-mini", device=given.device, precision=given.precision)
    else:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        device = device if given.device == "auto" else torch.device(given.device)
        tensors = random_weights(given.model, device, given.precision)
        model = model_with(tensors, given.model, device, given.precision, "auto")
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.machine()
    results: dict[str, dict[str, float]] = {}
    with Fasta(given.genome) as genome, VariantReader(given.variants) as reader:
        contigs = ContigAliases(genome.lengths, reader.header.contigs)
        records = list(islice(thinned(reader, given.thin), given.limit))
        print(f"{given.model}, {model.policy.describe()}, {where}, window {given.window}, {given.strands}; {len(records):,} records", flush=True)  # fmt: skip
        baseline: np.ndarray | None = None
        for mode in given.modes:
            figures, scores = measured(
                model, genome, contigs, records, mode, given.window, given.strands
            )
            if mode == BASELINE:
                baseline = scores
            line = f"{mode:>12}  {figures['tokens']:>13,} tokens +{figures['padding'] / figures['tokens']:5.1%}  {figures['seconds']:9.2f} s  {figures['alleles_per_hour']:11,.0f} alleles/h"
            if baseline is not None and mode != BASELINE:
                first = results[BASELINE]
                figures["token_ratio"] = first["tokens"] / figures["tokens"]
                figures["wall_ratio"] = first["seconds"] / figures["seconds"]
                both = np.isfinite(scores) & np.isfinite(baseline)
                figures["largest_difference"] = float(np.abs(scores - baseline)[both].max())
                figures["spearman"] = spearman(scores[both], baseline[both])
                line += f"  tokens {figures['token_ratio']:.2f}x, wall {figures['wall_ratio']:.2f}x; from {BASELINE}: at most {figures['largest_difference']:.2g} nats, Spearman {figures['spearman']:.4f}"
            results[mode] = figures
            print(line, flush=True)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
