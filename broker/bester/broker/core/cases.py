"""A case is the one report on a message that entered, due when everything the message led to has ended.

A handler's commands may fan out into many results, and those into more: each is counted in `pending` at its begin, and
counted out at its end. The last one ends the case.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, Protocol, TypeVar

from msgspec import Struct

from bester.broker.core.effects import Effects, Link
from bester.broker.core.figures import FOLD_AT, TypeFigures
from bester.broker.core.unwritten_letters import NO_LETTER, UnwrittenLetters
from bester.broker.wire.messages import Message, Outcome, Relayed, Report
from bester.broker.wire.outcomes import AGAIN, DELIVERED, QUEUED, failed, reason_of, severity

MAX_NAMED = 8 * 1024 * 1024
"""Characters of recipients' names (and NAME_COST more for each) in one report: a longer report would not pass on the
fabric, and would cost its bridge the link."""
NAME_COST = 32
MAX_KEPT = 1024
"""The same for a report that is remembered for a duplicate; longer lists of names are sent once."""
MAX_ASKERS = 16
"""Senders of duplicates of one message under way: a sender repeats only messages without a report. Above the bound the
sender that has waited longest is answered that the message may have arrived. As many may wait for the dead letter of a
case that has ended, and the next is answered so."""


MAY_HAVE_ARRIVED = "unreachable"
"""Reason of a refusal for now where the message may have been processed before, or have arrived: by this code, another
server marks the message when it sends the message again."""


R = TypeVar("R", Report, Outcome)


class Kind(Enum):
    SUBMIT = "submit"  # from a client or native server, through a bridge: ends in a REPORT
    EMIT = "emit"  # from a handler on its own initiative: ends in an OUTCOME
    RELAY = "relay"  # from another broker: ends in a RELAYED
    REPLAY = "replay"  # a replayed dead letter: nobody waits for it


_SUBMIT = Kind.SUBMIT


class Watcher(Protocol):
    """A unit that must know when a case has ended."""

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """Take in the end of a case; `answer` is the report its asker was sent, None where the bridge reported by
        itself."""


class Case(Struct, eq=False, gc=False):  # a Struct, since every message has one; reference cycles end with the case
    """Count of everything a message led to. `id` and `root` are the message's, `link` and `token` those of its asker.

    `pending` counts results that have not ended. `recipients` are outcomes by target, `worst` the worst of them,
    `reason` the first failure's code, `note` the handler's text for it. `queued` counts the results queued on disk,
    `expires` is when the message expires, `push` asks for later outcomes to be sent.

    `resubmitted`: a bridge submitted the message again, or its sender says so, and an earlier life of this broker, or
    another broker of this server, may have processed it; the report never says that the message was merely refused, nor
    does the answer to a server whose message has led to anything: a refusal of the whole has that server try again.

    `moved`: the bridge has lost the link on which it submitted the message, and may have submitted it to another broker
    of this server, which counts from its own copy: what comes of this one may be a repeat, and late.

    `letter` is the number of the last dead letter that one of its messages became: the report waits until the letter
    is written.

    `figures` are those of the type of a message that entered, which was at `since`; None for other cases. `traced`: its
    usual steps are in the trace, of which the others are a sample.

    `sender` is the user who may ask for later outcomes, `peer` the server that gets them: those of the message that
    entered, wherever its results are sent on to. `other_askers` sent duplicates and get the same report,
    `watchers` are called at the end.
    """

    kind: Kind
    link: Link
    token: int
    id: str
    root: str
    pending: int = 0
    sender: str | None = None
    figures: TypeFigures | None = None
    since: float = 0.0
    recipients: dict[str, str] | None = None  # made for the first: most cases name nobody
    names_size: int = 0
    worst: str = DELIVERED
    reason: str | None = None
    note: str | None = None
    queued: int = 0
    expires: float | None = None
    push: bool = False
    resubmitted: bool = False
    moved: bool = False
    letter: int = NO_LETTER
    peer: str | None = None
    claimed_id: str | None = None
    other_askers: list[tuple[Link, int]] | None = None
    watchers: tuple[Watcher, ...] = ()
    traced: bool = True

    def completes_on(self, link: Link) -> bool:
        """Return whether one good delivery on this link would be all that the report to the asker, on the same
        link, has to state."""
        if self.pending != 1 or self.worst != DELIVERED or self.kind is not _SUBMIT or self.other_askers is not None:
            return False
        return (self.link is link or self.link == link) and not self.moved

    def record(self, name: str | None, outcome: str, note: str | None = None) -> None:
        """Record one outcome under the target's name as the handler wrote it (None: the message itself). `note` is for
        the sender, and kept where this is the first failure.

        With too many names already, the outcome counts and the name is left out.
        """
        if name is not None:
            if self.recipients is None:
                self.recipients = {}
            before = self.recipients.get(name)
            if before is None:
                self.names_size += len(name) + NAME_COST
                if self.names_size <= MAX_NAMED:
                    self.recipients[name] = outcome
            elif outcome != DELIVERED and severity(outcome) > severity(before):
                self.recipients[name] = outcome
        if outcome == DELIVERED:
            return
        if outcome == QUEUED:
            self.queued += 1
        if severity(outcome) > severity(self.worst):
            self.worst = outcome
        if self.reason is None:
            self.reason, self.note = reason_of(outcome), note

    def take_over(self, answer: str) -> str:
        """Take over the outcome by which another broker of this server has answered the message: behind a blank, how
        many late outcomes are to come. Return the outcome."""
        outcome, _, queued = answer.partition(" ")
        if severity(outcome) > severity(self.worst):
            self.worst = outcome
        if queued:
            self.queued = max(self.queued, int(queued))
        if self.reason is None:
            self.reason = reason_of(outcome)
        if self.reason is not None:
            self.names_size = max(self.names_size, NAME_COST)  # a failure that was written is final
        return outcome

    def record_failures(self, names: Sequence[str], outcome: str) -> None:
        """Record one failure of many targets, as `record` does for each."""
        if self.recipients is None:
            self.recipients = {}
        recipients, size, rank = self.recipients, self.names_size, severity(outcome)
        for name in names:
            before = recipients.get(name)
            if before is None:
                size += len(name) + NAME_COST
                if size <= MAX_NAMED:
                    recipients[name] = outcome
            elif rank > severity(before):
                recipients[name] = outcome
        self.names_size = size
        if rank > severity(self.worst):
            self.worst = outcome
        if self.reason is None:
            self.reason = reason_of(outcome)

    @property
    def carried(self) -> bool:
        """Return whether any result was begun, so that a second processing of the message would repeat the result."""
        return self.names_size > 0

    @property
    def is_void(self) -> bool:
        """Return whether the message failed before anything was begun for it: its sender may want another try."""
        return self.reason is not None and not self.carried

    @property
    def is_refused_for_now(self) -> bool:
        """Return whether a server that sent the message is to send it again. After another failure the message is among
        the dead letters here, and that is the last word on it."""
        return self.reason in AGAIN and not self.carried

    @property
    def outcome(self) -> str:
        """Return the worst outcome, as a server that sent the message is told."""
        return in_doubt_of(self.worst) if self.resubmitted and self.carried else self.worst

    def answer(self, token: int) -> Message:
        """Return the message that tells an asker how the case has ended."""
        status = 0 if self.reason is None else 1
        if self.kind is Kind.RELAY:
            meta: dict[str, Any] = {"queued": self.queued} if self.queued else {}
            if self.reason is not None and self.carried:
                meta["carried"] = True
            if self.note is not None:
                meta["note"] = self.note
            return Relayed(token, self.outcome, meta)
        recipients = {} if self.worst == DELIVERED or self.recipients is None else self.recipients
        is_in_doubt = self.resubmitted and self.reason is not None
        if self.kind is Kind.EMIT:
            outcome = Outcome(token, status, recipients, self.reason, self.note)
            return in_doubt(outcome) if is_in_doubt else outcome
        report = Report(token, status, self.reason, self.id, recipients, self.note)
        return in_doubt(report) if is_in_doubt else report

    def later_answer(self, token: int) -> Message:
        """Return the message that tells one of too many askers to ask later: that the message may have arrived, for the
        first copy is under way. A server that relays marks what it sends again, and is refused for now."""
        if self.kind is Kind.RELAY:
            return Relayed(token, failed("overloaded"))
        if self.kind is Kind.EMIT:
            return Outcome(token, 1, {}, MAY_HAVE_ARRIVED)
        return Report(token, 1, MAY_HAVE_ARRIVED, self.id, {})


def unkept(code: str) -> str:
    """Return the code for a message that may have arrived, and cannot be kept to be delivered again."""
    return MAY_HAVE_ARRIVED if code in AGAIN else code


def in_doubt_of(outcome: str) -> str:
    """Return the outcome of a message that may have arrived before: never that the message was merely refused."""
    return failed(MAY_HAVE_ARRIVED) if reason_of(outcome) in AGAIN else outcome


def in_doubt(answer: R) -> R:
    """Return an answer about a message that another broker, or an earlier life, may have processed: never that the
    message was merely refused, for a recipient or for all."""
    recipients = {name: in_doubt_of(outcome) for name, outcome in answer.recipients.items()}
    reason = None if answer.reason is None else unkept(answer.reason)
    return answer._replace(reason=reason, recipients=recipients)


class Reports:
    """Reports on cases, and their recipients. `open` counts the cases under way; `now` is the time of the router's
    call, for the times that cases lasted. `letters` are those that reports wait for. `resting` has the answers of the
    call that depend on a write, by identity: the letter that the answer waits for, or NO_LETTER for another write."""

    def __init__(self, out: Effects) -> None:
        self.open = 0
        self.now = 0.0
        self.letters = UnwrittenLetters()
        self.resting: dict[int, int] = {}
        self._out = out

    def begin(self, case: Case) -> None:
        """Count one more pending result of a case, and the case as open."""
        case.pending += 1
        self.open += 1

    def refuse(self, case: Case, code: str) -> None:
        """End a case before it began."""
        case.record(None, failed(code))
        self._end(case, silent=False)

    def settle(self, case: Case, name: str | None, outcome: str, note: str | None = None) -> None:
        """Record the outcome of one pending result, and count it as done; `note` as in `Case.record`."""
        case.record(name, outcome, note)
        self.settle_one(case)

    def settle_one(self, case: Case) -> None:
        """Count one pending result as done; the last one sends the report."""
        case.pending = pending = case.pending - 1
        if pending == 0:
            self.open -= 1
            if (figures := case.figures) is not None:
                figures.lasted.append(self.now - case.since)
                if len(figures.lasted) >= FOLD_AT:
                    figures.fold()
            self._end(case, silent=False)

    def settle_reported(self, cases: Sequence[Case]) -> None:
        """Count one pending result of each case as done, which was reported by its bridge if it was the last."""
        now, ended = self.now, 0
        for case in cases:
            if case.pending != 1:
                case.pending -= 1
                continue
            case.pending = 0
            ended += 1
            if (figures := case.figures) is not None:
                figures.lasted.append(now - case.since)
                if len(figures.lasted) >= FOLD_AT:
                    figures.fold()
            if case.reason is not None or case.watchers or case.other_askers is not None:
                self._end(case, silent=case.reason is None)
        self.open -= ended

    def add_asker(self, case: Case, link: Link, token: int) -> None:
        """Send the report also to the sender of a duplicate: at once, if the case has ended."""
        if case.pending == 0:
            self._answer_repeat(case, link, token)
        elif case.other_askers is None:
            case.other_askers = [(link, token)]
        else:
            case.other_askers.append((link, token))
            if len(case.other_askers) > MAX_ASKERS:
                link, token = case.other_askers.pop(0)
                self._out.send(link, case.later_answer(token))

    def send_again(self, link: Link, report: Message, letter: int) -> None:
        """Send a report that was lost with its link, once this letter is written."""
        self._out.send(link, report)
        if letter in self.letters.repeats:
            self.resting[id(report)] = letter

    def _answer_repeat(self, case: Case, link: Link, token: int) -> None:
        repeats = self.letters.repeats
        if case.letter in repeats:
            if repeats[case.letter] >= MAX_ASKERS:
                self._out.send(link, case.later_answer(token))
                return
            repeats[case.letter] += 1
        self._send(case, link, case.answer(token))

    def _send(self, case: Case, link: Link, answer: Message) -> None:
        self._out.send(link, answer)
        if case.letter or case.peer is not None:
            self._rest(case, answer)

    def _rest(self, case: Case, answer: Message) -> None:
        """Mark an answer that depends on a dead letter of the case, or on the lane of the server that sent the
        message."""
        if case.letter in self.letters.repeats:
            self.resting[id(answer)] = case.letter
        elif case.peer is not None:
            self.resting[id(answer)] = NO_LETTER

    def _end(self, case: Case, *, silent: bool) -> None:
        answer = None
        if case.kind is not Kind.REPLAY and not silent:
            answer = case.answer(case.token)
            self._out.send(case.link, answer)
            if case.letter or case.peer is not None:  # as `_send`, without a call for each message
                self._rest(case, answer)
        for link, token in case.other_askers or ():
            self._send(case, link, case.answer(token))
        if case.watchers:
            watchers, case.watchers, case.other_askers = case.watchers, (), None
            for watcher in watchers:
                watcher.on_case_ended(case, answer)
        if case.names_size > MAX_KEPT:  # a long list of names is sent once; a duplicate's report comes without
            case.recipients = None
