"""A handler written from the fabric protocol's page, with pyzmq and msgpack alone, against a real server."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import msgpack  # type: ignore[import-untyped]  # msgpack ships no types
import pytest

from tests.live import LAYOUTS, LiveServer, RawClient, RawHandler, live_server, raw_handler


def to_sender(request: list[Any]) -> list[Any]:
    """Answer the sender with the data received."""
    return [["sendClients", [request[4]], request[3]]]


async def test_round_trip_with_every_field(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "chat") as handler:
        bob = await RawClient.login(server, "bob")
        bob.submit("chat", b'{"text": 0.10}', "m1")
        op, token, type_, body, user, meta = await handler.hear(10)
        assert (op, type_, body, user) == (10, "chat", b'{"text": 0.10}', "bob")
        assert meta["scope"] == "client" and meta["attempt"] == 1 and meta["path"] == [] and meta["origin"] == "s1"
        assert meta["id"] == meta["root"]
        await handler.say([11, token, 0, [["sendClients", ["bob"], b"[-0]"]], None])
        report, before = await bob.until_report("m1")
        assert report["header"]["status"] == "good"
        assert report["payload"] == {"id": "m1", "message": meta["id"]}
        assert before == [
            {
                "header": {"messageType": "receivedMessage", "id": meta["id"] + ".0.0", "origin": "s1"},
                "payload": {"data": [0], "type": "chat"},
            }
        ]
        await bob.close()


async def test_three_hundred_in_flight(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "chat", credit=300) as handler:
        bob = await RawClient.login(server, "bob")
        for number in range(300):
            bob.submit("chat", number, str(number))
        requests = [await handler.hear(10) for _ in range(300)]
        assert [json.loads(request[3]) for request in requests] == list(range(300))
        assert len({request[1] for request in requests}) == 300
        await handler.say(*([11, request[1], 0, to_sender(request)] for request in requests))
        frames = [await bob.receive() for _ in range(600)]
        delivered = [f["payload"]["data"] for f in frames if f["header"]["messageType"] == "receivedMessage"]
        reported = [f["payload"]["id"] for f in frames if f["header"].get("status") == "good"]
        assert delivered == list(range(300)) and sorted(map(int, reported)) == list(range(300))
        await bob.close()


async def test_large_bodies_are_attached_and_accepted_either_way(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "big") as handler:
        bob = await RawClient.login(server, "bob")
        text = json.dumps("x" * 200_000).encode()
        bob.submit("big", text, "m1")
        request = await handler.hear(10)
        assert request[3] == 1 and handler.attachments == [text]
        await handler.say(
            [
                11,
                request[1],
                0,
                [["sendClients", ["bob"], 2], ["sendClients", ["bob"], text], ["sendClients", ["bob"], "1"]],
            ],
            attachments=(b"unused", text),
        )
        _, before = await bob.until_report("m1")
        assert [frame["payload"]["data"] for frame in before] == [json.loads(text), json.loads(text), 1]
        await bob.close()


async def test_several_commands_and_consumption(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "one") as first, raw_handler(server.fabric, "two") as second:
        bob = await RawClient.login(server, "bob")
        bob.submit("one", {}, "m1")
        request = await first.hear(10)
        await first.say(
            [11, request[1], 0, [["sendClients", ["bob", "bob"], b"1"], ["sendHandler", ["two"], b"2"]], None]
        )
        onward = await second.hear(10)
        assert (onward[2], onward[3], onward[4]) == ("two", b"2", "bob")
        assert onward[5]["path"] == ["s1/one"] and onward[5]["root"] == request[5]["id"]
        assert onward[5]["id"] == request[5]["id"] + ".1.0"
        await second.say([11, onward[1], 0, []])
        report, before = await bob.until_report("m1")
        assert report["header"]["status"] == "good"
        assert [frame["header"]["id"] for frame in before] == [request[5]["id"] + ".0.0", request[5]["id"] + ".0.1"]
        await bob.close()


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ([1, [], "no idea"], "handler-failed"),
        ([0, [["sendNowhere", ["bob"], b"1"]]], "unknown-command"),
        ([0, [["sendClients", ["bob"], b"{"]]], "bad-reply"),
        ([0, [["sendClients", ["bob"], b"[" * 80 + b"]" * 80]]], "bad-reply"),
        ([0, [["sendClients", ["bob"], b'"\xff"']]], "bad-reply"),
        ([0, [["sendClients", "bob", b"1"]]], "bad-reply"),
        ([0, [["sendHandler", ["a", "b"], b"1"]]], "bad-reply"),
        ([0, [["sendClients", ["bob"], 7]]], "bad-reply"),
        ([0, "nothing"], "bad-reply"),
        ([0, [["sendHandler", ["nobody"], b"1"]]], "unknown-type"),
        ([0, [["sendHandler", ["bester.auth"], b"1"]]], "reserved"),
        ([0, [["sendServers", ["elsewhere"], b"1"]]], "unreachable"),
        ([0, [["sendServers", ["127.0.0.1:9"], b"1"]]], "not-allowed"),
        ([0, [["sendClients", ["nobody"], b"1"]]], "not-connected"),
    ],
)
async def test_failures_are_reported(server: LiveServer, reply: list[Any], reason: str) -> None:
    async with raw_handler(server.fabric, "chat") as handler:
        bob = await RawClient.login(server, "bob")
        bob.submit("chat", {}, "m1")
        request = await handler.hear(10)
        await handler.say([11, request[1], *reply])
        report, before = await bob.until_report("m1")
        assert report["header"]["status"] == "bad" and report["payload"]["reason"] == reason
        assert before == []
        await bob.close()


async def test_emit_and_its_resend(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "clock") as handler:
        bob = await RawClient.login(server, "bob")
        tick = [["sendClients", ["bob", "carol"], b'"tick"']]
        await handler.say([12, 1, "clock", tick, {"id": "noon"}])
        assert await handler.hear(13) == [
            13,
            1,
            1,
            {"bob": "delivered", "carol": "failed:not-connected"},
            "not-connected",
        ]
        await handler.say([12, 2, "clock", tick, {"id": "noon"}])
        assert await handler.hear(13) == [
            13,
            2,
            1,
            {"bob": "delivered", "carol": "failed:not-connected"},
            "not-connected",
        ]
        frame = await bob.receive()
        assert frame["payload"] == {"data": "tick", "type": "clock"}
        await handler.say([12, 3, "other", tick, {}])
        assert (await handler.hear(5))[1:2] == ["not-allowed"]
        bob.submit("dummy", None, "ping")
        assert (await bob.receive())["payload"]["id"] == "ping"  # no message came twice
        await bob.close()


async def test_questions(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "x") as handler:
        bob = await RawClient.login(server, "bob")
        await handler.say([14, 1, "listClients", None], [14, 2, "isClient", "bob"], [14, 3, "isClient", "eve"])
        await handler.say([14, 4, "serverInfo", None], [14, 5, "whoami", None])
        answers = [await handler.hear(15) for _ in range(5)]
        assert answers[:3] == [[15, 1, 0, ["bob"]], [15, 2, 0, True], [15, 3, 0, False]]
        assert answers[3][3]["clientCount"] == "1"
        assert answers[4][:3] == [15, 5, 1]
        await bob.close()


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_a_frozen_handler_loses_its_messages_to_another(layout: str) -> None:
    async with (
        live_server(layout=layout) as server,
        raw_handler(server.fabric, "chat", credit=8, lease_ms=1000) as frozen,
    ):
        bob = await RawClient.login(server, "bob")
        bob.submit("chat", {}, "m1")
        first = await frozen.hear(10)  # and from now on the handler sends nothing, not even a heartbeat
        async with raw_handler(server.fabric, "chat", credit=1) as other:
            beats = asyncio.create_task(heartbeats(other))
            second = await other.hear(10)
            assert second[5]["attempt"] == 2 and second[5]["id"] == first[5]["id"] and second[1] != first[1]
            await frozen.say([11, first[1], 0, [["sendClients", ["bob"], b'"late"']], None])
            assert (await frozen.hear(5))[1] == "hello-first"
            await other.say([11, second[1], 0, [["sendClients", ["bob"], b'"in time"']], None])
            report, before = await bob.until_report("m1")
            assert report["header"]["status"] == "good"
            assert [frame["payload"]["data"] for frame in before] == ["in time"]
            beats.cancel()
        frozen.welcome = False
        await bob.close()


async def heartbeats(handler: Any) -> None:
    """Send heartbeats as a living handler does."""
    pause = asyncio.Event()
    while True:
        await handler.say([3])
        try:
            await asyncio.wait_for(pause.wait(), 1.0)
        except TimeoutError:
            continue


async def test_four_workers_share_evenly(server: LiveServer) -> None:
    async with (
        raw_handler(server.fabric, "w", credit=50) as one,
        raw_handler(server.fabric, "w", credit=50) as two,
        raw_handler(server.fabric, "w", credit=50) as three,
        raw_handler(server.fabric, "w", credit=50) as four,
    ):
        bob = await RawClient.login(server, "bob")
        for number in range(160):
            bob.submit("w", number, str(number))
        counts = []
        for handler in (one, two, three, four):
            mine = [await handler.hear(10)]
            while True:
                try:
                    async with asyncio.timeout(0.5):
                        mine.append(await handler.hear(10))
                except TimeoutError:
                    break
            counts.append(len(mine))
            await handler.say(*([11, request[1], 0, []] for request in mine))
        assert sum(counts) == 160 and max(counts) - min(counts) <= 16, counts
        await bob.close()


GARBAGE: list[tuple[str, list[bytes], str]] = [
    ("not MessagePack", [b"\xc1\xc1"], "malformed"),
    ("empty frame", [b""], "malformed"),
    ("not an array", [msgpack.packb({"a": 1})], "malformed"),
    ("an empty array", [msgpack.packb([])], "malformed"),
    ("too many messages", [msgpack.packb([[3]] * 1025)], "malformed"),
    ("a message that is no array", [msgpack.packb([7])], "malformed"),
    ("no op", [msgpack.packb([[]])], "malformed"),
    ("unknown op", [msgpack.packb([[99, 1]])], "unknown-op"),
    ("op of another role", [msgpack.packb([[24, 1, 1, "chat", b"1", {}]])], "unknown-op"),
    ("too few fields", [msgpack.packb([[11, 1]])], "malformed"),
    ("wrong field type", [msgpack.packb([[11, "1", 0, []]])], "malformed"),
    ("a token nobody gave", [msgpack.packb([[11, 12345, 0, []]])], "unknown-token"),
    ("a huge integer", [msgpack.packb([[11, 2**63, 0, []]])], "malformed"),
    ("an attachment that is not there", [msgpack.packb([[12, 1, "chat", [["sendClients", [], 3]], {}]])], "malformed"),
    ("bytes that are no UTF-8 in a string", [b"\x91\x93\x0c\x01\xa1\xff"], "malformed"),
    ("nested deeper than a stack", [b"\x91" * 100_000], "malformed"),
    ("an array longer than its bytes", [b"\xdd\xff\xff\xff\xff"], "malformed"),
    ("a reserved type", [msgpack.packb([[1, 1, "handler", "raw", {"types": ["bester.x"]}]])], "reserved"),
    ("a version to come", [msgpack.packb([[1, 2, "handler", "raw", {"types": ["x"]}]])], "version"),
    ("a role that is none", [msgpack.packb([[1, 1, "king", "raw", {"types": ["x"]}]])], "not-allowed"),
]  # fmt: skip


async def test_garbage_gets_an_error_each_and_harms_no_link(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "chat") as good, raw_handler(server.fabric, "junk") as hostile:
        bob = await RawClient.login(server, "bob")
        for what, frames, code in GARBAGE:
            await hostile.send_frames(*frames)
            assert (await hostile.hear(5))[1] == code, what
        bob.submit("chat", {"still": "here"}, "m1")
        await good.serve(1, to_sender)
        report, _ = await bob.until_report("m1")
        assert report["header"]["status"] == "good"
        bob.submit("junk", {}, "m2")  # the hostile link itself still lives
        await hostile.serve(1, to_sender)
        report, _ = await bob.until_report("m2")
        assert report["header"]["status"] == "good"
        await bob.close()


async def test_unknown_link_gets_hello_first_once(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "x") as handler:
        stranger = RawHandler(server.fabric, ["x"])
        await stranger.say([3], [3], [14, 1, "listClients", None])
        assert (await stranger.hear(5))[1] == "hello-first"
        await stranger.hello()
        assert not [message for message in stranger.inbox if message[0] == 5]
        stranger.close()
        await handler.say([14, 1, "listClients", None])
        assert await handler.hear(15) == [15, 1, 0, []]


async def test_goodbye_is_echoed_and_requests_that_crossed_are_finished(server: LiveServer) -> None:
    async with raw_handler(server.fabric, "x", credit=2) as handler:
        bob = await RawClient.login(server, "bob")
        bob.submit("x", 1, "m1")
        request = await handler.hear(10)
        await handler.say([4, "done for today"])
        assert (await handler.hear(4))[0] == 4
        await handler.say([11, request[1], 0, to_sender(request), None])
        report, _ = await bob.until_report("m1")
        assert report["header"]["status"] == "good"
        await handler.say([3])
        assert (await handler.hear(5))[1] == "hello-first"
        handler.welcome = False
        bob.submit("x", 2, "m2")  # a type that is known, without a handler
        report, _ = await bob.until_report("m2")
        assert report["payload"]["reason"] == "no-handler"
        await bob.close()


async def test_unknown_type_is_reported_at_once(server: LiveServer) -> None:
    bob = await RawClient.login(server, "bob")
    bob.submit("never-heard-of", 1, "m1")
    report, _ = await bob.until_report("m1")
    assert report["payload"]["reason"] == "unknown-type" and report["header"]["status"] == "bad"
    bob.submit("bester.auth", 1, "m2")
    report, _ = await bob.until_report("m2")
    assert report["payload"]["reason"] == "reserved"
    await bob.close()
