"""Encrypted fabric of a running server: who is let in, as what, and what becomes of a stolen routing id."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq

from bester.broker.core.effects import Link
from bester.broker.core.settings import Grant, Settings
from bester.broker.keys import KeyPair
from bester.broker.leaving import SENT_AT_ONCE, split
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.messages import Message
from tests.keyed import KeyedParty, Pair, free_port, new_pair, server_key
from tests.live import (
    BESTER,
    DEADLINE_S,
    LiveServer,
    Process,
    RawClient,
    RawHandler,
    head,
    live_server,
    short_directory,
)

PAIRS = {name: new_pair() for name in ("worker", "other", "bridge", "s2", "stranger")}
PARTIES = f"""
[fabric.parties.worker]
key = "{PAIRS["worker"].public}"
role = "handler"
types = ["a", "b"]
[fabric.parties.other]
key = "{PAIRS["other"].public}"
role = "handler"
types = ["a", "b"]
"""
MORE = f"""
[fabric.parties.bridge]
key = "{PAIRS["bridge"].public}"
role = "bridge"
[servers.s2]
fabric = "tcp://127.0.0.1:9"
key = "{PAIRS["s2"].public}"
accept_types = ["a"]
"""


class Stand:
    """A server with an encrypted listener, and parties that come to it."""

    def __init__(self, server: LiveServer, fabric: str) -> None:
        self.server = server
        self.fabric = fabric
        self.key = server_key(server.directory)
        self.parties: list[KeyedParty] = []

    def party(self, pair: Pair, *types: str, **options: Any) -> KeyedParty:
        """Return a party that connects."""
        self.parties.append(KeyedParty(self.fabric, pair, self.key, list(types), **options))
        return self.parties[-1]

    async def says(self, text: str) -> str:
        """Wait for a line of the server's log."""
        return await self.server.processes[0].says(text)


@asynccontextmanager
async def curve_server(toml: str = PARTIES + MORE) -> AsyncIterator[Stand]:
    """Run a server that encrypts tcp on loopback."""
    port = free_port()
    fabric = f'[fabric]\nlisten = ["ipc://DATA_DIR/fabric.sock", "tcp://127.0.0.1:{port}"]\ncurve = true\n'
    async with live_server(fabric + toml) as server:
        stand = Stand(server, f"tcp://127.0.0.1:{port}")
        try:
            yield stand
        finally:
            for party in stand.parties:
                party.close()


async def test_a_handler_serves_its_types_alone_and_is_nothing_else() -> None:
    async with curve_server() as stand:
        worker = stand.party(PAIRS["worker"], "a", "b")
        assert (await worker.hello())[0] == 2
        client = await RawClient.login(stand.server, "alice")
        client.submit("b", {"n": 1}, "m1")
        await worker.serve(1, lambda request: [["sendClients", ["alice"], b'"done"']])
        report, before = await client.until_report("m1")
        assert report["header"]["status"] == "good" and before[0]["payload"]["data"] == "done"
        await client.close()

        greedy = stand.party(PAIRS["worker"], "a", "b", "c")
        answer = await greedy.hello()
        assert answer[0] == 5 and answer[1] == "not-allowed" and "'c'" in answer[2], answer
        for role in ("bridge", "server", "operator"):
            answer = await greedy.hello(role)
            assert answer[:2] == [5, "not-allowed"] and "for a handler" in answer[2], (role, answer)


async def test_a_key_is_good_for_its_server_alone() -> None:
    async with curve_server() as stand:
        s2 = stand.party(PAIRS["s2"])
        answer = await s2.hello("server", "s3")
        assert answer[:2] == [5, "not-allowed"] and "'s2'" in answer[2], answer
        assert (await s2.hello("server", "s2"))[0] == 2
        bridge = stand.party(PAIRS["bridge"])
        assert (await bridge.hello("server", "s2"))[:2] == [5, "not-allowed"]
        assert (await bridge.hello("bridge", "b"))[0] == 2


async def test_an_unknown_key_is_refused_and_the_log_says_whose() -> None:
    async with curve_server() as stand:
        stranger = stand.party(PAIRS["stranger"], "a")
        assert await stranger.handshake() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        line = await stand.says("fabric-refused")
        assert PAIRS["stranger"].public in line and "127.0.0.1" in line


async def test_a_wrong_server_key_and_a_plain_link_are_refused_and_logged() -> None:
    async with curve_server() as stand:
        mistaken = KeyedParty(stand.fabric, PAIRS["worker"], new_pair().public, ["a"])
        plain = RawHandler(stand.fabric, ["a"])
        stand.parties.append(mistaken)
        try:
            assert await mistaken.handshake() == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            await stand.says("another public key for this server")
            await stand.says("does not encrypt")
        finally:
            plain.close()


