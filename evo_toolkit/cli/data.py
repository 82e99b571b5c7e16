"""`evo-toolkit data`: genomes as training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import quiet_option, user_errors
from evo_toolkit.cli.data_calibrate import calibrate_command
from evo_toolkit.cli.data_split import split_command
from evo_toolkit.cli.progress import terminal_bar
from evo_toolkit.errors import UsageError

if TYPE_CHECKING:
    from evo_data.corpus import Corpus, Manifest

# How many findings of a kind are shown; the manifest has them all.
_SHOWN = 5
# Windows of the bundled recipes: shorter records are packed together.
_WINDOW = 8192


@click.group()
def data() -> None:
    """Prepare genomes for training."""


data.add_command(split_command)
data.add_command(calibrate_command)


@data.command("prepare")
@click.argument("genomes", metavar="GENOMES...", nargs=-1, required=True, type=click.Path(readable=False))  # fmt: skip
@click.option(
    "-o", "--output", required=True, metavar="FOLDER", type=click.Path(),
    help="Folder of the corpus.",
)  # fmt: skip
@click.option("--packed", is_flag=True, help="2 bits a base instead of a byte a base.")
@click.option(
    "--groups", metavar="parent|TSV",
    help="Group of each genome, for weights and results per group: the name of the folder that its file lies in, or a table with genome (or file) name, tab, group. By default all are in one group.",
)  # fmt: skip
@click.option(
    "--duplicates", type=click.Choice(["drop", "keep", "error"]), default="drop", show_default=True,
    help="What becomes of records whose sequence, on either strand, came before; they are reported.",
)  # fmt: skip
@click.option(
    "--no-clusters", is_flag=True,
    help="Do not look for near-identical genomes; without this, a genome's weight is one over the size of its cluster.",
)  # fmt: skip
@click.option(
    "--skip-unusable", is_flag=True,
    help="Leave damaged and foreign files out, and report them, instead of stopping at the end.",
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace another corpus in FOLDER.")
@quiet_option
@user_errors
def prepare_command(
    genomes: tuple[str, ...],
    output: str,
    packed: bool,
    groups: str | None,
    duplicates: str,
    no_clusters: bool,
    skip_unusable: bool,
    force: bool,
    quiet: bool,
) -> None:
    """Prepare a corpus, which training reads, from GENOMES.

    GENOMES are files, or folders that are searched with all that is below them: FASTA (plain, gzip
    or bgzip), GenBank, EMBL, and Megatron corpora (.bin and .idx) by their prefix. Every file is
    one genome. Lower-case (soft-masked) bases stay lower-case, U becomes T, other letters become N.

    A run that was interrupted, killed or out of disk space goes on where it was when the same
    command is given again.
    """
    from evo_data.corpus import Corpus, prepare, read_groups
    from evo_data.corpus.manifest import MANIFEST

    chosen = None
    if groups is not None:
        chosen = "parent" if groups == "parent" else read_groups(groups)
    if Path(output).resolve() in {Path(genome).resolve() for genome in genomes}:
        raise UsageError(f"output {output} is also an input; give another folder with -o")
    try:
        with _reading_bar(quiet) as progress:
            manifest = prepare(
                genomes,
                output,
                encoding="packed" if packed else "bytes",
                groups=chosen,  # type: ignore[arg-type]
                duplicates=duplicates,  # type: ignore[arg-type]
                cluster=not no_clusters,
                skip_unusable=skip_unusable,
                force=force,
                progress=progress,
            )
    except KeyboardInterrupt:
        click.echo("What was read is kept; the same command goes on from there.", err=True)
        raise
    corpus = Corpus.open(output)
    _report_findings(corpus, manifest, str(Path(output) / MANIFEST))
    _report(corpus)


@data.command("info")
@click.argument("corpus", metavar="CORPUS", type=click.Path())
@click.option("--verify", is_flag=True, help="Compute the checksums of its files and compare them.")
@user_errors
def info_command(corpus: str, verify: bool) -> None:
    """Describe a corpus."""
    from evo_data.corpus import Corpus

    opened = Corpus.open(corpus)
    if verify:
        opened.verify()
    _report(opened)
    if verify:
        click.echo("all files are as they were written")


def _report(corpus: Corpus) -> None:
    """Print what a corpus holds, on stdout."""
    num_bases = corpus.num_bases
    clusters = {genome.cluster for genome in corpus.genomes}
    short = corpus.lengths < _WINDOW
    rows = [
        ("corpus", str(corpus.path)),
        ("encoding", corpus.encoding),
        ("genomes", f"{len(corpus.genomes):,} in {len(clusters):,} clusters"),
        ("records", f"{len(corpus.records):,}"),
        (f"shorter than {_WINDOW:,}", f"{int(short.sum()):,} records, {_share(int(corpus.lengths[short].sum()), num_bases)} of the bases"),
        ("bases", f"{num_bases:,}"),
    ]  # fmt: skip
    if corpus.manifest is not None:
        acgt = sum(genome.acgt_bases for genome in corpus.genomes)
        lower = sum(genome.soft_masked_bases for genome in corpus.genomes)
        effective = sum(genome.effective_bases for genome in corpus.genomes)
        rows += [
            ("not A, C, G, T", _share(num_bases - acgt, num_bases)),
            ("soft-masked", _share(lower, num_bases)),
            ("effective bases", f"{effective:,.0f} (A, C, G, T; a genome counts one over the size of its cluster)"),
            ("on disk", f"{sum(entry.bytes for entry in corpus.manifest.files.values()):,} bytes"),
        ]  # fmt: skip
    for group in corpus.groups if len(corpus.groups) > 1 else []:
        own = [genome for genome in corpus.genomes if genome.group == group]
        bases = sum(genome.num_bases for genome in own)
        effective = sum(genome.effective_bases for genome in own)
        text = f"{len(own):,} {'genome' if len(own) == 1 else 'genomes'}, {bases:,} bases, {effective:,.0f} effective"
        rows.append((f"group {group}", text))
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        click.echo(f"{name:<{width}}  {value}")


def _report_findings(corpus: Corpus, manifest: Manifest, where: str) -> None:
    """Print what was dropped or changed, on stderr."""
    duplicates = [
        f"{d.file}: {d.record} ({d.length:,} bases) is {corpus.records[d.same_as].name} of "
        f"{corpus.genomes[corpus.records[d.same_as].genome].name}"
        + (" on the other strand" if d.strand == "-" else "")
        for d in manifest.duplicates
    ]
    kept = bool(manifest.duplicates) and manifest.duplicates[0].kept
    total = sum(d.length for d in manifest.duplicates)
    _list_findings(
        f"{'kept although' if kept else 'left out because'} the sequence came before "
        f"({total:,} bases)",
        duplicates,
        where,
    )
    left_out = [f"{r.file}: {r.record or '(no name)'}: {r.reason}" for r in manifest.left_out]
    _list_findings("left out", left_out, where)
    _list_findings("renamed", [f"{r.file}: {r.record or '(no name)'} is {r.name}" for r in manifest.renamed], where)  # fmt: skip
    for unusable in manifest.unusable:
        click.echo(f"Warning: left out: {unusable.reason}", err=True)


def _list_findings(what: str, findings: list[str], where: str) -> None:
    if not findings:
        return
    noun = "record" if len(findings) == 1 else "records"
    click.echo(f"Warning: {len(findings):,} {noun} {what}", err=True)
    for line in findings[:_SHOWN]:
        click.echo(f"  {line}", err=True)
    if len(findings) > _SHOWN:
        click.echo(f"  and {len(findings) - _SHOWN:,} more, all in {where}", err=True)


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.2f} %" if whole else "none"


@contextmanager
def _reading_bar(quiet: bool) -> Iterator[Callable[[int, int, str], None]]:
    """Yield what shows bytes done, bytes in all and the file at hand."""
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    bar = terminal_bar(
        TextColumn("reading"), BarColumn(), DownloadColumn(), TimeElapsedColumn(),
        TimeRemainingColumn(), TextColumn("{task.fields[file]}", markup=False), quiet=quiet,
    )  # fmt: skip
    task = bar.add_task("prepare", total=None, file="")

    def show(done: int, total: int, file: str) -> None:
        bar.update(task, completed=done, total=total, file=file)

    with bar:
        yield show
