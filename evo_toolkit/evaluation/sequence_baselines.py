"""What sequences tell without a network that was trained before: composition, k-mers, positions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evo_data.kmers import kmer_codes
from evo_toolkit.evaluation.genomes import encode

KMERS = (3, 4, 5, 6)
MOST_POSITIONS = 512
"""Sequences of equal length up to here are also described base by base."""


def composition(sequences: Sequence[str]) -> NDArray[np.float64]:
    """Shares of A, C, G and T, and log2 of the length: `[n, 5]`."""
    rows = []
    for sequence in sequences:
        counts = np.array([sequence.count(base) for base in "ACGT"], float)
        rows.append([*(counts / max(1.0, counts.sum())), np.log2(max(1, len(sequence)))])
    return np.array(rows).reshape(len(sequences), 5)


def kmer_features(sequences: Sequence[str], k: int) -> NDArray[np.float32]:
    """Square roots of the shares of all k-mers, as read (strands apart): `[n, 4^k]`.

    The square root keeps a repeat that fills a sequence from outweighing all else.
    """
    result = np.zeros((len(sequences), 4**k), np.float32)
    for row, sequence in enumerate(sequences):
        words, whole = kmer_codes(encode(sequence.encode()), k)
        counts = np.bincount(words[whole].astype(np.int64), minlength=4**k)
        result[row] = np.sqrt(counts / max(1, counts.sum()))
    return result


def one_hot(sequences: Sequence[str]) -> NDArray[np.float32] | None:
    """Which base stands where, `[n, 4 L]`; None unless all have one length, 512 at most.

    With a linear classifier on it this is a position weight matrix fitted to tell the classes apart.
    """
    lengths = {len(sequence) for sequence in sequences}
    if len(lengths) != 1 or max(lengths) > MOST_POSITIONS:
        return None
    codes = encode("".join(sequences).encode()).reshape(len(sequences), -1)
    result = np.zeros((*codes.shape, 5), np.float32)
    np.put_along_axis(result, codes[..., None].astype(np.int64), 1.0, axis=2)
    return result[..., :4].reshape(len(sequences), -1)
