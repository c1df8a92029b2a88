"""The fabric codec: messages survive encoding and decoding, other rows are refused in their position, and nothing
raises."""

from __future__ import annotations

import struct
import time
import tracemalloc
from collections.abc import Sequence
from typing import Any

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bester.broker.wire import codec, readers
from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import (
    BATCH_BYTES,
    INLINE_BYTES,
    MAX_BATCH,
    MAX_TOKEN,
    OPERATIONS,
    Close,
    Command,
    Deliver,
    Hello,
    Malformed,
    Message,
    Operation,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
)

# --- messages to draw ----------------------------------------------------------------------------------------

numbers = st.integers(-MAX_TOKEN, MAX_TOKEN)
texts = st.text(max_size=12)
bodies = st.binary(max_size=40) | st.sampled_from([b"x" * INLINE_BYTES, b"y" * (INLINE_BYTES + 1), b"z" * 40_000])
scalars = st.none() | st.booleans() | numbers | st.floats(allow_nan=False) | texts | st.binary(max_size=8)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3), max_leaves=6
)
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "body": bodies,
    "commands": st.lists(
        st.builds(
            Command,
            st.sampled_from(["sendClients", "sendServers", "x"]),
            st.lists(texts, max_size=3),
            bodies,
            st.none() | texts,
        ),
        max_size=3,
    ),
    "recipients": st.dictionaries(texts, texts, max_size=3),
    "targets": st.lists(st.lists(numbers, min_size=2, max_size=4), max_size=3),
    "done": st.lists(numbers, max_size=4),
    "failed": st.lists(st.tuples(numbers, numbers, texts).map(list), max_size=3),
    "options": st.dictionaries(texts, values, max_size=3),
    "meta": st.dictionaries(texts, values, max_size=3),
    "steps": st.lists(st.dictionaries(texts, values, max_size=3), max_size=3),
    "argument": values,
    "value": values,
}
KINDS: dict[Any, st.SearchStrategy[Any]] = {
    frozenset({int}): numbers,
    frozenset({str}): texts,
    frozenset({int, type(None)}): st.none() | numbers,
    frozenset({str, type(None)}): st.none() | texts,
}


def of_operation(spec: Operation) -> st.SearchStrategy[Message]:
    names = spec.message.__annotations__
    fields = [FIELDS[name] if name in FIELDS else KINDS[kinds] for name, kinds in zip(names, spec.fields, strict=True)]
    return st.builds(spec.message, *fields)


