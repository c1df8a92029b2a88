"""Lookups of names on threads, one a name at a time; a hanging lookup delays neither others nor the end."""

from __future__ import annotations

import asyncio
import logging
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from bester.broker.hosts import Hosts
from bester.broker.lookups import PATIENCE_S
from bester.broker.names import MOST_ADDRESSES, Followed, LookupThreads, Names, connect, find, numeric
from tests.e2e.name_server import DEADLINE_S, Clock, NameServer, name_server, until


@pytest.fixture
def server() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("127.0.0.1", ("127.0.0.1",)),
        ("::1", ("::1",)),
        ("2001:DB8:0::1", ("2001:db8::1",)),
        ("localhost", ("127.0.0.1", "::1")),
        ("s2.example", ()),
        ("localhost.example", ()),
        ("a..b", ()),
        ("\udcff", ()),
        ("x" * 300, ()),
    ],
)
def test_addresses_need_no_lookup(host: str, addresses: tuple[str, ...]) -> None:
    assert numeric(host) == addresses


async def test_one_thread_looks_up_one_name_for_all_requesters(server: NameServer) -> None:
    server.knows["s2.example"] = ("192.0.2.1",)
    server.hangs.add("s2.example")
    asking = [asyncio.create_task(find("s2.example", 10.0, server.lookers)) for _ in range(50)]
    await until(lambda: server.under_way == 1)
    await asyncio.sleep(0)  # all requests were made
    server.release()
    assert await asyncio.gather(*asking) == [("192.0.2.1",)] * 50
    assert server.asked["s2.example"] == 1


async def test_addresses_of_a_name_are_bounded(server: NameServer) -> None:
    """Whoever owns the name chooses how many there are, and each is looked at for each message."""
    server.knows["many.example"] = many = tuple(f"192.0.{number >> 8}.{number & 255}" for number in range(4000))
    assert await find("many.example", 10.0, server.lookers) == many[:MOST_ADDRESSES]
    names, known = Names(server.lookers), asyncio.Event()
    assert names.ask("many.example", known.set)
    await asyncio.wait_for(known.wait(), DEADLINE_S)
    assert names.addresses("many.example") == many[:MOST_ADDRESSES]
    names.close()


async def test_reason_of_a_failed_lookup(server: NameServer) -> None:
    server.hangs.add("slow.example")
    with pytest.raises(OSError, match="Name or service not known"):
        await find("gone.example", 10.0, server.lookers)
    with pytest.raises(OSError, match=r"did not answer in 0\.05 s"):
        await find("slow.example", 0.05, server.lookers)
    for odd in ("a..b", "\udcff", "x" * 300):
        with pytest.raises(OSError, match=r"."):
            await find(odd, 10.0)


async def test_threads_are_bounded(server: NameServer) -> None:
    lookers = LookupThreads(server._look_up, most=3)
    names = [f"n{number}.example" for number in range(10)]
    server.hangs.update(names)
    asking = [asyncio.create_task(find(name, 10.0, lookers)) for name in names]
    await until(lambda: server.under_way == 3)
    refused = [task for task in asking if task.done()]
    assert len(refused) == 7
    assert all("too many names" in str(task.exception()) for task in refused)
    before = threading.active_count()
    server.release()
    await asyncio.gather(*asking, return_exceptions=True)
    await until(lambda: threading.active_count() <= before - 3)


class Talk(asyncio.Protocol):
    """A connection that the other side ends."""

    def __init__(self) -> None:
        self.lost = asyncio.Event()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set()

    async def end(self) -> None:
        async with asyncio.timeout(DEADLINE_S):
            await self.lost.wait()


