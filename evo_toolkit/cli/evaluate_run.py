"""What all commands of `evo-toolkit eval` share: options, preparing and reading, the model, the output."""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource

from evo_toolkit.cli import evaluate_tables as tables
from evo_toolkit.cli.common import (
    PROGRAM,
    model_options,
    quiet_option,
    require_model,
)
from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from evo_toolkit.evaluation.prepared import Prepared
    from evo_toolkit.evaluation.registry import Benchmark
    from evo_toolkit.model.striped_hyena import StripedHyena2

_Command = TypeVar("_Command", bound=Callable[..., Any])
_BAR_SECONDS = 10.0


def shared_options(command: _Command) -> _Command:
    """Add what `Run` takes: the model, `--output`, `--prepare`, `--from`, `--force` and `--quiet`."""
    for option in (
        quiet_option,
        click.option("--force", is_flag=True, help="Replace existing outputs."),
        click.option(
            "--from", "source", type=click.Path(), metavar="FILE.npz",
            help="Run on what --prepare wrote, in place of the genome and its options.",
        ),
        click.option(
            "--prepare", type=click.Path(), metavar="FILE.npz",
            help="Write what the task needs to a file; without -m, stop there.",
        ),
        click.option(
            "-o", "--output", type=click.Path(), metavar="FILE.json",
            help="Where to write the figures; the table goes to stdout in any case.",
        ),
        model_options,
    ):  # fmt: skip
        command = option(command)
    return command


train_option = click.option(
    "--train", multiple=True, type=click.Path(), metavar="PATH",
    help="Training genomes: files (FASTA, GenBank), folders of them, or a corpus; may be repeated.",
)  # fmt: skip
seed_option = click.option(
    "--seed", type=click.IntRange(0), default=0, show_default=True, help="Of every draw."
)
window_option = click.option(
    "--window", type=click.IntRange(16), metavar="BASES",
    help="Bases per window; default: the model's own.",
)  # fmt: skip


def refuse_settled(*names: str) -> None:
    """Refuse options that a prepared file has settled, where they were given all the same."""
    context = click.get_current_context()
    for name in names:
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = f"--{name.replace('_', '-')}"
            raise UsageError(f"{option} was settled with --prepare; leave it out, or prepare again")


def require_files(benchmark: Benchmark, files: tuple[str, ...], source: str | None) -> None:
    """Raise unless a benchmark's files are given, as many as it has, or a prepared one in their place.

    Raises:
        UsageError: naming them; with a prepared file, for options that it has settled.
    """
    if source:
        refuse_settled("limit")
        return
    names = " ".join(name for name, _ in benchmark.files)
    if len(files) != len(benchmark.files):
        raise UsageError(
            f"eval {benchmark.name} takes {names}, {len(files)} files were given; give them, or --from FILE.npz; `evo-toolkit eval list {benchmark.name}` says where they come from"
        )


class Run:
    """What all commands do: prepare or read, load the model, write the figures."""

    def __init__(self, kind: str, options: dict[str, Any]) -> None:
        from evo_data.files import check_output

        self.kind = kind
        self.options = options
        self.quiet: bool = options["quiet"]
        if options["prepare"] and options["source"]:
            raise UsageError("--prepare and --from exclude each other; give one of them")
        # What cannot be written is refused before the work.
        for path in (options["output"], options["prepare"]):
            if path is not None:
                check_output(path, force=options["force"])

    def say(self, text: str) -> None:
        if not self.quiet:
            click.echo(text, err=True)

    def progress(self, label: str, unit: str) -> Callable[[int], None]:
        """A line on stderr every ten seconds with what is done."""
        done, first, started, last = 0, 0, 0.0, 0.0

        def advance(amount: int) -> None:
            nonlocal done, first, started, last
            now = time.monotonic()
            done += amount
            if not started:  # when the first were begun is not known
                first, started, last = amount, now, now
            elif now - last >= _BAR_SECONDS:
                last = now
                rate = (done - first) / (now - started)
                self.say(f"{label}: {done:,} {unit}, {rate:,.0f} per second")

        return advance

    def required(self, value: str | None, name: str) -> str:
        if value is None:
            raise UsageError(f"{name} is missing; give it, or --from FILE.npz")
        return value

    def prepared(self, make: Callable[[], Prepared], given: Sequence[str | None]) -> Prepared:
        """The task's data, made or read; written when that was asked for."""
        from evo_toolkit.evaluation.prepared import load_prepared

        source = self.options["source"]
        if source is not None:
            if any(given):
                raise UsageError(
                    f"--from {source} holds the genomes already; leave the other files out"
                )
            return load_prepared(source, self.kind)
        if self.options["model"] is not None:
            self._known_model()
        made = make()
        path = self.options["prepare"]
        if path is not None:
            made.save(path, force=self.options["force"])
            self.say(f"wrote {path} ({Path(path).stat().st_size / 1e6:.1f} MB)")
        return made

    def _known_model(self) -> None:
        """Raise for a model that does not exist, before minutes are spent on preparing."""
        from evo_toolkit.checkpoint.opening import open_source

        open_source(
            require_model(self.options["model"]), allow_inaccurate=self.options["allow_inaccurate"]
        )

    def needed_model(self, prepared: Prepared) -> StripedHyena2:
        """The model; with --prepare alone the command ends here."""
        model = self.model(prepared, optional=False)
        assert model is not None
        return model

    def model(self, prepared: Prepared, *, optional: bool) -> StripedHyena2 | None:
        """The model, with a warning where the data are outside of its domain.

        Args:
            optional: Whether the command has something to do without one, which is then None.

        Raises:
            Exit: without a model, where `--prepare` was all that was asked for.
            UsageError: without one that is needed.
        """
        from evo_toolkit.checkpoint.load import load_model
        from evo_toolkit.inference.domain import check_domain

        options = self.options
        if options["model"] is None:
            if optional:
                return None
            if options["prepare"] is not None:
                raise click.exceptions.Exit(0)
        model = load_model(
            require_model(options["model"]), device=options["device"],
            precision=options["precision"], allow_inaccurate=options["allow_inaccurate"],
        )  # fmt: skip
        # A measurement outside of the domain is a finding, not a mistake; it only must be told.
        note = check_domain(model.config, prepared.lengths(), allow=True)
        if note:
            click.echo(f"Warning: {note}", err=True)
        return model

    def finish(
        self, result: dict[str, Any], table: Callable[[dict[str, Any]], list[list[str]]]
    ) -> None:
        """Write the figures with the command that made them, and print their table.

        Args:
            result: `model` (None without one), `data` and `figures`, ready for JSON.
            table: Rows of text from the figures.
        """
        from evo_data.files import atomic_output

        result = {"command": f"{PROGRAM} {shlex.join(sys.argv[1:])}", **result}
        path = self.options["output"]
        if path is not None:
            with atomic_output(path, force=self.options["force"]) as temporary:
                temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        model = result["model"]
        if model is not None:
            click.echo(f"{model['name']}, {model['precision']}, {model['device']}")
        tables.print_table(table(result["figures"]))
        overlap = result["data"].get("kmer_overlap_with_train")
        if overlap:
            shares = ", ".join(f"{name} {share:.2%}" for name, share in overlap.items())
            click.echo(f"31-mers also in the training genomes: {shares}")
