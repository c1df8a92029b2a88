"""Bester's own native side passes every case, in one process and in several; servers with a fault fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from bester.broker.accounts import Accounts
from bester.conform.cases import load
from bester.conform.native_side import Server, conform
from bester.conform.result import Result, Unseen
from tests.conform.programs import CAUGHT_WITHIN_S, failures
from tests.conform.small_server import BREAKS, small_server
from tests.live import LiveServer, head, live_server, short_directory

HANDLERS = ("bester.handlers.stock.echo:app", "bester.handlers.stock.chat:app")
WITHIN_S = 20.0
USERS = ("ann", "ben", "cat")


async def tried(server: Server, *numbers: int, within_s: float = WITHIN_S) -> dict[int, Result]:
    cases = [case for case in load("native") if not numbers or case.number in numbers]
    return {r.case.number: r for r in await conform(server, cases, lambda result: None, within_s=within_s)}


def needs(results: dict[int, Result]) -> set[str]:
    """Return the prerequisites of the skipped cases."""
    return {need for result in results.values() if result.state == "skip" for need in result.case.needs}


async def test_one_process_passes() -> None:
    toml = '[federation]\naccept = "open"\n[informer]\nunix = "informer.sock"\n'
    async with live_server(toml, "up", HANDLERS) as live:
        informer = str(live.directory / "informer.sock")
        results = await tried(Server(live.host, live.port, informer=informer))
    assert not failures(list(results.values()))
    assert sum(result.state == "pass" for result in results.values()) >= 100
    assert needs(results) - {"bester", "chat", "echo"} == {"accounts", "closed", "slow"}


async def test_broker_and_bridge_apart_pass() -> None:
    async with live_server("", "apart", HANDLERS) as live:
        results = await tried(Server(live.host, live.port))
    assert not failures(list(results.values()))
    assert sum(result.state == "pass" for result in results.values()) >= 100
    assert needs(results) - {"bester", "chat", "echo"} == {"accounts", "federation", "informer", "slow"}


async def test_cases_with_accounts_pass_with_three_users() -> None:
    async with short_directory() as directory:
        live = await LiveServer.start(directory, head(), "up", HANDLERS)
        try:
            accounts = Accounts(Path(directory) / "data")
            for user in USERS:
                accounts.add(user, "secret")
            accounts.close()
            with pytest.raises(Unseen, match="only accounts may log in"):
                await tried(Server(live.host, live.port))
            with pytest.raises(Unseen, match="ann cannot log in"):
                await tried(Server(live.host, live.port, ("ann",), "wrong"))
            numbers = [case.number for case in load("native") if "accounts" in case.needs]
            two = await tried(Server(live.host, live.port, USERS[:2], "secret"), 405, 603)
            results = await tried(Server(live.host, live.port, USERS, "secret"), 405, *numbers)
        finally:
            statuses = await live.stop()
    assert statuses == [0] * len(statuses)
    assert len(numbers) >= 7
    assert {result.state for result in results.values()} == {"pass"}, failures(list(results.values()))
    assert [two[405].state, two[603].state] == ["pass", "skip"]  # the case needs three users


async def test_faulty_server_fails_the_case_for_its_fault() -> None:
    async def found(breaks: str) -> dict[int, str]:
        async with small_server(breaks) as port:
            results = await tried(Server("127.0.0.1", port), 101, 310, BREAKS[breaks], within_s=CAUGHT_WITHIN_S)
        assert results[BREAKS[breaks]].detail.startswith("step ")
        return {n: result.state for n, result in results.items()}

    # Side by side: some wait in vain for a frame that their server never sends.
    states = dict(zip(BREAKS, await asyncio.gather(*map(found, BREAKS)), strict=True))
    assert states == {breaks: {101: "pass", 310: "pass", number: "fail"} for breaks, number in BREAKS.items()}


async def test_the_small_server_is_right_otherwise() -> None:
    async with small_server() as port:
        results = await tried(Server("127.0.0.1", port), 101, 310, *BREAKS.values())
    assert not failures(list(results.values())) and len(results) == 2 + len(BREAKS)


async def test_cases_of_missing_capabilities_are_skipped() -> None:
    async with live_server() as live:
        results = await tried(Server(live.host, live.port), 301, 304, 405)
    assert {n: result.state for n, result in results.items()} == {301: "pass", 304: "skip", 405: "skip"}
    assert "--echo names another" in results[304].detail


async def test_later_cases_are_skipped_for_a_server_like_the_first_daemon() -> None:
    async with small_server(old=True) as port:
        results = await tried(Server("127.0.0.1", port), 116, 304, 405, 407)
    assert {n: result.state for n, result in results.items()} == {116: "skip", 304: "pass", 405: "pass", 407: "skip"}


async def test_missing_server_is_an_error() -> None:
    async with small_server() as port:
        pass
    with pytest.raises(OSError, match="Connect"):
        await tried(Server("127.0.0.1", port))
