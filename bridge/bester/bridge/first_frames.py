"""How large the first frame of a connection may be, by the host that it comes from."""

from __future__ import annotations

import time
from collections import OrderedDict

from bester.bridge.limits import Limits
from bester.broker.config import Config
from bester.broker.hosts import Hosts
from bester.broker.names import Followed

COME_AGAIN_S = 60.0
"""How long it is remembered that a host was told to come again: several attempts of a server that does."""
MAX_COME_AGAIN = 1024
"""Such hosts; above it the one told first is forgotten, and told so once more."""


class FirstFrames:
    """How large the first frame from a host may be: a server's is its message, a stranger's a login.

    A stranger that sends more may be a listed server whose address is not known yet, or has changed. It is told to come
    again, and refused for good only if the names were looked up since it came for the first time.
    """

    def __init__(self, config: Config, limits: Limits, followed: Followed) -> None:
        self._accept = config.accept
        self._limits = limits
        self._followed = followed
        self._hosts = followed.table()
        self._came: OrderedDict[str, float] = OrderedDict()  # hosts that were told to come again, and when at first

    def start(self) -> None:
        """Follow the names of the listed servers from now on."""
        self._followed.start(self._changed)

    def _changed(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def limit_bytes(self, host: str) -> int:
        """Return the size that is allowed."""
        is_server = self._accept == "open" or (self._accept == "listed" and self._hosts.at(host))
        return self._limits.max_frame if is_server else self._limits.first_frame

    def is_in_doubt(self, host: str) -> bool:
        """Say whether a stranger at this host may be a listed server."""
        if self._accept != "listed":
            return False
        now = time.monotonic()
        since = self._came.get(host, now)
        return bool(self._hosts.not_looked_up(since if now - since < COME_AGAIN_S else now))

    def put_off(self, host: str) -> None:
        """A stranger at this host is told to come again: look up the names of all whom it may be."""
        now = time.monotonic()
        since = self._came.pop(host, now)
        self._came[host] = since = since if now - since < COME_AGAIN_S else now
        while len(self._came) > MAX_COME_AGAIN:
            self._came.popitem(last=False)
        self._followed.look_again(self._hosts.not_looked_up(since))
