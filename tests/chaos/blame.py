"""Blame in a chaos run: dead letters, poison, and time to live. Pure.

- An innocent message is never given up for the deaths of its handlers, unless those were killed from outside as often
  as one message deserves, while the message was under way.
- Poison that was given up has killed as many handlers as it deserves, and not many more; a dead letter tells of it.
- A dead letter has the date that its server's clock showed when the letter was made.
- No message is received after its time to live, whatever the clocks show. (`entries` checks that none fails earlier.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from math import inf

from tests.chaos.entries import NOT_KEPT, Entry
from tests.chaos.happened import Happened
from tests.chaos.letters import DeadLetter
from tests.chaos.traffic import ATTEMPTS, SERVERS

COMPANY_DEATHS = 3
"""Extra handlers that poison may kill beyond its limit: deaths in company do not tell the guilty message. One at first,
and one for each time that the poison was taken for innocent because other poison was with it."""
DATED_S = 3.0
"""Seconds by which a dead letter's date may be off: the time a slow machine takes to look at a clock that was set."""
LATE_S = 30.0
"""Seconds after its time to live in which a message may still be received: the message had left its server, and lay
with a frozen or dead process, or on the way to another server. Far less than the steps by which clocks are set."""
BOOT_S = 75.0
"""The same allowance for each boot meanwhile: after a clock went back, only the time shown a minute before is known."""


def faults(entries: Mapping[int, Entry], letters: Iterable[DeadLetter], happened: Happened) -> Iterator[str]:
    """Yield messages that were blamed for the deeds of others, and messages that came too late."""
    buried: set[int] = set()
    for letter in letters:
        entry = entries.get(letter.number)
        if entry is None:
            yield f"a dead letter of what was never sent: {letter}"
            continue
        if letter.reason == "handler-lost":
            buried.add(letter.number)
        yield from _letter_faults(entry, letter, happened)
    for number, entry in entries.items():
        given_up = any(report.reason == "handler-lost" for report in entry.told) or any(
            later.outcome == "failed:handler-lost" for outcomes in entry.later.values() for later in outcomes
        )
        if given_up and number not in buried:
            yield f"given up, and there is no dead letter: {entry.story()}"
        if entry.sent.kills:
            yield from _poison_faults(entry, happened, given_up=given_up)
        yield from _late(entry, happened)


def _letter_faults(entry: Entry, letter: DeadLetter, happened: Happened) -> Iterator[str]:
    since_s, until_s = entry.sent.at_s, entry.ended_s() or inf
    if letter.reason == "handler-lost" and not entry.sent.kills:
        server = letter.to if letter.to in SERVERS else letter.server
        if not entry.killed_from_outside(until_s, server):
            yield f"an innocent is blamed at {server}: {entry.story()}"
    elif letter.reason == "expired":
        if entry.sent.ttl_s is None:
            yield f"a dead letter that has expired, and had time: {entry.story()}"
    elif letter.reason in NOT_KEPT and entry.database_was_away(until_s):
        pass
    elif letter.reason != "handler-lost":
        yield f"a dead letter at {letter.server} for {letter.reason}, which no fault explains: {entry.story()}"
    times = happened.shown(letter.server, letter.at_s, DATED_S)
    until_s = max(until_s, *(died.at_s for died in entry.died), 0.0)  # another broker's copy may end after the report
    if not any(first_s <= until_s and last_s >= since_s for first_s, last_s in times):
        ahead_s = letter.at_s - happened.epoch_s - since_s
        yield f"a dead letter at {letter.server} with the date of {ahead_s:.1f} s after it was sent: {entry.story()}"


def _poison_faults(entry: Entry, happened: Happened, *, given_up: bool) -> Iterator[str]:
    if not entry.died:
        return
    server = entry.died[0].server
    last_s = max(died.at_s for died in entry.died)
    outside = happened.deaths(server, entry.sent.at_s - LATE_S, max(last_s, entry.ended_s() or 0.0) + LATE_S)
    deaths = len(entry.died)
    if given_up and deaths < ATTEMPTS and not outside:
        yield f"poison is given up after {deaths} deaths: {entry.story()}"
    if deaths > (ATTEMPTS + COMPANY_DEATHS) * (1 + outside):
        yield f"poison kills {deaths} handlers: {entry.story()}"


def _late(entry: Entry, happened: Happened) -> Iterator[str]:
    """Yield late receipts; the time to live began at the server before the report came at the latest."""
    told_s = entry.told_s()
    if told_s is None or entry.sent.ttl_s is None:
        return
    over_s = told_s + entry.sent.ttl_s
    for user, receipts in entry.got.items():
        for got in receipts:
            boots = happened.boots(entry.sent.at_s, got.at_s)
            if got.at_s > over_s + LATE_S + BOOT_S * boots:
                down = ", ".join(
                    f"{name} {happened.frozen_s(name, entry.sent.at_s, got.at_s):.0f} s" for name in SERVERS
                )
                yield (
                    f"received by {user} {got.at_s - over_s:.1f} s after its time was over, with {boots} boots; "
                    f"down or frozen meanwhile, at most: {down}: {entry.story()}"
                )
