"""Decisions on passwords: which are checked at once, which must wait, which need no check. Pure; time is an argument.

Wrong passwords delay *one user at one network address*, twice as long each time, and no other login. A guess is
remembered by a keyed hash (a *mark*, which the caller makes): the same wrong password is refused without a check, and
counts once.

Against guessing from many addresses, or at many names, each user and each address has a budget of wrong passwords.
Above the budget no login is locked out; a new password is put off once and checked when the login is repeated, as
people do and guesses do not (greylisting, in a mail server). Above the reserve as well, a user with failures at an
address is checked at a slow pace there. A user who has logged in from an address before is not put off there. All
tables are bounded, and unknown names are treated like known ones.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

FAILURES = 5
WINDOW_S = 30.0
"""Different wrong passwords within WINDOW_S after which the user has to wait at that address."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 64.0
"""Bound of the doubling wait: one guess a minute is no attack, and no user is locked out for long."""
FORGET_S = 600.0
"""Seconds without a failure after which a user at an address starts afresh."""
MARKS = 16
"""Wrong passwords remembered of one user at one address: enough for a few programs with an old one each."""
PAIRS = 20_000
"""Users at addresses with failures, and as many with logins; above the bound the oldest is forgotten."""
BUDGET = 60
BUDGET_S = 60.0
"""Wrong passwords of a user, and of an address, in BUDGET_S before further logins there are put off: people mistype
less often, and a year of guessing at this rate finds no password of any strength."""
RESERVE = 30
"""Further budget for repeated logins after a failure."""
PACE_S = LONGEST_WAIT_S
"""Seconds from a user's latest failure at an address to the next check there while the reserve is used up, doubled by
each check that fails: one guess a minute is no attack, and of many addresses each gets a few before it is forgotten."""
PUT_OFF_S = 1.0
"""Seconds after which a password that was put off may be repeated; the client gets whole seconds."""
RETRY_WITHIN_S = 120.0
"""Seconds within which the login must be repeated, else the password is put off again."""
TURN_S = 2.0
"""Seconds after a wait, or a quarter of the wait, in which logins made during the wait come first."""
GREYLIST = 131_072
"""Passwords that were put off; some 16 MiB during an attack."""
GREYLIST_PER_NET = 65_536
"""Bound for one address: a thousand a second during the longest wait, without taking the room of other addresses."""


class Allowed(NamedTuple):
    """Decision that a password may be checked. `rank` orders waiting checks, the lowest first.

    0: the user has logged in from there before. 1: the password was put off before. 2: nothing is known.
    3: there were failures.
    """

    rank: int


class Refused(NamedTuple):
    """Decision that a password is not checked. `retry_s` is when to repeat the login; None: known to be wrong."""

    retry_s: float | None


@dataclass(slots=True)
class _History:
    """Wrong passwords of one user at one address."""

    failures: list[float] = field(default_factory=list)  # times, the last FAILURES at most
    marks: OrderedDict[bytes, float] = field(default_factory=OrderedDict)  # when each was last found wrong
    level: int = 0  # number of waits so far
    free_at: float = 0.0  # end of the wait
    wait_s: float = 0.0  # length of the wait
    asked_at: float = float("-inf")  # time of the last refusal during a wait
    paced: int = 0  # number of failures at the slow pace

    def pace_s(self, now: float) -> float:
        """Return the seconds until the slow pace allows a check."""
        return self.failures[-1] + PACE_S * 2.0 ** min(self.paced, 32) - now


