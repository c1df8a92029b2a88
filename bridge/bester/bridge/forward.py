"""Messages to servers that speak the native protocol: one connection, one message, one report.

Connections are bounded in all, for each address, and in time; the end of each says what has become of its message
(`conversation`). Connections to one address are opened in the order of the messages, as many at once as get through. A
message to a host that is being looked up takes up no connection until the lookup has ended; where a lookup is
impossible just now, the message fails at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import partial

from bester.bridge import native_writing
from bester.bridge.conversation import CUT, Conversation, Outcome
from bester.bridge.half_reports import HalfReports
from bester.bridge.limits import Limits
from bester.bridge.long_steps import LongSteps
from bester.bridge.openings import Openings
from bester.bridge.shared_room import SharedRoom
from bester.bridge.standstill import Standstill
from bester.broker.clocks import with_sleep
from bester.broker.layer_turns import LayerTurns
from bester.broker.logs import facts
from bester.broker.names import Names, connect
from bester.broker.tls_faults import TlsError
from bester.broker.tls_stream import connect_tls
from bester.broker.wire.address import HostPort, Network, canonical, is_neighbour, is_within, parse_host_port
from bester.broker.wire.messages import Forward, Meta
from bester.broker.wire.outcomes import failed

UNREACHABLE: Outcome = (failed("unreachable"), {"unsent": True})
OVERLOADED: Outcome = (failed("overloaded"), {"unsent": True})
REFUSED: Outcome = (failed("not-allowed"), {"unsent": True})
UNWRITABLE: Outcome = (failed("malformed"), {"unsent": True})
LOG_S = 60.0
"""Time between two lines of the log on the same fault of TLS with the same server."""
MAX_LOGGED = 256
"""Such faults remembered; the oldest is forgotten first, and may be logged once more."""

log = logging.getLogger("bester.bridge")


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
    host is being looked up; `stranger`: the server is not configured."""

    __slots__ = ("key", "looking_up", "openings", "stranger", "through_s", "to", "waiting")

    def __init__(self, key: str, to: HostPort, most: int, *, stranger: bool) -> None:
        self.key = key
        self.to = to
        self.stranger = stranger
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
        self._listed: dict[str, _Address] = {}  # those with messages or connections, in turn
        self._strangers: dict[str, _Address] = {}
        self._places = SharedRoom(limits.forwards)
        self._queue = SharedRoom(limits.forwards_waiting)
        self._halves = HalfReports(limits.forward_reports)
        self._steps = LongSteps(time.monotonic, lambda step: asyncio.get_running_loop().call_soon(step))
        self._closed = False

    def forward(self, message: Forward) -> None:
        """Take a Forward; `wait_s` in its meta is the time for the report."""
        if self._closed:
            self._done(message.token, *UNREACHABLE)
            return
        stranger = message.meta.get("stranger") is True
        address = self._known(stranger=stranger).get(message.address)
        address = address or self._find(message.address, stranger=stranger)
        if address is None:
            self._done(message.token, *UNREACHABLE)
            return
        if not self._queue.has_room(len(address.waiting), stranger=stranger):
            self._reached["forwards_waiting"] += 1
            self._done(message.token, *OVERLOADED)
            self._forget(address)
            return
        if address.looking_up and len(address.waiting) >= self._limits.forwards_unknown:
            self._reached["forwards_unknown"] += 1
            self._done(message.token, *OVERLOADED)
            return
        self._queue.count(1, stranger=stranger)
        deadline = asyncio.get_running_loop().time() + self._wait_s(message)
        address.waiting.append(_Queued(message, with_sleep(), deadline))
        self._start(address)

    def _known(self, *, stranger: bool) -> dict[str, _Address]:
        return self._strangers if stranger else self._listed

    def _wait_s(self, message: Forward) -> float:
        wait_s = message.meta.get("wait_s")
        return wait_s if isinstance(wait_s, int | float) else self._limits.forward_s

    def _find(self, key: str, *, stranger: bool) -> _Address | None:
        """Return an address whose host is known, or is being looked up; None where neither is possible now."""
        to = _parsed(key)
        if to is None:
            return None
        address = _Address(key, to, self._limits.forwards_per_address, stranger=stranger)
        if not self._names.addresses(to.host):
            if not self._names.ask(to.host, partial(self._looked_up, address)):
                return None
            address.looking_up = True
        self._known(stranger=stranger)[key] = address
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
        self._queue.count(-len(waiting), stranger=address.stranger)
        for queued in waiting:
            self._done(queued.message.token, *outcome)

    def _forget(self, address: _Address) -> None:
        """Forget an address without messages and connections."""
        if not address.waiting and not address.openings.open and not address.looking_up:
            self._known(stranger=address.stranger).pop(address.key, None)

    def _start(self, address: _Address) -> None:
        """Open the connections to an address that the bounds allow."""
        loop = asyncio.get_running_loop()
        if address.looking_up:
            return
        while address.waiting and address.openings.may_open() and self._has_place(address):
            queued = address.waiting.popleft()
            self._queue.count(-1, stranger=address.stranger)
            if queued.deadline <= loop.time():
                self._done(queued.message.token, *UNREACHABLE)
                continue
            address.openings.begin()
            self._places.count(1, stranger=address.stranger)
            task = loop.create_task(self._converse(queued, address))
            self._tasks.add(task)
            task.add_done_callback(partial(self._ended, queued, address))

    def _ended(self, queued: _Queued, address: _Address, task: asyncio.Task[Outcome | None]) -> None:
        """Report the outcome of a task, even of one that was cancelled before its beginning."""
        self._tasks.discard(task)
        address.openings.end()
        self._places.count(-1, stranger=address.stranger)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            task.get_loop().call_exception_handler({"message": "a forward failed", "exception": error, "task": task})
        outcome = CUT if task.cancelled() or error is not None else task.result()
        if outcome is None and self._closed:
            outcome = UNREACHABLE
        if outcome is None:
            address.waiting.appendleft(queued)
            self._queue.count(1, stranger=address.stranger)
        else:
            self._done(queued.message.token, *outcome)
        known = self._known(stranger=address.stranger)
        if known.pop(address.key, None) is not None:
            known[address.key] = address  # others have the place that is free now
        for each in list(self._listed.values()):
            self._start(each)
        for each in list(self._strangers.values()):
            if not self._places.has_room(0, stranger=True):  # users name thousands of them
                break
            self._start(each)
        self._forget(address)

    def _has_place(self, address: _Address) -> bool:
        return self._places.has_room(address.openings.open, stranger=address.stranger)

    def _hold(self, address: str, conversation: Conversation, size: int) -> None:
        """Note how much of an unfinished report is held; where all together are too large, others are given up."""
        now = asyncio.get_running_loop().time()
        self._reached["forward_reports"] += self._halves.hold(conversation, address, size, now, conversation.give_up)

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
            hold = partial(self._hold, address.key)
            later = partial(self._steps.add, address.key)
            make = partial(Conversation, self._limits.forward_report, done, through, hold, later)
            left_s = queued.connect_by - began_s
            tls = queued.message.meta.get("tls") is True
            conversation = await self._connect(make, to, addresses, min(left_s, openings.patience_s), left_s, tls=tls)
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

    async def _connect(
        self, make: Callable[[], Conversation], to: HostPort, addresses: tuple[str, ...], patience_s: float,
        shake_s: float, *, tls: bool,
    ) -> Conversation:  # fmt: skip
        """Connect to one of these addresses of a server: by TLS where `tls` or the configuration asks for it, with
        `shake_s` for the handshake. Raises OSError."""
        context = self._tls(str(canonical(to)), tls)
        if context is None:
            return await connect(make, addresses, to.port, patience_s)
        return await connect_tls(make, addresses, to.port, patience_s, context, to.host, shake_s, self._turns)

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
        for address in (*self._listed.values(), *self._strangers.values()):
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


def _parsed(address: str) -> HostPort | None:
    try:
        return parse_host_port(address)
    except ValueError:
        return None
