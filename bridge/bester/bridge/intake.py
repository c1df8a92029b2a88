"""The intake: shares the bridge's input among senders, by fair queueing, within a budget a turn. Pure.

Frames are handled at once while the turn has budget left and nobody waits. Otherwise their connection waits, and is
not read from meanwhile. In each turn of the loop the senders that wait take turns, and so do the connections of one
sender among themselves. Frames left over at the end of the budget go first in the next turn.

Costs are counted in units: one a frame, and one for each `UNIT_BYTES` of it. The sender that has had fewest units is
next, and gets a quantum of them. A sender that comes counts as one that has had a quantum less than those who always
wait: a sender that says less than its share waits for no round of the others, and those who always wait have equal
shares, also where they must wait for room in between. (This is start-time fair queueing: the units of those who always
wait are those that the sender had whose turn it is. These units grow by a small part of those of senders that have
come, too, so that an endless row of newcomers is not always first.)

Where the broker's credit is used up but for a little, only senders are served that come, or wait for the answer to each
message. The others wait here, where whoever says little passes them, and not as held messages, where nobody can.

A message passes several turns on its way, so long turns are the wait of whoever says little, and save work where
nobody does. Turns of the intake are short for a while after a sender came that had little to say. (`brief` shortens the
turns of the other parts, for other reasons: here the senders that wait are known.)
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import count

from bester.bridge.inspection import IntakeState
from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection
from bester.bridge.senders import Sender

CROWD = 8
"""Senders that wait at once and are many."""
NEWCOMERS = 128
"""Divisor: a turn of those who always wait comes after so many quanta of newcomers at the latest. More than the senders
that wait at once in most servers, so that their units keep ahead of those of a sender that says little."""
SMALL = 8
"""Divisor of a quantum: units of a newcomer that has little to say."""
SHORTENED = 2
"""Divisor of a turn's budget in short turns: a fourteenth less is served, in half the time."""
SHORT_S = 0.05
"""Time of short turns: a person who writes is not alone in a busy server, and a program asks again within this time."""


