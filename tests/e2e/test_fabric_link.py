"""The connecting side of a link, on a real socket."""

from __future__ import annotations

import asyncio
import resource
import socket as sockets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import zmq

from bester.broker import fabric, fabric_socket
from bester.broker.fabric import FIRST_RECONNECT_MS, LAST_RECONNECT_MS, FabricLink
from bester.broker.monitor import CONNECTING
from bester.broker.names import find
from bester.broker.wire import link_client as party_module
from bester.broker.wire.codec import decode, encode
from bester.broker.wire.link_client import LinkClient, State
from bester.broker.wire.messages import Heartbeat, Hello, Malformed, Message, Relayed, Reply, Request, Welcome
from bester.broker.wire.trouble import Attempt
from tests.e2e.broker_stand_in import StandIn
from tests.e2e.name_server import name_server, until
from tests.live import DEADLINE_S, short_directory
from tests.plain_user import plain_user

LIMIT = 100
ROUNDS = 100
NOTE = "x" * 15_000


async def test_messages_of_another_server_stop_no_input_however_many_are_not_read() -> None:
    """A PING behind them would end this process, once the connection was reset and they are read: libzmq asserts that
    none comes then."""
    welcomed, done = asyncio.Event(), asyncio.Event()
    taken: list[object] = []

    def take(messages: list[Message | Malformed]) -> None:
        taken.extend(messages)
        if len(taken) >= 5000:
            done.set()

    async with short_directory() as directory:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as server:
            server.linger, server.router_mandatory, server.sndtimeo = 0, 1, int(DEADLINE_S * 1000)
            server.bind(f"ipc://{directory}/f")
            link = FabricLink(
                f"ipc://{directory}/f", LinkClient("server", "s1", {}), on_messages=take, on_ready=welcomed.set,
                on_lost=pytest.fail,
            )  # fmt: skip
            link.start()
            peer, _ = await asyncio.to_thread(server.recv_multipart)
            server.send_multipart([peer, *encode([Welcome(1, "s2", {"heartbeat_ms": 60_000})])])
            await welcomed.wait()
            frames = encode([Relayed(1, "delivered", {"note": NOTE[:1000]})])
            for _ in range(5000):  # without a turn of the loop
                server.send_multipart([peer, *frames])
            await asyncio.wait_for(done.wait(), DEADLINE_S)
            await link.close(0)


async def test_queue_for_a_broker_that_does_not_read_is_bounded_and_ordered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "MAX_QUEUED", LIMIT)
    monkeypatch.setattr(fabric_socket, "HIGH_WATER_MARK", 4)
    welcomed = asyncio.Event()
    party = LinkClient("handler", "h", {})
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.bind(endpoint)
            link = FabricLink(endpoint, party, on_messages=print, on_ready=welcomed.set, on_lost=pytest.fail)
            link.start()
            peer, hello = await asyncio.to_thread(broker.recv_multipart)
            assert type(decode([hello])[0]) is Hello
            broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
            await welcomed.wait()
            taken = 0
            for _ in range(ROUNDS):
                while link.send(Reply(taken, 1, [], NOTE)):
                    taken += 1
                    await asyncio.sleep(0)  # a turn of the loop, and a batch, for each
                link._flush()  # as after each pause
            assert taken < ROUNDS * LIMIT / 2  # the queues of ZeroMQ and of the kernel, once, and the link's own, once
            heard: list[object] = []
            while len(heard) < taken:
                _, *frames = await asyncio.to_thread(broker.recv_multipart)
                heard += [message.token for message in decode(frames) if isinstance(message, Reply)]
            assert heard == list(range(taken))
            broker.close()
            await link.close(0)


async def test_link_that_is_closed_twice_at_once_ends_once() -> None:
    """A bridge that leaves one of two links to the same broker may be stopped meanwhile."""
    welcomed = asyncio.Event()
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.bind(endpoint)
            party = LinkClient("handler", "h", {})
            link = FabricLink(endpoint, party, on_messages=print, on_ready=welcomed.set, on_lost=pytest.fail)
            link.start()
            peer, _ = await asyncio.to_thread(broker.recv_multipart)
            broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
            await welcomed.wait()
            await asyncio.gather(link.close(0.1), link.close(0.1))  # the broker does not answer its GOODBYE
            assert party.state is State.LEAVING  # its GOODBYE was not answered
            await link.close(0.1)


