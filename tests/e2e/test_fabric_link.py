"""The connecting side of a link, on a real socket."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket as sockets
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import zmq

from bester.broker import fabric, fabric_dialer, fabric_socket
from bester.broker.fabric import FabricLink
from bester.broker.fabric_dialer import FIRST_RECONNECT_MS, LAST_RECONNECT_MS, Dialer
from bester.broker.fabric_socket import FabricSocket
from bester.broker.keys import KeyPair, LinkKeys
from bester.broker.monitor import CONNECTING
from bester.broker.names import find
from bester.broker.turn import Turn
from bester.broker.wire import link_client
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.link_client import LinkClient, State
from bester.broker.wire.messages import Heartbeat, Hello, Malformed, Message, Relayed, Reply, Request, Welcome
from bester.broker.wire.trouble import Attempt
from tests.e2e.broker_stand_in import StandIn
from tests.e2e.name_server import name_server, until
from tests.keyed import free_port, new_pair
from tests.live import DEADLINE_S, short_directory
from tests.plain_user import plain_user

LIMIT = 100
ROUNDS = 100
NOTE = "x" * 15_000
MIB = 1 << 20
LOOKS_S = 1.5
"""Time in which a link with heartbeats of a second has looked at what comes."""
MANY = 5000
"""Messages of a kilobyte: more than ZeroMQ's queues and the kernel hold."""


@dataclass(frozen=True)
class Stand:
    """A link that is welcomed, and the broker's side of it."""

    link: FabricLink
    socket: zmq.Socket[bytes]
    peer: bytes

    def send(self, *messages: Message) -> None:
        """Send messages to the link."""
        self.socket.send_multipart([self.peer, *encode(messages)])

    async def read(self) -> list[Any]:
        """Return the next messages that the link has sent."""
        _, *frames = await asyncio.to_thread(self.socket.recv_multipart)
        return list(decode(frames))


@asynccontextmanager
async def welcomed(
    on_messages: Callable[[list[Message | Malformed]], None] = print,
    on_lost: Callable[[str], None] = pytest.fail,
    *,
    shared: bool = False,
    role: str = "handler",
) -> AsyncIterator[Stand]:
    ready = asyncio.Event()
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.rcvtimeo = 60_000
            broker.bind(endpoint)
            side = LinkClient(role, "h", {})
            link = FabricLink(
                endpoint, side, on_messages=on_messages, on_ready=ready.set, on_lost=on_lost, shared=shared
            )
            link.start()
            peer, hello = await asyncio.to_thread(broker.recv_multipart)
            assert type(decode([hello])[0]) is Hello
            stand = Stand(link, broker, peer)
            stand.send(Welcome(1, "s1", {"heartbeat_ms": 60_000}))
            await ready.wait()
            yield stand
            broker.close()
            await link.close(0)


@asynccontextmanager
async def foreign(
    on_messages: Callable[[list[Message | Malformed]], None],
    on_lost: Callable[[str], None],
    role: str = "server",
    *,
    shared: bool = False,
) -> AsyncIterator[Callable[[Message], None]]:
    """Link to another server by key, which is welcomed; yield a function that sends a message of that server, and waits
    where little of what was sent before has been taken in."""
    ours, theirs, port, welcomed = KeyPair(*new_pair()), new_pair(), free_port(), asyncio.Event()
    with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
        server.linger, server.router_mandatory, server.sndtimeo, server.sndhwm = 0, 1, int(DEADLINE_S * 1000), 4
        server.curve_server, server.curve_secretkey = 1, theirs.secret.encode()
        server.bind(f"tcp://127.0.0.1:{port}")
        link = FabricLink(
            f"tcp://127.0.0.1:{port}", LinkClient(role, "s1", {}), on_messages=on_messages, on_ready=welcomed.set,
            on_lost=on_lost, keys=LinkKeys(ours, theirs.public), shared=shared,
        )  # fmt: skip
        link.start()
        peer, _ = await asyncio.to_thread(server.recv_multipart)
        server.send_multipart([peer, *encode([Welcome(1, "s2", {"heartbeat_ms": 60_000})])])
        await welcomed.wait()

        def send(message: Message) -> None:
            server.send_multipart([peer, *encode([message])])

        yield send
        await link.close(0)


