"""Which samples a rank reads, and rows of a batch from windows.

The samples of a run are numbered from 0, across epochs (`TrainingWindows.sample`). Of R ranks with
B rows each, one step takes R * B consecutive samples, and rank r those whose number leaves r when
divided by R, counted from where the step begins. So what a run has read is one number, the samples
consumed, and a run that goes on with other ranks, rows or loader workers reads what it would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from evo_data.errors import EvoDataError
from evo_data.training_windows import Window


class Batch(TypedDict):
    """Rows of a batch, B by L.

    Attributes:
        input_ids: Upper-case bytes, int64 `[B, L]`.
        targets: The token after each input, int64 `[B, L]`.
        weights: Weight of each target in the loss, float32 `[B, L]`; 0 excludes it.
        group: Index of each row's group, int64 `[B]`.
    """

    input_ids: NDArray[np.int64]
    targets: NDArray[np.int64]
    weights: NDArray[np.float32]
    group: NDArray[np.int64]


def step_samples(
    consumed: int, *, batch_size: int, rank: int = 0, num_ranks: int = 1
) -> Iterator[list[int]]:
    """Yield the sample numbers of a rank's batches, step after step, without end.

    Args:
        consumed: Samples that all ranks have read before.
        batch_size: Rows of a batch on one rank.
        rank, num_ranks: This rank, from 0, of how many.

    Raises:
        EvoDataError: if an argument is out of range.
    """
    if consumed < 0 or batch_size < 1 or not 0 <= rank < num_ranks:
        raise EvoDataError(
            f"{consumed} samples consumed, {batch_size} rows, rank {rank} of {num_ranks}: "
            "counts are 0 or more, rows at least 1, ranks from 0"
        )
    while True:
        yield [consumed + rank + num_ranks * row for row in range(batch_size)]
        consumed += num_ranks * batch_size


def collate(windows: Sequence[Window]) -> Batch:
    """Return the batch whose rows are the given windows."""
    tokens = np.stack([window.tokens for window in windows]).astype(np.int64)
    return Batch(
        input_ids=np.ascontiguousarray(tokens[:, :-1]),
        targets=np.ascontiguousarray(tokens[:, 1:]),
        weights=np.stack([window.target_weight for window in windows]),
        group=np.array([window.group for window in windows], np.int64),
    )
