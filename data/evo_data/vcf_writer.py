"""Writing variant files whole or not at all, with their index."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import pysam
import pysam.bcftools

from evo_data.errors import OutputExistsError, VcfError
from evo_data.files import atomic_output, check_output

FORMATS = ("vcf", "vcf.gz", "bcf")
_BUFFER_BYTES = 1 << 16

ExitCallback = Callable[
    [type[BaseException] | None, BaseException | None, TracebackType | None], None
]


@contextmanager
def quiet_htslib() -> Iterator[None]:
    """Silence what htslib writes to stderr by itself; its errors come as exceptions."""
    before = pysam.set_verbosity(0)
    try:
        yield
    finally:
        pysam.set_verbosity(before)


class VcfWriter:
    """Writes a header and lines of VCF text as VCF, bgzip-compressed VCF, or BCF.

    The file appears under its name, complete, when the writer is closed; if the `with` block
    raises, nothing is left behind. "vcf.gz" gets a .tbi (a .csi where a position passes 2^29) and
    "bcf" a .csi, unless the records are not in order, which `index_note` then says.

    Text is written byte for byte. BCF is built by htslib, which declares what the header lacks
    and keeps floats in 32 bits.

    Attributes:
        index_note: Why there is no index, or "".

    Raises:
        OutputExistsError: if the file or an index of it exists and `force` is not given.
        VcfError: if the format is not known, if anything but "vcf" is to go to stdout, if the disk
            is full, or, when closed, if htslib cannot turn the text into BCF.
    """

    def __init__(
        self, path: Path | str, *, format: str, header_lines: list[bytes], force: bool = False
    ) -> None:
        if format not in FORMATS:
            raise VcfError(f"output format {format!r} is not known; use {', '.join(FORMATS)}")
        self.index_note = ""
        self._format = format
        self._to_stdout = os.fspath(path) == "-"
        self._name = "stdout" if self._to_stdout else os.fspath(path)
        self._order = _Order()
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._last = b""
        self._closed = False
        with ExitStack() as stack:
            if self._to_stdout:
                if format != "vcf":
                    raise VcfError(f"only text VCF goes to stdout, not {format}; give a file name")
                self._out: BinaryIO = sys.stdout.buffer
            else:
                self._target = check_output(path, force=force)
                self._check_indexes(force)
                self._open(force, stack)
            for line in header_lines:
                self._put(line)
            self._stack = stack.pop_all()

    def write(self, line: bytes) -> None:
        """Write one record: a line of VCF with its terminator (`evo_data.vcf.annotate`)."""
        if not self._to_stdout:
            self._order.note(line)
        self._put(line)

    def close(self) -> None:
        """Complete the file and its index; further calls do nothing."""
        if self._closed:
            return
        self._closed = True
        try:
            self._flush()
            if self._to_stdout:
                self._out.flush()
        except BaseException:
            self._stack.__exit__(*sys.exc_info())
            raise
        with _disk_errors(self._name):
            self._stack.close()
        if not self._to_stdout and self._format != "vcf":
            self._index()

    def __enter__(self) -> VcfWriter:
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
            self._stack.__exit__(kind, error, trace)

    def _open(self, force: bool, stack: ExitStack) -> None:
        """Open the temporary file; what `stack` does when it unwinds makes it the output."""
        suffix = ".bcf" if self._format == "bcf" else ""
        temporary = stack.enter_context(atomic_output(self._target, force=force, suffix=suffix))
        if self._format == "bcf":
            spool = temporary.with_suffix(".vcf")
            stack.callback(spool.unlink, missing_ok=True)
            self._out = spool.open("wb")
            stack.push(_closing(self._out, lambda: _write_bcf(spool, temporary, self._name)))
        else:
            zipped = self._format == "vcf.gz"
            name = os.fspath(temporary)
            self._out = pysam.BGZFile(name, "wb") if zipped else temporary.open("wb")
            stack.push(_closing(self._out))

    def _put(self, line: bytes) -> None:
        if self._last and not self._last.endswith(b"\n"):
            # Only the very last line of a file may lack its line feed.
            line = b"\n" + line
        self._last = line[-1:] or self._last
        self._buffer.append(line)
        self._buffered += len(line)
        if self._buffered >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        with _disk_errors(self._name):
            self._out.write(b"".join(self._buffer))
        self._buffer.clear()
        self._buffered = 0

    def _index_paths(self) -> list[Path]:
        kinds = {"vcf": (), "vcf.gz": (".tbi", ".csi"), "bcf": (".csi",)}[self._format]
        return [Path(f"{self._target}{kind}") for kind in kinds]

    def _check_indexes(self, force: bool) -> None:
        for index in self._index_paths():
            if index.exists() and not force:
                raise OutputExistsError(f"index {index} exists; remove it or give --force")

    def _index(self) -> None:
        for index in self._index_paths():
            index.unlink(missing_ok=True)
        if not self._order.sorted:
            self.index_note = (
                f"{self._name} is not sorted by position, so it has no index; use bcftools sort"
            )
            return
        # A .tbi cannot be made where a position passes 2^29; a .csi can.
        kinds = (".csi",) if self._format == "bcf" else (".tbi", ".csi")
        for kind in kinds:
            try:
                with atomic_output(Path(f"{self._target}{kind}")) as temporary, quiet_htslib():
                    self._build_index(os.fspath(temporary), kind)
            except (OSError, ValueError) as error:
                self.index_note = f"{self._name} has no index: htslib cannot make one ({error})"
            else:
                self.index_note = ""
                return

    def _build_index(self, index: str, kind: str) -> None:
        pysam.tabix_index(
            os.fspath(self._target),
            preset="bcf" if self._format == "bcf" else "vcf",
            csi=kind == ".csi",
            index=index,
            force=True,
        )


class _Order:
    """Whether records came contig by contig, and by position within each."""

    def __init__(self) -> None:
        self.sorted = True
        self._contig: bytes | None = None
        self._contigs: set[bytes] = set()
        self._position = 0

    def note(self, line: bytes) -> None:
        contig, position, _ = line.split(b"\t", 2)
        pos = int(position)
        if contig != self._contig:
            self.sorted = self.sorted and contig not in self._contigs
            self._contigs.add(contig)
            self._contig = contig
        elif pos < self._position:
            self.sorted = False
        self._position = pos


def _write_bcf(text: Path, bcf: Path, name: str) -> None:
    """Turn a VCF into BCF; contigs and keys that its header lacks are declared."""
    declared = text.with_suffix(".declared.vcf")
    number = 0
    try:
        with quiet_htslib():
            with pysam.VariantFile(os.fspath(text)) as records:
                for number, _ in enumerate(records, start=1):  # noqa: B007
                    pass
                # htslib declares what it meets while it reads, but writes no record that was read
                # before its names were declared; hence a second reading, under the full header.
                header = str(records.header).encode()
            with text.open("rb") as source, declared.open("wb") as target:
                while not next(source).startswith(b"#CHROM"):
                    pass
                target.write(header)
                shutil.copyfileobj(source, target)
            # Not pysam's own writer: that sets and deletes INFO/END as it sees fit.
            arguments = ("--no-version", "-Ob", "-o", os.fspath(bcf), os.fspath(declared))
            pysam.bcftools.view(*arguments, catch_stdout=False)
    except (OSError, ValueError, pysam.SamtoolsError) as error:
        raise VcfError(
            f"{name}: htslib cannot turn the text into BCF (after {number} records: "
            f"{' '.join(str(error).split())}); write VCF, which keeps any line as it is"
        ) from error
    finally:
        declared.unlink(missing_ok=True)


def _closing(out: BinaryIO, then: Callable[[], None] | None = None) -> ExitCallback:
    """Return an exit callback that closes a file, and goes on only if no error is on its way."""

    def leave(
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            # The file is thrown away; that its last bytes cannot be written is no news.
            with suppress(OSError):
                out.close()
            return
        out.close()
        if then is not None:
            then()

    return leave


@contextmanager
def _disk_errors(name: str) -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        # Whoever read our stdout has had enough; that is for the command to handle.
        raise
    except OSError as error:
        raise VcfError(f"{name}: cannot be written: {error.strerror or error}") from error
