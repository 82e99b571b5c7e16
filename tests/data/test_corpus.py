"""Corpora: every byte that was written comes back, by any route, in any process."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evo_data.corpus import packed as packed_module
from evo_data.corpus.packed import Intervals, PackedSequence, pack, unpack


def _packed(folder: Path, pieces: list[bytes]) -> PackedSequence:
    """Write pieces back to back, their intervals found piece by piece as `prepare` does."""
    position, intervals = 0, []
    for piece in pieces:
        intervals.append(Intervals.of(np.frombuffer(piece, np.uint8), position))
        position += len(piece)
    whole = np.frombuffer(b"".join(pieces), np.uint8)
    (folder / "sequence.bin").write_bytes(pack(whole).tobytes())
    Intervals(*(np.concatenate(part) for part in zip(*intervals, strict=True))).save(
        folder / "intervals.npz"
    )
    return PackedSequence(folder / "sequence.bin", folder / "intervals.npz")


def test_packing_puts_the_first_base_in_the_lowest_bits() -> None:
    assert pack(np.frombuffer(b"ACGT", np.uint8)).tolist() == [0 | 1 << 2 | 2 << 4 | 3 << 6]
    assert pack(np.frombuffer(b"TNac g", np.uint8)).tolist() == [3 | 0 | 0 | 1 << 6, 0 | 2 << 2]
    assert unpack(np.array([0b00011011], np.uint8)).tobytes() == b"TGCA"


def test_intervals_by_hand() -> None:
    found = Intervals.of(np.frombuffer(b"ACNNRraanT|d", np.uint8), 100)
    assert found.other_start.tolist() == [102, 104, 108, 110, 111]
    assert found.other_end.tolist() == [104, 106, 109, 111, 112]
    assert bytes(found.other_byte) == b"NRN|D"
    assert found.lower_start.tolist() == [105, 111]
    assert found.lower_end.tolist() == [109, 112]


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.text("ACGTacgtNnRr|_;5~@", min_size=1, max_size=90), min_size=1, max_size=6),
    block=st.sampled_from([1, 3, 4, 64, 1 << 22]),
)
def test_any_slice_of_a_packed_sequence(
    pieces: list[str], block: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = "".join(pieces).encode()
    sequence = _packed(tmp_path_factory.mktemp("packed"), [piece.encode() for piece in pieces])
    patch = pytest.MonkeyPatch()
    patch.setattr(packed_module, "_BLOCK", block)
    try:
        for start in range(0, len(data), 7):
            for stop in (start + 1, min(start + 13, len(data)), len(data)):
                assert sequence.read(start, stop).tobytes() == data[start:stop]
    finally:
        patch.undo()


def test_many_runs_in_one_slice(tmp_path: Path) -> None:
    rng = random.Random(0)
    data = "".join(rng.choices("ACGTacgtNn", k=5000)).encode()
    sequence = _packed(tmp_path, [data])
    for _ in range(200):
        start = rng.randrange(len(data))
        stop = rng.randint(start, len(data))
        assert sequence.read(start, stop).tobytes() == data[start:stop]
