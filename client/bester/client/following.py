"""Later outcomes of one message that was queued for some recipients, followed until all are known.

Servers push outcomes; those that may have been pushed while there was no connection are asked for after the reconnect.
Each outcome is shown once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from bester.broker.wire.outcomes import QUEUED, reason_of
from bester.client import Client, ConnectionLost, Message, Report, ServerRefused


def ends_badly(outcome: str) -> bool:
    """Return whether an outcome means that the message will not be delivered."""
    return reason_of(outcome) is not None


class Following:
    """Known outcomes of one client's messages, and the state of its connection."""

    def __init__(self) -> None:
        self._about: str | None = None  # id of the followed message; None before its report: any message may be it
        self._known: dict[tuple[str, str], str] = {}  # by message and recipient
        self._changed = asyncio.Event()
        self._missed = False
        self._lost = asyncio.Event()

    def on_link(self, connected: bool, _: str) -> None:
        """Note that the connection is made, or lost."""
        if connected:
            self._lost.clear()
        else:
            self._missed = True
            self._lost.set()
        self._changed.set()

    def is_new(self, message: Message) -> bool:
        """Note a received message; False: its outcome is known already."""
        outcome = message.outcome
        if outcome is None or self._about not in (None, outcome.message):
            return True
        before = self._known.get((outcome.message, outcome.recipient))
        self._known[outcome.message, outcome.recipient] = outcome.outcome
        self._changed.set()
        return before is None

    async def linger(self, showing: asyncio.Task[None], wait_s: float) -> None:
        """Wait `wait_s`, or until the connection is lost: nothing more will arrive on it."""
        lost = asyncio.create_task(self._lost.wait())
        try:
            await asyncio.wait([showing, lost], timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            lost.cancel()

    async def until_settled(
        self,
        client: Client,
        report: Report,
        showing: asyncio.Task[None],
        show: Callable[[str, dict[str, str]], None],
    ) -> bool:
        """Wait until the outcome is known for every recipient reported as queued; True where none is a failure.

        `showing` passes messages to `is_new`; `show` is called with outcomes that had to be asked for. Raises the error
        that ended the client.
        """
        message = self._about = report.message
        if message is None:
            return report.good
        names = [name for name, outcome in report.recipients.items() if outcome == QUEUED]
        showing.add_done_callback(lambda _: self._changed.set())
        while any((message, name) not in self._known for name in names):
            if showing.done():
                await showing  # raises its error
                return False
            self._changed.clear()
            if not (self._missed and client.connected and await self._ask(client, message, show)):
                await self._changed.wait()
        return report.good and not any(ends_badly(self._known[message, name]) for name in names)

    async def _ask(self, client: Client, message: str, show: Callable[[str, dict[str, str]], None]) -> bool:
        """Ask for outcomes that may have been missed; False: the connection broke, or nothing was new."""
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
