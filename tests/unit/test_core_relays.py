"""Relays to other servers: queueing, order, answers and refusals."""

from __future__ import annotations

import pytest

from bester.broker.core.settings import Limits
from bester.broker.store_requests import NUMBERS_A_LIFE, DeadLetter, Enqueue, Entry, lane
from bester.broker.wire.messages import Error, Relay, Reply, Report
from tests.unit.core_office import S2, Office, bodies_of, numbered
from tests.unit.core_stand import START, servers

LANE = lane("s2", "one")


def numbers_of(relays: list[Relay]) -> list[int]:
    return [relay.meta["lane"][1] for relay in relays]


def marks_of(relays: list[Relay]) -> list[bool]:
    return [relay.meta.get("again", False) for relay in relays]


# --- queueing -------------------------------------------------------------------------------------------------------


def test_report_of_queued_comes_after_the_commit() -> None:
    office = Office()
    stand = office.stand
    token = stand.submit(office.bridge, "one")
    request = stand.request(office.one)
    first = stand.router.receive_all(office.one, [Reply(request.token, 0, [servers("s2")])], stand.now)
    assert [type(write) for write in first.writes] == [Enqueue]
    assert not first.messages
    then = stand.router.on_committed(first.writes, stand.store.commit(first.writes), stand.now)
    report = Report(token, 0, None, request.meta["id"], {"s2": "queued"})
    assert then.messages == {office.bridge: [report]}


def test_entry_has_everything_about_the_message() -> None:
    office = Office(ttl_s=100.0)
    office.sends("s2", "s2", body=b"-0")
    message = office.stand.report(office.bridge).message
    entry = office.stand.kept(LANE)[1]
    assert entry == Entry(
        entry.number, LANE, f"{message}.0.1", "s2", "one", b"-0", "alice", START + 100.0,
        {"origin": "s1", "root": message, "message": message, "path": ["s1/one"], "at_s": START},
    )  # fmt: skip


def test_lane_is_sent_in_order_when_the_link_opens_and_ended_by_answers() -> None:
    office = Office()
    office.queues(*numbered(3))
    entries = office.stand.kept(LANE)
    relays = office.up()
    assert bodies_of(relays) == numbered(3)
    assert [relay.meta["id"] for relay in relays] == [entry.id for entry in entries]
    assert numbers_of(relays) == [entry.number for entry in entries]
    assert marks_of(relays) == [False] * 3
    office.answers(relays[0])
    assert office.waiting() == numbered(2, 1)
    office.answers(relays[1], "sent")
    office.answers(relays[2], "failed:unknown-type")
    assert office.waiting() == []
    assert office.stand.queued == (0, 0)
    messages = [entry.meta["message"] for entry in entries]
    outcomes = [office.stand.ask(office.bridge, "outcome", [1, message]).value for message in messages]
    assert outcomes == [{"s2": "delivered"}, {"s2": "sent"}, {"s2": "failed:unknown-type"}]
    assert office.stand.heard(office.bridge) == []


def test_new_message_goes_behind_ready_ones_and_at_once_without_any() -> None:
    office = Office(Limits(window=2))
    office.queues(*numbered(3))
    first = office.up()
    assert bodies_of(first) == numbered(2)
    office.queues(b"3")
    office.answers(first[0])
    second = office.relays()
    assert bodies_of(second) == [b"2"]
    office.answers(first[1])
    third = office.relays()
    assert bodies_of(third) == [b"3"]
    token = office.sends("s2", body=b"4")
    fourth = office.relay()
    assert fourth.body == b"4"
    assert numbers_of([*first, *second, *third, fourth]) == sorted(numbers_of([*first, *second, *third, fourth]))
    office.answers(fourth)
    assert office.outcomes(token) == {}


def test_lanes_do_not_hold_each_other_up() -> None:
    office = Office()
    office.up()
    office.sends("s2", type_="one", body=b"1")
    office.answers(office.relay(), "failed:no-handler")
    assert office.outcomes() == {"s2": "queued"}
    token = office.sends("s2", type_="two", body=b"2")
    office.answers(office.relay())
    assert office.outcomes(token) == {}
    assert (office.waiting("one"), office.waiting("two")) == ([b"1"], [])


def test_bounds_of_a_server_count_all_its_lanes() -> None:
    office = Office(server_messages=6)  # half of it for alice
    office.queues(b"1", b"2")
    office.queues(b"3", type_="two")
    for type_ in ("one", "two"):
        office.sends("s2", type_=type_)
        assert office.outcomes() == {"s2": "failed:overloaded"}
    office.restarts()
    office.sends("s2")
    assert office.outcomes() == {"s2": "failed:overloaded"}
    for relay in office.up():
        office.answers(relay)
    office.down()
    office.queues(b"4", b"5", type_="two")


