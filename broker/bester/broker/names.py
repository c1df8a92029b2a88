"""Host names become addresses here, off the event loop, and nowhere else.

The system's own resolver is asked (`getaddrinfo`: hosts file, DNS, whatever the machine is set up for), on a thread for
each name that is being looked up. The threads are daemons: a name server that hangs keeps nobody from ending, which the
pools of asyncio and of uvloop, and ZeroMQ's own lookups, would. All else is given addresses alone.

`find` looks up one name. `Names` keeps the names of configured servers known; what is looked up when is decided in
`lookups`.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache, partial
from typing import TypeVar

from bester.broker.hosts import Hosts, Place, hosts_of
from bester.broker.lookups import Lookups, News

MAX_THREADS = 128
"""Names looked up at once in this process, twice what `lookups` asks for: the rest is for links and clients."""
TICK_S = 0.25
"""How often lookups are looked after while there are any."""
NUMERIC_REMEMBERED = 4096

P = TypeVar("P", bound=asyncio.BaseProtocol)
Found = tuple[str, ...] | OSError
"""What a lookup ends with: addresses, at least one, or why there is none."""
Done = Callable[[Found], None]

log = logging.getLogger("bester.names")


@lru_cache(NUMERIC_REMEMBERED)
def numeric(host: str) -> tuple[str, ...]:
    """Return the addresses of a host that needs no lookup, being an address itself or `localhost`; else none."""
    if host == "localhost":
        return ("127.0.0.1", "::1")
    try:
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
    except (OSError, ValueError):
        return ()


def _addresses(rows: Iterable[tuple[object, ...]]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(str(row[4][0]) for row in rows if row[0] in (socket.AF_INET, socket.AF_INET6)))  # type: ignore[index]  # the stubs do not say that row[4] is a socket address


def _look_up(host: str) -> Found:
    """Ask the system; takes as long as it likes. Raises nothing."""
    try:
        return _addresses(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)) or OSError("it has no address")
    except OSError as error:
        return error
    except ValueError as error:  # what cannot be written as a name in the DNS
        return OSError(f"it is no host name: {error}")


def reason(error: OSError) -> str:
    """Say in a few words why a name could not be looked up."""
    return (error.strerror or str(error)).lower()


class Lookers:
    """The threads of a process: one for each name that is being looked up, whoever wants to know it."""

    def __init__(self, look_up: Callable[[str], Found] = _look_up, most: int = MAX_THREADS) -> None:
        self._look_up = look_up
        self._most = most
        self._lock = threading.Lock()
        self._waiting: dict[str, list[Done]] = {}

    def look_up(self, host: str, done: Done) -> bool:
        """Look a name up; `done` is called on another thread. False: too many are being looked up."""
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
        except RuntimeError:  # the system has no thread for us
            with self._lock:
                del self._waiting[host]
            return False
        return True

    def forget(self, host: str, done: Done) -> None:
        """Do not call `done` any more; the lookup itself goes on."""
        with self._lock:
            waiting = self._waiting.get(host, [])
            if done in waiting:
                waiting.remove(done)

    def _run(self, host: str) -> None:
        found = self._look_up(host)
        with self._lock:
            waiting = self._waiting.pop(host)
        for done in waiting:
            done(found)


LOOKERS = Lookers()


def _on_loop(loop: asyncio.AbstractEventLoop, done: Done) -> Done:
    """Return a function for other threads that has `done` called on a loop, if that still runs."""

    def call(found: Found) -> None:
        try:
            loop.call_soon_threadsafe(done, found)
        except RuntimeError:  # it is closed: nobody wants to know any more
            pass

    return call


async def find(host: str, timeout_s: float, lookers: Lookers = LOOKERS) -> tuple[str, ...]:
    """Return the addresses of a host, at least one. Raises OSError where there is none, or none in `timeout_s`."""
    known = numeric(host)
    if known:
        return known
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Found] = loop.create_future()
    done = _on_loop(loop, lambda found: None if future.done() else future.set_result(found))
    if not lookers.look_up(host, done):
        raise OSError("too many names are being looked up")
    try:
        async with asyncio.timeout(timeout_s):
            found = await future
    except TimeoutError:
        raise OSError(f"the name server did not answer in {timeout_s:g} s") from None
    finally:
        lookers.forget(host, done)
    if isinstance(found, OSError):
        raise found
    return found


async def connect(protocol: Callable[[], P], addresses: tuple[str, ...], port: int, timeout_s: float) -> P:
    """Connect to the first of a host's addresses that takes a connection; each gets its share of the time.

    Raises OSError (a TimeoutError is one) where none does.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    *others, last = addresses
    for number, address in enumerate(others):
        try:
            async with asyncio.timeout((deadline - loop.time()) / (len(addresses) - number)):
                return (await loop.create_connection(protocol, address, port))[1]
        except OSError:
            continue
    async with asyncio.timeout_at(deadline):
        return (await loop.create_connection(protocol, last, port))[1]


