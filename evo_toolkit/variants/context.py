"""What a model says at every position of rows of tokens that lie on several devices each."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evo_toolkit.inference.context import ContextWorkers
from evo_toolkit.model.striped_hyena import StripedHyena2
from evo_toolkit.parallel import ContextParallel
from evo_toolkit.variants.positions import PositionModel, Positions, after_nothing, base_log_probs

_Values = NDArray[np.float32]


class ContextPositionModel(PositionModel):
    """Runs every row of tokens as one sequence over several devices, each part in one piece.

    What it says is what `PositionModel` says, up to rounding.
    """

    def __init__(self, workers: ContextWorkers, *, bases: bool = False) -> None:
        """Prepare.

        Args:
            workers: The processes of the devices.
            bases: Also return the log-probability of each of the four bases.
        """
        super().__init__(workers.model, bases=bases)
        self.workers = workers

    def _forward(self, ids: Tensor) -> tuple[_Values, _Values | None]:
        answers = self.workers.run(ids.shape[1], log_probs_of_part, ids.numpy(), bases=self.bases)
        log_probs = np.concatenate([part for part, _ in answers], axis=1)
        bases = [part for _, part in answers if part is not None]
        return after_nothing(log_probs), after_nothing(np.concatenate(bases, 1)) if bases else None

    def _long(self, row: NDArray[np.uint8]) -> Positions:
        self.shapes[1, len(row)] = None
        log_probs, bases = self._forward(torch.from_numpy(row.astype(np.int64))[None])
        return Positions(log_probs[0], None if bases is None else bases[0])


def log_probs_of_part(
    model: StripedHyena2, context: ContextParallel, ids: NDArray[np.int64], *, bases: bool
) -> tuple[_Values, _Values | None]:
    """Log-probabilities of the tokens that follow this part's, nats: of the token, and of A, C, G, T.

    Args:
        ids: `[B, L]`, the whole sequences.

    Returns:
        `[B, n]` and `[B, n, 4]` of the part's n positions, without the sequence's last one.
    """
    whole = torch.from_numpy(ids).to(model.device)
    hidden, _ = model.hidden(context.part_of(whole))
    targets = whole[:, context.start + 1 :][:, : hidden.shape[1]]
    hidden = hidden[:, : targets.shape[1]]
    log_probs = model.gather_log_probs(hidden, targets).float().cpu().numpy()
    return log_probs, base_log_probs(model, hidden).float().cpu().numpy() if bases else None
