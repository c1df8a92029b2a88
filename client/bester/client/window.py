"""What a client has sent, or will, and has no report on yet: a bounded window. Pure.

It keeps the order in which messages were given, over any number of connections. What was not reported when one is lost
goes out again on the next, marked, under the same `dedup`: the server then knows a message it had before. It must never
send a message twice where it was told not to, nor one that was withdrawn.
"""

from __future__ import annotations

from itertools import islice
from typing import NamedTuple

from bester.bridge.frames import frame
from bester.broker.wire.messages import MAX_DEDUP
from bester.client import frames
from bester.client.errors import MessageTooLarge, WindowFull
from bester.client.frames import NO_TERMS, RESENT_BYTES, Report, Terms


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
    send_limit_bytes: int | None = None
    """The longest frame sent; None: what the server says it takes, 1 MiB where it does not say. Of a number, and what
    the server says, the lesser counts."""
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

UNSAID_BYTES = 1 << 20
"""The longest frame for a server that does not say what it takes: what servers take by default."""
LEAST_BYTES = 1024
"""Every server takes frames as long as this; no configuration allows less."""
SENDS = 5
"""With `resend`, how many connections may be lost with one message alone in flight: then it is what ends them."""

Verdict = MessageTooLarge | Report | None
"""What a lost connection says of a message that will not go out again; None: it may have been delivered, or not."""
_DOUBT: Verdict = None


class _Entry:
    """A message taken in. `body` is its frame's body, None once it will not go out again; `losses` counts the
    connections lost while it was in flight, `alone` those among them with nothing else in flight."""

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
        """Bytes of the frame that goes out, or went out last."""
        return self.size + (RESENT_BYTES if self.marked else 0)

    def mark(self) -> None:
        """Say in its body that it goes out again."""
        if self.sent and not self.marked and self.body is not None:
            self.body = frames.resent(self.body)
            self.marked = True


class Window:
    """The unreported messages. With `dedup_prefix`, each gets a `dedup` and may go out again; without, never.

    The prefix must be unlike any other client's; what is given of it beyond half of what a `dedup` may have is cut.

    A message may be what ends its connection, and must not take others along. Where two connections are lost with the
    same message in flight, or the server said of one that it cannot read a frame, messages go out anew one at a time,
    then more with each report, so that in the end the one that ends connections is alone with its own.
    """

    def __init__(self, limits: Limits, dedup_prefix: str | None) -> None:
        self._limits = limits
        self._prefix = None if dedup_prefix is None else dedup_prefix[: MAX_DEDUP // 2]
        self._entries: dict[str, _Entry] = {}
        self._bytes = 0
        self._unsent: dict[str, _Entry] = {}  # in the order to be sent
        self._last_id = 0
        self._burst: int | None = None  # how many may be in flight while a culprit is looked for
        self._said: int | None = None
        self._refused: int | None = None  # a frame so long was refused by a server that had not said what it takes
        self._limit = self._least()

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def room(self) -> int:
        """How many more messages are taken in now."""
        return 0 if self._bytes >= self._limits.window_bytes else max(0, self._limits.window - len(self._entries))

    @property
    def max_frame(self) -> int | None:
        """How many bytes the longest frame may have that the server takes, if the latest one has said so."""
        return self._said

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
        # Room for the mark of a repeat: what goes out once must be able to go out again.
        size = len(body) + (0 if self._prefix is None else RESENT_BYTES)
        if size > self._limit:
            raise self._too_large(size)
        entry = self._entries[id_] = self._unsent[id_] = _Entry(body)
        self._bytes += entry.size
        return id_

    def welcomed(self, max_frame: int | None) -> list[tuple[str, MessageTooLarge]]:
        """A server takes frames of so many bytes (None: it does not say). Return what waits and is longer, with its
        error."""
        self._said = max_frame
        if max_frame is not None:
            self._refused = None
        self._limit = self._least()
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
        """A report came; False: it is about nothing that was sent."""
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
        """What did not go out yet never will; what did is not sent again."""
        entry = self._entries.get(id_)
        if entry is None:
            return
        entry.body = None
        if self._unsent.pop(id_, None) is not None:
            self._forget(id_)

    def void(self, complaint: str | None) -> list[tuple[str, Verdict]]:
        """A connection is gone: return what will not go out again, put the rest back in line in its order.

        `complaint`: the code of what the server said of a frame before, without saying which.
        """
        here = {id_: entry for id_, entry in self._entries.items() if id_ not in self._unsent}
        named = self._named(here, complaint)
        if here and not named:
            self._suspect(here, complaint)
        ended: dict[str, Verdict] = {
            id_: _DOUBT for id_, entry in here.items() if entry.body is None or entry.alone >= SENDS
        }
        ended |= named
        for id_ in ended:
            self._forget(id_)
        self._trust_again()
        self._unsent = dict(self._entries)
        for entry in self._unsent.values():
            entry.mark()
        return list(ended.items())

    def end(self) -> list[tuple[str, bool]]:
        """Give everything up: return each id, and whether it was ever sent."""
        left = [(id_, entry.sent) for id_, entry in self._entries.items()]
        self._entries.clear()
        self._unsent.clear()
        self._bytes = 0
        return left

    def _named(self, here: dict[str, _Entry], complaint: str | None) -> dict[str, Verdict]:
        """Return the message that a complaint surely was about, where that can be told."""
        if complaint != "frame-too-large":
            self._refused = None  # perhaps the server was started anew, with another limit
            self._limit = self._least()
            if complaint is None or len(here) != 1:
                return {}
            (id_,) = here
            return {id_: Report(False, id_, complaint)}
        # Whichever it was is no longer than the longest, so that one is too long as well.
        longest = max(here, key=lambda id_: here[id_].length, default=None)
        if longest is None or here[longest].length <= LEAST_BYTES:
            return {}
        self._refused = here[longest].length
        self._limit = self._least()
        return {longest: self._too_large(self._refused)}

    def _suspect(self, here: dict[str, _Entry], complaint: str | None) -> None:
        """It is not known which of these ended the connection, if any did."""
        for entry in here.values():
            entry.losses += 1
            entry.alone += len(here) == 1
        if complaint is not None or any(entry.losses > 1 for entry in here.values()):
            self._burst = 1

    def _trust_again(self) -> None:
        """Hold nothing back any more, where nothing waits that was in flight on a connection that was lost."""
        if self._burst is not None and not any(entry.losses for entry in self._entries.values()):
            self._burst = None

    def _least(self) -> int:
        """Return how long a frame may be, by all that is known."""
        known = [self._limits.send_limit_bytes, self._said, None if self._refused is None else self._refused - 1]
        return min((limit for limit in known if limit is not None), default=UNSAID_BYTES)

    def _too_large(self, size: int, *, sent: bool = False) -> MessageTooLarge:
        limit, text = self._limit, f"the message makes a frame of {size} bytes"
        if size == self._refused:
            text += ", which the server has refused"
        elif self._refused is not None and limit < self._refused:
            text += f", and the server has refused one of {self._refused}"
        elif limit == self._said:
            text += f", and the server takes {limit}"
        else:
            text += f", and {limit} may be sent"
        text += "; send less, or have [native] max_frame raised there"
        return MessageTooLarge(
            "frame-too-large", text + (" (it had been sent, and may have been delivered)" if sent else "")
        )

    def _forget(self, id_: str) -> None:
        self._bytes -= self._entries.pop(id_).size
