"""Attacks on the fabric: an attacker who can reach the socket harms nobody but himself."""

# ruff: noqa: E501 (each attack is a row of a table, and a row is a line)
from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import count
from typing import Any, NamedTuple

import msgpack  # type: ignore[import-untyped]  # it ships no types
import pytest
import zmq
import zmq.asyncio

from tests.attacks.stand import OPS, Attacker, all_is_well, attacked, attacker, pack
from tests.live import LAYOUTS, LiveServer, RawClient


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with attacked(request.param) as server:
        yield server


HANDLER = [1, 1, "handler", "eve", {"types": ["evil"], "credit": 8}]
BRIDGE = [1, 1, "bridge", "eve", {"epoch": "evil"}]
SERVER = [1, 1, "server", "s2", {}]
OPERATOR = [1, 1, "operator", "eve", {}]
MALFORMED = ["ERROR malformed HELLO"]
NAMES: list[Any] = ["", "x" * 129, "x" * 1_000_000, "a\nb", "a\x1b[2Jb", "\ud800", 5, None, []]
"""No names of a party."""
OTHERS: list[list[Any]] = [
    [2, 1, "s1", {}], [10, 1, "evil", b"1", None, {}], [13, 1, 0, {}, None], [15, 1, 0, None], [20, 1, "eve", "p", ""],
    [21, 1, 0, None], [22, 1, "alice"], [23, 1], [24, 1, 1, "echo", b"1", {}], [25, 1, 0, None, None, {}],
    [26, 1, "i", "t", b"1", [[0, 1]], None, {}], [27, 5, [], [], 5], [30, 1, "echo", b"1", {}], [31, 1, "delivered", {}],
    [32, 1, "h:1", "t", b"1", {}], [33, 1, "delivered", {}],
]  # fmt: skip
"""Operations that a handler may not send."""
DEEP = b"[" * 65 + b"]" * 65


class Attack(NamedTuple):
    """Operations sent after a HELLO (None: no HELLO at all), ZeroMQ message by ZeroMQ message, and the answers due
    before the next question on the same link is answered."""

    name: str
    hello: list[Any] | None
    sends: list[list[bytes]]
    hears: list[str]


def batch(*rows: Any, attached: tuple[bytes, ...] = ()) -> list[list[bytes]]:
    return [[pack(*rows), *attached]]


def hello(role: Any = "handler", name: Any = "eve", version: Any = 1, **options: Any) -> list[list[bytes]]:
    return batch([1, version, role, name, {"types": ["evil"], **options}])


def sends(command: Any) -> list[list[bytes]]:
    return batch([12, 5, "evil", [command], {}])


