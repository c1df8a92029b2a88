"""Outcome of one attempt to connect, from the events of its socket: why there is no link, in a sentence. Pure."""

from __future__ import annotations

import math
from enum import Enum
from typing import Literal

UNKNOWN_THERE = "does not know our key"
OTHER_THAN_LISTED = "that is not the key of"
CUT_SHORT = "is ended in the handshake"
"""Words of a reason that may be a wrong key: a later attempt tells."""
MOST_TOLD = 16
"""Reasons remembered of one link; attempts that fail for more reasons than these in turn are told of more often."""


def is_of_keys(why: str) -> bool:
    """Return whether a reason for which there is no link is a wrong key, of either side."""
    refused = why.startswith("refused: ") and " key " in why
    return UNKNOWN_THERE in why or OTHER_THAN_LISTED in why or refused


class Told:
    """Reasons for which one link is lost that are in the log already. A reason is logged again after `again_s`, and not
    where others came in between: a name server that hangs gives two reasons in turn."""

    def __init__(self, again_s: float = math.inf) -> None:
        self._again_s = again_s
        self._at: dict[str, float] = {}

    def is_due(self, why: str, now: float = 0.0) -> bool:
        """Return whether a reason is to be logged, and count it as logged then."""
        if why in self._at and now - self._at[why] < self._again_s:
            return False
        if len(self._at) >= MOST_TOLD:
            self._at.clear()
        self._at[why] = now
        return True

    def clear(self) -> None:
        """Forget all reasons: there is a link."""
        self._at.clear()


class Found(Enum):
    SILENT = "silent"  # no answer at all to the attempt to connect
    REFUSED = "refused"  # no program listens there
    FORBIDDEN = "forbidden"  # the socket's file is not for this user
    OPEN = "open"  # connected; no handshake yet
    SECURED = "secured"  # the handshake is complete
    CUT = "cut"  # the other side has ended the connection in the handshake
    HELD_OFF = "held off"  # the other side has cut us for what we sent, and lets us in later
    UNKNOWN_KEY = "unknown key"  # the other side does not know our key
    OTHER_KEY = "other key"  # the other side has another key than the one configured
    OTHER_SECURITY = "other security"  # only one of the sides encrypts
    FOREIGN = "foreign"  # no ZeroMQ


Event = Literal[
    "connected",
    "refused",
    "forbidden",
    "secured",
    "ended",
    "cut",
    "auth",
    "held off",
    "mechanism",
    "protocol",
    "curve",
    "foreign",
]

# State of knowledge after an event. An event that is not listed changes nothing.
#
#   event      connected  the transport is connected
#              refused    nothing listens there
#              forbidden  this user may not open the socket's file
#              secured    the handshake is complete
#              ended      the connection has ended after the handshake, or before any
#              cut        the connection was ended within the handshake
#              auth       the other side has refused our key
#              held off   the other side lets us in later
#              mechanism  the other side has another security mechanism
#              protocol   the handshake broke the protocol
#              curve      after `cut`: what listens there says that it speaks CURVE
#              foreign    after `cut`: what listens there does not greet as ZeroMQ does
FINDINGS: dict[tuple[Found, Event], Found] = {
    (Found.SILENT, "connected"): Found.OPEN,
    (Found.REFUSED, "connected"): Found.OPEN,
    (Found.FORBIDDEN, "connected"): Found.OPEN,
    (Found.CUT, "connected"): Found.CUT,
    (Found.SILENT, "refused"): Found.REFUSED,
    (Found.CUT, "refused"): Found.REFUSED,
    (Found.FORBIDDEN, "refused"): Found.REFUSED,
    (Found.SILENT, "forbidden"): Found.FORBIDDEN,
    (Found.REFUSED, "forbidden"): Found.FORBIDDEN,
    (Found.CUT, "forbidden"): Found.FORBIDDEN,
    (Found.OPEN, "secured"): Found.SECURED,
    (Found.CUT, "secured"): Found.SECURED,
    (Found.OPEN, "ended"): Found.FOREIGN,
    (Found.SECURED, "ended"): Found.SILENT,
    (Found.OPEN, "cut"): Found.CUT,
    (Found.OPEN, "auth"): Found.UNKNOWN_KEY,
    (Found.CUT, "auth"): Found.UNKNOWN_KEY,
    (Found.OPEN, "held off"): Found.HELD_OFF,
    (Found.CUT, "held off"): Found.HELD_OFF,
    (Found.OPEN, "mechanism"): Found.OTHER_SECURITY,
    (Found.CUT, "mechanism"): Found.OTHER_SECURITY,
    (Found.OPEN, "protocol"): Found.FOREIGN,
    (Found.CUT, "protocol"): Found.FOREIGN,
    (Found.CUT, "curve"): Found.OTHER_KEY,
    (Found.CUT, "foreign"): Found.FOREIGN,
}
FINAL = frozenset({Found.HELD_OFF, Found.UNKNOWN_KEY, Found.OTHER_KEY, Found.OTHER_SECURITY, Found.FOREIGN})
"""After these no answer comes on this socket, however long it is waited for."""


