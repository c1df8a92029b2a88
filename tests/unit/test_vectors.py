"""The test vectors for all languages, checked with this codec and framing."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from bester.bridge.frames import Splitter, frame
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.codes import CODES
from bester.broker.wire.messages import OP_OF, OPERATIONS, Command, Malformed, Message

VECTORS = Path(__file__).parent.parent / "vectors"
FILES = ("messages.json", "links.json", "batches.json", "malformed.json")
Vector = dict[str, Any]
BY_OP = {operation.op: operation for operation in OPERATIONS}


def read(file: str) -> list[Vector]:
    vectors: list[Vector] = json.loads((VECTORS / file).read_text(encoding="utf-8"))["vectors"]
    return vectors


def octets(text: str) -> bytes:
    """Read the notation of the vectors: groups of hex digits, with `HH*N` for N times the byte HH."""
    groups = (group.partition("*") for group in text.split())
    return b"".join(bytes.fromhex(digits) * int(times or 1) for digits, _, times in groups)


def text(body: str | dict[str, str]) -> bytes:
    return body.encode() if isinstance(body, str) else octets(body["runs"])


def meaning(message: Message | Malformed) -> Vector:
    """Return a message in the notation of the vectors."""
    if isinstance(message, Malformed):
        return {"error": message.code, "op": message.op, "token": message.token}
    fields = message._asdict()
    if BY_OP[OP_OF[type(message)]].rare and list(fields.values())[-1] is None:
        fields.popitem()
    if "commands" in fields:
        fields["commands"] = [command._asdict() for command in fields["commands"]]
    return {"message": type(message).__name__.upper(), "op": OP_OF[type(message)], "fields": fields}


def expected(vector: Vector) -> list[Vector]:
    """Read the meaning of a vector, with bodies as the bytes that messages hold."""
    rows: list[Vector] = copy.deepcopy(vector["messages"])
    for fields in (row["fields"] for row in rows if "fields" in row):
        if "body" in fields:
            fields["body"] = text(fields["body"])
        for command in fields.get("commands", ()):
            command["body"] = text(command["body"])
    return rows


def build(row: Vector) -> Message:
    """Make the message of a row of `expected`."""
    fields = dict(row["fields"])
    if "commands" in fields:
        fields["commands"] = [Command(**command) for command in fields["commands"]]
    message: Message = BY_OP[row["op"]].message(**fields)
    return message


FABRIC = {f"{file}: {vector['name']}": vector for file in FILES for vector in read(file)}
NATIVE = {vector["name"]: vector for vector in read("native.json")}


@pytest.mark.parametrize("name", FABRIC)
def test_frames_decode_to_the_messages_of_the_vector(name: str) -> None:
    vector = FABRIC[name]
    frames = [octets(frame) for frame in vector["frames"]]
    assert [meaning(message) for message in decode(frames)] == expected(vector)


@pytest.mark.parametrize("name", [name for name, vector in FABRIC.items() if "canonical" in vector])
def test_messages_encode_to_the_canonical_frames(name: str) -> None:
    vector = FABRIC[name]
    messages = [build(row) for row in expected(vector)]
    assert encode(messages) == [octets(frame) for frame in vector["frames"]]


@pytest.mark.parametrize("name", NATIVE)
@pytest.mark.parametrize("step", [1, 3, 7, 1 << 20])
def test_native_stream_holds_the_bodies_however_split(name: str, step: int) -> None:
    vector = NATIVE[name]
    stream = octets(vector["stream"])
    splitter = Splitter(vector.get("limit_bytes", 1 << 20))
    bodies = [body for at in range(0, len(stream), step) for body in splitter.feed(stream[at : at + step])]
    assert bodies == [text(body) for body in vector["bodies"]]
    assert splitter.refused == vector.get("refused")


@pytest.mark.parametrize("name", [name for name in NATIVE if "refused" not in NATIVE[name] and "cut" not in name])
def test_framing_native_bodies_gives_the_stream(name: str) -> None:
    vector = NATIVE[name]
    assert b"".join(frame(text(body)) for body in vector["bodies"]) == octets(vector["stream"])


def test_every_operation_and_every_code_of_the_codec_has_a_vector() -> None:
    rows = [row for file in FILES for vector in read(file) for row in vector["messages"]]
    assert {row["op"] for row in rows if "message" in row} == set(OP_OF.values())
    assert {row["op"] for row in rows if "error" in row} >= {op for op in OP_OF.values() if op not in (3, 4)}
    assert {row["error"] for row in rows if "error" in row} == {"malformed", "unknown-op"} <= set(CODES)


def test_names_are_unique() -> None:
    for file in (*FILES, "native.json"):
        names = [vector["name"] for vector in read(file)]
        assert len(names) == len(set(names))
