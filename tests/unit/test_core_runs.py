"""A run has the effects of its messages one by one, for every mix of messages, workers and bounds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import permutations
from random import Random
from typing import Any

import pytest

from bester.broker.core import commands as commands_module
from bester.broker.core import router as router_module
from bester.broker.core.effects import Effects, Link
from bester.broker.core.router import Router
from bester.broker.core.runs import Run, runs
from bester.broker.core.settings import Grant, Limits, Route, Settings
from bester.broker.store_requests import Committed
from bester.broker.wire.codec import encode
from bester.broker.wire.messages import (
    Ask,
    Close,
    Command,
    Confirm,
    Deliver,
    Emit,
    Goodbye,
    Heartbeat,
    Hello,
    Message,
    Open,
    Reply,
    Request,
    Submit,
)
from bester.broker.wire.runs import READ_AS, read
from tests.unit.core_stand import Stand

TYPES = ["chat", "mail", "ordered", "secret", "unknown"]
USERS = ["ann", "bob", "cid"]
LIMITED = Link("curve", b"1:limited", "key")
HANDLERS = [Link("ipc", b"0:h1"), Link("ipc", b"0:h2"), Link("ipc", b"0:h3"), LIMITED]
LAYOUTS = [
    [["chat"], ["mail"], ["ordered"], ["chat"]],
    [["chat", "mail", "ordered"], ["chat", "mail", "ordered"], ["chat", "mail", "ordered"], ["chat"]],
    [["chat"], ["chat", "ordered"], ["mail", "ordered", "chat"], ["chat"]],
    [["mail", "ordered"], ["mail", "ordered"], ["mail"], ["chat"]],
]
"""Types of the handlers: alone, alike, and overlapping."""
BRIDGES = [Link("direct", b"0"), Link("ipc", b"0:b")]
SETTINGS = Settings(
    "s1",
    routes={"s2": Route("s2", native="127.0.0.1:9")},
    grants={"key": Grant("handler", "limited", frozenset({"chat"}), frozenset({"sendClients"}))},
    type_users={"secret": frozenset({"ann"})},
    limits=Limits(max_held=120, max_held_bytes=1200, max_waiting=20, sweep_at=4),
)


def test_a_batch_of_one_kind_is_one_run() -> None:
    batch: list[Message] = [Close(1), Close(2)]
    ((kind, run),) = runs(batch)
    assert kind is Close
    assert run is batch
    assert list(runs([])) == []


def test_runs_keep_the_order() -> None:
    batch: list[Message] = [Close(1), Heartbeat(), Close(2), Close(3), Heartbeat()]
    assert [message for _, run in runs(batch) for message in run] == batch
    assert [(kind, len(run)) for kind, run in runs(batch)] == [(Close, 1), (Heartbeat, 1), (Close, 2), (Heartbeat, 1)]


def singles(messages: Sequence[Any]) -> Iterable[Run]:
    """Return runs of one message each."""
    return [(type(message), (message,)) for message in messages]


class Story:
    """Random batches for a router, and what comes of them; `requests` are the tokens that handlers hold."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.layout = LAYOUTS[seed % len(LAYOUTS)]
        self.usual = self.random.choice(["chat", "chat", "ordered", "mail"])
        self.now = 1000.0
        self.router = Router(
            SETTINGS, epoch="e", first_token=5000, now=self.now, accounts_of=set(USERS).intersection,
        )  # fmt: skip
        self.again = self.random.choice([0.1, 0.1, 0.7])  # the part of the messages that are odd, or sent again
        self.requests: dict[Link, list[int]] = {link: [] for link in HANDLERS}
        self.serials: dict[Link, int] = dict.fromkeys(BRIDGES, 0)
        self.token = 0
        self.seen: list[str] = []

    def play(self, batches: int) -> list[str]:
        """Introduce the peers, and let them send so many batches; return every effect and count."""
        for number, link in enumerate(HANDLERS):
            self.receive(link, [self.hello(number)])
        for link in BRIDGES:
            opens = [Open(session, user) for session, user in enumerate(USERS[: 3 if link is BRIDGES[0] else 1], 1)]
            self.receive(link, [Hello(1, "bridge", "b", {"epoch": link.door}), *opens])
        for _ in range(batches):
            self.now += self.random.choice([0.0001, 0.01, 3.0])
            if self.random.random() < 0.7:
                self.receive(self.random.choice(BRIDGES), self.batch(self.of_bridge))
            else:
                link = self.random.choice(HANDLERS)
                self.receive(link, self.batch(lambda: self.of_handler(link)))  # noqa: B023 (called at once)
            if self.random.random() < 0.1:
                self.take(self.router.tick(self.now))
        return self.seen

    def hello(self, number: int) -> Hello:
        types = self.layout[number]
        credit = self.random.choice([1, 3, 20, 64, 64])
        return Hello(1, "handler", "limited" if number == 3 else f"h{number}", {
            "types": types, "credit": credit, "order": {"ordered": "user"},
        })  # fmt: skip

    def batch(self, message: Any) -> list[Message]:
        """Return a batch: mostly runs of one kind."""
        return [message() for _ in range(self.random.choice([1, 2, 7, 30, 60]))]

    def of_bridge(self) -> Message:
        """Return something that a bridge may send."""
        random, chance = self.random, self.random.random()
        if chance < 0.03:
            rare: list[Message] = [Heartbeat(), Close(random.randint(1, 3)), Open(2, "bob"), Ask(1, "listClients")]
            return random.choice(rare)
        if chance < 0.2:
            link = random.choice(BRIDGES)
            upto = max(self.serials[link] - random.randint(0, 9), 0)
            failed: list[list[Any]] = [[upto, 0, random.choice(["not-connected", "unconfirmed", "odd"])]]
            return Confirm(upto, [upto + 2], failed if random.random() < 0.3 else [], random.randint(0, 3))
        self.token += 1
        session = random.choice([1, 1, 2, 3, 9, None])
        meta: dict[str, Any] = {} if session is not None else {"scope": "server", "address": "127.0.0.1"}
        if random.random() < self.again:
            meta |= random.choice([{"dedup": "k"}, {"ttl_s": 0}, {"ttl_s": 2}, {"resent": True}, {"attempt": 2}])
        type_ = self.usual if random.random() < 0.7 else random.choice(TYPES)
        return Submit(self.token, session, type_, random.choice([b"1", b'"twenty-four bytes here"']), meta)

    def of_handler(self, link: Link) -> Message:
        """Return something that a handler may send."""
        random, chance, held = self.random, self.random.random(), self.requests[link]
        if chance < 0.04:
            again = self.hello(HANDLERS.index(link))
            odd: list[Message] = [Heartbeat(), Goodbye("x"), again, again, Submit(1, 1, "chat", b"1")]
            return random.choice(odd)
        if chance < 0.08:
            return Emit(3, "chat", [self.command()], {"id": "again"})
        token = held.pop(random.randrange(min(len(held), 3))) if held and chance < 0.95 else random.choice([1, 5001])
        status = 0 if random.random() < 0.85 else random.choice([1, 2])
        return Reply(token, status, [self.command() for _ in range(random.choice([0, 1, 1, 1, 1, 2]))], "note")

    def command(self) -> Command:
        """Return a command, usually one for a single user."""
        random = self.random
        body = random.choice([b"1", b"1", b'"twenty-four bytes here"', b"{"] if random.random() < 0.2 else [b"1"])
        if random.random() < 0.75:
            return Command("sendClients", [random.choice([*USERS, "nobody"])], body)
        return random.choice([
            Command("sendClients", [*USERS, "nobody"], body), Command("sendHandler", [random.choice(TYPES)], body),
            Command("sendServers", ["s2"], body, "t"), Command("sendServers", ["s1"], body, "mail"),
            Command("sendAll", [], body), Command("sendClients", [], body), Command("sendClients", ["ann"], b"1", ","),
        ])  # fmt: skip

    def receive(self, link: Link, batch: list[Message]) -> None:
        """Let a batch come on a link: as the codec reads it, or as a server reads it where that is possible."""
        messages: Sequence[Any] = read(encode(batch)) if self.random.random() < 0.5 else batch
        self.take(self.router.receive_all(link, messages, self.now))

    def take(self, effects: Effects) -> None:
        """Note effects and counts; commit the writes."""
        self.seen.append(repr((sorted(effects.messages.items()), effects.calls, effects.writes)))
        # Cases that have ended may be swept out of a resume a little later.
        self.seen.append(repr((self.router.inspect()._replace(resume={}), self.router.figures.as_map())))
        for link, messages in effects.messages.items():
            for message in messages:
                if isinstance(message, Request):
                    self.requests[link].append(message.token)
                elif isinstance(message, Deliver):
                    self.serials[link] = message.serial
        if effects.writes:
            self.take(self.router.on_committed(effects.writes, Committed(ok=self.random.random() < 0.9), self.now))


