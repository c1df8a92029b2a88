"""Counts of everything that a bridge holds at one moment, as plain values. Pure.

`Bridge.inspect()` counts for an operator or a test that asks; nothing is counted in advance.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple


class SubmissionsState(NamedTuple):
    """Unreported messages.

    `waiting` counts those of clients that are here, `departed` those of clients that have gone. `queued` counts the
    held ones of both: there is no broker, or no room on the link. `queued_bytes` and `departed_bytes` are the sizes of
    these, `unreported_bytes` is the size of all unreported messages and unanswered questions.
    """

    waiting: int
    queued: int
    queued_bytes: int
    departed: int
    departed_bytes: int
    unreported_bytes: int


def summed(states: Sequence[SubmissionsState]) -> SubmissionsState:
    """Return the counts of the unreported messages at all brokers together."""
    return SubmissionsState(*map(sum, zip(*states, strict=True)))


class IntakeState(NamedTuple):
    """Input that waits.

    `connections` of `senders` have frames that wait for their turn; `blocked` connections of `blocked_senders` have
    frames that wait until their sender has fewer unreported messages; the next message of `stuck` connections has a
    type of which the broker takes no more now.
    """

    senders: int
    connections: int
    blocked_senders: int
    blocked: int
    stuck: int


class Refused(NamedTuple):
    """Counted from the beginning: `connections` without a place, in all or for their address, `first_frames` that were
    too large or unreadable, `sessions` of users who had too many, and `messages` above their user's rate."""

    connections: int
    first_frames: int
    sessions: int
    messages: int


class BridgeState(NamedTuple):
    """Counts of one bridge.

    `connections` come from so many `hosts` (an IPv6 /64 is one). Of these connections, `sessions` are logged in, of so
    many `users`; `logins` wait for the broker, `strangers` have not sent a login yet, and `timed` have a deadline.
    `senders` share the input. `unfinished` frames have begun and not ended, `unfinished_bytes` of them are held.

    Counted from the beginning: `made_way` strangers for new connections, and unfinished frames that ended their
    connection: `frames_over` the bound of their bytes, `frames_late`. `reached` counts what was refused, dropped or cut
    at other bounds (see COUNTED), by the bound.
    """

    connections: int
    hosts: int
    sessions: int
    users: int
    logins: int
    timed: int
    senders: int
    strangers: int
    unfinished: int
    unfinished_bytes: int
    made_way: int
    frames_over: int
    frames_late: int
    refused: Refused
    reached: Mapping[str, int]
    submissions: SubmissionsState
    intake: IntakeState

    def figures(self) -> dict[str, int]:
        """Return the counts by name, for the broker and its operator: those of the parts begin with the part's name."""
        flat = {name: each for name, each in self._asdict().items() if type(each) is int}
        for part in ("refused", "submissions", "intake"):
            flat |= {f"{part}_{name}": each for name, each in getattr(self, part)._asdict().items()}
        return flat | {f"reached_{name}": each for name, each in self.reached.items()}
