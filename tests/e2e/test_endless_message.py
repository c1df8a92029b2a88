"""A message on the encrypted fabric that does not end: its connection ends, and no other."""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
import zmq

from bester.broker.connections import ConnectionNumbers
from bester.broker.curve import CurveSocket, ahead
from bester.broker.fabric_socket import RECEIVED_AT_ONCE, Frames
from bester.broker.keys import KeyPair
from bester.broker.link_counts import MOST_LINKS, LinkCounts
from bester.broker.link_counts import WHY as MANY
from bester.broker.long_messages import HELD_OFF, MOST_FRAMES, SHORT_FRAMES, WHY, LongMessages
from bester.broker.monitor import Monitor, OnEvent
from bester.broker.wire.messages import MAX_FRAMES
from bester.broker.zap import Zap
from tests.ipv6 import needs_ipv6
from tests.keyed import KeyedParty, Pair, free_port, new_pair
from tests.live import DEADLINE_S

PAIRS = {name: new_pair() for name in ("server", "honest", "endless")}
MIB = 1 << 20
LOOK_S = 0.02
LISTENS = "0A"
"""State of a listener in /proc/net/tcp."""


class Door:
    """A CurveSocket on a free port, looked at as a broker does; `refused` are the reasons of connections that ended."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        on_frames: Callable[[Frames], None] | None = None,
        longs: LongMessages | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self.read: list[Frames] = []
        self.refused: list[tuple[str, str, str]] = []
        self.gone: list[tuple[bytes, bytes]] = []
        known = {PAIRS["honest"].public, PAIRS["endless"].public}
        longs, links = longs or LongMessages(), LinkCounts()
        numbers = ConnectionNumbers()
        self.zap = Zap(context, known, lambda *refused: self.refused.append(refused), numbers, longs, links)
        self.socket = CurveSocket(
            context, KeyPair(*PAIRS["server"]), on_frames or self.read.append, lambda *link: self.gone.append(link),
            lambda *refused: self.refused.append(refused), numbers, long_messages=longs, links=links,
        )  # fmt: skip
        self.port = free_port()
        self.socket.socket.ipv6 = "[" in host
        self.socket.socket.bind(f"tcp://{host}:{self.port}")
        self.socket.register()

    def has_read(self, count: int) -> bool:
        """Return whether so many messages were read."""
        return len(self.read) >= count

    async def until(self, done: Callable[[], object], *, never_drained: bool = False) -> None:
        """Look again and again until `done()` is true; not at what was read, where the door is `never_drained`."""
        async with asyncio.timeout(DEADLINE_S):
            while not done():
                if not never_drained:
                    self.socket.cut_endless(drained=not self.socket.has_unread())
                await asyncio.sleep(LOOK_S)


@asynccontextmanager
async def door(
    on_frames: Callable[[Frames], None] | None = None, longs: LongMessages | None = None, host: str = "127.0.0.1"
) -> AsyncIterator[Door]:
    with zmq.Context() as context:
        opened = Door(context, on_frames, longs, host)
        try:
            yield opened
        finally:
            opened.socket.close()
            opened.zap.close()


@asynccontextmanager
async def passing_on(port: int, most_bytes: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Pass connections on to a port, up to so many bytes of each; yield the own port, and an event for their ends."""
    ended = asyncio.Event()

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", port)

        async def back() -> None:
            while data := await there.read(65536):
                writer.write(data)
            ended.set()

        task, left = asyncio.create_task(back()), most_bytes
        try:
            while left > 0 and (data := await reader.read(min(left, 65536))):
                onward.write(data)
                await onward.drain()
                left -= len(data)
            await task
        except OSError:
            ended.set()
        finally:
            task.cancel()
            onward.close()
            writer.close()

    server = await asyncio.start_server(pass_on, "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1], ended


def party(port: int, pair: Pair) -> KeyedParty:
    return KeyedParty(f"tcp://127.0.0.1:{port}", pair, PAIRS["server"].public)


def test_sizes_of_one_magnitude_are_one_reason() -> None:
    """The log has a line a minute for each address, key and reason."""
    assert len({ahead(size_mib * MIB) for size_mib in range(256, 512)}) == 1
    assert ahead(300 * MIB).startswith("it sent up to 512 MiB ahead")


@pytest.mark.parametrize("host", ["127.0.0.1", pytest.param("[::]", marks=needs_ipv6)])
async def test_message_without_an_end_ends_its_connection_alone(host: str) -> None:
    async with door(host=host) as here, passing_on(here.port, 6 * MIB) as (port, ended):
        here.socket.unread.most_bytes = 4 * MIB
        honest, endless = party(here.port, PAIRS["honest"]), party(port, PAIRS["endless"])
        try:
            await honest.send_frames(b"first")
            await endless.send_frames(b"first")
            await here.until(partial(here.has_read, 2))
            await endless.send_frames(b"x" * MIB, b"x" * (20 * MIB))  # 6 MiB get through
            await here.until(lambda: here.refused)
            (address, key, why), *_ = here.refused
            assert (address, key) == ("127.0.0.1", PAIRS["endless"].public)
            assert "of a message that does not end" in why
            await asyncio.wait_for(ended.wait(), DEADLINE_S)
            for number in range(3):  # whole messages, together above the bound
                await honest.send_frames(b"x" * (3 * MIB))
                await here.until(partial(here.has_read, 3 + number))
            assert PAIRS["honest"].public not in {key for _, key, _ in here.refused}
        finally:
            honest.close()
            endless.close()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel must count the bytes of a connection")
async def test_bytes_on_the_wire_are_those_of_the_messages_read() -> None:
    """Nothing is left of messages of any shape, where the door was never seen without input."""
    async with door() as here:
        link = party(here.port, PAIRS["endless"])
        try:
            here.socket.unread.most_bytes = 2000  # a handshake has less
            shapes = ([b""], [b"x"] * 50, [b"x" * 222, b"x" * 223], [b"x" * 65_535], [b"x" * MIB, b""])
            for _ in range(20):
                for shape in shapes:
                    await link.send_frames(*shape)
            await here.until(partial(here.has_read, 20 * len(shapes)), never_drained=True)
            assert here.socket.unread.look(drained=False) == []
        finally:
            link.close()


async def test_bound_is_one_of_all_connections_of_a_party() -> None:
    async with door() as here, passing_on(here.port, 3 * MIB) as (port, _):
        here.socket.unread.most_bytes = 4 * MIB
        links = [party(port, PAIRS["endless"]) for _ in range(2)]
        try:
            for link in links:
                await link.send_frames(b"first")
            await here.until(partial(here.has_read, 2))
            for link in links:
                await link.send_frames(b"x" * (20 * MIB))
            await here.until(lambda: here.refused)
        finally:
            for link in links:
                link.close()


@pytest.mark.parametrize("count", [RECEIVED_AT_ONCE - 1, RECEIVED_AT_ONCE, 5 * RECEIVED_AT_ONCE, MAX_FRAMES])
async def test_message_of_many_frames_is_received_in_parts_and_is_whole(count: int) -> None:
    async with door() as here:
        many, few = party(here.port, PAIRS["endless"]), party(here.port, PAIRS["honest"])
        try:
            await few.send_frames(b"first")
            await here.until(partial(here.has_read, 1))
            await many.send_frames(*[b"%d" % number for number in range(count)])
            await few.send_frames(b"second")
            await here.until(partial(here.has_read, 3))
            assert sorted(len(frames) - 2 for frames in here.read) == [1, 1, count]
            whole = next(frames for frames in here.read if len(frames) == count + 2)
            assert whole[1] == PAIRS["endless"].public.encode()
            assert whole[2:] == [b"%d" % number for number in range(count)]
            assert here.socket.messages_read == 3
        finally:
            many.close()
            few.close()


@pytest.mark.parametrize("frames", [MAX_FRAMES, SHORT_FRAMES + 32])
async def test_party_with_too_many_long_messages_is_cut_with_all_its_links_and_held_off(frames: int) -> None:
    """Messages that the party had sent before are not passed on, and another party's messages are."""
    async with door() as here:
        links = [party(here.port, PAIRS["endless"]) for _ in range(3)]
        honest = party(here.port, PAIRS["honest"])
        try:
            for link in (*links, honest):
                await link.send_frames(b"first")
            await here.until(partial(here.has_read, 4))
            quiet, *many = links
            for number in range(MOST_FRAMES // frames * 4):
                await many[number % 2].send_frames(*[b"x"] * frames)
            await quiet.send_frames(b"never")
            await here.until(lambda: here.refused)
            assert here.refused == [("127.0.0.1", PAIRS["endless"].public, WHY)]
            assert [key for _, key in here.gone] == [PAIRS["endless"].public.encode()] * 3
            told = len(here.read)
            await honest.send_frames(b"second")
            await here.until(partial(here.has_read, told + 1))
            assert here.read[-1][2:] == [b"second"]
            again = party(here.port, PAIRS["endless"])
            links.append(again)
            event = await again.handshake()
            while (
                event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
            ):  # it had the descriptor of a link that is cut; once more
                event = await again.handshake()
            assert event == zmq.EVENT_HANDSHAKE_FAILED_AUTH
            assert ("127.0.0.1", PAIRS["endless"].public, HELD_OFF) in here.refused
        finally:
            for link in (*links, honest):
                link.close()


class AtTheCut(LongMessages):
    """Allows all frames but the one with which a message of too many frames is cut."""

    def allow(self, party: str, frames: int, now: float) -> bool:
        return frames > 1


async def test_rest_of_a_message_is_skipped_where_its_party_is_held_off_at_its_cut() -> None:
    """The rest would be read as messages of whomever it names."""
    async with door(longs=AtTheCut()) as here:
        many, honest = party(here.port, PAIRS["endless"]), party(here.port, PAIRS["honest"])
        try:
            await many.send_frames(*[b"x"] * (MAX_FRAMES + 100))
            await here.until(lambda: here.refused)
            await honest.send_frames(b"first")
            await here.until(partial(here.has_read, 1))
            assert [frames[1:] for frames in here.read] == [[PAIRS["honest"].public.encode(), b"first"]]
        finally:
            many.close()
            honest.close()


async def test_connection_without_a_handshake_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers, each of whom says another part of a greeting."""
    monkeypatch.setattr("bester.broker.curve.HANDSHAKE_MS", 100)
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"CURVE".ljust(20, b"\0") + bytes(32)
    async with door() as here, asyncio.timeout(DEADLINE_S):
        for said in (b"", greeting[:1], greeting[:11], greeting, b"GET / HTTP/1.1\r\n"):
            reader, writer = await asyncio.open_connection("127.0.0.1", here.port)
            writer.write(said)
            with suppress(ConnectionResetError):
                await reader.read()  # up to the end
            writer.close()


def dealer(context: zmq.Context[zmq.Socket[bytes]], port: int) -> zmq.Socket[bytes]:
    """Return one of many links of a party."""
    link = context.socket(zmq.DEALER)
    link.linger = int(DEADLINE_S * 1000)
    link.curve_publickey, link.curve_secretkey = PAIRS["endless"].public.encode(), PAIRS["endless"].secret.encode()
    link.curve_serverkey = PAIRS["server"].public.encode()
    link.connect(f"tcp://127.0.0.1:{port}")
    return link


def has_connection(port: int) -> bool:
    """Return whether this end of a connection to a local port is there, where the system tells."""
    table = Path("/proc/net/tcp")
    rows = [row.split() for row in table.read_text().splitlines()[1:]] if table.exists() else []
    return any(row[1].endswith(f":{port:04X}") and row[3] != LISTENS for row in rows)


async def test_links_of_a_key_are_bounded_and_another_may_come_once_one_has_ended() -> None:
    key = PAIRS["endless"].public
    async with door() as here:
        honest, late = party(here.port, PAIRS["honest"]), party(here.port, PAIRS["endless"])
        others = [late]
        with zmq.Context() as context:
            links = [dealer(context, here.port) for _ in range(MOST_LINKS)]
            try:
                assert await late.handshake() == zmq.EVENT_HANDSHAKE_SUCCEEDED, "none has spoken"
                for link in links:
                    link.send(b"first")
                await here.until(partial(here.has_read, MOST_LINKS))
                await late.send_frames(b"never")
                await here.until(lambda: here.refused)
                assert here.refused[0] == ("127.0.0.1", key, MANY)
                others.append(party(here.port, PAIRS["endless"]))
                assert await others[-1].handshake() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
                await honest.send_frames(b"beside")
                await here.until(partial(here.has_read, MOST_LINKS + 1))
                assert here.read[-1][2:] == [b"beside"] and here.gone == []
                links.pop().close()
                await here.until(lambda: here.gone)
                others.append(party(here.port, PAIRS["endless"]))
                await others[-1].send_frames(b"at last")
                await here.until(partial(here.has_read, MOST_LINKS + 2))
                assert here.read[-1][2:] == [b"at last"]
            finally:
                for link in links:
                    link.close(linger=0)
                for each in (honest, *others):
                    each.close()


@asynccontextmanager
async def until_dark(port: int) -> AsyncIterator[tuple[int, asyncio.Event]]:
    """Pass connections on to a port until an event is set: then the machine at the other end is gone without a word.
    Yield the own port, and the event."""
    dark = asyncio.Event()
    writers: list[asyncio.StreamWriter] = []

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while (data := await reader.read(65536)) and not dark.is_set():
                writer.write(data)

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onward = await asyncio.open_connection("127.0.0.1", port)
        writers.extend((writer, onward))
        await asyncio.gather(pass_on(reader, onward), pass_on(there, writer))

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with server:
        try:
            yield server.sockets[0].getsockname()[1], dark
        finally:
            for writer in writers:
                writer.transport.abort()


async def test_links_of_a_machine_that_is_gone_without_a_word_do_not_keep_its_key_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("bester.broker.curve.PING_MS", 100)
    monkeypatch.setattr("bester.broker.curve.SILENT_MS", 1000)
    monkeypatch.setattr("bester.broker.link_counts.MOST_LINKS", 2)
    async with door() as here, until_dark(here.port) as (port, dark):
        parties = [party(port, PAIRS["endless"]) for _ in range(2)]
        parties.append(honest := party(here.port, PAIRS["honest"]))
        try:
            for each in parties:
                await each.send_frames(b"first")
            await here.until(partial(here.has_read, 3))
            dark.set()
            parties.append(back := party(here.port, PAIRS["endless"]))
            assert await back.handshake() != zmq.EVENT_HANDSHAKE_SUCCEEDED
            await here.until(lambda: len(here.gone) == 2)
            parties.append(again := party(here.port, PAIRS["endless"]))
            await again.send_frames(b"again")
            await here.until(partial(here.has_read, 4))
            assert here.read[-1][1:] == [PAIRS["endless"].public.encode(), b"again"]
            await honest.send_frames(b"still here")
            await here.until(partial(here.has_read, 5))
            assert {key for _, key in here.gone} == {PAIRS["endless"].public.encode()}, "who is silent answers a PING"
        finally:
            for each in parties:
                each.close()


class AnyIsTooMuch(LongMessages):
    """Allows no long message."""

    def allow(self, party: str, frames: int, now: float) -> bool:
        return False


@pytest.mark.parametrize("how", ["hold off", "cut"])
async def test_connection_that_has_the_descriptor_of_an_ended_one_is_not_cut(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The party has left, and another one is at its descriptor before the messages were read to the end."""
    happen: list[OnEvent] = []
    accepted: list[int] = []

    class Told(Monitor):
        def __init__(self, socket: zmq.Socket[bytes], events: int, on_event: OnEvent) -> None:
            def tell(event: int, value: int) -> None:
                accepted.extend([value] * (event == zmq.EVENT_ACCEPTED))
                on_event(event, value)

            happen.append(on_event)
            super().__init__(socket, events, tell)

    monkeypatch.setattr("bester.broker.fabric_socket.Monitor", Told)
    async with door(longs=AnyIsTooMuch()) as here:
        parties = [one := party(here.port, PAIRS["endless"])]
        try:
            await one.send_frames(b"first")
            await here.until(partial(here.has_read, 1))
            identity, descriptor = here.read[0][0], accepted[0]
            if how == "hold off":
                parties.append(two := party(here.port, PAIRS["endless"]))
                await two.handshake()
                await two.send_frames(*[b"x"] * (SHORT_FRAMES + 1))
                while not here.socket.has_unread():
                    os.sched_yield()
            happen[0](zmq.EVENT_DISCONNECTED, descriptor)
            happen[0](zmq.EVENT_ACCEPTED, descriptor)
            here.socket.cut(identity, PAIRS["endless"].public, "it sends too much")
            assert here.refused == []
            await here.until(lambda: here.gone)
            assert [why for _, _, why in here.refused] == ([WHY] if how == "hold off" else [])
            assert here.socket.unread.cut(descriptor), "it is open still"
        finally:
            for each in parties:
                each.close()


async def test_connection_that_ends_before_its_message_is_read_leaves_nothing_behind() -> None:
    """The connection may have chosen any routing id: nobody would ever forget that one."""
    async with door() as here:
        context = zmq.Context()
        link = dealer(context, here.port)
        events = link.get_monitor_socket(zmq.EVENT_HANDSHAKE_SUCCEEDED)
        async with asyncio.timeout(DEADLINE_S):
            while not events.poll(0):  # the door's loop lets it in
                await asyncio.sleep(LOOK_S)
        events.close()
        link.disable_monitor()
        link.send(b"only")
        link.close()
        context.term()  # once the message has left; the loop stands still meanwhile, and until the door's end is told
        latest = time.monotonic() + DEADLINE_S
        while has_connection(here.port) and time.monotonic() < latest:
            os.sched_yield()
        await here.until(lambda: here.gone)
        assert [frames[2:] for frames in here.read] == [[b"only"]]