# fmt: off
ATTACKS = [
    # --- without HELLO ---
    Attack("a heartbeat of nobody", None, batch([3]), ["ERROR hello-first"]),
    Attack("a thousand submits of nobody", None, batch(*([24, n, 1, "echo", b"1", {}] for n in range(1000))), ["ERROR hello-first"]),
    Attack("a reply of nobody", None, batch([11, 5, 0, [], None]), ["ERROR hello-first"]),
    Attack("a goodbye of nobody", None, batch([4, None]), ["ERROR hello-first"]),
    Attack("an error of nobody", None, batch([5, "overloaded", "x", 24, 1]), ["ERROR hello-first"]),
    Attack("an empty frame", None, [[b""]], ["ERROR malformed"]),
    Attack("a hundred empty frames", None, [[b""] * 100], ["ERROR malformed"]),
    Attack("an empty batch", None, batch(), ["ERROR malformed"]),
    Attack("JSON", None, [[b'[[1,1,"handler","eve",{}]]']], ["ERROR malformed"]),
    Attack("HELLO in no batch", None, [[bytes(msgpack.packb(HANDLER))]], ["ERROR malformed"]),
    Attack("what REQ sends", None, [[b"", pack(HANDLER)]], ["ERROR malformed"]),
    Attack("unreadable again and again", None, [[b"\xc1"]] * 50, ["ERROR malformed"]),
    # --- HELLO ---
    Attack("HELLO twice", HANDLER, batch(HANDLER, HANDLER), ["WELCOME"] * 2),
    Attack("HELLO as another", HANDLER, batch(BRIDGE), ["WELCOME"]),
    *(
        Attack(f"HELLO of version {version!r}", None, hello(version=version), ["ERROR version HELLO"])
        for version in (0, 2, -1, 2**53 - 1)
    ),
    *(
        Attack(f"HELLO of version {version!r}", None, hello(version=version), MALFORMED)
        for version in (2**53, 2**63, "1", None, True, 1.0)
    ),
    *(
        Attack(f"HELLO as {role[:20]!r}", None, hello(role=role), ["ERROR not-allowed HELLO"])
        for role in ("", "admin", "HANDLER", "handler\0", "x" * 100_000)
    ),
    *(
        Attack(f"HELLO as {role!r}", None, hello(role=role), MALFORMED)
        for role in (5, None, ["handler"], b"handler")
    ),
    *(
        Attack(f"HELLO of {str(name)[:20]!r} ({len(str(name))})", None, hello(name=name), MALFORMED)
        for name in NAMES
    ),
    *(
        Attack(f"HELLO with types {str(types)[:24]!r}", None, hello(types=types), MALFORMED)
        for types in (
            [], None, "echo", 5, [5], [None], [""], ["a,b"], [" a"], ["a\n"], ["a\x00"], ["x" * 129],
            [f"t{n}" for n in range(20_001)], {"a": 1},
        )
    ),
    *(
        Attack(f"HELLO with type {type_!r}", None, hello(types=["evil", type_]), ["ERROR reserved HELLO"])
        for type_ in ("dummy", "builtin", "bester.auth", "bester.")
    ),
    *(
        Attack(f"HELLO with credit {credit!r}", None, hello(credit=credit), MALFORMED)
        for credit in (0, -1, 2**40, 2**53, "8", None, True, 1.5, float("inf"), float("nan"), [8])
    ),
    *(
        Attack(f"HELLO with {key} {str(value)[:20]!r}", None, hello(**{key: value}), MALFORMED)
        for key, value in (
            ("lease_ms", -1), ("lease_ms", 2**53 - 1), ("lease_ms", "x"), ("order", []), ("order", {"evil": "nobody"}),
            ("order", {5: 5}), ("version", [[]]),
        )
    ),
    *(
        Attack(f"HELLO with {key} {str(value)[:20]!r}", None, hello(**{key: value}), ["WELCOME"])
        for key, value in (
            ("order", {"echo": "user"}), ("software", "x" * 100_000), ("schema", {"evil": {}}),
            ("unknown", {"a": [1] * 1000}),
        )
    ),
    Attack("HELLO whose options are no map", None, batch([1, 1, "handler", "eve", ["types"]]), ["ERROR malformed HELLO"]),
    Attack("HELLO that is too short", None, batch([1, 1]), ["ERROR malformed HELLO"]),
    Attack("HELLO with more fields", None, batch([*HANDLER, 1, [2], {"x": 3}]), ["WELCOME"]),
    # --- bytes ---
    Attack("no MessagePack", HANDLER, [[b"\xc1"], [b"\xff" * 100], [b"\x93\x01"]], ["ERROR malformed"] * 3),
    Attack("lengths that lie", HANDLER, [[b"\xdd\xff\xff\xff\xff"], [b"\xdf\xff\xff\xff\xff"], [b"\x91\xdb\xff\xff\xff\xffx"]], ["ERROR malformed"] * 3),
    Attack("lists 100,000 deep", HANDLER, [[b"\x91" * 100_000], [b"\x81" * 100_000]], ["ERROR malformed"] * 2),
    Attack("extension types", HANDLER, [[b"\x91\x92\x0e\xd6\xff\0\0\0\0"], [b"\x91\xc7\x0c\xff" + bytes(12)]], ["ERROR malformed ASK", "ERROR malformed"]),
    Attack("100,000 empty frames", HANDLER, [[pack([3]), *[b""] * 100_000]], ["ERROR malformed"]),
    Attack("1,025 messages", HANDLER, batch(*[[3]] * 1025), ["ERROR malformed"]),
    Attack("messages that are none", HANDLER, batch(1, None, "x", [], {}, [[]], ["1"], [None], [True], [1.0]), ["ERROR malformed"] * 10),
    Attack("ops that are none", HANDLER, batch([0], [-1], [6], [99], [2**53], [2**63]), ["ERROR unknown-op 0", "ERROR unknown-op -1", "ERROR unknown-op 6", "ERROR unknown-op 99", "ERROR unknown-op", "ERROR unknown-op"]),
    Attack("unknown tokens of MessagePack's largest", HANDLER, batch([11, 2**64 - 1, 0, []], [11, -(2**63), 0, []]), ["ERROR malformed REPLY"] * 2),
    Attack("half of a surrogate pair", HANDLER, batch([14, 1, "\ud800"]), ["ERROR malformed ASK 1"]),
    # --- a handler ---
    Attack("a reply to no request", HANDLER, batch([11, 1, 0, [], None], [11, 2**53 - 1, 0, [], None]), ["ERROR unknown-token REPLY 1", "ERROR unknown-token REPLY 9007199254740991"]),
    Attack("an emit of another's type", HANDLER, batch([12, 5, "echo", [], {}]), ["ERROR not-allowed EMIT 5"]),
    Attack("an emit of a reserved type", HANDLER, batch([12, 5, "bester.outcome", [], {}]), ["ERROR not-allowed EMIT 5"]),
    Attack("an unknown command", HANDLER, sends(["sendAll", ["alice"], b"1"]), ["OUTCOME 5 1 unknown-command"]),
    Attack("a command without a name", HANDLER, sends([None, ["alice"], b"1"]), ["ERROR malformed EMIT 5"]),
    Attack("a command that is none", HANDLER, sends("sendClients"), ["ERROR malformed EMIT 5"]),
    Attack("targets that are none", HANDLER, sends(["sendClients", [5, None, ["alice"]], b"1"]), ["ERROR malformed EMIT 5"]),
    Attack("10,001 targets", HANDLER, sends(["sendClients", ["nobody"] * 10_001, b"1"]), ["OUTCOME 5 1 bad-reply"]),
    Attack("a body that is no JSON", HANDLER, sends(["sendClients", ["nobody"], b"{"]), ["OUTCOME 5 1 bad-reply"]),
    Attack("a body that is no UTF-8", HANDLER, sends(["sendClients", ["nobody"], b'"\xff"']), ["OUTCOME 5 1 bad-reply"]),
    Attack("a body that is too deep", HANDLER, sends(["sendClients", ["nobody"], DEEP]), ["OUTCOME 5 1 bad-reply"]),
    Attack("a body of 17 MiB", HANDLER, batch([12, 5, "evil", [["sendClients", ["nobody"], 1]], {}], attached=(b'"' + b"x" * (17 << 20) + b'"',)), ["OUTCOME 5 1 bad-reply"]),
    Attack("an attachment that is not there", HANDLER, sends(["sendClients", ["nobody"], 1]), ["ERROR malformed EMIT 5"]),
    Attack("attachment 0", HANDLER, sends(["sendClients", ["nobody"], 0]), ["ERROR malformed EMIT 5"]),
    Attack("attachment -1", HANDLER, sends(["sendClients", ["nobody"], -1]), ["ERROR malformed EMIT 5"]),
    Attack("a handler that is not there", HANDLER, sends(["sendHandler", ["nobody"], b"1"]), ["OUTCOME 5 1 unknown-type"]),
    Attack("two handlers", HANDLER, sends(["sendHandler", ["echo", "chat"], b"1"]), ["OUTCOME 5 1 bad-reply"]),
    Attack("servers that are none", HANDLER, sends(["sendServers", ["", "x" * 1000, ":", "[:1", "a:b:c", "h:99999", "/etc/passwd"], b"1"]), ["OUTCOME 5 1 unreachable"]),
    Attack("a question of nobody's", HANDLER, batch([14, 7, "passwords"], [14, 8, "deadDrop", {}], [14, 9, "isClient", ["a"]]), ["ANSWER 7 1", "ANSWER 8 1", "ANSWER 9 1"]),
    Attack("a name of a megabyte", HANDLER, batch([14, 7, "isClient", "x" * 1_000_000]), ["ANSWER 7 0 False"]),
    *(
        Attack(f"{OPS[row[0]]} of a handler", HANDLER, batch(row), [f"ERROR unknown-op {OPS[row[0]]}"])
        for row in OTHERS
    ),
    # --- a bridge ---
    Attack("sessions that are not its own", BRIDGE, batch(*([23, n] for n in range(-5, 200))), []),
    Attack("a message of no session", BRIDGE, batch([24, 5, 77, "echo", b"1", {}], [24, 6, -1, "echo", b"1", {}]), ["REPORT 5 1 not-allowed", "REPORT 6 1 not-allowed"]),
    Attack("confirmations of what was not delivered", BRIDGE, batch([27, 2**53 - 1, [1, 2, 3], [[1, 0, "x"], [2], "x"], 2**53 - 1]), ["ERROR malformed CONFIRM 9007199254740991"]),
    Attack("reports on what was not asked", BRIDGE, batch([25, 1, 0, None, "s1/x/1", {}], [33, 1, "delivered", {}]), ["ERROR unknown-op REPORT"]),
    Attack("names of a megabyte", BRIDGE, batch([22, 1, "x" * 1_000_000]), ["CLOSE 1"]),
    Attack("an empty name", BRIDGE, batch([22, 1, ""]), []),
    Attack("a session that is opened twice", BRIDGE, batch([22, 1, "mallory"], [22, 1, "trudy"], [23, 1], [23, 1]), []),
    Attack("a meta of everything", BRIDGE, batch([22, 1, "eve"], [24, 5, 1, "none", b"1", {"ttl_s": "x", "dedup": [], "attempt": -5, "outcome": 5}]), ["REPORT 5 1 unknown-type"]),
    Attack("commands of a bridge", BRIDGE, batch([11, 1, 0, []], [12, 1, "echo", []]), ["ERROR unknown-op REPLY", "ERROR unknown-op EMIT"]),
    # --- a server, and an operator ---
    Attack("a server that nobody listed", None, hello("server", "eve"), ["ERROR not-allowed HELLO"]),
    Attack("a server that says it is this one", None, hello("server", "s1"), ["ERROR not-allowed HELLO"]),
    Attack("a type that is reserved", SERVER, batch([30, 5, "bester.auth", b"1", {}], [30, 6, "builtin", b"1", {}]), ["RELAYED 5 failed:reserved", "RELAYED 6 failed:reserved"]),
    Attack("a type of 100,000 characters", SERVER, batch([30, 5, "x" * 100_000, b"1", {"id": "s2/x/1"}]), ["RELAYED 5 failed:unknown-type"]),
    Attack("outcomes of others' messages", SERVER, batch([30, 5, "bester.outcome", b'{"message":5}', {}], [30, 6, "bester.outcome", b"[]", {}]), ["RELAYED 5 failed:malformed", "RELAYED 6 failed:malformed"]),
    Attack("a lane that is none", SERVER, batch([30, 5, "none", b"1", {"lane": [5, "x", None], "path": ["x"] * 1000}]), ["RELAYED 5 failed:too-many-hops"]),
    Attack("a body that is no JSON, of a server", SERVER, batch([30, 5, "echo", b"{", {}], [30, 6, "echo", DEEP, {}]), ["RELAYED 5 failed:malformed", "RELAYED 6 failed:malformed"]),
    Attack("an answer to no relay", SERVER, batch([31, 5, "delivered", {}]), ["ERROR unknown-op RELAYED"]),
    Attack("a question of a server", SERVER, batch([14, 5, "listClients"]), ["ERROR unknown-op ASK"]),
    Attack("arguments that are none", OPERATOR, batch(*([14, n, "deadDrop", argument] for n, argument in enumerate((5, [], "x" * 100_000, {"id": 5}, {"type": []}, {"limit": -1}))), [14, 9, "deadShow", {}], [14, 10, "deadReplay", [1]]), ["ANSWER 0 1", "ANSWER 1 1", "ANSWER 2 1", "ANSWER 3 1", "ANSWER 4 1", "ANSWER 5 1", "ANSWER 9 1", "ANSWER 10 1"]),
]
# fmt: on


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in ATTACKS])
async def test_attack_harms_nobody(server: LiveServer, attack: Attack) -> None:
    async with attacker(server, attack.hello) as eve:
        for frames in attack.sends:
            await eve.send_frames(*frames)
        if attack.hello is None:
            assert await eve.ask_last(HANDLER) == [*attack.hears, "WELCOME"]
        elif attack.hello[2] == "server":  # a server may ask no questions
            assert await eve.ask_last(OPERATOR) == [*attack.hears, "WELCOME"]
        else:
            assert await eve.ask_last() == attack.hears
    await all_is_well(server)


