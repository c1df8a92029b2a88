"""The connecting side of a link: every state and event of its table, and any order of them, with time going on."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bester.broker.wire.codes import CODES, is_temporary
from bester.broker.wire.link_client import (
    BARRED_RETRY_S,
    FIRST_RETRY_S,
    GREETING_S,
    LAST_RETRY_S,
    TRANSITIONS,
    LinkClient,
    State,
    Step,
)
from bester.broker.wire.messages import (
    Error,
    Goodbye,
    Heartbeat,
    Hello,
    Malformed,
    Message,
    Relayed,
    Request,
    Welcome,
)

HELLO_FIRST = Error("hello-first", "", None, None)
REFUSED = Error("not-allowed", "", 1, None)
WELCOME = Welcome(1, "s1", {"heartbeat_ms": 2000})
EVENTS = ("opened", "welcomed", "unknown", "silent", "leave", "parted", "refused", "barred")
NOTHING = Step()


def party(role: str = "handler") -> LinkClient:
    return LinkClient(role, "w", {"types": ["t"]})


def at(state: State, role: str = "handler") -> LinkClient:
    """Return a party that has come to this state the short way, at time 0."""
    one = party(role)
    if state is State.OVER:
        one.leave("", 0.0)
    elif state is not State.DOWN:
        one.opened(0.0)
        if state is not State.GREETING:
            one.receive(WELCOME, 0.0)
        if state is State.LEAVING:
            one.leave("", 0.0)
    assert one.state is state
    return one


def cause(one: LinkClient, event: str) -> Step:
    """Make an event of the table happen, one second on; `silent` comes when the patience of any state is over."""
    messages: dict[str, Message] = {
        "welcomed": WELCOME,
        "unknown": HELLO_FIRST,
        "parted": Goodbye("x"),
        "refused": REFUSED,
        "barred": REFUSED,
    }
    if event == "opened":
        return one.opened(1.0)
    if event == "leave":
        return one.leave("done", 1.0)
    return one.tick(60.0) if event == "silent" else one.receive(messages[event], 1.0)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_the_table_is_what_happens(state: State, event: str) -> None:
    one = at(state, "server" if event == "barred" else "handler")
    step = cause(one, event)
    assert one.state is TRANSITIONS.get((state, event), state)
    if (state, event) not in TRANSITIONS:
        assert step == NOTHING
    if one.state is State.OVER and state is not State.OVER:
        assert step.event == "over"
    if one.state is State.DOWN and state is not State.DOWN:
        assert step.event in ("lost", "parted")
        assert one.retry_at > 0
    if event == "welcomed" and step.event == "welcomed":
        assert one.ready
    assert one.ready is (one.state is State.READY)


def test_the_table_names_no_other_events_and_leaves_no_state_without_an_end() -> None:
    assert {event for _, event in TRANSITIONS} == set(EVENTS)
    for state in set(State) - {State.OVER}:
        assert any(came is state for came, _ in TRANSITIONS)
    assert not any(came is State.OVER for came, _ in TRANSITIONS)


# --- one story after the other ---------------------------------------------------------------------------------


def test_greeting() -> None:
    one = party()
    assert one.next_timer() is None
    assert one.opened(5.0) == Step((Hello(1, "handler", "w", {"types": ["t"]}),))
    assert one.next_timer() == 5.0 + GREETING_S
    assert one.receive(WELCOME, 5.5) == Step((), "welcomed")
    assert (one.server, one.options) == ("s1", {"heartbeat_ms": 2000})


def test_heartbeats_go_out_when_nothing_else_did() -> None:
    one = at(State.READY)
    assert one.next_timer() == 2.0
    one.sent(1.5)
    assert one.tick(2.0) == NOTHING
    assert one.next_timer() == 3.5
    assert one.tick(3.5) == Step((Heartbeat(),))
    assert one.next_timer() == 5.5


def test_three_silent_heartbeats_are_the_end_of_a_link() -> None:
    one = at(State.READY)
    one.receive(Heartbeat(), 1.0)
    one.sent(6.9)
    assert one.tick(6.9) == NOTHING
    assert one.tick(7.0) == Step((), "lost")
    assert one.state is State.DOWN
    assert one.retry_at == 7.0 + FIRST_RETRY_S


@pytest.mark.parametrize("held_s", [3.0, 8.0, 3600.0])
def test_a_side_that_was_held_up_reads_before_it_gives_a_silent_broker_up(held_s: float) -> None:
    one = at(State.READY)
    due = one.next_timer()
    assert due is not None
    now = due + held_s
    assert one.tick(now, due).event is None
    one.receive(Heartbeat(), now)  # it lay in the socket
    assert one.tick(now + 5.9, now + 5.9).event is None
    assert one.tick(now + 6.0, now + 6.0).event == "lost"


def test_a_broker_that_stays_silent_after_that_is_given_up_a_heartbeat_later() -> None:
    one = at(State.READY)
    assert one.tick(30.0, 2.0).event is None
    assert one.tick(31.9, 31.9).event is None
    assert one.tick(32.0, 32.0) == Step((), "lost")


def test_a_greeting_that_was_held_up_goes_on() -> None:
    one = at(State.GREETING)
    assert one.tick(9.0, GREETING_S) == NOTHING
    assert one.receive(WELCOME, 9.1).event == "welcomed"


def test_a_timer_that_is_hardly_late_is_no_excuse() -> None:
    one = at(State.READY)
    one.sent(5.0)
    assert one.tick(6.3, 6.0).event == "lost"


def test_whatever_is_heard_is_a_sign_of_life() -> None:
    one = at(State.READY)
    assert one.receive(Relayed(1, "sent"), 1.0) == NOTHING
    assert one.receive(Malformed("malformed", ""), 2.0) == NOTHING
    assert one.receive(Request(1, "t", b"1", None, {}), 3.0) == NOTHING
    assert one.tick(8.9).event is None
    assert one.tick(9.0).event == "lost"


def test_a_greeting_has_its_time_whatever_else_is_heard() -> None:
    one = at(State.GREETING)
    for tenth in range(30):
        one.receive(Heartbeat() if tenth % 2 else HELLO_FIRST, tenth / 10)
        assert one.tick(tenth / 10).event is None
    assert one.tick(GREETING_S).event == "lost"


def test_a_broker_that_forgot_us_is_greeted_again() -> None:
    one = at(State.READY)
    assert one.receive(HELLO_FIRST, 5.0) == Step((one.hello,), "unknown")
    assert not one.ready
    assert one.next_timer() == 5.0 + GREETING_S
    assert one.receive(WELCOME, 5.1).event == "welcomed"


def test_back_off_doubles_up_to_a_limit_and_starts_anew_with_a_welcome() -> None:
    one, now, delays = party(), 0.0, []
    for _ in range(9):
        one.opened(now)
        now += GREETING_S
        assert one.tick(now).event == "lost"
        delays.append(one.retry_at - now)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LAST_RETRY_S, LAST_RETRY_S, LAST_RETRY_S])
    one.opened(now)
    one.receive(WELCOME, now)
    one.tick(now + 60)
    assert one.retry_at == now + 60 + FIRST_RETRY_S


@pytest.mark.parametrize("code", CODES)
def test_a_hello_refused_for_good_is_the_end_and_for_now_is_tried_again(code: str) -> None:
    one = at(State.GREETING)
    step = one.receive(Error(code, "", 1, None), 1.0)
    if is_temporary(code):
        assert one.state is State.GREETING
        assert one.tick(GREETING_S).event == "lost"
    else:
        assert step == Step((), "over")
        assert one.refusal == Error(code, "", 1, None)


def test_a_server_that_is_refused_asks_again_later() -> None:
    one = at(State.GREETING, "server")
    assert one.receive(REFUSED, 1.0) == Step((), "lost")
    assert one.refusal == REFUSED
    assert one.retry_at == 1.0 + BARRED_RETRY_S
    one.opened(one.retry_at)
    assert one.receive(WELCOME, one.retry_at) == Step((), "welcomed")
    assert one.refusal is None


def test_an_error_about_something_else_is_not_about_the_link() -> None:
    for state in (State.GREETING, State.READY, State.LEAVING):
        one = at(state)
        assert one.receive(Error("not-allowed", "", 11, 7), 1.0) == NOTHING
        assert one.state is state


def test_leaving_waits_for_the_echo() -> None:
    one = at(State.READY)
    assert one.leave("stopping", 1.0) == Step((Goodbye("stopping"),))
    assert one.leave("stopping", 1.1) == NOTHING
    assert one.tick(3.0) == Step((Heartbeat(),))
    assert one.receive(Goodbye("stopping"), 4.0) == Step((), "over")
    assert one.next_timer() is None


def test_leaving_a_broker_that_may_know_us_already_is_said() -> None:
    assert at(State.GREETING).leave("stopping", 1.0) == Step((Goodbye("stopping"),), "over")
    assert at(State.DOWN).leave("stopping", 1.0) == Step((), "over")


def test_a_broker_that_parts_is_tried_again() -> None:
    one = at(State.READY)
    step = one.receive(Goodbye("restarting"), 1.0)
    assert (step.event, [type(message) for message in step.send]) == ("parted", [Goodbye])
    assert one.opened(one.retry_at).send == (one.hello,)


@pytest.mark.parametrize(
    ("said", "heartbeat_s"),
    [
        (500, 0.5),
        (1, 0.01),
        (2**53 - 1, 60.0),
        (0, 2.0),
        (-5, 2.0),
        (True, 2.0),
        ("500", 2.0),
        (500.0, 2.0),
        (None, 2.0),
    ],
)
def test_a_heartbeat_out_of_reason_is_not_taken_over(said: object, heartbeat_s: float) -> None:
    one = at(State.GREETING)
    one.receive(Welcome(1, "s", {"heartbeat_ms": said}), 1.0)
    assert one.heartbeat_s == heartbeat_s


# --- any order of anything -------------------------------------------------------------------------------------

SLOW = Welcome(1, "s", {"heartbeat_ms": 2**53 - 1})
LINK = [WELCOME, SLOW, HELLO_FIRST, REFUSED, Error("overloaded", "", 1), Goodbye(), Heartbeat()]
heard = st.sampled_from([*LINK, Relayed(1, "sent"), Malformed("malformed", "")])
happenings = st.tuples(st.sampled_from(["opened", "sent", "tick", "leave"]) | heard, st.floats(0, 4))


def happen(one: LinkClient, event: str | Message | Malformed, now: float) -> Step:
    match event:
        case "opened":
            return one.opened(now)
        case "leave":
            return one.leave("x", now)
        case "tick":
            return one.tick(now)
        case str():
            one.sent(now)
            return NOTHING
        case _:
            return one.receive(event, now)


@given(st.lists(happenings, max_size=40))
@settings(max_examples=300)
def test_time_never_waits_for_ever(events: list[tuple[str | Message | Malformed, float]]) -> None:
    one, now = party(), 1000.0
    for event, pause_s in events:
        now += pause_s
        before = one.state
        step = happen(one, event, now)
        assert before is not State.OVER or step == NOTHING
        assert (step.event in ("lost", "parted")) == (one.state is State.DOWN and before is not State.DOWN)
        due = one.next_timer()
        assert (due is None) == (one.state in (State.DOWN, State.OVER))
        if one.state is State.DOWN:
            assert one.retry_at <= now + LAST_RETRY_S
        if due is not None:
            assert due <= now + 60
    # Left alone from here, ticking only when asked to, the link ends, and ends soon.
    for _ in range(2000):
        due = one.next_timer()
        if due is None:
            break
        now = max(now, due)
        before_state, step = one.state, one.tick(now)
        after = one.next_timer()
        assert one.state is not before_state or step.send, "a timer that does nothing would be called for ever"
        assert after is None or after > now
    assert one.state in (State.DOWN, State.OVER)
