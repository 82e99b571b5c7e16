"""Making a corpus from genomes, so that it can be stopped anywhere and never be half a corpus.

Everything is written in a folder `.preparing` within the corpus: the files of the corpus grow at
their ends only, and a journal says after each source how far they reach. A run that finds a journal
cuts the files back to what it says and goes on with the next source. At the end the files move out
of it, the manifest last; a folder without manifest is no corpus.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import IO, Any, Literal

import numpy as np

from evo_data import kmers
from evo_data.alphabet import reverse_complement
from evo_data.corpus.format import (
    FORMAT,
    INTERVALS,
    MANIFEST,
    RECORD_COLUMNS,
    RECORDS,
    SEQUENCE,
    WORK,
    ByteSequence,
    Corpus,
    Duplicate,
    Encoding,
    FileEntry,
    Genome,
    LeftOut,
    Manifest,
    Record,
    Renamed,
    Source,
    StoredSequence,
    Unusable,
    parse_record,
    record_line,
    stored_size,
)
from evo_data.corpus.megatron import bin_file, idx_file, megatron_prefix, open_megatron
from evo_data.corpus.packed import Bytes, Intervals, PackedSequence, pack, unpack
from evo_data.corpus.sources import detect_format, find_sources, genome_name, read_source
from evo_data.errors import CorpusError, OutputExistsError
from evo_data.files import atomic_output, sha256_file

Duplicates = Literal["drop", "keep", "error"]
Groups = Mapping[str, str] | Literal["parent"] | None
Progress = Callable[[int, int, str], None]
"""Called with bytes of input done, bytes of input in all, and the file at hand."""

JOURNAL, LOCK, OTHER, LOWER, SKETCHES = "journal.jsonl", "lock", "other", "lower", "sketches"
_JOURNAL_VERSION = 1

# A record of which more letters than this stand for no nucleotide is a protein or an alignment.
_MOST_OTHER_LETTERS = 0.1
# The journal is synced to the disk after so many bytes of input, or seconds.
_SYNC_BYTES, _SYNC_SECONDS = 1 << 26, 5.0
_PIECE = 1 << 22

# What a model reads: A, C, G, T in either case; U is T; every other letter is N, or n.
_AS_READ = bytearray(b"N" * 256)
for _letter in range(ord("a"), ord("z") + 1):
    _AS_READ[_letter] = ord("n")
for _from, _to in zip(b"ACGTUacgtu", b"ACGTTacgtt", strict=True):
    _AS_READ[_from] = _to
_AS_READ_TABLE = bytes(_AS_READ)
_NUCLEOTIDES = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx"
_LOWER_LETTERS = bytes(range(ord("a"), ord("z") + 1))


def prepare(
    genomes: Sequence[Path | str],
    output: Path | str,
    *,
    encoding: Encoding = "bytes",
    groups: Groups = None,
    duplicates: Duplicates = "drop",
    cluster: bool = True,
    skip_unusable: bool = False,
    force: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Make a corpus from genomes and return its manifest.

    Each file becomes one genome, in the order given (folders: alphabetical). Case is kept, U is
    written as T, and every letter but A, C, G, T as N; documents of Megatron corpora are kept byte
    for byte. One record at a time is in memory.

    A run that was stopped is taken up again by the same call: sources that were finished are kept
    if they are unchanged (SHA-256) and what was written of them is as it was. If the corpus is
    there already, made of the same sources in the same way, nothing is done.

    Args:
        genomes: FASTA (plain, gzip, bgzip), GenBank, EMBL, folders of these, Megatron prefixes.
        output: The folder of the corpus; made if absent.
        encoding: "bytes" (a byte a base) or "packed" (2 bits a base).
        groups: None: one group, "all"; "parent": the name of the folder in which a file lies; or
            a mapping from a genome's name, file name or path, as given, to its group.
        duplicates: What becomes of records whose sequence (or its reverse complement) came
            before: "drop" leaves them out, "keep" keeps them, "error" stops. They are reported.
        cluster: Whether genomes that share most k-mers (`evo_data.kmers.clusters`) are weighted
            by one over their number; else every genome has weight 1.
        skip_unusable: Whether files that cannot be used are left out and reported; otherwise they
            are an error, after all others were read.
        force: Whether another corpus at `output` may be replaced.
        progress: Called as the input is read.

    Raises:
        CorpusError: if an input cannot be used, or the output belongs to something else.
        OutputExistsError: if there is another corpus and `force` is not given.
        OSError: if the disk is full or forbids writing; the same call takes it up again.
    """
    output = Path(output)
    settings: dict[str, Any] = {
        "duplicates": duplicates,
        "clusters": (
            {
                "k": kmers.K,
                "scale": kmers.SCALE,
                "threshold": kmers.CLUSTER_CONTAINMENT,
                "of": "larger",
            }
            if cluster
            else None
        ),
    }
    if encoding not in ("bytes", "packed"):
        raise CorpusError(f"encoding {encoding!r} is not known; use 'bytes' or 'packed'")
    if duplicates not in ("drop", "keep", "error"):
        raise CorpusError(f"duplicates {duplicates!r} is not known; use 'drop', 'keep' or 'error'")
    paths = find_sources(genomes)
    group_of = _groups(paths, groups)
    _check_folder(output)
    with _locked(output) as work:
        inputs = _inputs(paths)
        _complete_move(work, output)
        if (output / MANIFEST).exists():
            found = _existing(output, inputs, encoding, settings, group_of, skip_unusable)
            if found is not None:
                shutil.rmtree(work)
                return found
            if not force:
                raise OutputExistsError(
                    f"{output} is a corpus of other genomes or made in another way; choose "
                    "another folder, or give --force to replace it"
                )
        meter = _Meter(inputs, progress)
        with _Draft(work, encoding, settings, meter) as draft:
            for item in draft.resume(inputs):
                meter.within(item, 0)
                draft.add(item)
                meter.end(item)
            draft.sync()
            manifest = draft.finish(inputs, group_of, skip_unusable)
        _complete_move(work, output)
        shutil.rmtree(work)
    return manifest


