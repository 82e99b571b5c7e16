"""Values along a genome to files: bedGraph, bigWig, and tables with a row for each base.

bedGraph and bigWig hold one quantity, the first column given; bases without a value are left out.
TSV and Parquet hold all columns. Every file is written whole or not at all.
"""

from __future__ import annotations

import importlib
import json
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pysam
from numpy.typing import NDArray

from evo_data.files import atomic_output, check_output
from evo_data.tabix import INDEX_SUFFIXES, index_tabix
from evo_toolkit.errors import EvoError, UsageError

TRACK_SUFFIXES = {
    ".bedgraph": "bedgraph", ".bdg": "bedgraph", ".bg": "bedgraph",
    ".bedgraph.gz": "bedgraph.gz", ".bdg.gz": "bedgraph.gz", ".bg.gz": "bedgraph.gz",
    ".bw": "bigwig", ".bigwig": "bigwig",
    ".tsv": "tsv", ".tsv.gz": "tsv.gz", ".parquet": "parquet",
}  # fmt: skip
"""What the endings of an output's name (in any case) mean."""

MISSING = "."

_log = logging.getLogger("evo_toolkit")

Columns = Mapping[str, NDArray[np.float32]]
WriteBlock = Callable[[str, int, bytes, Columns], None]
"""Takes contig, start (0-based), bases (forward strand) and the values, `[n]` float32 per column."""


def resolve_format(
    output: str, suffixes: Mapping[str, str], *, stdout: str | None = None, force: bool = False
) -> str:
    """Return the format that an output's name asks for, once it can be written.

    Args:
        suffixes: Formats by lower-case ending.
        stdout: The format of "-", or None where it is not allowed.

    Raises:
        UsageError: for an ending that stands for nothing, or a bigWig that cannot be written here.
        OutputExistsError: if the file exists and `force` is not given.
    """
    if output == "-":
        if stdout is None:
            raise UsageError(f"stdout is no place for this; use a name ending in {_any(suffixes)}")
        return stdout
    endings = [ending for ending in suffixes if output.lower().endswith(ending)]
    if not endings:
        raise UsageError(f"output {output} has none of the endings {_any(suffixes)}; use one")
    check_output(output, force=force)
    format = suffixes[max(endings, key=len)]
    if format.endswith(".gz"):
        for suffix in INDEX_SUFFIXES:
            check_output(f"{output}{suffix}", force=force)
    if format == "bigwig":
        load_bigwig()
    return format


def _any(suffixes: Mapping[str, str]) -> str:
    return ", ".join(suffixes)


def load_bigwig() -> Any:
    """Return the module pyBigWig.

    Raises:
        UsageError: where it is not installed.
    """
    try:
        return importlib.import_module("pyBigWig")
    except ImportError as error:
        raise UsageError(
            "bigWig needs the package pyBigWig; pip install 'evo-toolkit[bigwig]', or write a .bedgraph"
        ) from error


@contextmanager
def open_track(
    output: str,
    format: str,
    *,
    lengths: Mapping[str, int],
    manifest: Mapping[str, object],
    force: bool = False,
) -> Iterator[WriteBlock]:
    """Open a file of a format of `TRACK_SUFFIXES`; yield what writes blocks, in genome order.

    Args:
        output: A path, or "-" for bedGraph or TSV on stdout.
        lengths: Contigs of the genome and their lengths, in bases; the order of the blocks.
        manifest: About the run: `#` lines of text files, metadata of Parquet, and for bigWig, which
            has no place for it, a file beside it, named as the output with `.json` added.
    """
    if format == "bigwig":
        beside = f"{output}.json"
        check_output(beside, force=force)
        with atomic_output(output, force=force) as path:
            with _bigwig(path, lengths) as write:
                yield write
            with atomic_output(beside, force=True) as note:
                note.write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    elif format == "parquet":
        with atomic_output(output, force=force) as path, _parquet(path, manifest) as write:
            yield write
    elif output == "-":
        yield _text(sys.stdout.buffer, format, manifest)
        sys.stdout.buffer.flush()
    else:
        with atomic_output(output, force=force) as path:
            opened: Any = (
                pysam.BGZFile(str(path), "wb") if format.endswith(".gz") else path.open("wb")
            )
            with opened as file:
                yield _text(file, format.removesuffix(".gz"), manifest)
        if format.endswith(".gz"):
            index_text(output, format, max(lengths.values(), default=0))


