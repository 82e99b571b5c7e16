"""Scores of edits by a model: the windows of `evo-toolkit score`, on codes instead of files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evo_data.variant import Edit
from evo_data.windows import StrandWindow, variant_windows
from evo_toolkit.evaluation.genomes import Genome, tokens

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2

# Edits whose windows are held together: their reference windows are scored once if they agree.
_EDITS_AT_A_TIME = 512

Place = tuple[int, int, Edit]
"""Index of a genome, index of a record in it, and the edit, 0-based on the forward strand."""


def edit_scores(
    model: StripedHyena2,
    genomes: Sequence[Genome],
    edits: Sequence[Place],
    window: int,
    *,
    progress: Callable[[int], None] = lambda edits: None,
) -> NDArray[np.float64]:
    """Log-likelihood of the window with the edit minus that without it, in nats, by strand.

    Args:
        model: The model.
        genomes: That the edits lie in.
        edits: What to score; both alleles of an edit have windows of the same length, the edit in
            their middle in reading direction (`evo_data.windows.variant_windows`).
        window: Bases per window.
        progress: Called with the edits done since the last call.

    Returns:
        `[n, 2]`, forward strand first; the mean of the two is the score of an edit.

    Raises:
        EvoDataError: for a record with fewer than 32 bases, or an edit outside of it.
    """
    from evo_toolkit.inference.runner import LogProbRunner

    runner = LogProbRunner(model, window)
    runner.probe()
    texts: dict[tuple[int, int], bytes] = {}
    result = np.empty((len(edits), 2))
    for first in range(0, len(edits), _EDITS_AT_A_TIME):
        part = edits[first : first + _EDITS_AT_A_TIME]
        windows: list[StrandWindow] = []
        keys: list[tuple[int, int, str, int, int]] = []
        for genome, record, edit in part:
            place = (genome, record)
            if place not in texts:
                texts[place] = tokens(genomes[genome].records[record]).tobytes()
            text = texts[place]
            found, _ = variant_windows(partial(_piece, text), len(text), edit, window)
            windows += found
            keys += [(*place, one.strand, one.start, one.end) for one in found]
        rows = {key: one.ref for key, one in zip(keys, windows, strict=True)}
        number = {key: row for row, key in enumerate(rows)}
        log_probs = runner([*rows.values(), *(one.alt for one in windows)])
        for index, (key, one) in enumerate(zip(keys, windows, strict=True)):
            ref, alt = log_probs[number[key]], log_probs[len(rows) + index]
            # The alleles share everything before the fork; the first base has no prediction.
            since = max(one.fork, 1)
            change = alt[since:].sum(dtype=np.float64) - ref[since:].sum(dtype=np.float64)
            result[first + index // 2, 0 if one.strand == "+" else 1] = change
        progress(len(part))
    return result


def _piece(text: bytes, start: int, end: int) -> bytes:
    return text[start:end]
