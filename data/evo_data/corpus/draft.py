"""A corpus in the making: files that grow at their ends, and a journal of what is finished."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from evo_data import kmers
from evo_data.alphabet import reverse_complement
from evo_data.corpus.format import RECORD_COLUMNS, Record, parse_record, record_line
from evo_data.corpus.growing import GrowingFiles
from evo_data.corpus.journal import Entry, read_journal, write_journal
from evo_data.corpus.letters import as_read, num_acgt, num_lower, why_unusable
from evo_data.corpus.manifest import (
    INTERVALS,
    MANIFEST,
    RECORDS,
    SEQUENCE,
    Duplicate,
    Encoding,
    LeftOut,
    Manifest,
    Renamed,
)
from evo_data.corpus.megatron import open_megatron
from evo_data.corpus.packed import Bytes, Intervals, pack
from evo_data.corpus.sources import Input, detect_format, read_source
from evo_data.corpus.summary import check_usable, make_manifest, unused_name
from evo_data.errors import CorpusError
from evo_data.files import atomic_output

Progress = Callable[[int, int, str], None]
"""Called with bytes of input done, bytes of input in all, and the file at hand."""

JOURNAL, OTHER, LOWER, SKETCHES = "journal.jsonl", "other", "lower", "sketches"

# The journal is synced to the disk after so many bytes of input, or seconds.
_SYNC_BYTES, _SYNC_SECONDS = 1 << 26, 5.0
_PIECE = 1 << 22
_RECORDS_HEAD = ("\t".join(RECORD_COLUMNS) + "\n").encode()


class DuplicateSequenceError(CorpusError):
    """A sequence that came before, where that is not allowed."""


class Meter:
    """Tells the caller how far the input was read."""

    def __init__(self, inputs: Sequence[Input], report: Progress | None) -> None:
        self._total = sum(item.bytes for item in inputs)
        self._done = 0
        self._report = report

    def within(self, item: Input, position: int) -> None:
        """Report that so many bytes of a source were read."""
        if self._report is not None:
            self._report(self._done + min(position, item.bytes), self._total, item.path.name)

    def end(self, item: Input) -> None:
        """Report that a source is done."""
        self.within(item, item.bytes)
        self._done += item.bytes


class Draft:
    """The corpus as it grows."""

    def __init__(
        self, work: Path, encoding: Encoding, settings: dict[str, Any], meter: Meter
    ) -> None:
        self._work = work
        self._meter = meter
        self._encoding = encoding
        self._settings = settings
        self._how_made = {"encoding": encoding, "settings": settings}
        self._entries: list[Entry] = []
        self._records: list[Record] = []
        # Index of the first record of a sequence, by the checksum of the sequence.
        self._first_of: dict[str, int] = {}
        self._num_genomes = 0
        self._position = 0
        # With 2 bits a base, the last bases, which do not fill a byte yet.
        self._carry = np.zeros(0, np.uint8)
        # Bases of records that are not written yet, and how many they are.
        self._taken: list[bytes] = []
        self._num_taken = 0
        # Lines that the journal does not have yet.
        self._unsynced: list[str] = []
        self._unsynced_bytes = 0
        self._synced_at = monotonic()
        self._journal: IO[bytes] | None = None
        names = [SEQUENCE, RECORDS]
        names += [OTHER, LOWER] if encoding == "packed" else []
        names += [SKETCHES] if settings["clusters"] is not None else []
        self._files = GrowingFiles(work, names)

    def __enter__(self) -> Draft:
        return self

    def __exit__(self, *error: object) -> None:
        if self._journal is not None:
            # What was finished before an error is worth keeping; a second error says nothing new.
            with suppress(OSError):
                self.sync()
        self._close()

    def resume(self, inputs: Sequence[Input]) -> list[Input]:
        """Cut the files back to what a former run finished, and return the sources still to do."""
        for leftover in self._work.glob(".*.tmp"):
            leftover.unlink()
        entries, waiting = self._kept(inputs)
        for item in inputs[: len(inputs) - len(waiting)]:
            self._meter.end(item)
        if entries:
            self._files.open(entries[-1].ends)
            self._carry = np.frombuffer(entries[-1].carry.encode("latin-1"), np.uint8)
        else:
            self._files.open(dict.fromkeys(self._files.names, 0))
            self._files.append(RECORDS, _RECORDS_HEAD)
        # Written anew, so that a line that was cut off is gone.
        write_journal(self._work / JOURNAL, self._how_made, entries)
        self._journal = (self._work / JOURNAL).open("ab")
        return waiting

    def _kept(self, inputs: Sequence[Input]) -> tuple[list[Entry], list[Input]]:
        """Return the entries of the journal that still hold, and the sources that have none."""
        journal = read_journal(self._work / JOURNAL, self._how_made)
        start = {**dict.fromkeys(self._files.names, 0), RECORDS: len(_RECORDS_HEAD)}
        for item in inputs if self._head_is_whole() else []:
            # Unusable files that are not among the inputs any more do not stand in the way.
            while journal and journal[0].unusable is not None and not journal[0].is_of(item):
                journal.pop(0)
            if not journal or not journal[0].is_of(item):
                break
            entry = journal.pop(0)
            if not self._files.hold(start, entry.ends, entry.sums):
                break
            records = self._records_between(start[RECORDS], entry.ends[RECORDS])
            entry.file = str(item.path)
            start = entry.ends
            self._entries.append(entry)
            for record in records:
                self._first_of.setdefault(record.sha256, len(self._records))
                self._records.append(record)
            self._num_genomes += bool(records)
            self._position += entry.num_bases
        return self._entries, list(inputs[len(self._entries) :])

    def _head_is_whole(self) -> bool:
        try:
            with (self._work / RECORDS).open("rb") as handle:
                return handle.read(len(_RECORDS_HEAD)) == _RECORDS_HEAD
        except OSError:
            return False

    def _records_between(self, start: int, end: int) -> list[Record]:
        """Return the records of bytes `[start, end)` of their table."""
        with (self._work / RECORDS).open("rb") as handle:
            handle.seek(start)
            text = handle.read(end - start).decode("utf-8")
        return [parse_record(line) for line in text.split("\n")[:-1]]

    def _intervals(self) -> Intervals:
        """Return the intervals written so far; rows that are not whole do not count."""
        other, lower = (_rows(self._work / name, size) for name, size in ((OTHER, 3), (LOWER, 2)))
        return Intervals(
            other[:, 0], other[:, 1], other[:, 2].astype(np.uint8), lower[:, 0], lower[:, 1]
        )

    def add(self, item: Input) -> None:
        """Read a source to its end and note it in the journal, as unusable if it is.

        Raises:
            CorpusError: at a duplicate, if that is an error.
        """
        before = len(self._records), self._position, self._carry, self._files.ends
        self._files.begin_sums()
        entry = Entry(file=str(item.path), format="", bytes=item.bytes, sha256="")
        try:
            as_it_was = item.state()
            entry.sha256 = item.sha256()
            entry.format = detect_format(item.path)
            self._add_records(item, entry)
            if item.state() != as_it_was:
                raise CorpusError(f"{item.path}: was changed while it was read; run again")
        except DuplicateSequenceError:
            raise
        except CorpusError as error:
            self._go_back(*before)
            entry = Entry(
                file=entry.file,
                format=entry.format,
                bytes=entry.bytes,
                sha256=entry.sha256,
                unusable=str(error),
            )
        entry.ends, entry.sums = self._files.ends, self._files.sums
        entry.carry = self._carry.tobytes().decode("latin-1")
        self._num_genomes += bool(entry.num_records)
        self._entries.append(entry)
        self._unsynced.append(entry.line)
        self._unsynced_bytes += item.bytes
        if self._unsynced_bytes >= _SYNC_BYTES or monotonic() - self._synced_at >= _SYNC_SECONDS:
            self.sync()

    def _go_back(
        self, num_records: int, position: int, carry: Bytes, ends: Mapping[str, int]
    ) -> None:
        """Forget what was taken up and written since the draft was as given."""
        self._position, self._carry = position, carry
        self._taken, self._num_taken = [], 0
        for record in self._records[num_records:]:
            if self._first_of.get(record.sha256, -1) >= num_records:
                del self._first_of[record.sha256]
        del self._records[num_records:]
        self._files.cut_back(ends)

    def sync(self) -> None:
        """Bring everything to the disk, then the journal's lines that vouch for it."""
        # The byte that is not full yet: the next bases are written over it.
        self._files.write_ahead(SEQUENCE, pack(self._carry).data)
        self._files.sync()
        if self._unsynced:
            assert self._journal is not None, "resume() comes first"
            self._journal.write("".join(self._unsynced).encode())
            self._journal.flush()
            os.fsync(self._journal.fileno())
        self._unsynced = []
        self._unsynced_bytes = 0
        self._synced_at = monotonic()

    def _add_records(self, item: Input, entry: Entry) -> None:
        names: dict[str, int] = {}
        hashes: list[kmers.Hashes] = []
        for number, (given, bases) in enumerate(self._sequences(item, entry), start=1):
            digest = hashlib.sha256(bases.upper()).hexdigest()
            same_as = self._first_of.get(digest)
            strand = "+"
            if same_as is None:
                strand = "-"
                same_as = self._first_of.get(_reverse_sha256(bases))
            if same_as is not None:
                self._note_duplicate(item, entry, given, len(bases), same_as, strand)
                if self._settings["duplicates"] == "drop":
                    continue
            name = unused_name(given or f"unnamed_{number}", names)
            if name != given:
                entry.renamed.append(Renamed(file=str(item.path), record=given, name=name))
            record = Record(name, self._num_genomes, self._position, len(bases), digest)
            self._first_of.setdefault(digest, len(self._records))
            self._records.append(record)
            self._files.append(RECORDS, record_line(record).encode())
            self._take(bases, hashes)
            entry.num_records += 1
            entry.num_bases += len(bases)
            entry.acgt_bases += num_acgt(bases)
            entry.soft_masked_bases += num_lower(bases)
        self._write_taken(hashes)
        if SKETCHES in self._files.names:
            self._files.append(SKETCHES, kmers.union(hashes).astype("<u8").tobytes())

    def _sequences(self, item: Input, entry: Entry) -> Iterator[tuple[str, bytes]]:
        """Yield name and bases, as a model reads them, of the records that can be used."""
        if entry.format == "megatron":
            corpus = open_megatron(item.path)
            for index, record in enumerate(corpus.records):
                yield record.name, corpus.read(index, 0, record.length).tobytes()
            return

        def report(position: int) -> None:
            self._meter.within(item, position)

        for raw in read_source(item.path, entry.format, report):
            reason = why_unusable(raw.letters)
            if reason is None:
                yield raw.name, as_read(raw.letters)
            else:
                length = len(raw.letters)
                entry.left_out.append(
                    LeftOut(file=str(item.path), record=raw.name, length=length, reason=reason)
                )

    def _note_duplicate(
        self, item: Input, entry: Entry, name: str, length: int, same_as: int, strand: str
    ) -> None:
        first = self._records[same_as]
        if self._settings["duplicates"] == "error":
            turned = "the reverse complement of " if strand == "-" else ""
            genomes = [e.file for e in self._entries if e.num_records]
            file = [*genomes, str(item.path)][first.genome]
            raise DuplicateSequenceError(
                f"{item.path}: record {name!r} is {turned}record {first.name!r} of {file}; remove "
                "one of them, or choose to drop or keep duplicates"
            )
        entry.duplicates.append(
            Duplicate(
                file=str(item.path),
                record=name,
                length=length,
                same_as=same_as,
                strand=strand,
                kept=self._settings["duplicates"] == "keep",
            )
        )

    def _take(self, bases: bytes, hashes: list[kmers.Hashes]) -> None:
        """Add a record's bases; short records are written together, which is many times faster."""
        self._taken.append(bases)
        self._num_taken += len(bases)
        self._position += len(bases)
        if self._num_taken >= _PIECE:
            self._write_taken(hashes)

    def _write_taken(self, hashes: list[kmers.Hashes]) -> None:
        """Write the records that were taken, and add the sketch of them."""
        if SKETCHES in self._files.names:
            # The N keeps k-mers from reaching from one record into the next.
            hashes.append(kmers.sketch(np.frombuffer(b"N".join(self._taken), np.uint8)))
        whole = np.frombuffer(b"".join(self._taken), np.uint8)
        position = self._position - self._num_taken
        self._taken, self._num_taken = [], 0
        if self._encoding == "bytes":
            self._files.append(SEQUENCE, whole.data)
            return
        for at in range(0, whole.size, _PIECE):
            piece = whole[at : at + _PIECE]
            found = Intervals.of(piece, position + at)
            other = np.stack([found.other_start, found.other_end, found.other_byte], axis=1)
            lower = np.stack([found.lower_start, found.lower_end], axis=1)
            self._files.append(OTHER, other.astype("<i8").tobytes())
            self._files.append(LOWER, lower.astype("<i8").tobytes())
            piece = np.concatenate([self._carry, piece])
            size = piece.size // 4 * 4
            self._files.append(SEQUENCE, pack(piece[:size]).data)
            self._carry = piece[size:]

    def finish(
        self, inputs: Sequence[Input], group_of: Mapping[Path, str], skip_unusable: bool
    ) -> Manifest:
        """Write what is still missing, the manifest last, all in the work folder."""
        check_usable(self._entries, skip_unusable)
        if self._encoding == "packed":
            self._save_intervals()
        self._close()
        manifest = make_manifest(
            self._work,
            self._encoding,
            self._settings,
            inputs,
            self._entries,
            group_of,
            self._clusters(),
        )
        with atomic_output(self._work / MANIFEST, force=True) as path:
            path.write_text(manifest.dumps(), encoding="utf-8")
        return manifest

    def _clusters(self) -> list[int]:
        if self._settings["clusters"] is None:
            return list(range(self._num_genomes))
        data = np.fromfile(self._work / SKETCHES, "<u8").astype(np.uint64)
        sketches, start = [], 0
        for entry in self._entries:
            end = entry.ends[SKETCHES] // 8
            if entry.num_records:
                sketches.append(data[start:end])
            start = end
        return kmers.clusters(sketches)

    def _save_intervals(self) -> None:
        intervals = self._intervals()
        with atomic_output(self._work / INTERVALS, force=True) as path:
            intervals.save(path)

    def _close(self) -> None:
        self._files.close()
        if self._journal is not None:
            with suppress(OSError):
                self._journal.close()
        self._journal = None


def _rows(path: Path, columns: int) -> NDArray[np.int64]:
    """Return a file of 64-bit integers as rows; none if it is absent."""
    if not path.exists():
        return np.zeros((0, columns), np.int64)
    count = path.stat().st_size // (8 * columns)
    return np.fromfile(path, "<i8", count * columns).reshape(-1, columns)


def _reverse_sha256(bases: bytes) -> str:
    """Checksum of the upper-case reverse complement."""
    whole = hashlib.sha256()
    for end in range(len(bases), 0, -_PIECE):
        whole.update(reverse_complement(bases[max(0, end - _PIECE) : end].upper()))
    return whole.hexdigest()
