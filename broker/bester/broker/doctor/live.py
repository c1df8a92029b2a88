"""Checks on the status of a running server. Pure: a status goes in, findings come out.

A status of an older server lacks some of the facts, and nothing is found of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from bester.broker.doctor.findings import Check, Finding, Found, certificate, disk, found, several, size, span, text_of
from bester.broker.store_brokers import GONE_S, MOST_COUNTED, BrokerSeen

Status = Mapping[str, Any]
OTHERS = "(others)"
LOGINS = "bester.auth"
UNSEEN = "unseen"
"""Address of a party of which none is known, as in `unread`."""
START_S = 10.0
"""Time after the start in which a declared handler may be missing: an interpreter starts, and imports its modules."""
BEHIND = 250
"""Messages of one type that wait, above which its handlers are behind. Bridges submit some 300 more than are in work;
their clients' further messages wait unread."""
FLOOD = 100
"""Messages of one sender that wait, above which that sender floods, if they are FLOOD_PART of all: one sender alone
gets half of the room that bridges have."""
FLOOD_PER_S = 1_000.0
"""Messages a second of one sender, over ten seconds, above which that sender floods, if they are FLOOD_PART of all and
other users are connected: more than a program sends that waits for each report."""
FLOOD_PART = 2 / 3
"""Part of all messages: two senders that are as busy flood nobody."""
FLOOD_REMEDY = {
    "user": "others are still served in turn; bound one user's rate by [native] messages_per_s",
    "server": "others are still served in turn; hold it back with its operator, or drop it from [servers]",
}
CLOCK_WARNING_S, CLOCK_ERROR_S = 10.0, 300.0
"""Difference of two servers' clocks: a heartbeat and a busy machine explain a few seconds, and a certificate or a
traced path is misread by minutes."""
LONG_LOG_BYTES = 256 * 1024 * 1024
"""Length of the store's log above which something keeps it from being moved into the file: it is cut to 64 MiB after
each move, and a group of messages adds some."""
FULL = 0.9
"""Part of a bound above which it is nearly full."""
GRANTED = ("submits", "submit_bytes")
"""Bounds on the credit of bridges: all of it is given out where several bridges are linked, and none need be in use."""
SHOWN = 5
"""Findings at most about users, parties, and dead letters: strangers can make any number of them."""


def findings_of(status: Status) -> list[Finding]:
    """Return what needs somebody's attention in a status; nothing is found where all is well."""
    return found(LIVE, status)


def _handler_dead(status: Status) -> Iterator[Found]:
    given_up = set(status.get("given_up", ()))
    declared = given_up | set(status.get("declared", ()) if status["up_s"] >= START_S else ())
    for type_, row in status["types"].items():
        if row["workers"] or type_ == OTHERS:
            continue
        waiting = row["waiting"]
        if not waiting and not row["received"] and type_ not in declared:
            continue
        who = "decides logins" if type_ == LOGINS else f"serves {text_of(type_)}"
        waits = f", and {several(waiting, 'message')} wait{'s' if waiting == 1 else ''} for one" if waiting else ""
        remedy = "start it; its own lines in the log say why it ended"
        if type_ in given_up:
            remedy = "it failed at each start and was given up: mend what its lines in the log say, and save the file"
        is_needed = waiting or type_ in declared or type_ == LOGINS
        yield "error" if is_needed else "warning", f"no handler {who}{waits}", remedy


def _handler_stuck(status: Status) -> Iterator[Found]:
    for row in status["handlers"]:
        if row["stuck"]:
            yield (
                "error",
                f"handler {text_of(row['name'])} is stuck: overdue messages hold all of its credit of {row['credit']}",
                "see in its log where it hangs, and start it again; `bester up` does so itself for declared handlers",
            )


