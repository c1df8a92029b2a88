"""Checks at the end of a scenario that reports, answers and later outcomes agree with the arrivals."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from bester.bridge.frames import Splitter
from bester.client import frames
from bester.client.frames import Message, Report
from tests.simulation import programs
from tests.simulation.clients import Arrival, SimClient, Submission
from tests.simulation.programs import MUTE, NATIVE, Leaf
from tests.world.clock import BrokenRuleError

if TYPE_CHECKING:
    from tests.simulation.scenario import Scenario

DELIVERED, QUEUED, SENT = "delivered", "queued", "sent"
NEVER_GOOD = ("fail", "bad", "die", "loop", "ring")
_FRAME_BYTES = 1 << 24
_NOTHING: frozenset[str] = frozenset()


class Said(NamedTuple):
    """The report on one message, with its final outcomes in `finals` where results were queued (None: nobody could
    ask)."""

    server: str
    body: bytes
    good: bool
    recipients: dict[str, str]
    finals: Mapping[str, str] | None
    about: Any


class Truth:
    """The truth of one scenario; `arrived` are the ids under which each leaf came."""

    def __init__(self, scenario: Scenario, arrived: Mapping[Leaf, set[str]]) -> None:
        self.scenario = scenario
        self._arrived = arrived

    def check(self) -> None:
        """Check all reports, answers and later outcomes."""
        self._answers_are_right()
        for one in submissions(self.scenario.clients):
            for report in one.reports:
                self._expired_only_what_may(one, report)
        for said in self._all_said():
            self._is_possible(said)
            self._has_come(said)

    def _answers_are_right(self) -> None:
        """Check that the sender of a queued result learns its outcome, and that nobody else is told unasked."""
        by_message = {
            one.reports[0].message: one
            for one in submissions(self.scenario.clients)
            if one.reports and one.reports[0].message
        }
        for one in submissions(self.scenario.clients):
            if not one.reports or QUEUED not in one.reports[0].recipients.values():
                continue
            message, home = one.reports[0].message, one.client.server
            asked = {
                name for name, outcome in one.reports[0].recipients.items()
                if outcome == QUEUED and (message, name) not in home.disk.unnoted
            }  # fmt: skip
            if not asked:
                continue
            if len(one.answers) != 1 or one.answers[0] is None:
                raise BrokenRuleError(f"nobody can say what became of {one}: {one.answers}")
            for name in asked:
                later = one.answers[0].get(name)
                if later == QUEUED and name.startswith("s") and self.scenario.faults.filled:
                    continue  # a server with a full disk could not keep the outcome for us
                if later in (None, QUEUED):
                    raise BrokenRuleError(f"{name} is still {later} in the end: {one}")
        for client in self.scenario.clients:
            for arrival in client.outcomes:
                self._push_is_right(client, arrival, by_message)

    def _push_is_right(self, client: SimClient, arrival: Arrival, by_message: dict[str, Submission]) -> None:
        told = frames.parse(
            b'{"header":{"messageType":"receivedMessage"},"payload":{"type":"bester.outcome","data":%b}}' % arrival.body
        )
        outcome = told.outcome if isinstance(told, Message) else None
        if outcome is None:
            raise BrokenRuleError(f"{client.name} was told nothing readable: {arrival}")
        one = by_message.get(outcome.message)
        if one is None:  # no report (yet): the sender is dead, or gave the message up
            return
        if (one.client.user, one.client.server) != (client.user, client.server) or not one.terms.outcome:
            raise BrokenRuleError(f"{client.name} was told what he had not asked: {arrival}, of {one}")
        final = final_outcome(one, outcome.recipient)
        if outcome.outcome.startswith("failed:") and final is not None and not final.startswith("failed:"):
            raise BrokenRuleError(f"{client.name} was told {outcome}, and it is {final}: {one}")

    def _expired_only_what_may(self, one: Submission, report: Report) -> None:
        """A known user's message that was queued here does not fail later, unless its time was over."""
        for name, outcome in report.recipients.items():
            final = final_outcome(one, name)
            if outcome != QUEUED or final is None or not final.startswith("failed:"):
                continue
            at_home = {
                leaf[1]
                for user, leaf in programs.named_leaves(one.client.server.name, one.body, deep=False)
                if leaf[1] == user
            }
            if name in at_home and (one.terms.ttl_s is None or final != "failed:expired"):
                raise BrokenRuleError(f"{name} was queued and is {final}: {one}")

    # --- results that were called good, delivered or queued ---

    def _all_said(self) -> Iterator[Said]:
        for one in submissions(self.scenario.clients):
            finals = (one.answers[0] if one.answers else None) or {}
            for report in one.reports:
                unnoted = one.client.server.disk.unnoted  # a full disk could not note all of these
                finals = {name: each for name, each in finals.items() if (report.message, name) not in unnoted}
                yield Said(one.client.server.name, one.body, report.good, report.recipients, finals, one)
        for peer in self.scenario.peers:
            for frame in peer.reports:
                told = frames.parse(frame)
                if isinstance(told, Report):
                    yield Said(peer.server, peer.body, told.good, told.recipients, None, peer)
        for handler, server, token, body in self.scenario.emissions:
            outcome = handler.outcomes.get(token)
            if outcome is not None:
                yield Said(server.name, body, outcome.status == 0, outcome.recipients, None, outcome)

    def _is_possible(self, said: Said) -> None:
        """Check that no failure is called good, and that `sent` is the outcome of mute servers alone."""
        _, _, program = programs.read(said.body)
        outcomes = set(said.recipients.values())
        if said.recipients.get(NATIVE) == SENT or (said.finals or {}).get(NATIVE) == SENT:
            raise BrokenRuleError(f"called sent, and it answers: {said.about}")
        if said.recipients.get(MUTE) == DELIVERED or (said.finals or {}).get(MUTE) == DELIVERED:
            raise BrokenRuleError(f"called delivered, and it never answers: {said.about}")
        if said.good and not outcomes and any(step[0] in NEVER_GOOD for step in programs.steps(program)):
            raise BrokenRuleError(f"good, but it cannot be: {said.about}")
        if SENT in outcomes and MUTE.encode() not in said.body:
            raise BrokenRuleError(f"something is called sent, and all answer: {said.about}")

    def _has_come(self, said: Said) -> None:
        """Check that delivered results were received, and that queued ones came or that their sender can learn they did
        not."""
        if said.good:
            promised = Counter(programs.reported_leaves(said.server, said.body))
        else:
            promised = Counter(programs.named_leaves(said.server, said.body, deep=False))
        due: Counter[Leaf] = Counter()
        for (name, leaf), times in promised.items():
            outcome = said.recipients.get(name, DELIVERED if said.good else None)
            if outcome == QUEUED:
                if said.finals is not None:
                    outcome = said.finals.get(name)
                elif name == leaf[1]:  # a native sender cannot ask, and the message waited for a user here
                    outcome = DELIVERED
            if outcome == DELIVERED:
                due[leaf] += times
        for leaf, times in due.items():
            ids = self._arrived.get(leaf, _NOTHING)
            if len(ids) < times and len(ids | self._left.get(leaf, _NOTHING)) < times:
                raise BrokenRuleError(f"called delivered or queued, and did not come: {leaf}, in {said.about}")

    @cached_property
    def _left(self) -> dict[Leaf, set[str]]:
        """Return the leaves that left a bridge for a user without acknowledgements, and were lost on the way."""
        found: dict[Leaf, set[str]] = defaultdict(set)
        for client in self.scenario.clients:
            for data in client.lost:
                for body in Splitter(_FRAME_BYTES).feed(data):
                    message = frames.parse(body)
                    if isinstance(message, Message) and message.id is not None:
                        found[client.server.name, client.user, message.raw].add(message.id)
        return found


def submissions(clients: Iterable[SimClient]) -> Iterator[Submission]:
    """Yield all that was submitted."""
    for client in clients:
        yield from client.submissions


def final_outcome(one: Submission, name: str) -> str | None:
    """Return the last outcome that the sender learnt for this recipient."""
    return one.answers[0].get(name) if one.answers and one.answers[0] is not None else None
