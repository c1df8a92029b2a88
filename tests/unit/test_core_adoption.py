"""A broker that adopts: two brokers of one server, whose stores share a memory, and the first of them ends."""

from __future__ import annotations

import json
from itertools import count
from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store.memory_shared import SharedMemory
from bester.broker.store_brokers import Adopted, Brokers
from bester.broker.store_requests import Adopt, FindBrokers, mailbox
from bester.broker.wire.messages import Confirm, Deliver, Heartbeat, Relay, Relayed, Request
from bester.broker.wire.outcomes import OUTCOME_TYPE
from tests.unit.core_post import Post, bodies_of
from tests.unit.core_stand import START, Stand, clients, servers
from tests.world.clock import World

LOOK_S = Limits().adoption_look_s
BOB = mailbox("bob")


class Server:
    """The brokers `one` and `two` of server s1, which knows the server s2."""

    def __init__(self, **limits: Any) -> None:
        world = World(start_s=START)
        self.shared = SharedMemory(lambda: world.now)
        routes = {"s2": Route("s2", fabric="ipc:///s2")}
        settings = Settings("s1", routes=routes, limits=Limits(**limits))
        self.one, self.two = (
            Stand(
                settings, accounts=frozenset({"alice", "bob", "carol"}), world=world, store=self.shared.namespace(name)
            )
            for name in ("b1", "b2")
        )
        self.two.now = self.one.now = START + 5.0
        self.two.restart("f")
        self.two.link()  # the epochs of its bridges, and so the ids of its messages, are others

    def end(self) -> None:
        """Kill the first broker and let its lease run out."""
        self.one.gone()
        self.one.store.until_s = 0.0  # type: ignore[attr-defined]  # a namespace of shared memory

    def adopt(self) -> None:
        """Let the second broker look."""
        self.two.now += LOOK_S
        self.two.tick()


def adoptions(stand: Stand) -> list[dict[str, Any]]:
    return [notice.fields for notice in stand.notices if notice.event == "adopted"]


def test_mailbox_is_delivered_to_a_user_who_is_here() -> None:
    server = Server()
    Post(server.one).queues(b"1", b"2")
    bridge = server.two.bridge("bob")
    server.end()
    assert server.two.heard_of(bridge, Deliver) == []
    server.adopt()
    came = server.two.heard_of(bridge, Deliver)
    assert bodies_of(came) == [b"1", b"2"]
    assert not any("redelivered" in deliver.meta for deliver in came)
    assert adoptions(server.two) == [{"broker": "b1", "messages": 2, "outcomes": 0, "dead_letters": 0}]
    assert server.two.router.status(server.two.now)["store"]["adopted"] == 2


def test_status_tells_of_the_brokers_and_of_who_adopted() -> None:
    server = Server()
    two = server.two
    Post(server.one).queues(b"1", b"2")
    server.adopt()
    status = two.router.status(two.now)
    assert [(each["name"], each["state"], each["gone_s"]) for each in status["brokers"]] == [
        ("b1", "lives", None), ("b2", "lives", None),
    ]  # fmt: skip
    server.end()
    for _ in range(2):  # looks: the first finds and adopts, the second sees the adoption
        server.adopt()
    dead = two.router.status(two.now)["brokers"][0]
    two.now += 1.0
    status = two.router.status(two.now)
    assert (dead["name"], dead["state"]) == ("b1", "dead")
    assert status["brokers"][0] == dead | {"gone_s": dead["gone_s"] + 1.0}
    assert status["adoptions"] == [
        {"broker": "b1", "adopter": "b2", "ago_s": 1.0, "messages": 2, "outcomes": 0, "dead_letters": 0}
    ]
    (look,) = [read for read in reads_of(two) if isinstance(read.request, FindBrokers)]
    two.take(two.router.on_reads([(look, None)], two.now))
    (seen,) = two.router.status(two.now)["adoptions"]
    assert seen == status["adoptions"][0] | {"ago_s": LOOK_S + 1.0}, "the store is away, and the last look stays"


def reads_of(stand: Stand) -> list[Any]:
    """Return the reads of the next look, which get no answer."""
    stand.commits = False
    stand.now += LOOK_S
    stand.tick()
    return stand.reads


def test_delivery_that_was_not_confirmed_is_marked() -> None:
    server = Server()
    post = Post(server.one)
    post.queues(b"1")
    server.one.bridge("bob", name="c")
    server.end()
    bridge = server.two.bridge("bob")
    server.adopt()
    (deliver,) = server.two.heard_of(bridge, Deliver)
    assert deliver.meta["redelivered"] is True


