"""`evo-toolkit embed`: embeddings of the records of a FASTA, of regions, or of variants' alleles."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import (
    EMBEDDED_STRANDS,
    EXIT_NOTHING_SCORED,
    POOLS,
    allow_out_of_domain_option,
    context_parallel_options,
    model_for_genome,
    model_options,
    quiet_option,
    refuse_input_as_output,
    require_model,
    user_errors,
)

if TYPE_CHECKING:
    from evo_data.fasta import Fasta
    from evo_toolkit.cli.embed_sources import Source
    from evo_toolkit.cli.embed_store import GroupStore
    from evo_toolkit.inference.embed import EmbeddingRunner


@click.command(epilog="Exit codes: 0 done; 1 an error (a bad file, the wrong genome); 2 wrong usage; 3 nothing could be embedded.")  # fmt: skip
@click.argument("fasta", metavar="FASTA", type=click.Path(path_type=str))
@click.option(
    "-o",
    "--output",
    required=True,
    metavar="FILE",
    help="Where to write: .npz, .parquet or .h5ad (AnnData).",
)
@click.option(
    "-l",
    "--layer",
    "layers",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Layer by name, such as blocks.4, blocks.4.mlp.l3 or norm; may be repeated. all: the residual stream after every block, and norm.",
)
@click.option(
    "--pool",
    type=click.Choice([*POOLS, "none"]),
    default="mean",
    show_default=True,
    help="Over the positions of a sequence: last is in reading direction, center the middle base (of a variant's window: the variant), none keeps every position.",
)
@click.option(
    "--strands",
    type=click.Choice(EMBEDDED_STRANDS),
    default="fwd",
    show_default=True,
    help="As given, the reverse complement, the mean of both, or both side by side.",
)
@click.option(
    "-r",
    "--region",
    "regions",
    multiple=True,
    metavar="REGION",
    help="Instead of whole records: contig:first-last, 1-based and inclusive, or a contig; may be repeated.",
)
@click.option(
    "-R",
    "--regions-file",
    metavar="FILE",
    type=click.Path(path_type=str),
    help="Regions of a BED, GFF3 or GTF, each read on its strand; or a VCF or BCF, for the windows of its alleles.",
)
@click.option(
    "--feature",
    "features",
    multiple=True,
    metavar="TYPE",
    help="Features of a GFF3 or GTF to take; may be repeated. Default: gene.",
)
@click.option(
    "--window",
    type=click.IntRange(2),
    metavar="BASES",
    help="So many bases around the middle of each region; of each variant (default there: the model's own, models info NAME).",
)
@model_options
@context_parallel_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@click.option(
    "--restart", is_flag=True, help="Throw away what an interrupted run of this output left."
)
@allow_out_of_domain_option
@quiet_option
@user_errors
def embed(
    fasta: str,
    output: str,
    layers: tuple[str, ...],
    pool: str,
    strands: str,
    regions: tuple[str, ...],
    regions_file: str | None,
    features: tuple[str, ...],
    window: int | None,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    devices: str | None,
    context_parallel: bool,
    force: bool,
    restart: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Embed sequences, regions or variants.

    Without -r and -R every record of FASTA is one sequence; with them FASTA is a genome. Bases are
    upper-cased. All layers come from one pass, which stops at the deepest.

    An .npz has the array `ids` and one array per layer, [sequences, channels]; with --pool none one array
    [positions, channels] per layer and sequence, named LAYER/ID. A .parquet has the columns id,
    layer, position (0-based, only with --pool none) and embedding. An .h5ad has one row per sequence and the
    channels of all layers side by side. Of regions there are contig, start, end (0-based, half-open) and
    strand too, of variants also variant and allele (ref, alt). The run's manifest is in
    `manifest` (npz), the metadata (parquet) or uns (h5ad).

    Finished groups of sequences wait in FILE.partial: a run that was interrupted goes on with the
    same command.
    """
    from evo_data.fasta import Fasta
    from evo_data.files import check_output
    from evo_toolkit.cli.embed_sources import open_embedded
    from evo_toolkit.errors import UsageError
    from evo_toolkit.inference import readings
    from evo_toolkit.inference.context_embedding import ContextEmbeddingRunner
    from evo_toolkit.inference.embed import EmbeddingRunner
    from evo_toolkit.inference.embed_files import EmbeddingFile, check_suffix, write_embeddings
    from evo_toolkit.variants.manifest import describe_run
    from evo_toolkit.variants.resume import was_finishing

    name = require_model(model)
    pool_wanted = next(p for p in readings.POOLS if p == pool)
    strands_wanted = next(s for s in readings.STRANDS if s == strands)
    check_suffix(output)
    refuse_input_as_output(output, fasta, *([regions_file] if regions_file else []))
    force = force or was_finishing(output)
    check_output(output, force=force)
    with Fasta(fasta) as sequences, ExitStack() as running:
        source = open_embedded(
            sequences, regions=regions, regions_file=regions_file, features=features,
            window=window, strands=strands_wanted, pool=pool,
        )  # fmt: skip
        for warning in source.warnings:
            click.echo(f"Warning: {warning}", err=True)
        loaded, workers, note = running.enter_context(
            model_for_genome(
                name, sequences.lengths, devices=devices, context_parallel=context_parallel,
                device=device, precision=precision, allow_inaccurate=allow_inaccurate,
                allow_out_of_domain=allow_out_of_domain,
            )
        )  # fmt: skip
        try:
            runner = (
                EmbeddingRunner(loaded, layers, pool=pool_wanted, strands=strands_wanted)
                if workers is None
                else ContextEmbeddingRunner(
                    workers, layers, pool=pool_wanted, strands=strands_wanted
                )
            )
        except ValueError as error:
            raise UsageError(str(error)) from None
        source.prepare(loaded.config.default_window)
        options: dict[str, object] = {
            "layers": runner.layers, "pool": pool, "strands": strands, "regions": list(regions) or None,
            "regions_file": regions_file, "features": list(features) or None, "window": window,
            "context_parallel": ", ".join(workers.devices) if workers else None,
        }  # fmt: skip
        with _open_store(output, runner, sequences, options, restart=restart) as store:
            num = _embed(runner, source, store, quiet=quiet)
            if num:
                manifest = describe_run(loaded, sequences, note=note, **options)
                file = EmbeddingFile(
                    layers=runner.layers, pool=pool_wanted, strands=strands_wanted,
                    columns=source.columns, manifest=manifest,
                )  # fmt: skip
                store.finishing()
                write_embeddings(output, file, store.groups, force=force)
            store.remove()
    if not quiet:
        click.echo(_summary(num, source, runner.layers), err=True)
    if note:
        click.echo(f"Warning: {note}", err=True)
    if not num:
        raise click.exceptions.Exit(EXIT_NOTHING_SCORED)


