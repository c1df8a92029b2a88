"""A name server of a chaos run's own, on loopback: names that are known, are not, or get no answer, and that move.

Questions for IPv4 addresses are answered (RFC 1035); a known name has no other records, and an unknown name does not
exist. Answers may be kept for no time at all.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import IPv4Address
from typing import cast

HEADER = struct.Struct("!6H")
PORT = 53
ANSWER, NO_SUCH_NAME = 0x8180, 0x8183
A, IN = 1, 1
LONGEST_LABEL = 63


class NameServer(asyncio.DatagramProtocol):
    """`knows` maps names to addresses; questions for names in `silent` are not answered."""

    def __init__(self) -> None:
        self.knows: dict[str, str] = {}
        self.silent: set[str] = set()
        self._transport: asyncio.DatagramTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        answer = self.answer(data)
        if answer is not None and self._transport is not None:
            self._transport.sendto(answer, addr)

    def answer(self, question: bytes) -> bytes | None:
        """Return the answer to a packet, None where there is none."""
        try:
            id_, _, count, *_ = HEADER.unpack_from(question)
            name, end = _name(question, HEADER.size)
            kind, class_ = struct.unpack_from("!2H", question, end)
        except (struct.error, IndexError, UnicodeDecodeError):
            return None
        if count != 1 or name in self.silent:
            return None
        asked = question[HEADER.size : end + 4]
        if name not in self.knows:
            return HEADER.pack(id_, NO_SUCH_NAME, 1, 0, 0, 0) + asked
        if (kind, class_) != (A, IN):
            return HEADER.pack(id_, ANSWER, 1, 0, 0, 0) + asked
        pointer = 0xC000 | HEADER.size  # to the name in the question
        record = struct.pack("!3HIH", pointer, A, IN, 0, 4) + IPv4Address(self.knows[name]).packed
        return HEADER.pack(id_, ANSWER, 1, 1, 0, 0) + asked + record


def _name(packet: bytes, at: int) -> tuple[str, int]:
    """Read a name; return the name, and the offset behind it."""
    labels: list[str] = []
    while length := packet[at]:
        if length > LONGEST_LABEL:
            raise IndexError("a name in a question points nowhere")
        labels.append(packet[at + 1 : at + 1 + length].decode("ascii").lower())
        at += 1 + length
    return ".".join(labels), at + 1


@asynccontextmanager
async def name_server(address: str) -> AsyncIterator[NameServer]:
    """A name server that listens at this address."""
    loop = asyncio.get_running_loop()
    transport, server = await loop.create_datagram_endpoint(NameServer, (address, PORT))
    try:
        yield server
    finally:
        transport.close()
