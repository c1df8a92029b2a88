"""Links for which ZeroMQ has no room: what waits to be sent to each of them, in order. Pure.

ZeroMQ has room for so many messages to a peer. The room ends where the peer does not read, and also where ZeroMQ's own
thread is late, such as with a flood of strangers' connections. Nothing tells these apart but time: so messages wait
here, and the link is given up once it has taken none for PATIENCE_S, or once too much waits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence

from bester.broker.core.effects import Link
from bester.broker.wire.messages import Message

PATIENCE_S = 6.0
"""Seconds for which a link may take nothing: as long as a silent peer has, three heartbeats."""
MOST_BYTES = 32 * 1024 * 1024
"""Bytes that wait for one party, over all its links; on this machine, for one link. Memory. As much as a handler with a
credit of some thousands has under way, and a fraction of what it may send ahead (`unread`)."""

Frames = list[bytes]


class _Part:
    """Frames of one turn of the loop that wait for room on a link. `begun`: earlier frames of the turn have left, so
    that only the last message surely has not."""

    __slots__ = ("begun", "frames", "messages")

    def __init__(self, frames: Iterable[Frames], messages: Sequence[Message], *, begun: bool) -> None:
        self.frames = deque(frames)
        self.messages = messages
        self.begun = begun


class _Waiting:
    """Parts that wait for one link, and since when the link has taken nothing."""

    __slots__ = ("parts", "since", "size_bytes")

    def __init__(self, now: float) -> None:
        self.parts: deque[_Part] = deque()
        self.size_bytes = 0
        self.since = now


class FullLinks:
    """Full links, by link. Times are monotonic, in seconds."""

    def __init__(self) -> None:
        self._waiting: dict[Link, _Waiting] = {}
        self._sizes: dict[str | Link, int] = {}

    def __contains__(self, link: Link) -> bool:
        return link in self._waiting

    def __bool__(self) -> bool:
        return bool(self._waiting)

    def links(self) -> list[Link]:
        """Return all full links, the first to be full first."""
        return list(self._waiting)

    def add(
        self, link: Link, frames: Iterable[Frames], messages: Sequence[Message], now: float, *, begun: bool = False
    ) -> None:
        """Keep frames for a full link, behind those that wait. The frames are those of `messages`; `begun`: some frames
        have left."""
        waiting = self._waiting.get(link)
        if waiting is None:
            waiting = self._waiting[link] = _Waiting(now)
        part = _Part(frames, messages, begun=begun)
        waiting.parts.append(part)
        self._grow(link, waiting, sum(map(_size, part.frames)))

    def is_over(self, link: Link, now: float) -> bool:
        """Return whether a full link is to be given up."""
        return now > self._waiting[link].since + PATIENCE_S or self._sizes.get(link.party or link, 0) > MOST_BYTES

    def send(self, link: Link, send: Callable[[Frames], None], now: float) -> None:
        """Send what waits for a link, as far as there is room; the link is full no more once all is sent. Raises as
        `send` does, with the frames kept that it has not taken."""
        waiting = self._waiting[link]
        while waiting.parts:
            part = waiting.parts[0]
            while part.frames:
                send(part.frames[0])
                self._grow(link, waiting, -_size(part.frames.popleft()))
                part.begun = True
                waiting.since = now
            waiting.parts.popleft()
        self._forget(link)

    def take(self, link: Link) -> list[Message]:
        """Forget what waits for a link; return the messages that surely have not left."""
        waiting = self._waiting.get(link)
        if waiting is None:
            return []
        self._forget(link)
        return [message for part in waiting.parts for message in (part.messages[-1:] if part.begun else part.messages)]

    def _grow(self, link: Link, waiting: _Waiting, size_bytes: int) -> None:
        waiting.size_bytes += size_bytes
        party = link.party or link
        self._sizes[party] = self._sizes.get(party, 0) + size_bytes

    def _forget(self, link: Link) -> None:
        waiting, party = self._waiting.pop(link), link.party or link
        left = self._sizes.pop(party, 0) - waiting.size_bytes
        if left:
            self._sizes[party] = left


def _size(frames: Frames) -> int:
    return sum(map(len, frames))
