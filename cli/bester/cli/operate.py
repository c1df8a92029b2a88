"""Questions of an operator to a running broker, over the fabric that the configuration names.

Answers are returned as received; the commands interpret them. No server is started, and no question is asked twice:
some questions change something.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from typing import Any, Self

from bester.broker.config import Config
from bester.broker.fabric import FabricLink
from bester.broker.keys import LinkKeys, link_keys
from bester.broker.names import find, reason
from bester.broker.wire.address import HostPort, parse_endpoint
from bester.broker.wire.codes import BesterError
from bester.broker.wire.keys import must_encrypt
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Answer, Ask, Error, Malformed, Message

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
    async with Session(config) as session:
        return await session.ask(*questions)


def others_of(status: dict[str, Any]) -> list[str]:
    """Return the names of the brokers of the same server that have not ended, of a broker's answer to `status`."""
    return [
        each["name"]
        for each in status.get("brokers", ())
        if each["name"] != status["broker"] and each["state"] != "ended"
    ]


def endpoint_of(config: Config) -> str:
    """Return the operator's endpoint: a path before a port, for only a path admits every role without a key.

    The file of a broker, which listens where `connect` names one, is about that broker, whatever else `connect` names.
    """
    connect, listen = config.fabric.connect, config.fabric.listen
    if is_elsewhere(config):
        return connect[0]
    own = [each for each in connect if each in listen]
    near = (*own, *listen, *connect) if own else (*connect, *listen)
    return next((each for each in near if each.startswith("ipc://")), near[0])


def is_elsewhere(config: Config) -> bool:
    """Return whether the file is one of a party on another machine than the broker: no path leads to the broker, links
    to it are encrypted, and nothing is to listen here, or does."""
    fabric = config.fabric
    paths = [each.removeprefix("ipc://") for each in fabric.listen if each.startswith("ipc://")]
    encrypted = fabric.server_key is not None or any(map(must_encrypt, fabric.connect))
    return (
        encrypted
        and not any(each.startswith("ipc://") for each in fabric.connect)
        and len(paths) == len(fabric.listen)
        and not any(map(os.path.lexists, paths))
    )


def _keys(config: Config) -> LinkKeys | None:
    """Return the keys for the operator's link. Raises ConfigError where keys are needed and missing."""
    fabric = config.fabric
    key = config.key_file if fabric.server_key is not None else None
    return link_keys(endpoint_of(config), key, fabric.server_key, ("[fabric] key", "[fabric] server_key"))


def knock(config: Config) -> None:
    """Check that a server listens: ZeroMQ itself would wait for ever. Raises BesterError with a remedy. To be called
    where no loop runs. An encrypted link tells by itself, and the server would take a knock for a party that fails."""
    endpoint = endpoint_of(config)
    if _keys(config) is not None:
        return
    where = parse_endpoint(endpoint)
    try:
        if where.tcp is not None:
            _connect(where.tcp, endpoint)
            return
        with socket.socket(socket.AF_UNIX) as door:
            door.settimeout(KNOCK_S)
            door.connect(where.path)
    except (FileNotFoundError, ConnectionRefusedError, TimeoutError):
        place = f"with {config.path}" if config.path else f"in {config.directory}"
        several = len(config.fabric.connect) > 1  # `bester up` is for a server with one broker
        remedy = f"start it with `bester {'broker' if several else 'up'}`, or name its file with -c"
        raise BesterError("unreachable", f"no server runs {place}: nobody listens on {endpoint}; {remedy}") from None
    except PermissionError:
        raise BesterError(
            "not-allowed", f"{where.path}: not yours to open; operate the server as the user it runs as"
        ) from None


def _connect(tcp: HostPort, endpoint: str) -> None:
    """Connect to one of a host's addresses. Raises OSError where none accepts, BesterError where there is none."""
    try:
        addresses = asyncio.run(find(tcp.host, KNOCK_S))
    except OSError as error:
        remedy = "see that it is right, and that its name server answers"
        text = f"{endpoint}: the name {tcp.host} cannot be looked up: {reason(error)}; {remedy}"
        raise BesterError("unreachable", text) from None
    for number, address in enumerate(addresses, 1):
        try:
            socket.create_connection((address, tcp.port), KNOCK_S).close()
        except OSError:
            if number == len(addresses):
                raise
        else:
            return