@pytest.mark.parametrize(("role", "shared"), [("server", False), ("bridge", False), ("handler", True)])
async def test_no_number_of_messages_that_are_not_read_stops_the_input_of_a_link(role: str, shared: bool) -> None:
    """A PING behind them would end this process, once the connection was reset and they are read: libzmq asserts that
    none comes then. An encrypted door sends PINGs, and a broker that is killed ends its connections."""
    done = asyncio.Event()
    taken: list[object] = []

    def take(messages: list[Message | Malformed]) -> None:
        taken.extend(messages)
        if len(taken) >= 5000:
            done.set()

    async with foreign(take, pytest.fail, role, shared=shared) as send:
        for _ in range(5000):  # without a turn of the loop
            send(Relayed(1, "delivered", {"note": NOTE[:1000]}))
        await asyncio.wait_for(done.wait(), DEADLINE_S)


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must count the bytes of a connection")
async def test_link_to_a_server_that_sends_more_than_is_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else bounds the memory of what has come, as no number of messages stops the input."""
    monkeypatch.setattr("bester.broker.unread.MOST_BYTES", 1 << 20)
    monkeypatch.setattr(fabric, "LOOK_S", 0)
    taken: list[object] = []
    lost: asyncio.Queue[str] = asyncio.Queue()

    def take(messages: list[Message | Malformed]) -> None:
        taken.extend(messages)
        if len(taken) == 1:
            for _ in range(2000):  # 30 MiB, of which a socket's buffers hold a part
                send(Relayed(1, "delivered", {"note": NOTE}))

    async with foreign(take, lost.put_nowait) as send:
        send(Relayed(1, "delivered", {}))
        assert await asyncio.wait_for(lost.get(), DEADLINE_S) == fabric.FLOODED
        assert len(taken) < 2000


GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
READY = b"\x05READY\x0bSocket-Type" + struct.pack(">I", 6) + b"ROUTER"


def zmtp(flags: int, body: bytes) -> bytes:
    """Return a long frame as it is on the wire: 1 more follow, 4 a command."""
    return struct.pack(">BQ", flags | 2, len(body)) + body


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must count the bytes of a connection")
@pytest.mark.parametrize("ends", [True, False])
async def test_link_to_a_server_whose_message_does_not_end_is_given_up(
    ends: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is read of it, and libzmq keeps all its frames. Whole messages may be as long, one after the other."""
    monkeypatch.setattr("bester.broker.unread.MOST_BYTES", 4 * MIB)
    lost: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    taken: asyncio.Queue[int] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(GREETING + zmtp(4, READY))
        await reader.readuntil(b"READY")
        (welcome,) = encode([Welcome(1, "s2", {"heartbeat_ms": 1000})])
        writer.write(zmtp(0, welcome))
        (heartbeat,) = encode([Heartbeat()])
        (whole,) = encode([Relayed(1, "delivered", {"note": "x" * 2 * MIB})])
        for number in range(1, 5):
            writer.write(zmtp(0, whole))
            while await taken.get() < number:
                pass
        with contextlib.suppress(OSError):
            while await reader.read(1 << 16):  # a heartbeat a second
                writer.write(zmtp(0, heartbeat) if ends else zmtp(1, b"x" * MIB) * 6)
        writer.close()

    count = 0

    def take(messages: list[Message | Malformed]) -> None:
        nonlocal count
        count += len(messages)
        taken.put_nowait(count)

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        address = server.sockets[0].getsockname()
        link = FabricLink(
            f"tcp://127.0.0.1:{address[1]}", LinkClient("server", "s1", {}), on_messages=take, on_ready=lambda: None,
            on_lost=lambda why: None if lost.done() else lost.set_result(why),
        )  # fmt: skip
        link.start()
        if ends:
            while count < 4:
                await asyncio.sleep(0.01)
            await asyncio.sleep(LOOKS_S)
            assert not lost.done()
        else:
            assert await asyncio.wait_for(lost, DEADLINE_S) == link.trouble == fabric.FLOODED
        await link.close(0)


async def test_queue_for_a_broker_that_does_not_read_is_bounded_and_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "MAX_QUEUED", LIMIT)
    monkeypatch.setattr(fabric_socket, "HIGH_WATER_MARK", 4)
    async with welcomed() as stand:
        taken = 0
        for _ in range(ROUNDS):
            while stand.link.send(Reply(taken, 1, [], NOTE)):
                taken += 1
                await asyncio.sleep(0)  # a turn of the loop, and a batch, for each
            stand.link._flush()  # as after each pause
        assert taken < ROUNDS * LIMIT / 2  # the queues of ZeroMQ and of the kernel, once, and the link's own, once
        heard: list[int] = []
        while len(heard) < taken:
            heard += [message.token for message in await stand.read() if isinstance(message, Reply)]
        assert heard == list(range(taken))