def test_broker_that_was_stopped_for_long_and_comes_back_tells_no_outcome() -> None:
    server = Server()
    one, two = server.one, server.two
    post = Post(one)
    post.queues(b"1", outcome=True)
    front = one.bridge("bob", name="c")
    (deliver,) = one.heard_of(front, Deliver)  # and the process stands still
    one.store.until_s = 0.0  # type: ignore[attr-defined]  # a namespace of shared memory
    alice, bob = two.bridge("alice", name="a"), two.bridge("bob")
    server.adopt()
    assert two.deliver(bob).meta["redelivered"] is True
    (told,) = two.heard_of(alice, Deliver)
    assert (told.type, json.loads(told.body)["outcome"]) == (OUTCOME_TYPE, "delivered")
    one.say(front, Confirm(0, [deliver.serial], []))
    one.tick()
    assert one.store.fenced
    assert one.heard_of(post.bridge, Deliver) == []


def test_adopted_messages_go_behind_older_ones_and_before_new_ones() -> None:
    server = Server()
    Post(server.one).queues(b"1", b"2")
    post = Post(server.two)
    post.queues(b"0")
    server.end()
    server.adopt()
    post.queues(b"3")
    assert server.two.mail("bob") == [b"0", b"1", b"2", b"3"]
    bridge = server.two.bridge("bob", name="c")
    assert bodies_of(server.two.heard_of(bridge, Deliver)) == [b"0", b"1", b"2", b"3"]


def test_counts_bounds_and_shares_hold_for_what_was_adopted() -> None:
    server = Server()
    Post(server.one).queues(b"1", b"2")
    Post(server.two).queues(b"0")
    server.end()
    server.adopt()
    state = server.two.state.queues
    assert (state.table[BOB].messages, state.messages, state.size_bytes) == (3, 3, 3)
    assert state.shares == {BOB: {mailbox("alice"): (3, 3)}}


def test_large_namespace_is_adopted_in_parts_without_a_pause() -> None:
    server = Server(adopted_at_once=2)
    Post(server.one).queues(*(b"%d" % number for number in range(5)))
    server.end()
    server.adopt()
    assert server.two.mail("bob") == [b"%d" % number for number in range(5)]
    assert [each["messages"] for each in adoptions(server.two)] == [2, 2, 1]


def test_message_of_a_server_is_recognized_by_the_adopter() -> None:
    server = Server()
    chat, link = server.one.handler("chat"), server.one.server("s2")
    server.one.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)
    server.one.answer(chat, clients("bob"))
    assert server.one.one(link, Relayed).outcome == "queued"
    server.end()
    chat, link = server.two.handler("chat"), server.two.server("s2")
    server.adopt()
    token = server.two.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)
    assert server.two.one(link, Relayed) == Relayed(token, "queued", {"queued": 1})
    assert len(server.two.mail("bob")) == 1


def answered_at_one(server: Server, outcome: str) -> None:
    """Let broker `one` answer message 7 of server s2, and die before its answer arrives."""
    chat, link = server.one.handler("chat"), server.one.server("s2")
    server.one.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)
    if outcome == "queued":
        server.one.answer(chat, clients("bob"))
    else:
        server.one.reply(chat, server.one.request(chat).token, status=0 if outcome == "delivered" else 1)
    assert server.one.one(link, Relayed).outcome == outcome
    server.end()


@pytest.mark.parametrize("outcome", ["delivered", "queued", "failed:handler-failed"])
def test_message_that_the_adopter_has_in_hand_ends_by_the_answer_of_the_other_broker(outcome: str) -> None:
    server, meta = Server(), {"queued": 1} if outcome == "queued" else {}
    answered_at_one(server, outcome)
    two = server.two
    link, chat, other = two.server("s2"), two.handler("chat", name="h1", credit=1), two.handler("mail", name="h2")
    tokens = [two.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)]
    request = two.request(chat)
    server.adopt()
    meta |= {"carried": True} if outcome.startswith("failed") else {}
    assert two.one(link, Relayed) == Relayed(tokens[0], outcome, meta)
    tokens.append(two.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True))
    assert two.one(link, Relayed) == Relayed(tokens[1], outcome, meta)
    two.relay(link, "chat", b"2", id="s2/b/2", lane=["e2", 8, 8])
    assert two.heard_of(chat, Request) == [], "its credit is held until it answers"
    two.reply(chat, request.token, clients("bob"))
    assert two.request(chat).body == b"2"
    assert two.mail("bob") == ([b'"hi"'] if outcome == "queued" else []), "what it answers no longer counts"
    assert two.heard_of(other, Request) == []
    assert two.state.bounds["jobs"][0] == 1


