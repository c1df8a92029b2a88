"""The records of one message in a chaos run, the promises of its reports, and the run's own explanations. Pure.

Explanations of a failure:

    expired       the sender gave the message a time to live, and that time had passed
    handler-lost  the message is poison; or handlers were killed from outside as often as one message deserves
    no-handler, overloaded, unreachable, hello-first     in a report: nobody was there to take the message
    storage-unavailable, unreachable    later: a database was away while a server carried the message out
    loss of a message `sent` to a mute server: the server was killed meanwhile, with the message in its hands
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.chaos.happened import CLUSTER_BROKERS, DATABASE, Happened
from tests.chaos.journal import Died, GivenUp, Got, Later, Sent, Told
from tests.chaos.traffic import ATTEMPTS, NATIVES, SERVERS

PROMISES = ("delivered", "queued", "sent")
"""Outcomes after which a message must not be lost."""
NOBODY_THERE = frozenset({"no-handler", "overloaded", "unreachable"})
"""Reasons of a bad report that any fault explains."""
EARLY_S = 1.0
"""Seconds before its time at which a message may expire: clocks are looked at some times a second."""
NOT_KEPT = frozenset({"storage-unavailable", "unreachable"})
"""Reasons of a later failure that a database which was away explains: it could not keep a message that a server had
begun to carry out, which is final; the second where the message may have arrived before."""
AROUND_S = 1.0
"""Seconds around a message's life in which a process that is hit may have had the message in hand."""
RECOVERED_S = 3.0
"""Seconds from a database's return until its brokers can keep messages again: they try twice a second."""
NOTICED_S = 2.0
"""Seconds of a freeze of the database below which a broker waits for it: one that says nothing is noticed in 3 s."""
MUTE = frozenset(name for name, reports in NATIVES.items() if not reports)


