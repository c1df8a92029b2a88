"""Dedup of received messages, and acks by connection."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.client.frames import ACKS, acks
from bester.client.inbox import Inbox


def test_open_message_is_not_acked() -> None:
    inbox = Inbox(10, True)
    assert inbox.register("a")
    assert inbox.take() == []
    inbox.mark_done("a")
    inbox.mark_done("a")
    assert inbox.take() == ["a"]
    assert inbox.take() == []


def test_duplicate_of_a_done_message_is_acked_at_once() -> None:
    inbox = Inbox(10, True)
    inbox.register("a")
    inbox.mark_done("a")
    inbox.reset_connection()
    assert inbox.take() == [], "the connection that delivered it is gone"
    assert not inbox.register("a")
    assert inbox.take() == ["a"]


def test_duplicate_of_an_open_message_is_acked_when_done() -> None:
    inbox = Inbox(10, True)
    inbox.register("a")
    inbox.reset_connection()
    assert not inbox.register("a")
    assert inbox.take() == []
    inbox.mark_done("a")
    assert inbox.take() == ["a"]


def test_message_done_without_a_connection_is_acked_at_redelivery() -> None:
    inbox = Inbox(10, True)
    inbox.register("a")
    inbox.reset_connection()
    inbox.mark_done("a")
    assert inbox.take() == [], "this connection knows nothing of it"
    assert not inbox.register("a")
    assert inbox.take() == ["a"]


def test_duplicate_is_known_without_acks() -> None:
    inbox = Inbox(10, False)
    assert inbox.register("a")
    assert not inbox.register("a")
    inbox.mark_done("a")
    assert inbox.take() == []


def test_forgotten_id_is_passed_on_again() -> None:
    inbox = Inbox(2, True)
    for id_ in "abc":
        assert inbox.register(id_)
    inbox.mark_done("a")
    assert inbox.take() == [], "so that the server delivers it again"
    assert inbox.register("a")


def test_acks_of_one_tick_are_one_frame_up_to_a_bound() -> None:
    ids = [str(number) for number in range(ACKS + 1)]
    first, second = (json.loads(body)["payload"] for body in acks(ids, 1 << 20))
    assert first["data"]["command"] == {"type": "ack", "data": ids[:ACKS]}
    assert second["data"]["command"]["data"] == ids[ACKS:]
    assert first["type"] == "builtin"
    assert acks([], 1 << 20) == []


@pytest.mark.parametrize("length", [1, 36, 200, 900])
def test_ack_frames_keep_to_the_servers_limit(length: int) -> None:
    ids = [f"{number:0{length}}" for number in range(300)]
    bodies = acks(ids, 1024)
    assert all(len(body) <= 1024 for body in bodies)
    assert [id_ for body in bodies for id_ in json.loads(body)["payload"]["data"]["command"]["data"]] == ids


@given(st.lists(st.tuples(st.sampled_from(["came", "done", "take", "void"]), st.sampled_from("abcdef")), max_size=60))
def test_acks_are_due_for_done_messages_of_this_connection_under_any_schedule(steps: list[tuple[str, str]]) -> None:
    inbox = Inbox(3, True)
    done: set[str] = set()
    pending: set[str] = set()  # delivered on this connection and not acknowledged
    for what, id_ in steps:
        if what == "came":
            if inbox.register(id_):
                done.discard(id_)
            pending.add(id_)
        elif what == "done":
            inbox.mark_done(id_)
            done.add(id_)
        elif what == "void":
            inbox.reset_connection()
            pending.clear()
        else:
            taken = inbox.take()
            assert set(taken) <= done & pending
            pending -= set(taken)