class Hangup(asyncio.Protocol):
    """A connection that ends at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


async def test_silent_address_of_a_host_does_not_delay_the_next_one() -> None:
    listening = await asyncio.get_running_loop().create_server(Hangup, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    with socket.socket() as full:  # with a full backlog the listener answers no connection
        full.bind(("127.0.0.2", port))
        full.listen(0)
        stuffed = [socket.socket() for _ in range(8)]
        for each in stuffed:
            each.setblocking(False)
            each.connect_ex(("127.0.0.2", port))
        async with asyncio.timeout(DEADLINE_S):
            connection = await connect(Talk, ("127.0.0.3", "127.0.0.2", "127.0.0.1"), port, 100 * DEADLINE_S)
        await connection.end()
        for each in stuffed:
            each.close()
    with pytest.raises(OSError, match=r"."):
        await connect(Talk, ("127.0.0.3", "127.0.0.4"), port, 5.0)
    listening.close()


async def test_system_asks_a_silent_other_end_whether_it_lives() -> None:
    listening = await asyncio.get_running_loop().create_server(asyncio.Protocol, "127.0.0.1", 0)
    sock = None

    class Kept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            nonlocal sock
            sock = transport.get_extra_info("socket")
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            transport.close()

    await connect(Kept, ("127.0.0.1",), listening.sockets[0].getsockname()[1], DEADLINE_S)
    assert sock is not None
    listening.close()


async def test_table_is_followed_and_failures_are_logged(server: NameServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "bester.names")
    clock = Clock()
    names = Names(server.lookers, clock)
    tables: list[Hosts] = []
    followed = Followed({"s2": "s2.example", "s3": "192.0.2.3", "s4": "s4.example"}, names)
    assert followed.table().unknown == {"s2", "s4"}
    assert followed.table().at("192.0.2.3") == ("s3",)
    server.knows["s4.example"] = ("192.0.2.4",)
    followed.start(tables.append)
    await until(lambda: bool(tables) and tables[-1].unknown == {"s2"} and tables[-1].at("192.0.2.4") == ("s4",))
    server.knows["s2.example"] = ("192.0.2.2",)
    clock.now += 1.0
    await until(lambda: tables[-1].at("192.0.2.2") == ("s2",))
    server.knows["s4.example"] = ("192.0.2.5", "192.0.2.6")
    clock.now += 60.0
    await until(lambda: tables[-1].at("192.0.2.6") == ("s4",))
    assert tables[-1].at("192.0.2.4") == ()
    assert max(server.most.values()) == 1
    names.close()
    lines = [record.getMessage() for record in caplog.records]
    lost = "[servers.s2] native: the name s2.example cannot be looked up"
    assert lines == [
        f"{lost} (lookups go on): name or service not known",
        "[servers.s2] native: the name s2.example is looked up as 192.0.2.2",
        "[servers.s4] native: the name s4.example is looked up as 192.0.2.5, 192.0.2.6",
    ]


async def test_replaced_servers_are_followed_and_others_no_more(server: NameServer) -> None:
    clock = Clock()
    names = Names(server.lookers, clock)
    tables: list[Hosts] = []
    server.knows |= {"s2.example": ("192.0.2.2",), "s3.example": ("192.0.2.3",), "s4.example": ("192.0.2.4",)}
    kept = Followed({"s3": "s3.example"}, names)  # as a bridge in the same process
    kept.start(lambda hosts: None)
    followed = Followed({"s2": "s2.example", "s3": "s3.example"}, names)
    followed.start(tables.append)
    await until(lambda: bool(tables) and not tables[-1].unknown)
    followed.replace({"s4": "s4.example", "s5": "192.0.2.5"})
    assert tables[-1].at("192.0.2.2") == () and tables[-1].at("192.0.2.5") == ("s5",)
    await until(lambda: tables[-1].at("192.0.2.4") == ("s4",))
    followed.look_again(["s2", "s4"])  # s2 was in doubt before it was removed
    clock.now += 3600.0
    await until(lambda: server.asked["s3.example"] == 2 and server.asked["s4.example"] == 2)
    assert server.asked["s2.example"] == 1
    count = len(tables)
    followed.replace({"s4": "s4.example", "s5": "192.0.2.5"})
    assert len(tables) == count
    names.close()


async def test_doubtful_host_is_looked_up_early(server: NameServer) -> None:
    clock = Clock()
    names = Names(server.lookers, clock)
    tables: list[Hosts] = []
    followed = Followed({"s2": "s2.example", "s3": "192.0.2.3"}, names)
    server.knows["s2.example"] = ("192.0.2.2",)
    followed.start(tables.append)
    await until(lambda: bool(tables))
    server.knows["s2.example"] = ("192.0.2.9",)
    clock.now += 11.0
    followed.look_again(["s2", "s3"])
    await until(lambda: tables[-1].at("192.0.2.9") == ("s2",))
    assert tables[-1].looked_up == {"s2": clock.now}
    assert server.asked["s2.example"] == 2
    names.close()


async def test_hanging_names_do_not_delay_others(server: NameServer) -> None:
    clock = Clock()
    names = Names(server.lookers, clock)
    tables: list[Hosts] = []
    hosts = {f"bad{number}": f"bad{number}.example" for number in range(20)}
    server.hangs.update(hosts.values())
    server.knows["good.example"] = ("192.0.2.1",)
    Followed({**hosts, "good": "good.example"}, names).start(tables.append)
    await until(lambda: bool(tables) and tables[-1].at("192.0.2.1") == ("good",))
    assert tables[-1].unknown == set(hosts)
    answered: list[str] = []
    assert names.ask("bad0.example", lambda: answered.append("bad0"))
    assert names.ask("other.example", lambda: answered.append("other"))
    await until(lambda: answered == ["other"])
    clock.now += PATIENCE_S
    await until(lambda: answered == ["other", "bad0"])
    assert not names.addresses("bad0.example")
    assert not names.ask("bad0.example", pytest.fail)
    names.close()


async def test_lookup_under_way_at_the_end_is_dropped(server: NameServer) -> None:
    server.hangs.add("slow.example")
    names = Names(server.lookers)
    names.follow("slow.example", "here")
    names.listen(lambda: pytest.fail("it is closed"))
    await until(lambda: server.under_way == 1)
    names.close()
    server.release()
    await until(lambda: server.under_way == 0)
    assert not names.ask("slow.example", pytest.fail)


HANGING = """
import asyncio, threading
from bester.broker import names
lookers = names.LookupThreads(lambda host: threading.Event().wait())
async def main():
    followed = names.Names(lookers)
    followed.follow("slow.example", "here")
    try:
        await names.find("other.example", 0.1, lookers)
    except OSError as error:
        print(error)
    followed.close()
asyncio.run(main())
"""


def test_a_process_ends_though_lookups_hang() -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", HANGING], capture_output=True, text=True, timeout=20, check=True)
    assert done.stdout == "the name server did not answer in 0.1 s\n"
    assert done.stderr == ""
    assert time.monotonic() - began < 20
