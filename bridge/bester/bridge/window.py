"""The window of one connection: bounds of its unreported messages and unanswered questions, and their counts. Pure.

Messages are in the table of `submissions`, which bounds all windows together; a window counts the messages of its
connection and of its sender, and knows their tokens.
"""

from __future__ import annotations

from typing import NamedTuple

from bester.bridge import native_writing
from bester.bridge.limits import Limits
from bester.bridge.senders import Sender
from bester.bridge.submission import State, Submission
from bester.bridge.submissions import Submissions

FEW, FEW_BYTES = 16, 16 * 1024
"""Room among all below which a sender makes use of the rest of a fair share: a run of few messages costs nearly as much
as a long one."""
OVERHEAD_BYTES = 256
"""Memory of an unreported message beside its texts: tuples, numbers and entries of maps. Counted, or a client could
have more held with many tiny messages than with large ones."""

_SENT = State.SENT


class Question(NamedTuple):
    """Question of a client about the outcome of a message; the answer comes under `token`."""

    token: int
    session: int
    message: str


class Asked(NamedTuple):
    """Question without an answer yet. `id` is the JSON text that the client reads in the answer; `size` in bytes."""

    question: Question
    id: bytes
    size: int


class Window:
    """Unreported messages and unanswered questions of one connection, counted here, at its `sender` and in
    `submissions`.

    A reader puts a message into `table`, which is that of `submissions`, and its token into `order`; `enter` counts it.

    `size_bytes` is their size together. `is_full`: no other message may enter now; any message, however large, may
    enter where there is any room. Where the sender has used up its share of the room for all, its windows are full.

    `stuck` are the types that the broker can take no more of now. `waits_for` is the one of them that the connection's
    next message has: the window is full then, because messages keep their order.

    With several brokers, `submissions` are those at one of them, until `move`.
    """

    __slots__ = (
        "_asked",
        "_count",
        "_most",
        "_most_bytes",
        "_most_questions",
        "is_full",
        "order",
        "sender",
        "size_bytes",
        "stuck",
        "submissions",
        "table",
        "waits_for",
    )

    def __init__(self, limits: Limits, submissions: Submissions, sender: Sender) -> None:
        self.sender = sender
        self._most = limits.unreported
        self._most_bytes = limits.unreported_bytes
        self._most_questions = limits.questions
        self.submissions = submissions
        self.table = submissions.by_token
        self.stuck = submissions.credit.stuck
        self.waits_for: str | None = None
        self.order: list[int] = []  # in order, with those of reported messages until these are swept out
        self._asked: dict[int, Asked] = {}  # by token
        self._count = 0
        self.size_bytes = 0
        self.is_full = False

    def __len__(self) -> int:
        return self._count

    def room(self) -> tuple[int, int]:
        """Return the messages and the bytes, 1 or more, below which a run of messages certainly leaves room for
        another. (A message counts twice against the bounds for all: at its sender, and among all.)"""
        submissions, sender = self.submissions, self.sender
        messages = (submissions.most - sender.count - len(self.table) + 1) // 2
        size_bytes = (submissions.most_bytes - sender.size_bytes - submissions.size_bytes + 1) // 2
        if (messages < FEW or size_bytes < FEW_BYTES) and (fair := submissions.fair_left(sender)) > 0:
            messages, size_bytes = submissions.unspared - len(self.table), fair
        return (
            max(min(messages, self._most - self._count), 1),
            max(min(size_bytes, self._most_bytes - self.size_bytes), 1),
        )

    def enter(self, messages: int, size_bytes: int) -> None:
        """Count a run of messages, of `size_bytes` together, that were put into `table` and `order`."""
        submissions, sender, most = self.submissions, self.sender, self._most
        submissions.size_bytes = total = submissions.size_bytes + size_bytes
        sender.size_bytes = of_sender = sender.size_bytes + size_bytes
        sender.count = sent = sender.count + messages
        self.size_bytes = size_bytes = self.size_bytes + size_bytes
        self._count = count = self._count + messages
        if (
            size_bytes >= self._most_bytes
            or count >= most
            or sent + len(self.table) >= submissions.most
            or of_sender + total >= submissions.most_bytes
        ):
            self.is_full = self._has_no_room()
        if len(self.order) > 2 * most:
            self.order[:] = self.submitted

    def ask(self, question: Question, id_: bytes, size: int) -> None:
        """Count a question."""
        self._asked[question.token] = Asked(question, id_, size)
        self.submissions.size_bytes += size
        self.sender.size_bytes += size
        self.sender.count += 1
        self.size_bytes += size
        self._count += 1
        self.is_full = self._has_no_room()

    def wait_for(self, type_: str) -> None:
        """Be full until a type is stuck no more."""
        self.waits_for = type_
        self.is_full = True

    def look_again(self) -> None:
        """Take in that the sender may have room again, or none any more, by messages on other connections."""
        self.is_full = self._has_no_room()

    def _has_no_room(self) -> bool:
        if self.waits_for is not None and self.waits_for not in self.stuck:
            self.waits_for = None
        return (
            self.waits_for is not None
            or self.size_bytes >= self._most_bytes
            or self._count >= self._most
            or len(self._asked) >= self._most_questions
            or self.submissions.is_over(self.sender)
        )

    def count_out(self, messages: int, size_bytes: int, table_bytes: int) -> None:
        """Count a run of messages out that were just taken from the table, and are reported: `size_bytes` in the window
        and at the sender, `table_bytes` in the table. Where the session's `has_more` is true, its `proceed` follows."""
        self.submissions.size_bytes -= table_bytes
        sender = self.sender
        sender.size_bytes -= size_bytes
        sender.count -= messages
        self.size_bytes -= size_bytes
        self._count = count = self._count - messages
        if not count:
            self.order.clear()
        if self.is_full:
            self.is_full = self._has_no_room()

    def on_report(
        self, submission: Submission, status: int, reason: str | None, message: str | None,
        recipients: dict[str, str] | None, note: str | None = None,
    ) -> bytes:  # fmt: skip
        """Count a message out that was just taken from the table, and return the frame of its report. Where the
        session's `has_more` is true, its `proceed` follows."""
        size = submission.size
        if submission.state is _SENT:  # in no index beside the table
            self.count_out(1, size, size)
        else:
            self.submissions.release(submission)
            self.count_out(1, size, 0)
        return native_writing.report(submission.id, status, reason, message, recipients, note)

    def report(
        self, token: int, status: int, reason: str | None, message: str | None, recipients: dict[str, str] | None,
        note: str | None = None,
    ) -> bytes | None:  # fmt: skip
        """Return the frame of a report on a message or a question; None where the window has none with this token."""
        asked = self.answer(token)
        if asked is not None:
            return native_writing.report(asked.id, status, reason, message, recipients, note)
        submission = self.table.pop(token, None) if self._count else None
        if submission is None:
            return None
        return self.on_report(submission, status, reason, message, recipients, note)

    def answer(self, token: int) -> Asked | None:
        """Count a question out, and return it; None where the window has none with this token."""
        asked = self._asked.pop(token, None)
        if asked is not None:
            self.submissions.size_bytes -= asked.size
            self.sender.size_bytes -= asked.size
            self.sender.count -= 1
            self.size_bytes -= asked.size
            self._count -= 1
            self.is_full = self._has_no_room()
        return asked

    def move(self, submissions: Submissions) -> None:
        """Go on with another broker: the unreported messages, if any, are moved to its table by the caller."""
        size = sum(asked.size for asked in self._asked.values())
        self.submissions.size_bytes -= size
        submissions.size_bytes += size
        self.submissions, self.table, self.stuck = submissions, submissions.by_token, submissions.credit.stuck
        self.is_full = self._has_no_room()

    def clear(self) -> None:
        """Count everything out: the connection is gone, and `submissions` keeps or drops its messages."""
        self.submissions.size_bytes -= sum(asked.size for asked in self._asked.values())
        self.sender.size_bytes -= self.size_bytes
        self.sender.count -= self._count
        self.size_bytes = self._count = 0
        self.order.clear()
        self._asked.clear()

    # --- what others may ask --------------------------------------------------------------------------------------

    @property
    def submitted(self) -> list[int]:
        """Tokens of the unreported messages, in order."""
        return [token for token in self.order if token in self.table]

    @property
    def tokens(self) -> list[int]:
        """Tokens of the unreported messages and the unanswered questions, in order."""
        return sorted([*self.submitted, *self._asked])

    def is_asking(self, token: int) -> bool:
        """Return whether a question with this token is unanswered."""
        return token in self._asked
