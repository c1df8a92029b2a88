"""Other servers that answer nothing, stop in the middle, or read no more: others have room, and nothing is kept."""

from __future__ import annotations

import asyncio
import json
import struct
import time
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from bester.bridge import native_reports
from bester.bridge.forward import Forwarder
from bester.bridge.limits import Limits
from bester.bridge.native_writing import report
from bester.broker.tls_files import Pair, client_context, server_context
from bester.broker.wire.address import parse_network
from bester.broker.wire.messages import Forward
from tests.authorities import Authority
from tests.descriptors import open_descriptors
from tests.e2e.bridge_scene import Raw
from tests.e2e.name_server import until
from tests.e2e.test_forward import Outcomes, good, never, server

COUNT = 20


async def test_servers_that_answer_nothing_leave_room_for_others() -> None:
    """Each holds its connections and its waiting messages for as long as a report may take."""
    outcomes, reached = Outcomes(), Counter[str]()
    limits = replace(Limits(), forwards=32, forwards_per_address=8, forwards_waiting=64, connect_s=60.0)
    forwarder = Forwarder(limits, outcomes.done, reached=reached)
    async with AsyncExitStack() as stack:
        honest = await stack.enter_async_context(server(good))
        silent = [await stack.enter_async_context(server(never)) for _ in range(40)]
        stack.push_async_callback(forwarder.close)
        for token in range(1000, 1400):
            forwarder.forward(Forward(token, silent[token % 40], "m", b"1", {"wait_s": 60.0}))
        assert reached["forwards_waiting"], "their messages have no more than their share"
        forwarder.forward(Forward(1, honest, "m", b"1", {"wait_s": 60.0}))
        await until(lambda: outcomes.of.get(1) == "delivered")


async def test_servers_that_are_not_configured_have_half_of_the_room() -> None:
    """Users name them, as many as they like."""
    outcomes = Outcomes()
    forwarder = Forwarder(
        replace(Limits(), forwards=8, connect_s=60.0), outcomes.done, reachable=(parse_network("127.0.0.1"),)
    )
    began = 0

    async def counted(peer: Raw) -> None:
        nonlocal began
        began += 1
        await never(peer)

    async with AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(server(counted)) for _ in range(10)]
        honest = await stack.enter_async_context(server(good))
        stack.push_async_callback(forwarder.close)
        for token, address in enumerate(silent):
            forwarder.forward(Forward(token, address, "m", b"1", {"wait_s": 60.0, "stranger": True}))
        await until(lambda: began == 4)
        for token in range(100, 110):
            forwarder.forward(Forward(token, honest, "m", b"1", {"wait_s": 60.0}))
        await until(lambda: len(outcomes.of) == 10)
        assert began == 4


@pytest.mark.parametrize("secured", [False, True])
async def test_server_that_reads_no_more_keeps_no_connection(tmp_path: Path, *, secured: bool) -> None:
    """It may stop in the middle of a frame, and never end the connection."""
    authority, outcomes = Authority(tmp_path), Outcomes()
    context = server_context(Pair(*authority.issue("127.0.0.1")), None, time.time())[0] if secured else None
    trust = client_context("ca", authority.ca) if secured else None
    forwarder = Forwarder(replace(Limits(), forward_s=0.3), outcomes.done, tls=lambda address, tls: trust)
    ended = asyncio.Event()

    async def stops(peer: Raw) -> None:
        await peer.reader.read(1)
        await ended.wait()

    async with server(stops, context) as address, AsyncExitStack() as stack:
        stack.callback(ended.set)
        before = open_descriptors()
        forwarder.forward(Forward(1, address, "m", b'"%b"' % (b"x" * 12 * 1024 * 1024), {}))
        assert await outcomes.all(1) == {1: "failed:unreachable"}
        await until(lambda: open_descriptors() == before + 1)  # the server's own end


@pytest.mark.parametrize("secured", [False, True])
async def test_long_reports_are_read_one_in_a_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, secured: bool
) -> None:
    """Each takes long to read, and many may have come; the end of the connection behind one changes nothing."""
    authority, outcomes = Authority(tmp_path), Outcomes()
    context = server_context(Pair(*authority.issue("127.0.0.1")), None, time.time())[0] if secured else None
    trust = client_context("ca", authority.ca) if secured else None
    turn, turns = 0, list[int]()

    def count() -> None:
        nonlocal turn
        turn += 1
        asyncio.get_running_loop().call_soon(count)

    def counted(body: bytes, read: Callable[[bytes], Any] = native_reports.outcome) -> Any:
        turns.append(turn)
        return read(body)

    monkeypatch.setattr(native_reports, "outcome", counted)
    forwarder = Forwarder(Limits(), outcomes.done, tls=lambda address, tls: trust)
    come, all_have_come = 0, asyncio.Event()

    async def at_length(peer: Raw) -> None:
        nonlocal come
        come += 1
        await peer.read()
        if come == COUNT:
            all_have_come.set()
        await all_have_come.wait()
        peer.writer.write(report(b"null", 0, None, "s2/1", {f"{number:0100}": "queued" for number in range(1000)}))

    count()
    async with server(at_length, context) as address, AsyncExitStack() as stack:
        stack.push_async_callback(forwarder.close)
        stack.callback(all_have_come.set)
        for token in range(COUNT):
            forwarder.forward(Forward(token, address, "m", b"1", {"wait_s": 60.0}))
        await until(lambda: len(outcomes.of) == COUNT)
    assert set(outcomes.of.values()) == {"queued"}
    assert len(turns) == len(set(turns)) == COUNT


async def test_reports_that_stop_in_the_middle_are_bounded_together() -> None:
    """Each may be long, and there may be hundreds. Whoever holds most loses connections; others are read on."""
    outcomes, reached = Outcomes(), Counter[str]()
    limits = replace(Limits(), forward_reports=1_000_000)
    forwarder = Forwarder(limits, outcomes.done, reached=reached)
    go_on = asyncio.Event()

    async def half(peer: Raw) -> None:
        await peer.read()
        peer.writer.write(struct.pack("<I", 1_000_000) + b" " * 200_000)
        await peer.reader.read()

    async def in_two_parts(peer: Raw) -> None:
        frame = report(json.dumps((await peer.read())["payload"]["id"]).encode(), 0)
        peer.writer.write(frame[:-1])
        await go_on.wait()
        peer.writer.write(frame[-1:])

    async with server(half) as hostile, server(in_two_parts) as honest, AsyncExitStack() as stack:
        stack.push_async_callback(forwarder.close)
        stack.callback(go_on.set)
        forwarder.forward(Forward(1, honest, "m", b"1", {}))
        for token in range(100, 120):
            forwarder.forward(Forward(token, hostile, "m", b"1", {"wait_s": 60.0}))
        await until(lambda: len(outcomes.of) >= 15)
        go_on.set()
        await until(lambda: outcomes.of.get(1) == "delivered")
        assert {outcome for token, outcome in outcomes.of.items() if token >= 100} == {"failed:unreachable"}
        assert reached["forward_reports"] == len(outcomes.of) - 1
