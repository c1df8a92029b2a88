"""The bridge's core: the parts of a bridge, tied together; the events of connections, and the turn of the loop. Pure.

The core owns the sessions, the tokens of submitted messages and the deliveries. Connections are `ClientConnection`s,
a broker is a `BrokerPort`, and both may be anything; the core reads no clock and opens no socket. Frames are gathered
and leave once a turn of the loop, in `flush`; a confirmation for which nobody waits follows at the end of that turn.
Invariants: no `good` before the bytes have left, and no connection waits for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

from bester.bridge.admission import Admission
from bester.bridge.broker_link import UNANSWERED, Answered, BrokerPort
from bester.bridge.brokers import Broker, Brokers
from bester.bridge.deliveries import Deliveries
from bester.bridge.forwards import Forwards
from bester.bridge.homes import Homes
from bester.bridge.incoming import Incoming
from bester.bridge.inspection import BridgeState, Refused, summed
from bester.bridge.intake import Intake
from bester.bridge.judging import Judging
from bester.bridge.limits import COUNTED, Limits
from bester.bridge.links import Links
from bester.bridge.logins import Logins
from bester.bridge.meter import Meter
from bester.bridge.outbound import Outbound
from bester.bridge.outqueue import Mark
from bester.bridge.ports import ClientConnection, Shell, Waiting
from bester.bridge.questions import Questions
from bester.bridge.registry import Registry
from bester.bridge.reports import Reports
from bester.bridge.senders import Senders
from bester.bridge.settling import Settling
from bester.bridge.steps import Acknowledged, Doubted, NewPassword, SpokeTls, Step, refusal
from bester.bridge.unfinished import Unfinished
from bester.bridge.window import Question
from bester.broker.brief import LITTLE
from bester.broker.wire.messages import Close, Forward, Heartbeat, Login, Meta, Submit


class Bridge:
    """The bridge of one broker, or of several: `brokers` are their places, such as endpoints, all different. `shell` is
    what the bridge calls of the shell around it; `carry` gets messages for servers that speak the native protocol.

    `receive` handles messages of a broker, in order. `forwards` takes the outcomes of those that `carry` got. `reached`
    counts what was refused, dropped or cut at a bound, by the bound's name.
    """

    def __init__(
        self, limits: Limits, shell: Shell, *, carry: Callable[[Forward], None] | None = None,
        brokers: Sequence[str] = ("",),
    ) -> None:  # fmt: skip
        self.limits = limits
        self.on_empty: Callable[[], None] | None = None
        self.more_figures: Callable[[], dict[str, int]] = dict
        """Called for figures of the shell, which the broker is told with those of `inspect`."""
        self._shell, self._clock, self._reading, self._brief = shell, shell.clock, shell.reading, shell.brief
        self._later = shell.later or shell.soon
        self._awake = False
        self._confirms = False  # once the other callbacks of this turn have run
        self._half_turn = limits.turn_units // 2
        tokens, clock, wake, apply = count(1), shell.clock, self._wake, self._apply
        self._meter = meter = Meter(limits.messages_per_s)
        self.reached = reached = meter.reached
        self._registry = registry = Registry(limits)
        self.brokers = Brokers(brokers, limits, tokens, shell.notice, wake, reached, registry.user_of)
        self.forwards = Forwards(self.brokers, tokens, carry)
        # What connections say.
        self._senders, self._unfinished = Senders(), Unfinished(limits)
        homes = self._homes = Homes(self.brokers, self._senders, registry.connections)
        self._intake = intake = Intake(limits, clock, self._handle_waiting, wake)
        self._outbound = outbound = Outbound(limits, clock, wake, reached)
        self._admission = Admission(
            limits, shell, tokens, meter, registry, homes, self._senders, self._unfinished, intake, outbound
        )
        self._questions = Questions(self.brokers, clock, apply)
        self._logins = Logins(
            self.brokers, homes, registry, limits, meter, reached, join=self._admission.join_user, apply=apply
        )
        self._settling = Settling(limits, shell, registry, self._unfinished, self._logins, intake, outbound, apply)
        self._push, self._settle = outbound.push, self._settling.settle
        self._settle_reading = self._settling.settle_reading
        # What brokers say.
        reports = self._reports = Reports(self.brokers, registry.connections, intake, outbound, apply)
        self._deliveries = Deliveries(
            limits, registry.targets, self.brokers.first, outbound, reports.report, reports.go_on, wake, clock, reached
        )
        self._incoming = Incoming(
            limits, shell, self.brokers, registry, intake, self._logins, self.forwards, reports, self._deliveries,
            apply=apply, ready=self.on_link_ready, lost=self.on_link_lost, wake=wake,
        )  # fmt: skip
        self._judging = Judging(
            (self._settling.judge, outbound.judge, self._deliveries.judge, self._give_up_held), shell
        )
        self.receive = self._incoming.receive
        self._links = Links(self.brokers, homes, registry, self._logins, intake, self._incoming, clock, wake)

    # --- the brokers ----------------------------------------------------------------------------------------------
    # `broker` is the first one, and mostly the only one, where none is given.

    def connect(self, port: BrokerPort, broker: Broker | None = None) -> None:
        """Use this way to a broker, from `on_link_ready` on."""
        (broker or self.brokers.first).link.port = port

    def on_link_ready(self, options: Meta = {}, broker: Broker | None = None) -> None:  # noqa: B006 (never written to)
        """Take in that a broker has answered, perhaps again, with these options of its WELCOME."""
        self._links.on_ready(options, broker or self.brokers.first)

    def on_link_lost(self, why: str, broker: Broker | None = None) -> None:
        """Take in that a link is lost. Clients stay connected."""
        self._links.on_lost(why, broker or self.brokers.first)

    def ask(self, question: str, argument: Any, answered: Answered) -> None:
        """Ask a broker; `answered` gets status UNANSWERED where there is no broker, or no room on the link."""
        if not any(broker.link.ask(question, argument, answered) for broker in self.brokers.live):
            answered(UNANSWERED, None)

    # --- connections ----------------------------------------------------------------------------------------------

    def has_room(self, host: str) -> bool:
        """Return whether there is room for a connection from this host, and no stranger has to make way."""
        return self._registry.has_room(host) and self._registry.strangers < self.limits.stranger_places

    def admit(self, connection: ClientConnection, host: str, *, is_scarce: bool = False) -> bool:
        """Accept a new connection and give it a session; False where there is no room, and no stranger to make way.
        `is_scarce`: the process has few descriptors left."""
        return self._admission.admit(connection, host, is_scarce=is_scarce)

    def on_certificate(self, connection: ClientConnection, certificate: tuple[str, ...]) -> None:
        """Note the names in a peer's verified certificate, before any byte of its stream; empty without one."""
        self._admission.on_certificate(connection, certificate)

    def on_bytes(self, connection: ClientConnection, data: bytes) -> None:
        """Pass the bytes of a connection to its session, or let them wait for the turn of their sender."""
        reading, others = (
            self._reading,
            self._awake or bool(connection.session.window.table) or self._is_any_elsewhere(),
        )
        if reading is None or others:
            self._read(connection, data)
            return
        reading.begin()
        try:
            self._read(connection, data)
        finally:
            if self._awake:  # what the bridge does once a turn has a budget of a turn
                reading.leave()
            else:
                reading.end()

    def _is_any_elsewhere(self) -> bool:
        """Return whether a message is under way at any of several brokers."""
        return self.brokers.are_several and any(broker.submissions.by_token for broker in self.brokers.all)

    def _read(self, connection: ClientConnection, data: bytes) -> None:
        intake, session = self._intake, connection.session
        left = intake.left
        if left < self._half_turn:
            self._wake()  # the next turn has a budget of its own
        sender = session.window.sender
        if left <= 0 or ((session.held or session.parked) and session.is_ready) or sender.submissions.is_spent(sender):
            session.park(data)
            intake.add(connection)
            self._settle_reading(connection)
            return
        if sender.blocked:
            session.window.look_again()
        now = self._clock()
        step = session.on_bytes(data, now, left)
        intake.left = left - session.spent
        if now < self._brief.asked_until:
            self._note_share(connection, step, now)
        self._apply(connection, step, now)

    def _handle_waiting(self, connection: ClientConnection, ration: int) -> int:
        """Handle frames of a connection whose sender's turn it is; return the units used."""
        now, session = self._clock(), connection.session
        session.window.look_again()
        step = session.proceed(now, ration)
        if now < self._brief.asked_until:
            self._note_share(connection, step, now)
        self._apply(connection, step, now)
        return session.spent

    def _note_share(self, connection: ClientConnection, step: Step, now: float) -> None:
        """Note whether the sender of a connection says little, or more than is handled of it. Only messages that are
        submitted count as little: the bytes of a stranger, or of a frame that is not whole, ask for nothing yet."""
        session = connection.session
        sender = session.window.sender
        if session.has_waiting:
            self._brief.on_much(sender, now)
        elif session.spent * sender.fan <= LITTLE and any(type(message) is Submit for message in step.send):
            self._brief.on_little(sender, now)

    def on_peer_ended(self, connection: ClientConnection) -> None:
        """Note that the peer of a connection will send nothing more."""
        now = self._clock()
        self._apply(connection, connection.session.on_peer_ended(now), now)

    def on_bytes_sent(self, connection: ClientConnection, marks: list[Mark[Waiting]]) -> None:
        """Note that a chunk has left the process, and with it the frames before these marks."""
        if marks:
            self._deliveries.on_bytes_sent(connection, marks)
        if not connection.reading:
            self._settle_reading(connection)

    def on_all_sent(self, connection: ClientConnection) -> None:
        """Note that the last frame of a closing session has left."""
        connection.session.on_all_sent(self._clock())

    def on_blocked(self, connection: ClientConnection) -> None:
        """Note that the socket of a connection takes no more for now."""
        self._outbound.on_blocked(connection)

    def on_unblocked(self, connection: ClientConnection) -> None:
        """Note that the socket of a connection has taken its chunk, and there is more to write, or an end to make."""
        self._outbound.touch(connection)

    def on_connection_lost(self, connection: ClientConnection) -> None:
        """Forget a connection, but for its unreported messages."""
        session = connection.session
        submissions = session.window.submissions
        last_held = submissions.on_connection_lost(session.window.submitted, session.user, session.account)
        for message in session.on_connection_lost().send:
            if type(message) is Close:
                self._close(message, connection, last_held)
        self._admission.release(connection)
        self._logins.forget(session.number)
        self._wake()  # messages of the connection may have filled the bounds
        self._outbound.on_connection_lost(connection)
        self._deliveries.on_connection_lost(connection)
        if not self._registry.connections and self.on_empty is not None:
            self.on_empty()

    def tick(self, *, judge: bool = True) -> None:
        """Look at deadlines, slow readers and held messages; call about twice a second. Without `judge` nobody is late
        yet: what they sent may still be unread."""
        now = self._clock()
        if judge:
            self._judging.judge(now)
        else:
            self._judging.adjourn()
        self._meter.tick(now)
        self._homes.tick()
        for broker in self.brokers.all:
            broker.drain()
        for broker in self.brokers.live:
            report = broker.submissions.report(more=self._intake.has_more, crowd=self._intake.has_crowd)
            if report is not None:
                broker.link.send(Heartbeat(report))

    def _give_up_held(self, now: float) -> Iterator[None]:
        """Report messages that no broker has reported for too long."""
        for broker in self.brokers.all:
            for token in broker.submissions.overdue(now):
                if token in broker.submissions.by_token:
                    self.reached["hold_s"] += 1
                    self._reports.report(token, 1, "unreachable", None, {}, now)
                    yield

    def tell_figures(self) -> None:
        """Tell the brokers the counts of this bridge, for its operator; call every few seconds. An older broker refuses
        them."""
        figures = self.inspect().figures() | self.more_figures()
        for broker in self.brokers.live:
            broker.link.ask("figures", figures, lambda status, value: None)

    def shut_down(self) -> None:
        """Take no more frames. Unreported messages are still reported; `on_empty` is called after the last
        connection."""
        now = self._clock()
        for connection in list(self._registry.connections.values()):
            self._apply(connection, connection.session.shut_down(now), now)
        if not self._registry.connections and self.on_empty is not None:
            self.on_empty()

    def give_up(self) -> None:
        """Refuse every unreported message, as `timeout` or, without a broker, `unreachable`."""
        now = self._clock()
        for broker in self.brokers.all:
            self._incoming.on_credit(broker, {})  # no type waits any more
        reason = "timeout" if self.is_ready else "unreachable"
        for connection in list(self._registry.connections.values()):
            self._apply(connection, connection.session.give_up(reason, now), now)

    def abort(self) -> None:
        """Cut the remaining connections."""
        for connection in list(self._registry.connections.values()):
            connection.abort("")

    @property
    def is_ready(self) -> bool:
        """Return whether there is a broker that has answered."""
        return self.brokers.is_ready

    @property
    def connections(self) -> int:
        """Return the number of connections."""
        return len(self._registry.connections)

    def inspect(self) -> BridgeState:
        """Return what this bridge holds now, counted at this call."""
        return BridgeState(
            connections=len(self._registry.connections),
            hosts=self._registry.hosts,
            sessions=len(self._registry.targets),
            users=self._registry.users,
            logins=len(self._logins),
            timed=len(self._registry.timed),
            senders=len(self._senders),
            strangers=self._registry.strangers,
            unfinished=len(self._unfinished),
            unfinished_bytes=self._unfinished.total_bytes,
            made_way=self._admission.made_way,
            frames_over=self._settling.frames_over,
            frames_late=self._settling.frames_late,
            refused=Refused(
                self._meter.connections, self._meter.first_frames, self._meter.sessions, self._meter.messages
            ),
            reached={name: self.reached[name] for name in COUNTED},
            submissions=summed([broker.submissions.inspect() for broker in self.brokers.all]),
            intake=self._intake.inspect(),
        )

    # --- steps of sessions ----------------------------------------------------------------------------------------

    def _apply(self, connection: ClientConnection, step: Step, now: float) -> None:
        """Write the frames of a step and send its messages; a refusal is reported to the session at once."""
        steps = [step]
        for write, send in steps:
            for frame in write:
                self._push(connection, frame)
            if send:
                submits = _submits(send)
                if submits:
                    connection.session.window.submissions.submit(submits)
                if submits is not send:
                    steps += self._send_rarer(connection, send, now)
        self._settle(connection)

    def _send_rarer(self, connection: ClientConnection, messages: Sequence[Any], now: float) -> list[Step]:
        """Send the messages of a step that are no submits; return the steps that follow from refusals."""
        steps: list[Step] = []
        for message in messages:
            match message:
                case Login():
                    refused = self._logins.send(message, connection, now)
                    if refused is not None:
                        steps.append(refused)
                case Close():
                    self._close(message, connection, None)
                case Doubted() | SpokeTls():
                    self._on_stranger(connection, message)
                case Acknowledged():
                    self._deliveries.on_acks(connection, message.ids)
                case Question() | NewPassword():
                    if not self._questions.ask(connection, message):
                        steps.append(connection.session.on_report(refusal(message.token, "unreachable"), now, 0))
        return steps

    def _close(self, message: Close, connection: ClientConnection, behind: int | None) -> None:
        """Tell every broker that a session has ended, one of them behind the message with the token `behind`."""
        for broker in self.brokers.all:
            is_home = broker.submissions is connection.session.window.submissions
            broker.submissions.close(message, behind if is_home else None)

    def _on_stranger(self, connection: ClientConnection, notice: Doubted | SpokeTls) -> None:
        """Pass on what a session has noticed in the first bytes of a stranger."""
        if isinstance(notice, Doubted):
            self._shell.on_doubt(notice.host)
        else:
            self._shell.ended(connection.session, "it speaks TLS to a listener of plain text")

    # --- once a turn ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._shell.soon(self.flush)

    def flush(self) -> None:
        """Write to each connection once, within the budget of a turn, then send one confirmation of everything that has
        ended by these writes: at once where a report waits for it, else with what the loop has read beside. New input
        comes last."""
        has_more = True  # where it fails
        try:
            has_more = self._outbound.flush(self._settle_reading)  # settled sessions must not be touched again
        finally:
            self._awake = False
            if has_more:
                self._wake()
        for broker in self.brokers.all:
            if not broker.drain() or not broker.confirmations.is_due:
                continue
            if broker.confirmations.is_awaited:
                self._confirm(broker)
            elif not self._confirms:
                self._confirms = True
                self._later(self._confirm_all)
        self._intake.serve()

    def _confirm_all(self) -> None:
        self._confirms = False
        for broker in self.brokers.all:
            if broker.link.flush():
                self._confirm(broker)

    def _confirm(self, broker: Broker) -> None:
        for confirm in broker.confirmations.confirm():
            broker.link.send(confirm)


def _submits(messages: Sequence[Any]) -> Sequence[Submit]:
    """Return the submits among the messages of a step, which mostly holds nothing else."""
    if type(messages[0]) is Submit and (len(messages) == 1 or list(map(type, messages)).count(Submit) == len(messages)):
        return messages
    return [message for message in messages if type(message) is Submit]
