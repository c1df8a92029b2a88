"""Following a message over servers: who is asked, who is told what, and what becomes of odd answers."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.following import MAX_LOOKS, MAX_OPEN, MAX_STEPS
from bester.broker.core.settings import Route, Settings
from bester.broker.wire.messages import HOP_LIMIT, Answer, Ask, Error, Message, Relay, Relayed, Trace, Traced
from tests.unit.core_stand import Stand, clients, servers


class Server(Stand):
    """A server with an operator, a bridge, and a handler of `chat`; it knows the next one of s1, s2, s3, and the one
    before it, which it tells its steps."""

    def __init__(self, name: str, *, tells: bool = True, now: float = 1000.0) -> None:
        number = int(name[1])
        before, after = f"s{number - 1}", f"s{number + 1}"
        routes = {
            before: Route(before, fabric=f"ipc:///{before}", trace=tells),
            after: Route(after, fabric=f"ipc:///{after}"),
            "n9": Route("n9", native="10.0.0.9:2223"),
        }
        super().__init__(Settings(name, open_accounts=True, routes=routes), now=now)
        self.before, self.after = before, Link("server", after.encode())
        self.operator = self.join("operator", "o")
        self.front = self.bridge("ann")
        self.chat = self.handler("chat")
        self.incoming = self.server(before)
        self.take(self.router.on_server_ready(after, self.now))

    def send_on(self, *targets: str) -> str:
        """Let ann's message go to these servers; return its id."""
        self.submit(self.front, "chat")
        return str(self.answer(self.chat, servers(*targets)).meta["id"])

    def pass_on(self, other: Server) -> None:
        """Let the other server, which is the next one, take in what this one sends to it."""
        for relay in self.heard_of(self.after, Relay):
            other.say(other.incoming, relay)

    def respond(self, *commands: Any) -> None:
        self.now += 0.25
        self.answer(self.chat, *commands)

    def follow(self, id_: str | None) -> None:
        self.say(self.operator, Ask(7, "follow", id_))

    def told(self) -> dict[str, Any]:
        """Return what the operator was told."""
        answer = self.one(self.operator, Answer)
        assert (answer.token, answer.status) == (7, 0)
        value: dict[str, Any] = answer.value
        return value

    def asks(self) -> list[Trace]:
        """Return the questions to the next server."""
        return self.heard_of(self.after, Trace)

    def answers(self) -> list[Traced]:
        """Return the answers to the server before."""
        return self.heard_of(self.incoming, Traced)


def whats(told: dict[str, Any]) -> list[tuple[str, str]]:
    return [(step["what"], step["where"]) for step in told["steps"]]


def test_path_over_three_servers_whose_clocks_differ() -> None:
    s1, s2, s3 = Server("s1"), Server("s2", now=5000.0), Server("s3", now=77.0)
    id_ = s1.send_on("s2")
    s1.pass_on(s2)
    s2.respond(servers("s3"), clients("ann"))
    s2.pass_on(s3)
    s3.respond(clients("ann", "nobody"))
    s3.deliver(s3.front)
    (relayed,) = s3.heard_of(s3.incoming, Relayed)
    s2.now += 1.0
    s2.deliver(s2.front)
    s2.say(s2.after, relayed)
    (relayed,) = s2.heard_of(s2.incoming, Relayed)
    s1.now += 2.0
    s1.say(s1.after, relayed)
    s1.follow(id_)
    (ask,) = s1.asks()
    assert (ask.root, ask.meta["hops"]) == (id_, HOP_LIMIT - 1)
    s2.say(s2.incoming, ask)
    (further,) = s2.asks()
    assert further.root == id_
    assert 0 < further.meta["wait_ms"] < ask.meta["wait_ms"]
    s3.say(s3.incoming, further)
    s2.say(s2.after, *s3.answers())
    s1.say(s1.after, *s2.answers())
    told = s1.told()
    assert told["root"] == id_
    assert told["servers"] == {}
    assert whats(told) == [
        ("handler", "s1/chat"), ("server", "s1/s2"), ("failed:not-connected", "s1/s2"),
        ("entered", "s2/s1"), ("handler", "s2/chat"), ("server", "s2/s3"), ("delivered", "s2/ann"),
        ("failed:not-connected", "s2/s3"),
        ("entered", "s3/s2"), ("handler", "s3/chat"), ("failed:not-connected", "s3/nobody"), ("delivered", "s3/ann"),
    ]  # fmt: skip
    first, last = told["spans"][0]["from_ms"], max(span["to_ms"] for span in told["spans"])
    assert last - first == pytest.approx(2000.0, abs=0.1)
    assert all(first <= span["from_ms"] <= span["to_ms"] <= last for span in told["spans"])
    assert [(span["server"], span["kind"]) for span in told["spans"]][:2] == [("s1", "handler"), ("s1", "server")]