def _handler_behind(status: Status) -> Iterator[Found]:
    for type_, row in status["types"].items():
        if row["workers"] and row["waiting"] > BEHIND:
            yield (
                "warning",
                f"{row['waiting']} messages of type {text_of(type_)} wait for a handler",
                "start more workers (`workers` of its table), or see in `bester top` why the present ones are slow",
            )


def _server_away(status: Status) -> Iterator[Found]:
    for row in status["servers"]:
        if row["state"] == "down" and not row.get("key_wrong"):
            why = f": {text_of(row['error'])}" if row["error"] else ""
            count = row["queued"]
            waits = f", and {several(count, 'message')} wait{'s' if count == 1 else ''} for it" if count else ""
            name = text_of(row["name"])
            remedy = f"its messages are sent when it is back (`bester peers retry {name}` tries now)"
            if row["held"]:
                remedy = f"its messages are held back until `bester peers release {name}`"
            yield "warning", f"server {name} is away{waits}{why}", f"see that it runs and is reachable; {remedy}"


def _server_key(status: Status) -> Iterator[Found]:
    for row in status["servers"]:
        if row.get("key_wrong"):
            name = text_of(row["name"])
            yield (
                "error",
                f"no link to server {name}, for a key is wrong: {text_of(row['error'])}",
                f"`bester keys` prints a server's key: {name}'s belongs here into [servers] key, and ours there",
            )


def _party_refused(status: Status) -> Iterator[Found]:
    for row in status.get("refused", {"latest": ()})["latest"][:SHOWN]:
        key = f" with key {text_of(row['key'])}" if row["key"] else ""
        address = text_of(row["address"])
        who = f"a party{key} that had left before it was seen" if address == UNSEEN else f"a party at {address}{key}"
        yield (
            "warning",
            (
                f"{who} was refused, {several(row['times'], 'time')}, last "
                f"{span(row['ago_s'])} ago: {text_of(row['why'])}"
            ),
            (
                "if it is one of yours, list its key as [servers.NAME] key or [fabric.parties.NAME] key; else close "
                "the port to it"
            ),
        )


def clock_off(whose: str, ahead_s: float) -> Found:
    """Return the finding on a clock that is so many seconds ahead of this machine's, or behind it."""
    side = "ahead of" if ahead_s > 0 else "behind"
    return (
        "error" if abs(ahead_s) > CLOCK_ERROR_S else "warning",
        f"the clock of {whose} is {span(abs(ahead_s))} {side} this one's",
        "compare both with a third, and let NTP (chrony, systemd-timesyncd) set the one that is wrong",
    )


def _clock(status: Status) -> Iterator[Found]:
    for row in status["servers"]:
        off_s = row.get("clock_off_s")
        if off_s is not None and row["state"] == "up" and abs(off_s) > CLOCK_WARNING_S:
            yield clock_off(f"server {text_of(row['name'])}", off_s)


def _certificate(status: Status) -> Iterator[Found]:
    for row in status["bridges"]:
        end_s = row["figures"].get("certificate_end_seconds")
        if end_s is None or "at_s" not in status:
            continue
        finding = certificate(end_s, status["at_s"], "the certificate in use")
        if finding[0] != "ok":
            yield finding
            return  # bridges of one server show the same certificate


def _store(status: Status) -> Iterator[Found]:
    why = status["store"].get("failing")
    if why is not None:
        yield "error", f"the last commit of the store failed: {text_of(why)}", "see the log, and make room or mend it"


def _store_log(status: Status) -> Iterator[Found]:
    log = status["store"].get("log_bytes")
    if log is not None and log > LONG_LOG_BYTES:
        yield (
            "warning",
            f"the log of the store has {size(log)}, and grows: another process keeps on reading the store",
            "end that process, a copy tool or a `sqlite3` shell (`fuser -v store.db` names it)",
        )


def _disk(status: Status) -> Iterator[Found]:
    room = status["store"]["room_bytes"]
    if room is not None:
        finding = disk(room, "the disk of the store")
        if finding[0] != "ok":
            yield finding


