"""Permissions: which role may send and ask which message, who may join, which messages may enter."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from bester.broker.core import policy
from bester.broker.core.dead_letters import QUESTIONS
from bester.broker.core.effects import Link
from bester.broker.core.routes import Routes
from bester.broker.core.settings import Grant, Route, Settings
from bester.broker.hosts import Hosts
from bester.broker.wire.messages import ROLES, Command, Relay, Reply, Submit
from bester.broker.wire.unpacking import MAX_WEIGHT

LISTED = {"s2": Route("s2", native="10.0.0.2:2223", accept_types=frozenset({"chat"})), "s3": Route("s3")}


def settings(accept: str = "listed") -> Settings:
    hosts = {"10.0.0.2": ("s2",), "10.0.0.9": ("s2", "s3")}
    return Settings("s1", accept=accept, routes=LISTED, hosts=hosts)


@pytest.mark.parametrize(
    ("question", "roles"),
    [
        ("listClients", {"handler", "bridge", "operator"}),
        ("isClient", {"handler", "bridge", "operator"}),
        ("serverInfo", {"handler", "bridge", "operator"}),
        ("outcome", {"bridge"}),
        ("trace", {"bridge", "operator"}),
        ("deadList", {"operator"}),
        ("deadShow", {"operator"}),
        ("deadReplay", {"operator"}),
        ("deadDrop", {"operator"}),
        ("whatever", set()),
    ],
)
def test_roles_that_may_ask(question: str, roles: set[str]) -> None:
    assert {role for role in (*ROLES, "king") if policy.may_ask(role, question)} == roles


def test_table_of_roles_in_the_readme_is_the_policy() -> None:
    """Compare the rows `| Role | May send | May ask |` with the module's tables."""
    text = (Path(__file__).parents[2] / "broker" / "README.md").read_text(encoding="utf-8")
    rows = text.partition("| Role | May send | May ask |\n|---|---|---|\n")[2].partition("\n\n")[0].splitlines()
    table = {cells[0]: tuple(cells[1:]) for cells in ([cell.strip() for cell in row.split("|")[1:-1]] for row in rows)}
    assert table == {
        role: (
            ", ".join(kind.__name__.upper() for kind in kinds),
            ", ".join(question for question in policy.MAY_ASK if policy.may_ask(role, question)),
        )
        for role, kinds in policy.MAY_SEND.items()
    }


def test_every_question_about_dead_letters_has_its_roles() -> None:
    assert policy.MAY_ASK.keys() >= QUESTIONS


def test_each_role_has_its_operations_and_no_operation_is_anybodys() -> None:
    assert policy.MAY_SEND.keys() == set(ROLES)
    assert [role for role, kinds in policy.MAY_SEND.items() if Submit in kinds] == ["bridge"]
    assert [role for role, kinds in policy.MAY_SEND.items() if Reply in kinds] == ["handler"]
    assert [role for role, kinds in policy.MAY_SEND.items() if Relay in kinds] == ["server"]


@pytest.mark.parametrize(
    ("type_", "code"),
    [
        ("chat", None),
        ("bester.auth", None),  # `may_decide` says by which handlers
        ("bester.outcome", "reserved"),
        ("dummy", "reserved"),
        ("a,b", "malformed"),
    ],
)
def test_types_that_handlers_may_serve(type_: str, code: str | None) -> None:
    refused = policy.may_serve(type_)
    assert (refused and refused[0]) == code


def test_handler_may_emit_its_own_types_alone() -> None:
    assert policy.may_emit({"chat"}, "chat") is None
    assert policy.may_emit({"chat"}, "mail") == "'mail' is not one of this handler's types"


def test_bodies_with_passwords_may_not_be_kept() -> None:
    assert policy.may_keep("chat")
    assert not policy.may_keep("bester.auth")


