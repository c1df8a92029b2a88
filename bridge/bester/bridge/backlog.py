"""Deliveries that a turn has left to the next ones, in turn by user. Pure.

A delivery to a user with many connections is as many copies. Where a turn cannot make all copies, its rest waits here:
each user's deliveries in order, and users by fair queueing: the user who has had fewest copies is next, so that one
user's flood delays the deliveries of nobody else. One who comes counts as having had as many as the user served last;
what each has had counts as long as anything waits. (This number grows by a small part of all copies, too, so that an
endless row of newcomers is not always first.) A delivery to several users waits until it is the first of each of them,
and counts for each what the user gets of it.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from heapq import heappop, heappush
from itertools import count

from bester.broker.wire.messages import Close, Deliver, Goodbye, Malformed, Message, Welcome

Waits = Deliver | Close


COPY_BYTES_LOG2 = 12
"""Each 4 KiB of a copy cost as much as a copy."""
NEWCOMERS = 128
"""Divisor: a user's delivery comes after so many times as many copies for newcomers at the latest."""
REMEMBERED = 64
"""Least number of users to be looked through for those that need not be remembered."""


class _Ticket:
    """Place of a message in the lines of its users, with the cost of it in each; `ahead` counts the lines in which
    others are before it."""

    __slots__ = ("ahead", "costs", "message")

    def __init__(self, message: Waits, costs: dict[str, int]) -> None:
        self.message = message
        self.costs = costs
        self.ahead = 0


class _Line:
    """Messages of one user that wait, in order, if any. `had` is the cost of those that the user has had, beside
    others'."""

    __slots__ = ("had", "tickets")

    def __init__(self, had: float) -> None:
        self.had = had
        self.tickets: deque[_Ticket] = deque()


class Backlog:
    """Messages of the broker that wait. `user_of` returns the user of a session, None where the session has ended;
    `on_wait` is called with each delivery that has to wait.

    All messages but deliveries and closures pass by those that wait: they have no order with deliveries. Behind the end
    of a link, or its new beginning, everything waits until the backlog is empty.
    """

    def __init__(self, user_of: Callable[[int], str | None], on_wait: Callable[[Deliver], None]) -> None:
        self._user_of = user_of
        self._on_wait = on_wait
        self._lines: dict[str, _Line] = {}  # of each user; the first ticket is in the line, too
        # A heap of those that are first in all of their lines, by what their users have had, and by number.
        self._ready: list[tuple[float, int, _Ticket]] = []
        self._numbers = count()
        self._had = 0.0  # of a user who comes
        self._most_lines = REMEMBERED
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
        if not self._ready and self._lines:
            self._lines.clear()
            self._had, self._most_lines = 0.0, REMEMBERED

    def _queue(self, message: Waits, sessions: Iterable[int]) -> None:
        copies = Counter(user for session in sessions if (user := self._user_of(session)) is not None)
        cost = 1 if isinstance(message, Close) else 1 + (len(message.body) >> COPY_BYTES_LOG2)
        ticket = _Ticket(message, {user: cost * number for user, number in copies.items()})
        for user in ticket.costs:
            line = self._lines.get(user)
            if line is None:
                line = self._lines[user] = _Line(self._had)
            elif not line.tickets:
                line.had = max(line.had, self._had)
            ticket.ahead += bool(line.tickets)
            line.tickets.append(ticket)
        if not ticket.ahead:
            self._place(ticket)
        if len(self._lines) > self._most_lines:
            self._lines = {user: line for user, line in self._lines.items() if line.tickets or line.had > self._had}
            self._most_lines = max(2 * len(self._lines), REMEMBERED)

    def _place(self, ticket: _Ticket) -> None:
        """Put a message among those that may be next."""
        had = max((self._lines[user].had for user in ticket.costs), default=self._had)
        heappush(self._ready, (had, next(self._numbers), ticket))

    def pop(self) -> Waits:
        """Return the next message. Raises IndexError where there is none."""
        had, _, ticket = heappop(self._ready)
        self._had = max(self._had, had) + sum(ticket.costs.values()) / NEWCOMERS
        for user, cost in ticket.costs.items():
            line = self._lines[user]
            line.tickets.popleft()
            line.had += cost
            if line.tickets:
                line.tickets[0].ahead -= 1
                if not line.tickets[0].ahead:
                    self._place(line.tickets[0])
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
