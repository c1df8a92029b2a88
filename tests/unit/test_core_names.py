"""A server under a new name still answers for messages with ids of its old names."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Route, Settings
from bester.broker.store_requests import NAMES, SaveName
from bester.broker.wire.messages import Deliver
from tests.unit.core_stand import Stand, clients

S2 = Link("server", b"s2")


def town(name: str) -> Stand:
    settings = Settings(name, routes={"s2": Route("s2", fabric="ipc:///s2")})
    return Stand(settings, accounts=frozenset({"alice", "bob"}))


def rename(stand: Stand, name: str) -> None:
    stand.settings = replace(stand.settings, name=name)
    stand.restart()


def queue(stand: Stand) -> str:
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    token = stand.submit(bridge, "chat", outcome=True)
    stand.answer(chat, clients("bob"))
    message = stand.report(bridge, token).message
    assert message is not None
    return message


def became(stand: Stand, message: str) -> object:
    return stand.ask(stand.bridge("alice"), "outcome", [1, message]).value


@pytest.mark.parametrize("names", [("b",), ("b", "c", "d"), ("b", "a"), ("a.b",)], ids="-".join)
def test_queued_messages_are_found_and_delivered_under_any_later_name(names: tuple[str, ...]) -> None:
    stand = town("a")
    message = queue(stand)
    for name in names:
        rename(stand, name)
    assert message.startswith("a/")
    assert became(stand, message) == {"bob": "queued"}
    bridge = stand.bridge("bob")
    assert stand.one(bridge, Deliver).body == b'"hi"'


def test_name_that_begins_like_an_old_one_is_foreign() -> None:
    stand = town("a")
    message = queue(stand)
    rename(stand, "b")
    for other in (f"x{message}", message.replace("a/", "aa/", 1), message.replace("a/", "/", 1)):
        assert became(stand, other) is None


def test_change_of_name_is_logged_once() -> None:
    stand = town("a")
    stand.tick()
    rename(stand, "b")
    stand.tick()
    rename(stand, "b")
    stand.tick()
    logged = [notice.fields for notice in stand.notices if notice.event == "renamed"]
    assert logged == [{"before": "a", "now": "b"}]


def test_the_first_name_is_no_change() -> None:
    stand = town("a")
    stand.tick()
    assert not [notice for notice in stand.notices if notice.event == "renamed"]


def test_old_name_of_this_server_is_refused_in_foreign_ids() -> None:
    stand = town("a")
    message = queue(stand)
    rename(stand, "b")
    peer, chat = stand.server("s2"), stand.handler("chat")
    stand.relay(peer, "chat", id=message, lane=["d2", 1, 1])
    assert stand.request(chat).meta["id"] == f"s2/{message}"


def test_oldest_of_very_many_names_is_forgotten() -> None:
    stand = town("a")
    message = queue(stand)
    stand.store.commit([SaveName(f"n{number}") for number in range(NAMES - 1)])
    rename(stand, "n0")
    assert became(stand, message) == {"bob": "queued"}
    stand.store.commit([SaveName("another")])
    rename(stand, "n0")
    assert became(stand, message) is None
