"""A message's way through the broker: enter → place → give → answered → (commands) → settle.

What a handler's commands ask for is begun by `commands` and counted on the message's case; here every ending, however
it comes about, settles one count. The last one sends the report. Links, roles and liveness are the router's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial

from bester.broker.core.aftermath import Aftermath
from bester.broker.core.boxes import Box, Boxes
from bester.broker.core.cases import DELIVERED, Case, Reports, failed
from bester.broker.core.clock import Clock
from bester.broker.core.commands import Commands, fault
from bester.broker.core.deliveries import UNCONFIRMED, Deliveries, Delivery, MailDelivery
from bester.broker.core.directory import Directory
from bester.broker.core.federation import Legs
from bester.broker.core.letters import Letters
from bester.broker.core.mailboxes import Mailboxes
from bester.broker.core.outboxes import Outboxes
from bester.broker.core.parcels import Parcel
from bester.broker.core.pools import Worker
from bester.broker.core.reporters import Reporters
from bester.broker.core.suspects import Suspicion
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.trace import Trace
from bester.broker.core.values import Link, Notice, Outbox, Settings
from bester.broker.core.workers import Workers
from bester.broker.kept import Budget, Learn, Snapshot, is_mailbox
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import (
    DONE,
    HOP_LIMIT,
    REFUSED,
    Command,
    Confirm,
    Reply,
    is_reserved,
    reply_code,
)
from bester.broker.wire.notes import safe_note


class Exchange:
    """All messages a broker holds. What is to be done is put into `out`.

    `first_token` is where this life's tokens begin; `is_account` says whether a user name is known though absent;
    `snapshot` is what the store holds; `chance` gives numbers from 0 to 1.
    """

    def __init__(
        self, settings: Settings, out: Outbox, clock: Clock, *, first_token: int, now: float,
        is_account: Callable[[str], bool], snapshot: Snapshot, chance: Callable[[], float],
    ) -> None:  # fmt: skip
        limits = settings.limits
        self.settings = settings
        self.limits = limits
        self.workers = Workers(limits.max_types)
        self.trace = Trace(limits.trace, clock, settings.name)
        self.reports = Reports(out)
        self.directory = Directory(limits.max_sessions)
        self.deliveries = Deliveries()
        self.bridges: dict[Link, None] = {}
        self.boxes = Boxes(settings, out, self.reports, clock, snapshot, now)
        self.boxes.look = self._look
        legs = Legs(limits.max_lane)
        self.aftermath = Aftermath(settings, self.boxes, legs, out, now)
        self.outboxes = Outboxes(
            settings, self.boxes, legs, self.reports, out, self.bridges, self.trace, Reporters(out, snapshot.peers),
            first_token=first_token, chance=chance, became=self.aftermath.became,
        )  # fmt: skip
        self.mailboxes = Mailboxes(self.boxes, self.directory, self.deliveries, out, self.aftermath.became)
        self.commands = Commands(
            settings, out, self.trace, self.boxes, self.directory, self.deliveries, self.mailboxes, self.outboxes,
            self._place, is_account,
        )  # fmt: skip
        self.letters = Letters(settings, self.boxes, self.reports, out, self.enter, self.knows)
        self._budget = Budget(None, limits.attempts)
        self.timeouts = Timeouts(settings)
        self._timed = bool(self.timeouts.configured)
        self._seen_types: dict[str, None] = dict.fromkeys([*settings.declared_types, *snapshot.types])
        self._learned = set(snapshot.types)  # those of them that the store knows: a declared one may not be so for ever
        self._unserved: dict[str, float] = {}  # types whose last worker went, and when
        self.given_up: frozenset[str] = frozenset()  # types whose workers will not be started again
        self._held = 0
        self._held_bytes = 0
        self.ending = False
        """Nothing enters any more; what nobody will answer need not be waited for."""
        self._token = first_token
        self._started = now
        self._out = out

    @property
    def cases(self) -> int:
        """How many messages are owed a report."""
        return self.reports.open

    # --- in ---

    def enter(self, parcel: Parcel, now: float) -> None:
        """A message has come from outside: a client, a server, or a handler that sends it on to another."""
        self.reports.begin(parcel.case)
        self._place(parcel, now)

    def emit(self, case: Case, type_: str, commands: list[Command], now: float, *, repeated: bool) -> None:
        """A handler acts of its own initiative: as if it answered a message that nobody sent."""
        self.reports.begin(case)
        self.trace.add((now, case.root, case.id, "emitted", type_))
        wrong = fault(commands)
        parcel = Parcel(case, case.id, case.root, type_, b"", "handler", self.settings.name, repeated=repeated)
        if wrong is not None:
            self._end(parcel, failed(wrong[0]))
            return
        self.commands.carry_out(parcel, commands, now)
        self._end(parcel, None)

    # --- to a handler ---

    def _place(self, parcel: Parcel, now: float) -> None:
        limits, size_bytes = self.limits, len(parcel.body)
        worker = None
        if len(parcel.path) >= HOP_LIMIT:
            code: str | None = "too-many-hops"
        elif self._held >= limits.max_held or self._held_bytes + size_bytes > limits.max_held_bytes:
            code = self._never_served(parcel, now) or "overloaded"
        else:
            worker = self.workers.choose(parcel)
            code = None if worker is not None else self._may_not_wait(parcel, now)
        if code is not None:
            self._end(parcel, failed(code))
            return
        self._held += 1
        self._held_bytes += size_bytes
        if worker is not None:
            self._give(worker, parcel, now)
        else:
            parcel.since = now
            self.workers.wait(parcel)

    def knows(self, type_: str) -> bool:
        """Is the type served, or was it ever?"""
        return type_ in self._seen_types or self.workers.serves(type_)

    def _may_not_wait(self, parcel: Parcel, now: float) -> str | None:
        full = self.workers.waits(parcel.type) >= self.limits.max_waiting
        code = self._never_served(parcel, now) or ("overloaded" if full else None)
        if code is None and parcel.type in self.given_up and not self.workers.serves(parcel.type):
            return "no-handler"
        return code

    def _never_served(self, parcel: Parcel, now: float) -> str | None:
        if self.workers.serves(parcel.type) or parcel.type in self._seen_types:
            return None
        if is_reserved(parcel.type):
            return "reserved"
        just_started = now < self._started + self.limits.restart_s
        return "no-handler" if parcel.scope == "server" and just_started else "unknown-type"

    def _give(self, worker: Worker, parcel: Parcel, now: float) -> None:
        if parcel.case.expires is not None and now >= parcel.case.expires:
            self.workers.skip(parcel)
            self._let_go(parcel)
            self._end(parcel, failed("expired"))
            return
        self._token = token = self._token + 1
        parcel.attempt += 1
        parcel.since = now
        self.workers.give(worker, token, parcel)
        self.trace.add((now, parcel.root, parcel.id, "handler", parcel.type))
        request = parcel.request(token)
        if self._timed or parcel.case.expires is not None:
            expires = parcel.case.expires
            deadline_ms = self.timeouts.deadline_ms(worker, parcel.type, None if expires is None else expires - now)
            if deadline_ms is not None:
                request.meta["deadline_ms"] = deadline_ms
        self._out.messages[worker.link].append(request)

    def feed(self, worker: Worker, now: float) -> None:
        """Give a worker what waits, as far as its credit goes; and others what it no longer keeps for itself."""
        workers = self.workers
        self._fill(worker, now)
        if workers.loose or workers.freed:
            self._share_out(now)

    def _fill(self, worker: Worker, now: float) -> None:
        """Give a worker what waits, as far as its credit goes."""
        while (parcel := self.workers.next_for(worker)) is not None:
            self._give(worker, parcel, now)

    def _share_out(self, now: float) -> None:
        """Give what was put back into a queue to whoever is free, in turn."""
        workers = self.workers
        for aside in workers.isolate():
            self._fill(aside, now)
        while workers.freed:
            freed, _ = workers.freed.popitem()
            self._fill(freed, now)
        while workers.loose:
            type_, _ = workers.loose.popitem()
            while workers.queued(type_) and (worker := workers.idle(type_)) is not None:
                while (parcel := workers.next_for(worker)) is not None:
                    self._give(worker, parcel, now)
                    if not worker.lines:  # of a line that is now its own it takes on what it has credit for
                        break

    def joined(self, worker: Worker, types: frozenset[str], now: float) -> None:
        """A worker has come."""
        for type_ in sorted(types):  # what is written is in an order that a test can see again
            self._unserved.pop(type_, None)
            if type_ not in self._learned and len(self._learned) < self.limits.max_types:
                self._learned.add(type_)
                self._seen_types[type_] = None
                self._out.writes.append(Learn(type_))
        self._share_out(now)
        self.feed(worker, now)

    def rejoined(self, worker: Worker, types: frozenset[str], credit: int, ordered: frozenset[str], now: float) -> None:
        """A worker has said what it serves anew."""
        before = worker.pool.types
        self.workers.rejoin(worker, types, credit, ordered)
        self._unserve(before, now)
        self.joined(worker, types, now)

    def leaves(self, worker: Worker, now: float) -> None:
        """A worker takes no new messages; what it holds stays its own."""
        types = worker.pool.types
        self.workers.leave(worker)
        self._unserve(types, now)
        self._share_out(now)

    def suspend(self, worker: Worker, now: float) -> None:
        """A worker holds nothing but messages that are over, and answers none of them: its types are for others."""
        types = worker.pool.types
        self.workers.suspend(worker)
        self._unserve(types, now)
        self._share_out(now)

    def _gave_back(self, worker: Worker) -> None:
        """A worker has answered a message that was over: it has a place again."""
        worker.over -= 1
        if worker.stuck:
            self.workers.resume(worker)
            for type_ in worker.pool.types:
                self._unserved.pop(type_, None)

    def _unserve(self, types: frozenset[str], now: float) -> None:
        """Note since when types are not served. Of a type that was not learned (there are too many) nothing waits for a
        worker to come back, so nothing is noted: a handler may say HELLO with other types as often as it likes."""
        for type_ in types:
            if type_ in self._seen_types and not self.workers.serves(type_):
                self._unserved.setdefault(type_, now)

    # --- from a handler ---

    def answered(self, worker: Worker, reply: Reply, now: float) -> tuple[str, str] | None:
        """A handler has replied; `feed` it when it has said all. Returns (code, text) of what was wrong, or None."""
        token, status, commands, note, code = reply
        parcel = self._taken(worker, token)
        if parcel is None:
            return "unknown-token", "no request with this token waits on this link"
        wrong = None
        if not parcel.ended:
            if status != DONE:
                late = self._too_late(worker, parcel, now)
                reason, note = late or reply_code(status, code), safe_note(note or "")
                if late is None:
                    self._notice_failure(parcel, reason, note)
                self._end(parcel, failed(reason), note if late is None and status == REFUSED and note else None)
            elif (wrong := fault(commands, parcel.body)) is not None:
                self._end(parcel, failed(wrong[0]))
            else:
                self.commands.carry_out(parcel, commands, now)
                parcel.ended = True  # as `_end`, without a call for every message
                self.reports.pay(parcel.case)
        return wrong

    def spoiled(self, worker: Worker, token: int, now: float) -> None:
        """A handler has replied something that cannot even be read."""
        parcel = self._taken(worker, token)
        if parcel is not None and not parcel.ended:
            self._end(parcel, failed("bad-reply"))
        self.feed(worker, now)

    def _taken(self, worker: Worker, token: int) -> Parcel | None:
        parcel = self.workers.take(worker, token)
        if parcel is None:
            return None
        if parcel.ended:
            self._gave_back(worker)
        else:  # as `_let_go`, without a call for every message
            self._held -= 1
            self._held_bytes -= len(parcel.body)
        return parcel

    def _too_late(self, worker: Worker, parcel: Parcel, now: float) -> str | None:
        """Return the reason of a failure that comes after the message's time: a handler that knows its deadline gives
        up then, and may be heard before this broker has looked at its clock."""
        if now - parcel.since >= self.timeouts.of(worker, parcel.type):
            self.letters.bury(parcel, "timeout", now)
            return "timeout"
        expires = parcel.case.expires
        return "expired" if expires is not None and now >= expires else None

    def _let_go(self, parcel: Parcel) -> None:
        """It no longer counts against what may be held."""
        self._held -= 1
        self._held_bytes -= len(parcel.body)

    def _notice_failure(self, parcel: Parcel, reason: str, note: str) -> None:
        event = "handler-failed" if reason in ("handler-failed", "bad-reply") else "handler-refused"
        self._out.others.append(Notice(event, {"id": parcel.id, "type": parcel.type, "code": reason, "note": note}))

    def lost(self, worker: Worker, now: float) -> None:
        """A worker has died: what it held goes to others, before all that waits. Only a message that it held alone has
        used up an attempt; of several each is given alone, until it is known which one kills."""
        lost = self.workers.lose(worker)
        self._unserve(worker.pool.types, now)
        if len(lost) == 1:
            again = self._died_over(lost[0], now)
            self.workers.clear()
        else:
            group = Suspicion()
            again = [parcel for parcel in lost if not parcel.ended]
            for parcel in again:
                parcel.suspicion = group
        for parcel in again:
            parcel.since = now
        for parcel in reversed(again):
            self.workers.wait(parcel, first=True)
        if len(again) > 1:
            self._out.others.append(
                Notice("suspected", {"messages": len(again), "types": sorted({p.type for p in again})})
            )
        self._share_out(now)
        for keeper in [keeper for parcel in again if (keeper := self.workers.keeper(parcel)) is not None]:
            self.feed(keeper, now)

    def _died_over(self, parcel: Parcel, now: float) -> list[Parcel]:
        """A worker has died with this message alone in its hands, over it or after it. Those it was suspected with are
        cleared. Returns the message where it is to be tried again."""
        deaths = 1
        if parcel.suspicion is not None:
            deaths += parcel.suspicion.deaths
            parcel.suspicion.open = False
        if parcel.ended:
            return []
        parcel.suspicion = Suspicion(deaths)
        if deaths < self._budget_of(parcel.type).attempts:
            return [parcel]
        self.letters.bury(parcel, "handler-lost", now)
        self._let_go(parcel)
        self._end(parcel, failed("handler-lost"))
        return []

    # --- endings ---

    def confirmed(self, link: Link, confirm: Confirm, now: float) -> None:
        """A bridge says what it has delivered, and what it could not."""
        failures: dict[int, dict[int, str]] = {}
        for serial, t, reason in confirm.failed:
            failures.setdefault(serial, {})[t] = reason if reason in CODES or reason == UNCONFIRMED else "not-connected"
        for serial, delivery in self.deliveries.confirm(link, confirm.upto, confirm.done):
            reasons = failures.get(serial) if failures else None
            if type(delivery) is Delivery:
                self._delivered(delivery, reasons, now)
            elif type(delivery) is MailDelivery:
                self.mailboxes.delivered(delivery, next(iter(reasons.values())) if reasons else None, now)

    def _delivered(self, delivery: Delivery, failures: dict[int, str] | None, now: float) -> None:
        case, shares, names = delivery.parcel.case, delivery.shares, delivery.command.targets
        if delivery.reported and not failures:  # the case ends with it, and its outcomes are asked for no more
            for target in delivery.targets:
                self.trace.add((now, case.root, delivery.id, DELIVERED, names[target[0]]))
            self.reports.pay(case, silent=True)
            return
        for target in delivery.targets:
            t = target[0]
            reason = failures.get(t) if failures else None
            share = shares.get(t) if shares else None
            if share is not None:
                if not share.end(reason):
                    continue
                reason = None if share.delivered else share.reason
            outcome = DELIVERED if reason is None else self.commands.not_delivered(delivery, t, reason, now)
            if outcome:
                case.record(names[t], outcome)
            self.trace.add((now, case.root, delivery.id, outcome or "kept", names[t]))
        self.reports.pay(case, silent=delivery.reported and not failures)

    def bridge_lost(self, link: Link, now: float) -> None:
        """A bridge is gone, and with it its sessions; what it had not confirmed may have been delivered."""
        self.bridges.pop(link, None)
        self.directory.drop(link)
        for delivery in self.deliveries.drop(link):
            if type(delivery) is Delivery:
                self._delivered(delivery, {target[0]: UNCONFIRMED for target in delivery.targets}, now)
            elif type(delivery) is MailDelivery:
                self.mailboxes.delivered(delivery, UNCONFIRMED, now)
        self.outboxes.lost(link, now)

    def _look(self, box: Box, now: float) -> None:
        """Something may be next in a box."""
        if is_mailbox(box.key):
            self.mailboxes.look(box, now)
        else:
            self.outboxes.look(box, now)

    def _end(self, parcel: Parcel, outcome: str | None, note: str | None = None) -> None:
        """A parcel that is no longer held has ended; `outcome` where it failed, `note` where its sender is told why."""
        parcel.ended = True
        if outcome is not None:
            parcel.case.record(parcel.target, outcome, note)
        self.reports.pay(parcel.case)

    def _budget_of(self, type_: str) -> Budget:
        return self.settings.budgets.get(type_, self._budget)

    # --- time ---

    def tick(self, workers: list[Worker], now: float) -> None:
        """End what has waited too long."""
        before = partial(self._waits_since, now, self._hopeless(workers))
        for type_ in self.workers.waiting_types():
            self._give_up(self.workers.overdue(type_, before), now)
        for worker in workers:
            if worker.lines:
                self._give_up(self.workers.overdue_for(worker, before), now)
            self._end_late(worker, now)
        self._share_out(now)
        self.mailboxes.tick(now)
        self.outboxes.tick(now)
        self.boxes.tick(now)

    def _hopeless(self, workers: list[Worker]) -> Collection[str]:
        """Return the types that nobody will serve any more: this broker ends, and their workers hang."""
        return {type_ for each in workers if each.stuck for type_ in each.pool.types} if self.ending else ()

    def _waits_since(self, now: float, hopeless: Collection[str], parcel: Parcel) -> float:
        """Return since when a message must have waited to be given up now."""
        limits, type_ = self.limits, parcel.type
        begun = parcel.attempt > parcel.before  # such a one waits longer for a worker that is started again
        if not self.workers.serves(type_):
            without_s = limits.handler_again_s if begun else limits.handler_wait_s
            if type_ in hopeless:
                without_s = 0.0
            if self._unserved.get(type_, self._started) <= now - without_s:
                return now - without_s
        return now - (limits.suspect_s if begun else limits.request_s)

    def _end_late(self, worker: Worker, now: float) -> None:
        """End what a worker was given too long ago. It occupies credit until it is answered, but no memory."""
        timeouts = self.timeouts
        usual_s, configured, shortest_s = timeouts.usual_s(worker.lease_s), timeouts.configured, timeouts.shortest_s
        for parcel in worker.busy.values():
            if parcel.since > now - shortest_s:
                break
            if parcel.ended or parcel.since > now - configured.get(parcel.type, usual_s):
                continue
            self.letters.bury(parcel, "timeout", now)
            self._let_go(parcel)
            parcel.body = b""
            worker.over += 1
            self._end(parcel, failed("timeout"))

    def _give_up(self, parcels: list[Parcel], now: float) -> None:
        for parcel in parcels:
            code = self._why_waited(parcel, now)
            if code == "handler-lost":
                self.letters.bury(parcel, code, now)
            self._let_go(parcel)
            self._end(parcel, failed(code))

    def _why_waited(self, parcel: Parcel, now: float) -> str:
        if parcel.case.expires is not None and now >= parcel.case.expires:
            return "expired"
        if parcel.attempt > parcel.before:
            return "handler-lost"
        return "overloaded" if self.workers.serves(parcel.type) else "no-handler"
