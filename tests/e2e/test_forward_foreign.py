"""An answer that is no report counts as no answer; and a forwarder that ends starts no connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from bester.bridge.conversation import MAX_OTHER
from bester.bridge.forward import Forwarder
from bester.bridge.limits import Limits
from bester.bridge.native_writing import report
from bester.broker.wire.messages import Forward
from tests.e2e.bridge_scene import Raw
from tests.e2e.test_forward import Outcomes, server


@pytest.mark.parametrize(
    "words",
    [
        b"HTTP/1.1 502 Bad Gateway\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"\x15\x03\x03\0\x02\x02\x28",  # an alert of TLS: a length within the limit, and then too little
        b"\0\0\0\0",
        b"\x05\0\0\0hello",
        b"\x02\0\0\0[]",
        b"\x05\0\0",
        report(b"null", 0)[:-1],
        report(b"null", 0, None, "s2/1", {f"{number:0100}": "queued" for number in range(20)}),  # above the limit
    ],
)
async def test_foreign_bytes_are_no_report(words: bytes) -> None:
    async def say(peer: Raw) -> None:
        await peer.read()
        peer.writer.write(words)

    outcomes = Outcomes()
    forwarder = Forwarder(replace(Limits(), forward_s=3600, forward_report=2000), outcomes.done)
    async with server(say) as address:
        forwarder.forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: "failed:unreachable"}
    assert outcomes.meta == {3: {}}, "no report, and no proof that nothing has arrived"


async def test_report_behind_foreign_bytes_counts() -> None:
    async def say(peer: Raw) -> None:
        await peer.read()
        peer.writer.write(b"\x05\0\0\0hello" + report(b"null", 0))

    outcomes = Outcomes()
    async with server(say) as address:
        Forwarder(Limits(), outcomes.done).forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: "delivered"}


@pytest.mark.parametrize("other", [b'{"header":{"messageType":"x"},"payload":null}', b"[]", b"hello", b"{}"])
async def test_answer_without_an_end_is_cut_off(other: bytes) -> None:
    async def say(peer: Raw) -> None:
        await peer.read()
        while not peer.writer.is_closing():
            peer.writer.write(len(other).to_bytes(4, "little") + other)
            await peer.writer.drain()
            await asyncio.sleep(0)  # `drain` lets nobody else run until the kernel's buffer is full

    outcomes = Outcomes()
    async with server(say) as address:
        Forwarder(replace(Limits(), forward_s=3600), outcomes.done).forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: "failed:unreachable"}
    assert outcomes.meta == {3: {}}, "the message may have been carried out"


async def test_report_behind_some_other_frames_counts() -> None:
    other = b'{"header":{"messageType":"x"},"payload":null}'

    async def say(peer: Raw) -> None:
        await peer.read()
        peer.writer.write((len(other).to_bytes(4, "little") + other) * (MAX_OTHER - 1) + report(b"null", 0))

    outcomes = Outcomes()
    async with server(say) as address:
        Forwarder(Limits(), outcomes.done).forward(Forward(3, address, "m", b"1", {}))
        assert await outcomes.all(1) == {3: "delivered"}


async def test_closed_forwarder_starts_no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose deadline passes at the end is not tried anew."""
    tries = 0
    tried = asyncio.Event()

    async def late(*_: Any) -> Any:
        nonlocal tries
        tries += 1
        tried.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise TimeoutError from None

    monkeypatch.setattr("bester.bridge.forward.connect", late)
    outcomes = Outcomes()
    forwarder = Forwarder(Limits(), outcomes.done)
    forwarder.forward(Forward(1, "127.0.0.1:1", "m", b"1", {}))
    await asyncio.wait_for(tried.wait(), 10)
    await forwarder.close()
    forwarder.forward(Forward(2, "127.0.0.1:1", "m", b"1", {}))
    assert await outcomes.all(2) == {1: "failed:unreachable", 2: "failed:unreachable"}
    assert (tries, outcomes.meta) == (1, {1: {"unsent": True}, 2: {"unsent": True}})
