"""The command `evo-toolkit`: names and one-line helps of its commands, imported when they run.

The helps stand in a table, so that `evo-toolkit --help` imports no command and so neither torch nor
numpy, and a command that cannot be imported does not take the others' help with it.
"""

from __future__ import annotations

import importlib
import logging
import signal
from types import FrameType
from typing import NamedTuple, NoReturn

import click

from evo_toolkit._version import __version__
from evo_toolkit.cli.common import PROGRAM, flush_stdout, one_line_errors
from evo_toolkit.inference.allocation import keep_freed_memory


class Entry(NamedTuple):
    """Where a command lives, and what the list of commands says of it."""

    module: str
    attribute: str
    help: str


COMMANDS: dict[str, Entry] = {
    "score": Entry("evo_toolkit.cli.score", "score", "Score variants against a genome."),
    "ism": Entry("evo_toolkit.cli.ism", "ism", "Score every substitution of a region; logo and heatmap."),
    "track": Entry("evo_toolkit.cli.track", "track", "Log-likelihood and entropy of each base."),
    "embed": Entry("evo_toolkit.cli.embed", "embed", "Embed sequences, regions or variants."),
    "log-likelihood": Entry("evo_toolkit.cli.log_likelihood", "log_likelihood", "Log-likelihood of each sequence of a FASTA."),
    "generate": Entry("evo_toolkit.cli.generate", "generate", "Continue a sequence."),
    "data": Entry("evo_toolkit.cli.data", "data", "Prepare genomes for training."),
    "train": Entry("evo_toolkit.cli.train", "train", "Train a model on genomes."),
    "finetune": Entry("evo_toolkit.cli.finetune", "finetune", "Learn from labelled sequences, variants or bases."),
    "eval": Entry("evo_toolkit.cli.evaluate", "evaluate", "Measure a model: bits per base, variants, labelled benchmarks."),
    "models": Entry("evo_toolkit.cli.models", "models", "List, describe and download models."),
    "convert": Entry("evo_toolkit.cli.convert", "convert", "Convert the weights of SRC and write them to DST."),
    "doctor": Entry("evo_toolkit.cli.doctor", "doctor", "Say what this machine can run, and check released weights."),
    "demo": Entry("evo_toolkit.cli.demo", "demo", "Score variants of a chloroplast with the bundled model."),
}  # fmt: skip


class _EchoHandler(logging.Handler):
    """What the toolkit logs, as lines on stderr."""

    def emit(self, record: logging.LogRecord) -> None:
        prefix = "Warning: " if record.levelno >= logging.WARNING else ""
        click.echo(f"{prefix}{record.getMessage()}", err=True)


class Commands(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(importlib.import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        # Click would import every command to look for names that resemble the one given.
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            known = ", ".join(COMMANDS)
            raise click.UsageError(f"no such command {args[0]!r}; the commands are {known}", ctx)
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        with one_line_errors():
            return super().invoke(ctx)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=(
        "Exit codes: 0 done; 1 an error while running (a bad file, the wrong genome); "
        "2 wrong usage; 3 ran to the end but could score nothing."
    ),
)
@click.version_option(__version__, prog_name=PROGRAM)
def cli() -> None:
    """Genomic sequence modelling with StripedHyena 2: score variants, embed, generate.

    `evo-toolkit COMMAND --help` describes a command; `evo-toolkit doctor` says what this machine
    can run.
    """
    # Long steps before a command's own output (a checksum of 13 GB, say) announce themselves.
    log = logging.getLogger("evo_toolkit")
    log.setLevel(logging.INFO)
    handler = _EchoHandler()
    log.addHandler(handler)
    # A program that runs a command in its own process keeps its logging as it was.
    click.get_current_context().call_on_close(lambda: log.removeHandler(handler))


def main() -> None:
    """Run the command line and exit with its code."""
    for name in ("SIGTERM", "SIGHUP"):
        number = getattr(signal, name, None)
        # Left alone where it is ignored, as nohup does with SIGHUP.
        if number is not None and signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, _exit_on_signal)
    keep_freed_memory()
    try:
        cli.main(prog_name=PROGRAM)
    finally:
        flush_stdout()


def _exit_on_signal(number: int, frame: FrameType | None) -> NoReturn:
    # An exception, unlike the default action, lets unfinished outputs be removed.
    raise SystemExit(128 + number)
