"""A bad link between two hosts: a cable in this process, which loses frames, carries one direction alone, or is cut.

Each host has a TAP device whose frames this process carries to the other host. The kernel's own `netem` does the same,
but many kernels come without it.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from threading import Thread

from tests.hosts.stand import Host

_TUN = "/dev/net/tun"
_TUNSETIFF = 0x400454CA
_TAP_WITHOUT_HEADER = 0x0002 | 0x1000
_NEW_NETWORK = 0x40000000
FRAME_BYTES = 65536
TURN_FRAMES = 64
"""Frames carried in one direction before the other has its turn."""


def no_cable() -> str | None:
    """Return why there can be no cable between hosts here, None where there can."""
    return None if os.path.exists(_TUN) else f"a link between hosts needs {_TUN}"


class BadLink:
    """A cable between two hosts. `loss` is the share of frames lost in each direction; `deaf` names the direction that
    carries nothing: 0 where the first host hears nothing, 1 where the second does not. `is_cut` carries nothing."""

    def __init__(self, ends: tuple[int, int], random: Random) -> None:
        self.loss = 0.0
        self.deaf: int | None = None
        self.is_cut = False
        self.carried = self.lost = 0
        self._ends = ends
        self._random = random

    def start(self) -> None:
        """Carry frames on the running loop from now on."""
        loop = asyncio.get_running_loop()
        for number, end in enumerate(self._ends):
            loop.add_reader(end, self._carry, end, 1 - number)

    def stop(self) -> None:
        """Carry no more."""
        loop = asyncio.get_running_loop()
        for end in self._ends:
            loop.remove_reader(end)

    def _carry(self, end: int, to: int) -> None:
        for _ in range(TURN_FRAMES):
            try:
                frame = os.read(end, FRAME_BYTES)
            except OSError:
                return  # no more frames now
            if self.is_cut or self.deaf == to or self._random.random() < self.loss:
                self.lost += 1
                continue
            with contextlib.suppress(OSError):  # a full queue loses frames, as any
                os.write(self._ends[to], frame)
                self.carried += 1


@contextmanager
def bad_link(first: Host, second: Host, random: Random) -> Iterator[BadLink]:
    """Connect two hosts with nothing between them by a cable, which is still good."""
    ends = (_plug(first), _plug(second))
    try:
        yield BadLink(ends, random)
    finally:
        for end in ends:
            os.close(end)


def _plug(host: Host) -> int:
    """Make the device eth0 of a host, with the host's address, and return the other end, which does not block."""
    ends: list[int] = []
    failed: list[OSError] = []

    def plug() -> None:
        try:
            with open(f"/run/netns/{host.namespace}", "rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _NEW_NETWORK) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            end = os.open(_TUN, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
            ends.append(end)
            fcntl.ioctl(end, _TUNSETIFF, struct.pack("16sH22x", b"eth0", _TAP_WITHOUT_HEADER))
        except OSError as error:
            failed.append(error)

    thread = Thread(target=plug)  # a namespace belongs to a thread: this one ends in the host's, the others stay here
    thread.start()
    thread.join()
    if failed:
        for end in ends:
            os.close(end)
        raise failed[0]
    host.connect()
    return ends[0]
