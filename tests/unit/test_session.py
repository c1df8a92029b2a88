"""The state table of a session: every transition, and no order of events that breaks the table."""

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
from bester.bridge.senders import Sender
from bester.bridge.session import Session
from bester.bridge.states import TARGETS, TRANSITIONS, State
from bester.bridge.steps import Acknowledged, Doubted, Step, refusal
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


def new_session(now: float = 0.0, *, in_doubt: bool = False, **limits: int) -> Session:
    bounds = replace(LIMITS, **limits)
    link = BrokerLink(bounds, count(1), lambda text: None)
    window = Window(bounds, Submissions(bounds, link, lambda: None), Sender(("user", "alice")))
    return Session(7, "127.0.0.1", bounds, count(1), window, now, bounds.first_frame, in_doubt=in_doubt)


def now_in(session: Session) -> State:
    """Return the state, read again each time: a type checker believes that an attribute stays."""
    return session.state


def acks(*ids: str) -> bytes:
    return message("builtin", "i", json.dumps({"command": {"type": "ack", "data": ids}}))


def open_session(*, ack: bool = False, **limits: int) -> Session:
    session = new_session(0.0, in_doubt=False, **limits)
    session.on_bytes(frame(HELLO[4:].replace(b'"scope"', b'"ack":true,"scope"')) if ack else HELLO, 0.0)
    assert text_of(session.on_login_answer(0, None, 0.0)) == ["good auth_special"]
    return session


def read(frames: list[bytes]) -> list[Any]:
    return [json.loads(body) for body in Splitter(1 << 20).feed(b"".join(frames))]


