"""Run handler cases, each with a scripted broker and a program.

A program that has passed a case is reused for the next one; after a failure it is killed. So a failure is a case's own,
and a whole run takes seconds even if the program takes half a second to start.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import zmq
import zmq.asyncio

from bester.conform.broker import Broker
from bester.conform.cases import Case
from bester.conform.handler_steps import Sample, Stand, socket_path
from bester.conform.program import Program
from bester.conform.result import Result, Unseen
from bester.conform.runner import judged, run

Watch = Callable[[str, int], None]
"""Callback that receives `+` or `-` and a process group that must not outlive this process."""
LOOK_S = 0.05
LATE_S = 0.2
"""Delay after which a look counts as held up: three of the shortest heartbeats in the cases are 0.6 s."""
TRIES = 3
"""Attempts at a case that fails while this machine cannot keep time."""
DEEPEST = 70
"""Longest path, in characters, of a directory for Unix sockets: the path of a socket has 107 at most."""
CONNECT = "see that the program connects to the URL in BESTER_FABRIC; with a library that has no ipc://, add --tcp"
TYPE = "shout"
"""Value of BESTER_TYPES for the program, by default."""


class HandlerSide:
    """The programs and brokers of a run. `argv` starts the program under test; use as an async context."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        within_s: float = 10.0,
        curve: bool = False,
        tcp: bool = False,
        watch: Watch = lambda word, pid: None,
        served: str = TYPE,
        sample: Sample | None = None,
    ) -> None:
        self._argv = argv
        self._within_s = within_s
        self._curve = curve
        self._tcp = tcp
        self._watch = watch
        self._served = served
        self._sample = sample
        self._context = zmq.asyncio.Context()
        deep = len(tempfile.gettempdir()) > DEEPEST
        self._folder = tempfile.TemporaryDirectory(prefix="bc-", dir="/tmp" if deep else None)  # noqa: S108 (a fresh one)
        self._numbers = itertools.count(1)
        self._idle: list[Stand] = []
        self._held_up_at = float("-inf")

    async def __aenter__(self) -> HandlerSide:
        self._measuring = asyncio.create_task(self._measure())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._measuring.cancel()
        for stand in self._idle:
            await self._end(stand)
        self._context.destroy(0)
        self._folder.cleanup()

    async def play_all(self, cases: Sequence[Case], told: Callable[[Result], None], jobs: int) -> list[Result]:
        """Play up to `jobs` cases at once; `told` receives each result, in the order of the numbers."""
        return await run(cases, self.play, told, jobs)

    async def look(self) -> None:
        """Start the program once and wait for HELLO. Raises Unseen without a HELLO, OSError as `play`."""
        stand = self._new(frozenset())
        try:
            await self._open(stand, welcomed=True)
        except Unseen as unseen:
            complaint = stand.program.complaint if stand.program is not None else ""
            silent = str(unseen).startswith("HELLO did not come within")
            remedy = f"; {CONNECT}" if silent else ""
            raise Unseen((f"{unseen}: {complaint}" if complaint else str(unseen)) + remedy) from None
        finally:
            if stand.reusable:
                self._idle.append(stand)
            else:
                await self._end(stand)

    async def _measure(self) -> None:
        """Note when this process was held up: the scripted broker's heartbeats were late then."""
        while True:
            due = time.monotonic() + LOOK_S
            await asyncio.sleep(LOOK_S)
            if time.monotonic() > due + LATE_S:
                self._held_up_at = time.monotonic()

    async def play(self, case: Case) -> Result:
        """Play one case. Raises OSError where the program cannot be started at all.

        A failure proves nothing where this process was held up meanwhile (a machine under load): the case is played
        again.
        """
        why = self._missing(case)
        if why is not None:
            return Result(case, "skip", 0.0, why)
        for _ in range(TRIES - 1):
            started = time.monotonic()
            result = await self._try(case)
            if result.state != "fail" or self._held_up_at < started:
                return result
        return await self._try(case)

    def _missing(self, case: Case) -> str | None:
        """Return why a case cannot be played with this program, None where it can."""
        if "curve" in case.needs and not self._curve:
            return "--curve plays it, with programs that take BESTER_KEY"
        if self._sample is not None and "shout" in case.needs:
            return "is about texts, which only shout answers"
        fails = any(step.get("answer") == "fails" for step in case.steps)
        if self._sample is not None and self._sample.bad is None and fails:
            return "--bad JSON says what the program cannot take"
        return None

    async def _try(self, case: Case) -> Result:
        stand = self._idle.pop() if case.start == "welcomed" and self._idle else self._new(case.needs)

        async def script() -> None:
            if case.start != "none" and stand.program is None:
                await self._open(stand, case.start == "welcomed")
            await stand.play(case)

        result: Result | None = None
        try:
            result = await judged(case, script, lambda: stand.program.tail() if stand.program is not None else [])
            return result
        finally:
            unharmed = result is not None and result.state == "pass" and case.start == "welcomed" and stand.reusable
            if unharmed and stand.program is not None and stand.program.status is None:
                self._idle.append(stand)
            else:
                await self._end(stand)

    def _new(self, needs: frozenset[str]) -> Stand:
        number = next(self._numbers)
        folder = Path(self._folder.name)
        environment = {"BESTER_TYPES": self._served, "BESTER_NAME": f"conform-{number}"}
        keys: tuple[bytes, bytes] | None = None
        if "curve" in needs:
            keys = zmq.curve_keypair()
            environment |= self._key_files(folder, number, keys[0])
        tcp = self._tcp or "tcp" in needs or "curve" in needs
        broker = Broker(self._context, "tcp://127.0.0.1:*" if tcp else socket_path(folder, number), keys)

        async def start() -> Program:
            if broker.endpoint.endswith(":*"):  # the program comes before its broker
                await broker.bind()
                await broker.close()
            known: Mapping[str, str] = {**environment, "BESTER_FABRIC": broker.endpoint}
            return await Program.start(self._argv, known, folder / f"{number}.log", lambda pid: self._watch("+", pid))

        return Stand(broker, start, self._within_s, self._served, self._sample)

    @staticmethod
    def _key_files(folder: Path, number: int, server_key: bytes) -> dict[str, str]:
        public, secret = zmq.curve_keypair()
        file = folder / f"{number}.key"
        file.touch(0o600)
        file.write_bytes(secret + b"\n")
        file.with_suffix(".key.pub").write_bytes(public + b"\n")
        return {"BESTER_KEY": str(file), "BESTER_SERVER_KEY": server_key.decode()}

    async def _open(self, stand: Stand, welcomed: bool) -> None:
        await stand.bind({})
        await stand.start({})
        if welcomed:
            await stand.hear({"hear": "HELLO", "within_s": 2 * self._within_s})
            await stand.welcome({"welcome": {}})
            stand.reusable = True

    async def _end(self, stand: Stand) -> None:
        try:
            if stand.program is not None:
                await stand.program.end()
                self._watch("-", stand.program.pid)
        finally:
            await stand.broker.close()


async def conform(
    argv: Sequence[str], cases: Sequence[Case], told: Callable[[Result], None], *,
    within_s: float = 10.0, jobs: int = 8, curve: bool = False, tcp: bool = False,
    watch: Watch = lambda word, pid: None, served: str = TYPE, sample: Sample | None = None,
) -> list[Result]:  # fmt: skip
    """Play cases against a program. Raises OSError where the program cannot be started, Unseen without a HELLO."""
    side = HandlerSide(argv, within_s=within_s, curve=curve, tcp=tcp, watch=watch, served=served, sample=sample)
    async with side:
        try:
            await side.look()
            return await side.play_all(cases, told, jobs)
        except BaseExceptionGroup as group:
            raise group.exceptions[0] from None  # the program cannot be started: all tasks end with the same
