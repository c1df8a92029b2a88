"""Messages from being taken in until they are reported: held while there is no broker, and given again to one that
comes back. Pure.

A message that the broker had and did not report on when the link was lost is submitted once more under its token (the
broker makes the same id of it), with `attempt` in its meta. What came while there was no broker, or no room on its
link, waits behind it: all of it in the order of the tokens, so that every connection's order is kept. How much one
client may have here is its window of unreported messages, which it fills and is then not read from; what all of them
have is bounded by `held_bytes`, whether the broker had it or not, for one that is about to be found dead has it all.

A client that goes does not take back what it said: its messages are kept apart, bounded, until the broker's report,
which nobody gets. Nothing is held for longer than `hold_s`, and nothing that was refused is submitted afterwards.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from typing import NamedTuple

from bester.bridge.broker_link import BrokerLink
from bester.bridge.inspection import SubmissionsState
from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection
from bester.bridge.session import Session
from bester.bridge.window import Load, size_bytes
from bester.broker.wire.messages import Close, Open, Submit

AT_ONCE = 256
"""Messages handed to the link in one piece: what it does not take is put back."""


class _Gone(NamedTuple):
    """What one who has gone had said; `user` is None for another server."""

    submit: Submit
    user: str | None
    since_s: float


class Submissions:
    """`submits` are the connections that wait for a report, by token: whoever is reported to is taken out of it. `load`
    is what their windows count in; what those who have gone had said is counted there from here.

    `wake` sees to it that `pay` is called at the end of this turn.
    """

    def __init__(self, limits: Limits, load: Load, upstream: BrokerLink, wake: Callable[[], None]) -> None:
        self.submits: dict[int, ClientConnection] = {}
        self._limits = limits
        self._load = load
        self._broker_link = upstream
        self._wake = wake
        self._queue: deque[Submit | Close] = deque()  # tokens rise; a Close stands behind the last word of its session
        self._queued_bytes = 0
        self._gone: dict[int, _Gone] = {}  # by token
        self._gone_bytes = 0

    @property
    def is_full(self) -> bool:
        """Whether as much waits for its report as may, or is held (what nobody waits for any more is, for a while)."""
        most = self._limits.held_bytes
        return self._load.size_bytes >= most or self._queued_bytes >= most

    def inspect(self) -> SubmissionsState:
        """Return what is not reported yet."""
        return SubmissionsState(
            waiting=len(self.submits),
            queued=len(self._waiting()),
            queued_bytes=self._queued_bytes,
            departed=len(self._gone),
            departed_bytes=self._gone_bytes,
            unreported_bytes=self._load.size_bytes,
        )

    # --- connections ----------------------------------------------------------------------------------------------

    def submit(self, messages: list[Submit], connection: ClientConnection) -> None:
        """Give a connection's messages to the broker, or hold them."""
        waiting = self.submits
        for message in messages:
            waiting[message.token] = connection
        taken = 0 if self._queue else self._broker_link.submit(messages)
        if taken < len(messages):
            self._hold(messages[taken:])
            self._wake()

    def on_connection_gone(self, session: Session) -> None:
        """A connection is no more. What it had said still counts, as far as there is a place for it."""
        for submit, since_s in session.window.submits:
            self.submits.pop(submit.token, None)
            size = size_bytes(submit)
            if len(self._gone) < self._limits.gone_messages and self._gone_bytes + size <= self._limits.gone_bytes:
                self._gone[submit.token] = _Gone(submit, session.user, since_s)
                self._count_gone(size)

    def close(self, message: Close) -> None:
        """Tell the broker that a session has ended, behind all that the session said."""
        if self._queue and self._broker_link.is_ready:
            self._queue.append(message)
        else:
            self._broker_link.tell(message)

    def forget(self, token: int) -> None:
        """The report on it has come, and there is nobody to get it."""
        gone = self._gone.pop(token, None)
        if gone is not None:
            self._count_gone(-size_bytes(gone.submit))

    # --- the broker -----------------------------------------------------------------------------------------------

    def on_link_lost(self) -> None:
        """The link is lost: whatever is not reported is to be submitted when there is a broker again."""
        waiting = [each for each in self._queue if type(each) is Submit and self._since_s(each.token) is not None]
        unsent = {submit.token for submit in waiting}
        for token, connection in list(self.submits.items()):
            if token in unsent:
                continue
            submit = connection.session.window.submitted(token)
            if submit is None:  # its time was over, and that was said
                del self.submits[token]
            else:
                waiting.append(_again(submit))
                connection.session.window.replace(waiting[-1])
        for token, gone in self._gone.items():
            if token not in unsent:
                waiting.append(_again(gone.submit))
                self._gone[token] = gone._replace(submit=waiting[-1])
        self._queue.clear()
        self._queued_bytes = 0
        self._hold(sorted(waiting, key=_token))

    def on_link_ready(self) -> list[Open]:
        """The broker is there: return the sessions that are to be announced to it besides those that live, because
        they said something before they went. They end again behind their last word."""
        last = {submit.session: submit.token for submit in self._waiting() if submit.token in self._gone}
        opens = []
        for session, token in last.items():
            user = self._gone[token].user
            if session is not None and user is not None:
                opens.append(Open(session, user))
        if opens:
            ends = {last[announced.session]: Close(announced.session) for announced in opens}
            waiting, self._queue = self._waiting(), deque()
            for submit in waiting:
                self._queue.append(submit)
                if submit.token in ends:
                    self._queue.append(ends[submit.token])
        return opens

    def send_held(self) -> None:
        """Submit what is held, as far as there is room on the link."""
        queue = self._queue
        while queue and self._broker_link.has_room:
            some = [queue.popleft() for _ in range(min(len(queue), AT_ONCE))]
            wanted = [each for each in some if type(each) is Close or self._wanted(_token(each))]
            left = wanted[self._broker_link.submit(wanted) :]
            queue.extendleft(reversed(left))
            self._queued_bytes += _all_bytes(left) - _all_bytes(some)
            if left:
                return

    def overdue(self, now: float) -> list[int]:
        """Return the tokens of messages that have been held for too long, to be reported; no broker gets them."""
        tokens: list[int] = []
        while self._queue:
            first = self._queue[0]
            if type(first) is not Submit:
                break
            if self._wanted(first.token):
                since_s = self._since_s(first.token)
                assert since_s is not None
                if now - since_s < self._limits.hold_s:
                    break
                tokens.append(first.token)
            self._queue.popleft()
            self._queued_bytes -= size_bytes(first)
        for token, gone in list(self._gone.items()):
            if now - gone.since_s < self._limits.hold_s:
                break
            self.forget(token)
        return tokens

    # --- what is held ---------------------------------------------------------------------------------------------

    def _hold(self, messages: list[Submit]) -> None:
        self._queue.extend(messages)
        self._queued_bytes += _all_bytes(messages)

    def _count_gone(self, more_bytes: int) -> None:
        self._gone_bytes += more_bytes
        self._load.size_bytes += more_bytes

    def _waiting(self) -> list[Submit]:
        return [each for each in self._queue if type(each) is Submit]

    def _wanted(self, token: int) -> bool:
        """Whether its report is still waited for. Where it is not (it was said that its time is over), no broker gets
        the message, so no report would take it out of `submits`."""
        wanted = self._since_s(token) is not None
        if not wanted:
            self.submits.pop(token, None)
        return wanted

    def _since_s(self, token: int) -> float | None:
        """Return since when it waits for its report; None where it does so no longer."""
        connection = self.submits.get(token)
        if connection is not None:
            return connection.session.window.since_s(token)
        gone = self._gone.get(token)
        return None if gone is None else gone.since_s


def _again(submit: Submit) -> Submit:
    """Return what is submitted where that was said before and not reported on."""
    return submit._replace(meta={**submit.meta, "attempt": submit.meta.get("attempt", 1) + 1})


def _token(message: Submit | Close) -> int:
    return 0 if type(message) is Close else message[0]


def _all_bytes(messages: Iterable[Submit | Close]) -> int:
    return sum(size_bytes(each) for each in messages if type(each) is Submit)
