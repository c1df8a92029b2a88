"""Messages to other servers: one connection, one message, one report; and the outcomes without a report."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bester.bridge.conversation import LONG_BYTES
from bester.bridge.forward import Forwarder
from bester.bridge.limits import Limits
from bester.bridge.native_writing import report
from bester.broker.layer_turns import LayerTurns
from bester.broker.lookups import HINT_S, PATIENCE_S
from bester.broker.names import Names
from bester.broker.tls_files import Pair, client_context, server_context
from bester.broker.wire.messages import Forward
from tests.authorities import Authority
from tests.e2e.bridge_scene import OPEN_TO_SERVERS, Raw, scene
from tests.e2e.name_server import Clock, name_server, until
from tests.live import RawClient, live_server

REPORTED = {"reported": True}
Answer = Callable[[Raw], Awaitable[None]]


class Outcomes:
    """Outcomes that the forwarder has reported, by token."""

    def __init__(self) -> None:
        self.of: dict[int, str] = {}
        self.meta: dict[int, dict[str, Any]] = {}
        self._news = asyncio.Event()

    def done(self, token: int, outcome: str, meta: dict[str, Any]) -> None:
        assert token not in self.of
        self.of[token] = outcome
        self.meta[token] = meta
        self._news.set()

    async def all(self, count: int) -> dict[int, str]:
        async with asyncio.timeout(10):
            while len(self.of) < count:
                self._news.clear()
                await self._news.wait()
        return self.of


@asynccontextmanager
async def server(answer: Answer, context: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Run another server, which treats each connection as the test decides; yields its address."""
    tasks: set[asyncio.Task[None]] = set()

    async def treat(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        peer = Raw(reader, writer)
        try:
            await answer(peer)
        finally:
            await peer.close()
            tasks.discard(task)

    listening = await asyncio.start_server(treat, "127.0.0.1", 0, ssl=context)
    try:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        if tasks:
            await asyncio.wait(tasks)


async def good(peer: Raw) -> None:
    frame = await peer.read()
    peer.writer.write(report(json.dumps(frame["payload"]["id"]).encode(), 0))


async def bad(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 1, "not-allowed"))


async def partly(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 1, "expired", "s2/1", {"bob": "delivered", "carol": "failed:expired"}))


async def for_later(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 0, None, "s2/1", {"bob": "queued", "carol": "delivered", "dave": "queued"}))


async def long_winded(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(report(b"null", 0, None, "s2/1", {f"{number:0100}": "queued" for number in range(20_000)}))


async def chatty(peer: Raw) -> None:
    await peer.read()
    peer.write(b'{"header":{"messageType":"receivedMessage"},"payload":{}}')
    peer.writer.write(report(b"null", 0))


async def silent(peer: Raw) -> None:
    await peer.read()


async def unread(peer: Raw) -> None:
    """Close with the message unread in the system's buffer: a reset is sent."""
    await peer.reader.read(1)


async def half_closed(peer: Raw) -> None:
    """End the stream, read, and close."""
    peer.writer.write_eof()
    await peer.read()


async def wordy(peer: Raw) -> None:
    """Write a frame that is no report, and close in peace."""
    await peer.read()
    peer.write(b'{"header":{"messageType":"receivedMessage"},"payload":{}}')


async def wordy_at_length(peer: Raw) -> None:
    """Write a long frame that is no report, and close in peace."""
    await peer.read()
    peer.write(b'{"header":{"messageType":"receivedMessage"},"payload":"' + b"x" * 2 * LONG_BYTES + b'"}')


async def reset(peer: Raw) -> None:
    await peer.read()
    peer.reset()


async def too_large(peer: Raw) -> None:
    await peer.read()
    peer.writer.write(b"\xff\xff\xff\xff")
    await peer.reader.read()


async def long_before_its_report(peer: Raw) -> None:
    """Two long frames that are no report, then the report: each is read whole, and together they are too long."""
    frame = await peer.read()
    for _ in range(2):
        peer.write(b'{"header":{"messageType":"receivedMessage"},"payload":"' + b"x" * 9 * 1024 * 1024 + b'"}')
    peer.writer.write(report(json.dumps(frame["payload"]["id"]).encode(), 0))
    await peer.reader.read()


async def never(peer: Raw) -> None:
    await peer.reader.read()
    await peer.reader.read()


@pytest.mark.parametrize(
    ("answer", "outcome", "meta"),
    [
        (good, "delivered", REPORTED),
        (bad, "failed:not-allowed", REPORTED),
        (partly, "failed:expired", REPORTED | {"carried": True}),
        (for_later, "queued", REPORTED | {"queued": 2}),
        (long_winded, "queued", REPORTED | {"queued": 20_000}),
        (chatty, "delivered", REPORTED),
        (silent, "sent", {}),
        (half_closed, "sent", {}),
        (wordy, "sent", {}),
        (wordy_at_length, "sent", {}),
        (reset, "failed:unreachable", {}),
        (too_large, "failed:unreachable", {}),
        (long_before_its_report, "failed:unreachable", {}),
        (never, "failed:unreachable", {}),
    ],
)
async def test_outcome_of_each_end_of_a_connection(answer: Answer, outcome: str, meta: dict[str, Any]) -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forward_s=0.3 if answer is never else 5.0), outcomes.done)
    async with server(answer) as address:
        forwarder.forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: outcome}
        assert outcomes.meta == {3: meta}


