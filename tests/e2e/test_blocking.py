"""The blocking client, used from a thread as by a program without a loop."""

from __future__ import annotations

import asyncio
import concurrent.futures
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from bester.client import AuthenticationFailed, ConnectionLost, MessageTooLarge
from bester.client.blocking import Client, ClientClosed, Limits, Outcome
from tests.e2e.fake_native_server import DEADLINE_S, FakeServer, Json, Peer, message_frame, outcome_frame, within


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


def our_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("bester client")]


async def ended(program: str) -> tuple[str, str]:
    """Run a program with all warnings; return what it said, and what it said on standard error."""
    argv = (sys.executable, "-W", "default", "-c", program)
    process = await asyncio.create_subprocess_exec(*argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode(), err.decode()


async def test_send_receive_ping_and_iterate(server: FakeServer) -> None:
    def greet(peer: Peer, payload: Json) -> None:
        peer.send(message_frame("welcome"), message_frame("again"))
        peer.report(payload["id"])

    server.on_message = greet

    def program() -> list[str]:
        with Client(server.address, user="bob", password="secret") as client:
            assert client.send("chat", {"text": "hello"}, timeout_s=DEADLINE_S).good
            assert client.ping(DEADLINE_S) >= 0
            seen = [client.receive(DEADLINE_S).data]
            with pytest.raises(MessageTooLarge):
                client.send("chat", "x" * (1 << 20))
            for message in client:
                seen.append(message.data)
                client.close()
        assert not our_threads()
        return seen

    assert await within(asyncio.to_thread(program)) == ["welcome", "again"]


async def test_client_in_a_fork(server: FakeServer) -> None:
    program = f"""
import os
from bester.client.blocking import Client

with Client({server.address!r}, user="bob", password="secret") as client:
    reader, writer = os.pipe()
    if os.fork() == 0:
        try:
            client.close()
            client.send("chat", "from the fork")
        except RuntimeError as error:
            os.write(writer, str(error).encode())
        os._exit(0)
    os.wait()
    print(os.read(reader, 1000).decode())
    print(client.send("chat", "from the parent").good)
"""
    said = await within(ended(program))
    assert said == (
        "the client belongs to the process that started it, of which this one is a fork: make another\nTrue\n", ""
    )  # fmt: skip
    assert (await (await server.peer()).payload())["data"] == "from the parent"


async def test_second_start(server: FakeServer) -> None:
    def program() -> None:
        with Client(server.address, user="bob", password="secret") as client:
            with pytest.raises(RuntimeError, match="a client is started once; make a new one"):
                client.start()
            assert client.send("chat", 1).good

    await within(asyncio.to_thread(program))


async def test_client_that_is_never_closed_is_warned_of(server: FakeServer) -> None:
    made = (
        f"from bester.client.blocking import Client; client = Client({server.address!r}, user='bob', password='secret')"
    )
    server.on_message = lambda peer, payload: None
    _, warned = await within(ended(f"{made}; client.start(); client.submit('chat', 1)"))
    assert "ResourceWarning: the client of" in warned
    assert "was never closed; messages without a report: 1" in warned
    no_thread = (
        "import threading, contextlib; threading.stack_size(1 << 46)\n"
        "with contextlib.suppress(RuntimeError): client.start()"
    )
    for ended_well in ("client.start(); client.close()", "", no_thread):
        assert await within(ended(f"{made}; {ended_well}")) == ("", "")


async def test_submit_waits_for_room(server: FakeServer) -> None:
    def program() -> list[bool]:
        with Client(server.address, user="bob", password="secret", limits=Limits(window=3)) as client:
            reports = [client.submit("chat", number) for number in range(50)]
            return [report.result(DEADLINE_S).good for report in reports]

    assert await within(asyncio.to_thread(program)) == [True] * 50
    peer = await server.peer()
    assert peer.most_unreported <= 3
    assert [(await peer.payload())["data"] for _ in range(50)] == list(range(50))


async def test_receive_timeout_loses_no_message(server: FakeServer) -> None:
    server.on_message = lambda peer, payload: None

    def program(report: concurrent.futures.Future[None]) -> None:
        with Client(server.address, user="bob", password="secret") as client:
            with pytest.raises(TimeoutError):
                client.receive(timeout_s=0.01)
            with pytest.raises(TimeoutError):
                client.send("chat", 1, timeout_s=0.01)
            report.set_result(None)
            assert client.receive(DEADLINE_S).data == "late"
            raise ZeroDivisionError

    late: concurrent.futures.Future[None] = concurrent.futures.Future()
    running = asyncio.create_task(asyncio.to_thread(program, late))
    await within(asyncio.wrap_future(late))
    (await server.peer()).send(message_frame("late"))
    with pytest.raises(ZeroDivisionError):
        await within(running)
    assert not our_threads()


async def test_errors_are_raised_in_the_caller(server: FakeServer) -> None:
    server.on_message = lambda peer, payload: peer.transport.abort()

    def program() -> None:
        with Client(server.address, user="bob", password="secret", resend=False) as client:
            doubtful = client.submit("chat", 1)
            with pytest.raises(ConnectionLost):
                doubtful.result(DEADLINE_S)
        with pytest.raises(ClientClosed):
            client.send("chat", 1)
        with pytest.raises(AuthenticationFailed):
            Client(server.address, user="bob", password="wrong").start()
        with pytest.raises(ClientClosed):
            Client(server.address, user="bob", password="wrong").receive()
        assert not our_threads()

    await within(asyncio.to_thread(program))


async def test_report_that_was_cancelled_and_comes(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.on_message = lambda peer, payload: None

    def program(cancelled: concurrent.futures.Future[None]) -> None:
        with Client(server.address, user="bob", password="secret", limits=Limits(window=2)) as client:
            first, second = client.submit("chat", "first"), client.submit("chat", "second")
            assert first.cancel() and first.cancelled()
            cancelled.set_result(None)
            assert second.result(DEADLINE_S).good
            assert client.send("chat", "third", timeout_s=DEADLINE_S).good

    cancelled: concurrent.futures.Future[None] = concurrent.futures.Future()
    running = asyncio.create_task(asyncio.to_thread(program, cancelled))
    peer = await server.peer()
    both = [await peer.payload() for _ in range(2)]
    await within(asyncio.wrap_future(cancelled))
    server.on_message = lambda peer, payload: peer.report(payload["id"])
    for payload in both:
        peer.report(payload["id"])
    await within(running)
    assert not caplog.records


async def test_cancelled_report_is_not_sent_again(server: FakeServer, caplog: pytest.LogCaptureFixture) -> None:
    server.on_message = lambda peer, payload: None

    def program(cancelled: concurrent.futures.Future[None]) -> None:
        with Client(server.address, user="bob", password="secret") as client:
            dropped, kept = client.submit("chat", "dropped"), client.submit("chat", "kept")
            assert dropped.cancel()
            client.ping(DEADLINE_S)  # the cancelling came before
            cancelled.set_result(None)
            assert kept.result(DEADLINE_S).good

    cancelled: concurrent.futures.Future[None] = concurrent.futures.Future()
    running = asyncio.create_task(asyncio.to_thread(program, cancelled))
    peer = await server.peer()
    await within(asyncio.wrap_future(cancelled))
    server.on_message = lambda peer, payload: peer.report(payload["id"])
    peer.transport.abort()
    again = await server.peer()
    assert (await again.payload())["data"] == "kept"
    await within(running)
    assert not caplog.records


@pytest.mark.parametrize("call", [lambda client: client.send("chat", 2), Client.close])
async def test_callback_of_a_report_that_calls_the_client_is_told_why_not(
    server: FakeServer, call: Callable[[Client], object]
) -> None:
    server.on_message = lambda peer, payload: None

    def program(added: concurrent.futures.Future[None]) -> str:
        said: concurrent.futures.Future[str] = concurrent.futures.Future()

        def called(_: object) -> None:
            try:
                call(client)
            except RuntimeError as error:
                said.set_result(str(error))

        with Client(server.address, user="bob", password="secret") as client:
            client.submit("chat", 1).add_done_callback(called)
            added.set_result(None)  # of a report that had come before, it would run here
            text = said.result(DEADLINE_S)
            assert client.send("chat", 3, timeout_s=DEADLINE_S).good  # the client goes on
            return text

    added: concurrent.futures.Future[None] = concurrent.futures.Future()
    running = asyncio.create_task(asyncio.to_thread(program, added))
    peer = await server.peer()
    payload = await peer.payload()
    await within(asyncio.wrap_future(added))
    server.on_message = lambda peer, payload: peer.report(payload["id"])
    peer.report(payload["id"])
    assert "call the client from another one" in await within(running)


async def test_close_wakes_a_waiting_thread(server: FakeServer) -> None:
    client = Client(server.address, user="bob", password="secret")
    await within(asyncio.to_thread(client.start))
    waiting = [asyncio.create_task(asyncio.to_thread(client.receive)) for _ in range(3)]
    await server.peer()
    await within(asyncio.to_thread(client.close))
    for task in waiting:
        with pytest.raises(ClientClosed):
            await within(task)
    assert not our_threads()


async def test_ack_and_outcome(server: FakeServer) -> None:
    server.on_message = lambda peer, payload: peer.report(payload["id"], message="m7", recipients={"eve": "queued"})
    server.on_outcome = lambda peer, id_, message: peer.answer(
        id_, {"message": message, "recipients": {"eve": "delivered"}}
    )

    def program() -> None:
        with Client(server.address, user="bob", password="secret", ack=True, manual_ack=True) as client:
            report = client.send("chat", 1, dedup="mine", ttl_s=60, outcome=True, timeout_s=DEADLINE_S)
            assert report.message is not None
            assert client.outcome(report.message, DEADLINE_S) == {"eve": "delivered"}
            pushed = client.receive(DEADLINE_S)
            assert pushed.outcome == Outcome("m7", "eve", "delivered")
            client.receive(DEADLINE_S)
            client.ack(pushed)
            with pytest.raises(ValueError, match="ttl_s"):
                client.submit("chat", 1, ttl_s=-1)

    running = asyncio.create_task(asyncio.to_thread(program))
    peer = await server.peer()
    peer.send(outcome_frame("m7", "eve", "delivered", "9.0"), message_frame("not acknowledged", "10.0"))
    assert await peer.acknowledged() == ["9.0"]
    payload = await peer.payload()
    assert (payload["dedup"], payload["ttl_s"], payload["outcome"]) == ("mine", 60, True)
    await within(running)
    assert peer.acks.empty()


async def test_receive_acks_and_lost_messages_are_resent(server: FakeServer) -> None:
    server.on_message = lambda peer, payload: peer.transport.abort()

    def program() -> None:
        with Client(server.address, user="bob", password="secret", ack=True) as client:
            report = client.submit("chat", 1)
            assert [client.receive(DEADLINE_S).data for _ in "ab"] == ["a", "b"]
            assert report.result(DEADLINE_S).good

    running = asyncio.create_task(asyncio.to_thread(program))
    first = await server.peer()
    await first.payload()
    server.on_message = lambda peer, payload: None
    second = await server.peer()
    second.send(message_frame("a", "1.0"), message_frame("b", "2.0"))
    payload = await second.payload()
    assert payload["resent"] is True
    assert await second.acknowledged() == ["1.0"]
    second.report(payload["id"])
    await within(running)
    assert await second.acknowledged() == ["2.0"]
