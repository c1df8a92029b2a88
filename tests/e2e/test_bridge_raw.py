"""The native protocol over raw sockets, row by row, on both event loops."""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from bester.bridge.listeners import USER_TIMEOUT_MS
from bester.broker.config import NativeConfig
from bester.broker.wire.address import HostPort
from bester.broker.wire.messages import Close, Confirm, Login, Open, Submit
from tests.e2e.bridge_scene import (
    GOOD_LOGIN,
    LISTED,
    OPEN_TO_SERVERS,
    Raw,
    Scene,
    Story,
    command,
    login,
    message,
    scene,
)

Play = Callable[..., None]


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    factory = uvloop.new_event_loop if request.param == "uvloop" else asyncio.new_event_loop

    def run(story: Story, **more: Any) -> None:
        async def played() -> None:
            async with scene(**more) as it:
                await story(it)

        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(played())

    return run


def report(status: str, id_: str | None, reason: str | None = None) -> dict[str, Any]:
    payload = {"id": id_} if reason is None else {"id": id_, "reason": reason}
    return {"header": {"messageType": "statusReport", "status": status}, "payload": payload}


def short(frame: dict[str, Any]) -> dict[str, Any]:
    """A report without the server's own id of the message."""
    frame["payload"].pop("message", None)
    return frame


