"""`evo-toolkit train`: LightningCLI over our modules, data and defaults."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
import yaml
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from evo_data.errors import EvoDataError
from evo_toolkit.errors import CheckpointError, ConfigError, EvoError, UsageError
from evo_toolkit.training.callbacks import Monitor, ProgressBar, ValidationLine
from evo_toolkit.training.checkpointing import (
    AtomicCheckpointIO,
    Checkpoints,
    find_checkpoints,
    resolve_checkpoint,
)
from evo_toolkit.training.context import register_strategies
from evo_toolkit.training.module import EvoModule
from evo_toolkit.training.recipe_files import packaged_recipe

_log = logging.getLogger("evo_toolkit")

_CONFIG_FLAGS = ("--config", "-c")
_WITHOUT_RECIPE = (
    "--print_config",
    "--model",
    "--model.class_path",
    "--model.help",
    "--data.help",
    "--help",
    "-h",
)

# The parser would silently put the linked value in its place.
_LINKED = re.compile(r"--model(\.init_args)?(\.config)?\.context_length(=|$)")

# What to validate on: what is named last, on the command line at the latest, takes the place of the rest.
_VALIDATION = ("val_genomes", "val_fraction", "val_contigs", "split")
_VALIDATION_OPTION = re.compile(rf"--data\.(?:init_args\.)?({'|'.join(_VALIDATION)})\+?")

_UNION = re.compile(
    r"Does not validate against any of the Union subtypes Subtypes: \[.*\] Errors: - (?P<reasons>.*?) "
    r"Given value type: .*? Given value: (?P<value>.*)"
)
_NESTED = re.compile(r"NestedArg\(key=.*?, val=(.*)\)")
_EXPECTED = re.compile(r"Expected an? (?:<class '(\w+)'>|typing\.(Literal\[.*?\]))")
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}

_RUN_FOLDER = "runs/default"

TRAINER_DEFAULTS = {
    # The data module divides samples among ranks itself, and resumes with another number of them.
    "use_distributed_sampler": False,
    # The model's own policy decides what is bfloat16; Lightning's casts would reach the poles.
    "precision": "32-true",
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    # An epoch is a matter of the data's; runs are counted in updates.
    "max_epochs": -1,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "default_root_dir": _RUN_FOLDER,
}

_DESCRIPTION = (
    "Train a StripedHyena 2 with Lightning. Recipes (--config) name model, data and trainer; every "
    "key can be given on the command line too. `evo-toolkit train export CHECKPOINT -o FOLDER` "
    "writes the weights of a run as a model that every other command takes."
)


class _Parser(LightningArgumentParser):
    """Says what is wrong in one line, as the other commands do; takes no abbreviations."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # `--trainer.max_step` would be a guess at `--trainer.max_steps`.
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        text = _plain(" ".join(line.strip() for line in message.splitlines()))
        sys.stderr.write(f"Error: {text}; evo-toolkit train fit --help lists the options\n")
        raise SystemExit(2) from ex


def _plain(text: str) -> str:
    """The parser's words for values of a wrong type, without those of its language."""
    if text == "the following arguments are required: genomes":
        return "no genomes; give --data.genomes FOLDER"
    union = _UNION.search(text)
    if union is not None:
        reasons = [r for r in union["reasons"].split(" - ") if "NoneType" not in r]
        value = _NESTED.sub(r"\1", union["value"])
        text = f"{text[: union.start()]}{', or '.join(reasons)}. Got value: {value}"
    return _EXPECTED.sub(
        lambda m: f"expected {_KINDS.get(m[1], m[1]) if m[1] else 'one of ' + m[2][8:-1]}", text
    )


class SaveRunConfig(SaveConfigCallback):
    """Keeps the parsed configuration of every start of a run, numbered, in the run's folder."""

    already_saved: bool

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints) and stage == "fit":
                callback.claim(trainer)  # before the configuration is written
        folder = Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("config*.yaml")))
        name = "config.yaml" if number == 0 else f"config-{number}.yaml"
        self.parser.save(self.config, folder / name, skip_none=False, overwrite=True)
        self.already_saved = True


