"""Data that one part of Bester accepts passes every other part, byte for byte; and a refusal ends one message."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bester.client import Client, MessageTooLarge, Outcome, Report, blocking
from tests.e2e.fake_native_server import FakeServer, Json, Peer, free_port, report_frame
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawClient, live_server, short_directory

DEEP = [
    b"[" * 64 + b"]" * 64,
    b'{"a":' * 64 + b"1e999" + b"}" * 64,
    b'[{"[[[[":' * 31 + b'[{"x":"]]]]"}]' + b"}]" * 31,
    b"[1," * 63 + b"{}" + b"]" * 63,
]
"""The deepest data that is allowed."""
TOO_DEEP = [b"[" + body + b"]" for body in DEEP]
ODD = [
    b"-0", b"-0.0", b"0.10", b"1E+5", b"1e999", b"-1e-999", b"18446744073709551616", b"-9223372036854775809",
    b"9" * 5000, b"0.1000000000000000055511151231257827", b'"\\u0000"', b'"\\ud83d\\ude00"', b'"\\u00E9\\/"',
    '"\u2028\ufeff\U0001f600\x7f"'.encode(), b'{"a":1,"a":2,"":null}', b' [ 1 ,\t{ } ] ', b"null", b'""', b"[]",
]  # fmt: skip
"""JSON that parsers change easily, or fail on."""
HALVES = [b'"\\ud83d"', b'["\\udE00"]', b'{"\\uD800x":1e999}']
"""Lone surrogates: JSON by its grammar, but unreadable for some parsers."""

APP = """
from bester.handlers import App
app = App()

@app.handler("here")
async def here(message):
    return message.reply(raw=message.raw)

@app.handler("thread")
def thread(message):
    return message.send_handler("here", raw=message.raw)

@app.handler("native")
async def native(message):
    return message.send_servers(["s2"], raw=message.raw, as_type="land")

@app.handler("fabric")
async def fabric(message):
    return message.send_servers(["f2"], raw=message.raw, as_type="land")

@app.handler("land")
async def land(message):
    return message.send_clients(["bob"], raw=message.raw)

@app.handler("make")
async def make(message):
    return message.reply(raw=message.data.encode("utf-8", "surrogatepass"))

@app.handler("native-x")
async def native_x(message):
    return message.send_servers(["s2"], raw=b'"' + b"x" * message.data + b'"', as_type="land")
"""
HANDLERS = (
    '[handlers.app]\napp = "app:app"\ntypes = ["here", "thread", "native", "fabric", "land", "make", "native-x"]\n'
)


async def echo_as_the_reference_does(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Play a handler of besterd's kind: the data goes back to alice."""
    length = int.from_bytes(await reader.readexactly(4), "little")
    data = await reader.readexactly(length)
    answer = b'{"header":{"status":"0","command":{"type":"sendClients","data":["alice"]}},"data":%b}' % data
    writer.write(len(answer).to_bytes(4, "little") + answer)
    await writer.drain()
    writer.close()


@asynccontextmanager
async def app_server(toml: str = "", **head: str) -> AsyncIterator[LiveServer]:
    """A server with the handlers above, and `old`, one of the reference's kind."""
    name, native = head.get("name", "s1"), head.get("native", "")
    text = f'[server]\nname = "{name}"\ndata_dir = "data"\n[native]\n'
    text += native if "tcp4" in native else f'tcp4 = "127.0.0.1:0"\n{native}'
    text += '\n[accounts]\nauth = "open"\n'
    async with short_directory() as directory:
        (directory / "app.py").write_text(APP)
        old = await asyncio.start_unix_server(echo_as_the_reference_does, str(directory / "old.sock"))
        server = await LiveServer.start(directory, f'{text}{HANDLERS}[handlers.old]\nsocket = "old.sock"\n{toml}')
        try:
            for type_ in ("land", "old"):
                await server.has_type(type_)
            yield server
        finally:
            old.close()
            statuses = await server.stop()
        assert statuses == [0] * len(statuses), [process.lines for process in server.processes]


def data_of(frame: bytes) -> bytes:
    """The data of a received message as it stands in the frame."""
    _, _, rest = frame.partition(b'"payload":{"data":')
    return rest[: rest.rindex(b',"type":')]