# --- every field of every operation ---

ROWS: dict[str, list[list[Any]]] = {
    "handler": [HANDLER, [4, "x"], [5, "x", "y", 1, 2], [11, 5, 0, [["sendClients", ["a"], b"1", "t"]], "n"],
                [12, 5, "evil", [["sendClients", ["nobody"], b"1"]], {}], [14, 5, "isClient", "a"]],
    "bridge": [BRIDGE, [20, 900, "eve", "p", "10.0.0.9"], [22, 900, "eve"], [23, 900], [24, 5, 900, "none", b"1", {}],
               [27, 0, [0], [[0, 0, "x"]], 0], [33, 5, "delivered", {}]],
    "server": [SERVER, [30, 5, "none", b"1", {"id": "s2/x/1"}]],
    "operator": [OPERATOR, [14, 5, "deadList", {"type": "none", "limit": 5}]],
}  # fmt: skip
HELLOS = {"handler": HANDLER, "bridge": BRIDGE, "server": SERVER, "operator": OPERATOR}
WRONG: list[Any] = [None, True, -1, 0, 2**53, 2**64 - 1, 1.5, float("nan"), "", "x" * 3000, "\ud800", "a\0b", b"", b"\xff" * 3000, [], [[]],
         {}, {"": {}}, {5: 5}, [None] * 200]  # fmt: skip


