"""What a handler's reply asks for: is it sound, and then: each command's results go out to where they belong."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable

from bester.broker.core import policy
from bester.broker.core.boxes import Boxes
from bester.broker.core.cases import failed
from bester.broker.core.deliveries import Deliveries, Delivery, Share
from bester.broker.core.directory import Directory
from bester.broker.core.mailboxes import Mailboxes
from bester.broker.core.outboxes import Outboxes
from bester.broker.core.parcels import Parcel
from bester.broker.core.trace import Trace
from bester.broker.core.values import Link, Outbox, Settings
from bester.broker.kept import Entry, mailbox
from bester.broker.wire import json_text
from bester.broker.wire.messages import (
    COMMANDS,
    HOP_LIMIT,
    MAX_BODY_BYTES,
    MAX_RESULTS,
    MAX_TARGETS,
    Command,
    Deliver,
    Meta,
    is_reserved,
    spelling_fault,
)

_new = tuple.__new__  # makes a message in half the time of its class: what is made for every message is made so


def fault(commands: list[Command], checked: bytes | None = None) -> tuple[str, str] | None:
    """Return (code, text) where a reply cannot be carried out, None where it can. All or nothing is carried out.

    `checked` is a body that was checked before: that of the message, which many handlers pass on as it came.
    """
    targets = 0
    for command in commands:
        if command.command not in COMMANDS:
            return "unknown-command", f"no command {command.command!r}; there are {', '.join(COMMANDS)}"
        if command.command == "sendHandler" and len(command.targets) != 1:
            return "bad-reply", "sendHandler has exactly one target"
        if command.type and (unnamed := spelling_fault(command.type)) is not None:
            return "bad-reply", unnamed
        targets += len(command.targets)
        if targets > MAX_TARGETS:
            return "bad-reply", f"more than {MAX_TARGETS} targets"
        body = command.body
        if body == checked:
            continue
        if len(body) > MAX_BODY_BYTES:
            return "bad-reply", f"a body of {len(body)} bytes; {MAX_BODY_BYTES} are allowed"
        wrong = json_text.fault(body)
        if wrong is not None:
            return "bad-reply", f"the body is not JSON text: {wrong}"
        checked = body
    return None


def result_id(parent: str, command: int, target: int) -> str:
    """Return the id of a result: the same at every redelivery of the parent, different between results."""
    return f"{parent}.{command}.{target}"


class Commands:
    """Carries out commands: each result is begun here, counted on its case, and ended by whoever it went to.

    `place` hands a parcel to a handler of this server; `is_account` says whether a user name is known though absent.
    """

    def __init__(
        self, settings: Settings, out: Outbox, trace: Trace, boxes: Boxes, directory: Directory, deliveries: Deliveries,
        mailboxes: Mailboxes, outboxes: Outboxes, place: Callable[[Parcel, float], None],
        is_account: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self._directory = directory
        self._deliveries = deliveries
        self._mailboxes = mailboxes
        self._outboxes = outboxes
        self._boxes = boxes
        self._settings = settings
        self._limits = settings.limits
        self._results: OrderedDict[tuple[str | None, str], int] = OrderedDict()  # by peer and root
        self._out = out
        self._trace = trace
        self._place = place
        self._is_account = is_account

    def carry_out(self, parcel: Parcel, commands: list[Command], now: float) -> None:
        """Begin everything that a reply asks for; it was found sound before."""
        for number, command in enumerate(commands):
            if command.command == "sendClients":
                self._to_clients(parcel, number, command, now, alone=len(commands) == 1)
            elif command.command == "sendServers":
                self._to_servers(parcel, number, command, now)
            else:
                self._to_handler(parcel, number, command, now)

    def _to_clients(self, parcel: Parcel, number: int, command: Command, now: float, *, alone: bool) -> None:
        case, names = parcel.case, command.targets
        places = self._directory.places(names[0]) if len(names) == 1 else None
        if places is not None and len(places) == 1 and not (self._boxes.messages and self._waits(parcel, names[0])):
            for link, sessions in places.items():  # one user on one bridge: most messages
                self._deliver(parcel, number, command, link, [[0, *sessions]], None, alone and case.completes_on(link))
            return
        by_link: dict[Link, list[list[int]]] = {}
        shares: dict[int, Share] | None = None
        frames = 0
        for t, name in enumerate(names):
            places = self._directory.places(name)
            if places is None or self._waits(parcel, name):
                self._away(parcel, number, command, t, now)
                continue
            frames += sum(map(len, places.values()))
            if frames > self._limits.max_frames:
                case.record(name, failed("too-many-results"))
                continue
            if len(places) > 1:
                shares = {} if shares is None else shares
                shares[t] = Share(len(places))
            for link, sessions in places.items():
                by_link.setdefault(link, []).append([t, *sessions])
        for link, targets in by_link.items():
            reports = alone and len(by_link) == 1 and case.completes_on(link)
            self._deliver(parcel, number, command, link, targets, shares, reports)

    def _waits(self, parcel: Parcel, user: str) -> bool:
        """Must it go behind what waits for the user? A repeat must if anything is kept, for that may be the first."""
        return self._mailboxes.waits(user) or (parcel.repeated and self._boxes.get(mailbox(user)) is not None)

    def _deliver(
        self, parcel: Parcel, number: int, command: Command, link: Link, targets: list[list[int]],
        shares: dict[int, Share] | None, bridge_reports: bool,
    ) -> None:  # fmt: skip
        """Have a bridge deliver to those of a command's targets that it holds."""
        case = parcel.case
        case.owed += 1
        id_ = f"{parcel.id}.{number}"
        boxes = self._boxes  # should it not arrive, it will have its place before all that comes later
        first, boxes.next_number = boxes.next_number, boxes.next_number + len(command.targets)
        delivery = Delivery(parcel, command, id_, targets, shares, bridge_reports, first)
        serial = self._deliveries.add(link, delivery)
        meta: Meta = {"origin": parcel.origin}
        if parcel.repeated:
            meta["redelivered"] = True
        token = None
        if bridge_reports:
            token = case.token
            meta["message"] = case.id
        deliver = _new(Deliver, (serial, id_, parcel.type, command.body, targets, token, meta))
        self._out.messages[link].append(deliver)

    def _away(self, parcel: Parcel, number: int, command: Command, t: int, now: float) -> None:
        """A user without a connection, or with something waiting that goes before: it waits, if the user is known."""
        name = command.targets[t]
        code = "not-connected" if self._settings.open_accounts else None
        if code is None and not self._is_account(name):
            code = "unknown-user"
        code = code or self.keep(parcel, command, f"{parcel.id}.{number}", t, self._boxes.take_numbers(1), now)
        if code is not None:
            parcel.case.record(name, failed(code))

    def keep(
        self, parcel: Parcel, command: Command, id_: str, t: int, number: int, now: float, *, repeated: bool = False
    ) -> str | None:
        """Have a result wait for its user; the case is told when it does. Returns a code where it cannot."""
        name, meta = command.targets[t], self._outboxes.meta_of(parcel)
        if repeated:
            meta["repeated"] = True
        entry = Entry(
            number, mailbox(name), f"{id_}.{t}", name, parcel.type, command.body, parcel.case.sender,
            self._boxes.until(parcel.case, now), meta,
        )  # fmt: skip
        return self._boxes.keep(entry, parcel.case, now)

    def not_delivered(self, delivery: Delivery, t: int, reason: str, now: float) -> str:
        """A delivery came to nothing. Returns the outcome, where it is one; empty: it waits now, and the case with it.

        Whoever is gone since is away, and what nobody confirmed or acknowledged may have arrived.
        """
        known = not self._settings.open_accounts and self._is_account(delivery.command.targets[t])
        if not known or reason not in ("not-connected", "unconfirmed", "timeout"):
            return failed("not-connected" if reason == "unconfirmed" else reason)
        code = self.keep(
            delivery.parcel, delivery.command, delivery.id, t, delivery.number + t, now,
            repeated=reason != "not-connected",
        )  # fmt: skip
        return failed(code) if code is not None else ""

    def _to_servers(self, parcel: Parcel, number: int, command: Command, now: float) -> None:
        type_ = command.type or parcel.type
        path = parcel.sent_on(self._settings.name)
        for t, target in enumerate(command.targets):
            id_ = result_id(parcel.id, number, t)
            code = self._may_send_on(parcel, path) or ("reserved" if is_reserved(type_) else None)
            if code is None and target == self._settings.name:
                self._into_own_handler(parcel, id_, type_, command.body, target, now, from_server=True)
                continue
            if code is None:
                code = self._to_server(parcel, id_, type_, command.body, target, now)
            if code is not None:
                parcel.case.record(target, failed(code))
            else:
                self._trace.add((now, parcel.root, id_, "server", target))

    def _to_server(self, parcel: Parcel, id_: str, type_: str, body: bytes, target: str, now: float) -> str | None:
        """Send to another server; returns a code where that cannot even be begun."""
        route = self._outboxes.routes.find(target)
        if route is None:
            return "unreachable"
        if not route.name and not policy.may_send_to_stranger(self._settings):
            return "not-allowed"
        return self._outboxes.dispatch(parcel, route, target, type_, body, id_, now)

    def _to_handler(self, parcel: Parcel, number: int, command: Command, now: float) -> None:
        target = command.targets[0]
        path = parcel.sent_on(self._settings.name)
        code = self._may_send_on(parcel, path) or ("reserved" if is_reserved(target) else None)
        if code is not None:
            parcel.case.record(target, failed(code))
            return
        self._into_own_handler(parcel, result_id(parcel.id, number, 0), target, command.body, target, now)

    def _into_own_handler(
        self, parcel: Parcel, id_: str, type_: str, body: bytes, target: str, now: float, *, from_server: bool = False
    ) -> None:
        """Hand a result to a handler here. The sender stays the same, unless it was sent to us as to another server."""
        scope, user, peer = parcel.scope, parcel.user, parcel.peer
        if from_server:
            scope, user, peer = "server", None, self._settings.name
        child = Parcel(
            parcel.case, id_, parcel.root, type_, body, scope, parcel.origin, user, peer,
            parcel.sent_on(self._settings.name), target, repeated=parcel.repeated,
        )  # fmt: skip
        child.case.owed += 1
        self._place(child, now)

    def _may_send_on(self, parcel: Parcel, path: list[str]) -> str | None:
        """Count one more result of a root against the bounds on how far and how wide a message may spread. A root that
        another server has named counts for what it has sent alone."""
        if len(path) >= HOP_LIMIT:
            return "too-many-hops"
        results = self._results
        key = (parcel.peer, parcel.root)
        count = results.get(key, 0) + 1
        if count > MAX_RESULTS:
            return "too-many-results"
        results[key] = count
        results.move_to_end(key)
        if len(results) > self._limits.max_roots:
            results.popitem(last=False)
        return None
