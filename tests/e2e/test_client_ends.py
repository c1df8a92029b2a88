"""The client over real sockets: refusals, closing, and kinds of sockets."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
import uvloop

from bester.client import (
    AuthenticationFailed,
    Client,
    ClientClosed,
    ConnectFailed,
    ConnectionLost,
    Limits,
    Report,
    ServerRefused,
)
from tests.e2e.client_stand import client_of, hold
from tests.e2e.fake_native_server import FakeServer, Peer, free_port, message_frame, report_frame, within
from tests.ipv6 import needs_ipv6


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


class TestRefusal:
    async def test_wrong_password(self, server: FakeServer) -> None:
        client = Client(server.address, user="bob", password="wrong")
        with pytest.raises(AuthenticationFailed, match="does not accept user 'bob'") as caught:
            await within(client.start())
        assert caught.value.code == "authentication-failed"
        assert "wrong" not in str(caught.value)

    async def test_other_refusal(self, server: FakeServer) -> None:
        server.on_login = lambda peer, _: peer.send(report_frame("auth_special", "bad", reason="overloaded"))
        with pytest.raises(ServerRefused, match="overloaded"):
            await within(client_of(server).start())

    async def test_server_that_closes_without_an_answer(self, server: FakeServer) -> None:
        server.on_login = lambda peer, _: peer.transport.close()
        with pytest.raises(ServerRefused, match="where user or password is wrong"):
            await within(client_of(server).start())

    async def test_server_that_never_answers(self, server: FakeServer) -> None:
        server.on_login = lambda peer, _: None
        with pytest.raises(ServerRefused, match="not answered"):
            await within(client_of(server, limits=Limits(login_s=0.05)).start())

    async def test_connection_refused(self) -> None:
        client = Client(f"127.0.0.1:{free_port()}", user="bob", password="secret")
        with pytest.raises(ConnectFailed, match="connection refused; is it running there"):
            await within(client.start())

    async def test_missing_unix_socket(self) -> None:
        with pytest.raises(ConnectFailed, match="no such file"):
            await within(Client("unix:/nowhere/b.sock", user="bob", password="secret").start())

    @pytest.mark.parametrize("address", ["", "unix:", "localhost", "h:0", "::1:2223", "h:99999"])
    def test_invalid_address(self, address: str) -> None:
        with pytest.raises(ValueError, match=r"HOST:PORT|IPv6|port"):
            Client(address, user="bob", password="secret")

    async def test_refused_reconnect_ends_the_client(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            peer = await server.peer()
            server.on_login = lambda peer, _: peer.send(
                report_frame("auth_special", "bad", reason="authentication-failed")
            )
            peer.transport.abort()
            with pytest.raises(AuthenticationFailed):
                await within(client.receive())


class TestMisuse:
    """A call that could never return raises at once, and leaves no message behind."""

    def test_arguments_of_another_type(self) -> None:
        for wrong in ({"password": None}, {"user": 5}, {"address": None}, {"on_link": "on_link"}, {"on_outcome": 5}):
            options: dict[str, Any] = {"address": "127.0.0.1:2223", "user": "bob", "password": "secret", **wrong}
            with pytest.raises(TypeError, match=f"^{next(iter(wrong))} is a "):
                Client(**options)

    async def test_client_that_is_not_started(self, server: FakeServer) -> None:
        client = client_of(server)
        for work in (
            lambda: client.send("chat", 1),
            client.receive,
            client.room,
            client.ping,
            lambda: client.outcome("a"),
        ):
            with pytest.raises(RuntimeError, match="the client is not started: use it inside `async with`"):
                await within(work())
        with pytest.raises(RuntimeError, match="the client is not started"):
            _ = client.submit("chat", 1)
        assert client.unreported == 0
        await within(client.close())
        with pytest.raises(ClientClosed):
            await within(client.send("chat", 1))

    async def test_raw_of_another_type(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            with pytest.raises(TypeError, match="raw is JSON text, as bytes or a string, not a int"):
                await within(client.send("chat", raw=cast(Any, 5)))

    async def test_call_from_a_thread(self, server: FakeServer) -> None:
        async with client_of(server, ack=True) as client:
            for work in (client.receive, client.close, client.ping, lambda: client.send("chat", 1)):
                with pytest.raises(RuntimeError, match="belongs to the event loop that started it"):
                    await within(asyncio.to_thread(asyncio.run, work()))
            with pytest.raises(RuntimeError, match="no event loop runs in this thread"):
                await within(asyncio.to_thread(client.submit, "chat", 1))
            assert client.unreported == 0
            assert (await within(client.send("chat", 2))).good
            assert (await (await server.peer()).payload())["data"] == 2


class TestClosing:
    async def test_close_waits_for_reports_then_hangs_up(self, server: FakeServer) -> None:
        server.on_message = hold
        async with client_of(server) as client:
            peer = await server.peer()
            report = client.submit("chat", 1)
            closing = asyncio.create_task(client.close())
            payload = await peer.payload()
            with pytest.raises(ClientClosed):
                _ = client.submit("chat", 2)
            peer.report(payload["id"])
            assert (await within(report)).good
            assert await peer.payload() == {"type": "builtin", "data": {"command": {"type": "close"}}, "id": "close"}
            await within(closing)
        await within(peer.gone.wait())

    async def test_close_is_bounded_in_time(self, server: FakeServer) -> None:
        server.on_message = hold
        client = client_of(server)
        await client.start()
        peer = await server.peer()
        report = client.submit("chat", 1)
        await peer.payload()
        await within(client.close(0.05))
        with pytest.raises(ConnectionLost):
            await report
        await within(peer.gone.wait())

    async def test_close_reads_on_with_a_full_receive_queue(self, server: FakeServer) -> None:
        server.on_message = hold
        async with client_of(server, limits=Limits(queue=1)) as client:
            peer = await server.peer()
            report = client.submit("chat", 1)
            payload = await peer.payload()
            while not peer.congested.is_set():
                peer.send(message_frame("x" * 100_000))
                await asyncio.sleep(0)
            peer.report(payload["id"])
        assert (await report).good

    async def test_application_error_closes_at_once(self, server: FakeServer) -> None:
        server.on_message = hold
        reports: list[asyncio.Future[Report]] = []

        async def application() -> None:
            async with client_of(server) as client:
                reports.append(client.submit("chat", 1))
                await (await server.peer()).payload()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await within(application())
        assert isinstance(reports[0].exception(), ConnectionLost)

    async def test_close_without_a_connection(self, server: FakeServer) -> None:
        lost = asyncio.Event()
        async with client_of(server, on_link=lambda connected, why: None if connected else lost.set()) as client:
            await server.stop()
            await within(lost.wait())
            unsent = client.submit("chat", 1)
            await within(client.close())
            with pytest.raises(ClientClosed, match="before this message was sent"):
                await unsent
            await client.close()
            await server.listen()

    async def test_close_does_not_wait_for_the_back_off(self, server: FakeServer) -> None:
        lost = asyncio.Event()
        client = Client(
            server.address,
            user="bob",
            password="secret",
            random=lambda: 10_000.0,
            on_link=lambda connected, why: None if connected else lost.set(),
        )
        await client.start()
        (await server.peer()).transport.abort()
        await within(lost.wait())
        await within(client.close(3600))

    async def test_a_second_close_in_another_loop_does_nothing(self, server: FakeServer) -> None:
        def program() -> None:
            client = client_of(server)

            async def use() -> None:
                async with client:
                    assert (await client.send("chat", 1)).good

            asyncio.run(use())
            asyncio.run(client.close())

        await within(asyncio.to_thread(program))

    async def test_cancelled_start(self, server: FakeServer) -> None:
        logins: asyncio.Queue[Peer] = asyncio.Queue()
        server.on_login = lambda peer, _: logins.put_nowait(peer)
        client = client_of(server)
        starting = asyncio.create_task(client.start())
        peer = await within(logins.get())
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await within(starting)
        await within(peer.gone.wait())
        with pytest.raises(RuntimeError, match="once"):
            await client.start()


class TestTransports:
    async def test_unix_socket(self) -> None:
        folder = tempfile.mkdtemp(prefix="b-")
        try:
            async with FakeServer(unix=f"{folder}/s") as server, client_of(server) as client:
                assert (await within(client.send("chat", 1))).good
        finally:
            shutil.rmtree(folder)

    @needs_ipv6
    async def test_ipv6(self) -> None:
        async with FakeServer(host="::1") as server, client_of(server) as client:
            assert server.address.startswith("[::1]:")
            assert (await within(client.send("chat", 1))).good

    def test_on_uvloop(self) -> None:
        async def scene() -> None:
            async with FakeServer() as server, client_of(server) as client:
                peer = await server.peer()
                reports = await within(asyncio.gather(*(client.send("chat", number) for number in range(1000))))
                assert all(report.good for report in reports)
                peer.transport.abort()
                peer = await server.peer()
                peer.send(message_frame("x" * 100_000))
                assert len((await within(client.receive())).data) == 100_000

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scene())