class EvoCLI(LightningCLI):
    """LightningCLI in subclass mode: recipes name a subclass of `EvoModule` and a data module."""

    def __init__(self, args: Sequence[str], *, run: bool = True) -> None:
        super().__init__(
            EvoModule,
            LightningDataModule,
            args=list(args),
            run=run,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=SaveRunConfig,
            trainer_defaults=TRAINER_DEFAULTS,
            seed_everything_default=0,
            auto_configure_optimizers=False,
            # Our modules save no hyper-parameters: a checkpoint must not override the command line.
            load_from_checkpoint_support=False,
            parser_class=_Parser,
            parser_kwargs={"prog": "evo-toolkit train", "description": _DESCRIPTION},
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """`fit` and `validate`; the toolkit's other commands do what test and predict would."""
        every = LightningCLI.subcommands()
        return {name: every[name] for name in ("fit", "validate")}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_lightning_class_args(Checkpoints, "checkpoint")
        # Of a class that lacks one of the two, the link is left out.
        parser.link_arguments(
            "data.init_args.context_length", "model.init_args.config.context_length"
        )
        parser.link_arguments("data.init_args.context_length", "model.init_args.context_length")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        for arg in args:
            if _LINKED.match(arg):
                parser.error(
                    f"{arg.partition('=')[0]} follows from the data; give --data.context_length"
                )
        # The stock method warns whenever sys.argv is set too, which under click is always.
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        # The stock method reads the whole file and would let it override the command line.
        pass

    def instantiate_classes(self) -> None:
        try:
            super().instantiate_classes()
        except ValueError as error:
            # The parser wraps what our classes say of their arguments in a page of its own.
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, EvoError | EvoDataError):
                cause = cause.__cause__ or cause.__context__
            if cause is None:
                raise
            if isinstance(cause, ConfigError):  # of a recipe here, not of a file
                raise UsageError(str(cause)) from None
            raise cause from None

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        config = self._get(self.config_init, "trainer", default={})
        root = Path(config["default_root_dir"] or _RUN_FOLDER)
        given = config.get("callbacks") or []
        extra = [c() for c in (Monitor, ValidationLine) if not any(isinstance(g, c) for g in given)]
        if config.get("enable_progress_bar") is None:
            kwargs["enable_progress_bar"] = sys.stderr.isatty()
        if kwargs.get("enable_progress_bar", config.get("enable_progress_bar")):
            extra.append(ProgressBar())
        kwargs["callbacks"] = [*given, *extra]
        if config.get("logger") in (None, True):
            kwargs["logger"] = default_loggers(root)
        kwargs["plugins"] = [*(config.get("plugins") or []), AtomicCheckpointIO()]
        try:
            return super().instantiate_trainer(**kwargs)
        except EvoError:
            raise
        except (ValueError, ImportError) as error:  # a strategy or device that does not exist
            raise UsageError(" ".join(str(error).split())) from error

    def before_fit(self) -> None:
        """Refuse what would be found out only after seconds of set-up."""
        self._find_checkpoint()
        given = self._get(self.config_init, "ckpt_path")
        for callback in self.trainer.checkpoint_callbacks:
            if not isinstance(callback, Checkpoints):
                continue
            if given is None:
                callback.refuse_to_mix(self.trainer)
                continue
            folder = callback.folder(self.trainer)
            if given == "last" and not find_checkpoints(folder) and self.trainer.is_global_zero:
                _log.warning(
                    "%s holds no checkpoint yet: the run starts from the beginning", folder
                )

    def before_validate(self) -> None:
        self._find_checkpoint()

    def _find_checkpoint(self) -> None:
        """Let `--ckpt_path` name a run's folder too, and refuse what names no file."""
        config = self.config_init[self.subcommand]
        given = config.get("ckpt_path")
        if given in (None, "last"):
            return
        path = Path(given)
        if not given or not path.exists():
            raise CheckpointError(
                f"--ckpt_path {given or repr('')} does not exist; give a step-N.ckpt, a run's folder, or last"
            )
        config["ckpt_path"] = str(resolve_checkpoint(path))


def default_loggers(folder: Path) -> list[Logger]:
    """CSV and TensorBoard in the run's folder; Weights & Biases where it is installed and set up.

    "Set up" is a WANDB_API_KEY or WANDB_MODE in the environment: nothing asks for a password.
    """
    # Each line is written at once: a run that is killed keeps its curve.
    loggers: list[Logger] = [CSVLogger(folder, name="csv", flush_logs_every_n_steps=1)]
    if any(importlib.util.find_spec(name) for name in ("tensorboard", "tensorboardX")):
        loggers.append(TensorBoardLogger(folder, name="tensorboard"))
    else:
        _log.info("no TensorBoard files: pip install tensorboardX for them")
    if importlib.util.find_spec("wandb") and {"WANDB_API_KEY", "WANDB_MODE"} & set(os.environ):
        loggers.append(WandbLogger(save_dir=str(folder)))
    return loggers


