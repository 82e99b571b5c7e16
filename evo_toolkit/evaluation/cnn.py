"""A small convolutional network trained on the task alone: the baseline of those who train one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from evo_toolkit.evaluation.genomes import encode
from evo_toolkit.evaluation.supervised import (
    Outcome,
    fold_numbers,
    measure,
    part_of,
)
from evo_toolkit.finetuning.metrics import Indices
from evo_toolkit.statistics import Floats

CHANNELS = 48
HELD_OUT = 8
"""One part in so many of the training part says when to stop."""
BINS = 8
"""Parts of a sequence that are pooled on their own, so that the network can tell where a motif is."""


class SmallCnn(nn.Module):
    """Two convolutions (11 and 7 bases), maxima of 8 parts, and a linear layer.

    Shapes: bases `[B, 4, L]` one-hot, unknown bases all zero; outputs `[B, K]`.
    """

    def __init__(self, outputs: int) -> None:
        """Draw the weights from the global generator."""
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv1d(4, CHANNELS, 11, padding=5), nn.BatchNorm1d(CHANNELS), nn.ReLU(),
            nn.Conv1d(CHANNELS, CHANNELS, 7, padding=3), nn.BatchNorm1d(CHANNELS), nn.ReLU(),
            nn.AdaptiveMaxPool1d(BINS), nn.Flatten(), nn.Dropout(0.3),
            nn.Linear(CHANNELS * BINS, outputs),
        )  # fmt: skip

    def forward(self, bases: Tensor) -> Tensor:
        """`[B, 4, L]` to `[B, K]`."""
        y: Tensor = self.layers(bases)
        return y


@dataclass(eq=False)
class CnnPredictor:
    """Trains a `SmallCnn`, stopping where held-out groups of the training part are told best.

    Attributes:
        sequences: Of all examples; shorter ones are filled up with unknown bases.
        device: Where to train.
        epochs: At most.
        patience: Epochs without improvement after which it stops.
        seed: Of weights, order and the inner split.
        chosen: Epoch whose weights were kept, of every call.
    """

    sequences: Sequence[str]
    device: str = "cpu"
    epochs: int = 30
    patience: int = 5
    batch: int = 64
    seed: int = 0
    chosen: list[int] = field(default_factory=list)

    def __call__(self, outcome: Outcome, train: Indices, test: Indices) -> Floats:
        """Train on `train`, return the scores of `test`."""
        devices = [self.device] if self.device.startswith("cuda") else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(self.seed)
            return self._run(outcome, train, test)

    def _run(self, outcome: Outcome, train: Indices, test: Indices) -> Floats:
        bases = self._one_hot()
        targets = torch.from_numpy(np.asarray(outcome.targets))
        part = part_of(outcome, train)
        inner = fold_numbers(part, min(HELD_OUT, np.unique(part.groups).size), self.seed)
        rest, held = train[inner != 0], train[inner == 0]
        shift, scale = 0.0, 1.0
        if outcome.kind == "regression":
            shift, scale = float(targets[rest].mean()), float(targets[rest].std()) or 1.0
        outputs = {"multiclass": int(outcome.targets.max()) + 1, "multilabel": targets.shape[-1]}
        network = SmallCnn(outputs.get(outcome.kind, 1)).to(self.device)
        optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=1e-2)
        weight = _class_weights(outcome, rest)
        best, kept, since = -np.inf, network.state_dict(), 0
        judged = part_of(outcome, held)
        one_fold = np.zeros(held.size, np.int64)
        at = 0
        for epoch in range(self.epochs):
            network.train()
            order = rest[torch.randperm(rest.size).numpy()]
            for start in range(0, order.size, self.batch):
                chosen = order[start : start + self.batch]
                if chosen.size < 2:  # batch normalisation needs two
                    continue
                y = network(bases[chosen].to(self.device).float())
                loss = _loss(outcome, y, targets[chosen].to(self.device), weight, shift, scale)
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
            value = measure(judged, self._scores(network, bases, held, outcome), one_fold)(
                np.ones(held.size)
            )
            if np.isnan(value) or value > best:
                best = -np.inf if np.isnan(value) else value
                at, since = epoch, 0
                kept = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            else:
                since += 1
            if since >= self.patience:
                break
        self.chosen.append(at)
        network.load_state_dict(kept)
        return self._scores(network, bases, test, outcome)

    def _one_hot(self) -> Tensor:
        longest = max(map(len, self.sequences))
        codes = np.full((len(self.sequences), longest), 4, np.int64)
        for row, sequence in enumerate(self.sequences):
            codes[row, : len(sequence)] = encode(sequence.encode())
        # As bytes: sequences of thousands of bases in float32 would fill the memory.
        return F.one_hot(torch.from_numpy(codes), 5)[..., :4].to(torch.uint8).transpose(1, 2)

    @torch.no_grad()
    def _scores(
        self, network: SmallCnn, bases: Tensor, rows: NDArray[Any], outcome: Outcome
    ) -> Floats:
        network.eval()
        parts = [
            network(bases[rows[start : start + 512]].to(self.device).float()).cpu()
            for start in range(0, rows.size, 512)
        ]
        scores = torch.cat(parts).double().numpy()
        return scores if outcome.kind in ("multiclass", "multilabel") else scores[:, 0]


def _class_weights(outcome: Outcome, rows: Indices) -> Tensor | None:
    """Classes count equally, however many examples each has."""
    if outcome.kind not in ("binary", "multiclass"):
        return None
    classes = int(outcome.targets.max()) + 1
    counts = np.bincount(outcome.targets[rows], minlength=classes)
    weights = rows.size / (classes * np.maximum(counts, 1))
    return torch.from_numpy(weights.astype(np.float32))


def _loss(
    outcome: Outcome, y: Tensor, targets: Tensor, weight: Tensor | None, shift: float, scale: float
) -> Tensor:
    if outcome.kind == "regression":
        return F.mse_loss(y[:, 0], ((targets - shift) / scale).float())
    if outcome.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(y, targets.float())
    assert weight is not None
    weight = weight.to(y.device)
    if outcome.kind == "multiclass":
        return F.cross_entropy(y, targets, weight)
    return F.binary_cross_entropy_with_logits(y[:, 0], targets.float(), weight[targets])
