"""A native connection as a state table: bytes and time in, frames and messages for the broker out. Pure.

A session never touches a socket, a clock or another session. The shell calls `on_bytes`, `on_peer_ended` and
`on_connection_lost`, the bridge `on_login_answer`, `on_report` and `on_answer`; both carry out the returned `Step`:
first write the frames, then send the messages. A peer's mistake is answered with a frame and never raises.

Frames are handled as far as the caller's ration of units goes (a unit is a frame, or 4 KiB of it); the rest is held for
`proceed`. `spent` tells the units that the last call has used.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence

from bester.bridge import native, native_writing
from bester.bridge.builtin_commands import CLOSE, carry_out
from bester.bridge.frames import Splitter
from bester.bridge.limits import Limits
from bester.bridge.meter import Meter
from bester.bridge.senders import FREE_COPIES, MOST_CHARGED
from bester.bridge.states import ANNOUNCED, TARGETS, TRANSITIONS, Event, State
from bester.bridge.steps import Doubted, SpokeTls, Step, guesser, nothing, refusal
from bester.bridge.submission import Submission
from bester.bridge.window import OVERHEAD_BYTES, Window
from bester.broker.wire.messages import MAX_TYPE, Close, Login, Meta, Report, Submit
from bester.broker.wire.type_names import RESERVED_TYPES

ALL = 1 << 62
"""Ration without a bound."""
CUT_BYTES = 8_192
"""Bytes of waiting input that are cut into frames at a time: about a sender's turn of small messages."""
UNIT_BYTES_LOG2 = 12
"""Each 4 KiB of a frame cost as much as a frame: a large body is copied, decoded and written."""
NO_BROKER = "unreachable"
"""Reason of a refused login without a broker to check the password: the client may try again."""
TLS_HANDSHAKE = 0x0316
"""First two bytes of TLS, as the low half of a frame's length."""
TIME_OF = {
    State.NEW: "first_frame_s", State.AUTHENTICATING: "login_s", State.DRAINING: "drain_s", State.SERVER: "server_s"
}  # fmt: skip
"""Bound that a connection has reached whose time is up in this state."""
_OPEN, _AUTHENTICATING = State.OPEN, State.AUTHENTICATING
_Sent = native.Sent


def _is_ack(body: bytes) -> bool:
    """Return whether a frame is an acknowledgement. An unusual spelling of one is not found here, and waits for its
    turn."""
    if b'"ack"' not in body:
        return False
    sent = native.later(body)
    command = native.builtin(sent.data) if type(sent) is _Sent and sent.type == "builtin" else None
    return command is not None and command.type == "ack"


