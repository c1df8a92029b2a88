"""A bridge and its broker over the fabric: the broker dies with messages in flight, and another takes its place."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bester.bridge.service import Service, serving
from bester.broker.wire.messages import Close, Confirm, Deliver, Hello, LoggedIn, Login, Open, Report, Submit
from tests.e2e.bridge_scene import DEADLINE_S, GOOD_LOGIN, Raw, config, login, message
from tests.e2e.broker_stand_in import StandIn


@asynccontextmanager
async def bridge() -> AsyncIterator[tuple[Service, str]]:
    """A bridge that looks for its broker at the endpoint that is yielded with it."""
    with tempfile.TemporaryDirectory(prefix="b-", dir="/tmp") as name:
        endpoint = f"ipc://{name}/f"
        async with serving(config(Path(name))) as service:
            link = service.link(endpoint)
            link.start()
            try:
                yield service, endpoint
            finally:
                await link.close(0.1)


async def connect(service: Service) -> Raw:
    host, port = service.addresses[0].split(":")
    return Raw(*await asyncio.open_connection(host, int(port)))


async def log_in(service: Service, broker: StandIn, user: str) -> tuple[Raw, int]:
    """Return a client that is logged in, and its session."""
    await asyncio.wait_for(service.has_broker.wait(), DEADLINE_S)
    client = await connect(service)
    client.write(login(user))
    asked = await broker.expect(Login)
    broker.send(LoggedIn(asked.session, 0))
    assert await client.read() == GOOD_LOGIN
    return client, asked.session


async def test_killed_broker_costs_a_client_only_time() -> None:
    async with bridge() as (service, endpoint):
        async with StandIn(endpoint) as broker:
            await broker.expect(Hello)
            alice, session = await log_in(service, broker, "alice")
            alice.write(*(message("t", str(n), str(n)) for n in range(4)))
            submits = [await broker.expect(Submit) for _ in range(4)]
            broker.send(
                Report(submits[0].token, 0, None, "s1/0", {}),
                Deliver(1, "s1/1.0", "t", b'"one"', [[0, session]], submits[1].token, {"message": "s1/1"}),
            )
            assert (await alice.read())["payload"] == {"id": "0", "message": "s1/0"}
            assert (await alice.read())["payload"]["data"] == "one"
            assert (await alice.read())["payload"] == {"id": "1", "message": "s1/1"}
            assert await broker.expect(Confirm) == Confirm(1, [], [], 1)
        alice.write(message("t", "4", "4"))
        async with StandIn(endpoint) as broker:
            await broker.expect(Hello)
            assert await broker.expect(Open) == Open(session, "alice")
            again = [await broker.expect(Submit) for _ in range(3)]
            assert again[:2] == [submit._replace(meta={"attempt": 2}) for submit in submits[2:]]
            assert again[2].body == b"4"  # marked or not: the first submission may have gone into the lost link
            broker.send(*(Report(submit.token, 0, None, "s1/x", {}) for submit in again))
            assert [(await alice.read())["payload"]["id"] for _ in range(3)] == ["2", "3", "4"]
            assert await broker.expect(Confirm) == Confirm(0, [], [], 3)
        await alice.close()


async def test_message_of_a_gone_client_is_submitted_to_the_next_broker() -> None:
    async with bridge() as (service, endpoint):
        async with StandIn(endpoint) as broker:
            await broker.expect(Hello)
            alice, session = await log_in(service, broker, "alice")
            alice.write(message("t", "1"))
            submit = await broker.expect(Submit)
            gone = asyncio.Event()
            service.bridge.on_empty = gone.set
            alice.reset()
            assert await broker.expect(Close) == Close(session)
            await asyncio.wait_for(gone.wait(), DEADLINE_S)
        async with StandIn(endpoint) as broker:
            await broker.expect(Hello)
            assert await broker.expect(Open) == Open(session, "alice")
            assert await broker.expect(Submit) == submit._replace(meta={"attempt": 2})
            assert await broker.expect(Close) == Close(session)
            broker.send(Report(submit.token, 0, None, "s1/1", {}))
            assert await broker.expect(Confirm) == Confirm(0, [], [], 1)


@pytest.mark.parametrize("sender", ["client", "server"])
async def test_bridge_that_ends_without_a_broker_reports_to_its_clients_in_time(sender: str) -> None:
    async with bridge() as (service, endpoint):
        async with StandIn(endpoint) as broker:
            await broker.expect(Hello)
            if sender == "client":
                client, _ = await log_in(service, broker, "alice")
                client.write(message("t", "1"))
            else:
                client = await connect(service)
                client.write(b'{"header":{"scope":"server"},"payload":{"data":1,"type":"t","id":"1"}}')
            await broker.expect(Submit)
        draining = asyncio.create_task(service.drain(4.0))
        if sender == "client":
            frame = await client.read()
            assert (frame["payload"]["id"], frame["payload"]["reason"]) == ("1", "unreachable")
            await client.end()
        else:  # the server sends the message again
            with pytest.raises(ConnectionResetError):
                await client.end()
        await client.close()
        assert not await draining
