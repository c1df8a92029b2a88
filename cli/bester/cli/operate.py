"""Questions of an operator to a running broker, over the fabric that the configuration names.

Answers are returned as received; the commands interpret them. No server is started, and no question is asked twice:
some questions change something.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any

from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys, link_keys
from bester.broker.wire.address import parse_endpoint
from bester.broker.wire.codes import BesterError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Answer, Ask, Malformed, Message

WELCOME_S = 10.0
"""Seconds that a listening broker may take to greet: longer than any pause of a busy one."""
ANSWER_S = 60.0
"""Seconds that a broker may take to answer: the answer may need thousands of dead letters read and written."""
KNOCK_S = 3.0
"""Seconds that a test for a listening server may take."""

Question = tuple[str, Any]
"""A question's name, and its argument."""


def ask(config: Config, question: str, argument: object = None) -> Answer:
    """Ask one question and return the answer. Raises BesterError where no server answers."""
    knock(config)
    return asyncio.run(ask_all(config, [(question, argument)]))[0]


async def ask_all(config: Config, questions: Sequence[Question]) -> list[Answer]:
    """Ask several questions at once; return the answers in order. Raises BesterError where one is missing."""
    round_ = _Round(config, questions)
    round_.link.start()
    try:
        return await round_.answers()
    finally:
        await round_.link.close(1.0)


def endpoint_of(config: Config) -> str:
    """Return the operator's endpoint: a path before a port, for only a path admits every role."""
    paths = [each for each in (*config.fabric.connect, *config.fabric.listen) if each.startswith("ipc://")]
    return paths[0] if paths else config.fabric.connect[0]


def _keys(config: Config) -> LinkKeys | None:
    """Return the keys for the operator's link. Raises ConfigError where keys are needed and missing."""
    fabric = config.fabric
    key = config.key_file if fabric.server_key is not None else None
    return link_keys(endpoint_of(config), key, fabric.server_key, ("[fabric] key", "[fabric] server_key"))


def knock(config: Config) -> None:
    """Check that a server listens: ZeroMQ itself would wait for ever. Raises BesterError with a remedy."""
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
        place = f"with {config.path}" if config.path else f"in {config.directory}"
        remedy = "start it with `bester up`, or name its file with -c"
        raise BesterError("unreachable", f"no server runs {place}: nobody listens on {endpoint}; {remedy}") from None
    except PermissionError:
        raise BesterError(
            "not-allowed", f"{where.path}: not yours to open; operate the server as the user it runs as"
        ) from None


class _Round:
    """Some questions on a link of their own."""

    def __init__(self, config: Config, questions: Sequence[Question]) -> None:
        self._name = config.server.name
        self._questions = questions
        self._answers: dict[int, Answer] = {}
        self._complete: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._welcomed = asyncio.Event()
        self._client = LinkClient("operator", "bester", {})
        self.link = FabricLink(
            endpoint_of(config),
            self._client,
            on_messages=self._on_messages,
            on_ready=self._on_welcome,
            on_lost=self._on_link_lost,
            keys=_keys(config),
        )

    async def answers(self) -> list[Answer]:
        """Ask, and return the answer to each question. Raises BesterError after a timeout."""
        stage, patience_s = "greet", WELCOME_S
        try:
            async with asyncio.timeout(patience_s) as deadline:
                await self._greeted()
                if self._client.refusal is not None:
                    raise BesterError("not-allowed", f"{self._name} refuses an operator: {self._client.refusal.text}")
                stage, patience_s = "answer", ANSWER_S
                deadline.reschedule(asyncio.get_running_loop().time() + patience_s)
                await self._complete
        except TimeoutError:
            text = f"{self._name} does not {stage} within {patience_s:g} s; see what its log says"
            raise BesterError("timeout", text) from None
        return [self._answers[number] for number in range(len(self._questions))]

    async def _greeted(self) -> None:
        """Wait until the broker has accepted or refused the operator."""
        both = [asyncio.create_task(event.wait()) for event in (self._welcomed, self.link.over)]
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in both:
                task.cancel()

    def _on_welcome(self) -> None:
        if self._welcomed.is_set():  # a new broker; the old one may have acted on the questions
            self._on_link_lost("the link to it was lost")
            return
        self._welcomed.set()
        for number, (question, argument) in enumerate(self._questions):
            self.link.send(Ask(number, question, argument))
        self._check_complete()

    def _on_messages(self, messages: list[Message | Malformed]) -> None:
        self._answers |= {message.token: message for message in messages if isinstance(message, Answer)}
        self._check_complete()

    def _check_complete(self) -> None:
        if len(self._answers) == len(self._questions) and not self._complete.done():
            self._complete.set_result(None)

    def _on_link_lost(self, why: str) -> None:
        if self._welcomed.is_set() and not self._complete.done():
            text = f"{self._name} went away before its answer ({why}); check the result before asking again"
            self._complete.set_exception(BesterError("unreachable", text))