def test_message_answered_by_the_other_broker_is_not_given_to_another_handler() -> None:
    server = Server()
    answered_at_one(server, "delivered")
    two = server.two
    link, chat = two.server("s2"), two.handler("chat")
    two.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)
    assert two.request(chat).meta["id"] == "s2/b/1"
    server.adopt()
    heir = two.handler("chat", name="h2")
    two.take(two.router.on_undeliverable(chat, Heartbeat(), two.now))
    assert two.heard_of(heir, Request) == []
    assert two.state.bounds["jobs"][0] == 0
    assert two.dead() == []


@pytest.mark.parametrize("order", [{}, {"chat": "user"}])
def test_message_that_waits_when_the_other_broker_has_answered_it_is_given_to_nobody(order: dict[str, str]) -> None:
    server = Server()
    answered_at_one(server, "delivered")
    two = server.two
    bridge = two.bridge("alice")
    chat, link = two.handler("chat", credit=1, order=order), two.server("s2")
    two.submit(bridge, "chat", b"0")
    token = two.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)
    two.submit(bridge, "chat", b"2")
    server.adopt()
    assert two.one(link, Relayed) == Relayed(token, "delivered")
    assert two.state.bounds["jobs"][0] == 2
    seen = [two.answer(chat).body for _ in range(2)]
    assert seen == [b"0", b"2"]
    two.wait(200.0)
    assert two.heard_of(chat, Request) == []
    assert two.state.bounds["jobs"][0] == 0


def test_message_of_a_type_with_a_contract_that_the_other_broker_has_answered_is_given_to_nobody() -> None:
    server = Server()
    answered_at_one(server, "delivered")
    two = server.two
    chat, link = two.handler("chat", credit=1, schema={"chat": {"type": "string"}}), two.server("s2")
    two.relay(link, "chat", b'"0"', id="s2/b/0", lane=["e2", 6, 6])
    two.relay(link, "chat", b'"1"', id="s2/b/1", lane=["e2", 7, 6], again=True)
    server.adopt()
    assert two.answer(chat).body == b'"0"'
    assert two.heard_of(chat, Request) == []
    assert two.state.bounds["jobs"][0] == 0


@pytest.mark.parametrize(("after_s", "is_stuck"), [(20.0, False), (60.0, True)])
def test_handler_of_a_message_that_the_other_broker_has_answered_is_stuck_once_its_time_is_over(
    after_s: float, is_stuck: bool
) -> None:
    server = Server()
    answered_at_one(server, "delivered")
    two = server.two
    chat, link = two.handler("chat", credit=1), two.server("s2")
    two.relay(link, "chat", id="s2/b/1", lane=["e2", 7, 7], again=True)
    request = two.request(chat)
    server.adopt()
    two.wait(after_s)
    assert bool(two.restarts) is is_stuck
    assert two.dead() == []
    assert len(two.heard_of(link, Relayed)) == 1
    two.reply(chat, request.token)
    two.relay(link, "chat", b"2", id="s2/b/2", lane=["e2", 8, 8])
    assert two.request(chat).body == b"2", "it has its credit again"


def test_message_answered_by_the_other_broker_that_waits_for_ever_becomes_no_dead_letter() -> None:
    server = Server()
    answered_at_one(server, "delivered")
    two = server.two
    link = two.server("s2")
    two.handler("chat", credit=1)
    for number in (1, 7):
        two.relay(link, "chat", id=f"s2/b/{number}", lane=["e2", number, 1], again=True)
    server.adopt()
    assert len(two.heard_of(link, Relayed)) == 1
    two.wait(300.0)
    assert [each.id for each in two.dead()] == ["s2/b/1"]
    assert len(two.heard_of(link, Relayed)) == 1, "each message is answered once"
    assert two.state.bounds["jobs"][0] == 0