class Names:
    """The names of servers, kept known on one loop. `close` ends it."""

    def __init__(self, lookers: Lookers = LOOKERS, clock: Callable[[], float] = time.monotonic) -> None:
        self._lookers = lookers
        self._clock = clock
        self._lookups = Lookups()
        self._labels: dict[str, str] = {}  # of followed names: where they were written
        self._listeners: list[Callable[[], None]] = []
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._under_way: dict[str, Done] = {}
        self._told = 0  # the version that the listeners know
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def follow(self, host: str, label: str) -> None:
        """Keep the name of a host known from now on; `label` says in the log where it was written."""
        if not numeric(host):
            self._labels.setdefault(host, label)
            self._lookups.follow(host, self._clock())
            self._go_on()

    def listen(self, changed: Callable[[], None]) -> None:
        """Have `changed` called whenever more, or something else, is known of a followed name."""
        self._listeners.append(changed)

    def place(self, host: str) -> Place:
        """Return what is known of a host now."""
        known = numeric(host)
        return Place(known) if known else self._lookups.place(host, self._clock())

    def addresses(self, host: str) -> tuple[str, ...]:
        """Return the addresses of a host, none where it is not known now."""
        return numeric(host) or self._lookups.addresses(host, self._clock())

    def ask(self, host: str, then: Callable[[], None]) -> bool:
        """Have the name of a host looked up that is not known; `then` is called once that has ended, or has taken too
        long. False: it is not known, and cannot be looked up just now; `then` is not called."""
        if self._closed or not self._lookups.ask(host, self._clock()):
            return False
        self._waiting.setdefault(host, []).append(then)
        self._go_on()
        return True

    def hint(self, host: str) -> None:
        """A followed name may be found, or be elsewhere, by now: look it up soon."""
        self._lookups.hint(host, self._clock())
        self._go_on()

    def close(self) -> None:
        """Look nothing up any more; what is being looked up is nobody's business then."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        for host, done in self._under_way.items():
            self._lookers.forget(host, done)

    # --- what follows ---

    def _go_on(self) -> None:
        """Begin what is due, tell whoever waits, and look again in a while."""
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        now = self._clock()
        for host in self._lookups.start(now):
            done = _on_loop(loop, partial(self._ended, host))
            self._under_way[host] = done
            if not self._lookers.look_up(host, done):
                loop.call_soon(self._ended, host, OSError("too many names are being looked up"))
        if self._timer is None and not self._lookups.idle:
            self._timer = loop.call_later(TICK_S, self._tick)

    def _ended(self, host: str, found: Found) -> None:
        if self._closed:
            return
        del self._under_way[host]
        now = self._clock()
        if isinstance(found, OSError):
            self._say(self._lookups.failed(host, reason(found), now))
        else:
            self._say(self._lookups.found(host, found, now))
        self._tell()
        self._go_on()

    def _tick(self) -> None:
        self._timer = None
        self._say(self._lookups.tick(self._clock()))
        self._tell()
        self._go_on()

    def _tell(self) -> None:
        for host in [host for host in self._waiting if not self._lookups.is_asked(host)]:
            for then in self._waiting.pop(host):
                then()
        if self._told != self._lookups.version:
            self._told = self._lookups.version
            for changed in self._listeners:
                changed()

    def _say(self, news: Iterable[News]) -> None:
        for host, event, text in news:
            label = self._labels[host]
            if event == "lost":
                log.warning("%s: the name %s cannot be looked up (it is tried on and on): %s", label, host, text)
            else:
                log.info("%s: the name %s is looked up as %s", label, host, text)


class Followed:
    """The hosts of some servers, followed by name once `start` is called. `hosts`: the servers' names → their hosts."""

    def __init__(self, hosts: Mapping[str, str], names: Names) -> None:
        self._hosts = dict(hosts)
        self._names = names

    def start(self, changed: Callable[[Hosts], None]) -> None:
        """Look the names up from now on; `changed` is called with the table whenever it may be another."""
        self._names.listen(lambda: changed(self.table()))
        for server, host in self._hosts.items():
            self._names.follow(host, f"[servers.{server}] native")

    def table(self) -> Hosts:
        """Return what is known now."""
        return hosts_of({server: self._names.place(host) for server, host in self._hosts.items()})

    def look_again(self, servers: Iterable[str]) -> None:
        """These servers may be found, or be elsewhere, by now."""
        for server in servers:
            self._names.hint(self._hosts[server])
