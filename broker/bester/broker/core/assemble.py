"""Build the units of one broker's core, and connect them: each unit is given those it works with, and builds none.

Two knots are tied by late calls: commands and dead letters send messages into the dispatcher, which itself holds both;
and queues report to mailboxes, relays and late outcomes, which all hold the queues.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bester.broker.core.absent import Absent
from bester.broker.core.adoption import Adoption
from bester.broker.core.auth import AuthHandlers
from bester.broker.core.cases import Reports
from bester.broker.core.clock import Clock
from bester.broker.core.cockpit import Cockpit
from bester.broker.core.commands import Commands
from bester.broker.core.contracts import Contracts
from bester.broker.core.dead_letters import DeadLetters
from bester.broker.core.deliveries import Deliveries
from bester.broker.core.delivery_outcomes import DeliveryOutcomes
from bester.broker.core.directory import Directory
from bester.broker.core.dispatcher import Dispatcher
from bester.broker.core.effects import Effects, Link
from bester.broker.core.fan_out import FanOut
from bester.broker.core.figures import Figures
from bester.broker.core.following import Following
from bester.broker.core.inbound_lanes import InboundLanes
from bester.broker.core.ingress import Ingress
from bester.broker.core.jobs import Job
from bester.broker.core.known_types import KnownTypes
from bester.broker.core.lane_shares import LaneShares
from bester.broker.core.late_outcomes import LateOutcomes
from bester.broker.core.mailboxes import Mailboxes
from bester.broker.core.observers import Observers
from bester.broker.core.overdue import Overdue
from bester.broker.core.peers import Peers
from bester.broker.core.pending_answers import PendingAnswers
from bester.broker.core.questions import Questions
from bester.broker.core.queue_table import Queue
from bester.broker.core.queues import Queues
from bester.broker.core.recordings import Recordings
from bester.broker.core.relays import Relays
from bester.broker.core.remote_notes import RemoteNotes
from bester.broker.core.replies import Replies
from bester.broker.core.reporters import Reporters
from bester.broker.core.restarts import Restarts
from bester.broker.core.server_ingress import ServerIngress
from bester.broker.core.settings import Settings
from bester.broker.core.shadows import Shadows
from bester.broker.core.standing import Standing
from bester.broker.core.strangers import Strangers
from bester.broker.core.stuck_types import StuckTypes
from bester.broker.core.submit_credit import SubmitCredit
from bester.broker.core.timeouts import Timeouts
from bester.broker.core.trace import Trace
from bester.broker.core.tracing import Tracing
from bester.broker.core.transfers import Transfers
from bester.broker.core.worker_changes import WorkerChanges
from bester.broker.core.workers import Workers
from bester.broker.store_requests import Snapshot, is_mailbox
from bester.broker.wire.messages import Message


class Surroundings(NamedTuple):
    """Facts and functions that the shell gives to the core.

    `epoch` tells this life of the broker from earlier ones, `first_token` is where its tokens begin, `names` are those
    that ids of its messages may begin with. `chance` returns numbers from 0 to 1; `accounts_of` returns those of some
    names that users have, `process_of` gives the number of the process at the other end of a link, `is_stopped` says
    whether a process is stopped, `read_until` up to which time everything that had arrived on a link was read.
    `take_unsent` returns the messages for a link that was lost which were left to a later turn, and sends them no more.
    """

    epoch: str
    first_token: int
    names: set[str]
    chance: Callable[[], float]
    accounts_of: Callable[[Collection[str]], Collection[str]]
    process_of: Callable[[Link], int | None]
    is_stopped: Callable[[int], bool]
    read_until: Callable[[Link], float]
    take_unsent: Callable[[Link], Sequence[Message]]


@dataclass(frozen=True)
class Units:
    """The units that the router itself calls."""

    dispatcher: Dispatcher
    replies: Replies
    worker_changes: WorkerChanges
    known_types: KnownTypes
    delivery_outcomes: DeliveryOutcomes
    ingress: Ingress
    inbound_lanes: InboundLanes
    peers: Peers
    answers: PendingAnswers
    contracts: Contracts
    restarts: Restarts
    questions: Questions
    reports: Reports
    directory: Directory
    workers: Workers
    deliveries: Deliveries
    queues: Queues
    mailboxes: Mailboxes
    relays: Relays
    reporters: Reporters
    dead_letters: DeadLetters
    late_outcomes: LateOutcomes
    notes: RemoteNotes
    standing: Standing
    cockpit: Cockpit
    figures: Figures
    trace: Trace
    recordings: Recordings
    shadows: Shadows
    credit: SubmitCredit
    stuck_types: StuckTypes
    auth: AuthHandlers
    following: Following
    adoption: Adoption
    fan_out: FanOut


class _Common(NamedTuple):
    """Arguments of `assemble`, and the units that most others are given."""

    settings: Settings
    out: Effects
    clock: Clock
    snapshot: Snapshot
    around: Surroundings
    now: float
    bridges: dict[Link, str]
    trace: Trace
    reports: Reports
    directory: Directory
    deliveries: Deliveries
    figures: Figures


class _Queueing(NamedTuple):
    """Units of messages on disk, and of messages to other servers."""

    queues: Queues
    mailboxes: Mailboxes
    relays: Relays
    notes: RemoteNotes
    late_outcomes: LateOutcomes
    reporters: Reporters
    standing: Standing


class _Handling(NamedTuple):
    """Units of messages for handlers."""

    dispatcher: Dispatcher
    replies: Replies
    worker_changes: WorkerChanges
    known_types: KnownTypes
    delivery_outcomes: DeliveryOutcomes
    workers: Workers
    timeouts: Timeouts
    contracts: Contracts
    observers: Observers
    dead_letters: DeadLetters
    fan_out: FanOut


def assemble(
    settings: Settings, out: Effects, clock: Clock, snapshot: Snapshot, around: Surroundings, now: float
) -> Units:
    """Build the units. All of them put their effects into `out`; `snapshot` is what the store holds."""
    limits = settings.limits
    trace = Trace(limits.trace, clock, settings.name)
    reports, directory, deliveries = Reports(out), Directory(limits.max_sessions), Deliveries()
    figures, bridges = Figures(), dict[Link, str]()
    common = _Common(
        settings, out, clock, snapshot, around, now, bridges, trace, reports, directory, deliveries, figures
    )
    queues, mailboxes, relays, notes, late_outcomes, reporters, standing = queueing = _queueing(common)
    (
        dispatcher, replies, changes, known_types, delivery_outcomes, workers, timeouts, contracts, observers,
        dead_letters, fan_out,
    ) = _handling(common, queueing)  # fmt: skip
    recordings = Recordings(out, observers, clock)
    shadows = Shadows(limits, out, observers, clock)
    inbound_lanes = InboundLanes(out, snapshot.lanes)
    tracing = Tracing(trace, out, exports=settings.spans)
    servers = ServerIngress(
        settings, around.names, out, dispatcher=dispatcher, known_types=known_types, reports=reports, relays=relays,
        late_outcomes=late_outcomes, inbound_lanes=inbound_lanes, trace=trace, tracing=tracing,
    )  # fmt: skip
    ingress = Ingress(
        settings, out, around.epoch, dispatcher=dispatcher, replies=replies, reports=reports, directory=directory,
        servers=servers, strangers=Strangers(settings, reports, out), tracing=tracing,
    )  # fmt: skip
    restarts = Restarts(settings, dispatcher, changes, out)
    answers = PendingAnswers(out, reports)
    credit = SubmitCredit(limits)
    auth = AuthHandlers(settings, out, figures, around.epoch, now)
    peers = Peers(
        settings, out, around.epoch, now, changes=changes, delivery_outcomes=delivery_outcomes,
        workers=workers, timeouts=timeouts, relays=relays, contracts=contracts, bridges=bridges, answers=answers,
        restarts=restarts, recordings=recordings, shadows=shadows, auth=auth, credit=credit, clock=clock,
        process_of=around.process_of, is_stopped=around.is_stopped, read_until=around.read_until,
        take_unsent=around.take_unsent, is_shared=snapshot.is_shared,
    )  # fmt: skip
    questions = Questions(settings, around.names, directory, trace, out)
    following = Following(settings, trace, relays.links, out)
    adoption = Adoption(
        limits, out, clock, figures.store, around.names, peers.by_link, dispatcher=dispatcher, queues=queues,
        known_types=known_types, inbound_lanes=inbound_lanes, notes=notes, reporters=reporters, standing=standing,
        late_outcomes=late_outcomes, now=now, is_shared=snapshot.is_shared,
    )  # fmt: skip
    return Units(
        dispatcher, replies, changes, known_types, delivery_outcomes, ingress, inbound_lanes, peers, answers, contracts,
        restarts, questions, reports, directory, workers, deliveries, queues, mailboxes, relays, reporters,
        dead_letters, late_outcomes, notes, standing,
        Cockpit(settings, out, queues, relays, standing, notes), figures, trace, recordings, shadows,
        credit, StuckTypes(limits), auth, following, adoption, fan_out,
    )  # fmt: skip


def _queueing(common: _Common) -> _Queueing:
    """Build the units of messages on disk, and of messages to other servers."""
    settings, out, snapshot, now = common.settings, common.out, common.snapshot, common.now
    reports, trace = common.reports, common.trace
    queues = Queues(settings, out, reports, common.clock, snapshot, now)
    transfers = Transfers(settings.limits.max_lane, LaneShares(settings.limits.max_lane_of_one))
    notes = RemoteNotes(out, snapshot.remote, settings.bounds.server_outcomes)
    late_outcomes = LateOutcomes(
        settings, queues, transfers, reports, out, notes, common.figures, snapshot.disowned, now,
        is_shared=snapshot.is_shared,
    )  # fmt: skip
    mailboxes = Mailboxes(queues, common.directory, common.deliveries, out, late_outcomes.on_ended, trace)
    reporters = Reporters(out, snapshot.peers)
    standing = Standing(out, settings.routes, snapshot.held, now)
    relays = Relays(
        settings, queues, transfers, reports, out, common.bridges, trace, reporters, notes, standing,
        first_token=common.around.first_token, chance=common.around.chance, on_ended=late_outcomes.on_ended,
    )  # fmt: skip

    def advance(queue: Queue, now: float) -> None:
        (mailboxes if is_mailbox(queue.key) else relays).advance(queue, now)

    queues.on_ready = advance
    queues.on_expiry = late_outcomes.on_ended
    queues.on_damaged = late_outcomes.on_damaged
    return _Queueing(queues, mailboxes, relays, notes, late_outcomes, reporters, standing)


def _handling(common: _Common, queueing: _Queueing) -> _Handling:
    """Build the units of messages for handlers."""
    settings, out, reports, trace = common.settings, common.out, common.reports, common.trace
    directory, deliveries = common.directory, common.deliveries
    queues, mailboxes, relays, _, late_outcomes, *_ = queueing

    def dispatch(job: Job, now: float) -> None:
        dispatcher.dispatch((job,), now)

    def enter(job: Job, now: float) -> None:
        job.case.pending += 1
        dispatcher.enter((job,), now)

    workers, timeouts = Workers(settings.limits.max_types), Timeouts(settings)
    contracts, observers = Contracts(out), Observers()
    known_types = KnownTypes(settings, workers, out, common.snapshot.types, common.now)
    absent = Absent(settings, queues, relays, trace, common.around.accounts_of)
    fan_out = FanOut(settings, out, reports, directory, deliveries, queues, mailboxes, absent)
    commands = Commands(settings, out, trace, reports, queues, directory, deliveries, relays, absent, fan_out, dispatch)
    dead_letters = DeadLetters(
        settings, queues, reports, out, enter, known_types.knows, late_outcomes.owns_letter, common.figures, trace
    )
    dispatcher = Dispatcher(
        settings, out, figures=common.figures, workers=workers, timeouts=timeouts,
        overdue=Overdue(settings, workers, timeouts, known_types, dead_letters, trace), contracts=contracts,
        known_types=known_types, reports=reports, trace=trace, first_token=common.around.first_token,
    )  # fmt: skip
    delivery_outcomes = DeliveryOutcomes(
        deliveries=deliveries, commands=commands, mailboxes=mailboxes, relays=relays, directory=directory,
        bridges=common.bridges, reports=reports, trace=trace,
    )  # fmt: skip
    changes = WorkerChanges(
        settings, out, dispatcher=dispatcher, workers=workers, known_types=known_types, dead_letters=dead_letters,
        trace=trace,
    )  # fmt: skip
    replies = Replies(
        settings, dispatcher=dispatcher, commands=commands, workers=workers, timeouts=timeouts, observers=observers,
        dead_letters=dead_letters, figures=common.figures, reports=reports, trace=trace,
    )  # fmt: skip
    return _Handling(
        dispatcher, replies, changes, known_types, delivery_outcomes, workers, timeouts, contracts, observers,
        dead_letters, fan_out,
    )  # fmt: skip
