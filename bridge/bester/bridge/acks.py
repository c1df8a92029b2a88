"""Acknowledgements of clients that give them: frames sent and not acknowledged. Pure.

A frame to such a client counts as delivered when the client acknowledges its id, not when its bytes have left. The time
for that begins when the bytes have left, and stands still while the bridge does not read from the client: the
acknowledgement may be among the unread bytes. Not for ever: a window full of messages to the client itself would wait
for acknowledgements behind them that are never read. An unknown id changes nothing.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Iterator
from itertools import islice

from bester.bridge.confirmations import TIMEOUT, UNCONFIRMED, Delivery
from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection


class _Frame:
    """Frame that was written and is not acknowledged."""

    __slots__ = ("delivery", "id", "sent_s", "size", "target")

    def __init__(self, id_: str, delivery: Delivery, target: int, size: int) -> None:
        self.id = id_
        self.delivery = delivery
        self.target = target
        self.size = size
        self.sent_s = 0.0


class _ClientAcks:
    """Frames of one connection: all by id (a repetition has the id of the frame it repeats), those on their way out,
    and those whose time runs, in the order they left."""

    __slots__ = ("by_id", "count", "on_the_way", "running", "size_bytes", "unread_s")

    def __init__(self) -> None:
        self.by_id: dict[str, list[_Frame]] = {}
        self.on_the_way: deque[_Frame] = deque()
        self.running: OrderedDict[_Frame, None] = OrderedDict()
        self.count = 0
        self.size_bytes = 0
        self.unread_s = 0.0

    def remove(self, frame: _Frame) -> None:
        """Count a frame out whose target is decided; the frame may still be on its way out."""
        self.running.pop(frame, None)
        self.count -= 1
        self.size_bytes -= frame.size


class Acks:
    """Unacknowledged frames of all connections. Methods return the deliveries that have ended."""

    def __init__(self, limits: Limits, reached: Counter[str]) -> None:
        self._reached = reached
        self._limits = limits
        self._clients: dict[ClientConnection, _ClientAcks] = {}

    def has_room(self, connection: ClientConnection) -> bool:
        """Return whether another frame may be written to the connection; count where none may."""
        client = self._clients.get(connection)
        if client is None:
            return True
        if client.count >= self._limits.unacked:
            self._reached["unacked"] += 1
            return False
        if client.size_bytes >= self._limits.unacked_bytes:
            self._reached["unacked_bytes"] += 1
            return False
        return True

    def awaits(self, connection: ClientConnection) -> bool:
        """Return whether a frame on the connection is unacknowledged."""
        client = self._clients.get(connection)
        return client is not None and client.count > 0

    def expect(self, connection: ClientConnection, id_: str, delivery: Delivery, target: int, size: int) -> None:
        """Add a frame that was written, with a mark behind it; its acknowledgement decides the target."""
        client = self._clients.get(connection)
        if client is None:
            client = self._clients[connection] = _ClientAcks()
        frame = _Frame(id_, delivery, target, size)
        client.by_id.setdefault(id_, []).append(frame)
        client.on_the_way.append(frame)
        client.count += 1
        client.size_bytes += size

    def on_bytes_sent(self, connection: ClientConnection, marks: int, now: float) -> None:
        """Start the time of as many frames as marks were passed."""
        client = self._clients[connection]
        for _ in range(marks):
            frame = client.on_the_way.popleft()
            if frame in client.by_id.get(frame.id, ()):
                frame.sent_s = now
                client.running[frame] = None

    def on_acks(self, connection: ClientConnection, ids: list[str]) -> list[Delivery]:
        """Count the frames with these ids as acknowledged."""
        ended: list[Delivery] = []
        client = self._clients.get(connection)
        if client is None:
            return ended
        for id_ in ids:
            for frame in client.by_id.pop(id_, ()):
                client.remove(frame)
                if frame.delivery.on_sent(frame.target):
                    ended.append(frame.delivery)
        return ended

    def on_connection_lost(self, connection: ClientConnection, begun: int, reason: str) -> list[Delivery]:
        """Count every frame of a gone connection as missed. Frames that have left, and the next `begun` ones, may have
        arrived; the others have failed for `reason`."""
        client = self._clients.pop(connection, None)
        if client is None:
            return []
        client.running.clear()  # `overdue` may be halfway through them
        unsent = set(islice(client.on_the_way, begun, None))  # as many entries as marks, acknowledged or not
        frames = [frame for same in client.by_id.values() for frame in same]
        became = [(frame, reason if frame in unsent else UNCONFIRMED) for frame in frames]
        return [frame.delivery for frame, why in became if frame.delivery.on_missed(frame.target, why)]

    def overdue(self, now: float) -> Iterator[Delivery | None]:
        """Give up on frames that were not acknowledged in time, one before each step. Yield its delivery where that has
        ended, else None."""
        for connection, client in self._clients.items():
            if not connection.reading:
                client.unread_s = now
        for client in list(self._clients.values()):
            while client.running:
                frame = next(iter(client.running))
                from_s = max(frame.sent_s, min(client.unread_s, frame.sent_s + self._limits.ack_unread_s))
                if now - from_s < self._limits.ack_s:
                    break
                client.remove(frame)
                same = client.by_id[frame.id]
                same.remove(frame)
                if not same:
                    del client.by_id[frame.id]
                self._reached["ack_s"] += 1
                yield frame.delivery if frame.delivery.on_missed(frame.target, TIMEOUT) else None
