"""Metrics: each is moved by an event that it is about: one row for each, and no metric without a row."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from bester.bridge.inspection import BridgeState, IntakeState, Refused, SubmissionsState
from bester.broker.accounts import Accounts
from bester.broker.core.effects import Link
from bester.broker.core.rates import LOOKS
from bester.broker.core.settings import Route, Settings
from bester.broker.lockout import FAILURES
from bester.broker.operator.metrics import SAMPLES, pieces_of
from bester.broker.server import Broker
from bester.broker.store.lease import LEASE_S
from bester.broker.store.memory_shared import SharedMemory
from bester.broker.store.sqlite import SqliteStore
from bester.broker.store_brokers import Adopted
from bester.broker.store_requests import Bounds, Snapshot, StoredQueue, mailbox
from bester.broker.wire.messages import (
    Ask,
    Goodbye,
    Heartbeat,
    Hello,
    LoggedIn,
    Login,
    Message,
    Relay,
    Relayed,
    Reply,
    Request,
)
from bester.broker.wire.trouble import OTHER_THAN_LISTED
from tests.unit.core_stand import START, Stand, clients, servers
from tests.world.clock import World

S2 = Link("server", b"s2")
BRIDGE = "bester_bridge_"
DEADLINE_S = 30.0


def families(text: bytes) -> dict[str, Metric]:
    """Return the metrics by name."""
    return {family.name: family for family in text_string_to_metric_families(text.decode())}


def level(metric: Metric) -> float:
    """Return the sum of all samples of a metric; of a histogram, how many times are in it."""
    if metric.type == "histogram":
        return sum(sample.value for sample in metric.samples if sample.name.endswith("_count"))
    return sum(sample.value for sample in metric.samples)


class Scene(Stand):
    """A broker with an operator's look at its metrics, a bridge with the session of ann, and a handler of `chat`."""

    def __init__(self) -> None:
        routes = {"s2": Route("s2", fabric="tcp://s2.example:2225")}
        settings = Settings("s1", routes=routes, declared_types=frozenset({"chat"}), bounds=Bounds(user_messages=1))
        super().__init__(settings, accounts=frozenset({"ann", "bob"}))
        self.front = self.bridge("ann")
        self.chat = self.handler("chat")

    def metrics(self) -> dict[str, Metric]:
        return families(b"".join(pieces_of(self.router.status(self.now))))

    def message(self, type_: str = "chat") -> None:
        self.submit(self.front, type_)

    def echo(self) -> None:
        """Let a message go its whole way: to ann, who has it."""
        self.message()
        self.answer(self.chat, clients("ann"))
        self.deliver(self.front)

    def refuse(self) -> None:
        self.message()
        self.say(self.chat, Reply(self.request(self.chat).token, 2, [], "no"))

    def handler_dies(self, times: int = 1) -> None:
        """Let handlers die over one message."""
        self.message()
        for _ in range(times):
            self.request(self.chat)
            self.take(self.router.on_undeliverable(self.chat, Heartbeat(), self.now))
            self.chat = self.handler("chat")

    def mail(self, user: str = "bob") -> list[bytes]:
        self.message()
        self.answer(self.chat, clients(user))
        return []

    def for_s2(self) -> None:
        """Queue a message for a server that is away, and let the broker look how old it is."""
        self.message()
        self.answer(self.chat, servers("s2"))
        self.wait(6.0)

    def reach_s2(self) -> None:
        self.take(self.router.on_server_ready("s2", self.now))

    def put_off(self) -> None:
        """Have a server refuse a message for now."""
        self.reach_s2()
        self.message()
        self.answer(self.chat, servers("s2"))
        self.say(S2, Relayed(self.one(S2, Relay).token, "failed:overloaded"))

    def without_handler(self) -> None:
        """Let a message wait for a handler that has gone."""
        self.say(self.chat, Goodbye(None))
        self.message()

    def full_disk(self) -> None:
        self.store.full = True
        self.mail()

    def adopt(self) -> None:
        moved = Snapshot(queues={mailbox("bob"): StoredQueue(3, 3, 1, 0)})
        self.take(self.router.on_adopted(Adopted("b2", moved), self.now))

    def hold(self) -> None:
        assert self.ask(self.join("operator", "o"), "peerHold", "s2").status == 0

    def lose_s2_for_a_key(self) -> None:
        self.take(self.router.on_server_lost("s2", f"its key is {OTHER_THAN_LISTED}", self.now))

    def hear_clock_of_s2(self) -> None:
        """Hear from a server whose wall clock is two seconds ahead."""
        self.reach_s2()
        self.say(S2, Heartbeat({"clock_ms": round((self.wall_s + 2) * 1000)}))

    def stream(self) -> None:
        """Let a message come each second, for longer than rates are taken over."""
        for _ in range(LOOKS + 1):
            self.message()
            self.wait(1.0)

    def stick(self) -> None:
        """Let a handler keep all of its credit beyond the time for its messages."""
        self.say(self.chat, Goodbye(None))
        self.chat = self.handler("chat", credit=1)
        self.message()
        self.wait(60.0)

    def tell(self) -> None:
        self.say(self.front, Ask(1, "figures", {"connections": 7, "reached_out_queue": 3}))


