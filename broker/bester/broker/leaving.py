"""Messages that leave by encrypted doors in a turn of the loop: so many to each party, over all its links. Pure.

A party may have thousands of requests at once, if its credit says so, and dozens of links. Writing all of them would
hold everybody up.
"""

from __future__ import annotations

from collections.abc import Sequence

from bester.broker.core.effects import Link
from bester.broker.wire.messages import Answer, Message, Outcome, Report, Traced

SENT_AT_ONCE = 256
"""Messages to one party that are written in one turn, about a millisecond."""
MOST_BEHIND = 4 * SENT_AT_ONCE
"""Messages that wait for one party, above which nothing more of it is handled: a party could ask for ever more than
leaves to it."""
ELEMENTS = 64
"""Elements of a list or a map that take as long to write as another message: an answer may name all users."""
_SIZED = {Answer: 2, Outcome: 2, Report: 4, Traced: 1}
"""Kinds of messages that may hold thousands of elements, and the field that holds them."""


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
