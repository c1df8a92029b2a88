"""Servers away: what is for them waits, is tried again ever more seldom, and goes out in its order."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.values import Limits, Link, Notice, Route, Send, Settings
from bester.broker.store_requests import NUMBERS_A_LIFE, Bounds, DeadLetter, Enqueue, Entry, FindDeadLetters, lane
from bester.broker.wire.messages import (
    Error,
    Forward,
    Forwarded,
    Goodbye,
    Meta,
    Open,
    Relay,
    Relayed,
    Reply,
    Report,
    Submit,
)
from tests.unit.core_stand import START, Stand, servers

S2 = Link("server", b"s2")
LANE = lane("s2", "one")


class Office:
    """A server that knows s2 (over the fabric) and s3 (native), a while after its start; alice, and the handler `one`
    that sends what she says to servers. Nobody can be reached yet."""

    def __init__(self, limits: Limits | None = None, **bounds: Any) -> None:
        routes = {"s2": Route("s2", fabric="ipc:///s2"), "s3": Route("s3", native="10.0.0.3:2223")}
        settings = Settings(
            "s1", open_accounts=True, routes=routes, hosts={"10.0.0.3": ("s3",)}, bounds=Bounds(**bounds),
            limits=limits or Limits(),
        )  # fmt: skip
        self.stand = Stand(settings, now=START - 5.0)
        self.stand.wait(5.0)
        self.opens()

    def opens(self) -> None:
        self.bridge = self.stand.bridge("alice")
        self.one = self.stand.handler("one", "two")

    def restarts(self) -> None:
        """The broker is killed and comes back; so do alice and the handler."""
        self.stand.restart()
        self.opens()
        self.stand.wait(2.5)

    def sends(self, *targets: str, type_: str = "one", body: bytes = b'"hi"', **meta: Any) -> int:
        token = self.stand.submit(self.bridge, type_, **meta)
        self.stand.answer(self.one, servers(*targets, body=body))
        return token

    def told(self, token: int | None = None) -> dict[str, str]:
        return self.stand.report(self.bridge, token).recipients

    def queues(self, *bodies: bytes, type_: str = "one", **meta: Any) -> None:
        """Send these to s2, where they cannot go now."""
        for body in bodies:
            self.sends("s2", type_=type_, body=body, **meta)
            assert self.told() == {"s2": "queued"}

    def up(self) -> list[Relay]:
        """The link to s2 is up: return what goes out over it."""
        self.stand.take(self.stand.router.on_server_ready("s2", self.stand.now))
        return self.relays()

    def down(self) -> None:
        self.stand.take(self.stand.router.on_server_lost("s2", "nothing heard", self.stand.now))

    def relays(self) -> list[Relay]:
        return self.stand.heard_of(S2, Relay)

    def relay(self) -> Relay:
        return self.stand.one(S2, Relay)

    def answers(self, relay: Relay, outcome: str = "delivered", **meta: Any) -> None:
        self.stand.say(S2, Relayed(relay.token, outcome, meta))

    def waiting(self, type_: str = "one") -> list[bytes]:
        return [entry.body for entry in self.stand.kept(lane("s2", type_))]

    def dead(self) -> list[DeadLetter]:
        letters: list[DeadLetter] = self.stand.store.read(FindDeadLetters(None, None, 100, None, 0, {}))
        return letters


def bodies_of(relays: list[Relay]) -> list[bytes]:
    return [relay.body for relay in relays]


def numbers_of(relays: list[Relay]) -> list[int]:
    return [relay.meta["lane"][1] for relay in relays]


def marks_of(relays: list[Relay]) -> list[bool]:
    return [relay.meta.get("again", False) for relay in relays]


def numbered(count: int, start: int = 0) -> list[bytes]:
    return [b"%d" % number for number in range(start, start + count)]


# --- waiting --------------------------------------------------------------------------------------------------------


def test_the_core_says_queued_when_it_was_told_that_it_is_on_disk_and_not_before() -> None:
    office = Office()
    stand = office.stand
    token = stand.submit(office.bridge, "one")
    request = stand.request(office.one)
    first = stand.router.receive(office.one, Reply(request.token, 0, [servers("s2")]), stand.now)
    writes = [action for action in first if isinstance(action, Enqueue)]
    assert len(writes) == 1
    assert not [action for action in first if isinstance(action, Send)]
    then = stand.router.on_committed(writes, stand.store.commit(writes), stand.now)
    report = Report(token, 0, None, request.meta["id"], {"s2": "queued"})
    assert [action.message for action in then if isinstance(action, Send)] == [report]


def test_what_is_kept_says_everything_about_the_message() -> None:
    office = Office(ttl_s=100.0)
    office.sends("s2", "s2", body=b"-0")
    message = office.stand.report(office.bridge).message
    entry = office.stand.kept(LANE)[1]
    assert entry == Entry(
        entry.number, LANE, f"{message}.0.1", "s2", "one", b"-0", "alice", START + 100.0,
        {"origin": "s1", "root": message, "message": message, "path": ["s1/one"]},
    )  # fmt: skip


def test_what_waits_goes_out_in_order_when_the_server_comes_back_and_is_over_when_it_answers() -> None:
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
    assert office.stand.router._dispatcher.queues.messages == 0
    messages = [entry.meta["message"] for entry in entries]
    outcomes = [office.stand.ask(office.bridge, "outcome", [1, message]).value for message in messages]
    assert outcomes == [{"s2": "delivered"}, {"s2": "sent"}, {"s2": "failed:unknown-type"}]
    assert office.stand.heard(office.bridge) == []


def test_what_is_new_goes_behind_what_waits_and_straight_on_when_nothing_does() -> None:
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
    assert office.told(token) == {}


def test_lanes_do_not_hold_each_other_up() -> None:
    office = Office()
    office.up()
    office.sends("s2", type_="one", body=b"1")
    office.answers(office.relay(), "failed:no-handler")
    assert office.told() == {"s2": "queued"}
    token = office.sends("s2", type_="two", body=b"2")
    office.answers(office.relay())
    assert office.told(token) == {}
    assert (office.waiting("one"), office.waiting("two")) == ([b"1"], [])


def test_the_bounds_of_a_server_count_all_its_lanes() -> None:
    office = Office(server_messages=3)
    office.queues(b"1", b"2")
    office.queues(b"3", type_="two")
    for type_ in ("one", "two"):
        office.sends("s2", type_=type_)
        assert office.told() == {"s2": "failed:overloaded"}
    office.restarts()
    office.sends("s2")
    assert office.told() == {"s2": "failed:overloaded"}
    for relay in office.up():
        office.answers(relay)
    office.down()
    office.queues(b"4", b"5", type_="two")


@pytest.mark.parametrize("bounds", [{"server_messages": 2}, {"server_bytes": 9}])
def test_above_a_bound_the_sender_is_told(bounds: dict[str, int]) -> None:
    office = Office(None, **bounds)
    office.queues(b'"1"', b'"2"')
    office.sends("s2", body=b'"345"')
    assert office.told() == {"s2": "failed:overloaded"}
    office.answers(office.up()[0])
    office.down()
    office.queues(b'"345"')


def test_only_so_many_types_wait_for_one_server() -> None:
    office = Office(Limits(max_lanes=1))
    office.queues(b"1")
    office.sends("s2", type_="two")
    assert office.told() == {"s2": "failed:overloaded"}
    office.queues(b"2")


def test_what_cannot_be_written_is_told() -> None:
    office = Office()
    office.stand.store.full = True
    office.sends("s2")
    report = office.stand.report(office.bridge)
    assert (report.reason, report.recipients) == ("storage-full", {"s2": "failed:storage-full"})
    assert office.stand.router._dispatcher.queues.messages == 0
    office.stand.store.full = False
    office.stand.wait(1.0)
    office.queues(b"1")


# --- no answer ------------------------------------------------------------------------------------------------------


def test_what_is_not_answered_is_sent_again_much_later_as_the_same() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    first = office.relay()
    office.stand.wait(5.0)
    assert office.told() == {"s2": "queued"}
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


def test_a_late_answer_that_it_cannot_be_taken_now_has_it_tried_again() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    first = office.relay()
    office.stand.wait(5.0)
    assert office.told() == {"s2": "queued"}
    office.answers(first, "failed:no-handler")
    office.stand.wait(1.0)
    again = office.relay()
    assert (again.meta["lane"][1], again.meta["again"]) == (first.meta["lane"][1], True)


def test_an_answer_that_crosses_the_writing_ends_it() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    relay = office.relay()
    office.stand.wait(4.5)
    office.stand.disk = False
    office.stand.wait(0.5)
    office.answers(relay)
    office.stand.disk = True
    office.stand.commit()
    assert office.told() == {"s2": "queued"}
    assert office.waiting() == []
    assert office.stand.router._dispatcher.queues.messages == 0
    office.stand.wait(70.0)
    assert office.relays() == []


def test_one_that_was_answered_while_the_disk_would_not_take_it_is_counted_out_once() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"1")
    kept = office.relay()
    office.stand.wait(5.0)
    assert office.told() == {"s2": "queued"}
    office.sends("s2", body=b"2")
    relay = office.relay()
    office.stand.wait(4.5)
    office.stand.disk = False
    office.stand.store.full = True
    office.stand.wait(0.5)
    office.answers(relay)
    office.stand.disk = True
    office.stand.commit()
    assert office.told() == {}, "it was delivered, and need not wait"
    assert office.waiting() == [b"1"]
    queues = office.stand.router._dispatcher.queues
    assert (queues.messages, queues._size) == (1, 1)
    office.answers(kept)
    assert (queues.messages, queues._size, office.waiting()) == (0, 0, [])


def test_what_is_on_a_link_that_breaks_goes_out_again_in_order_and_marked() -> None:
    office = Office()
    office.up()
    tokens = [office.sends("s2", body=body) for body in numbered(3)]
    first = office.relays()
    office.answers(first[0])
    assert office.told(tokens[0]) == {}
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


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["no-handler", "overloaded", "unreachable", "mailbox-full", "storage-full"])
def test_what_cannot_be_taken_now_waits_and_is_tried_again(code: str) -> None:
    office = Office()
    office.up()
    office.sends("s2")
    first = office.relay()
    office.answers(first, f"failed:{code}")
    assert office.told() == {"s2": "queued"}
    assert office.waiting() == [b'"hi"']
    office.stand.wait(1.0)
    again = office.relay()
    assert numbers_of([again]) == numbers_of([first])
    assert "again" not in again.meta, "it was not taken the first time"
    office.answers(again, f"failed:{code}")
    office.stand.wait(2.0)
    assert "again" not in office.relay().meta


@pytest.mark.parametrize("code", ["unknown-type", "not-allowed", "handler-failed", "timeout", "malformed"])
def test_what_will_not_be_taken_is_told_at_once(code: str) -> None:
    office = Office()
    office.up()
    office.sends("s2")
    office.answers(office.relay(), f"failed:{code}")
    assert office.told() == {"s2": f"failed:{code}"}
    assert (office.waiting(), office.dead()) == ([], [])


def test_what_was_carried_out_in_part_is_not_sent_again() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:mailbox-full", carried=True)
    assert office.told() == {"s2": "failed:mailbox-full"}
    assert office.waiting() == []


def test_what_waited_and_will_not_be_taken_is_a_dead_letter() -> None:
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


def test_an_answer_that_is_none_ends_it_too() -> None:
    office = Office()
    office.queues(b"1")
    relay = office.up()[0]
    office.answers(relay, "nonsense")
    assert [letter.reason for letter in office.dead()] == ["bad-reply"]
    assert office.waiting() == []


def test_an_error_is_an_answer() -> None:
    office = Office()
    office.queues(b"1")
    office.stand.say(S2, Error("not-allowed", "not you", 30, office.up()[0].token))
    assert [letter.reason for letter in office.dead()] == ["not-allowed"]


# --- back-off -------------------------------------------------------------------------------------------------------


def tries(office: Office, seconds: float, outcome: str = "failed:no-handler") -> list[float]:
    """Let time pass and refuse whatever comes; return when that was."""
    start, times = office.stand.now, []
    while office.stand.now < start + seconds:
        office.stand.wait(0.5)
        for relay in office.relays():
            times.append(office.stand.now - start)
            office.answers(relay, outcome)
    return times


def test_it_is_tried_again_after_a_second_then_half_as_often_each_time_down_to_every_ten_minutes() -> None:
    office = Office(ttl_s=10_000.0)
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    times = tries(office, 2300.0)
    gaps = [after - before for before, after in zip([0.0, *times], times, strict=False)]
    assert gaps == [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 600.0, 600.0]


def test_jitter_takes_up_to_half_of_it() -> None:
    office = Office()
    office.stand.router._dispatcher.relays._chance = lambda: 0.0
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 16.0) == [0.5, 1.5, 3.5, 7.5, 15.5]


def test_many_that_fail_at_once_are_one_failure() -> None:
    office = Office()
    office.queues(*numbered(40))
    for relay in office.up():
        office.answers(relay, "failed:no-handler")
    assert tries(office, 7.0) == [1.0, 3.0, 7.0]


def test_after_a_failure_one_is_tried_before_the_others() -> None:
    office = Office()
    office.queues(*numbered(5))
    for relay in office.up():
        office.answers(relay, "failed:no-handler")
    office.stand.wait(1.0)
    first = office.relay()
    assert first.body == b"0"
    office.stand.wait(2.0)
    assert office.relays() == []
    office.answers(first)
    assert bodies_of(office.relays()) == numbered(4, 1)


def test_a_success_ends_the_back_off() -> None:
    office = Office()
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 7.0) == [1.0, 3.0, 7.0]
    office.stand.wait(8.0)
    office.answers(office.relay())
    office.sends("s2", body=b"2")
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 3.0) == [1.0, 3.0]


def test_while_it_backs_off_what_is_new_waits_too() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"0")
    office.answers(office.relay(), "failed:no-handler")
    office.told()
    office.queues(b"1")
    assert office.waiting() == [b"0", b"1"]


def test_while_one_is_tried_after_a_failure_what_is_new_waits_too() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"0")
    office.answers(office.relay(), "failed:no-handler")
    office.told()
    office.stand.wait(1.0)
    tried = office.relay()
    office.queues(b"1")
    assert office.relays() == []
    office.answers(tried)
    assert bodies_of(office.relays()) == [b"1"]


def slow(office: Office) -> None:
    """Have something wait for s2 that was tried so often that it is not tried again soon."""
    office.up()
    office.sends("s2")
    office.answers(office.relay(), "failed:no-handler")
    assert len(tries(office, 260.0)) == 8


def test_a_link_that_comes_up_has_it_tried_at_once() -> None:
    office = Office()
    slow(office)
    office.down()
    assert len(office.up()) == 1


def test_whatever_the_server_says_has_it_tried_soon() -> None:
    office = Office()
    slow(office)
    peer = office.stand.server("s2")
    office.stand.relay(peer, "nonsense")
    office.stand.wait(0.5)
    assert office.relays() == []
    office.stand.wait(0.5)
    office.answers(office.relay(), "failed:no-handler")
    assert tries(office, 3.0) == [2.0]


def test_what_another_server_says_changes_nothing() -> None:
    office = Office()
    slow(office)
    office.stand.submit(office.bridge, "nonsense", session=None, scope="server", address="10.0.0.3")
    assert tries(office, 60.0) == []


@pytest.mark.parametrize(("outcome", "soon"), [("delivered", True), ("failed:no-handler", False)])
def test_one_that_was_taken_on_one_lane_has_the_others_tried_soon(outcome: str, soon: bool) -> None:
    office = Office()
    office.up()
    office.sends("s2", type_="two")
    while (queue := office.stand.router._dispatcher.queues.get(lane("s2", "two"))) is None or queue.delay_s < 500.0:
        for relay in office.relays():
            office.answers(relay, "failed:no-handler")
        office.stand.wait(1.0)
    office.sends("s2", type_="one")
    office.answers(office.relay(), outcome)
    office.stand.wait(1.5)
    assert ("two" in [relay.type for relay in office.relays()]) is soon


# --- time -----------------------------------------------------------------------------------------------------------


def test_what_could_not_be_delivered_in_time_is_told_and_a_dead_letter() -> None:
    office = Office(ttl_s=20.0)
    office.sends("s2", outcome=True)
    message = office.stand.report(office.bridge).message
    office.stand.wait(19.5)
    assert office.waiting() == [b'"hi"']
    office.stand.wait(0.5)
    assert office.waiting() == []
    assert [(letter.reason, letter.body, letter.meta["server"]) for letter in office.dead()] == [
        ("expired", b'"hi"', "s2")
    ]
    assert office.stand.ask(office.bridge, "outcome", [1, message]).value == {"s2": "failed:expired"}
    assert office.up() == []


def test_a_relay_says_how_long_it_has() -> None:
    office = Office(ttl_s=100.0)
    office.up()
    office.sends("s2")
    assert "ttl_s" not in office.relay().meta
    office.sends("s2", ttl_s=30)
    assert office.relay().meta["ttl_s"] == pytest.approx(30.0)
    office.stand.heard(office.bridge)
    office.down()
    office.stand.heard(office.bridge)
    office.stand.wait(10.0)
    assert [relay.meta["ttl_s"] for relay in office.up()] == pytest.approx([90.0, 20.0])


def test_what_is_over_but_was_not_looked_at_yet_is_not_sent() -> None:
    office = Office(ttl_s=10.0)
    office.queues(b"1")
    office.stand.now += 11.0
    assert office.up() == []


def test_what_is_over_while_its_handler_works_does_not_begin_a_new_life_over_there() -> None:
    office = Office()
    office.up()
    office.stand.submit(office.bridge, "one", ttl_s=1)
    request = office.stand.request(office.one)
    office.stand.wait(3.0)
    office.stand.reply(office.one, request.token, servers("s2"))
    assert office.relay().meta["ttl_s"] == 0.0


# --- lanes and numbers ----------------------------------------------------------------------------------------------


def test_numbers_rise_and_the_floor_is_what_is_not_settled() -> None:
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


def test_each_lane_has_its_own_floor() -> None:
    office = Office()
    office.up()
    office.sends("s2", type_="one")
    office.sends("s2", type_="two")
    one, two = office.relays()
    assert one.meta["lane"][2] < two.meta["lane"][1] == two.meta["lane"][2]


def test_the_floor_stays_below_what_waits() -> None:
    office = Office()
    office.up()
    office.sends("s2", body=b"0")
    waiting = office.relay().meta["lane"][1]
    office.stand.wait(5.0)  # kept, and still on its way
    assert office.waiting() == [b"0"]
    office.sends("s2", body=b"1")
    assert office.relay().meta["lane"][2] <= waiting


def test_after_a_restart_the_same_goes_out_under_the_same_numbers_and_what_may_have_arrived_is_marked() -> None:
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


def test_what_was_never_sent_before_a_restart_is_not_marked() -> None:
    office = Office()
    office.queues(*numbered(2))
    office.restarts()
    office.queues(b"2")
    relays = office.up()
    assert (bodies_of(relays), marks_of(relays)) == (numbered(3), [False] * 3)
    assert numbers_of(relays)[2] // NUMBERS_A_LIFE == 2


# --- native servers -------------------------------------------------------------------------------------------------


def test_a_repeat_goes_behind_the_first_though_that_is_on_its_way_and_both_are_one() -> None:
    office = Office()
    stand = office.stand

    def opens() -> Link:
        bridge = stand.join("bridge", "b", {"epoch": "life"})
        stand.say(bridge, Open(1, "alice"))
        return bridge

    bridge = opens()
    stand.say(bridge, Submit(1, 1, "one", b"1", {}))
    stand.answer(office.one, servers("s2"))
    stand.restart()  # before the bridge has heard that it waits
    bridge, office.one = opens(), stand.handler("one")
    stand.wait(2.5)
    first = office.up()[0]
    stand.say(bridge, Submit(1, 1, "one", b"1", {"attempt": 2}))
    stand.answer(office.one, servers("s2"))
    assert (stand.report(bridge).recipients, office.relays()) == ({"s2": "queued"}, [])
    office.answers(first, "failed:no-handler")
    stand.wait(2.0)
    again = office.relay()
    assert (again.meta["id"], again.meta["again"], first.meta.get("again")) == (first.meta["id"], True, None)
    office.answers(again)
    assert office.waiting() == []


def test_to_a_native_server_it_waits_for_a_bridge() -> None:
    office = Office()
    stand = office.stand
    clock = stand.handler("clock", name="clock")
    stand.say(office.bridge, Goodbye(None))
    stand.emit(clock, "clock", servers("s3", body=b"1"))
    assert [entry.body for entry in stand.kept(lane("s3", "clock"))] == [b"1"]
    bridge = stand.bridge()
    stand.wait(0.5)
    forward = stand.one(bridge, Forward)
    entry = stand.kept(lane("s3", "clock"))[0]
    meta: Meta = {
        "id": entry.id, "root": entry.meta["root"], "origin": "s1", "path": ["s1/clock"], "server": "s1",
        "lane": ["store", entry.number, entry.number],
    }  # fmt: skip
    assert forward.meta.pop("ttl_s") == pytest.approx(Bounds().ttl_s - 0.5)
    assert forward.meta.pop("wait_s") == office.stand.settings.limits.relay_s
    assert forward == Forward(forward.token, "10.0.0.3:2223", "clock", b"1", meta)
    stand.say(bridge, Forwarded(forward.token, "delivered", {"reported": True}))
    assert stand.kept(lane("s3", "clock")) == []


def test_a_native_server_that_cannot_be_reached_is_tried_again_and_its_contact_counts() -> None:
    office = Office()
    stand = office.stand
    office.sends("s3")
    word: Meta = {"reported": True}
    for seconds, code, meta in (
        (0.0, "no-handler", word), (1.0, "unreachable", word), (2.0, "unreachable", {"unsent": True}),
        (4.0, "unreachable", {}), (8.0, "no-handler", word),
    ):  # fmt: skip
        stand.wait(seconds)
        forward = stand.one(office.bridge, Forward)
        assert forward.meta.get("again", False) == (seconds == 8.0), "a broken connection says nothing of what it took"
        stand.say(office.bridge, Forwarded(forward.token, f"failed:{code}", meta))
    assert office.told() == {"s3": "queued"}
    stand.submit(office.bridge, "one", session=None, scope="server", address="10.0.0.3")
    stand.wait(0.5)
    assert stand.heard_of(office.bridge, Forward) == []
    stand.wait(0.5)
    forward = stand.one(office.bridge, Forward)
    assert forward.meta["again"] is True
    stand.say(office.bridge, Forwarded(forward.token, "delivered"))
    assert stand.kept(lane("s3", "one")) == []


def test_of_many_on_a_bridge_that_goes_the_next_bridge_gets_them_soon() -> None:
    office = Office()
    stand = office.stand
    other = stand.bridge(name="other")
    for number in range(20):
        office.sends("s3", body=b"%d" % number)
    assert len(stand.heard_of(office.bridge, Forward)) == 20
    stand.say(office.bridge, Goodbye(None))
    stand.wait(1.0)
    forwards = stand.heard_of(other, Forward)
    got = [*forwards]
    while forwards:
        for forward in forwards:
            stand.say(other, Forwarded(forward.token, "delivered"))
        forwards = stand.heard_of(other, Forward)
        got += forwards
    assert [forward.body for forward in got] == numbered(20)
    assert all(forward.meta["again"] for forward in got)
    assert stand.kept(lane("s3", "one")) == []


def test_a_native_server_that_cannot_be_reached_is_said_once_and_so_is_its_return() -> None:
    office = Office()
    stand = office.stand
    lost = Notice("server-lost", {"server": "s3", "why": "nobody answers at 10.0.0.3:2223"})
    reached = Notice("server-reached", {"server": "s3"})

    def said() -> list[Notice]:
        return [notice for notice in stand.notices if notice.event.startswith("server-") and "s3" in str(notice)]

    office.sends("s3")
    seconds = 0.0
    for outcome, meta, expected in (
        ("failed:unreachable", {"unsent": True}, [lost]),
        ("failed:unreachable", {"unsent": True}, [lost]),
        ("failed:unreachable", {}, [lost]),
        ("failed:overloaded", {"unsent": True}, [lost]),  # the bridge had no room: nobody was asked
        ("failed:no-handler", {"reported": True}, [lost, reached]),  # it has no handler, but it is there
        ("failed:unreachable", {"reported": True}, [lost, reached]),  # it reports that of one further on
    ):
        stand.wait(seconds)
        stand.say(office.bridge, Forwarded(stand.one(office.bridge, Forward).token, outcome, meta))
        assert said() == expected
        seconds = max(1.0, 2 * seconds)


def test_a_native_server_that_dies_with_a_message_in_hand_is_said_and_one_that_is_merely_silent_is_not() -> None:
    office = Office()
    stand = office.stand
    office.sends("s3")
    for _ in range(2):  # in peace, as besterd ends every connection
        stand.say(office.bridge, Forwarded(stand.one(office.bridge, Forward).token, "sent"))
        stand.wait(1.0)
    assert [notice.event for notice in stand.notices if notice.event == "server-lost"] == []
    stand.say(office.bridge, Forwarded(stand.one(office.bridge, Forward).token, "failed:unreachable"))
    said = [notice for notice in stand.notices if notice.event == "server-lost"]
    assert said == [Notice("server-lost", {"server": "s3", "why": "no report came from 10.0.0.3:2223"})]


def test_a_stranger_that_cannot_be_reached_is_no_news() -> None:
    office = Office()
    stand = office.stand
    office.sends("10.9.9.9:1")
    for forward in stand.heard_of(office.bridge, Forward):
        stand.say(office.bridge, Forwarded(forward.token, "failed:unreachable", {"unsent": True}))
    assert not [notice for notice in stand.notices if notice.event == "server-lost"]


def test_a_server_lost_is_said_once() -> None:
    office = Office()
    for _ in range(3):
        office.down()
    said = [notice for notice in office.stand.notices if notice.event == "server-lost"]
    assert said == [Notice("server-lost", {"server": "s2", "why": "nothing heard"})]
