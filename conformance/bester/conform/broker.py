"""Script a broker: one ROUTER socket that sends the messages of a case and checks the handler's.

The broker tracks outstanding REQUESTs and checks every REPLY: the token is outstanding, the REPLY arrives once, on the
link of its REQUEST, and never after the handler has started over with a new HELLO.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq
import zmq.asyncio

from bester.conform import fabric
from bester.conform.fabric import Heard
from bester.conform.match import packed, shown
from bester.conform.result import Unseen

COMMANDS = ("sendClients", "sendServers", "sendHandler")
HEARTBEAT_MS = 2000
STEP_S = 0.005
"""Pause between two attempts to bind: ZeroMQ frees a tcp port only after the socket is closed."""
BIND_S = 5.0
BEAT_STEP_S = 0.1
"""Longest delay until a heartbeat interval that a WELCOME has changed takes effect."""


class Expected:
    """An outstanding REQUEST and the required REPLY. `answer` is `shout`, `good` (whatever its commands), `fails`,
    `bad` (failed or refused) or `any`.
    """

    __slots__ = ("answer", "data", "link", "user")

    def __init__(self, link: bytes, user: str | None, data: Any, answer: str) -> None:
        self.link = link
        self.user = user
        self.data = data
        self.answer = answer


class Broker:
    """The broker's end of one link. `endpoint` is where handlers connect; `bind` opens it."""

    def __init__(self, context: zmq.asyncio.Context, endpoint: str, keys: tuple[bytes, bytes] | None = None) -> None:
        self.endpoint = endpoint
        self._context = context
        self._keys = keys
        self._socket: zmq.asyncio.Socket | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self.inbox: list[Heard] = []
        self.first: Heard | None = None
        """First message received, of any kind."""
        self.link = b""
        self.types: list[str] = []
        self.credit = 1
        self.life = "life-1"
        self.beats = 0
        """Number of HEARTBEATs received."""
        self.signs = 0
        """Number of HEARTBEATs, EMITs and ASKs received: a HEARTBEAT is due only where nothing else is sent."""
        self.replies = 0
        """Number of REPLYs received to outstanding REQUESTs."""
        self.out: dict[int, Expected] = {}
        self.void: set[int] = set()
        """Tokens of requests whose link is lost; `fresh` is true once the handler has sent a new HELLO."""
        self.fresh = False
        self.wrong: Unseen | None = None
        self.muted = False
        self.heartbeat_s = HEARTBEAT_MS / 1000
        self._said_at = 0.0
        self._answers: list[list[Any]] = []

    # --- the socket ---

    async def bind(self) -> None:
        """Open the socket, listen, and start the heartbeats. Raises Unseen where the endpoint cannot be bound."""
        deadline = time.monotonic() + BIND_S
        while True:
            socket = self._context.socket(zmq.ROUTER)
            socket.linger = 0
            socket.set_hwm(0)
            socket.router_mandatory = True
            if self._keys is not None:
                socket.curve_server = True
                socket.curve_publickey, socket.curve_secretkey = self._keys
            try:
                socket.bind(self.endpoint)
                break
            except zmq.ZMQError as error:
                socket.close()
                if time.monotonic() > deadline:
                    raise Unseen(f"the scripted broker cannot listen on {self.endpoint}: {error}") from None
                await asyncio.sleep(STEP_S)
        self._socket = socket
        if self.endpoint.endswith(":*"):
            bound = socket.last_endpoint
            assert isinstance(bound, bytes)
            self.endpoint = bound.decode().rstrip("\0")
        self._tasks = [asyncio.create_task(self._listen(socket)), asyncio.create_task(self._beat())]

    async def close(self) -> None:
        """Close the socket without a GOODBYE."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._socket is not None:
            self._socket.close(0)
            self._socket = None

    async def _listen(self, socket: zmq.asyncio.Socket) -> None:
        while True:
            identity, *frames = await socket.recv_multipart()
            try:
                for heard in fabric.read(identity, frames):
                    self._take(heard)
            except Unseen as unseen:
                self.wrong = self.wrong or unseen
            self._news.set()
            answers, self._answers = self._answers, []
            if answers and self.link:
                try:
                    await self.say(*answers)
                except Unseen:
                    continue  # the handler is gone; the waiting step reports this

    async def _beat(self) -> None:
        while True:
            await asyncio.sleep(min(self.heartbeat_s / 2, BEAT_STEP_S))
            if not self.muted and self.link and time.monotonic() >= self._said_at + self.heartbeat_s:
                try:
                    await self.say([fabric.OPS["HEARTBEAT"]])
                except Unseen:
                    continue  # the handler is gone; the waiting step reports this

    async def say(self, *messages: list[Any], attached: Sequence[bytes] = ()) -> None:
        """Send a batch to the handler. Raises Unseen where the handler is gone."""
        await self.send([fabric.pack(messages), *attached])

    async def send(self, frames: Sequence[bytes]) -> None:
        """Send the frames of one ZeroMQ message to the handler. Raises Unseen where the handler is gone."""
        assert self._socket is not None
        self._said_at = time.monotonic()
        try:
            await self._socket.send_multipart([self.link, *frames])
        except zmq.ZMQError as error:
            raise Unseen(f"the handler's connection is gone: {error}") from None

    # --- messages of the handler ---

    def _take(self, heard: Heard) -> None:
        self.first = self.first or heard
        if heard.name == "HEARTBEAT":
            self.beats += 1
            self.signs += 1
            return
        if heard.name == "REPLY":
            self._reply(heard)
            return
        if heard.name in ("EMIT", "ASK"):  # messages of the handler's own accord are no part of a case
            self.signs += 1
            self._answers.append(answer_to(heard))
            return
        if heard.name == "HELLO" and self.void:
            self.fresh = True
        self.inbox.append(heard)

    def _reply(self, heard: Heard) -> None:
        token = heard.fields[0]
        expected = self.out.pop(token, None)
        if expected is None:
            if token not in self.void:
                raise Unseen(f"REPLY with the token {token}: no REQUEST had it, or it was answered before")
            if self.fresh:
                raise Unseen(f"REPLY to the REQUEST {token} of an earlier link, after the handler had begun anew")
            self.void.discard(token)
            return
        if heard.link != expected.link:
            raise Unseen(f"REPLY {token} came by another link than its REQUEST went")
        self.replies += 1
        check(heard, expected)

    def forget(self) -> None:
        """Give up all outstanding requests: their link is lost or abandoned, and no REPLY may follow a new HELLO."""
        self.void |= self.out.keys()
        self.out.clear()
        self.fresh = False

    def hello(self, heard: Heard) -> None:
        """Store the link and the options of a HELLO."""
        self.link = heard.link
        options = heard.fields[3] if len(heard.fields) > 3 and heard.fields[3] else {}
        types = options.get("types")
        self.types = [type_ for type_ in types if isinstance(type_, str)] if isinstance(types, list) else []
        credit = options.get("credit", 1)
        self.credit = credit if type(credit) is int and credit > 0 else 1

    # --- waiting ---

    async def until(self, done: Callable[[], bool], within_s: float) -> bool:
        """Wait until `done()`; return False when the time is over. Raises Unseen for a message that breaks a rule."""
        deadline = time.monotonic() + within_s
        while True:
            if self.wrong is not None:
                raise self.wrong
            if done():
                return True
            self._news.clear()
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            try:
                await asyncio.wait_for(self._news.wait(), min(left, 0.25))
            except TimeoutError:
                continue


def answer_to(heard: Heard) -> list[Any]:
    """Return the broker's message to an EMIT (a report of delivery) or to an ASK (an answer)."""
    token = heard.fields[0]
    if heard.name == "EMIT":
        return [fabric.OPS["OUTCOME"], token, 0, {}]
    known: dict[str, Any] = {"isClient": True, "listClients": ["alice"], "serverInfo": {"clientCount": "1"}}
    question = heard.fields[1]
    return [fabric.OPS["ANSWER"], token, 0 if question in known else 1, known.get(question)]


