"""Late outcomes over two and three servers: who may ask, who has them, and the crashes they survive."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.late_outcomes import MAX_OUTCOME_BYTES
from bester.broker.store_requests import OUTCOME_KEPT_S, lane, mailbox
from bester.broker.wire.messages import Ask, Confirm, Deliver, Error, Goodbye, Relayed, Request
from tests.unit.core_net import Net
from tests.unit.core_stand import Stand, clients, servers


class Chain:
    """Alice at the first of several servers; the handler of each sends on to the next, that of the last to users."""

    def __init__(self, *names: str, ttl_s: float = 600.0) -> None:
        self.net = Net(*names, ttl_s=ttl_s)
        self.names = names
        self.first, self.last = self.net[names[0]], self.net[names[-1]]
        self.handlers = {name: self.net[name].handler("post") for name in names}
        self.bridge = self.first.bridge("alice")
        self.net.join(*names)

    def sends(self, *users: str, **meta: Any) -> str:
        """Let alice send to users at the last server; return the message's id."""
        token = self.first.submit(self.bridge, "post", **meta)
        for name, after in zip(self.names, self.names[1:], strict=False):
            self.net[name].answer(self.handlers[name], servers(after, body=b"[1]"))
            self.net.flow()
        self.last.answer(self.handlers[self.names[-1]], clients(*users, body=b"[1]"))
        self.net.flow()
        report = self.first.report(self.bridge, token)
        self.told = report.recipients
        assert report.message is not None
        return report.message

    def outcome(self, message: str) -> dict[str, str] | None:
        value: dict[str, str] | None = self.first.ask(self.bridge, "outcome", [1, message]).value
        return value

    def comes(self, user: str, at: Stand | None = None) -> Link:
        """Log a user in at the last server, and confirm every delivery."""
        stand = at or self.last
        bridge = stand.bridge(user, name=user)
        for delivery in stand.heard_of(bridge, Deliver):
            stand.say(bridge, Confirm(delivery.serial))
        self.net.flow()
        return bridge

    def pushed(self) -> list[Any]:
        """Return the late outcomes that alice has received, and confirm their deliveries."""
        deliveries = self.first.heard_of(self.bridge, Deliver)
        for delivery in deliveries:
            assert delivery.type == "bester.outcome"
            self.first.say(self.bridge, Confirm(delivery.serial))
        return [json.loads(delivery.body) for delivery in deliveries]


# --- here -----------------------------------------------------------------------------------------------------------


def test_sender_asks_before_and_after_the_delivery() -> None:
    chain = Chain("s1")
    message = chain.sends("bob", "carol")
    assert chain.outcome(message) == {"bob": "queued", "carol": "queued"}
    chain.comes("bob")
    assert chain.outcome(message) == {"bob": "delivered", "carol": "queued"}
    chain.net.wait(601.0)
    assert chain.outcome(message) == {"bob": "delivered", "carol": "failed:expired"}


def test_outcome_can_be_asked_for_after_a_restart() -> None:
    chain = Chain("s1")
    message = chain.sends("bob", "carol")
    chain.comes("bob")
    chain.net.kill("s1")
    chain.bridge = chain.first.bridge("alice")
    assert chain.outcome(message) == {"bob": "delivered", "carol": "queued"}


def test_sender_alone_has_the_outcome() -> None:
    chain = Chain("s1")
    message = chain.sends("bob")
    bob = chain.comes("bob")
    stand = chain.first
    assert stand.ask(bob, "outcome", [1, message])[1:] == (1, None)
    assert stand.ask(chain.bridge, "outcome", [2, message])[1:] == (1, None), "no such session"
    operator = stand.join("operator", "op")
    assert stand.ask(operator, "outcome", [1, message])[1:] == (1, None)
    other = stand.bridge("alice", name="other")
    assert stand.ask(other, "outcome", [1, message]).value == {"bob": "delivered"}, "on another connection of hers"


@pytest.mark.parametrize("argument", [None, "m", [1], [1, None], ["1", "m"], [1, ""], [1, "x" * 1025], [True, "m"], []])
def test_unreadable_question_is_answered(argument: Any) -> None:
    chain = Chain("s1")
    assert chain.first.ask(chain.bridge, "outcome", argument)[1:] == (1, None)


def test_unknown_message_has_no_outcome() -> None:
    chain = Chain("s1")
    message = chain.sends("bob")
    for unknown in ("s1/b/9", message + "0", message[:-1]):
        assert chain.first.ask(chain.bridge, "outcome", [1, unknown])[1:] == (1, None)


