"""The bridge's links to its broker: sessions, messages and questions when a link ends and begins again."""

from __future__ import annotations

from typing import Any

import pytest

from bester.bridge.broker_link import UNANSWERED
from bester.bridge.states import State
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Close,
    Confirm,
    Deliver,
    Error,
    Forward,
    Forwarded,
    Goodbye,
    LoggedIn,
    Login,
    Open,
    Report,
    Submit,
    Welcome,
)
from tests.unit.bridge_stand import Scene


class TestLinks:
    def test_lost_link_keeps_clients_and_refuses_logins(self) -> None:
        scene = Scene()
        connection, asking = scene.log_in(), scene.start_login("bob")
        scene.submit(connection, "a")
        scene.bridge.on_link_lost("gone")
        scene.turn()
        assert connection.lines() == []
        assert asking.lines() == ["bad auth_special unreachable"]
        assert connection.session.state is State.OPEN
        assert scene.start_login("carol").lines() == ["bad auth_special unreachable"]

    def test_reasons_of_a_lost_link_that_take_turns_are_logged_once_each(self) -> None:
        scene = Scene()
        for why in ("no answer", "lookup failed") * 3:
            scene.bridge.on_link_lost(why)
        assert scene.notices == ["link to the broker lost: no answer", "link to the broker lost: lookup failed"]

    @pytest.mark.parametrize("lost_first", [True, False])
    def test_sessions_are_announced_to_the_next_broker(self, lost_first: bool) -> None:
        scene = Scene()
        connection, _ = scene.log_in("alice"), scene.connect()
        token = scene.submit(connection, "a")
        scene.sent.clear()
        if lost_first:
            scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        again = Submit(token, connection.session.number, "t", b"1", {"attempt": 2})
        assert scene.sent == [Open(connection.session.number, "alice"), again]
        scene.broker(Report(token, 0, None, "s/1", {}))
        assert connection.lines() == ["good a"]

    def test_delivery_of_a_lost_link_is_not_confirmed_on_the_next(self) -> None:
        scene = Scene()
        bob = scene.log_in("bob")
        bob.blocked = True
        scene.broker(Deliver(5, "s/1.0", "t", b"1", [[0, bob.session.number]]))
        scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        bob.unblock()
        scene.turn()
        assert scene.take(Confirm) == []
        scene.broker(Deliver(1, "s/2.0", "t", b"1", [[0, bob.session.number]]))
        assert scene.take(Confirm) == [Confirm(1, [], [])]

    def test_direct_link_is_ready_by_welcome_and_lost_by_goodbye(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.broker(Goodbye("ends"))
        assert not scene.bridge.is_ready
        scene.broker(Welcome(1, "s"))
        assert scene.take(Open) == [Open(connection.session.number, "alice")]

    def test_client_that_goes_during_its_login(self) -> None:
        scene = Scene()
        connection = scene.start_login()
        scene.bridge.on_connection_lost(connection)
        assert scene.take(Close) == [Close(connection.session.number)]
        scene.broker(LoggedIn(connection.session.number, 0))
        assert scene.take(Close) == [Close(connection.session.number)]

    def test_errors_of_the_broker_reach_their_callers(self) -> None:
        scene = Scene()
        connection, asking = scene.log_in(), scene.start_login("bob")
        token = scene.submit(connection, "a")
        (login,) = [login for login in scene.take(Login) if login.user == "bob"]
        scene.broker(
            Error("malformed", "x", 24, token), Error("malformed", "x", 20, login.session), Error("version", "x")
        )
        assert connection.lines() == ["bad a malformed"]
        assert asking.lines() == ["bad auth_special malformed"]
        assert any("version" in notice for notice in scene.notices)

    def test_question_is_answered_or_unanswered(self) -> None:
        scene = Scene()
        answers: list[Any] = []
        scene.bridge.ask("isClient", "bob", lambda *answer: answers.append(answer))
        (ask,) = scene.take(Ask)
        scene.broker(Answer(ask.token, 0, True))
        scene.bridge.ask("listClients", None, lambda *answer: answers.append(answer))
        scene.bridge.on_link_lost("gone")
        scene.bridge.ask("listClients", None, lambda *answer: answers.append(answer))
        assert answers == [(0, True), (UNANSWERED, None), (UNANSWERED, None)]

    def test_forward_without_a_forwarder_is_unreachable(self) -> None:
        scene = Scene()
        scene.broker(Forward(3, "h:1", "t", b"1", {}))
        assert scene.take(Forwarded) == [Forwarded(3, "failed:unreachable", {"unsent": True})]
