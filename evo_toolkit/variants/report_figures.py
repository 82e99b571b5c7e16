"""The drawings of a report, as SVG text without anything that is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

_ROW_HEIGHT, _LABEL_WIDTH, _PLOT_WIDTH, _NUMBERS_WIDTH = 34, 210, 440, 300
_AXIS_HEIGHT = 30
_NUM_BINS = 60
_BASE_WIDTH, _BARS_HEIGHT = 8, 120
_FORWARD, _REVERSE = "#1f5fa8", "#b3541e"


def histograms(classes: Sequence[tuple[str, NDArray[np.floating]]], unit: str) -> str:
    """One histogram under the other, on one axis.

    The axis holds 99 % of all values; what lies outside is counted at its ends. A class's bars are as
    high as the largest of its own.

    Args:
        classes: Name and values of each, at least one value in all.
        unit: Of the axis.
    """
    values = np.concatenate([found for _, found in classes])
    low, high = np.quantile(values, [0.005, 0.995])
    if not high > low:
        low, high = low - 0.5, high + 0.5
    bins = np.linspace(low, high, _NUM_BINS + 1)
    width = _LABEL_WIDTH + _PLOT_WIDTH + _NUMBERS_WIDTH
    height = _ROW_HEIGHT * len(classes) + _AXIS_HEIGHT

    def x(value: float) -> float:
        return _LABEL_WIDTH + (value - low) / (high - low) * _PLOT_WIDTH

    parts = [opening(width, height, f"Distribution of scores by class, {unit}")]
    step = _PLOT_WIDTH / _NUM_BINS
    for row, (name, found) in enumerate(classes):
        base = (row + 1) * _ROW_HEIGHT - 3
        parts.append(f'<text x="{_LABEL_WIDTH - 8}" y="{base - 8}" text-anchor="end">{escape(short(name, 30))}<title>{escape(name)}</title></text>')  # fmt: skip
        if not len(found):
            continue
        counts, _ = np.histogram(np.clip(found, low, high), bins)
        for index, count in enumerate(counts):
            if count:
                size = max(1.0, count / counts.max() * (_ROW_HEIGHT - 8))
                parts.append(
                    f'<rect class="bar" x="{_LABEL_WIDTH + index * step:.1f}" y="{base - size:.1f}" '
                    f'width="{step - 0.6:.1f}" height="{size:.1f}"/>'
                )
        lower, median, upper = np.quantile(found, [0.25, 0.5, 0.75])
        for value, kind in ((lower, "quartile"), (median, "median"), (upper, "quartile")):
            if low <= value <= high:
                parts.append(f'<line class="{kind}" x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{base - _ROW_HEIGHT + 6}" y2="{base}"/>')  # fmt: skip
        parts.append(f'<text x="{_LABEL_WIDTH + _PLOT_WIDTH + 10}" y="{base - 8}">{len(found):,}; median {median:.3g} ({lower:.3g} to {upper:.3g})</text>')  # fmt: skip
    base = height - _AXIS_HEIGHT
    if low < 0 < high:
        parts.append(f'<line class="zero" x1="{x(0):.1f}" x2="{x(0):.1f}" y1="0" y2="{base + 4}"/>')
    for tick in ticks(float(low), float(high)):
        parts.append(f'<line class="axis" x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="{base}" y2="{base + 4}"/>')  # fmt: skip
        parts.append(
            f'<text x="{x(tick):.1f}" y="{base + 16}" text-anchor="middle">{tick:g}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LABEL_WIDTH}" x2="{_LABEL_WIDTH + _PLOT_WIDTH}" y1="{base}" y2="{base}"/>')  # fmt: skip
    parts.append(f'<text x="{_LABEL_WIDTH + _PLOT_WIDTH + 10}" y="{base + 16}">{escape(unit)}</text></svg>')  # fmt: skip
    return "".join(parts)


def per_base(
    before: Sequence[tuple[str, float | None]],
    allele: tuple[str, float | None, float | None],
    behind: Sequence[tuple[str, float | None]],
) -> str:
    """Changes of the log-probability of every base around an allele, in genome order.

    Args:
        before: Base and change of each base in front of the allele, read on the reverse strand.
        allele: Its label, and the changes of its own bases on the forward and the reverse strand.
        behind: As `before`, behind the allele, read on the forward strand.
    """
    label, forward, reverse = allele
    changes = [v for _, v in (*before, *behind) if v is not None]
    changes += [v for v in (forward, reverse) if v is not None]
    most = max((abs(v) for v in changes), default=0.0) or 1.0
    middle = _BARS_HEIGHT / 2 + 6
    allele_width = 3 * _BASE_WIDTH
    left = _BASE_WIDTH * len(before) + 50
    width = left + allele_width + _BASE_WIDTH * len(behind) + 10
    parts = [opening(width, _BARS_HEIGHT + 44, "Change of the log-probability of each base, nats")]

    def bar(x: float, size: float, value: float | None, colour: str, title: str) -> None:
        if value is None:
            return
        length = abs(value) / most * _BARS_HEIGHT / 2
        top = middle - length if value > 0 else middle
        parts.append(f'<rect x="{x:.1f}" y="{top:.2f}" width="{size:.1f}" height="{max(length, 0.2):.2f}" fill="{colour}"><title>{escape(title)}: {value:+.3f}</title></rect>')  # fmt: skip

    letters = _BARS_HEIGHT + 24
    for index, (base, value) in enumerate(before):
        x = 50 + index * _BASE_WIDTH
        bar(x, _BASE_WIDTH - 1, value, _REVERSE, f"{base}, {index - len(before)}")
        parts.append(f'<text class="base" x="{x + _BASE_WIDTH / 2}" y="{letters}">{escape(base)}</text>')  # fmt: skip
    parts.append(f'<rect class="allele" x="{left}" y="6" width="{allele_width}" height="{_BARS_HEIGHT}"/>')  # fmt: skip
    half = allele_width / 2
    bar(left + 1, half - 2, reverse, _REVERSE, f"{label}, reverse strand")
    bar(left + half + 1, half - 2, forward, _FORWARD, f"{label}, forward strand")
    parts.append(f'<text class="base strong" x="{left + half}" y="{letters}">{escape(short(label, 12))}</text>')  # fmt: skip
    for index, (base, value) in enumerate(behind):
        x = left + allele_width + index * _BASE_WIDTH
        bar(x, _BASE_WIDTH - 1, value, _FORWARD, f"{base}, +{index + 1}")
        parts.append(f'<text class="base" x="{x + _BASE_WIDTH / 2}" y="{letters}">{escape(base)}</text>')  # fmt: skip
    for value in (most, 0.0, -most):
        y = middle - value / most * _BARS_HEIGHT / 2
        parts.append(
            f'<text x="44" y="{y + 4:.1f}" text-anchor="end">{format(value, "+.2g") if value else "0"}</text>'
        )
    parts.append(f'<line class="axis" x1="48" x2="{width - 8}" y1="{middle}" y2="{middle}"/></svg>')
    return "".join(parts)


def opening(width: float, height: float, label: str) -> str:
    """The start of a drawing of so many pixels; `</svg>` ends it."""
    return f'<svg viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" height="{height:.0f}" role="img" aria-label="{escape(label)}">'


def short(text: str, most: int) -> str:
    """A text of at most so many letters."""
    return text if len(text) <= most else text[: most - 1] + "…"


def ticks(low: float, high: float) -> list[float]:
    """Five or so round numbers between two others."""
    rough = (high - low) / 5
    size = 10.0 ** np.floor(np.log10(rough))
    step = next(m * size for m in (1, 2, 5, 10) if m * size >= rough)
    first = int(np.ceil(low / step))
    last = int(np.floor(high / step))
    return [round(k * step, 12) for k in range(first, last + 1)]
