"""Corpora of other training programs, written here byte by byte from the description of the format."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from evo_data.corpus import Corpus, open_megatron, prepare
from evo_data.corpus.megatron import megatron_prefix
from evo_data.corpus.sources import find_sources
from evo_data.errors import CorpusError

_CODES = {np.uint8: 1, np.int32: 4, np.uint16: 8}

TAGGED = b"|d__Bacteria;p__X|ACGTacgtNNRR"
DOCUMENTS = [[TAGGED + b"\0"], [b"GATTACA\0\1\1\1"], [b"\0\1"], [b"ACG", b"TTT\0"], [b"ACG\0TGA"]]
RECORDS = {
    "doc0": TAGGED,
    "doc1": b"GATTACA",
    "doc3": b"ACGTTT",
    "doc4": b"ACG\0TGA",
}


def _write(prefix: Path, documents: list[list[bytes]], dtype: type = np.uint16) -> Path:
    """Write a pair: documents of sequences of tokens."""
    sequences = [sequence for document in documents for sequence in document]
    item = np.dtype(dtype).itemsize
    lengths = [len(sequence) for sequence in sequences]
    pointers = (np.cumsum([0, *lengths])[:-1] * item).tolist()
    bounds = np.cumsum([0, *(len(document) for document in documents)]).tolist()
    index = b"MMIDIDX\x00\x00" + struct.pack("<QB", 1, _CODES[dtype])
    index += struct.pack("<QQ", len(sequences), len(bounds))
    index += struct.pack(f"<{len(lengths)}i", *lengths)
    index += struct.pack(f"<{len(pointers)}q", *pointers)
    index += struct.pack(f"<{len(bounds)}q", *bounds)
    prefix.with_name(prefix.name + ".idx").write_bytes(index)
    tokens = np.frombuffer(b"".join(sequences), np.uint8).astype(dtype)
    prefix.with_name(prefix.name + ".bin").write_bytes(tokens.tobytes())
    return prefix


def _content(corpus: Corpus) -> dict[str, bytes]:
    return {
        record.name: corpus.read(index, 0, record.length).tobytes()
        for index, record in enumerate(corpus.records)
    }


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    return _write(tmp_path / "og2_text_CharLevelTokenizer_document", DOCUMENTS)


@pytest.mark.parametrize("dtype", _CODES)
def test_documents_are_records(tmp_path: Path, dtype: type) -> None:
    prefix = _write(tmp_path / "v1.5", DOCUMENTS, dtype)
    corpus = open_megatron(prefix)
    assert _content(corpus) == RECORDS
    assert corpus.num_bases == sum(map(len, RECORDS.values()))
    assert corpus.read(0, 3, 9).tobytes() == TAGGED[3:9]
    assert (corpus.encoding, corpus.manifest, len(corpus.genomes)) == ("megatron", None, 1)
    assert corpus.genomes[0].name == "v1.5"
    with pytest.raises(CorpusError, match="no checksums"):
        corpus.verify()


def test_a_pair_by_any_of_its_names(prefix: Path) -> None:
    for name in (prefix, Path(f"{prefix}.bin"), Path(f"{prefix}.idx")):
        assert megatron_prefix(name) == prefix
        assert [item.path for item in find_sources([name])] == [prefix]
        assert _content(Corpus.open(name)) == RECORDS
    assert [item.path for item in find_sources([prefix.parent])] == [prefix]
    assert megatron_prefix(prefix.parent) is None
    assert _content(pickle.loads(pickle.dumps(Corpus.open(prefix)))) == RECORDS


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_conversion_keeps_every_byte(prefix: Path, tmp_path: Path, encoding: str) -> None:
    manifest = prepare([prefix], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    corpus = Corpus.open(tmp_path / "c")
    assert _content(corpus) == RECORDS
    assert manifest.sources[0].format == "megatron"
    assert manifest.sources[0].bytes == sum(
        path.stat().st_size for path in prefix.parent.glob(prefix.name + ".*")
    )
    assert prepare([f"{prefix}.bin"], tmp_path / "c", encoding=encoding) == manifest  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["bytes", "packed"])
def test_documents_of_any_bytes(tmp_path: Path, encoding: str) -> None:
    every = bytes(range(256)) + b"\xc3\xa9\xff"
    _write(tmp_path / "a", [[b"ACG"], [every]], np.uint8)
    _write(tmp_path / "b", [[every[::-1][:-2]]], np.uint8)
    prefixes = [tmp_path / "a", tmp_path / "b"]
    (tmp_path / "empty.fa").touch()
    # Stopped and taken up again between any bytes too.
    with pytest.raises(CorpusError, match="the file is empty"):
        prepare([prefixes[0], tmp_path / "empty.fa"], tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    prepare(prefixes, tmp_path / "c", encoding=encoding)  # type: ignore[arg-type]
    corpus = Corpus.open(tmp_path / "c")
    read = [corpus.read(i, 0, r.length).tobytes() for i, r in enumerate(corpus.records)]
    assert read == [b"ACG", every, every[::-1][:-2]]


def test_long_padding(tmp_path: Path) -> None:
    prefix = _write(
        tmp_path / "p", [[b"ACG\0" + b"\1" * 10_000], [b"\1" * 5000], [b"T\0"]], np.uint8
    )
    assert _content(open_megatron(prefix)) == {"doc0": b"ACG", "doc2": b"T"}


def test_tokens_that_are_no_bytes(tmp_path: Path) -> None:
    prefix = _write(tmp_path / "p", [[b"ACGT"]], np.int32)
    tokens = np.array([65, 66, 300, 65], np.int32)
    (tmp_path / "p.bin").write_bytes(tokens.tobytes())
    with pytest.raises(CorpusError, match="token 300 at position 2 is not a byte"):
        open_megatron(prefix)


def _patched(offset: int, data: bytes) -> object:
    return lambda index: index[:offset] + data + index[offset + len(data) :]


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda index: b"", "not the index"),
        (lambda index: b"junk" * 50, "not the index"),
        (lambda index: index[:30], "not the index"),
        (lambda index: index[:-3], "truncated or of another kind"),
        (lambda index: index + b"\0", "truncated or of another kind"),
        (_patched(9, b"\2"), "index version 2"),
        (_patched(17, b"\6"), "dtype code 6"),
        (_patched(18, b"\xff" * 8), "truncated or of another kind"),
        (_patched(34, struct.pack("<i", -1)), "positions or lengths that cannot be"),
        (_patched(34, struct.pack("<i", 10_000)), "the index needs"),
        (_patched(34 + 24, struct.pack("<q", 1)), "positions or lengths that cannot be"),
        (_patched(34 + 24 + 8 * 4, struct.pack("<q", 0)), "do not follow each other"),
        (_patched(34 + 24 + 48, struct.pack("<q", 3)), "document bounds"),
    ],
)
def test_damaged_indexes(prefix: Path, harm: object, complaint: str, tmp_path: Path) -> None:
    path = Path(f"{prefix}.idx")
    path.write_bytes(harm(path.read_bytes()))  # type: ignore[operator]
    for action in (
        lambda: open_megatron(prefix),
        lambda: prepare([prefix], tmp_path / "c"),
    ):
        with pytest.raises(CorpusError, match=complaint) as caught:
            action()
        assert "\n" not in str(caught.value)


def test_damaged_tokens(prefix: Path) -> None:
    path = Path(f"{prefix}.bin")
    data = path.read_bytes()
    path.write_bytes(data[:-2])
    with pytest.raises(CorpusError, match="the index needs"):
        open_megatron(prefix)
    path.write_bytes(data[:-1])
    with pytest.raises(CorpusError, match="not whole tokens of"):
        open_megatron(prefix)
    path.write_bytes(b"")
    with pytest.raises(CorpusError):
        open_megatron(prefix)
    path.unlink()
    with pytest.raises(CorpusError, match="cannot be opened"):
        open_megatron(prefix)
    with pytest.raises(CorpusError, match="no such corpus"):
        Corpus.open(prefix)


def test_nothing_but_padding(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match="no document with text"):
        open_megatron(_write(tmp_path / "p", [[b"\0"], [b"\1\1"]]))
