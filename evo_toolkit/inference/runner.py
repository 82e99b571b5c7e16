"""Rows of tokens through a model in one fixed shape.

Every forward has the same shape [rows, length]; short batches are filled up, short rows padded on
the right. With a given shape a row's result does not depend on its batch-mates or its place in
the input, so scores do not depend on order, neighbours or the length of the input.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from evo_data.tokenizer import ByteTokenizer

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

_log = logging.getLogger("evo_toolkit")

# Tokens per forward. On a CPU more rows only cost memory; a GPU needs them to be busy.
_CPU_TOKENS = 4096
_GPU_TOKENS = 65_536
_MOST_ROWS = 256


def padded(tokens: Sequence[NDArray[np.uint8]], shape: tuple[int, int]) -> NDArray[np.int64]:
    """Rows of tokens as one array of `shape`, filled with the pad token."""
    ids = np.full(shape, ByteTokenizer.pad_id, dtype=np.int64)
    for row, values in enumerate(tokens):
        ids[row, : len(values)] = values
    return ids


def default_rows(length: int, device: torch.device) -> int:
    """Rows of a forward over windows of `length` tokens: fixed per window and class of device."""
    budget = _GPU_TOKENS if device.type == "cuda" else _CPU_TOKENS
    return max(1, min(_MOST_ROWS, budget // length))


class LogProbRunner:
    """Per-token log-probabilities of rows of at most `length` tokens.

    Attributes:
        shape: (rows, length) of every forward.
    """

    def __init__(self, model: StripedHyena2, length: int, rows: int | None = None) -> None:
        self.model = model
        self.shape = (rows or default_rows(length, model.device), length)

    def probe(self) -> float:
        """Run one forward, halving the rows while memory does not suffice; seconds of a second one.

        To be called before anything is written: the shape that results holds for the whole run.
        """
        filler = [np.full(self.shape[1], ord("A"), dtype=np.uint8)]
        while not self._fits(filler):
            rows, length = self.shape
            self.shape = (rows // 2, length)
            # Only here, since the error's traceback held the tensors.
            torch.cuda.empty_cache()
            _log.warning(
                "out of memory with %d rows of %d bases; using %d", rows, length, rows // 2
            )
        start = time.perf_counter()
        self(filler)
        return time.perf_counter() - start

    def _fits(self, rows: Sequence[NDArray[np.uint8]]) -> bool:
        try:
            self(rows)
        except torch.OutOfMemoryError:
            if self.shape[0] == 1:
                raise
            return False
        return True

    @torch.inference_mode()
    def __call__(self, rows: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.float32]]:
        """Return `[len(row)]` log-probabilities per row, nats; entry 0 is NaN (no prediction).

        Args:
            rows: Tokens, each of 1 to `length` entries.
        """
        size, length = self.shape
        results: list[NDArray[np.float32]] = []
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            ids = torch.from_numpy(padded(batch, (size, length)))
            log_probs = self.model.token_log_probs(ids.to(self.model.device))
            found = log_probs.float().cpu().numpy()
            results.extend(found[index, : len(row)].copy() for index, row in enumerate(batch))
        return results
