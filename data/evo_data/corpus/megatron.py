"""Corpora of Megatron-style training programs (savanna, BioNeMo): a pair of `.bin` and `.idx`.

`.idx`, little-endian: magic `MMIDIDX\\0\\0`, uint64 version 1, uint8 code of the token dtype, uint64
number of sequences S, uint64 number of document bounds D, int32 lengths `[S]` in tokens, int64 byte
positions `[S]`, int64 document bounds `[D]` in sequences (the first is 0, the last S). `.bin`: the
tokens, which for the byte tokenizer are the bytes of the text. A document ends with the token 0
(end of document) if it was made so, and may be filled up with the token 1.

Source: the formats as savanna and Megatron-core write them. Nothing is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from evo_data.corpus.format import Corpus, Record
from evo_data.corpus.manifest import Genome
from evo_data.corpus.packed import Bytes
from evo_data.errors import CorpusError

_MAGIC = b"MMIDIDX\x00\x00"
_HEADER = struct.Struct("<9sQBQQ")
# The codes of floats differ between programs; tokens are integers in all of them.
_DTYPES: dict[int, type[np.integer]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
_END_OF_DOCUMENT, _PADDING = 0, 1
_BLOCK = 1 << 22


def megatron_prefix(path: Path) -> Path | None:
    """Return the common prefix of a `.bin`/`.idx` pair given as such or as one of both, else None."""
    if path.suffix in (".bin", ".idx") and path.with_suffix("").name:
        path = path.with_suffix("")
    return path if idx_file(path).is_file() and bin_file(path).is_file() else None


def idx_file(prefix: Path) -> Path:
    """Return the index of a pair."""
    return Path(f"{prefix}.idx")


def bin_file(prefix: Path) -> Path:
    """Return the tokens of a pair."""
    return Path(f"{prefix}.bin")


class TokenSequence:
    """Random access to tokens as bytes; the file is mapped at the first read."""

    def __init__(self, path: Path, dtype: type[np.integer]) -> None:
        self._path = path
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._map: NDArray[np.integer] | None = None

    def read(self, start: int, stop: int) -> Bytes:
        """Return the tokens at positions `[start, stop)` of the file, a new array.

        Raises:
            CorpusError: if one of them is not the token of a byte.
        """
        if self._map is None:
            self._map = np.memmap(self._path, self._dtype, "r")
        tokens = np.asarray(self._map[start:stop])
        if self._dtype.itemsize > 1 or self._dtype.kind == "i":
            bad = (tokens < 0) | (tokens > 255)
            if bad.any():
                at = int(bad.argmax())
                raise CorpusError(
                    f"{self._path}: token {int(tokens[at])} at position {start + at} is not a byte; "
                    "only corpora of the byte tokenizer (CharLevelTokenizer) can be read"
                )
        return tokens.astype(np.uint8)


def open_megatron(prefix: Path | str) -> Corpus:
    """Open a Megatron corpus where it lies: every document is a record, all of them one genome.

    The end-of-document token and padding at the end of a document do not belong to its record, and
    documents of nothing else are passed over. Names are `doc0`, `doc1`, ... by their number in the
    index. Checksums of the sequences are not computed.

    Raises:
        CorpusError: if the files are no such pair, are damaged or hold tokens of another kind.
    """
    prefix = Path(prefix)
    idx, tokens_file = idx_file(prefix), bin_file(prefix)
    try:
        content = idx.read_bytes()
        num_bytes = tokens_file.stat().st_size
    except OSError as error:
        raise CorpusError(f"{prefix}: cannot be opened as .bin and .idx: {error}") from error
    dtype, lengths, pointers, bounds = _parse_index(idx, content)
    item = np.dtype(dtype).itemsize
    if num_bytes % item:
        raise CorpusError(
            f"{tokens_file}: {num_bytes:,} bytes are not whole tokens of {item} bytes; copy it again"
        )
    if (pointers % item).any() or (pointers < 0).any() or (lengths < 0).any():
        raise CorpusError(
            f"{idx}: positions or lengths that cannot be; the file is damaged: copy it again"
        )
    starts = pointers // item
    ends = starts + lengths
    if ends.size and int(ends.max()) * item > num_bytes:
        raise CorpusError(
            f"{tokens_file}: has {num_bytes:,} bytes, the index needs "
            f"{int(ends.max()) * item:,}; copy it again"
        )
    sequence = TokenSequence(tokens_file, dtype)
    records: list[Record] = []
    for number, (first, last) in enumerate(
        zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True)
    ):
        if first == last:
            continue
        if (ends[first : last - 1] != starts[first + 1 : last]).any():
            raise CorpusError(
                f"{idx}: the sequences of document {number} do not follow each other in the .bin; "
                "write the corpus again with one sequence a document"
            )
        start, stop = int(starts[first]), int(ends[last - 1])
        stop = _text_end(sequence, start, stop)
        if stop > start:
            records.append(Record(f"doc{number}", 0, start, stop - start))
    if not records:
        raise CorpusError(f"{prefix}: holds no document with text; check how it was made")
    num_bases = sum(record.length for record in records)
    genome = Genome(
        name=prefix.name,
        group="all",
        file=str(prefix),
        cluster=0,
        weight=1.0,
        num_bases=num_bases,
        acgt_bases=num_bases,
        soft_masked_bases=0,
        first_record=0,
        num_records=len(records),
    )
    return Corpus(
        prefix,
        encoding="megatron",
        genomes=[genome],
        records=records,
        sequence=sequence,
        digest=hashlib.sha256(content + struct.pack("<Q", num_bytes)).hexdigest(),
    )


def _parse_index(
    path: Path, content: bytes
) -> tuple[type[np.integer], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return dtype, lengths in tokens, byte positions, and document bounds."""
    if len(content) < _HEADER.size or not content.startswith(_MAGIC):
        raise CorpusError(f"{path}: not the index of a Megatron corpus (its first bytes differ)")
    _, version, code, num_sequences, num_bounds = _HEADER.unpack_from(content)
    if version != 1:
        raise CorpusError(f"{path}: index version {version}; only version 1 is known")
    if code not in _DTYPES:
        raise CorpusError(f"{path}: tokens of dtype code {code}, which is no integer type")
    sizes = 4 * num_sequences, 8 * num_sequences, 8 * num_bounds
    # A multimodal index has more behind; a text corpus ends here.
    if len(content) != _HEADER.size + sum(sizes):
        raise CorpusError(
            f"{path}: has {len(content):,} bytes instead of {_HEADER.size + sum(sizes):,}; it is "
            "truncated or of another kind: copy it again"
        )
    at = _HEADER.size
    lengths = np.frombuffer(content, "<i4", num_sequences, at).astype(np.int64)
    pointers = np.frombuffer(content, "<i8", num_sequences, at + sizes[0]).astype(np.int64)
    bounds = np.frombuffer(content, "<i8", num_bounds, at + sizes[0] + sizes[1]).astype(np.int64)
    if (
        num_bounds < 1
        or bounds[0] != 0
        or bounds[-1] != num_sequences
        or (np.diff(bounds) < 0).any()
    ):
        raise CorpusError(f"{path}: its document bounds are damaged; copy it again")
    return _DTYPES[code], lengths, pointers, bounds


def _text_end(sequence: TokenSequence, start: int, stop: int) -> int:
    """Return where a document ends without end-of-document tokens and padding."""
    # Most documents end with one such token, so the first look is a short one.
    size = 64
    while stop > start:
        first = max(start, stop - size)
        block = sequence.read(first, stop)
        text = np.flatnonzero((block != _END_OF_DOCUMENT) & (block != _PADDING))
        if text.size:
            return first + int(text[-1]) + 1
        stop, size = first, min(2 * size, _BLOCK)
    return stop