class DuplicateSequenceError(CorpusError):
    """A sequence that came before, where that is not allowed."""


@dataclass(slots=True)
class _Input:
    """A source with its size, and what it is once its first bytes were read."""

    path: Path
    bytes: int = 0
    digest: str | None = None

    @property
    def files(self) -> list[Path]:
        if megatron_prefix(self.path) is None:
            return [self.path]
        return [idx_file(self.path), bin_file(self.path)]

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
                        while piece := handle.read(_PIECE):
                            whole.update(piece)
            except OSError as error:
                raise CorpusError(
                    f"{self.path}: cannot be read: {error.strerror or error}"
                ) from error
            self.digest = whole.hexdigest()
        return self.digest


def _inputs(paths: Sequence[Path]) -> list[_Input]:
    found = []
    for path in paths:
        item = _Input(path)
        item.bytes = sum(part.stat().st_size for part in item.files)
        found.append(item)
    return found


class _Meter:
    """Tells the caller how far the input was read."""

    def __init__(self, inputs: Sequence[_Input], report: Progress | None) -> None:
        self._total = sum(item.bytes for item in inputs)
        self._done = 0
        self._report = report

    def within(self, item: _Input, position: int) -> None:
        """So many bytes of a source were read."""
        if self._report is not None:
            self._report(self._done + min(position, item.bytes), self._total, item.path.name)

    def end(self, item: _Input) -> None:
        """A source is done."""
        self.within(item, item.bytes)
        self._done += item.bytes


@dataclass(slots=True, kw_only=True)
class _Entry:
    """What the journal says about a source: where the files end after it, and what it held."""

    file: str
    format: str
    bytes: int
    sha256: str
    ends: dict[str, int] = field(default_factory=dict)
    num_records: int = 0
    num_bases: int = 0
    acgt_bases: int = 0
    soft_masked_bases: int = 0
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    renamed: list[dict[str, Any]] = field(default_factory=list)
    unusable: str | None = None


