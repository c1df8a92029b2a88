"""Strangers: native servers at unknown addresses; their messages are held while the names of listed ones are looked up.

A listed server may be at an address that is not known here yet, or has changed. A peer that might be a listed server is
not refused for good, since that would end a message in the peer's own queue: the message is held for a moment, while
the names are looked up. Where they cannot be looked up, the peer is refused for now.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.effects import Effects, Link, LookUp, Notice
from bester.broker.core.jobs import may_be_repeat
from bester.broker.core.peer import Peer
from bester.broker.core.resume import BridgeResume
from bester.broker.core.settings import Settings
from bester.broker.hosts import Hosts
from bester.broker.wire.messages import Submit

WAIT_S = 2.0
"""Time for a lookup: longer than the pause between two of one name, far shorter than a server waits for a report."""
MAX_WAITING = 256
MAX_WAITING_BYTES = 16 * 1024 * 1024
"""Bounds on the messages that are held; above them a stranger is refused for now."""
COME_AGAIN = "no-handler"
"""Reason for a peer that may be a listed server: every version of Bester sends a message again after it."""


class Stranger(NamedTuple):
    """A message that is held. `prefix` and `resume` are those of the bridge that submitted it, `since` is in seconds.

    `case` stands in for the message's own: it makes a second submit of the message a duplicate, and its link is the
    bridge's present one.
    """

    submit: Submit
    prefix: str
    resume: BridgeResume | None
    case: Case
    host: str
    claimed: str | None
    since: float

    @property
    def link(self) -> Link:
        """Link on which the answer is expected."""
        return self.case.link


class Strangers:
    """The messages that are held, oldest first."""

    def __init__(self, settings: Settings, reports: Reports, out: Effects) -> None:
        self._settings = settings
        self._reports = reports
        self._out = out
        self._waiting: dict[int, Stranger] = {}
        self._bytes = 0
        self._serial = 0

    @property
    def count(self) -> int:
        """Count of the messages that are held."""
        return len(self._waiting)

    def hold(self, peer: Peer, submit: Submit, host: str, claimed: str | None, hosts: Hosts, now: float) -> bool:
        """Hold a message, or answer it, where its sender may be a listed server. Returns False where the table of
        servers is certain, and decides."""
        if submit.meta.get("certificate"):  # names a server, or none, whatever its address
            return False
        perhaps = self._perhaps(submit.type, host, claimed, hosts, now)
        if not perhaps:
            return False
        self._out.calls.append(LookUp(perhaps))
        id_ = f"{peer.prefix}{submit.token}"
        case = Case(Kind.SUBMIT, peer.link, submit.token, id_, id_)
        case.resubmitted = may_be_repeat(submit.meta)
        stranger = Stranger(submit, peer.prefix, peer.resume, case, host, claimed, now)
        if len(self._waiting) >= MAX_WAITING or self._bytes + len(submit.body) > MAX_WAITING_BYTES:
            self._put_off(stranger, perhaps)
            return True
        self._reports.begin(case)
        if peer.resume is not None:
            peer.resume.add(submit.token, case)
        self._serial += 1
        self._waiting[self._serial] = stranger
        self._bytes += len(submit.body)
        return True

    def known(self, hosts: Hosts) -> Iterator[Stranger]:
        """Yield and release the messages whose senders the table of servers has become certain of."""
        for number, stranger in list(self._waiting.items()):
            if not self._perhaps(stranger.submit.type, stranger.host, stranger.claimed, hosts, stranger.since):
                yield self._let_go(number)

    def tick(self, hosts: Hosts, now: float) -> None:
        """Answer the messages that were held for WAIT_S: their senders are to send them again."""
        for number, stranger in list(self._waiting.items()):
            if now - stranger.since < WAIT_S:
                return
            self._let_go(number)
            type_, host, claimed = stranger.submit.type, stranger.host, stranger.claimed
            self._put_off(stranger, self._perhaps(type_, host, claimed, hosts, stranger.since))

    def _perhaps(self, type_: str, host: str, claimed: str | None, hosts: Hosts, since: float) -> frozenset[str]:
        """Return the listed servers that a peer may be; empty where the table of servers is certain."""
        name = policy.native_peer(self._settings, hosts, host, claimed, type_)
        if not policy.is_stranger(self._settings, hosts, name, claimed, type_):
            return frozenset()
        return policy.that_may(self._settings, hosts.may_be(claimed, since), type_)

    def _put_off(self, stranger: Stranger, perhaps: frozenset[str]) -> None:
        fields = {"server": stranger.host, "type": stranger.submit.type, "code": COME_AGAIN}
        self._out.calls.append(Notice("message-refused", {**fields, "perhaps": ", ".join(sorted(perhaps))}))
        case = stranger.case
        refused = Case(Kind.SUBMIT, case.link, case.token, case.id, case.id)
        refused.resubmitted = case.resubmitted
        self._reports.refuse(refused, COME_AGAIN)

    def _let_go(self, number: int) -> Stranger:
        """Release a message, and end its stand-in case without a report: the caller answers the message."""
        stranger = self._waiting.pop(number)
        self._bytes -= len(stranger.submit.body)
        if stranger.resume is not None:
            stranger.resume.remove(stranger.submit.token)
        self._reports.settle_reported((stranger.case,))
        return stranger
