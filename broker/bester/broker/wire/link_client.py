"""The connecting side of a fabric link: greeting, heartbeats, loss and return. Pure; the shell owns the socket.

Handlers, bridges and servers all use this machine for the link they open to a
broker. It never touches a socket and never reads a clock: the shell tells it
what came and what time it is (`now`, monotonic seconds), and does what it says.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

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


class State(Enum):
    DOWN = "down"  # no socket, or one given up; waiting for the next attempt
    GREETING = "greeting"  # HELLO is out
    READY = "ready"  # WELCOME is in
    LEAVING = "leaving"  # GOODBYE is out; what is outstanding is finished
    OVER = "over"  # GOODBYE was echoed, or the broker will not have us


# What may happen to a link, and where it goes. An event that is not listed for a state changes nothing.
#
#   event      opened     a new socket was connected: HELLO goes out on it
#              welcomed   WELCOME arrived
#              unknown    ERROR hello-first arrived: the broker restarted, or had given us up; HELLO again
#              silent     nothing was heard for too long: give the socket up, try again after a back-off
#              leave      this side wants to end; GOODBYE goes out
#              parted     GOODBYE arrived
#              refused    ERROR answering our HELLO with a permanent code: trying again would not help
#              barred     the same where we are a server: the other one's operator may yet list us
TRANSITIONS: dict[tuple[State, str], State] = {
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
"""Back-off doubles between these; a broker that comes back is found within seconds."""
BARRED_RETRY_S = 30.0
"""A server that was refused asks again so often: soon enough for whoever has just listed it, and little noise."""
GREETING_S = 3.0
"""How long greeting may take before the socket is given up, whatever else is heard meanwhile."""
LATE_S = 0.5
"""A timer that fires later than this was held up: the loop was blocked, or the process or the machine did not run."""
HEARTBEAT_MS_RANGE = (10, 60_000)
"""What a broker may ask for is kept within: below is noise on the wire, above a dead broker is noticed too late."""


class Step(NamedTuple):
    """What the shell must do: send these, and, where `event` is set, act on what happened.

    Events: `welcomed` (the link is ready; announce yourself), `lost` (close the socket; everything outstanding on
    it is void; call `opened` when a new one is connected, not before `retry_at`), `over` (close it for good),
    `parted` as `lost`, but by the broker's wish.
    """

    send: tuple[Message, ...] = ()
    event: str | None = None


_NOTHING = Step()

LINK_MESSAGES: frozenset[type[object]] = frozenset({Welcome, Error, Goodbye})
"""What a broker says about the link itself; all else passes a Party without effect."""


class LinkClient:
    """One link's state. `role`, `name` and `options` are what HELLO says."""

    def __init__(self, role: str, name: str, options: Meta) -> None:
        self.hello = Hello(VERSION, role, name, options)
        self.state = State.DOWN
        self.heartbeat_s = HEARTBEAT_MS / 1000
        self.server = ""
        self.options: Meta = {}
        self.refusal: Error | None = None
        self.retry_at = 0.0
        self._retry_s = FIRST_RETRY_S
        self._greeted = 0.0
        self._heard = 0.0
        self._sent = 0.0

    def _go(self, event: str) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    @property
    def ready(self) -> bool:
        return self.state is State.READY

    def opened(self, now: float) -> Step:
        """A new socket was connected: greet on it."""
        if not self._go("opened"):
            return _NOTHING
        self.refusal = None
        self._greeted = self._heard = self._sent = now
        return Step((self.hello,))

    def not_opened(self, now: float) -> None:
        """No socket could be connected: `retry_at` is when to try again."""
        self.retry_at = now + self._back_off()

    def sent(self, now: float) -> None:
        """Something was sent on the link; no heartbeat is due for a while."""
        self._sent = now

    def on_received(self, now: float) -> None:
        """Something came that is not about the link: none of it is in LINK_MESSAGES."""
        self._heard = now

    def receive(self, message: Message | Malformed, now: float) -> Step:
        """Take in any message from the broker; those that are not about the link itself pass without effect."""
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
            self.retry_at = now + self._back_off()
            return Step((), "over") if leaving else Step((Goodbye("parting"),), "parted")
        return _NOTHING

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
        """Two operators list two servers, one of them first; anybody else was started wrongly, and ends."""
        patient = self.hello.role == "server"
        if not self._go("barred" if patient else "refused"):
            return _NOTHING
        self.refusal = message
        if not patient:
            return Step((), "over")
        self.retry_at = now + BARRED_RETRY_S
        return Step((), "lost")

    def leave(self, reason: str, now: float) -> Step:
        """Take no new work: say GOODBYE, and stay until it is echoed or the broker falls silent."""
        greeted = self.state is State.GREETING
        if not self._go("leave"):
            return _NOTHING
        self._sent = now
        if self.state is State.OVER:
            # The HELLO may have arrived: without a GOODBYE the broker would count on this party until it is silent.
            return Step((Goodbye(reason),) if greeted else (), "over")
        return Step((Goodbye(reason),))

    def tick(self, now: float, due: float | None = None) -> Step:
        """Call at `next_timer()`: heartbeats go out, silence is noticed.

        `due`, where the shell knows it, is when this call was meant to happen. A late call means that this side was
        held up and has read nothing meanwhile: the broker's silence until now proves nothing, so what came is read
        first, and the link is given up a heartbeat from now at the earliest.
        """
        if self.state in (State.DOWN, State.OVER):
            return _NOTHING
        if due is not None and now > due + LATE_S:
            grace = now + self.heartbeat_s - self._deadline()
            if grace > 0:
                self._greeted += grace
                self._heard += grace
        if now >= self._deadline():
            leaving = self.state is State.LEAVING
            self._go("silent")
            self.retry_at = now + self._back_off()
            return Step((), "over" if leaving else "lost")
        if self.state is not State.GREETING and now >= self._sent + self.heartbeat_s:
            self._sent = now
            return Step((Heartbeat(),))
        return _NOTHING

    def next_timer(self) -> float | None:
        """Return when `tick` must be called at the latest; None while there is no socket."""
        if self.state in (State.DOWN, State.OVER):
            return None
        if self.state is State.GREETING:
            return self._deadline()
        return min(self._sent + self.heartbeat_s, self._deadline())

    def _deadline(self) -> float:
        if self.state is State.GREETING:
            return self._greeted + GREETING_S
        return self._heard + SILENT_HEARTBEATS * self.heartbeat_s

    def _back_off(self) -> float:
        delay = self._retry_s
        self._retry_s = min(delay * 2, LAST_RETRY_S)
        return delay