async def test_link_that_is_closed_twice_at_once_ends_once() -> None:
    """A bridge that leaves one of two links to the same broker may be stopped meanwhile."""
    async with welcomed() as stand:
        link = stand.link
        await asyncio.gather(link.close(0.1), link.close(0.1))  # the broker does not answer its GOODBYE
        assert link.link_client.state is State.LEAVING  # its GOODBYE was not answered
        await link.close(0.1)


@asynccontextmanager
async def unread(monkeypatch: pytest.MonkeyPatch, lost: list[str]) -> AsyncIterator[Stand]:
    """Yield a link that is full, and whose broker has read nothing since the HELLO."""
    monkeypatch.setattr(fabric, "MAX_QUEUED", LIMIT)
    monkeypatch.setattr(fabric_socket, "HIGH_WATER_MARK", 4)
    async with welcomed(on_lost=lost.append) as stand:
        idle = 0
        while idle < ROUNDS:  # until the queues of ZeroMQ and of the kernel are full, too
            idle = 0 if stand.link.send(Reply(0, 1, [], NOTE)) else idle + 1
            await asyncio.sleep(0)
        yield stand


async def test_answer_is_sent_though_the_link_is_full_of_other_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    async with unread(monkeypatch, lost) as stand, asyncio.timeout(30):
        assert not stand.link.send(Reply(1, 1, [], NOTE))
        stand.link.answer(Heartbeat({"exclusive": 7}))
        heard: list[Any] = []
        while not heard or heard[-1] != Heartbeat({"exclusive": 7}):
            heard += await stand.read()
    assert Reply(1, 1, [], NOTE) not in heard
    assert not lost


async def test_link_whose_answers_are_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "MAX_ANSWERS", 2)
    lost: list[str] = []
    async with unread(monkeypatch, lost) as stand, asyncio.timeout(30):
        link = stand.link
        link.answer(Heartbeat(), Heartbeat())
        await asyncio.sleep(0)
        assert not lost
        link.answer(Heartbeat())
        await until(lambda: bool(lost))
        assert link.link_client.state is State.DOWN


async def test_name_in_an_endpoint_is_looked_up_outside_zeromq(monkeypatch: pytest.MonkeyPatch) -> None:
    with name_server() as resolver, zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
        monkeypatch.setattr(fabric_dialer, "find", partial(find, threads=resolver.lookers))
        broker.linger = 0
        port = broker.bind_to_random_port("tcp://127.0.0.1")
        lost: list[str] = []
        ready = asyncio.Event()
        side = LinkClient("handler", "h", {})
        endpoint = f"tcp://s2.example:{port}"
        link = FabricLink(endpoint, side, on_messages=print, on_ready=ready.set, on_lost=lost.append)
        link.start()
        assert not link.send(Reply(1, 1, [], ""))
        await until(lambda: bool(lost))
        assert lost[0] == "the name s2.example cannot be looked up: name or service not known"
        resolver.knows["s2.example"] = ("127.0.0.9", "127.0.0.1")
        monkeypatch.setattr(link_client, "GREETING_S", 0.1)  # no broker listens at the first address
        peer, hello = await asyncio.to_thread(broker.recv_multipart)
        assert type(decode([hello])[0]) is Hello
        broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
        async with asyncio.timeout(20):
            await ready.wait()
        await link.close(0)


async def test_link_ends_while_the_name_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with name_server() as resolver:
        monkeypatch.setattr(fabric_dialer, "find", partial(find, threads=resolver.lookers))
        monkeypatch.setattr(fabric_dialer, "PATIENCE_S", 0.05)
        resolver.hangs.add("s2.example")
        lost: list[str] = []
        link = FabricLink(
            "tcp://s2.example:1",
            LinkClient("server", "h", {}),
            on_messages=print,
            on_ready=pytest.fail,
            on_lost=lost.append,
        )
        link.start()
        await until(lambda: len(lost) == 2)
        assert lost[0] == "the name s2.example cannot be looked up: the name server did not answer in 0.05 s"
        assert resolver.asked["s2.example"] == 1
        async with asyncio.timeout(10):
            await link.close(0)
        assert resolver.under_way == 1
        resolver.knows["s2.example"] = ("127.0.0.1",)
        resolver.release()
        await until(lambda: resolver.under_way == 0)
        assert link.over.is_set()


