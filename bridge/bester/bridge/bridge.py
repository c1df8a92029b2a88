"""The bridge's core: everything that concerns more than one connection, or a connection and the broker. Pure.

The core owns the sessions, the tokens of submitted messages and the deliveries. Connections are `ClientConnection`s,
a broker is a `BrokerPort`, and both may be anything; the core reads no clock and opens no socket. Frames and
confirmations are gathered and leave once a turn of the loop, in `flush`. Invariants: no `good` before the bytes have
left, and no connection waits for another one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping, Sequence
from functools import partial
from itertools import count, groupby
from typing import Any

from bester.bridge import native
from bester.bridge.broker_link import UNANSWERED, Answered, BrokerPort
from bester.bridge.brokers import Broker, Brokers
from bester.bridge.deliveries import Deliveries
from bester.bridge.homes import Homes
from bester.bridge.inspection import BridgeState, Refused, summed
from bester.bridge.intake import Intake
from bester.bridge.limits import COUNTED, Limits
from bester.bridge.logins import Logins
from bester.bridge.marked import Marked
from bester.bridge.meter import Meter
from bester.bridge.outbound import Outbound
from bester.bridge.outqueue import Mark
from bester.bridge.ports import ClientConnection, Reading, Waiting
from bester.bridge.questions import Questions
from bester.bridge.registry import Registry
from bester.bridge.senders import STRANGERS, Key, Sender, Senders
from bester.bridge.session import (
    Acknowledged,
    Doubted,
    NewPassword,
    Session,
    SpokeTls,
    Step,
    refusal,
)
from bester.bridge.states import State
from bester.bridge.submissions import Submission, Submissions
from bester.bridge.unfinished import Unfinished
from bester.bridge.window import Question, Window
from bester.broker.wire.messages import (
    OP_OF,
    Answer,
    Ask,
    Close,
    Deliver,
    Error,
    Forward,
    Forwarded,
    Goodbye,
    Heartbeat,
    LoggedIn,
    Login,
    Malformed,
    Message,
    Meta,
    Open,
    Report,
    Submit,
    Welcome,
)
from bester.broker.wire.outcomes import failed

_OPEN = State.OPEN

MAKE_WAY = 2
"""Strangers that make way for one where all their places are taken: their excess shrinks, without many cuts a turn."""


class Bridge:
    """The bridge of one broker, or of several: `brokers` are their places, such as endpoints, all different. `clock`
    returns monotonic seconds; `soon` makes a call at the end of this turn of the loop, `later` in the next turn (`soon`
    where it is None). A message that comes while no other is under way is sent on in its `reading`, where there is one:
    nothing is gained for it by the wait for others of the turn.

    `first_frame_bytes` returns the largest first frame allowed from a host whose certificate has these names (another
    server's message is its first frame). `in_doubt` returns whether a stranger may be a listed server: a larger frame
    of such a stranger is not refused for good, and `on_doubt` gets its host. `ended` gets a session whose connection
    ends at the bridge's will, and why. `forward` gets messages for servers that speak the native protocol; `notice`
    gets texts for the log. `reached` counts what was refused, dropped or cut at a bound, by the bound's name.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        later: Callable[[Callable[[], None]], object] | None = None,
        reading: Reading | None = None,
        first_frame_bytes: Callable[[str, tuple[str, ...]], int] | None = None,
        in_doubt: Callable[[str], bool] = lambda host: False,
        on_doubt: Callable[[str], None] = lambda host: None,
        ended: Callable[[Session, str], None] = lambda session, why: None,
        forward: Callable[[Forward], None] | None = None,
        notice: Callable[[str], None] = lambda text: None,
        brokers: Sequence[str] = ("",),
    ) -> None:
        self.limits = limits
        self.on_empty: Callable[[], None] | None = None
        self.more_figures: Callable[[], dict[str, int]] = dict
        """Called for figures of the shell, which the broker is told with those of `inspect`."""
        self._clock = clock
        self._soon, self._later, self._reading = soon, later or soon, reading
        self._first_frame_bytes = first_frame_bytes or (lambda host, certificate: limits.first_frame)
        self._in_doubt, self._on_doubt = in_doubt, on_doubt
        self._ended = ended
        self.forward = forward
        self._notice = notice
        self._numbers = count(1)
        self._tokens = count(1)
        self._registry = Registry(limits)
        self._connections, self._targets = self._registry.connections, self._registry.targets  # by session number
        self._timed: set[ClientConnection] = set()
        self._unfinished = Unfinished(limits)
        self._meter = Meter(limits.messages_per_s)
        self._made_way = self._frames_over = self._frames_late = 0
        self._awake = False
        self._half_turn = limits.turn_units // 2
        self.reached = reached = self._meter.reached
        self.brokers = Brokers(brokers, limits, self._tokens, notice, self._wake, reached, self._user_of)
        self._senders = Senders()
        self._homes = Homes(self.brokers, self._senders, self._connections)
        self._forwards: dict[int, tuple[Broker, int]] = {}  # of several brokers: by the bridge's own token
        self._intake = Intake(limits, clock, self._handle_waiting, self._wake)
        self._outbound = Outbound(limits, clock, self._wake, reached)
        self._deliveries = Deliveries(
            limits,
            self._targets,
            self.brokers.first,
            self._outbound,
            self._report,
            self._go_on_after_report,
            self._wake,
            clock,
            reached,
        )
        self._marked, self._marked_forwards = Marked(), Marked("again")
        self._questions = Questions(self.brokers, clock, self._apply)
        self._logins = Logins(
            self.brokers, self._homes, self._registry, limits, self._meter, reached,
            join=self._change_sender, apply=self._apply,
        )  # fmt: skip
        self._push = self._outbound.push
        self._turn_to(self.brokers.first)

    # --- the links to the brokers ---------------------------------------------------------------------------------
    # `broker` is the first one, and mostly the only one, where none is given.

    def connect(self, port: BrokerPort, broker: Broker | None = None) -> None:
        """Use this way to a broker, from `on_link_ready` on."""
        (broker or self.brokers.first).link.port = port

    def on_link_ready(self, options: Meta = {}, broker: Broker | None = None) -> None:  # noqa: B006 (never written to)
        """Announce the sessions to a broker that has answered (again), and send the held messages. `options` are those
        of its WELCOME."""
        broker = broker or self.brokers.first
        logins: list[tuple[Login, ClientConnection]] = []
        if broker.link.is_ready:
            logins = self._lose(broker, "the broker was started again")
        broker.on_link_ready(options)
        self._on_credit(broker, options)
        for number, connection in self._targets.items():
            assert connection.session.user is not None
            broker.link.send(Open(number, connection.session.user, connection.session.account))
        for announcement in broker.submissions.on_link_ready():
            broker.link.send(announcement)
        for each, announcement in self._homes.on_joined():
            each.link.send(announcement)
        self._logins.send_again(logins, self._clock())
        for each in self.brokers.all:
            self._drain(each)

    def on_link_lost(self, why: str, broker: Broker | None = None) -> None:
        """Hold the unreported messages of a lost link, or submit them to another broker, as the pending logins; these
        are refused where there is no other, and may be tried again. Clients stay connected."""
        broker = broker or self.brokers.first
        logins = self._lose(broker, why)
        if self.brokers.are_several:
            for each, announcement in self._homes.move_from(broker):
                each.link.send(announcement)
            self._intake.on_credit()
            self._wake()
        self._logins.send_again(logins, self._clock())

    def _lose(self, broker: Broker, why: str) -> list[tuple[Login, ClientConnection]]:
        """Take in that a link is lost; return the logins that its broker has not answered."""
        broker.on_link_lost(why)
        if broker is self._broker:
            self._turn_to(broker)
        self._on_credit(broker, {})
        return self._logins.take_from(broker)

    def _turn_to(self, broker: Broker) -> None:
        """Handle messages of a broker from now on."""
        self._broker = broker
        self._submissions: Submissions = broker.submissions
        self._unreported: MutableMapping[int, Submission] = broker.submissions.by_token
        self._deliveries.turn_to(broker)

    def receive(self, messages: Sequence[Message | Malformed], broker: Broker | None = None) -> None:
        """Handle messages of a broker, in order. Deliveries of more copies than a turn may make go on in the next
        turns, where users take turns."""
        if broker is not None and broker is not self._broker:
            self._turn_to(broker)
        broker = self._broker
        if broker.backlog.waits:
            messages = broker.backlog.take_in(messages)
        now = self._clock()
        left = self._handle(messages, now)
        if left:
            passing = broker.backlog.take_in(left)
            self._later(partial(self._go_on, broker))
            self._handle(passing, now)

    def _handle(self, messages: Sequence[Message | Malformed], now: float) -> list[Message | Malformed]:
        """Handle messages of the broker, in order; return those that the turn has no time for."""
        frames = self.limits.turn_frames
        left: list[Message | Malformed] = []
        for kind, run in _runs(messages):
            if frames <= 0:
                left.extend(run)
            elif kind is Deliver:
                deliveries = self._marked.take(run, self._broker) if self.brokers.are_several else run
                handled, frames = self._deliveries.deliver(deliveries, now, frames)
                if frames <= 0:
                    left = list(deliveries[handled:])
            elif kind is Report:
                self._receive_reports(run, now)
            else:
                for message in run:
                    self._receive_rarer(message, now)
        return left

    def _receive_reports(self, reports: Sequence[Any], now: float) -> None:
        for report in reports:
            token, status, reason, id_, recipients, note = report
            self._report(token, status, reason, id_, recipients, now, note)
        self._deliveries.on_reports(len(reports))
        if self._submissions.has_held or self._intake.has_more:  # for credit, which there is again
            self._wake()

    def _go_on(self, broker: Broker) -> None:
        """Handle deliveries that an earlier turn has left, within the budget of a turn."""
        if broker is not self._broker:
            self._turn_to(broker)
        backlog, frames = broker.backlog, self.limits.turn_frames
        now = self._clock()
        enough = now + self.limits.turn_write_s
        while backlog.is_ready and frames > 0 and self._clock() < enough:
            message = backlog.pop()
            if isinstance(message, Deliver):
                _, frames = self._deliveries.deliver(self._marked.take((message,), broker), now, frames - 1)
            else:
                self._receive_rarer(message, now)
        if backlog.is_ready:
            self._later(partial(self._go_on, broker))
        else:
            self.receive(backlog.take_behind(), broker)

    def _user_of(self, session: int) -> str | None:
        connection = self._targets.get(session)
        return None if connection is None else connection.session.user

    def _receive_rarer(self, message: Message | Malformed, now: float) -> None:
        match message:
            case LoggedIn():
                self._logins.on_answer(message, self._broker, now)
            case Answer():
                self._broker.link.on_answer(message.token, message.status, message.value)
            case Forward():
                self._forward(message)
            case Close():
                connection = self._targets.get(message.session)
                if connection is not None:
                    self._apply(connection, connection.session.shut_down(now), now)
            case Error():
                self._on_error(message, now)
            case Welcome():  # on a direct link; a FabricLink calls `on_link_ready` itself
                self.on_link_ready(message.options, self._broker)
            case Goodbye():
                self.on_link_lost("it sent GOODBYE", self._broker)
            case Heartbeat():
                if message.options:
                    self._on_credit(self._broker, message.options)
            case _:
                self._notice(f"the broker sent a message that is not for a bridge: {type(message).__name__}")

    def _on_credit(self, broker: Broker, options: Meta) -> None:
        """Take in what a broker tells of its credit; without options, that there is none to keep to."""
        if broker.submissions.on_credit(options):
            self._intake.on_credit()

    def _on_error(self, error: Error, now: float) -> None:
        """Report a message, a login or a question that the broker could not take to its sender."""
        if error.token is not None and error.op == OP_OF[Submit]:
            self._report(error.token, 1, error.code, None, {}, now)
        elif error.token is not None and error.op == OP_OF[Login]:
            self._logins.on_answer(LoggedIn(error.token, 1, error.code), self._broker, now)
        elif error.token is not None and error.op == OP_OF[Ask]:
            self._broker.link.on_answer(error.token, 1, None)
        else:
            self._notice(f"the broker refused: {error.code}: {error.text}")

    def ask(self, question: str, argument: Any, answered: Answered) -> None:
        """Ask a broker; `answered` gets status UNANSWERED where there is no broker, or no room on the link."""
        if not any(broker.link.ask(question, argument, answered) for broker in self.brokers.live):
            answered(UNANSWERED, None)

    def _forward(self, message: Forward) -> None:
        """Let the forwarder send a message of the broker. Brokers number theirs alike, so that those of several get a
        token of the bridge's own."""
        token = message.token
        if self.brokers.are_several:
            token = next(self._tokens)
            self._forwards[token] = self._broker, message.token
            message = self._marked_forwards.take_forward(message, self._broker)
        if self.forward is None:
            self.on_forwarded(token, failed("unreachable"), {"unsent": True})
        else:
            self.forward(message if token == message.token else message._replace(token=token))

    def on_forwarded(self, token: int, outcome: str, meta: Meta = {}) -> None:  # noqa: B006 (it is never written to)
        """Send the broker the outcome of a Forward, with the meta of a Forwarded."""
        broker, token = self._forwards.pop(token, (self.brokers.first, token))
        broker.link.send(Forwarded(token, outcome, meta))

    # --- connections ----------------------------------------------------------------------------------------------

    def admit(self, connection: ClientConnection, host: str) -> bool:
        """Accept a new connection and give it a session; False where there is no room, and no stranger to make way."""
        now = self._clock()
        if not self._registry.has_room(host):
            stranger = self._registry.makes_way(host)
            if stranger is None:
                self._meter.connections += 1
                return False
            self._cut_stranger(stranger)
        for _ in range(MAKE_WAY):
            stranger = self._registry.lingers(now)
            if stranger is not None:
                self._cut_stranger(stranger)
        first_bytes = self._first_frame_bytes(host, ())
        is_listed = first_bytes >= self.limits.max_frame
        submissions = self._homes.of_address(host, is_listed=is_listed).submissions
        window = Window(self.limits, submissions, self._join(("host", host) if is_listed else STRANGERS, submissions))
        connection.session = Session(
            next(self._numbers), host, self.limits, self._tokens, window, now, first_bytes,
            in_doubt=first_bytes < self.limits.max_frame and self._in_doubt(host), meter=self._meter,
        )  # fmt: skip
        self._registry.add(connection, now)
        self._timed.add(connection)
        return True

    def on_certificate(self, connection: ClientConnection, certificate: tuple[str, ...]) -> None:
        """Note the names in a peer's verified certificate, before any byte of its stream; empty without one."""
        session = connection.session
        if session.state is State.NEW:
            session.on_certificate(certificate, self._first_frame_bytes(session.address, certificate))

    def _cut_stranger(self, connection: ClientConnection) -> None:
        """Tell a stranger that there is no room for it, and cut its connection: its place is free at once."""
        self._made_way += 1
        session = connection.session
        if session.state is State.NEW:
            self._push(connection, native.refused("overloaded", None))
            connection.flush()
        connection.abort_code = "overloaded"
        session.on_connection_lost()
        self._registry.remove(session)
        self._timed.discard(connection)
        self._unfinished.forget(connection)
        self._forget_input(connection)
        connection.abort("it sent no login, and made way for a new connection")

    def on_bytes(self, connection: ClientConnection, data: bytes) -> None:
        """Pass the bytes of a connection to its session, or let them wait for the turn of their sender."""
        reading, others = self._reading, self._awake or bool(connection.session.window.table)
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
        self._apply(connection, step, now)

    def _handle_waiting(self, connection: ClientConnection, ration: int) -> int:
        """Handle frames of a connection whose sender's turn it is; return the units used."""
        now, session = self._clock(), connection.session
        session.window.look_again()
        self._apply(connection, session.proceed(now, ration), now)
        return session.spent

    def _join(self, key: Key, submissions: Submissions) -> Sender:
        """Return the sender of another connection; a new one sends to the broker with these messages."""
        sender = self._senders.join(key)
        if sender.connections == 1:
            sender.submissions = submissions
        return sender

    def _forget_input(self, connection: ClientConnection) -> None:
        self._intake.remove(connection)
        self._senders.leave(connection.session.window.sender)

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
        self._registry.remove(session)
        self._logins.forget(session.number)
        self._timed.discard(connection)
        self._unfinished.forget(connection)
        self._forget_input(connection)
        self._wake()  # messages of the connection may have filled the bounds
        self._outbound.on_connection_lost(connection)
        self._deliveries.on_connection_lost(connection)
        if not self._connections and self.on_empty is not None:
            self.on_empty()

    def tick(self) -> None:
        """Look at deadlines, slow readers and held messages; call about twice a second."""
        now = self._clock()
        for connection in list(self._timed):
            if connection.session.deadline is None:
                self._timed.discard(connection)
            elif now >= connection.session.deadline:
                self._apply(connection, connection.session.tick(now), now)
        for connection in self._unfinished.overdue(now):
            self._frames_late += 1
            self._end_frame(connection, "timeout", now)
        self._outbound.tick(now)
        self._deliveries.tick(now)
        self._meter.tick(now)
        self._homes.tick()
        for broker in self.brokers.all:
            for token in broker.submissions.overdue(now):
                self.reached["hold_s"] += 1
                self._report(token, 1, "unreachable", None, {}, now)
        for broker in self.brokers.all:
            self._drain(broker)
        for broker in self.brokers.live:
            report = broker.submissions.report(more=self._intake.has_more)
            if report is not None:
                broker.link.send(Heartbeat(report))

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
        for connection in list(self._connections.values()):
            self._apply(connection, connection.session.shut_down(now), now)
        if not self._connections and self.on_empty is not None:
            self.on_empty()

    def give_up(self) -> None:
        """Refuse every unreported message, as `timeout` or, without a broker, `unreachable`."""
        now = self._clock()
        for broker in self.brokers.all:
            self._on_credit(broker, {})  # no type waits any more
        reason = "timeout" if self.is_ready else "unreachable"
        for connection in list(self._connections.values()):
            self._apply(connection, connection.session.give_up(reason, now), now)

    def abort(self) -> None:
        """Cut the remaining connections."""
        for connection in list(self._connections.values()):
            connection.abort("")

    @property
    def is_ready(self) -> bool:
        """Return whether there is a broker that has answered."""
        return self.brokers.is_ready

    @property
    def connections(self) -> int:
        """Return the number of connections."""
        return len(self._connections)

    def inspect(self) -> BridgeState:
        """Return what this bridge holds now, counted at this call."""
        return BridgeState(
            connections=len(self._connections),
            hosts=self._registry.hosts,
            sessions=len(self._targets),
            users=self._registry.users,
            logins=len(self._logins),
            timed=len(self._timed),
            senders=len(self._senders),
            strangers=self._registry.strangers,
            unfinished=len(self._unfinished),
            unfinished_bytes=self._unfinished.total_bytes,
            made_way=self._made_way,
            frames_over=self._frames_over,
            frames_late=self._frames_late,
            refused=Refused(
                self._meter.connections, self._meter.first_frames, self._meter.sessions, self._meter.messages
            ),
            reached={name: self.reached[name] for name in COUNTED},
            submissions=summed([broker.submissions.inspect() for broker in self.brokers.all]),
            intake=self._intake.inspect(),
        )

    # --- deciding -------------------------------------------------------------------------------------------------

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
            self._on_doubt(notice.host)
        else:
            self._ended(connection.session, "it speaks TLS to a listener of plain text")

    def _change_sender(self, connection: ClientConnection) -> None:
        """Let a connection that logs in share with its user's other connections: it was a stranger's until now."""
        self._forget_input(connection)
        window = connection.session.window
        window.sender = sender = self._join(("user", connection.session.user or ""), window.submissions)
        if window.submissions is not sender.submissions:
            window.move(sender.submissions)

    def _report(
        self,
        token: int,
        status: int,
        reason: str | None,
        message: str | None,
        recipients: dict[str, str] | None,
        now: float,
        note: str | None = None,
    ) -> None:
        submissions, submission = self._submissions, self._unreported.pop(token, None)
        if submission is None:
            found = self.brokers.take(token)
            if found is None:
                return  # reported already, by the bridge itself
            submissions, submission = found
        connection = self._connections.get(submission.session)
        if connection is None:
            submissions.release(submission)
            return
        session = connection.session
        self._push(connection, session.window.on_report(submission, status, reason, message, recipients, note))
        self._go_on_after_report(connection, now)

    def _go_on_after_report(self, connection: ClientConnection, now: float) -> None:
        """Let frames of a connection that waited for room in the window go on, or the end that waited for reports."""
        session = connection.session
        if (session.held or session.state is not _OPEN) and session.has_more:
            if not session.has_waiting:
                self._apply(connection, session.proceed(now, 0), now)
            elif connection not in session.window.sender.blocked:  # or the intake looks at it in each turn
                self._intake.add(connection)

    def _settle(self, connection: ClientConnection) -> None:
        """Do what the state of a session asks for, after anything that may have changed the state."""
        session = connection.session
        if session.state is not _OPEN:
            self._settle_state(connection, session)
        if session.splitter.change is not None:
            self._settle_frame(connection)
        if (session.held or session.parked) and session.has_waiting:
            self._intake.add(connection)
        self._settle_reading(connection)

    def _settle_frame(self, connection: ClientConnection) -> None:
        """Count the unfinished frame of a connection; above the bound, end those that have held most for longest."""
        splitter, now = connection.session.splitter, self._clock()
        change, splitter.change = splitter.change, None
        if change is None or connection.abort_code is not None:
            return
        self._unfinished.on_change(connection, change, now)
        if self._unfinished.is_over:
            for each in self._unfinished.make_way(now):
                self._frames_over += 1
                self._end_frame(each, "overloaded", now)

    def _end_frame(self, connection: ClientConnection, reason: str, now: float) -> None:
        """End the stream of a connection at its unfinished frame."""
        held, needed = connection.session.splitter.waiting_bytes, connection.session.splitter.needed_bytes
        why = "its frame took too long" if reason == "timeout" else "too many frames are unfinished, and it held most"
        self._unfinished.forget(connection)
        self._apply(connection, connection.session.end_frame(reason, now), now)
        self._ended(connection.session, f"{why}: {held} of {needed} bytes had come")

    def _settle_reading(self, connection: ClientConnection) -> None:
        """Stop or resume reading. A connection that does not read its frames is not read from, nor is one whose frames
        wait."""
        session, out = connection.session, connection.out
        wants = (session.state is _OPEN and not session.held and not session.parked) or session.wants_input
        if out.taken_bytes != out.sent_bytes and out.queued_bytes >= self.limits.out_pause:
            wants = False
        if wants is not connection.reading:
            connection.read(wants)

    def _settle_state(self, connection: ClientConnection, session: Session) -> None:
        if session.deadline is not None:
            self._timed.add(connection)
        self._registry.on_state(session)
        if session.state is not State.AUTHENTICATING:
            self._logins.forget(session.number)
        if not session.is_target:
            self._registry.log_out(session)
        if session.state is State.CLOSING:
            self._outbound.touch(connection)
        elif session.state is State.CLOSED and connection.abort_code is None:
            connection.abort_code = "not-connected"
            connection.abort("its message has no report yet, and goes on without it" if session.is_unanswered else "")

    # --- once a turn ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._soon(self.flush)

    def flush(self) -> None:
        """Write to each connection once, within the budget of a turn, then send one confirmation of everything that has
        ended by these writes. New input comes last."""
        has_more = True  # where it fails
        try:
            has_more = self._outbound.flush(self._settle_reading)  # settled sessions must not be touched again
        finally:
            self._awake = False
            if has_more:
                self._wake()
        for broker in self.brokers.all:
            if self._drain(broker):
                for confirm in broker.confirmations.confirm():
                    broker.link.send(confirm)
        self._intake.serve()

    def _drain(self, broker: Broker) -> bool:
        """Send what waited for room on the link to a broker; return whether the link keeps up."""
        keeps_up = broker.link.flush()
        broker.submissions.send_held()
        return keeps_up


def _runs(messages: Sequence[Any]) -> Iterable[tuple[type[Any], Sequence[Any]]]:
    """Return the runs of messages of one class, in order."""
    if len(messages) == 1:
        return ((type(messages[0]), messages),)
    return [(kind, list(run)) for kind, run in groupby(messages, type)]


def _submits(messages: Sequence[Any]) -> Sequence[Submit]:
    """Return the submits among the messages of a step, which mostly holds nothing else."""
    if type(messages[0]) is Submit and (len(messages) == 1 or list(map(type, messages)).count(Submit) == len(messages)):
        return messages
    return [message for message in messages if type(message) is Submit]
