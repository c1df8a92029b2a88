"""Connecting side of a link to a broker: the one shell that the broker, bridges and handlers share.

All messages sent in one turn of the loop leave as one batch a destination, in the turn in which the messages before
them came; a handler's answers leave before its socket is asked for more. A Dialer connects the sockets. This module
decides nothing: the LinkClient does, and messages go to callbacks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from bester.broker.fabric_dialer import Dialer
from bester.broker.fabric_socket import FabricSocket, Frames, SharedSocket
from bester.broker.keys import LinkKeys
from bester.broker.turn import Turn
from bester.broker.unread import Unread
from bester.broker.wire.batches import batches, fault
from bester.broker.wire.codec import decode, decode_together
from bester.broker.wire.codes import WireError
from bester.broker.wire.link_client import LINK_MESSAGES, LinkClient, State, Step, StepEvent
from bester.broker.wire.messages import MAX_FRAME_BYTES, Heartbeat, Malformed, Message
from bester.broker.wire.unsendable import expected_answer, substitute

MAX_QUEUED = 65536
"""Messages that a link queues while its broker does not read; above the bound `send` returns False."""
MAX_ANSWERS = 65536
"""Answers that a link queues beyond MAX_QUEUED: the broker bounds them by credit, and by its own questions. The link to
a broker that asks for more, and reads none, is given up."""
STUCK_RETRY_S = 0.01
LOOK_S = 0.1
"""Interval of the looks at what another server has sent that was not read, as at an encrypted door."""
FLOODED = "it sends more than is read of it"
CLOSING_LINGER_MS = 500
"""Time to send the last messages of a link that closes."""
_NOT_YET = (State.DOWN, State.GREETING)
_HEARTBEAT: Frames = next(iter(batches([Heartbeat()])))


class FabricLink:
    """Connecting side of a link: a DEALER socket, its LinkClient, and the timers and new sockets that the LinkClient
    needs.

    `on_messages` gets all messages but those about the link. `on_ready` is called at every WELCOME, to announce types,
    sessions and the like. `on_lost(why)`: all outstanding requests on the link are void. With `shared`, another thread
    may call `vouch`.

    A message that cannot be sent delays no other message. If the broker waits for such a message, a refusal is sent in
    its place; if this side waits for the broker's answer, `on_messages` gets a refusal as if from the broker.
    `on_unsendable(message, error)` is for the log. Raises ValueError if the HELLO of `link_client` cannot be sent.

    With `keys` the link is encrypted. `called` is the broker's name in the words of `trouble`. `most_values` is the
    bound on the values of what the broker sends in one batch, where the broker is another server's.

    `on_frames` gets each ZeroMQ message first, and returns False for one that must be decoded; it takes no message
    about the link. `pack(queue, most_bytes)` encodes a queue in one ZeroMQ message, or returns None. `turn` is that of
    the other parts of this process.
    """

    def __init__(
        self,
        endpoint: str,
        link_client: LinkClient,
        *,
        on_messages: Callable[[list[Message | Malformed]], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[str], None],
        on_unsendable: Callable[[Message, WireError], None] = lambda message, error: None,
        shared: bool = False,
        keys: LinkKeys | None = None,
        called: str = "the server",
        most_values: int | None = None,
        on_frames: Callable[[Frames], bool] | None = None,
        pack: Callable[[list[Message], int], Frames | None] | None = None,
        turn: Turn | None = None,
    ) -> None:
        wrong = fault(link_client.hello)
        if wrong is not None:
            raise ValueError(f"the HELLO (name, types, version, schemas) cannot be sent: {wrong.text}")
        self.endpoint = endpoint
        self.link_client = link_client
        self._on_unsendable = on_unsendable
        self.trouble = ""
        """Why there is no link, in words for people; empty while there is one."""
        self._most_values = most_values
        self._kind: type[FabricSocket] = SharedSocket if shared else FabricSocket
        self._on_messages = on_messages
        self._on_frames = on_frames
        self._pack = pack
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._dialer = Dialer(
            endpoint, self._new_socket, self._on_socket, self._on_no_socket, self._on_handshake_failed,
            self._on_nobody_there, self._on_connection, is_wanted=lambda: link_client.state is State.DOWN, keys=keys,
            called=called,
        )  # fmt: skip
        self._is_foreign = link_client.hello.role == "server" and not endpoint.startswith("ipc:")
        self._unread: Unread | None = None  # of a foreign server: what has come on this socket's connections
        self._descriptor = -1  # of the latest of them
        self._look_at = 0.0
        self._is_flooded = False
        self._closing = asyncio.Lock()
        self._socket: FabricSocket | None = None
        self._queue: list[Message] = []
        self._stuck: deque[Frames] = deque()
        self._turn = turn or Turn()
        self._flushes = False  # at the end of this turn
        self._is_reading = False  # messages are being read: `_send_answers` sends what is queued meanwhile
        self._most_bytes = MAX_FRAME_BYTES
        """Limit on a body: the broker's for a handler; other roles check bodies where they enter."""
        self._retry_handle: asyncio.TimerHandle | None = None  # of the next try of a flush that has found no room
        self._timer: asyncio.TimerHandle | None = None
        self._due = 0.0
        self._over: asyncio.Event = asyncio.Event()

    def start(self) -> None:
        """Connect on the running loop; return at once, as `on_ready` reports the broker's answer. Raises OSError where
        the system has no descriptors for it, and zmq.ZMQError for an endpoint that ZeroMQ does not take; after
        `reserve`, neither."""
        self._loop = asyncio.get_running_loop()
        if self._socket is not None:
            self._on_socket(self._socket)
        else:
            self._dialer.dial(is_first=True)

    def reserve(self) -> None:
        """Do all of `start` that can fail: connect the first socket, for `start` in the same turn of the loop. An
        endpoint with a name is looked up by `start`, so that only its descriptors are opened here. Raises as `start`
        does."""
        self._loop = asyncio.get_running_loop()
        self._socket = self._dialer.reserve()

    def release(self) -> None:
        """Close what `reserve` has opened, of a link that is not started."""
        self._shut()
        self._dialer.release()

    def send(self, message: Message) -> bool:
        """Queue a message for this turn's batch. Return False without a link or above MAX_QUEUED."""
        if self._socket is None or self.link_client.state in _NOT_YET or len(self._queue) >= MAX_QUEUED:
            return False
        self._queue.append(message)
        if not self._flushes and not self._is_reading:
            self._flush_soon()
        return True

    def send_all(self, messages: Sequence[Message]) -> int:
        """Queue messages as `send` does; return how many were queued."""
        if self._socket is None or self.link_client.state in _NOT_YET:
            return 0
        room = MAX_QUEUED - len(self._queue)
        taken = messages if len(messages) <= room else messages[:room]
        self._queue += taken
        if not self._is_reading:
            self._flush_soon()
        return len(taken)

    def answer(self, *messages: Message) -> None:
        """Queue messages that the broker waits for, also above MAX_QUEUED; without a link they are void. None is lost
        on a link that goes on: above MAX_ANSWERS more the link is given up, in the next turn of the loop."""
        if self._socket is None or self.link_client.state in _NOT_YET:
            return
        if len(self._queue) + len(messages) > MAX_QUEUED + MAX_ANSWERS:
            self.give_up()
            return
        self._queue += messages
        if not self._flushes and not self._is_reading:
            self._flush_soon()

    def give_up(self) -> None:
        """Lose the link, in the next turn of the loop, and begin another: the broker does not read, or floods it."""
        if self._socket is not None:
            self._loop.call_soon(self._on_unread, self._socket)

    def _on_unread(self, socket: FabricSocket) -> None:
        if socket is self._socket:
            now, greeting = self._loop.time(), self.link_client.state is State.GREETING
            self._do(self.link_client.on_handshake_failed(now) if greeting else self.link_client.on_unread(now))

    def flush(self) -> None:
        """Send what is queued now, rather than at the end of this turn, or after the messages that are being read."""
        if self._flushes:
            self._flush()
        elif self._is_reading and self._queue and self._socket is not None and self._retry_handle is None:
            self._send_queue()  # what the socket has to read is looked at after the reading

    def fault(self, message: Message) -> WireError | None:
        """Return the reason why a message cannot be sent on this link, or None."""
        return fault(message, self._most_bytes)

    def vouch(self) -> None:
        """Send a HEARTBEAT from another thread while the loop is held; only for a `shared` link."""
        socket = self._socket
        if not isinstance(socket, SharedSocket) or not socket.send_from_another_thread(_HEARTBEAT):
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._look_again)  # the send may have consumed the loop's wake-up

    def _look_again(self) -> None:
        if self._socket is not None:
            self._socket.look_again()

    def retry(self) -> None:
        """Try at once to connect, where the link is down and waits for its next attempt."""
        if self.link_client.state is State.DOWN and not self._dialer.is_looking_up and self._timer is not None:
            self.link_client.retry_at = self._loop.time()
            self._set_timer(self.link_client.retry_at)

    async def leave(self, timeout_s: float = 5.0) -> None:
        """Send GOODBYE and wait for its echo (or `timeout_s`), after which no request comes.

        Earlier requests may still be answered with `send`, until `close`.
        """
        self._do(self.link_client.leave("closing", self._loop.time()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Leave, unless already done, send queued messages and close the socket. A second call waits for the first."""
        async with self._closing:
            if self._dialer.is_open:
                await self._close(timeout_s)

    async def _close(self, timeout_s: float) -> None:
        if not self._over.is_set():
            await self.leave(timeout_s)
        if self._socket is not None:
            self._flush()
            self._socket.socket.linger = CLOSING_LINGER_MS
        self._shut()
        if self._timer is not None:
            self._timer.cancel()
        await self._dialer.close()

    @property
    def over(self) -> asyncio.Event:
        """Event that is set when the link has ended for good: closed, or refused by the broker
        (`link_client.refusal`)."""
        return self._over

    # --- the socket and its timers ---

    def _new_socket(self, context: zmq.Context[zmq.Socket[bytes]]) -> FabricSocket:
        socket = self._kind(context, zmq.DEALER, self._received, self._turn)
        # As at an encrypted door (`curve`), which sends PINGs itself: at a bound on messages that are not read, the end
        # of its connection ends this process. Credit bounds what a broker sends.
        socket.socket.rcvhwm = 0
        if self._is_foreign:  # a server elsewhere is trusted no more than a party: bytes are bounded
            self._unread = Unread()
            self._descriptor, self._is_flooded = -1, False
        if isinstance(socket, SharedSocket):
            socket.send_after_reading(self._send_answers)
        return socket

    def _on_socket(self, socket: FabricSocket) -> None:
        """Read from a socket that is connected from now on, and greet the broker."""
        self._socket = socket
        socket.register()
        self._do(self.link_client.on_opened(self._loop.time()))

    def _on_no_socket(self, why: str) -> None:
        """Take in that no socket can be had now; another attempt follows."""
        self.link_client.on_open_failed(self._loop.time())
        self.trouble = why
        self._on_lost(why)
        self._set_timer(self.link_client.retry_at)

    def _on_connection(self, descriptor: int, begins: bool) -> None:
        """Count the bytes of a new connection, and those of one that has ended no more: what is left of an earlier one
        goes with the link."""
        if self._unread is None:
            return
        if not begins:
            self._unread.end(descriptor)
            return
        if self._descriptor != -1 and self._socket is not None and self._socket.has_unread():
            self.give_up()  # an honest server has begun anew as well
        self._unread.begin(descriptor)
        self._descriptor = descriptor

    def _count(self, unread: Unread, socket: FabricSocket, frames: Frames, now: float) -> None:
        """Count what was read of a foreign server; give the link up where much more has come."""
        unread.count((b"", self._descriptor), frames)
        if now < self._look_at:
            return
        self._look_at = now + LOOK_S
        if unread.look(drained=not socket.has_input()):
            self._is_flooded = True
            self.give_up()

    def _on_handshake_failed(self) -> None:
        self._do(self.link_client.on_handshake_failed(self._loop.time()))

    def _on_nobody_there(self) -> None:
        self.link_client.on_nobody_there()
        self._set_timer(self.link_client.next_timer())

    def _shut(self) -> None:
        self._forget_flush()
        self._queue.clear()
        self._stuck.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _received(self, frames: Frames) -> None:
        now = self._loop.time()
        self._is_reading = self._kind is SharedSocket
        if self._unread is not None and self._socket is not None:
            self._count(self._unread, self._socket, frames, now)
        if self._on_frames is not None and self._on_frames(frames):
            self.link_client.on_received(now)
            return
        most_values = self._most_values
        messages = decode(frames) if most_values is None else decode_together(frames, most_values)
        if LINK_MESSAGES.isdisjoint(map(type, messages)):
            self.link_client.on_received(now)
            self._on_messages(messages)
            return
        for part in self.link_client.receive_all(messages, now):
            if isinstance(part, Step):
                self._do(part)
            elif self._socket is not None:
                self._on_messages(part)

    def _do(self, step: Step) -> None:
        """Carry out a step of the LinkClient: send first, then handle the event."""
        if step.send:
            self._queue.extend(step.send)
            self._flush()
        if step.event == "welcomed":
            self.trouble = ""
            limit = self.link_client.options.get("max_body") if self.link_client.hello.role == "handler" else None
            self._most_bytes = min(limit, MAX_FRAME_BYTES) if type(limit) is int and limit > 0 else MAX_FRAME_BYTES
            self._on_ready()
        elif step.event == "unknown":
            self._on_lost("the broker does not know this link any more")
        elif step.event in ("lost", "parted"):
            self.trouble = self._why(step.event)
            self._shut()
            self._on_lost(self.trouble)
            self._set_timer(self.link_client.retry_at)
            return
        elif step.event == "over":
            self._over.set()
            if self.link_client.refusal is not None:
                self._shut()
            return
        self._set_timer(self.link_client.next_timer())

    def _why(self, event: StepEvent) -> str:
        if self.link_client.refusal is not None:
            return f"refused: {self.link_client.refusal.text}"
        if event == "parted":
            parting = self.link_client.parting
            return f"the broker closed the link: {parting}" if parting else "the broker closed the link"
        return FLOODED if self._is_flooded else self._dialer.why()

    def _set_timer(self, when: float | None) -> None:
        if when is None:
            return
        if self._timer is not None:
            if not self._timer.cancelled() and self._loop.time() < self._due <= when:
                return  # early enough: that call sets the timer again
            self._timer.cancel()
        self._due = when  # uvloop's handle of an overdue call does not tell its time
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.link_client.state is State.DOWN:
            if self._loop.time() >= self.link_client.retry_at:
                self._dialer.dial()
            else:
                self._set_timer(self.link_client.retry_at)
            return
        unread = self._socket is not None and self._socket.has_unread()
        if self._unread is not None and self._socket is not None and self._unread.look(drained=not unread):
            self._is_flooded = True  # perhaps by a message that does not end, of which nothing is read
            self.give_up()
        self._do(self.link_client.tick(self._loop.time(), self._due, unread=unread))

    # --- sending ---

    def _flush_soon(self) -> None:
        if not self._flushes and self._retry_handle is None:
            self._flushes = True
            self._turn.soon(self._flush)

    def _send_answers(self) -> None:
        """Send what was queued while messages were read, in the same turn of the loop."""
        self._is_reading = False
        if self._queue and self._socket is not None:
            self._send_queue()

    def _flush(self) -> None:
        if self._socket is None:
            self._forget_flush()
            return
        self._send_queue()
        self._socket.look_again()

    def _forget_flush(self) -> None:
        if self._flushes:
            self._flushes = False
            self._turn.forget(self._flush)
        if self._retry_handle is not None:
            self._retry_handle.cancel()
            self._retry_handle = None

    def _send_queue(self) -> None:
        if self._flushes or self._retry_handle is not None:
            self._forget_flush()
        try:
            if self._stuck:
                self._send_stuck()
            # Only now: while the broker does not read, messages stay where `send` counts them.
            queue, self._queue = self._queue, []
            most_bytes = self._most_bytes
            whole = None if self._pack is None else self._pack(queue, most_bytes)
            if whole is not None:
                self._stuck.append(whole)
            else:
                self._stuck.extend(batches(queue, self._cannot_send, most_bytes))
            self._send_stuck()
        except zmq.Again:
            self._retry_handle = self._loop.call_later(STUCK_RETRY_S, self._flush)
        self.link_client.on_sent(self._loop.time())

    def _cannot_send(self, message: Message, error: WireError) -> Message | None:
        answer = expected_answer(message, error)
        if answer is not None:
            answers: list[Message | Malformed] = [answer]
            self._loop.call_soon(self._on_messages, answers)
        self._on_unsendable(message, error)
        return substitute(message, error)

    def _send_stuck(self) -> None:
        assert self._socket is not None
        while self._stuck:
            self._socket.send(self._stuck[0])
            self._stuck.popleft()
