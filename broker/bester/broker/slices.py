"""Slices: the messages of an encrypted door are handled by party in turn, a few at a time over several turns. Pure.

ZeroMQ takes one message of each link in turn. A message may be a thousand rows, whose cost is the sender's choice, and
a party may have many links: whoever sends single rows would wait for all of these. So what has come is read at once,
and waits here: each party's messages in order, and parties by fair queueing, slice by slice, within a budget of time a
turn. The next slice is one of the party that has had least time, where a party that comes counts as one that has had as
much as the next: single rows that cost little pass the costly ones, and do not wait for one of these each.
Turns that make up for a costly step are without the parties that have taken such steps, and not without the others.

What waits is bounded. Where it is too much, the link of which most waits is cut, of the party of which most waits: an
honest party has only as much under way as its credit and its unanswered messages are. One cut makes room, and costs as
little as a message: a party with a hundred links and thousands of messages must not hold everybody up while it is cut.
The doors of the same machine have no slices: their parties are trusted with the time that they take.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from itertools import count
from typing import Any

from bester.broker.brief import LITTLE, Brief
from bester.broker.core.effects import Link
from bester.broker.party_line import SLICE, Batch, Line
from bester.broker.share import Share
from bester.broker.wire.codec import UnreadRows
from bester.broker.wire.messages import Confirm, Heartbeat, Malformed
from bester.broker.wire.runs import READ_AS

SLICE_S = 0.001
"""Seconds in one turn of the loop: a message of an honest client takes four or five turns."""
ENDED_AT_ONCE = 16
"""Ends of links that are handled as they come; more wait for their party's turn. A party may let a hundred links go."""
MADE_UP_S = 0.008
"""Most of a turn's time that is made up for: a machine that stood still must not be mistaken for a costly message."""
COSTLY_S = 2 * SLICE_S
"""Time of one step that is made up for."""
FORGIVEN_S = 1.0
"""Time after a costly step for which its party has no part in turns that make up for one: some dozens of turns. The
step may have been an honest one."""
MOST_COSTLY = 256
"""Parties whose costly step is remembered; above the bound the oldest is forgotten."""
MOST_SERVED = 256
"""Parties of which nothing waits and whose time is remembered; above the bound the one served longest ago is
forgotten."""
SHORT_BYTES = 64 * 1024
"""Length of a message that is handled at once, where nothing waits: reading and checking it takes some tenths of a
millisecond at most."""
MOST_BYTES = 320 * 1024 * 1024
"""Bytes that wait in all. Memory; a handler that answers all requests of the usual credit (256) at once, with a
megabyte each, is below."""
FRAME_BYTES = 64
"""Counted for each frame beside its bytes: a message of sixteen thousand frames of two bytes is a megabyte."""
FREED_BYTES = 16 * 1024 * 1024
"""Memory of a link that was cut that is given back in one turn, about a millisecond: all at once is twenty."""
MOST_COUNT = 4096
"""The same in messages of ZeroMQ, for short ones: an honest link brings one a turn of its own loop."""
UNAWAITED = {Heartbeat, Confirm, Malformed, READ_AS.get(Confirm, Confirm)}
"""Kinds of messages for which nobody waits."""

WHY = "it sends more than is handled of it"
"""Reason for the log."""


