"""Scores of substitutions to files: arrays (npz), tables (TSV, Parquet), and a value per base (bigWig)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, BinaryIO

import numpy as np
import pysam
from numpy.typing import NDArray

from evo_data.alphabet import BASES
from evo_data.files import atomic_output
from evo_toolkit.variants.ism import IsmBlock
from evo_toolkit.variants.track_files import as_text, index_text, manifest_lines, open_track

ISM_SUFFIXES = {
    ".npz": "npz", ".tsv": "tsv", ".tsv.gz": "tsv.gz", ".parquet": "parquet",
    ".bw": "bigwig", ".bigwig": "bigwig",
    ".bedgraph": "bedgraph", ".bdg": "bedgraph", ".bedgraph.gz": "bedgraph.gz", ".bdg.gz": "bedgraph.gz",
}  # fmt: skip
"""What the endings of an output's name (in any case) mean."""

STRAND_SUFFIXES = {"+": "fwd", "-": "rc"}

Write = Callable[[IsmBlock], None]


@contextmanager
def open_ism(
    output: str,
    format: str,
    *,
    column: str,
    reduce: str,
    lengths: Mapping[str, int],
    manifest: Mapping[str, object],
    force: bool = False,
) -> Iterator[Write]:
    """Open a file of a format of `ISM_SUFFIXES`; yield what writes blocks, in genome order.

    Args:
        output: A path, or "-" for TSV on stdout.
        column: What the score is called, such as `dll`.
        reduce: For bigWig and bedGraph: mean, min or max of the three substitutions.
        lengths: Contigs of the genome, in bases.
        manifest: About the run.
    """
    if format in ("bigwig", "bedgraph", "bedgraph.gz"):
        with open_track(output, format, lengths=lengths, manifest=manifest, force=force) as track:

            def per_base(block: IsmBlock) -> None:
                where = block.interval
                track(where.contig, where.start, block.sequence, {column: block.reduced(reduce)})

            yield per_base
    elif output == "-":
        yield _tsv(sys.stdout.buffer, column, manifest)
        sys.stdout.buffer.flush()
    elif format == "npz":
        blocks: list[IsmBlock] = []
        with atomic_output(output, force=force) as path:
            yield blocks.append
            with path.open("wb") as file:
                np.savez(file, **_arrays(blocks, column, manifest))  # type: ignore[arg-type]
    elif format == "parquet":
        with atomic_output(output, force=force) as path, _parquet(path, column, manifest) as write:
            yield write
    else:
        with atomic_output(output, force=force) as path:
            opened: Any = (
                pysam.BGZFile(str(path), "wb") if format.endswith(".gz") else path.open("wb")
            )
            with opened as file:
                yield _tsv(file, column, manifest)
        if format.endswith(".gz"):
            index_text(output, format, max(lengths.values(), default=0))


def _arrays(
    blocks: list[IsmBlock], column: str, manifest: Mapping[str, object]
) -> dict[str, NDArray[Any]]:
    """The arrays of an npz: one row for each base."""
    where = [block.interval for block in blocks]
    found: dict[str, NDArray[Any]] = {
        "chrom": np.concatenate([np.full(i.length, i.contig) for i in where] or [np.array([], str)]),
        "pos": np.concatenate([np.arange(i.start + 1, i.end + 1) for i in where] or [np.array([], int)]),
        "ref": np.array(list(b"".join(block.sequence for block in blocks).decode("ascii")), dtype=str),
        "alleles": np.array(list(BASES)),
        column: np.concatenate([block.scores for block in blocks] or [np.empty((0, 4), np.float32)]),
    }  # fmt: skip
    for strand in blocks[0].strands if blocks else ():
        found[f"{column}_{STRAND_SUFFIXES[strand]}"] = np.concatenate(
            [block.strands[strand] for block in blocks]
        )
    found["manifest"] = np.array(json.dumps(manifest))
    return found


def _columns(block: IsmBlock, column: str) -> dict[str, NDArray[np.float32]]:
    return {
        column: block.scores,
        **{f"{column}_{STRAND_SUFFIXES[s]}": values for s, values in block.strands.items()},
    }


def _tsv(file: BinaryIO, column: str, manifest: Mapping[str, object]) -> Write:
    """One row for each substitution: chrom, pos (1-based), ref, alt, the mean, each strand."""
    file.write(manifest_lines(manifest))
    named = False

    def write(block: IsmBlock) -> None:
        nonlocal named
        columns = _columns(block, column)
        if not named:
            file.write(("\t".join(("#chrom", "pos", "ref", "alt", *columns)) + "\n").encode())
            named = True
        texts = [as_text(values.ravel()) for values in columns.values()]
        lines = []
        for place, ref in _substitutions(block):
            for index, alt in enumerate(BASES):
                if alt != ref:
                    values = "\t".join(column[4 * place + index] for column in texts)
                    pos = block.interval.start + place + 1
                    lines.append(f"{block.interval.contig}\t{pos}\t{ref}\t{alt}\t{values}\n")
        file.write("".join(lines).encode())

    return write


def _substitutions(block: IsmBlock) -> Iterator[tuple[int, str]]:
    """Offset and letter of the bases that have substitutions."""
    return ((i, base) for i, base in enumerate(block.sequence.decode("ascii")) if base in BASES)


@contextmanager
def _parquet(path: Any, column: str, manifest: Mapping[str, object]) -> Iterator[Write]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None

    def write(block: IsmBlock) -> None:
        nonlocal writer
        columns = _columns(block, column)
        known = block.reference >= 0
        keep = known[:, None] & (np.arange(len(BASES)) != block.reference[:, None])
        places, alts = np.nonzero(keep)
        letters = np.array(list(BASES))
        table = {
            "chrom": pa.array([block.interval.contig] * len(places), pa.string()).dictionary_encode(),
            "pos": pa.array(block.interval.start + places + 1, pa.int64()),
            "ref": pa.array(letters[block.reference[places]].tolist(), pa.string()),
            "alt": pa.array(letters[alts].tolist(), pa.string()),
            **{name: pa.array(v[keep], pa.float32(), from_pandas=True) for name, v in columns.items()},
        }  # fmt: skip
        made = pa.table(table).replace_schema_metadata({"evo_toolkit": json.dumps(manifest)})
        if writer is None:
            writer = pq.ParquetWriter(path, made.schema)
        writer.write_table(made)

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()
