"""State of the configured ports, and the programs that hold them: by /proc, and by an attempt to bind."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import sys
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

from bester.broker.config import Config
from bester.broker.config_listeners import listeners_of
from bester.broker.doctor.local import Port, PortState
from bester.broker.wire.address import HostPort
from bester.cli.operate import is_elsewhere

LISTENING = "0A"
STATES: dict[int, PortState] = {
    errno.EADDRINUSE: "taken",
    errno.EACCES: "denied",
    errno.EPERM: "denied",
    errno.EADDRNOTAVAIL: "no-address",
}


class Socket(NamedTuple):
    """A listening socket of TCP."""

    address: IPv4Address | IPv6Address
    port: int
    inode: int


def ports_of(config: Config, *, running: bool, linked: bool) -> tuple[Port, ...]:
    """Return the state of each configured port. `running`: a server runs here; `linked`: its broker has a bridge, which
    holds the ports for clients. A bridge whose broker is on another machine holds them as well."""
    listening = _listening()
    alone = is_elsewhere(config)
    found = [
        _port(
            str(each),
            each.at,
            listening,
            ours=running and (linked or not each.section.startswith("native")),
            running=running,
        )
        for each in listeners_of(config)
        if isinstance(each.at, HostPort) and each.at.port
    ]
    return tuple(
        each._replace(state="listening") if alone and each.state == "taken" and _is_bester(each.holder) else each
        for each in found
    )


def _is_bester(holder: str) -> bool:
    """Return whether a process, as `_holder` names it, runs Bester: a worker's own name is that of Python."""
    number = holder.rpartition(" ")[2].removesuffix(")")
    try:
        return b"bester" in Path("/proc", number, "cmdline").read_bytes()
    except OSError:
        return False


def _port(key: str, address: HostPort, listening: list[Socket] | None, *, ours: bool, running: bool) -> Port:
    inode = _inode(address, listening or [])
    holder = "" if inode is None else _holder(inode)
    if running and listening is not None:
        state: PortState = "free" if inode is None else "listening" if ours else "taken"
    elif running:
        state = "listening"  # the system does not show it, and binding would be in the server's way
    else:
        state = _bound(address)
    return Port(key, str(address), state, holder if state in ("taken", "listening") else "")


def _bound(address: HostPort) -> PortState:
    """Return the state that an attempt to bind shows. Nothing listens: a server that starts now gets its port."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((address.host, address.port))
        except socket.gaierror:
            return "no-address"
        except OSError as error:
            return STATES.get(error.errno or 0, "no-address")
    return "free"


def _listening() -> list[Socket] | None:
    """Return the listening sockets of TCP, None where the system does not show them."""
    found, shown = [], False
    for name in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(name).read_text().splitlines()[1:]:
                cells = line.split()
                if cells[3] == LISTENING:
                    address, _, port = cells[1].rpartition(":")
                    found.append(Socket(_numeric(address), int(port, 16), int(cells[9])))
            shown = True
    return found if shown else None


def _numeric(shown: str) -> IPv4Address | IPv6Address:
    """Return an address of /proc: words of four bytes, in the order of the machine."""
    raw = bytes.fromhex(shown)
    words = [raw[at : at + 4] for at in range(0, len(raw), 4)]
    return ip_address(b"".join(word[::-1] if sys.byteorder == "little" else word for word in words))


def _inode(address: HostPort, listening: list[Socket]) -> int | None:
    """Return the inode of a socket that listens at an address, or at all; None where there is none."""
    try:
        wanted = ip_address(address.host)
    except ValueError:
        wanted = None  # a name: whoever has the port is meant
    for each in listening:
        everywhere = wanted is None or wanted.is_unspecified or each.address.is_unspecified
        if each.port == address.port and (everywhere or each.address == wanted):
            return each.inode
    return None


def _holder(inode: int) -> str:
    """Return the name and number of the process that holds a socket, as far as this user may see it."""
    wanted = f"socket:[{inode}]"
    for process in Path("/proc").glob("[0-9]*"):
        descriptors: list[Path] = []
        with contextlib.suppress(OSError):
            descriptors = list((process / "fd").iterdir())
        for descriptor in descriptors:
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.readlink(descriptor) == wanted:
                    return f"{(process / 'comm').read_text().strip()} (process {process.name})"
    return ""