class Attempt:
    """Attempt of one socket to connect.

    `called` is the other side's name for people. `own` and `other` are the public keys of an encrypted link, None where
    the link is not encrypted.
    """

    def __init__(self, endpoint: str, called: str, own: str | None = None, other: str | None = None) -> None:
        self.found = Found.SILENT
        self.cuts = 0
        self._endpoint = endpoint
        self._called = called
        self._own = own
        self._other = other

    def take(self, event: Event) -> bool:
        """Take in an event; return whether the attempt has failed for good."""
        self.cuts += event == "cut"
        found = FINDINGS.get((self.found, event), self.found)
        is_news = found is not self.found
        self.found = found
        return is_news and found in FINAL

    def take_greeting(self, event: Event) -> bool:
        """Take in what the greeting of what listens there says; return whether the attempt has failed for good. Without
        keys on this side, a greeting without encryption tells nothing, and one with it that the sides differ."""
        if self._own is None and event in ("curve", "mechanism"):
            return event == "curve" and self.take("mechanism")
        return self.take(event)

    @property
    def in_doubt(self) -> bool:
        """Return whether the greeting of what listens there would tell why the handshake is cut, repeatedly."""
        return self.found is Found.CUT and self.cuts >= 2

    def why(self) -> str:
        """Return why there is no link."""
        where, called = self._endpoint, self._called
        if self.found is Found.UNKNOWN_KEY:
            return f"{called} at {where} {UNKNOWN_THERE} {self._own}; its owner must list that key there"
        if self.found is Found.OTHER_KEY:
            return f"{OTHER_THAN_LISTED} {called}: what listens at {where} has another one than {self._other}"
        if self.found is Found.OTHER_SECURITY and self._own is None:
            return f"{called} at {where} encrypts, and this side has no keys: give its public key, and a key file"
        if self.found is Found.OTHER_SECURITY:
            return f"what listens at {where} does not encrypt, so it is not {called} with the key {self._other}"
        if self.found is Found.FOREIGN:
            or_plain = "" if self._own is None else ", or not one that encrypts"  # libzmq does not always tell which
            return f"something listens at {where}, but not a Bester fabric{or_plain}"
        silent = "the address may be wrong, the machine down, or a firewall in the way"
        stopped = "not a Bester fabric, or one that is stopped"
        enough = "as many of them as our key may have; it lets us in later"
        texts = {
            Found.HELD_OFF: f"{called} at {where} has cut our links for what they sent, or has {enough}",
            Found.REFUSED: f"nothing listens at {where}",
            Found.FORBIDDEN: f"this user may not open {where}; run as the user whom {called} runs as",
            Found.OPEN: f"something listens at {where} and does not answer: {stopped}",
            Found.CUT: f"the connection to {where} {CUT_SHORT}",
            Found.SILENT: f"no answer from {where}: {silent}",
        }
        return texts.get(self.found, f"no message from {where}")
