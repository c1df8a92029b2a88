"""ZeroMQ sockets on an asyncio loop: the one shell that the broker, bridges and handlers share.

A socket's file descriptor is registered with the loop; when it wakes, everything there is is drained without
blocking, and everything that was said in this turn of the loop leaves as one batch a destination. The descriptor is
edge-triggered: it wakes once when the socket's state changes, so the state is looked at again after every send.
ZeroMQ is given addresses, never names: it would look them up on the thread that moves all its bytes, and not end before
the name server has answered. Nothing here decides anything: messages go to the callbacks they are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable, Sequence

import zmq

from bester.broker.lookups import PATIENCE_S
from bester.broker.names import find, numeric, reason
from bester.broker.wire.address import HostPort, parse_endpoint
from bester.broker.wire.codec import batches, decode, fault
from bester.broker.wire.codes import WireError
from bester.broker.wire.messages import MAX_FRAME_BYTES, Malformed, Message
from bester.broker.wire.party import LINK_MESSAGES, Party, State, Step
from bester.broker.wire.unsendable import as_if, instead

HIGH_WATER_MARK = 256
"""ZeroMQ messages (each a batch) that may wait for one peer; credit keeps a healthy one far below."""
DRAIN_AT_ONCE = 64
"""ZeroMQ messages read before other sockets get their turn."""
DRAIN_S = 0.005
"""And how long that may take: a peer whose messages are costly to carry out must not hold up everybody else's."""
MAX_OUTBOX = 65536
"""Messages a link holds while its broker does not read; above it `send` says no."""
STUCK_RETRY_S = 0.01
CLOSING_LINGER_MS = 500
"""How long the last words of a link that ends in peace may take."""
_NOT_YET = (State.DOWN, State.GREETING)

Frames = list[bytes]


class FabricSocket:
    """One ZeroMQ socket: `on_frames` gets each message that came, `on_drained` follows the last one of a turn."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], kind: int, on_frames: Callable[[Frames], None]) -> None:
        self._on_frames = on_frames
        self.socket = context.socket(kind)
        self.socket.linger = 0
        self.socket.set_hwm(HIGH_WATER_MARK)
        self.socket.maxmsgsize = MAX_FRAME_BYTES
        self._loop: asyncio.AbstractEventLoop | None = None
        self._fd = -1
        self._again: asyncio.Handle | None = None

    def register(self) -> None:
        """Start reading, on the running loop; call it after bind or connect."""
        self._loop = asyncio.get_running_loop()
        self._fd = int(self.socket.getsockopt(zmq.FD))
        self._loop.add_reader(self._fd, self._drain)
        self.look_again()

    def close(self) -> None:
        """Stop reading and close; what ZeroMQ has not sent is dropped (linger 0)."""
        if self._loop is not None:
            self._loop.remove_reader(self._fd)
            self._loop = None
        if self._again is not None:
            self._again.cancel()
            self._again = None
        self.socket.close()

    def send(self, frames: Frames) -> None:
        """Send one ZeroMQ message now. Raises zmq.Again where the peer's queue is full, ZMQError where it is gone."""
        self.socket.send_multipart(frames, zmq.NOBLOCK)

    def look_again(self) -> None:
        """A send may have swallowed the wake-up for what arrived meanwhile: look, in this turn of the loop."""
        if self._loop is not None and self._again is None and int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._again = self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None
        receive = self.socket.recv_multipart
        enough = time.monotonic() + DRAIN_S
        empty = False
        try:
            for _ in range(DRAIN_AT_ONCE):
                self._on_frames(receive(zmq.NOBLOCK))
                if self._loop is None:  # closed by what it heard
                    return
                if time.monotonic() >= enough:
                    break
        except zmq.Again:
            empty = True
        finally:
            if not empty:  # also where somebody's code failed on a message: the descriptor does not wake for the rest
                self.look_again()


