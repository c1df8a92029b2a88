"""What clients that acknowledge have been sent and have not acknowledged. Pure.

A frame to such a client counts as delivered when the client says its id, not when its bytes have left. The time for
that begins when they have left, and stands still while the bridge does not read from the client: its word may be
waiting. Not for ever: what fills the client's window may be messages to itself, and would then wait for words behind
them that are never read. An id that nobody waits for changes nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from itertools import islice

from bester.bridge.confirmations import TIMEOUT, UNCONFIRMED, Delivery
from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection


class _Frame:
    """One frame, written and not acknowledged."""

    __slots__ = ("delivery", "id", "left_s", "size", "target")

    def __init__(self, id_: str, delivery: Delivery, target: int, size: int) -> None:
        self.id = id_
        self.delivery = delivery
        self.target = target
        self.size = size
        self.left_s = 0.0


class _ClientAcks:
    """The frames of one connection: all by id (a repetition has the id of what it repeats), those that are still on
    their way out, and those whose time runs, in the order they left."""

    __slots__ = ("by_id", "count", "leaving", "left", "size_bytes", "unread_s")

    def __init__(self) -> None:
        self.by_id: dict[str, list[_Frame]] = {}
        self.leaving: deque[_Frame] = deque()
        self.left: OrderedDict[_Frame, None] = OrderedDict()
        self.count = 0
        self.size_bytes = 0
        self.unread_s = 0.0

    def remove(self, frame: _Frame) -> None:
        """The frame is decided; it may be on its way out still."""
        self.left.pop(frame, None)
        self.count -= 1
        self.size_bytes -= frame.size


class Acks:
    """The frames of all connections. What it returns are deliveries that have ended."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._books: dict[ClientConnection, _ClientAcks] = {}

    def has_room(self, connection: ClientConnection) -> bool:
        """Whether another frame may be written to the connection."""
        book = self._books.get(connection)
        return book is None or (book.count < self._limits.unacked and book.size_bytes < self._limits.unacked_bytes)

    def awaits(self, connection: ClientConnection) -> bool:
        """Whether something was written to the connection that is to be acknowledged."""
        book = self._books.get(connection)
        return book is not None and book.count > 0

    def expect(self, connection: ClientConnection, id_: str, delivery: Delivery, target: int, size: int) -> None:
        """A frame was written, with a mark behind it; its acknowledgement decides the target."""
        book = self._books.get(connection)
        if book is None:
            book = self._books[connection] = _ClientAcks()
        frame = _Frame(id_, delivery, target, size)
        book.by_id.setdefault(id_, []).append(frame)
        book.leaving.append(frame)
        book.count += 1
        book.size_bytes += size

    def on_bytes_sent(self, connection: ClientConnection, marks: int, now: float) -> None:
        """So many marks were passed: as many frames have left."""
        book = self._books[connection]
        for _ in range(marks):
            frame = book.leaving.popleft()
            if frame in book.by_id.get(frame.id, ()):
                frame.left_s = now
                book.left[frame] = None

    def acknowledged(self, connection: ClientConnection, ids: list[str]) -> list[Delivery]:
        """The client has got these."""
        ended: list[Delivery] = []
        book = self._books.get(connection)
        if book is None:
            return ended
        for id_ in ids:
            for frame in book.by_id.pop(id_, ()):
                book.remove(frame)
                if frame.delivery.on_sent(frame.target):
                    ended.append(frame.delivery)
        return ended

    def on_connection_gone(self, connection: ClientConnection, begun: int, reason: str) -> list[Delivery]:
        """The connection is no more: it will acknowledge nothing. What has left, and the `begun` next frames, may have
        arrived; the rest has failed for `reason`."""
        book = self._books.pop(connection, None)
        if book is None:
            return []
        unsent = set(islice(book.leaving, begun, None))  # as many are in it as there are marks, acknowledged or not
        frames = [frame for same in book.by_id.values() for frame in same]
        became = [(frame, reason if frame in unsent else UNCONFIRMED) for frame in frames]
        return [frame.delivery for frame, why in became if frame.delivery.on_missed(frame.target, why)]

    def late(self, now: float) -> list[Delivery]:
        """Give up on what was not acknowledged in time."""
        ended: list[Delivery] = []
        for connection, book in self._books.items():
            if not connection.reading:
                book.unread_s = now
            while book.left:
                frame = next(iter(book.left))
                from_s = max(frame.left_s, min(book.unread_s, frame.left_s + self._limits.ack_unread_s))
                if now - from_s < self._limits.ack_s:
                    break
                book.remove(frame)
                same = book.by_id[frame.id]
                same.remove(frame)
                if not same:
                    del book.by_id[frame.id]
                if frame.delivery.on_missed(frame.target, TIMEOUT):
                    ended.append(frame.delivery)
        return ended
