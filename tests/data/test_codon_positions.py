"""Codon positions against codons spelled out."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evo_data.codon_positions import CodingRun, CodonPositions, read_codon_positions
from evo_data.errors import EvoDataError


def as_text(positions: Any) -> str:
    return "".join("." if p < 0 else str(p) for p in positions)


def test_strands_phases_and_overlaps(make_corpus: Any, tmp_path: Path) -> None:
    corpus = make_corpus([b"A" * 30, b"C" * 20], [b"G" * 9])
    lines = [
        "##gff-version 3",
        "g0r0\tx\tgene\t1\t30\t.\t+\t.\tID=g",
        "g0r0\tx\tCDS\t3\t8\t.\t+\t0\tParent=a",
        "g0r0\tx\tCDS\t11\t14\t.\t+\t2\tParent=a",
        "g0r0\tx\tCDS\t20\t27\t.\t-\t1\tParent=b",
        "g0r1\tx\tCDS\t1\t6\t.\t+\t.\tParent=c",
        "g0r1\tx\tCDS\t4\t9\t.\t+\t0\tParent=d",  # in frame with c
        "g0r1\tx\tCDS\t8\t13\t.\t+\t0\tParent=e",  # out of frame with d
        "chrM\tx\tCDS\t1\t6\t.\t+\t0\tParent=elsewhere",
        "##FASTA",
        "g0r0\tx\tCDS\t1\t3\t.\t+\t0\tno feature",
    ]
    path = tmp_path / "a.gff3.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    positions = read_codon_positions([path], corpus)
    assert positions.num_runs == 6
    assert as_text(positions.read(0, 0, 30)) == "..012012..1201.....02102102..."
    assert as_text(positions.read(1, 0, 20)) == "0120120..2012......."
    assert as_text(positions.read(2, 0, 9)) == "." * 9


def test_a_range_is_part_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    for _ in range(100):
        runs = []
        for _ in range(int(rng.integers(1, 8))):
            start = int(rng.integers(0, 90))
            stop = start + int(rng.integers(1, 40))
            runs.append(CodingRun(start, stop, bool(rng.integers(2)), int(rng.integers(3))))
        positions = CodonPositions({0: runs})
        whole = positions.read(0, 0, 150)
        low = int(rng.integers(0, 150))
        high = int(rng.integers(low, 151))
        np.testing.assert_array_equal(positions.read(0, low, high), whole[low:high])
        for at in range(150):
            own = {
                ((r.stop - 1 - at if r.reverse else at - r.start) - r.phase) % 3
                for r in runs
                if r.start <= at < r.stop
            }
            assert whole[at] == (own.pop() if len(own) == 1 else -1)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("g0r0\tx\tCDS\t0\t3\t.\t+\t0\t", "line 1: not a CDS"),
        ("g0r0\tx\tCDS\t1\t3\t.\t?\t0\t", "line 1: a CDS on strand"),
        ("g0r0\tx\tCDS\t1\t3\t.\t+\t3\t", "line 1: not a CDS"),
        ("g0r0\tx\tCDS\tone\t3\t.\t+\t0\t", "line 1: not a CDS"),
        ("g0r0\tx\tCDS\t1\t31\t.\t+\t0\t", "ends at 31, but g0r0 has 30 bases"),
        ("chr\tx\tCDS\t1\t3\t.\t+\t0\t", "no CDS on any record"),
    ],
)
def test_wrong_annotations(make_corpus: Any, tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.gff"
    path.write_text(line + "\n")
    with pytest.raises(EvoDataError, match=message):
        read_codon_positions([path], make_corpus([b"A" * 30]))
    with pytest.raises(EvoDataError, match="cannot read"):
        read_codon_positions([tmp_path / "absent"], make_corpus([b"A" * 30]))
