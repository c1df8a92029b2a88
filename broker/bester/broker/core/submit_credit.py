"""Credit of bridges: how many submitted messages, and bytes of them, each bridge may have unreported. Pure.

A bridge sends messages up to its credit, and reads no more from its clients than it can hold, so that a broker with
much to do slows clients down instead of refusing their messages. The credit of all bridges together stays within a
total, even while credit moves from one to another: what one bridge gives up counts until that bridge has confirmed the
lower number, and is given to others only then.

Messages that wait at the broker are served no sooner than those that wait in their clients' sockets, and thousands of
them slow the service of each: they have left the processor's caches when their turn comes. And between bridge and
broker no message passes another: each that stands there is a delay for everybody. So the total follows the work: twice
the messages in work (at handlers, at other servers, with slow readers), since one sender alone gets half of the room at
its bridge, and some that wait. The total is less for the bytes of a crowd.

A bridge tells in its HELLO the most that it will use. A bridge that tells nothing knows no credit, and gets none: its
own bounds hold, and the broker's refusals.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bester.broker.core.effects import Link
from bester.broker.core.inspection import Bound
from bester.broker.core.settings import Limits
from bester.broker.wire.messages import Meta

LEAST = 64
LEAST_BYTES = 512 * 1024
"""Share of a bridge that has nothing to send, in messages and in bytes: enough to begin at once."""
TIMES = 2.0
"""Credit for each message (and byte) in work: one sender alone gets half of the room at its bridge."""
TIMES_CROWD = 1.0
"""The same for the bytes of a crowd, which gets nearly all of the room: with more of them large bodies are served no
sooner, and everybody stands behind them between bridge and broker. For one bridge alone: where several share a broker
the shares of their senders rest on messages that wait there."""
SPARE = 8
"""Divisor: one part in SPARE of the total is left for bridges that come while the others have all the rest."""
ROOM = 256
"""Messages that may wait beside those in work: as many as a handler takes at once by default, so that handlers do not
run dry. Each that waits more is a delay for all behind it."""
ROOM_BYTES = 512 * 1024
"""The same in bytes: large bodies that wait leave the processor's caches as well, and what a client asks for with them
overflows its connections when it comes at once. With four times as much a server of three processes serves a few per
cent more of large bodies, and everybody beside them waits half as long again."""
COARSE = 8
"""A share that would change by less than one part in COARSE is left as it is: fewer messages to bridges."""


Count = tuple[int, int]
"""Messages, and bytes of their bodies."""


class _Account:
    """Credit of one bridge, in messages or in bytes. `granted` is the number last sent to the bridge, `reserved` what
    the bridge may still make use of: no less than `granted`. `most` is what the bridge will use at most; `held` is what
    it had unreported, and `wants` whether it had more to send, by its last report."""

    __slots__ = ("granted", "held", "most", "reserved", "wants")

    def __init__(self, most: int) -> None:
        self.most = most
        self.granted = self.reserved = self.held = 0
        self.wants = False

    def grant(self, amount: int) -> None:
        """Change the number that the bridge gets."""
        self.granted = amount
        self.reserved = max(self.reserved, amount)


class Pot:
    """A total that bridges share: those with much to send alike, the others what they need, and all what is left.
    `room` may wait beside what is in work."""

    def __init__(self, total: int, least: int, room: int) -> None:
        self.total = total
        self._least = least
        self._room = room
        self.accounts: dict[Link, _Account] = {}
        self.follow(0)

    def follow(self, waiting: int, still: int = 0, part: float = 1.0, times: float = TIMES) -> None:
        """Share as much as the work needs: `waiting` messages (or bytes) of bridges wait, and of the others this `part`
        is in work, for which there are so many `times` of credit. Of those that wait `still` do not move, and leave
        their room to others."""
        in_work = int(self.count_others(waiting) * part)
        room = self._room + self._least * len(self.accounts)
        self._shared = min(self.total - self.total // SPARE, int(times * in_work) + room + still)

    def count_others(self, waiting: int) -> int:
        """Return how many unreported messages (or bytes) bridges have beside those that are `waiting`."""
        return max(sum(account.held for account in self.accounts.values()) - waiting, 0)

    @property
    def reserved(self) -> int:
        """Sum of the messages, or bytes, that the bridges may use now."""
        return sum(account.reserved for account in self.accounts.values())

    def join(self, link: Link, most: int) -> None:
        """Grant a new bridge what is free of its share; a little of the spare part where nothing is free."""
        self.accounts.pop(link, None)
        account = _Account(most)
        reserved = self.reserved
        self.accounts[link] = account
        free = max(self._shared - reserved, min(self._least, self.total - reserved), 0)
        account.grant(min(self._targets()[link], free))

    def on_report(self, link: Link, held: int, *, wants: bool, confirmed: bool) -> None:
        """Take in what a bridge has unreported; `confirmed`: it had its latest number then."""
        account = self.accounts[link]
        account.held, account.wants = held, wants
        if confirmed:
            account.reserved = max(account.granted, min(held, account.reserved))

    def share(self) -> list[Link]:
        """Share the total anew; return the bridges whose number has changed."""
        targets = self._targets()
        changed = []
        free = self._shared - self.reserved
        for link, account in sorted(self.accounts.items(), key=lambda item: item[1].granted):
            target, before = targets[link], account.granted
            if target != before and abs(target - before) * COARSE >= before:
                account.grant(min(target, account.reserved + max(free, 0)))
                free = self._shared - self.reserved
                if account.granted != before:
                    changed.append(link)
        return changed

    def _targets(self) -> dict[Link, int]:
        """Return the share of each bridge: by need first, alike where needs are larger, then of what is left."""
        needs = {
            link: account.most if account.wants else min(account.most, max(self._least, 2 * account.held))
            for link, account in self.accounts.items()
        }
        shares = divided(self._shared, needs)
        rest = {link: account.most - shares[link] for link, account in self.accounts.items()}
        more = divided(self._shared - sum(shares.values()), rest)
        return {link: share + more[link] for link, share in shares.items()}


def divided(total: int, needs: Mapping[Link, int]) -> dict[Link, int]:
    """Divide a total: nobody gets more than is needed, and who needs more than others gets no less than they do."""
    shares: dict[Link, int] = {}
    left = total
    for number, (link, need) in enumerate(sorted(needs.items(), key=lambda item: item[1])):
        shares[link] = min(need, left // (len(needs) - number))
        left -= shares[link]
    return shares


class SubmitCredit:
    """The credit of all bridges of a broker. `number` counts the changes of each bridge's credit: a bridge repeats the
    number of the latest that it knows."""

    def __init__(self, limits: Limits) -> None:
        self._messages = Pot(min(limits.max_held * 3 // 4, limits.max_waiting // 2), LEAST, ROOM)
        most_bytes = min(limits.max_held_bytes * 3 // 4, limits.max_waiting_bytes // 2)
        self._bytes = Pot(most_bytes, min(LEAST_BYTES, most_bytes // LEAST), ROOM_BYTES)
        self._numbers: dict[Link, int] = {}
        self._crowded: dict[Link, None] = {}  # bridges at which many senders wait
        self._stuck: list[str] = []
        self._behind: dict[Link, None] = {}  # bridges whose last report had an older number

    def join(self, link: Link, options: Meta) -> Meta:
        """Take in the HELLO of a bridge; return its credit for the WELCOME, empty where the bridge knows none."""
        most, most_bytes = _number(options.get("credit")), _number(options.get("credit_bytes"))
        if not most or not most_bytes:
            self.leave(link)
            return {}
        self._numbers[link] = self._numbers.get(link, 0) + 1
        self._messages.join(link, most)
        self._bytes.join(link, most_bytes)
        return self._options(link)

    def leave(self, link: Link) -> None:
        """Take back the credit of a bridge that has gone."""
        if self._numbers.pop(link, None) is not None:
            del self._messages.accounts[link], self._bytes.accounts[link]
            self._behind.pop(link, None)
            self._crowded.pop(link, None)

    def on_report(self, link: Link, report: Meta) -> None:
        """Take in what a bridge tells with a HEARTBEAT; a report that cannot be read changes nothing."""
        held, held_bytes = _number(report.get("unreported")), _number(report.get("unreported_bytes"))
        if link not in self._numbers or held is None or held_bytes is None:
            return
        wants, confirmed = report.get("more") is True, report.get("number") == self._numbers[link]
        if report.get("crowd") is True:
            self._crowded[link] = None
        else:
            self._crowded.pop(link, None)
        self._messages.on_report(link, held, wants=wants, confirmed=confirmed)
        self._bytes.on_report(link, held_bytes, wants=wants, confirmed=confirmed)
        if not confirmed:
            self._behind[link] = None

    def share(
        self, stuck: list[str], waiting: Count, still: Count = (0, 0), in_work: int | None = None
    ) -> list[tuple[Link, Meta]]:
        """Share the credit anew, and tell which types are stuck; return what is to be sent to bridges. So many messages
        and bytes are `waiting` for handlers, without those of stuck types, and so many of these are `still`: none of
        their types has moved since the last time. Where it is known that so many messages are `in_work`, the others are
        between bridge and broker."""
        others = self._messages.count_others(waiting[0])
        part = min(in_work / others, 1.0) if others and in_work is not None else 1.0
        self._messages.follow(waiting[0], still[0], part)
        self._bytes.follow(waiting[1], still[1], part, TIMES_CROWD if self._has_lone_crowd else TIMES)
        changed = dict.fromkeys([*self._messages.share(), *self._bytes.share()])
        if stuck != self._stuck:
            self._stuck = stuck
            changed = dict.fromkeys(self._numbers)
        for link in changed:
            self._numbers[link] += 1
        changed.update(self._behind)  # the latest may have been lost with a connection
        self._behind.clear()
        return [(link, self._options(link)) for link in changed]

    @property
    def _has_lone_crowd(self) -> bool:
        """Return whether many senders wait at the only bridge, which is not in the broker's process."""
        return len(self._numbers) == 1 and any(link.door != "direct" for link in self._crowded)

    def _options(self, link: Link) -> Meta:
        return {
            "credit": self._messages.accounts[link].granted,
            "credit_bytes": self._bytes.accounts[link].granted,
            "number": self._numbers[link],
            "stuck": self._stuck,
        }

    def bounds(self) -> dict[str, Bound]:
        """Return how much of the credit bridges have, in messages and in bytes."""
        return {
            "submits": Bound(self._messages.reserved, self._messages.total),
            "submit_bytes": Bound(self._bytes.reserved, self._bytes.total),
        }


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