async def test_socket_that_this_user_may_not_open_is_named_as_such() -> None:
    lost: asyncio.Queue[str] = asyncio.Queue()
    ready = asyncio.Event()
    async with short_directory() as directory, StandIn(f"ipc://{directory}/f"), asyncio.timeout(20):
        (directory / "f").chmod(0)
        side = LinkClient("handler", "h", {"types": ["t"], "credit": 1})
        link = FabricLink(f"ipc://{directory}/f", side, on_messages=print, on_ready=ready.set, on_lost=lost.put_nowait)
        with plain_user(directory):
            link.start()
            why = f"this user may not open ipc://{directory}/f; run as the user whom the server runs as"
            assert await lost.get() == why
        (directory / "f").chmod(0o777)
        await ready.wait()
        await link.close(0)


@pytest.mark.parametrize("shared", [False, True])
async def test_link_that_finds_no_descriptor_at_a_retry_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(link_client, "GREETING_S", 0.1)
    lost: asyncio.Queue[str] = asyncio.Queue()
    ready = asyncio.Event()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        side = LinkClient("handler", "h", {"types": ["t"], "credit": 1})
        link = FabricLink(endpoint, side, on_messages=print, on_ready=ready.set, on_lost=lost.put_nowait, shared=shared)
        link.start()
        assert "nothing listens" in await lost.get()
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))  # no more than the descriptors that are open
        try:
            async with asyncio.timeout(20):
                while "no socket can be opened: Too many open files" not in await lost.get():
                    pass
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        async with StandIn(endpoint), asyncio.timeout(20):
            await ready.wait()
            await link.close(0)


@pytest.mark.parametrize("shared", [False, True])
async def test_message_whose_callback_raises_costs_no_other_message_and_no_answer(shared: bool) -> None:
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(str(context.get("exception"))))

    def answer(messages: list[Message | Malformed]) -> None:
        for message in messages:
            assert isinstance(message, Request)
            stand.link.send(Reply(message.token, 0, []))
            if message.token % 7 == 0:
                raise ValueError(message.token)

    async with welcomed(answer, shared=shared) as stand:
        for burst in (1, 2, 200):  # alone, and while others wait
            for token in range(burst):
                stand.send(Request(token, "t", b"{}", None, {}))
            heard: list[int] = []
            while len(heard) < burst:
                heard += [message.token for message in await stand.read() if isinstance(message, Reply)]
            assert heard == list(range(burst))
        await until(lambda: len(failures) == 1 + 1 + 29)


class Retrying(Dialer):
    """A dialer that notes for how many ms ZeroMQ waits before each of its next attempts to connect."""

    waits_ms: asyncio.Queue[int]

    def _on_event(self, attempt: Attempt, endpoint: str, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECT_RETRIED:
            self.waits_ms.put_nowait(value)
        else:
            super()._on_event(attempt, endpoint, event, value)


async def test_connection_that_is_refused_is_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that has died is found out by the refusal of the next connection: its users wait for that."""
    monkeypatch.setattr(fabric_dialer, "CONNECTING", CONNECTING | zmq.EVENT_CONNECT_RETRIED)
    made: list[FabricSocket] = []
    with sockets.socket() as nobody:  # bound, so that nobody else listens there
        nobody.bind(("127.0.0.1", 0))
        dialer = Retrying(
            "tcp://{}:{}".format(*nobody.getsockname()),
            lambda context: FabricSocket(context, zmq.DEALER, print, Turn()),
            made.append, pytest.fail, pytest.fail, lambda: None, lambda descriptor, begins: None,
            is_wanted=lambda: True, keys=None, called="the server",
        )  # fmt: skip
        dialer.waits_ms = asyncio.Queue()
        dialer.dial()
        made[0].register()
        async with asyncio.timeout(20):
            first_ms = await dialer.waits_ms.get()
            later_ms = [await dialer.waits_ms.get() for _ in range(4)]
        made[0].close()
        await dialer.close()
    assert FIRST_RECONNECT_MS <= first_ms < 2 * FIRST_RECONNECT_MS, "ZeroMQ adds up to as much by chance"
    assert 2 * FIRST_RECONNECT_MS < max(later_ms) <= LAST_RECONNECT_MS
