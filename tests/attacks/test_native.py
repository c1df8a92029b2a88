# ruff: noqa: E501 (each attack is a row of a table, and a row is a line)
"""Attacks on the native protocol and on the informer: whatever a connection writes, or does not, is its own affair."""

from __future__ import annotations

import asyncio
import itertools
import json
import struct
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from tests.attacks.stand import HANDLERS, TOML, all_is_well, attacked, framed, heard_of, login, reset, unix_client
from tests.kernel_buffers import most_bytes_held, stop_reading
from tests.live import LAYOUTS, LiveServer, RawClient, live_server

AT_ONCE = 150
"""Connections without a login: fewer than any server has places for, also one that may open 1,024 descriptors."""


@pytest.fixture(scope="module", params=LAYOUTS)
def server(request: pytest.FixtureRequest) -> Iterator[LiveServer]:
    with attacked(request.param) as server:
        yield server


class Attack(NamedTuple):
    """The bytes to write, and the frames due: all frames where the list ends with `end`, else the first ones."""

    name: str
    writes: bytes
    hears: list[str]


def first(header: str, payload: str = "null") -> bytes:
    return framed(f'{{"header":{header},"payload":{payload}}}')


def auth(authentication: str, more: str = "") -> bytes:
    return first(f'{{"scope":"client","authentication":{authentication}{more}}}')


def message(type_: str = '"echo"', data: str = "1", id_: str = '"i"', more: str = "") -> bytes:
    return framed(f'{{"payload":{{"type":{type_},"data":{data},"id":{id_}{more}}}}}')


def command(type_: str, data: str = "null") -> bytes:
    return message('"builtin"', f'{{"command":{{"type":"{type_}","data":{data}}}}}')


