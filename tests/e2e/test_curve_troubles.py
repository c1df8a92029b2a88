"""Reports of the connecting side of an encrypted link where there is no link, one sentence for each trouble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
import zmq
import zmq.asyncio

from bester.broker.fabric import FabricLink
from bester.broker.keys import KeyPair, LinkKeys
from bester.broker.wire.link_client import LinkClient
from tests.keyed import free_port, new_pair

OWN, SERVER, WRONG = new_pair(), new_pair(), new_pair()
DEADLINE_S = 30.0
TURNS_OF_ACCEPTED = 5
"""Turns of the loop after which a connection that was accepted has its writer."""


async def trouble_at(endpoint: str, server: str | None) -> str:
    """Return the first reason why there is no link; `server` None: the link is not encrypted."""
    reasons: asyncio.Queue[str] = asyncio.Queue()
    keys = None if server is None else LinkKeys(KeyPair(OWN.public, OWN.secret), server)
    link = FabricLink(
        endpoint,
        LinkClient("server", "s1", {}),
        on_messages=lambda messages: None,
        on_ready=lambda: reasons.put_nowait("ready"),
        on_lost=reasons.put_nowait,
        keys=keys,
        called="s2",
    )
    link.start()
    try:
        async with asyncio.timeout(DEADLINE_S):
            why = await reasons.get()
        assert link.trouble == why
        return why
    finally:
        await link.close(timeout_s=0.1)


@asynccontextmanager
async def fabric(curve: bool, known: bool = True) -> AsyncIterator[str]:
    """A ROUTER of a stranger's making, with a ZAP handler; `known`: the handler lets every key in."""
    context = zmq.asyncio.Context()
    zap, router = context.socket(zmq.REP), context.socket(zmq.ROUTER)
    zap.bind("inproc://zeromq.zap.01")
    router.linger = 0
    if curve:
        router.curve_server, router.zap_domain = True, b"any"
        router.curve_publickey, router.curve_secretkey = SERVER.public.encode(), SERVER.secret.encode()
    port = router.bind_to_random_port("tcp://127.0.0.1")

    async def answer() -> None:
        while True:
            version, request, *_ = await zap.recv_multipart()
            status = [b"200", b"", b"k"] if known else [b"400", b"no", b""]
            await zap.send_multipart([version, request, *status, b""])

    answering = asyncio.create_task(answer())
    try:
        yield f"tcp://127.0.0.1:{port}"
    finally:
        answering.cancel()
        await asyncio.wait([answering])
        zap.close(0)
        router.close(0)
        context.term()


@asynccontextmanager
async def program(talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[str]:
    """A program that listens and is no Bester."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            await talk(reader, writer)
        except ConnectionError:
            pass

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        # A connection that was accepted before the server closes, and begins behind that, would be left open.
        for listening in server.sockets:
            asyncio.get_running_loop().remove_reader(listening.fileno())
        for _ in range(TURNS_OF_ACCEPTED):
            await asyncio.sleep(0)
        server.close()
        for writer in writers:
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()
        await server.wait_closed()


async def http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)
    writer.write(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    writer.close()


async def ssh(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3\r\n")
    await reader.read()


async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def test_our_key_is_not_known_there() -> None:
    async with fabric(curve=True, known=False) as endpoint:
        why = await trouble_at(endpoint, SERVER.public)
    assert why == f"s2 at {endpoint} does not know our key {OWN.public}; its owner must list that key there"


async def test_another_server_listens_there() -> None:
    async with fabric(curve=True) as endpoint:
        why = await trouble_at(endpoint, WRONG.public)
    assert why.startswith("that is not the key of s2:") and WRONG.public in why


async def test_one_side_encrypts_and_the_other_does_not() -> None:
    async with fabric(curve=False) as endpoint:
        why = await trouble_at(endpoint, SERVER.public)
    assert "does not encrypt" in why or "not one that encrypts" in why
    async with fabric(curve=True) as endpoint:
        assert "this side has no keys" in await trouble_at(endpoint, None)


@pytest.mark.parametrize("server", [SERVER.public, None], ids=["encrypted", "plain"])
async def test_nothing_listens_there(server: str | None) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    assert await trouble_at(endpoint, server) == f"nothing listens at {endpoint}"


@pytest.mark.parametrize("talk", [http, ssh, hang_up])
async def test_something_else_listens_there(
    talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> None:
    async with program(talk) as endpoint:
        why = await trouble_at(endpoint, SERVER.public)
    assert why.startswith(f"something listens at {endpoint}, but not a Bester fabric")


async def test_something_listens_there_and_is_silent() -> None:
    async with program(silent) as endpoint:
        assert "does not answer" in await trouble_at(endpoint, SERVER.public)


async def test_a_fabric_that_never_welcomes() -> None:
    async with fabric(curve=True) as endpoint:
        assert await trouble_at(endpoint, SERVER.public) == f"no message from {endpoint}"