class _Budgets:
    """Remaining budgets of users, or of addresses; full ones are not stored."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # remaining budget, and its time

    def left(self, key: str, now: float) -> float:
        """Return the number of wrong passwords that the budget still allows."""
        row = self._left.get(key)
        return BUDGET if row is None else min(BUDGET, row[0] + (now - row[1]) * BUDGET / BUDGET_S)

    def spend(self, key: str, now: float) -> None:
        """Charge a wrong password. Debt beyond the reserve is dropped, so that the end of an attack is soon
        forgotten."""
        left = max(self.left(key, now) - 1, -RESERVE)
        self._left.pop(key, None)
        self._left[key] = left, now
        while len(self._left) > PAIRS:
            self._left.popitem(last=False)

    def __len__(self) -> int:
        return len(self._left)


class _Greylist:
    """Times at which passwords were first put off, by address."""

    def __init__(self) -> None:
        self._by_net: OrderedDict[str, OrderedDict[bytes, float]] = OrderedDict()  # the newest last
        self._count = 0

    def since(self, net: str, mark: bytes, now: float) -> float | None:
        """Return when a password was first put off; None if never, or longer than RETRY_WITHIN_S ago."""
        marks = self._by_net.get(net)
        first = None if marks is None else marks.get(mark)
        return None if first is None or now - first > RETRY_WITHIN_S else first

    def note(self, net: str, mark: bytes, now: float) -> None:
        """Record that a password is put off."""
        if self.since(net, mark, now) is not None:
            return
        marks = self._by_net.setdefault(net, OrderedDict())
        self._by_net.move_to_end(net)
        if marks.pop(mark, None) is None:
            self._count += 1
        marks[mark] = now
        if len(marks) > GREYLIST_PER_NET or (self._count > GREYLIST and len(marks) > 1):
            self._drop(net)  # an address with many marks makes room among its own
        elif self._count > GREYLIST:
            self._drop(next(iter(self._by_net)))

    def _drop(self, net: str) -> None:
        marks = self._by_net[net]
        marks.popitem(last=False)
        self._count -= 1
        if not marks:
            del self._by_net[net]

    def __len__(self) -> int:
        return self._count


class Lockout:
    """Memory of wrong and right passwords. Times are seconds of one monotonic clock.

    `net` is the `network_of` an address; `mark` stands for the user, the password and the current state of the account.
    `known_s`: time for which a wrong password is known to be wrong, where the mark does not change with the account.
    """

    def __init__(self, known_s: float = math.inf) -> None:
        self.waits = 0
        """Waits begun: times that a user at an address was locked out for a while after wrong passwords."""
        self._known_s = known_s
        self._histories: OrderedDict[tuple[str, str], _History] = OrderedDict()  # the newest failure last
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()  # the newest login last
        self._users = _Budgets()
        self._nets = _Budgets()
        self._greylist = _Greylist()

    def decide(self, user: str, net: str, mark: bytes, now: float) -> Allowed | Refused:
        """Decide whether a password may be checked. Ask again when the check's turn has come, as others may have
        failed."""
        history = self._history(user, net, now)
        if history is not None:
            if now - history.marks.get(mark, -math.inf) < self._known_s:
                return Refused(None)
            wait_s = self._wait_s(history, net, mark, now)
            if wait_s > 0:
                history.asked_at = now
                self._greylist.note(net, mark, now)
                return Refused(wait_s)
        if (user, net) in self._trusted:
            return Allowed(0)
        left = min(self._users.left(user, now), self._nets.left(net, now))
        first = self._greylist.since(net, mark, now)
        repeated = first is not None and now - first >= PUT_OFF_S
        if left < 1 and not repeated:
            self._greylist.note(net, mark, now)
            return Refused(PUT_OFF_S)
        if left < 1 - RESERVE and history is not None and (pace_s := history.pace_s(now)) > 0:
            return Refused(min(max(pace_s, PUT_OFF_S), LONGEST_WAIT_S))
        if history is not None:
            return Allowed(3)
        return Allowed(1 if repeated else 2)

    @staticmethod
    def _turn_s(history: _History) -> float:
        return max(TURN_S, history.wait_s / 4)

    def _wait_s(self, history: _History, net: str, mark: bytes, now: float) -> float:
        """Return how long a user must still wait at an address. After the wait, logins made during the wait come first,
        so that guesses which are never repeated do not take every turn."""
        if now < history.free_at:
            return history.free_at - now
        turn_ends = history.free_at + self._turn_s(history)
        if now >= turn_ends or history.asked_at < history.free_at - history.wait_s:
            return 0.0
        first = self._greylist.since(net, mark, now)
        return 0.0 if first is not None and first < history.free_at else turn_ends - now

    def on_wrong(self, user: str, net: str, mark: bytes, now: float) -> None:
        """Record that a checked password is wrong."""
        history = self._history(user, net, now) or _History()
        if history.failures and min(self._users.left(user, now), self._nets.left(net, now)) < 1 - RESERVE:
            history.paced += 1
        self._histories.pop((user, net), None)
        self._histories[user, net] = history
        history.failures = [*[at for at in history.failures if now - at <= WINDOW_S][1 - FAILURES :], now]
        history.marks.pop(mark, None)
        history.marks[mark] = now
        while len(history.marks) > MARKS:
            history.marks.popitem(last=False)
        # A user who has waited once gets no FAILURES fresh guesses: each further wrong password doubles the wait.
        if history.level or len(history.failures) >= FAILURES:
            history.wait_s = min(FIRST_WAIT_S * 2.0 ** min(history.level, 32), LONGEST_WAIT_S)
            history.free_at = now + history.wait_s
            history.level += 1
            self.waits += 1
        self._users.spend(user, now)
        self._nets.spend(net, now)
        while len(self._histories) > PAIRS:
            self._histories.popitem(last=False)

    def on_right(self, user: str, net: str) -> None:
        """Record that a checked password is right, and forget the failures at that address."""
        self._histories.pop((user, net), None)
        self._trusted.pop((user, net), None)
        self._trusted[user, net] = None
        while len(self._trusted) > PAIRS:
            self._trusted.popitem(last=False)

    def _history(self, user: str, net: str, now: float) -> _History | None:
        history = self._histories.get((user, net))
        if history is not None and now - history.failures[-1] > FORGET_S:
            del self._histories[user, net]
            return None
        return history

    def sizes(self) -> tuple[int, ...]:
        """Return the size of each table."""
        return len(self._histories), len(self._trusted), len(self._users), len(self._nets), len(self._greylist)
