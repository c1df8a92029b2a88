"""Mutants: each breaks one promise inside the code, and the simulation must notice.

A mutant names the code that it breaks, private or not; no other test does.
"""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from bester.bridge.bridge import Bridge
from bester.bridge.intake import Intake
from bester.bridge.marked import Marked
from bester.bridge.senders import STRANGERS, Sender, Senders
from bester.bridge.submissions import Submissions
from bester.broker.core import commands, dispatcher, policy, queues, relays, type_queues
from bester.broker.core.clock import Clock
from bester.broker.core.dedup import DedupCache
from bester.broker.core.effects import Link
from bester.broker.core.fan_out import FanOut
from bester.broker.core.inbound_lanes import InboundLanes
from bester.broker.core.lane_shares import LaneShares
from bester.broker.core.late_outcomes import LateOutcomes
from bester.broker.core.message_groups import oldest
from bester.broker.core.pools import Worker
from bester.broker.core.queues import Queues
from bester.broker.core.reporters import Reporters
from bester.broker.core.server_ingress import ServerIngress
from bester.broker.core.strangers import Strangers
from bester.broker.core.transfers import Transfer, Transfers
from bester.broker.core.worker_changes import WorkerChanges
from bester.broker.core.workers import Workers
from bester.broker.hosts import Hosts
from bester.broker.store import memory_shared
from bester.broker.store.memory import MemoryStore
from bester.broker.store.memory_shared import SharedMemoryStore
from bester.broker.store_driver import StoreDriver
from bester.broker.store_requests import SaveLane
from bester.broker.wire.outcomes import result_id
from tests.simulation import cluster, hostile
from tests.simulation.__main__ import CLUSTER, SHARED
from tests.simulation.cluster_bridge import ClusterBridge
from tests.simulation.fair import play_fair
from tests.simulation.fair_bridge import Flood
from tests.simulation.fair_broker import Crowd
from tests.simulation.hostile import Hostile
from tests.simulation.scenario import Scenario, play
from tests.world.clock import BrokenRuleError
from tests.world.handlers import SimHandler

NUMBERS = count(1)


def broken_seeds(seeds: int = 60, kind: type[Scenario] = Scenario, *, likely: int = 0) -> str:
    """Play seeds until a rule breaks; return the failure's text. `likely` is played first: with the code of today the
    mutant breaks a rule there, and few lower seeds or none do."""
    for seed in (likely, *range(seeds)):
        try:
            play(seed, kind)
        except BrokenRuleError as error:
            return str(error)
    return ""


def test_failing_seed_tells_its_story_and_the_command_to_repeat_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (dispatcher, commands):
        monkeypatch.setattr(module, "HOP_LIMIT", 20)
    failure = broken_seeds()
    assert "steps" in failure
    assert "again: python -m tests.simulation --seed " in failure
    assert "Submit(" in failure


def test_credit_that_is_exceeded_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Worker, "takes", lambda self, type_: self.serves(type_))
    assert "credit" in broken_seeds()


def test_ids_that_repeat_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert result_id("m", 1, 2) == "m.1.2"
    monkeypatch.setattr(commands, "result_id", lambda parent, command, target: f"{parent}.0.0")
    failure = broken_seeds()
    assert any(broken in failure for broken in ("did not come", "is not marked", "and then"))


def test_good_without_a_delivery_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "failed", lambda code: "delivered")
    monkeypatch.setattr(dispatcher, "failed", lambda code: "delivered")
    failure = broken_seeds()
    assert "did not come" in failure or "cannot be" in failure


