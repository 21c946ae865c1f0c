"""Charts as inline SVG: no script, no font, no colour of their own; the page's style decides, in light and dark.

Each is an image with a title and a description that says its numbers; whoever cannot see it loses nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup, escape

from atlas.bench.statistics import Estimate

WIDTH = 720
LABEL_WIDTH = 300
ROW_HEIGHT = 30
MARGIN = 28
CURVE_HEIGHT = 300


class Named(NamedTuple):
    """A figure and what it is of."""

    label: str
    estimate: Estimate


def percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f} %"


def rate_text(estimate: Estimate) -> str:
    """Value and interval for a table or a description."""
    if estimate.value is None:
        return "-"
    return f"{100 * estimate.value:.1f} % ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def intervals(title: str, rows: Sequence[Named], *, name: str) -> Markup:
    """One dot with its interval a row, on a scale from 0 to 100 %."""
    height = MARGIN + ROW_HEIGHT * len(rows) + MARGIN
    left, right = LABEL_WIDTH, WIDTH - 20
    parts = [_scale(left, right, MARGIN - 8, height - MARGIN)]
    for number, row in enumerate(rows):
        y = MARGIN + ROW_HEIGHT * number + ROW_HEIGHT / 2
        parts.append(_text(left - 12, y + 4, row.label, anchor="end"))
        if row.estimate.value is not None:
            low, value, high = (_at(x, left, right) for x in (row.estimate.low, row.estimate.value, row.estimate.high))
            parts.append(
                Markup('<line class="whisker" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(low, high, y, y)
            )
            parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="5"/>').format(value, y))
    told = "; ".join(f"{row.label}: {rate_text(row.estimate)}" for row in rows)
    return _svg(title, told, height, parts, name=name)


def curve(title: str, points: dict[int, Estimate], *, name: str) -> Markup:
    """A rate by k, its interval as a band; one k is as far from the next as any other."""
    known = [(k, estimate) for k, estimate in sorted(points.items()) if estimate.value is not None]
    left, right, top, bottom = 60.0, WIDTH - 20.0, 20.0, CURVE_HEIGHT - 40.0
    step = (right - left - 40) / max(1, len(known) - 1)
    xs = [left + 20 + step * number for number in range(len(known))]

    def line(values: Sequence[float]) -> str:
        return " ".join(f"{x:.1f},{_at(value, bottom, top):.1f}" for x, value in zip(xs, values, strict=True))

    values = [estimate.value or 0.0 for _, estimate in known]
    highs, lows = [estimate.high for _, estimate in known], [estimate.low for _, estimate in known]
    back = " ".join(reversed(line(lows).split()))
    parts = [_grid(left, right, top, bottom)]
    parts.append(Markup('<polygon class="band" points="{}"/>').format(f"{line(highs)} {back}"))
    parts.append(Markup('<polyline class="curve" points="{}"/>').format(line(values)))
    for x, value, (k, _) in zip(xs, values, known, strict=True):
        parts.append(Markup('<circle class="dot" cx="{:.1f}" cy="{:.1f}" r="4"/>').format(x, _at(value, bottom, top)))
        parts.append(_text(x, bottom + 22, f"k = {k}", anchor="middle"))
    told = "; ".join(f"k = {k}: {rate_text(estimate)}" for k, estimate in known)
    return _svg(title, told, CURVE_HEIGHT, parts, name=name)


def _svg(title: str, told: str, height: float, parts: Sequence[Markup], *, name: str) -> Markup:
    start = Markup('<svg viewBox="0 0 {} {}" role="img" aria-labelledby="{}-title {}-told">')
    head = Markup('<title id="{}-title">{}</title><desc id="{}-told">{}</desc>').format(name, title, name, told)
    return start.format(WIDTH, int(height), name, name) + head + Markup("").join(parts) + Markup("</svg>")


def _scale(left: float, right: float, top: float, bottom: float) -> Markup:
    """Vertical lines at every fifth, with their per cent below."""
    lines = []
    for fifth in range(6):
        x = _at(fifth / 5, left, right)
        lines.append(Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(x, x, top, bottom))
        lines.append(_text(x, bottom + 18, f"{20 * fifth} %", anchor="middle"))
    return Markup("").join(lines)


def _grid(left: float, right: float, top: float, bottom: float) -> Markup:
    lines = []
    for fifth in range(6):
        y = _at(fifth / 5, bottom, top)
        lines.append(Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, y, y))
        lines.append(_text(left - 8, y + 4, f"{20 * fifth} %", anchor="end"))
    return Markup("").join(lines)


def _text(x: float, y: float, text: str, *, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))


def _at(share: float, start: float, end: float) -> float:
    return start + share * (end - start)
