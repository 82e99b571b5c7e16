"""`evo-toolkit finetune head|lora|full` from files to a head that `finetune predict` applies."""

from __future__ import annotations

import json
import random
import re
import shlex
from pathlib import Path
from typing import Any, get_args

import click
import pytest
from click.testing import CliRunner, Result

from evo_toolkit.cli import finetune_network
from evo_toolkit.cli.common import POOLS
from evo_toolkit.cli.main import cli
from evo_toolkit.finetuning import adapters, network_tasks

ROOT = Path(__file__).resolve().parents[2]


def table(path: Path, rows: int, *, seed: int = 1) -> Path:
    rng = random.Random(seed)
    lines = ["id\tsequence\tlabel"]
    for number in range(rows):
        bases = "AACGT" if number % 2 else "ACGGT"
        lines.append(f"s{number}\t{''.join(rng.choice(bases) for _ in range(60))}\t{number % 2}")
    path.write_text("\n".join(lines) + "\n")
    return path


def command(*words: object) -> Result:
    return CliRunner().invoke(cli, ["finetune", *map(str, words)])


@pytest.fixture(scope="module")
def lora_run(toy_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of `finetune lora` with a test set of its own, and that test set."""
    folder = tmp_path_factory.mktemp("lora")
    train, test = table(folder / "train.tsv", 60), table(folder / "test.tsv", 20, seed=2)
    done = command(
        "lora", train, "--task", "binary", "--test", test, "-m", toy_model_dir, "-o", folder / "run",
        "--rank", 4, "--epochs", 3, "--resamples", 20, "--learning-rate", 0.02, "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert "AUROC" in done.output and "composition" in done.output
    return folder / "run", test


def test_predictions_of_a_run_are_those_of_predict(
    lora_run: tuple[Path, Path], toy_model_dir: Path, tmp_path: Path
) -> None:
    folder, test = lora_run
    out = tmp_path / "p.tsv"
    done = command(
        "predict", folder / "head.safetensors", test, "-m", toy_model_dir,
        "--adapter", folder / "adapter.safetensors", "-o", out, "--device", "cpu",
    )  # fmt: skip
    assert done.exit_code == 0, done.output

    def values(path: Path) -> dict[str, float]:
        rows = [line.split("\t") for line in path.read_text().splitlines() if line[:1] != "#"]
        at = rows[0].index("p_1")
        return {row[0].removeprefix("test:"): float(row[at]) for row in rows[1:]}

    assert values(out) == pytest.approx(values(folder / "predictions.tsv"), abs=2e-5)
    results = json.loads((folder / "results.json").read_text())
    assert results["split"]["parts"]["test"] == 20 and results["split"]["parts"]["train"] == 48
    assert results["split"]["by"].endswith("a set of its own")
    assert results["command"] and results["data"]["sources"]
    # Without its adapter the head is refused.
    done = command("predict", folder / "head.safetensors", test, "-m", toy_model_dir, "-o", tmp_path / "q.tsv")  # fmt: skip
    assert done.exit_code == 2 and "was fitted on toy+head" in done.output


def test_a_run_is_not_replaced_unasked(lora_run: tuple[Path, Path], toy_model_dir: Path) -> None:
    folder, test = lora_run
    words = ["lora", test, "--task", "binary", "-m", toy_model_dir, "-o", folder, "--device", "cpu"]
    words += ["--epochs", 1, "--rank", 2, "--resamples", 10]
    done = command(*words)
    assert done.exit_code == 1 and "exists" in done.output
    for name in ("head.safetensors", "results.json", "predictions.tsv", "report.html", "adapter.safetensors"):  # fmt: skip
        (folder / name).rename(folder / f"{name}.old")
    done = command(*words)
    assert done.exit_code == 2 and "--resume" in done.output
    done = command(*words, "--force")
    assert done.exit_code == 0, done.output


@pytest.mark.slow
def test_per_base_labels_from_a_table(toy_model_dir: Path, tmp_path: Path) -> None:
    rng = random.Random(4)
    lines = ["sequence\tlabel"]
    for _ in range(24):
        bases = [rng.choice("ACGT") for _ in range(40)]
        lines.append(f"{''.join(bases)}\t{''.join('p' if b in 'AG' else 'y' for b in bases)}")
    data = tmp_path / "d.tsv"
    data.write_text("\n".join(lines) + "\n")
    done = command(
        "head", data, "--task", "per_base", "-m", toy_model_dir, "-o", tmp_path / "run",
        "-l", "blocks.0", "--epochs", 30, "--resamples", 20, "--device", "cpu", "--batch-size", 4,
        "--learning-rate", 0.1,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["format_version"] == 1 and results["program"].startswith("evo_toolkit ")
    metrics = results["metrics"]
    # The base itself stands in the stream behind block 0.
    assert metrics["accuracy"]["value"] > 0.9


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--precision", "vortex"), "not for training"),
        (("--feature", "alt"), "--feature is for the task variant"),
        (("--layer", "blocks.9"), "does not exist"),
        (("--fold", "7"), "fold one of them"),
        (("--target", "embedding"), "is not one of"),
    ],
)
def test_options_that_cannot_be(
    toy_model_dir: Path, tmp_path: Path, words: tuple[str, ...], said: str
) -> None:
    data = table(tmp_path / "d.tsv", 30)
    done = command(
        "lora", data, "--task", "binary", "-m", toy_model_dir, "-o", tmp_path / "run", *words
    )
    assert done.exit_code == 2 and said in done.output
    assert "Traceback" not in done.output


def page_commands() -> list[str]:
    text = (ROOT / "docs" / "how-to" / "fine-tune-the-network.md").read_text()
    blocks = re.findall(r"```bash\n(.*?)```", text, flags=re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("evo-")]


def test_commands_of_the_page_are_understood() -> None:
    """Parsed as they stand there; what they do is tested at toy size elsewhere."""
    lines = page_commands()
    assert {line.split()[1] for line in lines} == {"finetune", "embed", "convert", "score", "train"}
    for line in lines:
        found: Any = cli
        words = shlex.split(line)[1:]
        if words[:2] == ["train", "fit"]:
            assert (ROOT / words[words.index("--config") + 1]).is_file()
            continue
        context = None
        while isinstance(found, click.Group):
            context = found.make_context(words[0], words, parent=context, resilient_parsing=True)
            found, words = found.get_command(context, words[0]), words[1:]
            assert found is not None, line
        found.make_context(words[0], list(words), parent=context)


def test_choices_are_those_of_the_parts_behind() -> None:
    assert finetune_network.TARGETS == adapters.TARGETS
    assert tuple(adapters.TRAINED_WHOLE) == finetune_network.TRAINED_WHOLE
    assert get_args(network_tasks.Strands) == finetune_network.STRANDS
    assert get_args(network_tasks.Pool) == POOLS
    for name in ("head", "lora", "full"):
        done = command(name, "--help")
        assert done.exit_code == 0 and "DATA" in done.output


DEMO = ROOT / "data" / "evo_data" / "demo"


def test_bases_of_a_real_chloroplast(toy_model_dir: Path, tmp_path: Path) -> None:
    """Coding bases of a strand from its annotation; the folds are by clusters of shared 31-mers."""
    tiles = tmp_path / "tiles.bed"
    tiles.write_text("".join(f"NC_000932.1\t{s}\t{s + 400}\tt\t0\t+\n" for s in range(50_000, 80_000, 1_000)))  # fmt: skip
    done = command(
        "lora", tiles, "--genome", DEMO / "NC_000932.fa", "--task", "per_base", "--annotation",
        DEMO / "NC_000932.gff3", "--classes", "CDS", "-m", toy_model_dir, "-o", tmp_path / "run",
        "--rank", 2, "--epochs", 2, "--resamples", 20, "--device", "cpu", "-l", "blocks.1",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["label_names"] == ["none", "CDS"] and results["num_examples"] == 6
    assert set(results["baselines"]) == {"7-mer around the base"}
    assert sum(map(sum, results["confusion"])) == 6 * 400


@pytest.mark.slow
def test_genes_of_a_real_chloroplast_with_all_of_the_model(
    toy_model_dir: Path, tmp_path: Path
) -> None:
    done = command(
        "full", DEMO / "NC_000932.gff3", "--genome", DEMO / "NC_000932.fa", "--task", "binary",
        "--type", "tRNA", "--type", "CDS", "--classes", "tRNA,CDS", "--window", 200,
        "-m", toy_model_dir, "-o", tmp_path / "run", "--epochs", 2, "--resamples", 20,
        "--device", "cpu", "--learning-rate", 1e-3,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["data"]["counts"] == {"tRNA": 37, "CDS": 104}
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()
