"""A bridge on real sockets, byte by byte: first frames, later ones, and ends of connections."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from dataclasses import replace
from typing import Any

import pytest

from bester.bridge import service
from bester.bridge.connection import Connection
from bester.bridge.limits import Limits
from bester.bridge.listeners import USER_TIMEOUT_MS
from bester.broker.config import NativeConfig
from bester.broker.wire.address import HostPort
from bester.broker.wire.messages import Close, Confirm, Login
from tests.e2e.bridge_raw_stand import Play, player, report, short
from tests.e2e.bridge_scene import GOOD_LOGIN, Raw, Scene, login, message
from tests.ipv6 import needs_ipv6


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    return player(request.param)


class TestFirstFrame:
    @pytest.mark.parametrize("kind", ["tcp4", pytest.param("tcp6", marks=needs_ipv6), "unix"])
    def test_a_client_logs_in(self, play: Play, kind: str) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect(kind)
            client.write(login())
            assert await client.body() == (
                b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special","max_frame":1048576}}'
            )
            (asked,) = it.broker.of_kind(Login)
            # A Unix socket has no address: wrong passwords there delay no other user.
            assert asked.address == {"tcp4": "127.0.0.1", "tcp6": "::1", "unix": ""}[kind]

        play(story)

    @pytest.mark.parametrize(
        "body",
        [
            login(secret="wrong"),
            login(user=""),
            login(secret=""),
            b'{"header":{"scope":"client"},"payload":{}}',
            b'{"header":{"scope":"client","authentication":5}}',
        ],
    )
    def test_a_login_refused(self, play: Play, body: bytes) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            client.write(body, message("echo"))
            assert await client.read() == report("bad", "auth_special", "authentication-failed")
            await client.end()

        play(story)

    @pytest.mark.parametrize(
        "body", [b"{}", b'{"header":null}', b'{"header":{"scope":"x"}}', b'{"header":{"scope":[]}}']
    )
    def test_no_scope(self, play: Play, body: bytes) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            client.write(body)
            answer = await client.read()
            assert answer["header"]["status"] == "bad"
            assert answer["payload"]["reason"] == "malformed"
            await client.end()

        play(story)

    def test_frames_of_one_write_are_answered_in_order(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            payload = '{"data":"first","type":"echo","id":"0"}'
            client.write(login(payload=payload), message("echo", "1", '"second"'), message("dummy", "2"))
            answers = [await client.read() for _ in range(6)]
            assert answers[0] == GOOD_LOGIN
            assert [a["payload"]["data"] for a in answers if "data" in a["payload"]] == [None, "first", "second"]
            assert [a["payload"]["id"] for a in answers if "id" in a["payload"]] == ["auth_special", "2", "0", "1"]

        play(story)

    def test_a_message_waiting_for_the_user_does_not_overtake_the_answer(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            client.write(login("bob"))
            await it.broker.until(lambda: it.broker.of("bob") != [])
            it.broker.deliver("s1/e/1", b"1", [[0, *it.broker.of("bob")]])
            assert await client.read() == GOOD_LOGIN
            assert (await client.read())["payload"]["data"] == 1

        play(story)

    @pytest.mark.parametrize("length", [4097, 2**32 - 1])
    def test_client_before_its_login_is_refused_from_the_length_alone(self, play: Play, length: int) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            client.writer.write(struct.pack("<I", length))
            assert await client.read() == report("bad", None, "frame-too-large")
            await client.end()

        play(story)


ODD_DATA = ["0.1", "-0", "1e400", "1" * 30, '{"a":1,"a":2}', r'"\u0061\/\ud83d\ude00"', '"☃"', "[ 1 , 2 ]", "null"]


class TestLaterFrames:
    @pytest.mark.parametrize("kind", ["echo", "copy"])
    @pytest.mark.parametrize("header", ["null", "{}"])
    def test_data_is_unchanged_and_comes_before_the_report(self, play: Play, kind: str, header: str) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            for data in ODD_DATA:
                client.write(message(kind, "x", data, header))
                delivered = await client.body()
                assert b'"payload":{"data":%b,"type":"chat"}}' % data.encode() in delivered
                head = json.loads(delivered)["header"]
                assert head["messageType"] == "receivedMessage"
                assert head["origin"] == "s1"
                assert head["id"].startswith("s1/e/")
                answer = await client.read()
                assert head["id"] == answer["payload"]["message"] + ".0.0"
                assert short(answer) == report("good", "x")

        play(story)

    def test_one_byte_at_a_time(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            client.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.write(login())
            stream = b"".join(
                struct.pack("<I", len(body)) + body for body in [message("echo", "1"), message("dummy", "2")]
            )
            for at in range(len(stream)):
                client.writer.write(stream[at : at + 1])
                await client.writer.drain()
            assert await client.read() == GOOD_LOGIN
            kinds = [(await client.read())["header"] for _ in range(3)]
            assert [header.get("messageType") for header in kinds].count("receivedMessage") == 1

        play(story)

    def test_five_hundred_frames_in_one_write(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.write(*(message("echo", str(n), str(n)) for n in range(500)))
            for n in range(500):
                assert (await client.read())["payload"]["data"] == n
                assert (await client.read())["payload"]["id"] == str(n)
            assert len(it.broker.of_kind(Confirm)) < 250

        play(story)

    def test_messages_above_the_bound_of_unreported_ones_wait_and_none_is_lost(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            many = 5000
            client.write(*(message("hold", str(n), '"' + "x" * 500 + '"') for n in range(many)))
            bound = it.service.bridge.limits.unreported
            await it.broker.until(lambda: len(it.broker.held) == bound)
            seen: list[str] = []
            while len(seen) < many:
                assert len(it.broker.held) <= bound
                count = len(it.broker.held)
                it.broker.release()
                seen += [(await client.read())["payload"]["id"] for _ in range(count)]
                if len(seen) < many:
                    await it.broker.until(lambda: bool(it.broker.held))
            assert seen == [str(n) for n in range(many)]

        play(story)

    @pytest.mark.parametrize(
        ("body", "answer"),
        [
            (message("nonesuch", "x"), report("bad", "x", "unknown-type")),
            (message("builtin", "x", "null"), report("bad", "x", "unknown-command")),
            (message("builtin", "x", '{"command":{"type":"open"}}'), report("bad", "x", "unknown-command")),
            (b'{"payload":{"type":"echo","data":1,"id":5}}', report("bad", None, "malformed")),
            (b'{"payload":{"data":1,"id":"x"}}', report("bad", "x", "malformed")),
            (b'{"payload":{"type":"echo","id":"x"}}', report("bad", "x", "malformed")),
            (b'{"header":{}}', report("bad", None, "malformed")),
            (message("nonesuch", None), report("bad", None, "unknown-type")),
            (b'{"payload":{"type":"nonesuch","data":1}}', report("bad", None, "unknown-type")),
        ],
    )
    def test_a_bad_message_is_answered_and_the_connection_stays(
        self, play: Play, body: bytes, answer: dict[str, Any]
    ) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.write(body)
            assert short(await client.read()) == answer
            client.write(message("dummy", "still here"))
            assert await client.body() == (
                b'{"header":{"status":"0"},"payload":{"data":null,"id":"still here","type":"dummy"}}'
            )

        play(story)

    @pytest.mark.parametrize(
        "body",
        [b"nonsense", b"[]", b'{"payload":{}} x', b'{"a":01}', b'{"a":1,}', b'"\xff"', b'{"a":' + b"[" * 100_000],
        ids=lambda body: str(body[:12]),
    )
    def test_frame_without_a_json_object_ends_the_connection(self, play: Play, body: bytes) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.write(body, message("dummy"))
            assert await client.read() == report("bad", None, "malformed")
            await client.end()

        play(story)

    @pytest.mark.parametrize(("length", "reason"), [(0, "malformed"), (1024 * 1024 + 1, "frame-too-large")])
    def test_impossible_length_ends_the_connection_though_the_peer_still_writes(
        self, play: Play, length: int, reason: str
    ) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.writer.write(struct.pack("<I", length) + bytes(2_000_000))
            assert await client.read() == report("bad", None, reason)
            await client.end()

        play(story)

    def test_largest_frame(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            size = 1024 * 1024 - len(message("echo", "x", '""'))
            client.write(message("echo", "x", '"' + "x" * size + '"'))
            assert len((await client.read())["payload"]["data"]) == size
            assert short(await client.read()) == report("good", "x")

        play(story)


class TestEnds:
    def test_close(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.write(message("builtin", "x", '{"command":{"type":"close"}}'))
            await client.end()
            await client.close()
            await it.empty()
            assert it.broker.sessions == {}

        play(story)

    def test_half_closed_client_gets_its_outstanding_reports(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect()
            client.write(login(), message("hold", "1"), message("hold", "2"))
            client.writer.write_eof()
            assert await client.read() == GOOD_LOGIN
            await it.broker.until(lambda: len(it.broker.held) == 2)
            it.broker.deliver("s1/e/9", b'"still a target"', [[0, *it.broker.of("alice")]])
            assert (await client.read())["payload"]["data"] == "still a target"
            it.broker.release()
            assert [short(await client.read()) for _ in range(2)] == [report("good", "1"), report("good", "2")]
            await client.end()
            await it.broker.until(lambda: it.broker.of_kind(Close) != [])

        play(story)

    def test_reset_connection_leaves_no_state(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.write(message("hold", "1"))
            await it.broker.until(lambda: len(it.broker.held) == 1)
            client.reset()
            await it.empty()
            assert len(it.broker.of_kind(Close)) == 1
            it.broker.release()
            other = await it.client("bob")
            other.write(message("echo", "x"))
            assert (await other.read())["payload"]["data"] == 1

        play(story)

    def test_client_that_leaves_before_its_login_is_forgotten(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            for _ in range(3):
                client = await it.connect()
                client.writer.write(b"\x10")
                await client.close()
            await it.empty()

        play(story)


def test_connection_above_the_bound_is_refused(play: Play) -> None:
    async def story(it: Scene) -> None:
        await it.client()
        await it.client("bob")
        late = await it.connect()
        assert await late.read() == report("bad", "auth_special", "overloaded")
        await late.end()
        assert it.service.bridge.connections == 2

    play(story, native=NativeConfig(HostPort("127.0.0.1", 0), max_connections=2))


def test_parked_frame_is_ended_and_nobody_else_is(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "limits_of", lambda config: replace(Limits(), frame_s=0.1, frame_rate=1 << 30))

    async def story(it: Scene) -> None:
        parked, bob = await it.client(), await it.client("bob")
        parked.write(message("dummy", "p"))
        parked.writer.write(struct.pack("<I", 1_000_000) + b"x" * 300_000)
        assert (await parked.read())["payload"]["id"] == "p"
        assert await parked.read() == report("bad", None, "timeout")
        await parked.end()
        bob.write(message("dummy", "q"))
        assert (await bob.read())["payload"]["id"] == "q"
        state = it.service.bridge.inspect()
        assert (state.frames_late, state.unfinished_bytes, state.sessions) == (1, 0, 1)

    play(story)


def test_sockets_have_their_options(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted: list[asyncio.BaseTransport] = []
    made = Connection.connection_made

    def noting(self: Connection, transport: asyncio.BaseTransport) -> None:
        accepted.append(transport)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", noting)

    async def story(it: Scene) -> None:
        await it.client()
        (transport,) = accepted
        sock = transport.get_extra_info("socket")
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == USER_TIMEOUT_MS

    play(story)


def test_frames_joined_in_one_write_are_read_back_whole(play: Play) -> None:
    """A busy connection: many tasks, one stream, no frame inside another."""

    async def story(it: Scene) -> None:
        clients: list[Raw] = [await it.client(f"u{n}") for n in range(5)]
        everybody = json.dumps([f"u{n}" for n in range(5)])
        for number in range(50):
            for client in clients:
                client.write(message("to", str(number), everybody))
        for client in clients:
            frames = [await client.read() for _ in range(50 * 5 + 50)]
            reports = [frame["payload"]["id"] for frame in frames if "status" in frame["header"]]
            assert reports == [str(number) for number in range(50)]

    play(story)
