"""Who may join by which door, and which messages may enter: the whole table."""

from __future__ import annotations

import pytest

from bester.broker.core import policy
from bester.broker.core.settings import Route, Settings
from bester.broker.hosts import Hosts

LISTED = {"s2": Route("s2", native="10.0.0.2:2223", accept_types=frozenset({"chat"})), "s3": Route("s3")}


def settings(accept: str = "listed") -> Settings:
    hosts = {"10.0.0.2": ("s2",), "10.0.0.9": ("s2", "s3")}
    return Settings("s1", accept=accept, routes=LISTED, hosts=hosts)


@pytest.mark.parametrize("door", ["ipc", "direct", "tcp"])
@pytest.mark.parametrize("accept", ["listed", "open", "none"])
@pytest.mark.parametrize("role", ["handler", "bridge", "operator", "server", "king", ""])
def test_who_may_join(role: str, accept: str, door: str) -> None:
    allowed = {
        "handler": True,
        "bridge": door != "tcp",
        "operator": door != "tcp",
        "server": accept == "open" or (accept == "listed" and door != "tcp"),
    }.get(role, False)
    assert (policy.may_join(settings(accept), door, role, "s2") is None) == allowed


def test_a_server_that_is_not_listed_may_join_only_where_the_door_is_open() -> None:
    assert policy.may_join(settings("listed"), "ipc", "server", "stranger") is not None
    assert policy.may_join(settings("open"), "tcp", "server", "stranger") is None


@pytest.mark.parametrize(
    ("accept", "peer", "type_", "code"),
    [
        ("listed", "s2", "chat", None),
        ("listed", "s2", "mail", "not-allowed"),
        ("listed", "s3", "mail", None),
        ("listed", "stranger", "chat", "not-allowed"),
        ("listed", None, "chat", "not-allowed"),
        ("listed", "s3", "bester.auth", "reserved"),
        ("open", None, "chat", None),
        ("open", "stranger", "chat", None),
        ("open", "s2", "mail", "not-allowed"),
        ("open", None, "dummy", "reserved"),
        ("none", "s2", "chat", "not-allowed"),
    ],
)
def test_which_messages_of_servers_may_enter(accept: str, peer: str | None, type_: str, code: str | None) -> None:
    assert policy.may_enter(settings(accept), peer, type_) == code


@pytest.mark.parametrize(
    ("host", "claimed", "type_", "name"),
    [
        ("10.0.0.2", None, "chat", "s2"),
        ("10.0.0.2", "s3", "chat", "s2"),  # a claim of a name that is not at this address is no claim
        ("10.0.0.9", None, "chat", "s2"),
        ("10.0.0.9", None, "mail", "s3"),
        ("10.0.0.9", "s3", "chat", "s3"),
        ("10.9.9.9", "s2", "chat", None),
        ("", "s2", "chat", None),
    ],
)
def test_a_native_server_is_known_by_its_address(host: str, claimed: str | None, type_: str, name: str | None) -> None:
    assert policy.native_peer(settings(), Hosts(settings().hosts), host, claimed, type_) == name
