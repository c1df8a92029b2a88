"""Files of certificates and keys: every fault is one line with its remedy, and names in certificates."""

from __future__ import annotations

import os
import ssl
import time
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from bester.broker.hosts import is_named
from bester.broker.tls_files import Pair, client_context, server_context, validity_of
from bester.broker.wire.codes import ConfigError
from tests.authorities import DAY, Authority, pem
from tests.pipes import fed


@pytest.fixture
def pair(tmp_path: Path) -> Pair:
    return Pair(*Authority(tmp_path).issue("s1.example"))


def fault(pair: Pair, client_ca: Path | None = None) -> str:
    with pytest.raises(ConfigError) as refused:
        server_context(pair, client_ca, time.time())
    text = str(refused.value)
    assert "\n" not in text
    assert text.startswith("[native.tls] ")
    return text


def test_pair_that_belongs_together_is_loaded(pair: Pair) -> None:
    context, validity = server_context(pair, None, time.time())
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.verify_mode is ssl.CERT_NONE
    assert validity.begin < time.time() < validity.end


def test_dates_are_those_of_the_certificate(tmp_path: Path) -> None:
    cert, _ = Authority(tmp_path).issue("a.example", begin=-2 * DAY, end=3 * DAY)
    validity = validity_of(ssl.PEM_cert_to_DER_cert(cert.read_text()))
    assert validity.end - validity.begin == 5 * DAY.total_seconds()


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o602, 0o660])
def test_key_that_others_may_read_is_refused(pair: Pair, mode: int) -> None:
    pair.key.chmod(mode)
    assert f"chmod 600 {pair.key}" in fault(pair)


def test_certificate_of_another_key(tmp_path: Path, pair: Pair) -> None:
    _, other = Authority(tmp_path, "b").issue("s1.example", file="other")
    assert "is not the certificate of that key" in fault(Pair(pair.cert, other))


@pytest.mark.parametrize(
    ("begin", "end", "words"),
    [(-9, -1, "has expired on 20"), (1, 9, "is not valid before 20"), (-900, -800, "has expired on 20")],
)
def test_certificate_outside_its_time(tmp_path: Path, begin: int, end: int, words: str) -> None:
    assert words in fault(Pair(*Authority(tmp_path).issue("s1.example", begin=begin * DAY, end=end * DAY)))


def test_files_that_are_something_else(tmp_path: Path, pair: Pair) -> None:
    assert "is a private key; name the certificate here" in fault(Pair(pair.key, pair.cert))
    odd = tmp_path / "odd"
    odd.touch(0o600)
    for content, words in (
        (b"", "holds no certificate"),
        (b"\x30\x82" + bytes(50), "is a certificate in DER; convert it: openssl x509 -inform der"),
        (b"-----BEGIN CERTIFICATE REQUEST-----\n", "is the request for a certificate"),
        (b"-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n", "the certificate is damaged"),
        (b"-----BEGIN CERTIFICATE-----\n", "the certificate is damaged"),
    ):
        odd.write_bytes(content)
        assert words in fault(Pair(odd, pair.key))
    for content, words in (
        (b"", "holds no private key"),
        (pair.cert.read_bytes(), "is a certificate, and not its private key"),
        (pem(ec.generate_private_key(ec.SECP256R1()), b"pass"), "the key has a passphrase; write it without: openssl"),
        (b"-----BEGIN PRIVATE KEY-----\n", "cannot be used with"),
    ):
        odd.write_bytes(content)
        assert words in fault(Pair(pair.cert, odd))
    assert "cannot read it: No such file" in fault(Pair(tmp_path / "none", pair.key))
    assert "cannot read it: Is a directory" in fault(Pair(pair.cert, tmp_path))
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    for given, authorities in ((Pair(pipe, pair.key), None), (Pair(pair.cert, pipe), None), (pair, pipe)):
        with fed(pipe):
            assert "cannot read it: It is a pipe or a device, and no file" in fault(given, authorities)
    assert "client_ca = " in fault(pair, pair.key)
    with pytest.raises(ConfigError, match=r"\[servers.b\] ca = .*is a private key"):
        client_context("[servers.b] ca", pair.key)


@pytest.mark.parametrize(
    ("host", "names", "named"),
    [
        ("s2.example", ["s2.example"], True),
        ("S2.example.", ["s2.EXAMPLE"], True),
        ("s2.example", ["s1.example", "s2.example"], True),
        ("s2.example", ["*.example"], False),
        ("s2.example", ["s2.example.evil"], False),
        ("s2.example", ["s2.example\0.evil"], False),
        ("bank.example", ["ban\u212a.example"], False),
        ("127.0.0.2", ["127.0.0.2"], True),
        ("::1", ["0:0:0:0:0:0:0:1"], True),
        ("localhost", ["127.0.0.1"], False),
        ("s2.example", [], False),
    ],
)
def test_names_of_a_server(host: str, names: list[str], named: bool) -> None:
    assert is_named(host, names) is named


def test_directory_in_place_of_a_file_leaves_no_descriptor_open(tmp_path: Path, pair: Pair) -> None:
    """It would be one more at each look at the files."""
    fault(Pair(pair.cert, tmp_path))
    before = os.open(os.devnull, os.O_RDONLY)  # the lowest that is free
    os.close(before)
    assert "Is a directory" in fault(Pair(pair.cert, tmp_path))
    after = os.open(os.devnull, os.O_RDONLY)
    os.close(after)
    assert after == before
