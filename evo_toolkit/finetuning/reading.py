"""Labelled sequences from tables and FASTA."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from evo_data.variant_tables import text_lines
from evo_toolkit.finetuning.examples import (
    Examples,
    ExamplesError,
    RawExample,
    TaskKind,
    clean_sequence,
    examples_of,
)

_PARQUET = b"PAR1"
_FASTA = re.compile(r"\.(fa|fasta|fna|ffn|fas)(\.b?gz)?$", re.IGNORECASE)


class Row(NamedTuple):
    """A row of a table: where it stands, and its values by column."""

    place: str
    values: Mapping[str, str]


def read_rows(path: Path | str) -> Iterator[Row]:
    """Yield the rows of a table with a header: TSV, CSV (`,` or `;`, quotes), gzip too, or Parquet.

    Lines that begin with `##`, and blank ones, are passed over; a `#` before the header is dropped.

    Raises:
        ExamplesError: if it cannot be read, has no header, or a row has too few or too many columns.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET)) == _PARQUET
    except OSError as error:
        raise ExamplesError(f"{path}: {error.strerror or error}") from error
    if is_parquet:
        yield from _parquet_rows(path)
        return
    header: list[str] | None = None
    delimiter = "\t"
    for number, line in enumerate(text_lines(path), start=1):
        if line.startswith("##") or not line.strip():
            continue
        if header is None:
            delimiter = next((c for c in "\t,;" if c in line), "\t")
            header = [name.strip() for name in _split(line, delimiter, path, number)]
            header[0] = header[0].lstrip("#")
            if len(set(header)) < len(header):
                raise ExamplesError(f"{path}:{number}: two columns have one name; rename one")
            continue
        values = _split(line, delimiter, path, number)
        if len(values) != len(header):
            raise ExamplesError(
                f"{path}:{number}: {len(values)} columns where the header has {len(header)}"
            )
        yield Row(f"{path}:{number}", dict(zip(header, values, strict=True)))
    if header is None:
        raise ExamplesError(f"{path}: the table is empty; a header and rows are needed")


def _split(line: str, delimiter: str, path: Path, number: int) -> list[str]:
    # Without quotes there is nothing to parse, and no limit to the length of a sequence.
    if '"' not in line:
        return line.split(delimiter)
    try:
        return next(csv.reader([line], delimiter=delimiter))
    except csv.Error as error:
        raise ExamplesError(
            f"{path}:{number}: cannot be read as a row of a table: {error}"
        ) from error


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            names = list(file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=16_384):
                for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                    number += 1
                    texts = ("" if value is None else str(value) for value in values)
                    yield Row(f"{path}:row {number}", dict(zip(names, texts, strict=True)))
    except (OSError, pa.ArrowException) as error:
        raise ExamplesError(f"{path}: cannot be read as Parquet: {error}") from error


def value_of(row: Row, column: str) -> str:
    """The value of a column, found by its name in any case.

    Raises:
        ExamplesError: listing the columns, if there is none.
    """
    if column in row.values:
        return row.values[column]
    for name, value in row.values.items():
        if name.lower() == column.lower():
            return value
    raise ExamplesError(
        f"{row.place.rpartition(':')[0]}: no column {column!r}; name one of {', '.join(list(row.values)[:12])}"
    )


def rows_by_name(path: Path | str, column: str = "id") -> dict[str, Row]:
    """The rows of a table by the values of a column.

    Raises:
        ExamplesError: as `read_rows`, and for two rows of one name.
    """
    found: dict[str, Row] = {}
    for row in read_rows(path):
        name = value_of(row, column).strip()
        if name in found:
            raise ExamplesError(f"{row.place}: {name!r} stands in {found[name].place} already")
        found[name] = row
    return found


def _has(row: Row, column: str) -> bool:
    return column.lower() in {name.lower() for name in row.values}


def read_table(
    path: Path | str,
    kind: TaskKind,
    *,
    sequence: str = "sequence",
    labels: Sequence[str] = ("label",),
    id: str | None = None,
    group: str | None = None,
    classes: Sequence[str] = (),
) -> Examples:
    """Return the examples of a table with a sequence in each row.

    Args:
        path: TSV, CSV or Parquet, with a header.
        kind: binary, multiclass, multilabel, regression, or per_base (a letter of the label for each base).
        sequence: Column of the sequences.
        labels: Column of the labels; of `multilabel` several of 0 and 1, or one with names.
        id: Column of names; None means `id` where there is one, else the number of the row.
        group: Column of what must stay together in a split.
        classes: Names and order of the classes; see `examples_of`.

    Raises:
        ExamplesError: naming file and line.
    """

    def rows() -> Iterator[RawExample]:
        for number, row in enumerate(read_rows(path), start=1):
            if id is not None or _has(row, "id"):
                name = value_of(row, id or "id").strip() or f"row_{number}"
            else:
                name = f"row_{number}"
            yield RawExample(
                id=name,
                sequence=value_of(row, sequence),
                labels=tuple(value_of(row, label) for label in labels),
                group=group_of(row, group),
                place=row.place,
            )

    return examples_of(rows(), kind, label_columns=labels, classes=classes, source=str(path))


