"""`evo-toolkit score`: from a VCF and a genome to scored variants."""

from __future__ import annotations

import math
import shlex
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import (
    EXIT_NOTHING_SCORED,
    PROGRAM,
    allow_out_of_domain_option,
    model_options,
    quiet_option,
    require_model,
    strands_option,
    user_errors,
)
from evo_toolkit.cli.score_merge import ScoreCommand
from evo_toolkit.cli.score_methods import Computed, method_options, preset_values
from evo_toolkit.cli.score_runs import (
    RunOptions,
    Totals,
    check_outputs,
    foresee,
    open_skipped,
    open_workers,
    option_values,
    run_options,
)

if TYPE_CHECKING:
    from evo_data.contigs import ContigAliases
    from evo_data.csq import ConsequenceCaller
    from evo_data.fasta import Fasta
    from evo_data.interval import Interval
    from evo_data.vcf_writer import ExitCallback
    from evo_toolkit.variants.dry_run import Forecast
    from evo_toolkit.variants.resume import ChunkStore
    from evo_toolkit.variants.run import Variants
    from evo_toolkit.variants.scores import RunInfo, ScoredRecord
    from evo_toolkit.variants.summary import Summary
    from evo_toolkit.variants.workers import Workers


SECTIONS = {
    "Input options": (
        "variant_texts", "regions", "regions_file", "include", "exclude", "apply_filters", "samples",
        "zero_based", "contig_aliases", "circular", "check_ref", "max_ref_mismatch",
    ),
    "Model options": (
        "model", "adapter", "device", "precision", "allow_inaccurate", "allow_out_of_domain",
    ),
    "Window options": ("window", "window_mode", "suffix", "strands", "max_allele"),
    "Score options": ("names", "layers", "heads", "calibration", "preset", "gff", "genetic_code"),
    "Output options": (
        "output", "output_type", "drop_genotypes", "info_prefix", "no_version", "force", "skipped",
        "report", "haplotype",
    ),
    "Run options": (
        "dry_run", "devices", "executor", "shard", "restart", "quiet", "help",
    ),
}  # fmt: skip
EXAMPLES = (
    ("what a run would do and how long it would take", "evo-toolkit score in.vcf.gz genome.fa -m evo2_7b --dry-run"),
    ("rare variants that passed, into a bgzipped VCF with its index", "evo-toolkit score in.vcf.gz genome.fa -m evo2_7b -f PASS,. -i 'AF<0.01' -o out.vcf.gz"),
    ("all SNVs of a gene, many at a time", "evo-toolkit score gene.vcf genome.fa -m evo-mini -M marginal --window-mode tiled -o out.tsv"),
    ("one variant of a plasmid", "evo-toolkit score --variant pUC19-100-A-G plasmid.fa --circular pUC19 -m evo-mini -O t"),
)  # fmt: skip
EPILOG = "Exit codes: 0 done; 1 an error (a bad file, the wrong genome); 2 wrong usage; 3 ran to the end but could score nothing. `evo-toolkit score merge` joins the outputs of --shard."