@pytest.mark.parametrize("first", range(0, 140, 20))
def test_a_run_equals_its_messages_one_by_one(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(first, first + 20):
        together = Story(seed).play(batches=12)
        with monkeypatch.context() as patch:
            patch.setattr(router_module, "runs", singles)
            apart = Story(seed).play(batches=12)
        assert len(together) > 30
        for number, (one, other) in enumerate(zip(together, apart, strict=True)):
            assert one == other, (seed, number)


def test_serials_rise_over_replies_of_all_kinds() -> None:
    """A reply to a message that was sent again, one to several users, and a usual one, in every order."""
    ann, several = Command("sendClients", ["ann"], b"1"), Command("sendClients", ["ann", "bob"], b"1")
    for first, second, third in permutations([({"attempt": 2}, ann), ({}, several), ({}, ann)]):
        router, bridge, handler = Router(SETTINGS, epoch="e", first_token=1, now=0.0), BRIDGES[1], HANDLERS[0]
        router.receive_all(bridge, [Hello(1, "bridge", "b", {"epoch": "b"}), Open(1, "ann"), Open(2, "bob")], 0.0)
        router.receive_all(handler, [Hello(1, "handler", "h", {"types": ["chat"], "credit": 64})], 0.0)
        submits = [Submit(token, 1, "chat", b"1", meta) for token, (meta, _) in enumerate([first, second, third])]
        given = router.receive_all(bridge, submits, 0.0).messages[handler]
        tokens = [each.token for each in given if isinstance(each, Request)]
        commands = [command for _, command in (first, second, third)]
        replies = [Reply(token, 0, [command]) for token, command in zip(tokens, commands, strict=True)]
        delivers = router.receive_all(handler, replies, 0.0).messages[bridge]
        assert [each.serial for each in delivers if isinstance(each, Deliver)] == [1, 2, 3], commands


@pytest.mark.parametrize("begun", range(3))
def test_deliveries_keep_their_serials_where_one_raises(begun: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that nothing known causes: what was begun before it is confirmed and reported, and so is all later."""
    stand = Stand(SETTINGS)
    bridge, handler = stand.bridge("ann", door="direct"), stand.handler("chat", credit=4)
    tokens = [stand.submit(bridge, "chat") for _ in range(4)]
    requests = stand.heard_of(handler, Request)
    left = iter(range(begun))

    def fails(*fields: Any) -> Deliver:
        if next(left, None) is None:
            raise ZeroDivisionError
        return Deliver(*fields)

    replies = [Reply(request.token, 0, [Command("sendClients", ["ann"], b"1")]) for request in requests]
    with monkeypatch.context() as patch:
        patch.setattr(commands_module, "Deliver", fails)
        with pytest.raises(ZeroDivisionError):
            stand.say(handler, *replies[:3])
    stand.say(handler, replies[3])
    delivers = stand.heard_of(bridge, Deliver)
    assert [each.serial for each in delivers] == [*range(1, begun + 2)]
    assert [each.token for each in delivers] == [*tokens[:begun], tokens[3]]
    later = [stand.submit(bridge, "chat") for _ in range(4)]
    assert len(stand.heard_of(handler, Request)) == len(later)  # the worker has all its credit again
    stand.say(bridge, Confirm(begun + 1, [], [[begun + 1, 0, "not-connected"]]))
    assert stand.report(bridge).token == tokens[3]


def test_the_stories_hold_what_makes_runs_differ() -> None:
    text = "".join(line for seed in range(20) for line in Story(seed).play(batches=12))
    for expected in [
        "overloaded", "not-allowed", "unknown-type", "expired", "unknown-token", "bad-reply", "handler-failed",
        "refused", "redelivered", "unknown-user", "storage-full", "unknown-command",
    ]:  # fmt: skip
        assert expected in text, expected
    assert set(READ_AS) == {Reply, Submit, Confirm}
