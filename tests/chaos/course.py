"""A chaos run from its first process to its verdict.

Two servers, two sending and two receiving client processes, and two servers of the native protocol; users who listen
from here, and a name server that the servers ask; faults for a while; then all faults end, and the ledger is balanced.
No process outlives the run, nor does its directory.
"""

from __future__ import annotations

import asyncio
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random

from tests.chaos import calm
from tests.chaos.breakages import named
from tests.chaos.cables import Cable, carried
from tests.chaos.cluster import BROKERS, ServerCluster
from tests.chaos.faults import CABLE_FROZEN_S, Target, Weather
from tests.chaos.happened import CLUSTER_BROKERS, DATABASE, Happened
from tests.chaos.journal import Closed, Journal, Journals, now_s
from tests.chaos.ledger import Ledger, Verdict
from tests.chaos.letters import dead_letters
from tests.chaos.machine import Machine, may_mount
from tests.chaos.names import name_server
from tests.chaos.natives import Natives
from tests.chaos.processes import LOOK_S, Part, Parts, python
from tests.chaos.receiver import Receiver
from tests.chaos.remains import crashes, waiting
from tests.chaos.servers import Program, Server, make_servers
from tests.chaos.silence import Silences, watch
from tests.chaos.surroundings import Surroundings
from tests.chaos.traffic import FLOODER, NATIVES, SENDERS, SERVERS

START_S = 60.0
"""For everything to be there at first; a good machine takes three seconds."""
DRAIN_S = 90.0
"""Seconds after the faults within which all promised messages arrive. A later outcome for a message that a server does
not know, and the messages behind that one, are refused for the first 60 s of the server's life: the message may come
again."""
SETTLE_S = 2.0
"""Seconds after the last arrival, in which a second copy would still come."""
LISTENING = 1
"""Users of each server that listen without acknowledgements, from a process that suffers no faults."""
NOT_ROOT = "names do not come and go, and no machine boots: that takes root, and unshare (util-linux)"


class StuckError(Exception):
    """The run could not be made; the text names the missing event."""


@dataclass(frozen=True)
class Result:
    """The result of a run. `counts`: events beside kills and freezes, and how often; `story`: the faults, by the clock
    of the journals. `compared`: messages of the calm time at the end, by which the servers' figures were compared with
    the ledger; `differing`: the differences (see `calm`)."""

    seed: int
    verdict: Verdict
    kills: int
    freezes: int
    counts: Counter[str]
    drained_s: float
    story: list[tuple[float, str]]
    ledger: Ledger
    silences: Silences
    compared: int
    differing: list[str]

    @property
    def line(self) -> str:
        verdict = self.verdict
        what = f"{len(verdict.lost)} of {verdict.promises} lost, {verdict.marked} redelivered and marked"
        what += f", {verdict.poison} poison among the innocent"
        broken = f"{len(verdict.wrong)} times another rule was broken, " if verdict.wrong else ""
        return f"{what}, {broken}{self.kills} kills, seed {self.seed}"


class Clients:
    """The client processes of one server: one that sends, one in which users receive."""

    def __init__(self, parts: Parts, directory: Path, server: Server, seed: int, first_life: int) -> None:
        self.sending = parts.part(f"sender-{server.name}", directory)
        self.receiving = parts.part(f"receiver-{server.name}", directory)
        self.flooding = parts.part(f"flooder-{server.name}", directory)
        self.sending_journal = ""
        self._journals = directory
        self._server = server
        self._seed = seed
        self._first_life = first_life

    def start_sending(self) -> None:
        """Begin another life of the sender. Its number is unique over both servers."""
        life = self._first_life + 4 * self.sending.lives
        self.sending_journal = f"{self.sending.name}-{life}"
        journal = self._journals / f"{self.sending_journal}.journal"
        name, address = self._server.name, self._server.address
        arguments = (name, address, SENDERS[name], str(journal), str(life), str(self._seed))
        self.sending.start(*python("tests.chaos.sender", *arguments))

    def start_flooding(self) -> None:
        """Begin the flood beside the others."""
        self.flooding.start(*python("tests.chaos.flooder", self._server.address, FLOODER, str(self._seed)))

    def start_receiving(self, manner: str = "restless") -> None:
        life = self.receiving.lives
        journal = self._journals / f"{self.receiving.name}-{life}.journal"
        users = list(SERVERS[self._server.name][LISTENING:])
        if manner == "steady":  # reports and outcomes that the senders had left before they came
            users.insert(0, SENDERS[self._server.name])
        arguments = (self._server.receiving, str(journal), f"{self._seed}/{life}", manner, *users)
        self.receiving.start(*python("tests.chaos.receiver", *arguments))


