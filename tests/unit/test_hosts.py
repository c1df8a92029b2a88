"""The table of the native servers' addresses, and the servers that an unknown peer might be."""

from __future__ import annotations

import pytest

from bester.broker.hosts import HostAddresses, Hosts, hosts_of

FOUND = {
    "fixed": HostAddresses(("10.0.0.1",)),
    "named": HostAddresses(("10.0.0.2", "2001:db8::2"), 100.0),
    "twin": HostAddresses(("10.0.0.2",), 100.0),
    "gone": HostAddresses(),
}


def test_table_names_the_servers_at_an_address() -> None:
    hosts = hosts_of(FOUND)
    assert hosts.at("10.0.0.1") == ("fixed",)
    assert hosts.at("10.0.0.2") == ("named", "twin")
    assert hosts.at("2001:db8::2") == ("named",)
    assert hosts.at("10.0.0.9") == ()
    assert hosts.unknown == {"gone"}
    assert hosts.looked_up == {"named": 100.0, "twin": 100.0}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.0.7"])
def test_loopback_is_one_host_for_ipv4_and_ipv6(address: str) -> None:
    hosts = hosts_of({"s": HostAddresses((address,))})
    assert [hosts.at(each) for each in ("127.0.0.1", "::1", address)] == [("s",)] * 3


@pytest.mark.parametrize(
    ("claimed", "since", "may_be"),
    [
        (None, 50.0, {"gone"}),
        ("stranger", 50.0, {"gone"}),
        ("stranger", 100.0, {"gone", "named", "twin"}),  # a name of the peer's own
        (None, 100.0, {"gone", "named", "twin"}),
        ("gone", 50.0, {"gone"}),
        ("fixed", 1e9, set()),  # a configured address does not change
        ("named", 99.0, set()),
        ("named", 100.0, {"named"}),
        ("twin", 1e9, {"twin"}),
    ],
)
def test_servers_that_a_peer_at_an_unlisted_address_might_be(
    claimed: str | None, since: float, may_be: set[str]
) -> None:
    assert hosts_of(FOUND).may_be(claimed, since) == may_be


def test_peer_is_a_stranger_after_lookups_of_all_names() -> None:
    known = hosts_of({name: place for name, place in FOUND.items() if name != "gone"})
    for claimed in (None, "stranger", "fixed", "named"):
        assert known.may_be(claimed, 99.0) == set()
    assert Hosts().may_be("s", 0.0) == set()
    assert known.not_looked_up(99.0) == set()
    assert known.not_looked_up(100.0) == {"named", "twin"}


def test_servers_that_have_moved() -> None:
    before = hosts_of(FOUND)
    after = hosts_of(
        {**FOUND, "gone": HostAddresses(("10.0.0.7",), 200.0), "named": HostAddresses(("10.0.0.2",), 200.0)}
    )
    assert sorted(after.moved_since(before)) == ["gone", "named"]
    assert after.moved_since(after) == []
    assert before.moved_since(Hosts()) == ["fixed", "named", "twin"]
    assert Hosts().moved_since(before) == []  # a server without an address cannot be tried
