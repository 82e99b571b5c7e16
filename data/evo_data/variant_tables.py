"""Tables of variants (TSV, CSV, Parquet) as lines of VCF."""

from __future__ import annotations

import csv
import gzip
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from evo_data.contigs import ContigAliases
from evo_data.errors import EvoDataError
from evo_data.fasta import Fasta
from evo_data.variant_text import parse_variant

COLUMN_NAMES: dict[str, tuple[str, ...]] = {
    "chrom": ("chrom", "chr", "chromosome", "contig", "seqname", "seqid", "seq_region_name", "chrom_id"),
    "pos": ("pos", "position", "start_position", "pos_start", "bp", "base_pair_location", "vcf_pos", "pos_vcf"),
    "start": ("start", "chromstart", "chrom_start"),
    "ref": ("ref", "reference", "ref_allele", "reference_allele", "ref_base", "vcf_ref", "ref_vcf"),
    "alt": ("alt", "alternate", "alt_allele", "alternate_allele", "tumor_seq_allele2", "alt_base", "vcf_alt", "alt_vcf"),
    "id": ("id", "variant_id", "rsid", "snp", "name", "variation_id"),
    "variant": ("variant", "hgvs", "hgvs_g", "hgvsg", "spdi", "key", "variant_key"),
}  # fmt: skip
"""What a column may be called, in any case and with `#`, blanks, dots or dashes for underscores."""

_TABLE_SUFFIX = re.compile(r"\.(tsv|csv|tab|txt|maf|parquet|pq)(\.b?gz)?$", re.IGNORECASE)
_PARQUET = b"PAR1"
_GZIP = b"\x1f\x8b"
_HEAD_BYTES = 1 << 16
_BASES = re.compile(r"[ACGTUNacgtun]+")


def is_table(path: Path | str) -> bool:
    """Whether a file is a table: by its first bytes, then by its name."""
    if os.fspath(path) == "-" or not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        start = file.read(_HEAD_BYTES)
    if start.startswith(_PARQUET):
        return True
    if start.startswith(_GZIP):
        with suppress(OSError, EOFError), gzip.open(path) as file:
            start = file.read(16)
    if start.startswith((b"##fileformat=VCF", b"BCF\x02")) or not start:
        return False
    return _TABLE_SUFFIX.search(os.fspath(path)) is not None


