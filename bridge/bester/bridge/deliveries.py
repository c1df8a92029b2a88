"""Deliveries of the broker: which frames go to whom, and when they are confirmed. Pure.

A delivery has ended when the bytes of each target have left on one of its connections (or, where the client
acknowledges, it has acknowledged them), or cannot leave on any. A delivery is confirmed when it has ended, and not
before; where it completes a message of a connection here, the good report is written here too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence

from bester.bridge import native_writing
from bester.bridge.acks import Acks
from bester.bridge.answers import Answers
from bester.bridge.brokers import Broker
from bester.bridge.confirmations import UNCONFIRMED, Confirmations, Delivery
from bester.bridge.limits import Limits
from bester.bridge.outbound import Outbound
from bester.bridge.outqueue import Mark
from bester.bridge.ports import ClientConnection, Waiting
from bester.bridge.senders import Sender
from bester.bridge.submission import Submission
from bester.broker.wire.messages import Deliver

Reporter = Callable[[int, int, str | None, str | None, dict[str, str] | None, float], None]
"""Function that writes a report: token, status, reason, message, recipients, now."""


class Deliveries:
    """Frames to be delivered. `targets` are the connections by session, `broker` the one whose deliveries are handled
    first; `unreported` are its messages without a report, by token.

    `report` writes a report; `reported` lets a connection go on after reports that were written here. `wake` makes
    `confirm` follow at the end of this turn.
    """

    def __init__(
        self,
        limits: Limits,
        targets: Mapping[int, ClientConnection],
        broker: Broker,
        outbound: Outbound,
        report: Reporter,
        reported: Callable[[ClientConnection, float], None],
        wake: Callable[[], None],
        clock: Callable[[], float],
        reached: Counter[str],
    ) -> None:
        self._targets = targets
        self._offer = outbound.offer
        self._offer_to_others = outbound.offer_to_others
        self._is_among = outbound.is_among
        self._share = outbound.share
        self._report = report
        self._wake = wake
        self._clock = clock
        self._answers = Answers(targets, outbound, reported)
        self._acks = Acks(limits, reached)
        self.turn_to(broker)

    def turn_to(self, broker: Broker) -> None:
        """Handle the deliveries of a broker from now on, or of its new link."""
        self._confirmations: Confirmations = broker.confirmations
        self._unreported: MutableMapping[int, Submission] = broker.submissions.by_token

    def on_reports(self, reports: int) -> None:
        """Count reports of the broker; the next confirmation lets the broker forget them."""
        self._confirmations.on_reports(reports)
        self._wake()

    def deliver(self, run: Sequence[Deliver], now: float, budget: int) -> tuple[int, int]:
        """Write the frames of a run of deliveries, in order, until `budget` copies were made for connections, of
        deliveries to several. Return the number of deliveries handled, and what is left of the budget.

        Answers to their senders alone are written together."""
        answers, unreported, confirmations = self._answers, self._unreported, self._confirmations
        handled = 0
        while True:
            handled += answers.write(run, handled, unreported, confirmations, now)
            if handled == len(run):
                return handled, budget
            message = run[handled]
            submission = None if message.token is None else unreported.get(message.token)
            budget -= self._deliver(message, submission, now)
            handled += 1
            if budget <= 0:
                return handled, budget

    def _deliver(self, message: Deliver, submission: Submission | None, now: float) -> int:
        """Write a delivery's frames; return the number of copies that were made for connections, where there are
        several. `submission` is the unreported message that the delivery completes, if any."""
        serial, id_, type_, body, targets, token, meta = message
        head, tail = native_writing.envelope(id_, type_, body, meta)
        owner, sender, number, copies = None, None, 0, sum(map(len, targets)) - len(targets)
        if submission is not None:
            number = submission.session
            owner = self._targets.get(number)
            if owner is not None:
                sender = owner.session.window.sender
                sender.on_copies(copies)
                if owner.session.acks or "dedup" in submission.submit.meta:
                    owner = None
        if (
            owner is not None and len(targets) == 1 and len(targets[0]) == 2 and targets[0][1] == number
            and self._offer(owner, native_writing.delivered(head, targets[0][0], tail))
        ):  # fmt: skip
            assert token is not None
            self._confirmations.at_once((serial,))
            self._report(token, 0, None, meta.get("message"), None, now)
            return 0
        delivery: Delivery | None = None
        message_id = meta.get("message")
        frames = 0
        for target in targets:
            frame = native_writing.delivered(head, target[0], tail)
            if owner is not None and self._is_among(owner, target) and self._offer(owner, frame):
                frames += self._offer_to_others(owner, target, self._targets, frame)
                continue
            if delivery is None:
                delivery = self._confirmations.begin(serial, token, message_id)
            frames += self._expect(delivery, id_, target, frame)
        if sender is not None and delivery is not None and delivery.failed and self._is_to(sender, targets):
            sender.on_refused(copies)
        if delivery is None:
            self._confirmations.at_once((serial,))
            self._wake()
            if token is not None:
                self._report(token, 0, None, message_id, None, now)
        elif delivery.release():
            self.on_delivery_ended(delivery)
        return frames

    def _is_to(self, sender: Sender, targets: Sequence[Sequence[int]]) -> bool:
        """Return whether a delivery goes to its sender's own connections alone: a reader who is stuck must not slow
        those who write to others as well."""
        owners = (self._targets.get(session) for target in targets for session in target[1:])
        return all(owner is not None and owner.session.window.sender is sender for owner in owners)

    def _expect(self, delivery: Delivery, id_: str, target: list[int], frame: tuple[bytes, ...]) -> int:
        """Write one target's frame to its sessions, with a mark behind it; return the number of copies."""
        reason = "not-connected"
        shared = self._share(target, self._targets, frame, (delivery, target[0]))
        if shared is None:
            reached = 0
            alone = [self._targets[session] for session in target[1:] if session in self._targets]
        else:
            reached, alone = shared
        for connection in alone:
            acks = connection.session.acks
            if (not acks or self._acks.has_room(connection)) and self._offer(connection, frame):
                connection.out.mark((delivery, target[0]))
                reached += 1
                if acks:
                    size = sum(map(len, frame))
                    self._acks.expect(connection, f"{id_}.{target[0]}", delivery, target[0], size)
            else:
                reason = connection.abort_code or "overloaded"
        if reached:
            delivery.expect(target[0], reached)
        else:
            delivery.fail(target[0], reason)
        return len(alone)

    def on_bytes_sent(self, connection: ClientConnection, marks: list[Mark[Waiting]]) -> None:
        """Count the marked frames as sent. A frame that the client is to acknowledge starts its time now."""
        if connection.session.acks and marks:
            self._acks.on_bytes_sent(connection, len(marks), self._clock())
            return
        for mark in marks:
            for delivery, target in mark.what:
                if delivery.on_sent(target):
                    self.on_delivery_ended(delivery)
            mark.what.clear()  # decided: the others who share the list need not look

    def on_connection_lost(self, connection: ClientConnection) -> None:
        """Count frames that have not left, or were not acknowledged, as failed. Frames that the socket was given may
        have arrived all the same; `abort_code` is the reason of the others alone."""
        reason = connection.abort_code if connection.abort_code not in (None, "not-connected") else UNCONFIRMED
        connection.out.catch_up()  # with what the others get in this turn: that is missed here as well
        taken = connection.out.taken_bytes
        marks = connection.out.drop()
        if connection.session.acks:
            begun = sum(mark.end <= taken for mark in marks)
            for delivery in self._acks.on_connection_lost(connection, begun, reason):
                self.on_delivery_ended(delivery)
            return
        for mark in marks:
            became = UNCONFIRMED if mark.least <= taken else reason
            for delivery, target in mark.what:
                if delivery.on_missed(target, became):
                    self.on_delivery_ended(delivery)

    def awaits(self, connection: ClientConnection) -> bool:
        """Return whether an acknowledgement may come on this connection."""
        return self._acks.awaits(connection)

    def on_acks(self, connection: ClientConnection, ids: list[str]) -> None:
        """Count the frames with these ids as acknowledged by the client."""
        for delivery in self._acks.on_acks(connection, ids):
            self.on_delivery_ended(delivery)

    def judge(self, now: float) -> Iterator[None]:
        """Give up on frames that were not acknowledged in time; one before each step."""
        for delivery in self._acks.overdue(now):
            if delivery is not None:
                self.on_delivery_ended(delivery)
            yield

    def on_delivery_ended(self, delivery: Delivery) -> None:
        """Confirm a delivery that has ended at the end of the turn, and report the message that it completes."""
        delivery.confirmations.end(delivery)
        if delivery.confirmations.is_lost:
            return
        self._wake()
        if delivery.token is not None and not delivery.failed:
            self._report(delivery.token, 0, None, delivery.message, None, self._clock())
