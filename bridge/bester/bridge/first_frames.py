"""The bound of a connection's first frame, by the host that the connection comes from."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping

from bester.bridge.limits import Limits
from bester.broker.config import Config
from bester.broker.hosts import Hosts, is_named
from bester.broker.names import Followed

COME_AGAIN_S = 60.0
"""Time during which a host that was refused for now is remembered: several attempts of a server."""
MAX_COME_AGAIN = 1024
"""Remembered hosts; above the bound the oldest one is forgotten, and refused for now once more."""


class FirstFrames:
    """Bounds of first frames: a server's is its message, a stranger's a login.

    A stranger with a larger frame may be a listed server whose address is not known yet, or has changed. Such a
    stranger is refused for now, and for good only if the names were looked up since its first attempt.
    """

    def __init__(self, config: Config, limits: Limits, followed: Followed) -> None:
        self._accept = config.accept
        self._limits = limits
        self._followed = followed
        self._hosts = followed.table()
        self._names = tuple(config.native_hosts.values())
        self._came: OrderedDict[str, float] = OrderedDict()  # hosts refused for now, and the time of the first attempt

    def start(self) -> None:
        """Follow the names of the listed servers from now on."""
        self._followed.start(self._changed)

    def replace(self, hosts: Mapping[str, str]) -> None:
        """Take in the hosts of the native servers, by name, of a configuration that was read again."""
        self._names = tuple(hosts.values())
        self._followed.replace(hosts)

    def _changed(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def limit_bytes(self, host: str, certificate: tuple[str, ...] = ()) -> int:
        """Return the bound for a host, in bytes; `certificate` are the names in its certificate."""
        is_server = self._accept == "open" or (
            self._accept == "listed"
            and (self._hosts.at(host) or any(is_named(name, certificate) for name in self._names if certificate))
        )
        return self._limits.max_frame if is_server else self._limits.first_frame

    def is_in_doubt(self, host: str) -> bool:
        """Return whether a stranger at this host may be a listed server."""
        if self._accept != "listed":
            return False
        now = time.monotonic()
        since = self._came.get(host, now)
        return bool(self._hosts.not_looked_up(since if now - since < COME_AGAIN_S else now))

    def put_off(self, host: str) -> None:
        """Look up the names of all servers that a stranger at this host may be; the stranger is refused for now."""
        now = time.monotonic()
        since = self._came.pop(host, now)
        self._came[host] = since = since if now - since < COME_AGAIN_S else now
        while len(self._came) > MAX_COME_AGAIN:
            self._came.popitem(last=False)
        self._followed.look_again(self._hosts.not_looked_up(since))