def _open_store(
    output: str,
    runner: EmbeddingRunner,
    sequences: Fasta,
    options: dict[str, object],
    *,
    restart: bool,
) -> GroupStore:
    """The folder of finished groups, and what they depend on."""
    from evo_toolkit.cli.embed_store import GroupStore
    from evo_toolkit.variants.manifest import device_name, genome_entry, options_entry, versions

    model = runner.model
    identity = {
        "versions": versions(),
        "sequences": genome_entry(sequences),
        "model": {"file": str(model.source), "sha256": model.sha256},
        "precision": model.policy.describe(),
        # With --context-parallel the options name the devices, and the model here has none.
        "device": None if model.device.type == "meta" else device_name(str(model.device)),
        "options": options_entry(options),
    }
    store = GroupStore(output, identity, restart=restart)
    store.begin((), 0)
    return store


def _embed(runner: EmbeddingRunner, source: Source, store: GroupStore, *, quiet: bool) -> int:
    """Embed what is not there yet, and return how many sequences there are."""
    from evo_toolkit.cli.embed_sources import digest_of
    from evo_toolkit.cli.progress import progress_bar
    from evo_toolkit.inference.embed_files import EmbeddedGroup

    num = num_groups = 0
    if store.num_found and not quiet:
        click.echo(f"going on after {store.num_found:,} groups of an interrupted run", err=True)
    with progress_bar("embed", source.num_bases, "bases", quiet=quiet) as advance:
        for items in runner.groups(source.items(), lambda item: item.readings):
            digest = digest_of(items)
            if not store.has(num_groups, digest):
                found = runner.embed([item.readings for item in items])
                columns = {
                    column: [item.columns[index] for item in items]
                    for index, column in enumerate(source.columns)
                }
                store.save_group(num_groups, digest, EmbeddedGroup(columns=columns, layers=found))
            num += len(items)
            num_groups += 1
            advance(sum(len(item.readings[0].tokens) for item in items))
    return num


def _summary(num: int, source: Source, layers: list[str]) -> str:
    shown = ", ".join(layers[:4]) + (f" and {len(layers) - 4} more" if len(layers) > 4 else "")
    skipped = ", ".join(f"{reason} {count:,}" for reason, count in sorted(source.skipped.items()))
    return f"embedded {num:,} sequences at {shown}" + (f"; left out: {skipped}" if skipped else "")
