"""What a bridge holds at one moment, as plain values. Pure.

`Bridge.inspect()` counts it when somebody asks, an operator or a test; nothing is counted in advance.
"""

from __future__ import annotations

from typing import NamedTuple


class SubmissionsState(NamedTuple):
    """The messages that are not reported yet.

    `waiting` counts those of clients that are here, `departed` those of clients that have gone. `queued` counts what is
    not submitted yet, because there is no broker or no room on the link to it; some of it nobody may wait for any more.
    `queued_bytes` and `departed_bytes` are the sizes of those, `unreported_bytes` is the size of all messages and
    questions whose report is waited for.
    """

    waiting: int
    queued: int
    queued_bytes: int
    departed: int
    departed_bytes: int
    unreported_bytes: int


class BridgeState(NamedTuple):
    """What one bridge holds.

    `connections` come from so many `hosts`. Of them, `sessions` are logged in, of so many `users`; `logins` are those
    the broker is asked about, `timed` those with a deadline, and `paused` those that are not read from because too
    much waits for reports.
    """

    connections: int
    hosts: int
    sessions: int
    users: int
    logins: int
    timed: int
    paused: int
    submissions: SubmissionsState
