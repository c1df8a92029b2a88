"""Messages that leave in a turn of the loop, and those that are left to a later turn. Pure.

By encrypted doors so many leave to each party, over all its links: a party may have thousands of requests at once, if
its credit says so, and dozens of links. Writing all of them would hold everybody up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from bester.broker.core.effects import Link
from bester.broker.wire.messages import Answer, Error, Goodbye, Message, Outcome, Report, Traced

SENT_AT_ONCE = 256
"""Messages to one party that are written in one turn, about a millisecond."""
MOST_BEHIND = 4 * SENT_AT_ONCE
"""Messages that wait for one party, above which nothing more of it is handled: a party could ask for ever more than
leaves to it."""
ELEMENTS = 64
"""Elements of a list or a map that take as long to write as another message: an answer may name all users."""
_SIZED = {Answer: 2, Outcome: 2, Report: 4, Traced: 1}
"""Kinds of messages that may hold thousands of elements, and the field that holds them."""
LAST_WORDS = {Goodbye, Error}
"""Kinds of messages that are sent to a link that was lost."""


class Leaving(dict[Link, list[Message]]):
    """Messages by link that leave at the end of this turn.

    `has_rest` tells after `take_turn` whether messages were left to the next turn. What is held back for a batch that
    is halfway through does not count: that batch goes on by itself."""

    __slots__ = ("_held_back", "_left", "has_rest")

    def __init__(self) -> None:
        super().__init__()
        self.has_rest = False
        self._left: set[Link] = set()  # links whose first messages were left to this turn
        self._held_back: set[Link] = set()  # links of which a batch was halfway through at the end of the last turn

    def may_begin(self, party: str) -> bool:
        """Return whether a message of a party may be begun: not before what was held back for an earlier one has left,
        nor while much waits for the party."""
        if any(link.party == party and link in self for link in self._held_back):
            return False
        return sum(len(self.get(link, ())) for link in self._left if link.party == party) < MOST_BEHIND

    def leave(self, link: Link, messages: Sequence[Message]) -> None:
        """Leave messages of this turn to the next one, in which they come first."""
        self[link] = [*messages, *self.pop(link, ())]
        self._left.add(link)

    def take_turn(self, halfway: Iterable[Link] | None, most: int = SENT_AT_ONCE) -> dict[Link, list[Message]]:
        """Return what leaves in this turn. Where there are encrypted doors (`halfway` is not None), later turns get
        what there is for a link that is `halfway` through a batch, and what a party has above `most` messages."""
        turn = dict(self)
        self.clear()
        before, self._left = self._left, set()
        self._held_back.clear()
        self.has_rest = False
        for link in halfway or ():
            if link in turn:
                self[link] = turn.pop(link)
                self._held_back.add(link)
                if link in before:
                    self._left.add(link)
        rest = split(turn, most) if halfway is not None else {}
        for link, messages in rest.items():
            self.leave(link, messages)
        self.has_rest = bool(rest)
        return turn

    def take_unsent(self, link: Link, full: Sequence[Message]) -> Sequence[Message]:
        """Return the messages for a link that was lost, of which the first were left to a later turn or had no room
        (`full`), and send them no more. A last word is sent."""
        if link not in self._left and not full:
            return ()
        self._left.discard(link)
        messages = [*full, *self.pop(link, ())]
        last = [message for message in messages if type(message) in LAST_WORDS]
        if last:
            self[link] = last
        return messages


def split(outgoing: dict[Link, list[Message]], most: int = SENT_AT_ONCE) -> dict[Link, list[Message]]:
    """Take what must leave in a later turn out of the messages of this one, and return it. The links of a party that
    have had no part in this turn come first then."""
    rooms: dict[str, int] = {}
    later: dict[Link, list[Message]] = {}
    rests: dict[Link, list[Message]] = {}
    for link, messages in outgoing.items():
        if link.door != "curve":
            continue
        room = rooms.get(link.party, most)
        if not room:
            later[link] = messages
            continue
        count, rooms[link.party] = _fitting(messages, room)
        if count < len(messages):
            outgoing[link], rests[link] = messages[:count], messages[count:]
    for link in later:
        del outgoing[link]
    return later | rests


def _fitting(messages: Sequence[Message], room: int) -> tuple[int, int]:
    """Return how many messages have room, at least one, and the room that is left."""
    for index, message in enumerate(messages):
        if room <= 0:
            return index, 0
        room -= 1
        field = _SIZED.get(type(message))
        if field is not None:
            value = message[field]
            if type(value) is list or type(value) is dict:
                room -= len(value) // ELEMENTS
    return len(messages), max(room, 0)
