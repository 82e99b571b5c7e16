"""Complements against the definition of the IUPAC codes as sets of bases."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evo_data.alphabet import (
    IUPAC_CODES,
    complement_table,
    is_acgtn,
    is_iupac,
    reverse_complement,
)

PARTNER = {"A": "T", "C": "G", "G": "C", "T": "A"}


@pytest.mark.parametrize("code", IUPAC_CODES)
def test_the_complement_of_a_code_stands_for_the_partners_of_its_bases(code: str) -> None:
    complement = reverse_complement(code.encode()).decode()
    assert set(IUPAC_CODES[complement]) == {PARTNER[base] for base in IUPAC_CODES[code]}


@pytest.mark.parametrize("code", IUPAC_CODES)
def test_case_is_kept(code: str) -> None:
    upper = reverse_complement(code.encode())
    assert reverse_complement(code.lower().encode()) == upper.lower()
    assert upper.isupper()


def test_by_hand() -> None:
    assert reverse_complement(b"AACGTNryK") == b"MryNACGTT"
    assert reverse_complement(b"ACGU") == b"ACGT"
    assert reverse_complement(b"") == b""


def test_other_bytes_are_left_alone() -> None:
    table = complement_table()
    nucleotides = set("".join(IUPAC_CODES) + "".join(IUPAC_CODES).lower())
    assert len(table) == 256
    assert all(table[byte] == byte for byte in range(256) if chr(byte) not in nucleotides)


@given(st.text(alphabet="ACGTRYSWKMBDHVNacgtryswkmbdhvn"))
def test_twice_is_the_identity(sequence: str) -> None:
    assert reverse_complement(reverse_complement(sequence.encode())) == sequence.encode()


@pytest.mark.parametrize(
    ("sequence", "acgtn", "iupac"),
    [
        ("ACGTN", True, True),
        ("acgtn", True, True),
        ("ACGR", False, True),
        ("ACGX", False, False),
        ("A-C", False, False),
        ("", False, False),
        ("Ä", False, False),
    ],
)
def test_alphabets(sequence: str, acgtn: bool, iupac: bool) -> None:
    assert is_acgtn(sequence) is acgtn
    assert is_iupac(sequence) is iupac
