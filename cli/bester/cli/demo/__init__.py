"""`bester demo`: plays one of the two stories with live servers, and draws the path of its messages."""

from __future__ import annotations

import asyncio
import signal
import tempfile
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

STORIES = ("deployment", "letters")
LINKS = ("fabric", "native-name", "native-address")
MOST = 1000
"""Messages at once: brokers keep 8,192 trace steps, and one message takes up to five of them at a server."""
TMP = Path("/tmp")  # noqa: S108 (only the length counts; files in it have unique names and mode 0700)
SHORT = 40
"""Longest path of a temporary directory below which sockets still have paths that Unix allows."""


@click.command()
@click.argument("story", type=click.Choice(STORIES), default=STORIES[0])
@click.option(
    "--links",
    type=click.Choice(LINKS),
    default=LINKS[0],
    show_default=True,
    help="How the servers are linked: over the fabric, or by the native protocol, named or by address.",
)
@click.option(
    "--count", type=click.IntRange(1, MOST), default=1, show_default=True, metavar="N", help="Messages sent at once."
)
@click.option("--page", is_flag=True, help="Show the servers' pages, and send until Ctrl-C: watch the messages pass.")
def demo(story: str, links: str, count: int, page: bool) -> int:
    """Play a story with live servers and draw each message's path.

    Exit status 0 means that every message arrived and every report was good.
    """
    from bester.cli.demo.play import play

    with _directory() as directory:
        return asyncio.run(_played(play(story, links, count, directory, pages=page)))


async def _played(playing: Coroutine[None, None, int]) -> int:
    """Play to the end; SIGTERM and SIGHUP end the demo as Ctrl-C does, with everything removed."""
    received: list[int] = []
    task = asyncio.create_task(playing)

    def end(number: int) -> None:
        received.append(number)
        task.cancel()

    for number in (signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, end, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not received:
            raise  # Ctrl-C
        return 128 + received[0]


@contextmanager
def _directory() -> Iterator[Path]:
    parent = tempfile.gettempdir()
    if len(parent) > SHORT and TMP.is_dir():
        parent = str(TMP)
    with tempfile.TemporaryDirectory(prefix="bester-", dir=parent) as name:
        yield Path(name)
