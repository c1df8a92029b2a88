"""The client over real sockets: send, receive, reconnect, acknowledge."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator

import pytest

from bester.bridge.frames import frame
from bester.client import (
    ClientClosed,
    ConnectionLost,
    Limits,
    MessageTooLarge,
    Outcome,
    Report,
    ServerRefused,
    WindowFull,
)
from tests.e2e.client_stand import client_of, hold
from tests.e2e.fake_native_server import FakeServer, Json, Peer, message_frame, outcome_frame, report_frame, within
from tests.kernel_buffers import most_bytes_held


@pytest.fixture
async def server() -> AsyncIterator[FakeServer]:
    async with FakeServer() as server:
        yield server


class TestSending:
    async def test_good_report(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            report = await within(client.send("chat", {"text": "hello"}))
            peer = await server.peer()
            payload = await peer.payload()
        dedup = payload.pop("dedup")
        assert payload == {"type": "chat", "data": {"text": "hello"}, "id": report.id}
        assert 0 < len(dedup) <= 64
        assert report == Report(True, payload["id"])

    async def test_terms_are_in_the_frame(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            await within(client.send("chat", 1, dedup="mine", ttl_s=60, outcome=True))
            payload = await (await server.peer()).payload()
        assert (payload["dedup"], payload["ttl_s"], payload["outcome"]) == ("mine", 60, True)

    @pytest.mark.parametrize("wrong", [{"ttl_s": 0}, {"ttl_s": 1e9}, {"dedup": ""}, {"dedup": "x" * 65}])
    async def test_invalid_terms_are_not_sent(self, server: FakeServer, wrong: Json) -> None:
        async with client_of(server) as client:
            with pytest.raises(ValueError, match=next(iter(wrong))):
                await client.send("chat", 1, **wrong)
            assert client.unreported == 0

    async def test_bad_report_holds_reason_and_recipients(self, server: FakeServer) -> None:
        outcomes = {"bob": "delivered", "dave": "failed:unknown-user"}
        server.on_message = lambda peer, payload: peer.report(
            payload["id"], "bad", reason="unknown-user", message="m7", recipients=outcomes
        )
        async with client_of(server) as client:
            report = await within(client.send("chat", 1))
        assert report == Report(False, report.id, "unknown-user", "m7", outcomes)

    async def test_raw_json_is_sent_unchanged(self, server: FakeServer) -> None:
        text = b'{"a":0.1000,"a":-0,"n":1e400,"i":123456789012345678901234567890,"s":"\\u00e9\\/"}'
        async with client_of(server) as client:
            await within(client.send("chat", raw=text))
            body = await within((await server.peer()).bodies.get())
        assert text in body

    @pytest.mark.parametrize("raw", [b"{", b"", b"1}", b'"\xff"', b"[" * 100 + b"]" * 100])
    async def test_invalid_json_is_not_sent(self, server: FakeServer, raw: bytes) -> None:
        async with client_of(server) as client:
            with pytest.raises(ValueError, match="raw is not JSON"):
                _ = client.submit("chat", raw=raw)
            assert client.unreported == 0

    async def test_too_large_message_costs_no_connection(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            with pytest.raises(MessageTooLarge):
                await client.send("chat", "x" * (1 << 20))
            assert (await within(client.send("chat", "x"))).good

    async def test_hundreds_in_flight_and_reports_in_any_order(self, server: FakeServer) -> None:
        held: list[str] = []

        def in_reverse(peer: Peer, payload: Json) -> None:
            held.append(payload["id"])
            if len(held) == 300:
                peer.send(*(report_frame(id_, message=f"m{id_}") for id_ in reversed(held)))

        server.on_message = in_reverse
        async with client_of(server) as client:
            peer = await server.peer()
            reads = peer.reads
            futures = [client.submit("chat", number) for number in range(300)]
            reports = await within(asyncio.gather(*futures))
        assert held == [report.id for report in reports]
        assert all(report.message == f"m{report.id}" for report in reports)
        assert peer.reads - reads < 10, "one tick's messages are one write"

    async def test_full_window_blocks_senders(self, server: FakeServer) -> None:
        def next_tick(peer: Peer, payload: Json) -> None:
            asyncio.get_running_loop().call_soon(peer.report, payload["id"])

        server.on_message = next_tick
        async with client_of(server, limits=Limits(window=4)) as client:
            reports = await within(asyncio.gather(*(client.send("chat", number) for number in range(100))))
            peer = await server.peer()
            order = [(await peer.payload())["data"] for _ in range(100)]
        assert all(report.good for report in reports)
        assert peer.most_unreported == 4
        assert order == list(range(100))

    async def test_full_window_refuses_submit_and_room_waits(self, server: FakeServer) -> None:
        server.on_message = hold
        async with client_of(server, limits=Limits(window=2)) as client:
            first, second = client.submit("chat", 1), client.submit("chat", 2)
            with pytest.raises(WindowFull):
                _ = client.submit("chat", 3)
            room = asyncio.create_task(client.room())
            peer = await server.peer()
            ids = [(await peer.payload())["id"] for _ in range(2)]
            assert not room.done()
            peer.report(ids[0])
            await within(room)
            assert await within(first)
            peer.report(ids[1])
            await within(second)

    async def test_cancelled_wait_for_room_passes_the_turn_on(self, server: FakeServer) -> None:
        server.on_message = hold
        async with client_of(server, limits=Limits(window=1)) as client:
            first = client.submit("chat", "first")
            too_long = asyncio.create_task(client.send("chat", "x" * (1 << 20)))
            given_up = asyncio.create_task(client.send("chat", "given up"))
            last = asyncio.create_task(client.send("chat", "last"))
            peer = await server.peer()
            payload = await peer.payload()
            given_up.cancel()
            server.on_message = lambda peer, payload: peer.report(payload["id"])
            peer.report(payload["id"])
            assert (await within(last)).good
            assert (await first).good
            with pytest.raises(MessageTooLarge):
                await too_long

    async def test_ping(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            assert 0 <= await within(client.ping()) < 10


class TestReceiving:
    async def test_message_holds_all_header_fields(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            peer = await server.peer()
            peer.send(message_frame({"n": 1}, "7.0", origin="s1", redelivered=True))
            message = await within(client.receive())
        assert (message.type, message.data, message.raw) == ("chat", {"n": 1}, b'{"n": 1}')
        assert (message.id, message.origin, message.redelivered) == ("7.0", "s1", True)

    async def test_number_beyond_python_is_kept_as_raw(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            peer = await server.peer()
            peer.send_body(b'{"header":{"messageType":"receivedMessage"},"payload":{"data":[1e400, -0],"type":"chat"}}')
            message = await within(client.receive())
        assert message.raw == b"[1e400, -0]"
        with pytest.raises(ValueError, match="out of range"):
            _ = message.data
        with pytest.raises(ValueError, match="Expected `str`"):
            message.decode(str)

    async def test_stream_in_single_bytes(self, server: FakeServer) -> None:
        def in_bytes(peer: Peer, payload: Json) -> None:
            stream = json.dumps(message_frame("é", "1.0")), json.dumps(report_frame(payload["id"]))
            for byte in b"".join(frame(text.encode()) for text in stream):
                peer.transport.write(bytes([byte]))

        async with client_of(server) as client:
            peer = await server.peer()
            peer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            server.on_message = in_bytes
            assert (await within(client.send("chat", 1))).good
            assert (await within(client.receive())).data == "é"

    async def test_messages_before_the_login_answer_are_kept(self, server: FakeServer) -> None:
        def early(peer: Peer, authentication: Json) -> None:
            peer.send(message_frame("early"))
            server.accept(peer, authentication)

        server.on_login = early
        async with client_of(server) as client:
            assert (await within(client.receive())).data == "early"

    async def test_full_receive_queue_pauses_the_server(self, server: FakeServer) -> None:
        async with client_of(server, limits=Limits(queue=10)) as client:
            peer = await server.peer()
            sent = still = 0
            text = "x" * 20_000
            while client.waiting < 10 or still < 100:  # until nothing moves for so many turns of the loop
                assert sent * len(text) < most_bytes_held() + 64 * 1024 * 1024, "read for nobody"
                unsent = peer.transport.get_write_buffer_size()
                if not unsent:
                    peer.send(message_frame([sent, text]))
                    sent += 1
                await asyncio.sleep(0)
                still = still + 1 if unsent and unsent == peer.transport.get_write_buffer_size() else 0
            assert client.waiting < 10 + 20, "the queue, and at most the messages of one read"
            for number in range(sent):
                assert (await within(client.receive())).data[0] == number
            assert (await within(client.send("chat", 1))).good

    async def test_iteration_ends_with_the_client(self, server: FakeServer) -> None:
        seen = []
        async with client_of(server) as client:
            peer = await server.peer()
            peer.send(message_frame(1), message_frame(2))
            async for message in client:
                seen.append(message.data)
                if len(seen) == 2:
                    await client.close()
        assert seen == [1, 2]
        with pytest.raises(ClientClosed):
            await client.receive()

    async def test_unreadable_frames_are_skipped(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            peer = await server.peer()
            for body in (b"{", b"[]", b"{}", b'{"payload":7}', b"[" * 100_000, b'{"payload":{"data":"\xff"}}'):
                peer.send_body(body)
            assert (await within(client.send("chat", 1))).good

    async def test_frames_of_besterd(self, server: FakeServer) -> None:
        def old(peer: Peer, payload: Json) -> None:
            peer.send_body(b'{"header":null,"payload":{"data":1,"type":"chat"}}')
            peer.send({"header": {"messageType": "statusReport", "status": "bad"}, "payload": {"id": payload["id"]}})

        server.on_message = old
        async with client_of(server) as client:
            report = await within(client.send("chat", 1))
            message = await within(client.receive())
        assert report == Report(False, report.id)
        assert (message.id, message.origin, message.redelivered, message.data) == (None, None, False, 1)


class TestLoss:
    async def test_without_resend_in_flight_messages_fail_and_are_not_resent(self, server: FakeServer) -> None:
        server.on_message = hold
        links: list[bool] = []
        async with client_of(server, resend=False, on_link=lambda connected, why: links.append(connected)) as client:
            first = await server.peer()
            doubtful = client.submit("chat", "doubtful")
            await first.payload()
            first.transport.abort()
            with pytest.raises(ConnectionLost, match="may have been delivered or not"):
                await within(doubtful)
            waiting = client.submit("chat", "not yet sent")
            second = await server.peer()
            assert (await second.payload())["data"] == "not yet sent"
            second.report(waiting_id := "2")
            assert (await within(waiting)).id == waiting_id
        assert links == [True, False, True]

    async def test_unreported_messages_are_resent_marked_under_the_same_dedup(self, server: FakeServer) -> None:
        server.on_message = hold
        async with client_of(server) as client:
            first = await server.peer()
            futures = [client.submit("chat", number) for number in range(3)]
            before = [await first.payload() for _ in range(3)]
            first.report(before[1]["id"])
            await within(futures[1])
            first.transport.abort()
            second = await server.peer()
            again = [await second.payload() for _ in range(2)]
            assert again == [{**before[0], "resent": True}, {**before[2], "resent": True}]
            assert len({payload["dedup"] for payload in before}) == 3
            assert all(len(payload["dedup"]) <= 64 for payload in before)
            for payload in again:
                second.report(payload["id"])
            assert all(report.good for report in await within(asyncio.gather(*futures)))

    async def test_withdrawn_message_is_not_resent(self, server: FakeServer) -> None:
        server.on_message = hold
        async with client_of(server) as client:
            first = await server.peer()
            withdrawn, kept = client.submit("chat", "withdrawn"), client.submit("chat", "kept")
            for _ in range(2):
                await first.payload()
            withdrawn.cancel()
            first.transport.abort()
            second = await server.peer()
            payload = await second.payload()
            assert payload["data"] == "kept"
            second.report(payload["id"])
            assert (await within(kept)).good
            assert second.bodies.empty()

    async def test_message_that_breaks_connections_fails(self, server: FakeServer) -> None:
        server.on_message = lambda peer, payload: peer.transport.abort()
        async with client_of(server) as client:
            with pytest.raises(ConnectionLost):
                await within(client.send("chat", "poison"))
        assert server.accepted.qsize() == 5

    async def test_error_holds_the_servers_complaint(self, server: FakeServer) -> None:
        def complain(peer: Peer, payload: Json) -> None:
            peer.send(report_frame(None, "bad", reason="frame-too-large"))
            peer.transport.close()

        server.on_message = complain
        async with client_of(server) as client:
            with pytest.raises(ConnectionLost, match="frame-too-large"):
                await within(client.send("chat", 1))

    async def test_duplicate_is_passed_on_once(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            first = await server.peer()
            first.send(message_frame("a", "1.0"), message_frame("b", "2.0"))
            assert [(await within(client.receive())).data for _ in "ab"] == ["a", "b"]
            first.transport.abort()
            second = await server.peer()
            second.send(message_frame("b", "2.0", redelivered=True), message_frame("c", "3.0"), message_frame("d"))
            second.send(message_frame("d"))
            assert [(await within(client.receive())).data for _ in "cdd"] == ["c", "d", "d"]

    async def test_client_reconnects_to_a_restarted_server(self, server: FakeServer) -> None:
        attempts = asyncio.Event()

        def count(connected: bool, why: str) -> None:
            if "cannot connect" in why:
                attempts.set()

        async with client_of(server, on_link=count) as client:
            await server.stop()
            await within(attempts.wait())
            assert not client.connected
            sending = asyncio.create_task(client.send("chat", 1))
            await server.listen()
            assert (await within(sending)).good

    async def test_cancelled_future_withdraws_an_unsent_message(self, server: FakeServer) -> None:
        lost = asyncio.Event()
        async with client_of(server, on_link=lambda connected, why: None if connected else lost.set()) as client:
            await server.stop()
            await within(lost.wait())
            taken_back = client.submit("chat", "taken back")
            kept = client.submit("chat", "kept")
            taken_back.cancel()
            await server.listen()
            assert (await within(kept)).good
            assert (await server.peers[-1].payload())["data"] == "kept"
            assert client.unreported == 0

    async def test_silent_server_is_disconnected(self, server: FakeServer) -> None:
        async with client_of(server, limits=Limits(silence_s=0.15)) as client:
            first = await server.peer()
            server.answers_pings = False
            await within(first.gone.wait())
            server.answers_pings = True
            await server.peer()
            assert (await within(client.send("chat", 1))).good

    async def test_pings_keep_an_idle_connection(self, server: FakeServer) -> None:
        pings = asyncio.Semaphore(0)
        server.on_ping = pings.release
        async with client_of(server, limits=Limits(silence_s=0.15)) as client:
            peer = await server.peer()
            for _ in range(2):
                await within(pings.acquire())
            assert client.connected
            assert server.peers == [peer]

    async def test_client_ends_after_give_up_s(self, server: FakeServer) -> None:
        async with client_of(server, give_up_s=0.2) as client:
            await server.stop()
            with pytest.raises(ConnectionLost, match=r"no connection for 0\.2 s"):
                await within(client.receive())
            with pytest.raises(ClientClosed):
                _ = client.submit("chat", 1)
            await server.listen()

    async def test_frame_over_the_receive_limit(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            first = await server.peer()
            first.transport.write(b"\xff\xff\xff\xff")
            await within(first.gone.wait())
            await server.peer()
            assert (await within(client.send("chat", 1))).good


class TestAcknowledging:
    async def test_receive_acks_the_message_before(self, server: FakeServer) -> None:
        async with client_of(server, ack=True) as client:
            peer = await server.peer()
            assert peer.login is not None
            assert peer.login["header"]["ack"] is True
            peer.send(message_frame("a", "1.0"), message_frame("b", "2.0"))
            await within(client.receive())
            await within(client.ping())
            assert peer.acks.empty(), "the application is not done with it"
            await within(client.receive())
            assert await peer.acknowledged() == ["1.0"]
        assert await peer.acknowledged() == ["2.0"], "a close without an error acks received messages"
        assert peer.bodies.qsize() == 1

    async def test_acks_of_one_tick_are_one_frame(self, server: FakeServer) -> None:
        async with client_of(server, ack=True) as client:
            peer = await server.peer()
            peer.send(*(message_frame(number, str(number)) for number in range(100)))
            await within(client.ping())
            for _ in range(100):
                await within(client.receive())
            assert await peer.acknowledged() == [str(number) for number in range(99)]

    async def test_message_in_hand_at_a_crash_is_not_acked(self, server: FakeServer) -> None:
        async def application() -> None:
            async with client_of(server, ack=True) as client:
                (await server.peer()).send(message_frame("a", "1.0"))
                await client.receive()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await within(application())
        (peer,) = server.peers
        await within(peer.gone.wait())
        assert peer.acks.empty()

    async def test_manual_ack(self, server: FakeServer) -> None:
        async with client_of(server, ack=True, manual_ack=True) as client:
            peer = await server.peer()
            peer.send(message_frame("a", "1.0"), message_frame("b", "2.0"), message_frame("no id"))
            first, second, third = [await within(client.receive()) for _ in "abc"]
            await client.ack(third)
            await client.ack(second)
            await client.ack(second)
            assert await peer.acknowledged() == ["2.0"]
        await within(peer.gone.wait())
        assert peer.acks.empty(), f"{first} was not acknowledged by hand"

    async def test_duplicate_is_acked_on_an_idle_connection(self, server: FakeServer) -> None:
        """Without the ack the server would hold the messages behind the duplicate until the next ping."""
        async with client_of(server, ack=True) as client:
            first = await server.peer()
            first.send(message_frame("once", "1.0"))
            await client.ack(await within(client.receive()))
            assert await first.acknowledged() == ["1.0"]
            first.transport.abort()
            second = await server.peer()
            await within(client.send("chat", "back again"))
            second.send(message_frame("once", "1.0", redelivered=True))
            assert await second.acknowledged() == ["1.0"]

    async def test_duplicate_is_acked_and_not_passed_on(self, server: FakeServer) -> None:
        async with client_of(server, ack=True) as client:
            first = await server.peer()
            first.send(message_frame("a", "1.0"), message_frame("b", "2.0"))
            await within(client.receive())
            await within(client.receive())
            assert await first.acknowledged() == ["1.0"]
            first.transport.abort()
            second = await server.peer()
            second.send(message_frame("a", "1.0", redelivered=True), message_frame("b", "2.0", redelivered=True))
            second.send(message_frame("c", "3.0"))
            assert await second.acknowledged() == ["1.0"], "its word was lost; the other's is still to come"
            assert (await within(client.receive())).data == "c"
            assert await second.acknowledged() == ["2.0"]

    async def test_ack_without_ack_option_raises(self, server: FakeServer) -> None:
        with pytest.raises(ValueError, match="ack=True"):
            client_of(server, manual_ack=True)
        async with client_of(server) as client:
            (await server.peer()).send(message_frame("a", "1.0"))
            message = await within(client.receive())
            with pytest.raises(RuntimeError, match="ack=True"):
                await client.ack(message)


class TestOutcomes:
    async def test_outcome_is_asked_for(self, server: FakeServer) -> None:
        asked: list[str] = []

        def tell(peer: Peer, id_: str, message: str) -> None:
            asked.append(message)
            peer.answer(id_, {"message": message, "recipients": {"bob": "queued"}})

        async with client_of(server) as client:
            assert await within(client.outcome("s1/7")) is None
            server.on_outcome = tell
            assert await within(client.outcome("s1/7")) == {"bob": "queued"}
            server.on_outcome = lambda peer, id_, _: peer.send(report_frame(id_, "bad", reason="unknown-command"))
            with pytest.raises(ServerRefused, match="unknown-command"):
                await within(client.outcome("s1/7"))
            server.on_outcome = lambda peer, *_: peer.transport.abort()
            with pytest.raises(ConnectionLost):
                await within(client.outcome("s1/7"))
        assert asked == ["s1/7"]

    async def test_outcome_is_passed_to_on_outcome(self, server: FakeServer) -> None:
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()
        async with client_of(server, ack=True, on_outcome=outcomes.put_nowait) as client:
            peer = await server.peer()
            peer.send(outcome_frame("s1/7", "bob", "delivered", "9.0"), message_frame("else", "10.0"))
            assert await within(outcomes.get()) == Outcome("s1/7", "bob", "delivered")
            assert await peer.acknowledged() == ["9.0"]
            assert (await within(client.receive())).data == "else"

    async def test_outcome_is_received_as_a_message(self, server: FakeServer) -> None:
        async with client_of(server) as client:
            peer = await server.peer()
            peer.send(
                outcome_frame("s1/7", "bob", "failed:expired"), message_frame({"message": 1}, None, "bester.outcome")
            )
            message = await within(client.receive())
            assert message.outcome == Outcome("s1/7", "bob", "failed:expired")
            assert message.data == {"message": "s1/7", "recipient": "bob", "outcome": "failed:expired"}
            assert (await within(client.receive())).outcome is None
