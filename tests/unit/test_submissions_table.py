"""The states of an unreported message: its table, in the code and on the page, and any order of events."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.bridge.frames import frame
from bester.bridge.submission import TRANSITIONS, Event, State, Submission
from bester.broker.wire.messages import Report, Submit
from tests.unit.bridge_stand import ListConnection, Scene


def write(scene: Scene, connection: ListConnection, *ids: str, data: str = "1") -> None:
    """Let a client send messages with these ids, in one write."""
    payloads = [f'{{"payload":{{"type":"t","data":{data},"id":"{id_}"}}}}'.encode() for id_ in ids]
    scene.bridge.on_bytes(connection, b"".join(map(frame, payloads)))
    scene.turn()


def good(*tokens: int) -> list[Report]:
    return [Report(token, 0, None, f"s/{token}", {}) for token in tokens]


LIVING = [state for state in State if state is not State.ENDED]


def submission(state: State) -> Submission:
    return Submission(Submit(1, 7, "t", b"1", {}), b'"i"', 260, 0.0, 7, state)


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", get_args(Event))
def test_event_follows_the_table_and_an_illegal_one_raises(state: State, event: Event) -> None:
    message = submission(state)
    if (state, event) in TRANSITIONS:
        message.on(event)
        assert message.state is TRANSITIONS[state, event]
    else:
        with pytest.raises(AssertionError, match=f"a message that is {state.value} cannot be {event}"):
            message.on(event)
        assert message.state is state


def test_report_ends_a_message_in_every_state() -> None:
    """The hot path takes a reported message from the table and leaves the state of its record alone."""
    assert {state for state, event in TRANSITIONS if event == "reported"} == set(LIVING)
    assert {after for (_, event), after in TRANSITIONS.items() if event == "reported"} == {State.ENDED}


def test_readme_shows_the_table_of_a_message() -> None:
    readme = (Path(__file__).parents[2] / "bridge" / "README.md").read_text(encoding="utf-8")
    section = readme.partition("## States of an unreported message\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| ([\w-]+) \| (\w+) \| ([\w-]+) \|", section, re.MULTILINE)
    states = {(State(before), event): State(after) for before, event, after in rows[1:]}
    assert states == TRANSITIONS
    assert len(rows) - 1 == len(TRANSITIONS)


ACTIONS = ("write", "link lost", "link ready", "full", "room", "report", "report old", "client gone", "later")


@given(st.lists(st.sampled_from(ACTIONS), max_size=40))
def test_no_order_of_events_breaks_the_table(actions: list[str]) -> None:
    scene = Scene(gone_messages=3, hold_s=10.0, unreported=5)
    connection = scene.log_in()
    sent: list[int] = []
    for action in actions:
        match action:
            case "write":
                write(scene, connection, "i")
            case "link lost":
                scene.bridge.on_link_lost("gone")
            case "link ready" if not scene.bridge.is_ready:
                scene.bridge.on_link_ready()
            case "full" | "room":
                scene.full = action == "full"
            case "report" | "report old" if sent:
                scene.broker(*good(sent.pop(-1 if action == "report" else 0)))
            case "client gone":
                scene.bridge.on_connection_lost(connection)
                scene.bridge.tick()
                connection = scene.connect() if scene.full or not scene.bridge.is_ready else scene.log_in()
            case "later":
                scene.now += 4.0
                scene.bridge.tick()
        scene.turn()
        sent += [submit.token for submit in scene.take(Submit)]
    scene.full = False
    scene.bridge.on_link_lost("gone")
    scene.bridge.on_link_ready()
    scene.bridge.tick()
    again = scene.take(Submit)
    counts = scene.bridge.inspect().submissions
    assert [submit.token for submit in again] == sorted(submit.token for submit in again)
    assert (counts.waiting + counts.departed, counts.queued) == (len(again), 0)
    while again:
        scene.broker(*good(*(submit.token for submit in again)))
        again = scene.take(Submit)
    assert set(scene.bridge.inspect().submissions) == {0}
