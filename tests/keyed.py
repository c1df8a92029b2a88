"""Parties of an encrypted fabric, with nothing of Bester's own code, and servers with such a listener."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import zmq
import zmq.asyncio

from tests.live import BESTER, DEADLINE_S, RawHandler


class Pair(NamedTuple):
    """A pair of keys, each 40 characters."""

    public: str
    secret: str


def new_pair() -> Pair:
    """Return a new pair."""
    public, secret = zmq.curve_keypair()
    return Pair(public.decode(), secret.decode())


def free_port() -> int:
    """Return a port of 127.0.0.1 that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def key_file(path: Path, pair: Pair) -> Path:
    """Write the file of a secret key."""
    path.touch(0o600)
    path.write_text(pair.secret + "\n")
    return path


def server_key(directory: Path) -> str:
    """Return the public key that `bester keys` prints for the server in a directory."""
    done = subprocess.run([BESTER, "keys"], cwd=directory, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[0]


class KeyedParty(RawHandler):
    """A party on a DEALER with keys; `server` is the public key that the server is believed to have.

    `routing_id` is chosen by the party. `monitor` tells what became of the handshake.
    """

    def __init__(
        self, fabric: str, pair: Pair, server: str, types: list[str] | None = None, routing_id: bytes | None = None,
        **options: Any,
    ) -> None:  # fmt: skip
        super().__init__("inproc://nobody", types or [], **options)
        self.socket.close()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 500
        self.socket.curve_publickey, self.socket.curve_secretkey = pair.public.encode(), pair.secret.encode()
        self.socket.curve_serverkey = server.encode()
        if routing_id is not None:
            self.socket.routing_id = routing_id
        self.monitor = self.socket.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        )
        self.socket.connect(fabric)

    async def handshake(self) -> int:
        """Return the end of the first handshake: one of zmq.EVENT_HANDSHAKE_…"""
        event = await self.monitor.recv_multipart()
        return int.from_bytes(event[0][:2], "little")

    def leave(self) -> None:
        """Close the socket once everything is sent: a machine may be too busy to send it within the usual time."""
        self.socket.linger = int(DEADLINE_S * 1000)
        self.close()

    def close(self) -> None:
        """Close the socket and its monitor."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        super().close()
