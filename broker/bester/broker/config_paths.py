"""Paths and endpoints in `bester.toml`: relative to the file's directory, and with DATA_DIR for the data directory.

This module opens no socket and no file.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import NamedTuple

from bester.broker.config import socket_path_fault
from bester.broker.toml_table import Table
from bester.broker.wire.address import HostPort, is_numeric, parse_endpoint


def directory_of(path: Path) -> Path:
    """Return the directory where the relative paths in a file start: its own, and the working directory for a pipe, a
    device or a descriptor, as /dev/stdin and a shell's `<(…)` are, also where these are files: their own is /dev."""
    directory = path.absolute().parent
    try:
        mode = path.stat().st_mode
    except OSError:  # its reader says why
        return directory
    real = directory.resolve()
    is_descriptor = real == Path("/dev") or real.is_relative_to("/proc")
    return Path.cwd() if is_descriptor or stat.S_ISFIFO(mode) or stat.S_ISCHR(mode) else directory


class Paths(NamedTuple):
    """Start of every path of one file: the file's directory, and the data directory, for which DATA_DIR stands; None
    where DATA_DIR stands for nothing. Every method raises ConfigError for an unusable value."""

    directory: Path
    data_dir: Path | None = None

    def expanded(self, text: str) -> Path:
        """Return the path that a text means."""
        first, _, rest = text.partition("/")
        if self.data_dir is not None and first == "DATA_DIR" and rest:
            return self.data_dir / rest
        return self.directory / text

    def path(self, table: Table, key: str) -> Path | None:
        """Return a path as written, without DATA_DIR; None for a missing key."""
        text = table.text(key)
        return None if text is None else self.directory / text

    def file(self, table: Table, key: str) -> Path | None:
        """Return the path of a file, which may begin with DATA_DIR; None for a missing key."""
        text = table.text(key)
        return None if text is None else self.expanded(text)

    def socket(self, table: Table, key: str) -> Path | None:
        """Return the path of a Unix socket, short enough for the system; None for a missing key."""
        path = self.path(table, key)
        fault = socket_path_fault(path, "choose a shorter one") if path else None
        if fault:
            table.fail(key, fault)
        return path

    def endpoints(self, table: Table, key: str, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Return endpoints, each named once."""
        found = tuple(self.endpoint(table, key, text) for text in texts)
        for text in found:
            if found.count(text) > 1:
                table.fail(key, f"{text!r} is named twice; remove one")
        return found

    def endpoint(self, table: Table, key: str, text: str) -> str:
        """Return an endpoint as ZeroMQ takes it."""
        endpoint = table.checked(key, parse_endpoint, text)
        if endpoint.tcp is None:
            path = self.expanded(endpoint.path)
            fault = socket_path_fault(path, "set a shorter [server] data_dir, or name a shorter ipc:// path here")
            if fault:
                table.fail(key, fault)
            return f"ipc://{path}"
        if key == "listen" and endpoint.tcp.host != "localhost" and not is_numeric(endpoint.tcp.host):
            table.fail(key, f"{text!r}: listen at an address of this machine, or at all with tcp://0.0.0.0:PORT")
        if key != "listen" and endpoint.tcp.port == 0:
            table.fail(key, f"{text!r}: port 0 is no port to connect to; write the port the other side listens on")
        host = "127.0.0.1" if endpoint.tcp.host == "localhost" else endpoint.tcp.host  # ZeroMQ binds to no names
        return f"tcp://{HostPort(host, endpoint.tcp.port)}"
