"""The informer: the reference's questions, framed, many to a connection."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncIterator

import pytest

from bester.bridge.broker_link import Answered
from bester.bridge.frames import frame
from bester.bridge.informer import Informer
from bester.bridge.limits import Limits
from tests.e2e.bridge_scene import Raw, Scene, scene
from tests.ipv6 import needs_ipv6
from tests.live import short_directory


@pytest.fixture
async def it() -> AsyncIterator[Scene]:
    async with scene() as it:
        yield it


async def informer(it: Scene) -> Raw:
    asker = Raw(*await asyncio.open_unix_connection(str(it.directory / "i")))
    it.clients.append(asker)
    return asker


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        (b'{"command":{"type":"listClients"}}', {"data": ["alice"], "status": "0"}),
        (b'{"command":{"type":"isClient","data":"alice"}}', {"data": True, "status": "0"}),
        (b'{"command":{"type":"isClient"},"data":"alice"}', {"data": True, "status": "0"}),
        (b'{"command":{"type":"isClient","data":"bob"}}', {"data": False, "status": "0"}),
        (b'{"command":{"type":"isClient"}}', {"data": None, "status": "1"}),
        (b'{"command":{"type":"nonesuch"}}', {"data": None, "status": "1"}),
        (b'{"command":{"type":5}}', {"data": None, "status": "1"}),
        (b'{"command":null}', {"status": "1"}),
        (b"{}", {"status": "1"}),
        (b"[]", {"status": "1"}),
        (b"nonsense", {"status": "1"}),
    ],
)
async def test_a_question(it: Scene, question: bytes, answer: object) -> None:
    await it.client("alice")
    asker = await informer(it)
    asker.write(question)
    assert await asker.read() == answer


@needs_ipv6
async def test_server_info_names_the_listeners(it: Scene) -> None:
    await it.client("alice")
    asker = await informer(it)
    asker.write(b'{"command":{"type":"serverInfo"}}')
    info = await asker.read()
    assert info["status"] == "0"
    assert info["data"]["clientCount"] == "1"
    assert info["data"]["adminInfo"] == {"name": "x"}
    assert info["data"]["listeners"]["listener0"] == {"address": f"tcp4://{it.tcp4}"}
    assert info["data"]["listeners"]["listener1"]["address"].startswith("tcp6://[::1]:")
    assert info["data"]["listeners"]["listener2"] == {"address": f"unix://{it.directory}/n"}


async def test_many_questions_in_one_write_are_answered_in_order(it: Scene) -> None:
    asker = await informer(it)
    asker.write(*[b'{"command":{"type":"isClient","data":"x"}}', b"{}"] * 1000)
    assert [await asker.read() for _ in range(2000)] == [{"data": False, "status": "0"}, {"status": "1"}] * 1000


async def test_quit(it: Scene) -> None:
    asker = await informer(it)
    asker.write(b'{"command":{"type":"listClients"}}', b'{"command":{"type":"quit"}}', b"{}")
    assert await asker.read() == {"data": [], "status": "0"}
    assert await asker.read() == {"data": None, "status": "0"}
    await asker.end()


async def test_questions_before_a_half_close_are_answered(it: Scene) -> None:
    asker = await informer(it)
    asker.write(b'{"command":{"type":"listClients"}}')
    asker.writer.write_eof()
    assert await asker.read() == {"data": [], "status": "0"}
    await asker.end()


async def test_a_question_too_long(it: Scene) -> None:
    asker = await informer(it)
    asker.writer.write((1 << 20).to_bytes(4, "little"))
    await asker.end()


async def test_without_a_broker_nothing_is_known(it: Scene) -> None:
    it.broker.part()
    asker = await informer(it)
    asker.write(b'{"command":{"type":"listClients"}}')
    assert await asker.read() == {"data": None, "status": "1"}


async def test_connections_are_bounded(it: Scene) -> None:
    bound = it.service.bridge.limits.informer_connections
    askers = [await informer(it) for _ in range(bound)]
    for asker in askers:
        asker.write(b"{}")
        await asker.read()
    await (await informer(it)).end()


async def test_socket_is_private(it: Scene) -> None:
    assert stat.S_IMODE((it.directory / "i").stat().st_mode) == 0o600


async def test_questions_of_a_client_that_does_not_read_wait() -> None:
    """With answers a thousand times as long as the questions, an asker must not fill the server's memory."""
    many, users = 500, ["x" * 100] * 1000
    unread: list[int] = []

    def ask(question: str, argument: object, answered: Answered) -> None:
        (connection,) = shared.connections
        assert connection._transport is not None
        unread.append(connection._transport.get_write_buffer_size())
        answered(0, users)

    shared = Informer(Limits(), ask, dict)
    async with short_directory() as directory:
        server = await asyncio.get_running_loop().create_unix_server(shared, str(directory / "i"))
        asker = Raw(*await asyncio.open_unix_connection(str(directory / "i")))
        asker.writer.write(frame(b'{"command":{"type":"listClients"}}') * many)
        assert [await asker.read() for _ in range(many)] == [{"data": users, "status": "0"}] * many
        await asker.close()
        server.close()
    assert max(unread) <= 64 * 1024  # the bytes that a transport holds before it pauses its writer
