"""Messages to servers that speak the native protocol: one connection, one message, one report.

Connections are bounded in all, for each address, and in time. The outcome of a message is the other server's report;
an end of the connection without a report is passed on as it is, and the broker decides:

    sent                  the other end has read the message and closed in peace, without a report
    failed:unreachable    with `unsent`: no connection was made, or TLS has failed (`why`), so nothing can have arrived
    failed:unreachable    without `unsent`: the connection was cut, no report came in time, or the answer was not the
                          native protocol (a proxy's error page, half a report, a report above the limit); the message
                          may have arrived

Connections to one address are opened in the order of the messages, as many at once as get through. A message to a host
that is being looked up takes up no connection until the lookup has ended; where a lookup is impossible just now, the
message fails at once.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import socket
import ssl
import struct
import sys
import termios
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from bester.bridge import native, native_writing
from bester.bridge.frames import Splitter
from bester.bridge.limits import Limits
from bester.bridge.openings import Openings
from bester.bridge.standstill import Standstill
from bester.broker.clocks import with_sleep
from bester.broker.layer_turns import LayerTurns
from bester.broker.logs import facts
from bester.broker.names import Names, connect
from bester.broker.tls_faults import TlsError
from bester.broker.tls_stream import connect_tls
from bester.broker.wire.address import HostPort, Network, canonical, is_neighbour, is_within, parse_host_port
from bester.broker.wire.messages import Forward, Meta
from bester.broker.wire.outcomes import SENT, failed

Outcome = tuple[str, Meta]
"""Outcome of a message, and the meta of a Forwarded."""
READ: Outcome = (SENT, {})
CUT: Outcome = (failed("unreachable"), {})
UNREACHABLE: Outcome = (failed("unreachable"), {"unsent": True})
OVERLOADED: Outcome = (failed("overloaded"), {"unsent": True})
REFUSED: Outcome = (failed("not-allowed"), {"unsent": True})
UNWRITABLE: Outcome = (failed("malformed"), {"unsent": True})
MAX_OTHER = 64
"""Frames of a server before its report that are none: messages of its own may come first, and an answer without an end
must cost its own message alone."""
FIRST_LOOK_S = 0.001
LAST_LOOK_S = 0.05
"""No event tells that the other end has taken in the frame: the shell looks after the first time, then after twice as
long each time, up to the second: a round trip on a local network, and one over continents."""
LOG_S = 60.0
"""Time between two lines of the log on the same fault of TLS with the same server."""
MAX_LOGGED = 256
"""Such faults remembered; the oldest is forgotten first, and may be logged once more."""

log = logging.getLogger("bester.bridge")


class _Conversation(asyncio.Protocol):
    """A connection: writes one frame in `begin`, and reads until a status report comes or the peer ends. `through` is
    called once, when the other end has taken in the frame."""

    def __init__(self, limit_bytes: int, done: asyncio.Future[Outcome], through: Callable[[], None]) -> None:
        self._splitter = Splitter(limit_bytes)
        self._done = done
        self._through: Callable[[], None] | None = through
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._look_s = FIRST_LOOK_S
        self._looking: asyncio.TimerHandle | None = None
        self._parted = False
        self.fault: TlsError | None = None
        self._foreign = False  # the peer does not speak the native protocol: a peaceful end proves nothing
        self._others = 0  # frames that were no report

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's are none by inheritance
        self._transport = transport

    def begin(self, frame: bytes) -> None:
        """Write the frame. Called by the task that waits for the connection: a connection that is given up in the
        moment in which it is made has sent nothing."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(frame)
            self._look()

    def data_received(self, data: bytes) -> None:
        """Take in bytes of the peer: the report on the message, or an answer that is none."""
        self._is_through()  # a peer that answers has read
        for body in self._splitter.feed(data):
            outcome = native.outcome(body)
            if outcome is not None:
                self._end(outcome)
                return
            self._foreign = self._foreign or not native.is_object(body)
            self._others += 1
            if self._others >= MAX_OTHER:
                break
        if self._splitter.refused is not None or self._others >= MAX_OTHER:
            self._end(CUT)

    def eof_received(self) -> bool:
        """Handle the end of the peer's stream: in peace, if the peer's system has taken in all of the frame; else
        `_look` finds a reset."""
        self._parted = True
        if self._through is None:
            self._end(self._peaceful())
        return True

    def _peaceful(self) -> Outcome:
        """Return the outcome of a peaceful end: CUT where the peer does not speak the native protocol, or has sent a
        part of a frame."""
        cut_off = self._transport is not None and self._transport.get_extra_info("truncated") is True
        return CUT if self._foreign or self._splitter.waiting_bytes or cut_off else READ

    def connection_lost(self, exc: Exception | None) -> None:
        self.fault = exc if isinstance(exc, TlsError) else None
        self._end(CUT)

    def _look(self) -> None:
        """Check whether the other end has taken in the frame; check again in a while if not."""
        self._looking = None
        if self._transport is None or self._transport.is_closing():
            return
        if self._parted and is_reset(self._transport):  # no event tells: after the end of its stream nothing is read
            self._end(CUT)
            return
        if self._transport.get_write_buffer_size() or unacknowledged_bytes(self._transport):
            self._looking = self._loop.call_later(self._look_s, self._look)
            self._look_s = min(2 * self._look_s, LAST_LOOK_S)
            return
        self._is_through()
        if self._parted:
            self._end(self._peaceful())

    def _is_through(self) -> None:
        through, self._through = self._through, None
        if through is not None:
            through()

    def _end(self, outcome: Outcome) -> None:
        if self._looking is not None:
            self._looking.cancel()
        if not self._done.done():
            self._done.set_result(outcome)
        self.close()

    def close(self) -> None:
        """End the connection."""
        if self._transport is not None:
            self._transport.close()


