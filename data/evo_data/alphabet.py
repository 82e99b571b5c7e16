"""The nucleotide alphabet: IUPAC codes and their complements."""

from __future__ import annotations

BASES = "ACGT"
"""The four bases, in the order used wherever bases are columns."""

IUPAC_CODES = {
    "A": "A", "C": "C", "G": "G", "T": "T", "U": "T",
    "R": "AG", "Y": "CT", "S": "CG", "W": "AT", "K": "GT", "M": "AC",
    "B": "CGT", "D": "AGT", "H": "ACT", "V": "ACG", "N": "ACGT",
}  # fmt: skip
"""Each IUPAC nucleotide code and the bases that it stands for."""

_CODES = "ACGTURYSWKMBDHVN"
_COMPLEMENTS = "TGCAAYRSWMKVHDBN"
_COMPLEMENT = bytes.maketrans(
    (_CODES + _CODES.lower()).encode(), (_COMPLEMENTS + _COMPLEMENTS.lower()).encode()
)
_ACGTN = frozenset("ACGTNacgtn")
_IUPAC = frozenset(_CODES + _CODES.lower())


def complement_table() -> bytes:
    """Return the 256-byte table that complements every IUPAC code and keeps its case.

    U becomes A (as T does); the complement of A is T. Other bytes map to themselves.
    """
    return _COMPLEMENT


def reverse_complement(sequence: bytes) -> bytes:
    """Return the other strand of a sequence, 5' to 3': full IUPAC, case kept, U read as T."""
    return sequence.translate(_COMPLEMENT)[::-1]


def is_acgtn(sequence: str) -> bool:
    """Return whether a sequence is not empty and holds nothing but A, C, G, T and N (any case)."""
    return bool(sequence) and _ACGTN.issuperset(sequence)


def is_iupac(sequence: str) -> bool:
    """Return whether a sequence is not empty and holds nothing but IUPAC codes (any case)."""
    return bool(sequence) and _IUPAC.issuperset(sequence)