def text_of(step: Step) -> list[str]:
    """Return the frames of a step as text."""
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
    def test_login_asks_the_broker(self) -> None:
        session = new_session()
        assert session.on_bytes(HELLO, 0.0) == Step([], [Login(7, "alice", "p", "127.0.0.1")])
        assert now_in(session) is State.AUTHENTICATING
        assert not session.wants_input
        assert text_of(session.on_login_answer(0, None, 1.0)) == ["good auth_special"]
        assert now_in(session) is State.OPEN
        assert (session.is_target, session.wants_input, session.deadline) == (True, True, None)

    @pytest.mark.parametrize(("retry_ms", "retry_s"), [(1, 1), (1000, 1), (1001, 2), (64_000, 64)])
    def test_try_later_names_whole_seconds(self, retry_ms: int, retry_s: int) -> None:
        session = new_session()
        session.on_bytes(HELLO, 0.0)
        (answer,) = read(session.on_login_answer(1, "try-later", 0.0, retry_ms).write)
        assert answer["payload"] == {"id": "auth_special", "reason": "try-later", "retry_s": retry_s}
        assert now_in(session) is State.CLOSING

    @pytest.mark.parametrize("reason", ["authentication-failed", "overloaded", None])
    def test_refused_login_closes_the_session(self, reason: str | None) -> None:
        session = new_session()
        session.on_bytes(HELLO + message(), 0.0)
        step = session.on_login_answer(1, reason, 0.0)
        assert text_of(step) == [f"bad auth_special {reason or 'authentication-failed'}"]
        assert step.send == []
        assert now_in(session) is State.CLOSING

    def test_frames_behind_a_login_are_handled_in_order_after_the_answer(self) -> None:
        session = new_session()
        step = session.on_bytes(HELLO + message(id_="a") + message("dummy", "b"), 0.0)
        assert len(step.send) == 1
        assert session.on_bytes(message(id_="c"), 0.0) == Step([], [])
        step = session.on_login_answer(0, None, 0.0)
        assert text_of(step) == ["good auth_special", "pong b"]
        assert step.send == [Submit(1, 7, "chat", b"1", {}), Submit(2, 7, "chat", b"1", {})]

    def test_login_may_carry_a_message(self) -> None:
        session = new_session()
        body = HELLO[4:].replace(b'"data":null,"type":"dummy"', b'"data":-0,"type":"chat","id":"m"')
        assert [type(sent) for sent in session.on_bytes(frame(body) + message(id_="n"), 0.0).send] == [Login]
        step = session.on_login_answer(0, None, 0.0)
        assert [sent for sent in step.send if isinstance(sent, Submit)] == [
            Submit(1, 7, "chat", b"-0", {}),
            Submit(2, 7, "chat", b"1", {}),
        ]

    def test_frame_behind_a_login_may_be_larger_than_a_login(self) -> None:
        session = new_session()
        session.on_bytes(HELLO + message(data=json.dumps("x" * 500)), 0.0)
        assert len(session.on_login_answer(0, None, 0.0).send) == 1

    def test_server_sends_one_message(self) -> None:
        session = new_session()
        body = frame(b'{"header":{"scope":"server","origin":"s0","scop":1},"payload":{"data":1,"type":"m"}}')
        step = session.on_bytes(body + message(), 0.0)
        meta = {"origin": "s0", "scope": "server", "address": "127.0.0.1"}
        assert step == Step([], [Submit(1, None, "m", b"1", meta)])
        assert now_in(session) is State.SERVER
        assert session.on_bytes(message(), 0.0) == Step([], [])
        assert text_of(session.on_report(Report(1, 1, "not-allowed", None, {}), 0.0)) == ["bad None not-allowed"]
        assert now_in(session) is State.CLOSING

    def test_message_of_a_server_that_closes_is_submitted(self) -> None:
        session = new_session()
        session.on_bytes(frame(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"m","id":"x"}}'), 0.0)
        session.on_peer_ended(0.0)
        assert now_in(session) is State.SERVER
        assert text_of(session.on_report(good(1), 0.0)) == ["good x"]
        assert now_in(session) is State.CLOSING

    @pytest.mark.parametrize("id_", ["i", None, ""])
    def test_ping_of_a_server_is_answered_and_closes(self, id_: str | None) -> None:
        session = new_session()
        payload = {"data": None, "type": "dummy"} | ({} if id_ is None else {"id": id_})
        step = session.on_bytes(frame(json.dumps({"header": {"scope": "server"}, "payload": payload}).encode()), 0.0)
        assert read(step.write) == [{"header": {"status": "0"}, "payload": {"data": None, "id": id_, "type": "dummy"}}]
        assert (step.send, now_in(session)) == ([], State.CLOSING)

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
    def test_bad_first_frame_is_answered_and_closes(self, stream: bytes, answer: str) -> None:
        session = new_session()
        step = session.on_bytes(stream + message(), 0.0)
        assert text_of(step) == [answer]
        assert step.send == []
        assert now_in(session) is State.CLOSING

    @pytest.mark.parametrize(
        ("stream", "answer", "doubted"),
        [
            (201, "bad None overloaded", True),
            (2000, "bad None overloaded", True),
            (2001, "bad None frame-too-large", False),  # refused for good of a server as well
            (0, "bad None malformed", False),
        ],
    )
    def test_large_first_frame_of_a_doubtful_server_is_not_refused_for_good(
        self, stream: int, answer: str, doubted: bool
    ) -> None:
        session = new_session(in_doubt=True)
        step = session.on_bytes(stream.to_bytes(4, "little"), 0.0)
        assert (text_of(step), step.send) == ([answer], [Doubted("127.0.0.1")] * doubted)
        assert now_in(session) is State.CLOSING

    def test_doubt_ends_with_the_first_frame(self) -> None:
        session = new_session(in_doubt=True)
        session.on_bytes(HELLO, 0.0)
        session.on_login_answer(0, None, 0.0)
        step = session.on_bytes(message(data=json.dumps("x" * 500)) + TOO_LARGE, 0.0)
        assert [type(each) for each in step.send] == [Submit]
        assert text_of(session.on_report(good(1), 0.0)) == ["good i"]

    def test_first_frame_times_out(self) -> None:
        session = new_session(10.0)
        session.on_bytes(HELLO[:20], 12.0)
        assert session.deadline == 15.0
        assert session.tick(14.9) == Step([], [])
        assert text_of(session.tick(15.0)) == ["bad auth_special timeout"]
        assert now_in(session) is State.CLOSING

    def test_unanswered_login_times_out(self) -> None:
        session = new_session()
        session.on_bytes(HELLO, 0.0)
        step = session.tick(LIMITS.login_s)
        assert text_of(step) == ["bad auth_special timeout"]
        assert step.send == [Close(7)]

    def test_peer_that_ends_without_a_frame_closes(self) -> None:
        session = new_session()
        assert session.on_peer_ended(0.0) == Step([], [])
        assert now_in(session) is State.CLOSING


