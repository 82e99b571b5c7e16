"""The second baseline: the chain mixed log-linearly with the window's own counts.

    p(x) ~ exp( w_0 ln p_k(x | h) + sum_j w_j ln ((c_j(hx) + 1) / (c_j(h) + 4)) ),   j = 1..16,

with c_j the window's counts on both strands so far (`adaptive`) and one weight per expert, fitted
on windows of training genomes that the chain's tables have not seen (`fit_weights`). It knows what
a table of the training genomes knows and what repeats within the window: a model has learned
something else only where it does better than this.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from evo_data.codes import OTHER
from evo_toolkit.errors import EvoError
from evo_toolkit.evaluation.adaptive import MAX_ADAPTIVE_ORDER, adaptive_counts
from evo_toolkit.evaluation.genomes import Bytes
from evo_toolkit.evaluation.markov import Floats, MarkovChain, of_bases

ADAPTIVE_ORDERS = tuple(range(1, MAX_ADAPTIVE_ORDER + 1))
PSEUDOCOUNT = 1.0
ORDER = "order "
"""Begins the names of the chains of single orders among the predictors."""

_ITERATIONS = 50
_RIDGE = 1e-6
_ROWS = 16_384  # positions of one product of the fit: 9 MB of features
_WINDOW_TOKENS = 131_072  # tokens whose features are held at a time: 36 MB

Features = NDArray[np.float32]


@dataclass(frozen=True)
class Mixture:
    """A fitted mixture.

    Attributes:
        chain: The tables.
        order: Order of the chain that is used.
        weights: Of the chain and of the adaptive orders, `[1 + len(ADAPTIVE_ORDERS)]`.
    """

    chain: MarkovChain
    order: int
    weights: Floats

    def bits(self, codes: Bytes) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """`-log2 p` of the bases of windows `[W, L]`: by the chain alone and by the mixture.

        NaN for the first base of a window and where the base is not ACGT.
        """
        alone = np.empty(codes.shape, np.float32)
        mixed = np.empty(codes.shape, np.float32)
        step = max(1, _WINDOW_TOKENS // codes.shape[1])
        for start in range(0, codes.shape[0], step):
            part = codes[start : start + step]
            found = experts(self.chain, self.order, part)
            alone[start : start + step] = _observed(found[:, :, 0] / np.log(2), part)
            scores = np.einsum("wlek,e->wlk", found, self.weights.astype(np.float32))
            mixed[start : start + step] = _observed(log_softmax(scores) / np.log(2), part)
        return alone, mixed

    def bits_by_order(self, codes: Bytes) -> dict[str, NDArray[np.float32]]:
        """`-log2 p` by the chain alone at every order, as `order 0` and so on; NaN as in `bits`."""
        return {
            f"{ORDER}{order}": _observed(self.chain.log2_probs(codes, order), codes)
            for order in range(self.chain.max_order + 1)
        }


def experts(chain: MarkovChain, order: int, codes: Bytes) -> Features:
    """What each expert says of the four bases, in nats: `[W, L, 1 + 16, 4]`."""
    result = np.empty((*codes.shape, 1 + len(ADAPTIVE_ORDERS), 4), np.float32)
    result[:, :, 0] = chain.log2_probs(codes, order) * np.float32(np.log(2))
    for column, adaptive_order in enumerate(ADAPTIVE_ORDERS, start=1):
        counts = adaptive_counts(codes, adaptive_order).astype(np.float32)
        total = counts.sum(axis=-1, keepdims=True)
        result[:, :, column] = np.log((counts + PSEUDOCOUNT) / (total + 4 * PSEUDOCOUNT))
    return result


def log_softmax(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithms of the normalised exponentials along the last axis."""
    scores = scores - scores.max(axis=-1, keepdims=True)
    return scores - np.log(np.exp(scores).sum(axis=-1, keepdims=True))


def scored(codes: Bytes) -> NDArray[np.bool_]:
    """Which bases of windows `[W, L]` are judged: ACGT, but for the first (no prediction)."""
    result = codes < OTHER
    result[:, 0] = False
    return result


