"""Exclusive use of a process by one of its brokers: granted on demand, to one at a time, in turn. Pure.

A message over which a handler may have died is to be alone with the next one, so that a death proves something. Its
broker knows of no other broker's messages, and asks for the exclusive use of the process. The process then begins
nothing of its other brokers, tells them to give nothing, and finishes what it has begun. What it has not begun it hands
back once the broker has answered, all at once: nothing can follow then, and each message group keeps its order.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Literal, Protocol

from bester.broker.wire.messages import Meta

MOST_IN_A_ROW = 8
"""Uses between which no other broker gives anything; the next one begins with the next `check`, some tenths of a second
later: a broker may have hundreds of messages over which a handler may have died."""


class State(Enum):
    FREE = "free"  # all brokers give messages
    CLEARING = "clearing"  # messages of other brokers are being finished
    GRANTED = "granted"  # the owner alone gives messages


Event = Literal["asked", "cleared", "over"]

# Transitions of a process. An event that is not listed for a state changes nothing.
#
#   event      asked      a broker asks for the exclusive use: it is the owner
#              cleared    every other broker gives nothing, and nothing of it is in hand: the owner is told
#              over       the owner asks no more, or for the next message, or its link is lost: the next one that asks
#                         is the owner, and where there is none, all brokers give messages again
TRANSITIONS: dict[tuple[State, Event], State] = {
    (State.FREE, "asked"): State.CLEARING,
    (State.CLEARING, "cleared"): State.GRANTED,
    (State.CLEARING, "over"): State.FREE,
    (State.GRANTED, "over"): State.FREE,
}


class Site(Protocol):
    """The link to one broker."""

    @property
    def can_pause(self) -> bool:
        """Return whether the broker knows of exclusive use; otherwise the broker's messages go on as ever."""
        ...

    @property
    def is_linked(self) -> bool:
        """Return whether the broker has welcomed this process, and the link is there."""
        ...

    @property
    def is_clear(self) -> bool:
        """Return whether no message of the broker is worked on."""
        ...

    @property
    def works_on_earlier(self) -> bool:
        """Return whether a message that came by an earlier link is worked on."""
        ...

    def bar(self, number: int) -> None:
        """Tell the broker to pause, under this number, and begin nothing of it: hold what has not begun, and what
        comes."""
        ...

    def hand_back(self) -> None:
        """Hand back what is held."""
        ...

    def unbar(self) -> None:
        """Begin the broker's messages again, first those that are held."""
        ...

    def tell(self, options: Meta) -> None:
        """Send the broker a HEARTBEAT with options."""
        ...


class Exclusive:
    """State of one process with these sites."""

    def __init__(self, sites: Sequence[Site]) -> None:
        self._sites = sites
        self.state = State.FREE
        self._owner: Site | None = None
        self._asked: dict[Site, int] = {}  # brokers that wait for their turn, and the numbers of their questions
        self._barred: set[Site] = set()
        self._told: dict[Site, int] = {}  # brokers that were told to pause, and the numbers of the pauses
        self._awaited: set[Site] = set()  # those that have not answered
        self._number = 0
        self._in_a_row = 0  # uses, since all brokers gave messages

    def on_signals(self, site: Site, options: Meta) -> None:
        """Take in the HEARTBEAT of a broker."""
        asked, paused = options.get("exclusive"), options.get("paused")
        if type(asked) is int:
            self._on_asked(site, asked)
        if type(paused) is int and self._told.get(site) == paused:
            self._awaited.discard(site)
            if site in self._barred:
                site.hand_back()
            self.check()

    def _on_asked(self, site: Site, number: int) -> None:
        """Take in that a broker asks for the exclusive use, under a number, or no more (0)."""
        self._asked.pop(site, None)
        if number:
            self._asked[site] = number
        if site is self._owner:
            self._next()
        elif self._owner is None and number:
            self._begin()

    def on_lost(self, site: Site) -> None:
        """Take in that a link is lost: what it asked, and what it was told, is void."""
        self._told.pop(site, None)
        self._awaited.discard(site)
        self._asked.pop(site, None)
        if site is self._owner:
            self._next()
        else:
            self.check()

    def on_linked(self, site: Site) -> None:
        """Take in that a broker has welcomed this process: it knows nothing of an exclusive use."""
        if self._owner is not None and site is not self._owner:
            self._pause(site)

    def check(self) -> None:
        """Grant the exclusive use once nothing of other brokers is in hand; call a few times a second, too."""
        owner = self._owner
        if owner is None:
            if self._asked:
                self._begin()
            return
        if self._awaited or not all(site.is_clear for site in self._barred):
            return
        if any(site.works_on_earlier for site in self._sites):
            return
        if self._go("cleared"):
            self._told.pop(owner, None)
            owner.tell({"exclusive": self._asked.pop(owner)})

    def _go(self, event: Event) -> bool:
        state = TRANSITIONS.get((self.state, event))
        if state is None:
            return False
        self.state = state
        return True

    def _next(self) -> None:
        """End the owner's use, and begin that of the next broker which asks for it."""
        self._go("over")
        self._owner = None
        self._in_a_row += 1
        if self._asked and self._in_a_row < MOST_IN_A_ROW:
            self._begin()
            return
        self._in_a_row = 0
        for site in self._barred:
            site.unbar()
        for site in self._told:
            site.tell({"paused": 0})
        self._barred.clear()
        self._told.clear()
        self._awaited.clear()

    def _begin(self) -> None:
        owner = self._owner = next(iter(self._asked))
        self._go("asked")
        if owner in self._barred:
            self._barred.remove(owner)
            self._awaited.discard(owner)
            owner.unbar()
        for site in self._sites:
            if site is not owner and site not in self._barred:
                self._pause(site)
        self.check()

    def _pause(self, site: Site) -> None:
        """Have a broker give nothing. One whose link is not there is told as soon as it is."""
        if site.is_linked and not site.can_pause:
            self._barred.discard(site)
            site.unbar()
            return
        self._number += 1
        self._barred.add(site)
        if site.is_linked:
            self._told[site] = self._number
            self._awaited.add(site)
        site.bar(self._number)
