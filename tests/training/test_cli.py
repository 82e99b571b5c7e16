"""The command: what LightningCLI gets wrong by itself, and what users see."""

from __future__ import annotations

import importlib.util
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

import evo_toolkit.training.cli as training_cli
from evo_toolkit.cli.main import cli
from evo_toolkit.errors import CheckpointError, EvoError, UsageError
from evo_toolkit.training.cli import EvoCLI, run

Fit = Callable[..., Path]


def parsed(capsys: pytest.CaptureFixture[str], *args: object) -> dict[str, object]:
    """What `--print_config` says of these arguments."""
    with pytest.raises(SystemExit) as end:
        run([str(a) for a in (*args, "--print_config")])
    assert end.value.code == 0
    return dict(yaml.safe_load(capsys.readouterr().out))


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as end:
        run([str(a) for a in args])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("Error: ") and error.count("\n") == 1
    return error


def test_later_recipes_and_the_command_line_win(
    toy_recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = tmp_path / "longer.yaml"
    longer.write_text("trainer: {max_steps: 9}\ndata: {init_args: {context_length: 128}}\n")
    values = parsed(capsys, "fit", "--config", toy_recipe, "--config", longer, "--model.optimizer.learning_rate", 1e-4, "--checkpoint.keep", 5)  # fmt: skip
    assert values["trainer"]["max_steps"] == 9  # type: ignore[index]
    assert values["trainer"]["precision"] == "32-true"  # type: ignore[index]
    assert values["trainer"]["use_distributed_sampler"] is False  # type: ignore[index]
    assert values["data"]["init_args"]["context_length"] == 128  # type: ignore[index]
    assert values["model"]["init_args"]["optimizer"]["learning_rate"] == 1e-4  # type: ignore[index]
    assert values["model"]["init_args"]["schedule"]["warmup_steps"] == 2  # type: ignore[index]
    assert values["checkpoint"]["keep"] == 5  # type: ignore[index]


def test_the_context_comes_from_the_data_alone(
    toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = parsed(capsys, "fit", "--config", toy_recipe)
    assert "context_length" not in values["model"]["init_args"]["config"]  # type: ignore[index]
    error = refused(capsys, "fit", "--config", toy_recipe, "--model.config.context_length", 5)
    assert "--data.context_length" in error


def test_what_the_command_line_says_holds_over_a_checkpoint(fit: Fit, tmp_path: Path) -> None:
    """The stock class would silently parse the checkpoint's hyper-parameters over it."""
    fit(tmp_path, "--trainer.max_steps", 2)
    path = tmp_path / "checkpoints" / "step-00000002.ckpt"
    with pytest.raises(ValueError, match=r"mlp_width 32.*this run's 48"):
        fit(tmp_path, "--model.config.mlp_width", 48, "--ckpt_path", path)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model.optimizer.learning_rat", 1), "learning_rat"),
        (("--model.optimizer.name", "sgd"), "sgd"),
        (("--trainer.max_step", 1), "max_step"),
        (("--data.context_length", "long"), "context_length"),
        (("--trainer.precision", "99"), "expected one of 64, 32, 16"),
        (("--model.class_path", "torch.nn.Linear"), "not correspond to a subclass of EvoModule"),
    ],
)
def test_slips_are_one_line(
    toy_recipe: Path,
    capsys: pytest.CaptureFixture[str],
    args: tuple[object, ...],
    words: str,
) -> None:
    assert words in refused(capsys, "fit", "--config", toy_recipe, *args)


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--model.config.width", 15), "filter_groups 2 does not divide width 15"),
        (("--model.schedule.min_ratio", 2), "min_ratio is 2"),
        (("--model.checkpoint_blocks", -1), "checkpoint_blocks is -1"),
        (("--checkpoint.every_n_steps", 0), "every_n_steps is 0"),
    ],
)
def test_values_that_cannot_be_are_one_line(
    fit: Fit, tmp_path: Path, args: tuple[object, ...], words: str
) -> None:
    with pytest.raises(EvoError, match=words) as error:
        fit(tmp_path, *args)
    assert "\n" not in str(error.value)


def test_a_run_needs_a_recipe() -> None:
    with pytest.raises(UsageError, match="--config"):
        run(["fit", "--data.genomes", "mine"])


