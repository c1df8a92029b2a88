"""Deliveries that a turn has left to the next ones, in turn by user. Pure.

A delivery to a user with many connections is as many copies. Where a turn cannot make all copies, its rest waits here:
each user's deliveries in order, and users in turn, so that one user's flood delays the deliveries of nobody else. A
delivery to several users waits until it is the first of each of them.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from bester.broker.wire.messages import Close, Deliver, Goodbye, Malformed, Message, Welcome

Waits = Deliver | Close


class _Ticket:
    """Place of a message in the lines of its users; `ahead` counts the lines in which others are before it."""

    __slots__ = ("ahead", "lines", "message")

    def __init__(self, message: Waits, lines: list[str]) -> None:
        self.message = message
        self.lines = lines
        self.ahead = 0


class Backlog:
    """Messages of the broker that wait. `user_of` returns the user of a session, None where the session has ended;
    `on_wait` is called with each delivery that has to wait.

    All messages but deliveries and closures pass by those that wait: they have no order with deliveries. Behind the end
    of a link, or its new beginning, everything waits until the backlog is empty.
    """

    def __init__(self, user_of: Callable[[int], str | None], on_wait: Callable[[Deliver], None]) -> None:
        self._user_of = user_of
        self._on_wait = on_wait
        self._lines: dict[str, deque[_Ticket]] = {}  # of each user; the first ticket is in the line, too
        self._ready: deque[_Ticket] = deque()  # first in all of their lines
        self._behind: list[Message | Malformed] = []
        self.waits = False
        """True while messages wait."""

    @property
    def is_ready(self) -> bool:
        """Return whether `pop` has a message."""
        return bool(self._ready)

    def take_in(self, messages: Iterable[Message | Malformed]) -> list[Message | Malformed]:
        """Let messages wait; return those that need not."""
        passing: list[Message | Malformed] = []
        for message in messages:
            kind = type(message)
            if self._behind or kind is Goodbye or kind is Welcome:
                self._behind.append(message)
            elif isinstance(message, Deliver):
                self._on_wait(message)
                self._queue(message, [session for target in message.targets for session in target[1:]])
            elif isinstance(message, Close):
                self._queue(message, [message.session])
            else:
                passing.append(message)
        self._look()
        return passing

    def _look(self) -> None:
        self.waits = bool(self._ready or self._behind)

    def _queue(self, message: Waits, sessions: Iterable[int]) -> None:
        users = {user: None for session in sessions if (user := self._user_of(session)) is not None}
        ticket = _Ticket(message, list(users))
        for user in users:
            line = self._lines.setdefault(user, deque())
            ticket.ahead += bool(line)
            line.append(ticket)
        if not ticket.ahead:
            self._ready.append(ticket)

    def pop(self) -> Waits:
        """Return the next message. Raises IndexError where there is none."""
        ticket = self._ready.popleft()
        for user in ticket.lines:
            line = self._lines[user]
            line.popleft()
            if not line:
                del self._lines[user]
                continue
            line[0].ahead -= 1
            if not line[0].ahead:
                self._ready.append(line[0])
        self._look()
        return ticket.message

    def take_behind(self) -> list[Message | Malformed]:
        """Return the messages behind the end of a link; call where nothing else waits."""
        behind, self._behind = self._behind, []
        self._look()
        return behind

    def clear(self) -> None:
        """Forget all messages."""
        self._lines.clear()
        self._ready.clear()
        self._behind.clear()
        self._look()
