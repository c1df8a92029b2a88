"""The connecting side of a link: every state and event of its table, and any order of them as time passes."""

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
    Event,
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


def link_client(role: str = "handler") -> LinkClient:
    return LinkClient(role, "w", {"types": ["t"]})


def at(state: State, role: str = "handler") -> LinkClient:
    """Return a link in a state, reached by the shortest way at time 0."""
    link = link_client(role)
    if state is State.OVER:
        link.leave("", 0.0)
    elif state is not State.DOWN:
        link.on_opened(0.0)
        if state is not State.GREETING:
            link.receive(WELCOME, 0.0)
        if state is State.LEAVING:
            link.leave("", 0.0)
    assert link.state is state
    return link


def cause(link: LinkClient, event: str) -> Step:
    """Cause an event of the table one second later; `silent` comes after the timeout of any state."""
    messages: dict[str, Message] = {
        "welcomed": WELCOME,
        "unknown": HELLO_FIRST,
        "parted": Goodbye("x"),
        "refused": REFUSED,
        "barred": REFUSED,
    }
    if event == "opened":
        return link.on_opened(1.0)
    if event == "leave":
        return link.leave("done", 1.0)
    return link.tick(60.0) if event == "silent" else link.receive(messages[event], 1.0)


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize("state", State)
def test_every_state_and_event_follows_the_table(state: State, event: Event) -> None:
    link = at(state, "server" if event == "barred" else "handler")
    step = cause(link, event)
    assert link.state is TRANSITIONS.get((state, event), state)
    if (state, event) not in TRANSITIONS:
        assert step == NOTHING
    if link.state is State.OVER and state is not State.OVER:
        assert step.event == "over"
    if link.state is State.DOWN and state is not State.DOWN:
        assert step.event in ("lost", "parted")
        assert link.retry_at > 0
    if event == "welcomed" and step.event == "welcomed":
        assert link.ready
    assert link.ready is (link.state is State.READY)


def test_table_names_no_other_events_and_every_state_has_an_end() -> None:
    assert {event for _, event in TRANSITIONS} == set(EVENTS)
    for state in set(State) - {State.OVER}:
        assert any(came is state for came, _ in TRANSITIONS)
    assert not any(came is State.OVER for came, _ in TRANSITIONS)


# --- single scenarios -----------------------------------------------------------------------------------------


def test_greeting() -> None:
    link = link_client()
    assert link.next_timer() is None
    assert link.on_opened(5.0) == Step((Hello(1, "handler", "w", {"types": ["t"]}),))
    assert link.next_timer() == 5.0 + GREETING_S
    assert link.receive(WELCOME, 5.5) == Step((), "welcomed")
    assert (link.server, link.options) == ("s1", {"heartbeat_ms": 2000})


def test_heartbeat_is_sent_when_no_other_message_was() -> None:
    link = at(State.READY)
    assert link.next_timer() == 2.0
    link.on_sent(1.5)
    assert link.tick(2.0) == NOTHING
    assert link.next_timer() == 3.5
    assert link.tick(3.5) == Step((Heartbeat(),))
    assert link.next_timer() == 5.5


def test_link_ends_after_three_silent_heartbeats() -> None:
    link = at(State.READY)
    link.receive(Heartbeat(), 1.0)
    link.on_sent(6.9)
    assert link.tick(6.9) == NOTHING
    assert link.tick(7.0) == Step((), "lost")
    assert link.state is State.DOWN
    assert link.retry_at == 7.0 + FIRST_RETRY_S


@pytest.mark.parametrize(("state", "event"), [(State.READY, "lost"), (State.LEAVING, "over")])
def test_link_ends_at_once_where_nothing_listens_any_more(state: State, event: str) -> None:
    link = at(state)
    link.receive(Heartbeat(), 1.0)
    link.on_nobody_there()
    due = link.next_timer()
    assert due is not None and due <= 1.0
    assert link.tick(1.0, due, unread=True) == NOTHING, "its last words are read first"
    assert link.tick(1.1, due).event == event


