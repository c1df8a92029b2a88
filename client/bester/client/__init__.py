"""A client of a Bester server, for asyncio: send messages and await their reports, receive what others send.

    async with Client("127.0.0.1:2223", user="bob", password="...") as client:
        report = await client.send("chat", {"to": "alice", "text": "hello"})
        async for message in client:
            print(message.type, message.data)

It reconnects by itself, waiting longer each time. What was not reported when the connection went goes out again on the
next one, in its order, marked and under the same `payload.dedup`, by which the server delivers it once; if that server
died meanwhile, or was away for longer than it remembers (15 minutes), perhaps again, and then the message says so
(`redelivered`). A message may be what ends connections: where two are lost over the same ones, they go out again one at
a time, then more with each report, and one that was alone in flight on 5 that were lost fails with ConnectionLost. What
arrives twice under one id is passed on once. A server that does not know `dedup`, besterd for one, would deliver twice:
with `resend=False` what was sent when the connection went fails with ConnectionLost instead, for only the application
knows whether a second delivery does harm.

A server says at the login how long a frame it takes: a message that makes a longer one is not sent, and MessageTooLarge
is raised. Where the server does not say it, a frame that it refuses costs one connection, and its message alone fails.

What was sent counts as delivered once its bytes have left the server. With `ack=True` the server waits for this
client's word, 30 seconds at most, and keeps what it does not get it for: it delivers that again, marked. The word is
given when the application asks for the next message, and when the client is closed without an error: a message that
the application died over comes again. `ack` gives it earlier. Where several tasks share a client, one asking says
nothing of what the others are at: with `manual_ack=True` only `ack` counts.

Messages that are not asked for wait in a bounded queue. When it is full the socket is not read, so that a fast server
cannot fill the memory of a slow application; reports come on the same socket, so who is sent to must also receive.
A client that closes waits for the reports on what it sent, and drops what still arrives.

It must never decide anything that the core can (see `client.core`), nor block the loop.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Callable
from typing import Any

from bester.client.core import Core
from bester.client.errors import (
    AuthenticationFailed,
    ClientClosed,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    ServerRefused,
    WindowFull,
)
from bester.client.events import Answered, Arrived, Ended, Event, Failed, Lost, Ponged, Ready, Reported
from bester.client.frames import Message, Outcome, Report, Terms, text_of
from bester.client.link import Link
from bester.client.received import Received
from bester.client.send_queue import SendQueue
from bester.client.states import State
from bester.client.window import DEFAULTS, Limits

__all__ = [
    "AuthenticationFailed",
    "Client",
    "ClientClosed",
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "Limits",
    "Message",
    "MessageTooLarge",
    "Outcome",
    "Report",
    "ServerRefused",
    "WindowFull",
]

_log = logging.getLogger(__name__)

CLOSE_S = 5.0
"""How long `close` waits for reports and for the server's goodbye."""


