"""Token and certificates of the operator's page: read again after a change, kept where a new file has a fault."""

from __future__ import annotations

import logging
import os
import ssl
import time
from pathlib import Path

import pytest

from bester.broker.config import OperatorConfig
from bester.broker.operator.access import Access, name_in_certificate
from bester.broker.wire.address import HostPort
from bester.broker.wire.codes import ConfigError
from tests.authorities import DAY, Authority
from tests.pipes import fed

HERE = HostPort("127.0.0.1", 0)


def secret_file(directory: Path, text: str) -> Path:
    path = directory / "token"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_changed_token_is_taken_in_and_a_faulty_one_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = secret_file(tmp_path, "the-first-secret-1")
    access = Access(OperatorConfig(HERE, path))
    changes: list[str | None] = []
    access.changed = lambda: changes.append(access.token)
    access.look()
    assert (access.token, access.is_open, changes) == ("the-first-secret-1", False, [])
    path.write_text("a-second-secret-22\n")
    access.look()
    assert changes == ["a-second-secret-22"]
    for spoil in (lambda: path.write_text("short"), lambda: path.chmod(0o644), path.unlink):
        spoil()
        access.look()
        access.look()
        assert (access.token, len(changes)) == ("a-second-secret-22", 1)
    refused = [each for each in caplog.records if "were not read again" in each.getMessage()]
    assert len(refused) == 3, "once for each change"


def test_pipe_in_place_of_the_token_is_not_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = secret_file(tmp_path, "the-first-secret-1")
    access = Access(OperatorConfig(HERE, path))
    path.unlink()
    os.mkfifo(path, 0o600)
    with fed(path):
        access.look()
    assert access.token == "the-first-secret-1"
    assert "cannot be read: It is a pipe or a device, and no file" in caplog.text


def test_renewed_certificate_is_taken_in_and_its_end_is_told_of_once_a_day(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1", end=20 * DAY)
    now = time.time()
    access = Access(OperatorConfig(HERE, None, cert, key, authority.ca), lambda: now)
    first = access.context
    assert first is not None and first.verify_mode is ssl.CERT_OPTIONAL
    access.look()
    assert (access.context, caplog.messages, access.is_open) == (first, [], False)
    now += 8 * 86400
    access.look()
    access.look()
    assert [each for each in caplog.messages if "expires on" in each and "renew it" in each] == caplog.messages
    assert len(caplog.messages) == 1
    with caplog.at_level(logging.INFO):
        authority.issue("127.0.0.1", end=90 * DAY)
        os.utime(cert, ns=(1, 1))
        access.look()
    assert access.context is not first
    assert "were read again" in caplog.messages[-1]


def test_certificate_that_was_not_valid_yet_is_taken_in_once_it_is(tmp_path: Path) -> None:
    """One of another machine's, made while the clock here is behind."""
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1", end=20 * DAY)
    now = time.time()
    access = Access(OperatorConfig(HERE, None, cert, key, authority.ca), lambda: now)
    first = access.context
    authority.issue("127.0.0.1", begin=2 * DAY, end=90 * DAY)
    access.look()
    assert access.context is first
    now += 3 * 86400
    access.look()
    assert access.context is not first


def test_faults_name_the_section_of_the_page(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    cert, key = authority.issue("127.0.0.1")
    with pytest.raises(ConfigError, match=r"\[operator\] client_ca = .*cannot read it"):
        Access(OperatorConfig(HERE, None, cert, key, tmp_path / "absent.pem"))
    key.write_text("nothing")
    with pytest.raises(ConfigError, match=r"\[operator\] key = .*holds no private key"):
        Access(OperatorConfig(HERE, None, cert, key))


def test_plain_connection_has_no_name() -> None:
    assert name_in_certificate(None) is None
