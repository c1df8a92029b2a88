"""Certificates of a bridge: read again after a change, kept where a new file has a fault, warned of before the end."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bester.bridge.certificates import Certificates
from bester.broker.config import Config, NativeConfig, PeerConfig, TlsConfig, defaults
from bester.broker.wire.address import HostPort
from tests.authorities import DAY, Authority


@pytest.fixture
def config(tmp_path: Path) -> Config:
    authority = Authority(tmp_path)
    cert, key = authority.issue("s1.example")
    tls = TlsConfig(cert, key, (HostPort("127.0.0.1", 0),))
    peer = PeerConfig("s2", native=HostPort("s2.example", 2224), tls=True, ca=authority.ca)
    plain = PeerConfig("s3", native=HostPort("s3.example", 2223))
    native = NativeConfig(tls=tls)
    return replace(defaults(Path("/tmp")), native=native, servers={"s2": peer, "s3": plain})


def test_change_of_a_file_is_seen(tmp_path: Path, config: Config) -> None:
    certificates = Certificates(config)
    first = certificates.listener
    certificates.look()
    assert certificates.listener is first
    Authority(tmp_path, "later").issue("s1.example")
    certificates.look()
    second = certificates.listener
    assert second is not first
    (tmp_path / "server.pem").write_text("half of a fi")
    certificates.look()
    assert certificates.listener is second
    (tmp_path / "server.pem").unlink()
    certificates.look()
    assert certificates.listener is second
    assert not certificates.reload()
    Authority(tmp_path, "last").issue("s1.example")
    certificates.look()
    assert certificates.listener is not second


def test_fault_is_logged_once_for_one_state_of_the_files(
    tmp_path: Path, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(config)
    (tmp_path / "server.key").chmod(0o644)
    for _ in range(3):
        certificates.look()
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "chmod 600" in caplog.text


def test_end_of_certificate_is_announced_once_a_day(
    tmp_path: Path, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    now = time.time()
    clock = [now]
    certificates = Certificates(config, lambda: clock[0])
    for days in (0, 70, 80, 80.5, 81.1, 95):
        clock[0] = now + days * DAY.total_seconds()
        certificates.look()
    lines = [record.getMessage() for record in caplog.records]
    assert [("expires on" in line, "has expired on" in line) for line in lines] == [
        (True, False), (True, False), (False, True)
    ]  # fmt: skip


def test_servers_have_contexts_of_their_own(config: Config) -> None:
    certificates = Certificates(config)
    assert certificates.of_server("s2.example:2224", False) is not None
    assert certificates.of_server("s3.example:2223", False) is None
    assert certificates.of_server("elsewhere:1", False) is None
    assert certificates.of_server("elsewhere:1", True) is certificates.of_server("other:1", True)
