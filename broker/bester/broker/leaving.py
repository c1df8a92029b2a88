"""Messages that leave by encrypted doors in a turn of the loop: so many to each party, over all its links. Pure.

A party may have thousands of requests at once, if its credit says so, and dozens of links. Writing all of them would
hold everybody up.
"""

from __future__ import annotations

from bester.broker.core.effects import Link
from bester.broker.wire.messages import Message

SENT_AT_ONCE = 256
"""Messages to one party that are written in one turn, about a millisecond."""


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
        rooms[link.party] = room - min(room, len(messages))
        if not room:
            later[link] = messages
        elif len(messages) > room:
            outgoing[link], rests[link] = messages[:room], messages[room:]
    for link in later:
        del outgoing[link]
    return later | rests
