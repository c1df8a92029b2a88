"""Output in any encoding, to any descriptor."""

from __future__ import annotations

import errno
import fcntl
import io
import json
import os
import signal
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator

import pytest

from bester.broker import streams
from bester.broker.streams import ESCAPED, Output, OutputError


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_outputs", [])
    streams.secure()  # under pytest the streams are not the interpreter's own, and stay unchanged


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    read, write = os.pipe()
    yield read, write
    for end in (read, write):
        try:
            os.close(end)
        except OSError:
            pass


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1251", "koi8-r", "shift-jis", "utf-8", "utf-16"])
def test_line_of_json_stays_json_in_any_encoding(encoding: str) -> None:
    value = {"text": "naïve ☃ 😀 żółw Жук 雪", "half": "\udcff"}
    line = json.dumps(value, ensure_ascii=False)
    assert json.loads(line.encode(encoding, ESCAPED).decode(encoding)) == value


def test_non_blocking_descriptor_is_waited_for(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.set_blocking(write, False)
    text = io.TextIOWrapper(io.BufferedWriter(Output(write, forgiving=False)), "utf-8")
    got = bytearray()

    def take() -> None:
        while len(got) < 1_000_000:
            got.extend(os.read(read, 65536))

    reader = threading.Thread(target=take)
    reader.start()
    text.write("x" * 1_000_000)
    text.flush()
    reader.join(20)
    assert len(got) == 1_000_000


def test_failed_write_raises_or_is_dropped(pipe: tuple[int, int]) -> None:
    read, write = pipe
    os.close(read)
    with pytest.raises(OutputError, match="standard output: Broken pipe") as raised:
        Output(write, forgiving=False).write(b"x")
    assert raised.value.errno == errno.EPIPE
    assert OSError not in OutputError.__mro__, "nobody may take it for a fault of a file or a connection"
    assert Output(write, forgiving=True).write(b"xyz") == 3


def test_full_disk_is_named() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OutputError, match="No space left"):
        Output(full.fileno(), forgiving=False).write(b"x")


def test_missing_stream_fails_at_each_write(pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_missing", {pipe[1]})
    output = Output(pipe[1], forgiving=False)
    for _ in range(2):
        with pytest.raises(OutputError, match="it is closed"):
            output.write(b"x")
    streams.forgive()
    assert output.write(b"x") == 1


def test_write_interrupted_by_ctrl_c_is_not_repeated() -> None:
    line = "".join(f"{number} " for number in range(1_400))  # more than the pipe holds, less than the buffer does
    program = f"from bester.broker import streams; streams.secure(); print({line!r}, flush=True)"
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-c", program], env=buffered, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as child:
        assert child.stdout is not None
        room = fcntl.fcntl(child.stdout, fcntl.F_SETPIPE_SZ, 4096)
        try:
            latest = time.monotonic() + 60
            while waiting(child.stdout.fileno()) < room:  # now the process waits in that write, or soon will
                assert child.poll() is None
                assert time.monotonic() < latest
                time.sleep(0.01)
            child.send_signal(signal.SIGINT)
            assert child.wait(60) == -signal.SIGINT, "its end needs no reader"
            got = child.stdout.read().decode()
        finally:
            child.kill()
    assert got == line[:room]


def waiting(descriptor: int) -> int:
    """Return the number of bytes that wait in a pipe."""
    return int(struct.unpack("i", fcntl.ioctl(descriptor, termios.FIONREAD, b"    "))[0])
