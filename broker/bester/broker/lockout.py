"""Which passwords are checked at once, which must wait, and which need no check. Pure: the caller says what time it is.

Wrong passwords slow down *that user at that network address*, twice as long each time, and nobody else. A guess is
remembered by a keyed hash (a *mark*, which the caller makes): the same wrong password again is known to be wrong, and
counts once.

Against guessing from many addresses, or at many names, each user and each address has a budget of wrong passwords.
Where it is used up, nobody is shut out; a password is put off once, and checked when it comes again: guesses do not
come again, people do. (Mail servers call that greylisting.) Where the reserve after a budget is used up as well, those
who have failed before are checked at a slow pace, each at their own. Whoever has logged in from an address before is
not put off there. All tables are bounded, and names that do not exist are treated like those that do.
"""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import NamedTuple

FAILURES = 5
WINDOW_S = 30.0
"""So many different wrong passwords within so many seconds, and the user has to wait, at that address."""
FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 64.0
"""The wait doubles up to this: one guess a minute is no attack, and nobody is kept out of their account for long."""
FORGET_S = 600.0
"""A user at an address without a failure for so long starts afresh."""
MARKS = 16
"""Wrong passwords of one user at one address that are remembered: a few programs with an old one each."""
PAIRS = 20_000
"""Users at addresses with failures, and as many with logins; beyond it the one that came longest ago is forgotten."""
BUDGET = 60
BUDGET_S = 60.0
"""So many wrong passwords a user, and an address, in so many seconds, before those of others there are put off: people
mistype less often, and a year of guessing at this rate finds no password that is worth the name."""
RESERVE = 30
"""Of the budget after the budget: those who come again after a failure have so much more."""
PACE_S = LONGEST_WAIT_S
"""Where the reserve is used up as well, a user who failed at an address is checked there so long after the latest
failure, and after each further one twice as long: one guess a minute is no attack, and of a thousand addresses that try
for hours none gets more than a few before it is forgotten."""
PUT_OFF_S = 1.0
"""A password that is put off may come again after so long; the caller says it in whole seconds."""
COME_AGAIN_S = 120.0
"""And within so long, or is put off again."""
TURN_S = 2.0
"""After a wait the turn is for so long, or a quarter of the wait, theirs who asked during it."""
ASKED = 131_072
"""Passwords that were put off; some 16 MiB, while somebody guesses."""
ASKED_OF_ONE = 65_536
"""The same of one address: a thousand a second for as long as the longest wait, and not the others' room."""


class Passed(NamedTuple):
    """It may be checked. `rank` orders those that wait for it, the lowest first: 0 where the user has logged in from
    there before, 1 where the password was put off before, 2 where nothing is known, 3 where there were failures."""

    rank: int


class Refused(NamedTuple):
    """It is not checked. `retry_s`: when it may come again; None: it is known to be wrong."""

    retry_s: float | None


@dataclass(slots=True)
class _History:
    """Wrong passwords of one user at one address."""

    failures: list[float] = field(default_factory=list)  # times, the last FAILURES at most
    marks: OrderedDict[bytes, None] = field(default_factory=OrderedDict)
    level: int = 0  # how often the user had to wait
    free_at: float = 0.0  # until then the user waits
    wait_s: float = 0.0  # how long that was
    asked_at: float = float("-inf")  # when a password was last put off for it
    paced: int = 0  # how many were checked at the slow pace, and were wrong

    def pace_s(self, now: float) -> float:
        """Return how long it still is until the slow pace lets a password be checked."""
        return self.failures[-1] + PACE_S * 2.0 ** min(self.paced, 32) - now


class _Budgets:
    """What is left of the budgets of users, or of addresses. Full ones are not remembered."""

    def __init__(self) -> None:
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what was left, and when

    def left(self, key: str, now: float) -> float:
        """Return how many more wrong passwords the budget allows."""
        row = self._left.get(key)
        return BUDGET if row is None else min(BUDGET, row[0] + (now - row[1]) * BUDGET / BUDGET_S)

    def spend(self, key: str, now: float) -> None:
        """A password was wrong. What is owed beyond the reserve is forgiven: the end of an attack is soon forgotten."""
        left = max(self.left(key, now) - 1, -RESERVE)
        self._left.pop(key, None)
        self._left[key] = left, now
        while len(self._left) > PAIRS:
            self._left.popitem(last=False)

    def __len__(self) -> int:
        return len(self._left)


