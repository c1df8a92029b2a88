"""Draws sent messages and each path that they took, with a time for every step.

On a terminal the drawing keeps to its width; in a file or pipe each paragraph is one line.
"""

from __future__ import annotations

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bester.cli import tables
from bester.cli.demo.routes import Route, Way

PIPE_WIDTH = 80
"""Columns of the drawing without a terminal."""
BAR_WIDTHS = range(8, 31)
"""Widths of bars: narrower ones show nothing, wider ones nothing more."""
GAP = "  "


def say(console: Console, text: str, style: str = "") -> None:
    """Print one paragraph."""
    console.print(Text(text, style), soft_wrap=not console.is_terminal)


def way(console: Console, taken: Way, total: int) -> None:
    """Draw one path, and the times at its stops; medians where several messages took it."""
    width = console.width if console.is_terminal else PIPE_WIDTH
    say(console, "")
    if total > 1:
        say(console, f"{taken.messages} of {total} messages took this way, with these times in the median:")
    for line in path_lines(taken.route, width if console.is_terminal else None):
        say(console, line, "bold cyan")
    say(console, "")
    tables.print_table(table(taken, width))
    say(console, f"{taken.route[0].where} had its report after {_ms(taken.report_ms)}", "dim")


def path_lines(route: Route, width: int | None) -> list[str]:
    """Return a path as `U1 → S1/M1 → … → U2`, broken before its arrows where it is wider than `width`."""
    lines = [route[0].where]
    for stop in route[1:]:
        step = f" → {stop.where}"
        if width is not None and len(lines[-1]) + len(step) > width:
            lines.append(f"{GAP}→ {stop.where}")
        else:
            lines[-1] += step
    return lines


def table(taken: Way, width: int) -> Table:
    """Return the table of a way's stops: without bars on a narrow terminal, without commands on a narrower one."""
    commands = _table(taken.route, commands=True)
    _, needed = tables.widths(commands)
    bar = min(width - needed - len(GAP), BAR_WIDTHS[-1])
    if bar in BAR_WIDTHS:
        return _table(taken.route, commands=True, bar=bar)
    return commands if needed <= width else _table(taken.route, commands=False)


def _table(route: Route, *, commands: bool, bar: int | None = None) -> Table:
    drawn = tables.plain_table()
    drawn.header_style = "dim"
    drawn.add_column("stop")
    if commands:
        drawn.add_column("by", style="dim")
    drawn.add_column("since send", justify="right")
    drawn.add_column("step", justify="right")
    if bar is not None:
        drawn.add_column()
    end_ms = route[-1].at_ms
    for before, stop in zip((route[0], *route), route, strict=False):
        cells: list[Text | Bar] = [Text(stop.where)]
        if commands:
            cells.append(Text(stop.how))
        cells += [Text(_ms(stop.at_ms)), Text("" if stop is before else _ms(stop.at_ms - before.at_ms))]
        if bar is not None and stop is not before:
            cell_ms = end_ms / bar  # a step of no time still shows
            first_ms = min(before.at_ms, end_ms - cell_ms)
            cells.append(Bar(end_ms, first_ms, max(stop.at_ms, first_ms + cell_ms), width=bar, color="cyan"))
        drawn.add_row(*cells)
    return drawn


def _ms(value: float) -> str:
    return f"{value:.2f} ms"
