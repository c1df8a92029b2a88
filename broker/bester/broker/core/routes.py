"""The servers that a target of `sendServers` may mean: by name, by address, or none that is configured. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from bester.broker.core.settings import Route
from bester.broker.wire.address import HostPort, canonical, parse_host_port


class Routes:
    """Configured servers by name and by address."""

    def __init__(self, routes: Mapping[str, Route]) -> None:
        self._named: dict[str, Route] = {}
        self._addressed: dict[HostPort, Route] = {}
        self.replace(routes)

    def replace(self, routes: Mapping[str, Route]) -> None:
        """Find these servers from now on, and no others."""
        self._named, self._addressed = dict(routes), {}
        for route in self._named.values():
            if route.native is not None:
                self._addressed[canonical(parse_host_port(route.native))] = route
            if route.fabric is not None and route.fabric.startswith("tcp://"):
                self._addressed[canonical(parse_host_port(route.fabric[6:]))] = route

    def find(self, target: str) -> Route | None:
        """Return the configured server of this name or address; for another `host:port` a native route without a name,
        and None for anything else."""
        route = self._named.get(target)
        if route is not None:
            return route
        try:
            address = parse_host_port(target)
        except ValueError:
            return None
        return self._addressed.get(canonical(address)) or Route("", native=str(address))
