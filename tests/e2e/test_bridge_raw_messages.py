"""A bridge on real sockets, byte by byte: deliveries, other servers, and brokers that come and go."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bester.bridge import listeners
from bester.broker.wire.messages import Close, Confirm, Open, Submit
from tests.e2e.bridge_raw_stand import Play, player, report, short
from tests.e2e.bridge_scene import GOOD_LOGIN, LISTED, OPEN_TO_SERVERS, Scene, command, login, message
from tests.ipv6 import HAS_IPV6
from tests.kernel_buffers import read_on


@pytest.fixture(params=["asyncio", "uvloop"])
def play(request: pytest.FixtureRequest) -> Play:
    return player(request.param)


class TestDelivering:
    def test_every_connection_of_a_user_gets_each_message(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            bobs = [await it.client("bob", kind) for kind in ("tcp4", "tcp6" if HAS_IPV6 else "tcp4", "unix")]
            alice.write(message("to", "x", '["bob","alice","bob"]'))
            for bob in bobs:
                ids = [(await bob.read())["header"]["id"] for _ in range(2)]
                assert [id_.rpartition(".")[2] for id_ in ids] == ["0", "2"]
            assert (await alice.read())["header"]["id"].endswith(".1")
            assert short(await alice.read()) == report("good", "x")

        play(story)

    def test_client_that_does_not_read_delays_no_other(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice, bob = await it.client(), await it.client("bob")
            await it.slow_client()
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

    def test_slow_reader_gets_every_message_and_each_is_confirmed_only_then(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            slow = await it.slow_client()
            body = json.dumps("x" * 800_000).encode()
            (session,) = it.broker.of("slow")
            for number in range(5):
                it.broker.deliver(f"s1/e/{number}", body, [[0, session]])
            other = await it.client("bob")
            other.write(message("echo"))
            await other.read()
            await other.read()
            await it.broker.until(lambda: 6 in (serial for row in it.broker.of_kind(Confirm) for serial in row.done))
            assert all((row.upto, row.done) in ((0, []), (0, [6])) for row in it.broker.of_kind(Confirm))
            read_on(slow.writer)
            for number in range(5):
                assert (await slow.read())["header"]["id"] == f"s1/e/{number}.0.0"
            await it.broker.until(lambda: it.broker.of_kind(Confirm)[-1].upto == 6)
            assert all(confirm.failed == [] for confirm in it.broker.of_kind(Confirm))

        play(story)

    def test_a_reader_that_the_system_gives_up_on_is_counted_and_logged_as_one_that_takes_nothing(
        self, play: Play, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(listeners, "USER_TIMEOUT_MS", 300)

        async def story(it: Scene) -> None:
            await it.slow_client()
            body = json.dumps("x" * 800_000).encode()
            for number in range(5):
                it.broker.deliver(f"s1/e/{number}", body, [[0, *it.broker.of("slow")]])
            await it.broker.until(lambda: it.broker.of_kind(Close) != [])
            assert it.service.bridge.reached == {"stalled_s": 1}
            assert [getattr(row, "event", None) for row in caplog.records if row.name == "bester.bridge"] == [
                "connection-cut"
            ]
            assert "connection of slow at 127.0.0.1 cut: took nothing for 30 s" in caplog.text

        play(story)


class TestAcknowledging:
    def test_report_waits_for_the_ack(self, play: Play) -> None:
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

    def test_message_without_an_ack_is_unconfirmed(self, play: Play) -> None:
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


class TestOptionsOfAMessage:
    def test_options_reach_the_broker(self, play: Play) -> None:
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

    def test_question_for_an_outcome(self, play: Play) -> None:
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

    def test_message_of_a_server_that_closes_without_reading(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            server = await it.connect()
            server.write(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"server"}}')
            await server.close()
            await it.broker.until(lambda: len(it.broker.of_kind(Submit)) == 1)
            await it.empty()

        play(story)

    @pytest.mark.parametrize("half_closed", [False, True])
    def test_end_without_a_report_is_a_reset(self, play: Play, half_closed: bool) -> None:
        async def story(it: Scene) -> None:
            it.broker.part()
            server = await it.connect()
            server.write(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"server","id":"x"}}')
            if half_closed:
                server.writer.write_eof()
            async with asyncio.timeout(10):
                while not it.service.bridge.inspect().submissions.waiting:
                    await asyncio.sleep(0.01)
            it.service.bridge.shut_down()
            it.service.bridge.give_up()
            with pytest.raises(ConnectionResetError):
                async with asyncio.timeout(10):
                    await server.reader.read()
            await it.empty()

        play(story)

    @pytest.mark.parametrize("more", [OPEN_TO_SERVERS, LISTED])
    def test_first_frame_of_a_server_may_be_longer_than_a_login(self, play: Play, more: dict[str, Any]) -> None:
        async def story(it: Scene) -> None:
            server = await it.connect()
            data = '"' + "x" * 100_000 + '"'
            server.write(
                f'{{"header":{{"scope":"server"}},"payload":{{"data":{data},"type":"server","id":"x"}}}}'.encode()
            )
            assert short(await server.read()) == report("good", "x")

        play(story, **more)


class TestLossOfTheBroker:
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

    def test_message_of_a_gone_client_is_carried_out(self, play: Play) -> None:
        async def story(it: Scene) -> None:
            alice = await it.client()
            alice.write(message("hold", "1"))
            await it.broker.until(lambda: len(it.broker.held) == 1)
            it.broker.part()
            alice.write(message("hold", "2"), message("dummy", "d"))
            await alice.read()
            alice.reset()
            await it.empty()
            it.broker.received.clear()
            it.broker.come_back()
            assert [type(message) for message in it.broker.received] == [Open, Submit, Submit, Close]
            assert [submit.meta for submit in it.broker.held[1:]] == [{"attempt": 2}, {}]
            assert it.broker.sessions == {}

        play(story)

    def test_bridge_that_ends_without_a_broker_reports_to_every_client(self, play: Play) -> None:
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