@click.command(cls=ScoreCommand, sections=SECTIONS, examples=EXAMPLES, epilog=EPILOG)
@click.argument("inputs", metavar="[VARIANTS] GENOME", nargs=-1, type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Write here; - is stdout. The suffix decides the format: .vcf, .vcf.gz (with index), .bcf, .tsv, .parquet.",
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
    "--window-mode",
    type=click.Choice(["exact", "shared", "tiled", "full"]),
    help="exact: a window for every place, what its alleles share read once; shared: places within 1/32 of a window share one (faster); tiled: within 3/8, for -M marginal and entropy alone; full: every window read whole. Default: exact; full with --precision vortex.",
)
@click.option(
    "--suffix",
    metavar="full|BASES|adaptive[:NATS]",
    default="full",
    show_default=True,
    help="Bases read of each allele from the variant on; adaptive: until two pieces of 1/32 of a window change the score by less than NATS (0.02) each. Fewer are faster and approximate (eval suffix).",
)
@strands_option
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
    "--variant",
    "variant_texts",
    multiple=True,
    metavar="TEXT",
    help="A variant instead of a file: chr17-43045711-G-A, chr17:43045711:G>A, genomic HGVS, SPDI; repeatable.",
)
@click.option(
    "-r",
    "--regions",
    metavar="LIST",
    help="Only records that touch one of these: chr1:100-200,chr2 (1-based, inclusive).",
)
@click.option(
    "-R",
    "--regions-file",
    metavar="FILE",
    help="The same from a file: BED (.bed), or contig, first and last, or a VCF.",
)
@click.option(
    "-i",
    "--include",
    metavar="EXPR",
    help="Only records for which a bcftools expression holds, such as 'AF<0.01'.",
)
@click.option("-e", "--exclude", metavar="EXPR", help="Only records for which it does not hold.")
@click.option(
    "-s",
    "--samples",
    metavar="LIST",
    help="Keep the columns of these samples (^ before the list: of the others); with -i 'GT=\"alt\"' only what they carry.",
)
@click.option(
    "--zero-based", is_flag=True, help="The positions of a table count from 0, not from 1."
)
@click.option(
    "--contig-aliases",
    metavar="FILE",
    help="Names of the same contig on one line each: two columns, UCSC chromAlias, NCBI assembly report.",
)
@click.option(
    "--circular",
    multiple=True,
    metavar="NAME",
    help="This contig is circular: windows go on across the origin; repeatable.",
)
@click.option(
    "--gff",
    metavar="FILE",
    help="Annotation, GFF3 or GTF (NCBI, Bakta, Prokka, GENCODE, Ensembl): consequences by bcftools csq, BCSQ in VCF, columns in tables.",
)
@click.option(
    "--genetic-code",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="NUMBER",
    help="NCBI's number of the genetic code for --gff; bacteria and plastids have 11.",
)
@click.option(
    "-c",
    "--check-ref",
    type=click.Choice(["e", "w", "x"]),
    default="w",
    show_default=True,
    help="Where REF is not the genome's: e stop, w a status instead of a score, x leave the record out.",
)
@click.option(
    "--max-ref-mismatch",
    type=click.FloatRange(0, 1),
    metavar="SHARE",
    help="Share of the first 1,000 records whose REF may differ from the genome's; default 0.05. Given, it also accepts contigs of another length.",
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
@run_options
@method_options
@allow_out_of_domain_option
@quiet_option
@user_errors
def score(
    inputs: tuple[str, ...],
    output: str,
    output_type: str | None,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    window: int | None,
    window_mode: str | None,
    suffix: str,
    strands: str,
    max_allele: int,
    apply_filters: str | None,
    variant_texts: tuple[str, ...],
    regions: str | None,
    regions_file: str | None,
    include: str | None,
    exclude: str | None,
    samples: str | None,
    zero_based: bool,
    contig_aliases: str | None,
    circular: tuple[str, ...],
    gff: str | None,
    genetic_code: int,
    check_ref: str,
    max_ref_mismatch: float | None,
    drop_genotypes: bool,
    info_prefix: str,
    no_version: bool,
    force: bool,
    dry_run: bool,
    running: RunOptions,
    computed: Computed,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Score variants against a genome.

    VARIANTS is a VCF (plain, gzip, bgzip), a BCF, - for either from stdin, or a table (TSV, CSV,
    Parquet) with columns chrom, pos, ref, alt; or give --variant. GENOME is a FASTA, plain or
    bgzipped, indexed when it is not yet. Every alternate allele gets a status (EVO_ST) and, where
    it can be scored, EVO_DLL: the log-likelihood of the window with the alternate minus that with
    the reference, in nats. A positive EVO_DLL means that the alternate is MORE likely to the model.
    It is no probability, and there is no cut-off: compare within one consequence class.
    """
    from evo_data.contigs import ContigAliases, read_alias_file
    from evo_data.csq import ConsequenceCaller
    from evo_data.fasta import Fasta
    from evo_data.variant_sources import Selection
    from evo_data.variant_sources import open_source as open_variant_source
    from evo_toolkit.checkpoint.opening import open_source
    from evo_toolkit.errors import UsageError
    from evo_toolkit.inference.domain import check_domain
    from evo_toolkit.variants.output import VCF_FORMATS, check_output, check_prefix_free
    from evo_toolkit.variants.run import check_window, open_variants
    from evo_toolkit.variants.suffix import parse_suffix

    name = require_model(model)
    if max_ref_mismatch is not None and math.isnan(max_ref_mismatch):
        raise UsageError("--max-ref-mismatch nan is no share; give a number from 0 to 1")
    chosen = preset_values(
        computed.preset, window=window, window_mode=window_mode, strands=strands, suffix=suffix
    )
    window, window_mode, strands = chosen["window"], chosen["window_mode"], chosen["strands"]
    length = parse_suffix(chosen["suffix"])
    methods = computed.options()
    variants, genome = _inputs(inputs, variant_texts)
    files = [file for file in (variants, genome, regions_file, contig_aliases, gff) if file]
    files += computed.files
    replace = check_outputs(output, running, force=force, inputs=files)
    computed.check_outputs((*files, output), force=replace)
    format = check_output(output, output_type, replace, inputs=files)
    part = running.part()
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
        if window is not None:
            check_window(window, opened.source.config, reference)
        synonyms = read_alias_file(contig_aliases) if contig_aliases else ()
        selection = Selection(
            regions=_regions(regions, regions_file, reference), include=include, exclude=exclude, samples=samples,
        )  # fmt: skip
        names = ContigAliases(reference.lengths, synonyms=synonyms)
        caller = None
        if gff is not None:
            caller = ConsequenceCaller(gff, reference, contigs=names, genetic_code=genetic_code)
            say.annotated(gff, caller)
        source = open_variant_source(
            variants, reference, texts=variant_texts, selection=selection, zero_based=zero_based,
            contigs=names,
        )  # fmt: skip
        found = open_variants(
            source, reference, filters=filters, check_ref=check_ref, max_ref_mismatch=max_ref_mismatch,
            info_prefix=info_prefix if format in VCF_FORMATS else None, synonyms=synonyms,
            consequences=caller,
        )  # fmt: skip
        for warning in found.warnings:
            say.warning(warning)
        joined = _circular(circular, reference, names)
        if format in VCF_FORMATS:
            check_prefix_free(found.header, info_prefix)
        if part is not None:
            found.take_part(*part)
        computed.check_variants(found)
        say.counted(found)

        from evo_toolkit.variants.manifest import run_identity, write_manifest
        from evo_toolkit.variants.output import open_writer
        from evo_toolkit.variants.resume import ChunkStore
        from evo_toolkit.variants.run import bits_line, workload
        from evo_toolkit.variants.summary import Summary
        from evo_toolkit.variants.workers import WorkerSetting

        setting = WorkerSetting(
            model=name, precision=precision, allow_inaccurate=allow_inaccurate,
            genome=reference, contigs=found.contigs, workload=workload(found, strands),
            options={
                "window": window, "window_mode": window_mode, "suffix": length, "strands": strands,
                "max_allele": max_allele, "allow_out_of_domain": allow_out_of_domain,
                "command": None if no_version else f"{PROGRAM} {shlex.join(sys.argv[1:])}",
                "circular": joined, "methods": methods, "preset": computed.preset,
            },
        )  # fmt: skip
        with ExitStack() as stack:
            store, identity = None, {}
            if output != "-" and not dry_run:
                identity = run_identity(
                    opened, reference, variants, device=device, shard=part,
                    options=option_values(click.get_current_context()) | computed.digests(),
                )  # fmt: skip
                store = stack.enter_context(ChunkStore(output, identity, restart=running.restart))
                stack.push(say.kept(store))
                say.resumed(store)
            if dry_run:
                run, forecast, number = foresee(setting, running, device, opened, found)
                say.line(_described(run.info))
                say.foreseen(forecast, number)
                return
            workers = stack.enter_context(open_workers(setting, running, device, opened))
            if store is not None:
                if store.shapes is not None:
                    workers.use_shapes(store.shapes)
                store.begin(workers.info.shapes, workers.windows_per_chunk)
            say.estimated(workers)
            writer = open_writer(
                output, format=format, header=found.header, run=workers.info, info_prefix=info_prefix,
                force=replace, drop_genotypes=drop_genotypes,
            )  # fmt: skip
            totals = Totals.empty()
            summary = Summary(num_filtered=found.num_filtered)
            gathered = computed.gathered()
            with writer, open_skipped(running.skipped, force=replace) as skipped:
                for scored in _score_all(found, workers, store, totals, say):
                    writer.write(scored)
                    skipped(scored)
                    summary.add(scored)
                    gathered.add(scored)
                if store is not None:
                    store.finishing()
            told = gathered.write(
                workers, setting, opened, device, found=found, force=replace,
                variants=variants or ", ".join(variant_texts), bits=bits_line(totals.bits),
            )  # fmt: skip
            if store is not None:
                write_manifest(
                    output, identity, workers.info, summary, format=format, force=replace,
                    more=totals.described(found, running),
                )  # fmt: skip
                store.remove()
    say.finished(found, summary, totals, (*writer.notes, *told), note)
    if summary.nothing_scored:
        raise click.exceptions.Exit(EXIT_NOTHING_SCORED)


def _inputs(inputs: tuple[str, ...], texts: tuple[str, ...]) -> tuple[str | None, str]:
    """The file of variants, None where they are given as text, and the genome."""
    from evo_toolkit.errors import UsageError

    if texts and len(inputs) == 1:
        return None, inputs[0]
    if texts and len(inputs) == 2:
        raise UsageError("give a file of variants or --variant, not both")
    if len(inputs) != 2:
        wanted = "GENOME" if texts else "VARIANTS GENOME"
        raise UsageError(f"{len(inputs)} file names are given where {wanted} is needed")
    return inputs[0], inputs[1]


def _circular(given: tuple[str, ...], genome: Fasta, names: ContigAliases) -> tuple[str, ...]:
    """The genome's names of the contigs that the user calls circular."""
    from evo_toolkit.errors import UsageError

    for name in given:
        if name not in names:
            raise UsageError(
                f"--circular {name!r}: {genome.path.name} has no such contig; it has {', '.join(list(genome.lengths)[:8])}"
            )
    return tuple(names[name] for name in given)


def _regions(text: str | None, file: str | None, genome: Fasta) -> tuple[Interval, ...]:
    from evo_data.variant_sources import parse_regions, read_regions

    listed = [] if text is None else parse_regions(text, genome.lengths)
    return tuple(listed + ([] if file is None else read_regions(file)))


def _score_all(
    found: Variants,
    workers: Workers,
    store: ChunkStore | None,
    totals: Totals,
    say: _Reporter,
) -> Iterator[ScoredRecord]:
    """Yield the records with their scores, from chunks that are there or are scored now."""
    from evo_toolkit.variants.ahead import read_ahead
    from evo_toolkit.variants.chunks import cut
    from evo_toolkit.variants.workers import score_chunks

    size = workers.windows_per_chunk if store is None else store.num_windows
    assert size is not None
    chunks = cut(found.records(), size)
    if not found.source.is_stream:
        # A thread that waits for stdin could not be ended.
        chunks = read_ahead(chunks)
    with say.progress(found) as advance:
        for scored in score_chunks(chunks, workers, store, found=totals.add):
            yield scored
            advance(len(scored.alleles))


def _described(info: RunInfo) -> str:
    """Model, device and windows in a line."""
    shapes = ", ".join(f"{rows} x {length}" for rows, length in info.shapes)
    return f"{info.model}, {info.precision}, {info.device}, window {info.window} ({info.window_mode}), {info.strands} strand{'s' if info.strands == 'both' else ''}, forwards of {shapes}"


class _Reporter:
    """What a run says on stderr; warnings also when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet

    def line(self, text: str) -> None:
        if not self.quiet:
            click.echo(text, err=True)

    def warning(self, text: str) -> None:
        click.echo(f"Warning: {text}", err=True)

    def annotated(self, gff: str, caller: ConsequenceCaller) -> None:
        left = ", ".join(f"{count:,} {reason}" for reason, count in caller.left_out.items())
        self.line(
            f"{gff}: {caller.num_transcripts:,} transcripts"
            + (f"; left out, since they cannot be translated part by part: {left}" if left else "")
        )

    def counted(self, variants: Variants) -> None:
        if variants.num_records is not None:
            self.line(
                f"{variants.num_records:,} records, {variants.num_alleles:,} alternate alleles, "
                f"{variants.num_candidates:,} of them with a sequence on a known contig"
            )

    def kept(self, store: ChunkStore) -> ExitCallback:
        """What to say if the run ends early."""

        def leave(kind: object, error: BaseException | None, trace: object) -> None:
            if error is not None and (number := store.num_kept()):
                self.line(
                    f"{number:,} finished chunks are kept in {store.folder}; the same command goes on from there"
                )

        return leave

    def resumed(self, store: ChunkStore) -> None:
        if store.num_found:
            self.line(
                f"going on with an interrupted run: {store.num_found:,} finished chunks in {store.folder}"
            )

    def estimated(self, workers: Workers) -> None:
        where = _described(workers.info)
        seconds = workers.seconds
        if seconds is None:
            self.line(f"{where}; stdin cannot be counted, so no estimate of the time")
        else:
            self.line(f"{where}; estimated time {duration(seconds)}")

    def foreseen(self, forecast: Forecast, num_devices: int) -> None:
        """The answer to --dry-run, which --quiet does not silence."""
        lines = [forecast.summary.text("can be scored:"), forecast.count.text()]
        if forecast.is_extrapolated:
            lines = [f"of the first {forecast.num_placed:,} records: {line}" for line in lines]
            lines.append(f"if the others are like them, about {forecast.tokens:,} tokens in all")
        click.echo("\n".join(lines), err=True)
        seconds = forecast.seconds(num_devices)
        if seconds is not None:
            rate = f"{forecast.rate:,.0f} tokens a second, measured on the first records"
            devices = f"{num_devices} device{'' if num_devices == 1 else 's'}"
            click.echo(f"estimated time on {devices}: {duration(seconds)} ({rate})", err=True)

    def progress(self, variants: Variants) -> _Progress:
        return _Progress(
            variants.num_alleles if variants.num_records is not None else None, self.quiet
        )

    def finished(
        self,
        found: Variants,
        summary: Summary,
        totals: Totals,
        notes: tuple[str, ...],
        note: str | None,
    ) -> None:
        from evo_data.variant import AlleleStatus
        from evo_toolkit.variants.run import bits_line

        self.line(summary.text())
        if found.num_ref_excluded:
            self.line(
                f"left out by --check-ref x: {found.num_ref_excluded:,} records whose REF is not the genome's"
            )
        checked = summary.by_status[AlleleStatus.OK]
        wrong = (
            summary.by_status[AlleleStatus.REF_MISMATCH] + summary.by_status[AlleleStatus.SWAPPED]
        )
        if wrong > 0.05 * (checked + wrong):
            self.warning(
                f"REF differs from the genome at {wrong:,} of {checked + wrong:,} alleles; is {found.genome.path.name} the assembly that the variants were called on?"
            )
        for text in totals.notes:
            self.warning(text)
        for text in notes:
            self.line(text)
        if summary.num_scored:
            self.line(totals.count.text())
        bits = bits_line(totals.bits)
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
