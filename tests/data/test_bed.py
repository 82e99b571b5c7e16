"""The reader of BED files that every command shares."""

import gzip
from pathlib import Path

import pytest

from evo_data.bed import BedLine, read_bed
from evo_data.errors import EvoDataError

TEXT = 'track name="x"\n# a note\n\nchr1\t0\t10\n2 5 5 name 0 -\r\nchr 3\t7\t9\tn\n'


@pytest.mark.parametrize("opened", [open, gzip.open])
def test_lines(tmp_path: Path, opened: object) -> None:
    path = tmp_path / "x.bed"
    with opened(path, "wt", newline="") as file:  # type: ignore[operator]
        file.write(TEXT)
    assert list(read_bed(path)) == [
        BedLine("chr1", 0, 10, (), f"{path}: line 4"),
        BedLine("2", 5, 5, ("name", "0", "-"), f"{path}: line 5"),
        BedLine("chr 3", 7, 9, ("n",), f"{path}: line 6"),
    ]


@pytest.mark.parametrize(
    "line",
    ["chr1", "chr1\t1", "chr1\tx\t3", "chr1\t1\t2.0", "chr1\t-1\t3", "chr1\t+1\t3", "chr1\t1_0\t30",
     "chr1\t\u0661\t3", "\t1\t3", "chr1\t5\t4", "chr1 \t\t7"],
)  # fmt: skip
def test_what_is_no_interval_is_refused_with_its_line(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.bed"
    path.write_text(f"chr1\t0\t1\n{line}\n", encoding="utf-8")
    with pytest.raises(EvoDataError, match=r"x\.bed: line 2\b\b"):
        list(read_bed(path))


@pytest.mark.parametrize("keep", [3, 20])
def test_damaged_gzip_is_one_error(tmp_path: Path, keep: int) -> None:
    path = tmp_path / "x.bed.gz"
    whole = gzip.compress(b"chr1\t0\t10\n" * 1000)
    path.write_bytes(whole[:keep] + bytes(30))
    with pytest.raises(EvoDataError, match=r"x\.bed\.gz"):
        list(read_bed(path))
