"""The process at the other end of a link, and its state by the system."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import zmq

from bester.broker.fabric_socket import FabricSocket
from bester.broker.processes import exists, is_stopped
from tests.live import DEADLINE_S, short_directory

DEALER = """
import sys, zmq
with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
    if len(sys.argv) > 2:
        socket.setsockopt(zmq.ROUTING_ID, sys.argv[2].encode())
    socket.connect(sys.argv[1])
    for _ in range(2):
        socket.send_multipart([b"one", b"two"])
    sys.stdin.read()
"""


@contextmanager
def dealer(endpoint: str, *name: str) -> Iterator[int]:
    """A process that sends two messages on a link; yields its process id."""
    with subprocess.Popen([sys.executable, "-c", DEALER, endpoint, *name], stdin=subprocess.PIPE) as process:
        yield process.pid


@pytest.mark.parametrize(("transport", "name"), [("ipc", ()), ("ipc", ("chosen",)), ("tcp", ())])
async def test_process_of_a_link_is_known_over_ipc(transport: str, name: tuple[str, ...]) -> None:
    came: asyncio.Queue[list[bytes]] = asyncio.Queue()
    async with short_directory() as directory:
        with zmq.Context() as context:
            socket = FabricSocket(context, zmq.ROUTER, came.put_nowait)
            try:
                socket.socket.bind(f"ipc://{directory}/f" if transport == "ipc" else "tcp://127.0.0.1:*")
                socket.remember_processes()
                endpoint = str(socket.socket.getsockopt_string(zmq.LAST_ENDPOINT)).rstrip("\0")
                socket.register()
                for _ in range(2):  # a process that is started again under the same name is another process
                    with dealer(endpoint, *name) as pid:
                        frames = [await asyncio.wait_for(came.get(), DEADLINE_S) for _ in range(2)]
                        assert [frame[1:] for frame in frames] == [[b"one", b"two"]] * 2
                        (identity,) = {frame[0] for frame in frames}
                        assert socket.process_of(identity) == (pid if transport == "ipc" else None)
                assert socket.process_of(b"nobody") is None
            finally:
                socket.close()


def test_stopped_process_is_recognized() -> None:
    with subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE) as process:
        assert not is_stopped(process.pid)
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)
        assert is_stopped(process.pid)
        os.kill(process.pid, signal.SIGCONT)
        os.waitid(os.P_PID, process.pid, os.WCONTINUED)
        assert not is_stopped(process.pid)
        assert exists(process.pid)
    assert not is_stopped(process.pid)
    assert not exists(process.pid)


def test_process_name_with_brackets_is_no_state() -> None:
    program = "import ctypes, sys; ctypes.CDLL(None).prctl(15, b'x) T 1'); print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with open(f"/proc/{process.pid}/stat") as stat:
            assert "x) T 1" in stat.read()
        assert not is_stopped(process.pid)
