"""The service manager: its variables, its notifications and the sockets that it passes."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bester.broker import logs
from bester.broker.systemd import PINGS_A_PERIOD, ServiceManager, is_journal
from bester.broker.wire.codes import ConfigError
from tests.ipv6 import needs_ipv6

VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@pytest.fixture
def manager() -> Iterator[socket.socket]:
    """The manager's end, at an abstract address."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("")  # the system chooses the address
        sock.settimeout(30.0)
        yield sock


def address(manager: socket.socket) -> str:
    return "@" + os.fsdecode(manager.getsockname()[1:])


def listening(host: str = "127.0.0.1", family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.bind((host, 0))
    sock.listen()
    return sock


class TestVariables:
    def test_no_child_inherits_them(self) -> None:
        environment = dict.fromkeys(VARIABLES, "1") | {"PATH": "/bin"}
        ServiceManager.of(environment)
        assert environment == {"PATH": "/bin"}

    @pytest.mark.parametrize(
        ("variables", "watchdog_s"),
        [
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
            ({"WATCHDOG_USEC": "0"}, None),
            ({"WATCHDOG_USEC": "-5"}, None),
            ({"WATCHDOG_USEC": "soon"}, None),
            ({"WATCHDOG_USEC": "9" * 99}, None),
            ({}, None),
        ],
    )
    def test_watchdog_is_for_one_process(self, variables: dict[str, str], watchdog_s: float | None) -> None:
        assert ServiceManager.of({"NOTIFY_SOCKET": "@x", **variables}).watchdog_s == watchdog_s

    @pytest.mark.parametrize("pid", ["1", "", "x"])
    def test_sockets_of_an_ancestor_are_left_alone(self, pid: str) -> None:
        ServiceManager.of({"LISTEN_PID": pid, "LISTEN_FDS": "999"}).check_all_taken()

    def test_too_many_sockets_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="LISTEN_FDS = 999"):
            ServiceManager.of({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "999"})


class TestNotifications:
    def test_they_are_datagrams_of_lines(self, manager: socket.socket) -> None:
        told = ServiceManager(address(manager))
        assert told.notify("READY=1", "STATUS=as it is")
        assert manager.recv(1000) == b"READY=1\nSTATUS=as it is"

    @pytest.mark.parametrize("notify", ["/nonesuch/socket", "@nonesuch-of-bester", "vsock:2:1", "", None])
    def test_a_manager_that_is_not_there_is_no_fault(self, notify: str | None) -> None:
        environment = {} if notify is None else {"NOTIFY_SOCKET": notify}
        assert ServiceManager.of(environment).notify("READY=1") is False

    def test_a_path_is_an_address_too(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.bind("notify")
            os.symlink(tmp_path, link := f"/tmp/b-notify-{os.getpid()}")  # short enough for a socket's path
            try:
                assert ServiceManager(f"{link}/notify").notify("STOPPING=1")
            finally:
                os.unlink(link)
            assert sock.recv(1000) == b"STOPPING=1"

    async def test_status_is_one_short_line_and_the_loop_feeds_the_watchdog(self, manager: socket.socket) -> None:
        manager.setblocking(False)
        told = ServiceManager(address(manager), watchdog_s=0.03 * PINGS_A_PERIOD)
        told.ready("a\nREADY=0 " + "x" * 1000)
        told.ready("again")
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30.0):
            heard = [await loop.sock_recv(manager, 4096) for _ in range(5)]
        told.close()
        first = heard[0].decode().split("\n")
        assert first[0] == "READY=1" and first[1].startswith("STATUS=a READY=0 xxx") and len(first) == 2
        assert len(first[1]) < 300
        assert sorted(heard[1:])[1:] == [b"WATCHDOG=1"] * 3, "one timer, however often the service is ready"


class TestPassedSockets:
    def test_the_one_at_the_address_is_taken_once(self) -> None:
        first, second = listening(), listening()
        manager = ServiceManager(passed=(first, second))
        assert manager.take(socket.AF_INET6, second.getsockname()) is None
        assert manager.take(socket.AF_INET, second.getsockname()) is second
        assert manager.take(socket.AF_INET, second.getsockname()) is None
        manager.close()
        assert first.fileno() == -1 and second.fileno() >= 0
        second.close()

    @needs_ipv6
    def test_flow_and_scope_do_not_count(self) -> None:
        sock = listening("::1", socket.AF_INET6)
        assert ServiceManager(passed=(sock,)).take(socket.AF_INET6, ("::1", sock.getsockname()[1])) is sock
        sock.close()

    @needs_ipv6
    def test_one_that_no_key_names_is_a_mistake(self) -> None:
        manager = ServiceManager(passed=(listening(), listening("::1", socket.AF_INET6)))
        with pytest.raises(ConfigError, match=r"a socket for 127\.0\.0\.1:\d+, \[::1\]:\d+, where this program"):
            manager.check_all_taken()
        manager.close()


class TestJournal:
    def test_only_the_descriptor_that_the_variable_names(self) -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            status = os.fstat(ours.fileno())
            stream = f"{status.st_dev}:{status.st_ino}"
            assert is_journal(ours.fileno(), stream)
            assert not is_journal(theirs.fileno(), stream)
            assert not is_journal(ours.fileno(), None)
            assert not is_journal(ours.fileno(), "")
        assert not is_journal(-1, stream)

    @pytest.mark.parametrize("formatter", [logs.LineFormatter, logs.JsonFormatter])
    @pytest.mark.parametrize(("level", "mark"), [(10, "<7>"), (20, "<6>"), (30, "<4>"), (40, "<3>"), (50, "<2>")])
    def test_each_line_begins_with_its_priority(
        self, formatter: type[logs.LineFormatter] | type[logs.JsonFormatter], level: int, mark: str
    ) -> None:
        try:
            raise ValueError("<0>no\nno")
        except ValueError:
            record = logging.LogRecord("bester.broker", level, __file__, 1, "a\nb", (), sys.exc_info())
        lines = formatter(journal=True).format(record).split("\n")
        assert all(line.startswith(mark) for line in lines)
        assert lines[0].startswith(mark + ("broker: a\\nb" if formatter is logs.LineFormatter else "{"))
        assert not formatter().format(record).startswith("<")
