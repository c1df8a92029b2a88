"""What is sent in a chaos run: which type, to whom, with which text. Pure; the choices are the caller's `Random`'s.

A message's text follows from its number, so that whoever receives it can tell whether it is whole.
"""

from __future__ import annotations

from random import Random
from typing import Any, NamedTuple

SERVERS = {"s1": ("ann", "amy", "art", "abe"), "s2": ("bob", "bea", "ben", "bud")}
"""The servers, and the users on each who receive."""
SENDERS = {"s1": "sam", "s2": "sue"}
"""The user on each server who sends."""
NUMBERS_A_LIFE = 1_000_000
"""Each life of a sending process numbers its messages from a multiple of this: no two are alike."""

TYPES = {"talk": 6, "slow": 2, "pipe": 2, "far": 3, "both": 2}
"""The message types and how often each is sent."""
SLOWEST_S = 0.4
"""The `slow` handler takes up to so long: long enough to be killed over a message, often."""
SIZES = {0: 4, 100: 10, 5_000: 2, 40_000: 1}
"""Bytes of text, and how often: the largest travel as attachments."""
MOST_RECIPIENTS = 3


class Message(NamedTuple):
    """A message to be sent: `data` is for its handler, `targets` says who is to receive it, by the names in reports."""

    number: int
    type: str
    data: dict[str, Any]
    targets: dict[str, list[str]]


def text_of(number: int) -> str:
    """Return the text of a message."""
    size = Random(number).choices(list(SIZES), list(SIZES.values()))[0]
    return (f"{number}. " * (size // 4 + 1))[:size]


def compose(number: int, server: str, random: Random) -> Message:
    """Make up a message that is sent at `server`."""
    (other,) = set(SERVERS) - {server}
    type_ = random.choices(list(TYPES), list(TYPES.values()))[0]
    near = random.sample(SERVERS[server], random.randint(1, MOST_RECIPIENTS))
    far = random.sample(SERVERS[other], random.randint(1, MOST_RECIPIENTS))
    data: dict[str, Any] = {"number": number, "text": text_of(number)}
    targets: dict[str, list[str]] = {}
    if type_ != "far":
        data["to"] = near
        targets |= {user: [user] for user in near}
    if type_ in ("far", "both"):
        data |= {"server": other, "there": far, "as": random.choice(("talk", "slow"))}
        targets[other] = far
    return Message(number, type_, data, targets)
