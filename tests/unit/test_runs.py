"""Runs are read and written as the codec does it, value for value and byte for byte."""

from __future__ import annotations

import subprocess
import sys
import uuid
from datetime import datetime
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import INLINE_BYTES, MAX_BATCH, MAX_FRAME_BYTES, Command, Heartbeat, Reply, Request
from bester.broker.wire.runs import FEW_KEYS, read_requests, write_replies
from bester.broker.wire.unpacking import MAX_ITEMS
from tests.unit.runs_stand import damaged, tokens, values

META = {"id": "s1/b-1/7", "root": "s1/b-1/7", "origin": "s1", "scope": "client", "attempt": 1, "path": ["s1/a"]}
ROW = [10, 7, "echo", b"{}", "u", META]
BAD_TEXT = msgpack.packb("a\udc80", unicode_errors="surrogateescape")  # a string that is not UTF-8
SURROGATE = b"\xa3\xed\xa0\x80"  # half a surrogate pair, as some encoders write it


def fields_of(message: Any) -> list[Any]:
    """Return a request's fields, with their types, so that 1, 1.0 and True differ."""
    return [repr(getattr(message, field)) for field in Request._fields]


def assert_same(frame: bytes) -> None:
    """Check that a frame read as a run gives what the codec gives."""
    run = read_requests([frame])
    if run is not None:
        found: list[Any] = list(decode([frame]))
        assert all(type(message) is Request for message in found), found
        assert [fields_of(message) for message in run] == [fields_of(message) for message in found]


metas = st.dictionaries(st.text(max_size=6), values, max_size=4)
usual_metas = st.dictionaries(
    st.text(max_size=6),
    st.text(max_size=9) | st.integers(-9, 2**63) | st.booleans() | st.lists(st.text(max_size=9), max_size=FEW_KEYS),
    max_size=6,
)
requests = st.builds(Request, tokens, st.text(), st.binary(max_size=40), st.none() | st.text(), usual_metas)


@given(st.lists(requests, min_size=1, max_size=4))
def test_usual_requests_are_read_as_a_run(sent: list[Request]) -> None:
    frames = encode(sent)
    run = read_requests(frames)
    assert run is not None
    assert [fields_of(message) for message in run] == [fields_of(message) for message in decode(frames)]


@given(st.lists(st.lists(values | st.just(10) | st.just("t") | metas, max_size=8) | values, max_size=3))
def test_any_rows_are_read_as_the_codec_reads_them(rows: list[Any]) -> None:
    assert_same(msgpack.packb(rows))


@given(st.integers(0, 6), values | metas)
def test_any_value_in_a_field_is_read_as_the_codec_reads_it(index: int, value: Any) -> None:
    assert_same(msgpack.packb([ROW, [*ROW[:index], value, *ROW[index + 1 :]], ROW]))


@given(damaged(msgpack.packb([ROW, ROW])))
def test_any_damage_is_read_as_the_codec_reads_it(frame: bytes) -> None:
    assert_same(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\x90", b"\xc0", b'[[10,1,"echo"]]', b"\xdd\xff\xff\xff\xff", b"\x91\xdd\x7f\xff\xff\xff", b"\x91" * 5000,
        msgpack.packb([ROW]) + b"\xc0", msgpack.packb([ROW, [3]]), msgpack.packb([[*ROW, msgpack.Timestamp(1, 0)]]),
        msgpack.packb([[*ROW[:5], {"t": msgpack.Timestamp(1, 0)}]]), msgpack.packb([[*ROW[:5], {"t": [[1]]}]]),
        msgpack.packb([[*ROW[:5], {"attempt": 10**18, "f": 1.5, "n": float("nan")}]]),
        msgpack.packb([[10.0, *ROW[1:]]]), msgpack.packb([[10, 7.0, *ROW[2:]]]), msgpack.packb([[10, True, *ROW[2:]]]),
        msgpack.packb([[10, 2**53, *ROW[2:]]]), msgpack.packb([[10, -(2**53), *ROW[2:]]]),
        msgpack.packb([[10, 7, "echo", "text", "u", META]]), msgpack.packb([[10, 7, "echo", 1, "u", META]]),
        b"\x91\x96\x0a\x07" + BAD_TEXT + b"\xc4\x02{}\xa1u\x80",
        b"\x91\x96\x0a\x07" + SURROGATE + b"\xc4\x02{}\xa1u\x80",
        b"\x91\x96\x0a\x07\xa1t\xc4\x02{}\xa1u\x81" + SURROGATE + b"\xc0",
        b"\x91\x96\x0a\x07\xa1t\xc4\x02{}\xa1u\x82\xa1a\x01\xa1a\x02",  # a key twice
        b"\x91\x96\xcd\x00\x0a\xd3" + bytes(7) + b"\x07\xd9\x01t\xc5\x00\x02{}\xdb\x00\x00\x00\x01u\xdf" + bytes(4),
        msgpack.packb([ROW] * (MAX_BATCH + 1)), msgpack.packb([[*ROW[:5], {"path": ["s"] * (MAX_ITEMS + 1)}]]),
    ],
)  # fmt: skip
def test_odd_frames_are_read_as_the_codec_reads_them(frame: bytes) -> None:
    assert_same(frame)


