"""Encrypted doors of the fabric: ROUTER sockets that speak CURVE. `zap` decides which keys come in.

A routing id is no identity: its party may choose it. One that begins with a zero byte may be the next that libzmq makes
up for another connection, and libzmq aborts the process then; one of a party that has left would get what was meant for
that party. So ZAP's answer names the routing id of each connection: its number. And the connection of each message is
read (ZAP's `User-Id`: the party's key, and the number), a routing id whose connection changes is another link, and
nothing is sent to a routing id whose connection has ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from bester.broker import held_door, link_counts
from bester.broker.connections import Connection, ConnectionNumbers
from bester.broker.fabric_socket import RECEIVED_AT_ONCE, FabricSocket, Frames
from bester.broker.keys import KeyPair
from bester.broker.link_counts import LinkCounts
from bester.broker.long_messages import SHORT_FRAMES, WHY, LongMessages
from bester.broker.share import PART, Share
from bester.broker.turn import Turn
from bester.broker.unread import UNSEEN, Unread, is_scarce
from bester.broker.wire.messages import MAX_FRAMES
from bester.broker.zap import DOMAIN, OnRefused

HANDSHAKE_MS = 5000
"""Time of a connection for its handshake: as long as a client has for its first frame."""
PING_MS = 2000
"""Interval of ZMTP's PINGs, the fabric's own. libzmq answers them on a thread of its own, whatever its program does."""
SILENT_MS = 10_000
"""Time of a connection for its answer to a PING, or anything else: longer than the patience of the fabric (6 s), which
gives up links, not connections. The connections of a machine that is gone would count among those of its key for
good."""
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

PAUSE_S = 1.0
"""Time for which a door accepts nobody where descriptors are scarce: a handshake has HANDSHAKE_MS at most."""
_EVENTS = zmq.EVENT_LISTENING | zmq.EVENT_ACCEPTED | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL | zmq.EVENT_DISCONNECTED
"""Not EVENT_HANDSHAKE_FAILED_PROTOCOL: behind a handshake, as for a nonce that was used before, telling of the error
makes libzmq forget it. The connection would stay, and be read no more; once it was reset, the next PING would end this
process (zeromq/libzmq 4364)."""
UNFINISHED = "it ended in the handshake: it does not encrypt, or is no Bester"
REFUSED = "it has another public key for this server than `bester keys` prints here, or it does not encrypt"
CROWD = "too many connections are in the handshake at once: see who opens them, and have a firewall bound them"
"""Reasons for the log."""


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
        numbers: ConnectionNumbers,
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
        self._begun: tuple[Frames, Connection] | None = None  # a message whose rest comes, and how it comes
        self._holders: dict[bytes, Connection] = {}  # by routing id
        self._numbers = numbers
        self._open: dict[int, int] = {}  # by descriptor of an accepted connection: its own number is a higher one
        self._connections: dict[int, Connection] = {}  # those that have sent a message and are open, by descriptor
        self._links = links or LinkCounts()
        self._ended: dict[bytes, Connection] = {}  # those that have ended, by routing id, until all messages are read
        self._long = long_messages or LongMessages()
        self._dropped: dict[Connection, bool] = {}  # those that were cut: has the connection ended?
        self.unread = Unread()
        self._listener = -1  # its descriptor
        self._paused: asyncio.TimerHandle | None = None
        self._has_failed = False  # a handshake; its descriptor comes next
        # At a bound on messages libzmq stops the input, and a PING among what it has read ends this process, once the
        # connection is reset (zeromq/libzmq 3937). Instead the bytes are bounded (`unread`), and what waits (`slices`).
        self.socket.rcvhwm = 0
        self.watch(_EVENTS, self._on_event)
        self._numbers.looks.append(self._take_in_events)

    def send_to(self, identity: bytes, party: str, frames: Frames) -> None:
        """Send to a party, if the connection of its routing id is its own. Raises as `send` does."""
        self._was_used = True
        self.socket.getsockopt(zmq.EVENTS)  # ends the pipes of connections that have ended ...
        self._take_in_events()  # ... whose ends are in the monitor before
        holder = self._holders.get(identity)
        if holder is None or holder.key != party.encode() or self._ended.get(identity) == holder:
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
                came_by = self._connection_of(first)
                frames = [came_by.identity, came_by.key]
                if came_by in self._dropped:
                    self._skipping = True
                    return []
            before = len(frames)
            is_whole = self._receive_some(frames, flags)
            if len(frames) > SHORT_FRAMES and not self._allow(frames, len(frames) - before):
                self._hold_off(came_by)
                self._skipping = self._skipping or not is_whole  # also behind a cut
                return []
            if not is_whole:
                self._begun = frames, came_by
                return []
            if self._is_open(came_by):
                self.unread.count((came_by.key, came_by.descriptor), frames[2:])
            holder = self._holders.get(came_by.identity)
            if holder == came_by:
                return frames
            self._take_in_events()
            if holder is not None and came_by.number < holder.number:
                continue  # late, of a connection whose routing id has passed on: its link is gone
            if came_by in self._dropped:  # while the rest of the message came
                return []
            if holder is not None:
                self._leave(holder)
                self._on_gone(holder.identity, holder.key)
                del self._holders[holder.identity]
            if not self._enter(came_by):
                self._drop(came_by, link_counts.WHY)
                return []
            if self._long.is_held_off(came_by.key.decode(), time.monotonic()):  # its handshake was over before
                self._hold_off(came_by)
                return []
            return frames

    def _connection_of(self, first: Any) -> Connection:
        """Return the connection over which a message has come, of its first frame: the routing id."""
        identity, name = first.bytes, str(first.get("User-Id"))
        holder = self._holders.get(identity)
        if holder is not None and holder.name == name:
            return holder
        return Connection(name, identity, int(first.get(zmq.SRCFD)))

    def _is_open(self, connection: Connection) -> bool:
        """Return whether a connection has not ended, as far as its door has taken in: its descriptor may be another's
        by now."""
        before = self._open.get(connection.descriptor)
        return before is not None and connection.number > before

    def _take_in_events(self) -> None:
        if self._monitor is not None:
            self._monitor.read()

    def _allow(self, frames: Frames, received: int) -> bool:
        """Count the frames that were received of a long message; return whether its party may have sent them."""
        return self._long.allow(frames[1].decode(), received, time.monotonic())

    def _hold_off(self, came_by: Connection) -> None:
        """End all links of the party of this connection, and pass on no message of theirs."""
        links = [holder for holder in self._holders.values() if holder.key == came_by.key]
        self._drop(came_by, WHY)
        for each in links:
            self._end(each)
            del self._holders[each.identity]
            self._leave(each)
            self._on_gone(each.identity, each.key)

    def _drop(self, came_by: Connection, why: str) -> None:
        """End a connection, with a line in the log, and pass on none of its messages."""
        address = self.unread.address(came_by.descriptor)
        self._on_refused(address if self._end(came_by) else UNSEEN, came_by.key.decode(), why)

    def _end(self, connection: Connection) -> bool:
        """Pass on no more messages of a connection, and shut the connection down. Return False for one that has ended
        before: its descriptor may be another party's by now."""
        is_open = self._is_open(connection)
        self._dropped[connection] = not is_open
        if is_open:
            self.unread.cut(connection.descriptor)
        return is_open

    def _enter(self, connection: Connection) -> bool:
        """Take in the first message of a connection; return False where its key has no room for another link. A
        connection that has ended before its message is read ends behind it."""
        if not self._is_open(connection):
            self._ended[connection.identity] = connection
        elif not self._links.has_room(connection.key):
            return False
        else:
            self._connections[connection.descriptor] = connection
            self._links.begin(connection.key)
        self._holders[connection.identity] = connection
        return True

    def _leave(self, connection: Connection) -> None:
        """Count a connection out, where it has not left before."""
        if self._connections.get(connection.descriptor) == connection:
            del self._connections[connection.descriptor]
            self._links.end(connection.key)

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
            address = self.unread.address(descriptor)
            if self.unread.cut(descriptor):
                self._on_refused(address, key.decode(), ahead(size_bytes))

    def cut(self, identity: bytes, party: str, why: str) -> None:
        """End the connection of a party's routing id, with a line in the log."""
        self._take_in_events()
        holder = self._holders.get(identity)
        if holder is None or holder.key != party.encode() or not self._is_open(holder):
            return
        address = self.unread.address(holder.descriptor)
        if self.unread.cut(holder.descriptor):
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
            self._dropped = {each: False for each, has_ended in self._dropped.items() if not has_ended}
            ended, self._ended = self._ended, {}
            for identity, connection in ended.items():
                if self._holders.get(identity) == connection:
                    del self._holders[identity]
                    self._on_gone(identity, connection.key)

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_LISTENING:
            self._listener = value
            held_door.prepare(value)
        elif event == zmq.EVENT_ACCEPTED:
            self._open[value] = self._numbers.last
            self.unread.begin(value)
            if is_scarce(value, self.unread.strangers):
                self._pause()
            for each in self.unread.crowded_out():
                address = self.unread.address(each)
                if self.unread.cut(each):
                    self._on_refused(address, "", CROWD)
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._has_failed = True
        elif event == zmq.EVENT_DISCONNECTED:
            self._on_disconnected(value)

    def _pause(self) -> None:
        """Accept nobody for PAUSE_S: the last descriptors are not for strangers. Those who are in stay."""
        if self._paused is None and self._loop is not None and self._listener >= 0 and held_door.hold(self._listener):
            self._paused = self._loop.call_later(PAUSE_S, self._go_on)

    def _go_on(self) -> None:
        self._paused = None
        held_door.let_in(self._listener)

    def close(self) -> None:
        """Close as FabricSocket does; a pause ends with it."""
        if self._paused is not None:
            self._paused.cancel()
        super().close()

    def _on_disconnected(self, descriptor: int) -> None:
        address = self.unread.address(descriptor)
        has_failed, self._has_failed = self._has_failed, False
        if has_failed:
            self._on_refused(address, "", UNFINISHED)
        elif self._open.get(descriptor) == self._numbers.last:  # ZAP was asked about nobody since it was accepted
            self._on_refused(address, "", REFUSED)
        for each in self._dropped:
            self._dropped[each] |= each.descriptor == descriptor
        self._open.pop(descriptor, None)
        self.unread.end(descriptor)
        left = self._connections.get(descriptor)
        if left is not None:
            self._leave(left)
            self._ended[left.identity] = left
            if self._loop is not None and self._again is None:  # the last messages first
                self._again = self._loop.call_soon(self._drain)


def ahead(size_bytes: int) -> str:
    """Return the reason for which a connection ends that sends so much ahead. The log has each reason once a minute, so
    sizes of one magnitude are one reason."""
    most_mib = 1 << (size_bytes >> 20).bit_length()
    return f"it sent up to {most_mib} MiB ahead of what was read, or of a message that does not end"


def as_bytes(frames: Sequence[bytes]) -> Sequence[bytes]:
    """Return the frames of a CurveSocket's message with those copied that are ZeroMQ's objects so far."""
    return [frame if type(frame) is bytes else _copied(frame) for frame in frames]


def _copied(frame: Any) -> bytes:
    copied: bytes = frame.bytes
    return copied