@pytest.mark.parametrize("bounds", [{"server_messages": 4}, {"server_bytes": 12}])
def test_full_lane_is_refused(bounds: dict[str, int]) -> None:
    office = Office(None, **bounds)
    office.queues(b'"1"', b'"2"')
    office.sends("s2", body=b'"345"')
    assert office.outcomes() == {"s2": "failed:overloaded"}
    office.answers(office.up()[0])
    office.down()
    office.queues(b'"345"')


def test_lanes_of_one_server_are_bounded() -> None:
    office = Office(Limits(max_lanes=1))
    office.queues(b"1")
    office.sends("s2", type_="two")
    assert office.outcomes() == {"s2": "failed:overloaded"}
    office.queues(b"2")


def test_failed_commit_is_reported() -> None:
    office = Office()
    office.stand.store.full = True
    office.sends("s2")
    report = office.stand.report(office.bridge)
    assert (report.reason, report.recipients) == ("storage-full", {"s2": "failed:storage-full"})
    assert office.stand.queued == (0, 0)
    office.stand.store.full = False
    office.stand.wait(1.0)
    office.queues(b"1")


# --- no answer ------------------------------------------------------------------------------------------------------


def test_unanswered_message_is_sent_again_under_its_id_and_number() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    first = office.relay()
    office.stand.wait(5.0)
    assert office.outcomes() == {"s2": "queued"}
    office.stand.wait(59.5)
    assert office.relays() == []
    office.stand.wait(2.0)
    again = office.relay()
    assert (again.type, again.body) == (first.type, first.body)
    assert again.token != first.token
    number = first.meta["lane"][1]
    assert again.meta["lane"][:2] == ["store", number]
    assert {key: again.meta[key] for key in ("id", "root", "origin", "path")} == {
        key: first.meta[key] for key in ("id", "root", "origin", "path")
    }
    assert again.meta["again"] is True
    office.answers(first)
    assert office.waiting() == [b'"hi"'], "an answer to the first one is too late"
    office.answers(again)
    assert office.waiting() == []


def test_late_refusal_for_now_leads_to_another_try() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    first = office.relay()
    office.stand.wait(5.0)
    assert office.outcomes() == {"s2": "queued"}
    office.answers(first, "failed:no-handler")
    office.stand.wait(1.0)
    again = office.relay()
    assert (again.meta["lane"][1], again.meta["again"]) == (first.meta["lane"][1], True)


def test_answer_during_the_write_ends_the_message() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    relay = office.relay()
    office.stand.wait(4.5)
    office.stand.commits = False
    office.stand.wait(0.5)
    office.answers(relay)
    office.stand.commits = True
    office.stand.commit()
    assert office.outcomes() == {"s2": "queued"}
    assert office.waiting() == []
    assert office.stand.queued == (0, 0)
    office.stand.wait(70.0)
    assert office.relays() == []


def test_answer_during_a_failed_write_uncounts_the_message_once() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"1")
    kept = office.relay()
    office.stand.wait(5.0)
    assert office.outcomes() == {"s2": "queued"}
    office.sends("s2", body=b"2")
    relay = office.relay()
    office.stand.wait(4.5)
    office.stand.commits = False
    office.stand.store.full = True
    office.stand.wait(0.5)
    office.answers(relay)
    office.stand.commits = True
    office.stand.commit()
    assert office.outcomes() == {}, "it was delivered, and need not wait"
    assert office.waiting() == [b"1"]
    assert office.stand.queued == (1, 1)
    office.answers(kept)
    assert (office.stand.queued, office.waiting()) == ((0, 0), [])


def test_messages_on_a_lost_link_are_sent_again_in_order_and_marked() -> None:
    office = Office()
    office.up()
    tokens = [office.sends("s2", body=body) for body in numbered(3)]
    first = office.relays()
    office.answers(first[0])
    assert office.outcomes(tokens[0]) == {}
    office.down()
    reports = office.stand.heard_of(office.bridge, Report)
    assert [(report.token, report.recipients) for report in reports] == [
        (tokens[1], {"s2": "queued"}), (tokens[2], {"s2": "queued"}),
    ]  # fmt: skip
    office.queues(b"3")
    again = office.up()
    assert bodies_of(again) == numbered(3, 1)
    assert numbers_of(again)[:2] == numbers_of(first)[1:]
    assert marks_of(again) == [True, True, False]