def _recipe(name: str) -> Path | str:
    """A recipe of the package where `recipes/...` names one and no such file lies here."""
    if Path(name).exists():
        return name
    return packaged_recipe(name) or name


def _read_recipe(path: Path | str) -> dict[str, Any]:
    """A recipe as it is written.

    Raises:
        UsageError: if there is none, or the file is something else.
    """
    name = "; give a YAML file such as recipes/pretrain/tiny-cpu.yaml"
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"recipe {path} does not exist{name}") from None
    except IsADirectoryError:
        raise UsageError(f"recipe {path} is a folder{name}") from None
    except UnicodeDecodeError:
        raise UsageError(f"recipe {path} is no text{name}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = getattr(error, "problem", None) or "not YAML"
        raise UsageError(f"recipe {path}{where}: {what}") from None
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"{path} is no recipe: it has no keys such as model and data{name}")
    return values


def _overridden(recipes: Sequence[dict[str, Any]], args: Sequence[str]) -> list[str]:
    """Arguments that put aside what a recipe validates on where a later one or the user says another."""
    named = []
    for recipe in recipes:
        data = recipe.get("data")
        values = data.get("init_args", data) if isinstance(data, dict) else None
        own = values if isinstance(values, dict) else {}
        named.append({name for name in _VALIDATION if own.get(name) is not None})
    given = set()
    for position, arg in enumerate(args):
        option, equals, value = arg.partition("=")
        match = _VALIDATION_OPTION.fullmatch(option)
        if match and (value if equals else "".join(args[position + 1 : position + 2])) != "null":
            given.add(match[1])
    sources = [names for names in (*named, given) if names]
    last = sources[-1] if sources else set()
    aside = sorted(set().union(*sources[:-1]) - last) if sources else []
    return [word for name in aside for word in (f"--data.{name}", "null")]


def _with_recipes(args: Sequence[str]) -> list[str]:
    """Arguments with the recipes' paths, and with what follows from reading the recipes."""
    result, recipes = [], []
    for previous, arg in zip(["", *args], args, strict=False):
        option, equals, value = arg.partition("=")
        if previous in _CONFIG_FLAGS:
            arg = str(_recipe(arg))
            recipes.append(_read_recipe(arg))
        elif option in _CONFIG_FLAGS and equals:
            recipes.append(_read_recipe(_recipe(value)))
            arg = f"{option}={_recipe(value)}"
        result.append(arg)
    return [*result, *_overridden(recipes, args)]


def run(args: Sequence[str]) -> None:
    """Parse and carry out `evo-toolkit train ARGS`.

    Raises:
        SystemExit: by the parser: 0 after help, 2 for wrong usage.
        EvoError: for what a user can cause.
    """
    quieten()
    args = _with_recipes(args)
    register_strategies()
    words = {arg.partition("=")[0] for arg in args}
    if not words & {*_CONFIG_FLAGS, *_WITHOUT_RECIPE}:
        raise UsageError(
            "no recipe; give one with --config, such as recipes/pretrain/tiny-cpu.yaml or recipes/continue/custom-genomes.yaml"
        )
    try:
        EvoCLI(args)
    except MisconfigurationException as error:
        raise UsageError(" ".join(str(error).split())) from error
    except torch.OutOfMemoryError as error:
        raise UsageError(
            "the GPU is out of memory; give a smaller --data.batch_size (with --trainer.accumulate_grad_batches the update stays the same), or --model.checkpoint_blocks 1"
        ) from error
    except SystemExit as end:
        # Lightning ends the program itself, with the code of an error.
        if isinstance(end.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


def quieten() -> None:
    """Leave out what Lightning and torch say about things that are as they should be."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.accelerators.cuda").setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",
        ".*IterableDataset.*__len__.*",
        ".*GPU available but not used.*",
        ".*Total length of `list` across ranks is zero.*",
        ".*Checkpoint directory .* exists and is not empty.*",
        ".*No device id is provided via.*",
        ".*is smaller than the logging interval.*",
        ".*there is no last checkpoint available.*",
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
        ".*all_gather_into_tensor` is deprecated.*",
        # Of mixers under FSDP2; blocks change nothing in place.
        ".*returned a view tensor.*",
    ):
        warnings.filterwarnings("ignore", message=message)
