"""Log-likelihoods of sequences, in nats, with explicit masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from evo_toolkit.inference.batching import CHUNK, batches, checked_masks, encode
from evo_toolkit.inference.runner import LogProbRunner

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2


@torch.inference_mode()
def _long_log_probs(model: StripedHyena2, tokens: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Per-token log-probabilities of one long sequence, chunk after chunk through the states."""
    ids = torch.from_numpy(tokens.astype(np.int64))[None].to(model.device)
    state = None
    pieces = [torch.full((1, 1), float("nan"))]
    last = ids.shape[1] - 1  # the last token predicts nothing that is scored
    for start in range(0, last, CHUNK):
        stop = min(start + CHUNK, last)
        hidden, state = model.hidden(ids[:, start:stop], state, return_state=True)
        pieces.append(model.gather_log_probs(hidden, ids[:, start + 1 : stop + 1]).float().cpu())
    return torch.cat(pieces, dim=1)[0].numpy()


def token_log_probs(
    model: StripedHyena2, tokens: Sequence[NDArray[np.uint8]]
) -> list[NDArray[np.float32]]:
    """Log-probability in nats of each token given those before it; entry 0 is NaN.

    Args:
        tokens: One uint8 array per sequence, of any length from 1.
    """
    results: list[NDArray[np.float32] | None] = [None] * len(tokens)
    for indices, (rows, length) in batches([len(t) for t in tokens], model.device):
        runner = LogProbRunner(model, length, rows)
        for index, found in zip(indices, runner([tokens[i] for i in indices]), strict=True):
            results[index] = found
    return [_long_log_probs(model, tokens[i]) if r is None else r for i, r in enumerate(results)]


def log_likelihood(
    model: StripedHyena2,
    sequences: Sequence[str | bytes],
    *,
    masks: Sequence[NDArray[np.bool_]] | None = None,
    reduce: Literal["sum", "mean"] = "sum",
) -> NDArray[np.float64]:
    """Log-likelihood of each sequence in nats.

    `sum_t log p(x[t] | x[0..t-1])` over the positions t >= 1 that the mask keeps: the first base
    has no prediction and never counts. Full vocabulary, float32 log-softmax, float64 sums. The
    result of a sequence does not depend on the others.

    Args:
        sequences: Text or bytes, case as given (models were trained on upper case). One string is
            refused, because it would be taken for a list of single letters.
        masks: One boolean array per sequence, True where the position counts; default all.
        reduce: "sum", or "mean" over the positions that count.

    Returns:
        `[n]` float64; NaN for a mean over no position.

    Raises:
        ValueError: for an empty sequence, or a mask of another length.
    """
    if isinstance(sequences, str | bytes):
        raise ValueError("sequences is one string; give a list of sequences, such as [sequence]")
    if reduce not in ("sum", "mean"):
        raise ValueError(f"reduce is {reduce!r}; use 'sum' or 'mean'")
    tokens = encode(sequences)
    checked = checked_masks(masks, [len(t) for t in tokens])
    totals = np.empty(len(tokens), dtype=np.float64)
    for index, (log_probs, mask) in enumerate(
        zip(token_log_probs(model, tokens), checked, strict=True)
    ):
        kept = log_probs[1:] if mask is None else log_probs[1:][mask[1:]]
        total = kept.sum(dtype=np.float64)
        if reduce == "mean":
            total = total / len(kept) if len(kept) else np.nan
        totals[index] = total
    return totals
