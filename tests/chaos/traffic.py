"""What is sent in a chaos run: which type, to whom, with which text. Pure; the choices are the caller's `Random`'s.

A message's text follows from its number, so that whoever receives it can tell whether it is whole. Some messages are
poison: the process of whatever handler they are given to ends over them. They are sent in the middle of a burst, so
that it holds others.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

SERVERS = {"s1": ("ann", "amy", "art", "hal", "abe"), "s2": ("bob", "bea", "ben", "hub", "bud")}
"""The servers, and the users on each who receive."""
HERMITS = ("hal", "hub")
"""Of them, those who are away for long."""
SENDERS = {"s1": "sam", "s2": "sue"}
"""The user on each server who sends."""
NATIVES = {"n1": True, "n2": False}
"""Servers of the native protocol, and whether they report on what they are sent."""
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
"""What the sender says that a message may wait: less than hermits are away, or more than a run takes and far less than
clocks are set by."""
TTLS = {None: 14, SHORT_TTL_S: 3, LONG_TTL_S: 3}
COMPANY = (4, 30)
"""So many messages of other kinds surround poison, half of them before it: up to what fills a handler's hands."""


class Message(NamedTuple):
    """A message to be sent: `data` is for its handler, `targets` says who is to receive it, by the names in reports.
    `ttl_s`: how long it may wait, None where its sender says nothing of that."""

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
        # `pipe` and `far` themselves pass it on; whoever is next dies of it.
        data["poison"] = {"how": random.choice(WAYS_TO_DIE), "steps": 1 if type_ in ("pipe", "far") else 0}
        targets = {other: []} if type_ == "far" else {}
    return Message(number, type_, data, targets, ttl_s, kills)


def burst(number: int, server: str, random: Random) -> list[Message]:
    """Make up poison and its company; `number` is the first one's."""
    size = random.randint(*COMPANY)
    return [compose(number + n, server, random, kills=n == size // 2) for n in range(size)]