def wrong_rows(role: str) -> Iterator[list[Any]]:
    """Yield each operation with each of its fields replaced by each wrong value, or cut off before the field."""
    for row in ROWS[role]:
        for index in range(1, len(row)):
            if row[0] == 4:
                continue  # operations after a goodbye are tested elsewhere
            yield row[:index]
            yield from ([*row[:index], wrong, *row[index + 1 :]] for wrong in WRONG)


@pytest.mark.parametrize("role", ROWS)
async def test_wrong_values_in_every_field_of_every_operation_harm_nobody(server: LiveServer, role: str) -> None:
    async with attacker(server, HELLOS[role]) as eve:
        for row in wrong_rows(role):
            await eve.send_frames(pack(row))
        answers = await eve.ask_last(HELLOS[role], OPERATOR)
        refused = [line for line in answers if line.startswith("ERROR")]
        assert len(refused) > len(ROWS[role]) * len(WRONG) / 2
        assert {line.split()[1] for line in refused} <= {
            "malformed", "unknown-op", "unknown-token", "not-allowed", "version", "reserved",
        }  # fmt: skip
    await all_is_well(server)


# --- those that need more than one message ---


NUMBERS = count()


@asynccontextmanager
async def asked(server: LiveServer) -> AsyncIterator[tuple[Attacker, RawClient, int]]:
    """Yield an attacker that has been given a request, the request's sender, and its token. The type is one that nobody
    else serves: a former attacker that went without a word is not taken for dead at once."""
    type_ = f"evil{next(NUMBERS)}"
    async with attacker(server, [1, 1, "handler", "eve", {"types": [type_], "credit": 8}]) as eve:
        mallory = await RawClient.login(server, "mallory")
        mallory.submit(type_, 1, "m")
        yield eve, mallory, (await eve.hear(10))[1]
        await mallory.close()


