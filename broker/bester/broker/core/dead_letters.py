"""Dead letters: messages that were given up although somebody could still want them; and their second chance.

A letter holds the body, the reason and the way the message had come. It stays until an operator drops it, or until it
was replayed and that ended well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from bester.broker.core import policy
from bester.broker.core.cases import Case, Kind, Reports
from bester.broker.core.effects import Effects, Link, Notice
from bester.broker.core.inspection import DeadLettersState
from bester.broker.core.jobs import Job
from bester.broker.core.queues import Queues
from bester.broker.core.settings import Settings
from bester.broker.store_requests import Bury, DeadLetter, DeadLetterPage, Entry, FindDeadLetters, Unbury, lane
from bester.broker.wire.messages import Answer, Ask, Message
from bester.broker.wire.outcomes import failed

MAX_LISTED = 10_000
MAX_REPLAYED = 1_000
"""Letters of one question: a turn of the loop has an end. What is replayed or dropped is so the oldest first, and the
answer says how many are left of those there were, and from where to go on (`next`, for the next question's `from`)."""
MAX_PLACE = 2**63
NOWHERE = Link("direct", b"dead letters")
QUESTIONS = frozenset({"deadList", "deadShow", "deadReplay", "deadDrop"})
_REPLAYED = re.compile(r"\.replay\.([0-9]{1,18})$")
"""What says at the end of an id that it goes to a server once more."""


def bury(letter: DeadLetter, out: Effects) -> None:
    """There is a dead letter, and whoever runs this server may want to know."""
    out.writes.append(Bury(letter))
    server = letter.meta.get("server")
    to = {} if server is None else {"to": server}
    out.calls.append(Notice("dead-letter", {"id": letter.id, "type": letter.type, "reason": letter.reason, **to}))


class _Replay:
    """Watches a replayed letter: it is dropped when all went well."""

    __slots__ = ("_letters", "_out", "_renamed", "id", "renamed")

    def __init__(self, id_: str, out: Effects, letters: set[str], renamed: dict[str, str]) -> None:
        self.id = id_
        self.renamed: str | None = None
        self._out = out
        self._letters = letters
        self._renamed = renamed

    def on_case_ended(self, case: Case, answer: Message | None) -> None:
        """The replay is over."""
        self._letters.discard(self.id)
        if self.renamed is not None:
            self._renamed.pop(self.renamed, None)
        if case.reason is None:
            self._out.writes.append(Unbury(self.id))


class _Question(NamedTuple):
    """An operator's question: its name and token, and as which type the letters are to be replayed. `in_pages`: it is
    answered from a `DeadLetterPage`."""

    question: str
    token: int
    as_type: str | None
    in_pages: bool


class DeadLetters:
    """The dead letters of a broker. `enter` takes a parcel on its way again; `knows` says whether a type has, or had,
    handlers."""

    def __init__(
        self, settings: Settings, queues: Queues, reports: Reports, out: Effects, enter: Callable[[Job, float], None],
        knows: Callable[[str], bool],
    ) -> None:  # fmt: skip
        self._settings = settings
        self._queues = queues
        self._reports = reports
        self._out = out
        self._enter = enter
        self._knows = knows
        self._replayed: set[str] = set()  # those under way
        self._renamed: dict[str, str] = {}  # of those, what goes by an id of its own, and the letter's

    def inspect(self) -> DeadLettersState:
        """Return what is being replayed."""
        return DeadLettersState(len(self._replayed), len(self._renamed))

    def bury(self, job: Job, reason: str, now: float) -> None:
        """Give a message up, for this reason."""
        if not policy.may_keep(job.type):
            return
        meta = {
            "root": job.root, "origin": job.origin, "scope": job.scope, "user": job.user,
            "peer": job.peer, "path": job.path, "attempts": job.attempt,
            "bytes": len(job.body),
        }  # fmt: skip
        id_ = self._renamed.get(job.id, job.id)
        bury(DeadLetter(id_, job.type, job.body, reason, self._queues.clock.wall(now), meta), self._out)

    def on_question(self, link: Link, ask: Ask) -> Answer | None:
        """Answer an operator's question about dead letters; None: the answer comes when they were read."""
        argument, question = ask.argument, ask.question
        wanted: Any = {"id": argument} if question == "deadShow" else {} if argument is None else argument
        if not _sound(wanted) or (question == "deadShow" and argument is None):
            return Answer(ask.token, 1, None)  # what cannot be read is not taken for `all of them`
        id_, type_, limit = wanted.get("id"), wanted.get("type"), wanted.get("limit")
        most = MAX_REPLAYED if question == "deadReplay" else MAX_LISTED
        limit = most if limit is None else min(limit, most)
        asked = _Question(question, ask.token, wanted.get("as"), in_pages=question in ("deadReplay", "deadDrop"))
        bodies = question in ("deadShow", "deadReplay")
        after, upto = wanted.get("from") or (0, 0)
        self._out.read(
            FindDeadLetters(id_, type_, limit, bodies, asked.in_pages, after=after, upto=upto),
            lambda answer, now: self._out.send(link, self._answer(asked, () if answer is None else answer, now)),
        )
        return None

    def _answer(self, asked: _Question, answer: Sequence[DeadLetter] | DeadLetterPage, now: float) -> Answer:
        """Answer a question with the letters that were read for it."""
        if isinstance(answer, DeadLetterPage):
            return self._do(asked, answer, now)
        if asked.in_pages:  # they could not be read, which was said
            return self._do(asked, DeadLetterPage([], 0, 0, 0), now)
        if asked.question == "deadList":
            return Answer(asked.token, 0, [_line(letter) for letter in answer])
        return Answer(asked.token, 0, _whole(answer[0])) if answer else Answer(asked.token, 1, None)

    def _do(self, asked: _Question, pile: DeadLetterPage, now: float) -> Answer:
        left: dict[str, Any] = {"left": pile.left}
        if pile.left:
            left["next"] = [pile.after, pile.upto]
        if asked.question == "deadDrop":
            for letter in pile.letters:
                self._out.writes.append(Unbury(letter.id))
            return Answer(asked.token, 0, {"dropped": len(pile.letters)} | left)
        as_ = asked.as_type
        if as_ is not None and not self._knows(as_):
            return Answer(asked.token, 1, f"no handler of type {as_!r} was ever here; give one of those there are")
        return Answer(
            asked.token, 0, {"replayed": sum(self._replay(letter, as_, now) for letter in pile.letters)} | left
        )

    def _replay(self, letter: DeadLetter, as_: str | None, now: float) -> bool:
        """Try a letter again; as another type, where one is given. False: it is under way already, or has no place."""
        meta = letter.meta
        if letter.id in self._replayed:
            return False
        self._replayed.add(letter.id)
        server = meta.get("server")
        if type(server) is str and as_ is None:
            return self._replay_to_server(letter, server, now)
        case, watch = self._second_chance(letter)
        id_ = letter.id
        if as_ is not None:  # whoever has got a result of the first attempt is to get those of another handler too
            watch.renamed = id_ = f"{letter.id}.{self._queues.reserve_numbers(1)}.replay"  # still one of its results
            self._renamed[id_] = letter.id
        job = Job(
            case, id_, case.root, as_ or letter.type, letter.body, meta.get("scope") or "handler",
            meta.get("origin") or self._settings.name, meta.get("user"), meta.get("peer"), list(meta.get("path") or ()),
            repeated=True,
        )  # fmt: skip
        self._enter(job, now)
        return True

    def _replay_to_server(self, letter: DeadLetter, server: str, now: float) -> bool:
        """It waits in its lane again, and is a dead letter until that is on disk."""
        meta, (case, _) = letter.meta, self._second_chance(letter)
        entry = Entry(
            self._queues.reserve_numbers(1), lane(server, letter.type), _next_id(letter),
            server, letter.type, letter.body, case.sender, self._queues.clock.stored(now) + self._settings.bounds.ttl_s,
            {key: meta.get(key) for key in ("root", "origin", "path")} | {"message": letter.id, "repeated": True},
        )  # fmt: skip
        self._reports.begin(case)
        code = self._queues.enqueue(entry, case, now)
        if code is not None:
            case.record(server, failed(code))
        self._reports.settle_one(case)
        return code is None

    def _second_chance(self, letter: DeadLetter) -> tuple[Case, _Replay]:
        case = Case(Kind.REPLAY, NOWHERE, 0, letter.id, letter.meta.get("root") or letter.id)
        case.sender, case.peer = letter.meta.get("user"), letter.meta.get("peer")
        watch = _Replay(letter.id, self._out, self._replayed, self._renamed)
        case.watchers = (watch,)
        return case, watch


def _next_id(letter: DeadLetter) -> str:
    """Return the id under which a letter goes to its server once more: the same however often this one is replayed, and
    another than those of all it was before."""
    before = _REPLAYED.search(letter.id)
    number = max(round(letter.at_s * 1000), int(before[1]) + 1 if before else 0)
    return f"{letter.id[: before.start()] if before else letter.id}.replay.{number}"


def _sound(wanted: Any) -> bool:
    """Can it be read which letters are meant?"""
    if type(wanted) is not dict:
        return False
    limit = wanted.get("limit")
    names = all(wanted.get(key) is None or type(wanted[key]) is str for key in ("id", "type", "as"))
    start = wanted.get("from")
    if start is not None and not (
        type(start) is list and len(start) == 2 and all(type(each) is int and 0 <= each < MAX_PLACE for each in start)
    ):
        return False
    return names and (limit is None or (type(limit) is int and limit > 0))


def _line(letter: DeadLetter) -> dict[str, Any]:
    meta = letter.meta
    return {
        "id": letter.id, "type": letter.type, "reason": letter.reason, "at_ms": round(letter.at_s * 1000),
        "attempts": meta.get("attempts", 0), "bytes": meta.get("bytes", 0), "path": meta.get("path", []),
        "server": meta.get("server"),
    }  # fmt: skip


def _whole(letter: DeadLetter) -> dict[str, Any]:
    meta = letter.meta
    said = {key: meta.get(key) for key in ("user", "origin", "root", "scope", "peer")}
    return _line(letter) | said | {"body": letter.body.decode("utf-8", "replace")}