def test_values_are_refused_in_plain_words(
    toy_recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(capsys, "fit", "--config", toy_recipe, "--data.batch_size", "many")
    assert "expected a whole number. Got value: many" in error
    error = refused(capsys, "fit", "--config", toy_recipe, "--trainer.precision", "99")
    assert "typing" not in error and "Union" not in error and "NoneType" not in error


def test_a_run_without_genomes_names_the_option(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert "--data.genomes FOLDER" in refused(capsys, "fit", "--config", "recipes/pretrain/tiny-cpu.yaml")  # fmt: skip


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, "does not exist"),
        (b"\x1f\x8b\x08", "is no text"),
        (b"ACGT" * 50, "no keys such as model and data"),
        (b"- model\n- data\n", "no keys"),
        (b"", "no keys"),
        (b"trainer: {max_steps: 3\nmodel: 1\n", "line 2"),
    ],
)
@pytest.mark.parametrize("form", ["two words", "one word"])
def test_files_that_are_no_recipe_are_one_line(
    tmp_path: Path, content: bytes | None, words: str, form: str
) -> None:
    path = tmp_path / "recipe.yaml"
    if content is not None:
        path.write_bytes(content)
    args = ["--config", str(path)] if form == "two words" else [f"--config={path}"]
    with pytest.raises(UsageError, match=words) as error:
        run(["fit", *args, "--data.genomes", "mine"])
    assert "recipe.yaml" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(UsageError, match="is a folder"):
        run(["fit", "--config", str(tmp_path), "--data.genomes", "mine"])


_TINY = ("fit", "--config", "recipes/pretrain/tiny-cpu.yaml", "--data.genomes", "mine")


@pytest.mark.parametrize(
    "args",
    [
        ("--data.split", "split.json"),
        ("--data.val_genomes=theirs",),
        ("--data.init_args.val_contigs", "[chr20]"),
        ("--data.split", "split.json", "--data.val_fraction", "null"),
    ],
)
def test_what_to_validate_on_takes_the_place_of_the_recipes(
    capsys: pytest.CaptureFixture[str], args: tuple[str, ...]
) -> None:
    values = parsed(capsys, *_TINY, *args)["data"]["init_args"]  # type: ignore[index]
    assert values["val_fraction"] is None
    assert sum(values[name] is not None for name in ("split", "val_genomes", "val_contigs")) == 1


def test_a_later_recipe_says_what_to_validate_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    later = tmp_path / "mine.yaml"
    later.write_text("data: {init_args: {split: split.json}}\n")
    values = parsed(capsys, *_TINY, "--config", later)["data"]["init_args"]  # type: ignore[index]
    assert (values["split"], values["val_fraction"]) == ("split.json", None)
    values = parsed(capsys, *_TINY, "--config", later, "--data.val_fraction", 0.2)["data"][
        "init_args"
    ]  # type: ignore[index]
    assert (values["split"], values["val_fraction"]) == (None, 0.2)
    # Nothing is put aside by an option that only says that there is none.
    values = parsed(capsys, *_TINY, "--data.val_genomes", "null")["data"]["init_args"]  # type: ignore[index]
    assert values["val_fraction"] == 0.1


def test_two_ways_to_validate_on_the_command_line_are_refused(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="both given"):
        run([*_TINY, "--data.split", "s", "--data.val_fraction", "0.1", "--trainer.default_root_dir", str(tmp_path)])  # fmt: skip


