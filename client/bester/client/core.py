"""One client's connection to its server, and what became of each message it sent. Pure; the shell owns the socket.

The machine never touches a socket, a clock or a source of randomness: the shell
tells it what came and what time it is (`now`, monotonic seconds), writes what
`take` returns, and acts on the events. However connections come and go, each
message that was taken in ends in exactly one Reported or Failed.
"""

from __future__ import annotations

from collections.abc import Callable

from bester.bridge.frames import Splitter, frame
from bester.broker.wire.codes import is_temporary
from bester.client import frames
from bester.client.errors import AuthenticationFailed, ClientClosed, ClientError, MessageTooLarge
from bester.client.events import Arrived, Ended, Event, Failed, Lost, Ready, Reported
from bester.client.frames import NO_TERMS, Message, Report, Terms
from bester.client.inbox import Inbox
from bester.client.questions import Questions
from bester.client.reasons import Reasons
from bester.client.states import TRANSITIONS, State
from bester.client.window import DEFAULTS, LEAST_BYTES, Limits, Verdict, Window

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 10.0
"""Back-off doubles between these, and up to half of each wait is left to chance: clients must not return in step."""
STEADY_S = 5.0
"""A connection that lasted so long makes back-off start anew; one that is closed at once does not."""
PATIENCE_S = 15.0
"""A first login that the server puts off is tried again by itself, as long as that takes no longer in all."""
MESSAGE_ID_LIMIT = 1024
"""The longest id of a message that is asked about: several times what servers give."""