def test_message_that_came_and_is_called_refused_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not be kept for its user when its bridge was lost, with the delivery unconfirmed."""
    for module in (commands, queues, relays):
        monkeypatch.setattr(module, "unkept", lambda code: code)
    assert "called failed:storage-full, and it came" in broken_seeds(500, likely=403)


# The three that the promise stands or falls with.


def test_a_bridge_that_forgets_to_hold_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: Submissions) -> None:
        self._held.clear()

    monkeypatch.setattr(Submissions, "on_link_lost", forget)
    failure = broken_seeds(500)
    assert "ends of" in failure or "was given number" in failure


def test_store_that_loses_entries_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: MemoryStore) -> Any:
        for numbers in self._ready.values():
            numbers.clear()
        self._ready.clear()
        return honest(self)

    honest = MemoryStore.open
    monkeypatch.setattr(MemoryStore, "open", forget)
    failure = broken_seeds(500)
    assert "did not come" in failure or "still queued" in failure or "still keeps" in failure


def test_a_report_before_the_commit_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hasty(self: Queues, entry: Any, case: Any, now: float, about: Any = None) -> Any:
        code = honest(self, entry, None, now, about)
        if code is None and case is not None:
            case.record(entry.target, "queued")
        return code

    honest = Queues.enqueue
    monkeypatch.setattr(Queues, "enqueue", hasty)
    monkeypatch.setattr(StoreDriver, "run", put_off)  # no write runs before the next tick
    monkeypatch.setattr(StoreDriver, "tick", tick)
    failure = broken_seeds(500)
    assert "did not come" in failure or "nobody can say" in failure


def test_a_wall_clock_that_is_believed_at_each_start_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believing(self: Clock, now: float, wall_s: float, boot: str, saved: Any) -> None:
        honest(self, now, wall_s, boot, None)

    honest = Clock.__init__
    monkeypatch.setattr(Clock, "__init__", believing)
    failure = broken_seeds(500, likely=82)
    assert any(what in failure for what in ("is failed:expired", "nobody can say", "is still", "did not come"))


def test_a_wall_clock_that_is_followed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Clock, "stored", Clock.wall)
    failure = broken_seeds(500, likely=12)
    assert any(what in failure for what in ("is failed:expired", "nobody can say", "is still None", "did not come"))


def test_sent_for_a_connection_that_a_dying_server_has_closed_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reporters, "judge", lambda self, route, id_, outcome, meta: outcome)
    assert "called sent, and it answers" in broken_seeds(500, likely=43)


def test_a_native_servers_repetition_that_is_not_marked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relays, "_may_have_arrived", lambda transfer, outcome, meta: transfer.again)
    assert "not marked" in broken_seeds(1_000)


def test_attempt_counted_for_every_job_of_a_dead_handler_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def blaming(self: WorkerChanges, worker: Worker, now: float) -> None:
        held = self._workers.lose(worker)
        self._known_types.on_left(worker.pool.types, now)
        for job in reversed([job for job in held if not job.is_settled]):
            job.since = now
            if job.attempt - job.attempts_before < self._budget_of(job.type).attempts:
                self._queues.enqueue(job, first=True)
                continue
            self._dead_letters.bury(job, "handler-lost", now)
            self._dispatcher.let_go(job)
            self._dispatcher.end(job, "failed:handler-lost")
        self._dispatcher.share_out(now)

    monkeypatch.setattr(WorkerChanges, "on_lost", blaming)
    assert "died of other things" in broken_seeds(500, likely=63)


def test_two_messages_in_flight_on_an_ordered_lane_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transfers, "has_any", lambda self, lane: False)
    assert "after number" in broken_seeds(500)


settle = StoreDriver.run


def put_off(self: StoreDriver) -> None:
    """Do nothing before the next tick."""
    self.due = False


def tick(self: StoreDriver) -> None:
    self.due = True
    settle(self)


def test_messages_that_wait_for_their_share_of_a_lost_link_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LaneShares, "waiting", lambda self: [])
    assert "report" in broken_seeds(likely=16)


def test_users_of_a_long_list_who_are_forgotten_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FanOut, "go_on", lambda self, now, *, keeps=True: self.later.clear())
    assert "report" in broken_seeds()


def test_messages_that_overtake_a_long_list_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FanOut, "_is_left", lambda self, job, user: False)
    assert "got number" in broken_seeds(100, likely=143)


@pytest.mark.parametrize(("kind", "method"), [(InboundLanes, "find"), (DedupCache, "find")])
def test_repeat_that_is_carried_out_twice_is_noticed(monkeypatch: pytest.MonkeyPatch, kind: Any, method: str) -> None:
    nothing = (None, None) if kind is InboundLanes else None
    monkeypatch.setattr(kind, method, lambda self, *key: nothing)
    assert "not marked" in broken_seeds(1_000, likely=1912)


def test_a_server_that_is_refused_before_its_name_is_looked_up_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strangers, "hold", lambda *_: False)
    assert "refused for good" in broken_seeds()


def test_an_old_table_that_counts_as_a_new_one_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Hosts, "not_looked_up", lambda self, since: self.unknown)
    assert "refused for good" in broken_seeds(500)


# Hostile parties. A lie that is believed may break any rule first, by what the message was.


def is_rule(failure: str) -> bool:
    """Return whether a failure is a broken rule of a hostile scenario, and no error of the mutant itself."""
    return failure.endswith(" --hostile") and "Traceback" not in failure


def test_routing_id_that_is_taken_for_an_identity_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hostile, "thiefs_link", lambda link: link)
    assert is_rule(broken_seeds(300, Hostile))


def test_key_that_is_good_for_everything_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "_may_use_key", lambda *_: None)
    assert is_rule(broken_seeds(300, Hostile))


def test_id_that_a_server_claims_for_another_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believing(self: ServerIngress, key: Any, *rest: Any) -> Any:
        return honest(self, ("any server", *key[1:]), *rest)

    honest = ServerIngress._by_id
    monkeypatch.setattr(ServerIngress, "_by_id", believing)
    assert is_rule(broken_seeds(300, Hostile))


def test_id_of_a_result_that_a_server_forges_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ServerIngress, "_not_ours", lambda self, id_, peer: id_)
    assert is_rule(broken_seeds(300, Hostile))


def test_answer_of_a_server_that_was_not_asked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believing(self: Transfers, token: int, link: Any) -> Transfer | None:
        transfer = self._transfers.get(token)
        return honest(self, token, link if transfer is None else transfer.link)

    honest = Transfers.end
    monkeypatch.setattr(Transfers, "end", believing)
    assert is_rule(broken_seeds(300, Hostile))


def test_later_outcome_of_a_server_that_does_not_have_the_message_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def believing(self: LateOutcomes, peer: str, body: bytes, case: Any) -> str | None:
        return honest(self, json.loads(body).get("by", peer), body, case)

    honest = LateOutcomes.receive
    monkeypatch.setattr(LateOutcomes, "receive", believing)
    assert is_rule(broken_seeds(300, Hostile))


# Several brokers of one server.


def test_broker_that_is_not_fenced_off_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMemoryStore, "check_lease", lambda self: None)
    assert "which another broker had adopted" in broken_seeds(500, CLUSTER)


def test_broker_that_is_not_fenced_off_loses_the_outcome_of_a_message(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule on who writes where, which sees the mutant in many seeds: a user notices few."""
    monkeypatch.setattr(SharedMemoryStore, "check_lease", lambda self: None)
    monkeypatch.setattr(cluster.Ledger, "fault", property(lambda self: "", lambda self, text: None), raising=False)
    assert "s2 is still queued in the end" in broken_seeds(0, CLUSTER, likely=2390)


