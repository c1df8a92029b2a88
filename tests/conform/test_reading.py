"""Patterns, the strict reading of a handler's messages, and the comparison of replies with requests."""

from __future__ import annotations

from typing import Any

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import pytest

from bester.conform import fabric
from bester.conform.broker import Expected, check, check_command
from bester.conform.match import fault
from bester.conform.result import Unseen
from bester.conform.written import filled, hex_bytes

GOOD = [
    ("<any>", None), ("<text>", "x"), ("<int>", 5), ("<list>", []), ("<map>", {}), ("<has>ell", "hello"),
    ({"a": 1}, {"a": 1, "b": 2}), ({"a": "<absent>"}, {"b": 1}), ([1, "<any>"], [1, {}]),
    ({"a": [{"b": "<text>"}]}, {"a": [{"b": "c"}]}),
]  # fmt: skip
BAD = [
    ("<text>", "", "it"), ("<int>", True, "it"), (1, True, "it"), (1, 1.0, "it"), ("<has>x", "hello", "it"),
    ({"a": {"b": 1}}, {"a": {"b": 2}}, "a.b"), ({"a": "<absent>"}, {"a": None}, "a"), ({"a": "<any>"}, {}, "a"),
    ([1], [1, 2], "it"), ([1, [2]], [1, [3]], "[1][0]"), ({"a": 1}, [1], "it"),
]  # fmt: skip


@pytest.mark.parametrize(("pattern", "value"), GOOD)
def test_matching_values(pattern: Any, value: Any) -> None:
    assert fault(pattern, value) is None


@pytest.mark.parametrize(("pattern", "value", "where"), BAD)
def test_mismatch_names_its_path(pattern: Any, value: Any, where: str) -> None:
    assert str(fault(pattern, value)).startswith(f"{where}: ")


def read(*messages: Any) -> list[fabric.Heard]:
    return fabric.read(b"link", [msgpack.packb(list(messages))])


@pytest.mark.parametrize(
    "message",
    [
        [1, 1, "handler", "name"],
        [1, 1, "handler", "name", {"types": ["x"]}, "later"],
        [3],
        [4],
        [4, None],
        [5, "code", "text"],
        [11, 2**53 - 1, 0, []],
        [11, 1, 1, [], "note", None, 7],
        [12, 1, "x", [], {"id": "y"}],
        [14, 1, "listClients", None],
    ],
)
def test_valid_messages_of_a_handler(message: list[Any]) -> None:
    (heard,) = read(message)
    assert heard.fields == message[1:] and fabric.OPS[heard.name] == message[0]


@pytest.mark.parametrize(
    ("frame", "why"),
    [
        (b"", "no MessagePack"),
        (b"\xc1", "no MessagePack"),
        (msgpack.packb([3]), "begins with an op"),
        (msgpack.packb([]), "1 to 1024"),
        (msgpack.packb([[3]] * 1025), "1 to 1024"),
        (msgpack.packb({1: 2}), "1 to 1024"),
        (msgpack.packb([[2, 1, "server"]]), "does not say op 2"),
        (msgpack.packb([[True]]), "begins with an op"),
        (msgpack.packb([[11, 1, 0]]), "it needs 3"),
        (msgpack.packb([[11, "1", 0, []]]), "token"),
        (msgpack.packb([[11, 1, 0, "x"]]), "commands"),
        (msgpack.packb([[11, 2**53, 0, []]]), "beyond 2\\^53"),
        (msgpack.packb([[12, 1, "x", [["sendClients", ["a"], {"deep": [-(2**53)]}]]]]), "beyond 2\\^53"),
        (msgpack.packb([[1, 1, "handler", "n", {1: 2}]]), "options"),
        (msgpack.packb([[4, msgpack.ExtType(5, b"x")]]), "reason"),
        (msgpack.packb([[1, 1, b"handler", "n"]]), "role is b'handler'; pack texts as str"),
        (msgpack.packb([[1, 1, "handler", "n", {b"types": []}]]), "options is .*; pack texts as str"),
    ],
)
def test_invalid_messages_of_a_handler(frame: bytes, why: str) -> None:
    with pytest.raises(Unseen, match=why):
        fabric.read(b"link", [frame])


@pytest.mark.parametrize(
    ("fields", "attached", "why"),
    [
        ([1, 0, [["sendClients", ["ann"], b'"A"']]], [], None),
        ([1, 0, [["sendClients", ["ann"], '"A"', None]]], [], None),
        ([1, 0, [["sendClients", ["ann"], 2]]], [b"x", b' "\\u0041"'], None),
        ([1, 0, [["sendClients", ["ann"], 2]]], [b'"A"'], "1 are attached"),
        ([1, 0, [["sendClients", ["ann"], 0]]], [b'"A"'], "attachment 0"),
        ([1, 0, [["sendClients", ["ann"], b'"B"']]], [], "answers 'B'"),
        ([1, 0, [["sendClients", ["ann"], b"A"]]], [], "no JSON"),
        ([1, 0, [["sendClients", ["ann"], {}]]], [], "neither bytes"),
        ([1, 0, [["sendClients", ["bob"], b'"A"']]], [], "expected"),
        ([1, 0, [["sendClients", "ann", b'"A"']]], [], "expected"),
        ([1, 0, [["sendClients", [b"ann"], b'"A"']]], [], "pack texts as str"),
        ([1, 0, [[b"sendClients", ["ann"], b'"A"']]], [], "pack texts as str"),
        ([1, 0, []], [], "expected one sendClients"),
        ([1, 1, [], "no"], [], "status 1"),
    ],
)
def test_reply_is_compared_with_its_request(fields: list[Any], attached: list[bytes], why: str | None) -> None:
    heard = fabric.Heard("REPLY", fields, b"link", attached)
    expected = Expected(b"link", "ann", "A", "shout")
    if why is None:
        check(heard, expected)
        return
    with pytest.raises(Unseen, match=why):
        check(heard, expected)


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ([b"sendClients", ["ann"], b"1"], True),
        (["sendClients", [b"ann"], b"1"], True),
        (["sendServers", ["s2"], b"1", b"chat"], True),
        (["sendNobody", ["ann"], b"1"], False),
        (["sendClients", [5], b"1"], False),
    ],
)
def test_texts_packed_as_bytes_are_told_from_other_faults_of_a_command(command: list[Any], hint: bool) -> None:
    with pytest.raises(Unseen) as caught:
        check_command("REPLY 1", command, [])
    assert ("pack texts as str, not as bytes" in str(caught.value)) is hint


def test_a_failure_has_status_1_and_a_note() -> None:
    expected = Expected(b"link", "ann", 5, "fails")
    check(fabric.Heard("REPLY", [1, 1, [], "no text"], b"link", []), expected)
    for fields in ([1, 0, []], [1, 2, [], "refused"], [1, 1, []], [1, 1, [], ""]):
        with pytest.raises(Unseen):
            check(fabric.Heard("REPLY", fields, b"link", []), expected)


def test_the_longest_form_means_the_same() -> None:
    batch = [[10, 5, "shout", b'"A"', "ann", {"id": "x"}, -3], [3]]
    packed = fabric.pack_widely(batch)
    assert msgpack.unpackb(packed) == batch and len(packed) > 2 * len(fabric.pack(batch))


def test_short_forms() -> None:
    assert filled('"{{x*3}}{{[*2}}"') == '"xxx[["' and filled("{}") == "{}"
    assert hex_bytes("00 ff*3 7b") == b"\x00\xff\xff\xff{" and hex_bytes("") == b""
