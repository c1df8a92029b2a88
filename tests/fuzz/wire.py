"""Fuzzes the fabric's codec: bytes that anybody may send, and messages that a handler's mistakes may make."""

from __future__ import annotations

from collections.abc import Sequence
from random import Random
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types

from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode
from bester.broker.wire.codes import CODES, WireError
from bester.broker.wire.messages import (
    BODY,
    LIST,
    MAP,
    MAX_BATCH,
    MAX_TOKEN,
    OP_OF,
    OPERATIONS,
    Command,
    Error,
    Malformed,
    Message,
    Operation,
    Request,
)
from bester.broker.wire.readers import READERS, careful
from tests.fuzz.odd import Odd
from tests.fuzz.play import Told, must

SPECS: dict[int, Operation] = {row.op: row for row in OPERATIONS}
LONGEST_TEXT = 4000
"""Upper bound of an error text about unreadable input, in characters: the text goes to the sender and into the log."""
_NO_MESSAGEPACK = (ValueError, TypeError, OverflowError, msgpack.UnpackException)


def play(steps: Sequence[int], told: Told) -> int:
    """Read and write the messages that each step draws. Returns their number."""
    chance = Random()
    odd = Odd(chance)
    count = 0
    for step in steps:
        chance.seed(step)
        if odd.one_in(10):
            count += _written(odd, told)
            continue
        rows = [_drawn(odd) for _ in range(odd.pick((1, 1, 1, 2, 4)))]
        frames = odd.frames(rows)
        told(f"read {[bytes(frame[:200]) for frame in frames]}")
        count += check_frames(frames)
    return count


def _drawn(odd: Odd) -> Any:
    row = odd.row()
    return odd.mutated(row) if odd.one_in(2) else row


def check_frames(frames: list[bytes]) -> int:
    messages = decode(frames)
    must(1 <= len(messages) <= MAX_BATCH, "something comes of every ZeroMQ message, and not more than a batch has")
    for message in messages:
        if type(message) is Malformed:
            _check_refusal(message)
        else:
            check_message(message)
    _check_fast_readers(frames)
    return len(messages)


def _check_refusal(refused: Malformed) -> None:
    must(refused.code in CODES, f"a code that is in the table, not {refused.code!r}")
    must(refused.text.isprintable() and len(refused.text) < LONGEST_TEXT, "a refusal is a line that can be shown")
    check_message(Error(*refused))


def check_message(message: Any) -> None:
    """Check that a message keeps to OPERATIONS, and survives being sent on. The meta of a REQUEST that is made here may
    be a Struct, and is a map when it is read."""
    _check_fields(message._replace(meta=dict(message.meta)) if type(message) is Request else message)
    once = [bytes(frame) for frames in batches([message]) for frame in frames]
    (again,) = decode(once)
    must(type(again) is type(message), f"what is sent is what is read: {again}")
    _check_fields(again)
    twice = [bytes(frame) for frames in batches([_message(again)]) for frame in frames]
    must(once == twice, "and is written the same")


def _check_fields(message: Any) -> None:
    spec = SPECS[OP_OF[type(message)]]
    must(len(message) == len(spec.fields), "all fields are there")
    for value, kinds, name in zip(message, spec.fields, message._fields, strict=True):
        if kinds is BODY:
            must(type(value) is bytes, "a body is bytes")
        elif kinds is not None:
            must(type(value) in kinds, f"{name} is one of {kinds}")
        if type(value) is int:
            must(-MAX_TOKEN <= value <= MAX_TOKEN, f"{name} is below 2^53")
        if kinds is MAP:
            must(all(type(key) is str for key in value), f"keys of {name} are strings")
        if kinds is LIST and name == "commands":
            _check_commands(value)


def _message(read: Message | Malformed) -> Message:
    assert not isinstance(read, Malformed)
    return read


def _check_commands(commands: list[Command]) -> None:
    for command in commands:
        must(type(command) is Command and type(command.command) is str, "a command has a name")
        must(type(command.targets) is list and all(type(each) is str for each in command.targets), "and targets")
        must(type(command.body) is bytes, "and a body")
        must(command.type is None or type(command.type) is str, "and perhaps a type")


def _check_fast_readers(frames: list[bytes]) -> None:
    """Check that the readers written from the table give the same as the careful one."""
    if not frames or len(frames[0]) > 50_000:
        return
    try:
        rows = msgpack.unpackb(frames[0], timestamp=1)
    except _NO_MESSAGEPACK:
        return
    for row in rows if type(rows) is list else ():
        if type(row) is list and row and type(row[0]) is int and row[0] in READERS:
            fast, slow = READERS[row[0]](row, frames), careful(row, frames)
            must(repr(fast) == repr(slow), f"one reader says {fast}, the other {slow}")


# --- written ----------------------------------------------------------------------------------------------------


class _Odd:
    """A value that MessagePack does not know."""

    def __repr__(self) -> str:
        return "_Odd()"  # the same in every process: a story is told in the same words each time


def _value(odd: Odd) -> Any:
    """Return a value such as a handler's mistake may put into a message."""
    if odd.one_in(6):
        return odd.pick((2**64, -(2**70), {1, 2}, _Odd(), "\ud800", {"k": "\udfff"}, [_Odd()], 1 + 2j, b"x" * 20_000))
    return odd.value()


def _written(odd: Odd, told: Told) -> int:
    """Messages with anything in them, among sound ones: these arrive, in their order, whatever those are."""
    sent: list[tuple[bool, Any]] = []
    for _ in range(odd.pick((1, 3, 9))):
        spec = odd.pick(OPERATIONS)
        sound = odd.one_in(2)
        fields = [_sound(spec, index, odd) if sound else _value(odd) for index in range(len(spec.fields))]
        sent.append((sound, spec.message(*fields)))
    told(f"write {[message for _, message in sent]!r:.2000}")
    refused: list[Message] = []

    def cannot(message: Message, error: WireError) -> Message | None:
        must(error.code in CODES and error.text.isprintable() and len(error.text) < LONGEST_TEXT, "it says why")
        error.text.encode()
        refused.append(message)
        return None

    arrived = [each for frames in batches([message for _, message in sent], cannot) for each in decode(frames)]
    left = [message for _, message in sent if not any(message is each for each in refused)]
    must(len(arrived) == len(left), f"{len(sent)} sent, {len(refused)} refused, {len(arrived)} arrived")
    for sound, message in sent:
        must(not (sound and any(message is each for each in refused)), f"a sound one was refused: {message}")
    for message, came in zip(left, arrived, strict=True):
        must(isinstance(came, Malformed) or type(came) is type(message), "in their order")
    return len(sent)


def _sound(spec: Operation, index: int, odd: Odd) -> Any:
    kinds = spec.fields[index]
    if spec.commands == index:
        return [Command("sendClients", ["bob"], odd.pick((b"1", b"x" * 20_000)), None)]
    if kinds is BODY:
        return odd.pick((b"1", b"x" * 20_000))
    if kinds is MAP:
        return {"k": "v"}
    if kinds is LIST:
        return []
    if kinds is None or type(None) in kinds:
        return None
    return odd.chance.randrange(1000) if int in kinds else "text"
