"""Scores of edits by a model: the windows of `evo-toolkit score`, on codes instead of files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from evo_data.variant import Edit
from evo_data.windows import StrandWindow, variant_windows
from evo_toolkit.evaluation.genomes import Genome, tokens

if TYPE_CHECKING:
    from evo_toolkit.model.striped_hyena import StripedHyena2
    from evo_toolkit.variants.window_runner import LogProbPair

# Edits whose windows are held together: their reference windows are read once if they agree.
_EDITS_AT_A_TIME = 1024

Place = tuple[int, int, Edit]
"""Index of a genome, index of a record in it, and the edit, 0-based on the forward strand."""


def edit_pairs(
    model: StripedHyena2,
    genomes: Sequence[Genome],
    edits: Sequence[Place],
    window: int,
    *,
    progress: Callable[[int], None] = lambda edits: None,
) -> Iterator[tuple[int, StrandWindow, LogProbPair]]:
    """What a model says of the windows of every edit, on each strand.

    Args:
        model: The model.
        genomes: That the edits lie in.
        edits: What to read; both alleles of an edit have windows of the same length, the edit in
            their middle in reading direction (`evo_data.windows.variant_windows`).
        window: Bases per window.
        progress: Called with the edits done since the last call.

    Yields:
        The edit's index, its window on a strand, and the log-probabilities of both alleles' tokens.

    Raises:
        EvoDataError: for a record with fewer than 32 bases, or an edit outside of it.
    """
    from evo_toolkit.variants.reuse import window_runner
    from evo_toolkit.variants.window_runner import WindowGroup

    runner = window_runner(model, window)
    runner.probe()
    texts: dict[tuple[int, int], bytes] = {}
    for first in range(0, len(edits), _EDITS_AT_A_TIME):
        part = edits[first : first + _EDITS_AT_A_TIME]
        groups: dict[tuple[int, int, str, int, int], list[tuple[int, StrandWindow]]] = {}
        for index, (genome, record, edit) in enumerate(part, first):
            place = (genome, record)
            if place not in texts:
                texts[place] = tokens(genomes[genome].records[record]).tobytes()
            text = texts[place]
            found, _ = variant_windows(partial(_piece, text), len(text), edit, window)
            for one in found:
                groups.setdefault((*place, one.strand, one.start, one.end), []).append((index, one))
        windows = list(groups.values())
        pairs = runner(
            [WindowGroup(of[0][1].ref, [(w.alt, w.fork) for _, w in of]) for of in windows]
        )
        for of, found_pairs in zip(windows, pairs, strict=True):
            for (index, one), pair in zip(of, found_pairs, strict=True):
                yield index, one, pair
        progress(len(part))


def edit_values(
    model: StripedHyena2,
    genomes: Sequence[Genome],
    edits: Sequence[Place],
    window: int,
    columns: Sequence[str] = ("dll",),
    *,
    progress: Callable[[int], None] = lambda edits: None,
) -> NDArray[np.float64]:
    """Values of edits by methods of `evo-toolkit score`, by strand.

    Args:
        model, genomes, edits, window, progress: As of `edit_pairs`.
        columns: Of the methods `delta` and `shift`.

    Returns:
        `[n, 2, columns]`, forward strand first; the mean of the two is the value of an edit. NaN where
        there is none.

    Raises:
        EvoDataError: as `edit_pairs`.
    """
    from evo_toolkit.variants.methods import WindowOutputs, get_methods

    methods = [
        method
        for method in get_methods(["delta", "shift"])
        if any(column.name in columns for column in method.columns)
    ]
    result = np.full((len(edits), 2, len(columns)), np.nan)
    for index, one, pair in edit_pairs(model, genomes, edits, window, progress=progress):
        outputs = WindowOutputs(window=one, log_probs_ref=pair.ref, log_probs_alt=pair.alt)
        for method in methods:
            found = method([outputs])
            for number, column in enumerate(columns):
                if (value := found.get(column)) is not None:
                    result[index, 0 if one.strand == "+" else 1, number] = value
    return result


def edit_scores(
    model: StripedHyena2,
    genomes: Sequence[Genome],
    edits: Sequence[Place],
    window: int,
    *,
    progress: Callable[[int], None] = lambda edits: None,
) -> NDArray[np.float64]:
    """Log-likelihood of the window with the edit minus that without it, `[n, 2]`, as `edit_values`."""
    return edit_values(model, genomes, edits, window, progress=progress)[..., 0]


def _piece(text: bytes, start: int, end: int) -> bytes:
    return text[start:end]
