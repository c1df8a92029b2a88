"""Unreported messages while the broker goes and comes back: held, and submitted again."""

from __future__ import annotations

from typing import Any

import pytest

from bester.bridge.frames import frame
from bester.bridge.limits import Limits
from bester.bridge.states import State
from bester.bridge.window import OVERHEAD_BYTES
from bester.broker.core.settings import Limits as CoreLimits
from bester.broker.wire.messages import Answer, Ask, Close, Confirm, Deliver, Message, Open, Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene

LARGE = '"' + "x" * 1000 + '"'


def write(scene: Scene, connection: ListConnection, *ids: str, data: str = "1") -> None:
    """Let a client send messages with these ids, in one write."""
    payloads = [f'{{"payload":{{"type":"t","data":{data},"id":"{id_}"}}}}'.encode() for id_ in ids]
    scene.bridge.on_bytes(connection, b"".join(map(frame, payloads)))
    scene.turn()


def good(*tokens: int) -> list[Report]:
    return [Report(token, 0, None, f"s/{token}", {}) for token in tokens]


def attempts(messages: list[Submit]) -> list[tuple[int, int]]:
    return [(message.token, message.meta.get("attempt", 1)) for message in messages]


def kinds(messages: list[Message]) -> list[tuple[type, Any]]:
    """Return the types of messages, with their tokens or sessions."""
    return [(type(message), next(iter(message))) for message in messages]


