"""What every report is made of: one HTML page that loads nothing and runs nothing, its style and tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; background: #fff; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; } h2 { font-size: 19px; margin: 36px 0 8px; }
h3 { font-size: 15px; margin: 20px 0 4px; } p { margin: 6px 0; max-width: 75ch; }
table { border-collapse: collapse; margin: 8px 0; } th, td { text-align: left; padding: 3px 14px 3px 0; vertical-align: top; overflow-wrap: anywhere; }
th { font-weight: 600; border-bottom: 1px solid #cbd2dc; } td { border-bottom: 1px solid #edf0f4; }
td:first-child { overflow-wrap: normal; min-width: 8em; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.note { color: #5a6575; } .warning { background: #fff4e0; border-left: 4px solid #d98a00; padding: 6px 12px; margin: 8px 0; }
svg { max-width: 100%; height: auto; display: block; } svg text { font: 12px system-ui, sans-serif; fill: #1c2430; }
svg .bar { fill: #8fb0d8; } svg .median { stroke: #0b2f5c; stroke-width: 2; } svg .quartile { stroke: #0b2f5c; stroke-width: 1; opacity: .55; }
svg .zero { stroke: #c0392b; stroke-dasharray: 3 3; } svg .axis { stroke: #7b8696; } svg .allele { fill: #f0ecd8; }
svg text.base { font: 10px ui-monospace, monospace; text-anchor: middle; } svg text.strong { font-weight: 700; }
.context { font: 13px/1.6 ui-monospace, monospace; overflow-wrap: anywhere; max-width: none; } .context b { background: #f0ecd8; padding: 0 2px; }
details { border: 1px solid #dde2ea; border-radius: 6px; padding: 6px 12px; margin: 8px 0; } summary { cursor: pointer; overflow-wrap: anywhere; }
.forward { color: #1f5fa8; } .reverse { color: #b3541e; }
"""


def page_head(title: str) -> str:
    """Everything up to the heading; `</main></body></html>` ends the page."""
    # The policy keeps even a browser that is online from loading anything.
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body><main>\n<h1>{escape(title)}</h1>"
    )


def page_table(rows: Iterable[Sequence[object]], head: Sequence[str] = (), numbers: int = 0) -> str:
    """A table; the last so many columns hold numbers."""

    def line(cells: Sequence[object], tag: str) -> str:
        first = len(cells) - numbers
        return "".join(
            f"<{tag}{' class=number' if i >= first else ''}>{escape(str(cell))}</{tag}>"
            for i, cell in enumerate(cells)
        )

    top = f"<tr>{line(head, 'th')}</tr>" if head else ""
    body = "".join(f"<tr>{line(row, 'td')}</tr>" for row in rows)
    return f"<table>{top}{body}</table>"
