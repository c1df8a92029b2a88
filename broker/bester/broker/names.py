"""Lookups of host names on threads, off the event loop; the only such place in the server.

The system's resolver is asked (`getaddrinfo`: hosts file, DNS or other sources), on a thread for each name under
lookup. The threads are daemons, so that a hanging name server delays no program's end, as the pools of asyncio and
uvloop and the lookups of ZeroMQ would. All other modules are given addresses.

`find` looks up one name. `Names` keeps the names of configured servers known, in the schedule of `lookups`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import TypeVar

from bester.broker.hosts import HostAddresses, Hosts, hosts_of
from bester.broker.logs import facts
from bester.broker.lookups import LookupEvent, Lookups

MAX_THREADS = 192
"""Names under lookup in this process: three times the bound of `lookups`, which has as many late ones beside the
others; the rest is for links and clients."""
MOST_ADDRESSES = 64
"""Addresses of a name that count, the system's first: whoever owns the name chooses how many there are, thousands of
them, and before each message to a `host:port` that is not listed each of its addresses is looked at (20 µs)."""
TICK_S = 0.25
"""Interval at which lookups are checked while any is under way or followed."""
NUMERIC_REMEMBERED = 4096
NO_NAME = "it is no host name, in which each part between dots has 1 to 63 characters"
"""Fault of a name that DNS cannot hold."""
STAGGER_S = 0.25
"""Time of an address to accept before the next one is tried, too (RFC 8305, section 8)."""
KEEPALIVE = (("TCP_KEEPIDLE", 10), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3))
"""Seconds of silence before the system asks the other end's, seconds between questions, and questions without an
answer: a host that lost power or cable is noticed in 16 s. Only systems take part, so that an idle end wakes up for
nothing."""

P = TypeVar("P", bound=asyncio.BaseProtocol)
Found = tuple[str, ...] | OSError
"""Result of a lookup: at least one address, or the reason for none."""
Done = Callable[[Found], None]

log = logging.getLogger("bester.names")


@lru_cache(NUMERIC_REMEMBERED)
def numeric(host: str) -> tuple[str, ...]:
    """Return the addresses of an IP address or of `localhost`, which need no lookup; an empty tuple for a name."""
    if host == "localhost":
        return ("127.0.0.1", "::1")
    try:
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except (OSError, ValueError):
        return ()


def _addresses(rows: Iterable[tuple[object, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(row[4][0]) for row in rows if row[0] in (socket.AF_INET, socket.AF_INET6)))  # type: ignore[index]  # the stubs do not say that row[4] is a socket address


def _look_up(host: str) -> Found:
    """Ask the system, which may take any time. Raises nothing."""
    try:
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)) or OSError("it has no address")
    except OSError as error:
        return error
    except ValueError:  # not a name that DNS can hold
        return OSError(NO_NAME)


def reason(error: OSError) -> str:
    """Return the reason of a failed lookup in a few words."""
    return (error.strerror or str(error)).lower()


class LookupThreads:
    """Threads of a process: one for each name under lookup, shared by all requesters of the name."""

    def __init__(self, look_up: Callable[[str], Found] = _look_up, most: int = MAX_THREADS) -> None:
        self._look_up = look_up
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Done]] = {}

    def look_up(self, host: str, done: Done) -> bool:
        """Look a name up; `done` is called on another thread. Return False if too many lookups are under way."""
        with self._lock:
            waiting = self._waiting.get(host)
            if waiting is not None:
                waiting.append(done)
                return True
            if len(self._waiting) >= self._most:
                return False
            self._waiting[host] = [done]
        try:
            threading.Thread(target=self._run, args=(host,), name="name lookup", daemon=True).start()
        except RuntimeError:  # the system has no thread left
            with self._lock:
                del self._waiting[host]
            return False
        return True

    def forget(self, host: str, done: Done) -> None:
        """Cancel the call of `done`; the lookup itself goes on."""
        with self._lock:
            waiting = self._waiting.get(host, [])
            if done in waiting:
                waiting.remove(done)

    def _run(self, host: str) -> None:
        found = self._look_up(host)
        if not isinstance(found, OSError):
            found = found[:MOST_ADDRESSES]
        with self._lock:
            waiting = self._waiting.pop(host)
        for done in waiting:
            done(found)


LOOKUP_THREADS = LookupThreads()


def _on_loop(loop: asyncio.AbstractEventLoop, done: Done) -> Done:
    """Return a function for other threads that schedules `done` on a loop, if the loop still runs."""

    def call(found: Found) -> None:
        try:
            loop.call_soon_threadsafe(done, found)
        except RuntimeError:  # the loop is closed, and no requester is left
            pass

    return call


async def find(host: str, timeout_s: float, threads: LookupThreads = LOOKUP_THREADS) -> tuple[str, ...]:
    """Return the addresses of a host, at least one. Raises OSError if none is found within `timeout_s`."""
    addresses = numeric(host)
    if addresses:
        return addresses
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Found] = loop.create_future()
    done = _on_loop(loop, lambda found: None if future.done() else future.set_result(found))
    if not threads.look_up(host, done):
        raise OSError("too many names are being looked up")
    try:
        async with asyncio.timeout(timeout_s):
            found = await future
    except TimeoutError:
        raise OSError(f"the name server did not answer in {timeout_s:g} s") from None
    finally:
        threads.forget(host, done)
    if isinstance(found, OSError):
        raise found
    return found


async def connect(protocol: Callable[[], P], addresses: tuple[str, ...], port: int, timeout_s: float) -> P:
    """Connect to the first of a host's addresses that accepts; the next one is tried, too, where the earlier ones have
    not answered within STAGGER_S. A connection whose other end is gone without a word breaks by keepalive.

    Raises OSError (or its TimeoutError) if no address accepts.
    """
    async with asyncio.timeout(timeout_s):
        sock = await _first_to_accept(addresses, port)
        return (await asyncio.get_running_loop().create_connection(protocol, sock=sock))[1]


async def _first_to_accept(addresses: tuple[str, ...], port: int) -> socket.socket:
    """Return a socket that is connected to one of the addresses; raises the error of the last one."""
    rest = deque(addresses)
    attempts: set[asyncio.Task[socket.socket]] = set()
    error = OSError("it has no address")
    try:
        while rest or attempts:
            if rest:
                attempts.add(asyncio.create_task(_accepted(rest.popleft(), port)))
            wait_s = STAGGER_S if rest else None
            done, _ = await asyncio.wait(attempts, timeout=wait_s, return_when=asyncio.FIRST_COMPLETED)
            for attempt in done:
                failure = attempt.exception()
                if failure is None:
                    attempts.discard(attempt)
                    return attempt.result()
                if not isinstance(failure, OSError):
                    raise failure
                attempts.discard(attempt)
                error = failure
        raise error
    finally:
        for attempt in attempts:
            attempt.cancel()
        for each in await asyncio.gather(*attempts, return_exceptions=True):
            if isinstance(each, socket.socket):
                each.close()


async def _accepted(address: str, port: int) -> socket.socket:
    """Return a socket that is connected to an address."""
    family, kind, number, _, where = socket.getaddrinfo(
        address, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )[0]
    sock = socket.socket(family, kind, number)
    try:
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE:
            if hasattr(socket, name):  # some systems lack some of them
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        await asyncio.get_running_loop().sock_connect(sock, where)
    except BaseException:
        sock.close()
        raise
    return sock


class Names:
    """Names of servers, kept known on one loop until `close`."""

    def __init__(self, threads: LookupThreads = LOOKUP_THREADS, clock: Callable[[], float] = time.monotonic) -> None:
        self._threads = threads
        self._clock = clock
        self._lookups = Lookups()
        self._labels: dict[str, str] = {}  # followed name: the key in the configuration
        self._followers: Counter[str] = Counter()  # followed name: how many follow the name
        self._listeners: list[Callable[[], None]] = []
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._under_way: dict[str, Done] = {}
        self._notified = 0  # the version that the listeners know
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def follow(self, host: str, label: str) -> None:
        """Keep the name of a host known from now on; `label` names the key in the configuration, for the log."""
        if not numeric(host):
            self._labels.setdefault(host, label)
            self._followers[host] += 1
            self._lookups.follow(host, self._clock())
            self._start_due()

    def unfollow(self, host: str) -> None:
        """Take back one `follow`; a name that nobody follows is looked up no more."""
        if host in self._followers:
            self._followers[host] -= 1
            if not self._followers[host]:
                del self._followers[host], self._labels[host]
                self._lookups.unfollow(host)

    def listen(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change of a followed name."""
        self._listeners.append(changed)

    def host_addresses(self, host: str) -> HostAddresses:
        """Return the current lookup result of a host."""
        addresses = numeric(host)
        return HostAddresses(addresses) if addresses else self._lookups.host_addresses(host, self._clock())

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host, or an empty tuple for an unknown one."""
        return numeric(host) or self._lookups.addresses(host, self._clock())

    def ask(self, host: str, then: Callable[[], None]) -> bool:
        """Look up the unknown name of a host; `then` is called at the end of the lookup, or when the lookup is late.

        Return False, without calling `then`, if the name cannot be looked up now.
        """
        if self._closed or not self._lookups.ask(host, self._clock()):
            return False
        self._waiting.setdefault(host, []).append(then)
        self._start_due()
        return True

    def hint(self, host: str) -> None:
        """Look a followed name up soon, as its host may be known by now, or have moved."""
        self._lookups.hint(host, self._clock())
        self._start_due()

    def close(self) -> None:
        """End all lookups; no callback is called any more."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for host, done in self._under_way.items():
            self._threads.forget(host, done)

    # --- what follows ---

    def _start_due(self) -> None:
        """Start due lookups and schedule the next check."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        now = self._clock()
        for host in self._lookups.start(now):
            done = _on_loop(loop, partial(self._ended, host))
            self._under_way[host] = done
            if not self._threads.look_up(host, done):
                loop.call_soon(self._ended, host, OSError("too many names are being looked up"))
        if self._timer is None and not self._lookups.idle:
            self._timer = loop.call_later(TICK_S, self._tick)

    def _ended(self, host: str, found: Found) -> None:
        if self._closed:
            return
        del self._under_way[host]
        now = self._clock()
        if isinstance(found, OSError):
            self._log_events(self._lookups.on_failed(host, reason(found), now))
        else:
            self._log_events(self._lookups.on_found(host, found, now))
        self._notify([host])
        self._start_due()

    def _tick(self) -> None:
        self._timer = None
        self._log_events(self._lookups.tick(self._clock()))
        self._notify(list(self._waiting))
        self._start_due()

    def _notify(self, hosts: Iterable[str]) -> None:
        """Tell the requesters of these names whose lookup has ended, and the listeners where a followed one has
        changed."""
        for host in hosts:
            if not self._lookups.is_asked(host):
                for then in self._waiting.pop(host, ()):
                    then()
        if self._notified != self._lookups.version:
            self._notified = self._lookups.version
            for changed in self._listeners:
                changed()

    def _log_events(self, events: Iterable[LookupEvent]) -> None:
        for host, event, text in events:
            label = self._labels.get(host, "a server")  # the name may be followed no more
            if event == "lost":
                fields = facts("name-lost", of=label, host=host, why=text)
                log.warning("%s: the name %s cannot be looked up (lookups go on): %s", label, host, text, extra=fields)
            else:
                fields = facts("name-found", of=label, host=host, found=text)
                log.info("%s: the name %s is looked up as %s", label, host, text, extra=fields)


class Followed:
    """Hosts of some servers, followed from `start` on. `hosts` maps the servers' names to their hosts."""

    def __init__(self, hosts: Mapping[str, str], names: Names) -> None:
        self._hosts = dict(hosts)
        self._names = names
        self._changed: Callable[[Hosts], None] = lambda hosts: None

    def start(self, changed: Callable[[Hosts], None]) -> None:
        """Follow the names from now on; `changed` is called with the table after each change."""
        self._changed = changed
        self._names.listen(lambda: changed(self.table()))
        for server, host in self._hosts.items():
            self._names.follow(host, _label(server))

    def replace(self, hosts: Mapping[str, str]) -> None:
        """Follow these servers from now on, and no others; the table is passed on at once if that is a change."""
        before, self._hosts = self._hosts, dict(hosts)
        if before == self._hosts:
            return
        for server, host in self._hosts.items():  # first, so that what stays is never forgotten
            self._names.follow(host, _label(server))
        for host in before.values():
            self._names.unfollow(host)
        self._changed(self.table())

    def table(self) -> Hosts:
        """Return the current table."""
        return hosts_of({server: self._names.host_addresses(host) for server, host in self._hosts.items()})

    def look_again(self, servers: Iterable[str]) -> None:
        """Look up the hosts of these servers soon, as they may be known by now, or have moved."""
        for server in servers:
            if server in self._hosts:  # else the list was replaced meanwhile
                self._names.hint(self._hosts[server])


def _label(server: str) -> str:
    """Return the key in the configuration, for the log."""
    return f"[servers.{server}] native"
