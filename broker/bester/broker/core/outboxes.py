"""Other servers: what is on its way to them, what waits for them on disk, and when it is tried again.

A lane is one message type on its way to one server. Its messages are numbered, go out in the order of their numbers,
and do not hold up another lane. What a named server has not answered in `report_s`, or cannot take now, waits in the
lane's box; what comes then goes behind it. A server that is not configured gets one attempt.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from bester.broker.core.boxes import Box, Boxes
from bester.broker.core.cases import DELIVERED, QUEUED, SENT, Reports, failed, reason_of, try_again
from bester.broker.core.federation import Leg, Legs, Routes
from bester.broker.core.parcels import Parcel
from bester.broker.core.policy import NEWS
from bester.broker.core.reporters import Reporters
from bester.broker.core.trace import Trace
from bester.broker.core.values import Link, Notice, Outbox, Route, Settings
from bester.broker.kept import Entry, Rewrite, lane, owner_of
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import Forward, Meta, Relay
from bester.broker.wire.notes import safe_note

UNREACHABLE = failed("unreachable")
"""What a bridge says of a server that it could not hand a message to, without any meta."""
Given = Callable[[Entry, str, float], None]


class Outboxes:
    """`became` is told what became of each message that had waited; `chance` gives numbers from 0 to 1, for jitter.

    `bridges` are the links of bridges, which forward to servers that speak the native protocol; `links` are those open
    to servers of the fabric.
    """

    def __init__(
        self, settings: Settings, boxes: Boxes, legs: Legs, reports: Reports, out: Outbox, bridges: Mapping[Link, None],
        trace: Trace, reporters: Reporters, *, first_token: int, chance: Callable[[], float], became: Given,
    ) -> None:  # fmt: skip
        self.legs = legs
        self.routes = Routes(settings.routes)
        self.links: set[Link] = set()
        self._away: set[str] = set()  # native servers that could not be reached when last tried
        self._settings = settings
        self._limits = settings.limits
        self._boxes = boxes
        self._reports = reports
        self._out = out
        self._bridges = bridges
        self._token = first_token
        self._chance = chance
        self._became = became
        self._trace = trace
        self._reporters = reporters

    # --- going out ---

    def dispatch(
        self, parcel: Parcel, route: Route, target: str, type_: str, body: bytes, id_: str, now: float
    ) -> str | None:
        """Send a result to a server, or have it wait; returns a code where neither is possible."""
        key = lane(route.name or target, type_)
        full = self.legs.full(key)
        if full and not route.name:
            return "overloaded"
        case = parcel.case
        entry = Entry(
            self._boxes.take_numbers(1), key, id_, target, type_, body, case.sender, self._boxes.until(case, now),
            self.meta_of(parcel),
        )  # fmt: skip
        link = self._link(route)
        box = self._boxes.get(key)
        busy = box is not None and (box.waiting or box.delay_s or parcel.repeated)  # of a repeat, it may hold the first
        if route.ordered and not busy:
            busy = self.legs.any(key)
        if route.name and (full or link is None or busy):
            return self._boxes.keep(entry, case, now)
        if link is None:
            return "unreachable"
        case.owed += 1
        patience_s = self._limits.report_s if route.name else self._limits.relay_s
        ttl_s = None if case.expires is None else max(0.0, case.expires - now)
        leg = Leg(entry, target, link, route, now + patience_s, case, parcel.repeated)
        self._send(leg, entry, ttl_s, again=parcel.repeated)
        return None

    def meta_of(self, parcel: Parcel) -> Meta:
        """Return what is remembered of where a result comes from."""
        meta: Meta = {"origin": parcel.origin, "root": parcel.root, "message": parcel.case.id}
        meta["path"] = parcel.sent_on(self._settings.name)
        if parcel.case.peer is not None:
            meta["peer"] = parcel.case.peer
            meta["message"] = parcel.case.told_as or parcel.case.id
        if parcel.case.push:
            meta["push"] = True
        if parcel.repeated:
            meta["repeated"] = True
        return meta

    def _link(self, route: Route) -> Link | None:
        if route.fabric is None:
            return next(iter(self._bridges), None)
        link = Link("server", route.name.encode())
        return link if link in self.links else None

    def _send(self, leg: Leg, entry: Entry, ttl_s: float | None, *, again: bool) -> None:
        self._token = token = self._token + 1
        self.legs.add(token, leg)
        kept = entry.meta
        meta: Meta = {"id": entry.id, "root": kept.get("root"), "origin": kept.get("origin"), "path": kept.get("path")}
        if leg.route.name:
            box = self._boxes.get(entry.box)
            floor = self.legs.floor(entry.box)
            meta["lane"] = [self._boxes.epoch, entry.number, floor if box is None else min(floor, box.floor)]
        if ttl_s is not None:
            meta["ttl_s"] = ttl_s
        if again:
            meta["again"] = True
        if leg.route.fabric is not None:
            self._out.say(leg.link, Relay(token, entry.type, entry.body, meta))
        else:
            assert leg.route.native is not None
            meta["server"] = self._settings.name
            if leg.route.name:
                meta["wait_s"] = self._limits.relay_s
            self._out.say(leg.link, Forward(token, leg.route.native, entry.type, entry.body, meta))

    # --- coming back ---

    def arrived(self, link: Link, token: int, outcome: str, meta: Meta, now: float) -> None:
        """A server has answered, or has ended its connection; late answers change nothing, except for what waits."""
        leg = self.legs.end(token, link)
        if leg is not None:
            silent = False
            if leg.route.fabric is None:
                silent = outcome == SENT and not self._reporters.knows(leg.route)
                outcome = self._reporters.judge(leg.route, leg.entry.id, outcome, meta)
            known = outcome in (DELIVERED, SENT, QUEUED) or reason_of(outcome) in CODES
            if leg.route.name and not try_again(outcome, meta):
                self.contact(leg.route.name, now)  # it is there, and takes what it is sent
            if leg.route.name and leg.route.native is not None:
                self._look_at(leg.route, outcome, meta)
            self._trace.add((now, leg.entry.meta["root"], leg.entry.id, outcome, leg.target))
            self._ended(leg, *((outcome, meta) if known else (failed("bad-reply"), {})), now)
            if silent:  # it can be reached; whether it reports will be known after two more times
                self.contact(leg.route.name, now)

    def _look_at(self, route: Route, outcome: str, meta: Meta) -> None:
        """A native server has no link whose end would be noticed: that it cannot be reached, and that it can again, is
        learned from what was sent to it, and said once each."""
        reached = outcome != UNREACHABLE or bool(meta)
        if reached and route.name in self._away:
            self._away.remove(route.name)
            self._out.others.append(Notice("server-reached", {"server": route.name}))
        elif not reached and route.name not in self._away:
            self._away.add(route.name)
            why = f"nobody answers at {route.native}"
            self._out.others.append(Notice("server-lost", {"server": route.name, "why": why}))

    def _ended(self, leg: Leg, outcome: str, meta: Meta, now: float) -> None:
        again = try_again(outcome, meta) and bool(leg.route.name)
        if leg.case is None:
            self._ended_kept(leg, outcome, meta, now, again=again)
        elif again:
            if self._keep(leg, now, repeated=_may_have_arrived(leg, meta)):
                self._back_off(self._box(leg), now)
        else:
            self._note(leg, outcome, meta)
            box = self._boxes.get(leg.entry.box) if leg.route.ordered else None
            if box is not None:
                self.look(box, now)

    def _told(self, leg: Leg, outcome: str, note: str | None = None) -> None:
        case, leg.case = leg.case, None
        assert case is not None
        self._reports.settle(case, leg.target, outcome, note)

    def _ended_kept(self, leg: Leg, outcome: str, meta: Meta, now: float, *, again: bool) -> None:
        entry, box = leg.entry, self._boxes.get(leg.entry.box)
        if box is None or entry.number not in box.flying:
            return
        if again:
            box.put_back(entry.number, unsent=not _may_have_arrived(leg, meta))
            self._back_off(box, now)
            return
        box.delay_s = 0.0
        self._boxes.end(entry, outcome)
        if outcome == QUEUED:
            self._out.writes.append(Rewrite(entry.number, entry.meta | {"left": _left(meta)}))
        else:
            self._became(entry, outcome, now)
        self.look(box, now)

    def _note(self, leg: Leg, outcome: str, meta: Meta) -> None:
        """If it waits over there, somebody may ask, or must be told, what becomes of it: its case is told when that is
        remembered."""
        entry, case = leg.entry, leg.case
        if outcome != QUEUED or case is None or (entry.sender is None and entry.meta.get("peer") is None):
            self._told(leg, outcome, _word_of(meta) if reason_of(outcome) is not None else None)
            return
        leg.case = None
        self._boxes.note(entry._replace(body=b"", meta=entry.meta | {"left": _left(meta)}), outcome, case)

    def _keep(self, leg: Leg, now: float, *, repeated: bool) -> bool:
        """What had been sent waits on disk from now on; its sender is told when it does. False: there is no room."""
        entry, case = leg.entry, leg.case
        assert case is not None
        if repeated:
            entry = leg.entry = entry._replace(meta=entry.meta | {"repeated": True})
        code = self._boxes.keep(entry, case, now)
        if code is not None:
            self._told(leg, failed(code))
            return False
        leg.case = None
        self._reports.pay(case)  # the box now owes it what the leg did
        return True

    def _box(self, leg: Leg) -> Box:
        box = self._boxes.get(leg.entry.box)
        assert box is not None  # it was kept a moment ago
        return box

    # --- what waits ---

    def look(self, box: Box, now: float) -> None:
        """Go on with a lane, if its server can be reached, it is time, and there is more than is on its way."""
        if box.waiting <= 0 or box.fetching or now < box.retry_at:
            return
        route = self._settings.routes.get(owner_of(box.key))
        if route is None or self._link(route) is None:
            return
        if (box.delay_s and box.flying) or (route.ordered and self.legs.any(box.key)):
            return
        # After a failure one goes before the others; but news of one message wait for no news of another.
        one = route.ordered or (box.delay_s and box.key != lane(route.name, NEWS))
        window = 1 if one else self._limits.window
        if len(box.flying) * 2 <= window:
            self._boxes.fetch(box, window - len(box.flying))

    def found(self, box: Box, entries: Sequence[Entry], now: float) -> None:
        """What was asked for: send it."""
        if not entries:
            self.look(box, now)
            return
        route = self._settings.routes.get(owner_of(box.key))
        link = None if route is None else self._link(route)
        if link is None or route is None:
            for entry in entries:
                box.put_back(entry.number)
            return
        marked, stored_s = self._boxes.hand(box, entries), self._boxes.clock.stored(now)
        for entry in entries:
            again = entry.number in marked
            leg = Leg(entry, entry.target, link, route, now + self._limits.relay_s, None, again)
            self._send(leg, entry, max(0.0, entry.expires_s - stored_s), again=again)

    def _back_off(self, box: Box, now: float) -> None:
        if now < box.retry_at:  # the same trouble, of many that were on their way
            return
        limits = self._limits
        box.delay_s = min(max(limits.first_retry_s, 2 * box.delay_s), limits.last_retry_s)
        box.retry_at = now + box.delay_s * (0.5 + self._chance() / 2)

    def contact(self, server: str, now: float, *, linked: bool = False) -> None:
        """A server was heard from: what waits for it need not wait much longer. `linked`: now it can be reached."""
        for box in self._boxes.lanes_to(server):
            if linked:
                box.delay_s = box.retry_at = 0.0
                self.look(box, now)
            elif box.delay_s:
                box.delay_s = self._limits.first_retry_s
                box.retry_at = min(box.retry_at, now + box.delay_s)

    # --- trouble and time ---

    def lost(self, link: Link, now: float) -> None:
        """A link is gone: what was on its way over it did not arrive, as far as anybody knows."""
        self.links.discard(link)
        for leg in self.legs.drop(link):
            self._failed(leg, now)

    def _failed(self, leg: Leg, now: float) -> None:
        """No answer will come to this one. It may have arrived."""
        if leg.case is None:
            box = self._boxes.get(leg.entry.box)
            if box is not None and leg.entry.number in box.flying:
                box.put_back(leg.entry.number)
                self._back_off(box, now)
        elif leg.route.name:
            self._keep(leg, now, repeated=True)
        else:
            self._told(leg, failed("unreachable"))

    def tick(self, now: float) -> None:
        """What was not answered in time waits; what waits is tried when it is time."""
        for token, leg in self.legs.overdue(now):
            if leg.case is None or not leg.route.name:
                self._failed(leg, now)
            elif self._keep(leg, now, repeated=True):  # it flies on: a late answer counts
                self._box(leg).fly(leg.entry.number, len(leg.entry.body))
                self.legs.prolong(token, leg, now + self._limits.relay_s)
        for box in self._boxes.lanes():
            self.look(box, now)


def _may_have_arrived(leg: Leg, meta: Meta) -> bool:
    """Return whether a server that is tried again may have processed the message. A refusal proves that it did not, and
    so does a connection that was never made; one that has ended without a report proves nothing."""
    if leg.again:
        return True
    return leg.route.fabric is None and meta.get("reported") is not True and meta.get("unsent") is not True


def _word_of(meta: Meta) -> str | None:
    """Return what a handler over there said to a failure; another owner's server may have written anything."""
    note = meta.get("note")
    return safe_note(note) or None if type(note) is str else None


def _left(meta: Meta) -> int:
    left = meta.get("queued")
    return left if type(left) is int and left > 0 else 1
