"""The order in which a socket is read, its messages are answered, and it is asked for more."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

import zmq

from bester.broker.fabric_socket import FabricSocket, Frames
from bester.broker.turn import Turn
from tests.live import DEADLINE_S


class Answering(FabricSocket):
    """Socket that answers what it reads at the end of the turn, and looks for more then, as a link does. `seen` are
    messages, answers and looks for more."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.seen: list[bytes] = []
        self.answered = asyncio.Event()
        self.closes = False
        self.fails = False
        self._answers = False  # at the end of this turn
        self._ends = Turn()
        super().__init__(context, zmq.PAIR, self._take, self._ends)

    def _take(self, frames: Frames) -> None:
        self.seen += frames
        if not self._answers:
            self._answers = True
            self._ends.soon(self._answer)

    def _answer(self) -> None:
        self._answers = False
        self.seen.append(b"answer")
        self.answered.set()
        if self.closes:
            self.close()
            return
        self.send([b"answer"])
        if self.fails:
            self.fails = False
            raise ValueError("an answer that fails")
        self.look_again()

    def has_input(self) -> bool:
        self.seen.append(b"look")
        return super().has_input()

    async def seen_from(self, message: bytes) -> list[bytes]:
        """Return what was seen from a message on, up to the end of the callback that has answered it."""
        await asyncio.wait_for(self.answered.wait(), DEADLINE_S)
        self.answered.clear()
        seen, self.seen = self.seen, []
        return seen[seen.index(message) :]


@contextmanager
def connected() -> Iterator[tuple[Answering, zmq.Socket[bytes]]]:
    """Yield a registered socket and the one at the other end."""
    with zmq.Context() as context, context.socket(zmq.PAIR) as other:
        socket = Answering(context)
        try:
            other.bind("inproc://pair")
            socket.socket.connect("inproc://pair")
            socket.register()
            yield socket, other
        finally:
            if not socket.socket.closed:
                socket.close()


async def test_message_alone_is_answered_before_the_socket_is_asked_for_more() -> None:
    with connected() as (socket, other):
        other.send(b"first")
        assert await socket.seen_from(b"first") == [b"first", b"look", b"answer", b"look"]
        other.send(b"alone")
        assert await socket.seen_from(b"alone") == [b"alone", b"answer", b"look"], "one look behind the answer"


async def test_messages_that_come_together_are_answered_together() -> None:
    with connected() as (socket, other):
        for name in (b"1", b"2", b"3"):
            other.send(name)
        assert await socket.seen_from(b"1") == [b"1", b"look", b"2", b"3", b"answer", b"look"]
        for name in (b"4", b"5"):  # after several together the next ones are waited for, too
            other.send(name)
        assert await socket.seen_from(b"4") == [b"4", b"look", b"5", b"answer", b"look"]


async def test_socket_is_asked_for_more_after_an_answer_that_failed() -> None:
    with connected() as (socket, other):
        other.send(b"first")
        await socket.seen_from(b"first")
        failures: list[dict[str, object]] = []
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        socket.fails = True
        other.send(b"failing")
        assert await socket.seen_from(b"failing") == [b"failing", b"answer", b"look"]
        assert [str(failure["exception"]) for failure in failures] == ["an answer that fails"]
        other.send(b"next")
        assert await socket.seen_from(b"next") == [b"next", b"answer", b"look"]


async def test_answer_may_close_the_socket() -> None:
    with connected() as (socket, other):
        other.send(b"first")
        await socket.seen_from(b"first")
        socket.closes = True
        other.send(b"last")
        assert await socket.seen_from(b"last") == [b"last", b"answer"]