class TestLinkLost:
    def test_unreported_messages_are_submitted_again_in_token_order_behind_the_sessions(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        tokens = [
            scene.submit(connection, id_) for connection, id_ in ((bob, "a"), (alice, "b"), (bob, "c"), (alice, "d"))
        ]
        scene.broker(*good(tokens[1]))
        scene.bridge.on_link_lost("gone")
        write(scene, alice, "e")
        scene.sent.clear()
        scene.bridge.on_link_ready()
        assert [type(message) for message in scene.sent] == [Open, Open, Submit, Submit, Submit, Submit]
        again = scene.take(Submit)
        assert attempts(again) == [(tokens[0], 2), (tokens[2], 2), (tokens[3], 2), (tokens[3] + 1, 1)]
        assert again[-1].meta == {}
        scene.broker(*good(*(message.token for message in again)))
        assert (alice.lines(), bob.lines()) == (["good b", "good d", "good e"], ["good a", "good c"])

    def test_each_lost_link_counts_as_an_attempt(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection)
        for attempt in (2, 3, 4):
            scene.bridge.on_link_lost("gone")
            scene.bridge.on_link_lost("still gone")
            scene.bridge.on_link_ready()
            assert attempts(scene.take(Submit)) == [(token, attempt)]

    def test_options_of_a_message_are_submitted_again(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        body = b'{"payload":{"type":"t","data":1,"id":"i","dedup":"d","ttl_s":5}}'
        scene.bridge.on_bytes(connection, frame(body))
        scene.bridge.on_link_ready()
        assert [message.meta for message in scene.take(Submit)] == [
            {"dedup": "d", "ttl_s": 5.0},
            {"dedup": "d", "ttl_s": 5.0, "attempt": 2},
        ]

    def test_late_report_of_a_lost_link_counts(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection, "a")
        scene.bridge.on_link_lost("gone")
        scene.broker(*good(token))
        assert connection.lines() == ["good a"]
        scene.bridge.on_link_ready()
        assert scene.take(Submit) == []

    def test_message_of_a_native_server_is_held(self) -> None:
        scene = Scene()
        connection = scene.connect()
        scene.bridge.on_link_lost("gone")
        scene.bridge.on_bytes(
            connection, frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}')
        )
        assert connection.session.deadline == scene.limits.server_s
        scene.bridge.on_link_ready()
        (submit,) = scene.take(Submit)
        assert submit.meta == {"scope": "server", "address": "127.0.0.1"}
        scene.broker(*good(submit.token))
        assert connection.lines() == ["good x"]
        assert connection.session.state is State.CLOSING

    @pytest.mark.parametrize("half_closed", [False, True])
    @pytest.mark.parametrize("broker", ["away", "there"])
    def test_message_of_a_server_goes_on_when_its_connection_is_cut_without_a_report(
        self, broker: str, half_closed: bool
    ) -> None:
        scene = Scene()
        connection = scene.connect()
        if broker == "away":
            scene.bridge.on_link_lost("gone")
        scene.bridge.on_bytes(
            connection,
            frame(b'{"header":{"scope":"server","lane":["e",5,5]},"payload":{"data":1,"type":"m","id":"x"}}'),
        )
        submitted = scene.take(Submit)
        if half_closed:
            scene.now += 1
            scene.bridge.on_peer_ended(connection)
        scene.now += scene.limits.drain_s if half_closed else scene.limits.server_s
        scene.now -= 0.5
        scene.bridge.tick()
        scene.turn()
        assert (connection.lines(), connection.aborted, connection.session.is_unanswered) == ([], None, False)
        scene.now += 0.5
        scene.bridge.tick()
        scene.turn()
        assert (connection.lines(), connection.session.is_unanswered) == ([], True)
        assert connection.aborted == "its message has no report yet, and goes on without it"
        scene.bridge.on_connection_lost(connection)
        scene.turn()
        if broker == "away":
            scene.now = scene.limits.hold_s - 1
            scene.bridge.tick()
            scene.bridge.on_link_ready()
            submitted = scene.take(Submit)
        (submit,) = submitted
        assert (submit.body, submit.meta["lane"], "attempt" in submit.meta) == (b"1", ["e", 5, 5], False)
        assert scene.bridge.inspect().submissions.departed == 1
        scene.broker(*good(submit.token))
        left = scene.bridge.inspect().submissions
        assert (connection.lines(), left.waiting, left.departed, left.unreported_bytes) == ([], 0, 0, 0)

    def test_report_that_comes_between_the_cut_and_the_end_of_a_connection_goes_nowhere(self) -> None:
        scene = Scene()
        connection = scene.connect()
        scene.bridge.on_bytes(
            connection, frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}')
        )
        (submit,) = scene.take(Submit)
        scene.now += scene.limits.server_s
        scene.bridge.tick()
        scene.broker(*good(submit.token))
        scene.bridge.on_connection_lost(connection)
        scene.turn()
        left = scene.bridge.inspect().submissions
        assert (connection.lines(), left.waiting, left.departed, left.unreported_bytes) == ([], 0, 0, 0)

    def test_server_that_waits_is_given_longer_than_one_of_besters_waits(self) -> None:
        bridge = Limits()
        assert bridge.server_s > CoreLimits().relay_s + bridge.connect_s

    def test_timed_out_message_is_not_submitted_again(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.submit(connection, "a")
        scene.bridge.on_peer_ended(connection)
        scene.now += scene.limits.drain_s
        scene.bridge.tick()
        scene.turn()
        assert connection.lines() == ["bad a timeout"]
        scene.bridge.on_link_ready()
        assert scene.take(Submit) == []


class TestBounds:
    def test_held_message_is_unreachable_after_hold_s(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.submit(connection, "a")
        scene.bridge.on_link_lost("gone")
        scene.now += 1
        write(scene, connection, "b")
        scene.now += scene.limits.hold_s - 1.5
        scene.bridge.tick()
        assert connection.lines() == []
        scene.now += 0.5
        scene.bridge.tick()
        scene.turn()
        assert connection.lines() == ["bad a unreachable"]
        scene.bridge.on_link_ready()
        assert [message.token for message in scene.take(Submit)] == [2]

    @pytest.mark.parametrize("end", ["the broker comes", "nobody comes"])
    def test_held_message_that_timed_out_leaves_nothing(self, end: str) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.bridge.on_link_lost("gone")
        write(scene, connection, "a")
        scene.bridge.on_peer_ended(connection)
        scene.now += scene.limits.drain_s
        scene.bridge.tick()
        scene.turn()
        assert connection.lines() == ["bad a timeout"]
        if end == "the broker comes":
            scene.bridge.on_link_ready()
            assert scene.take(Submit) == []
        else:
            scene.now += 1
            scene.bridge.tick()
        assert scene.bridge.inspect().submissions.waiting == 0

    def test_full_window_without_a_broker_pauses_reading(self) -> None:
        scene = Scene(unreported=3)
        connection = scene.log_in()
        scene.bridge.on_link_lost("gone")
        write(scene, connection, *"abcde")
        assert not connection.reading
        scene.bridge.on_link_ready()
        submits = scene.take(Submit)
        assert len(submits) == 3
        scene.broker(*good(*(message.token for message in submits)))
        assert len(scene.take(Submit)) == 2
        assert connection.lines() == ["good a", "good b", "good c"]
        assert connection.reading

    def test_full_link_keeps_the_order(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.full = True
        write(scene, connection, "a")
        scene.full = False
        write(scene, connection, "b")
        assert [(message.token, message.meta) for message in scene.take(Submit)] == [(1, {}), (2, {})]
        assert connection.lines() == []

    def test_message_refused_by_a_full_link_was_not_attempted(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection, "a")
        scene.full = True
        write(scene, connection, "b")
        scene.bridge.on_link_lost("gone")
        scene.full = False
        scene.bridge.on_link_ready()
        assert attempts(scene.take(Submit)) == [(token, 2), (token + 1, 1)]

    def test_slow_link_gets_held_messages_in_order(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.bridge.on_link_lost("gone")
        write(scene, connection, *(str(number) for number in range(10)))
        taken: list[Message] = []

        def three(messages: list[Message]) -> int:
            taken.extend(messages[:3])
            return len(messages[:3])

        scene.send_all = three  # type: ignore[method-assign,assignment]  # a link with little room
        scene.bridge.on_link_ready()
        for _ in range(3):
            assert len(taken) % 3 == 0
            scene.bridge.tick()
        assert [message.token for message in taken if isinstance(message, Submit)] == list(range(1, 11))


class TestDeparted:
    def test_departed_messages_are_submitted_again_within_their_session(self) -> None:
        scene = Scene()
        alice, bob = scene.log_in("alice"), scene.log_in("bob")
        tokens = [scene.submit(connection) for connection in (alice, bob, alice, bob)]
        scene.bridge.on_connection_lost(alice)
        assert scene.take(Close) == [Close(alice.session.number)]
        scene.bridge.on_link_lost("gone")
        scene.sent.clear()
        scene.bridge.on_link_ready()
        a, b = alice.session.number, bob.session.number
        assert kinds(scene.sent) == [
            (Open, b), (Open, a), (Submit, tokens[0]), (Submit, tokens[1]), (Submit, tokens[2]), (Close, a),
            (Submit, tokens[3]),
        ]  # fmt: skip
        scene.broker(*good(*tokens))
        assert (alice.lines(), len(bob.lines())) == ([], 2)
        scene.bridge.on_link_lost("gone")
        scene.sent.clear()
        scene.bridge.on_link_ready()
        assert scene.sent == [Open(b, "bob")]

    def test_client_that_goes_without_a_broker_leaves_its_messages(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        token = scene.submit(connection)
        scene.bridge.on_link_lost("gone")
        write(scene, connection, "b")
        scene.bridge.on_connection_lost(connection)
        scene.sent.clear()
        scene.bridge.on_link_ready()
        number = connection.session.number
        assert kinds(scene.sent) == [(Open, number), (Submit, token), (Submit, token + 1), (Close, number)]

    def test_close_follows_held_messages_on_a_full_link(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.full = True
        write(scene, connection, "a")
        scene.bridge.on_connection_lost(connection)
        scene.full = False
        scene.sent.clear()
        scene.bridge.tick()
        assert [type(message) for message in scene.sent] == [Submit, Close]

    @pytest.mark.parametrize("limits", [{"gone_messages": 2}, {"gone_bytes": 2 * (OVERHEAD_BYTES + 5)}])
    def test_departed_messages_are_bounded(self, limits: dict[str, int]) -> None:
        scene = Scene(**limits)
        connection = scene.log_in()
        tokens = [scene.submit(connection) for _ in range(4)]
        scene.bridge.on_connection_lost(connection)
        scene.bridge.on_link_lost("gone")
        scene.bridge.on_link_ready()
        assert [message.token for message in scene.take(Submit)] == tokens[:2]
        assert scene.bridge.reached == dict.fromkeys(limits, 2)

    def test_departed_message_ends_by_report_or_time(self) -> None:
        scene = Scene(gone_messages=1)
        for end in ("report", "delivery", "time"):
            connection = scene.log_in()
            token = scene.submit(connection)
            scene.bridge.on_connection_lost(connection)
            scene.bridge.on_link_lost("gone")
            scene.bridge.on_link_ready()
            assert attempts(scene.take(Submit)) == [(token, 2)], end
            other = scene.log_in("bob")
            if end == "report":
                scene.broker(*good(token))
            elif end == "delivery":
                scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, other.session.number]], token, {"message": "s/1"}))
            else:
                scene.now += scene.limits.hold_s
                scene.bridge.tick()
            scene.bridge.on_connection_lost(other)
            scene.bridge.on_link_lost("gone")
            scene.bridge.on_link_ready()
            assert scene.take(Submit) == [], end

    def test_departed_message_of_a_server_is_submitted_again(self) -> None:
        scene = Scene()
        connection = scene.connect()
        scene.bridge.on_bytes(connection, frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m"}}'))
        (first,) = scene.take(Submit)
        scene.bridge.on_connection_lost(connection)
        scene.bridge.on_link_ready()
        assert scene.sent == [first._replace(meta={**first.meta, "attempt": 2})]


class TestGiveUp:
    def test_give_up_without_a_broker_is_unreachable(self) -> None:
        scene = Scene(unreported=2)
        connection, server = scene.log_in(), scene.connect()
        scene.submit(connection, "a")
        scene.bridge.on_link_lost("gone")
        write(scene, connection, *"bcde")
        scene.bridge.on_bytes(server, frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}'))
        scene.bridge.shut_down()
        scene.turn()
        assert (connection.lines(), server.lines()) == ([], [])
        scene.bridge.give_up()
        scene.turn()
        assert connection.lines() == [f"bad {id_} unreachable" for id_ in "abcde"]
        assert (server.lines(), server.session.is_unanswered) == ([], True), "another server says it again"
        assert (connection.session.state, server.session.state) == (State.CLOSING, State.CLOSED)
        scene.bridge.on_connection_lost(server)
        scene.bridge.on_link_ready()
        assert [submit.session for submit in scene.take(Submit)] == [None]

    def test_give_up_with_a_silent_broker_is_a_timeout(self) -> None:
        scene = Scene()
        connection = scene.log_in()
        scene.submit(connection, "a")
        scene.bridge.shut_down()
        scene.bridge.give_up()
        scene.turn()
        assert connection.lines() == ["bad a timeout"]
        assert scene.take(Close) == [Close(connection.session.number)]


@pytest.mark.parametrize("end", ["reported", "timed out", "gone", "gone and reported", "given up"])
def test_size_returns_to_zero(end: str) -> None:
    scene = Scene(hold_s=10.0, drain_s=10.0, unreported=4)
    connection, server = scene.log_in(), scene.connect()
    write(scene, connection, *"abcdef", data=LARGE)
    scene.command(connection, "outcome", "s/1", "q")
    scene.bridge.on_bytes(server, frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}'))
    assert 4000 < scene.bridge.inspect().submissions.unreported_bytes < 4000 + 6 * (OVERHEAD_BYTES + 10)
    if end == "given up":
        scene.bridge.give_up()
    elif end == "timed out":
        for peer in (connection, server):
            scene.bridge.on_peer_ended(peer)
        for _ in range(3):
            scene.now += scene.limits.drain_s
            scene.bridge.tick()
            scene.turn()
            scene.bridge.on_link_lost("gone")
    elif end.startswith("gone"):
        scene.bridge.on_connection_lost(connection)
        scene.bridge.on_connection_lost(server)
        assert scene.bridge.inspect().submissions.unreported_bytes > 4000
    for _ in range(3):
        if end == "gone":
            scene.bridge.on_link_lost("gone")
            scene.now += scene.limits.hold_s
            scene.bridge.tick()
        scene.broker(*good(*(submit.token for submit in scene.take(Submit))))
        scene.broker(*(Answer(ask.token, 0, {}) for ask in scene.take(Ask)))
    left = scene.bridge.inspect().submissions
    assert (left.unreported_bytes, left.queued_bytes, left.departed_bytes) == (0, 0, 0)


def test_delivery_of_a_lost_link_reports_nothing() -> None:
    scene = Scene()
    alice, bob = scene.log_in("alice"), scene.log_in("bob")
    token = scene.submit(alice, "a")
    bob.blocked = True
    scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number]], token, {"message": "s/1"}))
    scene.bridge.on_link_lost("gone")
    scene.bridge.on_link_ready()
    bob.unblock()
    scene.turn()
    assert alice.lines() == []
    assert attempts(scene.take(Submit)) == [(token, 2)]
    scene.broker(Deliver(1, "s/1.0", "t", b"1", [[0, bob.session.number]], token, {"message": "s/1"}))
    assert alice.lines() == ["good a"]
    assert scene.take(Confirm) == [Confirm(1, [], [])]


# --- the table of states ----------------------------------------------------------------------------------------------
