"""An unsendable message costs nothing but itself: all others keep their order, and a waiting requester is answered."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, cast

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import pytest

from bester.broker.core.settings import Limits
from bester.broker.wire import codec, unpacking
from bester.broker.wire.batches import batches, fault
from bester.broker.wire.codec import decode
from bester.broker.wire.codes import CODES, WireError
from bester.broker.wire.messages import (
    INLINE_BYTES,
    MAX_BATCH,
    MAX_TARGETS,
    OP_OF,
    OPERATIONS,
    Answer,
    Ask,
    Close,
    Command,
    Confirm,
    Deliver,
    Emit,
    Error,
    Forward,
    Forwarded,
    Heartbeat,
    Hello,
    LoggedIn,
    Login,
    Malformed,
    Message,
    Outcome,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
    Trace,
    Traced,
)
from bester.broker.wire.unsendable import expected_answer, substitute

HALF = "bob\ud800"
LOOP: list[Any] = []
LOOP.append(LOOP)


class Unsized:
    def __len__(self) -> int:
        raise RuntimeError("how long is a piece of string")


def to(target: Any, body: Any = b"1", type_: Any = None) -> Command:
    return Command("sendClients", [target], body, type_)


UNSENDABLE: dict[str, Message] = {
    "half a pair in a target": Reply(1, 0, [to(HALF)]),
    "half a pair in a note": Reply(1, 2, [], "no such file: \udcff"),
    "half a pair in a type": Reply(1, 0, [to("s2", type_="\udfff")]),
    "half a pair in a command": Reply(1, 0, [Command(HALF, [], b"1")]),
    "half a pair in a key of a meta": Emit(1, "t", [], {HALF: 1}),
    "half a pair in a value of a meta": Emit(1, "t", [], {"id": HALF}),
    "a number beyond 64 bits": Ask(1, "isClient", 2**64),
    "a number far below": Ask(1, "isClient", {"n": -(2**70)}),
    "what is no value": Ask(1, "isClient", object()),
    "a set": Ask(1, "isClient", {"x"}),
    "what holds itself": Ask(1, "isClient", LOOP),
    "a body that is no bytes": Reply(1, 0, [to("bob", 7)]),
    "a long body that is no bytes": Reply(1, 0, [to("bob", "x" * (INLINE_BYTES + 1))]),
    "a body without a length": Reply(1, 0, [to("bob", Unsized())]),
    "commands that are none": Reply(1, 0, [5]),  # type: ignore[list-item]  # wrong on purpose
    "no commands at all": Reply(1, 0, None),  # type: ignore[arg-type]  # wrong on purpose
    "a half in an address": Login(1, "u", "p", HALF),
    "no message": 5,  # type: ignore[dict-item]  # wrong on purpose
}


def sent_with(messages: list[Message], **options: Any) -> tuple[list[Message | Malformed], list[Message]]:
    """Return the messages that arrive, and those reported as unsendable."""
    refused: list[Message] = []

    def cannot(message: Message, error: WireError) -> Message | None:
        assert error.code in CODES
        assert error.text.isprintable() and error.text.encode()
        refused.append(message)
        return None

    frames = list(batches(messages, cannot, **options))
    return [message for each in frames for message in decode(each)], refused


@pytest.mark.parametrize("name", UNSENDABLE)
def test_message_that_cannot_be_encoded_delays_no_other(name: str) -> None:
    bad = UNSENDABLE[name]
    good: list[Message] = [Close(1), Reply(2, 0, [to("bob")]), Heartbeat(), Submit(3, 1, "t", b"x" * 20_000)]
    assert sent_with([*good, bad]) == (good, [bad])
    assert sent_with([bad, *good]) == (good, [bad])
    assert sent_with([*good, bad, bad, *good, bad]) == ([*good, *good], [bad, bad, bad])
    assert sent_with([bad]) == ([], [bad])


@pytest.mark.parametrize("seed", range(5))
def test_any_mixture_is_sent_in_order_without_unsendable_messages(seed: int) -> None:
    chance = random.Random(seed)
    bad = list(UNSENDABLE.values())
    mixed: list[Message] = []
    for n in range(3 * MAX_BATCH):
        good = Request(n, "t", b"x" * chance.choice((1, 100, 40_000)), "u", {})
        mixed.append(chance.choice(bad) if chance.random() < 0.05 else good)
    arrived, refused = sent_with(mixed)
    assert arrived == [message for message in mixed if type(message) is Request]
    assert sorted(map(id, refused)) == sorted(id(message) for message in mixed if type(message) is not Request)


def test_substitute_keeps_the_position() -> None:
    error = "half a surrogate pair"
    frames = list(batches([Close(1), Reply(7, 0, [to(HALF)]), Close(2)], substitute))
    arrived = [message for each in frames for message in decode(each)]
    assert (arrived[0], arrived[2]) == (Close(1), Close(2))
    reply = arrived[1]
    assert isinstance(reply, Reply)
    assert (reply[:3], reply.code) == ((7, 1, []), "bad-reply")
    assert error in (reply.note or "")


def test_without_a_callback_the_error_is_raised() -> None:
    with pytest.raises(WireError, match="half a surrogate pair"):
        list(batches([Reply(1, 0, [to(HALF)])]))


def test_password_is_not_shown() -> None:
    wrong = fault(Login(1, "alice", "hunter2\udcff", ""))
    assert wrong is not None and "hunter2" not in wrong.text


# --- messages that are too large -----------------------------------------------------------------------------


@pytest.mark.parametrize("most", [100, 2_000_000])
def test_body_above_the_limit_is_refused_alone(most: int) -> None:
    at_most, above = Reply(1, 0, [to("a", b"x" * most)]), Reply(2, 0, [to("b"), to("c", b"x" * (most + 1))])
    submit = Submit(3, 1, "t", b"x" * (most + 1))
    assert sent_with([at_most, above, submit, Close(1)], most_bytes=most) == ([at_most, Close(1)], [above, submit])
    wrong = fault(above, most)
    assert wrong is not None and wrong.code == "frame-too-large"
    assert str(most + 1) in wrong.text and str(most) in wrong.text
    assert fault(at_most, most) is None


def test_array_above_the_receivers_limit_is_refused() -> None:
    """Check that an array above the receivers' limit is refused, as the receiver would refuse the whole batch."""
    most = unpacking.MAX_ITEMS
    targets = Reply(1, 0, [Command("sendClients", [""] * (most + 1), b"1")])
    commands = Reply(2, 0, [Command("sendClients", [], b"1")] * (most + 1))
    users = Answer(3, 0, ["u"] * (most + 1))
    claims = Submit(6, None, "t", b"1", {"scope": "server", "path": [""] * (most + 1)})
    inner = Ask(7, "isClient", {"a": [1, [0] * (most + 1)]})
    good: list[Message] = [
        Close(1), Answer(4, 0, ["u"] * most), Reply(5, 0, [Command("x", ["a"] * most, b"1")]),
        Submit(8, 1, "t", b"\xdd\x00\x02\x00\x01" * 40_000, {"path": [""] * most}),
        Request(9, "t", b"\xdd\x00\xff\xff\xff" * 3_000, "u", {"x": list(range(40_000))}),
    ]  # fmt: skip
    bad: list[Message] = [targets, commands, users, claims, inner]
    assert sent_with([targets, *good, commands, users, *good, claims, inner]) == (good + good, bad)
    for message in bad:
        wrong = fault(message)
        assert wrong is not None and str(most + 1) in wrong.text