class Slices:
    """Messages of one door. `read(link, frames)` returns the rows of a message, whose parts are read as they are taken
    by `rows[:n]`, of `rows[n:]` the next ones; `take(link, rows)` handles rows, `end(link)` the end of a link;
    `cut(link, why)` closes the connection of a link. `soon` calls a function in the next turn.
    `may_begin(party)` returns False while a party must take what waits for it first; no message of it is begun then.
    `cost_clock` measures what a step costs: where the system has one for each thread, a time without a processor is no
    costly step."""

    def __init__(
        self, read: Callable[[Link, Sequence[bytes]], Any], take: Callable[[Link, Sequence[Any]], None], *,
        end: Callable[[Link], None], cut: Callable[[Link, str], None], clock: Callable[[], float],
        cost_clock: Callable[[], float], soon: Callable[[Callable[[], None]], object], brief: Brief | None = None,
        may_begin: Callable[[str], bool] = lambda party: True, most_bytes: int = MOST_BYTES,
        most_count: int = MOST_COUNT,
    ) -> None:  # fmt: skip
        self._read = read
        self._take = take
        self._end = end
        self._cut = cut
        self._clock = clock
        self._cost_clock = cost_clock
        self._soon = soon
        self._brief = brief or Brief()
        self._may_begin = may_begin
        self._most_bytes = most_bytes
        self._most_count = most_count
        self._lines: dict[str, Line] = {}  # by party
        self._order: list[tuple[float, int, str]] = []  # a heap: time, number and party; void with an old number
        self._places = count(1)
        self._had_s = 0.0  # time of the party served last, before its slice
        self._served: OrderedDict[str, float] = OrderedDict()  # time of parties of which nothing waits
        self._is_due = False
        self._share = Share(SLICE_S, MADE_UP_S)
        self._costly: OrderedDict[str, float] = OrderedDict()  # parties by the time of their last costly step
        self._ended = 0  # links that have ended at once, since a turn's slices
        self._cutting: set[Link] = set()  # links that were cut, until their connections have ended
        self._shed_batches: deque[deque[Batch]] = deque()  # by link that was cut; their memory is not given back yet
        self._shed_bytes = 0
        self.size_bytes = self.count = 0
        """Size and number of the messages that wait."""

    def take_in(self, link: Link, frames: Sequence[bytes]) -> None:
        """Take in a message: handled now where nothing waits and it is short, else in its turn."""
        if link in self._cutting:
            return
        size_bytes = sum(map(len, frames)) + FRAME_BYTES * len(frames)
        line = self._lines.get(link.party)
        if line is None and not self._is_due and size_bytes <= SHORT_BYTES and self._may_begin(link.party):
            turn_s = self._turn_s()
            makes_up = not self._share.begin(turn_s=turn_s)
            if not makes_up or not self._was_costly(link.party):
                began = self._cost_clock()
                rows = self._read(link, frames)
                if len(rows) <= _in_step(rows, SLICE):
                    messages = rows[:]
                    self._note_little(link.party, messages)
                    self._had_s = self._before(link.party)
                    self._take(link, messages)
                    self._remember(link.party, self._had_s + self._count(link.party, began) - began)
                else:
                    self._queue(Batch(link, (), size_bytes, self._clock())).rows = rows
                    self._serve(turn_s, makes_up=makes_up)
                return
        while self._lines and (self.size_bytes + size_bytes > self._most_bytes or self.count >= self._most_count):
            self._shed(self._largest(by_count=self.count >= self._most_count))
            if link in self._cutting:
                return
        while self._shed_batches and self.size_bytes + self._shed_bytes + size_bytes > self._most_bytes:
            self._free_one()  # in this turn after all: the bound is one of memory
        self._queue(Batch(link, frames, size_bytes, self._clock()))

    def on_ended(self, link: Link) -> None:
        """Take in the end of a link, which comes behind its messages."""
        if link in self._cutting:
            self._cutting.discard(link)
        elif link.party in self._lines or self._ended >= ENDED_AT_ONCE:
            self._queue(Batch(link, None, 0, self._clock()))
        else:
            self._ended += 1
            self._end(link)

    def waits_since(self, party: str) -> float | None:
        """Return when the oldest message that waits of a party came, None where none waits."""
        line = self._lines.get(party)
        return line.first.since if line is not None else None

    @property
    def halfway(self) -> list[Link]:
        """Links with a message that is handled in part. Their answers have to wait for its end: a link that cannot be
        sent to is lost, with the rest of the message."""
        return [line.first.link for line in self._lines.values() if line.rows is not None]

    def drop(self) -> None:
        """Forget everything that waits: the door closes."""
        self._lines.clear()
        self._shed_batches.clear()
        self.size_bytes = self.count = self._shed_bytes = 0

    def _queue(self, batch: Batch) -> Line:
        line = self._lines.get(batch.link.party)
        if line is None:
            line = self._lines[batch.link.party] = Line(self._before(batch.link.party))
            self._place(batch.link.party, line)
        line.add(batch)
        self.size_bytes += batch.size_bytes
        self.count += 1
        self._call_soon()
        return line

    def _call_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._soon(self._go_on)

    def _largest(self, *, by_count: bool) -> Link:
        """Return the link of which most waits, of the party of which most waits: most messages, or most bytes."""
        if by_count:
            line = max(self._lines.values(), key=lambda each: each.count)
            return max(line.backlogs.values(), key=lambda each: len(each.batches)).link
        line = max(self._lines.values(), key=lambda each: each.size_bytes)
        return max(line.backlogs.values(), key=lambda each: each.size_bytes).link

    def _shed(self, link: Link) -> None:
        """Cut a link: what waits of it is lost, and so is what still comes on it."""
        line = self._lines[link.party]
        before_bytes = line.size_bytes
        batches = line.cut(link)
        has_ended = batches[-1].frames is None
        self._shed_batches.append(batches)
        self._call_soon()
        self.count -= len(batches)
        self.size_bytes -= before_bytes - line.size_bytes
        self._shed_bytes += before_bytes - line.size_bytes
        if not line.count:
            del self._lines[link.party]
        if not has_ended:
            self._cutting.add(link)
            self._cut(link, WHY)
        self._end(link)

    def _free(self) -> None:
        """Give back some of the memory of links that were cut."""
        freed_bytes = 0
        while self._shed_batches and freed_bytes < FREED_BYTES:
            freed_bytes += self._free_one()
        if self._shed_batches:
            self._call_soon()

    def _free_one(self) -> int:
        """Give back the memory of one message, and return its length in bytes."""
        batches = self._shed_batches[0]
        size_bytes = batches.popleft().size_bytes
        if not batches:
            self._shed_batches.popleft()
        self._shed_bytes -= size_bytes
        return size_bytes

    def _go_on(self) -> None:
        self._is_due = False
        self._ended = 0
        self._free()
        turn_s = self._turn_s()
        self._serve(turn_s, makes_up=not self._share.begin(turn_s=turn_s))

    def _turn_s(self) -> float:
        """Return the time of this turn."""
        return self._brief.part(SLICE_S, self._clock())

    def _note_little(self, party: str, messages: Sequence[Any]) -> None:
        """Note a party that has sent some messages, and of which nothing else waits. Messages that nobody waits for do
        not count: each party sends a heartbeat every few seconds, and many parties are never silent."""
        if len(messages) <= LITTLE and not all(type(message) in UNAWAITED for message in messages):
            self._brief.on_little(party, self._clock())

    def _serve(self, turn_s: float, *, makes_up: bool) -> None:
        """Handle slices of the parties in turn until the time of the turn is used up. A turn that makes up for a costly
        step is for parties that have taken none lately, and half as long."""
        began = now = self._cost_clock()
        enough = began + (turn_s / 2 if makes_up else turn_s)
        served: dict[str, None] = {}
        try:
            while now < enough and (party := self._next(makes_up=makes_up)) is not None:
                line = self._lines[party]
                served[party] = None
                self._had_s = line.had_s
                before = now
                try:
                    self._handle(party, line)
                finally:
                    now = self._count(party, before)
                    line.had_s += now - before
                    if party in self._lines:
                        self._place(party, line)
                    else:
                        self._remember(party, line.had_s)
                line.slice = min(line.slice + 1, SLICE) if now - before < SLICE_S / 4 else max(line.slice // 4, 1)
        finally:  # also after a fault over one message
            self._share.end(self._cost_clock() - began)
            if self._lines:
                self._call_soon()
                for party in served.keys() & self._lines.keys():
                    self._brief.on_much(party, self._clock())

    def _next(self, *, makes_up: bool) -> str | None:
        """Take the party whose turn it is out of the order; return None where none may be served."""
        passed_over: list[tuple[float, int, str]] = []
        found = None
        while self._order and found is None:
            entry = heappop(self._order)
            _, number, party = entry
            line = self._lines.get(party)
            if line is None or line.place != number:
                continue
            if (makes_up and self._was_costly(party)) or (line.rows is None and not self._may_begin(party)):
                passed_over.append(entry)
            else:
                found = party
        for entry in passed_over:
            heappush(self._order, entry)
        return found

    def _place(self, party: str, line: Line) -> None:
        """Put a party of which something waits into the order."""
        line.place = next(self._places)
        heappush(self._order, (line.had_s, line.place, party))

    def _before(self, party: str) -> float:
        """Return the time that a party of which nothing waits counts to have had: it has saved none of its share."""
        return max(self._served.pop(party, 0.0), self._had_s)

    def _remember(self, party: str, had_s: float) -> None:
        """Remember the time of a party of which nothing waits any more."""
        self._served[party] = had_s
        if len(self._served) > MOST_SERVED:
            self._served.popitem(last=False)

    def _was_costly(self, party: str) -> bool:
        since = self._costly.get(party)
        return since is not None and self._clock() < since + FORGIVEN_S

    def _count(self, party: str, began: float) -> float:
        """Count a step of a party since `began`; return the time. Both are of the clock of costs."""
        now = self._cost_clock()
        self._share.end(now - began)
        if now - began > COSTLY_S:
            self._costly[party] = self._clock()
            self._costly.move_to_end(party)
            if len(self._costly) > MOST_COSTLY:
                self._costly.popitem(last=False)
        return now

    def _handle(self, party: str, line: Line) -> None:
        """Handle a slice of the first message of a party."""
        batch = line.first
        rows = line.rows
        if rows is None and batch.frames is not None:
            try:
                rows = self._read(batch.link, batch.frames)
            except BaseException:  # it would fail in each turn, and the party would never get past it
                self._shed(batch.link)
                raise
            line.let_go_of_frames()
        size = _in_step(rows, line.slice)
        rest = () if rows is None else rows[size:]
        comes_alone = line.rows is None and not rest and line.count == 1
        line.rows = rest or None
        if not rest:
            line.take()
            self.size_bytes -= batch.size_bytes
            self.count -= 1
            if not line.count:
                del self._lines[party]
        if rows is None:
            self._end(batch.link)
        else:
            messages = rows[:size]
            if comes_alone:
                self._note_little(party, messages)
            self._take(batch.link, messages)


def _in_step(rows: Any, most: int) -> int:
    """Return how many rows to handle at once, at most so many: fewer where they are long."""
    return rows.within(most) if type(rows) is UnreadRows else most
