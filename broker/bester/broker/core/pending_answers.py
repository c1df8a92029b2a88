"""Answers that depend on a write that is not committed yet. Pure.

A report on a dead letter, or an answer to another server, must not be sent before the write that it follows from is on
disk. A commit may take seconds, and everything else goes on meanwhile, so these answers alone wait. An answer may
overtake and be overtaken by other messages of its link: it names its message by a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bester.broker.core.cases import Reports
from bester.broker.core.effects import Effects, Link
from bester.broker.core.resume import Unsent
from bester.broker.core.unwritten_letters import NO_LETTER
from bester.broker.store_requests import Bury, Committed, Rewrite, SaveLane, Unbury, Write
from bester.broker.wire.messages import Answer, Message, Relayed

ANSWERED_AFTER = frozenset({Rewrite, SaveLane, Bury, Unbury})
"""Writes that answers depend on. A message that is enqueued has its case, and a MarkSent its deliveries: `queues` lets
neither go on before the commit."""
_ALL_REST = frozenset({Relayed, Answer})
"""Answers to other servers and operators: each of them waits for such a write of its call, whatever it is about. Of the
other answers those in the `resting` of `Reports` wait: on a message of another server, or of which a dead letter is not
written. The rest wait for nothing."""
Waiting = tuple[Link, Message, int]
"""An answer, and the dead letter that it waits for as well."""


class PendingAnswers:
    """Answers by the write, or the dead letter, that they wait for.

    There are no more of them than messages under way, and some repeats of each. The store driver ends every wait for a
    write: by a commit, or by a failure where the store is away for too long. Then its dead letters and Rewrites are
    held back, and would be lost with this process. The answers to other servers that depend on such a Rewrite, a later
    outcome that was taken in, wait on in `_outlasting` for the next group that is written, and reports wait on for
    their dead letters.
    """

    def __init__(self, out: Effects, reports: Reports) -> None:
        self._out = out
        self._reports = reports
        self._letters = reports.letters
        self._by_write: dict[int, tuple[Write, list[Waiting]]] = {}  # by the identity of the write
        self._rewriting: set[int] = set()  # identities of those writes that come with a Rewrite
        self._by_letter: dict[int, list[tuple[Link, Message]]] = {}
        self._outlasting: list[tuple[Link, Message]] = []

    @property
    def count(self) -> int:
        """Count of the answers that wait."""
        by_write = sum(len(waiting) for _, waiting in self._by_write.values())
        return len(self._outlasting) + by_write + sum(map(len, self._by_letter.values()))

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
        elif any(resting.values()):
            for each in self._take_out(lambda answer: resting.get(id(answer), NO_LETTER) != NO_LETTER):
                self._wait_for_letter(*each)
        resting.clear()

    def _take_out(self, rests: Callable[[Message], bool]) -> list[Waiting]:
        """Take the answers for which `rests` is true out of the effects."""
        resting = self._reports.resting
        taken: list[Waiting] = []
        for link, messages in list(self._out.messages.items()):
            answers = [message for message in messages if rests(message)]
            if answers:
                taken += ((link, answer, resting.get(id(answer), NO_LETTER)) for answer in answers)
                self._out.messages[link] = [message for message in messages if not rests(message)]
                if not self._out.messages[link]:
                    del self._out.messages[link]
        return taken

    def _wait_for_letter(self, link: Link, answer: Message, letter: int) -> None:
        self._by_letter.setdefault(letter, []).append((link, answer))

    def on_committed(self, writes: Sequence[Write], result: Committed) -> None:
        """Send the answers that waited for a group of writes. Where the group failed because the store is away, those
        that depend on what is held back of the group wait on."""
        for letter in self._letters.on_committed(writes, result):
            self._send(self._by_letter.pop(letter, ()))
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
        rewrites = id(write) in self._rewriting
        self._rewriting.discard(id(write))
        for link, answer, letter in found[1]:
            if letter in self._letters.repeats:
                self._wait_for_letter(link, answer, letter)
            elif is_away and rewrites and type(answer) is Relayed:
                self._outlasting.append((link, answer))
            else:
                self._out.send(link, answer)

    def _send(self, answers: Sequence[tuple[Link, Message]]) -> None:
        for link, answer in answers:
            self._out.send(link, answer)

    def take(self, link: Link) -> list[Unsent]:
        """Return the messages for a link that is lost or void which this call, or a commit, was about to send, and
        forget those that wait: the state of the bridge remembers the reports."""
        taken: list[Unsent] = [(answer, NO_LETTER) for to, answer in self._outlasting if to == link]
        self._outlasting = [pair for pair in self._outlasting if pair[0] != link]
        for key, (write, waiting) in list(self._by_write.items()):
            mine = [(answer, letter) for to, answer, letter in waiting if to == link]
            if mine:
                taken += mine
                self._by_write[key] = write, [each for each in waiting if each[0] != link]
        for letter, answers in list(self._by_letter.items()):
            reports = [(answer, letter) for to, answer in answers if to == link]
            if reports:
                taken += reports
                self._by_letter[letter] = [pair for pair in answers if pair[0] != link]
        resting = self._reports.resting
        taken += ((message, resting.get(id(message), NO_LETTER)) for message in self._out.messages.get(link, ()))
        return taken