def test_recipient_named_twice_has_the_worst_outcome() -> None:
    chain = Chain("s1")
    message = chain.sends("bob", "bob")
    bob = chain.first.bridge("bob", name="bob")
    first, _ = chain.first.heard_of(bob, Deliver)
    chain.first.say(bob, Confirm(first.serial))
    assert chain.outcome(message) == {"bob": "queued"}
    chain.first.say(bob, Confirm(first.serial + 1))
    assert chain.outcome(message) == {"bob": "delivered"}


def test_outcome_is_forgotten_a_week_after_the_time_to_live() -> None:
    chain = Chain("s1")
    message = chain.sends("bob")
    chain.comes("bob")
    stand = chain.first
    for clock in (600.0 + OUTCOME_KEPT_S - 700.0, 2000.0):
        assert chain.outcome(message) == {"bob": "delivered"}
        stand.now += clock
        stand.restart()  # as without the late outcomes
        chain.bridge = stand.bridge("alice")
        stand.wait(2.5)
    assert stand.ask(chain.bridge, "outcome", [1, message])[1:] == (1, None)


def test_sender_with_the_outcome_option_has_the_late_outcome() -> None:
    chain = Chain("s1")
    message = chain.sends("bob", "carol", outcome=True)
    quiet = chain.sends("bob")
    chain.comes("bob")
    assert chain.pushed() == [{"message": message, "recipient": "bob", "outcome": "delivered"}]
    chain.net.wait(601.0)
    assert chain.pushed() == [{"message": message, "recipient": "carol", "outcome": "failed:expired"}]
    assert chain.outcome(quiet) == {"bob": "delivered"}
    assert chain.first.queued == (0, 0)


def test_late_outcome_is_a_message_of_this_form() -> None:
    chain = Chain("s1")
    message = chain.sends("bob", outcome=True)
    chain.comes("bob")
    delivery = chain.first.deliver(chain.bridge)
    assert delivery == Deliver(
        delivery.serial, f"{message}.0.0.outcome", "bester.outcome",
        json.dumps({"message": message, "recipient": "bob", "outcome": "delivered"}, separators=(",", ":")).encode(),
        [[0, 1]], None, {"origin": "s1"},
    )  # fmt: skip
    assert chain.first.mail("alice") == []


def test_late_outcome_is_queued_for_a_sender_who_is_away() -> None:
    chain = Chain("s1")
    message = chain.sends("bob", outcome=True)
    chain.first.say(chain.bridge, Goodbye(None))
    chain.comes("bob")
    chain.net.kill("s1")
    chain.bridge = chain.first.bridge("alice")
    assert chain.pushed() == [{"message": message, "recipient": "bob", "outcome": "delivered"}]


def test_removed_account_is_the_outcome_of_its_mailbox() -> None:
    chain = Chain("s1")
    message = chain.sends("bob")
    chain.first.take(chain.first.router.on_account_removed("bob", chain.first.now))
    assert chain.outcome(message) == {"bob": "failed:unknown-user"}


# --- over servers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("names", [("s1", "s2"), ("s1", "s2", "s3")])
def test_delivery_at_another_server_is_passed_back(names: tuple[str, ...]) -> None:
    chain = Chain(*names)
    message = chain.sends("bob", outcome=True)
    assert chain.told == {"s2": "queued"}
    assert chain.outcome(message) == {"s2": "queued"}
    chain.comes("bob")
    assert chain.outcome(message) == {"s2": "delivered"}
    assert chain.pushed() == [{"message": message, "recipient": "s2", "outcome": "delivered"}]
    assert [stand.queued for stand in chain.net.stands.values()] == [(0, 0)] * len(names)


@pytest.mark.parametrize("names", [("s1", "s2"), ("s1", "s2", "s3")])
def test_expiry_at_another_server_is_passed_back(names: tuple[str, ...]) -> None:
    chain = Chain(*names)
    message = chain.sends("bob", ttl_s=20)
    chain.net.wait(21.0)
    assert chain.outcome(message) == {"s2": "failed:expired"}
    assert chain.pushed() == []
    assert chain.last.mail("bob") == []


def test_worst_outcome_counts_when_all_recipients_have_ended() -> None:
    chain = Chain("s1", "s2")
    message = chain.sends("bob", "carol", "alice", outcome=True, ttl_s=60)
    chain.comes("bob")
    assert chain.outcome(message) == {"s2": "queued"}
    chain.net.wait(61.0)
    assert chain.outcome(message) == {"s2": "failed:expired"}
    assert chain.pushed() == [{"message": message, "recipient": "s2", "outcome": "failed:expired"}]