@pytest.mark.parametrize("door", ["ipc", "direct", "tcp"])
@pytest.mark.parametrize("accept", ["listed", "open", "none"])
@pytest.mark.parametrize("role", ["handler", "bridge", "operator", "server", "king", ""])
def test_roles_that_may_join(role: str, accept: str, door: str) -> None:
    allowed = {
        "handler": True,
        "bridge": door != "tcp",
        "operator": door != "tcp",
        "server": accept == "open" or (accept == "listed" and door != "tcp"),
    }.get(role, False)
    assert (policy.may_join(settings(accept), Link(door, b"1"), role, "s2") is None) == allowed


@pytest.mark.parametrize(
    ("key", "role", "name", "types", "allowed"),
    [
        ("H", "handler", "any label", ("a",), True),
        ("H", "handler", "any label", ("a", "b"), True),
        ("H", "handler", "any label", ("a", "c"), False),
        ("H", "bridge", "b", (), False),
        ("H", "server", "s2", (), False),
        ("S", "server", "s2", (), True),
        ("S", "server", "s3", (), False),
        ("S", "handler", "s2", ("a",), False),
        ("B", "bridge", "b", (), True),
        ("B", "operator", "b", (), False),
        ("", "handler", "h", ("a",), False),
        ("X", "handler", "h", ("a",), False),
    ],
)
def test_a_key_is_good_for_its_role_name_and_types(
    key: str, role: str, name: str, types: tuple[str, ...], allowed: bool
) -> None:
    grants = {
        "H": Grant("handler", "h", frozenset({"a", "b"})),
        "S": Grant("server", "s2"),
        "B": Grant("bridge", "b"),
    }
    for accept in ("listed", "open"):
        known = Settings("s1", accept=accept, routes=LISTED, grants=grants)
        why = policy.may_join(known, Link("curve", b"0:id", key), role, name, types)
        assert (why is None) == allowed, why


@pytest.mark.parametrize(
    ("door", "key", "is_bound"),
    [
        ("ipc", "", False),
        ("direct", "", False),
        ("tcp", "", True),
        ("server", "", True),
        ("curve", "B", False),
        ("curve", "H", True),
        ("curve", "S", True),
        ("curve", "X", True),
    ],
)
def test_bridges_and_this_machine_alone_may_send_the_longest_messages(door: str, key: str, is_bound: bool) -> None:
    grants = {"H": Grant("handler", "h"), "S": Grant("server", "s2"), "B": Grant("bridge", "b")}
    known = Settings("s1", grants=grants)
    most = policy.most_values(known, Link(door, b"1", key))
    assert most == (known.limits.max_values if is_bound else MAX_WEIGHT)


def test_refusal_of_an_operator_over_tcp_names_the_remedy() -> None:
    why = policy.may_join(settings("listed"), Link("tcp", b"1"), "operator", "bester")
    assert why is not None
    assert why.startswith("an operator is let in over ipc")
    assert why.endswith('put "ipc://DATA_DIR/fabric.sock" into [fabric] listen')


def test_unlisted_server_may_join_only_where_federation_is_open() -> None:
    assert policy.may_join(settings("listed"), Link("ipc", b"1"), "server", "stranger") is not None
    assert policy.may_join(settings("open"), Link("tcp", b"1"), "server", "stranger") is None


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
def test_types_of_servers_that_may_enter(accept: str, peer: str | None, type_: str, code: str | None) -> None:
    assert policy.may_enter(settings(accept), peer, type_) == code


@pytest.mark.parametrize(
    ("host", "claimed", "type_", "name"),
    [
        ("10.0.0.2", None, "chat", "s2"),
        ("10.0.0.2", "s3", "chat", "s2"),  # a claim of a name that is not at this address does not count
        ("10.0.0.9", None, "chat", "s2"),
        ("10.0.0.9", None, "mail", "s3"),
        ("10.0.0.9", "s3", "chat", "s3"),
        ("10.9.9.9", "s2", "chat", None),
        ("", "s2", "chat", None),
    ],
)
def test_a_native_server_is_known_by_its_address(host: str, claimed: str | None, type_: str, name: str | None) -> None:
    assert policy.native_peer(settings(), Hosts(settings().hosts), host, claimed, type_) == name


