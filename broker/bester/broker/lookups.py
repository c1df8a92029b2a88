"""Schedule and cache of host name lookups. Pure: the shell owns the threads and the clock.

A *followed* name, that of a configured server, is looked up at once, then once a minute, and with a growing pause while
lookups fail. Any other name is looked up on request and remembered for a minute. A name has one lookup at a time.
Addresses stay valid while later lookups fail: an outage of the name server disconnects no server.

A lookup longer than PATIENCE_S counts as failed for its requesters and goes on, as only the system can end a lookup.
Names with such a slow lookup share half of the lookups under way from then on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from bester.broker.hosts import HostAddresses

PATIENCE_S = 3.0
"""Seconds to wait for an answer: less than a bridge waits for another server, so that the sender gets the reason in
time; enough for a resolver that repeats one lost packet."""
REFRESH_S = 60.0
"""Interval at which a known name is looked up again, and lifetime of a name that is not followed."""
FIRST_RETRY_S = 0.5
LAST_RETRY_S = 60.0
"""Bounds of the doubling pause while a name is not found."""
ASKED_RETRY_S = 5.0
"""Longest pause for a name that is not followed, as its requester must soon be able to try again."""
HINT_S = 1.0
"""Pause to which a hint that the name may be known by now shortens the wait, counted from the last lookup."""
KEEP_S = 3600.0
"""Lifetime of an address while lookups fail: longer than name servers are down, and bounded, as the address may be
given to another host."""
AT_ONCE = 64
"""Lookups under way, and as many late ones beside them: each has a thread. At a start nobody knows yet which names
hang, and the system may take half a minute to give one up: the other names must not wait for that."""
SLOW_AT_ONCE = AT_ONCE // 2
"""Lookups under way of names whose last lookup was slow, so that other names need not wait for them."""
ASKED_AT_ONCE = AT_ONCE // 4
"""Lookups under way of names that are not followed: handlers may name any host, and must not delay configured ones."""
REMEMBERED = 1024
"""Names remembered that are not followed; above the bound the one is forgotten for which nothing was done for
longest."""


class LookupEvent(NamedTuple):
    """Change of a followed name, for the log.

    `event` is "lost" (`text` is the reason) or "found" (again, or elsewhere; `text` is the addresses).
    """

    host: str
    event: str
    text: str


@dataclass(slots=True)
class _Name:
    followed: bool
    due: float  # time of the next lookup; of a name that is not followed, the earliest
    asked_since: float | None = None  # time of a request whose lookup has not begun
    since: float | None = None  # start of the lookup under way
    late: bool = False  # longer than PATIENCE_S
    slow: bool = False  # the last lookup was late, or this one is
    again: bool = False  # look up again after this one
    ended_at: float = float("-inf")
    delay_s: float = 0.0  # pause after a failure, 0 without one
    addresses: tuple[str, ...] = ()
    began_at: float = float("-inf")  # start of the lookup that found `addresses`
    found_at: float = float("-inf")  # end of that lookup
    reported_lost: bool = False


class Lookups:
    """Names of one process. `version` counts the changes of followed names.

    A handler may name a thousand hosts in one reply: each step looks at the names which it concerns alone, and at those
    that are followed, which are few.
    """

    def __init__(self) -> None:
        self.version = 0
        self._names: dict[str, _Name] = {}
        # Names by what is to be done with them; one that is followed is in `_followed` as well.
        self._followed: dict[str, _Name] = {}
        self._wanted: dict[str, _Name] = {}  # whose lookup was requested, and has not begun: the first request first
        self._under_way: dict[str, _Name] = {}
        self._idle: dict[str, None] = {}  # neither, and not followed: the first to be forgotten first

    def follow(self, host: str, now: float) -> None:
        """Follow a name from now on; a repeated call does nothing."""
        name = self._names.setdefault(host, _Name(False, now))
        if not name.followed:
            name.followed = True
            name.due = min(name.due, now)
            self._followed[host] = name
            self._file(host, name)

    def unfollow(self, host: str) -> None:
        """Follow a name no more: the name is remembered as one that was asked for once."""
        name = self._names.get(host)
        if name is not None:
            name.followed = False
            self._followed.pop(host, None)
            self._file(host, name)

    def ask(self, host: str, now: float) -> bool:
        """Request the lookup of an unknown name. Return False if a lookup just failed or is late, or if too many names
        wait."""
        name = self._names.get(host)
        if name is None:
            if not self._make_room():
                return False
            name = self._names[host] = _Name(False, now)
        if name.since is not None:
            return not name.late
        if name.delay_s and now < name.due:
            return False
        if name.asked_since is None:
            name.asked_since = now
        name.due = min(name.due, now)
        self._file(host, name)
        return True

    def hint(self, host: str, now: float) -> None:
        """Look a followed name up soon, as its host may be known by now, or have moved."""
        name = self._names.get(host)
        if name is not None and name.followed:
            name.again = name.since is not None
            name.due = min(name.due, max(now, name.ended_at + HINT_S))

    def addresses(self, host: str, now: float) -> tuple[str, ...]:
        """Return the addresses of a name, or an empty tuple for an unknown one."""
        name = self._names.get(host)
        if name is None or now - name.found_at > (KEEP_S if name.followed else REFRESH_S):
            return ()
        return name.addresses

    def host_addresses(self, host: str, now: float) -> HostAddresses:
        """Return the addresses of a name with the start of their lookup."""
        found = self.addresses(host, now)
        return HostAddresses(found, self._names[host].began_at) if found else HostAddresses()

    def is_asked(self, host: str) -> bool:
        """Return whether requesters of a name must still wait."""
        name = self._names.get(host)
        return name is not None and (name.asked_since is not None or (name.since is not None and not name.late))

    @property
    def idle(self) -> bool:
        """State in which time changes nothing: no name is followed or being looked up."""
        return not (self._followed or self._wanted or self._under_way)

    def start(self, now: float) -> list[str]:
        """Return the names to look up now, the longest due first, and mark their lookups as under way."""
        running = len(self._under_way)
        asked = sum(1 for name in self._under_way.values() if not name.followed)
        most = AT_ONCE + min(AT_ONCE, sum(1 for name in self._under_way.values() if name.late))
        begun: list[str] = []
        for host, name in self._waiting(now, ASKED_AT_ONCE - asked):
            if running >= (SLOW_AT_ONCE if name.slow else most) or (not name.followed and asked >= ASKED_AT_ONCE):
                continue
            running += 1
            asked += not name.followed
            name.since, name.late, name.asked_since = now, False, None
            self._file(host, name)
            begun.append(host)
        return begun

    def _waiting(self, now: float, places: int) -> list[tuple[str, _Name]]:
        """Return the names that are due, the longest first: of those that are not followed the first to be asked for,
        up to as many as there are places for, beside slow ones."""
        rows = [(name.due, host, name) for host, name in self._followed.items() if self._is_due(name, now)]
        for host, name in self._wanted.items() if places > 0 else ():
            if not name.followed:
                rows.append((name.due, host, name))
                places -= not name.slow
                if not places:
                    break
        return [(host, name) for _, host, name in sorted(rows, key=lambda row: row[:2])]

    def _file(self, host: str, name: _Name) -> None:
        """Note what is to be done with a name, after a change."""
        is_wanted, is_under_way = name.asked_since is not None, name.since is not None
        for table, is_in in ((self._wanted, is_wanted), (self._under_way, is_under_way)):
            if is_in:
                table.setdefault(host, name)
            else:
                table.pop(host, None)
        self._idle.pop(host, None)
        if not (name.followed or is_wanted or is_under_way):
            self._idle[host] = None

    @staticmethod
    def _is_due(name: _Name, now: float) -> bool:
        return name.since is None and now >= name.due and (name.followed or name.asked_since is not None)

    def on_found(self, host: str, addresses: tuple[str, ...], now: float) -> list[LookupEvent]:
        """Record the result of a successful lookup."""
        began = self._names[host].since if host in self._names else None
        name = self._ended(host, now)
        if name is None or began is None:
            return []
        moved = bool(name.addresses) and set(addresses) != set(name.addresses)
        events = [LookupEvent(host, "found", ", ".join(addresses))] if name.reported_lost or moved else []
        name.addresses, name.began_at, name.found_at = addresses, began, now
        name.reported_lost, name.delay_s, name.slow = False, 0.0, False
        name.due = now + (HINT_S if name.again else REFRESH_S)
        name.again = False
        return events if name.followed else []

    def on_failed(self, host: str, why: str, now: float) -> list[LookupEvent]:
        """Record a failed lookup."""
        name = self._ended(host, now)
        if name is None:
            return []
        if not name.late:
            name.slow = False
        name.again = False
        self._pause(name, now)
        return self._lost(host, name, why)

    def tick(self, now: float) -> list[LookupEvent]:
        """Mark late lookups, drop requests that wait too long, and expire addresses; call a few times a second."""
        events: list[LookupEvent] = []
        for host, name in self._names.items():
            if name.since is not None and not name.late and now - name.since >= PATIENCE_S:
                name.late = name.slow = True
                self.version += name.followed
                events += self._lost(host, name, f"no answer in {PATIENCE_S:g} s")
            if name.asked_since is not None and now - name.asked_since >= PATIENCE_S:  # too many other lookups hang
                name.asked_since = None
                self._file(host, name)
                if not name.followed:
                    self._pause(name, now)
            if name.addresses and name.followed and now - name.found_at > KEEP_S:
                name.addresses = ()
                self.version += 1
        return events

    def _ended(self, host: str, now: float) -> _Name | None:
        name = self._names.get(host)
        if name is None or name.since is None:
            return None
        name.since, name.ended_at = None, now
        self._file(host, name)
        self.version += name.followed
        return name

    @staticmethod
    def _pause(name: _Name, now: float) -> None:
        longest_s = LAST_RETRY_S if name.followed else ASKED_RETRY_S
        name.delay_s = min(max(FIRST_RETRY_S, 2 * name.delay_s), longest_s)
        name.due = now + name.delay_s

    @staticmethod
    def _lost(host: str, name: _Name, why: str) -> list[LookupEvent]:
        if name.reported_lost or not name.followed:
            return []
        name.reported_lost = True
        return [LookupEvent(host, "lost", why)]

    def _make_room(self) -> bool:
        """Make room for one more name; return False if every remembered name is in use."""
        if len(self._names) - len(self._followed) < REMEMBERED:
            return True
        host = next(iter(self._idle), None)
        if host is None:
            return False
        del self._names[host], self._idle[host]
        return True

    def __len__(self) -> int:
        return len(self._names)