def test_requests_with_attachments_are_left_to_the_codec() -> None:
    frames = encode([Request(1, "echo", b"x" * (INLINE_BYTES + 1), "u", META)])
    assert len(frames) == 2
    assert read_requests(frames) is None
    assert read_requests([]) is None


# --- replies ---------------------------------------------------------------------------------------------------


def assert_written(replies: list[Any], most_bytes: int = MAX_FRAME_BYTES) -> list[bytes] | None:
    """Check that replies written as a run are what the codec writes; return the run."""
    run = write_replies(replies, most_bytes)
    if run is not None:
        assert list(batches(replies, most_bytes=most_bytes)) == [run]
    return run


usual_commands = st.builds(
    Command,
    st.sampled_from(["sendClients", "sendHandler", "sendServers"]),
    st.lists(st.text(), max_size=3),
    st.binary(max_size=300),
    st.none(),
)
usual_replies = st.builds(
    Reply, tokens, st.just(0), st.lists(usual_commands, min_size=1, max_size=1), st.none(), st.none()
)


@given(st.lists(usual_replies, min_size=1, max_size=20))
@example([Reply(2**53 - 1, 0, [Command("sendClients", ["ü", ""], "ß".encode())])] * MAX_BATCH)
def test_usual_replies_are_written_as_a_run(replies: list[Reply]) -> None:
    assert assert_written(replies) is not None


odd = st.none() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.builds(uuid.UUID, int=st.just(5))
odd_commands = st.builds(
    Command,
    st.just("sendClients") | odd,
    st.lists(st.text(max_size=3) | odd, max_size=2) | odd | st.tuples(st.text()),
    st.binary(max_size=30) | odd,
    st.none() | st.text(),
)
odd_replies = st.builds(
    Reply,
    st.integers() | odd,
    st.integers(0, 2) | odd,
    st.lists(usual_commands | odd_commands, max_size=2),
    st.none() | st.text(),
    st.none() | st.text(),
)


@given(st.lists(usual_replies | odd_replies | st.just(Heartbeat()), max_size=3), st.sampled_from([10, MAX_FRAME_BYTES]))
@example([Reply(uuid.UUID(int=5), 0, [Command("sendClients", [], b"")])], MAX_FRAME_BYTES)  # type: ignore[arg-type]  # a program may fill in anything
def test_any_replies_are_written_as_the_codec_writes_them(replies: list[Any], most_bytes: int) -> None:
    try:
        list(batches(replies, most_bytes=most_bytes))
    except WireError:
        assert write_replies(replies, most_bytes) is None
    else:
        assert_written(replies, most_bytes)


class Name(str):
    """A text of a class of its own."""

    __slots__ = ()


@pytest.mark.parametrize(
    "command",
    [
        Command("sendClients", ["g"], b"x" * (INLINE_BYTES + 1)),
        Command("sendServers", ["s2"], b"{}", "M1"),
        Command("sendClients", [Name("g")], b"{}"),
        Command("sendClients", [uuid.UUID(int=5)], b"{}"),  # type: ignore[list-item]  # as a program may write it
        Command("sendClients", [datetime(2020, 1, 1)], b"{}"),  # type: ignore[list-item]  # noqa: DTZ001 (as above)
        Command("sendClients", ["g"], bytearray(b"{}")),  # type: ignore[arg-type]  # as above
        Command("sendClients", ["g"] * (MAX_ITEMS + 1), b"{}"),
    ],
)
def test_unusual_commands_are_left_to_the_codec(command: Command) -> None:
    assert write_replies([Reply(1, 0, [command])], MAX_FRAME_BYTES) is None


def test_limits_are_left_to_the_codec() -> None:
    reply = Reply(1, 0, [Command("sendClients", ["g"], b"x" * 100)])
    assert write_replies([reply], 100) is not None
    assert write_replies([reply], 99) is None
    assert write_replies([], 100) is None
    assert write_replies([reply] * (MAX_BATCH + 1), MAX_FRAME_BYTES) is None
    large = Reply(1, 0, [Command("sendClients", ["g"], b"x" * INLINE_BYTES)])
    assert assert_written([large] * 63) is not None  # less than 1 MiB: one batch
    assert write_replies([large] * 64, MAX_FRAME_BYTES) is None
    many = Reply(1, 0, [Command("sendClients", ["g" * 30] * MAX_ITEMS, b"{}")])
    assert write_replies([many], MAX_FRAME_BYTES) is None  # frame 0 beyond twice the limit on a batch's bodies


def test_replies_are_written_alike_without_msgspec() -> None:
    program = (
        "import sys; sys.modules['msgspec'] = None\n"
        "from bester.broker.wire.codec import encode\n"
        "from bester.broker.wire.messages import Command, Reply, Request\n"
        "from bester.broker.wire.runs import read_requests, write_replies\n"
        "replies = [Reply(n, 0, [Command('sendClients', ['\\u00fc'], b'{}')]) for n in range(3)]\n"
        "assert write_replies(replies, 100) == encode(replies)\n"
        "assert read_requests(encode([Request(1, 't', b'{}', 'u', {})])) is None\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