class Intake:
    """Connections with frames that wait for their turn.

    `handle(connection, ration)` handles waiting frames of a connection, at most `ration` units of them, and returns the
    units used. `wake` makes one call of `serve` at the end of this turn of the loop. `left` is what this turn's budget
    still allows to handle at once.
    """

    def __init__(
        self, limits: Limits, clock: Callable[[], float],
        handle: Callable[[ClientConnection, int], int], wake: Callable[[], None],
    ) -> None:  # fmt: skip
        self.left = limits.turn_units
        self._limits = limits
        self._clock = clock
        self._handle = handle
        self._wake = wake
        # A sender that waits takes turns, or has blocked connections alone and no room for them.
        self._ring: dict[Sender, int] = {}  # senders that take turns, with the number of their entry in `_order`
        # A heap by units, with the number and whether the sender has come; entries with an old number are void.
        self._order: list[tuple[float, int, bool, Sender]] = []
        self._numbers = count(1)
        self._units = 0.0  # those of a sender that always waits
        self._short_until = 0.0
        self._blocked: dict[Sender, None] = {}
        self._stuck: dict[ClientConnection, None] = {}  # connections whose next message has a stuck type

    def add(self, connection: ClientConnection) -> None:
        """Let a connection with frames that wait take its turn: behind the other connections of its sender, as soon as
        the sender has room for them. Frames that wait for a report on the same connection are added with that
        report."""
        session = connection.session
        window = session.window
        sender = window.sender
        if window.is_full:  # as of its last message: others of the sender's may have been reported since
            window.look_again()
        if session.is_ready:
            sender.ready[connection] = None
            self._blocked.pop(sender, None)
            if sender not in self._ring:
                self._take_turns(sender)
            self._wake()
        elif sender.submissions.is_over(sender):
            sender.blocked[connection] = None
            if sender not in self._ring:
                self._blocked[sender] = None
        elif window.waits_for is not None:
            self._stuck[connection] = None

    def on_credit(self) -> None:
        """Let connections whose next message had a stuck type take their turn, where the type is stuck no more."""
        stuck, self._stuck = self._stuck, {}
        for connection in stuck:
            connection.session.window.look_again()
            if connection.session.has_waiting:
                self.add(connection)

    @property
    def has_more(self) -> bool:
        """Return whether frames wait for their sender's room, so that more credit would be of use."""
        return bool(self._blocked)

    @property
    def has_crowd(self) -> bool:
        """Return whether many senders wait, so that the wait of each is that for all the others."""
        return len(self._ring) + len(self._blocked) >= CROWD

    def remove(self, connection: ClientConnection) -> None:
        """Forget a connection, which is gone or has nothing that waits."""
        sender = connection.session.window.sender
        sender.ready.pop(connection, None)
        sender.blocked.pop(connection, None)
        self._stuck.pop(connection, None)
        if not sender.ready and not sender.blocked:
            self._ring.pop(sender, None)
            self._blocked.pop(sender, None)

    def serve(self) -> None:
        """Begin a turn: handle frames that wait, within the budget, and leave the rest of it to frames that come."""
        if self._blocked:
            self._unblock()
        self.left, turn_s = self._limits.turn_units, self._limits.turn_s
        if self._short_until:
            if self._clock() < self._short_until:
                self.left, turn_s = max(self.left // SHORTENED, 1), turn_s / SHORTENED
            else:
                self._short_until = 0.0
        ring = self._ring
        if ring:
            enough = self._clock() + turn_s
            while ring and self.left > 0:
                self._serve_next()
                if self._clock() >= enough:
                    break
            if ring:
                self._wake()
            else:
                self._order.clear()
        if ring or self._lack_credit():  # senders that come now take turns with these
            self.left = 0

    def _lack_credit(self) -> bool:
        """Return whether senders wait for credit: whether the first of those that wait for room does."""
        first = next(iter(self._blocked), None)
        return first is not None and first.submissions.is_spent(first)

    def _take_turns(self, sender: Sender) -> None:
        """Give a sender that comes its place among those that take turns."""
        least = self._units - self._limits.turn_quantum
        has_come = sender.units <= least
        if has_come:
            sender.units = least
        self._place(sender, has_come=has_come)

    def _place(self, sender: Sender, *, has_come: bool = False) -> None:
        self._ring[sender] = number = next(self._numbers)
        heappush(self._order, (sender.units, number, has_come, sender))

    def _serve_next(self) -> None:
        """Handle frames of one connection of the sender whose turn it is."""
        _, number, has_come, sender = heappop(self._order)
        if self._ring.get(sender) != number:
            return
        # The senders before it have taken the room, or the credit, of which a little is left for those that come.
        if (not has_come and sender.submissions.is_spent(sender)) or (not sender.ready and not self._has_room(sender)):
            del self._ring[sender]
            self._blocked[sender] = None
            return
        if not has_come:
            self._units = max(self._units, sender.units)
        waiting = sender.ready or sender.blocked
        connection = next(iter(waiting))
        del waiting[connection]
        used = 1
        try:
            used = self._handle(connection, min(self._limits.turn_quantum, self.left))
        finally:  # a fault in one connection's frames must not keep the other senders from their turns
            if has_come:
                self._units += used / NEWCOMERS
                if used <= self._limits.turn_quantum // SMALL and not connection.session.has_waiting:
                    self._short_until = self._clock() + SHORT_S
            self._settle(sender, number, connection, used)

    def _settle(self, sender: Sender, number: int, connection: ClientConnection, used: int) -> None:
        """Charge a sender for the frames of one of its connections, and put both where they wait now."""
        sender.units += used
        self.left -= used
        if connection.session.has_waiting:
            self.add(connection)
        if self._ring.get(sender) != number:  # it has lost that connection, and come back
            return
        if sender.ready or (sender.blocked and not sender.submissions.is_over(sender)):
            self._place(sender)
            return
        del self._ring[sender]
        if sender.blocked:
            self._blocked[sender] = None

    def _unblock(self) -> None:
        """Let senders with room again take their turn."""
        for sender in list(self._blocked):
            if self._has_room(sender):
                del self._blocked[sender]
                self._take_turns(sender)

    def _has_room(self, sender: Sender) -> bool:
        """Return whether there is room for several messages of a sender, so that they are handled together, and credit
        to send them."""
        submissions = sender.submissions
        margin = min(self._limits.turn_quantum, submissions.most // 8)
        return not submissions.is_spent(sender) and not submissions.is_over(sender, margin)

    def inspect(self) -> IntakeState:
        """Return how many senders and connections wait."""
        return IntakeState(
            senders=len(self._ring),
            connections=sum(len(sender.ready) for sender in self._ring),
            blocked_senders=len(self._blocked),
            blocked=sum(len(sender.ready) + len(sender.blocked) for sender in self._blocked),
            stuck=len(self._stuck),
        )