class _Asked:
    """When passwords were first put off, by address."""

    def __init__(self) -> None:
        self._by_net: OrderedDict[str, OrderedDict[bytes, float]] = OrderedDict()  # the latest to ask last
        self._count = 0

    def since(self, net: str, mark: bytes, now: float) -> float | None:
        """Return when a password was first put off; None: it was not, or too long ago."""
        marks = self._by_net.get(net)
        first = None if marks is None else marks.get(mark)
        return None if first is None or now - first > COME_AGAIN_S else first

    def note(self, net: str, mark: bytes, now: float) -> None:
        """A password is put off."""
        if self.since(net, mark, now) is not None:
            return
        marks = self._by_net.setdefault(net, OrderedDict())
        self._by_net.move_to_end(net)
        if marks.pop(mark, None) is None:
            self._count += 1
        marks[mark] = now
        if len(marks) > ASKED_OF_ONE or (self._count > ASKED and len(marks) > 1):
            self._drop(net)  # whoever asks much makes room for it among their own
        elif self._count > ASKED:
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
    """What is known of wrong and right passwords. Times are seconds of one monotonic clock.

    `net` is the `network_of` an address; `mark` stands for the user, the password and the account as it is.
    """

    def __init__(self) -> None:
        self._histories: OrderedDict[tuple[str, str], _History] = OrderedDict()  # the latest failure last
        self._trusted: OrderedDict[tuple[str, str], None] = OrderedDict()  # the latest login last
        self._users = _Budgets()
        self._nets = _Budgets()
        self._asked = _Asked()

    def ask(self, user: str, net: str, mark: bytes, now: float) -> Passed | Refused:
        """Say whether a password may be checked. Ask again when its turn has come: much may have happened meanwhile."""
        history = self._history(user, net, now)
        if history is not None:
            if mark in history.marks:
                return Refused(None)
            wait_s = self._wait_s(history, net, mark, now)
            if wait_s > 0:
                history.asked_at = now
                self._asked.note(net, mark, now)
                return Refused(wait_s)
        if (user, net) in self._trusted:
            return Passed(0)
        left = min(self._users.left(user, now), self._nets.left(net, now))
        first = self._asked.since(net, mark, now)
        came_again = first is not None and now - first >= PUT_OFF_S
        if left < 1 and not came_again:
            self._asked.note(net, mark, now)
            return Refused(PUT_OFF_S)
        if left < 1 - RESERVE and history is not None and (pace_s := history.pace_s(now)) > 0:
            return Refused(min(max(pace_s, PUT_OFF_S), LONGEST_WAIT_S))
        if history is not None:
            return Passed(3)
        return Passed(1 if came_again else 2)

    @staticmethod
    def _turn_s(history: _History) -> float:
        return max(TURN_S, history.wait_s / 4)

    def _wait_s(self, history: _History, net: str, mark: bytes, now: float) -> float:
        """Return how long a user must still wait, at an address. When the wait is over, who asked during it comes
        first: guesses that never come again must not take every turn."""
        if now < history.free_at:
            return history.free_at - now
        turn_ends = history.free_at + self._turn_s(history)
        if now >= turn_ends or history.asked_at < history.free_at - history.wait_s:
            return 0.0
        first = self._asked.since(net, mark, now)
        return 0.0 if first is not None and first < history.free_at else turn_ends - now

    def wrong(self, user: str, net: str, mark: bytes, now: float) -> None:
        """A password was checked, and is wrong."""
        history = self._history(user, net, now) or _History()
        if history.failures and min(self._users.left(user, now), self._nets.left(net, now)) < 1 - RESERVE:
            history.paced += 1
        self._histories.pop((user, net), None)
        self._histories[user, net] = history
        history.failures = [*[at for at in history.failures if now - at <= WINDOW_S][1 - FAILURES :], now]
        history.marks[mark] = None
        while len(history.marks) > MARKS:
            history.marks.popitem(last=False)
        # Whoever has waited once gets no five fresh guesses: each further one doubles the wait.
        if history.level or len(history.failures) >= FAILURES:
            history.wait_s = min(FIRST_WAIT_S * 2.0 ** min(history.level, 32), LONGEST_WAIT_S)
            history.free_at = now + history.wait_s
            history.level += 1
        self._users.spend(user, now)
        self._nets.spend(net, now)
        while len(self._histories) > PAIRS:
            self._histories.popitem(last=False)

    def right(self, user: str, net: str) -> None:
        """A password was checked, and is right: what was wrong at that address is forgotten."""
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
        """Return how much is remembered, table by table."""
        return len(self._histories), len(self._trusted), len(self._users), len(self._nets), len(self._asked)


def network_of(address: str) -> str:
    """Return what counts as one address: of IPv6 the /64 that one host or household has, else the address itself."""
    try:
        v6 = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    if v6.ipv4_mapped is not None:
        return str(v6.ipv4_mapped)
    return str(ipaddress.IPv6Address(int(v6) >> 64 << 64))
