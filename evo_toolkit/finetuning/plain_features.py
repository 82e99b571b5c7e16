"""What sequences and variants tell without any network: features of the baselines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import CODES
from evo_data.kmers import kmer_codes
from evo_toolkit.finetuning.examples import Examples
from evo_toolkit.statistics import Floats

COMPOSITION, KMERS = "composition", "4-mers"


def plain_features(examples: Examples) -> dict[str, NDArray[np.floating]]:
    """What a classifier sees without any network: composition, and 4-mers, each `[n, F]`.

    Of variants: the change of base, its neighbours, and whether bases are gained or lost.
    """
    if examples.kind == "variant":
        return {COMPOSITION: _change_features(examples)}
    return {
        COMPOSITION: composition(examples.sequences),
        KMERS: kmer_features(examples.sequences, 4),
    }


def composition(sequences: Sequence[str]) -> Floats:
    """Shares of A, C, G and T, and log2 of the length: `[n, 5]`."""
    rows = [[*kmer_shares(text, 1), np.log2(max(1, len(text)))] for text in sequences]
    return np.array(rows, np.float64).reshape(len(sequences), 5)


def kmer_features(sequences: Sequence[str], k: int) -> NDArray[np.float32]:
    """Square roots of the shares of all k-mers, as read (strands apart): `[n, 4^k]`.

    The square root keeps a repeat that fills a sequence from outweighing all else.
    """
    found = np.zeros((len(sequences), 4**k), np.float32)
    for row, sequence in enumerate(sequences):
        found[row] = np.sqrt(kmer_shares(sequence, k))
    return found


def kmer_shares(sequence: str, k: int) -> Floats:
    """Share of each k-mer of a sequence, as read, `[4^k]`; k-mers with an N count for none, nor if there is none."""
    words, whole = kmer_codes(CODES[np.frombuffer(sequence.encode(), np.uint8)], k)
    counts = np.bincount(words[whole].astype(np.int64), minlength=4**k)
    shares: Floats = counts / max(1, counts.sum())
    return shares


def _change_features(examples: Examples) -> Floats:
    """Substitution (16), the bases on either side (8), and log2 of bases gained and lost (2)."""
    found = np.zeros((len(examples), 26))
    for row, windows in enumerate(examples.windows):
        window = windows[0]
        ref, alt = (CODES[w[slice(*at)]] for w, at in ((window.ref, window.ref_allele), (window.alt, window.alt_allele)))  # fmt: skip
        if ref.size == alt.size == 1 and max(ref[0], alt[0]) < 4:
            found[row, 4 * ref[0] + alt[0]] = 1
        before, after = window.ref_allele[0] - 1, window.ref_allele[1]
        for offset, at in ((16, before), (20, after)):
            if 0 <= at < len(window.ref) and CODES[window.ref[at]] < 4:
                found[row, offset + int(CODES[window.ref[at]])] = 1
        found[row, 24:] = np.log2(
            [1 + max(0, alt.size - ref.size), 1 + max(0, ref.size - alt.size)]
        )
    return found