def test_broker_that_does_not_ask_for_exclusive_use_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def alone(self: Workers, link: Any, types: Any, credit: int, ordered: Any, shared: str | None) -> Worker:
        return honest(self, link, types, credit, ordered)

    honest = Workers.join
    monkeypatch.setattr(Workers, "join", alone)
    assert "handlers died of other things" in broken_seeds(20, SHARED)


def test_exclusive_use_beside_a_message_of_another_broker_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SimHandler, "is_clear", True)
    assert "handlers died of other things" in broken_seeds(60, SHARED, likely=2)


def test_adoption_without_the_inbound_lanes_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    empty: Any = SaveLane
    monkeypatch.setattr(InboundLanes, "adopt", lambda self, saved: None)
    monkeypatch.setattr(memory_shared, "united", lambda mine, theirs: mine or empty(*theirs[:3], 0, {}))
    assert "which was answered before" in broken_seeds(500, CLUSTER)


def test_messages_with_two_owners_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(self: SharedMemoryStore, other: Any, *rest: Any) -> Any:
        rows = other._rows.copy(), other._numbers.copy(), {key: [*each] for key, each in other._ready.items()}
        results, ended = {key: {**each} for key, each in other._results.items()}, [*other._ended]
        moved = honest(self, other, *rest)
        (other._rows, other._numbers, other._ready), other._results, other._ended = rows, results, ended
        return moved

    honest = SharedMemoryStore._move
    monkeypatch.setattr(SharedMemoryStore, "_move", copy)
    assert "not marked" in broken_seeds(500, CLUSTER)


def test_outcome_that_two_brokers_tell_of_their_copies_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SharedMemoryStore, "_is_told", lambda self, about: False)
    monkeypatch.setattr(LateOutcomes, "_enqueue", unmarked(LateOutcomes._enqueue))
    assert "was told something again, and it is not marked" in broken_seeds(500, CLUSTER, likely=157)
    monkeypatch.undo()
    monkeypatch.setattr(SharedMemoryStore, "_is_told", lambda self, about: False)
    assert "was told delivered, and then failed:expired" in broken_seeds(500, CLUSTER, likely=174)


