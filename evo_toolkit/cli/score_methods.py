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
    from evo_toolkit.variants.run import Variants
    from evo_toolkit.variants.score import VariantScorer
    from evo_toolkit.variants.scores import ScoredRecord
    from evo_toolkit.variants.workers import Workers, WorkerSetting

# As in evo_toolkit.variants.allele_methods and .preset; a test keeps them equal.
METHODS = ("delta", "marginal", "entropy", "jsd", "shift", "embed", "head")
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
    haplotype: str | None

    def check_outputs(self, others: Iterable[str], *, force: bool) -> None:
        """Check what is written beside the scores.

        Args:
            others: Files that the run reads or writes.

        Raises:
            UsageError: if it is one of the others.
            EvoDataError: if it exists and must not be replaced, or cannot be written.
        """
        from evo_data.files import check_output

        written = [other for other in others if other != "-"]
        for path in (self.report, self.haplotype):
            if path is not None:
                refuse_input_as_output(path, *written)
                check_output(path, force=force)
                written.append(path)
        if self.report is not None and self.report == self.haplotype:
            raise UsageError(f"--report and --haplotype are both {self.report}; give two names")
        if self.haplotype is not None and "delta" not in self.names:
            raise UsageError("--haplotype needs the method delta; add -M delta")

    def check_variants(self, variants: Variants) -> None:
        """Check that haplotypes can be found among the variants.

        Raises:
            UsageError: if not.
        """
        if self.haplotype is None:
            return
        if not variants.header.samples:
            raise UsageError(
                f"{variants.source.name} has no samples, and --haplotype reads their phased genotypes"
            )
        if variants.num_records is None or variants.part is not None:
            raise UsageError(
                "--haplotype reads the variants twice and whole: give a file, without --shard"
            )

    def gathered(self) -> Gathered:
        """What takes the records as they are scored."""
        return Gathered(self)

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
    """What is written beside the scores: a report of the records, and their haplotypes, where wanted."""

    def __init__(self, computed: Computed) -> None:
        from evo_toolkit.variants.report import ReportData

        self._computed = computed
        self._data = None if computed.report is None else ReportData()

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
        found: Variants,
        variants: str,
        bits: str | None,
        force: bool,
    ) -> list[str]:
        """Write what is wanted.

        Args:
            workers: Those of the run; what scored in this process reads on.
            setting: Of the run, for a model that is loaded anew where it ran elsewhere.
            opened: The model's source.
            device: Where to load it.
            found: The variants.
            variants: Name of the input.
            bits: Line on how well the model predicts the reference.
            force: Whether existing files may be replaced.

        Returns:
            Lines for the user.
        """
        from evo_toolkit.variants.report import write_report
        from evo_toolkit.variants.workers import ChunkScorer, ThisProcess

        computed = self._computed
        if self._data is None and computed.haplotype is None:
            return []
        scorer = None
        if computed.haplotype is not None or (self._data is not None and self._data.lowest):
            here = workers.scorer if isinstance(workers, ThisProcess) else ChunkScorer.opened(setting, device)  # fmt: skip
            scorer = here.run.scorer
        lines = []
        if computed.haplotype is not None:
            assert scorer is not None
            lines = self._haplotypes(computed.haplotype, scorer, workers, found, force)
        if self._data is not None:
            assert computed.report is not None
            config = opened.source.config
            write_report(
                computed.report, self._data, workers.info, scorer, variants=variants, bits=bits,
                force=force, domains=config.domains, not_for=config.not_for,
            )  # fmt: skip
        return lines

    @staticmethod
    def _haplotypes(
        path: str, scorer: VariantScorer, workers: Workers, found: Variants, force: bool
    ) -> list[str]:
        from evo_toolkit.variants.haplotype import HaplotypeScorer, write_haplotypes

        haplotypes = HaplotypeScorer(
            scorer.runner, scorer.genome, scorer.contigs, scorer.strands, scorer.max_allele,
            circular=scorer.circular, flags=scorer.flags,
        )  # fmt: skip
        note = write_haplotypes(
            path, haplotypes.score(found.records()), samples=found.header.samples,
            info=workers.info, force=force,
        )  # fmt: skip
        left = ", ".join(f"{n:,} {why}" for why, n in sorted(haplotypes.left_out.items()))
        lines = [
            f"{haplotypes.num_found:,} haplotypes of two or more variants within {haplotypes.reach:,} bases"
            + (f"; alleles of samples that were left out: {left}" if left else "")
        ]
        return lines if note is None else [*lines, f"{path}: no tabix index, since {note}"]


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
        help="What to compute of each allele; repeatable. delta: EVO_DLL and what belongs to it; marginal and entropy read the reference alone; jsd; shift; embed; head. docs/explanation/variant-methods.md has the formulas.",
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
    @click.option(
        "--haplotype",
        metavar="FILE.tsv[.gz]",
        help="Also score together what lies on one chromosome of a sample within --max-allele bases, by its phased genotypes (GT with |, PS; -s chooses samples): joint score, sum of the variants alone, and their difference.",
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
        haplotype: str | None,
        **others: Any,
    ) -> Any:
        computed = Computed(
            names=names, layers=layers, heads=heads, calibration=calibration, preset=preset,
            report=report, haplotype=haplotype,
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