NO = ["bad None malformed", "end"]
LARGE = ["bad None frame-too-large", "end"]
WHO = ["bad auth_special malformed", "end"]
WRONG = ["bad auth_special authentication-failed", "end"]
# fmt: off
STRANGERS = [
    Attack("length 0", struct.pack("<I", 0), NO),
    Attack("length 2^32-1", struct.pack("<I", 2**32 - 1), LARGE),
    Attack("a negative length", struct.pack("<i", -(2**31)), LARGE),
    Attack("a frame above a stranger's limit", struct.pack("<I", 4097), LARGE),
    Attack("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", LARGE),
    Attack("TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), LARGE),
    Attack("SSH", b"SSH-2.0-OpenSSH_9.6\r\n", LARGE),
    Attack("ZeroMQ", b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(300), NO),
    Attack("no JSON", framed("nonsense"), NO),
    Attack("an array", framed("[]"), NO),
    Attack("a string", framed('"x"'), NO),
    Attack("null", framed("null"), NO),
    Attack("garbage behind JSON", framed("{}x"), NO),
    Attack("a frame of NUL bytes", framed(bytes(100)), NO),
    Attack("UTF-16", framed(login()[4:].decode().encode("utf-16")), NO),
    Attack("a byte order mark", framed(b"\xef\xbb\xbf" + login()[4:]), NO),
    Attack("invalid UTF-8 in a name", framed(b'{"header":{"scope":"client","authentication":{"username":"\xff","password":"p"}}}'), NO),
    Attack("lists 2,000 deep", framed("[" * 2000), NO),
    Attack("a payload 1,500 deep", first("{}", "[" * 1500 + "]" * 1500), NO),
    Attack("no header", framed("{}"), WHO),
    Attack("a header that is null", first("null"), WHO),
    Attack("a header that is a list", first("[]"), WHO),
    Attack("a scope that is a number", first('{"scope":5}'), WHO),
    Attack("a scope that nobody has", first('{"scope":"admin"}'), WHO),
    Attack("no authentication", first('{"scope":"client"}'), WRONG),
    Attack("authentication that is a list", auth("[]"), WRONG),
    Attack("a name that is a number", auth('{"username":5,"password":"p"}'), WRONG),
    Attack("an empty name", auth('{"username":"","password":"p"}'), WRONG),
    Attack("no password", auth('{"username":"eve"}'), WRONG),
    Attack("an empty password", auth('{"username":"eve","password":""}'), WRONG),
    Attack("a password that is a list", auth('{"username":"eve","password":["p"]}'), WRONG),
    Attack("a NUL in a name", auth('{"username":"e\\u0000ve","password":"p"}'), WRONG),
    Attack("an escape sequence in a name", auth('{"username":"e\\u001b[2Jve","password":"p"}'), WRONG),
    Attack("half of a surrogate pair in a name", auth('{"username":"\\ud800","password":"p"}'), NO),
    Attack("a name of 129 characters", login("x" * 129), WRONG),
    Attack("a name of 3,000 characters", login("x" * 3000), WRONG),
    Attack("a scope twice", auth('{"username":"eve","password":"p"}', ',"scope":"server"'), NO),
    Attack("a server that nobody listed", first('{"scope":"server"}', '{"type":"echo","data":1,"id":"i"}'), ["bad i not-allowed", "end"]),
    Attack("a server that says it is a listed one", first('{"scope":"server","server":"s2","id":"s1/x/1"}', '{"type":"echo","data":1,"id":"i"}'), ["bad i not-allowed", "end"]),
    Attack("a server's reserved type", first('{"scope":"server"}', '{"type":"bester.auth","data":1,"id":"i"}'), ["bad i reserved", "end"]),
    Attack("a server without a type", first('{"scope":"server"}', '{"data":1,"id":"i"}'), ["bad i malformed", "end"]),
]
CLIENTS = [
    Attack("a second login", login("mallory"), ["bad None malformed"]),
    Attack("length 0 behind a login", struct.pack("<I", 0), NO),
    Attack("length 2^32-1 behind a login", struct.pack("<I", 2**32 - 1), LARGE),
    Attack("one byte too many", struct.pack("<I", (1 << 20) + 1), LARGE),
    Attack("no JSON behind a login", framed("{"), NO),
    Attack("an array behind a login", framed("[]"), NO),
    Attack("invalid UTF-8 in data", framed(b'{"payload":{"type":"echo","data":"\xff\xfe","id":"i"}}'), NO),
    Attack("data 65 deep", message(data="[" * 65 + "]" * 65), ["bad i malformed"]),
    Attack("data 100,000 deep", message(data="[" * 100_000 + "]" * 100_000), NO),
    Attack("data 100,000 deep without an end", framed('{"payload":{"type":"echo","data":' + '{"a":' * 100_000), NO),
    Attack("data that is half of a surrogate pair", message(data='"\\ud800"'), ["bad i malformed"]),
    Attack("a number of 100,000 digits", message(data="9" * 100_000), ["message", "good i"]),
    Attack("a number beyond all bounds", message(data="-1e999999"), ["message", "good i"]),
    Attack("keys that are there twice", message(data='{"a":1,"a":2}'), ["message", "good i"]),
    Attack("a type twice", message(more=',"type":"none"'), ["bad i unknown-type"]),
    Attack("NUL bytes in data", message(data='"a\\u0000b"'), ["message", "good i"]),
    Attack("an id that is a number", message(id_="5"), ["bad None malformed"]),
    Attack("an id that is a list", message(id_='["i"]'), ["bad None malformed"]),
    Attack("an id of 100,000 characters", message('"none"', id_=json.dumps("x" * 100_000)), ["bad LONG unknown-type"]),
    Attack("an id like the login's", message('"none"', id_='"auth_special"'), ["bad auth_special unknown-type"]),
    Attack("no type", framed('{"payload":{"data":1,"id":"i"}}'), ["bad i malformed"]),
    Attack("a type that is a number", message("5"), ["bad i malformed"]),
    Attack("no data", framed('{"payload":{"type":"echo","id":"i"}}'), ["bad i malformed"]),
    Attack("no payload", framed("{}"), ["bad None malformed"]),
    Attack("a payload that is a list", framed('{"payload":[]}'), ["bad None malformed"]),
    Attack("an empty type", message('""'), ["bad i unknown-type"]),
    Attack("a type of control characters", message('"a\\u0000\\u001b[2J\\n"'), ["bad i unknown-type"]),
    Attack("a type of 129 characters", message(json.dumps("x" * 129)), ["bad i unknown-type"]),
    Attack("a type of 100,000 characters", message(json.dumps("x" * 100_000)), ["bad i unknown-type"]),
    Attack("a reserved type", message('"bester.auth"'), ["bad i reserved"]),
    Attack("outcomes that are made up", message('"bester.outcome"', '{"message":"s1/x/1","outcome":"delivered"}'), ["bad i reserved"]),
    Attack("a time to live below zero", message(more=',"ttl_s":-1'), ["bad i malformed"]),
    Attack("a time to live of ages", message(more=',"ttl_s":1e300'), ["bad i malformed"]),
    Attack("a time to live that is a text", message(more=',"ttl_s":"5"'), ["bad i malformed"]),
    Attack("an empty key", message(more=',"dedup":""'), ["bad i malformed"]),
    Attack("a key of 65 characters", message(more=f',"dedup":"{"x" * 65}"'), ["bad i malformed"]),
    Attack("no command", message('"builtin"', "5"), ["bad i unknown-command"]),
    Attack("an unknown command", command("shutdown"), ["bad i unknown-command"]),
    Attack("a command that is a number", message('"builtin"', '{"command":{"type":5}}'), ["bad i unknown-command"]),
    Attack("what became of others' messages", command("outcome", '"s1/x/1"'), ["builtin i 1"]),
    Attack("what became of a number", command("outcome", "5"), ["bad i malformed"]),
    Attack("acknowledgements of a text", command("ack", '"s1/x/1"'), ["bad i malformed"]),
    Attack("2,000 acknowledgements", command("ack", json.dumps(["s1/x/1.0.0"] * 2000)), ["bad i malformed"]),
    Attack("acknowledgements of nothing that came", command("ack", '["s1/x/1.0.0","\\u0000"]') + message('"none"'), ["bad i unknown-type"]),
    Attack("a message behind a close", command("close") + message() * 100, ["end"]),
    Attack("ten thousand pings", message('"dummy"') * 10_000, ["dummy i 0"] * 10_000),
    Attack("ten thousand messages", message('"none"') * 10_000, ["bad i unknown-type"] * 10_000),
    Attack("a thousand questions", command("outcome", '"s1/x/1"') * 1_000, ["builtin i 1"] * 1_000),
]
# fmt: on


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in STRANGERS])
async def test_a_stranger_harms_nobody(server: LiveServer, attack: Attack) -> None:
    await tried(server, attack.writes, attack.hears)


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in CLIENTS])
async def test_a_client_harms_nobody(server: LiveServer, attack: Attack) -> None:
    await tried(server, login() + attack.writes, ["good auth_special", *attack.hears])


