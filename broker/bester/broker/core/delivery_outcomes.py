"""Outcomes of deliveries: what the confirmations of a bridge, or its loss, mean for the cases and mailboxes. Pure."""

from __future__ import annotations

from bester.broker.core.cases import Case, Reports
from bester.broker.core.commands import Commands
from bester.broker.core.deliveries import UNCONFIRMED, Deliveries, Delivery, MailDelivery
from bester.broker.core.directory import Directory
from bester.broker.core.effects import Link
from bester.broker.core.mailboxes import Mailboxes
from bester.broker.core.relays import Relays
from bester.broker.core.trace import Trace
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import Confirm
from bester.broker.wire.outcomes import DELIVERED


class DeliveryOutcomes:
    """Taker of confirmations. `bridges` are the links of the living bridges."""

    def __init__(
        self, *, deliveries: Deliveries, commands: Commands, mailboxes: Mailboxes, relays: Relays, directory: Directory,
        bridges: dict[Link, None], reports: Reports, trace: Trace,
    ) -> None:  # fmt: skip
        self._deliveries = deliveries
        self._commands = commands
        self._mailboxes = mailboxes
        self._relays = relays
        self._directory = directory
        self._bridges = bridges
        self._reports = reports
        self._trace = trace

    def on_confirm(self, link: Link, confirm: Confirm, now: float) -> None:
        """Take in which deliveries a bridge has made, and which failed."""
        failures: dict[int, dict[int, str]] = {}
        for serial, t, reason in confirm.failed:
            failures.setdefault(serial, {})[t] = reason if reason in CODES or reason == UNCONFIRMED else "not-connected"
        reported: list[Case] = []  # cases that end here, and of which nobody asks for the outcomes
        trace = self._trace.add
        for serial, delivery in self._deliveries.confirm(link, confirm.upto, confirm.done):
            reasons = failures.get(serial) if failures else None
            if type(delivery) is Delivery and delivery.reported and not reasons:
                case = delivery.job.case
                if case.traced:
                    names = delivery.command.targets
                    for target in delivery.targets:
                        trace((now, case.root, delivery.id, DELIVERED, names[target[0]], delivery.since))
                reported.append(case)
                continue
            if reported:
                self._reports.settle_reported(reported)
                reported = []
            if type(delivery) is Delivery:
                self._delivered(delivery, reasons, now)
            elif type(delivery) is MailDelivery:
                self._mailboxes.on_delivered(delivery, next(iter(reasons.values())) if reasons else None, now)
        self._reports.settle_reported(reported)

    def _delivered(self, delivery: Delivery, failures: dict[int, str] | None, now: float) -> None:
        """Record the outcomes of a delivery that its bridge has not reported by itself."""
        case, shares, names = delivery.job.case, delivery.shares, delivery.command.targets
        for target in delivery.targets:
            t = target[0]
            reason = failures.get(t) if failures else None
            share = shares.get(t) if shares else None
            if share is not None:
                if not share.end(reason):
                    continue
                reason = None if share.delivered else share.reason
            outcome = DELIVERED if reason is None else self._commands.on_not_delivered(delivery, t, reason, now)
            if outcome:
                case.record(names[t], outcome)
                self._trace.add((now, case.root, delivery.id, outcome, names[t], delivery.since))
        self._reports.settle_one(case)

    def on_bridge_lost(self, link: Link, now: float) -> None:
        """Forget a bridge and its sessions; its unconfirmed deliveries may have been made."""
        self._bridges.pop(link, None)
        self._directory.drop(link)
        for delivery in self._deliveries.drop_link(link):
            if type(delivery) is Delivery:
                self._delivered(delivery, {target[0]: UNCONFIRMED for target in delivery.targets}, now)
            elif type(delivery) is MailDelivery:
                self._mailboxes.on_delivered(delivery, UNCONFIRMED, now)
        self._relays.on_link_lost(link, now)
