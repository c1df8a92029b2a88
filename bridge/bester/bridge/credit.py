"""The broker's credit: what this bridge may have unreported there, and the types that are stuck. Pure.

A broker that tells no credit takes what comes, and refuses above its bounds; the bridge's own bounds hold then.
"""

from __future__ import annotations

from typing import Any

from bester.bridge.limits import Limits
from bester.broker.wire.messages import Meta

REPEAT = 4
"""Reports that say nothing new before one is sent all the same: some two seconds. A HEARTBEAT may be lost with a
connection that is made anew, and either side would then keep to an old number for ever."""
UNBOUNDED = 1 << 62
"""Credit of a broker that tells none."""


class Credit:
    """Credit by the broker's latest WELCOME or HEARTBEAT: `messages` and `size_bytes` that may be sent and unreported.
    `stuck` are the types of which no more is to be sent now; the object stays the same, and others may keep it."""

    __slots__ = ("_reported", "_unsent", "is_known", "messages", "number", "size_bytes", "stuck")

    def __init__(self) -> None:
        self.stuck: dict[str, None] = {}
        self.clear()

    def clear(self) -> None:
        """Forget the credit: the link to the broker is lost, or new."""
        self.is_known = False
        self.messages = self.size_bytes = UNBOUNDED
        self.number = 0
        self.stuck.clear()
        self._reported: Meta = {}
        self._unsent = 0

    def take(self, options: Meta) -> bool:
        """Take in the options of a WELCOME or HEARTBEAT; return whether they tell a credit."""
        messages, size_bytes, number = (_number(options.get(key)) for key in ("credit", "credit_bytes", "number"))
        if messages is None or size_bytes is None or number is None:
            return False
        stuck = options.get("stuck")
        self.is_known = True
        self.messages, self.size_bytes, self.number = messages, size_bytes, number
        self.stuck.clear()
        self.stuck.update((type_, None) for type_ in (stuck if type(stuck) is list else ()) if type(type_) is str)
        return True

    def report(self, messages: int, size_bytes: int, *, more: bool, crowd: bool = False) -> Meta | None:
        """Return the options of a HEARTBEAT that tells the broker what is sent and unreported, whether there is more,
        and whether many senders wait; None where the broker gives no credit, or was told the same a moment ago."""
        report: Meta = {
            "unreported": messages, "unreported_bytes": size_bytes, "more": more, "crowd": crowd, "number": self.number
        }  # fmt: skip
        self._unsent += 1
        if not self.is_known or (report == self._reported and self._unsent < REPEAT):
            return None
        self._reported, self._unsent = report, 0
        return report


def hello_options(limits: Limits) -> Meta:
    """Return the options of a HELLO that tell the broker how much credit the bridge will use at most."""
    return {"credit": limits.held_messages, "credit_bytes": limits.held_bytes}


def _number(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
