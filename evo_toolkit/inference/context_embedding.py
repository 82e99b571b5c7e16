"""Embeddings of sequences that lie on several devices each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_toolkit.inference.context import ContextWorkers
from evo_toolkit.inference.embed import EmbeddingRunner, LayerProbe
from evo_toolkit.inference.readings import Pool, Pooled, Reading, Strands, Values
from evo_toolkit.inference.runner import padded
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel import ContextParallel

Partial = tuple[int, Tensor | None, list[Values]]


class ContextEmbeddingRunner(EmbeddingRunner):
    """Embeds readings, each as one sequence over several devices; every part in one piece.

    What it finds is what `EmbeddingRunner` finds, up to rounding.
    """

    def __init__(
        self,
        workers: ContextWorkers,
        layers: str | Sequence[str],
        *,
        pool: Pool = "mean",
        strands: Strands = "fwd",
    ) -> None:
        """Prepare; as `EmbeddingRunner`, with the processes of the devices."""
        super().__init__(workers.model, layers, pool=pool, strands=strands)
        self.workers = workers

    def _forward(
        self,
        readings: Sequence[Reading],
        indices: Sequence[int],
        shape: tuple[int, int],
        found: dict[str, list[Values]],
    ) -> None:
        rows = [readings[index] for index in indices]
        ids = padded([reading.tokens for reading in rows], shape)
        answers = self.workers.run(shape[1], pooled_parts, self._probe.names, ids, rows, self.pool)
        self.shapes.add(shape)
        for name in self._probe.names:
            for row, index in enumerate(indices):
                pooled = Pooled(readings[index], self.pool)
                for answer in answers:
                    pooled.follow(answer[name][row])
                found[name][index] = pooled.result()

    def _run_long(self, reading: Reading, index: int, found: dict[str, list[Values]]) -> None:
        alone: dict[str, list[Values]] = {name: [np.empty(0, np.float32)] for name in found}
        self._forward([reading], [0], (1, len(reading.tokens)), alone)
        for name, values in alone.items():
            found[name][index] = values[0]


def pooled_parts(
    model: StripedHyena2,
    context: ContextParallel,
    names: Sequence[str],
    ids: NDArray[np.int64],
    readings: Sequence[Reading],
    pool: Pool,
) -> dict[str, list[Partial]]:
    """What this part adds to the pool of each row, by layer.

    Args:
        names: Of layers, as `resolve_layer` returns them.
        ids: `[B, L]`, the whole sequences, padded.
        readings: Of the rows.
    """
    part = context.part_of(torch.from_numpy(ids)).to(model.device)
    outputs, _, _ = LayerProbe(model, names).run(part, return_state=False)
    found: dict[str, list[Partial]] = {}
    for name, output in outputs.items():
        found[name] = []
        for row, reading in enumerate(readings):
            pooled = Pooled(reading, pool)
            own = output[row, : max(0, len(reading.tokens) - context.start)]
            if len(own):
                pooled.add(own, context.start)
            found[name].append(pooled.partial())
    return found
