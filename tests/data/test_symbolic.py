"""Symbolic alleles as bases; expected values by hand."""

from __future__ import annotations

import pytest

from evo_data.symbolic import resolve
from evo_data.variant import AlleleStatus
from evo_data.vcf import parse_record

#         1234567890123456
GENOME = b"ACGTTGCAAGGTCCAT"


def resolved(
    alt: str, info: str, pos: int = 4, ref: str = "T", number: int = 0, max_allele: int = 8
) -> tuple[int, str, str] | str:
    line = f"c\t{pos}\t.\t{ref}\t{alt}\t.\t.\t{info}\n".encode()
    record = parse_record(line, 1, 8, "x")
    found = resolve(
        record, number, lambda start, end: GENOME[start:end], len(GENOME), max_allele=max_allele
    )
    if isinstance(found, AlleleStatus):
        return found.value
    return found.pos, found.ref, found.alt


@pytest.mark.parametrize(
    ("alt", "info", "expected"),
    [
        ("<DEL>", "END=7", (4, "TTGC", "T")),
        ("<DEL>", "SVTYPE=DEL;SVLEN=-3", (4, "TTGC", "T")),
        ("<DEL>", "SVLEN=3", (4, "TTGC", "T")),
        ("<DEL>", "END=7;SVLEN=-3", (4, "TTGC", "T")),
        ("<DEL:ME:ALU>", "END=7", (4, "TTGC", "T")),
        ("<del>", "END=7", (4, "TTGC", "T")),
        ("<DUP>", "END=7", (4, "T", "TTGC")),
        ("<DUP:TANDEM>", "END=7;SVLEN=3", (4, "T", "TTGC")),
        ("<INV>", "END=7", (4, "TTGC", "TGCA")),
        ("<INV>", "END=7;SVLEN=0", (4, "TTGC", "TGCA")),
        ("<INS>", "SVLEN=3;SVINSSEQ=gga", (4, "T", "TGGA")),
        ("<INS>", "SEQ=GGA", (4, "T", "TGGA")),
    ],
)
def test_what_is_resolved(alt: str, info: str, expected: tuple[int, str, str]) -> None:
    assert resolved(alt, info) == expected
    assert resolved(alt, info, ref="N") == expected
    assert resolved(alt, info, ref="A") == "ref_mismatch"


@pytest.mark.parametrize(
    ("alt", "info", "expected"),
    [
        ("<DEL>", ".", "symbolic"),
        ("<DEL>", "END=7;SVLEN=-4", "symbolic"),
        ("<DEL>", "END=4", "symbolic"),
        ("<DEL>", "END=2", "symbolic"),
        ("<DEL>", "END=7;IMPRECISE", "symbolic"),
        ("<DEL>", "END=7;IMPRECISE;CIPOS=-5,5", "symbolic"),
        ("<DEL>", "SVLEN=.", "symbolic"),
        ("<DUP:ME>", "END=7", "symbolic"),
        ("<INS>", "SVLEN=3", "symbolic"),
        ("<INS>", "SEQ=GGR", "symbolic"),
        ("<INS:ME:ALU>", "SEQ=GGA", "symbolic"),
        ("<CNV>", "END=7", "symbolic"),
        ("<NON_REF>", "END=7", "symbolic"),
        ("<*>", "END=7", "symbolic"),
        ("<DEL>", "END=13", "too_long"),
        ("<INS>", "SEQ=ACGTACGTA", "too_long"),
        ("<DEL>", "END=17", "too_long"),
    ],
)
def test_what_is_not(alt: str, info: str, expected: str) -> None:
    assert resolved(alt, info) == expected


def test_the_end_of_the_contig() -> None:
    assert resolved("<DEL>", "END=16", pos=14, ref="C") == (14, "CAT", "C")
    assert resolved("<DEL>", "END=17", pos=14, ref="C") == "out_of_range"
    assert resolved("<DEL>", "END=20", pos=17, ref="C") == "out_of_range"
    assert resolved("<DEL>", "SVLEN=2", pos=0, ref="N") == "out_of_range"


def test_several_alleles_need_a_length_each() -> None:
    info = "SVLEN=-2,-3;END=7"
    assert resolved("<DEL>,<DEL>", info) == (4, "TTG", "T")
    assert resolved("<DEL>,<DEL>", info, number=1) == (4, "TTGC", "T")
    assert resolved("<DEL>,<DEL>", "END=7", number=1) == "symbolic"
    assert resolved("<DEL>,<INS>", "END=7;SEQ=G", number=1) == "symbolic"
