"""Shares of a bridge's input: users and strangers flood a real bridge in virtual time, and each party gets its share.

All strangers together are one party. Units are those of the intake: a frame, or 4 KiB of it.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from unittest.mock import patch

from bester.bridge.frames import frame
from bester.bridge.session import UNIT_BYTES_LOG2, Session
from bester.bridge.states import State
from bester.bridge.steps import Step
from bester.broker.wire.messages import Report, Submit
from tests.simulation.fair_rules import (
    GUEST,
    QUANTUM,
    READ_UNITS,
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

TURNS = WINDOW_TURNS + 5 * STEP_TURNS
STRANGERS = "strangers"
STRANGERS_READY = 60
"""Strangers that always wait for their turn, where strangers flood."""


class Flood:
    """Users with random numbers of connections, sizes and types who always have something to say; in some seeds
    strangers who do; and a guest who comes and goes. `units` counts what the intake charged to each party.

    Each user has two connections at least. A connection that was parked is read from again in the next turn, which is
    a long time here: its user would have nothing to say at the end of a read, and others work off their debts then.
    """

    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.scene = Scene(turn_units=TURN_UNITS, turn_quantum=QUANTUM, max_connections=1_000_000)
        self.units: Counter[str] = Counter()
        self.turn_units = 0
        self.owners: dict[int, str] = {}
        self.streams: dict[ListConnection, Stream] = {}
        self.strangers: list[ListConnection] = []
        beyond: dict[str, int] = {}  # units that one turn of a party may use beyond its quantum
        for number in range(self.random.randint(2, 5)):
            user, content = f"u{number}", self._content()
            beyond[user] = READ_UNITS + 1 + (len(content) >> UNIT_BYTES_LOG2)
            for _ in range(self.random.choice((2, 3, 8))):
                self.streams[self._log_in(user)] = Stream(content)
        if self.random.random() < 0.6:
            beyond[STRANGERS] = 1
        self.flooders = list(beyond)
        self.guest = self._log_in(GUEST)
        beyond[GUEST] = 1
        self.most_in_a_turn = TURN_UNITS + QUANTUM + max(beyond.values())
        self.waits = Waits(
            {party: QUANTUM + more for party, more in beyond.items()}, lambda party: beyond[party] // QUANTUM
        )
        self.waits.rest(GUEST)
        self.asked = False

    def _log_in(self, user: str) -> ListConnection:
        connection = self.scene.log_in(user)
        self.owners[connection.session.number] = user
        return connection

    def _content(self) -> bytes:
        """Return the frame that one user repeats."""
        text = "x" * self.random.choice((1, 100, 5_000, 60_000, 200_000))
        type_ = self.random.choice(("dummy", "nobody-serves"))
        return frame(f'{{"payload":{{"type":"{type_}","data":"{text}","id":"i"}}}}'.encode())

    def play(self) -> None:
        """Play 12 s. Raises BrokenRuleError where a share is wrong, or a party waits for too long."""
        honest = Session.proceed

        def counting(session: Session, now: float, ration: int) -> Step:
            self._look_for_unwritten()
            step = honest(session, now, ration)
            self._count(self.owners.get(session.number, STRANGERS), session.spent)
            return step

        totals = []
        with patch.object(Session, "proceed", counting):
            for _ in range(TURNS):
                self._turn()
                totals.append(dict.fromkeys(self.flooders, 0) | self.units)
        check_shares(totals, self.flooders)

    def _look_for_unwritten(self) -> None:
        """Check that new input waits until what was there before has been written."""
        if not self.turn_units and any(each.dirty for each in (self.guest, *self.streams)):
            raise BrokenRuleError("answers wait behind new input")

    def _count(self, party: str, units: int) -> None:
        self.units[party] += units
        self.turn_units += units
        if self.turn_units > self.most_in_a_turn:
            raise BrokenRuleError(f"{self.turn_units} units in one turn")
        self.waits.serve(party, units)
        if party == GUEST:
            self.waits.rest(GUEST)

    def _turn(self) -> None:
        bridge = self.scene.bridge
        for connection, stream in self.streams.items():
            if connection.reading:
                bridge.on_bytes(connection, stream.read())
            connection.written = b""
        self._come_as_strangers()
        if not self.asked and self.random.random() < 0.1:
            self.asked = True
            self.waits.begin(GUEST)
            bridge.on_bytes(self.guest, frame(b'{"payload":{"type":"dummy","data":1,"id":"g"}}'))
        self.scene.now += TURN_S
        self.turn_units = 0
        self.scene.one_turn()
        submits = self.scene.take(Submit)
        bridge.receive([Report(each.token, 0, "unknown-type", f"s/{each.token}", {}) for each in submits])
        if self.guest.count("g"):
            self.guest.written, self.asked = b"", False

    def _come_as_strangers(self) -> None:
        """Let strangers come for those that have had their turn, and left."""
        if STRANGERS not in self.flooders:
            return
        waiting = []
        for connection in self.strangers:
            if connection.session.state is State.NEW:
                waiting.append(connection)
            else:
                self.scene.bridge.on_connection_lost(connection)
        self.strangers = waiting
        while len(waiting) < STRANGERS_READY:
            stranger = self.scene.connect(f"10.0.0.{len(waiting)}")
            self.scene.bridge.on_bytes(stranger, frame(b"no login"))
            waiting.append(stranger)