def test_bytes_that_resemble_a_long_array_are_sent() -> None:
    odd = Emit(1, "t", [Command("x", ["a"], b"\xdd\x00\x02\x00\x01" * 3_000)] * 20, {"n": 2**40})
    assert len(codec.encode([odd])[0]) > unpacking.MAX_ITEMS
    assert sent_with([odd, Close(1)]) == ([odd, Close(1)], [])


def test_very_many_small_bodies_are_attached(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bester.broker.wire.batches.MAX_FRAME_BYTES", 3 * 2**20)
    reply = Reply(1, 0, [to(f"u{n}", b"x" * 16_000) for n in range(300)])
    frames = list(batches([Close(1), reply, Close(2)], substitute))
    assert all(len(frame) <= 3 * 2**20 for each in frames for frame in each)
    assert [message for each in frames for message in decode(each)] == [Close(1), reply, Close(2)]


def test_message_too_large_without_its_bodies_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bester.broker.wire.batches.MAX_FRAME_BYTES", 3 * 2**20)
    wide = Reply(1, 0, [Command("sendClients", ["u" * 1000] * 4000, b"1")])
    assert sent_with([Close(1), wide, Close(2)]) == ([Close(1), Close(2)], [wide])


# --- answers to unsendable messages ------------------------------------------------------------------------------

ERROR = WireError("frame-too-large", "a body of 9 bytes; 8 are allowed")
ALL: list[Message] = [
    Reply(7, 0, []), Report(7, 0, None, "m", {}), Outcome(7, 0, {}), Answer(7, 0), LoggedIn(7, 0),
    Relayed(7, "sent"), Forwarded(7, "sent"), Error("malformed", HALF, 11, 7), Request(7, "t", b"1", "u", {}),
    Forward(7, "h:1", "t", b"1", {}), Deliver(7, "i", "t", b"1", [[0, 5], [1, 6, 7]]), Submit(7, 1, "t", b"1"),
    Login(7, "u", "p", ""), Ask(7, "q"), Emit(7, "t", []), Relay(7, "t", b"1", {}),
    Trace(7, "m"), Traced(7, []),
]  # fmt: skip


@pytest.mark.parametrize("message", ALL, ids=lambda message: type(message).__name__)
def test_unsendable_message_is_answered_on_exactly_one_side(message: Message) -> None:
    there, here = substitute(message, ERROR), expected_answer(message, ERROR)
    assert (there is None) is not (here is None)
    answer: Any = there or here
    assert decode(codec.encode([answer])) == [answer]
    if type(message) is Deliver:
        assert answer == Confirm(0, [7], [[7, 0, "frame-too-large"], [7, 1, "frame-too-large"]])
    elif type(answer) is Error:
        op = 11 if type(message) is Error else OP_OF[type(message)]
        assert (answer.op, answer.token) == (op, 7)
    elif type(answer) is Traced:
        assert answer == Traced(7, [], {"why": "frame-too-large"})
    else:
        assert answer[0] == 7
        assert "failed" in str(answer) or answer[1] == 1


def test_message_without_an_awaited_answer_gets_none() -> None:
    waited_for = {type(message) for message in ALL}
    for row in OPERATIONS:
        if row.message not in waited_for:
            message = row.message(*[{} if dict in (kinds or ()) else 1 for kinds in row.fields])
            assert (substitute(message, ERROR), expected_answer(message, ERROR)) == (None, None)


# --- unreadable messages of others ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "note",
    [
        b"\xa5no \xff\x00",  # text that is not UTF-8
        b"\xd4\x05x",  # an extension
        b"\x81\x07\x01",  # a map with a number for a key
        b"\x81\x91\x07\x01",  # a map with an array for a key
        b"\x91\x81\xa1k\xc7\x01\x05x",  # an extension deep inside
    ],
    ids=["text", "extension", "number key", "array key", "deep"],
)
def test_unreadable_value_refuses_one_message_of_a_long_batch(note: bytes) -> None:
    rows = [msgpack.packb([11, token, 0, [["sendClients", ["bob"], b"x" * 500]], None]) for token in range(300)]
    rows[150] = b"\x95\x0b\xcc\x96\x01\x90" + note
    frame = b"\xdc" + struct.pack(">H", len(rows)) + b"".join(rows)
    assert len(frame) > codec.SECOND_LOOK_BYTES
    read = decode([frame])
    assert [message.token for message in read if isinstance(message, Reply)] == [n for n in range(300) if n != 150]
    bad = read[150]
    assert isinstance(bad, Malformed)
    assert (bad.op, bad.token) == (11, 150)


