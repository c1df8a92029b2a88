"""Guessers at a live server get nothing; users who know their passwords log in, and soon."""

from __future__ import annotations

import asyncio
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from typing import Any

import pytest

from bester.broker.accounts import Accounts
from bester.client import AuthenticationFailed, Client, ServerRefused
from tests.live import BESTER, DEADLINE_S, LAYOUTS, LiveServer, Process, head, short_directory

FILE = head()
LET_IN = {"id": "auth_special", "max_frame": 1_048_576}
AT_ONCE = 64
"""Connections of attackers at once."""
MORE_THAN_THE_BUDGET = 160


@asynccontextmanager
async def guarded(layout: str = "up") -> AsyncIterator[LiveServer]:
    """A server with the users alice and bob, whose passwords are their names."""
    async with short_directory() as directory:
        (directory / "bester.toml").write_text(FILE)
        with closing(Accounts(directory / "data")) as accounts:
            for user in ("alice", "bob"):
                accounts.add(user, user)
        server = await LiveServer.start(directory, FILE, layout)
        try:
            yield server
        finally:
            statuses = await server.stop()
        assert set(statuses) == {0}


async def login(server: LiveServer, user: str, password: str, address: str = "127.0.0.1") -> dict[str, Any]:
    """Log in once from an address and leave; return the answer's payload (empty where there was none)."""
    async with asyncio.timeout(DEADLINE_S):
        reader, writer = await asyncio.open_connection(server.host, server.port, local_addr=(address, 0))
        body = {
            "header": {"scope": "client", "authentication": {"username": user, "password": password}},
            "payload": {},
        }
        text = json.dumps(body).encode()
        writer.write(struct.pack("<I", len(text)) + text)
        try:
            (length,) = struct.unpack("<I", await reader.readexactly(4))
            payload: dict[str, Any] = json.loads(await reader.readexactly(length))["payload"]
            if "reason" in payload:
                assert await reader.read() == b""  # the end
        finally:
            writer.close()
            await writer.wait_closed()
    return payload


async def guesses(server: LiveServer, rows: list[tuple[str, str, str]]) -> list[str]:
    """Try user, password and address of each row, many at once; return the reasons."""
    gate = asyncio.Semaphore(AT_ONCE)

    async def one(user: str, password: str, address: str) -> str:
        async with gate:
            return str((await login(server, user, password, address)).get("reason"))

    return list(await asyncio.gather(*(one(*row) for row in rows)))


async def comes_through(server: LiveServer, user: str) -> int:
    """Log in with the right password, with retries; return the number of refusals."""
    refusals = 0
    async with asyncio.timeout(DEADLINE_S):
        while "reason" in (payload := await login(server, user, user)):
            assert payload["reason"] in ("try-later", "overloaded", "timeout")  # the last where all checks are slow
            refusals += 1
            await asyncio.sleep(payload.get("retry_s", 0.2))
    return refusals


def other(number: int) -> str:
    """Return one of many addresses of this machine."""
    return f"127.7.{number // 250}.{number % 250 + 1}"


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_guessed_user_is_deferred_with_the_time(layout: str) -> None:
    async with guarded(layout) as server:
        reasons = [(await login(server, "bob", f"guess {number}"))["reason"] for number in range(5)]
        assert reasons == ["authentication-failed"] * 5
        # Far below the wait: the machine may be slow, so the test retries until a wait is long enough to be measured.
        payload: dict[str, Any] = {}
        async with asyncio.timeout(DEADLINE_S):
            for number in range(5, 10_000):
                payload = await login(server, "bob", f"guess {number}")
                if payload["reason"] == "try-later":
                    break
        assert payload.keys() == {"id", "reason", "retry_s"}
        assert (payload["id"], type(payload["retry_s"])) == ("auth_special", int)
        assert 1 <= payload["retry_s"] <= 80
        assert await login(server, "alice", "alice") == LET_IN
        assert await login(server, "bob", "bob", "127.0.0.2") == LET_IN
        assert await comes_through(server, "bob") <= 2
        broker = server.processes[0 if layout == "up" else 1]
        line = await broker.says("login-slowed")
        assert "warning" in line and "user='bob'" in line and "address='127.0.0.1'" in line and "retry_s=" in line
        assert "user='bob' address='127.0.0.1'" in await broker.says("login-failed")


