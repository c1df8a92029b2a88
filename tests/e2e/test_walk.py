"""docs/architecture.md draws a message's way through the code: every module that a message enters, in order."""

from __future__ import annotations

import tempfile
from pathlib import Path

from tests.e2e.walk import HANDLER, walk

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def drawn() -> tuple[list[str], list[str]]:
    """Return the stations that the page draws, of the way in and of the way back."""
    block = PAGE.read_text(encoding="utf-8").split(" the way in\n")[1].split("```")[0]
    there, back = block.split(f" ── {HANDLER} ──\n the way back\n")
    first, second = ([line.split()[0] for line in way.splitlines()] for way in (there, back))
    return first, second


async def test_way_of_a_message_is_drawn_on_the_page() -> None:
    with tempfile.TemporaryDirectory(prefix="b-") as directory:  # a Unix socket's path is short
        way = await walk(Path(directory))
    turn = way.index(HANDLER)
    assert (list(dict.fromkeys(way[:turn])), list(dict.fromkeys(way[turn + 1 :]))) == drawn()