class FabricLink:
    """The connecting side of a link: a DEALER, its Party, and the timers and new sockets that the Party asks for.

    `on_messages` gets what came, but for what is about the link itself. `on_ready` is called at every WELCOME: say
    who you are and what you hold. `on_lost(why)`: everything outstanding on the link is void.

    A message that cannot be sent holds up no other. Where the broker waits for it, the broker is sent that it cannot
    be; where this side waits for the broker's answer, `on_messages` gets a refusal as if the broker had sent it.
    `on_unsendable(message, error)` is told, for the log. Raises ValueError where the HELLO of `party` cannot be sent.
    """

    def __init__(
        self,
        endpoint: str,
        party: Party,
        *,
        on_messages: Callable[[list[Message | Malformed]], None],
        on_ready: Callable[[], None],
        on_lost: Callable[[str], None],
        on_unsendable: Callable[[Message, WireError], None] = lambda message, error: None,
    ) -> None:
        wrong = fault(party.hello)
        if wrong is not None:
            raise ValueError(f"what it says of itself (its name, its types, a version, schemas): {wrong.text}")
        self.endpoint = endpoint
        self.party = party
        self._on_unsendable = on_unsendable
        self._on_messages = on_messages
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: FabricSocket | None = None
        self._outbox: list[Message] = []
        self._stuck: deque[Frames] = deque()
        self._flush_handle: asyncio.Handle | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._over: asyncio.Event = asyncio.Event()
        self._finding: asyncio.Task[None] | None = None
        self._opened = 0  # how often a socket was: the addresses of a name are tried in turn

    def start(self) -> None:
        """Connect, on the running loop; returns at once, `on_ready` tells when the broker has answered."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._begin()

    def send(self, message: Message) -> bool:
        """Queue a message for the batch of this turn of the loop. False: there is no link now, or too much waits."""
        if self._socket is None or self.party.state in _NOT_YET or len(self._outbox) >= MAX_OUTBOX:
            return False
        self._outbox.append(message)
        if self._flush_handle is None:
            self._flush_soon()
        return True

    def send_all(self, messages: Sequence[Message]) -> int:
        """Queue messages, as `send` does each; returns how many there was room for."""
        if self._socket is None or self.party.state in _NOT_YET:
            return 0
        taken = messages[: MAX_OUTBOX - len(self._outbox)]
        self._outbox.extend(taken)
        self._flush_soon()
        return len(taken)

    def fault(self, message: Message) -> WireError | None:
        """Return why a message cannot be sent on this link, None where it can: for who would rather know at once."""
        return fault(message, self._most_bytes)

    @property
    def _most_bytes(self) -> int:
        """The limit on a body: a handler's is what the broker said; others check theirs where they come in."""
        told = self.party.options.get("max_body") if self.party.hello.role == "handler" else None
        return min(told, MAX_FRAME_BYTES) if type(told) is int and told > 0 else MAX_FRAME_BYTES

    async def leave(self, timeout_s: float = 5.0) -> None:
        """Say GOODBYE and wait for its echo (or `timeout_s`): nothing new comes after it.

        What came before may still be answered with `send`, until `close`.
        """
        self._do(self.party.leave("closing", self._loop.time()))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), timeout_s)

    async def close(self, timeout_s: float = 5.0) -> None:
        """Leave, unless that was done before, send what is queued and close the socket."""
        if self._context is None:
            return
        if not self._over.is_set():
            await self.leave(timeout_s)
        if self._socket is not None:
            self._flush()
            self._socket.socket.linger = CLOSING_LINGER_MS
        self._shut()
        if self._finding is not None:
            self._finding.cancel()
        if self._timer is not None:
            self._timer.cancel()
        context, self._context = self._context, None
        await asyncio.to_thread(context.term)

    @property
    def over(self) -> asyncio.Event:
        """Set once the link has ended for good: closed, or refused by the broker (`party.refusal`)."""
        return self._over

    # --- the socket and its timers ---

    def _begin(self) -> None:
        """Connect a new socket; where the endpoint has a name in it, as soon as that is looked up."""
        tcp = _tcp_of(self.endpoint)
        if tcp is None:
            self._open(self.endpoint)
        elif addresses := numeric(tcp.host)[:1]:  # brokers on `localhost` listen on IPv4
            self._open_tcp(addresses, tcp)
        elif self._finding is None:
            self._finding = self._loop.create_task(self._find(tcp))

    async def _find(self, tcp: HostPort) -> None:
        try:
            addresses = await find(tcp.host, PATIENCE_S)
        except OSError as error:
            self._finding = None
            if self.party.state is State.DOWN:
                self.party.not_opened(self._loop.time())
                self._on_lost(f"the name {tcp.host} cannot be looked up: {reason(error)}")
                self._set_timer(self.party.retry_at)
            return
        self._finding = None
        if self.party.state is State.DOWN:  # nobody has told it to leave meanwhile
            self._open_tcp(addresses, tcp)

    def _open_tcp(self, addresses: tuple[str, ...], tcp: HostPort) -> None:
        address = tcp._replace(host=addresses[self._opened % len(addresses)])
        self._opened += 1
        self._open(f"tcp://{address}")

    def _open(self, endpoint: str) -> None:
        assert self._context is not None
        self._socket = FabricSocket(self._context, zmq.DEALER, self._received)
        self._socket.socket.ipv6 = "[" in endpoint  # without it ZeroMQ takes no IPv6 address
        self._socket.socket.connect(endpoint)
        self._socket.register()
        self._do(self.party.opened(self._loop.time()))

    def _shut(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        self._outbox.clear()
        self._stuck.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _received(self, frames: Frames) -> None:
        now = self._loop.time()
        messages = decode(frames)
        if LINK_MESSAGES.isdisjoint(map(type, messages)):
            self.party.heard(now)
            self._on_messages(messages)
            return
        passed: list[Message | Malformed] = []
        for message in messages:
            step = self.party.receive(message, now)
            if step.event is None and not step.send:
                passed.append(message)
                continue
            if passed:
                self._on_messages(passed)
                passed = []
            self._do(step)
        if passed and self._socket is not None:
            self._on_messages(passed)

    def _do(self, step: Step) -> None:
        """Carry out what the Party said, in its order: send, then the event."""
        if step.send:
            self._outbox.extend(step.send)
            self._flush()
        if step.event == "welcomed":
            self._on_ready()
        elif step.event == "unknown":
            self._on_lost("the broker has restarted")
        elif step.event in ("lost", "parted"):
            self._shut()
            self._on_lost(self._why(step.event))
            self._set_timer(self.party.retry_at)
            return
        elif step.event == "over":
            self._over.set()
            if self.party.refusal is not None:
                self._shut()
            return
        self._set_timer(self.party.next_timer())

    def _why(self, event: str) -> str:
        if self.party.refusal is not None:
            return f"refused: {self.party.refusal.text}"
        return "the broker said goodbye" if event == "parted" else f"nothing heard from {self.endpoint}"

    def _set_timer(self, when: float | None) -> None:
        if when is None:
            return
        if self._timer is not None:
            if not self._timer.cancelled() and self._timer.when() <= when and self._timer.when() > self._loop.time():
                return  # fires early enough; it will look again
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self.party.state is State.DOWN:
            if self._loop.time() >= self.party.retry_at:
                self._begin()
            else:
                self._set_timer(self.party.retry_at)
            return
        self._do(self.party.tick(self._loop.time()))

    # --- sending ---

    def _flush_soon(self) -> None:
        if self._flush_handle is None:
            self._flush_handle = self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        if self._flush_handle is not None:
            self._flush_handle.cancel()
            self._flush_handle = None
        if self._socket is None:
            return
        try:
            self._send_stuck()
            # Not before: as long as the broker does not read, messages stay where `send` counts them.
            outbox, self._outbox = self._outbox, []
            self._stuck.extend(batches(outbox, self._cannot_send, self._most_bytes))
            self._send_stuck()
        except zmq.Again:
            self._flush_handle = self._loop.call_later(STUCK_RETRY_S, self._flush)
        self.party.sent(self._loop.time())
        self._socket.look_again()

    def _cannot_send(self, message: Message, error: WireError) -> Message | None:
        answer = as_if(message, error)
        if answer is not None:
            answers: list[Message | Malformed] = [answer]
            self._loop.call_soon(self._on_messages, answers)
        self._on_unsendable(message, error)
        return instead(message, error)

    def _send_stuck(self) -> None:
        assert self._socket is not None
        while self._stuck:
            self._socket.send(self._stuck[0])
            self._stuck.popleft()


def _tcp_of(endpoint: str) -> HostPort | None:
    """Return where a tcp endpoint is; None of any other, and of what is none: that is for ZeroMQ to refuse."""
    try:
        return parse_endpoint(endpoint).tcp
    except ValueError:
        return None
