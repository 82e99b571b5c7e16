"""Choose the layout of evo-mini: short trainings of equal cost on a tenth of the genomes.

    python recipes/pretrain/search_layouts.py CORPUS VAL_CORPUS -o layouts.jsonl

Every candidate is first timed on the device, then trained for as many updates as `--seconds` of it
allow, with the recipe's optimizer and schedule, then validated. The two best are trained again with two
further seeds. While one trains, the next are compiled: a lock keeps the device to one at a time. Results
are JSON lines, one a training; a second start goes on with what is missing. The table is printed last.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer

from evo_data.corpus import Corpus
from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.training import EvoModule, GenomeDataModule, OptimizerConfig, ScheduleConfig

_RECIPE = Path(__file__).parent / "evo-mini.yaml"

# What each candidate changes in the recipe, whose optimizer is AdamW here unless said. About 7.5
# million parameters each.
CANDIDATES: dict[str, dict[str, Any]] = {
    "SE-MR-LI and attention": {},
    "attention only": {"pattern": "*" * 10},
    "LI only": {"pattern": "H" * 10},
    "no attention": {"pattern": "SDHSDHSDHS"},
    "one attention": {"pattern": "SDHSD*HSDH"},
    "LI and attention": {"pattern": "HHH*HHH*HH"},
    "wider": {
        "pattern": "SDH*SH", "width": 320, "mlp_width": 832, "filter_groups": 20, "num_heads": 5,
    },
    "deeper": {
        "pattern": "SDH*SDH*SDH*SDHS", "width": 192, "mlp_width": 512, "filter_groups": 12,
        "num_heads": 3,
    },
    "SE-MR-LI and attention, Muon": {"optimizer": {"name": "muon"}},
}  # fmt: skip

_WARM_UPDATES, _TIMED_UPDATES = 8, 24


class _Clock(Callback):
    """Seconds an update, from the eighth on."""

    def __init__(self) -> None:
        self.start = 0.0
        self.seconds = 0.0

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step in (_WARM_UPDATES, _WARM_UPDATES + _TIMED_UPDATES):
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds = (time.monotonic() - self.start) / _TIMED_UPDATES
            self.start = time.monotonic()


def a_tenth(corpus: Corpus) -> dict[str, float]:
    """Weight 0 for all genomes but every tenth by name."""
    names = sorted(genome.name for genome in corpus.genomes)
    return {name: 0.0 for index, name in enumerate(names) if index % 10}


def train_one(name: str, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Time, train and validate one candidate with one seed."""
    recipe = yaml.safe_load(_RECIPE.read_text())["model"]["init_args"]
    own = dict(CANDIDATES[name])
    # YAML 1.1 reads 3e-3 as text; the command line's parser knows better.
    given = {**recipe["optimizer"], "name": "adamw", **own.pop("optimizer", {})}
    rates: dict[str, Any] = {key: float(given[key]) for key in given if key != "name"}
    optimizer = OptimizerConfig(name=given["name"], **rates)
    shape = {**recipe["config"], **own, "context_length": options.context_length}
    shape["gelu_layers"] = tuple(range(len(shape["pattern"])))
    for key in ("domains", "not_for", "forbidden_genomes"):
        shape[key] = tuple(shape[key])
    config = StripedHyena2Config(**shape)
    corpus = Corpus.open(options.corpus)
    weights = a_tenth(corpus)
    used = [g.name not in weights for g in corpus.genomes]
    bases = sum(record.length for record in corpus.records if used[record.genome])
    data = GenomeDataModule(
        genomes=[str(options.corpus)], val_genomes=[str(options.val)], weights=weights,
        context_length=options.context_length, batch_size=options.batch_size,
        num_workers=options.workers, seed=seed,
    )  # fmt: skip

    def module() -> EvoModule:
        schedule = ScheduleConfig(**recipe["schedule"])
        return EvoModule(config, optimizer=optimizer, schedule=schedule, seed=seed)

    with tempfile.TemporaryDirectory() as folder:

        def fit(model: LightningModule, updates: int, callbacks: list[Callback]) -> Trainer:
            trainer = Trainer(
                max_steps=updates, max_epochs=-1, devices=1, accelerator=options.accelerator,
                gradient_clip_val=1.0, use_distributed_sampler=False, logger=False,
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                num_sanity_val_steps=0, check_val_every_n_epoch=None, callbacks=callbacks,
                val_check_interval=10**9, limit_val_batches=options.val_batches,
                default_root_dir=folder,
            )  # fmt: skip
            trainer.fit(model, data)
            return trainer

        model = module()
        fit(model, 2, []).validate(model, data, verbose=False)
        with options.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            clock = _Clock()
            fit(module(), _WARM_UPDATES + _TIMED_UPDATES, [clock])
            updates = max(1, int(options.seconds / clock.seconds))
            model = module()
            start = time.monotonic()
            trainer = fit(model, updates, [])
            seconds = time.monotonic() - start
            figures = trainer.validate(model, data, verbose=False)[0]
    tokens = options.batch_size * options.context_length
    return {
        "name": name,
        "seed": seed,
        "pattern": config.pattern,
        "width": config.width,
        "parameters": sum(p.numel() for p in model.model.parameters()),
        "updates": updates,
        "tokens": updates * tokens,
        "training_bases": bases,
        "tokens_per_second": tokens / clock.seconds,
        "seconds": seconds,
        "bits_per_base": figures["val/bits_per_base"],
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "torch": torch.__version__,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """One line a candidate, best first; mean and spread where it was trained with several seeds."""
    lines = [
        "| layout | pattern | width | parameters | tokens/s | tokens trained | bits per base on val (seeds) |",
        "|---|---|---|---|---|---|---|",
    ]
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row["name"], []).append(row)
    for name, own in sorted(found.items(), key=lambda item: _mean_bits(item[1])):
        first = own[0]
        bits = ", ".join(f"{r['bits_per_base']:.4f}" for r in sorted(own, key=lambda r: r["seed"]))
        mean = f"**{_mean_bits(own):.4f}** ({bits})" if len(own) > 1 else bits
        lines.append(
            f"| {name} | `{first['pattern']}` | {first['width']} | {first['parameters'] / 1e6:.2f} M | {first['tokens_per_second'] / 1e6:.2f} M | {first['tokens'] / 1e6:.0f} M | {mean} |"
        )
    return "\n".join(lines)


