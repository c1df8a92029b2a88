"""Servers that are not listed: their claims are not believed, but that a message is a duplicate, which is marked."""

from __future__ import annotations

from typing import Any

import pytest

from bester.broker.core.effects import Link
from bester.broker.core.settings import Settings
from bester.broker.wire.messages import Deliver
from tests.unit.core_stand import Stand, clients, handler

STRANGER = "10.9.8.7"


def town() -> Stand:
    return Stand(Settings("s1", accept="open"), accounts=frozenset({"bob"}))


def arrive(stand: Stand, door: str, **meta: Any) -> None:
    """Receive a stranger's message for bob, over a keyless tcp fabric or by the native protocol."""
    if door == "native":
        bridge = stand.bridge(name="n")
        stand.submit(bridge, "chat", session=None, scope="server", address=STRANGER, **meta)
    else:
        stand.relay(stand.server("s9", door=door), "chat", **meta)


def delivered(stand: Stand, bob: Link, chat: Link) -> Deliver:
    stand.answer(chat, clients("bob"))
    return stand.deliver(bob)


@pytest.mark.parametrize("door", ["tcp", "native"])
@pytest.mark.parametrize(
    ("meta", "marked"),
    [({}, None), ({"again": True}, True), ({"again": False}, None), ({"again": 1}, None), ({"attempt": 2}, True)],
    ids=str,
)
def test_strangers_duplicate_is_marked_and_its_id_is_not_believed(
    door: str, meta: dict[str, Any], marked: bool | None
) -> None:
    stand = town()
    bob, chat = stand.bridge("bob"), stand.handler("chat")
    arrive(stand, door, id="s9/x/1.0.0", lane=["d9", 1, 1], **meta)
    first = delivered(stand, bob, chat)
    assert first.meta.get("redelivered") is marked
    assert not first.id.startswith("s9/x/1")
    arrive(stand, door, id="s9/x/1.0.0", lane=["d9", 1, 1], **meta)
    assert delivered(stand, bob, chat).id != first.id


def test_mark_survives_a_queue_and_a_relay() -> None:
    stand = town()
    chat, room = stand.handler("chat"), stand.handler("room")
    arrive(stand, "tcp", again=True)
    stand.answer(chat, clients("bob"))
    assert stand.kept("user/bob")[0].meta["repeated"] is True
    arrive(stand, "tcp", again=True)
    stand.answer(chat, handler("room"))
    stand.answer(room, clients("bob"))
    assert [entry.meta.get("repeated") for entry in stand.kept("user/bob")] == [True, True]