@pytest.mark.parametrize("routing_id", [b"worker-1", b"\x01", b"x" * 255])
async def test_a_routing_id_taken_over_by_another_key_gets_nothing(routing_id: bytes) -> None:
    async with curve_server() as stand:
        victim = stand.party(PAIRS["worker"], "a", routing_id=routing_id)
        assert (await victim.hello())[0] == 2
        client = await RawClient.login(stand.server, "alice")
        client.submit("a", {"secret": "for the first handler"}, "m1")
        request = await victim.hear(10)
        stand.parties.remove(victim)
        victim.close()
        await stand.says("lost role='handler' name='raw'")  # until then ZeroMQ keeps the routing id from any other

        thief = stand.party(PAIRS["other"], "a", routing_id=routing_id)
        await thief.say([11, request[1], 0, [["sendClients", ["alice"], b'"stolen"']]])
        assert (await thief.hear(10, 5))[:2] == [5, "hello-first"]  # no link, no request, and the reply did not count
        assert (await thief.hello())[0] == 2
        again = await thief.hear(10)  # as an honest handler of the type, on a link of its own
        assert again[5]["attempt"] == 2 and again[1] != request[1]
        await thief.say([11, again[1], 0, [["sendClients", ["alice"], b'"served"']]])
        report, before = await client.until_report("m1")
        assert report["header"]["status"] == "good"
        assert [frame["payload"]["data"] for frame in before] == ["served"]
        await client.close()


async def test_a_handler_that_answers_and_leaves_at_once_has_answered() -> None:
    """The end of a connection is seen on another way than its last messages, and must not overtake them."""
    async with curve_server() as stand:
        client = await RawClient.login(stand.server, "alice")
        for number in range(5):
            worker = stand.party(PAIRS["worker"], "a")
            await worker.hello()
            client.submit("a", {"n": number}, f"m{number}")
            await worker.serve(1, lambda request: [["sendClients", ["alice"], b'"done"']])
            stand.parties.remove(worker)
            worker.leave()
            report, before = await client.until_report(f"m{number}")
            assert report["header"]["status"] == "good" and len(before) == 1, report
        await client.close()


async def test_long_batches_are_read_in_order_and_whole() -> None:
    """A long batch takes several turns of the loop, and counts although its sender leaves meanwhile."""
    async with curve_server() as stand:
        worker, other = stand.party(PAIRS["worker"], "a"), stand.party(PAIRS["other"], "b")
        await worker.hello()
        await other.hello()
        client = await RawClient.login(stand.server, "alice")

        async def received(count: int) -> list[Any]:
            seen: list[Any] = []
            while len(seen) < count:
                payload = (await client.receive())["payload"]
                seen += [payload["data"]] if payload.get("type") in ("a", "b") else []
            return seen

        def emits(first: int) -> list[list[Any]]:
            return [[12, n, "a", [["sendClients", ["alice"], b"%d" % n]], {}] for n in range(first, first + 1000)]

        await worker.say(*emits(0))
        await worker.say(*emits(1000))
        client.submit("b", {"n": 1}, "m1")
        await other.serve(1, lambda request: [["sendClients", ["alice"], b'"beside"']])
        seen = await received(2001)
        seen.remove("beside")
        assert seen == list(range(2000))
        for _ in range(2000):
            await worker.hear(13)  # a socket that is closed with something unread throws away what it has to send
        await worker.say(*emits(2000))
        stand.parties.remove(worker)
        worker.leave()
        assert await received(1000) == list(range(2000, 3000))
        await client.close()


async def test_many_requests_at_once_leave_over_some_turns_in_order() -> None:
    """A party with much credit gets all that waits: writing it at once would hold everybody up."""
    async with curve_server() as stand:
        worker, other = stand.party(PAIRS["worker"], "a"), stand.party(PAIRS["other"], "b", credit=1)
        await worker.hello()
        await other.hello()
        await worker.say(*([12, n, "a", [["sendHandler", ["b"], b"%d" % n]], {}] for n in range(901)))
        first = await other.hear(10)
        await worker.say([14, 1, "listClients"])
        await worker.hear(15)  # so the broker has all
        other.options["credit"] = 5000
        await other.say([1, 1, "handler", "raw", other.options])
        seen = [first]
        async with asyncio.timeout(DEADLINE_S):
            while len(seen) < 901:
                rows = [row for row in msgpack.unpackb(await other.socket.recv()) if row[0] == 10]
                assert len(rows) <= SENT_AT_ONCE
                seen += rows
        assert [int(row[3]) for row in seen] == list(range(901))
        await other.say(*([11, row[1], 0, [], None] for row in seen))


