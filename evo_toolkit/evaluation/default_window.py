"""Which window is long enough: the smallest whose scores rank SNVs as the longest does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_toolkit.statistics import bootstrap, spearman

WINDOWS = (512, 1024, 2048, 4096, 8192)
ENOUGH = 0.99


def report(
    scores: Mapping[int, NDArray[np.floating]], genes: NDArray[np.integer]
) -> dict[str, Any]:
    """Rank correlation of each window's scores with those of the longest.

    Args:
        scores: By window in bases, `[n]` each.
        genes: Unit that is resampled, `[n]`.

    Returns:
        JSON; `default_window` is the smallest window whose correlation is 0.99 or more.
    """
    windows = sorted(scores)
    longest = np.asarray(scores[windows[-1]], float)
    found: dict[str, Any] = {}
    chosen = windows[-1]
    for window in reversed(windows):
        own = np.asarray(scores[window], float)

        def correlation(times: NDArray[np.float64], own: NDArray[np.float64] = own) -> float:
            index = np.repeat(np.arange(own.size), times.astype(int))
            return spearman(own[index], longest[index])

        estimate = bootstrap(correlation, genes, resamples=200)
        found[str(window)] = estimate.json()
        if estimate.value >= ENOUGH:
            chosen = window
    return {
        "num_snvs": int(longest.size),
        "compared_with": windows[-1],
        "spearman": dict(reversed(found.items())),
        "default_window": chosen,
    }
