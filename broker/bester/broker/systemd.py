"""Service manager of this process: its notifications and watchdog, the sockets that it passes, and its journal.

systemd's protocols by plain sockets, without its library: `sd_notify(3)`, `sd_watchdog_enabled(3)`,
`sd_listen_fds(3)`, `sd-daemon(3)` and `systemd.exec(5)` (JOURNAL_STREAM) describe them. A process without a service
manager has none of their variables, and everything here does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import MutableMapping
from typing import TYPE_CHECKING

from bester.broker.wire.codes import ConfigError

if TYPE_CHECKING:
    import asyncio

FIRST_FD = 3
"""Number of the first passed descriptor, as `sd_listen_fds` fixes it."""
MAX_PASSED = 64
"""Bound of LISTEN_FDS: a server has a handful of listeners, and a larger number is a mistake."""
PINGS_A_PERIOD = 3
"""Watchdog notifications in one period of the watchdog: two may be late or lost."""
STATUS_CHARACTERS = 200
"""Longest status: `systemctl status` shows one line."""


class ServiceManager:
    """The service manager, and what it has given to this process. All fields are empty where there is none.

    `watchdog_s` is the time after which the manager ends a service that sends nothing, in seconds, or None.
    """

    def __init__(
        self, notify: str | None = None, watchdog_s: float | None = None, passed: tuple[socket.socket, ...] = ()
    ) -> None:
        self.watchdog_s = watchdog_s
        self._address = notify
        self._passed = list(passed)
        self._timer: asyncio.TimerHandle | None = None

    @classmethod
    def of(cls, environment: MutableMapping[str, str]) -> ServiceManager:
        """Take the service manager's variables out of an environment, so that no child process takes them for its own.

        Raises ConfigError where a passed descriptor is no listening socket.
        """
        notify = environment.pop("NOTIFY_SOCKET", None)
        period = _number(environment.pop("WATCHDOG_USEC", ""))
        watched = _is_ours(environment.pop("WATCHDOG_PID", None))
        listening = _is_ours(environment.pop("LISTEN_PID", ""))
        count = _number(environment.pop("LISTEN_FDS", ""))
        environment.pop("LISTEN_FDNAMES", None)
        if notify is not None and not notify.startswith(("/", "@")):
            notify = None  # vsock and what may come: a manager of a virtual machine, not of a process
        watchdog_s = period / 1e6 if notify and watched and period else None
        return cls(notify, watchdog_s, _passed(count) if listening else ())

    def notify(self, *lines: str) -> bool:
        """Send a notification, as in `notify("READY=1", "STATUS=serves")`. Return whether the manager took it: a
        manager that has gone away or does not read holds nothing up."""
        if self._address is None:
            return False
        address = self._address
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            target = b"\0" + os.fsencode(address[1:]) if address.startswith("@") else os.fsencode(address)
            sock.sendto("\n".join(lines).encode(errors="replace"), target)
            return True
        return False

    def ready(self, status: str) -> None:
        """Report that the service serves, and feed the watchdog from the running loop: a loop that hangs does not."""
        self.notify("READY=1", f"STATUS={' '.join(status.split())[:STATUS_CHARACTERS]}")
        if self.watchdog_s is not None and self._timer is None:
            import asyncio  # the log imports this module, in programs without a loop as well

            self._feed(asyncio.get_running_loop(), self.watchdog_s / PINGS_A_PERIOD)

    def stopping(self) -> None:
        """Report that the service finishes its work and ends; the watchdog is fed until the loop is closed."""
        self.notify("STOPPING=1", "STATUS=finishing the messages under way")

    def close(self) -> None:
        """Feed the watchdog no more, and close passed sockets that no listener has taken."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._passed:
            self._passed.pop().close()

    def take(self, family: int, address: object) -> socket.socket | None:
        """Return the passed socket that is bound to an address, given as `getsockname` does; None where there is none.
        The caller owns the socket."""
        for sock in self._passed:
            if sock.family == family and _comparable(sock.getsockname()) == _comparable(address):
                self._passed.remove(sock)
                return sock
        return None

    @property
    def passes_sockets(self) -> bool:
        """Return whether there are passed sockets that no listener has taken."""
        return bool(self._passed)

    def check_all_taken(self) -> None:
        """Raise ConfigError where a passed socket belongs to no listener: its clients would wait for ever."""
        if self._passed:
            names = ", ".join(_name(sock) for sock in self._passed)
            raise ConfigError(
                f"systemd passes a socket for {names}, where this program does not listen: "
                "give the .socket unit and [native] the same addresses"
            )

    def _feed(self, loop: asyncio.AbstractEventLoop, period_s: float) -> None:
        self._timer = loop.call_later(period_s, self._feed, loop, period_s)
        self.notify("WATCHDOG=1")


_manager: ServiceManager | None = None


def service_manager() -> ServiceManager:
    """Return the service manager of this process; the first call takes its variables out of the environment."""
    global _manager  # noqa: PLW0603 (a process has one service manager)
    if _manager is None:
        _manager = ServiceManager.of(os.environ)
    return _manager


def is_journal(descriptor: int, stream: str | None) -> bool:
    """Return whether a descriptor leads to the journal; `stream` is the value of JOURNAL_STREAM, `DEVICE:INODE`."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return stream == f"{found.st_dev}:{found.st_ino}"


def _number(text: str) -> int:
    """Return a variable's number; 0 for anything else, as for a variable that is not set."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else 0


def _is_ours(pid: str | None) -> bool:
    """Return whether a variable is meant for this process, and not for an ancestor; None: for any process."""
    return pid is None or _number(pid) == os.getpid()


def _passed(count: int) -> tuple[socket.socket, ...]:
    if count > MAX_PASSED:
        raise ConfigError(f"LISTEN_FDS = {count}: systemd passes at most {MAX_PASSED} sockets to a server")
    found = []
    for descriptor in range(FIRST_FD, FIRST_FD + count):
        try:
            os.set_inheritable(descriptor, False)
            sock = socket.socket(fileno=descriptor)
        except OSError as error:
            raise ConfigError(f"LISTEN_FDS = {count}: descriptor {descriptor} is no socket: {error.strerror}") from None
        found.append(sock)
        if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise ConfigError(
                f"LISTEN_FDS = {count}: descriptor {descriptor} does not listen for connections: "
                "the .socket unit needs ListenStream= and Accept=no"
            )
    return tuple(found)


def _comparable(address: object) -> object:
    """Return an address without its flow and scope, which a configuration does not name; paths as text."""
    if isinstance(address, tuple):
        return address[:2]
    return os.fsdecode(address) if isinstance(address, bytes) else address


def _name(sock: socket.socket) -> str:
    address = _comparable(sock.getsockname())
    if isinstance(address, tuple):
        host, port = address
        return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
    return str(address) or "an unnamed Unix socket"