def _mean_bits(rows: list[dict[str, Any]]) -> float:
    return statistics.fmean(row["bits_per_base"] for row in rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path, help="made by `evo-toolkit data prepare`")
    parser.add_argument("val", type=Path, help="genomes to validate on, prepared likewise")
    parser.add_argument("-o", "--output", type=Path, required=True, help="JSON lines")
    parser.add_argument("--seconds", type=float, default=15, help="of the device, a training")
    parser.add_argument("--seeds", type=int, default=3, help="of the two best")
    parser.add_argument("--candidates", nargs="+", choices=CANDIDATES, default=list(CANDIDATES))
    parser.add_argument("--jobs", type=int, default=3, help="processes, all but one compiling")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--context-length", type=int, default=8192)
    parser.add_argument("--val-batches", type=int, default=20)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--accelerator", default="auto")
    parser.add_argument("--lock", type=Path, default=Path(tempfile.gettempdir()) / "layouts.lock")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "SEED"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        name, seed = options.one
        print(json.dumps(train_one(name, int(seed), options)))
        return

    def results() -> list[dict[str, Any]]:
        if not options.output.exists():
            return []
        return [json.loads(line) for line in options.output.read_text().splitlines()]

    def run(wanted: tuple[str, int]) -> None:
        command = [sys.executable, *sys.argv, "--one", wanted[0], str(wanted[1])]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            print(f"{wanted[0]}, seed {wanted[1]}: exit {done.returncode}", file=sys.stderr)
            return
        with options.output.open("a") as file:
            file.write(done.stdout.splitlines()[-1] + "\n")

    def run_missing(wanted: list[tuple[str, int]]) -> None:
        there = {(row["name"], row["seed"]) for row in results()}
        with ThreadPoolExecutor(options.jobs) as pool:
            list(pool.map(run, [pair for pair in wanted if pair not in there]))

    run_missing([(name, 0) for name in options.candidates])
    first = sorted((r for r in results() if r["seed"] == 0), key=lambda r: r["bits_per_base"])
    run_missing([(row["name"], seed) for row in first[:2] for seed in range(1, options.seeds)])
    print(table(results()))


if __name__ == "__main__":
    main()
