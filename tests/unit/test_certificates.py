"""Certificates of a bridge: read again after a change, kept where a new file has a fault, warned of before the end."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from bester.bridge.certificates import Certificates
from bester.broker.config import Config, NativeConfig, PeerConfig, TlsConfig, defaults
from bester.broker.tls_faults import TlsError
from bester.broker.wire.address import HostPort
from bester.broker.wire.codes import ConfigError
from tests.authorities import DAY, Authority
from tests.descriptors import free_descriptors


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


def test_server_that_is_new_has_its_context_or_changes_nothing(tmp_path: Path, config: Config) -> None:
    certificates = Certificates(config)
    before = certificates.listener
    new = PeerConfig("s4", native=HostPort("s4.example", 2224), tls=True, ca=Authority(tmp_path, "other").ca)
    listing = replace(config, servers={**config.servers, "s4": new})
    (tmp_path / "server.key").chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        certificates.prepare(listing)
    assert certificates.of_server("s4.example:2224", False) is None and certificates.listener is before
    # Without a new server, those that stay keep the contexts before.
    certificates.prepare(replace(config, servers={"s2": config.servers["s2"]}))()
    assert certificates.of_server("s2.example:2224", False) is not None and certificates.listener is before
    (tmp_path / "server.key").chmod(0o600)
    apply = certificates.prepare(listing)
    with free_descriptors(0):
        apply()  # everything was read before
    context = certificates.of_server("s4.example:2224", False)
    assert context is not None and context.cert_store_stats()["x509_ca"] == 1


def test_authorities_of_the_system_are_read_once_a_descriptor_is_free(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    certificates = Certificates(config)
    with pytest.raises(TlsError, match="Too many open files"), free_descriptors(0):
        certificates.of_server("elsewhere:1", True)
    context = certificates.of_server("elsewhere:1", True)
    assert context is not None and context.cert_store_stats()["x509_ca"] > 0


def test_servers_have_contexts_of_their_own(config: Config) -> None:
    certificates = Certificates(config)
    assert certificates.of_server("s2.example:2224", False) is not None
    assert certificates.of_server("s3.example:2223", False) is None
    assert certificates.of_server("elsewhere:1", False) is None
    assert certificates.of_server("elsewhere:1", True) is certificates.of_server("other:1", True)


def test_files_that_found_no_descriptor_are_read_at_the_next_look(
    tmp_path: Path, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(config)
    before = certificates.listener
    os.utime(tmp_path / "server.pem", (1, 1))
    with free_descriptors(0):
        certificates.look()
    assert certificates.listener is before and "Too many open files" in caplog.text
    certificates.look()
    assert certificates.listener is not before


def test_certificate_that_was_not_valid_yet_is_taken_in_once_it_is(tmp_path: Path, config: Config) -> None:
    """One of another machine's, made while the clock here is behind."""
    now = time.time()
    certificates = Certificates(config, lambda: now)
    first = certificates.listener
    Authority(tmp_path, "later").issue("s1.example", begin=2 * DAY, end=90 * DAY)
    certificates.look()
    assert certificates.listener is first
    now += 3 * 86400
    certificates.look()
    assert certificates.listener is not first


def test_server_that_speaks_tls_no_more_has_no_context(tmp_path: Path, config: Config) -> None:
    certificates = Certificates(config)
    (tmp_path / "server.key").chmod(0o644)  # so that the files are not read anew
    plain = replace(config.servers["s2"], tls=False, ca=None)
    certificates.prepare(replace(config, servers={**config.servers, "s2": plain}))()
    assert certificates.of_server("s2.example:2224", False) is None


def test_servers_that_change_without_any_certificate_are_no_news_of_certificates(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    plain = replace(config, native=NativeConfig(), servers={"s3": config.servers["s3"]})
    caplog.set_level(logging.INFO)
    certificates = Certificates(plain)
    certificates.prepare(replace(plain, servers={}))()
    certificates.look()
    assert caplog.messages == []
    certificates.prepare(config)()
    assert len(caplog.messages) == 1
    certificates.prepare(plain)()
    certificates.look()
    assert len(caplog.messages) == 1