@pytest.mark.parametrize("bounds", [{}, {"server_messages": 2}])
def test_unanswered_message_that_cannot_be_kept_may_have_arrived(bounds: dict[str, int]) -> None:
    office = Office(None, **bounds)
    office.up()
    token = office.sends("s2")
    assert office.relay().body == b'"hi"'
    if bounds:  # half of it is all that alice may have
        office.sends("s2", type_="two")
        office.answers(office.relay(), "failed:no-handler")
        assert office.outcomes() == {"s2": "queued"}
    office.stand.store.full = not bounds
    office.down()
    assert office.outcomes(token) == {"s2": "failed:unreachable"}


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["no-handler", "overloaded", "unreachable", "mailbox-full", "storage-full"])
def test_message_refused_for_now_is_queued_and_tried_again(code: str) -> None:
    office = Office()
    office.up()
    office.sends("s2")
    first = office.relay()
    office.answers(first, f"failed:{code}")
    assert office.outcomes() == {"s2": "queued"}
    assert office.waiting() == [b'"hi"']
    office.stand.wait(1.0)
    again = office.relay()
    assert numbers_of([again]) == numbers_of([first])
    assert "again" not in again.meta, "it was not taken the first time"
    office.answers(again, f"failed:{code}")
    office.stand.wait(2.0)
    assert "again" not in office.relay().meta


@pytest.mark.parametrize("code", ["unknown-type", "not-allowed", "handler-failed", "timeout", "malformed"])
def test_final_refusal_is_reported_at_once(code: str) -> None:
    office = Office()
    office.up()
    office.sends("s2")
    office.answers(office.relay(), f"failed:{code}")
    assert office.outcomes() == {"s2": f"failed:{code}"}
    assert (office.waiting(), office.dead()) == ([], [])


def test_message_carried_out_in_part_is_not_sent_again() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:mailbox-full", carried=True)
    assert office.outcomes() == {"s2": "failed:mailbox-full"}
    assert office.waiting() == []


def test_queued_message_with_a_final_refusal_is_a_dead_letter() -> None:
    office = Office()
    office.sends("s2", body=b"[7]")
    message = office.stand.report(office.bridge).message
    entry = office.stand.kept(LANE)[0]
    office.answers(office.up()[0], "failed:unknown-type")
    assert office.waiting() == []
    assert office.dead() == [
        DeadLetter(
            entry.id, "one", b"[7]", "unknown-type", START,
            {
                "root": message, "origin": "s1", "path": ["s1/one"], "user": "alice", "scope": "handler",
                "attempts": 0, "server": "s2", "bytes": 3,
            },
        )
    ]  # fmt: skip
    assert office.stand.ask(office.bridge, "outcome", [1, message]).value == {"s2": "failed:unknown-type"}


def test_unreadable_answer_ends_the_message() -> None:
    office = Office()
    office.queues(b"1")
    relay = office.up()[0]
    office.answers(relay, "nonsense")
    assert [letter.reason for letter in office.dead()] == ["bad-reply"]
    assert office.waiting() == []


def test_error_is_an_answer() -> None:
    office = Office()
    office.queues(b"1")
    office.stand.say(S2, Error("not-allowed", "not you", 30, office.up()[0].token))
    assert [letter.reason for letter in office.dead()] == ["not-allowed"]


# --- lanes and numbers ----------------------------------------------------------------------------------------------


def test_numbers_rise_and_the_floor_is_the_first_unsettled() -> None:
    office = Office()
    office.up()
    for _ in range(3):
        office.sends("s2")
    relays = office.relays()
    first, second, third = numbers_of(relays)
    assert NUMBERS_A_LIFE <= first < second < third
    assert [relay.meta["lane"] for relay in relays] == [["store", number, first] for number in numbers_of(relays)]
    office.answers(relays[0])
    office.answers(relays[2])
    office.sends("s2")
    assert office.relay().meta["lane"][2] == second
    office.answers(relays[1])
    office.sends("s2")
    assert office.relay().meta["lane"][2] > third


def test_each_lane_has_a_floor() -> None:
    office = Office()
    office.up()
    office.sends("s2", type_="one")
    office.sends("s2", type_="two")
    one, two = office.relays()
    assert one.meta["lane"][2] < two.meta["lane"][1] == two.meta["lane"][2]


def test_floor_stays_below_ready_messages() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"0")
    waiting = office.relay().meta["lane"][1]
    office.stand.wait(5.0)  # queued, and still in flight
    assert office.waiting() == [b"0"]
    office.sends("s2", body=b"1")
    assert office.relay().meta["lane"][2] <= waiting


def test_messages_after_a_restart_keep_their_numbers_and_sent_ones_are_marked() -> None:
    office = Office(Limits(window=2))
    office.queues(*numbered(3))
    first = office.up()
    assert bodies_of(first) == numbered(2)
    office.restarts()
    again = office.up()
    office.answers(again[0])
    office.answers(again[1])
    again += office.relays()
    assert bodies_of(again) == numbered(3)
    assert numbers_of(again)[:2] == numbers_of(first)
    assert marks_of(again) == [True, True, False]
    assert {relay.meta["lane"][0] for relay in again} == {"store"}


def test_unsent_message_is_not_marked_after_a_restart() -> None:
    office = Office()
    office.queues(*numbered(2))
    office.restarts()
    office.queues(b"2")
    relays = office.up()
    assert (bodies_of(relays), marks_of(relays)) == (numbered(3), [False] * 3)
    assert numbers_of(relays)[2] // NUMBERS_A_LIFE == 2