def read_fasta(
    fasta: Path | str,
    table: Path | str,
    kind: TaskKind,
    *,
    labels: Sequence[str] = ("label",),
    id: str = "id",
    group: str | None = None,
    classes: Sequence[str] = (),
) -> Examples:
    """Return the records of a FASTA with the labels of a table.

    Args:
        fasta: FASTA, plain or gzip; a record's name is the first word of its header.
        table: TSV, CSV or Parquet with a row for each record.
        kind, labels, group, classes: As for `read_table`.
        id: Column of the records' names.

    Raises:
        ExamplesError: naming file and line, also of a record without a row or a row without a record.
    """
    found = rows_by_name(table, id)
    records = list(fasta_records(fasta))
    without = [record for record in records if record[0] not in found]
    if without:
        raise ExamplesError(
            f"{without[0][2]}: sequence {without[0][0]!r} has no label in {table} ({len(without):,} of {len(records):,} have none); add a row, or leave the sequence out"
        )
    unused = found.keys() - {name for name, _, _ in records}
    if unused:
        first = next(row for name, row in found.items() if name in unused)
        raise ExamplesError(
            f"{first.place}: {fasta} has no sequence {value_of(first, id).strip()!r} ({len(unused):,} of {len(found):,} rows have none)"
        )
    rows = (
        RawExample(
            id=name,
            sequence=sequence,
            labels=tuple(value_of(found[name], label) for label in labels),
            group=group_of(found[name], group),
            # The sequence is cleaned as the record, the label read as the row: name both.
            place=f"{place} ({found[name].place})",
        )
        for name, sequence, place in records
    )
    return examples_of(rows, kind, label_columns=labels, classes=classes, source=str(fasta))


def read_class_fastas(files: Mapping[str, Path | str], kind: TaskKind = "binary") -> Examples:
    """Return the records of one FASTA for each class.

    Args:
        files: FASTA by class, in the order of the classes; of `binary` the negative one first. A
            record is called `CLASS/NAME`.
        kind: binary or multiclass.

    Raises:
        ExamplesError: naming file and line.
    """
    rows = (
        RawExample(id=f"{label}/{name}", sequence=sequence, labels=(label,), place=place)
        for label, path in files.items()
        for name, sequence, place in fasta_records(path)
    )
    source = ", ".join(str(path) for path in files.values())
    return examples_of(rows, kind, classes=tuple(files), source=source)


def read_unlabelled(
    path: Path | str, *, sequence: str = "sequence", id: str = "id"
) -> tuple[list[str], list[str]]:
    """Ids and clean sequences of a FASTA, or of a table by its columns.

    Raises:
        ExamplesError: naming file and line.
    """
    ids, texts = [], []
    with Path(path).open("rb") as file:
        start = file.read(1)
    if start == b">" or _FASTA.search(str(path)):
        for name, text, place in fasta_records(path):
            ids.append(name)
            texts.append(clean_sequence(text, place))
    else:
        for number, row in enumerate(read_rows(path), start=1):
            ids.append(value_of(row, id) if _has(row, id) else f"row_{number}")
            texts.append(clean_sequence(value_of(row, sequence), row.place))
    if not texts:
        raise ExamplesError(f"{path}: no sequence in it")
    return ids, texts


def fasta_records(path: Path | str) -> Iterator[tuple[str, str, str]]:
    """Yield name, letters and place (file and line of the header) of each record of a FASTA, gzip or not.

    No index is made or needed. Lines that begin with `;` are comments.

    Raises:
        ExamplesError: if it cannot be read, or is no FASTA.
    """
    path = Path(path)
    name, place, lines = "", "", list[str]()
    for number, line in enumerate(text_lines(path), start=1):
        if line.startswith(">"):
            if place:
                yield name, "".join(lines), place
            place, lines = f"{path}:{number}", []
            name = "" if line[1:2].isspace() else (line[1:].split(maxsplit=1) or [""])[0]
            if not name:
                raise ExamplesError(f"{place}: a sequence without name; write it after >")
        elif line.strip() and not line.startswith(";"):
            if not place:
                raise ExamplesError(f"{path}:{number}: no FASTA; the first line must begin with >")
            lines.append(line.strip())
    if not place:
        raise ExamplesError(f"{path}: holds no sequence")
    yield name, "".join(lines), place


def group_of(row: Row, column: str | None) -> str | None:
    """The value of the column of groups, None without one.

    Raises:
        ExamplesError: if it is missing: what has no group would be one together.
    """
    if column is None:
        return None
    found = value_of(row, column).strip()
    if found in ("", "."):
        raise ExamplesError(f"{row.place}: {column} is missing; every row needs its group")
    return found
