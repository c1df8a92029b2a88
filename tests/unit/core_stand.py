"""A stand for the broker's core: one server of a world, whose parties a test plays by hand.

The router's writes are committed before a test reads the messages, as in the broker's shell; `commits = False` holds
writes back until `commit` is called.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, TypeVar

from bester.broker.core.effects import (
    ChangePassword,
    Effects,
    Link,
    LoginDecided,
    LookUp,
    Notice,
    Reconnect,
    Restart,
    ShellCall,
    Spans,
    StoreRead,
    Verify,
)
from bester.broker.core.inspection import Inspection
from bester.broker.core.queue_table import FULL
from bester.broker.core.settings import Limits, Settings
from bester.broker.store.memory import MemoryStore
from bester.broker.store_requests import DeadLetter, Entry, Fetch, FindDeadLetters, Write, is_mailbox, mailbox
from bester.broker.wire.messages import (
    Answer,
    Ask,
    Command,
    Confirm,
    Deliver,
    Emit,
    Heartbeat,
    Hello,
    Malformed,
    Message,
    Open,
    Relay,
    Relayed,
    Reply,
    Report,
    Request,
    Submit,
    Welcome,
)
from tests.world.clock import World
from tests.world.servers import Life, SimServer

START = 1000.0
M = TypeVar("M")


def clients(*names: str, body: bytes = b'"hi"') -> Command:
    return Command("sendClients", list(names), body)


def servers(*names: str, body: bytes = b'"hi"', as_type: str | None = None) -> Command:
    return Command("sendServers", list(names), body, as_type)


def handler(type_: str, body: bytes = b'"hi"') -> Command:
    return Command("sendHandler", [type_], body)


class Stand(SimServer):
    """A server of a world whose parties are played by hand, with all messages sorted by link.

    `inbox` holds the messages that were not read yet. Links are silent and timers stand still but for the methods here.
    With `commits` False, writes wait in `writes` and reads in `reads` until `commit`.
    """

    def __init__(
        self, settings: Settings | None = None, *, accounts: frozenset[str] = frozenset(), now: float = START,
        world: World | None = None, store: MemoryStore | None = None, wall_offset_s: float = 0.0, boot: str = "boot",
        chance: float = 1.0,
    ) -> None:  # fmt: skip
        self.chance = chance
        self.commits = True
        self.epoch = "e"
        self.inbox: dict[Link, list[Message]] = {}
        self.notices: list[Notice] = []
        self.verifies: list[Verify] = []
        self.looked_up: list[frozenset[str]] = []
        self.restarts: list[Restart] = []
        self.reconnects: list[str] = []
        self.spans: list[Spans] = []
        self.changes: list[ChangePassword] = []
        self.decisions: dict[int, bool | None] = {}
        self.alive: dict[Link, None] = {}
        self.writes: list[Write] = []
        self.reads: list[StoreRead] = []
        self._committing = False
        self._keys = count()
        self._tokens = count(1)
        super().__init__(
            world or World(start_s=now), settings or Settings("s1", open_accounts=True), accounts,
            turn_s=None, tick_s=None, store=store or MemoryStore(epoch="store"), wall_offset_s=wall_offset_s, boot=boot,
        )  # fmt: skip

    # --- events ---

    @property
    def now(self) -> float:
        """The server's own monotonic clock. A change of this clock leaves the world's other servers as they are."""
        return self.world.now + self.skew_s

    @now.setter
    def now(self, now: float) -> None:
        self.skew_s = now - self.world.now

    def new_life(self) -> Life:
        """Return fixed values in place of random ones."""
        return Life(self.epoch, 5000, lambda: self.chance)

    def restart(self, epoch: str = "e2") -> None:
        """Kill the broker and start it again: unwritten state and all links are gone."""
        self.writes.clear()
        self.reads.clear()
        self.inbox.clear()
        self.alive.clear()
        self.epoch = epoch
        self.gone()
        self.start()

    def tick(self) -> None:
        """Pass the time to the router."""
        self.take(self.router.tick(self.now, self.wall_s))

    def take(self, effects: Effects) -> None:
        """Carry out the router's effects."""
        self.carry_out(effects)
        if self.commits:
            self.commit()

    def say(self, link: Link, *messages: Message | Malformed) -> None:
        """Let the router receive these messages on a link, in one turn."""
        self.receive(link, messages)
        if self.commits:
            self.commit()

    def commit(self) -> None:
        """Carry out the writes and reads, and deliver the messages that waited for them."""
        self._committing = True
        writes, self.writes = self.writes, []
        reads, self.reads = self.reads, []
        self.keep(writes, reads)
        self.end_turn(tick=True)
        while self.keeping.due or self.router.has_fan_out:  # many questions, or users who are away, take several turns
            self.carry_out(self.router.fan_out(self.now))
            self.end_turn(tick=True)
        self._committing = False

    def keep(self, writes: Sequence[Write], reads: Sequence[StoreRead]) -> None:
        """Put aside writes and reads, unless they are being carried out now."""
        if self._committing:
            super().keep(writes, reads)
        else:
            self.writes += writes
            self.reads += reads

    def do_call(self, call: ShellCall) -> None:
        """Put aside effects that are neither for the store nor for a link."""
        if isinstance(call, Notice):
            self.notices.append(call)
        elif isinstance(call, Verify):
            self.verifies.append(call)
        elif isinstance(call, LookUp):
            self.looked_up.append(call.servers)
        elif isinstance(call, ChangePassword):
            self.changes.append(call)
        elif isinstance(call, LoginDecided):
            assert call.number not in self.decisions, "each login is decided once"
            self.decisions[call.number] = call.good
        elif isinstance(call, Spans):
            self.spans.append(call)
        elif isinstance(call, Reconnect):
            self.reconnects.append(call.server)
        else:
            self.restarts.append(call)

    def send(self, link: Link, messages: list[Message]) -> None:
        """Put aside messages sent on a link."""
        self.inbox.setdefault(link, []).extend(messages)

    def wait(self, seconds: float, step_s: float = 0.5) -> None:
        """Let time pass, with heartbeats of all living parties in every step."""
        end = self.world.now + seconds
        while self.world.now < end - 1e-9:
            self.world.run(min(self.world.now + step_s, end))
            self.beat()

    def beat(self) -> None:
        """Send heartbeats of all living parties, and tick."""
        for link in self.alive:
            self.say(link, Heartbeat())
        self.tick()

    # --- the disk ---

    def kept(self, queue: str) -> list[Entry]:
        """Return the entries of a queue on the disk."""
        found: list[Entry] = self.store.read(Fetch(queue, 0, 10_000, 2**40))
        return found

    def mail(self, user: str) -> list[bytes]:
        """Return the bodies queued for a user."""
        return [entry.body for entry in self.kept(mailbox(user))]

    @property
    def state(self) -> Inspection:
        """Return counts of all state in the router; those that a status has at hand must be the same."""
        seen = self.router.inspect()
        mailboxes = [queue for key, queue in seen.queues.table.items() if is_mailbox(key)]
        status = self.router.status(self.now)
        assert status["queued"] == {
            "messages": sum(queue.messages for queue in seen.queues.table.values()),
            "bytes": sum(queue.size_bytes for queue in seen.queues.table.values()),
            "inflight": sum(queue.inflight for queue in seen.queues.table.values()),
            "mailboxes": len(mailboxes),
            "mailbox_messages": sum(queue.messages for queue in mailboxes),
        }
        bounds = self.settings.bounds
        full = [
            each
            for each in mailboxes
            if each.messages >= FULL * bounds.user_messages or each.size_bytes >= FULL * bounds.user_bytes
        ]
        assert status["full_mailboxes"]["count"] == len(full)
        if not self.reads:
            queues, inflight = seen.queues, {key for key, queue in seen.queues.table.items() if queue.inflight}
            assert bool(queues.mailbox_inflight_bytes) == any(map(is_mailbox, inflight))
            assert bool(queues.lane_inflight_bytes) == any(not is_mailbox(key) for key in inflight)
        return seen

    @property
    def queued(self) -> tuple[int, int]:
        """Return the number of messages in all queues as the router counts them, and of bytes."""
        queues = self.state.queues
        return queues.messages, queues.size_bytes

    def dead(self) -> list[DeadLetter]:
        """Return the dead letters on the disk, the latest first."""
        letters: list[DeadLetter] = self.store.read(FindDeadLetters(None, None, 10_000))
        return letters

    # --- messages sent ---

    def heard(self, link: Link) -> list[Message]:
        """Return and forget the messages sent to a link, heartbeats aside."""
        return [message for message in self.inbox.pop(link, []) if not isinstance(message, Heartbeat)]

    def heard_of(self, link: Link, kind: type[M]) -> list[M]:
        """Return and forget the messages of this kind sent to a link; others stay."""
        found: list[M] = [message for message in self.inbox.get(link, []) if isinstance(message, kind)]
        self.inbox[link] = [message for message in self.inbox.get(link, []) if not isinstance(message, kind)]
        return found

    def one(self, link: Link, kind: type[M]) -> M:
        """Return the only message of this kind that was sent to a link."""
        found = self.heard_of(link, kind)
        assert len(found) == 1, f"{len(found)} of {kind.__name__}: {found}"
        return found[0]

    # --- parties ---

    def link(self, door: str = "ipc") -> Link:
        return Link(door, b"%d" % next(self._keys))

    def join(self, role: str, name: str, options: dict[str, Any] | None = None, *, door: str = "ipc") -> Link:
        link = self.link(door)
        self.say(link, Hello(1, role, name, options or {}))
        assert isinstance(self.inbox[link][0], Welcome), self.inbox[link]
        del self.inbox[link][0]
        self.alive[link] = None
        return link

    def handler(self, *types: str, credit: int = 100, name: str = "h", **options: Any) -> Link:
        return self.join("handler", name, {"types": list(types), "credit": credit, **options})

    def bridge(self, *users: str, name: str = "b", door: str = "ipc") -> Link:
        """Join a bridge whose sessions 1, 2, … are these users'."""
        link = self.join("bridge", name, {"epoch": f"x{next(self._keys)}"}, door=door)
        for session, user in enumerate(users, 1):
            self.say(link, Open(session, user))
        return link

    def server(self, name: str, door: str = "ipc") -> Link:
        return self.join("server", name, door=door)

    # --- acts of the parties ---

    def submit(self, bridge: Link, type_: str, body: bytes = b"1", *, session: int | None = 1, **meta: Any) -> int:
        token = next(self._tokens)
        self.say(bridge, Submit(token, session, type_, body, meta))
        return token

    def request(self, link: Link) -> Request:
        return self.one(link, Request)

    def reply(self, link: Link, token: int, *commands: Command, status: int = 0) -> None:
        self.say(link, Reply(token, status, list(commands)))

    def answer(self, link: Link, *commands: Command) -> Request:
        """Answer the only request of this handler."""
        request = self.request(link)
        self.reply(link, request.token, *commands)
        return request

    def emit(self, link: Link, type_: str, *commands: Command, **meta: Any) -> int:
        token = next(self._tokens)
        self.say(link, Emit(token, type_, list(commands), meta))
        return token

    def relay(self, link: Link, type_: str, body: bytes = b"1", **meta: Any) -> int:
        token = next(self._tokens)
        self.say(link, Relay(token, type_, body, meta))
        return token

    def relayed(self, server: str, token: int, outcome: str) -> None:
        """Let the server to which this broker is linked answer."""
        self.say(Link("server", server.encode()), Relayed(token, outcome))

    def ask(self, link: Link, question: str, argument: Any = None) -> Answer:
        token = next(self._tokens)
        self.say(link, Ask(token, question, argument))
        answer = self.one(link, Answer)
        assert answer.token == token
        return answer

    def deliver(self, bridge: Link, *failed: tuple[int, str]) -> Deliver:
        """Let the bridge confirm its only delivery, with these failures as (t, reason)."""
        delivery = self.one(bridge, Deliver)
        self.say(bridge, Confirm(delivery.serial, [], [[delivery.serial, t, reason] for t, reason in failed]))
        return delivery

    def report(self, bridge: Link, token: int | None = None) -> Report:
        report = self.one(bridge, Report)
        assert token is None or report.token == token
        return report


def limited(**limits: Any) -> Settings:
    """Return settings of a server with these limits."""
    return Settings("s1", open_accounts=True, limits=Limits(**limits))