class TestEveryPart:
    async def test_valid_data_passes_every_part_unchanged(self) -> None:
        """Client → bridge → handler (async, in a thread, of the reference's kind, on another server by either way)."""
        async with (
            app_server('[federation]\naccept = "open"\n', name="s2") as s2,
            app_server(
                f'[servers.s2]\nnative = "{s2.address}"\n'
                f'[servers.f2]\nfabric = "ipc://{s2.directory}/data/fabric.sock"\n'
            ) as s1,
        ):
            alice, bob = await RawClient.login(s1, "alice"), await RawClient.login(s2, "bob")
            for type_, receiver in (
                ("here", alice), ("thread", alice), ("old", alice), ("native", bob), ("fabric", bob)
            ):  # fmt: skip
                for body in DEEP + ODD:
                    alice.submit(type_, body, "i")
                    if receiver is alice:
                        assert data_of(await alice.receive_bytes()) == body.strip(), type_
                    report, before = await alice.until_report("i")
                    assert (report["header"]["status"], report["payload"].get("recipients")) == ("good", None), body
                    assert before == []
                    if receiver is bob:
                        assert data_of(await bob.receive_bytes()) == body.strip(), type_
            await alice.close()
            await bob.close()

    async def test_valid_data_passes_parts_in_processes_unchanged(self) -> None:
        async with live_server(layout="apart", handlers=("bester.handlers.stock.echo:app",)) as server:
            alice = await RawClient.login(server, "alice")
            for body in DEEP + ODD:
                alice.submit("echo", body, "i")
                assert data_of(await alice.receive_bytes()) == body.strip()
                assert (await alice.until_report("i"))[0]["header"]["status"] == "good"
            for body in TOO_DEEP + HALVES:
                alice.submit("echo", body, "i")
                assert (await alice.until_report("i"))[0]["payload"]["reason"] == "malformed"
            await alice.close()

    async def test_invalid_data_ends_its_message_wherever_it_enters(self) -> None:
        async with app_server() as server:
            alice = await RawClient.login(server, "alice")
            for body in TOO_DEEP + HALVES:
                alice.submit("here", body, "entering")
                report, _ = await alice.until_report("entering")
                assert (report["header"]["status"], report["payload"]["reason"]) == ("bad", "malformed")
                alice.submit("make", body.decode(), "made")
                report, before = await alice.until_report("made")
                assert (report["payload"]["reason"], before) == ("bad-reply", [])
            for text in ("\ufeff1", "NaN", "01", "[1,]", "{'a':1}", ""):
                alice.submit("make", text, "made")
                report, before = await alice.until_report("made")
                assert (report["payload"]["reason"], before) == ("bad-reply", [])
            alice.submit("here", 1, "last")
            assert (await alice.until_report("last"))[0]["header"]["status"] == "good"
            await alice.close()