MOVES: dict[str, tuple[Callable[[Scene], object], float]] = {
    "bester_up_seconds": (lambda scene: scene.wait(2.0), 2.0),
    "bester_draining": (lambda scene: scene.router.drain(), 1.0),
    "bester_users": (lambda scene: scene.bridge("bob", name="c"), 1.0),
    "bester_sessions": (lambda scene: scene.bridge("ann", name="c"), 1.0),
    "bester_unreported_messages": (Scene.message, 1.0),
    "bester_peers": (lambda scene: scene.handler("mail"), 1.0),
    "bester_queued_messages": (Scene.mail, 1.0),
    "bester_queued_bytes": (Scene.mail, len(b'"hi"')),
    "bester_mailboxes": (Scene.mail, 1.0),
    "bester_store_commits": (Scene.mail, 1.0),
    "bester_store_failures": (Scene.full_disk, 1.0),
    "bester_store_adopted": (Scene.adopt, 3.0),
    "bester_messages_received": (Scene.message, 1.0),
    "bester_messages_answered": (Scene.refuse, 1.0),
    "bester_messages_reported": (Scene.refuse, 1.0),
    "bester_messages_results": (Scene.echo, 1.0),
    "bester_messages_again": (Scene.handler_dies, 1.0),
    "bester_messages_dead": (lambda scene: scene.handler_dies(3), 1.0),
    "bester_messages_failed": (Scene.refuse, 1.0),
    "bester_messages_waiting": (Scene.without_handler, 1.0),
    "bester_messages_inflight": (Scene.message, 1.0),
    "bester_handlers": (lambda scene: scene.handler("chat"), 1.0),
    "bester_handler_seconds": (Scene.refuse, 1.0),
    "bester_message_seconds": (Scene.echo, 1.0),
    "bester_handlers_stuck": (Scene.stick, 1.0),
    "bester_waiting_of_one_sender": (Scene.without_handler, 1.0),
    "bester_messages_per_second": (Scene.stream, 1.0),
    "bester_messages_per_second_of_one_sender": (Scene.stream, 1.0),
    "bester_mailboxes_full": (Scene.mail, 1.0),
    "bester_parties_refused": (lambda scene: scene.router.on_refused("192.0.2.1", "", "no key", scene.now), 1.0),
    "bester_server_key_wrong": (Scene.lose_s2_for_a_key, 1.0),
    "bester_server_clock_ahead_seconds": (Scene.hear_clock_of_s2, 2.0),
    "bester_server_held": (Scene.hold, 1.0),
    "bester_server_queued_messages": (Scene.for_s2, 1.0),
    "bester_server_queued_bytes": (Scene.for_s2, len(b'"hi"')),
    "bester_server_oldest_seconds": (Scene.for_s2, 6.0),
    "bester_server_retries": (Scene.put_off, 1.0),
    "bester_bound_reached": (lambda scene: [scene.mail(), scene.mail()], 1.0),
    f"{BRIDGE}bound_reached": (Scene.tell, 3.0),
    f"{BRIDGE}connections": (Scene.tell, 7.0),
}
"""Events in the core, and by how much the metric is higher after each."""
BEYOND = {
    "bester_bound_used": "test_bounds_and_states_of_servers_change",
    "bester_bound_limit": "test_bounds_and_states_of_servers_change",
    "bester_server_state": "test_bounds_and_states_of_servers_change",
    "bester_type_declared": "test_bounds_and_states_of_servers_change",
    "bester_broker_living": "test_brokers_that_live_and_that_do_not_are_told_apart",
    "bester_logins": "test_logins_and_lockouts_are_counted",
    "bester_lockouts": "test_logins_and_lockouts_are_counted",
    "bester_store_bytes": "test_disk_of_the_store_is_measured",
    "bester_store_room_bytes": "test_disk_of_the_store_is_measured",
    "bester_store_log_bytes": "test_disk_of_the_store_is_measured",
    "bester_store_commit_seconds": "test_disk_of_the_store_is_measured",
    "bester_store_fsync_seconds": "test_disk_of_the_store_is_measured",
}
"""Metrics moved by events in a test of their own."""


