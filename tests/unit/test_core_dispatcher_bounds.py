"""Bounds on messages: time to live, number held, and the harm that a hostile handler can do to others."""

from __future__ import annotations

import pytest

from bester.broker.core.settings import Settings
from bester.broker.wire.messages import Error, Heartbeat, Hello, Outcome, Report, Request
from tests.unit.core_federated import federated, finished
from tests.unit.core_stand import Stand, clients, limited

# --- time to live -----------------------------------------------------------------------------------------------------


def test_expired_waiting_message_is_not_given_to_a_handler() -> None:
    stand = Stand()
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t", b"1", ttl_s=1)
    stand.submit(bridge, "t", b"2", ttl_s=2)
    stand.submit(bridge, "t", b"3", ttl_s=10)
    stand.wait(2.0)
    assert stand.answer(busy).body == b"1", "messages in flight stay with their handler"
    reports = stand.heard_of(bridge, Report)
    assert [(report.status, report.reason) for report in reports] == [(0, None), (1, "expired")]
    assert stand.answer(busy).body == b"3"
    assert stand.report(bridge).status == 0
    finished(stand)


def test_message_expired_before_a_handler_came_is_expired_not_no_handler() -> None:
    stand = Stand(Settings("s1", open_accounts=True, declared_types=frozenset({"t"})))
    bridge = stand.bridge("alice")
    stand.wait(6.0)
    stand.submit(bridge, "t", ttl_s=2)
    patient = stand.submit(bridge, "t", ttl_s=20)
    stand.wait(5.0)
    reports = {report.token: report.reason for report in stand.heard_of(bridge, Report)}
    assert reports == {patient - 1: "expired", patient: "no-handler"}
    finished(stand)


def test_message_with_no_time_to_live_is_given_to_no_handler() -> None:
    stand = Stand()
    bridge, chat = stand.bridge("alice"), stand.handler("chat")
    stand.submit(bridge, "chat", ttl_s=0)
    assert stand.report(bridge).reason == "expired"
    assert stand.heard(chat) == []
    finished(stand)


@pytest.mark.parametrize("ttl_s", ["5", None, -1, True, float("nan"), float("inf"), [5]])
def test_invalid_time_to_live_is_ignored(ttl_s: object) -> None:
    stand = Stand()
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    stand.submit(bridge, "t")
    stand.submit(bridge, "t", ttl_s=ttl_s)
    stand.wait(5.0)
    stand.answer(busy)
    stand.answer(busy)
    assert [report.status for report in stand.heard_of(bridge, Report)] == [0, 0]


def test_expired_message_of_an_ordered_type_is_passed_over() -> None:
    stand = Stand()
    bridge, first = stand.bridge("alice", "bob"), stand.handler("t", credit=1, order={"t": "user"})
    stand.submit(bridge, "t", b"1", session=1)
    for body, ttl_s in ((b"2", 1), (b"3", 10), (b"4", 1), (b"5", 10)):
        stand.submit(bridge, "t", body, session=2, ttl_s=ttl_s)
    stand.wait(1.0)
    assert [stand.answer(first).body for _ in range(3)] == [b"1", b"3", b"5"]
    assert [report.reason for report in stand.heard_of(bridge, Report)] == [None, "expired", None, "expired", None]
    assert stand.state.workers.groups == 0
    finished(stand)


def test_expired_message_of_an_ordered_type_binds_its_user_to_no_worker() -> None:
    """The user's next message would wait for a handler that has died since."""
    stand = Stand()
    bridge, first = stand.bridge("alice", "bob"), stand.handler("t", credit=1, order={"t": "user"})
    stand.submit(bridge, "t", b"1", session=1)
    stand.submit(bridge, "t", b"2", session=2, ttl_s=1)
    stand.wait(1.0)
    assert stand.answer(first).body == b"1"
    assert [report.reason for report in stand.heard_of(bridge, Report)] == [None, "expired"]
    stand.take(stand.router.on_undeliverable(first, Heartbeat(), stand.now))
    del stand.alive[first]
    second = stand.handler("t", credit=1, order={"t": "user"})
    stand.submit(bridge, "t", b"3", session=2)
    assert stand.answer(second).body == b"3"
    assert stand.report(bridge).status == 0
    assert stand.state.workers.groups == 0
    finished(stand)


