"""0-based half-open intervals and their 1-based inclusive text."""

import pytest

from evo_data.errors import EvoDataError
from evo_data.interval import Interval


def test_a_region_is_1_based_and_inclusive() -> None:
    interval = Interval.from_region("chr1:1-10")
    assert (interval.contig, interval.start, interval.end) == ("chr1", 0, 10)
    assert interval.length == 10
    assert interval.region == "chr1:1-10"


def test_commas_and_colons() -> None:
    assert Interval.from_region("chr1:1,001-2,000") == Interval("chr1", 1000, 2000)
    hla = Interval.from_region("HLA-A*01:01:01:01:3-3", "-")
    assert hla == Interval("HLA-A*01:01:01:01", 2, 3, "-")


@pytest.mark.parametrize(
    "text", ["chr1", "chr1:5", "chr1:0-5", "chr1:6-5", ":1-5", "chr1:,-5", "chr1:-1-5", ""]
)
def test_bad_regions(text: str) -> None:
    with pytest.raises(EvoDataError, match="region"):
        Interval.from_region(text)


@pytest.mark.parametrize(("start", "end", "strand"), [(-1, 5, "+"), (6, 5, "+"), (0, 1, "x")])
def test_bad_intervals(start: int, end: int, strand: str) -> None:
    with pytest.raises(EvoDataError):
        Interval("chr1", start, end, strand)


def test_reverse_keeps_the_coordinates() -> None:
    interval = Interval("chr1", 3, 7)
    assert interval.reverse() == Interval("chr1", 3, 7, "-")
    assert interval.reverse().reverse() == interval
    assert Interval("chr1", 4, 4).length == 0