def test_lane_to_a_server_goes_on_under_new_numbers_above_its_floor() -> None:
    server = Server()
    post = Post(server.one)
    for _ in range(2):
        token = server.one.submit(post.bridge, "chat")
        server.one.answer(post.chat, servers("s2", as_type="t"))
        assert server.one.report(post.bridge, token).recipients == {"s2": "queued"}
    server.end()
    two = server.two
    two.take(two.router.on_server_ready("s2", two.now))
    post = Post(two)
    two.commits = False
    two.now += LOOK_S
    two.tick()
    looks = [read for read in two.reads if isinstance(read.request, FindBrokers)]
    two.reads.clear()
    two.take(two.router.on_reads([(looks[0], Brokers("b1"))], two.now))
    (adoption,) = two.reads
    two.reads.clear()
    two.commits = True
    floors: list[tuple[int, int]] = []

    def relayed() -> None:
        for link in [link for link in two.inbox if link.door == "server"]:
            floors.extend((each.meta["lane"][1], each.meta["lane"][2]) for each in two.heard_of(link, Relay))

    two.submit(post.bridge, "chat")
    two.answer(post.chat, servers("s2", as_type="t"))
    relayed()
    assert len(floors) == 1
    two.take(two.router.on_reads([(adoption, two.store.read(adoption.request))], two.now))
    relayed()
    numbers = [number for number, _ in floors]
    assert len(numbers) == 3
    assert all(floor <= min(numbers) for _, floor in floors)
    assert numbers[0] > max(numbers[1:])


def test_later_outcome_comes_to_the_other_broker() -> None:
    server = Server(relay_s=30.0, restart_s=1.0)
    one, two = server.one, server.two
    two.now = one.now = one.now + 60.0
    body = b'{"message":"s1/a-x0/1.0.0","outcome":"delivered"}'
    peer = two.server("s2")
    outcomes = count(1)

    def told() -> str:
        number = next(outcomes)
        two.relay(peer, OUTCOME_TYPE, body, id=f"o{number}", lane=["e2", number, number])
        return two.one(peer, Relayed).outcome

    assert told() == "failed:overloaded"  # the first broker may have it in flight
    post = Post(one)
    one.take(one.router.on_server_ready("s2", one.now))
    token = one.submit(post.bridge, "chat")
    one.answer(post.chat, servers("s2", as_type="t"))
    assert token == 1
    (relay,) = one.heard_of(Link("server", b"s2"), Relay)
    assert relay.meta["id"] == "s1/a-x0/1.0.0"
    assert told() == "failed:overloaded"
    one.relayed("s2", relay.token, "queued")
    assert one.report(post.bridge, token).recipients == {"s2": "queued"}
    assert told() == "delivered"
    assert one.ask(post.bridge, "outcome", [1, "s1/a-x0/1"]).value == {"s2": "delivered"}


def test_later_outcome_of_a_message_that_nobody_knows_is_taken_in_the_end() -> None:
    server = Server(relay_s=30.0, restart_s=1.0)
    two = server.two
    two.now += 60.0
    peer = two.server("s2")
    body = b'{"message":"s1/x/1.0.0","outcome":"delivered"}'
    found = []
    for number, later_s in ((1, 31.0), (2, 0.0), (3, 0.0)):
        two.relay(peer, OUTCOME_TYPE, body, id=f"o{number}", lane=["e2", number, number])
        found.append(two.one(peer, Relayed).outcome)
        two.now += later_s
    assert found == ["failed:overloaded", "delivered", "delivered"]


def test_later_outcome_waits_for_a_broker_that_is_silent_but_not_for_ever() -> None:
    server = Server(relay_s=30.0, restart_s=1.0)
    two = server.two
    two.now += 60.0
    peer = two.server("s2")
    body = b'{"message":"s1/x/1.0.0","outcome":"delivered"}'
    server.end()
    waited_s, began = 0.0, two.now
    for number in range(1, 300):
        two.relay(peer, OUTCOME_TYPE, body, id=f"o{number}", lane=["e2", number, number])
        if two.one(peer, Relayed).outcome == "delivered":
            break
        server.adopt()
        waited_s = two.now - began
    assert 120.0 < waited_s < 180.0


@pytest.mark.parametrize("answer", [None, Adopted()])
def test_adoption_without_an_answer_is_asked_for_again_under_its_numbers(answer: Adopted | None) -> None:
    server = Server()
    Post(server.one).queues(b"1")
    server.end()
    two = server.two
    two.commits = False
    firsts: list[int] = []
    for _ in range(2):
        two.now += LOOK_S
        two.tick()
        while two.reads:
            read = two.reads.pop(0)
            if isinstance(read.request, FindBrokers):
                two.take(two.router.on_reads([(read, Brokers("b1"))], two.now))
            elif isinstance(read.request, Adopt):
                firsts.append(read.request.first)
                two.take(two.router.on_reads([(read, answer)], two.now))
    assert (firsts[0] == firsts[1]) is (answer is None)


def test_broker_with_a_store_of_its_own_never_looks() -> None:
    stand = Stand()
    stand.commits = False
    stand.reads.clear()
    stand.wait(3 * LOOK_S)
    assert not any(isinstance(read.request, FindBrokers) for read in stand.reads)