class TestMessages:
    def test_report_goes_to_the_message_with_its_token(self) -> None:
        session = open_session()
        session.on_bytes(message(id_="a") + message(id_=None), 0.0)
        assert text_of(session.on_report(good(2), 0.0)) == ["good None"]
        assert text_of(session.on_report(Report(1, 1, "unknown-type", None, {}), 0.0)) == ["bad a unknown-type"]
        assert text_of(session.on_report(good(1), 0.0)) == []
        assert session.window.tokens == []

    def test_pings_and_faults_are_answered_without_the_broker(self) -> None:
        session = open_session()
        stream = (
            message("dummy", "d")
            + message("dummy", None)
            + message("builtin", "b", "null")
            + frame(b'{"payload":{"id":"x"}}')
        )
        step = session.on_bytes(stream, 0.0)
        assert text_of(step) == ["pong d", "pong None", "bad b unknown-command", "bad x malformed"]
        assert step.send == []
        assert now_in(session) is State.OPEN

    def test_options_of_a_message_are_submitted(self) -> None:
        session = open_session()
        (submit,) = session.on_bytes(frame(b'{"payload":{"type":"t","data":1,"dedup":"d","resent":true}}'), 0.0).send
        assert submit == Submit(1, 7, "t", b"1", {"dedup": "d", "resent": True})
        step = session.on_bytes(frame(b'{"payload":{"type":"t","data":1,"id":"i","dedup":""}}'), 0.0)
        assert (text_of(step), step.send) == (["bad i malformed"], [])
        assert now_in(session) is State.OPEN

    def test_options_of_a_server_come_from_the_header(self) -> None:
        session = new_session()
        body = frame(b'{"header":{"scope":"server","again":true},"payload":{"type":"t","data":1,"dedup":"d"}}')
        assert session.on_bytes(body, 0.0).send == [
            Submit(1, None, "t", b"1", {"again": True, "scope": "server", "address": "127.0.0.1"})
        ]

    def test_commands_to_the_server_keep_their_order(self) -> None:
        session = open_session()
        ack = message("builtin", None, '{"command":{"type":"ack","data":["a","b"]}}')
        ask = message("builtin", "q", '{"command":{"type":"outcome","data":"s/1"}}')
        step = session.on_bytes(message() + ack + ask + message(), 0.0)
        assert step == Step(
            [],
            [
                Submit(1, 7, "chat", b"1", {}),
                Acknowledged(["a", "b"]),
                Question(2, 7, "s/1"),
                Submit(3, 7, "chat", b"1", {}),
            ],
        )
        assert session.window.tokens == [1, 2, 3]
        assert session.window.submitted == [1, 3]
        assert not session.on_answer(1_000, None, 0.0).write
        assert read(session.on_answer(2, {"bob": "queued"}, 0.0).write) == [
            {
                "header": {"status": "0"},
                "payload": {"data": {"message": "s/1", "recipients": {"bob": "queued"}}, "id": "q", "type": "builtin"},
            }
        ]
        assert session.window.tokens == [1, 3]

    def test_full_window_holds_frames_and_pauses_reading(self) -> None:
        session = open_session()
        step = session.on_bytes(b"".join(message(id_=str(n)) for n in range(6)), 0.0)
        assert len(step.send) == 3
        assert not session.wants_input
        step = session.on_report(good(1), 0.0)
        assert (text_of(step), len(step.send)) == (["good 0"], 1)
        assert not session.wants_input
        assert len(session.on_report(good(3), 0.0).send) == 1
        assert len(session.on_report(good(2), 0.0).send) == 1
        assert session.wants_input

    def test_window_is_full_by_size(self) -> None:
        session = open_session()
        step = session.on_bytes(message(data=json.dumps("x" * 1200)) + message(id_="b"), 0.0)
        assert len(step.send) == 1
        assert not session.wants_input
        assert len(session.on_report(good(1), 0.0).send) == 1
        assert session.wants_input

    def test_report_on_a_small_message_makes_no_room_beside_a_large_one(self) -> None:
        session = open_session()
        large = message(data=json.dumps("x" * 1200))
        assert len(session.on_bytes(ASK + message() + large + message(id_="c"), 0.0).send) == 3
        assert (session.on_answer(1, None, 0.0).send, session.on_report(good(2), 0.0).send) == ([], [])
        assert not session.wants_input
        assert len(session.on_report(good(3), 0.0).send) == 1

    def test_acknowledgement_passes_a_full_window(self) -> None:
        session = open_session(ack=True)
        step = session.on_bytes(
            b"".join(message(id_=str(n)) for n in range(5)) + acks("a") + message() + acks("b", "c"), 0.0
        )
        assert [each.token for each in step.send if isinstance(each, Submit)] == [1, 2, 3]
        assert [each.ids for each in step.send if isinstance(each, Acknowledged)] == [["a"], ["b", "c"]]
        assert session.wants_input, "more of them may come"
        more = session.on_report(good(1), 0.0)
        assert [each.token for each in more.send if isinstance(each, Submit)] == [4]

    def test_search_for_acknowledgements_is_bounded(self) -> None:
        session = open_session(ack=True, ahead_bytes=4 * OVERHEAD_BYTES)
        reads: list[bool] = []
        for more in (5, 2):
            session.on_bytes(message() * more, 0.0)
            reads.append(session.wants_input)
        for token in range(1, 5):
            session.on_report(good(token), 0.0)
        reads.append(session.wants_input)
        assert (reads, len(session.window)) == ([True, False, True], 3)

    def test_client_without_acknowledgements_is_not_read_past_a_full_window(self) -> None:
        session = open_session()
        step = session.on_bytes(b"".join(message(id_=str(n)) for n in range(4)) + acks("a"), 0.0)
        assert not [each for each in step.send if isinstance(each, Acknowledged)]
        assert not session.wants_input

    def test_too_long_a_list_of_acknowledgements_is_malformed(self) -> None:
        session = open_session(ack=True, unacked=3)
        step = session.on_bytes(acks("a", "b", "c") + acks("a", "b", "c", "d"), 0.0)
        assert (text_of(step), step.send) == (["bad i malformed"], [Acknowledged(["a", "b", "c"])])

    @pytest.mark.parametrize("end", ["answered", "refused"])
    def test_unanswered_questions_are_bounded(self, end: str) -> None:
        session = open_session(unreported=100, unreported_bytes=100_000, questions=2)
        assert len(session.on_bytes(ASK * 3 + message(), 0.0).send) == 2
        assert not session.wants_input
        step = (
            session.on_answer(1, None, 0.0) if end == "answered" else session.on_report(refusal(1, "unreachable"), 0.0)
        )
        assert [type(each) for each in step.send] == [Question]
        session.on_answer(2, None, 0.0)
        assert (session.window.tokens, session.wants_input) == ([3, 4], True)

    def test_too_long_a_type_is_unknown(self) -> None:
        session = open_session()
        step = session.on_bytes(message("x" * (MAX_TYPE + 1)) + message("x" * MAX_TYPE, "k"), 0.0)
        assert text_of(step) == ["bad i unknown-type"]
        assert [each.type for each in step.send if isinstance(each, Submit)] == ["x" * MAX_TYPE]
        assert (len(session.window), now_in(session)) == (1, State.OPEN)

    def test_too_long_a_type_of_a_server_is_unknown(self) -> None:
        session = new_session()
        first = f'{{"header":{{"scope":"server"}},"payload":{{"data":1,"type":"{"x" * (MAX_TYPE + 1)}","id":"i"}}}}'
        step = session.on_bytes(frame(first.encode()), 0.0)
        assert (text_of(step), step.send, now_in(session)) == (["bad i unknown-type"], [], State.CLOSING)

    @pytest.mark.parametrize("frame_", [message("x" * 100), ASK])
    def test_overhead_counts_in_the_window(self, frame_: bytes) -> None:
        room = 3 * OVERHEAD_BYTES
        session = new_session(unreported=100, unreported_bytes=room)
        session.on_bytes(HELLO, 0.0)
        session.on_login_answer(0, None, 0.0)
        assert len(session.on_bytes(frame_ * 10, 0.0).send) == 3
        for token in session.window.tokens:
            if frame_ == ASK:
                session.on_answer(token, None, 0.0)
            else:
                session.on_report(good(token), 0.0)
        assert len(session.window) == 3

    def test_type_counts_in_the_window(self) -> None:
        session = new_session(unreported=100, unreported_bytes=1000)
        session.on_bytes(HELLO, 0.0)
        session.on_login_answer(0, None, 0.0)
        assert len(session.on_bytes(message("x" * 100) * 5, 0.0).send) == 3  # each counts 356 and its own size


