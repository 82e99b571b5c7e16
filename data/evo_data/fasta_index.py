"""The index of a FASTA file (.fai): building it, and checking that it belongs to its file.

An index that is out of date makes every read silently wrong, and dates of files say little (a copy
or a download changes them). So it is held against the file itself: before each sequence there must
be the header line with its name, and nothing else; after the last one, the end of the file.
"""

from __future__ import annotations

import mmap
import os
import stat
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from evo_data.bgzf import (
    BGZF_END,
    GZIP_START,
    GZIP_WINDOW,
    OTHER_COMPRESSION,
    BgzfText,
    is_bgzf,
    iter_blocks,
    last_bytes,
    write_gzi,
)
from evo_data.errors import EvoDataError, FastaError
from evo_data.fasta_scan import FastaScanner, header_name
from evo_data.files import atomic_output

_HEAD = 1 << 16
_CHUNK = 1 << 24
# More than this between two sequences is no header line.
_LONGEST_HEADER = 1 << 20
_OTHER_FORMATS = {
    b"@": "FASTQ",
    b"LOCUS": "GenBank",
    b"ID ": "EMBL",
    b"##gff": "GFF",
    b"##fileformat=VCF": "VCF (are the two files exchanged?)",
    b"BCF\x02": "BCF (are the two files exchanged?)",
    b"\x1aA'C": "2bit",
    b"C'A\x1a": "2bit",
    b";": "FASTA with comment lines (;)",
}
# X is how some programs mask.
_NUCLEOTIDES = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx"
_PROBED_CONTIGS = 16
_PROBED_BASES = 4096
_MOST_OTHER_LETTERS = 0.05

_Read = Callable[[int, int], bytes]


class _Entry(NamedTuple):
    """A line of a .fai; bytes are counted in the decompressed file."""

    name: str
    length: int
    offset: int
    line_bases: int
    line_bytes: int

    def byte_of(self, base: int) -> int:
        """Where a base (0-based) stands in the file."""
        return self.offset + base // self.line_bases * self.line_bytes + base % self.line_bases

    @property
    def end(self) -> int:
        """One past the byte of the last base."""
        return self.byte_of(self.length - 1) + 1 if self.length else self.offset


def ensure_index(path: Path) -> dict[str, int]:
    """Return the length of each contig of a FASTA file in order, building its index if absent.

    Raises:
        FastaError: see `evo_data.fasta.Fasta`.
    """
    compressed = _check_format(path)
    fai, gzi = Path(f"{path}.fai"), Path(f"{path}.gzi")
    try:
        if not fai.exists() or (compressed and not gzi.exists()):
            _build(path, fai, gzi if compressed else None)
        entries = _read_fai(fai)
        with ExitStack() as closers:
            handle = closers.enter_context(path.open("rb"))
            if compressed:
                read: _Read = BgzfText(handle, gzi).read
            else:
                mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
                read = _slices(closers.enter_context(mapped))
            _check_entries(path, entries, read)
    except FastaError:
        raise
    except (OSError, ValueError, struct.error, zlib.error) as error:
        raise FastaError(
            f"{path}: the file or its index is damaged ({error}); copy the file again, and delete "
            "the index"
        ) from error
    return {entry.name: entry.length for entry in entries}


def _check_format(path: Path) -> bool:
    """Return whether the file is compressed by bgzip; refuse what its first bytes give away."""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise FastaError(f"{path}: is a folder; give a FASTA file")
        if not stat.S_ISREG(mode):
            raise FastaError(f"{path}: a pipe or device cannot be read at random; give a file")
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
        tail = last_bytes(path)
    except FileNotFoundError as error:
        raise FastaError(f"{path}: no such file; give a FASTA file") from error
    except OSError as error:
        raise FastaError(f"{path}: cannot be opened: {error.strerror}") from error
    compressed = head.startswith(GZIP_START)
    if compressed:
        if not is_bgzf(head):
            raise FastaError(
                f"{path}: compressed by gzip, which cannot be read at random; decompress it, or "
                "compress it by bgzip: gunzip -c FILE | bgzip > NEW.fa.gz"
            )
        if tail != BGZF_END:
            raise FastaError(
                f"{path}: the bgzip end-of-file block is missing, so the file is truncated; "
                "copy or make it again"
            )
        try:
            head = zlib.decompressobj(GZIP_WINDOW).decompress(head)
        except zlib.error as error:
            raise FastaError(f"{path}: damaged bgzip data ({error}); copy it again") from error
    text = head.lstrip(b"\r\n")
    if text.startswith(b">"):
        return compressed
    if not text:
        raise FastaError(f"{path}: the file is empty; a FASTA file has at least one sequence")
    for start, tool in OTHER_COMPRESSION.items():
        if text.startswith(start):
            raise FastaError(f"{path}: compressed by {tool}; decompress it, or use bgzip")
    for start, known in _OTHER_FORMATS.items():
        if text.startswith(start):
            raise FastaError(f"{path}: looks like {known}; give a FASTA file (lines with >name)")
    raise FastaError(f"{path}: no FASTA file: the first line must begin with >")


