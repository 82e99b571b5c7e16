"""Scores of substitutions as pictures: a logo of the reference and a heatmap of all substitutions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evo_data.alphabet import BASES
from evo_data.files import atomic_output
from evo_toolkit.errors import UsageError
from evo_toolkit.variants.ism import IsmBlock

PLOT_SUFFIXES = {".png": "png", ".svg": "svg", ".pdf": "pdf"}

MOST_BASES = 3000
"""Longest region in one picture; letters would be lost in more."""

COLOURS = {"A": "#128A45", "C": "#1F5FA8", "G": "#E39A0B", "T": "#C8324A"}
_PER_ROW = 100
_MISSING = "#D0D0D0"


@dataclass(frozen=True, slots=True)
class _Row:
    """Up to `_PER_ROW` consecutive bases: contig, first position (0-based), bases, `[n, 4]` scores."""

    contig: str
    start: int
    sequence: str
    scores: NDArray[np.float32]
    importance: NDArray[np.float32]


def check_plot(num_bases: int, what: str) -> None:
    """Raise unless so many bases fit into a picture.

    Raises:
        UsageError: if not.
    """
    if num_bases > MOST_BASES:
        raise UsageError(
            f"--{what} of {num_bases:,} bases would be unreadable; ask for {MOST_BASES:,} at most with -r"
        )


def draw_logo(
    blocks: Sequence[IsmBlock], output: str, *, title: str, unit: str, force: bool = False
) -> None:
    """Draw each reference base as high as its importance; below the line where it is negative.

    Args:
        output: PNG, SVG or PDF by its ending.
        title: Above the picture.
        unit: What the vertical axis shows.
    """
    from matplotlib.patches import PathPatch

    rows = _rows(blocks)
    figure, axes = _figure(rows, height=1.35, title=title)
    values = np.concatenate([row.importance for row in rows])
    values = values[~np.isnan(values)]
    high = max(float(values.max(initial=0.0)), 1e-6)
    low = min(float(values.min(initial=0.0)), 0.0)
    margin = 0.06 * (high - low)
    letters = {base: _letter(base) for base in BASES}
    for axis, row in zip(axes, rows, strict=True):
        for index, (base, height) in enumerate(zip(row.sequence, row.importance, strict=True)):
            if base not in BASES or np.isnan(height):
                axis.axvspan(index - 0.5, index + 0.5, color=_MISSING, linewidth=0)
            elif height != 0:
                path = _placed(letters[base], index, float(height))
                axis.add_patch(PathPatch(path, facecolor=COLOURS[base], linewidth=0))
        axis.hlines(0, -0.5, len(row.sequence) - 0.5, color="#404040", linewidth=0.6)
        axis.set_ylim(low - margin, high + margin)
        _positions(axis, row)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supylabel(unit, fontsize=9)
    _save(figure, output, force)


def draw_heatmap(
    blocks: Sequence[IsmBlock], output: str, *, title: str, unit: str, force: bool = False
) -> None:
    """Draw every substitution's score: blue is less likely than the reference, red more.

    A dot marks the reference base, grey what has no score. The colours reach to the largest score
    in either direction.

    Args:
        output: PNG, SVG or PDF by its ending.
        title: Above the picture.
        unit: What the colours show.
    """
    from matplotlib import colormaps
    from matplotlib.colors import Normalize

    rows = _rows(blocks)
    figure, axes = _figure(rows, height=1.0, title=title)
    values = np.abs(np.concatenate([row.scores.ravel() for row in rows]))
    limit = float(np.nanmax(values)) if (~np.isnan(values)).any() else 0.0
    widest = max(len(row.sequence) for row in rows)
    scale = Normalize(-limit or -1e-6, limit or 1e-6)
    colours = colormaps["RdBu_r"].with_extremes(bad=_MISSING)
    image = None
    for axis, row in zip(axes, rows, strict=True):
        image = axis.imshow(
            np.ma.masked_invalid(row.scores.T), aspect="auto", cmap=colours, norm=scale,
            interpolation="nearest", extent=(-0.5, len(row.sequence) - 0.5, 3.5, -0.5),
        )  # fmt: skip
        known = [(i, BASES.index(b)) for i, b in enumerate(row.sequence) if b in BASES]
        if known:
            axis.scatter(*zip(*known, strict=True), s=4, color="#303030", linewidths=0)
        axis.set_xlim(-0.5, widest - 0.5)
        axis.set_yticks(range(len(BASES)), list(BASES), fontsize=7)
        axis.tick_params(axis="y", length=0)
        axis.spines[["top", "right", "left"]].set_visible(False)
        _positions(axis, row)
    if image is not None:
        bar = figure.colorbar(image, ax=axes, fraction=0.03, pad=0.01, aspect=12)
        bar.set_label(unit, fontsize=8)
        bar.ax.tick_params(labelsize=7)
    _save(figure, output, force)


def _rows(blocks: Sequence[IsmBlock]) -> list[_Row]:
    rows = []
    for block in blocks:
        sequence, importance = block.sequence.decode("ascii"), block.importance
        for start in range(0, len(sequence), _PER_ROW):
            part = slice(start, start + _PER_ROW)
            rows.append(
                _Row(
                    block.interval.contig,
                    block.interval.start + start,
                    sequence[part],
                    block.scores[part],
                    importance[part],
                )
            )
    return rows


def _figure(rows: Sequence[_Row], *, height: float, title: str) -> tuple[Any, list[Any]]:
    """A figure with an axis for each row, all to one scale: so many inches for a base."""
    from matplotlib.figure import Figure

    widest = max(len(row.sequence) for row in rows)
    # Inches: a base, the labels beside, the row, the labels below it, the title.
    width = max(4.5, 0.105 * widest + 1.6)
    figure = Figure(figsize=(width, len(rows) * (height + 0.45) + 0.5), layout="constrained")
    figure.suptitle(title, fontsize=10)
    axes = figure.subplots(len(rows), 1, squeeze=False)[:, 0]
    for axis in axes:
        axis.set_xlim(-0.5, widest - 0.5)
    return figure, list(axes)


def _positions(axis: Any, row: _Row) -> None:
    """Label a row's bases with their 1-based positions, and the row with its region."""
    size = len(row.sequence)
    step = 10 if size > 25 else 5 if size > 8 else 1
    ticks = [i for i in range(size) if (row.start + i + 1) % step == 0]
    # The frame ends where the bases do.
    axis.spines["bottom"].set_bounds(-0.5, size - 0.5)
    axis.set_xticks(ticks, [f"{row.start + i + 1:,}" for i in ticks], fontsize=7)
    axis.tick_params(axis="both", labelsize=7)
    axis.set_title(
        f"{row.contig}:{row.start + 1:,}-{row.start + size:,}", fontsize=7, loc="left", pad=2
    )


def _letter(base: str) -> Any:
    """The outline of a letter, scaled to the square from (-0.45, 0) to (0.45, 1)."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import TextPath
    from matplotlib.transforms import Affine2D

    path = TextPath((0, 0), base, size=1, prop=FontProperties(family="DejaVu Sans", weight="bold"))
    box = path.get_extents()
    move = Affine2D().translate(-box.x0, -box.y0).scale(0.9 / box.width, 1 / box.height)
    return path.transformed(move.translate(-0.45, 0))


def _placed(letter: Any, index: int, height: float) -> Any:
    from matplotlib.transforms import Affine2D

    return letter.transformed(Affine2D().scale(1, height).translate(index, 0))


def _save(figure: Any, output: str, force: bool) -> None:
    import matplotlib

    format = PLOT_SUFFIXES[Path(output).suffix.lower()]
    # Without the date, and with fixed names inside, equal scores give equal files.
    note: dict[str, Any] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}[format]
    with (
        atomic_output(output, force=force, suffix=f".{format}") as path,
        matplotlib.rc_context({"svg.hashsalt": "evo_toolkit", "svg.fonttype": "none"}),
    ):
        figure.savefig(path, format=format, dpi=150, metadata=note)
