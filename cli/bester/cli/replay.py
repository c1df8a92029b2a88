"""`bester replay`: runs recorded messages through a handler, without sockets, and shows how its answers differ."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bester.broker.streams import plain
from bester.cli.output import err, out

if TYPE_CHECKING:
    from bester.broker.core.differences import Comparison
    from bester.cli.recording import Entry
    from bester.handlers.app import App

DATA = "BESTER_DATA"
"""Variable that names the directory of a handler's state."""


@click.command()
@click.option("--json", "json_lines", is_flag=True, help="Print an object for each message, one a line.")
@click.option("--strict", is_flag=True, help="Compare values that look like ids and times as well.")
@click.option("--ignore", "ignored", multiple=True, metavar="PLACE", help="Do not compare this place: body.price.")
@click.option("--client", "clients", multiple=True, metavar="USER", help="A user whom the handler finds connected.")
@click.option(
    "--data", type=click.Path(path_type=Path, exists=True, file_okay=False), metavar="DIR",
    help="The handler's state at the start; the replay works on a copy. By default there is none.",
)  # fmt: skip
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("app", metavar="MODULE:APP")
def replay(
    json_lines: bool, strict: bool, ignored: tuple[str, ...], clients: tuple[str, ...], data: Path | None, file: Path,
    app: str,
) -> int:  # fmt: skip
    """Run a recording through a handler, and show how its commands differ from the recorded ones.

    No server is needed, and nothing is sent. The messages are handled one after another, in their order. Exit status 1
    means that an answer differs. Senders in the recording, and each --client, are connected users.
    """
    from bester.cli.recording import entries

    recorded = list(entries(file))
    with tempfile.TemporaryDirectory(prefix="bester-replay-") as directory:
        state = Path(directory, "data")
        if data is not None:
            shutil.copytree(data, state)
        before = os.environ.get(DATA)
        os.environ[DATA] = str(state)
        try:
            with contextlib.redirect_stdout(sys.stderr):  # output of a handler is no part of the result
                loaded = _load(app, recorded)
                results = asyncio.run(_replay(loaded, recorded, clients, ignored, strict))
        finally:
            if before is None:
                del os.environ[DATA]
            else:
                os.environ[DATA] = before
    for entry, comparison in zip(recorded, results, strict=True):
        _show(entry, comparison, json_lines)
    different = sum(bool(each.differences) for each in results)
    if not json_lines:
        _summarize(len(results), different, sum(each.passed_over for each in results))
    return 1 if different else 0


def _load(spec: str, recorded: Iterable[Entry]) -> App:
    """Return the app, which handles every type of the recording. Raises ConfigError."""
    from bester.broker.wire.codes import ConfigError
    from bester.handlers.loading import LoadError, load

    try:
        app = load(spec)
        app.serving(list(dict.fromkeys(entry.request.type for entry in recorded)))
    except LoadError as error:
        raise ConfigError(str(error)) from None
    except ValueError as error:
        raise ConfigError(f"{spec}: {error}") from None
    return app


async def _replay(
    app: App, recorded: list[Entry], clients: Iterable[str], ignored: tuple[str, ...], strict: bool
) -> list[Comparison]:
    from bester.broker.core.differences import Answered, compare
    from bester.broker.wire.codes import ConfigError
    from bester.broker.wire.messages import FAILED, REQUEST_MS, Reply
    from bester.broker.wire.notes import describe
    from bester.handlers.testing import Tester

    senders = (entry.request.user for entry in recorded if entry.request.user is not None)
    results = []
    try:
        await app.start()  # a second start, by the tester, does nothing
    except Exception as error:  # noqa: BLE001 (a start hook is the author's code)
        raise ConfigError(f"a start hook failed: {describe(error)}") from None
    async with Tester(app, clients=dict.fromkeys((*senders, *clients))) as tester:
        for entry in recorded:
            try:
                async with asyncio.timeout(REQUEST_MS / 1000):
                    reply = await tester.reply(entry.request)
            except TimeoutError:
                reply = Reply(0, FAILED, [], None, "timeout")
            before, after = Answered(entry.reply, entry.at_s), Answered(reply, time.time())
            results.append(compare(before, after, ignored=ignored, strict=strict))
    return results


def _show(entry: Entry, comparison: Comparison, json_lines: bool) -> None:
    request, differences = entry.request, comparison.differences
    if json_lines:
        row: dict[str, Any] = {
            "id": request.meta["id"],
            "type": request.type,
            "user": request.user,
            "same": not differences,
            "differences": [each._asdict() for each in differences],
            "passed_over": comparison.passed_over,
        }
        out(json.dumps(row))
    elif differences:
        sender = f"user {request.user}" if request.user is not None else f"a {request.meta.get('scope', 'client')}"
        out(plain(f"{request.meta['id']}: {request.type} from {sender}"))
        for each in differences:
            out(plain(f"  {each}"))


def _summarize(messages: int, different: int, passed_over: int) -> None:
    number = f"{messages} message{'' if messages == 1 else 's'}"
    out(f"{number}: {messages - different} answered as recorded, {different} differently")
    if passed_over:
        err(f"bester: {passed_over} values that look like ids or times were passed over; --strict compares them")
    if not messages:
        err("bester: the recording holds no messages")
