"""What the broker has delivered here: which frames go to whom, and what is confirmed when. Pure.

A delivery has ended when the bytes of each target have left on one of its connections (or, where the client said that
it acknowledges, the client has said so), or cannot on any. It is confirmed then, and not before; where it completes a
message of a connection here, the good report is written here too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bester.bridge import native
from bester.bridge.acks import Acks
from bester.bridge.confirmations import UNCONFIRMED, Confirmations, Delivery
from bester.bridge.limits import Limits
from bester.bridge.outbound import Outbound
from bester.bridge.outqueue import Mark
from bester.bridge.ports import ClientConnection, Waiting
from bester.bridge.submissions import Submission
from bester.broker.wire.messages import Confirm, Deliver

Reporter = Callable[[int, int, str | None, str | None, dict[str, str] | None, float], None]
"""Writes a report: token, status, reason, message, recipients, now."""


class Deliveries:
    """`targets` are the connections by session, `submits` those that wait for a report, by token.

    `wake` sees to it that what has ended is confirmed at the end of this turn.
    """

    def __init__(
        self,
        limits: Limits,
        targets: Mapping[int, ClientConnection],
        unreported: Mapping[int, Submission],
        writing: Outbound,
        report: Reporter,
        wake: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self._targets = targets
        self._unreported = unreported
        self._offer = writing.offer
        self._report = report
        self._wake = wake
        self._clock = clock
        self._ledger = Confirmations()
        self._acknowledging = Acks(limits)

    def forget(self) -> None:
        """The link to the broker is lost: nothing of before is confirmed any more."""
        self._ledger = Confirmations()

    def confirm(self) -> list[Confirm]:
        """Return what is to be confirmed now."""
        return self._ledger.confirm()

    def reported(self, reports: int) -> None:
        """So many reports have come from the broker: it is told that it may forget them."""
        self._ledger.reported(reports)
        self._wake()

    def deliver(self, message: Deliver, now: float) -> None:
        """Write a delivery's frames. Where all of them go to the very connection whose report follows them, the order
        of the stream is all the confirmation needed; unless that report may be asked for on another connection."""
        serial, id_, type_, body, targets, token, meta = message
        head, tail = native.envelope(id_, type_, body, meta)
        submission = None if token is None else self._unreported.get(token)
        owner, number = None, 0
        if submission is not None and "dedup" not in submission.submit[4]:
            number = submission.session
            owner = self._targets.get(number)
            if owner is not None and owner.session.acks:
                owner = None
        if (
            owner is not None and len(targets) == 1 and len(targets[0]) == 2 and targets[0][1] == number
            and self._offer(owner, native.delivered(head, targets[0][0], tail))
        ):  # fmt: skip
            # To the sender alone, as most answers are.
            assert token is not None
            self._ledger.at_once(serial)
            self._report(token, 0, None, meta.get("message"), None, now)
            return
        delivery: Delivery | None = None
        completes = meta.get("message")
        for target in targets:
            frame = native.delivered(head, target[0], tail)
            if owner is not None and number in target[1:] and self._offer(owner, frame):
                for session in target[1:]:
                    connection = self._targets.get(session)
                    if connection is not None and connection is not owner:
                        self._offer(connection, frame)
                continue
            if delivery is None:
                delivery = self._ledger.begin(serial, token, completes)
            self._expect(delivery, id_, target, frame)
        if delivery is None:
            self._ledger.at_once(serial)
            self._wake()
            if token is not None:
                self._report(token, 0, None, completes, None, now)
        elif delivery.release():
            self.on_delivery_ended(delivery)

    def _expect(self, delivery: Delivery, id_: str, target: list[int], frame: tuple[bytes, ...]) -> None:
        """Write one target's frame to its sessions, each with a mark behind it."""
        reason = "not-connected"
        reached = 0
        for session in target[1:]:
            connection = self._targets.get(session)
            if connection is None:
                continue
            acks = connection.session.acks
            if (not acks or self._acknowledging.has_room(connection)) and self._offer(connection, frame):
                connection.out.mark((delivery, target[0]))
                reached += 1
                if acks:
                    size = sum(map(len, frame))
                    self._acknowledging.expect(connection, f"{id_}.{target[0]}", delivery, target[0], size)
            else:
                reason = connection.abort_code or "overloaded"
        if reached:
            delivery.expect(target[0], reached)
        else:
            delivery.fail(target[0], reason)

    def on_bytes_sent(self, connection: ClientConnection, marks: list[Mark[Waiting]]) -> None:
        """What these marks stand for has left. Where it is to be acknowledged, the time for that begins."""
        if connection.session.acks and marks:
            self._acknowledging.on_bytes_sent(connection, len(marks), self._clock())
            return
        for mark in marks:
            delivery, target = mark.what
            if delivery.on_sent(target):
                self.on_delivery_ended(delivery)

    def on_connection_gone(self, connection: ClientConnection) -> None:
        """A connection is no more: what has not left on it, or was not acknowledged, will not be. What the socket was
        given may have arrived all the same; why the connection was cut is the reason of the rest alone."""
        reason = connection.abort_code if connection.abort_code not in (None, "not-connected") else UNCONFIRMED
        taken = connection.out.taken_bytes
        marks = connection.out.drop()
        if connection.session.acks:
            begun = sum(mark.end <= taken for mark in marks)
            for delivery in self._acknowledging.on_connection_gone(connection, begun, reason):
                self.on_delivery_ended(delivery)
            return
        for mark in marks:
            delivery, target = mark.what
            if delivery.on_missed(target, UNCONFIRMED if mark.end <= taken else reason):
                self.on_delivery_ended(delivery)

    def awaits(self, connection: ClientConnection) -> bool:
        """Whether an acknowledgement may come on this connection."""
        return self._acknowledging.awaits(connection)

    def acknowledged(self, connection: ClientConnection, ids: list[str]) -> None:
        """The client has got the frames with these ids."""
        for delivery in self._acknowledging.acknowledged(connection, ids):
            self.on_delivery_ended(delivery)

    def tick(self, now: float) -> None:
        """Give up on what was not acknowledged in time."""
        for delivery in self._acknowledging.late(now):
            self.on_delivery_ended(delivery)

    def on_delivery_ended(self, delivery: Delivery) -> None:
        """A delivery has ended: it is confirmed at the end of the turn, and the message it completes is reported."""
        delivery.ledger.end(delivery)
        if delivery.ledger is not self._ledger:
            return
        self._wake()
        if delivery.token is not None and not delivery.failed:
            self._report(delivery.token, 0, None, delivery.message, None, self._clock())
