"""Which host name is looked up when, and what is known of each. Pure: the shell owns the threads and the clock.

A *followed* name, that of a configured server, is looked up at once, then once a minute, and with a growing pause as
long as it is not found. Any other name is looked up when somebody asks for it, and is remembered for a minute. A name
has one lookup at a time. What was found counts on while later lookups fail: an outage of the name server cuts nobody
off.

A lookup that takes longer than PATIENCE_S counts as failed for those who wait for it, and goes on: nothing can end it
but the system. Its name has had its chance for a while, and may hold but half of the lookups under way from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bester.broker.hosts import Place

PATIENCE_S = 3.0
"""For an answer. Less than a bridge waits for another server in all, so that whoever asked is told the reason in time;
long enough for a resolver that gives one packet up for lost."""
REFRESH_S = 60.0
"""A found name is looked up again so often, as is one that is not followed when it is asked for again."""
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 60.0
"""The pause doubles between these while a name is not found."""
ASKED_RETRY_S = 5.0
"""The same for a name that is not followed: whoever asks for it has no patience, and must soon be able to try again."""
HINT_S = 1.0
"""A hint that a name may be found by now shortens the pause to this, counted from the last lookup."""
KEEP_S = 3600.0
"""So long a found address counts while the name cannot be looked up: longer than name servers are down, and not for
ever, as the address may be given to somebody else."""
AT_ONCE = 64
"""Lookups under way: each has a thread, and a configuration names fewer servers than that."""
SLOW_AT_ONCE = AT_ONCE // 2
"""Of them, where names are looked up whose last lookup was slow: the others' turn must not wait for them."""
ASKED_AT_ONCE = AT_ONCE // 4
"""Of them, for names that are not followed: handlers may name any, and must not hold up the configured ones."""
REMEMBERED = 1024
"""Names that are not followed; above it the one that was asked for longest ago is forgotten."""


class News(NamedTuple):
    """Something that the log should say of a followed name: it is `lost` (`text` says why), or `found` (again, or
    elsewhere; `text` names the addresses)."""

    host: str
    event: str
    text: str


@dataclass(slots=True)
class _Name:
    followed: bool
    asked_at: float
    due: float  # when it is to be looked up next; of one that is not followed, if it is asked for
    asked_since: float | None = None  # somebody waits for its lookup to begin
    since: float | None = None  # a lookup is under way since then
    late: bool = False  # which takes too long
    slow: bool = False  # the last one did, or this one does
    again: bool = False  # what it finds may be out of date by now
    ended_at: float = float("-inf")
    delay_s: float = 0.0  # the pause after a failure, 0 where there was none
    addresses: tuple[str, ...] = ()
    began_at: float = float("-inf")  # when the lookup that found them began
    found_at: float = float("-inf")  # and when it ended
    said_lost: bool = False