def test_failure_counts_though_later_outcomes_are_good() -> None:
    chain = Chain("s1", "s2")
    message = chain.sends("bob", "carol")
    chain.last.take(chain.last.router.on_account_removed("bob", chain.last.now))
    chain.net.flow()
    assert chain.outcome(message) == {"s2": "queued"}
    chain.comes("carol")
    assert chain.outcome(message) == {"s2": "failed:unknown-user"}


def test_outcomes_of_one_turn_count_each() -> None:
    chain = Chain("s1", "s2", "s3")
    message = chain.sends("bob", "bob", "bob")
    assert len(chain.last.mail("bob")) == 3
    chain.comes("bob")
    assert chain.outcome(message) == {"s2": "delivered"}


def test_late_outcome_is_queued_for_a_server_that_is_away() -> None:
    chain = Chain("s1", "s2", "s3")
    message = chain.sends("bob", outcome=True)
    chain.net.part("s2", "s3")
    chain.net.part("s1", "s2")
    chain.comes("bob")
    assert len(chain.last.kept(lane("s2", "bester.outcome"))) == 1
    assert chain.outcome(message) == {"s2": "queued"}
    chain.net.join("s2", "s3")
    assert len(chain.net["s2"].kept(lane("s1", "bester.outcome"))) == 1
    chain.net.join("s1", "s2")
    assert chain.outcome(message) == {"s2": "delivered"}
    assert len(chain.pushed()) == 1


def test_late_outcome_is_kept_as_long_as_it_can_be_asked_for() -> None:
    chain = Chain("s1", "s2", ttl_s=30.0)
    message = chain.sends("bob", outcome=True)
    chain.net.part("s1", "s2")
    chain.net.wait(90.0)  # the message expires over there, and its outcome is kept for longer than its time to live
    chain.net.join("s1", "s2")
    assert chain.outcome(message) == {"s2": "failed:expired"}
    assert [news["outcome"] for news in chain.pushed()] == ["failed:expired"]


def test_late_outcome_survives_the_kill_of_every_server() -> None:
    chain = Chain("s1", "s2", "s3")
    message = chain.sends("bob", outcome=True)
    chain.net.part("s2", "s3")
    chain.comes("bob")
    for name in chain.names:
        chain.net.kill(name)
    chain.net.wait(2.5)
    chain.bridge = chain.first.bridge("alice")
    chain.net.join(*chain.names)
    assert chain.outcome(message) == {"s2": "delivered"}
    assert chain.pushed() == [{"message": message, "recipient": "s2", "outcome": "delivered"}]


def test_duplicate_of_a_late_outcome_counts_once() -> None:
    """The answer to the late outcome is lost with the link."""
    chain = Chain("s1", "s2")
    chain.sends("bob", "carol", outcome=True)
    bob = chain.last.bridge("bob", name="bob")
    chain.last.say(bob, Confirm(chain.last.one(bob, Deliver).serial))
    relays = chain.last.inbox[Link("server", b"s1")]
    link = chain.net.links["s2", "s1"]
    chain.first.say(link, *relays)
    assert [relayed.outcome for relayed in chain.first.heard_of(link, Relayed)] == ["delivered"]
    chain.net.part("s1", "s2")
    chain.net.join("s1", "s2")
    assert chain.last.kept(lane("s1", "bester.outcome")) == []
    assert chain.pushed() == [], "carol's is still to come"
    chain.comes("carol")
    assert [each["outcome"] for each in chain.pushed()] == ["delivered"]


@pytest.mark.parametrize("waited", [False, True])
def test_late_outcome_before_the_answer_is_sent_again(waited: bool) -> None:
    chain = Chain("s1", "s2")
    if waited:
        chain.net.part("s1", "s2")
    token = chain.first.submit(chain.bridge, "post", outcome=True)
    chain.first.answer(chain.handlers["s1"], servers("s2"))
    if waited:
        chain.net.join("s1", "s2")
    chain.net.flow()
    request = chain.last.request(chain.handlers["s2"])
    chain.last.reply(chain.handlers["s2"], request.token, clients("bob"))
    link = chain.net.links["s1", "s2"]
    answers = chain.last.heard_of(link, Relayed)  # held up
    chain.comes("bob")
    assert len(chain.last.kept(lane("s1", "bester.outcome"))) == 1, "told to come later"
    chain.first.say(Link("server", b"s2"), answers[0])
    report = chain.first.report(chain.bridge, token)
    assert report.recipients == {"s2": "queued"}
    assert report.message is not None
    chain.net.wait(2.0)
    assert chain.last.kept(lane("s1", "bester.outcome")) == []
    assert chain.outcome(report.message) == {"s2": "delivered"}
    assert len(chain.pushed()) == 1


