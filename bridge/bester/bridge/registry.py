"""The connections of one bridge, and the bounds of their number: in all, by address, by user. Pure."""

from __future__ import annotations

from bester.bridge.limits import Limits
from bester.bridge.ports import ClientConnection
from bester.bridge.session import UNIX_HOST, Session
from bester.broker.wire.address import is_loopback


class Registry:
    """Connections by the numbers of their sessions: all of them, and the `targets`, to which the broker may send
    messages."""

    def __init__(self, limits: Limits) -> None:
        self.connections: dict[int, ClientConnection] = {}
        self.targets: dict[int, ClientConnection] = {}
        self._limits = limits
        self._hosts: dict[str, int] = {}  # connections by address
        self._users: dict[str, int] = {}  # targets by user

    @property
    def hosts(self) -> int:
        """Number of addresses that the connections come from."""
        return len(self._hosts)

    @property
    def users(self) -> int:
        """Number of users that the targets belong to."""
        return len(self._users)

    def has_room(self, host: str) -> bool:
        """Return whether there is room for a connection from this host."""
        limits = self._limits
        if len(self.connections) >= limits.max_connections:
            return False
        if host == UNIX_HOST or is_loopback(host):
            return True
        return self._hosts.get(host, 0) < limits.max_connections_per_address

    def add(self, connection: ClientConnection) -> None:
        """Add a connection, with its session."""
        session = connection.session
        self.connections[session.number] = connection
        self._hosts[session.address] = self._hosts.get(session.address, 0) + 1

    def remove(self, session: Session) -> None:
        """Remove a connection."""
        self.log_out(session)
        if self.connections.pop(session.number, None) is not None:
            _count_down(self._hosts, session.address)

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
        """Make the connection a target no longer."""
        if self.targets.pop(session.number, None) is not None and session.user is not None:
            _count_down(self._users, session.user)


def _count_down(counts: dict[str, int], key: str) -> None:
    if counts[key] > 1:
        counts[key] -= 1
    else:
        del counts[key]
