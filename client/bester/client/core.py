"""State of one client: its connection, and the end of each message it submitted. Pure; the shell owns the socket.

The core never touches a socket, a clock or a source of randomness: the shell passes in the bytes received and the
time (`now`, monotonic seconds), writes the bytes that `take` returns, and acts on the events. However often the
connection breaks, each message that was taken in ends in exactly one Reported or Failed.
"""

from __future__ import annotations

from collections.abc import Callable

from bester.bridge.frames import Splitter, frame
from bester.broker.wire.arguments import check_text
from bester.broker.wire.codes import is_temporary
from bester.broker.wire.outcomes import MAX_MESSAGE_ID
from bester.client import frames
from bester.client.errors import AuthenticationFailed, ClientClosed, ClientError, MessageTooLarge
from bester.client.events import Arrived, Ended, Event, Failed, Lost, Ready, Reported
from bester.client.frames import NO_TERMS, Message, Report, Terms
from bester.client.inbox import Inbox
from bester.client.questions import Questions
from bester.client.reasons import Reasons
from bester.client.states import TRANSITIONS, State, Trigger
from bester.client.window import DEFAULTS, LEAST_BYTES, Limits, Verdict, Window

FIRST_RETRY_S = 0.1
LAST_RETRY_S = 10.0
"""Back-off doubles between these bounds, and chance takes up to half of each wait: clients must not return in step."""
STEADY_S = 5.0
"""A connection that lasted so long resets the back-off; one that is closed at once does not."""
PATIENCE_S = 15.0
"""A first login that the server defers is retried for at most so long in all."""
HTTP = int.from_bytes(b"HTTP", "little")
"""Length of a frame that begins as an answer of HTTP does."""
WEB = "HTTP is spoken there: name the port of a native listener"


