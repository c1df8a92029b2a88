"""The native protocol, row by row, over raw sockets against a real server with a real echo handler."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.kernel_buffers import most_bytes_held, stop_reading
from tests.live import LAYOUTS, LiveServer, RawClient, raw_handler, shared_server

GOOD_LOGIN = {
    "header": {"scope": "client", "authentication": {"username": "bob", "password": "x"}},
    "payload": {"data": None, "type": "dummy"},
}


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with shared_server(
        layout=request.param,
        handlers=("bester.handlers.stock.echo:app", "bester.handlers.stock.chat:app"),
        toml='[federation]\naccept = "open"\n',
    ) as server:
        yield server


def bad(id_: str | None, reason: str) -> dict[str, Any]:
    return {"header": {"messageType": "statusReport", "status": "bad"}, "payload": {"id": id_, "reason": reason}}


# --- framing ---


async def test_a_frame_over_the_limit_is_refused_from_its_length_alone(server: LiveServer) -> None:
    bob = await RawClient.login(server, "bob")
    bob.writer.write(struct.pack("<I", 0xFFFFFFFF))
    assert await bob.receive() == bad(None, "frame-too-large")
    assert await bob.at_end()
    await bob.close()


async def test_before_login_the_limit_is_lower(server: LiveServer) -> None:
    stranger = await RawClient.connect(server)
    stranger.writer.write(struct.pack("<I", 2 * 1024 * 1024))
    assert (await stranger.receive())["payload"]["reason"] == "frame-too-large"
    assert await stranger.at_end()
    await stranger.close()


@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b'"x"', b"7", b"null", b"not json", b'{"header":null}x', b'{"header":null,}', b'{"a":01}',
        b'{"payload":{"type":"echo","data":"\xff","id":"1"}}', b'{"header":{},"payload":' + b"[" * 100_000,
    ],
)  # fmt: skip
async def test_frame_without_a_json_object_ends_the_connection(server: LiveServer, body: bytes) -> None:
    bob = await RawClient.login(server, "bob")
    bob.send(body)
    assert await bob.receive() == bad(None, "malformed")
    assert await bob.at_end()
    await bob.close()


async def test_one_byte_at_a_time(server: LiveServer) -> None:
    stranger = await RawClient.connect(server)
    stranger.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    first = json.dumps(GOOD_LOGIN).encode()
    second = b'{"header":{},"payload":{"type":"echo","data":{"a": [1, 0.1]},"id":"m"}}'
    for byte in struct.pack("<I", len(first)) + first + struct.pack("<I", len(second)) + second:
        stranger.writer.write(bytes([byte]))
        await stranger.writer.drain()
        await asyncio.sleep(0)
    assert (await stranger.receive())["payload"]["id"] == "auth_special"
    report, before = await stranger.until_report("m")
    assert report["header"]["status"] == "good" and len(before) == 1
    await stranger.close()


async def test_five_hundred_frames_in_one_write(server: LiveServer) -> None:
    stranger = await RawClient.connect(server)
    frames = [json.dumps(GOOD_LOGIN).encode()]
    frames += [b'{"header":null,"payload":{"type":"echo","data":%d,"id":"%d"}}' % (n, n) for n in range(500)]
    stranger.writer.write(b"".join(struct.pack("<I", len(frame)) + frame for frame in frames))
    assert (await stranger.receive())["payload"]["id"] == "auth_special"
    answers = [await stranger.receive() for _ in range(1000)]
    assert [a["payload"]["data"] for a in answers if a["header"]["messageType"] == "receivedMessage"] == list(
        range(500)
    )
    assert {a["payload"]["id"] for a in answers if a["header"].get("status") == "good"} == {str(n) for n in range(500)}
    await stranger.close()


# --- the first frame ---


async def test_the_answer_to_a_good_login_is_exact(server: LiveServer) -> None:
    stranger = await RawClient.connect(server)
    stranger.send(GOOD_LOGIN)
    body = await stranger.receive_bytes()
    assert body == (
        b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special","max_frame":1048576}}'
    )
    await stranger.close()


@pytest.mark.parametrize(
    "authentication",
    [None, 5, {}, {"username": "bob"}, {"username": "", "password": "x"}, {"username": "bob", "password": ""},
     {"username": 5, "password": "x"}, {"username": "bob", "password": None}],
)  # fmt: skip
async def test_a_login_that_is_refused(server: LiveServer, authentication: Any) -> None:
    stranger = await RawClient.connect(server)
    stranger.send({"header": {"scope": "client", "authentication": authentication}, "payload": {}})
    assert await stranger.receive() == bad("auth_special", "authentication-failed")
    assert await stranger.at_end()
    await stranger.close()


@pytest.mark.parametrize(
    "first",
    [{}, {"header": None}, {"header": {}}, {"header": {"scope": "king"}}, {"header": {"scope": 5}}, {"header": 1}],
)
async def test_a_first_frame_without_a_scope(server: LiveServer, first: Any) -> None:
    stranger = await RawClient.connect(server)
    stranger.send(first)
    answer = await stranger.receive()
    assert answer["header"]["status"] == "bad" and answer["payload"]["reason"]
    assert await stranger.at_end()
    await stranger.close()


async def test_a_first_frame_may_carry_a_message(server: LiveServer) -> None:
    stranger = await RawClient.connect(server)
    stranger.send({**GOOD_LOGIN, "payload": {"data": [1], "type": "echo", "id": "first"}})
    assert (await stranger.receive())["payload"]["id"] == "auth_special"
    report, before = await stranger.until_report("first")
    assert report["header"]["status"] == "good" and before[0]["payload"] == {"data": [1], "type": "echo"}
    await stranger.close()


@pytest.mark.parametrize("payload", [{"data": 1, "type": "echo"}, {"data": 1, "type": None, "id": "x"}, 7, None])
async def test_any_other_payload_of_a_first_frame_is_ignored(server: LiveServer, payload: Any) -> None:
    stranger = await RawClient.connect(server)
    stranger.send({**GOOD_LOGIN, "payload": payload})
    assert (await stranger.receive())["payload"]["id"] == "auth_special"
    stranger.submit("dummy", None, "next")
    assert (await stranger.receive())["payload"]["id"] == "next"
    await stranger.close()


# --- later frames ---


async def test_ids(server: LiveServer) -> None:
    bob = await RawClient.login(server, "bob")
    for frame in (
        {"header": None, "payload": {"type": "echo", "data": 1}},
        {"header": {}, "payload": {"type": "echo", "data": 1, "id": None}},
        {"header": {"anything": [1]}, "payload": {"type": "echo", "data": None}},
    ):
        bob.send(frame)
        report, before = await bob.until_report(None)
        assert report["header"]["status"] == "good" and len(before) == 1
    await bob.close()


@pytest.mark.parametrize(
    ("frame", "id_"),
    [
        ({"header": {}, "payload": {"type": "echo", "data": 1, "id": 7}}, None),
        ({"header": {}, "payload": {"data": 1, "id": "m"}}, "m"),
        ({"header": {}, "payload": {"type": "echo", "id": "m"}}, "m"),
        ({"header": {}, "payload": {"type": 5, "data": 1, "id": "m"}}, "m"),
        ({"header": {}}, None),
        ({"header": {}, "payload": None}, None),
        ({"header": {}, "payload": [1]}, None),
        ({}, None),
        (b'{"payload":{"type":"echo","id":"m","data":' + b"[" * 65 + b"]" * 65 + b"}}", "m"),
        (rb'{"payload":{"type":"echo","id":"m","data":"\ud83d"}}', "m"),
    ],
)
async def test_a_wrong_payload_is_reported_and_the_connection_stays(server: LiveServer, frame: Any, id_: str) -> None:
    bob = await RawClient.login(server, "bob")
    bob.send(frame)
    assert await bob.receive() == bad(id_, "malformed")
    bob.submit("echo", 1, "next")
    report, _ = await bob.until_report("next")
    assert report["header"]["status"] == "good"
    await bob.close()


async def test_ping_close_and_other_builtins(server: LiveServer) -> None:
    bob = await RawClient.login(server, "bob")
    bob.submit("dummy", {"x": 1}, "p")
    assert await bob.receive() == {"header": {"status": "0"}, "payload": {"data": None, "id": "p", "type": "dummy"}}
    bob.submit("builtin", {"command": {"type": "dance"}}, "b1")
    assert await bob.receive() == bad("b1", "unknown-command")
    bob.submit("builtin", None, "b2")
    assert await bob.receive() == bad("b2", "unknown-command")
    bob.submit("builtin", {"command": {"type": "close"}}, "b3")
    assert await bob.at_end()
    await bob.close()


async def test_an_unknown_type(server: LiveServer) -> None:
    bob = await RawClient.login(server, "bob")
    bob.submit("nobody-speaks-this", 1, "m")
    report, _ = await bob.until_report("m")
    assert report["header"]["status"] == "bad" and report["payload"]["reason"] == "unknown-type"
    await bob.close()


# --- data ---


@pytest.mark.parametrize(
    "text",
    [
        b"0.1", b"-0", b"1e400", b"1" * 30, b'{"a":1,"a":2}', rb'"\u00e9\/\n\ud83d\ude00"', "\"é😀\"".encode(),
        b"[ 1 ,  2 ]", b'{"b" :\t1,\r\n "a":{}}', b"null", b"true", b'""', b"1.10", b"1E+2", b'"\x7f"',
        b"[" * 60 + b"]" * 60,
    ],
)  # fmt: skip
async def test_data_comes_back_byte_for_byte(server: LiveServer, text: bytes) -> None:
    async with raw_handler(server.fabric, "mirror") as mirror:
        bob = await RawClient.login(server, "bob")
        bob.submit("mirror", text, "m")
        request = await mirror.hear(10)
        assert request[3] == text
        await mirror.say([11, request[1], 0, [["sendClients", ["bob"], request[3]]], None])
        assert b'"data":' + text + b"," in await bob.receive_bytes()
        await bob.close()


# --- several connections ---


async def test_every_connection_of_a_user_gets_each_message(server: LiveServer) -> None:
    phone, laptop = await RawClient.login(server, "dora"), await RawClient.login(server, "dora")
    eve = await RawClient.login(server, "eve")
    eve.submit("chat", {"to": ["dora"], "text": "hello"}, "m")
    report, _ = await eve.until_report("m")
    assert report["header"]["status"] == "good" and "recipients" not in report["payload"]
    for device in (phone, laptop):
        assert (await device.receive())["payload"] == {"data": {"from": "eve", "text": "hello"}, "type": "chat"}
        await device.close()
    await eve.close()


async def test_recipients_are_named_where_not_all_were_reached(server: LiveServer) -> None:
    bob = await RawClient.login(server, "bob")
    bob.submit("chat", {"to": ["bob", "nobody"], "text": "hello"}, "m")
    report, before = await bob.until_report("m")
    assert report["header"]["status"] == "bad" and report["payload"]["reason"] == "not-connected"
    assert report["payload"]["recipients"] == {"bob": "delivered", "nobody": "failed:not-connected"}
    assert len(before) == 1
    await bob.close()


async def test_half_closed_client_still_gets_its_answers(server: LiveServer) -> None:
    bob = await RawClient.login(server, "half")
    for number in range(50):
        bob.submit("echo", number, str(number))
    bob.writer.write_eof()
    frames = [await bob.receive() for _ in range(100)]
    assert sum(frame["header"].get("status") == "good" for frame in frames) == 50
    assert await bob.at_end()
    await bob.close()


async def test_reset_connection_harms_no_other(server: LiveServer) -> None:
    gone = await RawClient.login(server, "gone")
    for number in range(50):
        gone.submit("echo", "x" * 1000, str(number))
    await gone.writer.drain()
    sock = gone.writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    gone.writer.transport.abort()
    await gone.close()
    bob = await RawClient.login(server, "bob")
    report: Any = None
    for attempt in range(200):  # until the server has noticed the end
        bob.submit("chat", {"to": "gone", "text": "?"}, str(attempt))
        report, _ = await bob.until_report(str(attempt))
        if report["header"]["status"] == "bad":
            break
    assert report["payload"]["recipients"] == {"gone": "failed:not-connected"}
    await bob.close()


async def test_client_that_does_not_read_delays_no_other(server: LiveServer) -> None:
    lazy = await RawClient.login(server, "lazy", narrow=True)
    stop_reading(lazy.writer)
    bob = await RawClient.login(server, "bob")
    text = "x" * 500_000
    reports: dict[str, Any] = {}
    sent = 0

    async def until_reported(count: int, kind: str = "") -> None:
        """Wait for so many reports on messages of a kind."""
        while sum(id_.startswith(kind) for id_ in reports) < count:
            frame = await bob.receive()
            if "status" in frame["header"]:
                reports[frame["payload"]["id"]] = frame["header"]["status"]

    while "bad" not in reports.values():  # sent more than the kernel holds for lazy, and more than his queue holds
        assert sent * len(text) < most_bytes_held() + 64 * 1024 * 1024
        for number in range(sent, sent + 20):
            bob.submit("chat", {"to": ["lazy"], "text": text}, f"to-lazy-{number}")
            bob.submit("echo", number, f"echo-{number}")
        sent += 20
        await until_reported(sent, "echo")
    await lazy.close()  # the count of his queued messages is known only then
    await until_reported(2 * sent)
    assert all(status == "good" for id_, status in reports.items() if id_.startswith("echo"))
    await bob.close()


# --- from other servers ---


async def test_a_message_from_another_server(server: LiveServer) -> None:
    carol = await RawClient.login(server, "carol")
    async with raw_handler(server.fabric, "news") as handler:
        for id_ in ("m", None):
            other = await RawClient.connect(server)
            payload = {"data": {"hot": 0.5}, "type": "news"} | ({"id": id_} if id_ else {})
            other.send({"header": {"scope": "server"}, "payload": payload})
            request = await handler.hear(10)
            assert request[2:5] == ["news", b'{"hot": 0.5}', None] and request[5]["scope"] == "server"
            await handler.say([11, request[1], 0, [["sendClients", ["carol"], request[3]]], None])
            report = await other.receive()
            assert report["header"]["status"] == "good" and report["payload"]["id"] == id_
            assert await other.at_end()
            assert (await carol.receive())["payload"] == {"data": {"hot": 0.5}, "type": "news"}
            await other.close()
    await carol.close()


async def test_message_of_a_server_that_does_not_wait_for_the_report(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "news") as handler:
        other = await RawClient.connect(server)
        other.send({"header": {"scope": "server"}, "payload": {"data": 1, "type": "news"}})
        await other.close()
        request = await handler.hear(10)
        await handler.say([11, request[1], 0, [], None])


async def test_a_servers_wrong_message(server: LiveServer) -> None:
    for payload in ({"type": "news"}, {"data": 1}, {"data": 1, "type": 5}, None):
        other = await RawClient.connect(server)
        other.send({"header": {"scope": "server"}, "payload": payload})
        assert (await other.receive())["payload"]["reason"] == "malformed"
        assert await other.at_end()
        await other.close()