@asynccontextmanager
async def unread(monkeypatch: pytest.MonkeyPatch, lost: list[str]) -> AsyncIterator[tuple[FabricLink, Any]]:
    """Yield a link that is full, and the function that reads the next messages of its broker's socket."""
    monkeypatch.setattr(fabric, "MAX_QUEUED", LIMIT)
    monkeypatch.setattr(fabric_socket, "HIGH_WATER_MARK", 4)
    welcomed = asyncio.Event()
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.bind(endpoint)
            link = FabricLink(
                endpoint, LinkClient("handler", "h", {}), on_messages=print, on_ready=welcomed.set, on_lost=lost.append
            )
            link.start()
            peer, _ = await asyncio.to_thread(broker.recv_multipart)
            broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
            await welcomed.wait()
            idle = 0
            while idle < ROUNDS:  # until the queues of ZeroMQ and of the kernel are full, too
                idle = 0 if link.send(Reply(0, 1, [], NOTE)) else idle + 1
                await asyncio.sleep(0)

            async def read() -> list[Any]:
                return list(decode((await asyncio.to_thread(broker.recv_multipart))[1:]))

            yield link, read
            broker.close()
            await link.close(0)


async def test_answer_is_sent_though_the_link_is_full_of_other_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    lost: list[str] = []
    async with unread(monkeypatch, lost) as (link, read), asyncio.timeout(30):
        assert not link.send(Reply(1, 1, [], NOTE))
        link.answer(Heartbeat({"exclusive": 7}))
        heard: list[Any] = []
        while not heard or heard[-1] != Heartbeat({"exclusive": 7}):
            heard += await read()
    assert Reply(1, 1, [], NOTE) not in heard
    assert not lost


async def test_link_whose_answers_are_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fabric, "MAX_ANSWERS", 2)
    lost: list[str] = []
    async with unread(monkeypatch, lost) as (link, _), asyncio.timeout(30):
        link.answer(Heartbeat(), Heartbeat())
        await asyncio.sleep(0)
        assert not lost
        link.answer(Heartbeat())
        await until(lambda: bool(lost))
        assert link.link_client.state is State.DOWN


async def test_name_in_an_endpoint_is_looked_up_outside_zeromq(monkeypatch: pytest.MonkeyPatch) -> None:
    with name_server() as resolver, zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
        monkeypatch.setattr(fabric, "find", partial(find, threads=resolver.lookers))
        broker.linger = 0
        port = broker.bind_to_random_port("tcp://127.0.0.1")
        lost: list[str] = []
        welcomed = asyncio.Event()
        party = LinkClient("handler", "h", {})
        endpoint = f"tcp://s2.example:{port}"
        link = FabricLink(endpoint, party, on_messages=print, on_ready=welcomed.set, on_lost=lost.append)
        link.start()
        assert not link.send(Reply(1, 1, [], ""))
        await until(lambda: bool(lost))
        assert lost[0] == "the name s2.example cannot be looked up: name or service not known"
        resolver.knows["s2.example"] = ("127.0.0.9", "127.0.0.1")
        monkeypatch.setattr(party_module, "GREETING_S", 0.1)  # no broker listens at the first address
        peer, hello = await asyncio.to_thread(broker.recv_multipart)
        assert type(decode([hello])[0]) is Hello
        broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
        async with asyncio.timeout(20):
            await welcomed.wait()
        await link.close(0)


async def test_link_ends_while_the_name_server_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    with name_server() as resolver:
        monkeypatch.setattr(fabric, "find", partial(find, threads=resolver.lookers))
        monkeypatch.setattr(fabric, "PATIENCE_S", 0.05)
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
    welcomed = asyncio.Event()
    async with short_directory() as directory, StandIn(f"ipc://{directory}/f"), asyncio.timeout(20):
        (directory / "f").chmod(0)
        party = LinkClient("handler", "h", {"types": ["t"], "credit": 1})
        link = FabricLink(
            f"ipc://{directory}/f", party, on_messages=print, on_ready=welcomed.set, on_lost=lost.put_nowait
        )
        with plain_user(directory):
            link.start()
            why = f"this user may not open ipc://{directory}/f; run as the user whom the server runs as"
            assert await lost.get() == why
        (directory / "f").chmod(0o777)
        await welcomed.wait()
        await link.close(0)


