"""Shares of a handler among the users of several bridges: real bridges and a real broker in virtual time.

A handler takes less than the bridges could send, so that messages wait in the broker. A user's share of the handler is
that of any other user, by whatever bridges and connections; handlers' replies wait for one batch of each bridge.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace
from random import Random

from bester.bridge.credit import hello_options
from bester.bridge.frames import frame
from bester.broker.core.effects import Effects, Link, Verify
from bester.broker.core.fair_queue import QUANTUM as ITEMS_IN_A_ROW
from bester.broker.core.router import Router
from bester.broker.core.settings import Limits, Settings
from bester.broker.store_requests import Committed
from bester.broker.wire.messages import VERSION, Command, Hello, Message, Reply, Request, Submit
from tests.simulation.fair_rules import (
    GUEST,
    QUANTUM,
    STEP_TURNS,
    TURN_S,
    TURN_UNITS,
    WINDOW_TURNS,
    Stream,
    Waits,
    check_shares,
)
from tests.unit.bridge_stand import ListConnection, Scene
from tests.world.clock import BrokenRuleError

HANDLED = 6
"""Messages that the handler answers in one turn."""
CREDIT = 16
"""Messages that the handler holds."""
MAX_WAITING = 600
"""Messages of the type that may wait in the broker: enough that each user always has some there."""
BROKER_READS, BUSY_READS = 40, 10
"""Messages after which a turn of the broker ends; what one ZeroMQ message carries is taken together. The first is
enough to keep the handler busy, the second is not."""
WARM_TURNS, TURNS = 60, WINDOW_TURNS + 2 * STEP_TURNS
"""Turns until everybody has messages waiting in the broker, and turns of which the shares are compared."""
BRIDGE_TICK, BROKER_TICK = 25, 5
"""Turns between two calls of `tick`: half a second, and a tenth."""
MAX_BATCH = 2 * (TURN_UNITS + QUANTUM)
"""Submits of one bridge in one turn: a budget for frames as they come, and one for frames that have waited."""


class BridgeProcess:
    """A bridge, its link to the broker, and the connections of its users."""

    def __init__(self, name: str, *, knows_credit: bool) -> None:
        self.scene = Scene(turn_units=TURN_UNITS, turn_quantum=QUANTUM, max_connections=1_000_000)
        self.scene.sent.clear()
        self.link = Link("ipc", f"0:{name}".encode())
        credit = hello_options(self.scene.limits) if knows_credit else {}
        self.hello = Hello(VERSION, "bridge", name, {"epoch": name, **credit})
        self.streams: dict[ListConnection, Stream] = {}

    def turn(self, number: int) -> list[Message]:
        """Read from every connection, and return what goes to the broker."""
        for connection, stream in self.streams.items():
            if connection.reading:
                self.scene.bridge.on_bytes(connection, stream.read())
            connection.written = b""
        self.scene.now += TURN_S
        if number % BRIDGE_TICK == 0:
            self.scene.bridge.tick()
        self.scene.one_turn()
        sent, self.scene.sent = self.scene.sent, []
        return sent


class Crowd:
    """Users of one to three bridges, some by two of them, who always have something to say; a guest who asks now and
    then; and one handler. `given` counts the requests of each user.

    In some seeds the broker is slow instead, and the bridges know of no credit: submits pile up on their links, and
    must not delay replies. Shares are of bridges then, and not of users."""

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.given: Counter[str] = Counter()
        self._number = 0
        self._is_slow = self.random.random() < 0.3
        limits = Limits() if self._is_slow else replace(Limits(), max_waiting=MAX_WAITING)
        settings = Settings("s1.example", open_accounts=True, limits=limits)
        self._router = Router(settings, epoch="e", first_token=1000, now=0.0)
        self._handler = Link("ipc", b"0:handler")
        self._requests: deque[Request] = deque()
        self._waiting: Counter[str] = Counter()  # messages of each user in the broker
        self._submits_read = 0
        names = [f"b{number}" for number in range(self.random.randint(1, 3))]
        self._processes = [BridgeProcess(name, knows_credit=not self._is_slow) for name in names]
        self.bridges = {bridge.link: bridge for bridge in self._processes}
        self.pipes: dict[Link, deque[tuple[int, Sequence[Message]]]] = {
            link: deque() for link in (*self.bridges, self._handler)
        }
        self._users: dict[tuple[Link, int], str] = {}  # by bridge and session
        self._introduce()
        self.users = [f"u{number}" for number in range(self.random.randint(3, 5))]
        self._waits = Waits(dict.fromkeys((*self.users, GUEST), ITEMS_IN_A_ROW))
        for user in (*self.users, GUEST):
            self._waits.rest(user)
        streams: list[tuple[BridgeProcess, ListConnection, Stream]] = []
        for place, user in enumerate(self.users):
            content = self._content()
            homes = {self._processes[place % len(self._processes)], self.random.choice(self._processes)}
            for bridge in sorted(homes, key=lambda bridge: bridge.link.key):
                several = self.random.choice((2, 3, 6))
                streams += [(bridge, self._log_in(bridge, user), Stream(content)) for _ in range(several)]
        self.guest_bridge = self.random.choice(self._processes)
        self.guest = self._log_in(self.guest_bridge, GUEST)
        for bridge, connection, stream in streams:  # when everybody is logged in: logins are no part of the play
            bridge.streams[connection] = stream

    def _content(self) -> bytes:
        text = "x" * self.random.choice((1, 100, 2_000))
        return frame(f'{{"payload":{{"type":"echo","data":"{text}","id":"i"}}}}'.encode())

    def _introduce(self) -> None:
        hello = Hello(VERSION, "handler", "h", {"types": ["echo"], "credit": CREDIT})
        self._take(self._handler, [hello])
        for bridge in self._processes:
            self._take(bridge.link, [bridge.hello])

    def _log_in(self, bridge: BridgeProcess, user: str) -> ListConnection:
        connection = bridge.scene.start_login(user)
        self._take(bridge.link, bridge.turn(1))
        bridge.scene.turn()
        assert connection.lines() == ["good auth_special"]
        self._users[bridge.link, connection.session.number] = user
        return connection

    def play(self) -> None:
        """Play some 12 s. Raises BrokenRuleError where a share is wrong, or somebody waits for too long."""
        totals = []
        for number in range(WARM_TURNS + TURNS):
            self._turn(number)
            if number >= WARM_TURNS:
                totals.append(dict(self.given))
        if not self._is_slow:
            check_shares(totals, self.users)

    def _turn(self, number: int) -> None:
        self._number = number
        if self.random.random() < 0.1 and not self._waiting[GUEST]:
            self.guest.written = b""
            question = frame(b'{"payload":{"type":"echo","data":1,"id":"g"}}')
            self.guest_bridge.scene.bridge.on_bytes(self.guest, question)
        for bridge in self._processes:
            batch = bridge.turn(number)
            if batch:
                self.pipes[bridge.link].append((self._submits_read, batch))
        replies: list[Message] = []
        while self._requests and len(replies) < HANDLED:
            request = self._requests.popleft()
            assert request.user is not None
            replies.append(Reply(request.token, 0, [Command("sendClients", [request.user], request.body)]))
        if replies:
            self.pipes[self._handler].append((self._submits_read, replies))
        self._broker_turn()
        if number % BROKER_TICK == 0:
            self._carry_out(self._router.tick(number * TURN_S, number * TURN_S))

    # --- the broker's process ---

    def _broker_turn(self) -> None:
        """Read from the links until there is enough for one turn."""
        read, enough = 0, BUSY_READS if self._is_slow else BROKER_READS
        while read < enough and any(self.pipes.values()):
            link = self.next_link()
            submits_before, batch = self.pipes[link].popleft()
            self.pipes[link] = self.pipes.pop(link)
            read += len(batch)
            if link == self._handler:
                self._look_at_replies(self._submits_read - submits_before)
            self._take(link, batch)

    def next_link(self) -> Link:
        """Return the link to read from: they take turns, as ZeroMQ has it."""
        return next(link for link, pipe in self.pipes.items() if pipe)

    def _look_at_replies(self, submits: int) -> None:
        """Check that replies have waited for no more than two batches of each bridge."""
        if submits > 2 * MAX_BATCH * len(self._processes):
            raise BrokenRuleError(f"replies wait behind {submits} submits")

    def _take(self, link: Link, batch: Sequence[Message]) -> None:
        for message in batch:
            if type(message) is Submit:
                assert message.session is not None
                self._submits_read += 1
                user = self._users[link, message.session]
                if not self._waiting[user]:
                    self._waits.begin(user)
                self._waiting[user] += 1
            self._carry_out(self._router.receive_all(link, [message], self._number * TURN_S))

    def _carry_out(self, effects: Effects) -> None:
        for link, messages in effects.messages.items():
            if link == self._handler:
                for message in messages:
                    if type(message) is Request:
                        self._give(message)
            else:
                self.bridges[link].scene.bridge.receive(messages)
        if effects.writes:
            self._carry_out(self._router.on_committed(effects.writes, Committed(ok=True), self._number * TURN_S))
        for call in effects.calls:
            if isinstance(call, Verify):
                self._carry_out(
                    self._router.on_verified(call.link, call.session, call.user, None, self._number * TURN_S)
                )

    def _give(self, request: Request) -> None:
        """Let the handler have a request."""
        user = request.user
        assert user is not None
        self._requests.append(request)
        self.given[user] += 1
        self._waiting[user] -= 1
        self._waits.serve(user, 1)
        if not self._waiting[user]:
            self._waits.rest(user)