class Lookups:
    """The names of one process. `version` changes with everything that concerns a followed name."""

    def __init__(self) -> None:
        self.version = 0
        self._names: dict[str, _Name] = {}

    def follow(self, host: str, now: float) -> None:
        """Keep a name known from now on; a second time does nothing."""
        name = self._names.setdefault(host, _Name(False, now, now))
        if not name.followed:
            name.followed = True
            name.due = min(name.due, now)

    def ask(self, host: str, now: float) -> bool:
        """Have a name looked up that is not known; False: it was just now, in vain, or takes too long, or cannot be."""
        name = self._names.get(host)
        if name is None:
            if not self._make_room():
                return False
            name = self._names[host] = _Name(False, now, now)
        name.asked_at = now
        if name.since is not None:
            return not name.late
        if name.delay_s and now < name.due:
            return False
        if name.asked_since is None:
            name.asked_since = now
        name.due = min(name.due, now)
        return True

    def hint(self, host: str, now: float) -> None:
        """A followed name may be found, or be elsewhere, by now: look it up soon."""
        name = self._names.get(host)
        if name is not None and name.followed:
            name.again = name.since is not None
            name.due = min(name.due, max(now, name.ended_at + HINT_S))

    def addresses(self, host: str, now: float) -> tuple[str, ...]:
        """Return the addresses of a name, none where it is not known."""
        name = self._names.get(host)
        if name is None or now - name.found_at > (KEEP_S if name.followed else REFRESH_S):
            return ()
        return name.addresses

    def place(self, host: str, now: float) -> Place:
        """Return the same with the time at which the lookup began."""
        found = self.addresses(host, now)
        return Place(found, self._names[host].began_at) if found else Place()

    def is_asked(self, host: str) -> bool:
        """Whether somebody who asked for a name must still wait."""
        name = self._names.get(host)
        return name is not None and (name.asked_since is not None or (name.since is not None and not name.late))

    @property
    def idle(self) -> bool:
        """Whether time changes nothing: no name is followed, none is being looked up."""
        return not any(
            name.followed or name.asked_since is not None or name.since is not None for name in self._names.values()
        )

    def start(self, now: float) -> list[str]:
        """Return the names to be looked up now, those that are due longest first; they count as begun."""
        waiting = [(name.due, host) for host, name in self._names.items() if self._is_due(name, now)]
        if not waiting:
            return []
        under_way = [name for name in self._names.values() if name.since is not None]
        running, asked = len(under_way), sum(1 for name in under_way if not name.followed)
        begun: list[str] = []
        for _, host in sorted(waiting):
            name = self._names[host]
            if running >= (SLOW_AT_ONCE if name.slow else AT_ONCE) or (not name.followed and asked >= ASKED_AT_ONCE):
                continue
            running += 1
            asked += not name.followed
            name.since, name.late, name.asked_since = now, False, None
            begun.append(host)
        return begun

    @staticmethod
    def _is_due(name: _Name, now: float) -> bool:
        return name.since is None and now >= name.due and (name.followed or name.asked_since is not None)

    def found(self, host: str, addresses: tuple[str, ...], now: float) -> list[News]:
        """A lookup has ended well."""
        began = self._names[host].since if host in self._names else None
        name = self._ended(host, now)
        if name is None or began is None:
            return []
        moved = bool(name.addresses) and set(addresses) != set(name.addresses)
        news = [News(host, "found", ", ".join(addresses))] if name.said_lost or moved else []
        name.addresses, name.began_at, name.found_at = addresses, began, now
        name.said_lost, name.delay_s, name.slow = False, 0.0, False
        name.due = now + (HINT_S if name.again else REFRESH_S)
        name.again = False
        return news if name.followed else []

    def failed(self, host: str, why: str, now: float) -> list[News]:
        """A lookup has ended without an address."""
        name = self._ended(host, now)
        if name is None:
            return []
        if not name.late:
            name.slow = False
        name.again = False
        self._pause(name, now)
        return self._lost(host, name, why)

    def tick(self, now: float) -> list[News]:
        """Look for lookups that take too long, or to begin, and for what is forgotten; call it a few times a second."""
        news: list[News] = []
        for host, name in self._names.items():
            if name.since is not None and not name.late and now - name.since >= PATIENCE_S:
                name.late = name.slow = True
                self.version += name.followed
                news += self._lost(host, name, f"no answer in {PATIENCE_S:g} s")
            if name.asked_since is not None and now - name.asked_since >= PATIENCE_S:  # too many others hang
                name.asked_since = None
                if not name.followed:
                    self._pause(name, now)
            if name.addresses and name.followed and now - name.found_at > KEEP_S:
                name.addresses = ()
                self.version += 1
        return news

    def _ended(self, host: str, now: float) -> _Name | None:
        name = self._names.get(host)
        if name is None or name.since is None:
            return None
        name.since, name.ended_at = None, now
        self.version += name.followed
        return name

    @staticmethod
    def _pause(name: _Name, now: float) -> None:
        longest_s = LAST_RETRY_S if name.followed else ASKED_RETRY_S
        name.delay_s = min(max(FIRST_RETRY_S, 2 * name.delay_s), longest_s)
        name.due = now + name.delay_s

    @staticmethod
    def _lost(host: str, name: _Name, why: str) -> list[News]:
        if name.said_lost or not name.followed:
            return []
        name.said_lost = True
        return [News(host, "lost", why)]

    def _make_room(self) -> bool:
        """See that one more name can be remembered."""
        others = {host: name for host, name in self._names.items() if not name.followed}
        if len(others) < REMEMBERED:
            return True
        idle = [
            (name.asked_at, host) for host, name in others.items() if name.since is None and name.asked_since is None
        ]
        if idle:
            del self._names[min(idle)[1]]
        return bool(idle)

    def __len__(self) -> int:
        return len(self._names)
