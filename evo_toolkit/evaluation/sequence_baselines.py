"""What sequences tell base by base, for baselines; see `evo_toolkit.finetuning.plain_features` too."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.evaluation.genomes import encode

KMERS = (3, 4, 5, 6)
"""Lengths of the k-mers that baselines choose from."""
MOST_POSITIONS = 512
"""Sequences of equal length up to here are also described base by base."""


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
