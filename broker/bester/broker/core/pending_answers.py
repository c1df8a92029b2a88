"""Answers that depend on a write that is not committed yet. Pure.

A report on a dead letter, or an answer to another server, must not be sent before the write that it follows from is on
disk. A commit may take seconds, and everything else goes on meanwhile, so these answers alone wait. They may overtake
and be overtaken by other messages of their link: each names its message by a token.
"""

from __future__ import annotations

from bester.broker.core.effects import Effects, Link
from bester.broker.store_requests import Bury, Rewrite, SaveLane, Unbury, Write
from bester.broker.wire.messages import Answer, Message, Outcome, Relayed, Report

ANSWERED_AFTER = frozenset({Rewrite, SaveLane, Bury, Unbury})
"""Writes that answers depend on. A message that is enqueued has its case, and a MarkSent its deliveries: `queues` lets
neither go on before the commit."""
_ANSWERS = frozenset({Report, Outcome, Relayed, Answer})


class PendingAnswers:
    """Answers by the write that they wait for.

    There are no more of them than messages under way, and the store driver ends every wait: by a commit, or by a
    failure where the store is away for too long.
    """

    def __init__(self, out: Effects) -> None:
        self._out = out
        self._by_write: dict[int, tuple[Write, list[tuple[Link, Message]]]] = {}  # by the identity of the write

    @property
    def count(self) -> int:
        """Count of the answers that wait."""
        return sum(len(waiting) for _, waiting in self._by_write.values())

    def hold(self) -> None:
        """Take the answers out of the effects of one call, where a write among these effects must come first."""
        out = self._out
        last = next((write for write in reversed(out.writes) if type(write) in ANSWERED_AFTER), None)
        if last is None:
            return
        waiting: list[tuple[Link, Message]] = []
        for link, messages in list(out.messages.items()):
            answers = [message for message in messages if type(message) in _ANSWERS]
            if answers:
                waiting += ((link, answer) for answer in answers)
                out.messages[link] = [message for message in messages if type(message) not in _ANSWERS]
                if not out.messages[link]:
                    del out.messages[link]
        if waiting:
            self._by_write[id(last)] = last, waiting

    def release(self, write: Write) -> None:
        """Send the answers that waited for this write."""
        found = self._by_write.pop(id(write), None)
        if found is not None:
            for link, answer in found[1]:
                self._out.send(link, answer)

    def take(self, link: Link) -> list[Message]:
        """Return and forget the answers for a link that is lost: the state of its bridge remembers the reports."""
        taken: list[Message] = []
        for key, (write, waiting) in list(self._by_write.items()):
            mine = [answer for to, answer in waiting if to == link]
            if mine:
                taken += mine
                self._by_write[key] = write, [pair for pair in waiting if pair[0] != link]
        return taken
