"""One chaos run from its first process to its verdict.

Two servers, two sending and two receiving client processes, and users who listen from here; faults for a while; then
everybody is well again, and the ledger is balanced. Nothing that it started outlives it, nor does its directory.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from random import Random

from tests.chaos.faults import Target, Weather
from tests.chaos.journal import Closed, Journal, Journals, now_s
from tests.chaos.ledger import Ledger, Verdict
from tests.chaos.processes import LOOK_S, Part, Parts, python
from tests.chaos.receiver import Receiver
from tests.chaos.remains import crashes, waiting
from tests.chaos.servers import Program, Server, make_servers
from tests.chaos.traffic import SENDERS, SERVERS

START_S = 60.0
"""For everything to be there at first; a good machine takes three seconds."""
DRAIN_S = 60.0
"""After the faults all that was promised arrives within so long."""
SETTLE_S = 2.0
"""Then nothing more comes; what would come twice is given a moment for it."""
LISTENING = 1
"""So many users of each server listen without acknowledgements, from a process that nothing happens to."""


class StuckError(Exception):
    """The run could not be made; the text says what did not happen."""


@dataclass(frozen=True)
class Result:
    """What a run came to. `story`: the faults, by the clock of the journals."""

    seed: int
    verdict: Verdict
    kills: int
    freezes: int
    drained_s: float
    story: list[tuple[float, str]]
    ledger: Ledger

    @property
    def line(self) -> str:
        verdict = self.verdict
        what = f"{len(verdict.lost)} of {verdict.promises} lost, {verdict.marked} redelivered and marked"
        broken = f"{len(verdict.wrong)} times another rule was broken, " if verdict.wrong else ""
        return f"{what}, {broken}{self.kills} kills, seed {self.seed}"


class Clients:
    """The client processes of one server: one that sends, one in which users receive."""

    def __init__(self, parts: Parts, directory: Path, server: Server, seed: int, first_life: int) -> None:
        self.sending = parts.part(f"sender-{server.name}", directory)
        self.receiving = parts.part(f"receiver-{server.name}", directory)
        self.sending_journal = ""
        self._journals = directory
        self._server = server
        self._seed = seed
        self._first_life = first_life

    def start_sending(self) -> None:
        """Begin another life of the sender. Its number is no other life's, on either server."""
        life = self._first_life + 2 * self.sending.lives
        self.sending_journal = f"{self.sending.name}-{life}"
        journal = self._journals / f"{self.sending_journal}.journal"
        name, address = self._server.name, self._server.address
        arguments = (name, address, SENDERS[name], str(journal), str(life), str(self._seed))
        self.sending.start(*python("tests.chaos.sender", *arguments))

    def start_receiving(self, manner: str = "restless") -> None:
        life = self.receiving.lives
        journal = self._journals / f"{self.receiving.name}-{life}.journal"
        users = list(SERVERS[self._server.name][LISTENING:])
        if manner == "steady":  # what the senders were to be told, and had gone before
            users.insert(0, SENDERS[self._server.name])
        arguments = (self._server.address, str(journal), f"{self._seed}/{life}", manner, *users)
        self.receiving.start(*python("tests.chaos.receiver", *arguments))