@pytest.mark.parametrize("name", MOVES)
def test_event_moves_its_metric(name: str) -> None:
    scene = Scene()
    before = scene.metrics()
    event, by = MOVES[name]
    event(scene)
    after = scene.metrics()
    moved = level(after[name]) - (level(before[name]) if name in before else 0.0)
    assert moved == pytest.approx(by, abs=0.5 if name == "bester_server_oldest_seconds" else 1e-6)


def test_bounds_and_states_of_servers_change() -> None:
    def state(scene: Scene) -> dict[str, float]:
        return {sample.labels["state"]: sample.value for sample in scene.metrics()["bester_server_state"].samples}

    def bounds(scene: Scene, kind: str) -> dict[str, float]:
        return {sample.labels["bound"]: sample.value for sample in scene.metrics()[f"bester_bound_{kind}"].samples}

    scene = Scene()
    assert (state(scene)["up"], state(scene)["down"]) == (0, 1)
    assert level(scene.metrics()["bester_type_declared"]) == 1
    scene.reach_s2()
    assert (state(scene)["up"], state(scene)["down"]) == (1, 0)
    assert bounds(scene, "used")["jobs"] == 0
    scene.message()
    assert bounds(scene, "used")["jobs"] == 1
    assert bounds(scene, "limit")["jobs"] == scene.settings.limits.max_held


def test_brokers_that_live_and_that_do_not_are_told_apart() -> None:
    scene = Scene()
    assert level(scene.metrics()["bester_broker_living"]) == 0
    world = World(start_s=START)
    shared = SharedMemory(lambda: world.now)
    for name in ("b1", "b3"):
        shared.namespace(name).open()
    two = Stand(Settings("s1"), world=world, store=shared.namespace("b2"))
    two.wait(LEASE_S + 10.0)
    shared.namespace("b3").open()
    two.wait(3.0)
    living = families(b"".join(pieces_of(two.router.status(two.now))))["bester_broker_living"]
    assert {sample.labels["broker"]: sample.value for sample in living.samples} == {"b1": 0, "b2": 1, "b3": 1}


def test_every_metric_has_its_event() -> None:
    scene = Scene()
    scene.refuse()
    scene.tell()
    status = scene.router.status(scene.now)
    status["store"] |= {"bytes": 1, "room_bytes": 1, "log_bytes": 1}
    shown = set(families(b"".join(pieces_of(status))))
    assert shown == set(MOVES) | set(BEYOND), "a metric without an event that moves it, or an event without a metric"
    assert all(test in globals() for test in BEYOND.values())


def test_metrics_of_many_types_come_in_small_pieces() -> None:
    scene = Scene()
    types = [f"t{number}" for number in range(500)]
    scene.handler(*types)
    for type_ in types:
        scene.message(type_)
    pieces = list(pieces_of(scene.router.status(scene.now)))
    assert max(piece.count(b"\n") for piece in pieces) <= SAMPLES + 2  # with what it is, and of which kind
    text = b"".join(pieces)
    for name in ("bester_message_seconds", "bester_messages_waiting"):
        assert text.count(b"# TYPE %b " % name.encode()) == 1
        shown = {sample.labels["type"] for sample in families(text)[name].samples}
        assert shown >= {*types, "chat"}


