"""What a client has sent, or will, and has no report on yet: a bounded window. Pure.

It keeps the order in which messages were given, over any number of connections. What was not reported when one is lost
goes out again on the next, marked, under the same `dedup`: the server then knows a message it had before. It must never
send a message twice where it was told not to, nor one that was withdrawn.
"""

from __future__ import annotations

from typing import NamedTuple

from bester.bridge.client import frames
from bester.bridge.client.errors import MessageTooLarge, WindowFull
from bester.bridge.client.frames import DEDUP_LIMIT, NO_TERMS, RESENT_BYTES, Terms
from bester.bridge.frames import frame


class Limits(NamedTuple):
    """The bounds of one client, each with its reason."""

    window: int = 512
    """Messages unreported at once: enough to keep a server busy, little enough to send again when a connection goes."""
    window_bytes: int = 4 << 20
    """The same in bytes; one message always fits. Half of what a server reads before it has reported on any, so that an
    acknowledgement never stands behind what is not read."""
    queue: int = 1000
    """Messages received and not yet asked for; beyond it the socket is not read, and the server learns of it."""
    queue_bytes: int = 16 << 20
    """The same in bytes."""
    send_limit_bytes: int = 1 << 20
    """The longest frame sent: what servers take by default. A longer one would cost the connection."""
    receive_limit_bytes: int = 64 << 20
    """The longest frame received; a server that announces more is out of its mind, and is left."""
    remembered_ids: int = 10_000
    """Ids of received messages kept to know a repeat by: what may be redelivered after a loss, many times over."""
    connect_s: float = 10.0
    """How long a connection may take to be made."""
    login_s: float = 10.0
    """How long the login may go unanswered: servers check passwords slowly, on purpose."""
    silence_s: float = 30.0
    """When nothing is heard for so long, a ping goes out; after as long again the connection counts as lost."""


DEFAULTS = Limits()

SENDS = 5
"""With `resend`, how many connections one message may go out on: it may be what kills them."""


class _Entry:
    """A message taken in: its frame's body (None once it will not go out again), and how often it went out."""

    __slots__ = ("body", "marked", "sends", "size")

    def __init__(self, body: bytes) -> None:
        self.body: bytes | None = body
        self.size = len(body)
        self.sends = 0
        self.marked = False

    def mark(self) -> None:
        """It goes out again, and says so."""
        if self.sends and not self.marked and self.body is not None:
            self.body = frames.resent(self.body)
            self.marked = True


class Window:
    """The unreported messages. With `dedup_prefix`, each gets a `dedup` and may go out again; without, never.

    The prefix must be unlike any other client's; what is given of it beyond half of what a `dedup` may have is cut.
    """

    def __init__(self, limits: Limits, dedup_prefix: str | None) -> None:
        self._limits = limits
        self._prefix = None if dedup_prefix is None else dedup_prefix[: DEDUP_LIMIT // 2]
        self._entries: dict[str, _Entry] = {}
        self._bytes = 0
        self._unsent: dict[str, _Entry] = {}  # in the order to be sent
        self._last_id = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def room(self) -> int:
        """How many more messages are taken in now."""
        return 0 if self._bytes >= self._limits.window_bytes else max(0, self._limits.window - len(self._entries))

    def next_id(self) -> int:
        """Return a number never used before."""
        self._last_id += 1
        return self._last_id

    def add(self, type_: str, data: bytes, terms: Terms = NO_TERMS) -> str:
        """Take a message in and return its id. Raises WindowFull, MessageTooLarge, ValueError."""
        if not type_ or type_ in ("dummy", "builtin"):
            raise ValueError(f"{type_!r} is not a type of message: the protocol keeps it for itself")
        terms.check()
        if not self.room:
            raise WindowFull("overloaded", f"{len(self)} messages are unreported: await client.room() first")
        id_ = str(self.next_id())
        if terms.dedup is None and self._prefix is not None:
            terms = terms._replace(dedup=f"{self._prefix}-{id_}")
        body = frames.message(type_, data, id_, terms)
        limit = self._limits.send_limit_bytes - (0 if self._prefix is None else RESENT_BYTES)
        if len(body) > limit:
            raise MessageTooLarge("frame-too-large", f"the message has {len(body)} bytes, {limit} are allowed")
        entry = self._entries[id_] = self._unsent[id_] = _Entry(body)
        self._bytes += entry.size
        return id_

    def take(self) -> list[bytes]:
        """Return the frames to write now; they count as sent."""
        out = []
        for entry in self._unsent.values():
            if entry.body is not None:
                out.append(frame(entry.body))
            entry.sends += 1
            if self._prefix is None:
                entry.body = None
        self._unsent.clear()
        return out

    def settle(self, id_: str) -> bool:
        """A report came; False: it is about nothing that was sent."""
        entry = self._entries.get(id_)
        if entry is None or not entry.sends:
            return False
        self._forget(id_)
        return True

    def withdraw(self, id_: str) -> None:
        """What did not go out yet never will; what did is not sent again."""
        entry = self._entries.get(id_)
        if entry is None:
            return
        entry.body = None
        if self._unsent.pop(id_, None) is not None:
            self._forget(id_)

    def void(self) -> list[str]:
        """A connection is gone: return the ids whose fate is in doubt, put the rest back in line in its order."""
        doubtful = [id_ for id_, entry in self._entries.items() if entry.body is None or entry.sends >= SENDS]
        for id_ in doubtful:
            self._forget(id_)
        self._unsent = dict(self._entries)
        for entry in self._unsent.values():
            entry.mark()
        return doubtful

    def end(self) -> list[tuple[str, bool]]:
        """Give everything up: return each id, and whether it was ever sent."""
        left = [(id_, entry.sends > 0) for id_, entry in self._entries.items()]
        self._entries.clear()
        self._unsent.clear()
        self._bytes = 0
        return left

    def _forget(self, id_: str) -> None:
        self._bytes -= self._entries.pop(id_).size