def test_message_queued_here_and_then_there_has_its_outcome_in_the_end() -> None:
    chain = Chain("s1", "s2")
    chain.net.part("s1", "s2")
    token = chain.first.submit(chain.bridge, "post", outcome=True)
    chain.first.answer(chain.handlers["s1"], servers("s2"))
    report = chain.first.report(chain.bridge, token)
    assert report.message is not None
    chain.net.join("s1", "s2")
    chain.last.answer(chain.handlers["s2"], clients("bob"))
    chain.net.flow()
    assert chain.first.kept(lane("s2", "post")) == []
    assert chain.outcome(report.message) == {"s2": "queued"}
    assert chain.pushed() == []
    chain.comes("bob")
    assert chain.outcome(report.message) == {"s2": "delivered"}
    assert len(chain.pushed()) == 1


# --- refused late outcomes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "body",
    [
        b"5", b"null", b"[]", b"{}", b'{"message":5,"outcome":"delivered"}', b'{"message":"m"}',
        b'{"message":"m","outcome":null}', b'{"message":"' + b"x" * MAX_OUTCOME_BYTES + b'","outcome":"delivered"}',
    ],
)  # fmt: skip
def test_unreadable_late_outcome_is_refused(body: bytes) -> None:
    chain = Chain("s1", "s2")
    peer = chain.first.server("s2")
    chain.first.relay(peer, "bester.outcome", body)
    assert chain.first.one(peer, Relayed).outcome == "failed:malformed"
    assert chain.first.router.idle


def test_server_is_believed_about_messages_sent_to_it_alone() -> None:
    chain = Chain("s1", "s2", "s3")
    stand = chain.first
    token = stand.submit(chain.bridge, "post", outcome=True)
    request = stand.request(chain.handlers["s1"])
    stand.reply(chain.handlers["s1"], request.token, servers("s2"), clients("bob"))
    chain.net.flow()
    chain.net["s2"].answer(chain.handlers["s2"], clients("bob"))
    chain.net.flow()
    message = stand.report(chain.bridge, token).message
    assert message is not None
    stand.wait(stand.settings.limits.restart_s)  # in the first minute any of the messages may still be sent again
    wrong = stand.server("s3")
    for id_ in (f"{message}.0.0", f"{message}.1.0", message, "s1/b/99.0.0"):
        body = json.dumps({"message": id_, "outcome": "delivered"}).encode()
        stand.relay(wrong, "bester.outcome", body)
        assert stand.one(wrong, Relayed).outcome == "delivered", "taken, and without effect"
    peer = stand.server("s2")
    stand.relay(peer, "bester.outcome", json.dumps({"message": f"{message}.1.0", "outcome": "delivered"}).encode())
    stand.one(peer, Relayed)
    assert chain.outcome(message) == {"s2": "queued", "bob": "queued"}
    assert chain.pushed() == []


def test_late_outcome_of_a_stranger_a_client_or_a_handler_is_refused() -> None:
    chain = Chain("s1")
    stand = chain.first
    stand.submit(chain.bridge, "bester.outcome", b"{}")
    assert stand.report(chain.bridge).reason == "reserved"
    link = stand.link()
    stand.say(link, Ask(1, "outcome", [1, "m"]))
    assert isinstance(stand.heard(link)[0], Error)
    watcher = stand.handler("post")
    assert stand.ask(watcher, "outcome", [1, "m"])[1:] == (1, None)
    assert stand.heard_of(watcher, Request) == []


def test_late_outcome_has_no_late_outcome() -> None:
    chain = Chain("s1", ttl_s=30.0)
    chain.sends("bob", outcome=True)
    chain.first.say(chain.bridge, Goodbye(None))
    chain.comes("bob")
    assert [entry.type for entry in chain.first.kept(mailbox("alice"))] == ["bester.outcome"]
    chain.net.wait(31.0)
    assert chain.first.kept(mailbox("alice")) == []
    assert chain.first.queued == (0, 0)
