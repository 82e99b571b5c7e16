"""What the letters of a genome file mean to a model, and whether they are nucleotides at all."""

from __future__ import annotations

# A record of which more letters than this stand for no nucleotide is a protein or an alignment.
_MOST_OTHER_LETTERS = 0.1

_AS_READ = bytearray(b"N" * 256)
for _letter in range(ord("a"), ord("z") + 1):
    _AS_READ[_letter] = ord("n")
for _from, _to in zip(b"ACGTUacgtu", b"ACGTTacgtt", strict=True):
    _AS_READ[_from] = _to
_AS_READ_TABLE = bytes(_AS_READ)
# X is how some programs mask.
_NUCLEOTIDES = b"ACGTURYSWKMBDHVNXacgturyswkmbdhvnx"
_LOWER_LETTERS = bytes(range(ord("a"), ord("z") + 1))


def as_read(letters: bytes) -> bytes:
    """Return a sequence as models read it: U is T, all but A, C, G, T is N; case is kept.

    The same as `evo_data.fasta` does for scoring, but for the case.
    """
    return letters.translate(_AS_READ_TABLE)


def num_acgt(sequence: bytes) -> int:
    """Return how many letters are A, C, G or T in either case."""
    return len(sequence) - len(sequence.translate(None, b"ACGTacgt"))


def num_lower(sequence: bytes) -> int:
    """Return how many letters are lower-case."""
    return len(sequence) - len(sequence.translate(None, _LOWER_LETTERS))


def why_unusable(letters: bytes) -> str | None:
    """Return why a sequence cannot be used, or None if it can."""
    if not letters:
        return "no sequence"
    others = letters.translate(None, _NUCLEOTIDES)
    num_bases = len(letters) - len(letters.translate(None, b"ACGTUNXacgtunx"))
    if len(others) <= _MOST_OTHER_LETTERS * len(letters) and 2 * num_bases >= len(letters):
        return None
    if 0 in others:
        return "binary data"
    shown = "".join(sorted({chr(letter) for letter in others[:10_000]}))
    if not others:
        return "mostly ambiguity codes: a protein?"
    return (
        f"not nucleotides: {len(others)} of {len(letters)} letters stand for none ({shown[:20]!a})"
    )
