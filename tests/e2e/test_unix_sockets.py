"""Listening Unix sockets: foreign files are neither harmed nor taken, and reported in one line."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path

import pytest
import zmq

from bester.broker import unix_socket
from bester.broker.wire.codes import ConfigError
from bester.broker.wire.messages import Hello
from bester.handlers.legacy import legacy_app
from bester.handlers.worker import Worker
from tests.e2e.broker_stand_in import StandIn
from tests.live import BESTER, DEADLINE_S, LiveServer, Process, RawHandler, raw_handler, short_directory
from tests.plain_user import plain_user

KEYS = {
    "[fabric] listen": '[fabric]\nlisten = ["ipc://DATA_DIR/f.sock", "ipc://PATH"]\n',
    "[native] unix": '[native]\nunix = "PATH"\n',
    "[informer] unix": '[informer]\nunix = "PATH"\n',
}
"""Every way to name a socket to listen on."""


def a_file(path: Path) -> None:
    path.write_text("precious")


def a_directory(path: Path) -> None:
    path.mkdir()


def a_link_to_a_file(path: Path) -> None:
    path.with_name("other").write_text("precious")
    path.symlink_to("other")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to("nowhere")


def a_pipe(path: Path) -> None:
    os.mkfifo(path)


IN_THE_WAY = [
    (a_file, "is a file, not a socket; remove it or name another path"),
    (a_directory, "is a directory, not a socket; name another path"),
    (a_link_to_a_file, "is a symbolic link, not a socket"),
    (a_link_to_nothing, "is a symbolic link, not a socket"),
    (a_pipe, "is a pipe, not a socket; name another path"),
]


@contextmanager
def listener(path: Path, kind: int = socket.SOCK_STREAM, backlog: int = 5) -> Iterator[socket.socket]:
    """Listen on a live foreign socket."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.bind(str(path))
        if kind == socket.SOCK_STREAM:
            sock.listen(backlog)
        yield sock


def dead_socket(path: Path) -> None:
    with listener(path):
        pass


def seen(path: Path) -> tuple[int, int, int, bytes]:
    found = path.lstat()
    return found.st_ino, found.st_mode, found.st_mtime_ns, path.read_bytes() if stat.S_ISREG(found.st_mode) else b""


@pytest.fixture
async def directory() -> AsyncIterator[Path]:
    async with short_directory() as directory:
        yield directory


def toml(text: str, path: Path, name: str = "s1") -> str:
    head = f'[server]\nname = "{name}"\ndata_dir = "{name}"\n[accounts]\nauth = "open"\n'
    if "[native]" not in text:
        head += '[native]\ntcp4 = "127.0.0.1:0"\n'
    return head + text.replace("PATH", str(path))


async def refused(directory: Path, text: str, command: str = "up") -> str:
    """Start a server that must fail; return its one line of error."""
    (directory / "refused.toml").write_text(text)
    process = await Process.start(BESTER, command, "-c", "refused.toml", cwd=directory)
    assert await asyncio.wait_for(process.process.wait(), DEADLINE_S) in (1, 2)
    await process.end()
    (line,) = process.lines
    return line


