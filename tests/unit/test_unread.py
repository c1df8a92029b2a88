"""Bytes that a party has sent and this program has not read: those that came on a connection, less those read."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from bester.broker.unread import FRAME_BYTES, LONG_BYTES, MORE_BYTES, UNSEEN, Unread, is_scarce
from tests.ipv6 import needs_ipv6

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the kernel must count the bytes of a connection")
PARTY = b"party"
MIB = 1 << 20


class Come:
    """A connection to which bytes come, and an Unread that watches it."""

    def __init__(self, unread: Unread, here: socket.socket, there: socket.socket) -> None:
        self.unread = unread
        self.descriptor = here.fileno()
        self._here, self._there = here, there
        unread.begin(self.descriptor)

    def bring(self, size_bytes: int) -> None:
        """Let so many bytes come."""
        self._there.sendall(bytes(size_bytes))
        left = size_bytes
        while left:
            left -= len(self._here.recv(left))

    def read(self, *sizes: int) -> None:
        """Read a message of frames of these lengths."""
        self.unread.count((PARTY, self.descriptor), [bytes(size) for size in sizes])

    def cut(self, *, drained: bool) -> list[int]:
        """Return the bytes of the connections that a look would cut."""
        return [size_bytes for _, _, size_bytes in self.unread.look(drained=drained)]


@contextmanager
def coming(unread: Unread) -> Iterator[Come]:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as there, listener.accept()[0] as here:
        yield Come(unread, here, there)


def frame(size: int) -> int:
    """Return the bytes of a frame on the wire."""
    return size + FRAME_BYTES + MORE_BYTES * (size > LONG_BYTES)


def test_whole_messages_that_are_not_read_count() -> None:
    unread = Unread()
    unread.most_bytes = MIB
    with coming(unread) as one, coming(unread) as other:
        one.read(1)
        other.read(1)
        one.unread.look(drained=True)
        one.bring(MIB)
        assert one.cut(drained=False) == []
        other.bring(10)
        assert one.cut(drained=False) == [MIB]  # of one party, the connection that has brought most
        one.read(MIB - FRAME_BYTES - MORE_BYTES)
        assert one.cut(drained=False) == []


def test_messages_that_are_read_leave_nothing_however_long_the_socket_is_busy() -> None:
    unread = Unread()
    unread.most_bytes = 1000
    with coming(unread) as one:
        for _ in range(50):
            sizes = (0, 1, LONG_BYTES, LONG_BYTES + 1, 70_000)
            one.bring(sum(map(frame, sizes)))
            one.read(*sizes)
            assert one.cut(drained=False) == []


def test_looks_at_a_socket_that_was_drained_forget_what_was_not_counted() -> None:
    """As a handshake, and what parties send to keep their connections alive."""
    unread = Unread()
    unread.most_bytes = 1000
    with coming(unread) as one:
        for _ in range(50):
            one.bring(frame(10) + 500)
            one.read(10)
            assert one.cut(drained=True) == []
        one.bring(2000)
        assert one.cut(drained=True) == [2000]  # of a message that has not ended


@needs_ipv6
@pytest.mark.parametrize(("to", "address"), [("::1", "::1"), ("127.0.0.1", "127.0.0.1")])
def test_connection_at_a_door_for_ipv6_has_its_address_and_is_cut(to: str, address: str) -> None:
    unread = Unread()
    listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
    with listener, socket.create_connection((to, listener.getsockname()[1])) as there, listener.accept()[0] as here:
        unread.begin(here.fileno())
        assert unread.address(here.fileno()) == address
        assert unread.cut(here.fileno())
        assert there.recv(1) == b""


def test_descriptor_of_an_ended_connection_that_a_unix_socket_has_is_of_nobody() -> None:
    unread = Unread()
    here, there = socket.socketpair()
    with here, there:
        unread.begin(here.fileno())
        assert unread.address(here.fileno()) == UNSEEN
        assert not unread.cut(here.fileno())


def test_connection_that_ends_before_it_is_looked_at_has_no_address() -> None:
    """Its descriptor is nobody's by then, or that of no connection."""
    unread = Unread()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = socket.create_connection(listener.getsockname())
        here = listener.accept()[0]
        unread.begin(here.fileno())
        assert unread.address(here.fileno()) == "127.0.0.1"
        descriptor = here.detach()
        unread.end(descriptor)
        os.close(descriptor)
        there.close()
        unread.begin(descriptor)
        assert (unread.address(descriptor), unread.cut(descriptor)) == (UNSEEN, False)
        os.dup2(listener.fileno(), descriptor)  # no connection
        unread.begin(descriptor)
        assert (unread.address(descriptor), unread.cut(descriptor)) == (UNSEEN, False)
        os.fstat(descriptor)  # it is open still
        os.close(descriptor)


def test_strangers_have_less_together_than_a_party() -> None:
    """Of a handshake libzmq makes many times as many bytes, before the key is looked at."""
    unread = Unread()
    with coming(unread) as one, coming(unread) as other:
        unread.most_strange_bytes = 3 * MIB
        one.bring(MIB)
        other.bring(2 * MIB)
        assert one.cut(drained=True) == []
        other.bring(MIB)
        assert one.cut(drained=True) == [3 * MIB]


def test_oldest_connection_without_a_message_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (3, 3))
    unread = Unread()
    with coming(unread) as first, coming(unread) as second:
        assert (unread.crowded_out(), unread.strangers) == ([first.descriptor], 2)
        first.read(1)
        assert (unread.crowded_out(), unread.strangers) == ([], 1)
        with coming(unread) as third:
            assert unread.crowded_out() == [second.descriptor]
            assert unread.cut(second.descriptor)
            assert unread.crowded_out() == []
            unread.end(third.descriptor)


def test_last_descriptors_are_not_for_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, kept in ((1024, 128), (4096, 512), (65536, 1024)):
        monkeypatch.setattr(resource, "getrlimit", lambda which, limit=limit: (limit, limit))
        many, few = kept // 8 + 1, kept // 8
        assert [is_scarce(limit - kept + each, many) for each in (-1, 0)] == [False, True]
        assert [is_scarce(limit - 16 + each, few) for each in (-1, 0)] == [False, True]
    monkeypatch.setattr(resource, "getrlimit", lambda which: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert not is_scarce(1 << 20, 1 << 20)


def test_bytes_of_a_long_handshake_stay() -> None:
    unread = Unread()
    unread.most_bytes = 3 * MIB
    with coming(unread) as come:
        come.bring(2 * MIB)
        come.bring(frame(100))
        come.read(100)
        assert come.cut(drained=True) == []
        come.bring(MIB)
        assert come.cut(drained=False) == []
        come.bring(1)
        assert come.cut(drained=False) == [3 * MIB + 1]
