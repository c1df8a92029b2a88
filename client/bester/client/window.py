"""Messages of a client that are not sent, or sent and not reported on: a bounded window. Pure.

The window keeps the order of submission over any number of connections. Messages that were unreported when a connection
broke are sent again on the next one, marked, under the same `dedup`, so that the server recognizes a duplicate. The
window never sends a message twice where resending is off, and never sends a message that was withdrawn.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from bester.bridge.frames import frame
from bester.broker.wire.arguments import check_seconds, check_text, check_whole
from bester.broker.wire.messages import MAX_DEDUP
from bester.client import frames
from bester.client.errors import MessageTooLarge, WindowFull
from bester.client.frames import NO_TERMS, RESENT_BYTES, Report, Terms


class Limits(NamedTuple):
    """Bounds of one client, each with its reason."""

    window: int = 512
    """Messages unreported at once: enough to keep a server busy, few enough to resend when a connection breaks."""
    window_bytes: int = 4 << 20
    """The same in bytes; one message always fits. Half of the bytes that a server reads before its first
    report, so that no acknowledgement stands behind unread input."""
    queue: int = 1000
    """Messages received and not yet asked for; beyond the bound the socket is not read, which slows the server."""
    queue_bytes: int = 16 << 20
    """The same in bytes."""
    send_limit_bytes: int | None = None
    """The longest frame sent; None: the server's own limit, 1 MiB where the server does not say. A number here and the
    server's limit: the lesser counts."""
    receive_limit_bytes: int = 64 << 20
    """The longest frame received; a server that announces a longer one is faulty, and the connection is closed."""
    remembered_ids: int = 10_000
    """Ids of received messages kept for dedup: many times the number that may be redelivered after a loss."""
    connect_s: float = 10.0
    """Seconds until an attempt to connect counts as failed."""
    login_s: float = 10.0
    """Seconds until an unanswered login counts as failed: servers check passwords slowly, on purpose."""
    silence_s: float = 30.0
    """Seconds of silence until a ping is sent; after as many again the connection counts as lost."""

    def check(self) -> None:
        """Raise TypeError or ValueError for bounds that are no bounds."""
        for name in ("window", "window_bytes", "queue", "queue_bytes", "receive_limit_bytes", "remembered_ids"):
            check_whole(f"limits.{name}", getattr(self, name), 1)
        if self.send_limit_bytes is not None:
            check_whole("limits.send_limit_bytes", self.send_limit_bytes, 1)
        for name in ("connect_s", "login_s", "silence_s"):
            check_seconds(f"limits.{name}", getattr(self, name))


DEFAULTS = Limits()

UNSAID_BYTES = 1 << 20
"""The longest frame for a server that does not say its limit: the default limit of servers."""
LEAST_BYTES = 1024
"""Every server accepts frames as long as this; no configuration allows less."""
SENDS = 5
"""With `resend`, connections that may be lost with one message alone in flight until the message fails as the cause."""

Verdict = MessageTooLarge | Report | None
"""Result for a message that is not sent again after a lost connection; None: the message may have been delivered."""
_DOUBT: Verdict = None


class _Entry:
    """A message in the window. `body`: the frame's body, None once the message is not to be sent again. `losses`:
    connections lost while the message was in flight; `alone`: those of them with no other message in flight."""

    __slots__ = ("alone", "body", "losses", "marked", "sent", "size")

    def __init__(self, body: bytes) -> None:
        self.body: bytes | None = body
        self.size = len(body)
        self.sent = False
        self.marked = False
        self.losses = 0
        self.alone = 0

    @property
    def length(self) -> int:
        """Bytes of the frame that was sent last, or will be sent."""
        return self.size + (RESENT_BYTES if self.marked else 0)

    def mark(self) -> None:
        """Mark the body as sent before."""
        if self.sent and not self.marked and self.body is not None:
            self.body = frames.resent(self.body)
            self.marked = True


