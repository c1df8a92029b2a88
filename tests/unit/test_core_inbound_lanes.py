"""Duplicates from other servers: processed once, during the first message, after its end, and over restarts."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.cases import Case, Kind
from bester.broker.core.effects import Effects, Link
from bester.broker.core.inbound_lanes import MAX_EPOCHS, MAX_NUMBERS, InboundLanes, lane_of
from bester.broker.core.settings import Limits, Route, Settings
from bester.broker.store_requests import Committed, LaneOutcomes, SaveLane
from bester.broker.wire.messages import Deliver, Goodbye, Relay, Relayed, Reply, Report, Request, Submit
from tests.unit.core_stand import START, Stand, clients


class Dock:
    """A server that has messages from s2 (over the fabric) and s3 (native), and a handler for them."""

    def __init__(self, limits: Limits | None = None) -> None:
        routes = {"s2": Route("s2", fabric="ipc:///s2"), "s3": Route("s3", native="10.0.0.3:2223")}
        settings = Settings("s1", routes=routes, hosts={"10.0.0.3": ("s3",)}, limits=limits or Limits())
        self.stand = Stand(settings, accounts=frozenset({"alice", "bob"}), now=START - 5.0)
        self.opens()
        self.stand.wait(5.0)

    def opens(self) -> None:
        self.peer = self.stand.server("s2")
        self.chat = self.stand.handler("chat", "mail")
        self.bridge = self.stand.bridge("alice")

    def restarts(self) -> None:
        self.stand.restart()
        self.opens()

    def relinks(self) -> None:
        """Let the other server come back on another link."""
        self.stand.say(self.peer, Goodbye(None))
        self.peer = self.stand.server("s2")

    def gets(self, number: int, floor: int = 0, *, epoch: str = "d2", type_: str = "chat", **meta: Any) -> int:
        """Receive a message on a lane; return its token."""
        return self.stand.relay(self.peer, type_, b"%d" % number, lane=[epoch, number, floor], **meta)

    def requests(self) -> list[bytes]:
        """Answer the request of the handler; return the request."""
        requests = self.stand.heard_of(self.chat, Request)
        for request in requests:
            self.stand.reply(self.chat, request.token)
        return [request.body for request in requests]

    def answers(self) -> list[Relayed]:
        return self.stand.heard_of(self.peer, Relayed)

    def arrived(self) -> list[SaveLane]:
        return list(self.stand.store.copy().open().lanes)


# --- in one life ----------------------------------------------------------------------------------------------------


def test_duplicate_of_a_pending_message_is_processed_once_and_both_are_answered() -> None:
    dock = Dock()
    first = dock.gets(7)
    again = dock.gets(7, again=True)
    assert dock.answers() == []
    assert dock.requests() == [b"7"]
    assert dock.answers() == [Relayed(first, "delivered"), Relayed(again, "delivered")]


def test_duplicate_of_an_ended_message_is_answered_and_not_processed() -> None:
    dock = Dock()
    first = dock.gets(7)
    assert dock.requests() == [b"7"]
    again = dock.gets(7, again=True)
    assert dock.requests() == []
    assert dock.answers() == [Relayed(first, "delivered"), Relayed(again, "delivered")]


@pytest.mark.parametrize("ended", [False, True])
def test_duplicate_under_another_number_is_found_by_its_id(ended: bool) -> None:
    """The sending server has restarted in between, and sends the message under a new number."""
    dock = Dock()
    first = dock.gets(7, id="s2/b-x/1.0.0")
    if ended:
        assert dock.requests() == [b"7"]
    again = dock.gets(9000, epoch="d2", id="s2/b-x/1.0.0", again=True)
    later = dock.gets(9001, id="s2/b-x/2.0.0")
    assert dock.requests() == ([b"9001"] if ended else [b"7", b"9001"])
    assert sorted(dock.answers()) == [Relayed(token, "delivered") for token in (first, again, later)]
    dock.restarts()
    token = dock.gets(9000, id="s2/b-x/1.0.0", again=True)
    assert (dock.requests(), dock.answers()) == ([], [Relayed(token, "delivered")])


def test_duplicate_of_a_queued_message_has_its_present_outcome() -> None:
    dock = Dock()
    dock.gets(7, id="s2/b-x/1.0.0")
    dock.stand.answer(dock.chat, clients("bob"))
    assert [each.outcome for each in dock.answers()] == ["queued"]
    bob = dock.stand.bridge("bob")
    first = dock.stand.deliver(bob)
    dock.gets(9000, id="s2/b-x/1.0.0", again=True)
    dock.stand.answer(dock.chat, clients("bob"))
    again = dock.stand.deliver(bob)
    assert (again.id, again.meta.get("redelivered")) == (first.id, True)
    assert [each.outcome for each in dock.answers()] == ["delivered"]


def test_message_is_new_after_one_of_its_id_was_refused_for_now() -> None:
    dock = Dock(Limits(max_held=1))
    dock.stand.submit(dock.bridge, "chat", b"all that may be held")
    dock.gets(7, id="s2/b-x/1.0.0")
    assert [each.outcome for each in dock.answers()] == ["failed:overloaded"]
    assert dock.requests() == [b"all that may be held"]
    dock.gets(7, id="s2/b-x/1.0.0", again=True)
    assert dock.requests() == [b"7"]


@pytest.mark.parametrize("numbers", ["same", "new", "new epochs"])
def test_repeats_of_a_pending_message_share_one_watcher_an_epoch(numbers: str) -> None:
    lanes, case = InboundLanes(Effects(), ()), Case(Kind.RELAY, Link("tcp", b"1"), 1, "i", "i")
    case.pending = 1
    for turn in range(50):
        epoch, number = ("d2", 7) if numbers == "same" else ("d2", 7 + turn) if numbers == "new" else (f"d{turn}", 7)
        known, position = lanes.find("s2", "chat", {"lane": [epoch, number, 0], "again": True})
        if position is None:
            assert known is case
        elif turn:
            lanes.join(position, case)
        else:
            lanes.add(position, case)
        assert len(case.watchers) == (min(turn + 1, MAX_EPOCHS) if numbers == "new epochs" else 1)
    assert lanes.inspect()["s2", "chat"].epochs == (MAX_EPOCHS if numbers == "new epochs" else 1)


def test_each_number_of_a_message_that_could_not_be_taken_is_new_when_it_comes_again() -> None:
    dock = Dock()
    dock.stand.say(dock.chat, Goodbye(None))
    for number in (7, 9, 8):
        dock.gets(number, id="s2/b-x/1.0.0")
    dock.gets(7, id="s2/b-x/1.0.0", again=True)
    dock.stand.wait(5.5)
    assert [answer.outcome for answer in dock.answers()] == ["failed:no-handler"] * 4
    dock.chat = dock.stand.handler("chat")
    lane = dock.stand.state.lanes["s2", "chat"]
    assert (lane.known, lane.refused) == (0, 7)
    dock.gets(7, id="s2/b-x/1.0.0", again=True)
    dock.gets(8, id="s2/b-x/1.0.0", again=True)
    assert dock.requests() == [b"7"]
    assert [answer.outcome for answer in dock.answers()] == ["delivered"] * 2


def test_duplicate_on_another_link_is_answered_there() -> None:
    dock = Dock()
    dock.gets(7)
    dock.relinks()
    again = dock.gets(7, again=True)
    assert dock.requests() == [b"7"]
    assert dock.answers() == [Relayed(again, "delivered")]


def test_duplicate_has_the_same_answer_in_full() -> None:
    dock = Dock()
    dock.gets(7)
    dock.stand.answer(dock.chat, clients("bob", "nobody"))
    dock.gets(7, again=True)
    first, again = dock.answers()
    assert first[1:] == again[1:] == ("failed:unknown-user", {"queued": 1, "carried": True})
    assert len(dock.stand.mail("bob")) == 1


def test_lanes_differ_by_type_server_and_epoch() -> None:
    dock = Dock()
    dock.gets(7)
    dock.gets(7, type_="mail")
    dock.gets(7, epoch="d3")
    lane = ["d2", 7, 0]
    dock.stand.say(dock.bridge, Submit(1, None, "chat", b"7", {"scope": "server", "address": "10.0.0.3", "lane": lane}))
    assert len(dock.requests()) == 4


def test_new_epoch_begins_its_numbers_anew() -> None:
    """The other server has a new store, or another broker."""
    dock = Dock()
    dock.gets(7, epoch="d2")
    dock.gets(7, epoch="d3")
    dock.gets(7, epoch="d3", again=True)
    assert len(dock.requests()) == 2
    d2, d3 = LaneOutcomes(0, {7: "delivered"}), {7: "delivered"}
    assert dock.arrived() == [SaveLane("s2", "chat", "d3", 0, d3, {"d2": d2})]


def test_repeats_of_the_brokers_of_one_server_are_recognized_in_turn_and_over_a_restart() -> None:
    dock = Dock()
    for number in range(4):
        for broker in ("b1", "b2"):
            dock.gets(number, epoch=broker, again=True)
    assert len(dock.requests()) == 8
    for _ in range(2):
        dock.answers()
        for number in range(4):
            for broker in ("b2", "b1"):
                dock.gets(number, epoch=broker, again=True)
        assert dock.requests() == []
        assert [answer.outcome for answer in dock.answers()] == ["delivered"] * 8
        dock.restarts()


def test_order_after_a_refusal_holds_for_each_broker_of_a_server() -> None:
    dock = Dock(Limits(max_held=1))
    dock.gets(1, epoch="b1")
    dock.gets(2, epoch="b1")
    dock.gets(1, epoch="b2")
    assert dock.requests() == [b"1"]
    dock.gets(9, epoch="b2")
    assert dock.requests() == []
    dock.gets(3, epoch="b1")
    assert dock.requests() == [], "2 of this broker comes first"
    dock.gets(1, epoch="b2", again=True)
    assert dock.requests() == [b"1"]
    dock.gets(2, epoch="b1", again=True)
    assert dock.requests() == [b"2"]
    dock.gets(3, epoch="b1")
    assert dock.requests() == [b"3"]


def test_message_refused_for_now_is_new_under_the_numbers_of_both_brokers() -> None:
    dock = Dock()
    dock.stand.say(dock.chat, Goodbye(None))
    dock.gets(7, epoch="b1", id="s2/a/1")
    dock.gets(3, epoch="b2", id="s2/a/1", again=True)
    dock.stand.wait(5.5)
    assert [answer.outcome for answer in dock.answers()] == ["failed:no-handler"] * 2
    dock.chat = dock.stand.handler("chat")
    dock.gets(7, epoch="b1", id="s2/a/1", again=True)
    assert dock.requests() == [b"7"]
    dock.gets(3, epoch="b2", id="s2/a/1", again=True)
    assert dock.requests() == []
    assert [answer.outcome for answer in dock.answers()] == ["delivered"] * 2


def test_epochs_of_one_lane_are_bounded() -> None:
    dock = Dock()
    for number in range(MAX_EPOCHS + 1):
        dock.gets(7, epoch=f"d{number}")
    dock.gets(7, epoch="d1", again=True)
    assert len(dock.requests()) == MAX_EPOCHS + 1
    (lane,) = dock.arrived()
    assert (lane.epoch, list(lane.others)) == ("d1", [f"d{number}" for number in range(2, MAX_EPOCHS + 1)])
    dock.gets(7, epoch="d0", again=True)
    assert dock.requests() == [b"7"], "forgotten"


def test_numbers_below_the_floor_are_forgotten_and_expired() -> None:
    dock = Dock()
    for number in (5, 6, 7):
        dock.gets(number)
    assert dock.requests() == [b"5", b"6", b"7"]
    dock.gets(8, 7)
    assert dock.requests() == [b"8"]
    dock.answers()
    echo = dock.gets(6, 5)
    assert dock.requests() == []
    assert dock.answers() == [Relayed(echo, "failed:expired", {"carried": True})]
    lane = dock.stand.state.lanes["s2", "chat"]
    assert (lane.known, lane.lowest, lane.floor) == (2, 7, 7)


def test_late_number_above_the_floor_is_new() -> None:
    dock = Dock()
    dock.gets(9, 5)
    dock.gets(6, 5)
    dock.gets(5, 5)
    assert dock.requests() == [b"9", b"6", b"5"]


@pytest.mark.parametrize(
    "lane",
    [
        None, 7, "d2", [], ["d2", 7], ["d2", 7, 0, 0], [5, 7, 0], ["", 7, 0], ["x" * 65, 7, 0], ["d2", "7", 0],
        ["d2", 7, None], ["d2", 7.0, 0], ["d2", True, 0], ["d2", 7, 8], ["d2", -1, -2], {"d2": 7},
    ],
)  # fmt: skip
def test_message_without_a_readable_lane_is_new(lane: object) -> None:
    assert lane_of({"lane": lane}) is None
    dock = Dock()
    for _ in range(2):
        dock.stand.relay(dock.peer, "chat", lane=lane)
    assert len(dock.requests()) == 2


def test_lane_of_an_unlisted_server_does_not_count() -> None:
    stand = Stand(Settings("s1", accept="open"))
    peer, chat = stand.server("stranger"), stand.handler("chat")
    for _ in range(2):
        stand.relay(peer, "chat", lane=["d2", 7, 0], again=True)
    assert len(stand.heard_of(chat, Request)) == 2
    assert list(stand.store.copy().open().lanes) == []


# --- refusals for now -----------------------------------------------------------------------------------------------


def test_message_refused_for_now_is_new_when_it_comes_again() -> None:
    dock = Dock(Limits(max_held=1))
    dock.gets(1)
    dock.gets(2)
    assert dock.answers()[0].outcome == "failed:overloaded"
    assert dock.requests() == [b"1"]
    dock.gets(2)
    assert dock.requests() == [b"2"]
    assert [answer.outcome for answer in dock.answers()] == ["delivered", "delivered"]


def test_message_without_a_handler_is_new_when_it_comes_again() -> None:
    dock = Dock()
    dock.stand.say(dock.chat, Goodbye(None))
    dock.gets(7)
    dock.stand.wait(5.5)
    assert [answer.outcome for answer in dock.answers()] == ["failed:no-handler"]
    dock.chat = dock.stand.handler("chat")
    dock.gets(7)
    assert dock.requests() == [b"7"]


def test_no_message_overtakes_one_refused_for_now() -> None:
    dock = Dock(Limits(max_waiting=1))
    for _ in range(100):  # the handler's whole credit
        dock.stand.relay(dock.peer, "chat")
    busy = [request.token for request in dock.stand.heard_of(dock.chat, Request)]
    dock.gets(1)  # pending
    dock.gets(2)
    assert [each.outcome for each in dock.answers()] == ["failed:overloaded"]
    for token in busy:
        dock.stand.reply(dock.chat, token)
    dock.answers()
    assert dock.requests() == [b"1"]
    dock.gets(3, 1)
    dock.gets(4, 1)
    answers = dock.answers()
    assert [each.outcome for each in answers] == ["delivered", "failed:overloaded", "failed:overloaded"]
    assert all(not each.meta for each in answers)  # both must come again
    for number in (2, 3, 4):
        dock.gets(number, 2, again=True)
    assert dock.requests() == [b"2", b"3", b"4"]


def test_message_given_up_by_its_sender_delays_no_other() -> None:
    dock = Dock(Limits(handler_wait_s=1.0))
    dock.stand.say(dock.chat, Goodbye(None))
    dock.gets(1)
    dock.stand.wait(3.0)
    assert [each.outcome for each in dock.answers()] == ["failed:no-handler"]
    dock.chat = dock.stand.handler("chat")
    dock.gets(2, 1)
    assert dock.requests() == []
    dock.gets(2, 2)
    assert dock.requests() == [b"2"]


@pytest.mark.parametrize("again", [False, True])
def test_duplicate_of_a_failed_message_fails_again(again: bool) -> None:
    dock = Dock()
    dock.gets(7, again=again)
    dock.stand.say(dock.chat, Reply(dock.stand.request(dock.chat).token, 1, [], "no"))
    dock.gets(7, again=True)
    assert dock.requests() == []
    assert [answer.outcome for answer in dock.answers()] == ["failed:handler-failed"] * 2


def test_duplicate_of_a_message_refused_by_policy_is_refused_again() -> None:
    dock = Dock()
    dock.gets(7, type_="unknown")
    dock.gets(7, type_="unknown", again=True)
    assert [answer.outcome for answer in dock.answers()] == ["failed:no-handler"] * 2


# --- over restarts --------------------------------------------------------------------------------------------------


def test_outcome_of_a_repeated_message_is_on_disk_before_the_answer() -> None:
    dock = Dock()
    dock.gets(7, 5, again=True)
    request = dock.stand.request(dock.chat)
    effects = dock.stand.router.receive_all(dock.chat, [Reply(request.token, 0, [])], dock.stand.now)
    assert not effects.messages
    assert effects.writes == [SaveLane("s2", "chat", "d2", 5, {7: "delivered"})]
    effects = dock.stand.router.on_committed(effects.writes, Committed(True), dock.stand.now)
    assert [type(message) for messages in effects.messages.values() for message in messages] == [Relayed]


def test_duplicate_over_a_restart_is_not_processed_again() -> None:
    dock = Dock()
    dock.gets(7, 7, again=True)
    dock.gets(8, 7, again=True)
    assert dock.requests() == [b"7", b"8"]
    dock.restarts()
    token = dock.gets(8, 7, again=True)
    assert dock.requests() == []
    assert dock.answers() == [Relayed(token, "delivered")]
    dock.gets(9, 7, again=True)
    assert dock.requests() == [b"9"]


def test_message_pending_at_a_restart_is_processed_again_and_marked() -> None:
    dock = Dock()
    dock.gets(7, again=True)
    dock.stand.request(dock.chat)
    dock.restarts()
    dock.gets(7, again=True)
    dock.stand.answer(dock.chat, clients("alice", "bob"))
    assert dock.stand.deliver(dock.bridge).meta["redelivered"] is True
    assert dock.stand.kept("user/bob")[0].meta["repeated"] is True


def test_message_is_on_disk_once_it_has_come_again() -> None:
    dock = Dock()
    dock.gets(7)
    assert dock.requests() == [b"7"]
    assert dock.arrived() == []
    dock.gets(7, again=True)
    assert dock.arrived() == [SaveLane("s2", "chat", "d2", 0, {7: "delivered"})]
    dock.restarts()
    dock.gets(7, again=True)
    assert dock.requests() == []


def test_outcome_is_on_disk_within_a_tick() -> None:
    dock = Dock()
    dock.gets(7)
    assert dock.requests() == [b"7"]
    assert (len(dock.answers()), dock.arrived()) == (1, [])
    dock.stand.wait(0.5)
    assert dock.arrived() == [SaveLane("s2", "chat", "d2", 0, {7: "delivered"})]
    dock.restarts()
    token = dock.gets(7, again=True)
    assert (dock.requests(), dock.answers()) == ([], [Relayed(token, "delivered")])


def test_outcome_of_a_duplicate_is_on_disk_when_the_message_ends() -> None:
    dock = Dock()
    dock.gets(7)
    dock.gets(7, again=True)
    assert dock.arrived() == [SaveLane("s2", "chat", "d2", 0, {})]
    assert dock.requests() == [b"7"]
    assert dock.arrived() == [SaveLane("s2", "chat", "d2", 0, {7: "delivered"})]


def test_floor_survives_a_restart() -> None:
    dock = Dock()
    dock.gets(7, 7, again=True)
    assert dock.requests() == [b"7"]
    dock.restarts()
    token = dock.gets(6, 6, again=True)
    assert dock.requests() == []
    assert dock.answers() == [Relayed(token, "failed:expired", {"carried": True})]


def test_message_refused_for_now_is_new_after_a_restart() -> None:
    dock = Dock()
    dock.stand.say(dock.chat, Goodbye(None))
    dock.gets(7, again=True)
    dock.stand.wait(5.5)
    assert [answer.outcome for answer in dock.answers()] == ["failed:no-handler"]
    assert dock.arrived() == [SaveLane("s2", "chat", "d2", 0, {})]
    dock.restarts()
    dock.gets(7, again=True)
    assert dock.requests() == [b"7"]


def test_lanes_go_on_in_memory_while_the_disk_is_full() -> None:
    dock = Dock()
    dock.stand.store.full = True
    dock.gets(7, again=True)
    assert dock.requests() == [b"7"]
    dock.gets(7, again=True)
    assert dock.requests() == []
    assert [answer.outcome for answer in dock.answers()] == ["delivered", "delivered"]


# --- native servers -------------------------------------------------------------------------------------------------


def submit(dock: Dock, token: int, number: int, **meta: Any) -> None:
    said = {"scope": "server", "address": "10.0.0.3", "id": "s3/x/1", "lane": ["d3", number, 0]}
    dock.stand.say(dock.bridge, Submit(token, None, "chat", b"%d" % number, said | meta))


def test_duplicate_from_a_native_server_is_processed_once_and_reported_each_time() -> None:
    dock = Dock()
    submit(dock, 1, 7)
    submit(dock, 2, 7, again=True)
    dock.stand.answer(dock.chat, clients("bob"))
    submit(dock, 3, 7, again=True)
    assert dock.stand.heard_of(dock.bridge, Report) == [
        Report(token, 0, None, "s3/x/1", {"bob": "queued"}) for token in (1, 2, 3)
    ]
    assert dock.requests() == []


@pytest.mark.parametrize(
    ("targets", "report"),
    [
        (("alice",), Report(9, 0, None, "s3/x/1", {})),
        (("bob",), Report(9, 0, None, "s3/x/1", {"0": "queued"})),
        (("nobody",), Report(9, 1, "unknown-user", "s3/x/1", {"0": "failed:unknown-user"})),
    ],
)
def test_duplicate_from_a_native_server_over_a_restart_has_the_worst_outcome(
    targets: tuple[str, ...], report: Report
) -> None:
    dock = Dock()
    submit(dock, 1, 7, again=True)
    dock.stand.answer(dock.chat, clients(*targets))
    if targets == ("alice",):
        dock.stand.deliver(dock.bridge)
    dock.restarts()
    submit(dock, 9, 7, again=True)
    assert dock.stand.report(dock.bridge) == report
    assert dock.requests() == []
    assert dock.stand.heard_of(dock.bridge, Deliver) == []


# --- bounds ---------------------------------------------------------------------------------------------------------


def test_numbers_of_one_lane_are_bounded() -> None:
    out = Effects()
    arrivals = InboundLanes(out, [])
    for number in range(MAX_NUMBERS + 10):
        known, place = arrivals.find("s2", "chat", {"lane": ["d2", number, 0]})
        assert known is None
        assert place is not None
        arrivals.add(place, Case(Kind.RELAY, Link("ipc", b"1"), number, "m", "m"))
    lane = arrivals.inspect()["s2", "chat"]
    assert (lane.known, lane.lowest) == (MAX_NUMBERS, 10)
    for number in range(10):
        _, place = arrivals.find("s2", "chat", {"lane": ["d3", number, 0]})
        assert place is not None
        arrivals.add(place, Case(Kind.RELAY, Link("ipc", b"1"), number, "m", "m"))
    lane = arrivals.inspect()["s2", "chat"]
    assert (lane.known, lane.lowest) == (10, 0)
    assert sum(len(each.outcomes) for each in arrivals._lanes["s2", "chat"].values()) == MAX_NUMBERS


def test_relay_that_is_repeated_very_often_is_answered_each_time() -> None:
    dock = Dock()
    tokens = [dock.gets(7, again=number > 0) for number in range(40)]
    assert dock.requests() == [b"7"]
    answers = dock.answers()
    assert sorted(answer.token for answer in answers) == tokens
    assert {answer.outcome for answer in answers} == {"delivered", "failed:overloaded"}
    assert answers[-1] == Relayed(tokens[-1], "delivered")


def test_relays_of_one_batch_are_taken_one_by_one() -> None:
    dock = Dock()
    batch = [Relay(token, "chat", b"1", {"lane": ["d2", 7, 7], "again": True}) for token in (1, 2)]
    dock.stand.say(dock.peer, *batch)
    assert dock.requests() == [b"1"]
    assert dock.answers() == [Relayed(1, "delivered"), Relayed(2, "delivered")]


# --- a server with several brokers ------------------------------------------------------------------------------------


def test_failure_is_the_last_word_for_the_copy_of_another_broker_as_well() -> None:
    dock = Dock()
    first = dock.gets(7, epoch="b1", id="s2/a/1")
    (request,) = dock.stand.heard_of(dock.chat, Request)
    dock.stand.reply(dock.chat, request.token, status=1)
    second = dock.gets(3, epoch="b2", id="s2/a/1", again=True)
    third = dock.gets(7, epoch="b1", id="s2/a/1", again=True)
    assert dock.requests() == []
    assert dock.answers() == [Relayed(token, "failed:handler-failed") for token in (first, second, third)]


def test_refusal_for_now_is_not_the_last_word_for_the_copy_of_another_broker() -> None:
    dock = Dock(Limits(max_held=1))
    dock.gets(6, epoch="b1", id="s2/a/0")
    dock.gets(7, epoch="b1", id="s2/a/1")
    assert dock.answers()[0].outcome == "failed:overloaded"
    assert dock.requests() == [b"6"]
    dock.gets(3, epoch="b2", id="s2/a/1", again=True)
    assert dock.requests() == [b"3"]
