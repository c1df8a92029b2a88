"""Answers that depend on a write that is not committed yet. Pure.

A report on a dead letter, or an answer to another server, must not be sent before the write that it follows from is on
disk. A commit may take seconds, and everything else goes on meanwhile, so these answers alone wait. They may overtake
and be overtaken by other messages of their link: each names its message by a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bester.broker.core.cases import Reports
from bester.broker.core.effects import Effects, Link
from bester.broker.store_requests import Bury, Committed, Rewrite, SaveLane, Unbury, Write
from bester.broker.wire.messages import Answer, Message, Relayed

ANSWERED_AFTER = frozenset({Rewrite, SaveLane, Bury, Unbury})
"""Writes that answers depend on. A message that is enqueued has its case, and a MarkSent its deliveries: `queues` lets
neither go on before the commit."""
_ALL_REST = frozenset({Relayed, Answer})
"""Answers to other servers and operators, which may depend on each of these writes. Of the others, those on a message
of another server or on a dead letter do: the `resting` of `Reports`. All others wait for nothing."""
Waiting = tuple[Link, Message, bool]
"""An answer, and whether it depends on a dead letter."""


class PendingAnswers:
    """Answers by the write that they wait for.

    There are no more of them than messages under way, and the store driver ends every wait: by a commit, or by a
    failure where the store is away for too long. `_outlasting` are answers which rest on a write held back when
    the store was away. It would be lost with this process: a dead letter, or, for another server, a later outcome that
    was taken in.
    """

    def __init__(self, out: Effects, reports: Reports) -> None:
        self._out = out
        self._reports = reports
        self._by_write: dict[int, tuple[Write, list[Waiting]]] = {}  # by the identity of the write
        self._rewriting: set[int] = set()  # identities of those writes that come with a Rewrite
        self._outlasting: list[tuple[Link, Message]] = []
        self._holds_letters = False  # the store holds dead letters back

    @property
    def count(self) -> int:
        """Count of the answers that wait."""
        return len(self._outlasting) + sum(len(waiting) for _, waiting in self._by_write.values())

    def hold(self) -> None:
        """Take the answers out of the effects of one call that depend on a write which must come first."""
        out, resting = self._out, self._reports.resting
        last = next((write for write in reversed(out.writes) if type(write) in ANSWERED_AFTER), None)
        if last is not None:
            waiting = self._take_out(lambda answer: type(answer) in _ALL_REST or id(answer) in resting)
            if waiting:
                self._by_write[id(last)] = last, waiting
                if any(type(write) is Rewrite for write in out.writes):
                    self._rewriting.add(id(last))
        elif self._holds_letters:
            waiting = self._take_out(lambda answer: resting.get(id(answer), False))
            self._outlasting += [(link, answer) for link, answer, _ in waiting]
        resting.clear()

    def _take_out(self, rests: Callable[[Message], bool]) -> list[Waiting]:
        """Take answers out of the effects."""
        taken: list[Waiting] = []
        for link, messages in list(self._out.messages.items()):
            answers = [message for message in messages if rests(message)]
            if answers:
                taken += ((link, answer, self._reports.resting.get(id(answer), False)) for answer in answers)
                self._out.messages[link] = [message for message in messages if not rests(message)]
                if not self._out.messages[link]:
                    del self._out.messages[link]
        return taken

    def on_committed(self, writes: Sequence[Write], result: Committed) -> None:
        """Send the answers that waited for a group of writes. Where the group failed because the store is away, its
        dead letters and Rewrites are held back, and the answers that depend on the former, or for the latter those to
        other servers, wait for the next group that is written."""
        if result.ok:
            self._holds_letters = False
            if self._outlasting:
                answers, self._outlasting = self._outlasting, []
                self._send(answers)
        is_away = not result.ok and result.code == "storage-unavailable"
        for write in writes:
            if type(write) in ANSWERED_AFTER:
                self._holds_letters = self._holds_letters or (is_away and type(write) is Bury)
                self._release(write, is_away=is_away)

    def _release(self, write: Write, *, is_away: bool) -> None:
        found = self._by_write.pop(id(write), None)
        if found is None:
            return
        rewrites = id(write) in self._rewriting
        self._rewriting.discard(id(write))
        sent: list[tuple[Link, Message]] = []
        for link, answer, is_buried in found[1]:
            outlasts = is_away and (is_buried or (rewrites and type(answer) is Relayed))
            (self._outlasting if outlasts else sent).append((link, answer))
        self._send(sent)

    def _send(self, answers: Sequence[tuple[Link, Message]]) -> None:
        for link, answer in answers:
            self._out.send(link, answer)

    def take(self, link: Link) -> list[Message]:
        """Return and forget the answers for a link that is lost: the state of its bridge remembers the reports."""
        taken = [answer for to, answer in self._outlasting if to == link]
        self._outlasting = [pair for pair in self._outlasting if pair[0] != link]
        for key, (write, waiting) in list(self._by_write.items()):
            mine = [answer for to, answer, _ in waiting if to == link]
            if mine:
                taken += mine
                self._by_write[key] = write, [each for each in waiting if each[0] != link]
        return taken