class TestTheClient:
    """The Python client, asyncio and blocking, and the command line."""

    async def test_client_sends_valid_data_and_refuses_invalid_data_itself(self) -> None:
        loop: list[Any] = []
        loop.append(loop)
        deep: Any = 1
        for _ in range(64):
            deep = [deep]
        async with app_server() as server, Client(server.address, user="alice", password="x") as client:
            for body in DEEP + ODD:
                assert (await client.send("here", raw=body)).good
                assert (await client.receive()).raw == body.strip()
            assert (await client.send("here", deep)).good
            assert (await client.receive()).data == deep
            for raw in [*TOO_DEEP, *HALVES, b"\xef\xbb\xbf1", b'"\xff"', b"NaN", b""]:
                with pytest.raises(ValueError, match="raw is not JSON text"):
                    await client.send("here", raw=raw)
            for data in ([deep], loop, {"a": [deep]}):
                with pytest.raises(ValueError, match="nested deeper than 64"):
                    await client.send("here", data)
            with pytest.raises(ValueError, match="half a surrogate pair"):
                await client.send("here", "\ud83d")
            assert client.unreported == 0
            assert (await client.send("here", 1)).good

    async def test_a_message_that_is_too_large_ends_alone(self) -> None:
        links: list[str] = []

        def linked(connected: bool, why: str) -> None:
            links.append(why)

        async with (
            app_server(native="max_frame = 2048") as server,
            Client(server.address, user="alice", password="x", on_link=linked) as client,
        ):
            assert client.max_frame == 2048
            others = [client.submit("here", number) for number in range(5)]
            with pytest.raises(MessageTooLarge, match="takes 2048"):
                await client.send("here", "x" * 2048)
            assert [(await each).good for each in others] == [True] * 5
            assert links == [""]

            def in_a_thread() -> Report:
                with blocking.Client(server.address, user="alice", password="x") as other:
                    assert other.max_frame == 2048
                    with pytest.raises(blocking.MessageTooLarge):
                        other.submit("here", "x" * 3000)
                    with pytest.raises(blocking.MessageTooLarge):
                        other.send("here", "x" * 3000)
                    return other.send("here", "x" * 1500)

            assert (await asyncio.to_thread(in_a_thread)).good
            process = await Process.start(
                BESTER, "send", "--to", server.address, "--user", "alice", "here", json.dumps("x" * 5000),
                cwd=server.directory, env={"BESTER_PASSWORD": "x"},
            )  # fmt: skip
            assert await asyncio.wait_for(process.process.wait(), DEADLINE_S) == 1
            await process.end()
            (line,) = process.lines
            assert "and the server takes 2048; send less" in line

    async def test_lower_limit_after_a_reconnect_fails_only_larger_messages(self) -> None:
        limits = iter([65536, 4096, 65536])
        held: list[Json] = []

        def accept(peer: Peer, _: Json) -> None:
            peer.send(report_frame("auth_special", max_frame=next(limits)))
            server.accepted.put_nowait(peer)

        async with FakeServer() as server:
            server.on_login = accept
            server.on_message = lambda peer, payload: held.append(payload)
            async with Client(server.address, user="bob", password="secret") as client:
                first = await server.peer()
                small, large = client.submit("chat", "small"), client.submit("chat", "x" * 30_000)
                for _ in range(2):
                    await first.payload()
                first.transport.abort()
                second = await server.peer()
                with pytest.raises(MessageTooLarge, match=r"takes 4096.*may have been delivered"):
                    await asyncio.wait_for(large, DEADLINE_S)
                again = await second.payload()
                assert (again["data"], again["resent"]) == ("small", True)
                with pytest.raises(MessageTooLarge):
                    await client.send("chat", "x" * 5000)
                second.transport.abort()
                third = await server.peer()
                third.report((await third.payload())["id"])
                fits = client.submit("chat", "x" * 5000)
                third.report((await third.payload())["id"])
                assert (await small).good
                assert (await fits).good

    async def test_unannounced_limit_costs_one_connection(self) -> None:
        lost: list[str] = []

        def read(peer: Peer, payload: Json) -> None:
            if peer.transport.is_closing():
                return
            if len(json.dumps(payload)) > 4096:
                peer.send(report_frame(None, "bad", reason="frame-too-large"))
                peer.transport.close()
            else:
                peer.report(payload["id"])

        async with FakeServer() as server:
            server.on_message = read
            on_link = lambda connected, why: None if connected else lost.append(why)  # noqa: E731 (one line of a test)
            async with Client(server.address, user="bob", password="secret", on_link=on_link) as client:
                before, large = client.submit("chat", 1), client.submit("chat", "x" * 5000)
                behind = [client.submit("chat", number) for number in range(20)]
                with pytest.raises(MessageTooLarge, match="which the server has refused"):
                    await asyncio.wait_for(large, DEADLINE_S)
                assert all(report.good for report in await asyncio.gather(before, *behind))
                with pytest.raises(MessageTooLarge):
                    await client.send("chat", "x" * 6000)
                assert (await client.send("chat", 2)).good
        assert len(lost) == 1


class TestBetweenServers:
    async def test_message_above_the_limit_of_the_other_server_fails_for_good_and_alone(self) -> None:
        async with (
            app_server('[federation]\naccept = "open"\n', name="s2", native="max_frame = 4096") as s2,
            app_server(f'[servers.s2]\nnative = "{s2.address}"\n') as s1,
            Client(s1.address, user="alice", password="x") as alice,
            Client(s2.address, user="bob", password="x") as bob,
        ):
            for size in (5_000, 1_000_000, 15_000_000):
                reports = await asyncio.gather(*(alice.send("native-x", each) for each in (10, size, 20)))
                assert [report.recipients for report in reports] == [{}, {"s2": "failed:frame-too-large"}, {}]
                assert sorted([len((await bob.receive()).data) for _ in range(2)]) == [10, 20]

    async def test_queued_message_above_the_limit_of_the_other_server_fails_at_its_return(self) -> None:
        port = free_port()
        received: asyncio.Queue[Outcome] = asyncio.Queue()
        async with (
            app_server(f'[servers.s2]\nnative = "127.0.0.1:{port}"\n') as s1,
            Client(s1.address, user="alice", password="x", on_outcome=received.put_nowait) as alice,
        ):
            reports = [await alice.send("native-x", size, outcome=True) for size in (10, 5000, 20)]
            assert [report.recipients for report in reports] == [{"s2": "queued"}] * 3
            native = f'tcp4 = "127.0.0.1:{port}"\nmax_frame = 4096'
            async with app_server('[federation]\naccept = "open"\n', name="s2", native=native):
                outcomes = [await asyncio.wait_for(received.get(), DEADLINE_S) for _ in reports]
        by_message = {outcome.message: outcome.outcome for outcome in outcomes}
        # bob has no connection there, and with open accounts no mailbox
        expected = ["failed:not-connected", "failed:frame-too-large", "failed:not-connected"]
        assert [by_message[str(report.message)] for report in reports] == expected