class Table:
    """Rows of a TSV, CSV or Parquet file as lines of VCF.

    With a header of `COLUMN_NAMES`, or without one: contig, position, reference and alternate (an
    identifier may stand before the reference), or one column of text (`evo_data.variant_text`).
    """

    def __init__(self, path: Path, zero_based: bool) -> None:
        self._path = path
        self._zero_based = zero_based

    def lines(self, genome: Fasta, contigs: ContigAliases) -> Iterator[bytes]:
        """Yield a line for each row.

        Raises:
            EvoDataError: if the table cannot be read or a row not understood.
        """
        number_of, rows = self._rows()
        header = next(rows, None)
        if header is None:
            raise EvoDataError(f"{self._path}: the table is empty")
        columns = self._columns(header)
        if columns is None:
            columns = self._headerless(header)
            yield self._row(header, columns, number_of(), genome, contigs)
        for row in rows:
            yield self._row(row, columns, number_of(), genome, contigs)

    def _rows(self) -> tuple[Callable[[], int], Iterator[list[str]]]:
        """Return the rows, header first, and a function that tells the row last read."""
        count = 0

        def parquet() -> Iterator[list[str]]:
            nonlocal count
            import pyarrow as pa
            import pyarrow.parquet as pq

            try:
                with pq.ParquetFile(self._path) as file:
                    yield list(file.schema_arrow.names)
                    for batch in file.iter_batches(batch_size=16_384):
                        for values in zip(
                            *(column.to_pylist() for column in batch.columns), strict=True
                        ):
                            count += 1
                            yield ["" if value is None else str(value) for value in values]
            except (OSError, pa.ArrowException) as error:
                raise EvoDataError(f"{self._path}: cannot be read as Parquet: {error}") from error

        def text() -> Iterator[list[str]]:
            nonlocal count
            delimiter: str | None = None
            for line in text_lines(self._path):
                count += 1
                if line.startswith("##") or not line.strip():
                    continue
                if delimiter is None:
                    delimiter = next((c for c in "\t,;" if c in line), " ")
                if delimiter == " ":
                    yield line.split()
                else:
                    yield next(csv.reader([line], delimiter=delimiter))

        with self._path.open("rb") as file:
            is_parquet = file.read(len(_PARQUET)) == _PARQUET
        return (lambda: count), parquet() if is_parquet else text()

    def _columns(self, header: list[str]) -> dict[str, int] | None:
        """Return the index of each column that is known by its name; None if this is no header."""
        names = [re.sub(r"[\s.\-]+", "_", name.strip().lstrip("#")).lower() for name in header]
        found: dict[str, int] = {}
        for column, accepted in COLUMN_NAMES.items():
            for name in accepted:
                if name in names:
                    found[column] = names.index(name)
                    break
        if "pos" not in found and "start" in found:
            if not self._zero_based and {"chrom", "ref", "alt"} <= found.keys():
                raise EvoDataError(
                    f"{self._path}: column {header[found['start']]!r} may count from 0 or from 1; name it pos if the "
                    "first base is 1, or give --zero-based"
                )
            found["pos"] = found["start"]
        if {"chrom", "pos", "ref", "alt"} <= found.keys() or "variant" in found:
            return found
        if not found and not any(re.fullmatch(r"[A-Za-z_ ]+", name) for name in header[1:2]):
            return None
        if len(header) == 1 and not found:
            return None
        lacking = [column for column in ("chrom", "pos", "ref", "alt") if column not in found]
        raise EvoDataError(
            f"{self._path}: no column for {', '.join(lacking)}; the table has {', '.join(header[:12])}; rename them to "
            "chrom, pos, ref, alt (1-based), or give one column variant with text such as chr17-43045711-G-A"
        )

    def _headerless(self, row: list[str]) -> dict[str, int]:
        if len(row) == 1:
            return {"variant": 0}
        if len(row) >= 4 and row[1].isdigit():
            if len(row) >= 5 and not _BASES.fullmatch(row[2]) and _BASES.fullmatch(row[3]):
                return {"chrom": 0, "pos": 1, "id": 2, "ref": 3, "alt": 4}
            if _BASES.fullmatch(row[2]) or row[2] == "-":
                return {"chrom": 0, "pos": 1, "ref": 2, "alt": 3}
        raise EvoDataError(
            f"{self._path}: neither a header with chrom, pos, ref, alt nor rows of these four; it begins with "
            f"{' '.join(row[:6])[:80]!r}"
        )

    def _row(
        self,
        row: list[str],
        columns: dict[str, int],
        number: int,
        genome: Fasta,
        contigs: ContigAliases,
    ) -> bytes:
        where = f"{self._path}:{number}"
        try:
            value = {column: row[index].strip() for column, index in columns.items()}
        except IndexError as error:
            raise EvoDataError(f"{where}: has {len(row)} columns, too few") from error
        if not {"chrom", "pos", "ref", "alt"} <= value.keys():
            try:
                found = parse_variant(value["variant"], genome, contigs)
            except EvoDataError as error:
                raise EvoDataError(f"{where}: {error}") from error
            return record_line(found.contig, found.pos, value.get("id", "."), found.ref, found.alt)
        # Spreadsheets and data frames write whole numbers as 43045711.0.
        position = re.sub(r"\.0+$", "", value["pos"].replace(",", ""))
        if not position.isdigit():
            raise EvoDataError(f"{where}: position {value['pos']!r} is not a whole number")
        if not value["chrom"] or re.search(r"\s", value["chrom"]):
            raise EvoDataError(
                f"{where}: contig {value['chrom']!r} is empty or has white space in it"
            )
        pos = int(position) + self._zero_based
        ref, alt = value["ref"], value["alt"].replace(" ", "")
        if ref in ("-", "") or alt == "-":
            ref, alt, pos = self._anchored(value["chrom"], pos, ref, alt, where, genome, contigs)
        if re.search(r"\s", ref) or not ref:
            raise EvoDataError(
                f"{where}: reference allele {ref!r} is empty or has white space in it"
            )
        return record_line(
            re.sub(r"\.0$", "", value["chrom"]), pos, value.get("id", "."), ref, alt or "."
        )

    @staticmethod
    def _anchored(
        contig: str, pos: int, ref: str, alt: str, where: str, genome: Fasta, contigs: ContigAliases
    ) -> tuple[str, str, int]:
        """A deletion written with `-` gets the base before it, as VCF has it."""
        if ref in ("-", ""):
            raise EvoDataError(
                f"{where}: an insertion written with - for the reference does not say on which side of the position it "
                "lies; write the base before it in both alleles, as in VCF"
            )
        known = contigs.get(contig)
        if known is None or not 1 < pos <= genome.lengths[known]:
            raise EvoDataError(f"{where}: the base before the deletion is not in the genome")
        before = genome.fetch(known, pos - 2, pos - 1).decode()
        return before + ref, before, pos - 1


def record_line(contig: str, pos: int, identifier: str, ref: str, alt: str) -> bytes:
    """Return a line of VCF, with line feed, of a variant and what it is called."""
    # White space, ; and , have a meaning of their own in ID.
    name = re.sub(r"[\s;,]+", "_", identifier.strip()) or "."
    return f"{contig}\t{pos}\t{name}\t{ref}\t{alt}\t.\t.\t.\n".encode()


def text_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a text file, gzip or not, without their ends."""
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP
        opener: Callable[..., Any] = gzip.open if compressed else open
        with opener(path, "rt", encoding="utf-8-sig", newline=None) as lines:
            for line in lines:
                yield line.rstrip("\n")
    except (EOFError, zlib.error, UnicodeDecodeError, gzip.BadGzipFile) as error:
        raise EvoDataError(f"{path}: cannot be read as text: {error}") from error
    except OSError as error:
        raise EvoDataError(f"cannot read {path}: {error.strerror or error}") from error
