"""A server's broker: the real core, a simulated shell around it, and a store beneath it that survives.

Messages are sent only after the writes before them are on disk. The process may end at any point of a turn, its disk
may be full for a while, and its clocks may jump.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from bester.broker.core.effects import Effects, Link, LookUp, Notice, ShellCall, StoreRead, Verify
from bester.broker.core.router import Router
from bester.broker.core.settings import Settings
from bester.broker.hosts import Hosts
from bester.broker.store.memory import MemoryStore
from bester.broker.store_driver import RETRY_S, StoreDriver
from bester.broker.store_groups import Groups
from bester.broker.store_requests import Bury, Write
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import Heartbeat, Message, Relay, Report, Submit
from tests.world.clock import World
from tests.world.disks import MEANWHILE, SLOW_COMMIT_S, CrashedError, Disk
from tests.world.links import SimLink
from tests.world.network import Messages, Pipe, Weather
from tests.world.processes import Process

TICK_S = 0.5
EPOCH_S = 1_700_000_000.0
"""The wall clock's time at the beginning, in seconds since 1970."""
TRAP_S = 3.0
"""Seconds after which a trap that nothing has fallen into ends the process all the same."""


class Life(NamedTuple):
    """Values that chance gives one life of a broker."""

    epoch: str
    first_token: int
    chance: Callable[[], float]


