"""`evo-toolkit ism`: every single-base substitution of a region."""

from __future__ import annotations

import shlex
import sys
from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import (
    EXIT_NOTHING_SCORED,
    PROGRAM,
    allow_out_of_domain_option,
    load_for_genome,
    model_options,
    quiet_option,
    refuse_input_as_output,
    region_options,
    require_model,
    strands_option,
    user_errors,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from evo_data.fasta import Fasta
    from evo_data.interval import Interval
    from evo_toolkit.model.striped_hyena import StripedHyena2
    from evo_toolkit.variants.ism import IsmBlock

    Blocks = Callable[[Callable[[int], None]], Iterator[IsmBlock]]


@click.command(epilog="Exit codes: 0 done; 1 an error (a bad file, the wrong genome); 2 wrong usage; 3 no base of the regions could be scored.")  # fmt: skip
@click.argument("genome", metavar="GENOME", type=click.Path(path_type=str))
@region_options
@click.option(
    "-o",
    "--output",
    metavar="FILE",
    help="Where to write the scores; the ending decides the format: .npz, .tsv (.gz), .parquet, .bw, .bedgraph (.gz); - is TSV on stdout, which is the default unless a picture is asked for.",
)
@click.option("--logo", metavar="FILE", help="Draw the reference, each base as high as the model prefers it: .png, .svg, .pdf.")  # fmt: skip
@click.option("--heatmap", metavar="FILE", help="Draw the score of every substitution: .png, .svg, .pdf.")  # fmt: skip
@click.option(
    "-M",
    "--method",
    type=click.Choice(["delta", "marginal"]),
    default="delta",
    show_default=True,
    help="delta: the score that `evo-toolkit score` gives each substitution (dll). marginal: how likely the base itself is there (marg); hundreds of times faster, blind to what follows.",
)
@click.option(
    "--reduce",
    type=click.Choice(["mean", "min", "max"]),
    default="mean",
    show_default=True,
    help="What bigWig and bedGraph hold of the three substitutions of a base.",
)
@strands_option
@model_options
@click.option(
    "--window",
    type=click.IntRange(16),
    metavar="BASES",
    help="Bases per window; default: the model's own (models info NAME).",
)
@click.option(
    "--window-mode",
    type=click.Choice(["exact", "shared", "full"]),
    help="Of delta, as in `evo-toolkit score`; default exact. shared is faster: neighbours share a window.",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="BASES",
    help="Of marginal, as in `evo-toolkit track`; default: half a window.",
)
@click.option("--no-version", is_flag=True, help="Leave the command line out of the output.")
@click.option("--force", is_flag=True, help="Replace existing outputs.")
@allow_out_of_domain_option
@quiet_option
@user_errors
def ism(
    genome: str,
    regions: tuple[str, ...],
    regions_file: str | None,
    output: str | None,
    logo: str | None,
    heatmap: str | None,
    method: str,
    reduce: str,
    strands: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    window: int | None,
    window_mode: str | None,
    stride: int | None,
    no_version: bool,
    force: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Score every substitution of a region; logo and heatmap.

    GENOME is a FASTA, plain or bgzipped. Each of the three other bases in place of each base of the
    region is scored, in nats, alternate minus reference: a negative score means that the substitution
    is LESS likely to the model. Bases other than A, C, G and T have no scores. Overlapping regions
    are merged.
    """
    from evo_data.fasta import Fasta
    from evo_toolkit.errors import UsageError
    from evo_toolkit.variants.ism_files import ISM_SUFFIXES, open_ism
    from evo_toolkit.variants.ism_plots import PLOT_SUFFIXES, check_plot
    from evo_toolkit.variants.manifest import describe_run
    from evo_toolkit.variants.regions import read_regions
    from evo_toolkit.variants.track_files import resolve_format

    name = require_model(model)
    if method == "delta" and stride is not None:
        raise UsageError("--stride is for --method marginal; delta places a window for every base")
    if method == "marginal" and window_mode is not None:
        raise UsageError("--window-mode is for --method delta; marginal has --stride")
    pictures = {"logo": logo, "heatmap": heatmap}
    if output is None and not (logo or heatmap):
        output = "-"
    files = [path for path in (output, logo, heatmap) if path is not None and path != "-"]
    if len(set(files)) < len(files):
        raise UsageError(f"two outputs have the name {files[-1]}; give each its own")
    for file in files:
        refuse_input_as_output(file, genome, *([regions_file] if regions_file else []))
    for picture in pictures.values():
        if picture is not None:
            resolve_format(picture, PLOT_SUFFIXES, force=force)
    format = None
    if output is not None:
        format = resolve_format(output, ISM_SUFFIXES, stdout="tsv", force=force)
    with Fasta(genome) as reference:
        wanted = read_regions(regions, regions_file, reference.lengths)
        num_bases = sum(region.length for region in wanted)
        for what, picture in pictures.items():
            if picture is not None:
                check_plot(num_bases, what)
        loaded, note = load_for_genome(
            name, reference.lengths, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate, allow_out_of_domain=allow_out_of_domain,
        )  # fmt: skip
        from evo_toolkit.cli.progress import progress_bar
        from evo_toolkit.variants.ism import ISM_METHODS

        column = ISM_METHODS[method]
        if method == "delta":
            total, blocks, details = _delta(
                loaded, reference, wanted, strands, window, window_mode, quiet
            )
        else:
            total, blocks, details = _marginal(loaded, reference, wanted, strands, window, stride)
        reduced = format in ("bigwig", "bedgraph", "bedgraph.gz")
        manifest = describe_run(
            loaded, reference, method=method, score=column, unit="nats", strands=strands, **details,
            reduce=f"{reduce} of the three substitutions" if reduced else None,
            command=None if no_version else f"{PROGRAM} {shlex.join(sys.argv[1:])}", note=note,
        )  # fmt: skip
        kept: list[IsmBlock] = []
        num_scored = 0
        with ExitStack() as stack:
            write = None
            if output is not None and format is not None:
                write = stack.enter_context(
                    open_ism(
                        output,
                        format,
                        column=column,
                        reduce=reduce,
                        lengths=reference.lengths,
                        manifest=manifest,
                        force=force,
                    )
                )
            advance = stack.enter_context(progress_bar("ism", total, "bases", quiet=quiet))
            for block in blocks(advance):
                if write is not None:
                    write(block)
                if logo or heatmap:
                    kept.append(block)
                num_scored += _num_scored(block)
        title = f"{loaded.config.name}, {method}"
        _draw(kept, logo, heatmap, title, column, force)
    if not quiet:
        click.echo(f"{num_scored:,} substitutions of {num_bases:,} bases scored", err=True)
    if note:
        click.echo(f"Warning: {note}", err=True)
    if not num_scored:
        raise click.exceptions.Exit(EXIT_NOTHING_SCORED)


def _delta(
    model: StripedHyena2,
    genome: Fasta,
    regions: Sequence[Interval],
    strands: str,
    window: int | None,
    window_mode: str | None,
    quiet: bool,
) -> tuple[int, Blocks, dict[str, object]]:
    from evo_toolkit.cli.score import duration
    from evo_toolkit.variants.ism import ism_delta
    from evo_toolkit.variants.reuse import window_runner

    runner = window_runner(model, window or model.config.default_window, window_mode)
    runner.probe()
    total = sum(region.length for region in regions)
    windows = total * (2 if strands == "both" else 1)
    if not quiet:
        seconds = runner.estimate(windows, 3 * windows)
        click.echo(
            f"{total:,} bases, window {runner.window}, window mode {runner.mode}; estimated time {duration(seconds)}",
            err=True,
        )

    def blocks(advance: Callable[[int], None]) -> Iterator[IsmBlock]:
        return ism_delta(runner, genome, regions, strands=strands, advance=advance)

    return total, blocks, {"window": runner.window, "window_mode": runner.mode}


def _marginal(
    model: StripedHyena2,
    genome: Fasta,
    regions: Sequence[Interval],
    strands: str,
    window: int | None,
    stride: int | None,
) -> tuple[int, Blocks, dict[str, object]]:
    from evo_toolkit.variants.ism import ism_marginal
    from evo_toolkit.variants.track import Track

    track = Track(model, genome, window=window, stride=stride, strands=strands)

    def blocks(advance: Callable[[int], None]) -> Iterator[IsmBlock]:
        return ism_marginal(track, regions, advance=advance)

    details: dict[str, object] = {"window": track.window, "stride": track.stride}
    return track.num_tokens(regions), blocks, details


def _num_scored(block: IsmBlock) -> int:
    import numpy as np

    values = ~np.isnan(block.scores)
    return int(values.sum() - values[block.reference >= 0].any(axis=1).sum())


def _draw(
    blocks: list[IsmBlock],
    logo: str | None,
    heatmap: str | None,
    title: str,
    column: str,
    force: bool,
) -> None:
    from evo_toolkit.variants.ism_plots import draw_heatmap, draw_logo

    if logo is not None:
        unit = f"\N{MINUS SIGN} mean {column} of the\nthree substitutions, nats"
        draw_logo(blocks, logo, title=title, unit=unit, force=force)
    if heatmap is not None:
        draw_heatmap(
            blocks,
            heatmap,
            title=f"{title} (dots: the reference)",
            unit=f"{column}, nats",
            force=force,
        )