@pytest.mark.parametrize("shared", [False, True])
async def test_link_that_finds_no_descriptor_at_a_retry_is_tried_again(
    monkeypatch: pytest.MonkeyPatch, shared: bool
) -> None:
    monkeypatch.setattr(party_module, "GREETING_S", 0.1)
    lost: asyncio.Queue[str] = asyncio.Queue()
    welcomed = asyncio.Event()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        party = LinkClient("handler", "h", {"types": ["t"], "credit": 1})
        link = FabricLink(
            endpoint, party, on_messages=print, on_ready=welcomed.set, on_lost=lost.put_nowait, shared=shared
        )
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
            await welcomed.wait()
            await link.close(0)


@pytest.mark.parametrize("shared", [False, True])
async def test_message_whose_callback_raises_costs_no_other_message_and_no_answer(shared: bool) -> None:
    failures: list[str] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: failures.append(str(context.get("exception"))))
    welcomed = asyncio.Event()

    def answer(messages: list[Message | Malformed]) -> None:
        for message in messages:
            assert isinstance(message, Request)
            link.send(Reply(message.token, 0, []))
            if message.token % 7 == 0:
                raise ValueError(message.token)

    async with short_directory() as directory:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as broker:
            broker.linger = 0
            broker.rcvtimeo = 60_000
            broker.bind(f"ipc://{directory}/f")
            party = LinkClient("handler", "h", {})
            link = FabricLink(
                f"ipc://{directory}/f",
                party,
                on_messages=answer,
                on_ready=welcomed.set,
                on_lost=pytest.fail,
                shared=shared,
            )
            link.start()
            peer, _ = await asyncio.to_thread(broker.recv_multipart)
            broker.send_multipart([peer, *encode([Welcome(1, "s1", {"heartbeat_ms": 60_000})])])
            await welcomed.wait()
            for burst in (1, 2, 200):  # alone, and while others wait
                for token in range(burst):
                    broker.send_multipart([peer, *encode([Request(token, "t", b"{}", None, {})])])
                heard: list[int] = []
                while len(heard) < burst:
                    _, *frames = await asyncio.to_thread(broker.recv_multipart)
                    heard += [message.token for message in decode(frames) if isinstance(message, Reply)]
                assert heard == list(range(burst))
            await until(lambda: len(failures) == 1 + 1 + 29)
            await link.close(0)


class Retrying(FabricLink):
    """A link that notes for how many ms ZeroMQ waits before each of its next attempts to connect."""

    waits_ms: asyncio.Queue[int]

    def _on_event(self, attempt: Attempt, endpoint: str, event: int, value: int) -> None:
        if event == zmq.EVENT_CONNECT_RETRIED:
            self.waits_ms.put_nowait(value)
        else:
            super()._on_event(attempt, endpoint, event, value)


async def test_connection_that_is_refused_is_tried_again_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that has died is found out by the refusal of the next connection: its users wait for that."""
    monkeypatch.setattr(fabric, "CONNECTING", CONNECTING | zmq.EVENT_CONNECT_RETRIED)
    with sockets.socket() as nobody:  # bound, so that nobody else listens there
        nobody.bind(("127.0.0.1", 0))
        endpoint = "tcp://{}:{}".format(*nobody.getsockname())
        party = LinkClient("handler", "h", {})
        link = Retrying(endpoint, party, on_messages=print, on_ready=pytest.fail, on_lost=lambda why: None)
        link.waits_ms = asyncio.Queue()
        link.start()
        async with asyncio.timeout(20):
            first_ms = await link.waits_ms.get()
            later_ms = [await link.waits_ms.get() for _ in range(4)]
        await link.close(0)
    assert FIRST_RECONNECT_MS <= first_ms < 2 * FIRST_RECONNECT_MS, "ZeroMQ adds up to as much by chance"
    assert 2 * FIRST_RECONNECT_MS < max(later_ms) <= LAST_RECONNECT_MS
