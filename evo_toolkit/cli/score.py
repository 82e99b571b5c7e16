"""`evo-toolkit score`: from a VCF and a genome to scored variants."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import (
    EXIT_NOTHING_SCORED,
    PROGRAM,
    allow_out_of_domain_option,
    model_options,
    quiet_option,
    require_model,
    user_errors,
)

if TYPE_CHECKING:
    from evo_toolkit.variants.output import ScoreWriter
    from evo_toolkit.variants.run import ScoringRun, Variants
    from evo_toolkit.variants.summary import Summary


@click.command(epilog="Exit codes: 0 done; 1 an error (a bad file, the wrong genome); 2 wrong usage; 3 ran to the end but could score nothing.")  # fmt: skip
@click.argument("variants", metavar="VARIANTS", type=click.Path(path_type=str))
@click.argument("genome", metavar="GENOME", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where to write; - is stdout. The suffix decides the format: .vcf, .vcf.gz (with index), .bcf, .tsv, .parquet.",
)
@click.option(
    "-O",
    "--output-type",
    metavar="v|z|b|t|p",
    help="Format when the suffix does not say: VCF, bgzipped VCF, BCF, TSV, Parquet.",
)
@model_options
@click.option(
    "--window",
    type=click.IntRange(16),
    metavar="BASES",
    help="Bases per window; default: the model's own (models info NAME).",
)
@click.option(
    "--strands",
    type=click.Choice(["both", "fwd", "rc"]),
    default="both",
    show_default=True,
    help="Strands to score; both are averaged, and reported apart too.",
)
@click.option(
    "--max-allele",
    type=click.IntRange(1),
    default=1000,
    show_default=True,
    metavar="BASES",
    help="Longest allele that is scored; half a window is a limit too.",
)
@click.option(
    "-f",
    "--apply-filters",
    metavar="LIST",
    help="Keep only records whose FILTER is one of these, such as PASS,. (as in bcftools view).",
)
@click.option(
    "-G", "--drop-genotypes", is_flag=True, help="Leave FORMAT and samples out of the output."
)
@click.option(
    "--info-prefix",
    default="EVO",
    show_default=True,
    metavar="NAME",
    help="Begins the names of the INFO keys that are added.",
)
@click.option(
    "--no-version", is_flag=True, help="Leave the command line out of the output's header."
)
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option(
    "--dry-run", is_flag=True, help="Check the input, count, estimate the time; write nothing."
)
@allow_out_of_domain_option
@quiet_option
@user_errors
def score(
    variants: str,
    genome: str,
    output: str,
    output_type: str | None,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    window: int | None,
    strands: str,
    max_allele: int,
    apply_filters: str | None,
    drop_genotypes: bool,
    info_prefix: str,
    no_version: bool,
    force: bool,
    dry_run: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Score the variants of a VCF against a genome.

    VARIANTS is a VCF (plain, gzip, bgzip), a BCF, or - for stdin; GENOME is a FASTA, plain or
    bgzipped, indexed when it is not yet. Every alternate allele gets a status (EVO_ST) and, where
    it can be scored, EVO_DLL: the log-likelihood of the window with the alternate minus that with
    the reference, in nats. A positive EVO_DLL means that the alternate is MORE likely to the model.
    It is no probability, and there is no cut-off: compare within one consequence class.
    """
    from evo_data.fasta import Fasta
    from evo_toolkit.checkpoint.load import load_opened
    from evo_toolkit.checkpoint.opening import open_source
    from evo_toolkit.errors import UsageError
    from evo_toolkit.inference.domain import check_domain
    from evo_toolkit.variants.output import VCF_FORMATS, check_output, check_prefix_free
    from evo_toolkit.variants.run import open_variants

    name = require_model(model)
    format = check_output(output, output_type, force, inputs=(variants, genome))
    say = _Reporter(quiet)
    filters = None
    if apply_filters is not None:
        filters = frozenset(value.strip() for value in apply_filters.split(","))
        if "" in filters:
            raise UsageError(
                f"--apply-filters {apply_filters!r} has an empty element; give names such as PASS,."
            )
    # Everything that can be refused is refused here, before the weights are read.
    opened = open_source(name, allow_inaccurate=allow_inaccurate)
    with Fasta(genome) as reference:
        note = check_domain(opened.source.config, reference.lengths, allow=allow_out_of_domain)
        if note:
            say.warning(note)
        found = open_variants(
            variants, reference, filters=filters,
            info_prefix=info_prefix if format in VCF_FORMATS else None,
        )  # fmt: skip
        if format in VCF_FORMATS:
            check_prefix_free(found.header, info_prefix)
        say.counted(found)

        from evo_toolkit.variants.run import ScoringRun

        loaded = load_opened(
            opened, device=device, precision=precision, allow_inaccurate=allow_inaccurate
        )
        command = None if no_version else f"{PROGRAM} {shlex.join(sys.argv[1:])}"
        run = ScoringRun(
            loaded, reference, found, window=window, strands=strands, max_allele=max_allele,
            allow_out_of_domain=allow_out_of_domain, command=command,
        )  # fmt: skip
        say.estimated(run)
        if dry_run:
            return
        from evo_toolkit.variants.output import open_writer

        writer = open_writer(
            output, format=format, header=found.header, run=run.info, info_prefix=info_prefix,
            force=force, drop_genotypes=drop_genotypes,
        )  # fmt: skip
        summary = _score_all(run, writer, say)
    say.finished(run, summary, writer.notes, note)
    if summary.nothing_scored:
        raise click.exceptions.Exit(EXIT_NOTHING_SCORED)


