"""What `evo-toolkit score` computes of each allele, and what it writes beside the scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from evo_toolkit.cli.common import refuse_input_as_output
from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from evo_toolkit.checkpoint.opening import Opened
    from evo_toolkit.variants.allele_methods import MethodOptions
    from evo_toolkit.variants.scores import ScoredRecord
    from evo_toolkit.variants.workers import Workers, WorkerSetting

# As in evo_toolkit.variants.allele_methods and .preset; a test keeps them equal.
METHODS = ("delta", "marginal", "entropy", "jsd", "embed", "head")
PRESETS = ("evo2-paper",)


@dataclass(frozen=True, kw_only=True)
class Computed:
    """What `method_options` add, as given."""

    names: tuple[str, ...]
    layers: tuple[str, ...]
    heads: tuple[str, ...]
    calibration: str | None
    preset: str | None
    report: str | None

    def check_outputs(self, others: Iterable[str], *, force: bool) -> None:
        """Check what is written beside the scores.

        Args:
            others: Files that the run reads or writes.

        Raises:
            UsageError: if it is one of the others.
            EvoDataError: if it exists and must not be replaced, or cannot be written.
        """
        from evo_data.files import check_output

        if self.report is None:
            return
        refuse_input_as_output(self.report, *(other for other in others if other != "-"))
        check_output(self.report, force=force)

    def gathered(self) -> Gathered:
        """What takes the records as they are scored."""
        return Gathered(self.report)

    def options(self) -> MethodOptions | None:
        """What to compute; None where nothing but the default was asked for.

        Raises:
            UsageError: for options that do not go together.
        """
        from evo_toolkit.variants.allele_methods import MethodOptions

        options = MethodOptions(
            names=self.names, layers=self.layers, heads=self.heads, calibration=self.calibration
        )
        return None if options == MethodOptions() else options

    @property
    def files(self) -> tuple[str, ...]:
        """Files that are read."""
        return (*self.heads, *(() if self.calibration is None else (self.calibration,)))

    def digests(self) -> dict[str, object]:
        """sha256 of those files, by option: an interrupted run must find the same."""
        from evo_data.files import sha256_file

        return {
            f"{option} {path}": sha256_file(path)
            for option, paths in (("--head", self.heads), ("--calibration", self.files[len(self.heads) :]))
            for path in paths
        }  # fmt: skip


class Gathered:
    """What is gathered of scored records for a report; nothing, where none is wanted."""

    def __init__(self, report: str | None) -> None:
        from evo_toolkit.variants.report import ReportData

        self._path = report
        self._data = None if report is None else ReportData()

    def add(self, scored: ScoredRecord) -> None:
        """Take one record."""
        if self._data is not None:
            self._data.add(scored)

    def write(
        self,
        workers: Workers,
        setting: WorkerSetting,
        opened: Opened,
        device: str,
        *,
        variants: str,
        bits: str | None,
        force: bool,
    ) -> None:
        """Write the report.

        Args:
            workers: Those of the run; what scored in this process reads the alleles that stand out.
            setting: Of the run, for a model that is loaded anew where it ran elsewhere.
            opened: The model's source.
            device: Where to load it.
            variants: Name of the input.
            bits: Line on how well the model predicts the reference.
            force: Whether an existing file may be replaced.
        """
        from evo_toolkit.variants.report import write_report
        from evo_toolkit.variants.workers import ChunkScorer, ThisProcess

        if self._data is None or self._path is None:
            return
        scorer = None
        if self._data.lowest:
            here = workers.scorer if isinstance(workers, ThisProcess) else ChunkScorer.opened(setting, device)  # fmt: skip
            scorer = here.run.scorer
        config = opened.source.config
        write_report(
            self._path, self._data, workers.info, scorer, variants=variants, bits=bits, force=force,
            domains=config.domains, not_for=config.not_for,
        )  # fmt: skip


def method_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options about methods, handed over as one argument `computed`.

    A preset's values take the place of the parameters that it sets.
    """

    @click.option(
        "-M",
        "--method",
        "names",
        multiple=True,
        type=click.Choice(METHODS),
        default=("delta",),
        show_default=True,
        help="What to compute of each allele; repeatable. delta: EVO_DLL and what belongs to it; marginal and entropy read the reference alone; jsd; embed; head. docs/explanation/variant-methods.md has the formulas.",
    )
    @click.option(
        "--layer",
        "layers",
        multiple=True,
        metavar="NAME",
        help="For -M embed: a layer such as blocks.4; repeatable.",
    )
    @click.option(
        "--head",
        "heads",
        multiple=True,
        metavar="FILE",
        help="A fitted linear head (safetensors) for -M head, which it implies; repeatable.",
    )
    @click.option(
        "--calibration",
        metavar="FILE",
        help="Also set scores of single-base substitutions against those of neutral ones (data calibrate): EVO_CDLL and EVO_QUANTILE.",
    )
    @click.option(
        "--preset",
        type=click.Choice(PRESETS),
        help="evo2-paper: forward strand, windows of 8,192 bases read whole; EVO_DMEAN is then the score of the paper's BRCA1 figures.",
    )
    @click.option(
        "--report",
        metavar="FILE.html",
        help="Also write a page to look at: distributions by consequence and type, counts by status, the alleles that stand out base by base. It opens offline.",
    )
    @wraps(command)
    def wrapped(
        *args: Any,
        names: tuple[str, ...],
        layers: tuple[str, ...],
        heads: tuple[str, ...],
        calibration: str | None,
        preset: str | None,
        report: str | None,
        **others: Any,
    ) -> Any:
        computed = Computed(
            names=names, layers=layers, heads=heads, calibration=calibration, preset=preset,
            report=report,
        )  # fmt: skip
        return command(*args, computed=computed, **others)

    return wrapped


def preset_values(preset: str | None, **given: Any) -> dict[str, Any]:
    """The options that a preset may set: its values, or those given.

    Args:
        given: Parameters of the running command.

    Raises:
        UsageError: if the user gave one that the preset sets otherwise.
    """
    from evo_toolkit.variants.preset import PRESETS as VALUES

    if preset is None:
        return given
    context = click.get_current_context()
    for name, value in VALUES[preset].items():
        by_user = context.get_parameter_source(name) is not ParameterSource.DEFAULT
        if by_user and given[name] != value:
            raise UsageError(
                f"--preset {preset} sets --{name.replace('_', '-')} to {value}, and {given[name]} is given; leave out one of the two"
            )
        given[name] = value
    return given