class TestFirstFrame:
    @pytest.mark.parametrize("kind", ["tcp4", "tcp6", "unix"])
    def test_a_client_logs_in(self, play: Play, kind: str) -> None:
        async def story(it: Scene) -> None:
            client = await it.connect(kind)
            client.write(login())
            assert await client.body() == (
                b'{"header":{"messageType":"statusReport","status":"good"},"payload":{"id":"auth_special","max_frame":1048576}}'
            )
            (asked,) = it.broker.of_kind(Login)
            # A Unix socket has none: one's wrong passwords slow nobody else down.
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

    def test_everything_in_one_write_is_answered_in_order(self, play: Play) -> None:
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
    def test_a_stranger_is_refused_from_the_length_alone(self, play: Play, length: int) -> None:
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
    def test_data_stays_as_it_is_and_comes_before_the_report(self, play: Play, kind: str, header: str) -> None:
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

    def test_more_than_may_be_unreported_wait_and_none_is_lost(self, play: Play) -> None:
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
    def test_a_frame_that_is_no_json_object_ends_it(self, play: Play, body: bytes) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.write(body, message("dummy"))
            assert await client.read() == report("bad", None, "malformed")
            await client.end()

        play(story)

    @pytest.mark.parametrize(("length", "reason"), [(0, "malformed"), (1024 * 1024 + 1, "frame-too-large")])
    def test_a_length_that_cannot_be_ends_it_though_the_peer_still_writes(
        self, play: Play, length: int, reason: str
    ) -> None:
        async def story(it: Scene) -> None:
            client = await it.client()
            client.writer.write(struct.pack("<I", length) + bytes(2_000_000))
            assert await client.read() == report("bad", None, reason)
            await client.end()

        play(story)

    def test_a_frame_as_large_as_it_may_be(self, play: Play) -> None:
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

    def test_one_who_stops_sending_gets_the_reports_that_are_outstanding(self, play: Play) -> None:
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

    def test_a_reset_leaves_nothing_behind(self, play: Play) -> None:
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

    def test_a_stranger_who_goes_is_forgotten(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            for _ in range(3):
                client = await it.connect()
                client.writer.write(b"\x10")
                await client.close()
            await it.empty()

        play(story)


class TestDelivering:
    def test_every_connection_of_a_user_gets_each_message(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            bobs = [await it.client("bob", kind) for kind in ("tcp4", "tcp6", "unix")]
            alice.write(message("to", "x", '["bob","alice","bob"]'))
            for bob in bobs:
                ids = [(await bob.read())["header"]["id"] for _ in range(2)]
                assert [id_.rpartition(".")[2] for id_ in ids] == ["0", "2"]
            assert (await alice.read())["header"]["id"].endswith(".1")
            assert short(await alice.read()) == report("good", "x")

        play(story)

    def test_one_who_does_not_read_holds_nobody_up(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice, bob, slow = await it.client(), await it.client("bob"), await it.client("slow")
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport can
            body = json.dumps("x" * 500_000).encode()
            (session,) = it.broker.of("slow")
            for number in range(40):
                it.broker.deliver(f"s1/e/{number}", body, [[0, session]])
                if number % 10 == 0:
                    alice.write(message("to", str(number), '["bob"]'))
                    assert (await bob.read())["payload"]["data"] == ["bob"]
                    assert short(await alice.read()) == report("good", str(number))
            failed = [row for confirm in it.broker.of_kind(Confirm) for row in confirm.failed]
            assert failed
            assert {row[2] for row in failed} == {"overloaded"}

        play(story)

    def test_a_reader_that_is_only_slow_gets_everything_and_only_then_it_is_confirmed(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            slow = await it.client("slow")
            slow.writer.transport.pause_reading()  # type: ignore[attr-defined]  # a stream's transport can
            body = json.dumps("x" * 800_000).encode()
            (session,) = it.broker.of("slow")
            for number in range(5):
                it.broker.deliver(f"s1/e/{number}", body, [[0, session]])
            other = await it.client("bob")
            other.write(message("echo"))
            await other.read()
            await other.read()
            assert all(confirm.upto < 5 for confirm in it.broker.of_kind(Confirm))
            slow.writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above
            for number in range(5):
                assert (await slow.read())["header"]["id"] == f"s1/e/{number}.0.0"
            await it.broker.until(lambda: it.broker.of_kind(Confirm)[-1].upto == 6)
            assert all(confirm.failed == [] for confirm in it.broker.of_kind(Confirm))

        play(story)


class TestAcknowledging:
    def test_the_report_waits_for_the_clients_word(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice, bob = await it.client(), await it.connect()
            bob.write(login("bob", ack=True))
            assert await bob.read() == GOOD_LOGIN
            alice.write(message("to", "1", '["bob"]'))
            got = await bob.read()
            alice.write(message("echo", "2"))
            await alice.read()
            assert short(await alice.read()) == report("good", "2")
            bob.write(command("ack", [got["header"]["id"]]), message("dummy", "d"))
            assert (await bob.read())["payload"]["id"] == "d"
            assert short(await alice.read()) == report("good", "1")
            await it.broker.until(lambda: it.broker.of_kind(Confirm)[-1].upto == 2)

        play(story)

    def test_one_who_goes_without_it_has_not_got_it(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            bob = await it.connect()
            bob.write(login("bob", ack=True))
            assert await bob.read() == GOOD_LOGIN
            it.broker.deliver("s1/e/9", b"1", [[0, *it.broker.of("bob")]])
            await bob.read()
            bob.reset()
            await it.broker.until(lambda: it.broker.of_kind(Confirm) != [])
            assert it.broker.of_kind(Confirm) == [Confirm(1, [], [[1, 0, "unconfirmed"]])]

        play(story)


class TestWordsOfAMessage:
    def test_they_reach_the_broker(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            alice.write(
                b'{"payload":{"type":"hold","data":1,"id":"1","dedup":"d","ttl_s":60,"outcome":true,"resent":true}}',
                b'{"payload":{"type":"hold","data":1,"id":"2","dedup":5}}',
                b'{"payload":{"type":"hold","data":1,"id":"3"}}',
            )
            assert await alice.read() == report("bad", "2", "malformed")
            await it.broker.until(lambda: len(it.broker.held) == 2)
            assert [submit.meta for submit in it.broker.held] == [
                {"dedup": "d", "ttl_s": 60.0, "outcome": True, "resent": True},
                {},
            ]

        play(story)

    def test_what_became_of_it(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice, bob = await it.client(), await it.client("bob")
            it.broker.outcomes["alice", "s1/e/9"] = {"carol": "queued"}
            for client in (alice, bob):
                client.write(command("outcome", "s1/e/9", "q"), message("dummy"))
                await client.read()
            assert await alice.body() == (
                b'{"header":{"status":"0"},"payload":'
                b'{"data":{"message":"s1/e/9","recipients":{"carol":"queued"}},"id":"q","type":"builtin"}}'
            )
            assert await bob.body() == (b'{"header":{"status":"1"},"payload":{"data":null,"id":"q","type":"builtin"}}')
            it.broker.part()
            alice.write(command("outcome", "s1/e/9", "q"))
            assert await alice.read() == report("bad", "q", "unreachable")

        play(story)


class TestServers:
    def test_one_message_a_report_and_the_end(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            server = await it.connect()
            server.write(
                b'{"header":{"scope":"server","server":"s2","origin":"s0","path":["s2/m"],"address":"lie"},'
                b'"payload":{"data":-0,"type":"server"}}',
                message("server", "second"),
            )
            assert short(await server.read()) == report("good", None)
            await server.end()
            (submit,) = it.broker.of_kind(Submit)
            assert (submit.session, submit.type, submit.body) == (None, "server", b"-0")
            assert submit.meta == {
                "scope": "server",
                "address": "127.0.0.1",
                "server": "s2",
                "origin": "s0",
                "path": ["s2/m"],
            }

        play(story)

    def test_refused_by_policy(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            server = await it.connect()
            server.write(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"refuse","id":"x"}}')
            assert short(await server.read()) == report("bad", "x", "not-allowed")
            await server.end()

        play(story)

    def test_one_that_closes_without_reading_is_heard(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            server = await it.connect()
            server.write(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"server"}}')
            await server.close()
            await it.broker.until(lambda: len(it.broker.of_kind(Submit)) == 1)
            await it.empty()

        play(story)

    @pytest.mark.parametrize("more", [OPEN_TO_SERVERS, LISTED])
    def test_a_server_may_send_more_than_a_stranger(self, play: Play, more: dict[str, Any]) -> None:
        async def story(it: Scene) -> None:
            server = await it.connect()
            data = '"' + "x" * 100_000 + '"'
            server.write(
                f'{{"header":{{"scope":"server"}},"payload":{{"data":{data},"type":"server","id":"x"}}}}'.encode()
            )
            assert short(await server.read()) == report("good", "x")

        play(story, **more)


class TestTheBrokerComesAndGoes:
    def test_clients_stay_and_their_reports_are_late_not_lost(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            alice.write(message("hold", "1"))
            await it.broker.until(lambda: len(it.broker.held) == 1)
            (first,) = it.broker.held
            it.broker.part()
            alice.write(message("echo", "2"), message("dummy", "d"))
            assert (await alice.read())["payload"]["id"] == "d"
            late = await it.connect()
            late.write(login("late"))
            assert await late.read() == report("bad", "auth_special", "unreachable")
            await late.end()
            it.broker.come_back()
            assert [opened.user for opened in it.broker.of_kind(Open)] == ["alice"]
            assert it.broker.held == [first, first._replace(meta={"attempt": 2})]
            assert (await alice.read())["payload"]["data"] == 1
            assert short(await alice.read()) == report("good", "2")
            it.broker.release()
            assert short(await alice.read()) == report("good", "1")

        play(story)

    def test_what_one_said_who_has_gone_is_carried_out(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            alice.write(message("hold", "1"))
            await it.broker.until(lambda: len(it.broker.held) == 1)
            it.broker.part()
            alice.write(message("hold", "2"), message("dummy", "d"))
            await alice.read()
            alice.reset()
            await it.empty()
            it.broker.told.clear()
            it.broker.come_back()
            assert [type(message) for message in it.broker.told] == [Open, Submit, Submit, Close]
            assert [submit.meta for submit in it.broker.held[1:]] == [{"attempt": 2}, {}]
            assert it.broker.sessions == {}

        play(story)

    def test_a_bridge_that_ends_without_a_broker_tells_everybody(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            alice.write(message("hold", "1"))
            await it.broker.until(lambda: len(it.broker.held) == 1)
            it.broker.part()
            alice.write(message("echo", "2"), message("dummy", "d"))
            assert (await alice.read())["payload"]["id"] == "d"
            draining = asyncio.create_task(it.service.drain(1.0))
            assert await alice.read() == report("bad", "1", "unreachable")
            assert await alice.read() == report("bad", "2", "unreachable")
            await alice.end()
            await alice.close()
            assert not await draining
            assert it.service.bridge.connections == 0

        play(story)

    def test_draining_lets_reports_out_first(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice, idle = await it.client(), await it.client("idle")
            alice.write(message("hold", "1"))
            await it.broker.until(lambda: len(it.broker.held) == 1)
            draining = asyncio.create_task(it.service.drain())
            await idle.end()
            await idle.close()
            it.broker.release()
            assert short(await alice.read()) == report("good", "1")
            await alice.end()
            await alice.close()
            assert await draining

        play(story)


def test_one_too_many_is_told_so(play: Play) -> None:
    async def story(it: Scene) -> None:
        await it.client()
        await it.client("bob")
        late = await it.connect()
        assert await late.read() == report("bad", "auth_special", "overloaded")
        await late.end()
        assert it.service.bridge.connections == 2

    play(story, native=NativeConfig(HostPort("127.0.0.1", 0), max_connections=2))


def test_sockets_have_their_options(play: Play) -> None:
    async def story(it: Scene) -> None:
        await it.client()
        (connection,) = it.service.bridge._connections.values()
        sock = connection._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # it is a Connection
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