class Course:
    """The run itself; `say` is told how far it is."""

    def __init__(self, seed: int, duration_s: float, directory: Path, parts: Parts, say: Callable[[str], None]) -> None:
        self._seed = seed
        self._duration_s = duration_s
        self._say = say
        self._ledger = Ledger()
        self._journals = Journals(directory)
        self._directory = directory
        self._servers = make_servers(parts, directory)
        self._clients = [
            Clients(parts, directory, server, seed, first) for first, server in enumerate(self._servers, start=1)
        ]
        self._weather = Weather(self._targets(), Random(f"{seed}/weather"))

    def _targets(self) -> list[Target]:
        (up,), (broker, bridge, quick, slow) = (server.programs for server in self._servers)
        all_of_s2 = (broker, bridge, quick, slow)
        targets = [
            _whole("s1", 4, up),
            _whole("broker of s2", 4, broker),
            _whole("bridge of s2", 4, bridge),
            _whole("all of s2", 1, *all_of_s2),
            _whole("quick handlers of s2", 1, quick),
            _whole("slow handlers of s2", 1, slow),
            _whole("both servers", 1, up, *all_of_s2),
        ]
        targets += [
            Target(f"{program.part.name}", [program.part], program.start, weight, workers=True)
            for program, weight in ((up, 4), (quick, 2), (slow, 2))
        ]
        for clients in self._clients:
            targets.append(Target(clients.sending.name, [clients.sending], clients.start_sending, 2))
            targets.append(Target(clients.receiving.name, [clients.receiving], clients.start_receiving, 2))
        return targets

    async def run(self) -> Result:
        """Play it. Raises StuckError where it cannot be played."""
        for server in self._servers:
            for program in server.programs:
                program.start()
        programs = [program.part for server in self._servers for program in server.programs]
        await _until(lambda: all(part.ready for part in programs), START_S, lambda: _asleep(programs))
        with ExitStack() as stack:
            listeners = [self._listener(server, user, stack) for server in self._servers for user in _listening(server)]
            drained_s = await self._listened_to(listeners)
        self._read()
        weather = self._weather
        verdict = self._ledger.verdict()
        return Result(self._seed, verdict, weather.kills, weather.freezes, drained_s, weather.story, self._ledger)

    async def _listened_to(self, listeners: list[Receiver]) -> float:
        """Rage and drain, while these listen; say how long the draining took."""
        try:
            async with asyncio.TaskGroup() as group:
                for listener in listeners:
                    group.create_task(listener.run())
                await self._rage()
                drained_s = await self._drain(listeners)
                for listener in listeners:
                    listener.enough.set()
        except* StuckError as stuck:
            complaints = [str(error) for error in stuck.exceptions]
        else:
            return drained_s
        raise StuckError("; ".join(complaints))

    def _listener(self, server: Server, user: str, stack: ExitStack) -> Receiver:
        journal = stack.enter_context(Journal(self._directory / f"listener-{user}.journal"))
        return Receiver(user, server.address, journal, Random(f"{self._seed}/{user}"), acks=False)

    async def _rage(self) -> None:
        for clients in self._clients:
            clients.start_sending()
            clients.start_receiving()
        await _until(self._flows, START_S, lambda: "no message was reported good")
        self._say(f"messages flow; {self._duration_s:.0f} s of faults begin (seed {self._seed})")
        await self._weather.rage(self._duration_s)

    async def _drain(self, listeners: list[Receiver]) -> float:
        """Wait until the senders have their reports and the receivers their messages; say how long that took."""
        began_s = now_s()
        self._say("the faults are over; waiting for what is on its way")
        for listener in listeners:
            listener.steady.set()
        for clients in self._clients:
            clients.sending.ask_to_end()
            clients.receiving.ask_to_end()
        for clients in self._clients:
            await _until(lambda: not clients.receiving.alive, DRAIN_S, lambda: "a receiver does not end")  # noqa: B023 (awaited at once)
            clients.start_receiving("steady")
        senders = [clients.sending for clients in self._clients]
        await _until(lambda: not any(part.alive for part in senders) and self._paid(), DRAIN_S, None)
        for clients in self._clients:
            if clients.sending.alive:  # it waits for reports that should have come
                self._ledger.take(clients.sending_journal, Closed(now_s()))
        drained_s = now_s() - began_s
        await asyncio.sleep(SETTLE_S)
        return drained_s

    def _read(self) -> None:
        for journal, record in self._journals.news():
            self._ledger.take(journal, record)

    def _flows(self) -> bool:
        self._read()
        senders = {entry.journal for entry in self._ledger.entries.values() if any(told.good for told in entry.told)}
        return len(senders) == len(self._clients)

    def _paid(self) -> bool:
        self._read()
        return not self._ledger.owed() and not self._ledger.untold()


def _listening(server: Server) -> tuple[str, ...]:
    return SERVERS[server.name][:LISTENING]


def _whole(name: str, weight: int, *programs: Program) -> Target:
    def start() -> None:
        for program in programs:
            program.start()

    return Target(name, [program.part for program in programs], start, weight)


def _asleep(parts: list[Part]) -> str:
    return "; ".join(f"{part.name} is not ready: {part.log()[-500:]}" for part in parts if not part.ready)


async def _until(true: Callable[[], bool], deadline_s: float, complaint: Callable[[], str] | None) -> None:
    """Look until it is true. After the deadline: StuckError with the complaint, or nothing where there is none."""
    end_s = now_s() + deadline_s
    while not true():
        if now_s() > end_s:
            if complaint is None:
                return
            raise StuckError(complaint())
        await asyncio.sleep(LOOK_S * 5)


def play(seed: int, duration_s: float, say: Callable[[str], None], keep: Path | None = None) -> Result:
    """Make a run with so many seconds of faults. `keep`: a directory for its files, which stays."""
    with ExitStack() as stack:
        if keep is None:
            keep = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b-", dir="/tmp")))
        with Parts() as parts:
            result = asyncio.run(Course(seed, duration_s, keep, parts, say).run())
        result.verdict.wrong.extend(wrong for name in SERVERS for wrong in waiting(keep / name, name))
        result.verdict.wrong.extend(crashes(keep))
        return result
