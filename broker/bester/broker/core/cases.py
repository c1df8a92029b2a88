"""A case is what one message that entered still owes its sender: one report, when everything it led to has ended.

A handler's commands may fan out into many results, and those into more; each is counted in `owed` when it begins and
counted out when it ends. The last one ends the case.
"""

from __future__ import annotations

from enum import Enum

from msgspec import Struct

from bester.broker.core.values import Link
from bester.broker.wire.messages import Message, Outcome, Relayed, Report

DELIVERED = "delivered"
QUEUED = "queued"
SENT = "sent"

_BADNESS = {DELIVERED: 0, QUEUED: 1, SENT: 2}
_FAILED = 3

MAX_NAMED = 8 * 1024 * 1024
"""Characters of recipients' names (and NAME_COST more for each) that a report may hold: a longer one would not pass on
the fabric, and would take with it the link of the bridge it is for."""
NAME_COST = 32
MAX_KEPT = 1024
"""The same for the outcome of an emission, kept in case it is sent again; the names of a longer one are told once."""


def failed(code: str) -> str:
    """Return the outcome that says `code`."""
    return f"failed:{code}"


def reason_of(outcome: str) -> str | None:
    """Return the code of a failed outcome, None of any other."""
    return outcome[7:] if outcome.startswith("failed:") else None


def badness(outcome: str) -> int:
    """Order outcomes: the higher the worse. What is no outcome counts as failed."""
    return _BADNESS.get(outcome, _FAILED)


class Kind(Enum):
    SUBMIT = "submit"  # from a client or native server, by way of a bridge: ends in a REPORT
    EMIT = "emit"  # of a handler's own initiative: ends in an OUTCOME
    RELAY = "relay"  # from another broker: ends in a RELAYED


class Case(Struct, eq=False, gc=False):  # a Struct, for one is made for every message; it is in no cycle
    """Counts what a message led to. `id` and `root` are the message's, `link` and `token` are those of its asker."""

    kind: Kind
    link: Link
    token: int
    id: str
    root: str
    owed: int = 0
    recipients: dict[str, str] = {}
    named: int = 0
    worst: str = DELIVERED
    reason: str | None = None

    def completes_on(self, link: Link) -> bool:
        """Would one delivery on this link, going well, be all that its asker there is to be told?"""
        return self.owed == 1 and self.worst == DELIVERED and self.kind is Kind.SUBMIT and self.link == link

    def record(self, name: str | None, outcome: str) -> None:
        """Note one outcome, under the target's name as the handler wrote it (None: the message itself).

        With too many names already, the outcome counts and the name is left out.
        """
        if name is not None:
            before = self.recipients.get(name)
            if before is None:
                self.named += len(name) + NAME_COST
                if self.named <= MAX_NAMED:
                    self.recipients[name] = outcome
            elif outcome != DELIVERED and badness(outcome) > badness(before):
                self.recipients[name] = outcome
        if outcome == DELIVERED:
            return
        if badness(outcome) > badness(self.worst):
            self.worst = outcome
        if self.reason is None:
            self.reason = reason_of(outcome)

    def answer(self) -> Message:
        """Return the message that ends the case."""
        status = 0 if self.reason is None else 1
        if self.kind is Kind.RELAY:
            return Relayed(self.token, self.worst)
        recipients = {} if self.worst == DELIVERED else self.recipients
        if self.kind is Kind.EMIT:
            if self.named > MAX_KEPT:  # the answer takes them along; the case may be asked again for long
                self.recipients = {}
            return Outcome(self.token, status, recipients, self.reason)
        return Report(self.token, status, self.reason, self.id, recipients)
