"""Scores as tables, one row per alternate allele: TSV (plain, or bgzip with a tabix index) and Parquet."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Literal, Self

import pysam

from evo_data.files import atomic_output
from evo_data.tabix import index_tabix, remove_indexes
from evo_toolkit.errors import EvoError
from evo_toolkit.variants.scores import TABLE_COLUMNS, Column, RunInfo, ScoredRecord, table_row

ColumnType = Literal["string", "category", "int", "float"]

COLUMN_TYPES: dict[str, ColumnType] = {
    **dict.fromkeys(
        ("id", "ref", "alt", "key", "hgvs_g", "norm_ref", "norm_alt", "gene", "transcript"),
        "string",
    ),
    # Few distinct values: dictionary-encoded in Parquet, categories in pandas.
    **dict.fromkeys(("chrom", "kind", "status", "flags", "consequence"), "category"),
    **dict.fromkeys(
        (
            "pos",
            "indel_len",
            "norm_pos",
            "window",
            "window_start",
            "window_end",
            "n_in_window",
            "num_transcripts",
        ),
        "int",
    ),
    **dict.fromkeys(
        ("dll", "dll_fwd", "dll_rc", "dmean", "llr", "dll_allele", "dll_flank", "ll_ref", "ll_alt"),
        "float",
    ),
}
"""What each of `TABLE_COLUMNS` holds."""

MISSING = "."
"""A missing value in TSV, as in VCF (`pandas.read_csv(..., na_values=".")`)."""

_ROWS_PER_GROUP = 32_768
_CHARACTERS_PER_GROUP = 64 << 20


class _Writer:
    """The part of `ScoreWriter` that is the same for all tables."""

    def __init__(self, path: str | Path) -> None:
        self.notes: tuple[str, ...] = ()
        self._target = None if os.fspath(path) == "-" else Path(os.path.realpath(path))
        self._stack = ExitStack()
        self._closed = False

    def write(self, scored: ScoredRecord) -> None:
        """Write the rows of one record."""
        try:
            self._put(scored)
        except OSError as error:
            raise self._failure(error) from error

    def close(self) -> None:
        """Finish the file; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._finish()
        except OSError as error:
            raise self._failure(error) from error

    def _put(self, scored: ScoredRecord) -> None:
        raise NotImplementedError

    def _finish(self) -> None:
        raise NotImplementedError

    def _failure(self, error: OSError) -> Exception:
        if self._target is None:
            return error  # a closed pipe is the command's affair
        # htslib gives no reason; a full disk or quota is the usual one.
        reason = error.strerror or str(error)
        return EvoError(f"{self._target} cannot be written ({reason}); is there space left?")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        elif not self._closed:
            self._closed = True
            # The file is thrown away; that its last bytes cannot be written is no news.
            with suppress(OSError):
                self._stack.__exit__(kind, error, trace)


