"""Inspection of a router: each count rises with its subject, and every count is 0 in the end."""

from __future__ import annotations

from bester.broker.core.effects import Link
from bester.broker.core.inspection import Bound
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store_requests import lane, mailbox
from bester.broker.wire.messages import Confirm, Deliver, Goodbye, Heartbeat, Login, Relay, Relayed
from tests.unit.core_stand import Stand, clients, limited, servers

S2 = Link("server", b"s2")


def test_idle_router_is_empty() -> None:
    state = Stand().state
    assert (state.peers, state.users, state.sessions, state.cases, state.jobs, state.job_bytes) == ({}, 0, 0, 0, 0, 0)
    assert (state.deliveries, state.transfers, state.lanes, state.resume) == (0, {}, {}, {})
    assert (state.queues.table, state.queues.messages, state.queues.writing) == ({}, 0, 0)
    assert (state.workers.waiting, state.workers.inflight, state.dedup) == ({}, {}, (0, 0))
    assert all(bound.used == 0 < bound.most for bound in state.bounds.values())


def test_peers_are_counted_by_role_and_users_by_session() -> None:
    stand = Stand()
    bridge = stand.bridge("alice", "alice", "bob")
    stand.handler("t")
    stand.say(stand.link(), Heartbeat())
    stand.say(bridge, Login(4, "carol", "secret", "10.0.0.1"))
    state = stand.state
    assert state.peers == {"bridge": 1, "handler": 1}
    assert (state.strangers, state.users, state.sessions, state.logins) == (1, 2, 3, 1)
    assert (state.bounds["peers"].used, state.bounds["strangers"].used) == (2, 1)
    stand.say(bridge, Goodbye(None))
    state = stand.state
    assert (state.peers, state.users, state.sessions, state.logins) == ({"handler": 1}, 0, 0, 0)


def test_message_is_counted_at_every_station() -> None:
    stand = Stand(limited(max_held=7))
    bridge, worker = stand.bridge("alice", "bob"), stand.handler("t", credit=1)
    for body in (b"1", b"22"):
        stand.submit(bridge, "t", body)
    state = stand.state
    assert (state.cases, state.jobs, state.job_bytes, state.bounds["jobs"]) == (2, 2, 3, Bound(2, 7))
    assert (state.workers.inflight, state.workers.waiting) == ({"t": 1}, {"t": 1})
    stand.answer(worker, clients("alice", "bob"))
    state = stand.state
    assert (state.cases, state.jobs, state.deliveries) == (2, 1, 1)
    assert (state.workers.inflight, state.workers.waiting) == ({"t": 1}, {})
    stand.deliver(bridge)
    stand.answer(worker)
    state = stand.state
    assert (state.cases, state.jobs, state.job_bytes, state.deliveries, state.workers.inflight) == (0, 0, 0, 0, {})


def test_queue_is_counted_from_the_write_to_the_end() -> None:
    stand = Stand(Settings("s1"), accounts=frozenset({"alice", "bob"}))
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    stand.commits = False
    stand.submit(bridge, "t")
    stand.end_turn()
    stand.answer(worker, clients("bob", body=b"123"))
    assert (stand.state.queues.writing, stand.state.queues.inflight) == (1, 0)
    stand.commits = True
    stand.commit()
    queues = stand.state.queues
    assert (queues.writing, queues.messages, queues.size_bytes, queues.inflight) == (0, 1, 3, 0)
    assert queues.table[mailbox("bob")][:3] == (1, 3, 0)
    assert stand.state.bounds["queued_bytes"].used == 3
    bob = stand.bridge("bob", name="bob")
    queues = stand.state.queues
    assert (queues.messages, queues.inflight, stand.state.deliveries) == (1, 1, 1)
    stand.say(bob, Confirm(stand.one(bob, Deliver).serial))
    assert (stand.queued, stand.state.queues.table, stand.state.deliveries) == ((0, 0), {}, 0)


def test_messages_to_and_from_a_server_are_counted_by_lane() -> None:
    stand = Stand(Settings("s1", open_accounts=True, routes={"s2": Route("s2", fabric="ipc:///s2")}))
    stand.take(stand.router.on_server_ready("s2", stand.now))
    bridge, worker, peer = stand.bridge("alice"), stand.handler("t"), stand.server("s2")
    stand.submit(bridge, "t")
    stand.answer(worker, servers("s2"))
    assert stand.state.transfers == {lane("s2", "t"): 1}
    stand.say(S2, Relayed(stand.one(S2, Relay).token, "delivered"))
    assert stand.state.transfers == {}
    stand.relay(peer, "t", lane=["d2", 7, 5])
    assert stand.state.lanes["s2", "t"] == ("d2", 5, 1, 7, None, 1)


def test_inspection_does_not_change_afterwards() -> None:
    stand = Stand(Settings("s1", limits=Limits()), accounts=frozenset({"alice", "bob"}))
    bridge, worker = stand.bridge("alice"), stand.handler("t")
    before = stand.state
    copy = repr(before)
    stand.submit(bridge, "t")
    stand.answer(worker, clients("bob"))
    assert repr(before) == copy != repr(stand.state)
    assert repr(stand.state) == repr(stand.state)
