"""Outcomes of deliveries: what the confirmations of a bridge, or its loss, mean for the cases and mailboxes. Pure."""

from __future__ import annotations

from bester.broker.core.cases import Case, Reports
from bester.broker.core.commands import Commands
from bester.broker.core.deliveries import UNCONFIRMED, Deliveries, Delivery, DeliveryRun, MailDelivery
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
        bridges: dict[Link, str], reports: Reports, trace: Trace,
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
        if not confirm.failed and not confirm.done:
            runs = self._deliveries.confirm_runs(link, confirm.upto)
            for run in runs:
                self._on_run_delivered(run, now)
            if runs:
                return
        failures: dict[int, dict[int, str]] = {}
        for serial, t, reason in confirm.failed:
            failures.setdefault(serial, {})[t] = reason if reason in CODES or reason == UNCONFIRMED else "not-connected"
        reported: list[Case] = []  # cases that end here, and of which nobody asks for the outcomes
        for serial, delivery in self._deliveries.confirm(link, confirm.upto, confirm.done):
            reasons = failures.get(serial) if failures else None
            if type(delivery) is Delivery and delivery.reported and not reasons:
                case, names = delivery.job.case, delivery.command.targets
                if case.traced:
                    for t in delivery.targets:
                        self._trace.add((now, case.root, delivery.id, DELIVERED, names[t], delivery.since))
                reported.append(case)
                continue
            if reported:
                self._reports.settle_reported(reported)
                reported = []
            if type(delivery) is Delivery:
                self._on_delivered(delivery, reasons, now)
            elif type(delivery) is MailDelivery:
                self._mailboxes.on_delivered(delivery, next(iter(reasons.values())) if reasons else None, now)
        self._reports.settle_reported(reported)

    def _on_run_delivered(self, run: DeliveryRun, now: float) -> None:
        """Take in that all deliveries of a run were made, and the messages reported."""
        for job, command in run.replies:
            if job.case.traced:
                step = (now, job.case.root, f"{job.id}.0", DELIVERED, command.targets[0], run.since)
                self._trace.add(step)
        self._reports.settle_reported([job.case for job, _ in run.replies])

    def _on_delivered(self, delivery: Delivery, failures: dict[int, str] | None, now: float) -> None:
        """Record the outcomes of a delivery that its bridge has not reported by itself."""
        case, shares, names = delivery.job.case, delivery.shares, delivery.command.targets
        for t in delivery.targets:
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
                self._on_delivered(delivery, dict.fromkeys(delivery.targets, UNCONFIRMED), now)
            elif type(delivery) is MailDelivery:
                self._mailboxes.on_delivered(delivery, UNCONFIRMED, now)
        self._relays.on_link_lost(link, now)
