"""Relays: messages to other servers, sent at once or queued, and sent again with a back-off.

A lane is the messages of one type to one server. Such messages are numbered, go out in the order of their numbers, and
do not hold up another lane. A message that a named server has not answered in `report_s`, or cannot take now, is queued
in its lane; later messages of the lane go behind. A server that is not configured gets one attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from msgspec import structs

from bester.broker.core import policy
from bester.broker.core.cases import Reports, unkept
from bester.broker.core.effects import Effects, Link
from bester.broker.core.jobs import Job
from bester.broker.core.lane_shares import Sharer, Waiting
from bester.broker.core.message_groups import sender_of
from bester.broker.core.queue_table import Queue
from bester.broker.core.queues import Queues
from bester.broker.core.remote_notes import RemoteNotes
from bester.broker.core.reporters import Reporters
from bester.broker.core.routes import Routes
from bester.broker.core.settings import Route, Settings
from bester.broker.core.standing import Standing
from bester.broker.core.trace import Trace
from bester.broker.core.transfers import Transfer, Transfers
from bester.broker.store_requests import Entry, Rewrite, lane, owner_of
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import Forward, Meta, Relay
from bester.broker.wire.notes import safe_note
from bester.broker.wire.outcomes import DELIVERED, OUTCOME_TYPE, QUEUED, SENT, UNREACHABLE, failed, reason_of, try_again

DROPPED_AT_ONCE = 1_000
"""Messages of a lane that are dropped in one tick: their dead letters are written with one commit."""
FREED = 256
"""Messages of one sender that waited for its share, and go on in one tick: sent, or enqueued where the link is lost."""
OnEnded = Callable[[Entry, str, float], None]


class Relays:
    """The messages to other servers.

    `bridges` are the links of bridges, which forward to servers of the native protocol, with the prefixes of their ids;
    `links` are the open links to servers of the fabric. `on_ended` is called with each queued message that has ended,
    and its outcome; `chance` returns numbers from 0 to 1, for jitter.
    """

    def __init__(
        self,
        settings: Settings,
        queues: Queues,
        transfers: Transfers,
        reports: Reports,
        out: Effects,
        bridges: Mapping[Link, str],
        trace: Trace,
        reporters: Reporters,
        notes: RemoteNotes,
        standing: Standing,
        *,
        first_token: int,
        chance: Callable[[], float],
        on_ended: OnEnded,
    ) -> None:
        self.transfers = transfers
        self.routes = Routes(settings.routes)
        self.links: set[Link] = set()
        self._settings = settings
        self._limits = settings.limits
        self._queues = queues
        self._reports = reports
        self._out = out
        self._bridges = bridges
        self._token = first_token
        self._chance = chance
        self._on_ended = on_ended
        self._trace = trace
        self._reporters = reporters
        self._notes = notes
        self._standing = standing

    # --- going out ---

    def send(self, job: Job, route: Route, target: str, type_: str, body: bytes, id_: str, now: float) -> str | None:
        """Send a result to a server, enqueue it, or let it wait for its sender's share of the lane. Returns a code
        where none is possible."""
        key, shares = lane(route.name or target, type_), self.transfers.shares
        sharer = _sharer_of(job) if route.name else None
        if sharer is not None and shares.must_wait(key, sharer, now):
            job.case.pending += 1
            origin = structs.replace(job, body=b"", group=None, suspicion=None)  # all that a result needs of the job
            shares.wait(key, sharer, Waiting(origin, route, target, type_, body, id_, now))
            if self.transfers.is_full(key):
                self._go_on(shares.take_first(key, sharer), now, enqueue=True)
            return None
        return self._begin(job, route, target, type_, body, id_, sharer, now)

    def _begin(
        self, job: Job, route: Route, target: str, type_: str, body: bytes, id_: str, sharer: Sharer | None, now: float,
        *, enqueue: bool = False,
    ) -> str | None:  # fmt: skip
        """Send a result, or enqueue it, as it must be with `enqueue`. Returns a code where neither is possible."""
        key = lane(route.name or target, type_)
        full = enqueue or self.transfers.is_full(key)
        if full and not route.name:
            self._out.reached["max_lane"] += 1
            return "overloaded"
        case = job.case
        entry = Entry(
            self._queues.reserve_numbers(1),
            key,
            id_,
            target,
            type_,
            body,
            case.sender,
            self._queues.expires_at(case, now),
            self.meta_of(job),
        )
        entry.meta["at_s"] = self._queues.clock.stored(now)
        link = self._link(route)
        if self._standing.held and route.name in self._standing.held:
            link = None
        queue = self._queues.get(key)
        # A duplicate goes behind the queue, which may hold the first.
        busy = queue is not None and (queue.is_ahead or queue.delay_s or job.may_repeat)
        if route.ordered and not busy:
            busy = self.transfers.has_any(key)
        if route.name and (full or link is None or busy):
            return self._queues.enqueue(entry, case, now)
        if link is None:
            return "unreachable"
        case.pending += 1
        patience_s = self._limits.report_s if route.name else self._limits.relay_s
        ttl_s = None if case.expires is None else max(0.0, case.expires - now)
        transfer = Transfer(entry, target, link, route, now + patience_s, case, job.may_repeat, sharer)
        self._send(transfer, entry, ttl_s, again=job.may_repeat)
        return None

    def _go_on(self, messages: Iterable[Waiting], now: float, *, enqueue: bool = False) -> None:
        """Send messages that have waited for a share of their lane, or enqueue them. The configuration may have been
        read again meanwhile."""
        for each in messages:
            job, case = each.job, each.job.case
            route = self._settings.routes.get(each.route.name)
            code: str | None = "expired"
            if case.expires is None or now < case.expires:
                code = None if route is None else policy.may_send(self._settings, route, each.target, each.type)
            if code is None:
                code = self._begin(
                    job, route or each.route, each.target, each.type, each.body, each.id, _sharer_of(job), now,
                    enqueue=enqueue or route is None,
                )  # fmt: skip
            if code is None:
                self._reports.settle_one(case)  # the case waits for the transfer now, or for the queue
                continue
            self._trace.add((now, job.root, each.id, failed(code), each.target, each.since))
            self._reports.settle(case, each.target, failed(code))

    def meta_of(self, job: Job) -> Meta:
        """Return the meta of a result's entry: its origin, path and root, and the peer that is to have its outcome."""
        meta: Meta = {"origin": job.origin, "root": job.root, "message": job.case.id}
        meta["path"] = job.onward_path(self._settings.name)
        if job.case.peer is not None:
            meta["peer"] = job.case.peer
            meta["message"] = job.case.claimed_id or job.case.id
        if job.case.push:
            meta["push"] = True
        if job.traceparent is not None:
            meta["traceparent"] = job.traceparent
        if job.may_repeat:
            meta["repeated"] = True
        return meta

    def _link(self, route: Route) -> Link | None:
        """Return the link to a server, None where it has none. Of several bridges all brokers of this server choose the
        same one, which marks what comes behind another broker's copy of a message."""
        if route.fabric is None:
            return min(self._bridges, key=self._bridges.__getitem__, default=None)
        link = Link("server", route.name.encode())
        return link if link in self.links else None

    def _send(self, transfer: Transfer, entry: Entry, ttl_s: float | None, *, again: bool) -> None:
        self._token = token = self._token + 1
        self.transfers.add(token, transfer)
        saved = entry.meta
        meta: Meta = {
            "id": entry.id,
            "root": saved.get("root"),
            "origin": saved.get("origin"),
            "path": saved.get("path"),
        }
        if "traceparent" in saved:
            meta["traceparent"] = saved["traceparent"]
        if transfer.route.name:
            queue = self._queues.get(entry.queue)
            floor = self.transfers.floor(entry.queue)
            if queue is not None:
                floor = min(floor, self._queues.ack_floor(queue))
            if self._queues.floor_limit is not None:  # the server must not take adopted messages for settled ones
                floor = min(floor, self._queues.floor_limit)
            meta["lane"] = [self._queues.epoch, entry.number, floor]
        else:
            meta["stranger"] = True  # the bridge looks at the addresses of its name
        if ttl_s is not None:
            meta["ttl_s"] = ttl_s
        if again:
            meta["again"] = True
        if transfer.route.fabric is not None:
            self._out.send(transfer.link, Relay(token, entry.type, entry.body, meta))
        else:
            assert transfer.route.native is not None
            meta["server"] = self._settings.name
            if transfer.route.tls:
                meta["tls"] = True
            if transfer.route.name:
                meta["wait_s"] = self._limits.relay_s
            self._out.send(transfer.link, Forward(token, transfer.route.native, entry.type, entry.body, meta))

    # --- coming back ---

    def on_answer(self, link: Link, token: int, outcome: str, meta: Meta, now: float) -> None:
        """Take in a server's answer, or the end of its connection. A late answer counts for queued messages alone."""
        transfer = self.transfers.end(token, link)
        if transfer is not None:
            silent = False
            if transfer.route.name and transfer.route.native is not None:
                self._standing.on_native_outcome(transfer.route, outcome, meta, now)
            if transfer.route.fabric is None:
                silent = outcome == SENT and not self._reporters.knows(transfer.route)
                outcome = self._reporters.judge(transfer.route, transfer.entry.id, outcome, meta)
            known = outcome in (DELIVERED, SENT, QUEUED) or reason_of(outcome) in CODES
            if transfer.route.name and try_again(outcome, meta) and outcome != UNREACHABLE:
                self._standing.on_refused(transfer.route.name, reason_of(outcome) or outcome, now)
            if transfer.route.name and not try_again(outcome, meta):
                self.on_contact(transfer.route.name, now)  # the server is reachable, and takes messages
            self._trace.add((now, transfer.entry.meta["root"], transfer.entry.id, outcome, transfer.target, 0.0))
            self._ended(transfer, *((outcome, meta) if known else (failed("bad-reply"), {})), now)
            if transfer.sharer is not None:
                key, shares = transfer.entry.queue, self.transfers.shares
                shares.answered(key, transfer.sharer, self._limits.report_s - (transfer.deadline - now))
                self._go_on(shares.take(key, transfer.sharer, now), now)
            if silent:  # the server is reachable; two more times show whether it reports
                self.on_contact(transfer.route.name, now)

    def _ended(self, transfer: Transfer, outcome: str, meta: Meta, now: float) -> None:
        again = try_again(outcome, meta) and bool(transfer.route.name)
        if transfer.case is None:
            self._ended_kept(transfer, outcome, meta, now, again=again)
        elif again:
            if self._enqueue(transfer, now, repeated=_may_have_arrived(transfer, outcome, meta)):
                self._back_off(self._queue(transfer), now)
        else:
            self._record_remote(transfer, outcome, meta)
            queue = self._queues.get(transfer.entry.queue) if transfer.route.ordered else None
            if queue is not None:
                self.advance(queue, now)

    def _settle(self, transfer: Transfer, outcome: str, note: str | None = None) -> None:
        case, transfer.case = transfer.case, None
        assert case is not None
        self._reports.settle(case, transfer.target, outcome, note)

    def _ended_kept(self, transfer: Transfer, outcome: str, meta: Meta, now: float, *, again: bool) -> None:
        entry, queue = transfer.entry, self._queues.get(transfer.entry.queue)
        if queue is None or not self._queues.is_inflight(entry.number):
            return
        if again:
            self._queues.requeue(entry.number, unsent=not _may_have_arrived(transfer, outcome, meta))
            self._back_off(queue, now)
            return
        queue.delay_s = 0.0
        if outcome == QUEUED:
            note = entry._replace(body=b"", meta=entry.meta | {"left": _left(meta)})
            is_asked = entry.sender is not None or entry.meta.get("peer") is not None
            self._queues.end(entry, outcome, note if is_asked else None)
            self._out.writes.append(Rewrite(entry.number, note.meta))
            if is_asked:
                self._notes.add(owner_of(entry.queue))
        else:
            self._queues.end(entry, outcome)
            self._on_ended(entry, outcome, now)
        self.advance(queue, now)

    def _record_remote(self, transfer: Transfer, outcome: str, meta: Meta) -> None:
        """Settle the case of a message that was sent at once and answered. Where the message is queued over there, and
        somebody may ask for its outcome or must have it, record it first: the commit settles the case."""
        entry, case = transfer.entry, transfer.case
        if outcome != QUEUED or case is None or (entry.sender is None and entry.meta.get("peer") is None):
            self._settle(transfer, outcome, _note_of(meta) if reason_of(outcome) is not None else None)
            return
        transfer.case = None
        self._notes.add(owner_of(entry.queue))
        self._queues.record_remote(entry._replace(body=b"", meta=entry.meta | {"left": _left(meta)}), outcome, case)

    def _enqueue(self, transfer: Transfer, now: float, *, repeated: bool) -> bool:
        """Enqueue a message that was sent at once; its case is settled at the commit. Returns False, and settles the
        case, where there is no room."""
        entry, case = transfer.entry, transfer.case
        assert case is not None
        if repeated:
            entry = transfer.entry = entry._replace(meta=entry.meta | {"repeated": True})
        code = self._queues.enqueue(entry, case, now)
        if code is not None:
            self._settle(transfer, failed(unkept(code) if repeated else code))
            return False
        transfer.case = None
        self._reports.settle_one(case)  # the case waits for the queue now, and not for the transfer
        return True

    def _queue(self, transfer: Transfer) -> Queue:
        queue = self._queues.get(transfer.entry.queue)
        assert queue is not None  # the message was enqueued a moment ago
        return queue

    # --- queued messages ---

    def advance(self, queue: Queue, now: float) -> None:
        """Fetch more of a lane, where its server is reachable, its back-off is over, and the window has room."""
        if queue.ready <= 0 or queue.fetching:
            return
        if queue.discard_upto > queue.cursor:
            self._queues.fetch(queue, DROPPED_AT_ONCE, self.on_fetched)
            return
        if now < queue.retry_at:
            return
        server = owner_of(queue.key)
        route = self._settings.routes.get(server)
        if route is None or self._link(route) is None or server in self._standing.held:
            return
        if (queue.delay_s and queue.inflight) or (route.ordered and self.transfers.has_any(queue.key)):
            return
        # After a failure one message goes alone; an outcome does not wait for that of another message.
        one = route.ordered or (queue.delay_s and queue.key != lane(route.name, OUTCOME_TYPE))
        window = 1 if one else self._limits.window
        if queue.inflight * 2 <= window:
            self._queues.fetch(queue, window - queue.inflight, self.on_fetched)

    def on_fetched(self, queue: Queue, entries: Sequence[Entry], now: float) -> None:
        """Send the messages that were fetched, once their mark is on disk."""
        if not entries:
            self.advance(queue, now)
            return
        if queue.discard_upto and (entries := self._end_dropped(queue, entries, now)) == []:
            return  # the rest at the next tick: other messages come between
        route = self._settings.routes.get(owner_of(queue.key))
        if route is None or self._link(route) is None or route.name in self._standing.held:
            for entry in entries:
                self._queues.requeue(entry.number)
            return
        code = policy.may_send(self._settings, route, route.name, entries[0].type)
        if code is not None:  # the configuration has changed since they were queued
            for entry in entries:
                self._queues.end(entry, failed(code))
                self._on_ended(entry, failed(code), now)
            return
        self._queues.mark_sent(
            queue, entries, lambda marked, now: self._on_marked(queue, route, entries, marked, now), now
        )

    def _on_marked(self, queue: Queue, route: Route, entries: Sequence[Entry], marked: set[int], now: float) -> None:
        """Send messages to their server, whose link may have been lost while the mark was written."""
        link = self._link(route)
        if link is None or route.name in self._standing.held:
            for entry in entries:
                self._queues.requeue(entry.number, unsent=entry.number not in marked)
            return
        stored_s = self._queues.clock.stored(now)
        for entry in entries:
            again = entry.number in marked
            transfer = Transfer(entry, entry.target, link, route, now + self._limits.relay_s, None, again)
            self._send(transfer, entry, max(0.0, entry.expires_s - stored_s), again=again)

    def discard(self, server: str, now: float) -> None:
        """End all messages queued for a server: they become dead letters, except late outcomes. A message in flight
        ends by its answer, or as soon as it would be sent again."""
        for queue in self._queues.lanes_to(server):
            queue.discard_upto = self._queues.next_number - 1
            self.advance(queue, now)

    def _end_dropped(self, queue: Queue, entries: Sequence[Entry], now: float) -> list[Entry]:
        """End the dropped ones of some messages; return the others."""
        for entry in entries:
            if entry.number <= queue.discard_upto:
                self._queues.end(entry, UNREACHABLE)
                self._on_ended(entry, UNREACHABLE, now)
        return [entry for entry in entries if entry.number > queue.discard_upto]

    def _back_off(self, queue: Queue, now: float) -> None:
        if now < queue.retry_at:  # another message in flight had the same failure
            return
        limits = self._limits
        self._standing.of(owner_of(queue.key), now).retries += 1
        queue.delay_s = min(max(limits.first_retry_s, 2 * queue.delay_s), limits.last_retry_s)
        queue.retry_at = now + queue.delay_s * (0.5 + self._chance() / 2)

    def on_contact(self, server: str, now: float, *, linked: bool = False) -> None:
        """Shorten the back-off of a server that has answered, and end it where its link is open now (`linked`)."""
        for queue in self._queues.lanes_to(server):
            if linked:
                queue.delay_s = queue.retry_at = 0.0
                self.advance(queue, now)
            elif queue.delay_s:
                queue.delay_s = self._limits.first_retry_s
                queue.retry_at = min(queue.retry_at, now + queue.delay_s)

    # --- trouble and time ---

    def on_account_removed(self, user: str) -> None:
        """Have nobody get the later outcomes of a removed user's messages that wait for a share of their lane. Those in
        transfer have their numbers already, by which their outcomes are told from a new user's."""
        for message in self.transfers.shares:
            case = message.job.case
            if case.sender == user:
                case.sender, case.push = None, False

    def on_link_lost(self, link: Link, now: float) -> None:
        """Requeue, enqueue or settle all messages in flight on a lost link: they may have been delivered."""
        self.links.discard(link)
        for transfer in self.transfers.drop_link(link):
            self._unanswered(transfer, now)

    def _unanswered(self, transfer: Transfer, now: float) -> None:
        """Requeue, enqueue or settle a message that will have no answer, and may have been delivered."""
        if transfer.case is None:
            queue = self._queues.get(transfer.entry.queue)
            if queue is not None and self._queues.is_inflight(transfer.entry.number):
                self._queues.requeue(transfer.entry.number)
                self._back_off(queue, now)
        elif transfer.route.name:
            self._enqueue(transfer, now, repeated=True)
        else:
            self._settle(transfer, UNREACHABLE)

    def tick(self, now: float) -> None:
        """Give up overdue transfers, and go on with the lanes whose back-off is over."""
        for token, transfer in self.transfers.overdue(now):
            if transfer.case is None or not transfer.route.name:
                self._unanswered(transfer, now)
            elif self._enqueue(transfer, now, repeated=True):  # a late answer still counts
                self._queues.keep_inflight(transfer.entry.number)
                self.transfers.extend(token, transfer, now + self._limits.relay_s)
        shares = self.transfers.shares
        for key, sharer in shares.waiting():
            self._go_on(shares.take(key, sharer, now, most=FREED), now)
            self._go_on(shares.take_first(key, sharer, FREED, now - self._limits.report_s), now, enqueue=True)
        for queue in self._queues.lanes():
            self.advance(queue, now)


def _sharer_of(job: Job) -> Sharer:
    return Sharer(sender_of(job), len(job.path))


def _may_have_arrived(transfer: Transfer, outcome: str, meta: Meta) -> bool:
    """Return whether a server that is tried again may have processed the message. A refusal proves that it did not, and
    so does a connection that was never made. An end without a report proves nothing, and neither does a report of
    `unreachable`: that server may have lost its broker with the message in hand."""
    if transfer.again:
        return True
    if transfer.route.fabric is not None or meta.get("unsent") is True:
        return False
    return meta.get("reported") is not True or outcome == UNREACHABLE


def _note_of(meta: Meta) -> str | None:
    """Return the note of a refusal over there, made safe: another owner's server may have written anything."""
    note = meta.get("note")
    return safe_note(note) or None if type(note) is str else None


def _left(meta: Meta) -> int:
    left = meta.get("queued")
    return left if type(left) is int and left > 0 else 1
