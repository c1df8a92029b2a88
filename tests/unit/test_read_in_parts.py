"""A long batch is read part by part: each part is what it is in the whole, and what stands behind waits."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest

from bester.broker.wire.codec import decode
from bester.broker.wire.messages import OP_OF, Malformed, Reply
from bester.broker.wire.runs import MESSAGE_OF, SHORT_BYTES, read_in_parts
from bester.broker.wire.unpacking import LONG_BYTES, MAX_WEIGHT

PART = 7


def reply(token: int, body: bytes, *more: object) -> list[object]:
    return [OP_OF[Reply], token, 0, [["sendClients", ["u"], body]], *more]


def in_parts(frames: list[bytes]) -> list[list[Any]]:
    """Return the messages of each part, read as a door reads them: the rest is known before its first message is."""
    rows, parts = read_in_parts(frames, MAX_WEIGHT), []
    while rows:
        rest = rows[PART:]
        parts.append(list(rows[:PART]))
        rows = rest
    return parts


def plain(message: Any) -> tuple[Any, ...]:
    """Return the fields of a message, however it was read."""
    kind = MESSAGE_OF.get(type(message), type(message))
    commands = [(each.command, each.targets, each.body, each.type) for each in getattr(message, "commands", ())]
    rest = [getattr(message, name) for name in kind._fields if name != "commands"]
    return kind, rest, commands


@pytest.mark.parametrize("more", [(), (None, None, "of a later version")], ids=["usual", "unusual"])
@pytest.mark.parametrize("size", [10, SHORT_BYTES // 50, LONG_BYTES // 50, LONG_BYTES // 10])
def test_parts_are_those_of_the_whole(size: int, more: tuple[object, ...]) -> None:
    body = b'"' + b"x" * size + b'"'
    frame = msgpack.packb([reply(token, body, *more) for token in range(50)])
    parts = in_parts([frame])
    assert len(parts) == 50 // PART + 1
    assert [plain(each) for part in parts for each in part] == [plain(each) for each in decode([frame])]


def test_attached_bodies_beside_long_ones() -> None:
    rows = [
        [OP_OF[Reply], token, 0, [["sendClients", ["u"], 1], ["sendClients", ["v"], b"1" * 70_000]]]
        for token in range(50)
    ]
    frames = [msgpack.packb(rows), b'"attached"']
    assert len(frames[0]) > LONG_BYTES
    assert [plain(each) for part in in_parts(frames) for each in part] == [plain(each) for each in decode(frames)]


@pytest.mark.parametrize("fault", [b"\xc1", b"", b"\xc0\xc0"], ids=["no MessagePack", "cut off", "too long"])
def test_batch_that_is_no_messagepack_is_refused_whole(fault: bytes) -> None:
    rows = [msgpack.packb(reply(token, b"1" * (LONG_BYTES // 10))) for token in range(20)]
    (message,) = (each for part in in_parts([b"\xdc\x00\x15" + b"".join(rows) + fault]) for each in part)
    assert type(message) is Malformed


def test_batch_of_megabytes_is_not_read_before_its_turn() -> None:
    """Each of its messages has as many values as one may have, and both together more."""
    heavy = [reply(token, b"1", None, None, *[0] * 5000) for token in range(2)]
    frame = msgpack.packb([*heavy, *(reply(token, b"1" * (LONG_BYTES // 10)) for token in range(20))])
    assert len(frame) > LONG_BYTES
    rows = read_in_parts([frame], 6000)
    assert len(rows) == 22
    assert [type(each) is Malformed for each in rows[:PART]] == [False] * PART


def test_values_that_are_not_allowed_are_refused_in_their_place() -> None:
    rows = [reply(token, b"1" * (LONG_BYTES // 10)) for token in range(20)]
    rows[3].append(msgpack.ExtType(5, b"x"))
    messages = [each for part in in_parts([msgpack.packb(rows)]) for each in part]
    assert [type(each) is Malformed for each in messages] == [number == 3 for number in range(20)]
