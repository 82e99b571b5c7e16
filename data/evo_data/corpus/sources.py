"""Input files of a corpus: what they are, and their sequences as they come, one at a time.

FASTA is read more leniently than for scoring (`evo_data.fasta_scan`), because nothing is addressed
in the file: lines of any length, blank lines, comments (;), any line ends, gzip and bgzip.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

from evo_data.bgzf import BGZF_END, GZIP_START, OTHER_COMPRESSION, is_bgzf, last_bytes
from evo_data.corpus.format import is_corpus
from evo_data.corpus.megatron import bin_file, idx_file, megatron_prefix
from evo_data.errors import CorpusError

FASTA_SUFFIXES = (".fa", ".fna", ".fasta", ".fas", ".fsa")
GENBANK_SUFFIXES = (".gb", ".gbk", ".gbff", ".genbank", ".embl")
COMPRESSED_SUFFIXES = (".gz", ".bgz")

_CHUNK = 1 << 23
_HEAD = 1 << 14
_CARRIAGE_RETURNS = bytes.maketrans(b"\r", b"\n")
_WHITE = b" \t\n\x0b\x0c"
_UTF8_MARK = b"\xef\xbb\xbf"
_OTHER_FORMATS = {
    b"@": "FASTQ",
    b"##gff": "GFF",
    b"##fileformat=VCF": "VCF",
    b"BCF\x02": "BCF",
    b"BAM\x01": "BAM",
    b"CRAM": "CRAM",
    b"\x1aA'C": "2bit",
    b"C'A\x1a": "2bit",
    b"{": "JSON",
    b"<": "XML or HTML (a page of a website instead of the file?)",
    b"PAR1": "Parquet",
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"version https://git-lfs": "a Git LFS pointer (fetch the file itself by git lfs pull)",
}


class RawRecord(NamedTuple):
    """A sequence as it stands in its file: its name ("" if none), and its letters without blanks."""

    name: str
    letters: bytes


@dataclass(slots=True)
class Input:
    """A source: its path (of a Megatron pair the prefix), and its size in bytes."""

    path: Path
    bytes: int = 0
    digest: str | None = None

    @property
    def files(self) -> list[Path]:
        if megatron_prefix(self.path) is None:
            return [self.path]
        return [idx_file(self.path), bin_file(self.path)]

    def state(self) -> list[tuple[int, int]]:
        """Size and time of change of each file, by which a change is noticed.

        Raises:
            CorpusError: if one is gone.
        """
        try:
            stats = [part.stat() for part in self.files]
        except OSError as error:
            raise CorpusError(f"{self.path}: cannot be opened: {error.strerror}") from error
        return [(found.st_size, found.st_mtime_ns) for found in stats]

    def sha256(self) -> str:
        """Checksum of the file, computed once; of a Megatron pair that of both, the index first.

        Raises:
            CorpusError: if it cannot be read.
        """
        if self.digest is None:
            whole = hashlib.sha256()
            try:
                for part in self.files:
                    with part.open("rb") as handle:
                        while piece := handle.read(_CHUNK):
                            whole.update(piece)
            except OSError as error:
                raise CorpusError(
                    f"{self.path}: cannot be read: {error.strerror or error}"
                ) from error
            self.digest = whole.hexdigest()
        return self.digest


def find_sources(genomes: Sequence[Path | str]) -> list[Input]:
    """Return the files that were given, folders replaced by the genome files in and below them.

    Files of a folder come in alphabetical order of their paths, those whose name ends as one of a
    genome (`.fa`, `.fna`, `.fasta`, `.fas`, `.fsa`, `.gb`, `.gbk`, `.gbff`, `.genbank`, `.embl`,
    each also with `.gz` or `.bgz`) and Megatron pairs; hidden ones are passed over. A pair is given
    by its prefix. A file that was given twice comes once.

    Raises:
        CorpusError: if something given does not exist, or a folder holds no genome.
    """
    if not genomes:
        raise CorpusError("no genomes given; give files or folders of them")
    found: dict[Path, Path] = {}
    for given in map(Path, genomes):
        for path in _expand(given):
            found.setdefault(path.resolve(), path)
    inputs = [Input(path) for path in found.values()]
    for item in inputs:
        try:
            parts = [part.stat() for part in item.files]
            if not all(stat.S_ISREG(part.st_mode) for part in parts):
                raise CorpusError(
                    f"{item.path}: a pipe or device cannot be read twice; give a file"
                )
            item.bytes = sum(part.st_size for part in parts)
        except OSError as error:
            raise CorpusError(f"{item.path}: cannot be opened: {error.strerror}") from error
    return inputs


def genome_name(path: Path) -> str:
    """Return a file's name without what says that it is a compressed genome."""
    name = path.name
    for suffixes in (COMPRESSED_SUFFIXES, FASTA_SUFFIXES + GENBANK_SUFFIXES):
        for suffix in suffixes:
            if name.lower().endswith(suffix) and len(name) > len(suffix):
                name = name[: -len(suffix)]
                break
    return name


