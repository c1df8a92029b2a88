"""What later becomes of one message that was queued for some, followed until it is known for all of them.

Servers push it; what may have been pushed while there was no connection is asked for when it is back. Each outcome is
told once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bester.client import Client, ConnectionLost, Message, Report, ServerRefused

QUEUED = "queued"


def ends_badly(outcome: str) -> bool:
    """Say whether the message will not arrive."""
    return outcome.startswith("failed:")


class Following:
    """What is known of the outcomes of one client's messages, and of its connection."""

    def __init__(self) -> None:
        self._about: str | None = None  # the message; before its report any may be it
        self._known: dict[tuple[str, str], str] = {}  # by message and recipient
        self._news = asyncio.Event()
        self._missed = False
        self._lost = asyncio.Event()

    def linked(self, connected: bool, _: str) -> None:
        """The connection is made, or lost."""
        if connected:
            self._lost.clear()
        else:
            self._missed = True
            self._lost.set()
        self._news.set()

    def told(self, message: Message) -> bool:
        """A message came; False: it tells what is known already."""
        outcome = message.outcome
        if outcome is None or self._about not in (None, outcome.message):
            return True
        before = self._known.get((outcome.message, outcome.recipient))
        self._known[outcome.message, outcome.recipient] = outcome.outcome
        self._news.set()
        return before is None

    async def a_moment(self, showing: asyncio.Task[None], wait_s: float) -> None:
        """Wait so long, or until the connection is lost: nothing more will come on it."""
        lost = asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait([showing, lost], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()

    async def until_known(
        self,
        client: Client,
        report: Report,
        showing: asyncio.Task[None],
        show: Callable[[str, dict[str, str]], None],
    ) -> bool:
        """Wait until the outcome is known for all whom the report calls queued; True where nobody's is a failure.

        `showing` passes messages to `told`; `show` gets what had to be asked for. Raises what ended the client.
        """
        message = self._about = report.message
        if message is None:
            return report.good
        names = [name for name, outcome in report.recipients.items() if outcome == QUEUED]
        showing.add_done_callback(lambda _: self._news.set())
        while any((message, name) not in self._known for name in names):
            if showing.done():
                await showing  # its error is why
                return False
            self._news.clear()
            if not (self._missed and client.connected and await self._ask(client, message, show)):
                await self._news.wait()
        return report.good and not any(ends_badly(self._known[message, name]) for name in names)

    async def _ask(self, client: Client, message: str, show: Callable[[str, dict[str, str]], None]) -> bool:
        """Ask for what may have been missed; False: that did not work, or brought nothing new."""
        try:
            recipients = await client.outcome(message)
        except ConnectionLost:
            return False
        if recipients is None:
            raise ServerRefused("expired", f"{client.address} knows nothing of message {message} any more")
        self._missed = False
        ended = {name: outcome for name, outcome in recipients.items() if outcome != QUEUED}
        new = {name: outcome for name, outcome in ended.items() if (message, name) not in self._known}
        self._known.update(((message, name), outcome) for name, outcome in new.items())
        if new:
            show(message, new)
        return bool(new)