def _observed(log2_probs: NDArray[np.float32], codes: Bytes) -> NDArray[np.float32]:
    return np.where(scored(codes), -of_bases(log2_probs, codes), np.float32(np.nan))


def fit_weights(
    chain: MarkovChain, order: int, windows: Bytes, *, positions: int = 200_000, seed: int = 0
) -> Floats:
    """The weights with the highest likelihood on windows that the chain was not made of.

    The likelihood is concave in the weights; Newton's method with halved steps finds its maximum.

    Args:
        chain: Tables of other genomes than those of the windows.
        order: Order of the chain.
        windows: `[W, L]` codes in reading direction.
        positions: How many bases to use, drawn evenly from all windows.
        seed: Of that draw.

    Raises:
        EvoError: when the windows hold no base to fit on.
    """
    use = scored(windows)
    share = min(1.0, positions / max(int(use.sum()), 1))
    use &= np.random.default_rng(seed).random(use.shape) < share
    pieces, bases = [], []
    step = max(1, _WINDOW_TOKENS // windows.shape[1])
    for start in range(0, windows.shape[0], step):
        part, chosen = windows[start : start + step], use[start : start + step]
        pieces.append(experts(chain, order, part)[chosen])
        bases.append(part[chosen])
    features, observed = np.concatenate(pieces), np.concatenate(bases).astype(np.int64)
    if not observed.size:
        raise EvoError("no base to fit the mixture on; give training genomes with longer records")
    weights = np.zeros(features.shape[1])
    weights[0] = 1.0
    value, gradient, curvature = _likelihood(features, observed, weights)
    for _ in range(_ITERATIONS):
        ridge = _RIDGE * np.eye(weights.size)
        step_taken = np.linalg.solve(curvature + ridge, gradient)
        scale = 1.0
        while True:
            trial = weights - scale * step_taken
            found = _likelihood(features, observed, trial)
            if found[0] <= value + 1e-12 or scale < 1e-6:
                break
            scale /= 2
        weights = trial
        value, gradient, curvature = found
        if np.abs(scale * step_taken).max() < 1e-5:
            break
    return weights


def _likelihood(
    features: Features, observed: NDArray[np.int64], weights: Floats
) -> tuple[float, Floats, Floats]:
    """Mean negative log-likelihood in nats, its gradient and its second derivative."""
    count, size, _ = features.shape
    value, gradient = 0.0, np.zeros(size)
    curvature = np.zeros((size, size))
    for part, bases in _rows(features, observed):
        wide = part.astype(np.float64)
        scores = np.einsum("nek,e->nk", wide, weights)
        scores -= scores.max(axis=1, keepdims=True)
        probs = np.exp(scores)
        total = probs.sum(axis=1, keepdims=True)
        probs /= total
        row = np.arange(bases.size)
        value -= float((scores[row, bases] - np.log(total[:, 0])).sum())
        mean = np.einsum("nek,nk->ne", wide, probs)
        gradient += (mean - wide[row, :, bases]).sum(axis=0)
        centred = ((wide - mean[:, :, None]) * np.sqrt(probs)[:, None]).transpose(0, 2, 1)
        flat = centred.reshape(-1, size)
        curvature += flat.T @ flat
    return value / count, gradient / count, curvature / count


def _rows(
    features: Features, observed: NDArray[np.int64]
) -> Iterator[tuple[Features, NDArray[np.int64]]]:
    for start in range(0, observed.size, _ROWS):
        yield features[start : start + _ROWS], observed[start : start + _ROWS]


def best_order(
    chain: MarkovChain, windows: Bytes, orders: Sequence[int]
) -> tuple[int, list[float]]:
    """The order with the fewest bits per base on windows, and the bits of every order."""
    use = scored(windows)
    means = []
    for order in orders:
        bits = _observed(chain.log2_probs(windows, order), windows)
        means.append(float(bits[use].mean(dtype=np.float64)))
    return orders[int(np.argmin(means))], means