def _mailbox_full(status: Status) -> Iterator[Found]:
    full = status.get("full_mailboxes", {"count": 0, "fullest": ()})
    for row in full["fullest"][:SHOWN]:
        user = text_of(row["user"])
        yield (
            "warning",
            (
                f"the mailbox of {user} is {'full' if row['part'] >= 1 else 'nearly full'}: "
                f"{several(row['messages'], 'message')}, {100 * row['part']:.0f} % of the bound"
            ),
            (
                f"{user} must connect and read; or raise [store] user_messages and user_bytes. Until then senders get "
                "mailbox-full"
            ),
        )
    more = full["count"] - min(SHOWN, len(full["fullest"]))
    if more > 0:
        yield "warning", f"{several(more, 'more mailbox', 'more mailboxes')} are full", "as above"


def _flood(status: Status) -> Iterator[Found]:
    waiting = sum(row["waiting"] for row in status["types"].values())
    rates = status.get("rates", {"per_s": 0.0, "fastest": ()})
    for row in status.get("busiest", ())[:1]:
        if row["waiting"] > FLOOD and row["waiting"] > FLOOD_PART * waiting:
            text = f"has {row['waiting']} of the {waiting} messages that wait for handlers"
            yield "warning", f"{row['kind']} {text_of(row['sender'])} {text}", FLOOD_REMEDY[row["kind"]]
            return
    for row in rates["fastest"][:1]:
        others = status["users"] > 1 or row["kind"] == "server"
        if others and row["per_s"] > FLOOD_PER_S and row["per_s"] > FLOOD_PART * rates["per_s"]:
            text = f"sends {row['per_s']:.0f} of {rates['per_s']:.0f} messages a second"
            yield "warning", f"{row['kind']} {text_of(row['sender'])} {text}", FLOOD_REMEDY[row["kind"]]


def _dead_letters(status: Status) -> Iterator[Found]:
    recent = status.get("recent_dead", {"window_s": 0.0, "by": ()})
    for row in recent["by"][:SHOWN]:
        yield (
            "warning",
            (
                f"{several(row['count'], 'dead letter')} of type {text_of(row['type'])} in {span(recent['window_s'])}: "
                f"{text_of(row['reason'])}"
            ),
            "`bester dead list` shows them; mend the cause, then `bester dead replay`",
        )


def of_brokers(brokers: Iterable[BrokerSeen]) -> Iterator[Found]:
    """Yield the findings on the brokers of a server that do not live."""
    for each in brokers:
        is_over = each.state == "ended" or each.gone_s >= GONE_S
        if each.state == "lives" or (is_over and not each.waiting):
            continue
        since = f"has been dead for {span(each.gone_s)}" if each.state == "dead" else "has ended"
        more = " or more" if each.waiting >= MOST_COUNTED else ""
        left = f"{several(each.waiting, 'message')}{more} of it wait for a living broker"
        left = left if each.waiting else "others have its users"
        yield (
            "warning",
            f"broker {text_of(each.name)} {since} ({text_of(each.process)}): {left}",
            "start it again, or leave it to a living broker, which adopts what it kept",
        )


def _broker(status: Status) -> Iterator[Found]:
    rows = status.get("brokers", ())
    return of_brokers(
        BrokerSeen(row["name"], row["state"], row["gone_s"] or 0.0, row["process"], row["waiting"]) for row in rows
    )


def _bound(status: Status) -> Iterator[Found]:
    for name, (used, most) in status["bounds"].items():
        if most and used > FULL * most and name not in GRANTED:
            yield (
                "warning",
                f"{name} is nearly full: {used} of {most}",
                "docs/bounds.md says what happens at the bound, and which key raises it",
            )


