"""Mailboxes: what waits for users who are away, and how it reaches them when they come.

What waits is delivered in its order and before anything newer: while something waits, what is new goes behind it. It is
over when a bridge has confirmed that it was written; until then it stays.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from bester.broker.core.boxes import Box, Boxes
from bester.broker.core.cases import DELIVERED
from bester.broker.core.deliveries import MAYBE, UNCONFIRMED, Deliveries, MailDelivery, Share
from bester.broker.core.directory import Directory
from bester.broker.core.values import Outbox
from bester.broker.kept import Entry, mailbox, owner_of
from bester.broker.wire.messages import Deliver, Meta

LOOK_AGAIN_S = 1.0
"""After a delivery that a connection had no room for, or did not acknowledge."""


class Mailboxes:
    """The mailboxes among the boxes. `became` is told what became of each message."""

    def __init__(
        self, boxes: Boxes, directory: Directory, deliveries: Deliveries, out: Outbox,
        became: Callable[[Entry, str, float], None],
    ) -> None:  # fmt: skip
        self._boxes = boxes
        self._directory = directory
        self._deliveries = deliveries
        self._out = out
        self._became = became
        self._later: dict[str, None] = {}  # users to look at again when it is time

    def waits(self, user: str) -> bool:
        """Must what is new for this user go behind what waits?"""
        box = self._boxes.get(mailbox(user))
        return box is not None and box.waiting > 0

    def came(self, user: str, now: float) -> None:
        """A user has a connection (more): what waits is theirs."""
        box = self._boxes.get(mailbox(user))
        if box is not None:
            box.doom, box.retry_at = None, 0.0
            self.look(box, now)

    def removed(self, user: str, outcome: str, now: float) -> None:
        """There is no such user any more: what waits has this outcome, and whoever is to be told is told."""
        box = self._boxes.get(mailbox(user))
        if box is not None:
            box.doom, box.retry_at = outcome, 0.0
            self.look(box, now)

    def look(self, box: Box, now: float) -> None:
        """Go on with a mailbox, if its user is there and there is more than is on its way."""
        limits = self._boxes.limits
        if box.waiting <= 0 or box.fetching or len(box.flying) * 2 > limits.window:
            return
        user = owner_of(box.key)
        if box.doom is None and self._directory.places(user) is None:
            return
        if now < box.retry_at:
            self._later[user] = None
            return
        self._boxes.fetch(box, limits.window - len(box.flying))

    def found(self, box: Box, entries: Sequence[Entry], now: float) -> None:
        """What was asked for: deliver it to every connection that its user has."""
        if not entries:
            self.look(box, now)
            return
        if box.doom is not None:
            for entry in entries:
                self._boxes.end(entry, box.doom)
                self._became(entry, box.doom, now)
            self._later[owner_of(box.key)] = None  # the next of them when others had their turn
            return
        places = self._directory.places(owner_of(box.key))
        if places is None:
            for entry in entries:
                box.put_back(entry.number)
            return
        marked = self._boxes.hand(box, entries)
        for entry in entries:
            id_, _, t = entry.id.rpartition(".")
            meta: Meta = {"origin": entry.meta.get("origin")}
            again = entry.number in marked
            if again:
                meta["redelivered"] = True
            share = Share(len(places))
            for link, sessions in places.items():
                serial = self._deliveries.add(link, MailDelivery(entry, share, again))
                self._out.say(link, Deliver(serial, id_, entry.type, entry.body, [[int(t), *sessions]], None, meta))

    def delivered(self, mail: MailDelivery, reason: str | None, now: float) -> None:
        """A bridge has ended with one of them; `reason` where its bytes left on none of its sessions there."""
        entry, share = mail.entry, mail.share
        box = self._boxes.get(entry.box)
        if not share.end(reason) or box is None or entry.number not in box.flying:
            return
        if share.delivered:
            self._boxes.end(entry, DELIVERED)
            self._became(entry, DELIVERED, now)
        else:
            box.put_back(entry.number, unsent=share.reason not in MAYBE and not mail.again)
            if share.reason not in ("not-connected", UNCONFIRMED):  # the user is there, and does not read or answer
                box.retry_at = now + LOOK_AGAIN_S
        self.look(box, now)

    def tick(self, now: float) -> None:
        """Look again where it is time."""
        users, self._later = self._later, {}
        for user in users:
            box = self._boxes.get(mailbox(user))
            if box is not None:
                self.look(box, now)
