"""Servers of the native protocol in the simulation: one that reports on each message, and a mute one like besterd. A
server may die with messages in its hands, and the end of the connection is then the only sign."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bester.broker.core.reporters import REPORTING_ENDS, SILENT_ENDS
from bester.broker.wire.messages import Forward, Meta
from bester.broker.wire.outcomes import OUTCOME_TYPE

if TYPE_CHECKING:
    from tests.world.clock import World
    from tests.world.servers import SimServer

Done = Callable[[str, Meta], None]
"""Callback for the end of a connection: the outcome and meta of a Forwarded."""
UNSENT: Meta = {"unsent": True}
WORD: Meta = {"reported": True}
LONGEST_S, HEALED_LONGEST_S = 1.0, 0.02
"""Longest time in seconds that a native server works over a message, before and after the world is healed. The healed
time is short because a server that takes messages one by one may have hundreds."""
REFUSALS = ("failed:no-handler", "failed:overloaded", "failed:handler-failed", "failed:not-allowed")


@dataclass
class Handled:
    """A message that a native server has carried out: from which server, in which place of that one's lane."""

    server: str
    id: str
    type: str
    body: bytes
    lane: list[object]
    marked: bool


class NativeServer:
    """A server, at `address`. `mute`: the server never reports. `handled` lists the messages carried out, in order."""

    def __init__(self, world: World, name: str, address: str, *, mute: bool) -> None:
        self.world = world
        self.name = name
        self.address = address
        self.mute = mute
        self.healed = False
        self.handled: list[Handled] = []
        self._up = True
        self._in_hand: dict[int, tuple[SimServer, str, Done]] = {}
        self._silent_ends: Counter[tuple[str, str]] = Counter()  # by server and message
        self._numbers = 0

    @property
    def _longest_s(self) -> float:
        return HEALED_LONGEST_S if self.healed else LONGEST_S

    @property
    def busy(self) -> bool:
        """Return whether the server has a message in its hands."""
        return bool(self._in_hand)

    def take(self, server: SimServer, message: Forward, done: Done) -> None:
        """Take a message from a server of the simulation; `done` is called once at most."""
        chance = self.world.random
        if message.type == OUTCOME_TYPE:
            done(*(("sent", {}) if self.mute else ("delivered", WORD)))
            return
        if not self._up:
            self.world.after(chance.uniform(0.0, 0.1), lambda: done("failed:unreachable", UNSENT))
            return
        self._numbers += 1
        number = self._numbers
        self._in_hand[number] = (server, message.meta["id"], done)
        if self.healed or self.mute or chance.random() < 0.7:
            self.world.after(chance.uniform(0.0, self._longest_s), lambda: self._carry_out(number, message))
        elif chance.random() < 0.7:
            refusal = chance.choice(REFUSALS)
            self.world.after(chance.uniform(0.0, self._longest_s), lambda: self._end(number, refusal, WORD))
        else:  # the server hangs, and its connection is given up
            wait_s = message.meta["wait_s"]
            self.world.after(wait_s, lambda: self._end(number, "failed:unreachable", {}))

    def _carry_out(self, number: int, message: Forward) -> None:
        if number not in self._in_hand:
            return
        meta = message.meta
        server = self._in_hand[number][0].name
        self.handled.append(
            Handled(server, meta["id"], message.type, message.body, meta["lane"], meta.get("again") is True)
        )
        self.world.tell(self.name, f"carries out, of {server},", message)
        word: tuple[str, Meta] = ("sent", {}) if self.mute else ("delivered", WORD)
        self.world.after(self.world.random.uniform(0.0, self._longest_s / 5), lambda: self._end(number, *word))

    def _end(self, number: int, outcome: str, meta: Meta) -> None:
        held = self._in_hand.pop(number, None)
        if held is not None:
            held[2](outcome, meta)

    def die(self, down_s: float) -> None:
        """End the process. The system closes the connections in peace, or resets those that were not read to the end.

        A peer takes a native server for a mute one at the third silent end of one message, or at the tenth where a
        report was received before; the process dies less often over one message than that.
        """
        if not self._up:
            return
        self.world.tell(self.name, "DIES", f"for {down_s:.1f} s")
        self._up = False
        self.world.after(down_s, self._start)
        in_hand, self._in_hand = self._in_hand, {}
        for server, id_, done in in_hand.values():
            ends = self._silent_ends[server.name, id_] + 1
            known = server.store.inspect().peers.get(self.address) is True
            if (self.mute or ends < (REPORTING_ENDS if known else SILENT_ENDS)) and self.world.random.random() < 0.8:
                self._silent_ends[server.name, id_] = ends
                done("sent", {})
            else:
                done("failed:unreachable", {})

    def _start(self) -> None:
        self.world.tell(self.name, "STARTS AGAIN")
        self._up = True