@pytest.mark.parametrize("extra", [5, None, [1], {"k": 1}, b"x", 2**53])
def test_private_field_in_the_position_of_a_rare_one_is_ignored(extra: Any) -> None:
    row = [11, 7, 0, [], None, extra, "more"]
    assert decode([msgpack.packb([row])]) == [Reply(7, 0, [])]
    assert decode([msgpack.packb([[25, 7, 0, None, None, {}, extra]])]) == [Report(7, 0, None, None, {})]


def test_rare_field_is_sent_only_when_set() -> None:
    for bare, full in (
        (Reply(7, 1, [], "note"), Reply(7, 1, [], "note", "bad-reply")),
        (Outcome(7, 1, {}, "refused"), Outcome(7, 1, {}, "refused", "why")),
        (Report(7, 1, "refused", "m", {}), Report(7, 1, "refused", "m", {}, "why")),
    ):
        assert decode(codec.encode([bare, full])) == [bare, full]
        assert len(msgpack.unpackb(codec.encode([bare])[0])[0]) == len(bare)


@pytest.mark.parametrize("empty", [[], {}, {"a": []}], ids=["arrays", "maps", "both"])
@pytest.mark.parametrize("copies", [1, 8], ids=["batch", "longer than a batch"])
def test_message_of_too_many_values_is_refused_without_being_unpacked(empty: Any, copies: int) -> None:
    """Each empty array takes a byte on the wire, and seventy in memory: 64 MiB of them would take gigabytes."""
    heavy = msgpack.packb([11, 7, 0, [], {"m": [[empty] * 131_000] * 3}])
    good = msgpack.packb([11, 8, 0, [], None])
    read = decode([b"\xdc" + struct.pack(">H", 2 * copies) + (heavy + good) * copies])
    if len(heavy) * copies > unpacking.LONG_BYTES:
        assert read == [Malformed("malformed", str(unpacking.TooManyError(unpacking.MAX_WEIGHT)))]
    else:
        refused = Malformed("malformed", f"REPLY: {unpacking.TooManyError(unpacking.MAX_WEIGHT)}", 11, 7)
        assert read == [refused, Reply(8, 0, [], None)] * copies


