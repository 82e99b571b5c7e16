"""Reading variant files, and adding INFO keys to their lines without touching anything else.

Text VCF is never rebuilt from parsed values: a record keeps its line byte for byte. BCF is turned
into text by htslib.

What is refused (one `VcfError` naming file and line): whatever would make the output wrong or
ambiguous. A file that does not begin with `##fileformat=VCFv<version>`, has no tab-separated
`#CHROM` line with the eight fixed columns, or a meta line that does not begin with `##`; a record
with another number of columns than the header, an empty CHROM, POS, REF or ALT, white space in
CHROM, a POS that is no whole number from 0 up, a NUL byte, or a header line in the middle of the
body; damaged or truncated compression. What is read although the VCF specification forbids it:
everything in the meta lines, ID, QUAL, FILTER, INFO, FORMAT and the samples (they pass through),
records out of order, duplicates, contigs that are not contiguous, bytes that are not UTF-8, blank
lines. A REF or ALT that is no allele costs that allele its score, not the run
(`evo_data.variant.classify_allele`).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import pysam

from evo_data.errors import VcfError
from evo_data.vcf_stream import open_stream
from evo_data.vcf_writer import VcfWriter, quiet_htslib

__all__ = ["VariantReader", "VcfHeader", "VcfRecord", "VcfWriter", "annotate"]

_FIXED_COLUMNS = (b"#CHROM", b"POS", b"ID", b"REF", b"ALT", b"QUAL", b"FILTER", b"INFO")
_FILE_FORMAT = re.compile(rb"##fileformat=VCFv\d+(\.\d+)*\s*")
_META_WITH_ID = re.compile(rb"##(?P<kind>contig|INFO)=<(?:.*?,)?ID=(?P<id>[^,>\s]+)")
_LENGTH = re.compile(rb"[<,]length=(\d{1,15})(?=[,>])")
_MOST_POSITION_DIGITS = 15
_WHITE_SPACE = re.compile(rb"\s")


@dataclass(slots=True)
class VcfRecord:
    """One record.

    Attributes:
        line: The line as it stands in the file, without its terminator.
        terminator: What follows it: a line feed, CR LF, nothing at the end of a file without a
            final newline, or more where blank lines follow.
        number: Number of the line (of the record, in BCF), from 1.
        contig: CHROM.
        pos: POS, 1-based; 0 stands for the telomere.
        id: ID as it stands, "." when there is none.
        ref: REF as it stands (case too).
        alts: The elements of ALT as they stand; empty for ".".
        filters: The elements of FILTER; empty for ".".
        info: INFO as it stands.
        consequences: BCSQ entries of each element of ALT, where they were called (`evo_data.csq`).
    """

    line: bytes
    terminator: bytes
    number: int
    contig: str
    pos: int
    id: str
    ref: str
    alts: tuple[str, ...]
    filters: tuple[str, ...]
    info: bytes
    consequences: tuple[tuple[str, ...], ...] = ()


@dataclass
class VcfHeader:
    """The lines above the records.

    Attributes:
        lines: Every line up to and including #CHROM, with its terminator, as it stands.
        contigs: The declared contigs and their lengths, None where no length is declared.
        info_ids: The declared INFO keys.
        samples: Names of the samples.
    """

    lines: list[bytes]
    contigs: dict[str, int | None] = field(default_factory=dict)
    info_ids: set[str] = field(default_factory=set)
    samples: tuple[str, ...] = ()

    def extended(self, added: Sequence[bytes], *, drop_genotypes: bool = False) -> list[bytes]:
        """Return the lines with others added right before #CHROM.

        Args:
            added: Meta lines without terminator; they get that of the first line.
            drop_genotypes: Whether FORMAT and the samples are cut from the #CHROM line.
        """
        columns, terminator = _split_terminator(self.lines[-1])
        if drop_genotypes:
            columns = b"\t".join(columns.split(b"\t", len(_FIXED_COLUMNS))[: len(_FIXED_COLUMNS)])
        ending = b"\r\n" if self.lines[0].endswith(b"\r\n") else b"\n"
        return [*self.lines[:-1], *(line + ending for line in added), columns + terminator]


class VariantReader:
    """The records of a VCF (plain, gzip or bgzip) or BCF file, in order, once.

    `-` is stdin, whose format is found by its first bytes; so is that of a file, whatever its
    name. A BCF that cannot be sought (stdin, a pipe) is first copied to a temporary file.

    ```python
    with VariantReader("variants.vcf.gz") as reader:
        for record in reader:
            ...
    ```

    Raises:
        VcfError: when opened or read, if the file cannot be read; see the module's text.
    """

    def __init__(self, path: Path | str) -> None:
        self._path = path
        self._name = "stdin" if os.fspath(path) == "-" else os.fspath(path)
        self._closers = ExitStack()
        self._header: VcfHeader | None = None
        self._records: Iterator[VcfRecord] | None = None
        self._is_bcf = False

    @property
    def header(self) -> VcfHeader:
        """The header; reads it if that has not happened."""
        if self._header is None:
            self._open()
        assert self._header is not None
        return self._header

    @property
    def is_bcf(self) -> bool:
        """Whether the file is BCF, so that its lines are htslib's text and not the file's own."""
        _ = self.header
        return self._is_bcf

    def __enter__(self) -> VariantReader:
        _ = self.header
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[VcfRecord]:
        _ = self.header
        if self._records is None:
            raise VcfError(f"{self._name}: the records were read already; open the file again")
        records, self._records = self._records, None
        return records

    def close(self) -> None:
        """Close the file."""
        self._records = None
        self._closers.close()

    def _open(self) -> None:
        with ExitStack() as closers:
            stream = open_stream(self._path, self._name, closers)
            self._is_bcf = stream.bcf_path is not None
            if stream.bcf_path is not None:
                lines = _bcf_lines(stream.bcf_path, self._name, closers)
            else:
                lines = stream.lines
            self._header, first, number = _read_header(lines, self._name)
            width = self._header.lines[-1].count(b"\t") + 1
            # Records of a BCF are counted, since the file has no lines.
            number = 0 if self._is_bcf else number
            self._records = _read_records(first, lines, number, width, self._name)
            self._closers = closers.pop_all()


def annotate(record: VcfRecord, info: bytes, *, drop_genotypes: bool = False) -> bytes:
    """Return the record's line, terminator included, with INFO keys appended.

    Args:
        record: The record; it is not changed.
        info: `KEY=value` pairs joined by ";". Empty: INFO stays as it is.
        drop_genotypes: Whether FORMAT and the samples are cut off.
    """
    columns = record.line.split(b"\t", 8)
    old = columns[7]
    if info:
        if old in (b".", b""):
            columns[7] = info
        else:
            columns[7] = old + (b"" if old.endswith(b";") else b";") + info
    if drop_genotypes:
        columns = columns[:8]
    return b"\t".join(columns) + record.terminator


def _bcf_lines(path: Path, name: str, closers: ExitStack) -> Iterator[bytes]:
    """Return the lines of a BCF as htslib writes them, header first."""
    try:
        with quiet_htslib():
            variants = pysam.VariantFile(os.fspath(path), "rb")
            closers.callback(_close, variants)
            header = str(variants.header)
    except (OSError, ValueError, NotImplementedError) as error:
        raise VcfError(f"{name}: cannot be read as BCF: {error}") from error

    def lines() -> Iterator[bytes]:
        yield from header.encode().splitlines(keepends=True)
        number = 0
        while True:
            number += 1
            try:
                with quiet_htslib():
                    text = str(next(variants))
            except StopIteration:
                return
            except (OSError, ValueError) as error:
                raise VcfError(f"{name}: record {number} cannot be read: {error}") from error
            yield text.encode()

    return lines()


def _close(variants: pysam.VariantFile) -> None:
    """Close a file that was read; htslib repeats here an error that reading has told already."""
    with suppress(OSError), quiet_htslib():
        variants.close()


def _read_header(lines: Iterator[bytes], name: str) -> tuple[VcfHeader, bytes | None, int]:
    """Return the header, the first line after it (None: no records), and how many lines it has."""
    header = VcfHeader([])
    number = 0
    for raw in lines:
        number += 1
        line, _ = _split_terminator(raw)
        if number == 1:
            if b"\r" in line:
                raise VcfError(
                    f"{name}:1: lines end with a carriage return alone; convert them, for example "
                    "by tr '\\r' '\\n'"
                )
            if not _FILE_FORMAT.fullmatch(line):
                raise VcfError(
                    f"{name}:1: the first line must be ##fileformat=VCFv4.x, "
                    f"not {_shown(line)}; is this a VCF?"
                )
        elif line.startswith(b"#CHROM"):
            header.lines.append(raw)
            header.samples = _samples(line, name, number)
            break
        elif not line.startswith(b"##"):
            raise VcfError(
                f"{name}:{number}: expected a ## line or the #CHROM line, found {_shown(line)}; "
                "the header must end with #CHROM"
            )
        header.lines.append(raw)
        _note_meta(line, header)
    else:
        raise VcfError(
            f"{name}: the file ends before the #CHROM line, so it is truncated; copy it again"
        )
    first = None
    for raw in lines:
        number += 1
        if raw.strip(b"\r\n"):
            first = raw
            break
        header.lines[-1] += raw
    return header, first, number


def _samples(line: bytes, name: str, number: int) -> tuple[str, ...]:
    columns = line.split(b"\t")
    fixed = len(_FIXED_COLUMNS)
    if tuple(columns[:fixed]) != _FIXED_COLUMNS or columns[fixed : fixed + 1] not in (
        [],
        [b"FORMAT"],
    ):
        raise VcfError(
            f"{name}:{number}: the #CHROM line must have the tab-separated columns "
            f"{' '.join(column.decode() for column in _FIXED_COLUMNS)}, then FORMAT and the "
            f"samples if any; found {_shown(line)}"
        )
    return tuple(_text(column) for column in columns[fixed + 1 :])


def _note_meta(line: bytes, header: VcfHeader) -> None:
    match = _META_WITH_ID.match(line)
    if match is None:
        return
    identifier = _text(match["id"])
    if match["kind"] == b"INFO":
        header.info_ids.add(identifier)
    else:
        length = _LENGTH.search(line)
        header.contigs[identifier] = int(length[1]) if length else None


def _read_records(
    first: bytes | None, lines: Iterator[bytes], number: int, width: int, name: str
) -> Iterator[VcfRecord]:
    if first is None:
        return
    number = max(number, 1)
    record = parse_record(first, number, width, name)
    for raw in lines:
        number += 1
        if not raw.strip(b"\r\n"):
            # A blank line belongs to the record before it, and so passes through with it.
            record.terminator += raw
            continue
        yield record
        record = parse_record(raw, number, width, name)
    yield record


def parse_record(raw: bytes, number: int, width: int, name: str) -> VcfRecord:
    """Return the record of one line.

    Args:
        raw: The line with its terminator.
        number: Its number, for messages and `VcfRecord.number`.
        width: Columns of the header.
        name: What messages call the file.

    Raises:
        VcfError: if it is no record; see the module's text.
    """
    line, terminator = _split_terminator(raw)
    found = line.count(b"\t") + 1
    # With FORMAT in the header but no samples, writers disagree on whether FORMAT is repeated.
    if found != width and not (found == 8 and width == 9):
        if line.startswith(b"#"):
            raise VcfError(
                f"{name}:{number}: a header line among the records; were files joined by cat? "
                "use bcftools concat"
            )
        raise VcfError(
            f"{name}:{number}: {found} tab-separated columns where the header has {width}"
        )
    contig, pos, identifier, ref, alt, _, filters, info = line.split(b"\t", 8)[:8]
    if not contig or _WHITE_SPACE.search(contig):
        raise VcfError(f"{name}:{number}: CHROM {_shown(contig)} is empty or has white space in it")
    if not pos.isdigit() or len(pos) > _MOST_POSITION_DIGITS:
        raise VcfError(f"{name}:{number}: POS {_shown(pos)} is not a whole number from 0 up")
    if not ref or not alt:
        raise VcfError(f"{name}:{number}: {'ALT' if ref else 'REF'} is empty; write . for none")
    if b"\0" in line:
        raise VcfError(f"{name}:{number}: a NUL byte; the file is damaged or not a VCF")
    return VcfRecord(
        line=line,
        terminator=terminator,
        number=number,
        contig=_text(contig),
        pos=int(pos),
        id=_text(identifier),
        ref=_text(ref),
        alts=() if alt == b"." else tuple(_text(alt).split(",")),
        filters=() if filters in (b".", b"") else tuple(_text(filters).split(";")),
        info=info,
    )


def _split_terminator(raw: bytes) -> tuple[bytes, bytes]:
    line = raw.rstrip(b"\n")
    line = line[:-1] if line.endswith(b"\r") else line
    return line, raw[len(line) :]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _shown(data: bytes, most: int = 60) -> str:
    text = _text(data[: most + 1])
    return repr(text[:most] + "..." if len(text) > most else text)
