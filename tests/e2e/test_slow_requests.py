"""A user whose requests take long waits for them; another user's request waits for the one that runs. Requests with
long bodies are taken for such ones before they have run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import zmq

from bester.broker.wire.batches import batches
from bester.broker.wire.codec import decode
from bester.broker.wire.messages import Message, Reply, Request, Welcome
from bester.handlers import App
from bester.handlers import Message as Received
from bester.handlers.task_pool import SLICE_S
from bester.handlers.turns import LONG_BYTES
from bester.handlers.worker import Worker
from tests.live import short_directory

PATIENCE_S = 60.0
SLOW = 40
"""Requests of eve, each of which takes longer than a slice."""
QUICK = 10


class Link:
    """The broker's side of a worker's link, on the loop on which handlers run."""

    def __init__(self, socket: zmq.Socket[bytes]) -> None:
        self._socket = socket
        self._routing_id = b""

    async def greet(self) -> None:
        """Welcome the worker."""
        while not self._socket.poll(0):
            await asyncio.sleep(0.002)
        self._routing_id = self._socket.recv_multipart()[0]
        self.send([Welcome(1, "s1", {"heartbeat_ms": 60_000})])

    def send(self, messages: Sequence[Message]) -> None:
        for frames in batches(messages):
            self._socket.send_multipart([self._routing_id, *frames])

    async def receive(self) -> list[Reply]:
        """Return the next replies."""
        async with asyncio.timeout(PATIENCE_S):
            while not self._socket.poll(0):
                await asyncio.sleep(0.002)
        return self.receive_held()

    def receive_held(self) -> list[Reply]:
        """Return the next replies; the loop is held meanwhile."""
        assert self._socket.poll(round(PATIENCE_S * 1000)), "nothing has been sent"
        _, *frames = self._socket.recv_multipart()
        return [each for each in decode(frames) if isinstance(each, Reply)]


@asynccontextmanager
async def linked(app: App) -> AsyncIterator[Link]:
    """Run a worker, and a broker's socket to which the worker is linked."""
    async with short_directory() as directory:
        with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
            socket.linger = 0
            socket.bind(f"ipc://{directory}/f")
            worker = Worker(app, f"ipc://{directory}/f")
            link = Link(socket)
            try:
                await worker.prepare()
                worker.start()
                async with asyncio.timeout(PATIENCE_S):
                    await link.greet()
                    await worker.wait_ready()
                yield link
            finally:
                await worker.stop(0)


@pytest.mark.parametrize("runs", ["inline", "async", "thread"])
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "a batch each"])
async def test_requests_that_take_long_keep_those_of_others_waiting_once(runs: str, together: bool) -> None:
    app = App(credit=SLOW + QUICK, threads=1)
    loop = asyncio.get_running_loop()
    send: list[Any] = []
    asked: list[str] = []

    def answer(message: Received) -> Any:
        assert message.user is not None
        if not asked:
            others = [Request(SLOW + number, "x", b"1", "alice", {}) for number in range(QUICK)]
            if runs == "thread":
                loop.call_soon_threadsafe(send[0], others)
            else:
                send[0](others)
        asked.append(message.user)
        if message.user == "eve":
            time.sleep(1.5 * SLICE_S)
        return message.reply(1)

    async def answer_soon(message: Received) -> Any:
        return answer(message)

    app.handler("x", inline=runs == "inline")(answer_soon if runs == "async" else answer)
    async with linked(app) as link:
        send.append(link.send)
        slow: list[Message] = [Request(number, "x", b"1", "eve", {}) for number in range(SLOW)]
        for messages in [slow] if together else [[each] for each in slow]:
            link.send(messages)
        replies: list[Reply] = []
        while len(replies) < SLOW + QUICK:
            replies += await link.receive()
    assert sorted(reply.token for reply in replies) == list(range(SLOW + QUICK))
    assert [reply.token for reply in replies if reply.token < SLOW] == list(range(SLOW))
    last = max(number for number, user in enumerate(asked) if user == "alice")
    before = asked[:last].count("eve")
    assert before < SLOW / 2, f"the last of alice's requests came after {before} of eve's"


LONG = b" " * LONG_BYTES + b"1"
TOGETHER: list[list[tuple[str, bytes]]] = [
    [("eve", LONG), ("alice", b"1"), ("bob", b"1")],
    [("alice", b"1"), ("bob", b"1"), ("eve", LONG)],
    [("alice", b"1"), ("eve", LONG), ("eve", b"1"), ("bob", b"1"), ("eve", LONG)],
    [("eve", b"1"), ("eve", LONG), ("alice", b"1"), ("eve", b"1"), ("bob", b"1")],
]


@pytest.mark.parametrize("runs", ["inline", "async"])
@pytest.mark.parametrize(("sent", "together"), [*[(sent, True) for sent in TOGETHER], (TOGETHER[1], False)])
async def test_request_with_a_long_body_begins_when_others_that_came_with_it_are_answered(
    runs: str, sent: list[tuple[str, bytes]], *, together: bool
) -> None:
    """A short request of the sender of a long one keeps its place behind that."""
    app = App(credit=QUICK)
    began: list[Received] = []
    replies: list[Reply] = []
    others = {number for number, (user, _) in enumerate(sent) if user != "eve"}

    def answer(message: Received) -> Any:
        began.append(message)
        while len(message.raw) > LONG_BYTES and not others <= {reply.token for reply in replies}:
            replies.extend(link.receive_held())
        return message.reply(1)

    async def answer_soon(message: Received) -> Any:
        return answer(message)

    app.handler("x", inline=runs == "inline")(answer_soon if runs == "async" else answer)
    async with linked(app) as link:
        requests: list[Message] = [Request(number, "x", body, user, {}) for number, (user, body) in enumerate(sent)]
        for messages in [requests] if together else [[each] for each in requests]:
            link.send(messages)
        while len(replies) < len(sent):
            replies += await link.receive()
    assert sorted(reply.token for reply in replies) == list(range(len(sent)))
    of_eve = [number for number, (user, _) in enumerate(sent) if user == "eve"]
    assert [reply.token for reply in replies if reply.token in of_eve] == of_eve