class TsvScoreWriter(_Writer):
    """Tab-separated rows below `##` lines and a header line that begins with `#chrom`.

    Compressed, the file is bgzip and gets a tabix index (sequence column 1, begin and end column 2)
    when the records came sorted: contigs in one piece each, positions from low to high.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        metadata: list[str],
        compressed: bool,
        force: bool,
        columns: tuple[Column, ...] = (),
    ) -> None:
        super().__init__(path)
        self._compressed = compressed
        self._columns = columns
        self._order = _Order()
        self._out: IO[bytes] | Any
        with ExitStack() as opening:
            if self._target is None:
                self._out = sys.stdout.buffer
            else:
                temporary = opening.enter_context(atomic_output(path, force=force))
                name = os.fspath(temporary)
                opened = pysam.BGZFile(name, "wb") if compressed else temporary.open("wb")
                self._out = opening.enter_context(opened)
            names = (*TABLE_COLUMNS, *(column.name for column in columns))
            for line in (*metadata, "#" + "\t".join(names)):
                self._out.write(f"{line}\n".encode())
            self._stack = opening.pop_all()

    def _put(self, scored: ScoredRecord) -> None:
        self._order.see(scored.record.contig, scored.record.pos)
        for allele in scored.alleles:
            cells = "\t".join(map(_cell, table_row(scored.record, allele, self._columns)))
            self._out.write(f"{cells}\n".encode())

    def write_line(self, line: bytes) -> None:
        """Write a row as it stands in another file of the same columns, line feed included."""
        contig, position, _ = line.split(b"\t", 2)
        self._order.see(contig.decode(), int(position))
        try:
            self._out.write(line)
        except OSError as error:
            raise self._failure(error) from error

    def _finish(self) -> None:
        with self._stack:
            self._out.flush()
        if self._target is not None and self._compressed:
            self._index(self._target)

    def _index(self, path: Path) -> None:
        reason = self._order.reason_against_index
        if reason is None:
            reason = index_tabix(path, start=1, end=1, last_position=self._order.last_position)
        else:
            remove_indexes(path)
        if reason is not None:
            self.notes = (f"{path}: no tabix index, since {reason}",)


def _cell(value: object) -> str:
    if value is None:
        return MISSING
    return f"{value:.9g}" if isinstance(value, float) else str(value)


class _Order:
    """Whether positions came in an order that tabix can index."""

    def __init__(self) -> None:
        self.reason_against_index: str | None = None
        self.last_position = 0
        self._contig: str | None = None
        self._position = 0
        self._finished: set[str] = set()

    def see(self, contig: str, position: int) -> None:
        if self.reason_against_index is not None:
            return
        if contig != self._contig:
            if contig in self._finished:
                self.reason_against_index = f"the records of {contig} are not in one piece"
            if self._contig is not None:
                self._finished.add(self._contig)
            self._contig, self._position = contig, 0
        if position < 1:
            self.reason_against_index = f"a record of {contig} has position {position}"
        if position < self._position:
            self.reason_against_index = f"the records of {contig} are not sorted by position"
        self._position = position
        self.last_position = max(self.last_position, position)


class ParquetScoreWriter(_Writer):
    """Parquet in row groups, so that memory does not grow with the input.

    The key `evo_toolkit` of the file's metadata holds the run as JSON.
    """

    def __init__(self, path: str | Path, *, run: RunInfo, force: bool) -> None:
        super().__init__(path)
        import pyarrow as pa
        import pyarrow.parquet as pq

        types = {
            "string": pa.string(),
            "category": pa.dictionary(pa.int32(), pa.string()),
            "int": pa.int64(),
            "float": pa.float64(),
        }
        information = json.dumps(dataclasses.asdict(run))
        self._schema = pa.schema(
            [
                *((name, types[COLUMN_TYPES[name]]) for name in TABLE_COLUMNS),
                *((column.name, types["float"]) for column in run.columns),
            ],
            metadata={"evo_toolkit": information},
        )
        self._columns = run.columns
        self._table = pa.table
        self._rows: list[tuple[Any, ...]] = []
        self._characters = 0
        with ExitStack() as opening:
            temporary = opening.enter_context(atomic_output(path, force=force))
            self._parquet = opening.enter_context(
                pq.ParquetWriter(os.fspath(temporary), self._schema, compression="zstd")
            )
            self._stack = opening.pop_all()

    def _put(self, scored: ScoredRecord) -> None:
        for allele in scored.alleles:
            self.write_row(table_row(scored.record, allele, self._columns))

    def write_row(self, row: tuple[Any, ...]) -> None:
        """Write the values of one row, in the order of the columns."""
        self._rows.append(row)
        self._characters += sum(len(x) for x in row if isinstance(x, str))
        if len(self._rows) >= _ROWS_PER_GROUP or self._characters >= _CHARACTERS_PER_GROUP:
            self._write_group()

    def _finish(self) -> None:
        with self._stack:
            self._write_group()

    def _write_group(self) -> None:
        if not self._rows:
            return
        columns = dict(zip(self._schema.names, zip(*self._rows, strict=True), strict=True))
        self._parquet.write_table(self._table(columns, schema=self._schema))
        self._rows, self._characters = [], 0