def test_link_that_greets_waits_for_a_broker_that_is_not_there_yet() -> None:
    link = at(State.GREETING)
    link.on_nobody_there()
    assert link.next_timer() == GREETING_S
    link.receive(WELCOME, 1.0)
    assert link.tick(2.0, 2.0).event is None


@pytest.mark.parametrize("held_s", [3.0, 8.0, 3600.0])
def test_blocked_side_reads_before_giving_up_a_silent_broker(held_s: float) -> None:
    link = at(State.READY)
    due = link.next_timer()
    assert due is not None
    now = due + held_s
    assert link.tick(now, due).event is None
    link.receive(Heartbeat(), now)  # waiting in the socket
    assert link.tick(now + 5.9, now + 5.9).event is None
    assert link.tick(now + 6.0, now + 6.0).event == "lost"


def test_broker_still_silent_after_a_block_is_given_up_a_heartbeat_later() -> None:
    link = at(State.READY)
    assert link.tick(30.0, 2.0).event is None
    assert link.tick(31.9, 31.9).event is None
    assert link.tick(32.0, 32.0) == Step((), "lost")


def test_blocked_greeting_goes_on() -> None:
    link = at(State.GREETING)
    assert link.tick(9.0, GREETING_S) == NOTHING
    assert link.receive(WELCOME, 9.1).event == "welcomed"


def test_slightly_late_timer_gives_no_grace() -> None:
    link = at(State.READY)
    link.on_sent(5.0)
    assert link.tick(6.3, 6.0).event == "lost"


def test_any_message_is_a_sign_of_life() -> None:
    link = at(State.READY)
    assert link.receive(Relayed(1, "sent"), 1.0) == NOTHING
    assert link.receive(Malformed("malformed", ""), 2.0) == NOTHING
    assert link.receive(Request(1, "t", b"1", None, {}), 3.0) == NOTHING
    assert link.tick(8.9).event is None
    assert link.tick(9.0).event == "lost"


def test_greeting_times_out_whatever_other_messages_arrive() -> None:
    link = at(State.GREETING)
    for tenth in range(30):
        link.receive(Heartbeat() if tenth % 2 else HELLO_FIRST, tenth / 10)
        assert link.tick(tenth / 10).event is None
    assert link.tick(GREETING_S).event == "lost"


def test_broker_that_forgot_the_link_is_greeted_again() -> None:
    link = at(State.READY)
    assert link.receive(HELLO_FIRST, 5.0) == Step((link.hello,), "unknown")
    assert not link.ready
    assert link.next_timer() == 5.0 + GREETING_S
    assert link.receive(WELCOME, 5.1).event == "welcomed"


def test_back_off_doubles_up_to_a_limit_and_restarts_with_a_welcome() -> None:
    link, now, delays = link_client(), 0.0, []
    for _ in range(9):
        link.on_opened(now)
        now += GREETING_S
        assert link.tick(now).event == "lost"
        delays.append(link.retry_at - now)
    assert delays == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, LAST_RETRY_S, LAST_RETRY_S, LAST_RETRY_S])
    link.on_opened(now)
    link.receive(WELCOME, now)
    link.tick(now + 60)
    assert link.retry_at == now + 60 + FIRST_RETRY_S


@pytest.mark.parametrize("code", CODES)
def test_permanent_refusal_of_hello_ends_the_link_and_a_temporary_one_does_not(code: str) -> None:
    link = at(State.GREETING)
    step = link.receive(Error(code, "", 1, None), 1.0)
    if is_temporary(code):
        assert link.state is State.GREETING
        assert link.tick(GREETING_S).event == "lost"
    else:
        assert step == Step((), "over")
        assert link.refusal == Error(code, "", 1, None)


