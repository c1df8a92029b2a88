"""Prints tables: folded by rich to a terminal's width, one line a row on any other output.

Colours and bold are for terminals alone; rich leaves them out for TERM=dumb, and colours for NO_COLOR.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bester.cli.output import out

if TYPE_CHECKING:
    from rich.table import Table

GAP = "  "
FOLDED_ROWS = 1000
"""Most rows that are folded: rich takes about a millisecond for each, and a longer list is searched, not read."""
UNBOUNDED = 1_000_000
"""Columns of an output without a width; wider than any row, so that no row is folded."""


def show(rows: Sequence[Sequence[str]], header: Sequence[str] = ()) -> None:
    """Print rows of cells below an optional header; cells hold no control characters. Raises OutputError."""
    if not sys.stdout.isatty() or len(rows) > FOLDED_ROWS:
        for line in aligned([header, *rows] if header else rows):
            out(line)
        return
    from rich.cells import cell_len
    from rich.text import Text

    table = plain_table()
    table.show_header = bool(header)
    for number, cells in enumerate(zip(*rows, strict=True)):
        name = Text(header[number] if header else "")
        is_whole = not any(" " in cell for cell in cells)  # ids and dates, to be copied: never folded, nor their header
        least = max(name.cell_len, *map(cell_len, cells)) if is_whole else None
        table.add_column(name, no_wrap=is_whole, min_width=least, overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    print_table(table)


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return a line for each row, its cells padded to the columns of a terminal that the widest in the column takes."""
    from rich.cells import cell_len

    sizes = [max(map(cell_len, cells)) for cells in zip(*rows, strict=True)]
    return [
        GAP.join(cell + " " * (size - cell_len(cell)) for cell, size in zip(row, sizes, strict=True)).rstrip()
        for row in rows
    ]


def plain_table() -> Table:
    """Return an empty table without lines, two blanks between its columns."""
    from rich.table import Table

    return Table(box=None, padding=(0, len(GAP), 0, 0), pad_edge=False, header_style="bold")


def print_table(table: Table) -> None:
    """Print a table to standard output line by line, without trailing blanks. Raises OutputError.

    A table that cannot be folded to the terminal's width is wider than the terminal.
    """
    from rich.console import Console

    console = Console(force_terminal=sys.stdout.isatty())
    least, most = widths(table)
    console.width = max(console.width, least) if console.is_terminal else most
    with console.capture() as capture:
        console.print(table)
    for line in capture.get().removesuffix("\n").split("\n"):
        out(line.rstrip())


def widths(table: Table) -> tuple[int, int]:
    """Return the columns that a table needs at least, its longest words kept whole, and at most."""
    from rich.console import Console
    from rich.measure import Measurement

    console = Console()
    found = Measurement.get(console, console.options.update(max_width=UNBOUNDED), table)
    return found.minimum, found.maximum