def _way_in(status: Status) -> Iterator[Found]:
    if status["draining"]:
        yield "warning", "the server ends, and takes no messages", "wait for the end, and start it again"
    elif not status["peers"].get("bridge"):
        yield "error", "no bridge is linked: clients have no way in", "start `bester bridge`; its log says why it ended"


LIVE: tuple[Check[Status], ...] = (
    Check("way in", "the server ends, or no bridge is linked", "start `bester bridge`", "", _way_in),
    Check(
        "handler dead",
        "a type that is declared, or was served, has no handler",
        "start the handler; its lines in the log say why it ended",
        "BesterHandlerDead, BesterNoHandler",
        _handler_dead,
    ),
    Check(
        "handler stuck",
        "overdue messages hold all credit of a handler",
        "see in its log where it hangs, and start it again",
        "BesterHandlerStuck",
        _handler_stuck,
    ),
    Check(
        "handler behind",
        f"more than {BEHIND} messages of a type wait",
        "more `workers`, or a faster handler",
        "BesterHandlerBehind",
        _handler_behind,
    ),
    Check(
        "server away",
        "another server cannot be reached",
        "see that it runs; its messages wait",
        "BesterServerAway",
        _server_away,
    ),
    Check(
        "server key",
        "the key of another server, or ours there, is not the listed one",
        "compare with what `bester keys` prints at each server",
        "BesterServerKey",
        _server_key,
    ),
    Check(
        "party refused",
        "somebody with an unknown key tried to link within 10 minutes",
        "list the key if the party is yours, else close the port to it",
        "BesterPartyRefused",
        _party_refused,
    ),
    Check(
        "clock",
        f"the clock is {CLOCK_WARNING_S:g} s (error: {CLOCK_ERROR_S:g} s) away from another server's or the "
        "database's, or behind the files' times",
        "let NTP set the clock",
        "BesterClockOff",
        _clock,
    ),
    Check(
        "certificate",
        "the certificate is unusable, expired, or expires within 14 days",
        "renew it ([TLS](tls.md))",
        "BesterCertificateEnds",
        _certificate,
    ),
    Check(
        "broker",
        "another broker of the server, with the same PostgreSQL, is dead",
        "start it; a living one adopts what it kept",
        "BesterBrokerDead",
        _broker,
    ),
    Check(
        "store",
        "store or accounts are damaged, or cannot be used; the last commit failed",
        "restore a backup; make room, where the reason is no room",
        "BesterStoreFails",
        _store,
    ),
    Check(
        "store log",
        "the log of SQLite, `store.db-wal`, is longer than 256 MiB: a process that reads the store keeps it from being "
        "moved into the file",
        "end that process: a copy tool, or a `sqlite3` shell with an open transaction",
        "BesterStoreLogGrows",
        _store_log,
    ),
    Check(
        "disk",
        "less than 256 MiB of room for store or accounts, or room for less than 16 files",
        "make room; remove files",
        "BesterDiskNearlyFull",
        _disk,
    ),
    Check(
        "mailbox full",
        "a mailbox is at 90 % of its bound",
        "the user connects, or a larger `[store] user_messages`, `user_bytes`",
        "BesterMailboxFull",
        _mailbox_full,
    ),
    Check(
        "flood",
        f"one sender has more than {FLOOD} of the waiting messages and two thirds of all, or sends more than "
        f"{FLOOD_PER_S:.0f} a second and two thirds of all while others are connected",
        "`[native] messages_per_s` bounds a user's rate",
        "BesterFlood, BesterFloodRate",
        _flood,
    ),
    Check(
        "dead letters",
        "messages were given up within 10 minutes",
        "`bester dead list` shows why; `bester dead replay` after the cause is mended",
        "BesterDeadLetters",
        _dead_letters,
    ),
    Check(
        "bound",
        "a bound is used to 90 %",
        "[bounds](bounds.md) says what happens then, and which key raises it",
        "BesterBoundNearlyReached",
        _bound,
    ),
)
"""The checks on a status, and their words for the documentation."""