def test_refused_server_retries_later() -> None:
    link = at(State.GREETING, "server")
    assert link.receive(REFUSED, 1.0) == Step((), "lost")
    assert link.refusal == REFUSED
    assert link.retry_at == 1.0 + BARRED_RETRY_S
    link.on_opened(link.retry_at)
    assert link.receive(WELCOME, link.retry_at) == Step((), "welcomed")
    assert link.refusal is None


def test_error_about_another_message_does_not_concern_the_link() -> None:
    for state in (State.GREETING, State.READY, State.LEAVING):
        link = at(state)
        assert link.receive(Error("not-allowed", "", 11, 7), 1.0) == NOTHING
        assert link.state is state


def test_leaving_waits_for_the_echo() -> None:
    link = at(State.READY)
    assert link.leave("stopping", 1.0) == Step((Goodbye("stopping"),))
    assert link.leave("stopping", 1.1) == NOTHING
    assert link.tick(3.0) == Step((Heartbeat(),))
    assert link.receive(Goodbye("stopping"), 4.0) == Step((), "over")
    assert link.next_timer() is None


def test_leaving_during_a_greeting_sends_goodbye() -> None:
    assert at(State.GREETING).leave("stopping", 1.0) == Step((Goodbye("stopping"),), "over")
    assert at(State.DOWN).leave("stopping", 1.0) == Step((), "over")


def test_broker_that_parted_is_retried() -> None:
    link = at(State.READY)
    step = link.receive(Goodbye("restarting"), 1.0)
    assert (step.event, [type(message) for message in step.send]) == ("parted", [Goodbye])
    assert link.on_opened(link.retry_at).send == (link.hello,)


@pytest.mark.parametrize(
    ("heartbeat_ms", "heartbeat_s"),
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
def test_heartbeat_out_of_range_is_clamped_or_ignored(heartbeat_ms: object, heartbeat_s: float) -> None:
    link = at(State.GREETING)
    link.receive(Welcome(1, "s", {"heartbeat_ms": heartbeat_ms}), 1.0)
    assert link.heartbeat_s == heartbeat_s


# --- any order of events -------------------------------------------------------------------------------------

SLOW = Welcome(1, "s", {"heartbeat_ms": 2**53 - 1})
LINK = [WELCOME, SLOW, HELLO_FIRST, REFUSED, Error("overloaded", "", 1), Goodbye(), Heartbeat()]
received = st.sampled_from([*LINK, Relayed(1, "sent"), Malformed("malformed", "")])
happenings = st.tuples(st.sampled_from(["opened", "sent", "tick", "leave"]) | received, st.floats(0, 4))


def happen(link: LinkClient, event: str | Message | Malformed, now: float) -> Step:
    match event:
        case "opened":
            return link.on_opened(now)
        case "leave":
            return link.leave("x", now)
        case "tick":
            return link.tick(now)
        case str():
            link.on_sent(now)
            return NOTHING
        case _:
            return link.receive(event, now)


@given(st.lists(happenings, max_size=40))
@settings(max_examples=300)
def test_every_link_left_alone_ends(events: list[tuple[str | Message | Malformed, float]]) -> None:
    link, now = link_client(), 1000.0
    for event, pause_s in events:
        now += pause_s
        before = link.state
        step = happen(link, event, now)
        assert before is not State.OVER or step == NOTHING
        assert (step.event in ("lost", "parted")) == (link.state is State.DOWN and before is not State.DOWN)
        due = link.next_timer()
        assert (due is None) == (link.state in (State.DOWN, State.OVER))
        if link.state is State.DOWN:
            assert link.retry_at <= now + LAST_RETRY_S
        if due is not None:
            assert due <= now + 60
    # Left alone from here, with timers only, the link ends soon.
    for _ in range(2000):
        due = link.next_timer()
        if due is None:
            break
        now = max(now, due)
        before_state, step = link.state, link.tick(now)
        after = link.next_timer()
        assert link.state is not before_state or step.send, "a timer that does nothing would be called for ever"
        assert after is None or after > now
    assert link.state in (State.DOWN, State.OVER)