@pytest.mark.parametrize(
    "commands",
    [None, 5, "x", [5], [[]], [["sendClients"]], [["sendClients", "bob", b"1"]], [["sendAll", [], b"1"]],
     [["sendHandler", [], b"1"]], [["sendClients", ["bob"], b"{"]], [["sendClients", ["bob"], 7]],
     [["sendClients", ["bob"], DEEP]], [["sendClients", ["x"] * 10_001, b"1"]], [["sendClients", [None], b"1"]]],
    ids=lambda commands: str(commands)[:40],
)  # fmt: skip
async def test_a_reply_of_nonsense_ends_its_own_request_alone(server: LiveServer, commands: Any) -> None:
    async with asked(server) as (eve, mallory, token):
        await eve.say([11, token, 0, commands, None])
        report, _ = await mallory.until_report("m")
        assert report["payload"]["reason"] in ("bad-reply", "unknown-command")
    await all_is_well(server)


async def test_second_or_foreign_answer_changes_nothing(server: LiveServer) -> None:
    async with asked(server) as (eve, mallory, token), attacker(server, HANDLER) as trudy:
        guesses = [[11, guess, 0, [["sendClients", ["bob"], b"1"]], None] for guess in range(token - 50, token + 50)]
        assert await trudy.ask_last(*guesses) == [f"ERROR unknown-token REPLY {guess[1]}" for guess in guesses]
        answer = [11, token, 0, [["sendClients", ["mallory"], b"2"]], None]
        answers = await eve.ask_last(answer, answer, [11, token, 1, [], "x"])
        assert answers == [f"ERROR unknown-token REPLY {token}"] * 2
        report, before = await mallory.until_report("m")
        assert report["header"]["status"] == "good"
        assert [frame["payload"]["data"] for frame in before] == [2]
    await all_is_well(server)