async def test_an_old_password_in_some_program_is_no_attack() -> None:
    async with guarded() as server:
        for _ in range(30):
            assert (await login(server, "bob", "old"))["reason"] == "authentication-failed"
        assert await login(server, "bob", "bob") == LET_IN
        assert await login(server, "alice", "alice") == LET_IN


async def test_guesses_at_one_user_from_many_addresses() -> None:
    async with guarded() as server:
        rows = [("alice", f"guess {number} {turn}", other(number)) for turn in range(4) for number in range(250)]
        attack = asyncio.create_task(guesses(server, rows))
        await asyncio.sleep(0)
        assert await comes_through(server, "bob") <= 20
        await comes_through(server, "alice")
        reasons = await attack
        assert reasons.count("authentication-failed") < len(rows) / 2
        # On a machine that is slow enough, the last in the queue of password checks wait for longer than they may.
        assert set(reasons) <= {"authentication-failed", "try-later", "overloaded", "timeout"}
        assert await login(server, "alice", "alice") == LET_IN  # from her earlier address


async def test_guesses_at_all_names_from_one_address() -> None:
    """Addresses such as that of a proxy on this machine, behind which all users are."""
    async with guarded() as server:
        names = ["alice", *(f"user {number}" for number in range(MORE_THAN_THE_BUDGET))]
        assert await comes_through(server, "bob") == 0
        reasons = await guesses(server, [(name, "guess", "127.0.0.1") for name in names])
        assert "try-later" in reasons or "overloaded" in reasons
        assert await login(server, "bob", "bob") == LET_IN  # from his earlier address
        await comes_through(server, "alice")
        assert await login(server, "alice", "alice") == LET_IN


async def test_empty_and_impossible_logins_count_for_nothing() -> None:
    async with guarded() as server:
        odd = [
            ("alice", "", "127.0.0.1"),
            ("", "x", "127.0.0.1"),
            ("alice", "x" * 2000, "127.0.0.1"),
            ("a\nb", "x", "127.0.0.1"),
        ]
        assert set(await guesses(server, odd * 30)) == {"authentication-failed"}
        assert await login(server, "alice", "alice") == LET_IN


async def test_our_client_waits_as_long_as_deferred() -> None:
    async with guarded() as server:
        for number in range(5):
            await login(server, "bob", f"guess {number}")
        async with asyncio.timeout(DEADLINE_S), Client(server.address, user="bob", password="bob") as bob:
            assert bob.connected
        with pytest.raises(AuthenticationFailed):
            async with Client(server.address, user="bob", password="wrong"):
                pass


async def test_long_deferral_of_a_login_is_an_error_with_the_time() -> None:
    async def put_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack("<I", await reader.readexactly(4))
        await reader.readexactly(length)
        text = json.dumps(
            {
                "header": {"messageType": "statusReport", "status": "bad"},
                "payload": {"id": "auth_special", "reason": "try-later", "retry_s": 64},
            }
        ).encode()
        writer.write(struct.pack("<I", len(text)) + text)
        writer.close()
        await writer.wait_closed()

    busy = await asyncio.start_server(put_off, "127.0.0.1", 0)
    address = f"127.0.0.1:{busy.sockets[0].getsockname()[1]}"
    with pytest.raises(ServerRefused, match=r"of 'bob' for another 64 s: try-later") as refused:
        async with Client(address, user="bob", password="bob"):
            pass
    assert refused.value.retry_s == 64
    async with short_directory() as directory:
        argv = (BESTER, "send", "--to", address, "--user", "bob", "chat", "1")
        sending = await Process.start(*argv, cwd=directory, env={"BESTER_PASSWORD": "bob"})
        assert await sending.process.wait() == 1
        await sending.end()
        (line,) = sending.lines
        assert line.startswith(f"bester: {address} refuses the login of 'bob' for another 64 s: try-later (")
    busy.close()
    await busy.wait_closed()
