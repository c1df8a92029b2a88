"""Checks at the end of a scenario that reports, answers and later outcomes agree with the arrivals."""

from __future__ import annotations

import json
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
MAYBE = "failed:unreachable"
NEVER_GOOD = ("fail", "bad", "die", "loop", "ring")
_FRAME_BYTES = 1 << 24
_NOTHING: frozenset[str] = frozenset()


class Claim(NamedTuple):
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
        for submission in submissions(self.scenario.clients):
            for report in submission.reports:
                self._expired_only_what_may(submission, report)
        for claim in self._all_claims():
            self._is_possible(claim)
            self._has_come(claim)
            self._has_not_come(claim)

    def _answers_are_right(self) -> None:
        """Check that the sender of a queued result learns its outcome, and that nobody else is told unasked."""
        by_message = {
            submission.reports[0].message: submission
            for submission in submissions(self.scenario.clients)
            if submission.reports and submission.reports[0].message
        }
        # A server that was killed while its disk was full has lost what waited for the disk.
        forgot = any(server.forgot for server in self.scenario.servers)
        for submission in submissions(self.scenario.clients):
            if forgot or not submission.reports or QUEUED not in submission.reports[0].recipients.values():
                continue
            asked = {name for name, outcome in submission.reports[0].recipients.items() if outcome == QUEUED}
            if len(submission.answers) != 1 or submission.answers[0] is None:
                raise BrokenRuleError(f"nobody can say what became of {submission}: {submission.answers}")
            for name in asked:
                later = submission.answers[0].get(name)
                if later in (None, QUEUED):
                    raise BrokenRuleError(f"{name} is still {later} in the end: {submission}")
        for client in self.scenario.clients:
            for arrival in client.outcomes:
                self._push_is_right(client, arrival, by_message)
            if not forgot:
                self._is_told_once(client)

    def _is_told_once(self, client: SimClient) -> None:
        """Check that a later outcome is told again only with a mark, and no failure after a delivery."""
        unmarked: set[str] = set()
        told: dict[str, str] = {}
        for arrival in client.outcomes:
            if not arrival.marked and arrival.id in unmarked:
                raise BrokenRuleError(f"{client.name} was told something again, and it is not marked: {arrival}")
            if not arrival.marked:
                unmarked.add(arrival.id)
            outcome = json.loads(arrival.body)["outcome"]
            before = told.setdefault(arrival.id, outcome)
            if outcome != before and before in (DELIVERED, SENT):
                raise BrokenRuleError(f"{client.name} was told {before}, and then {outcome}: {arrival}")

    def _push_is_right(self, client: SimClient, arrival: Arrival, by_message: dict[str, Submission]) -> None:
        received = frames.parse(
            b'{"header":{"messageType":"receivedMessage"},"payload":{"type":"bester.outcome","data":%b}}' % arrival.body
        )
        outcome = received.outcome if isinstance(received, Message) else None
        if outcome is None:
            raise BrokenRuleError(f"{client.name} was told nothing readable: {arrival}")
        submission = by_message.get(outcome.message)
        if submission is None:  # no report (yet): the sender is dead, or gave the message up
            return
        if (submission.client.user, submission.client.server) != (
            client.user,
            client.server,
        ) or not submission.terms.outcome:
            raise BrokenRuleError(f"{client.name} was told what he had not asked: {arrival}, of {submission}")
        final = final_outcome(submission, outcome.recipient)
        named = submission.body.count(f'"{outcome.recipient}"'.encode())
        if final == QUEUED and (named > 1 or programs.endless(submission.body)):
            return  # of several messages to the same recipient another one is still queued
        if outcome.outcome.startswith("failed:") and final is not None and not final.startswith("failed:"):
            raise BrokenRuleError(f"{client.name} was told {outcome}, and it is {final}: {submission}")

    def _expired_only_what_may(self, submission: Submission, report: Report) -> None:
        """A known user's message that was queued here does not fail later, unless its time was over."""
        for name, outcome in report.recipients.items():
            final = final_outcome(submission, name)
            if outcome != QUEUED or final is None or not final.startswith("failed:"):
                continue
            at_home = {
                leaf[1]
                for user, leaf in programs.named_leaves(submission.client.server.name, submission.body, deep=False)
                if leaf[1] == user
            }
            if name in at_home and (submission.terms.ttl_s is None or final != "failed:expired"):
                raise BrokenRuleError(f"{name} was queued and is {final}: {submission}")

    # --- results that were called good, delivered or queued ---

    def _all_claims(self) -> Iterator[Claim]:
        for submission in submissions(self.scenario.clients):
            finals = (submission.answers[0] if submission.answers else None) or {}
            for report in submission.reports:
                yield Claim(
                    submission.client.server.name, submission.body, report.good, report.recipients, finals, submission
                )
        for peer in self.scenario.peers:
            for frame in peer.reports:
                answer = frames.parse(frame)
                if isinstance(answer, Report):
                    yield Claim(peer.server, peer.body, answer.good, answer.recipients, None, peer)
        for handler, server, token, body in self.scenario.emissions:
            outcome = handler.outcomes.get(token)
            if outcome is not None:
                yield Claim(server.name, body, outcome.status == 0, outcome.recipients, None, outcome)

    def _is_possible(self, claim: Claim) -> None:
        """Check that no failure is called good, and that `sent` is the outcome of mute servers alone."""
        _, _, program = programs.read(claim.body)
        outcomes = set(claim.recipients.values())
        if claim.recipients.get(NATIVE) == SENT or (claim.finals or {}).get(NATIVE) == SENT:
            raise BrokenRuleError(f"called sent, and it answers: {claim.about}")
        if claim.recipients.get(MUTE) == DELIVERED or (claim.finals or {}).get(MUTE) == DELIVERED:
            raise BrokenRuleError(f"called delivered, and it never answers: {claim.about}")
        if claim.good and not outcomes and any(step[0] in NEVER_GOOD for step in programs.steps(program)):
            raise BrokenRuleError(f"good, but it cannot be: {claim.about}")
        if SENT in outcomes and MUTE.encode() not in claim.body:
            raise BrokenRuleError(f"something is called sent, and all answer: {claim.about}")

    def _has_come(self, claim: Claim) -> None:
        """Check that delivered results were received, and that queued ones came or that their sender can learn they did
        not."""
        if claim.good:
            promised = Counter(programs.reported_leaves(claim.server, claim.body))
        else:
            promised = Counter(programs.named_leaves(claim.server, claim.body, deep=False))
        due: Counter[Leaf] = Counter()
        for (name, leaf), times in promised.items():
            outcome = claim.recipients.get(name, DELIVERED if claim.good else None)
            if outcome == QUEUED:
                if claim.finals is not None:
                    outcome = claim.finals.get(name)
                elif name == leaf[1]:  # a native sender cannot ask, and the message waited for a user here
                    outcome = DELIVERED
            if outcome == DELIVERED:
                due[leaf] += times
        for leaf, times in due.items():
            ids = self._arrived.get(leaf, _NOTHING)
            if len(ids) < times and len(ids | self._left.get(leaf, _NOTHING)) < times:
                raise BrokenRuleError(f"called delivered or queued, and did not come: {leaf}, in {claim.about}")

    def _has_not_come(self, claim: Claim) -> None:
        """Check that what has failed did not come: whoever is told so may send the message again under another id. Only
        `unreachable` leaves open what became of it.

        Of a recipient that is named more than once, the outcome is the worst of several."""
        if programs.endless(claim.body):
            return
        for name, leaf in programs.named_leaves(claim.server, claim.body, deep=False):
            outcome = claim.recipients.get(name, "")
            is_certain = outcome.startswith("failed:") and outcome != MAYBE
            is_one = leaf[1] == name and claim.body.count(f'"{name}"'.encode()) == 1
            if is_certain and is_one and self._arrived.get(leaf):
                raise BrokenRuleError(f"called {outcome}, and it came: {leaf}, in {claim.about}")

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


def final_outcome(submission: Submission, name: str) -> str | None:
    """Return the last outcome that the sender learnt for this recipient."""
    return submission.answers[0].get(name) if submission.answers and submission.answers[0] is not None else None
