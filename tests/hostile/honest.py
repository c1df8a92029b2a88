"""Honest traffic: letters within s1 and between s1 and s2, each one known, so that a lost one is named."""

from __future__ import annotations

import asyncio
import json
import struct
from collections import Counter
from contextlib import suppress
from itertools import count, cycle
from pathlib import Path
from statistics import quantiles
from typing import Any, NamedTuple

from tests.hostile.stand import MARK, PASSWORD, Stand
from tests.live import LiveServer

EVERY_S = 0.02
"""Between two letters of one way: often enough for a p99, and no load."""
SETTLE_S = 60.0
"""Time after the last letter until each has its report and is with its recipient."""
LOGIN_S = 30.0
TEXT = "x" * 100


class Way(NamedTuple):
    """From a user of one server to a user of another, or of the same one."""

    name: str
    server: str
    sender: str
    to: str
    receiver: str
    by: str
    """The sender that the recipient is told."""


WAYS = (
    Way("at s1", "s1", "alice", "bob", "bob@s1", "alice"),
    Way("s1 to s2", "s1", "alice", "bob@s2", "bob@s2", "s1"),
    Way("s2 to s1", "s2", "alice", "bob@s1", "bob@s1", "s2"),
)
Letter = tuple[str, int]
"""Way and number of a letter."""


class User:
    """A user on a native connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def come(cls, server: LiveServer, name: str) -> User:
        """Log in. Raises AssertionError where the login is refused, TimeoutError where nothing comes."""
        user = cls(*await asyncio.open_connection(server.host, server.port, limit=1 << 22))
        header = {"scope": "client", "authentication": {"username": name, "password": PASSWORD}}
        user.send({"header": header, "payload": {"data": None, "type": "dummy"}})
        async with asyncio.timeout(LOGIN_S):
            answer = await user.receive()
        assert answer["header"]["status"] == "good", answer
        return user

    def send(self, frame: Any) -> None:
        """Send a frame."""
        body = json.dumps(frame).encode()
        self.writer.write(struct.pack("<I", len(body)) + body)

    async def receive(self) -> Any:
        """Return the next frame."""
        (length,) = struct.unpack("<I", await self.reader.readexactly(4))
        return json.loads(await self.reader.readexactly(length))


class Phase:
    """A span of time: the latency of each letter sent in the span, from its writing to its report, by way."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.sent: set[Letter] = set()
        self.took_s: dict[str, list[float]] = {way.name: [] for way in WAYS}

    def p99_ms(self, way: str) -> float:
        """Return the p99 of a way in ms; infinite where too few reports came to tell."""
        took = self.took_s[way]
        return quantiles(took, n=100)[98] * 1000 if len(took) > 1 else float("inf")


class Honest:
    """The honest users. `strays` names letters that came to somebody else, `twice` letters that came unmarked
    more than once."""

    def __init__(self, stand: Stand) -> None:
        self.stand = stand
        self.phase = Phase("warm")
        self.outcomes: dict[Letter, str] = {}
        self.arrived: Counter[Letter] = Counter()
        self.strays: list[str] = []
        self.twice: list[str] = []
        self.all_sent: set[Letter] = set()
        self._began: dict[Letter, tuple[float, Phase]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._senders: dict[str, User] = {}
        self._users: list[User] = []

    async def start(self) -> None:
        """Log everybody in and begin to listen."""
        for name, server in self.stand.servers.items():
            alice, bob = await User.come(server, "alice"), await User.come(server, "bob")
            self._users += (alice, bob)
            self._senders[name] = alice
            self._listen(self._reports(name, alice, self.stand.ids))
            self._listen(self._letters(f"bob@{name}", bob))

    def _listen(self, work: Any) -> None:
        self._tasks.append(asyncio.create_task(work))

    async def run(self, phase: Phase, seconds: float) -> None:
        """Send letters for so long, on all ways in turn, whatever comes back."""
        self.phase = phase
        loop = asyncio.get_running_loop()
        began = loop.time()
        ways = cycle(WAYS)
        for number in count():
            due = began + number * EVERY_S / len(WAYS)
            if due > began + seconds:
                return
            await asyncio.sleep(max(0.0, due - loop.time()))
            self._fail_of_dead_tasks()
            self._send(next(ways), len(self.all_sent), due)

    def _send(self, way: Way, number: int, due: float) -> None:
        letter = (way.name, number)
        self.all_sent.add(letter)
        self.phase.sent.add(letter)
        self._began[letter] = (due, self.phase)
        data = {"to": way.to, "mark": MARK, "way": way.name, "n": number, "for": way.receiver, "text": TEXT}
        id_ = f"{way.name}/{number}"
        self._senders[way.server].send({"header": {}, "payload": {"type": "letter", "data": data, "id": id_}})

    async def _reports(self, server: str, alice: User, ids: Path) -> None:
        loop = asyncio.get_running_loop()
        with ids.open("a", buffering=1) as file:
            while True:
                frame = await alice.receive()
                payload = frame["payload"]
                if frame["header"].get("messageType") != "statusReport":
                    self.strays.append(f"alice@{server}: {str(frame)[:200]}")
                    continue
                way, _, number = payload["id"].partition("/")
                letter = (way, int(number))
                began, phase = self._began.pop(letter)
                phase.took_s[way].append(loop.time() - began)
                self.outcomes[letter] = _outcome(frame)
                if server == "s2" and payload.get("message"):
                    file.write(payload["message"] + "\n")

    async def _letters(self, receiver: str, bob: User) -> None:
        while True:
            frame = await bob.receive()
            data = frame["payload"].get("data")
            if not isinstance(data, dict) or data.get("mark") != MARK:
                continue  # from another user, who may write to bob
            way = next((way for way in WAYS if way.name == data.get("way")), None)
            if way is None or data.get("from") != way.by:
                continue  # a forgery: bob sees by whom
            letter = (way.name, data["n"])
            if way.receiver != receiver or letter not in self.all_sent or frame["payload"]["type"] != "letter":
                self.strays.append(f"{receiver}: {str(frame)[:200]}")
            self.arrived[letter] += 1
            if self.arrived[letter] > 1 and not frame["header"].get("redelivered"):
                self.twice.append(f"{receiver}: {letter}")

    def _fail_of_dead_tasks(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()  # an honest user has lost the connection
                raise AssertionError("an honest user's connection has ended")

    @property
    def unreported(self) -> int:
        """Letters without a report so far."""
        return len(self._began)

    def missing(self) -> list[Letter]:
        """Return letters that were reported good, and are not with their recipients."""
        return [
            letter for letter, outcome in self.outcomes.items()
            if outcome in ("delivered", "queued") and not self.arrived[letter]
        ]  # fmt: skip

    async def settle(self) -> None:
        """Wait until every letter has its report and has come, or for SETTLE_S."""
        loop = asyncio.get_running_loop()
        latest = loop.time() + SETTLE_S
        while (self._began or self.missing()) and loop.time() < latest:
            self._fail_of_dead_tasks()
            await asyncio.sleep(EVERY_S)

    async def stop(self) -> None:
        """End all connections."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for user in self._users:
            user.writer.close()
            with suppress(OSError):
                await user.writer.wait_closed()


def _outcome(frame: Any) -> str:
    payload = frame["payload"]
    if frame["header"]["status"] != "good":
        return str(payload.get("reason"))
    return next(iter(payload.get("recipients", {}).values()), "delivered")