def _score_all(run: ScoringRun, writer: ScoreWriter, say: _Reporter) -> Summary:
    from evo_toolkit.variants.summary import Summary

    summary = Summary(num_filtered=run.variants.num_filtered)
    with writer, say.progress(run.variants) as advance:
        for scored in run.records():
            writer.write(scored)
            summary.add(scored)
            advance(len(scored.alleles))
    return summary


class _Reporter:
    """What a run says on stderr; warnings also when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        if not self.quiet:
            click.echo(text, err=True)

    def warning(self, text: str) -> None:
        click.echo(f"Warning: {text}", err=True)

    def counted(self, variants: Variants) -> None:
        if variants.num_records is not None:
            self.line(
                f"{variants.num_records:,} records, {variants.num_alleles:,} alternate alleles, "
                f"{variants.num_candidates:,} of them with a sequence on a known contig"
            )

    def estimated(self, run: ScoringRun) -> None:
        info = run.info
        rows, window = info.shapes[0]
        where = f"{info.model}, {info.precision}, {info.device}, window {window}, {info.strands} strand{'s' if info.strands == 'both' else ''}, {rows} rows at a time"
        seconds = run.estimate()
        rate = rows * window / run.seconds_per_forward
        if seconds is None:
            self.line(
                f"{where}; {rate:,.0f} bases/s; stdin cannot be counted, so no estimate of the time"
            )
        else:
            self.line(f"{where}; {rate:,.0f} bases/s; estimated time {duration(seconds)}")

    def progress(self, variants: Variants) -> _Progress:
        return _Progress(
            variants.num_alleles if variants.num_records is not None else None, self.quiet
        )

    def finished(
        self, run: ScoringRun, summary: Summary, notes: tuple[str, ...], note: str | None
    ) -> None:
        from evo_data.variant import AlleleStatus

        self.line(summary.text())
        checked = summary.by_status[AlleleStatus.OK]
        wrong = (
            summary.by_status[AlleleStatus.REF_MISMATCH] + summary.by_status[AlleleStatus.SWAPPED]
        )
        if wrong > 0.05 * (checked + wrong):
            self.warning(
                f"REF differs from the genome at {wrong:,} of {checked + wrong:,} alleles; is {Path(run.info.genome).name} the assembly that the variants were called on?"
            )
        for text in notes:
            self.line(text)
        bits = run.bits_line()
        if bits:
            self.line(bits)
        if note:
            self.warning(note)


class _Progress:
    """A rich progress bar on stderr with alleles/s and the time left; silent when quiet or not a terminal."""

    def __init__(self, total: int | None, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            TextColumn,
            TimeElapsedColumn,
            TimeRemainingColumn,
        )

        console = Console(stderr=True)
        self._bar = Progress(
            TextColumn("scoring"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"), TimeElapsedColumn(), TimeRemainingColumn(),
            console=console, disable=quiet or not console.is_terminal, transient=True,
        )  # fmt: skip
        self._task = self._bar.add_task("score", total=total, rate="")

    def __enter__(self) -> _Progress:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, alleles: int) -> None:
        task = self._bar.tasks[0]
        # Over the whole run: alleles come in bursts, one for each batch of windows.
        elapsed = task.elapsed or 0.0
        rate = f"{(task.completed + alleles) / elapsed:,.1f} alleles/s" if elapsed else ""
        self._bar.update(self._task, advance=alleles, rate=rate)


def duration(seconds: float) -> str:
    """A length of time for people: 45 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{max(seconds, 1):.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