class TestEnds:
    @pytest.mark.parametrize(
        ("stream", "answer"),
        [(GARBAGE, ["bad None malformed"]), (TOO_LARGE, ["bad None frame-too-large"]), (CLOSE, [])],
    )
    def test_session_drains_after_its_last_frame(self, stream: bytes, answer: list[str]) -> None:
        session = open_session()
        session.on_bytes(message(id_="a"), 0.0)
        step = session.on_bytes(stream + message(id_="b"), 0.0)
        assert (text_of(step), step.send) == (answer, [])
        assert now_in(session) is State.DRAINING
        assert session.is_target
        assert session.on_bytes(message(), 0.0) == Step([], [])
        step = session.on_report(good(1), 0.0)
        assert text_of(step) == ["good a"]
        assert step.send == [Close(7)]
        assert now_in(session) is State.CLOSING

    @pytest.mark.parametrize("stream", [GARBAGE, TOO_LARGE, CLOSE])
    def test_session_without_unreported_messages_closes_at_once(self, stream: bytes) -> None:
        session = open_session()
        assert session.on_bytes(stream, 0.0).send == [Close(7)]
        assert now_in(session) is State.CLOSING

    def test_half_closed_client_gets_its_reports(self) -> None:
        session = open_session()
        session.on_bytes(b"".join(message(id_=str(n)) for n in range(5)), 0.0)
        session.on_peer_ended(0.0)
        assert now_in(session) is State.OPEN  # two are still held
        reports = [line for token in range(1, 6) for line in text_of(session.on_report(good(token), 0.0))]
        assert reports == [f"good {n}" for n in range(5)]
        assert now_in(session) is State.CLOSING

    def test_stream_that_ends_before_the_login_is_answered(self) -> None:
        session = new_session()
        session.on_bytes(HELLO + message(id_="a"), 0.0)
        session.on_peer_ended(0.0)
        assert len(session.on_login_answer(0, None, 0.0).send) == 1
        assert now_in(session) is State.DRAINING
        assert text_of(session.on_report(good(1), 0.0)) == ["good a"]
        assert now_in(session) is State.CLOSING

    def test_bad_frame_behind_a_login_follows_the_frames_before_it(self) -> None:
        session = new_session()
        session.on_bytes(HELLO + message(id_="a") + TOO_LARGE, 0.0)
        step = session.on_login_answer(0, None, 0.0)
        assert text_of(step) == ["good auth_special", "bad None frame-too-large"]
        assert len(step.send) == 1

    def test_draining_times_out(self) -> None:
        session = open_session()
        session.on_bytes(message(id_="a") + CLOSE, 5.0)
        assert session.deadline == 5.0 + LIMITS.drain_s
        step = session.tick(session.deadline)
        assert (text_of(step), step.send) == (["bad a timeout"], [Close(7)])
        assert now_in(session) is State.CLOSING

    def test_closing_gives_time_to_send_and_to_read(self) -> None:
        session = open_session()
        session.on_bytes(CLOSE, 5.0)
        assert session.deadline == 5.0 + LIMITS.drain_s
        session.on_all_sent(6.0)
        assert session.deadline == 6.0 + LIMITS.linger_s
        session.tick(session.deadline)
        assert now_in(session) is State.CLOSED

    def test_lost_connection_closes_the_session(self) -> None:
        session = open_session()
        session.on_bytes(message(), 0.0)
        assert session.on_connection_lost() == Step([], [Close(7)])
        assert now_in(session) is State.CLOSED
        assert session.window.tokens == []
        assert session.on_report(good(1), 0.0) == Step([], [])

    def test_give_up_refuses_unreported_messages_and_held_frames(self) -> None:
        session = open_session()
        ask = message("builtin", "q", '{"command":{"type":"outcome","data":"s/1"}}')
        session.on_bytes(ask + b"".join(message(id_=str(n)) for n in range(5)), 0.0)
        session.shut_down(0.0)
        step = session.give_up("unreachable", 1.0)
        assert text_of(step) == [f"bad {id_} unreachable" for id_ in "q01234"]
        assert step.send == [Close(7)]
        assert now_in(session) is State.CLOSING
        assert session.give_up("unreachable", 1.0) == Step([], [])

    def test_shut_down_drains_or_refuses(self) -> None:
        session = open_session()
        session.on_bytes(message(id_="a"), 0.0)
        session.shut_down(0.0)
        assert now_in(session) is State.DRAINING
        asking = new_session()
        asking.on_bytes(HELLO, 0.0)
        assert text_of(asking.shut_down(0.0)) == ["bad auth_special unreachable"]


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
def test_no_order_of_events_breaks_a_session(events: list[tuple[str, Any]]) -> None:
    session = new_session()
    now = 0.0
    submitted: list[int] = []
    reported: list[str] = []
    waiting: list[int] = []
    logins = closes = auth_answers = unheard = 0
    for name, value in events:
        before = session.state
        match name:
            case "received":
                step = session.on_bytes(value, now)
            case "logged_in":
                step = session.on_login_answer(value, None, now)
            case "reported":
                step = session.on_report(good(value), now)
            case "answered":
                step = session.on_answer(value, None, now)
            case "give_up":
                step = session.give_up("unreachable", now)
            case "tick":
                now += value
                step = session.tick(now)
            case "last_word_left":
                session.on_all_sent(now)
                step = Step([], [])
            case "lost":
                step = session.on_connection_lost()
            case "ended":
                step = session.on_peer_ended(now)
            case _:
                step = session.shut_down(now)
        assert before is session.state or _reachable(before, session.state)
        assert before is not State.CLOSED or step == Step([], [])
        lines = text_of(step)
        auth_answers += sum("auth_special" in line for line in lines)
        reported += [line for line in lines if line in ("good i", "1 i", "bad i timeout", "bad i unreachable")]
        submitted += [sent.token for sent in step.send if isinstance(sent, Submit | Question)]
        refused = lines.count("bad i unreachable") if name == "give_up" else 0
        unheard += max(refused - len(waiting), 0)  # frames that had not been handled: refused, and never submitted
        waiting = session.window.tokens
        logins += sum(isinstance(sent, Login) for sent in step.send)
        closes += sum(isinstance(sent, Close) for sent in step.send)
        assert not lines or auth_answers or before is State.NEW  # no frame comes before the auth answer
        assert len(session.window) <= LIMITS.unreported
    assert auth_answers <= 1
    assert logins <= 1
    assert closes <= logins
    assert submitted == sorted(set(submitted))
    if session.state is not State.CLOSED:
        assert len(reported) + len(session.window) == len(submitted) + unheard
    assert session.is_target is (session.state in TARGETS)


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


def test_readme_shows_the_table_of_a_session() -> None:
    readme = Path(__file__).parents[2] / "bridge" / "README.md"
    section = readme.read_text(encoding="utf-8").partition("## A session's states\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (\w+)(\*?) \| (\w+) \| (\w+) \|", section, re.MULTILINE)
    assert {(State(start), event): State(end) for start, _, event, end in rows if start != "in"} == TRANSITIONS
    assert {State(start) for start, star, _, _ in rows if star} == TARGETS


def test_page_lists_every_field_of_a_session() -> None:
    page = (Path(__file__).parents[2] / "docs" / "session.md").read_text(encoding="utf-8")
    section = page.partition("## Session (bridge)\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == set(Session.__slots__)