async def tried(server: LiveServer, writes: bytes, hears: list[str]) -> None:
    client = await RawClient.connect(server)
    try:
        client.writer.write(writes)
        ends = hears[-1] == "end"
        assert await heard_of(client, None if ends else len(hears)) == hears
        if not ends:  # and the connection is good for more
            client.submit("echo", "more", "again")
            report, before = await client.until_report("again")
            assert report["header"]["status"] == "good"
            assert [frame["payload"]["data"] for frame in before] == ["more"]
    finally:
        await client.close()
    await all_is_well(server)


# --- those that come and go ---

GOES = {
    "without a word": b"",
    "in a header": b"\x05\x00",
    "in a frame": struct.pack("<I", 500) + b'{"header"',
    "behind a login": login("gone"),
    "in a message": login("gone") + message()[:30],
    "with a thousand messages on their way": login("gone") + message() * 1000,
    "with a thousand messages for one who is away": login("gone")
    + message('"chat"', '{"to":["gone","nobody"],"text":"x"}') * 1000,
    "with large messages on their way": login("gone") + message(data=json.dumps("x" * 100_000)) * 20,
}


@pytest.mark.parametrize("how", ["end", "reset"])
@pytest.mark.parametrize("writes", [pytest.param(writes, id=name) for name, writes in GOES.items()])
async def test_leaving_client_harms_nobody(server: LiveServer, writes: bytes, how: str) -> None:
    for _ in range(10):
        client = await RawClient.connect(server)
        client.writer.write(writes)
        if how == "reset":
            reset(client)
        await client.close()
    await all_is_well(server)


async def test_a_login_byte_by_byte_is_a_login(server: LiveServer) -> None:
    client = await RawClient.connect(server)
    for byte in login("patient") + message():
        client.writer.write(bytes((byte,)))
        await client.writer.drain()
    assert await heard_of(client, 3) == ["good auth_special", "message", "good i"]
    await client.close()


async def test_slow_header_ends_with_an_error_and_holds_up_nobody(server: LiveServer) -> None:
    slow = [await RawClient.connect(server) for _ in range(AT_ONCE)]
    for client in slow:
        client.writer.write(b"\x05")
    await all_is_well(server)
    assert [await heard_of(client) for client in slow] == [["bad auth_special timeout", "end"]] * AT_ONCE
    for client in slow:
        await client.close()


async def test_a_storm_of_logins_is_answered_to_the_last(server: LiveServer) -> None:
    storm = [await RawClient.connect(server) for _ in range(AT_ONCE)]
    for client in storm:
        client.writer.write(login("storm"))
    await all_is_well(server)
    assert [await heard_of(client, 1) for client in storm] == [["good auth_special"]] * AT_ONCE
    for client in storm:
        reset(client)
        await client.close()
    await all_is_well(server)


