"""The unreported messages of a bridge: one record a message, in one table, from submit to report. Pure.

A message is held until the link to the broker takes it, is sent, and stays in the table until its report. A lost link
makes every sent message a held one: the next broker gets the message again under its token (the broker derives the
message id from the token), with `attempt` in its meta. Held messages are sent in the order of their tokens, so that the
order of every connection is kept. Each client is bounded by its window, and all messages together by `held_bytes` and
`held_messages`, of which a sender may take no more than what is left; sent messages count like held ones, because a
lost link turns all of them into held ones.

Messages of a client that goes depart with the client: they are kept, bounded, and their reports are discarded. No
message is held for longer than `hold_s`, and none is sent after its report.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence

from bester.bridge.broker_link import BrokerLink
from bester.bridge.credit import Credit
from bester.bridge.inspection import SubmissionsState
from bester.bridge.limits import Limits
from bester.bridge.senders import Sender
from bester.bridge.submission import State, Submission, again
from bester.broker.wire.messages import Close, Meta, Open, Submit

ROOM = 64
ROOM_BYTES = 1024 * 1024
"""Messages (and bytes) that may still be sent beside those that fill a credit which was lowered: senders with little
need not wait until the others' messages are done."""
LITTLE_BYTES = 4096
"""Size of the unreported messages of a sender that says little: a few questions of a person, or of a program that waits
for the answers."""
LITTLE_ROOM_BYTES = 64 * 1024
"""Bytes above the credit that senders that say little may have unreported together: one message of another's may be all
of the credit, and is the wait of nobody whose own is nothing beside it."""
SPARE = 8
"""Divisor of a credit: the part of it that is left for senders that come, or wait for the answer to each message."""
AT_ONCE = 256
"""Messages handed to the link in one piece: those that the link does not take stay held."""


_SENT = State.SENT
_HELD_DEPARTED = State.HELD_DEPARTED


