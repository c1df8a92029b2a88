"""Client of a scripted server."""

from __future__ import annotations

from typing import Any

from bester.client import Client
from tests.e2e.fake_native_server import FakeServer, Json, Peer


def client_of(server: FakeServer, **options: Any) -> Client:
    """Return a client that reconnects after half of the shortest back-off."""
    return Client(server.address, user="bob", password="secret", random=lambda: 0.0, **options)


def hold(peer: Peer, payload: Json) -> None:
    """Send no report."""
