"""One client's connection to its server, and what became of each message it sent. Pure; the shell owns the socket.

The machine never touches a socket, a clock or a source of randomness: the shell
tells it what came and what time it is (`now`, monotonic seconds), writes what
`take` returns, and acts on the events. However connections come and go, each
message that was taken in ends in exactly one Reported or Failed.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import NamedTuple

from bester.bridge.client import frames
from bester.bridge.client.errors import (
    AuthenticationFailed,
    ClientClosed,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    ServerRefused,
)
from bester.bridge.client.frames import Message, Report
from bester.bridge.client.window import DEDUP_LIMIT, DEFAULTS, Limits, Window
from bester.bridge.frames import Splitter, frame
from bester.broker.wire.codes import CODES, is_temporary


class State(Enum):
    DOWN = "down"  # no connection; the next attempt is at `retry_at`
    DIALLING = "dialling"  # connecting
    GREETING = "greeting"  # the login is out
    READY = "ready"  # the server knows us
    DRAINING = "draining"  # the application closes: nothing new goes out, reports still come in
    PARTING = "parting"  # all is reported, `close` is out; the server hangs up
    OVER = "over"  # for good


# What may happen to a client, and where it goes. An event that is not listed for a state changes nothing.
#
#   event      dial       the shell starts to connect
#              opened     it is connected: the login goes out
#              welcomed   the server accepts the login
#              lost       no connection could be made, or it is gone
#              refused    the server will not have us, or the very first attempt failed, or patience is at an end
#              leave      the application closes the client
#              drained    nothing is unreported any more
TRANSITIONS: dict[tuple[State, str], State] = {
    (State.DOWN, "dial"): State.DIALLING,
    (State.DOWN, "refused"): State.OVER,
    (State.DOWN, "leave"): State.OVER,
    (State.DIALLING, "opened"): State.GREETING,
    (State.DIALLING, "lost"): State.DOWN,
    (State.DIALLING, "refused"): State.OVER,
    (State.DIALLING, "leave"): State.OVER,
    (State.GREETING, "welcomed"): State.READY,
    (State.GREETING, "lost"): State.DOWN,
    (State.GREETING, "refused"): State.OVER,
    (State.GREETING, "leave"): State.OVER,
    (State.READY, "lost"): State.DOWN,
    (State.READY, "leave"): State.DRAINING,
    (State.DRAINING, "drained"): State.PARTING,
    (State.DRAINING, "lost"): State.OVER,
    (State.DRAINING, "refused"): State.OVER,
    (State.PARTING, "lost"): State.OVER,
    (State.PARTING, "refused"): State.OVER,
}


FIRST_RETRY_S = 0.1
LAST_RETRY_S = 10.0
"""Back-off doubles between these, and up to half of each wait is left to chance: clients must not return in step."""
STEADY_S = 5.0
"""A connection that lasted so long makes back-off start anew; one that is closed at once does not."""


class Reported(NamedTuple):
    """The report on a message."""

    id: str
    report: Report


class Failed(NamedTuple):
    """A message will never be reported on, or a ping never answered."""

    id: str
    error: ClientError


class Arrived(NamedTuple):
    """A message was received, for the first time."""

    message: Message


class Ponged(NamedTuple):
    """A ping was answered."""

    id: str


class Ready(NamedTuple):
    """Logged in."""


class Lost(NamedTuple):
    """The connection is void: drop it, and dial again at `retry_at`."""

    error: ClientError
    retry_at: float


class Ended(NamedTuple):
    """All is over; drop the connection. `error` is why, None where the application wished it."""

    error: ClientError | None


Event = Reported | Failed | Arrived | Ponged | Ready | Lost | Ended


class Core:
    """The state of one client.

    `server` names the server in errors. `dedup_prefix` begins the `dedup` of everything sent with `resend`, and must be
    unlike any other client's. `random` returns numbers from 0 to 1. `give_up_s`: how long to go without a connection
    once there was one; None: for ever.
    """

    def __init__(
        self,
        *,
        server: str,
        user: str,
        password: str,
        dedup_prefix: str,
        random: Callable[[], float],
        resend: bool = False,
        give_up_s: float | None = None,
        limits: Limits = DEFAULTS,
    ) -> None:
        self.state = State.DOWN
        self.limits = limits
        self.retry_at = 0.0
        self.unreadable = 0
        """How many frames came that a client cannot understand; they are passed over."""
        self._server = server
        self._login = frame(frames.login(user, password))
        self._user = user
        self._random = random
        self._give_up_s = give_up_s
        self._splitter = Splitter(limits.receive_limit_bytes)
        self._window = Window(limits, dedup_prefix[: DEDUP_LIMIT // 2] if resend else None)
        self._control: list[bytes] = []
        self._pings: set[str] = set()
        self._seen: dict[str, None] = {}
        self._was_ready = False
        self._retry_s = FIRST_RETRY_S
        self._since = 0.0  # when this state of the connection (up, or down) began
        self._heard = 0.0
        self._pinged = False
        self._paused = False
        self._leave_by = 0.0
        self._complaint: str | None = None

    def _go(self, event: str) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    def _connected(self) -> bool:
        return self.state not in (State.DOWN, State.DIALLING, State.OVER)

    # What the application does.

    @property
    def open(self) -> bool:
        """Whether messages are taken in; they wait while there is no connection."""
        return self.state not in (State.DRAINING, State.PARTING, State.OVER)

    @property
    def room(self) -> int:
        """How many more messages are taken in now."""
        return self._window.room

    @property
    def unreported(self) -> int:
        """How many messages were taken in and not reported on."""
        return len(self._window)

    def submit(self, type_: str, data: bytes, dedup: str | None = None) -> str:
        """Take a message in and return its id; `data` is JSON text.

        Raises ClientClosed, WindowFull, MessageTooLarge, and ValueError for a type or `dedup` that cannot be.
        """
        if not self.open:
            raise ClientClosed("not-connected", "the client is closed: make a new one to send more")
        return self._window.add(type_, data, dedup)

    def withdraw(self, id_: str) -> None:
        """Nobody waits for the report any more: what did not go out yet will not, what did is not sent again."""
        self._window.withdraw(id_)
        self._drained()

    def ping(self) -> str:
        """Ask the server for a sign of life; returns the id that Ponged or Failed will have."""
        if self.state is not State.READY:
            raise ConnectionLost("unreachable", f"there is no connection to {self._server} now")
        id_ = f"ping-{self._window.next_id()}"
        self._pings.add(id_)
        self._control.append(frame(frames.message("dummy", b"null", id_, None)))
        return id_

    def leave(self, now: float, patience_s: float) -> list[Event]:
        """Take nothing more in; wait for reports, say goodbye, and be over in `patience_s` at the latest."""
        leave_by = now + patience_s
        if self.state in (State.DRAINING, State.PARTING):
            self._leave_by = min(self._leave_by, leave_by)
            return self._stop_now() if patience_s <= 0 else []
        self._leave_by = leave_by
        if not self._go("leave"):
            return []
        if self.state is State.OVER:
            return self._end(None)
        if patience_s <= 0:
            return self._stop_now()
        self._drained()
        return []

    # What the shell does.

    def dial(self) -> bool:
        """The shell is about to connect; False: it must not."""
        return self._go("dial")

    def opened(self, now: float) -> None:
        """A connection was made: the login is ready to be taken."""
        if self._go("opened"):
            self._heard = now
            self._pinged = self._paused = False
            self._control = [self._login]

    def take(self) -> list[bytes]:
        """Return what to write now; it counts as sent."""
        out, self._control = self._control, []
        if self.state in (State.READY, State.DRAINING):
            out += self._window.take()
        return out

    def pause(self) -> None:
        """The shell stops reading; the server's silence means nothing then."""
        self._paused = True

    def resume(self, now: float) -> None:
        """The shell reads again."""
        self._paused = False
        self._pinged = False
        self._heard = now

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Take in bytes from the server, split anyhow."""
        if not self._connected():
            return []
        self._heard = now
        self._pinged = False
        events: list[Event] = []
        for body in self._splitter.feed(data):
            events += self._frame(body, now)
            if not self._connected():
                return events
        if self._splitter.refused is not None:
            length = self._splitter.refused
            events += self.lost(f"the server announced a frame of {length} bytes", now)
        return events

    def lost(self, why: str, now: float) -> list[Event]:
        """The connection is gone, or could not be made; `why` in a few words."""
        error = self._loss(why)
        lasted_s = now - self._since if self.state is State.READY else 0.0
        if self.state is State.READY:
            self._since = now
        if not self._go("lost"):
            return []
        if self.state is State.OVER:
            return self._end(None)
        if not self._was_ready:
            return self._refused(error)
        events = self._void()
        if lasted_s >= STEADY_S:
            self._retry_s = FIRST_RETRY_S
        self.retry_at = now + self._retry_s * (0.5 + self._random() / 2)
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        return [*events, Lost(error, self.retry_at)]

    def next_timer(self) -> float | None:
        """Return when `tick` must be called at the latest; None: nothing is due."""
        if self.state in (State.DRAINING, State.PARTING):
            return self._leave_by
        if self.state is State.READY:
            return None if self._paused else self._heard + self.limits.silence_s * (2 if self._pinged else 1)
        due = [self._heard + self.limits.login_s] if self.state is State.GREETING else []
        if self._was_ready and self._give_up_s is not None and self.state is not State.OVER:
            due.append(self._since + self._give_up_s)
        return min(due, default=None)

    def tick(self, now: float) -> list[Event]:
        """Call at `next_timer()`; calling early does nothing."""
        due = self.next_timer()
        if due is None or now < due:
            return []
        if self.state in (State.DRAINING, State.PARTING):
            return self._stop_now()
        if self.state is State.READY:
            if self._pinged:
                return self.lost(f"nothing was heard for {2 * self.limits.silence_s:g} s", now)
            self._pinged = True
            self._control.append(frame(frames.message("dummy", b"null", "alive", None)))
            return []
        if self._was_ready and self._give_up_s is not None and now >= self._since + self._give_up_s:
            return self._refused(self._lost_error(f"no connection for {self._give_up_s:g} s"))
        return self.lost(f"the login was not answered in {self.limits.login_s:g} s", now)

    # What follows from it.

    def _frame(self, body: bytes, now: float) -> list[Event]:
        value = frames.parse(body)
        if isinstance(value, Report):
            return self._greeted(value, now) if self.state is State.GREETING else self._report(value)
        if isinstance(value, Message):
            return self._message(value)
        if isinstance(value, frames.Unreadable):
            self.unreadable += 1
        elif value.id in self._pings:
            self._pings.remove(value.id)
            return [Ponged(value.id)]
        return []

    def _greeted(self, answer: Report, now: float) -> list[Event]:
        if answer.good:
            self._go("welcomed")
            self._was_ready = True
            self._since = now
            self._complaint = None
            return [Ready()]
        reason = answer.reason or "authentication-failed"
        if reason == "authentication-failed":
            text = f"{self._server} does not accept user {self._user!r} with this password: check both"
            return self._refused(AuthenticationFailed(reason, text))
        meaning = CODES[reason].meaning if reason in CODES else "no more is known"
        refusal = ServerRefused(reason, f"{self._server} refuses the login: {reason} ({meaning})")
        if self._was_ready and is_temporary(reason):
            return self.lost(refusal.text, now)
        return self._refused(refusal)

    def _report(self, report: Report) -> list[Event]:
        if report.id is None:
            self._complaint = report.reason or "the server could not read a frame"
            return []
        if not self._window.settle(report.id):
            return []
        self._drained()
        return [Reported(report.id, report)]

    def _message(self, message: Message) -> list[Event]:
        if self.state in (State.DRAINING, State.PARTING):
            return []
        if message.id is not None:
            if message.id in self._seen:
                return []
            self._seen[message.id] = None
            if len(self._seen) > self.limits.remembered_ids:
                del self._seen[next(iter(self._seen))]
        return [Arrived(message)]

    def _drained(self) -> None:
        if not self._window and self._go("drained"):
            self._control.append(frame(frames.CLOSE))

    def _stop_now(self) -> list[Event]:
        if self.state is State.DRAINING:
            self._control.append(frame(frames.CLOSE))
        self._go("refused")
        return self._end(None)

    def _refused(self, error: ClientError) -> list[Event]:
        self._go("refused")
        return self._end(error)

    def _void(self) -> list[Event]:
        """A connection is gone: fail what it leaves in doubt, put the rest back in line in its order."""
        self._splitter = Splitter(self.limits.receive_limit_bytes)
        self._control = []
        events: list[Event] = [Failed(id_, self._lost_error("it went before the answer")) for id_ in self._pings]
        self._pings.clear()
        return events + [Failed(id_, self._doubt()) for id_ in self._window.void()]

    def _end(self, error: ClientError | None) -> list[Event]:
        never_sent = error or ClientClosed("not-connected", "the client was closed before this message was sent")
        events: list[Event] = [Failed(id_, error or self._doubt()) for id_ in self._pings]
        self._pings.clear()
        events += [Failed(id_, self._doubt() if sent else never_sent) for id_, sent in self._window.end()]
        return [*events, Ended(error)]

    def _loss(self, why: str) -> ClientError:
        if self.state is State.DIALLING:
            return ConnectFailed("unreachable", f"cannot connect to {self._server}: {why}; is it running there?")
        if self.state is State.GREETING:
            hint = "some servers do so where user or password is wrong"
            return ServerRefused("unreachable", f"no login at {self._server}: {why} ({hint})")
        return self._lost_error(why)

    def _lost_error(self, why: str) -> ConnectionLost:
        complaint = f", after the server complained: {self._complaint}" if self._complaint else ""
        return ConnectionLost("unreachable", f"the connection to {self._server} is lost: {why}{complaint}")

    def _doubt(self) -> ConnectionLost:
        return self._lost_error("the message was sent but not reported on, and may have been delivered or not")
