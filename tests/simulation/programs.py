"""Programs for the simulation's handlers: each message carries its own, so that all its results are known beforehand.

A body is `{"n": number, "at": where in the tree, "do": program}`; a program is a list of steps:
    ["clients", users]                 ["servers", names, type, program]        ["handler", type, program]
    ["fail"]  the handler says that it failed        ["bad"]  its reply makes no sense
    ["die"]   the handler's process ends over it, each time
    ["loop"]  itself again        ["ring"]  the same at the next server, and so on round
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import msgspec

from bester.broker.wire.messages import Command

NATIVE, MUTE = "n1", "n2"
"""Servers of the native protocol: neither runs a message's program, and the second never reports."""
NATIVES = (NATIVE, MUTE)

LIARS = 1_000_000
"""Numbers from here on are those of a server's messages that lies about everything but the message itself."""

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder().decode

Step = list[Any]
Program = list[Step]
Leaf = tuple[str, str, bytes]
"""A (server, user, body) that must arrive; the user of a native server's leaf is empty."""


def body_of(number: int, at: str, program: Program) -> bytes:
    """Return the body that carries this program."""
    return _encode({"n": number, "at": at, "do": program})


def read(body: bytes) -> tuple[int, str, Program]:
    """Return number, place and program of a body."""
    fields = _decode(body)
    return fields["n"], fields["at"], fields["do"]


def is_liars(body: bytes) -> bool:
    """Return whether a body is that of a lying server's message."""
    return read(body)[0] >= LIARS


def commands(body: bytes, type_: str, next_server: str) -> list[Command] | None:
    """Return the commands that a sound handler of this type answers with; None: the handler failed."""
    number, at, program = read(body)
    reply: list[Command] = []
    for place, step in enumerate(program):
        here = f"{at}.{place}"
        match step:
            case ["clients", users]:
                reply.append(Command("sendClients", list(users), body_of(number, here, [])))
            case ["servers", names, as_type, inner]:
                reply.append(Command("sendServers", list(names), body_of(number, here, inner), as_type))
            case ["handler", target, inner]:
                reply.append(Command("sendHandler", [target], body_of(number, here, inner)))
            case ["loop"]:
                reply.append(Command("sendHandler", [type_], body))
            case ["ring"]:
                reply.append(Command("sendServers", [next_server], body))
            case ["bad"]:
                reply.append(Command("sendAll", [], b"1"))
            case _:
                return None
    return reply


def leaves(server: str, body: bytes) -> Iterator[Leaf]:
    """Yield all that must be delivered where everything goes well."""
    for _, leaf in named_leaves(server, body, deep=True):
        yield leaf


def named_leaves(server: str, body: bytes, *, deep: bool) -> Iterator[tuple[str, Leaf]]:
    """Yield leaves with the recipient they are reported under.

    Not `deep`: only those whose own outcome is certain by that name, because no handler of this server is between.
    """
    number, at, program = read(body)
    for place, step in enumerate(program):
        here = f"{at}.{place}"
        match step:
            case ["clients", users]:
                for user in users:
                    yield user, (server, user, body_of(number, here, []))
            case ["servers", names, _, inner]:
                for name in names:
                    if name in NATIVES:
                        yield name, (name, "", body_of(number, here, inner))
                    elif deep or name != server:
                        yield from ((name, leaf) for leaf in leaves(name, body_of(number, here, inner)))
            case ["handler", target, inner] if deep:
                yield from ((target, leaf) for leaf in leaves(server, body_of(number, here, inner)))


def reported_leaves(server: str, body: bytes) -> Iterator[tuple[str, Leaf]]:
    """Yield all leaves with the recipient that their own server reports them under.

    A message that a handler passes on at home is reported under the names that the last handler there used.
    """
    number, at, program = read(body)
    for place, step in enumerate(program):
        here = f"{at}.{place}"
        match step:
            case ["clients", users]:
                for user in users:
                    yield user, (server, user, body_of(number, here, []))
            case ["servers", names, _, inner]:
                for name in names:
                    if name == server:
                        yield from reported_leaves(server, body_of(number, here, inner))
                    elif name in NATIVES:
                        yield name, (name, "", body_of(number, here, inner))
                    else:
                        yield from ((name, leaf) for leaf in leaves(name, body_of(number, here, inner)))
            case ["handler", _, inner]:
                yield from reported_leaves(server, body_of(number, here, inner))


def steps(program: Program) -> Iterator[Step]:
    """Yield every step of a program that is taken at servers of the simulation, inner ones too."""
    for step in program:
        yield step
        if step[0] == "handler" or (step[0] == "servers" and not set(step[1]) <= set(NATIVES)):
            yield from steps(step[-1])


def invent(random: Random, users: list[str], servers: list[str], types: list[str], depth: int = 0) -> Program:
    """Make up a program, simple ones mostly."""
    program: Program = []
    for _ in range(random.choice((0, 1, 1, 1, 1, 2, 3))):
        kind = random.random()
        if kind < 0.55 or depth > 3:
            program.append(["clients", random.choices(users, k=random.choice((1, 1, 2, 3)))])
        elif kind < 0.78:
            names = random.choices(servers, k=random.choice((1, 1, 1, 2)))
            program.append(["servers", names, random.choice(types), invent(random, users, servers, types, depth + 1)])
        elif kind < 0.95:
            program.append(["handler", random.choice(types), invent(random, users, servers, types, depth + 1)])
    if random.random() < 0.04:
        program.append([random.choice(("fail", "bad", "loop", "ring"))])
    elif depth < 2 and random.random() < 0.04:
        program = [["die"]]
    return program


def kills(body: bytes) -> bool:
    """Return whether this message kills the handler that takes it."""
    return ["die"] in read(body)[2]


ENDLESS = ("loop", "ring")


def endless(body: bytes) -> bool:
    """Return whether only the bounds end a message."""
    return any(step[0] in ENDLESS for step in steps(read(body)[2]))
