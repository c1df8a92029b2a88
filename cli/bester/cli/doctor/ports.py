"""State of the configured ports, and the programs that hold them: by /proc, and by an attempt to bind."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from bester.broker.config import Config
from bester.broker.doctor.local import Port, PortState
from bester.broker.wire.address import HostPort, parse_endpoint

LISTENING = "0A"
STATES: dict[int, PortState] = {
    errno.EADDRINUSE: "taken",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EADDRNOTAVAIL: "no-address",
}


def ports_of(config: Config, *, running: bool, linked: bool) -> tuple[Port, ...]:
    """Return the state of each configured port. `running`: a server runs here; `linked`: its broker has a bridge, which
    holds the ports for clients."""
    listening = _listening()
    return tuple(
        _port(key, address, listening, ours=running and (linked or not key.startswith("[native")), running=running)
        for key, address in _addresses(config)
        if address.port
    )


def _addresses(config: Config) -> Iterator[tuple[str, HostPort]]:
    native = config.native
    for key, address in (("tcp4", native.tcp4), ("tcp6", native.tcp6), ("websocket", native.websocket)):
        if address is not None:
            yield f"[native] {key}", address
    for address in () if native.tls is None else native.tls.listen:
        yield "[native.tls] listen", address
    if config.operator.http is not None:
        yield "[operator] http", config.operator.http
    for endpoint in config.fabric.listen:
        where = parse_endpoint(endpoint)
        if where.tcp is not None:
            yield "[fabric] listen", where.tcp


def _port(key: str, address: HostPort, listening: dict[int, int] | None, *, ours: bool, running: bool) -> Port:
    inode = (listening or {}).get(address.port)
    holder = "" if inode is None else _holder(inode)
    if running and listening is not None:
        state: PortState = "free" if inode is None else "listening" if ours else "taken"
    elif running:
        state = "listening"  # the system does not show it, and binding would be in the server's way
    else:
        state = _bound(address)
    return Port(key, str(address), state, holder if state in ("taken", "listening") else "")


def _bound(address: HostPort) -> PortState:
    """Return what an attempt to bind finds. The port is free again at the return."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address.host, address.port))
            probe.listen(1)  # with SO_REUSEADDR a port that is listened on may be bound, and not listened on
        except socket.gaierror:
            return "no-address"
        except OSError as error:
            return STATES.get(error.errno or 0, "no-address")
    return "free"


def _listening() -> dict[int, int] | None:
    """Return the inodes of listening sockets by port, None where the system does not show them."""
    found: dict[int, int] = {}
    shown = False
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(name).read_text().splitlines()[1:]:
                cells = line.split()
                if cells[3] == LISTENING:
                    found.setdefault(int(cells[1].rpartition(":")[2], 16), int(cells[9]))
            shown = True
    return found if shown else None


def _holder(inode: int) -> str:
    """Return the name and number of the process that holds a socket, as far as this user may see it."""
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            for descriptor in os.scandir(process / "fd"):
                if os.readlink(descriptor.path) == wanted:
                    name = (process / "comm").read_text().strip()
                    return f"{name} (process {process.name})"
    return ""
