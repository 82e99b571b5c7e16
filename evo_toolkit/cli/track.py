"""`evo-toolkit track`: how likely each base of a genome is to a model."""

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
    context_parallel_options,
    model_for_genome,
    model_options,
    quiet_option,
    refuse_input_as_output,
    region_options,
    require_model,
    user_errors,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from evo_toolkit.variants.track import TrackBlock

STRAND_NAMES = {"+": "fwd", "-": "rc"}


@click.command(epilog="Exit codes: 0 done; 1 an error (a bad file, the wrong genome); 2 wrong usage; 3 no base of the regions has a value.")  # fmt: skip
@click.argument("genome", metavar="GENOME", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    default="-",
    show_default=True,
    metavar="FILE",
    help="Where to write; the ending decides the format: .bedgraph (.gz), .bw, .tsv (.gz), .parquet; - is bedGraph on stdout.",
)
@region_options
@click.option(
    "--what",
    type=click.Choice(["loglik", "entropy"]),
    default="loglik",
    show_default=True,
    help="What a bedGraph or bigWig holds; tables hold both.",
)
@click.option(
    "--strands",
    type=click.Choice(["both", "fwd", "rc"]),
    default="both",
    show_default=True,
    help="Strands to read; both are averaged base by base.",
)
@model_options
@context_parallel_options
@click.option(
    "--window",
    metavar="BASES|whole",
    help="Bases that the model reads at once; default: the model's own (models info NAME). whole: each contig as one sequence.",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    metavar="BASES",
    help="From one window to the next; default: half a window. Every base is predicted from at least window - stride bases, where the contig has them.",
)
@click.option("--no-version", is_flag=True, help="Leave the command line out of the output.")
@click.option("--force", is_flag=True, help="Replace an existing output.")
@allow_out_of_domain_option
@quiet_option
@user_errors
def track(
    genome: str,
    output: str,
    regions: tuple[str, ...],
    regions_file: str | None,
    what: str,
    strands: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    devices: str | None,
    context_parallel: bool,
    window: str | None,
    stride: int | None,
    no_version: bool,
    force: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Log-likelihood and entropy of each base.

    GENOME is a FASTA, plain or bgzipped. Base i has log p(base i | the bases before it) on the
    forward strand, the same for its complement and the bases after it on the reverse strand, and the
    mean of the two, in nats: 0 is certain, -1.39 is a guess among four. The entropy, in nats too, says
    how undecided the model is there, whatever stands there. Bases other than A, C, G and T have no
    value. Overlapping regions are merged.
    """
    from evo_data.fasta import Fasta
    from evo_toolkit.variants.manifest import describe_run
    from evo_toolkit.variants.regions import read_regions
    from evo_toolkit.variants.track_files import TRACK_SUFFIXES, open_track, resolve_format

    name = require_model(model)
    if output != "-":
        refuse_input_as_output(output, genome, *([regions_file] if regions_file else []))
    format = resolve_format(output, TRACK_SUFFIXES, stdout="bedgraph", force=force)
    width = _window(window)
    with Fasta(genome) as reference, ExitStack() as running:
        wanted = read_regions(regions, regions_file, reference.lengths)
        loaded, workers, note = running.enter_context(
            model_for_genome(
                name, reference.lengths, devices=devices, context_parallel=context_parallel,
                device=device, precision=precision, allow_inaccurate=allow_inaccurate,
                allow_out_of_domain=allow_out_of_domain,
            )
        )  # fmt: skip
        positions = None
        if workers is not None:
            from evo_toolkit.variants.context import ContextPositionModel

            positions = ContextPositionModel(workers, bases=True)
        from evo_toolkit.cli.progress import progress_bar
        from evo_toolkit.variants.track import Track

        tracks = Track(
            loaded, reference, window=width, stride=stride, whole=window == "whole",
            strands=strands, positions=positions,
        )  # fmt: skip
        manifest = describe_run(
            loaded, reference,
            what=what if format in ("bigwig", "bedgraph", "bedgraph.gz") else "loglik, entropy",
            unit="nats", strands=strands, window=tracks.window or "whole",
            stride=tracks.stride if tracks.window else None,
            context_parallel=", ".join(workers.devices) if workers else None,
            command=None if no_version else f"{PROGRAM} {shlex.join(sys.argv[1:])}", note=note,
        )  # fmt: skip
        summary = _Summary()
        with (
            open_track(
                output, format, lengths=reference.lengths, manifest=manifest, force=force
            ) as write,
            progress_bar("track", tracks.num_tokens(wanted), "bases", quiet=quiet) as advance,
        ):
            for block in tracks.blocks(wanted, advance):
                columns = track_columns(block, what)
                write(block.interval.contig, block.interval.start, block.sequence, columns)
                summary.add(block)
    if not quiet:
        click.echo(summary.text(strands), err=True)
    if note:
        click.echo(f"Warning: {note}", err=True)
    if not summary.num_values:
        raise click.exceptions.Exit(EXIT_NOTHING_SCORED)


def track_columns(block: TrackBlock, what: str) -> dict[str, NDArray[np.float32]]:
    """Columns of a block: the mean and each strand of every quantity, `what` first."""
    columns = {}
    for quantity in sorted(("loglik", "entropy"), key=lambda q: q != what):
        columns[quantity] = block.mean(quantity)
        for strand, values in block.strands(quantity).items():
            columns[f"{quantity}_{STRAND_NAMES[strand]}"] = values
    return columns


def _window(text: str | None) -> int | None:
    from evo_toolkit.errors import UsageError

    if text is None or text == "whole":
        return None
    if not text.isdigit() or int(text) < 2:
        raise UsageError(f"--window {text} is no number of bases; give 2 or more, or whole")
    return int(text)


class _Summary:
    """Counts, and the sum over the bases of each strand."""

    def __init__(self) -> None:
        self.num_bases = 0
        self.num_values = 0
        self.nats: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, block: TrackBlock) -> None:
        import numpy as np

        self.num_bases += block.interval.length
        self.num_values += int((~np.isnan(block.mean("loglik"))).sum())
        for strand, values in block.loglik.items():
            kept = values[~np.isnan(values)]
            self.nats[strand] = self.nats.get(strand, 0.0) + float(kept.sum(dtype=np.float64))
            self.counts[strand] = self.counts.get(strand, 0) + len(kept)

    def text(self, strands: str) -> str:
        import math

        parts = []
        for strand, nats in self.nats.items():
            if self.counts[strand]:
                bits = -nats / self.counts[strand] / math.log(2)
                parts.append(f"{STRAND_NAMES[strand]} {nats:.6g} nats ({bits:.3f} bits per base)")
        missing = self.num_bases - self.num_values
        return (
            f"{self.num_bases:,} bases, {missing:,} without a value; "
            f"log-likelihood {', '.join(parts) or 'of nothing'}"
        )
