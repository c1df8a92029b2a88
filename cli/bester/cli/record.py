"""`bester record`: writes messages of a running server, and the commands that answered them, into a file."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bester.cli.options import Seconds, as_text, config_option, load
from bester.cli.output import done, err

if TYPE_CHECKING:
    from bester.broker.config import Config

POLL_S = 0.2
"""Pause between two questions: the server holds thousands of messages meanwhile."""


@click.command()
@config_option
@click.option("--type", "type_", metavar="TYPE", required=True, callback=as_text, help="Message type to record.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many messages.")
@click.option("--seconds", type=Seconds(0, min_open=True), metavar="S", help="End after so many seconds.")
@click.argument("file", type=click.Path(path_type=Path))
def record(config_path: Path | None, type_: str, count: int | None, seconds: float | None, file: Path) -> None:
    """Record the messages of a type and the commands that answered them, until Ctrl-C.

    FILE is new, and can be read by its owner alone: it holds what the users sent. `bester replay` runs it through a
    handler. A message is recorded when its handler has answered.
    """
    config = load(config_path)
    from bester.cli.operate import knock

    knock(config)
    written, missing = asyncio.run(_record(config, type_, count, seconds, file))
    if missing:
        err(f"bester: {missing} more messages are missing in {file}: they came faster than they were written")
    done(f"recorded {written} message{'' if written == 1 else 's'} of type {type_} in {file}")


async def _record(config: Config, type_: str, count: int | None, seconds: float | None, path: Path) -> tuple[int, int]:
    """Record until a bound, SIGINT or SIGTERM; return the number of messages written, and of those missing."""
    from bester.cli.operate import Session
    from bester.cli.recording import add, created

    stop = asyncio.Event()
    written = missing = 0
    loop = asyncio.get_running_loop()
    async with Session(config) as session:
        rows = await _fetch(session, {"type": type_})
        with created(path, session.server, type_, round(time.time() * 1000)) as file:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, stop.set)
            if seconds is not None:
                loop.call_later(seconds, stop.set)
            err(f"recording messages of type {type_} of {session.server}; Ctrl-C ends the recording")
            try:
                while True:
                    fetched = rows["rows"] if count is None else rows["rows"][: count - written]
                    add(file, fetched)
                    written, missing = written + len(fetched), missing + rows["dropped"]
                    if written == count or (stop.is_set() and rows.get("last")):
                        return written, missing
                    if not rows["more"] and not stop.is_set():
                        with contextlib.suppress(TimeoutError):
                            await asyncio.wait_for(stop.wait(), POLL_S)
                    ending = stop.is_set()
                    rows = await _fetch(session, {"type": type_, "end": ending})
                    rows["last"] = ending and not rows["more"]
            except BaseException as error:
                error.add_note(f"{path} holds the {written} messages until then")
                raise


async def _fetch(session: Any, argument: dict[str, Any]) -> dict[str, Any]:
    """Return what was recorded since the last question. Raises BesterError where the server refuses."""
    from bester.broker.wire.codes import BesterError

    (answer,) = await session.ask(("record", argument))
    if answer.status == 0:
        value: dict[str, Any] = answer.value
        return value
    if isinstance(answer.value, str):  # the reason of the refusal
        raise BesterError("not-allowed", answer.value)
    raise BesterError("unknown-op", "the server does not know how to record; is this program newer?")
