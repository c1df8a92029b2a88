"""Attempts to reach the listed servers while the own server is down; a running one tells of its own attempts."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl

from bester.broker.config import Config, PeerConfig
from bester.broker.doctor.local import Peer
from bester.broker.fabric import FabricLink
from bester.broker.keys import KeyPair, LinkKeys
from bester.broker.tls_files import client_context
from bester.broker.wire.codes import BesterError
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.trouble import CUT_SHORT, is_of_keys

PATIENCE_S = 8.0
"""Time for one server: two greetings, the second of which tells a wrong key from silence."""
AT_ONCE = 32
"""Servers that are tried at once: descriptors, of a shell with few of them."""


def reached(config: Config, pair: KeyPair | None) -> tuple[Peer, ...]:
    """Try each listed server, several at once; return the results in the order of the list."""
    if not config.servers:
        return ()

    async def main() -> list[Peer]:
        """Try all servers."""
        room = asyncio.Semaphore(AT_ONCE)

        async def one(peer: PeerConfig) -> Peer:
            """Try one server."""
            async with room:
                return await _fabric(config, peer, pair) if peer.fabric is not None else await _native(peer)

        return await asyncio.gather(*map(one, config.servers.values()))

    return tuple(asyncio.run(main()))


async def _fabric(config: Config, peer: PeerConfig, pair: KeyPair | None) -> Peer:
    """Greet a server as this one would, and leave again."""
    assert peer.fabric is not None
    if peer.key is not None and pair is None:
        return Peer(peer.name, peer.fabric, "this server has no key of its own to show, which its first start makes")
    news: asyncio.Queue[str | None] = asyncio.Queue()
    keys = LinkKeys(pair, peer.key) if peer.key is not None and pair is not None else None
    try:
        link = FabricLink(
            peer.fabric,
            LinkClient("server", config.server.name, {}),
            on_messages=lambda messages: None,
            on_ready=lambda: news.put_nowait(None),
            on_lost=news.put_nowait,
            keys=keys,
            called=peer.name,
        )
    except BesterError as error:
        return Peer(peer.name, peer.fabric, error.text)
    link.start()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while (fault := await news.get()) is not None and CUT_SHORT in fault:
                pass
    except TimeoutError:
        fault = link.trouble or f"no answer within {PATIENCE_S:g} s"
    finally:
        await link.close(timeout_s=1.0)
    return Peer(peer.name, peer.fabric, fault, fault is not None and is_of_keys(fault))


async def _native(peer: PeerConfig) -> Peer:
    """Connect to a server that speaks the native protocol; with TLS its certificate is verified."""
    assert peer.native is not None
    host, port = peer.native
    try:
        context = client_context(f"[servers.{peer.name}] ca", peer.ca) if peer.tls else None
        async with asyncio.timeout(PATIENCE_S):
            _, writer = await asyncio.open_connection(
                host, port, ssl=context, server_hostname=host if context is not None else None
            )
        writer.close()
        with contextlib.suppress(OSError, ssl.SSLError):
            await asyncio.wait_for(writer.wait_closed(), 1.0)
    except TimeoutError:
        return Peer(peer.name, str(peer.native), f"no answer within {PATIENCE_S:g} s")
    except ssl.SSLCertVerificationError as error:
        return Peer(peer.name, str(peer.native), f"its certificate is refused: {error.verify_message}")
    except socket.gaierror as error:
        return Peer(peer.name, str(peer.native), f"its name cannot be looked up: {error.strerror}")
    except (OSError, ssl.SSLError) as error:
        why = os.strerror(error.errno) if error.errno is not None and error.errno > 0 else str(error)
        return Peer(peer.name, str(peer.native), why)
    except BesterError as error:
        return Peer(peer.name, str(peer.native), error.text)
    return Peer(peer.name, str(peer.native), None)