@dataclass
class Entry:
    """All records of one message."""

    sent: Sent
    journal: str
    happened: Happened = field(default_factory=Happened)
    told: list[Told] = field(default_factory=list)
    given_up: GivenUp | None = None
    got: dict[str, list[Got]] = field(default_factory=dict)
    later: dict[str, list[Later]] = field(default_factory=dict)
    died: list[Died] = field(default_factory=list)

    def promised(self) -> Iterator[str]:
        """Yield the users who must receive the message, by its reports."""
        for report in self.told:
            for target, users in self.sent.targets.items():
                outcome = report.recipients.get(target, "delivered" if report.good else "failed")
                if outcome in PROMISES and not self._failed_later(target) and not self._died_with_it(target, report):
                    yield from users

    def queued(self) -> Iterator[str]:
        """Yield the recipients whose later outcome the sender is to learn."""
        for report in self.told:
            yield from (target for target, outcome in report.recipients.items() if outcome == "queued")

    def _failed_later(self, target: str) -> bool:
        return any(_reason(later.outcome) and self.explains(later) for later in self.later.get(target, []))

    def _died_with_it(self, target: str, report: Told) -> bool:
        """Return whether a mute server was killed after the message was `sent` to it: the connection's end is no sign
        then."""
        if target not in MUTE:
            return False
        until_s = max([report.at_s, *(later.at_s for later in self.later.get(target, []))])
        return self.happened.deaths(target, self.sent.at_s - AROUND_S, until_s + AROUND_S) > 0

    def explains(self, later: Later) -> bool:
        """Return whether the run explains a failure that the sender learnt later."""
        reason = _reason(later.outcome)
        if reason == "expired":
            return self.over(later.at_s)
        if reason in NOT_KEPT:
            return self.database_was_away(later.at_s)
        return reason == "handler-lost" and (self.sent.kills or self.killed_from_outside(later.at_s))

    def database_was_away(self, until_s: float) -> bool:
        """Return whether a cluster could keep nothing for a while after the message was sent, by `until_s`. Brokers
        that stood still meanwhile had no time to connect again."""
        since_s = self.sent.at_s - RECOVERED_S
        since_s -= self.happened.frozen_s(CLUSTER_BROKERS, since_s, until_s)
        return self.happened.deaths(DATABASE, since_s, until_s + AROUND_S, silent_s=NOTICED_S) > 0

    def over(self, at_s: float) -> bool:
        """Return whether the message's time to live was over at `at_s`."""
        return self.sent.ttl_s is not None and at_s >= self.sent.at_s + self.sent.ttl_s - EARLY_S

    def killed_from_outside(self, until_s: float, server: str | None = None) -> bool:
        """Return whether handlers were killed from outside, by `until_s`, as often as one message deserves: at any
        server, or at this one."""
        since_s = self.sent.at_s - AROUND_S
        servers = SERVERS if server is None else (server,)
        return any(self.happened.deaths(name, since_s, until_s + AROUND_S) >= ATTEMPTS for name in servers)

    def unexplained(self) -> Iterator[str]:
        """Yield the failures that the sender learnt and the run does not explain."""
        for report in self.told:
            if not report.good and not self._bad_is_explained(report):
                yield f"reported bad, {report.reason}"
            if report.good and self.sent.kills and "queued" not in report.recipients.values():
                yield "reported good, and it kills"
        for target, outcome in self._outcomes():
            if target in NATIVES and outcome == ("delivered" if target in MUTE else "sent"):
                yield f"{target} is said to be {outcome}"
        for target, outcomes in self.later.items():
            for later in outcomes:
                if later.outcome.startswith("failed") and not self.explains(later):
                    yield f"of {target} failed later"

    def _bad_is_explained(self, report: Told) -> bool:
        if report.reason == "expired":
            return self.over(report.at_s)
        if report.reason == "handler-lost":
            return self.sent.kills or self.killed_from_outside(report.at_s)
        if report.reason == "storage-unavailable":
            return self.database_was_away(report.at_s)
        return report.reason in NOBODY_THERE

    def _outcomes(self) -> Iterator[tuple[str, str]]:
        for report in self.told:
            for target in self.sent.targets:
                if report.good or target in report.recipients:
                    yield target, report.recipients.get(target, "delivered")
        for target, outcomes in self.later.items():
            yield from ((target, later.outcome) for later in outcomes)

    def told_s(self) -> float | None:
        """Return the time at which the sender had the report, None where it never had one."""
        return max((report.at_s for report in self.told), default=None)

    def ended_s(self) -> float | None:
        """Return the time at which the sender knew all outcomes, None where some never came."""
        if not self.told or any(target not in self.later for target in self.queued()):
            return None
        known = [later.at_s for outcomes in self.later.values() for later in outcomes]
        return max([report.at_s for report in self.told] + known)

    def story(self) -> str:
        """Return the message's story, for people."""
        what = ", which kills" if self.sent.kills else ""
        ttl = f" within {self.sent.ttl_s:.1f} s" if self.sent.ttl_s is not None else ""
        head = f"message {self.sent.number} ({self.sent.type}{what}) of {self.journal} to {self.sent.targets}{ttl}"
        events: list[tuple[float, str]] = [(self.sent.at_s, "sent")]
        for report in self.told:
            verdict = "good" if report.good else f"bad {report.reason}"
            events.append((report.at_s, f"reported {verdict} {report.recipients or ''} as {report.message}"))
        for user, receipts in self.got.items():
            for got in receipts:
                mark = ", marked" if got.marked else ""
                events.append((got.at_s, f"received by {user} on {got.link} as {got.id}{mark}"))
        events += [(died.at_s, f"kills a handler at {died.server}") for died in self.died]
        if self.given_up is not None:
            events.append((self.given_up.at_s, f"given up: {self.given_up.why}"))
        for target, outcomes in self.later.items():
            events += [(later.at_s, f"told later of {target}: {later.outcome}") for later in outcomes]
        return "\n".join([head, *(f"    {at_s:12.3f}  {what}" for at_s, what in sorted(events))])


def _reason(outcome: str) -> str | None:
    kind, _, reason = outcome.partition(":")
    return reason if kind == "failed" else None