class _Draft:
    """The corpus as it grows."""

    def __init__(
        self, work: Path, encoding: Encoding, settings: dict[str, Any], meter: _Meter
    ) -> None:
        self._work = work
        self._meter = meter
        self._encoding = encoding
        self._settings = settings
        self._entries: list[_Entry] = []
        self._records: list[Record] = []
        self._first_of: dict[str, int] = {}
        self._num_genomes = 0
        self._position = 0
        self._carry = np.zeros(0, np.uint8)
        self._unsynced: list[str] = []
        self._unsynced_bytes = 0
        self._synced_at = monotonic()
        self._files: dict[str, IO[bytes]] = {}
        names = [SEQUENCE, RECORDS]
        names += [OTHER, LOWER] if encoding == "packed" else []
        names += [SKETCHES] if settings["clusters"] is not None else []
        self._names = names

    def __enter__(self) -> _Draft:
        return self

    def __exit__(self, *error: object) -> None:
        if self._files:
            # What was finished before an error is worth keeping; a second error says nothing new.
            with suppress(OSError):
                self.sync()
        self._close()

    # --- taking up a run that was stopped ------------------------------------------------------

    def resume(self, inputs: Sequence[_Input]) -> list[_Input]:
        """Cut the files back to what a former run finished, and return the sources still to do."""
        entries, waiting = self._kept(inputs)
        for item in inputs[: len(inputs) - len(waiting)]:
            self._meter.end(item)
        kept = entries[-1].ends if entries else dict.fromkeys(self._names, 0)
        for name in self._names:
            path = self._work / name
            handle: IO[bytes] = path.open("r+b" if path.exists() else "w+b")
            self._files[name] = handle
            handle.truncate(kept[name])
            handle.seek(0, os.SEEK_END)
        if self._position % 4 and self._encoding == "packed":
            # The last byte is not full: its bases are written again with what follows.
            handle = self._files[SEQUENCE]
            handle.seek(-1, os.SEEK_END)
            at = handle.tell()
            last = np.frombuffer(handle.read(1), np.uint8)
            self._carry = unpack(last)[: self._position % 4]
            handle.seek(at)
        if not entries:
            self._write(RECORDS, ("\t".join(RECORD_COLUMNS) + "\n").encode())
        header = {
            "version": _JOURNAL_VERSION,
            "encoding": self._encoding,
            "settings": self._settings,
        }
        # Written anew, so that a line that was cut off is gone.
        lines = [json.dumps(header), *(json.dumps(asdict(entry)) for entry in entries)]
        with atomic_output(self._work / JOURNAL, force=True) as path:
            path.write_text("\n".join(lines) + "\n", encoding="utf-8")
        self._files[JOURNAL] = (self._work / JOURNAL).open("ab")
        return waiting

    def _kept(self, inputs: Sequence[_Input]) -> tuple[list[_Entry], list[_Input]]:
        """Return the entries of the journal that still hold, and the sources that have none."""
        journal = self._journal()
        ends = dict.fromkeys(self._names, 0)
        records = self._stored_records(journal)
        done = 0
        for item in inputs:
            # Files that could not be used, and that nobody asks for any more, are in nobody's way.
            while journal and journal[0].unusable is not None and not _is_same(item, journal[0]):
                journal.pop(0)
            if not journal or not _is_same(item, journal[0]):
                break
            entry = journal[0]
            first = len(self._records)
            own = records[first : first + entry.num_records]
            if len(own) != entry.num_records or not self._as_written(own, entry):
                break
            journal.pop(0)
            entry.file = str(item.path)
            entry.ends = entry.ends or ends
            ends = entry.ends
            self._entries.append(entry)
            for index, record in enumerate(own, start=first):
                self._records.append(record)
                self._first_of.setdefault(record.sha256, index)
            self._num_genomes += bool(own)
            self._position += entry.num_bases
            done += 1
        return self._entries, list(inputs[done:])

    def _journal(self) -> list[_Entry]:
        """Return the entries of a former run's journal; none if it was made in another way."""
        try:
            lines = (self._work / JOURNAL).read_bytes().decode("utf-8").split("\n")
            header = json.loads(lines[0])
        except (OSError, ValueError):
            return []
        if header != {
            "version": _JOURNAL_VERSION,
            "encoding": self._encoding,
            "settings": self._settings,
        }:
            return []
        entries = []
        # What stands behind the last line feed was not written to its end.
        for line in lines[1:-1]:
            try:
                entries.append(_Entry(**json.loads(line)))
            except (ValueError, TypeError):
                break
        return entries

    def _stored_records(self, journal: Sequence[_Entry]) -> list[Record]:
        if not journal:
            return []
        size = max(entry.ends.get(RECORDS, 0) for entry in journal)
        records = []
        try:
            with (self._work / RECORDS).open("rb") as handle:
                lines = handle.read(size).decode("utf-8").split("\n")
            records = [parse_record(line) for line in lines[1:-1]]
        except (OSError, ValueError):
            pass  # What cannot be read counts as not written.
        return records

    def _as_written(self, records: Sequence[Record], entry: _Entry) -> bool:
        """Whether what was written of a source is all there, and the bases are the same."""
        if entry.unusable is not None:
            return True
        if set(entry.ends) != set(self._names):
            return False
        for name in self._names:
            path = self._work / name
            if not path.exists() or path.stat().st_size < entry.ends[name]:
                return False
        sequence = self._stored_sequence(entry.ends)
        return all(_upper_sha256(sequence, record) == record.sha256 for record in records)

    def _stored_sequence(self, ends: Mapping[str, int]) -> StoredSequence:
        if self._encoding == "bytes":
            return ByteSequence(self._work / SEQUENCE)
        return PackedSequence(self._work / SEQUENCE, self._intervals(ends))

    def _intervals(self, ends: Mapping[str, int]) -> Intervals:
        other = np.fromfile(self._work / OTHER, "<i8", ends[OTHER] // 8).reshape(-1, 3)
        lower = np.fromfile(self._work / LOWER, "<i8", ends[LOWER] // 8).reshape(-1, 2)
        return Intervals(
            other[:, 0], other[:, 1], other[:, 2].astype(np.uint8), lower[:, 0], lower[:, 1]
        )

    # --- adding sources ------------------------------------------------------------------------

    def add(self, item: _Input) -> None:
        """Read a source to its end and note it in the journal, as unusable if it is.

        Raises:
            CorpusError: at a duplicate, if that is an error.
        """
        start = {name: handle.tell() for name, handle in self._files.items() if name != JOURNAL}
        state = len(self._records), self._position, self._carry
        entry = _Entry(file=str(item.path), format="", bytes=item.bytes, sha256="")
        try:
            entry.sha256 = item.sha256()
            entry.format = detect_format(item.path)
            before = [part.stat() for part in item.files]
            self._add_records(item, entry)
            after = [part.stat() for part in item.files]
            if [(s.st_size, s.st_mtime_ns) for s in before] != [
                (s.st_size, s.st_mtime_ns) for s in after
            ]:
                raise CorpusError(f"{item.path}: was changed while it was read; run again")
            if not entry.num_records and not entry.duplicates:
                raise CorpusError(_nothing_in(item.path, entry))
        except DuplicateSequenceError:
            raise
        except CorpusError as error:
            # Whatever of it was written is cut off again.
            num_records, self._position, self._carry = state
            for record in self._records[num_records:]:
                if self._first_of.get(record.sha256, -1) >= num_records:
                    del self._first_of[record.sha256]
            del self._records[num_records:]
            for name, end in start.items():
                self._files[name].seek(end)
                self._files[name].truncate()
            entry = _Entry(
                file=entry.file,
                format=entry.format,
                bytes=entry.bytes,
                sha256=entry.sha256,
                unusable=str(error),
            )
        entry.ends = {name: self._files[name].tell() for name in self._names}
        entry.ends[SEQUENCE] = stored_size(self._encoding, self._position)
        self._num_genomes += bool(entry.num_records)
        self._entries.append(entry)
        self._unsynced.append(json.dumps(asdict(entry)) + "\n")
        self._unsynced_bytes += item.bytes
        if self._unsynced_bytes >= _SYNC_BYTES or monotonic() - self._synced_at >= _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Bring everything to the disk, then the journal's lines that vouch for it."""
        self._write_carry()
        for name in self._names:
            _flush(self._files[name])
        if self._unsynced:
            self._write(JOURNAL, "".join(self._unsynced).encode())
            _flush(self._files[JOURNAL])
        self._unsynced = []
        self._unsynced_bytes = 0
        self._synced_at = monotonic()

    def _add_records(self, item: _Input, entry: _Entry) -> None:
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
            name = _unused(given or f"unnamed_{number}", names)
            if name != given:
                renamed = Renamed(file=str(item.path), record=given, name=name)
                entry.renamed.append(asdict(renamed))
            letters = np.frombuffer(bases, np.uint8)
            record = Record(name, self._num_genomes, self._position, len(bases), digest)
            self._first_of.setdefault(digest, len(self._records))
            self._records.append(record)
            self._write(RECORDS, record_line(record).encode())
            self._write_bases(letters)
            entry.num_records += 1
            entry.num_bases += len(bases)
            entry.acgt_bases += len(bases) - len(bases.translate(None, b"ACGTacgt"))
            entry.soft_masked_bases += len(bases) - len(bases.translate(None, _LOWER_LETTERS))
            if SKETCHES in self._files:
                hashes.append(kmers.sketch(letters))
        if SKETCHES in self._files:
            self._write(SKETCHES, kmers.union(hashes).astype("<u8").tobytes())

    def _sequences(self, item: _Input, entry: _Entry) -> Iterator[tuple[str, bytes]]:
        """Yield name and bases, as a model reads them, of the records that can be used."""
        if entry.format == "megatron":
            corpus = open_megatron(item.path)
            for index, record in enumerate(corpus.records):
                yield record.name, corpus.read(index, 0, record.length).tobytes()
            return

        def report(position: int) -> None:
            self._meter.within(item, position)

        for raw in read_source(item.path, entry.format, report):
            reason = _why_not(raw.letters)
            if reason is None:
                yield raw.name, raw.letters.translate(_AS_READ_TABLE)
            else:
                left_out = LeftOut(
                    file=str(item.path), record=raw.name, length=len(raw.letters), reason=reason
                )
                entry.left_out.append(asdict(left_out))

    def _note_duplicate(
        self, item: _Input, entry: _Entry, name: str, length: int, same_as: int, strand: str
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
        duplicate = Duplicate(
            file=str(item.path),
            record=name,
            length=length,
            same_as=same_as,
            strand=strand,
            kept=self._settings["duplicates"] == "keep",
        )
        entry.duplicates.append(asdict(duplicate))

    def _write_bases(self, bases: Bytes) -> None:
        if self._encoding == "bytes":
            self._write(SEQUENCE, bases.data)
            self._position += bases.size
            return
        for at in range(0, bases.size, _PIECE):
            piece = bases[at : at + _PIECE]
            found = Intervals.of(piece, self._position)
            other = np.stack([found.other_start, found.other_end, found.other_byte], axis=1)
            lower = np.stack([found.lower_start, found.lower_end], axis=1)
            self._write(OTHER, other.astype("<i8").tobytes())
            self._write(LOWER, lower.astype("<i8").tobytes())
            piece = np.concatenate([self._carry, piece])
            whole = piece.size // 4 * 4
            self._write(SEQUENCE, pack(piece[:whole]).data)
            self._carry = piece[whole:]
            self._position += min(_PIECE, bases.size - at)

    def _write_carry(self) -> None:
        """Write the byte that is not full yet, and stay before it."""
        if self._carry.size:
            handle = self._files[SEQUENCE]
            at = handle.tell()
            self._write(SEQUENCE, pack(self._carry).data)
            handle.seek(at)

    def _write(self, name: str, data: bytes | memoryview) -> None:
        try:
            self._files[name].write(data)
        except OSError as error:
            # Writing names no file.
            raise OSError(error.errno, error.strerror, str(self._work / name)) from error

    # --- finishing -----------------------------------------------------------------------------

    def finish(
        self, inputs: Sequence[_Input], group_of: Mapping[Path, str], skip_unusable: bool
    ) -> Manifest:
        """Write what is still missing, the manifest last, all in the work folder."""
        unusable = [entry for entry in self._entries if entry.unusable is not None]
        if unusable and not skip_unusable:
            raise CorpusError(_refusal(unusable, len(self._entries)))
        if not self._records:
            raise CorpusError(_refusal(unusable, len(self._entries)))
        if self._encoding == "packed":
            self._save_intervals()
        self._close()
        labels = self._clusters()
        weights = kmers.cluster_weights(labels)
        genomes: list[Genome] = []
        sources: list[Source] = []
        names: dict[str, int] = {}
        wanted = [genome_name(item.path) for item in inputs]
        uses = Counter(wanted)
        first = 0
        for item, entry, name in zip(inputs, self._entries, wanted, strict=True):
            index = len(genomes) if entry.num_records else None
            sources.append(
                Source(
                    file=entry.file,
                    format=entry.format,
                    bytes=entry.bytes,
                    sha256=entry.sha256,
                    genome=index,
                )
            )
            if index is None:
                continue
            if uses[name] > 1:
                name = f"{item.path.absolute().parent.name}/{name}"
            genomes.append(
                Genome(
                    name=_unused(name, names),
                    group=group_of[item.path],
                    file=entry.file,
                    cluster=labels[index],
                    weight=weights[index],
                    num_bases=entry.num_bases,
                    acgt_bases=entry.acgt_bases,
                    soft_masked_bases=entry.soft_masked_bases,
                    first_record=first,
                    num_records=entry.num_records,
                )
            )
            first += entry.num_records
        manifest = Manifest(
            encoding=self._encoding,
            settings=self._settings,
            files={name: _file_entry(self._work / name) for name in _final_files(self._encoding)},
            sources=sources,
            genomes=genomes,
            totals=_totals(genomes, len(self._records)),
            duplicates=[Duplicate(**d) for entry in self._entries for d in entry.duplicates],
            left_out=[LeftOut(**d) for entry in self._entries for d in entry.left_out],
            renamed=[Renamed(**d) for entry in self._entries for d in entry.renamed],
            unusable=[Unusable(file=e.file, reason=e.unusable or "") for e in unusable],
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
        intervals = self._intervals(self._entries[-1].ends)
        with atomic_output(self._work / INTERVALS, force=True) as path:
            intervals.save(path)

    def _close(self) -> None:
        for handle in self._files.values():
            # After a full disk closing fails once more; the first error is the one to show.
            with suppress(OSError):
                handle.close()
        self._files = {}


# --- what is wanted, and what is there --------------------------------------------------------------


def _groups(paths: Sequence[Path], groups: Groups) -> dict[Path, str]:
    """Return each source's group.

    Raises:
        CorpusError: if a mapping lacks one.
    """
    if groups is None:
        return dict.fromkeys(paths, "all")
    if isinstance(groups, str):
        if groups != "parent":
            raise CorpusError(f"groups {groups!r} is not known; use 'parent' or a mapping")
        return {path: path.absolute().parent.name or "all" for path in paths}
    found, missing = {}, []
    for path in paths:
        keys = (genome_name(path), path.name, str(path))
        group = next((groups[key] for key in keys if key in groups), "")
        if group:
            found[path] = group
        else:
            missing.append(keys[0])
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CorpusError(
            f"no group for {', '.join(missing[:3])}{more}; the table needs a line for each genome "
            "(its name or file name, a tab, its group)"
        )
    return found


def read_groups(path: Path | str) -> dict[str, str]:
    """Read a table of groups: genome (or file) name, tab, group; lines that begin with # are left.

    Raises:
        CorpusError: naming the line that is none, or names a genome again with another group.
    """
    path = Path(path)
    groups: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise CorpusError(f"{path}: cannot be read: {reason}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = [column.strip() for column in line.split("\t")]
        if len(columns) != 2 or not all(columns):
            raise CorpusError(f"{path}:{number}: needs two columns, genome and group, with a tab")
        name, group = columns
        if groups.setdefault(name, group) != group:
            raise CorpusError(f"{path}:{number}: {name} was in group {groups[name]} before")
    return groups


def _check_folder(output: Path) -> None:
    """Raise if the output can be no corpus of ours."""
    try:
        entries = {entry.name for entry in output.iterdir()}
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise CorpusError(f"{output}: is a file; give a folder for the corpus") from None
    except OSError as error:
        raise CorpusError(f"{output}: cannot be used: {error.strerror}") from error
    if WORK in entries or not entries:
        return
    if MANIFEST not in entries:
        raise CorpusError(f"{output}: holds other files and no corpus; give an empty or new folder")
    try:
        ours = json.loads((output / MANIFEST).read_bytes()).get("format") == FORMAT
    except (OSError, ValueError, AttributeError):
        ours = False
    if not ours:
        raise CorpusError(
            f"{output / MANIFEST}: is not that of a corpus, or damaged; give another folder, or "
            "delete this one"
        )


def _existing(
    output: Path,
    inputs: Sequence[_Input],
    encoding: str,
    settings: dict[str, Any],
    group_of: Mapping[Path, str],
    skip_unusable: bool,
) -> Manifest | None:
    """Return the manifest of the corpus at `output` if it is the one that is asked for."""
    try:
        manifest = Corpus.open(output).manifest
    except CorpusError:
        return None
    assert manifest is not None
    sources = manifest.sources
    if (
        (manifest.encoding, manifest.settings) != (encoding, settings)
        or [source.bytes for source in sources] != [item.bytes for item in inputs]
        or (manifest.unusable and not skip_unusable)
    ):
        return None
    for source, item in zip(sources, inputs, strict=True):
        if source.genome is not None:
            group = manifest.genomes[source.genome].group
            if group != group_of[item.path]:
                return None
        if source.sha256 != item.sha256():
            return None
    return manifest


@contextmanager
def _locked(output: Path) -> Iterator[Path]:
    """Yield the work folder, which no other process uses meanwhile.

    Raises:
        CorpusError: if another process does.
    """
    is_new = not output.exists()
    work = output / WORK
    while True:
        work.mkdir(parents=True, exist_ok=True)
        handle = (work / LOCK).open("w")
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            handle.close()
            raise CorpusError(
                f"{output}: another process is preparing this corpus; wait until it is done"
            ) from None
        except OSError:
            pass  # Some network file systems know no locks.
        with suppress(FileNotFoundError):
            if os.fstat(handle.fileno()).st_ino == (work / LOCK).stat().st_ino:
                break
        # Whoever held it was just finishing, and the folder is gone.
        handle.close()
    try:
        yield work
    finally:
        with suppress(OSError):
            if [entry.name for entry in work.iterdir()] == [LOCK]:
                shutil.rmtree(work)
            if is_new:
                output.rmdir()
        handle.close()


def _complete_move(work: Path, output: Path) -> None:
    """Move a finished corpus out of its work folder, if there is one; may be repeated."""
    try:
        manifest = Manifest.loads((work / MANIFEST).read_bytes(), work / MANIFEST)
    except FileNotFoundError:
        return
    # From here to the end there is no manifest, and so no corpus.
    (output / MANIFEST).unlink(missing_ok=True)
    (output / INTERVALS).unlink(missing_ok=True) if INTERVALS not in manifest.files else None
    for name in manifest.files:
        with suppress(FileNotFoundError):
            (work / name).replace(output / name)
    _sync_folder(output)
    (work / MANIFEST).replace(output / MANIFEST)
    _sync_folder(output)


def _sync_folder(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# --- small things -----------------------------------------------------------------------------------


def _is_same(item: _Input, entry: _Entry) -> bool:
    """Whether a source is the one of a journal entry: equal in size and checksum."""
    if item.bytes != entry.bytes:
        return False
    with suppress(CorpusError):
        return item.sha256() == entry.sha256
    return False


def _why_not(letters: bytes) -> str | None:
    """Return why a sequence cannot be used, or None if it can."""
    if not letters:
        return "no sequence"
    others = letters.translate(None, _NUCLEOTIDES)
    num_bases = len(letters) - len(letters.translate(None, b"ACGTUNXacgtunx"))
    if len(others) <= _MOST_OTHER_LETTERS * len(letters) and 2 * num_bases >= len(letters):
        return None
    if 0 in others:
        return "binary data"
    shown = "".join(sorted({chr(letter) for letter in others[:10_000]}))
    if not others:
        return "mostly ambiguity codes: a protein?"
    return (
        f"not nucleotides: {len(others)} of {len(letters)} letters stand for none ({shown[:20]!a})"
    )


def _nothing_in(path: Path, entry: _Entry) -> str:
    if not entry.left_out:
        return f"{path}: holds no sequence, only names; give genomes"
    first = entry.left_out[0]
    return f"{path}: no sequence can be used ({first['record']}: {first['reason']}); give genomes"


def _refusal(unusable: Sequence[_Entry], num_sources: int) -> str:
    reasons = [entry.unusable or "" for entry in unusable]
    if num_sources == 1:
        return reasons[0]
    shown = "; ".join(reasons[:3])
    more = f"; and {len(reasons) - 3} more" if len(reasons) > 3 else ""
    return (
        f"{len(reasons)} of {num_sources} files cannot be used: {shown}{more}. Mend or remove them "
        "and run again (what was read is kept), or give --skip-unusable"
    )


def _upper_sha256(sequence: StoredSequence, record: Record) -> str:
    whole = hashlib.sha256()
    end = record.offset + record.length
    for at in range(record.offset, end, _PIECE):
        whole.update(sequence.read(at, min(at + _PIECE, end)).tobytes().upper())
    return whole.hexdigest()


def _reverse_sha256(bases: bytes) -> str:
    """Checksum of the upper-case reverse complement."""
    whole = hashlib.sha256()
    for end in range(len(bases), 0, -_PIECE):
        whole.update(reverse_complement(bases[max(0, end - _PIECE) : end].upper()))
    return whole.hexdigest()


def _unused(name: str, names: dict[str, int]) -> str:
    """Return a name, with ~2, ~3, ... behind it if it is in use, and note that it is."""
    candidate = name
    while candidate in names:
        names[name] += 1
        candidate = f"{name}~{names[name]}"
    names[candidate] = 1
    return candidate


def _final_files(encoding: str) -> list[str]:
    return [SEQUENCE, RECORDS, INTERVALS] if encoding == "packed" else [SEQUENCE, RECORDS]


def _file_entry(path: Path) -> FileEntry:
    return FileEntry(path.stat().st_size, sha256_file(path))


def _totals(genomes: Sequence[Genome], num_records: int) -> dict[str, float]:
    return {
        "genomes": len(genomes),
        "clusters": len({genome.cluster for genome in genomes}),
        "records": num_records,
        "bases": sum(genome.num_bases for genome in genomes),
        "acgt_bases": sum(genome.acgt_bases for genome in genomes),
        "soft_masked_bases": sum(genome.soft_masked_bases for genome in genomes),
        "effective_bases": sum(genome.effective_bases for genome in genomes),
    }


def _flush(handle: IO[bytes]) -> None:
    try:
        handle.flush()
        os.fsync(handle.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(handle.name)) from error