messages = st.sampled_from(OPERATIONS).flatmap(of_operation)
junk = st.recursive(
    scalars | st.integers(-(2**63), 2**64 - 1) | st.floats(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts | st.binary(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@st.composite
def near_misses(draw: st.DrawFn) -> list[Any]:
    """Draw the row of a good message in which a value was replaced, dropped or added."""
    message: Any = draw(messages)
    row = msgpack.unpackb(encode([message])[0])[0]
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(row)))
        row[at : at + draw(st.integers(0, 1))] = draw(st.lists(junk, max_size=1))
    return list(row)


# --- round trips ---------------------------------------------------------------------------------------------


@given(st.lists(messages, min_size=1, max_size=8))
def test_messages_survive_encoding_and_decoding(sent: list[Message]) -> None:
    assert decode(encode(sent)) == sent


@pytest.mark.parametrize("spec", OPERATIONS, ids=lambda spec: spec.message.__name__)
@given(data=st.data())
@settings(max_examples=20)
def test_each_operation_survives_encoding_and_decoding(spec: Operation, data: st.DataObject) -> None:
    message = data.draw(of_operation(spec))
    (read,) = decode(encode([message]))
    assert read == message
    assert type(read) is type(message)


@given(st.lists(messages, min_size=1, max_size=8), st.lists(st.integers(1, 4)))
def test_batch_that_is_read_part_by_part_has_the_same_messages(sent: list[Message], parts: list[int]) -> None:
    frames = encode(sent)
    rest: Any = codec.unpack(frames)
    read: list[Any] = []
    for size in parts:
        assert len(read) + len(rest) == len(decode(frames))
        read += rest[:size]
        rest = rest[size:]
    assert read + rest[:] == decode(frames)


@given(messages, st.lists(junk, min_size=1, max_size=3))
def test_extra_trailing_fields_are_ignored(message: Message, extra: list[Any]) -> None:
    first, *attached = encode([message])
    row = msgpack.unpackb(first)[0]
    row += [None] * (len(message) + 1 - len(row)) + extra  # the last field may have been left out
    assert decode([msgpack.packb([row]), *attached]) == [message]


@given(messages)
def test_bodies_above_the_limit_and_no_others_are_attached(message: Message) -> None:
    rows: Any = getattr(message, "commands", [message])
    large = [row.body for row in rows if len(getattr(row, "body", b"")) > INLINE_BYTES]
    assert encode([message])[1:] == large


def test_nan_is_allowed_in_meta() -> None:
    (read,) = decode(encode([Submit(1, 2, "t", b"1", {"x": float("nan")})]))
    assert isinstance(read, Submit)
    assert read.meta["x"] != read.meta["x"]  # as only nan does


def test_last_of_two_equal_keys_counts() -> None:
    frame = bytes.fromhex("91" + "96" + "18" + "01" + "02" + "a174" + "c40131" + "82" + "a161" + "01" + "a161" + "02")
    assert decode([frame]) == [Submit(1, 2, "t", b"1", {"a": 2})]


# --- rows that are no messages -------------------------------------------------------------------------------


def assert_only_messages(answer: Sequence[object]) -> None:
    """Check a decoded batch: messages or refusals, and every message can be sent again unchanged."""
    assert 1 <= len(answer) <= MAX_BATCH
    for message in answer:
        if isinstance(message, Malformed):
            assert message.token is None or 0 <= message.token <= MAX_TOKEN
        else:
            encode([message])  # type: ignore[list-item]  # of a class in the table, or this fails


@given(st.lists(st.binary(max_size=200), max_size=3))
@settings(max_examples=300)
def test_garbage_never_raises(frames: list[bytes]) -> None:
    assert_only_messages(decode(frames))


@given(st.lists(messages, min_size=1, max_size=3), st.data())
@settings(max_examples=200)
def test_truncated_and_flipped_batches_never_raise(sent: list[Message], data: st.DataObject) -> None:
    first, *attached = encode(sent)
    cut = first[: data.draw(st.integers(0, len(first)))]
    assert_only_messages(decode([cut, *attached]))
    flipped = bytearray(first)
    for at in data.draw(st.lists(st.integers(0, len(first) - 1), max_size=4)):
        flipped[at] ^= 1 << data.draw(st.integers(0, 7))
    assert_only_messages(decode([bytes(flipped), *attached]))


@given(st.lists(near_misses(), min_size=1, max_size=4))
@settings(max_examples=300)
def test_bad_message_is_refused_in_its_position(rows: list[list[Any]]) -> None:
    frames = [msgpack.packb(rows), b"[]"]
    alone = [decode([msgpack.packb([row]), b"[]"])[0] for row in rows]
    assert repr(decode(frames)) == repr(alone)  # as text, because nan equals nothing


@given(near_misses() | st.lists(junk, max_size=7))
@settings(max_examples=500)
def test_fast_readers_agree_with_the_careful_one(row: list[Any]) -> None:
    frames = [b"", b"[1]"]
    op = row[0] if row else None
    if isinstance(op, int | float) and op in readers.READERS:
        quick = readers.READERS[int(op)](row, frames)
        assert repr(quick) == repr(readers.careful(row, frames))


@pytest.mark.parametrize("spec", OPERATIONS, ids=lambda spec: spec.message.__name__)
@pytest.mark.parametrize(
    "value", [True, 1.0, 2**53, -(2**53), b"x", {b"k": 1}, {1: 2}, msgpack.ExtType(5, b"")], ids=repr
)
def test_field_of_a_wrong_kind_is_refused(spec: Operation, value: object) -> None:
    good: Any = {int: 1, str: "x", bytes: b"x", dict: {}, list: []}
    for index, kinds in enumerate(spec.fields[:-1] if spec.rare else spec.fields):
        row = [spec.op, *(good[next(kind for kind in good if kinds is None or kind in kinds)] for kinds in spec.fields)]
        row[index + 1] = value
        anything = kinds is None and (type(value) is not int) and not isinstance(value, msgpack.ExtType)
        anything = anything and value != {1: 2}  # map keys other than strings are not allowed anywhere
        body = index == spec.body and value == b"x"
        (read,) = decode([msgpack.packb([row])])
        assert isinstance(read, Malformed) is not (anything or body), (index, read)


def test_batch_holds_1_to_1024_messages() -> None:
    assert isinstance(decode([msgpack.packb([])])[0], Malformed)
    assert decode([msgpack.packb([[23, 1]] * MAX_BATCH)]) == [Close(1)] * MAX_BATCH
    assert len(decode([msgpack.packb([[23, 1]] * (MAX_BATCH + 1))])) == 1


# --- short frames that ask for much ----------------------------------------------------------------------------


def bomb(header: bytes, depth: int) -> bytes:
    return b"\x91" + header * depth


BOMBS = {
    "one array of 2^32-1": bomb(b"\xdd\xff\xff\xff\xff", 1),
    "arrays of 65,535, 1,000 deep": bomb(b"\xdc\xff\xff", 1000),
    "arrays of 65,536, 1,000 deep": bomb(b"\xdd\x00\x01\x00\x00", 1000),
    "the same, hidden among texts": bomb(b"\x92\xa1x\xdd\x00\x01\x00\x00", 500),
    "arrays of 3,000, 1,000 deep": bomb(b"\xdc\x0b\xb8", 1000),
    "arrays of 60,000, 1,000 deep, the last one there": bomb(b"\xdc\xea\x60", 1000) + b"\xc0" * 60_000,
    "arrays of 131,072, 500 deep in a megabyte": bomb(b"\x92\xa1x\xdd\x00\x02\x00\x00", 500) + b"\xc0" * 2**20,
    "maps of 2^32-1, 1,000 deep": bomb(b"\xdf\xff\xff\xff\xff\xa1x", 1000),
    "a string of 2^32-1": bomb(b"\xdb\xff\xff\xff\xff", 1),
    "nested 100,000 deep": b"\x91" * 100_000 + b"\xc0",
}


@pytest.mark.parametrize("name", BOMBS)
def test_announced_array_without_elements_costs_nothing(name: str) -> None:
    started = time.process_time()
    tracemalloc.start()
    try:
        answer = decode([BOMBS[name]])
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [type(message) for message in answer] == [Malformed]
    assert peak_bytes < 16 * 2**20
    assert (
        time.process_time() - started < 1
    )  # seconds of CPU time; without the check before decoding, frames a second are far fewer


def test_complete_long_arrays_are_read() -> None:
    targets = [[n, n + 1] for n in range(20_000)]
    deliver = Deliver(1, "i", "\u0700" * 300, b"[]", targets, None, {})
    assert decode(encode([deliver])) == [deliver]
    report = Report(1, 0, None, None, {f"user-{n}": "delivered" for n in range(20_000)})
    assert decode(encode([report])) == [report]


def test_value_nested_too_deep_to_pass_on_is_refused() -> None:
    value: Any = 0
    for _ in range(readers.VALUE_DEPTH):
        value = [value]
    assert isinstance(decode(encode([Hello(1, "handler", "w", {"x": value})]))[0], Hello)
    assert isinstance(decode(encode([Hello(1, "handler", "w", {"x": [value]})]))[0], Malformed)
    assert isinstance(decode(encode([Hello(1, "handler", "w", {"x": {"k": value}})]))[0], Malformed)


# --- values that MessagePack allows and BFP does not ---------------------------------------------------------


@pytest.mark.parametrize(
    "note",
    [b"\xa2\xff\x41", b"\xa3\xed\xa0\x80", b"\xd4\x05a", b"\xd6\xff\x00\x00\x00\x01"],
    ids=["not UTF-8", "a lone surrogate", "extension", "timestamp"],
)
def test_unreadable_value_refuses_one_message(note: bytes) -> None:
    frame = b"\x93" + msgpack.packb([31, 1, "sent"]) + b"\x95\x0b\x07\x00\x90" + note + msgpack.packb([31, 2, "sent"])
    before, bad, after = decode([frame])
    assert (before, after) == (Relayed(1, "sent"), Relayed(2, "sent"))
    assert isinstance(bad, Malformed)
    assert (bad.op, bad.token) == (11, 7)


def test_timestamp_in_meta_is_a_number_of_seconds() -> None:
    frame = bytes.fromhex("91" + "96" + "18" + "01" + "02" + "a174" + "c40131" + "81" + "a161" + "d6ff0000003c")
    assert decode([frame]) == [Submit(1, 2, "t", b"1", {"a": 60.0})]


def test_large_frame_with_an_unreadable_value_is_refused_whole() -> None:
    row = msgpack.packb([31, 1, "sent"])
    count = codec.SECOND_LOOK_BYTES // len(row) // 8
    frame = b"\xdc" + struct.pack(">H", count + 1) + msgpack.packb([31, 1, "s" * 64]) * count + b"\x91\xd4\x05a"
    assert len(frame) > codec.SECOND_LOOK_BYTES
    assert [type(message) for message in decode([frame])] == [Malformed]


# --- batches ---------------------------------------------------------------------------------------------------


@given(st.lists(messages, max_size=30))
def test_batches_hold_all_messages_in_order(sent: list[Message]) -> None:
    assert [message for frames in batches(sent) for message in decode(frames)] == sent


def test_batch_is_closed_at_1024_messages() -> None:
    assert [len(decode(frames)) for frames in batches([Close(n) for n in range(2500)])] == [1024, 1024, 452]


def test_batch_is_closed_when_its_bodies_are_large() -> None:
    inlined = [Request(n, "t", b"x" * INLINE_BYTES, "u", {}) for n in range(200)]
    assert all(len(frames[0]) < 2 * BATCH_BYTES for frames in batches(inlined))
    attached = [Reply(n, 0, [Command("sendClients", ["a"], b"x" * 600_000)]) for n in range(5)]
    assert [len(decode(frames)) for frames in batches(attached)] == [2, 2, 1]


def test_batch_with_a_large_frame_0_is_halved() -> None:
    recipients = {f"user-{n:05}@example.org": "failed:not-connected" for n in range(1000)}
    reports: list[Message] = [Report(n, 1, "not-connected", None, recipients) for n in range(300)]
    sent = list(batches(reports))
    assert all(len(frames[0]) <= 2 * BATCH_BYTES for frames in sent)
    assert [message for frames in sent for message in decode(frames)] == reports


def test_no_messages_make_no_batch() -> None:
    assert list(batches([])) == []
    assert isinstance(decode([])[0], Malformed)


def test_long_rows_of_a_batch_are_read_few_at_a_time() -> None:
    dense: list[Any] = [20, 1, "evil", [], {"m": [[]] * 10_000}]
    short: list[Any] = [20, 1, "evil", [], {}]
    rows: Any = codec.unpack_in_parts([msgpack.packb([dense, dense, *[short] * 40, dense])], 2**18, lambda frames: None)
    taken = []
    while rows:
        count = rows.within(16)
        taken.append(len(rows[:count]))
        rows = rows[count:]
    assert taken == [1, 16, 16, 10]
    rows = codec.unpack_in_parts([msgpack.packb([short] * 5 + [dense] * 2)], 2**18, lambda frames: None)
    assert [rows.within(most) for most in (1, 4, 16)] == [1, 4, 6]


@pytest.mark.parametrize(("body", "steps"), [(codec.LONG_BODY_BYTES, [16, 16]), (codec.LONG_BODY_BYTES + 1, [1, 1])])
def test_messages_of_a_long_attached_body_are_read_one_by_one(body: int, steps: list[int]) -> None:
    frame = msgpack.packb([[12, number, "t", [["sendClients", ["a"], 1]], {}] for number in range(100)])
    rows: Any = codec.unpack([frame, b"short", b"x" * body])
    assert [rows.within(16), rows[1:].within(16)] == steps


@pytest.mark.parametrize("inner", [[], {}, [1], {"a": 1}])
def test_depth_is_that_of_the_innermost_array_or_map_empty_or_not(inner: Any) -> None:
    value = inner
    for _ in range(readers.VALUE_DEPTH - 1):
        value = [[], value, {}]
    assert not readers.too_deep(value)
    assert readers.too_deep([value])
