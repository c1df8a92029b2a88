"""ZeroMQ socket on an asyncio loop, read without blocking.

The socket's file descriptor is registered with the loop. When the descriptor wakes, all messages are read without
blocking. The descriptor is edge-triggered and wakes once when the socket's state changes, so the state is checked again
after every send. This module decides nothing: messages go to a callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import zmq
from zmq.backend import zmq_poll

from bester.broker import descriptors
from bester.broker.monitor import Monitor, OnEvent
from bester.broker.turn import Turn
from bester.broker.wire.messages import MAX_FRAME_BYTES, MAX_FRAMES

CONTEXT_DESCRIPTORS = 16
"""Descriptors that must be free for a context: two for each of its threads, three at most, and two for a socket."""
HIGH_WATER_MARK = 256
"""Queued ZeroMQ messages (each a batch) for one peer, and from one at a plain door; credit keeps a healthy peer far
below."""
DRAIN_AT_ONCE = 64
"""ZeroMQ messages read before other sockets get their turn."""
SKIPPED_AT_ONCE = 1_000
"""Frames of a message of too many that are dropped before anything else gets its turn, about a millisecond."""
DRAIN_S = 0.005
"""Seconds of reading before other sockets get their turn, as some messages are costly to carry out."""
RECEIVED_AT_ONCE = 256
"""Frames of one message that are received before the clock is looked at, some tenths of a millisecond."""
MAX_MET = 20_000
"""Peers of one socket whose process is remembered; above the bound all are looked up again with their next message."""
_NOBLOCK = int(zmq.NOBLOCK)
_POLLIN, _RCVMORE = int(zmq.POLLIN), int(zmq.RCVMORE)
_MORE_FOLLOWS = int(zmq.NOBLOCK | zmq.SNDMORE)
"""Flags as plain integers: each use of an enum's member costs pyzmq half a microsecond and more. So does each option
that is asked for: a frame received as an object knows whether another one follows, and a poll of one socket tells of
input."""

Frames = list[bytes]


def new_context(io_threads: int = 1) -> zmq.Context[zmq.Socket[bytes]]:
    """Return a ZeroMQ context. Raises OSError where its threads could not have their descriptors: ZeroMQ, which opens
    them with the first socket, would abort the process."""
    descriptors.require(CONTEXT_DESCRIPTORS)
    return zmq.Context(io_threads)


class FabricSocket:
    """ZeroMQ socket on the loop; `on_frames` gets each message. What the callbacks ask of `turn` is done once
    everything is read that this turn reads, within `drain_s` seconds."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        on_frames: Callable[[Frames], None],
        turn: Turn | None = None,
        drain_s: float = DRAIN_S,
    ) -> None:
        self._on_frames = on_frames
        self._turn = turn or Turn()
        self.socket = context.socket(kind)
        raw: Any = super(zmq.Socket, self.socket)  # without the options of `Socket.send`, which take as long as it does
        self._send_frame: Callable[[bytes, int], object] = raw.send
        self._was_used = False  # since the last look at its input
        self._polled = [(self.socket, _POLLIN)]
        self.socket.linger = 0
        self.socket.set_hwm(HIGH_WATER_MARK)
        self.socket.maxmsgsize = MAX_FRAME_BYTES
        self._receive: Callable[[int], Frames] = self._receive_routed if kind == zmq.ROUTER else self._receive_whole
        self._skipping = False  # the rest of a message of too many frames is still to be read
        self.overlong = 0
        """Count of the messages of too many frames, which are cut: `decode` refuses them."""
        self._met: dict[bytes, int | None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self.messages_read = 0
        """Number of ZeroMQ messages read, by a socket of many peers."""
        self._drain_s = drain_s
        self._drained_s = 0.0  # for which the last turn of reading went on
        self._is_draining = False
        self._is_quiet = False  # the last turn of reading found one message alone
        self._clock: Callable[[], float] = time.monotonic  # of the turns of reading
        self._again: asyncio.Handle | None = None
        self._monitor: Monitor | None = None

    def watch(self, events: int, on_event: OnEvent) -> None:
        """Call back for events of the socket's connections (a sum of zmq.EVENT_…); call before bind or connect."""
        self._monitor = Monitor(self.socket, events, on_event)

    def register(self) -> None:
        """Start reading on the running loop; call after bind or connect."""
        self._loop = asyncio.get_running_loop()
        self._fd = int(self.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self.look_again()

    def close(self) -> None:
        """Stop reading and close the socket; messages that ZeroMQ has not sent are dropped (linger 0)."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
        if self._again is not None:
            self._again.cancel()
            self._again = None
        if self._monitor is not None:
            self._monitor.close()
        self.socket.close()

    def send(self, frames: Frames) -> None:
        """Send one ZeroMQ message now. Raises zmq.Again for a full queue, ZMQError for a peer that has gone."""
        self._was_used = True
        if len(frames) > 1:
            for frame in frames[:-1]:
                self._send_frame(frame, _MORE_FOLLOWS)
        self._send_frame(frames[-1], _NOBLOCK)

    def send_to(self, identity: bytes, party: str, frames: Frames) -> None:
        """Send to one peer of a ROUTER; `party` is its public key, empty on a socket without keys. Raises as `send`
        does."""
        self._was_used = True
        self._send_frame(identity, _MORE_FOLLOWS)
        if len(frames) > 1:
            for frame in frames[:-1]:
                self._send_frame(frame, _MORE_FOLLOWS)
        self._send_frame(frames[-1], _NOBLOCK)

    def remember_processes(self) -> None:
        """Ask the kernel for the process of each peer (`process_of`); for a ROUTER bound to an ipc endpoint."""
        self._met = {}
        self._receive = self._receive_from

    def process_of(self, identity: bytes) -> int | None:
        """Return the process id of a peer that has sent a message; None if the system does not report the id."""
        return None if self._met is None else self._met.get(identity)

    def _receive_whole(self, flags: int) -> Frames:
        """Receive one message; an empty list while the rest of a message of too many frames is skipped."""
        if self._skipping and not self._skip():
            return []
        return self._receive_rest([], flags)

    def _receive_routed(self, flags: int) -> Frames:
        """Receive one message of a ROUTER as `_receive_whole` does: behind the identity there is a frame always."""
        if self._skipping and not self._skip():
            return []
        return self._receive_rest([self.socket.recv(flags)], flags)

    def _receive_rest(self, frames: Frames, flags: int) -> Frames:
        """Receive the next frames up to the end of a message, behind these, and return all."""
        receive: Any = self.socket.recv  # as objects, by position: a name costs more than the call
        while True:
            frame = receive(flags, False)
            frames.append(frame.bytes)
            if len(frames) > MAX_FRAMES + 1:
                self._cut()
                return frames
            if not frame.more:
                return frames

    def _cut(self) -> None:
        """Leave the rest of a message of too many frames to later turns of the loop."""
        self._skipping = bool(self.socket.getsockopt(_RCVMORE))
        self.overlong += 1

    def _skip(self) -> bool:
        """Read and drop some frames of a message that was cut, of which one follows at least. Return whether it has
        ended."""
        receive: Any = self.socket.recv
        for _ in range(SKIPPED_AT_ONCE):
            if not receive(_NOBLOCK, False).more:
                self._skipping = False
                return True
        return False

    def _receive_from(self, flags: int) -> Frames:
        """Receive one message as `_receive_whole` does, and look up the process of a new peer."""
        if self._skipping and not self._skip():
            return []
        identity = self.socket.recv(flags)
        assert self._met is not None
        if identity not in self._met or identity[0]:  # an identity chosen by its owner may come from a new process
            return [identity, *self._meet(identity)]
        frame = self.socket.recv(flags, copy=False)
        if not frame.more:
            return [identity, frame.bytes]
        return self._receive_rest([identity, frame.bytes], flags)

    def _meet(self, identity: bytes) -> Frames:
        """Receive the rest of a message as objects that carry the kernel's data on the sender."""
        rest = [self.socket.recv(_NOBLOCK, copy=False)]
        while self.socket.getsockopt(_RCVMORE):
            rest.append(self.socket.recv(_NOBLOCK, copy=False))
            if len(rest) > MAX_FRAMES:
                self._cut()
                break
        assert self._met is not None
        if len(self._met) >= MAX_MET:
            self._met.clear()
        self._met[identity] = _process_of(rest[0])
        return [frame.bytes for frame in rest]

    def has_input(self) -> bool:
        """Return whether a message can be read; if not, the descriptor wakes for the next one."""
        self._was_used = False
        return bool(zmq_poll(self._polled, 0))

    def look_after_sending(self) -> None:
        """Look again, unless nothing was sent since the last look."""
        if self._was_used:
            self.look_again()

    def look_again(self) -> None:
        """Read in this turn of the loop if messages wait, as a send may have consumed the descriptor's wake-up."""
        if self._loop is None or self._again is not None or self._is_draining:
            return  # `_drain` looks at its end, once for all that was sent meanwhile
        if self.has_input():
            self._again = self._loop.call_soon(self._drain)

    def has_unread(self) -> bool:
        """Return whether input waits; the input is read in this turn of the loop, or the next."""
        self.look_again()
        return self._again is not None

    def cut_endless(self, *, drained: bool) -> None:
        """End connections whose messages do not end; parties on the same machine are trusted with that."""

    def _drain(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        receive, clock = self._receive, self._clock
        began = now = clock()
        enough = began + self._drain_s
        empty, read, parts = False, 0, 0
        self._is_draining = True
        self._turn.begin()
        try:
            for _ in range(DRAIN_AT_ONCE):
                frames = receive(_NOBLOCK)
                read += 1
                if frames:
                    self._on_frames(frames)
                else:
                    parts += 1
                if self._loop is None:  # closed by a callback
                    return
                if (now := clock()) >= enough:
                    break
                if read == 1 and not self._has_more():  # most often; a receive that fails costs three times as much
                    empty = True
                    break
        except zmq.Again:
            empty = True
        finally:
            self.messages_read += read - parts
            self._drained_s = now - began
            self._is_quiet = read == 1
            try:
                self._turn.end()
            finally:
                self._is_draining = False
                if self._was_used or not empty:  # also after an exception of a callback: nothing wakes for the rest
                    self.look_again()

    def _has_more(self) -> bool:
        """Return whether another message follows the first one of a turn. In quiet times, in which none does, the first
        one is answered before the look at the socket."""
        if self._is_quiet:
            self._turn.end()
            self._turn.begin()
        return self._loop is not None and self.has_input()


class SharedSocket(FabricSocket):
    """FabricSocket of a worker, whose watch sends heartbeats from another thread while a handler holds the loop.

    A ZeroMQ socket may pass from thread to thread, but must never be used by two at once: each use is made under a
    lock. Callbacks run outside of the lock, so that a handler which holds the loop does not hold the socket as well.
    """

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        kind: int,
        on_frames: Callable[[Frames], None],
        turn: Turn | None = None,
    ) -> None:
        super().__init__(context, kind, on_frames, turn)
        self.guard = threading.Lock()
        self._acquire, self._release = self.guard.acquire, self.guard.release  # half the price of `with`
        self._came: deque[Frames] = deque()
        self._on_read: Callable[[], None] = lambda: None

    def send_after_reading(self, send: Callable[[], None]) -> None:
        """Set a callback that sends the answers to what was read, before the socket is asked for more. `send` is
        called after each callback with frames, also one that has failed."""
        self._on_read = send

    def close(self) -> None:
        """Close as FabricSocket does, under the lock."""
        with self.guard:
            super().close()

    def send(self, frames: Frames) -> None:
        """Send as FabricSocket does, under the lock."""
        self._acquire()
        try:
            super().send(frames)
        finally:
            self._release()

    def has_input(self) -> bool:
        self._acquire()
        try:
            return super().has_input()
        finally:
            self._release()

    def _drain(self) -> None:
        """Read one message, call back and send the answers; then read what else waits, so that the lock is taken once,
        call back for each, and send the answers together.

        Most often there is one message. The look at the socket after its answers is needed anyway, and costs a third of
        a receive that fails.
        """
        if self._again is not None:
            self._again.cancel()
            self._again = None
        enough = time.monotonic() + DRAIN_S
        try:
            self._read(1)
            if self._answer(enough) and self.has_input():
                self._read(DRAIN_AT_ONCE)
                self._answer(enough)
                self.look_again()
        except BaseException:  # raised by a callback: the descriptor does not wake for the rest
            if self._loop is not None and self._again is None:
                self._again = self._loop.call_soon(self._drain)
            raise

    def _read(self, most: int) -> None:
        """Receive so many messages, or as many as there are."""
        came, receive = self._came, self._receive
        self._acquire()
        try:
            while len(came) < most:
                came.append(receive(_NOBLOCK))
        except zmq.Again:
            pass
        finally:
            self._release()

    def _answer(self, enough: float) -> bool:
        """Call back for each message read, and send the answers; return False where the socket is closed, or the rest
        is left to a later turn because the time is over."""
        came = self._came
        try:
            while came:
                frames = came.popleft()
                if frames:
                    self._on_frames(frames)
                if self._loop is None:  # closed by a callback
                    return False
                if came and time.monotonic() >= enough:
                    self._again = self._loop.call_soon(self._drain)
                    return False
        finally:
            self._on_read()
        return self._loop is not None

    def send_from_another_thread(self, frames: Frames) -> bool:
        """Send one ZeroMQ message if the queue has room; return whether the socket is open. Call `look_again` on the
        loop then."""
        with self.guard:
            if self.socket.closed:
                return False
            with contextlib.suppress(zmq.ZMQError):
                self.socket.send_multipart(frames, _NOBLOCK)
        return True


def _process_of(frame: zmq.Frame) -> int | None:
    """Return the process that sent a frame: libzmq gives `HOST:UID:GID:PID` for ipc if the system reports them."""
    try:
        where = str(frame.get("Peer-Address")).split(":")
    except zmq.ZMQError:
        return None
    return int(where[3]) if len(where) == 4 and where[3].isdigit() and int(where[3]) > 0 else None
