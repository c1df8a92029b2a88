"""Shell of the broker: ROUTER sockets, the clock and the log.

The shell passes received messages to the core, hands the core's requests to the store driver, and sends the core's
messages at the end of a turn. The shell never decides: the router processes each message, and the shell carries out the
effects. The core's time is the monotonic clock itself, as a uvloop loop's own `time()` stands still within a turn and
counts whole milliseconds, too coarse for a trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import math
import os
import random
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Self

import zmq

from bester.broker import unix_socket
from bester.broker.accounts import UNREADABLE, Logins
from bester.broker.core.effects import (
    ChangePassword,
    Effects,
    Link,
    LoginDecided,
    LookUp,
    Notice,
    NoticeEvent,
    Reconnect,
    Restart,
    ShellCall,
    Spans,
    Verify,
)
from bester.broker.core.router import Router
from bester.broker.core.settings import Grant, Route, Settings
from bester.broker.curve import CurveSocket, Zap
from bester.broker.fabric import FabricLink
from bester.broker.fabric_socket import FabricSocket, Frames
from bester.broker.handler_logins import HandlerLogins
from bester.broker.hosts import Hosts
from bester.broker.keys import KeyPair, LinkKeys
from bester.broker.log_limits import PACED, WARNINGS, LogLimits
from bester.broker.logs import bare_facts, facts, with_facts
from bester.broker.processes import exists, is_stopped
from bester.broker.removed_accounts import RemovedAccounts
from bester.broker.slices import Slices
from bester.broker.store import Store
from bester.broker.store_driver import RETRY_S, StoreDriver
from bester.broker.store_thread import StoreThread
from bester.broker.turn import Turn
from bester.broker.unix_socket import UnixSocket
from bester.broker.wire.address import parse_endpoint
from bester.broker.wire.codec import batches
from bester.broker.wire.codes import ConfigError, WireError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Malformed, Message
from bester.broker.wire.notes import describe
from bester.broker.wire.runs import read, read_part, write_run
from bester.broker.wire.silence import ReadUntil
from bester.broker.wire.unsendable import expected_answer, substitute

MEASURE_S = 5.0
"""Time between two looks at the size of the store: it changes slowly, and each look asks the file system."""
TICK_S = 0.1
"""Interval at which the core is given the time."""
LOGIN_EVENTS: dict[str | None, NoticeEvent] = {"authentication-failed": "login-failed", "try-later": "login-slowed"}
"""Log events of refused logins, by their codes."""
IO_THREADS = 2
"""Threads of ZeroMQ: one for parties on this machine, and one for those on tcp, so that the bytes of an ipc socket wait
for no flood that is decrypted."""
BACKLOG = 1024
"""Waiting ipc connections: all handlers of a busy machine at once, at its start."""
MAX_LINKS = 20_000
"""Links of one socket that are remembered by their routing ids; above the bound all are made anew. Memory."""
LOST_AT_ONCE = 16
"""Links that are lost in one turn because they cannot be sent to; others are tried again in the next. Each may hold
messages that go to other handlers, and a party may let a hundred links go at once."""
MAX_LOGINS = 8192
"""Logins whose check was begun: far more than the queue of checks, which chooses whom it turns away. Memory."""

BOOT = Path("/proc/sys/kernel/random/boot_id")
"""Linux; on other systems the wall clock is used after each start."""
CLOCK_APART_S = 0.05
CLOCK_LOOKS = 5
"""Clocks read further apart than this are read again, at most CLOCK_LOOKS times, as the process was stopped between the
two readings."""

log = logging.getLogger("bester.broker")


Receiver = Callable[[list[Message]], None]


class Broker:
    """Running broker, used as a context: `async with Broker(settings, listen, accounts, store) as broker: …`.

    The broker opens the store; the caller closes the store afterwards. Raises ConfigError for an endpoint that cannot
    be bound, BesterError for a store that cannot be opened.
    """

    def __init__(
        self,
        settings: Settings,
        listen: tuple[str, ...],
        accounts: Logins,
        store: Store,
        *,
        pair: KeyPair | None = None,
        curve: bool = False,
        turn: Turn | None = None,
    ) -> None:
        """`pair` are this server's keys, for links that are encrypted; with `curve`, those on loopback are, too. `turn`
        is that of a bridge in this process."""
        self._listen = listen
        self._pair = pair
        self._curve = curve
        self._zap: Zap | None = None
        self._accounts = accounts
        self._handler_logins = HandlerLogins(accounts, self._ask_handler)
        self._removed_accounts = RemovedAccounts(accounts)
        self.settings = settings
        now, wall_s = _clocks()
        self.router = Router(
            self.settings,
            epoch=secrets.token_hex(4),
            first_token=secrets.randbelow(2**51),
            now=now,
            wall_s=wall_s,
            boot=_boot(),
            accounts_of=self._removed_accounts.accounts_of,
            snapshot=store.open(),
            chance=random.random,
            process_of=self._process_of,
            is_stopped=is_stopped,
            read_until=self._read_until,
            may_open=self._may_open,
        )
        self.restart: Callable[[int, str], bool] = lambda process, why: False
        """Callback that restarts a handler's process, with the reason; returns False for a process that the caller did
        not start."""
        self.operator_address: str | None = None
        """Address of the operator's page, as `host:port`; None without a page."""
        self.reread_operator: Callable[[], None] = lambda: None
        """Callback that reads the files of the operator's page again."""
        self.store_file: Path | None = None
        """The store's file, whose size the figures show."""
        self._store = store
        self._measure_at = 0.0
        self._store_thread = StoreThread(self._on_aside)
        self._driver = StoreDriver(self.router, store, self._carry_out, aside=self._store_thread.run)
        self._retry_handle: asyncio.TimerHandle | None = None
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context(IO_THREADS)
        self._sockets: list[FabricSocket] = []
        self._reading: list[ReadUntil] = []  # readers of the sockets
        self._slices: dict[bytes, Slices] = {}  # of the encrypted sockets, by door
        self._bound: list[UnixSocket] = []
        self._direct: dict[Link, Receiver] = {}
        self._servers: dict[Link, FabricLink] = {}
        self._outgoing: dict[Link, list[Message]] = {}
        self._turn = turn or Turn()
        self._flushes = False  # at the end of this turn
        self._lost = 0  # links of this turn that could not be sent to
        self._tick_handle: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._group = asyncio.TaskGroup()
        self._notices = LogLimits()
        self.look_up: Callable[[Iterable[str]], None] | None = None
        """Callback that looks up the hosts of servers; the result is passed to `hosts_changed`."""
        self.follow: Callable[[Mapping[str, str]], None] = lambda hosts: None
        """Callback with the hosts of the native servers, by name, of a configuration that was read again."""
        self.export: Callable[[Spans], None] = lambda spans: None
        """Callback that exports the spans of a message."""
        self.on_handler: Callable[[str, Collection[str]], None] = lambda name, types: None
        """Callback with the name and the types of each handler that connects."""

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._group.__aenter__()
        try:
            for endpoint in self._listen:
                self._bind(endpoint)
        except BaseException:
            self._close_sockets()
            raise
        for route in self.settings.routes.values():
            self._connect(route)
        self._tick()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Send GOODBYE to every peer and close. Call `drain` first to let messages finish."""
        for slices in self._slices.values():
            slices.drop()
        self._carry_out(self.router.dismiss("the broker ends"))
        self._driver.finish()
        self._turn.forget(self._flush)
        self._flush()
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        await asyncio.gather(*(link.close(timeout_s=0.5) for link in self._servers.values()))
        for task in list(self._tasks):
            task.cancel()
        await self._group.__aexit__(None, None, None)
        self._driver.finish()
        self._store_thread.close()
        if self._retry_handle is not None:
            self._retry_handle.cancel()
        self._close_sockets()

    async def drain(self, timeout_s: float) -> bool:
        """Accept no new messages and wait, at most `timeout_s`, until none is unreported; return whether none is.

        A broker whose store another process has taken ends at once: its bridges submit again elsewhere."""
        self.router.drain()
        deadline = time.monotonic() + timeout_s
        while not (self.router.idle or self._store.fenced) and time.monotonic() < deadline:  # noqa: ASYNC110 (the core has no events to wait for)
            await asyncio.sleep(TICK_S / 4)
        return self.router.idle

    def attach(self, receiver: Receiver) -> Callable[[Sequence[Message]], int]:
        """Open a direct link for a bridge in this process; return the function that sends messages to the broker.

        The function accepts all messages and returns their number. `receiver` gets the broker's messages once a turn of
        the loop.
        """
        link = Link("direct", b"%d" % len(self._direct))
        self._direct[link] = receiver

        def say(messages: Sequence[Message]) -> int:
            self._carry_out(self.router.receive_all(link, messages, time.monotonic()))
            return len(messages)

        return say

    def hosts_changed(self, hosts: Hosts) -> None:
        """Pass a new table of the native servers' hosts to the core."""
        self._carry_out(self.router.on_hosts_changed(hosts, time.monotonic()))

    # --- sockets ---

    def _bind(self, endpoint: str) -> None:
        where = parse_endpoint(endpoint)
        door = b"%d:" % len(self._sockets)

        links: dict[bytes, Link] = {}  # by routing id

        def received(frames: Frames) -> None:
            identity, *rest = frames
            link = links.get(identity)
            if link is None:
                if len(links) >= MAX_LINKS:
                    links.clear()
                link = links[identity] = Link(where.transport, door + identity)
            self._received(link, rest)

        socket: FabricSocket
        if where.transport == "tcp" and (self._curve or not where.local):
            socket = self._curve_socket(door)
        else:
            socket = FabricSocket(self._context, zmq.ROUTER, received, self._turn)
        self._sockets.append(socket)
        self._reading.append(ReadUntil(time.monotonic()))
        socket.socket.router_mandatory = 1
        socket.socket.ipv6 = "[" in endpoint
        socket.socket.affinity = 1 << (where.transport != "ipc")
        if where.transport == "ipc":
            # Bound here, as ZeroMQ would remove any file at the path first, and at its end any file that is there then.
            bound = unix_socket.listen(f"[fabric] listen: {endpoint}", where.path, backlog=BACKLOG, mode=0o600)
            self._bound.append(bound)
            socket.socket.setsockopt(zmq.USE_FD, bound.socket.detach())
        try:
            socket.socket.bind(endpoint)
        except zmq.ZMQError as error:
            raise ConfigError(f"[fabric] listen: {endpoint}: {_why(error)}") from None
        if where.transport == "ipc":
            socket.remember_processes()
        socket.register()

    def _curve_socket(self, door: bytes) -> CurveSocket:
        """Return a socket, not bound yet, that lets in known keys alone."""
        if self._pair is None:
            raise ConfigError("[fabric] listen: an encrypted listener needs this server's key; set [fabric] key")
        if self._zap is None:
            self._zap = Zap(self._context, self.router.settings.grants, self._on_refused)

        def take(link: Link, messages: Sequence[Message | Malformed]) -> None:
            self._carry_out(self.router.receive_all(link, messages, time.monotonic()))
            if link in self._outgoing:  # perhaps held back until now
                self._flush_soon()

        def received(frames: Frames) -> None:
            identity, key, *rest = frames
            slices.take_in(Link("curve", door + identity, key.decode()), rest)

        def gone(identity: bytes, key: bytes) -> None:
            slices.on_ended(Link("curve", door + identity, key.decode()))

        def end(link: Link) -> None:
            unsent, now = self._outgoing.pop(link, None), time.monotonic()
            if unsent:
                self._carry_out(self.router.on_undeliverable(link, unsent[0], now, unsent[1:]))
            else:
                self._carry_out(self.router.on_link_lost(link, "the connection has ended", now))

        def cut(link: Link, why: str) -> None:
            socket.cut(link.key.removeprefix(door), link.party, why)

        socket = CurveSocket(self._context, self._pair, received, gone, self._on_refused, self._turn)
        slices = Slices(read_part, take, end=end, cut=cut, clock=time.monotonic, soon=self._loop.call_soon)
        self._slices[door] = slices
        return socket

    def _on_refused(self, address: str, key: str, why: str) -> None:
        self._carry_out(self.router.on_refused(address, key, why, time.monotonic()))

    def reload(self, routes: Mapping[str, Route], grants: Mapping[str, Grant]) -> None:
        """Take in the servers and keys of a configuration that was read again: links to servers that are new, or whose
        address or key has changed, are opened anew."""
        before = self.router.settings.routes
        changed = {name for name in before.keys() | routes.keys() if _way(before.get(name)) != _way(routes.get(name))}
        now = time.monotonic()
        for name in changed:
            fabric = self._servers.pop(Link("server", name.encode()), None)
            if fabric is not None:
                self._carry_out(self.router.on_server_lost(name, "its address or key has changed here", now))
                task = self._group.create_task(fabric.close(timeout_s=0.5))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
        self._carry_out(self.router.on_reloaded(routes, grants, now))
        for name in changed & routes.keys():
            self._connect(routes[name])

    def _process_of(self, link: Link) -> int | None:
        if link.door != "ipc":
            return None
        index, _, identity = link.key.partition(b":")
        return self._sockets[int(index)].process_of(identity)

    def _read_until(self, link: Link) -> float:
        """Return the time up to which everything that had arrived on a link was handled."""
        index, colon, _ = link.key.partition(b":")
        if not colon:
            return math.inf  # a direct link needs no reading
        until, slices = self._reading[int(index)].until, self._slices.get(index + colon)
        waits_since = slices.waits_since(link.party) if slices is not None else None
        return until if waits_since is None else min(until, waits_since)

    def _connect(self, route: Route) -> None:
        """Open the link to a server of the fabric; a server that is reached otherwise has none."""
        if route.fabric is None:
            return
        name = route.name
        link = Link("server", name.encode())
        keys = None
        if route.key is not None:
            if self._pair is None:
                raise ConfigError(f"[servers.{name}] key: an encrypted link needs this server's own key as well")
            keys = LinkKeys(self._pair, route.key)

        def received(messages: list[Message | Malformed]) -> None:
            self._carry_out(self.router.receive_all(link, messages, time.monotonic()))

        link_client = LinkClient("server", self.settings.name, {})
        fabric = self._servers[link] = FabricLink(
            route.fabric,
            link_client,
            keys=keys,
            called=name,
            on_messages=received,
            on_ready=lambda: self._carry_out(self.router.on_server_ready(name, time.monotonic())),
            on_lost=lambda why: self._carry_out(self.router.on_server_lost(name, why, time.monotonic())),
            on_unsendable=self._log_unsendable,
            turn=self._turn,
        )
        fabric.start()

    def _close_sockets(self) -> None:
        self._turn.forget(self._flush)
        for bound in self._bound:
            bound.remove()
        for socket in self._sockets:
            socket.socket.linger = 200  # for the last GOODBYEs
            socket.close()
        if self._zap is not None:
            self._zap.close()
        self._context.term()

    # --- in ---

    def _received(self, link: Link, frames: Frames) -> None:
        self._carry_out(self.router.receive_all(link, read(frames), time.monotonic()))

    def _tick(self) -> None:
        now, senders = time.monotonic(), self.router.links
        for socket, reading in zip(self._sockets, self._reading, strict=True):
            waiting = socket.has_unread()
            reading.look(now, waiting=waiting, read=socket.messages_read, senders=senders)
            socket.cut_endless(drained=not waiting)
        self._carry_out(self.router.tick(*_clocks()))
        self._end_removals()
        self._measure_store()
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)

    def _measure_store(self) -> None:
        """Look now and then how large the store is, and how much room its disk has."""
        path, now = self.store_file, time.monotonic()
        if path is None:
            self.router.figures.store.size_bytes = self._store.size_bytes
            return
        if now < self._measure_at:
            return
        self._measure_at = now + MEASURE_S
        figures = self.router.figures.store
        with contextlib.suppress(OSError):
            files = [path, path.with_name(f"{path.name}-wal")]
            figures.size_bytes = sum(each.stat().st_size for each in files if each.exists())
            disk = os.statvfs(path.parent)
            figures.room_bytes = disk.f_bavail * disk.f_frsize

    def _end_removals(self) -> None:
        """Write requests that could wait, and report removed accounts of which something is left to the core."""
        for user in self._removed_accounts.due(self.router.users):
            self._carry_out(self.router.on_account_removed(user, time.monotonic()))
        for user in self._removed_accounts.shut_out(self.router.is_connected):
            self._carry_out(self.router.on_account_disabled(user))
        self._driver.tick()
        self._retry_later()
        if self._driver.is_idle:
            self._removed_accounts.strike_off_ended(self.router.users)

    async def _verify(self, login: Verify) -> None:
        try:
            logins = self._handler_logins if self.router.is_decided_by_handler else self._accounts
            reason, retry_s = await logins.verify(login.user, login.password, login.address)
        except Exception as error:  # noqa: BLE001 (the fault of one login must not end the server)
            extra = facts("login-unchecked", user=login.user, why=describe(error))
            log.error("the login of user %r cannot be checked now: %s", login.user, describe(error), extra=extra)
            reason, retry_s = "overloaded", None
        self.router.figures.logins[reason or "good"] += 1
        self._count_lockouts()
        if reason in LOGIN_EVENTS:
            fields = {"user": login.user, "address": login.address or "a Unix socket"}
            more = {} if retry_s is None else {"retry_s": math.ceil(retry_s)}
            self._write(Notice(LOGIN_EVENTS[reason], fields | more))
        if reason is None and self._removed_accounts.is_under_removal(login.user):
            self._end_removals()  # usually enough to end the removal
            if self._removed_accounts.is_under_removal(login.user):
                reason = "overloaded"
        account = self._accounts.token(login.user) if reason is None else None
        if reason is None and account is None:  # disabled or removed meanwhile
            reason = "authentication-failed"
        now = time.monotonic()
        self._carry_out(self.router.on_verified(login.link, login.session, login.user, reason, now, retry_s, account))

    def _count_lockouts(self) -> None:
        self.router.figures.lockouts = self._accounts.lockouts + self._handler_logins.lockouts

    def _ask_handler(self, number: int, user: str, password: str, address: str) -> None:
        self._carry_out(self.router.ask_login(number, user, password, address, time.monotonic()))

    def _may_open(self, user: str, account: str | None) -> bool:
        """Return whether a session that outlived a broker may go on: its account is still there, and is the one with
        which it logged in (None: a bridge that does not tell)."""
        now = self._accounts.token(user)
        return now is not None and (account == now or account in (None, UNREADABLE) or now == UNREADABLE)

    async def _change_password(self, change: ChangePassword) -> None:
        try:
            logins = self._handler_logins if self.router.is_decided_by_handler else self._accounts
            reason, retry_s = await logins.change(change.user, change.old, change.new, change.address)
        except Exception as error:  # noqa: BLE001 (the fault of one change must not end the server)
            extra = facts("login-unchecked", user=change.user, why=describe(error))
            log.error("the password of user %r cannot be changed now: %s", change.user, describe(error), extra=extra)
            reason, retry_s = "overloaded", None
        self._count_lockouts()
        fields = {"user": change.user, "address": change.address or "a Unix socket"}
        if reason is None:
            self._write(Notice("password-changed", fields))
        elif reason in LOGIN_EVENTS:
            self._write(Notice(LOGIN_EVENTS[reason], fields))
        now = time.monotonic()
        self._carry_out(self.router.on_password_changed(change.link, change.token, reason, retry_s, now))

    # --- out ---

    def _carry_out(self, effects: Effects) -> None:
        """Carry out what the core decided; messages leave at the end of this turn of the loop, after the writes where
        the store can be written at once."""
        if effects.writes or effects.reads:
            self._driver.add(effects.writes, effects.reads)
            if self._driver.due:
                self._flush_soon()
                self._turn.wait()  # one commit for all that comes in this turn
        for link, messages in effects.messages.items():
            queued = self._outgoing.get(link)
            if queued is None:
                self._outgoing[link] = messages
                self._flush_soon()
            else:
                queued += messages
        if effects.calls:
            self._do(effects.calls)

    def _do(self, calls: Iterable[ShellCall]) -> None:
        for call in calls:
            if type(call) is Verify:
                self._start_verifying(call)
            elif type(call) is LoginDecided:
                self._handler_logins.decided(call.number, call.good)
            elif type(call) is ChangePassword:
                self._start_changing(call)
            elif type(call) is Notice:
                self._write(call)
                if call.event == "joined" and call.fields["role"] == "handler":
                    self.on_handler(call.fields["name"], call.fields["types"])
            elif type(call) is LookUp:
                if self.look_up is not None:
                    self.look_up(call.servers)
            elif type(call) is Spans:
                self.export(call)
            elif type(call) is Reconnect:
                self._servers[Link("server", call.server.encode())].retry()
            elif type(call) is Restart:
                self._start_again(call)

    def _flush_soon(self) -> None:
        if not self._flushes:
            self._flushes = True
            self._turn.soon(self._flush)

    def _write(self, notice: Notice) -> None:
        passed_over = self._notices.admit(notice.event, time.monotonic())
        if passed_over is not None:
            fields = notice.fields | ({"passed_over": passed_over} if passed_over else {})
            level = logging.WARNING if notice.event in WARNINGS else logging.INFO
            text = with_facts(notice.event, fields)
            log.log(level, "%s", text, extra=bare_facts(notice.event, **fields) | PACED)

    def _start_again(self, restart: Restart) -> None:
        process = restart.process
        if process is not None and (self.restart(process, restart.why) or not exists(process)):
            return
        owner = f"process {process} is no child of this server" if process else "its process is unknown"
        extra = facts("handler-useless", handler=restart.name, process=process, why=restart.why)
        log.warning("handler %r must be restarted, but %s: %s", restart.name, owner, restart.why, extra=extra)

    def _start_verifying(self, login: Verify) -> None:
        if len(self._tasks) >= MAX_LOGINS:
            now = time.monotonic()
            self._carry_out(self.router.on_verified(login.link, login.session, login.user, "overloaded", now))
            return
        task = self._group.create_task(self._verify(login))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_changing(self, change: ChangePassword) -> None:
        if len(self._tasks) >= MAX_LOGINS:
            now = time.monotonic()
            self._carry_out(self.router.on_password_changed(change.link, change.token, "overloaded", None, now))
            return
        task = self._group.create_task(self._change_password(change))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _flush(self) -> None:
        """Write and read, then send the messages of this turn of the loop, one batch a destination."""
        self._flushes = False
        self._lost = 0
        if self._driver.due:
            self._driver.run()
            self._retry_later()
        outgoing, self._outgoing = self._outgoing, {}
        if self._slices:
            self._hold_back(outgoing)
        for link, messages in outgoing.items():
            if (receive := self._direct.get(link)) is not None:
                receive(messages)
            elif link.door == "server":
                self._send_to_server(link, messages)
            else:
                self._send(link, messages)
        for socket in self._sockets:
            socket.look_after_sending()
        if self._driver.due:
            self._flush_soon()

    def _hold_back(self, outgoing: dict[Link, list[Message]]) -> None:
        """Leave the messages to links of which a batch is halfway through for a later turn."""
        for slices in self._slices.values():
            for link in slices.halfway:
                if link in outgoing:
                    self._outgoing[link] = outgoing.pop(link)

    def _on_aside(self) -> None:
        """Have the loop look at what the store's thread has done; called there."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._retry)

    def _retry_later(self) -> None:
        if self._driver.is_pending and self._retry_handle is None:
            self._retry_handle = self._loop.call_later(RETRY_S, self._retry)

    def _retry(self) -> None:
        """Try the pending writes again."""
        if self._retry_handle is not None:
            self._retry_handle.cancel()
            self._retry_handle = None
        self._driver.retry()
        if self._driver.due:
            self._flush_soon()
        self._retry_later()

    def _send(self, link: Link, messages: list[Message]) -> None:
        index, _, identity = link.key.partition(b":")
        socket = self._sockets[int(index)]
        sent = False
        try:
            run = write_run(messages)
            for frames in batches(messages, partial(self._cannot_send, link)) if run is None else (run,):
                socket.send_to(identity, link.party, frames)
                sent = True
        except zmq.ZMQError:  # EHOSTUNREACH: the peer has gone; EAGAIN: the peer does not read
            if not sent and self._lost >= LOST_AT_ONCE:
                self._outgoing[link] = [*messages, *self._outgoing.pop(link, ())]
                self._flush_soon()
                return
            self._lost += 1
            first, *rest = messages[-1:] if sent else messages  # after a batch that was sent, the last surely was not
            waiting = (*rest, *self._outgoing.pop(link, ()))
            self._carry_out(self.router.on_undeliverable(link, first, time.monotonic(), waiting))

    def _cannot_send(self, link: Link, message: Message, error: WireError) -> Message | None:
        """Answer a message that cannot be sent as if its receiver had refused the message; return its substitute, if
        any."""
        self._log_unsendable(message, error)
        answer = expected_answer(message, error)
        if answer is not None:
            self._carry_out(self.router.receive_all(link, (answer,), time.monotonic()))
        return substitute(message, error)

    def _log_unsendable(self, message: Message, error: WireError) -> None:
        extra = facts("unsendable", message=type(message).__name__, why=error.text)
        log.error("%s cannot be sent: %s", type(message).__name__.upper(), error.text, extra=extra)

    def _send_to_server(self, link: Link, messages: list[Message]) -> None:
        fabric = self._servers.get(link)
        for message in messages:
            if fabric is None or not fabric.send(message):
                self._carry_out(self.router.on_undeliverable(link, message, time.monotonic()))


def _way(route: Route | None) -> tuple[str, str | None] | None:
    """Return how a server of the fabric is reached, None where it is none."""
    return None if route is None or route.fabric is None else (route.fabric, route.key)


def _clocks() -> tuple[float, float]:
    """Return monotonic and wall clock of one moment, provided that the process was not stopped in between."""
    looks = CLOCK_LOOKS
    while True:
        before, wall_s, now = time.monotonic(), time.time(), time.monotonic()
        looks -= 1
        if now - before < CLOCK_APART_S or not looks:
            return now, wall_s


def _boot() -> str:
    """Return the id of this boot of the machine, empty if the system has none."""
    try:
        return BOOT.read_text(encoding="ascii").strip()
    except (OSError, ValueError):
        return ""


def _why(error: zmq.ZMQError) -> str:
    if error.errno == errno.EADDRINUSE:
        return "the address is in use; stop what listens there, or choose another"
    if error.errno == errno.EACCES:
        return "permission denied; choose a port above 1023 or a directory of your own"
    return f"{zmq.strerror(error.errno or 0)}; check the address"
