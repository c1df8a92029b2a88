"""Commands of a handler's reply: check that they are sound, and send each result to where it belongs."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence

from bester.broker.core import policy
from bester.broker.core.absent import Absent
from bester.broker.core.cases import MAY_HAVE_ARRIVED, Reports, unkept
from bester.broker.core.deliveries import MAYBE, UNCONFIRMED, Deliveries, Delivery, Outstanding
from bester.broker.core.directory import Directory
from bester.broker.core.effects import Effects, Link
from bester.broker.core.fan_out import FanOut, deliver
from bester.broker.core.jobs import Job
from bester.broker.core.queues import Queues
from bester.broker.core.relays import Relays
from bester.broker.core.settings import Settings
from bester.broker.core.trace import SERVER, Trace, shortened
from bester.broker.wire import json_text
from bester.broker.wire.messages import (
    COMMANDS,
    HOP_LIMIT,
    MAX_BODY_BYTES,
    MAX_REPLY_BYTES,
    MAX_RESULTS,
    MAX_TARGETS,
    Command,
    Deliver,
    Message,
    Meta,
)
from bester.broker.wire.outcomes import failed, result_id
from bester.broker.wire.type_names import spelling_fault

_NO_LINK, _NO_DELIVERIES = Link("", b""), Outstanding()
_NO_MESSAGES: list[Message] = []


def fault(commands: list[Command], checked: bytes | None = None) -> tuple[str, str] | None:
    """Return (code, text) where a reply cannot be carried out, None where it can. A reply is carried out wholly or not
    at all.

    `checked` is a body that was checked before: the message's own, which many handlers pass on unchanged.
    """
    if len(commands) > 1 and sum(len(command.body) for command in commands) > MAX_REPLY_BYTES:
        return "bad-reply", f"bodies of more than {MAX_REPLY_BYTES} bytes together; one command may have many targets"
    targets = 0
    for command in commands:
        if command.command != "sendClients":
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


class Commands:
    """Carry out commands: each result is begun here, counted on its case, and ended by the unit that got it.

    `dispatch` hands a job to a handler of this server.
    """

    def __init__(
        self,
        settings: Settings,
        out: Effects,
        trace: Trace,
        reports: Reports,
        queues: Queues,
        directory: Directory,
        deliveries: Deliveries,
        relays: Relays,
        absent: Absent,
        fan_out: FanOut,
        dispatch: Callable[[Job, float], None],
    ) -> None:
        self._known_home, self._home = directory.known_home, directory.home
        self._deliveries = deliveries
        self._relays = relays
        self._absent = absent
        self._fan_out = fan_out
        self._reports = reports
        self._queues = queues
        self._settings = settings
        self._limits = settings.limits
        self._results: OrderedDict[tuple[str | None, str], int] = OrderedDict()  # by peer and root
        self._out = out
        self._trace = trace
        self._dispatch = dispatch

    def carry_out(self, job: Job, commands: Sequence[Command], now: float) -> None:
        """Begin every result of a reply that `fault` has found sound, and count its message as done."""
        for number, command in enumerate(commands):
            self._begin(job, number, command, now, alone=len(commands) == 1)
        self._reports.settle_one(job.case)

    def deliver_run(self, run: Iterable[tuple[Job, Command]], now: float) -> None:
        """Carry out a run of replies that are one sendClients each. The count of a message whose only result is one
        delivery passes to the delivery."""
        known_home, queues, fan_out, later = self._known_home, self._queues, self._fan_out, self._fan_out.later
        link, outstanding, messages = _NO_LINK, _NO_DELIVERIES, _NO_MESSAGES  # of the bridge of the last delivery
        begun: list[tuple[Job, Command]] = []  # replies whose DELIVERs are among the messages, and not outstanding yet
        try:
            for reply in run:
                job, command = reply
                targets = command.targets
                home = None if len(targets) != 1 else known_home(targets[0]) or self._home(targets[0])
                if home is not None and (queues.messages or later) and fan_out.must_queue(job, targets[0]):
                    home = None
                is_usual = home is not None and not job.repeated and job.case.completes_on(home[0])
                if begun and (home is None or home[0] is not link or not is_usual):
                    outstanding.add_run(begun, queues.reserve_numbers(len(begun)), now)
                    begun, link = [], _NO_LINK
                if home is None:
                    self.carry_out(job, (command,), now)
                    continue
                bridge, sessions = home  # most messages: one user on one bridge
                if bridge is not link:
                    link, outstanding, messages = bridge, self._deliveries.of(bridge), self._out.messages_on(bridge)
                if is_usual:
                    serial = outstanding.last + len(begun) + 1
                    meta: Meta = {"origin": job.origin, "message": job.case.id}
                    messages.append(
                        Deliver(serial, f"{job.id}.0", job.type, command.body, sessions, job.case.token, meta)
                    )
                    begun.append(reply)
                else:
                    completes, number = job.case.completes_on(bridge), queues.reserve_numbers(1)
                    delivery = Delivery(job, command, f"{job.id}.0", (0,), None, completes, number, now)
                    messages.append(deliver(delivery, sessions, outstanding))
        finally:  # also after an exception: the DELIVERs among the messages have their serials
            if begun:
                outstanding.add_run(begun, queues.reserve_numbers(len(begun)), now)

    def _begin(self, job: Job, number: int, command: Command, now: float, *, alone: bool) -> None:
        """Begin the results of a command; `alone`: there is no other command."""
        kind = command.command
        if kind == "sendClients":
            self._fan_out.begin(job, number, command, now, alone=alone)
        elif kind == "sendServers":
            self._to_servers(job, number, command, now)
        elif kind == "sendHandler":
            self._to_handler(job, number, command, now)
        else:
            raise AssertionError(f"{kind} was found sound, and nobody carries it out")

    def on_not_delivered(self, delivery: Delivery, t: int, reason: str, now: float) -> str:
        """Take in that a delivery failed. Returns the outcome, empty where the result is queued now and its case waits
        for that.

        A user without a session any more is absent; a delivery that nobody confirmed or acknowledged may have been
        made.
        """
        name = delivery.command.targets[t]
        may_have_it = reason in MAYBE
        if not self._absent.is_known(name) or not (may_have_it or reason == "not-connected"):
            return failed(MAY_HAVE_ARRIVED if reason == UNCONFIRMED else reason)
        code = self._absent.enqueue(
            delivery.job, delivery.command, delivery.id, t, delivery.number + t, now,
            repeated=may_have_it, since=delivery.since,
        )  # fmt: skip
        if code is None:
            return ""
        return failed(unkept(code) if may_have_it else code)

    def _to_servers(self, job: Job, number: int, command: Command, now: float) -> None:
        type_ = command.type or job.type
        path = job.onward_path(self._settings.name)
        for t, target in enumerate(command.targets):
            id_ = result_id(job.id, number, t)
            code = self._may_send_on(job, path) or policy.may_name(type_)
            if code is None and target == self._settings.name:
                self._into_own_handler(job, id_, type_, command.body, target, now, from_server=True)
                continue
            if code is None:
                code = self._to_server(job, id_, type_, command.body, target, now)
            what, since = (SERVER, 0.0) if code is None else (failed(code), now)
            self._trace.add((now, job.root, id_, what, shortened(target), since))
            if code is not None:
                job.case.record(target, failed(code))

    def _to_server(self, job: Job, id_: str, type_: str, body: bytes, target: str, now: float) -> str | None:
        """Send a result to another server; returns a code where the transfer cannot begin."""
        route = self._relays.routes.find(target)
        if route is None:
            return "unreachable"
        code = policy.may_send(self._settings, route, target, type_)
        if code is not None:
            self._out.notice("send-refused", server=target, type=type_, code=code, handler=job.type)
            return code
        return self._relays.send(job, route, target, type_, body, id_, now)

    def _to_handler(self, job: Job, number: int, command: Command, now: float) -> None:
        target = command.targets[0]
        path = job.onward_path(self._settings.name)
        code = self._may_send_on(job, path) or policy.may_name(target)
        if code is not None:
            job.case.record(target, failed(code))
            return
        self._into_own_handler(job, result_id(job.id, number, 0), target, command.body, target, now)

    def _into_own_handler(
        self, job: Job, id_: str, type_: str, body: bytes, target: str, now: float, *, from_server: bool = False
    ) -> None:
        """Hand a result to a handler of this server. The sender stays the same, unless the command was `sendServers` to
        this server itself."""
        scope, user, peer = job.scope, job.user, job.peer
        if from_server:
            scope, user, peer = "server", None, self._settings.name
        child = Job(
            job.case, id_, job.root, type_, body, scope, job.origin, user, peer,
            job.onward_path(self._settings.name), target, repeated=job.repeated, traceparent=job.traceparent,
        )  # fmt: skip
        child.case.pending += 1
        self._dispatch(child, now)

    def _may_send_on(self, job: Job, path: list[str]) -> str | None:
        """Count one more result of a root against the bounds on how far and how wide a message may spread. A root that
        another server has named counts for that server's messages alone."""
        if len(path) >= HOP_LIMIT:
            return "too-many-hops"
        results = self._results
        key = (job.peer, job.root)
        count = results.get(key, 0) + 1
        if count > MAX_RESULTS:
            return "too-many-results"
        results[key] = count
        results.move_to_end(key)
        if len(results) > self._limits.max_roots:
            results.popitem(last=False)
            self._out.reached["max_roots"] += 1
        return None
