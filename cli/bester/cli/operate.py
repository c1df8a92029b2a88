"""Asks a running server's broker, as its operator does, over the fabric that the configuration names.

It asks and hands back what was answered; what the answers mean is left to the commands. It never starts a server, and
never asks a question twice: some of them change something.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.wire.address import parse_endpoint
from bester.broker.wire.codes import BesterError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Answer, Ask, Malformed, Message

WELCOME_S = 10.0
"""How long a broker that listens may take to greet: longer than any pause of a busy one."""
ANSWER_S = 60.0
"""And to answer: it may have to read and write thousands of letters first."""
KNOCK_S = 3.0
"""How long it may take to see whether anybody listens at all."""

Question = tuple[str, Any]
"""What is asked, and its argument."""


def ask(config: Config, question: str, argument: object = None) -> Answer:
    """Ask one question and wait for the answer. Raises BesterError where no server answers."""
    knock(config)
    return asyncio.run(ask_all(config, [(question, argument)]))[0]


async def ask_all(config: Config, questions: Sequence[Question]) -> list[Answer]:
    """Ask several questions at once; the answers come in their order. Raises BesterError where one is missing."""
    asked = _Asked(config, questions)
    asked.link.start()
    try:
        return await asked.answers()
    finally:
        await asked.link.close(1.0)


def endpoint_of(config: Config) -> str:
    """Return where an operator connects: on a path before a port, for only a path admits every role."""
    paths = [each for each in (*config.fabric.connect, *config.fabric.listen) if each.startswith("ipc://")]
    return paths[0] if paths else config.fabric.connect[0]


def knock(config: Config) -> None:
    """See that a server listens: ZeroMQ itself would wait for one for ever. Raises BesterError that says what to do."""
    endpoint = endpoint_of(config)
    where = parse_endpoint(endpoint)
    try:
        if where.tcp is not None:
            socket.create_connection(where.tcp, KNOCK_S).close()
            return
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(KNOCK_S)
            door.connect(where.path)
    except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
        said = f"as {config.path} says" if config.path else f"in {config.directory}"
        raise BesterError(
            "unreachable",
            f"no server runs {said}: nobody listens on {endpoint}; start it with `bester up`, or name its file with -c",
        ) from None
    except PermissionError:
        raise BesterError(
            "not-allowed", f"{where.path}: not yours to open; operate the server as the user it runs as"
        ) from None


class _Asked:
    """Some questions on a link of their own."""

    def __init__(self, config: Config, questions: Sequence[Question]) -> None:
        self._name = config.server.name
        self._questions = questions
        self._answers: dict[int, Answer] = {}
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._welcomed = asyncio.Event()
        self._party = LinkClient("operator", "bester", {})
        self.link = FabricLink(
            endpoint_of(config), self._party, on_messages=self._hear, on_ready=self._ask, on_lost=self._lost
        )

    async def answers(self) -> list[Answer]:
        """Ask, and return what was answered to each question. Raises BesterError where that takes too long."""
        stage, patience_s = "greet", WELCOME_S
        try:
            async with asyncio.timeout(patience_s) as deadline:
                await self._greeted()
                if self._party.refusal is not None:
                    raise BesterError("not-allowed", f"{self._name} refuses an operator: {self._party.refusal.text}")
                stage, patience_s = "answer", ANSWER_S
                deadline.reschedule(asyncio.get_running_loop().time() + patience_s)
                await self._complete
        except TimeoutError:
            text = f"{self._name} does not {stage} within {patience_s:g} s; see what its log says"
            raise BesterError("timeout", text) from None
        return [self._answers[number] for number in range(len(self._questions))]

    async def _greeted(self) -> None:
        """Wait until the broker has said whether it will have us."""
        both = [asyncio.create_task(event.wait()) for event in (self._welcomed, self.link.over)]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()

    def _ask(self) -> None:
        if self._welcomed.is_set():  # a new broker; what the old one was asked, it may have done
            self._lost("the link to it was lost")
            return
        self._welcomed.set()
        for number, (question, argument) in enumerate(self._questions):
            self.link.send(Ask(number, question, argument))
        self._see()

    def _hear(self, messages: list[Message | Malformed]) -> None:
        self._answers |= {message.token: message for message in messages if isinstance(message, Answer)}
        self._see()

    def _see(self) -> None:
        if len(self._answers) == len(self._questions) and not self._complete.done():
            self._complete.set_result(None)

    def _lost(self, why: str) -> None:
        if self._welcomed.is_set() and not self._complete.done():
            text = f"{self._name} went away before it answered ({why}); look at what became of it before asking again"
            self._complete.set_exception(BesterError("unreachable", text))
