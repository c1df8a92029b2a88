"""Runs of a server are read and written as the codec does it, value for value and byte for byte."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.messages import (
    INLINE_BYTES,
    MAX_BATCH,
    Command,
    Confirm,
    Deliver,
    Heartbeat,
    Malformed,
    Message,
    Reply,
    Request,
    Submit,
)
from bester.broker.wire.runs import (
    FEW,
    FEW_COMMANDS,
    FEW_KEYS,
    FEW_NUMBERS,
    MESSAGE_OF,
    READ_AS,
    read,
    read_deliveries,
    write_run,
)
from bester.broker.wire.unpacking import MAX_ITEMS
from tests.unit.runs_stand import damaged, tokens, values

META = {"id": "s1/b-1/7", "root": "s1/b-1/7", "origin": "s1", "scope": "client", "attempt": 1, "path": []}
REPLY = [11, 7, 0, [["sendClients", ["u"], b"{}"], ["sendServers", ["s2"], b"1", "t"]], None]
SUBMIT = [24, 7, 3, "echo", b"{}", {"dedup": "k", "ttl_s": 1.5, "outcome": True}]
CONFIRM = [27, 9, [11, 12], [], 3]
ROWS = [REPLY, SUBMIT, CONFIRM]


def plain(value: Any) -> Any:
    """Return a value as text, with its types, so that 1, 1.0 and True differ; a message by its fields."""
    kind = type(value)
    message = MESSAGE_OF.get(kind, kind)
    if kind is list:
        return [plain(each) for each in value]
    fields = Command._fields if kind.__name__ == "ReadCommand" else getattr(message, "_fields", None)
    if fields is None or message is Malformed:
        return repr(value)
    name = "Command" if kind.__name__ == "ReadCommand" else message.__name__
    return [name, *(plain(getattr(value, field)) for field in fields)]


def assert_same(frame: bytes) -> None:
    """Check that a frame which a server reads gives what the codec gives."""
    assert plain(list(read([frame]))) == plain(list(decode([frame])))


usual_metas = st.dictionaries(
    st.text(max_size=6),
    st.text(max_size=9)
    | st.integers(-9, 2**63)
    | st.booleans()
    | st.floats()
    | st.lists(st.text(max_size=9), max_size=FEW_KEYS),
    max_size=4,
)
commands = st.builds(
    Command, st.text(max_size=12), st.lists(st.text(max_size=5), max_size=3), st.binary(max_size=40),
    st.none() | st.text(max_size=5),
)  # fmt: skip
notes = st.none() | st.text(max_size=9)
usual: st.SearchStrategy[Message] = (
    st.builds(Reply, tokens, tokens, st.lists(commands, max_size=3), notes, notes)
    | st.builds(Submit, tokens, st.none() | tokens, st.text(), st.binary(max_size=40), usual_metas)
    | st.builds(Confirm, tokens, st.lists(st.integers(-(2**63), 2**64 - 1), max_size=3), st.just([]), tokens)
)


@given(st.lists(usual, min_size=1, max_size=5))
def test_usual_messages_are_read_as_a_run(sent: list[Message]) -> None:
    frames = encode(sent)
    run = read(frames)
    assert [type(message) for message in run] == [READ_AS[type(message)] for message in sent]
    assert plain(list(run)) == plain(decode(frames))


@given(st.sampled_from(ROWS), st.integers(0, 6), values)
def test_any_value_in_a_field_is_read_as_the_codec_reads_it(row: list[Any], index: int, value: Any) -> None:
    assert_same(msgpack.packb([row, [*row[:index], value, *row[index + 1 :]], row]))


@given(st.sampled_from([[], *([each] for each in ROWS)]), st.lists(values, max_size=5))
def test_any_commands_are_read_as_the_codec_reads_them(before: list[Any], command: list[Any]) -> None:
    assert_same(msgpack.packb([*before, [11, 1, 0, [command]]]))
    assert_same(msgpack.packb([*before, [11, 1, 0, [["sendClients", ["g"], *command]]]]))


@given(damaged(msgpack.packb(ROWS)))
def test_any_damage_is_read_as_the_codec_reads_it(frame: bytes) -> None:
    assert_same(frame)


@pytest.mark.parametrize(
    "frame",
    [
        b"", b"\x90", b"\xc0", b'[[11,1,0,[]]]', b"\xdd\xff\xff\xff\xff", b"\x91" * 5000, b"\x91\xdd\x7f\xff\xff\xff",
        b"\x91\x94\x0b\x01\x00\xdd\x7f\xff\xff\xff", b"\x91\x94\x0b\x01\x00\x91\x93\xa1a\xdd\x00\x02\x00\x00",
        msgpack.packb(ROWS) + b"\xc0", msgpack.packb([*ROWS, [3]]), msgpack.packb([[11, 1, 0]]),
        msgpack.packb([[11, 1, 0, []]]), msgpack.packb([[11, 1, 0, [], None, "schema"]]),
        msgpack.packb([[11, 1, 0, [], None, None, 9]]), msgpack.packb([[11, 1, 0, [], None, 9]]),
        msgpack.packb([[11, 1, 0, [["a", ["b"], b"c", None, 5]]]]), msgpack.packb([[11, 1, 0, [["a", ["b"], "c"]]]]),
        msgpack.packb([[24, 1, None, "t", b"1"]]), msgpack.packb([[24, 1, None, "t", "1"]]),
        msgpack.packb([[27, 1]]), msgpack.packb([[27, 1, [], [[1, 0, "gone"]], 0]]), msgpack.packb([[27, True]]),
        msgpack.packb([REPLY] * (MAX_BATCH + 1)), msgpack.packb([REPLY] * MAX_BATCH),
        msgpack.packb([[11, 2**53, 0, []]]), msgpack.packb([[11, -(2**53), 0, []]]), msgpack.packb([[11.0, 1, 0, []]]),
        msgpack.packb([[11, 1, 0, [["a", ["t"] * (MAX_ITEMS + 1), b"c"]]]]),
        b"\x91\x94\x0b\x01\x00\x91\x93\xa1a\x91\xa3\xed\xa0\x80\xc4\x00",  # a target with half a surrogate pair
        b"\x91\x96\x18\x01\xc0\xa1t\xc4\x011\x82\xa1a\x01\xa1a\x02",  # a key twice
    ],
)  # fmt: skip
def test_odd_frames_are_read_as_the_codec_reads_them(frame: bytes) -> None:
    assert_same(frame)


@pytest.mark.parametrize(
    ("most", "more"),
    [
        ([11, 1, 0, [["a", ["t"] * FEW, b"c"]] * FEW_COMMANDS], [11, 1, 0, [["a", ["t"] * (FEW + 1), b"c"]]]),
        ([11, 1, 0, [["a", [], b"c"]] * FEW_COMMANDS], [11, 1, 0, [["a", [], b"c"]] * (FEW_COMMANDS + 1)]),
        ([27, 1, [1] * FEW_NUMBERS], [27, 1, [1] * (FEW_NUMBERS + 1)]),
        (
            [24, 1, None, "t", b"1", {"path": ["s"] * FEW_KEYS}],
            [24, 1, None, "t", b"1", {"path": ["s"] * (FEW_KEYS + 1)}],
        ),
        (
            [24, 1, None, "t", b"1", {str(n): n for n in range(FEW_KEYS)}],
            [24, 1, None, "t", b"1", {str(n): n for n in range(FEW_KEYS + 1)}],
        ),
    ],
    ids=["targets", "commands", "numbers", "texts", "keys"],
)
def test_message_of_many_values_is_left_to_the_codec(most: list[Any], more: list[Any]) -> None:
    """A batch of these is not read in one piece."""
    for row, is_usual in ((most, True), (more, False)):
        frames = [msgpack.packb([row] * 3)]
        assert all((type(message) in READ_AS.values()) is is_usual for message in read(frames))
        assert plain(list(read(frames))) == plain(decode(frames))


def test_attached_bodies_are_left_to_the_codec() -> None:
    frames = encode([Reply(1, 0, [Command("sendClients", ["g"], b"x" * (INLINE_BYTES + 1))])])
    assert len(frames) == 2
    assert read(frames) == decode(frames)
    assert [type(each) for each in read([])] == [Malformed]


requests = st.builds(Request, tokens, st.text(), st.binary(max_size=40), notes, usual_metas)
submits = st.builds(Submit, tokens, st.none() | tokens, st.text(), st.binary(max_size=40), st.just({}))
deliveries = st.builds(
    Deliver, tokens, st.text(), st.text(), st.binary(max_size=40),
    st.lists(st.lists(tokens, min_size=2, max_size=4), min_size=1, max_size=1), st.none() | tokens, usual_metas,
)  # fmt: skip
confirms = st.builds(Confirm, tokens, st.lists(st.integers(0, 2**64 - 1), max_size=3), st.just([]), tokens)


@given(
    st.lists(requests, min_size=1, max_size=5) | st.lists(submits | confirms, min_size=1, max_size=5)
    | st.lists(deliveries, min_size=1, max_size=5)
)  # fmt: skip
def test_what_servers_send_is_written_as_the_codec_writes_them(sent: list[Message]) -> None:
    assert [write_run(sent)] == list(batches(sent))


# --- deliveries, as a bridge reads them -------------------------------------------------------------------------

DELIVER = [26, 7, "s1/b-1/7.0", "echo", b"{}", [[0, 3]], 7, {"origin": "s1", "message": "s1/b-1/7"}]


def assert_same_deliveries(frame: bytes) -> None:
    """Check that a frame of deliveries, where a bridge reads one as a run, gives what the codec gives."""
    run = read_deliveries([frame])
    if run is not None:
        found = decode([frame])
        assert {type(message) for message in (*run, *found)} == {Deliver}
        assert plain(list(run)) == plain(found)


@given(st.lists(deliveries, min_size=1, max_size=5))
def test_deliveries_are_read_as_a_run(sent: list[Deliver]) -> None:
    assert plain(list(read_deliveries(encode(sent)) or [])) == plain(sent)


@given(st.integers(0, 8), values)
def test_any_value_in_a_delivery_is_read_as_the_codec_reads_it(index: int, value: Any) -> None:
    assert_same_deliveries(msgpack.packb([DELIVER, [*DELIVER[:index], value, *DELIVER[index + 1 :]], DELIVER]))


@given(st.lists(st.lists(values | st.integers(0, 9), max_size=4) | values, max_size=3))
def test_any_targets_are_read_as_the_codec_reads_them(targets: list[Any]) -> None:
    assert_same_deliveries(msgpack.packb([[*DELIVER[:5], targets, *DELIVER[6:]]]))


@given(damaged(msgpack.packb([DELIVER, DELIVER])))
def test_a_damaged_delivery_is_read_as_the_codec_reads_it(frame: bytes) -> None:
    assert_same_deliveries(frame)


def test_other_batches_are_left_to_the_codec() -> None:
    assert read_deliveries([]) is None
    assert read_deliveries(encode([Deliver(1, "m", "t", b"x" * (INLINE_BYTES + 1), [[0, 1]])])) is None
    assert read_deliveries(encode([Heartbeat()])) is None
    assert read_deliveries([msgpack.packb([DELIVER[:6]])]) is None
    assert read_deliveries([msgpack.packb([DELIVER] * (MAX_BATCH + 1))]) is None
    assert read_deliveries([msgpack.packb([[*DELIVER[:5], [[0] * (MAX_ITEMS + 1)], *DELIVER[6:]]])]) is None


def test_long_arrays_are_left_to_the_codec() -> None:
    assert write_run([Submit(1, None, "t", b"1", {"path": ["s"]})]) is None
    assert write_run([Deliver(1, "m", "t", b"1", [[0, 1], [1, 2]])]) is None
    assert write_run([Deliver(1, "m", "t", b"1", [list(range(65))])]) is None
    assert write_run([Deliver(1, "m", "t", b"1", [list(range(64))])] * 3) is not None
    assert write_run([Submit(1, None, "t", b"1"), Deliver(1, "m", "t", b"1", [[0, 1]])]) is None
    assert write_run([Submit(1, None, "t", b"12")], 2) is not None
    assert write_run([Submit(1, None, "t", b"12")], 1) is None


def test_unusual_confirmations_are_left_to_the_codec() -> None:
    submit = Submit(1, None, "t", b"12")
    assert write_run([Confirm(1, list(range(FEW_NUMBERS)))]) is not None
    assert write_run([Confirm(1, list(range(FEW_NUMBERS + 1)))]) is None
    for confirm in (Confirm(1, [], [[1, 0, "not-connected"]]), Confirm(2**64)):
        assert write_run([confirm]) is None
        assert write_run([submit, confirm]) is None
    for other in (Deliver(1, "m", "t", b"1", [[0, 1]]), Request(1, "t", b"1", "u", {}), Heartbeat()):
        assert write_run([Confirm(1), other]) is None
        assert write_run([other, Confirm(1)]) is None
    assert write_run([submit, Confirm(1)], 2) is not None
    assert write_run([submit, Confirm(1)], 1) is None
    assert write_run([Confirm(1), Submit(1, None, "t", b"1", {"path": ["s"]})]) is None
    assert write_run([Confirm(1), *[Submit(1, None, "t", b"x" * INLINE_BYTES)] * 64]) is None


def test_unusual_requests_are_left_to_the_codec() -> None:
    request = Request(1, "echo", b"{}", "u", META)
    assert write_run([request] * MAX_BATCH) is not None
    assert write_run([request] * (MAX_BATCH + 1)) is None
    assert write_run([request, Heartbeat()]) is None
    assert write_run([]) is None
    large = Request(1, "echo", b"x" * INLINE_BYTES, "u", META)
    assert [write_run([large] * 63)] == list(batches([large] * 63))  # less than 1 MiB: one batch
    assert write_run([large] * 64) is None
    assert write_run([Request(1, "echo", b"x" * (INLINE_BYTES + 1), "u", META)]) is None
    assert write_run([Request(1, "t", b"1", "\udc80", META)]) is None  # no UTF-8: the codec says so
    assert write_run([Request(1, "t", b"1", "u", {"n": 2**64})]) is None
    assert write_run([Request(1, "t" * 4000, b"1", "u", META)] * MAX_BATCH) is None  # frame 0 of 4 MB