async def test_links_of_one_routing_id_harm_each_other_alone(server: LiveServer) -> None:
    async with asked(server) as (eve, mallory, token):
        twins = [Attacker(server, b"twin"), Attacker(server, b"twin")]
        try:
            for twin in twins:
                await twin.say(HANDLER)
            await all_is_well(server)
        finally:
            for twin in twins:
                twin.close()
        await eve.say([11, token, 0, [], None])
        assert (await mallory.until_report("m"))[0]["header"]["status"] == "good"
    await all_is_well(server)


@pytest.mark.parametrize(
    "data",
    [b"", b"\0", b"GET / HTTP/1.1\r\n\r\n", b"\xff" + bytes(8) + b"\x7f", b"\xff" + bytes(8) + b"\x7f\3\0NULL" + b"\xff" * 200,
     bytes(1_000_000), b"\xff" * 1_000_000, b"\xff" + bytes(8) + b"\x7f\3\0CURVE" + bytes(47) + b"\4\xff\x05READY" + b"\xff" * 99],
    ids=lambda data: f"{data[:12]!r} {len(data)}",
)  # fmt: skip
async def test_peer_without_zeromq_is_cut_off(server: LiveServer, data: bytes) -> None:
    for _ in range(20):
        reader, writer = await asyncio.open_unix_connection(server.fabric.removeprefix("ipc://"))
        writer.write(data)
        writer.close()
        try:
            await writer.wait_closed()
        except OSError:
            pass
        del reader
    await all_is_well(server)


async def test_links_that_come_and_go_leave_nothing_behind(server: LiveServer) -> None:
    context = zmq.asyncio.Context()
    for number in range(300):
        link = context.socket(zmq.DEALER)
        link.linger = 0
        link.connect(server.fabric)
        await link.send(pack([1, 1, "handler", f"n{number}", {"types": [f"n{number}"]}], [3], [4, "bye"]))
        link.close()
    context.term()
    await all_is_well(server)


@pytest.mark.parametrize("kind", [zmq.REQ, zmq.ROUTER, zmq.PUB, zmq.SUB, zmq.PUSH, zmq.PAIR])
async def test_other_kinds_of_sockets_harm_nobody(server: LiveServer, kind: int) -> None:
    context = zmq.asyncio.Context()
    link = context.socket(kind)
    link.linger = 0
    link.connect(server.fabric)
    if kind not in (zmq.SUB, zmq.ROUTER):
        link.setsockopt(zmq.SNDTIMEO, 100)
        try:
            await link.send(pack(HANDLER))
        except zmq.Again:
            pass
    await all_is_well(server)
    link.close()
    context.term()


async def test_leaving_handler_with_a_thousand_requests_harms_nobody(server: LiveServer) -> None:
    """Check a handler that leaves with all the requests that its credit allows."""
    async with attacker(server, [1, 1, "handler", "eve", {"types": ["held"], "credit": 1000}]) as eve:
        mallory = await RawClient.login(server, "mallory")
        for number in range(1000):
            mallory.submit("held", number, str(number))
        for _ in range(1000):
            await eve.hear(10)
        await all_is_well(server)
        await eve.say([4, "bye"])
        await eve.hear(4)
        await all_is_well(server)
    async with attacker(server, [1, 1, "handler", "heir", {"types": ["held"], "credit": 1000}]) as heir:
        await all_is_well(server)
        for _ in range(1000):  # nothing is lost with eve, and nothing is left for the server's end to wait for
            request = await heir.hear(10)
            await heir.say([11, request[1], 0, [], None])
        await mallory.close()
    await all_is_well(server)
