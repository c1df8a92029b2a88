"""Answers that depend on a write that is not committed yet. Pure.

A report on a dead letter, or an answer to another server, must not be sent before the write that it follows from is on
disk. A commit may take seconds, and everything else goes on meanwhile, so these answers alone wait. They may overtake
and be overtaken by other messages of their link: each names its message by a token.
"""

from __future__ import annotations

from collections.abc import Sequence

from bester.broker.core.effects import Effects, Link
from bester.broker.store_requests import Bury, Committed, Rewrite, SaveLane, Unbury, Write
from bester.broker.wire.messages import Answer, Message, Outcome, Relayed, Report

ANSWERED_AFTER = frozenset({Rewrite, SaveLane, Bury, Unbury})
"""Writes that answers depend on. A message that is enqueued has its case, and a MarkSent its deliveries: `queues` lets
neither go on before the commit."""
_ANSWERS = frozenset({Report, Outcome, Relayed, Answer})


class PendingAnswers:
    """Answers by the write that they wait for.

    There are no more of them than messages under way, and the store driver ends every wait: by a commit, or by a
    failure where the store is away for too long. `_outlasting` are answers which rest on a write held back when
    the store was away. It would be lost with this process: a dead letter, or, for another server, a later outcome that
    was taken in.
    """

    def __init__(self, out: Effects) -> None:
        self._out = out
        self._by_write: dict[int, tuple[Write, list[tuple[Link, Message]]]] = {}  # by the identity of the write
        self._resting: set[int] = set()  # identities of those writes that come with a Rewrite
        self._burying: set[int] = set()  # the same with a Bury
        self._outlasting: list[tuple[Link, Message]] = []

    @property
    def count(self) -> int:
        """Count of the answers that wait."""
        return len(self._outlasting) + sum(len(waiting) for _, waiting in self._by_write.values())

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
            if any(type(write) is Rewrite for write in out.writes):
                self._resting.add(id(last))
            if any(type(write) is Bury for write in out.writes):
                self._burying.add(id(last))

    def on_committed(self, writes: Sequence[Write], result: Committed) -> None:
        """Send the answers that waited for a group of writes. Where the group failed because the store is away, its
        dead letters and Rewrites are held back, and the answers to senders, or for the latter those to other servers,
        wait for the next group that is written."""
        if result.ok and self._outlasting:
            answers, self._outlasting = self._outlasting, []
            self._send(answers)
        is_away = not result.ok and result.code == "storage-unavailable"
        for write in writes:
            if type(write) in ANSWERED_AFTER:
                self._release(write, is_away=is_away)

    def _release(self, write: Write, *, is_away: bool) -> None:
        found = self._by_write.pop(id(write), None)
        if found is None:
            return
        answers, rests, buries = found[1], id(write) in self._resting, id(write) in self._burying
        self._resting.discard(id(write))
        self._burying.discard(id(write))
        if is_away and buries:
            self._outlasting += answers
            return
        if is_away and rests:
            self._outlasting += [pair for pair in answers if type(pair[1]) is Relayed]
            answers = [pair for pair in answers if type(pair[1]) is not Relayed]
        self._send(answers)

    def _send(self, answers: Sequence[tuple[Link, Message]]) -> None:
        for link, answer in answers:
            self._out.send(link, answer)

    def take(self, link: Link) -> list[Message]:
        """Return and forget the answers for a link that is lost: the state of its bridge remembers the reports."""
        taken = [answer for to, answer in self._outlasting if to == link]
        self._outlasting = [pair for pair in self._outlasting if pair[0] != link]
        for key, (write, waiting) in list(self._by_write.items()):
            mine = [answer for to, answer in waiting if to == link]
            if mine:
                taken += mine
                self._by_write[key] = write, [pair for pair in waiting if pair[0] != link]
        return taken
