"""Plots as SVG, drawn by hand: lines over named places, and bars in groups. Pure.

White ground and dark text, so that a page in either scheme shows them; no fonts, scripts or files from elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from xml.sax.saxutils import escape

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f")
LEFT, RIGHT, TOP, BOTTOM = 70, 190, 40, 48
WIDTH, HEIGHT = 760, 330
TICKS = 5


class Line(NamedTuple):
    """Line of a plot: a value for each place, None where there is none; `dashed` tells two of one colour apart."""

    name: str
    values: Sequence[float | None]
    colour: int
    dashed: bool = False


class Scale(NamedTuple):
    """Vertical scale from `least` to `most`, with its ticks; `log`: by factors of ten."""

    least: float
    most: float
    ticks: tuple[float, ...]
    log: bool

    def share(self, value: float) -> float:
        """Return where a value stands, from 0 (bottom) to 1 (top); beyond the scale is at its end."""
        value = min(max(value, self.least), self.most)
        if self.log:
            return math.log(value / self.least) / math.log(self.most / self.least)
        return (value - self.least) / (self.most - self.least)


def scale(values: Sequence[float], *, log: bool = False) -> Scale:
    """Return a scale on which all these values stand; `log` needs values above 0 and ignores others."""
    if log:
        positive = [value for value in values if value > 0] or [1.0]
        low = math.floor(math.log10(min(positive)))
        high = max(math.ceil(math.log10(max(positive))), low + 1)
        return Scale(10.0**low, 10.0**high, tuple(10.0**power for power in range(low, high + 1)), log=True)
    most = max([*values, 0.0]) or 1.0
    step = 10.0 ** math.floor(math.log10(most / TICKS))
    step *= next(factor for factor in (1, 2, 5, 10) if most / (step * factor) <= TICKS)
    count = math.ceil(most / step - 1e-9)
    return Scale(0.0, step * count, tuple(step * number for number in range(count + 1)), log=False)


def number(value: float) -> str:
    """Return a value as short as a tick needs it."""
    return f"{value:,.0f}" if value >= 10 else f"{value:g}"


def _text(x: float, y: float, text: str, anchor: str = "start", size: int = 12) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}">{escape(text)}</text>'


def _y(on: Scale, value: float) -> float:
    return HEIGHT - BOTTOM - on.share(value) * (HEIGHT - TOP - BOTTOM)


def _frame(title: str, unit: str, on: Scale, goal: tuple[str, float] | None) -> list[str]:
    parts = [_text(LEFT, 22, title, size=15), _text(LEFT, TOP - 4, unit, size=11)]
    for tick in on.ticks:
        y = _y(on, tick)
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#dddddd"/>')
        parts.append(_text(LEFT - 6, y + 4, number(tick), "end", 11))
    if goal is not None:
        name, value = goal
        y = _y(on, value)
        parts.append(
            f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#333333" '
            'stroke-dasharray="2 3"/>'
        )
        parts.append(_text(WIDTH - RIGHT - 4, y - 4, name, "end", 11))
    return parts


def _legend(names: Sequence[tuple[str, int, bool]]) -> list[str]:
    parts = []
    for place, (name, colour, dashed) in enumerate(names):
        x, y = WIDTH - RIGHT + 12, TOP + 8 + place * 18
        dash = ' stroke-dasharray="6 4"' if dashed else ""
        stroke = f'stroke="{COLOURS[colour % len(COLOURS)]}"'
        parts.append(f'<line x1="{x}" x2="{x + 24}" y1="{y}" y2="{y}" {stroke} stroke-width="2.5"{dash}/>')
        parts.append(_text(x + 30, y + 4, name))
    return parts


def document(parts: Sequence[str], label: str) -> str:
    """Return a whole SVG file of these parts; `label` says what it shows to those who cannot see it."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'role="img" aria-label={_quoted(label)} font-family="sans-serif" fill="#222222">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>', *parts, "</svg>"]) + "\n"


def _quoted(text: str) -> str:
    return '"' + escape(text, {'"': "&quot;"}) + '"'


def lines(
    title: str,
    unit: str,
    places: Sequence[str],
    drawn: Sequence[Line],
    *,
    log: bool = False,
    goal: tuple[str, float] | None = None,
) -> str:
    """Return a plot of lines over named places; `goal` is a horizontal line with its name."""  # fmt: skip
    values = [value for line in drawn for value in line.values if value is not None]
    on = scale([*values, goal[1]] if goal else values, log=log)
    parts = _frame(title, unit, on, goal)
    step = (WIDTH - LEFT - RIGHT) / max(len(places), 1)
    centres = [LEFT + step * (place + 0.5) for place in range(len(places))]
    parts += [_text(x, HEIGHT - BOTTOM + 18, name, "middle") for x, name in zip(centres, places, strict=True)]
    for line in drawn:
        colour = COLOURS[line.colour % len(COLOURS)]
        points = [(x, _y(on, value)) for x, value in zip(centres, line.values, strict=True) if value is not None]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2.5"{dash}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in points]
    parts += _legend([(line.name, line.colour, line.dashed) for line in drawn])
    return document(parts, title)


def bars(title: str, unit: str, places: Sequence[str], groups: Mapping[str, Sequence[float | None]]) -> str:
    """Return a plot of bars: at each named place one bar of every group that has a value there."""
    on = scale([value for values in groups.values() for value in values if value is not None])
    parts = _frame(title, unit, on, None)
    step = (WIDTH - LEFT - RIGHT) / max(len(places), 1)
    width = step * 0.8 / max(len(groups), 1)
    for place, name in enumerate(places):
        start = LEFT + step * (place + 0.1)
        parts.append(_text(start + step * 0.4, HEIGHT - BOTTOM + 16 + 13 * (place % 2), name, "middle", 11))
        for at, values in enumerate(groups.values()):
            value = values[place]
            if value is None:
                continue
            x, y = start + at * width, _y(on, value)
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{width * 0.92:.1f}" height="{HEIGHT - BOTTOM - y:.1f}" '
                f'fill="{COLOURS[at % len(COLOURS)]}"/>'
            )
            parts.append(_text(x + width / 2, y - 3, number(round(value, 1)), "middle", 10))
    parts += _legend([(name, at, False) for at, name in enumerate(groups)])
    return document(parts, title)
