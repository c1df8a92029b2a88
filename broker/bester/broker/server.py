"""The broker's shell: ROUTER sockets, the clock, the log. It receives, calls the core, has written what the core wants
kept, and only then sends what the core says.

It must never decide: a message that has come is handed to the router, and the router's actions are carried out. The
core's time is the monotonic clock itself: a uvloop loop's own `time()` stands still within a turn and counts whole
milliseconds, too coarse for a trace.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import random
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Self

import zmq

from bester.broker.accounts import Logins
from bester.broker.core.router import Router
from bester.broker.core.values import Action, Link, Notice, Outbox, Restart, Send, Settings, Verify
from bester.broker.departures import Departures
from bester.broker.fabric import FabricLink, FabricSocket, Frames
from bester.broker.keeping import Keeping
from bester.broker.kept import Read, Write
from bester.broker.notices import WARNINGS, Notices
from bester.broker.pace import PACED
from bester.broker.processes import exists, is_stopped
from bester.broker.store import Store
from bester.broker.wire.address import parse_endpoint
from bester.broker.wire.codec import batches, decode
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.messages import Malformed, Message
from bester.broker.wire.party import Party

TICK_S = 0.1
"""How often the core is told the time."""
LOGGED_CHARACTERS = 300
"""Of one value in a log line: names and types in it may be a stranger's, and as long as he likes."""
MAX_LOGINS = 1024
"""Passwords waiting to be checked; the accounts refuse earlier than that."""

log = logging.getLogger("bester.broker")


Receiver = Callable[[list[Message]], None]