class Course:
    """The run itself; `say` is called with the progress. `breakage` names the part of the servers to break, if any."""

    def __init__(
        self, seed: int, duration_s: float, directory: Path, parts: Parts, say: Callable[[str], None], breakage: str,
        flood: bool = False, layout: str = "usual",
    ) -> None:  # fmt: skip
        self._seed = seed
        self._duration_s = duration_s
        self._say = say
        self._flood = flood
        self._happened = Happened(time.time() - now_s())
        self._ledger = Ledger(self._happened)
        self._journals = Journals(directory)
        self._directory = directory
        chance = Random()
        network = f"127.{chance.randrange(64, 250)}.{chance.randrange(1, 250)}"
        self._resolver = f"{network}.53"
        self._natives = Natives(parts, directory, network, seed, first_life=len(SERVERS) + 1)
        machines = {
            name: Machine(name, directory, self._resolver, self._happened, Random(f"{seed}/machine/{name}"))
            for name in SERVERS
        }
        more = {"BESTER_TEST_IMPORTS": named(breakage)} if breakage else {}
        self.cluster: ServerCluster | None = None

        def make_cluster(natives: str) -> Server:
            peer_data = directory / "s1" / "data"
            self.cluster = ServerCluster(parts, directory, machines["s2"], more, natives, peer_data, seed)
            return self.cluster.server

        self._servers = make_servers(
            parts, directory, machines, self._natives.all, more, make_cluster if layout == "cluster" else None
        )
        self._clients = [
            Clients(parts, directory, server, seed, first) for first, server in enumerate(self._servers, start=1)
        ]
        self._silences = Silences()
        self._differing: list[str] = []
        self._compared = 0
        self._weather = Weather(self._targets(), self._happened, Random(f"{seed}/weather"), self._silences)

    def _targets(self) -> list[Target]:
        s1, s2 = self._servers
        (up,), (*others, quick, slow) = s1.programs, s2.programs
        all_of_s2 = (*others, quick, slow)
        brokers, bridges = others[: len(others) // 2], others[len(others) // 2 :]
        moves = [CLUSTER_BROKERS] if self.cluster is not None else []
        targets = [
            _whole("s1", 4, [s1], up),
            *(_part(f"{broker.part.name} of s2", 4, ["s2", *moves], broker) for broker in brokers),
            *(_part(f"{bridge.part.name} of s2", 4, [], bridge) for bridge in bridges),
            _whole("all of s2", 1, [s2], *all_of_s2, more=moves),
            _part("quick handlers of s2", 1, ["s2"], quick),
            _part("slow handlers of s2", 1, ["s2"], slow),
            _whole("both servers", 1, [s1, s2], up, *all_of_s2, more=moves),
        ]
        targets += [
            Target(f"{program.part.name}", [program.part], program.start, weight, [name], workers=True)
            for program, weight, name in ((up, 4, "s1"), (quick, 2, "s2"), (slow, 2, "s2"))
        ]
        for clients in self._clients:
            targets.append(Target(clients.sending.name, [clients.sending], clients.start_sending, 2))
            targets.append(Target(clients.receiving.name, [clients.receiving], clients.start_receiving, 2))
        if self.cluster is not None:
            database = self.cluster.database_part
            targets.append(Target("database of s2", [database], database.back, 3, [DATABASE]))
            targets += _cables(self.cluster)
        for native in self._natives.all:
            back = partial(self._natives.come_back, native)
            targets.append(Target(native.name, [native.part], back, 3, [native.name]))
        return targets

    async def run(self) -> Result:
        """Play the run; the result has no dead letters yet. Raises StuckError where the run cannot be played."""
        async with AsyncExitStack() as stack:
            names = await stack.enter_async_context(name_server(self._resolver)) if may_mount() else None
            if names is None:
                self._say(NOT_ROOT)
            self._natives.know(self._servers, names)
            for native in self._natives.all:
                self._natives.start(native, restless=False)
            if self.cluster is not None:
                await stack.enter_async_context(carried(self.cluster.all_cables))
            for server in self._servers:
                for program in server.programs:
                    program.start()
            parts = [program.part for server in self._servers for program in server.programs]
            parts += [native.part for native in self._natives.all]
            await _until(lambda: all(part.ready for part in parts), START_S, lambda: _asleep(parts))
            weather = self._weather
            machines = [server.machine for server in self._servers]
            around = Surroundings(machines, self._natives.all, names, Random(f"{self._seed}/around"), weather.tell)
            listeners = [self._listener(server, user, stack) for server in self._servers for user in _listening(server)]
            drained_s = await self._listened_to(listeners, around)
        self._read()
        return Result(
            self._seed, self._ledger.verdict(), weather.kills, weather.freezes, weather.counts + around.counts,
            drained_s, sorted(weather.story), self._ledger, self._silences, self._compared, self._differing,
        )  # fmt: skip

    async def _listened_to(self, listeners: list[Receiver], around: Surroundings) -> float:
        """Rage and drain, while these users listen; return the seconds that the draining took."""
        programs = [program.part for server in self._servers for program in server.programs]
        try:
            async with asyncio.TaskGroup() as group:
                for listener in listeners:
                    group.create_task(listener.run())
                cables = self.cluster.all_cables if self.cluster is not None else []
                watching = [group.create_task(watch(self._silences, programs, cables))]
                if self.cluster is not None:
                    watching.append(group.create_task(self.cluster.keep_up(self._weather.is_hit, self._happened)))
                await self._rage(around)
                drained_s = await self._drain(listeners)
                for task in watching:
                    task.cancel()
                for listener in listeners:
                    listener.enough.set()
        except* StuckError as stuck:
            complaints = [str(error) for error in stuck.exceptions]
        else:
            return drained_s
        raise StuckError("; ".join(complaints))

    def _listener(self, server: Server, user: str, stack: AsyncExitStack) -> Receiver:
        journal = stack.enter_context(Journal(self._directory / f"listener-{user}.journal"))
        return Receiver(user, server.receiving, journal, Random(f"{self._seed}/{user}"), acks=False)

    async def _rage(self, around: Surroundings) -> None:
        for clients in self._clients:
            clients.start_sending()
            clients.start_receiving()
        await _until(self._flows, START_S, lambda: "not every server has its first messages reported good")
        self._say(f"messages flow; {self._duration_s:.0f} s of faults begin (seed {self._seed})")
        self._natives.turn_restless()
        if self._flood:
            for clients in self._clients:
                clients.start_flooding()
        async with asyncio.TaskGroup() as group:
            group.create_task(self._weather.rage(self._duration_s))
            group.create_task(around.change(self._duration_s))

    async def _drain(self, listeners: list[Receiver]) -> float:
        """Wait until the senders have their reports and the receivers their messages; return the seconds that took."""
        began_s = now_s()
        self._say("the faults are over; waiting for what is on its way")
        for listener in listeners:
            listener.steady.set()
        self._natives.settle(self._happened)
        for clients in self._clients:
            if self._flood:
                clients.flooding.ask_to_end()
            clients.sending.ask_to_end()
            clients.receiving.ask_to_end()
        for clients in self._clients:
            await _until(lambda: not clients.receiving.alive, DRAIN_S, lambda: "a receiver does not end")  # noqa: B023 (awaited at once)
            clients.start_receiving("steady")
        senders = [clients.sending for clients in self._clients]
        await _until(lambda: not any(part.alive for part in senders) and self._paid(), DRAIN_S, None)
        for clients in self._clients:
            if clients.sending.alive:  # the sender waits for reports that should have come
                self._ledger.take(clients.sending_journal, Closed(now_s()))
        drained_s = now_s() - began_s
        await asyncio.sleep(SETTLE_S)
        await self._calm()
        return drained_s

    async def _calm(self) -> None:
        """Let the senders live once more without faults, and compare the servers' figures with the ledger."""
        before = [await calm.counts_of(server.configs) for server in self._servers]
        for clients in self._clients:
            clients.start_sending()
        await _until(self._sends, DRAIN_S, None)  # a busy machine takes longer to start them than they are to send
        await asyncio.sleep(calm.CALM_S)
        for clients in self._clients:
            clients.sending.ask_to_end()
        senders = [clients.sending for clients in self._clients]
        await _until(lambda: not any(part.alive for part in senders) and self._paid(), DRAIN_S, None)
        for server, counts, clients in zip(self._servers, before, self._clients, strict=True):
            sent = [each for each in self._ledger.entries.values() if each.journal == clients.sending_journal]
            self._compared += len(sent)
            self._differing += await calm.settled(server, counts, sent)

    def _read(self) -> None:
        for journal, record in self._journals.news():
            self._ledger.take(journal, record)

    def _sends(self) -> bool:
        """Return whether each sender has sent a message."""
        self._read()
        journals = {clients.sending_journal for clients in self._clients}
        return journals <= {entry.journal for entry in self._ledger.entries.values()}

    def _flows(self) -> bool:
        """Return whether each sender has a good report, and each server knows that the reporting native server
        reports."""
        self._read()
        good = [entry for entry in self._ledger.entries.values() if any(told.good for told in entry.told)]
        senders = {entry.journal for entry in good}
        reached = {entry.journal for entry in good if any(NATIVES.get(target) for target in entry.sent.targets)}
        journals = {clients.sending_journal for clients in self._clients}
        return senders >= journals and reached >= journals

    def _paid(self) -> bool:
        self._read()
        return not self._ledger.owed() and not self._ledger.untold()


def _listening(server: Server) -> tuple[str, ...]:
    return SERVERS[server.name][:LISTENING]


def _part(name: str, weight: int, where: list[str], *programs: Program) -> Target:
    def start() -> None:
        for program in programs:
            program.start()

    return Target(name, [program.part for program in programs], start, weight, where)


def _whole(name: str, weight: int, servers: list[Server], *programs: Program, more: Sequence[str] = ()) -> Target:
    """All that runs of some servers: their machines, so to speak. `more` are other places that are hit."""
    target = _part(name, weight, [*(server.name for server in servers), *more], *programs)
    return replace(target, machines=[server.machine for server in servers])


def _cables(cluster: ServerCluster) -> Iterator[Target]:
    """Each cable of a cluster, and all cables of each broker."""
    hurts = {"fabric": [CLUSTER_BROKERS], "handlers": [cluster.server.name], "database": [DATABASE, CLUSTER_BROKERS]}
    weights = {"fabric": 1, "handlers": 1, "database": 2}
    for kind, cables in cluster.cables.items():
        for cable in cables:
            yield Target(cable.name, [cable], cable.back, weights[kind], hurts[kind], frozen_s=CABLE_FROZEN_S)
    everything = [where for each in hurts.values() for where in each]
    for broker in BROKERS:
        of_one = [cable for cables in cluster.cables.values() for cable in cables if broker in cable.name.split()]

        def back(of_one: Sequence[Cable] = of_one) -> None:
            for cable in of_one:
                cable.back()

        yield Target(f"all cables of {broker}", of_one, back, 1, everything, frozen_s=CABLE_FROZEN_S)


def _asleep(parts: list[Part]) -> str:
    return "; ".join(f"{part.name} is not ready: {part.log()[-500:]}" for part in parts if not part.ready)


async def _until(true: Callable[[], bool], deadline_s: float, complaint: Callable[[], str] | None) -> None:
    """Poll until `true` returns true. After the deadline: raise StuckError with the complaint, or return without
    one."""
    end_s = now_s() + deadline_s
    while not true():
        if now_s() > end_s:
            if complaint is None:
                return
            raise StuckError(complaint())
        await asyncio.sleep(LOOK_S * 5)


def play(
    seed: int, duration_s: float, say: Callable[[str], None], keep: Path | None = None, breakage: str = "", *,
    flood: bool = False, layout: str = "usual",
) -> Result:  # fmt: skip
    """Make a run with so many seconds of faults. `keep`: a directory for its files, which stays. `breakage`: a part of
    the servers to break (see `breakages`), to test that the run finds the fault. `flood`: a user of each server floods
    it meanwhile. `layout` is one of LAYOUTS."""
    with ExitStack() as stack:
        if keep is None:
            keep = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="b-", dir="/tmp")))
        with Parts() as parts:
            course = Course(seed, duration_s, keep, parts, say, breakage, flood, layout)
            cluster = course.cluster
            if cluster is not None:
                stack.callback(cluster.close)
            result = asyncio.run(course.run())
        names = [name for name in SERVERS if cluster is None or name != cluster.server.name]
        letters = [letter for name in names for letter in dead_letters(keep / name, name)]
        letters += cluster.dead_letters() if cluster is not None else []
        verdict = result.ledger.verdict(letters)
        verdict.wrong.extend(wrong for name in names for wrong in waiting(keep / name, name))
        verdict.wrong.extend(cluster.waiting() if cluster is not None else [])
        verdict.wrong.extend(crashes(keep))
        verdict.wrong.extend(result.silences.wrong)
        verdict.wrong.extend(result.differing)
        return replace(result, verdict=verdict)
