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

from bester.bridge.delivering import Delivering
from bester.bridge.holding import Holding
from bester.bridge.limits import Limits
from bester.bridge.outqueue import Mark
from bester.bridge.places import Places
from bester.bridge.ports import UNANSWERED, Answered, BrokerPort, Waiting, Wire
from bester.bridge.session import NO_BROKER, Acknowledged, Doubted, Session, Step, refusal
from bester.bridge.states import State
from bester.bridge.upstream import Upstream
from bester.bridge.window import Load, Question, Window
from bester.bridge.writing import Writing
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
        self._places = Places(limits)
        self._wires, self._targets = self._places.wires, self._places.targets  # by session number
        self._logins: dict[int, Wire] = {}  # those the broker is asked about
        self._timed: set[Wire] = set()
        self._awake = False
        self._kept_waiting: dict[Wire, None] = {}  # not read from because too much waits for reports in all
        self._upstream = Upstream(limits, self._tokens, notice)
        self._load = Load(limits)
        self._holding = Holding(limits, self._load, self._upstream, self._wake)
        self._submits = self._holding.submits  # by token: who waits for the report
        self._writing = Writing(limits, clock, self._wake)
        self._delivering = Delivering(
            limits, self._targets, self._submits, self._writing, self._report, self._wake, clock
        )
        self._push, self._tell = self._writing.push, self._upstream.tell

    # --- the link to the broker -----------------------------------------------------------------------------------

    def connect(self, port: BrokerPort) -> None:
        """Use this way to the broker; it counts once `ready` is called."""
        self._upstream.port = port

    def ready(self) -> None:
        """The broker knows us (again): tell it who is here, and what it has not reported on."""
        if self.is_ready:
            self.lost("the broker was started again")
        self._upstream.ready()
        for number, wire in self._targets.items():
            assert wire.session.user is not None
            self._tell(Open(number, wire.session.user))
        for announced in self._holding.ready():
            self._tell(announced)
        self._pay()

    def lost(self, why: str) -> None:
        """The link is lost. Clients stay, and their messages are held; who was about to log in may try again."""
        self._upstream.lost(why)
        self._delivering.forget()
        self._holding.lost()
        now = self._clock()
        logins, self._logins = self._logins, {}
        for wire in logins.values():
            self._apply(wire, wire.session.logged_in(1, NO_BROKER, now), now)

    def receive(self, messages: Iterable[Message | Malformed]) -> None:
        """Do what the broker says, in order."""
        now = self._clock()
        reports = 0
        for message in messages:
            if type(message) is Deliver:
                self._delivering.deliver(message, now)
            elif type(message) is Report:
                reports += 1
                token, status, reason, id_, recipients, note = message
                self._report(token, status, reason, id_, recipients, now, note)
            else:
                if reports:  # it may be the end of the link's life, and they belong to that
                    self._delivering.reported(reports)
                    reports = 0
                self._receive_rarer(message, now)
        if reports:
            self._delivering.reported(reports)

    def _receive_rarer(self, message: Message | Malformed, now: float) -> None:
        match message:
            case LoggedIn():
                self._logged_in(message, now)
            case Answer():
                self._upstream.answered(message.token, message.status, message.value)
            case Forward():
                if self.forward is None:
                    self.forwarded(message.token, "failed:unreachable", {"unsent": True})
                else:
                    self.forward(message)
            case Close():
                wire = self._targets.get(message.session)
                if wire is not None:
                    self._apply(wire, wire.session.shut_down(now), now)
            case Error():
                self._refused(message, now)
            case Welcome():  # on a direct link; that of a FabricLink comes as `ready`
                self.ready()
            case Goodbye():
                self.lost("it said goodbye")
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
            self._upstream.answered(error.token, 1, None)
        else:
            self._notice(f"the broker refused: {error.code}: {error.text}")

    def ask(self, question: str, argument: Any, answered: Answered) -> None:
        """Ask the broker; `answered` gets status UNANSWERED where it cannot be asked."""
        if not self._upstream.ask(question, argument, answered):
            answered(UNANSWERED, None)

    def forwarded(self, token: int, outcome: str, meta: Meta = {}) -> None:  # noqa: B006 (it is never written to)
        """What became of a Forward; meta as a Forwarded has it."""
        self._tell(Forwarded(token, outcome, meta))

    # --- connections ----------------------------------------------------------------------------------------------

    def admit(self, wire: Wire, host: str) -> bool:
        """Take a new connection in and give it its session; False: there is no place for it."""
        if not self._places.has_one(host):
            return False
        window, first_bytes = Window(self.limits, self._load), self._first_frame_bytes(host)
        wire.session = Session(
            next(self._numbers), host, self.limits, self._tokens, window, self._clock(), first_bytes,
            in_doubt=first_bytes < self.limits.max_frame and self._in_doubt(host),
        )  # fmt: skip
        self._places.take(wire)
        self._timed.add(wire)
        return True

    def received(self, wire: Wire, data: bytes) -> None:
        """Bytes came on a connection."""
        now = self._clock()
        self._apply(wire, wire.session.received(data, now), now)

    def ended(self, wire: Wire) -> None:
        """The peer of a connection will send nothing more."""
        now = self._clock()
        self._apply(wire, wire.session.ended(now), now)

    def left(self, wire: Wire, marks: list[Mark[Waiting]]) -> None:
        """A chunk has left, and with it what these marks stand for."""
        self._delivering.left(wire, marks)
        if not wire.reading:
            self._settle(wire)

    def all_left(self, wire: Wire) -> None:
        """The last word of a closing session has left."""
        wire.session.last_word_left(self._clock())

    def stuck(self, wire: Wire) -> None:
        """The socket of a connection takes no more for now."""
        self._writing.stuck(wire)

    def gone(self, wire: Wire) -> None:
        """A connection is no more: nothing of it stays but what it has said."""
        session = wire.session
        self._holding.gone(session)
        for message in session.lost().send:
            if type(message) is Close:
                self._holding.close(message)
        self._places.leave(session)
        self._logins.pop(session.number, None)
        self._timed.discard(wire)
        if self._kept_waiting:  # with it goes what its window held
            self._kept_waiting.pop(wire, None)
            self._wake()
        self._writing.gone(wire)
        self._delivering.gone(wire)
        if not self._wires and self.on_empty is not None:
            self.on_empty()

    def tick(self) -> None:
        """Call about twice a second: deadlines, readers that do not read, words that are owed."""
        now = self._clock()
        for wire in list(self._timed):
            if wire.session.deadline is None:
                self._timed.discard(wire)
            elif now >= wire.session.deadline:
                self._apply(wire, wire.session.tick(now), now)
        self._writing.tick(now)
        self._delivering.tick(now)
        for token in self._holding.late(now):
            self._report(token, 1, "unreachable", None, {}, now)
        self._pay()

    def shut_down(self) -> None:
        """Take no more from anybody; what is outstanding is still reported. `on_empty` tells the end of it."""
        now = self._clock()
        for wire in list(self._wires.values()):
            self._apply(wire, wire.session.shut_down(now), now)
        if not self._wires and self.on_empty is not None:
            self.on_empty()

    def give_up(self) -> None:
        """Wait for no more reports: whoever still does is told that there will be none."""
        now = self._clock()
        reason = "timeout" if self.is_ready else "unreachable"
        for wire in list(self._wires.values()):
            self._apply(wire, wire.session.give_up(reason, now), now)

    def abort(self) -> None:
        """Cut whoever is left."""
        for wire in list(self._wires.values()):
            wire.abort("")

    @property
    def is_ready(self) -> bool:
        """Whether the broker knows us now."""
        return self._upstream.is_ready

    @property
    def connections(self) -> int:
        """How many connections there are."""
        return len(self._wires)

    # --- deciding -------------------------------------------------------------------------------------------------

    def _apply(self, wire: Wire, step: Step, now: float) -> None:
        """Write what a session wants written and send what it wants sent; refusals come back into it."""
        steps = [step]
        for each in steps:
            for frame in each.write:
                self._push(wire, frame)
            if not each.send:
                continue
            submits = [message for message in each.send if type(message) is Submit]
            if submits:
                self._holding.submit(submits, wire)
            if len(submits) == len(each.send):
                continue
            for message in each.send:
                match message:
                    case Login():
                        if not self._login(message, wire):
                            reason = "overloaded" if self._upstream.is_ready else NO_BROKER
                            steps.append(wire.session.logged_in(1, reason, now))
                    case Close():
                        self._tell(message)
                    case Doubted():
                        self._on_doubt(message.host)
                    case Acknowledged():
                        self._delivering.acknowledged(wire, message.ids)
                    case Question():
                        if not self._ask_for(wire, message):
                            steps.append(wire.session.reported(refusal(message.token, "unreachable"), now))
        self._settle(wire)

    def _ask_for(self, wire: Wire, question: Question) -> bool:
        """Ask the broker what a client asks; False: it cannot be asked now."""
        token, session, message = question
        return self._upstream.ask("outcome", [session, message], partial(self._answered, wire, token))

    def _answered(self, wire: Wire, token: int, status: int, value: Any) -> None:
        now = self._clock()
        if wire.session.window.since_s(token) is None:
            return  # it has gone, or was told that its time is over
        if status == UNANSWERED:
            self._apply(wire, wire.session.reported(refusal(token, "unreachable"), now), now)
        elif status and value == "overloaded":
            self._apply(wire, wire.session.reported(refusal(token, "overloaded"), now), now)
        else:
            recipients = value if not status and type(value) is dict else None
            self._apply(wire, wire.session.answered(token, recipients, now), now)

    def _login(self, message: Login, wire: Wire) -> bool:
        if len(self._logins) >= self.limits.logins_in_flight or not self._upstream.login(message):
            return False
        self._logins[message.session] = wire
        return True

    def _logged_in(self, message: LoggedIn, now: float) -> None:
        wire = self._logins.pop(message.session, None)
        if wire is None or wire.session.state is not State.AUTHENTICATING:
            if not message.status:
                self._tell(Close(message.session))
            return
        status, reason = message.status, message.reason
        if not status and not self._places.log_in(wire):
            status, reason = 1, "overloaded"
            self._tell(Close(message.session))
        self._apply(wire, wire.session.logged_in(status, reason, now, message.retry_ms), now)

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
        wire = self._submits.pop(token, None)
        if wire is None:
            self._holding.forget(token)
            return
        session = wire.session
        frame = session.window.report(token, status, reason, message, recipients, note)
        if frame is not None:
            self._push(wire, frame)
        if session.has_more:
            self._apply(wire, session.proceed(now), now)

    def _settle(self, wire: Wire) -> None:
        """After anything that happened to a session: what follows from the state it is in now?"""
        session = wire.session
        if session.state is not State.OPEN:
            self._settle_state(wire, session)
        self._settle_reading(wire)

    def _settle_reading(self, wire: Wire) -> None:
        """Who does not listen is not listened to. Nor is, where too much waits for reports, who has a fair share of it,
        but for those who have something to acknowledge: their word may be what a report waits for."""
        out = wire.out
        wants = wire.session.wants_input and not (out.in_flight and out.queued_bytes >= self.limits.out_pause)
        if (
            wants
            and self._holding.is_full
            and not (wire.session.window.size_bytes < self.limits.fair_bytes or self._delivering.awaits(wire))
        ):
            self._kept_waiting[wire] = None
            wants = False
        if wants is not wire.reading:
            wire.read(wants)

    def _settle_state(self, wire: Wire, session: Session) -> None:
        if session.deadline is not None:
            self._timed.add(wire)
        if session.state is not State.AUTHENTICATING:
            self._logins.pop(session.number, None)
        if not session.is_target:
            self._places.log_out(session)
        if session.state is State.CLOSING:
            self._writing.touch(wire)
        elif session.state is State.CLOSED and wire.doom is None:
            wire.doom = "not-connected"
            wire.abort("")

    # --- once a turn ----------------------------------------------------------------------------------------------

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._soon(self.flush)

    def flush(self) -> None:
        """One write a connection, then one confirmation of everything that has ended by it."""
        try:
            self._writing.flush(self._settle_reading)  # no more than this: what is settled must not be touched again
        finally:
            self._awake = False
        self._pay()
        if self._upstream.keeps_up:
            for confirm in self._delivering.confirm():
                self._tell(confirm)

    def _pay(self) -> None:
        """Say what waited for room on the link; read again from those who were kept waiting by it."""
        self._upstream.pay()
        self._holding.pay()
        if self._kept_waiting and not self._holding.is_full:
            kept, self._kept_waiting = self._kept_waiting, {}
            for wire in kept:
                self._settle_reading(wire)
