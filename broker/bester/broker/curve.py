"""Encrypted doors of the fabric: ROUTER sockets that speak CURVE, and the keys that ZAP lets in.

ZAP answers each handshake with whether the key is known. libzmq asks a REP socket of the same context for that; the
socket is read on the loop. (`zmq.auth` is not used: none of its hooks sees address and key of a refused party together,
and it answers in a coroutine or a thread of its own.)

A routing id is no identity. Once a party has left, another known party may take its routing id, and would be sent what
was meant for the first. So the key of each message is read (ZAP's `User-Id`), a routing id whose key changes is another
link, and nothing is sent to a routing id whose connection has ended.
"""

from __future__ import annotations

import socket as sockets
import time
from collections.abc import Callable, Container, Sequence
from typing import Any

import zmq
from zmq.utils import z85

from bester.broker import link_counts
from bester.broker.fabric_socket import RECEIVED_AT_ONCE, FabricSocket, Frames
from bester.broker.keys import KeyPair
from bester.broker.link_counts import LinkCounts
from bester.broker.long_messages import HELD_OFF, SHORT_FRAMES, WHY, LongMessages
from bester.broker.share import PART, Share
from bester.broker.turn import Turn
from bester.broker.unread import Unread
from bester.broker.wire.messages import MAX_FRAMES

ZAP_ENDPOINT = "inproc://zeromq.zap.01"
DOMAIN = b"bester"
KEY_BYTES = 32
HANDSHAKE_MS = 5000
"""Time of a connection for its handshake: as long as a client has for its first frame."""
PING_MS = 2000
"""Interval of ZMTP's PINGs, the fabric's own. libzmq answers them on a thread of its own, whatever its program does."""
SILENT_MS = 10_000
"""Time of a connection for its answer to a PING, or anything else: longer than the patience of the fabric (6 s), which
gives up links, not connections. The connections of a machine that is gone would count among those of its key for
good."""
MAX_ADDRESSES = 20_000
"""Connections whose address is remembered for the log; above the bound new ones are logged without."""
UNSEEN = "unseen"
"""Stands for the address of a party that had left before it was looked at; it is seen at one of its next attempts."""
MADE_UP_S = 0.008
"""Most of a turn's time of reading that is made up for: a machine that stood still is no costly message."""
READ_S = 0.001
"""Seconds of reading in a turn: parties on other machines choose what a message costs to read, and what is read waits
(`slices`) until its turn comes."""
MOST_READ_S = 0.003
"""The same in long turns, a part (PART) of which is for reading, and while a long message is read: ZeroMQ gives one
message of each link in turn, so that an honest message waits until a message of sixteen thousand frames is read
whole."""
LARGE_BYTES = 64 * 1024
"""Length of a frame from which on it is passed on as ZeroMQ's own object, and copied where it is handled, in its
party's time: a copy of ten megabytes takes up to five milliseconds, and reading has one of a turn, for everybody."""
CLOCK = time.thread_time if time.get_clock_info("thread_time").resolution < READ_S / 100 else time.monotonic
"""Clock of what reading and handling cost: where the system has one for each thread, a time without a processor is no
costly message."""

