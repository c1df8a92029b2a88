"""What one connection has said and is waiting to hear of: its window, and how much room is in it. Pure.

Each message is kept here until its report, for a broker that dies with it is given it again. How many may be here, and
how large together, is bounded for each connection; what all of them have is the bridge's `Load`.
"""

from __future__ import annotations

from typing import NamedTuple

from bester.bridge import native
from bester.bridge.limits import Limits
from bester.broker.wire.messages import Submit

OVERHEAD_BYTES = 256
"""What a message costs in memory while it waits, beside its texts: the tuples, numbers and places in maps. Counted, or
one could have more held with many tiny messages than with large ones."""


class Question(NamedTuple):
    """The client asks what became of a message; the answer to `token` is waited for."""

    token: int
    session: int
    message: str


Unreported = tuple[bytes, int, Submit | Question, float]
"""What waits for its report: the id to report under, its size, what it is, and since when. A plain tuple, for one is
made for every message."""


def size_bytes(submit: Submit) -> int:
    """Return what a message counts for among those that wait."""
    return len(submit[3]) + len(submit[2]) + OVERHEAD_BYTES


class Load:
    """What waits for its report in all windows of a bridge, and of those who have gone, in bytes; and how much may."""

    __slots__ = ("most_bytes", "size_bytes")

    def __init__(self, limits: Limits) -> None:
        self.most_bytes = limits.held_bytes
        self.size_bytes = 0


class Window:
    """What waits for its report on one connection; what enters and ends here does so in `load` as well."""

    __slots__ = (
        "_fair_bytes",
        "_load",
        "_most",
        "_most_bytes",
        "_most_questions",
        "_questions",
        "_waiting",
        "is_full",
        "size_bytes",
    )

    def __init__(self, limits: Limits, load: Load) -> None:
        self._most = limits.unreported
        self._most_bytes = limits.unreported_bytes
        self._fair_bytes = limits.fair_bytes
        self._load = load
        self._waiting: dict[int, Unreported] = {}  # by token
        self.size_bytes = 0
        self._most_questions = limits.questions
        self._questions = 0
        self.is_full = False
        """Whether another one may not enter now; a large one may where there is any room. Where all windows together
        have too much, one is full that has a fair share."""

    def __len__(self) -> int:
        return len(self._waiting)

    def enter(self, token: int, waiting: Unreported, size: int) -> None:
        """It waits for its report from now on."""
        load = self._load
        self._waiting[token] = waiting
        load.size_bytes += size
        self.size_bytes = size = self.size_bytes + size
        if size >= self._most_bytes or len(self._waiting) >= self._most or load.size_bytes >= load.most_bytes:
            self.is_full = self._has_no_room()

    def ask(self, question: Question, waiting: Unreported) -> None:
        """The same of a question."""
        self._questions += 1
        self.enter(question.token, waiting, waiting[1])
        self.is_full = self._has_no_room()

    def _has_no_room(self) -> bool:
        return (
            self.size_bytes >= self._most_bytes
            or len(self._waiting) >= self._most
            or self._questions >= self._most_questions
            or (self._load.size_bytes >= self._load.most_bytes and self.size_bytes >= self._fair_bytes)
        )

    def report(
        self, token: int, status: int, reason: str | None, message: str | None, recipients: dict[str, str] | None,
        note: str | None = None,
    ) -> bytes | None:  # fmt: skip
        """The report has come: return its frame; None where nobody waits for it. Where the session's `has_more` says
        so, its `proceed` follows."""
        waiting = self._waiting.pop(token, None)
        if waiting is None:
            return None
        id_, size, what, _ = waiting
        if self._questions and type(what) is Question:
            self._questions -= 1
        self._load.size_bytes -= size
        self.size_bytes -= size
        if self.is_full:
            self.is_full = self._has_no_room()
        return native.report(id_, status, reason, message, recipients, note)

    def end(self, token: int) -> Unreported | None:
        """Its report has come: return what waited for it."""
        waiting = self._waiting.pop(token, None)
        if waiting is not None:
            if type(waiting[2]) is Question:
                self._questions -= 1
            self.size_bytes -= waiting[1]
            self._load.size_bytes -= waiting[1]
            self.is_full = self._has_no_room()
        return waiting

    def clear(self) -> None:
        """Nothing of it waits any more."""
        self._load.size_bytes -= self.size_bytes
        self.size_bytes = self._questions = 0
        self._waiting.clear()

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def tokens(self) -> list[int]:
        """Of all that waits, in the order it came."""
        return list(self._waiting)

    @property
    def submits(self) -> list[tuple[Submit, float]]:
        """Messages that wait for their report, and since when."""
        return [(what, since_s) for _, _, what, since_s in self._waiting.values() if type(what) is Submit]

    def since_s(self, token: int) -> float | None:
        """Return since when a report is waited for; None where it is not."""
        waiting = self._waiting.get(token)
        return None if waiting is None else waiting[3]

    def submitted(self, token: int) -> Submit | None:
        """Return the message that waits for this report."""
        waiting = self._waiting.get(token)
        what = None if waiting is None else waiting[2]
        return what if type(what) is Submit else None

    def may_ask_again(self, token: int) -> bool:
        """Whether the client may send this message again, and be told on another connection what became of it."""
        waiting = self._waiting.get(token)
        return waiting is not None and type(waiting[2]) is Submit and "dedup" in waiting[2][4]

    def replace(self, submit: Submit) -> None:
        """What waits for its report is submitted in these words from now on."""
        id_, size, _, since_s = self._waiting[submit.token]
        self._waiting[submit.token] = (id_, size, submit, since_s)
