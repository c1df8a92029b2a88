"""Frames that have begun and not ended: their bytes over all connections, and their time. Pure.

Bytes are charged to a party: the user of a session, or the address (or IPv6 /64) of a stranger. Above the bound the
party with most byte-seconds makes way, by its connection with most byte-seconds: whoever has held much for long. A
frame that is being sent has held its bytes for moments only, so that honest frames go on beside thousands of parked
ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heapify, heappop, heapreplace

from bester.bridge.frames import Change
from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection
from bester.broker.wire.address import network_of

LOOK_S = 5.0
"""Longest time that counts between two looks: bytes that came during a stall of the process are not read yet."""

Party = tuple[str | None, str]


class _Begun:
    """Unfinished frame: `size` bytes of it are held, `waited_s` of its `allowed_s` have passed until `seen_at`."""

    __slots__ = ("allowed_s", "party", "seen_at", "size", "waited_s")

    def __init__(self, party: Party, now: float) -> None:
        self.party = party
        self.size = 0
        self.waited_s = self.allowed_s = 0.0
        self.seen_at = now


class Unfinished:
    """Unfinished frames, one a connection at most. `total_bytes` is the size of the parts that are held."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._begun: dict[ClientConnection, _Begun] = {}
        self.total_bytes = 0

    def __len__(self) -> int:
        return len(self._begun)

    @property
    def is_over(self) -> bool:
        """Return whether more bytes are held than the bound allows."""
        return self.total_bytes > self._limits.unfinished_bytes

    def on_change(self, connection: ClientConnection, change: Change, now: float) -> None:
        """Note that the unfinished frame of a connection has begun (another one), has grown, or has ended."""
        session = connection.session
        if change != "grown":
            self.forget(connection)
        size = session.splitter.waiting_bytes
        if not size:
            return
        begun = self._begun.get(connection)
        if begun is None:
            party = (session.user, "") if session.is_target else (None, network_of(session.address))
            begun = self._begun[connection] = _Begun(party, now)
        self.total_bytes += size - begun.size
        begun.size = size
        begun.allowed_s = self._limits.frame_s + session.splitter.needed_bytes / self._limits.frame_rate

    def forget(self, connection: ClientConnection) -> None:
        """Forget the unfinished frame of a connection, if any."""
        begun = self._begun.pop(connection, None)
        if begun is not None:
            self.total_bytes -= begun.size

    def overdue(self, now: float) -> list[ClientConnection]:
        """Return the connections whose frame has taken longer than a slow link needs; call at each look at deadlines.

        Time during which the bridge does not read from a connection is not the peer's, and does not count.
        """
        late = []
        for connection, begun in self._begun.items():
            if connection.reading:
                begun.waited_s += min(LOOK_S, now - begun.seen_at)
            begun.seen_at = now
            if begun.waited_s > begun.allowed_s:
                late.append(connection)
        return late

    def is_late(self, connection: ClientConnection) -> bool:
        """Return whether the frame of a connection is unfinished, and was overdue at the last look."""
        begun = self._begun.get(connection)
        return begun is not None and begun.waited_s > begun.allowed_s

    def make_way(self, now: float) -> Iterator[ClientConnection]:
        """Yield the connections that make way, the next one after the one before has been forgotten.

        An eighth of the bound is freed at once, so that the weighing of all frames is paid for by many bytes.
        """
        parties: dict[Party, list[tuple[float, int, ClientConnection]]] = {}
        for number, (connection, begun) in enumerate(self._begun.items()):
            held_s = begun.waited_s + now - begun.seen_at
            row = (-begun.size * held_s, number, connection)  # the heaviest first, of equals the one that began first
            parties.setdefault(begun.party, []).append(row)
        heaviest = [(sum(weight for weight, _, _ in rows), rows[0][1], rows) for rows in parties.values()]
        for _, _, rows in heaviest:
            heapify(rows)
        heapify(heaviest)
        enough = self._limits.unfinished_bytes - self._limits.unfinished_bytes // 8
        while self.total_bytes > enough and heaviest:
            total, first, rows = heaviest[0]
            weight, _, connection = heappop(rows)
            if rows:
                heapreplace(heaviest, (total - weight, first, rows))
            else:
                heappop(heaviest)
            yield connection
