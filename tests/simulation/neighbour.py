"""A server of the native protocol as a calling neighbour: its address, the servers that know it, and its messages.

The servers list the neighbour by the name of its host. They look the name up as their shells do: at the start, when the
core asks for a lookup, and now and then; the name server may be silent, and the host may move.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from random import Random

from bester.bridge import native_writing
from bester.broker.hosts import HostAddresses, hosts_of
from bester.broker.wire.messages import Meta
from bester.broker.wire.outcomes import AGAIN
from tests.simulation.programs import NATIVE
from tests.world.bridges import Peer, SimBridge
from tests.world.clock import BrokenRuleError, World
from tests.world.servers import SimServer

ADDRESSES = ("10.0.0.9", "10.0.0.10", "10.0.0.11")
REFRESH_S = 8.0
"""Shorter than a minute, as a play is shorter than a day."""
FAILURE_S = 0.5
SLOWEST_S = 0.5


class Neighbour:
    """A calling native server, at `address` for now. `random` is its own generator, so that its choices change no
    others."""

    def __init__(self, world: World, random: Random) -> None:
        self.world = world
        self.random = random
        self.address = ADDRESSES[0]
        self.coming = 0
        """Messages that the neighbour will send again in a moment."""
        self.repeated: set[str] = set()
        """Ids of messages that may have been carried out, and were sent again."""
        self._moves = 0
        self._silent_until = 0.0
        self._under_way: set[SimServer] = set()

    # --- names ---

    def listed_by(self, server: SimServer) -> None:
        """List this neighbour at a server, which looks its name up from now on."""
        server.on_look_up = partial(self._look_up, server)
        server.on_start.append(partial(self._started, server))
        self._started(server)
        self._refresh(server)

    def _started(self, server: SimServer) -> None:
        self._under_way.discard(server)
        self._look_up(server)

    def _refresh(self, server: SimServer) -> None:
        self._look_up(server)
        self.world.after(REFRESH_S, partial(self._refresh, server))

    def _look_up(self, server: SimServer) -> None:
        if server not in self._under_way and server.up:
            self._under_way.add(server)
            self.world.after(
                self.random.uniform(0.0, SLOWEST_S),
                partial(self._looked_up, server, server.life, self.address, server.now),
            )

    def _looked_up(self, server: SimServer, life: int, address: str, began: float) -> None:
        if server.life != life:
            return
        self._under_way.discard(server)
        if self.world.now < self._silent_until:
            self.world.after(FAILURE_S, partial(self._look_up, server))
            return
        place = HostAddresses((address,), began)
        self.world.tell(server.name, "looks up", place)
        server.hosts_changed(hosts_of({NATIVE: place}))

    # --- faults ---

    def plan_faults(self, until_s: float) -> None:
        """Plan when the host moves, and when names cannot be looked up. Neither loses a message of the neighbour's."""
        chance = self.random
        for _ in range(chance.choice((0, 0, 1, 2, 4))):
            fault = chance.choice((self._move, partial(self._silence, chance.uniform(0.1, 7.0))))
            self.world.after(chance.uniform(0.5, until_s), fault)

    def _move(self) -> None:
        """Move the host to another address."""
        self._moves += 1
        self.address = self.random.choice([each for each in ADDRESSES if each != self.address])
        self.world.tell(NATIVE, "MOVES", self.address)

    def _silence(self, seconds: float) -> None:
        """The name server answers nobody for a while."""
        self.world.tell("names", "ARE SILENT", f"for {seconds:.1f} s")
        self._silent_until = max(self._silent_until, self.world.now + seconds)

    # --- messages ---

    def says(self, bridge: SimBridge, number: int, type_: str, body: bytes) -> Peer:
        """Send a message, again and again until a server takes it; return the peer that has its last report."""
        peer = Peer(bridge.server.name, body)
        meta: Meta = {"id": f"{NATIVE}/{number}"} | ({"server": NATIVE} if self.random.random() < 0.7 else {})
        self._try(bridge, peer, partial(native_writing.to_server, number, type_, body), meta)
        return peer

    def _try(self, bridge: SimBridge, peer: Peer, frame: Callable[[Meta], bytes], meta: Meta) -> None:
        bridge.say(self.address, peer, frame(meta), partial(self._told, bridge, peer, frame, meta, self._moves))

    def _told(
        self, bridge: SimBridge, peer: Peer, frame: Callable[[Meta], bytes], meta: Meta, moves: int
    ) -> None:  # fmt: skip
        told = json.loads(peer.reports[-1])["payload"]
        reason = told.get("reason")
        moved = moves != self._moves  # the neighbour's connection is gone by now, without a report
        if reason == "not-allowed" and "recipients" not in told and not moved:
            raise BrokenRuleError(f"a listed server is refused for good: {peer}")
        if moved or (reason in AGAIN and "recipients" not in told):
            peer.reports.pop()
            if moved or reason == "unreachable":  # the message may have been carried out
                meta = {**meta, "again": True}
                self.repeated.add(meta["id"])
            self.coming += 1
            self.world.after(self.random.uniform(0.5, 1.0), partial(self._again, bridge, peer, frame, meta))

    def _again(self, bridge: SimBridge, peer: Peer, frame: Callable[[Meta], bytes], meta: Meta) -> None:
        self.coming -= 1
        self._try(bridge, peer, frame, meta)
