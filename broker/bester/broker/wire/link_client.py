"""Connecting side of a fabric link: greeting, heartbeats, loss and reconnection. Pure; the shell owns the socket.

Handlers, bridges and servers all use this state machine for their link to a broker. The machine touches no socket and
reads no clock: the shell passes each message and the time (`now`, monotonic seconds), and carries out the steps
returned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Literal, NamedTuple

from bester.broker.wire.codes import is_temporary
from bester.broker.wire.messages import (
    HEARTBEAT_MS,
    SILENT_HEARTBEATS,
    VERSION,
    Error,
    Goodbye,
    Heartbeat,
    Hello,
    Malformed,
    Message,
    Meta,
    Welcome,
)
from bester.broker.wire.notes import safe_note


class State(Enum):
    DOWN = "down"  # no socket; waiting for the next attempt
    GREETING = "greeting"  # HELLO was sent
    READY = "ready"  # WELCOME was received
    LEAVING = "leaving"  # GOODBYE was sent; outstanding requests are finished
    OVER = "over"  # GOODBYE was echoed, or the broker refused the link


Event = Literal["opened", "welcomed", "unknown", "silent", "leave", "parted", "refused", "barred"]
StepEvent = Literal["welcomed", "unknown", "lost", "parted", "over"]

# Transitions of a link. An event that is not listed for a state changes nothing.
#
#   event      opened     a new socket is connected: HELLO is sent
#              welcomed   WELCOME arrived
#              unknown    ERROR hello-first arrived: the broker restarted or gave this link up; HELLO is sent again
#              silent     no message arrived for too long, nothing listens any more, or the answers of this side are
#                         not read: the socket is given up, and a retry follows a back-off
#              leave      this side ends the link; GOODBYE is sent
#              parted     GOODBYE arrived
#              refused    ERROR with a permanent code answered HELLO: a retry would not help
#              barred     the same for a server, which the other operator may list later
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.DOWN, "opened"): State.GREETING,
    (State.GREETING, "welcomed"): State.READY,
    (State.GREETING, "unknown"): State.GREETING,
    (State.GREETING, "silent"): State.DOWN,
    (State.GREETING, "parted"): State.DOWN,
    (State.GREETING, "refused"): State.OVER,
    (State.GREETING, "barred"): State.DOWN,
    (State.GREETING, "leave"): State.OVER,
    (State.READY, "unknown"): State.GREETING,
    (State.READY, "welcomed"): State.READY,
    (State.READY, "silent"): State.DOWN,
    (State.READY, "parted"): State.DOWN,
    (State.READY, "leave"): State.LEAVING,
    (State.LEAVING, "silent"): State.OVER,
    (State.LEAVING, "parted"): State.OVER,
    (State.LEAVING, "unknown"): State.OVER,
    (State.DOWN, "leave"): State.OVER,
}

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 5.0
"""Bounds of the doubling back-off; a broker that returns is found within seconds."""
BARRED_RETRY_S = 30.0
"""Retry of a refused server: soon enough for an operator who has just listed the server, and little noise."""
GREETING_S = 3.0
"""Time for a greeting before the socket is given up, whatever other messages arrive."""
LATE_S = 0.5
"""Delay of a timer that shows a blocked loop, or a process or machine that did not run."""
HEARTBEAT_MS_RANGE = (10, 60_000)
"""Accepted range of a broker's heartbeat: a shorter one is noise on the wire, a longer one finds a dead broker too
late."""


class Step(NamedTuple):
    """Step for the shell: send the messages, then handle `event`, if any.

    Events: `welcomed` (the link is ready; announce types or sessions), `unknown` (the broker has forgotten the link,
    and HELLO was sent again), `lost` (close the socket; outstanding requests are void; connect a new socket at
    `retry_at` and call `on_opened`), `parted` (as `lost`, by the broker's GOODBYE), `over` (close the link for good).
    """

    send: tuple[Message, ...] = ()
    event: StepEvent | None = None


_NOTHING = Step()

LINK_MESSAGES: frozenset[type[object]] = frozenset({Welcome, Error, Goodbye})
"""Messages of a broker about the link itself; all others pass a LinkClient without effect."""


class LinkClient:
    """State of one link. `role`, `name` and `options` are the fields of HELLO."""

    def __init__(self, role: str, name: str, options: Meta) -> None:
        self.hello = Hello(VERSION, role, name, options)
        self.state = State.DOWN
        self.heartbeat_s = HEARTBEAT_MS / 1000
        self.server = ""
        self.options: Meta = {}
        self.refusal: Error | None = None
        self.parting = ""
        """Reason in the broker's last GOODBYE."""
        self.retry_at = 0.0
        self._retry_s = FIRST_RETRY_S
        self._greeted = 0.0
        self._heard = 0.0
        self._sent = 0.0
        self._is_gone = False  # the broker's process has ended

    def _go(self, event: Event) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    def on_opened(self, now: float) -> Step:
        """Start greeting on a new socket."""
        if not self._go("opened"):
            return _NOTHING
        self.refusal, self._is_gone = None, False
        self._greeted = self._heard = self._sent = now
        return Step((self.hello,))

    def on_open_failed(self, now: float) -> None:
        """Schedule the next attempt at `retry_at`, as no socket could be connected."""
        self.retry_at = now + self._back_off()

    def on_handshake_failed(self, now: float) -> Step:
        """Give the socket up before GREETING_S, as its connection was refused: no answer will come."""
        if self.state is not State.GREETING:
            return _NOTHING
        self._go("silent")
        self.retry_at = now + self._back_off()
        return Step((), "lost")

    def on_unread(self, now: float) -> Step:
        """Give the socket up, as the broker does not read the answers of this side."""
        if self.state not in (State.READY, State.LEAVING):
            return _NOTHING
        return self._give_up(now)

    def on_nobody_there(self) -> None:
        """Note that the connection of the socket has ended, and that nothing listens at its address any more: `tick` is
        due at once, and gives up the link of a broker that had answered."""
        self._is_gone = self.state in (State.READY, State.LEAVING)

    def on_sent(self, now: float) -> None:
        """Record that a message was sent, which postpones the next heartbeat."""
        self._sent = now

    def on_received(self, now: float) -> None:
        """Record that messages were received of which none is in LINK_MESSAGES."""
        self._heard = now

    def receive(self, message: Message | Malformed, now: float) -> Step:
        """Process any message of the broker; messages outside LINK_MESSAGES have no effect."""
        self._heard = now
        kind = type(message)
        if kind is Welcome:
            return self._welcomed(message)  # type: ignore[arg-type]  # `kind is Welcome` is not a narrowing to mypy
        if kind is Error:
            return self._error(message, now)  # type: ignore[arg-type]  # as above
        if kind is Goodbye:
            leaving = self.state is State.LEAVING
            if not self._go("parted"):
                return _NOTHING
            self.parting = safe_note(message.reason or "")  # type: ignore[union-attr]  # as above
            self.retry_at = now + self._back_off()
            return Step((), "over") if leaving else Step((Goodbye("parting"),), "parted")
        return _NOTHING

    def receive_all(
        self, messages: Sequence[Message | Malformed], now: float
    ) -> Iterator[Step | list[Message | Malformed]]:
        """Process messages in order, of which some may be in LINK_MESSAGES. Yield each step that follows, to be carried
        out before the next, and the runs of the others in between."""
        others: list[Message | Malformed] = []
        for message in messages:
            step = self.receive(message, now)
            if step.event is None and not step.send:
                others.append(message)
                continue
            if others:
                yield others
                others = []
            yield step
        if others:
            yield others

    def _welcomed(self, message: Welcome) -> Step:
        if not self._go("welcomed"):
            return _NOTHING
        self.server, self.options = message.server, message.options
        heartbeat_ms = message.options.get("heartbeat_ms")
        if type(heartbeat_ms) is int and heartbeat_ms > 0:
            least, most = HEARTBEAT_MS_RANGE
            self.heartbeat_s = min(max(heartbeat_ms, least), most) / 1000
        self._retry_s = FIRST_RETRY_S
        return Step((), "welcomed")

    def _error(self, message: Error, now: float) -> Step:
        if message.code == "hello-first":
            greeting = self.state is State.GREETING
            if not self._go("unknown"):
                return _NOTHING
            if not greeting:
                self._greeted = now
            if self.state is State.OVER:
                return Step((), "over")
            self._sent = now
            return Step((self.hello,), "unknown")
        if message.op == 1 and not is_temporary(message.code):
            return self._refused(message, now)
        return _NOTHING

    def _refused(self, message: Error, now: float) -> Step:
        """Retry later as a server, whose operator may list it next; end the link in any other role, which was started
        wrongly."""
        patient = self.hello.role == "server"
        if not self._go("barred" if patient else "refused"):
            return _NOTHING
        self.refusal = message
        if not patient:
            return Step((), "over")
        self.retry_at = now + BARRED_RETRY_S
        return Step((), "lost")

    def leave(self, reason: str, now: float) -> Step:
        """Accept no new work: send GOODBYE, and stay until the echo or silence of the broker."""
        greeted = self.state is State.GREETING
        if not self._go("leave"):
            return _NOTHING
        self._sent = now
        if self.state is State.OVER:
            # The HELLO may have arrived: without a GOODBYE the broker would count on this peer until the peer is
            # silent.
            return Step((Goodbye(reason),) if greeted else (), "over")
        return Step((Goodbye(reason),))

    def tick(self, now: float, due: float | None = None, *, unread: bool = False) -> Step:
        """Send a heartbeat or detect silence; call at `next_timer()`.

        `unread`: input of the broker waits, and is read next; the broker is not silent then.

        `due`, if known, is the intended time of the call. A late call means that this side was blocked and has read
        nothing meanwhile, so that the broker's silence proves nothing: waiting messages are read first, and the link is
        given up one heartbeat from now at the earliest.
        """
        if self.state in (State.DOWN, State.OVER):
            return _NOTHING
        if due is not None and now > due + LATE_S:
            grace = now + self.heartbeat_s - self._deadline()
            if grace > 0:
                self._greeted += grace
                self._heard += grace
        if now >= self._deadline() and not (unread and self.state is not State.GREETING):
            return self._give_up(now)
        if self.state is not State.GREETING and now >= self._sent + self.heartbeat_s:
            self._sent = now
            return Step((Heartbeat(),))
        return _NOTHING

    def _give_up(self, now: float) -> Step:
        leaving = self.state is State.LEAVING
        self._go("silent")
        self.retry_at = now + self._back_off()
        return Step((), "over" if leaving else "lost")

    def next_timer(self) -> float | None:
        """Return the latest time for the next `tick`; None without a socket."""
        if self.state in (State.DOWN, State.OVER):
            return None
        if self.state is State.GREETING:
            return self._deadline()
        return min(self._sent + self.heartbeat_s, self._deadline())

    def _deadline(self) -> float:
        if self.state is State.GREETING:
            return self._greeted + GREETING_S
        if self._is_gone:
            return 0.0
        return self._heard + SILENT_HEARTBEATS * self.heartbeat_s

    def _back_off(self) -> float:
        delay = self._retry_s
        self._retry_s = min(delay * 2, LAST_RETRY_S)
        return delay
