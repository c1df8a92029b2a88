"""The connections of one bridge, and the bounds of their number: in all, of strangers, by address, by user. Pure.

The addresses of an IPv6 /64, which one host has by itself, count as one address.
"""

from __future__ import annotations

from collections.abc import Iterator

from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection
from bester.bridge.session import Session
from bester.bridge.states import State
from bester.bridge.steps import UNIX_HOST
from bester.broker.wire.address import is_loopback, network_of


class Registry:
    """Connections by the numbers of their sessions: all of them, the `targets`, to which the broker may send messages,
    those `timed`, whose state may have a deadline, and the strangers, which may have to make way: those that have not
    sent a login, or a message, yet."""

    def __init__(self, limits: Limits) -> None:
        self.connections: dict[int, ClientConnection] = {}
        self.targets: dict[int, ClientConnection] = {}
        self.timed: dict[int, ClientConnection] = {}
        self._limits = limits
        self._hosts: dict[str, int] = {}  # connections by address
        self._users: dict[str, int] = {}  # targets by user
        self._strangers: dict[int, tuple[ClientConnection, float]] = {}  # with the time of its arrival, oldest first
        self._strangers_at: dict[str, dict[int, ClientConnection]] = {}  # by address, oldest first

    @property
    def hosts(self) -> int:
        """Number of addresses that the connections come from."""
        return len(self._hosts)

    @property
    def users(self) -> int:
        """Number of users that the targets belong to."""
        return len(self._users)

    @property
    def strangers(self) -> int:
        """Number of connections that may have to make way."""
        return len(self._strangers)

    def has_room(self, host: str) -> bool:
        """Return whether there is room for a connection from this host."""
        return len(self.connections) < self._limits.max_connections and not self._is_full(host)

    def lingers(self, now: float) -> ClientConnection | None:
        """Return the stranger that makes way because all places of strangers are taken. Strangers that came just now
        may be more than their places: the logins of a storm of clients are still to be read."""
        if len(self._strangers) < self._limits.stranger_places:
            return None
        connection, since = next(iter(self._strangers.values()))
        return connection if now - since >= self._limits.stranger_s else None

    def makes_way(self, host: str) -> ClientConnection | None:
        """Return the stranger that makes way for a connection from this host: the oldest one, or the oldest one of the
        same address where that address has no room. None where there is no such stranger."""
        if self._is_full(host):
            return next(iter(self._strangers_at.get(network_of(host), {}).values()), None)
        connection, _ = next(iter(self._strangers.values()), (None, 0.0))
        return connection

    def _is_full(self, host: str) -> bool:
        """Return whether an address has as many connections as it may have."""
        network = network_of(host)
        if host == UNIX_HOST or is_loopback(host) or is_loopback(network):
            return False
        return self._hosts.get(network, 0) >= self._limits.max_connections_per_address

    def add(self, connection: ClientConnection, now: float) -> None:
        """Add a connection, with its session."""
        session = connection.session
        self.connections[session.number] = self.timed[session.number] = connection
        host = network_of(session.address)
        self._hosts[host] = self._hosts.get(host, 0) + 1
        self._strangers[session.number] = connection, now
        self._strangers_at.setdefault(host, {})[session.number] = connection

    def remove(self, session: Session) -> bool:
        """Remove a connection; False where it was removed before."""
        self.log_out(session)
        self._remove_stranger(session)
        self.timed.pop(session.number, None)
        if self.connections.pop(session.number, None) is None:
            return False
        _count_down(self._hosts, network_of(session.address))
        return True

    def on_state(self, connection: ClientConnection) -> None:
        """Note the state of a session: its deadline, its place among the targets or the strangers. Nobody makes way
        while the password is checked, or while another server's message waits for its report."""
        session = connection.session
        if session.deadline is not None:
            self.timed[session.number] = connection
        if session.state in (State.AUTHENTICATING, State.SERVER):
            self._remove_stranger(session)
        if not session.is_target:
            self.log_out(session)

    def overdue(self, now: float) -> Iterator[ClientConnection]:
        """Yield the connections whose state has passed its deadline, and passes over those that end meanwhile."""
        for number, connection in list(self.timed.items()):
            if number not in self.timed:
                continue
            deadline = connection.session.deadline
            if deadline is None:
                self.timed.pop(number, None)
            elif now >= deadline:
                yield connection

    def user_of(self, session: int) -> str | None:
        """Return the user of a session that is a target, None of any other."""
        connection = self.targets.get(session)
        return None if connection is None else connection.session.user

    def _remove_stranger(self, session: Session) -> None:
        if self._strangers.pop(session.number, None) is not None:
            host = network_of(session.address)
            here = self._strangers_at[host]
            del here[session.number]
            if not here:
                del self._strangers_at[host]

    def log_in(self, connection: ClientConnection) -> bool:
        """Make the connection of a known user a target; False where the user has no room for another one."""
        session = connection.session
        assert session.user is not None
        here = self._users.get(session.user, 0)
        if here >= self._limits.max_connections_per_user:
            return False
        self._users[session.user] = here + 1
        self.targets[session.number] = connection
        return True

    def log_out(self, session: Session) -> None:
        """Remove a connection from the targets."""
        if self.targets.pop(session.number, None) is not None and session.user is not None:
            _count_down(self._users, session.user)


def _count_down(counts: dict[str, int], key: str) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]
