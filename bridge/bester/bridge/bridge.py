"""The bridge: who is connected, what the broker must hear, and what of its answers goes to whom. Pure.

It owns the sessions, the tokens of submitted messages, the ledger of deliveries and the bounds that concern more than
one connection. It reads no clock and opens no socket: connections are `Wire`s, the broker is a `BrokerPort`, and both
may be anything. Frames and confirmations are gathered and leave once a turn of the loop, in `flush`. It must never
say `good` before the bytes have left, and never wait for one connection while another could go on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from itertools import count
from typing import Any

from bester.bridge import native
from bester.bridge.ledger import Delivery, Ledger
from bester.bridge.limits import Limits
from bester.bridge.outqueue import Mark
from bester.bridge.ports import Answered, BrokerPort, Waiting, Wire
from bester.bridge.session import UNIX_HOST, Session, State, Step, refusal
from bester.broker.wire.address import is_loopback
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
    Open,
    Report,
    Submit,
    Welcome,
)


class Bridge:
    """The bridge of one broker. `clock` is monotonic seconds; `soon` calls once, in the next turn of the loop.

    `first_frame_bytes` says how large the first frame from a host may be (another server's message is its first
    frame); `forward` gets messages for servers that speak the native protocol; `notice` is told what nobody else is.
    """

    def __init__(
        self,
        limits: Limits,
        *,
        clock: Callable[[], float],
        soon: Callable[[Callable[[], None]], object],
        first_frame_bytes: Callable[[str], int] | None = None,
        forward: Callable[[Forward], None] | None = None,
        notice: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.limits = limits
        self.is_ready = False
        self._was_lost = False
        self.on_empty: Callable[[], None] | None = None
        self._clock = clock
        self._soon = soon
        self._first_frame_bytes = first_frame_bytes or (lambda host: limits.first_frame)
        self.forward = forward
        self._notice = notice
        self._port: BrokerPort | None = None
        self._numbers = count(1)
        self._tokens = count(1)
        self._wires: dict[int, Wire] = {}  # by session number: all of them
        self._targets: dict[int, Wire] = {}  # those that are delivery targets
        self._logins: dict[int, Wire] = {}  # those the broker is asked about
        self._submits: dict[int, Wire] = {}  # by token: who waits for the report
        self._asks: dict[int, Answered] = {}
        self._ledger = Ledger()
        self._owed: deque[Message] = deque()  # what the link had no room for and the broker must hear
        self._hosts: dict[str, int] = {}  # connections by address
        self._users: dict[str, int] = {}  # targets by user
        self._timed: set[Wire] = set()
        self._blocked: set[Wire] = set()
        self._backlog = 0  # bytes that wait for those; counted anew at each tick, and not too low in between
        self._full: dict[Wire, float] = {}  # who was refused a frame because too much waits for it, and since when
        self._dirty: list[Wire] = []
        self._awake = False

    # --- the link to the broker -----------------------------------------------------------------------------------

    def connect(self, port: BrokerPort) -> None:
        """Use this way to the broker; it counts once `ready` is called."""
        self._port = port

    def ready(self) -> None:
        """The broker knows us (again): tell it who is here. What an earlier life of it was asked is void."""
        if self.is_ready:
            self.lost("the broker was started again")
        if self._was_lost:
            self._was_lost = False
            self._notice("the broker is back")
        self.is_ready = True
        for number, wire in self._targets.items():
            assert wire.session.user is not None
            self._tell(Open(number, wire.session.user))

    def lost(self, why: str) -> None:
        """The link is lost: everything outstanding on it is void, and is said to be so. Clients stay."""
        if self.is_ready or not self._was_lost:
            self._notice(f"link to the broker lost: {why}")
        self._was_lost = True
        self.is_ready = False
        self._ledger = Ledger()
        self._owed.clear()
        submits, self._submits = self._submits, {}
        now = self._clock()
        for token, wire in submits.items():
            self._apply(wire, wire.session.reported(refusal(token, "unreachable"), now), now)
        logins, self._logins = self._logins, {}
        for wire in logins.values():
            self._apply(wire, wire.session.logged_in(1, "overloaded", now), now)
        asks, self._asks = self._asks, {}
        for answered in asks.values():
            answered(1, None)

    def receive(self, messages: Iterable[Message | Malformed]) -> None:
        """Do what the broker says, in order."""
        now = self._clock()
        for message in messages:
            if type(message) is Deliver:
                self._deliver(message, now)
            elif type(message) is Report:
                self._report(message.token, message.status, message.reason, message.message, message.recipients, now)
            else:
                self._receive_rarer(message, now)

    def _receive_rarer(self, message: Message | Malformed, now: float) -> None:
        match message:
            case LoggedIn():
                self._logged_in(message, now)
            case Answer():
                self._answered(message.token, message.status, message.value)
            case Forward():
                if self.forward is None:
                    self.forwarded(message.token, "failed:unreachable")
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
            self._report(*refusal(error.token, error.code), now)
        elif error.token is not None and error.op == OP_OF[Login]:
            self._logged_in(LoggedIn(error.token, 1, error.code), now)
        elif error.token is not None and error.op == OP_OF[Ask]:
            self._answered(error.token, 1, None)
        else:
            self._notice(f"the broker refused: {error.code}: {error.text}")

    def _tell(self, message: Message) -> None:
        """Say what the broker must hear while the link lives: now, or when there is room."""
        if not self.is_ready or self._port is None:
            return
        if not self._owed and self._port.send(message):
            return
        if len(self._owed) < self.limits.owed:
            self._owed.append(message)
        else:
            self._notice(f"the link to the broker is full; {type(message).__name__} dropped")

    def _pay(self) -> None:
        while self._owed and self._port is not None and self._port.send(self._owed[0]):
            self._owed.popleft()

    def ask(self, question: str, argument: Any, answered: Answered) -> None:
        """Ask the broker; `answered` gets status 1 where it cannot be asked."""
        token = next(self._tokens)
        self._asks[token] = answered
        if not self.is_ready or self._port is None or not self._port.send(Ask(token, question, argument)):
            del self._asks[token]
            answered(1, None)

    def _answered(self, token: int, status: int, value: Any) -> None:
        answered = self._asks.pop(token, None)
        if answered is not None:
            answered(status, value)

    def forwarded(self, token: int, outcome: str) -> None:
        """What became of a Forward."""
        self._tell(Forwarded(token, outcome))

    # --- connections ----------------------------------------------------------------------------------------------

    def admit(self, wire: Wire, host: str) -> bool:
        """Take a new connection in and give it its session; False: there is no place for it."""
        limits, now = self.limits, self._clock()
        bounded = host != UNIX_HOST and not is_loopback(host)
        here = self._hosts.get(host, 0)
        if len(self._wires) >= limits.max_connections or (bounded and here >= limits.max_connections_per_address):
            return False
        self._hosts[host] = here + 1
        number = next(self._numbers)
        wire.session = Session(number, host, limits, self._tokens, now, self._first_frame_bytes(host))
        self._wires[number] = wire
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
        for mark in marks:
            delivery, target = mark.what
            if delivery.left(target):
                self._delivered(delivery)
        if not wire.reading:
            self._settle(wire)

    def all_left(self, wire: Wire) -> None:
        """The last word of a closing session has left."""
        wire.session.last_word_left(self._clock())

    def stuck(self, wire: Wire) -> None:
        """The socket of a connection takes no more for now."""
        wire.stalled_since, wire.stalled_bytes = self._clock(), wire.unsent_bytes()
        if wire not in self._blocked:
            self._blocked.add(wire)
            self._backlog += wire.out.queued_bytes

    def gone(self, wire: Wire) -> None:
        """A connection is no more: nothing of it stays."""
        session = wire.session
        for token in session.outstanding:
            self._submits.pop(token, None)
        for message in session.lost().send:
            self._tell(message)
        self._forget_target(session)
        self._logins.pop(session.number, None)
        if self._wires.pop(session.number, None) is not None:
            _count_down(self._hosts, session.address)
        self._timed.discard(wire)
        self._blocked.discard(wire)
        self._full.pop(wire, None)
        for mark in wire.out.drop():
            delivery, target = mark.what
            if delivery.missed(target, wire.doom or "not-connected"):
                self._delivered(delivery)
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
        for wire in list(self._blocked):
            unsent = wire.unsent_bytes()
            if not wire.out.in_flight:
                self._blocked.discard(wire)
            elif unsent != wire.stalled_bytes:
                wire.stalled_since, wire.stalled_bytes = now, unsent
            elif now - wire.stalled_since > self.limits.stalled_s:
                self._doom(wire, f"took nothing for {self.limits.stalled_s:g} s")
        for wire, since in list(self._full.items()):
            if wire.out.queued_bytes <= self.limits.out_queue // 2:
                del self._full[wire]
            elif now - since > self.limits.stalled_s:
                self._doom(wire, f"was sent more than it took for {self.limits.stalled_s:g} s")
        self._backlog = sum(wire.out.queued_bytes for wire in self._blocked)
        self._pay()

    def shut_down(self) -> None:
        """Take no more from anybody; what is outstanding is still reported. `on_empty` tells the end of it."""
        now = self._clock()
        for wire in list(self._wires.values()):
            self._apply(wire, wire.session.shut_down(now), now)
        if not self._wires and self.on_empty is not None:
            self.on_empty()

    def abort(self) -> None:
        """Cut whoever is left."""
        for wire in list(self._wires.values()):
            wire.abort("")

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
            submits = [message for message in each.send if type(message) is Submit]  # they come before all else
            if submits:
                steps += [wire.session.reported(report, now) for report in self._submit(submits, wire)]
            for message in each.send[len(submits) :]:
                if type(message) is not Login:
                    self._tell(message)
                elif not self._login(message, wire):
                    steps.append(wire.session.logged_in(1, "overloaded", now))
        self._settle(wire)

    def _submit(self, messages: list[Submit], wire: Wire) -> list[Report]:
        """Give the broker a connection's messages; returns the reports on those it cannot be given."""
        if not self.is_ready or self._port is None:
            return [refusal(message.token, "unreachable") for message in messages]
        for message in messages:
            self._submits[message.token] = wire
        taken = 0 if self._owed else self._port.send_all(messages)
        left = messages[taken:]
        for message in left:
            del self._submits[message.token]
        return [refusal(message.token, "overloaded") for message in left]

    def _login(self, message: Login, wire: Wire) -> bool:
        if not self.is_ready or self._port is None or len(self._logins) >= self.limits.logins_in_flight:
            return False
        self._logins[message.session] = wire
        if self._owed or not self._port.send(message):
            del self._logins[message.session]
            return False
        return True

    def _logged_in(self, message: LoggedIn, now: float) -> None:
        wire = self._logins.pop(message.session, None)
        if wire is None or wire.session.state is not State.AUTHENTICATING:
            if not message.status:
                self._tell(Close(message.session))
            return
        status, reason, user = message.status, message.reason, wire.session.user
        assert user is not None
        here = self._users.get(user, 0)
        if not status and here >= self.limits.max_connections_per_user:
            status, reason = 1, "overloaded"
            self._tell(Close(message.session))
        if not status:
            self._users[user] = here + 1
            self._targets[message.session] = wire
        self._apply(wire, wire.session.logged_in(status, reason, now), now)

    def _report(
        self,
        token: int,
        status: int,
        reason: str | None,
        message: str | None,
        recipients: dict[str, str] | None,
        now: float,
    ) -> None:
        wire = self._submits.pop(token, None)
        if wire is None:
            return
        session = wire.session
        frame = session.report(token, status, reason, message, recipients)
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
        """Who does not listen is not listened to."""
        out = wire.out
        wants = wire.session.wants_input and not (out.in_flight and out.queued_bytes >= self.limits.out_pause)
        if wants is not wire.reading:
            wire.read(wants)

    def _settle_state(self, wire: Wire, session: Session) -> None:
        if session.deadline is not None:
            self._timed.add(wire)
        if session.state is not State.AUTHENTICATING:
            self._logins.pop(session.number, None)
        if not session.is_target:
            self._forget_target(session)
        if session.state is State.CLOSING:
            self._touch(wire)
        elif session.state is State.CLOSED and wire.doom is None:
            wire.doom = "not-connected"
            wire.abort("")

    def _forget_target(self, session: Session) -> None:
        if self._targets.pop(session.number, None) is not None and session.user is not None:
            _count_down(self._users, session.user)

    # --- delivering -----------------------------------------------------------------------------------------------

    def _deliver(self, message: Deliver, now: float) -> None:
        """Write a delivery's frames. Where all of them go to the very connection whose report follows them, the order
        of the stream is all the confirmation needed."""
        serial, id_, type_, body, targets, token, meta = message
        head, tail = native.envelope(id_, type_, body, meta)
        owner = None if token is None else self._submits.get(token)
        if (
            owner is not None and len(targets) == 1 and len(targets[0]) == 2
            and self._targets.get(targets[0][1]) is owner
            and self._offer(owner, native.delivered(head, targets[0][0], tail))
        ):  # fmt: skip
            # To the sender alone, as most answers are.
            assert token is not None
            self._ledger.at_once(serial)
            self._report(token, 0, None, meta.get("message"), None, now)
            return
        number = 0 if owner is None else owner.session.number
        delivery: Delivery | None = None
        completes = meta.get("message")
        for target in targets:
            frame = native.delivered(head, target[0], tail)
            if owner is not None and number in target[1:] and number in self._targets and self._offer(owner, frame):
                for session in target[1:]:
                    wire = self._targets.get(session)
                    if wire is not None and wire is not owner:
                        self._offer(wire, frame)
                continue
            if delivery is None:
                delivery = self._ledger.begin(serial, token, completes)
            self._expect(delivery, target, frame)
        if delivery is None:
            self._ledger.at_once(serial)
            self._wake()
            if token is not None:
                self._report(token, 0, None, completes, None, now)
        elif delivery.release():
            self._delivered(delivery)

    def _expect(self, delivery: Delivery, target: list[int], frame: tuple[bytes, ...]) -> None:
        """Write one target's frame to its sessions, each with a mark behind it."""
        reason = "not-connected"
        reached = 0
        for session in target[1:]:
            wire = self._targets.get(session)
            if wire is None:
                continue
            if self._offer(wire, frame):
                wire.out.mark((delivery, target[0]))
                reached += 1
            else:
                reason = wire.doom or "overloaded"
        if reached:
            delivery.expect(target[0], reached)
        else:
            delivery.fail(target[0], reason)

    def _delivered(self, delivery: Delivery) -> None:
        """A delivery has ended: it is confirmed at the end of the turn, and the message it completes is reported."""
        delivery.ledger.end(delivery)
        if delivery.ledger is not self._ledger:
            return
        self._wake()
        if delivery.token is not None and not delivery.failed:
            self._report(delivery.token, 0, None, delivery.message, None, self._clock())

    def _offer(self, wire: Wire, frame: tuple[bytes, ...]) -> bool:
        """Write a frame that somebody else sent, in pieces; False where too much waits for the connection already."""
        if wire.doom is not None:
            return False
        out = wire.out
        queued = out.pushed_bytes - out.left_bytes
        if queued:
            limits, size = self.limits, sum(map(len, frame))
            if queued + size > limits.out_queue or (
                out.in_flight and queued >= limits.out_pause and self._backlog + size > limits.out_total
            ):
                self._full.setdefault(wire, self._clock())
                return False
            if out.in_flight:
                self._backlog += size
        for piece in frame:
            out.push(piece)
        if not wire.dirty:
            self._touch(wire)
        return True

    def _push(self, wire: Wire, frame: bytes) -> None:
        """Write an answer to the connection's own words."""
        if wire.doom is not None:
            return
        out = wire.out
        queued = out.pushed_bytes - out.left_bytes
        if queued and queued + len(frame) > self.limits.out_answers:
            self._doom(wire, f"{queued} bytes wait for it and it does not read")
            return
        out.push(frame)
        if not wire.dirty:
            self._touch(wire)

    def _doom(self, wire: Wire, why: str) -> None:
        """The slow-consumer policy: nobody else waits for one who does not read."""
        wire.doom = "overloaded"
        wire.abort(why)

    # --- once a turn ----------------------------------------------------------------------------------------------

    def _touch(self, wire: Wire) -> None:
        if not wire.dirty:
            wire.dirty = True
            self._dirty.append(wire)
            self._wake()

    def _wake(self) -> None:
        if not self._awake:
            self._awake = True
            self._soon(self.flush)

    def flush(self) -> None:
        """One write a connection, then one confirmation of everything that has ended by it."""
        try:
            while self._dirty:
                dirty, self._dirty = self._dirty, []
                for wire in dirty:
                    wire.dirty = False
                    wire.flush()
                    if wire.out.in_flight:  # no more than this: what is settled here must not become dirty again
                        self._settle_reading(wire)
        finally:
            self._awake = False
        self._pay()
        if not self._owed:
            for confirm in self._ledger.confirm():
                self._tell(confirm)


def _count_down(counts: dict[str, int], key: str) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]