class Submissions:
    """All unreported messages of a bridge, and the order in which a broker gets them.

    `by_token` is the table, in the order of the rising tokens, and `most` the bound of its messages, of which senders
    that have messages here may use the `unspared` part. `size_bytes` is the size of the messages in the table and of
    the questions in the windows, `most_bytes` its bound. `departed_of` counts the messages of users whose connections
    have gone. `wake` calls `send_held` at the end of the turn of the loop.
    """

    __slots__ = (
        "_broker_link",
        "_claim",
        "_claim_bytes",
        "_closes",
        "_departed",
        "_departed_bytes",
        "_fair_bytes",
        "_held",
        "_held_bytes",
        "_limits",
        "_most_sent",
        "_most_sent_bytes",
        "_reached",
        "_stuck_bytes",
        "_stuck_count",
        "_wake",
        "by_token",
        "credit",
        "departed_of",
        "most",
        "most_bytes",
        "size_bytes",
        "unspared",
    )

    def __init__(
        self, limits: Limits, broker_link: BrokerLink, wake: Callable[[], None], reached: Counter[str] | None = None
    ) -> None:
        self._reached = Counter() if reached is None else reached
        self.by_token: dict[int, Submission] = {}
        self.size_bytes = 0
        self.credit = Credit()
        self._stuck_count = self._stuck_bytes = 0  # sent messages of stuck types, beside the credit
        self._claim = self._claim_bytes = 0  # messages that a broker which has lowered its credit still counts
        self._most_sent, self._most_sent_bytes = self.credit.messages, self.credit.size_bytes
        self.most = self.unspared = limits.held_messages
        self.most_bytes = limits.held_bytes
        self._fair_bytes = limits.fair_bytes
        self._limits = limits
        self._broker_link = broker_link
        self._wake = wake
        self._held: OrderedDict[int, Submission] = OrderedDict()  # messages to be sent, by token and in its order
        self._held_bytes = 0
        self._departed: dict[int, Submission] = {}  # messages whose client has gone, by token
        self._departed_bytes = 0
        self.departed_of: Counter[str] = Counter()
        self._closes: dict[int, Close] = {}  # by the token of the last held message of a session that has gone

    def is_spent(self, sender: Sender) -> bool:
        """Return whether the broker's credit is used up for a sender that does not come just now: but for a spare part,
        if the sender has messages unreported. Of a credit that was lowered senders that say little may use more: what
        the broker still counts. In bytes they have a room of their own above it."""
        if not self.credit.is_known:
            return False
        if sender.size_bytes <= LITTLE_BYTES:
            most, most_bytes = self._most_sent, self._most_sent_bytes + LITTLE_ROOM_BYTES
        else:
            most, most_bytes = self.most, self.most_bytes
            if sender.count:
                most_bytes -= most_bytes // SPARE
        if sender.count:
            most -= most // SPARE
        return len(self.by_token) >= most or self.size_bytes >= most_bytes

    def is_over(self, sender: Sender, margin: int = 0) -> bool:
        """Return whether a sender has as much unreported as is left of the bounds, and more than a fair share; with
        `margin`, whether the sender will have with so many more messages, and has half of a fair share already."""
        return sender.size_bytes >= (self._fair_bytes // 2 if margin else self._fair_bytes) and (
            sender.size_bytes + self.size_bytes >= self.most_bytes
            or sender.count + len(self.by_token) + 2 * margin >= self.most
        )

    def fair_left(self, sender: Sender) -> int:
        """Return the bytes that a sender may have more before it has a fair share, with whatever others have."""
        return self._fair_bytes - sender.size_bytes

    def inspect(self) -> SubmissionsState:
        """Return counts of the unreported messages."""
        return SubmissionsState(
            waiting=len(self.by_token) - len(self._departed),
            queued=len(self._held),
            queued_bytes=self._held_bytes,
            departed=len(self._departed),
            departed_bytes=self._departed_bytes,
            unreported_bytes=self.size_bytes,
        )

    # --- connections ----------------------------------------------------------------------------------------------

    def submit(self, messages: Sequence[Submit]) -> None:
        """Send messages that were just put into the table, or hold them."""
        if self._held:
            taken = 0
        elif len(self.by_token) <= self._most_sent and self.size_bytes <= self._most_sent_bytes:
            taken = self._broker_link.submit(messages)
        else:
            taken = self._broker_link.submit(messages[: self._within_credit(messages)])
        if taken < len(messages):
            for message in messages[taken:]:
                submission = self._held[message.token] = self.by_token[message.token]
                submission.on("refused")
                self._held_bytes += submission.size
            self._wake()

    def _within_credit(self, messages: Sequence[Submit]) -> int:
        """Return how many of these new messages the broker's credit allows to send."""
        sizes = [self.by_token[message.token].size for message in messages]
        return self._allowed(sizes, len(self.by_token) - len(messages), self.size_bytes - sum(sizes))

    def _allowed(self, sizes: Iterable[int], sent: int, sent_bytes: int) -> int:
        """Return how many messages of these sizes may follow those that are sent. A message of any size may follow
        where there is any room, and a short one a little above it."""
        allowed = 0
        for size in sizes:
            most_bytes = self._most_sent_bytes + (LITTLE_ROOM_BYTES if size <= LITTLE_BYTES else 0)
            if sent + allowed >= self._most_sent or sent_bytes >= most_bytes:
                break
            allowed += 1
            sent_bytes += size
        return allowed

    def on_credit(self, options: Meta) -> bool:
        """Take in what the broker tells of its credit, without options that there is none to keep to: read no more than
        the credit allows to send, and send held messages where there is more room. Return whether the credit may have
        changed.

        What the broker counted before, it counts until the next report: a lower credit is reached by not reading from
        senders above their share, while messages of the others are sent meanwhile.
        """
        credit = self.credit
        before = (credit.messages, credit.size_bytes) if credit.is_known else (0, 0)
        if options and not credit.take(options):
            return False
        if not options:
            credit.clear()
            before = self._claim, self._claim_bytes = 0, 0
        self._claim, self._claim_bytes = max(self._claim, before[0]), max(self._claim_bytes, before[1])
        self._count_stuck()
        self._wake()
        return True

    def _count_stuck(self) -> None:
        """Count the sent messages of stuck types. Such messages leave the credit to other types, but not more than
        there is credit: the broker holds twice its credit at most."""
        credit, stuck = self.credit, self.credit.stuck
        sizes = [
            submission.size
            for submission in (self.by_token.values() if stuck else ())
            if submission.submit.type in stuck and submission.state in (State.SENT, State.SENT_DEPARTED)
        ]
        self._stuck_count = min(len(sizes), credit.messages)
        self._stuck_bytes = min(sum(sizes), credit.size_bytes)
        self._set_bounds()

    def _set_bounds(self) -> None:
        credit = self.credit
        self._most_sent = max(credit.messages, self._claim) + self._stuck_count
        self._most_sent_bytes = max(credit.size_bytes, self._claim_bytes) + self._stuck_bytes
        self.most = min(self._limits.held_messages, credit.messages + self._stuck_count)
        self.unspared = self.most - self.most // SPARE
        fair = self._limits.fair_bytes
        self._fair_bytes = max(fair * self.most // self._limits.held_messages, min(fair, LITTLE_BYTES // 2))
        self.most_bytes = min(self._limits.held_bytes, credit.size_bytes + self._stuck_bytes)

    @property
    def has_held(self) -> bool:
        """Return whether messages wait for the broker."""
        return bool(self._held)

    def report(self, *, more: bool, crowd: bool = False) -> Meta | None:
        """Return what the broker is to know of the use of its credit, None where there is nothing new; `more`: clients
        have more to send; `crowd`: many senders wait."""
        credit = self.credit
        self._count_stuck()
        sent = max(len(self.by_token) - len(self._held) - self._stuck_count, 0)
        sent_bytes = max(self.size_bytes - self._held_bytes - self._stuck_bytes, 0)
        if self._claim > credit.messages:
            sent = max(sent, min(self._claim, sent + ROOM))
        if self._claim_bytes > credit.size_bytes:
            sent_bytes = max(sent_bytes, min(self._claim_bytes, sent_bytes + ROOM_BYTES))
        self._claim, self._claim_bytes = sent, sent_bytes
        self._set_bounds()
        return credit.report(sent, sent_bytes, more=more or bool(self._held), crowd=crowd)

    def release(self, submission: Submission) -> None:
        """Count a reported message out, which has left the table."""
        submission.on("reported")
        self._forget(submission)

    def _forget(self, submission: Submission) -> None:
        token = submission.submit.token
        self.size_bytes -= submission.size
        if self._held.pop(token, None) is not None:
            self._held_bytes -= submission.size
        if self._departed.pop(token, None) is not None:
            self._departed_bytes -= submission.size
            self._count_departed(submission, -1)
        if self._closes and (close := self._closes.pop(token, None)) is not None:
            self._broker_link.send(close)

    def on_connection_lost(self, tokens: Collection[int], user: str | None, account: str | None = None) -> int | None:
        """Keep the unreported messages of a client that has gone, as far as there is room for them. Return the token
        of the last held one."""
        last = None
        for token in tokens:
            submission = self.by_token[token]
            size = submission.size
            if (
                len(self._departed) < self._limits.gone_messages
                and self._departed_bytes + size <= self._limits.gone_bytes
            ):
                submission.on("departed")
                submission.user, submission.account = user, account
                self._departed[token] = submission
                self._departed_bytes += size
                self._count_departed(submission, 1)
                if token in self._held:
                    last = token
            else:
                submission.on("dropped")
                many = len(self._departed) >= self._limits.gone_messages
                self._reached["gone_messages" if many else "gone_bytes"] += 1
                del self.by_token[token]
                self._forget(submission)
        return last

    def _count_departed(self, submission: Submission, by: int) -> None:
        if submission.user is not None:
            self.departed_of[submission.user] += by
            if not self.departed_of[submission.user]:
                del self.departed_of[submission.user]

    def close(self, message: Close, behind: int | None) -> None:
        """Send the end of a session to the broker, behind the held message with the token `behind`."""
        if behind is not None and self._broker_link.is_ready:
            self._closes[behind] = message
        else:
            self._broker_link.send(message)

    # --- the broker -----------------------------------------------------------------------------------------------

    def on_link_lost(self) -> None:
        """Hold every message of the table."""
        for submission in self.by_token.values():
            if submission.state is _SENT or submission.state is State.SENT_DEPARTED:
                submission.on("lost")
                submission.submit = again(submission.submit)
        self._held = OrderedDict(self.by_token)
        self._held_bytes = sum(submission.size for submission in self.by_token.values())
        self._closes.clear()

    def on_link_ready(self) -> list[Open]:
        """Return the sessions that have gone and left held messages: the broker gets their Opens before the messages.
        The Close of such a session follows its last message."""
        last: dict[tuple[int, str, str | None], int] = {}
        for token, submission in self._held.items():
            if submission.user is not None:
                last[submission.session, submission.user, submission.account] = token
        self._closes = {token: Close(session) for (session, *_), token in last.items()}
        return [Open(*each) for each in last]

    def give(self) -> list[Submission]:
        """Empty the table, whose link is lost, for brokers that are live; return the messages in order."""
        given = list(self.by_token.values())
        self.by_token.clear()
        self._held.clear()
        self._departed.clear()
        self.departed_of.clear()
        self._held_bytes = self._departed_bytes = 0
        self.size_bytes -= sum(submission.size for submission in given)
        return given

    def take(self, given: Sequence[Submission]) -> list[Open]:
        """Take messages of another broker, which are held, and send them among those held here, in the order of their
        tokens. Return the sessions that have gone and left some: the broker gets their Opens before the messages."""
        added = {submission.submit.token: submission for submission in given}
        whole = sorted((self.by_token | added).items())
        self.by_token.clear()  # the windows have this table
        self.by_token.update(whole)
        self._held = OrderedDict(sorted((self._held | added).items()))
        departed = {token: submission for token, submission in added.items() if submission.state is _HELD_DEPARTED}
        self._departed = dict(sorted((self._departed | departed).items()))
        for submission in given:
            self.size_bytes += submission.size
            self._held_bytes += submission.size
        for submission in departed.values():
            self._departed_bytes += submission.size
            self._count_departed(submission, 1)
        sessions = {submission.session for submission in departed.values()}
        self._wake()
        return [opened for opened in self.on_link_ready() if opened.session in sessions]

    def send_held(self) -> None:
        """Send held messages, as far as there is room on the link, and credit."""
        while self._held and self._broker_link.has_room:
            batch: list[Submission] = []
            close = None
            for token, submission in self._held.items():
                batch.append(submission)
                close = self._closes.get(token) if self._closes else None
                if close is not None or len(batch) == AT_ONCE:
                    break
            sent, sent_bytes = len(self.by_token) - len(self._held), self.size_bytes - self._held_bytes
            allowed = self._allowed((submission.size for submission in batch), sent, sent_bytes)
            taken = self._broker_link.submit([submission.submit for submission in batch[:allowed]]) if allowed else 0
            for submission in batch[:taken]:
                submission.on("sent")
                del self._held[submission.submit.token]
                self._held_bytes -= submission.size
            if taken < len(batch):
                return
            if close is not None:
                del self._closes[batch[-1].submit.token]
                self._broker_link.send(close)

    def overdue(self, now: float) -> list[int]:
        """Return the tokens of messages that have been held, or departed, for `hold_s` without a report; the bridge
        reports them itself."""
        tokens: list[int] = []
        for submissions in (self._held, self._departed):
            for token, submission in submissions.items():
                if now - submission.since_s < self._limits.hold_s:
                    break
                tokens.append(token)
        return tokens
