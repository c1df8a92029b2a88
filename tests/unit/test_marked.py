"""Deliveries of several brokers: what comes behind a marked one of a message is marked, whichever broker it is of."""

from __future__ import annotations

import pytest

from bester.bridge.marked import MOST, Marked
from bester.broker.wire.messages import Deliver, Forward
from tests.unit.test_bridge_brokers import Cluster

MARK = {"redelivered": True}


ORDERS = pytest.mark.parametrize(
    ("first", "second", "marks"),
    [
        (("b2", True), ("b1", False), [True, True]),
        (("b1", False), ("b2", True), [False, True]),
        (("b1", False), ("b1", False), [False, False]),
        (("b2", True), ("b2", False), [True, True]),  # adopted from the broker that had it first
    ],
)


@pytest.mark.parametrize("waits", [False, True])
@ORDERS
def test_what_comes_behind_a_marked_delivery_is_marked(
    first: tuple[str, bool], second: tuple[str, bool], marks: list[bool], waits: bool
) -> None:
    scene = Cluster(turn_frames=1)
    several = [scene.enter("ann") for _ in range(2)]  # more copies than a turn makes, so that what follows waits
    targets = [[0, *(each.session.number for each in several)]]
    for number, (broker, marked) in enumerate((first, second)):
        messages = [Deliver(2 * number + 2, "s/1.0", "t", b"1", targets, None, MARK if marked else {})]
        if waits:
            messages.insert(0, Deliver(2 * number + 1, f"s/0.{number}", "t", b"0", targets))
        scene.tell(broker, *messages)
    for connection in several:
        frames = [each["header"] for each in connection.frames() if each["header"].get("id") == "s/1.0.0"]
        assert [each.get("redelivered", False) for each in frames] == marks


@ORDERS
def test_what_comes_behind_the_marked_message_for_a_server_is_marked_too(
    first: tuple[str, bool], second: tuple[str, bool], marks: list[bool]
) -> None:
    scene = Cluster()
    forwards: list[Forward] = []
    scene.bridge.forwards.carry = forwards.append
    for token, (broker, marked) in enumerate((first, second), 1):
        scene.tell(broker, Forward(token, "h:1", "t", b"1", {"id": "s/1.0", **({"again": True} if marked else {})}))
    assert [each.meta.get("again", False) for each in forwards] == marks


def test_deliveries_that_are_remembered_are_few_and_the_latest() -> None:
    marked = Marked()
    for number in range(2 * MOST):
        marked.take([Deliver(1, f"s/{number}", "t", b"", [], None, MARK)])
    assert len(marked) == MOST
    latest, old = marked.take([Deliver(1, f"s/{number}", "t", b"", []) for number in (2 * MOST - 1, 0)])
    assert latest.meta == MARK
    assert old.meta == {}