class Window:
    """The unreported messages. With `dedup_prefix`, each gets a `dedup` and may be sent again; without, never.

    The prefix must differ from any other client's; half of the longest `dedup` is used of the prefix, the rest is cut.

    A message may be the cause of a lost connection, and must not fail others. Where two connections are lost with the
    same message in flight, or the server complained of an unnamed frame, messages are sent one at a time, then more
    with each report, so that in the end the message that breaks connections is alone in flight.
    """

    def __init__(self, limits: Limits, dedup_prefix: str | None) -> None:
        self._limits = limits
        self._prefix = None if dedup_prefix is None else dedup_prefix[: MAX_DEDUP // 2]
        self._entries: dict[str, _Entry] = {}
        self._bytes = 0
        self._unsent: dict[str, _Entry] = {}  # in send order
        self._last_id = 0
        self._burst: int | None = None  # bound on messages in flight while the cause of a loss is sought
        self._server_limit: int | None = None
        self._refused: int | None = None  # length of a frame refused by a server without a known limit
        self._limit = self._lowest_limit()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def room(self) -> int:
        """Number of messages that may be added now."""
        return 0 if self._bytes >= self._limits.window_bytes else max(0, self._limits.window - len(self._entries))

    @property
    def max_frame(self) -> int | None:
        """Bytes of the longest frame that the server accepts; None where the latest login did not say."""
        return self._server_limit

    def next_id(self) -> int:
        """Return a number never used before."""
        self._last_id += 1
        return self._last_id

    def add(self, type_: str, data: bytes, terms: Terms = NO_TERMS) -> str:
        """Take a message in and return its id. Raises WindowFull, MessageTooLarge, ValueError."""
        check_text("a message's type", type_)
        if not type_:
            raise ValueError("a message's type is empty; name the type of a handler")
        if type_ in ("dummy", "builtin"):
            raise ValueError(f"{type_!r} is not a type of message: the protocol keeps it for itself")
        terms.check()
        if not self.room:
            raise WindowFull("overloaded", f"{len(self)} messages are unreported: await client.room() first")
        id_ = str(self.next_id())
        if terms.dedup is None and self._prefix is not None:
            terms = terms._replace(dedup=f"{self._prefix}-{id_}")
        body = frames.message(type_, data, id_, terms)
        # Room for the mark of a duplicate: a message sent once must fit when sent again.
        size = len(body) + (0 if self._prefix is None else RESENT_BYTES)
        if size > self._limit:
            raise self._too_large(size)
        entry = self._entries[id_] = self._unsent[id_] = _Entry(body)
        self._bytes += entry.size
        return id_

    def set_server_limit(self, max_frame: int | None) -> list[tuple[str, MessageTooLarge]]:
        """Set the server's limit in bytes (None: the server does not say). Return the unsent messages that are longer,
        each with its error."""
        self._server_limit = max_frame
        if max_frame is not None:
            self._refused = None
        self._limit = self._lowest_limit()
        too_large = []
        for id_, entry in self._unsent.items():
            size = entry.size + (0 if self._prefix is None else RESENT_BYTES)
            if size > self._limit:
                too_large.append((id_, self._too_large(size, sent=entry.sent)))
        for id_, _ in too_large:
            del self._unsent[id_]
            self._forget(id_)
        return too_large

    def take(self) -> list[bytes]:
        """Return the frames to write now; they count as sent."""
        if self._burst is None:
            going, self._unsent = self._unsent, {}
        else:
            in_flight = len(self._entries) - len(self._unsent)
            going = dict(islice(self._unsent.items(), max(0, self._burst - in_flight)))
            for id_ in going:
                del self._unsent[id_]
        out = []
        for entry in going.values():
            if entry.body is not None:
                out.append(frame(entry.body))
            entry.sent = True
            if self._prefix is None:
                entry.body = None
        return out

    def settle(self, id_: str) -> bool:
        """Remove a reported message; False: no message with this id was sent."""
        entry = self._entries.get(id_)
        if entry is None or not entry.sent:
            return False
        self._forget(id_)
        if self._burst is not None:
            self._unsent.pop(id_, None)
            self._burst += 1
            self._trust_again()
        return True

    def withdraw(self, id_: str) -> None:
        """Drop an unsent message; keep a sent one from being sent again."""
        entry = self._entries.get(id_)
        if entry is None:
            return
        entry.body = None
        if self._unsent.pop(id_, None) is not None:
            self._forget(id_)

    def requeue_after_loss(self, complaint: str | None) -> list[tuple[str, Verdict]]:
        """Handle a lost connection: return the messages that are not sent again, requeue the others in order.

        `complaint`: the code of an earlier report of the server on an unnamed frame.
        """
        in_flight = {id_: entry for id_, entry in self._entries.items() if id_ not in self._unsent}
        culprit = self._culprit(in_flight, complaint)
        if in_flight and not culprit:
            self._suspect(in_flight, complaint)
        ended: dict[str, Verdict] = {
            id_: _DOUBT for id_, entry in in_flight.items() if entry.body is None or entry.alone >= SENDS
        }
        ended |= culprit
        for id_ in ended:
            self._forget(id_)
        self._trust_again()
        self._unsent = dict(self._entries)
        for entry in self._unsent.values():
            entry.mark()
        return list(ended.items())

    def end(self) -> list[tuple[str, bool]]:
        """Drop all messages: return each id, and whether the message was ever sent."""
        left = [(id_, entry.sent) for id_, entry in self._entries.items()]
        self._entries.clear()
        self._unsent.clear()
        self._bytes = 0
        return left

    def _culprit(self, in_flight: dict[str, _Entry], complaint: str | None) -> dict[str, Verdict]:
        """Return the message that a complaint was surely about, where there is one."""
        if complaint != "frame-too-large":
            self._refused = None  # the server may have been restarted with another limit
            self._limit = self._lowest_limit()
            if complaint is None or len(in_flight) != 1:
                return {}
            (id_,) = in_flight
            return {id_: Report(False, id_, complaint)}
        # The refused frame is at most as long as the longest in flight, so the longest is too long as well.
        longest = max(in_flight, key=lambda id_: in_flight[id_].length, default=None)
        if longest is None or in_flight[longest].length <= LEAST_BYTES:
            return {}
        self._refused = in_flight[longest].length
        self._limit = self._lowest_limit()
        return {longest: self._too_large(self._refused)}

    def _suspect(self, in_flight: dict[str, _Entry], complaint: str | None) -> None:
        """Count a loss whose cause is not known against every message in flight."""
        for entry in in_flight.values():
            entry.losses += 1
            entry.alone += len(in_flight) == 1
        if complaint is not None or any(entry.losses > 1 for entry in in_flight.values()):
            self._burst = 1

    def _trust_again(self) -> None:
        """Lift the bound on messages in flight once no message is left that was in flight on a lost connection."""
        if self._burst is not None and not any(entry.losses for entry in self._entries.values()):
            self._burst = None

    def _lowest_limit(self) -> int:
        """Return the least of the known limits on a frame, in bytes."""
        limits = [
            self._limits.send_limit_bytes,
            self._server_limit,
            None if self._refused is None else self._refused - 1,
        ]
        return min((limit for limit in limits if limit is not None), default=UNSAID_BYTES)

    def _too_large(self, size: int, *, sent: bool = False) -> MessageTooLarge:
        limit, text = self._limit, f"the message makes a frame of {size} bytes"
        if size == self._refused:
            text += ", which the server has refused"
        elif self._refused is not None and limit < self._refused:
            text += f", and the server has refused one of {self._refused}"
        elif limit == self._server_limit:
            text += f", and the server takes {limit}"
        else:
            text += f", and {limit} may be sent"
        text += "; send less, or have [native] max_frame raised there"
        return MessageTooLarge(
            "frame-too-large", text + (" (it had been sent, and may have been delivered)" if sent else "")
        )

    def _forget(self, id_: str) -> None:
        self._bytes -= self._entries.pop(id_).size
