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
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from evo_data.errors import EvoDataError
from evo_toolkit.errors import EvoError, UsageError
from evo_toolkit.training.callbacks import Monitor, ProgressBar, ValidationLine
from evo_toolkit.training.checkpointing import AtomicCheckpointIO, Checkpoints
from evo_toolkit.training.module import EvoModule
from evo_toolkit.training.strategy import register_strategies

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

_RUN_FOLDER = "runs/default"

_TRAINER_DEFAULTS = {
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
        text = " ".join(line.strip() for line in message.splitlines())
        sys.stderr.write(f"Error: {text}; evo-toolkit train fit --help lists the options\n")
        raise SystemExit(2) from ex


class SaveRunConfig(SaveConfigCallback):
    """Keeps the parsed configuration of every start of a run, numbered, in the run's folder."""

    already_saved: bool

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        if self.already_saved or not trainer.is_global_zero:
            return
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
            trainer_defaults=_TRAINER_DEFAULTS,
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
        if self._get(self.config_init, "ckpt_path") is None:
            for callback in self.trainer.checkpoint_callbacks:
                if isinstance(callback, Checkpoints):
                    callback.refuse_to_mix(self.trainer)


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
    path = Path(name)
    if path.exists() or path.parts[:1] != ("recipes",):
        return name
    package = Path(__file__).resolve().parents[1]
    for root in (package / "_recipes", package.parent / "recipes"):
        if root.joinpath(*path.parts[1:]).is_file():
            return root.joinpath(*path.parts[1:])
    return name


def run(args: Sequence[str]) -> None:
    """Parse and carry out `evo-toolkit train ARGS`.

    Raises:
        SystemExit: by the parser: 0 after help, 2 for wrong usage.
        EvoError: for what a user can cause.
    """
    _quieten()
    args = [
        str(_recipe(arg)) if previous in _CONFIG_FLAGS else arg
        for previous, arg in zip(["", *args], args, strict=False)
    ]
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


def _quieten() -> None:
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
        ".*`isinstance.treespec, LeafSpec.` is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