class Broker:
    """A running broker. Use it as a context: `async with Broker(settings, listen, accounts, store) as broker: …`.

    `settings.clock_offset_s` is set here. The store is opened here, and closed by whoever has made it, after this has
    ended. Raises ConfigError where an endpoint cannot be bound, BesterError where the store cannot be opened.
    """

    def __init__(self, settings: Settings, listen: tuple[str, ...], accounts: Logins, store: Store) -> None:
        self._listen = listen
        self._accounts = accounts
        self._departures = Departures(accounts)
        now = time.monotonic()
        self.settings = replace(settings, clock_offset_s=time.time() - now)
        self.router = Router(
            self.settings,
            epoch=secrets.token_hex(4),
            first_token=secrets.randbelow(2**51),
            now=now,
            is_account=self._departures.is_account,
            snapshot=store.open(),
            chance=random.random,
            process_of=self._process_of,
            is_stopped=is_stopped,
        )
        self.restart: Callable[[int, str], bool] = lambda process, why: False
        """Starts a handler's process again, for this reason; False: whoever runs this broker has not started it."""
        self._keeping = Keeping(self.router, store, self._carry_out)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._sockets: list[FabricSocket] = []
        self._direct: dict[Link, Receiver] = {}
        self._servers: dict[Link, FabricLink] = {}
        self._outgoing: dict[Link, list[Message]] = {}
        self._flush_handle: asyncio.Handle | None = None
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self._notices = Notices()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._group.__aenter__()
        try:
            for endpoint in self._listen:
                self._bind(endpoint)
        except BaseException:
            self._close_sockets()
            raise
        for name, route in self.settings.routes.items():
            if route.fabric is not None:
                self._connect(name, route.fabric)
        self._tick()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Say GOODBYE to everyone and close. Call `drain` first to let messages finish."""
        self._carry_out(self.router.dismiss("the broker ends"))
        self._keeping.tick()
        if self._flush_handle is not None:
            self._flush_handle.cancel()
        self._flush()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        await asyncio.gather(*(link.close(timeout_s=0.5) for link in self._servers.values()))
        for task in list(self._tasks):
            task.cancel()
        await self._group.__aexit__(None, None, None)
        self._keeping.tick()
        self._close_sockets()

    async def drain(self, timeout_s: float) -> bool:
        """Take no new messages, and wait until none is owed a report, at most `timeout_s`; says whether none is."""
        self.router.drain()
        deadline = time.monotonic() + timeout_s
        while not self.router.idle and time.monotonic() < deadline:  # noqa: ASYNC110 (the core has no events to wait for)
            await asyncio.sleep(TICK_S / 4)
        return self.router.idle

    def attach(self, receiver: Receiver) -> Callable[[Sequence[Message]], int]:
        """Open a direct link for a bridge in this process; returns the function that says messages to the broker.

        It takes them all, and says how many that is. `receiver` gets what the broker says, once a turn of the loop.
        """
        link = Link("direct", b"%d" % len(self._direct))
        self._direct[link] = receiver

        def say(messages: Sequence[Message]) -> int:
            self._post(self.router.receive_all(link, messages, time.monotonic()))
            return len(messages)

        return say

    # --- sockets ---

    def _bind(self, endpoint: str) -> None:
        where = parse_endpoint(endpoint)
        door = b"%d:" % len(self._sockets)

        def received(frames: Frames) -> None:
            self._received(Link(where.transport, door + frames[0]), frames[1:])

        socket = FabricSocket(self._context, zmq.ROUTER, received)
        self._sockets.append(socket)
        socket.socket.router_mandatory = 1
        try:
            socket.socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"[fabric] listen: {endpoint}: {_why(error)}") from None
        if where.transport == "ipc":
            os.chmod(where.path, 0o600)
            socket.remember_processes()
        socket.register()

    def _process_of(self, link: Link) -> int | None:
        if link.door != "ipc":
            return None
        index, _, identity = link.key.partition(b":")
        return self._sockets[int(index)].process_of(identity)

    def _connect(self, name: str, endpoint: str) -> None:
        link = Link("server", name.encode())

        def received(messages: list[Message | Malformed]) -> None:
            self._post(self.router.receive_all(link, messages, time.monotonic()))

        party = Party("server", self.settings.name, {})
        fabric = self._servers[link] = FabricLink(
            endpoint,
            party,
            on_messages=received,
            on_ready=lambda: self._carry_out(self.router.server_ready(name, time.monotonic())),
            on_lost=lambda why: self._carry_out(self.router.server_lost(name, why, time.monotonic())),
        )
        fabric.start()

    def _close_sockets(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
        for socket in self._sockets:
            socket.socket.linger = 200  # the last GOODBYEs
            socket.close()
        self._context.term()
        for endpoint in self._listen:
            where = parse_endpoint(endpoint)
            if where.transport == "ipc":
                Path(where.path).unlink(missing_ok=True)

    # --- in ---

    def _received(self, link: Link, frames: Frames) -> None:
        self._post(self.router.receive_all(link, decode(frames), time.monotonic()))

    def _tick(self) -> None:
        self._carry_out(self.router.tick(time.monotonic()))
        self._see_off()
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)

    def _see_off(self) -> None:
        """Settle what could wait, and with it the ends of what removed accounts have left."""
        for user in self._departures.due(self.router.users):
            self._carry_out(self.router.removed(user, time.monotonic()))
        self._keeping.tick()
        if self._keeping.all_kept:
            self._departures.over(self.router.users)

    async def _verify(self, action: Verify) -> None:
        reason = await self._accounts.verify(action.user, action.password, action.address, time.monotonic())
        if reason is None and self._departures.under_way(action.user):
            self._see_off()  # mostly it is over with that
            if self._departures.under_way(action.user):
                reason = "overloaded"
        self._carry_out(self.router.verified(action.link, action.session, action.user, reason, time.monotonic()))

    # --- out ---

    def _post(self, outbox: Outbox) -> None:
        if outbox.writes or outbox.reads:
            self._keep(outbox.writes, outbox.reads)
        for link, messages in outbox.messages.items():
            self._send_soon(link, messages)
        if outbox.others:
            self._carry_out(outbox.others)

    def _send_soon(self, link: Link, messages: list[Message]) -> None:
        waiting = self._outgoing.get(link)
        if waiting is not None:
            waiting += messages
            return
        self._outgoing[link] = messages
        self._flush_soon()

    def _keep(self, writes: Sequence[Write], reads: Sequence[Read]) -> None:
        self._keeping.add(writes, reads)
        if self._keeping.due:
            self._flush_soon()

    def _flush_soon(self) -> None:
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._flush)

    def _carry_out(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if type(action) is Send:
                self._send_soon(action.link, [action.message])
            elif type(action) is Verify:
                self._start_verifying(action)
            elif type(action) is Notice:
                self._write(action)
            elif type(action) is Restart:
                self._start_again(action)
            elif isinstance(action, Read):
                self._keep((), (action,))
            elif isinstance(action, Write):
                self._keep((action,), ())

    def _write(self, notice: Notice) -> None:
        passed_over = self._notices.admit(notice.event, time.monotonic())
        if passed_over is not None:
            fields = notice.fields | ({"passed_over": passed_over} if passed_over else {})
            log.log(
                logging.WARNING if notice.event in WARNINGS else logging.INFO,
                "%s %s",
                notice.event,
                " ".join(f"{key}={_logged(value)}" for key, value in fields.items()),
                extra=PACED,
            )

    def _start_again(self, action: Restart) -> None:
        process = action.process
        if process is not None and (self.restart(process, action.why) or not exists(process)):
            return
        whose = f"process {process} is no child of this server" if process else "it is not known whose process that is"
        log.warning("handler %s must be started again, but %s: %s", _logged(action.name), whose, action.why)

    def _start_verifying(self, action: Verify) -> None:
        if len(self._tasks) >= MAX_LOGINS:
            now = time.monotonic()
            self._carry_out(self.router.verified(action.link, action.session, action.user, "overloaded", now))
            return
        task = self._group.create_task(self._verify(action))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _flush(self) -> None:
        """Send what this turn of the loop has made, one batch a destination, when what it rests on is on disk."""
        self._flush_handle = None
        if self._keeping.due:
            self._keeping.settle()
        outgoing, self._outgoing = self._outgoing, {}
        for link, messages in outgoing.items():
            if link.door == "direct":
                self._direct[link](messages)
            elif link.door == "server":
                self._send_to_server(link, messages)
            else:
                self._send(link, messages)
        for socket in self._sockets:
            socket.look_again()
        if self._keeping.due:
            self._flush_soon()

    def _send(self, link: Link, messages: list[Message]) -> None:
        index, _, identity = link.key.partition(b":")
        socket = self._sockets[int(index)]
        try:
            for frames in batches(messages):
                socket.send([identity, *frames])
        except zmq.ZMQError:  # EHOSTUNREACH: gone; EAGAIN: it does not read
            self._carry_out(self.router.undeliverable(link, messages[0], time.monotonic()))

    def _send_to_server(self, link: Link, messages: list[Message]) -> None:
        fabric = self._servers[link]
        for message in messages:
            if not fabric.send(message):
                self._carry_out(self.router.undeliverable(link, message, time.monotonic()))


def _logged(value: object) -> str:
    text = repr(value)
    return text if len(text) <= LOGGED_CHARACTERS else text[: LOGGED_CHARACTERS - 1] + "…"


def _why(error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; stop what listens there, or choose another"
    if error.errno == errno.EACCES:
        return "permission denied; choose a port above 1023 or a directory of your own"
    return f"{zmq.strerror(error.errno or 0)}; check the address"