async def test_client_that_does_not_read_holds_up_nobody(server: LiveServer) -> None:
    deaf = await RawClient.connect(server, narrow=True)
    stop_reading(deaf.writer)
    echo = message(data=json.dumps("x" * 50_000))
    deaf.writer.write(login("deaf") + echo * (400 + most_bytes_held() // len(echo)))
    unsent = [deaf.writer.transport.get_write_buffer_size(), 0]
    while unsent[0] != unsent[1]:  # until the server reads no more from deaf
        await all_is_well(server)
        unsent = [deaf.writer.transport.get_write_buffer_size(), unsent[0]]
    assert unsent[0] > 400 * 50_000 // 2
    reset(deaf)
    await deaf.close()
    await all_is_well(server)


async def test_parked_frames_make_way_for_honest_ones(server: LiveServer) -> None:
    parked = [await RawClient.login(server, "mallory") for _ in range(100)]
    writes = []
    for client in parked:
        client.writer.write(struct.pack("<I", 1_000_000) + b"x" * 999_000)
        writes.append(asyncio.create_task(heard_of(client)))
    alice = await RawClient.login(server, "alice")
    for number in range(3):
        alice.submit("echo", "y" * 900_000, f"large{number}")
        report, _ = await alice.until_report(f"large{number}")
        assert report["header"]["status"] == "good", report
    least = (100 * 999_000 - 64 * 1024 * 1024) // 999_000  # what cannot be held, whatever the others do
    for heard in itertools.islice(asyncio.as_completed(writes), least):
        assert await heard == ["bad None overloaded", "end"]
    await server.processes[0].says("connection of mallory at 127.0.0.1 ended: too many frames are unfinished")
    await all_is_well(server)
    for client in (*parked, alice):
        reset(client)
        await client.close()
    await asyncio.gather(*writes)
    await all_is_well(server)


@pytest.mark.parametrize("layout", LAYOUTS)
async def test_strangers_take_no_places_of_the_honest(layout: str) -> None:
    async with live_server(TOML, layout, HANDLERS, native="max_connections = 280") as server:
        early = await RawClient.login(server, "early")
        strangers = []
        for number in range(600):
            strangers.append(client := await RawClient.connect(server))
            if number % 2:
                client.writer.write(login("stranger")[:-5])
        await all_is_well(server)
        assert await heard_of(strangers[0]) == ["bad auth_special overloaded", "end"]
        await server.processes[0].says("cut: it sent no login, and made way for a new connection")
        early.submit("echo", 1, "i")
        report, _ = await early.until_report("i")
        assert report["header"]["status"] == "good"
        for client in (*strangers, early):
            reset(client)
            await client.close()
        await all_is_well(server)


# --- the informer ---

QUESTION = framed('{"command":{"type":"listClients"}}')
# fmt: off
INFORMER = [
    Attack("nothing", b"", []),
    Attack("an empty frame", framed(""), ["1"]),
    Attack("no JSON", framed("nonsense"), ["1"]),
    Attack("lists 20,000 deep", framed("[" * 20_000), ["1"]),
    Attack("invalid UTF-8", framed(b'{"command":{"type":"\xff"}}'), ["1"]),
    Attack("no command", framed("{}"), ["1"]),
    Attack("a command that is a list", framed('{"command":[]}'), ["1"]),
    Attack("a question that is a number", framed('{"command":{"type":5}}'), ["1"]),
    Attack("a question of 60,000 characters", framed(json.dumps({"command": {"type": "x" * 60_000}})), ["1"]),
    Attack("an argument that is a list", framed('{"command":{"type":"isClient","data":["eve"]}}'), ["1"]),
    Attack("an operator's question", framed('{"command":{"type":"deadDrop","data":{}}}'), ["1"]),
    Attack("five thousand questions", QUESTION * 5_000, ["0"] * 5_000),
]
# fmt: on


@pytest.mark.parametrize("attack", [pytest.param(attack, id=attack.name) for attack in INFORMER])
async def test_an_asker_harms_nobody(server: LiveServer, attack: Attack) -> None:
    async with unix_client(server.directory / "informer.sock") as asker:
        asker.writer.write(attack.writes)
        assert [(await asker.receive())["status"] for _ in attack.hears] == attack.hears
        asker.writer.write(QUESTION)
        assert (await asker.receive())["status"] == "0"
    await all_is_well(server)


@pytest.mark.parametrize("length", [64 * 1024 + 1, 2**31, 2**32 - 1])
async def test_a_question_that_is_too_long_ends_the_connection(server: LiveServer, length: int) -> None:
    async with unix_client(server.directory / "informer.sock") as asker:
        asker.writer.write(struct.pack("<I", length))
        assert await asker.at_end()
    await all_is_well(server)


async def test_askers_that_do_not_read_or_only_come_hold_up_nobody(server: LiveServer) -> None:
    path = str(server.directory / "informer.sock")
    for _ in range(3):
        askers = [await asyncio.open_unix_connection(path) for _ in range(70)]  # more than the server has places
        for _, writer in askers:
            writer.write(QUESTION * 200)
        await all_is_well(server)
        for _, writer in askers:
            writer.transport.abort()
