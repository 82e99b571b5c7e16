"""From windows to the batches of a rank, in an order that every number of ranks shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from evo_data.batches import collate, step_samples
from evo_data.codon_positions import OUTSIDE, CodonPositions
from evo_data.training_windows import TrainingWindows, Window
from evo_toolkit.errors import UsageError

Sample = TypeVar("Sample")


@dataclass(frozen=True, slots=True)
class Row:
    """A window on its way to a batch.

    Attributes:
        window: The window.
        counts: False for a row that only fills a batch up.
        codon_position: Of each token, int8 `[L + 1]`, where annotations were given.
    """

    window: Window
    counts: bool
    codon_position: NDArray[np.int8] | None = None


class WindowDataset(Dataset[Row]):
    """Samples by number: `n` counts windows across epochs; `~n` is the same with no weight."""

    def __init__(
        self, windows: TrainingWindows, codon_positions: CodonPositions | None = None
    ) -> None:
        self.windows = windows
        self.codon_positions = codon_positions

    def __len__(self) -> int:
        return len(self.windows)

    def __getitem__(self, number: int) -> Row:
        counts = number >= 0
        window = self.windows.sample(number if counts else ~number)
        if self.codon_positions is None:
            return Row(window, counts)
        positions = np.full(window.tokens.size, OUTSIDE, np.int8)
        for record, start, stop, at in window.pieces:
            own = self.codon_positions.read(record, start, stop)
            positions[at : at + own.size] = own if window.strand == "+" else own[::-1]
        return Row(window, counts, positions)


class ResumableBatches(Sampler[list[int]]):
    """Batches of training samples of one rank, from where the run is to the end of its epoch.

    Every epoch has the same number of batches, enough for its V windows and for whole optimizer
    steps; what the last ones take beyond the V windows are the first of the next epoch.
    """

    def __init__(
        self,
        num_windows: int,
        *,
        batch_size: int,
        rank: int,
        num_ranks: int,
        consumed: Callable[[], int],
        accumulate: int = 1,
    ) -> None:
        """Deal `num_windows` to an epoch.

        Args:
            batch_size: Rows of a batch, on each rank.
            rank, num_ranks: This rank, from 0, of how many.
            consumed: Says how many samples the run has used when an epoch begins or goes on.
            accumulate: Batches to an optimizer step.
        """
        self.batch_size = batch_size
        self.rank = rank
        self.num_ranks = num_ranks
        self._consumed = consumed
        self._num_batches = accumulate * -(-num_windows // (batch_size * num_ranks * accumulate))

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[list[int]]:
        consumed = self._consumed()
        done = consumed // (self.batch_size * self.num_ranks) % self._num_batches
        batches = step_samples(
            consumed, batch_size=self.batch_size, rank=self.rank, num_ranks=self.num_ranks
        )
        for _ in range(done, self._num_batches):
            yield next(batches)


class EvaluationBatches(Sampler[list[int]]):
    """Every window once over all ranks, in equal numbers of full batches on each.

    What is missing in the last batches is filled with windows of no weight, so that no rank waits
    for another and every batch has the same shape.
    """

    def __init__(self, num_windows: int, *, batch_size: int, rank: int, num_ranks: int) -> None:
        self._num_windows = num_windows
        self._batch_size = batch_size
        self._rank = rank
        self._num_ranks = num_ranks

    def __len__(self) -> int:
        return -(-self._num_windows // (self._batch_size * self._num_ranks))

    def __iter__(self) -> Iterator[list[int]]:
        batches = step_samples(
            0, batch_size=self._batch_size, rank=self._rank, num_ranks=self._num_ranks
        )
        for _ in range(len(self)):
            yield [
                number if number < self._num_windows else ~(number % self._num_windows)
                for number in next(batches)
            ]


def dealt_rank(trainer: Any) -> tuple[int, int]:
    """This process among those that read different samples, from 0, and their number.

    Raises:
        UsageError: if the trainer would deal samples a second time.
    """
    dealt = None
    if trainer is not None:
        dealt = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
    if dealt is None:
        return 0, 1
    if trainer._accelerator_connector.use_distributed_sampler and dealt["num_replicas"] > 1:
        raise UsageError(
            "trainer.use_distributed_sampler is true, which would deal the samples to the ranks "
            "a second time; set it to false"
        )
    return int(dealt["rank"]), int(dealt["num_replicas"])


class TrainingLoader(DataLoader[Sample]):
    """A loader that Lightning takes for resumable; its place follows from the data module's state."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


def batch_of(rows: Sequence[Row]) -> dict[str, Tensor]:
    """Return a batch: `input_ids`, `targets` int64 and `weights` float32 `[B, L]`, `group` `[B]`.

    With annotations also `codon_position` int64 `[B, L]` of each target: 0, 1, 2, or -1 outside.
    """
    arrays = collate([row.window for row in rows])
    batch = {name: torch.from_numpy(array) for name, array in arrays.items()}
    for at, row in enumerate(rows):
        if not row.counts:
            batch["weights"][at] = 0
    positions = [row.codon_position[1:] for row in rows if row.codon_position is not None]
    if positions:
        batch["codon_position"] = torch.from_numpy(np.stack(positions).astype(np.int64))
    return batch