def index_text(output: str, format: str, last_position: int = 0) -> None:
    """Index a bgzip file for tabix and genome browsers; where that cannot be, say why."""
    bedgraph = format == "bedgraph.gz"
    reason = index_tabix(
        output, start=1, end=2 if bedgraph else 1, zero_based=bedgraph, last_position=last_position
    )
    if reason is not None:
        _log.warning("%s: no tabix index, since %s", output, reason)


def manifest_lines(manifest: Mapping[str, object]) -> bytes:
    """One line `##evo_toolkit_KEY=VALUE` for each entry, JSON unless it is text."""
    lines = [
        f"##evo_toolkit_{key}={value if isinstance(value, str) else json.dumps(value)}\n"
        for key, value in manifest.items()
    ]
    return "".join(" ".join(line.splitlines()) + "\n" for line in lines).encode()


def as_text(values: NDArray[np.float32]) -> list[str]:
    """The shortest decimal numbers that are read back as the same float32; "." for NaN."""
    return [MISSING if text == "nan" else text for text in values.astype("U32").tolist()]


def _text(file: BinaryIO, format: str, manifest: Mapping[str, object]) -> WriteBlock:
    file.write(manifest_lines(manifest))
    named = False

    def bedgraph(contig: str, start: int, bases: bytes, columns: Columns) -> None:
        values = as_text(next(iter(columns.values())))
        file.write(
            "".join(
                f"{contig}\t{place}\t{place + 1}\t{value}\n"
                for place, value in enumerate(values, start=start)
                if value != MISSING
            ).encode()
        )

    def tsv(contig: str, start: int, bases: bytes, columns: Columns) -> None:
        nonlocal named
        if not named:
            file.write(("\t".join(("#chrom", "pos", "base", *columns)) + "\n").encode())
            named = True
        texts = [as_text(values) for values in columns.values()]
        rows = zip(bases.decode("ascii"), *texts, strict=True)
        file.write(
            "".join(
                f"{contig}\t{pos}\t" + "\t".join(row) + "\n"
                for pos, row in enumerate(rows, start=start + 1)
            ).encode()
        )

    return bedgraph if format == "bedgraph" else tsv


@contextmanager
def _bigwig(path: Path, lengths: Mapping[str, int]) -> Iterator[WriteBlock]:
    file = load_bigwig().open(str(path), "w")
    if file is None:
        raise EvoError(f"{path} cannot be written as bigWig; choose another folder")
    empty = True

    def write(contig: str, start: int, bases: bytes, columns: Columns) -> None:
        nonlocal empty
        values = next(iter(columns.values()))
        for first, last in runs(~np.isnan(values)):
            # Plain Python numbers: the module may have been built without numpy.
            file.addEntries(
                contig, start + first, values=values[first:last].tolist(), span=1, step=1
            )
            empty = False

    try:
        file.addHeader(list(lengths.items()))
        yield write
        if empty:
            raise EvoError("no base has a value, and a bigWig without values cannot be written")
    finally:
        file.close()


@contextmanager
def _parquet(path: Path, manifest: Mapping[str, object]) -> Iterator[WriteBlock]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    writer: Any = None

    def write(contig: str, start: int, bases: bytes, columns: Columns) -> None:
        nonlocal writer
        size = len(bases)
        if writer is None:
            fields = [("chrom", pa.dictionary(pa.int32(), pa.string())), ("pos", pa.int64())]
            fields += [("base", pa.dictionary(pa.int32(), pa.string()))]
            fields += [(name, pa.float32()) for name in columns]
            schema = pa.schema(fields, metadata={"evo_toolkit": json.dumps(manifest)})
            writer = pq.ParquetWriter(path, schema)
        # from_pandas: NaN is a missing value.
        arrays = [
            pa.array([contig] * size, pa.string()).dictionary_encode(),
            pa.array(np.arange(start + 1, start + size + 1)),
            pa.array(list(bases.decode("ascii")), pa.string()).dictionary_encode(),
            *(pa.array(values, pa.float32(), from_pandas=True) for values in columns.values()),
        ]
        writer.write_table(pa.table(arrays, schema=writer.schema))

    try:
        yield write
    finally:
        if writer is not None:
            writer.close()


def runs(mask: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """Half-open index ranges of the stretches where a mask is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], mask, [False])).astype(np.int8)))
    return [(int(a), int(b)) for a, b in edges.reshape(-1, 2)]