class Looks:
    """A clock that counts the looks at it."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        return time.monotonic()


async def in_short_records(peer: Raw) -> None:
    frame = await peer.read()
    for byte in report(json.dumps(frame["payload"]["id"]).encode(), 0):
        peer.writer.write(bytes((byte,)))


async def test_records_of_another_server_have_a_part_of_each_turn_of_the_loop(tmp_path: Path) -> None:
    """A report may have 16 MiB, and a record of TLS one byte of it."""
    authority, outcomes, looks = Authority(tmp_path), Outcomes(), Looks()
    context = server_context(Pair(*authority.issue("127.0.0.1")), None, time.time())[0]
    trust = client_context("ca", authority.ca)
    turns = LayerTurns(looks, asyncio.get_running_loop().call_soon)
    forwarder = Forwarder(Limits(), outcomes.done, tls=lambda address, tls: trust, turns=turns)
    async with server(in_short_records, context) as address:
        forwarder.forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: "delivered"}
    assert looks.count > len(report(b"null", 0)), "one a record"


async def test_other_server_gets_data_byte_for_byte() -> None:
    seen: list[bytes] = []

    async def keep(peer: Raw) -> None:
        seen.append(await peer.body())

    outcomes = Outcomes()
    forwarder = Forwarder(Limits(), outcomes.done)
    async with server(keep) as address:
        forwarder.forward(Forward(3, address, "m", b"-0", {"id": "s1/e/1.0.0", "path": ["s1/m"]}))
        await outcomes.all(1)
    header = b'{"scope":"server","id":"s1/e/1.0.0","path":["s1/m"]}'
    assert seen == [b'{"header":%b,"payload":{"data":-0,"type":"m","id":"s1/e/1.0.0"}}' % header]


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "nonesuch.invalid:1", "127.0.0.1:0", "a..b:1"])
async def test_address_without_a_listener_is_unreachable(address: str) -> None:
    outcomes = Outcomes()
    Forwarder(Limits(), outcomes.done).forward(Forward(3, address, "m", b"1", {}))
    assert await outcomes.all(1) == {3: "failed:unreachable"}
    assert outcomes.meta == {3: {"unsent": True}}


async def test_waiting_messages_fail_together_without_a_listener() -> None:
    """A socket with a full backlog, whose server is stopped, takes nothing and refuses nothing."""
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), connect_s=0.5), outcomes.done)
    with socket.socket() as listening, socket.socket() as first, socket.socket() as second:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for each in (first, second):
            each.setblocking(False)
            each.connect_ex(listening.getsockname())
        for token in range(50):
            address = f"127.0.0.1:{listening.getsockname()[1]}"
            forwarder.forward(Forward(token, address, "m", b"1", {"wait_s": 60.0}))
        assert set((await outcomes.all(50)).values()) == {"failed:unreachable"}
        assert all(meta == {"unsent": True} for meta in outcomes.meta.values())


async def test_servers_in_a_ring_get_through() -> None:
    """A message in a ring needs a connection for each round, while those of earlier rounds are open."""
    ended: dict[int, asyncio.Future[str]] = {}
    forwarder = Forwarder(Limits(), lambda token, outcome, meta: ended[token].set_result(outcome))

    async def send(left: int) -> str:
        ended[left] = asyncio.get_running_loop().create_future()
        forwarder.forward(Forward(left, address, "m", b"%d" % left, {"wait_s": 60.0}))
        async with asyncio.timeout(10):
            return await ended[left]

    async def on(peer: Raw) -> None:
        left = (await peer.read())["payload"]["data"]
        if left:
            assert await send(left - 1) == "delivered"
        peer.writer.write(report(b"null", 0))

    async with server(on) as address:
        assert await send(8) == "delivered"


async def test_broker_names_the_time_for_a_report() -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forward_s=0.05), outcomes.done)
    answered = asyncio.Event()

    async def slow(peer: Raw) -> None:
        frame = await peer.read()
        await answered.wait()
        peer.writer.write(report(json.dumps(frame["payload"]["id"]).encode(), 0))

    async with server(slow) as address:
        forwarder.forward(Forward(1, address, "m", b"1", {"wait_s": 60.0}))
        forwarder.forward(Forward(2, address, "m", b"1", {}))
        await outcomes.all(1)  # the deadline of the second message is over; that of the first is not
        answered.set()
        assert await outcomes.all(2) == {1: "delivered", 2: "failed:unreachable"}


# --- a burst at a server that accepts few at a time ---


class Slow:
    """Server like besterd: a backlog of one, and a thread that accepts, reads a message, and closes without a report.

    Its system delays connections beyond the backlog by one second, then three.
    """

    def __init__(self) -> None:
        self.listening = socket.socket()
        self.listening.bind(("127.0.0.1", 0))
        self.listening.listen(1)
        self.address = f"127.0.0.1:{self.listening.getsockname()[1]}"
        self.got: list[Any] = []
        self._thread = threading.Thread(target=self._serve)

    def __enter__(self) -> Slow:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.listening.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self.listening.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listening.accept()
            except OSError:
                return
            with connection, connection.makefile("rb") as stream:
                length = int.from_bytes(stream.read(4), "little")
                if length:  # else an attempt that the forwarder gave up while it waited in the backlog
                    self.got.append(json.loads(stream.read(length))["payload"]["data"])


async def test_burst_at_a_backlog_of_one_gets_through() -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(Limits(), outcomes.done)
    with Slow() as server:
        for token in range(500):
            forwarder.forward(Forward(token, server.address, "m", b"%d" % token, {"wait_s": 60.0}))
        async with asyncio.timeout(30):
            while len(outcomes.of) < 500:
                outcomes._news.clear()
                await outcomes._news.wait()
    assert set(outcomes.of.values()) == {"sent"}
    assert sorted(server.got) == list(range(500))
    await forwarder.close()


async def test_unknown_name_blocks_no_other_address() -> None:
    outcomes = Outcomes()
    with name_server() as resolver:
        resolver.hangs.add("slow.example")
        resolver.knows["fast.example"] = ("127.0.0.1",)
        clock = Clock()
        names = Names(resolver.lookers, clock)
        limits = replace(Limits(), forwards=4, forwards_per_address=2, forwards_waiting=100, forwards_unknown=20)
        forwarder = Forwarder(limits, outcomes.done, names)
        async with server(good) as address:
            port = address.rpartition(":")[2]
            for token in range(100):
                forwarder.forward(Forward(token, f"slow.example:{1 + token % 2}", "m", b"1", {}))
            assert len(outcomes.of) == 60  # 20 wait for each address, and there is room for more
            assert set(outcomes.of.values()) == {"failed:overloaded"}
            for token in range(100, 110):
                forwarder.forward(Forward(token, f"fast.example:{port}", "m", b"1", {}))
            await outcomes.all(70)
            assert [outcomes.of[token] for token in range(100, 110)] == ["delivered"] * 10
            clock.now += PATIENCE_S
            await outcomes.all(110)  # the lookup takes too long: waiting messages fail
            assert set(outcomes.of.values()) == {"failed:overloaded", "failed:unreachable", "delivered"}
            forwarder.forward(Forward(200, "slow.example:1", "m", b"1", {}))
            assert outcomes.of[200] == "failed:unreachable"  # at once: the lookup still hangs
            resolver.knows["slow.example"] = ("127.0.0.1",)
            resolver.release()
            await until(lambda: names.addresses("slow.example") == ("127.0.0.1",))
            forwarder.forward(Forward(201, f"slow.example:{port}", "m", b"1", {}))
            await until(lambda: outcomes.of.get(201) == "delivered")
        assert resolver.most["slow.example"] == 1
        await forwarder.close()
        names.close()


async def test_host_is_followed_to_another_address() -> None:
    outcomes = Outcomes()
    with name_server() as resolver:
        clock = Clock()
        names = Names(resolver.lookers, clock)
        forwarder = Forwarder(Limits(), outcomes.done, names)
        resolver.knows["s2.example"] = ("127.0.0.9",)  # without a listener
        names.follow("s2.example", "s2")
        await until(lambda: names.addresses("s2.example") == ("127.0.0.9",))
        async with server(good) as address:
            port = address.rpartition(":")[2]
            forwarder.forward(Forward(1, f"s2.example:{port}", "m", b"1", {}))
            await outcomes.all(1)
            assert outcomes.of == {1: "failed:unreachable"}
            resolver.knows["s2.example"] = ("127.0.0.9", "127.0.0.1")
            clock.now += HINT_S  # before the minute is over
            await until(lambda: len(names.addresses("s2.example")) == 2)
            forwarder.forward(Forward(2, f"s2.example:{port}", "m", b"1", {}))
            await outcomes.all(2)
        assert outcomes.of[2] == "delivered"
        names.close()


async def test_messages_for_a_name_are_given_up_at_the_end() -> None:
    outcomes = Outcomes()
    with name_server() as resolver:
        resolver.hangs.add("slow.example")
        names = Names(resolver.lookers)
        forwarder = Forwarder(Limits(), outcomes.done, names)
        for token in range(3):
            forwarder.forward(Forward(token, "slow.example:1", "m", b"1", {}))
        await forwarder.close()
        assert outcomes.of == dict.fromkeys(range(3), "failed:unreachable")
        names.close()


async def test_connections_are_bounded_by_address_and_in_all() -> None:
    """Answer one connection at a time, so that at most one has ended whose end is not noticed yet."""
    gate, ended = asyncio.Semaphore(0), 0
    now: dict[str, int] = {"a": 0, "b": 0}
    most: dict[str, int] = {"a": 0, "b": 0, "all": 0}

    def counted(name: str) -> Answer:
        async def count(peer: Raw) -> None:
            nonlocal ended
            try:
                frame = await peer.read()
            except asyncio.IncompleteReadError:  # given up while it was made
                return
            now[name] += 1
            most[name] = max(most[name], now[name])
            most["all"] = max(most["all"], sum(now.values()))
            await gate.acquire()
            peer.writer.write(report(json.dumps(frame["payload"]["id"]).encode(), 0))
            await peer.reader.read()
            now[name] -= 1
            ended += 1

        return count

    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forwards_per_address=3, forwards=6), outcomes.done)
    async with server(counted("a")) as a, server(counted("b")) as b:
        for token in range(60):
            forwarder.forward(Forward(token, a if token % 2 else b, "m", b"1", {"wait_s": 60.0}))
        for number in range(60):
            gate.release()
            await until(lambda: ended > number)  # noqa: B023 (awaited here)
        assert set((await outcomes.all(60)).values()) == {"delivered"}
    assert 3 <= max(most["a"], most["b"]) <= 3 + 1
    assert 5 <= most["all"] <= 6 + 1


async def test_too_many_waiting_messages_are_overloaded() -> None:
    outcomes = Outcomes()
    reached: Counter[str] = Counter()
    limits = replace(Limits(), forwards=1, forwards_waiting=4, forward_s=0.3)
    forwarder = Forwarder(limits, outcomes.done, reached=reached)
    async with server(never) as address:
        for token in range(4):
            forwarder.forward(Forward(token, address, "m", b"1", {}))
        assert outcomes.of == {3: "failed:overloaded"}
        assert reached == {"forwards_waiting": 1}
        await outcomes.all(4)
    assert sorted(outcomes.of.values()) == ["failed:overloaded"] + ["failed:unreachable"] * 3


async def test_close_fails_everything_under_way() -> None:
    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forwards=1), outcomes.done)
    async with server(never) as address:
        forwarder.forward(Forward(1, address, "m", b"1", {}))
        forwarder.forward(Forward(2, address, "m", b"1", {}))
        await forwarder.close()
    assert outcomes.of == {1: "failed:unreachable", 2: "failed:unreachable"}


async def test_message_from_one_bridge_to_another() -> None:
    async with scene() as here, scene(**OPEN_TO_SERVERS) as there:
        for token in range(1, 201):
            here.service.bridge.receive([Forward(token, str(there.tcp4), "server", b"0.10", {"id": f"s1/e/{token}"})])
        here.service.bridge.receive([Forward(201, str(there.tcp4), "refuse", b"1", {})])
        await here.broker.until(lambda: len(here.broker.forwarded()) == 201)
        outcomes = here.broker.forwarded()
        assert outcomes.pop(201) == "failed:not-allowed"
        assert set(outcomes.values()) == {"delivered"}


async def test_connection_given_up_while_it_is_made_has_sent_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message that is tried again is not marked, so an earlier copy must not have been sent."""
    frames: list[bytes] = []
    ended = asyncio.Event()
    tries = 0

    async def count(peer: Raw) -> None:
        frame = await peer.reader.read(1)
        if frame:
            frames.append(frame)
        ended.set()

    async def late(protocol: Any, addresses: tuple[str, ...], port: int, timeout_s: float) -> Any:
        nonlocal tries
        tries += 1
        transport, conversation = await asyncio.get_running_loop().create_connection(protocol, addresses[0], port)
        if tries == 1:
            transport.close()
            await asyncio.wait_for(ended.wait(), 10)
            raise TimeoutError
        return conversation

    monkeypatch.setattr("bester.bridge.forward.connect", late)
    outcomes = Outcomes()
    async with server(count) as address:
        Forwarder(Limits(), outcomes.done).forward(Forward(3, address, "m", b"1", {}))
        await outcomes.all(1)
    assert (tries, len(frames)) == (2, 1)


async def test_log_reports_a_silent_server_and_its_return() -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound, and not listening
        port = nobody.getsockname()[1]
        toml = f'[servers.S2]\nnative = "127.0.0.1:{port}"\n'
        async with live_server(f'{toml}[handlers.M2]\napp = "bester.handlers.stories.deployment.s1:app"\n') as here:
            client = await RawClient.login(here, "u1")
            client.submit("M2", {"text": "hello"}, "1")
            report, _ = await client.until_report("1")
            assert report["payload"]["recipients"] == {"S2": "queued"}
            await here.processes[0].says(f"server-lost server='S2' why='nobody answers at 127.0.0.1:{port}'")

            async def taken(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                await good(Raw(reader, writer))
                writer.close()

            there = await asyncio.start_server(taken, sock=nobody)
            await here.processes[0].says("server-reached server='S2'")
            there.close()
            await client.close()