GUARDED = Settings(
    "s1", accept="open", type_users={"chat": frozenset({"ann"}), "nobody": frozenset()},
    type_commands={"chat": frozenset({"sendClients"}), "sink": frozenset()},
    routes={"s2": Route("s2", native="127.0.0.1:1", send_types=frozenset({"chat"})), "s3": Route("s3", native="h:1")},
    reachable=(ip_network("127.0.0.5"), ip_network("fe80::/16")),
)  # fmt: skip


@pytest.mark.parametrize(
    ("user", "type_", "code"),
    [
        ("ann", "chat", None),
        ("bob", "chat", "not-allowed"),
        ("ann", "nobody", "not-allowed"),
        ("ann", "bester.auth", "reserved"),
        ("ann", "mail", None),
    ],
)
def test_users_that_may_send_a_type(user: str, type_: str, code: str | None) -> None:
    assert policy.may_submit(GUARDED, user, type_) == code
    assert policy.guarded_types(GUARDED) == {"chat", "nobody", "bester.auth"}
    assert code is None or type_ in policy.guarded_types(GUARDED)


@pytest.mark.parametrize(
    ("granted", "type_", "commands", "allowed"),
    [
        (None, "mail", ("sendServers", "sendClients"), True),
        (None, "chat", ("sendClients",), True),
        (None, "chat", ("sendClients", "sendHandler"), False),
        (None, "sink", (), True),
        (None, "sink", ("sendClients",), False),
        (frozenset({"sendServers"}), "mail", ("sendServers",), True),
        (frozenset({"sendServers"}), "mail", ("sendClients",), False),
        (frozenset({"sendServers"}), "chat", ("sendServers",), False),
        (frozenset(), "mail", (), True),
    ],
)
def test_commands_that_a_handler_may_use(
    granted: frozenset[str] | None, type_: str, commands: tuple[str, ...], allowed: bool
) -> None:
    said = [Command(name, ["x"], b"1") for name in commands]
    assert (policy.may_command(GUARDED, granted, type_, said) is None) == allowed
    assert allowed or policy.is_limited(GUARDED, granted, frozenset({type_, "mail"}))
    assert not policy.is_limited(GUARDED, None, frozenset({"mail"}))


@pytest.mark.parametrize(
    ("target", "type_", "code"),
    [
        ("s2", "chat", None),
        ("s2", "mail", "not-allowed"),
        ("s2", "bester.auth", "reserved"),
        ("s2", "bester.outcome", None),
        ("s3", "mail", None),
        ("127.0.0.1:1", "chat", None),  # listed, by its address
        ("127.0.0.1:2", "chat", "not-allowed"),
        ("127.0.0.5:2", "chat", None),
        ("localhost:2", "chat", "not-allowed"),
        ("[::1]:2", "chat", "not-allowed"),
        ("[fe80::1]:2", "chat", None),
        ("[fe81::1]:2", "chat", "not-allowed"),
        ("[::ffff:127.0.0.1]:2", "chat", "not-allowed"),
        ("[64:ff9b::7f00:1]:2", "chat", "not-allowed"),
        ("[2002:7f00:1::]:2", "chat", "not-allowed"),
        ("169.254.169.254:80", "chat", "not-allowed"),
        ("0.0.0.0:2", "chat", "not-allowed"),
        ("0.1.2.3:2", "chat", "not-allowed"),
        ("224.0.0.1:2", "chat", "not-allowed"),
        ("192.0.2.7:2", "chat", None),
        ("far.example:2", "chat", None),
        ("far.example:2", "bester.outcome", "reserved"),
    ],
)
def test_servers_that_may_be_sent_a_type(target: str, type_: str, code: str | None) -> None:
    route = Routes(GUARDED.routes).find(target)
    assert route is not None
    assert policy.may_send(GUARDED, route, target, type_) == code
    if not route.name:
        assert policy.may_send(replace(GUARDED, accept="listed"), route, target, type_) is not None
