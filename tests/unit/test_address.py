"""Addresses: accepted forms, refused forms, and those of this machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bester.broker.wire.address import (
    PATH_BYTES,
    Endpoint,
    HostPort,
    endpoints_to,
    is_host_port,
    is_loopback,
    network_of,
    parse_endpoint,
    parse_host_port,
    parse_origin,
)

hosts = st.from_regex(r"\A[a-z0-9]([a-z0-9.-]{0,20}[a-z0-9])?\Z") | st.ip_addresses().map(str)


@given(hosts, st.integers(0, 65535))
def test_written_address_is_read_back(host: str, port: int) -> None:
    address = HostPort(host, port)
    assert parse_host_port(str(address)) == address
    assert is_host_port(str(address))
    assert parse_endpoint(f"tcp://{address}") == Endpoint("tcp", "", address)


@given(st.text(max_size=30) | st.text("0123456789abc:[].%/@ ", max_size=12))
def test_any_text_is_an_address_or_refused_with_a_reason(text: str) -> None:
    for parse in (parse_host_port, parse_endpoint):
        try:
            parse(text)
        except ValueError as refusal:
            assert repr(text)[1:-1][:5] in str(refusal)  # noqa: PT017 (either is right; a refusal names the text)
    is_loopback(text)
    if is_host_port(text):
        assert str(parse_host_port(text)).rpartition(":")[0] == text.rpartition(":")[0]


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost:0", "localhost", 0),
        ("127.0.0.1:2223", "127.0.0.1", 2223),
        ("[::1]:65535", "::1", 65535),
        ("*:2225", "*", 2225),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
    ],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert parse_host_port(text) == (host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "x",
        "x:",
        ":1",
        "x:y",
        "x:-1",
        "x:65536",
        "x:1.0",
        "x:١",
        "x: 1",
        "x:" + "9" * 5000,
        "::1:80",
        "[::1:80",
        "::1]:80",
        "[]:80",
        "[x]:80",
        "[127.0.0.1]:80",
        "a b:80",
        "a/b:80",
        "u@h:80",
        "http://h:80",
        "h\n:80",
    ],
)
def test_invalid_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not HOST:PORT|stands in brackets|the port is"):
        parse_host_port(text)
    assert not is_host_port(text)


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1", "::1%lo"])
def test_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host", ["", "0.0.0.0", "::", "*", "192.0.2.1", "example.org", "localhost.example.org", "127.0.0.1.nip.io", "127.1"]
)
def test_not_loopback(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize(
    "text", ["ipc:///run/bester/fabric.sock", "ipc://fabric.sock", "tcp://127.0.0.1:2225", "tcp://[::1]:2225"]
)
def test_endpoints_of_this_machine(text: str) -> None:
    assert parse_endpoint(text).local


@pytest.mark.parametrize("text", ["tcp://0.0.0.0:2225", "tcp://*:2225", "tcp://example.org:2225"])
def test_endpoints_that_other_machines_reach(text: str) -> None:
    assert not parse_endpoint(text).local


@pytest.mark.parametrize(
    "text", ["", "ipc", "ipc:", "ipc://", "tcp://", "tcp://x", "udp://x:1", "inproc://x", "://x:1", "IPC://x"]
)
def test_invalid_endpoint_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not |the port is"):
        parse_endpoint(text)


@pytest.mark.parametrize("text", ["ipc://a,ipc://b", "tcp://h1:1, tcp://h2:2"])
def test_several_endpoints_in_the_place_of_one_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is several endpoints, and not one; write each by itself"):
        parse_endpoint(text)


def test_endpoints_to_connect_to_are_separated_by_commas_and_named_once() -> None:
    texts = ["tcp://h1:1, tcp://h2:2,ipc:///a,b", "ipc:///a,b"]
    assert endpoints_to(texts) == ["tcp://h1:1", "tcp://h2:2", "ipc:///a,b"]
    assert endpoints_to(["ipc://" + "x" * PATH_BYTES])


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("tcp://h1:1,tcp://h2:0", "'tcp://h2:0': port 0 is no port to connect to"),
        ("ipc://" + "ä" * 54, "108 bytes, and a Unix socket's path has 107 at most"),
        ("tcp://h1:1,", "the port is"),
        ("", "is not ipc://PATH or tcp://HOST:PORT"),
    ],
)
def test_endpoint_that_nobody_can_connect_to_is_refused(text: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        endpoints_to([text])


@pytest.mark.parametrize(
    "text",
    [
        "*",
        "null",
        "https://chat.example",
        "http://[::1]:8080",
        "http://localhost:80800",
        "chrome-extension://abc",
        "file://",
    ],
)
def test_origin_as_browsers_send_it(text: str) -> None:
    assert parse_origin(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "chat.example", "https://chat.example/", "https://Chat.example", "https://chat.example:443", "http://a:80", "",
        "https://a.example/path", "https://*.example", "https://bücher.example", "https://u@a.example", "https://a b",
        "NULL",
    ],
)  # fmt: skip
def test_origin_that_no_browser_sends_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r'write "https://chat\.example"'):
        parse_origin(text)


@pytest.mark.parametrize(("length", "may_be"), [(253, True), (254, False), (1_000_000, False)])
def test_a_host_has_no_longer_name_than_dns_has(length: int, may_be: bool) -> None:
    text = f"{'x' * length}:2223"
    assert is_host_port(text) is may_be
    if not may_be:
        with pytest.raises(ValueError, match="253 characters at most") as refusal:
            parse_host_port(text)
        assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("address", "net"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2::9", "2001:db8:1:2::"),
        ("2001:db8:1:3::9", "2001:db8:1:3::"),
        ("::1", "::"),
        ("fe80::1%eth0", "fe80::"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("", ""),
        ("a host", "a host"),
    ],
)
def test_network_that_counts_as_one_address(address: str, net: str) -> None:
    assert network_of(address) == net
