"""A data module of random windows from one FASTA, for tests of training alone.

Sample number s of a run is a function of (seed, s): any number of ranks and workers reads the same
stream, and its whole state is how many samples have been consumed.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

_WEIGHTS = torch.zeros(256)
_WEIGHTS[list(b"ACGT")] = 1.0
_WEIGHTS[list(b"acgt")] = 0.1


class _Stream(IterableDataset[dict[str, Tensor]]):
    def __init__(self, data: ToyData, first: int, rank: int, ranks: int) -> None:
        self.data, self.first, self.rank, self.ranks = data, first, rank, ranks

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        number = self.first + self.rank
        while True:
            yield self.data.sample(number)
            number += self.ranks


class ToyData(LightningDataModule):
    """Batches `[B, L]` with weights that differ from window to window."""

    group_names = ("even", "odd")

    def __init__(
        self,
        genomes: str,
        context_length: int = 64,
        batch_size: int = 4,
        seed: int = 0,
        codons: bool = False,
        poison_from: int | None = None,
        poison_count: int = 10**9,
    ) -> None:
        super().__init__()
        self.context_length, self.batch_size, self.seed = context_length, batch_size, seed
        lines = Path(genomes).read_text().splitlines()
        text = "".join(line for line in lines if not line.startswith(">"))
        self.text = torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())
        self.codons = codons
        self.poison_from, self.poison_count = poison_from, poison_count
        self.consumed = 0
        self._at_start = 0

    def sample(self, number: int) -> dict[str, Tensor]:
        generator = np.random.default_rng((self.seed, number))
        start = int(generator.integers(len(self.text) - self.context_length - 1))
        raw = self.text[start : start + self.context_length + 1].clone()
        # Unequal weights: a mean of means would differ from the global mean.
        lower = int(generator.integers(self.context_length))
        raw[:lower] |= 0x20
        weights = _WEIGHTS[raw.long()][1:].clone()
        if self.poison_from is not None and 0 <= number - self.poison_from < self.poison_count:
            weights[0] = float("nan")
        tokens = (raw & 0xDF).long()
        batch = {
            "input_ids": tokens[:-1],
            "targets": tokens[1:],
            "weights": weights,
            "group": torch.tensor(number % 2),
        }
        if self.codons:
            batch["codon_position"] = torch.arange(self.context_length) % 3
        return batch

    def train_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        trainer: Any = self.trainer
        self._at_start = trainer.fit_loop.epoch_loop.batch_progress.total.ready
        stream = _Stream(self, self.consumed, *self._dealt())
        return DataLoader(stream, batch_size=self.batch_size)

    def val_dataloader(self) -> DataLoader[dict[str, Tensor]]:
        samples = [self.sample(10**6 + i) for i in range(4)]
        return DataLoader(samples, batch_size=2)  # type: ignore[arg-type]

    def state_dict(self) -> dict[str, Any]:
        trainer: Any = self.trainer
        done = trainer.fit_loop.epoch_loop.batch_progress.total.ready - self._at_start
        return {"consumed": self.consumed + done * self.batch_size * self._dealt()[1]}

    def _dealt(self) -> tuple[int, int]:
        trainer: Any = self.trainer
        dealt = getattr(trainer.strategy, "distributed_sampler_kwargs", None)
        return (0, 1) if dealt is None else (dealt["rank"], dealt["num_replicas"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.consumed = state_dict["consumed"]