class TestListening:
    @pytest.mark.parametrize(("make", "says"), IN_THE_WAY)
    def test_file_that_is_no_socket_stays_unchanged(
        self, directory: Path, make: Callable[[Path], None], says: str
    ) -> None:
        path = directory / "s"
        make(path)
        before = seen(path)
        with pytest.raises(ConfigError, match=f"^here: {says}"):
            unix_socket.listen("here", str(path), backlog=1)
        assert seen(path) == before
        if make is a_link_to_a_file:
            assert (directory / "other").read_text() == "precious"

    @pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET])
    def test_live_socket_of_any_kind_stays_unchanged(self, directory: Path, kind: int) -> None:
        path = directory / "s"
        with listener(path, kind):
            before = seen(path)
            with pytest.raises(ConfigError, match="another server listens there"):
                unix_socket.listen("here", str(path), backlog=1)
            assert seen(path) == before

    def test_live_socket_with_a_full_backlog_stays_unchanged(self, directory: Path) -> None:
        path = directory / "s"
        with listener(path, backlog=0), socket.socket(socket.AF_UNIX) as waiting:
            waiting.connect(str(path))
            with pytest.raises(ConfigError, match="another server listens there"):
                unix_socket.listen("here", str(path), backlog=1)

    def test_socket_of_a_dead_server_is_replaced_silently(self, directory: Path) -> None:
        path = directory / "s"
        dead_socket(path)
        bound = unix_socket.listen("here", str(path), backlog=1, mode=0o600)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        bound.remove()
        bound.socket.close()
        assert not path.exists()

    def test_of_two_servers_started_at_once_the_second_finds_the_first_listening(
        self, directory: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = directory / "s"
        dead_socket(path)
        remove = os.unlink
        with ThreadPoolExecutor(1) as pool:
            second: list[Future[unix_socket.UnixSocket]] = []

            def remove_slowly(name: str) -> None:
                """Start another server between the check of the dead socket and its removal."""
                if not second:
                    second.append(pool.submit(unix_socket.listen, "second", str(path), backlog=8))
                    wait(second, timeout=0.2)  # time in which the second would bind, were it allowed
                remove(name)

            monkeypatch.setattr(os, "unlink", remove_slowly)
            first = unix_socket.listen("first", str(path), backlog=8)
            with pytest.raises(ConfigError, match="second: another server listens there"):
                second[0].result(DEADLINE_S)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        first.remove()
        first.socket.close()

    @pytest.mark.parametrize("closed_first", [False, True])
    def test_socket_of_a_later_server_is_not_removed(self, directory: Path, closed_first: bool) -> None:
        path = directory / "s"
        bound = unix_socket.listen("here", str(path), backlog=1)
        path.unlink()
        if closed_first:
            bound.remove()
            bound.socket.close()
        with listener(path):
            bound.remove()
            assert path.exists()
        bound.socket.close()

    @pytest.mark.parametrize(
        ("name", "says"),
        [
            ("no/s", "cannot listen there: there is no directory .*/no; make it, or name another path"),
            ("file/s", "cannot listen there: there is no directory .*/file"),
            ("x" * 108, "longer than the 107 bytes"),
            ("é" * 54, "longer than the 107 bytes"),
            ("a\0b", "no path has a zero byte in it"),
        ],
    )
    def test_paths_that_cannot_hold_a_socket(self, directory: Path, name: str, says: str) -> None:
        (directory / "file").write_text("precious")
        with pytest.raises(ConfigError, match=says):
            unix_socket.listen("here", str(directory / name), backlog=1)

    def test_directory_that_this_user_may_not_write(self, directory: Path) -> None:
        closed = directory / "closed"
        closed.mkdir()
        dead_socket(closed / "dead")
        (closed / "dead").chmod(0)
        closed.chmod(0o555)
        for name, says in (("s", f"this user may not write to {closed}"), ("dead", "another user's socket is there")):
            with plain_user(directory), pytest.raises(ConfigError, match=says):
                unix_socket.listen("here", str(closed / name), backlog=1)
        closed.chmod(0o755)


class TestServers:
    @pytest.mark.parametrize("key", KEYS)
    @pytest.mark.parametrize(("make", "says"), IN_THE_WAY[:2])
    async def test_file_is_not_taken_for_a_socket(
        self, directory: Path, key: str, make: Callable[[Path], None], says: str
    ) -> None:
        path = directory / "mine"
        make(path)
        before = seen(path)
        line = await refused(directory, toml(KEYS[key], path))
        assert key in line
        assert str(path) in line
        assert says.partition(";")[0] in line
        assert seen(path) == before

    @pytest.mark.parametrize("key", KEYS)
    async def test_second_server_on_one_socket_is_refused(self, directory: Path, key: str) -> None:
        path = directory / "shared"
        first = await LiveServer.start(directory, toml(KEYS[key], path)) if key != "[native] unix" else None
        if first is None:  # no port to wait for
            (directory / "bester.toml").write_text(toml(KEYS[key], path))
            process = await Process.start(BESTER, "up", cwd=directory)
            await process.says(" serves ")
        else:
            (process,) = first.processes
        before = seen(path)
        for command in ("up", "broker") if key == "[fabric] listen" else ("up",):
            line = await refused(directory, toml(KEYS[key], path, "s2"), command)
            assert "another server listens there; stop it or name another path" in line
            assert seen(path) == before
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
        await process.end(signal.SIGKILL)
        assert seen(path) == before, "what a killed server leaves behind"
        process = await Process.start(BESTER, "up", "-c", "refused.toml", cwd=directory)
        await process.says(" serves ")
        assert seen(path) != before
        assert await process.end() == 0
        assert not path.exists()
        assert not [line for line in process.lines if " warning " in line or " error " in line]

    async def test_fabric_socket_is_removed_at_the_end_unless_replaced(self, directory: Path) -> None:
        path = directory / "f"
        first = await LiveServer.start(directory, toml('[fabric]\nlisten = ["ipc://f"]\n', path))
        first.fabric = f"ipc://{path}"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        async with raw_handler(first.fabric, "t"):
            await first.has_type("t")
        path.unlink()
        with zmq.Context() as context, context.socket(zmq.ROUTER) as other:
            other.linger = 0
            other.bind(f"ipc://{path}")
            before = seen(path)
            assert await first.stop() == [0]
            assert seen(path) == before
            handler = RawHandler(f"ipc://{path}", ["t"])
            await handler.say([3])
            assert other.poll(int(DEADLINE_S * 1000))
            handler.close()


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_file, "it is a file, not a socket"),
        (a_directory, "it is a directory, not a socket"),
        (a_pipe, "it is a pipe, not a socket"),
        (a_link_to_nothing, "No such file or directory"),
        (dead_socket, "Connection refused"),
    ],
)
async def test_missing_handler_of_the_reference_kind(directory: Path, make: Callable[[Path], None], says: str) -> None:
    path = directory / "h.sock"
    make(path)
    endpoint = f"ipc://{directory}/f"
    async with StandIn(endpoint) as broker:
        worker = Worker(legacy_app(str(path), ["t"]), endpoint)
        worker.start()
        try:
            await broker.expect(Hello)
            assert (await broker.ask(7, b"1", "t")).note == f"no handler at {path}: {says}"
        finally:
            await worker.stop()
