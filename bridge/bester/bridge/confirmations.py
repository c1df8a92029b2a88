"""Deliveries of one broker link that are under way, and confirmations of those that have ended. Pure.

A delivery has ended when each of its targets has: a target succeeds when its frame has left on one of its sessions, and
fails when all of them are gone. Confirmations are cumulative: all serials up to the oldest delivery under way, the few
ended ones above by serial, and failures by target. The confirmations of a link end with it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

from bester.broker.wire.messages import Confirm

UNCONFIRMED = "unconfirmed"
"""Reason, for the broker alone: the connection is gone, and a frame that was written on it may have arrived."""
TIMEOUT = "timeout"
"""Reason: the frame has left, and the client has not acknowledged it in time; the frame may have arrived."""


class Delivery:
    """Delivery under way to several connections. `token` is that of the message which the delivery completes, if
    any."""

    __slots__ = ("_maybe", "_targets", "confirmations", "failed", "message", "pending", "serial", "token")

    def __init__(self, confirmations: Confirmations, serial: int, token: int | None, message: str | None) -> None:
        self.confirmations = confirmations
        self.serial = serial
        self.token = token
        self.message = message
        self.failed: list[list[Any]] = []
        self.pending = 1  # undecided targets, and one while targets are still added
        self._targets: dict[int, int] = {}  # undecided target: sessions that may still get the frame
        self._maybe: dict[int, str] | None = None  # undecided target: why the frame may have arrived

    def expect(self, target: int, sessions: int) -> None:
        """Add a target with so many sessions to wait for."""
        self._targets[target] = sessions
        self.pending += 1

    def fail(self, target: int, reason: str) -> None:
        """Add a target that has failed."""
        self.failed.append([self.serial, target, reason])

    def release(self) -> bool:
        """End the adding of targets. Return whether that ends the delivery."""
        return self._decided()

    def on_sent(self, target: int) -> bool:
        """Count the frame as sent on one of the target's sessions. Return whether that ends the delivery."""
        return self._targets.pop(target, None) is not None and self._decided()

    def on_missed(self, target: int, reason: str) -> bool:
        """Count one of the target's sessions as gone with the frame. Return whether that ends the delivery."""
        sessions = self._targets.get(target)
        if sessions is None:
            return False
        if reason in (UNCONFIRMED, TIMEOUT):  # a frame that may have arrived once is no plain failure
            maybe = self._maybe = self._maybe or {}
            maybe[target] = TIMEOUT if maybe.get(target) == TIMEOUT else reason
        if sessions > 1:
            self._targets[target] = sessions - 1
            return False
        del self._targets[target]
        self.fail(target, reason if self._maybe is None else self._maybe.get(target, reason))
        return self._decided()

    def _decided(self) -> bool:
        self.pending -= 1
        return self.pending == 0


_ABSENT = object()

MAX_ROWS = 100_000
"""Failures in one confirmation: fewer than a fabric message may list, and more than one delivery may have."""


class Confirmations:
    """Confirmations of the deliveries of one link. Serials rise, but for those of deliveries that were postponed.
    `is_lost`: the link is gone, and nothing is confirmed any more. `is_due`: something has ended, or come, since the
    last confirmation; `is_awaited`: a delivery is among it that the bridge has not reported itself."""

    def __init__(self) -> None:
        self.is_lost = self.is_due = self.is_awaited = False
        self._open: OrderedDict[int, Delivery | None] = OrderedDict()  # by serial, in order; None: postponed
        self._postponed = 0
        self._highest = 0
        self._ended: list[int] = []
        self._failed: dict[int, list[list[Any]]] = {}
        self._confirmed_upto = 0
        self._reports = 0

    @property
    def waiting(self) -> int:
        """Number of deliveries under way."""
        return len(self._open)

    def at_once(self, serials: Sequence[int]) -> None:
        """Count deliveries that ended as soon as they came, or as they were begun after all."""
        if serials[-1] > self._highest:
            self._highest = serials[-1]
        self.is_due = True
        if self._open:
            if self._postponed:
                self._postponed -= sum(self._open.pop(serial, _ABSENT) is None for serial in serials)
            self._ended += serials

    def postpone(self, serial: int) -> None:
        """Count a delivery as under way that is begun, or ends at once, later."""
        self._highest = serial
        self._open[serial] = None
        self._postponed += 1

    def begin(self, serial: int, token: int | None, message: str | None) -> Delivery:
        """Start a delivery; call `end` when it has ended."""
        if serial > self._highest:
            self._highest = serial
        elif serial in self._open:
            self._postponed -= 1
        delivery = self._open[serial] = Delivery(self, serial, token, message)  # a postponed one keeps its place
        return delivery

    def end(self, delivery: Delivery) -> None:
        """Count a delivery as ended, with its failures."""
        if self._open.pop(delivery.serial, None) is None:
            return
        self.is_due = True
        if delivery.token is None or delivery.failed:
            self.is_awaited = True
        if delivery.failed:
            self._failed[delivery.serial] = delivery.failed
        if self._open:
            self._ended.append(delivery.serial)

    def on_reports(self, reports: int) -> None:
        """Count reports that have come."""
        self._reports += reports
        self.is_due = True

    def confirm(self) -> list[Confirm]:
        """Return the confirmations of everything that has ended or come since the last call; none where nothing has.

        One confirmation is enough, unless a crowd has gone: failures that do not fit are confirmed before, each with
        the serial of its delivery, so that no later confirmation declares such a delivery good.
        """
        if not self.is_due:
            return []
        confirms: list[Confirm] = []
        serials: list[int] = []
        failed: list[list[Any]] = []
        for serial, rows in self._failed.items():
            if serials and len(failed) + len(rows) > MAX_ROWS:
                confirms.append(Confirm(self._confirmed_upto, serials, failed, self._reports))
                serials, failed = [], []
            serials.append(serial)
            failed.extend(rows)  # into a list of its own, never into a delivery's
        upto, done = self._highest, []
        if self._open:
            upto = next(iter(self._open)) - 1
            done = [serial for serial in self._ended if serial > upto]
        self._confirmed_upto = upto
        confirms.append(Confirm(upto, done, failed, self._reports))
        self._ended, self._failed = [], {}
        self.is_due = self.is_awaited = False
        return confirms
