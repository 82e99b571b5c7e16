"""What a model says at every position of rows of tokens, in a short list of shapes.

A row's result depends on the row alone: its shape on its length (`inference.batching`), and rows
longer than `CHUNK` go through the states chunk after chunk.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_data.alphabet import BASES
from evo_toolkit.inference.batching import CHUNK, batches
from evo_toolkit.inference.runner import padded

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

_log = logging.getLogger("evo_toolkit")

# Positions per slice of the head, so that no [B, L, V] tensor exists.
_HEAD_SLICE = 1024


@dataclass(frozen=True, slots=True)
class Positions:
    """One row of L tokens as the model sees it; entry t is about token t, given those before it.

    Attributes:
        log_probs: `[L]` float32, log-probability of the token, nats; entry 0 is NaN.
        bases: `[L, 4]` float32, log-probability of A, C, G and T in its place (over the full
            vocabulary, so that they need not sum to 1), nats; entry 0 is NaN. None unless asked for.
    """

    log_probs: NDArray[np.float32]
    bases: NDArray[np.float32] | None = None


class PositionModel:
    """Runs rows of tokens of any length through a model.

    Attributes:
        num_bases: Tokens that were run so far, padding left out.
        shapes: (rows, length) of the forwards so far, in the order in which they first occurred.
    """

    def __init__(self, model: StripedHyena2, *, bases: bool = False) -> None:
        """Prepare.

        Args:
            bases: Also return the log-probability of each of the four bases.

        Raises:
            UsageError: for a model with layers that look ahead.
        """
        model.config.require_causal("predict the next base")
        self.model = model
        self.bases = bases
        self.num_bases = 0
        self.shapes: dict[tuple[int, int], None] = {}
        self._most_rows: int | None = None

    @torch.inference_mode()
    def __call__(self, rows: Sequence[NDArray[np.uint8]]) -> list[Positions]:
        """Return what the model says about each row.

        When memory does not suffice the call starts again with half the rows at a time, and stays
        there; that can change results by rounding, and is logged.

        Args:
            rows: Tokens, one array of at least one token per row.
        """
        while True:
            try:
                found = self._run(rows)
                break
            except torch.OutOfMemoryError:
                largest = max((size for size, _ in self.shapes), default=1)
                if largest == 1:
                    raise
                self._most_rows = largest // 2
                self.shapes = {}
            # Only here, since the error's traceback held the tensors.
            torch.cuda.empty_cache()
            _log.warning("out of memory with %d rows; using %d", largest, self._most_rows)
        self.num_bases += sum(len(row) for row in rows)
        return found

    def _run(self, rows: Sequence[NDArray[np.uint8]]) -> list[Positions]:
        results: list[Positions | None] = [None] * len(rows)
        for group, (default, length) in batches([len(r) for r in rows], self.model.device):
            size = default if self._most_rows is None else min(default, self._most_rows)
            self.shapes[size, length] = None
            for start in range(0, len(group), size):
                part = group[start : start + size]
                ids = torch.from_numpy(padded([rows[i] for i in part], (size, length)))
                log_probs, bases = self._forward(ids)
                for place, index in enumerate(part):
                    stop = len(rows[index])
                    results[index] = Positions(
                        log_probs[place, :stop].copy(),
                        None if bases is None else bases[place, :stop].copy(),
                    )
        return [self._long(rows[i]) if r is None else r for i, r in enumerate(results)]

    def _forward(self, ids: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        ids = ids.to(self.model.device)
        hidden, _ = self.model.hidden(ids)
        return self._read(hidden[:, :-1], ids[:, 1:], first=True)

    def _read(
        self, hidden: Tensor, targets: Tensor, *, first: bool
    ) -> tuple[NDArray[np.float32], NDArray[np.float32] | None]:
        """Log-probabilities of targets and bases; `first` puts the missing first token before."""
        log_probs = self.model.gather_log_probs(hidden, targets).float().cpu().numpy()
        bases = base_log_probs(self.model, hidden).float().cpu().numpy() if self.bases else None
        if first:
            log_probs = after_nothing(log_probs)
            bases = None if bases is None else after_nothing(bases)
        return log_probs, bases

    def _long(self, row: NDArray[np.uint8]) -> Positions:
        self.shapes[1, CHUNK] = None
        ids = torch.from_numpy(row.astype(np.int64))[None].to(self.model.device)
        state = None
        pieces = []
        last = ids.shape[1] - 1  # what the last token predicts is not asked for
        for start in range(0, last, CHUNK):
            stop = min(start + CHUNK, last)
            hidden, state = self.model.hidden(ids[:, start:stop], state, return_state=True)
            pieces.append(self._read(hidden, ids[:, start + 1 : stop + 1], first=start == 0))
        bases = [piece for _, piece in pieces if piece is not None]
        return Positions(
            np.concatenate([piece for piece, _ in pieces], axis=1)[0],
            np.concatenate(bases, axis=1)[0] if bases else None,
        )


def base_log_probs(model: StripedHyena2, hidden: Tensor) -> Tensor:
    """Log-probabilities of A, C, G and T after each position: `[B, L, D]` to `[B, L, 4]`, nats.

    Float32 log-softmax over the full vocabulary.
    """
    columns = torch.tensor([ord(base) for base in BASES], device=hidden.device)
    slices = []
    for start in range(0, hidden.shape[1], _HEAD_SLICE):
        logits = model.head(hidden[:, start : start + _HEAD_SLICE])
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        slices.append(logits[..., columns] - logits.logsumexp(-1, keepdim=True))
    if not slices:
        return hidden.new_zeros((hidden.shape[0], 0, len(BASES)), dtype=torch.float32)
    return torch.cat(slices, dim=1)


def after_nothing(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[B, L - 1, ...]` with NaN before the first position: `[B, L, ...]`."""
    missing = np.full((values.shape[0], 1, *values.shape[2:]), np.nan, dtype=np.float32)
    return np.concatenate([missing, values], axis=1)
