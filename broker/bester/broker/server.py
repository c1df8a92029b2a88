"""Shell of the broker: its messages, the clock and the log; sockets, links to servers and logins have modules beside.

The shell passes received messages to the core, hands the core's requests to the store driver, and sends the core's
messages at the end of a turn. The shell never decides: the router processes each message, and the shell carries out the
effects. The core's time is the monotonic clock itself, as a uvloop loop's own `time()` stands still within a turn and
counts whole milliseconds, too coarse for a trace.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Self

from bester.broker.clocks import boot_id, both_clocks
from bester.broker.core import policy
from bester.broker.core.effects import (
    ChangePassword,
    Effects,
    Link,
    LoginDecided,
    LookUp,
    Notice,
    Reconnect,
    Restart,
    ShellCall,
    Spans,
    Verify,
)
from bester.broker.core.router import Router
from bester.broker.core.settings import Grant, Route, Settings
from bester.broker.fabric_listeners import FabricListeners, Receivers
from bester.broker.fabric_socket import Frames
from bester.broker.hosts import Hosts
from bester.broker.keys import KeyPair
from bester.broker.leaving import SENT_AT_ONCE, Leaving
from bester.broker.log_limits import PACED, WARNINGS, LogLimits
from bester.broker.login_checks import LoginChecks, may_open
from bester.broker.logs import bare_facts, facts, with_facts
from bester.broker.processes import exists, is_stopped
from bester.broker.removed_accounts import RemovedAccounts
from bester.broker.sending import Sending
from bester.broker.server_links import ServerLinks
from bester.broker.store import Store
from bester.broker.store_driver import RETRY_S, StoreDriver
from bester.broker.store_requests import Snapshot
from bester.broker.store_size import StoreSize
from bester.broker.store_thread import StoreThread
from bester.broker.turn import Turn
from bester.broker.users import Logins
from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import Malformed, Message
from bester.broker.wire.runs import read
from bester.broker.wire.unsendable import expected_answer, substitute

TICK_S = 0.1
"""Interval at which the core is given the time."""
MAX_LINKS = 20_000
"""Links of one socket that are remembered by their routing ids; above the bound all are made anew. Memory."""

log = logging.getLogger("bester.broker")

Receiver = Callable[[list[Message]], None]


@dataclass
class Hooks:
    """Callbacks of a running broker, which whoever runs it sets.

    `on_handler` gets the name and the types of each handler that connects. `restart` restarts a handler's process, with
    the reason, and returns False for a process that it did not start. `look_up` looks up the hosts of servers; the
    result is passed to `hosts_changed`. `follow` gets the hosts of the native servers, by name, of a configuration that
    was read again; `reread_operator` reads the files of the operator's page again. `export` exports the spans of a
    message.
    """

    on_handler: Callable[[str, Collection[str]], None] = lambda name, types: None
    restart: Callable[[int, str], bool] = lambda process, why: False
    look_up: Callable[[Iterable[str]], None] = lambda servers: None
    follow: Callable[[Mapping[str, str]], None] = lambda hosts: None
    reread_operator: Callable[[], None] = lambda: None
    export: Callable[[Spans], None] = lambda spans: None


def _new_router(
    settings: Settings, snapshot: Snapshot, accounts: Logins, removed: RemovedAccounts, listeners: FabricListeners,
    take_unsent: Callable[[Link], Sequence[Message]],
) -> Router:  # fmt: skip
    """Return a core with the store's contents, this machine's clocks and chance, and what others know."""
    now, wall_s = both_clocks()
    return Router(
        settings,
        epoch=secrets.token_hex(4),
        first_token=secrets.randbelow(2**51),
        now=now,
        wall_s=wall_s,
        boot=boot_id(),
        accounts_of=removed.accounts_of,
        snapshot=snapshot,
        chance=random.random,
        process_of=listeners.process_of,
        is_stopped=is_stopped,
        read_until=listeners.read_until,
        take_unsent=take_unsent,
        may_open=partial(may_open, accounts),
    )


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
        store_file: Path | None = None,
        turn: Turn | None = None,
    ) -> None:
        """`pair` are this server's keys, for links that are encrypted; with `curve`, those on loopback are, too. The
        figures show the size of `store_file`, the store's file. `turn` is that of a bridge in this process."""
        snapshot = store.open()
        self.settings = settings
        self._listen = listen
        self._turn = turn or Turn()
        self._listeners = FabricListeners(self._turn, pair, curve=curve)
        self._removed_accounts = RemovedAccounts(accounts)
        self.router = _new_router(
            settings, snapshot, accounts, self._removed_accounts, self._listeners, self._take_unsent
        )
        self._group = asyncio.TaskGroup()
        self._logins = LoginChecks(
            self.router, accounts, self._removed_accounts, self._group, self._carry_out, self._write, self._end_removals
        )
        self._servers = ServerLinks(self.router, pair, self._turn, self._group, self._carry_out, self._log_unsendable)
        self._store = store
        self._store_size = StoreSize(store, store_file, self.router.figures.store)
        self._store_thread = StoreThread(self._on_aside)
        self._driver = StoreDriver(self.router, store, self._carry_out, aside=self._store_thread.run)
        self._retry_handle: asyncio.TimerHandle | None = None
        self._direct: dict[Link, Receiver] = {}
        self._leaving = Leaving()
        self._flushes = False  # at the end of this turn
        self.sending = Sending(self._listeners.sockets, self._cannot_send, self._lose, self._leave)
        self._tick_handle: asyncio.TimerHandle | None = None
        self._later_handle: asyncio.Handle | None = None  # of what the core has left to later turns
        self._notices = LogLimits()
        self.operator_address: str | None = None
        """Address of the operator's page, as `host:port`; None without a page."""
        self.hooks = Hooks()

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        await self._group.__aenter__()
        most_values = partial(policy.most_values, self.router.settings)
        receivers = Receivers(
            self._reader, self._take, self._on_link_ended, most_values, self._leaving.may_begin, self._on_refused
        )
        try:
            for endpoint in self._listen:
                self._listeners.open(endpoint, self.router.settings.grants, receivers)
            for route in self.settings.routes.values():
                self._servers.open(route)
        except BaseException:
            await self._servers.close()
            self._close_listeners()
            raise
        self._tick()
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Send GOODBYE to every peer and close. Call `drain` first to let messages finish."""
        self._listeners.drop_slices()
        self._carry_out(self.router.dismiss("the broker ends"))
        self._driver.finish()
        self._turn.forget(self._flush)
        self._flush(sent_at_once=sys.maxsize)
        self.sending.close()
        for handle in (self._tick_handle, self._later_handle):
            if handle is not None:
                handle.cancel()
        await self._servers.close()
        self._logins.cancel()
        await self._group.__aexit__(None, None, None)
        self._driver.finish()
        if self._later_handle is not None:  # the last results may have asked for more
            self._later_handle.cancel()
        self._store_thread.close()
        if self._retry_handle is not None:
            self._retry_handle.cancel()
        self._close_listeners()

    async def drain(self, timeout_s: float) -> bool:
        """Accept no new messages and wait, at most `timeout_s`, until none is unreported; return whether the time
        sufficed.

        A broker whose store another process has taken ends at once: its bridges submit again elsewhere."""
        self.router.drain()
        deadline = time.monotonic() + timeout_s
        while not (self.router.idle or self._store.fenced) and time.monotonic() < deadline:  # noqa: ASYNC110 (the core has no events to wait for)
            await asyncio.sleep(TICK_S / 4)
        return self.router.idle or bool(self._store.fenced)

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

    def prepare(
        self, routes: Mapping[str, Route], grants: Mapping[str, Grant], opened: contextlib.ExitStack
    ) -> Callable[[], None]:
        """Return a function that takes in the servers and keys of a configuration that was read again. `opened`
        releases what this needs where the configuration is not applied. Raises as `ServerLinks.prepare` does."""
        return self._servers.prepare(routes, grants, opened)

    def _close_listeners(self) -> None:
        self._turn.forget(self._flush)
        self._listeners.close()

    # --- in ---

    def _reader(self, transport: str, door: bytes) -> Callable[[Frames], None]:
        """Return the function that gets the frames of a plain socket."""
        links: dict[bytes, Link] = {}  # by routing id
        most_values = policy.most_values(self.router.settings, Link(transport, door))

        def received(frames: Frames) -> None:
            identity, *rest = frames
            link = links.get(identity)
            if link is None:
                if len(links) >= MAX_LINKS:
                    links.clear()
                link = links[identity] = Link(transport, door + identity)
            self._received(link, rest, most_values)

        return received

    def _received(self, link: Link, frames: Frames, most_values: int) -> None:
        self._carry_out(self.router.receive_all(link, read(frames, most_values), time.monotonic()))

    def _take(self, link: Link, messages: Sequence[Message | Malformed]) -> None:
        """Take in messages of an encrypted socket."""
        self._carry_out(self.router.receive_all(link, messages, time.monotonic()))
        if link in self._leaving:  # perhaps held back until now
            self._flush_soon()

    def _on_link_ended(self, link: Link) -> None:
        """Take in the end of a link of an encrypted socket."""
        unsent, now = [*self.sending.take(link), *self._leaving.pop(link, ())], time.monotonic()
        if unsent:
            self._carry_out(self.router.on_undeliverable(link, unsent[0], now, unsent[1:]))
        else:
            self._carry_out(self.router.on_link_lost(link, "the connection has ended", now))

    def _on_refused(self, address: str, key: str, why: str) -> None:
        self._carry_out(self.router.on_refused(address, key, why, time.monotonic()))

    def _tick(self) -> None:
        self._tick_handle = self._loop.call_later(TICK_S, self._tick)  # first: a fault in one tick ends no later one
        now = time.monotonic()
        self._listeners.tick(now, self.router.links)
        self._carry_out(self.router.tick(*both_clocks()))
        if self.router.has_fan_out and self._driver.has_room_behind:  # also where there is always more to write
            self._carry_out(self.router.fan_out(now))
        self._go_on_later()
        self._end_removals()
        self._store_size.tick(now)

    def _go_on_later(self) -> None:
        """Go on in the next turn with what the core has left to later ones."""
        if self._later_handle is None and (self.router.has_silent or self._may_fan_out()):
            self._later_handle = self._loop.call_soon(self._go_on)

    def _may_fan_out(self) -> bool:
        return self.router.may_fan_out(keeps=self._driver.has_room)

    def _go_on(self) -> None:
        self._later_handle = None
        now = time.monotonic()
        if self.router.has_silent:
            self._carry_out(self.router.give_up_silent(now))
        if self._may_fan_out():
            self._carry_out(self.router.fan_out(now, keeps=self._driver.has_room))
        self._go_on_later()

    def _end_removals(self) -> None:
        """Write requests that could wait, and report removed accounts of which something is left to the core."""
        for user in self._removed_accounts.due(self.router.users):
            self._carry_out(self.router.on_account_removed(user, time.monotonic()))
        for user in self._removed_accounts.shut_out(self.router.connected):
            self._carry_out(self.router.on_account_disabled(user))
        self._driver.tick()
        self._retry_later()
        self._removed_accounts.strike_off_ended(self.router.has, self._driver.added, self._driver.settled)

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
            queued = self._leaving.get(link)
            if queued is None:
                self._leaving[link] = messages
                self._flush_soon()
            else:
                queued += messages
        if effects.calls:
            self._do(effects.calls)
        if self.router.has_fan_out:
            self._go_on_later()

    def _do(self, calls: Iterable[ShellCall]) -> None:
        for call in calls:
            if type(call) is Verify:
                self._logins.verify(call)
            elif type(call) is LoginDecided:
                self._logins.decided(call.number, call.good)
            elif type(call) is ChangePassword:
                self._logins.change(call)
            elif type(call) is Notice:
                self._write(call)
                if call.event == "joined" and call.fields["role"] == "handler":
                    self.hooks.on_handler(call.fields["name"], call.fields["types"])
            elif type(call) is LookUp:
                self.hooks.look_up(call.servers)
            elif type(call) is Spans:
                self.hooks.export(call)
            elif type(call) is Reconnect:
                self._servers.retry(call.server)
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
        if process is not None and (self.hooks.restart(process, restart.why) or not exists(process)):
            return
        owner = f"process {process} is no child of this server" if process else "its process is unknown"
        extra = facts("handler-useless", handler=restart.name, process=process, why=restart.why)
        log.warning("handler %r must be restarted, but %s: %s", restart.name, owner, restart.why, extra=extra)

    def _flush(self, sent_at_once: int = SENT_AT_ONCE) -> None:
        """Write and read, then send the messages of this turn of the loop, one batch a destination."""
        self._flushes = False
        self.sending.begin()
        if self._driver.due:
            self._driver.run()
            self._retry_later()
        doors = self._listeners.slices.values()
        halfway = [link for slices in doors for link in slices.halfway] if doors else None
        turn = self._leaving.take_turn(halfway, sent_at_once)
        if self._leaving.has_rest:
            self._flush_soon()
        for link, messages in turn.items():
            if (receive := self._direct.get(link)) is not None:
                receive(messages)
            elif link.door == "server":
                self._servers.send(link, messages)
            else:
                self.sending.send(link, messages)
        for socket in self._listeners.sockets:
            socket.look_after_sending()
        if self._driver.due:
            self._flush_soon()

    def _leave(self, link: Link, messages: Sequence[Message]) -> None:
        """Leave messages to a later turn."""
        self._leaving.leave(link, messages)
        self._flush_soon()

    def _take_unsent(self, link: Link) -> Sequence[Message]:
        """Return the messages for a link that was lost which have not left, and send them no more. A last word is
        sent."""
        return self._leaving.take_unsent(link, self.sending.take(link))

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
        self._go_on_later()
        if self._driver.due:
            self._flush_soon()
        self._retry_later()

    def _lose(self, link: Link, unsent: Sequence[Message]) -> None:
        """Give up a link that cannot be sent to: its peer has gone, or does not read."""
        first, *rest = unsent
        waiting = (*rest, *self._leaving.pop(link, ()))
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