class Core:
    """State of one client.

    `server` names the server in errors. `dedup_prefix` begins the `dedup` of every message sent with `resend`, and must
    differ from any other client's. `random` returns numbers from 0 to 1. `give_up_s`: seconds without a connection,
    after the first one, until the client ends; None: no limit. `ack`: ask the server to wait for acknowledgements.
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
        """Number of frames that could not be parsed and were skipped."""
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
        self._since = 0.0  # when the connection was made, or lost
        self._received_at = 0.0
        self._pinged = False
        self._paused = False
        self._leave_by = 0.0

    def _transition(self, event: Trigger) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    def _connected(self) -> bool:
        return self.state not in (State.DOWN, State.DIALLING, State.OVER)

    # Called by the application's side.

    @property
    def open(self) -> bool:
        """False once the client closes or has ended; messages without a connection stay in the window."""
        return self.state not in (State.DRAINING, State.PARTING, State.OVER)

    @property
    def room(self) -> int:
        """Number of messages that may be submitted now."""
        return self._window.room

    @property
    def unreported(self) -> int:
        """Number of messages taken in and not reported on."""
        return len(self._window)

    @property
    def max_frame(self) -> int | None:
        """Bytes of the longest frame that the server accepts; None where the latest login did not say."""
        return self._window.max_frame

    def submit(self, type_: str, data: bytes, terms: Terms = NO_TERMS) -> str:
        """Take a message in and return its id; `data` is JSON text.

        Raises ClientClosed, WindowFull, MessageTooLarge, and ValueError for an invalid type or invalid terms.
        """
        if not self.open:
            raise ClientClosed("not-connected", "the client is closed: make a new one to send more")
        return self._window.add(type_, data, terms)

    def withdraw(self, id_: str) -> None:
        """Stop waiting for a report: an unsent message is dropped, a sent one is not sent again."""
        self._window.withdraw(id_)
        self._drained()

    def acknowledge(self, message: str) -> None:
        """Mark the message of this id as handled by the application."""
        self._inbox.mark_done(message)

    def ping(self) -> str:
        """Send a ping; return the id that the Ponged or Failed will have. Raises ConnectionLost."""
        self._must_be_ready()
        id_, question = self._questions.ping(self._window.next_id())
        self._control.append(question)
        return id_

    def outcome(self, message: str) -> str:
        """Ask for the outcome of a message by the server's id of the message; return the id of the Answered or Failed.

        Raises ConnectionLost without a connection, ValueError for an impossible id, and MessageTooLarge.
        """
        check_text("a message's id", message)
        if not 0 < len(message) <= MAX_MESSAGE_ID:
            raise ValueError(f"a message's id has 1 to {MAX_MESSAGE_ID} characters")
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
        """Take no more messages; wait for reports, say goodbye, and end after `patience_s` at the latest."""
        leave_by = now + patience_s
        if self.state in (State.DRAINING, State.PARTING):
            self._leave_by = min(self._leave_by, leave_by)
            return self._stop_now() if patience_s <= 0 else []
        self._leave_by = leave_by
        if not self._transition("leave"):
            return []
        if self.state is State.OVER:
            return self._end(None)
        if patience_s <= 0:
            return self._stop_now()
        self._drained()
        return []

    # Called by the shell.

    def dial(self) -> bool:
        """Begin an attempt to connect; False: the shell must not connect."""
        return self._transition("dial")

    def on_connected(self, now: float) -> None:
        """Start a new connection: the login is the next frame to be taken."""
        if self._transition("opened"):
            self._received_at = now
            self._pinged = self._paused = False
            self._control = [self._login]

    def take(self) -> list[bytes]:
        """Return the frames to write now; they count as sent."""
        out, self._control = self._control, []
        if self.state in (State.READY, State.DRAINING):
            out += self._acks()
            out += self._window.take()
        return out

    def _acks(self) -> list[bytes]:
        return [frame(body) for body in frames.acks(self._inbox.take(), self._least_limit)]

    @property
    def _least_limit(self) -> int:
        """Bytes that the server accepts in one frame under any configuration."""
        return self.max_frame or LEAST_BYTES

    def pause(self) -> None:
        """Note that the shell has stopped reading: silence then does not count as a dead connection."""
        self._paused = True

    def resume(self, now: float) -> None:
        """Note that the shell reads again."""
        self._paused = False
        self._pinged = False
        self._received_at = now

    def receive(self, data: bytes, now: float) -> list[Event]:
        """Process bytes received from the server, cut at any place."""
        if not self._connected():
            return []
        self._received_at = now
        self._pinged = False
        events: list[Event] = []
        for body in self._splitter.feed(data):
            events += self._frame(body, now)
            if not self._connected():
                return events
        if self._splitter.refused is not None:
            length = self._splitter.refused
            is_http = length == HTTP
            why = WEB if is_http else f"the server announced a frame of {length} bytes"
            events += self.on_disconnected(why, now, is_there=is_http)
        return events

    def on_disconnected(self, why: str, now: float, *, is_there: bool = False) -> list[Event]:
        """Handle a failed or broken connection; `why` in a few words. `is_there`: a server answered, and `why` says all
        about the failure."""
        error = self._reasons.loss(self.state, why, is_there)
        lasted_s = now - self._since if self.state is State.READY else 0.0
        if self.state is State.READY:
            self._since = now
        if not self._transition("lost"):
            return []
        if self.state is State.OVER:
            return self._end(None)
        if not self._was_ready:
            return self._refused(error)
        if lasted_s >= STEADY_S:
            self._retry_s = FIRST_RETRY_S
        return self._dial_later(error, now)

    def _dial_later(self, error: ClientError, now: float, not_before_s: float = 0.0) -> list[Event]:
        """Schedule the next attempt after the back-off, at least `not_before_s` from now."""
        pause_s = self._retry_s * (0.5 + self._random() / 2)
        self.retry_at = now + max(pause_s, not_before_s * (1 + self._random() / 10))
        self._retry_s = min(self._retry_s * 2, LAST_RETRY_S)
        return [*self._reset_connection(), Lost(error, self.retry_at)]

    def next_timer(self) -> float | None:
        """Return when `tick` must be called at the latest; None: no timer is set."""
        if self.state in (State.DRAINING, State.PARTING):
            return self._leave_by
        if self.state is State.READY:
            return None if self._paused else self._received_at + self.limits.silence_s * (2 if self._pinged else 1)
        due = [self._received_at + self.limits.login_s] if self.state is State.GREETING else []
        if self._was_ready and self._give_up_s is not None and self.state is not State.OVER:
            due.append(self._since + self._give_up_s)
        return min(due, default=None)

    def tick(self, now: float) -> list[Event]:
        """Act on a timer that is due at `now`; an early call does nothing."""
        due = self.next_timer()
        if due is None or now < due:
            return []
        if self.state in (State.DRAINING, State.PARTING):
            return self._stop_now()
        if self.state is State.READY:
            if self._pinged:
                return self.on_disconnected(f"nothing was received for {2 * self.limits.silence_s:g} s", now)
            self._pinged = True
            self._control.append(frame(frames.message("dummy", b"null", "alive")))
            return []
        if self._was_ready and self._give_up_s is not None and now >= self._since + self._give_up_s:
            return self._refused(self._reasons.broken(f"no connection for {self._give_up_s:g} s"))
        return self.on_disconnected(f"the login was not answered in {self.limits.login_s:g} s", now)

    # Frames and ends.

    def _frame(self, body: bytes, now: float) -> list[Event]:
        value = frames.parse(body)
        if isinstance(value, Report):
            return self._login_answered(value, now) if self.state is State.GREETING else self._report(value)
        if isinstance(value, Message):
            return self._message(value)
        if isinstance(value, frames.Pong):
            return [*self._questions.ponged(value)]
        if isinstance(value, frames.Answer):
            return [*self._questions.answered(value)]
        self.unreadable += 1
        return []

    def _login_answered(self, answer: Report, now: float) -> list[Event]:
        if answer.good:
            self._transition("welcomed")
            self._was_ready = True
            self._since = now
            self._reasons.complaint = None
            too_large = self._window.set_server_limit(frames.max_frame(answer.frame))
            return [Ready(), *(Failed(id_, error) for id_, error in too_large)]
        reason, retry_s = answer.reason or "authentication-failed", answer.retry_s
        error = self._reasons.refusal(reason, retry_s)
        if self._was_ready and retry_s is None and is_temporary(reason):
            return self.on_disconnected(error.text, now)
        wrong = isinstance(error, AuthenticationFailed)
        if retry_s is None or wrong or (not self._was_ready and retry_s > self._patience_s):
            return self._refused(error)
        if not self._was_ready:
            self._patience_s -= retry_s
        self._transition("lost")
        return self._dial_later(error, now, retry_s)  # a server that names a time is retried, whatever its reason

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
        if message.id is not None and not self._inbox.register(message.id):
            return []
        return [Arrived(message)]

    def _drained(self) -> None:
        if not self._window and self._transition("drained"):
            self._send_close()

    def _stop_now(self) -> list[Event]:
        if self.state is State.DRAINING:
            self._send_close()
        self._transition("refused")
        return self._end(None)

    def _send_close(self) -> None:
        self._control += [*self._acks(), frame(frames.CLOSE)]

    def _refused(self, error: ClientError) -> list[Event]:
        self._transition("refused")
        return self._end(error)

    def _reset_connection(self) -> list[Event]:
        """Reset the state of a broken connection: fail messages in doubt, requeue the others in order."""
        self._splitter = Splitter(self.limits.receive_limit_bytes)
        self._control = []
        self._inbox.reset_connection()
        events: list[Event] = [*self._questions.fail_all(self._reasons.broken("it broke before the answer"))]
        return events + [self._verdict(*each) for each in self._window.requeue_after_loss(self._reasons.complaint)]

    def _verdict(self, id_: str, verdict: Verdict) -> Reported | Failed:
        if isinstance(verdict, Report):
            return Reported(id_, verdict)
        return Failed(id_, verdict or self._reasons.doubt())

    def _end(self, error: ClientError | None) -> list[Event]:
        never_sent = error or ClientClosed("not-connected", "the client was closed before this message was sent")
        unanswered = error or ClientClosed("not-connected", "the client was closed before the answer")
        events: list[Event] = [*self._questions.fail_all(unanswered)]
        events += [Failed(id_, self._reasons.doubt() if sent else never_sent) for id_, sent in self._window.end()]
        return [*events, Ended(error)]