async def test_key_that_is_revoked_gets_no_more_of_what_waits_to_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages that had not left count as not begun: only those that had are marked as tried before."""
    waits = asyncio.Event()

    def watched(outgoing: dict[Link, list[Message]], most: int) -> dict[Link, list[Message]]:
        later = split(outgoing, most)
        if later:
            waits.set()
        return later

    monkeypatch.setattr("bester.broker.leaving.split", watched)
    keys = new_pair()
    port, count = free_port(), 901
    fabric = f"tcp://127.0.0.1:{port}"
    grants = {PAIRS[name].public: Grant("handler", name, frozenset({"a", "b"})) for name in ("worker", "other")}
    settings = Settings("s1", open_accounts=True, grants=grants)
    pair = KeyPair(keys.public, keys.secret)
    async with Broker(settings, (fabric,), OpenAccounts(), MemoryStore(), pair=pair, curve=True) as broker:
        parties = [KeyedParty(fabric, PAIRS["worker"], keys.public, ["a"])]
        worker = parties[0]
        parties.append(other := KeyedParty(fabric, PAIRS["other"], keys.public, ["b"], credit=1))
        try:
            await worker.hello()
            await other.hello()
            await worker.say(*([12, n, "a", [["sendHandler", ["b"], b"%d" % n]], {}] for n in range(count)))
            await other.hear(10)
            await worker.say([14, 1, "listClients"])
            await worker.hear(15)  # so the broker has all
            other.options["credit"] = 5000
            await other.say([1, 1, "handler", "raw", other.options])
            async with asyncio.timeout(DEADLINE_S):
                await waits.wait()
            with contextlib.ExitStack() as opened:
                broker.prepare({}, {PAIRS["worker"].public: grants[PAIRS["worker"].public]}, opened)()
            got = 1
            while (await other.hear(10, 4))[0] == 10:
                got += 1
            assert got < count
            parties.append(last := KeyedParty(fabric, PAIRS["worker"], keys.public, ["b"], credit=5000))
            await last.hello()
            attempts: Counter[int] = Counter()
            while attempts.total() < count:
                request = await last.hear(10)
                attempts[request[5]["attempt"]] += 1
                await last.say([11, request[1], 0, [], None])
            assert attempts == {1: count - got, 2: got}
        finally:
            for party in parties:
                party.close()


async def test_link_that_sends_far_more_than_is_handled_is_cut_and_nobody_else() -> None:
    """A party that floods loses its link, and may come again; another is served meanwhile."""
    async with curve_server() as stand:
        worker, other = stand.party(PAIRS["worker"], "a"), stand.party(PAIRS["other"], "b")
        await worker.hello()
        await other.hello()
        client = await RawClient.login(stand.server, "alice")
        batch = msgpack.packb([[12, n, "a", [["sendClients", ["nobody"], b"1"]], {}] for n in range(40)])

        async def floods() -> None:
            while True:
                await worker.socket.send(batch)

        flood = asyncio.create_task(floods())
        try:
            for number in range(3):
                client.submit("b", {"n": 1}, f"m{number}")
                await other.serve(1, lambda request: [["sendClients", ["alice"], b'"beside"']])
            assert "127.0.0.1" in await stand.says("it sends more than is handled of it")
        finally:
            flood.cancel()
        stand.parties.remove(worker)
        worker.close()
        again = stand.party(PAIRS["worker"], "a")
        assert (await again.hello())[0] == 2
        client.submit("a", {"n": 1}, "last")
        await again.serve(1, lambda request: [["sendClients", ["alice"], b'"served"']])
        await client.close()


async def test_keys_beyond_their_handshake_are_looked_at_when_the_file_is_read_again() -> None:
    async with curve_server() as stand:
        worker, other = stand.party(PAIRS["worker"], "a"), stand.party(PAIRS["other"], "a", credit=1)
        assert (await worker.hello())[0] == 2
        client = await RawClient.login(stand.server, "alice")
        client.submit("a", {"n": 1}, "m1")
        await worker.hear(10)
        assert (await other.hello())[0] == 2
        file = stand.server.directory / "bester.toml"
        before = file.read_text()
        gone = before.replace(PAIRS["worker"].public, PAIRS["stranger"].public)
        file.write_text("[nonsense]\n" + before)
        stand.server.processes[0].send_signal(signal.SIGHUP)
        await stand.says("unknown section")  # and the old keys hold
        file.write_text(gone)
        stand.server.processes[0].send_signal(signal.SIGHUP)
        parting = await worker.hear(4)
        assert "not known" in parting[1]
        await other.serve(1, lambda request: [["sendClients", ["alice"], b'"done"']])
        report, _ = await client.until_report("m1")
        assert report["header"]["status"] == "good"
        assert (await worker.hello())[:2] == [5, "not-allowed"]
        back = stand.party(PAIRS["worker"], "a")
        assert await back.handshake() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
        assert (await stand.party(PAIRS["stranger"], "a").hello())[0] == 2
        await client.close()


async def test_the_key_file_is_made_once_and_guarded() -> None:
    async with short_directory() as directory:
        (directory / "bester.toml").write_text('[server]\nname = "s1"\ndata_dir = "data"\n')
        first = server_key(directory)
        assert len(first) == 40 and server_key(directory) == first
        file = directory / "data" / "server.key"
        assert file.stat().st_mode & 0o777 == 0o600


async def test_encrypted_listener_whose_key_cannot_be_written_ends_the_start_in_one_line() -> None:
    async with short_directory() as directory:
        listen = f'[fabric]\nlisten = ["tcp://127.0.0.1:{free_port()}"]\ncurve = true\nkey = "nowhere/server.key"\n'
        (directory / "bester.toml").write_text(head() + listen)
        up = await Process.start(BESTER, "up", cwd=directory)
        assert await asyncio.wait_for(up.process.wait(), DEADLINE_S) == 2
        await up.end()
        assert len(up.lines) == 1 and "nowhere/server.key: the key cannot be written" in up.lines[0], up.lines