class Client:
    """One user's connection to one server, made anew when it is lost.

    `address`: `HOST:PORT`, `[V6]:PORT` or `unix:PATH` (ValueError otherwise). `resend`: send again after a loss what
    was not reported on. `ack`, `manual_ack`: acknowledge what was received, see
    above. `give_up_s`: end with ConnectionLost after so long without a connection; None: never, a listener outlives its
    server's repairs.
    `on_link(connected, why)` is called when a connection is made, and when one is lost that will be made anew; what
    ends the client is raised instead, where it is awaited. `on_outcome(outcome)` is called with what later became of
    messages that were submitted with `outcome=True`; without it that is received as messages of type `bester.outcome`.
    `random` (0 to 1) and `clock` (seconds, monotonic) are there to be replaced in tests.
    """

    def __init__(
        self,
        address: str,
        *,
        user: str,
        password: str,
        resend: bool = True,
        ack: bool = False,
        manual_ack: bool = False,
        give_up_s: float | None = None,
        limits: Limits = DEFAULTS,
        on_link: Callable[[bool, str], None] | None = None,
        on_outcome: Callable[[Outcome], None] | None = None,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] | None = None,
    ) -> None:
        if manual_ack and not ack:
            raise ValueError("manual_ack is about acknowledgements: ask for them with ack=True")
        self.address = address
        self._acks = ack
        self._manual_ack = manual_ack
        self._on_link = on_link
        self._on_outcome = on_outcome
        self._core = Core(
            server=address,
            user=user,
            password=password,
            dedup_prefix=secrets.token_hex(8),
            random=random,
            resend=resend,
            ack=ack,
            give_up_s=give_up_s,
            limits=limits,
        )
        self._link = Link(address, self._core, self._handle, clock)
        self._first: asyncio.Future[None] | None = None
        self._error: ClientError | None = None
        self._unreadable = 0
        self._reports: dict[str, asyncio.Future[Report]] = {}
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._arrivals = Received(limits)
        self._taken: list[Message] = []  # by the application, which did not say yet that it is done with them
        self._turns = SendQueue(lambda: self._core.room, lambda: self._core.open)

    # Beginning and end.

    async def __aenter__(self) -> Client:
        await self.start()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        await self.close(CLOSE_S if kind is None else 0)

    async def start(self) -> None:
        """Connect and log in; `async with` does it. Raises ConnectFailed, AuthenticationFailed, ServerRefused."""
        if self._link.started or not self._core.open:
            raise RuntimeError("a client is started once; make a new one")
        self._first = asyncio.get_running_loop().create_future()
        self._link.start()
        try:
            await self._first
        except BaseException:
            await self.close(0)
            raise

    async def close(self, timeout_s: float = CLOSE_S) -> None:
        """Wait for what is unreported, at most so long, and hang up. Closing twice does nothing.

        0: as after an error, do not wait at all, and acknowledge nothing.
        """
        if timeout_s > 0:
            self._done_with_the_taken()
        self._link.act(self._core.leave(self._link.now(), timeout_s))
        self._link.set_reading(True)
        self._link.wake()
        self._turns.look()
        try:
            await self._link.finished()
        finally:
            self._link.act(self._core.leave(self._link.now(), 0))

    # Sending.

    @property
    def connected(self) -> bool:
        """Whether the server knows us now; what is submitted otherwise waits for the next connection."""
        return self._core.state is State.READY

    @property
    def max_frame(self) -> int | None:
        """Bytes of the longest frame that the server takes, envelope included; None while it has not said so."""
        return self._core.max_frame

    @property
    def unreported(self) -> int:
        """How many messages were submitted and not reported on."""
        return self._core.unreported

    def submit(
        self,
        type_: str,
        data: Any = None,
        *,
        raw: bytes | str | None = None,
        dedup: str | None = None,
        ttl_s: float | None = None,
        outcome: bool = False,
    ) -> asyncio.Future[Report]:
        """Send a message at the end of this tick and return its report to be awaited; many may be under way.

        `data`: what msgspec can write as JSON; or `raw`: JSON text, sent untouched. `dedup`: the sender's own key (1 to
        64 characters) by which the server knows a message of this user that it had in the last 15 minutes; by default
        one is made for each. `ttl_s`: how long the server keeps the message for those who are away (up to 30 days); by
        default as long as it likes. `outcome`: tell later what became of it where the report says `queued`.
        The future fails with ConnectionLost when the report cannot come any more, and with MessageTooLarge where the
        server that the client comes back to does not take so much; cancelling it takes back what was not
        sent yet, and what was sent is not sent again.
        Raises WindowFull (`await room()`), ClientClosed, MessageTooLarge, TypeError, ValueError.
        """
        id_ = self._core.submit(type_, text_of(data, raw), Terms(dedup, ttl_s, outcome))
        future: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._reports[id_] = future
        future.add_done_callback(lambda done: self._withdraw(id_) if done.cancelled() else None)
        self._link.wake()
        return future

    async def send(
        self,
        type_: str,
        data: Any = None,
        *,
        raw: bytes | str | None = None,
        dedup: str | None = None,
        ttl_s: float | None = None,
        outcome: bool = False,
    ) -> Report:
        """Wait for room, send a message and wait for its report. Arguments and errors as with `submit`."""
        await self.room()
        return await self.submit(type_, data, raw=raw, dedup=dedup, ttl_s=ttl_s, outcome=outcome)

    async def room(self) -> None:
        """Wait until a message may be submitted. Who waited longest goes first."""
        await self._turns.come()

    async def ping(self) -> float:
        """Return the seconds that the server took to answer. Raises ConnectionLost, also where there is none."""
        began = self._link.now()
        answered: float = await self._answer(self._core.ping())
        return answered - began

    async def outcome(self, message: str) -> dict[str, str] | None:
        """Return what has become of a message by now, as in a report: name -> outcome.

        `message`: the server's own id of it (`Report.message`). None: the server does not know it (any more), or it is
        somebody else's. Raises ConnectionLost, also where there is none, ServerRefused where the server does not know
        the question, and ValueError for what is no id.
        """
        recipients: dict[str, str] | None = await self._answer(self._core.outcome(message))
        return recipients

    async def _answer(self, id_: str) -> Any:
        future = self._answers[id_] = asyncio.get_running_loop().create_future()
        self._link.wake()
        try:
            return await future
        finally:
            self._answers.pop(id_, None)

    # Receiving.

    @property
    def waiting(self) -> int:
        """How many messages were received and not yet asked for."""
        return len(self._arrivals)

    async def receive(self) -> Message:
        """Return the next message, in the order they came. Raises what ended the client, once none is left.

        With `ack=True` asking for the next one acknowledges those received before, unless `manual_ack`.
        """
        self._done_with_the_taken()
        while (message := self._arrivals.pop()) is None:
            if self._core.state is State.OVER:
                raise self._error or ClientClosed("not-connected", "the client is closed")
            await self._arrivals.wait()
        if self._acks and not self._manual_ack:
            self._taken.append(message)
        self._mind_the_queue()
        return message

    async def ack(self, message: Message) -> None:
        """Tell the server, at the end of this tick, that the application is done with a message; twice does no harm.

        The word counts on the connection that delivered it. If that is lost the server delivers again, and the repeat
        is acknowledged and not passed on. Raises RuntimeError where the client was made without `ack=True`.
        """
        if not self._acks:
            raise RuntimeError("this client does not acknowledge: make it with ack=True")
        self._done_with(message)

    def _done_with(self, message: Message) -> None:
        if message.id is not None:
            self._core.acknowledge(message.id)
            self._link.wake()

    def _done_with_the_taken(self) -> None:
        for message in self._taken:
            self._done_with(message)
        self._taken.clear()

    def __aiter__(self) -> Client:
        """Iterate over messages as they come, until the client is closed. Raises what else ended it."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except ClientClosed:
            raise StopAsyncIteration from None

    # What the link found.

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Reported):
                report = self._reports.pop(event.id, None)
                if report is not None and not report.done():
                    report.set_result(event.report)
            elif isinstance(event, Arrived):
                self._came(event.message)
            elif isinstance(event, Failed):
                waiting = self._reports.pop(event.id, None) or self._answers.get(event.id)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(event.error)
            elif isinstance(event, Ponged | Answered):
                answer = self._answers.get(event.id)
                if answer is not None and not answer.done():
                    answer.set_result(self._link.now() if isinstance(event, Ponged) else event.recipients)
            else:
                self._linked(event)
        self._turns.look()
        self._mind_the_queue()

    def _came(self, message: Message) -> None:
        outcome = None if self._on_outcome is None else message.outcome
        if outcome is None:
            self._arrivals.put(message)
        else:
            asyncio.get_running_loop().call_soon(self._tell, message, outcome)

    def _tell(self, message: Message, outcome: Outcome) -> None:
        assert self._on_outcome is not None
        self._on_outcome(outcome)
        if self._acks:
            self._done_with(message)

    def _linked(self, event: Ready | Lost | Ended) -> None:
        first = self._first
        error = None if isinstance(event, Ready) else event.error
        if isinstance(event, Ended):
            self._error = error
            self._arrivals.wake()
        if first is not None and not first.done():
            if isinstance(event, Ready):
                first.set_result(None)
            elif isinstance(event, Ended):
                first.set_exception(error or ClientClosed("not-connected", "the client was closed"))
        if self._core.unreadable > self._unreadable:
            _log.warning("%s sent %d frames that cannot be read", self.address, self._core.unreadable)
            self._unreadable = self._core.unreadable
        if self._on_link is not None and not isinstance(event, Ended):
            asyncio.get_running_loop().call_soon(self._on_link, error is None, str(error or ""))

    def _mind_the_queue(self) -> None:
        """Read no more than the application takes; closing reads on, and drops what comes."""
        if self._core.open:
            self._link.set_reading(self._arrivals.may_read(self._link.reading))

    def _withdraw(self, id_: str) -> None:
        self._reports.pop(id_, None)
        self._core.withdraw(id_)
        self._link.wake()
        self._turns.look()
