"""An unsendable message never stays at the head of a queue: on a bridge's link, on a server's, or at the broker."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from bester.bridge import native
from bester.broker.core.settings import Settings
from bester.broker.fabric import FabricLink
from bester.broker.server import Broker
from bester.broker.store.memory import MemoryStore
from bester.broker.users import OpenAccounts
from bester.broker.wire.link_client import LinkClient
from bester.broker.wire.messages import (
    OP_OF,
    Answer,
    Ask,
    Deliver,
    Error,
    Hello,
    Login,
    Message,
    Open,
    Relay,
    Report,
    Submit,
)
from tests.e2e.bridge_scene import message
from tests.e2e.broker_stand_in import PATIENCE_S, StandIn
from tests.e2e.test_bridge_broker import bridge, log_in
from tests.live import LAYOUTS, RawClient, live_server, raw_handler, short_directory

HALF = "x\ud800"
SOUND = Submit(9, 1, "t", b"1")


@pytest.mark.parametrize(
    ("role", "bad", "code"),
    [
        ("bridge", Submit(7, 1, HALF, b"1"), "malformed"),
        ("bridge", Submit(7, 1, "t", b"1", {"dedup": HALF}), "malformed"),
        ("bridge", Login(7, "alice", HALF, ""), "malformed"),
        ("bridge", Ask(7, "outcome", [1, HALF]), "malformed"),
        ("bridge", Ask(7, "outcome", 2**64), "malformed"),
        ("server", Relay(7, "t", b"1", {"path": [HALF]}), "malformed"),
        ("server", Relay(7, "t", b" " * (64 * 2**20 + 1), {}), "frame-too-large"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, tuple) else each,
)
async def test_link_answers_for_unsendable_messages_and_sends_the_others(role: str, bad: Any, code: str) -> None:
    came: asyncio.Queue[Any] = asyncio.Queue()
    unsent: list[Message] = []

    def received(messages: list[Any]) -> None:
        for each in messages:
            if isinstance(each, Error):
                came.put_nowait(each)

    welcomed = asyncio.Event()
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        async with StandIn(endpoint) as broker, asyncio.timeout(PATIENCE_S):
            link = FabricLink(
                endpoint,
                LinkClient(role, "p", {}),
                on_messages=received,
                on_ready=welcomed.set,
                on_lost=pytest.fail,
                on_unsendable=lambda message, error: unsent.append(message),
            )
            link.start()
            await welcomed.wait()
            await broker.expect(Hello)
            for each in (SOUND, bad, SOUND._replace(token=10)):
                assert link.send(each)
            error = await came.get()
            assert (error.code, error.op, error.token) == (code, OP_OF[type(bad)], 7)
            assert [(await broker.expect(Submit)).token for _ in range(2)] == [9, 10]
            assert unsent == [bad]
            await link.close(0)
            assert came.empty()


async def test_unsendable_submission_has_a_bad_report_and_others_are_submitted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = native.later

    def careless(body: bytes) -> native.Sent | native.Fault:
        """Let through a type that no reader of ours accepts."""
        sent = read(body)
        return (
            native.Sent(HALF, sent.data, sent.id) if isinstance(sent, native.Sent) and sent.data == b'"odd"' else sent
        )

    monkeypatch.setattr(native, "later", careless)
    async with bridge() as (service, endpoint), StandIn(endpoint) as broker:
        await broker.expect(Hello)
        alice, _ = await log_in(service, broker, "alice")
        bob, _ = await log_in(service, broker, "bob")
        alice.write(message("t", "a", "1"), message("t", "b", '"odd"'), message("t", "c", "3"))
        bob.write(message("t", "d", "4"))
        report = await alice.read()
        assert (report["payload"]["id"], report["payload"]["reason"]) == ("b", "malformed")
        submits = [await broker.expect(Submit) for _ in range(3)]
        assert sorted(submit.body for submit in submits) == [b"1", b"3", b"4"]
        broker.send(*(Report(submit.token, 0, None, "s1/x", {}) for submit in submits))
        assert sorted([(await alice.read())["payload"]["id"] for _ in range(2)]) == ["a", "c"]
        assert (await bob.read())["payload"]["id"] == "d"
        await alice.close()
        await bob.close()


async def test_broker_ends_unsendable_messages_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """A bridge in its own process is not decoded from bytes, so unencodable values could come in."""
    inbox: asyncio.Queue[Any] = asyncio.Queue()

    def received(messages: list[Message]) -> None:
        for each in messages:
            inbox.put_nowait(each)

    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        settings = Settings("s1", open_accounts=True)
        async with (
            Broker(settings, (endpoint,), OpenAccounts(), MemoryStore()) as broker,
            raw_handler(endpoint, "t") as handler,
            asyncio.timeout(PATIENCE_S),
        ):
            say = broker.attach(received)
            say([Hello(1, "bridge", "b", {}), Open(1, "alice"), Open(2, HALF), Open(3, "bob")])
            await inbox.get()  # WELCOME
            say([Submit(token, session, "t", b"%d" % token) for token, session in ((1, 1), (2, 2), (3, 3), (4, 2))])
            reports = [await inbox.get() for _ in range(2)]
            assert {each[:3] for each in reports} == {(2, 1, "handler-failed"), (4, 1, "handler-failed")}
            for _ in range(2):
                request = await handler.hear(10)
                assert request[3] in (b"1", b"3")
                await handler.say([11, request[1], 0, [["sendClients", ["bob"], b"1"]]])
                delivered = await inbox.get()
                assert type(delivered) is Deliver
            await handler.say([14, 1, "listClients"])
            answer = await handler.hear(15)
            assert answer == [15, 1, 1, None]  # the name of a user cannot be encoded
            await handler.say([14, 2, "isClient", "bob"])
            assert await handler.hear(15) == [15, 2, 0, True]
    lines = [record.getMessage() for record in caplog.records if "cannot be sent" in record.getMessage()]
    assert [line.split()[0] for line in lines] == ["REQUEST", "REQUEST", "ANSWER"]


async def test_failing_callback_of_a_message_does_not_block_the_link() -> None:
    """The descriptor wakes once for all waiting messages: those behind a failure must be read all the same."""
    came: asyncio.Queue[Any] = asyncio.Queue()
    welcomed = asyncio.Event()
    failures: list[Any] = []

    def received(messages: list[Any]) -> None:
        for each in messages:
            if isinstance(each, Answer):
                came.put_nowait(each.token)
                if each.token == 0:
                    raise RuntimeError("a defect")

    asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context["exception"]))
    async with short_directory() as directory:
        endpoint = f"ipc://{directory}/f"
        async with StandIn(endpoint, heartbeat_ms=60_000) as broker, asyncio.timeout(PATIENCE_S):
            link = FabricLink(
                endpoint,
                LinkClient("handler", "h", {}),
                on_messages=received,
                on_ready=welcomed.set,
                on_lost=pytest.fail,
            )
            link.start()
            await welcomed.wait()
            for token in range(20):
                broker.send(Answer(token, 0))  # a ZeroMQ message each
            assert [await came.get() for _ in range(20)] == list(range(20))
            await link.close(0)
    assert [str(error) for error in failures] == ["a defect"]


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_unsendable_claim_harms_its_sender_alone(layout: str) -> None:
    """An array that no broker reads would take along every message in the bridge's batch."""
    async with (
        live_server('[federation]\naccept = "open"\n', layout) as server,
        raw_handler(server.fabric, "t") as handler,
    ):
        bob = await RawClient.login(server, "bob")
        for claim in ({"path": [""] * 200_000}, {"lane": ["e", 10**30, 1]}, {"ttl_s": 10**400}):
            known = "path" not in claim  # the other claims are left out
            peer = await RawClient.connect(server)
            peer.send({"header": {"scope": "server"} | claim, "payload": {"type": "t", "data": 2, "id": "p"}})
            for _ in range(10):
                bob.submit("t", 1, "m")
            await handler.serve(10 + known, lambda request: [])
            assert ((await peer.receive())["header"]["status"] == "good") is known
            for _ in range(10):
                assert (await bob.until_report("m"))[0]["header"]["status"] == "good"
            await peer.close()
        await bob.close()
