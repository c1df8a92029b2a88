"""Which deliveries of one broker link are still on their way out, and what to confirm of the others. Pure.

A delivery has ended when each of its targets has: a target goes well when its frame has left on one of its sessions,
and has failed when all of them are gone. Confirmations are cumulative: everything up to the oldest delivery that still
waits, the few ended ones above it by number, failures by name. A ledger lives as long as a link: after it, what is
still going out interests nobody.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from bester.broker.wire.messages import Confirm

UNCONFIRMED = "unconfirmed"
"""To the broker only: nobody is there, and what was written on a connection that is gone may have arrived."""
TIMEOUT = "timeout"
"""It has left, and the client has not said in time that it has got it: it may have."""


class Delivery:
    """One DELIVER on its way to several connections. `token` is that of the message it completes, if any."""

    __slots__ = ("_targets", "_unsure", "failed", "holds", "ledger", "message", "serial", "token")

    def __init__(self, ledger: Confirmations, serial: int, token: int | None, message: str | None) -> None:
        self.ledger = ledger
        self.serial = serial
        self.token = token
        self.message = message
        self.failed: list[list[Any]] = []
        self.holds = 1  # targets that are undecided, and one for whoever is still adding targets
        self._targets: dict[int, int] = {}  # undecided target: sessions that may still make it
        self._unsure: dict[int, str] | None = None  # why it may have arrived at a target that is undecided

    def expect(self, target: int, sessions: int) -> None:
        """`target` waits for one of so many sessions."""
        self._targets[target] = sessions
        self.holds += 1

    def fail(self, target: int, reason: str) -> None:
        """`target` has no session to wait for."""
        self.failed.append([self.serial, target, reason])

    def release(self) -> bool:
        """No more targets are added. True where the delivery has ended by that."""
        return self._decided()

    def on_sent(self, target: int) -> bool:
        """The frame left on one of the target's sessions. True where the delivery has ended by that."""
        return self._targets.pop(target, None) is not None and self._decided()

    def on_missed(self, target: int, reason: str) -> bool:
        """One of the target's sessions is gone with the frame. True where the delivery has ended by that."""
        sessions = self._targets.get(target)
        if sessions is None:
            return False
        if reason in (UNCONFIRMED, TIMEOUT):  # one that may have got it is enough to say so; one may be there still
            unsure = self._unsure = self._unsure or {}
            unsure[target] = TIMEOUT if unsure.get(target) == TIMEOUT else reason
        if sessions > 1:
            self._targets[target] = sessions - 1
            return False
        del self._targets[target]
        self.fail(target, reason if self._unsure is None else self._unsure.get(target, reason))
        return self._decided()

    def _decided(self) -> bool:
        self.holds -= 1
        return self.holds == 0


MAX_ROWS = 100_000
"""Failures in one confirmation: as many as one delivery may have, and fewer than a fabric message may list."""


class Confirmations:
    """The serials of one life of a link to a broker; they rise."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, Delivery] = OrderedDict()
        self._highest = 0
        self._ended: list[int] = []
        self._failed: dict[int, list[list[Any]]] = {}
        self._told = 0
        self._news = False
        self._reports = 0

    @property
    def waiting(self) -> int:
        """Deliveries that have not ended."""
        return len(self._open)

    def at_once(self, serial: int) -> None:
        """A delivery ended as soon as it came."""
        self._highest = serial
        self._news = True
        if self._open:
            self._ended.append(serial)

    def begin(self, serial: int, token: int | None, message: str | None) -> Delivery:
        """A delivery goes out; `end` it when it says it has ended."""
        self._highest = serial
        delivery = self._open[serial] = Delivery(self, serial, token, message)
        return delivery

    def end(self, delivery: Delivery) -> None:
        """The delivery has ended."""
        if self._open.pop(delivery.serial, None) is None:
            return
        self._news = True
        if delivery.failed:
            self._failed[delivery.serial] = delivery.failed
        if self._open:
            self._ended.append(delivery.serial)

    def reported(self, reports: int) -> None:
        """So many reports have come."""
        self._reports += reports
        self._news = True

    def confirm(self) -> list[Confirm]:
        """Return what has ended, or come, since the last call; nothing where nothing has.

        It is one confirmation, unless a crowd has gone: failures that do not fit into it are told before, each with
        the serial of its delivery, so that nothing is held to be delivered by a later word that covers it.
        """
        if not self._news:
            return []
        confirms: list[Confirm] = []
        serials: list[int] = []
        failed: list[list[Any]] = []
        for serial, rows in self._failed.items():
            if serials and len(failed) + len(rows) > MAX_ROWS:
                confirms.append(Confirm(self._told, serials, failed, self._reports))
                serials, failed = [], []
            serials.append(serial)
            failed.extend(rows)  # into a list of its own, never into a delivery's
        self._told = next(iter(self._open)) - 1 if self._open else self._highest
        done = [serial for serial in self._ended if serial > self._told]
        confirms.append(Confirm(self._told, done, failed, self._reports))
        self._ended, self._failed, self._news = [], {}, False
        return confirms