def check(heard: Heard, expected: Expected) -> None:
    """Compare a REPLY with its REQUEST. Raises Unseen."""
    token, status, commands = heard.fields[:3]
    where = f"REPLY {token}"
    if expected.answer == "any":
        return
    if expected.answer in ("fails", "bad"):
        if status != 1 and (status != 2 or expected.answer == "fails"):
            raise Unseen(f"{where}: status {status} with {shown(commands)}, expected status 1")
        if len(heard.fields) < 4 or not heard.fields[3]:
            raise Unseen(f"{where}: has status {status} and no note that says why")
        return
    if status != 0:
        raise Unseen(f"{where}: status {status} ({shown(heard.fields[3:])}), expected 0")
    if expected.answer == "good":
        for command in commands:
            check_command(where, command, heard.attached)
        return
    if len(commands) != 1 or not isinstance(commands[0], list) or len(commands[0]) not in (3, 4):
        raise Unseen(f"{where}: commands {shown(commands)}, expected one sendClients")
    command, targets, body = commands[0][:3]
    if command != "sendClients" or targets != [expected.user]:
        remedy = packed(command) or packed(targets)
        raise Unseen(f"{where}: {shown(commands[0][:2])}, expected ['sendClients', [{expected.user!r}]]{remedy}")
    got = fabric.body_of(body, heard.attached)
    if got != expected.data:
        raise Unseen(f"{where}: answers {shown(got)}, expected {shown(expected.data)}")


def check_command(where: str, command: Any, attached: Sequence[bytes]) -> None:
    """Check a command against the page: name, targets, body and type. Raises Unseen."""
    if not isinstance(command, list) or len(command) not in (3, 4) or command[0] not in COMMANDS:
        remedy = packed(command[:1]) if isinstance(command, list) else ""
        raise Unseen(f"{where}: {shown(command)} is no command{remedy}")
    targets, type_ = command[1], command[3] if len(command) == 4 else None
    if not isinstance(targets, list) or not all(isinstance(target, str) for target in targets):
        raise Unseen(
            f"{where}: {command[0]}: targets are {shown(targets)}, expected an array of names{packed(targets)}"
        )
    if command[0] == "sendHandler" and len(targets) != 1:
        raise Unseen(f"{where}: sendHandler has {len(targets)} targets, expected exactly one type")
    if type_ is not None and not isinstance(type_, str):
        raise Unseen(f"{where}: {command[0]}: its type is {shown(type_)}{packed(type_)}")
    fabric.body_of(command[2], attached)