# --- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "bodies", "refused"),
    [
        ({"max_held": 2}, [b"1", b"1", b"1"], [2]),
        ({"max_held_bytes": 6}, [b"12345", b"12", b"1"], [1]),
        ({"max_waiting": 1}, [b"1", b"1", b"1"], [2]),
        ({"max_waiting_bytes": 3}, [b"1", b"12", b"34", b"5"], [2]),
    ],
)
def test_above_a_bound_messages_are_refused(limits: dict[str, int], bodies: list[bytes], refused: list[int]) -> None:
    stand = Stand(limited(**limits))
    bridge, busy = stand.bridge("alice"), stand.handler("t", credit=1)
    tokens = [stand.submit(bridge, "t", body) for body in bodies]
    reports = stand.heard_of(bridge, Report)
    assert [tokens.index(report.token) for report in reports] == refused
    assert {report.reason for report in reports} == {"overloaded"}
    assert stand.state.reached == dict.fromkeys(limits, len(refused))
    for _ in range(len(tokens) - len(refused)):
        stand.answer(busy)
    assert len(stand.heard_of(bridge, Report)) == len(tokens) - len(refused)
    stand.submit(bridge, "t")
    stand.answer(busy)
    stand.report(bridge)
    finished(stand)


def test_waiting_type_leaves_room_for_others() -> None:
    stand = Stand(limited(max_waiting=1))
    bridge, other = stand.bridge("alice"), stand.handler("other")
    stand.handler("t", credit=1)
    for _ in range(3):
        stand.submit(bridge, "t")
    assert stand.report(bridge).reason == "overloaded"
    stand.submit(bridge, "other")
    stand.answer(other)
    stand.report(bridge)


# --- hostile handlers ----------------------------------------------------------------------------------------------


def test_a_command_becomes_only_so_many_frames() -> None:
    stand = Stand(limited(max_frames=5))
    bridge = stand.bridge("bob", "bob", "alice", "alice", "alice")
    chat = stand.handler("chat")
    stand.submit(bridge, "chat")
    stand.answer(chat, clients("alice", "bob", "bob"))
    stand.deliver(bridge)
    report = stand.report(bridge)
    assert (report.status, report.reason) == (1, "too-many-results")
    assert report.recipients == {"alice": "delivered", "bob": "failed:too-many-results"}
    assert stand.state.reached == {"max_frames": 1}
    finished(stand)


def test_timed_out_messages_of_a_handler_do_not_count_as_held() -> None:
    stand = Stand(limited(max_held=2, request_s=5.0))
    bridge, deaf, chat = stand.bridge("alice"), stand.handler("deaf"), stand.handler("chat")
    for _ in range(2):
        stand.submit(bridge, "deaf")
    stand.submit(bridge, "chat")
    assert stand.report(bridge).reason == "overloaded"
    requests = stand.heard_of(deaf, Request)
    stand.wait(6)
    assert [report.reason for report in stand.heard_of(bridge, Report)] == ["timeout", "timeout"]
    stand.submit(bridge, "chat")
    stand.answer(chat)
    assert stand.report(bridge).status == 0
    for request in requests:  # late, and without effect
        stand.reply(deaf, request.token, clients("alice"))
    assert stand.heard(bridge) == []
    finished(stand)


def test_long_outcome_is_sent_in_full_once_and_remembered_in_short() -> None:
    stand = federated()
    clock = stand.handler("clock")
    names = [f"user-{number}" for number in range(100)]
    stand.emit(clock, "clock", clients(*names), id="noon")
    assert len(stand.one(clock, Outcome).recipients) == 100
    stand.emit(clock, "clock", clients(*names), id="noon")
    again = stand.one(clock, Outcome)
    assert (again.status, again.reason, again.recipients) == (1, "not-connected", {})


@pytest.mark.parametrize("name", ["x" * 200, "a\nb", "nul\0"])
def test_invalid_type_name_is_refused(name: str) -> None:
    stand = federated()
    link = stand.link()
    stand.say(link, Hello(1, "handler", "h", {"types": [name]}))
    assert stand.one(link, Error).code == "malformed"
