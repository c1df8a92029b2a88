"""A broker of the simulation: the real core, around it what its shell would do, and beneath it a store that survives.

What is said waits until what is written is on disk. The process may end at any point of that, its disk may be full for
a while, and its clocks may jump.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any

from bester.broker.core.router import Router
from bester.broker.core.values import Action, Effects, Link, LookUp, Notice, Send, Settings, Verify
from bester.broker.hosts import Hosts
from bester.broker.store.memory import MemoryStore
from bester.broker.store_driver import StoreDriver
from bester.broker.store_requests import PRESSING, Committed, Read, RecordRemote, Write
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Heartbeat, Message, Relay, Report, Submit
from tests.simulation.links import SimLink
from tests.simulation.world import TICK_S, Messages, Pipe, Weather, World

WRITES: frozenset[Any] = frozenset(Write.__args__)
READS: frozenset[Any] = frozenset(Read.__args__)
BEFORE, AFTER, MEANWHILE = "before the commit", "after the commit", "while sending"
TRAPS = (BEFORE, AFTER, MEANWHILE)
SHELL_TICK_S = 0.5
EPOCH_S = 1_700_000_000.0
"""What the wall clock shows at the beginning."""


class CrashedError(Exception):
    """The process has ended in the middle of what it was doing."""


class Disk(MemoryStore):
    """The store of a server: it survives, and tells the story of what is written and read.

    A crash may fall right before or after a commit that somebody waits for.
    """

    def __init__(self, server: SimServer) -> None:
        super().__init__(epoch=f"{server.name}-disk")
        self._server = server

    def commit(self, writes: Sequence[Write]) -> Committed:
        """Write a group; where a trap is laid, the process ends here."""
        server = self._server
        pressing = any(type(write) in PRESSING for write in writes)
        if pressing:
            server.fall_into(BEFORE)
        result = super().commit(writes)
        if writes and server.world.telling:
            server.world.tell(server.name, "WRITES" if result.ok else "CANNOT WRITE", (writes, dict(result.repeated)))
        if not result.ok:
            notes = [write.entry for write in writes if type(write) is RecordRemote]
            server.unnoted.update((entry.meta.get("message"), entry.target) for entry in notes)
        if pressing:
            server.fall_into(AFTER)
        return result

    def read(self, read: Read) -> Any:
        """Read."""
        answer = super().read(read)
        self._server.world.tell(self._server.name, "reads", (read, answer))
        return answer


class SimServer:
    """One server's broker. `accounts` are the users it knows; `turn_s` is how long it gathers before it writes."""

    def __init__(
        self, world: World, settings: Settings, accounts: frozenset[str], *, password: str = "secret",
        turn_s: float = 0.0,
    ) -> None:  # fmt: skip
        self.world = world
        self.settings = settings
        self.name = settings.name
        self.accounts = accounts
        self.store = Disk(self)
        self.links: dict[Link, SimLink] = {}  # of those who connected here
        self.pipes: dict[Link, Pipe] = {}  # to them; one whose other end is gone unnoticed takes what is sent
        self.out: dict[str, SimLink] = {}  # to other servers
        self.direct: dict[Link, Callable[[Messages], None]] = {}
        self.on_crash: list[Callable[[float], None]] = []
        self.on_start: list[Callable[[], None]] = []
        self.on_look_up: Callable[[], None] = lambda: None
        self.up = False
        self.crashes = 0
        self.handlers_lost = 0
        """So many handlers were gone, for whatever reason."""
        self.unnoted: set[tuple[Any, str]] = set()  # what waits elsewhere, and there was no room to remember that
        self.forgot = False
        """Did it die while its full disk had not taken what was to be marked as sent out?"""
        self.refused: set[bytes] = set()  # bodies of messages that were reported as bad
        self._entered: dict[tuple[Link, int], bytes] = {}
        self.skew_s = 0.0
        self._wall_offset_s = EPOCH_S
        self._boot = 0
        self._password = password
        self._turn_s = turn_s
        self._lives = count(1)
        self._thaw_at = 0.0
        self._backlog: list[Callable[[], None]] = []
        self._outgoing: dict[Link, list[Message]] = {}
        self._turning = False
        self._trap: str | None = None
        self._down_s = 0.0
        self._start()
        world.after(world.random.uniform(0, TICK_S), self._tick)

    def _start(self) -> None:
        self.life = next(self._lives)
        self.up = True
        snapshot = self.store.open()
        chance = self.world.random
        self.router = Router(
            self.settings, epoch=f"e{self.life}", first_token=chance.randrange(2**51), now=self.now,
            wall_s=self.wall_s, boot=f"boot{self._boot}", is_account=self.accounts.__contains__, snapshot=snapshot,
            chance=chance.random,
        )  # fmt: skip
        self._keeping = StoreDriver(self.router, self.store, self._do, clock=lambda: self.now)
        if self.life > 1:
            self.world.tell(self.name, "STARTS AGAIN", (self.life, snapshot.queues, snapshot.lanes))
        for call in self.on_start:
            call()
        self._thaw()

    @property
    def now(self) -> float:
        """Its own monotonic clock."""
        return self.world.now + self.skew_s

    @property
    def wall_s(self) -> float:
        """What its wall clock shows."""
        return self.now + self._wall_offset_s

    def link_to(self, other: SimServer, there: Weather, back: Weather) -> None:
        """Open the link to another server of the settings' routes."""
        link, name = Link("server", other.name.encode()), other.name
        self.out[name] = SimLink(
            self.world, other, LinkClient("server", self.name, {}), there, back,
            on_messages=lambda messages: self.receive(link, messages),
            on_ready=lambda: self._when_awake(lambda: self._do(self.router.on_server_ready(name, self.now))),
            on_lost=lambda why: self._when_awake(lambda: self._do(self.router.on_server_lost(name, why, self.now))),
        )  # fmt: skip

    def hosts_changed(self, hosts: Hosts) -> None:
        """A lookup has ended."""
        self._when_awake(lambda: self._do(self.router.on_hosts_changed(hosts, self.now)))

    def forget(self, link: Link) -> None:
        """The socket at the other end is closed, and can be seen to be."""
        del self.links[link]
        del self.pipes[link]

    # --- what befalls it ---

    @property
    def frozen(self) -> bool:
        """Is its process stopped, or not there?"""
        return not self.up or self.world.now < self._thaw_at

    def freeze(self, seconds: float) -> None:
        """Stop the whole process for a while; what comes meanwhile waits in its sockets."""
        if not self.up:
            return
        self.world.tell(self.name, "FREEZES", f"for {seconds:.1f} s")
        self._thaw_at = max(self._thaw_at, self.world.now + seconds)
        self.world.after(seconds, self._thaw)

    def _thaw(self) -> None:
        if self.frozen:
            return
        backlog, self._backlog = self._backlog, []
        for place, call in enumerate(backlog):
            if self._stopped():  # one of them has ended it
                self._backlog += backlog[place:] if self.up else []
                return
            call()

    def _stopped(self) -> bool:
        return self.frozen

    def jump(self, seconds: float) -> None:
        """Its monotonic clock goes on so much later: the machine was suspended."""
        self.world.tell(self.name, "SLEEPS", f"for {seconds:.1f} s of its own")
        self.skew_s += seconds

    def fill(self, seconds: float, *, wholly: bool) -> None:
        """Its disk is full for a while; `wholly`: there is no room even to say what has ended."""
        self.world.tell(self.name, "DISK IS FULL", f"for {seconds:.1f} s{', wholly' if wholly else ''}")
        self.store.full, self.store.broken = True, wholly

        def room() -> None:
            self.world.tell(self.name, "DISK HAS ROOM")
            self.store.full = self.store.broken = False

        self.world.after(seconds, room)

    def lay_trap(self, trap: str, down_s: float) -> None:
        """Crash at that point of the next commit that somebody waits for; without one, soon."""
        if not self.up:
            return
        self._trap, self._down_s = trap, down_s
        life = self.life

        def in_any_case() -> None:
            if self.life == life and self.up and self._trap is not None:
                self.crash(down_s)

        self.world.after(3.0, in_any_case)

    def set_clock(self, by_s: float) -> None:
        """Its wall clock is put forward or back; it runs then, and can write that down: a boot after a jump that no
        disk knows of is as if the machine had been off for so long."""
        if not self.frozen and not self.store.broken:
            self.world.tell(self.name, "CLOCK IS SET", f"{by_s:+.0f} s")
            self._wall_offset_s += by_s
            self._do(self.router.tick(self.now, self.wall_s))
            self._turn_ends(self.life, tick=True)

    def crash(self, down_s: float, wall_s: float | None = None) -> None:
        """Die, and start again later with nothing but the store; every link has a new identity.

        Until then what is sent here waits in the senders' sockets. With `wall_s` it is the whole machine, and that is
        by how much its wall clock is off when it has booted.
        """
        if not self.up:
            return
        self.world.tell(self.name, "CRASHES", f"for {down_s:.1f} s")
        self.up = False
        self.crashes += 1
        self.forgot = self.forgot or bool(self.store._held_back)
        if wall_s is not None:
            self._wall_offset_s += wall_s
            self._boot += 1
        self._trap = None
        self._turning = False
        self._thaw_at = 0.0
        self._backlog.clear()
        self._outgoing.clear()
        self.direct.clear()
        for link in list(self.links.values()):
            link.reidentify()
        for out in self.out.values():
            out.crash(down_s + self.world.random.uniform(0.1, 1.0))
        for call in self.on_crash:
            call(down_s)
        self.world.after(down_s, self._start)

    # --- its shell: in ---

    def receive(self, link: Link, messages: Messages) -> None:
        """A batch came on a link."""
        if self.frozen:
            self._backlog.append(lambda: self.receive(link, messages))
            return
        telling = self.world.telling
        for message in messages:
            if telling and type(message) is not Heartbeat:
                self.world.tell(self.name, f"<- {self._who(link)}", message)
            if type(message) is Submit:
                self._entered[link, message.token] = message.body
        outbox = self.router.receive_all(link, messages, self.now)
        if outbox.messages or outbox.writes or outbox.reads or outbox.others:
            self._take(outbox)
            if not self._turn_s and link.door != "direct":  # who speaks to us from our own process is in a turn, too
                self._turn_ends(self.life)

    def _when_awake(self, call: Callable[[], None]) -> None:
        """An event of its own process: it is dropped where that is dead."""
        if self.up and not self.frozen:
            call()
        elif self.up:
            self._backlog.append(call)

    def _tick(self) -> None:
        if not self.frozen:
            self._turning = True
            self._do(self.router.tick(self.now, self.wall_s))
            self._turn_ends(self.life, tick=True)
        self.world.after(SHELL_TICK_S, self._tick)

    def _who(self, link: Link) -> str:
        connected = self.links.get(link)
        return connected.name if connected is not None else f"{link.door}:{link.key.decode()}"

    def _verify(self, action: Verify, life: int) -> None:
        if self.life != life or not self.up:
            return
        good = action.password == self._password and action.user in self.accounts
        reason = None if good else "authentication-failed"
        self._do(self.router.on_verified(action.link, action.session, action.user, reason, self.now))

    # --- its shell: out ---

    def _take(self, outbox: Effects) -> None:
        if outbox.writes or outbox.reads:
            self._keeping.add(outbox.writes, outbox.reads)
        outgoing = self._outgoing
        for link, messages in outbox.messages.items():
            waiting = outgoing.get(link)
            if waiting is None:
                outgoing[link] = messages
            else:
                waiting += messages
        for other in outbox.others:
            self._do_other(other)
        self._end_turn_soon()

    def _do(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._outgoing.setdefault(action.link, []).append(action.message)
            elif type(action) in WRITES:
                self._keeping.add([action], [])  # type: ignore[list-item]  # it is one of them
            elif type(action) in READS:
                self._keeping.add([], [action])  # type: ignore[list-item]  # as above
            else:
                self._do_other(action)
        if actions:
            self._end_turn_soon()

    def _do_other(self, action: Any) -> None:
        if isinstance(action, Verify):
            self.world.after(
                self.world.random.uniform(0, 0.2),
                partial(lambda action, life: self._when_awake(lambda: self._verify(action, life)), action, self.life),
            )
        elif isinstance(action, LookUp):
            self.on_look_up()
        elif isinstance(action, Notice):
            self.handlers_lost += action.event in ("lost", "left") and action.fields["role"] == "handler"
            self.world.tell(self.name, f"notes {action.event}", action.fields)

    def _end_turn_soon(self) -> None:
        if not self._turning:
            self._turning = True
            life = self.life

            def end() -> None:
                if self.life == life:
                    self._when_awake(partial(self._turn_ends, life))

            self.world.after(self._turn_s, end)

    def _turn_ends(self, life: int, *, tick: bool = False) -> None:
        """Write, read, and only then speak; the process may end at any point of it."""
        if not self.up or self.life != life:
            return
        self._turning = False
        try:
            if tick:
                self._keeping.tick()
            else:
                self._keeping.run()
            self._speak()
        except CrashedError:
            self.crash(self._down_s)

    def fall_into(self, trap: str) -> None:
        """Raise CrashedError where this trap is laid."""
        if self._trap == trap:
            self.world.tell(self.name, "FALLS", trap)
            raise CrashedError

    def _speak(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for link, messages in outgoing.items():
            if self._trap == MEANWHILE and self.world.random.random() < 0.2:
                self._send(link, messages[: self.world.random.randrange(len(messages))])
                self.fall_into(MEANWHILE)
            self._send(link, messages)

    def _send(self, link: Link, messages: list[Message]) -> None:
        telling = self.world.telling
        for message in messages:
            if telling and type(message) is not Heartbeat:
                self.world.tell(self.name, f"-> {self._who(link)}", message)
            if type(message) is Report and message.status:
                self.refused.add(self._entered.get((link, message.token), b""))
        if link.door == "direct":
            if link in self.direct:
                self.direct[link](messages)
        elif link.door == "server":
            taken = self.out[link.key.decode()].send_all(messages)
            for message in messages[taken:]:
                assert isinstance(message, Relay)
                self._undeliverable(link, message)
        elif link in self.links:
            self.pipes[link].send(messages)
        elif messages:
            self._undeliverable(link, messages[0])

    def _undeliverable(self, link: Link, message: Message) -> None:
        life = self.life

        def tell() -> None:
            if self.life == life:
                self._do(self.router.on_undeliverable(link, message, self.now))

        self.world.after(0.0, lambda: self._when_awake(tell))
