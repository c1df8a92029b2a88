"""One connection's state table: every way in, every way out, and no way to break it from outside."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bester.bridge.broker_link import BrokerLink
from bester.bridge.frames import Splitter, frame
from bester.bridge.limits import Limits
from bester.bridge.session import Acknowledged, Doubted, Session, Step, refusal
from bester.bridge.states import TARGETS, TRANSITIONS, State
from bester.bridge.submissions import Submissions
from bester.bridge.window import OVERHEAD_BYTES, Question, Window
from bester.broker.wire.messages import MAX_TYPE, Close, Login, Report, Submit

LIMITS = replace(Limits(), max_frame=2000, first_frame=200, unreported=3, unreported_bytes=1000)
HELLO = frame(
    b'{"header":{"scope":"client","authentication":{"username":"alice","password":"p"}},'
    b'"payload":{"data":null,"type":"dummy"}}'
)


def message(type_: str = "chat", id_: str | None = "i", data: str = "1") -> bytes:
    return frame(f'{{"header":null,"payload":{{"type":"{type_}","data":{data},"id":{json.dumps(id_)}}}}}'.encode())


CLOSE = message("builtin", None, '{"command":{"type":"close"}}')
ASK = message("builtin", "i", '{"command":{"type":"outcome","data":"s/1"}}')
ACK = message("builtin", "i", '{"command":{"type":"ack","data":["s/1.0.0"]}}')
GARBAGE = frame(b"nonsense")
TOO_LARGE = (2001).to_bytes(4, "little")


def session(now: float = 0.0, *, in_doubt: bool = False, **limits: int) -> Session:
    bounds = replace(LIMITS, **limits)
    link = BrokerLink(bounds, count(1), lambda text: None)
    window = Window(bounds, Submissions(bounds, link, lambda: None))
    return Session(7, "127.0.0.1", bounds, count(1), window, now, bounds.first_frame, in_doubt=in_doubt)


def now_in(it: Session) -> State:
    """Return the state; asked anew each time, which a type checker cannot know of an attribute."""
    return it.state


def acks(*ids: str) -> bytes:
    return message("builtin", "i", json.dumps({"command": {"type": "ack", "data": ids}}))


def opened(*, ack: bool = False, **limits: int) -> Session:
    it = session(0.0, in_doubt=False, **limits)
    it.on_bytes(frame(HELLO[4:].replace(b'"scope"', b'"ack":true,"scope"')) if ack else HELLO, 0.0)
    assert said(it.on_login_answer(0, None, 0.0)) == ["good auth_special"]
    return it


def read(frames: list[bytes]) -> list[Any]:
    return [json.loads(body) for body in Splitter(1 << 20).feed(b"".join(frames))]


def said(step: Step) -> list[str]:
    """What a step writes, in words."""
    lines = []
    for row in read(step.write):
        payload = row["payload"]
        if payload.get("type") == "dummy":
            lines.append(f"pong {payload['id']}")
        else:
            lines.append(" ".join([row["header"]["status"], str(payload["id"]), *payload.get("reason", "").split()]))
    return lines


def good(token: int) -> Report:
    return Report(token, 0, None, f"s/{token}", {})


class TestFirstFrame:
    def test_a_client_asks_the_broker(self) -> None:
        it = session()
        assert it.on_bytes(HELLO, 0.0) == Step([], [Login(7, "alice", "p", "127.0.0.1")])
        assert now_in(it) is State.AUTHENTICATING
        assert not it.wants_input
        assert said(it.on_login_answer(0, None, 1.0)) == ["good auth_special"]
        assert now_in(it) is State.OPEN
        assert (it.is_target, it.wants_input, it.deadline) == (True, True, None)

    @pytest.mark.parametrize(("retry_ms", "retry_s"), [(1, 1), (1000, 1), (1001, 2), (64_000, 64)])
    def test_who_is_put_off_is_told_for_how_many_whole_seconds(self, retry_ms: int, retry_s: int) -> None:
        it = session()
        it.on_bytes(HELLO, 0.0)
        (answer,) = read(it.on_login_answer(1, "try-later", 0.0, retry_ms).write)
        assert answer["payload"] == {"id": "auth_special", "reason": "try-later", "retry_s": retry_s}
        assert now_in(it) is State.CLOSING

    @pytest.mark.parametrize("reason", ["authentication-failed", "overloaded", None])
    def test_refused(self, reason: str | None) -> None:
        it = session()
        it.on_bytes(HELLO + message(), 0.0)
        step = it.on_login_answer(1, reason, 0.0)
        assert said(step) == [f"bad auth_special {reason or 'authentication-failed'}"]
        assert step.send == []
        assert now_in(it) is State.CLOSING

    def test_what_came_behind_it_is_handled_after_the_answer_in_order(self) -> None:
        it = session()
        step = it.on_bytes(HELLO + message(id_="a") + message("dummy", "b"), 0.0)
        assert len(step.send) == 1
        assert it.on_bytes(message(id_="c"), 0.0) == Step([], [])
        step = it.on_login_answer(0, None, 0.0)
        assert said(step) == ["good auth_special", "pong b"]
        assert step.send == [Submit(1, 7, "chat", b"1", {}), Submit(2, 7, "chat", b"1", {})]

    def test_it_may_bring_a_message(self) -> None:
        it = session()
        body = HELLO[4:].replace(b'"data":null,"type":"dummy"', b'"data":-0,"type":"chat","id":"m"')
        assert [type(sent) for sent in it.on_bytes(frame(body) + message(id_="n"), 0.0).send] == [Login]
        step = it.on_login_answer(0, None, 0.0)
        assert [sent for sent in step.send if isinstance(sent, Submit)] == [
            Submit(1, 7, "chat", b"-0", {}),
            Submit(2, 7, "chat", b"1", {}),
        ]

    def test_the_frame_behind_a_login_may_be_larger_than_a_login(self) -> None:
        it = session()
        it.on_bytes(HELLO + message(data=json.dumps("x" * 500)), 0.0)
        assert len(it.on_login_answer(0, None, 0.0).send) == 1

    def test_a_server_sends_one_message(self) -> None:
        it = session()
        body = frame(b'{"header":{"scope":"server","origin":"s0","scop":1},"payload":{"data":1,"type":"m"}}')
        step = it.on_bytes(body + message(), 0.0)
        meta = {"origin": "s0", "scope": "server", "address": "127.0.0.1"}
        assert step == Step([], [Submit(1, None, "m", b"1", meta)])
        assert now_in(it) is State.SERVER
        assert it.on_bytes(message(), 0.0) == Step([], [])
        assert said(it.on_report(Report(1, 1, "not-allowed", None, {}), 0.0)) == ["bad None not-allowed"]
        assert now_in(it) is State.CLOSING

    def test_a_server_that_closes_without_reading_is_heard(self) -> None:
        it = session()
        it.on_bytes(frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}'), 0.0)
        it.on_peer_ended(0.0)
        assert now_in(it) is State.SERVER
        assert said(it.on_report(good(1), 0.0)) == ["good x"]
        assert now_in(it) is State.CLOSING

    @pytest.mark.parametrize("id_", ["i", None, ""])
    def test_a_ping_of_a_server_is_answered_and_the_end(self, id_: str | None) -> None:
        it = session()
        payload = {"data": None, "type": "dummy"} | ({} if id_ is None else {"id": id_})
        step = it.on_bytes(frame(json.dumps({"header": {"scope": "server"}, "payload": payload}).encode()), 0.0)
        assert read(step.write) == [{"header": {"status": "0"}, "payload": {"data": None, "id": id_, "type": "dummy"}}]
        assert (step.send, now_in(it)) == ([], State.CLOSING)

    @pytest.mark.parametrize(
        ("stream", "answer"),
        [
            (GARBAGE, "bad None malformed"),
            (frame(b"[]"), "bad None malformed"),
            ((0).to_bytes(4, "little"), "bad None malformed"),
            ((201).to_bytes(4, "little"), "bad None frame-too-large"),
            (frame(b'{"payload":{}}'), "bad auth_special malformed"),
            (frame(b'{"header":{"scope":"client"}}'), "bad auth_special authentication-failed"),
            (frame(b'{"header":{"scope":"server"},"payload":{"type":"m","id":"x"}}'), "bad x malformed"),
        ],
    )
    def test_a_bad_one_is_answered_and_the_end(self, stream: bytes, answer: str) -> None:
        it = session()
        step = it.on_bytes(stream + message(), 0.0)
        assert said(step) == [answer]
        assert step.send == []
        assert now_in(it) is State.CLOSING

    @pytest.mark.parametrize(
        ("stream", "answer", "doubted"),
        [
            (201, "bad None overloaded", True),
            (2000, "bad None overloaded", True),
            (2001, "bad None frame-too-large", False),  # a server's is refused for good as well
            (0, "bad None malformed", False),
        ],
    )
    def test_a_large_one_of_a_server_that_may_be_listed_is_not_refused_for_good(
        self, stream: int, answer: str, doubted: bool
    ) -> None:
        it = session(in_doubt=True)
        step = it.on_bytes(stream.to_bytes(4, "little"), 0.0)
        assert (said(step), step.send) == ([answer], [Doubted("127.0.0.1")] * doubted)
        assert now_in(it) is State.CLOSING

    def test_the_doubt_is_about_the_first_one_alone(self) -> None:
        it = session(in_doubt=True)
        it.on_bytes(HELLO, 0.0)
        it.on_login_answer(0, None, 0.0)
        step = it.on_bytes(message(data=json.dumps("x" * 500)) + TOO_LARGE, 0.0)
        assert [type(each) for each in step.send] == [Submit]
        assert said(it.on_report(good(1), 0.0)) == ["good i"]

    def test_it_must_come_in_time(self) -> None:
        it = session(10.0)
        it.on_bytes(HELLO[:20], 12.0)
        assert it.deadline == 15.0
        assert it.tick(14.9) == Step([], [])
        assert said(it.tick(15.0)) == ["bad auth_special timeout"]
        assert now_in(it) is State.CLOSING

    def test_a_login_nobody_answers(self) -> None:
        it = session()
        it.on_bytes(HELLO, 0.0)
        step = it.tick(LIMITS.login_s)
        assert said(step) == ["bad auth_special timeout"]
        assert step.send == [Close(7)]

    def test_a_peer_that_says_nothing_and_goes(self) -> None:
        it = session()
        assert it.on_peer_ended(0.0) == Step([], [])
        assert now_in(it) is State.CLOSING


class TestMessages:
    def test_reports_by_token(self) -> None:
        it = opened()
        it.on_bytes(message(id_="a") + message(id_=None), 0.0)
        assert said(it.on_report(good(2), 0.0)) == ["good None"]
        assert said(it.on_report(Report(1, 1, "unknown-type", None, {}), 0.0)) == ["bad a unknown-type"]
        assert said(it.on_report(good(1), 0.0)) == []
        assert it.window.tokens == []

    def test_what_needs_no_broker(self) -> None:
        it = opened()
        stream = (
            message("dummy", "d")
            + message("dummy", None)
            + message("builtin", "b", "null")
            + frame(b'{"payload":{"id":"x"}}')
        )
        step = it.on_bytes(stream, 0.0)
        assert said(step) == ["pong d", "pong None", "bad b unknown-command", "bad x malformed"]
        assert step.send == []
        assert now_in(it) is State.OPEN

    def test_what_a_client_said_of_its_message_goes_along(self) -> None:
        it = opened()
        (submit,) = it.on_bytes(frame(b'{"payload":{"type":"t","data":1,"dedup":"d","resent":true}}'), 0.0).send
        assert submit == Submit(1, 7, "t", b"1", {"dedup": "d", "resent": True})
        step = it.on_bytes(frame(b'{"payload":{"type":"t","data":1,"id":"i","dedup":""}}'), 0.0)
        assert (said(step), step.send) == (["bad i malformed"], [])
        assert now_in(it) is State.OPEN

    def test_of_a_server_only_the_header_counts(self) -> None:
        it = session()
        body = frame(b'{"header":{"scope":"server","again":true},"payload":{"type":"t","data":1,"dedup":"d"}}')
        assert it.on_bytes(body, 0.0).send == [
            Submit(1, None, "t", b"1", {"again": True, "scope": "server", "address": "127.0.0.1"})
        ]

    def test_words_to_the_server_itself_are_taken_in_order(self) -> None:
        it = opened()
        ack = message("builtin", None, '{"command":{"type":"ack","data":["a","b"]}}')
        ask = message("builtin", "q", '{"command":{"type":"outcome","data":"s/1"}}')
        step = it.on_bytes(message() + ack + ask + message(), 0.0)
        assert step == Step(
            [],
            [
                Submit(1, 7, "chat", b"1", {}),
                Acknowledged(["a", "b"]),
                Question(2, 7, "s/1"),
                Submit(3, 7, "chat", b"1", {}),
            ],
        )
        assert it.window.tokens == [1, 2, 3]
        assert it.window.submitted == [1, 3]
        assert not it.on_answer(1_000, None, 0.0).write
        assert read(it.on_answer(2, {"bob": "queued"}, 0.0).write) == [
            {
                "header": {"status": "0"},
                "payload": {"data": {"message": "s/1", "recipients": {"bob": "queued"}}, "id": "q", "type": "builtin"},
            }
        ]
        assert it.window.tokens == [1, 3]

    def test_too_many_unreported_wait_their_turn_and_stop_the_reading(self) -> None:
        it = opened()
        step = it.on_bytes(b"".join(message(id_=str(n)) for n in range(6)), 0.0)
        assert len(step.send) == 3
        assert not it.wants_input
        step = it.on_report(good(1), 0.0)
        assert (said(step), len(step.send)) == (["good 0"], 1)
        assert not it.wants_input
        assert len(it.on_report(good(3), 0.0).send) == 1
        assert len(it.on_report(good(2), 0.0).send) == 1
        assert it.wants_input

    def test_large_ones_wait_by_their_size(self) -> None:
        it = opened()
        step = it.on_bytes(message(data=json.dumps("x" * 1200)) + message(id_="b"), 0.0)
        assert len(step.send) == 1
        assert not it.wants_input
        assert len(it.on_report(good(1), 0.0).send) == 1
        assert it.wants_input

    def test_a_small_one_that_ends_makes_no_room_beside_a_large_one(self) -> None:
        it = opened()
        large = message(data=json.dumps("x" * 1200))
        assert len(it.on_bytes(ASK + message() + large + message(id_="c"), 0.0).send) == 3
        assert (it.on_answer(1, None, 0.0).send, it.on_report(good(2), 0.0).send) == ([], [])
        assert not it.wants_input
        assert len(it.on_report(good(3), 0.0).send) == 1

    def test_an_acknowledgement_is_heard_past_a_full_window(self) -> None:
        it = opened(ack=True)
        step = it.on_bytes(
            b"".join(message(id_=str(n)) for n in range(5)) + acks("a") + message() + acks("b", "c"), 0.0
        )
        assert [each.token for each in step.send if isinstance(each, Submit)] == [1, 2, 3]
        assert [each.ids for each in step.send if isinstance(each, Acknowledged)] == [["a"], ["b", "c"]]
        assert it.wants_input, "more of them may come"
        more = it.on_report(good(1), 0.0)
        assert [each.token for each in more.send if isinstance(each, Submit)] == [4]

    def test_only_so_much_is_looked_through_for_acknowledgements(self) -> None:
        it = opened(ack=True, ahead_bytes=4 * OVERHEAD_BYTES)
        reads: list[bool] = []
        for more in (5, 2):
            it.on_bytes(message() * more, 0.0)
            reads.append(it.wants_input)
        for token in range(1, 5):
            it.on_report(good(token), 0.0)
        reads.append(it.wants_input)
        assert (reads, len(it.window)) == ([True, False, True], 3)

    def test_who_acknowledges_nothing_is_not_read_past_a_full_window(self) -> None:
        it = opened()
        step = it.on_bytes(b"".join(message(id_=str(n)) for n in range(4)) + acks("a"), 0.0)
        assert not [each for each in step.send if isinstance(each, Acknowledged)]
        assert not it.wants_input

    def test_more_acknowledgements_than_can_be_waited_for_are_none(self) -> None:
        it = opened(ack=True, unacked=3)
        step = it.on_bytes(acks("a", "b", "c") + acks("a", "b", "c", "d"), 0.0)
        assert (said(step), step.send) == (["bad i malformed"], [Acknowledged(["a", "b", "c"])])

    @pytest.mark.parametrize("end", ["answered", "refused"])
    def test_only_so_many_questions_at_once(self, end: str) -> None:
        it = opened(unreported=100, unreported_bytes=100_000, questions=2)
        assert len(it.on_bytes(ASK * 3 + message(), 0.0).send) == 2
        assert not it.wants_input
        step = it.on_answer(1, None, 0.0) if end == "answered" else it.on_report(refusal(1, "unreachable"), 0.0)
        assert [type(each) for each in step.send] == [Question]
        it.on_answer(2, None, 0.0)
        assert (it.window.tokens, it.wants_input) == ([3, 4], True)

    def test_a_type_no_handler_can_have_is_answered_here(self) -> None:
        it = opened()
        step = it.on_bytes(message("x" * (MAX_TYPE + 1)) + message("x" * MAX_TYPE, "k"), 0.0)
        assert said(step) == ["bad i unknown-type"]
        assert [each.type for each in step.send if isinstance(each, Submit)] == ["x" * MAX_TYPE]
        assert (len(it.window), now_in(it)) == (1, State.OPEN)

    def test_of_another_server_too(self) -> None:
        it = session()
        first = f'{{"header":{{"scope":"server"}},"payload":{{"data":1,"type":"{"x" * (MAX_TYPE + 1)}","id":"i"}}}}'
        step = it.on_bytes(frame(first.encode()), 0.0)
        assert (said(step), step.send, now_in(it)) == (["bad i unknown-type"], [], State.CLOSING)

    @pytest.mark.parametrize("frame_", [message("x" * 100), ASK])
    def test_what_a_message_costs_beside_its_data_counts_too(self, frame_: bytes) -> None:
        room = 3 * OVERHEAD_BYTES
        it = session(unreported=100, unreported_bytes=room)
        it.on_bytes(HELLO, 0.0)
        it.on_login_answer(0, None, 0.0)
        assert len(it.on_bytes(frame_ * 10, 0.0).send) == 3
        for token in it.window.tokens:
            if frame_ == ASK:
                it.on_answer(token, None, 0.0)
            else:
                it.on_report(good(token), 0.0)
        assert len(it.window) == 3

    def test_and_a_long_type_more_than_a_short_one(self) -> None:
        it = session(unreported=100, unreported_bytes=1000)
        it.on_bytes(HELLO, 0.0)
        it.on_login_answer(0, None, 0.0)
        assert len(it.on_bytes(message("x" * 100) * 5, 0.0).send) == 3  # 356 and its own each, where short ones are 4


class TestEnds:
    @pytest.mark.parametrize(
        ("stream", "answer"),
        [(GARBAGE, ["bad None malformed"]), (TOO_LARGE, ["bad None frame-too-large"]), (CLOSE, [])],
    )
    def test_the_last_frame_is_answered_at_once_and_what_is_outstanding_before_the_end(
        self, stream: bytes, answer: list[str]
    ) -> None:
        it = opened()
        it.on_bytes(message(id_="a"), 0.0)
        step = it.on_bytes(stream + message(id_="b"), 0.0)
        assert (said(step), step.send) == (answer, [])
        assert now_in(it) is State.DRAINING
        assert it.is_target
        assert it.on_bytes(message(), 0.0) == Step([], [])
        step = it.on_report(good(1), 0.0)
        assert said(step) == ["good a"]
        assert step.send == [Close(7)]
        assert now_in(it) is State.CLOSING

    @pytest.mark.parametrize("stream", [GARBAGE, TOO_LARGE, CLOSE])
    def test_with_nothing_outstanding_it_is_over(self, stream: bytes) -> None:
        it = opened()
        assert it.on_bytes(stream, 0.0).send == [Close(7)]
        assert now_in(it) is State.CLOSING

    def test_one_who_only_stops_sending_gets_his_reports(self) -> None:
        it = opened()
        it.on_bytes(b"".join(message(id_=str(n)) for n in range(5)), 0.0)
        it.on_peer_ended(0.0)
        assert now_in(it) is State.OPEN  # two are still held
        reports = [line for token in range(1, 6) for line in said(it.on_report(good(token), 0.0))]
        assert reports == [f"good {n}" for n in range(5)]
        assert now_in(it) is State.CLOSING

    def test_all_in_one_go_with_the_end_before_the_login_is_answered(self) -> None:
        it = session()
        it.on_bytes(HELLO + message(id_="a"), 0.0)
        it.on_peer_ended(0.0)
        assert len(it.on_login_answer(0, None, 0.0).send) == 1
        assert now_in(it) is State.DRAINING
        assert said(it.on_report(good(1), 0.0)) == ["good a"]
        assert now_in(it) is State.CLOSING

    def test_a_broken_frame_behind_the_login_comes_after_what_is_before_it(self) -> None:
        it = session()
        it.on_bytes(HELLO + message(id_="a") + TOO_LARGE, 0.0)
        step = it.on_login_answer(0, None, 0.0)
        assert said(step) == ["good auth_special", "bad None frame-too-large"]
        assert len(step.send) == 1

    def test_draining_is_bounded(self) -> None:
        it = opened()
        it.on_bytes(message(id_="a") + CLOSE, 5.0)
        assert it.deadline == 5.0 + LIMITS.drain_s
        step = it.tick(it.deadline)
        assert (said(step), step.send) == (["bad a timeout"], [Close(7)])
        assert now_in(it) is State.CLOSING

    def test_the_last_word_has_time_to_leave_and_then_to_be_read(self) -> None:
        it = opened()
        it.on_bytes(CLOSE, 5.0)
        assert it.deadline == 5.0 + LIMITS.drain_s
        it.on_all_sent(6.0)
        assert it.deadline == 6.0 + LIMITS.linger_s
        it.tick(it.deadline)
        assert now_in(it) is State.CLOSED

    def test_lost(self) -> None:
        it = opened()
        it.on_bytes(message(), 0.0)
        assert it.on_connection_lost() == Step([], [Close(7)])
        assert now_in(it) is State.CLOSED
        assert it.window.tokens == []
        assert it.on_report(good(1), 0.0) == Step([], [])

    def test_the_bridge_waits_no_longer(self) -> None:
        it = opened()
        ask = message("builtin", "q", '{"command":{"type":"outcome","data":"s/1"}}')
        it.on_bytes(ask + b"".join(message(id_=str(n)) for n in range(5)), 0.0)
        it.shut_down(0.0)
        step = it.give_up("unreachable", 1.0)
        assert said(step) == [f"bad {id_} unreachable" for id_ in "q01234"]
        assert step.send == [Close(7)]
        assert now_in(it) is State.CLOSING
        assert it.give_up("unreachable", 1.0) == Step([], [])

    def test_the_bridge_ends(self) -> None:
        it = opened()
        it.on_bytes(message(id_="a"), 0.0)
        it.shut_down(0.0)
        assert now_in(it) is State.DRAINING
        asking = session()
        asking.on_bytes(HELLO, 0.0)
        assert said(asking.shut_down(0.0)) == ["bad auth_special unreachable"]


EVENTS = st.one_of(
    st.tuples(
        st.just("received"),
        st.sampled_from(
            [HELLO, message(), message("dummy"), CLOSE, ASK, ACK, GARBAGE, TOO_LARGE, HELLO[:9], b"\0" * 4]
        ),
    ),
    st.tuples(st.just("ended"), st.none()),
    st.tuples(st.just("logged_in"), st.integers(0, 1)),
    st.tuples(st.just("reported"), st.integers(1, 5)),
    st.tuples(st.just("tick"), st.sampled_from([0.1, 5.0, 60.0])),
    st.tuples(st.just("last_word_left"), st.none()),
    st.tuples(st.just("answered"), st.integers(1, 5)),
    st.tuples(st.just("shut_down"), st.none()),
    st.tuples(st.just("give_up"), st.none()),
    st.tuples(st.just("lost"), st.none()),
)


@given(st.lists(EVENTS, max_size=40))
@settings(max_examples=300)
def test_no_order_of_events_breaks_it(events: list[tuple[str, Any]]) -> None:
    it = session()
    now = 0.0
    submitted: list[int] = []
    reported: list[str] = []
    waiting: list[int] = []
    logins = closes = auth_answers = unheard = 0
    for name, value in events:
        before = it.state
        match name:
            case "received":
                step = it.on_bytes(value, now)
            case "logged_in":
                step = it.on_login_answer(value, None, now)
            case "reported":
                step = it.on_report(good(value), now)
            case "answered":
                step = it.on_answer(value, None, now)
            case "give_up":
                step = it.give_up("unreachable", now)
            case "tick":
                now += value
                step = it.tick(now)
            case "last_word_left":
                it.on_all_sent(now)
                step = Step([], [])
            case "lost":
                step = it.on_connection_lost()
            case "ended":
                step = it.on_peer_ended(now)
            case _:
                step = it.shut_down(now)
        assert before is it.state or _reachable(before, it.state)
        assert before is not State.CLOSED or step == Step([], [])
        lines = said(step)
        auth_answers += sum("auth_special" in line for line in lines)
        reported += [line for line in lines if line in ("good i", "1 i", "bad i timeout", "bad i unreachable")]
        submitted += [sent.token for sent in step.send if isinstance(sent, Submit | Question)]
        refused = lines.count("bad i unreachable") if name == "give_up" else 0
        unheard += max(refused - len(waiting), 0)  # what came and had no turn: refused, and never submitted
        waiting = it.window.tokens
        logins += sum(isinstance(sent, Login) for sent in step.send)
        closes += sum(isinstance(sent, Close) for sent in step.send)
        assert not lines or auth_answers or before is State.NEW  # nothing comes before the auth answer
        assert len(it.window) <= LIMITS.unreported
    assert auth_answers <= 1
    assert logins <= 1
    assert closes <= logins
    assert submitted == sorted(set(submitted))
    if it.state is not State.CLOSED:
        assert len(reported) + len(it.window) == len(submitted) + unheard
    assert it.is_target is (it.state in TARGETS)


def _reachable(start: State, end: State) -> bool:
    seen, edge = {start}, {start}
    while edge:
        edge = {to for (source, _), to in TRANSITIONS.items() if source in edge} - seen
        seen |= edge
    return end in seen


def test_every_state_can_end() -> None:
    for state in State:
        assert state is State.CLOSED or _reachable(state, State.CLOSED)
        assert state in (State.NEW, State.CLOSED) or _reachable(State.NEW, state)


def test_the_readme_shows_the_table() -> None:
    readme = Path(__file__).parents[2] / "bridge" / "README.md"
    section = readme.read_text(encoding="utf-8").partition("## A session's states\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+)(\*?) \| (\w+) \| (\w+) \|", section, re.MULTILINE)
    assert {(State(start), event): State(end) for start, _, event, end in rows if start != "in"} == TRANSITIONS
    assert {State(start) for start, star, _, _ in rows if star} == TARGETS


def test_page_lists_every_field_of_a_session() -> None:
    page = (Path(__file__).parents[2] / "docs" / "session.md").read_text(encoding="utf-8")
    section = page.partition("## Session (bridge)\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(Session.__slots__)
