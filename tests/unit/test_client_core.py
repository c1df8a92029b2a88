"""The client's state machine, case by case, without sockets or a clock."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args

import pytest

from bester.bridge.frames import frame
from bester.client.core import FIRST_RETRY_S, LAST_RETRY_S, PATIENCE_S, STEADY_S, Core
from bester.client.errors import (
    AuthenticationFailed,
    ClientClosed,
    ClientError,
    ConnectionLost,
    ServerRefused,
    WindowFull,
)
from bester.client.events import Answered, Ended, Event, Failed, Lost, Ponged, Ready, Reported
from bester.client.frames import Terms
from bester.client.states import TRANSITIONS, State, Trigger
from bester.client.window import Limits
from tests.unit.client_core_stand import WELCOME, a_core, answer, arrival, connect, payloads, report


def defer_login(core: Core, retry_s: Any, *, now: float, reason: str = "try-later") -> Event:
    """Log in, and be deferred by the server; return the last event."""
    assert core.dial()
    core.on_connected(now)
    core.take()
    payload = {"id": "auth_special", "reason": reason, "retry_s": retry_s}
    body = {"header": {"messageType": "statusReport", "status": "bad"}, "payload": payload}
    return core.receive(frame(json.dumps(body).encode()), now)[-1]


class TestStates:
    def test_over_is_final_and_every_state_is_reachable(self) -> None:
        assert not [start for start, _ in TRANSITIONS if start is State.OVER]
        assert set(TRANSITIONS.values()) == set(State)

    def test_every_state_can_end(self) -> None:
        for state in set(State) - {State.OVER}:
            reached = {state}
            for _ in State:
                reached |= {end for (start, _), end in TRANSITIONS.items() if start in reached}
            assert State.OVER in reached

    def test_readme_shows_the_table(self) -> None:
        readme = Path(__file__).parents[2] / "client" / "README.md"
        rows = re.findall(r"^\| (\w+) \| (\w+) \| (\w+) \|", readme.read_text(), re.MULTILINE)
        assert {(State(start), event): State(end) for start, event, end in rows if start != "in"} == TRANSITIONS

    def test_every_trigger_is_in_the_table(self) -> None:
        assert {event for _, event in TRANSITIONS} == set(get_args(Trigger))

    def test_login_is_sent_first_and_alone(self) -> None:
        core = a_core()
        core.submit("chat", b"1")
        assert core.take() == []
        core.dial()
        assert core.take() == []
        core.on_connected(0)
        (login,) = core.take()
        assert json.loads(login[4:]) == {
            "header": {"scope": "client", "authentication": {"username": "bob", "password": "secret"}},
            "payload": {"data": None, "type": "dummy"},
        }
        assert core.receive(frame(WELCOME), 0) == [Ready()]
        assert payloads(core.take()) == [{"type": "chat", "data": 1, "id": "1", "dedup": "p" * 32 + "-1"}]

    def test_login_asks_for_acknowledgements(self) -> None:
        core = a_core(ack=True)
        core.dial()
        core.on_connected(0)
        (login,) = core.take()
        assert json.loads(login[4:])["header"]["ack"] is True

    def test_unlisted_event_changes_nothing(self) -> None:
        core = a_core()
        core.on_connected(0)
        assert core.receive(frame(WELCOME), 0) == []
        assert core.on_disconnected("why", 0) == []
        assert core.take() == []
        connect(core)
        assert not core.dial()
        assert core.receive(frame(WELCOME), 0) == []
        assert core.state is State.READY


class TestTime:
    def test_back_off_doubles_up_to_a_bound_and_jitter_halves_at_most(self) -> None:
        for chance, share in ((1.0, 1.0), (0.0, 0.5)):
            core = a_core(random=lambda chance=chance: chance)
            connect(core)
            waits = []
            core.on_disconnected("gone", 0)
            for _ in range(12):
                waits.append(core.retry_at)
                core.dial()
                core.on_disconnected("refused", 0)
            assert waits[:3] == pytest.approx([share * FIRST_RETRY_S * factor for factor in (1, 2, 4)])
            assert waits[-1] == share * LAST_RETRY_S

    def test_only_a_steady_connection_resets_back_off(self) -> None:
        core = a_core()
        connect(core)
        core.on_disconnected("gone", 1)
        connect(core, 2)
        core.on_disconnected("gone", 3)
        assert core.retry_at == 3 + 2 * FIRST_RETRY_S
        connect(core, 4)
        core.on_disconnected("gone", 4 + STEADY_S)
        assert core.retry_at == 4 + STEADY_S + FIRST_RETRY_S

    def test_silence_causes_a_ping_then_a_loss(self) -> None:
        core = a_core(limits=Limits(silence_s=10))
        connect(core)
        assert core.next_timer() == 10
        assert core.tick(9.9) == []
        assert core.take() == []
        core.tick(10)
        assert [payload["type"] for payload in payloads(core.take())] == ["dummy"]
        assert core.next_timer() == 20
        (lost,) = core.tick(20)
        assert isinstance(lost, Lost)
        assert core.state is State.DOWN

    def test_any_frame_ends_the_silence(self) -> None:
        core = a_core(limits=Limits(silence_s=10))
        connect(core)
        core.tick(10)
        core.receive(b"\x01", 15)
        assert core.next_timer() == 25

    def test_paused_client_counts_no_silence(self) -> None:
        core = a_core(limits=Limits(silence_s=10))
        connect(core)
        core.pause()
        assert core.next_timer() is None
        core.resume(100)
        assert core.next_timer() == 110

    def test_client_gives_up_after_give_up_s_without_a_connection(self) -> None:
        core = a_core(give_up_s=60)
        core.submit("chat", b"1")
        connect(core)
        core.on_disconnected("gone", 100)
        core.dial()
        core.on_disconnected("refused", 130)
        assert core.next_timer() == 160
        assert core.tick(159) == []
        failed, ended = core.tick(160)
        assert isinstance(failed, Failed)
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, ConnectionLost)
        assert core.next_timer() is None

    def test_ping_is_answered_or_fails(self) -> None:
        core = a_core()
        with pytest.raises(ConnectionLost):
            core.ping()
        connect(core)
        first, second = core.ping(), core.ping()
        assert first != second
        answer = {"header": {"status": "0"}, "payload": {"data": None, "id": first, "type": "dummy"}}
        assert core.receive(frame(json.dumps(answer).encode()), 0) == [Ponged(first)]
        failed, lost = core.on_disconnected("gone", 0)
        assert isinstance(failed, Failed)
        assert failed.id == second
        assert isinstance(lost, Lost)
        connect(core)
        (lost,) = core.on_disconnected("gone", 0)
        assert isinstance(lost, Lost)


class TestAcknowledgements:
    def test_acks_are_sent_together_on_the_connection_that_delivered(self) -> None:
        core = a_core(ack=True)
        connect(core)
        core.receive(arrival("a") + arrival("b") + arrival("c"), 0)
        assert core.take() == []
        core.acknowledge("a")
        core.acknowledge("b")
        (ack,) = payloads(core.take())
        assert ack["data"] == {"command": {"type": "ack", "data": ["a", "b"]}}
        core.acknowledge("c")
        core.on_disconnected("gone", 0)
        connect(core)
        assert core.take() == [], "the new connection knows nothing of it yet"
        assert core.receive(arrival("c"), 0) == []
        (ack,) = payloads(core.take())
        assert ack["data"]["command"]["data"] == ["c"]

    @pytest.mark.parametrize("patience_s", [5, 0])
    def test_acks_precede_the_close(self, patience_s: float) -> None:
        core = a_core(ack=True)
        connect(core)
        core.receive(arrival("a"), 0)
        core.acknowledge("a")
        core.leave(0, patience_s)
        assert [payload["id"] for payload in payloads(core.take())] == ["ack", "close"]

    def test_closing_client_does_not_ack_messages_that_it_drops(self) -> None:
        core = a_core(ack=True)
        connect(core)
        core.submit("chat", b"1")
        core.take()
        core.leave(0, 5)
        assert core.receive(arrival("a") + arrival("a"), 0) == []
        assert core.take() == []

    def test_no_acks_unless_asked_for(self) -> None:
        core = a_core()
        connect(core)
        core.receive(arrival("a"), 0)
        core.acknowledge("a")
        core.receive(arrival("a"), 0)
        assert core.take() == []


class TestQuestions:
    def test_answer_names_recipients(self) -> None:
        core = a_core()
        connect(core)
        id_ = core.outcome("s1/7")
        (question,) = payloads(core.take())
        assert question == {"type": "builtin", "data": {"command": {"type": "outcome", "data": "s1/7"}}, "id": id_}
        recipients = {"bob": "queued", "s2": "failed:expired"}
        data = {"message": "s1/7", "recipients": recipients}
        assert core.receive(answer(id_, "0", data), 0) == [Answered(id_, recipients)]
        assert core.receive(answer(id_, "0", data), 0) == [], "an answer answers once"

    def test_answer_without_recipients(self) -> None:
        core = a_core()
        connect(core)
        first, second, third = (core.outcome("s1/7") for _ in range(3))
        assert core.receive(answer(first, "1", None), 0) == [Answered(first, None)]
        for stream in (answer(second, "0", {"recipients": [1]}), report(third, "bad")):
            (failed,) = core.receive(stream, 0)
            assert isinstance(failed, Failed)
            assert isinstance(failed.error, ServerRefused)

    def test_question_fails_with_its_connection(self) -> None:
        core = a_core()
        with pytest.raises(ConnectionLost):
            core.outcome("s1/7")
        connect(core)
        id_ = core.outcome("s1/7")
        failed, lost = core.on_disconnected("gone", 0)
        assert isinstance(failed, Failed)
        assert failed.id == id_
        assert isinstance(lost, Lost)
        connect(core)
        assert core.take() == []

    @pytest.mark.parametrize("message", ["", "x" * 1025])
    def test_impossible_id_is_refused(self, message: str) -> None:
        core = a_core()
        connect(core)
        with pytest.raises(ValueError, match="id"):
            core.outcome(message)


class TestRefusals:
    def test_temporary_refusal_after_a_login_is_retried(self) -> None:
        core = a_core()
        connect(core)
        core.on_disconnected("gone", 0)
        core.dial()
        core.on_connected(1)
        body = WELCOME.replace(b"good", b"bad").replace(b'"id"', b'"reason":"overloaded","id"')
        (lost,) = core.receive(frame(body), 1)
        assert isinstance(lost, Lost)
        assert core.state is State.DOWN

    def test_deferred_first_login_is_retried_and_keeps_messages(self) -> None:
        core = a_core()
        id_ = core.submit("chat", b"1")
        lost = defer_login(core, 2, now=10.0)
        assert isinstance(lost, Lost)
        assert lost.retry_at == core.retry_at >= 12.0
        assert core.state is State.DOWN
        assert connect(core, 12.5) == [Ready()]
        assert [payload["id"] for payload in payloads(core.take())] == [id_]

    def test_deferred_first_login_is_retried_for_a_bounded_time(self) -> None:
        core = a_core()
        for number in range(int(PATIENCE_S // 6)):
            assert isinstance(defer_login(core, 6, now=number * 10.0), Lost)
        ended = defer_login(core, 6, now=100.0)
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, ServerRefused)
        assert (ended.error.code, ended.error.retry_s) == ("try-later", 6.0)
        assert "of 'bob' for another 6 s" in str(ended.error)

    def test_deferred_later_login_is_retried_without_bound_and_never_early(self) -> None:
        core = a_core(random=lambda: 0.0)
        connect(core)
        core.on_disconnected("gone", 0)
        for now in (1.0, 100.0, 200.0):
            lost = defer_login(core, 64, now=now)
            assert isinstance(lost, Lost)
            assert lost.retry_at == now + 64

    def test_unusable_retry_time_does_not_shorten_back_off(self) -> None:
        for odd in (0, 0.001):
            core = a_core()
            for _ in range(int(PATIENCE_S)):
                assert isinstance(defer_login(core, odd, now=0.0), Lost)
                assert core.retry_at >= 1.0
            assert isinstance(defer_login(core, odd, now=0.0), Ended)
        for none in (-1, 1e9, "5", True, [5], None):
            assert isinstance(defer_login(a_core(), none, now=0.0), Ended)

    def test_unknown_reason_with_a_retry_time_is_temporary(self) -> None:
        assert isinstance(defer_login(a_core(), 2, now=0.0, reason="moon"), Lost)
        assert isinstance(defer_login(a_core(), 2, now=0.0, reason="authentication-failed"), Ended)

    def test_bad_login_fails_pending_messages(self) -> None:
        core = a_core()
        id_ = core.submit("chat", b"1")
        core.dial()
        core.on_connected(0)
        failed, ended = core.receive(frame(WELCOME.replace(b"good", b"bad")), 0)
        assert isinstance(failed, Failed)
        assert failed.id == id_
        assert isinstance(ended, Ended)
        assert failed.error is ended.error
        assert isinstance(ended.error, AuthenticationFailed)
        with pytest.raises(ClientClosed):
            core.submit("chat", b"1")

    @pytest.mark.parametrize(
        ("type_", "why"), [("", "type is empty"), ("dummy", "keeps it for itself"), ("builtin", "keeps it for itself")]
    )
    def test_reserved_or_empty_type_is_refused(self, type_: str, why: str) -> None:
        with pytest.raises(ValueError, match=why):
            a_core().submit(type_, b"1")

    def test_refusal_with_an_unknown_reason(self) -> None:
        core = a_core()
        core.dial()
        core.on_connected(0)
        (ended,) = core.receive(frame(WELCOME.replace(b"good", b"bad").replace(b'"id"', b'"reason":"moon\\n","id"')), 0)
        assert isinstance(ended, Ended)
        assert isinstance(ended.error, ServerRefused)
        assert "'moon\\n'" in str(ended.error)

    @pytest.mark.parametrize("dedup", ["", "x" * 65])
    def test_dedup_length_is_bounded(self, dedup: str) -> None:
        core = a_core()
        with pytest.raises(ValueError, match="dedup"):
            core.submit("chat", b"1", Terms(dedup=dedup))
        assert core.unreported == 0

    @pytest.mark.parametrize("ttl_s", [0, -1, float("nan"), float("inf"), 30 * 24 * 3600 + 1, 10**400])
    def test_ttl_is_bounded(self, ttl_s: float) -> None:
        core = a_core()
        with pytest.raises(ValueError, match="ttl_s"):
            core.submit("chat", b"1", Terms(ttl_s=ttl_s))
        assert core.unreported == 0

    def test_every_error_is_one_line_without_the_password(self) -> None:
        core = a_core()
        connect(core)
        errors = [event.error for event in core.on_disconnected("gone", 0) if isinstance(event, Lost | Failed)]
        for error in errors:
            assert isinstance(error, ClientError)
            assert "\n" not in str(error)
            assert "secret" not in str(error)


class TestWindow:
    def test_window_is_bounded_in_bytes_and_a_report_makes_room(self) -> None:
        core = a_core(limits=Limits(window_bytes=1000))
        connect(core)
        for turn in range(5):
            id_ = core.submit("chat", b'"' + b"x" * 1000 + b'"')
            assert core.room == 0
            with pytest.raises(WindowFull):
                core.submit("chat", b"1")
            core.take()
            assert [type(event) for event in core.receive(report(id_), turn)] == [Reported]
            assert core.room == 512

    def test_report_on_an_unsent_message_is_ignored(self) -> None:
        core = a_core()
        connect(core)
        id_ = core.submit("chat", b"1")
        assert core.receive(report(id_) + report("99") + report(None, "bad"), 0) == []
        assert core.unreported == 1
        core.take()
        assert len(core.receive(report(id_) + report(id_), 0)) == 1