def _build(path: Path, fai: Path, gzi: Path | None) -> None:
    """Write the index, or both indexes, each whole or not at all."""
    try:
        with ExitStack() as outputs:
            new_fai = outputs.enter_context(atomic_output(fai, force=True))
            new_gzi = outputs.enter_context(atomic_output(gzi, force=True)) if gzi else None
            scanner = FastaScanner(os.fspath(path))
            blocks: list[tuple[int, int]] = []
            with path.open("rb") as handle:
                if new_gzi is None:
                    while chunk := handle.read(_CHUNK):
                        scanner.feed(chunk)
                else:
                    for chunk in _joined(iter_blocks(handle), blocks):
                        scanner.feed(chunk)
                    write_gzi(new_gzi, blocks)
            lines = ("\t".join(map(str, entry)) + "\n" for entry in scanner.finish())
            new_fai.write_text("".join(lines), encoding="utf-8")
    except FastaError:
        raise
    except EvoDataError as error:
        raise FastaError(
            f"{path}: has no index ({fai.name}), and folder {fai.parent.absolute()} cannot be "
            "written; run samtools faidx with the rights to do so, or copy the genome elsewhere"
        ) from error


def _joined(blocks: Iterable[tuple[int, bytes]], starts: list[tuple[int, int]]) -> Iterator[bytes]:
    """Yield the text of blocks in large pieces, noting where each block starts."""
    position = size = 0
    pieces: list[bytes] = []
    for address, text in blocks:
        starts.append((address, position))
        position += len(text)
        size += len(text)
        pieces.append(text)
        if size >= _CHUNK:
            yield b"".join(pieces)
            pieces, size = [], 0
    yield b"".join(pieces)


def _read_fai(fai: Path) -> list[_Entry]:
    entries = []
    for number, line in enumerate(fai.read_text(encoding="utf-8").split("\n"), start=1):
        if not line:
            continue
        columns = line.rstrip("\r").split("\t")
        numbers = columns[1:5]
        if len(numbers) < 4 or not all(column.isdecimal() for column in numbers):
            raise FastaError(f"{fai}:{number}: not a line of a .fai; delete the file and run again")
        length, offset, line_bases, line_bytes = map(int, numbers)
        if length and not 0 < line_bases <= line_bytes:
            raise FastaError(f"{fai}:{number}: impossible numbers; delete the file and run again")
        entries.append(_Entry(columns[0], length, offset, line_bases, line_bytes))
    return entries


def _check_entries(path: Path, entries: list[_Entry], read: _Read) -> None:
    """Raise unless the index is that of the file; `read(start, end)` gives the file's bytes."""
    previous = 0
    names: set[str] = set()
    for entry in entries:
        gap = read(previous, min(entry.offset, previous + _LONGEST_HEADER))
        header, *others = gap.strip(b"\r\n").split(b"\n")
        found = header_name(header)
        if entry.name in names or found in names:
            # samtools leaves the second sequence of a name out of the index.
            raise FastaError(
                f"{path}: sequence name {found or entry.name!r} stands there twice; give each "
                "sequence a name of its own"
            )
        if found != entry.name or others or not gap.endswith(b"\n"):
            raise _stale(path, f"expected sequence {entry.name!r}, found {found!r}")
        names.add(entry.name)
        if entry.length > entry.line_bases:
            line_end = read(entry.offset + entry.line_bases, entry.offset + entry.line_bytes)
            if not line_end.endswith(b"\n") or line_end.strip(b"\r\n"):
                raise _stale(path, f"the lines of {entry.name!r} are not as long as it says")
        previous = entry.end
        if entry.length and not read(previous - 1, previous).strip(b"\r\n"):
            raise _stale(path, f"sequence {entry.name!r} is shorter than it says")
    rest = read(previous, previous + _LONGEST_HEADER).strip(b"\r\n")
    if rest:
        found = header_name(rest.split(b"\n")[0])
        if found in names:
            raise FastaError(f"{path}: sequence name {found!r} stands there twice; rename one")
        raise _stale(path, "the file goes on behind the last sequence")
    if not any(entry.length for entry in entries):
        raise FastaError(f"{path}: holds no sequence, only names; give a FASTA file with bases")
    _check_nucleotides(path, entries, read)


def _check_nucleotides(path: Path, entries: list[_Entry], read: _Read) -> None:
    """Raise if the starts of the first contigs are proteins or an alignment."""
    probe = b""
    for entry in [entry for entry in entries if entry.length][:_PROBED_CONTIGS]:
        probe += read(entry.offset, entry.byte_of(min(entry.length, _PROBED_BASES) - 1) + 1)
    letters = probe.translate(None, b"\r\n")
    others = letters.translate(None, _NUCLEOTIDES)
    if len(others) > _MOST_OTHER_LETTERS * len(letters):
        shown = "".join(sorted({chr(letter) for letter in others}))
        raise FastaError(
            f"{path}: not a genome: {len(others)} of the first {len(letters)} letters stand for "
            f"no nucleotide ({shown[:20]!r}); give nucleotides, not proteins or an alignment"
        )


def _stale(path: Path, what: str) -> FastaError:
    return FastaError(
        f"{path}: the index (.fai, .gzi) belongs to another version of the file: {what}; "
        "delete the index and run again"
    )


def _slices(mapped: mmap.mmap) -> _Read:
    return lambda start, end: mapped[max(0, start) : max(0, end)]