class Core:
    """The state of one client.

    `server` names the server in errors. `dedup_prefix` begins the `dedup` of everything sent with `resend`, and must be
    unlike any other client's. `random` returns numbers from 0 to 1. `give_up_s`: how long to go without a connection
    once there was one; None: for ever. `ack`: the server is to wait for acknowledgements of what it delivers.
    """

    def __init__(
        self,
        *,
        server: str,
        user: str,
        password: str,
        dedup_prefix: str,
        random: Callable[[], float],
        resend: bool = True,
        ack: bool = False,
        give_up_s: float | None = None,
        limits: Limits = DEFAULTS,
    ) -> None:
        self.state = State.DOWN
        self.limits = limits
        self.retry_at = 0.0
        self.unreadable = 0
        """How many frames came that a client cannot understand; they are passed over."""
        self._login = frame(frames.login(user, password, ack=ack))
        self._reasons = Reasons(server, user)
        self._random = random
        self._give_up_s = give_up_s
        self._splitter = Splitter(limits.receive_limit_bytes)
        self._window = Window(limits, dedup_prefix if resend else None)
        self._inbox = Inbox(limits.remembered_ids, ack)
        self._questions = Questions(server)
        self._control: list[bytes] = []
        self._was_ready = False
        self._patience_s = PATIENCE_S
        self._retry_s = FIRST_RETRY_S
        self._since = 0.0  # when this state of the connection (up, or down) began
        self._heard = 0.0
        self._pinged = False
        self._paused = False
        self._leave_by = 0.0

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

    @property
    def max_frame(self) -> int | None:
        """How many bytes the longest frame may have that the server takes, if the latest one has said so."""
        return self._window.max_frame

    def submit(self, type_: str, data: bytes, terms: Terms = NO_TERMS) -> str:
        """Take a message in and return its id; `data` is JSON text.

        Raises ClientClosed, WindowFull, MessageTooLarge, and ValueError for a type or terms that cannot be.
        """
        if not self.open:
            raise ClientClosed("not-connected", "the client is closed: make a new one to send more")
        return self._window.add(type_, data, terms)

    def withdraw(self, id_: str) -> None:
        """Nobody waits for the report any more: what did not go out yet will not, what did is not sent again."""
        self._window.withdraw(id_)
        self._drained()

    def acknowledge(self, message: str) -> None:
        """The application is done with the message of this id."""
        self._inbox.done(message)

    def ping(self) -> str:
        """Ask the server for a sign of life; returns the id that Ponged or Failed will have."""
        self._must_be_ready()
        id_, question = self._questions.ping(self._window.next_id())
        self._control.append(question)
        return id_

    def outcome(self, message: str) -> str:
        """Ask what became of a message, by the server's own id of it; returns the id of the Answered or Failed.

        Raises ConnectionLost where there is no connection, ValueError for an id that no message has, MessageTooLarge.
        """
        if not 0 < len(message) <= MESSAGE_ID_LIMIT:
            raise ValueError(f"a message's id has 1 to {MESSAGE_ID_LIMIT} characters")
        self._must_be_ready()
        if len(frames.command("outcome", message, "outcome-" + "0" * 20)) > self._least_limit:
            raise MessageTooLarge("frame-too-large", "the message's id makes a longer frame than the server takes")
        id_, question = self._questions.outcome(self._window.next_id(), message)
        self._control.append(question)
        return id_

    def _must_be_ready(self) -> None:
        if self.state is not State.READY:
            raise self._reasons.no_connection()

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
            out += self._acks()
            out += self._window.take()
        return out

    def _acks(self) -> list[bytes]:
        return [frame(body) for body in frames.acks(self._inbox.take(), self._least_limit)]

    @property
    def _least_limit(self) -> int:
        """Bytes that the server surely takes in one frame."""
        return self.max_frame or LEAST_BYTES

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
        error = self._reasons.loss(self.state, why)
        lasted_s = now - self._since if self.state is State.READY else 0.0
        if self.state is State.READY:
            self._since = now
        if not self._go("lost"):
            return []
        if self.state is State.OVER:
            return self._end(None)
        if not self._was_ready:
            return self._refused(error)
        if lasted_s >= STEADY_S:
            self._retry_s = FIRST_RETRY_S
        return self._dial_later(error, now)

    def _dial_later(self, error: ClientError, now: float, not_before_s: float = 0.0) -> list[Event]:
        """Connect again after a pause, of `not_before_s` at least."""
        pause_s = self._retry_s * (0.5 + self._random() / 2)
        self.retry_at = now + max(pause_s, not_before_s * (1 + self._random() / 10))
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        return [*self._void(), Lost(error, self.retry_at)]

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
            self._control.append(frame(frames.message("dummy", b"null", "alive")))
            return []
        if self._was_ready and self._give_up_s is not None and now >= self._since + self._give_up_s:
            return self._refused(self._reasons.lost(f"no connection for {self._give_up_s:g} s"))
        return self.lost(f"the login was not answered in {self.limits.login_s:g} s", now)

    # What follows from it.

    def _frame(self, body: bytes, now: float) -> list[Event]:
        value = frames.parse(body)
        if isinstance(value, Report):
            return self._greeted(value, now) if self.state is State.GREETING else self._report(value)
        if isinstance(value, Message):
            return self._message(value)
        if isinstance(value, frames.Pong):
            return [*self._questions.ponged(value)]
        if isinstance(value, frames.Answer):
            return [*self._questions.answered(value)]
        self.unreadable += 1
        return []

    def _greeted(self, answer: Report, now: float) -> list[Event]:
        if answer.good:
            self._go("welcomed")
            self._was_ready = True
            self._since = now
            self._reasons.complaint = None
            too_large = self._window.welcomed(frames.max_frame(answer.frame))
            return [Ready(), *(Failed(id_, error) for id_, error in too_large)]
        reason, retry_s = answer.reason or "authentication-failed", answer.retry_s
        error = self._reasons.refusal(reason, retry_s)
        if self._was_ready and retry_s is None and is_temporary(reason):
            return self.lost(error.text, now)
        wrong = isinstance(error, AuthenticationFailed)
        if retry_s is None or wrong or (not self._was_ready and retry_s > self._patience_s):
            return self._refused(error)
        if not self._was_ready:
            self._patience_s -= retry_s
        self._go("lost")
        return self._dial_later(error, now, retry_s)  # whatever the reason is called

    def _report(self, report: Report) -> list[Event]:
        if report.id is None:
            self._reasons.complaint = report.reason or "malformed"
            return []
        if not self._window.settle(report.id):
            return [*self._questions.reported(report)]
        self._drained()
        return [Reported(report.id, report)]

    def _message(self, message: Message) -> list[Event]:
        if self.state in (State.DRAINING, State.PARTING):
            return []
        if message.id is not None and not self._inbox.came(message.id):
            return []
        return [Arrived(message)]

    def _drained(self) -> None:
        if not self._window and self._go("drained"):
            self._say_goodbye()

    def _stop_now(self) -> list[Event]:
        if self.state is State.DRAINING:
            self._say_goodbye()
        self._go("refused")
        return self._end(None)

    def _say_goodbye(self) -> None:
        self._control += [*self._acks(), frame(frames.CLOSE)]

    def _refused(self, error: ClientError) -> list[Event]:
        self._go("refused")
        return self._end(error)

    def _void(self) -> list[Event]:
        """A connection is gone: fail what it leaves in doubt, put the rest back in line in its order."""
        self._splitter = Splitter(self.limits.receive_limit_bytes)
        self._control = []
        self._inbox.void()
        events: list[Event] = [*self._questions.void(self._reasons.lost("it went before the answer"))]
        return events + [self._verdict(*each) for each in self._window.void(self._reasons.complaint)]

    def _verdict(self, id_: str, verdict: Verdict) -> Reported | Failed:
        if isinstance(verdict, Report):
            return Reported(id_, verdict)
        return Failed(id_, verdict or self._reasons.doubt())

    def _end(self, error: ClientError | None) -> list[Event]:
        never_sent = error or ClientClosed("not-connected", "the client was closed before this message was sent")
        gone = error or ClientClosed("not-connected", "the client was closed before the answer")
        events: list[Event] = [*self._questions.void(gone)]
        events += [Failed(id_, self._reasons.doubt() if sent else never_sent) for id_, sent in self._window.end()]
        return [*events, Ended(error)]