class _Queued:
    """Message on its way to an address, since `taken_at`. `deadline` ends the waiting for its report, and `connect_by`
    (from the first attempt on) the making of a connection."""

    __slots__ = ("connect_by", "deadline", "message", "taken_at")

    def __init__(self, message: Forward, taken_at: float, deadline: float) -> None:
        self.message = message
        self.taken_at = taken_at
        self.deadline = deadline
        self.connect_by: float | None = None


class _Address:
    """Messages and connections to one address. `through_s`: when a connection last got through; `looking_up`: the
    host is being looked up."""

    __slots__ = ("key", "looking_up", "openings", "through_s", "to", "waiting")

    def __init__(self, key: str, to: HostPort, most: int) -> None:
        self.key = key
        self.to = to
        self.openings = Openings(most)
        self.through_s = 0.0
        self.looking_up = False
        self.waiting: deque[_Queued] = deque()


class Forwarder:
    """Carrier of Forwards; `done(token, outcome, meta)` is called once for each, in the loop.

    `names` looks hosts up; `tls` returns the context for an address, given whether the message asks for TLS. A message
    for a server that is not configured (`stranger` in its meta) goes to no address of this machine or its link, but for
    those in the `reachable` networks. With `turns` what servers send by TLS has a part of each turn of the loop.
    With `standstill` a message gets the mark `again` where another bridge of the server may have sent it meanwhile.
    """

    def __init__(
        self, limits: Limits, done: Callable[[int, str, Meta], None], names: Names | None = None,
        tls: Callable[[str, bool], ssl.SSLContext | None] = lambda address, tls: None,
        reachable: tuple[Network, ...] = (), reached: Counter[str] | None = None, turns: LayerTurns | None = None,
        standstill: Standstill | None = None,
    ) -> None:  # fmt: skip
        self._standstill = standstill
        self._turns = turns
        self._reached = Counter() if reached is None else reached
        self._limits = limits
        self._reachable = reachable
        self._done = done
        self._names = names or Names()
        self._tls = tls
        self._logged: OrderedDict[tuple[str, str], float] = OrderedDict()  # faults of TLS by address: when logged
        self._tasks: set[asyncio.Task[Outcome | None]] = set()
        self._addresses: dict[str, _Address] = {}  # addresses with messages or connections
        self._queued = 0
        self._closed = False

    def forward(self, message: Forward) -> None:
        """Take a Forward; `wait_s` in its meta is the time for the report."""
        if self._closed:
            self._done(message.token, *UNREACHABLE)
            return
        if self._queued >= self._limits.forwards_waiting:
            self._reached["forwards_waiting"] += 1
            self._done(message.token, *OVERLOADED)
            return
        address = self._addresses.get(message.address) or self._find(message.address)
        if address is None:
            self._done(message.token, *UNREACHABLE)
            return
        if address.looking_up and len(address.waiting) >= self._limits.forwards_unknown:
            self._reached["forwards_unknown"] += 1
            self._done(message.token, *OVERLOADED)
            return
        self._queued += 1
        deadline = asyncio.get_running_loop().time() + self._wait_s(message)
        address.waiting.append(_Queued(message, with_sleep(), deadline))
        self._start(address)

    def _wait_s(self, message: Forward) -> float:
        wait_s = message.meta.get("wait_s")
        return wait_s if isinstance(wait_s, int | float) else self._limits.forward_s

    def _find(self, key: str) -> _Address | None:
        """Return an address whose host is known, or is being looked up; None where neither is possible now."""
        to = _parsed(key)
        if to is None:
            return None
        address = _Address(key, to, self._limits.forwards_per_address)
        if not self._names.addresses(to.host):
            if not self._names.ask(to.host, partial(self._looked_up, address)):
                return None
            address.looking_up = True
        self._addresses[key] = address
        return address

    def _looked_up(self, address: _Address) -> None:
        """Send the waiting messages after the lookup of their host has ended, or taken too long; without an address
        they fail."""
        address.looking_up = False
        if self._names.addresses(address.to.host):
            self._start(address)
        else:
            self._fail(address)
            self._forget(address)

    def _secured_not(self, address: str, fault: TlsError) -> Outcome:
        """Return the outcome of a message that TLS has stopped, and log the reason once a minute."""
        key, now = (address, str(fault)), asyncio.get_running_loop().time()
        if now - self._logged.get(key, -LOG_S) >= LOG_S:
            self._logged.pop(key, None)
            self._logged[key] = now
            extra = facts("tls-failed", address=address, why=str(fault))
            log.warning("TLS with the server at %s failed: %s", address, fault, extra=extra)
        while len(self._logged) > MAX_LOGGED:
            self._logged.popitem(last=False)
        return CUT[0], {"why": str(fault), **({"unsent": True} if fault.unread else {})}

    def _fail(self, address: _Address, outcome: Outcome = UNREACHABLE) -> None:
        """Fail the messages that wait for an address."""
        waiting, address.waiting = address.waiting, deque()
        self._queued -= len(waiting)
        for queued in waiting:
            self._done(queued.message.token, *outcome)

    def _forget(self, address: _Address) -> None:
        """Forget an address without messages and connections."""
        if not address.waiting and not address.openings.open and not address.looking_up:
            self._addresses.pop(address.key, None)

    def _start(self, address: _Address) -> None:
        """Open the connections to an address that the bounds allow."""
        loop = asyncio.get_running_loop()
        if address.looking_up:
            return
        while address.waiting and len(self._tasks) < self._limits.forwards and address.openings.may_open():
            queued = address.waiting.popleft()
            self._queued -= 1
            if queued.deadline <= loop.time():
                self._done(queued.message.token, *UNREACHABLE)
                continue
            address.openings.begin()
            task = loop.create_task(self._converse(queued, address))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, queued, address))

    def _ended(self, queued: _Queued, address: _Address, task: asyncio.Task[Outcome | None]) -> None:
        """Report the outcome of a task, even of one that was cancelled before its beginning."""
        self._tasks.discard(task)
        address.openings.end()
        error = None if task.cancelled() else task.exception()
        if error is not None:
            task.get_loop().call_exception_handler({"message": "a forward failed", "exception": error, "task": task})
        outcome = CUT if task.cancelled() or error is not None else task.result()
        if outcome is None and self._closed:
            outcome = UNREACHABLE
        if outcome is None:
            address.waiting.appendleft(queued)
            self._queued += 1
        else:
            self._done(queued.message.token, *outcome)
        self._start(address)
        self._forget(address)
        for other in list(self._addresses.values()):
            if len(self._tasks) >= self._limits.forwards:
                break
            self._start(other)

    async def _converse(self, queued: _Queued, address: _Address) -> Outcome | None:
        """Return the outcome of the message; None where its connection is to be tried again."""
        loop, openings = asyncio.get_running_loop(), address.openings
        began_s, opening = loop.time(), True

        def through() -> None:
            nonlocal opening
            opening = False
            address.through_s = loop.time()
            openings.through(address.through_s - began_s)
            self._start(address)

        to, conversation = address.to, None
        if queued.connect_by is None:
            queued.connect_by = min(queued.deadline, began_s + self._limits.connect_s)
        try:
            frame = frame_of(queued.message)
            if frame is None:
                return UNWRITABLE
            addresses, refused = self._addresses_for(queued.message, to.host)
            if refused is not None:
                return refused
            done: asyncio.Future[Outcome] = loop.create_future()
            make = partial(_Conversation, self._limits.forward_report, done, through)
            patience_s = min(queued.connect_by - began_s, openings.patience_s)
            context = self._tls(str(canonical(to)), queued.message.meta.get("tls") is True)
            if context is None:
                conversation = await connect(make, addresses, to.port, patience_s)
            else:
                shake_s = queued.connect_by - began_s
                conversation = await connect_tls(
                    make, addresses, to.port, patience_s, context, to.host, shake_s, self._turns
                )
            conversation.begin(self._marked(queued) or frame)
            async with asyncio.timeout_at(queued.deadline):
                outcome = await done
            if outcome == CUT and conversation.fault is not None:
                outcome = self._secured_not(address.key, conversation.fault)
            return outcome
        except OSError as error:  # a TimeoutError is one
            if conversation is not None:
                return CUT
            if isinstance(error, TlsError):
                self._fail(address, outcome := self._secured_not(address.key, error))
                return outcome
            if isinstance(error, TimeoutError) and loop.time() < queued.connect_by:
                return None
            self._names.hint(to.host)  # the host may have moved
            if address.through_s < began_s:  # waiting messages would fare no better
                self._fail(address)
            return UNREACHABLE
        finally:
            if opening:
                openings.failed()
            if conversation is not None:
                conversation.close()

    def _marked(self, queued: _Queued) -> bytes | None:
        """Return the frame of a message that the other end may have had meanwhile from another bridge of this server,
        with the mark of a repeat; None where the process has not stood still."""
        message, standstill = queued.message, self._standstill
        if standstill is None or not standstill.is_in_doubt(queued.taken_at, with_sleep()):
            return None
        return frame_of(message._replace(meta={**message.meta, "again": True}))

    def _addresses_for(self, message: Forward, host: str) -> tuple[tuple[str, ...], Outcome | None]:
        """Return the addresses to which a message may go, and the outcome where there are none."""
        addresses = self._names.addresses(host)
        if not addresses:  # forgotten while the message waited for a connection
            return (), UNREACHABLE
        if message.meta.get("stranger") is True:
            addresses = tuple(each for each in addresses if not self._is_near(each))
        return addresses, None if addresses else REFUSED

    def _is_near(self, address: str) -> bool:
        """Return whether an address is this machine's own or on its link, and not `reachable`: a message must not make
        the server talk to its neighbours. A name may be looked up as any address."""
        return not is_within(address, self._reachable) and (is_neighbour(address) or is_own(address))

    async def close(self) -> None:
        """Cancel everything under way; such messages, and later ones, fail as unreachable."""
        self._closed = True
        for address in self._addresses.values():
            self._fail(address)
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def frame_of(message: Forward) -> bytes | None:
    """Return the frame that hands a message over; None where the message can never be written in JSON."""
    try:
        return native_writing.to_server(message.token, message.type, message.body, message.meta)
    except (ValueError, TypeError, OverflowError):
        return None


def is_own(address: str) -> bool:
    """Return whether an IP address is one of this machine's own: the system would send from it to itself."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:  # sends nothing: the system chooses a way
            probe.connect((address, 9))
            return str(probe.getsockname()[0]) == address
    except OSError:
        return False


def unacknowledged_bytes(transport: asyncio.Transport) -> int:
    """Return how many bytes of a connection the other end's system has not taken in yet; 0 where that is not known."""
    if sys.platform != "linux":
        return 0
    connection: Any = transport.get_extra_info("socket")
    try:
        return int(struct.unpack("i", fcntl.ioctl(connection.fileno(), termios.TIOCOUTQ, b"\0\0\0\0"))[0])
    except (AttributeError, OSError, ValueError):
        return 0


def is_reset(transport: asyncio.Transport) -> bool:
    """Return whether the other end's system has refused bytes of a connection."""
    connection: Any = transport.get_extra_info("socket")
    try:
        return bool(connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))
    except (AttributeError, OSError, ValueError):
        return True  # the socket is closed


def _parsed(address: str) -> HostPort | None:
    try:
        return parse_host_port(address)
    except ValueError:
        return None
