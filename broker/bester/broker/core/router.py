"""The broker's core: every message of every link enters here, and everything to be done comes out as `Effects`.

    router = Router(settings, epoch="…", first_token=…, now=now, snapshot=store.open())
    effects = router.receive_all(link, messages, now)

The shell commits the effects' writes as soon as it can, then calls `on_committed`, whose effects have what depends on
them; it does their reads, and calls `on_reads` with the answers. The messages of the effects depend on none of the
writes.

The router finds the peer of a link, and lets `Operations` carry out what its role may send; everything else that
happens to a broker enters here as well: links that come and go, time, a new configuration, the store's answers. The way
of a message is the dispatcher's. Bad input from a link never raises here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

from bester.broker.core import policy
from bester.broker.core.assemble import Surroundings, assemble
from bester.broker.core.clock import Clock
from bester.broker.core.effects import Effects, Link, StoreRead
from bester.broker.core.figures import Figures
from bester.broker.core.inquiries import Inquiries
from bester.broker.core.inspection import Inspection
from bester.broker.core.operations import Operations
from bester.broker.core.refused import LOG_AGAIN_S, Refusal, Refused
from bester.broker.core.runs import runs
from bester.broker.core.settings import Grant, Route, Settings
from bester.broker.core.submit_credit import Count
from bester.broker.hosts import Hosts
from bester.broker.store_brokers import Adopted
from bester.broker.store_requests import Committed, SaveClock, SaveName, Snapshot, Write, mailbox
from bester.broker.wire.messages import (
    Answer,
    Close,
    Heartbeat,
    LoggedIn,
    Malformed,
    Message,
    Relay,
)
from bester.broker.wire.outcomes import UNREACHABLE, failed
from bester.broker.wire.trouble import Told

NOTHING_KEPT = Snapshot()
FOLD_S = 1.0
"""Time between two counts of the times that messages took: a few bytes for each wait in between."""


class Router:
    """State of one broker.

    `epoch` tells this life from earlier ones; `first_token` is random, below 2^52; `now` is the machine's monotonic
    clock, `wall_s` the wall clock (seconds since 1970; None: there is no other clock), `boot` the name of this run of
    the machine, empty where there is none.

    `accounts_of` returns those of some names that users have; `process_of` gives the number of the process at the
    other end of a link, None where the number is not known; `is_stopped` says whether a process is stopped (by a signal
    or a debugger); `read_until` up to which time everything that had arrived on a link was read; `may_open` whether a
    session that a bridge announces, of this user and account, may go on. `take_unsent` returns the messages for a link
    that was lost which were left to a later turn, and sends them no more.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        epoch: str,
        first_token: int,
        now: float,
        wall_s: float | None = None,
        boot: str = "",
        accounts_of: Callable[[Collection[str]], Collection[str]] = lambda _: (),
        snapshot: Snapshot = NOTHING_KEPT,
        chance: Callable[[], float] = lambda: 0.5,
        process_of: Callable[[Link], int | None] = lambda _: None,
        is_stopped: Callable[[int], bool] = lambda _: False,
        read_until: Callable[[Link], float] = lambda _: math.inf,
        take_unsent: Callable[[Link], Sequence[Message]] = lambda _: (),
        may_open: Callable[[str, str | None], bool] = lambda user, account: True,
    ) -> None:
        # Copies that this router alone changes (see `on_reloaded`); every unit has this one object of settings.
        self._routes, self._grants = dict(settings.routes), dict(settings.grants)
        self.settings = settings = replace(settings, routes=self._routes, grants=self._grants)
        self._out = Effects()
        self._epoch = epoch
        self._clock = Clock(now, now if wall_s is None else wall_s, boot, snapshot.clock)
        self._out.writes.append(SaveClock(self._clock.save(now)))
        around = Surroundings(
            epoch, first_token, self._take_name(snapshot.names), chance, accounts_of, process_of, is_stopped,
            read_until, take_unsent,
        )  # fmt: skip
        self._units = units = assemble(settings, self._out, self._clock, snapshot, around, now)
        self._dispatcher = units.dispatcher
        self._ingress = units.ingress
        self._inbound_lanes = units.inbound_lanes
        self._peers = units.peers
        self._by_link = units.peers.by_link
        self._relays = units.relays
        self._answers = units.answers
        self._reports = units.reports
        self._fold_at = now + FOLD_S
        self._missing: dict[str, tuple[str, Told]] = {}  # servers without a link: why, and what was logged
        self._refused = Refused(self._out)
        self._inquiries = Inquiries(self.settings, self._out, units, self._clock, self._refused, now)
        if snapshot.queues or snapshot.dead:
            self._out.notice("kept", waiting=self._units.queues.messages, dead_letters=snapshot.dead)
        if snapshot.full is not None:
            self._out.notice("storage-full", why=f"{snapshot.full}; until then nothing can be kept")
        self._operations = Operations(self._out, units, self._clock, self._inquiries.ask, may_open)
        self._table = self._operations.table

    def _take_name(self, known: Sequence[str]) -> set[str]:
        """Return every name that this server has or had: ids of its messages begin with one of them. Save a new
        name."""
        name = self.settings.name
        if name not in known[-1:]:
            self._out.writes.append(SaveName(name))
            if known:
                self._out.notice("renamed", before=known[-1], now=name)
        return {name, *known}

    # --- in ---

    def receive_all(self, link: Link, messages: Sequence[Message | Malformed], now: float) -> Effects:
        """Take in the messages that arrived on a link in one batch, in order: run by run of one kind."""
        self._reports.now = now
        peer = self._by_link.get(link)
        if peer is None and link.door == "server":
            for message in messages:
                self._operations.take_answer(link, message, now)
            return self._take()
        for kind, run in runs(messages):
            if peer is not None and not peer.leaving and (carry_out := self._table[peer.role].get(kind)) is not None:
                carry_out(peer, run, now)
            else:
                peer = self._operations.take_each(link, peer, run, now)
        if peer is not None:
            peer.last_heard = now
            if peer.worker is not None:
                self._dispatcher.feed(peer.worker, now)
        return self._take()

    def _take(self, committed: Sequence[Write] = (), result: Committed | None = None) -> Effects:
        if self._inbound_lanes.due:
            self._inbound_lanes.flush()
        out = self._out
        if (out.writes and out.messages) or self._reports.resting:
            self._answers.hold()
        if result is not None:  # after `hold`: these answers wait for no other commit
            self._answers.on_committed(committed, result)
        if self._peers.resumes:
            self._peers.count_reports()
        return out.take()

    def on_verified(
        self, link: Link, session: int, user: str, reason: str | None, now: float, retry_s: float | None = None,
        account: str | None = None,
    ) -> Effects:  # fmt: skip
        """Take in the result of a password check: `reason` is the code of a refusal, None where the login is good.
        `retry_s`: seconds after which a refused client may try again."""
        self._reports.now = now
        peer = self._by_link.get(link)
        if peer is not None and session in peer.logins:
            peer.logins.remove(session)
            if reason is None and not self._units.directory.open(link, session, user):
                reason = "overloaded"
                self._out.reached["max_sessions"] += 1
            retry_ms = None if retry_s is None else math.ceil(retry_s * 1000)
            self._send(link, LoggedIn(session, 0 if reason is None else 1, reason, retry_ms, account))
            if reason is None:
                self._units.mailboxes.on_login(user, now)
        return self._take()

    def ask_login(self, number: int, user: str, password: str, address: str, now: float) -> Effects:
        """Ask a handler of `bester.auth` whether a login is good. The caller chooses the number, which `LoginDecided`
        names; `address` is the client's, empty if the client has none."""
        self._units.auth.ask(number, user, password, address, now)
        return self._take()

    @property
    def is_decided_by_handler(self) -> bool:
        """True where a handler decides logins, and the passwords of accounts do not."""
        return policy.is_decided_by_handler(self.settings)

    def on_password_changed(
        self, link: Link, token: int, reason: str | None, retry_s: float | None, now: float
    ) -> Effects:
        """Take in the result of a change of password: `reason` is the code of a refusal."""
        if link in self._by_link:
            retry_ms = None if retry_s is None else math.ceil(retry_s * 1000)
            self._send(link, Answer(token, 0 if reason is None else 1, [reason, retry_ms]))
        return self._take()

    def is_connected(self, user: str) -> bool:
        """Return whether a user has a session."""
        return self._units.directory.places(user) is not None

    def connected(self) -> list[str]:
        """Return the users with a session, as of this call."""
        return self._units.directory.connected()

    def on_account_disabled(self, user: str) -> Effects:
        """Close the sessions of a user whose account is disabled; queued messages stay."""
        self._close_sessions(user)
        return self._take()

    def _close_sessions(self, user: str) -> None:
        for link, sessions in (self._units.directory.places(user) or {}).items():
            for session in sessions:
                self._send(link, Close(session))

    @property
    def links(self) -> int:
        """Number of links that have spoken, with or without a HELLO."""
        return len(self._by_link) + self._peers.strangers

    def users(self) -> Iterator[str]:
        """Yield the users with a session, and those for whom messages are queued, as of this call; some twice."""
        return chain(self._units.directory.connected(), self._units.queues.owners())

    def has(self, user: str) -> bool:
        """Return whether a user has a session, or messages are queued for them, or left to later turns."""
        is_queued = self._units.queues.get(mailbox(user)) is not None
        return is_queued or self.is_connected(user) or self._units.fan_out.has(user)

    def on_account_removed(self, user: str, now: float) -> Effects:
        """Close the sessions of a removed user, and end the messages queued for that user."""
        self._reports.now = now
        self._units.mailboxes.on_account_removed(user, failed("unknown-user"), now)
        self._units.late_outcomes.on_account_removed(user, now)
        self._ingress.on_account_removed(user)
        self._dispatcher.on_account_removed(user, [each.worker for each in self._by_link.values() if each.worker])
        self._relays.on_account_removed(user)
        self._close_sessions(user)
        return self._take()

    def on_undeliverable(self, link: Link, message: Message, now: float, waiting: Sequence[Message] = ()) -> Effects:
        """Take in that a message could not be sent: the peer is gone, or does not read. `waiting` are the messages that
        were to follow on the link."""
        self._reports.now = now
        peer = self._by_link.get(link)
        if peer is not None:
            self._peers.on_unsent(peer, (message, *waiting))
            self._peers.on_peer_lost(peer, "gone, or not reading", now)
        elif link.door == "server" and type(message) is Relay:
            self._relays.on_answer(link, message.token, UNREACHABLE, {}, now)
        return self._take()

    def on_server_ready(self, name: str, now: float) -> Effects:
        """Take in that the link this broker opened to a server is up."""
        self._reports.now = now
        self._relays.links.add(Link("server", name.encode()))
        self._missing.pop(name, None)
        self._units.standing.on_reached(name, now)
        self._out.notice("server-reached", server=name)
        self._relays.on_contact(name, now, linked=True)
        return self._take()

    def on_server_lost(self, name: str, why: str, now: float) -> Effects:
        """Take in that the link this broker opened to a server is down, or could not be opened; log a reason once in
        LOG_AGAIN_S until the link is up again."""
        self._reports.now = now
        link = Link("server", name.encode())
        self._relays.on_link_lost(link, now)
        self._units.following.on_link_lost(link)
        self._units.standing.on_lost(name, why, now)
        told = self._missing[name][1] if name in self._missing else Told(LOG_AGAIN_S)
        self._missing[name] = (why, told)
        if told.is_due(why, now):
            self._out.notice("server-lost", server=name, why=why)
        return self._take()

    def on_refused(self, address: str, key: str, why: str, now: float) -> Effects:
        """Take in that the fabric refused a connection before its HELLO; `key` is empty where it showed none."""
        self._refused.add(address, key, why, now)
        return self._take()

    @property
    def refused(self) -> list[Refusal]:
        """Connections that the fabric has refused, the latest last."""
        return self._refused.latest()

    def on_link_lost(self, link: Link, why: str, now: float) -> Effects:
        """Take in that a link of the fabric has ended, or that its routing id has passed to another key."""
        self._reports.now = now
        peer = self._by_link.get(link)
        if peer is not None:
            self._peers.on_peer_lost(peer, why, now)
        return self._take()

    def on_reloaded(self, routes: Mapping[str, Route], grants: Mapping[str, Grant], now: float) -> Effects:
        """Take in the servers and keys of a configuration that was read again. Peers whose key is gone are parted from
        at once; messages queued for a server that is not listed any more wait until it is listed again."""
        self._reports.now = now
        self._routes.clear()
        self._routes.update(routes)
        self._grants.clear()
        self._grants.update(grants)
        self._relays.routes.replace(routes)
        for name in self._missing.keys() - routes.keys():
            del self._missing[name]
        self._peers.on_grants_changed(now)
        return self._take()

    def on_hosts_changed(self, hosts: Hosts, now: float) -> Effects:
        """Take in a new table of the native servers' addresses. Messages queued for a server whose address was found,
        or has changed, are tried again soon."""
        self._reports.now = now
        for server in self._ingress.on_hosts_changed(hosts, now):
            self._relays.on_contact(server, now)
        return self._take()

    def tick(self, now: float, wall_s: float | None = None) -> Effects:
        """Let time pass; to be called a few times a second, with the wall clock's time."""
        self._reports.now = now
        jump_s = None if wall_s is None else self._clock.read(now, wall_s)
        if jump_s is not None:
            self._out.notice("clock-jumped", seconds=round(jump_s, 3))
        if self._clock.is_dirty:
            self._out.writes.append(SaveClock(self._clock.save(now)))
        if self._peers.tick(now):
            self._dispatcher.tick([peer.worker for peer in self._by_link.values() if peer.worker is not None], now)
            self._units.mailboxes.tick(now)
            self._relays.tick(now)
            self._units.queues.tick(now)
            self._units.restarts.tick(self._by_link.values(), now)
            self._units.auth.tick(now)
        self._units.shadows.tick(now)
        self._units.recordings.tick(now)
        self._ingress.tick(now)
        self._inbound_lanes.tick()
        self._share_credit(now)
        self._units.cockpit.tick(now)
        self._units.following.tick(now)
        self._units.adoption.tick(now)
        if now >= self._fold_at:
            self._fold_at = now + FOLD_S
            self._inquiries.fold(now)
        return self._take()

    @property
    def has_silent(self) -> bool:
        """Return whether peers that have fallen silent are still to be given up: by `give_up_silent`, or by `tick`."""
        return self._peers.has_silent

    def give_up_silent(self, now: float) -> Effects:
        """Give up some of the peers that have fallen silent; to be called in the turns of the loop after a tick."""
        self._reports.now = now
        self._peers.give_up_silent(now)
        return self._take()

    @property
    def has_fan_out(self) -> bool:
        """Return whether users are still to get a message to many, by `fan_out`."""
        return bool(self._units.fan_out.later)

    def may_fan_out(self, *, keeps: bool) -> bool:
        """Return whether `fan_out` is to be called in the next turn of the loop; `keeps`: the store has room for the
        messages of those who are away."""
        return self._units.fan_out.may_go_on(keeps=keeps)

    def fan_out(self, now: float, *, keeps: bool = True) -> Effects:
        """Send messages to many to some more of their users, and without `keeps` up to the first who is away."""
        self._reports.now = now
        self._units.fan_out.go_on(now, keeps=keeps)
        return self._take()

    def _share_credit(self, now: float) -> None:
        """Tell the bridges how much more this broker can take, where that has changed."""
        workers = self._units.workers
        waiting = workers.queues.counts()
        stuck_types = self._units.stuck_types
        stuck = stuck_types.look(waiting, workers.queues.front, workers.serves, now)
        others = waiting.keys() - stuck
        still = stuck_types.still & others
        # With stuck ones, which leave others their room.
        under_way = self._units.reports.open - _sum(waiting, others)[0]
        in_work = max(workers.count_inflight(), under_way - self._units.deliveries.count_recent())
        for link, options in self._units.credit.share(stuck, _sum(waiting, others), _sum(waiting, still), in_work):
            self._send(link, Heartbeat(options))

    # --- the store ---

    def on_committed(self, writes: Sequence[Write], result: Committed, now: float) -> Effects:
        """Take in the result of a group of writes: settle the cases that waited for the group."""
        self._reports.now = now
        if not result.ok and writes:  # while the store is away, a group of none fails at every turn
            self._out.notice(result.code, why=result.why)
        if result.forgotten:
            self._out.reached.update(result.forgotten)
        self._units.queues.on_committed(writes, result, now)
        return self._take(writes, result)

    def on_reads(self, answered: Iterable[tuple[StoreRead, Any]], now: float) -> Effects:
        """Hand the store's answers to the units that wanted them. What several answers change is written once: a lane
        may have thousands of outcomes, and each answer end a message of it."""
        self._reports.now = now
        for read, answer in answered:
            read.on_answer(answer, now)
        return self._take()

    def on_adopted(self, adopted: Adopted, now: float) -> Effects:
        """Take in what another broker of this server has left, and the store has moved to this one's namespace."""
        self._reports.now = now
        self._units.adoption.on_adopted(adopted, now)
        return self._take()

    def dismiss(self, reason: str) -> Effects:
        """Send GOODBYE to every peer on the fabric, because this broker ends."""
        self._inbound_lanes.tick()
        self._peers.part_from_all(reason)
        return self._take()

    def on_types_given_up(self, types: frozenset[str]) -> None:
        """Take in which types have handlers that will not be started again: messages of these types do not wait."""
        self._units.known_types.given_up = types

    def announce_end(self) -> None:
        """Tell in the status that this server ends. Clients' messages are taken no more; this broker still takes those
        of handlers and of other servers, until `drain`."""
        self._inquiries.is_ending = True

    def drain(self) -> None:
        """Refuse all messages from now on, or leave them to others, and let those under way go on: this broker is about
        to end."""
        self._ingress.draining = True
        self._dispatcher.ending = True

    @property
    def idle(self) -> bool:
        """Return whether all reports were sent."""
        return self._units.reports.open == 0 and not self._answers.count

    def inspect(self) -> Inspection:
        """Return counts of everything that this broker holds. Counting is done at the call, which takes longer the more
        there is."""
        return self._inquiries.inspect()

    def status(self, now: float) -> dict[str, Any]:
        """Return the status of this broker as plain values, see `status_of`."""
        return self._inquiries.status(now)

    @property
    def figures(self) -> Figures:
        """The figures of this broker, counted from its start on."""
        return self._units.figures

    def _send(self, link: Link, message: Message) -> None:
        self._out.send(link, message)


def _sum(waiting: Mapping[str, Count], types: Iterable[str]) -> Count:
    """Return the messages, and their bytes, that wait of some types."""
    counts = [waiting[type_] for type_ in types]
    return sum(count for count, _ in counts), sum(size_bytes for _, size_bytes in counts)