def test_a_model_that_cannot_be_is_wrong_usage(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not divide width 15"):
        fit(tmp_path, "--model.config.width", 15)


@pytest.mark.parametrize("given", ["", "best", "hpc", "absent.ckpt"])
def test_checkpoints_that_do_not_exist_are_one_line(fit: Fit, tmp_path: Path, given: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; give a step-N\.ckpt, a run's folder, or last"):  # fmt: skip
        fit(tmp_path, "--ckpt_path", given)
    assert not tmp_path.joinpath("checkpoints").exists()


def test_a_run_goes_on_from_the_folder_of_another(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path / "one", "--trainer.max_steps", 2)
    fit(tmp_path / "two", "--trainer.max_steps", 3, "--ckpt_path", tmp_path / "one")
    assert tmp_path.joinpath("two", "checkpoints", "step-00000003.ckpt").is_file()
    with pytest.raises(CheckpointError, match=r"holds no step-N\.ckpt"):
        fit(tmp_path / "three", "--ckpt_path", tmp_path)


def test_last_says_when_there_is_nothing_to_go_on_from_or_nothing_to_do(
    fit: Fit, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", "evo_toolkit")
    fit(tmp_path, "--trainer.max_steps", 2, "--ckpt_path", "last")
    assert "holds no checkpoint yet: the run starts from the beginning" in caplog.text
    assert "nothing to do" not in caplog.text
    caplog.clear()
    fit(tmp_path, "--trainer.max_steps", 2, "--ckpt_path", "last")
    assert "has 2 updates, and trainer.max_steps is 2: there was nothing to do" in caplog.text
    assert "beginning" not in caplog.text


def test_strategies_that_do_not_exist_are_one_line(fit: Fit, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="invalid strategy") as error:
        fit(tmp_path, "--trainer.strategy", "dpp")
    assert "\n" not in str(error.value)
    assert not tmp_path.joinpath("checkpoints").exists()


def test_every_start_of_a_run_keeps_its_configuration(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path, "--trainer.max_steps", 1)
    fit(tmp_path, "--trainer.max_steps", 2, "--ckpt_path", "last")
    steps = [
        yaml.safe_load((tmp_path / name).read_text())["trainer"]["max_steps"]
        for name in ("config.yaml", "config-1.yaml")
    ]
    assert steps == [1, 2]


def test_a_kept_configuration_starts_the_same_run(fit: Fit, tmp_path: Path) -> None:
    fit(tmp_path / "one", "--trainer.max_steps", 1, "--model.seed", 3)
    run(["fit", "--config", str(tmp_path / "one" / "config.yaml"), "--trainer.default_root_dir", str(tmp_path / "two")])  # fmt: skip
    assert (tmp_path / "two" / "checkpoints" / "step-00000001.ckpt").is_file()


def test_help_of_an_action_is_the_parsers(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        run(["fit", "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    for option in ("--trainer.max_steps", "--checkpoint.every_n_steps", "--ckpt_path", "evo-toolkit train"):  # fmt: skip
        assert option in text


def test_options_of_the_modules_have_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(["fit", "--model.help", "evo_toolkit.training.ContinuedEvoModule"])
    text = capsys.readouterr().out
    for option in ("init_from", "optimizer.learning_rate", "schedule.decay_fraction", "checkpoint_blocks"):  # fmt: skip
        assert option in text
    assert "--model.init_args.config" not in text


def test_through_click_nothing_is_taken_away_and_nobody_is_warned(
    toy_recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["evo-toolkit", "train", "fit", "--config", "x"])
    words = ["train", "fit", "--config", str(toy_recipe), "--trainer.default_root_dir", str(tmp_path), "--trainer.max_steps", "1"]  # fmt: skip
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    assert not [w for w in caught if "args parameter" in str(w.message)]
    assert (tmp_path / "checkpoints" / "step-00000001.ckpt").is_file()


def test_validate_reports_bits_per_base_of_a_checkpoint(
    fit: Fit, toy_recipe: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit(tmp_path, "--trainer.max_steps", 1)
    caplog.set_level("INFO", logger="evo_toolkit")
    run([
        "validate", "--config", str(toy_recipe), "--trainer.default_root_dir", str(tmp_path),
        "--trainer.limit_val_batches", "2",
        "--ckpt_path", str(tmp_path / "checkpoints" / "step-00000001.ckpt"),
    ])  # fmt: skip
    assert "validation" in caplog.text and "bits/base (even" in caplog.text


def test_absent_genomes_are_one_line_and_an_error_while_running(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = Path(__file__).resolve().parents[2] / "recipes" / "pretrain" / "tiny-cpu.yaml"
    words = ["train", "fit", "--config", str(recipe), "--data.genomes", "absent.fa"]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 1, result.output
    last = result.output.strip().splitlines()[-1]
    assert last.startswith("Error: ") and "absent.fa" in last


def test_weights_and_biases_is_used_where_it_is_installed_and_set_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stub:
        def __init__(self, save_dir: str) -> None:
            self.save_dir = save_dir

    find = importlib.util.find_spec
    monkeypatch.setattr(training_cli, "WandbLogger", Stub)
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def kinds(installed: bool) -> list[str]:
        def found(name: str) -> object:
            return object() if name == "wandb" and installed else find(name)

        monkeypatch.setattr(importlib.util, "find_spec", found)
        return [type(logger).__name__ for logger in training_cli.default_loggers(tmp_path)]

    assert kinds(installed=True) == ["CSVLogger", "TensorBoardLogger"]
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert kinds(installed=True) == ["CSVLogger", "TensorBoardLogger", "Stub"]
    assert "Stub" not in kinds(installed=False) or find("wandb")


def test_only_actions_that_the_modules_have_are_offered() -> None:
    assert EvoCLI.subcommands().keys() == {"fit", "validate"}