def test_message_that_stays_here_asks_nobody() -> None:
    s1 = Server("s1")
    s1.submit(s1.front, "chat")
    id_ = s1.answer(s1.chat, clients("ann")).meta["id"]
    s1.deliver(s1.front)
    for name in (id_, None, f"{id_}.0"):
        s1.follow(name)
        told = s1.told()
        assert (told["root"], whats(told)) == (id_, [("handler", "s1/chat"), ("delivered", "s1/ann")])
    assert s1.asks() == []
    s1.follow("s1/nobody/1")
    assert s1.told() == {"root": "s1/nobody/1", "steps": [], "spans": [], "servers": {}}


def test_only_the_server_that_sent_a_message_is_told_and_only_where_that_is_allowed() -> None:
    for tells in (True, False):
        s2 = Server("s2", tells=tells)
        mine = s2.send_on("n9")
        s2.relay(s2.incoming, "chat", id="s1/x/1", root="s1/x/1")
        s2.respond(clients("ann"))
        s2.deliver(s2.front)
        other = s2.server("s3")
        s2.relay(other, "chat", id="s3/y/1", root="s1/x/1")  # another message that claims the same root
        s2.respond(clients("ann"))
        s2.deliver(s2.front)
        for root in ("s1/x/1", mine, "s1/x/2"):
            s2.say(s2.incoming, Trace(1, root))
            (answer,) = s2.answers()
            if tells:
                wanted = [("entered", "s2/s1"), ("handler", "s2/chat"), ("delivered", "s2/ann")]
                assert [(step["what"], step["where"]) for step in answer.steps] == (wanted if root == "s1/x/1" else [])
                assert answer.meta == {}
            else:
                assert answer == Traced(1, [], {"why": "not-allowed"})
        s2.say(other, Trace(2, "s1/x/1"))
        assert s2.heard_of(other, Traced) == [Traced(2, [], {"why": "not-allowed"})]


@pytest.mark.parametrize("door", ["tcp", "curve"])
def test_server_that_nobody_vouches_for_is_told_nothing(door: str) -> None:
    stand = Stand(Settings("s2", accept="open", routes={"s1": Route("s1", fabric="ipc:///s1", trace=True)}))
    link = stand.server("s1", "tcp")
    stand.say(link, Trace(1, "m"))
    assert stand.heard_of(link, Traced)[0].meta == {"why": "not-allowed"}
    assert door


