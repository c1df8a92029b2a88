"""Which messages are new, and which are acknowledged on which connection."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.client.frames import ACKS, acks
from bester.client.inbox import Inbox


def test_what_is_not_done_is_not_acknowledged() -> None:
    inbox = Inbox(10, True)
    assert inbox.came("a")
    assert inbox.take() == []
    inbox.done("a")
    inbox.done("a")
    assert inbox.take() == ["a"]
    assert inbox.take() == []


def test_a_repeat_of_what_is_done_is_acknowledged_at_once_and_not_new() -> None:
    inbox = Inbox(10, True)
    inbox.came("a")
    inbox.done("a")
    inbox.void()
    assert inbox.take() == [], "the connection that delivered it is gone"
    assert not inbox.came("a")
    assert inbox.take() == ["a"]


def test_a_repeat_of_what_is_not_done_waits_for_the_application() -> None:
    inbox = Inbox(10, True)
    inbox.came("a")
    inbox.void()
    assert not inbox.came("a")
    assert inbox.take() == []
    inbox.done("a")
    assert inbox.take() == ["a"]


def test_done_between_two_connections() -> None:
    inbox = Inbox(10, True)
    inbox.came("a")
    inbox.void()
    inbox.done("a")
    assert inbox.take() == [], "this connection knows nothing of it"
    assert not inbox.came("a")
    assert inbox.take() == ["a"]


def test_without_acknowledgements_a_repeat_is_still_known() -> None:
    inbox = Inbox(10, False)
    assert inbox.came("a")
    assert not inbox.came("a")
    inbox.done("a")
    assert inbox.take() == []


def test_what_is_forgotten_is_delivered_again() -> None:
    inbox = Inbox(2, True)
    for id_ in "abc":
        assert inbox.came(id_)
    inbox.done("a")
    assert inbox.take() == [], "so that the server delivers it again"
    assert inbox.came("a")


def test_acknowledgements_of_one_tick_are_one_frame_unless_there_are_very_many() -> None:
    ids = [str(number) for number in range(ACKS + 1)]
    first, second = (json.loads(body)["payload"] for body in acks(ids, 1 << 20))
    assert first["data"]["command"] == {"type": "ack", "data": ids[:ACKS]}
    assert second["data"]["command"]["data"] == ids[ACKS:]
    assert first["type"] == "builtin"
    assert acks([], 1 << 20) == []


@pytest.mark.parametrize("length", [1, 36, 200, 900])
def test_no_frame_of_acknowledgements_is_longer_than_the_server_takes(length: int) -> None:
    ids = [f"{number:0{length}}" for number in range(300)]
    bodies = acks(ids, 1024)
    assert all(len(body) <= 1024 for body in bodies)
    assert [id_ for body in bodies for id_ in json.loads(body)["payload"]["data"]["command"]["data"]] == ids


@given(st.lists(st.tuples(st.sampled_from(["came", "done", "take", "void"]), st.sampled_from("abcdef")), max_size=60))
def test_whatever_happens_it_acknowledges_what_is_done_and_was_delivered_here(steps: list[tuple[str, str]]) -> None:
    inbox = Inbox(3, True)
    done: set[str] = set()
    owed: set[str] = set()  # delivered on this connection and not acknowledged
    for what, id_ in steps:
        if what == "came":
            if inbox.came(id_):
                done.discard(id_)
            owed.add(id_)
        elif what == "done":
            inbox.done(id_)
            done.add(id_)
        elif what == "void":
            inbox.void()
            owed.clear()
        else:
            taken = inbox.take()
            assert set(taken) <= done & owed
            owed -= set(taken)