def folder_name(path: Path) -> str:
    """Return the name of the folder that a file lies in, as it was reached (links not followed)."""
    return Path(os.path.normpath(path.absolute())).parent.name


def detect_format(path: Path) -> str:
    """Return "fasta", "genbank", "embl" or "megatron", by a file's first bytes.

    Raises:
        CorpusError: if it is none of them, empty, or cannot be read.
    """
    if megatron_prefix(path) is not None:
        return "megatron"
    try:
        with path.open("rb") as handle:
            head = handle.read(_HEAD)
        if is_bgzf(head) and last_bytes(path) != BGZF_END:
            raise CorpusError(
                f"{path}: the bgzip end-of-file block is missing, so the file is truncated; copy "
                "or make it again"
            )
        if head.startswith(GZIP_START):
            with _reading(path), gzip.open(path) as decompressed:
                head = decompressed.read(_HEAD)
    except OSError as error:
        raise CorpusError(f"{path}: cannot be opened: {error.strerror or error}") from error
    text = head.removeprefix(_UTF8_MARK).lstrip(b"\r\n\t ")
    if not text:
        raise CorpusError(f"{path}: the file is empty; a genome has at least one sequence")
    if text.startswith((b">", b";")):
        return "fasta"
    if text.startswith(b"LOCUS ") or b"\nLOCUS  " in text:
        return "genbank"
    if text.startswith(b"ID  "):
        return "embl"
    for start, tool in OTHER_COMPRESSION.items():
        if text.startswith(start):
            raise CorpusError(f"{path}: compressed by {tool}; decompress it, or use gzip or bgzip")
    for start, known in _OTHER_FORMATS.items():
        if text.startswith(start):
            raise CorpusError(f"{path}: looks like {known}; give FASTA, GenBank or EMBL")
    raise CorpusError(
        f"{path}: not a genome: a FASTA file begins with >, a GenBank file with LOCUS, an EMBL file "
        "with ID"
    )