def unmarked(honest: Any) -> Any:
    """Return a way to enqueue an outcome that takes no message for a repeated one."""

    def enqueue(self: LateOutcomes, queue: str, entry: Any, *rest: Any) -> None:
        plain = {key: value for key, value in entry.meta.items() if key != "repeated"}
        honest(self, queue, entry._replace(meta=plain), *rest)

    return enqueue


def test_report_on_a_note_that_waits_in_memory_for_a_store_that_is_away_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker dies before the database is back, and nobody knows the sender of the later outcome."""
    monkeypatch.setattr(Queues, "_on_kept", lambda self, entry, code, now: self._settle_unrecorded(entry))
    assert "nobody can say what became of" in broken_seeds(500, CLUSTER, likely=232)


def test_delivery_whose_mark_waits_in_memory_for_a_store_that_is_away_is_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The broker loses its lease meanwhile, and another one delivers the message again."""

    def hasty(self: Queues, marking: Any, result: Any, now: float) -> None:
        honest(self, marking, result._replace(ok=True), now)

    honest = Queues._on_mark_written
    monkeypatch.setattr(Queues, "_on_mark_written", hasty)
    assert "not marked" in broken_seeds(0, CLUSTER, likely=9046)


def test_second_copy_that_no_bridge_marks_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one came marked from the broker that took over, which delivers what it has adopted as well."""
    monkeypatch.setattr(Marked, "take", lambda self, run: run)
    assert "got the second of two copies" in broken_seeds(500, CLUSTER, likely=41)


def test_message_that_another_broker_knows_and_that_is_not_marked_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A `dedup` is known to the broker that had the message; its user has moved, and the sender says `resent`."""
    honest = ClusterBridge.submit
    monkeypatch.setattr(ClusterBridge, "submit", lambda self, *given, resent: honest(self, *given, resent=False))
    assert "not marked" in broken_seeds(500, CLUSTER, likely=419)


# The shares of the bridge's input.


def test_share_by_connection_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Senders, "join", alone)
    assert "shares differ" in play_fair(range(50), Flood)


def alone(self: Senders, key: Any) -> Sender:
    sender = Sender((*key, str(next(NUMBERS))))
    self._by_key[sender.key] = sender
    sender.connections = 1
    return sender


def test_a_turn_for_each_stranger_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Senders.join
    monkeypatch.setattr(Senders, "join", lambda self, key: alone(self, key) if key == STRANGERS else honest(self, key))
    failure = play_fair(range(1, 50), Flood)
    assert "shares differ" in failure or "waits while the others have" in failure


def test_turn_without_a_bound_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def serve(self: Intake) -> None:
        for _ in range(100):
            honest(self)

    honest = Intake.serve
    monkeypatch.setattr(Intake, "serve", serve)
    assert "units in one turn" in play_fair(range(50), Flood)
    assert "replies wait" in play_fair(range(3, 50), Crowd)


def test_turns_by_their_number_alone_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def place(self: Intake, sender: Sender, *, has_come: bool = False) -> None:
        units, sender.units = sender.units, 0.0
        honest(self, sender, has_come=has_come)
        sender.units = units

    honest = Intake._place
    monkeypatch.setattr(Intake, "_place", place)
    assert "shares differ" in play_fair(range(50), Flood)


def test_answers_behind_new_input_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def flush(self: Bridge) -> None:
        self._intake.serve()
        honest(self)

    honest = Bridge.flush
    monkeypatch.setattr(Bridge, "flush", flush)
    assert "answers wait" in play_fair(range(50), Flood)


def test_replies_behind_all_submits_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def next_link(self: Crowd) -> Link:
        return max((link for link, pipe in self.pipes.items() if pipe), key=lambda link: link in self.bridges)

    monkeypatch.setattr(Crowd, "next_link", next_link)
    assert "replies wait" in play_fair(range(1, 50), Crowd)


@pytest.mark.parametrize(
    "sender_of",
    [lambda item: oldest(item).case.link, lambda item: None],
    ids=["share by bridge", "first come, first served"],
)
def test_other_shares_of_a_handler_are_noticed(monkeypatch: pytest.MonkeyPatch, sender_of: Any) -> None:
    monkeypatch.setattr(type_queues, "sender_of", sender_of)
    failure = play_fair(range(50), Crowd)
    assert "shares differ" in failure or "waits while the others have" in failure
