"""Every recipe parses and builds its model; every command of recipes/README.md runs at toy size."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from evo_toolkit.model.config import StripedHyena2Config
from evo_toolkit.training.cli import run
from evo_toolkit.training.schedules import ScheduleConfig

ROOT = Path(__file__).resolve().parents[2]
# Those of synthetic tasks and of labelled sequences read no genomes: test_synthetics.py, test_finetune.py.
_OTHERS = ("synthetics", "finetune")
RECIPES = sorted(p for p in (ROOT / "recipes").rglob("*.yaml") if p.parent.name not in _OTHERS)
DEMO = ROOT / "data" / "evo_data" / "demo" / "NC_000932.fa"

_TOY_SHAPE = {
    "pattern": "SDH*", "width": 16, "num_heads": 2, "mlp_width": 32, "filter_groups": 2,
    "mr_length": 16, "gelu_layers": "[0,1,2,3]",
}  # fmt: skip


def test_all_the_kinds_that_are_promised_are_there() -> None:
    names = {str(path.relative_to(ROOT / "recipes")) for path in RECIPES}
    assert names >= {
        "pretrain/tiny-cpu.yaml",
        "pretrain/evo-mini.yaml",
        "pretrain/100m.yaml",
        "pretrain/1b.yaml",
        "continue/custom-genomes.yaml",
        "extend/context-32k.yaml",
        "extend/context_1m.yaml",
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe_parses(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["fit", "--config", str(path), "--data.genomes", "mine", "--print_config"])
    assert end.value.code == 0, capsys.readouterr().err
    values: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    trainer = values["trainer"]
    assert trainer["max_steps"] > 0 and trainer["precision"] == "32-true"
    assert trainer["use_distributed_sampler"] is False
    # A validation within an accumulation would hold up the step.
    assert trainer["val_check_interval"] % trainer["accumulate_grad_batches"] == 0
    model, data = values["model"]["init_args"], values["data"]["init_args"]
    ScheduleConfig(**model["schedule"])
    if "config" in model:
        config = dict(model["config"], context_length=data["context_length"])
        config = {k: v for k, v in config.items() if k != "evidence"}
        built = StripedHyena2Config.from_dict(config)
        assert built.gelu_layers == tuple(range(built.num_layers))
        expected = {
            "tiny-cpu": (2e5, 4e5),
            "evo-mini": (7e6, 8e6),
            "100m": (90e6, 110e6),
            "1b": (1.0e9, 1.2e9),
        }[path.stem]
        assert expected[0] < built.parameter_count() < expected[1]


def test_evo_mini_fits_into_the_wheel() -> None:
    values = yaml.safe_load((ROOT / "recipes" / "pretrain" / "evo-mini.yaml").read_text())
    config = StripedHyena2Config.from_dict(
        {**values["model"]["init_args"]["config"], "context_length": 8192}
    )
    from evo_toolkit.checkpoint.names import weight_bytes

    assert weight_bytes(config, 2) < 16e6


def commands() -> list[str]:
    """The training commands of the page, one a line."""
    text = (ROOT / "recipes" / "README.md").read_text().replace("\\\n", " ")
    blocks = re.findall(r"```(?:bash|console)?\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    fits = [line for line in lines if line.startswith("evo-toolkit train fit")]
    return [line for line in fits if "recipes/synthetics/" not in line]


def test_the_page_names_every_recipe() -> None:
    text = "\n".join(commands())
    for path in RECIPES:
        assert str(path.relative_to(ROOT)) in text, path


@pytest.mark.parametrize("command", commands(), ids=lambda c: re.findall(r"(\w[\w-]*)\.yaml", c)[0])
def test_every_command_of_the_page_runs_at_toy_size(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_model_dir: Path
) -> None:
    monkeypatch.setenv("EVO_TOOLKIT_CACHE", str(tmp_path / "cache"))
    # The names of the page are those of the checkout; what it calls my_genomes lies here.
    monkeypatch.chdir(tmp_path)
    for folder in ("my_genomes", "their_genomes"):
        (tmp_path / folder).mkdir()
        shutil.copy(DEMO, tmp_path / folder / f"{folder}.fa")
    words = shlex.split(command)[2:]
    toy = ["--trainer.max_steps=2", "--trainer.accelerator=cpu", "--trainer.devices=1"]
    toy += ["--trainer.strategy=auto", "--trainer.accumulate_grad_batches=1"]
    toy += ["--trainer.val_check_interval=2", "--trainer.limit_val_batches=1"]
    toy += ["--data.context_length=64", "--data.batch_size=2", "--data.num_workers=0"]
    if "pretrain" in command:
        shape = {k: v for k, v in _TOY_SHAPE.items() if f"--model.config.{k}" not in words}
        toy += [f"--model.config.{key}={value}" for key, value in shape.items()]
    else:
        toy += [f"--model.init_from={toy_model_dir}"]
    run([*words, *toy])
    assert list(tmp_path.rglob("step-00000002.ckpt"))