class SimServer(Process):
    """A server's broker. `accounts` are the users it knows; `password` is everybody's, None: any login is accepted.

    `turn_s` is how long the broker gathers effects before a commit, `tick_s` the time between two looks at its clock;
    None: only on a call of `end_turn` and `tick`. `called` is the name in the story where a server has several brokers.
    """

    def __init__(
        self, world: World, settings: Settings, accounts: frozenset[str] = frozenset(), *,
        password: str | None = "secret", turn_s: float | None = 0.0, tick_s: float | None = TICK_S,
        store: MemoryStore | None = None, wall_offset_s: float = EPOCH_S, boot: str = "boot0", called: str = "",
    ) -> None:  # fmt: skip
        super().__init__(world, called or settings.name)
        self.settings = settings
        self.accounts = accounts
        self.store = store or MemoryStore(epoch=f"{self.name}-disk")
        self.disk = Disk(self, self.store)
        self.links: dict[Link, SimLink] = {}  # links that connected here
        self.pipes: dict[Link, Pipe] = {}  # to those links; a pipe whose other end is gone unnoticed still takes sends
        self.out: dict[str, SimLink] = {}  # to other servers
        self.direct: dict[Link, Callable[[Messages], None]] = {}
        self.processes: dict[Link, int] = {}
        """The process numbers at the other ends, as far as the system knows them."""
        self.stopped: set[int] = set()
        """The processes among them that a signal has stopped."""
        self.on_crash: list[Callable[[float], None]] = []
        self.on_start: list[Callable[[], None]] = []
        self.on_look_up: Callable[[], None] = lambda: None
        self.crashes = 0
        self.handlers_lost = 0
        """Number of handlers that were lost, for any reason."""
        self.forgot = False
        """True when the process died before its full disk had taken a mark that a message was sent."""
        self.refused: set[bytes] = set()  # bodies of messages that were reported as bad, or will be
        self.skew_s = 0.0
        self.wall_offset_s = wall_offset_s
        self.boot = boot
        self.life = 0
        self._boots = 0
        self._password = password
        self._turn_s = turn_s
        self._tick_s = tick_s
        self._entered: dict[tuple[Link, int], bytes] = {}
        self._outgoing: dict[Link, list[Message]] = {}
        self._turning = False
        self._retrying = self._fanning = False
        self._trap: str | None = None
        self._down_s = 0.0
        self._pause_s = 0.0
        self.start()
        if tick_s is not None:
            world.after(world.random.uniform(0, tick_s / 2), self._tick)

    def start(self) -> None:
        """Begin a life of the process, with the store's contents."""
        self.life += 1
        self.up = True
        snapshot = self.disk.open()
        life = self.new_life()
        self.router = Router(
            self.settings, epoch=life.epoch, first_token=life.first_token, now=self.now,
            wall_s=self.wall_s, boot=self.boot, accounts_of=lambda names: self.accounts & set(names), snapshot=snapshot,
            chance=life.chance, process_of=self.processes.get, is_stopped=self.stopped.__contains__,
        )  # fmt: skip
        groups = Groups(5000, 25_000) if self.life % 2 else Groups()  # of a few messages in every other life
        self.keeping = StoreDriver(
            self.router, self.disk, self.carry_out, clock=lambda: self.now, groups=groups, aside=self._aside,
            pause=self.world.rest, stopwatch=lambda: self.disk.spent_s,
        )  # fmt: skip
        if self.life > 1:
            self.world.tell(self.name, "STARTS AGAIN", (self.life, snapshot.queues, snapshot.lanes))
        for call in self.on_start:
            call()
        self.go_on()

    def new_life(self) -> Life:
        """Return the values that chance gives the next life."""
        chance = self.world.random
        return Life(f"e{self.life}", chance.randrange(2**51), chance.random)

    @property
    def now(self) -> float:
        """The server's own monotonic clock."""
        return self.world.now + self.skew_s

    @property
    def wall_s(self) -> float:
        """The wall clock's time, in seconds since 1970."""
        return self.now + self.wall_offset_s

    # --- links ---

    def link_to(self, name: str, door: Callable[[], SimServer | None], there: Weather, back: Weather) -> None:
        """Open the link to another server of the settings' routes."""
        link = Link("server", name.encode())
        self.out[name] = SimLink(
            self.world,
            door,
            LinkClient("server", self.settings.name, {}),
            there,
            back,
            on_messages=lambda messages: self.receive(link, messages),
            on_ready=lambda: self.when_awake(lambda: self.carry_out(self.router.on_server_ready(name, self.now))),
            on_lost=lambda why: self.when_awake(
                lambda: self.carry_out(self.router.on_server_lost(name, why, self.now))
            ),
        )

    def forget(self, link: Link) -> None:
        """Forget a link: the socket at the other end is closed, visibly to the server."""
        del self.links[link]
        del self.pipes[link]

    def hosts_changed(self, hosts: Hosts) -> None:
        """A lookup has ended."""
        self.when_awake(lambda: self.carry_out(self.router.on_hosts_changed(hosts, self.now)))

    # --- faults ---

    def jump(self, seconds: float) -> None:
        """Advance the monotonic clock by `seconds`: the machine was suspended."""
        self.world.tell(self.name, "SLEEPS", f"for {seconds:.1f} s of its own")
        self.skew_s += seconds

    def set_clock(self, by_s: float) -> None:
        """Set the wall clock forward or back by `by_s`. The broker runs then, and can write the new time down: a boot
        after a jump that is not on disk looks as if the machine had been off for so long."""
        if not (self.frozen or self._pause_s or self.store.broken or self.store.away):
            self.world.tell(self.name, "CLOCK IS SET", f"{by_s:+.0f} s")
            self.wall_offset_s += by_s
            self.carry_out(self.router.tick(self.now, self.wall_s))
            self.end_turn(tick=True)

    def lay_trap(self, trap: str, down_s: float) -> None:
        """Crash at that point of the next commit that somebody waits for; with no such commit, soon."""
        if not self.up:
            return
        self._trap, self._down_s = trap, down_s
        life = self.life

        def in_any_case() -> None:
            if self.life == life and self.up and self._trap is not None:
                self.crash(down_s)

        self.world.after(TRAP_S, in_any_case)

    def lay_pause(self, seconds: float) -> None:
        """Stop the process for a while right before the next commit or read that a thread makes."""
        self._pause_s = seconds

    def fall_into(self, trap: str) -> None:
        """Raise CrashedError where this trap is laid."""
        if self._trap == trap:
            self.world.tell(self.name, "FALLS", trap)
            raise CrashedError

    def crash(self, down_s: float, wall_s: float | None = None) -> None:
        """Die, and start again later with nothing but the store; every link has a new identity.

        Until then messages to the server wait in the senders' sockets. With `wall_s` the whole machine crashes, and its
        wall clock is off by so many seconds when the machine has booted.
        """
        if not self.up:
            return
        self.world.tell(self.name, "CRASHES", f"for {down_s:.1f} s")
        self.crashes += 1
        self.forgot = self.forgot or self.loses_promises()
        if wall_s is not None:
            self.wall_offset_s += wall_s
            self._boots += 1
            self.boot = f"boot{self._boots}"
        self.gone()
        for link in list(self.links.values()):
            link.reidentify()
        for out in self.out.values():
            out.crash(down_s + self.world.random.uniform(0.1, 1.0))
        for call in self.on_crash:
            call(down_s)
        self.world.after(down_s, self.start)

    def loses_promises(self) -> bool:
        """Return whether an end of the process now takes writes with it that its reports rest on."""
        return bool(self.store.held_back)

    def gone(self) -> None:
        """Note that the process has ended: its memory is lost."""
        super().gone()
        self._trap = None
        self._pause_s = 0.0
        self._turning = False
        self._retrying = self._fanning = False
        self._outgoing.clear()
        self.direct.clear()

    def end(self) -> None:
        """End in peace: all links are told, and all writes are on disk. `start` begins another life."""
        self.carry_out(self.router.dismiss("the broker ends"))
        self.end_turn(tick=True)
        for out in self.out.values():
            out.leave()
        self.world.rest()
        self.gone()
        for call in self.on_crash:
            call(0.0)

    # --- its shell: in ---

    def receive(self, link: Link, messages: Messages) -> None:
        """A batch came on a link."""
        if self.frozen:
            self.wait_for_it(lambda: self.receive(link, messages))
            return
        telling = self.world.telling
        for message in messages:
            if telling and type(message) is not Heartbeat:
                self.world.tell(self.name, f"<- {self._who(link)}", message)
            if type(message) is Submit:
                self._entered[link, message.token] = message.body
        effects = self.router.receive_all(link, messages, self.now)
        if effects:
            self.carry_out(effects)
            if self._turn_s == 0.0 and link.door != "direct":  # a caller in our own process is in a turn, too
                self.end_turn()

    def _tick(self) -> None:
        assert self._tick_s is not None
        if not self.frozen:
            self.tick()
        self.world.after(self._tick_s, self._tick)

    def tick(self) -> None:
        """Look at the clocks, and settle deferred work. A broker whose store was taken ends, and is started again."""
        if self.disk.fenced:
            self.store.forget()
            self.crash(self.world.random.uniform(0.1, 3.0))
            return
        self._turning = True
        self.carry_out(self.router.tick(self.now, self.wall_s))
        if self.router.has_fan_out and self.keeping.has_room_behind:
            self.carry_out(self.router.fan_out(self.now))
        self.end_turn(tick=True)

    def _who(self, link: Link) -> str:
        connected = self.links.get(link)
        return connected.name if connected is not None else f"{link.door}:{link.key.decode()}"

    def _verify(self, action: Verify, life: int) -> None:
        if self.life != life or not self.up:
            return
        good = self._password is None or (action.password == self._password and action.user in self.accounts)
        reason = None if good else "authentication-failed"
        self.carry_out(self.router.on_verified(action.link, action.session, action.user, reason, self.now))

    # --- its shell: out ---

    def carry_out(self, effects: Effects) -> None:
        """Carry out the core's effects, by the end of this turn."""
        if not effects:
            return
        if effects.writes or effects.reads:
            self.keep(effects.writes, effects.reads)
        for link, messages in effects.messages.items():
            queued = self._outgoing.get(link)
            if queued is None:
                self._outgoing[link] = messages
            else:
                queued += messages
        for call in effects.calls:
            self.do_call(call)
        self._end_turn_soon()

    def keep(self, writes: Sequence[Write], reads: Sequence[StoreRead]) -> None:
        """The core wants these written, and those read."""
        self.refused.update(write.letter.body for write in writes if type(write) is Bury)  # the report waits for it
        self.keeping.add(writes, reads)

    def do_call(self, call: ShellCall) -> None:
        """The core wants something that is neither for the store nor for a link."""
        if isinstance(call, Verify):
            self.world.after(
                self.world.random.uniform(0, 0.2),
                partial(lambda call, life: self.when_awake(lambda: self._verify(call, life)), call, self.life),
            )
        elif isinstance(call, LookUp):
            self.on_look_up()
        elif isinstance(call, Notice):
            self.handlers_lost += call.event in ("lost", "left") and call.fields["role"] == "handler"
            self.world.tell(self.name, f"notes {call.event}", call.fields)

    def _end_turn_soon(self) -> None:
        if self._turning or self._turn_s is None:
            return
        self._turning = True
        life = self.life

        def end() -> None:
            if self.life == life:
                self.when_awake(lambda: self.end_turn() if self.life == life else None)

        self.world.after(self._turn_s, end)

    def end_turn(self, *, tick: bool = False) -> None:
        """Write, read, and only then send; the process may end at any point of the turn. `tick`: run deferred work,
        too."""
        if not self.up:
            return
        self._turning = False
        try:
            if tick:
                self.keeping.tick()
            else:
                self.keeping.run()
            self._retry_soon()
            self._speak()
            if self.keeping.due:  # messages above the bound of a group, and questions
                self._end_turn_soon()
            self._fan_out_soon()
        except CrashedError:
            self.crash(self._down_s)

    def _aside(self, work: Callable[[], None]) -> None:
        """Commit beside the loop, some time from now; the loop learns of it later still. The process may end before,
        between and after."""
        life = self.life

        def written() -> None:
            try:
                work()
            except CrashedError:
                self.crash(self._down_s)

        def alive(call: Callable[[], None]) -> None:
            if self.life == life and self.up:
                call()

        delay_s = self.world.random.uniform(0.0, SLOW_COMMIT_S if self.disk.is_slow else 0.01)
        if self._pause_s:
            self.freeze(self._pause_s)
            delay_s, self._pause_s = delay_s + self._pause_s, 0.0
        self.world.after(delay_s, lambda: alive(written))
        self.world.after(delay_s + 0.001, lambda: alive(lambda: self.when_awake(lambda: alive(self._retry))))

    def _retry_soon(self) -> None:
        if self._retrying or not self.keeping.is_pending or self._tick_s is None:
            return
        self._retrying = True
        life = self.life

        def retry() -> None:
            if self.life == life and self.up:
                self._retrying = False
                self._retry()

        self.world.after(RETRY_S, lambda: self.when_awake(retry))

    def _retry(self) -> None:
        try:
            self.keeping.retry()
        except CrashedError:
            self.crash(self._down_s)
        else:
            self._retry_soon()
            if self.keeping.due:
                self._end_turn_soon()
            self._fan_out_soon()

    def _fan_out_soon(self) -> None:
        """Let the core go on with messages for users who are away, while the store has room for more."""
        if self._fanning or self._tick_s is None or not self.router.may_fan_out(keeps=self.keeping.has_room):
            return
        self._fanning = True
        life = self.life

        def queue() -> None:
            if self.life == life and self.up:
                self._fanning = False
                self.carry_out(self.router.fan_out(self.now, keeps=self.keeping.has_room))
                self._fan_out_soon()

        self.world.after(self._turn_s or 0.0, lambda: self.when_awake(queue))

    def _speak(self) -> None:
        outgoing, self._outgoing = self._outgoing, {}
        for link, messages in outgoing.items():
            if self._trap == MEANWHILE and self.world.random.random() < 0.2:
                self.send(link, messages[: self.world.random.randrange(len(messages))])
                self.fall_into(MEANWHILE)
            self.send(link, messages)

    def send(self, link: Link, messages: list[Message]) -> None:
        """Hand a batch to the socket of a link."""
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
            self._undeliverable(link, *messages)

    def _undeliverable(self, link: Link, message: Message, *rest: Message) -> None:
        life = self.life

        def tell() -> None:
            if self.life == life:
                waiting = rest if link.door == "server" else (*rest, *self._outgoing.pop(link, ()))
                self.carry_out(self.router.on_undeliverable(link, message, self.now, waiting))

        self.world.after(0.0, lambda: self.when_awake(tell))