def test_message_of_a_long_batch_is_unpacked_when_its_turn_comes() -> None:
    row = msgpack.packb([11, 1, 0, [["sendClients", ["bob"], b"x" * 500]], None, None, "unknown"])
    rows: Any = codec.unpack([b"\xdc" + struct.pack(">H", 1000) + row * 1000])
    unpacked: list[bytes] = []
    whole = codec._unpack_whole

    def unpack_whole(frames: Sequence[bytes], most_weight: int, **options: Any) -> Any:
        unpacked.append(frames[0])
        return whole(frames, most_weight, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "_unpack_whole", unpack_whole)
        assert len(rows[:16]) == len(unpacked) == 16
        assert len(rows[16:][:3]) == 3 and len(unpacked) == 19
    assert rows[:1] == decode([b"\x91" + row])


def test_message_of_more_values_than_are_read_is_not_sent() -> None:
    good, heavy = Reply(1, 0, []), Reply(2, 0, [Command("sendClients", ["b"] * 100_000, b"1")] * 22)
    sent, refused = sent_with([heavy, good])
    assert (sent, refused) == ([good], [heavy])


@pytest.mark.parametrize("count", [20_000, unpacking.MAX_ITEMS])
@pytest.mark.parametrize("kind", ["targets", "failures", "numbers", "recipients", "names"])
def test_largest_message_of_each_kind_is_read(kind: str, count: int) -> None:
    """The bounds on values have room for everything that a bridge, a broker or a handler writes."""
    messages: dict[str, Callable[[], Message]] = {
        "targets": lambda: Deliver(1, "i", "t", b"1", [[n, n + 1] for n in range(count)], None, {}),
        "failures": lambda: Confirm(1, [], [[n, 1, "gone"] for n in range(count)], 0),
        "numbers": lambda: Confirm(1, list(range(count)), [], 0),
        "recipients": lambda: Report(1, 0, None, None, {f"user-{n}": "delivered" for n in range(count)}),
        "names": lambda: Reply(1, 0, [Command("sendClients", [f"user-{n}" for n in range(count)], b"1")]),
    }
    message = messages[kind]()
    sent, refused = sent_with([message])
    assert not refused and [plain(each) for each in sent] == [plain(message)]