def test_counts_of_a_bridge_are_metrics_by_their_names() -> None:
    own = iter(range(1, 100))
    parts = {
        "refused": Refused(*range(4)),
        "submissions": SubmissionsState(*range(6)),
        "intake": IntakeState(*range(5)),
        "reached": {},
    }
    state = BridgeState._make(parts[name] if name in parts else next(own) for name in BridgeState._fields)
    scene = Scene()
    scene.say(scene.front, Ask(1, "figures", state.figures()))
    shown = scene.metrics()
    assert {name: level(shown[BRIDGE + name]) for name in state.figures()} == state.figures()


@pytest.mark.parametrize("waits", [0.0, 0.003, 0.7, 100.0])
def test_whole_time_begins_with_the_entry_and_ends_with_the_report(waits: float) -> None:
    scene = Scene()
    scene.say(scene.chat, Goodbye(None))
    for _ in range(3):
        scene.message()
    scene.now += waits / 2
    scene.chat = scene.handler("chat")
    scene.now += waits / 2
    for request in scene.heard_of(scene.chat, Request):
        scene.say(scene.chat, Reply(request.token, 0, []))
    row = scene.router.status(scene.now)["types"]["chat"]
    ends = scene.router.status(scene.now)["buckets_s"]
    bucket = next((at for at, end in enumerate(ends) if waits <= end + 1e-9), len(ends))
    assert (row["whole"][bucket], row["reported"]) == (3, 3)
    assert row["whole_s"] == pytest.approx(3 * waits, abs=1e-3)


class Shell:
    """A real broker with accounts and a store on disk, and the link of a bridge to it."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.logged_in: asyncio.Queue[LoggedIn] = asyncio.Queue()
        self.say = broker.attach(self._received)
        self.say([Hello(1, "bridge", "b", {"epoch": "x"})])

    def _received(self, messages: list[Message]) -> None:
        for message in messages:
            if isinstance(message, LoggedIn):
                self.logged_in.put_nowait(message)

    async def login(self, session: int, password: str) -> str | None:
        self.say([Login(session, "ann", password, "192.0.2.1")])
        return (await asyncio.wait_for(self.logged_in.get(), DEADLINE_S)).reason

    def metrics(self) -> dict[str, Metric]:
        return families(b"".join(pieces_of(self.broker.router.status(time.monotonic()))))


@pytest.fixture
async def shell(tmp_path: Path) -> AsyncIterator[Shell]:
    accounts = Accounts(tmp_path / "data")
    accounts.add("ann", "right")
    store = SqliteStore(tmp_path / "store.db")
    async with Broker(Settings("s1"), (), accounts, store, store_file=store.path) as broker:
        yield Shell(broker)
    store.close()
    accounts.close()


async def test_logins_and_lockouts_are_counted(shell: Shell) -> None:
    reasons = [await shell.login(number, f"wrong{number}") for number in range(FAILURES)]
    assert reasons == ["authentication-failed"] * FAILURES
    reasons += [await shell.login(FAILURES, "one more"), await shell.login(FAILURES + 1, "right")]
    shown = shell.metrics()
    by_result = {sample.labels["result"]: sample.value for sample in shown["bester_logins"].samples}
    assert by_result == {reason or "good": reasons.count(reason) for reason in reasons}
    assert level(shown["bester_lockouts"]) == 1


async def test_disk_of_the_store_is_measured(shell: Shell) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while "bester_store_bytes" not in shell.metrics():
            await asyncio.sleep(0.02)
    shown = shell.metrics()
    assert level(shown["bester_store_bytes"]) > 0
    assert level(shown["bester_store_room_bytes"]) > 0
    assert 0 < level(shown["bester_store_log_bytes"]) < level(shown["bester_store_bytes"])
    commits = level(shown["bester_store_commits"])
    assert level(shown["bester_store_fsync_seconds"]) == commits > 0
    waited = sum(each.value for each in shown["bester_store_fsync_seconds"].samples if each.name.endswith("_sum"))
    assert 0 < waited <= level(shown["bester_store_commit_seconds"])