@pytest.mark.parametrize("role", ["handler", "bridge", "operator"])
def test_no_other_role_may_ask(role: str) -> None:
    stand = Stand()
    link = stand.join(role, "x", {"types": ["t"], "credit": 1})
    stand.say(link, Trace(1, "m"))
    assert stand.one(link, Error).code == "unknown-op"


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (Error("unknown-op", "no operation 34", 34), "unknown-op"),
        (Error("malformed", "?", 34, 1), "malformed"),
        (Error("no code", "?", 34, 1), "unknown-op"),
        (Traced(1, [], {"why": "not-allowed"}), "not-allowed"),
        (Traced(1, [], {"why": ["x"]}), "bad-reply"),
        (None, "timeout"),
    ],
)
def test_server_that_tells_nothing_is_named_with_the_reason(answer: Message | None, why: str) -> None:
    s1 = Server("s1")
    s1.follow(s1.send_on("s2", "n9"))
    s1.asks()
    if answer is None:
        s1.wait(6.0)
    else:
        s1.say(s1.after, answer)
    told = s1.told()
    assert told["servers"] == {"n9": "unknown-op", "s2": why}
    assert whats(told)[0] == ("handler", "s1/chat")
    s1.say(s1.after, Traced(1, [], {}), Error("unknown-op", "late", 34))
    assert s1.heard_of(s1.operator, Answer) == []


def test_lost_link_ends_the_wait() -> None:
    s1 = Server("s1")
    id_ = s1.send_on("s2")
    s1.follow(id_)
    s1.take(s1.router.on_server_lost("s2", "gone", s1.now))
    assert s1.told()["servers"] == {"s2": "unreachable"}
    s1.follow(id_)
    assert s1.told()["servers"] == {"s2": "unreachable"}


def test_odd_steps_are_left_out() -> None:
    s1 = Server("s1")
    s1.follow(s1.send_on("s2"))
    sound = {"at_ms": 5.0, "id": "x", "what": "handler", "where": "s2/chat"}
    odd: list[Any] = [
        1, None, [], {}, sound | {"at_ms": "now"}, sound | {"at_ms": float("nan")}, sound | {"id": None},
        sound | {"where": "x" * 5000}, {key: sound[key] for key in ("at_ms", "id", "what")},
    ]  # fmt: skip
    more = sound | {"since_ms": float("inf"), "extra": [1]}
    s1.say(s1.after, Traced(1, [*odd, sound, more], {"servers": {"s3": "timeout", "s4": 5, "s5": "no code"}}))
    told = s1.told()
    assert told["steps"][-2:] == [sound, sound]
    assert len(told["steps"]) == 4
    assert told["servers"] == {"s3": "timeout"}


def test_answers_and_questions_are_bounded() -> None:
    s2 = Server("s2")
    s2.relay(s2.incoming, "chat", id="s1/x/1", root="s1/x/1")
    s2.respond(clients(*(f"u{number}" for number in range(MAX_STEPS + 5))))
    s2.say(s2.incoming, *(Trace(number, "s1/x/1") for number in range(MAX_LOOKS + 3)))
    answers = s2.answers()
    assert [len(each.steps) for each in answers] == [MAX_STEPS] * MAX_LOOKS + [0] * 3
    assert answers[-1].meta == {"why": "overloaded"}
    s2.tick()
    s2.say(s2.incoming, Trace(99, "s1/x/1"))
    assert "why" not in s2.answers()[0].meta
    s1 = Server("s1")
    id_ = s1.send_on("s2")
    for _ in range(MAX_OPEN + 1):
        s1.follow(id_)
    assert len(s1.asks()) == MAX_OPEN
    assert s1.told()["servers"] == {"s2": "overloaded"}


@pytest.mark.parametrize("meta", [{"hops": 0}, {"hops": "x"}, {"hops": -1}, {"hops": float("nan"), "wait_ms": None}])
def test_hops_end_the_way(meta: dict[str, Any]) -> None:
    s2 = Server("s2")
    s2.relay(s2.incoming, "chat", id="s1/x/1", root="s1/x/1")
    s2.respond(servers("s3"))
    s2.say(s2.incoming, Trace(1, "s1/x/1", meta))
    assert s2.answers()[0].meta == {"servers": {"s3": "too-many-hops"}}
    assert s2.asks() == []


@pytest.mark.parametrize("argument", [5, [], {"a": 1}, b"m", True])
def test_argument_is_an_id(argument: object) -> None:
    s1 = Server("s1")
    assert s1.ask(s1.operator, "follow", argument).status == 1
    assert s1.ask(s1.front, "follow", "m").status == 1