def test_message_of_more_values_than_its_sender_may_send_is_refused() -> None:
    """Its token is told, so that nobody waits for it, and the other messages of the batch are read."""
    good = msgpack.packb([11, 8, 0, [], None])
    for names, is_read in ((900, True), (1000, False)):
        heavy = msgpack.packb([11, 7, 0, [["sendClients", ["x" * 30] * names, b"1"]], None])
        read = decode([b"\x93" + good + heavy + good], 1000)
        assert read[0] == read[2] == Reply(8, 0, [], None)
        assert [type(read[1]), read[1].token] == [Reply if is_read else Malformed, 7]  # type: ignore[union-attr]
        assert is_read or unpacking.has_too_many(cast(Malformed, read[1]))


def test_values_of_messages_that_are_read_together_are_counted_together() -> None:
    reply = msgpack.packb([11, 7, 0, [["sendClients", ["x" * 30] * 600, b"1"]], None])
    assert [type(each) for each in codec.decode_together([b"\x91" + reply], 1000)] == [Reply]
    (read,) = codec.decode_together([b"\x92" + reply * 2], 1000)
    assert isinstance(read, Malformed) and unpacking.has_too_many(read)
    assert [type(each) for each in decode([b"\x92" + reply * 2], 1000)] == [Reply, Reply]
    assert codec.decode_together([], 1000) == decode([])
    assert codec.decode_together([b"\x90"] * 20_000, 1000) == decode([b"\x90"] * 20_000)


MOST = Limits().max_values
TYPES = [f"type-{n}" for n in range(Limits().max_types)]
HONEST: dict[str, list[Message]] = {
    "a reply with as many commands as targets": [
        Reply(1, 0, [Command("sendClients", [f"user-{n}"], b'"a letter of its own"', "t") for n in range(MAX_TARGETS)])
    ],
    "an emission to as many targets": [
        Emit(1, "t", [Command("sendClients", [f"user-{n}" for n in range(MAX_TARGETS)], b"1")], {"id": "i"})
    ],
    "a full batch of replies": [
        Reply(n, 0, [Command("sendClients", ["a", "b", "c"], b'"x"')] * 4, "note") for n in range(MAX_BATCH)
    ],
    "a HELLO of as many types": [
        Hello(1, "handler", "h", {"types": TYPES, **dict.fromkeys(("order", "schema"), dict.fromkeys(TYPES, "user"))})
    ],
    "a full batch of letters": [
        Relay(n, "t", b'"x"', {"id": f"i{n}", "origin": ["a", "s2"], "path": ["s1"] * 16, "lane": ["e", n, 0]})
        for n in range(MAX_BATCH)
    ],
    "a full batch of answers": [Relayed(n, "queued", {"redelivered": True}) for n in range(MAX_BATCH)],
    "the steps of a message": [
        Traced(1, [{"at_ms": n, "since_ms": n, "id": "i", "what": "handler", "where": "s1/h"} for n in range(1000)], {})
    ],
}  # fmt: skip


@pytest.mark.parametrize("kind", HONEST)
def test_largest_message_of_a_handler_and_of_a_server_is_read(kind: str) -> None:
    """The bound on the values of those that are not trusted has room for whatever their programs write."""
    sent = HONEST[kind]
    for read in (decode, codec.decode_together):
        frames = list(batches(sent))
        assert [plain(each) for each in chain(*(read(each, MOST) for each in frames))] == [plain(each) for each in sent]


def plain(message: Any) -> list[Any]:
    """Return the fields of a message, where a tuple is as good as a list."""
    fields: list[Any] = list(message)
    for index, field in enumerate(fields):
        if type(field) is list:
            fields[index] = [list(row) if type(row) is tuple else row for row in field]
    return [type(message), *fields]
