"""The counts line."""

from __future__ import annotations

from evo_data.variant import AlleleStatus
from evo_data.vcf import VcfRecord
from evo_toolkit.variants.scores import AlleleScore, ScoredRecord
from evo_toolkit.variants.summary import Summary

RECORD = VcfRecord(b"", b"\n", 1, "1", 1, ".", "A", ("C",), (), b".")


def scored(*alleles: AlleleScore) -> ScoredRecord:
    return ScoredRecord(RECORD, alleles)


def ok(dll: float, *flags: str) -> AlleleScore:
    return AlleleScore(status=AlleleStatus.OK, alt="C", dll=dll, flags=flags)


def not_ok(status: AlleleStatus, *flags: str) -> AlleleScore:
    return AlleleScore(status=status, alt="C", flags=flags)


def test_counts_line() -> None:
    summary = Summary(num_filtered=1)
    summary.add(scored(ok(1.0, "window_shifted"), not_ok(AlleleStatus.STAR)))
    summary.add(scored(ok(-1.0, "window_shifted", "n_in_window")))
    summary.add(scored(not_ok(AlleleStatus.SYMBOLIC), not_ok(AlleleStatus.SYMBOLIC)))
    assert summary.text() == (
        "scored 2 alleles of 5 in 3 records; not scored: 2 symbolic, 1 star; "
        "flags: 2 window_shifted, 1 n_in_window; left out by the filter: 1 record"
    )
    assert not summary.nothing_scored


def test_one_of_one() -> None:
    summary = Summary()
    summary.add(scored(ok(0.0)))
    assert summary.text() == "scored 1 allele of 1 in 1 record"


def test_line_does_not_depend_on_the_order() -> None:
    statuses = [AlleleStatus.STAR, AlleleStatus.SYMBOLIC, AlleleStatus.BREAKEND]
    texts = set()
    for order in (statuses, statuses[::-1]):
        summary = Summary()
        for status in order:
            summary.add(scored(not_ok(status)))
        texts.add(summary.text())
    assert texts == {
        "scored 0 alleles of 3 in 3 records; not scored: 1 breakend, 1 star, 1 symbolic"
    }


def test_nothing_scored_is_not_the_same_as_nothing_there() -> None:
    summary = Summary()
    assert not summary.nothing_scored
    assert summary.text() == "scored 0 alleles of 0 in 0 records"
    summary.add(scored(not_ok(AlleleStatus.MISSING_ALT)))
    assert summary.nothing_scored
