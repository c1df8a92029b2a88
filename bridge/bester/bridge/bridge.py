"""The bridge: what its connections say, what the broker must hear of it, and what of its answers goes to whom. Pure.

It owns the sessions, the tokens of submitted messages, the ledger of deliveries and the bounds that concern more than
one connection. It reads no clock and opens no socket: connections are `Wire`s, the broker is a `BrokerPort`, and both
may be anything. Frames and confirmations are gathered and leave once a turn of the loop, in `flush`. It must never
say `good` before the bytes have left, and never wait for one connection while another could go on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import count
from typing import Any

from bester.bridge.broker_link import BrokerLink
from bester.bridge.deliveries import Deliveries
from bester.bridge.inspection import BridgeState
from bester.bridge.limits import Limits
from bester.bridge.outbound import Outbound
from bester.bridge.outqueue import Mark
from bester.bridge.ports import UNANSWERED, Answered, BrokerPort, ClientConnection, Waiting
from bester.bridge.registry import Registry
from bester.bridge.session import NO_BROKER, Acknowledged, Doubted, Session, Step, refusal
from bester.bridge.states import State
from bester.bridge.submissions import Submissions
from bester.bridge.window import Load, Question, Window
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


class Bridge:
    """The bridge of one broker. `clock` is monotonic seconds; `soon` calls once, in the next turn of the loop.

    `first_frame_bytes` says how large the first frame from a host may be (another server's message is its first
    frame). A stranger of whom `in_doubt` says that it may be a listed server is not refused for good for a larger one,
    and `on_doubt` gets its host. `forward` gets messages for servers that speak the native protocol; `notice` is told
    what nobody else is.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        first_frame_bytes: Callable[[str], int] | None = None,
        in_doubt: Callable[[str], bool] = lambda host: False,
        on_doubt: Callable[[str], None] = lambda host: None,
        forward: Callable[[Forward], None] | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.limits = limits
        self.on_empty: Callable[[], None] | None = None
        self._clock = clock
        self._soon = soon
        self._first_frame_bytes = first_frame_bytes or (lambda host: limits.first_frame)
        self._in_doubt, self._on_doubt = in_doubt, on_doubt
        self.forward = forward
        self._notice = notice
        self._numbers = count(1)
        self._tokens = count(1)
        self._registry = Registry(limits)
        self._connections, self._targets = self._registry.connections, self._registry.targets  # by session number
        self._logins: dict[int, ClientConnection] = {}  # those the broker is asked about
        self._timed: set[ClientConnection] = set()
        self._awake = False
        self._kept_waiting: dict[ClientConnection, None] = {}  # not read from because too much waits for reports in all
        self._broker_link = BrokerLink(limits, self._tokens, notice)
        self._load = Load(limits)
        self._submissions = Submissions(limits, self._load, self._broker_link, self._wake)
        self._submits = self._submissions.submits  # by token: who waits for the report
        self._outbound = Outbound(limits, clock, self._wake)
        self._deliveries = Deliveries(
            limits, self._targets, self._submits, self._outbound, self._report, self._wake, clock
        )
        self._push, self._tell = self._outbound.push, self._broker_link.tell

    # --- the link to the broker -----------------------------------------------------------------------------------

    def connect(self, port: BrokerPort) -> None:
        """Use this way to the broker; it counts once `ready` is called."""
        self._broker_link.port = port

    def on_link_ready(self) -> None:
        """The broker knows us (again): tell it who is here, and what it has not reported on."""
        if self.is_ready:
            self.on_link_lost("the broker was started again")
        self._broker_link.on_link_ready()
        for number, connection in self._targets.items():
            assert connection.session.user is not None
            self._tell(Open(number, connection.session.user))
        for announced in self._submissions.on_link_ready():
            self._tell(announced)
        self._pay()

    def on_link_lost(self, why: str) -> None:
        """The link is lost. Clients stay, and their messages are held; who was about to log in may try again."""
        self._broker_link.on_link_lost(why)
        self._deliveries.forget()
        self._submissions.on_link_lost()
        now = self._clock()
        logins, self._logins = self._logins, {}
        for connection in logins.values():
            self._apply(connection, connection.session.on_login_answer(1, NO_BROKER, now), now)

    def receive(self, messages: Iterable[Message | Malformed]) -> None:
        """Do what the broker says, in order."""
        now = self._clock()
        reports = 0
        for message in messages:
            if type(message) is Deliver:
                self._deliveries.deliver(message, now)
            elif type(message) is Report:
                reports += 1
                token, status, reason, id_, recipients, note = message
                self._report(token, status, reason, id_, recipients, now, note)
            else:
                if reports:  # it may be the end of the link's life, and they belong to that
                    self._deliveries.reported(reports)
                    reports = 0
                self._receive_rarer(message, now)
        if reports:
            self._deliveries.reported(reports)

    def _receive_rarer(self, message: Message | Malformed, now: float) -> None:
        match message:
            case LoggedIn():
                self._logged_in(message, now)
            case Answer():
                self._broker_link.on_answer(message.token, message.status, message.value)
            case Forward():
                if self.forward is None:
                    self.on_forwarded(message.token, failed("unreachable"), {"unsent": True})
                else:
                    self.forward(message)
            case Close():
                connection = self._targets.get(message.session)
                if connection is not None:
                    self._apply(connection, connection.session.shut_down(now), now)
            case Error():
                self._refused(message, now)
            case Welcome():  # on a direct link; that of a FabricLink comes as `ready`
                self.on_link_ready()
            case Goodbye():
                self.on_link_lost("it said goodbye")
            case Heartbeat():
                pass
            case _:
                self._notice(f"the broker sent what no bridge expects: {type(message).__name__}")

    def _refused(self, error: Error, now: float) -> None:
        """The broker could not take what we sent: whoever waits for it hears of it."""
        if error.token is not None and error.op == OP_OF[Submit]:
            self._report(error.token, 1, error.code, None, {}, now)
        elif error.token is not None and error.op == OP_OF[Login]:
            self._logged_in(LoggedIn(error.token, 1, error.code), now)
        elif error.token is not None and error.op == OP_OF[Ask]:
            self._broker_link.on_answer(error.token, 1, None)
        else:
            self._notice(f"the broker refused: {error.code}: {error.text}")

    def ask(self, question: str, argument: Any, answered: Answered) -> None:
        """Ask the broker; `answered` gets status UNANSWERED where it cannot be asked."""
        if not self._broker_link.ask(question, argument, answered):
            answered(UNANSWERED, None)

    def on_forwarded(self, token: int, outcome: str, meta: Meta = {}) -> None:  # noqa: B006 (it is never written to)
        """What became of a Forward; meta as a Forwarded has it."""
        self._tell(Forwarded(token, outcome, meta))

    # --- connections ----------------------------------------------------------------------------------------------

    def admit(self, connection: ClientConnection, host: str) -> bool:
        """Take a new connection in and give it its session; False: there is no place for it."""
        if not self._registry.has_room(host):
            return False
        window, first_bytes = Window(self.limits, self._load), self._first_frame_bytes(host)
        connection.session = Session(
            next(self._numbers), host, self.limits, self._tokens, window, self._clock(), first_bytes,
            in_doubt=first_bytes < self.limits.max_frame and self._in_doubt(host),
        )  # fmt: skip
        self._registry.add(connection)
        self._timed.add(connection)
        return True

    def on_bytes(self, connection: ClientConnection, data: bytes) -> None:
        """Bytes came on a connection."""
        now = self._clock()
        self._apply(connection, connection.session.on_bytes(data, now), now)

    def on_peer_ended(self, connection: ClientConnection) -> None:
        """The peer of a connection will send nothing more."""
        now = self._clock()
        self._apply(connection, connection.session.on_peer_ended(now), now)

    def on_bytes_sent(self, connection: ClientConnection, marks: list[Mark[Waiting]]) -> None:
        """A chunk has left, and with it what these marks stand for."""
        self._deliveries.on_bytes_sent(connection, marks)
        if not connection.reading:
            self._settle(connection)

    def on_all_sent(self, connection: ClientConnection) -> None:
        """The last word of a closing session has left."""
        connection.session.on_all_sent(self._clock())

    def on_blocked(self, connection: ClientConnection) -> None:
        """The socket of a connection takes no more for now."""
        self._outbound.on_blocked(connection)

    def on_connection_gone(self, connection: ClientConnection) -> None:
        """A connection is no more: nothing of it stays but what it has said."""
        session = connection.session
        self._submissions.on_connection_gone(session)
        for message in session.on_connection_lost().send:
            if type(message) is Close:
                self._submissions.close(message)
        self._registry.remove(session)
        self._logins.pop(session.number, None)
        self._timed.discard(connection)
        if self._kept_waiting:  # with it goes what its window held
            self._kept_waiting.pop(connection, None)
            self._wake()
        self._outbound.on_connection_gone(connection)
        self._deliveries.on_connection_gone(connection)
        if not self._connections and self.on_empty is not None:
            self.on_empty()

    def tick(self) -> None:
        """Call about twice a second: deadlines, readers that do not read, words that are owed."""
        now = self._clock()
        for connection in list(self._timed):
            if connection.session.deadline is None:
                self._timed.discard(connection)
            elif now >= connection.session.deadline:
                self._apply(connection, connection.session.tick(now), now)
        self._outbound.tick(now)
        self._deliveries.tick(now)
        for token in self._submissions.overdue(now):
            self._report(token, 1, "unreachable", None, {}, now)
        self._pay()

    def shut_down(self) -> None:
        """Take no more from anybody; what is outstanding is still reported. `on_empty` tells the end of it."""
        now = self._clock()
        for connection in list(self._connections.values()):
            self._apply(connection, connection.session.shut_down(now), now)
        if not self._connections and self.on_empty is not None:
            self.on_empty()

    def give_up(self) -> None:
        """Wait for no more reports: whoever still does is told that there will be none."""
        now = self._clock()
        reason = "timeout" if self.is_ready else "unreachable"
        for connection in list(self._connections.values()):
            self._apply(connection, connection.session.give_up(reason, now), now)

    def abort(self) -> None:
        """Cut whoever is left."""
        for connection in list(self._connections.values()):
            connection.abort("")

    @property
    def is_ready(self) -> bool:
        """Whether the broker knows us now."""
        return self._broker_link.is_ready

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._connections)

    def inspect(self) -> BridgeState:
        """Return what this bridge holds now. It is counted when it is asked for."""
        return BridgeState(
            connections=len(self._connections),
            hosts=self._registry.hosts,
            sessions=len(self._targets),
            users=self._registry.users,
            logins=len(self._logins),
            timed=len(self._timed),
            paused=len(self._kept_waiting),
            submissions=self._submissions.inspect(),
        )

    # --- deciding -------------------------------------------------------------------------------------------------

    def _apply(self, connection: ClientConnection, step: Step, now: float) -> None:
        """Write what a session wants written and send what it wants sent; refusals come back into it."""
        steps = [step]
        for each in steps:
            for frame in each.write:
                self._push(connection, frame)
            if not each.send:
                continue
            submits = [message for message in each.send if type(message) is Submit]
            if submits:
                self._submissions.submit(submits, connection)
            if len(submits) == len(each.send):
                continue
            for message in each.send:
                match message:
                    case Login():
                        if not self._login(message, connection):
                            reason = "overloaded" if self._broker_link.is_ready else NO_BROKER
                            steps.append(connection.session.on_login_answer(1, reason, now))
                    case Close():
                        self._tell(message)
                    case Doubted():
                        self._on_doubt(message.host)
                    case Acknowledged():
                        self._deliveries.acknowledged(connection, message.ids)
                    case Question():
                        if not self._ask_for(connection, message):
                            steps.append(connection.session.on_report(refusal(message.token, "unreachable"), now))
        self._settle(connection)

    def _ask_for(self, connection: ClientConnection, question: Question) -> bool:
        """Ask the broker what a client asks; False: it cannot be asked now."""
        token, session, message = question
        return self._broker_link.ask("outcome", [session, message], partial(self._answered, connection, token))

    def _answered(self, connection: ClientConnection, token: int, status: int, value: Any) -> None:
        now = self._clock()
        if connection.session.window.since_s(token) is None:
            return  # it has gone, or was told that its time is over
        if status == UNANSWERED:
            self._apply(connection, connection.session.on_report(refusal(token, "unreachable"), now), now)
        elif status and value == "overloaded":
            self._apply(connection, connection.session.on_report(refusal(token, "overloaded"), now), now)
        else:
            recipients = value if not status and type(value) is dict else None
            self._apply(connection, connection.session.on_answer(token, recipients, now), now)

    def _login(self, message: Login, connection: ClientConnection) -> bool:
        if len(self._logins) >= self.limits.logins_in_flight or not self._broker_link.login(message):
            return False
        self._logins[message.session] = connection
        return True

    def _logged_in(self, message: LoggedIn, now: float) -> None:
        connection = self._logins.pop(message.session, None)
        if connection is None or connection.session.state is not State.AUTHENTICATING:
            if not message.status:
                self._tell(Close(message.session))
            return
        status, reason = message.status, message.reason
        if not status and not self._registry.log_in(connection):
            status, reason = 1, "overloaded"
            self._tell(Close(message.session))
        self._apply(connection, connection.session.on_login_answer(status, reason, now, message.retry_ms), now)

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
        connection = self._submits.pop(token, None)
        if connection is None:
            self._submissions.forget(token)
            return
        session = connection.session
        frame = session.window.report(token, status, reason, message, recipients, note)
        if frame is not None:
            self._push(connection, frame)
        if session.has_more:
            self._apply(connection, session.proceed(now), now)

    def _settle(self, connection: ClientConnection) -> None:
        """After anything that happened to a session: what follows from the state it is in now?"""
        session = connection.session
        if session.state is not State.OPEN:
            self._settle_state(connection, session)
        self._settle_reading(connection)

    def _settle_reading(self, connection: ClientConnection) -> None:
        """Who does not listen is not listened to. Nor is, where too much waits for reports, who has a fair share of it,
        but for those who have something to acknowledge: their word may be what a report waits for."""
        out = connection.out
        wants = connection.session.wants_input and not (out.in_flight and out.queued_bytes >= self.limits.out_pause)
        if (
            wants
            and self._submissions.is_full
            and not (
                connection.session.window.size_bytes < self.limits.fair_bytes or self._deliveries.awaits(connection)
            )
        ):
            self._kept_waiting[connection] = None
            wants = False
        if wants is not connection.reading:
            connection.read(wants)

    def _settle_state(self, connection: ClientConnection, session: Session) -> None:
        if session.deadline is not None:
            self._timed.add(connection)
        if session.state is not State.AUTHENTICATING:
            self._logins.pop(session.number, None)
        if not session.is_target:
            self._registry.log_out(session)
        if session.state is State.CLOSING:
            self._outbound.touch(connection)
        elif session.state is State.CLOSED and connection.abort_code is None:
            connection.abort_code = "not-connected"
            connection.abort("")

    # --- once a turn ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._soon(self.flush)

    def flush(self) -> None:
        """One write a connection, then one confirmation of everything that has ended by it."""
        try:
            self._outbound.flush(self._settle_reading)  # no more than this: what is settled must not be touched again
        finally:
            self._awake = False
        self._pay()
        if self._broker_link.keeps_up:
            for confirm in self._deliveries.confirm():
                self._tell(confirm)

    def _pay(self) -> None:
        """Say what waited for room on the link; read again from those who were kept waiting by it."""
        self._broker_link.flush()
        self._submissions.send_held()
        if self._kept_waiting and not self._submissions.is_full:
            kept, self._kept_waiting = self._kept_waiting, {}
            for connection in kept:
                self._settle_reading(connection)
