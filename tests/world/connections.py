"""A client's connection to a bridge: bytes both ways, with the delays and faults that its bridge is given."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from bester.bridge.states import State
from tests.stand_in import StandIn

if TYPE_CHECKING:
    from tests.world.bridges import SimBridge


class Connection(StandIn):
    """A connection as the bridge sees it, and the client's socket at its other end: bytes in both directions, in order,
    until the connection is cut.

    `lost` gathers the bytes that had left the bridge and never came to the client.
    """

    __slots__ = (
        "_cut",
        "_ending",
        "_held",
        "_last_down",
        "_last_up",
        "_over",
        "_under_way",
        "bridge",
        "core",
        "lost",
        "on_bytes",
        "on_lost",
        "slow_s",
        "world",
    )  # fmt: skip

    def __init__(
        self, bridge: SimBridge, host: str, *, on_bytes: Callable[[bytes], None], on_lost: Callable[[], None],
        slow_s: float,
    ) -> None:  # fmt: skip
        super().__init__()
        self.world = bridge.world
        self.bridge = bridge
        assert bridge.core is not None
        self.core = bridge.core
        self.on_bytes = on_bytes
        self.on_lost = on_lost
        self.slow_s = slow_s
        self.lost: list[bytes] = []
        self._under_way: list[bytes] = []  # to the client
        self._held: list[bytes] = []  # to the bridge, which does not read
        self._cut = False  # true once nothing passes any more
        self._over = False  # the bridge knows
        self._ending = False
        self._last_down = self._last_up = 0.0
        self.core.admit(self, host)
        bridge.connections[self] = None

    # --- the client's side ---

    def write(self, data: bytes) -> None:
        """Bytes for the bridge."""
        if not self._cut:
            self._last_up = max(self._last_up, self.world.now + self.world.random.random() * 0.01)
            self.world.at(self._last_up, partial(self._arrive_up, data))

    def hang_up(self) -> None:
        """The client closes its socket, or its process is gone."""
        if not self._cut:
            self._last_up = max(self._last_up, self.world.now + 0.005)
            self.world.at(self._last_up, self._gone)
            self._break()

    def _arrive_up(self, data: bytes) -> None:
        if self._cut or self._over:
            return
        if self.reading:
            self.core.on_bytes(self, data)
        else:
            self._held.append(data)

    # --- faults ---

    def cut(self, bridge_notices_s: float, client_notices_s: float) -> None:
        """Cut the network between the two ends; bytes on the way are lost, and each end notices in its time
        (seconds)."""
        if self._cut:
            return
        self._break()
        self.world.after(bridge_notices_s, self._gone)
        self.world.after(client_notices_s, self.on_lost)

    def _break(self) -> None:
        self._cut = True
        self.lost += self._under_way
        self._under_way.clear()

    def _gone(self) -> None:
        if not self._over:
            self._over = True
            self.bridge.connections.pop(self, None)
            self.core.on_connection_lost(self)

    def died(self) -> None:
        """Note that the bridge's process has ended; the client's system is told."""
        self._over = True
        if not self._cut:
            self._break()
            self.world.after(self.world.random.choice((0.0, 0.01, 1.0)), self.on_lost)

    # --- the bridge's side ---

    def flush(self) -> bool:
        """Hand a chunk of the queued bytes to the socket; return whether there is more."""
        if self._over or self._ending:
            return False
        if chunk := self.out.take(self.core.limits.write_chunk):
            if self.slow_s and self.world.random.random() < 0.5:
                self.core.on_blocked(self)
                arrives = self.world.random.random() < 0.5  # before the bridge knows that the chunk has left, or after
                if arrives:
                    self._send(chunk)
                self.world.after(
                    self.world.random.random() * self.slow_s, partial(self._left, b"" if arrives else chunk)
                )
                return False
            self._send(chunk)
            self.core.on_bytes_sent(self, self.out.on_sent())
            if self.out.queued_bytes:
                return True
        if self.session.state is State.CLOSING and not self.out.in_flight:
            self._end()
        return False

    def _left(self, chunk: bytes | memoryview) -> None:
        if self._over:
            return
        if chunk:
            self._send(chunk)
        self.core.on_bytes_sent(self, self.out.on_sent())
        self.core.on_unblocked(self)

    def _send(self, taken: bytes | memoryview) -> None:
        chunk = bytes(taken)
        if self._cut:
            self.lost.append(chunk)
            return
        self._under_way.append(chunk)
        self._last_down = max(self._last_down, self.world.now + self.world.random.random() * 0.01)
        self.world.at(self._last_down, partial(self._arrive_down, chunk))

    def _arrive_down(self, chunk: bytes) -> None:
        if not self._cut:
            self._under_way.pop(0)
            self.on_bytes(chunk)

    def _end(self) -> None:
        self._ending = True
        self.core.on_all_sent(self)
        self._last_down = max(self._last_down, self.world.now)
        self.world.at(self._last_down, self._hear_end)
        self.world.after(0.1, self._gone)

    def _hear_end(self) -> None:
        if not self._cut:
            self._cut = True
            self.on_lost()

    def set_reading(self, reading: bool) -> None:
        """Read on, or let the peer wait."""
        self.reading = reading
        if reading and self._held:
            held, self._held = self._held, []
            for data in held:
                self.world.after(0.0, partial(self._arrive_up, data))

    def abort(self, why: str) -> None:
        """Cut the connection."""
        if why:
            self.world.tell(self.bridge.name, "cuts a connection", why)
        if not self._cut:
            self._break()
            self.world.after(0.0, self.on_lost)
        self.world.after(0.0, self._gone)