def read_source(
    path: Path, kind: str, report: Callable[[int], None] | None = None
) -> Iterator[RawRecord]:
    """Yield the sequences of a FASTA, GenBank or EMBL file.

    Args:
        path: The file.
        kind: What `detect_format` says of it.
        report: Called now and then with how many bytes of the file were read.

    Raises:
        CorpusError: if the file is damaged, at the point where that shows.
    """
    with _reading(path), ExitStack() as closers:
        handle = closers.enter_context(path.open("rb"))
        stream: BinaryIO = handle
        compressed = handle.read(2) == GZIP_START
        handle.seek(0)
        if compressed:
            stream = cast(BinaryIO, closers.enter_context(gzip.open(handle)))
        read = _read_fasta(stream) if kind == "fasta" else _read_flat_file(path, stream, kind)
        for record in read:
            if report is not None:
                report(handle.tell())
            yield record


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn what readers raise about a file that is damaged into one line."""
    try:
        yield
    except EOFError as error:
        raise CorpusError(
            f"{path}: the compressed data end too early, so the file is truncated; copy or make "
            "it again"
        ) from error
    except (zlib.error, gzip.BadGzipFile) as error:
        raise CorpusError(f"{path}: damaged compressed data ({error}); copy it again") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read: {error.strerror or error}") from error


def _expand(given: Path) -> Iterator[Path]:
    prefix = megatron_prefix(given)
    if prefix is not None:
        yield prefix
        return
    try:
        is_dir = stat.S_ISDIR(given.stat().st_mode)
    except FileNotFoundError:
        hint = ""
        if given.suffix in (".bin", ".idx") or idx_file(given).exists():
            hint = " (of a Megatron corpus both .bin and .idx are needed)"
        raise CorpusError(f"{given}: no such file or folder{hint}") from None
    except OSError as error:
        raise CorpusError(f"{given}: cannot be opened: {error.strerror}") from error
    if not is_dir:
        yield given
        return
    paths = sorted(_genome_files(given))
    if not paths and is_corpus(given):
        raise CorpusError(f"{given}: is a corpus already; give the genomes that it was made of")
    if not paths:
        endings = ", ".join(FASTA_SUFFIXES + GENBANK_SUFFIXES)
        raise CorpusError(
            f"{given}: the folder holds no genome (names that end in {endings}, also with .gz or "
            ".bgz, or Megatron pairs .bin and .idx); give another folder, or the files themselves"
        )
    yield from paths


def _genome_files(folder: Path) -> Iterator[Path]:
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise CorpusError(f"{folder}: cannot be listed: {error.strerror}") from error
    for path in entries:
        if path.name.startswith("."):
            continue
        if path.is_dir():
            # A link to a folder above would never end.
            if not path.is_symlink():
                yield from _genome_files(path)
        elif path.suffix == ".idx" and (prefix := megatron_prefix(path)) is not None:
            yield prefix
        elif genome_name(path).lower() != _without(path, COMPRESSED_SUFFIXES).lower():
            yield path


def _without(path: Path, suffixes: tuple[str, ...]) -> str:
    name = path.name
    return next((name[: -len(s)] for s in suffixes if name.lower().endswith(s)), name)


def _read_fasta(stream: BinaryIO) -> Iterator[RawRecord]:
    """Yield the records; only the one that is being read is in memory."""
    name: str | None = None
    body: list[bytes] = []
    # Text not yet taken; it starts with the line feed that stands before a header.
    rest = b"\n"
    at_end = is_first = True
    while True:
        chunk = stream.read(_CHUNK)
        if is_first:
            chunk, is_first = chunk.removeprefix(_UTF8_MARK), False
        at_end = not chunk
        text = rest + (b"\n" if at_end else chunk.translate(_CARRIAGE_RETURNS))
        position, stop = 0, len(text) - 1
        while (start := text.find(b"\n>", position)) >= 0:
            body.append(text[position:start])
            end = text.find(b"\n", start + 2)
            if end < 0:
                position = stop = start
                break
            if name is not None:
                yield RawRecord(name, _letters(body))
            name, body, position = _header_name(text[start + 2 : end]), [], end
        body.append(text[position:stop])
        rest = text[stop:]
        if at_end:
            break
    if name is not None:
        yield RawRecord(name, _letters(body))


def _letters(body: list[bytes]) -> bytes:
    """Return the lines of a sequence as one, without comment lines and blanks."""
    text = b"".join(body)
    if b";" in text:
        text = re.sub(rb"\n;[^\n]*", b"", text)
    return text.translate(None, _WHITE)


def _header_name(header: bytes) -> str:
    """Return the name in a header line without its ">": the first word, if it begins there."""
    if header[:1].isspace():
        return ""
    return _clean((header.split(maxsplit=1) or [b""])[0].decode("utf-8", "replace"))


def _clean(name: str) -> str:
    return "".join(c if c.isprintable() and not c.isspace() else "_" for c in name)


def _read_flat_file(path: Path, stream: BinaryIO, kind: str) -> Iterator[RawRecord]:
    from Bio import BiopythonWarning, SeqIO
    from Bio.Seq import UndefinedSequenceError

    # Names of authors may stand there in any encoding; sequences are ASCII.
    text = io.TextIOWrapper(stream, encoding="utf-8", errors="replace")
    records = SeqIO.parse(text, kind)
    while True:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", BiopythonWarning)
            try:
                record = next(records, None)
            except (ValueError, LookupError, AttributeError, TypeError, AssertionError) as error:
                raise CorpusError(
                    f"{path}: damaged {_FLAT_FILES[kind]} ({_line(error)}); copy or make it again"
                ) from error
        if record is None:
            return
        name = record.id if record.id not in ("", ".", "<unknown id>") else record.name
        for warning in caught:
            # Cut off within a sequence, as a rule.
            if str(warning.message).startswith("Expected sequence length"):
                raise CorpusError(
                    f"{path}: {name}: {_line(warning.message)}; the file is damaged: copy it again"
                )
        try:
            letters = bytes(record.seq)
        except UndefinedSequenceError:
            letters = b""
        yield RawRecord(_clean(name), letters)


_FLAT_FILES = {"genbank": "GenBank", "embl": "EMBL"}


def _line(message: object) -> str:
    return " ".join(str(message).split()) or type(message).__name__
