"""Heads, adapters and whole models trained on labelled sequences, end to end at toy size."""

from __future__ import annotations

import importlib
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from evo_toolkit.checkpoint.adapter import read_adapter
from evo_toolkit.checkpoint.load import load_model
from evo_toolkit.errors import CheckpointError, EvoError, UsageError
from evo_toolkit.finetuning.adapters import AdapterConfig
from evo_toolkit.finetuning.heads import SequenceHead, load_head
from evo_toolkit.training.cli import run

ROOT = Path(__file__).resolve().parents[2]
BOXES = ("TTGACA", "TATAAT")

Fit = Callable[..., Path]
RECIPES = sorted((ROOT / "recipes" / "finetune").glob("*.yaml"))


def sequence(rng: random.Random, length: int, box: str | None = None) -> str:
    letters = [rng.choice("ACGT") for _ in range(length)]
    if box is not None:
        at = rng.randrange(8, length - 14)
        letters[at : at + len(box)] = box
    return "".join(letters)


def write_table(path: Path, kind: str, *, rows: int = 48) -> Path:
    """Sequences of 44 to 52 bases with a label that a box in them decides."""
    rng = random.Random(7)
    lines = ["id\tsequence\tlabel"]
    for number in range(rows):
        which = number % (3 if kind == "multiclass" else 2)
        text = sequence(rng, 44 + number % 9, (None, *BOXES)[which])
        label = {
            "binary": ("no", "yes")[which % 2],
            "multiclass": ("none", "left", "right")[which],
            "multilabel": ";".join(["a"] * (which % 2) + ["b"] * (number % 4 > 1)),
            "regression": f"{which + rng.random() / 4:.3f}",
            "per_base": "".join("x" if i % 5 == which else "." if i > 30 else "o" for i in range(len(text))),
        }[kind]  # fmt: skip
        lines.append(f"s{number}\t{text}\t{label}")
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def recipe(toy_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`recipes/finetune/lora.yaml` at toy size."""
    values = yaml.safe_load((ROOT / "recipes" / "finetune" / "lora.yaml").read_text())
    values["model"]["init_args"] |= {"init_from": str(toy_model_dir), "adapter": {"rank": 4}}
    values["data"]["init_args"] |= {"batch_size": 8, "folds": 4}
    values["trainer"] |= {"max_steps": 6, "val_check_interval": 3, "accelerator": "cpu"}
    values["trainer"]["callbacks"][1]["init_args"] |= {"resamples": 20}
    values["checkpoint"] = {"every_n_steps": 2, "keep": 0}
    path = tmp_path_factory.mktemp("recipe") / "toy.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def fit(recipe: Path) -> Fit:
    def run_fit(folder: Path, *options: object) -> Path:
        words = ["fit", "--config", str(recipe), "--trainer.default_root_dir", str(folder)]
        run([*words, *map(str, options)])
        return folder

    return run_fit


def predicted(folder: Path) -> tuple[list[str], np.ndarray]:
    lines = [line.split("\t") for line in (folder / "predictions.tsv").read_text().splitlines()]
    columns = slice(lines[0].index("label") + 1, None)
    return [line[0] for line in lines[1:]], np.array([[float(v) for v in line[columns]] for line in lines[1:]])  # fmt: skip


def sequences_of(table: Path) -> dict[str, str]:
    rows = [line.split("\t") for line in table.read_text().splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


def results_of(folder: Path) -> dict[str, Any]:
    values: dict[str, Any] = json.loads((folder / "results.json").read_text())
    return values


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        genomes = ["--data.genomes", "mine"] if path.stem.startswith("language") else []
        run(["fit", "--config", str(path), *genomes, "--print_config"])
    assert end.value.code == 0, capsys.readouterr().err
    values = yaml.safe_load(capsys.readouterr().out)
    trainer = values["trainer"]
    assert trainer["max_steps"] > 0 and trainer["precision"] == "32-true"
    assert trainer["val_check_interval"] % trainer["accumulate_grad_batches"] == 0


def test_the_page_names_every_recipe() -> None:
    text = (ROOT / "recipes" / "README.md").read_text()
    assert all(f"`finetune/{path.name}`" in text for path in RECIPES)


def test_the_benchmark_of_memory_runs_at_toy_size(
    toy_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "kernels" / "benchmarks"))
    file = tmp_path / "figures.json"
    words = ["finetune_memory.py", "--model", str(toy_model_dir), "--length", "32", "--rows", "2"]
    words += ["--device", "cpu", "--steps", "1", "--json", str(file)]
    monkeypatch.setattr(sys, "argv", words)
    importlib.import_module("finetune_memory").main()
    figures = {f["method"]: f for f in json.loads(file.read_text())["figures"]}
    trained = {method: found["trained_parameters"] for method, found in figures.items()}
    assert trained["head"] == 17 < trained["lora"]
    assert figures["full"]["last_loss"] < figures["full"]["first_loss"]


@pytest.mark.parametrize("method", [pytest.param("head", marks=pytest.mark.slow), "lora", "full"])
def test_what_a_run_saves_predicts_what_the_run_predicted(
    fit: Fit, toy_model_dir: Path, tmp_path: Path, method: str
) -> None:
    table = write_table(tmp_path / "data.tsv", "binary")
    folder = fit(
        tmp_path / "run", "--data.table", table, "--model.method", method,
        "--model.optimizer.learning_rate", 0.02,
    )  # fmt: skip
    model = {
        "head": str(toy_model_dir),
        "lora": f"{toy_model_dir}+{folder / 'adapter.safetensors'}",
        "full": str(folder / "model"),
    }[method]
    ids, values = predicted(folder)
    by_id = sequences_of(table)
    head = load_head(folder / "head.safetensors")
    assert isinstance(head, SequenceHead) and head.about["estimator"] == "network"
    again = head.predict(load_model(model, device="cpu"), [by_id[name] for name in ids])
    # Rounded to 6 digits in the table.
    np.testing.assert_allclose(np.stack(again), values, rtol=2e-4, atol=2e-5)
    assert values.std() > 1e-3
    results = results_of(folder)
    assert results["split"]["parts"] == {"train": 24, "validation": 12, "test": 12}
    assert set(results["baselines"]) == {"composition", "4-mers"}
    assert (folder / "report.html").stat().st_size > 5000
    with pytest.raises(UsageError, match="was fitted on"):
        head.predict(
            load_model("evo-mini" if method == "head" else toy_model_dir, device="cpu"), ["ACGT"]
        )
    if method == "lora":
        adapter = read_adapter(folder / "adapter.safetensors")
        assert adapter.training["data_digest"] == results["data"]["digest"]
        assert adapter.head.keys() == {"mean", "scale", "outer.weight", "outer.bias"}
        # The model itself is in no file of the run.
        state = torch.load(folder / "checkpoints" / "step-00000006.ckpt", weights_only=True)
        assert all("lora_" in k or ".head." in k for k in state["state_dict"])


@pytest.mark.parametrize(
    "kind",
    [
        "regression",
        *(pytest.param(k, marks=pytest.mark.slow) for k in ("multiclass", "multilabel")),
    ],
)
def test_every_kind_of_label_of_whole_sequences(fit: Fit, tmp_path: Path, kind: str) -> None:
    table = write_table(tmp_path / "data.tsv", kind)
    folder = fit(
        tmp_path / "run", "--data.table", table, "--data.task", kind,
        "--model.network.hidden", 6, "--model.network.strands", "concat",
        "--model.network.pool", "max", "--model.network.layer", "blocks.2",
    )  # fmt: skip
    results, (ids, values) = results_of(folder), predicted(folder)
    assert results["primary"] == {"multiclass": "mcc", "multilabel": "mean_auroc", "regression": "spearman"}[kind]  # fmt: skip
    head = load_head(folder / "head.safetensors")
    assert isinstance(head, SequenceHead) and head.affine.hidden
    base = results["model"]["base"]["name"]
    model_dir = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["init_from"]  # fmt: skip
    model = load_model(f"{model_dir}+{folder / 'adapter.safetensors'}", device="cpu")
    assert base == "toy" and not any("blocks.3" in name for name in read_adapter(folder / "adapter.safetensors").factors)  # fmt: skip
    by_id = sequences_of(table)
    again = np.stack(head.predict(model, [by_id[name] for name in ids]))
    np.testing.assert_allclose(again, values, rtol=2e-4, atol=2e-5)


def test_a_class_for_every_base(fit: Fit, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    table = write_table(tmp_path / "data.tsv", "per_base")
    folder = fit(
        tmp_path / "run", "--data.table", table, "--data.task", "per_base",
        "--trainer.max_steps", 9, "--data.test", "false",
    )  # fmt: skip
    results = results_of(folder)
    assert results["split"]["judged_on"] == "validation"
    assert any("also chose the network" in warning for warning in results["warnings"])
    assert "pool" not in results["settings"] and results["settings"]["strands"] == "concat"
    assert results["primary"] == "mcc" and set(results["by_name"]) == {"o", "x"}
    rows = pq.read_table(folder / "predictions.parquet").to_pandas()
    head = load_head(folder / "head.safetensors")
    assert isinstance(head, SequenceHead) and (head.pool, head.strands) == ("none", "concat")
    by_id, name = sequences_of(table), rows["id"].iloc[0]
    own = rows[rows["id"] == name]
    assert own["position"].tolist() == list(range(len(by_id[name])))
    model_dir = yaml.safe_load((folder / "config.yaml").read_text())["model"]["init_args"]["init_from"]  # fmt: skip
    model = load_model(f"{model_dir}+{folder / 'adapter.safetensors'}", device="cpu")
    (again,) = head.predict(model, [by_id[name]])
    np.testing.assert_allclose(again, own[["p_o", "p_x"]].to_numpy(), rtol=1e-4, atol=1e-5)


def write_genome(path: Path) -> Path:
    rng = random.Random(3)
    path.write_text("".join(f">c{n}\n{sequence(rng, 1200)}\n" for n in range(4)))
    return path


@pytest.mark.parametrize("loss", ["squares", pytest.param("poisson", marks=pytest.mark.slow)])
def test_tracks_of_bigwig_files(fit: Fit, tmp_path: Path, loss: str) -> None:
    bigwig = pytest.importorskip("pyBigWig")
    genome = write_genome(tmp_path / "g.fa")
    with bigwig.open(str(tmp_path / "t.bw"), "w") as file:
        file.addHeader([(f"c{n}", 1200) for n in range(4)])
        for n in range(4):
            file.addEntries(f"c{n}", 0, values=[float(i % 7) for i in range(1200)], span=1, step=1)
    regions = tmp_path / "r.bed"
    lines = [f"c{n}\t{s}\t{s + 50}\tx\t0\t{'+-'[s % 20 // 10]}\n" for n in range(4) for s in range(0, 1100, 110)]  # fmt: skip
    regions.write_text("".join(lines))
    options = (
        "--data.regions", regions, "--data.genome", genome, "--data.task", "track",
        "--data.tracks", f"{{signal: {tmp_path / 't.bw'}}}", "--data.split_by", "none",
        "--trainer.max_steps", 4, "--model.network.bin_size", 8,
    )  # fmt: skip
    folder = fit(tmp_path / loss, *options, "--model.network.track_loss", loss)
    results = results_of(folder)
    assert results["primary"] == "pearson" and set(results["by_name"]) == {"signal"}
    with pytest.raises(UsageError, match=r"--data\.tracks"):
        fit(tmp_path / "odd", "--data.regions", regions, "--data.genome", genome, "--data.task", "track")  # fmt: skip


def write_variants(folder: Path, *, step: int = 20) -> tuple[Path, Path]:
    genome = write_genome(folder / "g.fa")
    rng = random.Random(5)
    texts = genome.read_text().split(">")[1:]
    lines = ["##fileformat=VCFv4.2", '##INFO=<ID=CLS,Number=1,Type=String,Description="x">']
    lines += [f"##contig=<ID=c{n},length=1200>" for n in range(4)]
    lines.append("#CHROM\tPOS\tID\tREF\tALT\tQUAL\tFILTER\tINFO")
    for n, text in enumerate(texts):
        bases = text.split("\n")[1]
        for pos in range(100, 1100, step):
            alt = rng.choice([b for b in "ACGT" if b != bases[pos - 1]])
            lines.append(f"c{n}\t{pos}\t.\t{bases[pos - 1]}\t{alt}\t.\t.\tCLS={'AG' if alt in 'AG' else 'CT'}")  # fmt: skip
    path = folder / "v.vcf"
    path.write_text("\n".join(lines) + "\n")
    return genome, path


def test_a_head_on_variants_is_what_score_applies(
    fit: Fit, toy_model_dir: Path, tmp_path: Path
) -> None:
    from click.testing import CliRunner

    from evo_toolkit.cli.main import cli

    genome, variants = write_variants(tmp_path, step=60)
    folder = fit(
        tmp_path / "run", "--data.variants", variants, "--data.genome", genome, "--data.labels", "CLS",
        "--data.task", "variant", "--data.window", 64, "--model.network.layer", "blocks.1",
        "--model.optimizer.learning_rate", 0.02,
    )  # fmt: skip
    ids, values = predicted(folder)
    out = tmp_path / "scored.tsv"
    words = ["score", str(variants), str(genome), "-m", str(toy_model_dir), "-q", "--window", "64"]
    words += ["--adapter", str(folder / "adapter.safetensors"), "-M", "head", "-o", str(out)]
    words += ["--head", str(folder / "head.safetensors"), "--device", "cpu"]
    done = CliRunner().invoke(cli, words)
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in out.read_text().splitlines() if line[:2] != "##"]
    names = [name.lstrip("#") for name in lines[0]]
    column = next(n for n in names if n.startswith("head_head"))
    rows = [dict(zip(names, line, strict=True)) for line in lines[1:]]
    scored = {f"{r['chrom']}-{r['pos']}-{r['ref']}-{r['alt']}": float(r[column]) for r in rows}
    found = np.array([scored[name] for name in ids])
    np.testing.assert_allclose(found, values[:, 0], rtol=1e-3, atol=1e-5)
    assert values.std() > 1e-3


def test_every_epoch_reads_all_examples_in_another_order() -> None:
    from evo_toolkit.training.finetune_data import _Numbers

    numbers = _Numbers(12, shuffled=True, seed=3)
    epochs = [[numbers[n] for n in range(first, first + 12)] for first in (0, 12, 24)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    assert [_Numbers(12, shuffled=True, seed=4)[n] for n in range(12)] != epochs[0]
    plain = _Numbers(5, shuffled=False)
    assert [plain[n] for n in (0, 4, ~1)] == [0, 4, ~1]


def test_a_resumed_run_is_the_run(
    fit: Fit, tmp_path: Path, same_state: Callable[..., None]
) -> None:
    """Also what is kept of the best network, with dropout in the adapter and rows of unequal length."""
    table = write_table(tmp_path / "data.tsv", "binary")
    options = (
        "--data.table", table, "--model.total_steps", 8, "--trainer.val_check_interval", 2,
        "--trainer.accumulate_grad_batches", 2, "--data.batch_size", 4,
        "--model.optimizer.learning_rate", 0.02,
    )  # fmt: skip
    fit(tmp_path / "whole", *options, "--trainer.max_steps", 8)
    fit(tmp_path / "parts", *options, "--trainer.max_steps", 4)
    for name in ("adapter.safetensors", "head.safetensors", "results.json", "predictions.tsv", "report.html"):  # fmt: skip
        (tmp_path / "parts" / name).unlink()
    fit(tmp_path / "parts", *options, "--trainer.max_steps", 8, "--ckpt_path", "last")
    one, other = (
        torch.load(tmp_path / name / "checkpoints" / "step-00000008.ckpt", weights_only=True)
        for name in ("whole", "parts")
    )
    for key in ("state_dict", "optimizer_states", "FinetuneData", "evo_toolkit"):
        same_state(one[key], other[key], key)
    same_state(one["callbacks"]["KeepBest"], other["callbacks"]["KeepBest"])
    best = one["callbacks"]["KeepBest"]
    # Two batches are an update, and the validation's interval is in batches.
    assert best["without"] == 8 - best["step"]
    for name in ("adapter.safetensors", "head.safetensors"):
        same_state(load_file(tmp_path / "whole" / name), load_file(tmp_path / "parts" / name))
    assert predicted(tmp_path / "whole")[0] == predicted(tmp_path / "parts")[0]


def test_a_run_ends_when_validation_gets_no_better(fit: Fit, tmp_path: Path) -> None:
    table = write_table(tmp_path / "data.tsv", "binary")
    folder = fit(
        tmp_path / "run", "--data.table", table, "--trainer.max_steps", 60,
        "--trainer.val_check_interval", 1, "--model.optimizer.learning_rate", 0.5,
        "--model.schedule", "{shape: constant, warmup_fraction: 0}",
        "--trainer.callbacks", "[{class_path: evo_toolkit.training.KeepBest, init_args: {patience: 3}}, {class_path: evo_toolkit.training.FinetuneOutputs, init_args: {resamples: 20}}]",
    )  # fmt: skip
    training = results_of(folder)["training"]
    assert training["best_step"] + 3 == training["steps"] < 60
    best = torch.load(
        folder / "checkpoints" / f"best-{training['best_step']:08d}.ckpt", weights_only=True
    )
    saved = load_file(folder / "adapter.safetensors")
    key = "objective.model.blocks.1.mlp.l1.lora_B.default.weight"
    assert torch.equal(best["state_dict"][key], saved["blocks.1.mlp.l1.lora_B"])
    last = sorted((folder / "checkpoints").glob("step-*.ckpt"))[-1]
    assert not torch.equal(torch.load(last, weights_only=True)["state_dict"][key], best["state_dict"][key])  # fmt: skip


def test_what_cannot_be_is_refused_in_one_line(fit: Fit, tmp_path: Path) -> None:
    table = write_table(tmp_path / "data.tsv", "binary")

    def refused(kind: type[Exception], said: str, *options: object) -> None:
        with pytest.raises(kind, match=said) as error:
            fit(tmp_path / "odd", *options)
        assert "\n" not in str(error.value)

    own = ("--data.table", table)
    one_class = tmp_path / "one.tsv"
    one_class.write_text("sequence\tlabel\n" + "ACGT\t1\n" * 12)
    refused(EvoError, "one label", "--data.table", one_class)
    missing = tmp_path / "missing.tsv"
    missing.write_text("sequence\tlabel\nACGT\t1\nACGG\t\nACGA\t0\n")
    refused(EvoError, r"missing.tsv:3: label is missing", "--data.table", missing)
    long = tmp_path / "long.tsv"
    rows = [f"{sequence(random.Random(i), 600)}\t{i % 2}\n" for i in range(12)]
    long.write_text("sequence\tlabel\n" + "".join(rows))
    refused(EvoError, r"long.tsv:\d+: sequence .* has 600 bases, .* 512", "--data.table", long)
    refused(UsageError, "cannot be trained through", *own, "--model.network.layer", "blocks.1.mlp")
    refused(UsageError, "does not exist", *own, "--model.network.layer", "blocks.9")
    refused(UsageError, "folds must be at least 3", *own, "--data.folds", 2)
    refused(UsageError, "table is missing", "--data.task", "binary")
    refused(UsageError, "genome is missing", "--data.task", "variant", "--data.variants", table)
    refused(UsageError, "blocks run from 0 to 3", *own, "--model.adapter.blocks", "[7]")


def test_a_checkpoint_of_another_network_is_refused(fit: Fit, tmp_path: Path) -> None:
    table = write_table(tmp_path / "data.tsv", "binary")
    folder = fit(tmp_path / "run", "--data.table", table, "--trainer.max_steps", 2)
    for options, said in (
        (("--model.adapter.rank", 8), "adapter rank 4, this run has rank 8"),
        (("--model.network.hidden", 3), "network hidden 0, this run has hidden 3"),
        (("--model.method", "full"), "method 'lora', this run has 'full'"),
    ):
        with pytest.raises(CheckpointError, match=said):
            fit(folder, "--data.table", table, "--ckpt_path", "last", *options)


def test_sequences_that_both_parts_share_are_told(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rng = random.Random(2)
    few = [sequence(rng, 50) for _ in range(4)]
    rows = [f"r{i}\t{few[i % 4]}{'ACGT'[i % 3]}\t{i % 2}\n" for i in range(24)]
    table = tmp_path / "t.tsv"
    table.write_text("id\tsequence\tlabel\n" + "".join(rows))
    folder = fit(
        tmp_path / "run", "--data.table", table, "--data.split_by", "none", "--trainer.max_steps", 2
    )
    assert any("share a 31-mer" in note for note in results_of(folder)["warnings"])
    assert sum("share a 31-mer" in record.message for record in caplog.records) == 1


def test_what_is_computed_again_leaves_out_the_same(toy_model_dir: Path) -> None:
    """Activations that are made a second time, with dropout in the adapter."""
    from evo_toolkit.finetuning.adapters import add_adapter
    from evo_toolkit.training.loss import NextTokenObjective

    def gradients(checkpoint_blocks: int) -> list[torch.Tensor]:
        model = load_model(toy_model_dir, device="cpu")
        add_adapter(model, AdapterConfig(rank=3, dropout=0.5))
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.constant_(parameter, 0.1)
        objective = NextTokenObjective(model.train(), checkpoint_blocks=checkpoint_blocks)
        ids = torch.tensor([list(b"ACGTTGCAATGGCA")])
        torch.manual_seed(4)
        loss, _ = objective(ids[:, :-1], ids[:, 1:], torch.ones(1, 13))
        loss.backward()
        return [p.grad for p in model.parameters() if p.grad is not None]

    for one, other in zip(gradients(0), gradients(1), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["lora", "full"])
def test_two_sharded_processes_train_as_one(
    fit: Fit, recipe: Path, tmp_path: Path, method: str
) -> None:
    table = write_table(tmp_path / "data.tsv", "binary")
    options = [
        "--data.table", str(table), "--model.method", method, "--trainer.max_steps", "4",
        "--model.optimizer.learning_rate", "1e-3", "--model.adapter.train_whole", "[filters]",
    ]  # fmt: skip
    fit(tmp_path / "one", *options, "--data.batch_size", 8)
    words = [sys.executable, "-m", "evo_toolkit", "train", "fit", "--config", str(recipe), *options]
    words += ["--trainer.default_root_dir", str(tmp_path / "two"), "--data.batch_size", "4"]
    words += ["--trainer.devices", "2", "--trainer.strategy", "fsdp2", "--model.checkpoint_blocks", "1"]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = (
        torch.load(tmp_path / name / "checkpoints" / "step-00000004.ckpt", weights_only=True)
        for name in ("one", "two")
    )
    assert one["state_dict"].keys() == two["state_dict"].keys()
    for key, value in one["state_dict"].items():
        # Sums in another order; Adam's first steps magnify them where gradients are tiny.
        torch.testing.assert_close(value, two["state_dict"][key], rtol=1e-3, atol=1e-4, msg=key)
    first, second = predicted(tmp_path / "one")[1], predicted(tmp_path / "two")[1]
    np.testing.assert_allclose(first, second, rtol=1e-2, atol=1e-3)


def test_an_adapter_of_a_language_model_is_exported(
    toy_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the chloroplast: what is exported has the validation loss of the run."""
    from click.testing import CliRunner

    from evo_toolkit.cli.main import cli

    genome = ROOT / "data" / "evo_data" / "demo" / "NC_000932.fa"
    words = [
        "fit", "--config", str(ROOT / "recipes" / "finetune" / "language-lora.yaml"),
        "--model.init_from", str(toy_model_dir), "--data.genomes", str(genome),
        "--data.context_length", "128", "--data.batch_size", "4", "--trainer.max_steps", "4",
        "--trainer.val_check_interval", "4", "--trainer.limit_val_batches", "1",
        "--trainer.accelerator", "cpu", "--model.adapter", "{rank: 2, alpha: 6, dropout: 0, train_whole: [filters, norms]}",
        "--model.optimizer.learning_rate", "0.02", "--model.optimizer.filter_learning_rate", "0.05",
        "--trainer.default_root_dir", str(tmp_path / "run"), "--data.cache_dir", str(tmp_path),
    ]  # fmt: skip
    run(words)
    file = tmp_path / "mine.safetensors"
    exported = ["train", "export", str(tmp_path / "run"), "-o"]
    done = CliRunner().invoke(cli, [*exported, str(tmp_path / "folder")])
    assert done.exit_code == 1 and "ends in .safetensors" in done.output
    done = CliRunner().invoke(cli, [*exported, str(file)])
    assert done.exit_code == 0, done.output
    adapter = read_adapter(file)
    assert adapter.training["steps"] == 4 and len(adapter.factors) == 20
    poles = next(v for k, v in adapter.full.items() if k.endswith("log_poles"))
    old = load_model(toy_model_dir, device="cpu")
    assert (poles < 0).all() and not torch.equal(poles, old.blocks[2].mixer.log_poles)
    # The run's own state, put into a model, is the adapted model.
    from evo_toolkit.training.finetune import AdaptedEvoModule

    module = AdaptedEvoModule(
        str(toy_model_dir), context_length=128, precision="exact",
        adapter=AdapterConfig(rank=2, alpha=6, train_whole=("filters", "norms")),
    )  # fmt: skip
    module.configure_model()
    state = torch.load(tmp_path / "run" / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    module.load_state_dict(state["state_dict"], strict=False)
    ids = torch.tensor([list(b"ACGTTGCAAT" * 9)])
    adapted = load_model(f"{toy_model_dir}+{file}", device="cpu", precision="exact")
    with torch.no_grad():
        mine, theirs = module.model(ids), adapted(ids)
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)
    assert (theirs - load_model(toy_model_dir, device="cpu", precision="exact")(ids)).abs().max() > 0.05  # fmt: skip
    with pytest.raises(UsageError, match="extends no context"):
        AdaptedEvoModule(str(toy_model_dir), context_length=1024)


def test_an_unfinished_run_on_labels_is_not_exported(fit: Fit, tmp_path: Path) -> None:
    from evo_toolkit.training.export import export_checkpoint

    table = write_table(tmp_path / "data.tsv", "binary")
    folder = fit(tmp_path / "run", "--data.table", table, "--trainer.max_steps", 2)
    with pytest.raises(CheckpointError, match="into its own folder"):
        export_checkpoint(folder, tmp_path / "x.safetensors")