_EVENTS = (
    zmq.EVENT_ACCEPTED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
)
_FAILED = (zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
CRYPTOGRAPHIC = 0x11000001
"""ZMTP error of a party that has encrypted for another key than this server's."""
LATER = b"500"
"""ZAP's status for a known key that is not let in for now: with 300, of a failure that passes, libzmq ends the
connection without a word, as it does after a wrong key of the server."""
OnRefused = Callable[[str, str, str], None]
"""Called with the address of a refused party, its key (empty where it showed none), and the reason."""


class Zap:
    """ZAP handler of one context: lets in the keys of `known`, unless `long_messages` hold them off, or they have as
    many `links` as they may. Make it before any socket of the context binds."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        known: Container[str],
        on_refused: OnRefused,
        long_messages: LongMessages | None = None,
        links: LinkCounts | None = None,
    ) -> None:
        self._known = known
        self._long = long_messages or LongMessages()
        self._links = links or LinkCounts()
        self._on_refused = on_refused
        self._socket = FabricSocket(context, zmq.REP, self._answer, drain_s=READ_S)
        self._socket.socket.bind(ZAP_ENDPOINT)
        self._socket.register()

    def _answer(self, frames: Frames) -> None:
        reply, refused = zap_reply(frames, self._known, self._why_later)
        if refused is not None:
            self._on_refused(*refused, reply[3].decode() if reply[2] == LATER else "the key is not known here")
        self._socket.send(reply)
        self._socket.look_again()

    def _why_later(self, key: str) -> str:
        """Return why a key is not let in for now, empty where it is."""
        if self._long.is_held_off(key, time.monotonic()):
            return HELD_OFF
        return "" if self._links.has_room(key.encode()) else link_counts.WHY

    def close(self) -> None:
        """Answer no more."""
        self._socket.close()


def zap_reply(
    frames: Sequence[bytes], known: Container[str], why_later: Callable[[str], str] = lambda key: ""
) -> tuple[list[bytes], tuple[str, str] | None]:
    """Return the frames that answer a ZAP request, and address and key of a party that is refused, None for one that is
    let in. `why_later` returns the reason why a known key is not let in for now. Frames that are missing are empty;
    nothing in a request raises."""
    version, request, _, address, _, mechanism, credential = [*frames, *[b""] * 7][:7]
    key = ""
    if mechanism == b"CURVE" and len(credential) == KEY_BYTES:
        key = z85.encode(credential).decode()
    if key and key in known:
        if why := why_later(key):
            return [version, request, LATER, why.encode(), b"", b""], (address.decode(errors="replace"), key)
        return [version, request, b"200", b"", key.encode(), b""], None
    return [version, request, b"400", b"the key is not known", b"", b""], (address.decode(errors="replace"), key)


class CurveSocket(FabricSocket):
    """ROUTER socket that speaks CURVE. `on_frames` gets the routing id, the party's key, and the frames of a message;
    `as_bytes` copies those from LARGE_BYTES on.

    `on_gone(routing_id, key)` is called when a connection over which messages came has ended and its messages were
    read, or when its routing id has passed to another connection. A party with more long messages than `long_messages`
    allow is cut with all its connections, of which nothing more is passed on; so is a connection above those that its
    key may have, which `links` count.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        pair: KeyPair,
        on_frames: Callable[[Frames], None],
        on_gone: Callable[[bytes, bytes], None],
        on_refused: OnRefused,
        turn: Turn | None = None,
        long_messages: LongMessages | None = None,
        links: LinkCounts | None = None,
    ) -> None:
        super().__init__(context, zmq.ROUTER, on_frames, turn)
        self.socket.curve_server = True
        self.socket.curve_publickey = pair.public.encode()
        self.socket.curve_secretkey = pair.secret.encode()
        self.socket.zap_domain = DOMAIN
        # Without a ZAP handler nobody is let in then, instead of everybody.
        self.socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        self.socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_IVL, PING_MS)
        self.socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENT_MS)
        self._on_gone = on_gone
        self._on_refused = on_refused
        self._drain_s = READ_S
        self._share = Share(READ_S, MADE_UP_S)
        self._clock = CLOCK
        self._looked = self._clock()  # when the turn of reading before began
        self._receive = self._receive_keyed
        self._begun: tuple[Frames, tuple[bytes, int]] | None = None  # a message whose rest comes, and who sends it
        self._holders: dict[bytes, tuple[bytes, int]] = {}  # key and descriptor of the connection, by routing id
        self._open: set[int] = set()  # descriptors of connections
        self._connections: dict[int, tuple[bytes, bytes]] = {}  # routing id and key, by descriptor, of open ones
        self._links = links or LinkCounts()
        self._ended: dict[bytes, tuple[bytes, int]] = {}  # connections that have ended, until all messages are read
        self._addresses: dict[int, str] = {}  # by descriptor
        self._long = long_messages or LongMessages()
        self._dropped: dict[
            tuple[bytes, tuple[bytes, int]], bool
        ] = {}  # links that were cut: has the connection ended?
        self.unread = Unread()
        self._failed: tuple[int, int] | None = None  # event and value of a handshake; its descriptor comes next
        self.watch(_EVENTS, self._on_event)

    def send_to(self, identity: bytes, party: str, frames: Frames) -> None:
        """Send to a party, if the connection of its routing id is its own. Raises as `send` does."""
        self._was_used = True
        self.socket.getsockopt(zmq.EVENTS)  # ends the pipes of connections that have ended ...
        if self._monitor is not None:
            self._monitor.read()  # ... whose ends are in the monitor before
        holder = self._holders.get(identity)
        if holder is None or holder[0] != party.encode() or self._ended.get(identity) == holder:
            raise zmq.ZMQError(zmq.EHOSTUNREACH)
        self.send([identity, *frames])

    def _receive_keyed(self, flags: int) -> Frames:
        """Receive a message with its party's key, as ZAP let it in; an empty list while more frames of it are to come,
        or while the rest of a message of too many frames is skipped."""
        if self._skipping and not self._skip():
            return []
        while True:
            if self._begun is not None:
                (frames, came_by), self._begun = self._begun, None
            else:
                first = self.socket.recv(flags, copy=False)
                key = str(first.get("User-Id")).encode()
                came_by = (key, int(first.get(zmq.SRCFD)))
                frames = [first.bytes, key]
                if (first.bytes, came_by) in self._dropped:
                    self._skipping = True
                    return []
            before = len(frames)
            is_whole = self._receive_some(frames, flags)
            if len(frames) > SHORT_FRAMES and not self._allow(frames, len(frames) - before):
                self._hold_off(frames[0], came_by)
                self._skipping = self._skipping or not is_whole  # also behind a cut
                return []
            if not is_whole:
                self._begun = frames, came_by
                return []
            identity, key = frames[:2]
            self.unread.count(came_by, frames[2:])
            holder = self._holders.get(identity)
            if holder == came_by:
                return frames
            if self._monitor is not None:  # the end of an earlier connection with this descriptor comes first
                self._monitor.read()
            if holder is not None and self._ended.get(identity) == came_by:
                continue  # late, of a connection whose routing id has passed on: its link is gone
            if (identity, came_by) in self._dropped:  # while the rest of the message came
                return []
            if holder is not None:
                self._leave(holder[1], identity)
                self._on_gone(identity, holder[0])
                del self._holders[identity]
            if not self._enter(identity, came_by):
                self._drop(identity, came_by, link_counts.WHY)
                return []
            if self._long.is_held_off(key.decode(), time.monotonic()):  # its handshake was over before
                self._hold_off(identity, came_by)
                return []
            return frames

    def _allow(self, frames: Frames, received: int) -> bool:
        """Count the frames that were received of a long message; return whether its party may have sent them."""
        return self._long.allow(frames[1].decode(), received, time.monotonic())

    def _hold_off(self, identity: bytes, came_by: tuple[bytes, int]) -> None:
        """End all links of the party of this connection, and pass on no message of theirs."""
        key = came_by[0]
        links = {each: holder for each, holder in self._holders.items() if holder[0] == key}
        self._drop(identity, came_by, WHY)
        for each, holder in links.items():
            self._end(each, holder)
            del self._holders[each]
            self._leave(holder[1], each)
            self._on_gone(each, key)

    def _drop(self, identity: bytes, came_by: tuple[bytes, int], why: str) -> None:
        """End a connection, with a line in the log, and pass on none of its messages."""
        address = self._addresses.get(came_by[1], UNSEEN)
        self._on_refused(address if self._end(identity, came_by) else UNSEEN, came_by[0].decode(), why)

    def _end(self, identity: bytes, came_by: tuple[bytes, int]) -> bool:
        """Pass on no more messages of a connection, and shut the connection down. Return False for one that has ended
        before: its descriptor may be another party's by now."""
        key, descriptor = came_by
        own = identity, key
        has_ended = self._ended.get(identity) == came_by or self._connections.get(descriptor, own) != own
        self._dropped[identity, came_by] = has_ended
        if not has_ended:
            self.unread.cut(descriptor)
        return not has_ended

    def _enter(self, identity: bytes, came_by: tuple[bytes, int]) -> bool:
        """Take in the first message of a connection; return False where its key has no room for another link. A
        connection that has ended before its message is read ends behind it."""
        key, descriptor = came_by
        before = self._leave(descriptor)  # a former one with this descriptor, of which a late message was read
        if before is not None:
            self._ended[before[0]] = self._holders[before[0]]
        if descriptor not in self._open:
            self._ended[identity] = came_by
        elif not self._links.has_room(key):
            return False
        else:
            self._connections[descriptor] = identity, key
            self._links.begin(key)
        self._holders[identity] = came_by
        return True

    def _leave(self, descriptor: int, identity: bytes | None = None) -> tuple[bytes, bytes] | None:
        """Count a connection out, and return its routing id and key; None where it has sent no message, or is not that
        of `identity`, where this is given: the descriptor is another's by now."""
        found = self._connections.get(descriptor)
        if found is None or identity not in (None, found[0]):
            return None
        del self._connections[descriptor]
        self._links.end(found[1])
        return found

    def _receive_some(self, frames: Frames, flags: int) -> bool:
        """Receive some more frames of a message, of which one follows at least. Return whether it is whole, or cut."""
        receive: Any = self.socket.recv  # as objects, which know whether another one follows
        for _ in range(RECEIVED_AT_ONCE):
            frame = receive(flags, False)
            frames.append(frame.bytes if len(frame) < LARGE_BYTES else frame)
            if len(frames) > MAX_FRAMES + 2:
                self._cut()
                return True
            if not frame.more:
                return True
        return False

    def cut_endless(self, *, drained: bool) -> None:
        """End connections on which more has come that was not read than an honest party has under way."""
        for descriptor, key, size_bytes in self.unread.look(drained=drained):
            address = self._addresses.get(descriptor, UNSEEN)
            if self.unread.cut(descriptor):
                why = f"it sent {size_bytes >> 20} MiB ahead of what was read, or of a message that does not end"
                self._on_refused(address, key.decode(), why)

    def cut(self, identity: bytes, party: str, why: str) -> None:
        """End the connection of a party's routing id, with a line in the log."""
        key, descriptor = self._holders.get(identity, (b"", -1))
        address = self._addresses.get(descriptor, UNSEEN)
        is_open = self._connections.get(descriptor) == (identity, key)  # or the descriptor is another's by now
        if key == party.encode() and is_open and self.unread.cut(descriptor):
            self._on_refused(address, party, why)

    def _drain(self) -> None:
        """Read, unless an earlier turn of reading is to be made up for."""
        now = self._clock()
        passed_s, self._looked = now - self._looked, now
        goes_on = self._begun is not None  # a long message, of which each party may send few
        self._drain_s = MOST_READ_S if goes_on else min(max(READ_S, passed_s / PART), MOST_READ_S)
        if self._loop is not None and not self._share.begin(passed_s):
            if self._again is not None:
                self._again.cancel()
            self._again = self._loop.call_soon(self._drain)
            return
        super()._drain()
        self._share.end(self._drained_s, self._drain_s)
        if (self._ended or self._dropped) and self._loop is not None and not self.has_unread():
            self._dropped = {link: False for link, has_ended in self._dropped.items() if not has_ended}
            ended, self._ended = self._ended, {}
            for identity, connection in ended.items():
                if self._holders.get(identity) == connection:
                    del self._holders[identity]
                    self._on_gone(identity, connection[0])

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._open.add(value)
            self.unread.begin(value)
            for link in [link for link in self._dropped if link[1][1] == value]:  # a former connection's
                del self._dropped[link]
            if len(self._addresses) < MAX_ADDRESSES:
                self._addresses[value] = _address_of(value)
        elif event in _FAILED:
            self._failed = (event, value)
        elif event == zmq.EVENT_DISCONNECTED:
            self._open.discard(value)
            self.unread.end(value)
            address = self._addresses.pop(value, UNSEEN)
            failed, self._failed = self._failed, None
            if failed is not None:
                self._on_refused(address, "", _reason(*failed))
            for link in self._dropped:
                self._dropped[link] |= link[1][1] == value
            left = self._leave(value)
            if left is not None:
                self._ended[left[0]] = self._holders[left[0]]
                if self._loop is not None and self._again is None:  # the last messages first
                    self._again = self._loop.call_soon(self._drain)


def as_bytes(frames: Sequence[bytes]) -> Sequence[bytes]:
    """Return the frames of a CurveSocket's message with those copied that are ZeroMQ's objects so far."""
    return [frame if type(frame) is bytes else _copied(frame) for frame in frames]


def _copied(frame: Any) -> bytes:
    copied: bytes = frame.bytes
    return copied


def _reason(event: int, value: int) -> str:
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL and value == CRYPTOGRAPHIC:
        return "it has another public key for this server than `bester keys` prints here"
    if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
        return "it does not encrypt, or does not speak the fabric protocol"
    return "it ended in the handshake: it does not encrypt, or is no Bester"


def _address_of(descriptor: int) -> str:
    """Return the address at the other end of a connection; UNSEEN where it has ended meanwhile."""
    try:
        with sockets.fromfd(descriptor, sockets.AF_INET, sockets.SOCK_STREAM) as connection:
            return str(connection.getpeername()[0]).removeprefix("::ffff:")
    except (OSError, IndexError, TypeError):
        return UNSEEN
