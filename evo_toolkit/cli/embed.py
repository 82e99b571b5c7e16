"""`evo-toolkit embed`: embeddings of the sequences of a FASTA."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from evo_toolkit.cli.common import (
    allow_out_of_domain_option,
    load_for_genome,
    model_options,
    quiet_option,
    require_model,
    user_errors,
)

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Embedded = dict[str, NDArray[np.float32] | list[NDArray[np.float32]]]

_SUFFIXES = (".npz", ".parquet")


@click.command()
@click.argument("fasta", metavar="FASTA", type=click.Path(path_type=str))
@click.option(
    "-o", "--output", required=True, metavar="FILE", help="Where to write: .npz or .parquet."
)
@click.option(
    "-l",
    "--layer",
    "layers",
    multiple=True,
    required=True,
    metavar="NAME",
    help="Layer by name, such as blocks.4, blocks.4.mlp.l3 or norm; may be repeated.",
)
@click.option(
    "--pool",
    type=click.Choice(["mean", "last", "none"]),
    default="mean",
    show_default=True,
    help="Over the positions of a sequence; none keeps every position.",
)
@model_options
@click.option("--force", is_flag=True, help="Replace an existing output.")
@allow_out_of_domain_option
@quiet_option
@user_errors
def embed(
    fasta: str,
    output: str,
    layers: tuple[str, ...],
    pool: str,
    model: str | None,
    device: str,
    precision: str,
    allow_inaccurate: bool,
    force: bool,
    allow_out_of_domain: bool,
    quiet: bool,
) -> None:
    """Embed the sequences of a FASTA.

    Every record of FASTA is one sequence, upper-cased. An .npz has the array `ids` and one array
    per layer, [sequences, channels]; with --pool none one array [positions, channels] per layer
    and sequence, named LAYER/ID. A .parquet has the columns id, layer, position (0-based, only
    with --pool none) and embedding. The run's manifest is in `manifest` (npz) or in the metadata.
    """
    from evo_data.fasta import Fasta
    from evo_data.files import check_output
    from evo_toolkit.errors import UsageError
    from evo_toolkit.inference.embed import embed as run
    from evo_toolkit.inference.embed import resolve_layer
    from evo_toolkit.inference.readings import POOLS

    name = require_model(model)
    if Path(output).suffix not in _SUFFIXES:
        raise UsageError(
            f"output {output} has none of the endings {', '.join(_SUFFIXES)}; use one of them"
        )
    check_output(output, force=force)
    with Fasta(fasta) as sequences:
        loaded, note = load_for_genome(
            name, sequences.lengths, device=device, precision=precision,
            allow_inaccurate=allow_inaccurate, allow_out_of_domain=allow_out_of_domain,
        )  # fmt: skip
        try:
            for layer in layers:
                resolve_layer(loaded, layer)
        except ValueError as error:
            raise UsageError(str(error)) from None
        ids = [contig for contig, length in sequences.lengths.items() if length]
        texts = [sequences.fetch(contig, 0, sequences.lengths[contig]) for contig in ids]
    found = run(loaded, texts, layers, pool=next(p for p in POOLS if p == pool))
    manifest = json.dumps(
        {"model": loaded.config.name, "sha256": loaded.sha256, "precision": loaded.policy.describe(),
         "pool": pool, "notes": [*loaded.notes, *([note] if note else [])]}
    )  # fmt: skip
    _write(output, ids, found, manifest, force)
    if not quiet:
        click.echo(f"embedded {len(ids):,} sequences at {', '.join(layers)}", err=True)
    if note:
        click.echo(f"Warning: {note}", err=True)


def _write(output: str, ids: list[str], found: Embedded, manifest: str, force: bool) -> None:
    import numpy as np

    from evo_data.files import atomic_output

    pooled = {layer: values for layer, values in found.items() if isinstance(values, np.ndarray)}
    if output.endswith(".npz"):
        arrays: dict[str, NDArray[np.float32]] = dict(pooled)
        for layer, values in found.items():
            if layer not in pooled:
                arrays.update({f"{layer}/{name}": v for name, v in zip(ids, values, strict=True)})
        with atomic_output(output, force=force) as path, path.open("wb") as file:
            np.savez(file, ids=np.array(ids), manifest=np.array(manifest), **arrays)  # type: ignore[arg-type]
        return
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, list[object]] = {"id": [], "layer": [], "position": [], "embedding": []}
    for layer, values in found.items():
        for name, value in zip(ids, values, strict=True):
            rows = [value] if layer in pooled else value
            columns["id"] += [name] * len(rows)
            columns["layer"] += [layer] * len(rows)
            columns["position"] += [None] if layer in pooled else range(len(rows))
            columns["embedding"] += list(rows)
    schema = pa.schema(
        [("id", pa.string()), ("layer", pa.string()), ("position", pa.int64()), ("embedding", pa.list_(pa.float32()))],
        metadata={"evo_toolkit": manifest},
    )  # fmt: skip
    if pooled:
        schema, _ = schema.remove(2), columns.pop("position")
    with atomic_output(output, force=force) as path:
        pq.write_table(pa.table(columns, schema=schema), path)
