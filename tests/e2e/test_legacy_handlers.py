"""Handlers of the reference daemon, unchanged, behind a Worker: real Unix sockets, well and badly behaved."""

from __future__ import annotations

import asyncio
import shutil
import socket
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from bester.broker.wire.messages import Command, Hello
from bester.handlers.legacy import legacy_app
from bester.handlers.requests import TOO_LONG
from bester.handlers.worker import Worker
from tests.e2e.broker_stand_in import PATIENCE_S, StandIn, request

Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
GOOD = b'{"header":{"status":"0","command":{"type":"sendClients","data":["g","t"]}},"data":{"n":0.1, "m":-0}}'


@pytest.fixture
def folder() -> Iterator[str]:
    folder = tempfile.mkdtemp(prefix="b-")
    yield folder
    shutil.rmtree(folder)


def framed(body: bytes) -> bytes:
    return len(body).to_bytes(4, "little") + body


class Handler:
    """A handler of the reference daemon: reads one frame, calls `answer`, closes."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.received: list[bytes] = []
        self.most_at_once = 0
        self._at_once = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._at_once += 1
        self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            length = int.from_bytes(await reader.readexactly(4), "little")
            body = await reader.readexactly(length)
            self.received.append(body)
            await self._answer(reader, writer, body)
        except ConnectionError:
            pass  # the other side has closed
        finally:
            self._at_once -= 1
            writer.close()


async def one_at_a_time(listening: socket.socket, begin: asyncio.Event) -> None:
    """Answer one message after another, each on a connection that is closed before the next is accepted."""
    loop = asyncio.get_running_loop()
    await begin.wait()
    while True:
        end, _ = await loop.sock_accept(listening)
        with end:
            end.setblocking(False)
            frame = b""
            while len(frame) < 4 or len(frame) < 4 + int.from_bytes(frame[:4], "little"):
                frame += await loop.sock_recv(end, 4096)
            await loop.sock_sendall(end, framed(GOOD))


async def test_handler_with_a_full_backlog_gets_every_message(folder: str) -> None:
    path, endpoint = f"{folder}/h.sock", f"ipc://{folder}/f.sock"
    worker = Worker(legacy_app(path, ["old"]), endpoint)
    begin = asyncio.Event()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(0)
        listening.setblocking(False)
        serving = asyncio.create_task(one_at_a_time(listening, begin))
        try:
            async with StandIn(endpoint) as broker:
                worker.start()
                await broker.expect(Hello)
                broker.send(*(request(number, b"1", "old", f"u{number}") for number in range(40)))
                begin.set()
                replies = await broker.replies(40)
                assert {reply.status for reply in replies.values()} == {0}, replies
                await worker.stop()
        finally:
            serving.cancel()
            await asyncio.gather(serving, return_exceptions=True)


@asynccontextmanager
async def behind(folder: str, answer: Answer, **options: Any) -> AsyncIterator[tuple[StandIn, Handler]]:
    handler = Handler(answer)
    path, endpoint = f"{folder}/h.sock", f"ipc://{folder}/f.sock"
    server = await asyncio.start_unix_server(handler.serve, path)
    worker = Worker(legacy_app(path, ["old"], **options), endpoint)
    async with server, StandIn(endpoint) as broker:
        worker.start()
        await broker.expect(Hello)
        yield broker, handler
        await worker.stop()


def says(*pieces: bytes) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()

    return answer


async def test_data_is_sent_alone_and_the_command_returns_byte_for_byte(folder: str) -> None:
    async with behind(folder, says(framed(GOOD))) as (broker, handler):
        reply = await broker.ask(1, b'{"text": 1e400}', "old")
        assert handler.received == [b'{"text": 1e400}']
        assert (reply.status, reply.commands) == (0, [Command("sendClients", ["g", "t"], b'{"n":0.1, "m":-0}')])


async def test_answer_in_single_bytes(folder: str) -> None:
    async with behind(folder, says(*(bytes([byte]) for byte in framed(GOOD)))) as (broker, _):
        assert (await broker.ask(1, b"1", "old")).status == 0


@pytest.mark.parametrize(
    ("answer", "command"),
    [
        (
            b'{"header":{"status":"00","command":{"type":"sendHandler","data":"english"}},"data":"x"}',
            Command("sendHandler", ["english"], b'"x"'),
        ),
        (
            b'{"header":{"status":"0","command":{"type":"sendServers","data":["h:1"],"messageType":"M1"}},"data":null}',
            Command("sendServers", ["h:1"], b"null", "M1"),
        ),
        (
            b'{"data":[1],"header":{"command":{"data":[],"type":"dance","more":1},"status":"0"},"more":{}}',
            Command("dance", [], b"[1]"),
        ),
    ],
)
async def test_commands(folder: str, answer: bytes, command: Command) -> None:
    async with behind(folder, says(framed(answer))) as (broker, _):
        assert (await broker.ask(1, b"1", "old"))[1:] == (0, [command], None, None)


@pytest.mark.parametrize(
    ("pieces", "note"),
    [
        ([], "without an answer"),
        ([b"\x05\x00"], "without an answer"),
        ([b"\x40\x00\x00\x00{}"], "without an answer"),
        ([framed(b"")], "a frame of 0 bytes"),
        ([b"\xff\xff\xff\xff"], "a frame of 4294967295 bytes"),
        ([framed(b"garbage")], "not header and data"),
        (
            [framed(b'{"header":{"status":"0","command":{"type":"sendClients","data":["g"]}},"data":"\xff"}')],
            "not header",
        ),
        ([framed(b'{"header":' + b"[" * 100_000)], "not header and data"),
        ([framed(b'{"header":{"status":"0"},"data":1}')], "not header and data"),
        ([framed(b'{"header":{"status":"0","command":{"type":"sendClients","data":[7]}},"data":1}')], "not header"),
        ([framed(b'{"header":{"status":"0","command":{"type":"sendClients","data":["g"]}}}')], "has no data"),
        ([framed(b'{"header":{"status":"1"},"data":null}')], "status '1'"),
        ([framed(b'{"header":{"status":0},"data":null}')], "not header and data"),
    ],
)
async def test_bad_answer_is_a_failure_with_its_reason(folder: str, pieces: list[bytes], note: str) -> None:
    async with behind(folder, says(*pieces)) as (broker, _):
        reply = await broker.ask(1, b"1", "old")
        assert (reply.status, reply.commands) == (1, [])
        assert note in (reply.note or "")


async def test_silent_handler_is_cancelled_at_the_deadline_and_delays_no_other(
    folder: str, caplog: pytest.LogCaptureFixture
) -> None:
    finish = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if body == b'"for ever"':
            assert await reader.read() == b""  # until the other side hangs up
            return
        if body == b'"long"':
            await finish.wait()
        writer.write(framed(GOOD))

    async with behind(folder, answer) as (broker, _):
        late = request(1, b'"for ever"', "old")
        late.meta["deadline_ms"] = 200
        broker.send(request(2, b'"long"', "old", "v"), late, request(3, b'"quick"', "old", "w"))
        replies = await broker.replies(2)
        assert set(replies) == {1, 3}, "a slow message delays no other"
        assert (replies[1].status, replies[1].note) == (1, TOO_LONG)
        assert f"old: the handler at {folder}/h.sock has had message" in caplog.text
        assert replies[3].status == 0
        finish.set()
        assert (await broker.replies(1))[2].status == 0


async def test_connections_are_bounded_by_the_credit(folder: str) -> None:
    everybody = asyncio.Barrier(4)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, __: bytes) -> None:
        await everybody.wait()
        writer.write(framed(GOOD))

    async with behind(folder, answer, connections=4) as (broker, handler):
        credit = broker.hellos[0].options["credit"]
        assert credit == 4
        broker.send(*(request(token, b"1", "old", f"u{token}") for token in range(credit)))
        replies = await broker.replies(credit)
        assert all(reply.status == 0 for reply in replies.values())
        assert handler.most_at_once == 4


async def test_one_users_messages_are_in_order_and_others_concurrent(folder: str) -> None:
    """Two users, and messages without a user: another server's, a handler's own."""
    everybody = asyncio.Barrier(4)  # a message of each user, and both without a user

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if body.startswith(b'"first'):
            await everybody.wait()
        writer.write(framed(GOOD))

    async with behind(folder, answer) as (broker, handler):
        assert broker.hellos[0].options["order"] == {"old": "user"}
        first: list[tuple[str | None, bytes]] = [
            ("u", b'"first u"'),
            ("v", b'"first v"'),
            (None, b'"first a"'),
            (None, b'"first b"'),
        ]
        every = first + [(user, b'"%b %d"' % (user.encode(), n)) for user in ("u", "v") for n in range(20)]
        broker.send(*(request(token, body, "old", user) for token, (user, body) in enumerate(every)))
        replies = await broker.replies(len(every))
        assert all(reply.status == 0 for reply in replies.values())
        assert handler.most_at_once == 4
        assert set(handler.received[:4]) == {body for _, body in first}
        for user in ("u", "v"):
            mine = [body for each, body in every if each == user]
            assert [body for body in handler.received if body in mine] == mine


async def test_without_order_one_users_messages_are_concurrent(folder: str) -> None:
    everybody = asyncio.Barrier(5)

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        await everybody.wait()
        writer.write(framed(GOOD))

    async with behind(folder, answer, order=None) as (broker, _):
        assert "order" not in broker.hellos[0].options
        broker.send(*(request(token, b"1", "old") for token in range(5)))
        assert len(await broker.replies(5)) == 5


async def test_failed_message_keeps_the_order_of_its_group(folder: str) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
        if int(body) % 3:
            writer.write(framed(GOOD))

    async with behind(folder, answer) as (broker, handler):
        broker.send(*(request(token, b"%d" % token, "old") for token in range(30)))
        replies = await broker.replies(30)
        assert list(replies) == list(range(30))
        assert [bool(reply.status) for reply in replies.values()] == [not token % 3 for token in range(30)]
        assert handler.received == [b"%d" % token for token in range(30)]


async def test_missing_handler(folder: str) -> None:
    endpoint = f"ipc://{folder}/f.sock"
    async with StandIn(endpoint) as broker:
        worker = Worker(legacy_app(f"{folder}/none.sock", ["old"]), endpoint)
        worker.start()
        await broker.expect(Hello)
        reply = await asyncio.wait_for(broker.ask(1, b"1", "old"), PATIENCE_S)
        assert reply.status == 1
        assert (reply.note or "").startswith(f"no handler at {folder}/none.sock")
        await worker.stop()