class Session:
    """A link to a server for questions, used as a context: `async with Session(config) as session: …`.

    Entering raises BesterError where the server does not greet, or refuses an operator or the operator's key.
    """

    def __init__(self, config: Config) -> None:
        endpoint = endpoint_of(config)
        self._name = f"the server at {endpoint}" if is_elsewhere(config) else config.server.name
        self._keys = _keys(config)
        self._trouble = asyncio.Event()  # why there is no encrypted link: what is wrong with a key stays wrong
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._welcomed = asyncio.Event()
        self._failure: BesterError | None = None
        self._token = 0
        self._client = LinkClient("operator", "bester", {})
        self._link = FabricLink(
            endpoint,
            self._client,
            on_messages=self._on_messages,
            on_ready=self._on_welcome,
            on_lost=self._on_link_lost,
            keys=self._keys,
        )

    @property
    def server(self) -> str:
        """The server's own name, once it has greeted."""
        return self._client.server or self._name

    async def __aenter__(self) -> Self:
        self._link.start()
        try:
            async with asyncio.timeout(WELCOME_S):
                await self._greeted()
            if self._client.refusal is not None:
                raise BesterError("not-allowed", f"{self._name} refuses an operator: {self._client.refusal.text}")
            if not self._welcomed.is_set():
                raise BesterError("unreachable", self._link.trouble)
        except TimeoutError:
            await self._link.close(1.0)
            raise self._late("greet", WELCOME_S) from None
        except BaseException:
            await self._link.close(1.0)
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._link.close(1.0)

    async def ask(self, *questions: Question) -> list[Answer]:
        """Ask questions at once; return the answers in order. Raises BesterError where one is missing."""
        if self._failure is not None:
            raise self._failure
        loop = asyncio.get_running_loop()
        asked: list[asyncio.Future[Answer]] = []
        for question, argument in questions:
            if not self._link.send(Ask(self._token, question, argument)):
                text = f"{self._name} cannot be asked now: the link to it is lost or full; ask again"
                raise BesterError("unreachable", text)
            future: asyncio.Future[Answer] = loop.create_future()
            self._answers[self._token] = future
            asked.append(future)
            self._token += 1
        try:
            async with asyncio.timeout(ANSWER_S):
                return await asyncio.gather(*asked)
        except TimeoutError:
            raise self._late("answer", ANSWER_S) from None

    def _late(self, stage: str, patience_s: float) -> BesterError:
        text = f"{self._name} does not {stage} within {patience_s:g} s; see what its log says"
        return BesterError("timeout", text)

    async def _greeted(self) -> None:
        """Wait until the broker has accepted or refused the operator, or there is no link for a reason that stays."""
        events = [asyncio.create_task(event.wait()) for event in (self._welcomed, self._link.over, self._trouble)]
        try:
            await asyncio.wait(events, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in events:
                task.cancel()

    def _on_welcome(self) -> None:
        if self._welcomed.is_set():  # a new broker; the old one may have acted on the questions
            self._on_link_lost("the link to it was lost")
        self._welcomed.set()

    def _on_messages(self, messages: list[Message | Malformed]) -> None:
        for message in messages:
            if not isinstance(message, Answer | Error) or message.token is None:
                continue
            future = self._answers.pop(message.token, None)
            if future is None or future.done():
                continue
            if isinstance(message, Answer):
                future.set_result(message)
            else:  # of the broker, or of the link for a question that cannot be sent
                future.set_exception(BesterError(message.code, f"{self._name} cannot be asked: {message.text}"))

    def _on_link_lost(self, why: str) -> None:
        if not self._welcomed.is_set():
            if self._keys is not None:
                self._trouble.set()
            return
        if self._failure is not None:
            return
        text = f"{self._name} went away before its answer ({why}); check the result before asking again"
        self._failure = BesterError("unreachable", text)
        for future in self._answers.values():
            if not future.done():
                future.set_exception(self._failure)
        self._answers.clear()