class Session:
    """State of one connection. `number` is unique in the bridge's life, `address` the peer's host, `tokens` the
    bridge's rising tokens; unreported messages are counted in `window`. `in_doubt`: the first frame may come from a
    listed server. `certificate` are the names for which the peer of a TLS connection has shown a certificate. `held`
    are the frames that wait, and `parked` the bytes behind them; most have neither. The page docs/session.md lists the
    fields."""

    __slots__ = (
        "_fault",
        "_held_bytes",
        "_in_doubt",
        "_limits",
        "_meter",
        "_rates",
        "_stopping",
        "_tokens",
        "account",
        "acks",
        "address",
        "certificate",
        "deadline",
        "held",
        "number",
        "parked",
        "peer_ended",
        "spent",
        "splitter",
        "state",
        "user",
        "window",
    )

    def __init__(
        self, number: int, address: str, limits: Limits, tokens: Iterator[int], window: Window, now: float,
        first_limit_bytes: int, *, in_doubt: bool = False, meter: Meter | None = None,
    ) -> None:  # fmt: skip
        self.number = number
        self.address = address
        self.certificate: tuple[str, ...] | None = None
        self.state = State.NEW
        self.user: str | None = None
        self.account: str | None = None
        self.acks = False  # the client acknowledges deliveries
        self.deadline: float | None = now + limits.first_frame_s
        self.peer_ended = False
        self.window = window
        self._limits = limits
        self._in_doubt = in_doubt
        self._meter = meter
        self._rates = meter if meter is not None and meter.limits else None  # None: no look at each message
        self._tokens = tokens
        self.splitter = Splitter(limits.max_frame, first_limit_bytes)
        self.held: deque[bytes] | None = None  # frames not handled yet: during login, or with the window full
        self._held_bytes = 0
        self.parked = b""  # bytes that wait to be read, behind the held frames
        self.spent = 0
        self._stopping = False  # `stop` follows the held frames
        self._fault: native.Fault | None = None  # the fault to report at the stop

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def wants_input(self) -> bool:
        """Return whether to read on. In states that ignore bytes, reading on still finds the end of the stream."""
        if self.state is _AUTHENTICATING or self.parked:
            return False
        return not self.held or (self.acks and self._held_bytes < self._limits.ahead_bytes)

    @property
    def has_waiting(self) -> bool:
        """Return whether bytes or frames wait: for room in the window, or for their turn."""
        return bool(self.parked) or (bool(self.held) and self.state is _OPEN)

    @property
    def is_ready(self) -> bool:
        """Return whether bytes or frames wait that may be handled now, by `proceed`. Frames come first: bytes behind
        frames that wait for room wait, too."""
        if not self.held:
            return bool(self.parked)
        has_room = self.state is _OPEN and not self.window.is_full
        if self.state is _OPEN and not self.acks:
            return has_room
        return has_room or bool(self.parked)

    @property
    def is_target(self) -> bool:
        """Return whether the broker may send messages to this session."""
        return self.state in TARGETS

    @property
    def is_unanswered(self) -> bool:
        """Return whether this is a native server's connection that ended before its report: the peer must not take the
        end for a peaceful one, and sends the message again."""
        return self.state is State.CLOSED and bool(self.window)

    def on_certificate(self, certificate: tuple[str, ...], first_limit_bytes: int) -> None:
        """Note the certificate of the peer after the TLS handshake, and the bound of the first frame by it."""
        self.certificate = certificate
        self.splitter = Splitter(self._limits.max_frame, first_limit_bytes)

    # --- what happens to the connection ---------------------------------------------------------------------------

    def park(self, data: bytes) -> None:
        """Keep bytes of the peer until `proceed`: it is not their turn."""
        self.parked = self.parked + data if self.parked else data

    def on_bytes(self, data: bytes, now: float, ration: int = ALL) -> Step:
        """Handle bytes of the peer."""
        step = nothing()
        if self.parked or (len(data) > CUT_BYTES and self.state is _OPEN):
            self.spent = 0
            waited = bool(self.parked)
            self.park(data)
            if not waited:
                self._read_parked(step, now, ration)
            return step
        self.spent = len(data) >> UNIT_BYTES_LOG2
        if not self._stopping:
            self._read(data, step, now, ration)
        return step

    def _read(self, data: bytes, step: Step, now: float, ration: int) -> None:
        was_open = self.state is _OPEN
        if not was_open and self.state not in (State.NEW, State.AUTHENTICATING):
            return
        bodies = self.splitter.feed(data)
        if not was_open and self.state is State.NEW and bodies:
            self.spent += 1
            self._first(bodies.pop(0), step, now)
        if bodies and (was_open or self.state is not State.CLOSING):
            left = ration - self.spent if ration > self.spent else 1
            self._take(bodies, step, now, ration and left)
        if (refused := self.splitter.refused) is not None:
            reason = "frame-too-large" if refused else "malformed"
            if refused and self._meter is not None and self.state is not State.NEW:
                self._meter.reached["max_frame"] += 1
            if self.state is State.NEW:
                if self._meter is not None:
                    self._meter.first_frames += 1
                if refused & 0xFFFF == TLS_HANDSHAKE:
                    step.send.append(SpokeTls())
            if self._in_doubt and self.state is State.NEW and 0 < refused <= self._limits.max_frame:
                reason = "overloaded"  # a server that is listed keeps its message, and tries again
                step.send.append(Doubted(self.address))
            self._stop(native.Fault(native.NULL, True, "", reason), step, now)

    def _read_parked(self, step: Step, now: float, ration: int = 0) -> None:
        """Read the parked bytes; their frames are handled as far as the ration goes, or held.

        Where the ration is what ends the reading, bytes stay parked: frames that are cut long before their turn
        cost more memory than their bytes, and have left the processor's caches when they are handled."""
        data, self.parked = self.parked, b""
        start, end = 0, len(data)
        while start < end and not self._stopping:
            stop = end
            if ration and self.state is _OPEN and not self.acks:
                if self.held is not None or self.spent >= ration:
                    self.parked = data[start:] if start else data
                    return
                stop = min(end, start + max(CUT_BYTES, self.splitter.needed_bytes - self.splitter.waiting_bytes))
            piece = data[start:stop] if stop - start < end else data
            self.spent += len(piece) >> UNIT_BYTES_LOG2
            self._read(piece, step, now, ration)
            start = stop

    def on_peer_ended(self, now: float) -> Step:
        """Handle the end of the peer's stream; the peer may still read."""
        step = nothing()
        self._read_parked(step, now)
        self.peer_ended = True
        if self.state is State.SERVER and self.deadline is not None:  # the peer may be gone: free its slot sooner
            self.deadline = min(self.deadline, now + self._limits.drain_s)
        self._stop(None, step, now)
        return step

    def on_connection_lost(self) -> Step:
        """End the session of a lost connection."""
        step = nothing()
        self._leave("lost", step, None)
        self.held, self.parked = None, b""
        self.window.clear()
        return step

    def end_frame(self, reason: str, now: float) -> Step:
        """End the stream at its unfinished frame, which is dropped, and report why; messages before it go on."""
        step = nothing()
        self._read_parked(step, now)
        self._stop(
            native.Fault(native.AUTH_ID if self.state is State.NEW else native.NULL, True, "", reason), step, now
        )
        return step

    def shut_down(self, now: float) -> Step:
        """Take no more frames, as if the stream had ended: the bridge shuts down."""
        step = nothing()
        self._read_parked(step, now)
        if self.state is State.AUTHENTICATING:
            refused = self.on_login_answer(1, NO_BROKER, now)
            return Step(step.write + refused.write, step.send + refused.send)
        self._stop(None, step, now)
        return step

    def tick(self, now: float) -> Step:
        """Handle the state's deadline; call at or after `deadline`."""
        step = nothing()
        if self.deadline is None or now < self.deadline:
            return step
        if self._meter is not None and self.state in TIME_OF:
            self._meter.reached[TIME_OF[self.state]] += 1
        if self.state in (State.NEW, State.AUTHENTICATING):
            step.write.append(native_writing.report(native.AUTH_ID, 1, "timeout"))
        elif self.state is not State.CLOSING and self.state is not State.SERVER:
            self._refuse_all("timeout", step)
        self._leave("timeout", step, now)
        return step

    def give_up(self, reason: str, now: float) -> Step:
        """Refuse every unreported message and every held frame for `reason`: the bridge ends now.

        Another server gets no report, for its message may be carried out yet, or again: `is_unanswered`.
        """
        step = nothing()
        if self.state is State.SERVER:
            self._leave("timeout", step, now)
            return step
        while self.window or self.is_ready:
            self._refuse_all(reason, step)
            self.window.is_full = False  # whatever the sender has unreported elsewhere
            more = self.proceed(now)
            step.write.extend(more.write)
            step.send.extend(each for each in more.send if type(each) is Close)
        return step

    def _refuse_all(self, reason: str, step: Step) -> None:
        for token in self.window.tokens:
            frame = self.window.report(*refusal(token, reason))
            assert frame is not None
            step.write.append(frame)

    def on_all_sent(self, now: float) -> None:
        """Give the peer a moment to read: everything was sent."""
        if self.state is State.CLOSING:
            self.deadline = now + self._limits.linger_s

    # --- what the broker says -------------------------------------------------------------------------------------

    def on_login_answer(
        self, status: int, reason: str | None, now: float, retry_ms: int | None = None, ration: int = ALL
    ) -> Step:  # fmt: skip
        """Handle the broker's answer to the login, or the bridge's own where a bound is reached. A refused session was
        never announced, so no Close follows. `retry_ms`: wait before the next try that may succeed."""
        step = nothing()
        if self.state is not State.AUTHENTICATING:
            return step
        if status:
            step.write.append(native_writing.refused(reason or "authentication-failed", retry_ms))
            self.held = None
            self._go("refused", now)
            return step
        self._go("accepted", now)
        step.write.append(native_writing.logged_in(self._limits.max_frame))
        self._continue(step, now, ration)
        return step

    def on_report(self, report: Report, now: float, ration: int = ALL) -> Step:
        """Handle a report on a message or a question: return its frame, and the frames and messages that found room by
        it."""
        frame = self.window.report(*report)
        step = self.proceed(now, ration)
        if frame is not None:
            step.write.insert(0, frame)
        return step

    def on_answer(self, token: int, recipients: dict[str, str] | None, now: float, ration: int = ALL) -> Step:
        """Handle the broker's answer to a question; None: the user has no such message."""
        asked = self.window.answer(token)
        if asked is None:
            return nothing()
        step = self.proceed(now, ration)
        step.write.insert(0, native_writing.outcomes(asked.id, asked.question.message, recipients))
        return step

    def on_password_changed(self, token: int, now: float) -> Step:
        """Handle the broker's answer that a password was changed."""
        asked = self.window.answer(token)
        if asked is None:
            return nothing()
        step = self.proceed(now)
        step.write.insert(0, native_writing.done(asked.id))
        return step

    @property
    def has_more(self) -> bool:
        """Return whether a report may let something go on: held frames, or an end that waited for the report."""
        return self.held is not None or self.state is not _OPEN

    def proceed(self, now: float, ration: int = ALL) -> Step:
        """Handle held frames and parked bytes, or finish."""
        self.spent = 0
        step = nothing()
        if self.held is not None:
            self._continue(step, now, ration)
        has_ration = ration > self.spent
        if self.parked and (has_ration or self.acks or self.state is not _OPEN):
            self._read_parked(step, now, ration if has_ration else 0)
        elif not self.parked and self.held is None and not self.window and self.state is not State.OPEN:
            self._leave("finished", step, now)
        return step

    # --- frames ---------------------------------------------------------------------------------------------------

    def _first(self, body: bytes, step: Step, now: float) -> None:
        frame = native.first(body)
        if isinstance(frame, native.Client):
            self.user, self.acks = frame.user, frame.acks
            self._go("login", now)
            if frame.message:
                self._hold(body)
            step.send.append(Login(self.number, frame.user, frame.password, guesser(self.address)))
        elif isinstance(frame, native.Server) and len(frame.sent.type) > MAX_TYPE:
            self._stop(native.Fault(frame.sent.id, True, "", "unknown-type"), step, now)
        elif isinstance(frame, native.Server) and frame.sent.type == "dummy":  # a ping, of a server as of a client
            step.write.append(native_writing.pong(frame.sent.id))
            self._stop(None, step, now)
        elif isinstance(frame, native.Server):
            self._go("server", now)
            meta: Meta = {**frame.claims, "scope": "server", "address": self.address}
            if self.certificate is not None:
                meta["certificate"] = list(self.certificate)
            type_, data, id_ = frame.sent.type, frame.sent.data, frame.sent.id
            submit = Submit(next(self._tokens), None, type_, data, meta)
            size = len(data) + len(id_) + len(type_) + OVERHEAD_BYTES
            self.window.table[submit.token] = Submission(submit, id_, size, now, self.number)
            self.window.order.append(submit.token)
            self.window.enter(1, size)
            step.send.append(submit)
        else:
            self._stop(frame, step, now)

    def _take(self, bodies: list[bytes], step: Step, now: float, ration: int) -> None:
        """Handle frames in order, as far as state, window and ration allow; hold the rest."""
        handled = 0
        if self.held is None and self.state is _OPEN:
            handled = self._handle(bodies if len(bodies) <= ration else bodies[:ration], step, now)
            if self.state is not _OPEN:  # a frame was the last one
                return
            self.spent += handled
        if handled < len(bodies) and self.state in (State.OPEN, State.AUTHENTICATING):
            if not self.acks:
                self._hold_all(bodies[handled:] if handled else bodies)
                return
            for body in bodies[handled:] if handled else bodies:
                if self.state is _OPEN and _is_ack(body):  # may be what makes room in the window
                    self._other(native.later(body), step, now)
                else:
                    self._hold(body)

    def _hold(self, body: bytes) -> None:
        """Hold a frame until there is room for it."""
        if self.held is None:
            self.held = deque()
        self.held.append(body)
        self._held_bytes += len(body) + OVERHEAD_BYTES

    def _hold_all(self, bodies: list[bytes]) -> None:
        """Hold frames until there is room for them."""
        if self.held is None:
            self.held = deque(bodies)
        else:
            self.held.extend(bodies)
        self._held_bytes += sum(map(len, bodies)) + len(bodies) * OVERHEAD_BYTES

    def _continue(self, step: Step, now: float, ration: int) -> None:
        """Handle held frames as far as the ration goes, and then the stop behind them."""
        held, self.held = self.held, None
        if held and self.state is _OPEN:
            bodies: list[bytes] = []
            room = ration - self.spent
            for body in held:
                if room <= 0:
                    break
                bodies.append(body)
                room -= 1 + (len(body) >> UNIT_BYTES_LOG2)
            for _ in range(self._handle(bodies, step, now)):
                body = held.popleft()
                self._held_bytes -= len(body) + OVERHEAD_BYTES
                self.spent += 1 + (len(body) >> UNIT_BYTES_LOG2)
            if self.state is not _OPEN:  # a frame was the last one
                return
        if held:
            self.held = held
        elif self._stopping:
            self._stop(self._fault, step, now)

    def _must_wait(self, body: bytes) -> bool:
        """Return whether a frame is a message of a stuck type; the window is full then."""
        sent = native.later(body)
        if type(sent) is not _Sent or sent.type not in self.window.stuck:
            return False
        self.window.wait_for(sent.type)
        return True

    def _handle(self, bodies: Sequence[bytes], step: Step, now: float) -> int:
        """Handle frames of a client in order, as far as the window has room and none of them is the last one; return
        how many were handled. Messages that stand together enter the window together, as a run."""
        window, number, send = self.window, self.number, step.send
        table, order = window.table, window.order
        count = size_bytes = handled = 0  # count and size of the run, which is not counted in the window yet
        room, room_bytes = window.room() if len(bodies) > 1 else (1, 1)
        fan = window.sender.fan
        for body in bodies:
            if count >= room or size_bytes >= room_bytes:  # the window may be full
                window.enter(count, size_bytes)
                count = size_bytes = 0
                room, room_bytes = window.room()
            if window.is_full or (window.stuck and self._must_wait(body)):
                break
            sent = native.later(body)
            if type(sent) is not _Sent or (type_ := sent.type) in RESERVED_TYPES or len(type_) > MAX_TYPE:
                window.enter(count, size_bytes)
                count = size_bytes = 0
                if not self._other(sent, step, now):
                    return handled
                handled += 1
                room, room_bytes = window.room()
                continue
            handled += 1
            data, id_ = sent.data, sent.id
            if self._rates is not None and not self._rates.take(self.user or "", now):
                step.write.append(native_writing.report(id_, 1, "overloaded"))
                continue
            token = next(self._tokens)
            submit = Submit(token, number, type_, data, sent.meta)
            size = len(data)
            if fan > 1 and size < MOST_CHARGED:  # what its copies will cost
                size = max(min(int(size * fan) - FREE_COPIES, MOST_CHARGED), size)
            size += len(id_) + len(type_) + OVERHEAD_BYTES
            table[token] = Submission(submit, id_, size, now, number)
            order.append(token)
            send.append(submit)
            count += 1
            size_bytes += size
        if count:
            window.enter(count, size_bytes)
        return handled

    def _other(self, sent: native.Sent | native.Fault, step: Step, now: float) -> bool:
        """Handle a frame that is no message for a handler, or that is refused; False where it was the last one."""
        if type(sent) is _Sent:
            if sent.type not in RESERVED_TYPES:
                step.write.append(native_writing.report(sent.id, 1, "unknown-type"))
                return True
            if sent.type == "dummy":
                step.write.append(native_writing.pong(sent.id))
                return True
            fault = carry_out(sent, step, self.window, self._tokens, self.number, self.address, self._limits.unacked)
            if fault is CLOSE:
                self._stop(None, step, now)
                return False
            if fault is not None:
                step.write.append(native_writing.report(sent.id, 1, fault))
            return True
        assert isinstance(sent, native.Fault)
        if sent.fatal:
            self._stop(sent, step, now)
            return False
        step.write.append(native_writing.report(sent.id, 1, sent.reason))
        return True

    # --- the table ------------------------------------------------------------------------------------------------

    def _stop(self, fault: native.Fault | None, step: Step, now: float) -> None:
        """Stop taking frames, and report the fault, if any; a stop behind held frames happens after them."""
        self.splitter.drop()
        if self.state is State.AUTHENTICATING or self.held:
            self._stopping, self._fault = True, self._fault or fault
            return
        if (self.state, "stop") not in TRANSITIONS:
            return
        if fault is not None:
            step.write.append(native_writing.report(fault.id, 1, fault.reason))
        self._stopping, self._fault = True, None
        self._leave("stop", step, now)
        if self.state is State.DRAINING and not self.window:
            self._leave("finished", step, now)

    def _leave(self, event: Event, step: Step, now: float | None) -> None:
        """Change the state, and add the Close where that ends an announced session."""
        announced = self.state in ANNOUNCED
        if self._go(event, now) and announced and self.state not in ANNOUNCED:
            step.send.append(Close(self.number))

    def _go(self, event: Event, now: float | None) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        if state is not State.OPEN and state is not State.AUTHENTICATING:  # no more is read of the stream
            self.splitter.drop()
        patience_s = {
            State.AUTHENTICATING: self._limits.login_s,
            State.SERVER: self._limits.server_s,
            State.DRAINING: self._limits.drain_s,
            State.CLOSING: self._limits.drain_s,
        }.get(state)
        self.deadline = None if patience_s is None or now is None else now + patience_s
        return True
