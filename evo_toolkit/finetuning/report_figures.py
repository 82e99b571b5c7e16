"""The drawings of a report about predictions, as SVG text without anything that is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from evo_toolkit.variants.report_figures import opening, short, ticks

Points = Sequence[Sequence[float]]

COLOURS = ("#1f5fa8", "#b3541e", "#2e8540", "#7b3fa0", "#a8871f", "#3f8f9e", "#a8325a", "#5a6575")
_LEFT, _BOTTOM, _SIZE, _MARGIN = 56, 44, 244, 14
_MOST_CURVES = len(COLOURS)


class _Plot:
    """Axes of a square plot; y grows upwards."""

    def __init__(
        self, x: tuple[float, float], y: tuple[float, float], names: tuple[str, str], title: str
    ) -> None:
        self._x, self._y = x, y
        self.parts = [opening(_LEFT + _SIZE + _MARGIN, _SIZE + _BOTTOM + _MARGIN, title)]
        bottom, right = _MARGIN + _SIZE, _LEFT + _SIZE
        self._add(f'<path class="axis" fill="none" d="M{_LEFT} {_MARGIN}V{bottom}H{right}"/>')
        for value in ticks(*x):
            at = self.x(value)
            self._add(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{bottom}" y2="{bottom + 4}"/>')  # fmt: skip
            self._add(f'<text x="{at:.1f}" y="{bottom + 17}" text-anchor="middle">{value:g}</text>')
        for value in ticks(*y):
            at = self.y(value)
            self._add(f'<line class="axis" x1="{_LEFT - 4}" x2="{_LEFT}" y1="{at:.1f}" y2="{at:.1f}"/>')  # fmt: skip
            self._add(f'<text x="{_LEFT - 7}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
        middle = _MARGIN + _SIZE / 2
        self._add(f'<text x="{_LEFT + _SIZE / 2}" y="{bottom + 36}" text-anchor="middle">{escape(names[0])}</text>')  # fmt: skip
        self._add(f'<text x="14" y="{middle}" text-anchor="middle" transform="rotate(-90 14 {middle})">{escape(names[1])}</text>')  # fmt: skip

    def _add(self, text: str) -> None:
        self.parts.append(text)

    def x(self, value: float) -> float:
        low, high = self._x
        return _LEFT + (value - low) / (high - low) * _SIZE

    def y(self, value: float) -> float:
        low, high = self._y
        return _MARGIN + (high - value) / (high - low) * _SIZE

    def line(self, points: Points, colour: str, *, dashed: bool = False, title: str = "") -> None:
        path = " ".join(f"{self.x(a):.1f},{self.y(b):.1f}" for a, b in points)
        dash = ' stroke-dasharray="4 4"' if dashed else ""
        self._add(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}><title>{escape(title)}</title></polyline>')  # fmt: skip

    def dot(self, x: float, y: float, colour: str, *, size: float = 3.5, title: str = "", faint: bool = False) -> None:  # fmt: skip
        opacity = ' fill-opacity="0.35"' if faint else ""
        self._add(f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="{size}" fill="{colour}"{opacity}><title>{escape(title)}</title></circle>')  # fmt: skip

    def end(self) -> str:
        return "".join([*self.parts, "</svg>"])


def rates(curves: Mapping[str, Points], kind: str) -> str:
    """ROC ("roc") or precision-recall ("pr") curves by class; beyond eight classes the first eight."""
    chosen = {name[len(kind) + 1 :]: points for name, points in curves.items() if name.startswith(f"{kind} ")}  # fmt: skip
    names = ("False positive rate", "True positive rate") if kind == "roc" else ("Recall", "Precision")  # fmt: skip
    title = "ROC" if kind == "roc" else "Precision and recall"
    plot = _Plot((0, 1), (0, 1), names, f"{title}: all held-out examples")
    if kind == "roc":
        plot.line([[0, 0], [1, 1]], "#9aa4b2", dashed=True, title="by chance")
    shown = list(chosen.items())[:_MOST_CURVES]
    for (name, points), colour in zip(shown, COLOURS, strict=False):
        plot.line(points, colour, title=name)
    return _figure(
        title, plot.end(), _legend([name for name, _ in shown]) if len(shown) > 1 else ""
    )


def calibration_plot(bins: Sequence[Mapping[str, float]]) -> str:
    """Observed share against predicted probability, with 95 % intervals."""
    plot = _Plot((0, 1), (0, 1), ("Predicted probability", "Observed share"), "Calibration")
    plot.line([[0, 0], [1, 1]], "#9aa4b2", dashed=True, title="perfect")
    plot.line([[one["predicted"], one["observed"]] for one in bins], COLOURS[0])
    for one in bins:
        x = one["predicted"]
        plot.line([[x, one["low"]], [x, one["high"]]], COLOURS[0])
        plot.dot(x, one["observed"], COLOURS[0], title=f"{one['count']:,.0f} predictions of about {x:.2f}; {one['observed']:.2f} came true")  # fmt: skip
    return _figure("Calibration", plot.end(), "")


def scatter(pairs: Points) -> str:
    """Predicted against true values."""
    truth, predicted = [p[0] for p in pairs], [p[1] for p in pairs]
    plot = _Plot(
        _range(truth), _range(predicted), ("True", "Predicted"), "True and predicted values"
    )
    for true, said in pairs:
        plot.dot(true, said, COLOURS[0], size=2.2, faint=True)
    return _figure("True and predicted", plot.end(), "")


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    spare = (high - low) * 0.03 or 0.5
    return low - spare, high + spare


def intervals(rows: Sequence[tuple[str, Mapping[str, float | None]]], title: str) -> str:
    """Values with their intervals, one under the other on one axis."""
    kept = [(name, one) for name, one in rows if one["value"] is not None]
    if not kept:
        return ""
    known = [v for _, one in kept for v in one.values() if v is not None]
    low, high = min(known), max(known)
    spare = (high - low) * 0.08 or 0.05
    low, high = low - spare, high + spare
    left, width, row, numbers = 190, 420, 30, 190
    parts = [opening(left + width + numbers, row * len(kept) + 40, title)]

    def x(value: float) -> float:
        return left + (value - low) / (high - low) * width

    base = row * len(kept) + 8
    for tick in ticks(low, high):
        parts.append(f'<line x1="{x(tick):.1f}" x2="{x(tick):.1f}" y1="4" y2="{base}" stroke="#e6eaf0"/>')  # fmt: skip
        parts.append(f'<text x="{x(tick):.1f}" y="{base + 18}" text-anchor="middle">{tick:g}</text>')  # fmt: skip
    for index, (name, one) in enumerate(kept):
        y, colour = row * index + 22, COLOURS[0] if index == 0 else COLOURS[-1]
        value, lower, upper = one["value"], one["low"], one["high"]
        assert value is not None
        parts.append(f'<text x="{left - 10}" y="{y + 4}" text-anchor="end">{escape(short(name, 28))}</text>')  # fmt: skip
        told = f"{value:.3f}"
        if lower is not None and upper is not None:
            parts.append(f'<line x1="{x(lower):.1f}" x2="{x(upper):.1f}" y1="{y}" y2="{y}" stroke="{colour}" stroke-width="3"/>')  # fmt: skip
            told += f"  [{lower:.3f}, {upper:.3f}]"
        parts.append(f'<circle cx="{x(value):.1f}" cy="{y}" r="5" fill="{colour}"/>')
        parts.append(f'<text x="{left + width + 14}" y="{y + 4}">{told}</text>')
    return "".join([*parts, "</svg>"])


def confusion_table(table: Sequence[Sequence[int]], names: Sequence[str]) -> str:
    """Counts by true class (rows) and class said, shaded by the share of the row."""
    most = 24
    if len(names) > most:
        return f'<p class="note">{len(names)} classes; results.json has the whole table.</p>'
    head = "".join(f'<th class="number">{escape(name)}</th>' for name in names)
    rows = []
    for name, counts in zip(names, table, strict=True):
        total = sum(counts) or 1
        cells = "".join(
            f'<td class="number" style="background:rgba(31,95,168,{0.55 * count / total:.3f})">{count:,}<br><span class="note">{count / total:.0%}</span></td>'
            for count in counts
        )
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f'<table class="confusion"><tr><th>true \\ said</th>{head}</tr>{"".join(rows)}</table>'


def _legend(names: Sequence[str]) -> str:
    return "".join(
        f'<span style="color:{colour}">&#9632;</span> {escape(short(name, 30))}&ensp;'
        for name, colour in zip(names, COLOURS, strict=False)
    )


def _figure(title: str, drawing: str, legend: str) -> str:
    below = f'<figcaption class="note">{legend}</figcaption>' if legend else ""
    return f"<figure><h3>{escape(title)}</h3>{drawing}{below}</figure>"
