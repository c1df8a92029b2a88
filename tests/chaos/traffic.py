"""The traffic of a chaos run: types, recipients and texts. Pure; the choices are the caller's `Random`'s.

A message's text follows from its number, so that its receiver can tell whether the text is whole. Some messages are
poison: the process of each handler that they are given to ends over them. They are sent in the middle of a burst, so
that the handler holds others.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

SERVERS = {"s1": ("ann", "amy", "art", "hal", "abe"), "s2": ("bob", "bea", "ben", "hub", "bud")}
"""The servers, and the receiving users of each."""
HERMITS = ("hal", "hub")
"""Users who are away for long."""
SENDERS = {"s1": "sam", "s2": "sue"}
"""The sending user of each server."""
FLOODER = "flo"
"""A user of both servers, who floods them where that is asked for."""
NATIVES = {"n1": True, "n2": False}
"""Servers of the native protocol, and whether each reports on its messages."""
NUMBERS_A_LIFE = 1_000_000
"""Each life of a sending process numbers its messages from a multiple of this: no two are alike."""

TYPES = {"talk": 6, "slow": 2, "pipe": 2, "far": 3, "both": 2, "line": 3, "out": 4}
"""The message types and how often each is sent."""
DEADLY = {"talk": 2, "slow": 2, "pipe": 1, "far": 2, "both": 1, "line": 1}
"""The same of poison."""
ATTEMPTS = 3
"""As by default: so often a handler dies with a message alone in its hands before that is given up."""
WAYS_TO_DIE = ("kill", "exit", "fault")
SLOWEST_S = 0.4
"""The `slow` handler takes up to so long: long enough to be killed over a message, often."""
SIZES = {0: 4, 100: 10, 5_000: 2, 40_000: 1}
"""Bytes of text, and how often: the largest travel as attachments."""
MOST_RECIPIENTS = 3
SHORT_TTL_S, LONG_TTL_S = (2.0, 6.0), (3_600.0, 7_200.0)
"""Times to live in seconds: less than hermits are away, or more than a run takes and far less than the steps by which
clocks are set."""
TTLS = {None: 14, SHORT_TTL_S: 3, LONG_TTL_S: 3}
COMPANY = (4, 30)
"""Number of other messages that surround poison, half of them before the poison: up to a handler's credit."""


class Message(NamedTuple):
    """A message to be sent: `data` is for its handler, `targets` are the users to receive it, by the names in reports.
    `ttl_s`: how long the message may wait, None where its sender gives no time."""

    number: int
    type: str
    data: dict[str, Any]
    targets: dict[str, list[str]]
    ttl_s: float | None = None
    kills: bool = False


def text_of(number: int) -> str:
    """Return the text of a message."""
    size = Random(number).choices(list(SIZES), list(SIZES.values()))[0]
    return (f"{number}. " * (size // 4 + 1))[:size]


def compose(number: int, server: str, random: Random, *, kills: bool = False) -> Message:
    """Make up a message that is sent at `server`."""
    (other,) = set(SERVERS) - {server}
    table = DEADLY if kills else TYPES
    type_ = random.choices(list(table), list(table.values()))[0]
    near = random.sample(SERVERS[server], random.randint(1, MOST_RECIPIENTS))
    far = random.sample(SERVERS[other], random.randint(1, MOST_RECIPIENTS))
    ttl = random.choices(list(TTLS), list(TTLS.values()))[0]
    ttl_s = None if ttl is None or kills else random.uniform(*ttl)
    native = random.choice(list(NATIVES))
    data: dict[str, Any] = {"number": number, "text": text_of(number)}
    targets: dict[str, list[str]] = {}
    if type_ == "out":
        return Message(number, type_, data | {"native": native}, {native: [native]}, ttl_s)
    if type_ != "far":
        data["to"] = near
        targets |= {user: [user] for user in near}
    if type_ in ("far", "both"):
        data |= {"server": other, "there": far, "as": random.choice(("talk", "slow"))}
        targets[other] = far
    if kills:
        # handlers of `pipe` and `far` pass the poison on; the next handler dies of it
        data["poison"] = {"how": random.choice(WAYS_TO_DIE), "steps": 1 if type_ in ("pipe", "far") else 0}
        targets = {other: []} if type_ == "far" else {}
    return Message(number, type_, data, targets, ttl_s, kills)


def burst(number: int, server: str, random: Random) -> list[Message]:
    """Make up poison and its company; `number` is the first one's."""
    size = random.randint(*COMPANY)
    return [compose(number + n, server, random, kills=n == size // 2) for n in range(size)]
