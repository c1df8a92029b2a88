"""Client of a Bester server, for asyncio: send messages and await their reports, receive messages of others.

    async with Client("127.0.0.1:2223", user="bob", password="...") as client:
        report = await client.send("chat", {"to": "alice", "text": "hello"})
        async for message in client:
            print(message.type, message.data)

The client reconnects by itself, with back-off. Messages that were unreported when the connection broke are sent again
on the next one, in order, marked and under the same `payload.dedup`, by which the server delivers each once; a server
that died meanwhile, or that was away for longer than its dedup memory (15 minutes), may deliver a duplicate, marked
`redelivered`. A message may be the cause of lost connections: where two are lost with the same messages in flight,
these are sent one at a time, then more with each report, and a message alone in flight on 5 lost connections fails
with ConnectionLost. A message received twice under one id is passed on once. A server that ignores `dedup`, such as
besterd, would deliver a resent message twice: with `resend=False` a message in flight on a lost connection fails with
ConnectionLost instead, for only the application knows whether a duplicate does harm.

The server's answer to the login holds its limit on frames: a message that makes a longer frame raises MessageTooLarge
and is not sent. With a server that names no limit, a refused frame costs one connection, and its message alone fails.

A message counts as delivered once its bytes have left the server. With `ack=True` the server waits for this client's
acknowledgement, 30 seconds at most, and keeps an unacknowledged message: that message is delivered again, marked.
Receiving the next message acknowledges those before, and so does a close without an error: a message in hand when the
application died is delivered again. `ack` acknowledges earlier. Where several tasks share a client, a receive by one
proves nothing about the messages of the others: with `manual_ack=True` only `ack` counts.

Received messages wait in a bounded queue until they are asked for. While the queue is full the socket is not read, so
that a fast server cannot fill the memory of a slow application; reports come on the same socket, so an application that
is sent messages must also receive. A client that closes waits for the reports on its messages, and drops messages that
still arrive.

The shell never takes a decision that the core can take (see `client.core`), and never blocks the loop.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bester.broker.wire.arguments import (
    check_flag,
    check_function,
    check_kind,
    check_text,
    check_wait,
)
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
"""Seconds that `close` waits for reports and for the server to hang up."""


class Client:
    """Connection of one user to one server, made anew when it is lost.

    `address`: `HOST:PORT`, `[V6]:PORT`, `tls://HOST:PORT` or `unix:PATH` (ValueError otherwise). `ca`: file of the
    authorities that are trusted with TLS, or of the server's own certificate; None: those of the system. `resend`: send
    unreported messages again after a loss. `ack`, `manual_ack`: acknowledge received messages, see above. `give_up_s`:
    end with ConnectionLost after so many seconds without a connection; None: never, since a listener outlives its
    server's repairs. `on_link(connected, why)` is called when a connection is made, and when one is lost that will be
    made anew; an error that ends the client is raised instead, where something is awaited. `on_outcome(outcome)` is
    called with the later outcomes of messages submitted with `outcome=True`; without `on_outcome` these are received as
    messages of type `bester.outcome`. `random` (0 to 1) and `clock` (seconds, monotonic) are there to be replaced in
    tests.

    A client belongs to the event loop that started it; anywhere else its methods raise RuntimeError.
    """

    def __init__(
        self,
        address: str,
        *,
        user: str,
        password: str,
        ca: Path | str | None = None,
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
        check_kind("address", address, str, "a string")  # the path of a socket may be any bytes
        for name, text in (("user", user), ("password", password)):
            check_text(name, text)  # as None of an environment's variable that is not set
        for name, flag in (("resend", resend), ("ack", ack), ("manual_ack", manual_ack)):
            check_flag(name, flag)
        if manual_ack and not ack:
            raise ValueError("manual_ack needs acknowledgements: ask for them with ack=True")
        for name, function in (("on_link", on_link), ("on_outcome", on_outcome), ("random", random), ("clock", clock)):
            if function is not None:
                check_function(name, function)
        if ca is not None and not isinstance(ca, str | os.PathLike):
            raise TypeError(f"ca is the path of a file, not a {type(ca).__name__}")
        if give_up_s is not None:
            check_wait("give_up_s", give_up_s)
        check_kind("limits", limits, Limits, "a Limits of bester.client")
        limits.check()
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
        self._link = Link(address, self._core, self._handle, clock, None if ca is None else Path(ca))
        self._first: asyncio.Future[None] | None = None
        self._error: ClientError | None = None
        self._unreadable = 0
        self._reports: dict[str, asyncio.Future[Report]] = {}
        self._answers: dict[str, asyncio.Future[Any]] = {}
        self._received = Received(limits)
        self._taken: list[Message] = []  # received by the application and not acknowledged yet
        self._send_queue = SendQueue(lambda: self._core.room, lambda: self._core.open)

    # Start and end.

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
        """Wait for unreported messages, at most `timeout_s`, and hang up. Closing twice does nothing.

        0: do not wait, and acknowledge nothing, as after an error.
        """
        check_wait("timeout_s", timeout_s)
        if self._link.started:
            self._link.own_loop()
        if timeout_s > 0:
            self._acknowledge_taken()
        self._link.act(self._core.leave(self._link.now(), timeout_s))
        self._link.set_reading(True)
        self._link.wake()
        self._send_queue.wake()
        try:
            await self._link.finished()
        finally:
            self._link.act(self._core.leave(self._link.now(), 0))

    # Sending.

    @property
    def connected(self) -> bool:
        """True while the client is logged in; messages submitted without a connection wait for the next one."""
        return self._core.state is State.READY

    @property
    def max_frame(self) -> int | None:
        """Bytes of the longest frame that the server accepts, envelope included; None without a limit."""
        return self._core.max_frame

    @property
    def unreported(self) -> int:
        """Number of messages submitted and not reported on."""
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
        """Send a message at the end of this tick and return its report to be awaited; many may be in flight.

        `data`: a value that msgspec can write as JSON; or `raw`: JSON text, sent unchanged. `dedup`: the sender's own
        key (1 to 64 characters) by which the server knows a duplicate of this user's messages of the last 15 minutes;
        by default each message gets a key of its own. `ttl_s`: seconds that the server keeps the message for absent
        recipients (up to 30 days); by default the server's choice. `outcome`: push later outcomes of recipients that
        are reported as `queued`.
        The future fails with ConnectionLost when no report can come any more, and with MessageTooLarge where the server
        after a reconnect accepts less; cancelling the future drops an unsent message, and keeps a sent one from being
        sent again.
        Raises WindowFull (`await room()`), ClientClosed, MessageTooLarge, TypeError, ValueError, and RuntimeError
        outside of the event loop that started the client.
        """
        loop = self._link.own_loop()
        id_ = self._core.submit(type_, text_of(data, raw), Terms(dedup, ttl_s, outcome))
        future: asyncio.Future[Report] = loop.create_future()
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
        """Wait until a message may be submitted. The longest waiting task goes first."""
        self._link.own_loop()
        await self._send_queue.wait_turn()

    async def ping(self) -> float:
        """Return the seconds that the server took to answer. Raises ConnectionLost, also without a connection."""
        self._link.own_loop()
        began = self._link.now()
        answered: float = await self._answer(self._core.ping())
        return answered - began

    async def outcome(self, message: str) -> dict[str, str] | None:
        """Return the outcomes of a message up to now, as in a report: name -> outcome.

        `message`: the server's own id of the message (`Report.message`). None: the server does not know the message, or
        another user sent it. Raises ConnectionLost, also without a connection, ServerRefused where the server
        does not know the question, and ValueError for an impossible id.
        """
        self._link.own_loop()
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
        """Number of messages received and not yet asked for."""
        return len(self._received)

    async def receive(self) -> Message:
        """Return the next message, in order of arrival. Once none is left, raises the error that ended the client.

        With `ack=True` each call acknowledges the messages received before, unless `manual_ack`.
        """
        self._link.own_loop()
        self._acknowledge_taken()
        while (message := self._received.pop()) is None:
            if self._core.state is State.OVER:
                raise self._error or ClientClosed("not-connected", "the client is closed")
            await self._received.wait()
        if self._acks and not self._manual_ack:
            self._taken.append(message)
        self._set_reading()
        return message

    async def ack(self, message: Message) -> None:
        """Acknowledge a message at the end of this tick; a second call does no harm.

        An acknowledgement counts on the connection that delivered the message. If that connection is lost the server
        redelivers, and the duplicate is acknowledged and not passed on. Raises RuntimeError without `ack=True`.
        """
        if not self._acks:
            raise RuntimeError("this client does not acknowledge: make it with ack=True")
        check_kind("ack's message", message, Message, "a Message that the client received")
        self._link.own_loop()
        self._acknowledge(message)

    def _acknowledge(self, message: Message) -> None:
        if message.id is not None:
            self._core.acknowledge(message.id)
            self._link.wake()

    def _acknowledge_taken(self) -> None:
        for message in self._taken:
            self._acknowledge(message)
        self._taken.clear()

    def __aiter__(self) -> Client:
        """Iterate over messages as they arrive, until the client is closed. Raises any other error that ended it."""
        return self

    async def __anext__(self) -> Message:
        try:
            return await self.receive()
        except ClientClosed:
            raise StopAsyncIteration from None

    # Events from the link.

    def _handle(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, Reported):
                report = self._reports.pop(event.id, None)
                if report is not None and not report.done():
                    report.set_result(event.report)
            elif isinstance(event, Arrived):
                self._on_message(event.message)
            elif isinstance(event, Failed):
                waiting = self._reports.pop(event.id, None) or self._answers.get(event.id)
                if waiting is not None and not waiting.done():
                    waiting.set_exception(event.error)
            elif isinstance(event, Ponged | Answered):
                answer = self._answers.get(event.id)
                if answer is not None and not answer.done():
                    answer.set_result(self._link.now() if isinstance(event, Ponged) else event.recipients)
            else:
                self._on_link_event(event)
        self._send_queue.wake()
        self._set_reading()

    def _on_message(self, message: Message) -> None:
        outcome = None if self._on_outcome is None else message.outcome
        if outcome is None:
            self._received.put(message)
        else:
            asyncio.get_running_loop().call_soon(self._push_outcome, message, outcome)

    def _push_outcome(self, message: Message, outcome: Outcome) -> None:
        assert self._on_outcome is not None
        self._on_outcome(outcome)
        if self._acks:
            self._acknowledge(message)

    def _on_link_event(self, event: Ready | Lost | Ended) -> None:
        first = self._first
        error = None if isinstance(event, Ready) else event.error
        if isinstance(event, Ended):
            self._error = error
            self._received.wake()
        if first is not None and not first.done():
            if isinstance(event, Ready):
                first.set_result(None)
            elif isinstance(event, Ended):
                first.set_exception(error or ClientClosed("not-connected", "the client was closed"))
        if self._core.unreadable > self._unreadable:
            _log.warning("%s sent %d frames that cannot be parsed", self.address, self._core.unreadable)
            self._unreadable = self._core.unreadable
        if self._on_link is not None and not isinstance(event, Ended):
            asyncio.get_running_loop().call_soon(self._on_link, error is None, str(error or ""))

    def _set_reading(self) -> None:
        """Stop reading while the queue is full; a closing client reads on, and drops messages."""
        if self._core.open:
            self._link.set_reading(self._received.may_read(self._link.reading))

    def _withdraw(self, id_: str) -> None:
        self._reports.pop(id_, None)
        self._core.withdraw(id_)
        self._link.wake()
        self._send_queue.wake()
