"""Draws what happened: what was said, and each way that messages took, with a time for every step.

On a terminal it keeps to the width there is; into a file or pipe, what belongs on one line stays on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from rich.console import Console
from rich.text import Text

from bester.cli.demo.routes import Route, Way

PIPE_WIDTH = 80
"""Columns to draw for where there is no terminal."""
BAR_WIDTHS = range(8, 31)
"""Narrower tells nothing, wider tells no more."""
GAP = "  "
STYLES = ("", "dim", "", "", "cyan")
"""Of the columns: stop, how it was sent there, since the send, since the stop before, the same as a bar."""

Row = tuple[str, str, str, str]


def say(console: Console, text: str, style: str = "") -> None:
    """Print one paragraph."""
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def way(console: Console, taken: Way, total: int) -> None:
    """Draw one way, and the times at its stops; medians where several messages took it."""
    width = console.width if console.is_terminal else PIPE_WIDTH
    say(console, "")
    if total > 1:
        say(console, f"{taken.messages} of {total} messages took this way, with these times in the median:")
    for line in path_lines(taken.route, width if console.is_terminal else None):
        say(console, line, "bold cyan")
    say(console, "")
    for row in table(taken, width):
        console.print(row, soft_wrap=True)
    say(console, f"{taken.route[0].where} had its report after {_ms(taken.report_ms)}", "dim")


def path_lines(route: Route, width: int | None) -> list[str]:
    """Return a way as `U1 → S1/M1 → … → U2`, broken before its arrows where that is wider than `width`."""
    lines = [route[0].where]
    for stop in route[1:]:
        step = f" → {stop.where}"
        if width is not None and len(lines[-1]) + len(step) > width:
            lines.append(f"{GAP}→ {stop.where}")
        else:
            lines[-1] += step
    return lines


def table(taken: Way, width: int) -> list[Text]:
    """Return a line for each stop; on a narrow terminal without the bars, on a narrower one without the commands."""
    route = taken.route
    rows: list[Row] = [("stop", "by", "since send", "step")]
    rows += [
        (stop.where, stop.how, _ms(stop.at_ms), _ms(stop.at_ms - before.at_ms) if stop is not before else "")
        for before, stop in zip((route[0], *route), route, strict=False)
    ]
    sizes = [max(map(len, column)) for column in zip(*rows, strict=True)]
    taken_up = sum(sizes) + len(GAP) * len(sizes)
    bar = min(width - taken_up, BAR_WIDTHS[-1])
    bars = ["", *_bars(route, bar)] if bar in BAR_WIDTHS else [""] * len(rows)
    columns = [0, 1, 2, 3, 4] if sum(sizes) + len(GAP) * 3 <= width else [0, 2, 3]
    return [
        _line(row, drawn, sizes, columns, number == 0)
        for number, (row, drawn) in enumerate(zip(rows, bars, strict=True))
    ]


def _line(row: Row, bar: str, sizes: Sequence[int], columns: Sequence[int], head: bool) -> Text:
    name, how, since, step = (cell.ljust(sizes[i]) if i < 2 else cell.rjust(sizes[i]) for i, cell in enumerate(row))
    cells = (name, how, since, step, bar)
    line = Text(style="dim" if head else "")
    for number, i in enumerate(columns):
        line.append((GAP if number else "") + cells[i], STYLES[i])
    line.rstrip()
    return line


def _bars(route: Route, width: int) -> list[str]:
    """Draw the time of each step as its piece of a line that is all of the time."""
    end = route[-1].at_ms
    scale = width / end if end > 0 else 0.0
    bars = [""]
    for before, stop in pairwise(route):
        first = min(int(before.at_ms * scale), width - 1)
        bars.append(" " * first + "━" * max(1, round(stop.at_ms * scale) - first))
    return bars


def _ms(value: float) -> str:
    return f"{value:.2f} ms"
